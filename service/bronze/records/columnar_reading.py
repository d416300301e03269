"""Reads Parquet files, Arrow IPC streams and Arrow IPC files in batches of bounded size.

Each function returns the schema and the batches, which are valid. What is no such data, or is incomplete, raises
`pa.ArrowException` or `OSError`, as PyArrow does.
"""

from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet as pq

from bronze.records.arrow_cast import is_readable, outside_calendar, storage

#: The size of the batches.
BATCH_BYTES = 4 * 2**20
BATCH_ROWS_MAX = 8 * 2**10
#: The read buffer of a Parquet file, and the limits of the texts and lists in its footer.
READ_BYTES = 64 * 2**10
FOOTER_TEXT_BYTES_MAX = 16 * 2**20
FOOTER_ITEMS_MAX = 1_000_000
#: The end-of-stream marker of an Arrow IPC stream; streams before Arrow 0.15 end with its last four bytes.
STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
#: The microseconds from 1970 that nanoseconds in 64 bits can hold.
_INT96_US_MAX = (2**63 - 1) // 1000
#: How much of a name or type an error shows, in characters.
_SHOWN_MAX = 60
#: The first bytes of an Arrow IPC file.
FILE_START = b"ARROW1"

Columns = tuple[pa.Schema, Iterator[pa.RecordBatch]]
#: Is given the number of rows before they are read, and may raise an error.
RowsCheck = Callable[[int], None]


def _any_number(_rows: int) -> None:
    pass


def read_parquet(file: pa.NativeFile, check_rows: RowsCheck = _any_number) -> Columns:
    reader = _parquet(file)
    check_rows(reader.metadata.num_rows)
    groups = [reader.metadata.row_group(number) for number in range(reader.metadata.num_row_groups)]
    step = min((_rows_at_once(group.total_byte_size, group.num_rows) for group in groups), default=1)
    columns = map(reader.metadata.schema.column, range(reader.metadata.num_columns))
    if int96 := [column.path for column in columns if column.physical_type == "INT96"]:
        reader = _parquet(file, _int96_unit(file, int96, step))

    def batches() -> Iterator[pa.RecordBatch]:
        rows = 0
        for batch in reader.iter_batches(batch_size=step, use_threads=False):
            batch.validate(full=True)
            rows += batch.num_rows
            yield batch
        if rows != reader.metadata.num_rows:
            raise pa.ArrowInvalid(f"it has {rows} rows, but its footer says {reader.metadata.num_rows}")

    return _checked(reader.schema_arrow), batches()


def _parquet(file: pa.NativeFile, int96_unit: str | None = None) -> pq.ParquetFile:
    return pq.ParquetFile(
        file,
        pre_buffer=False,
        buffer_size=READ_BYTES,
        thrift_string_size_limit=FOOTER_TEXT_BYTES_MAX,
        thrift_container_size_limit=FOOTER_ITEMS_MAX,
        page_checksum_verification=True,
        coerce_int96_timestamp_unit=int96_unit,
    )


def _int96_unit(file: pa.NativeFile, columns: list[str], step: int) -> str:
    """The unit in which the INT96 times of a file (days and nanoseconds) are unaltered.

    Nanoseconds, unless a time is beyond the years 1677 to 2262, which they can hold: PyArrow would make another time of
    it. Raises `ArrowInvalid` if there is no such unit.
    """
    readers = [
        _parquet(file, unit).iter_batches(step, columns=columns, use_threads=False) for unit in ("s", "us", "ns")
    ]
    beyond: str | None = None
    exact: str | None = None
    for batches in zip(*readers, strict=True):
        for column in range(batches[0].num_columns):
            name = batches[0].schema.field(column).name
            for seconds, microseconds, nanoseconds in zip(
                *map(_times, (b.column(column) for b in batches)), strict=True
            ):
                if pc.any(outside_calendar(seconds)).as_py():
                    raise pa.ArrowInvalid(f"column {name}: a time (INT96) is outside the years 1 to 9999")
                us, ns = microseconds.cast(pa.int64()), nanoseconds.cast(pa.int64())
                if pc.any(pc.greater(pc.abs(us), _INT96_US_MAX)).as_py():
                    beyond = name
                # right also where nanoseconds overflow, since both sides do
                if pc.any(pc.not_equal(ns, pc.multiply(us, 1000))).as_py():
                    exact = name
    if beyond and exact:
        raise pa.ArrowInvalid(
            f"column {beyond} has times (INT96) before 1677 or after 2262, and column {exact} times of nanoseconds, "
            "which cannot be read together: write timestamps of microseconds (INT64)"
        )
    return "us" if beyond else "ns"


def _times(column: pa.Array) -> list[pa.Array]:
    """The columns of times in a column of any depth."""
    column = storage(column)
    if pa.types.is_map(column.type):
        column = column.cast(pa.list_(pa.struct([column.type.key_field, column.type.item_field])))
    if pa.types.is_struct(column.type):
        return [times for child in column.flatten() for times in _times(child)]
    if pa.types.is_nested(column.type):
        return _times(pc.list_flatten(column))
    return [column] if pa.types.is_timestamp(column.type) else []


def read_stream(
    file: pa.NativeFile, last_bytes: Callable[[int], bytes], check_rows: RowsCheck = _any_number
) -> Columns:
    """An IPC stream. `last_bytes` returns this number of bytes before the position of the file."""
    reader = pa.ipc.open_stream(file)

    def batches() -> Iterator[pa.RecordBatch]:
        end = file.tell()
        for batch in reader:
            yield batch
            end = file.tell()
        # a stream that was cut off between two batches reads as if it had ended
        if last_bytes(min(file.tell() - end, len(STREAM_END) + 1)) not in {STREAM_END, STREAM_END[4:]}:
            raise pa.ArrowInvalid("its end-of-stream marker is missing: close the writer before you send the body")
        if file.read(1):
            raise pa.ArrowInvalid("more bytes follow its end-of-stream marker: send one stream only")

    return _checked(reader.schema), _small(batches(), check_rows)


def read_file(file: pa.NativeFile) -> Columns:
    """An IPC file."""
    reader = pa.ipc.open_file(file)
    return _checked(reader.schema), _small(map(reader.get_batch, range(reader.num_record_batches)), _any_number)


def _checked(schema: pa.Schema) -> pa.Schema:
    for field in schema:
        if not is_readable(field.type):
            raise pa.ArrowInvalid(
                f"column {field.name[:_SHOWN_MAX]} is {str(field.type)[:_SHOWN_MAX]}, which cannot be read: send "
                "intervals of months, days and nanoseconds, or numbers"
            )
    return schema


def _small(batches: Iterable[pa.RecordBatch], check_rows: RowsCheck) -> Iterator[pa.RecordBatch]:
    rows = 0
    for batch in batches:
        rows += batch.num_rows
        check_rows(rows)
        batch.validate(full=True)
        step = _rows_at_once(batch.nbytes, batch.num_rows)
        yield from (batch.slice(start, step) for start in range(0, batch.num_rows, step))


def _rows_at_once(size: int, rows: int) -> int:
    """The number of rows in about `BATCH_BYTES`, if `rows` rows have `size` bytes."""
    return min(BATCH_ROWS_MAX, max(1, BATCH_BYTES * rows // max(1, size)))
