"""Records that are kept apart at their sender's request: nothing of a body is lost, and each keeps its place."""

from collections.abc import Sequence

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.admin.quarantine import CommandError, QuarantinedObject, Record
from bronze.admin.quarantine_replay import match_lines
from bronze.errors import DeadLetter, Refused
from bronze.objects.encoder import encode_object
from bronze.protocol import rejected_records
from bronze.protocol.chain import reconcile
from bronze.protocol.lane import Lane, lane_subject
from bronze.protocol.message import (
    HEADER_BYTES_MAX,
    HEADER_FORMAT,
    HEADER_KIND,
    MESSAGE_BYTES_MAX,
    AcceptedSubmission,
    Message,
    MessageKind,
    Part,
)
from bronze.protocol.quarantine import quarantine_key
from bronze.records import sources
from bronze.records.json_intake import JsonIntake
from bronze.records.spool import CheckedSubmission
from tests import factories

SOURCES = sources.built_in()
ACCEPTED = factories.accepted()
LANE = Lane("vehicles", 0, "20261124T120000")

GOOD = [b'{"vehicle_id":"%d","x":null}' % n for n in range(5)]
BAD: dict[bytes, tuple[str, str | None]] = {
    b'{"vehicle_id":7}': ("schema-violation", "vehicle_id"),
    b"{}": ("schema-violation", "vehicle_id"),
    b"null": ("schema-violation", None),
    b'{"vehicle_id":"a","seats":"\xc3\xa4"}': ("schema-violation", "seats"),
    b'{"vehicle_id":"a"': ("malformed-json", None),
    b'{"vehicle_id":"\xff"}': ("invalid-utf8", None),
    b'{"vehicle_id":"a","x":%s%s}' % (b"[" * 100_000, b"]" * 100_000): ("malformed-json", None),
}


def check(body: bytes, cuts: Sequence[int] = ()) -> tuple[CheckedSubmission, list[tuple[Part, bytes]]]:
    """A body's submission and its messages, with what is bad kept apart."""
    intake = JsonIntake(SOURCES["vehicles"], body_bytes_max=2**30, spool_memory_bytes_max=2**24, keep_invalid=True)
    ends = sorted({min(end, len(body)) for end in cuts} | {len(body)})
    try:
        for start, end in zip([0, *ends], ends, strict=False):
            intake.lines(body[start:end])
        checked = intake.finish()
        return checked, list(checked.parts(ACCEPTED))
    finally:
        intake.close()


def rows(parts: Sequence[tuple[Part, bytes]]) -> list[tuple[int, bytes]]:
    """What becomes of the messages: each row's index and payload, by the encoder that the consumer has."""
    messages = [
        Message(
            sequence,
            lane_subject("vehicles", 0, ACCEPTED.submission_id),
            "2026-11-24T12:34:56.123456789Z",
            part.headers(),
            payload,
        )
        for sequence, (part, payload) in enumerate(parts, start=1)
    ]
    encoded = encode_object(SOURCES["vehicles"], LANE, "k.parquet", reconcile(LANE, messages, {}), "00-0-0-00")
    contents = encoded.contents
    apart = [one for one in messages if one.headers.get(HEADER_KIND) == MessageKind.REJECTED]
    assert [one.key for one in contents.quarantined] == [
        quarantine_key(LANE, one.sequence, MessageKind.REJECTED) for one in apart
    ]
    (stored,) = contents.submissions
    assert stored.quarantined == [one.key for one in contents.quarantined]
    assert (stored.parts_done, stored.parts_quarantined) == (len(parts), len(apart))
    assert contents.records == sum(part.records for part, _ in parts if part.kind is not MessageKind.REJECTED)
    table = pq.read_table(pa.BufferReader(encoded.body), columns=["_record_index", "_payload"])
    return [(row["_record_index"], row["_payload"].encode()) for row in table.to_pylist()]


def kept_apart(parts: Sequence[tuple[Part, bytes]]) -> list[tuple[rejected_records.RejectionNote, bytes]]:
    found: list[tuple[rejected_records.RejectionNote, bytes]] = []
    for part, payload in parts:
        if part.kind is MessageKind.REJECTED:
            head, records = rejected_records.unpack(payload)
            assert msgspec.json.decode(head, type=AcceptedSubmission) == part.accepted
            assert (part.first_record, part.records) == (records[0][0].index, len(records))
            found += records
    return found


@settings(max_examples=60)
@given(
    chosen=st.lists(st.integers(0, len(GOOD) + len(BAD) - 1), min_size=1, max_size=30),
    cuts=st.lists(st.integers(0, 2_000), max_size=8),
)
def test_good_and_bad_in_any_order_keep_their_bytes_and_their_indices(chosen: list[int], cuts: list[int]) -> None:
    """Whatever the order and however the body arrives: each record is a row or in quarantine, at its own index."""
    records = [[*GOOD, *BAD][one] for one in chosen]
    checked, parts = check(b"\n".join(records), cuts)
    bad = [(index, record) for index, record in enumerate(records) if record in BAD]
    assert rows(parts) == [(index, record) for index, record in enumerate(records) if record not in BAD]
    apart = kept_apart(parts)
    assert [(note.index, record) for note, record in apart] == bad
    assert [(note.kind, note.field) for note, _ in apart] == [BAD[record] for _, record in bad]
    assert (checked.records, checked.rejected) == (len(records) - len(bad), len(bad))
    assert [part.number for part, _ in parts] == list(range(1, checked.messages + 1))


def test_what_has_no_gap_is_as_it_would_be_without_the_bad_records() -> None:
    """A message of good records that the bad ones only surround has none of the marks of a sparse one."""
    good = b'{"vehicle_id":"a"}'
    parts = [part for part, _ in check(b"\n".join([b"{", good, good, b"{"]))[1]]
    assert [(part.kind, part.first_record, part.records) for part in parts] == [
        (MessageKind.LINES, 1, 2),
        (MessageKind.REJECTED, 0, 2),
    ]
    assert [part.headers()[HEADER_FORMAT] for part in parts] == ["4", "2"]


def test_messages_of_either_kind_stay_within_their_bound() -> None:
    """Also where a long run of bad records lies between two good ones, and where they fill several messages."""
    good = b'{"vehicle_id":"a","x":"%s"}' % (b"x" * 500_000)
    records = [good, *[b"{"] * 30_000, good, b"{", good, *[b'{"vehicle_id":%s' % (b"9" * 600_000)] * 2, good]
    _, parts = check(b"\n".join(records))
    assert max(len(payload) for _, payload in parts) <= MESSAGE_BYTES_MAX - HEADER_BYTES_MAX
    assert rows(parts) == [(index, record) for index, record in enumerate(records) if record == good]
    assert [note.index for note, _ in kept_apart(parts)] == [
        index for index, record in enumerate(records) if record != good
    ]


def test_a_bad_record_that_fits_no_message_with_its_note_refuses_the_submission() -> None:
    with pytest.raises(Refused) as refused:
        check(b"{" + b" " * (MESSAGE_BYTES_MAX - HEADER_BYTES_MAX - 10) + b"x")
    assert (refused.value.code, refused.value.members["record"]) == ("record-too-large", 0)


@pytest.mark.parametrize(
    ("payload", "wrong"),
    [
        (b"", "notes"),
        (b"{}\n[1]\n", "notes"),
        (b'{}\n[{"index":0,"kind":"k","reason":"r","size":2}]\na\n', "not where"),
        (b'{}\n[{"index":0,"kind":"k","reason":"r","size":-1}]\na\n', "not where"),
        (b'{}\n[{"index":0,"kind":"k","reason":"r","size":1}]\na\nb\n', "more than"),
    ],
)
def test_what_is_no_such_message_is_poison(payload: bytes, wrong: str) -> None:
    with pytest.raises(DeadLetter, match=wrong):
        rejected_records.unpack(payload)


# --- mended lines


def aside(
    *records: bytes, key: str = "quarantine/source=vehicles/e-0-1.rejected", accepted: bool = True
) -> QuarantinedObject:
    return QuarantinedObject(
        key=key,
        source="vehicles",
        submission_id="s",
        stored_at="2026-11-24T12:00:00Z",
        reason="",
        accepted=ACCEPTED if accepted else None,
        records=[Record(raw, 2 * index) for index, raw in enumerate(records)],
        separable=True,
        replayed=None,
    )


def test_a_mended_line_belongs_to_its_record_and_an_empty_one_gives_it_up() -> None:
    one, two = match_lines([aside(b"a", b"b\n c"), aside(b"d")], [b"", b" B ", b"D"])
    assert (one.lines, one.indices, two.lines, two.indices) == ([b"B"], [2], [b"D"], [0])
    assert aside(b"a", b"b\r\n c").lines() == [b"a", b"b  c"]


@pytest.mark.parametrize(
    ("of", "lines", "wrong"),
    [(aside(b"a", b"b"), [b"a"], "1 lines, and 2 records"), (aside(b"a", accepted=False), [b"a"], "is not known")],
)
def test_lines_that_cannot_be_told_apart_are_a_mistake(of: QuarantinedObject, lines: list[bytes], wrong: str) -> None:
    with pytest.raises(CommandError, match=wrong):
        match_lines([of], lines)
