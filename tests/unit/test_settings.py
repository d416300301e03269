"""Settings: an error names every variable that has an invalid value."""

import os

import pytest

from bronze import settings
from bronze.errors import Misconfigured


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("BRONZE_")]:
        monkeypatch.delenv(name)


def test_the_defaults_are_valid() -> None:
    """The purge grace covers a late publish, and an object's submissions and its entry fit one batch of 1,000."""
    loaded = settings.load()
    assert loaded.purge_grace_s >= 2 * loaded.deadline_s
    assert loaded.object_submissions_max < 1_000
    assert not loaded.create_only_missing


def test_a_variable_sets_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRONZE_LANES", "3")
    monkeypatch.setenv("BRONZE_FLUSH_AGE_S", "0.5")
    loaded = settings.load()
    assert (loaded.lanes, loaded.flush_age_s) == (3, 0.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BRONZE_LANES", "0"),
        ("BRONZE_FLUSH_AGE_S", "soon"),
        ("BRONZE_OBJECT_SUBMISSIONS_MAX", "1000"),
        ("BRONZE_OBJECT_MESSAGES_MAX", "4097"),
        ("BRONZE_OPEN_BATCHES_MAX", "41"),
        ("BRONZE_BODY_BYTES_MAX", "-1"),
        ("BRONZE_LOG_FORMAT", "xml"),
        ("BRONZE_PROMETHEUS_URL", "prometheus:9090"),
        ("BRONZE_TRACE_URL", "javascript:alert('{trace_id}')"),
        ("BRONZE_TRACE_URL", "http://127.0.0.1:9411/zipkin/traces/"),
    ],
)
def test_an_invalid_value_is_refused_with_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(Misconfigured, match=name):
        settings.load()


def test_all_invalid_variables_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRONZE_LANES", "none")
    monkeypatch.setenv("BRONZE_API_PORT", "http")
    with pytest.raises(Misconfigured, match=r"BRONZE_LANES.*BRONZE_API_PORT|BRONZE_API_PORT.*BRONZE_LANES"):
        settings.load()


def test_a_purge_grace_below_twice_the_deadline_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A publish that arrives one deadline late would no longer find its first copy, and be stored twice."""
    monkeypatch.setenv("BRONZE_DEADLINE_S", "10")
    monkeypatch.setenv("BRONZE_PURGE_GRACE_S", "20")
    assert settings.load().purge_grace_s == 20
    monkeypatch.setenv("BRONZE_PURGE_GRACE_S", "19.9")
    with pytest.raises(Misconfigured, match=r"BRONZE_PURGE_GRACE_S \(19.9\).*BRONZE_DEADLINE_S \(10\)"):
        settings.load()
