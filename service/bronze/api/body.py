"""The body of a submission: read piece by piece, decoded and checked whole, within bounds of memory and time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Protocol, TypeVar

from starlette.requests import ClientDisconnect

from bronze.api.columnar_reader import ColumnarReaders, SpooledBody
from bronze.api.submit_telemetry import SubmissionTelemetry
from bronze.errors import Refusal, Refused
from bronze.records.encodings import ENCODINGS
from bronze.records.json_intake import JsonIntake
from bronze.records.media import JSON, MEDIA_TYPES, NDJSON, ColumnarType
from bronze.records.refusals import too_large
from bronze.records.sources import Source
from bronze.records.spool import CheckedSubmission
from bronze.settings import Settings

#: A piece beyond this, about a millisecond's work, is checked in a thread, so that others are served meanwhile; so is
#: all that may inflate. Below it, the thread would cost more than the work.
INLINE_BYTES_MAX = 256 * 2**10
#: So much of a body is worth a thread, in bytes.
PIECE_BYTES = 2**20
#: What is still read of a body that is refused already.
DRAIN_BYTES_MAX = 64 * 2**20
DRAIN_S_MAX = 10.0

T = TypeVar("T")


class Intake(Protocol):
    """Takes the decoded pieces of a body; `finish` gives the submission, `close` gives it up."""

    @property
    def records(self) -> int:
        """How many were read so far."""

    def take(self, piece: bytes) -> None: ...
    async def finish(self) -> CheckedSubmission: ...
    def close(self) -> None: ...


class BodyReader:
    """Reads bodies of every media type and encoding that is taken."""

    def __init__(self, settings: Settings, columnar: ColumnarReaders) -> None:
        self._settings = settings
        self._columnar = columnar

    async def read(
        self,
        source: Source,
        media_type: str,
        encoding: str,
        stream: AsyncIterator[bytes],
        telemetry: SubmissionTelemetry,
        *,
        keep_invalid: bool,
    ) -> CheckedSubmission:
        """Read and check the whole body. With `keep_invalid`, records that do not fit the source refuse nothing.

        Raises `Refused`; what is still on its way then is read, within bounds, so that the sender sees the answer.
        """
        _check_taken(media_type, encoding)
        decoder = ENCODINGS[encoding]()
        intake = self._intake(source, media_type, keep_invalid=keep_invalid)
        # a record that does not fit takes many times what a good one does
        inline_bytes_max = 0 if keep_invalid else INLINE_BYTES_MAX

        def take(piece: bytes) -> None:
            for decoded in decoder.feed(piece):
                intake.take(decoded)

        try:
            async for piece in _pieces(stream):
                await _run(take, piece, inline=encoding == "identity" and len(piece) <= inline_bytes_max)
            decoder.finish()
            return await intake.finish()
        except ClientDisconnect as error:
            intake.close()
            raise Refused(Refusal.CLIENT_GONE, "The connection was closed before the body's end.") from error
        except BaseException as error:
            intake.close()
            if isinstance(error, Refused):
                await _drain(stream)
            raise
        finally:
            telemetry.records = max(1, intake.records)

    def _intake(self, source: Source, media_type: str, *, keep_invalid: bool) -> Intake:
        if media_type in [*ColumnarType]:
            if keep_invalid:
                raise Refused(
                    Refusal.INVALID_HEADER,
                    f"?on_invalid=quarantine is for JSON records ({NDJSON} or {JSON}): a body of columns is "
                    "taken or refused as a whole.",
                    header="on_invalid",
                )
            return _Columnar(
                source, SpooledBody(ColumnarType(media_type), self._settings.body_bytes_max), self._columnar
            )
        bytes_max = self._settings.json_body_bytes_max if media_type == JSON else self._settings.body_bytes_max
        intake = JsonIntake(
            source,
            body_bytes_max=bytes_max,
            spool_memory_bytes_max=self._settings.spool_memory_bytes_max,
            keep_invalid=keep_invalid,
        )
        if media_type == JSON:
            return _Document(intake, bytes_max, inline_bytes_max=0 if keep_invalid else INLINE_BYTES_MAX)
        return _Lines(intake)


class _Lines:
    """NDJSON: checked as it comes."""

    def __init__(self, intake: JsonIntake) -> None:
        self._intake = intake

    @property
    def records(self) -> int:
        return self._intake.records

    def take(self, piece: bytes) -> None:
        self._intake.lines(piece)

    async def finish(self) -> CheckedSubmission:
        return self._intake.finish()

    def close(self) -> None:
        self._intake.close()


class _Document(_Lines):
    """JSON: parsed whole, in a thread where it is large."""

    def __init__(self, intake: JsonIntake, bytes_max: int, *, inline_bytes_max: int) -> None:
        super().__init__(intake)
        self._bytes_max = bytes_max
        self._inline_bytes_max = inline_bytes_max
        self._document = bytearray()

    def take(self, piece: bytes) -> None:
        self._document.extend(piece)
        if len(self._document) > self._bytes_max:
            raise too_large(self._bytes_max, "Send NDJSON (application/x-ndjson), which is streamed.")

    async def finish(self) -> CheckedSubmission:
        return await _run(self._parsed, inline=len(self._document) <= self._inline_bytes_max)

    def _parsed(self) -> CheckedSubmission:
        self._intake.document(bytes(self._document))
        return self._intake.finish()


class _Columnar:
    """Arrow and Parquet: spooled to disk, and read where they can do no harm."""

    def __init__(self, source: Source, body: SpooledBody, readers: ColumnarReaders) -> None:
        self._source = source
        self._body = body
        self._readers = readers
        self.records = 0

    def take(self, piece: bytes) -> None:
        self._body.take(piece)

    async def finish(self) -> CheckedSubmission:
        checked = await self._readers.read(self._source, self._body)
        self._body.close()
        self.records = checked.records
        return checked

    def close(self) -> None:
        self._body.close()


def _check_taken(media_type: str, encoding: str) -> None:
    if media_type not in MEDIA_TYPES:
        forms = ", ".join(f"{name} ({what})" for name, what in MEDIA_TYPES.items())
        raise Refused(
            Refusal.UNSUPPORTED_MEDIA_TYPE,
            f"The Content-Type {media_type!r} is not taken. Send one of: {forms}.",
            accepted=[*MEDIA_TYPES],
        )
    if encoding not in ENCODINGS:
        raise Refused(
            Refusal.UNSUPPORTED_ENCODING,
            f"The Content-Encoding {encoding!r} is not taken. Send gzip, zstd, or none.",
            accepted=[*ENCODINGS],
        )


async def _pieces(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The body in pieces that are worth a thread."""
    waiting = bytearray()
    async for chunk in stream:
        waiting += chunk
        if len(waiting) >= PIECE_BYTES:
            yield bytes(waiting)
            waiting.clear()
    if waiting:
        yield bytes(waiting)


async def _run(work: Callable[..., T], *args: object, inline: bool) -> T:
    """CPU work, in a thread unless it is small."""
    return work(*args) if inline else await asyncio.to_thread(work, *args)


async def _drain(stream: AsyncIterator[bytes]) -> None:
    """Read on, within bounds: a client that is still sending would not see the answer."""
    size = 0
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(DRAIN_S_MAX):
            async for chunk in stream:
                size += len(chunk)
                if size > DRAIN_BYTES_MAX:
                    return
