"""Undeclared fields are counted by names that senders choose: their number is bounded, and no count is lost."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from bronze.api.undeclared_counts import UndeclaredCounts
from bronze.records.undeclared import NAMES_MAX


class Counted:
    """An instrument that adds up its counts by source and field."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def add(self, amount: float, attributes: Mapping[str, Any] | None = None, context: object = None) -> None:
        assert attributes is not None
        self.counts[attributes["bronze.source"], attributes["bronze.field"]] += int(amount)


def test_each_submission_counts_once_per_field() -> None:
    counted = Counted()
    counts = UndeclaredCounts(counted)  # type: ignore[arg-type]  # the instrument's one method
    counts.add("a", ("x", "y"))
    counts.add("a", ("x",))
    counts.add("b", ("x",))
    counts.add("b", ())
    counts.report()
    counts.report()
    assert counted.counts == {("a", "x"): 2, ("a", "y"): 1, ("b", "x"): 1}


def test_the_fields_of_a_source_after_the_first_ones_are_counted_as_one() -> None:
    """A sender that invents names leaves the fields that are known, and other sources, as they are."""
    counted = Counted()
    counts = UndeclaredCounts(counted)  # type: ignore[arg-type]
    counts.add("a", ("known",))
    for number in range(10 * NAMES_MAX):
        counts.add("a", (f"x{number}", f"y{number}"))
    counts.add("a", ("known",))
    counts.add("b", ("other",))
    counts.report()
    names = {name for source, name in counted.counts if source == "a"}
    assert len(names) == NAMES_MAX + 1
    assert counted.counts["a", "known"] == 2
    assert counted.counts["a", "_OTHER"] == 10 * NAMES_MAX - (NAMES_MAX - 1) // 2
    assert counted.counts["b", "other"] == 1


async def test_what_was_counted_is_reported_at_the_end() -> None:
    counted = Counted()
    counts = UndeclaredCounts(counted)  # type: ignore[arg-type]
    counts.add("a", ("x",))
    running = asyncio.create_task(counts.run())
    await asyncio.sleep(0)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert counted.counts == {("a", "x"): 1}
