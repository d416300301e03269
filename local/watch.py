"""Kills the processes that a process started when it ends, even by kill -9, which no handler can catch.

    with leave_nothing():
        ...  # processes started here, and their children, are killed at the end

A second process, the watcher, reads from a pipe whose other end the first process has: the kernel closes it when the
first process ends. (If a fork holds it too, the first process itself is watched as well.) The started processes are
found by a variable in their environment. All descendants inherit it, whatever sessions and process groups they create,
also daemons. Other methods miss some of these: a signal at the parent's death is not inherited, a process group ends
at the first `setsid`, and a cgroup needs privileges.

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

#: Its value has the names of the watched processes above a process, the outermost first.
VARIABLE = "BRONZE_LOCAL_STARTED_BY"
SEPARATOR = "."


@contextmanager
def leave_nothing() -> Iterator[None]:
    """Kills the processes that this process starts in the context, at its end or when this process ends.

    Contexts nest, also across processes: an outer context kills the processes of inner contexts, too.
    """
    outer = os.environ.get(VARIABLE)
    unmarked = {name: value for name, value in os.environ.items() if name != VARIABLE}
    name = secrets.token_hex(8)
    started_by = f"{outer}{SEPARATOR}{name}" if outer else name
    with subprocess.Popen(
        [sys.executable, "-I", __file__, started_by, str(os.getpid())],
        env=unmarked,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,  # a reader of this process' output must not wait for the watcher
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in a terminal must not reach the watcher
    ):  # leaving it closes the pipe and waits for the watcher to end
        os.environ[VARIABLE] = started_by
        try:
            yield
        finally:
            if outer:
                os.environ[VARIABLE] = outer
            else:
                del os.environ[VARIABLE]


def started(started_by: str) -> set[int]:
    """The pids of the processes whose mark is or begins with this one, and of all their descendants."""
    mark = f"\0{VARIABLE}={started_by}".encode()
    found, parents = set(), {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or belongs to another user
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
    while victims := started(sys.argv[1]):  # repeated: some start new processes meanwhile
        for pid in victims:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


if __name__ == "__main__":
    main()
