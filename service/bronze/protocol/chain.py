"""The decisions of the chain protocol, without any I/O. `docs/delivery.md` states the invariants that they keep.

The stream has an order, the bucket refuses to create a key twice, and an object says where the next object starts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bronze.errors import DeadLetter, Halted
from bronze.protocol.attempts import DEATHS_TOLERATED
from bronze.protocol.documents import (
    CatalogEntry,
    Contents,
    Duplicate,
    Identity,
    QuarantinedMessage,
    StoredObject,
    Totals,
    entry_of,
)
from bronze.protocol.lane import Lane
from bronze.protocol.limits import digest
from bronze.protocol.message import Message, MessageKind, Part
from bronze.protocol.quarantine import quarantine_key


@dataclass(frozen=True, slots=True)
class Position:
    """The position of a lane: after the object of its last catalog entry, or before the first message."""

    entry: CatalogEntry | None
    entry_sequence: int

    @property
    def last(self) -> int:
        return self.entry.last if self.entry else 0

    @property
    def totals(self) -> Totals | None:
        """The totals of the lane; None if an older version appended the entry."""
        return self.entry.totals if self.entry else Totals()

    def entry_after(self, stored: StoredObject) -> CatalogEntry:
        """The entry of the next object of the chain."""
        return entry_of(stored.contents, None if self.totals is None else self.totals + stored.totals)


@dataclass(frozen=True, slots=True)
class Tail:
    """The message that the next message has to follow: the anchor, or the last message that was read after it."""

    sequence: int
    time: str

    @classmethod
    def of(cls, position: Position, pending: Sequence[Message]) -> "Tail | None":
        """The last pending message, else the anchor; None if the chain is empty and so begins at sequence 1."""
        if pending:
            return cls(pending[-1].sequence, pending[-1].time)
        return cls(position.entry.last, position.entry.last_time) if position.entry else None


class Gap(Exception):
    """A read does not begin at the expected sequence, or skips it. Not an error yet: the queue's leader decides."""

    def __init__(self, sequence: int) -> None:
        super().__init__(f"sequence {sequence} is missing")
        self.sequence = sequence


def follow(tail: Tail | None, read: Sequence[Message]) -> list[Message]:
    """The messages after the tail, up to the first gap, of a read that began at the tail (without a tail: at 1).

    Raises `Gap` if the tail or the message right after it is missing, and `Halted` if the tail is not the message that
    it was: the queue was rolled back. Messages after a later gap are left for the next read.
    """
    expected = tail.sequence if tail else 1
    if tail:
        if not read or read[0].sequence != expected:
            raise Gap(expected)
        if read[0].time != tail.time:
            raise rolled_back(expected, f"was stored at {tail.time}, but the queue now says {read[0].time}")
        read = read[1:]
        expected += 1
    gapless: list[Message] = []
    for message in read:
        if message.sequence != expected:
            if not gapless:
                raise Gap(expected)
            break
        gapless.append(message)
        expected += 1
    return gapless


def rolled_back(sequence: int, contradiction: str) -> Halted:
    """The error for a queue that was rolled back; `contradiction` is the predicate of "the message at sequence n"."""
    return Halted(
        f"the message at sequence {sequence} {contradiction}: the queue was rolled back, or its data was replaced. "
        'Nothing was changed. See docs/delivery.md, "When a lane stops"'
    )


@dataclass(frozen=True, slots=True)
class AcceptedMessage:
    """A message whose records go into the object, with its part and the first sequence of its submission."""

    message: Message
    part: Part
    first_sequence: int
    #: the submission's identity, if an earlier object of this chain holds a part of it
    earlier_identity: Identity | None
    #: why the message goes to quarantine without being decoded (rule 7)
    skip_reason: str | None = None


@dataclass(frozen=True, slots=True)
class ReconciledCut:
    """A cut, with its messages sorted by their outcome; each dead letter has its reason."""

    messages: Sequence[Message]
    accepted: Sequence[AcceptedMessage]
    duplicates: Sequence[Duplicate]
    dead_letters: Sequence[tuple[Message, str]]


def reconcile(
    lane: Lane,
    messages: Sequence[Message],
    identities: Mapping[str, Identity],
    *,
    skip_decoding: bool = False,
) -> ReconciledCut:
    """Sort the messages of a cut by the identities of their submissions.

    With `skip_decoding`, the cut's only message goes to quarantine without being decoded (rule 7).
    """
    accepted: list[AcceptedMessage] = []
    duplicates: list[Duplicate] = []
    dead_letters: list[tuple[Message, str]] = []
    for message in messages:
        try:
            part = Part.parse(message.headers)
            if part.accepted.submission_id != message.submission_id:
                raise DeadLetter("its subject and its headers name different submissions")
        except DeadLetter as error:
            dead_letters.append((message, str(error)))
            continue
        first_sequence = message.sequence - part.number + 1
        identity = identities.get(part.accepted.submission_id)
        if identity and not _begins_at(identity, lane, first_sequence):
            if identity.accepted.digest == part.accepted.digest:
                duplicates.append(
                    Duplicate(
                        sequence=message.sequence,
                        submission_id=part.accepted.submission_id,
                        records=part.records,
                    )
                )
            else:
                dead_letters.append((message, "its Idempotency-Key belongs to a stored submission with another body"))
        else:
            skip_reason = f"its consumer died {DEATHS_TOLERATED} times while decoding it" if skip_decoding else None
            accepted.append(AcceptedMessage(message, part, first_sequence, identity, skip_reason))
    return ReconciledCut(messages, accepted, duplicates, dead_letters)


def _begins_at(identity: Identity, lane: Lane, first_sequence: int) -> bool:
    return (identity.epoch, identity.lane, identity.first_sequence) == (
        lane.epoch,
        lane.number,
        first_sequence,
    )


def quarantined_message(lane: Lane, message: Message, reason: str) -> QuarantinedMessage:
    try:
        part = Part.parse(message.headers)
        records, kind = part.records, part.kind
    except DeadLetter:
        records, kind = 0, MessageKind.RECORDS  # unknown
    return QuarantinedMessage(
        sequence=message.sequence,
        key=quarantine_key(lane, message.sequence, kind),
        reason=reason,
        records=records,
        headers=dict(message.headers),
        kind=kind,
    )


def check_covered(contents: Contents, read: Sequence[Message]) -> None:
    """Raises `Halted` if an object was not made from the messages of its range that this process has read.

    Objects are compared only if all messages of their range were read.
    """
    covered = [message for message in read if contents.first <= message.sequence <= contents.last]
    if len(covered) == contents.last - contents.first + 1 and digest(covered) != contents.digest:
        raise Halted(
            f"{contents.file_path} was made from messages {contents.first} to {contents.last}, but the queue now has "
            "other messages at these sequences: the queue was rolled back. Nothing was changed. See docs/delivery.md, "
            '"When a lane stops"'
        )
