"""The removal record: what is no longer in the bucket, why, and who says so. It is created before anything is deleted.

It lies below the prefix, in a folder that readers of datasets ignore, under a key made from that of its object.
"""

from enum import StrEnum

import msgspec

from bronze.protocol.documents import CatalogEntry, Identity
from bronze.protocol.lane import Lane

FOLDER = ".removed/"
SUFFIX = ".json"
CONTENT_TYPE = "application/json"


class RemovalReason(StrEnum):
    """The codes of reasons. A newer version may write others."""

    #: it was missing, and an operator has confirmed that
    ACKNOWLEDGED = "acknowledged"
    #: the objects of a lane up to its last message are older than the retention
    EXPIRED = "expired"


class Removal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was removed: an object; or, without a `file_path`, messages of objects that nothing names any more.

    `first` to `last` are its messages. `note` is why, in the words of `removed_by`. `recorded_at` is RFC 3339 in UTC.
    `records` counts its rows; None if unknown, as `bytes`. `entry` and `identities` are what the catalog said of the
    object: with them the catalog can be rebuilt. The feed's message lacks both. `erasures` are the ids of those that
    have removed a classification from both.

    With the reason `expired`, it is about all objects of the lane up to the message `last`, and the catalog has no
    entries any more of those up to the message `folded`.
    """

    source: str
    epoch: str
    lane: int
    first: int
    last: int
    reason: str
    note: str
    removed_by: str
    recorded_at: str
    file_path: str | None = None
    records: int | None = None
    bytes: int | None = None
    folded: int = 0
    entry: CatalogEntry | None = None
    identities: list[Identity] = []
    erasures: list[str] = []

    @property
    def of_lane(self) -> Lane:
        return Lane(self.source, self.lane, self.epoch)

    @property
    def subject(self) -> str:
        """The subject of its message on the feed: one per removal, and one per lane for what has expired."""
        if self.reason == RemovalReason.EXPIRED:
            return expired_subject(self.of_lane)
        return removal_subject(self.of_lane, self.first)

    def announcement(self) -> "Removal":
        """The removal as the feed's message states it."""
        return msgspec.structs.replace(self, entry=None, identities=[], erasures=[])

    def key(self, prefix: str) -> str:
        """The key of the record in the bucket."""
        if self.file_path is not None:
            return removal_key(prefix, self.file_path)
        name = f"{self.epoch}-{self.lane}-{self.first:012}-{self.last:012}"
        return f"{removals_of(prefix, self.source)}messages/{name}{SUFFIX}"


def removal_subject(lane: Lane, first: int) -> str:
    """The subject on the feed of the removal that begins with a message of a lane."""
    return f"removed.{lane.source}.{lane.number}.{lane.epoch}.{first}"


def expired_subject(lane: Lane) -> str:
    """The subject on the feed that says which objects of a lane have expired."""
    return f"removed.{lane.source}.{lane.number}.{lane.epoch}.{RemovalReason.EXPIRED}"


def removal_key(prefix: str, file_path: str) -> str:
    """The key of an object's removal record. The keys of records are in the order of the keys of their objects."""
    return f"{prefix}/{FOLDER}{file_path.removeprefix(f'{prefix}/')}{SUFFIX}"


def removals_of(prefix: str, source: str) -> str:
    """The folder of a source's removal records."""
    return f"{prefix}/{FOLDER}source={source}/"


def removed_path(prefix: str, key: str) -> str:
    """The object that a removal record is about, by the record's key."""
    return f"{prefix}/{key.removeprefix(f'{prefix}/{FOLDER}').removesuffix(SUFFIX)}"
