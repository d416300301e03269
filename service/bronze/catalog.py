"""The catalog: the chain, written down, and the identities of what it holds.

One stream: `catalog.{source}.{lane}.{epoch}` has an entry for each object, gapless and in order, and is also the feed
of new objects; `identity.{submission_id}` says where a submission is.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import msgspec

from bronze import jetstream as js
from bronze.chain import Contents, Entry, Identity, Lane, Message, Position, entry_of, identities_of, seconds
from bronze.claims import Claims, named_now
from bronze.errors import Halted, Misconfigured, Unavailable
from bronze.jetstream import ApiError, JetStream, Outgoing
from bronze.settings import Settings

ENTRIES = "catalog.>"
SUBJECTS = [ENTRIES, "identity.*"]
#: How long an identity is kept: a key's, and that of a submission without one.
KEYED_S = 720 * 3600
UNKEYED_S = 24 * 3600
KEYED_TTL = f"{KEYED_S // 3600}h"
UNKEYED_TTL = f"{UNKEYED_S // 3600}h"
#: One read of the feed.
FEED_MESSAGES_MAX = 256
FEED_BYTES_MAX = 2**20

PREFIX = "BRONZE_CATALOG"
CLAIM = "stream.catalog"
#: The command that makes the catalog anew, and the key that its stream's metadata have until it is whole.
REBUILD = "bronze catalog rebuild"
REBUILDING = "bronze.rebuilding"
#: The server takes 1,000 messages in one batch.
BATCH_MESSAGES = 1_000

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
            stream = next(iter(await self._js.streams_of(ENTRIES)), None)
            if stream is None:
                raise Unavailable("queue-away", "the queue has no catalog")
            if REBUILDING in (await self._js.state(stream)).metadata:
                raise Unavailable("queue-away", "the catalog is being rebuilt")  # half of it would look like all
            self._stream = stream
        return self._stream


class NatsCatalog:
    """The catalog on JetStream."""

    def __init__(self, jetstream: JetStream, stream: str) -> None:
        self._js = jetstream
        self._stream = stream

    @classmethod
    async def open(cls, jetstream: JetStream, settings: Settings) -> Self:
        """The catalog of this queue; made where there is none.

        Raises `Misconfigured` where it is another bucket's, and `Unavailable` while it is rebuilt.
        """
        claims = Claims(jetstream, settings.queue_replicas)
        metadata = _made_with(settings)
        name = await claims.stream(CLAIM, PREFIX, SUBJECTS, _config(settings, metadata))
        state = await jetstream.state(name)
        made_with = {key: state.metadata.get(key) for key in metadata}
        if made_with != metadata:
            raise Misconfigured(
                f"the catalog {name} was made with {made_with}, and the settings say {metadata}: "
                "set BRONZE_BUCKET and BRONZE_PREFIX as they were, or use another queue"
            )
        if REBUILDING in state.metadata:
            raise Unavailable(
                "queue-away",
                f"the catalog is being rebuilt by `{REBUILD}`: if that does not run any more, run it again",
            )
        return cls(jetstream, name)

    async def position(self, lane: Lane) -> tuple[Position, str]:
        """Where a lane's chain stands, from the leader, and when that entry was stored by the server's clock."""
        async with self._named():
            message = await self._js.get_last(self._stream, lane.entry_subject)
        if message is None:
            return Position(None, 0), ""
        return Position(_decode(message, Entry), message.sequence), message.time

    async def identity(self, submission_id: str) -> Identity | None:
        """A submission's identity, from the leader."""
        async with self._named():
            message = await self._js.get_last(self._stream, f"identity.{submission_id}")
        return None if message is None else _decode(message, Identity)

    async def identities(self, lane: Lane, position: Position, ids: Sequence[str]) -> Mapping[str, Identity]:
        """The identities of submissions, as they are at the position or later.

        A replica answers for all at one moment; the lane's own entry in the same answer shows that this moment is
        not before the position. If it is, the replica is asked once more, then the leader for each.
        """
        subjects = [f"identity.{one}" for one in ids]
        for _ in range(2):
            async with self._named():
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
        messages = [_outgoing(identity) for identity in identities_of(contents)]
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
                raise js.gone(self._stream) from error
            raise Unavailable("queue-away", f"the catalog refuses the entry: {error}") from error
        return Position(entry, sequence)

    def _named(self) -> AbstractAsyncContextManager[None]:
        """Raises `Gone` where the catalog was replaced by another."""
        return self._js.named(self._stream, SUBJECTS[0])


class Rebuilt:
    """A catalog in the place of the one that there is, as long as it is not whole: no role takes it before `done`.

    Whoever worked with the one before is refused from then on, and starts anew.
    """

    def __init__(self, jetstream: JetStream, settings: Settings) -> None:
        self._js = jetstream
        self._settings = settings
        self._claims = Claims(jetstream, settings.queue_replicas)
        self._stream = named_now(PREFIX)

    async def begin(self) -> None:
        """Take the place of the catalog that there is. Raises `Misconfigured` where that is another bucket's."""
        wanted = _made_with(self._settings)
        there = await self._js.streams_of(SUBJECTS[0])
        for name in there:
            metadata = (await self._js.state(name)).metadata
            made_with = {key: metadata.get(key) for key in wanted}
            if made_with != wanted:
                raise Misconfigured(f"the catalog {name} was made with {made_with}, and the settings say {wanted}")
        await self._claims.open()
        await self._claims.hold(CLAIM, REBUILD)
        for name in there:
            await self._js.delete_stream(name)
        config = _config(self._settings, {**wanted, REBUILDING: "yes"})
        try:
            await self._js.create_stream({**config, "name": self._stream, "subjects": SUBJECTS})
        except ApiError as error:
            raise Unavailable("queue-away", f"the queue refuses the stream {self._stream}: {error}") from error

    async def append(self, objects: Iterable[Contents], now_s: float) -> int:
        """Write the identities that still count at a time and the entries of objects; gives how many identities.

        A lane's objects come in the chain's order. An identity's time to live begins anew.
        """
        identities = 0
        batch: list[Outgoing] = []
        for contents in objects:
            age_s = now_s - seconds(contents.last_time)
            alive = [one for one in identities_of(contents) if age_s < (KEYED_S if one.accepted.keyed else UNKEYED_S)]
            identities += len(alive)
            lane = Lane(contents.source, contents.lane, contents.epoch)
            for message in (
                *map(_outgoing, alive),
                Outgoing(lane.entry_subject, msgspec.json.encode(entry_of(contents)), {}),
            ):
                batch.append(message)
                if len(batch) == BATCH_MESSAGES:
                    await self._publish(batch)
                    batch = []
        if batch:
            await self._publish(batch)
        return identities

    async def _publish(self, batch: Sequence[Outgoing]) -> None:
        batch[0].headers[js.EXPECTED_STREAM] = self._stream
        try:
            await self._js.publish_batch(batch, len(batch))
        except ApiError as error:
            if error.err_code == js.WRONG_STREAM:
                raise js.gone(self._stream) from error
            raise Unavailable("queue-away", f"the catalog refuses what is rebuilt: {error}") from error

    async def done(self) -> None:
        """The catalog is whole: roles take it."""
        metadata = _made_with(self._settings)
        await self._js.update_stream(self._stream, metadata=metadata)
        await self._claims.give(CLAIM)


def _made_with(settings: Settings) -> dict[str, str]:
    return {"bronze.bucket": settings.bucket, "bronze.prefix": settings.prefix}


def _config(settings: Settings, metadata: Mapping[str, str]) -> dict[str, object]:
    return {
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "num_replicas": settings.queue_replicas,
        "allow_atomic": True,
        "allow_direct": True,
        "allow_msg_ttl": True,
        "metadata": metadata,
    }


def _outgoing(identity: Identity) -> Outgoing:
    return Outgoing(
        f"identity.{identity.accepted.submission_id}",
        msgspec.json.encode(identity),
        {js.TTL: KEYED_TTL if identity.accepted.keyed else UNKEYED_TTL},
    )


def _decode(message: Message, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(message.payload, type=kind)
    except msgspec.DecodeError as error:
        raise Halted(f"the catalog's message {message.sequence} ({message.subject}) cannot be read: {error}") from error
