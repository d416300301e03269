"""The order in which `make up` starts programs, with a real supervisor and programs that do nothing."""

import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import pytest

from local import __main__ as commands
from local import builds, checks
from local.builds import Build, Building, Built
from local.programs import LocalError, Program
from local.stack import Ports, Stack
from local.supervision import Supervisor

BUILT = Built(Path("/x/otelcol"), Path("/x/prometheus"), Path("/x/zipkin.jar"))

OWN_SOURCE = """\
[orders]
version = 1
description = "An order."
fields = []
"""


class Idle(Stack):
    """A stack of programs that do nothing. The names of those that became ready are in `READY`."""

    READY: list[str]

    def _idle(self, name: str) -> Program:
        command = (sys.executable, "-c", "import time; time.sleep(60)")
        return Program(name, command, {"http": self.ports.api}, lambda: self.READY.append(name))

    @cached_property
    def stores(self) -> tuple[Program, ...]:
        return self._idle("nats"), self._idle("seaweedfs")

    @cached_property
    def servers(self) -> tuple[Program, ...]:
        return *self.stores, self._idle("prometheus"), self._idle("otel-collector")

    @cached_property
    def roles(self) -> tuple[Program, ...]:
        return self._idle("api"), self._idle("consumer")

    @cached_property
    def senders(self) -> tuple[Program, ...]:
        return (self._idle("canary"),)


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checks, "check_choice", lambda *_: Idle.READY.append("checked"))
    monkeypatch.setattr(builds, "planned", lambda: BUILT)
    Idle.READY = []
    return Idle.create(tmp_path / "up", Ports.free(), BUILT)


@pytest.fixture
def supervisor(stack: Stack) -> Iterator[Supervisor]:
    supervisor = Supervisor(stack.root)
    yield supervisor
    if supervisor.runs():
        supervisor.shutdown()


def building(monkeypatch: pytest.MonkeyPatch, make: Callable[[Path, Path], None]) -> Building:
    monkeypatch.setattr(builds, "_servers", lambda: (Build("Prometheus", "prometheus-1", make),))
    return Building(commands.say)


def test_records_are_accepted_while_programs_are_being_built(
    stack: Stack, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Queue, bucket and roles start before the build ends, which waits for them here; and it is said."""

    def make(_result: Path, _log: Path) -> None:
        while Idle.READY[-1:] != ["consumer"]:
            builds._stopping(0.02)

    with building(monkeypatch, make) as running:
        commands.launch(supervisor, stack, running, restarts=False)
    assert Idle.READY == ["nats", "seaweedfs", "api", "consumer", "checked", "prometheus", "otel-collector"]
    said = capsys.readouterr().out
    assert f"the API accepts records at http://127.0.0.1:{stack.ports.api}, and they are stored" in said
    assert "being built for metrics and traces, once per version: Prometheus (done: 0 of 1)" in said


def test_what_is_built_is_checked_before_anything_starts(
    stack: Stack, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then telemetry's servers start before the roles."""
    (builds._cache() / "prometheus-1").mkdir(parents=True)
    with building(monkeypatch, lambda *_: None) as running:
        commands.launch(supervisor, stack, running, restarts=False)
    assert Idle.READY == ["checked", "nats", "seaweedfs", "prometheus", "otel-collector", "api", "consumer"]


def test_a_failed_build_stops_what_was_started(
    stack: Stack, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(_result: Path, _log: Path) -> None:
        while Idle.READY[-1:] != ["consumer"]:
            builds._stopping(0.02)
        raise LocalError("no module")

    with pytest.raises(LocalError, match="no module"), building(monkeypatch, make) as running:
        commands.launch(supervisor, stack, running, restarts=False)
    assert not supervisor.runs()
    assert "stopping what was started; the state is kept" in capsys.readouterr().out


def test_own_sources_get_no_sample(
    stack: Stack,
    supervisor: Supervisor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nor a simulated fleet, and it is said; the system is up, and shuts down as any other."""
    own = tmp_path / "own.toml"
    own.write_text(OWN_SOURCE)
    monkeypatch.setenv("BRONZE_SOURCES", str(own))
    monkeypatch.setattr(commands, "UP", stack.root)
    monkeypatch.setattr(commands, "Stack", Idle)
    monkeypatch.setattr(commands, "planned", lambda: BUILT)
    monkeypatch.setattr(builds, "_servers", lambda: (Build("Prometheus", "prometheus-1", lambda *_: None),))
    assert commands.up() == 0
    assert Idle.READY[-1] == "canary"
    assert f"no sample and no simulated fleet: {own} does not declare failures, results" in capsys.readouterr().out
    running = Idle.load(stack.root)
    assert running
    assert not running.fleet


def test_the_demo_needs_the_sources_of_its_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own.toml"
    own.write_text(OWN_SOURCE)
    monkeypatch.setenv("BRONZE_SOURCES", str(own))
    with pytest.raises(LocalError, match="does not declare failures, results, status, vehicles: unset BRONZE_SOURCES"):
        commands.demo()
