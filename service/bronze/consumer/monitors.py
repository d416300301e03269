"""The data monitors: what the stored objects say of each source's fields and senders, as metrics.

Measuring is part of encoding (`bronze.objects.measurements`). Counts are collected here and reported every few seconds:
a count of the SDK costs more than the measurement.
"""

import asyncio
import datetime as dt
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypeVar

from bronze.objects.encoder import Encoded
from bronze.objects.measurements import FieldMeasurement, measured_fields
from bronze.records.expectations import Expectation
from bronze.records.sources import CANARY, Source
from bronze.telemetry.instruments import Instruments
from bronze.telemetry.signals import OTHER_PRINCIPAL, FieldValue, attribute

REPORT_S = 5.0
#: The principals of a source that a process names; all others are one.
PRINCIPALS_MAX = 20

#: The expectations that an object meets or not. The others are about time, and Prometheus judges them.
_OF_OBJECTS = frozenset({Expectation.MIN, Expectation.MAX, Expectation.VALUES, Expectation.DISTINCT_MAX})

_SourceField = tuple[str, str]
_T = TypeVar("_T")


class Monitors:
    """Reports what is stored, and what is expected of it; for all lanes of a process."""

    def __init__(self, sources: Mapping[str, Source], instruments: Instruments) -> None:
        self._sources = sources
        self._instruments = instruments
        self._values: Counter[tuple[_SourceField, FieldValue]] = Counter()
        self._broken: Counter[tuple[_SourceField, Expectation]] = Counter()
        self._last: dict[_SourceField, FieldMeasurement] = {}
        self._records: Counter[tuple[str, str]] = Counter()
        self._newest: dict[tuple[str, str], str] = {}
        self._principals: dict[str, set[str]] = {}
        for source in sources.values():
            self._begin(source)

    def _begin(self, source: Source) -> None:
        """Report what is expected, and that nothing was counted: the first count is then an increase."""
        of_source = {attribute.bronze_source: source.name}
        expected = source.expectations
        if expected.every_s is not None:
            self._instruments.data_staleness_sla_threshold.set(expected.every_s, of_source)
        if expected.records_per_hour_min is not None:
            self._instruments.expectation_limit.set(
                expected.records_per_hour_min,
                {**of_source, attribute.bronze_expectation: Expectation.RECORDS_PER_HOUR_MIN},
            )
        for field in measured_fields(source):
            key = (source.name, field.name)
            self._values.update({(key, FieldValue.PRESENT): 0, (key, FieldValue.NULL): 0})
            of_field = expected.fields.get(field.name)
            if of_field is None:
                continue
            for name, limit in of_field.limits.items():
                self._instruments.expectation_limit.set(limit, {**_attributes(key), attribute.bronze_expectation: name})
            declared = {*of_field.limits, *([Expectation.VALUES] if of_field.values else [])}
            self._broken.update({(key, name): 0 for name in declared & _OF_OBJECTS})

    def add(self, encoded: Encoded) -> None:
        """Count an object that is stored."""
        contents = encoded.contents
        if contents.source == CANARY:
            return
        if encoded.lateness_s is not None:
            lane = {attribute.bronze_source: contents.source, attribute.bronze_lane: str(contents.lane)}
            self._instruments.event_lateness.set(encoded.lateness_s, lane)
        expected = self._sources[contents.source].expectations.fields
        for name, measured in encoded.fields.items():
            key = (contents.source, name)
            self._values[key, FieldValue.PRESENT] += measured.records - measured.nulls
            self._values[key, FieldValue.NULL] += measured.nulls
            self._last[key] = measured
            if name in expected:
                self._broken.update((key, expectation) for expectation in measured.broken(expected[name]))
        for submission in contents.submissions:
            if principal := submission.accepted.principal:
                sender = (contents.source, self._named(contents.source, principal))
                self._records[sender] += submission.records
                self._newest[sender] = max(self._newest.get(sender, ""), submission.accepted.received_at)

    def _named(self, source: str, principal: str) -> str:
        named = self._principals.setdefault(source, set())
        if len(named) < PRINCIPALS_MAX:
            named.add(principal)
        return principal if principal in named else OTHER_PRINCIPAL

    async def run(self) -> None:
        """Report every few seconds, and at the end."""
        try:
            while True:
                self.report()
                await asyncio.sleep(REPORT_S)
        finally:
            self.report()

    def report(self) -> None:
        """Report what was added since the last report."""
        instruments = self._instruments
        for (key, kind), number in _taken(self._values):
            instruments.field_values.add(number, {**_attributes(key), attribute.bronze_value: kind})
        for (key, expectation), number in _taken(self._broken):
            instruments.expectation_broken.add(number, {**_attributes(key), attribute.bronze_expectation: expectation})
        for key, measured in self._last.items():
            if measured.least is not None and measured.greatest is not None:
                instruments.field_min.set(measured.least, _attributes(key))
                instruments.field_max.set(measured.greatest, _attributes(key))
            if measured.distinct is not None:
                instruments.field_distinct.set(measured.distinct, _attributes(key))
        self._last.clear()
        for (source, principal), number in _taken(self._records):
            sender = {attribute.bronze_source: source, attribute.enduser_id: principal}
            newest = dt.datetime.fromisoformat(self._newest.pop((source, principal)))
            instruments.principal_records.add(number, sender)
            instruments.principal_newest_time.set(newest.timestamp(), sender)


def _attributes(key: _SourceField) -> Mapping[str, str]:
    source, field = key
    return {attribute.bronze_source: source, attribute.bronze_field: field}


def _taken(counts: Counter[_T]) -> Iterable[tuple[_T, int]]:
    """The counts so far; the counter begins again."""
    taken = list(counts.items())
    counts.clear()
    return taken
