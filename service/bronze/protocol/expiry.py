"""The expiry mark: up to which message the objects of a lane have expired. It is created before any of them is deleted.

The mark of a lane with the greatest message counts. Its key has that number, so that a listing shows which one it is.
"""

import re

import msgspec

from bronze.protocol.documents import CatalogEntry
from bronze.protocol.lane import Lane
from bronze.protocol.removal import Removal, RemovalReason

FOLDER = ".expired/"
CONTENT_TYPE = "application/json"

_KEY = re.compile(r".*/source=(?P<source>[^/]+)/(?P<epoch>[^/-]+)-(?P<lane>[0-9]+)-(?P<last>[0-9]{12,})\.json")


class ExpiryMark(msgspec.Struct, frozen=True, kw_only=True):
    """All objects of a lane up to and including that of `entry` have expired.

    `entry` is what the catalog said of the last of them, without its submissions: `last` and `last_time` identify the
    anchor, and the totals are those of all expired objects. `note` is why, in the words of `expired_by`. `recorded_at`
    is RFC 3339 in UTC.
    """

    entry: CatalogEntry
    note: str
    expired_by: str
    recorded_at: str

    @property
    def of_lane(self) -> Lane:
        return Lane(self.entry.source, self.entry.lane, self.entry.epoch)

    @property
    def last(self) -> int:
        return self.entry.last

    def key(self, prefix: str) -> str:
        """The key of the mark in the bucket."""
        return f"{marks_of_lane(prefix, self.of_lane)}{self.last:012}.json"

    def removal(self) -> Removal:
        """The expiry as a removal: of all objects of the lane up to the last message."""
        totals = self.entry.totals
        return Removal(
            source=self.entry.source,
            epoch=self.entry.epoch,
            lane=self.entry.lane,
            first=1,
            last=self.last,
            reason=RemovalReason.EXPIRED,
            note=self.note,
            removed_by=self.expired_by,
            recorded_at=self.recorded_at,
            records=totals.records if totals else None,
            bytes=totals.bytes if totals else None,
        )

    def removal_of(self, file_path: str, first: int) -> Removal:
        """The same as the removal of one of these objects, of which nothing else is known any more."""
        return msgspec.structs.replace(self.removal(), file_path=file_path, first=first, records=None, bytes=None)


def anchor_of(entry: CatalogEntry) -> CatalogEntry:
    """What a mark keeps of an entry: nothing of the submissions in its object."""
    return msgspec.structs.replace(
        entry,
        submissions=[],
        quarantined=[],
        classifications=[],
        classification_least=None,
        classification_greatest=None,
    )


def marks_of_source(prefix: str, source: str) -> str:
    """The folder of a source's marks."""
    return f"{prefix}/{FOLDER}source={source}/"


def marks_of_lane(prefix: str, lane: Lane) -> str:
    """What the keys of a lane's marks begin with."""
    return f"{marks_of_source(prefix, lane.source)}{lane.epoch}-{lane.number}-"


def lane_of_mark(key: str) -> tuple[Lane, int] | None:
    """The lane and the last expired message of the mark under a key; None if it is not the key of a mark."""
    match = _KEY.fullmatch(key)
    return (Lane(match["source"], int(match["lane"]), match["epoch"]), int(match["last"])) if match else None
