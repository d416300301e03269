"""The cursor of a follower: it says the same after every journey, and nothing but a cursor is taken for one."""

import base64
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bronze.errors import Refusal, Refused
from bronze.protocol import feed_cursor
from bronze.protocol.feed_cursor import CURSOR_CHARS_MAX, FeedCursor, Ranges, system_of
from bronze.protocol.lane import Lane

SYSTEM = system_of("bronze", "bronze")
LANE = Lane("vehicles", 0, "20261124T120000000")
OTHER = Lane("status", 3, "20261124T120000001")

LANES = st.builds(
    Lane,
    st.sampled_from(["a", "status", "results"]),
    st.integers(0, 9),
    st.from_regex(r"[0-9]{8}T[0-9]{9}", fullmatch=True),
)
SEQUENCES = st.integers(1, 2**63 - 1)
MESSAGES = st.tuples(st.integers(1, 60), st.integers(0, 9)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def text_of(document: object) -> str:
    return "1." + base64.urlsafe_b64encode(zlib.compress(json.dumps(document).encode())).decode()


def refused(text: str) -> str:
    with pytest.raises(Refused) as caught:
        FeedCursor.decode(text, SYSTEM)
    assert caught.value.code is Refusal.INVALID_CURSOR
    return str(caught.value)


@given(st.lists(MESSAGES, max_size=20))
def test_ranges_are_a_set_of_messages(added: list[tuple[int, int]]) -> None:
    """Ranges that overlap or touch are one range."""
    ranges, messages = Ranges(), set[int]()
    for first, last in added:
        ranges = ranges.with_range(first, last)
        messages |= set(range(first, last + 1))
    assert {sequence for sequence in range(80) if sequence in ranges} == messages
    assert len(ranges) == len([sequence for sequence in messages if sequence - 1 not in messages])
    assert all(last + 1 < first for last, first in zip(ranges.lasts, ranges.firsts[1:], strict=False))


@given(
    st.dictionaries(LANES, SEQUENCES, max_size=9),
    st.dictionaries(LANES, st.lists(MESSAGES, min_size=1, max_size=5), max_size=4),
    st.dictionaries(st.sampled_from(["a", "status"]), SEQUENCES),
)
def test_a_cursor_survives_as_text(
    positions: dict[Lane, int], removed: dict[Lane, list[tuple[int, int]]], removals: dict[str, int]
) -> None:
    cursor = FeedCursor(positions).with_removals_read("BRONZE_CATALOG_1", removals)
    for lane, ranges in removed.items():
        for first, last in ranges:
            cursor = cursor.after_removal(lane, first, last)
    text = cursor.encode(SYSTEM)
    assert FeedCursor.decode(text, SYSTEM) == cursor
    assert text.isascii()
    assert "\n" not in text


def test_equal_cursors_have_equal_texts() -> None:
    one = FeedCursor().after_object(LANE, 5).after_object(OTHER, 7)
    other = FeedCursor().after_object(OTHER, 7).after_object(LANE, 3).after_object(LANE, 5)
    assert one.encode(SYSTEM) == other.encode(SYSTEM)


def test_what_was_read_of_a_stream_is_void_for_another() -> None:
    cursor = FeedCursor().with_removals_read("one", {"vehicles": 5}).with_removals_read("one", {"status": 6})
    assert (cursor.removals_read("one", "vehicles"), cursor.removals_read("one", "status")) == (5, 6)
    assert cursor.removals_read("two", "vehicles") == 0
    assert cursor.with_removals_read("two", {"status": 1}).removals_read("two", "vehicles") == 0


def test_a_cursor_of_another_system_is_refused() -> None:
    text = FeedCursor().after_object(LANE, 5).encode(system_of("bronze", "other"))
    assert "another system" in refused(text)


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "1.",
        "1.!",
        "1.é",
        "\0",
        "0." + FeedCursor().encode(SYSTEM)[2:],
        FeedCursor().encode(SYSTEM)[:-4],
        FeedCursor().encode(SYSTEM) + "AAAA",
        text_of([]),
        text_of({}),
        text_of([SYSTEM, [["Vehicles", 0, LANE.epoch, 1]], "", {}]),
        text_of([SYSTEM, [["vehicles", 0, "now", 1]], "", {}]),
        text_of([SYSTEM, [["vehicles", -1, LANE.epoch, 1]], "", {}]),
        text_of([SYSTEM, [["vehicles", 0, LANE.epoch, 2**63]], "", {}]),
        text_of([SYSTEM, [["vehicles", 0, LANE.epoch, 1.5]], "", {}]),
        text_of([SYSTEM, [["vehicles", 0, LANE.epoch, 1], ["vehicles", 0, LANE.epoch, 2]], "", {}]),
        text_of([SYSTEM, [["vehicles", 0, LANE.epoch, 1, [[5, 4]]]], "", {}]),
        text_of([SYSTEM, [["vehicles", 0, LANE.epoch, 1, [[5, 6], [1, 2]]]], "", {}]),
        text_of([SYSTEM, [], "x" * 65, {}]),
        "1." + base64.urlsafe_b64encode(zlib.compress(b"[" * 100_000)).decode(),
    ],
)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    refused(text)


@given(st.text() | st.binary().map(lambda data: "1." + base64.urlsafe_b64encode(zlib.compress(data)).decode()))
def test_no_text_is_an_error_of_ours(text: str) -> None:
    refused(text)


def test_a_huge_text_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a small one that would expand to something huge."""
    bomb = zlib.compress(b"0" * 2**24)
    assert "too large" in refused("1." + base64.urlsafe_b64encode(bomb).decode())
    monkeypatch.setattr(feed_cursor, "base64", None)
    assert "longer" in refused("1." + "A" * CURSOR_CHARS_MAX)


def test_a_cursor_of_too_many_lanes_says_what_to_do() -> None:
    """Hundreds of lanes fit."""
    many = FeedCursor(
        {Lane(f"source_{n % 7}", n % 8, f"2026112{n % 10}T{n * 7919 % 10**9:09}"): n for n in range(1, 601)}
    )
    assert FeedCursor.decode(many.encode(SYSTEM), SYSTEM) == many
    more = FeedCursor({Lane("vehicles", 0, f"20261124T{n * 7919 % 10**9:09}"): n * 7919**2 for n in range(9_000)})
    with pytest.raises(Refused, match="Follow fewer sources"):
        more.encode(SYSTEM)


def test_a_cursor_forgets_the_first_of_too_many_removals() -> None:
    """Those of another lane with few stay."""
    cursor = FeedCursor().after_removal(OTHER, 1, 1)
    for first in range(1, 2 * feed_cursor.RANGES_MAX, 2):
        cursor = cursor.after_removal(LANE, first * 2, first * 2)
    kept = FeedCursor.decode(cursor.encode(SYSTEM), SYSTEM)
    assert sum(map(len, kept.removed.values())) <= feed_cursor.RANGES_MAX
    assert 1 in kept.removed[OTHER]
    assert cursor.removed[LANE].lasts[-1] in kept.removed[LANE]
