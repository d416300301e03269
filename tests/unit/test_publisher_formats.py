"""Text files of every format become JSON records without loss, and errors have a position."""

import csv
import datetime as dt
import gc
import gzip
import io
import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bronze.errors import Refused
from bronze.protocol.message import MESSAGE_BYTES_MAX
from bronze.publisher import FileFormat, reading
from bronze.publisher.formats import Record, format_of
from bronze.publisher.reading import with_classification_id
from bronze.records import sources

STATUS, VEHICLES = (sources.built_in()[name] for name in ("status", "vehicles"))


def read(data: bytes, form: FileFormat, source: sources.Source = VEHICLES, file: str = "f") -> list[Record]:
    return list(reading.records(file, io.BytesIO(data), form, lambda: source))


def values(data: bytes, form: FileFormat, source: sources.Source = VEHICLES) -> list[Any]:
    return [json.loads(record, parse_float=Decimal) for _, record in read(data, form, source)]


def refusal(data: bytes, form: FileFormat, file: str = "f") -> str:
    with pytest.raises(Refused) as refused:
        read(data, form, file=file)
    return refused.value.detail


@pytest.mark.parametrize(
    ("file", "form"),
    [
        ("a.csv", FileFormat.CSV),
        ("A.CSV.GZ", FileFormat.CSV),
        ("a.b.jsonl.zst", FileFormat.NDJSON),
        ("a.json", FileFormat.JSON),
        ("a.parquet", FileFormat.PARQUET),
        ("a.feather", FileFormat.ARROW),
        ("-", FileFormat.NDJSON),
        ("a.csv.part", None),
        ("a.gz", None),
        ("csv", None),
    ],
)
def test_the_file_name_determines_the_format(file: str, form: FileFormat | None) -> None:
    """The extension counts in upper and lower case, without that of a compression. Other names have no format."""
    assert format_of(file) is form
    assert format_of(file, FileFormat.ARROW) is FileFormat.ARROW


# --- JSON

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    records=st.lists(st.dictionaries(st.text(), json_values, max_size=3)),
    indent=st.none() | st.integers(0, 3),
    array=st.booleans(),
)
def test_json_keeps_every_value(records: list[dict[str, Any]], *, indent: int | None, array: bool) -> None:
    """In any layout, the elements of an array, or concatenated values, become one unchanged record per line."""
    text = json.dumps(records, indent=indent) if array else "\n".join(json.dumps(r, indent=indent) for r in records)
    result = read(text.encode(), FileFormat.JSON)
    assert [json.loads(record) for _, record in result] == records
    assert [record.count(b"\n") for _, record in result] == [1] * len(records)
    assert [number for number, _ in result] == list(range(1, len(records) + 1))


def test_json_keeps_every_digit() -> None:
    """Numbers keep their text: large integers and decimals are not converted to a float."""
    text = b'[ {"a": 123456789012345678901234567890, "b": 0.10, "c": 1E400,\n "d": "\xc3\xa9\\n"} ]'
    assert read(text, FileFormat.JSON) == [
        (1, b'{"a": 123456789012345678901234567890, "b": 0.10, "c": 1E400,  "d": "\xc3\xa9\\n"}\n')
    ]


def test_json_is_read_in_chunks() -> None:
    """A document may be many times larger than a chunk. A record larger than a message is refused with its number."""
    record = {"a": "x" * 300_000, "b": "é" * 100}
    many = [record | {"n": n} for n in range(20)]
    assert values(json.dumps(many, ensure_ascii=False).encode(), FileFormat.JSON) == many
    much = json.dumps([*many, {"a": "x" * MESSAGE_BYTES_MAX}, *many]).encode()
    assert refusal(much, FileFormat.JSON).startswith(f"f, record 21 is longer than {MESSAGE_BYTES_MAX} bytes")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'[{"a":1} {"a":2}]', "after 1 record: a comma is missing"),
        (b'[{"a":1},]', "after 1 record"),
        (b'[{"a":1}', "after 1 record: the file ends before its array does"),
        (b'[{"a":1}] x', "there is more text after the end of the array"),
        (b'[{"a":NaN}]', "after 0 records: NaN is not allowed in JSON"),
        (b'{"a":1}\n{"a"}', "after 1 record"),
        (b'[{"a":"\xff"}]', "is not UTF-8"),
        (b"[" * 100_000, "is not JSON after 0 records"),
    ],
)
def test_malformed_json(text: bytes, reason: str) -> None:
    assert reason in refusal(text, FileFormat.JSON)


# --- CSV


def test_csv_is_typed_as_declared() -> None:
    """A declared column has its type, an empty value is null, an undeclared column is text."""
    text = 'vehicle_id,year_built,seats,engine,note,speed\r\nN1, 1999 ,007,,"a, ""b""\r\nc",1.5\r\n\r\n2,,-0,,,\r\n'
    assert values(text.encode("utf-8-sig"), FileFormat.CSV, VEHICLES) == [
        {"vehicle_id": "N1", "year_built": 1999, "seats": 7, "engine": None, "note": 'a, "b"\r\nc', "speed": "1.5"},
        {"vehicle_id": "2", "year_built": None, "seats": 0, "engine": None, "note": None, "speed": None},
    ]
    assert [number for number, _ in read(text.encode(), FileFormat.CSV)] == [2, 5]


@pytest.mark.parametrize("time", ["2013-02-08T05:17:00-05:00", "2013-02-08T10:17:00.123456Z"])
def test_csv_of_times_and_numbers(time: str) -> None:
    """A status in CSV fits the declaration of its source."""
    header = "operator,run_number,origin,destination,scheduled_at,delay_min"
    (record,) = read(f"{header}\nUA,1018,EWR,IAH,{time},-2.50\n".encode(), FileFormat.CSV, STATUS)
    decoded: Any = msgspec.json.decode(record[1], type=STATUS.record_type)
    assert decoded.scheduled_at == dt.datetime.fromisoformat(time)
    assert (decoded.run_number, decoded.delay_min) == (1018, -2.5)


@pytest.mark.parametrize(("column", "value"), [("seats", "many"), ("seats", "1.5"), ("year_built", "nan")])
def test_csv_values_that_do_not_fit_their_type(column: str, value: str) -> None:
    """A value that does not fit the type of its column stays text, so that the API refuses or quarantines it."""
    ((_, record),) = read(f"vehicle_id,{column}\nN1,{value}\n".encode(), FileFormat.CSV, VEHICLES)
    assert json.loads(record)[column] == value
    with pytest.raises(msgspec.ValidationError, match=column):
        msgspec.json.decode(record, type=VEHICLES.record_type)


@given(rows=st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=2, max_size=2)))
def test_csv_keeps_every_text(rows: Sequence[Sequence[str]]) -> None:
    """Quotes, commas and line breaks are kept; only an empty value and a missing value are the same."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("a", "b"), *rows])
    expected = [{"a": a or None, "b": b or None} for a, b in rows]
    assert values(text.getvalue().encode(), FileFormat.CSV) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"a,b\n1,2\n1,2,3\n", "line 3: the row has 3 values for 2 columns"),
        (b"a,a\n1,2\n", "line 1: the header row must give each column a name"),
        (b"a,\n1,2\n", "line 1: the header row must give each column a name"),
        (b'a,b\n1,"2\n', "line 2"),
        (b"a,b\n1,\xff\n", "is not UTF-8"),
        (b"a\n" + b"x" * (MESSAGE_BYTES_MAX + 1), "line 2 is longer than"),
    ],
)
def test_malformed_csv(text: bytes, reason: str) -> None:
    assert reason in refusal(text, FileFormat.CSV)


# --- compression


def test_a_refused_file_of_another_encoding_prints_nothing_but_its_refusal() -> None:
    """Reading ends after the file was closed, since the refusal holds what was read from."""
    text = 'vehicle_id\na\n"b"c\n'.encode("utf-16")
    with io.BufferedReader(io.BytesIO(text)) as stream, pytest.raises(Refused, match="is not CSV, line 3") as refused:
        list(reading.records("f", stream, FileFormat.CSV, lambda: VEHICLES))
    del refused
    gc.collect()


def test_compressed_text() -> None:
    """Compression by gzip and zstd, with several concatenated members, for any text format."""
    parts = [b'{"a":1}\n', b'{"a":2}\n']
    compress = zstandard.ZstdCompressor().compress
    for file, data in (("f.gz", b"".join(map(gzip.compress, parts))), ("f.zst", b"".join(map(compress, parts)))):
        assert read(data, FileFormat.NDJSON, file=file) == [(1, parts[0]), (2, parts[1])]
        assert len(read(data, FileFormat.JSON, file=file)) == 2
        assert "cannot be decompressed" in refusal(data[:-3], FileFormat.NDJSON, file=file)
        assert "cannot be decompressed" in refusal(b"hello", FileFormat.NDJSON, file=file)


# --- the classification


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (b'{"run": "r1", "n": 1.50}\n', b'{"run":"r1","n":1.50,"classification_id":"r1"}\n'),
        (
            b'{"run": 12345678901234567890123}\n',
            b'{"run":12345678901234567890123,"classification_id":"12345678901234567890123"}\n',
        ),
        (b'{"classification_id": "old", "run": "new"}\n', b'{"classification_id":"new","run":"new"}\n'),
        (b'{"run": null}\n', None),
        (b'{"run": ""}\n', None),
        (b'{"run": [1]}\n', None),
        (b'{"other": 1}\n', None),
        (b"[1]\n", None),
        (b"nonsense\n", None),
    ],
)
def test_a_column_gives_the_classification(record: bytes, expected: bytes | None) -> None:
    """A text or number becomes the record's `classification_id`; a record without such a value is unchanged."""
    assert with_classification_id(record, "run") == (expected or record)
