"""Reprocess days of a table: rows of earlier versions of a source get the columns that were declared since.

New files with the filled rows are written first. Then one commit puts them in the place of the old ones, so that
readers see each day before or after. The objects in the bucket stay as they are.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from bronze.errors import Outage, Unavailable
from bronze.maintenance.task import COMMITS_MAX, TooManyConflicts, figures
from bronze.objects.reprocessing import reprocess
from bronze.plurals import counted
from bronze.protocol.snapshot_summary import SCHEMA_VERSION
from bronze.records.columns import table_schema
from bronze.records.sources import Source
from bronze.servers.iceberg import Conflict, RewrittenGroup, Tables

#: In a snapshot's summary: the rows that were changed.
REPROCESSED = "bronze.reprocessed-rows"
TARGET_BYTES = 128 * 2**20


@dataclass(frozen=True, slots=True)
class Reprocessed:
    """What was reprocessed, or would be.

    `rows` counts those that are of the source's version then. `unfit` counts those that stay as they are since they do
    not fit it; `reason` says why of the first.
    """

    source: str
    rows: int = 0
    unfit: int = 0
    reason: str | None = None
    files: int = 0
    snapshot_id: int | None = None
    #: commits that were refused, since another one came first
    conflicts: int = 0
    is_planned: bool = False

    def as_dict(self) -> dict[str, str | int | None]:
        return figures(self)

    def __str__(self) -> str:
        if not (self.rows or self.unfit):
            return f"{self.source}: no rows of an earlier version have fields that were declared since"
        verb = "would reprocess" if self.is_planned else "reprocessed"
        text = f"{self.source}: {verb} {counted(self.rows, 'row')} in {counted(self.files, 'file')}"
        if self.unfit:
            text += f"; {counted(self.unfit, 'row')} stay as they are, the first since {self.reason}"
        return text


class Reprocessing:
    """The reprocessing of days: of the rows that were received on them, in UTC. All methods block."""

    def __init__(self, tables: Tables, sources: Mapping[str, Source], days: Sequence[dt.date]) -> None:
        self._tables = tables
        self._sources = sources
        self._days = days

    def plan(self, source: str) -> Reprocessed:
        """What `run` would change: all rows are read for it. Raises `Halted` and `Unavailable`."""
        if not self._tables.exists(source):
            return Reprocessed(source)
        found, _ = self._rewrite(source, None)
        return replace(found, is_planned=True)

    def run(self, source: str, on_file: Callable[[], None]) -> Reprocessed:
        """Reprocess the days of a table. `on_file` is called for each file that was written.

        Raises `TooManyConflicts`, `Halted`, and `Unavailable`, after which the new rows may be in the table or not.
        """
        if not self._tables.exists(source):
            return Reprocessed(source)
        self._tables.open(source, table_schema(self._sources[source]))
        found, written = self._rewrite(source, on_file)
        for conflicts in range(COMMITS_MAX):
            if not written:
                return replace(found, conflicts=conflicts)
            state = self._tables.read(source)
            summary = {REPROCESSED: str(found.rows), SCHEMA_VERSION: str(self._sources[source].version)}
            try:
                if len(self._tables.replaceable(state, written)) < len(written):  # they were compacted meanwhile
                    self._tables.discard(state, written)
                    found, written = self._rewrite(source, on_file)
                    continue
                snapshot = self._tables.replace(state, written, summary)
            except Conflict:
                continue
            return replace(found, snapshot_id=snapshot.snapshot_id, conflicts=conflicts)
        self._tables.discard(state, written)
        raise TooManyConflicts(source)

    def _rewrite(self, source: str, on_file: Callable[[], None] | None) -> tuple[Reprocessed, list[RewrittenGroup]]:
        """What there is to change, and the files with the changed rows; without `on_file` none are written."""
        found = Reprocessed(source)
        written: list[RewrittenGroup] = []
        state = self._tables.read(source)
        for group in self._tables.files_of(state, self._days, TARGET_BYTES):
            try:
                filled = _FilledRows(self._tables.parts(group), self._sources[source])
                for _ in filled:
                    if filled.changed and on_file:
                        break
                if filled.changed and on_file:  # else the new file would have the same rows
                    filled = _FilledRows(self._tables.parts(group), self._sources[source])
                    written.append(self._tables.write(group, filled))
                    on_file()
            except Conflict as error:
                self._tables.discard(state, written)
                raise Unavailable(Outage.CONFLICT, f"rows of the table {source} were erased meanwhile") from error
            found = replace(
                found,
                rows=found.rows + filled.changed,
                unfit=found.unfit + filled.unfit,
                reason=found.reason or filled.reason,
                files=found.files + (len(group.scans) if filled.changed else 0),
            )
        return found, written


class _FilledRows:
    """The rows of a group with the columns that were declared since, part by part. Counts those that it has given."""

    def __init__(self, parts: Iterable[pa.Table], source: Source) -> None:
        self._parts = parts
        self._source = source
        self.changed = 0
        self.unfit = 0
        self.reason: str | None = None

    def __iter__(self) -> Iterator[pa.Table]:
        for part in self._parts:
            done = reprocess(part, self._source)
            self.changed += done.changed
            self.unfit += done.unfit
            self.reason = self.reason or done.reason
            yield done.rows
