"""Columnar bodies: the rows that batches become, their refusals, and how rows are packed into messages."""

import datetime as dt
import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from io import BytesIO
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.errors import Refused
from bronze.records import sources
from bronze.records.arrow_json import json_values
from bronze.records.columnar_intake import PAYLOAD_BYTES_MAX, PAYLOAD_ROWS_MAX, ColumnarIntake, ReadBody, RowPacker
from bronze.records.columns import columnar_schema
from bronze.records.sources import Source

EVENTS = sources.parse(
    """
    [events]
    description = "One field of each type."
    fields = [
        { name = "id", type = "string", required = true, description = "-" },
        { name = "flag", type = "bool", description = "-" },
        { name = "count", type = "int64", description = "-" },
        { name = "ratio", type = "float64", description = "-" },
        { name = "at", type = "timestamp", description = "-" },
        { name = "day", type = "date32", description = "-" },
        { name = "price", type = "decimal128(9, 2)", description = "-" },
    ]
    """,
    "events.toml",
)["events"]
NOON = dt.datetime(2013, 1, 1, 12, tzinfo=dt.UTC)
IDS = pa.array(["a"])


class Spool(BytesIO):
    """A spool from which the messages of a body can be read."""

    def messages(self, read: ReadBody) -> list[pa.RecordBatch]:
        streams = [pa.ipc.open_stream(content) for content in self.contents(read)]
        return [batch for stream in streams for batch in stream]

    def contents(self, read: ReadBody) -> list[bytes]:
        body = self.getvalue()
        payloads = [(body[place.start : place.end], place.zstd) for place in read.slices]
        return [zstandard.decompress(payload) if zstd else payload for payload, zstd in payloads]


def read_batches(*batches: pa.RecordBatch, source: Source = EVENTS) -> tuple[ReadBody, list[pa.RecordBatch]]:
    read, messages, _ = read_with_contents(*batches, source=source)
    return read, messages


def read_with_contents(
    *batches: pa.RecordBatch, source: Source = EVENTS
) -> tuple[ReadBody, list[pa.RecordBatch], list[bytes]]:
    spool = Spool()
    intake = ColumnarIntake(source, batches[0].schema, spool)
    for batch in batches:
        batch.validate(full=True)
        intake.add(batch)
    read = intake.finish()
    return read, spool.messages(read), spool.contents(read)


def rows(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows that these columns become."""
    _, messages = read_batches(pa.record_batch(columns))
    return [row for message in messages for row in message.to_pylist()]


def refusal(*batches: pa.RecordBatch) -> Refused:
    with pytest.raises(Refused) as refused:
        read_batches(*batches)
    return refused.value


# --- declared columns


@pytest.mark.parametrize(
    ("field", "given", "stored"),
    [
        ("id", pa.array(["é\N{SNOWMAN}"], pa.large_string()), "é\N{SNOWMAN}"),
        ("id", pa.array(["view"], pa.string_view()), "view"),
        ("id", pa.array(["of a dictionary"]).dictionary_encode(), "of a dictionary"),
        ("id", pa.array(["é".encode()], pa.binary()), "é"),
        ("id", pa.array([b"view"], pa.binary_view()), "view"),
        ("id", pc.run_end_encode(pa.array(["run"])), "run"),
        ("flag", pa.array([False]), False),
        ("flag", pa.nulls(1), None),
        ("count", pa.array([-5], pa.int8()), -5),
        ("count", pa.array([2**63 - 1], pa.uint64()), 2**63 - 1),
        ("count", pa.array([-(2**63)], pa.int64()), -(2**63)),
        ("count", pa.array([3.0], pa.float64()), 3),
        ("count", pa.array([3.0], pa.float16()), 3),
        ("count", pa.array([Decimal("3.00")], pa.decimal128(5, 2)), 3),
        ("count", pa.array([None, 7], pa.int64()).slice(1), 7),
        ("ratio", pa.array([0.5], pa.float16()), 0.5),
        ("ratio", pa.array([0.1], pa.float32()), 0.10000000149011612),
        ("ratio", pa.array([2**53], pa.int64()), float(2**53)),
        ("at", pa.array([NOON], pa.timestamp("s", "Asia/Tokyo")), NOON),
        ("at", pa.array([NOON], pa.timestamp("ns", "+05:30")), NOON),
        ("day", pa.array([dt.date(2013, 1, 1)], pa.date64()), dt.date(2013, 1, 1)),
        ("price", pa.array([Decimal("1.5000")], pa.decimal256(40, 4)), Decimal("1.50")),
        ("price", pa.array([Decimal("1.5")], pa.decimal32(2, 1)), Decimal("1.50")),
        ("price", pa.array([9_999_999], pa.int64()), Decimal("9999999.00")),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_a_value_that_fits_is_stored_unaltered(field: str, given: pa.Array, stored: object) -> None:
    """In any Arrow type that can be cast to the declared type."""
    (row,) = rows({"id": IDS, field: given})
    assert row[field] == stored
    assert row["_payload"] is None


@pytest.mark.parametrize(
    ("field", "given", "reason"),
    [
        ("id", pa.array([1]), "Expected string, got int64"),
        ("flag", pa.array([1]), "Expected bool, got int64"),
        ("count", pa.array(["1"]), "Expected int64, got string"),
        ("count", pa.array([[1]]), "Expected int64, got list"),
        ("ratio", pa.array([Decimal("0.1")]), "Expected double, got decimal"),
        ("at", pa.array([NOON], pa.timestamp("us")), "got timestamp[us] (without a time zone)"),
        ("at", pa.array(["2013-01-01T00:00:00Z"]), "Expected timestamp[us, tz=UTC], got string"),
        ("day", pa.array([NOON], pa.timestamp("us", "UTC")), "Expected date32[day], got timestamp"),
        ("price", pa.array([1.5]), "Expected decimal128(9, 2), got double"),
        ("classification_id", pa.array([1]), "Expected string, got int64"),
    ],
)
def test_a_column_of_a_type_that_cannot_fit_is_refused(field: str, given: pa.Array, reason: str) -> None:
    refused = refusal(pa.record_batch({"id": IDS, field: given}))
    assert (refused.status, refused.code) == (422, "schema-violation")
    assert refused.members == {"field": field}
    assert reason in refused.detail


@pytest.mark.parametrize(
    ("field", "kind", "good", "bad"),
    [
        ("id", pa.string(), "a", None),
        ("id", pa.binary(), b"a", b"\xff"),
        ("count", pa.uint64(), 1, 2**64 - 1),
        ("count", pa.float64(), 1.0, 1.5),
        ("count", pa.float64(), 1.0, float("nan")),
        ("count", pa.float64(), 1.0, 1e30),
        ("count", pa.decimal128(5, 2), Decimal("1.00"), Decimal("1.50")),
        ("ratio", pa.int64(), 1, 2**53 + 1),
        ("at", pa.timestamp("ns", "UTC"), 1000, 1),
        ("at", pa.timestamp("s", "UTC"), 0, 2**62),
        ("at", pa.timestamp("us", "UTC"), 0, -62_135_596_800_000_001),
        ("at", pa.timestamp("s", "UTC"), 0, 253_402_300_800),
        ("day", pa.date32(), 0, 2_932_897),
        ("price", pa.decimal128(9, 3), Decimal("1.500"), Decimal("1.501")),
        ("price", pa.uint64(), 1, 2**64 - 1),
        ("classification_id", pa.string(), "run", ""),
        ("classification_id", pa.string(), "run", "r" * 257),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_its_record_and_field(
    field: str, kind: pa.DataType, good: object, bad: object
) -> None:
    """In any batch: the index counts from the beginning of the body."""
    values = [good, good, good, bad, good, bad]
    number = {pa.date32(): pa.int32()}.get(kind, pa.int64())
    column = pa.array(values, number).cast(kind) if pa.types.is_temporal(kind) else pa.array(values, kind)
    batch = pa.record_batch({"id": ["a"] * 6, field: column})
    refused = refusal(batch.slice(0, 2), batch.slice(2))
    assert (refused.status, refused.code) == (422, "schema-violation")
    assert refused.members == {"record": 3, "field": field}
    assert f"Record 3, field {field}: Expected" in refused.detail


def test_a_missing_column_is_null_or_if_required_refused() -> None:
    assert rows({"id": ["a"]}) == [dict.fromkeys(columnar_schema(EVENTS).names) | {"id": "a"}]
    refused = refusal(pa.record_batch({"count": [1]}))
    assert refused.members == {"field": "id"}
    assert "the column is missing, but the field is required" in refused.detail


def test_two_columns_with_the_same_name_are_refused() -> None:
    refused = refusal(pa.RecordBatch.from_arrays([IDS, IDS, IDS], ["id", "x", "x"]))
    assert (refused.status, refused.members) == (422, {"field": "x"})
    assert "Field x: several columns have this name" in refused.detail


def test_a_body_without_a_row_is_refused() -> None:
    refused = refusal(pa.record_batch({"id": pa.array([], pa.string())}))
    assert (refused.status, refused.code) == (400, "empty-body")


def test_the_order_of_columns_makes_no_difference() -> None:
    columns = {"id": ["a"], "x": [1], "count": [2], "classification_id": ["run"]}
    assert rows(dict(reversed(columns.items()))) == rows(columns)


def test_classifications_are_listed_in_order_of_appearance() -> None:
    names = pa.array(["b", "a", None, "b"]).dictionary_encode()
    read, _ = read_batches(pa.record_batch({"id": ["v"] * 4, "classification_id": names}))
    assert (read.classifications, read.unclassified) == (["b", "a"], 1)


NESTED = sources.parse(
    """
    [events]
    description = "Times in lists."
    fields = [
        { name = "id", type = "string", required = true, description = "-" },
        { name = "count", type = "int64", description = "-" },
        { name = "at", type = "timestamp", description = "-" },
        { name = "times", type = "list<timestamp>", description = "-" },
    ]
    """,
    "events.toml",
)["events"]
_SECONDS = st.sampled_from([0, 2**33, 2**38, None])


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "id": st.sampled_from([b"a", b"\xff", None]),
                "count": st.sampled_from([1.0, 1.5, None]),
                "at": _SECONDS,
                "times": st.lists(_SECONDS, max_size=2),
                "classification_id": st.sampled_from(["c", "", "x" * 257, None]),
            }
        ),
        min_size=1,
        max_size=200,
    )
)
def test_the_invalid_rows_are_those_that_are_refused_alone(values: list[dict[str, Any]]) -> None:
    seconds = pa.timestamp("s", "UTC")
    types = [("id", pa.binary()), ("count", pa.float64()), ("at", seconds), ("times", pa.list_(seconds))]
    batch = pa.RecordBatch.from_pylist(values, pa.schema([*types, ("classification_id", pa.string())]))
    intake = ColumnarIntake(NESTED, batch.schema, BytesIO())
    refused = {}
    for row in range(batch.num_rows):
        try:
            ColumnarIntake(NESTED, batch.schema, BytesIO()).add(batch.slice(row, 1))
        except Refused as error:
            refused[row] = (error.members["field"], error.detail)
    invalid = intake.invalid_rows(batch)
    assert {row: field for row, (field, _) in invalid.items()} == {row: field for row, (field, _) in refused.items()}
    assert all(reason in refused[row][1] for row, (_, reason) in invalid.items())


# --- undeclared columns


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (pa.array([None], pa.int64()), "null"),
        (pa.nulls(1), "null"),
        (pa.array([True]), "true"),
        (pa.array([2**64 - 1], pa.uint64()), "18446744073709551615"),
        (pa.array([-(2**63)]), "-9223372036854775808"),
        (pa.array([0.1]), "0.1"),
        (pa.array([float("nan")]), '"NaN"'),
        (pa.array([float("-inf")], pa.float32()), '"-Infinity"'),
        (pa.array([Decimal(2**80)], pa.decimal128(38, 0)), '"1208925819614629174706176"'),
        (pa.array([Decimal("-0.10")], pa.decimal256(60, 2)), '"-0.10"'),
        (pa.array([Decimal(1200)], pa.decimal128(4, -2)), '"1200"'),
        (pa.array(['é\N{PILE OF POO}"\n\x00']), '"é\N{PILE OF POO}\\"\\n\\u0000"'),
        (pa.array(["a"], pa.string_view()), '"a"'),
        (pa.array(["a"]).dictionary_encode(), '"a"'),
        (pc.run_end_encode(pa.array([1])), "1"),
        (pa.array([b"\x00\xff"]), '"AP8="'),
        (pa.array([b"\x00\xff"], pa.binary(2)), '"AP8="'),
        (pa.array([1], pa.int64()).cast(pa.timestamp("ns", "Asia/Tokyo")), '"1970-01-01T00:00:00.000000001Z"'),
        (pa.array([NOON], pa.timestamp("s")), '"2013-01-01T12:00:00"'),
        (pa.array([dt.date(2013, 1, 1)]), '"2013-01-01"'),
        (pa.array([dt.date(2013, 1, 1)], pa.date64()), '"2013-01-01"'),
        (pa.array([dt.time(1, 2, 3, 4)]), '"01:02:03.000004"'),
        (pa.array([dt.timedelta(seconds=2)], pa.duration("ms")), "2000"),
        (pa.array([pa.MonthDayNano([1, 2, 3])]), "[1,2,3]"),
        (pa.array([[1, None, 3]]), "[1,null,3]"),
        (pa.array([[], [1]], pa.list_(pa.int8())).slice(1), "[1]"),
        (pa.array([None], pa.list_(pa.int8())), "null"),
        (pa.array([[1, 2]], pa.list_(pa.int8(), 2)), "[1,2]"),
        (pa.array([[1, 2]], pa.list_view(pa.int8())), "[1,2]"),
        (pa.array([[1, 2]], pa.large_list(pa.int8())), "[1,2]"),
        (pa.array([{"b": 1, "a": {"x": [None, {"y": Decimal("1.5")}]}}]), '{"b":1,"a":{"x":[null,{"y":"1.5"}]}}'),
        (pa.array([None], pa.struct([("a", pa.int8())])), "null"),
        (pa.array([{}], pa.struct([])), "{}"),
        (pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]), '[["a",1],["a",2]]'),
        (pa.array([[("k", 1), ("l", None)]], pa.map_(pa.string(), pa.int8())), '[["k",1],["l",null]]'),
        (
            pa.UnionArray.from_sparse(pa.array([1], pa.int8()), [pa.array(["t"]), pa.array([b"\x00"])]),
            '"AA=="',
        ),
        (pa.array([b"\x00" * 16], pa.uuid()), '"AAAAAAAAAAAAAAAAAAAAAA=="'),
    ],
    ids=lambda value: str(value.type)[:30] if isinstance(value, pa.Array) else "",
)
def test_undeclared_columns_are_kept_as_json(given: pa.Array, text: str) -> None:
    (row,) = rows({"x": given, "id": IDS})
    assert row["_payload"] == f'{{"x":{text}}}'
    json.loads(row["_payload"])


_LEAVES = st.sampled_from([pa.int64(), pa.string(), pa.bool_(), pa.float64(), pa.list_(pa.int16())])
_TYPES = st.recursive(
    _LEAVES,
    lambda inner: (
        inner.map(pa.list_)
        | inner.map(pa.large_list)
        | st.lists(inner, max_size=3).map(lambda kinds: pa.struct([(f"f{n}", kind) for n, kind in enumerate(kinds)]))
    ),
    max_leaves=4,
)


def values_of(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if pa.types.is_struct(kind):
        not_null: st.SearchStrategy[Any] = st.fixed_dictionaries({f.name: values_of(f.type) for f in kind})
    elif pa.types.is_nested(kind):
        not_null = st.lists(values_of(kind.value_type), max_size=3)
    else:
        not_null = {
            pa.int64(): st.integers(-(2**63), 2**63 - 1),
            pa.int16(): st.integers(-(2**15), 2**15 - 1),
            pa.string(): st.text(),
            pa.bool_(): st.booleans(),
            pa.float64(): st.floats(allow_nan=False, allow_infinity=False),
        }[kind]
    return st.none() | not_null


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=_TYPES, start=st.integers(0, 3))
def test_nested_values_equal_those_of_arrow(data: st.DataObject, kind: pa.DataType, start: int) -> None:
    """With nulls at each level, and in slices of arrays."""
    values = data.draw(st.lists(values_of(kind), min_size=4, max_size=6))
    assert json_values(pa.array(values, kind).slice(start)) == values[start:]


# --- messages


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 10, 3_000, 400_000, 700_000, 1_000_000]), min_size=1, max_size=12),
    cuts=st.lists(st.integers(1, 12), max_size=4),
)
def test_rows_are_packed_whole_in_order_and_within_the_bound(sizes: list[int], cuts: Iterable[int]) -> None:
    """For any batches of the body; and no message has room for the first row of the next message."""
    batch = pa.record_batch({"id": [f"{n}" + "x" * size for n, size in enumerate(sizes)]})
    ends = [*sorted({min(cut, len(sizes)) for cut in cuts}), len(sizes)]
    batches = [batch.slice(start, end - start) for start, end in zip([0, *ends], ends, strict=False)]
    read, messages, contents = read_with_contents(*batches)
    assert pa.Table.from_batches(messages).column("id").to_pylist() == batch.column("id").to_pylist()
    first = 0
    for place, message in zip(read.slices, messages, strict=True):
        assert (place.first_record, place.records) == (first, message.num_rows)
        first += message.num_rows
    assert [place.start for place in read.slices] == [0, *(place.end for place in read.slices[:-1])]
    content_sizes = list(map(len, contents))
    assert max(content_sizes) <= PAYLOAD_BYTES_MAX
    frame_bytes_max = 2_000  # of a message without rows
    assert all(size + next_size + frame_bytes_max > PAYLOAD_BYTES_MAX for size, next_size in pairwise(content_sizes))


def test_the_rows_of_a_message_are_bounded() -> None:
    """Empty rows are small in a message, but in an object each has its path and ids."""
    count = 2 * PAYLOAD_ROWS_MAX + 1
    read, _ = read_batches(pa.record_batch({"id": pa.repeat("", count)}))
    assert [place.records for place in read.slices] == [PAYLOAD_ROWS_MAX, PAYLOAD_ROWS_MAX, 1]


def test_a_row_that_is_too_large_for_a_message_is_refused_by_its_index() -> None:
    refused = refusal(pa.record_batch({"id": ["a", "b", "x" * PAYLOAD_BYTES_MAX]}))
    assert (refused.status, refused.code, refused.members) == (413, "record-too-large", {"record": 2})


def test_more_messages_than_a_batch_can_have_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is the server's; this test lowers it, since 1,000 messages are 1 GiB."""
    monkeypatch.setattr("bronze.records.columnar_intake.MESSAGES_MAX", 2)
    refused = refusal(pa.record_batch({"id": ["x" * 600_000] * 3}))
    assert (refused.status, refused.code) == (413, "body-too-large")


def test_classification_ids_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bronze.records.columnar_intake.CLASSIFICATIONS_BYTES_MAX", 4)
    refused = refusal(pa.record_batch({"id": ["a"] * 3, "classification_id": ["r1", "r2", "r3"]}))
    assert (refused.status, refused.members) == (413, {"limit": 4})


def test_rows_that_do_not_fill_a_message_are_written_at_the_end() -> None:
    """And not before, since more rows may follow."""
    spool = BytesIO()
    schema = columnar_schema(EVENTS)
    packer = RowPacker(schema, spool)
    packer.add(pa.RecordBatch.from_pylist([{"id": "a"}], schema=schema))
    assert packer.slices == []
    packer.finish()
    assert [place.records for place in packer.slices] == [1]
