"""What is stored beside the rows: the object's footer, the catalog entry, and a submission's identity."""

from dataclasses import dataclass
from typing import Literal

import msgspec

from bronze.protocol.message import AcceptedSubmission, MessageKind

CLASSIFICATIONS_LISTED_MAX = 128


#: The longest client text that a catalog entry repeats: 999 submissions have to fit into one message of the queue.
ENTRY_TEXT_BYTES_MAX = 128


def trace_id_of(traceparent: str) -> str:
    """The trace id in a `traceparent`; all 0 if there is none."""
    parts = traceparent.split("-")
    return parts[1] if len(parts) == 4 else "0" * 32


class StoredSubmission(msgspec.Struct, frozen=True, kw_only=True):
    """A submission in an object, with the facts that its identity needs.

    `parts_done` counts the parts up to and including this object, of `parts` in all. `records` counts the records in
    this object; `objects` lists all objects that hold a part of the submission so far, and `quarantined` the keys of
    its parts in quarantine. `queued_at` is the time when the queue stored the submission's first message in this
    object, as the server wrote it.
    """

    accepted: AcceptedSubmission
    first_sequence: int
    parts: int
    parts_done: int
    parts_quarantined: int
    records: int
    objects: list[str]
    queued_at: str = ""
    quarantined: list[str] = []


class QuarantinedMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message in quarantine under `key`, byte for byte, with its headers.

    If `kind` is `rejected`, the message itself is correct: it holds rejected records, quarantined at the sender's
    request.
    """

    sequence: int
    key: str
    reason: str
    records: int
    headers: dict[str, str]
    kind: MessageKind = MessageKind.RECORDS


class Duplicate(msgspec.Struct, frozen=True, kw_only=True):
    """A message of a submission that is already stored elsewhere."""

    sequence: int
    submission_id: str
    records: int


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """What a lane's chain holds from its first message on: the ledger.

    `objects` and their `bytes`; and all records of the messages, each with one outcome: in a row (`records`), in
    quarantine as a dead letter (`quarantined`) or at the sender's request (`rejected`), or stored elsewhere already
    (`duplicates`). The records of a dead letter whose headers cannot be read are unknown, and are not counted.
    """

    objects: int = 0
    bytes: int = 0
    records: int = 0
    quarantined: int = 0
    rejected: int = 0
    duplicates: int = 0

    @property
    def all_records(self) -> int:
        return self.records + self.quarantined + self.rejected + self.duplicates

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})


@dataclass(frozen=True, slots=True)
class EventTimes:
    """When what the rows of an object are about happened: the least and the greatest value of the field that the source
    declares as its event time. They are RFC 3339 in UTC, or dates.
    """

    field: str
    least: str
    greatest: str


class ErasedRows(msgspec.Struct, frozen=True, kw_only=True):
    """What an erasure has removed from an object: its rows of a person. The object had these bytes before it."""

    erasure_id: str
    records: int
    bytes: int
    sha256: str


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """The footer of an object: what it holds. Everything that is derived from a write is derived from its footer.

    `written_at` is the consumer's clock right before the PUT (RFC 3339 in UTC). `classifications` lists the first of
    the classifications that the rows belong to; `classification_count` counts all of them. They all lie between
    `classification_least` and `classification_greatest` (by code points, as in Parquet's statistics).
    `totals_before` are the totals of the lane before this object. The fields with defaults are missing in the footers
    of older versions. `event_times` is missing if the source declares none, or no row has one.

    `erasures` are those that have rewritten the object, in their order; missing if there were none. The records that
    they removed are still counted in `records`, and the facts about messages and submissions stay, but what the rows
    have (`classifications` to `classification_greatest`, `event_times`) is that of the rows that are left.
    """

    writer: str
    file_path: str
    source: str
    epoch: str
    lane: int
    first: int
    last: int
    last_time: str
    digest: str
    messages: int
    records: int
    first_received_at: str | None
    last_received_at: str | None
    traceparent: str
    submissions: list[StoredSubmission]
    quarantined: list[QuarantinedMessage]
    duplicates: list[Duplicate]
    written_at: str = ""
    classifications: list[str] = []
    classification_count: int | None = None
    classification_least: str | None = None
    classification_greatest: str | None = None
    totals_before: Totals | None = None
    event_times: EventTimes | msgspec.UnsetType = msgspec.UNSET
    erasures: list[ErasedRows] | msgspec.UnsetType = msgspec.UNSET

    @property
    def erased(self) -> int:
        """The number of records that were erased from the object."""
        return sum(erased.records for erased in self.erasures) if self.erasures else 0

    @property
    def rows(self) -> int:
        """The number of rows in the file."""
        return self.records - self.erased

    def stored_size(self, size: int) -> int:
        """The size of the object when it was stored, in bytes; `size` is that of its file."""
        return self.erasures[0].bytes if self.erasures else size


class StoredObject(msgspec.Struct, frozen=True, kw_only=True):
    """An object in the bucket: its size in bytes, and the contents of its footer."""

    size: int
    contents: Contents

    @property
    def totals(self) -> Totals:
        """What this object adds to the totals of its lane."""
        quarantined = self.contents.quarantined
        return Totals(
            objects=1,
            bytes=self.contents.stored_size(self.size),
            records=self.contents.records,
            quarantined=sum(one.records for one in quarantined if one.kind is not MessageKind.REJECTED),
            rejected=sum(one.records for one in quarantined if one.kind is MessageKind.REJECTED),
            duplicates=sum(duplicate.records for duplicate in self.contents.duplicates),
        )


class EntrySubmission(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A submission in an object.

    `records` counts its records in this object, `records_accepted` all its records; None if both are the same.
    `classification_id` is the classification of all its records. It is None if there are several (see the object's
    column) or, like `origin`, if it is too long for an entry. `principal` is never too long.
    """

    submission_id: str
    trace_id: str
    records: int
    records_accepted: int | None = None
    parts: int = 1
    parts_done: int = 1
    parts_quarantined: int = 0
    received_at: str = ""
    queued_at: str = ""
    classification_id: str | None = None
    classification_count: int | None = None
    origin: str | None = None
    principal: str = ""


class CatalogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """The catalog's note that an object exists; `last` is the chain's position, `last_time` identifies its anchor.

    `totals` are those of the lane up to and including this object, `schema_versions` the versions of the source that
    its rows were checked against; entries of older versions lack them. `erased` counts the records of `records` that
    were erased; it is missing if the object was never rewritten. The other fields, which are as in `Contents`, are for
    readers of the feed and for look-ups of objects.
    """

    file_path: str
    source: str
    epoch: str
    lane: int
    first: int
    last: int
    last_time: str
    records: int
    messages: int
    traceparent: str
    submissions: list[EntrySubmission]
    quarantined: list[str]
    duplicates: int
    written_at: str = ""
    classifications: list[str] = []
    classification_count: int | None = None
    classification_least: str | None = None
    classification_greatest: str | None = None
    totals: Totals | None = None
    schema_versions: list[int] | None = None
    event_times: EventTimes | msgspec.UnsetType = msgspec.UNSET
    erased: int | msgspec.UnsetType = msgspec.UNSET


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Where a submission is stored: a copy of it that begins elsewhere is a late duplicate."""

    accepted: AcceptedSubmission
    epoch: str
    lane: int
    first_sequence: int
    parts: int
    parts_done: int
    parts_quarantined: int
    objects: list[str]
    quarantined: list[str] = []


SubmissionState = Literal["accepted", "stored", "quarantined"]


def state_of(submission: Identity | EntrySubmission) -> SubmissionState:
    """The state by the submission's last object.

    `accepted` until all its parts are done; then `quarantined` if any of them is in quarantine, else `stored`.
    """
    if submission.parts_done != submission.parts:
        return "accepted"
    return "quarantined" if submission.parts_quarantined else "stored"


#: The facts of an object that its footer and its catalog entry both state, under the same names. A common base class
#: would be shorter, but it would change the order of the fields in the stored documents.
OBJECT_FACTS = (
    *("file_path", "source", "epoch", "lane", "first", "last", "last_time", "records", "messages", "traceparent"),
    *("written_at", "classification_count", "classification_least", "classification_greatest", "event_times"),
)


def entry_of(contents: Contents, totals: Totals | None = None) -> CatalogEntry:
    """The catalog entry of an object, made from its footer; `totals` are those of its lane with this object."""
    return CatalogEntry(
        **{fact: getattr(contents, fact) for fact in OBJECT_FACTS},
        submissions=[_entry_submission(stored) for stored in contents.submissions],
        quarantined=[message.key for message in contents.quarantined],
        duplicates=len(contents.duplicates),
        classifications=[name for name in contents.classifications if _short_text(name)],
        totals=totals,
        schema_versions=sorted({stored.accepted.schema_version for stored in contents.submissions if stored.records}),
        erased=contents.erased if contents.erasures else msgspec.UNSET,
    )


def _entry_submission(stored: StoredSubmission) -> EntrySubmission:
    accepted = stored.accepted
    return EntrySubmission(
        submission_id=accepted.submission_id,
        trace_id=accepted.trace_id,
        records=stored.records,
        records_accepted=None if stored.records == accepted.records else accepted.records,
        parts=stored.parts,
        parts_done=stored.parts_done,
        parts_quarantined=stored.parts_quarantined,
        received_at=accepted.received_at,
        queued_at=stored.queued_at,
        classification_id=_short_text(accepted.classification_id),
        classification_count=accepted.classification_count,
        origin=_short_text(accepted.origin),
        principal=accepted.principal,
    )


def _short_text(text: str | None) -> str | None:
    """The text; None if it is too long for an entry, as JSON with its escapes."""
    return text if text is not None and len(msgspec.json.encode(text)) <= ENTRY_TEXT_BYTES_MAX else None


def identities_of(contents: Contents) -> list[Identity]:
    return [
        Identity(
            accepted=stored.accepted,
            epoch=contents.epoch,
            lane=contents.lane,
            first_sequence=stored.first_sequence,
            parts=stored.parts,
            parts_done=stored.parts_done,
            parts_quarantined=stored.parts_quarantined,
            objects=stored.objects,
            quarantined=stored.quarantined,
        )
        for stored in contents.submissions
    ]
