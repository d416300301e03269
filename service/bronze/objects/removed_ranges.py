"""The messages of removed objects, by their removal records: they bridge the gaps in the chains of the bucket."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bronze.objects.removals import read_removals
from bronze.protocol.lane import Lane
from bronze.servers.bucket import Bucket


@dataclass(frozen=True, slots=True)
class RemovedRange:
    """Messages of a removed object, the time of the last one, and its size in bytes if it is known; without a
    `file_path`, of unknown objects.
    """

    first: int
    last: int
    file_path: str | None = None
    last_time: str = ""
    size: int | None = None


@dataclass(slots=True)
class RemovedRanges:
    """The removed ranges of a lane. An object can only be replaced as a whole, unknown messages also in parts."""

    objects: dict[int, RemovedRange] = field(default_factory=dict)
    unknown: list[RemovedRange] = field(default_factory=list)

    def at(self, sequence: int) -> RemovedRange | None:
        """The range with which a chain continues at a message."""
        of_unknown = (removed for removed in self.unknown if removed.first <= sequence <= removed.last)
        return self.objects.get(sequence) or next(of_unknown, None)

    def beginning(self, before: int) -> int:
        """The first message of the gapless ranges that end right before a message; `before` if there are none."""
        by_last = {removed.last: removed for removed in (*self.unknown, *self.objects.values())}
        while removed := by_last.get(before - 1):
            before = removed.first
        return before

    @property
    def last(self) -> int:
        """The last message of a removed object; 0 if there is none."""
        return max((removed.last for removed in self.objects.values()), default=0)

    def next_object(self, sequence: int) -> RemovedRange:
        """The first removed object after a message, which is not the last one."""
        return self.objects[min(first for first in self.objects if first > sequence)]


async def read_removed_ranges(bucket: Bucket, prefix: str) -> Mapping[Lane, RemovedRanges]:
    """The ranges of all removal records. The records themselves are too large to be kept in memory."""
    lanes: dict[Lane, RemovedRanges] = {}
    async for removal in read_removals(bucket, prefix):
        ranges = lanes.setdefault(removal.of_lane, RemovedRanges())
        if removal.entry is None:
            ranges.unknown.append(RemovedRange(removal.first, removal.last))
        else:
            ranges.objects[removal.first] = RemovedRange(
                removal.first, removal.last, removal.file_path, removal.entry.last_time, removal.bytes
            )
    return lanes
