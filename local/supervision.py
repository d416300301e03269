"""A supervisor (supervisord, from its package) that runs a stack's programs in the background.

It starts programs on request, restarts those that end, keeps the logs, and stops the roles before the servers. Requests
go over a socket in the state directory.
"""

import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from supervisor.xmlrpc import SupervisorTransport  # type: ignore[import-untyped]

from local.machine import Deadline
from local.programs import UMASK, LocalError, NotReady, Program, environment, log_tail, wait_ready
from local.settings import SERVICE

#: The path of a socket may have at most 107 bytes, and the supervisor appends to it.
SOCKET_PATH_BYTES_MAX = 90
ANSWER_S_MAX = 10.0
STOP_S_MAX = 90.0
#: A program that ends is started again; after so many starts in one wait for it, it is given up.
STARTS_MAX = 3
#: The roles connect to their servers, and compare their settings with what is recorded there, within this time.
STEADY_S = 5.0


@dataclass(frozen=True)
class State:
    """A program's state, as the supervisor reports it."""

    name: str
    state: str
    description: str
    pid: int
    #: Seconds since its last start.
    age_s: float

    @property
    def runs(self) -> bool:
        return self.state in {"STARTING", "RUNNING"}


@dataclass(frozen=True)
class Differences:
    """The names of the programs that are new in the configuration, that have other settings in it, and that are no
    longer in it.
    """

    added: frozenset[str]
    changed: frozenset[str]
    removed: frozenset[str]


class Supervisor:
    """The supervisor of one state directory, running or not."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._socket = _socket_path(root)
        self._pidfile = root / "supervisord.pid"

    def log(self, name: str) -> Path:
        return self.root / "logs" / f"{name}.log"

    def runs(self) -> bool:
        try:
            self._call("getState")
        except LocalError:
            return False
        return True

    def launch(self, programs: Iterable[Program], *, restarts: bool) -> None:
        """Starts the supervisor, but none of the programs. With `restarts`, it restarts programs that end."""
        (self.root / "logs").mkdir(parents=True, exist_ok=True)
        config = self._configure(programs, restarts=restarts)
        outcome = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisord", "-c", str(config)],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        deadline = Deadline(ANSWER_S_MAX)
        while not self.runs():
            if outcome.returncode != 0 or deadline.passed():
                raise LocalError(f"the supervisor did not start: {outcome.stdout}\n{log_tail(self.log('supervisord'))}")
            time.sleep(0.05)

    def _configure(self, programs: Iterable[Program], *, restarts: bool) -> Path:
        config = self.root / "supervisord.conf"
        config.touch(mode=0o600)  # it contains the account's credentials
        config.write_text(configuration(self.root, self._socket, programs, restarts=restarts))
        return config

    def start(self, program: Program) -> None:
        """Starts a program without waiting. A running program is not restarted."""
        if not self.state(program.name).runs:
            with suppress(xmlrpc.client.Fault):  # its state and its log show the failure
                self._call("startProcess", program.name, False)

    def reread(self, programs: Iterable[Program], *, restarts: bool) -> Differences:
        """Gives the supervisor a new configuration. Programs keep running as they are until `remove` and `add`."""
        self._configure(programs, restarts=restarts)
        (differences,) = self._call("reloadConfig")
        return Differences(*map(frozenset, differences))

    def add(self, name: str) -> None:
        """Adds a program of the configuration that was read last; `start` starts it."""
        self._call("addProcessGroup", name)

    def remove(self, name: str) -> None:
        """Stops a program and removes it from the supervisor."""
        self._call("stopProcessGroup", name)
        self._call("removeProcessGroup", name)

    def reload(self, name: str) -> None:
        """Sends SIGHUP to a program that runs."""
        with suppress(xmlrpc.client.Fault):  # it does not run; it reads its files when it starts
            self._call("signalProcess", name, "HUP")

    def states(self) -> list[State]:
        return [
            State(s["name"], s["statename"], s["description"], s["pid"], s["now"] - s["start"])
            for s in self._call("getAllProcessInfo")
        ]

    def state(self, name: str) -> State:
        return next(state for state in self.states() if state.name == name)

    def wait_ready(self, program: Program) -> None:
        """Returns when a program works. Raises `LocalError` with the end of its log if it does not, or if it ends again
        and again.
        """
        pids: set[int] = set()

        def alive() -> bool:
            state = self.state(program.name)
            pids.update({state.pid} - {0})
            return state.state in {"STARTING", "RUNNING", "BACKOFF"} and len(pids) <= STARTS_MAX

        wait_ready(program, self.log(program.name), alive)

    def wait_steady(self, programs: Iterable[Program]) -> None:
        """Returns when all programs work, and none of them was started within the last `STEADY_S`.

        A program may work for a moment and end again, for example because of a setting. Raises as `wait_ready`.
        """
        for program in programs:
            ready, name = program.ready, program.name

            def steady(ready: Callable[[], object] = ready, name: str = name) -> None:
                ready()
                if (age_s := self.state(name).age_s) < STEADY_S:
                    raise NotReady(f"it was started {age_s:.0f} s ago")

            self.wait_ready(replace(program, ready=steady))

    def shutdown(self) -> None:
        """Stops every program, then the supervisor. Returns when all processes have ended."""
        with suppress(xmlrpc.client.Fault):  # another command stops it already
            self._call("shutdown")
        deadline = Deadline(STOP_S_MAX)
        while self._pidfile.exists():  # the supervisor removes it last
            if deadline.passed():
                raise LocalError(
                    f"the supervisor did not stop within {STOP_S_MAX:g} s\n{log_tail(self.log('supervisord'))}"
                )
            time.sleep(0.05)

    def _call(self, method: str, *arguments: object) -> Any:
        transport = SupervisorTransport(serverurl=f"unix://{self._socket}")
        with xmlrpc.client.ServerProxy("http://supervisor", transport=transport) as proxy:  # the address is not used
            try:
                return getattr(proxy.supervisor, method)(*arguments)
            except OSError as error:
                raise LocalError(f"the supervisor does not answer ({error}): was the system stopped?") from error


def configuration(root: Path, socket: Path, programs: Iterable[Program], *, restarts: bool) -> str:
    """The text of the supervisor's configuration file."""
    sections: dict[str, Mapping[str, object]] = {
        "unix_http_server": {"file": socket, "chmod": "0700"},
        "rpcinterface:supervisor": {
            "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
        },
        "supervisorctl": {"serverurl": f"unix://{socket}"},  # for people
        "supervisord": {
            "logfile": root / "logs" / "supervisord.log",
            "pidfile": root / "supervisord.pid",
            "childlogdir": root / "logs",
            "directory": root,
            "umask": f"{UMASK:03o}",
        },
    }
    for program in programs:
        sections[f"program:{program.name}"] = {
            "command": shlex.join(program.command),
            "environment": ",".join(f"{name}={_quoted(name, value)}" for name, value in program.env.items()),
            "priority": program.stage,
            "autostart": "false",
            "autorestart": "true" if restarts else "false",
            "startretries": 3 if restarts else 0,
            "stopwaitsecs": int(program.stop_s_max) or 1,
            "stdout_logfile": str(root / "logs" / f"{program.name}.log").replace("%", "%%"),  # it is expanded twice
            "stdout_logfile_maxbytes": "10MB",
            "stdout_logfile_backups": 2,
            "redirect_stderr": "true",
        }
    return "".join(
        f"[{name}]\n" + "".join(f"{key}={str(value).replace('%', '%%')}\n" for key, value in values.items()) + "\n"
        for name, values in sections.items()
    )


def _environment() -> dict[str, str]:
    """The environment of the supervisor, without settings. Its programs inherit it as long as it runs; settings are in
    the configuration, where a change of them is seen.
    """
    return {name: value for name, value in environment().items() if name not in SERVICE}


def _quoted(name: str, value: str) -> str:
    """A value of `environment`, in quotes of the kind that it does not contain."""
    for quote in "\"'":
        if quote not in value:
            return f"{quote}{value}{quote}"
    raise LocalError(f"{name} has both kinds of quotes, which the supervisor cannot read: use only one kind")


def _socket_path(root: Path) -> Path:
    path = root / "supervisor.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
        return path
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"bronze-{digest}.sock"
