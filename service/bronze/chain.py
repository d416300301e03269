"""The chain protocol's decisions, free of any I/O. `docs/delivery.md` states the invariants that they keep.

The stream has an order; the bucket takes each key once; an object says where the next one starts.
"""

import datetime as dt
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from bronze.errors import Halted, Poison
from bronze.submission import FORMAT, Accepted, Kind, Part, content, content_bytes, format_version, schema_version

#: Version of the keys' layout; stands in each lane's stream, so that roles of different layouts never share one.
KEY_LAYOUT = "1"
#: S3 takes no longer ones.
KEY_BYTES_MAX = 1024
#: Deaths while decoding at one beginning from which the cut is halved, or its only message set aside.
DEATHS_TOLERATED = 3
#: A client's own word stands in an entry up to so many bytes: 999 submissions have to fit one message of the queue.
ENTRY_TEXT_BYTES_MAX = 128


@dataclass(frozen=True, slots=True)
class Message:
    """A message as the queue stores it. `time` is the server's own string: never parsed where it is compared."""

    sequence: int
    subject: str
    time: str
    headers: Mapping[str, str] = field(repr=False)
    payload: bytes = field(repr=False)

    @property
    def size(self) -> int:
        """The bytes of its content."""
        return content_bytes(self.headers, self.payload)

    def content(self) -> bytes:
        """What its payload holds; raises `Poison`."""
        return content(self.headers, self.payload)

    @property
    def submission_id(self) -> str:
        return self.subject.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Lane:
    """One ordered stream of a source's messages, since `epoch` (when its stream was created)."""

    source: str
    number: int
    epoch: str

    @property
    def stream(self) -> str:
        return f"{stream_prefix(self.source, self.number)}_{self.epoch}"

    @property
    def since(self) -> str:
        """When the lane began, as the beginning of a server's time: to the hour."""
        e = self.epoch
        return f"{e[:4]}-{e[4:6]}-{e[6:8]}T{e[9:11]}"

    @property
    def entry_subject(self) -> str:
        return f"catalog.{self.source}.{self.number}.{self.epoch}"


def trace_id_of(traceparent: str) -> str:
    """The trace id in a `traceparent`; all 0 where there is none."""
    parts = traceparent.split("-")
    return parts[1] if len(parts) == 4 else "0" * 32


def stream_prefix(source: str, number: int | str) -> str:
    return f"BRONZE_{source.upper()}_{number}"


def lane_subject(source: str, number: int | str, submission_id: str = "*") -> str:
    return f"bronze.{source}.{number}.{submission_id}"


def seconds(time: str) -> float:
    """A server's time (RFC 3339, UTC, up to nanoseconds) as seconds since the epoch."""
    whole, _, fraction = time.removesuffix("Z").partition(".")
    moment = dt.datetime.fromisoformat(whole).replace(tzinfo=dt.UTC).timestamp()
    return moment + (float(f"0.{fraction}") if fraction else 0.0)


# --- what is written down: the object's footer, the catalog's entry, a submission's identity


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A submission in an object, with what its identity needs: `parts_done` of `parts` up to and with this object.

    `records` are those in this object; `objects` are all that hold a part of it so far, and `quarantined` the keys of
    its parts that were set aside. `queued_at` is when the queue had stored the first of its messages here, the server's
    own string.
    """

    accepted: Accepted
    first_sequence: int
    parts: int
    parts_done: int
    parts_quarantined: int
    records: int
    objects: list[str]
    queued_at: str = ""
    quarantined: list[str] = []


class SetAside(msgspec.Struct, frozen=True, kw_only=True):
    """A message that is kept in quarantine under `key`, byte for byte; its headers stand here.

    `kind` is `rejected` where it holds what its sender had kept apart, and nothing is wrong with the message.
    """

    sequence: int
    key: str
    reason: str
    records: int
    headers: dict[str, str]
    kind: Kind = Kind.RECORDS


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
    submissions: list[Stored]
    quarantined: list[SetAside]
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


class Entry(msgspec.Struct, frozen=True, kw_only=True):
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

    accepted: Accepted
    epoch: str
    lane: int
    first_sequence: int
    parts: int
    parts_done: int
    parts_quarantined: int
    objects: list[str]
    quarantined: list[str] = []


#: Where a submission is.
State = Literal["accepted", "stored", "quarantined"]


def state_of(submission: Identity | EntrySubmission) -> State:
    """`stored` when all its parts are in objects, `quarantined` if any of them was set aside, by its last object."""
    if submission.parts_done != submission.parts:
        return "accepted"
    return "quarantined" if submission.parts_quarantined else "stored"


def entry_of(contents: Contents) -> Entry:
    return Entry(
        file_path=contents.file_path,
        source=contents.source,
        epoch=contents.epoch,
        lane=contents.lane,
        first=contents.first,
        last=contents.last,
        last_time=contents.last_time,
        records=contents.records,
        messages=contents.messages,
        traceparent=contents.traceparent,
        submissions=[_entry_submission(stored) for stored in contents.submissions],
        quarantined=[aside.key for aside in contents.quarantined],
        duplicates=len(contents.duplicates),
        written_at=contents.written_at,
        classifications=[one for one in contents.classifications if _brief(one)],
        classification_count=contents.classification_count,
        classification_least=contents.classification_least,
        classification_greatest=contents.classification_greatest,
    )


def _entry_submission(stored: Stored) -> EntrySubmission:
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


# --- keys


def hour_prefix(prefix: str, source: str, time: str) -> str:
    """The folder of the hour of a server's time; ends in a slash (without it, a listing from here hides the hour)."""
    return f"{prefix}/source={source}/date={time[:10]}/hour={time[11:13]}/"


_OBJECT_KEY = re.compile(
    r".*/source=(?P<source>[^/]+)/date=[^/]+/hour=[^/]+/"
    r"(?P<epoch>[^/-]+)-(?P<lane>[0-9]+)-(?P<first>[0-9]{12,})\.parquet"
)


def object_key(prefix: str, lane: Lane, first: Message) -> str:
    """The key of the object that begins with a message: a function of that message and its lane alone."""
    folder = hour_prefix(prefix, lane.source, first.time)
    return f"{folder}{lane.epoch}-{lane.number}-{first.sequence:012}.parquet"


def may_be_object(prefix: str, key: str) -> bool:
    """Whether there may be an object of ours under a key. A bucket answers what can be no key as if it were away."""
    return (
        key.startswith(f"{prefix}/")
        and key.endswith(".parquet")
        and key.isprintable()
        and len(key.encode()) <= KEY_BYTES_MAX
        and all(part.strip(".") for part in key.split("/"))
    )


def first_of_key(lane: Lane, key: str) -> int | None:
    """The first sequence that a key tells of; None where the key is not of this lane."""
    of = lane_of_key(key)
    return of[1] if of and of[0] == lane else None


def lane_of_key(key: str) -> tuple[Lane, int] | None:
    """The lane and the first sequence that an object's key tells of; None where it is no such key."""
    found = _OBJECT_KEY.fullmatch(key)
    return (Lane(found["source"], int(found["lane"]), found["epoch"]), int(found["first"])) if found else None


def quarantine_key(lane: Lane, sequence: int, kind: Kind = Kind.RECORDS) -> str:
    """The key of a message that is set aside; its end says whether it holds rejected records."""
    end = "rejected" if kind is Kind.REJECTED else "message"
    return f"quarantine/source={lane.source}/{lane.epoch}-{lane.number}-{sequence:012}.{end}"


# --- rule 3: cut freely, name by the beginning


@dataclass(frozen=True, slots=True)
class Position:
    """Where a lane's chain stands: after the object of its last catalog entry, or at its very beginning."""

    entry: Entry | None
    entry_sequence: int

    @property
    def last(self) -> int:
        return self.entry.last if self.entry else 0


@dataclass(frozen=True, slots=True)
class Tail:
    """The message that the next one has to follow: the chain's anchor, or the last one that was read after it."""

    sequence: int
    time: str

    @classmethod
    def of(cls, position: Position, pending: Sequence[Message]) -> "Tail | None":
        """None: the chain is empty and begins at sequence 1."""
        if pending:
            return cls(pending[-1].sequence, pending[-1].time)
        return cls(position.entry.last, position.entry.last_time) if position.entry else None


class Gap(Exception):
    """Not an error yet, the leader decides: what was read does not begin where it has to, or skips this sequence."""

    def __init__(self, sequence: int) -> None:
        super().__init__(f"sequence {sequence} is missing")
        self.sequence = sequence


def follow(tail: Tail | None, read: Sequence[Message]) -> list[Message]:
    """What follows the tail without a gap in a read that began at the tail's sequence (at 1 where there is none).

    Raises `Gap` where the tail or the message right after it is missing, and `Halted` where the tail is another
    message than it was: the queue was rolled back. What lies behind a later gap is left for the next read.
    """
    expected = tail.sequence if tail else 1
    if tail:
        if not read or read[0].sequence != expected:
            raise Gap(expected)
        if read[0].time != tail.time:
            raise rolled_back(expected, f"was stored at {tail.time}, and now {read[0].time}")
        read = read[1:]
        expected += 1
    run: list[Message] = []
    for message in read:
        if message.sequence != expected:
            if not run:
                raise Gap(expected)
            break
        run.append(message)
        expected += 1
    return run


def rolled_back(sequence: int, what: str) -> Halted:
    return Halted(
        f"the message at sequence {sequence} {what}: the queue was rolled back, or its data was replaced. "
        "Nothing was touched; docs/delivery.md says how to go on"
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one object: message bytes, messages, submissions, and the age in seconds at which it is due."""

    bytes_max: int
    messages_max: int
    submissions_max: int
    age_s_max: float


def full(pending: Sequence[Message], limits: Limits) -> bool:
    return (
        len(pending) >= limits.messages_max
        or sum(message.size for message in pending) >= limits.bytes_max
        or len({message.subject for message in pending}) >= limits.submissions_max
    )


def due(pending: Sequence[Message], now_s: float, limits: Limits) -> bool:
    """Whether what is waiting has to become an object: by size, or by the age of its oldest message."""
    if not pending:
        return False
    return full(pending, limits) or now_s - seconds(pending[0].time) >= limits.age_s_max


def cut(pending: Sequence[Message], limits: Limits) -> list[Message]:
    """The longest beginning that fits one object; one message at least. Any cut is right."""
    taken: list[Message] = []
    size = 0
    subjects: set[str] = set()
    for message in pending:
        size += message.size
        subjects.add(message.subject)
        if taken and (
            len(taken) >= limits.messages_max or size > limits.bytes_max or len(subjects) > limits.submissions_max
        ):
            break
        taken.append(message)
    return taken


def understood(messages: Sequence[Message], version: int) -> list[Message]:
    """The messages before the first of a newer format, or of a newer version of the source than `version`.

    That one is left to a newer consumer.
    """
    run: list[Message] = []
    for message in messages:
        if (format_version(message.headers) or 0) > FORMAT or (schema_version(message.headers) or 0) > version:
            break
        run.append(message)
    return run


def digest(messages: Sequence[Message]) -> str:
    """SHA-256 over what identifies each message of a range: sequence, subject, stored time."""
    sha = hashlib.sha256()
    for message in messages:
        sha.update(f"{message.sequence} {message.subject} {message.time}\n".encode())
    return sha.hexdigest()


# --- rule 3: late duplicates; rule 8: poison


@dataclass(frozen=True, slots=True)
class Kept:
    """A message whose records go into the object, with the part that it is and where its submission began."""

    message: Message
    part: Part
    first_sequence: int
    #: where a part of it stands already, in an earlier object of this chain
    earlier: Identity | None
    #: why it is set aside without being decoded (rule 7)
    undecoded: str | None = None


@dataclass(frozen=True, slots=True)
class Sorted:
    """A cut, by what becomes of each message; a poison message is beside its reason."""

    messages: Sequence[Message]
    kept: Sequence[Kept]
    duplicates: Sequence[Duplicate]
    poison: Sequence[tuple[Message, str]]


def sort(
    lane: Lane,
    messages: Sequence[Message],
    identities: Mapping[str, Identity],
    *,
    undecoded: bool = False,
) -> Sorted:
    """Sort a cut by the identities of its submissions; `undecoded` sets its only message aside unread (rule 7)."""
    kept: list[Kept] = []
    duplicates: list[Duplicate] = []
    poison: list[tuple[Message, str]] = []
    for message in messages:
        try:
            part = Part.parse(message.headers)
            if part.accepted.submission_id != message.submission_id:
                raise Poison("its subject and its headers name different submissions")
        except Poison as error:
            poison.append((message, str(error)))
            continue
        first_sequence = message.sequence - part.number + 1
        identity = identities.get(part.accepted.submission_id)
        if identity and not _same_place(identity, lane, first_sequence):
            if identity.accepted.digest == part.accepted.digest:
                duplicates.append(
                    Duplicate(
                        sequence=message.sequence,
                        submission_id=part.accepted.submission_id,
                        records=part.records,
                    )
                )
            else:
                poison.append((message, "a late submission under a key that another body was stored with"))
        else:
            why = f"its consumer died {DEATHS_TOLERATED} times while decoding it" if undecoded else None
            kept.append(Kept(message, part, first_sequence, identity, why))
    return Sorted(messages, kept, duplicates, poison)


def _same_place(identity: Identity, lane: Lane, first_sequence: int) -> bool:
    return (identity.epoch, identity.lane, identity.first_sequence) == (
        lane.epoch,
        lane.number,
        first_sequence,
    )


def set_aside(lane: Lane, message: Message, reason: str) -> SetAside:
    try:
        part = Part.parse(message.headers)
        records, kind = part.records, part.kind
    except Poison:
        records, kind = 0, Kind.RECORDS  # nobody can tell
    return SetAside(
        sequence=message.sequence,
        key=quarantine_key(lane, message.sequence, kind),
        reason=reason,
        records=records,
        headers=dict(message.headers),
        kind=kind,
    )


# --- rule 4: the object decides


def check_covered(contents: Contents, read: Sequence[Message]) -> None:
    """Raises `Halted` where an object says otherwise than the messages of its range that this process has read.

    Compared only where what was read covers the object: else there is nothing to compare.
    """
    covered = [message for message in read if contents.first <= message.sequence <= contents.last]
    if len(covered) == contents.last - contents.first + 1 and digest(covered) != contents.digest:
        raise Halted(
            f"{contents.file_path} was made from other messages at {contents.first} to {contents.last} than the "
            "queue holds: the queue was rolled back. Nothing was touched; docs/delivery.md says how to go on"
        )


# --- rule 7: deaths


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of decoding at one beginning, so that a message that kills its decoder is found.

    `size` messages from `first` were being decoded; `deaths` at this `first`, and those of a message alone are counted
    from 0: what a larger cut died of may be its neighbour. `limit` messages (0: none) bound each cut up to the sequence
    `until`, the end of the suspect range.
    """

    first: int = 0
    size: int = 0
    deaths: int = 0
    limit: int = 0
    until: int = 0

    def begin(self, cut: Sequence[Message]) -> "Attempt":
        """The attempt at a cut."""
        first, last = cut[0].sequence, cut[-1].sequence
        suspect = self.limit > 0 and first <= self.until
        same = first == self.first and (len(cut) > 1 or self.size == 1)
        return Attempt(
            first=first,
            size=len(cut),
            deaths=self.deaths if same else 0,
            limit=self.limit if suspect else 0,
            until=max(self.until, last) if suspect else last,
        )

    def died(self) -> "Attempt":
        """The attempt after the process that made it died while decoding."""
        deaths = self.deaths + 1
        halve = self.limit > 0 or deaths >= DEATHS_TOLERATED
        return msgspec.structs.replace(self, deaths=deaths, limit=max(1, self.size // 2) if halve else 0)

    def bound(self, first: int, limits: Limits) -> Limits:
        """The limits of a cut that begins at a sequence."""
        if self.limit == 0 or first > self.until:
            return limits
        return Limits(limits.bytes_max, min(self.limit, limits.messages_max), limits.submissions_max, limits.age_s_max)

    def hopeless(self, cut: Sequence[Message]) -> bool:
        """Whether the cut is one message that has killed its decoder too often."""
        return len(cut) == 1 and self.size == 1 and self.first == cut[0].sequence and self.deaths >= DEATHS_TOLERATED
