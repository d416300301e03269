"""The inputs that stopped the API, each as one case of a kind, sent over bare sockets from another process."""

import gzip
import io
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa
import zstandard

MIB = 2**20
NDJSON, JSON, ARROW = "application/x-ndjson", "application/json", "application/vnd.apache.arrow.stream"
#: No case waits longer for an answer, in seconds.
ANSWER_S_MAX = 150.0


@dataclass(frozen=True)
class Sent:
    """The answer to one hostile connection: its status, or why there was none, and after how long."""

    status: str
    seconds: float


@dataclass(frozen=True)
class Attack:
    """A case: what each of `connections` connections sends at the same time."""

    name: str
    send: Callable[[int, float], Sent]
    connections: int = 1


def exchange(port: int, pieces: list[bytes], deadline_s: float, *, pause_s: float = 0.0) -> Sent:
    """Send pieces, and wait for the status line or for the end of the connection."""
    start_s = time.monotonic()
    status = "none"
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        # a server that does not read any more may have answered
        with suppress(OSError):
            connection.settimeout(30)
            for piece in pieces:
                connection.sendall(piece)
                if pause_s:
                    time.sleep(pause_s)
        status = "no answer"
        connection.settimeout(max(0.1, deadline_s - time.monotonic()))
        with suppress(TimeoutError):
            status = "closed"
            line = connection.recv(200)
            status = line.split(b" ", 2)[1].decode() if line.startswith(b"HTTP/1.1 ") else "closed"
            return Sent(status, time.monotonic() - start_s)
        status = "open"
    return Sent(status, time.monotonic() - start_s)


def post(body: bytes, media_type: str, encoding: str = "identity", query: str = "") -> list[bytes]:
    head = (
        f"POST /v1/ingest/vehicles{query} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {media_type}\r\n"
        f"Content-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return [head.encode() + body]


def half(body: bytes, media_type: str) -> list[bytes]:
    """A body of which the last byte never comes."""
    head, *_ = post(body + b" ", media_type)
    return [head[:-1]]


@cache
def arrow_rows(kind: str) -> bytes:
    rows = 2**31 - 1
    once = pa.RunEndEncodedArray.from_arrays(pa.array([rows], pa.int32()), pa.array(["a"]))
    column = once if kind == "run-end encoded" else pa.nulls(rows)
    batch = pa.record_batch({"vehicle_id": once, "x": column})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


@cache
def many_classifications() -> bytes:
    lines = (b'{"vehicle_id":"a","classification_id":"%d"}\n' % number for number in range(3_000_000))
    return zstandard.compress(b"".join(lines), 3)


@cache
def ones() -> bytes:
    return gzip.compress(b"[" + b"1," * (8 * MIB - 2) + b"1]", 9)


@cache
def blank_lines() -> bytes:
    # many frames, so that no frame states a suspicious size
    return zstandard.compress(b"\n" * (16 * MIB), 3) * 31


def send(make: Callable[[], list[bytes]], *, pause_s: float = 0.0) -> Callable[[int, float], Sent]:
    return lambda port, deadline_s: exchange(port, make(), deadline_s, pause_s=pause_s)


GET = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n"
#: In the order of the issue's table.
ATTACKS: Mapping[str, Attack] = {
    attack.name: attack
    for attack in (
        Attack("160 MiB of one header without end", send(lambda: [GET + b"X: ", *[b"x" * MIB] * 160])),
        Attack("a whole header of 32 MiB", send(lambda: [GET + b"X: ", *[b"x" * MIB] * 32, b"\r\n\r\n"])),
        Attack("16 KB of gzip: [1,1,1,...] of 16 MiB, twice", send(lambda: post(ones(), JSON, "gzip")), 2),
        Attack(
            "2 KB: a million rejected lines, quarantined",
            send(lambda: post(gzip.compress(b"1\n" * 10**6, 9), NDJSON, "gzip", "?on_invalid=quarantine")),
        ),
        Attack("eight times zstd of 500 MiB of blank lines", send(lambda: post(blank_lines(), NDJSON, "zstd")), 8),
        Attack("Arrow, null columns of 2^31-1 rows", send(lambda: post(arrow_rows("null"), ARROW))),
        Attack("Arrow, run-end encoded, two at once", send(lambda: post(arrow_rows("run-end encoded"), ARROW)), 2),
        Attack("100 silent connections", send(list), 100),
        Attack("100 times half a head", send(lambda: [GET]), 100),
        Attack("100 times half a body", send(lambda: half(b'{"vehicle_id":', JSON)), 100),
        Attack("30 times half a document of 16 MiB", send(lambda: half(b"[" + b" " * (16 * MIB - 2), JSON)), 30),
        Attack("20 times half an upload of 19 MiB", send(lambda: half(b"x" * (19 * MIB), ARROW)), 20),
        Attack("3 million classification ids", send(lambda: post(many_classifications(), NDJSON, "zstd"))),
        Attack("20 User-Agents of 4 MiB", send(lambda: [GET + b"User-Agent: ", b"x" * 4 * MIB, b"\r\n\r\n"]), 20),
    )
}


def connect_all(name: str, port: int, deadline_s: float, answers: Any) -> None:
    """All connections of a case, in a process of its own, which has to find this function in a module by name."""
    attack = ATTACKS[name]
    with ThreadPoolExecutor(attack.connections) as threads:
        for sent in threads.map(lambda _: attack.send(port, deadline_s), range(attack.connections)):
            answers.put(sent)
    answers.close()


def keep_up(port: int, number: int, end_s: float) -> None:
    """One hostile connection after another, of all kinds in turn."""
    kinds = list(ATTACKS.values())
    while time.monotonic() < end_s:
        number += 1
        kinds[number % len(kinds)].send(port, min(end_s, time.monotonic() + 15))


def keep_all_up(port: int, connections: int, end_s: float) -> None:
    with ThreadPoolExecutor(connections) as threads:
        list(threads.map(lambda number: keep_up(port, number, end_s), range(connections)))
