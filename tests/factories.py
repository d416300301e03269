"""Values of the service's types, for tests to which only some of their fields matter."""

from typing import Any

from bronze.protocol.documents import Contents
from bronze.protocol.keys import object_key
from bronze.protocol.lane import Lane, lane_subject
from bronze.protocol.message import AcceptedSubmission, Message

LANE = Lane("vehicles", 0, "20261124T120000000")
TIME = "2026-11-24T12:34:56.123456789Z"


def accepted(**facts: Any) -> AcceptedSubmission:
    """A submission of one record."""
    known: dict[str, Any] = {
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
    return AcceptedSubmission(**(known | facts))


def contents(first: int, last: int, **facts: Any) -> Contents:
    """An object of these messages, under its own key, with a record for each and no submission listed."""
    anchor = Message(first, lane_subject(LANE.source, LANE.number, "x"), TIME, {}, b"")
    known: dict[str, Any] = {
        "writer": "test",
        "file_path": object_key("bronze", LANE, anchor),
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
    return Contents(**(known | facts))
