"""The network of a cluster: a proxy before each server, which can stop what goes from one party to another.

A server tells the others its proxy's address as its own, so that every route leads through it. Whoever connects says
first who it is, so that one proxy per server knows each direction of each pair. What is stopped is not lost but waits,
as with TCP when packets are dropped; if the connection is not closed meanwhile, it arrives later.
"""

import asyncio
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Self

from local.programs import LOOPBACK

#: The party of the roles and commands, which connect as clients.
ROLES = "roles"

_SERVER_NAME = re.compile(rb'"server_name":"([^"]+)"')
_READ_BYTES = 2**16
#: What a server sends before it has told its name.
_NAMELESS_BYTES_MAX = 2**16


class Network:
    """The directions between parties that are open; all are at first. It runs in a thread of its own.

    `party_of` is the party of a server that says its name.
    """

    def __init__(self, party_of: Callable[[str], str]) -> None:
        self._party_of = party_of
        self._ways: defaultdict[tuple[str, str], asyncio.Event] = defaultdict(_opened)
        self._writers: set[asyncio.StreamWriter] = set()
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def add(self, server: str, port: int, to: int, *, party: str = "") -> None:
        """Listen on a port, and forward to a server's own port. Without a `party`, those who connect say their name."""
        self._run(self._listen(server, port, to, party))

    def stop(self, ways: Iterable[tuple[str, str]]) -> None:
        """Let nothing pass from the first of each pair to the second."""
        self._run(self._set(ways, opened=False))

    def heal(self) -> None:
        self._run(self._set(list(self._ways), opened=True))

    def reset(self) -> None:
        """Close all connections."""
        self._run(self._abort())

    def _run(self, act: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(act, self._loop).result()

    async def _set(self, ways: Iterable[tuple[str, str]], *, opened: bool) -> None:
        for way in ways:
            if opened:
                self._ways[way].set()
            else:
                self._ways[way].clear()

    async def _abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _listen(self, server: str, port: int, to: int, party: str) -> None:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._forward(reader, writer, server, to, party)

        self._servers.append(await asyncio.start_server(connected, LOOPBACK, port))

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: str, to: int, party: str
    ) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection(LOOPBACK, to)
        except OSError:
            writer.close()
            return
        ends = {writer, there_writer}
        self._writers |= ends
        named = asyncio.get_running_loop().create_future()
        if party:
            named.set_result(party)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._outward(reader, there_writer, server, named))
                group.create_task(self._back(there_reader, writer, server, named))
        except* (OSError, _Closed):
            pass
        finally:
            for end in ends:
                end.transport.abort()
            self._writers -= ends

    async def _outward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: str, named: asyncio.Future[str]
    ) -> None:
        """From whoever connects to the server."""
        first = b""
        while not named.done() and len(first) < _NAMELESS_BYTES_MAX:
            first += await _part(reader)
            if found := _SERVER_NAME.search(first):
                named.set_result(self._party_of(found[1].decode()))
        party = await named
        await self._ways[party, server].wait()
        writer.write(first)
        await self._pump(reader, writer, (party, server))

    async def _back(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: str, named: asyncio.Future[str]
    ) -> None:
        """From the server to whoever connects. The greeting passes always: before it, nobody says a name."""
        writer.write(await _part(reader))
        await self._pump(reader, writer, (server, await named))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: tuple[str, str]) -> None:
        while True:
            part = await _part(reader)
            await self._ways[way].wait()
            writer.write(part)
            with suppress(ConnectionError):
                await writer.drain()


class _Closed(Exception):
    """One end has closed the connection."""


async def _part(reader: asyncio.StreamReader) -> bytes:
    part = await reader.read(_READ_BYTES)
    if not part:
        raise _Closed
    return part


def _opened() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event
