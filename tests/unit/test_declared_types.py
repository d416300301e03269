"""What can be declared: each type, names and times of other people's data, and records of any form at all.

Records go the whole way from a body to the rows of an object: as lines, as a document, and as an Arrow batch.
"""

import datetime as dt
import re
from contextlib import ExitStack, closing
from decimal import Decimal
from tempfile import SpooledTemporaryFile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bronze.errors import Refused
from bronze.objects.encoder import encode_object
from bronze.objects.reprocessing import Reprocessed, reprocess
from bronze.objects.rows import ARROW_ROWS_MIN
from bronze.protocol.chain import reconcile
from bronze.protocol.keys import object_key
from bronze.protocol.lane import Lane, lane_subject
from bronze.protocol.message import Message
from bronze.records import sources
from bronze.records.columnar_intake import ColumnarIntake
from bronze.records.columns import arrow_type
from bronze.records.json_intake import JsonIntake
from bronze.records.sources import Source
from bronze.records.spool import BodyDigest, CheckedSubmission
from tests import factories

LANE = Lane("things", 0, "20261124T120000000")
TIME = "2026-11-24T12:34:56.123456789Z"
TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-01"
MAP_OF_BYTES = pa.map_(pa.string(), pa.large_binary())
LOCAL = dt.datetime.fromisoformat("2013-01-01")
MAP_OF_TEXT = pa.map_(pa.string(), pa.string())


def source(*fields: str, version: int = 1, more: str = "") -> Source:
    """A source with fields, each as name, type and other properties in TOML."""
    declared = ", ".join(f'{{ {field}, description = "d" }}' for field in fields)
    text = f'[things]\ndescription = "d"\nversion = {version}\n{more}\nfields = [{declared}]'
    return sources.parse(text, "things.toml")["things"]


def of(declared: str, more: str = "") -> Source:
    """A source with one field, `a`."""
    return source(f'name = "a", type = "{declared}"{more}')


def stored(checked: CheckedSubmission, checked_as: Source, later: Source | None = None) -> pa.Table:
    """The object that a consumer makes of a submission. `later` is the source that the consumer knows."""
    submission = factories.accepted(
        submission_id="s",
        source="things",
        schema_version=checked_as.version,
        digest="d",
        received_at="2026-11-24T12:34:56.000001+00:00",
        traceparent=TRACEPARENT,
    )
    subject = lane_subject("things", 0, "s")
    with closing(checked):
        messages = [
            Message(number, subject, TIME, part.headers(), payload)
            for number, (part, payload) in enumerate(checked.parts(submission), start=1)
        ]
    cut = reconcile(LANE, messages, {})
    encoded = encode_object(later or checked_as, LANE, object_key("bronze", LANE, messages[0]), cut, TRACEPARENT)
    assert not encoded.contents.quarantined
    table = pq.read_table(pa.BufferReader(encoded.body))
    table.validate(full=True)
    declared = (later or checked_as).fields
    for field in declared:
        kind = re.sub(r" \('\w+'\)", "", str(table.schema.field(field.name).type))
        assert kind.replace("element:", "item:") == str(arrow_type(field))
    return table


def rows(checked: CheckedSubmission, checked_as: Source, later: Source | None = None) -> list[dict[str, Any]]:
    """The rows of that object: the declared columns, payload and classification."""
    kept = [*(field.name for field in (later or checked_as).fields), "_payload", "classification_id"]
    read: list[dict[str, Any]] = stored(checked, checked_as, later).select(kept).to_pylist(maps_as_pydicts="strict")
    return read


def checked(declared: Source, *records: str, document: bool = False) -> CheckedSubmission:
    """A JSON body of records: lines, or an array."""
    intake = JsonIntake(declared, body_bytes_max=2**20, spool_memory_bytes_max=2**20)
    with ExitStack() as if_refused:
        if_refused.callback(intake.close)
        if document:
            intake.add_document(f"[{','.join(records)}]".encode())
        else:
            intake.add_lines("\n".join(records).encode())
        submission = intake.finish()
        if_refused.pop_all()
    return submission


def columnar(declared: Source, batch: pa.RecordBatch) -> CheckedSubmission:
    spool: SpooledTemporaryFile[bytes] = SpooledTemporaryFile()  # noqa: SIM115
    with ExitStack() as if_refused:
        if_refused.callback(spool.close)
        intake = ColumnarIntake(declared, batch.schema, spool)
        batch.validate(full=True)
        intake.add(batch)
        read = intake.finish()
        if_refused.pop_all()
    return CheckedSubmission(
        spool,
        read.slices,
        tally=BodyDigest(2**20),
        records=batch.num_rows,
        classifications=read.classifications,
        unclassified=read.unclassified,
        rejected_by_code={},
    )


def values(declared: Source, *records: str) -> list[Any]:
    """The column `a` of records, which is the same by the decoder and by Arrow's reader, in lines and in an array."""
    read = [row["a"] for row in rows(checked(declared, *records), declared)]
    assert [row["a"] for row in rows(checked(declared, *records, document=True), declared)] == read
    many = rows(checked(declared, *records * ARROW_ROWS_MIN), declared)
    assert [row["a"] for row in many] == read * ARROW_ROWS_MIN
    return read


def refusal(declared: Source, body: str | pa.RecordBatch) -> tuple[str | None, str]:
    """Field and reason of the refusal of a record or a batch."""
    with pytest.raises(Refused) as refused:
        checked(declared, body) if isinstance(body, str) else columnar(declared, body)
    field = refused.value.members.get("field")
    return None if field is None else str(field), refused.value.detail


def utc(*parts: int) -> dt.datetime:
    return dt.datetime(*parts, tzinfo=dt.UTC)  # type: ignore[arg-type,misc]


# --- types

#: A type, a JSON value, the value of the column, and an Arrow array of the same value.
TYPED: list[tuple[str, str, Any, pa.Array]] = [
    ("int32", "-2147483648", -(2**31), pa.array([-(2**31)], pa.int64())),
    ("int32", "7", 7, pa.array([7.0])),
    ("float32", "1.5", 1.5, pa.array([1.5], pa.float16())),
    ("float32", "16777216", 16777216.0, pa.array([2**24], pa.int64())),
    ("binary", '"AP8="', b"\x00\xff", pa.array([b"\x00\xff"], pa.binary_view())),
    ("binary", '""', b"", pa.array([b""], pa.binary(0))),
    ("json", '{"b": [1.50, null]}', '{"b": [1.50, null]}', pa.array(['{"b": [1.50, null]}'])),
    ("json", '"text"', '"text"', pa.array(['"text"'], pa.large_string())),
    ("json", "1e400", "1e400", pa.array(["1e400"])),
    ("json", "null", None, pa.array(["null"])),
    ("json", '[1,{"x":"AA=="}]', '[1,{"x":"AA=="}]', pa.array(['[1,{"x":"AA=="}]'])),
    ("json", '{"x":1,"y":["a",null]}', '{"x":1,"y":["a",null]}', pa.array([{"x": 1, "y": ["a", None]}])),
    ("list<string>", '["a", null, "é"]', ["a", None, "é"], pa.array([["a", None, "é"]], pa.large_list(pa.string()))),
    ("list<int32>", "[]", [], pa.array([[]], pa.list_(pa.int8()))),
    ("list<int64>", "[1, 2]", [1, 2], pa.array([[1, 2]], pa.list_(pa.uint16(), 2))),
    ("list<date32>", '["2013-01-02"]', [dt.date(2013, 1, 2)], pa.array([[dt.date(2013, 1, 2)]])),
    (
        "list<list<decimal128(4, 2)>>",
        '[["1.5"], null]',
        [[Decimal("1.50")], None],
        pa.array([[[Decimal("1.5")], None]], pa.list_(pa.list_(pa.decimal128(3, 1)))),
    ),
    (
        "struct<lat: float64, lon: float64>",
        '{"lat": 38.7, "lon": -9}',
        {"lat": 38.7, "lon": -9.0},
        pa.array([{"lon": -9, "lat": 38.7}]),
    ),
    (
        "struct<deviceId: string, at: timestamp>",
        '{"at": "2013-01-02T03:04:05+01:00"}',
        {"deviceId": None, "at": utc(2013, 1, 2, 2, 4, 5)},
        pa.array([{"at": utc(2013, 1, 2, 2, 4, 5)}]),
    ),
    (
        "list<struct<tags: map<string, list<int64>>>>",
        '[{"tags": {"x": [1], "": null}}, {}, null]',
        [{"tags": {"x": [1], "": None}}, {"tags": None}, None],
        pa.array(
            [[{"tags": [("x", [1]), ("", None)]}, {"tags": None}, None]],
            pa.list_(pa.struct([("tags", pa.map_(pa.large_string(), pa.list_(pa.int8())))])),
        ),
    ),
    ("map<string, binary>", '{"k": "AP8="}', {"k": b"\x00\xff"}, pa.array([[("k", b"\x00\xff")]], MAP_OF_BYTES)),
    ("map<string, json>", '{"k": {"a": 1}}', {"k": '{"a": 1}'}, pa.array([[("k", '{"a": 1}')]], MAP_OF_TEXT)),
]


@pytest.mark.parametrize(("declared", "sent", "value", "array"), TYPED, ids=lambda value: str(value)[:40])
def test_a_value_is_stored_as_its_type(declared: str, sent: str, value: Any, array: pa.Array) -> None:
    """From JSON and from Arrow; absent and null are null."""
    it = of(declared)
    records = [f'{{"a": {sent}}}', "{}", '{"a": null}']
    assert values(it, *records) == [value, None, None]
    column = pa.concat_arrays([array, pa.nulls(1, array.type)])
    assert [row["a"] for row in rows(columnar(it, pa.record_batch({"a": column})), it)] == [value, None]
    assert [row["_payload"] for row in rows(checked(it, *records), it)] == records


def test_a_float32_is_the_nearest_to_the_number() -> None:
    assert values(of("float32"), '{"a": 0.1}', '{"a": 16777217}') == [0.10000000149011612, 16777216.0]


@pytest.mark.parametrize(
    ("declared", "sent", "reason"),
    [
        ("int32", "2147483648", "Expected `int` <= 2147483647"),
        ("int32", "1.5", "Expected `int | null`, got `float`"),
        ("float32", "3.5e38", "Expected `float` <= 3.4028"),
        ("binary", '"AP8"', "Invalid base64 encoded string"),
        ("binary", "[1]", "Expected `bytes"),
        ("list<int64>", "1", "Expected `array"),
        ("list<int64>", '[1, "2"]', "Expected `int"),
        ("list<decimal128(4, 2)>", '["1.505"]', "Expected a number with at most 2 digits"),
        ("list<timestamp>", '["0001-01-01T00:00:00+14:00"]', "Expected a time from year 1"),
        ("struct<x: int64>", "[1]", "Expected `object"),
        ("struct<x: int64>", '{"x": "1"}', "Expected `int"),
        ("map<string, timestamp>", '{"x": "9999-12-31T23:00:00-14:00"}', "Expected a time from year 1"),
        ("map<string, int64>", '{"x": true}', "Expected `int"),
    ],
)
def test_a_value_that_is_none_of_its_type_is_refused_with_its_field(declared: str, sent: str, reason: str) -> None:
    field, detail = refusal(of(declared), f'{{"a": {sent}}}')
    assert str(field).partition(".")[0] == "a"  # `a.x` of a struct
    assert reason in detail


@pytest.mark.parametrize(
    ("declared", "array", "reason"),
    [
        ("int32", pa.array([2**31]), "Expected int32"),
        ("float32", pa.array([0.1]), "Expected float, got double"),
        ("float32", pa.array([2**24 + 1]), "Expected float"),
        ("binary", pa.array(["AP8="]), "Expected binary, got string"),
        ("json", pa.array(["{"]), "Expected json: the text is not JSON"),
        ("list<int64>", pa.array([["a"]]), "Expected list<item: int64>, got list<item: string>"),
        ("list<int32>", pa.array([[2**31]]), "Expected list<item: int32>"),
        ("struct<x: int64>", pa.array([{"x": "1"}]), "Expected struct<x: int64>, got struct<x: string>"),
        ("map<string, int64>", pa.array([{"x": 1}]), "Expected map<string, int64>, got struct<x: int64>"),
        ("list<timestamp>", pa.array([[LOCAL]]), "Expected list<item: timestamp[us, tz=UTC]>, got"),
        ("list<timestamp>", pa.array([[2**62]]).cast(pa.list_(pa.timestamp("us", "UTC"))), "Expected a time from"),
    ],
)
def test_a_column_that_is_none_of_its_type_is_refused(declared: str, array: pa.Array, reason: str) -> None:
    field, detail = refusal(of(declared), pa.record_batch({"a": array}))
    assert field == "a"
    assert reason in detail


def test_json_that_is_required_is_not_null() -> None:
    required = of("json", ", required = true")
    for null in ('{"a": null}', pa.record_batch({"a": ["null"]})):
        field, detail = refusal(required, null)
        assert field == "a"
        assert "Expected json, got null" in detail


def test_fields_of_a_struct_that_are_not_declared_stay_in_the_payload() -> None:
    """Also from Arrow, where a column that is declared is not in it otherwise."""
    it = of("list<struct<x: int64>>")
    (row,) = rows(columnar(it, pa.record_batch({"a": [[{"x": 1, "y": "kept"}]]})), it)
    assert (row["a"], row["_payload"]) == ([{"x": 1}], '{"a":[{"x":1,"y":"kept"}]}')
    (row,) = rows(columnar(it, pa.record_batch({"a": [[{"x": 1}]]})), it)
    assert (row["a"], row["_payload"]) == ([{"x": 1}], None)


# --- names


def test_an_alias_is_the_name_in_records() -> None:
    """The name of the column means nothing in a record."""
    it = source('name = "device_id", type = "string", alias = "deviceId"', 'name = "a", type = "int64", alias = "A b"')
    sent = '{"deviceId": "d1", "A b": 1, "a": "other"}'
    (row, *_) = rows(checked(it, *[sent] * ARROW_ROWS_MIN), it)
    assert (row["device_id"], row["a"], row["_payload"]) == ("d1", 1, sent)
    (row,) = rows(checked(it, sent), it)
    assert (row["device_id"], row["a"]) == ("d1", 1)
    (row,) = rows(columnar(it, pa.record_batch({"deviceId": ["d1"], "A b": [1], "a": ["other"]})), it)
    assert (row["device_id"], row["a"], row["_payload"]) == ("d1", 1, '{"a":"other"}')
    assert refusal(it, '{"deviceId": 1}')[0] == "deviceId"
    assert refusal(it, pa.record_batch({"deviceId": [1]}))[0] == "deviceId"
    required = of("int64", ', required = true, alias = "A"')
    assert refusal(required, '{"a": 1}')[0] == "A"
    assert refusal(required, pa.record_batch({"a": [1]}))[0] == "A"


# --- times


@pytest.mark.parametrize(
    ("unit", "sent", "value"),
    [
        ("s", "1357017300", utc(2013, 1, 1, 5, 15)),
        ("s", "1357017300.123456", utc(2013, 1, 1, 5, 15, 0, 123456)),
        ("s", '"1357017300.5"', utc(2013, 1, 1, 5, 15, 0, 500000)),
        ("s", "-1", utc(1969, 12, 31, 23, 59, 59)),
        ("ms", "1357017300001", utc(2013, 1, 1, 5, 15, 0, 1000)),
        ("us", "1357017300000001", utc(2013, 1, 1, 5, 15, 0, 1)),
        ("ns", "1357017300000001000", utc(2013, 1, 1, 5, 15, 0, 1)),
        ("ns", "1357017300000001600", utc(2013, 1, 1, 5, 15, 0, 2)),
    ],
)
def test_a_number_is_a_time_in_the_declared_unit(unit: str, sent: str, value: dt.datetime) -> None:
    assert values(of("timestamp", f', unit = "{unit}"'), f'{{"a": {sent}}}', '{"a": null}') == [value, None]


@pytest.mark.parametrize("sent", ["1e30", "253402300800", "-62135596801", '"NaN"', "1e999999999", '"2013-01-01"'])
def test_a_number_that_is_no_time_of_the_calendar_is_refused(sent: str) -> None:
    assert refusal(of("timestamp", ', unit = "s"'), f'{{"a": {sent}}}')[0] == "a"


def test_integers_of_arrow_are_times_in_the_declared_unit() -> None:
    """So are times that have a zone; nanoseconds that a microsecond cannot hold are refused, as without a unit."""
    it = of("timestamp", ', unit = "ns"')
    (row,) = rows(columnar(it, pa.record_batch({"a": [1357017300000001000]})), it)
    assert row["a"] == utc(2013, 1, 1, 5, 15, 0, 1)
    (row,) = rows(columnar(it, pa.record_batch({"a": pa.array([utc(2013, 1, 1)])})), it)
    assert row["a"] == utc(2013, 1, 1)
    assert "would lose data" in refusal(it, pa.record_batch({"a": [1357017300000001001]}))[1]
    assert "Expected a number of ns since 1970, got" in refusal(it, pa.record_batch({"a": [1.5]}))[1]
    seconds = of("timestamp", ', unit = "s"')
    assert refusal(seconds, pa.record_batch({"a": [253402300800]}))[0] == "a"
    assert refusal(seconds, pa.record_batch({"a": [2**62]}))[0] == "a"


#: Lisbon set its clocks from 01:00 to 02:00 on 2013-03-31, and from 02:00 back to 01:00 on 2013-10-27.
LISBON = ', timezone = "Europe/Lisbon"'


@pytest.mark.parametrize(
    ("sent", "value"),
    [
        ("2013-01-01T05:15:00", utc(2013, 1, 1, 5, 15)),
        ("2013-07-01T05:15:00.5", utc(2013, 7, 1, 4, 15, 0, 500000)),
        ("2013-10-27T01:30:00", utc(2013, 10, 27, 0, 30)),  # occurs twice: the earlier one
        ("2013-10-27T02:00:00", utc(2013, 10, 27, 2)),
        ("2013-07-01T05:15:00Z", utc(2013, 7, 1, 5, 15)),  # an offset is obeyed
        ("2013-07-01T05:15:00+05:00", utc(2013, 7, 1, 0, 15)),
        ("0001-01-01T00:00:00", utc(1, 1, 1, 0, 36, 45)),
    ],
)
def test_a_local_time_is_one_of_the_declared_zone(sent: str, value: dt.datetime) -> None:
    """Of a field, or of all fields of the source that have no other."""
    for it in (of("timestamp", LISBON), source('name = "a", type = "timestamp"', more='timezone = "Europe/Lisbon"')):
        assert values(it, f'{{"a": "{sent}"}}') == [value]
        local = dt.datetime.fromisoformat(sent)
        batch = pa.record_batch({"a": pa.array([local], pa.timestamp("us", "UTC" if local.tzinfo else None))})
        assert [row["a"] for row in rows(columnar(it, batch), it)] == [value]


def test_a_local_time_that_is_skipped_is_refused() -> None:
    field, detail = refusal(of("timestamp", LISBON), '{"a": "2013-03-31T01:30:00"}')
    assert field == "a"
    assert "exists in Europe/Lisbon: the clock was set forward over this one" in detail
    skipped = pa.record_batch({"a": pa.array([utc(2013, 3, 31, 1, 30).replace(tzinfo=None)])})
    assert refusal(of("timestamp", LISBON), skipped)[0] == "a"


def test_without_a_zone_a_local_time_is_refused() -> None:
    assert (
        "Expected `datetime` with a timezone component" in refusal(of("timestamp"), '{"a": "2013-01-01T05:15:00"}')[1]
    )


# --- sources without fields


@pytest.mark.parametrize("declaration", ["fields = []", "raw = true", "raw = true\nfields = []"])
def test_a_raw_source_takes_any_json(declaration: str) -> None:
    it = sources.parse(f'[things]\ndescription = "d"\n{declaration}', "things.toml")["things"]
    records = ['{"a": 1, "classification_id": "c"}', "{}", "[1, 2]", '"text"', "1e400", "true"]
    for document in (False, True):
        read = rows(checked(it, *records, document=document), it)
        assert [row["_payload"] for row in read] == records
        assert [row["classification_id"] for row in read] == ["c", "run", "run", "run", "run", "run"]
    many = ['{"a": 1, "classification_id": "c"}'] * ARROW_ROWS_MIN
    assert [row["_payload"] for row in rows(checked(it, *many), it)] == many
    (row,) = rows(columnar(it, pa.record_batch({"a": [1], "b": [["x"]]})), it)
    assert row["_payload"] == '{"a":1,"b":["x"]}'


@pytest.mark.parametrize("record", ["null", "{", "nul", '{"classification_id": 1}'])
def test_a_raw_source_refuses_what_is_no_value(record: str) -> None:
    refusal(sources.parse('[things]\ndescription = "d"\nraw = true', "things.toml")["things"], record)


def test_a_raw_source_quarantines_what_is_no_json() -> None:
    it = sources.parse('[things]\ndescription = "d"\nraw = true', "things.toml")["things"]
    intake = JsonIntake(it, body_bytes_max=2**20, spool_memory_bytes_max=2**20, quarantine_rejected=True)
    intake.add_lines(b"1\n{\nnull\n[2]")
    with closing(intake.finish()) as submission:
        assert (submission.records, submission.rejected) == (2, 2)


# --- versions


def test_a_message_of_a_narrower_or_a_raw_version_becomes_rows_of_the_newest() -> None:
    """From JSON and from Arrow: messages that wait while the declaration changes are not lost."""
    raw = sources.parse('[things]\ndescription = "d"\nraw = true', "things.toml")["things"]
    narrow = source('name = "a", type = "int32", since = 2', version=2)
    wide = source('name = "a", type = "int64", since = 2, widened_from = "int32", widened_since = 3', version=3)
    assert sources.incompatibility(raw.schema, wide.schema) is None
    assert sources.incompatibility(narrow.schema, wide.schema) is None
    assert wide.at_version(2).schema == narrow.schema
    for old in (raw, narrow):
        for sent in (checked(old, '{"a": 5}'), columnar(old, pa.record_batch({"a": [5]}))):
            (row,) = rows(sent, old, wide)
            assert row["a"] == (None if old is raw else 5)
    assert values(wide, '{"a": 9007199254740993}') == [9007199254740993]


RAW = sources.parse('[things]\ndescription = "d"\nraw = true', "things.toml")["things"]


@pytest.mark.parametrize(("declared", "sent", "value", "array"), TYPED, ids=lambda value: str(value)[:40])
def test_a_reprocessed_row_is_as_if_it_were_accepted_today(
    declared: str, sent: str, value: Any, array: pa.Array
) -> None:
    """The fields were sent before they were declared, in JSON: all columns are then the same, and so is the version."""
    later = source('name = "b", type = "int64", since = 2', f'name = "a", type = "{declared}", since = 3', version=3)
    records = (f'{{"a": {sent}, "b": 1}}', '{"b": 2, "classification_id": "c"}', f'{{ "a" : {sent}}}', "{}")
    before, today = stored(checked(RAW, *records), RAW, later), stored(checked(later, *records), later)
    assert before["a"].null_count == before["b"].null_count == len(records)
    done = reprocess(before, later)
    assert (done.changed, done.unfit, done.reason) == (len(records), 0, None)
    assert done.rows.schema == before.schema
    assert done.rows.to_pylist() == today.to_pylist()
    assert reprocess(done.rows, later) == Reprocessed(done.rows)


def test_a_reprocessed_row_of_an_arrow_body_gets_its_undeclared_columns() -> None:
    old = source('name = "b", type = "int64"')
    later = source('name = "b", type = "int64"', 'name = "a", type = "list<int32>", since = 2', version=2)
    of_columns = pa.record_batch({"b": [1, 2], "a": [[1], None]})
    done = reprocess(stored(columnar(old, of_columns), old, later), later)
    assert done.rows.select(["a", "b", "_schema_version"]).to_pylist() == [
        {"a": [1], "b": 1, "_schema_version": 2},
        {"a": None, "b": 2, "_schema_version": 2},
    ]
    without_payload = stored(columnar(old, pa.record_batch({"b": [1]})), old, later)
    assert reprocess(without_payload, later) == Reprocessed(without_payload)


def test_a_row_that_does_not_fit_today_stays_as_it_is() -> None:
    """As a whole, and with its version, so that a corrected declaration can be tried again."""
    later = source('name = "a", type = "int32", since = 2', 'name = "b", type = "int64", since = 2', version=2)
    records = ('{"a": "five", "b": 1}', '{"a": 5, "b": 2}', "[1]", '{"a": 3000000000, "b": 3}')
    before = stored(checked(RAW, *records), RAW, later)
    done = reprocess(before, later)
    assert (done.changed, done.unfit) == (1, 3)
    assert done.reason is not None
    assert done.reason.startswith("a: Expected")
    assert done.rows.select(["a", "b", "_schema_version"]).to_pylist() == [
        {"a": None, "b": None, "_schema_version": 1},
        {"a": 5, "b": 2, "_schema_version": 2},
        {"a": None, "b": None, "_schema_version": 1},
        {"a": None, "b": None, "_schema_version": 1},
    ]
    assert done.rows["_payload"].to_pylist() == [*records]


def test_fields_of_the_version_of_a_row_stay_as_they_are() -> None:
    """Only what was declared later is read from the payload: what was checked once is not checked again."""
    old = source('name = "a", type = "int32"')
    later = source(
        'name = "a", type = "int64", widened_from = "int32", widened_since = 2',
        'name = "b", type = "string", since = 3',
        version=3,
    )
    before = stored(checked(old, '{"a": 1, "b": "x"}', '{"a": 2}'), old, later)
    before = before.set_column(0, before.schema.field(0), pa.array([7, 8], pa.int64()))
    done = reprocess(before, later)
    assert done.rows.select(["a", "b"]).to_pylist() == [{"a": 7, "b": "x"}, {"a": 8, "b": None}]
    assert done.changed == 2


def test_an_offset_may_lack_its_colon() -> None:
    """As `strftime("%z")` writes it. docs/sources.md says so: the JSON Schema of the source refuses it."""
    assert values(of("timestamp"), '{"a": "2013-01-01T05:15:00+0530"}') == [utc(2012, 12, 31, 23, 45)]
