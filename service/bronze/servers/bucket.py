"""The bucket: what is needed of an S3 that takes a key once. `s3.py` is the real one."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class Head:
    """An object's size in bytes and its user metadata."""

    size: int
    metadata: Mapping[str, str]


class Bucket(Protocol):
    """What the roles need of a bucket.

    `create` writes a key that is not there, whole, and never another's: of any number of writers one is told True.
    Each raises `Unavailable` (kinds `denied`, `throttled`, `conflict`, `timeout`, `unavailable`), after which the
    write may have happened or not.
    """

    name: str

    async def create(self, key: str, body: bytes, metadata: Mapping[str, str], content_type: str) -> bool: ...
    async def head(self, key: str) -> Head | None: ...
    async def read(self, key: str, start: int, end: int) -> bytes: ...
    def keys(self, prefix: str, start_after: str = "") -> AsyncIterator[str]: ...
    async def check(self) -> None: ...
