"""The interface of the bucket: an S3 that refuses to create a key twice. `s3.py` implements it."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from bronze.errors import Outage, Unavailable

#: The user metadata of a rewritten object that states its size when it was stored first.
STORED_BYTES = "bronze-stored-bytes"


@dataclass(frozen=True, slots=True)
class Head:
    """An object's size in bytes, its user metadata, and its ETag, which changes with its content."""

    size: int
    metadata: Mapping[str, str]
    etag: str = ""

    @property
    def stored_size(self) -> int:
        """The size of the object when it was stored: catalog and removal records state this one."""
        return int(self.metadata.get(STORED_BYTES, self.size))


class NoSuchKey(Unavailable):
    """There is no object to read: after a HEAD, it was deleted meanwhile."""

    def __init__(self, key: str) -> None:
        super().__init__(Outage.DENIED, f"{key} is not in the bucket any more")


class Bucket(Protocol):
    """The calls of a bucket that the roles need.

    `create` writes a complete object if its key does not exist, and never replaces one: if several writers create the
    same key, exactly one gets True. Each call raises `Unavailable` (`denied`, `throttled`, `conflict`, `timeout`,
    `unavailable`); after it, the write may have happened or not. `read` also raises `NoSuchKey`.
    """

    name: str

    async def create(self, key: str, body: bytes, metadata: Mapping[str, str], content_type: str) -> bool: ...
    async def head(self, key: str) -> Head | None: ...
    async def read(self, key: str, start: int, end: int) -> bytes: ...
    def keys(self, prefix: str, start_after: str = "") -> AsyncIterator[str]: ...
    def sizes(self, prefix: str, start_after: str = "") -> AsyncIterator[tuple[str, int]]: ...
    async def check(self) -> None: ...


class ErasableBucket(Bucket, Protocol):
    """A bucket for retention and erasure, which alone delete and replace objects.

    To delete a key that does not exist is no error. `replace` writes only if the object under the key still has this
    ETag; else it returns False, also if there is none any more. `old_versions` are the ids of the versions of a key
    that are not the current one: without versioning there are none.
    """

    async def delete(self, key: str) -> None: ...
    async def replace(
        self, key: str, body: bytes, metadata: Mapping[str, str], content_type: str, etag: str
    ) -> bool: ...
    async def old_versions(self, key: str) -> Sequence[str]: ...
    async def delete_version(self, key: str, version: str) -> None: ...
