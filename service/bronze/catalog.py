"""The catalog: the chain, written down, and the identities of what it holds.

One stream: `catalog.{source}.{lane}.{epoch}` has an entry for each object, gapless and in order, and is also the feed
of new objects; `identity.{submission_id}` says where a submission is.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import msgspec

from bronze import jetstream as js
from bronze.chain import Contents, Entry, Identity, Lane, Message, Position, entry_of, identities_of
from bronze.claims import Claims
from bronze.errors import Halted, Misconfigured, Unavailable
from bronze.jetstream import ApiError, JetStream, Outgoing
from bronze.settings import Settings

ENTRIES = "catalog.>"
SUBJECTS = [ENTRIES, "identity.*"]
#: How long an identity is kept: a key's, and that of a submission without one.
KEYED_TTL = "720h"
UNKEYED_TTL = "24h"
#: One read of the feed.
FEED_MESSAGES_MAX = 256
FEED_BYTES_MAX = 2**20


T = TypeVar("T")

log = logging.getLogger(__name__)


class Overtaken(Exception):
    """Another writer has appended to this chain: load the position again."""


class Catalog(Protocol):
    """What the roles need of a catalog.

    `append` is all or nothing, and only one of several writers at one position succeeds.
    """

    async def position(self, lane: Lane) -> tuple[Position, str]: ...
    async def identity(self, submission_id: str) -> Identity | None: ...
    async def identities(self, lane: Lane, position: Position, ids: Sequence[str]) -> Mapping[str, Identity]: ...
    async def append(self, lane: Lane, position: Position, contents: Contents) -> Position: ...


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the feed: after that sequence of that stream. A catalog that was made anew is another stream."""

    stream: str = ""
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Noted:
    """An entry as the feed has it; `time` is when the server stored it."""

    sequence: int
    time: str
    entry: Entry

    @property
    def stored_at(self) -> str:
        """When the object was written; entries of before say only when they were."""
        return self.entry.written_at or self.time


@dataclass(frozen=True, slots=True)
class News:
    """What the feed has after a place: entries in order, the place after them, and how many more there are."""

    place: Place
    entries: Sequence[Noted]
    left: int


class Feed:
    """The catalog's entries, read in order by whoever needs them: the view, and followers of new objects."""

    def __init__(self, jetstream: JetStream) -> None:
        self._js = jetstream
        self._stream: str | None = None

    async def read(self, after: Place, *, since: str | None = None) -> News:
        """What follows a place, as much as one read takes; from the beginning where the catalog is another one.

        `since`, a server's time, says where to begin instead. Raises `Unavailable`.
        """
        stream = await self._found()
        place = after if after.stream == stream else Place(stream)
        try:
            messages, left = await self._js.read_of(
                stream,
                ENTRIES,
                since or place.sequence + 1,
                messages_max=FEED_MESSAGES_MAX,
                bytes_max=FEED_BYTES_MAX,
            )
        except Unavailable:
            self._stream = None  # it may have been replaced
            raise
        entries: list[Noted] = []
        for message in messages:
            try:
                entries.append(Noted(message.sequence, message.time, _decode(message, Entry)))
            except Halted as error:
                log.error("left out: %s", error)
        return News(Place(stream, messages[-1].sequence) if messages else place, entries, left)

    async def end(self) -> Place:
        """The place after all that there is now."""
        stream = await self._found()
        return Place(stream, (await self._js.state(stream)).last)

    async def _found(self) -> str:
        if self._stream is None:
            self._stream = next(iter(await self._js.streams_of(ENTRIES)), None)
        if self._stream is None:
            raise Unavailable("queue-away", "the queue has no catalog")
        return self._stream


class NatsCatalog:
    """The catalog on JetStream."""

    def __init__(self, jetstream: JetStream, stream: str) -> None:
        self._js = jetstream
        self._stream = stream

    @classmethod
    async def open(cls, jetstream: JetStream, settings: Settings) -> Self:
        """The catalog of this queue; made where there is none. Raises `Misconfigured` where it is another bucket's."""
        metadata = {"bronze.bucket": settings.bucket, "bronze.prefix": settings.prefix}
        config = {
            "storage": "file",
            "retention": "limits",
            "discard": "new",
            "num_replicas": settings.queue_replicas,
            "allow_atomic": True,
            "allow_direct": True,
            "allow_msg_ttl": True,
            "metadata": metadata,
        }
        claims = Claims(jetstream, settings.queue_replicas)
        name = await claims.stream("stream.catalog", "BRONZE_CATALOG", SUBJECTS, config)
        state = await jetstream.state(name)
        made_with = {key: state.metadata.get(key) for key in metadata}
        if made_with != metadata:
            raise Misconfigured(f"the catalog {name} was made with {made_with}, and the settings say {metadata}")
        return cls(jetstream, name)

    async def position(self, lane: Lane) -> tuple[Position, str]:
        """Where a lane's chain stands, from the leader, and when that entry was stored by the server's clock."""
        message = await self._js.get_last(self._stream, lane.entry_subject)
        if message is None:
            return Position(None, 0), ""
        return Position(_decode(message, Entry), message.sequence), message.time

    async def identity(self, submission_id: str) -> Identity | None:
        """A submission's identity, from the leader."""
        message = await self._js.get_last(self._stream, f"identity.{submission_id}")
        return None if message is None else _decode(message, Identity)

    async def identities(self, lane: Lane, position: Position, ids: Sequence[str]) -> Mapping[str, Identity]:
        """The identities of submissions, as they are at the position or later.

        A replica answers for all at one moment; the lane's own entry in the same answer shows that this moment is
        not before the position. If it is, the replica is asked once more, then the leader for each.
        """
        subjects = [f"identity.{one}" for one in ids]
        for _ in range(2):
            messages = await self._js.last_of(self._stream, [*subjects, lane.entry_subject])
            entry = [message.sequence for message in messages if message.subject == lane.entry_subject]
            if max(entry, default=0) >= position.entry_sequence:
                break
        else:
            found = [await self._js.get_last(self._stream, subject) for subject in subjects]
            messages = [message for message in found if message is not None]
        identities = [_decode(message, Identity) for message in messages if message.subject != lane.entry_subject]
        return {identity.accepted.submission_id: identity for identity in identities}

    async def append(self, lane: Lane, position: Position, contents: Contents) -> Position:
        """Write an object's identities and its entry in one atomic batch, and give the new position.

        Raises `Overtaken` where the position is not the last any more, also where it was this batch that moved it and
        its answer was lost: the position tells.
        """
        entry = entry_of(contents)
        messages = [
            Outgoing(
                f"identity.{identity.accepted.submission_id}",
                msgspec.json.encode(identity),
                {js.TTL: KEYED_TTL if identity.accepted.keyed else UNKEYED_TTL},
            )
            for identity in identities_of(contents)
        ]
        messages.append(
            Outgoing(
                lane.entry_subject,
                msgspec.json.encode(entry),
                {js.EXPECTED_LAST_SUBJECT_SEQUENCE: str(position.entry_sequence)},
            )
        )
        messages[0].headers[js.EXPECTED_STREAM] = self._stream
        try:
            sequence = await self._js.publish_batch(messages, len(messages))
        except ApiError as error:
            if error.err_code in {js.WRONG_LAST_SEQUENCE, js.SUBJECT_WRITE_IN_FLIGHT}:
                raise Overtaken from error
            if error.err_code == js.WRONG_STREAM:
                raise Halted(f"the catalog {self._stream} is gone: start anew") from error
            raise Unavailable("queue-away", f"the catalog refuses the entry: {error}") from error
        return Position(entry, sequence)


def _decode(message: Message, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(message.payload, type=kind)
    except msgspec.DecodeError as error:
        raise Halted(f"the catalog's message {message.sequence} ({message.subject}) cannot be read: {error}") from error
