"""A test run that `test_interrupted.py` interrupts: starts servers, says so in a file, and waits for its end.

Not collected by itself, since its name does not begin with `test_`.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from playwright.sync_api import sync_playwright

from local import programs, servers
from local.browser import chromium
from local.builds import build_all
from local.stack import Ports, Stack
from local.supervision import Supervisor
from tests.system.blackbox import SOON, System, until

#: The folder in which each run says that everything runs: a file by the process's id.
READY = "BRONZE_TEST_READY"
#: The name of a worker of pytest-xdist, in the environment of all that it starts. Programs inherit `BRONZE_*` only.
WORKER = "BRONZE_TEST_WORKER"
if READY in os.environ:
    os.environ[WORKER] = os.environ.get("PYTEST_XDIST_WORKER", "")


def say_and_wait() -> None:
    (Path(os.environ[READY]) / str(os.getpid())).write_text(os.environ.get(WORKER, ""))
    threading.Event().wait()


@contextmanager
def supervised(root: Path) -> Iterator[None]:
    """A queue that a supervisor runs, in the background, and starts again when it dies."""
    program = servers.nats(root / "nats", programs.free_ports(), "supervised")
    supervisor = Supervisor(root)
    supervisor.launch([program], restarts=True)
    try:
        supervisor.start(program)
        supervisor.wait_ready(program)
        yield
    finally:
        supervisor.shutdown()


@contextmanager
def browser() -> Iterator[None]:
    chromium_program = chromium()
    with sync_playwright() as playwright:
        shown = playwright.chromium.launch(
            executable_path=chromium_program.executable, env={**os.environ, **chromium_program.env}
        )
        shown.new_page().goto("data:text/html,hello")
        yield
        shown.close()


@contextmanager
def reading(system: System, api: programs.Process, body: Path) -> Iterator[None]:
    """The API reads a columnar body, in a process of its own that stands still, without our environment."""
    pq.write_table(pa.table({"vehicle_id": [f"{number}" for number in range(1_000_000)]}), body)
    headers = {"Content_Type": "application/vnd.apache.parquet"}
    sender = threading.Thread(target=system.post, args=("vehicles", body.read_bytes()), kwargs=headers, daemon=True)
    sender.start()
    (reader,) = until("a reader", lambda: psutil.Process(api.pid).children())
    reader.suspend()
    yield
    reader.send_signal(signal.SIGCONT)
    sender.join()


def test_everything(tmp_path: Path) -> None:
    """Every sort of server and program that tests start."""
    stack = Stack.create(tmp_path / "stack", Ports.free(), build_all())
    system = System(stack, SOON)
    with ExitStack() as running:
        running.enter_context(supervised(tmp_path / "supervised"))
        running.enter_context(system.running(*stack.servers))
        roles = running.enter_context(system.running(system.role("api"), system.role("consumer")))
        running.enter_context(browser())
        running.enter_context(reading(system, roles["api"], tmp_path / "body.parquet"))
        say_and_wait()


def test_some(tmp_path: Path, nats: programs.Process) -> None:
    """A server that is our child, and one that is a daemon's."""
    with supervised(tmp_path / "supervised"):
        say_and_wait()


def test_some_more(tmp_path: Path, nats: programs.Process) -> None:
    """The same, for a second worker."""
    test_some(tmp_path, nats)
