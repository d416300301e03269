"""Parquet and Arrow files are sent as Arrow streams: with the result of the same data sent over HTTP."""

import datetime as dt
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bronze.errors import Refused
from bronze.publisher import Plan, checking, columnar_files
from bronze.publisher.batches import Batch, batches_of
from bronze.publisher.files import open_file
from bronze.publisher.formats import FileFormat
from bronze.records import sources
from bronze.records.columnar_intake import ColumnarIntake
from bronze.records.columnar_reading import STREAM_END
from bronze.records.media import ColumnarType
from bronze.records.sources import Source

SOURCES = sources.built_in()
VEHICLES, RESULTS = SOURCES["vehicles"], SOURCES["results"]
TIME = dt.datetime(2013, 2, 8, 5, 17, 0, 123456, tzinfo=dt.UTC)
VIEWS = pa.array(["first of two texts", "second of two texts"], pa.string_view())
#: One column of each kind, with two rows.
COLUMNS = {
    "big": pa.array([2**64 - 1, None], pa.uint64()),
    "decimal": pa.array([Decimal("12345678901234567890.10"), None]),
    "zoned": pa.array([TIME, None], pa.timestamp("us", "America/New_York")),
    "nanoseconds": pa.array([1_360_300_620_123_456_789, None], pa.timestamp("ns", "UTC")),
    "naive": pa.array([TIME.replace(tzinfo=None), None], pa.timestamp("ms")),
    "date": pa.array([TIME.date(), None]),
    "duration": pa.array([dt.timedelta(seconds=1), None], pa.duration("ms")),
    "binary": pa.array([b"\x00\xff", None]),
    "float": pa.array([0.1, float("-inf")], pa.float32()),
    "half": pa.array([0.5, None], pa.float16()),
    "nothing": pa.nulls(2),
    "list": pa.array([[TIME, None], None], pa.list_(pa.timestamp("us", "UTC"))),
    "struct": pa.array([{"a": {"b": [Decimal("1.50")]}}, None]),
    "map": pa.array([[("k", dt.date(2013, 2, 8))], None], pa.map_(pa.string(), pa.date32())),
    "uuid": pa.array([b"\x00" * 16, None], pa.uuid()),
    "dictionary": pa.array(["é\n", None]).dictionary_encode(),
}
#: Of Arrow only.
ENCODED = {
    "view": VIEWS,
    "category": pa.DictionaryArray.from_arrays(pa.array([1, 0], pa.uint32()), VIEWS),
    "runs": pa.RunEndEncodedArray.from_arrays(pa.array([1, 2], pa.int32()), VIEWS),
    "list view": pa.array([["a"], None], pa.list_view(pa.string_view())),
    "list of categories": pa.ListArray.from_arrays(
        pa.array([0, 1, 2], pa.int32()), VIEWS.cast(pa.string()).dictionary_encode()
    ),
}


def write(path: Path, table: pa.Table) -> Path:
    match path.suffix:
        case ".parquet":
            pq.write_table(table, path)
        case ".arrow":
            with pa.ipc.new_file(str(path), table.schema) as writer:
                writer.write_table(table)
        case _:
            path.write_bytes(stream(table))
    return path


def stream(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def batches(file: Path, **options: Any) -> list[Batch]:
    with open_file(str(file)) as opened:
        return list(batches_of(opened, Plan("vehicles", **options), lambda: VEHICLES))


def refusal(file: Path, **options: Any) -> Refused:
    with pytest.raises(Refused) as refused:
        batches(file, **options)
    return refused.value


def read_back(body: bytes) -> pa.Table:
    with pa.ipc.open_stream(body) as opened:
        return opened.read_all()


def rows(body: bytes, source: Source) -> list[dict[str, Any]]:
    """The rows that the API makes of a stream."""
    spool = io.BytesIO()
    intake: ColumnarIntake | None = None
    with pa.ipc.open_stream(body) as opened:
        intake = ColumnarIntake(source, opened.schema, spool)
        for batch in opened:
            intake.add(batch)
    read = intake.finish()
    return [row for part in read.slices for row in _rows(spool.getvalue()[part.start : part.end], part.zstd)]


def _rows(payload: bytes, zstd: bool) -> Iterator[dict[str, Any]]:  # noqa: FBT001  of a slice
    content = zstandard.decompress(payload) if zstd else payload
    yield from read_back(content).to_pylist()


# --- the same result


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".arrows"])
def test_a_file_has_the_result_of_its_table_over_http(suffix: str, tmp_path: Path) -> None:
    """For columns of each kind, nested, in dictionaries, in runs and in views, whatever the size of the submissions."""
    columns = COLUMNS | ({} if suffix == ".parquet" else ENCODED)
    table = pa.table({"vehicle_id": pa.array([b"N1", b"N2"]), "seats": [149.0, None], **columns})
    expected = rows(stream(table), VEHICLES)
    assert [row["seats"] for row in expected] == [149, None]
    assert json.loads(expected[0]["_payload"]).keys() == columns.keys()
    file = write(tmp_path / f"f{suffix}", table)
    for options in ({}, {"records_max": 1}, {"bytes_max": 1}):
        sent = batches(file, **options)
        assert {batch.media_type for batch in sent} == {ColumnarType.ARROW_STREAM}
        assert [number for batch in sent for number in batch.numbers] == [1, 2]
        assert [row for batch in sent for row in rows(batch.body, VEHICLES)] == expected


@pytest.mark.parametrize(
    ("source", "field", "column", "stored"),
    [
        (VEHICLES, "vehicle_id", pa.array([b"N14228"], pa.binary()), ["N14228"]),
        (VEHICLES, "seats", pa.array([149.0, None]), [149, None]),
        (VEHICLES, "vehicle_id", ENCODED["category"], ["second of two texts", "first of two texts"]),
        (VEHICLES, "vehicle_id", ENCODED["runs"], ["first of two texts", "second of two texts"]),
        (RESULTS, "delay_min", pa.array([0.5], pa.float16()), [0.5]),
        (RESULTS, "arrived_at", pa.array([TIME], pa.timestamp("us", "Asia/Tokyo")), [TIME]),
    ],
)
def test_declared_columns_are_converted_by_the_api(
    source: Source, field: str, column: pa.Array, stored: list[object], tmp_path: Path
) -> None:
    required = {"vehicle_id": ["N1"] * len(column)} if source is VEHICLES else {"arrived_at": [TIME] * len(column)}
    file = write(tmp_path / "f.arrow", pa.table({**required, field: column}))
    (batch,) = batches(file)
    assert [row[field] for row in rows(batch.body, source)] == stored
    assert checking.check(Plan(source.name), source, [str(file)]).all_valid


def test_digits_are_refused_rather_than_lost(tmp_path: Path) -> None:
    """A decimal in a column of floats, as over HTTP; in an undeclared column all of its digits are kept."""
    decimal = pa.array([Decimal("12345678901234567890.123")])
    file = write(tmp_path / "f.parquet", pa.table({"arrived_at": [TIME], "distance_km": decimal, "exact": decimal}))
    (batch,) = batches(file)
    with pytest.raises(Refused, match="Field distance_km: Expected double, got decimal128") as refused:
        rows(batch.body, RESULTS)
    assert refused.value.status == 422
    findings = checking.check(Plan("results"), RESULTS, [str(file)])
    assert findings.problems == [f"{file}, record 1, field distance_km: Expected double, got decimal128(23, 3)"]
    (row,) = rows(stream(pa.table({"arrived_at": [TIME], "exact": decimal})), RESULTS)
    assert row["_payload"] == '{"exact":"12345678901234567890.123"}'


# --- submissions


@given(
    sizes=st.lists(st.integers(0, 400), min_size=1, max_size=30),
    records_max=st.integers(1, 40),
    bytes_max=st.integers(1, 4_000),
)
def test_submissions_hold_every_row_once_and_within_the_bounds(
    sizes: list[int], records_max: int, bytes_max: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    texts = ["x" * size for size in sizes]
    file = write(tmp_path_factory.mktemp("f") / "f.arrow", pa.table({"vehicle_id": texts}))
    sent = batches(file, records_max=records_max, bytes_max=bytes_max)
    assert [text for batch in sent for text in read_back(batch.body).column(0).to_pylist()] == texts
    frame_bytes_max = 600  # schema and end of a stream
    for batch in sent:
        assert batch.records <= records_max
        assert batch.records == 1 or len(batch.body) <= bytes_max + frame_bytes_max
    assert sum(batch.bytes_read for batch in sent) <= file.stat().st_size


def test_the_parts_of_a_dictionary_do_not_repeat_it(tmp_path: Path) -> None:
    """A submission contains its own values only."""
    values = pa.array(["x" * 10_000, *map(str, range(99))])
    for column in (
        pa.DictionaryArray.from_arrays(pa.array([*range(1, 100)]), values),
        values.cast(pa.string_view()).slice(1),
    ):
        file = write(tmp_path / "f.arrow", pa.table({"vehicle_id": column}))
        sent = batches(file, records_max=10)
        assert len(sent) == 10
        assert max(len(batch.body) for batch in sent) < 1_000


def test_a_file_of_many_small_batches_becomes_one(tmp_path: Path) -> None:
    sink = io.BytesIO()
    table = pa.table({"vehicle_id": list(map(str, range(100)))} | {name: pa.nulls(100) for name in "ab"})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    (tmp_path / "f.arrows").write_bytes(sink.getvalue())
    (batch,) = batches(tmp_path / "f.arrows")
    assert read_back(batch.body) == table
    with pa.ipc.open_stream(batch.body) as opened:
        assert len(list(opened)) == 1


PRINT_BODIES = """
import sys
from bronze.publisher import columnar_files, FileFormat
bodies = columnar_files.bodies("f", open(sys.argv[1], "rb"), FileFormat.PARQUET, records_max=3, bytes_max=10**6)
sys.stdout.buffer.write(b"".join(body for _, body in bodies))
"""


def test_a_file_always_has_the_same_submissions(tmp_path: Path) -> None:
    """Also where nulls leave memory unused: a different body under the same key would be refused."""
    nulls = {
        name: pa.concat_arrays([pa.nulls(2, column.type), column] * 4)
        for name, column in COLUMNS.items()
        if name != "uuid"
    }
    file = write(tmp_path / "f.parquet", pa.table(nulls))
    outputs = [
        subprocess.run(
            [sys.executable, "-c", PRINT_BODIES, str(file)],
            env=os.environ | {"MALLOC_PERTURB_": fill, "ARROW_DEFAULT_MEMORY_POOL": "system"},
            capture_output=True,
            check=True,
        ).stdout
        for fill in ("85", "170")
    ]
    assert outputs[0] == outputs[1] != b""


# --- files that cannot be read


def test_unreadable_files(tmp_path: Path) -> None:
    """Other content, an incomplete file and two columns with the same name are refused, each with the file's name."""
    table = pa.table(COLUMNS)
    complete = write(tmp_path / "good.parquet", table).read_bytes()
    streamed = stream(table)
    for name, content, reason in [
        ("a.parquet", complete[:100], "is not a readable parquet file"),
        ("b.parquet", complete[:100] + complete[-8:], "is not a readable parquet file"),
        ("c.arrow", b"hello", "is not a readable arrow file"),
        ("d.arrows", streamed[:3000], "is not a readable arrow file"),
        ("e.arrows", streamed[: -len(STREAM_END)], "end-of-stream marker is missing"),
        ("f.arrows", streamed * 2, "more bytes follow"),
        ("g.parquet.gz", complete, "decompress the file first"),
    ]:
        (tmp_path / name).write_bytes(content)
        refused = refusal(tmp_path / name)
        assert (refused.status, refused.detail.startswith(str(tmp_path / name))) == (400, True)
        assert reason in refused.detail
    same = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    assert "two columns with the same name" in refusal(write(tmp_path / "h.parquet", same)).detail


def test_a_stream_may_end_with_the_bytes_of_a_marker(tmp_path: Path) -> None:
    """The last value of a stream that was cut off is not taken for its end; older writers have a shorter marker."""
    table = pa.table({"vehicle_id": ["N1"], "n": [int.from_bytes(STREAM_END, "little")]})
    cut = stream(table)[: -len(STREAM_END)]
    assert cut.endswith(STREAM_END)
    (tmp_path / "cut.arrows").write_bytes(cut)
    assert "marker is missing" in refusal(tmp_path / "cut.arrows").detail
    sink = io.BytesIO()
    old = pa.ipc.IpcWriteOptions(use_legacy_format=True, metadata_version=pa.ipc.MetadataVersion.V4)
    with pa.ipc.new_stream(sink, table.schema, options=old) as writer:
        writer.write_table(table)
    (tmp_path / "old.arrows").write_bytes(sink.getvalue())
    (batch,) = batches(tmp_path / "old.arrows")
    assert read_back(batch.body) == table


def test_quarantine_is_refused(tmp_path: Path) -> None:
    """The API accepts or refuses a columnar body as a whole."""
    file = write(tmp_path / "f.parquet", pa.table({"vehicle_id": ["N1"]}))
    refused = refusal(file, on_invalid="quarantine")
    assert (refused.status, "--on-invalid quarantine works for NDJSON, JSON and CSV" in refused.detail) == (400, True)


# --- the check of a dry run


def test_a_dry_run_names_each_row_that_the_api_would_refuse(tmp_path: Path) -> None:
    table = pa.table(
        {
            "vehicle_id": pa.array([b"N1", None, b"N3", b"\xff", b"N5", b"x" * 2**20]),
            "seats": [1.0, 1.5, 2.5, 3.0, None, 5.0],
            "classification_id": ["r", "r", "r", "r", "", "r"],
        }
    )
    file = write(tmp_path / "f.parquet", table)
    findings = checking.check(Plan("vehicles", records_max=4), VEHICLES, [str(file)])
    assert [problem.removeprefix(f"{file}, record ").partition(":")[0] for problem in findings.problems] == [
        "2, field vehicle_id",
        "3, field seats",
        "4, field vehicle_id",
        "5, field classification_id",
        "6",
    ]
    assert (findings.records, findings.invalid) == (6, 5)


# --- the classification


@pytest.mark.parametrize(
    ("column", "ids"),
    [
        (pa.array(["a", "", None]), ["a", "own", None]),
        (pa.array([7, None, 2**60]), ["7", "own", str(2**60)]),
        (pa.array([True, False, None]), ["true", "false", None]),
        (pa.array(["a", "b", None]).dictionary_encode(), ["a", "b", None]),
        (pa.array([dt.date(2013, 1, 1), None, None]), ["2013-01-01", "own", None]),
        (pa.array([[1], None, [2]]), [None, "own", None]),
    ],
)
def test_a_column_gives_the_classification_as_text(column: pa.Array, ids: list[str | None], tmp_path: Path) -> None:
    """Where it has no value, the record's own classification stays."""
    table = pa.table({"vehicle_id": ["1", "2", "3"], "run": column, "classification_id": [None, "own", None]})
    (batch,) = batches(write(tmp_path / "f.arrow", table), classification_column="run")
    assert [row["classification_id"] for row in rows(batch.body, VEHICLES)] == ids
    (batch,) = batches(write(tmp_path / "f.arrow", table.drop(["classification_id"])), classification_column="run")
    assert [row["classification_id"] for row in rows(batch.body, VEHICLES)] == [None if i == "own" else i for i in ids]
    assert pc.all(pc.equal(read_back(batch.body).column("vehicle_id"), table.column("vehicle_id"))).as_py()


# --- types that cannot be read

#: Of the units of Arrow's intervals, as its schema has them (format/Schema.fbs), those for which PyArrow has no class.
INTERVALS = {"month_interval": b"\0", "day_time_interval": b"\1"}


def schema_with(kind: pa.DataType, interval: str) -> pa.Schema:
    """A column `x` of this type, whose interval is replaced by another one."""
    stream = io.BytesIO()
    pa.ipc.new_stream(stream, pa.schema({"x": kind})).close()
    body = stream.getvalue()
    for at in (at for at, byte in enumerate(body) if byte == 2):
        with suppress(pa.ArrowException, OSError):
            found = pa.ipc.open_stream(body[:at] + INTERVALS[interval] + body[at + 1 :]).schema
            if interval in str(found.field("x").type):
                return found
    raise AssertionError(f"no byte of the schema makes it {interval}")


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize(
    "kind",
    [
        pa.month_day_nano_interval(),
        pa.list_(pa.month_day_nano_interval()),
        pa.struct({"a": pa.map_(pa.string(), pa.month_day_nano_interval())}),
    ],
    ids=str,
)
def test_intervals_that_cannot_be_read_are_refused(kind: pa.DataType, interval: str) -> None:
    """The API reads by the same functions: see the corpus of tests/fuzz."""
    stream = io.BytesIO()
    pa.ipc.new_stream(stream, schema_with(kind, interval)).close()
    stream.seek(0)
    with (
        pytest.raises(Refused, match=f"column x is .*{interval}.*, which cannot be read: send intervals of months"),
        columnar_files.columns("f.arrows", stream, FileFormat.ARROW),
    ):
        pass
