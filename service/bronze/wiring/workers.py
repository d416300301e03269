"""Several processes of a role: starts them, passes signals on, and replaces one that ends.

Each worker is a program of its own, as if it had been started alone: pyarrow starts a thread as soon as it is imported,
so a copy of this process by fork is not safe, and a worker starts itself again if the file of sources was edited. All
workers of the API accept connections from one socket, which this process keeps: while a worker is replaced, the others
answer.
"""

import asyncio
import logging
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from bronze.api import rates
from bronze.process import on_reload_signal, on_stop_signals
from bronze.settings import Settings
from bronze.telemetry import logs, sdk
from bronze.telemetry.signals import Role
from bronze.wiring.listener import bind, check_exposure

log = logging.getLogger(__name__)

#: Least time between two starts of one worker.
RESTART_S_MIN = 5.0
#: Time within which all workers have to end after a stop signal. Supervisors kill after 10 s.
STOP_S_MAX = 9.0
#: The exit code of a role whose settings cannot work.
MISCONFIGURED = 2


@dataclass(frozen=True)
class Worker:
    """What a worker of the API gets from the process that starts it."""

    #: From 1.
    number: int
    #: The file descriptor of the memory for what the principals have used.
    rates: int


async def supervise(role: Role, settings: Settings) -> int:
    """Run the workers of the API or the consumer until a stop signal. Returns the exit code.

    Raises `Misconfigured` if the address of the API or a port of `/metrics` cannot work.
    """
    identity = sdk.identity(role)
    logs.configure(settings.log_format, settings.log_level, identity)
    environments = [{**os.environ, **sdk.worker_variables(identity, n)} for n in range(1, settings.workers + 1)]
    if role is not Role.API:
        return await _Workers(environments).run()
    check_exposure(settings)
    with bind(settings) as listener:
        return await _Workers(environments, listener.fileno(), [rates.create_memory()]).run()


class _Workers:
    """The workers, one for each environment. They inherit their standard input and other file descriptors."""

    def __init__(
        self, environments: Sequence[Mapping[str, str]], stdin: int = DEVNULL, inherited: Sequence[int] = ()
    ) -> None:
        self._environments = environments
        self._stdin = stdin
        self._inherited = inherited
        self._running: dict[int, Process] = {}
        self._stop = asyncio.Event()

    async def run(self) -> int:
        on_stop_signals(self._end)
        on_reload_signal(lambda: self._pass_on(signal.SIGHUP))
        keeping = [asyncio.create_task(self._keep(n, env)) for n, env in enumerate(self._environments, 1)]
        await self._stop.wait()
        _, late = await asyncio.wait(keeping, timeout=STOP_S_MAX)
        if late:
            log.error("%d workers did not end within %g s: killing them", len(late), STOP_S_MAX)
            self._pass_on(signal.SIGKILL)
        codes = set(await asyncio.gather(*keeping))
        if MISCONFIGURED in codes:
            return MISCONFIGURED
        return 0 if codes <= {0, -signal.SIGTERM} else 1

    async def _keep(self, number: int, env: Mapping[str, str]) -> int:
        """Run a worker, and start it again when it ends, until all have to stop. Returns the exit code of its stop."""
        loop = asyncio.get_running_loop()
        first = True
        while not self._stop.is_set():
            started_s = loop.time()
            code = await self._run(number, env)
            if code == MISCONFIGURED and first:
                self._end()  # one that replaces another may only have met a file that is being edited
            if self._stop.is_set():
                return code
            first = False
            log.error("worker %d %s: starting another one", number, _ending(code))
            if code == -signal.SIGHUP:
                continue  # while it imports modules, it cannot handle the signal yet; the next one reads the new file
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), started_s + RESTART_S_MIN - loop.time())
        return 0

    async def _run(self, number: int, env: Mapping[str, str]) -> int:
        """Run a worker once. Returns its exit code."""
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, *sys.orig_argv[1:], "--worker", *map(str, (number, os.getpid(), *self._inherited))),
                stdin=self._stdin,
                pass_fds=self._inherited,
                env=env,
                process_group=0,  # Ctrl-C reaches this process only, which passes on one signal
            )
        except OSError as error:
            log.error("worker %d cannot be started: %s", number, error)
            return 1
        log.info("worker %d is process %d", number, process.pid)
        self._running[number] = process
        if self._stop.is_set():
            process.terminate()
        code = await process.wait()
        del self._running[number]
        return code

    def _end(self) -> None:
        self._stop.set()
        self._pass_on(signal.SIGTERM)

    def _pass_on(self, number: signal.Signals) -> None:
        for process in self._running.values():
            with suppress(ProcessLookupError):
                process.send_signal(number)


def _ending(code: int) -> str:
    return f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
