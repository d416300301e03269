"""The catalog's entries and removals in order, for readers that follow them."""

import datetime as dt
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from bronze.errors import Halted, Outage, Unavailable
from bronze.protocol.documents import CatalogEntry
from bronze.protocol.message import Message
from bronze.protocol.removal import Removal
from bronze.servers import stream_metadata
from bronze.servers.catalog import ENTRIES, REMOVALS, decode
from bronze.servers.jetstream import JetStream

#: Bounds of one read of the feed.
FEED_MESSAGES_MAX = 256
FEED_BYTES_MAX = 2**20
#: An entry that was stored longer after the begin of the write than this does not say when the write ended.
WRITE_S_MAX = 600

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FeedPosition:
    """A position in the feed: after a sequence of a stream. A rebuilt catalog is another stream."""

    stream: str = ""
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class FeedEntry:
    """A catalog entry in the feed; `time` is when the server stored it."""

    sequence: int
    time: str
    entry: CatalogEntry

    @property
    def stored_at(self) -> str:
        """When the write began; for entries of older versions, which lack it, when the entry was stored."""
        return self.entry.written_at or self.time

    @property
    def ended_at(self) -> str | None:
        """When the write had ended, by the queue's clock: it had stored the entry, which directly follows the write.

        None if that is not known: another process appended the entry later, after a crash or to rebuild the catalog; or
        it was found without the queue; or it lacks the begin, as those of older versions do.
        """
        if not self.time or not self.entry.written_at:
            return None
        took = dt.datetime.fromisoformat(self.time) - dt.datetime.fromisoformat(self.entry.written_at)
        return self.time if 0 <= took.total_seconds() <= WRITE_S_MAX else None


@dataclass(frozen=True, slots=True)
class FeedPage:
    """Entries after a position, in order, the position after them, and how many entries remain."""

    position: FeedPosition
    entries: Sequence[FeedEntry]
    remaining: int


@dataclass(frozen=True, slots=True)
class RemovalsPage:
    """Removals after a position, in order, each with its sequence; the position after them, and how many remain."""

    position: FeedPosition
    removals: Sequence[tuple[int, Removal]]
    remaining: int


class Feed:
    """The catalog's entries in order, for the catalog index and for followers of new objects."""

    def __init__(self, jetstream: JetStream) -> None:
        self._js = jetstream
        self._stream: str | None = None

    async def read(self, after: FeedPosition, *, since: str | None = None) -> FeedPage:
        """One page of entries after a position; from the beginning if the catalog was replaced since.

        `since`, a time of the server, is where to begin instead. Raises `Unavailable`.
        """
        position, messages, remaining = await self._read(ENTRIES, after, since)
        entries: list[FeedEntry] = []
        for message in messages:
            try:
                entries.append(FeedEntry(message.sequence, message.time, decode(message, CatalogEntry)))
            except Halted as error:
                log.error("skipped a catalog entry: %s", error)
        return FeedPage(position, entries, remaining)

    async def read_removals(self, after: FeedPosition) -> RemovalsPage:
        """One page of removals after a position; from the beginning if the catalog was replaced since.

        Raises `Unavailable`.
        """
        position, messages, remaining = await self._read(REMOVALS, after)
        removals: list[tuple[int, Removal]] = []
        for message in messages:
            try:
                removals.append((message.sequence, decode(message, Removal)))
            except Halted as error:
                log.error("skipped a removal: %s", error)
        return RemovalsPage(position, removals, remaining)

    async def _read(
        self, subject: str, after: FeedPosition, since: str | None = None
    ) -> tuple[FeedPosition, Sequence[Message], int]:
        """One page of the messages of a subject, the position after them, and how many remain."""
        stream = await self._find_stream()
        position = after if after.stream == stream else FeedPosition(stream)
        try:
            messages, remaining = await self._js.read_subject(
                stream,
                subject,
                since or position.sequence + 1,
                messages_max=FEED_MESSAGES_MAX,
                bytes_max=FEED_BYTES_MAX,
            )
        except Unavailable:
            self._stream = None  # it may have been replaced
            raise
        return FeedPosition(stream, messages[-1].sequence) if messages else position, messages, remaining

    async def end(self) -> FeedPosition:
        """The position after the last entry that exists now."""
        stream = await self._find_stream()
        return FeedPosition(stream, (await self._js.state(stream)).last)

    async def _find_stream(self) -> str:
        if self._stream is None:
            stream = next(iter(await self._js.stream_names(ENTRIES)), None)
            if stream is None:
                raise Unavailable(Outage.QUEUE_AWAY, "the queue has no catalog")
            if stream_metadata.REBUILDING in (await self._js.state(stream)).metadata:
                raise Unavailable(Outage.QUEUE_AWAY, "the catalog is being rebuilt")  # a part of it would look complete
            self._stream = stream
        return self._stream
