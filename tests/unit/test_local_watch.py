"""What is started in the context of `leave_nothing` is gone after it; `tests/runner` has the runs that are killed."""

import os
import subprocess
import sys

import psutil

from local.watch import VARIABLE, leave_nothing
from tests.system.blackbox import until

DAEMON = """
import os, time
if not os.fork():
    os.setsid()
    print(os.getpid(), flush=True)
    os.closerange(0, 3)
    time.sleep(60)
"""


def start_daemon() -> psutil.Process:
    """A process that has left its parent and its session."""
    started = subprocess.run([sys.executable, "-c", DAEMON], capture_output=True, text=True, check=True, timeout=60)
    return psutil.Process(int(started.stdout))


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_what_is_started_in_the_context_is_gone_after_it_and_nothing_else() -> None:
    """Contexts nest: the end of an inner one leaves what the outer one started."""
    before = os.environ.get(VARIABLE)
    with leave_nothing():
        outer = start_daemon()
        with leave_nothing():
            inner = start_daemon()
        assert ended(inner)
        assert not ended(outer)
    assert ended(outer)
    assert os.environ.get(VARIABLE) == before


def test_the_end_of_an_outer_context_is_the_end_of_what_an_inner_one_started() -> None:
    """As when the controller of a test run is killed, while its workers have contexts of their own."""
    code = f"from local.watch import leave_nothing\nwith leave_nothing():\n    exec({DAEMON!r})\n    time.sleep(60)"
    with leave_nothing():
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert child.stdout
        daemon = psutil.Process(int(child.stdout.readline()))
    assert ended(daemon)
    assert child.wait(60) == -9
    child.stdout.close()


def test_a_fork_that_holds_the_pipe_delays_nothing() -> None:
    """The watcher knows by the process itself that it was killed."""
    code = f"""
import os, subprocess, sys, time
from local.watch import leave_nothing
with leave_nothing():
    print(subprocess.check_output([sys.executable, "-c", {DAEMON!r}], text=True), end="", flush=True)
    if not os.fork():
        os.closerange(0, 3)
    time.sleep(60)
"""
    with leave_nothing(), subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        daemon = psutil.Process(int(child.stdout.readline()))
        (fork,) = until("the fork", lambda: [one for one in psutil.Process(child.pid).children() if forked(one)])
        child.kill()
        until("the end of the daemon", lambda: ended(daemon))
        assert not ended(fork)


def forked(process: psutil.Process) -> bool:
    """A copy of the program above, and not a watcher."""
    return "-I" not in process.cmdline()
