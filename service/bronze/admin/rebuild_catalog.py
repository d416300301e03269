"""Rebuild the catalog from the bucket alone: from the footer of each object, in the order of the chains.

Where an object is gone, its removal record takes the place of its footer.

The bucket is read twice. The first time shows that its chains are complete. Only then the catalog is replaced, which
stops every writer; the second time finds the objects that they wrote meanwhile.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

import msgspec

from bronze.errors import Halted, Outage, Unavailable
from bronze.objects.expiry import read_marks
from bronze.objects.reader import read_object
from bronze.objects.removals import read_removal, read_removals
from bronze.objects.removed_ranges import RemovedRange, RemovedRanges, read_removed_ranges
from bronze.protocol.documents import Contents, StoredObject
from bronze.protocol.keys import lane_of_key
from bronze.protocol.lane import Lane
from bronze.protocol.removal import Removal
from bronze.servers.bucket import Bucket
from bronze.servers.catalog_rebuild import CatalogReplacement
from bronze.servers.queue import Queue

#: Footers that are read concurrently.
READS = 8
#: Objects whose entries are appended to the catalog in one call.
BATCH_OBJECTS = 200


class ChainedObject(msgspec.Struct, frozen=True):
    """An object of a chain, or the removal record in its place."""

    stored: StoredObject | None = None
    removal: Removal | None = None


@dataclass
class BucketContents:
    """The contents of the bucket. `ends`: per lane, the last stored message and the time of that message."""

    objects: int = 0
    records: int = 0
    submissions: int = 0
    #: removed objects that the catalog gets the entries of
    removed: int = 0
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
        self.check_follows(key, lane, first)
        self.ends[lane] = (contents.last, contents.last_time)
        self.objects += 1
        self.records += contents.records
        self.submissions += sum(submission.parts_done == submission.parts for submission in contents.submissions)

    def check_follows(self, key: str, lane: Lane, first: int) -> None:
        """Raises `Halted` if an object that begins at a message does not follow the object before it."""
        if lane not in self.ends and first > 1:
            self.warnings.append(
                f"{lane.stream} begins at message {first}: the objects before it are no longer in the bucket"
            )
        elif first != self.last(lane) + 1:
            is_gap = first > self.last(lane)
            low, high = sorted((self.last(lane) + 1, first))
            messages = f"{lane.source}.{lane.number}.{lane.epoch}:{low}-{high - 1}"
            acknowledge = (
                " What cannot be put back has to be acknowledged: by its path if the catalog still names it (`bronze "
                f"objects missing` prints it), else with `bronze objects acknowledge --messages {messages} --reason "
                "...`."
            )
            raise Halted(
                f"{key} begins at message {first} of {lane.stream}, but the object before it ends at message "
                f"{self.last(lane)}: messages {low} to {high - 1} are in {'no object' if is_gap else 'two objects'}. "
                "An object was deleted, or added by hand. Put back what was deleted, or remove what was added; then "
                f"run this command again.{acknowledge if is_gap else ''}"
            )


class Rebuild:
    """Rebuilds the catalog from a bucket. `on_object` is called for each object that was read."""

    def __init__(self, bucket: Bucket, prefix: str, on_object: Callable[[], None]) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._on_object = on_object

    async def read_bucket(self, spool: BinaryIO, found: BucketContents) -> None:
        """Write the footer of every object that is not in `found` to the spool, and check that the chains are complete.

        Raises `Halted` if they are not. Removal records bridge gaps, and continue a chain whose last objects are gone.
        The chain of a lane whose first objects have expired begins after its expiry mark, with the entry in it.
        """
        for lane, mark in (await read_marks(self._bucket, self._prefix)).items():
            if lane not in found.ends:
                found.ends[lane] = (mark.last, mark.entry.last_time)
                _write(spool, ChainedObject(removal=msgspec.structs.replace(mark.removal(), entry=mark.entry)))
        lanes = await read_removed_ranges(self._bucket, self._prefix)
        async for key, lane, first, stored in self._objects(found, lanes):
            await self._bridge(lanes.get(lane, RemovedRanges()), lane, first, spool, found)
            found.add(key, lane, first, stored.contents)
            _write(spool, ChainedObject(stored=stored))
            self._on_object()
        for lane, ranges in lanes.items():
            if ranges.last > found.last(lane):
                await self._bridge(ranges, lane, ranges.last + 1, spool, found)
                if found.last(lane) < ranges.last:
                    removed = ranges.next_object(found.last(lane))
                    found.check_follows(str(removed.file_path), lane, removed.first)

    async def _bridge(
        self, ranges: RemovedRanges, lane: Lane, before: int, spool: BinaryIO, found: BucketContents
    ) -> None:
        """Continue a lane's chain with removed objects, as far as they go, up to the message before `before`."""
        following = found.last(lane) + 1 if lane in found.ends else ranges.beginning(before)
        while following < before and (removed := ranges.at(following)):
            found.check_follows(removed.file_path or "a removal record", lane, following)
            if removed.file_path is None:
                found.ends[lane] = (min(removed.last, before - 1), "")
            else:
                _write(spool, ChainedObject(removal=await self._removal(removed.file_path)))
                found.ends[lane] = (removed.last, removed.last_time)
                found.removed += 1
            following = found.last(lane) + 1

    async def _removal(self, file_path: str) -> Removal:
        removal = await read_removal(self._bucket, self._prefix, file_path)
        if removal is None:
            raise _vanished(f"the removal record of {file_path}")
        return removal

    async def run(self, catalog: CatalogReplacement, spool: BinaryIO, found: BucketContents, now_s: float) -> None:
        """Replace the catalog by the objects in `found` and those written since the bucket was read."""
        await catalog.start()
        spool.seek(0, 2)
        await self.read_bucket(spool, found)
        spool.seek(0)
        batch: list[StoredObject | Removal] = []
        for chained in (msgspec.json.decode(line, type=ChainedObject) for line in spool):
            batch += [item for item in (chained.stored, chained.removal) if item is not None]
            if len(batch) == BATCH_OBJECTS:
                found.identities += await catalog.append(batch, now_s)
                batch = []
        found.identities += await catalog.append(batch, now_s)
        await self._announce(catalog)
        await catalog.finish()

    async def _announce(self, catalog: CatalogReplacement) -> None:
        """Publish all removal records, and what has expired, on the feed of the new catalog."""
        batch = [mark.removal() for mark in (await read_marks(self._bucket, self._prefix)).values()]
        for begin in range(0, len(batch), BATCH_OBJECTS):
            await catalog.announce(batch[begin : begin + BATCH_OBJECTS])
        batch = []
        async for removal in read_removals(self._bucket, self._prefix):
            batch.append(removal.announcement())
            if len(batch) == BATCH_OBJECTS:
                await catalog.announce(batch)
                batch = []
        if batch:
            await catalog.announce(batch)

    async def _damaged(self, key: str, record: RemovedRange) -> bool:
        """Whether an object with a removal record has another size than the record says."""
        head = await self._bucket.head(key)
        return head is not None and record.size not in {None, head.stored_size}

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

    async def _objects(
        self, found: BucketContents, removed: Mapping[Lane, RemovedRanges]
    ) -> AsyncIterator[tuple[str, Lane, int, StoredObject]]:
        """The objects that are not in `found`, in the order of their keys, which is the order of each lane's chain.

        A damaged object whose loss is acknowledged is left out: its removal record takes its place.
        """
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
                record = removed[lane].objects.get(first) if lane in removed else None
                if record and record.file_path == key and await self._damaged(key, record):
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
    try:
        stored = await reading
    except Halted as error:
        raise Halted(
            f"{key} was not written by Bronze, or is damaged: {error.__cause__}. Nothing was changed. Restore it. If "
            "it cannot be restored, acknowledge its loss while the catalog still names it (`bronze objects acknowledge "
            f"{key} --reason ...`), else move it to a key outside the prefix; then run this command again. See "
            'docs/runbook.md, "BronzeRecordsMissing"'
        ) from error
    if stored is None:
        raise _vanished(key)
    return key, lane, first, stored


def _vanished(name: str) -> Unavailable:
    return Unavailable(
        Outage.CONFLICT,
        f"{name} was in the listing of the bucket, but does not exist any more. Run this command again",
    )


def _write(spool: BinaryIO, chained: ChainedObject) -> None:
    spool.write(msgspec.json.encode(chained) + b"\n")
