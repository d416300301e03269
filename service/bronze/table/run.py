"""The role: it follows the feed of all sources, and lets each source's committer commit."""

import asyncio
import logging
import math
import time
from collections.abc import Sequence

from bronze.errors import BronzeError, Halted, Outage, Unavailable
from bronze.servers.catalog_feed import Feed, FeedPosition
from bronze.servers.iceberg import Conflict
from bronze.table.committer import Behind, Committer
from bronze.table.table_telemetry import TableTelemetry
from bronze.telemetry.signals import error_type

log = logging.getLogger(__name__)

POLL_S = 0.5
RETRY_S = 5.0
#: When a table that could not be opened is tried again.
REOPEN_S = 60.0


class TableRole:
    """Commits new objects of each source at most every `interval_s` seconds."""

    def __init__(
        self, committers: Sequence[Committer], feed: Feed, telemetry: TableTelemetry, interval_s: float
    ) -> None:
        self._committers = committers
        self._feed = feed
        self._telemetry = telemetry
        self._interval_s = interval_s
        self._place: FeedPosition | None = None
        self._opened: Sequence[Committer] = ()
        self._reopen_s = math.inf
        self._next_s: dict[str, float] = {}
        #: sources to whose tables nothing can be committed now, and those of which entries were passed over meanwhile
        self._failed: set[str] = set()
        self._passed_over: set[str] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Run until stopped. What waits then is committed by the next run."""
        stopped = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                pause_s = POLL_S
                try:
                    if not await self.step():
                        pause_s = 0.0
                except Unavailable as error:
                    log.warning("retrying in %g s: %s", RETRY_S, error)
                    pause_s = RETRY_S
                await asyncio.wait({stopped}, timeout=pause_s)
        finally:
            stopped.cancel()

    async def step(self) -> bool:
        """Read one page of the feed, and commit what is due. Whether the feed is at its end. Raises `Unavailable`."""
        if self._place is None or time.monotonic() >= self._reopen_s:
            self._place = await self._begin()
        by_source = {committer.source.name: committer for committer in self._opened}
        at_end = True
        if not any(committer.is_full for name, committer in by_source.items() if name not in self._failed):
            page = await self._feed.read(self._place)
            if page.position.stream != self._place.stream:  # the catalog was rebuilt
                self._begin_with(page.position.stream)
            self._place, at_end = page.position, not page.remaining
            for entry in page.entries:
                name = entry.entry.source
                if name not in by_source:
                    continue
                if name in self._failed and by_source[name].is_full:  # it must not stop the others
                    self._passed_over.add(name)
                else:
                    by_source[name].add(entry)
        for name, committer in by_source.items():
            if committer.oldest and time.monotonic() >= self._next_s.get(name, 0):
                await self._commit(committer)
            self._telemetry.report(name, committer.oldest, committer.size)
        return at_end

    async def _begin(self) -> FeedPosition:
        """Where to read the feed: at the least place of all tables, at its beginning if they differ in the catalog."""
        places: dict[Committer, FeedPosition] = {}
        for committer in self._committers:
            with self._telemetry.committing(committer.source.name) as commit:
                try:
                    places[committer] = await committer.open()
                except Halted as error:
                    log.error("nothing is committed to the table %s: %s", committer.source.name, error)
                    commit.error = error_type(error)
        self._opened = [*places]
        self._failed.clear()
        self._passed_over.clear()
        self._reopen_s = time.monotonic() + REOPEN_S if len(places) < len(self._committers) else math.inf
        stream = (await self._feed.end()).stream
        self._begin_with(stream)
        begins = [place.sequence if place.stream == stream else 0 for place in places.values()]
        return FeedPosition(stream, min(begins, default=0))

    def _begin_with(self, stream: str) -> None:
        for committer in self._opened:
            committer.begin(stream)

    async def _commit(self, committer: Committer) -> None:
        name = committer.source.name
        self._next_s[name] = time.monotonic() + self._interval_s
        self._failed.discard(name)
        with self._telemetry.committing(name) as commit:
            try:
                commit.commit = await committer.commit(commit.traceparent)
            except Behind as error:
                log.warning("the table %s %s", name, error)
                self._place = None
                commit.error = Outage.CONFLICT
            except Conflict as error:
                log.info("another commit to the table %s came first, trying again: %s", name, error)
                commit.error = Outage.CONFLICT
            except BronzeError as error:
                log.error("nothing was committed to the table %s: %s", name, error)
                commit.error = error_type(error)
                self._failed.add(name)
            except Exception as error:
                log.exception("the table %s: unexpected error", name)
                commit.error = error_type(error)
                self._failed.add(name)
            else:
                if name in self._passed_over:
                    self._place = None
