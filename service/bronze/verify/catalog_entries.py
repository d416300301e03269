"""The catalog's entries since a time, as far as they exist, in order."""

import asyncio
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from bronze.protocol.documents import CatalogEntry
from bronze.protocol.entry_sizes import EntrySizes
from bronze.protocol.lane import Lane
from bronze.servers.catalog_feed import Feed, FeedEntry, FeedPosition


@dataclass(frozen=True, slots=True)
class Entry:
    """The facts of a catalog entry that are compared. The size is None if the entries do not state it."""

    file_path: str
    lane: Lane
    first: int
    last: int
    last_time: str
    messages: int
    records: int
    stored_at: dt.datetime
    size: int | None


def _entry(listed: FeedEntry, size: int | None) -> Entry:
    entry: CatalogEntry = listed.entry
    return Entry(
        entry.file_path,
        Lane(entry.source, entry.lane, entry.epoch),
        entry.first,
        entry.last,
        entry.last_time,
        entry.messages,
        entry.records,
        dt.datetime.fromisoformat(listed.stored_at).astimezone(dt.UTC),
        size,
    )


class CatalogEntries:
    """The entries that the queue has stored since `since`."""

    def __init__(self, feed: Feed, since: dt.datetime) -> None:
        self._feed = feed
        self._since = since.isoformat()
        self._position = FeedPosition()
        self._sizes = EntrySizes()
        self._reading = asyncio.Lock()
        #: in the order of the feed, which is that of each lane
        self.entries: list[Entry] = []
        self._by_path: dict[str, Entry] = {}

    def get(self, file_path: str) -> Entry | None:
        return self._by_path.get(file_path)

    async def read(self) -> None:
        """Read the entries that were appended since the last call; all of them if the catalog was replaced meanwhile.

        Raises `Unavailable`.
        """
        async with self._reading:
            while True:
                since = None if self._position.sequence else self._since
                page = await self._feed.read(self._position, since=since)
                if page.position.stream != self._position.stream:
                    self.entries, self._by_path, self._sizes = [], {}, EntrySizes()
                self._position = page.position
                for listed in page.entries:
                    entry = _entry(listed, self._sizes.of(listed.entry))
                    self.entries.append(entry)
                    self._by_path[entry.file_path] = entry
                if not page.remaining:
                    return

    def predecessors(self) -> Sequence[tuple[Entry, Entry | None]]:
        """Each entry with the entry before it in its lane; None for the first of its lane."""
        last: dict[Lane, Entry] = {}
        pairs = []
        for entry in self.entries:
            pairs.append((entry, last.get(entry.lane)))
            last[entry.lane] = entry
        return pairs
