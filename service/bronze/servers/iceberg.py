"""Iceberg tables: it alone imports pyiceberg.

Each commit requires the snapshot that was read before it as its parent. So one of two commits that were prepared from
the same state is refused. A commit whose outcome is unknown does no harm either: it lands before the next one, which is
then refused, or never. pyiceberg would repeat a refused commit on the newer snapshot, whose rows it does not look at:
the property of the table that allows this has to be 0.

A compaction replaces data files by others with the same rows. It writes these first, and commits them on top of the
newest snapshot. pyiceberg 0.12 has no snapshot of the operation `replace`: it is an `overwrite`.

An expiry removes snapshots from the metadata. pyiceberg deletes no files then: those that no snapshot has are found by
listing the folders of the table.

An erasure replaces data files by others without some rows. Values of these rows are also in manifests, as the bounds of
columns: also in those of files that a snapshot has removed. It leaves no such manifest in its snapshot.
"""

import datetime as dt
import logging
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Final, Self, TypeVar, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as pafs
from pyiceberg.avro.file import AvroFile
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.conversions import from_bytes
from pyiceberg.exceptions import (
    AuthorizationExpiredError,
    CommitFailedException,
    ForbiddenError,
    NoSuchTableError,
    OAuthError,
    RESTError,
    TableAlreadyExistsError,
    UnauthorizedError,
    ValidationError,
)
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.io.fileformat import FileFormatFactory
from pyiceberg.io.pyarrow import ArrowScan, PyArrowFileIO, _pyarrow_to_schema_without_ids, _to_requested_schema
from pyiceberg.manifest import (
    DATA_FILE_TYPE,
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestFile,
    read_manifest_list,
)
from pyiceberg.partitioning import PartitionFieldValue, PartitionKey
from pyiceberg.schema import assign_fresh_schema_ids
from pyiceberg.table import FileScanTask, Table, TableProperties, Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.refs import MAIN_BRANCH
from pyiceberg.table.snapshots import Operation, Snapshot, ancestors_of
from pyiceberg.table.sorting import SortDirection
from pyiceberg.table.update import AssertRefSnapshotId, TableUpdate, UpdatesAndRequirements
from pyiceberg.table.update.schema import UpdateSchema
from pyiceberg.table.update.snapshot import ExpireSnapshots, _OverwriteFiles
from pyiceberg.transforms import DayTransform, IdentityTransform
from pyiceberg.types import TimestamptzType
from pyiceberg.utils.config import Config

from bronze.errors import BronzeError, Halted, Misconfigured, NotPermitted, Outage, Unavailable
from bronze.settings import Settings

log = logging.getLogger(__name__)

#: The columns by which a table is partitioned, by day, and sorted within its files.
RECEIVED_AT: Final = "_received_at"
PARTITION: Final = "_received_day"
FILE_PATH: Final = "file_path"
#: In a snapshot's summary: how far the table has come.
POSITION: Final = "bronze.position"
#: The snapshot that the table's property `bronze.position` belongs to.
POSITION_SNAPSHOT: Final = "bronze.position-snapshot-id"
#: How often pyiceberg may repeat a commit.
RETRIES: Final = "0"
_PROPERTIES: Final = {
    TableProperties.COMMIT_NUM_RETRIES: RETRIES,
    TableProperties.FORMAT_VERSION: "2",
    TableProperties.PARQUET_COMPRESSION: "zstd",
    TableProperties.MANIFEST_MERGE_ENABLED: "true",
    TableProperties.METADATA_DELETE_AFTER_COMMIT_ENABLED: "true",
}


#: A data file of at least this share of the target size is left as it is.
SMALL_SHARE_MAX: Final = 0.75
#: The folders of a table's location, and the ends of the names of files in them that may be deleted: data, manifests
#: and lists of manifests. The catalog deletes its own metadata.
FOLDERS: Final = ("data", "metadata")
DELETABLE: Final = (".parquet", ".avro")
#: How a REST catalog says that credentials are wrong or do not suffice.
_REFUSALS: Final = (OAuthError, UnauthorizedError, AuthorizationExpiredError, ForbiddenError)
_EPOCH: Final = dt.date(1970, 1, 1)
#: Rows of files that are rewritten are in memory in parts of this size, and a copy of one, sorted.
PART_BYTES: Final = 64 * 2**20
#: Data files that are read at a time: of so many bytes, but at least one.
READ_BYTES: Final = 2**20
READS: Final = 4
#: Data files that are searched at a time.
SEARCHES: Final = 8

#: Which rows are meant, by the columns of the table. Rows for which it is null are not meant.
Condition = Callable[[pa.Schema], pc.Expression]


_T = TypeVar("_T")
#: Of a data file's entry in a manifest: sizes, counts and bounds of its columns.
_STATISTICS: Final = (
    "column_sizes",
    "value_counts",
    "null_value_counts",
    "nan_value_counts",
    "lower_bounds",
    "upper_bounds",
)


class Conflict(Exception):
    """Another commit came first; nothing of this one is in the table."""


class Dropped(Unavailable):
    """The table is gone, or there is another one in its place, or columns of it were narrowed: open it again."""

    def __init__(self, detail: str) -> None:
        super().__init__(Outage.UNAVAILABLE, detail)


@dataclass(frozen=True, slots=True)
class TableSize:
    """The data files of a table and their bytes, its snapshots, and when the last one was made, in seconds since 1970;
    None without one.
    """

    files: int = 0
    bytes: int = 0
    snapshots: int = 0
    snapshot_s: float | None = None


@dataclass(frozen=True, slots=True)
class TableState:
    """A table as it was read. `position` is the text that was committed with its rows; None if it is not known."""

    table: Table
    position: str | None

    @property
    def snapshot(self) -> Snapshot | None:
        return self.table.current_snapshot()

    @property
    def position_summary(self) -> Mapping[str, str]:
        """The position as a part of the summary of a snapshot that leaves it as it is."""
        return {} if self.position is None else {POSITION: self.position}

    @property
    def snapshots(self) -> int:
        """The number of its snapshots."""
        return len(self.table.metadata.snapshots)

    @property
    def has_rows(self) -> bool:
        """Whether a row was ever committed to it."""
        return self.snapshot is not None


@dataclass(frozen=True, slots=True)
class FileGroup:
    """Small data files of one partition that become one file."""

    table: Table
    scans: Sequence[FileScanTask]

    @property
    def rows(self) -> int:
        return sum(scan.file.record_count for scan in self.scans)

    @property
    def bytes(self) -> int:
        return sum(scan.file.file_size_in_bytes for scan in self.scans)


@dataclass(frozen=True, slots=True)
class RewrittenGroup:
    """A group, and the file that was written with its rows. It is in no snapshot yet."""

    group: FileGroup
    file: DataFile

    @property
    def rows(self) -> int:
        return int(self.file.record_count)

    @property
    def bytes(self) -> int:
        return self.file.file_size_in_bytes


@dataclass(frozen=True, slots=True)
class SnapshotFacts:
    """A snapshot of a table, with its number in the order of the table's commits. `summary` is as the table has it."""

    id: int
    parent_id: int | None
    sequence: int
    committed_at: dt.datetime
    summary: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TableHistory:
    """Which table it is, where its files are, and its snapshots that have not expired, oldest first."""

    uuid: str
    location: str
    events: Sequence[SnapshotFacts]
    #: those of which one came after the other up to the current one, oldest first: without what was put back
    current_line: Sequence[SnapshotFacts] = ()


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a table, by its path in the table's file system."""

    path: str
    bytes: int
    written_at: dt.datetime


@dataclass(frozen=True, slots=True)
class Matches:
    """Where the snapshots of a table have rows that match a condition.

    `current`: the files of the current snapshot with such rows, each alone, and the number of these rows. `files`: the
    paths of such files of all snapshots. `snapshots`: those besides the current one that have such a file, or the
    bounds of a file that they removed and that no snapshot has: nobody can tell of which rows these bounds are.
    """

    current: Sequence[tuple[FileGroup, int]]
    files: Collection[str]
    snapshots: Sequence[int]


class _Expiry(ExpireSnapshots):
    """Requires that each branch and tag is where it was read: somebody could just have put one to a snapshot that is to
    be removed.
    """

    def _commit(self) -> UpdatesAndRequirements:
        updates, requirements = super()._commit()
        refs = self._transaction.table_metadata.refs
        unchanged = [AssertRefSnapshotId(ref=name, **{"snapshot-id": ref.snapshot_id}) for name, ref in refs.items()]
        return updates, (*requirements, *unchanged)


class _Erasure(_OverwriteFiles):
    """An overwrite whose manifests have no bounds of files that were removed, by it or by a snapshot before it."""

    def _deleted_entries(self) -> list[ManifestEntry]:
        entries = super()._deleted_entries()
        for entry in entries:
            for number, field in enumerate(DATA_FILE_TYPE[2].fields):
                if field.name in _STATISTICS:
                    entry.data_file[number] = None
        return entries

    def _existing_manifests(self) -> list[ManifestFile]:
        parent = self._transaction.table_metadata.snapshot_by_id(self._parent_snapshot_id or 0)
        manifests: list[ManifestFile] = []
        for manifest in parent.manifests(self._io) if parent else ():
            entries = manifest.fetch_manifest_entry(self._io, discard_deleted=False)
            kept = [
                entry
                for entry in entries
                if entry.status != ManifestEntryStatus.DELETED and entry.data_file not in self._deleted_data_files
            ]
            if len(kept) == len(entries):
                manifests.append(manifest)
            elif kept:
                with self.new_manifest_writer(self.spec(manifest.partition_spec_id)) as writer:
                    for entry in kept:
                        writer.existing(entry)
                manifests.append(writer.to_manifest_file())
        return manifests


class _Transaction(Transaction):
    """pyiceberg copies the metadata, with all snapshots, each time that it looks at them: some 30 times per commit."""

    _known: tuple[tuple[TableUpdate, ...], TableMetadata] | None = None

    @property
    def table_metadata(self) -> TableMetadata:
        if self._known is None or self._known[0] is not self._updates:
            self._known = self._updates, super().table_metadata
        return self._known[1]


#: What grows with the number of commits.
_LISTS = ("snapshots", "snapshot_log", "metadata_log")


class _Shared(list[_T]):
    """A list in the metadata of a table that is not copied with them. pyiceberg copies them three times per commit,
    with all snapshots, and changes no part of a copy.
    """

    def __add__(self, others: list[_T]) -> "_Shared[_T]":  # type: ignore[override]
        return _Shared([*self, *others])

    def __deepcopy__(self, _: object) -> Self:
        return self


class Tables:
    """The tables of a namespace. All methods block: call them in a thread."""

    def __init__(self, catalog: Catalog, namespace: str) -> None:
        self._catalog = catalog
        self._namespace = namespace

    @property
    def address(self) -> str:
        """The address of the catalog, or its name if it has none."""
        return str(self._catalog.properties.get("uri", self._catalog.name))

    def open(self, name: str, columns: pa.Schema) -> None:
        """Create a table, or add the columns that it never had. Raises `Unavailable`, and `Halted` if it had one of
        these columns, or if its columns cannot take these.
        """
        with _failures():
            self._catalog.create_namespace_if_not_exists(self._namespace)
            with suppress(TableAlreadyExistsError):
                if not self._catalog.table_exists(self._id(name)):
                    self._create(name, columns)
            table = self._catalog.load_table(self._id(name))
            if update := _schema_update(table, _Transaction(table, autocommit=True), columns):
                update.commit()

    def _create(self, name: str, columns: pa.Schema) -> None:
        creation = self._catalog.create_table_transaction(self._id(name), columns, properties=_PROPERTIES)
        with creation as transaction:
            with transaction.update_spec() as spec:
                spec.add_field(RECEIVED_AT, DayTransform(), PARTITION)
            with transaction.update_sort_order() as order:
                order.asc(RECEIVED_AT, IdentityTransform())

    def read(self, name: str) -> TableState:
        """The state of a table, and the position that its rows have. Raises `Unavailable`."""
        with _failures():
            table = self._catalog.load_table(self._id(name))
            shared = {name: _Shared(getattr(table.metadata, name)) for name in _LISTS}
            table.metadata = table.metadata.model_copy(update=shared)
            return TableState(table, _position(table))

    def check_columns(self, state: TableState, columns: pa.Schema) -> None:
        """Raises `Halted` if the table had one of these columns and lacks it: its files have values in it still."""
        _check_not_lost(state.table, columns)

    def paths(self, state: TableState) -> set[str]:
        """The objects whose rows are in the table: its column `file_path`. Raises `Unavailable`."""
        with _failures():
            batches = state.table.scan(selected_fields=(FILE_PATH,)).to_arrow_batch_reader()
            found: set[str] = set()
            for batch in batches:
                found.update(pc.unique(batch.column(FILE_PATH)).to_pylist())
            return found

    def append(self, state: TableState, rows: pa.Table, position: str, summary: Mapping[str, str]) -> Snapshot:
        """Append rows, with the position that the table then has. Returns the new snapshot.

        Raises `Conflict`, and `Unavailable` if the outcome is not known: read the table again in both cases. Raises
        `Dropped` if the table never had one of the columns or has it narrower, and `Halted` if it had it, if it cannot
        take one, or if pyiceberg would repeat a refused commit.
        """
        _check_not_repeated(state.table)
        transaction = _Transaction(state.table)
        with self._conflicts(state.table):
            if _schema_update(state.table, transaction, rows.schema):
                raise Dropped(f"the table {'.'.join(state.table.name())} has to be opened again to take the rows")
            transaction.append(rows, snapshot_properties={POSITION: position, **summary})
            snapshot = _set_position(transaction, position)
            _commit(transaction)
        return snapshot

    def names(self) -> list[str]:
        """The names of the tables; none if there is no namespace yet. Raises `Unavailable`."""
        with _failures():
            if not self._catalog.namespace_exists(self._namespace):
                return []
            return sorted(name for *_, name in self._catalog.list_tables(self._namespace))

    def history(self, name: str) -> TableHistory:
        """The snapshots of a table. Raises `Unavailable`."""
        with _failures():
            metadata = self._catalog.load_table(self._id(name)).metadata
            facts = [
                SnapshotFacts(
                    id=snapshot.snapshot_id,
                    parent_id=snapshot.parent_snapshot_id,
                    sequence=snapshot.sequence_number or 0,
                    committed_at=dt.datetime.fromtimestamp(snapshot.timestamp_ms / 1000, dt.UTC),
                    summary=_summary(snapshot),
                )
                for snapshot in metadata.snapshots
            ]
            by_id = {each.id: each for each in facts}
            line: list[int] = []
            for entry in metadata.snapshot_log:
                if entry.snapshot_id in line:  # the table was put back to it
                    del line[line.index(entry.snapshot_id) :]
                line.append(entry.snapshot_id)
            return TableHistory(
                str(metadata.table_uuid),
                metadata.location,
                sorted(facts, key=lambda each: each.sequence),
                [by_id[snapshot_id] for snapshot_id in line if snapshot_id in by_id],
            )

    def exists(self, name: str) -> bool:
        """Whether there is a table. Raises `Unavailable`."""
        with _failures():
            return self._catalog.table_exists(self._id(name))

    def small_files(self, state: TableState, before: dt.datetime, target_bytes: int) -> list[FileGroup]:
        """Groups of small files, each of about the target size, all rows of which were received before a time.

        Files to which delete files apply, and those of another partitioning, are left out: other programs made them.
        Raises `Unavailable`.
        """
        before_us = int(before.timestamp()) * 1_000_000
        spec = state.table.spec()
        by_partition: dict[tuple[object, ...], list[tuple[int, FileScanTask]]] = defaultdict(list)
        with _failures():
            column = state.table.schema().find_field(RECEIVED_AT).field_id
            for scan in state.table.scan().plan_files():
                file = scan.file
                first, last = (_time_us(bounds, column) for bounds in (file.lower_bounds, file.upper_bounds))
                small = file.file_size_in_bytes < SMALL_SHARE_MAX * target_bytes
                ours = file.spec_id == spec.spec_id and not scan.delete_files
                if small and ours and first is not None and last is not None and last < before_us:
                    key = tuple(file.partition[number] for number in range(len(spec.fields)))
                    by_partition[key].append((first, scan))
        groups = _grouped(state.table, by_partition.values(), target_bytes)
        return [group for group in groups if len(group.scans) > 1]

    def files_of(self, state: TableState, days: Collection[dt.date], target_bytes: int) -> list[FileGroup]:
        """The files of the partitions of these days, in groups of about the target size. Raises `Unavailable`, and
        `Halted` if delete files of another program apply to one, or if it has another partitioning.
        """
        spec = state.table.spec()
        wanted = {(day - _EPOCH).days for day in days}
        by_partition: dict[int, list[tuple[int, FileScanTask]]] = defaultdict(list)
        with _failures():
            for scan in state.table.scan().plan_files() if state.has_rows else ():
                is_ours = scan.file.spec_id == spec.spec_id
                if is_ours and scan.file.partition[0] not in wanted:
                    continue
                if scan.delete_files or not is_ours:
                    raise Halted(
                        f"the table {'.'.join(state.table.name())} has delete files, or files of another partitioning: "
                        "let the program that made them compact the table first"
                    )
                by_partition[scan.file.partition[0]].append((0, scan))
        return _grouped(state.table, by_partition.values(), target_bytes)

    def parts(self, group: FileGroup) -> Iterator[pa.Table]:
        """The rows of a group, in the order of its files, in parts of about `PART_BYTES`: how much memory small files
        take is not known before. Raises `Conflict` if its files were deleted meanwhile, `Unavailable`, and `Halted` at
        the end if the rows are not as many as the manifests say.
        """
        table = group.table
        scan = ArrowScan(table.metadata, table.io, table.schema(), AlwaysTrue())
        rows, part, part_bytes = 0, list[pa.Table](), 0
        with self._conflicts(table):
            for files in _read_together(group.scans):
                for batch in scan.to_record_batches(files):
                    rows += len(batch)
                    part.append(pa.Table.from_batches([batch]))
                    part_bytes += batch.nbytes
                    if part_bytes >= PART_BYTES:
                        yield pa.concat_tables(part, promote_options="permissive")
                        part, part_bytes = [], 0
            if rows != group.rows:
                raise Halted(
                    f"the files of the table {'.'.join(table.name())} have {rows} rows where its manifests "
                    f"say {group.rows}: nothing was changed"
                )
            if part:
                yield pa.concat_tables(part, promote_options="permissive")

    def write(self, group: FileGroup, parts: Iterable[pa.Table]) -> RewrittenGroup:
        """Write rows in the place of those of a group to one file, each part in the table's sort order.

        Raises `Unavailable`, and what `parts` raises; there is no file then.
        """
        table = group.table
        schema, spec = table.schema(), table.spec()
        partition = group.scans[0].file.partition
        values = [PartitionFieldValue(field, partition[number]) for number, field in enumerate(spec.fields)]
        path = table.location_provider().new_data_location(
            f"{uuid.uuid4()}.parquet", PartitionKey(values, spec, schema)
        )
        columns: pa.Schema | None = None
        with _failures():
            file, form = table.io.new_output(path), FileFormatFactory.get(FileFormat.PARQUET)
            try:
                with form.create_writer(file, schema, table.properties) as writer:
                    for part in parts:
                        batches = part.sort_by(_sort_keys(table)).to_batches()
                        ordered = pa.Table.from_batches(
                            _to_requested_schema(schema, schema, batch, include_field_ids=True, format_model=form)
                            for batch in batches
                        )
                        # another program's files may have another type for texts
                        columns = columns or ordered.schema
                        writer.write(ordered.cast(columns))
            except BaseException:
                with suppress(Exception):
                    table.io.delete(path)
                raise
            statistics = writer.result().to_serialized_dict()
            return RewrittenGroup(
                group,
                DataFile.from_args(
                    content=DataFileContent.DATA,
                    file_path=path,
                    file_format=FileFormat.PARQUET,
                    partition=partition,
                    file_size_in_bytes=len(file),
                    spec_id=spec.spec_id,
                    **statistics,
                ),
            )

    def replaceable(self, state: TableState, rewritten: Sequence[RewrittenGroup]) -> list[RewrittenGroup]:
        """The groups whose old files are all in the table still, with all of their rows. Raises `Conflict` and
        `Unavailable`.
        """
        with self._conflicts(state.table):
            whole = {scan.file for scan in state.table.scan().plan_files() if not scan.delete_files}
        return [one for one in rewritten if whole.issuperset(scan.file for scan in one.group.scans)]

    def replace(self, state: TableState, rewritten: Sequence[RewrittenGroup], summary: Mapping[str, str]) -> Snapshot:
        """Replace the old files of groups by the new ones, in one snapshot. The position stays. Returns the snapshot.

        Raises `Conflict` if another commit came first, and `Unavailable` if the outcome is not known: the new files
        may then be in the table, now or later. Raises `Halted` as `append` does.
        """
        new = [one.file for one in rewritten]
        return self._replace(state, _OverwriteFiles, new, [one.group for one in rewritten], summary)

    def erase(
        self,
        state: TableState,
        rewritten: Sequence[RewrittenGroup],
        emptied: Sequence[FileGroup],
        summary: Mapping[str, str],
    ) -> Snapshot:
        """As `replace`, and remove the files of groups that have no rows left. There is a snapshot also if there is
        nothing to replace. Its manifests have no statistics of the old files, nor of files that were removed before.
        """
        new = [one.file for one in rewritten]
        return self._replace(state, _Erasure, new, [*(one.group for one in rewritten), *emptied], summary)

    def _replace(
        self,
        state: TableState,
        producer: type[_OverwriteFiles],
        new: Sequence[DataFile],
        old: Sequence[FileGroup],
        summary: Mapping[str, str],
    ) -> Snapshot:
        _check_not_repeated(state.table)
        transaction = _Transaction(state.table)
        with self._conflicts(state.table):
            update = producer(
                operation=Operation.OVERWRITE if state.has_rows else Operation.APPEND,
                transaction=transaction,
                io=state.table.io,
                snapshot_properties={**state.position_summary, **summary},
            )
            for file in new:
                update.append_data_file(file)
            for group in old:
                for scan in group.scans:
                    update.delete_data_file(scan.file)
            update.commit()
            snapshot = _set_position(transaction, state.position)
            try:
                _commit(transaction)
            except Exception:
                if self._has(state, snapshot):
                    return snapshot
                raise
        return snapshot

    def delete_before(self, state: TableState, before: dt.datetime) -> int:
        """Delete the rows that were received before a day, which are whole files. The position stays. Returns the
        number of rows.

        Raises `Conflict`, `Unavailable` and `Halted` as `append` does.
        """
        _check_not_repeated(state.table)
        old = f"{RECEIVED_AT} < '{before.isoformat()}'"
        rows = _rows(state.snapshot)
        transaction = _Transaction(state.table)
        with _failures():
            if not any(True for _ in state.table.scan(row_filter=old).plan_files()):
                return 0
            transaction.delete(old, dict(state.position_summary))
            snapshot = _set_position(transaction, state.position)
            _commit(transaction)
        return rows - _rows(snapshot)

    def discard(self, state: TableState, rewritten: Sequence[RewrittenGroup]) -> None:
        """Delete the new files of groups, which are in no snapshot and will be in none. Raises `Unavailable`."""
        with _failures():
            for one in rewritten:
                with suppress(FileNotFoundError):  # an erasure deleted it
                    state.table.io.delete(one.file.file_path)

    def expirable(self, state: TableState, before: dt.datetime, hourly_before: dt.datetime) -> list[int]:
        """The snapshots that were last current before a time. Of those that were last current before `hourly_before`,
        also all but the last one of each hour, if those after them only appended: their rows stay in its files.

        Left out are those that a branch or a tag names, those of a branch with rules of its own for how long snapshots
        stay, and those from the current one back to the one that has the position.
        """
        metadata = state.table.metadata
        by_id = {snapshot.snapshot_id: snapshot for snapshot in metadata.snapshots}
        last_ms = {snapshot.snapshot_id: snapshot.timestamp_ms for snapshot in metadata.snapshots}
        for entry, next_ in pairwise(metadata.snapshot_log):
            last_ms[entry.snapshot_id] = max(last_ms.get(entry.snapshot_id, 0), next_.timestamp_ms)
        followed: set[int] = set()  # by an append in the same hour
        for snapshot in metadata.snapshots:
            parent = by_id.get(snapshot.parent_snapshot_id or 0)
            if parent is not None:
                last_ms[parent.snapshot_id] = max(last_ms[parent.snapshot_id], snapshot.timestamp_ms)
                if _only_appends(snapshot) and _hour(parent) == _hour(snapshot):
                    followed.add(parent.snapshot_id)
        kept = set(_find_position(state.table)[1])
        for ref in metadata.refs.values():
            kept.add(ref.snapshot_id)
            if ref.min_snapshots_to_keep or ref.max_snapshot_age_ms:
                kept.update(one.snapshot_id for one in ancestors_of(by_id.get(ref.snapshot_id), metadata))
        before_ms, hourly_before_ms = (time.timestamp() * 1000 for time in (before, hourly_before))
        return [
            snapshot_id
            for snapshot_id in by_id
            if snapshot_id not in kept
            and last_ms[snapshot_id] < (hourly_before_ms if snapshot_id in followed else before_ms)
        ]

    def expire(self, state: TableState, snapshot_ids: Sequence[int]) -> None:
        """Remove snapshots from a table; their files stay. Raises `Conflict` if another commit came first,
        `Unavailable`, and `Halted` as `append` does.
        """
        _check_not_repeated(state.table)
        transaction = _Transaction(state.table)
        with self._conflicts(state.table):
            _Expiry(transaction).by_ids(list(snapshot_ids)).commit()
            _commit(transaction)

    def unreferenced(
        self, name: str, raw_data: str, without: Collection[int] = ()
    ) -> tuple[list[StoredFile], dt.datetime]:
        """The files under the location of a table that no snapshot has, and the time at which the newest file there was
        written, by the clock of the storage.

        `raw_data`: bucket and prefix of the raw data. `without`: snapshots that do not count. Raises `Unavailable`, and
        `Halted` if raw data is there, or if the storage does not list what the snapshots have.
        """
        with _failures():
            listed, had = _stored(self._catalog.load_table(self._id(name)), raw_data, without)
            found = [file for file in listed if file.path not in had and file.path.endswith(DELETABLE)]
            return found, max((file.written_at for file in listed), default=dt.datetime.fromtimestamp(0, dt.UTC))

    def unreferenced_matches(
        self, name: str, raw_data: str, search: "RowSearch", barrier: Snapshot | None = None
    ) -> list[StoredFile]:
        """The files that no snapshot has and that have values of rows that match, as it is decided by `search`. They
        come in the order in which they have to be deleted: a manifest is known by its data files.

        `barrier`: a file that cannot be read is among them if it was written before this snapshot. Else as
        `unreferenced`.
        """
        with _failures():
            table = self._catalog.load_table(self._id(name))
            listed, had = _stored(table, raw_data)
            made = _path(table, barrier.manifest_list) if barrier else ""
            before = next((file.written_at for file in listed if file.path == made), None)
            orphans = [file for file in listed if file.path not in had and file.path.endswith(DELETABLE)]
            return search.unreferenced(table, orphans, had, before)

    def delete(self, name: str, files: Sequence[StoredFile], on_file: Callable[[], None]) -> None:
        """Delete files of a table. `on_file` is called after each. Raises `Unavailable`."""
        if not files:
            return  # the table is not loaded, with all its snapshots, for nothing
        with _failures():
            file_system = _file_system(self._catalog.load_table(self._id(name)))
        for file in files:
            with _failures(), suppress(FileNotFoundError):
                file_system.delete_file(file.path)
            on_file()

    def search(self, state: TableState, search: "RowSearch") -> Matches:
        """Where the snapshots have rows that match. Raises `Conflict`, `Unavailable`, and `Halted` if a tag or a branch
        names one of these snapshots, or if a file cannot be replaced.
        """
        with self._conflicts(state.table):
            return search.matches(state)

    @contextmanager
    def _conflicts(self, table: Table) -> Iterator[None]:
        """As `_failures`, and `Conflict` for a file or a snapshot that is gone if another commit came first: an erasure
        deletes the files that only older snapshots have.
        """
        location = table.metadata_location
        with _failures():
            try:
                yield
            except (FileNotFoundError, ValueError) as error:
                if self._catalog.load_table(table.name()).metadata_location == location:
                    raise
                raise Conflict(str(error)) from error

    def _has(self, state: TableState, snapshot: Snapshot) -> bool:
        return self._catalog.load_table(state.table.name()).snapshot_by_id(snapshot.snapshot_id) is not None

    def _id(self, name: str) -> tuple[str, str]:
        return (self._namespace, name)


@dataclass(frozen=True, slots=True)
class _Manifest:
    """The paths of the files that a manifest has, whether they are delete files, and the paths of those that its
    snapshot removed and that it has the bounds of.
    """

    files: Collection[str]
    has_deletes: bool
    removed: Collection[str]


class RowSearch:
    """Searches the files of one table for rows that match a condition. It reads each file once: none of them changes.

    For `Tables`, which turns the errors of its methods.
    """

    def __init__(self, condition: Condition) -> None:
        self._condition = condition
        self._rows: dict[str, int] = {}
        self._lists: dict[int, Sequence[_Manifest]] = {}
        self._manifests: dict[str, _Manifest] = {}

    def without(self, parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The rows of some parts that do not match."""
        for rows in parts:
            condition = self._condition(rows.schema)
            if (left := rows.filter(~condition | condition.is_null())).num_rows:
                yield left

    def matches(self, state: TableState) -> Matches:
        table, current = state.table, state.snapshot.snapshot_id if state.snapshot else None
        by_snapshot = {one.snapshot_id: self._manifests_of(table, one) for one in table.snapshots()}
        having = {path for manifests in by_snapshot.values() for one in manifests for path in one.files}
        self._search(table, having)
        files = {path for path in having if self._rows[path]}
        snapshots = [
            snapshot_id
            for snapshot_id, manifests in by_snapshot.items()
            if snapshot_id != current and any(_has_values(one, files, having) for one in manifests)
        ]
        names = [
            f"the {ref.snapshot_ref_type.value} {name}"
            for name, ref in sorted(table.metadata.refs.items())
            if name != MAIN_BRANCH and ref.snapshot_id in snapshots
        ]
        if names:
            raise Halted(
                f"of the table {'.'.join(table.name())}, {' and '.join(names)} keeps a snapshot with rows that are to "
                "be erased. Remove the tag or branch, and run this again. Nothing was changed"
            )
        if current is None:
            return Matches([], files, snapshots)
        if any(one.has_deletes for one in by_snapshot[current]):
            raise Halted(
                f"the table {'.'.join(table.name())} has delete files, which can have values of rows: let the program "
                "that made them compact the table first"
            )
        return Matches(list(self._current(table, files)), files, snapshots)

    def _current(self, table: Table, files: Collection[str]) -> Iterator[tuple[FileGroup, int]]:
        folders = tuple(_folders(table))
        for scan in table.scan().plan_files():
            path = _path(table, scan.file.file_path)
            if path not in files:
                continue
            if scan.file.spec_id != table.spec().spec_id or not path.startswith(folders):
                raise Halted(
                    f"{scan.file.file_path} of the table {'.'.join(table.name())} has rows that are to be erased, and "
                    "another partitioning, or is not in the folders of the table: let the program that made it compact "
                    "the table first"
                )
            yield FileGroup(table, [scan]), self._rows[path]

    def unreferenced(
        self, table: Table, orphans: Sequence[StoredFile], had: set[str], barrier: dt.datetime | None
    ) -> list[StoredFile]:
        """Of the files that no snapshot has: lists of manifests, manifests and data files, in this order."""
        data = [file for file in orphans if file.path.endswith(".parquet")]
        rows: dict[StoredFile, int | None] = {}
        if data:
            with ThreadPoolExecutor(SEARCHES) as pool:
                found_rows = pool.map(partial(_unless_unreadable, self._counter(table)), data)
                rows = dict(zip(data, found_rows, strict=True))
        files = {file.path for file, number in rows.items() if number}
        lists: dict[StoredFile, Collection[str]] = {}
        manifests: list[StoredFile] = []
        unreadable = [file for file, number in rows.items() if number is None]
        for file in orphans:
            if file in rows:
                continue
            named = _unless_unreadable(partial(self._named, table), file)
            if named is None:
                unreadable.append(file)
            elif isinstance(named, set):
                lists[file] = named
            elif _has_values(named, files, had):
                manifests.append(file)
        found = {file.path for file in manifests}
        return [
            *(file for file, named in lists.items() if not found.isdisjoint(named)),
            *manifests,
            *(file for file in data if file.path in files),
            *(file for file in unreadable if barrier is not None and file.written_at < barrier),
        ]

    def _named(self, table: Table, path: str) -> _Manifest | set[str]:
        """A manifest, or the paths of those that a list has."""
        location = _location(table, path)
        with AvroFile[ManifestFile](table.io.new_input(location)) as file:
            is_list = "snapshot-id" in file.header.meta
        if is_list:
            return {_path(table, one.manifest_path) for one in read_manifest_list(table.io.new_input(location))}
        return self._manifest(table, ManifestFile.from_args(manifest_path=location))

    def _manifests_of(self, table: Table, snapshot: Snapshot) -> Sequence[_Manifest]:
        if snapshot.snapshot_id not in self._lists:
            self._lists[snapshot.snapshot_id] = [self._manifest(table, one) for one in snapshot.manifests(table.io)]
        return self._lists[snapshot.snapshot_id]

    def _manifest(self, table: Table, manifest: ManifestFile) -> _Manifest:
        if manifest.manifest_path not in self._manifests:
            files, removed, has_deletes = set(), set(), False
            for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=False):
                path = _path(table, entry.data_file.file_path)
                if entry.data_file.content != DataFileContent.DATA:
                    has_deletes = True
                    self._rows[path] = 1  # nobody knows of which rows it has values
                if entry.status != ManifestEntryStatus.DELETED:
                    files.add(path)
                elif entry.data_file.lower_bounds or entry.data_file.upper_bounds:
                    removed.add(path)
            self._manifests[manifest.manifest_path] = _Manifest(files, has_deletes, removed)
        return self._manifests[manifest.manifest_path]

    def _search(self, table: Table, paths: Iterable[str]) -> None:
        if new := [path for path in paths if path not in self._rows]:
            with ThreadPoolExecutor(SEARCHES) as pool:
                self._rows.update(zip(new, pool.map(self._counter(table), new), strict=True))

    def _counter(self, table: Table) -> Callable[[str], int]:
        """Counts the rows of a data file that match. Arrow reads only the columns of the condition, and of them only
        those parts whose statistics do not exclude it.
        """
        file_system, form, schema = _file_system(table), ds.ParquetFileFormat(), table.schema().as_arrow()
        condition = self._condition(schema)
        used = [field for field in schema if _is_about(condition, schema, field.name)]
        # statistics leave NaN out, so they would exclude parts with rows of it that match
        may_prune = not any(pa.types.is_floating(field.type) for field in used)

        def count(path: str) -> int:
            fragment = form.make_fragment(path, file_system)
            _check_names(table, fragment.physical_schema)
            dataset = ds.FileSystemDataset([fragment], schema, form, file_system)
            if may_prune:
                return int(dataset.count_rows(filter=condition))
            batches = dataset.to_batches(columns=[field.name for field in used], use_threads=False)
            return sum(pa.Table.from_batches([batch]).filter(condition).num_rows for batch in batches)

        return count


def _is_about(condition: pc.Expression, schema: pa.Schema, column: str) -> bool:
    """Whether a condition on the columns of a schema is about this one."""
    others = schema.remove(schema.get_field_index(column))
    try:
        ds.dataset(others.empty_table()).scanner(filter=condition)
    except pa.ArrowInvalid:
        return True
    return False


def has_catalog(settings: Settings) -> bool:
    """Whether there are tables, by the settings: those of Bronze name a catalog, or pyiceberg has settings of it."""
    return "table_catalog" in settings.model_fields_set or _catalog_settings(settings) is not None


def open_tables(settings: Settings) -> Tables:
    """The tables of the catalog that the settings name. Raises `Unavailable`, `NotPermitted` and `Misconfigured`."""
    prefix = f"PYICEBERG_CATALOG__{settings.table_catalog.upper()}__"
    uri = (_catalog_settings(settings) or {}).get("uri")
    if uri is not None and "://" not in str(uri):
        raise Misconfigured(f"{prefix}URI: {uri!r} is no address of a catalog, such as https://catalog.example.com")
    try:
        catalog = load_catalog(settings.table_catalog)
    except _REFUSALS as error:
        raise _not_permitted(error) from error
    except (OSError, RESTError) as error:  # a RequestException is an OSError
        raise Unavailable(Outage.UNAVAILABLE, f"the catalog of the tables does not answer: {error}") from error
    except Exception as error:
        raise Misconfigured(
            f"the catalog {settings.table_catalog} of Iceberg cannot be opened: {error}. Its settings are {prefix}URI "
            "and others (docs/tables.md)"
        ) from error
    return Tables(catalog, settings.table_namespace)


def _catalog_settings(settings: Settings) -> Mapping[str, Any] | None:
    return Config().get_catalog_config(settings.table_catalog)


def table_size(snapshot: Snapshot | None, snapshots: int) -> TableSize:
    """The size of a table at a snapshot, which is the last one of so many."""
    if snapshot is None:
        return TableSize()
    summary = snapshot.summary.additional_properties if snapshot.summary else {}
    files, size = (int(summary.get(name, 0)) for name in ("total-data-files", "total-files-size"))
    return TableSize(files, size, snapshots, snapshot.timestamp_ms / 1000)


def _summary(snapshot: Snapshot) -> Mapping[str, str]:
    if snapshot.summary is None:
        return {}
    return {"operation": snapshot.summary.operation.value, **snapshot.summary.additional_properties}


def _rows(snapshot: Snapshot | None) -> int:
    summary = snapshot.summary.additional_properties if snapshot and snapshot.summary else {}
    return int(summary.get("total-records", 0))


def _schema_update(table: Table, transaction: _Transaction, columns: pa.Schema) -> UpdateSchema | None:
    """The change after which a table can take all of these columns, which is not made yet; None if it can do so now.
    Raises `Halted` if there is none, or if it lost one of them.
    """
    _check_not_lost(table, columns)
    update = transaction.update_schema()
    cannot = f"the table {'.'.join(table.name())} cannot take the columns of the source {table.name()[-1]}"
    try:
        schema = update.union_by_name(columns)._apply()  # noqa: SLF001 it alone says what a commit would do
    except (TypeError, ValueError, ValidationError) as error:
        raise Halted(f"{cannot}: {error}") from error
    for field in table.schema().fields:
        if field.required and field.name not in columns.names:
            raise Halted(f"{cannot}: its column {field.name} must not be null, and Bronze has no value for it")
    return None if schema == table.schema() else update


def _check_not_lost(table: Table, columns: pa.Schema) -> None:
    """Raises `Halted` if one of its older schemas had one of these columns that a table lacks. `bronze table` never
    removes one. A column that is added under the name of an old one has another id: older rows have null in it.
    """
    schema = table.schema()
    had = {name: old.find_field(name).field_id for old in table.metadata.schemas for name in old.column_names}
    wanted = assign_fresh_schema_ids(_pyarrow_to_schema_without_ids(columns)).column_names
    for name in sorted(had.keys() & set(wanted) - set(schema.column_names), key=lambda lost: lost.count(".")):
        new_name = schema.find_column_name(had[name])
        raise Halted(
            f"the table {'.'.join(table.name())} lacks the column {name}, which it had: somebody "
            f"{f'renamed it to {new_name}' if new_name else 'removed it'}. Nothing is committed to it before you put "
            "the column back (docs/tables.md, Lost columns)"
        )


def _check_not_repeated(table: Table) -> None:
    """Raises `Halted` if pyiceberg would repeat a refused commit."""
    retries = table.properties.get(TableProperties.COMMIT_NUM_RETRIES)
    if retries != RETRIES:
        raise Halted(
            f"the table {'.'.join(table.name())} has the property {TableProperties.COMMIT_NUM_RETRIES}={retries}: with "
            f"it, a refused commit would be repeated, and rows would be there twice. Set it to {RETRIES}"
        )


def _commit(transaction: Transaction) -> None:
    """Raises `Conflict` if another commit came first."""
    try:
        transaction.commit_transaction()
    except CommitFailedException as error:
        raise Conflict(str(error)) from error


def _set_position(transaction: Transaction, position: str | None) -> Snapshot:
    """Let the table's property say the position, too, if it is known. Returns the snapshot of the transaction."""
    # it was just added, and is in the table if the commit succeeds
    snapshot = cast(Snapshot, transaction.table_metadata.current_snapshot())
    if position is not None:
        transaction.set_properties({POSITION: position, POSITION_SNAPSHOT: str(snapshot.snapshot_id)})
    return snapshot


def _grouped(table: Table, partitions: Iterable[list[tuple[int, FileScanTask]]], target_bytes: int) -> list[FileGroup]:
    """Groups of about the target size of the files of each partition, which come with the time of their first row."""
    groups: list[FileGroup] = []
    for files in partitions:
        group: list[FileScanTask] = []
        group_bytes = 0
        # in the order of their rows, so that the ranges of the new files overlap as little as possible
        for _, scan in sorted(files, key=lambda each: (each[0], each[1].file.file_path)):
            if group and group_bytes + scan.file.file_size_in_bytes > target_bytes:
                groups.append(FileGroup(table, group))
                group, group_bytes = [], 0
            group.append(scan)
            group_bytes += scan.file.file_size_in_bytes
        groups.append(FileGroup(table, group))
    return groups


def _read_together(scans: Sequence[FileScanTask]) -> Iterator[list[FileScanTask]]:
    """Files that are read at the same time, in the given order."""
    files: list[FileScanTask] = []
    for scan in scans:
        if files and (len(files) == READS or sum(one.file.file_size_in_bytes for one in [*files, scan]) > READ_BYTES):
            yield files
            files = []
        files.append(scan)
    yield files


def _sort_keys(table: Table) -> list[tuple[str, str]]:
    """The sort order of a table for Arrow; what sorts by a transform of a column is left out."""
    names = {SortDirection.ASC: "ascending", SortDirection.DESC: "descending"}
    return [
        (str(table.schema().find_column_name(field.source_id)), names[field.direction])
        for field in table.sort_order().fields
        if isinstance(field.transform, IdentityTransform)
    ] or [(RECEIVED_AT, "ascending")]


def _time_us(bounds: Mapping[int, bytes] | None, column: int) -> int | None:
    """The bound of a column with times, in microseconds since 1970; None if it is not known."""
    value = (bounds or {}).get(column)
    return None if value is None else int(from_bytes(TimestamptzType(), value))


def _only_appends(snapshot: Snapshot) -> bool:
    return snapshot.summary is not None and snapshot.summary.operation == Operation.APPEND


def _hour(snapshot: Snapshot) -> int:
    return snapshot.timestamp_ms // 3_600_000


def _file_system(table: Table) -> pafs.FileSystem:
    if not isinstance(table.io, PyArrowFileIO):
        raise Halted(f"the files of the table {'.'.join(table.name())} cannot be listed by {type(table.io).__name__}")
    scheme, netloc, _ = PyArrowFileIO.parse_location(table.location(), table.io.properties)
    return table.io.fs_by_scheme(scheme, netloc)


def _path(table: Table, location: str) -> str:
    """A location as a path in the table's file system."""
    return PyArrowFileIO.parse_location(location, table.io.properties)[2]


def _location(table: Table, path: str) -> str:
    """The opposite of `_path`."""
    return f"{PyArrowFileIO.parse_location(table.location(), table.io.properties)[0]}://{path}"


def _folders(table: Table) -> list[str]:
    """The folders of a table that have its files: not all of its location, where another table could have its own."""
    return [f"{_path(table, table.location()).rstrip('/')}/{folder}/" for folder in FOLDERS]


def _check_own(table: Table, folders: Sequence[str], raw_data: str) -> None:
    raw = f"{raw_data.rstrip('/')}/"
    for folder in folders:
        if folder.startswith(raw) or raw.startswith(folder):
            raise Halted(
                f"the table {'.'.join(table.name())} is at {table.location()}, where raw data is: nothing was deleted"
            )


def _stored(table: Table, raw_data: str, without: Collection[int] = ()) -> tuple[list[StoredFile], set[str]]:
    """The files under the location of a table, and the paths of those that snapshots have. Raises `Halted` if raw data
    is there, or if the storage does not list what the snapshots have.
    """
    folders = _folders(table)
    _check_own(table, folders, raw_data)
    seen = {snapshot.snapshot_id: snapshot for snapshot in table.snapshots()}
    had = _files([one for one in seen.values() if one.snapshot_id not in without], table, folders)
    listed = _list(table, folders)
    if missing := had - {file.path for file in listed}:
        raise Halted(
            f"the storage does not list {len(missing)} files of the table {'.'.join(table.name())}, such as "
            f"{min(missing)}: nothing was deleted"
        )
    # a commit of the meantime may have files that were listed
    had |= _files([one for one in table.refresh().snapshots() if one.snapshot_id not in seen], table, folders)
    return listed, had


def _list(table: Table, folders: Sequence[str]) -> list[StoredFile]:
    """The files of folders. One without a time counts as new."""
    file_system, now = _file_system(table), dt.datetime.now(dt.UTC)
    return [
        StoredFile(file.path, file.size, file.mtime or now)
        for folder in folders
        for file in file_system.get_file_info(pafs.FileSelector(folder, allow_not_found=True, recursive=True))
        if file.type == pafs.FileType.File
    ]


def _files(snapshots: Sequence[Snapshot], table: Table, folders: Sequence[str]) -> set[str]:
    """The files in folders that snapshots have: lists of manifests, manifests, data and delete files."""
    manifests = {each.manifest_path: each for snapshot in snapshots for each in snapshot.manifests(table.io)}
    entries = (entry for each in manifests.values() for entry in each.fetch_manifest_entry(table.io))
    locations = {
        *(snapshot.manifest_list for snapshot in snapshots),
        *manifests,
        *(entry.data_file.file_path for entry in entries),
    }
    paths = {_path(table, location) for location in locations if location}
    return {path for path in paths if path.startswith(tuple(folders))}


def _has_values(manifest: _Manifest, files: set[str], known: set[str]) -> bool:
    """Whether a manifest has bounds of columns of these files, or of a file that is not known."""
    return not files.isdisjoint(manifest.files) or not known.issuperset(manifest.removed)


def _check_names(table: Table, columns: pa.Schema) -> None:
    """Raises `Halted` if columns of a file have other names in the table: a condition would not find them."""
    for column in columns:
        number = (column.metadata or {}).get(b"PARQUET:field_id")
        name = table.schema().find_column_name(int(number)) if number else column.name
        if name not in {None, column.name}:
            raise Halted(
                f"the column {name} of the table {'.'.join(table.name())} is called {column.name} in older files: let "
                "another program write them again first"
            )


def _unless_unreadable(read: Callable[[str], _T], file: StoredFile) -> _T | None:
    """None if a file is not whole, or gone."""
    try:
        return read(file.path)
    except (pa.ArrowInvalid, FileNotFoundError, ValueError, EOFError):
        return None


def _position(table: Table) -> str | None:
    return _find_position(table)[0]


def _find_position(table: Table) -> tuple[str | None, list[int]]:
    """The position of the nearest snapshot that has one, from the current one back: other writers' snapshots have none,
    and leave our rows as they are. And the snapshots that lead there.

    If the one that had it has expired, the table's property still names it, and belongs to the table as it is now if
    the oldest snapshot that is left came directly after it.
    """
    passed: list[int] = []
    snapshot = table.current_snapshot()
    while snapshot is not None:
        passed.append(snapshot.snapshot_id)
        if snapshot.summary is not None and (position := snapshot.summary.additional_properties.get(POSITION)):
            return position, passed
        parent = snapshot.parent_snapshot_id
        if parent is None:
            break
        snapshot = table.snapshot_by_id(parent)
        if snapshot is None and table.properties.get(POSITION_SNAPSHOT) == str(parent):
            return table.properties.get(POSITION), passed
    return None, passed


def _not_permitted(error: Exception) -> NotPermitted:
    return NotPermitted(f"the catalog of the tables refuses the credentials, or has not given them this right: {error}")


@contextmanager
def _failures() -> Iterator[None]:
    """Turns the errors of catalog and storage into `Unavailable`, and into `NotPermitted` if the catalog refuses."""
    try:
        yield
    except (BronzeError, Conflict):
        raise
    except _REFUSALS as error:
        raise _not_permitted(error) from error
    except NoSuchTableError as error:
        raise Dropped(f"the table is gone: {error}") from error
    except Exception as error:
        raise Unavailable(
            Outage.UNAVAILABLE, f"the catalog or the storage of the tables failed: {type(error).__name__}: {error}"
        ) from error
