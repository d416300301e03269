"""The events of the HTTP feed: an object that can be read, and a removal."""

from dataclasses import dataclass
from typing import Literal, Self

import msgspec

from bronze.protocol.documents import CatalogEntry, EventTimes, trace_id_of
from bronze.protocol.lane import Lane
from bronze.protocol.removal import Removal

#: Principals that an event names.
PRINCIPALS_MAX = 16


@dataclass(frozen=True, slots=True)
class ObjectEvent:
    """An object that can be read. Times are RFC 3339 in UTC.

    `first` to `last` are its messages in its lane. `bytes` is its size, and `schema_versions` are the versions of the
    source that its rows were checked against; None if the catalog does not say so. Its classification ids lie between
    `classification_least` and `classification_greatest`. `principals` are the first of those who sent its records, by
    name, and `principal_count` counts all. `written_at` is when its write began; its records were received between
    `first_received_at` and `last_received_at`; `event_times` are those of its rows, None if its source declared none.
    `trace_id` is that of its upload, and `traceparent` its span. `removed`: it was removed meanwhile, and a removal
    follows.
    """

    file_path: str
    source: str
    lane: int
    epoch: str
    first: int
    last: int
    records: int
    bytes: int | None
    schema_versions: list[int] | None
    classification_count: int | None
    classification_least: str | None
    classification_greatest: str | None
    principals: list[str]
    principal_count: int
    written_at: str | None
    first_received_at: str | None
    last_received_at: str | None
    trace_id: str
    removed: bool = False
    event_times: EventTimes | None = None
    traceparent: str | None = None
    kind: Literal["object"] = "object"

    @classmethod
    def of(cls, entry: CatalogEntry, size: int | None) -> Self:
        principals = sorted({submission.principal for submission in entry.submissions if submission.principal})
        received = [submission.received_at for submission in entry.submissions if submission.received_at]
        return cls(
            file_path=entry.file_path,
            source=entry.source,
            lane=entry.lane,
            epoch=entry.epoch,
            first=entry.first,
            last=entry.last,
            records=entry.records,
            bytes=size,
            schema_versions=entry.schema_versions,
            classification_count=entry.classification_count,
            classification_least=entry.classification_least,
            classification_greatest=entry.classification_greatest,
            principals=principals[:PRINCIPALS_MAX],
            principal_count=len(principals),
            written_at=entry.written_at or None,
            first_received_at=min(received, default=None),
            last_received_at=max(received, default=None),
            trace_id=trace_id_of(entry.traceparent),
            event_times=None if entry.event_times is msgspec.UNSET else entry.event_times,
            traceparent=entry.traceparent or None,
        )

    @property
    def of_lane(self) -> Lane:
        return Lane(self.source, self.lane, self.epoch)


@dataclass(frozen=True, slots=True)
class RemovalEvent:
    """A removal: an object is no longer in the bucket; or messages without one, if no catalog entry names any.

    With the reason `expired` it is about all objects of the lane up to the message `last`: they have no event of their
    own, and objects that have expired are not sent to followers any more. It comes again for each greater `last`.

    `records` and `bytes` are what it had; None if unknown. `reason` is a code, and `note` why, in the words of
    `removed_by`. `recorded_at` is RFC 3339 in UTC.
    """

    file_path: str | None
    source: str
    lane: int
    epoch: str
    first: int
    last: int
    records: int | None
    bytes: int | None
    reason: str
    note: str
    removed_by: str
    recorded_at: str
    kind: Literal["removal"] = "removal"

    @classmethod
    def of(cls, removal: Removal) -> Self:
        return cls(
            file_path=removal.file_path,
            source=removal.source,
            lane=removal.lane,
            epoch=removal.epoch,
            first=removal.first,
            last=removal.last,
            records=removal.records,
            bytes=removal.bytes,
            reason=removal.reason,
            note=removal.note,
            removed_by=removal.removed_by,
            recorded_at=removal.recorded_at,
        )

    @property
    def of_lane(self) -> Lane:
        return Lane(self.source, self.lane, self.epoch)


FeedEvent = ObjectEvent | RemovalEvent
