import os
import subprocess
from pathlib import Path

import pytest

from local.builds import REPOSITORY
from local.programs import LocalError
from local.settings import (
    FLEET_VARIABLE,
    NATS_VARIABLE,
    fleet,
    ignored,
    nats_servers,
    service_settings,
    settings,
    sources_file,
)

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


def test_roles_get_their_own_settings(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the service and of the sampler, from file and environment; the environment takes precedence."""
    for name in [name for name in os.environ if name.startswith("BRONZE_")]:
        monkeypatch.delenv(name)
    exported = {"BRONZE_LOG_LEVEL": "ERROR", "BRONZE_LANES": "2", "OTEL_TRACES_SAMPLER": "always_on"}
    left_out = {"BRONZE_API_KEY": "secret", "OTEL_SDK_DISABLED": "true", "BRONZE_ZIPKIN_URL": "http://elsewhere"}
    for name, value in {**exported, **left_out}.items():
        monkeypatch.setenv(name, value)
    assert service_settings(file) == {
        "BRONZE_FLUSH_AGE_S": "3",
        "BRONZE_LANES": "2",
        "BRONZE_LOG_LEVEL": "ERROR",
        "OTEL_TRACES_SAMPLER": "always_on",
        "OTEL_TRACES_SAMPLER_ARG": "0.1",
    }


def test_a_setting_without_effect_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is misspelled, set elsewhere, or decided by `make up`; not what has an effect, and not an address, which
    a shell has from `.local/up/env`. No value of `.env` is shown: it may be a secret.
    """
    for name in [name for name in os.environ if name.startswith("BRONZE_")]:
        monkeypatch.delenv(name)
    file = tmp_path / ".env"
    elsewhere = "{0} of .env is ignored: the environment has another value; `unset {0}` removes it".format
    only = "of OTEL_*, only OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG have an effect"
    file.write_text(
        "BRONZE_FLUSH_AGE=3\nBRONZE_LOG_LEVEL=DEBUG\nBRONZE_LANES=2\nOTEL_METRIC_EXPORT_INTERVAL=100\n"
        "OTEL_TRACES_SAMPLER=always_on\nCOMPOSE_PROFILES=simulate\nBRONZE_LOCAL_PORT_ALERTMANAGER=1\n"
        "OTLP_TRACES_HEADERS=in-file\nBRONZE_AUTH=open\n"
    )
    exported = {
        "BRONZE_LANES": "4",
        "BRONZE_BUCKET": "mine",
        "BRONZE_NATS_URL": "nats://elsewhere",
        "BRONZE_AUTH": "open",
    }
    for name, value in {**exported, "OTLP_TRACES_HEADERS": "exported"}.items():
        monkeypatch.setenv(name, value)
    assert list(ignored({"BRONZE_BUCKET": "bronze", "BRONZE_LANES": "4"}, file)) == [
        elsewhere("BRONZE_LANES"),
        elsewhere("OTLP_TRACES_HEADERS"),
        "BRONZE_BUCKET=mine is ignored: here it is always 'bronze'",
        "BRONZE_FLUSH_AGE is ignored: there is no such setting; there is BRONZE_FLUSH_AGE_S",
        f"OTEL_METRIC_EXPORT_INTERVAL of .env is ignored: {only}",
    ]


def test_the_fleet_is_on_or_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FLEET_VARIABLE, raising=False)
    file = tmp_path / ".env"
    assert fleet(file)
    file.write_text(f"{FLEET_VARIABLE}=off\n")
    assert not fleet(file)
    monkeypatch.setenv(FLEET_VARIABLE, "on")
    assert fleet(file)
    monkeypatch.setenv(FLEET_VARIABLE, "no")
    with pytest.raises(LocalError, match=f"{FLEET_VARIABLE}=no: use on or off"):
        fleet(file)


def test_the_queue_has_one_server_or_three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NATS_VARIABLE, raising=False)
    assert nats_servers(tmp_path / "none") == 1
    monkeypatch.setenv(NATS_VARIABLE, "3")
    assert nats_servers(tmp_path / "none") == 3
    monkeypatch.setenv(NATS_VARIABLE, "2")
    with pytest.raises(LocalError, match="BRONZE_LOCAL_NATS=2: use 1 or 3"):
        nats_servers(tmp_path / "none")


@pytest.mark.parametrize("target", ["up", "demo"])
def test_make_takes_the_same_choices(target: str) -> None:
    """`-n` prints the command."""
    chosen = ("NATS=3", "FLEET=off", "WORKERS=2", "SAMPLE=year")
    command = ["make", "--no-print-directory", "-n", target, "READY=", "BIN=bin", *chosen]
    printed = subprocess.run(
        command, cwd=REPOSITORY, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True
    ).stdout
    of_variables = f"{NATS_VARIABLE}=3 {FLEET_VARIABLE}=off BRONZE_WORKERS=2"
    assert printed == f"{of_variables} bin/python -m local {target} --sample year\n"


def test_the_sources_file_is_found_from_the_top(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Roles run in the state directory, and Compose looks from the top too; an absolute path stays as it is."""
    monkeypatch.delenv("BRONZE_SOURCES", raising=False)
    assert sources_file(file) == {}
    monkeypatch.setenv("BRONZE_SOURCES", "./own.toml")
    assert sources_file(file) == {"BRONZE_SOURCES": str(REPOSITORY / "own.toml")}
    monkeypatch.setenv("BRONZE_SOURCES", str(file))
    assert sources_file(file) == {"BRONZE_SOURCES": str(file)}
