"""Expire a table's snapshots, and delete the files that no snapshot has.

A commit writes its files before it makes the snapshot that has them. So only files of a certain age are deleted, by the
clock of the storage: a wrong clock here then deletes nothing that a commit is about to need.
"""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass

from bronze.maintenance.task import COMMITS_MAX, TooManyConflicts, figures
from bronze.plurals import counted
from bronze.servers.iceberg import Conflict, StoredFile, Tables

#: For so long each snapshot stays; then the last one of each hour. The metadata have all snapshots, and each commit
#: reads and writes the metadata.
EVERY_SNAPSHOT = dt.timedelta(minutes=15)
#: Age from which a file without a snapshot is deleted: far above the time that a commit or a compaction can take.
FILE_AGE_MIN = dt.timedelta(days=3)


@dataclass(frozen=True, slots=True)
class Expired:
    """What an expiry removed, or would remove."""

    source: str
    expired_snapshots: int = 0
    deleted_files: int = 0
    deleted_bytes: int = 0
    is_planned: bool = False

    def as_dict(self) -> dict[str, str | int | None]:
        return figures(self)

    def __str__(self) -> str:
        if not (self.expired_snapshots or self.deleted_files):
            return f"{self.source}: no old snapshots, and no files without a snapshot"
        verbs = ("would remove", "delete") if self.is_planned else ("removed", "deleted")
        return (
            f"{self.source}: {verbs[0]} {counted(self.expired_snapshots, 'snapshot')}, and {verbs[1]} "
            f"{counted(self.deleted_files, 'file')} ({self.deleted_bytes:,} bytes) without a snapshot"
        )


class Expiry:
    """The expiry of tables: of snapshots that were last current before a time. All methods block.

    `raw_data`: bucket and prefix of the raw data, where nothing is deleted; None if files stay until another run.
    """

    def __init__(self, tables: Tables, now: dt.datetime, age: dt.timedelta, raw_data: str | None) -> None:
        self._tables = tables
        self._now = now
        self._age = age
        self._raw_data = raw_data

    def plan(self, source: str) -> Expired:
        """What `run` would remove. Raises `Halted` and `Unavailable`."""
        if not self._tables.exists(source):
            return Expired(source)
        expirable = self._expirable(source)
        return _expired(source, len(expirable), self._old_files(source, expirable), is_planned=True)

    def run(self, source: str, on_file: Callable[[], None]) -> Expired:
        """Expire the snapshots of a table, then delete its files. `on_file` is called after each deletion.

        Raises `TooManyConflicts`, `Halted` and `Unavailable`.
        """
        if not self._tables.exists(source):
            return Expired(source)
        snapshots = self._expire(source)
        files = self._old_files(source)
        self._tables.delete(source, files, on_file)
        return _expired(source, snapshots, files)

    def _expire(self, source: str) -> int:
        for _ in range(COMMITS_MAX):
            state = self._tables.read(source)
            expirable = self._tables.expirable(state, *self._times)
            if not expirable:
                return 0
            try:
                self._tables.expire(state, expirable)
            except Conflict:
                continue
            return len(expirable)
        raise TooManyConflicts(source)

    def _expirable(self, source: str) -> list[int]:
        return self._tables.expirable(self._tables.read(source), *self._times)

    @property
    def _times(self) -> tuple[dt.datetime, dt.datetime]:
        return self._now - self._age, self._now - EVERY_SNAPSHOT

    def _old_files(self, source: str, without: list[int] | None = None) -> list[StoredFile]:
        if self._raw_data is None:
            return []
        files, newest = self._tables.unreferenced(source, self._raw_data, without or ())
        before = min(self._now, newest) - FILE_AGE_MIN
        return [file for file in files if file.written_at < before]


def _expired(source: str, snapshots: int, files: list[StoredFile], *, is_planned: bool = False) -> Expired:
    return Expired(source, snapshots, len(files), sum(file.bytes for file in files), is_planned)
