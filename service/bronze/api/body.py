"""The body of a submission: read in pieces, decoded and checked, within limits of memory and time."""

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

#: A larger piece takes more than about a millisecond: it is checked in a thread, so that the event loop serves other
#: requests meanwhile. So is every compressed piece. For a smaller piece, the thread would cost more than the work.
INLINE_BYTES_MAX = 256 * 2**10
#: Bytes that are collected before a thread is used for them.
PIECE_BYTES = 2**20
#: How much, and for how long, the rest of a refused body is still read.
DRAIN_BYTES_MAX = 64 * 2**20
DRAIN_S_MAX = 10.0

T = TypeVar("T")


class Intake(Protocol):
    """Reads the decoded pieces of a body; `finish` returns the submission, `close` discards it."""

    @property
    def records(self) -> int:
        """The number of records read so far."""

    def feed(self, piece: bytes) -> None: ...
    async def finish(self) -> CheckedSubmission: ...
    def close(self) -> None: ...


class BodyReader:
    """Reads bodies of every supported media type and encoding."""

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
        """Read and check the whole body. With `keep_invalid`, records that do not fit the source do not refuse it.

        Raises `Refused`. Before that, the rest of the body is read, within limits, so that the sender sees the answer.
        """
        _check_supported(media_type, encoding)
        decoder = ENCODINGS[encoding]()
        intake = self._intake(source, media_type, keep_invalid=keep_invalid)
        # checking a rejected record takes many times as long as checking a valid one
        inline_bytes_max = 0 if keep_invalid else INLINE_BYTES_MAX

        def feed(piece: bytes) -> None:
            for decoded in decoder.feed(piece):
                intake.feed(decoded)

        try:
            async for piece in _pieces(stream):
                await _run(feed, piece, inline=encoding == "identity" and len(piece) <= inline_bytes_max)
            decoder.finish()
            return await intake.finish()
        except ClientDisconnect as error:
            intake.close()
            raise Refused(Refusal.CLIENT_GONE, "The connection was closed before the end of the body.") from error
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
                    f"?on_invalid=quarantine works for JSON records only ({NDJSON} or {JSON}). An Arrow or Parquet "
                    "body is accepted or refused as a whole.",
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
            quarantine_rejected=keep_invalid,
        )
        if media_type == JSON:
            return _Document(intake, bytes_max, inline_bytes_max=0 if keep_invalid else INLINE_BYTES_MAX)
        return _Lines(intake)


class _Lines:
    """NDJSON: checked while it arrives."""

    def __init__(self, intake: JsonIntake) -> None:
        self._intake = intake

    @property
    def records(self) -> int:
        return self._intake.records

    def feed(self, piece: bytes) -> None:
        self._intake.add_lines(piece)

    async def finish(self) -> CheckedSubmission:
        return self._intake.finish()

    def close(self) -> None:
        self._intake.close()


class _Document(_Lines):
    """JSON: parsed as a whole, in a thread if it is large."""

    def __init__(self, intake: JsonIntake, bytes_max: int, *, inline_bytes_max: int) -> None:
        super().__init__(intake)
        self._bytes_max = bytes_max
        self._inline_bytes_max = inline_bytes_max
        self._document = bytearray()

    def feed(self, piece: bytes) -> None:
        self._document.extend(piece)
        if len(self._document) > self._bytes_max:
            raise too_large(self._bytes_max, "Send NDJSON (application/x-ndjson), which is streamed.")

    async def finish(self) -> CheckedSubmission:
        return await _run(self._parse, inline=len(self._document) <= self._inline_bytes_max)

    def _parse(self) -> CheckedSubmission:
        self._intake.add_document(bytes(self._document))
        return self._intake.finish()


class _Columnar:
    """Arrow and Parquet: spooled to disk, and read by a child process that has limits."""

    def __init__(self, source: Source, body: SpooledBody, readers: ColumnarReaders) -> None:
        self._source = source
        self._body = body
        self._readers = readers
        self.records = 0

    def feed(self, piece: bytes) -> None:
        self._body.write(piece)

    async def finish(self) -> CheckedSubmission:
        checked = await self._readers.read(self._source, self._body)
        self._body.close()
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


async def _pieces(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The body in pieces that are large enough for a thread."""
    piece = bytearray()
    async for chunk in stream:
        piece += chunk
        if len(piece) >= PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


async def _run(work: Callable[..., T], *args: object, inline: bool) -> T:
    """Do CPU work, in a thread unless it is small."""
    return work(*args) if inline else await asyncio.to_thread(work, *args)


async def _drain(stream: AsyncIterator[bytes]) -> None:
    """Read the rest, within limits: a client that is still sending would not see the answer."""
    size = 0
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(DRAIN_S_MAX):
            async for chunk in stream:
                size += len(chunk)
                if size > DRAIN_BYTES_MAX:
                    return
