"""What the clients return."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from bronze.protocol.feed_event import FeedEvent, ObjectEvent


class Submission(msgspec.Struct, frozen=True):
    """An accepted submission. `rejected` records went to quarantine, if that was asked for.

    `classification_id` is that of all records; None if there are several.
    """

    submission_id: str
    source: str
    records: int
    trace_id: str
    rejected: int = 0
    classification_id: str | None = None
    classification_count: int | None = None


class StoredObject(msgspec.Struct, frozen=True):
    """An object that contains a part of a submission."""

    file_path: str


class Status(msgspec.Struct, frozen=True):
    """Where a submission is: `accepted`, then `stored`, `quarantined` or `removed`; and its objects so far."""

    submission_id: str
    source: str
    status: str
    records: int
    objects: list[StoredObject]
    quarantine: list[str] = []

    @property
    def file_paths(self) -> list[str]:
        return [stored.file_path for stored in self.objects]


@dataclass(frozen=True, slots=True)
class FeedPage:
    """Events in order, and the cursor after them. `more`: others follow at once."""

    events: Sequence[FeedEvent]
    cursor: str
    more: bool

    @property
    def objects(self) -> list[ObjectEvent]:
        """The objects among the events."""
        return [event for event in self.events if isinstance(event, ObjectEvent)]
