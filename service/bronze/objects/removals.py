"""Removal records in the bucket: which objects are gone on purpose, or known to be lost."""

import asyncio
from collections.abc import AsyncIterator

import msgspec

from bronze.objects.expiry import read_mark
from bronze.objects.json_document import read_json_document
from bronze.protocol.keys import lane_of_key
from bronze.protocol.removal import CONTENT_TYPE, FOLDER, Removal, removal_key, removals_of, removed_path
from bronze.servers.bucket import Bucket

#: Records that are read concurrently.
READS = 16


async def read_removal(bucket: Bucket, prefix: str, file_path: str) -> Removal | None:
    """The removal record of an object, or that it has expired; None if neither is the case.

    Raises `Halted` if the record, or the mark, cannot be read.
    """
    if removal := await _read(bucket, removal_key(prefix, file_path)):
        return removal
    lane, first = lane_of_key(file_path) or (None, 0)
    mark = await read_mark(bucket, prefix, lane) if lane else None
    return mark.removal_of(file_path, first) if mark and first <= mark.last else None


async def read_effective_removal(bucket: Bucket, prefix: str, file_path: str, size: int | None) -> Removal | None:
    """The removal record that counts, by the stored size of the object in the bucket, None if it is gone. If it is
    there, its record counts only if it says another size: what is left of the object is then damaged.
    """
    removal = await read_removal(bucket, prefix, file_path)
    return removal if removal and (size is None or removal.bytes not in {None, size}) else None


async def write_removal(bucket: Bucket, prefix: str, removal: Removal) -> Removal:
    """Create a removal record, and return the record that counts: an existing one is never replaced."""
    key = removal.key(prefix)
    await bucket.create(key, msgspec.json.encode(removal), {}, CONTENT_TYPE)
    return await _read(bucket, key) or removal


async def removed_paths(bucket: Bucket, prefix: str, source: str, least: str, greatest: str | None = None) -> set[str]:
    """The objects of a source with a removal record, from the key `least` on, up to the key `greatest`."""
    removed: set[str] = set()
    async for key in bucket.keys(removals_of(prefix, source), removal_key(prefix, least)[:-1]):
        file_path = removed_path(prefix, key)
        if greatest is not None and file_path > greatest:
            break
        removed.add(file_path)
    return removed


async def read_removals(bucket: Bucket, prefix: str) -> AsyncIterator[Removal]:
    """All removal records, in the order of their keys."""
    keys: list[str] = []
    async for key in bucket.keys(f"{prefix}/{FOLDER}"):
        keys.append(key)
        if len(keys) == READS:
            for removal in await _read_all(bucket, keys):
                yield removal
            keys = []
    for removal in await _read_all(bucket, keys):
        yield removal


async def _read_all(bucket: Bucket, keys: list[str]) -> list[Removal]:
    read = await asyncio.gather(*(_read(bucket, key) for key in keys))
    return [removal for removal in read if removal is not None]


async def _read(bucket: Bucket, key: str) -> Removal | None:
    return await read_json_document(bucket, key, Removal, "removal record")
