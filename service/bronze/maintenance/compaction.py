"""Compact a table: its small files become files of a target size, with the same rows.

The new files are written first. Then one commit replaces the old ones, on top of the newest snapshot: what was
appended meanwhile stays, and so does the position of `bronze table`.
"""

import datetime as dt
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass

from bronze.maintenance.task import COMMITS_MAX, TooManyConflicts
from bronze.plurals import counted
from bronze.records.columns import table_schema
from bronze.records.sources import Source
from bronze.servers.iceberg import Conflict, FileGroup, RewrittenGroup, Tables

#: In a snapshot's summary: the files that a compaction replaced.
REPLACED = "bronze.compacted-files"


@dataclass(frozen=True, slots=True)
class Compacted:
    """What a compaction did, or would do."""

    source: str
    files: int = 0
    bytes: int = 0
    rows: int = 0
    #: None of a dry run
    new_files: int | None = 0
    new_bytes: int | None = 0
    snapshot_id: int | None = None
    #: commits that were refused, since another one came first
    conflicts: int = 0

    def as_dict(self) -> dict[str, str | int | None]:
        return asdict(self)

    def __str__(self) -> str:
        if not self.files:
            return f"{self.source}: no small files to replace"
        old = f"{counted(self.files, 'file')} ({self.bytes:,} bytes) with {counted(self.rows, 'row')}"
        if self.new_files is None:
            return f"{self.source}: would replace {old}"
        return f"{self.source}: replaced {old} by {counted(self.new_files, 'file')} ({self.new_bytes:,} bytes)"


class Compaction:
    """The compaction of tables: of files all of whose rows were received before a time. All methods block."""

    def __init__(self, tables: Tables, sources: Mapping[str, Source], before: dt.datetime, target_bytes: int) -> None:
        self._tables = tables
        self._sources = sources
        self._before = before
        self._target_bytes = target_bytes

    def plan(self, source: str) -> Compacted:
        """What `run` would replace. Raises `Halted` and `Unavailable`."""
        groups = self._groups(source)
        return Compacted(source, *_size(groups), new_files=None, new_bytes=None)

    def run(self, source: str, on_file: Callable[[], None]) -> Compacted:
        """Compact a table. `on_file` is called for each file that was written.

        Raises `TooManyConflicts`, `Halted`, and `Unavailable`, after which the new files may be in the table or not;
        its rows are the same.
        """
        written: list[RewrittenGroup] = []
        for group in self._groups(source):
            with suppress(Conflict):  # rows were erased from its files meanwhile
                written.append(self._tables.write(group, self._tables.parts(group)))
            on_file()
        if not written:
            return Compacted(source)
        for conflicts in range(COMMITS_MAX):
            state = self._tables.read(source)
            try:
                chosen = self._tables.replaceable(state, written)
                self._tables.discard(state, [one for one in written if one not in chosen])
                written = chosen
                if not written:
                    return Compacted(source, conflicts=conflicts)
                size = _size([one.group for one in written])
                snapshot = self._tables.replace(state, written, {REPLACED: str(size[0])})
            except Conflict:
                continue
            new_bytes = sum(one.bytes for one in written)
            return Compacted(source, *size, len(written), new_bytes, snapshot.snapshot_id, conflicts)
        self._tables.discard(state, written)
        raise TooManyConflicts(source)

    def _groups(self, source: str) -> list[FileGroup]:
        """The groups of small files; none if the source has no table yet."""
        if not self._tables.exists(source):
            return []
        state = self._tables.read(source)
        # new files lack what the table's schema lacks: values of a column that was removed would be lost with the old
        self._tables.check_columns(state, table_schema(self._sources[source]))
        return self._tables.small_files(state, self._before, self._target_bytes) if state.has_rows else []


def closed_before(now: dt.datetime, hours: int) -> dt.datetime:
    """When so many hours began, of which the one that is open now is counted as the first."""
    return now.replace(minute=0, second=0, microsecond=0) - dt.timedelta(hours=hours - 1)


def _size(groups: list[FileGroup]) -> tuple[int, int, int]:
    """The files, bytes and rows of groups."""
    return (
        sum(len(group.scans) for group in groups),
        sum(group.bytes for group in groups),
        sum(group.rows for group in groups),
    )
