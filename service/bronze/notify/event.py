"""The id of an event, and how it is written as a CloudEvent (https://cloudevents.io, version 1.0.2)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec

from bronze.protocol.feed_event import FeedEvent, ObjectEvent, RemovalEvent
from bronze.protocol.snapshot_summary import OBJECTS, TRACEPARENT

if TYPE_CHECKING:  # pyiceberg is slow to import, and only needed if there are tables
    from bronze.servers.iceberg import SnapshotFacts, TableHistory

CONTENT_TYPE = "application/cloudevents+json"
OBJECT_STORED = "bronze.object.stored"
OBJECT_REMOVED = "bronze.object.removed"
TABLE_COMMITTED = "bronze.table.committed"


@dataclass(frozen=True, slots=True)
class SnapshotEvent:
    """A snapshot of the table of a source, which any program may have made.

    `records` are those that it added, `objects` those of Bronze whose rows it added, and `traceparent` is the span of
    the commit; None if the snapshot does not say so. `committed_at` is RFC 3339 in UTC. Ids of snapshots have more
    digits than JavaScript's numbers.
    """

    source: str
    table_uuid: str
    location: str
    snapshot_id: str
    parent_snapshot_id: str | None
    sequence: int
    operation: str | None
    committed_at: str
    records: int | None
    objects: int | None
    traceparent: str | None
    kind: Literal["snapshot"] = "snapshot"

    @classmethod
    def of(cls, source: str, table: "TableHistory", snapshot: "SnapshotFacts") -> Self:
        records, objects = (snapshot.summary.get(name) for name in ("added-records", OBJECTS))
        return cls(
            source=source,
            table_uuid=table.uuid,
            location=table.location,
            snapshot_id=str(snapshot.id),
            parent_snapshot_id=None if snapshot.parent_id is None else str(snapshot.parent_id),
            sequence=snapshot.sequence,
            operation=snapshot.summary.get("operation"),
            committed_at=snapshot.committed_at.isoformat(),
            records=None if records is None else int(records),
            objects=None if objects is None else int(objects),
            traceparent=snapshot.summary.get(TRACEPARENT),
        )


Event = FeedEvent | SnapshotEvent


def happened_at(event: Event) -> str | None:
    """When the write of an object began, a removal was recorded, or a snapshot was committed; None if not known."""
    match event:
        case ObjectEvent():
            return event.written_at
        case RemovalEvent():
            return event.recorded_at
        case SnapshotEvent():
            return event.committed_at


def traceparent_of(event: Event) -> str | None:
    """The span of the upload or of the commit, if there is one."""
    return None if isinstance(event, RemovalEvent) else event.traceparent


def event_id(event: Event, bucket: str) -> UUID:
    """The same for the same event, however often it is sent, also after the catalog was rebuilt.

    That of an object is the UUIDv5 of its address, so that anyone can compute it.
    """
    if isinstance(event, ObjectEvent):
        return uuid5(NAMESPACE_URL, f"s3://{bucket}/{event.file_path}")
    if isinstance(event, SnapshotEvent):
        return uuid5(NAMESPACE_URL, f"{event.location}#{event.table_uuid}/{event.snapshot_id}")
    messages = f"{event.source}/{event.epoch}/{event.lane}/{event.first}-{event.last}"
    return uuid5(NAMESPACE_URL, f"s3://{bucket}#removed/{messages}")


def type_and_subject(event: Event) -> tuple[str, str]:
    """The attributes `type` and `subject`: what has happened, and to what."""
    match event:
        case ObjectEvent():
            return OBJECT_STORED, event.file_path
        case RemovalEvent():
            return OBJECT_REMOVED, event.file_path or event.source
        case SnapshotEvent():
            return TABLE_COMMITTED, event.source


def cloud_event(event: Event, bucket: str, prefix: str) -> bytes:
    """The event in structured mode: all attributes are in the body, so that its signature covers them."""
    kind, subject = type_and_subject(event)
    document: dict[str, Any] = {
        "specversion": "1.0",
        "id": str(event_id(event, bucket)),
        "source": f"s3://{bucket}/{prefix}",
        "type": kind,
        "subject": subject,
        "time": happened_at(event),
        "datacontenttype": "application/json",
        "traceparent": traceparent_of(event),
        "data": event,
    }
    return msgspec.json.encode({name: value for name, value in document.items() if value})
