"""What the tables hold, for retention: no object is deleted before its rows are in the table of its source, and old
rows are deleted from the tables, too.
"""

import asyncio
import datetime as dt
from collections.abc import Collection

from bronze.errors import Outage, Unavailable
from bronze.protocol.documents import CatalogEntry
from bronze.servers.iceberg import Conflict, Tables
from bronze.table.position import TablePosition

#: Commits of others that may come first.
COMMITS_MAX = 10


class TableContents:
    """The contents of the tables, each as it is when first asked for; `bronze table` commits those of `sources`."""

    def __init__(self, tables: Tables, sources: Collection[str]) -> None:
        self._tables = tables
        self._sources = sources
        self._positions: dict[str, TablePosition] = {}

    async def holds(self, entry: CatalogEntry) -> bool:
        """Whether the table holds the rows of an object; true for sources that `bronze table` does not commit.

        Raises `Unavailable`, and `Halted` if the position of the table cannot be read.
        """
        if entry.source not in self._sources:
            return True
        if entry.source not in self._positions:
            self._positions[entry.source] = await asyncio.to_thread(self._read, entry.source)
        return self._positions[entry.source].holds(entry)

    def _read(self, source: str) -> TablePosition:
        if not self._tables.exists(source):
            return TablePosition()  # its role has not begun
        position = self._tables.read(source).position
        return TablePosition.decode(position, source) if position is not None else TablePosition()

    async def delete_rows(self, source: str, before: dt.datetime) -> int:
        """Delete the rows of a source that were received before a day, if it has a table; returns how many. What is
        committed later of such rows, the next call deletes.

        Raises `Unavailable`, and `Halted` if the table must not be changed.
        """
        return await asyncio.to_thread(self._delete_rows, source, before)

    def _delete_rows(self, source: str, before: dt.datetime) -> int:
        if not self._tables.exists(source):
            return 0
        for _ in range(COMMITS_MAX):
            try:
                return self._tables.delete_before(self._tables.read(source), before)
            except Conflict:
                continue
        raise Unavailable(Outage.CONFLICT, f"other commits to the table {source} came first. Run this command again")
