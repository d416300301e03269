"""Takes an edited file of sources, on SIGHUP: it is checked, and the role begins again with it, in the same process."""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import NoReturn

from bronze.errors import Misconfigured, Unavailable
from bronze.process import on_reload_signal, on_stop_signals
from bronze.records import sources
from bronze.records.sources import Source

log = logging.getLogger(__name__)

Check = Callable[[Mapping[str, Source], str], Awaitable[None]]

#: How often the file is read, to say that it was edited.
POLL_S = 5.0
#: The first file descriptor that is passed on, by the protocol of sd_listen_fds(3).
LISTEN_FD = 3


class SourcesReload:
    """The file of sources of a role, or that of the built-in ones.

    It is made before the role reads the file; SIGHUP waits until `begin`.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file or sources.built_in_file()
        self._begun: tuple[Check, Callable[[], None]] | None = None
        self._waits = False
        self._taken = self._noticed = self._read()
        self._checking: asyncio.Task[None] | None = None
        self.requested = False
        on_reload_signal(self._on_signal)

    def begin(self, check: Check, restart: Callable[[], None]) -> None:
        """Handle SIGHUP from now on, and one that came before.

        `check` raises `Misconfigured` if declared sources contradict the registered ones; `restart` ends the role.
        """
        self._begun = check, restart
        if self._waits:
            self._on_signal()

    def stop_on_signals(self, stop: Callable[[], None]) -> None:
        """Call `stop` on SIGTERM and SIGINT, after which the role ends for good."""

        def stop_for_good() -> None:
            self.requested = False
            stop()

        on_stop_signals(stop_for_good)

    async def notice_edits(self) -> None:
        """Say once for each edit of the file that it does not hold yet; ends by cancellation."""
        while True:
            await asyncio.sleep(POLL_S)
            content = await asyncio.to_thread(self._read)
            if content not in {self._noticed, self._taken}:
                log.warning("%s was edited: `bronze sources check` checks it, SIGHUP or `make up` takes it", self._file)
            self._noticed = content

    def _read(self) -> bytes | None:
        try:
            return self._file.read_bytes()
        except OSError:
            return None

    def _on_signal(self) -> None:
        if self._begun is None:
            self._waits = True
        elif self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._reload(*self._begun))

    async def _reload(self, check: Check, restart: Callable[[], None]) -> None:
        content = await asyncio.to_thread(self._read)
        if content is not None and content == self._taken:
            log.info("SIGHUP: %s is the same as at the start", self._file)
            return
        try:
            await check(sources.load(self._file), str(self._file))
        except (Misconfigured, Unavailable) as error:
            log.error("SIGHUP: the sources stay as they are: %s", error)
            return
        log.info("SIGHUP: starting again with %s", self._file)
        self.requested = True
        restart()


def inherited_listener() -> socket.socket | None:
    """The socket that this process was given to listen on, by itself before or by systemd; None without one."""
    given = os.environ.pop("LISTEN_PID", None), os.environ.pop("LISTEN_FDS", None)
    if given != (str(os.getpid()), "1"):
        return None
    listener = socket.socket(fileno=LISTEN_FD)
    listener.set_inheritable(False)
    return listener


def start_again(listener: socket.socket | None = None) -> NoReturn:
    """Replace this program by itself, with the same arguments. Connections to `listener` wait meanwhile."""
    if listener:
        os.dup2(listener.fileno(), LISTEN_FD, inheritable=True)
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
    logging.shutdown()
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  its own arguments
