"""The Parquet file of an object, written row group by row group."""

from collections.abc import Mapping
from concurrent.futures import Executor, Future
from functools import partial
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

#: Readers skip whole row groups: small enough to be skipped, large enough to compress well.
ROW_GROUP_ROWS = 32 * 1024

#: Columns with different values in nearly all rows, as timestamps: a dictionary adds 13 % of the bytes (measured).
_NO_DICTIONARY = frozenset({"_payload", "_record_index", "classification_id"})


class FileWriter:
    """Writes an object's file row group by row group, with the rows of at most one group in memory.

    With an `executor`, a group is written there while the next one is collected, and the rows of two groups are in
    memory. `changed_options` replace options of PyArrow's writer, for benchmarks.
    """

    def __init__(self, columns: pa.Schema, executor: Executor | None = None, **changed_options: Any) -> None:
        # docs/performance.md lists the options that were compared; others made objects larger or writing slower
        options = {
            "row_group_size": ROW_GROUP_ROWS,
            "compression": "zstd",
            "use_dictionary": [
                field.name
                for field in columns
                if field.name not in _NO_DICTIONARY and not pa.types.is_timestamp(field.type)
            ],
            "write_statistics": True,
            "write_page_index": True,
            "store_schema": False,  # Parquet's types suffice; Arrow's schema would be a fifth of a small object
            **changed_options,
        }
        self._group_rows: int = options.pop("row_group_size")
        self._columns = columns
        self._sink = BytesIO()
        self._parquet = pq.ParquetWriter(self._sink, columns, **options)
        self._executor = executor
        self._write_in_progress: Future[None] | None = None
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._has_groups = False

    def add(self, batch: pa.RecordBatch) -> None:
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

    def finish(self, metadata: Mapping[bytes, bytes]) -> bytes:
        """The complete file. A file without rows still has its columns."""
        if self._pending_rows or not self._has_groups:
            self._write(self._pending_rows)
        self._wait()
        self._parquet.add_key_value_metadata(metadata)
        self._parquet.close()
        return self._sink.getvalue()
