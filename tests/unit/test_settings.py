"""Settings: an error names every variable that has an invalid value."""

import os
from pathlib import Path

import pytest

from bronze import client, settings
from bronze.errors import Misconfigured
from bronze.protocol.principals import new_key
from bronze.wiring.listener import check_exposure


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
        ("BRONZE_NATS_URL", "http://127.0.0.1:4222"),
        ("BRONZE_NATS_URL", "nats://one:4222,"),
        ("BRONZE_NATS_URL", "nats://one:port"),
        ("BRONZE_NATS_URL", "nats://one:4222/path"),
        ("BRONZE_NATS_URL", "nats://one two"),
        ("BRONZE_NATS_URL", "nats://one,tls://two"),
        ("BRONZE_NATS_URL", "nats://user@one"),
        ("BRONZE_NATS_URL", "nats://user:a@one,nats://user:b@two"),
        ("BRONZE_NATS_USER", "api"),
        ("BRONZE_NATS_PASSWORD", "secret"),
        ("BRONZE_NATS_PASSWORD_FILE", "/run/secrets/queue"),
        ("BRONZE_NATS_CA_FILE", "/etc/ca.pem"),
        ("BRONZE_NATS_KEY_FILE", "/etc/key.pem"),
        ("BRONZE_FLUSH_AGE_S", "soon"),
        ("BRONZE_OBJECT_SUBMISSIONS_MAX", "1000"),
        ("BRONZE_OBJECT_MESSAGES_MAX", "4097"),
        ("BRONZE_OPEN_BATCHES_MAX", "41"),
        ("BRONZE_CANARY_INTERVAL_S", "241"),
        ("BRONZE_TABLE_EXPIRE_DAYS", "99999999999"),
        ("BRONZE_TABLE_NAMESPACE", ""),
        ("BRONZE_BODY_BYTES_MAX", "-1"),
        ("BRONZE_LOG_FORMAT", "xml"),
        ("BRONZE_PROMETHEUS_URL", "prometheus:9090"),
        ("BRONZE_AUTH", "none"),
        ("BRONZE_JWT_ISSUER", "issuer"),
        ("BRONZE_JWT_ISSUER", "https://issuer.example/#a"),
        ("BRONZE_JWT_ISSUER", "https://issuer.example/"),
        ("BRONZE_JWT_KEYS", "http://issuer.example/jwks"),
        ("BRONZE_JWT_KEYS", "http://127.0.0.1@issuer.example/jwks"),
        ("BRONZE_JWT_ALGORITHMS", "RS256,HS256"),
        ("BRONZE_JWT_ALGORITHMS", "none"),
        ("BRONZE_JWT_ALGORITHMS", ""),
        ("BRONZE_REQUESTS_PER_S_MAX", "0"),
        ("BRONZE_API_KEY", "hunter2"),
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


def test_an_address_without_its_scheme_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRONZE_WEBHOOK_URL", "127.0.0.1:9876")
    with pytest.raises(Misconfigured, match="BRONZE_WEBHOOK_URL: an address begins with http:// or https://"):
        settings.load()


def test_the_queue_has_several_servers_and_one_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user may be in the addresses, or in settings of its own."""
    monkeypatch.setenv("BRONZE_NATS_URL", "tls://a%40b:p%3Aw@one, tls://a%40b:p%3Aw@[::1]:4223/")
    loaded = settings.load()
    servers = loaded.queue_servers
    assert servers.urls == ("tls://one:4222", "tls://[::1]:4223")
    assert (servers.user, servers.read_password(), servers.inbox_prefix) == ("a@b", "p:w", "_INBOX_a_b")
    assert servers.tls
    assert "p%3Aw" not in f"{loaded!r} {servers!r} {servers}"
    monkeypatch.setenv("BRONZE_NATS_URL", "one,nats://two:4223")
    monkeypatch.setenv("BRONZE_NATS_USER", "api")
    monkeypatch.setenv("BRONZE_NATS_PASSWORD", "hunter2")
    servers = settings.load().queue_servers
    assert servers.urls == ("nats://one:4222", "nats://two:4223")
    assert (servers.user, servers.read_password(), servers.inbox_prefix) == ("api", "hunter2", "_INBOX_api")
    assert "hunter2" not in f"{settings.load()!r} {servers!r}"
    for name in ("BRONZE_NATS_USER", "BRONZE_NATS_PASSWORD"):
        monkeypatch.setenv(name, "")  # as compose passes on what is not set
    servers = settings.load().queue_servers
    assert (servers.user, servers.inbox_prefix) == (None, "_INBOX")


def test_a_password_in_an_address_is_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("nats://u:hunter2@one:port", "nats://u:hunter2@one,nats://two", "nats://:hunter2@one", "u:hunter2@"):
        monkeypatch.setenv("BRONZE_NATS_URL", url)
        with pytest.raises(Misconfigured, match="BRONZE_NATS_URL") as refused:
            settings.load()
        assert "hunter2" not in str(refused.value)


def test_an_api_key_is_in_no_error_and_no_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that cannot be valid, nor a valid one where the settings are printed."""
    monkeypatch.setenv("BRONZE_API_KEY", "hunter2")
    with pytest.raises(Misconfigured) as refused:
        settings.load()
    assert "hunter2" not in str(refused.value)
    key, _ = new_key([], "", None)
    monkeypatch.setenv("BRONZE_API_KEY", key)
    loaded = settings.load()
    assert key not in f"{loaded!r} {loaded} {loaded.model_dump()}"
    with client.connect(loaded) as http:
        assert http.headers["Authorization"] == f"Bearer {key}"
        assert key not in repr(http.headers)
    monkeypatch.setenv("BRONZE_API_KEY", "")
    with client.connect(settings.load()) as http:
        assert "Authorization" not in http.headers


def test_an_api_key_may_be_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file without a key is named, and what is in it is not shown."""
    file = tmp_path / "key"
    monkeypatch.setenv("BRONZE_API_KEY_FILE", str(file))
    monkeypatch.setenv("BRONZE_API_KEY", "")
    with pytest.raises(Misconfigured, match=r"BRONZE_API_KEY_FILE.*No such file"):
        client.connect(settings.load())
    file.write_text("hunter2")
    with pytest.raises(Misconfigured, match=r"BRONZE_API_KEY_FILE.*no key of the form") as refused:
        client.connect(settings.load())
    assert "hunter2" not in str(refused.value)
    key, _ = new_key([], "", None)
    file.write_text(f"{key}\n")
    with client.connect(settings.load()) as http:
        assert http.headers["Authorization"] == f"Bearer {key}"
    monkeypatch.setenv("BRONZE_API_KEY", key)
    with pytest.raises(Misconfigured, match="BRONZE_API_KEY and BRONZE_API_KEY_FILE are both set"):
        settings.load()


@pytest.mark.parametrize(
    ("host", "auth", "starts"),
    [
        ("127.0.0.1", "open", True),
        ("127.9.9.9", "open", True),
        ("::1", "open", True),
        ("localhost", "open", True),
        ("0.0.0.0", "open", False),
        ("", "open", False),
        ("::", "open", False),
        ("192.0.2.1", "open", False),
        ("no-such-host.invalid", "open", False),
        ("0.0.0.0", "keys", True),
        ("0.0.0.0", "delegated", True),
    ],
)
def test_an_open_api_is_on_the_loopback_only(
    monkeypatch: pytest.MonkeyPatch, host: str, auth: str, *, starts: bool
) -> None:
    monkeypatch.setenv("BRONZE_API_HOST", host)
    monkeypatch.setenv("BRONZE_AUTH", auth)
    loaded = settings.load()
    if starts:
        check_exposure(loaded)
    else:
        with pytest.raises(Misconfigured, match=r"BRONZE_AUTH=keys.*BRONZE_AUTH=delegated"):
            check_exposure(loaded)


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


def test_workers_divide_what_they_have_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts are no more than the whole; each has at least one reader. An option comes before the variable."""
    monkeypatch.setenv("BRONZE_WORKERS", "2")
    one, two, many = settings.load(workers=1), settings.load(), settings.load(workers=40)
    assert one.share_of_worker() == one
    assert (two.workers, many.workers) == (2, 40)
    for whole in (two, many):
        share = whole.share_of_worker()
        for name in ("open_batches_max", "bodies_memory_bytes_max", "bodies_disk_bytes_max"):
            assert 1 <= getattr(share, name) <= getattr(whole, name) / whole.workers
    assert [each.share_of_worker().columnar_readers_max for each in (one, two, many)] == [2, 1, 1]
    with pytest.raises(Misconfigured, match="BRONZE_WORKERS: Input should be greater than or equal to 1"):
        settings.load(workers=0)
