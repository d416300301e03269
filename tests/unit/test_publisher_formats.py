"""Files of every format as JSON records: nothing lost, and what is wrong has its place."""

import csv
import datetime as dt
import gzip
import io
import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bronze.errors import Refused
from bronze.protocol.message import MESSAGE_BYTES_MAX
from bronze.publisher import FileFormat, reading
from bronze.publisher.formats import Record, format_of
from bronze.publisher.reading import classified
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
def test_a_name_tells_the_format(file: str, form: FileFormat | None) -> None:
    """The end of the name, in any case, below its compression; a name that ends in nothing known tells nothing."""
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
    """However it is laid out, an array's records, or those one after another, come out as they are, a line each."""
    text = json.dumps(records, indent=indent) if array else "\n".join(json.dumps(r, indent=indent) for r in records)
    out = read(text.encode(), FileFormat.JSON)
    assert [json.loads(record) for _, record in out] == records
    assert [record.count(b"\n") for _, record in out] == [1] * len(records)
    assert [number for number, _ in out] == list(range(1, len(records) + 1))


def test_json_keeps_every_digit() -> None:
    """Numbers keep their text: big integers and decimals do not pass through a float."""
    text = b'[ {"a": 123456789012345678901234567890, "b": 0.10, "c": 1E400,\n "d": "\xc3\xa9\\n"} ]'
    assert read(text, FileFormat.JSON) == [
        (1, b'{"a": 123456789012345678901234567890, "b": 0.10, "c": 1E400,  "d": "\xc3\xa9\\n"}\n')
    ]


def test_json_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A document of many times what is read at once; and a record that no message can take ends it with its number."""
    record = {"a": "x" * 300_000, "b": "é" * 100}
    many = [record | {"n": n} for n in range(20)]
    assert values(json.dumps(many, ensure_ascii=False).encode(), FileFormat.JSON) == many
    much = json.dumps([*many, {"a": "x" * MESSAGE_BYTES_MAX}, *many]).encode()
    assert refusal(much, FileFormat.JSON).startswith(f"f, record 21 is longer than {MESSAGE_BYTES_MAX} bytes")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b'[{"a":1} {"a":2}]', "after 1 records: a comma is missing"),
        (b'[{"a":1},]', "after 1 records"),
        (b'[{"a":1}', "after 1 records: it ends before its array does"),
        (b'[{"a":1}] x', "there is more after the end"),
        (b'[{"a":NaN}]', "after 0 records: NaN is no JSON"),
        (b'{"a":1}\n{"a"}', "after 1 records"),
        (b'[{"a":"\xff"}]', "is not UTF-8"),
        (b"[" * 100_000, "is not JSON after 0 records"),
    ],
)
def test_what_is_no_json(text: bytes, told: str) -> None:
    assert told in refusal(text, FileFormat.JSON)


# --- CSV


def test_csv_is_typed_as_declared() -> None:
    """A declared column has its type, an empty value is null, what is not declared is text."""
    text = 'vehicle_id,year_built,seats,engine,note,speed\r\nN1, 1999 ,007,,"a, ""b""\r\nc",1.5\r\n\r\n2,,-0,,,\r\n'
    assert values(text.encode("utf-8-sig"), FileFormat.CSV, VEHICLES) == [
        {"vehicle_id": "N1", "year_built": 1999, "seats": 7, "engine": None, "note": 'a, "b"\r\nc', "speed": "1.5"},
        {"vehicle_id": "2", "year_built": None, "seats": 0, "engine": None, "note": None, "speed": None},
    ]
    assert [number for number, _ in read(text.encode(), FileFormat.CSV)] == [2, 5]


@pytest.mark.parametrize("time", ["2013-02-08T05:17:00-05:00", "2013-02-08T10:17:00.123456Z"])
def test_csv_of_times_and_numbers(time: str) -> None:
    """What a status needs passes the declaration as it is written in CSV."""
    header = "operator,run_number,origin,destination,scheduled_at,delay_min"
    (record,) = read(f"{header}\nUA,1018,EWR,IAH,{time},-2.50\n".encode(), FileFormat.CSV, STATUS)
    decoded: Any = msgspec.json.decode(record[1], type=STATUS.record_type)
    assert decoded.scheduled_at == dt.datetime.fromisoformat(time)
    assert (decoded.run_number, decoded.delay_min) == (1018, -2.5)


@pytest.mark.parametrize(("column", "value"), [("seats", "many"), ("seats", "1.5"), ("year_built", "nan")])
def test_csv_of_another_type(column: str, value: str) -> None:
    """A value that is not what its column declares stays what it is, for the API to refuse or to set aside."""
    ((_, record),) = read(f"vehicle_id,{column}\nN1,{value}\n".encode(), FileFormat.CSV, VEHICLES)
    assert json.loads(record)[column] == value
    with pytest.raises(msgspec.ValidationError, match=column):
        msgspec.json.decode(record, type=VEHICLES.record_type)


@given(rows=st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=2, max_size=2)))
def test_csv_keeps_every_text(rows: Sequence[Sequence[str]]) -> None:
    """Quotes, commas, line ends and all; only that an empty value and no value are one."""
    out = io.StringIO(newline="")
    csv.writer(out).writerows([("a", "b"), *rows])
    expected = [{"a": a or None, "b": b or None} for a, b in rows]
    assert values(out.getvalue().encode(), FileFormat.CSV) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"a,b\n1,2\n1,2,3\n", "line 3: it has 3 values for 2 columns"),
        (b"a,a\n1,2\n", "line 1: the header row has to name each column"),
        (b"a,\n1,2\n", "line 1: the header row has to name each column"),
        (b'a,b\n1,"2\n', "line 2"),
        (b"a,b\n1,\xff\n", "is not UTF-8"),
        (b"a\n" + b"x" * (MESSAGE_BYTES_MAX + 1), "line 2 is longer than"),
    ],
)
def test_what_is_no_csv(text: bytes, told: str) -> None:
    assert told in refusal(text, FileFormat.CSV)


# --- columns

TIME = dt.datetime(2013, 2, 8, 5, 17, 0, 123456, tzinfo=dt.UTC)
ZONED = pa.array([TIME, None]).cast(pa.timestamp("us", "America/New_York"))
COLUMNS: dict[str, tuple[pa.Array, object]] = {
    "big": (pa.array([2**64 - 1, None], pa.uint64()), 2**64 - 1),
    "decimal": (pa.array([Decimal("12345678901234567890.10"), None]), "12345678901234567890.10"),
    "zoned": (ZONED, "2013-02-08T05:17:00.123456Z"),
    "nanoseconds": (
        pa.array([1_360_300_620_123_456_789, None], pa.timestamp("ns", "UTC")),
        "2013-02-08T05:17:00.123456789Z",
    ),
    "naive": (pa.array([TIME.replace(tzinfo=None), None], pa.timestamp("ms")), "2013-02-08T05:17:00.123"),
    "date": (pa.array([TIME.date(), None]), "2013-02-08"),
    "time": (pa.array([TIME.time(), None]), "05:17:00.123456"),
    "duration": (pa.array([dt.timedelta(seconds=1), None], pa.duration("ms")), 1000),
    "binary": (pa.array([b"\x00\xff", None]), "AP8="),
    "word": (pa.array(["é\n", None]).dictionary_encode(), "é\n"),
    "flag": (pa.array([True, None]), True),
    "float": (pa.array([0.1, None]), Decimal("0.1")),
    "infinite": (pa.array([float("-inf"), None]), "-Infinity"),
    "nothing": (pa.nulls(2), None),
    "list": (pa.array([[ZONED[0].as_py(), None], None], pa.list_(ZONED.type)), ["2013-02-08T05:17:00.123456Z", None]),
    "struct": (pa.array([{"a": {"b": [Decimal("1.50")]}}, None]), {"a": {"b": ["1.50"]}}),
    "map": (pa.array([[("k", dt.date(2013, 2, 8))], None], pa.map_(pa.string(), pa.date32())), [["k", "2013-02-08"]]),
}
TABLE = pa.table({name: column for name, (column, _) in COLUMNS.items()})


def parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def arrow(table: pa.Table, opening: Any) -> bytes:
    out = io.BytesIO()
    with opening(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


FILES = {
    "parquet": (parquet, FileFormat.PARQUET),
    "arrow file": (lambda table: arrow(table, pa.ipc.new_file), FileFormat.ARROW),
    "arrow stream": (lambda table: arrow(table, pa.ipc.new_stream), FileFormat.ARROW),
}


@pytest.mark.parametrize("file", FILES)
def test_columns_become_records(file: str) -> None:
    """Each type has a form in JSON that loses nothing, nulls are null, and rows are numbered from 1."""
    written, form = FILES[file]
    first, second = values(written(TABLE), form)
    assert first == {name: value for name, (_, value) in COLUMNS.items()}
    assert second == dict.fromkeys(COLUMNS)
    assert [number for number, _ in read(written(TABLE), form)] == [1, 2]


@pytest.mark.parametrize("file", FILES)
def test_many_rows_come_in_order(file: str) -> None:
    """More rows than are objects at once."""
    written, form = FILES[file]
    table = pa.table({"n": pa.array(range(2_500))})
    assert [record["n"] for record in values(written(table), form)] == list(range(2_500))


def test_decimals_are_what_is_declared() -> None:
    """A decimal column of a field that is declared as a number is sent as one, where that is exact."""
    table = pa.table(
        {"delay_min": pa.array([Decimal("1.50")]), "run_number": pa.array([Decimal(7)]), "x": [Decimal(1)]}
    )
    assert values(parquet(table), FileFormat.PARQUET, STATUS) == [
        {"delay_min": Decimal("1.5"), "run_number": 7, "x": "1"}
    ]


def test_what_is_no_columnar_file() -> None:
    """Something else, a part of one, two columns of one name: each is said, with the file."""
    whole = parquet(TABLE)
    assert "is no parquet file that can be read" in refusal(whole[:100], FileFormat.PARQUET)
    assert "is no parquet file that can be read" in refusal(whole[:100] + whole[-8:], FileFormat.PARQUET)
    assert "is no arrow file that can be read" in refusal(b"hello", FileFormat.ARROW)
    assert "is no arrow file that can be read" in refusal(arrow(TABLE, pa.ipc.new_stream)[:3000], FileFormat.ARROW)
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    assert "two columns of one name" in refusal(parquet(twice), FileFormat.PARQUET)
    large = pa.table({"a": ["x" * MESSAGE_BYTES_MAX]})
    assert "record 1 is longer than" in refusal(parquet(large), FileFormat.PARQUET)


# --- compression


def test_compressed_text() -> None:
    """By gzip and zstd, several members one after another, of any text."""
    parts = [b'{"a":1}\n', b'{"a":2}\n']
    compress = zstandard.ZstdCompressor().compress
    for file, data in (("f.gz", b"".join(map(gzip.compress, parts))), ("f.zst", b"".join(map(compress, parts)))):
        assert read(data, FileFormat.NDJSON, file=file) == [(1, parts[0]), (2, parts[1])]
        assert len(read(data, FileFormat.JSON, file=file)) == 2
        assert "cannot be decompressed" in refusal(data[:-3], FileFormat.NDJSON, file=file)
        assert "cannot be decompressed" in refusal(b"hello", FileFormat.NDJSON, file=file)
        assert "unpack it" in refusal(data, FileFormat.PARQUET, file=file)


# --- the run


@pytest.mark.parametrize(
    ("record", "out"),
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
def test_a_column_names_the_run(record: bytes, out: bytes | None) -> None:
    """A text or number becomes the record's `classification_id`; a record without one stays as it is."""
    assert classified(record, "run") == (out or record)
