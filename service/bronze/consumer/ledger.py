"""The comparison of the catalog with the bucket: which objects are missing."""

import asyncio
import datetime as dt
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from bronze.errors import BronzeError, Unavailable
from bronze.objects.differences import find_differences
from bronze.objects.removals import read_removal
from bronze.protocol.entry_sizes import EntrySizes
from bronze.servers.bucket import Bucket
from bronze.servers.catalog import Catalog
from bronze.servers.catalog_feed import Feed, FeedPosition
from bronze.telemetry.instruments import Instruments
from bronze.telemetry.signals import attribute

log = logging.getLogger(__name__)

#: How often the newest entries are compared with the bucket.
COMPARE_S = 60.0
#: The newest entries.
COMPARED = dt.timedelta(hours=2)
#: The pauses of the comparison of all entries: after each page of entries, and after the last one.
PAGE_PAUSE_S = 0.2
CYCLE_PAUSE_S = 600.0
#: Missing objects older than `COMPARED` that are remembered and looked for again; more are only logged.
OLDER_MISSING_MAX = 1_000


@dataclass(frozen=True, slots=True)
class _Stored:
    """An object by its entry; its size in bytes is None if no entry states it."""

    at: str
    source: str
    key: str
    size: int | None


class Comparison:
    """Compares the entries of the catalog with the bucket: the newest often, and all of them in a slow cycle."""

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
        #: those that are declared, and those that have been missing objects
        self._sources = set(sources)
        self._prefix = prefix
        self._now = now
        self._read = FeedPosition()
        self._newest: list[_Stored] = []
        self._sizes = EntrySizes()
        #: the missing objects older than the newest entries, by key
        self._older: dict[str, _Stored] = {}
        self._logged: set[str] = set()

    async def run(self) -> None:
        """Compare the newest entries until cancelled."""
        await self._repeat(self.compare, COMPARE_S)

    async def run_all(self) -> None:
        """Compare all entries, again and again, until cancelled."""
        await self._repeat(self.compare_all, CYCLE_PAUSE_S)

    async def _repeat(self, compare: Callable[[], Awaitable[None]], pause_s: float) -> None:
        while True:
            try:
                await compare()
            except Unavailable as error:
                log.info("the catalog could not be compared with the bucket: %s", error)
            except BronzeError as error:
                log.error("the catalog could not be compared with the bucket: %s", error)
            except Exception:
                log.exception("the comparison with the bucket: unexpected error")
            await asyncio.sleep(pause_s)

    async def compare(self) -> None:
        """Report how many objects are missing: of the newest entries, and those known from the slow cycle."""
        since = (self._now() - COMPARED).isoformat()
        await self._read_feed(since)
        self._newest = [stored for stored in self._newest if stored.at >= since]
        of_source: dict[str, list[_Stored]] = {}
        for stored in self._newest:  # before the listing: an object is older than its entry
            of_source.setdefault(stored.source, []).append(stored)
        missing: set[str] = set()
        numbers = Counter(dict.fromkeys(self._sources, 0))
        for source, expected in of_source.items():
            for stored in await self._missing_of(source, expected):
                missing.add(stored.key)
                numbers[source] += 1
        for stored in list(self._older.values()):
            head = await self._bucket.head(stored.key)
            if (head is not None and stored.size in {None, head.stored_size}) or await read_removal(
                self._bucket, self._prefix, stored.key
            ):
                self._older.pop(stored.key, None)
            elif stored.key not in missing:
                numbers[stored.source] += 1
        self._sources |= numbers.keys()
        for source, number in numbers.items():
            self._instruments.missing_objects.set(number, {attribute.bronze_source: source})

    async def compare_all(self) -> None:
        """Compare all entries once, lane by lane. At most one page of entries is in memory."""
        for lane in await self._catalog.positions():
            sizes, since = EntrySizes(), 1
            while page := await self._catalog.entries(lane, since):
                # the objects of a lane and an hour have a common prefix
                folders: dict[str, list[_Stored]] = {}
                for _, entry in page:
                    folder = entry.file_path.removesuffix(f"{entry.first:012}.parquet")
                    stored = _Stored("", lane.source, entry.file_path, sizes.of(entry))
                    folders.setdefault(folder, []).append(stored)
                for folder, expected in folders.items():
                    for stored in await self._missing_of(lane.source, expected, folder):
                        if len(self._older) < OLDER_MISSING_MAX:
                            self._older[stored.key] = stored
                since = page[-1][0] + 1
                await asyncio.sleep(PAGE_PAUSE_S)
        self._instruments.missing_compared_time.set(self._now().timestamp())

    async def _missing_of(self, source: str, expected: list[_Stored], folder: str | None = None) -> list[_Stored]:
        """Those of some objects that are not in the bucket, or not with their size; each is logged once."""
        sizes = {stored.key: stored.size for stored in expected}
        differences = await find_differences(self._bucket, self._prefix, source, sizes, folder)
        missing = {difference.key: difference for difference in differences if not difference.removed}
        for key, difference in missing.items():
            if key in self._logged:
                continue
            if len(self._logged) < OLDER_MISSING_MAX:
                self._logged.add(key)
            if difference.found is not None:
                log.error(
                    "%s has %d bytes in the bucket, but %s in the catalog: it was damaged, or replaced",
                    key,
                    difference.found,
                    difference.size,
                )
            else:
                log.error("%s is in the catalog, but not in the bucket: it was deleted, or lost", key)
        return [stored for stored in expected if stored.key in missing]

    async def _read_feed(self, since: str) -> None:
        while True:
            page = await self._feed.read(self._read, since=None if self._read.sequence else since)
            if page.position.stream != self._read.stream:
                self._newest, self._sizes = [], EntrySizes()  # the catalog was replaced
            # a rebuilt catalog has just got the entries of all objects; only the newest are compared
            read = [
                _Stored(listed.stored_at, listed.entry.source, listed.entry.file_path, self._sizes.of(listed.entry))
                for listed in page.entries
            ]
            self._newest += [stored for stored in read if stored.at >= since]
            self._read = page.position
            if not page.remaining:
                return
