"""The catalog index of many objects: what a look-up reads does not grow with them, and what it finds is right."""

import datetime as dt
import inspect
import random
import shutil
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from benchmarks import view
from benchmarks.view import Catalog, CatalogPages, look_ups
from bronze.lineage import catalog_index
from bronze.lineage.catalog_index import SCHEMA_VERSION, CatalogIndex, IdKind
from bronze.protocol.documents import CatalogEntry, EntrySubmission, Totals, entry_of
from bronze.protocol.feed_cursor import RANGES_MAX, FeedCursor, Ranges
from bronze.protocol.lane import Lane
from bronze.protocol.removal import Removal
from bronze.servers.catalog_feed import Feed, FeedEntry, FeedPage, FeedPosition, RemovalsPage
from tests import factories

#: Tables that look-ups may read completely: they have some rows per lane.
BOUNDED = {"lanes", "removed_ranges", "place", "json_each"}
BEGIN = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)


@dataclass
class Pages:
    """A feed of these entries and removals, in pages of this size."""

    entries: Sequence[CatalogEntry] = ()
    removals: Sequence[Removal] = ()
    size: int = 7
    stream: str = "CATALOG"

    async def read(self, after: FeedPosition) -> FeedPage:
        begin = after.sequence if after.stream == self.stream else 0
        page = list(enumerate(self.entries, 1))[begin : begin + self.size]
        end = begin + len(page)
        found = [FeedEntry(number, factories.TIME, entry) for number, entry in page]
        return FeedPage(FeedPosition(self.stream, end), found, len(self.entries) - end)

    async def read_removals(self, after: FeedPosition) -> RemovalsPage:
        begin = after.sequence if after.stream == self.stream else 0
        page = list(enumerate(self.removals, 1))[begin : begin + self.size]
        end = begin + len(page)
        return RemovalsPage(FeedPosition(self.stream, end), page, len(self.removals) - end)


async def read_all(index: CatalogIndex, pages: object) -> None:
    while not await index.catch_up(cast(Feed, pages)):
        pass


@asynccontextmanager
async def index_of(pages: object, folder: Path | None = None) -> AsyncIterator[CatalogIndex]:
    index = await CatalogIndex(folder).open()
    await read_all(index, pages)
    yield index
    await index.close()


def entry(number: int, source: str = "vehicles", *submissions: dict[str, Any], **facts: Any) -> CatalogEntry:
    """An object of one message; `submissions` are facts of the submissions in it."""
    contents = factories.contents(number, number, source=source, file_path=f"{source}-{number}")
    defaults: dict[str, Any] = {"submission_id": "s", "trace_id": "0" * 32, "records": 1}
    facts["submissions"] = [EntrySubmission(**(defaults | of_one)) for of_one in submissions]
    return msgspec.structs.replace(entry_of(contents, Totals(objects=number, bytes=1000 * number)), **facts)


# --- what look-ups read


async def test_no_look_up_scans_a_table_that_grows() -> None:
    """By the plan of each query that a look-up runs. `BOUNDED` are the exceptions."""
    catalog = Catalog(400, 2)
    async with index_of(CatalogPages(catalog)) as index:
        queries: dict[str, set[str]] = {}
        for name, asked in look_ups(index, catalog).items():
            ran: set[str] = set()
            await index._run(index._db.set_trace_callback, ran.add)
            for look_up in asked:
                await look_up()
            await index._run(index._db.set_trace_callback, None)
            queries[name] = ran
        assert all(queries.values())
        plans = {
            query: await index._run(explained, index._db, query)
            for query in {query for ran in queries.values() for query in ran}
        }
    scans = {
        (query, step)
        for query, steps in plans.items()
        for step in steps
        # what a subquery reads is a step of its own
        if step.startswith("SCAN") and step.split()[1] not in BOUNDED and "subquery" not in step
    }
    assert not scans


def explained(db: sqlite3.Connection, query: str) -> list[str]:
    """The steps of the plan of a query."""
    return [str(step) for *_, step in db.execute(f"EXPLAIN QUERY PLAN {query}")]


async def test_the_plan_of_a_scan_shows_it() -> None:
    """So that the test above can fail."""
    async with index_of(Pages()) as index:
        (step,) = await index._run(explained, index._db, "SELECT * FROM entries WHERE event = ''")
    assert step == "SCAN entries"


async def test_look_ups_among_ten_times_the_objects_take_no_more_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in steps of SQLite's machine, also where an index is used, but most of it is read."""
    monkeypatch.setattr(catalog_index, "SEARCHED_PER_GENERATION", 512)
    monkeypatch.setattr(view, "EVENTS_MAX", 20)
    few, many = [await steps_of_look_ups(Catalog(objects, 1)) for objects in (2_000, 20_000)]
    assert few.keys() == many.keys()
    # to read a column of 20,000 rows takes 100,000 steps; the removals of a lane are few, and of each generation of
    # objects whose column has to be searched a small part is read
    allowed = {name: 2 * steps + (20_000 if "column" in name else 5_000) for name, steps in few.items()}
    assert {name: steps for name, steps in many.items() if steps > allowed[name]} == {}


async def steps_of_look_ups(catalog: Catalog) -> dict[str, int]:
    """The most steps of a look-up of each kind."""
    found: dict[str, int] = {}
    async with index_of(CatalogPages(catalog)) as index:
        for name, asked in look_ups(index, catalog).items():
            for look_up in asked:
                steps = [0]
                await index._run(index._db.set_progress_handler, lambda steps=steps: count(steps), 1)
                await look_up()
                await index._run(index._db.set_progress_handler, None, 1)
                found[name] = max(found.get(name, 0), steps[0])
    return found


def count(steps: list[int]) -> int:
    steps[0] += 1
    return 0


async def test_the_benchmark_asks_each_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the tests above have all of them."""
    wanted = {
        name for name, made in vars(CatalogIndex).items() if inspect.iscoroutinefunction(made) and name[0] != "_"
    } - {"open", "close", "follow", "catch_up"}
    called: set[str] = set()
    catalog = Catalog(50, 1)
    async with index_of(CatalogPages(catalog)) as index:
        for name in wanted:
            made = getattr(index, name)

            def noted(*arguments: object, name: str = name, made: Any = made) -> object:
                called.add(name)
                return made(*arguments)

            monkeypatch.setattr(index, name, noted)
        for asked in look_ups(index, catalog).values():
            await asked[0]()
    assert called == wanted


# --- what they find


async def test_events_since_a_time_are_those_of_all_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if objects were received in another order than they were written, and if some do not say when."""
    chance = random.Random(7)
    times = [BEGIN + dt.timedelta(seconds=number + chance.choice((0, 0, 0, -40, 40))) for number in range(200)]
    entries = [
        entry(number, "vehicles", {"submission_id": f"s{number}", "received_at": time.isoformat()})
        for number, time in enumerate(times, 1)
    ]
    entries[50] = entry(51)  # stored at `factories.TIME`, which is later than all of them
    async with index_of(Pages(entries)) as index:
        for seconds in (-100, 0, 37, 100, 199, 239, 240, 500):
            since = BEGIN + dt.timedelta(seconds=seconds)
            page = await index.events(FeedCursor(), None, 500, lambda page: page, since)
            expected = [n for n, time in enumerate(times, 1) if time >= since or n == 51]
            assert [cast(Any, event).first for event in page.events] == expected


async def test_columns_are_searched_of_all_objects_whose_range_has_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest first; a range may be unknown, and many may begin with the same id."""
    monkeypatch.setattr(catalog_index, "SEARCHED_PER_GENERATION", 16)
    monkeypatch.setattr(catalog_index, "SEARCHED_PER_PART", 3)
    chance = random.Random(7)
    entries = []
    for number in range(1, 401):
        least, greatest = sorted(chance.sample("abcdefghij", 2))
        several = {"submission_id": f"s{number}", "classification_id": None, "classification_count": 900}
        entries.append(
            entry(
                number,
                chance.choice(("vehicles", "status")),
                several,
                classification_count=900,
                classification_least=chance.choice((least, least, None)),
                classification_greatest=chance.choice((greatest, greatest, None)),
            )
        )
    async with index_of(Pages(entries)) as index:
        for wanted in ("a", "aa", "c", "j", "zz"):
            for sources in (None, frozenset({"status"})):
                expected = [
                    item.file_path
                    for item in reversed(entries)
                    if (item.classification_least or "") <= wanted
                    and (item.classification_greatest is None or item.classification_greatest >= wanted)
                    and (sources is None or item.source in sources)
                ]
                assert await index.candidates(wanted, 1_000, sources) == expected
                assert await index.candidates(wanted, 20, sources) == expected[:20]


async def test_ids_are_found_in_all_generations(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the catalog, and as many as wanted; also those that an entry lists of its column."""
    monkeypatch.setattr(catalog_index, "IDS_PER_GENERATION", 8)
    entries = [
        entry(number, "vehicles", {"submission_id": f"s{number}", "classification_id": "shared"})
        for number in range(1, 60)
    ]
    listed = {"submission_id": "several", "classification_id": None, "classification_count": 2}
    entries += [
        entry(number, "vehicles", listed, classification_count=2, classifications=["one", "two"])
        for number in range(60, 70)
    ]
    async with index_of(Pages(entries)) as index:
        assert index._generations > 5
        found = await index.by_id(IdKind.CLASSIFICATION, "shared", 100, lambda item: item.sequence)
        assert found == [*range(1, 60)]
        assert await index.by_id(IdKind.CLASSIFICATION, "shared", 20, lambda item: item.sequence) == found[:20]
        assert await index.by_id(IdKind.SUBMISSION, "s40", 9, lambda item: item.entry) == [entries[39]]
        assert await index.by_id(IdKind.TRACE, "s40", 9, lambda item: item.entry) == []
        assert await index.candidates("two", 4) == [f"vehicles-{number}" for number in (69, 68, 67, 66)]


async def test_the_end_of_the_feed_has_the_newest_removed_ranges() -> None:
    """As if each removal had been read in turn, in nearly their order. What was forgotten before is not known any more,
    so the oldest ones may differ.
    """
    chance = random.Random(7)
    numbers = [number + chance.randrange(20) for number in range(1, 10 * RANGES_MAX, 2)]
    removals = [factories.removal(factories.contents(number, number)) for number in numbers]
    lane = Lane("vehicles", 0, factories.LANE.epoch)
    expected: Ranges = Ranges()
    for number in numbers:
        expected = expected.with_range(number, number)
    async with index_of(Pages([entry(1)], removals)) as index:
        found = await index.latest(None)
    assert found is not None
    assert found.positions == {lane: 1}
    newest = found.removed[lane]
    assert RANGES_MAX / 2 < len(newest) <= RANGES_MAX
    assert newest.newest(len(newest) - 20) == expected.newest(len(newest) - 20)
    assert found.removals == {"vehicles": len(removals)}


# --- the file


async def test_a_file_of_an_older_layout_is_replaced(tmp_path: Path) -> None:
    """And not emptied, which would read all of it."""
    file = tmp_path / "view.sqlite"
    older = sqlite3.connect(file)
    older.executescript(
        f"CREATE TABLE entries (entry BLOB); INSERT INTO entries VALUES (zeroblob(9000000)); "
        f"PRAGMA user_version = {SCHEMA_VERSION - 1}"
    )
    older.close()
    async with index_of(Pages([entry(1)]), tmp_path) as index:
        assert len(await index.newest(None, 9)) == 1
    assert file.stat().st_size < 1_000_000
    reopened = await CatalogIndex(tmp_path).open()
    assert reopened.position == FeedPosition("CATALOG", 1)
    await reopened.close()


async def test_a_replaced_catalog_begins_a_new_file(tmp_path: Path) -> None:
    async with index_of(Pages([entry(number) for number in range(1, 20)]), tmp_path) as index:
        await read_all(index, Pages([entry(1, "status")], stream="ANOTHER"))
        assert [event.file_path for event in await index.newest(None, 9)] == ["status-1"]
        assert index.position == FeedPosition("ANOTHER", 1)


async def test_pages_that_are_committed_together_are_found_before(tmp_path: Path) -> None:
    """What is not committed is lost if the process is killed, and read again: the position is lost with it."""
    entries = [entry(number, "vehicles", {"submission_id": f"s{number}"}) for number in range(1, 200)]
    pages = cast(Feed, Pages(entries, size=3))
    index = await CatalogIndex(tmp_path).open()
    for _ in range(catalog_index.PAGES_PER_COMMIT + 2):
        assert not await index.catch_up(pages)
    assert index._db.in_transaction
    assert await index.by_path("vehicles-54", lambda item: item.entry) == [entries[53]]
    assert await index.by_id(IdKind.SUBMISSION, "s54", 9, lambda item: item.entry) == [entries[53]]
    assert index._db.in_transaction
    killed = tmp_path / "killed"
    killed.mkdir()
    for name in ("view.sqlite", "view.sqlite-wal"):
        shutil.copy(tmp_path / name, killed)
    after = await CatalogIndex(killed).open()
    assert after.position == FeedPosition("CATALOG", 3 * catalog_index.PAGES_PER_COMMIT)
    for one in (index, after):
        await read_all(one, pages)
        assert len((await one.events(FeedCursor(), None, 500, lambda page: page)).events) == len(entries)
        for number in (1, 54, 199):
            found = await one.by_id(IdKind.SUBMISSION, f"s{number}", 9, lambda item: item.sequence)
            assert found == [number]
        await one.close()


async def test_a_page_that_cannot_be_stored_takes_back_what_was_not_committed(tmp_path: Path) -> None:
    """The position is that of what is left, so nothing is skipped."""
    entries = [entry(number, "vehicles", {"submission_id": f"s{number}"}) for number in range(1, 20)]
    index = await CatalogIndex(tmp_path).open()
    await index.catch_up(cast(Feed, Pages(entries)))
    broken = [*entries[:7], *(msgspec.structs.replace(item, file_path=cast(Any, None)) for item in entries[7:])]
    with pytest.raises(sqlite3.IntegrityError):
        await index.catch_up(cast(Feed, Pages(broken)))
    assert index.position == FeedPosition()
    assert await index.by_id(IdKind.SUBMISSION, "s1", 9, lambda item: item.sequence) == []
    await read_all(index, Pages(entries))
    assert await index.by_id(IdKind.SUBMISSION, "s1", 9, lambda item: item.sequence) == [1]
    assert len((await index.events(FeedCursor(), None, 500, lambda page: page)).events) == len(entries)
    await index.close()
