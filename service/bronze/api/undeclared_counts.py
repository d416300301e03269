"""Counts submissions by the fields that their source does not declare.

The names are those of senders, so their number is bounded. A count of the SDK costs more than all the rest that is done
for such a field, so counts are collected for a second.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence

from opentelemetry.metrics import Counter as CounterInstrument

from bronze.records.undeclared import NAMES_MAX
from bronze.telemetry.signals import OTHER_FIELD, attribute

INTERVAL_S = 1.0


class UndeclaredCounts:
    """The first names of each source are counted, and all others as one."""

    def __init__(self, counter: CounterInstrument) -> None:
        self._counter = counter
        self._names: dict[str, set[str]] = {}
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, source: str, names: Sequence[str]) -> None:
        """Count one submission of a source with these undeclared fields."""
        if names:
            known = self._names.setdefault(source, set())
            known.update(names[: NAMES_MAX - len(known)])
            self._counts.update((source, name) for name in {name if name in known else OTHER_FIELD for name in names})

    async def run(self) -> None:
        """Report the counts each second, and at the end."""
        try:
            while True:
                await asyncio.sleep(INTERVAL_S)
                self.report()
        finally:
            self.report()

    def report(self) -> None:
        counts, self._counts = self._counts, Counter()
        for (source, name), count in counts.items():
            self._counter.add(count, {attribute.bronze_source: source, attribute.bronze_field: name})
