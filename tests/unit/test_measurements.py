"""What is measured of an object is what its rows say, and the monitors report it once."""

import datetime as dt
import math
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from bronze.consumer import monitors
from bronze.consumer.monitors import Monitors
from bronze.objects import measurements
from bronze.objects.encoder import Encoded, encode_object
from bronze.objects.file_writer import ROW_GROUP_ROWS, FileWriter
from bronze.objects.measurements import FIELDS_MAX, FieldMeasurement, Measurements, measured_fields
from bronze.protocol.chain import reconcile
from bronze.protocol.lane import Lane, lane_subject
from bronze.protocol.message import Message, Part
from bronze.records import sources
from bronze.records.columns import object_schema
from bronze.records.expectations import number
from bronze.records.sources import CANARY, Source
from bronze.telemetry.instruments import Instruments
from bronze.telemetry.signals import OTHER_PRINCIPAL
from tests import factories

DECLARED = """
[things]
description = "d"
expect = { every = "10m", records_per_hour_min = 100 }
fields = [
    { name = "name", type = "string", description = "d", expect = { values = ["a", "b"], distinct_max = 2 } },
    { name = "size", type = "int64", description = "d", expect = { min = 0, max = 100, null_share_max = 0.1 } },
    { name = "share", type = "float64", description = "d" },
    { name = "price", type = "decimal128(8, 2)", description = "d" },
    { name = "at", type = "timestamp", description = "d", expect = { min = 2013-01-01T00:00:00Z } },
    { name = "day", type = "date32", description = "d" },
    { name = "ok", type = "bool", description = "d" },
    { name = "more", type = "list<int64>", description = "d" },
]
"""
THINGS = sources.parse(DECLARED, "test")["things"]
LANE = Lane("things", 0, "20261124T120000000")
UTC = dt.UTC

values = {
    "name": st.sampled_from(["a", "b", "c"]),
    "size": st.integers(-5, 200),
    "share": st.floats(allow_infinity=False, width=32) | st.just(math.nan),
    "price": st.decimals(-1000, 1000, places=2, allow_nan=False),
    "at": st.datetimes(timezones=st.just(UTC)),
    "day": st.dates(),
    "ok": st.booleans(),
    "more": st.lists(st.none() | st.integers(0, 9), max_size=3),
}
rows = st.fixed_dictionaries({name: st.none() | value for name, value in values.items()})


def measured(source: Source, columns: Mapping[str, list[Any]], batches: int = 1) -> Mapping[str, FieldMeasurement]:
    """The measurements of a file with these columns; every other column is empty. A column with NaN is written as the
    encoder does it: without statistics.
    """
    schema = object_schema(source)
    count = len(next(iter(columns.values())))
    arrays = [pa.array(columns.get(field.name, [None] * count), field.type) for field in schema]
    nullable = pa.schema([field.with_nullable(True) for field in schema])
    nan = frozenset(n for n, v in columns.items() if any(isinstance(x, float) and math.isnan(x) for x in v))
    writer, measuring = FileWriter(nullable, None, nan), Measurements(source, nullable)
    table = pa.Table.from_arrays(arrays, schema=nullable)
    for batch in table.to_batches(max_chunksize=max(1, -(-count // batches))):
        writer.add(batch)
        measuring.add(batch)
    body, metadata = writer.finish({})
    return measuring.finish(metadata, body)


@settings(max_examples=60, deadline=None)
@given(st.lists(rows, min_size=1, max_size=40), st.integers(1, 3))
def test_measurements_are_those_of_the_rows(records: list[dict[str, Any]], batches: int) -> None:
    columns = {name: [record[name] for record in records] for name in values}
    found = measured(THINGS, columns, batches)
    for name, column in columns.items():
        present = [value for value in column if value is not None]
        nan = any(isinstance(value, float) and math.isnan(value) for value in present)
        assert (found[name].records, found[name].nulls) == (len(column), len(column) - len(present))
        ordered = bool(present) and name in {"size", "share", "price", "at", "day"} and not nan
        bounds = (number(min(present)), number(max(present))) if ordered else (None, None)
        assert (found[name].least, found[name].greatest) == pytest.approx(bounds), name
        has_dictionary = bool(present) and name in {"name", "size", "share", "price", "day"}
        if not has_dictionary:
            assert found[name].distinct is None, name
        elif not nan:
            different = {(value, math.copysign(1, value)) for value in present} if name == "share" else {*present}
            assert found[name].distinct == len(different), name
    assert found["name"].unexpected == columns["name"].count("c")


def test_an_object_with_several_row_groups_has_at_least_so_many_different_values() -> None:
    size = ROW_GROUP_ROWS + 100
    found = measured(THINGS, {"size": list(range(size)), "share": [1.0] * size}, batches=4)
    assert (found["size"].least, found["size"].greatest, found["size"].distinct) == (0, size - 1, ROW_GROUP_ROWS)
    assert found["share"].distinct == 1


def test_the_size_of_a_dictionary_is_read_from_its_page_also_without_compression() -> None:
    sink = pa.BufferOutputStream()
    table = pa.table({"a": [f"{n % 300}" for n in range(5000)], "b": [True] * 5000})
    for compression in ("none", "zstd"):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression=compression)
        body = sink.getvalue().to_pybytes()
        group = pq.ParquetFile(pa.BufferReader(body)).metadata.row_group(0)
        assert [measurements.dictionary_size(body, group.column(number)) for number in (0, 1)] == [300, None]


def test_an_object_breaks_the_expectations_that_it_does_not_meet() -> None:
    """On the limit, it meets them."""
    expected = THINGS.expectations.fields
    at = dt.datetime(2013, 1, 1, tzinfo=UTC)
    met = measured(THINGS, {"size": [0, 100, None], "name": ["a", "b", None], "at": [at] * 3})
    assert [met[name].broken(expected[name]) for name in ("size", "name", "at")] == [[], [], []]
    late = at - dt.timedelta(microseconds=1)
    broken = measured(THINGS, {"size": [-1, 101, None], "name": ["a", "b", "c"], "at": [at, late, None]})
    assert broken["size"].broken(expected["size"]) == ["min", "max"]
    assert broken["name"].broken(expected["name"]) == ["values", "distinct_max"]
    assert broken["at"].broken(expected["at"]) == ["min"]


def test_the_measured_fields_are_bounded() -> None:
    """Those with expectations first; none of the canary."""
    each = ", ".join(f'{{ name = "f{n}", type = "int64", description = "d" }}' for n in range(FIELDS_MAX + 10))
    last = '{ name = "last", type = "int64", description = "d", expect = { min = 0 } }'
    wide = sources.parse(f'[wide]\ndescription = "d"\nfields = [{each}, {last}]', "test")["wide"]
    names = [field.name for field in measured_fields(wide)]
    assert (len(names), names[:2]) == (FIELDS_MAX, ["last", "f0"])
    assert measured_fields(sources.with_canary({})[CANARY]) == []


# --- reported


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def reporting(reader: InMemoryMetricReader) -> Monitors:
    instruments = Instruments.create(MeterProvider([reader]).get_meter("test"))
    return Monitors(sources.with_canary({"things": THINGS}), instruments)


def points(reader: InMemoryMetricReader, *names: str) -> dict[tuple[str, ...], float]:
    """The values of metrics by their names and attributes."""
    data = reader.get_metrics_data()
    return {
        (metric.name.removeprefix("bronze."), *map(str, (point.attributes or {}).values())): point.value  # type: ignore[union-attr]
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
        if metric.name in names
    }


def stored(*records: bytes, principals: tuple[str, ...] = ("",)) -> Encoded:
    """An object with these records, of each principal."""
    messages = []
    for sequence, principal in enumerate(principals, 1):
        accepted = factories.accepted(
            submission_id=f"s{sequence}",
            source="things",
            principal=principal,
            received_at=f"2026-11-24T12:34:{sequence % 60:02}.000000+00:00",
        )
        headers = Part(accepted, 1, 1, 0, len(records)).headers()
        subject = lane_subject("things", 0, f"s{sequence}")
        payload = b"[" + b",".join(records) + b"]"
        messages.append(Message(sequence, subject, "2026-11-24T12:34:56.123456789Z", headers, payload))
    return encode_object(THINGS, LANE, "key", reconcile(LANE, messages, {}), "")


def test_what_is_expected_is_reported_from_the_start(reporting: Monitors, reader: InMemoryMetricReader) -> None:
    """And each count begins at 0."""
    reporting.report()
    limits = points(reader, "bronze.expectation.limit", "data.staleness.sla.threshold")
    assert limits == {
        ("data.staleness.sla.threshold", "things"): 600,
        ("expectation.limit", "things", "records_per_hour_min"): 100,
        ("expectation.limit", "things", "name", "distinct_max"): 2,
        ("expectation.limit", "things", "size", "min"): 0,
        ("expectation.limit", "things", "size", "max"): 100,
        ("expectation.limit", "things", "size", "null_share_max"): 0.1,
        ("expectation.limit", "things", "at", "min"): 1_356_998_400,
    }
    counts = points(reader, "bronze.field.values", "bronze.expectation.broken")
    assert set(counts.values()) == {0}
    assert {key[1:] for key in counts if key[0] == "expectation.broken"} == {
        *(("things", "name", name) for name in ("values", "distinct_max")),
        *(("things", "size", name) for name in ("min", "max")),
        ("things", "at", "min"),
    }
    assert len([key for key in counts if key[0] == "field.values"]) == 2 * len(THINGS.fields)


def test_counts_add_up_over_objects_and_bounds_are_those_of_the_last(
    reporting: Monitors, reader: InMemoryMetricReader
) -> None:
    for record in (b'{"size": 5, "name": "a"}', b'{"size": 101}', b'{"size": 7, "name": "b"}'):
        reporting.add(stored(record, b"{}"))
        reporting.report()
    found = points(
        reader,
        *("bronze.field.values", "bronze.field.min", "bronze.field.max", "bronze.field.distinct"),
        "bronze.expectation.broken",
    )
    assert found["field.values", "things", "size", "present"] == found["field.values", "things", "size", "null"] == 3
    assert found["field.values", "things", "name", "null"] == 4
    assert (found["field.min", "things", "size"], found["field.max", "things", "size"]) == (7, 7)
    assert found["field.distinct", "things", "name"] == 1
    assert found["expectation.broken", "things", "size", "max"] == 1
    assert found["expectation.broken", "things", "size", "min"] == 0


def test_principals_are_bounded(
    reporting: Monitors, reader: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ones have their names, and no principal is none."""
    monkeypatch.setattr(monitors, "PRINCIPALS_MAX", 2)
    reporting.add(stored(b"{}", b"{}", principals=("", "amy", "bob", "amy", "eve", "dan")))
    reporting.report()
    records = {key[2]: value for key, value in points(reader, "bronze.principal.records").items()}
    newest = {key[2]: value for key, value in points(reader, "bronze.principal.newest.time").items()}
    assert Counter(records) == {"amy": 4, "bob": 2, OTHER_PRINCIPAL: 4}
    first = dt.datetime(2026, 11, 24, 12, 34, tzinfo=UTC).timestamp()
    assert newest == {"amy": first + 4, "bob": first + 3, OTHER_PRINCIPAL: first + 6}


def test_decimals_and_times_are_numbers() -> None:
    assert number(Decimal("12.50")) == 12.5
    assert number(dt.date(1970, 1, 2)) == number(dt.datetime(1970, 1, 2, tzinfo=UTC)) == 86_400
