"""Iceberg tables: it alone imports pyiceberg.

Each commit requires the snapshot that was read before it as its parent. So one of two commits that were prepared from
the same state is refused. A commit whose outcome is unknown does no harm either: it lands before the next one, which is
then refused, or never. pyiceberg would repeat a refused commit on the newer snapshot, whose rows it does not look at:
the property of the table that allows this has to be 0.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, cast

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import CommitFailedException, NoSuchTableError, RESTError, TableAlreadyExistsError
from pyiceberg.table import Table, TableProperties
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.transforms import DayTransform, IdentityTransform

from bronze.errors import BronzeError, Halted, Misconfigured, Outage, Unavailable
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


class Conflict(Exception):
    """Another commit came first; nothing of this one is in the table."""


@dataclass(frozen=True, slots=True)
class TableSize:
    """The data files of a table and their bytes, and when its last snapshot was made, in seconds since 1970; None
    without one.
    """

    files: int = 0
    bytes: int = 0
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
    def has_rows(self) -> bool:
        """Whether a row was ever committed to it."""
        return self.snapshot is not None


class Tables:
    """The tables of a namespace. All methods block: call them in a thread."""

    def __init__(self, catalog: Catalog, namespace: str) -> None:
        self._catalog = catalog
        self._namespace = namespace

    def open(self, name: str, columns: pa.Schema) -> None:
        """Create a table, or add the columns that it lacks. Raises `Unavailable`, and `Halted` if its columns cannot
        take these.
        """
        with _failures():
            self._catalog.create_namespace_if_not_exists(self._namespace)
            with suppress(TableAlreadyExistsError):
                if not self._catalog.table_exists(self._id(name)):
                    self._create(name, columns)
            table = self._catalog.load_table(self._id(name))
            try:
                with table.update_schema() as update:
                    update.union_by_name(columns)
            except (TypeError, ValueError) as error:  # pyiceberg's ValidationError is a ValueError
                raise Halted(
                    f"the table {self._namespace}.{name} cannot take the columns of the source {name}: {error}"
                ) from error

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
            return TableState(table, _position(table))

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
        `Halted` if pyiceberg would repeat a refused commit.
        """
        retries = state.table.properties.get(TableProperties.COMMIT_NUM_RETRIES)
        if retries != RETRIES:
            raise Halted(
                f"the table {'.'.join(state.table.name())} has the property "
                f"{TableProperties.COMMIT_NUM_RETRIES}={retries}: with it, a refused commit would be repeated, and "
                f"rows would be there twice. Set it to {RETRIES}"
            )
        transaction = state.table.transaction()
        with _failures():
            transaction.append(rows, snapshot_properties={POSITION: position, **summary})
            # it was just added, and is in the table if the commit succeeds
            snapshot = cast(Snapshot, transaction.table_metadata.current_snapshot())
            transaction.set_properties({POSITION: position, POSITION_SNAPSHOT: str(snapshot.snapshot_id)})
            try:
                transaction.commit_transaction()
            except CommitFailedException as error:
                raise Conflict(str(error)) from error
        return snapshot

    def _id(self, name: str) -> tuple[str, str]:
        return (self._namespace, name)


def open_tables(settings: Settings) -> Tables:
    """The tables of the catalog that the settings name. Raises `Unavailable` and `Misconfigured`."""
    try:
        catalog = load_catalog(settings.table_catalog)
    except (OSError, RESTError) as error:  # a RequestException is an OSError
        raise Unavailable(Outage.UNAVAILABLE, f"the catalog of the tables does not answer: {error}") from error
    except Exception as error:
        raise Misconfigured(
            f"the catalog {settings.table_catalog} of Iceberg cannot be opened: {error}. Its settings are "
            f"PYICEBERG_CATALOG__{settings.table_catalog.upper()}__URI and others (docs/tables.md)"
        ) from error
    return Tables(catalog, settings.table_namespace)


def table_size(snapshot: Snapshot | None) -> TableSize:
    """The size of a table at a snapshot."""
    if snapshot is None:
        return TableSize()
    summary = snapshot.summary.additional_properties if snapshot.summary else {}
    files, size = (int(summary.get(name, 0)) for name in ("total-data-files", "total-files-size"))
    return TableSize(files, size, snapshot.timestamp_ms / 1000)


def _position(table: Table) -> str | None:
    """The position of the nearest snapshot that has one, from the current one back: other writers' snapshots have none,
    and leave our rows as they are.

    If the one that had it has expired, the table's property still names it, and belongs to the table as it is now if
    the oldest snapshot that is left came directly after it.
    """
    snapshot = table.current_snapshot()
    while snapshot is not None:
        if snapshot.summary is not None and (position := snapshot.summary.additional_properties.get(POSITION)):
            return position
        parent = snapshot.parent_snapshot_id
        if parent is None:
            return None
        snapshot = table.snapshot_by_id(parent)
        if snapshot is None and table.properties.get(POSITION_SNAPSHOT) == str(parent):
            return table.properties.get(POSITION)
    return None


@contextmanager
def _failures() -> Iterator[None]:
    """Turns the errors of catalog and storage into `Unavailable`."""
    try:
        yield
    except (BronzeError, Conflict):
        raise
    except NoSuchTableError as error:
        raise Unavailable(Outage.UNAVAILABLE, f"the table is gone: {error}") from error
    except Exception as error:
        raise Unavailable(
            Outage.UNAVAILABLE, f"the catalog or the storage of the tables failed: {type(error).__name__}: {error}"
        ) from error
