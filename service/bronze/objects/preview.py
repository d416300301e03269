"""The first rows of an object, to look at: only a few pages of the object are read."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

ROWS_MAX = 20
COLUMNS_MAX = 24
CELL_CHARS_MAX = 200
#: Bytes per request: about a page of a column.
READ_BYTES = 256 * 2**10
#: Columns that have the same value in all rows, or are as long as the record itself.
_OMITTED = frozenset({"file_path", "_origin", "_received_at", "_trace_id", "_schema_version", "_payload"})


class NoPreview(Exception):
    """The rows of an object cannot be read."""


@dataclass(frozen=True, slots=True)
class Preview:
    """Rows of text; None if a record has no value."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | None]]


def first_rows(file: BinaryIO) -> Preview:
    """The declared columns of the first rows. Raises `NoPreview` if they cannot be read."""
    try:
        with pq.ParquetFile(file, buffer_size=READ_BYTES, pre_buffer=False) as parquet:
            columns = [name for name in parquet.schema_arrow.names if name not in _OMITTED][:COLUMNS_MAX]
            batches = parquet.iter_batches(ROWS_MAX, row_groups=[0], columns=columns, use_threads=False)
            rows = next(batches).to_pylist() if parquet.metadata.num_rows else []
    except (pa.ArrowException, OSError) as error:
        raise NoPreview(f"Its rows cannot be shown: {error}.") from error
    return Preview(columns, [[_text(row[name]) for name in columns] for row in rows])


def _text(value: object) -> str | None:
    if value is None:
        return None
    text = base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
    return text if len(text) <= CELL_CHARS_MAX else f"{text[:CELL_CHARS_MAX]}…"
