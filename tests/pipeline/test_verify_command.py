"""`bronze verify` on a complete system, with the collector between: its output, its exit codes and its metrics."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from local.builds import Built
from local.programs import LOOPBACK, Program, free_ports
from local.stack import Ports, Stack
from tests.system.blackbox import SOON, System, until, vehicles

TRACE_STORE = "zipkin"


@dataclass(frozen=True)
class Running:
    system: System
    trace_store: ExitStack

    def restart_trace_store(self) -> None:
        """Zipkin keeps traces in memory: afterwards it has none."""
        self.trace_store.close()
        self.trace_store.enter_context(self.system.running(program(self.system.stack)))


def program(stack: Stack) -> Program:
    return next(program for program in stack.servers if program.name == TRACE_STORE)


@pytest.fixture
def running(built: Built, tmp_path: Path) -> Iterator[Running]:
    """A system with an object whose exemplar has arrived."""
    system = System(Stack.create(tmp_path, Ports.free(), built), SOON)
    others = [program for program in system.stack.servers if program.name != TRACE_STORE]
    with ExitStack() as trace_store, system.running(*others):
        trace_store.enter_context(system.running(program(system.stack)))
        with system.running(system.role("api"), system.role("consumer")):
            accepted = system.post("vehicles", vehicles("v")[0]).raise_for_status().json()
            system.stored(accepted["submission_id"])
            uploads = 'bronze_upload_duration_seconds_bucket{job="bronze/consumer"}'
            until("the upload's exemplar", lambda: system.exemplars(uploads))
            yield Running(system, trace_store)


def test_verify_ends_with_what_it_found(running: Running) -> None:
    """Everything is correct; then the traces are lost, which it says and reports; then a server does not answer."""
    done = running.system.verify("--deep", "--json", "-")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    checks = {check["check"]: (check["checked"], check["faulty"]) for check in json.loads(done.stdout)["checks"]}
    assert checks["exemplar"][0] >= 1
    assert {check: found for check, found in checks.items() if check != "exemplar"} == {
        "entry": (1, 0),
        "chain": (0, 0),
        "object": (1, 0),
    }
    shares = 'min by (bronze_verify_check) (bronze_verify_share{job="bronze/verify"})'
    until("the shares", lambda: share(running.system, shares, "exemplar") == 1)

    running.restart_trace_store()
    done = running.system.verify()
    assert (done.returncode, done.stderr) == (1, ""), done.stdout
    assert "exemplar: trace " in done.stdout
    assert "trace not found in zipkin. What to do: see BronzeVerificationFaulty in the runbook" in done.stdout
    until("the share of the lost traces", lambda: share(running.system, shares, "exemplar") == 0)
    assert share(running.system, shares, "object") == 1
    assert running.system.verify("--min-share", "0").returncode == 0

    done = running.system.verify(BRONZE_ZIPKIN_URL=f"http://{LOOPBACK}:{free_ports()}")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("bronze verify: stopped trying: Zipkin does not answer: ")


def share(system: System, query: str, check: str) -> float | None:
    found = system.prometheus("query", query=query)["result"]
    return next((float(one["value"][1]) for one in found if one["metric"]["bronze_verify_check"] == check), None)
