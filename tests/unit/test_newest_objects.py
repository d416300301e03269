"""The newest objects, totals and quarantine in the catalog index, with which the page begins."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import msgspec
import pytest_asyncio

from bronze.lineage.catalog_index import CatalogIndex
from bronze.protocol.documents import CatalogEntry, Totals, entry_of
from bronze.servers.catalog_feed import Feed, FeedEntry, FeedPage, FeedPosition, RemovalsPage
from tests import factories


class GivenFeed:
    """A feed of these entries, and of removals of these paths."""

    def __init__(self, entries: Sequence[CatalogEntry], removed: Sequence[CatalogEntry]) -> None:
        self._entries = [FeedEntry(number, factories.TIME, entry) for number, entry in enumerate(entries, 1)]
        self._removals = [
            (number, factories.removal(factories.contents(entry.first, entry.last, file_path=entry.file_path)))
            for number, entry in enumerate(removed, 1)
        ]

    async def read(self, after: FeedPosition) -> FeedPage:
        return FeedPage(FeedPosition("CATALOG", len(self._entries)), self._entries[after.sequence :], 0)

    async def read_removals(self, after: FeedPosition) -> RemovalsPage:
        return RemovalsPage(FeedPosition("CATALOG", len(self._removals)), self._removals[after.sequence :], 0)


def entry(source: str, first: int, second: int, lane: int = 0, epoch: str = "e", **facts: Any) -> CatalogEntry:
    """An object of one message, written at this second of a minute; it is also the last of the lane so far."""
    contents = factories.contents(
        first, first, source=source, lane=lane, epoch=epoch, file_path=f"{source}-{epoch}-{lane}-{first}",
        written_at=f"2026-11-24T12:34:{second:02}+00:00",
    )  # fmt: skip
    totals = Totals(objects=first, bytes=1000 * first, records=10 * first)
    return msgspec.structs.replace(entry_of(contents, totals), **facts)


ENTRIES = [
    entry("vehicles", 1, 1),
    entry("vehicles", 1, 2, lane=1, quarantined=["q1", "q2"]),
    entry("status", 1, 3, quarantined=["q3"]),
    entry("canary", 1, 4, quarantined=["q4"]),
    # a rebuilt catalog has the entries of a lane after those of another
    entry("vehicles", 3, 7),
    entry("vehicles", 2, 5, lane=1),
    entry("vehicles", 1, 6, epoch="f"),
]


@pytest_asyncio.fixture
async def index() -> AsyncIterator[CatalogIndex]:
    opened = await CatalogIndex().open()
    await opened.catch_up(cast(Feed, GivenFeed(ENTRIES, [ENTRIES[5]])))
    yield opened
    await opened.close()


async def test_the_newest_objects_are_those_that_were_written_last(index: CatalogIndex) -> None:
    """Of all lanes and epochs, without the canary's; a removed one says so."""
    found = await index.newest(None, 4)
    assert [(event.file_path, event.removed) for event in found] == [
        ("vehicles-e-0-3", False),
        ("vehicles-f-0-1", False),
        ("vehicles-e-1-2", True),
        ("status-e-0-1", False),
    ]
    assert [event.file_path for event in await index.newest(frozenset({"status"}), 4)] == ["status-e-0-1"]
    assert await index.newest(frozenset({"other"}), 4) == []


async def test_the_newest_messages_in_quarantine_are_found(index: CatalogIndex) -> None:
    assert await index.newest_quarantined(None, 10) == ["q3", "q2", "q1"]
    assert await index.newest_quarantined(None, 2) == ["q3", "q2"]
    assert await index.newest_quarantined(frozenset({"vehicles"}), 10) == ["q2", "q1"]


async def test_the_totals_of_a_source_are_those_of_all_its_lanes(index: CatalogIndex) -> None:
    """Also of those that were replaced; unknown if one lane's are unknown."""
    found = await index.totals(None)
    assert {name: (totals.records, totals.bytes) for name, totals in found.items()} == {
        "vehicles": (30 + 20 + 10, 6000),
        "status": (10, 1000),
    }
    assert found["vehicles"].newest.file_path == "vehicles-e-0-3"
    older = entry("status", 1, 9, lane=1, totals=None)
    await index.catch_up(cast(Feed, GivenFeed([*ENTRIES, older], [])))
    assert (await index.totals(None))["status"].records is None
