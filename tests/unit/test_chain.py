"""The chain protocol's decisions (docs/delivery.md), one rule at a time."""

from collections.abc import Mapping, Sequence
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


def run(first: int, last: int) -> list[Message]:
    return [message(sequence, f"s{sequence}") for sequence in range(first, last + 1)]


# --- keys


@given(first=st.integers(1, 10**15), number=st.integers(0, 200))
def test_a_key_tells_its_first_sequence_to_its_own_lane_alone(first: int, number: int) -> None:
    """Also past twelve digits; another lane and another epoch do not know it."""
    lane = Lane("vehicles", number, LANE.epoch)
    key = object_key("bronze", lane, message(first))
    assert first_of_key(lane, key) == first
    assert first_of_key(Lane("vehicles", number + 1, LANE.epoch), key) is None
    assert first_of_key(Lane("vehicles", number, "20261124T120000001"), key) is None


def test_what_can_be_no_key_is_none_of_an_object() -> None:
    """A bucket would answer it as if it were away."""
    key = object_key("bronze", LANE, message(7))
    assert may_be_object("bronze", key)
    assert not may_be_object("other", key)
    for odd in ("bronze/\0.parquet", "bronze/../a.parquet", "bronze//a.parquet", f"bronze/{'a' * 1024}.parquet"):
        assert not may_be_object("bronze", odd)


def test_a_key_lies_in_the_hour_of_its_first_message() -> None:
    assert object_key("bronze", LANE, message(7)) == (
        "bronze/source=vehicles/date=2026-11-24/hour=12/20261124T120000000-0-000000000007.parquet"
    )
    assert hour_prefix("bronze", "vehicles", LANE.since) == "bronze/source=vehicles/date=2026-11-24/hour=12/"


@pytest.mark.parametrize("name", ["x.parquet", "20261124T120000000-0-.parquet", "20261124T120000000-0-7.txt", ""])
def test_a_key_that_is_none_of_ours_tells_nothing(name: str) -> None:
    assert first_of_key(LANE, f"bronze/source=vehicles/{name}") is None


@pytest.mark.parametrize(
    ("time", "after"),
    [("1970-01-01T00:00:01Z", 1.0), ("1970-01-01T00:01:00.5Z", 60.5), ("1970-01-02T00:00:00.000000001Z", 86400.0)],
)
def test_the_servers_time_in_seconds(time: str, after: float) -> None:
    assert unix_time_s(time) == pytest.approx(after, abs=1e-6)


# --- rule 3: what follows the chain


@given(anchor=st.integers(0, 5), present=st.sets(st.integers(1, 12)))
def test_a_read_gives_all_up_to_the_first_gap_or_says_that_there_is_one(anchor: int, present: set[int]) -> None:
    """Whatever a replica lacks, no message is skipped: an empty answer means that nothing follows."""
    read = [message(sequence) for sequence in sorted(present) if sequence >= max(anchor, 1)]
    tail = Tail(anchor, message(anchor).time) if anchor else None
    missing = None
    followed: list[Message] = []
    try:
        followed = follow(tail, read)
    except Gap as gap:
        missing = gap.sequence
    last = anchor + len(followed)
    assert [one.sequence for one in followed] == list(range(anchor + 1, last + 1))
    if missing is None:
        assert not anchor or anchor in present
        assert last + 1 not in present
        assert followed or not any(sequence > anchor for sequence in present)
    else:
        assert missing not in present
        assert missing in {max(anchor, 1), anchor + 1}


def test_an_anchor_of_another_time_halts() -> None:
    """The queue was rolled back and filled again: its numbers are the same, its times are not."""
    with pytest.raises(Halted, match="rolled back"):
        follow(Tail(3, message(3).time), [message(3, second=1), message(4)])


def test_the_tail_is_what_was_read_last_or_the_anchor_or_nothing() -> None:
    entry = entry_of(contents(run(1, 4)))
    assert Tail.of(Position(None, 0), []) is None
    assert Tail.of(Position(entry, 9), []) == Tail(4, message(4).time)
    assert Tail.of(Position(entry, 9), run(5, 6)) == Tail(6, message(6).time)


# --- rule 9: bounds


@settings(max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=20),
    submissions=st.lists(st.sampled_from("abcdefgh"), min_size=20, max_size=20),
)
def test_a_cut_is_the_longest_beginning_within_the_bounds(sizes: list[int], submissions: list[str]) -> None:
    pending = [
        message(sequence, submission, size=size)
        for sequence, (size, submission) in enumerate(zip(sizes, submissions, strict=False), start=1)
    ]

    def fits(messages: Sequence[Message]) -> bool:
        return (
            len(messages) <= LIMITS.messages_max
            and sum(one.size for one in messages) <= LIMITS.bytes_max
            and len({one.subject for one in messages}) <= LIMITS.submissions_max
        )

    taken = next_cut(pending, LIMITS)
    assert taken == pending[: len(taken)]
    assert fits(taken)
    assert len(taken) == len(pending) or not fits(pending[: len(taken) + 1])
    if len(taken) < len(pending):
        assert limits.full(pending, LIMITS)


def test_a_message_beyond_every_bound_is_still_cut() -> None:
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


def test_a_newer_format_is_left_with_all_that_follows() -> None:
    """A message without a version is poison and not newer: it is taken, and set aside."""
    messages = run(1, 4)
    newer = {**messages[2].headers, HEADER_FORMAT: str(FORMAT + 1)}
    none: Mapping[str, str] = {}
    mixed = [
        messages[0],
        Message(2, messages[1].subject, messages[1].time, none, b""),
        Message(3, messages[2].subject, messages[2].time, newer, b""),
        messages[3],
    ]
    assert readable_prefix(mixed, 1) == mixed[:2]
    assert readable_prefix(messages, 1) == messages


def test_a_newer_version_of_the_source_is_left_with_all_that_follows() -> None:
    """One as old as the consumer's, or older, is taken; so is one of before versions were told."""
    versions = [None, "1", "2", "3", "1"]
    messages = [
        Message(one.sequence, one.subject, one.time, {HEADER_SCHEMA_VERSION: version} if version else {}, b"")
        for one, version in zip(run(1, 5), versions, strict=True)
    ]
    assert [len(readable_prefix(messages, version)) for version in (1, 2, 3)] == [2, 3, 5]


# --- rules 3 and 8: what becomes of each message


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
    ("known", "becomes"),
    [
        pytest.param(None, "kept", id="unknown"),
        pytest.param(identity("a", 10), "kept", id="continued"),
        pytest.param(identity("a", 3), "duplicate", id="stored before"),
        pytest.param(identity("a", 10, epoch="20250101T000000000"), "duplicate", id="stored in another epoch"),
        pytest.param(identity("a", 3, digest="other"), "poison", id="another body"),
        pytest.param(identity("b", 3), "kept", id="another's identity"),
    ],
)
def test_an_identity_decides_what_becomes_of_a_message(known: Identity | None, becomes: str) -> None:
    """The second part of a submission that began at 10; the same place is a continuation, another is too late."""
    late = message(11, part="2/2")
    identities = {known.accepted.submission_id: known} if known else {}
    parts = reconcile(LANE, [late], identities)
    found = {"kept": len(parts.accepted), "duplicate": len(parts.duplicates), "poison": len(parts.dead_letters)}
    assert found == {"kept": 0, "duplicate": 0, "poison": 0} | {becomes: 1}
    for kept in parts.accepted:
        assert kept.first_sequence == 10
        assert kept.earlier == identities.get("a")


@pytest.mark.parametrize(
    "headers", [{}, {HEADER_SUBMISSION: "{"}, message(1, "another").headers], ids=["none", "broken", "another's"]
)
def test_what_does_not_say_whose_it_is_is_poison(headers: Mapping[str, str]) -> None:
    odd = Message(1, lane_subject("vehicles", 0, "a"), message(1).time, headers, b"")
    parts = reconcile(LANE, [odd, message(2, "b")], {})
    assert [bad for bad, _ in parts.dead_letters] == [odd]
    assert [kept.message.sequence for kept in parts.accepted] == [2]


# --- rules 4 and 5: the object decides, the catalog is written from it


@pytest.mark.parametrize("read", [run(1, 5), run(2, 4), run(3, 5), [], run(5, 9)])
def test_an_object_of_the_same_messages_or_of_unread_ones_is_no_contradiction(read: list[Message]) -> None:
    check_covered(contents(run(2, 4)), read)


@pytest.mark.parametrize(
    "other", [message(3, "other"), message(3, "s3", second=1)], ids=["another subject", "another time"]
)
def test_an_object_of_other_messages_halts(other: Message) -> None:
    read = [*run(1, 2), other, *run(4, 5)]
    with pytest.raises(Halted, match="other messages"):
        check_covered(contents(run(2, 4)), read)


def test_the_largest_entry_fits_one_message() -> None:
    """As many submissions and set-aside messages as an object takes, each text as long as it may be; what is too long
    for an entry is left out, and is no other text.
    """
    brief, long = "é" * 63, '"' * 256
    submissions = [
        StoredSubmission(
            accepted=msgspec.structs.replace(
                accepted(str(UUID(int=number))),
                records=10**8,
                classification_id=brief if number else long,
                classification_count=10**8,
                origin=brief if number else long,
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
    aside = [quarantined_message(LANE, message(10**12 + number), "bad") for number in range(4096)]
    full = msgspec.structs.replace(
        contents([message(1)], submissions), quarantined=aside, classifications=[brief] * 128, classification_count=999
    )
    entry = entry_of(full)
    assert len(msgspec.json.encode(entry)) < MESSAGE_BYTES_MAX - 1024
    assert [(one.classification_id, one.origin) for one in entry.submissions[:2]] == [(None, None), (brief, brief)]


def test_entry_and_identities_say_what_the_object_says() -> None:
    stored = StoredSubmission(
        accepted=accepted("a"),
        first_sequence=1,
        parts=3,
        parts_done=2,
        parts_quarantined=1,
        records=7,
        objects=["earlier", "this"],
    )
    wrote = contents(run(2, 4), [stored])
    entry = entry_of(wrote)
    assert (entry.first, entry.last, entry.last_time, entry.messages) == (2, 4, message(4).time, 3)
    assert [(one.submission_id, one.records) for one in entry.submissions] == [("a", 7)]
    assert msgspec.json.decode(msgspec.json.encode(entry), type=CatalogEntry) == entry
    (one,) = identities_of(wrote)
    assert (one.epoch, one.lane, one.first_sequence, one.parts, one.parts_done) == (LANE.epoch, 0, 1, 3, 2)
    assert one.objects == ["earlier", "this"]


# --- rule 7: deaths


def consume(killers: set[int], last: int, limits: Limits = LIMITS) -> tuple[list[int], int, int]:
    """What is set aside, the deaths and the cuts of decoders that die of `killers`, one after another."""
    attempt, position, deaths, cuts = Attempt(), 0, 0, 0
    aside: list[int] = []
    while position < last:
        pending = run(position + 1, last)
        taken = next_cut(pending, attempt.bound(pending[0].sequence, limits))
        cuts += 1
        hopeless = attempt.hopeless(taken)
        attempt = attempt.begin(taken)
        if hopeless:
            aside.append(taken[0].sequence)
        elif any(one.sequence in killers for one in taken):
            attempt = attempt.died()
            deaths += 1
            continue
        position = taken[-1].sequence
    return aside, deaths, cuts


WIDE = Limits(bytes_max=10**9, messages_max=32, submissions_max=999, age_s_max=15)


@settings(max_examples=50)
@given(killers=st.sets(st.integers(1, 40), max_size=4), last=st.just(40))
def test_exactly_the_messages_that_kill_their_decoder_are_set_aside(killers: set[int], last: int) -> None:
    """All others are decoded, after a number of deaths that is bounded by halving."""
    aside, deaths, _ = consume(killers, last, WIDE)
    assert aside == sorted(killers)
    assert deaths <= len(killers) * (DEATHS_TOLERATED + 5 + DEATHS_TOLERATED)


def test_the_limit_is_reduced_until_the_suspect_range_is_passed_and_no_longer() -> None:
    attempt = Attempt()
    for _ in range(DEATHS_TOLERATED - 1):
        attempt = attempt.begin(run(1, 8)).died()
        assert attempt.bound(1, WIDE) == WIDE
    attempt = attempt.begin(run(1, 8)).died()
    assert attempt.bound(1, WIDE).messages_max == 4
    attempt = attempt.begin(run(1, 4))  # survived
    assert attempt.bound(5, WIDE).messages_max == 4
    attempt = attempt.begin(run(5, 8))
    assert attempt.bound(9, WIDE) == WIDE
    assert attempt.died().bound(5, WIDE).messages_max == 2


def test_a_message_is_hopeless_only_after_deaths_at_it_alone() -> None:
    """Deaths of a larger cut may be its neighbour's: having been decoded alone, it is not set aside for them."""
    attempt = Attempt()
    size = 8
    while size > 1:
        taken = next_cut(run(1, 8), attempt.bound(1, WIDE))
        size = len(taken)
        if size > 1:
            attempt = attempt.begin(taken).died()
    alone = run(1, 1)
    for deaths in range(DEATHS_TOLERATED):
        assert not attempt.hopeless(alone), f"after {deaths} deaths alone"
        attempt = attempt.begin(alone)
        assert not attempt.hopeless(alone), f"decoded, after {deaths} deaths alone"
        attempt = attempt.died()
    assert attempt.hopeless(alone)
    assert not attempt.hopeless(run(1, 2))
    assert not attempt.hopeless(run(2, 2))


def test_deaths_count_at_one_beginning_even_if_the_cut_grows() -> None:
    attempt = Attempt()
    for last in (3, 5, 8):
        attempt = attempt.begin(run(1, last)).died()
    assert attempt.bound(1, WIDE).messages_max == 4
    assert attempt.begin(run(2, 8)).deaths == 0


def test_a_footer_and_its_entry_state_the_same_facts() -> None:
    """A fact that is added to both, and not to the list, would be missing from every entry."""
    footer, entry = (
        {field.name: field.type for field in msgspec.structs.fields(kind)} for kind in (Contents, CatalogEntry)
    )
    alike = {name for name in footer.keys() & entry.keys() if footer[name] == entry[name]}
    assert alike == {*OBJECT_FACTS, "classifications"}
    assert {"submissions", "quarantined", "duplicates"} == footer.keys() & entry.keys() - alike
