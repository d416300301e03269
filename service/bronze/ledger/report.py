"""The ledger's metrics: what each source accepted and stored, from the catalog and the lanes.

Every API and consumer reports the same numbers. None of them is a count of its own, so a restart or a kill changes
nothing.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bronze.errors import BronzeError, Gone
from bronze.ledger.accepted import AcceptedRecords
from bronze.objects.ledger import count_totals
from bronze.protocol.chain import Position
from bronze.protocol.documents import Totals
from bronze.protocol.lane import Lane
from bronze.servers.bucket import Bucket
from bronze.servers.catalog import Catalog
from bronze.servers.queue import Queue
from bronze.telemetry.instruments import Instruments
from bronze.telemetry.signals import Outcome, attribute

log = logging.getLogger(__name__)

REPORT_S = 5.0


@dataclass(frozen=True, slots=True)
class _LaneTotals:
    """What a lane accepted, and what became of the records that are done, at one moment."""

    accepted: int
    done: Totals


class LedgerReport:
    """Reports what went through the lanes of each source."""

    def __init__(
        self,
        catalog: Catalog,
        bucket: Bucket,
        queue: Queue,
        instruments: Instruments,
        lanes: Iterable[Lane],
        sources: Iterable[str],
    ) -> None:
        self._catalog = catalog
        self._bucket = bucket
        self._instruments = instruments
        self._accepted = {lane: AcceptedRecords(lane, queue, catalog) for lane in lanes}
        self._sources = tuple(sources)
        self._positions: dict[Lane, Position] = {}
        self._totals: dict[Lane, _LaneTotals] = {}

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            try:
                await self.report()
            except BronzeError as error:
                log.info("the ledger could not be reported: %s", error)
            except Exception:
                log.exception("the ledger: unexpected error")
            await asyncio.sleep(REPORT_S)

    async def report(self) -> None:
        """Report the totals of each source: the sum over all its lanes, also over those that were replaced.

        A lane that cannot be read now counts as it was. If it was never read, nothing is reported of its source: a part
        of the sum would look like a loss.
        """
        positions = await self._catalog.positions()
        lanes = {*self._accepted, *positions, *self._positions}
        for lane in lanes:
            try:
                self._totals[lane] = await self._read(lane, positions.get(lane, Position(None, 0)))
            except Gone:
                raise
            except BronzeError as error:
                log.info("lane %s: its totals could not be read: %s", lane.stream, error)
        incomplete = {lane.source for lane in lanes - self._totals.keys()}
        for source in {*self._sources, *(lane.source for lane in lanes)} - incomplete:
            self._set(source, [totals for lane, totals in self._totals.items() if lane.source == source])

    async def _read(self, lane: Lane, answered: Position) -> _LaneTotals:
        known = self._positions.get(lane)
        if known is None or known.entry_sequence < answered.entry_sequence:  # the replica that answers may lag
            known = self._positions[lane] = await count_totals(self._catalog, self._bucket, lane, answered, known)
        done = known.totals or Totals()
        # after the position: the messages after it are still in the queue
        accepted = await self._accepted[lane].count(known) if lane in self._accepted else done.all_records
        return _LaneTotals(accepted, done)

    def _set(self, source: str, lanes: list[_LaneTotals]) -> None:
        done = sum((lane.done for lane in lanes), Totals())
        attributes = {attribute.bronze_source: source}
        records: Mapping[Outcome, int] = {
            # first: an export at this moment must not show more records done than accepted
            Outcome.ACCEPTED: sum(lane.accepted for lane in lanes),
            Outcome.STORED: done.records,
            Outcome.QUARANTINED: done.quarantined,
            Outcome.REJECTED: done.rejected,
            Outcome.DUPLICATE: done.duplicates,
        }
        for outcome, number in records.items():
            self._instruments.ledger_records.set(number, {**attributes, attribute.bronze_outcome: outcome})
        self._instruments.ledger_objects.set(done.objects, attributes)
        self._instruments.ledger_bytes.set(done.bytes, attributes)
