"""The ledger's metrics: what each source holds, from the catalog, and which objects are missing in the bucket.

Every consumer reports the same numbers. None of them is a count of its own, so a restart or a kill changes nothing.
"""

import asyncio
import datetime as dt
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bronze.errors import BronzeError
from bronze.objects.ledger import count_totals
from bronze.objects.removals import removed_paths
from bronze.protocol.chain import Position
from bronze.protocol.documents import Totals
from bronze.protocol.lane import Lane
from bronze.servers.bucket import Bucket
from bronze.servers.catalog import Catalog
from bronze.servers.catalog_feed import Feed, FeedPosition
from bronze.telemetry.instruments import Instruments
from bronze.telemetry.signals import Outcome, attribute

log = logging.getLogger(__name__)

REPORT_S = 5.0
#: How often the bucket is compared with the catalog, in reports.
REPORTS_PER_COMPARISON = 12
#: The entries that are compared with the bucket.
COMPARED = dt.timedelta(hours=2)


@dataclass(frozen=True, slots=True)
class _Stored:
    at: str
    source: str
    key: str


class Ledger:
    """Reports what the catalog says of each source, and compares its newest entries with the bucket."""

    def __init__(
        self,
        catalog: Catalog,
        bucket: Bucket,
        feed: Feed,
        instruments: Instruments,
        sources: Iterable[str],
        prefix: str,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._catalog = catalog
        self._bucket = bucket
        self._feed = feed
        self._instruments = instruments
        self._sources = tuple(sources)
        self._prefix = prefix
        self._now = now
        self._counted: dict[Lane, Position] = {}
        self._read = FeedPosition()
        self._newest: list[_Stored] = []
        self._missing: set[str] = set()

    async def run(self) -> None:
        """Report until cancelled."""
        number = 0
        while True:
            try:
                await self.report()
                if number % REPORTS_PER_COMPARISON == 0:
                    await self.compare()
                number += 1
            except BronzeError as error:
                log.info("the ledger could not be reported: %s", error)
            except Exception:
                log.exception("the ledger: unexpected error")
            await asyncio.sleep(REPORT_S)

    async def report(self) -> None:
        """Report the totals of each source: the sum over all its lanes, also over those that were replaced."""
        totals = dict.fromkeys(self._sources, Totals())
        for lane, last in (await self._catalog.positions()).items():
            position = self._counted.get(lane)
            if position is None or position.entry_sequence != last.entry_sequence:
                position = self._counted[lane] = await count_totals(self._catalog, self._bucket, lane, last)
            totals[lane.source] = totals.get(lane.source, Totals()) + (position.totals or Totals())
        for source, of_source in totals.items():
            attributes = {attribute.bronze_source: source}
            self._instruments.ledger_objects.set(of_source.objects, attributes)
            self._instruments.ledger_bytes.set(of_source.bytes, attributes)
            for outcome, records in (
                (Outcome.STORED, of_source.records),
                (Outcome.QUARANTINED, of_source.quarantined),
                (Outcome.REJECTED, of_source.rejected),
                (Outcome.DUPLICATE, of_source.duplicates),
            ):
                self._instruments.ledger_records.set(records, {**attributes, attribute.bronze_outcome: outcome})

    async def compare(self) -> None:
        """Report how many objects of the last hours are in the catalog, but not in the bucket, and log their keys."""
        since = (self._now() - COMPARED).isoformat()
        await self._read_feed(since)
        self._newest = [stored for stored in self._newest if stored.at >= since]
        missing = dict.fromkeys(self._sources, 0)
        keys: dict[str, list[str]] = {}
        for stored in self._newest:  # before the listing: an object is older than its entry
            keys.setdefault(stored.source, []).append(stored.key)
        for source, expected in keys.items():
            least = min(expected)
            found = {key async for key in self._bucket.keys(f"{self._prefix}/source={source}/", least[:-1])}
            absent = [key for key in expected if key not in found]
            if absent:
                removed = await removed_paths(self._bucket, self._prefix, source, min(absent))
                absent = [key for key in absent if key not in removed]
            missing[source] = len(absent)
            for key in absent:
                if key not in self._missing:
                    self._missing.add(key)
                    log.error("%s is in the catalog, but not in the bucket: it was deleted, or lost", key)
        for source, number in missing.items():
            self._instruments.missing_objects.set(number, {attribute.bronze_source: source})

    async def _read_feed(self, since: str) -> None:
        while True:
            page = await self._feed.read(self._read, since=None if self._read.stream else since)
            if page.position.stream != self._read.stream:
                self._newest = []  # the catalog was replaced
            # a rebuilt catalog has just got the entries of all objects; only the newest are compared
            self._newest += [
                _Stored(listed.stored_at, listed.entry.source, listed.entry.file_path)
                for listed in page.entries
                if listed.stored_at >= since
            ]
            self._read = page.position
            if not page.remaining:
                return
