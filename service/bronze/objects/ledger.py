"""The ledger: the totals of a lane, also where older versions appended entries without them."""

import asyncio
import logging
from collections.abc import Sequence

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


async def count_totals(catalog: Catalog, bucket: Bucket, lane: Lane, position: Position) -> Position:
    """The position with the totals of its lane.

    If its entry has none, they are counted: from the last entry that has them on, with the footers and sizes of the
    objects after it. An object that is no longer in the bucket counts with the records of its entry and no bytes.
    """
    if position.entry is None or position.entry.totals is not None:
        return position
    totals, since = Totals(), 1
    uncounted: list[CatalogEntry] = []
    while page := [entry for entry in await catalog.entries(lane, since) if entry[0] <= position.entry_sequence]:
        for sequence, entry in page:
            since = sequence + 1
            if entry.totals is None:
                uncounted.append(entry)
            else:
                totals, uncounted = entry.totals, []
    log.info("lane %s: counting %d objects of an older version", lane.stream, len(uncounted))
    for begin in range(0, len(uncounted), READS):
        totals = sum(await _totals_of(bucket, uncounted[begin : begin + READS]), totals)
    return Position(msgspec.structs.replace(position.entry, totals=totals), position.entry_sequence)


async def _totals_of(bucket: Bucket, entries: Sequence[CatalogEntry]) -> list[Totals]:
    async def of_object(entry: CatalogEntry) -> Totals:
        stored = await read_object(bucket, entry.file_path)
        if stored is None:
            log.warning("%s is in the catalog, but not in the bucket: its bytes are not counted", entry.file_path)
            return Totals(objects=1, records=entry.records)
        return stored.totals

    return await asyncio.gather(*map(of_object, entries))
