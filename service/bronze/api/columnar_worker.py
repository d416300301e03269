"""The child process that reads columnar bodies: `python -m bronze.api.columnar_worker`, which `columnar_reader` starts.

A Parquet file of 300 bytes can declare gigabytes, and an Arrow stream can contain any offset. Therefore a process with
limits of memory and CPU reads such a body, and its crash only refuses the body. The job is read from standard input and
the result written to standard output; the body and the spool for the messages are files that the parent opened.
"""

import os
import resource
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from bronze.errors import Refusal, Refused
from bronze.protocol.message import MESSAGE_BYTES_MAX, MESSAGES_MAX
from bronze.records.columnar_intake import ColumnarIntake, ReadBody
from bronze.records.media import ColumnarType
from bronze.records.refusals import too_costly, unreadable_body
from bronze.records.sources import Source

#: The size of the batches in which a body is read.
BATCH_BYTES = 4 * 2**20
BATCH_ROWS_MAX = 8 * 2**10
#: The read buffer of a Parquet file, and the limits of the texts and lists in its footer.
READ_BYTES = 64 * 2**10
FOOTER_TEXT_BYTES_MAX = 16 * 2**20
FOOTER_ITEMS_MAX = 1_000_000
#: The end-of-stream marker of an Arrow IPC stream, and the first bytes of an Arrow IPC file.
STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
FILE_START = b"ARROW1"
#: Files that the child may have open: the two of the job, and the modules that are loaded late.
OPEN_FILES_MAX = 64
#: The exit codes if memory or disk space ran out: a result would need more of it.
EXIT_MEMORY = 7
EXIT_DISK = 8


class ReadJob(msgspec.Struct, frozen=True, kw_only=True):
    """A body to read, and the limits for it; `body` and `spool` are file descriptors."""

    source: Source
    format: ColumnarType
    body: int
    spool: int
    memory_bytes_max: int
    cpu_s_max: int
    rows_max: int
    classifications_max: int


class RefusedBody(msgspec.Struct, frozen=True, tag=True):
    """The contents of a `Refused`."""

    code: Refusal
    detail: str
    members: dict[str, Any]


def main() -> NoReturn:
    """Do the job that is on standard input."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=ReadJob)
    confine(job)
    try:
        result: ReadBody | RefusedBody = read(job)
    except Refused as error:
        result = RefusedBody(Refusal[error.code.name], error.detail, dict(error.members))
    except MemoryError:
        os._exit(EXIT_MEMORY)
    except OSError:
        traceback.print_exc()
        os._exit(EXIT_DISK)
    sys.stdout.buffer.write(msgspec.json.encode(result))
    sys.stdout.buffer.flush()
    os._exit(0)  # without cleaning up the objects that the body created


def confine(job: ReadJob) -> None:
    """Set limits that cannot be raised again (memory, CPU, files, size of the spool), low priority, no core dump."""
    for limit, soft, hard in (
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES_MAX, OPEN_FILES_MAX),
        (resource.RLIMIT_DATA, job.memory_bytes_max, job.memory_bytes_max),
        (resource.RLIMIT_CPU, job.cpu_s_max, job.cpu_s_max + 1),  # SIGXCPU, which the parent recognizes, then SIGKILL
        (resource.RLIMIT_FSIZE, MESSAGES_MAX * MESSAGE_BYTES_MAX, MESSAGES_MAX * MESSAGE_BYTES_MAX),
    ):
        resource.setrlimit(limit, (soft, hard))
    os.nice(5)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)


def read(job: ReadJob) -> ReadBody:
    """Write the body's records to the spool, as messages. Raises `Refused`, and `MemoryError` above the limit."""
    # opened by name: a new file description, whose offset is 0
    path = f"/proc/self/fd/{job.body}"
    size = os.fstat(job.body).st_size
    with _unreadable(job.format), _open(path, job.format) as file, os.fdopen(job.spool, "wb") as spool:
        names, batches = (_parquet if job.format is ColumnarType.PARQUET else _stream)(file, size, job.rows_max)
        intake = ColumnarIntake(job.source, names, spool, classifications_max=job.classifications_max)
        for batch in batches:
            intake.add(batch)
        return intake.finish()


@contextmanager
def _unreadable(form: ColumnarType) -> Iterator[None]:
    try:
        yield
    except pa.ArrowMemoryError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # an error of the system, such as a full disk
        raise unreadable_body(form, str(error)) from error


def _open(path: str, form: ColumnarType) -> pa.NativeFile:
    # the buffers of a memory-mapped stream are used without a copy; mapping a Parquet file gains nothing
    return pa.OSFile(path) if form is ColumnarType.PARQUET else pa.memory_map(path)


def _stream(file: pa.NativeFile, size: int, rows_max: int) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    if file.read_at(len(FILE_START), 0) == FILE_START:
        raise unreadable_body(
            ColumnarType.ARROW_STREAM,
            "it is an Arrow file; only the Arrow IPC stream format is supported (ipc.new_stream)",
        )
    reader = pa.ipc.open_stream(file)

    def batches() -> Iterator[pa.RecordBatch]:
        rows = 0
        for batch in reader:
            rows += batch.num_rows
            _check_rows(rows, rows_max)
            batch.validate(full=True)
            step = _rows_at_once(batch.nbytes, batch.num_rows)
            yield from (batch.slice(start, step) for start in range(0, batch.num_rows, step))
        # a stream that was truncated between two batches reads as if it had ended
        if file.tell() != size or file.read_at(len(STREAM_END), max(0, size - len(STREAM_END))) != STREAM_END:
            raise unreadable_body(
                ColumnarType.ARROW_STREAM,
                "its end-of-stream marker is missing: close the writer before you send the body",
            )

    return reader.schema, batches()


def _parquet(file: pa.NativeFile, _: int, rows_max: int) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    reader = pq.ParquetFile(
        file,
        pre_buffer=False,
        buffer_size=READ_BYTES,
        thrift_string_size_limit=FOOTER_TEXT_BYTES_MAX,
        thrift_container_size_limit=FOOTER_ITEMS_MAX,
        page_checksum_verification=True,
    )
    _check_rows(reader.metadata.num_rows, rows_max)
    groups = [reader.metadata.row_group(number) for number in range(reader.metadata.num_row_groups)]
    step = min((_rows_at_once(group.total_byte_size, group.num_rows) for group in groups), default=1)

    def batches() -> Iterator[pa.RecordBatch]:
        rows = 0
        for batch in reader.iter_batches(batch_size=step, use_threads=False):
            batch.validate(full=True)
            rows += batch.num_rows
            yield batch
        if rows != reader.metadata.num_rows:
            raise unreadable_body(
                ColumnarType.PARQUET, f"it has {rows} rows, but its footer says {reader.metadata.num_rows}"
            )

    return reader.schema_arrow, batches()


def _check_rows(rows: int, rows_max: int) -> None:
    """Refuse rows that take next to no bytes: columns of nulls or of one value can declare billions of them."""
    if rows > rows_max:
        raise too_costly(
            f"The body declares more than {rows_max} rows, which are too many for its size",
            rows_max,
            "BRONZE_BODY_EXPANSION_MAX",
            "Send several submissions.",
        )


def _rows_at_once(size: int, rows: int) -> int:
    """The number of rows in about `BATCH_BYTES`, if `rows` rows have `size` bytes."""
    return min(BATCH_ROWS_MAX, max(1, BATCH_BYTES * rows // max(1, size)))


if __name__ == "__main__":
    main()
