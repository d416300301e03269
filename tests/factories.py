"""Values of the service's types, for tests that depend only on some of the fields."""

from typing import Any

from bronze.protocol.documents import Contents, StoredObject, entry_of, identities_of
from bronze.protocol.keys import object_key
from bronze.protocol.lane import Lane, lane_subject
from bronze.protocol.message import AcceptedSubmission, Message
from bronze.protocol.removal import Removal, RemovalReason

LANE = Lane("vehicles", 0, "20261124T120000000")
TIME = "2026-11-24T12:34:56.123456789Z"


def accepted(**facts: Any) -> AcceptedSubmission:
    """A submission of one record."""
    defaults: dict[str, Any] = {
        "submission_id": "01939f4e-6b7c-7cc3-a4f5-0242ac120002",
        "source": LANE.source,
        "digest": "0" * 64,
        "records": 1,
        "classification_id": "run",
        "classification_default": "run",
        "classification_count": 1,
        "received_at": "2026-11-24T12:34:56.000000+00:00",
        "trace_id": "0" * 32,
        "traceparent": f"00-{'0' * 32}-{'0' * 16}-01",
    }
    return AcceptedSubmission(**(defaults | facts))


def contents(first: int, last: int, **facts: Any) -> Contents:
    """The footer of an object of these messages, with one record per message and without submissions."""
    first_message = Message(first, lane_subject(LANE.source, LANE.number, "x"), TIME, {}, b"")
    defaults: dict[str, Any] = {
        "writer": "test",
        "file_path": object_key("bronze", LANE, first_message),
        "source": LANE.source,
        "epoch": LANE.epoch,
        "lane": LANE.number,
        "first": first,
        "last": last,
        "last_time": TIME,
        "digest": "",
        "messages": last - first + 1,
        "records": last - first + 1,
        "first_received_at": None,
        "last_received_at": None,
        "traceparent": "",
        "submissions": [],
        "quarantined": [],
        "duplicates": [],
    }
    return Contents(**(defaults | facts))


def stored(contents: Contents, size: int = 1000) -> StoredObject:
    """An object of this size in bytes with these contents."""
    return StoredObject(size=size, contents=contents)


def removal(contents: Contents, **facts: Any) -> Removal:
    """The removal record of an object."""
    defaults: dict[str, Any] = {
        "source": contents.source,
        "epoch": contents.epoch,
        "lane": contents.lane,
        "first": contents.first,
        "last": contents.last,
        "reason": RemovalReason.ACKNOWLEDGED,
        "note": "deleted by a script",
        "removed_by": "operator",
        "recorded_at": "2026-11-24T13:00:00+00:00",
        "file_path": contents.file_path,
        "records": contents.records,
        "entry": entry_of(contents),
        "identities": identities_of(contents),
    }
    return Removal(**(defaults | facts))
