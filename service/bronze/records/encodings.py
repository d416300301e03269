"""Decoders for the content encodings of bodies (RFC 9110, section 8.4)."""

import zlib
from collections.abc import Iterator, Mapping
from typing import Protocol

import zstandard

from bronze.errors import Refusal, Refused

_GZIP_WBITS = 16 + zlib.MAX_WBITS


class Decoder(Protocol):
    """Decodes a body piece by piece, in bounded steps, so that a decompression bomb is detected early.

    `finish` is called at the end of the body. Both methods raise `Refused` if the body is corrupt or incomplete.
    """

    def feed(self, data: bytes) -> Iterator[bytes]: ...
    def finish(self) -> None: ...


class NoEncoding:
    """No content encoding."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        yield data

    def finish(self) -> None:
        pass


class Gzip:
    """gzip (RFC 1952), one or more members; yields at most `STEP_BYTES` at once."""

    STEP_BYTES = 2**18

    def __init__(self) -> None:
        self._inflater = zlib.decompressobj(_GZIP_WBITS)
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._inflater.eof:
                self._inflater = zlib.decompressobj(_GZIP_WBITS)
            self._begun = True
            try:
                out = self._inflater.decompress(data, self.STEP_BYTES)
            except zlib.error as error:
                raise _corrupt("gzip", str(error)) from error
            data = self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail
            if out:
                yield out

    def finish(self) -> None:
        if self._begun and not self._inflater.eof:
            raise _corrupt("gzip", "it ends before the end-of-stream marker")


class Zstd:
    """zstd (RFC 8878), one or more frames, with windows of up to 8 MiB, which the RFC asks decoders to support.

    The library returns everything that its input decodes to, so the input is bounded. A block of 4 bytes decodes to at
    most 128 KiB, so that at most `STEP_BYTES` are yielded at once. The size that a frame states is compared here: the
    library does not if the frame comes in pieces and its last block is empty.
    """

    HEAD_BYTES = 18
    WINDOW_BYTES_MAX = 8 * 2**20
    INPUT_BYTES = 256
    STEP_BYTES = INPUT_BYTES // 4 * 128 * 2**10

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=self.WINDOW_BYTES_MAX)
        self._begin_frame()
        self._begun = False

    def _begin_frame(self) -> None:
        self._frame = self._decompressor.decompressobj()
        self._frame_head = b""
        self._frame_bytes = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        view = memoryview(data)
        for start in range(0, len(view), self.INPUT_BYTES):
            rest = bytes(view[start : start + self.INPUT_BYTES])
            while rest:
                if self._frame.eof:
                    self._begin_frame()
                self._begun = True
                # a frame that comes as a whole is decoded by other code, which refuses other frames
                piece = rest if self._frame_head else rest[:1]
                rest = rest[len(piece) :]
                if len(self._frame_head) < self.HEAD_BYTES:
                    self._frame_head += piece[: self.HEAD_BYTES - len(self._frame_head)]
                try:
                    out = self._frame.decompress(piece)
                except zstandard.ZstdError as error:
                    raise _corrupt("zstd", self._reason(error)) from error
                self._frame_bytes += len(out)
                if self._frame.eof:
                    self._check_size()
                    rest = self._frame.unused_data + rest
                if out:
                    yield out

    def finish(self) -> None:
        if self._begun and not self._frame.eof:
            raise _corrupt("zstd", "it ends before the end of its last frame")

    def _check_size(self) -> None:
        stated = zstandard.frame_content_size(self._frame_head)  # -1: none
        if stated not in {-1, self._frame_bytes}:
            raise _corrupt("zstd", f"a frame has {self._frame_bytes} bytes, but states {stated}")

    def _reason(self, error: zstandard.ZstdError) -> str:
        if "too much memory" in str(error):
            return f"its window is larger than {self.WINDOW_BYTES_MAX} bytes; compress it without --long and --ultra"
        return str(error)


def _corrupt(encoding: str, reason: str) -> Refused:
    return Refused(
        Refusal.CORRUPT_ENCODING,
        f"The body is not a complete {encoding} stream: {reason}. Send it again, and check that nothing between you "
        "and the API truncates or changes it.",
    )


ENCODINGS: Mapping[str, type[Decoder]] = {"identity": NoEncoding, "gzip": Gzip, "zstd": Zstd}
