"""The catalog's entries in order, for whoever follows new objects."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from bronze.errors import Halted, Outage, Unavailable
from bronze.protocol.documents import CatalogEntry
from bronze.servers import stream_metadata
from bronze.servers.catalog import ENTRIES, decode
from bronze.servers.jetstream import JetStream

#: One read of the feed.
FEED_MESSAGES_MAX = 256
FEED_BYTES_MAX = 2**20

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FeedPosition:
    """A place in the feed: after that sequence of that stream. A catalog that was made anew is another stream."""

    stream: str = ""
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class FeedEntry:
    """An entry as the feed has it; `time` is when the server stored it."""

    sequence: int
    time: str
    entry: CatalogEntry

    @property
    def stored_at(self) -> str:
        """When the object was written; entries of before say only when they were."""
        return self.entry.written_at or self.time


@dataclass(frozen=True, slots=True)
class FeedPage:
    """What the feed has after a position: entries in order, the position after them, and how many more there are."""

    position: FeedPosition
    entries: Sequence[FeedEntry]
    remaining: int


class Feed:
    """The catalog's entries, read in order by whoever needs them: the view, and followers of new objects."""

    def __init__(self, jetstream: JetStream) -> None:
        self._js = jetstream
        self._stream: str | None = None

    async def read(self, after: FeedPosition, *, since: str | None = None) -> FeedPage:
        """What follows a position, as much as one read takes; from the beginning where the catalog is another one.

        `since`, a server's time, says where to begin instead. Raises `Unavailable`.
        """
        stream = await self._found()
        position = after if after.stream == stream else FeedPosition(stream)
        try:
            messages, left = await self._js.read_subject(
                stream,
                ENTRIES,
                since or position.sequence + 1,
                messages_max=FEED_MESSAGES_MAX,
                bytes_max=FEED_BYTES_MAX,
            )
        except Unavailable:
            self._stream = None  # it may have been replaced
            raise
        entries: list[FeedEntry] = []
        for message in messages:
            try:
                entries.append(FeedEntry(message.sequence, message.time, decode(message, CatalogEntry)))
            except Halted as error:
                log.error("left out: %s", error)
        return FeedPage(FeedPosition(stream, messages[-1].sequence) if messages else position, entries, left)

    async def end(self) -> FeedPosition:
        """The position after all that there is now."""
        stream = await self._found()
        return FeedPosition(stream, (await self._js.state(stream)).last)

    async def _found(self) -> str:
        if self._stream is None:
            stream = next(iter(await self._js.stream_names(ENTRIES)), None)
            if stream is None:
                raise Unavailable(Outage.QUEUE_AWAY, "the queue has no catalog")
            if stream_metadata.REBUILDING in (await self._js.state(stream)).metadata:
                raise Unavailable(Outage.QUEUE_AWAY, "the catalog is being rebuilt")  # half of it would look like all
            self._stream = stream
        return self._stream
