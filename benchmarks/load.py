"""The client that offers load: `python -m benchmarks.load`, its task on standard input, what it saw on standard output.

A process of its own that does next to nothing for a request (one write, one search for the end of the answer), so that
what it takes of the machine is small, and known.
"""

import asyncio
import re
import sys
import time
from functools import partial
from itertools import count, cycle, islice
from pathlib import Path
from typing import cast

import msgspec
import uvloop

from local.programs import LOOPBACK

WRITTEN_AT_ONCE = 2**20
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Requests with so many lines of a file each, in its order; each connection's next one follows its answer.

    The file is sent `passes` times, or again and again for `for_s` seconds. `rate` is requests per second for all
    connections; none: as fast as it goes. The connections go to the ports in turn.
    """

    ports: list[int]
    path: str
    file: str
    records: int
    connections: int
    passes: int = 1
    requests_max: int | None = None
    for_s: float | None = None
    rate: float | None = None
    receipts: bool = False
    content_type: str = "application/x-ndjson"
    headers: dict[str, str] = {}


class Sent(msgspec.Struct, kw_only=True):
    """Times are of the machine's monotonic clock, in seconds. A latency is from when its request was due.

    `receipts` are each submission's id, when it was due and when its 202 came.
    """

    began: float = 0.0
    ended: float = 0.0
    cpu_s: float = 0.0
    requests: int = 0
    records: int = 0
    bytes: int = 0
    latencies_s: list[float] = []
    receipts: list[tuple[str, float, float]] = []

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Refused(Exception):
    """An answer that is not a success; says what."""


class Offer:
    """The requests that are still to be sent, and what came of the others."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.sent = Sent()
        self.bodies = bodies(Path(load.file), load.records)
        self.over = asyncio.get_running_loop().create_future()
        self.open = load.connections
        self._number = count()

    def next(self) -> tuple[float, bytes, int] | None:
        """When it is due, its body, its records; None: there is no more."""
        number, load = next(self._number), self.load
        due = self.sent.began + number / load.rate if load.rate else time.monotonic()
        if load.requests_max is not None and number >= load.requests_max:
            return None
        if due >= self.sent.began + load.for_s if load.for_s else number >= len(self.bodies) * load.passes:
            return None
        return due, *self.bodies[number % len(self.bodies)]

    def done(self, due: float, body: bytes, records: int, answer: bytes) -> None:
        now, sent = time.monotonic(), self.sent
        sent.ended = now
        sent.requests += 1
        sent.records += records
        sent.bytes += len(body)
        sent.latencies_s.append(now - due)
        if self.load.receipts:
            sent.receipts.append((msgspec.json.decode(answer)["submission_id"], due, now))

    def fail(self, error: Exception) -> None:
        if not self.over.done():
            self.over.set_exception(error)

    def close(self) -> None:
        self.open -= 1
        if not self.open and not self.over.done():
            self.over.set_result(None)


class Connection(asyncio.Protocol):
    """One keep-alive connection: a request, its answer, the next request."""

    def __init__(self, offer: Offer, port: int) -> None:
        self._offer = offer
        load = offer.load
        headers = "".join(f"{name}: {value}\r\n" for name, value in load.headers.items())
        self._head = (
            f"POST {load.path} HTTP/1.1\r\nHost: {LOOPBACK}:{port}\r\nContent-Type: {load.content_type}\r\n"
            f"{headers}Content-Length: "
        ).encode()
        self._came = b""
        self._now: tuple[float, bytes, int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def send_next(self) -> None:
        self._now = self._offer.next()
        if self._now is None:
            self._transport.close()
            self._offer.close()
            return
        wait_s = self._now[0] - time.monotonic()
        if wait_s > 0:
            asyncio.get_running_loop().call_later(wait_s, self._write, self._now[1])
        else:
            self._write(self._now[1])

    def _write(self, body: bytes) -> None:
        head = self._head + str(len(body)).encode() + b"\r\n\r\n"
        if len(body) < WRITTEN_AT_ONCE:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    def data_received(self, data: bytes) -> None:
        came = self._came + data if self._came else data
        end = came.find(b"\r\n\r\n")
        found = _LENGTH.search(came, 0, end) if end >= 0 else None
        if found is None or len(came) < end + 4 + int(found[1]):
            self._came = came
            return
        self._came = b""
        if came[9:10] != b"2" or self._now is None:
            self._offer.fail(Refused(came.decode(errors="replace")))
            return
        self._offer.done(*self._now, came[end + 4 :])
        self.send_next()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._now is not None:
            self._offer.fail(exc or Refused("the connection was closed"))


def bodies(file: Path, records: int) -> list[tuple[bytes, int]]:
    """The file in pieces of so many lines, each with their number."""
    lines = iter(file.read_bytes().splitlines(keepends=True))
    return [(b"".join(piece), len(piece)) for piece in iter(lambda: list(islice(lines, records)), [])]


async def offer(load: Load) -> Sent:
    """Raises `Refused` at the first answer that is no success."""
    offer = Offer(load)
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(partial(Connection, offer, port), LOOPBACK, port)
        for port in islice(cycle(load.ports), load.connections)
    ]
    try:
        cpu_s = time.process_time()
        offer.sent.began = time.monotonic()
        for _, connection in made:
            connection.send_next()
        await offer.over
        offer.sent.cpu_s = time.process_time() - cpu_s
    finally:
        for transport, _ in made:
            transport.abort()
    return offer.sent


def main() -> int:
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=Load)
    try:
        sent = uvloop.run(offer(load))
    except (Refused, OSError) as error:
        print(f"{load.path}: {error}", file=sys.stderr)
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(sent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
