"""The Parquet file of an object, written row group by row group."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Executor, Future
from functools import cache, partial
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

#: Readers skip whole row groups: small enough to be skipped, large enough to compress well.
ROW_GROUP_ROWS = 32 * 1024

#: Columns with different values in nearly all rows, as timestamps: a dictionary adds 13 % of the bytes (measured).
_NO_DICTIONARY = frozenset({"_payload", "_record_index", "classification_id"})


@cache
def _leaves(columns: pa.Schema) -> Sequence[tuple[str, str | None]]:
    """The path in the file of each column without children, and the name of its column if it has floats."""
    sink = BytesIO()
    pq.write_table(columns.empty_table(), sink)
    leaves = map(pq.ParquetFile(sink).schema.column, range(len(pq.ParquetFile(sink).schema)))
    names = ((leaf.path, leaf.path.partition(".")[0], leaf.physical_type) for leaf in leaves)
    return [(path, name if kind in {"FLOAT", "DOUBLE"} else None) for path, name, kind in names]


def _has_nan(column: pa.Array) -> bool:
    kind = column.type
    if pa.types.is_map(kind):
        column = column.cast(pa.list_(pa.struct([kind.key_field, kind.item_field])))
    if pa.types.is_struct(kind):
        return any(map(_has_nan, column.flatten()))
    if pa.types.is_nested(kind):
        return _has_nan(pc.list_flatten(column))
    return pa.types.is_floating(kind) and pc.any(pc.is_nan(column)).as_py() is True


class FileWriter:
    """Writes an object's file row group by row group, with the rows of at most one group in memory.

    With an `executor`, a group is written there while the next one is collected, and the rows of two groups are in
    memory. `changed_options` replace options of PyArrow's writer, for benchmarks.

    `nan_columns` have no minimum and maximum: these leave NaN out, so that readers would skip rows that match `<> 1`.
    `nan_columns_found` are those that have had a NaN so far.
    """

    def __init__(
        self,
        columns: pa.Schema,
        executor: Executor | None = None,
        nan_columns: AbstractSet[str] = frozenset(),
        **changed_options: Any,
    ) -> None:
        # docs/performance.md lists the options that were compared; others made objects larger or writing slower
        options = {
            "row_group_size": ROW_GROUP_ROWS,
            "compression": "zstd",
            "use_dictionary": [
                field.name
                for field in columns
                if field.name not in _NO_DICTIONARY and not pa.types.is_timestamp(field.type)
            ],
            "write_statistics": [path for path, name in _leaves(columns) if name not in nan_columns],
            "write_page_index": True,
            "store_schema": False,  # Parquet's types suffice; Arrow's schema would be a fifth of a small object
            **changed_options,
        }
        self._group_rows: int = options.pop("row_group_size")
        self._columns = columns
        self._sink = BytesIO()
        self._metadata: list[pq.FileMetaData] = []
        self._parquet = pq.ParquetWriter(self._sink, columns, metadata_collector=self._metadata, **options)
        self._executor = executor
        self._write_in_progress: Future[None] | None = None
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._has_groups = False
        self._floating = [name for _, name in _leaves(columns) if name is not None]
        self.nan_columns_found: set[str] = set()

    def add(self, batch: pa.RecordBatch) -> None:
        for name in self._floating:
            if name not in self.nan_columns_found and _has_nan(batch.column(name)):
                self.nan_columns_found.add(name)
        self._pending.append(batch)
        self._pending_rows += batch.num_rows
        if self._pending_rows >= self._group_rows:
            self._write(self._pending_rows - self._pending_rows % self._group_rows)

    def _write(self, rows: int) -> None:
        table = pa.Table.from_batches(self._pending, self._columns)
        write = partial(self._parquet.write_table, table.slice(0, rows), row_group_size=self._group_rows)
        self._wait()
        if self._executor:
            self._write_in_progress = self._executor.submit(write)
        else:
            write()
        self._pending = table.slice(rows).to_batches()
        self._pending_rows -= rows
        self._has_groups = True

    def _wait(self) -> None:
        """Wait until the previous group is written."""
        if self._write_in_progress:
            self._write_in_progress.result()
            self._write_in_progress = None

    def finish(self, metadata: Mapping[bytes, bytes]) -> tuple[bytes, pq.FileMetaData]:
        """The complete file, and the statistics in its footer. A file without rows still has its columns."""
        if self._pending_rows or not self._has_groups:
            self._write(self._pending_rows)
        self._wait()
        self._parquet.add_key_value_metadata(metadata)
        self._parquet.close()
        return self._sink.getvalue(), self._metadata[0]
