"""The child process that reads columnar bodies: `python -m bronze.api.columnar_worker`, which `columnar_reader` starts.

A Parquet file of 300 bytes can declare gigabytes, and an Arrow stream can point anywhere: so such a body is read where
memory and CPU are limited, and where a crash is an answer. A job comes on standard input, the verdict goes to standard
output; the body and the spool that the messages go to are files that the parent opened.
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
from bronze.records.refusals import unreadable
from bronze.records.sources import Source

#: What is taken of a body at once.
BATCH_BYTES = 4 * 2**20
BATCH_ROWS_MAX = 8 * 2**10
#: What of a file is read at once, and the bounds of its footer's texts and lists.
READ_BYTES = 64 * 2**10
FOOTER_TEXT_BYTES_MAX = 16 * 2**20
FOOTER_ITEMS_MAX = 1_000_000
#: An Arrow stream ends with this mark, an Arrow file begins with that one.
STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
FILE_MARK = b"ARROW1"
#: The exit codes where memory or the disk ran out: to say more would take what there is not.
EXIT_MEMORY = 7
EXIT_DISK = 8


class ReadJob(msgspec.Struct, frozen=True, kw_only=True):
    """What to read, within what; `body` and `spool` are file descriptors."""

    source: Source
    format: ColumnarType
    body: int
    spool: int
    memory_bytes_max: int
    cpu_s_max: int


class RefusedBody(msgspec.Struct, frozen=True, tag=True):
    """What `Refused` says."""

    code: Refusal
    detail: str
    members: dict[str, Any]


def main() -> NoReturn:
    """Do the job on standard input."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=ReadJob)
    confine(job)
    try:
        verdict: ReadBody | RefusedBody = read(job)
    except Refused as error:
        verdict = RefusedBody(Refusal[error.code.name], error.detail, dict(error.members))
    except MemoryError:
        os._exit(EXIT_MEMORY)
    except OSError:
        traceback.print_exc()
        os._exit(EXIT_DISK)
    sys.stdout.buffer.write(msgspec.json.encode(verdict))
    sys.stdout.buffer.flush()
    os._exit(0)  # what the body left behind is not tidied up


def confine(job: ReadJob) -> None:
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


def read(job: ReadJob) -> ReadBody:
    """The body's records as messages in the spool; raises `Refused`, and `MemoryError` past the limit."""
    # by name: a file of its own, which begins at its beginning
    path = f"/proc/self/fd/{job.body}"
    size = os.fstat(job.body).st_size
    with _unreadable(job.format), _open(path, job.format) as file, os.fdopen(job.spool, "wb") as spool:
        names, batches = (_parquet if job.format is ColumnarType.PARQUET else _stream)(file, size)
        taken = ColumnarIntake(job.source, names, spool)
        for batch in batches:
            taken.add(batch)
        return taken.finish()


@contextmanager
def _unreadable(form: ColumnarType) -> Iterator[None]:
    try:
        yield
    except pa.ArrowMemoryError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # of ours: the disk is full
        raise unreadable(form, str(error)) from error


def _open(path: str, form: ColumnarType) -> pa.NativeFile:
    # a mapped stream's buffers are used where they lie; a mapped Parquet file has nothing to gain
    return pa.OSFile(path) if form is ColumnarType.PARQUET else pa.memory_map(path)


def _stream(file: pa.NativeFile, size: int) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    if file.read_at(len(FILE_MARK), 0) == FILE_MARK:
        raise unreadable(
            ColumnarType.ARROW_STREAM, "it is an Arrow file, and the stream is what is taken (ipc.new_stream)"
        )
    reader = pa.ipc.open_stream(file)

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in reader:
            batch.validate(full=True)
            step = _rows_at_once(batch.nbytes, batch.num_rows)
            yield from (batch.slice(start, step) for start in range(0, batch.num_rows, step))
        # a stream that was cut between two batches reads as one that has ended
        if file.tell() != size or file.read_at(len(STREAM_END), max(0, size - len(STREAM_END))) != STREAM_END:
            raise unreadable(ColumnarType.ARROW_STREAM, "it does not end with its end-of-stream mark: close the writer")

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
            raise unreadable(
                ColumnarType.PARQUET, f"it has {rows} rows, and its footer says {reader.metadata.num_rows}"
            )

    return reader.schema_arrow, batches()


def _rows_at_once(size: int, rows: int) -> int:
    """How many rows are about `BATCH_BYTES`, where so many rows have such a size."""
    return min(BATCH_ROWS_MAX, max(1, BATCH_BYTES * rows // max(1, size)))


if __name__ == "__main__":
    main()
