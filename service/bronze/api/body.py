"""The body of a submission: read in pieces, decoded and checked, within limits of memory and time."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from bronze.api.budget import BodyShare, Budget
from bronze.api.columnar_reader import ColumnarReaders, SpooledBody
from bronze.api.submit_telemetry import SubmissionTelemetry
from bronze.errors import Refusal, Refused
from bronze.records.encodings import ENCODINGS, Decoder
from bronze.records.json_intake import IntakeBounds, JsonIntake
from bronze.records.media import JSON, MEDIA_TYPES, NDJSON, ColumnarType
from bronze.records.refusals import too_costly, too_large
from bronze.records.sources import Source
from bronze.records.spool import CheckedSubmission
from bronze.settings import Settings

#: A larger piece takes more than about a millisecond: it is checked in a thread, so that the event loop serves other
#: requests meanwhile. So is every compressed piece. For a smaller piece, the thread would cost more than the work.
INLINE_BYTES_MAX = 256 * 2**10
#: A piece with rejected records takes many times as long: the size that is checked inline, and in the threads of small
#: bodies.
INLINE_REJECTED_BYTES_MAX = 2 * 2**10
SMALL_REJECTED_BYTES_MAX = 16 * 2**10
#: Bytes that are collected before a thread is used for them.
PIECE_BYTES = 2**20
#: The same of a compressed body, whose pieces are larger when they are decompressed.
COMPRESSED_PIECE_BYTES = 64 * 2**10
#: Decompressed bytes that are checked at once. A decoder's steps can be so small that each would cost more than its
#: work; and other bodies get their turn after so many.
STEP_BYTES = 256 * 2**10
TURN_BYTES = 4 * 2**20
#: Decompressed bytes of any body that are allowed, whatever its size.
EXPANSION_FREE_BYTES = 2**20
#: Threads for bodies that have been small so far: theirs is the work of some milliseconds.
SMALL_THREADS = 2
#: Bytes of a body in memory that are not counted.
UNCOUNTED_BYTES = 64 * 2**10
#: How much, and for how long, the rest of a refused body is still read.
DRAIN_BYTES_MAX = 64 * 2**20
DRAIN_S_MAX = 10.0

T = TypeVar("T")


class Intake(Protocol):
    """Reads the decoded pieces of a body; `finish` returns the submission, `close` discards it."""

    @property
    def records(self) -> int:
        """The number of records read so far."""

    @property
    def memory_bytes(self) -> int:
        """The memory that it holds between two pieces."""

    @property
    def disk_bytes(self) -> int:
        """The size of its temporary files."""

    def feed(self, piece: bytes) -> None: ...
    async def finish(self) -> CheckedSubmission: ...
    def close(self) -> None: ...


class Threads:
    """The threads that check bodies. Small and large bodies have their own, so that no small one waits for a large one.

    A large body is checked in turns: after each, other bodies get theirs.
    """

    def __init__(self, large_max: int) -> None:
        self._small = ThreadPoolExecutor(SMALL_THREADS, thread_name_prefix="small-body")
        self._large = ThreadPoolExecutor(large_max, thread_name_prefix="large-body")

    async def run(self, work: Callable[..., T], *args: object, small: bool) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._small if small else self._large, work, *args)


class BodyReader:
    """Reads bodies of every supported media type and encoding."""

    def __init__(self, settings: Settings, columnar: ColumnarReaders, budget: Budget) -> None:
        self._settings = settings
        self._columnar = columnar
        self.budget = budget
        self._threads = Threads(settings.body_threads_max)
        self._bounds = IntakeBounds(
            blank_lines_max=settings.blank_lines_max,
            json_values_max=settings.json_values_max,
            classifications_max=settings.classifications_max,
            rejected_records_max=settings.rejected_records_max,
            rejected_bytes_max=settings.rejected_bytes_max,
        )

    async def read(
        self,
        source: Source,
        media_type: str,
        encoding: str,
        receive: Receive,
        telemetry: SubmissionTelemetry,
        *,
        keep_invalid: bool,
    ) -> CheckedSubmission:
        """Read and check the whole body. With `keep_invalid`, records that do not fit the source do not refuse it.

        Raises `Refused`, and `Unavailable` if all bodies together use too much. Before a refusal, the rest of the body
        is read, within limits, so that the sender sees the answer.
        """
        _check_supported(media_type, encoding)
        share = BodyShare(self.budget)
        intake = self._intake(source, media_type, keep_invalid=keep_invalid)
        checks = _Checks(self._threads, ENCODINGS[encoding](), intake, self._settings.body_expansion_max)
        checks.plain = encoding == "identity"
        if keep_invalid:
            checks.inline_bytes_max, checks.small_bytes_max = INLINE_REJECTED_BYTES_MAX, SMALL_REJECTED_BYTES_MAX
        piece_bytes = PIECE_BYTES if checks.plain else COMPRESSED_PIECE_BYTES
        chunks = _Chunks(receive)
        piece = bytearray()

        def hold() -> None:
            memory_bytes = len(piece) + intake.memory_bytes
            share.hold(memory_bytes if memory_bytes > UNCOUNTED_BYTES else 0, intake.disk_bytes)

        try:
            async for chunk in self._in_time(chunks):
                piece += chunk
                hold()
                if len(piece) >= piece_bytes:
                    await checks.feed(bytes(piece))
                    piece.clear()
                    hold()
            if piece:
                await checks.feed(bytes(piece))
                piece.clear()
            checks.decoder.finish()
            checked = await intake.finish()
            try:
                hold()
            except BaseException:
                checked.close()
                raise
        except ClientDisconnect as error:
            intake.close()
            share.release()
            raise Refused(Refusal.CLIENT_GONE, "The connection was closed before the end of the body.") from error
        except BaseException as error:
            intake.close()
            share.release()
            if isinstance(error, Refused) and error.code is not Refusal.BODY_TOO_SLOW:
                await _drain(chunks)
            raise
        finally:
            telemetry.records = max(1, intake.records)
        checked.on_close(share.release)
        return checked

    async def _in_time(self, chunks: "_Chunks") -> AsyncIterator[bytes]:
        """The chunks of a body. Raises `Refused` if they come too slowly; only the time of waiting for them counts.

        A sender has a credit of time, which waiting uses up and each byte adds to.
        """
        stall_s, rate_min = self._settings.body_stall_s_max, self._settings.body_bytes_per_s_min
        credit_s, left_s = stall_s, self._settings.body_s_max
        while not chunks.ended:
            start_s = time.monotonic()
            try:
                async with asyncio.timeout(min(credit_s, left_s)):
                    chunk = await chunks.receive()
            except TimeoutError as error:
                if left_s <= credit_s:
                    raise _too_slow(
                        f"The body was not complete after {self._settings.body_s_max:g} s",
                        self._settings.body_s_max,
                        "BRONZE_BODY_S_MAX",
                    ) from error
                raise _too_slow(
                    f"The body came at less than {rate_min} bytes per second (BRONZE_BODY_BYTES_PER_S_MIN), or not at "
                    f"all for {stall_s:g} s",
                    stall_s,
                    "BRONZE_BODY_STALL_S_MAX",
                ) from error
            waited_s = time.monotonic() - start_s
            left_s = max(0.0, left_s - waited_s)
            credit_s = min(stall_s, max(0.0, credit_s - waited_s) + len(chunk) / rate_min)
            yield chunk

    def _intake(self, source: Source, media_type: str, *, keep_invalid: bool) -> Intake:
        if media_type in [*ColumnarType]:
            if keep_invalid:
                raise Refused(
                    Refusal.INVALID_HEADER,
                    f"?on_invalid=quarantine works for JSON records only ({NDJSON} or {JSON}). An Arrow or Parquet "
                    "body is accepted or refused as a whole.",
                    header="on_invalid",
                )
            return _Columnar(
                source, SpooledBody(ColumnarType(media_type), self._settings.body_bytes_max), self._columnar
            )
        document = media_type == JSON
        bytes_max = self._settings.json_body_bytes_max if document else self._settings.body_bytes_max
        intake = JsonIntake(
            source,
            body_bytes_max=bytes_max,
            spool_memory_bytes_max=self._settings.spool_memory_bytes_max,
            quarantine_rejected=keep_invalid,
            bounds=self._bounds,
        )
        if document:
            inline_bytes_max = INLINE_REJECTED_BYTES_MAX if keep_invalid else INLINE_BYTES_MAX
            return _Document(intake, self._settings, self._threads, inline_bytes_max=inline_bytes_max)
        return _Lines(intake, self._settings)


class _Chunks:
    """The chunks of a body as the server has them, and whether the last one is there.

    `Request.stream` tells the end apart only when it is asked once more, each time with a deadline of its own.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.ended = False

    async def receive(self) -> bytes:
        """The next chunk, which may be empty. Raises `ClientDisconnect`."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.ended = True
            raise ClientDisconnect
        self.ended = not message.get("more_body", False)
        return bytes(message.get("body", b""))


class _Checks:
    """Decodes and checks the pieces of a body, in a thread unless a piece is small."""

    def __init__(self, threads: Threads, decoder: Decoder, intake: Intake, expansion_max: int) -> None:
        self._threads = threads
        self._intake = intake
        self._expansion_max = expansion_max
        self._received_bytes = 0
        self._decoded_bytes = 0
        self.decoder = decoder
        self.plain = True
        self.inline_bytes_max = INLINE_BYTES_MAX
        self.small_bytes_max = INLINE_BYTES_MAX

    async def feed(self, piece: bytes) -> None:
        self._received_bytes += len(piece)
        if self.plain and len(piece) <= self.inline_bytes_max:
            self._decoded_bytes += len(piece)
            self._intake.feed(piece)
            return
        steps = self._steps(piece)
        small = self._decoded_bytes + len(piece) <= self.small_bytes_max
        while await self._threads.run(
            self._take_turn, steps, self.small_bytes_max if small else TURN_BYTES, small=small
        ):
            small = False

    def _take_turn(self, steps: Iterator[bytes], bytes_max: int) -> bool:
        """Check about this many bytes; whether there may be more."""
        size = 0
        for step in steps:
            self._intake.feed(step)
            size += len(step)
            if size >= bytes_max:
                return True
        return False

    def _steps(self, piece: bytes) -> Iterator[bytes]:
        """The decoded piece, in steps that are neither tiny nor many times larger than what was received allows."""
        waiting: list[bytes] = []
        size = 0
        for decoded in self.decoder.feed(piece):
            self._decoded_bytes += len(decoded)
            if self._decoded_bytes > EXPANSION_FREE_BYTES + self._expansion_max * self._received_bytes:
                raise too_costly(
                    f"The body is more than {self._expansion_max} times as large when it is decompressed",
                    self._expansion_max,
                    "BRONZE_BODY_EXPANSION_MAX",
                    "Send it with less compression, or as several submissions.",
                )
            waiting.append(decoded)
            size += len(decoded)
            if size >= min(STEP_BYTES, self.small_bytes_max):
                yield b"".join(waiting)
                waiting, size = [], 0
        if waiting:
            yield b"".join(waiting)


class _Lines:
    """NDJSON: checked while it arrives."""

    def __init__(self, intake: JsonIntake, settings: Settings) -> None:
        self._intake = intake
        self._spool_memory_bytes_max = settings.spool_memory_bytes_max

    @property
    def records(self) -> int:
        return self._intake.records

    @property
    def memory_bytes(self) -> int:
        return self._intake.pending_bytes + (0 if self.disk_bytes else self._intake.spooled_bytes)

    @property
    def disk_bytes(self) -> int:
        spooled_bytes = self._intake.spooled_bytes
        return spooled_bytes if spooled_bytes > self._spool_memory_bytes_max else 0

    def feed(self, piece: bytes) -> None:
        self._intake.add_lines(piece)

    async def finish(self) -> CheckedSubmission:
        return self._intake.finish()

    def close(self) -> None:
        self._intake.close()


class _Document(_Lines):
    """JSON: parsed as a whole, in a thread if it is large."""

    def __init__(self, intake: JsonIntake, settings: Settings, threads: Threads, *, inline_bytes_max: int) -> None:
        super().__init__(intake, settings)
        self._bytes_max = settings.json_body_bytes_max
        self._threads = threads
        self._inline_bytes_max = inline_bytes_max
        self._document = bytearray()

    @property
    def memory_bytes(self) -> int:
        return len(self._document) + super().memory_bytes

    def feed(self, piece: bytes) -> None:
        self._document.extend(piece)
        if len(self._document) > self._bytes_max:
            advice = "Send NDJSON (application/x-ndjson), which is streamed."
            raise too_large(self._bytes_max, "BRONZE_JSON_BODY_BYTES_MAX", advice)

    async def finish(self) -> CheckedSubmission:
        if len(self._document) <= self._inline_bytes_max:
            return self._parse()
        return await self._threads.run(self._parse, small=False)

    def _parse(self) -> CheckedSubmission:
        document = bytes(self._document)
        self._document.clear()
        self._intake.add_document(document)
        return self._intake.finish()


class _Columnar:
    """Arrow and Parquet: spooled to disk, and read by a child process that has limits."""

    def __init__(self, source: Source, body: SpooledBody, readers: ColumnarReaders) -> None:
        self._source = source
        self._body = body
        self._readers = readers
        self.records = 0
        self.memory_bytes = 0
        self._spooled_bytes = 0

    @property
    def disk_bytes(self) -> int:
        return self._body.tally.bytes + self._spooled_bytes

    def feed(self, piece: bytes) -> None:
        self._body.write(piece)

    async def finish(self) -> CheckedSubmission:
        checked = await self._readers.read(self._source, self._body)
        self._body.close()
        self._spooled_bytes = checked.spooled_bytes
        self.records = checked.records
        return checked

    def close(self) -> None:
        self._body.close()


def _check_supported(media_type: str, encoding: str) -> None:
    if media_type not in MEDIA_TYPES:
        types = ", ".join(f"{name} ({description})" for name, description in MEDIA_TYPES.items())
        raise Refused(
            Refusal.UNSUPPORTED_MEDIA_TYPE,
            f"The Content-Type {media_type!r} is not supported. Send one of: {types}.",
            accepted=[*MEDIA_TYPES],
        )
    if encoding not in ENCODINGS:
        raise Refused(
            Refusal.UNSUPPORTED_ENCODING,
            f"The Content-Encoding {encoding!r} is not supported. Send gzip, zstd, or none.",
            accepted=[*ENCODINGS],
        )


def _too_slow(reason: str, limit: float, setting: str) -> Refused:
    return Refused(
        Refusal.BODY_TOO_SLOW, f"{reason} ({setting}). Send it again, or in parts.", limit=limit, setting=setting
    )


async def _drain(chunks: _Chunks) -> None:
    """Read the rest, within limits: a client that is still sending would not see the answer."""
    size = 0
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(DRAIN_S_MAX):
            while not chunks.ended and size <= DRAIN_BYTES_MAX:
                size += len(await chunks.receive())
