"""The decisions of the chain protocol (docs/delivery.md), rule by rule."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.errors import Halted
from bronze.protocol import limits
from bronze.protocol.attempts import DEATHS_TOLERATED, Attempt
from bronze.protocol.chain import Gap, Position, Tail, check_covered, follow, quarantined_message, reconcile
from bronze.protocol.documents import (
    OBJECT_FACTS,
    CatalogEntry,
    Contents,
    Identity,
    StoredSubmission,
    entry_of,
    identities_of,
)
from bronze.protocol.keys import first_of_key, hour_prefix, may_be_object, object_key
from bronze.protocol.lane import Lane, lane_subject
from bronze.protocol.limits import Limits, next_cut, readable_prefix
from bronze.protocol.message import (
    FORMAT,
    HEADER_FORMAT,
    HEADER_SCHEMA_VERSION,
    HEADER_SUBMISSION,
    MESSAGE_BYTES_MAX,
    AcceptedSubmission,
    Message,
    Part,
    unix_time_s,
)
from bronze.protocol.principals import NAME_BYTES_MAX
from tests import factories

LANE = Lane("vehicles", 0, "20261124T120000000")
LIMITS = Limits(bytes_max=1_000, messages_max=10, submissions_max=5, age_s_max=15)


def accepted(submission: str = "a", digest: str = "d") -> AcceptedSubmission:
    return factories.accepted(submission_id=submission, digest=digest)


def message(
    sequence: int, submission: str = "a", *, part: str = "1/1", digest: str = "d", size: int = 1, second: int = 0
) -> Message:
    number, _, count = part.partition("/")
    headers = Part(accepted(submission, digest), int(number), int(count), 0, 1).headers()
    time = f"2026-11-24T12:34:{second:02}.123456789Z"
    return Message(sequence, lane_subject("vehicles", 0, submission), time, headers, b"x" * size)


def contents(messages: Sequence[Message], submissions: Sequence[StoredSubmission] = ()) -> Contents:
    return factories.contents(
        messages[0].sequence,
        messages[-1].sequence,
        file_path=object_key("bronze", LANE, messages[0]),
        last_time=messages[-1].time,
        digest=limits.digest(messages),
        messages=len(messages),
        records=len(messages),
        submissions=list(submissions),
    )


def message_range(first: int, last: int) -> list[Message]:
    return [message(sequence, f"s{sequence}") for sequence in range(first, last + 1)]


# --- keys


@given(first=st.integers(1, 10**15), number=st.integers(0, 200))
def test_only_its_own_lane_reads_the_first_sequence_from_a_key(first: int, number: int) -> None:
    """Also for more than twelve digits; for another lane or another epoch the key gives no sequence."""
    lane = Lane("vehicles", number, LANE.epoch)
    key = object_key("bronze", lane, message(first))
    assert first_of_key(lane, key) == first
    assert first_of_key(Lane("vehicles", number + 1, LANE.epoch), key) is None
    assert first_of_key(Lane("vehicles", number, "20261124T120000001"), key) is None


def test_an_invalid_key_is_not_the_key_of_an_object() -> None:
    """A bucket's answer to an invalid key looks like an outage."""
    key = object_key("bronze", LANE, message(7))
    assert may_be_object("bronze", key)
    assert not may_be_object("other", key)
    for invalid in ("bronze/\0.parquet", "bronze/../a.parquet", "bronze//a.parquet", f"bronze/{'a' * 1024}.parquet"):
        assert not may_be_object("bronze", invalid)


def test_a_key_is_in_the_folder_of_its_first_messages_hour() -> None:
    assert object_key("bronze", LANE, message(7)) == (
        "bronze/source=vehicles/date=2026-11-24/hour=12/20261124T120000000-0-000000000007.parquet"
    )
    assert hour_prefix("bronze", "vehicles", LANE.since) == "bronze/source=vehicles/date=2026-11-24/hour=12/"


@pytest.mark.parametrize("name", ["x.parquet", "20261124T120000000-0-.parquet", "20261124T120000000-0-7.txt", ""])
def test_a_key_that_bronze_did_not_make_has_no_first_sequence(name: str) -> None:
    assert first_of_key(LANE, f"bronze/source=vehicles/{name}") is None


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("1970-01-01T00:00:01Z", 1.0), ("1970-01-01T00:01:00.5Z", 60.5), ("1970-01-02T00:00:00.000000001Z", 86400.0)],
)
def test_a_servers_time_is_converted_to_seconds(time: str, seconds: float) -> None:
    assert unix_time_s(time) == pytest.approx(seconds, abs=1e-6)


# --- rule 3: reads after the tail


@given(anchor=st.integers(0, 5), present=st.sets(st.integers(1, 12)))
def test_a_read_gives_all_messages_up_to_the_first_gap_or_raises_gap(anchor: int, present: set[int]) -> None:
    """No message is skipped, whichever messages a replica lacks: an empty result means that no message follows."""
    read = [message(sequence) for sequence in sorted(present) if sequence >= max(anchor, 1)]
    tail = Tail(anchor, message(anchor).time) if anchor else None
    missing = None
    followed: list[Message] = []
    try:
        followed = follow(tail, read)
    except Gap as gap:
        missing = gap.sequence
    last = anchor + len(followed)
    assert [message.sequence for message in followed] == list(range(anchor + 1, last + 1))
    if missing is None:
        assert not anchor or anchor in present
        assert last + 1 not in present
        assert followed or not any(sequence > anchor for sequence in present)
    else:
        assert missing not in present
        assert missing in {max(anchor, 1), anchor + 1}


def test_an_anchor_of_another_time_halts() -> None:
    """The queue was rolled back and filled again: the sequences are the same, the times are not."""
    with pytest.raises(Halted, match="rolled back"):
        follow(Tail(3, message(3).time), [message(3, second=1), message(4)])


def test_the_tail_is_the_last_pending_message_or_the_anchor_or_none() -> None:
    entry = entry_of(contents(message_range(1, 4)))
    assert Tail.of(Position(None, 0), []) is None
    assert Tail.of(Position(entry, 9), []) == Tail(4, message(4).time)
    assert Tail.of(Position(entry, 9), message_range(5, 6)) == Tail(6, message(6).time)


# --- rule 9: bounds


@settings(max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=20),
    submissions=st.lists(st.sampled_from("abcdefgh"), min_size=20, max_size=20),
)
def test_a_cut_is_the_longest_prefix_within_the_bounds(sizes: list[int], submissions: list[str]) -> None:
    pending = [
        message(sequence, submission, size=size)
        for sequence, (size, submission) in enumerate(zip(sizes, submissions, strict=False), start=1)
    ]

    def fits(messages: Sequence[Message]) -> bool:
        return (
            len(messages) <= LIMITS.messages_max
            and sum(message.size for message in messages) <= LIMITS.bytes_max
            and len({message.subject for message in messages}) <= LIMITS.submissions_max
        )

    cut = next_cut(pending, LIMITS)
    assert cut == pending[: len(cut)]
    assert fits(cut)
    assert len(cut) == len(pending) or not fits(pending[: len(cut) + 1])
    if len(cut) < len(pending):
        assert limits.full(pending, LIMITS)


def test_a_message_larger_than_the_bounds_is_a_cut_of_its_own() -> None:
    assert len(next_cut([message(1, size=5_000), message(2)], LIMITS)) == 1


@pytest.mark.parametrize(
    ("pending", "now_s", "due"),
    [
        ([], 10**9, False),
        ([message(1)], 14.8, False),
        ([message(1)], 15.2, True),
        ([message(n) for n in range(1, 11)], 0, True),
        ([message(1, size=1_000)], 0, True),
        ([message(n, f"s{n}") for n in range(1, 6)], 0, True),
        ([message(n, f"s{n}") for n in range(1, 5)], 0, False),
    ],
)
def test_messages_are_due_by_age_or_by_size(pending: list[Message], now_s: float, *, due: bool) -> None:
    stored_s = unix_time_s(message(1).time)
    assert limits.due(pending, stored_s + now_s, LIMITS) is due


def test_a_message_of_a_newer_format_and_all_after_it_are_left() -> None:
    """A message without a version is a dead letter, not a newer message: it is read, and goes to quarantine."""
    messages = message_range(1, 4)
    newer_headers = {**messages[2].headers, HEADER_FORMAT: str(FORMAT + 1)}
    no_headers: Mapping[str, str] = {}
    mixed = [
        messages[0],
        Message(2, messages[1].subject, messages[1].time, no_headers, b""),
        Message(3, messages[2].subject, messages[2].time, newer_headers, b""),
        messages[3],
    ]
    assert readable_prefix(mixed, 1) == mixed[:2]
    assert readable_prefix(messages, 1) == messages


def test_a_message_of_a_newer_version_of_the_source_and_all_after_it_are_left() -> None:
    """Messages of the consumer's version, of an older version or without a version (an old format) are read."""
    versions = [None, "1", "2", "3", "1"]
    messages = [
        replace(message, headers={HEADER_SCHEMA_VERSION: version} if version else {})
        for message, version in zip(message_range(1, 5), versions, strict=True)
    ]
    assert [len(readable_prefix(messages, version)) for version in (1, 2, 3)] == [2, 3, 5]


# --- rules 3 and 8: the outcome of each message


def identity(submission: str, first_sequence: int, digest: str = "d", epoch: str = LANE.epoch) -> Identity:
    return Identity(
        accepted=accepted(submission, digest),
        epoch=epoch,
        lane=LANE.number,
        first_sequence=first_sequence,
        parts=2,
        parts_done=1,
        parts_quarantined=0,
        objects=["earlier"],
    )


@pytest.mark.parametrize(
    ("known", "outcome"),
    [
        pytest.param(None, "accepted", id="unknown"),
        pytest.param(identity("a", 10), "accepted", id="continued"),
        pytest.param(identity("a", 3), "duplicate", id="stored before"),
        pytest.param(identity("a", 10, epoch="20250101T000000000"), "duplicate", id="stored in another epoch"),
        pytest.param(identity("a", 3, digest="other"), "dead letter", id="another body"),
        pytest.param(identity("b", 3), "accepted", id="another submission's identity"),
    ],
)
def test_an_identity_decides_the_outcome_of_a_message(known: Identity | None, outcome: str) -> None:
    """For the second part of a submission that began at 10: an identity that begins there is continued, any other
    identity of the submission makes the message a late copy.
    """
    second_part = message(11, part="2/2")
    identities = {known.accepted.submission_id: known} if known else {}
    cut = reconcile(LANE, [second_part], identities)
    counts = {"accepted": len(cut.accepted), "duplicate": len(cut.duplicates), "dead letter": len(cut.dead_letters)}
    assert counts == {"accepted": 0, "duplicate": 0, "dead letter": 0} | {outcome: 1}
    for accepted_message in cut.accepted:
        assert accepted_message.first_sequence == 10
        assert accepted_message.earlier_identity == identities.get("a")


@pytest.mark.parametrize(
    "headers",
    [{}, {HEADER_SUBMISSION: "{"}, message(1, "another").headers],
    ids=["none", "broken", "another submission's"],
)
def test_a_message_whose_headers_do_not_name_its_submission_is_a_dead_letter(headers: Mapping[str, str]) -> None:
    unnamed = Message(1, lane_subject("vehicles", 0, "a"), message(1).time, headers, b"")
    cut = reconcile(LANE, [unnamed, message(2, "b")], {})
    assert [dead_letter for dead_letter, _ in cut.dead_letters] == [unnamed]
    assert [accepted_message.message.sequence for accepted_message in cut.accepted] == [2]


# --- rules 4 and 5: the object decides, and the catalog entry is made from it


@pytest.mark.parametrize(
    "read", [message_range(1, 5), message_range(2, 4), message_range(3, 5), [], message_range(5, 9)]
)
def test_an_object_of_the_same_or_of_unread_messages_is_no_contradiction(read: list[Message]) -> None:
    check_covered(contents(message_range(2, 4)), read)


@pytest.mark.parametrize(
    "other", [message(3, "other"), message(3, "s3", second=1)], ids=["another subject", "another time"]
)
def test_an_object_of_other_messages_halts(other: Message) -> None:
    read = [*message_range(1, 2), other, *message_range(4, 5)]
    with pytest.raises(Halted, match="other messages"):
        check_covered(contents(message_range(2, 4)), read)


def test_the_largest_entry_fits_one_message() -> None:
    """With as many submissions and quarantined messages as an object can have, and texts of the greatest length. A
    text that is too long for an entry is left out, not shortened.
    """
    short, long = "é" * 63, '"' * 256
    submissions = [
        StoredSubmission(
            accepted=msgspec.structs.replace(
                accepted(str(UUID(int=number))),
                records=10**8,
                classification_id=short if number else long,
                classification_count=10**8,
                origin=short if number else long,
                principal="p" * NAME_BYTES_MAX,
            ),
            first_sequence=10**12,
            parts=1_000,
            parts_done=999,
            parts_quarantined=998,
            records=10**7,
            objects=[],
            queued_at="2026-11-24T12:34:56.123456789Z",
        )
        for number in range(999)
    ]
    quarantined = [quarantined_message(LANE, message(10**12 + number), "bad") for number in range(4096)]
    largest = msgspec.structs.replace(
        contents([message(1)], submissions),
        quarantined=quarantined,
        classifications=[short] * 128,
        classification_count=999,
    )
    entry = entry_of(largest)
    assert len(msgspec.json.encode(entry)) < MESSAGE_BYTES_MAX - 1024
    assert [(submission.classification_id, submission.origin) for submission in entry.submissions[:2]] == [
        (None, None),
        (short, short),
    ]


def test_the_entry_and_the_identities_state_the_facts_of_the_footer() -> None:
    stored = StoredSubmission(
        accepted=accepted("a"),
        first_sequence=1,
        parts=3,
        parts_done=2,
        parts_quarantined=1,
        records=7,
        objects=["earlier", "this"],
    )
    footer = contents(message_range(2, 4), [stored])
    entry = entry_of(footer)
    assert (entry.first, entry.last, entry.last_time, entry.messages) == (2, 4, message(4).time, 3)
    assert [(submission.submission_id, submission.records) for submission in entry.submissions] == [("a", 7)]
    assert msgspec.json.decode(msgspec.json.encode(entry), type=CatalogEntry) == entry
    (known,) = identities_of(footer)
    assert (known.epoch, known.lane, known.first_sequence, known.parts, known.parts_done) == (LANE.epoch, 0, 1, 3, 2)
    assert known.objects == ["earlier", "this"]


# --- rule 7: deaths


def consume(killers: set[int], last: int, limits: Limits = LIMITS) -> tuple[list[int], int, int]:
    """The skipped messages, and the numbers of deaths and cuts, if decoders die of each message in `killers`."""
    attempt, position, deaths, cuts = Attempt(), 0, 0, 0
    skipped: list[int] = []
    while position < last:
        pending = message_range(position + 1, last)
        cut = next_cut(pending, attempt.cut_limits(pending[0].sequence, limits))
        cuts += 1
        exhausted = attempt.exhausted(cut)
        attempt = attempt.begin(cut)
        if exhausted:
            skipped.append(cut[0].sequence)
        elif any(message.sequence in killers for message in cut):
            attempt = attempt.after_death()
            deaths += 1
            continue
        position = cut[-1].sequence
    return skipped, deaths, cuts


WIDE = Limits(bytes_max=10**9, messages_max=32, submissions_max=999, age_s_max=15)


@settings(max_examples=50)
@given(killers=st.sets(st.integers(1, 40), max_size=4), last=st.just(40))
def test_exactly_the_messages_that_kill_their_decoder_are_skipped(killers: set[int], last: int) -> None:
    """All other messages are decoded; since cuts are halved, the number of deaths is bounded."""
    skipped, deaths, _ = consume(killers, last, WIDE)
    assert skipped == sorted(killers)
    assert deaths <= len(killers) * (DEATHS_TOLERATED + 5 + DEATHS_TOLERATED)


def test_cuts_are_limited_only_until_the_end_of_the_suspect_range() -> None:
    attempt = Attempt()
    for _ in range(DEATHS_TOLERATED - 1):
        attempt = attempt.begin(message_range(1, 8)).after_death()
        assert attempt.cut_limits(1, WIDE) == WIDE
    attempt = attempt.begin(message_range(1, 8)).after_death()
    assert attempt.cut_limits(1, WIDE).messages_max == 4
    attempt = attempt.begin(message_range(1, 4))  # survived
    assert attempt.cut_limits(5, WIDE).messages_max == 4
    attempt = attempt.begin(message_range(5, 8))
    assert attempt.cut_limits(9, WIDE) == WIDE
    assert attempt.after_death().cut_limits(5, WIDE).messages_max == 2


def test_only_deaths_at_a_message_alone_exhaust_its_attempts() -> None:
    """A larger cut may have died because of another message: its deaths do not send this message to quarantine."""
    attempt = Attempt()
    size = 8
    while size > 1:
        cut = next_cut(message_range(1, 8), attempt.cut_limits(1, WIDE))
        size = len(cut)
        if size > 1:
            attempt = attempt.begin(cut).after_death()
    alone = message_range(1, 1)
    for deaths in range(DEATHS_TOLERATED):
        assert not attempt.exhausted(alone), f"after {deaths} deaths alone"
        attempt = attempt.begin(alone)
        assert not attempt.exhausted(alone), f"decoded, after {deaths} deaths alone"
        attempt = attempt.after_death()
    assert attempt.exhausted(alone)
    assert not attempt.exhausted(message_range(1, 2))
    assert not attempt.exhausted(message_range(2, 2))


def test_deaths_at_the_same_first_sequence_count_even_if_the_cut_grows() -> None:
    attempt = Attempt()
    for last in (3, 5, 8):
        attempt = attempt.begin(message_range(1, last)).after_death()
    assert attempt.cut_limits(1, WIDE).messages_max == 4
    assert attempt.begin(message_range(2, 8)).deaths == 0


def test_a_footer_and_its_entry_state_the_same_facts() -> None:
    """A fact that is added to both, but not to the list, would be missing from every entry."""
    footer, entry = (
        {field.name: field.type for field in msgspec.structs.fields(kind)} for kind in (Contents, CatalogEntry)
    )
    same_type = {name for name in footer.keys() & entry.keys() if footer[name] == entry[name]}
    assert same_type == {*OBJECT_FACTS, "classifications"}
    assert {"submissions", "quarantined", "duplicates"} == footer.keys() & entry.keys() - same_type
