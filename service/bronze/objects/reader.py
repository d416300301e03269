"""Objects in the bucket, read without fetching all of them."""

import asyncio
import io
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar, cast

from bronze.errors import Halted
from bronze.objects.footer import TAIL_BYTES, NotABronzeObject, contents_of_footer, footer_start
from bronze.protocol.documents import Contents
from bronze.servers.bucket import Bucket

T = TypeVar("T")


async def read_contents(bucket: Bucket, key: str) -> Contents | None:
    """What an object's footer says of it, in three small requests; None where there is no such object.

    Raises `Halted` where it is no object of ours.
    """
    head = await bucket.head(key)
    if head is None:
        return None
    try:
        tail = await bucket.read(key, max(0, head.size - TAIL_BYTES), head.size)
        footer = await bucket.read(key, footer_start(head.size, tail), head.size)
        return contents_of_footer(footer)
    except NotABronzeObject as error:
        raise Halted(f"{key} is not an object of ours: {error}") from error


async def read_in_thread(bucket: Bucket, key: str, look: Callable[[BinaryIO], T]) -> T | None:
    """What a look at an object finds, taken in a thread that fetches only what it reads; None: no such object."""
    head = await bucket.head(key)
    if head is None:
        return None
    loop = asyncio.get_running_loop()

    def fetch(start: int, end: int) -> bytes:
        return asyncio.run_coroutine_threadsafe(bucket.read(key, start, end), loop).result()

    return await asyncio.to_thread(look, cast(BinaryIO, _Fetched(head.size, fetch)))


class _Fetched(io.RawIOBase):
    """An object as a file, for a thread that is not the event loop's."""

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        self._size = size
        self._fetch = fetch
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence] + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._size, self._at + len(buffer))
        piece = self._fetch(self._at, end) if end > self._at else b""
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)
