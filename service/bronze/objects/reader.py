"""Reading objects in the bucket without fetching all their bytes."""

import asyncio
import io
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar, cast

from bronze.errors import Halted
from bronze.objects.footer import TAIL_BYTES, NotABronzeObject, contents_of_footer, footer_start
from bronze.protocol.documents import Contents, StoredObject
from bronze.servers.bucket import Bucket, NoSuchKey

T = TypeVar("T")


async def read_contents(bucket: Bucket, key: str) -> Contents | None:
    """The contents of an object, as `read_object` reads them."""
    stored = await read_object(bucket, key)
    return stored.contents if stored else None


async def read_object(bucket: Bucket, key: str) -> StoredObject | None:
    """The size and contents of an object, in three small requests; None if there is no such object.

    Raises `Halted` if Bronze did not write the object.
    """
    head = await bucket.head(key)
    if head is None:
        return None
    try:
        tail = await bucket.read(key, max(0, head.size - TAIL_BYTES), head.size)
        footer = await bucket.read(key, footer_start(head.size, tail), head.size)
        return StoredObject(size=head.size, contents=contents_of_footer(footer))
    except NoSuchKey:
        return None
    except NotABronzeObject as error:
        raise Halted(
            f"{key} was not written by Bronze, or is damaged: {error}. Nothing was changed. See docs/delivery.md, "
            '"When a lane stops"'
        ) from error


async def read_in_thread(bucket: Bucket, key: str, read: Callable[[BinaryIO], T]) -> T | None:
    """Call `read` with an object as a file, in a thread, and return its result; None if there is no such object.

    Only the byte ranges that `read` reads are fetched.
    """
    head = await bucket.head(key)
    if head is None:
        return None
    loop = asyncio.get_running_loop()

    def fetch(start: int, end: int) -> bytes:
        return asyncio.run_coroutine_threadsafe(bucket.read(key, start, end), loop).result()

    try:
        return await asyncio.to_thread(read, cast(BinaryIO, _RemoteFile(head.size, fetch)))
    except NoSuchKey:
        return None


class _RemoteFile(io.RawIOBase):
    """An object as a file, for a thread other than that of the event loop."""

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        self._size = size
        self._fetch = fetch
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._size, self._position + len(buffer))
        data = self._fetch(self._position, end) if end > self._position else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
