"""Rebuild the catalog from the bucket alone: from the footer of each object, in the order of the chains.

The bucket is read twice. The first time shows that its chains are complete. Only then the catalog is replaced, which
stops every writer; the second time finds the objects that they wrote meanwhile.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import BinaryIO

import msgspec

from bronze.errors import Halted, Outage, Unavailable
from bronze.objects.reader import read_object
from bronze.protocol.documents import Contents, StoredObject
from bronze.protocol.keys import lane_of_key
from bronze.protocol.lane import Lane
from bronze.servers.bucket import Bucket
from bronze.servers.catalog_rebuild import CatalogReplacement
from bronze.servers.queue import Queue

#: Footers that are read concurrently.
READS = 8
#: Objects whose entries are appended to the catalog in one call.
BATCH_OBJECTS = 200


@dataclass
class BucketContents:
    """The contents of the bucket. `ends`: per lane, the last stored message and the time of that message."""

    objects: int = 0
    records: int = 0
    submissions: int = 0
    #: keys under the prefix that are not objects of Bronze
    unknown_keys: int = 0
    identities: int = 0
    ends: dict[Lane, tuple[int, str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def last(self, lane: Lane) -> int:
        return self.ends.get(lane, (0, ""))[0]

    def add(self, key: str, lane: Lane, first: int, contents: Contents) -> None:
        """Add the next object of a lane. Raises `Halted` if it does not follow the object before it."""
        described = (Lane(contents.source, contents.lane, contents.epoch), contents.first, contents.file_path)
        if described != (lane, first, key):
            raise Halted(
                f"the footer of {key} says that its key is {contents.file_path}: the object was moved, or copied to "
                "this key. Move it back, or delete the copy if the original is there; then run this command again"
            )
        if lane not in self.ends and first > 1:
            self.warnings.append(
                f"{lane.stream} begins at message {first}: the objects before it are no longer in the bucket"
            )
        elif first != self.last(lane) + 1:
            fault = "are in no object" if first > self.last(lane) else "are in two objects"
            low, high = sorted((self.last(lane) + 1, first))
            raise Halted(
                f"{key} begins at message {first} of {lane.stream}, but the object before it ends at message "
                f"{self.last(lane)}: messages {low} to {high - 1} {fault}. An object was deleted, or added by hand. "
                "Put back what was deleted, or remove what was added; then run this command again"
            )
        self.ends[lane] = (contents.last, contents.last_time)
        self.objects += 1
        self.records += contents.records
        self.submissions += sum(submission.parts_done == submission.parts for submission in contents.submissions)


class Rebuild:
    """Rebuilds the catalog from a bucket. `on_object` is called for each object that was read."""

    def __init__(self, bucket: Bucket, prefix: str, on_object: Callable[[], None]) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._on_object = on_object

    async def read_bucket(self, spool: BinaryIO, found: BucketContents) -> None:
        """Write the footer of every object that is not in `found` to the spool, and check that the chains are complete.

        Raises `Halted` if they are not.
        """
        async for key, lane, first, stored in self._objects(found):
            found.add(key, lane, first, stored.contents)
            spool.write(msgspec.json.encode(stored) + b"\n")
            self._on_object()

    async def run(self, catalog: CatalogReplacement, spool: BinaryIO, found: BucketContents, now_s: float) -> None:
        """Replace the catalog by the objects in `found` and those written since the bucket was read."""
        await catalog.start()
        spool.seek(0, 2)
        await self.read_bucket(spool, found)
        spool.seek(0)
        batch: list[StoredObject] = []
        for stored in (msgspec.json.decode(line, type=StoredObject) for line in spool):
            batch.append(stored)
            if len(batch) == BATCH_OBJECTS:
                found.identities += await catalog.append(batch, now_s)
                batch = []
        found.identities += await catalog.append(batch, now_s)
        await catalog.finish()

    async def compare(self, queue: Queue, lanes: Iterable[Lane], found: BucketContents) -> None:
        """Add a warning for each lane that will halt because the queue does not continue its chain in the bucket."""
        for lane in lanes:
            last, time = found.ends.get(lane, (0, ""))
            anchor = await queue.get(lane, last) if last else None
            if (anchor.time if anchor else "") != time or (not last and (await queue.state(lane)).first > 1):
                found.warnings.append(
                    f"{lane.stream} will halt: its chain in the bucket ends at message {last}, but the queue does not "
                    "continue it. An object is missing in the bucket, or the queue was rolled back"
                )

    async def _objects(self, found: BucketContents) -> AsyncIterator[tuple[str, Lane, int, StoredObject]]:
        """The objects that are not in `found`, in the order of their keys, which is the order of each lane's chain."""
        known = {lane: last for lane, (last, _) in found.ends.items()}
        reading: list[tuple[str, Lane, int, asyncio.Task[StoredObject | None]]] = []
        found.unknown_keys = 0
        try:
            async for key in self._bucket.keys(f"{self._prefix}/source="):
                place = lane_of_key(key)
                if place is None:
                    found.unknown_keys += 1
                    continue
                lane, first = place
                if first <= known.get(lane, 0):
                    continue
                reading.append((key, lane, first, asyncio.create_task(read_object(self._bucket, key))))
                if len(reading) == READS:
                    yield await _read(*reading.pop(0))
            while reading:
                yield await _read(*reading.pop(0))
        finally:
            for *_, task in reading:
                task.cancel()


async def _read(
    key: str, lane: Lane, first: int, reading: asyncio.Task[StoredObject | None]
) -> tuple[str, Lane, int, StoredObject]:
    stored = await reading
    if stored is None:
        raise Unavailable(
            Outage.CONFLICT,
            f"{key} was in the listing of the bucket, but does not exist any more. Run this command again",
        )
    return key, lane, first, stored
