"""Objects: a file has the values that were sent, and its footer states its contents."""

import datetime as dt
import gc
import json
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.errors import Refused
from bronze.objects import encoder, file_writer
from bronze.objects.encoder import Encoded, encode_object
from bronze.objects.footer import TAIL_BYTES, NotABronzeObject, contents_of_footer, footer_start, user_metadata
from bronze.objects.rows import ARROW_ROWS_MIN, _times
from bronze.objects.search import submissions_with
from bronze.protocol.chain import ReconciledCut, reconcile
from bronze.protocol.documents import Contents, Identity, identities_of
from bronze.protocol.keys import object_key
from bronze.protocol.lane import Lane, lane_subject
from bronze.protocol.limits import digest
from bronze.protocol.message import HEADER_ENCODING, ZSTD, AcceptedSubmission, Message, MessageKind, Part
from bronze.protocol.quarantine import quarantine_key
from bronze.records import sources
from bronze.records.columns import columnar_schema, object_schema
from bronze.records.fields import Field, FieldType
from bronze.records.json_intake import JsonIntake
from bronze.records.sources import RESERVED, Source
from tests import factories

#: A source whose second version added fields.
THINGS = Source(
    "things",
    "Things.",
    2,
    (
        Field("thing_id", FieldType.STRING, "Which thing.", required=True),
        Field("colour", FieldType.STRING, "Its colour.", since=2),
        Field("price", FieldType.DECIMAL, "What it costs.", since=2, precision=10, scale=2),
    ),
)
SOURCES = {**sources.built_in(), THINGS.name: THINGS}
EPOCH = "20261124T120000000"
TIME = "2026-11-24T12:34:56.123456789Z"
TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-01"
EVENT = {"operator": "UA", "run_number": 1, "origin": "A", "destination": "B", "scheduled_at": "2013-01-01T05:15:00Z"}


def accepted(source: str, submission: str = "s", **fields: Any) -> AcceptedSubmission:
    """A submission whose records were checked against the newest version of their source."""
    facts: dict[str, Any] = {
        "submission_id": submission,
        "source": source,
        "schema_version": SOURCES[source].version,
        "digest": "d",
        "received_at": "2026-11-24T12:34:56.000001+00:00",
        "traceparent": TRACEPARENT,
    }
    return factories.accepted(**(facts | fields))


def message(
    sequence: int,
    records: Sequence[bytes],
    source: str,
    *,
    submission: AcceptedSubmission | None = None,
    part: tuple[int, int] = (1, 1),
    first_record: int = 0,
    stated: int | None = None,
    kind: MessageKind = MessageKind.RECORDS,
) -> Message:
    """A message of the given records; `stated` is the number of records in its headers, if it differs."""
    submission = submission or accepted(source, f"s{sequence}")
    headers = Part(submission, *part, first_record, len(records) if stated is None else stated, kind).headers()
    payload = b"\n".join(records) if kind is MessageKind.LINES else b"[" + b",".join(records) + b"]"
    return Message(sequence, lane_subject(source, 0, submission.submission_id), TIME, headers, payload)


def encode(source: str, messages: Sequence[Message], identities: Sequence[Identity] = ()) -> Encoded:
    lane = Lane(source, 0, EPOCH)
    cut = reconcile(lane, messages, {identity.accepted.submission_id: identity for identity in identities})
    return encode_cut(source, lane, cut)


def encode_cut(source: str, lane: Lane, cut: ReconciledCut) -> Encoded:
    return encode_object(SOURCES[source], lane, object_key("bronze", lane, cut.messages[0]), cut, TRACEPARENT)


def table(encoded: Encoded) -> pa.Table:
    return pq.read_table(pa.BufferReader(encoded.body))


def footer(body: bytes) -> Contents:
    """The footer, as the bucket's reader reads it: from the last bytes, then the footer, and nothing else."""
    start = footer_start(len(body), body[-TAIL_BYTES:])
    return contents_of_footer(body[start:])


# --- rows


def test_encoding_a_cut_leaves_no_memory_allocated() -> None:
    """The rows are freed at the end of the call, not by the garbage collector: a consumer runs for months."""
    sent = [json.dumps(EVENT | {"classification_id": f"r{n}"}).encode() for n in range(100)]
    gc.disable()
    try:
        before = pa.total_allocated_bytes()
        encode("status", [message(3, sent, "status"), message(4, [b"{}"], "status")])
        assert pa.total_allocated_bytes() == before
    finally:
        gc.enable()


def test_columns_are_the_declared_fields_and_then_those_of_bronze() -> None:
    """Values, nulls, dates and times are as they were sent; times are converted to UTC."""
    full = EVENT | {
        "vehicle_id": "N1",
        "departed_at": "2013-01-01T05:17:00.123456-05:00",
        "delay_min": 2,
        "classification_id": "own",
        "undeclared": [1],
    }
    sent = [json.dumps(record).encode() for record in (full, EVENT)]
    encoded = encode(
        "status", [message(3, sent, "status", submission=accepted("status", origin="f.csv"), first_record=7)]
    )
    read = table(encoded)
    assert read.schema.remove_metadata() == object_schema(SOURCES["status"])
    key = f"bronze/source=status/date=2026-11-24/hour=12/{EPOCH}-0-000000000003.parquet"
    scheduled = dt.datetime(2013, 1, 1, 5, 15, tzinfo=dt.UTC)
    added = {
        "file_path": key,
        "_submission_id": "s",
        "_origin": "f.csv",
        "_received_at": dt.datetime(2026, 11, 24, 12, 34, 56, 1, tzinfo=dt.UTC),
        "_trace_id": "0" * 32,
        "_schema_version": SOURCES["status"].version,
        **{field.name: None for field in SOURCES["status"].fields if field.since > 1},
    }
    declared = {"operator": "UA", "run_number": 1, "origin": "A", "destination": "B", "scheduled_at": scheduled}
    assert read.to_pylist() == [
        {
            **declared,
            **added,
            "vehicle_id": "N1",
            "departed_at": dt.datetime(2013, 1, 1, 10, 17, 0, 123456, tzinfo=dt.UTC),
            "delay_min": 2.0,
            "classification_id": "own",
            "_record_index": 7,
            "_payload": sent[0].decode(),
        },
        {
            **declared,
            **added,
            "vehicle_id": None,
            "departed_at": None,
            "delay_min": None,
            "classification_id": "run",
            "_record_index": 8,
            "_payload": sent[1].decode(),
        },
    ]
    assert encoded.contents.classifications == ["own", "run"]


def test_records_are_read_as_the_version_that_they_were_checked_against() -> None:
    """A record from before a field was declared may have any value under its name: it is a row, the column is null."""
    new_record = b'{"thing_id":"a","colour":"red","price":"1.5"}'
    old_record = b'{"thing_id":"b","colour":[5],"price":"much"}'
    messages = [
        message(1, [old_record], "things", submission=accepted("things", "s1", schema_version=1)),
        message(2, [new_record], "things"),
    ]
    encoded = encode("things", messages)
    assert encoded.contents.quarantined == []
    read = table(encoded).select(["thing_id", "colour", "price", "_schema_version", "_payload"]).to_pylist()
    assert [tuple(row.values()) for row in read] == [
        ("b", None, None, 1, old_record.decode()),
        ("a", "red", Decimal("1.50"), 2, new_record.decode()),
    ]


@pytest.mark.parametrize("sent", ["1.5", '"1.5"', "1.500", "15e-1", '"1.50000000000000000000000000000000000000"'])
def test_a_decimal_is_a_number_or_a_string_of_digits(sent: str) -> None:
    record = b'{"thing_id":"a","price":%s}' % sent.encode()
    intake = JsonIntake(THINGS, body_bytes_max=2**20, spool_memory_bytes_max=2**20)
    intake.add_lines(record + b"\n")
    intake.close()
    encoded = encode("things", [message(1, [record], "things")])
    assert str(table(encoded).column("price").to_pylist()) == "[Decimal('1.50')]"


@pytest.mark.parametrize("sent", ["1.505", '"NaN"', "100000000", "1e400", '"1e99999"', '"0x1"', "true", "[1]"])
def test_a_decimal_that_would_change_is_refused_by_record_and_field(sent: str) -> None:
    intake = JsonIntake(THINGS, body_bytes_max=2**20, spool_memory_bytes_max=2**20)
    with pytest.raises(Refused, match="Record 0, field price: ") as refused:
        intake.add_lines(b'{"thing_id":"a","price":%s}\n' % sent.encode())
    intake.close()
    assert (refused.value.status, refused.value.members) == (422, {"record": 0, "field": "price"})


def test_no_column_has_the_name_of_another_or_of_a_partition_key() -> None:
    for source in SOURCES.values():
        names = object_schema(source).names
        assert len(set(names)) == len(names)
        assert not set(names) & {"source", "date", "hour"}
    assert {name for name in object_schema(SOURCES["vehicles"]).names if not name.startswith("_")} - {
        field.name for field in SOURCES["vehicles"].fields
    } <= RESERVED


_TIMES = st.datetimes(timezones=st.timezones()).map(lambda time: time.isoformat())
_OFFSETS = st.tuples(st.datetimes(), st.integers(-23, 23)).map(lambda pair: f"{pair[0].isoformat()}{pair[1]:+03}:00")
_FLOATS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**30), 10**30)
_TYPED: dict[FieldType, st.SearchStrategy[Any]] = {
    FieldType.STRING: st.text(),
    FieldType.BOOL: st.booleans(),
    FieldType.INT64: st.integers(-(2**63), 2**63 - 1),
    FieldType.FLOAT64: _FLOATS,
    FieldType.DECIMAL: st.decimals(-1000, 1000, places=2).map(str),
    FieldType.TIMESTAMP: _TIMES
    | _OFFSETS
    | st.just("0001-01-01T00:00:00+14:00")
    | st.just("9999-12-31T23:59:59-14:00"),
    FieldType.DATE: st.dates().map(str),
}


@st.composite
def bodies(draw: st.DrawFn, source: str) -> bytes:
    fields = SOURCES[source].fields
    records = [
        {field.name: draw(_TYPED[field.type] if field.required else st.none() | _TYPED[field.type]) for field in fields}
        for _ in range(draw(st.integers(1, 3)))
    ]
    ascii_only = draw(st.booleans())
    return b"\n".join(json.dumps(record, ensure_ascii=ascii_only).encode() for record in records)


@settings(max_examples=60)
@given(data=st.data(), source=st.sampled_from(sorted(SOURCES)))
def test_records_that_the_intake_accepts_become_rows(data: st.DataObject, source: str) -> None:
    """No accepted record becomes a dead letter later, and every record's bytes are in `_payload`."""
    body = data.draw(bodies(source))
    intake = JsonIntake(SOURCES[source], body_bytes_max=2**20, spool_memory_bytes_max=2**20)
    try:
        intake.add_lines(body)
        checked = intake.finish()
    except Refused:
        return
    finally:
        intake.close()
    records = body.split(b"\n")
    encoded = encode(source, [message(1, records, source, stated=checked.records)])
    assert encoded.contents.quarantined == []
    read = table(encoded)
    read.validate(full=True)
    assert "\n".join(read.column("_payload").to_pylist()).encode() == body
    # the rows are the same if the records are lines, and if there are so many that Arrow reads them
    times = ARROW_ROWS_MIN
    repeated = [
        message(n, records, source, submission=accepted(source, "s1"), kind=MessageKind.LINES)
        for n in range(1, times + 1)
    ]
    assert table(encode(source, repeated)).equals(pa.concat_tables([read] * times))


PLAIN = '{"operator":"UA","run_number":1,"origin":"A","destination":"B","scheduled_at":"2013-01-01T05:15:00Z"}'


def encode_by_arrow(monkeypatch: pytest.MonkeyPatch, messages: Sequence[Message]) -> Encoded:
    """The messages as Arrow's reader encodes them; fails if a message is left to `decode_message`."""

    def fail(*_: object) -> None:
        pytest.fail("Arrow's reader could not read all messages")

    with monkeypatch.context() as patch:
        patch.setattr(encoder, "decode_message", fail)
        return encode("status", messages)


def test_arrow_reads_the_lines_of_many_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row has its own submission, index and default classification; no Python object is made per value."""
    records = [
        json.dumps(EVENT | {"run_number": n} | ({"classification_id": f"r{n}"} if n % 3 else {})).encode()
        for n in range(100)
    ]
    messages = [
        message(1, records[:10], "status", kind=MessageKind.LINES),
        message(
            2,
            records[10:],
            "status",
            submission=accepted("status", "s2", classification_default="two"),
            first_record=5,
            kind=MessageKind.LINES,
        ),
    ]
    read = table(encode_by_arrow(monkeypatch, messages))
    assert read.column("_payload").to_pylist() == [record.decode() for record in records]
    assert read.column("run_number").to_pylist() == list(range(100))
    assert read.column("_record_index").to_pylist() == [*range(10), *range(5, 95)]
    assert read.column("_submission_id").to_pylist() == ["s1"] * 10 + ["s2"] * 90
    defaults = ["run"] * 10 + ["two"] * 90
    assert read.column("classification_id").to_pylist() == [
        f"r{n}" if n % 3 else default for n, default in enumerate(defaults)
    ]


@pytest.mark.parametrize(
    "unusual",
    [
        PLAIN.replace('"UA"', '"AA","operator":"UA"'),  # a repeated name: the last value counts
        PLAIN.replace("05:15:00Z", "05:15:00.1234567Z"),  # more digits than are kept
        PLAIN.replace("}", ',"x":1e9999999999}'),  # a number that no double can hold, in a field that is not declared
    ],
)
def test_records_that_arrow_cannot_read_are_decoded_as_they_were_checked(unusual: str) -> None:
    """One such record among many sends none of them to quarantine, and its values are those that were checked."""
    records = [PLAIN.encode()] * 100 + [unusual.encode()]
    encoded = encode("status", [message(1, records, "status", kind=MessageKind.LINES)])
    assert encoded.contents.quarantined == []
    assert table(encoded).equals(
        table(encode("status", [message(1, records, "status", submission=accepted("status", "s1"))]))
    )


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([PLAIN, PLAIN + PLAIN], "cannot be decoded"),  # two records on a line
        ([PLAIN, PLAIN, PLAIN], "holds 3 records"),
        ([PLAIN], "holds 1 records"),
        ([PLAIN, ""], "cannot be decoded"),
        ([PLAIN, PLAIN.replace('"UA"', "null")], "cannot be decoded"),
        ([PLAIN, PLAIN.replace('"UA"', "NaN")], "cannot be decoded"),
    ],
)
def test_a_message_whose_lines_do_not_match_its_headers_is_a_dead_letter(lines: list[str], reason: str) -> None:
    """Also if the sum over several messages, or of rows and lines, would be right."""
    records = [PLAIN.encode()] * 100
    bad = message(2, [line.encode() for line in lines], "status", stated=2, kind=MessageKind.LINES)
    messages = [
        message(1, records, "status", kind=MessageKind.LINES),
        bad,
        message(3, records, "status", kind=MessageKind.LINES),
    ]
    encoded = encode("status", messages)
    (quarantined,) = encoded.contents.quarantined
    assert (quarantined.sequence, reason in quarantined.reason) == (2, True)
    assert table(encoded).num_rows == 200


@pytest.mark.parametrize("counts", [(61, 59), (59, 61), (0, 120)])
def test_messages_are_dead_letters_if_only_their_lines_together_match_their_headers(counts: tuple[int, int]) -> None:
    """Each states 60 records, and they are read together."""
    messages = [
        message(number, [PLAIN.encode()] * count, "status", stated=60, kind=MessageKind.LINES)
        for number, count in enumerate(counts, start=1)
    ]
    encoded = encode("status", messages)
    assert [quarantined.sequence for quarantined in encoded.contents.quarantined] == [1, 2]


def test_the_deepest_record_that_the_intake_accepts_becomes_a_row() -> None:
    """The consumer decodes records inside an array, one level deeper, and with another stack."""

    def record(depth: int) -> bytes:
        return b'{"vehicle_id":"a","x":' + b"[" * depth + b"]" * depth + b"}"

    def accepts(depth: int) -> bool:
        intake = JsonIntake(SOURCES["vehicles"], body_bytes_max=2**20, spool_memory_bytes_max=2**20)
        try:
            intake.add_lines(record(depth) + b"\n")
        except Refused:
            return False
        finally:
            intake.close()
        return True

    def deepest() -> int:
        low, high = 1, 400_000
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if accepts(middle) else (low, middle)
        return low

    # in threads, as in roles: there, most of the stack is free
    with ThreadPoolExecutor(1) as threads:
        depth = threads.submit(deepest).result()
        encoded = threads.submit(encode, "vehicles", [message(1, [record(depth)], "vehicles")]).result()
    assert encoded.contents.quarantined == []
    assert encoded.contents.records == 1


# --- columnar messages

COLUMNS = columnar_schema(SOURCES["vehicles"])


def columnar(
    columns: Mapping[str, Any],
    schema: pa.Schema = COLUMNS,
    stated: int = 1,
    source: str = "vehicles",
    **facts: Any,
) -> Message:
    """A message of these columns, as the API's reader of columnar bodies writes it; missing columns are null."""
    count = max(map(len, columns.values()), default=1)
    batch = pa.RecordBatch.from_arrays(
        [pa.array(columns.get(field.name, [None] * count), field.type) for field in schema], schema=schema
    )
    sink = BytesIO()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(batch)
    return columnar_message(sink.getvalue(), stated, source, **facts)


def columnar_message(payload: bytes, stated: int = 1, source: str = "vehicles", **facts: Any) -> Message:
    submission = accepted(source, "columnar", **facts)
    headers = Part(submission, 1, 1, 0, stated, MessageKind.COLUMNAR).headers()
    return Message(1, lane_subject(source, 0, submission.submission_id), TIME, headers, payload)


def test_a_columnar_message_becomes_rows_beside_those_of_other_messages() -> None:
    """In order, with its own classifications, and with the JSON of the undeclared columns as the payload."""
    payload = '{"x":[1,{"é":null}]}'
    columns = {
        "vehicle_id": ["a", "b"],
        "seats": [2**63 - 1, None],
        "classification_id": [None, "own"],
        "_payload": [payload, None],
    }
    encoded = encode("vehicles", [columnar(columns, stated=2), message(2, [b'{"vehicle_id":"c"}'], "vehicles")])
    read = table(encoded)
    assert read.schema.remove_metadata() == object_schema(SOURCES["vehicles"])
    wanted = ["vehicle_id", "seats", "classification_id", "_submission_id", "_record_index", "_payload"]
    assert [tuple(row.values()) for row in read.select(wanted).to_pylist()] == [
        ("a", 2**63 - 1, "run", "columnar", 0, payload),
        ("b", None, "own", "columnar", 1, None),
        ("c", None, "run", "s2", 0, '{"vehicle_id":"c"}'),
    ]
    assert encoded.contents.quarantined == []
    assert encoded.contents.classifications == ["run", "own"]


def test_a_columnar_message_of_an_earlier_version_has_nulls_for_new_fields() -> None:
    earlier = columnar({"thing_id": ["a"]}, columnar_schema(THINGS.at_version(1)), source="things", schema_version=1)
    (row,) = table(encode("things", [earlier])).to_pylist()
    assert (row["thing_id"], row["colour"], row["_schema_version"]) == ("a", None, 1)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        pytest.param(columnar_message(b"{}"), "cannot be decoded", id="no stream"),
        pytest.param(columnar_message(b""), "cannot be decoded", id="empty"),
        pytest.param(columnar({"vehicle_id": ["a"]}, stated=2), "holds 1 records", id="another count"),
        pytest.param(columnar({"vehicle_id": []}, stated=0), "holds 0 records", id="no rows"),
        pytest.param(columnar({}), "vehicle_id has nulls", id="null in a required field"),
        pytest.param(columnar({}, COLUMNS.remove(0)), "are not those of vehicles", id="column missing"),
        pytest.param(columnar({}, COLUMNS.append(pa.field("x", pa.int8()))), "are not those", id="unknown column"),
        pytest.param(
            columnar({"vehicle_id": ["a"]}, classification_default=None), "classification_id", id="no classification"
        ),
        pytest.param(columnar({"vehicle_id": ["a"]}, received_at="yesterday"), "yesterday", id="invalid time"),
    ],
)
def test_a_columnar_message_that_cannot_become_rows_is_a_dead_letter(bad: Message, reason: str) -> None:
    """Only this message goes to quarantine."""
    encoded = encode("vehicles", [bad, message(2, [b'{"vehicle_id":"good"}'], "vehicles")])
    (quarantined,) = encoded.contents.quarantined
    assert reason in quarantined.reason
    assert table(encoded).num_rows == 1


# --- rules 3, 7 and 8: messages without rows, and submissions in several objects


@pytest.mark.parametrize(
    ("records", "stated", "reason"),
    [
        ([b'{"vehicle_id":1}'], 1, "cannot be decoded"),
        ([b"{"], 1, "cannot be decoded"),
        ([b'{"vehicle_id":"\xff"}'], 1, "cannot be decoded"),
        ([b'{"vehicle_id":"a"}'], 2, "holds 1 records"),
        ([], 0, "holds 0 records"),
    ],
)
def test_a_dead_letter_is_listed_beside_the_good_messages(records: list[bytes], stated: int, reason: str) -> None:
    """It affects no other message: the messages before and after it become rows."""
    good = b'{"vehicle_id":"good"}'
    bad = message(2, records, "vehicles", stated=stated)
    encoded = encode("vehicles", [message(1, [good], "vehicles"), bad, message(3, [good, good], "vehicles")])
    (quarantined,) = encoded.contents.quarantined
    assert (quarantined.sequence, quarantined.key) == (2, quarantine_key(Lane("vehicles", 0, EPOCH), 2))
    assert reason in quarantined.reason
    assert quarantined.headers == bad.headers
    assert encoded.contents.records == table(encoded).num_rows == 3
    parts_quarantined = {
        stored.accepted.submission_id: stored.parts_quarantined for stored in encoded.contents.submissions
    }
    assert parts_quarantined == {"s1": 0, "s2": 1, "s3": 0}


def test_a_compressed_message_becomes_the_rows_of_a_plain_one_and_a_truncated_one_is_a_dead_letter() -> None:
    records = [b'{"vehicle_id":"a", "x" : 1}'] * 200
    plain = message(1, records, "vehicles")
    frame = zstandard.compress(plain.payload)
    headers = {**plain.headers, HEADER_ENCODING: ZSTD}
    compressed = replace(plain, headers=headers, payload=frame)
    truncated = replace(message(2, records, "vehicles"), payload=frame[:-1])
    truncated = replace(truncated, headers={**truncated.headers, HEADER_ENCODING: ZSTD})
    encoded = encode("vehicles", [compressed, truncated])
    assert table(encoded).equals(table(encode("vehicles", [plain])))
    (quarantined,) = encoded.contents.quarantined
    assert (quarantined.sequence, quarantined.records) == (2, 200)
    assert "its payload cannot be decoded" in quarantined.reason


def test_a_message_is_a_dead_letter_if_neither_record_nor_submission_has_a_classification() -> None:
    submission = accepted("vehicles", classification_default=None)
    encoded = encode("vehicles", [message(1, [b'{"vehicle_id":"a"}'], "vehicles", submission=submission)])
    assert "classification_id" in encoded.contents.quarantined[0].reason


def test_a_range_of_only_dead_letters_and_duplicates_is_an_object_without_rows() -> None:
    """It advances the position of the chain, and can be read like any other object."""
    without_headers = Message(1, lane_subject("vehicles", 0, "x"), TIME, {}, b"\x00")
    copy = message(2, [b'{"vehicle_id":"a"}'] * 3, "vehicles")
    elsewhere = Identity(
        accepted=Part.parse(copy.headers).accepted,
        epoch=EPOCH,
        lane=0,
        first_sequence=1,
        parts=1,
        parts_done=1,
        parts_quarantined=0,
        objects=["earlier"],
    )
    encoded = encode("vehicles", [without_headers, copy], [elsewhere])
    read = footer(encoded.body)
    assert (read.first, read.last, read.records, read.submissions) == (1, 2, 0, [])
    assert [quarantined.sequence for quarantined in read.quarantined] == [1]
    assert [(duplicate.sequence, duplicate.records) for duplicate in read.duplicates] == [(2, 3)]
    assert table(encoded).num_rows == 0
    assert table(encoded).schema.remove_metadata() == object_schema(SOURCES["vehicles"])


def test_a_message_that_kills_its_decoder_goes_to_quarantine_without_being_decoded() -> None:
    lane = Lane("vehicles", 0, EPOCH)
    fatal = message(1, [b'{"vehicle_id":"a"}'], "vehicles")
    encoded = encode_cut("vehicles", lane, reconcile(lane, [fatal], {}, skip_decoding=True))
    (quarantined,) = encoded.contents.quarantined
    assert (quarantined.sequence, quarantined.records) == (1, 1)
    assert quarantined.reason == "its consumer died 3 times while decoding it"
    assert encoded.contents.records == 0
    assert encoded.contents.submissions[0].parts_quarantined == 1


def test_the_parts_of_a_submission_are_counted_across_objects() -> None:
    """Each object's footer states how many of all parts are done so far, and in which objects."""
    submission = accepted("vehicles")
    good, bad = [b'{"vehicle_id":"a"}'], [b"{"]
    first = encode(
        "vehicles",
        [
            message(1, good, "vehicles", submission=submission, part=(1, 3)),
            message(2, bad, "vehicles", submission=submission, part=(2, 3)),
        ],
    )
    identities = identities_of(first.contents)
    second = encode("vehicles", [message(3, good, "vehicles", submission=submission, part=(3, 3))], identities)
    (stored,) = second.contents.submissions
    assert (stored.first_sequence, stored.parts, stored.parts_done, stored.parts_quarantined) == (1, 3, 3, 1)
    assert stored.objects == [first.contents.file_path, second.contents.file_path]
    assert [submission.records for submission in (*first.contents.submissions, stored)] == [1, 1]
    assert identities[0].parts_done == 2


# --- the footer of an object


def test_the_footer_states_all_contents_of_the_object() -> None:
    encoded = encode("vehicles", [message(n, [b'{"vehicle_id":"a"}'] * n, "vehicles") for n in (1, 2, 3)])
    assert footer(encoded.body) == encoded.contents
    assert encoded.contents.digest == digest([message(n, [], "vehicles") for n in (1, 2, 3)])


def test_the_rows_of_a_classification_are_counted_by_submission(monkeypatch: pytest.MonkeyPatch) -> None:
    """In any row groups; and the footer states the object's classifications and their bounds."""
    monkeypatch.setattr(file_writer, "ROW_GROUP_ROWS", 7)

    def classified(submission: str, *ids: str) -> Message:
        lines = [b'{"vehicle_id":"a","classification_id":"%s"}' % classification.encode() for classification in ids]
        facts = accepted("vehicles", submission, classification_id=None, classification_count=len(set(ids)))
        return message(len(submission), lines, "vehicles", submission=facts)

    encoded = encode(
        "vehicles",
        [classified("a", *(f"run-{n:03}" for n in range(200))), classified("bb", "run-150", "run-150", "x")],
    )
    expected = {"run-003": {"a": 1}, "run-150": {"a": 1, "bb": 2}, "x": {"bb": 1}, "run-1500": {}}
    for classification, rows_by_submission in expected.items():
        assert submissions_with(BytesIO(encoded.body), classification) == rows_by_submission
    contents = encoded.contents
    assert (len(contents.classifications), contents.classification_count) == (128, 201)
    assert (contents.classification_least, contents.classification_greatest) == ("run-000", "x")
    with pytest.raises(NotABronzeObject):
        submissions_with(BytesIO(encoded.body[:-1]), "x")


@pytest.mark.parametrize("body", [b"PAR1" + b"\xff" * 40 + b"PAR1", b"x" * 50, b"PAR1" + b"\0" * 20 + b"\4\0\0\0PAR1"])
def test_an_invalid_parquet_file_is_not_a_bronze_object(body: bytes) -> None:
    with pytest.raises(NotABronzeObject):
        footer(body)


def test_a_parquet_file_of_another_writer_is_not_a_bronze_object() -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1]}), sink)
    with pytest.raises(NotABronzeObject, match="does not describe its contents"):
        footer(sink.getvalue().to_pybytes())


def test_the_largest_user_metadata_is_ascii_and_within_the_limit_of_s3() -> None:
    """The limit is 2 KB for all names and values."""
    contents = encode("vehicles", [message(1, [b'{"vehicle_id":"a"}'], "vehicles")]).contents
    extreme = msgspec.structs.replace(
        contents, first=2**63, last=2**63, lane=10**6, messages=2**31, records=2**63, quarantined=[], writer="b" * 64
    )
    metadata = user_metadata(extreme) | {"sha256": "0" * 64}
    assert all(f"{name}{value}".isascii() for name, value in metadata.items())
    assert sum(len(name) + len(value) for name, value in metadata.items()) < 1_024


def test_999_submissions_make_one_object() -> None:
    records = [b'{"vehicle_id":"%d"}' % n for n in range(999)]
    messages = [message(n + 1, [record], "vehicles") for n, record in enumerate(records)]
    encoded = encode("vehicles", messages)
    assert len(footer(encoded.body).submissions) == 999
    assert table(encoded).column("_payload").to_pylist() == [record.decode() for record in records]
    assert pc.count_distinct(table(encoded).column("_submission_id")).as_py() == 999


def test_duckdb_reads_the_same_rows() -> None:
    sent = [json.dumps(EVENT | {"delay_min": n}, ensure_ascii=False).encode() for n in range(100)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "object.parquet"
        path.write_bytes(encode("status", [message(1, sent, "status")]).body)
        with duckdb.connect() as database:
            relation = database.read_parquet(str(path))
            assert relation.columns == object_schema(SOURCES["status"]).names
            rows = relation.order("_record_index").project("_payload, delay_min").fetchall()
    assert rows == [(record.decode(), float(n)) for n, record in enumerate(sent)]


@pytest.mark.parametrize(
    "text",
    [
        "2013-01-01T10:15:00Z",
        "2013-01-01T10:15:00.5+05:30",
        "2013-01-01 10:15:00.123456-05:00",
        "2013-01-01t10:15:00z",  # Arrow cannot parse this
        "2013-01-01T10:15:00.1234567Z",  # nor this
        "0001-01-02T00:00:00Z",
        "9999-12-30T23:59:59.999999Z",
    ],
)
def test_a_time_is_stored_as_it_was_checked(text: str) -> None:
    """However it is written, and with any other values in the column."""
    checked = msgspec.json.decode(msgspec.json.encode(text), type=dt.datetime)
    assert _times([text, None, "2013-01-01T10:15:00Z"])[0].as_py() == checked
