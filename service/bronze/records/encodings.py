"""Content encodings: what a body's bytes are before they are decoded (RFC 9110, section 8.4)."""

import zlib
from collections.abc import Iterator, Mapping
from typing import Protocol

import zstandard

from bronze.errors import Refusal, Refused

_GZIP_WBITS = 16 + zlib.MAX_WBITS


class Decoder(Protocol):
    """Decodes a body piece by piece, in steps that are bounded, so that a bomb is met in time.

    `finish` is called at the body's end. Both raise `Refused` where the body is not whole.
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
    """gzip (RFC 1952), members one after another; gives at most `STEP_BYTES` at once."""

    STEP_BYTES = 2**18

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(_GZIP_WBITS)
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._inflate.eof:
                self._inflate = zlib.decompressobj(_GZIP_WBITS)
            self._begun = True
            try:
                out = self._inflate.decompress(data, self.STEP_BYTES)
            except zlib.error as error:
                raise _corrupt("gzip", str(error)) from error
            data = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
            if out:
                yield out

    def finish(self) -> None:
        if self._begun and not self._inflate.eof:
            raise _corrupt("gzip", "it ends before its end-of-stream mark")


class Zstd:
    """zstd (RFC 8878), frames one after another, with windows up to the 8 MiB that the RFC asks a decoder to take.

    The library gives all that its input holds, so the input is what is bounded: a block of 4 bytes can hold
    128 KiB and no more, which makes `STEP_BYTES` the most at once.
    """

    WINDOW_BYTES_MAX = 8 * 2**20
    INPUT_BYTES = 256
    STEP_BYTES = INPUT_BYTES // 4 * 128 * 2**10

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=self.WINDOW_BYTES_MAX)
        self._frame = self._decompressor.decompressobj()
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        view = memoryview(data)
        for start in range(0, len(view), self.INPUT_BYTES):
            rest = bytes(view[start : start + self.INPUT_BYTES])
            while rest:
                if self._frame.eof:
                    self._frame = self._decompressor.decompressobj()
                self._begun = True
                try:
                    out = self._frame.decompress(rest)
                except zstandard.ZstdError as error:
                    raise _corrupt("zstd", self._why(error)) from error
                rest = self._frame.unused_data if self._frame.eof else b""
                if out:
                    yield out

    def finish(self) -> None:
        if self._begun and not self._frame.eof:
            raise _corrupt("zstd", "it ends before its last frame does")

    def _why(self, error: zstandard.ZstdError) -> str:
        if "too much memory" in str(error):
            return f"its window is larger than {self.WINDOW_BYTES_MAX} bytes; compress without --long and --ultra"
        return str(error)


def _corrupt(encoding: str, why: str) -> Refused:
    return Refused(
        Refusal.CORRUPT_ENCODING,
        f"The body is not whole {encoding}: {why}. Send it again, and check that nothing on the way cuts or alters it.",
    )


ENCODINGS: Mapping[str, type[Decoder]] = {"identity": NoEncoding, "gzip": Gzip, "zstd": Zstd}
