"""Records in quarantine at their sender's request: nothing of a body is lost, and each record keeps its index."""

from collections.abc import Sequence

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.admin.command_error import CommandError
from bronze.admin.quarantine import QuarantinedObject, Record
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
    """A body's submission and its messages, with its rejected records in messages of their own."""
    intake = JsonIntake(
        SOURCES["vehicles"], body_bytes_max=2**30, spool_memory_bytes_max=2**24, quarantine_rejected=True
    )
    ends = sorted({min(end, len(body)) for end in cuts} | {len(body)})
    try:
        for start, end in zip([0, *ends], ends, strict=False):
            intake.add_lines(body[start:end])
        checked = intake.finish()
        return checked, list(checked.parts(ACCEPTED))
    finally:
        intake.close()


def rows(parts: Sequence[tuple[Part, bytes]]) -> list[tuple[int, bytes]]:
    """The index and payload of each row that the consumer's encoder makes of the messages."""
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
    rejected = [message for message in messages if message.headers.get(HEADER_KIND) == MessageKind.REJECTED]
    assert [quarantined.key for quarantined in contents.quarantined] == [
        quarantine_key(LANE, message.sequence, MessageKind.REJECTED) for message in rejected
    ]
    (stored,) = contents.submissions
    assert stored.quarantined == [quarantined.key for quarantined in contents.quarantined]
    assert (stored.parts_done, stored.parts_quarantined) == (len(parts), len(rejected))
    assert contents.records == sum(part.records for part, _ in parts if part.kind is not MessageKind.REJECTED)
    table = pq.read_table(pa.BufferReader(encoded.body), columns=["_record_index", "_payload"])
    return [(row["_record_index"], row["_payload"].encode()) for row in table.to_pylist()]


def quarantined_records(parts: Sequence[tuple[Part, bytes]]) -> list[tuple[rejected_records.RejectionNote, bytes]]:
    quarantined: list[tuple[rejected_records.RejectionNote, bytes]] = []
    for part, payload in parts:
        if part.kind is MessageKind.REJECTED:
            first_line, records = rejected_records.unpack(payload)
            assert msgspec.json.decode(first_line, type=AcceptedSubmission) == part.accepted
            assert (part.first_record, part.records) == (records[0][0].index, len(records))
            quarantined += records
    return quarantined


@settings(max_examples=60)
@given(
    chosen=st.lists(st.integers(0, len(GOOD) + len(BAD) - 1), min_size=1, max_size=30),
    cuts=st.lists(st.integers(0, 2_000), max_size=8),
)
def test_good_and_bad_records_keep_their_bytes_and_indices(chosen: list[int], cuts: list[int]) -> None:
    """In any order, and however the body arrives: each record is a row or in quarantine, with its own index."""
    records = [[*GOOD, *BAD][index] for index in chosen]
    checked, parts = check(b"\n".join(records), cuts)
    bad = [(index, record) for index, record in enumerate(records) if record in BAD]
    assert rows(parts) == [(index, record) for index, record in enumerate(records) if record not in BAD]
    quarantined = quarantined_records(parts)
    assert [(note.index, record) for note, record in quarantined] == bad
    assert [(note.kind, note.field) for note, _ in quarantined] == [BAD[record] for _, record in bad]
    assert (checked.records, checked.rejected) == (len(records) - len(bad), len(bad))
    assert [part.number for part, _ in parts] == list(range(1, checked.messages + 1))


def test_bad_records_around_a_message_do_not_make_it_sparse() -> None:
    """A message without placeholders is the same as if the body had no bad records."""
    good = b'{"vehicle_id":"a"}'
    parts = [part for part, _ in check(b"\n".join([b"{", good, good, b"{"]))[1]]
    assert [(part.kind, part.first_record, part.records) for part in parts] == [
        (MessageKind.LINES, 1, 2),
        (MessageKind.REJECTED, 0, 2),
    ]
    assert [part.headers()[HEADER_FORMAT] for part in parts] == ["4", "2"]


def test_messages_of_either_kind_stay_within_their_bound() -> None:
    """Also if many bad records are between two good records, and if bad records fill several messages."""
    good = b'{"vehicle_id":"a","x":"%s"}' % (b"x" * 500_000)
    records = [good, *[b"{"] * 30_000, good, b"{", good, *[b'{"vehicle_id":%s' % (b"9" * 600_000)] * 2, good]
    _, parts = check(b"\n".join(records))
    assert max(len(payload) for _, payload in parts) <= MESSAGE_BYTES_MAX - HEADER_BYTES_MAX
    assert rows(parts) == [(index, record) for index, record in enumerate(records) if record == good]
    assert [note.index for note, _ in quarantined_records(parts)] == [
        index for index, record in enumerate(records) if record != good
    ]


def test_a_bad_record_that_is_too_large_with_its_note_refuses_the_submission() -> None:
    with pytest.raises(Refused) as refused:
        check(b"{" + b" " * (MESSAGE_BYTES_MAX - HEADER_BYTES_MAX - 10) + b"x")
    assert (refused.value.code, refused.value.members["record"]) == ("record-too-large", 0)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "notes"),
        (b"{}\n[1]\n", "notes"),
        (b'{}\n[{"index":0,"kind":"k","reason":"r","size":2}]\na\n', "record 0 does not have the size"),
        (b'{}\n[{"index":0,"kind":"k","reason":"r","size":-1}]\na\n', "record 0 does not have the size"),
        (b'{}\n[{"index":0,"kind":"k","reason":"r","size":1}]\na\nb\n', "more bytes than"),
    ],
)
def test_an_invalid_message_of_rejected_records_is_a_dead_letter(payload: bytes, reason: str) -> None:
    with pytest.raises(DeadLetter, match=reason):
        rejected_records.unpack(payload)


# --- corrected lines


def quarantined_object(
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


def test_a_corrected_line_replaces_its_record_and_an_empty_line_discards_it() -> None:
    first, second = match_lines([quarantined_object(b"a", b"b\n c"), quarantined_object(b"d")], [b"", b" B ", b"D"])
    assert (first.lines, first.indices, second.lines, second.indices) == ([b"B"], [2], [b"D"], [0])
    assert quarantined_object(b"a", b"b\r\n c").lines() == [b"a", b"b  c"]


@pytest.mark.parametrize(
    ("quarantined", "lines", "error"),
    [
        (quarantined_object(b"a", b"b"), [b"a"], "1 line for 2 records"),
        (quarantined_object(b"a", accepted=False), [b"a"], "is not known"),
    ],
)
def test_lines_that_cannot_be_assigned_to_records_are_an_error(
    quarantined: QuarantinedObject, lines: list[bytes], error: str
) -> None:
    with pytest.raises(CommandError, match=error):
        match_lines([quarantined], lines)
