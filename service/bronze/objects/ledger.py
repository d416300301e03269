"""The ledger: the totals of a lane, also where older versions appended entries without them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

import msgspec

from bronze.objects.reader import read_object
from bronze.protocol.chain import Position
from bronze.protocol.documents import CatalogEntry, Totals
from bronze.protocol.lane import Lane
from bronze.servers.bucket import Bucket
from bronze.servers.catalog import Catalog

log = logging.getLogger(__name__)

#: Objects that are read concurrently.
READS = 16


async def count_totals(
    catalog: Catalog, bucket: Bucket, lane: Lane, position: Position, counted: Position | None = None
) -> Position:
    """The position with the totals of its lane.

    If its entry has none, they are counted: from the last entry that has them on, or from an earlier position that was
    `counted` already, with the footers and sizes of the objects after it. An object that is no longer in the bucket
    counts with the records of its entry and no bytes. At most one page of entries is in memory.
    """
    if position.entry is None or position.entry.totals is not None:
        return position
    totals, since = Totals(), 1
    if counted and counted.entry and counted.entry.totals:
        totals, since = counted.entry.totals, counted.entry_sequence + 1
    async for page in _pages(catalog, lane, since, position):
        for sequence, entry in page:
            if entry.totals is not None:
                totals, since = entry.totals, sequence + 1
    log.info("lane %s: counting the objects of an older version", lane.stream)
    async for page in _pages(catalog, lane, since, position):
        for begin in range(0, len(page), READS):
            totals = sum(await _totals_of(bucket, [entry for _, entry in page[begin : begin + READS]]), totals)
    return Position(msgspec.structs.replace(position.entry, totals=totals), position.entry_sequence)


async def _pages(
    catalog: Catalog, lane: Lane, since: int, position: Position
) -> AsyncIterator[list[tuple[int, CatalogEntry]]]:
    """The entries from a sequence up to the position, each with its sequence."""
    while page := [item for item in await catalog.entries(lane, since) if item[0] <= position.entry_sequence]:
        yield page
        since = page[-1][0] + 1


async def _totals_of(bucket: Bucket, entries: Sequence[CatalogEntry]) -> list[Totals]:
    async def of_object(entry: CatalogEntry) -> Totals:
        stored = await read_object(bucket, entry.file_path)
        if stored is None:
            log.warning("%s is in the catalog, but not in the bucket: its bytes are not counted", entry.file_path)
            return Totals(objects=1, records=entry.records)
        return stored.totals

    return await asyncio.gather(*map(of_object, entries))
