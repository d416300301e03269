"""Commits the objects of one source to its table, in the order of their lanes, each once."""

import asyncio
import datetime as dt
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from bronze.errors import Halted
from bronze.protocol.documents import CatalogEntry
from bronze.protocol.snapshot_summary import OBJECTS, SCHEMA_VERSION, TRACEPARENT
from bronze.records.columns import table_schema
from bronze.records.sources import Source
from bronze.servers.bucket import Bucket
from bronze.servers.catalog_feed import Feed, FeedEntry, FeedPosition
from bronze.servers.iceberg import RECEIVED_AT, Dropped, Tables, TableSize, TableState, table_size
from bronze.table.object_rows import read_rows
from bronze.table.position import TablePosition

log = logging.getLogger(__name__)

#: Entries that wait; the feed is read on when there are fewer.
WAITING_MAX = 1024


class Behind(Exception):
    """The table does not hold what the waiting entries follow: open it, and read the feed again. The text says why."""


@dataclass(frozen=True, slots=True)
class Commit:
    """What a commit added to the table.

    `accepted_at`: when the oldest record of each object with rows was accepted.
    """

    entries: Sequence[FeedEntry]
    rows: int
    snapshot_id: int
    accepted_at: Sequence[dt.datetime]


class Committer:
    """The commits of one source. `bytes_max` bounds the rows of a commit in memory."""

    def __init__(self, source: Source, tables: Tables, feed: Feed, bucket: Bucket, prefix: str, bytes_max: int) -> None:
        self.source = source
        self._columns = table_schema(source)
        self._tables = tables
        self._feed = feed
        self._bucket = bucket
        self._prefix = prefix
        self._bytes_max = bytes_max
        self.size = TableSize()
        self._stream = ""
        self._gap: tuple[int, str, int | None, int] | None = None
        self._waiting: deque[FeedEntry] = deque()

    @property
    def oldest(self) -> FeedEntry | None:
        """The entry that has waited longest."""
        return self._waiting[0] if self._waiting else None

    @property
    def is_full(self) -> bool:
        """Whether so many entries wait that the feed should not be read on."""
        return len(self._waiting) >= WAITING_MAX

    async def open(self) -> FeedPosition:
        """Create the table, or add the columns that it lacks. Returns where to read the feed."""
        await asyncio.to_thread(self._tables.open, self.source.name, self._columns)
        state = await self._read()
        self.size = table_size(state.snapshot, state.snapshots)
        return (await self._position(state)).feed

    def begin(self, stream: str) -> None:
        """Forget the waiting entries: the feed is read again, from this stream of the catalog."""
        self._waiting.clear()
        self._stream = stream

    def add(self, entry: FeedEntry) -> None:
        """Let an entry of the source wait; they come in the order of the feed."""
        self._waiting.append(entry)

    async def commit(self, traceparent: str) -> Commit | None:
        """Commit the rows of the waiting objects, or of as many as fit. None if the table holds all of them.

        Raises `Behind`; `Conflict` if another commit came first; `Halted` if the object must not be committed; and
        `Unavailable`, after which the rows may be committed or not. The entries then wait still.
        """
        try:
            return await self._commit(traceparent)
        except Dropped as error:
            raise Behind("was dropped or changed: it is opened again, and gets the rows that it lacks") from error

    async def _commit(self, traceparent: str) -> Commit | None:
        state = await self._read()
        position = await self._position(state)
        while self._waiting and position.holds(self._waiting[0].entry):
            self._waiting.popleft()
        chosen: list[FeedEntry] = []
        tables: list[pa.Table] = []
        for waiting in self._waiting:
            if position.holds(waiting.entry):  # of another lane than the first
                chosen.append(waiting)
                continue
            rows = await self._rows(position, waiting.entry)
            tables += [rows] if rows is not None else []
            chosen.append(waiting)
            position = replace(position.after(waiting.entry), feed=FeedPosition(self._stream, waiting.sequence))
            if sum(table.nbytes for table in tables) >= self._bytes_max:
                break
        if not chosen:
            return None
        rows = pa.concat_tables([self._columns.empty_table(), *tables])
        summary = {
            OBJECTS: str(len(chosen)),
            SCHEMA_VERSION: str(self.source.version),
            TRACEPARENT: traceparent,
        }
        snapshot = await asyncio.to_thread(self._tables.append, state, rows, position.encode(), summary)
        for _ in chosen:
            self._waiting.popleft()
        self.size = table_size(snapshot, state.snapshots)  # the commit has updated the state
        accepted_at = [pc.min(table[RECEIVED_AT]).as_py() for table in tables if table.num_rows]
        return Commit(chosen, rows.num_rows, snapshot.snapshot_id, accepted_at)

    async def _read(self) -> TableState:
        return await asyncio.to_thread(self._tables.read, self.source.name)

    async def _rows(self, position: TablePosition, entry: CatalogEntry) -> pa.Table | None:
        if not position.follows(entry):
            gap = (entry.lane, entry.epoch, position.last(entry), entry.first)
            if gap != self._gap:
                self._gap = gap
                raise Behind("is not where this process left it: the feed is read again")
            raise Halted(
                f"the table {self.source.name} holds lane {entry.lane} of {entry.epoch} up to message {gap[2]}, and "
                f"the catalog goes on at {entry.first}: the objects between are not in the catalog"
            )
        newer = [version for version in entry.schema_versions or () if version > self.source.version]
        if newer:
            raise Halted(
                f"{entry.file_path} has version {newer[-1]} of {self.source.name}, and this process knows version "
                f"{self.source.version}: give it the declaration of the API, and send it SIGHUP"
            )
        return await read_rows(self._bucket, self._prefix, entry, self._columns)

    async def _position(self, state: TableState) -> TablePosition:
        if state.position is not None:
            return TablePosition.decode(state.position, self.source.name)
        return await self._found(state) if state.has_rows else TablePosition()

    async def _found(self, state: TableState) -> TablePosition:
        """The position by the objects whose rows are in the table, if no snapshot says it any more."""
        log.warning("the table %s does not say how far it is: its column file_path is read", self.source.name)
        paths = await asyncio.to_thread(self._tables.paths, state)
        position = TablePosition()
        page = await self._feed.read(FeedPosition())
        while page.entries or page.remaining:
            for entry in (one.entry for one in page.entries):
                if entry.source == self.source.name and entry.file_path in paths:
                    position = position.after(entry)
            page = await self._feed.read(page.position)
        return position
