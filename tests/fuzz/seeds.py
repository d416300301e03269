"""Small valid inputs of each format, from which the fuzzer starts."""

import json
from collections.abc import Iterator

import zstandard

from tests.fuzz.invariants import SOURCES, head, zlib_gzip

RECORDS: dict[str, list[dict[str, object]]] = {
    "typed": [
        {"id": "a", "flag": True, "small": -5, "count": 2**62, "ratio": 1.5, "value": 1e-9, "price": "12.50"},
        {"id": "b", "large": 10**37, "at": "2013-01-01T05:15:00.123456789+02:00", "day": "2013-01-31"},
        {"id": "é", "bytes": "aGVsbG8=", "any": {"a": [1, None, "x"]}, "classification_id": "run", "other": 1},
    ],
    "nested": [
        {"tags": ["a", None], "labels": {"k": "v", "n": None}, "blobs": {"b": "aGVsbG8="}},
        {"place": {"lat": 1.5, "lon": -2, "at": "2013-01-01T00:00:00Z", "x": 1}},
        {"lines": [{"sku": "s", "price": 9.99, "more": {"j": [1]}}, None], "prices": {"p": ["1.50", None]}},
    ],
    "times": [
        {
            "nanos": 1356998400123456789,
            "Dokument": {"a": 1},
            "localTime": "2013-03-31T00:30:00",
            "a b.c": "2013-01-01 12:00:00",
        },
        {
            "nanos": "1356998400",
            "Dokument": "x",
            "seconds": 1356998400.5,
            "ts": -1,
            "micros": 0,
            "days": ["2013-01-31"],
        },
    ],
    "plain": [{"vehicle_id": f"v{n}", "latitude": n / 7, "recorded_at": "2013-01-01T00:00:00Z"} for n in range(70)],
    "anything": [{"a": 1, "classification_id": "run"}],
}
_DAMAGED = [
    b'{"id":7}',
    b"null",
    b"1",
    b'"text"',
    b'{"id":"a","at":"9999-12-31T23:59:60Z"}',
    b'{"id":"\\ud800"}',
    b"\xff",
    b"[" * 300,
]


def seeds(target: str) -> Iterator[bytes]:
    match target:
        case "json":
            for number, source in enumerate(SOURCES):
                lines = [json.dumps(record, ensure_ascii=False).encode() for record in RECORDS[source.name]]
                for options in range(8):
                    whole = b"[" + b",\n ".join(lines) + b"]" if options & 2 else b"\xef\xbb\xbf" + b"\r\n".join(lines)
                    yield head(number, options, options) + whole
                    if options & 1:
                        yield head(number, options, 3) + b"\n\n".join(
                            [lines[0], *_DAMAGED[options % 4 :: 4], lines[-1]]
                        )
        case "encodings":
            plain = b'{"vehicle_id":"a"}\n' * 3
            for number in range(8):
                yield head(number, 0, number)[:1] + bytes([0, number, 1]) + plain
            yield head(0, 0) + zlib_gzip(plain) * 2
            yield head(1, 0) + zstandard.compress(plain) * 2
        case _:
            for number in range(len(SOURCES)):
                for options in (2, 3, 6, 7):
                    for data in (b"a", b"b", b"c"):
                        yield head(number, options) + data + bytes([number, options])
