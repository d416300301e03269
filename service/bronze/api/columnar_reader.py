"""Columnar bodies: the API spools them, and a child process that may fail reads them.

`columnar_worker` is that child. Whatever happens to it, the sender gets an answer, and the API continues.
"""

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from tempfile import TemporaryFile

import msgspec

from bronze.api.columnar_worker import EXIT_DISK, EXIT_MEMORY, ReadJob, RefusedBody
from bronze.errors import Outage, Refused, Unavailable
from bronze.records.columnar_intake import ReadBody
from bronze.records.media import ColumnarType
from bronze.records.refusals import empty, too_costly, unreadable_body
from bronze.records.sources import Source
from bronze.records.spool import BodyDigest, CheckedSubmission
from bronze.settings import Settings

log = logging.getLogger(__name__)

#: How long a body waits for a free reader.
TURN_WAIT_S = 30.0
#: A reader's time limit as a multiple of its CPU limit: it has a low priority, and the machine may be busy.
WALL_PER_CPU = 10.0
#: The CPU limit of a small body, in seconds, and the bytes for which a larger one gets another second: from 5.5 MB on,
#: a body may use all of `columnar_cpu_s_max`.
CPU_S_MIN = 5
CPU_BYTES_PER_S = 100_000
#: Rows that any body may declare, whatever its size.
ROWS_FREE = 1_000_000
#: The arguments with which this interpreter runs the child.
COMMAND = ("-I", "-m", "bronze.api.columnar_child")
#: The whole environment of the child: an allocator that returns memory to the system, with one arena.
ENVIRONMENT = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}


class SpooledBody:
    """A decoded body in a temporary file."""

    def __init__(self, form: ColumnarType, body_bytes_max: int) -> None:
        self.form = form
        self.tally = BodyDigest(body_bytes_max)
        self.file = TemporaryFile()  # noqa: SIM115

    def write(self, piece: bytes) -> None:
        """Append a piece. Raises `Refused` above the limit. It blocks: call it in a thread for large pieces."""
        self.tally.add(piece)
        self.file.write(piece)

    def close(self) -> None:
        self.file.close()


class ColumnarReaders:
    """Starts the children that read columnar bodies: a limited number at once, each with limits of memory and time."""

    def __init__(
        self,
        settings: Settings,
        *,
        command: Sequence[str] = COMMAND,
        turn_wait_s: float = TURN_WAIT_S,
        wall_per_cpu: float = WALL_PER_CPU,
    ) -> None:
        self._settings = settings
        self._command = command
        self._turn_wait_s = turn_wait_s
        self._wall_per_cpu = wall_per_cpu
        self._free_readers = asyncio.Semaphore(settings.columnar_readers_max)

    async def read(self, source: Source, body: SpooledBody) -> CheckedSubmission:
        """Read a complete body as a submission. Raises `Refused`, and `Unavailable` if no reader becomes free."""
        if not body.tally.bytes:
            raise empty("Send at least one row.")
        body.file.flush()
        spool = TemporaryFile()  # noqa: SIM115
        try:
            job = ReadJob(
                source=source,
                format=body.form,
                body=body.file.fileno(),
                spool=spool.fileno(),
                memory_bytes_max=self._settings.columnar_memory_bytes_max,
                cpu_s_max=min(self._settings.columnar_cpu_s_max, CPU_S_MIN + body.tally.bytes // CPU_BYTES_PER_S),
                rows_max=ROWS_FREE + self._settings.body_expansion_max * body.tally.bytes,
                classifications_max=self._settings.classifications_max,
            )
            async with self._reader():
                read = await self._read(job)
            return CheckedSubmission(
                spool,
                read.slices,
                tally=body.tally,
                records=sum(piece.records for piece in read.slices),
                classifications=read.classifications,
                unclassified=read.unclassified,
                rejected_by_code={},
                undeclared=read.undeclared,
            )
        except BaseException:
            spool.close()
            raise

    @asynccontextmanager
    async def _reader(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._turn_wait_s):
                await self._free_readers.acquire()
        except TimeoutError as error:
            raise Unavailable(
                Outage.READERS_BUSY,
                "Too many Arrow and Parquet bodies are being read. Nothing was stored. Send it again later.",
                retry_after_s=10,
            ) from error
        try:
            yield
        finally:
            self._free_readers.release()

    async def _read(self, job: ReadJob) -> ReadBody:
        # not a fork: this process has threads and an event loop. The child has its own session, so that Ctrl-C in a
        # terminal goes to the API only
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=ENVIRONMENT,
            pass_fds=(job.body, job.spool),
            start_new_session=True,
        )
        wall_s_max = self._wall_per_cpu * job.cpu_s_max
        try:
            async with asyncio.timeout(wall_s_max):
                output, _ = await child.communicate(msgspec.json.encode(job))
        except TimeoutError as error:
            raise _too_costly(f"{wall_s_max:g} s", job.cpu_s_max, "BRONZE_COLUMNAR_CPU_S_MAX") from error
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        match child.returncode:
            case 0:
                return _parse_result(output, job)
            case code if code in {EXIT_MEMORY, -signal.SIGKILL}:  # SIGKILL: the kernel, if the machine is out of memory
                raise _too_costly(
                    f"{job.memory_bytes_max} bytes of memory", job.memory_bytes_max, "BRONZE_COLUMNAR_MEMORY_BYTES_MAX"
                )
            case code if code == -signal.SIGXCPU:
                raise _too_costly(f"{job.cpu_s_max} s of CPU time", job.cpu_s_max, "BRONZE_COLUMNAR_CPU_S_MAX")
            case code if code == EXIT_DISK:
                raise OSError(
                    "a columnar body could not be written to a temporary file: check the free disk space of the "
                    "folder for temporary files"
                )
            case code:
                raise _crashed(job, f"exit code {code}")


def _parse_result(output: bytes, job: ReadJob) -> ReadBody:
    try:
        result = msgspec.json.decode(output, type=ReadBody | RefusedBody)
    except msgspec.DecodeError as error:
        raise _crashed(job, f"its result cannot be read: {error}") from error
    if isinstance(result, RefusedBody):
        raise Refused(result.code, result.detail, **result.members)
    return result


def _crashed(job: ReadJob, reason: str) -> Refused:
    log.error("the reader of a %s body crashed, and the body was refused: %s", job.format, reason)
    return unreadable_body(job.format, "its reader crashed")


def _too_costly(amount: str, limit: int, setting: str) -> Refused:
    return too_costly(
        f"Reading the body takes more than {amount}",
        limit,
        setting,
        "Write it with smaller row groups, pages or batches, or send it as several submissions.",
    )
