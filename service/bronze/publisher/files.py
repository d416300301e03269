"""Files: which content one has, and whether it still has it."""

import hashlib
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from bronze.errors import Outage, Unavailable
from bronze.publisher.formats import STDIN

_KEY_CHARS = 32


class Signature(NamedTuple):
    """What changes when a file does, short of reading it."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, told: os.stat_result) -> "Signature":
        return cls(told.st_size, told.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that is open, its content known where it is a regular file."""

    path: str
    stream: BinaryIO
    digest: str | None
    signature: Signature | None

    def position(self) -> int:
        """How many of its bytes were read; 0 where nobody knows."""
        return self.stream.tell() if self.signature else 0

    def check(self) -> None:
        """Raises `Unavailable` if the file is not what it was when it was opened."""
        if self.signature and Signature.of(os.fstat(self.stream.fileno())) != self.signature:
            raise Unavailable(
                Outage.UNAVAILABLE, f"{self.path} changed while it was sent: send it again once it is complete"
            )


@contextmanager
def open_file(path: str) -> Iterator[OpenFile]:
    """Opens a file for reading, and reads a regular one once to know its content. Raises `OSError`."""
    if path == STDIN:
        yield OpenFile(path, sys.stdin.buffer, None, None)
        return
    with Path(path).open("rb") as stream:
        told = os.fstat(stream.fileno())
        if not stat.S_ISREG(told.st_mode):
            yield OpenFile(path, stream, None, None)
            return
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        stream.seek(0)
        yield OpenFile(path, stream, digest, Signature.of(told))


def size(files: Sequence[str]) -> int | None:
    """The size of all files in bytes, if each has one."""
    if STDIN in files:
        return None
    told = [Path(file).stat() for file in files]
    return sum(s.st_size for s in told) if all(stat.S_ISREG(s.st_mode) for s in told) else None


def key(file: OpenFile, run: str, classification_id: str | None) -> str:
    """What a file's submissions are sent under, beside their number: the same for the same content at the same path.

    `run` sets sendings apart that mean the same file to be there more than once.
    """
    path = file.path if file.path == STDIN else str(Path(file.path).resolve())
    facts = (run, path, file.digest or "", classification_id or "")
    return hashlib.sha256("\0".join(facts).encode(errors="surrogateescape")).hexdigest()[:_KEY_CHARS]
