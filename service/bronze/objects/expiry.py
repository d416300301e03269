"""Expiry marks in the bucket: up to which message the objects of each lane have expired."""

from collections.abc import Mapping

import msgspec

from bronze.objects.json_document import read_json_document
from bronze.protocol.expiry import CONTENT_TYPE, FOLDER, ExpiryMark, lane_of_mark, marks_of_lane, marks_of_source
from bronze.protocol.lane import Lane
from bronze.servers.bucket import Bucket


async def expired_up_to(bucket: Bucket, prefix: str, source: str | None = None) -> Mapping[Lane, int]:
    """The last expired message of each lane that has a mark, of one source or of all."""
    keys = await _newest(bucket, marks_of_source(prefix, source) if source else f"{prefix}/{FOLDER}")
    return {lane: last for lane, (last, _) in keys.items()}


async def read_marks(bucket: Bucket, prefix: str) -> Mapping[Lane, ExpiryMark]:
    """The mark that counts of each lane that has one. Raises `Halted` if one cannot be read."""
    newest = await _newest(bucket, f"{prefix}/{FOLDER}")
    marks = {lane: await _read(bucket, key) for lane, (_, key) in newest.items()}
    return {lane: mark for lane, mark in marks.items() if mark}


async def read_mark(bucket: Bucket, prefix: str, lane: Lane) -> ExpiryMark | None:
    """The mark of a lane that counts; None if it has none. Raises `Halted` if it cannot be read."""
    newest = await _newest(bucket, marks_of_lane(prefix, lane))
    return await _read(bucket, newest[lane][1]) if lane in newest else None


async def write_mark(bucket: Bucket, prefix: str, mark: ExpiryMark) -> None:
    """Create a mark. If there is one with the same last message, it stays."""
    await bucket.create(mark.key(prefix), msgspec.json.encode(mark), {}, CONTENT_TYPE)


async def outdated_marks(bucket: Bucket, prefix: str, lane: Lane) -> list[str]:
    """The keys of the marks of a lane that no longer count."""
    keys = [key async for key in bucket.keys(marks_of_lane(prefix, lane))]
    return keys[:-1]


async def _newest(bucket: Bucket, prefix: str) -> dict[Lane, tuple[int, str]]:
    """The last message and the key of the mark of each lane that counts."""
    newest: dict[Lane, tuple[int, str]] = {}
    async for key in bucket.keys(prefix):
        lane, last = lane_of_mark(key) or (None, 0)
        if lane is not None and last > newest.get(lane, (0, ""))[0]:
            newest[lane] = (last, key)
    return newest


async def _read(bucket: Bucket, key: str) -> ExpiryMark | None:
    return await read_json_document(bucket, key, ExpiryMark, "expiry mark")
