"""Requests of a sender that knows the formats, and damages some of what it sends. A number gives the same request."""

import gzip
import io
import json
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tests.attack.inputs import ARROW, JSON, NDJSON
from tests.fuzz.seeds import RECORDS

PARQUET = "application/vnd.apache.parquet"
#: Each body in a hundred is Arrow or Parquet, which a process of its own reads.
COLUMNAR_SHARE = 0.01
SOURCES = list(RECORDS)
_BOM = b"\xef\xbb\xbf"
_ENCODE: Mapping[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": partial(gzip.compress, mtime=0),
    "zstd": zstandard.compress,
}


@dataclass(frozen=True)
class Made:
    """A request: its bytes as they are sent, and the records that it has if it is accepted; None if unknown."""

    kind: str
    pieces: list[bytes]
    records: list[bytes] | None


def request(seed: int, number: int, host: str) -> Made:
    choose = random.Random(f"{seed}:{number}")
    # a retry: the same bytes under the same key
    if choose.random() < 0.02 and number >= 500:
        return request(seed, number - choose.randint(1, 50) * 10, host)
    source = choose.choice(SOURCES)
    kind, body = _body(source, choose)
    media_type = {"NDJSON": NDJSON, "JSON": JSON, "Arrow": ARROW, "Parquet": PARQUET}[kind]
    if choose.random() < 0.4:
        body = _mutated(body, choose)
    if choose.random() < 0.02:
        media_type = choose.choice([NDJSON, JSON, f"{NDJSON}; charset=utf-8", "text/csv", "", "a/b/c", JSON.upper()])
    encoding = choose.choice(["identity", "identity", "gzip", "zstd"])
    sent = _ENCODE[encoding](body)
    if encoding != "identity" and choose.random() < 0.15:
        sent = _mutated(sent, choose)
    if choose.random() < 0.02:
        encoding = choose.choice(["gzip", "zstd", "identity", "br", "gzip, gzip", "", "GZIP"])
    quarantine = choose.random() < 0.3
    head = [
        f"POST /v1/ingest/{source}{'?on_invalid=quarantine' if quarantine else ''} HTTP/1.1",
        f"Host: {host}",
        f"Content-Type: {media_type}",
        f"Content-Encoding: {encoding}",
        *_odd_headers(choose),
    ]
    if choose.random() < 0.25:
        head.append(f"Idempotency-Key: {choose.choice([f'k{number}', f'k{choose.randint(0, number)}', 'same'])}")
    pieces = _framed(head, sent, choose)
    known = media_type.partition(";")[0].lower()
    name = kind if kind in {"Arrow", "Parquet"} else f"{kind}, {encoding}" if encoding in _ENCODE else f"{kind}, other"
    return Made(name, pieces, _records(known, encoding.lower(), sent))


def _odd_headers(choose: random.Random) -> list[str]:
    if choose.random() > 0.2:
        return []
    return [
        choose.choice(
            [
                "Bronze-Classification-Id: run%20%C3%A9",
                "Bronze-Classification-Id: %FF",
                "Bronze-File-Name: " + "x" * choose.choice([1, 256, 257, 5000]),
                "Idempotency-Key: a\r\nIdempotency-Key: b",
                "Idempotency-Key: " + "k" * 300,
                "traceparent: 00-" + "a" * 32 + "-" + "b" * 16 + "-00",
                "X-Empty:",
                "X-Long: " + "y" * 70_000,
                "Expect: 100-continue-not",
                "Accept: text/nothing",
                "Content-Encoding: identity",
                "Content-Type: text/plain",
                "X-Latin: é\xff",
            ]
        )
    ]


def _framed(head: list[str], body: bytes, choose: random.Random) -> list[bytes]:
    """The request with a length, or in chunks of odd sizes, in pieces as they are written to the connection."""
    end = "\r\n\r\n"
    if choose.random() < 0.7:
        message = ("\r\n".join([*head, f"Content-Length: {len(body)}"]) + end).encode("latin-1") + body
    else:
        chunks = bytearray()
        start = 0
        while start < len(body):
            size = choose.choice([1, 2, 7, 100, 4096])
            chunk = body[start : start + size]
            start += size
            extension = ";a=b" if choose.random() < 0.05 else ""
            chunks += f"{len(chunk):x}{extension}\r\n".encode() + chunk + b"\r\n"
        message = (
            ("\r\n".join([*head, "Transfer-Encoding: chunked"]) + end).encode("latin-1") + bytes(chunks) + b"0\r\n\r\n"
        )
    if choose.random() < 0.9:
        return [message]
    cut = choose.randrange(1, len(message))
    return [message[:cut], message[cut:]]


def _body(source: str, choose: random.Random) -> tuple[str, bytes]:
    count = 300 if choose.random() < 0.02 else choose.choice([1, 1, 3, 20])
    records = [choose.choice(RECORDS[source]) | {"n": choose.randint(0, 9)} for _ in range(count)]
    lines = [json.dumps(record, ensure_ascii=choose.random() < 0.5).encode() for record in records]
    if choose.random() < COLUMNAR_SHARE:
        kind = choose.choice(["Arrow", "Parquet"])
        return kind, _columnar(source, kind, choose.randint(0, 20))
    if choose.random() < 0.6:
        end = choose.choice([b"\n", b"\n", b"\r\n", b"\n\n"])
        return "NDJSON", (_BOM if choose.random() < 0.05 else b"") + end.join(lines) + choose.choice([b"", end])
    return "JSON", b"[" + choose.choice([b",", b",\n ", b" , "]).join(lines) + b"]"


@cache
def _columnar(source: str, kind: str, variant: int) -> bytes:
    names = {"typed": "id", "plain": "vehicle_id"}
    table = pa.table(
        {
            names.get(source, "tags2"): pa.array(["a", "b", None if variant % 7 == 0 else "c"] * (variant + 1)),
            "nanos": pa.array(range(3 * (variant + 1)), pa.int64()),
            "Dokument": pa.array(["{}"] * 3 * (variant + 1)),
            "extra": pa.array([b"x", None, b"\xff" if variant % 5 == 0 else b"y"] * (variant + 1)),
        }
    )
    sink = io.BytesIO()
    if kind == "Parquet":
        pq.write_table(table, sink)
    else:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue()


def _flip(body: bytes, choose: random.Random) -> bytes:
    changed = bytearray(body)
    for _ in range(choose.choice([1, 1, 5])):
        changed[choose.randrange(len(changed))] ^= 1 << choose.randrange(8)
    return bytes(changed)


def _truncate(body: bytes, choose: random.Random) -> bytes:
    return body[: choose.randrange(len(body))]


def _repeat(body: bytes, choose: random.Random) -> bytes:
    start = choose.randrange(len(body))
    piece = body[start : start + choose.choice([1, 8, 64])]
    return body[:start] + piece * choose.choice([2, 10, 300]) + body[start:]


def _splice(body: bytes, choose: random.Random) -> bytes:
    start, other = choose.randrange(len(body)), choose.randrange(len(body))
    return body[:start] + body[other : other + choose.randint(1, 40)] + body[start + choose.choice([0, 1, 20]) :]


def _insert(body: bytes, choose: random.Random) -> bytes:
    start = choose.randrange(len(body))
    tokens = [
        b"null",
        b"\n",
        b"}{",
        b"[" * 600,
        b'"',
        b"\\ud800",
        b"\0",
        b"\xff",
        b"1e999",
        b"NaN",
        b"-0",
        _BOM,
        b"\n\n\n\n",
    ]
    return body[:start] + choose.choice(tokens) + body[start:]


_MUTATIONS: Sequence[Callable[[bytes, random.Random], bytes]] = (_flip, _truncate, _repeat, _splice, _insert)


def _mutated(body: bytes, choose: random.Random) -> bytes:
    for _ in range(choose.choice([1, 1, 2, 4])):
        if body:
            body = choose.choice(_MUTATIONS)(body, choose)
    return body


def _records(media_type: str, encoding: str, sent: bytes) -> list[bytes] | None:
    """The records of a body as it was sent, by other code than the API's; None if it has none that can be read."""
    try:
        body = {"gzip": _gunzip, "zstd": _unzstd}.get(encoding, bytes)(sent)
        body = body.removeprefix(_BOM)
        if media_type == NDJSON:
            return [record for line in body.split(b"\n") if (record := line.strip(b" \t\r"))]
        if media_type != JSON:
            return None
        document = body.strip(b" \t\r\n")
        if not document.startswith(b"["):
            return [document]
        return [bytes(record) for record in msgspec.json.decode(document, type=list[msgspec.Raw])]
    except (msgspec.DecodeError, RecursionError, OSError, EOFError, zlib.error, zstandard.ZstdError):
        return None


def _gunzip(sent: bytes) -> bytes:
    body = b""
    while sent:  # `gzip.decompress` takes zeros after a member
        member = zlib.decompressobj(31)
        body += member.decompress(sent)
        if not member.eof:
            raise EOFError
        sent = member.unused_data
    return body


def _unzstd(sent: bytes) -> bytes:
    with zstandard.ZstdDecompressor().stream_reader(sent, read_across_frames=True) as reader:
        return bytes(reader.read(2**26))


def csv_file(seed: int, number: int) -> bytes:
    """A CSV file for the source `plain`, damaged half of the time."""
    choose = random.Random(f"csv:{seed}:{number}")
    delimiter = choose.choice([",", ";", "\t"])
    notes = ["", '"a\nb"', '"é ""x"""', "text"]
    rows = [
        ["vehicle_id", "latitude", "recorded_at", "note"],
        *(
            [f"v{row}", str(row / 7), "2013-01-01T00:00:00Z", choose.choice(notes)]
            for row in range(choose.choice([1, 10, 300]))
        ),
    ]
    body = "\r\n".join(delimiter.join(row) for row in rows).encode(choose.choice(["utf-8", "utf-8-sig", "utf-16"]))
    with suppress(ValueError):
        return _mutated(body, choose) if choose.random() < 0.5 else body
    return body
