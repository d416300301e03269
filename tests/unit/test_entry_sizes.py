"""The sizes of objects by the totals of their entries."""

from bronze.protocol.documents import Totals, entry_of
from bronze.protocol.entry_sizes import EntrySizes
from tests import factories


def test_a_size_is_the_difference_to_the_entry_right_before() -> None:
    """None where one of the two has no totals, or is not the next in the chain."""
    sizes = EntrySizes()
    lanes: dict[int, list[tuple[int, int | None, int | None]]] = {
        0: [(1, 10, 10), (2, 30, 20), (3, None, None), (4, 70, None), (5, 75, 5), (7, 99, None), (8, 100, 1)],
        1: [(5, 50, None), (6, 60, 10)],
    }
    for lane, entries in lanes.items():
        for first, total, size in entries:
            totals = None if total is None else Totals(bytes=total)
            assert sizes.of(entry_of(factories.contents(first, first, lane=lane), totals)) == size
