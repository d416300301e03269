from pathlib import Path

import pytest

from local.builds import REPOSITORY
from local.settings import service_settings, settings, sources_file

ENV = """\
BRONZE_TRACES_EXPORTER=zipkin
BRONZE_LOCAL_PORT_API=8001
BRONZE_FLUSH_AGE_S=3  # for a look
BRONZE_LOG_LEVEL=DEBUG
OTEL_TRACES_SAMPLER_ARG=0.1
OTLP_TRACES_HEADERS={"x-api-key": "a b"}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (line.partition("=")[0] for line in ENV.splitlines()):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".env").write_text(ENV)
    return tmp_path / ".env"


def test_the_environment_wins_over_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRONZE_TRACES_EXPORTER", "file")
    found = settings(file)
    assert (found["BRONZE_TRACES_EXPORTER"], found["BRONZE_FLUSH_AGE_S"]) == ("file", "3")
    assert found["OTLP_TRACES_HEADERS"] == '{"x-api-key": "a b"}'


def test_the_file_may_be_missing(tmp_path: Path) -> None:
    assert "BRONZE_FLUSH_AGE_S" not in settings(tmp_path / "none")
    assert service_settings(tmp_path / "none") == {}


def test_the_service_is_told_what_is_its_own(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings and the sampler; not where the runner puts things. The environment wins here too."""
    monkeypatch.setenv("BRONZE_LOG_LEVEL", "ERROR")
    assert service_settings(file) == {
        "BRONZE_FLUSH_AGE_S": "3",
        "BRONZE_LOG_LEVEL": "ERROR",
        "OTEL_TRACES_SAMPLER_ARG": "0.1",
    }


def test_the_sources_file_is_found_from_the_top(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Roles run in the state directory, and Compose looks from the top too; an absolute path stays as it is."""
    monkeypatch.delenv("BRONZE_SOURCES", raising=False)
    assert sources_file(file) == {}
    monkeypatch.setenv("BRONZE_SOURCES", "./own.toml")
    assert sources_file(file) == {"BRONZE_SOURCES": str(REPOSITORY / "own.toml")}
    monkeypatch.setenv("BRONZE_SOURCES", str(file))
    assert sources_file(file) == {"BRONZE_SOURCES": str(file)}
