"""The comparison of the catalog with the bucket: which objects are missing."""

import asyncio
import datetime as dt
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bronze.errors import BronzeError
from bronze.objects.removals import removed_paths
from bronze.servers.bucket import Bucket
from bronze.servers.catalog_feed import Feed, FeedPosition
from bronze.telemetry.instruments import Instruments
from bronze.telemetry.signals import attribute

log = logging.getLogger(__name__)

#: How often the newest entries are compared with the bucket.
COMPARE_S = 60.0
#: The entries that are compared with the bucket.
COMPARED = dt.timedelta(hours=2)


@dataclass(frozen=True, slots=True)
class _Stored:
    at: str
    source: str
    key: str


class Comparison:
    """Compares the newest entries of the catalog with the bucket."""

    def __init__(
        self,
        bucket: Bucket,
        feed: Feed,
        instruments: Instruments,
        sources: Iterable[str],
        prefix: str,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._bucket = bucket
        self._feed = feed
        self._instruments = instruments
        self._sources = tuple(sources)
        self._prefix = prefix
        self._now = now
        self._read = FeedPosition()
        self._newest: list[_Stored] = []
        self._missing: set[str] = set()

    async def run(self) -> None:
        """Compare until cancelled."""
        while True:
            try:
                await self.compare()
            except BronzeError as error:
                log.info("the catalog could not be compared with the bucket: %s", error)
            except Exception:
                log.exception("the comparison with the bucket: unexpected error")
            await asyncio.sleep(COMPARE_S)

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
