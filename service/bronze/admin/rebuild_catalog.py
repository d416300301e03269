"""The catalog made anew from the bucket alone: what each object's own footer says, in the order of the chains.

The bucket is read twice. First as it is, to know that its chains are whole; only then the catalog is replaced, which
stops every writer, and what they wrote meanwhile is read too.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import BinaryIO

import msgspec

from bronze.errors import Halted, Outage, Unavailable
from bronze.objects.reader import read_contents
from bronze.protocol.documents import Contents
from bronze.protocol.keys import lane_of_key
from bronze.protocol.lane import Lane
from bronze.servers.bucket import Bucket
from bronze.servers.catalog_rebuild import CatalogReplacement
from bronze.servers.queue import Queue

#: Footers that are read at once.
READS = 8
#: Objects that are written in one go.
OBJECTS = 200


@dataclass
class BucketContents:
    """What the bucket holds. `ends` is each lane's last object's `last` and its stored time."""

    objects: int = 0
    records: int = 0
    submissions: int = 0
    #: keys below the prefix that are none of ours
    others: int = 0
    identities: int = 0
    ends: dict[Lane, tuple[int, str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def last(self, lane: Lane) -> int:
        return self.ends.get(lane, (0, ""))[0]

    def add(self, key: str, lane: Lane, first: int, contents: Contents) -> None:
        """Take the next object of a lane. Raises `Halted` where it does not follow the one before."""
        says = (Lane(contents.source, contents.lane, contents.epoch), contents.first, contents.file_path)
        if says != (lane, first, key):
            raise Halted(f"{key} is the object {contents.file_path}, by its own footer: it was moved, or copied here")
        if lane not in self.ends and first > 1:
            self.warnings.append(
                f"{lane.stream} begins at message {first}: what was before is not in the bucket any more"
            )
        elif first != self.last(lane) + 1:
            what = "are in no object" if first > self.last(lane) else "are in two objects"
            low, high = sorted((self.last(lane) + 1, first))
            raise Halted(
                f"{key} begins at message {first} of {lane.stream}, and the object before it ends at "
                f"{self.last(lane)}: messages {low} to {high - 1} {what}. An object was deleted, or put there by hand"
            )
        self.ends[lane] = (contents.last, contents.last_time)
        self.objects += 1
        self.records += contents.records
        self.submissions += sum(one.parts_done == one.parts for one in contents.submissions)


class Rebuild:
    """A catalog from a bucket. `told` hears of each object, once it is read or written."""

    def __init__(self, bucket: Bucket, prefix: str, told: Callable[[], None]) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._told = told

    async def look(self, spool: BinaryIO, found: BucketContents) -> None:
        """Read every object that was not found yet into a spool, and check that the chains are whole.

        Raises `Halted` where they are not.
        """
        async for key, lane, first, contents in self._objects(found):
            found.add(key, lane, first, contents)
            spool.write(msgspec.json.encode(contents) + b"\n")
            self._told()

    async def run(self, catalog: CatalogReplacement, spool: BinaryIO, found: BucketContents, now_s: float) -> None:
        """Replace the catalog by one of what was found in a look, and since then."""
        await catalog.start()
        spool.seek(0, 2)
        await self.look(spool, found)
        spool.seek(0)
        batch: list[Contents] = []
        for contents in (msgspec.json.decode(line, type=Contents) for line in spool):
            batch.append(contents)
            if len(batch) == OBJECTS:
                found.identities += await catalog.append(batch, now_s)
                batch = []
        found.identities += await catalog.append(batch, now_s)
        await catalog.finish()

    async def compare(self, queue: Queue, lanes: Iterable[Lane], found: BucketContents) -> None:
        """Warn of each lane that will stop, since the queue does not go on where its chain in the bucket ends."""
        for lane in lanes:
            last, time = found.ends.get(lane, (0, ""))
            anchor = await queue.get(lane, last) if last else None
            if (anchor.time if anchor else "") != time or (not last and (await queue.state(lane)).first > 1):
                found.warnings.append(
                    f"{lane.stream} will stop: its chain in the bucket ends at message {last}, and the queue does not "
                    "go on from there. An object is missing in the bucket, or the queue was rolled back"
                )

    async def _objects(self, found: BucketContents) -> AsyncIterator[tuple[str, Lane, int, Contents]]:
        """The objects past those that were found, in the order of their keys, which is that of each lane's chain."""
        known = {lane: last for lane, (last, _) in found.ends.items()}
        reading: list[tuple[str, Lane, int, asyncio.Task[Contents | None]]] = []
        found.others = 0
        try:
            async for key in self._bucket.keys(f"{self._prefix}/source="):
                of = lane_of_key(key)
                if of is None:
                    found.others += 1
                    continue
                lane, first = of
                if first <= known.get(lane, 0):
                    continue
                reading.append((key, lane, first, asyncio.create_task(read_contents(self._bucket, key))))
                if len(reading) == READS:
                    yield await _read(*reading.pop(0))
            while reading:
                yield await _read(*reading.pop(0))
        finally:
            for *_, task in reading:
                task.cancel()


async def _read(
    key: str, lane: Lane, first: int, reading: asyncio.Task[Contents | None]
) -> tuple[str, Lane, int, Contents]:
    contents = await reading
    if contents is None:
        raise Unavailable(Outage.CONFLICT, f"{key} was listed and is gone")
    return key, lane, first, contents
