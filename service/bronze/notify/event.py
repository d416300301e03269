"""The id of an event, and how it is written as a CloudEvent (https://cloudevents.io, version 1.0.2)."""

from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec

from bronze.protocol.feed_event import FeedEvent, ObjectEvent

CONTENT_TYPE = "application/cloudevents+json"
OBJECT_STORED = "bronze.object.stored"
OBJECT_REMOVED = "bronze.object.removed"


def event_id(event: FeedEvent, bucket: str) -> UUID:
    """The same for the same event, however often it is sent, also after the catalog was rebuilt.

    That of an object is the UUIDv5 of its address, so that anyone can compute it.
    """
    if isinstance(event, ObjectEvent):
        return uuid5(NAMESPACE_URL, f"s3://{bucket}/{event.file_path}")
    messages = f"{event.source}/{event.epoch}/{event.lane}/{event.first}-{event.last}"
    return uuid5(NAMESPACE_URL, f"s3://{bucket}#removed/{messages}")


def cloud_event(event: FeedEvent, bucket: str, prefix: str) -> bytes:
    """The event in structured mode: all attributes are in the body, so that its signature covers them."""
    is_object = isinstance(event, ObjectEvent)
    document: dict[str, Any] = {
        "specversion": "1.0",
        "id": str(event_id(event, bucket)),
        "source": f"s3://{bucket}/{prefix}",
        "type": OBJECT_STORED if is_object else OBJECT_REMOVED,
        "subject": event.file_path or event.source,
        "time": event.written_at if isinstance(event, ObjectEvent) else event.recorded_at,
        "datacontenttype": "application/json",
        "traceparent": event.traceparent if isinstance(event, ObjectEvent) else None,
        "data": event,
    }
    return msgspec.json.encode({name: value for name, value in document.items() if value})
