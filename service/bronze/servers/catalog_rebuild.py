"""The stream of a catalog that is rebuilt, which no role takes before it is whole."""

from collections.abc import Iterable, Sequence

import msgspec

from bronze.errors import Outage, Unavailable
from bronze.protocol.documents import Contents, entry_of, identities_of
from bronze.protocol.lane import Lane
from bronze.protocol.message import unix_time_s
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
    stream_config,
)
from bronze.servers.jetstream import ApiError, JetStream, Outgoing
from bronze.servers.key_value import KeyValueStore, timestamped_name
from bronze.settings import Settings

#: The server takes 1,000 messages in one batch.
BATCH_MESSAGES = 1_000


class CatalogReplacement:
    """A catalog in the place of the one that there is, as long as it is not whole: no role takes it before `done`.

    Whoever worked with the one before is refused from then on, and starts anew.
    """

    def __init__(self, jetstream: JetStream, key_values: KeyValueStore, settings: Settings) -> None:
        self._js = jetstream
        self._key_values = key_values
        self._settings = settings
        self._stream = timestamped_name(PREFIX)

    async def start(self) -> None:
        """Take the place of the catalog that there is. Raises `Misconfigured` where that is another bucket's."""
        metadata = stream_metadata.of_catalog(self._settings)
        there = await self._js.stream_names(SUBJECTS[0])
        for name in there:
            stream_metadata.check(await self._js.state(name), metadata, ADVICE)
        await self._key_values.open()
        await self._key_values.hold_claim(CLAIM, REBUILD)
        for name in there:
            await self._js.delete_stream(name)
        config = stream_config(self._settings, {**metadata, stream_metadata.REBUILDING: "yes"})
        try:
            await self._js.create_stream({**config, "name": self._stream, "subjects": SUBJECTS})
        except ApiError as error:
            raise Unavailable(Outage.QUEUE_AWAY, f"the queue refuses the stream {self._stream}: {error}") from error

    async def append(self, objects: Iterable[Contents], now_s: float) -> int:
        """Write the identities that still count at a time and the entries of objects; gives how many identities.

        A lane's objects come in the chain's order. An identity's time to live begins anew.
        """
        identities = 0
        batch: list[Outgoing] = []
        for contents in objects:
            age_s = now_s - unix_time_s(contents.last_time)
            alive = [one for one in identities_of(contents) if age_s < (KEYED_S if one.accepted.keyed else UNKEYED_S)]
            identities += len(alive)
            lane = Lane(contents.source, contents.lane, contents.epoch)
            for message in (
                *map(identity_message, alive),
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
                raise js.replaced_error(self._stream) from error
            raise Unavailable(Outage.QUEUE_AWAY, f"the catalog refuses what is rebuilt: {error}") from error

    async def finish(self) -> None:
        """The catalog is whole: roles take it."""
        metadata = stream_metadata.of_catalog(self._settings)
        await self._js.update_stream(self._stream, metadata=metadata)
        await self._key_values.release_claim(CLAIM)
