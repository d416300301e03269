"""The catalog: a record of the chain, and the identities of the submissions in its objects.

It is one stream. `catalog.{source}.{lane}.{epoch}` has an entry for each object, in order and without gaps, and is also
the feed of new objects; `identity.{submission_id}` says where a submission is;
`removed.{source}.{lane}.{epoch}.{first}` is the feed of removal records, and
`removed.{source}.{lane}.{epoch}.expired` says up to which message the objects of a lane have expired.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import msgspec

from bronze.errors import Halted, Misconfigured, NotPermitted, Outage, Unavailable
from bronze.protocol.chain import Position
from bronze.protocol.documents import CatalogEntry, Identity, StoredObject, identities_of
from bronze.protocol.keys import lane_of_key
from bronze.protocol.lane import Lane, lane_of_entries
from bronze.protocol.message import Message, unix_time_s
from bronze.protocol.removal import Removal, RemovalReason, removal_subject
from bronze.servers import jetstream as js
from bronze.servers import stream_metadata
from bronze.servers.jetstream import ApiError, JetStream, Outgoing, StreamState
from bronze.servers.key_value import KeyValueStore
from bronze.settings import Settings

ENTRIES = "catalog.>"
IDENTITIES = "identity.*"
REMOVALS = "removed.>"
SUBJECTS = [ENTRIES, IDENTITIES, REMOVALS]
#: How long an identity is kept: of a submission with an `Idempotency-Key`, and of one without.
KEYED_S = 720 * 3600
UNKEYED_S = 24 * 3600
KEYED_TTL = f"{KEYED_S // 3600}h"
UNKEYED_TTL = f"{UNKEYED_S // 3600}h"

PREFIX = "BRONZE_CATALOG"
CLAIM = "stream.catalog"
#: The command that rebuilds the catalog.
REBUILD = "bronze catalog rebuild"
ADVICE = "Set BRONZE_BUCKET and BRONZE_PREFIX to the values of the stream, or use another queue"

#: Bounds of one page of a lane's entries.
PAGE_ENTRIES = 256
PAGE_BYTES = 2**20
#: Entries that are removed concurrently.
REMOVED_AT_ONCE = 16

#: A user who may purge lanes must not purge the catalog.
PROTECTION: Mapping[str, object] = {"deny_purge": True}

T = TypeVar("T")


class Overtaken(Exception):
    """Another writer has appended to this chain: load the position again."""


@dataclass(frozen=True, slots=True)
class CatalogSize:
    """The entries of objects that were not folded, and the bytes of the whole stream, with identities and removals."""

    entries: int
    bytes: int


class Catalog(Protocol):
    """The calls of a catalog that the roles need.

    `append` writes everything or nothing, and only one of several writers at one position succeeds.
    """

    async def size(self) -> CatalogSize: ...
    async def position(self, lane: Lane) -> tuple[Position, str]: ...
    async def positions(self) -> Mapping[Lane, Position]: ...
    async def identity(self, submission_id: str) -> Identity | None: ...
    async def identities(self, lane: Lane, position: Position, ids: Sequence[str]) -> Mapping[str, Identity]: ...
    async def removals(self, file_paths: Sequence[str]) -> Mapping[str, Removal]: ...
    async def append(self, lane: Lane, position: Position, stored: StoredObject) -> Position: ...
    async def entries(self, lane: Lane, since: int) -> Sequence[tuple[int, CatalogEntry]]: ...


class NatsCatalog:
    """The catalog on JetStream."""

    def __init__(self, jetstream: JetStream, stream: str) -> None:
        self._js = jetstream
        self.stream = stream

    @classmethod
    async def open(cls, jetstream: JetStream, key_values: KeyValueStore, settings: Settings) -> Self:
        """Open the catalog of this queue; create it if there is none.

        Raises `Misconfigured` if it belongs to another bucket, and `Unavailable` while it is rebuilt.
        """
        metadata = stream_metadata.of_catalog(settings)
        name = await key_values.open_stream(CLAIM, PREFIX, SUBJECTS, stream_config(settings, metadata))
        state = await cls._check(jetstream, name, settings)
        if stream_metadata.REBUILDING in state.metadata:
            raise Unavailable(
                Outage.QUEUE_AWAY,
                f"the catalog is being rebuilt by `{REBUILD}`. If that command is no longer running, run it again",
            )
        return cls(jetstream, name)

    @classmethod
    async def find(cls, jetstream: JetStream, settings: Settings) -> Self | None:
        """The catalog of this queue, also while it is rebuilt; None if there is none.

        Raises `Misconfigured` if it belongs to another bucket.
        """
        name = next(iter(await jetstream.stream_names(ENTRIES)), None)
        if name is None:
            return None
        await cls._check(jetstream, name, settings)
        return cls(jetstream, name)

    @staticmethod
    async def _check(jetstream: JetStream, name: str, settings: Settings) -> StreamState:
        """The state of a catalog of this bucket; one that an older version created gets the subjects that it lacks.

        Not while it is rebuilt: the end of the rebuild changes the stream too.
        """
        state = await jetstream.state(name)
        stream_metadata.check(state, stream_metadata.of_catalog(settings), ADVICE)
        if not set(SUBJECTS) <= set(state.subjects) and stream_metadata.REBUILDING not in state.metadata:
            try:
                await jetstream.update_stream(name, subjects=SUBJECTS)
            except NotPermitted as error:
                raise Misconfigured(
                    f"the stream {name} of an older version lacks subjects, and the user of this process may not add "
                    "them: run `bronze init` as a user who may (docs/security.md)"
                ) from error
        return state

    async def protect(self) -> bool:
        """As `KeyValueStore.protect`."""
        return await self._js.update_stream(self.stream, **PROTECTION)

    async def stored_at(self, sequence: int) -> str:
        """When the server stored an entry; empty if it is gone."""
        async with self._gone_if_replaced():
            message = await self._js.get(self.stream, sequence)
        return message.time if message else ""

    async def now(self) -> str:
        """The time by the server's clock."""
        return (await self._js.state(self.stream)).now

    async def size(self) -> CatalogSize:
        """How large the catalog is; the entries as a replica counts them."""
        state = await self._js.state(self.stream)
        first, remaining = await self._js.read_subject(self.stream, ENTRIES, 1, messages_max=1, bytes_max=PAGE_BYTES)
        return CatalogSize(len(first) + remaining, state.bytes)

    async def position(self, lane: Lane) -> tuple[Position, str]:
        """The position of a lane, from the leader, and when its entry was stored, by the server's clock."""
        async with self._gone_if_replaced():
            message = await self._js.get_last(self.stream, lane.entry_subject)
        if message is None:
            return Position(None, 0), ""
        return Position(decode(message, CatalogEntry), message.sequence), message.time

    async def lanes(self) -> list[Lane]:
        """All lanes that have entries, also those that were replaced, also if their entries cannot be read."""
        async with self._gone_if_replaced():
            return [lane_of_entries(subject) for subject in await self._js.subjects(self.stream, ENTRIES)]

    async def positions(self) -> Mapping[Lane, Position]:
        """The positions of all lanes that have entries, also of those that were replaced, from a replica."""
        messages: list[Message] = []
        async with self._gone_if_replaced():
            subjects = await self._js.subjects(self.stream, ENTRIES)
            for begin in range(0, len(subjects), js.LAST_MAX):
                messages += await self._js.last_messages(self.stream, subjects[begin : begin + js.LAST_MAX])
        positions = [Position(decode(message, CatalogEntry), message.sequence) for message in messages]
        return {
            Lane(position.entry.source, position.entry.lane, position.entry.epoch): position
            for position in positions
            if position.entry
        }

    async def identity(self, submission_id: str) -> Identity | None:
        """A submission's identity, from the leader."""
        async with self._gone_if_replaced():
            message = await self._js.get_last(self.stream, f"identity.{submission_id}")
        return None if message is None else decode(message, Identity)

    async def identities(self, lane: Lane, position: Position, ids: Sequence[str]) -> Mapping[str, Identity]:
        """The identities of submissions, as they are at the position or later.

        A replica answers for all of them at one moment. The lane's last entry in the same answer shows whether this
        moment is before the position; then a replica is asked once more, and after that the leader for each identity.
        """
        subjects = [f"identity.{submission_id}" for submission_id in ids]
        for _ in range(2):
            async with self._gone_if_replaced():
                messages = await self._js.last_messages(self.stream, [*subjects, lane.entry_subject])
            entries = [message.sequence for message in messages if message.subject == lane.entry_subject]
            if max(entries, default=0) >= position.entry_sequence:
                break
        else:
            answers = [await self._js.get_last(self.stream, subject) for subject in subjects]
            messages = [message for message in answers if message is not None]
        identities = [decode(message, Identity) for message in messages if message.subject != lane.entry_subject]
        return {identity.accepted.submission_id: identity for identity in identities}

    async def all_identities(self) -> AsyncIterator[Identity]:
        """The identities of all submissions, in the order in which they were written, from a replica."""
        since = 1
        while True:
            async with self._gone_if_replaced():
                messages, remaining = await self._js.read_subject(
                    self.stream, IDENTITIES, since, messages_max=PAGE_ENTRIES, bytes_max=PAGE_BYTES
                )
            for message in messages:
                yield decode(message, Identity)
            if not remaining:
                return
            since = messages[-1].sequence + 1

    async def is_being_rebuilt(self) -> bool:
        async with self._gone_if_replaced():
            return stream_metadata.REBUILDING in (await self._js.state(self.stream)).metadata

    async def removals(self, file_paths: Sequence[str]) -> Mapping[str, Removal]:
        """The removal records of objects, as they were published; by path, of those that have one."""
        lanes = (lane_of_key(file_path) for file_path in file_paths)
        subjects = [removal_subject(*lane_and_first) for lane_and_first in lanes if lane_and_first]
        if not subjects:
            return {}
        async with self._gone_if_replaced():
            messages = await self._js.last_messages(self.stream, subjects)
        published = {removal.file_path: removal for removal in (decode(message, Removal) for message in messages)}
        return {file_path: published[file_path] for file_path in file_paths if file_path in published}

    async def entries(self, lane: Lane, since: int) -> Sequence[tuple[int, CatalogEntry]]:
        """A page of a lane's entries from a sequence of the catalog on, in order, each with its sequence."""
        async with self._gone_if_replaced():
            messages, _ = await self._js.read_subject(
                self.stream, lane.entry_subject, since, messages_max=PAGE_ENTRIES, bytes_max=PAGE_BYTES
            )
        return [(message.sequence, decode(message, CatalogEntry)) for message in messages]

    async def append(self, lane: Lane, position: Position, stored: StoredObject) -> Position:
        """Write an object's identities and its entry in one atomic batch, and return the new position.

        Raises `Overtaken` if the position is no longer the last one. This batch itself may have moved it, and its
        answer was lost: the position, loaded again, shows that.
        """
        entry = position.entry_after(stored)
        messages = [identity_message(identity) for identity in identities_of(stored.contents)]
        messages.append(
            Outgoing(
                lane.entry_subject,
                msgspec.json.encode(entry),
                {js.EXPECTED_LAST_SUBJECT_SEQUENCE: str(position.entry_sequence)},
            )
        )
        messages[0].headers[js.EXPECTED_STREAM] = self.stream
        try:
            sequence = await self._js.publish_batch(messages, len(messages))
        except ApiError as error:
            if error.err_code in {js.WRONG_LAST_SEQUENCE, js.SUBJECT_WRITE_IN_FLIGHT}:
                raise Overtaken from error
            if error.err_code == js.WRONG_STREAM:
                raise js.replaced_error(self.stream) from error
            raise Unavailable(Outage.QUEUE_AWAY, f"the queue refuses the catalog entry: {error}") from error
        return Position(entry, sequence)

    async def announce(self, removal: Removal) -> None:
        """Publish a removal record on its feed, once; that objects have expired, again for each last message.

        Raises `Gone` if the catalog was replaced.
        """
        message = removal_message(removal)
        before = 0
        if removal.reason == RemovalReason.EXPIRED:
            async with self._gone_if_replaced():
                published = await self._js.get_last(self.stream, message.subject)
            if published is not None:
                known = decode(published, Removal)
                if known.last >= removal.last and known.folded >= removal.folded:
                    return
                before = published.sequence
        headers = {js.EXPECTED_LAST_SUBJECT_SEQUENCE: str(before), js.EXPECTED_STREAM: self.stream}
        try:
            await self._js.publish(Outgoing(message.subject, message.payload, headers))
        except ApiError as error:
            if error.err_code in {js.WRONG_LAST_SEQUENCE, js.SUBJECT_WRITE_IN_FLIGHT}:
                return  # it was published before
            if error.err_code == js.WRONG_STREAM:
                raise js.replaced_error(self.stream) from error
            raise Unavailable(Outage.QUEUE_AWAY, f"the queue refuses the removal record: {error}") from error

    async def announced(self) -> set[str]:
        """The subjects of all removal records on the feed."""
        subjects: set[str] = set()
        since = 1
        while True:
            async with self._gone_if_replaced():
                messages, remaining = await self._js.read_subject(
                    self.stream, REMOVALS, since, messages_max=PAGE_ENTRIES, bytes_max=PAGE_BYTES
                )
            subjects |= {message.subject for message in messages}
            if not remaining:
                return subjects
            since = messages[-1].sequence + 1

    async def fold(self, expired: Removal, before_s: float) -> int:
        """Remove the entries of expired objects whose last message is older than a time, but never that of the last of
        these objects: it is the position, or the beginning of what follows. Then the removal that is published says so,
        and the outdated ones are removed. Returns the number of entries.

        If the call ends early, call it again.
        """
        lane, since, folded, removed = expired.of_lane, 1, 0, 0
        while page := await self.entries(lane, since):
            since = page[-1][0] + 1
            old = [
                (sequence, entry)
                for sequence, entry in page
                if entry.last < expired.last and unix_time_s(entry.last_time) < before_s
            ]
            await self._remove([sequence for sequence, _ in old])
            removed += len(old)
            folded = old[-1][1].last if old else folded
            if len(old) < len(page):
                break
        if folded:
            await self.announce(msgspec.structs.replace(expired, folded=folded))
        async with self._gone_if_replaced():
            published, _ = await self._js.read_subject(
                self.stream, expired.subject, 1, messages_max=PAGE_ENTRIES, bytes_max=PAGE_BYTES
            )
        await self._remove([message.sequence for message in published[:-1]])
        return removed

    async def _remove(self, sequences: Sequence[int]) -> None:
        for begin in range(0, len(sequences), REMOVED_AT_ONCE):
            async with self._gone_if_replaced():
                chosen = sequences[begin : begin + REMOVED_AT_ONCE]
                await asyncio.gather(*(self._js.delete_message(self.stream, sequence) for sequence in chosen))

    def _gone_if_replaced(self) -> AbstractAsyncContextManager[None]:
        """Raises `Gone` if the catalog was replaced by another one."""
        return self._js.gone_if_replaced(self.stream, SUBJECTS[0])


def stream_config(settings: Settings, metadata: Mapping[str, str]) -> dict[str, object]:
    return {
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "num_replicas": settings.queue_replicas,
        "allow_atomic": True,
        "allow_direct": True,
        "allow_msg_ttl": True,
        **PROTECTION,
        "metadata": metadata,
    }


def identity_message(identity: Identity) -> Outgoing:
    return Outgoing(
        f"identity.{identity.accepted.submission_id}",
        msgspec.json.encode(identity),
        {js.TTL: KEYED_TTL if identity.accepted.keyed else UNKEYED_TTL},
    )


def removal_message(removal: Removal) -> Outgoing:
    return Outgoing(removal.subject, msgspec.json.encode(removal.announcement()), {})


def decode(message: Message, expected: type[T]) -> T:
    """The content of a message. Raises `Halted`, also if it is an answer that a user let the server send there.

    Only a message from the leader shows that: the answer of a replica has these headers itself.
    """
    if js.ANSWERED_STREAM in message.headers:
        raise Halted(
            f"catalog message {message.sequence} ({message.subject}) was not written by Bronze: a user of the queue "
            "let the server send an answer there (docs/security.md)"
        )
    try:
        return msgspec.json.decode(message.payload, type=expected)
    except msgspec.DecodeError as error:
        raise Halted(f"catalog message {message.sequence} ({message.subject}) cannot be read: {error}") from error
