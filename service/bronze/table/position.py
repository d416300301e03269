"""How far a table has come in the chains of its source: per lane, the last message that it holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import msgspec

from bronze.errors import Halted
from bronze.protocol.documents import CatalogEntry
from bronze.servers.catalog_feed import FeedPosition

#: A lane: its number and its epoch.
LaneKey = tuple[int, str]


class _Lane(msgspec.Struct, frozen=True):
    lane: int
    epoch: str
    last: int


class _Document(msgspec.Struct, frozen=True):
    lanes: list[_Lane]
    catalog: str = ""
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class TablePosition:
    """The last message of each lane that a table holds.

    It survives a rebuild of the catalog and a change of lanes, which a place in the feed does not. `feed` is only where
    to go on reading: no entry before it is missing in the table.
    """

    lanes: Mapping[LaneKey, int] = field(default_factory=dict)
    feed: FeedPosition = field(default_factory=FeedPosition)

    def last(self, entry: CatalogEntry) -> int | None:
        """The last message that the table holds of the entry's lane; None if it holds none."""
        return self.lanes.get((entry.lane, entry.epoch))

    def holds(self, entry: CatalogEntry) -> bool:
        last = self.last(entry)
        return last is not None and entry.last <= last

    def after(self, entry: CatalogEntry) -> Self:
        """The position after the rows of this entry's object as well."""
        return type(self)({**self.lanes, (entry.lane, entry.epoch): entry.last}, self.feed)

    def follows(self, entry: CatalogEntry) -> bool:
        """Whether the entry is the next one of its lane. A lane of which the table holds nothing may begin anywhere:
        its oldest objects may have been deleted long ago.
        """
        last = self.last(entry)
        return last is None or entry.first == last + 1

    def encode(self) -> str:
        lanes = [_Lane(number, epoch, last) for (number, epoch), last in sorted(self.lanes.items())]
        return msgspec.json.encode(_Document(lanes, self.feed.stream, self.feed.sequence)).decode()

    @classmethod
    def decode(cls, text: str, table: str) -> Self:
        """The position that a table states. Raises `Halted` if it cannot be read."""
        try:
            document = msgspec.json.decode(text, type=_Document)
        except msgspec.DecodeError as error:
            raise Halted(f"the position of the table {table} cannot be read: {error}") from error
        return cls(
            {(lane.lane, lane.epoch): lane.last for lane in document.lanes},
            FeedPosition(document.catalog, document.sequence),
        )
