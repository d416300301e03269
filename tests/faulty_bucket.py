"""A proxy that stands between the roles and the bucket, in a region of its own, and injects faults from a seed."""

import asyncio
import random
import re
import socket
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

from local.programs import LOOPBACK

SLOW_S = 0.5
#: The requests that one storm refuses, whoever sends them.
STORM_REQUESTS = 4
_HEAD_BYTES_MAX = 2**16
#: A reset connection: to close a socket that lingers for 0 s sends RST.
_NO_LINGER = struct.pack("ii", 1, 0)
_END_OF_HEAD = b"\r\n\r\n"


class Fault(StrEnum):
    SLOW = "slow answer"
    RESET_BEFORE = "reset before the request is forwarded"
    RESET_AFTER = "reset after the request was forwarded"
    CUT_MIDDLE = "reply cut in the middle"
    CUT_END = "reset after the reply"
    STORM = "storm of 503"
    THROTTLED_429 = "429 with Retry-After"
    THROTTLED_503 = "503 with Retry-After"
    CONFLICT = "409 instead of a write"
    CONFLICT_STORED = "409 after a write"
    EXISTS = "412 instead of a write"
    EXISTS_STORED = "412 after a write"
    #: The negative control: no bucket does this.
    SWALLOWED = "200 instead of a write"


#: Status line, and S3's code of the error.
_ANSWERS: Mapping[Fault, tuple[str, str]] = {
    Fault.STORM: ("503 Service Unavailable", "SlowDown"),
    Fault.THROTTLED_429: ("429 Too Many Requests", "TooManyRequests"),
    Fault.THROTTLED_503: ("503 Service Unavailable", "SlowDown"),
    Fault.CONFLICT: ("409 Conflict", "ConditionalRequestConflict"),
    Fault.CONFLICT_STORED: ("409 Conflict", "ConditionalRequestConflict"),
    Fault.EXISTS: ("412 Precondition Failed", "PreconditionFailed"),
    Fault.EXISTS_STORED: ("412 Precondition Failed", "PreconditionFailed"),
    Fault.SWALLOWED: ("200 OK", ""),
}
_THROTTLED = {Fault.THROTTLED_429, Fault.THROTTLED_503}
_FORWARDED = {Fault.CONFLICT_STORED, Fault.EXISTS_STORED}
#: The answers that only a conditional PUT gets.
_OF_PUT = {Fault.CONFLICT, Fault.CONFLICT_STORED, Fault.EXISTS, Fault.EXISTS_STORED, Fault.SWALLOWED}
FAULTS = tuple(fault for fault in Fault if fault is not Fault.SWALLOWED)


class Faults:
    """The order of the faults, and how many of each were injected, by kind and method.

    They are dealt like cards, two thirds of which are no fault, so that each kind comes as often as the others. The
    PUTs have a deck of their own, and some kinds are only in that. Faults begin and end with `active`.
    """

    active = False

    def __init__(self, rng: random.Random, kinds: Iterable[Fault] = FAULTS) -> None:
        self.injected: Counter[tuple[Fault, str]] = Counter()
        self._rng = rng
        self._kinds = tuple(kinds)
        self._decks: dict[bool, list[Fault | None]] = {True: [], False: []}
        self._storm = 0

    def draw(self, method: str) -> Fault | None:
        if not self.active:
            return None
        fault = Fault.STORM if self._storm else self._deal(method)
        if fault is Fault.STORM:
            self._storm = (self._storm or STORM_REQUESTS) - 1
        if fault:
            self.injected[fault, method] += 1
        return fault

    def _deal(self, method: str) -> Fault | None:
        put = method == "PUT"
        deck = self._decks[put]
        if not deck:
            kinds = [fault for fault in self._kinds if put or fault not in _OF_PUT]
            deck += [*kinds, *[None] * 2 * len(kinds)]
            self._rng.shuffle(deck)
        return deck.pop() if deck else None

    def times(self, fault: Fault) -> int:
        return sum(times for (kind, _), times in self.injected.items() if kind is fault)

    def table(self) -> str:
        return "\n".join(f"{fault:40} {self.times(fault):5}" for fault in Fault if self.times(fault))


@dataclass
class FaultyBucket:
    """A proxy to the S3 server on the port `to`, which is `each_way_s` away.

    Each connection has one request, so that the end of a reply is the end of its connection. The head stays as it was
    signed, except for headers that no signature includes.
    """

    to: int
    faults: Faults
    each_way_s: float = 0
    #: the requests that were delayed by the distance, and answered
    delayed: int = 0
    port: int = 0
    _connections: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connection, LOOPBACK, self.port, limit=_HEAD_BYTES_MAX)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):  # cancelled at the end
                await self._request(reader, writer)
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(_END_OF_HEAD)
        if _header(head, b"expect"):
            writer.write(b"HTTP/1.1 100 Continue" + _END_OF_HEAD)
        body = await reader.readexactly(int(_header(head, b"content-length") or 0))
        method = head.partition(b" ")[0].decode()
        fault = self.faults.draw(method)
        await asyncio.sleep(self.each_way_s + SLOW_S * (fault is Fault.SLOW))
        if fault is Fault.RESET_BEFORE:
            _reset(writer)
            return
        reply = b"" if fault in _ANSWERS and fault not in _FORWARDED else await self._forward(head, body)
        if fault is Fault.RESET_AFTER:
            _reset(writer)
            return
        await asyncio.sleep(self.each_way_s)
        self.delayed += self.each_way_s > 0
        if fault and fault in _ANSWERS:
            reply = _answer(fault, method)
        elif fault is Fault.CUT_MIDDLE:
            end_of_head = reply.index(_END_OF_HEAD) + len(_END_OF_HEAD)
            has_body = method == "GET" and len(reply) > end_of_head
            reply = reply[: (end_of_head + len(reply)) // 2 if has_body else end_of_head // 2]
        elif fault is Fault.CUT_END:
            reply = _without(reply, b"connection")  # the client keeps the connection, and finds it broken
        writer.write(reply)
        await writer.drain()
        if fault in {Fault.CUT_MIDDLE, Fault.CUT_END}:
            _reset(writer)

    async def _forward(self, head: bytes, body: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(LOOPBACK, self.to)
        try:
            kept = _without(_without(head, b"expect"), b"connection")
            writer.write(kept.removesuffix(b"\r\n") + b"Connection: close" + _END_OF_HEAD + body)
            return await reader.read()
        finally:
            writer.close()


def _header(head: bytes, name: bytes) -> bytes:
    found = re.search(rb"(?im)^" + name + rb": *(.*?)\r$", head)
    return found[1] if found else b""


def _without(message: bytes, name: bytes) -> bytes:
    head, end, body = message.partition(_END_OF_HEAD)
    return re.sub(rb"(?i)\r\n" + name + rb":[^\r]*", b"", head) + end + body


def _answer(fault: Fault, method: str) -> bytes:
    status, code = _ANSWERS[fault]
    body = f"<Error><Code>{code}</Code><Message>{fault}</Message></Error>".encode() if code else b""
    headers = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Content-Type: application/xml"]
    headers += ["Connection: close", *(["Retry-After: 1"] if fault in _THROTTLED else [])]
    return "\r\n".join(headers).encode() + _END_OF_HEAD + (b"" if method == "HEAD" else body)


def _reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()
