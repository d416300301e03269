"""What the child process does that reads columnar bodies: `columnar_child`, which `columnar_reader` starts.

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
from functools import partial
from typing import Any, NoReturn

import msgspec
import pyarrow as pa

from bronze.errors import Refusal, Refused
from bronze.protocol.message import MESSAGE_BYTES_MAX, MESSAGES_MAX
from bronze.records.columnar_intake import ColumnarIntake, ReadBody
from bronze.records.columnar_reading import FILE_START, Columns, read_parquet, read_stream
from bronze.records.media import ColumnarType
from bronze.records.refusals import too_costly, unreadable_body
from bronze.records.sources import Source

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
    with _unreadable(job.format), _open(path, job.format) as file, os.fdopen(job.spool, "wb") as spool:
        schema, batches = _columns(file, job)
        intake = ColumnarIntake(job.source, schema, spool, classifications_max=job.classifications_max)
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


def _columns(file: pa.NativeFile, job: ReadJob) -> Columns:
    check_rows = partial(_check_rows, rows_max=job.rows_max)
    if job.format is ColumnarType.PARQUET:
        return read_parquet(file, check_rows)
    if file.read_at(len(FILE_START), 0) == FILE_START:
        raise unreadable_body(
            ColumnarType.ARROW_STREAM,
            "it is an Arrow file; only the Arrow IPC stream format is supported (ipc.new_stream)",
        )
    return read_stream(file, lambda count: file.read_at(count, file.tell() - count), check_rows)


def _check_rows(rows: int, rows_max: int) -> None:
    """Refuse rows that take next to no bytes: columns of nulls or of one value can declare billions of them."""
    if rows > rows_max:
        raise too_costly(
            f"The body declares more than {rows_max} rows, which are too many for its size",
            rows_max,
            "BRONZE_BODY_EXPANSION_MAX",
            "Send several submissions.",
        )


if __name__ == "__main__":
    main()
