"""Erase rows from a table: from its files, its older snapshots, its manifests, and files that no snapshot has.

The raw objects have been rewritten without the rows before. `bronze table` may have read one before that, and commit
its rows only now. So an erasure always makes a snapshot, the barrier, also if no row of the table matches. Each commit
requires the snapshot that was read before it as its parent. So what was read before the barrier is refused, and read
again: the table first, then the objects. Only a table that is put back to a snapshot from before the barrier, while
such a request is on its way, can take it; the request would name files that were deleted, so put no table back
meanwhile.

After the barrier, snapshots that have the rows are expired, and files with values of the rows are deleted, without
regard to their age:

- data files with such rows. One that no snapshot has belongs to a commit that was refused, whose process ended, or
  that is on its way. The latter was prepared before the barrier, so it will be refused: what is prepared after it
  reads tables and objects that do not have the rows.
- manifests that have the bounds of such a file, and lists of manifests that have one of these. A commit that was
  prepared after the barrier has none: its manifests are those of its parent, and of files without the rows.
- files that cannot be read, if they were written before the barrier: their commit is refused, too.

A process that has read the rows before the barrier can still write a file with them after the search. Its commit is
refused, and the file stays until an expiry deletes it, three days later, or another erasure: `plan` finds it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from bronze.errors import Halted
from bronze.maintenance.task import COMMITS_MAX, TooManyConflicts, figures
from bronze.plurals import counted
from bronze.records.columns import table_schema
from bronze.records.sources import Source
from bronze.servers.iceberg import (
    Condition,
    Conflict,
    FileGroup,
    Matches,
    RewrittenGroup,
    RowSearch,
    Tables,
    TableState,
)

#: In a snapshot's summary: the erasure that made it, and what all its runs have erased up to this snapshot, with the
#: files and snapshots that are still to be deleted.
ERASURE_ID = "bronze.erasure-id"
ERASED_ROWS, ERASED_FILES, ERASED_SNAPSHOTS = "bronze.erased-rows", "bronze.erased-files", "bronze.erased-snapshots"


@dataclass(frozen=True, slots=True)
class ErasedRows:
    """What an erasure removed from a table, or would remove.

    `rows` are those that readers saw. `files` counts the data files that had such rows, of all snapshots or of none; of
    a run also those that could not be read. `snapshots` counts those that were expired; `snapshot_id` is the barrier.
    Rows, files and snapshots are those of all runs of the erasure, by the summary of its last barrier. Files of no
    snapshot are those of the last run only.
    """

    source: str
    rows: int = 0
    files: int = 0
    snapshots: int = 0
    #: of the last run only: the files that were written, and those that were deleted, with manifests
    new_files: int = 0
    deleted_files: int = 0
    deleted_bytes: int = 0
    snapshot_id: int | None = None
    #: commits that were refused, since another one came first
    conflicts: int = 0
    is_planned: bool = False

    def as_dict(self) -> dict[str, str | int | None]:
        return figures(self)

    def __str__(self) -> str:
        if not (self.rows or self.files or self.snapshots):
            return f"{self.source}: no rows of the table, and of no older snapshot or file"
        verbs = ("would erase", "expire") if self.is_planned else ("erased", "expired")
        return (
            f"{self.source}: {verbs[0]} {counted(self.rows, 'row')} of the table, from "
            f"{counted(self.files, 'data file')}, and {verbs[1]} {counted(self.snapshots, 'snapshot')}"
        )


class TableErasure:
    """The erasure of rows from tables, after the objects were rewritten without them. All methods block.

    `condition` makes an expression from the columns of a table. Rows for which it is null stay. `raw_data`: bucket and
    prefix of the raw data, where nothing is deleted.
    """

    def __init__(
        self, tables: Tables, sources: Mapping[str, Source], condition: Condition, erasure_id: str, raw_data: str
    ) -> None:
        self._tables = tables
        self._sources = sources
        self._condition = condition
        self._erasure_id = erasure_id
        self._raw_data = raw_data

    def plan(self, source: str) -> ErasedRows:
        """Where the rows are now: nothing is left of them if `rows`, `files` and `snapshots` are 0.

        Raises `TooManyConflicts` if files were deleted meanwhile, `Halted` as `run` does, and `Unavailable`.
        """
        if not self._tables.exists(source):
            return ErasedRows(source, is_planned=True)
        search = RowSearch(self._condition)
        for _ in range(COMMITS_MAX):
            try:
                found = self._tables.search(self._read(source), search)
            except Conflict:
                continue
            orphans = self._tables.unreferenced_matches(source, self._raw_data, search)
            files = len(found.files) + sum(file.path.endswith(".parquet") for file in orphans)
            return ErasedRows(source, _rows(found), files, len(found.snapshots), is_planned=True)
        raise TooManyConflicts(source)

    def run(self, source: str, on_file: Callable[[], None]) -> ErasedRows:
        """Erase the rows from a table. `on_file` is called for each file that was written or deleted. It can be run
        again after each of its ends; the result is then of all runs, unless the barriers of the earlier ones expired.

        Raises `Halted` before anything is changed if a tag or a branch names a snapshot with such rows, if other
        programs have made files that cannot be replaced, or if the table has lost a column. Raises `TooManyConflicts`
        and `Unavailable`.
        """
        if not self._tables.exists(source):
            return ErasedRows(source)  # what `bronze table` commits to it later, it reads later
        search = RowSearch(self._condition)
        written: dict[str, RewrittenGroup] = {}
        earlier = self._earlier(source)
        done, files, barrier = ErasedRows(source), set[str](), None
        for _ in range(COMMITS_MAX):
            state = self._read(source)
            try:
                found = self._tables.search(state, search)
                files.update(found.files)
                if found.current or barrier is None:
                    emptied = self._rewrite(state, found, search, written, on_file)
                    used = [written[_path(group)] for group, _ in found.current if _path(group) in written]
                    rows, new = done.rows + _rows(found), done.new_files + len(used)
                    snapshots = done.snapshots + len(found.snapshots) + bool(found.current)
                    so_far = replace(done, rows=rows, files=len(files), snapshots=snapshots)
                    barrier = self._tables.erase(state, used, emptied, self._summary(_total(earlier, so_far)))
                    for one in used:
                        del written[_path(one.group)]
                    done = replace(done, rows=rows, new_files=new, snapshot_id=barrier.snapshot_id)
                elif found.snapshots:
                    self._tables.expire(state, found.snapshots)
                    done = replace(done, snapshots=done.snapshots + len(found.snapshots))
                else:
                    break
            except Conflict:
                done = replace(done, conflicts=done.conflicts + 1)
        else:
            raise TooManyConflicts(source, "Rows can be left: run the erasure again")
        self._tables.discard(state, [*written.values()])
        orphans = self._tables.unreferenced_matches(source, self._raw_data, search, barrier)
        self._tables.delete(source, orphans, on_file)
        files.update(file.path for file in orphans if file.path.endswith(".parquet"))
        deleted_bytes = sum(file.bytes for file in orphans)
        done = replace(done, files=len(files), deleted_files=len(orphans), deleted_bytes=deleted_bytes)
        return _total(earlier, done)

    def _read(self, source: str) -> TableState:
        """Raises `Halted` if the table has lost a column: new files would lack its values, and the old ones go."""
        state = self._tables.read(source)
        if declared := self._sources.get(source):
            self._tables.check_columns(state, table_schema(declared))
        return state

    def _earlier(self, source: str) -> ErasedRows:
        """What earlier runs of this erasure have erased, or have found and made unreachable."""
        for snapshot in reversed(self._tables.history(source).current_line):
            if snapshot.summary.get(ERASURE_ID) == self._erasure_id:
                rows, files, snapshots = (
                    int(snapshot.summary.get(name, 0)) for name in (ERASED_ROWS, ERASED_FILES, ERASED_SNAPSHOTS)
                )
                return ErasedRows(source, rows, files, snapshots)
        return ErasedRows(source)

    def _summary(self, total: ErasedRows) -> dict[str, str]:
        return {
            ERASURE_ID: self._erasure_id,
            ERASED_ROWS: str(total.rows),
            ERASED_FILES: str(total.files),
            ERASED_SNAPSHOTS: str(total.snapshots),
        }

    def _rewrite(
        self,
        state: TableState,
        found: Matches,
        search: RowSearch,
        written: dict[str, RewrittenGroup],
        on_file: Callable[[], None],
    ) -> list[FileGroup]:
        """Write the files without the rows that were not written yet. Returns those that have no other rows."""
        emptied: list[FileGroup] = []
        for group, number in found.current:
            if group.rows == number:
                emptied.append(group)
            elif _path(group) not in written:
                one = self._tables.write(group, search.without(self._tables.parts(group)))
                if one.rows != group.rows - number:
                    self._tables.discard(state, [one])
                    raise Halted(f"{_path(group)} has {number} rows that match, and {one.rows} that do not")
                written[_path(group)] = one
                on_file()
        return emptied


def _total(earlier: ErasedRows, done: ErasedRows) -> ErasedRows:
    """What all runs have erased. Rows are erased once. Files and snapshots that an earlier run has counted can still be
    there for the next one; after its barrier there are no others.
    """
    return replace(
        done,
        rows=earlier.rows + done.rows,
        files=max(earlier.files, done.files),
        snapshots=max(earlier.snapshots, done.snapshots),
    )


def _rows(found: Matches) -> int:
    return sum(number for _, number in found.current)


def _path(group: FileGroup) -> str:
    return group.scans[0].file.file_path
