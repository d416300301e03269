"""The Parquet file of an object, written a row group at a time."""

from collections.abc import Mapping
from concurrent.futures import Executor, Future
from functools import partial
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

#: Readers skip by row group: small enough to skip, large enough to compress.
ROW_GROUP_ROWS = 32 * 1024

#: Columns with a value for nearly each row, as timestamps have: a dictionary only costs (13 % of the bytes, measured).
_NO_DICTIONARY = frozenset({"_payload", "_record_index", "classification_id"})


class FileWriter:
    """An object's file as it is written, a row group at a time: of its rows, no more than one group's are held.

    With `aside`, a group is written there while the next one is made, and two groups' rows are held. `changed` are
    other options of PyArrow's writer, to compare.
    """

    def __init__(self, columns: pa.Schema, aside: Executor | None = None, **changed: Any) -> None:
        # docs/performance.md has what was compared: what is not here made objects larger, or writing slower
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
            "store_schema": False,  # Parquet's own types say it all; Arrow's beside them are a fifth of a small object
            **changed,
        }
        self._group_rows: int = options.pop("row_group_size")
        self._columns = columns
        self._sink = BytesIO()
        self._writer = pq.ParquetWriter(self._sink, columns, **options)
        self._aside = aside
        self._under_way: Future[None] | None = None
        self._waiting: list[pa.RecordBatch] = []
        self._rows = 0
        self._begun = False

    def add(self, batch: pa.RecordBatch) -> None:
        self._waiting.append(batch)
        self._rows += batch.num_rows
        if self._rows >= self._group_rows:
            self._write(self._rows - self._rows % self._group_rows)

    def _write(self, rows: int) -> None:
        table = pa.Table.from_batches(self._waiting, self._columns)
        write = partial(self._writer.write_table, table.slice(0, rows), row_group_size=self._group_rows)
        self._wait()
        if self._aside:
            self._under_way = self._aside.submit(write)
        else:
            write()
        self._waiting = table.slice(rows).to_batches()
        self._rows -= rows
        self._begun = True

    def _wait(self) -> None:
        """Until the group before is written."""
        if self._under_way:
            self._under_way.result()
            self._under_way = None

    def finish(self, metadata: Mapping[bytes, bytes]) -> bytes:
        """The whole file; one without rows has its columns all the same."""
        if self._rows or not self._begun:
            self._write(self._rows)
        self._wait()
        self._writer.add_key_value_metadata(metadata)
        self._writer.close()
        return self._sink.getvalue()
