"""The catalog index: an API process's copy of the catalog in SQLite, searchable by every id.

A read model: no data depends on it. If its file is deleted, or if the catalog was replaced, it is rebuilt from the
catalog. It is always a little behind the catalog and reports how much.
"""

import asyncio
import datetime as dt
import hashlib
import heapq
import logging
import sqlite3
import struct
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import islice, takewhile
from operator import itemgetter
from pathlib import Path
from typing import Self, TypeVar

import msgspec
import zstandard

from bronze.errors import Refusal, Refused, Unavailable
from bronze.protocol.documents import CatalogEntry, trace_id_of
from bronze.protocol.feed_cursor import RANGES_MAX, FeedCursor, Ranges
from bronze.protocol.feed_event import FeedEvent, ObjectEvent, RemovalEvent
from bronze.protocol.lane import Lane
from bronze.protocol.removal import Removal, RemovalReason
from bronze.records.sources import CANARY
from bronze.servers.catalog_feed import Feed, FeedEntry, FeedPage, FeedPosition, RemovalsPage

T = TypeVar("T")

log = logging.getLogger(__name__)

#: The sources of which a look-up finds entries; None: all.
Sources = frozenset[str] | None

POLL_S = 0.2
#: Removals are rare.
POLL_REMOVALS_S = 1.0
#: No messages.
NO_RANGES = Ranges()
#: Removals that one page of the feed looks at; a cursor of before a rebuild has received most of them.
REMOVALS_MAX = 1_000
RETRY_S = 1.0
CACHE_KIB = 32 * 1024
#: Pages of a catalog that is being read which are committed together: most of them change the same parts of the file.
PAGES_PER_COMMIT = 16
#: Ids of one generation, so that new ids change only as much of the file as fits in memory.
IDS_PER_GENERATION = 2**21
#: Objects of one generation of those whose column has to be searched, and of one of its parts.
SEARCHED_PER_GENERATION = 4096
SEARCHED_PER_PART = 64
ZSTD_LEVEL = 1
#: After all messages of a lane.
NO_MESSAGE = 2**63 - 1
#: The version of the tables below. A file with another version is replaced.
SCHEMA_VERSION = 6
SCHEMA = """
CREATE TABLE place (
    stream TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    removals_sequence INTEGER NOT NULL,
    ids INTEGER NOT NULL  -- stored so far
);
CREATE TABLE lanes (
    id INTEGER PRIMARY KEY,
    source TEXT NOT NULL,
    number INTEGER NOT NULL,
    epoch TEXT NOT NULL,
    expired INTEGER NOT NULL DEFAULT 0,  -- the last message of the objects that have expired, and what these were
    expired_bytes INTEGER NOT NULL DEFAULT 0,
    expired_records INTEGER NOT NULL DEFAULT 0,
    UNIQUE (source, number, epoch)
);
CREATE TABLE entries (  -- what events and look-ups of many objects read: small, so that few pages have many of them
    sequence INTEGER PRIMARY KEY,
    file_path TEXT NOT NULL,
    source TEXT NOT NULL,
    lane INTEGER NOT NULL,
    last INTEGER NOT NULL,
    bytes_total INTEGER,  -- of the lane, with this object
    records_total INTEGER,
    quarantined INTEGER NOT NULL,  -- 1: it lists messages in quarantine
    received_us INTEGER NOT NULL,  -- the last of its submissions; if that is not known, when the entry was stored
    received_us_max INTEGER NOT NULL,  -- of the lane, with this object
    event BLOB NOT NULL
);
CREATE TABLE documents (  -- the entries themselves
    sequence INTEGER PRIMARY KEY,
    source TEXT NOT NULL,
    time TEXT NOT NULL,
    entry BLOB NOT NULL  -- compressed
);
CREATE INDEX by_lane ON entries (lane, last, received_us);
CREATE INDEX by_received ON entries (lane, received_us_max, last);
CREATE INDEX by_quarantine ON entries (lane, last) WHERE quarantined;
CREATE INDEX by_path ON entries (file_path);
CREATE TABLE removals (
    source TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    file_path TEXT,
    event BLOB NOT NULL,
    PRIMARY KEY (source, sequence)
) WITHOUT ROWID;
CREATE INDEX removals_by_path ON removals (file_path);
CREATE TABLE removed_ranges (  -- the newest of each lane
    source TEXT NOT NULL,
    number INTEGER NOT NULL,
    epoch TEXT NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    PRIMARY KEY (source, number, epoch, first)
) WITHOUT ROWID;
CREATE TABLE ids (  -- hashes, since each submission has several ids; the entry shows whether the id itself matches
    generation INTEGER NOT NULL,
    hash INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    PRIMARY KEY (generation, hash, sequence)
) WITHOUT ROWID;
CREATE TABLE id_generations (  -- with the sequences of the entries that have its ids
    generation INTEGER PRIMARY KEY,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL
);
CREATE TABLE searched (  -- the objects whose column has to be searched, with the range of its classification ids
    source TEXT NOT NULL,
    generation INTEGER NOT NULL,
    least TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    greatest NOT NULL,  -- an empty BLOB, which is greater than each text: unknown
    PRIMARY KEY (source, generation, least, sequence)
) WITHOUT ROWID;
CREATE TABLE searched_parts (  -- of each full generation of `searched`, in its order
    source TEXT NOT NULL,
    generation INTEGER NOT NULL,
    least TEXT NOT NULL,
    least_max TEXT NOT NULL,
    greatest NOT NULL,
    PRIMARY KEY (source, generation, least)
) WITHOUT ROWID;
"""
_UNBOUNDED = b""

#: Of an entry: whether its object was removed, or has expired.
REMOVED = (
    "EXISTS (SELECT 1 FROM removals WHERE removals.file_path = entries.file_path) "
    "OR last <= (SELECT expired FROM lanes WHERE lanes.id = lane)"
)


class IdKind(IntEnum):
    """The kind of an id in the index."""

    SUBMISSION = 1
    TRACE = 2  # of a request or of an upload
    CLASSIFICATION = 3  # a classification_id of all records of a submission
    CLASSIFICATION_IN_COLUMN = 4  # a classification_id of some rows; the object's column shows of which


#: What the hash of an id of each kind begins with: a copy takes half as long as a new one.
_BEGIN = {kind: hashlib.blake2b(digest_size=8, salt=bytes([kind])) for kind in IdKind}


@dataclass(frozen=True, slots=True)
class SourceTotals:
    """What a source has in the bucket: its records and bytes, None if the catalog does not say; and its newest
    object.
    """

    records: int | None
    bytes: int | None
    newest: ObjectEvent


@dataclass(frozen=True, slots=True)
class EventPage:
    """Events of the feed in order, the cursor after each of them, and the one after all; `more`: others follow."""

    events: Sequence[FeedEvent]
    cursors: Sequence[FeedCursor]
    cursor: FeedCursor
    more: bool


class CatalogIndex:
    """The catalog by id. A single thread uses the database, so no lock is needed."""

    def __init__(self, folder: Path | None = None, name: str = "view") -> None:
        """An index in a file of this folder; without a folder, in a temporary file.

        If another process uses the file, or if it cannot be used, a temporary file replaces it: that only costs time.
        """
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="view")
        self._file = folder / f"{name}.sqlite" if folder else None
        self._complete_s = time.monotonic()
        #: whether it has had the complete catalog, as it is now
        self._complete = False
        self._changed = asyncio.Event()
        self._removals: RemovalsPage | None = None
        self._removals_read_s = -POLL_REMOVALS_S
        self._uncommitted_pages = 0
        #: hashes of the ids of uncommitted pages, and the entries' sequences. They are stored at the commit or before a
        #: look-up, in order, so that many of them change the same part of the file.
        self._uncommitted_ids: list[tuple[int, int]] = []
        self._ids_stored = 0
        self.position = FeedPosition()
        self.removals_position = FeedPosition()

    async def open(self) -> Self:
        """Open the database and read its position."""
        await self._run(self._open)
        return self

    async def close(self) -> None:
        await self._run(self._close)
        self._thread.shutdown(wait=False)

    @property
    def lag_s(self) -> float:
        """The seconds since the index last had the complete catalog."""
        return time.monotonic() - self._complete_s

    async def _run(self, work: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    # --- following the catalog

    async def follow(self, feed: Feed, stop: asyncio.Event, report: Callable[[float], None]) -> None:
        """Read the catalog until `stop` is set, and report the lag in seconds. A running request ends first."""
        while not stop.is_set():
            wait_s = RETRY_S
            try:
                wait_s = POLL_S if await self.catch_up(feed) else 0.0
            except Unavailable as error:
                log.info("the catalog index cannot be updated now, and look-ups may lack new objects: %s", error)
            except Exception as error:
                if _is_corrupt(error):
                    await self._run(self._replace)
                log.exception("the catalog index cannot be updated, and look-ups may lack new objects; trying again")
            report(self.lag_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), wait_s)

    async def catch_up(self, feed: Feed) -> bool:
        """Read one page of the feed; True if there are no more entries."""
        start_s = time.monotonic()
        if self._removals is None and start_s - self._removals_read_s >= POLL_REMOVALS_S:
            # before the entries, so that the entry of a removed object is here when its removal is
            self._removals = await feed.read_removals(self.removals_position)
        page = await feed.read(self.position)
        if page.entries or page.position != self.position:
            self._complete = self._complete and page.position.stream == self.position.stream
            await self._run(self._store, page)
            if page.position.stream != self.position.stream:
                self.removals_position = FeedPosition(page.position.stream)
            self.position = page.position
            self._notify()
        if page.remaining:
            return False
        removals, self._removals = self._removals, None
        if removals is not None and removals.position.stream == page.position.stream:
            if removals.position != self.removals_position:
                await self._run(self._store_removals, removals)
                self.removals_position = removals.position
                self._notify()
            if removals.remaining:
                return False
            self._removals_read_s = start_s
        self._complete_s = start_s
        if not self._complete:
            self._complete = True
            self._notify()
        return True

    @property
    def changed(self) -> asyncio.Event:
        """An event that is set when the index changes for the next time."""
        return self._changed

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _store(self, page: FeedPage) -> None:
        """Store a page; if others follow, several of them in one transaction. If it fails, the position is what was
        committed.
        """
        if self.position.stream and page.position.stream != self.position.stream:
            self._replace()
        try:
            if not self._db.in_transaction:
                self._db.execute("BEGIN")
                self._uncommitted_pages = 0
            self._store_entries(page.entries)
            self._store_position(page.position, self.removals_position.sequence)
            self._uncommitted_pages += 1
            if not page.remaining or self._uncommitted_pages == PAGES_PER_COMMIT:
                self._commit()
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._uncommitted_ids = []
            self._read_position()
            raise

    def _commit(self) -> None:
        self._store_ids()
        self._db.execute("COMMIT")

    def _store_ids(self) -> None:
        """Store the ids that were put off. If it fails, they are kept for the next time."""
        if not self._uncommitted_ids:
            return
        generation = self._ids_stored // IDS_PER_GENERATION
        first, last = self._uncommitted_ids[0][1], self._uncommitted_ids[-1][1]
        hashes = sorted(self._uncommitted_ids, key=lambda item: item[0] >> 34)  # small numbers are compared faster
        self._db.executemany(f"INSERT OR IGNORE INTO ids VALUES ({generation}, ?, ?)", hashes)  # noqa: S608  a number
        self._db.execute(
            "INSERT INTO id_generations VALUES (?, ?, ?) ON CONFLICT (generation) DO UPDATE SET last = excluded.last",
            (generation, first, last),
        )
        self._ids_stored += len(hashes)
        self._db.execute("UPDATE place SET ids = ?", (self._ids_stored,))
        self._uncommitted_ids = []

    def _store_entries(self, entries: Sequence[FeedEntry]) -> None:
        for item in entries:
            self._db.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", self._row(item))
            document = zstandard.compress(msgspec.json.encode(item.entry), ZSTD_LEVEL)
            self._db.execute(
                "INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?)",
                (item.sequence, item.entry.source, item.time, document),
            )
            self._uncommitted_ids += [
                (hashed, item.sequence) for kind, texts in _ids(item.entry) for hashed in _hashes(kind, texts)
            ]
        searched: dict[str, list[FeedEntry]] = {}
        for item in entries:
            if _has_several_classifications(item.entry) and not _lists_classifications(item.entry):
                searched.setdefault(item.entry.source, []).append(item)
        for source, items in searched.items():
            self._store_searched(source, items)

    def _store_searched(self, source: str, items: Iterable[FeedEntry]) -> None:
        """Store that the columns of these objects of a source have to be searched."""
        generation = self._open_generation(source)
        self._db.executemany(
            "INSERT OR REPLACE INTO searched VALUES (?, ?, ?, ?, ?)",
            (
                (
                    source,
                    generation,
                    item.entry.classification_least or "",
                    item.sequence,
                    _UNBOUNDED if item.entry.classification_greatest is None else item.entry.classification_greatest,
                )
                for item in items
            ),
        )
        (count,) = self._db.execute(
            "SELECT count(*) FROM searched WHERE source = ? AND generation = ?", (source, generation)
        ).fetchone()
        if count >= SEARCHED_PER_GENERATION:
            # by rank, so that parts have no `least` in common
            self._db.execute(
                "INSERT INTO searched_parts SELECT source, generation, min(least), max(least), max(greatest) "
                "FROM (SELECT *, (rank() OVER (ORDER BY least) - 1) / ? AS part FROM searched "
                "WHERE source = ? AND generation = ?) GROUP BY part",
                (SEARCHED_PER_PART, source, generation),
            )

    def _open_generation(self, source: str) -> int:
        """The generation of `searched` that is not full."""
        (full,) = self._db.execute("SELECT max(generation) FROM searched_parts WHERE source = ?", (source,)).fetchone()
        return 0 if full is None else int(full) + 1

    def _row(self, item: FeedEntry) -> Sequence[object]:
        """The row of an entry."""
        entry = item.entry
        lane = (entry.source, entry.lane, entry.epoch)
        self._db.execute("INSERT OR IGNORE INTO lanes (source, number, epoch) VALUES (?, ?, ?)", lane)
        (lane_id,) = self._db.execute(
            "SELECT id FROM lanes WHERE source = ? AND number = ? AND epoch = ?", lane
        ).fetchone()
        last_before, bytes_before, received_us_before = self._db.execute(
            "SELECT last, bytes_total, received_us_max FROM entries WHERE lane = ? AND last < ? "
            "ORDER BY last DESC LIMIT 1",
            (lane_id, entry.first),
        ).fetchone() or (0, 0, 0)
        total = entry.totals.bytes if entry.totals else None
        is_next = last_before == entry.first - 1
        size = total - bytes_before if total is not None and bytes_before is not None and is_next else None
        event = ObjectEvent.of(entry, size)
        received = dt.datetime.fromisoformat(event.last_received_at or item.time)
        received_us = round(received.timestamp() * 1e6)
        return (
            item.sequence,
            entry.file_path,
            entry.source,
            lane_id,
            entry.last,
            total,
            entry.totals.records if entry.totals else None,
            bool(entry.quarantined),
            received_us,
            max(received_us, received_us_before),
            msgspec.json.encode(event),
        )

    def _store_removals(self, page: RemovalsPage) -> None:
        """Store a page of removals in one transaction."""
        with self._db:
            self._db.execute("BEGIN")
            self._store_position(self.position, page.position.sequence)
            self._db.executemany(
                "INSERT OR REPLACE INTO removals VALUES (?, ?, ?, ?)",
                (
                    (removal.source, sequence, removal.file_path, msgspec.json.encode(RemovalEvent.of(removal)))
                    for sequence, removal in page.removals
                ),
            )
            for _, removal in page.removals:
                if removal.reason == RemovalReason.EXPIRED:
                    self._expire(removal)
                self._add_removed_range(RemovalEvent.of(removal))

    def _expire(self, removal: Removal) -> None:
        """Store that the objects of a lane have expired up to a message, and remove the entries that were folded."""
        lane = (removal.source, removal.lane, removal.epoch)
        self._db.execute(
            "UPDATE lanes SET expired = ?, expired_bytes = ?, expired_records = ? "
            "WHERE source = ? AND number = ? AND epoch = ?",
            (removal.last, removal.bytes or 0, removal.records or 0, *lane),
        )
        if not removal.folded:
            return
        folded = (
            "FROM entries WHERE lane = (SELECT id FROM lanes WHERE source = ? AND number = ? AND epoch = ?) "
            "AND last <= ?"
        )
        values = (*lane, removal.folded)
        self._db.execute(f"DELETE FROM documents WHERE sequence IN (SELECT sequence {folded})", values)  # noqa: S608  the text above
        self._db.execute(f"DELETE {folded}", values)
        # ids of an entry are found by the entry only: a generation goes when the last of its entries has gone
        self._db.execute(
            "DELETE FROM ids WHERE generation IN (SELECT generation FROM id_generations known "
            "WHERE NOT EXISTS (SELECT 1 FROM entries WHERE sequence BETWEEN known.first AND known.last))"
        )

    def _add_removed_range(self, removal: RemovalEvent) -> None:
        """Add the messages of a removal to the ranges of its lane, of which the newest are kept."""
        lane = (removal.source, removal.lane, removal.epoch)
        of_lane = "source = ? AND number = ? AND epoch = ?"
        before = self._db.execute(
            f"SELECT first, last FROM removed_ranges WHERE {of_lane} AND first <= ? ORDER BY first DESC",  # noqa: S608  the text above
            (*lane, removal.last + 1),
        )
        touched = list(takewhile(lambda known: known[1] >= removal.first - 1, before))
        self._db.executemany(
            f"DELETE FROM removed_ranges WHERE {of_lane} AND first = ?",  # noqa: S608  the text above
            ((*lane, first) for first, _ in touched),
        )
        first = min(removal.first, *(first for first, _ in touched)) if touched else removal.first
        last = max(removal.last, *(last for _, last in touched)) if touched else removal.last
        self._db.execute("INSERT INTO removed_ranges VALUES (?, ?, ?, ?, ?)", (*lane, first, last))
        self._db.execute(
            f"DELETE FROM removed_ranges WHERE {of_lane} AND first <= (SELECT first FROM removed_ranges "  # noqa: S608  the text above
            f"WHERE {of_lane} ORDER BY first DESC LIMIT 1 OFFSET {RANGES_MAX})",
            (*lane, *lane),
        )

    def _store_position(self, position: FeedPosition, removals_sequence: int) -> None:
        self._db.execute("DELETE FROM place")
        self._db.execute(
            "INSERT INTO place VALUES (?, ?, ?, ?)",
            (position.stream, position.sequence, removals_sequence, self._ids_stored),
        )

    def _read_position(self) -> None:
        stream, sequence, removals_sequence, self._ids_stored = self._db.execute("SELECT * FROM place").fetchone() or (
            "",
            0,
            0,
            0,
        )
        self.position = FeedPosition(stream, sequence)
        self.removals_position = FeedPosition(stream, removals_sequence)

    # --- the feed

    async def events(
        self,
        cursor: FeedCursor,
        sources: Sources,
        limit: int,
        encode: Callable[[EventPage], T],
        since: dt.datetime | None = None,
    ) -> T:
        """The next events of a follower, encoded in the index's thread; without objects received before `since`.

        Raises `Refused` if the cursor is of another system.
        """
        return await self._run(lambda: encode(self._events(cursor, sources, limit, since)))

    async def latest(self, sources: Sources) -> FeedCursor | None:
        """The cursor of a follower who has received everything; None while the catalog is still being read."""
        return await self._run(self._latest, sources) if self._complete else None

    async def has_source(self, source: str) -> bool:
        """Whether a source has objects."""
        return bool(await self._run(self._lanes, frozenset({source})))

    def _lanes(self, sources: Sources) -> dict[int, Lane]:
        """The lanes of these sources that have entries, by their ids; of all sources but the canary's, without any."""
        return {
            lane_id: Lane(source, number, epoch)
            for lane_id, source, number, epoch in self._db.execute(
                "SELECT id, source, number, epoch FROM lanes WHERE iif(?1 IS NULL, source != ?2, source IN "
                "(SELECT value FROM json_each(?1)))",
                (_encoded(sources), CANARY),
            )
        }

    def _events(self, cursor: FeedCursor, sources: Sources, limit: int, since: dt.datetime | None) -> EventPage:
        if self._complete and cursor.positions and not self._has_any(cursor.positions):
            raise Refused(
                Refusal.INVALID_CURSOR,
                "The cursor is of another system, or of one whose data was deleted: the catalog has none of its lanes. "
                "Begin without a cursor.",
            )
        page = self._new_objects(cursor, sources, limit, since)
        # a removal comes after its object
        return page if page.more else self._new_removals(page, sources, limit)

    def _new_objects(self, cursor: FeedCursor, sources: Sources, limit: int, since: dt.datetime | None) -> EventPage:
        since_us = None if since is None else round(since.timestamp() * 1e6)
        lanes = [
            self._events_of_lane(lane_id, cursor.positions.get(lane, 0), since_us)
            for lane_id, lane in self._lanes(sources).items()
        ]
        found = list(islice(heapq.merge(*lanes, key=itemgetter(0)), limit + 1))
        for rows in lanes:
            rows.close()  # most of them are not read
        events: list[FeedEvent] = []
        cursors: list[FeedCursor] = []
        for _, event, removed in found[:limit]:
            written = _object_event(event, removed)
            cursor = cursor.after_object(written.of_lane, written.last)
            events.append(written)
            cursors.append(cursor)
        return EventPage(events, cursors, cursor, more=len(found) > limit)

    def _events_of_lane(self, lane_id: int, last: int, since_us: int | None) -> sqlite3.Cursor:
        """Sequence, event and whether it was removed, of a lane's entries after a message, in their order; without
        those that were received before a time.

        Nearly all after the first of them were received later, too; so what is before that is not looked at.
        """
        if since_us is not None:
            (first,) = self._db.execute(
                "SELECT last FROM entries WHERE lane = ? AND received_us_max >= ? "
                "ORDER BY received_us_max, last LIMIT 1",
                (lane_id, since_us),
            ).fetchone() or (NO_MESSAGE,)
            last = max(last, first - 1)
        (expired,) = self._db.execute("SELECT expired FROM lanes WHERE id = ?", (lane_id,)).fetchone()
        return self._db.execute(
            f"SELECT sequence, event, {REMOVED} "  # noqa: S608  the text above
            "FROM entries WHERE lane = ? AND last > ? AND received_us >= ? ORDER BY last",
            (lane_id, max(last, expired), since_us or 0),
        )

    def _sequences(self, query: str, *values: object) -> list[int]:
        return [sequence for (sequence,) in self._db.execute(query, values)]

    def _new_removals(self, page: EventPage, sources: Sources, limit: int) -> EventPage:
        stream, cursor, more = self.position.stream, page.cursor, False
        events, cursors = [*page.events], [*page.cursors]
        read: dict[str, int] = {}
        for source in sorted(self._sources_with_removals() if sources is None else sources):
            rows = self._db.execute(
                "SELECT sequence, event FROM removals WHERE source = ? AND sequence > ? ORDER BY sequence LIMIT ?",
                (source, cursor.removals_read(stream, source), REMOVALS_MAX),
            ).fetchall()
            for sequence, event in rows:
                removal = msgspec.json.decode(event, type=RemovalEvent)
                if not cursor.removed.get(removal.of_lane, NO_RANGES).cover(removal.first, removal.last):
                    if len(events) == limit:
                        break
                    cursor = cursor.after_removal(removal.of_lane, removal.first, removal.last)
                    cursor = cursor.with_removals_read(stream, {**read, source: sequence})
                    events.append(removal)
                    cursors.append(cursor)
                read[source] = sequence
            if (rows and read.get(source) != rows[-1][0]) or len(rows) == REMOVALS_MAX:
                more = True
                break
        if read:
            cursor = cursor.with_removals_read(stream, read)
        return EventPage(events, cursors, cursor, more)

    def _sources_with_removals(self) -> set[str]:
        """All but the canary's."""
        return {source for (source,) in self._db.execute("SELECT DISTINCT source FROM removed_ranges")} - {CANARY}

    def _latest(self, sources: Sources) -> FeedCursor:
        positions = {
            lane: self._db.execute("SELECT max(last) FROM entries WHERE lane = ?", (lane_id,)).fetchone()[0]
            for lane_id, lane in self._lanes(sources).items()
        }
        removed: dict[Lane, Ranges] = {}
        read: dict[str, int] = {}
        for source in self._sources_with_removals() if sources is None else sources:
            for number, epoch, firsts, lasts in self._db.execute(
                "SELECT number, epoch, json_group_array(first), json_group_array(last) FROM "
                "(SELECT * FROM removed_ranges WHERE source = ? ORDER BY number, epoch, first) GROUP BY number, epoch",
                (source,),
            ):
                removed[Lane(source, number, epoch)] = Ranges(_numbers(firsts), _numbers(lasts))
            (sequence,) = self._db.execute("SELECT max(sequence) FROM removals WHERE source = ?", (source,)).fetchone()
            if sequence is not None:
                read[source] = sequence
        return FeedCursor(positions, removed, self.position.stream, read)

    def _has_any(self, lanes: Iterable[Lane]) -> bool:
        return any(
            self._db.execute(
                "SELECT 1 FROM lanes WHERE source = ? AND number = ? AND epoch = ?",
                (lane.source, lane.number, lane.epoch),
            ).fetchone()
            for lane in lanes
        )

    # --- the newest

    async def newest(self, sources: Sources, limit: int) -> list[ObjectEvent]:
        """The newest objects of these sources, the newest first."""
        return await self._run(lambda: [event for _, event in self._newest(sources, limit)])

    async def newest_quarantined(self, sources: Sources, limit: int) -> list[str]:
        """The keys of the newest messages in quarantine of these sources, the newest first."""
        return await self._run(self._newest_quarantined, sources, limit)

    async def totals(self, sources: Sources) -> dict[str, SourceTotals]:
        """What each of these sources has in the bucket; sources without objects are left out."""
        return await self._run(self._totals, sources)

    def _newest(self, sources: Sources, limit: int, *, quarantined: bool = False) -> list[tuple[int, ObjectEvent]]:
        """The sequences and events of the newest entries; `quarantined`: of those that list messages in quarantine."""
        only = "AND quarantined" if quarantined else ""
        found: list[tuple[int, ObjectEvent]] = []
        for lane_id in self._lanes(sources):
            entries = self._db.execute(
                f"SELECT sequence, event, {REMOVED} "  # noqa: S608  the texts above
                f"FROM entries WHERE lane = ? {only} ORDER BY last DESC LIMIT ?",
                (lane_id, limit),
            )
            found += ((sequence, _object_event(event, removed)) for sequence, event, removed in entries)
        # a rebuilt catalog may have the lanes' entries in another order
        found.sort(key=lambda item: (item[1].written_at or "", item[0]), reverse=True)
        return found[:limit]

    def _newest_quarantined(self, sources: Sources, limit: int) -> list[str]:
        keys: list[str] = []
        for sequence, _ in self._newest(sources, limit, quarantined=True):
            (entry,) = self._db.execute("SELECT entry FROM documents WHERE sequence = ?", (sequence,)).fetchone()
            keys += reversed(_decoded(entry).quarantined)
        return keys[:limit]

    def _totals(self, sources: Sources) -> dict[str, SourceTotals]:
        found: dict[str, SourceTotals] = {}
        for lane_id, lane in self._lanes(sources).items():
            size, records, event = self._db.execute(
                "SELECT bytes_total - expired_bytes, records_total - expired_records, event "
                "FROM entries JOIN lanes ON lanes.id = lane WHERE lane = ? ORDER BY last DESC LIMIT 1",
                (lane_id,),
            ).fetchone()
            totals = SourceTotals(records, size, msgspec.json.decode(event, type=ObjectEvent))
            other = found.get(lane.source)
            found[lane.source] = totals if other is None else _sum(totals, other)
        return found

    # --- look-ups. `select` runs in the index's thread, once per entry, so that it limits what is kept in memory

    async def by_id(
        self, kind: IdKind, text: str, limit: int, select: Callable[[FeedEntry], T], sources: Sources = None
    ) -> list[T]:
        """The results of `select` for the entries with an id, in the order of the catalog."""
        return await self._run(
            self._by_hash,
            _hash(text, kind),
            msgspec.json.encode(text)[1:-1],
            limit,
            select,
            sources,
        )

    def _by_hash(
        self, hashed: int, text: bytes, limit: int, select: Callable[[FeedEntry], T], sources: Sources
    ) -> list[T]:
        """The results of `select` for the first entries with the hash of a text that contain it."""
        self._store_ids()
        found: list[T] = []
        left = limit
        for generation in range(self._generations):
            rows = self._db.execute(
                "SELECT sequence, time, entry FROM ids JOIN documents USING (sequence) WHERE generation = ?1 "
                "AND hash = ?2 AND (?3 IS NULL OR source IN (SELECT value FROM json_each(?3))) "
                "ORDER BY sequence LIMIT ?4",
                (generation, hashed, _encoded(sources), left),
            ).fetchall()
            found += _selected(rows, select, text)
            left -= len(rows)
            if not left:
                break
        return found

    @property
    def _generations(self) -> int:
        """The number of generations of ids."""
        return self._ids_stored // IDS_PER_GENERATION + 1

    async def by_path(self, file_path: str, select: Callable[[FeedEntry], T], sources: Sources = None) -> list[T]:
        """The result of `select` for the entry of an object; empty if there is no entry."""
        return await self._run(self._by_path, file_path, select, sources)

    def _by_path(self, file_path: str, select: Callable[[FeedEntry], T], sources: Sources) -> list[T]:
        rows = self._db.execute(
            "SELECT sequence, time, entry FROM entries JOIN documents USING (sequence) WHERE file_path = ?1 "
            "AND (?2 IS NULL OR entries.source IN (SELECT value FROM json_each(?2))) ORDER BY sequence LIMIT 1",
            (file_path, _encoded(sources)),
        )
        return _selected(rows, select)

    async def candidates(self, classification_id: str, limit: int, sources: Sources = None) -> list[str]:
        """The objects, newest first, of which only the column shows whether they have rows of a classification."""
        return await self._run(self._candidates, classification_id, limit, sources)

    def _candidates(self, classification_id: str, limit: int, sources: Sources) -> list[str]:
        found: list[int] = []
        for source in self._sources() if sources is None else sources:
            found += self._searched(source, classification_id, limit)
        found += self._listed(_hash(classification_id, IdKind.CLASSIFICATION_IN_COLUMN), limit, sources)
        found.sort(reverse=True)
        return [
            file_path
            for sequence in found[:limit]
            for (file_path,) in self._db.execute("SELECT file_path FROM entries WHERE sequence = ?", (sequence,))
        ]

    def _sources(self) -> set[str]:
        return {source for (source,) in self._db.execute("SELECT DISTINCT source FROM lanes")}

    def _searched(self, source: str, classification_id: str, limit: int) -> list[int]:
        """The newest objects of a source whose column may have a classification, and has to be searched for it."""
        within = "least <= ?3 AND greatest >= ?3 ORDER BY sequence DESC LIMIT ?4"
        generation = self._open_generation(source)
        found = self._sequences(
            f"SELECT sequence FROM searched WHERE source = ?1 AND generation = ?2 AND {within}",  # noqa: S608  the text above
            *(source, generation, classification_id, limit),
        )
        while generation and len(found) < limit:
            generation -= 1
            found += self._sequences(
                "SELECT sequence FROM searched_parts part CROSS JOIN searched ON searched.source = ?1 "
                "AND searched.generation = ?2 AND searched.least BETWEEN part.least AND part.least_max "
                "WHERE part.source = ?1 AND part.generation = ?2 AND part.least <= ?3 AND part.greatest >= ?3 "
                "AND searched.least <= ?3 AND searched.greatest >= ?3 ORDER BY sequence DESC LIMIT ?4",
                *(source, generation, classification_id, limit - len(found)),
            )
        return found

    def _listed(self, hashed: int, limit: int, sources: Sources) -> list[int]:
        """The newest entries that list a classification of their column."""
        self._store_ids()
        found: list[int] = []
        for generation in reversed(range(self._generations)):
            found += self._sequences(
                "SELECT sequence FROM ids JOIN entries USING (sequence) WHERE generation = ?1 AND hash = ?2 "
                "AND (?3 IS NULL OR source IN (SELECT value FROM json_each(?3))) ORDER BY sequence DESC LIMIT ?4",
                *(generation, hashed, _encoded(sources), limit - len(found)),
            )
            if len(found) == limit:
                break
        return found

    # --- the database

    def _open(self) -> None:
        if self._file is None:
            self._connect("")
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._connect(str(self._file))
            except sqlite3.DatabaseError as error:
                if not _is_corrupt(error):
                    raise
                self._file.unlink()
                self._connect(str(self._file))
        except (sqlite3.DatabaseError, OSError) as error:
            log.warning("the catalog index uses a temporary file, since %s cannot be used: %s", self._file, error)
            self._connect("")

    def _close(self) -> None:
        if self._db.in_transaction:
            self._commit()
        self._db.close()

    def _replace(self) -> None:
        """Begin with an empty database. To delete the rows would take as long as to read all of them."""
        self._complete = False
        self._uncommitted_ids = []
        self._db.close()
        if self._path:
            Path(self._path).unlink(missing_ok=True)
        self._open()

    def _connect(self, path: str) -> None:
        """Open the database of a path; one with other tables is replaced."""
        self._path = path
        self._db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=True)
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = OFF"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version not in {0, SCHEMA_VERSION}:
            self._db.close()
            Path(path).unlink()
            self._connect(path)
            return
        if not version:
            self._db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT")
        self._read_position()


def _sum(one: SourceTotals, other: SourceTotals) -> SourceTotals:
    def added(a: int | None, b: int | None) -> int | None:
        return None if a is None or b is None else a + b

    newest = max(one.newest, other.newest, key=lambda event: event.written_at or "")
    return SourceTotals(added(one.records, other.records), added(one.bytes, other.bytes), newest)


def _object_event(encoded: bytes, removed: object) -> ObjectEvent:
    event = msgspec.json.decode(encoded, type=ObjectEvent)
    return replace(event, removed=True) if removed else event


def _numbers(encoded: str) -> tuple[int, ...]:
    return msgspec.json.decode(encoded, type=tuple[int, ...])


def _encoded(sources: Sources) -> str | None:
    """The sources as a value of a query, which SQLite decodes."""
    return None if sources is None else msgspec.json.encode(sorted(sources)).decode()


def _is_corrupt(error: Exception) -> bool:
    """Whether the file itself is corrupt, and not only locked by another process, or its disk full."""
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)


def _decoded(entry: bytes) -> CatalogEntry:
    """An entry from its column."""
    return msgspec.json.decode(zstandard.decompress(entry), type=CatalogEntry)


def _selected(rows: Iterable[tuple[int, str, bytes]], select: Callable[[FeedEntry], T], text: bytes = b"") -> list[T]:
    """The results of `select` for the entries of these rows that contain a text."""
    documents = ((sequence, stored, zstandard.decompress(entry)) for sequence, stored, entry in rows)
    return [
        select(FeedEntry(sequence, stored, msgspec.json.decode(document, type=CatalogEntry)))
        for sequence, stored, document in documents
        if text in document
    ]


def _has_several_classifications(entry: CatalogEntry) -> bool:
    """Whether a submission of the object has no single classification_id in the entry."""
    return any(submission.classification_id is None for submission in entry.submissions)


def _lists_classifications(entry: CatalogEntry) -> bool:
    """Whether the entry lists all classification_ids of the object."""
    return entry.classification_count == len(entry.classifications)


def _hash(text: str, kind: IdKind) -> int:
    (found,) = _hashes(kind, [text])
    return found


def _hashes(kind: IdKind, texts: Collection[str]) -> Sequence[int]:
    begin, digests = _BEGIN[kind], []
    for text in texts:
        hashed = begin.copy()
        hashed.update(text.encode())
        digests.append(hashed.digest())
    return struct.unpack(f">{len(texts)}q", b"".join(digests))


def _ids(entry: CatalogEntry) -> Iterable[tuple[IdKind, Collection[str]]]:
    """The ids by which an object is found, each once."""
    submissions = entry.submissions
    yield IdKind.SUBMISSION, {submission.submission_id for submission in submissions}
    traces = {trace_id_of(entry.traceparent), *(submission.trace_id for submission in submissions)}
    yield IdKind.TRACE, {trace_id for trace_id in traces if trace_id.strip("0")}  # all zeros: no trace
    classifications = (submission.classification_id for submission in submissions)
    yield IdKind.CLASSIFICATION, {found for found in classifications if found is not None}
    if _has_several_classifications(entry) and _lists_classifications(entry):
        yield IdKind.CLASSIFICATION_IN_COLUMN, set(entry.classifications)
