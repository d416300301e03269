"""The sizes of objects, from the totals of their lanes' entries."""

from bronze.protocol.documents import CatalogEntry
from bronze.protocol.lane import Lane


class EntrySizes:
    """The sizes of the objects of entries that are read in order, in bytes."""

    def __init__(self) -> None:
        self._before: dict[Lane, tuple[int, int]] = {}

    def of(self, entry: CatalogEntry) -> int | None:
        """None if older versions wrote this entry or the one before it, or the one before it was not read."""
        lane = Lane(entry.source, entry.lane, entry.epoch)
        last, bytes_before = self._before.pop(lane, (0, 0))
        if entry.totals is None:
            return None
        self._before[lane] = entry.last, entry.totals.bytes
        # a rebuilt catalog lacks the entries of objects that are gone
        return entry.totals.bytes - bytes_before if entry.first == last + 1 else None
