"""The totals of a lane whose entries lack them: how much is read for them; on modelled servers."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from bronze.objects import ledger
from bronze.objects.ledger import count_totals
from bronze.protocol.chain import Position
from bronze.protocol.documents import CatalogEntry, StoredObject, Totals, entry_of
from bronze.servers.catalog import PAGE_ENTRIES, SUBJECTS, NatsCatalog
from bronze.servers.jetstream import Outgoing
from tests import factories
from tests.delivery.servers import ModelBucket, ModelJetStream, QueueServer

STREAM = "BRONZE_CATALOG_1"
LANE = factories.LANE


class Reading(NatsCatalog):
    """A catalog that keeps from where on its entries were read."""

    def __init__(self, *connection: Any) -> None:
        super().__init__(*connection)
        self.begins: list[int] = []

    async def entries(self, lane: Any, since: int) -> Sequence[tuple[int, CatalogEntry]]:
        self.begins.append(since)
        return await super().entries(lane, since)


async def test_a_position_that_was_counted_is_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    """While an older consumer appends entries, each report counts only the new ones, and keeps no more than a page."""
    server = QueueServer(lambda: 0.0)
    server.create({"name": STREAM, "subjects": SUBJECTS, "metadata": {}})
    catalog, bucket = Reading(ModelJetStream(server), STREAM), ModelBucket({})
    read: list[str] = []

    async def read_object(_: object, key: str) -> StoredObject:
        read.append(key)
        return factories.stored(factories.contents(1, 1), size=10)

    monkeypatch.setattr(ledger, "read_object", read_object)

    def append(number: int, totals: Totals | None = None) -> Position:
        entry = entry_of(factories.contents(number, number), totals)
        return Position(entry, server.store([Outgoing(LANE.entry_subject, msgspec.json.encode(entry), {})]))

    append(1)
    append(2, Totals(objects=2, bytes=20, records=2))
    for number in range(3, PAGE_ENTRIES + 10):
        position = append(number)
    counted = await count_totals(catalog, bucket, LANE, position)
    assert counted.totals == Totals(objects=PAGE_ENTRIES + 9, bytes=10 * (PAGE_ENTRIES + 9), records=PAGE_ENTRIES + 9)
    assert len(read) == PAGE_ENTRIES + 7
    read.clear()
    catalog.begins.clear()
    newer = append(PAGE_ENTRIES + 10)
    again = await count_totals(catalog, bucket, LANE, newer, counted)
    assert again.totals == counted.totals + Totals(objects=1, bytes=10, records=1)
    assert read == [newer.entry.file_path if newer.entry else ""]
    assert min(catalog.begins) > counted.entry_sequence
    assert await count_totals(catalog, bucket, LANE, newer) == again
