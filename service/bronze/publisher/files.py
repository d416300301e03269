"""Files: the content that identifies a file, and the check that it has not changed."""

import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, NamedTuple

from bronze.errors import Outage, Unavailable
from bronze.publisher.formats import STDIN, display_name
from bronze.publisher.object_files import copy_object, is_object, object_size

_KEY_CHARS = 32


class Signature(NamedTuple):
    """Size and time of a file: they show that a file changed without reading it."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Signature":
        return cls(status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class OpenFile:
    """An open file. `digest` (of its content) and `signature` are None if it is not a regular file."""

    path: str
    stream: BinaryIO
    digest: str | None
    signature: Signature | None

    def position(self) -> int:
        """How many bytes of the file were read; 0 if it is not a regular file."""
        return self.stream.tell() if self.signature else 0

    def check(self) -> None:
        """Raises `Unavailable` if the file has changed since it was opened."""
        if self.signature and Signature.of(os.fstat(self.stream.fileno())) != self.signature:
            raise Unavailable(
                Outage.UNAVAILABLE,
                f"{display_name(self.path)} changed while it was being sent: send it again when it is complete",
            )


@contextmanager
def open_file(path: str) -> Iterator[OpenFile]:
    """Opens a file for reading. Reads a regular file once to compute its digest. Raises `OSError`."""
    if path == STDIN:
        yield OpenFile(path, sys.stdin.buffer, None, None)
        return
    with _local_file(path) as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            yield OpenFile(path, stream, None, None)
            return
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        stream.seek(0)
        yield OpenFile(path, stream, digest, Signature.of(status))


@contextmanager
def _local_file(path: str) -> Iterator[BufferedReader]:
    """The file, or a copy of an object that is deleted at the end."""
    if not is_object(path):
        with Path(path).open("rb") as stream:
            yield stream
        return
    with tempfile.NamedTemporaryFile("w+b") as copy:
        copy_object(path, copy)
        copy.flush()
        # not the same stream: this one can look ahead
        with Path(copy.name).open("rb") as stream:
            yield stream


def total_size(files: Sequence[str]) -> int | None:
    """The size of all files together in bytes; None if one of them is not a regular file."""
    if STDIN in files:
        return None
    statuses = [Path(file).stat() for file in files if not is_object(file)]
    if not all(stat.S_ISREG(status.st_mode) for status in statuses):
        return None
    return sum(status.st_size for status in statuses) + sum(map(object_size, filter(is_object, files)))


def key_prefix(file: OpenFile, run: str, classification_id: str | None) -> str:
    """The first part of the Idempotency-Keys of a file's submissions, before their number.

    It is the same for the same content at the same path. Publish runs with different names have different keys, so that
    a file can be stored more than once on purpose.
    """
    path = file.path if file.path == STDIN or is_object(file.path) else str(Path(file.path).resolve())
    parts = (run, path, file.digest or "", classification_id or "")
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:_KEY_CHARS]
