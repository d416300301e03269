"""A program: its command, its ports, and a check that it works and is not another program on the same port.

A supervisor (`make up`, `make demo`) runs these declarations; tests run them as plain child processes:

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
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from local.machine import Deadline, limit_s

LOOPBACK = "127.0.0.1"
PORT_VARIABLE = "BRONZE_LOCAL_PORT_"
READY_S_MAX = 60.0
PROBE_TIMEOUT_S = 5.0

#: Of the user's environment, a program gets these variables, and those that begin with one of `_PREFIXES`. Servers take
#: many others for options of their own: SeaweedFS even DEBUG and FILER, Grafana GF_*, Zipkin STORAGE_TYPE.
_INHERITED = frozenset({"HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER"})
_PREFIXES = ("BRONZE_", "LC_", "SSL_CERT_")
#: For requests beyond this machine.
_PROXIES = frozenset({"http_proxy", "https_proxy"})
UMASK = 0o077

# Below the range of ports for outgoing connections, so that no connection takes the port of a killed server by chance.
# In blocks, each of one process at a time: a server may bind its port long after it was chosen.
_BLOCK = 1000
_BLOCKS = tuple(range(first, first + _BLOCK) for first in range(12_000, 32_000, _BLOCK))


class LocalError(Exception):
    """An error for the user: its message says what is wrong and what to do."""


class NotReady(LocalError):
    """The program does not answer, does not work yet, or is another one; the message says which."""


@dataclass(frozen=True)
class Program:
    """`ready` raises `NotReady` until the program works, and always if another program answers on its port."""

    name: str
    command: tuple[str, ...]
    ports: Mapping[str, int]
    ready: Callable[[], object]
    env: Mapping[str, str] = field(default_factory=dict)
    #: Seconds from SIGTERM to SIGKILL.
    stop_s_max: float = 10.0
    #: Programs of a later stage stop before those of an earlier one.
    stage: int = 0
    #: The variable that changes its ports; the error for a port in use names it.
    port_variable: str | None = None


def environment(program: Program | None = None) -> dict[str, str]:
    """The environment of a program.

    It has little of the user's shell: no accounts, no settings of telemetry, and nothing that a server could take for
    its options, so that the system runs the same on every machine.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name in _INHERITED or name.startswith(_PREFIXES) or name.lower() in _PROXIES
    }
    unproxied = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    return {**inherited, **unproxied, **(program.env if program else {})}


class _Block:
    """Ports that no other process gets from `free_ports` while this one lives."""

    def __init__(self) -> None:
        # An abstract name ends with its process and belongs to the same network namespace as the ports.
        claim = socket.socket(socket.AF_UNIX)
        for ports in random.SystemRandom().sample(_BLOCKS, len(_BLOCKS)):
            try:
                claim.bind(f"\0bronze-ports-{ports.start}")
            except OSError:
                continue
            self._ports, self._next = ports, ports.start
            claim.detach()
            return
        raise LocalError(f"{len(_BLOCKS)} other processes use free ports: stop some of them")

    def free(self, count: int) -> int:
        for _ in self._ports:
            first = self._next if self._next + count <= self._ports.stop else self._ports.start
            if all(is_free(port) for port in range(first, first + count)):
                self._next = first + count
                return first
            self._next = first + 1
        raise LocalError(f"no {count} consecutive free ports between {self._ports.start} and {self._ports.stop}")


@cache
def _own_block() -> _Block:
    return _Block()


os.register_at_fork(after_in_child=_own_block.cache_clear)


def free_ports(count: int = 1) -> int:
    """The first of `count` consecutive ports of the loopback address without a listener.

    No other process gets them from here while this one lives, and this one gets them again only after many others.
    """
    return _own_block().free(count)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port in TIME_WAIT is free
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def check_ports(program: Program) -> None:
    """Raises `LocalError` if ports are in use; it names the program and the variable that changes its ports."""
    if in_use := [f"{port} ({use})" for use, port in program.ports.items() if not is_free(port)]:
        remedy = f": set {program.port_variable} to another" if program.port_variable else ""
        several = len(in_use) > 1
        ports, them = (f"ports {', '.join(in_use)} are", "them") if several else (f"port {in_use[0]} is", "it")
        raise LocalError(f"{ports} in use by another program, but {program.name} needs {them}{remedy}")


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
    """As `http_get`, with the body parsed. Raises `NotReady` if it is not JSON: then another program answered."""
    try:
        return json.loads(http_get(port, path))
    except ValueError as error:
        raise NotReady(f"GET {path} on port {port}: the answer is not JSON: {error}") from error


def log_tail(log: Path, lines: int = 15) -> str:
    try:
        tail = log.read_text(errors="replace").splitlines()[-lines:]
    except OSError:
        tail = []
    return "\n".join([f"{log} ends with:", *(f"    {line}" for line in tail)]) if tail else f"{log} is empty"


def wait_ready(program: Program, log: Path, alive: Callable[[], bool], timeout_s: float = READY_S_MAX) -> None:
    """Returns when the program is ready.

    Raises `LocalError` with the reason and the end of its log if it ends, or is not ready within `timeout_s`, which
    `Deadline` adapts to the load.
    """
    deadline = Deadline(timeout_s)
    while True:
        try:
            program.ready()
        except NotReady as reason:
            if not alive():
                raise LocalError(f"{program.name} ended during its start\n{log_tail(log)}") from reason
            if deadline.passed():
                raise LocalError(
                    f"{program.name} was not ready after {timeout_s:g} s: {reason}\n{log_tail(log)}"
                ) from reason
            time.sleep(0.05)
        else:
            return


class Process:
    """A program as a child process in its own process group. Leaving the context stops it."""

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
                umask=UMASK,
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    def alive(self) -> bool:
        return self._child.poll() is None

    def wait_ready(self, timeout_s: float = READY_S_MAX) -> None:
        """As the function `wait_ready`."""
        wait_ready(self.program, self.log, self.alive, timeout_s)

    def signal(self, number: signal.Signals) -> None:
        """Sends the signal. After SIGKILL it returns when the process has ended, after SIGSTOP when it has stopped."""
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
        """Sends SIGTERM, and SIGKILL after `stop_s_max`. Returns when the process has ended."""
        if self.alive():
            self._child.terminate()
            try:
                self._child.wait(self.program.stop_s_max)
            except subprocess.TimeoutExpired:
                self.signal(signal.SIGKILL)

    def restart(self, timeout_s: float = READY_S_MAX) -> None:
        """Starts the program again with the same ports and state, after stopping it. Returns when it is ready."""
        self.stop()
        self._child = self._spawn()
        self.wait_ready(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def start(program: Program, log: Path, timeout_s: float = READY_S_MAX) -> Process:
    """Starts a program and returns when it is ready; else stops it and raises `LocalError`."""
    process = Process(program, log)
    try:
        process.wait_ready(timeout_s)
    except BaseException:
        process.signal(signal.SIGKILL)
        raise
    return process
