"""The chain protocol's decisions, free of any I/O. `docs/delivery.md` states the invariants that they keep.

The stream has an order; the bucket takes each key once; an object says where the next one starts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bronze.errors import DeadLetter, Halted
from bronze.protocol.attempts import DEATHS_TOLERATED
from bronze.protocol.documents import CatalogEntry, Contents, Duplicate, Identity, QuarantinedMessage
from bronze.protocol.lane import Lane
from bronze.protocol.limits import digest
from bronze.protocol.message import Message, MessageKind, Part
from bronze.protocol.quarantine import quarantine_key


@dataclass(frozen=True, slots=True)
class Position:
    """Where a lane's chain stands: after the object of its last catalog entry, or at its very beginning."""

    entry: CatalogEntry | None
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
class AcceptedMessage:
    """A message whose records go into the object, with the part that it is and where its submission began."""

    message: Message
    part: Part
    first_sequence: int
    #: where a part of it stands already, in an earlier object of this chain
    earlier: Identity | None
    #: why it is set aside without being decoded (rule 7)
    undecoded: str | None = None


@dataclass(frozen=True, slots=True)
class ReconciledCut:
    """A cut, by what becomes of each message; a poison message is beside its reason."""

    messages: Sequence[Message]
    accepted: Sequence[AcceptedMessage]
    duplicates: Sequence[Duplicate]
    dead_letters: Sequence[tuple[Message, str]]


def reconcile(
    lane: Lane,
    messages: Sequence[Message],
    identities: Mapping[str, Identity],
    *,
    undecoded: bool = False,
) -> ReconciledCut:
    """Sort a cut by the identities of its submissions; `undecoded` sets its only message aside unread (rule 7)."""
    kept: list[AcceptedMessage] = []
    duplicates: list[Duplicate] = []
    poison: list[tuple[Message, str]] = []
    for message in messages:
        try:
            part = Part.parse(message.headers)
            if part.accepted.submission_id != message.submission_id:
                raise DeadLetter("its subject and its headers name different submissions")
        except DeadLetter as error:
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
            kept.append(AcceptedMessage(message, part, first_sequence, identity, why))
    return ReconciledCut(messages, kept, duplicates, poison)


def _same_place(identity: Identity, lane: Lane, first_sequence: int) -> bool:
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
        records, kind = 0, MessageKind.RECORDS  # nobody can tell
    return QuarantinedMessage(
        sequence=message.sequence,
        key=quarantine_key(lane, message.sequence, kind),
        reason=reason,
        records=records,
        headers=dict(message.headers),
        kind=kind,
    )


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
