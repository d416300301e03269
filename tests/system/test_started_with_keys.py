"""The system of `make up` with BRONZE_AUTH=keys: its own clients have keys, and its output says how to create one."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from local import __main__ as commands
from local import servers
from local.builds import build_all
from local.evidence import Prometheus
from local.stack import API_KEY_SCOPES, Ports, Stack
from tests.system.blackbox import SOON, System, until

#: The canary sends its first records when Prometheus has the ledger, which comes by the collector.
SERVERS = {"nats", "seaweedfs", "otel-collector", "prometheus"}
RECORD = '{"vehicle_id": "N14228"}\n'


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRONZE_AUTH", "keys")
        patch.delenv("BRONZE_API_KEY", raising=False)
        stack = Stack.create(tmp_path_factory.mktemp("closed"), Ports.free(), build_all())
        system = System(stack, SOON)
        *backends, prometheus = [p for p in stack.servers if p.name in SERVERS]
        with system.running(*backends, prometheus), system.running(system.role("api"), system.role("consumer")):
            yield system


def publish(env: dict[str, str], file: Path) -> subprocess.CompletedProcess[str]:
    file.write_text(RECORD)
    command = [servers.executable("bronze"), "publish", "vehicles", str(file), "--again", "--json"]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_own_clients_have_keys(closed: System, tmp_path: Path) -> None:
    """The sample is accepted, and Prometheus may scrape the API."""
    sent = publish(dict(closed.stack.publish_env), tmp_path / "vehicles.ndjson")
    assert sent.returncode == 0, sent.stderr
    metrics = Prometheus(closed.stack.ports.prometheus)
    until("Prometheus scrapes the API", lambda: metrics.value('up{job="scrape-api"}') == 1)
    with closed.running(closed.role("canary")):
        until("the canary's records are stored", lambda: closed.keys(f"{closed.prefix}/source=canary/"))


def test_without_a_key_nothing_is_accepted(closed: System, tmp_path: Path) -> None:
    """`bronze publish` says so, and which variable has the key."""
    env = {k: v for k, v in closed.stack.publish_env.items() if not k.startswith("BRONZE_API_KEY")}
    refused = publish(env, tmp_path / "vehicles.ndjson")
    assert refused.returncode != 0
    assert "BRONZE_API_KEY" in refused.stdout + refused.stderr


def test_the_printed_commands_create_a_key(closed: System, tmp_path: Path) -> None:
    """As a user copies them: a new shell, the file of variables, the key, a file that is sent."""
    (tmp_path / "vehicles.ndjson").write_text(RECORD)
    lines = (f". {closed.stack.root / 'env'}", commands.NEW_KEY, "bronze publish vehicles vehicles.ndjson")
    shell = ["sh", "-ec", "\n".join(lines)]
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(shell, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_another_start_creates_no_key(closed: System) -> None:
    """Those that the queue knows are kept."""

    def keys() -> dict[str, str]:
        return {name: closed.stack._api_key_file(name).read_text() for name in API_KEY_SCOPES}

    before = keys()
    closed.stack.initialize_queue()
    assert keys() == before
    listed = closed.stack._command("keys", "list", "--json").splitlines()
    assert {json.loads(line)["principal"] for line in listed} >= API_KEY_SCOPES.keys()
