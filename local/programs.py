"""A program: what starts it, which ports are its own, and how to tell that it is ours and works.

The same declarations are run by a supervisor (`make up`, `make demo`) and by tests, as plain child processes:

    with start(nats(state / "nats", port=free_ports(), name="test"), log=state / "nats.log") as queue:
        queue.signal(signal.SIGKILL)
        queue.restart()
"""

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from local.machine import Deadline, limit_s

LOOPBACK = "127.0.0.1"
PORT_VARIABLE = "BRONZE_LOCAL_PORT_"
READY_S_MAX = 60.0
PROBE_TIMEOUT_S = 5.0

# Below the range from which the system takes the ports of outgoing connections: while a killed server is away,
# nobody is given its port by chance.
_PORTS = range(12_000, 32_000)


class LocalError(Exception):
    """What a person has to read: says what is wrong and what to do."""


class NotReady(LocalError):
    """Not answering, not working yet, or not ours; the message says which."""


@dataclass(frozen=True)
class Program:
    """`ready` raises `NotReady` until the program does its work, and for ever if another program answers."""

    name: str
    command: tuple[str, ...]
    ports: Mapping[str, int]
    ready: Callable[[], object]
    env: Mapping[str, str] = field(default_factory=dict)
    #: How long it may take to leave after SIGTERM before it is killed, in seconds.
    stop_s_max: float = 10.0
    #: Programs of a later stage stop before those of an earlier one.
    stage: int = 0
    #: The variable that moves its ports, named when one is taken.
    port_variable: str | None = None


def environment(program: Program | None = None) -> dict[str, str]:
    """The environment that a program runs in.

    A shell's own accounts and telemetry settings stay out: the system runs the same on every machine.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "OTEL_", "WEED_"))}
    unproxied = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    return {**kept, **unproxied, **(program.env if program else {})}


def free_ports(count: int = 1) -> int:
    """The first of `count` consecutive ports of the loopback address that nobody listens on.

    Ask once for all that you need: two calls may give the same ports as long as nobody listens on them.
    """
    choice = random.SystemRandom()
    for _ in range(1000):
        first = choice.randrange(_PORTS.start, _PORTS.stop - count)
        if all(is_free(port) for port in range(first, first + count)):
            return first
    raise LocalError(f"no {count} consecutive free ports between {_PORTS.start} and {_PORTS.stop}")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: what lingers is free
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def check_ports(program: Program) -> None:
    """Raises `LocalError` that names the taken port, who wants it, and the variable that changes it."""
    for use, port in program.ports.items():
        if not is_free(port):
            remedy = f"; set {program.port_variable} to another" if program.port_variable else ""
            raise LocalError(f"port {port} is taken, and {program.name} wants it ({use}){remedy}")


def http_get(port: int, path: str, *, method: str = "GET", body: bytes | None = None, **headers: str) -> bytes:
    """The body of a 2xx answer from the loopback address, past any proxy. Raises `NotReady` otherwise."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        content = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise NotReady(f"{method} {path} on port {port}: {error}") from error
    finally:
        connection.close()
    if not 200 <= answer.status < 300:
        raise NotReady(f"{method} {path} on port {port}: {answer.status} {content[:300].decode(errors='replace')}")
    return content


def get_json(port: int, path: str) -> Any:
    """As `http_get`; an answer that is no JSON is not ours."""
    try:
        return json.loads(http_get(port, path))
    except ValueError as error:
        raise NotReady(f"GET {path} on port {port}: no JSON: {error}") from error


def log_tail(log: Path, lines: int = 15) -> str:
    try:
        kept = log.read_text(errors="replace").splitlines()[-lines:]
    except OSError:
        kept = []
    return "\n".join([f"{log} ends with:", *(f"    {line}" for line in kept)]) if kept else f"{log} is empty"


def wait_ready(program: Program, log: Path, alive: Callable[[], bool], timeout_s: float = READY_S_MAX) -> None:
    """Returns when the program is ours and works.

    Raises `LocalError` with the reason and the end of its log when it dies or is not ready in time: in `timeout_s` as
    `Deadline` has them.
    """
    deadline = Deadline(timeout_s)
    while True:
        try:
            program.ready()
        except NotReady as reason:
            if not alive():
                raise LocalError(f"{program.name} ended while it started\n{log_tail(log)}") from reason
            if deadline.passed():
                raise LocalError(
                    f"{program.name} was not ready after {timeout_s:g} s: {reason}\n{log_tail(log)}"
                ) from reason
            time.sleep(0.05)
        else:
            return


class Process:
    """A program that runs as a child of ours, in a process group of its own; leaving the context stops it."""

    def __init__(self, program: Program, log: Path) -> None:
        self.program = program
        self.log = log
        self._child = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        check_ports(self.program)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.program.command,
                env=environment(self.program),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    def alive(self) -> bool:
        return self._child.poll() is None

    def wait_ready(self, timeout_s: float = READY_S_MAX) -> None:
        """As the function of that name."""
        wait_ready(self.program, self.log, self.alive, timeout_s)

    def signal(self, number: signal.Signals) -> None:
        """Sends it; after SIGKILL, returns when the process is gone, after SIGSTOP when it stands still."""
        self._child.send_signal(number)
        if number is signal.SIGSTOP:
            os.waitid(os.P_PID, self._child.pid, os.WSTOPPED | os.WNOWAIT)
        if number is signal.SIGKILL:
            self._child.wait()

    def wait(self, timeout_s: float) -> int:
        """The exit code (negative: the signal that ended it). Raises `subprocess.TimeoutExpired` after `timeout_s`, or
        later on a slow machine.
        """
        return self._child.wait(limit_s(timeout_s))

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that takes too long; returns when the process is gone."""
        if self.alive():
            self._child.terminate()
            try:
                self._child.wait(self.program.stop_s_max)
            except subprocess.TimeoutExpired:
                self.signal(signal.SIGKILL)

    def restart(self, timeout_s: float = READY_S_MAX) -> None:
        """Starts it again, on the same ports and state, after its end or instead of it; returns when it is ready."""
        self.stop()
        self._child = self._spawn()
        self.wait_ready(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def start(program: Program, log: Path, timeout_s: float = READY_S_MAX) -> Process:
    """A running program that is ready. Raises `LocalError`, and leaves nothing running then."""
    process = Process(program, log)
    try:
        process.wait_ready(timeout_s)
    except BaseException:
        process.signal(signal.SIGKILL)
        raise
    return process
