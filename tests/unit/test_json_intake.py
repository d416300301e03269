"""The intake of JSON bodies: the messages that a body becomes, and its refusals."""

import json
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.errors import DeadLetter, Refused
from bronze.protocol.message import (
    FILE_NAME_CHARS_MAX,
    FORMAT,
    HEADER_BYTES_MAX,
    HEADER_ENCODING,
    HEADER_PART,
    HEADER_SUBMISSION,
    MESSAGE_BYTES_MAX,
    MESSAGES_MAX,
    ZSTD,
    ZSTD_BYTES_MIN,
    MessageKind,
    Part,
    compress,
    content_bytes,
    decompress,
    format_version,
    split_records,
)
from bronze.protocol.submission_id import keyed_id, lane_of, new_id
from bronze.records import sources
from bronze.records.json_intake import JsonIntake
from bronze.records.sources import CLASSIFICATION_ID_CHARS_MAX
from tests import factories

SOURCES = sources.built_in()
RECORD_BYTES_MAX = MESSAGE_BYTES_MAX - HEADER_BYTES_MAX - 2
#: The bytes that the queue's protocol adds: its first line, the expected stream and sequence, the batch's headers.
PROTOCOL_BYTES = 512

ACCEPTED = factories.accepted(
    records=2**31, classification_id=None, classification_default=None, classification_count=0
)


@dataclass(frozen=True)
class Intake:
    """A body after its intake: everything that a submission is made from."""

    digest: str
    records: int
    body_bytes: int
    classifications: tuple[str, ...]
    unclassified: int
    places: list[tuple[int, int, int, int]]
    contents: list[bytes]


def check(
    feed: Callable[[JsonIntake], None],
    source: str = "vehicles",
    body_bytes_max: int = 2**30,
    memory: int = 2**20,
    *,
    quarantine_rejected: bool = False,
) -> Intake:
    intake = JsonIntake(
        SOURCES[source],
        body_bytes_max=body_bytes_max,
        spool_memory_bytes_max=memory,
        quarantine_rejected=quarantine_rejected,
    )
    try:
        feed(intake)
        checked = intake.finish()
        parts = list(checked.parts(ACCEPTED))
        return Intake(
            checked.digest,
            checked.records,
            checked.body_bytes,
            checked.classifications,
            checked.unclassified,
            [(part.number, part.count, part.first_record, part.records) for part, _ in parts],
            [decompress(part.headers(), payload) for part, payload in parts],
        )
    finally:
        intake.close()


def check_lines(pieces: Iterable[bytes], source: str = "vehicles", **bounds: Any) -> Intake:
    def feed(intake: JsonIntake) -> None:
        for piece in pieces:
            intake.add_lines(piece)

    return check(feed, source, **bounds)


def check_document(body: bytes, source: str = "vehicles", **bounds: Any) -> Intake:
    return check(lambda intake: intake.add_document(body), source, **bounds)


def split(body: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    ends = sorted({min(end, len(body)) for end in cuts} | {len(body)})
    return (body[start:end] for start, end in zip([0, *ends], ends, strict=False))


def record_of_size(size: int) -> bytes:
    empty = b'{"vehicle_id":""}'
    return empty[:-2] + b"a" * (size - len(empty)) + empty[-2:]


ZSTD_HEADERS = {HEADER_ENCODING: ZSTD}
CUTS = st.lists(st.integers(0, 2_000), max_size=20)

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


@st.composite
def record_texts(draw: st.DrawFn) -> bytes:
    """A valid record as any client might write it: with any undeclared fields, escapes and spaces."""
    extra = draw(st.dictionaries(st.text().map(lambda name: f"x{name}"), _VALUES, max_size=3))
    named = draw(st.none() | st.text(min_size=1, max_size=5))
    record = {"vehicle_id": draw(st.text()), **extra} | ({"classification_id": named} if named else {})
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", " : ")]))
    return json.dumps(record, ensure_ascii=draw(st.booleans()), separators=separators).encode()


# --- the messages of a body


@settings(max_examples=50)
@given(records=st.lists(record_texts(), min_size=1, max_size=5), cuts=CUTS, data=st.data())
def test_any_split_of_ndjson_gives_the_same_messages_with_the_records_bytes(
    records: Sequence[bytes], cuts: list[int], data: st.DataObject
) -> None:
    """Pieces, line endings, blank lines and a missing last newline make no difference; a record's bytes are kept."""
    ends = data.draw(st.lists(st.sampled_from([b"\n", b"\r\n", b"\n\n", b" \t\r\n \n"]), min_size=len(records)))
    body = b"".join(record + end for record, end in zip(records, ends, strict=False))
    if data.draw(st.booleans()):
        body = body.rstrip(b" \t\r\n")
    intake = check_lines(split(body, cuts))
    assert intake.contents == [b"\n".join(records)]
    assert intake == check_lines([body])
    assert (intake.records, intake.body_bytes) == (len(records), len(body))


@settings(max_examples=30)
@given(records=st.lists(record_texts(), min_size=1, max_size=5), indent=st.sampled_from([b"", b" ", b"\n  "]))
def test_a_json_array_and_ndjson_give_the_same_messages(records: Sequence[bytes], indent: bytes) -> None:
    array = indent + b"[" + indent + (indent + b"," + indent).join(records) + indent + b"]" + indent
    (message,) = check_document(array).contents
    assert split_records(MessageKind.RECORDS if b"\n" in array else MessageKind.LINES, message) == records
    if b"\n" not in array:
        assert [message] == check_lines([b"\n".join(records)]).contents


@settings(max_examples=30)
@given(record=record_texts())
def test_a_json_object_is_one_record(record: bytes) -> None:
    assert check_document(b"\r " + record + b" \r").contents == [record]
    assert check_document(b"\r\n " + record + b" \n").contents == [b"[" + record + b"]"]


@pytest.mark.parametrize(
    "record",
    [
        b'{"vehicle_id":"a","x":123456789012345678901234567890.000000000000000000001e-7}',
        b'{"vehicle_id":"a","vehicle_id":"b"}',
        b'{"vehicle_id":"\\u0061\\/\\u0000"}',
        b'{"vehicle_id":"a","seats":9223372036854775807}',
        b'{"vehicle_id":"a","x":%s}' % (b"[" * 100 + b"]" * 100),
        '{"vehicle_id":"\N{SNOWMAN}\N{PILE OF POO}"}'.encode(),
    ],
)
def test_bytes_that_a_parser_would_lose_are_kept(record: bytes) -> None:
    """Large numbers, duplicate keys and escapes are in the message as received."""
    assert check_lines([record]).contents == check_document(record).contents == [record]


def test_classifications_are_listed_in_order_of_appearance() -> None:
    names = ["b", "a", "b", None]
    records = [{"vehicle_id": "v"} | ({"classification_id": name} if name else {}) for name in names]
    intake = check_document(json.dumps(records).encode())
    assert (intake.classifications, intake.unclassified) == (("b", "a"), 1)


@pytest.mark.parametrize("cuts", [[], range(0, 6 * 2**20, 99_991)])
def test_large_bodies_become_messages_of_whole_records_within_the_bound(cuts: Iterable[int]) -> None:
    sizes = [RECORD_BYTES_MAX, 10, 500_000, 500_000, 60_000, RECORD_BYTES_MAX - 40, 17, 18]
    records = [record_of_size(max(size, 17)) for size in sizes]
    intake = check_lines(split(b"\n".join(records), cuts))
    packed = [split_records(MessageKind.LINES, content) for content in intake.contents]
    assert [record for message in packed for record in message] == records
    assert max(map(len, intake.contents)) <= MESSAGE_BYTES_MAX - HEADER_BYTES_MAX
    first = 0
    for number, (message, place) in enumerate(zip(packed, intake.places, strict=True), start=1):
        assert place == (number, len(packed), first, len(message))
        first += len(message)


@pytest.mark.parametrize("invalid", [set(), {7}, {0, 4_000, 4_001, 9_000, 19_999}])
def test_lines_that_are_checked_together_become_the_messages_of_each_line_alone(invalid: AbstractSet[int]) -> None:
    """Message by message, also where a message is full within them, and beside records that go to quarantine."""
    records = [
        b"{}]" if number in invalid else record_of_size(20 + number * 37 % 300).replace(b"aa", "é".encode(), number % 2)
        for number in range(20_000)
    ]
    body = b"\n".join(records)
    together = check_lines([body], quarantine_rejected=True)
    alone = check_lines((record + b"\n" for record in records), quarantine_rejected=True)
    assert replace(together, digest="", body_bytes=0) == replace(alone, digest="", body_bytes=0)
    assert len(together.places) > 2
    assert together.records == len(records) - len(invalid)


def test_memory_is_bounded_however_large_the_body() -> None:
    """For a body of 32 MiB and a spool bound of 256 KiB, memory never holds more than a few messages."""
    piece = record_of_size(10_000) + b"\n"
    tracemalloc.start()
    try:
        intake = JsonIntake(SOURCES["vehicles"], body_bytes_max=2**30, spool_memory_bytes_max=2**18)
        for _ in range(32 * 2**20 // len(piece)):
            intake.add_lines(piece)
        checked = intake.finish()
        for _ in checked.parts(ACCEPTED):
            pass
        _, peak = tracemalloc.get_traced_memory()
        intake.close()
    finally:
        tracemalloc.stop()
    assert checked.messages > 30
    assert peak < 8 * 2**20


# --- refusals

GOOD = b'{"operator":"UA","run_number":1,"origin":"A","destination":"B","scheduled_at":"2013-01-01T00:00:00Z"}'
DEEP = b"[" * 200_000 + b"]" * 200_000


def bad(**fields: object) -> bytes:
    record = json.loads(GOOD) | fields
    return json.dumps({name: value for name, value in record.items() if value is not ...}).encode()


@pytest.mark.parametrize(
    ("record", "status", "kind", "field"),
    [
        pytest.param(b"{", 400, "malformed-json", None, id="broken"),
        pytest.param(GOOD + GOOD, 400, "malformed-json", None, id="two in one"),
        pytest.param(GOOD[:-1] + b',"x":NaN}', 400, "malformed-json", None, id="NaN"),
        pytest.param(GOOD[:-1] + b',"x":"\\ud800"}', 400, "malformed-json", None, id="half a surrogate pair"),
        pytest.param(GOOD[:-1] + b',"x":"\x01"}', 400, "malformed-json", None, id="control character"),
        pytest.param(GOOD[:-1] + b',"x":' + DEEP + b"}", 400, "malformed-json", None, id="nested too deep"),
        pytest.param(GOOD[:-1] + b',"x":"\xff"}', 400, "invalid-utf8", None, id="invalid UTF-8"),
        pytest.param(b"[1]", 422, "schema-violation", None, id="no object"),
        pytest.param(b"null", 422, "schema-violation", None, id="null"),
        pytest.param(bad(run_number="1"), 422, "schema-violation", "run_number", id="wrong type"),
        pytest.param(bad(run_number=...), 422, "schema-violation", "run_number", id="missing"),
        pytest.param(bad(run_number=None), 422, "schema-violation", "run_number", id="null where required"),
        pytest.param(bad(run_number=2**63), 422, "schema-violation", "run_number", id="integer too large"),
        pytest.param(bad(scheduled_at="2013-01-01T00:00:00"), 422, "schema-violation", "scheduled_at", id="no zone"),
        pytest.param(
            bad(scheduled_at="0001-01-01T00:00:00+14:00"), 422, "schema-violation", "scheduled_at", id="UTC's year 0"
        ),
        pytest.param(
            bad(scheduled_at="9999-12-31T23:59:59-01:00"), 422, "schema-violation", "scheduled_at", id="year 10000"
        ),
        pytest.param(bad(classification_id=""), 422, "schema-violation", "classification_id", id="empty id"),
        pytest.param(bad(classification_id="r" * 257), 422, "schema-violation", "classification_id", id="long id"),
    ],
)
def test_a_refusal_names_the_record_and_the_field(record: bytes, status: int, kind: str, field: str | None) -> None:
    """At any place in the body, and in any pieces."""
    body = b"\n".join([GOOD, b"", GOOD, GOOD, record, GOOD])
    for pieces in ([body], split(body, range(0, len(body), 7 + len(body) // 50))):
        with pytest.raises(Refused) as refused:
            check_lines(pieces, "status")
        assert (refused.value.status, refused.value.code) == (status, kind)
        assert refused.value.members == {"record": 3} | ({"field": field} if field else {})
        assert "ecord 3" in refused.value.detail


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"", 400, "empty-body"),
        (b" \r\n", 400, "empty-body"),
        (b"[]", 400, "empty-body"),
        (b"[" + GOOD, 400, "malformed-json"),
        (b"[" + GOOD + b",]", 400, "malformed-json"),
        (b"{]", 400, "malformed-json"),
        (DEEP, 400, "malformed-json"),
        (b"[" + GOOD[:-1] + b',"x":"\xc0\x80"}]', 400, "invalid-utf8"),
        (b"[" + GOOD + b",1]", 422, "schema-violation"),
    ],
)
def test_an_invalid_document_is_refused(body: bytes, status: int, kind: str) -> None:
    with pytest.raises(Refused) as refused:
        check_document(body, "status")
    assert (refused.value.status, refused.value.code) == (status, kind)


@pytest.mark.parametrize("body", [b"", b"\n\r\n \n"])
def test_ndjson_without_a_record_is_refused(body: bytes) -> None:
    with pytest.raises(Refused) as refused:
        check_lines([body])
    assert (refused.value.status, refused.value.code) == (400, "empty-body")


@pytest.mark.parametrize(
    "feed",
    [
        pytest.param(lambda record: check_lines([b"%s\n%s\n" % (record_of_size(30), record)]), id="line"),
        pytest.param(
            lambda record: check_lines([record_of_size(30), b"\n", record, record]), id="a line without an end"
        ),
        pytest.param(lambda record: check_document(b"[%s,%s]" % (record_of_size(30), record)), id="document"),
    ],
)
def test_a_record_that_is_too_large_for_a_message_is_refused_by_its_index(feed: Callable[[bytes], Intake]) -> None:
    with pytest.raises(Refused) as refused:
        feed(record_of_size(RECORD_BYTES_MAX + 1))
    assert (refused.value.status, refused.value.code) == (413, "record-too-large")
    assert refused.value.members == {"record": 1}


@pytest.mark.parametrize("feed", [check_lines, lambda pieces, **bounds: check_document(b"".join(pieces), **bounds)])
def test_a_body_may_be_as_large_as_its_bound(feed: Callable[..., Intake]) -> None:
    body = record_of_size(5_000)
    assert feed([body], body_bytes_max=5_000).records == 1
    with pytest.raises(Refused) as refused:
        feed([body], body_bytes_max=4_999)
    assert (refused.value.status, refused.value.code) == (413, "body-too-large")


def test_a_submission_of_more_messages_than_a_batch_can_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is the server's; this test lowers it, since 1,000 messages are 1 GiB."""
    monkeypatch.setattr("bronze.records.json_intake.MESSAGES_MAX", 3)
    assert len(check_lines([record_of_size(600_000) + b"\n"] * 3).contents) == 3
    with pytest.raises(Refused) as refused:
        check_lines([record_of_size(600_000) + b"\n"] * 4)
    assert (refused.value.status, refused.value.code) == (413, "body-too-large")


# --- the message's headers

_IDS = st.text(min_size=1, max_size=CLASSIFICATION_ID_CHARS_MAX)


@given(
    classification=st.none() | _IDS,
    default=st.none() | _IDS,
    origin=st.none() | st.text(min_size=1, max_size=FILE_NAME_CHARS_MAX),
    keyed=st.booleans(),
    place=st.tuples(st.integers(1, MESSAGES_MAX), st.integers(0, 2**31), st.integers(1, 2**31)),
    kind=st.sampled_from(MessageKind),
    zstd=st.booleans(),
)
def test_a_part_is_unchanged_after_its_headers_are_parsed(
    classification: str | None,
    default: str | None,
    origin: str | None,
    *,
    keyed: bool,
    place: tuple[int, int, int],
    kind: MessageKind,
    zstd: bool,
) -> None:
    """Each header is one line of ASCII, also if the part's texts are in other scripts."""
    accepted = msgspec.structs.replace(
        ACCEPTED, classification_id=classification, classification_default=default, origin=origin, keyed=keyed
    )
    number, first_record, records = place
    part = Part(accepted, number, MESSAGES_MAX, first_record, records, kind, zstd)
    headers = part.headers()
    assert all(value.isascii() and value.isprintable() for value in headers.values())
    assert Part.parse(headers) == part
    assert format_version(headers) == (
        FORMAT if kind is MessageKind.LINES else 3 if zstd else 1 if kind is MessageKind.RECORDS else 2
    )


@given(body=st.binary(max_size=300), times=st.integers(1, 200))
def test_decompressed_content_equals_the_original(body: bytes, times: int) -> None:
    """Its size is known without decoding; content that is small or compresses badly is not compressed."""
    content = body * times
    payload, zstd = compress(content)
    headers = ZSTD_HEADERS if zstd else {}
    assert decompress(headers, payload) == content
    assert content_bytes(headers, payload) == len(content)
    assert not zstd or (len(payload) < len(content) and len(content) >= ZSTD_BYTES_MIN)


def test_large_content_is_compressed() -> None:
    """So that a queue can hold several times as many records."""
    record = b'{"vehicle_id":"N14228","manufacturer":"BOEING"}\n'
    few, many = _parts([record]), _parts([record * 1_000])
    assert [part.zstd for part, _ in (*few, *many)] == [False, True]
    assert len(many[0][1]) < len(record) * 1_000 / 8


def _parts(pieces: Sequence[bytes]) -> list[tuple[Part, bytes]]:
    intake = JsonIntake(SOURCES["vehicles"], body_bytes_max=2**30, spool_memory_bytes_max=2**20)
    try:
        for piece in pieces:
            intake.add_lines(piece)
        return list(intake.finish().parts(ACCEPTED))
    finally:
        intake.close()


FRAME = zstandard.compress(b"[" + b" " * 5_000 + b"]")


@pytest.mark.parametrize(
    ("encoding", "payload", "reason"),
    [
        ("zstd", b"[]", "cannot be decoded"),
        ("zstd", FRAME[:-1], "cannot be decoded"),
        ("zstd", zstandard.compress(bytes(MESSAGE_BYTES_MAX + 1)), "a zstd frame of 1048577 bytes"),
        ("zstd", zstandard.ZstdCompressor(write_content_size=False).compress(b"[]"), "does not state the size"),
        ("lz4", FRAME, "the encoding 'lz4' is not supported"),
    ],
    ids=["no frame", "truncated", "too large", "no size", "another encoding"],
)
def test_a_payload_that_does_not_match_its_headers_is_a_dead_letter(encoding: str, payload: bytes, reason: str) -> None:
    """A frame that states a size of gigabytes is not decompressed at all."""
    with pytest.raises(DeadLetter, match=reason):
        decompress({HEADER_ENCODING: encoding}, payload)


@pytest.mark.parametrize("character", ["\N{PILE OF POO}", "\0", '"', "\\"])
def test_the_largest_headers_stay_within_their_bound(character: str) -> None:
    """The longest names, of characters with the longest escapes, leave room for the protocol's own headers."""
    longest = character * CLASSIFICATION_ID_CHARS_MAX
    accepted = msgspec.structs.replace(
        ACCEPTED,
        source="s" * 63,
        classification_id=longest,
        classification_default=longest,
        classification_count=2**31,
        origin=character * FILE_NAME_CHARS_MAX,
        keyed=True,
    )
    headers = Part(accepted, MESSAGES_MAX, MESSAGES_MAX, 2**31, 2**31).headers()
    assert sum(len(name) + len(value) + 4 for name, value in headers.items()) + PROTOCOL_BYTES <= HEADER_BYTES_MAX


@pytest.mark.parametrize(
    "changes",
    [
        {HEADER_PART: None},
        {HEADER_PART: "2/1"},
        {HEADER_PART: "0/1"},
        {HEADER_PART: f"1/{MESSAGES_MAX + 1}"},
        {HEADER_PART: "one"},
        {HEADER_SUBMISSION: "{}"},
        {HEADER_SUBMISSION: "{"},
    ],
)
def test_a_message_with_invalid_headers_is_a_dead_letter(changes: dict[str, str | None]) -> None:
    headers = Part(ACCEPTED, 1, 1, 0, 1).headers() | changes
    with pytest.raises(DeadLetter):
        Part.parse({name: value for name, value in headers.items() if value is not None})


@pytest.mark.parametrize(("text", "version"), [("1", 1), ("12", 12), ("", None), ("-1", None), ("1.0", None)])
def test_a_format_version_that_is_not_a_number_is_none(text: str, version: int | None) -> None:
    assert format_version({"Bronze-Format": text}) == version


# --- ids


def test_a_keyed_id_is_a_function_of_principal_source_and_key() -> None:
    first = keyed_id("vehicles", "k")
    assert first == keyed_id("vehicles", "k") == str(UUID(first))
    others = {keyed_id("vehicles", "l"), keyed_id("status", "k"), keyed_id("vehicles", "k", "somebody")}
    assert len(others | {first}) == 4


def test_an_id_without_a_key_is_a_unique_uuid7() -> None:
    ids = [new_id() for _ in range(1_000)]
    assert len(set(ids)) == len(ids)
    assert {UUID(submission_id).version for submission_id in ids} == {7}


@given(lanes=st.integers(1, 64))
def test_an_id_always_has_the_same_lane(lanes: int) -> None:
    ids = [new_id(), keyed_id("vehicles", "k")]
    numbers = [lane_of(submission_id, lanes) for submission_id in ids]
    assert all(0 <= number < lanes for number in numbers)
    assert numbers == [lane_of(submission_id, lanes) for submission_id in ids]


def test_keyed_and_unkeyed_ids_use_every_lane() -> None:
    for ids in ([new_id() for _ in range(400)], [keyed_id("vehicles", str(n)) for n in range(400)]):
        assert {lane_of(submission_id, 4) for submission_id in ids} == {0, 1, 2, 3}


def test_an_invalid_id_has_no_lane() -> None:
    with pytest.raises(ValueError, match="hexadecimal"):
        lane_of("*", 1)
