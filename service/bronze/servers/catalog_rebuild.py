"""The stream of a catalog that is being rebuilt. No role uses it before it is complete."""

from collections.abc import Iterable, Sequence

import msgspec

from bronze.errors import Outage, Unavailable
from bronze.protocol.documents import CatalogEntry, Identity, StoredObject, Totals, entry_of, identities_of
from bronze.protocol.lane import Lane
from bronze.protocol.message import unix_time_s
from bronze.protocol.removal import Removal
from bronze.servers import jetstream as js
from bronze.servers import stream_metadata
from bronze.servers.catalog import (
    ADVICE,
    CLAIM,
    KEYED_S,
    PREFIX,
    REBUILD,
    SUBJECTS,
    UNKEYED_S,
    identity_message,
    removal_message,
    stream_config,
)
from bronze.servers.jetstream import ApiError, JetStream, Outgoing
from bronze.servers.key_value import KeyValueStore, timestamped_name
from bronze.settings import Settings

#: The server accepts 1,000 messages in one batch.
BATCH_MESSAGES = 1_000


class CatalogReplacement:
    """A new catalog that replaces the existing one. No role uses it before `finish`.

    From `start` on, the requests of processes that use the old catalog are refused, and these processes restart.
    """

    def __init__(self, jetstream: JetStream, key_values: KeyValueStore, settings: Settings) -> None:
        self._js = jetstream
        self._key_values = key_values
        self._settings = settings
        self._stream = timestamped_name(PREFIX)
        #: of the objects so far; None if they are not known
        self._totals: dict[Lane, Totals | None] = {}

    async def start(self) -> None:
        """Replace the existing catalog by an empty one. Raises `Misconfigured` if it belongs to another bucket."""
        metadata = stream_metadata.of_catalog(self._settings)
        existing = await self._js.stream_names(SUBJECTS[0])
        for name in existing:
            stream_metadata.check(await self._js.state(name), metadata, ADVICE)
        await self._key_values.open()
        await self._key_values.hold_claim(CLAIM, REBUILD)
        for name in existing:
            await self._js.delete_stream(name)
        config = stream_config(self._settings, {**metadata, stream_metadata.REBUILDING: "yes"})
        try:
            await self._js.create_stream({**config, "name": self._stream, "subjects": SUBJECTS})
        except ApiError as error:
            raise Unavailable(Outage.QUEUE_AWAY, f"the queue refuses the stream {self._stream}: {error}") from error

    async def append(self, objects: Iterable[StoredObject | Removal], now_s: float) -> int:
        """Write the entries of objects, and the identities that are not expired; returns how many identities.

        The objects of a lane have to be in the order of its chain; the removal record of an object that is gone has
        to have its entry. The totals of a lane are those in its footers. Where older versions wrote the footers, they
        are counted if all objects from the first message on are in the bucket; else the entries have none. (Totals of
        a part of the chain would not fit those of the next footer, whose object would seem to have another size.)

        The time to live of each identity begins now.
        """
        identities = 0
        batch: list[Outgoing] = []
        for item in objects:
            entry, known = self._of_removal(item) if isinstance(item, Removal) else self._of_object(item)
            age_s = now_s - unix_time_s(entry.last_time)
            alive = [identity for identity in known if age_s < (KEYED_S if identity.accepted.keyed else UNKEYED_S)]
            identities += len(alive)
            lane = Lane(entry.source, entry.lane, entry.epoch)
            for message in (
                *map(identity_message, alive),
                Outgoing(lane.entry_subject, msgspec.json.encode(entry), {}),
            ):
                batch.append(message)
                if len(batch) == BATCH_MESSAGES:
                    await self._publish(batch)
                    batch = []
        if batch:
            await self._publish(batch)
        return identities

    def _of_object(self, stored: StoredObject) -> tuple[CatalogEntry, list[Identity]]:
        """The entry and the identities of the next object of a chain."""
        contents = stored.contents
        lane = Lane(contents.source, contents.lane, contents.epoch)
        before = contents.totals_before or self._totals.get(lane, Totals() if contents.first == 1 else None)
        totals = self._totals[lane] = None if before is None else before + stored.totals
        return entry_of(contents, totals), identities_of(contents)

    def _of_removal(self, removal: Removal) -> tuple[CatalogEntry, list[Identity]]:
        """The same of a removed object."""
        if removal.entry is None:
            raise ValueError(f"the removal record of {removal.file_path} has no entry")
        self._totals[removal.of_lane] = removal.entry.totals
        return removal.entry, removal.identities

    async def announce(self, removals: Iterable[Removal]) -> None:
        """Publish removal records on their feed: at most as many as one batch may have messages."""
        await self._publish([removal_message(removal) for removal in removals])

    async def _publish(self, batch: Sequence[Outgoing]) -> None:
        batch[0].headers[js.EXPECTED_STREAM] = self._stream
        try:
            await self._js.publish_batch(batch, len(batch))
        except ApiError as error:
            if error.err_code == js.WRONG_STREAM or await self._js.is_replaced(self._stream, SUBJECTS[0]):
                raise js.replaced_error(self._stream) from error
            raise Unavailable(Outage.QUEUE_AWAY, f"the queue refuses the rebuilt catalog: {error}") from error

    async def finish(self) -> None:
        """Mark the catalog as complete: from now on roles use it."""
        metadata = stream_metadata.of_catalog(self._settings)
        await self._js.update_stream(self._stream, metadata=metadata)
        await self._key_values.release_claim(CLAIM)
