"""Reads the rows of Parquet and Arrow files as JSON records."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from bronze.errors import Refusal
from bronze.protocol.message import MESSAGE_BYTES_MAX
from bronze.publisher.formats import FileFormat, Record, SourceGetter, too_long, unreadable
from bronze.publisher.text_files import json_line
from bronze.records.arrow_json import json_values
from bronze.records.fields import FieldType

_ARROW_FILE = b"ARROW1"
#: Rows that are held as Python objects at the same time.
_ROWS = 1_000
#: Read buffer of each column. Without a bound, a whole row group would be in memory.
_BUFFER_BYTES = 2**20


@contextmanager
def _readable(file: str, form: FileFormat) -> Iterator[None]:
    """Raises `Refused` for what the library cannot read."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # an error of the file system, not of the content
            raise
        raise unreadable(file, Refusal.MALFORMED_JSON, f"is not a readable {form} file: {error}") from error


def parquet(file: str, stream: BinaryIO, source: SourceGetter) -> Iterator[Record]:
    if not stream.seekable():
        raise unreadable(
            file,
            Refusal.UNSUPPORTED_MEDIA_TYPE,
            "cannot be read from its end, which Parquet needs: save the input as a file first",
        )
    with (
        _readable(file, FileFormat.PARQUET),
        pyarrow.parquet.ParquetFile(stream, pre_buffer=False, buffer_size=_BUFFER_BYTES) as parquet,
    ):
        yield from _rows(file, parquet.schema_arrow, parquet.iter_batches(_ROWS, use_threads=False), source)


def arrow(file: str, stream: BinaryIO, source: SourceGetter) -> Iterator[Record]:
    """The rows of an IPC stream or an IPC file. Only a file begins with the format's name."""
    beginning = stream.read(len(_ARROW_FILE)) if stream.seekable() else b""
    if beginning:
        stream.seek(0)
    is_file = beginning == _ARROW_FILE
    open_ipc = pa.ipc.open_file if is_file else pa.ipc.open_stream
    with _readable(file, FileFormat.ARROW), open_ipc(stream) as ipc:
        batches = map(ipc.get_batch, range(ipc.num_record_batches)) if is_file else ipc
        yield from _rows(file, ipc.schema, batches, source)


def _rows(file: str, schema: Any, batches: Iterator[Any], source: SourceGetter) -> Iterator[Record]:
    """The rows of record batches as JSON."""
    if len({*schema.names}) < len(schema.names):
        raise unreadable(file, Refusal.MALFORMED_JSON, "has two columns with the same name")
    types = {field.name_in_records: field.type for field in source().fields}
    slices = (batch.slice(start, _ROWS) for batch in batches for start in range(0, batch.num_rows, _ROWS))
    number = 1
    for rows in slices:
        columns = {
            name: _values(column, types.get(name)) for name, column in zip(schema.names, rows.columns, strict=True)
        }
        for row in zip(*columns.values(), strict=True):
            line = json_line(dict(zip(columns, row, strict=True)))
            if len(line) > MESSAGE_BYTES_MAX:
                raise too_long(file, FileFormat.PARQUET.unit, number)
            yield number, line
            number += 1


def _values(column: Any, declared: FieldType | None) -> list[Any]:
    """A column's values as JSON values, converted as the API converts those of columnar bodies."""
    if pa.types.is_decimal(column.type) and declared in {FieldType.FLOAT64, FieldType.INT64}:
        column = _cast_or_leave(column, pa.float64() if declared is FieldType.FLOAT64 else pa.int64())
    return json_values(column)


def _cast_or_leave(column: Any, target: Any) -> Any:
    try:
        return column.cast(target)
    except pa.ArrowInvalid:  # values that do not fit the type are sent unchanged, and the API says what is wrong
        return column
