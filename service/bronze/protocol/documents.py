"""What is written down beside the rows: the object's footer, the catalog's entry, and a submission's identity."""

from typing import Literal

import msgspec

from bronze.protocol.message import AcceptedSubmission, MessageKind

CLASSIFICATIONS_LISTED_MAX = 128


#: A client's own word stands in an entry up to so many bytes: 999 submissions have to fit one message of the queue.
ENTRY_TEXT_BYTES_MAX = 128


def trace_id_of(traceparent: str) -> str:
    """The trace id in a `traceparent`; all 0 where there is none."""
    parts = traceparent.split("-")
    return parts[1] if len(parts) == 4 else "0" * 32


class StoredSubmission(msgspec.Struct, frozen=True, kw_only=True):
    """A submission in an object, with what its identity needs: `parts_done` of `parts` up to and with this object.

    `records` are those in this object; `objects` are all that hold a part of it so far, and `quarantined` the keys of
    its parts that were set aside. `queued_at` is when the queue had stored the first of its messages here, the server's
    own string.
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
    """A message that is kept in quarantine under `key`, byte for byte; its headers stand here.

    `kind` is `rejected` where it holds what its sender had kept apart, and nothing is wrong with the message.
    """

    sequence: int
    key: str
    reason: str
    records: int
    headers: dict[str, str]
    kind: MessageKind = MessageKind.RECORDS


class Duplicate(msgspec.Struct, frozen=True, kw_only=True):
    """A message of a submission that is stored elsewhere already."""

    sequence: int
    submission_id: str
    records: int


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What an object holds, as its own footer says. Everything derived from a write comes from here.

    `written_at` is its consumer's clock right before the PUT (RFC 3339 in UTC). Of the runs that its rows belong to
    the first are listed, all are counted, and none is less than `classification_least` or greater than the greatest
    (by code points, as Parquet's statistics have it). What objects of before do not say has its default.
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


class EntrySubmission(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A submission in an object: `records` are those in it, of `records_accepted` where these are others.

    `classification_id` is the run of all its records; None where there are several, where the object's column tells,
    and for one, as for an `origin`, that is too long for an entry.
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


class CatalogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """The catalog's note that an object exists; `last` is the chain's position, `last_time` proves its anchor.

    The rest is for whoever follows the feed or looks an object up, as in `Contents`.
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


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Where a submission is: the first sequence of its messages decides which of two is the late duplicate."""

    accepted: AcceptedSubmission
    epoch: str
    lane: int
    first_sequence: int
    parts: int
    parts_done: int
    parts_quarantined: int
    objects: list[str]
    quarantined: list[str] = []


#: Where a submission is.
SubmissionState = Literal["accepted", "stored", "quarantined"]


def state_of(submission: Identity | EntrySubmission) -> SubmissionState:
    """`stored` when all its parts are in objects, `quarantined` if any of them was set aside, by its last object."""
    if submission.parts_done != submission.parts:
        return "accepted"
    return "quarantined" if submission.parts_quarantined else "stored"


#: The facts of an object that its footer and its entry both state, under the same names. One base class for both would
#: be shorter, but it would change the order in which either is written.
OBJECT_FACTS = (
    *("file_path", "source", "epoch", "lane", "first", "last", "last_time", "records", "messages", "traceparent"),
    *("written_at", "classification_count", "classification_least", "classification_greatest"),
)


def entry_of(contents: Contents) -> CatalogEntry:
    """The catalog's entry of an object, by its footer."""
    return CatalogEntry(
        **{fact: getattr(contents, fact) for fact in OBJECT_FACTS},
        submissions=[_entry_submission(stored) for stored in contents.submissions],
        quarantined=[message.key for message in contents.quarantined],
        duplicates=len(contents.duplicates),
        classifications=[name for name in contents.classifications if _brief(name)],
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
        classification_id=_brief(accepted.classification_id),
        classification_count=accepted.classification_count,
        origin=_brief(accepted.origin),
    )


def _brief(text: str | None) -> str | None:
    """A text, unless it is too long for an entry; escapes count."""
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
