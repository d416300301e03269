"""Removed ranges bridge the gaps of a chain: an object as a whole, unknown messages also in parts."""

from bronze.objects.removed_ranges import RemovedRange, RemovedRanges


def ranges(*objects: tuple[int, int], unknown: tuple[tuple[int, int], ...] = ()) -> RemovedRanges:
    return RemovedRanges(
        {first: RemovedRange(first, last, str(first)) for first, last in objects},
        [RemovedRange(first, last) for first, last in unknown],
    )


def test_a_chain_continues_with_an_object_only_at_its_first_message() -> None:
    removed = ranges((3, 5), unknown=((8, 10),))
    assert {sequence: at.last for sequence in range(1, 12) if (at := removed.at(sequence))} == {
        3: 5,
        8: 10,
        9: 10,
        10: 10,
    }


def test_what_catalog_and_record_both_know_counts_before_unknown_messages() -> None:
    at = ranges((3, 5), unknown=((1, 9),)).at(3)
    assert at is not None
    assert at.file_path == "3"


def test_a_chain_begins_with_the_ranges_that_end_before_it() -> None:
    removed = ranges((1, 2), (5, 6), (9, 9), unknown=((7, 8),))
    assert removed.beginning(10) == 5
    assert removed.beginning(9) == 5
    assert removed.beginning(3) == 1
    assert removed.beginning(5) == 5
    assert ranges().beginning(4) == 4


def test_the_last_message_is_that_of_an_object() -> None:
    assert ranges((1, 2), (5, 6), unknown=((7, 8),)).last == 6
    assert ranges(unknown=((7, 8),)).last == 0
    assert ranges((1, 2), (5, 6), (7, 7)).next_object(2).first == 5
