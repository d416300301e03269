"""Ends what a process started once that process is gone, however it went: also after kill -9, which no handler sees.

    with leave_nothing():
        ...  # what is started here, and what that starts in turn, is gone afterwards

A second process, the watcher, holds the end of a pipe whose other end the first one has: the kernel closes it when the
first one is gone. (Where a fork holds it too, the first one's own end still tells.) What was started is found by a
variable in its environment, which children of children inherit, whatever sessions and process groups they make, and
also a daemon that left its parent. Other ways miss some of these: a signal at the parent's death is not inherited, a
process group ends at the first `setsid`, and a cgroup needs rights.

The watcher needs nothing but Python: it is started as a script.
"""

import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Its value says who started a process: the names of the watched processes above it, the outermost first.
VARIABLE = "BRONZE_LOCAL_STARTED_BY"
SEPARATOR = "."


@contextmanager
def leave_nothing() -> Iterator[None]:
    """Whatever this process starts meanwhile is killed at the end of the context, or when this process is gone.

    Contexts nest, across processes too: the end of an outer one is the end of what an inner one started.
    """
    outer = os.environ.get(VARIABLE)
    unmarked = {name: value for name, value in os.environ.items() if name != VARIABLE}
    name = secrets.token_hex(8)
    started_by = f"{outer}{SEPARATOR}{name}" if outer else name
    with subprocess.Popen(
        [sys.executable, "-I", __file__, started_by, str(os.getpid())],
        env=unmarked,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,  # who reads our output does not wait for the watcher
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in a terminal is for us alone
    ):  # leaving it closes the pipe, and waits until the watcher has done its work
        os.environ[VARIABLE] = started_by
        try:
            yield
        finally:
            if outer:
                os.environ[VARIABLE] = outer
            else:
                del os.environ[VARIABLE]


def started(started_by: str) -> set[int]:
    """The pids of the processes with this mark or one that begins with it, and of all their children."""
    mark = f"\0{VARIABLE}={started_by}".encode()
    found, parents = set(), {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            environment = b"\0" + (process / "environ").read_bytes()
            if mark + b"\0" in environment or mark + SEPARATOR.encode() in environment:
                found.add(int(process.name))
            state_and_parent = (process / "stat").read_text().rpartition(")")[2].split()
            parents[int(process.name)] = int(state_and_parent[1])
    # some programs hide their environment from their children, but all have a parent
    while children := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= children
    return found - {os.getpid()}


def wait_for_end(process: int) -> None:
    """Returns when the process has ended, or has closed its end of the pipe."""
    poll = select.poll()
    poll.register(sys.stdin, select.POLLHUP)
    with suppress(OSError):  # it has ended already, or this kernel cannot
        poll.register(os.pidfd_open(process), select.POLLIN)
    poll.poll()


def main() -> None:
    wait_for_end(int(sys.argv[2]))
    while victims := started(sys.argv[1]):  # again and again: some start others meanwhile
        for pid in victims:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


if __name__ == "__main__":
    main()
