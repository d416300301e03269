"""Columnar bodies, as the API takes them: spooled, then read by a child process that may fail.

`columnar` is that child. Whatever becomes of it, the sender gets an answer, and the API goes on.
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
from bronze.errors import Outage, Refusal, Refused, Unavailable
from bronze.records.columnar_intake import ReadBody
from bronze.records.media import ColumnarType
from bronze.records.refusals import empty, unreadable
from bronze.records.sources import Source
from bronze.records.spool import BodyDigest, CheckedSubmission
from bronze.settings import Settings

log = logging.getLogger(__name__)

#: How long a body waits for a reader while others are read.
TURN_WAIT_S = 30.0
#: How much longer than its CPU time a reader may take: it lets others go first, and the machine may be busy.
WALL_PER_CPU = 10.0
#: The child, by this interpreter.
COMMAND = ("-I", "-m", "bronze.api.columnar_worker")
#: All that the child is told by its environment: the allocator that gives memory back, and one arena of it.
ENVIRONMENT = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}


class SpooledBody:
    """A decoded body on its way to disk."""

    def __init__(self, form: ColumnarType, body_bytes_max: int) -> None:
        self.form = form
        self.tally = BodyDigest(body_bytes_max)
        self.file = TemporaryFile()  # noqa: SIM115

    def take(self, piece: bytes) -> None:
        """Raises `Refused` past the bound. It is plain work: give it large pieces in a thread."""
        self.tally.add(piece)
        self.file.write(piece)

    def close(self) -> None:
        self.file.close()


class ColumnarReaders:
    """The children that read columnar bodies: so many at once, each within a bound of memory and of time."""

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
        self._turns = asyncio.Semaphore(settings.columnar_readers_max)

    async def read(self, source: Source, body: SpooledBody) -> CheckedSubmission:
        """The submission that a whole body is. Raises `Refused`, and `Unavailable` where no reader comes free."""
        if not body.tally.bytes:
            raise empty("Send one row at least.")
        body.file.flush()
        spool = TemporaryFile()  # noqa: SIM115
        try:
            job = ReadJob(
                source=source,
                format=body.form,
                body=body.file.fileno(),
                spool=spool.fileno(),
                memory_bytes_max=self._settings.columnar_memory_bytes_max,
                cpu_s_max=self._settings.columnar_cpu_s_max,
            )
            async with self._turn():
                read = await self._read(job)
            return CheckedSubmission(
                spool,
                read.slices,
                tally=body.tally,
                records=sum(piece.records for piece in read.slices),
                classifications=read.classifications,
                unclassified=read.unclassified,
                invalid={},
            )
        except BaseException:
            spool.close()
            raise

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._turn_wait_s):
                await self._turns.acquire()
        except TimeoutError as error:
            raise Unavailable(
                Outage.READERS_BUSY, "Too many columnar bodies are being read. Nothing was stored.", retry_after_s=10
            ) from error
        try:
            yield
        finally:
            self._turns.release()

    async def _read(self, job: ReadJob) -> ReadBody:
        # never a fork of this process, which has threads and an event loop; a session of its own, so that Ctrl-C in a
        # terminal ends the API and not the body
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
                said, _ = await child.communicate(msgspec.json.encode(job))
        except TimeoutError as error:
            raise _too_costly(f"{wall_s_max:g} s") from error
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        match child.returncode:
            case 0:
                return _told(said, job)
            case code if code in {EXIT_MEMORY, -signal.SIGKILL}:  # the latter by the machine, out of memory
                raise _too_costly(f"{job.memory_bytes_max} bytes of memory")
            case code if code == -signal.SIGXCPU:
                raise _too_costly(f"{job.cpu_s_max} s of CPU time")
            case code if code == EXIT_DISK:
                raise OSError("a columnar body could not be spooled: is the disk of the temporary files full?")
            case code:
                raise _crashed(job, f"exit code {code}")


def _told(said: bytes, job: ReadJob) -> ReadBody:
    try:
        verdict = msgspec.json.decode(said, type=ReadBody | RefusedBody)
    except msgspec.DecodeError as error:
        raise _crashed(job, f"no verdict: {error}") from error
    if isinstance(verdict, RefusedBody):
        raise Refused(verdict.code, verdict.detail, **verdict.members)
    return verdict


def _crashed(job: ReadJob, how: str) -> Refused:
    log.error("a body of %s ended its reader: %s", job.format, how)
    return unreadable(job.format, "its reader crashed")


def _too_costly(bound: str) -> Refused:
    return Refused(
        Refusal.BODY_TOO_COSTLY,
        f"Reading the body takes more than {bound}. Write it with smaller row groups, pages or batches, or send it as "
        "several submissions.",
    )
