"""Columns: the rows of Parquet and Arrow files as JSON records."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from bronze.errors import Refusal
from bronze.protocol.message import MESSAGE_BYTES_MAX
from bronze.publisher.formats import FileFormat, Record, SourceGetter, too_long, unreadable
from bronze.publisher.text_files import encoded
from bronze.records.arrow_json import json_values
from bronze.records.sources import FieldType

_ARROW_FILE = b"ARROW1"
#: Rows that are Python objects at once.
_ROWS = 1_000
#: Of each column: without it, all of a row group is in memory at once.
_BUFFER_BYTES = 2**20


@contextmanager
def _readable(file: str, form: FileFormat) -> Iterator[None]:
    """What the library cannot read is refused."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the file's, not its content's
            raise
        raise unreadable(file, Refusal.MALFORMED_JSON, f"is no {form} file that can be read: {error}") from error


def parquet(file: str, stream: BinaryIO, source: SourceGetter) -> Iterator[Record]:
    if not stream.seekable():
        raise unreadable(file, Refusal.UNSUPPORTED_MEDIA_TYPE, "cannot be read from its end, as Parquet is: save it")
    with (
        _readable(file, FileFormat.PARQUET),
        pyarrow.parquet.ParquetFile(stream, pre_buffer=False, buffer_size=_BUFFER_BYTES) as parquet,
    ):
        yield from _rows(file, parquet.schema_arrow, parquet.iter_batches(_ROWS, use_threads=False), source)


def arrow(file: str, stream: BinaryIO, source: SourceGetter) -> Iterator[Record]:
    """An IPC stream, or an IPC file, which begins with its name."""
    begin = stream.read(len(_ARROW_FILE)) if stream.seekable() else b""
    if begin:
        stream.seek(0)
    opening = pa.ipc.open_file if begin == _ARROW_FILE else pa.ipc.open_stream
    with _readable(file, FileFormat.ARROW), opening(stream) as ipc:
        batches = map(ipc.get_batch, range(ipc.num_record_batches)) if begin == _ARROW_FILE else ipc
        yield from _rows(file, ipc.schema, batches, source)


def _rows(file: str, schema: Any, batches: Iterator[Any], source: SourceGetter) -> Iterator[Record]:
    """The rows of record batches as JSON."""
    if len({*schema.names}) < len(schema.names):
        raise unreadable(file, Refusal.MALFORMED_JSON, "has two columns of one name")
    types = {field.name: field.type for field in source().fields}
    pieces = (batch.slice(begin, _ROWS) for batch in batches for begin in range(0, batch.num_rows, _ROWS))
    number = 1
    for piece in pieces:
        columns = {
            name: _values(column, types.get(name)) for name, column in zip(schema.names, piece.columns, strict=True)
        }
        for row in zip(*columns.values(), strict=True):
            line = encoded(dict(zip(columns, row, strict=True)))
            if len(line) > MESSAGE_BYTES_MAX:
                raise too_long(file, FileFormat.PARQUET.unit, number)
            yield number, line
            number += 1


def _values(column: Any, declared: FieldType | None) -> list[Any]:
    """A column's values as JSON has them: as the API has those of columnar bodies."""
    if pa.types.is_decimal(column.type) and declared in {FieldType.FLOAT64, FieldType.INT64}:
        column = _cast_or_leave(column, pa.float64() if declared is FieldType.FLOAT64 else pa.int64())
    return json_values(column)


def _cast_or_leave(column: Any, to: Any) -> Any:
    try:
        return column.cast(to)
    except pa.ArrowInvalid:  # what it cannot hold is sent as it is, and the API says what is wrong
        return column
