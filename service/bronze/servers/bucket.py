"""The interface of the bucket: an S3 that refuses to create a key twice. `s3.py` implements it."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Head:
    """An object's size in bytes and its user metadata."""

    size: int
    metadata: Mapping[str, str]


class Bucket(Protocol):
    """The calls of a bucket that the roles need.

    `create` writes a complete object if its key does not exist, and never replaces one: if several writers create the
    same key, exactly one gets True. Each call raises `Unavailable` (`denied`, `throttled`, `conflict`, `timeout`,
    `unavailable`); after it, the write may have happened or not.
    """

    name: str

    async def create(self, key: str, body: bytes, metadata: Mapping[str, str], content_type: str) -> bool: ...
    async def head(self, key: str) -> Head | None: ...
    async def read(self, key: str, start: int, end: int) -> bytes: ...
    def keys(self, prefix: str, start_after: str = "") -> AsyncIterator[str]: ...
    def sizes(self, prefix: str, start_after: str = "") -> AsyncIterator[tuple[str, int]]: ...
    async def check(self) -> None: ...


class ErasableBucket(Bucket, Protocol):
    """A bucket for retention, which alone deletes objects. To delete a key that does not exist is no error."""

    async def delete(self, key: str) -> None: ...
