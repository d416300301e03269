"""The view: what an API process has read of the catalog, in SQLite, by every id that somebody may look for.

A read model. Nothing rests on it: delete its file and it is made again from the catalog, and where the catalog is
another one than it was made from, it begins anew. It is always a moment behind and says how long.
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

POLL_S = 0.2
RETRY_S = 1.0
CACHE_KIB = 32 * 1024
#: Of the tables below; another number begins the view anew.
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE place (stream TEXT NOT NULL, sequence INTEGER NOT NULL);
CREATE TABLE entries (
    sequence INTEGER PRIMARY KEY,
    file_path TEXT NOT NULL,
    time TEXT NOT NULL,
    entry BLOB NOT NULL,
    searched INTEGER NOT NULL,  -- its runs stand in its column alone; they lie between these two, NULL: unknown
    least TEXT,
    greatest TEXT
);
CREATE INDEX by_path ON entries (file_path);
CREATE INDEX by_run ON entries (sequence, least, greatest) WHERE searched;
CREATE TABLE ids (  -- short, since there are some of them for each submission; the entry says whether it is meant
    hash INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    PRIMARY KEY (hash, sequence)
) WITHOUT ROWID;
"""


class IdKind(IntEnum):
    """What an id in the view is."""

    SUBMISSION = 1
    TRACE = 2  # of a request or of an upload
    CLASSIFICATION = 3  # a classification_id that all records of a submission have
    CLASSIFICATION_IN_COLUMN = 4  # one that some rows of the object have: its column tells which


class CatalogIndex:
    """The catalog by id. One thread does all that is done in the database, so nothing else needs a lock."""

    def __init__(self, folder: Path | None = None, name: str = "view") -> None:
        """A view in a file of this folder; without one in a temporary file that nobody else sees.

        A file that another process has, or that cannot be used, is left for a temporary one: it costs only time.
        """
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="view")
        self._file = folder / f"{name}.sqlite" if folder else None
        self._whole_s = time.monotonic()
        self.position = FeedPosition()

    async def open(self) -> Self:
        """Open the database and find the position up to which it is."""
        await self._do(self._open)
        return self

    async def close(self) -> None:
        await self._do(self._db.close)
        self._thread.shutdown(wait=False)

    @property
    def lag_s(self) -> float:
        """How long ago it had all of the catalog."""
        return time.monotonic() - self._whole_s

    async def _do(self, work: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    # --- following the catalog

    async def follow(self, feed: Feed, stop: asyncio.Event, report: Callable[[float], None]) -> None:
        """Take what the catalog has until told to stop, and report the lag in seconds. Ends within a request's time."""
        while not stop.is_set():
            wait_s = RETRY_S
            try:
                wait_s = POLL_S if await self.catch_up(feed) else 0.0
            except Unavailable as error:
                log.info("the view is not brought up to date: %s", error)
            except Exception as error:
                if _broken(error):
                    await self._do(self._anew)
                log.exception("the view is not brought up to date")
            report(self.lag_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), wait_s)

    async def catch_up(self, feed: Feed) -> bool:
        """Take one read of the feed; whether that was all that there is."""
        asked_s = time.monotonic()
        page = await feed.read(self.position)
        if page.entries or page.position != self.position:
            await self._do(self._take, page)
            self.position = page.position
        if page.remaining:
            return False
        self._whole_s = asked_s
        return True

    def _take(self, page: FeedPage) -> None:
        """All of it, or nothing."""
        with self._db:
            self._db.execute("BEGIN")
            if page.position.stream != self.position.stream:
                self._db.execute("DELETE FROM entries")
                self._db.execute("DELETE FROM ids")
            self._db.execute("DELETE FROM place")
            self._db.execute("INSERT INTO place VALUES (?, ?)", (page.position.stream, page.position.sequence))
            self._db.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", map(_row, page.entries))
            self._db.executemany(
                "INSERT OR IGNORE INTO ids VALUES (?, ?)",
                ((_hash(*one), noted.sequence) for noted in page.entries for one in _ids(noted.entry)),
            )

    # --- looking up; `pick` is called in the view's thread, an entry at a time, so that what it drops is not kept

    async def by_id(self, kind: IdKind, text: str, limit: int, pick: Callable[[FeedEntry], T]) -> list[T]:
        """What is picked of the entries with an id, in the order in which they were stored."""
        return await self._do(
            self._picked,
            "SELECT sequence, time, entry FROM ids JOIN entries USING (sequence) "
            "WHERE hash = ? ORDER BY sequence LIMIT ?",
            (_hash(text, kind), limit),
            lambda noted: pick(noted) if (text, kind) in _ids(noted.entry) else None,
        )

    async def by_path(self, file_path: str, pick: Callable[[FeedEntry], T]) -> list[T]:
        """What is picked of the entry of an object."""
        return await self._do(
            self._picked,
            "SELECT sequence, time, entry FROM entries WHERE file_path = ? ORDER BY sequence LIMIT 1",
            (file_path,),
            pick,
        )

    async def to_search(self, classification_id: str, limit: int) -> list[str]:
        """The objects, newest first, whose column has to tell whether some of their rows are of a run."""
        return await self._do(self._to_search, classification_id, limit)

    def _to_search(self, run: str, limit: int) -> list[str]:
        found = self._db.execute(
            """
            SELECT file_path FROM (
                SELECT sequence, file_path FROM entries
                WHERE searched AND (least IS NULL OR least <= ?1) AND (greatest IS NULL OR greatest >= ?1)
                UNION
                SELECT sequence, file_path FROM ids JOIN entries USING (sequence) WHERE hash = ?2
            ) ORDER BY sequence DESC LIMIT ?3
            """,
            (run, _hash(run, IdKind.CLASSIFICATION_IN_COLUMN), limit),
        )
        return [file_path for (file_path,) in found]

    def _picked(self, query: str, values: Sequence[object], pick: Callable[[FeedEntry], T | None]) -> list[T]:
        found = (
            pick(FeedEntry(sequence, stored, msgspec.json.decode(entry, type=CatalogEntry)))
            for sequence, stored, entry in self._db.execute(query, values)
        )
        return [one for one in found if one is not None]

    # --- the database

    def _open(self) -> None:
        if self._file is None:
            self._db = self._opened("")
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._db = self._opened(str(self._file))
            except sqlite3.DatabaseError as error:
                if not _broken(error):
                    raise
                self._file.unlink()
                self._db = self._opened(str(self._file))
        except (sqlite3.DatabaseError, OSError) as error:
            log.warning("the view is in a temporary file, since %s cannot be used: %s", self._file, error)
            self._db = self._opened("")

    def _anew(self) -> None:
        self._db.close()
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        self._open()

    def _opened(self, path: str) -> sqlite3.Connection:
        db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=True)
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = OFF"):
            db.execute(f"PRAGMA {pragma}")
        db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version != SCHEMA_VERSION:
            tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            script = "".join(f'DROP TABLE "{name}";' for (name,) in tables)
            db.executescript(f"BEGIN; {script} {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT")
        found = db.execute("SELECT stream, sequence FROM place").fetchone()
        self.position = FeedPosition(*found) if found else FeedPosition()
        return db


def _broken(error: Exception) -> bool:
    """Whether the file itself is spoilt, and not only held by another process, or its disk full."""
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)


def _row(noted: FeedEntry) -> tuple[int, str, str, bytes, bool, str | None, str | None]:
    entry = noted.entry
    return (
        noted.sequence,
        entry.file_path,
        noted.time,
        msgspec.json.encode(entry),
        _has_more_runs(entry) and not _lists_runs(entry),
        entry.classification_least,
        entry.classification_greatest,
    )


def _has_more_runs(entry: CatalogEntry) -> bool:
    """Whether a submission of the object does not say which run its records belong to."""
    return any(one.classification_id is None for one in entry.submissions)


def _lists_runs(entry: CatalogEntry) -> bool:
    return entry.classification_count == len(entry.classifications)


def _hash(text: str, kind: IdKind) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, salt=bytes([kind])).digest(), signed=True)


def _ids(entry: CatalogEntry) -> Iterable[tuple[str, IdKind]]:
    """The ids that lead to an object."""
    yield from _traces(trace_id_of(entry.traceparent))
    for one in entry.submissions:
        yield one.submission_id, IdKind.SUBMISSION
        yield from _traces(one.trace_id)
        if one.classification_id is not None:
            yield one.classification_id, IdKind.CLASSIFICATION
    if _has_more_runs(entry) and _lists_runs(entry):
        for run in entry.classifications:
            yield run, IdKind.CLASSIFICATION_IN_COLUMN


def _traces(trace_id: str) -> Iterable[tuple[str, IdKind]]:
    if trace_id.strip("0"):  # else there was none
        yield trace_id, IdKind.TRACE
