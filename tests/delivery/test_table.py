"""The rows of a table are those of the bucket: none is missing, none is there twice, whatever happens to a commit."""

import asyncio
import datetime as dt
import io
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.table import Table, TableProperties
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.table.update import update_table_metadata

from bronze.errors import Halted, Outage, Unavailable
from bronze.protocol.documents import CatalogEntry
from bronze.records.columns import object_schema
from bronze.records.sources import built_in
from bronze.servers import iceberg
from bronze.servers.bucket import Bucket, Head
from bronze.servers.catalog_feed import Feed, FeedEntry, FeedPage, FeedPosition
from bronze.servers.iceberg import POSITION, Conflict, Tables, TableState
from bronze.table.committer import Behind, Committer
from bronze.table.contents import TableContents
from bronze.table.position import TablePosition
from bronze.table.run import TableRole
from bronze.table.table_telemetry import TableTelemetry
from bronze.telemetry.signals import Role
from tests.contract.making import Heard

SOURCE = built_in()["vehicles"]
EPOCH, NEXT_EPOCH = "20261129T000000000", "20261129T120000000"
#: A field of the records that the source does not declare.
UNDECLARED = "paint"
LATE = dt.datetime(2026, 11, 29, 23, 30, tzinfo=dt.UTC)
PAGE = 3
#: Of random steps: runs of the test, and steps of each.
RUNS, STEPS = 12, 40

Rows = Counter[tuple[str, int]]


@dataclass
class FakeBucket:
    """The objects, and the removal records, by key."""

    name: str = "bucket"
    bodies: dict[str, bytes] = field(default_factory=dict)

    async def head(self, key: str) -> Head | None:
        return Head(len(self.bodies[key]), {}) if key in self.bodies else None

    async def read(self, key: str, start: int, end: int) -> bytes:
        return self.bodies[key][start:end]

    async def keys(self, prefix: str, start_after: str = "") -> AsyncIterator[str]:
        for key in sorted(self.bodies):
            if key.startswith(prefix) and key > start_after:
                yield key


@dataclass
class FakeFeed:
    """The catalog's entries, in pages. A rebuilt catalog has another stream."""

    stream: str = "BRONZE_CATALOG_1"
    entries: list[CatalogEntry] = field(default_factory=list)

    async def end(self) -> FeedPosition:
        return FeedPosition(self.stream, len(self.entries))

    async def read(self, after: FeedPosition) -> FeedPage:
        begin = after.sequence if after.stream == self.stream else 0
        page = self.entries[begin : begin + PAGE]
        found = [FeedEntry(begin + n, LATE.isoformat(), entry) for n, entry in enumerate(page, 1)]
        return FeedPage(FeedPosition(self.stream, begin + len(page)), found, len(self.entries) - begin - len(page))

    def rebuild(self) -> None:
        """The entries are in order within each lane, and not across lanes."""
        self.stream += "1"
        self.entries.sort(key=lambda entry: (-entry.lane, entry.epoch, entry.first))


@dataclass
class Lanes:
    """The chains of a source's lanes, in bucket and catalog."""

    bucket: FakeBucket = field(default_factory=FakeBucket)
    feed: FakeFeed = field(default_factory=FakeFeed)

    def write(
        self,
        lane: int = 0,
        epoch: str = EPOCH,
        *,
        rows: int = 2,
        version: int = SOURCE.version,
        source: str = SOURCE.name,
        padding: str = "",
    ) -> CatalogEntry:
        """The next object of a lane. Its rows were received on two days."""
        key = (source, lane, epoch)
        chain = [entry for entry in self.feed.entries if (entry.source, entry.lane, entry.epoch) == key]
        first = chain[-1].last + 1 if chain else 1
        path = f"bronze/source={source}/date=2026-11-29/hour=23/{epoch}-{lane}-{first:012}.parquet"
        columns: Mapping[str, Sequence[object]] = {
            "vehicle_id": [f"v{n}" for n in range(rows)],
            "file_path": [path] * rows,
            "classification_id": ["c"] * rows,
            "_submission_id": [f"{epoch}-{lane}-{first}"] * rows,
            "_record_index": range(rows),
            "_received_at": [LATE + dt.timedelta(hours=n) for n in range(rows)],
            "_trace_id": ["0" * 32] * rows,
            "_schema_version": [version] * rows,
            "_payload": [f'{{"vehicle_id": "v{n}", "{UNDECLARED}": "value {n}{padding}"}}' for n in range(rows)],
        }
        schema = object_schema(SOURCE)
        arrays = [pa.array(columns.get(one.name, [None] * rows), one.type) for one in schema]
        file = io.BytesIO()
        pq.write_table(pa.table(arrays, schema=schema), file)
        self.bucket.bodies[path] = file.getvalue()
        entry = CatalogEntry(
            file_path=path,
            source=source,
            epoch=epoch,
            lane=lane,
            first=first,
            last=first + 2,
            last_time="",
            records=rows,
            messages=3,
            traceparent="",
            submissions=[],
            quarantined=[],
            duplicates=0,
            schema_versions=[version],
        )
        self.feed.entries.append(entry)
        return entry

    @property
    def rows(self) -> Rows:
        return Counter(
            (f"{entry.epoch}-{entry.lane}-{entry.first}", n)
            for entry in self.feed.entries
            for n in range(entry.records)
        )


class Cut(Exception):
    """The process of a committer ends here."""


class CutTables(Tables):
    """Tables whose next `append` may end the process, lose its reply, or let another committer come first."""

    def __init__(self, catalog: Catalog) -> None:
        super().__init__(catalog, "bronze")
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None
        #: of the next deletions of rows, how many come too late
        self.conflicts = 0

    def delete_before(self, state: TableState, before: dt.datetime) -> int:
        if self.conflicts:
            self.conflicts -= 1
            raise Conflict
        return super().delete_before(state, before)

    def append(self, state: TableState, rows: pa.Table, position: str, summary: Mapping[str, str]) -> Any:
        before, after = self.before, self.after
        self.before = self.after = lambda: None
        before()
        snapshot = super().append(state, rows, position, summary)
        after()
        return snapshot


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return load_catalog("test", type="sql", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}")


@pytest.fixture
def lanes() -> Lanes:
    return Lanes()


def committer(lanes: Lanes, tables: Tables, bytes_max: int = 2**20) -> Committer:
    return Committer(SOURCE, tables, cast(Feed, lanes.feed), cast(Bucket, lanes.bucket), "bronze", bytes_max)


async def follow(lanes: Lanes, tables: Tables, bytes_max: int = 2**20) -> Committer:
    """A new process: it has read the feed to its end, and committed nothing yet."""
    begun = committer(lanes, tables, bytes_max)
    place = await begun.open()
    await read_on(lanes, begun, place)
    return begun


async def read_on(lanes: Lanes, begun: Committer, place: FeedPosition) -> None:
    begun.begin(lanes.feed.stream)
    while (page := await lanes.feed.read(place)).entries:
        for entry in page.entries:
            begun.add(entry)
        place = page.position


async def commit_all(lanes: Lanes, tables: Tables) -> None:
    begun = await follow(lanes, tables)
    while await begun.commit("") is not None:
        pass


def table(catalog: Catalog) -> Table:
    return catalog.load_table(("bronze", SOURCE.name))


def rows_of(catalog: Catalog) -> Rows:
    found = table(catalog).scan(selected_fields=("_submission_id", "_record_index")).to_arrow()
    return Counter(zip(found["_submission_id"].to_pylist(), found["_record_index"].to_pylist(), strict=True))


def fail(error: BaseException) -> Callable[[], None]:
    def raise_it() -> None:
        raise error

    return raise_it


# --- what retention may delete


async def test_an_object_is_held_when_its_rows_are_committed(lanes: Lanes, catalog: Catalog) -> None:
    """Of sources that have a table. Before its role has begun, the table holds nothing."""
    tables = CutTables(catalog)
    first, other = lanes.write(), lanes.write(source="status")

    def contents() -> TableContents:
        return TableContents(tables, [SOURCE.name])

    assert [await contents().holds(entry) for entry in (first, other)] == [False, True]
    await commit_all(lanes, tables)
    later = lanes.write()
    assert [await contents().holds(entry) for entry in (first, later)] == [True, False]


async def test_old_rows_are_deleted_and_the_position_stays(lanes: Lanes, catalog: Catalog) -> None:
    """Also while others commit, and of a source that is not declared. The committer goes on, and no row comes back."""
    tables = CutTables(catalog)
    for _ in range(3):
        lanes.write()  # each has a row of this day and one of the next
    await commit_all(lanes, tables)
    before = table(catalog).current_snapshot()
    contents = TableContents(tables, [])
    day = dt.datetime(LATE.year, LATE.month, LATE.day, tzinfo=dt.UTC)
    assert await contents.delete_rows(SOURCE.name, day) == 0
    assert await contents.delete_rows("status", day + dt.timedelta(days=1)) == 0
    assert table(catalog).current_snapshot() == before
    tables.conflicts = 2
    assert await contents.delete_rows(SOURCE.name, day + dt.timedelta(days=1)) == 3
    young = Counter({row: number for row, number in lanes.rows.items() if row[1] == 1})
    assert rows_of(catalog) == young
    await commit_all(lanes, tables)
    assert rows_of(catalog) == young
    later = lanes.write()
    await commit_all(lanes, tables)
    assert rows_of(catalog) - young == Counter({(f"{EPOCH}-0-{later.first}", n): 1 for n in range(2)})


# --- the ways in which a commit can end


async def test_a_commit_does_not_copy_the_snapshots(
    lanes: Lanes, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else that is most of its CPU with a thousand snapshots. (A catalog in SQLite makes copies of its own.)"""
    tables = CutTables(catalog)
    for _ in range(3):
        lanes.write()
        await commit_all(lanes, tables)
    state = tables.read(SOURCE.name)
    copied: list[Snapshot] = []
    commit, copy = catalog.commit_table, Snapshot.__deepcopy__

    def counted(snapshot: Snapshot, memo: dict[int, Any] | None = None) -> Snapshot:
        copied.append(snapshot)
        return copy(snapshot, memo)

    def not_counted(*args: Any) -> Any:
        monkeypatch.undo()
        return commit(*args)

    monkeypatch.setattr(catalog, "commit_table", not_counted)
    monkeypatch.setattr(Snapshot, "__deepcopy__", counted)
    tables.append(state, state.table.scan(limit=1).to_arrow(), "{}", {})
    assert copied == []
    assert len(table(catalog).snapshots()) == 4


async def test_rows_are_committed_once_with_their_position(lanes: Lanes, catalog: Catalog) -> None:
    tables = CutTables(catalog)
    for lane in (0, 1, 0):
        lanes.write(lane)
    await commit_all(lanes, tables)
    await commit_all(lanes, tables)
    assert rows_of(catalog) == lanes.rows
    snapshot = table(catalog).current_snapshot()
    assert snapshot is not None
    assert snapshot.summary is not None
    position = TablePosition.decode(snapshot.summary.additional_properties[POSITION], SOURCE.name)
    assert position.lanes == {(0, EPOCH): 6, (1, EPOCH): 3}
    assert snapshot.summary["bronze.objects"] == "3"


async def test_a_commit_copies_the_metadata_a_few_times(
    lanes: Lanes, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have all snapshots: once per change of the transaction, and not each time that pyiceberg looks at them."""
    copies = []

    def counted(*args: Any) -> Any:
        copies.append(args)
        return update_table_metadata(*args)

    lanes.write()
    begun = await follow(lanes, CutTables(catalog))
    monkeypatch.setattr("pyiceberg.table.update_table_metadata", counted)
    await begun.commit("")
    assert 1 <= len(copies) <= 5
    assert rows_of(catalog) == lanes.rows


async def test_a_process_that_ends_around_a_commit_loses_and_doubles_nothing(lanes: Lanes, catalog: Catalog) -> None:
    tables = CutTables(catalog)
    lanes.write()
    tables.before = fail(Cut())
    with pytest.raises(Cut):
        await commit_all(lanes, tables)
    tables.after = fail(Cut())
    with pytest.raises(Cut):
        await commit_all(lanes, tables)
    assert rows_of(catalog) == lanes.rows
    await commit_all(lanes, tables)
    assert rows_of(catalog) == lanes.rows


async def test_a_lost_reply_doubles_nothing(lanes: Lanes, catalog: Catalog) -> None:
    tables = CutTables(catalog)
    begun = committer(lanes, tables)
    lanes.write()
    await read_on(lanes, begun, await begun.open())
    tables.after = fail(Unavailable(Outage.UNAVAILABLE, "the reply was lost"))
    with pytest.raises(Unavailable):
        await begun.commit("")
    assert await begun.commit("") is None
    assert rows_of(catalog) == lanes.rows


async def test_of_two_committers_one_is_refused(lanes: Lanes, catalog: Catalog) -> None:
    """Both have the same rows to commit, from the same state."""
    tables, others = CutTables(catalog), CutTables(catalog)
    lanes.write()
    one, other = await follow(lanes, tables), await follow(lanes, others)
    tables.before = lambda: commit_meanwhile(other)
    with pytest.raises(Conflict):
        await one.commit("")
    assert await one.commit("") is None
    assert rows_of(catalog) == lanes.rows


async def test_a_table_whose_commits_are_repeated_is_refused(lanes: Lanes, catalog: Catalog) -> None:
    """Anybody can change the property."""
    lanes.write()
    begun = await follow(lanes, CutTables(catalog))
    set_retries(catalog, 4)
    with pytest.raises(Halted, match=TableProperties.COMMIT_NUM_RETRIES):
        await begun.commit("")


async def test_repeated_commits_double_rows(lanes: Lanes, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: the same as with two committers, but pyiceberg repeats the commit that was refused."""
    tables, others = CutTables(catalog), CutTables(catalog)
    lanes.write()
    one, other = await follow(lanes, tables), await follow(lanes, others)
    set_retries(catalog, 1)
    monkeypatch.setattr(iceberg, "RETRIES", "1")
    tables.before = lambda: commit_meanwhile(other)
    await one.commit("")
    assert rows_of(catalog) == lanes.rows + lanes.rows


def commit_meanwhile(other: Committer) -> None:
    """From the thread in which another committer commits."""
    asyncio.run(other.commit(""))


def set_retries(catalog: Catalog, retries: int) -> None:
    with table(catalog).transaction() as transaction:
        transaction.set_properties({TableProperties.COMMIT_NUM_RETRIES: str(retries)})


# --- what others do to the table


def append_foreign(lanes: Lanes, catalog: Catalog) -> Rows:
    """Another program appends rows of its own."""
    rows = pq.read_table(io.BytesIO(next(iter(lanes.bucket.bodies.values()))))
    ids = pa.array(["foreign"] * rows.num_rows, pa.string())
    number = rows.schema.get_field_index("_submission_id")
    table(catalog).append(rows.set_column(number, rows.schema.field(number), ids))
    return Counter(("foreign", n) for n in range(rows.num_rows))


async def test_another_writer_does_not_disturb(lanes: Lanes, catalog: Catalog) -> None:
    tables = CutTables(catalog)
    lanes.write()
    await commit_all(lanes, tables)
    foreign = append_foreign(lanes, catalog)
    lanes.write()
    await commit_all(lanes, tables)
    assert rows_of(catalog) == lanes.rows + foreign


async def test_a_table_put_back_to_an_older_snapshot_gets_its_rows_again(lanes: Lanes, catalog: Catalog) -> None:
    tables = CutTables(catalog)
    lanes.write()
    await commit_all(lanes, tables)
    older = table(catalog).current_snapshot()
    lanes.write()
    await commit_all(lanes, tables)
    assert older is not None
    table(catalog).manage_snapshots().rollback_to_snapshot(older.snapshot_id).commit()
    assert rows_of(catalog) != lanes.rows
    await commit_all(lanes, tables)
    assert rows_of(catalog) == lanes.rows


async def test_a_running_committer_notices_that_the_table_was_put_back(lanes: Lanes, catalog: Catalog) -> None:
    tables = CutTables(catalog)
    lanes.write()
    await commit_all(lanes, tables)
    older = table(catalog).current_snapshot()
    lanes.write()
    begun = await follow(lanes, tables)
    await begun.commit("")
    assert older is not None
    table(catalog).manage_snapshots().rollback_to_snapshot(older.snapshot_id).commit()
    lanes.write()
    begun.add(FeedEntry(3, "", lanes.feed.entries[2]))
    with pytest.raises(Behind):
        await begun.commit("")
    await read_on(lanes, begun, await begun.open())
    await begun.commit("")
    assert rows_of(catalog) == lanes.rows


async def test_the_position_is_found_if_its_snapshot_expired(
    lanes: Lanes, catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    """Others have made the snapshots that are left: the column `file_path` shows what the table holds."""
    tables = CutTables(catalog)
    for lane in (0, 1, 0):
        lanes.write(lane)
    await commit_all(lanes, tables)
    foreign = append_foreign(lanes, catalog)
    *old, left = [one.snapshot_id for one in table(catalog).snapshots()]
    table(catalog).maintenance.expire_snapshots().by_ids(old).commit()
    assert [one.snapshot_id for one in table(catalog).snapshots()] == [left]
    lanes.write(1)
    await commit_all(lanes, tables)
    assert rows_of(catalog) == lanes.rows + foreign
    assert "file_path is read" in caplog.text


def test_the_property_counts_if_the_oldest_snapshot_came_directly_after_its_own() -> None:
    """Engines other than pyiceberg keep the name of a parent that expired."""
    left = SimpleNamespace(snapshot_id=8, summary=None, parent_snapshot_id=7)
    properties = {POSITION: "position", iceberg.POSITION_SNAPSHOT: "7"}
    found = SimpleNamespace(
        current_snapshot=lambda: left,
        snapshot_by_id=lambda _: None,
        properties=properties,
        name=lambda: ("bronze", "x"),
    )
    assert iceberg._position(cast(Table, found)) == "position"
    properties[iceberg.POSITION_SNAPSHOT] = "6"
    assert iceberg._position(cast(Table, found)) is None


# --- what happens to lanes and catalog


async def test_a_rebuilt_catalog_and_new_lanes_change_nothing(lanes: Lanes, catalog: Catalog) -> None:
    tables = CutTables(catalog)
    for lane in (0, 1, 0, 1):
        lanes.write(lane)
    begun = await follow(lanes, tables, bytes_max=1)
    await begun.commit("")
    lanes.feed.rebuild()
    await commit_all(lanes, tables)
    lanes.write(2, NEXT_EPOCH)
    lanes.write(0, NEXT_EPOCH)
    await commit_all(lanes, tables)
    assert rows_of(catalog) == lanes.rows


async def test_a_gap_in_a_lane_halts_the_table(lanes: Lanes, catalog: Catalog) -> None:
    tables = CutTables(catalog)
    lanes.write()
    await commit_all(lanes, tables)
    missing = lanes.write()
    lanes.write()
    lanes.feed.entries.remove(missing)
    begun = await follow(lanes, tables)
    with pytest.raises(Behind):
        await begun.commit("")
    with pytest.raises(Halted, match="up to message 3, and the catalog goes on at 7"):
        await begun.commit("")


async def test_an_object_that_is_missing_halts_the_table(lanes: Lanes, catalog: Catalog) -> None:
    lanes.bucket.bodies.pop(lanes.write().file_path)
    begun = await follow(lanes, CutTables(catalog))
    with pytest.raises(Halted, match="not in the bucket"):
        await begun.commit("")


async def test_rows_of_a_newer_declaration_wait(lanes: Lanes, catalog: Catalog) -> None:
    lanes.write(version=SOURCE.version + 1)
    begun = await follow(lanes, CutTables(catalog))
    with pytest.raises(Halted, match="give it the declaration"):
        await begun.commit("")


async def test_a_table_that_is_halted_does_not_stop_the_others(
    lanes: Lanes, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if more of its objects wait than are kept. When its cause is gone, it gets all of them."""
    monkeypatch.setattr("bronze.table.committer.WAITING_MAX", 2)
    tables = CutTables(catalog)
    feed, bucket = cast(Feed, lanes.feed), cast(Bucket, lanes.bucket)
    other = replace(SOURCE, name="other")
    committers = [Committer(one, tables, feed, bucket, "bronze", 2**20) for one in (SOURCE, other)]
    role = TableRole(committers, feed, TableTelemetry(Heard(Role.TABLE).telemetry), interval_s=0)
    missing = lanes.write().file_path
    body = lanes.bucket.bodies.pop(missing)
    for _ in range(4):
        lanes.write()
        lanes.write(source="other")
    for _ in range(12):
        await role.step()
    assert catalog.load_table(("bronze", "other")).scan().to_arrow().num_rows == 8
    assert rows_of(catalog) == Counter()
    lanes.bucket.bodies[missing] = body
    for _ in range(12):
        await role.step()
    assert rows_of(catalog) == Counter(
        (f"{entry.epoch}-{entry.lane}-{entry.first}", n)
        for entry in lanes.feed.entries
        if entry.source == SOURCE.name
        for n in range(entry.records)
    )


async def test_the_time_from_acceptance_is_measured_once_per_object(lanes: Lanes, catalog: Catalog) -> None:
    """Of its oldest record; objects without rows have none."""
    heard = Heard(Role.TABLE)
    feed, bucket = cast(Feed, lanes.feed), cast(Bucket, lanes.bucket)
    committer = Committer(SOURCE, CutTables(catalog), feed, bucket, "bronze", 2**20)
    role = TableRole([committer], feed, TableTelemetry(heard.telemetry), interval_s=0)
    for rows in (2, 0, 3):
        lanes.write(rows=rows)
    ages_s = []
    for _ in range(2):
        ages_s.append(dt.datetime.now(dt.UTC) - LATE)
        await role.step()
    ages_s.append(dt.datetime.now(dt.UTC) - LATE)
    (snapshots,) = heard.points("bronze.table.snapshots")
    assert snapshots.value == len(table(catalog).snapshots())
    (point,) = heard.points("bronze.table.delivery.duration")
    assert point.count == 2
    assert ages_s[0].total_seconds() <= point.min <= point.max <= ages_s[-1].total_seconds()


# --- all together


@pytest.mark.parametrize("seed", range(RUNS))
async def test_random_ends_of_commits_lose_and_double_nothing(seed: int, lanes: Lanes, catalog: Catalog) -> None:
    """Two committers, each of which ends, is refused or loses its reply at random, between new objects, new lanes, and
    rebuilds of the catalog.
    """
    chosen = random.Random(seed)
    both = [CutTables(catalog), CutTables(catalog)]
    begun = [await follow(lanes, tables, bytes_max=chosen.choice([1, 2**20])) for tables in both]
    for _ in range(STEPS):
        match chosen.randrange(8):
            case 0 | 1 | 2:
                lanes.write(chosen.randrange(2), chosen.choice([EPOCH, EPOCH, NEXT_EPOCH]), rows=chosen.randrange(4))
                continue
            case 3 if chosen.random() < 0.3:
                lanes.feed.rebuild()
        which = chosen.randrange(2)
        tables = both[which]
        fault = chosen.choice([None, Cut(), Unavailable(Outage.UNAVAILABLE, "the reply was lost")])
        if fault is not None:
            setattr(tables, chosen.choice(["before", "after"]), fail(fault))
        try:
            await read_on(lanes, begun[which], await begun[which].open())
            while await begun[which].commit("") is not None:
                pass
        except (Cut, Unavailable, Conflict):
            tables.before = tables.after = lambda: None
            if isinstance(fault, Cut):
                begun[which] = await follow(lanes, tables, bytes_max=chosen.choice([1, 2**20]))
    await commit_all(lanes, CutTables(catalog))
    assert rows_of(catalog) == lanes.rows
