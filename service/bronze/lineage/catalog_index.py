"""The catalog index: an API process's copy of the catalog in SQLite, searchable by every id.

A read model: no data depends on it. If its file is deleted, or if the catalog was replaced, it is rebuilt from the
catalog. It is always a little behind the catalog and reports how much.
"""

import asyncio
import hashlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Self, TypeVar

import msgspec

from bronze.errors import Unavailable
from bronze.protocol.documents import CatalogEntry, trace_id_of
from bronze.servers.catalog_feed import Feed, FeedEntry, FeedPage, FeedPosition

T = TypeVar("T")

log = logging.getLogger(__name__)

#: The sources of which a look-up finds entries; None: all.
Sources = frozenset[str] | None

POLL_S = 0.2
RETRY_S = 1.0
CACHE_KIB = 32 * 1024
#: The version of the tables below. A file with another version is rebuilt.
SCHEMA_VERSION = 2
SCHEMA = """
CREATE TABLE place (stream TEXT NOT NULL, sequence INTEGER NOT NULL);
CREATE TABLE entries (
    sequence INTEGER PRIMARY KEY,
    file_path TEXT NOT NULL,
    source TEXT NOT NULL,
    time TEXT NOT NULL,
    entry BLOB NOT NULL,
    searched INTEGER NOT NULL,  -- 1: search the object's column; its ids are in this range (NULL: unknown)
    least TEXT,
    greatest TEXT
);
CREATE INDEX by_path ON entries (file_path);
CREATE INDEX by_run ON entries (sequence, least, greatest) WHERE searched;
CREATE TABLE ids (  -- hashes, since each submission has several ids; the entry shows whether the id itself matches
    hash INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    PRIMARY KEY (hash, sequence)
) WITHOUT ROWID;
"""


class IdKind(IntEnum):
    """The kind of an id in the index."""

    SUBMISSION = 1
    TRACE = 2  # of a request or of an upload
    CLASSIFICATION = 3  # a classification_id of all records of a submission
    CLASSIFICATION_IN_COLUMN = 4  # a classification_id of some rows; the object's column shows of which


class CatalogIndex:
    """The catalog by id. A single thread uses the database, so no lock is needed."""

    def __init__(self, folder: Path | None = None, name: str = "view") -> None:
        """An index in a file of this folder; without a folder, in a temporary file.

        If another process uses the file, or if it cannot be used, a temporary file replaces it: that only costs time.
        """
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="view")
        self._file = folder / f"{name}.sqlite" if folder else None
        self._complete_s = time.monotonic()
        self.position = FeedPosition()

    async def open(self) -> Self:
        """Open the database and read its position."""
        await self._run(self._open)
        return self

    async def close(self) -> None:
        await self._run(self._db.close)
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
                    await self._run(self._recreate)
                log.exception("the catalog index cannot be updated, and look-ups may lack new objects; trying again")
            report(self.lag_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), wait_s)

    async def catch_up(self, feed: Feed) -> bool:
        """Read one page of the feed; True if there are no more entries."""
        start_s = time.monotonic()
        page = await feed.read(self.position)
        if page.entries or page.position != self.position:
            await self._run(self._store, page)
            self.position = page.position
        if page.remaining:
            return False
        self._complete_s = start_s
        return True

    def _store(self, page: FeedPage) -> None:
        """Store a page in one transaction."""
        with self._db:
            self._db.execute("BEGIN")
            if page.position.stream != self.position.stream:
                self._db.execute("DELETE FROM entries")
                self._db.execute("DELETE FROM ids")
            self._db.execute("DELETE FROM place")
            self._db.execute("INSERT INTO place VALUES (?, ?)", (page.position.stream, page.position.sequence))
            self._db.executemany(
                "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", map(_row, page.entries)
            )
            self._db.executemany(
                "INSERT OR IGNORE INTO ids VALUES (?, ?)",
                ((_hash(*key), item.sequence) for item in page.entries for key in _ids(item.entry)),
            )

    # --- look-ups. `select` runs in the index's thread, once per entry, so that it limits what is kept in memory

    async def by_id(
        self, kind: IdKind, text: str, limit: int, select: Callable[[FeedEntry], T], sources: Sources = None
    ) -> list[T]:
        """The results of `select` for the entries with an id, in the order of the catalog."""
        return await self._run(
            self._query,
            "SELECT sequence, time, entry FROM ids JOIN entries USING (sequence) WHERE hash = ?1 "
            "AND (?2 IS NULL OR source IN (SELECT value FROM json_each(?2))) ORDER BY sequence LIMIT ?3",
            (_hash(text, kind), _encoded(sources), limit),
            lambda item: select(item) if (text, kind) in _ids(item.entry) else None,
        )

    async def by_path(self, file_path: str, select: Callable[[FeedEntry], T], sources: Sources = None) -> list[T]:
        """The result of `select` for the entry of an object; empty if there is no entry."""
        return await self._run(
            self._query,
            "SELECT sequence, time, entry FROM entries WHERE file_path = ?1 "
            "AND (?2 IS NULL OR source IN (SELECT value FROM json_each(?2))) ORDER BY sequence LIMIT 1",
            (file_path, _encoded(sources)),
            select,
        )

    async def candidates(self, classification_id: str, limit: int, sources: Sources = None) -> list[str]:
        """The objects, newest first, of which only the column shows whether they have rows of a classification."""
        return await self._run(self._candidates, classification_id, limit, sources)

    def _candidates(self, classification_id: str, limit: int, sources: Sources) -> list[str]:
        rows = self._db.execute(
            """
            SELECT file_path FROM (
                SELECT sequence, file_path, source FROM entries
                WHERE searched AND (least IS NULL OR least <= ?1) AND (greatest IS NULL OR greatest >= ?1)
                UNION
                SELECT sequence, file_path, source FROM ids JOIN entries USING (sequence) WHERE hash = ?2
            )
            WHERE ?4 IS NULL OR source IN (SELECT value FROM json_each(?4))
            ORDER BY sequence DESC LIMIT ?3
            """,
            (
                classification_id,
                _hash(classification_id, IdKind.CLASSIFICATION_IN_COLUMN),
                limit,
                _encoded(sources),
            ),
        )
        return [file_path for (file_path,) in rows]

    def _query(self, query: str, values: Sequence[object], select: Callable[[FeedEntry], T | None]) -> list[T]:
        results = (
            select(FeedEntry(sequence, stored, msgspec.json.decode(entry, type=CatalogEntry)))
            for sequence, stored, entry in self._db.execute(query, values)
        )
        return [result for result in results if result is not None]

    # --- the database

    def _open(self) -> None:
        if self._file is None:
            self._db = self._connect("")
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._db = self._connect(str(self._file))
            except sqlite3.DatabaseError as error:
                if not _is_corrupt(error):
                    raise
                self._file.unlink()
                self._db = self._connect(str(self._file))
        except (sqlite3.DatabaseError, OSError) as error:
            log.warning("the catalog index uses a temporary file, since %s cannot be used: %s", self._file, error)
            self._db = self._connect("")

    def _recreate(self) -> None:
        self._db.close()
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        self._open()

    def _connect(self, path: str) -> sqlite3.Connection:
        db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=True)
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = OFF"):
            db.execute(f"PRAGMA {pragma}")
        db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version != SCHEMA_VERSION:
            tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            script = "".join(f'DROP TABLE "{name}";' for (name,) in tables)
            db.executescript(f"BEGIN; {script} {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT")
        position = db.execute("SELECT stream, sequence FROM place").fetchone()
        self.position = FeedPosition(*position) if position else FeedPosition()
        return db


def _encoded(sources: Sources) -> str | None:
    """The sources as a value of a query, which SQLite decodes."""
    return None if sources is None else msgspec.json.encode(sorted(sources)).decode()


def _is_corrupt(error: Exception) -> bool:
    """Whether the file itself is corrupt, and not only locked by another process, or its disk full."""
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)


def _row(item: FeedEntry) -> tuple[int, str, str, str, bytes, bool, str | None, str | None]:
    entry = item.entry
    return (
        item.sequence,
        entry.file_path,
        entry.source,
        item.time,
        msgspec.json.encode(entry),
        _has_several_classifications(entry) and not _lists_classifications(entry),
        entry.classification_least,
        entry.classification_greatest,
    )


def _has_several_classifications(entry: CatalogEntry) -> bool:
    """Whether a submission of the object has no single classification_id in the entry."""
    return any(submission.classification_id is None for submission in entry.submissions)


def _lists_classifications(entry: CatalogEntry) -> bool:
    """Whether the entry lists all classification_ids of the object."""
    return entry.classification_count == len(entry.classifications)


def _hash(text: str, kind: IdKind) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, salt=bytes([kind])).digest(), signed=True)


def _ids(entry: CatalogEntry) -> Iterable[tuple[str, IdKind]]:
    """The ids by which an object is found."""
    yield from _traces(trace_id_of(entry.traceparent))
    for submission in entry.submissions:
        yield submission.submission_id, IdKind.SUBMISSION
        yield from _traces(submission.trace_id)
        if submission.classification_id is not None:
            yield submission.classification_id, IdKind.CLASSIFICATION
    if _has_several_classifications(entry) and _lists_classifications(entry):
        for classification_id in entry.classifications:
            yield classification_id, IdKind.CLASSIFICATION_IN_COLUMN


def _traces(trace_id: str) -> Iterable[tuple[str, IdKind]]:
    if trace_id.strip("0"):  # all zeros: no trace
        yield trace_id, IdKind.TRACE
