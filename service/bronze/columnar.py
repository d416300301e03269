"""Columnar bodies, as a child process reads them: `python -m bronze.columnar`, which `foreign` starts.

A Parquet file of 300 bytes can declare gigabytes, and an Arrow stream can point anywhere: so such a body is read where
memory and CPU are limited, and where a crash is an answer. A job comes on standard input, the verdict goes to standard
output; the body and the spool that the messages go to are files that the parent opened.

A batch of the body becomes rows of `parquet.columnar_schema(source)`: the declared columns in their declared types,
each value unaltered, and what is not declared as a JSON object in `_payload`.
"""

import base64
import math
import os
import resource
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import IO, Any, NoReturn

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import types

from bronze.errors import Refused
from bronze.parquet import columnar_schema
from bronze.sources import CLASSIFICATION_ID, CLASSIFICATION_ID_CHARS_MAX, Source
from bronze.submission import (
    HEADER_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    MESSAGES_MAX,
    Kind,
    Slice,
    empty,
    packed,
    record_too_large,
    too_many_messages,
    violation,
)

PAYLOAD_BYTES_MAX = MESSAGE_BYTES_MAX - HEADER_BYTES_MAX
#: Rows of one message: so many empty ones would be small here, and large in the consumer.
PAYLOAD_ROWS_MAX = 16 * 2**10
#: What is taken of a body at once.
BATCH_BYTES = 4 * 2**20
BATCH_ROWS_MAX = 8 * 2**10
#: What of a file is read at once, and the bounds of its footer's texts and lists.
READ_BYTES = 64 * 2**10
FOOTER_TEXT_BYTES_MAX = 16 * 2**20
FOOTER_ITEMS_MAX = 1_000_000
#: All the runs that one body may name, in bytes of UTF-8.
CLASSIFICATIONS_BYTES_MAX = 16 * 2**20
SAID_CHARS_MAX = 300
#: An Arrow stream ends with this mark, an Arrow file begins with that one.
STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
FILE_MARK = b"ARROW1"
#: The exit codes where memory or the disk ran out: to say more would take what there is not.
EXIT_MEMORY = 7
EXIT_DISK = 8

_US = 10**6
_YEAR_1_DAYS, _YEAR_10000_DAYS = -719_162, 2_932_897
_DAY_US = 86_400 * _US


class Format(StrEnum):
    """The media types of columnar bodies."""

    ARROW_STREAM = "application/vnd.apache.arrow.stream"
    PARQUET = "application/vnd.apache.parquet"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to read, within what; `body` and `spool` are file descriptors."""

    source: Source
    format: Format
    body: int
    spool: int
    memory_bytes_max: int
    cpu_s_max: int


class Read(msgspec.Struct, frozen=True, tag=True):
    """The body is in the spool, as messages."""

    slices: list[Slice]
    classifications: list[str]
    unclassified: int


class Rejected(msgspec.Struct, frozen=True, tag=True):
    """What `Refused` says."""

    status: int
    kind: str
    detail: str
    members: dict[str, Any]


def main() -> NoReturn:
    """Do the job on standard input."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    confine(job)
    try:
        verdict: Read | Rejected = read(job)
    except Refused as error:
        verdict = Rejected(error.status, error.kind, error.detail, dict(error.members))
    except MemoryError:
        os._exit(EXIT_MEMORY)
    except OSError:
        traceback.print_exc()
        os._exit(EXIT_DISK)
    sys.stdout.buffer.write(msgspec.json.encode(verdict))
    sys.stdout.buffer.flush()
    os._exit(0)  # what the body left behind is not tidied up


def confine(job: Job) -> None:
    """Limits that cannot be raised again: memory, CPU, the spool's size; no core dump, and others first."""
    for limit, soft, hard in (
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_DATA, job.memory_bytes_max, job.memory_bytes_max),
        (resource.RLIMIT_CPU, job.cpu_s_max, job.cpu_s_max + 1),  # SIGXCPU at the first, which tells; then SIGKILL
        (resource.RLIMIT_FSIZE, MESSAGES_MAX * MESSAGE_BYTES_MAX, MESSAGES_MAX * MESSAGE_BYTES_MAX),
    ):
        resource.setrlimit(limit, (soft, hard))
    os.nice(5)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)


def read(job: Job) -> Read:
    """The body's records as messages in the spool; raises `Refused`, and `MemoryError` past the limit."""
    # by name: a file of its own, which begins at its beginning
    path = f"/proc/self/fd/{job.body}"
    size = os.fstat(job.body).st_size
    with _unreadable(job.format), _open(path, job.format) as file, os.fdopen(job.spool, "wb") as spool:
        names, batches = (_parquet if job.format is Format.PARQUET else _stream)(file, size)
        taken = Taken(job.source, names, spool)
        for batch in batches:
            taken.add(batch)
        return taken.finish()


@contextmanager
def _unreadable(form: Format) -> Iterator[None]:
    try:
        yield
    except pa.ArrowMemoryError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # of ours: the disk is full
        raise unreadable(form, str(error)) from error


def unreadable(form: Format, why: str) -> Refused:
    """A body that is no whole body of its form."""
    said = " ".join(why[:SAID_CHARS_MAX].split()).rstrip(".")
    return Refused(
        400,
        "unreadable-body",
        f"The body cannot be read as {form}: {said}. Check that it is whole, and written as its Content-Type says.",
    )


def _open(path: str, form: Format) -> pa.NativeFile:
    # a mapped stream's buffers are used where they lie; a mapped Parquet file has nothing to gain
    return pa.OSFile(path) if form is Format.PARQUET else pa.memory_map(path)


def _stream(file: pa.NativeFile, size: int) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    if file.read_at(len(FILE_MARK), 0) == FILE_MARK:
        raise unreadable(Format.ARROW_STREAM, "it is an Arrow file, and the stream is what is taken (ipc.new_stream)")
    reader = pa.ipc.open_stream(file)

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in reader:
            batch.validate(full=True)
            step = _rows_at_once(batch.nbytes, batch.num_rows)
            yield from (batch.slice(start, step) for start in range(0, batch.num_rows, step))
        # a stream that was cut between two batches reads as one that has ended
        if file.tell() != size or file.read_at(len(STREAM_END), max(0, size - len(STREAM_END))) != STREAM_END:
            raise unreadable(Format.ARROW_STREAM, "it does not end with its end-of-stream mark: close the writer")

    return reader.schema, batches()


def _parquet(file: pa.NativeFile, _: int) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    reader = pq.ParquetFile(
        file,
        pre_buffer=False,
        buffer_size=READ_BYTES,
        thrift_string_size_limit=FOOTER_TEXT_BYTES_MAX,
        thrift_container_size_limit=FOOTER_ITEMS_MAX,
        page_checksum_verification=True,
    )
    groups = [reader.metadata.row_group(number) for number in range(reader.metadata.num_row_groups)]
    step = min((_rows_at_once(group.total_byte_size, group.num_rows) for group in groups), default=1)

    def batches() -> Iterator[pa.RecordBatch]:
        rows = 0
        for batch in reader.iter_batches(batch_size=step, use_threads=False):
            batch.validate(full=True)
            rows += batch.num_rows
            yield batch
        if rows != reader.metadata.num_rows:
            raise unreadable(Format.PARQUET, f"it has {rows} rows, and its footer says {reader.metadata.num_rows}")

    return reader.schema_arrow, batches()


def _rows_at_once(size: int, rows: int) -> int:
    """How many rows are about `BATCH_BYTES`, where so many rows have such a size."""
    return min(BATCH_ROWS_MAX, max(1, BATCH_BYTES * rows // max(1, size)))


# --- a batch of the body becomes rows


class Taken:
    """The rows taken so far, and the messages that they are packed into; raises `Refused`."""

    def __init__(self, source: Source, foreign: pa.Schema, spool: IO[bytes]) -> None:
        self._source = source
        self._foreign = foreign
        self._schema = columnar_schema(source)
        self._packer = Packer(self._schema, spool)
        self._records = 0
        self._classifications: dict[str, None] = {}
        self._classifications_bytes = 0
        self._unclassified = 0
        names = foreign.names
        twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) != len(names) else []
        if twice:
            raise self._violation("there are several columns of that name", field=twice[0][:SAID_CHARS_MAX])
        for field in self._schema.names[:-2]:
            self._check_column(field)
        if CLASSIFICATION_ID in names and not _castable(self._given(CLASSIFICATION_ID), pa.string()):
            raise self._violation(f"Expected string, got {self._given(CLASSIFICATION_ID)}", field=CLASSIFICATION_ID)
        self._undeclared = [name for name in names if name not in self._schema.names[:-1]]

    def add(self, batch: pa.RecordBatch) -> None:
        """Take a batch that was validated."""
        if not batch.num_rows:
            return
        columns = [self._declared(batch, field) for field in self._schema.names[:-2]]
        rows = [*columns, self._classified(batch), self._payloads(batch)]
        self._packer.add(pa.RecordBatch.from_arrays(rows, schema=self._schema))
        self._records += batch.num_rows

    def finish(self) -> Read:
        if not self._records:
            raise empty("Send one row at least.")
        self._packer.finish()
        return Read(self._packer.slices, list(self._classifications), self._unclassified)

    def _given(self, name: str) -> pa.DataType:
        return _stored_type(self._foreign.field(name).type)

    def _check_column(self, name: str) -> None:
        wanted = self._schema.field(name)
        if name not in self._foreign.names:
            if not wanted.nullable:
                raise self._violation("the column is missing, and the field is required", field=name)
            return
        given = self._given(name)
        if not _castable(given, wanted.type):
            zone = " (without a zone)" if types.is_timestamp(given) and given.tz is None else ""
            raise self._violation(f"Expected {wanted.type}, got {str(given)[:SAID_CHARS_MAX]}{zone}", field=name)

    def _declared(self, batch: pa.RecordBatch, name: str) -> pa.Array:
        wanted = self._schema.field(name)
        if name not in self._foreign.names:
            return pa.nulls(batch.num_rows, wanted.type)
        column = self._cast(_stored(batch.column(name)), wanted)
        if not wanted.nullable and column.null_count:
            at = column.is_null().index(pa.scalar(value=True)).as_py()
            raise self._violation(f"Expected {wanted.type}, got null", at=at, field=name)
        beyond = _beyond_calendar(column)
        if beyond is not None:
            raise self._violation("Expected a time of the years 1 to 9999 in UTC", at=beyond, field=name)
        return column

    def _cast(self, column: pa.Array, wanted: pa.Field) -> pa.Array:
        try:
            return _cast(column, wanted.type)
        except pa.ArrowInvalid as error:
            at = _first(lambda count: _fails(column.slice(0, count), wanted.type), len(column))
            said = f"Expected {wanted.type}: {str(error)[:SAID_CHARS_MAX].rstrip('.')}"
            raise self._violation(said, at=at, field=wanted.name) from error

    def _classified(self, batch: pa.RecordBatch) -> pa.Array:
        if CLASSIFICATION_ID not in self._foreign.names:
            self._unclassified += batch.num_rows
            return pa.nulls(batch.num_rows, pa.string())
        column = self._cast(_stored(batch.column(CLASSIFICATION_ID)), self._schema.field(CLASSIFICATION_ID))
        length = pc.utf8_length(column)
        wrong = pc.or_(pc.equal(length, 0), pc.greater(length, CLASSIFICATION_ID_CHARS_MAX))
        if pc.any(wrong).as_py():
            at = wrong.index(pa.scalar(value=True)).as_py()
            raise self._violation(
                f"Expected 1 to {CLASSIFICATION_ID_CHARS_MAX} characters", at=at, field=CLASSIFICATION_ID
            )
        self._unclassified += column.null_count
        for name in column.unique().drop_null().to_pylist():
            if name not in self._classifications:
                self._classifications[name] = None
                self._classifications_bytes += len(name.encode())
        if self._classifications_bytes > CLASSIFICATIONS_BYTES_MAX:
            raise Refused(
                413,
                "body-too-large",
                f"The body's rows name runs of more than {CLASSIFICATIONS_BYTES_MAX} bytes. "
                "Send it as several submissions.",
                limit=CLASSIFICATIONS_BYTES_MAX,
            )
        return column

    def _payloads(self, batch: pa.RecordBatch) -> pa.Array:
        if not self._undeclared:
            return pa.nulls(batch.num_rows, pa.string())
        columns = [plain(batch.column(name)) for name in self._undeclared]
        encode = msgspec.json.Encoder().encode
        return pa.array(
            [encode(dict(zip(self._undeclared, row, strict=True))).decode() for row in zip(*columns, strict=True)],
            pa.string(),
        )

    def _violation(self, said: str, *, at: int | None = None, field: str | None = None) -> Refused:
        return violation(self._source, said, record=None if at is None else self._records + at, field=field)


def _stored_type(given: pa.DataType) -> pa.DataType:
    """What a type's values are of: an extension's storage, a dictionary's values, a run's value."""
    while True:
        if isinstance(given, pa.BaseExtensionType):
            given = given.storage_type
        elif types.is_dictionary(given) or types.is_run_end_encoded(given):
            given = given.value_type
        else:
            return given


def _stored(column: pa.Array) -> pa.Array:
    """The values of an extension, of a dictionary, of runs."""
    while True:
        if isinstance(column.type, pa.BaseExtensionType):
            column = column.storage
        elif types.is_dictionary(column.type):
            column = column.dictionary_decode()
        elif types.is_run_end_encoded(column.type):
            column = pc.run_end_decode(column)
        else:
            return column


def _is(given: pa.DataType, *kinds: Callable[[pa.DataType], Any]) -> bool:
    return any(kind(given) for kind in kinds)


_TEXT = (types.is_string, types.is_large_string, types.is_string_view)
_BYTES = (types.is_binary, types.is_large_binary, types.is_binary_view)
_NUMBER = (types.is_integer, types.is_floating)


def _castable(given: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether there are values of a type that another can hold unaltered; each value is looked at when it is cast."""
    if types.is_null(given):
        return True
    if types.is_string(wanted):
        return _is(given, *_TEXT, *_BYTES)
    if types.is_boolean(wanted):
        return _is(given, types.is_boolean)
    if types.is_integer(wanted):
        return _is(given, *_NUMBER, types.is_decimal)
    if types.is_floating(wanted):
        return _is(given, *_NUMBER)
    if types.is_timestamp(wanted):
        return _is(given, types.is_timestamp) and given.tz is not None
    if types.is_date(wanted):
        return _is(given, types.is_date)
    return _is(wanted, types.is_decimal) and _is(given, types.is_decimal, types.is_integer)


def _cast(column: pa.Array, wanted: pa.DataType) -> pa.Array:
    """Each value unaltered; raises `ArrowInvalid` where one is not."""
    given = column.type
    if types.is_binary_view(given):
        column = column.cast(pa.binary())
    if types.is_float16(given):
        column = column.cast(pa.float64())
    if types.is_decimal(wanted) and types.is_integer(given):
        column = column.cast(pa.decimal128(20, 0))  # which holds each integer; then only the value counts
    return column.cast(wanted)


def _fails(column: pa.Array, wanted: pa.DataType) -> bool:
    try:
        _cast(column, wanted)
    except pa.ArrowInvalid:
        return True
    return False


def _first(fails: Callable[[int], bool], count: int) -> int:
    """The index that the shortest prefix which fails ends at."""
    low, high = 1, count
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(middle) else (middle + 1, high)
    return low - 1


def _beyond_calendar(column: pa.Array) -> int | None:
    """The first time that has no date in UTC: Arrow could keep it, and most of its readers could not read it."""
    if types.is_timestamp(column.type):
        whole, per_day = column.cast(pa.int64()), _DAY_US
    elif types.is_date32(column.type):
        whole, per_day = column.cast(pa.int32()).cast(pa.int64()), 1
    else:
        return None
    beyond = pc.or_(pc.less(whole, _YEAR_1_DAYS * per_day), pc.greater_equal(whole, _YEAR_10000_DAYS * per_day))
    at: int = beyond.index(pa.scalar(value=True)).as_py()
    return at if at >= 0 else None


# --- what is not declared becomes JSON


def plain(column: pa.Array) -> list[Any]:
    """A column's values as JSON has them.

    Integers and finite floats are numbers; decimals are texts, and so are what JSON has no number for (`NaN`,
    `Infinity`, `-Infinity`), dates and times (RFC 3339, in UTC where there is a zone) and bytes (base64). A duration
    is a number of its unit, an interval `[months, days, nanoseconds]`, a map a list of pairs.
    """
    column = _stored(column)
    kind = column.type
    if types.is_floating(kind):
        column = column.cast(pa.float64())
        finite = pc.all(pc.is_finite(column), min_count=0).as_py()
        return list(column.to_pylist()) if finite else [_number(value) for value in column.to_pylist()]
    if types.is_decimal(kind):
        return [None if value is None else format(value, "f") for value in column.to_pylist()]
    if _is(kind, *_BYTES, types.is_fixed_size_binary):
        return [None if value is None else base64.b64encode(value).decode() for value in column.to_pylist()]
    if types.is_timestamp(kind):
        if kind.tz is not None:
            column = column.cast(pa.timestamp(kind.unit, "UTC"))
        return [None if value is None else value.replace(" ", "T", 1) for value in column.cast(pa.string()).to_pylist()]
    if types.is_date(kind) or types.is_time(kind):
        return list(column.cast(pa.string()).to_pylist())
    if types.is_duration(kind):
        return list(column.cast(pa.int64()).to_pylist())
    if types.is_interval(kind):
        return [None if value is None else list(value) for value in column.to_pylist()]
    if types.is_struct(kind):
        return _structs(column, [field.name for field in kind])
    if types.is_map(kind):
        pairs = column.cast(pa.list_(pa.struct([kind.key_field, kind.item_field])))
        flat = pc.list_flatten(pairs)
        return _lists(pairs, [list(pair) for pair in zip(*map(plain, flat.flatten()), strict=True)])
    if types.is_nested(kind) and not types.is_union(kind):
        return _lists(column, plain(pc.list_flatten(column)))
    if types.is_union(kind):
        return [plain(pa.repeat(one.value, 1))[0] for one in column]
    return list(column.to_pylist())


def _number(value: float | None) -> float | str | None:
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _structs(column: pa.Array, names: Sequence[str]) -> list[Any]:
    columns = [plain(child) for child in column.flatten()]
    rows = zip(*columns, strict=True) if columns else [()] * len(column)
    # an object holds a name once; a struct may hold it more often
    made = dict if len(set(names)) == len(names) else list
    return [
        made(zip(names, row, strict=True)) if valid else None
        for row, valid in zip(rows, column.is_valid().to_pylist(), strict=True)
    ]


def _lists(column: pa.Array, values: list[Any]) -> list[Any]:
    lists: list[Any] = []
    start = 0
    for length in pc.list_value_length(column).to_pylist():
        lists.append(None if length is None else values[start : start + length])
        start += length or 0
    return lists


# --- rows become messages


class Packer:
    """Packs rows into messages: Arrow streams of whole rows, as full as the bounds let them be."""

    def __init__(self, schema: pa.Schema, spool: IO[bytes]) -> None:
        self._schema = schema
        self._spool = spool
        self._frame_bytes = len(_encoded(schema, None))
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_bytes = 0
        self._waiting_rows = 0
        self._records = 0
        self.slices: list[Slice] = []

    def add(self, rows: pa.RecordBatch) -> None:
        self._waiting.append(rows)
        self._waiting_bytes += rows.nbytes
        self._waiting_rows += rows.num_rows
        if self._waiting_bytes >= PAYLOAD_BYTES_MAX or self._waiting_rows >= PAYLOAD_ROWS_MAX:
            self._pack()

    def finish(self) -> None:
        self._pack(to_the_end=True)
        self._spool.flush()

    def _pack(self, *, to_the_end: bool = False) -> None:
        """Write what is full, or all."""
        rest = pa.concat_batches(self._waiting) if len(self._waiting) > 1 else self._waiting[0]
        while rest.num_rows:
            count = self._fitting(rest)
            if not count:
                raise record_too_large(self._records, PAYLOAD_BYTES_MAX)
            if count == rest.num_rows and not to_the_end:
                break
            self._write(rest.slice(0, count))
            rest = rest.slice(count)
        self._waiting = [rest]
        self._waiting_bytes = rest.nbytes
        self._waiting_rows = rest.num_rows

    def _fitting(self, rows: pa.RecordBatch) -> int:
        """How many of the first rows one message takes."""

        def over(count: int) -> bool:
            size = self._frame_bytes + pa.ipc.get_record_batch_size(rows.slice(0, count))
            return bool(size > PAYLOAD_BYTES_MAX)

        most = min(rows.num_rows, PAYLOAD_ROWS_MAX)
        return _first(over, most) if over(most) else most

    def _write(self, rows: pa.RecordBatch) -> None:
        if len(self.slices) == MESSAGES_MAX:
            raise too_many_messages()
        payload, zstd = packed(_encoded(self._schema, rows))
        start = self.slices[-1].end if self.slices else 0
        end = start + self._spool.write(payload)
        self.slices.append(Slice(start, end, self._records, rows.num_rows, Kind.COLUMNAR, zstd))
        self._records += rows.num_rows


def _encoded(schema: pa.Schema, rows: pa.RecordBatch | None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        if rows is not None:
            writer.write_batch(rows)
    return bytes(sink.getvalue())


if __name__ == "__main__":
    main()
