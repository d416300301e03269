"""What is left of a test run that was interrupted: nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from local.builds import REPOSITORY
from tests.runner.busy import READY, WORKER
from tests.system.blackbox import until

BUSY = "tests/runner/busy.py"
ONE, TWO = f"{BUSY}::test_some", f"{BUSY}::test_some_more"
#: In the environment of everything that a run starts, as far as that is handed on.
MARK = "BRONZE_TEST_MARK"


@dataclass(frozen=True)
class Run:
    """A test run in a session of its own, as from a terminal, whose tests have started all that they start."""

    process: psutil.Process
    mark: str
    #: What ran when all was started: the run itself, and all below it.
    known: frozenset[psutil.Process]
    #: The process of each test that waits, by the name of its worker ("" without workers).
    waiting: dict[str, psutil.Process]

    def left(self) -> set[psutil.Process]:
        return {process for process in self.known | with_variable(MARK, self.mark) if alive(process)}


@contextmanager
def started(command: Sequence[str], folder: Path, tests: int) -> Iterator[Run]:
    """Leaving the context kills what is left of it."""
    mark = uuid4().hex
    log = folder / "log"
    # this test may itself run in a worker, whose name is no worker's of the run
    inherited = {name: value for name, value in os.environ.items() if name != "PYTEST_XDIST_WORKER"}
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**inherited, MARK: mark, READY: str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):

        def waiting() -> dict[str, psutil.Process] | None:
            assert process.poll() is None, log.read_text()
            pids = {file.read_text(): int(file.name) for file in folder.iterdir() if file.name.isdecimal()}
            return {worker: psutil.Process(pid) for worker, pid in pids.items()} if len(pids) == tests else None

        found = until("every test has started what it starts", waiting, timeout_s=120)
        processes = with_variable(MARK, mark)
        processes |= {child for running in processes for child in below(running)}
        sys.stdout.write(f"{len(processes)} processes: {names(processes)}\n")
        assert sum(name_of(running) == "nats-server" for running in processes) >= 2 * tests
        run = Run(psutil.Process(process.pid), mark, frozenset(processes), found)
        try:
            yield run
        finally:
            for remaining in run.left():
                with suppress(psutil.NoSuchProcess):
                    remaining.kill()


def with_variable(name: str, value: str) -> set[psutil.Process]:
    """The processes that have it in their environment."""

    def has(process: psutil.Process) -> bool:
        try:
            return process.environ().get(name) == value
        except psutil.Error:  # it has ended
            return False

    return {process for process in psutil.process_iter() if has(process)}


def below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def name_of(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return "one that has ended"


def names(processes: set[psutil.Process]) -> str:
    return ", ".join(sorted(map(name_of, processes)))


def check_ends(what: str, left: Callable[[], set[psutil.Process]]) -> None:
    try:
        until(f"the end of {what}", lambda: not left(), timeout_s=20)
    except AssertionError as late:
        late.add_note(f"{len(left())} are left: {names(left())}")
        raise


# --- commands and interruptions


def run_pytest(*arguments: str) -> Sequence[str]:
    return (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments)


def run_make(*arguments: str) -> Sequence[str]:
    """Our Makefile with the Python that runs us, which has the packages."""
    return ("make", f"BIN={Path(sys.executable).parent}", "READY=", "unit", f"T={' '.join(arguments)}")


def press_ctrl_c(run: psutil.Process) -> None:
    """As a terminal does: every process of the foreground's group gets it."""
    os.killpg(run.pid, signal.SIGINT)


@pytest.mark.parametrize(
    ("command", "tests", "interrupt"),
    [
        pytest.param(
            run_pytest(f"{BUSY}::test_everything"), 1, psutil.Process.kill, id="kill -9, every sort of server"
        ),
        pytest.param(run_make(ONE), 1, psutil.Process.terminate, id="SIGTERM to make"),
        pytest.param(run_make("-n2", ONE, TWO), 2, press_ctrl_c, id="Ctrl-C with workers"),
        pytest.param(run_pytest("-n2", ONE, TWO), 2, psutil.Process.kill, id="kill -9 of the controller"),
    ],
)
def test_an_interrupted_run_leaves_no_process_behind(
    command: Sequence[str], tests: int, interrupt: Callable[[psutil.Process], None], tmp_path: Path
) -> None:
    """However a run is interrupted, each process that it started ends: also daemons, and children of children."""
    with started(command, tmp_path, tests) as run:
        interrupt(run.process)
        check_ends("all that it started", run.left)


def test_a_killed_worker_leaves_no_process_behind(tmp_path: Path) -> None:
    """What a worker started ends with it, also a daemon, while the other worker's test goes on."""
    with started(run_pytest("-n2", "--max-worker-restart=0", ONE, TWO), tmp_path, 2) as run:
        (killed, worker), (other, _) = run.waiting.items()
        ours = with_variable(MARK, run.mark)
        started_by_worker = with_variable(WORKER, killed) & ours
        worker.kill()
        check_ends("what the worker started", lambda: set(filter(alive, started_by_worker)))
        assert "nats-server" in map(name_of, with_variable(WORKER, other) & ours)
