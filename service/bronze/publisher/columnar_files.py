"""Makes submissions of the rows of Parquet and Arrow files: Arrow streams with the file's own columns and values.

The API converts them as it converts any columnar body, so that a file has the same result however it is sent.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from bronze.errors import Refusal
from bronze.publisher.formats import FileFormat, unreadable, warn_of_no_classification
from bronze.records.arrow_cast import first_failing, is_encoded, storage
from bronze.records.arrow_json import json_values
from bronze.records.columnar_reading import FILE_START, Columns, read_file, read_parquet, read_stream
from bronze.records.sources import CLASSIFICATION_ID

#: Rows of text and lists with so many repeated values that they are expanded in parts.
_ROWS_EXPANDED = 1_000
#: Bytes at the end of what was read that are remembered.
_LAST_BYTES = 16

_to_json = msgspec.json.Encoder().encode


class _Stream(io.RawIOBase):
    """A stream that is only read forwards, and remembers its position and the bytes before it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._position = 0
        self._last = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        self._position += len(data)
        self._last = (self._last + data[-_LAST_BYTES:])[-_LAST_BYTES:]
        return data

    def tell(self) -> int:
        return self._position

    def last_bytes(self, count: int) -> bytes:
        return self._last[-count:] if count else b""


@contextmanager
def _readable(file: str, form: FileFormat) -> Iterator[None]:
    """Raises `Refused` for what the library cannot read."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # an error of the file system, not of the content
            raise
        raise unreadable(file, Refusal.UNREADABLE_BODY, f"is not a readable {form} file: {error}") from error


def bodies(
    file: str,
    stream: BinaryIO,
    form: FileFormat,
    *,
    records_max: int,
    bytes_max: int,
    classification_column: str | None = None,
) -> Iterator[tuple[int, bytes]]:
    """The rows of a file as Arrow streams, in order, each with its number of rows.

    A row that is larger than `bytes_max` becomes a stream of its own. Raises `Refused` for what cannot be read, after
    it has yielded the rows before it.
    """
    with _readable(file, form):
        schema, batches = _columns(file, stream, form)
        if len({*schema.names}) < len(schema.names):
            raise unreadable(file, Refusal.SCHEMA_VIOLATION, "has two columns with the same name")
        expanded: Iterator[pa.RecordBatch] = chain.from_iterable(map(_expanded, batches))
        if classification_column:
            if classification_column not in schema.names:
                warn_of_no_classification(file, classification_column)
            expanded = (_classified(rows, classification_column) for rows in expanded)
        yield from _packed(expanded, records_max, bytes_max)


@contextmanager
def columns(file: str, stream: BinaryIO, form: FileFormat) -> Iterator[Columns]:
    """The schema and the batches of a file, as they are. Raises `Refused` for what cannot be read."""
    with _readable(file, form):
        yield _columns(file, stream, form)


def _columns(file: str, stream: BinaryIO, form: FileFormat) -> Columns:
    if form is FileFormat.PARQUET:
        if not stream.seekable():
            raise unreadable(
                file,
                Refusal.UNSUPPORTED_MEDIA_TYPE,
                "cannot be read from its end, which Parquet needs: save the input as a file first",
            )
        return read_parquet(pa.PythonFile(stream, "r"))
    if stream.seekable():
        beginning = stream.read(len(FILE_START))
        stream.seek(0)
        if beginning == FILE_START:
            return read_file(pa.PythonFile(stream, "r"))
    forwards = _Stream(stream)
    return read_stream(pa.PythonFile(forwards, "r"), forwards.last_bytes)


def _expanded(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch without dictionaries, runs and views: each part of those would contain all of their values."""
    if not any(map(is_encoded, batch.schema.types)):
        yield batch
        return
    for start in range(0, batch.num_rows, _ROWS_EXPANDED):
        columns = batch.slice(start, _ROWS_EXPANDED).columns
        yield pa.RecordBatch.from_arrays(list(map(storage, columns)), batch.schema.names)


def _classified(rows: pa.RecordBatch, column: str) -> pa.RecordBatch:
    """The rows with the values of a column, as text, in `classification_id`; where it is null, that stays."""
    names = rows.schema.names
    if column not in names:
        return rows
    ids = _texts(rows.column(column))
    if CLASSIFICATION_ID not in names:
        return rows.append_column(CLASSIFICATION_ID, ids)
    ids = pc.coalesce(ids, _texts(rows.column(CLASSIFICATION_ID)))
    return rows.set_column(names.index(CLASSIFICATION_ID), CLASSIFICATION_ID, ids)


def _texts(column: pa.Array) -> pa.Array:
    return pa.array(map(_text, json_values(column)), pa.string())


def _text(value: Any) -> str | None:
    if value is None or value == "" or isinstance(value, (list, dict)):
        return None
    return value if isinstance(value, str) else _to_json(value).decode()


def _packed(batches: Iterator[pa.RecordBatch], records_max: int, bytes_max: int) -> Iterator[tuple[int, bytes]]:
    pending: list[pa.RecordBatch] = []
    records = size = 0

    def finish() -> tuple[int, bytes]:
        nonlocal records, size
        packed = records, _stream_of(pending)
        pending.clear()
        records = size = 0
        return packed

    try:
        for batch in batches:
            rest = batch
            while rest.num_rows:
                count, count_bytes = _rows_that_fit(rest, records_max - records, bytes_max - size)
                if pending and not count:
                    yield finish()
                    continue
                count = max(1, count)
                pending.append(rest.slice(0, count))
                records += count
                size += count_bytes
                rest = rest.slice(count)
    except (pa.ArrowException, OSError):
        if pending:
            yield finish()
        raise
    if pending:
        yield finish()


def _rows_that_fit(rows: pa.RecordBatch, records_max: int, bytes_max: int) -> tuple[int, int]:
    """How many of the first rows are within both bounds, and their size."""

    def size(count: int) -> int:
        return int(pa.ipc.get_record_batch_size(rows.slice(0, count)))

    count = min(rows.num_rows, records_max)
    if count and size(count) > bytes_max:
        count = first_failing(lambda count: size(count) > bytes_max, count)
    return count, size(max(1, count))


def _stream_of(batches: list[pa.RecordBatch]) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema.remove_metadata()) as writer:
        # one batch: the API would need a millisecond for each, and a file may have one per row
        writer.write_batch(pa.concat_batches(batches).replace_schema_metadata(None))
    return bytes(sink.getvalue())
