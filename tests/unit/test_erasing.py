"""Erasing: the chosen rows and records are gone, and everything else is as it was."""

import json
from io import BytesIO
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.client.condition import parse
from bronze.errors import Refused
from bronze.objects import file_writer
from bronze.objects.encoder import Encoded
from bronze.objects.erasing import erase_rows
from bronze.objects.footer import user_metadata
from bronze.objects.quarantine_erasing import NotSearchable, erase_records
from bronze.objects.selection import Chosen
from bronze.protocol.documents import Contents, StoredObject, entry_of
from bronze.protocol.message import HEADER_SUBMISSION, Message, MessageKind, Part
from bronze.protocol.rejected_records import encode_note, pack, unpack
from bronze.records.columns import object_schema
from bronze.records.sources import parse as parse_sources
from bronze.servers.bucket import STORED_BYTES
from tests.unit.test_objects import SOURCES, accepted, bodies, columnar, encode, footer, message, table

PERSON = "person-7"
REJECTED, MESSAGE = "quarantine/source=vehicles/e-0-000000000001.rejected", "quarantine/x.message"
FIELDS_OF_TYPES = """
[types]
description = "A field of each type whose values JSON writes in another form."
fields = [
    { name = "count", type = "int64", description = "In no record." },
    { name = "price", type = "decimal128(9, 2)", description = "It." },
    { name = "at", type = "timestamp", description = "With an offset." },
    { name = "local", type = "timestamp", timezone = "Europe/Berlin", description = "Without one." },
    { name = "epoch", type = "timestamp", unit = "s", description = "A number." },
    { name = "key", type = "binary", description = "In base64." },
    { name = "doc", type = "json", description = "Any." },
    { name = "day", type = "date32", description = "It." },
]
"""
#: What an erasure changes in a footer, if the object has chosen rows.
OF_ROWS = {
    "classifications",
    "classification_count",
    "classification_least",
    "classification_greatest",
    "event_times",
    "erasures",
    "submissions",
}


def of_person() -> Chosen:
    return Chosen.of_classification(PERSON)


def where(text: str, source: str = "vehicles") -> Chosen:
    return Chosen.of_source(SOURCES[source], parse(text, object_schema(SOURCES[source])))


def records(*classifications: str | None, **fields: Any) -> list[bytes]:
    return [
        json.dumps({"vehicle_id": f"v{number}", "classification_id": classification} | fields).encode()
        for number, classification in enumerate(classifications)
    ]


def unchanged(contents: Contents) -> dict[str, object]:
    return {name: getattr(contents, name) for name in contents.__struct_fields__ if name not in OF_ROWS}


@settings(max_examples=25, deadline=None)
@given(data=st.data(), source=st.sampled_from(sorted(SOURCES)), group_rows=st.integers(1, 5))
def test_all_other_rows_and_the_facts_about_messages_stay(data: st.DataObject, source: str, group_rows: int) -> None:
    """In each column, in their order, also of objects of several row groups; the columns are the same in the file."""
    sent = []
    for number in range(1, data.draw(st.integers(1, 4)) + 1):
        lines = [json.loads(line) for line in data.draw(bodies(source)).split(b"\n")]
        ids = data.draw(st.lists(st.sampled_from([PERSON, "a", "z"]), min_size=len(lines), max_size=len(lines)))
        raw = [json.dumps(line | {"classification_id": one}).encode() for line, one in zip(lines, ids, strict=True)]
        facts = accepted(source, f"s{number}", classification_id=ids[0] if len(set(ids)) == 1 else None)
        sent.append(message(number, raw, source, submission=facts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_writer, "ROW_GROUP_ROWS", group_rows)
        try:
            encoded = encode(source, sent)
        except Refused:
            return
        done = erase_rows(encoded.body, of_person(), "erasure")
    before = table(encoded)
    mask = pc.equal(before["classification_id"], PERSON)
    erased = pc.sum(mask).as_py() or 0
    if done is None:
        assert erased == 0
        return
    assert pq.read_table(BytesIO(done.body)).equals(before.filter(pc.invert(mask)))
    assert pq.ParquetFile(BytesIO(done.body)).schema.equals(pq.ParquetFile(BytesIO(encoded.body)).schema)
    assert footer(done.body) == done.contents
    assert unchanged(done.contents) == unchanged(encoded.contents) | {"quarantined": done.contents.quarantined}
    assert (done.contents.erased, done.contents.rows) == (erased, before.num_rows - erased)
    assert PERSON.encode() not in done.body
    left = {*before["classification_id"].to_pylist()} - {PERSON}
    assert {*done.contents.classifications} == left
    assert done.contents.classification_least == min(left, default=None)
    assert erase_rows(done.body, of_person(), "again") is None


def erased(encoded: Encoded, chosen: Chosen, erasure_id: str = "erasure") -> Contents:
    done = erase_rows(encoded.body, chosen, erasure_id)
    assert done is not None
    return done.contents


def test_what_an_object_adds_to_its_lane_stays() -> None:
    """Its records and its bytes count as before, in the totals, in the entry and for whoever compares sizes."""
    encoded = encode("vehicles", [message(1, records(PERSON, "a", PERSON), "vehicles")])
    done = erase_rows(encoded.body, of_person(), "first")
    assert done is not None
    again = erase_rows(done.body, Chosen.of_classification("a"), "second")
    assert again is not None
    assert table(encoded).num_rows == 3
    assert pq.read_metadata(BytesIO(again.body)).num_rows == 0
    assert again.contents.erasures
    assert [(one.erasure_id, one.records, one.bytes) for one in again.contents.erasures] == [
        ("first", 2, len(encoded.body)),
        ("second", 1, len(done.body)),
    ]
    stored = StoredObject(size=len(again.body), contents=again.contents)
    assert stored.totals == encoded.stored.totals
    entry = entry_of(again.contents)
    assert (entry.records, entry.erased, entry.classifications, entry.classification_least) == (3, 3, [], None)
    metadata = user_metadata(again.contents)
    assert (metadata["bronze-records"], metadata[STORED_BYTES]) == ("3", str(len(encoded.body)))


def test_a_submission_loses_the_classification_that_was_erased_and_no_other() -> None:
    """Also where it is a default; its digest and its records stay, so that a retry is recognized."""
    only = accepted("vehicles", "only", classification_id=PERSON, classification_default=PERSON)
    other = accepted("vehicles", "other", classification_id="a", classification_default="a")
    several = accepted("vehicles", "several", classification_id=None, classification_default=PERSON)
    sent = [
        message(1, records(None, None), "vehicles", submission=only),
        message(2, records(None), "vehicles", submission=other),
        message(3, records(None, "a"), "vehicles", submission=several),
    ]
    contents = erased(encode("vehicles", sent), of_person())
    found = [stored.accepted for stored in contents.submissions]
    assert [(one.classification_id, one.classification_default) for one in found] == [
        (None, None),
        ("a", "a"),
        (None, None),
    ]
    assert [(one.digest, one.records) for one in found] == [(one.digest, one.records) for one in (only, other, several)]
    assert PERSON not in msgspec.json.encode(entry_of(contents)).decode()


def test_rows_are_chosen_by_a_condition() -> None:
    """A null is not chosen. A submission without a row that is left has no classification any more."""
    sent = [
        message(1, [b'{"vehicle_id":"a","seats":1}'], "vehicles"),
        message(2, [b'{"vehicle_id":"a"}', b'{"vehicle_id":"b","seats":1}'], "vehicles"),
    ]
    encoded = encode("vehicles", sent)
    done = erase_rows(encoded.body, where("vehicle_id = 'a' AND seats < 5"), "erasure")
    assert done is not None
    assert pq.read_table(BytesIO(done.body))["vehicle_id"].to_pylist() == ["a", "b"]
    assert [stored.accepted.classification_id for stored in done.contents.submissions] == [None, "run"]
    assert where("vehicle_id = 'a'").count(BytesIO(encoded.body)) == 2
    assert where("vehicle_id = 'c'").count(BytesIO(encoded.body)) == 0
    assert erase_rows(encoded.body, where("vehicle_id = 'c'"), "erasure") is None


def test_a_column_that_an_object_lacks_is_null() -> None:
    """As for readers: objects of before a field was declared can be searched too."""
    encoded = encode("vehicles", [message(1, records("a"), "vehicles")])
    shorter = pq.read_table(BytesIO(encoded.body)).drop_columns(["seats"])
    sink = BytesIO()
    with pq.ParquetWriter(sink, shorter.schema, store_schema=False) as writer:
        writer.write_table(shorter)
        writer.add_key_value_metadata({b"bronze": msgspec.json.encode(encoded.contents)})
    assert where("seats > 1").count(sink) == 0
    assert where("seats IS NULL").count(sink) == 1
    done = erase_rows(sink.getvalue(), where("seats IS NULL AND vehicle_id = 'v0'"), "erasure")
    assert done is not None
    assert done.contents.erased == 1


# --- messages in quarantine


def test_a_header_in_the_footer_loses_the_classification() -> None:
    submission = accepted("vehicles", classification_id=PERSON, classification_default=PERSON)
    contents = erased(encode("vehicles", [message(1, [b"{"], "vehicles", submission=submission)]), of_person())
    (quarantined,) = contents.quarantined
    part = Part.parse(quarantined.headers)
    assert (part.accepted.classification_id, part.accepted.submission_id, part.records) == (None, "s", 1)
    assert (contents.erased, contents.records) == (0, 0)


def test_headers_that_cannot_be_read_lose_it_too() -> None:
    good = message(1, [b'{"vehicle_id":"a"}'], "vehicles")
    bad = Message(2, good.subject, good.time, {**good.headers, HEADER_SUBMISSION: f'{{"x":"{PERSON}"'}, b"")
    contents = erased(encode("vehicles", [good, bad]), of_person())
    assert contents.quarantined[0].headers[HEADER_SUBMISSION] == ""


def rejected(*raw: bytes, **facts: Any) -> bytes:
    notes = [encode_note(number, "schema-violation", "why", None, record) for number, record in enumerate(raw)]
    return msgspec.json.encode(accepted("vehicles", **facts)) + b"\n" + pack(notes, raw)


def test_rejected_records_are_erased_one_by_one() -> None:
    """The others keep their index and their bytes; one that is no JSON is searched as text."""
    other = b'{"vehicle_id": 7,\n "classification_id":"a"}'
    content = rejected(*records(PERSON), other, b'{"broken": "%s"' % PERSON.encode(), classification_default="a")
    done = erase_records(REJECTED, content, None, of_person())
    assert done is not None
    assert done.records == 2
    _, left = unpack(done.content)
    assert [(note.index, record) for note, record in left] == [(1, other)]
    assert erase_records(REJECTED, done.content, None, of_person()) is None


@pytest.mark.parametrize(
    "text",
    [
        'Jos\\u00E9/\\"\U0001f600\\"',
        'Jos\\u00e9\\/\\"\\ud83d\\uDE00\\"',
        'José\\/\\u0022\U0001f600\\"',
    ],
)
def test_a_broken_record_is_searched_for_each_form_of_the_id(text: str) -> None:
    """JSON has several: programs differ in what they escape, and in which case."""
    of = Chosen.of_classification('José/"\U0001f600"')
    content = rejected(f'{{"classification_id": "{text}", '.encode(), b'{"classification_id": "Jos\\\\u00e9\\ud83d')
    done = erase_records(REJECTED, content, None, of)
    assert done is not None
    assert done.records == 1


@pytest.mark.parametrize("value", [[PERSON], {"id": PERSON}, [{"id": [f"{PERSON} "]}]])
def test_a_classification_that_is_no_text_is_searched_for_the_id(value: Any) -> None:
    content = rejected(json.dumps({"classification_id": value}).encode(), b'{"classification_id": ["a"]}')
    done = erase_records(REJECTED, content, None, of_person())
    assert done is not None
    assert done.records == 1


def test_rejected_records_of_the_submission_have_its_classification() -> None:
    content = rejected(b'{"vehicle_id":7}', b"[", classification_id=PERSON, classification_default=PERSON)
    done = erase_records(REJECTED, content, None, of_person())
    assert done is not None
    assert (done.records, PERSON.encode() in done.content) == (2, False)
    assert unpack(done.content)[1] == []


def test_rejected_records_are_chosen_by_the_fields_that_fit() -> None:
    """Of a record that does not fit its source, the condition sees the fields that do."""
    content = rejected(b'{"vehicle_id":"a","seats":"many"}', b'{"vehicle_id":"b"}')
    done = erase_records(REJECTED, content, None, where("vehicle_id = 'a'"))
    assert done is not None
    assert (done.records, [record for _, record in unpack(done.content)[1]]) == (1, [b'{"vehicle_id":"b"}'])
    assert erase_records(REJECTED, content, None, where("seats = 5")) is None
    with pytest.raises(NotSearchable):
        erase_records(REJECTED, rejected(b"{"), None, where("vehicle_id = 'a'"))


@pytest.mark.parametrize(
    ("field", "value", "condition"),
    [
        ("price", "12.50", "price = 12.5"),
        ("price", '"12.5"', "price = 12.5"),
        ("at", '"2013-02-03T04:05:06.1234564+02:00"', "at = '2013-02-03T02:05:06.123456Z'"),
        ("local", '"2013-02-03T04:05:06"', "local = '2013-02-03T03:05:06Z'"),
        ("epoch", "1359857106", "epoch = '2013-02-03T02:05:06Z'"),
        ("key", '"dDE="', "key = 't1'"),
        ("doc", '{"a":  [1]}', """doc = '{"a":  [1]}'"""),
        ("day", '"2013-02-03"', "day = '2013-02-03'"),
    ],
)
def test_rejected_records_have_the_values_that_their_rows_would_have(field: str, value: str, condition: str) -> None:
    """Of each type; what does not fit is null."""
    source = parse_sources(FIELDS_OF_TYPES, "types.toml")["types"]
    chosen = Chosen.of_source(source, parse(condition, object_schema(source)))
    content = rejected(
        f'{{"count": "many", "{field}": {value}}}'.encode(), b'{"count": "many", "%s": []}' % field.encode()
    )
    done = erase_records(REJECTED, content, None, chosen)
    assert done is not None
    assert done.records == 1


@pytest.mark.parametrize("key", [REJECTED, MESSAGE])
def test_a_record_that_cannot_be_read_does_not_hide_the_others(key: str) -> None:
    """Those that meet the condition are erased; it stays, and is counted, also when nothing else is left to erase."""
    mine, other, broken = b'{"vehicle_id":"a","seats":"many"}', b'{"vehicle_id":"b"}', b'{"vehicle_id":"a" '
    raw = [mine, b"not json at all", other, broken]
    part = Part(accepted("vehicles"), 1, 1, 0, len(raw), MessageKind.LINES)
    content = rejected(*raw) if key == REJECTED else b"\n".join(raw)
    done = erase_records(key, content, part, where("vehicle_id = 'a'"))
    assert done is not None
    assert (done.records, done.not_searched, done.nothing_left) == (1, 2, False)
    assert mine not in done.content
    assert all(record in done.content for record in raw[1:])
    with pytest.raises(NotSearchable):
        erase_records(key, done.content, part, where("vehicle_id = 'a'"))


@pytest.mark.parametrize("kind", [MessageKind.LINES, MessageKind.RECORDS])
def test_what_is_left_of_a_dead_letter_keeps_its_place(kind: MessageKind) -> None:
    sent = message(1, records("a", PERSON, "b"), "vehicles", kind=kind)
    done = erase_records(MESSAGE, sent.payload, Part.parse(sent.headers), of_person())
    assert done is not None
    assert (done.records, done.nothing_left) == (1, False)
    a, _, b = records("a", PERSON, "b")
    assert done.content == (a + b"\n\n" + b if kind is MessageKind.LINES else b"[" + a + b",null," + b + b"]")
    rest = erase_records(MESSAGE, done.content, Part.parse(sent.headers), where("vehicle_id IN ('v0', 'v2')"))
    assert rest is not None
    assert (rest.records, rest.nothing_left) == (2, True)


def test_a_dead_letter_that_cannot_be_read_goes_as_a_whole_or_is_named() -> None:
    """It goes if its submission is of the classification, or has it in its text."""
    mine = Part(accepted("vehicles", classification_id=PERSON), 1, 1, 0, 1)
    other = Part(accepted("vehicles", classification_id="a"), 1, 1, 0, 1)
    text = b'[{"x":"%s"' % PERSON.encode()
    for content, part, count in ((b"{", mine, None), (text, other, None), (PERSON.encode(), None, 1)):
        done = erase_records(MESSAGE, content, part, of_person())
        assert done is not None
        assert (done.content, done.records) == (b"", count)
    assert erase_records(MESSAGE, b"[{", other, of_person()) is None
    with pytest.raises(NotSearchable):
        erase_records(MESSAGE, b"[{", other, where("vehicle_id = 'a'"))
    assert erase_records(MESSAGE, b"", mine, of_person()) is None


def test_rows_of_a_columnar_dead_letter_are_erased() -> None:
    """A row without a classification has that of its submission."""
    columns = {"vehicle_id": ["a", "b", "c"], "classification_id": ["a", None, "c"]}
    sent = columnar(columns, stated=2, classification_default=PERSON)  # a dead letter: it has three
    part = Part.parse(sent.headers)
    done = erase_records(MESSAGE, sent.payload, part, of_person())
    assert done is not None
    with pa.ipc.open_stream(done.content) as stream:
        assert stream.read_all()["vehicle_id"].to_pylist() == ["a", "c"]
    assert erase_records(MESSAGE, done.content, part, of_person()) is None
    with pytest.raises(NotSearchable):
        erase_records(MESSAGE, sent.payload[:-40], part, Chosen.of_classification("z"))
