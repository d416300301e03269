"""An erasure removes its rows from every file of a table, for good, and leaves all other rows as they are."""

import asyncio
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.manifest import ManifestEntryStatus, ManifestFile
from pyiceberg.table import TableProperties
from pyiceberg.types import StringType

from bronze.errors import Halted, Unavailable
from bronze.maintenance.erasure import ERASURE_ID, ErasedRows, TableErasure
from bronze.maintenance.task import COMMITS_MAX, TooManyConflicts
from bronze.records.columns import table_schema
from bronze.records.sources import built_in
from bronze.servers import iceberg
from bronze.servers.iceberg import POSITION, Condition, Conflict, FileGroup, Matches, RewrittenGroup, TableState
from tests.delivery import test_table as tables_test
from tests.delivery.test_table import (
    LATE,
    SOURCE,
    Cut,
    CutTables,
    Lanes,
    Rows,
    append_foreign,
    commit_all,
    fail,
    follow,
    rows_of,
    set_retries,
    table,
)
from tests.delivery.test_table_columns import set_schema
from tests.delivery.test_table_compaction import StepTables, compact, files, position, read_meanwhile
from tests.delivery.test_table_expiry import expire, grow_old, referenced, roll_back, snapshot_ids, stored
from tests.delivery.test_table_reprocessing import DAY, NEXT_DAY, contents, reprocess

catalog, lanes = tables_test.catalog, tables_test.lanes

#: An object has a row of one vehicle per hour from LATE on; so that of the second one is in a file with others, and
#: that of the first one is alone in its file.
ROWS, OBJECTS = 4, 3
ID = "erasure-1"
RAW_DATA = "bucket/bronze"
SOURCES = {SOURCE.name: SOURCE}
BUILT_IN = built_in()


class HookedTables(StepTables):
    """The steps of an erasure."""

    def search(self, state: TableState, search: iceberg.RowSearch) -> Matches:
        self._call("search")
        return super().search(state, search)

    def write(self, group: FileGroup, parts: Iterable[pa.Table]) -> RewrittenGroup:
        self._call("write")
        return super().write(group, parts)

    def erase(self, *args: Any) -> Any:
        self._call("erase")
        return super().erase(*args)

    def expire(self, state: TableState, snapshot_ids: Sequence[int]) -> None:
        self._call("expire")
        super().expire(state, snapshot_ids)

    def unreferenced_matches(self, *args: Any) -> Any:
        self._call("unreferenced")
        return super().unreferenced_matches(*args)

    def delete(self, *args: Any) -> None:
        self._call("delete")
        super().delete(*args)


STEPS = ("search", "write", "erase", "expire", "unreferenced", "delete")


def of_vehicle(name: str) -> Condition:
    return lambda _: pc.field("vehicle_id") == name


def erasure(tables: iceberg.Tables, condition: Condition | None = None) -> TableErasure:
    return TableErasure(tables, SOURCES, condition or of_vehicle("v1"), ID, RAW_DATA)


def erase(tables: iceberg.Tables, condition: Condition | None = None) -> ErasedRows:
    return erasure(tables, condition).run(SOURCE.name, lambda: None)


def erase_objects(lanes: Lanes, vehicle: str = "v1") -> None:
    """The objects are written again, in place, without the rows; the catalog says how many are left."""
    for number, entry in enumerate(lanes.feed.entries):
        rows = pq.read_table(io.BytesIO(lanes.bucket.bodies[entry.file_path]))
        rows, file = rows.filter(pc.field("vehicle_id") != vehicle), io.BytesIO()
        pq.write_table(rows, file)
        lanes.bucket.bodies[entry.file_path] = file.getvalue()
        lanes.feed.entries[number] = msgspec.structs.replace(entry, records=rows.num_rows)


def in_objects(lanes: Lanes) -> Rows:
    found: Rows = Counter()
    for body in lanes.bucket.bodies.values():
        rows = pq.read_table(io.BytesIO(body), columns=["_submission_id", "_record_index"])
        found.update(zip(*(column.to_pylist() for column in rows.columns), strict=True))
    return found


async def fill(lanes: Lanes, catalog: Catalog) -> None:
    for number in range(OBJECTS):
        lanes.write(number % 2, rows=ROWS)
        await commit_all(lanes, CutTables(catalog))


async def checked(lanes: Lanes, catalog: Catalog) -> None:
    """The table has the rows of the objects, and goes on with those of new ones."""
    assert rows_of(catalog) == in_objects(lanes)
    lanes.write(rows=1)
    await commit_all(lanes, CutTables(catalog))
    assert rows_of(catalog) == in_objects(lanes)


def traces(tmp_path: Path, catalog: Catalog, vehicle: str = "v1") -> list[str]:
    """Where in the storage of the tables the vehicle still is: rows in data files, and bounds in manifests."""
    found = []
    names = {field.field_id for field in table(catalog).schema().fields if field.name == "vehicle_id"}
    for path in stored(tmp_path):
        if path.suffix == ".parquet":
            found += [str(path)] * (vehicle in pq.read_table(path, columns=["vehicle_id"])["vehicle_id"].to_pylist())
        elif not path.name.startswith("snap-"):
            manifest = ManifestFile.from_args(manifest_path=f"file://{path}")
            for entry in manifest.fetch_manifest_entry(table(catalog).io, discard_deleted=False):
                bounds = (entry.data_file.lower_bounds or {}, entry.data_file.upper_bounds or {})
                found += [str(path)] * any(each.get(name) == vehicle.encode() for each in bounds for name in names)
    return found


async def test_the_rows_are_gone_and_all_others_are_equal(lanes: Lanes, catalog: Catalog, tmp_path: Path) -> None:
    await fill(lanes, catalog)
    before, told = contents(catalog), position(catalog)
    assert traces(tmp_path, catalog)
    erase_objects(lanes)
    done = erase(CutTables(catalog))
    assert (done.rows, done.files, done.snapshots) == (OBJECTS, OBJECTS, OBJECTS)
    assert (done.new_files, done.conflicts) == (OBJECTS, 0)
    assert done.deleted_files > OBJECTS
    assert contents(catalog).equals(before.filter(pc.field("vehicle_id") != "v1"))
    current = table(catalog).current_snapshot()
    assert current is not None
    assert current.summary is not None
    assert snapshot_ids(catalog) == [current.snapshot_id] == [done.snapshot_id]
    properties = current.summary.additional_properties
    assert (properties[ERASURE_ID], properties[POSITION]) == (ID, told)
    assert properties["total-records"] == str(OBJECTS * (ROWS - 1))
    assert properties["total-data-files"] == str(2 * OBJECTS)
    assert traces(tmp_path, catalog) == []
    assert {path for path in stored(tmp_path) if path.suffix == ".parquet"} <= referenced(catalog)
    await checked(lanes, catalog)


async def test_rows_are_rewritten_in_parts_of_which_some_have_no_others(
    lanes: Lanes, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compacted file has a row group per part; here each part is a row."""
    monkeypatch.setattr(iceberg, "PART_BYTES", 1)
    for _ in range(2):
        lanes.write(rows=1)
        lanes.write(1, rows=ROWS)
        await commit_all(lanes, CutTables(catalog))
    compact(CutTables(catalog))
    paths = [scan.file.file_path.removeprefix("file://") for scan in table(catalog).scan().plan_files()]
    assert max(pq.ParquetFile(path).num_row_groups for path in paths) > 1
    erase_objects(lanes)
    assert erase(CutTables(catalog)).rows == 2
    assert traces(tmp_path, catalog) == []
    await checked(lanes, catalog)


async def test_a_file_without_other_rows_is_removed(lanes: Lanes, catalog: Catalog, tmp_path: Path) -> None:
    await fill(lanes, catalog)
    erase_objects(lanes, "v0")
    done = erase(CutTables(catalog), of_vehicle("v0"))
    assert (done.rows, done.files, done.new_files) == (OBJECTS, OBJECTS, 0)
    assert len(files(catalog)) == OBJECTS
    assert traces(tmp_path, catalog, "v0") == []
    await checked(lanes, catalog)


async def test_all_rows_may_go(lanes: Lanes, catalog: Catalog, tmp_path: Path) -> None:
    await fill(lanes, catalog)
    for entry in lanes.feed.entries:
        lanes.bucket.bodies[entry.file_path] = b""
    lanes.feed.entries[:] = []
    assert erase(CutTables(catalog), lambda _: pc.field("vehicle_id").is_valid()).rows == OBJECTS * ROWS
    assert rows_of(catalog) == Counter()
    assert {path.suffix for path in stored(tmp_path)} == {".avro"}


async def test_rows_for_which_the_condition_is_null_stay(lanes: Lanes, catalog: Catalog) -> None:
    """Also those in a file that is written again."""
    await fill(lanes, catalog)
    before = contents(catalog)
    assert erase(CutTables(catalog), lambda _: pc.field("seats") != 3).rows == 0
    condition = (pc.field("seats") != 3) | (pc.field("vehicle_id") == "v1")
    assert erase(CutTables(catalog), lambda _: condition).rows == OBJECTS
    assert contents(catalog).equals(before.filter(pc.field("vehicle_id") != "v1"))


@pytest.mark.parametrize("condition", [pc.field("delay_min") != 5, ~(pc.field("delay_min") <= 5)])
def test_rows_with_nan_are_found(condition: pc.Expression, catalog: Catalog) -> None:
    """Statistics leave NaN out: those of this file say that each value is 5."""
    columns = table_schema(BUILT_IN["status"])
    delays, rows = [5.0, math.nan, None], 3
    defaults = {pa.string(): "x", pa.int64(): 1, pa.int32(): 1}
    values = {field.name: [defaults.get(field.type, LATE)] * rows for field in columns} | {"delay_min": delays}
    tables = CutTables(catalog)
    tables.open("status", columns)
    catalog.load_table("bronze.status").append(
        pa.table([pa.array(values[field.name], field.type) for field in columns], schema=columns)
    )
    search = TableErasure(tables, BUILT_IN, lambda _: condition, ID, RAW_DATA)
    assert search.plan("status").rows == 1
    assert search.run("status", lambda: None).rows == 1
    left = catalog.load_table("bronze.status").scan().to_arrow()
    assert left["delay_min"].to_pylist() == [5.0, None]


async def test_a_search_works_out_its_condition_once(lanes: Lanes, catalog: Catalog) -> None:
    """Not once per file."""
    await fill(lanes, catalog)
    schemas: list[pa.Schema] = []

    def condition(schema: pa.Schema) -> pc.Expression:
        schemas.append(schema)
        return pc.field("vehicle_id") == "v1"

    assert erasure(CutTables(catalog), condition).plan(SOURCE.name).files == OBJECTS
    assert len(schemas) == 1


async def test_a_plan_says_where_the_rows_are_and_changes_nothing(
    lanes: Lanes, catalog: Catalog, tmp_path: Path
) -> None:
    await fill(lanes, catalog)
    compact(CutTables(catalog))
    before, kept = table(catalog).metadata, stored(tmp_path)
    planned = erasure(CutTables(catalog)).plan(SOURCE.name)
    assert (planned.rows, planned.files, planned.snapshots) == (OBJECTS, OBJECTS + 1, OBJECTS)
    assert "would erase" in str(planned)
    assert table(catalog).metadata == before
    assert stored(tmp_path) == kept
    done = erase(CutTables(catalog))
    assert (done.rows, done.files) == (planned.rows, planned.files)
    nothing = erasure(CutTables(catalog)).plan(SOURCE.name)
    assert (nothing.rows, nothing.files, nothing.snapshots) == (0, 0, 0)
    assert "no rows" in str(nothing)


async def test_what_older_snapshots_and_their_manifests_have_is_gone(
    lanes: Lanes, catalog: Catalog, tmp_path: Path
) -> None:
    """After compactions, expiries, and rows that another program deleted: a snapshot that removed a file has its
    bounds. Snapshots that never had the rows stay.
    """
    lanes.write(rows=1)
    await commit_all(lanes, CutTables(catalog))
    (first,) = snapshot_ids(catalog)
    await fill(lanes, catalog)
    compact(CutTables(catalog))
    grow_old(tmp_path)
    table(catalog).delete("vehicle_id == 'v1'")
    expire(CutTables(catalog))
    assert rows_of(catalog) == lanes.rows - Counter({row: 1 for row in lanes.rows if row[1] == 1})
    assert traces(tmp_path, catalog)
    erase_objects(lanes)
    done = erase(CutTables(catalog))
    assert done.rows == 0
    assert traces(tmp_path, catalog) == []
    await checked(lanes, catalog)
    before = snapshot_ids(catalog)
    assert first not in before  # it had expired
    again = TableErasure(CutTables(catalog), SOURCES, of_vehicle("v1"), "erasure-2", RAW_DATA).run(
        SOURCE.name, lambda: None
    )
    assert (again.rows, again.files, again.snapshots) == (0, 0, 0)
    assert set(before) < set(snapshot_ids(catalog))


async def test_files_that_no_snapshot_has_are_searched(
    lanes: Lanes, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed compaction and a refused append left them. What has none of the rows stays, and so does what cannot be
    read if a commit could be writing it now.
    """
    await fill(lanes, catalog)
    tables = StepTables(catalog)
    state = tables.read(SOURCE.name)
    (group,) = tables.small_files(state, tables_test.LATE.replace(year=2100), 2**20)[1:]
    tables.write(group, tables.parts(group))
    lanes.write(rows=ROWS)
    stale = await follow(lanes, tables)
    commit = catalog.commit_table
    late_request: list[Any] = []

    def delay(*args: Any) -> None:
        late_request.extend(args)
        raise TimeoutError("no reply")

    monkeypatch.setattr(catalog, "commit_table", delay)
    with pytest.raises(Unavailable):
        await stale.commit("")
    monkeypatch.undo()
    folder = next(path for path in stored(tmp_path) if path.suffix == ".parquet").parent
    table_folder = Path(table(catalog).location().removeprefix("file://"))
    other, half = folder / "other.parquet", folder / "half.parquet"
    half_manifest = table_folder / "metadata" / "half-m0.avro"
    pq.write_table(pa.table({"vehicle_id": ["v2"]}), other)
    for path in (half, half_manifest):
        path.write_bytes(b"PAR1 half")
    assert erasure(CutTables(catalog)).plan(SOURCE.name).files == OBJECTS + 2
    erase_objects(lanes)
    late = folder / "late.parquet"
    tables = HookedTables(catalog)
    tables.hooks["unreferenced"] = late.touch
    done = erase(tables)
    assert done.files == OBJECTS + 3  # half.parquet is one
    assert (other.exists(), half.exists(), half_manifest.exists(), late.exists()) == (True, False, False, True)
    late.unlink()
    assert traces(tmp_path, catalog) == []
    with pytest.raises(Exception, match="branch main has changed"):
        commit(*late_request)  # it arrives only now
    await commit_all(lanes, CutTables(catalog))
    await checked(lanes, catalog)


@pytest.mark.parametrize("kind", ["tag", "branch"])
async def test_a_tag_or_a_branch_with_the_rows_is_in_the_way(
    kind: str, lanes: Lanes, catalog: Catalog, tmp_path: Path
) -> None:
    """It is named before anything is changed. One without the rows is not."""
    lanes.write(rows=1)
    await commit_all(lanes, CutTables(catalog))
    manage = table(catalog).manage_snapshots()
    manage.create_tag(snapshot_ids(catalog)[0], "harmless").commit()
    await fill(lanes, catalog)
    snapshot = snapshot_ids(catalog)[1]
    manage = table(catalog).manage_snapshots()
    (manage.create_tag(snapshot, "named") if kind == "tag" else manage.create_branch(snapshot, "named")).commit()
    before, kept = table(catalog).metadata, stored(tmp_path)
    for do in (erase, lambda tables: erasure(tables).plan(SOURCE.name)):
        with pytest.raises(Halted, match=f"the {kind} named keeps a snapshot"):
            do(CutTables(catalog))
    assert table(catalog).metadata == before
    assert stored(tmp_path) == kept
    manage = table(catalog).manage_snapshots()
    (manage.remove_tag("named") if kind == "tag" else manage.remove_branch("named")).commit()
    erase_objects(lanes)
    erase(CutTables(catalog))
    assert traces(tmp_path, catalog) == []
    assert table(catalog).scan(snapshot_id=table(catalog).refs()["harmless"].snapshot_id).to_arrow().num_rows == 1


async def test_a_lost_column_halts_an_erasure(lanes: Lanes, catalog: Catalog, tmp_path: Path) -> None:
    """New files would lack its values, and the files that have them would go."""
    await fill(lanes, catalog)
    number = table(catalog).metadata.current_schema_id
    with table(catalog).update_schema(allow_incompatible_changes=True) as update:
        update.delete_column("_payload")
    changed, files_before = table(catalog).metadata, stored(tmp_path)
    for do in (erase, lambda tables: erasure(tables).plan(SOURCE.name)):
        with pytest.raises(Halted, match="lacks the column _payload, which it had"):
            do(CutTables(catalog))
    assert (table(catalog).metadata, stored(tmp_path)) == (changed, files_before)
    set_schema(table(catalog), number)
    erase_objects(lanes)
    assert erase(CutTables(catalog)).rows == OBJECTS
    assert table(catalog).scan().to_arrow()["_payload"].null_count == 0


async def test_a_renamed_column_is_not_passed_over(lanes: Lanes, catalog: Catalog) -> None:
    """Also if somebody added one of its old name by hand, which is null in older rows."""
    await fill(lanes, catalog)
    with table(catalog).update_schema() as update:
        update.rename_column("vehicle_id", "vehicle")
    with table(catalog).update_schema() as update:
        update.add_column("vehicle_id", StringType())
    with pytest.raises(Halted, match=r"the column vehicle of the table bronze\.vehicles is called vehicle_id in older"):
        erase(CutTables(catalog))


async def test_raw_data_is_left(lanes: Lanes, catalog: Catalog) -> None:
    await fill(lanes, catalog)
    location = table(catalog).location().removeprefix("file://")
    with pytest.raises(Halted, match="raw data"):
        TableErasure(CutTables(catalog), SOURCES, of_vehicle("v1"), ID, f"{location}/data").run(
            SOURCE.name, lambda: None
        )


async def test_a_table_whose_commits_are_repeated_is_refused(lanes: Lanes, catalog: Catalog) -> None:
    await fill(lanes, catalog)
    set_retries(catalog, 4)
    with pytest.raises(Halted, match=TableProperties.COMMIT_NUM_RETRIES):
        erase(CutTables(catalog))


async def test_without_a_table_there_is_nothing_to_do(lanes: Lanes, catalog: Catalog) -> None:
    assert erase(CutTables(catalog)) == ErasedRows(SOURCE.name)


# --- beside others


async def stale_append(lanes: Lanes, catalog: Catalog, erase_table: Callable[[], object]) -> None:
    """An append has read an object; then the object and the table are erased; then it commits."""
    lanes.write(rows=ROWS)
    tables = CutTables(catalog)

    def erase_meanwhile() -> None:
        erase_objects(lanes)
        erase_table()

    stale = await follow(lanes, tables)
    tables.before = erase_meanwhile
    await stale.commit("")


@pytest.mark.parametrize("begins", ["with other rows", "without a snapshot"])
async def test_an_append_that_read_an_object_before_is_refused(
    begins: str, lanes: Lanes, catalog: Catalog, tmp_path: Path
) -> None:
    """Also if the table has no row to erase, or no snapshot yet."""
    if begins == "with other rows":
        lanes.write(rows=1)
        await commit_all(lanes, CutTables(catalog))
    with pytest.raises(Conflict):
        await stale_append(lanes, catalog, lambda: erase(CutTables(catalog)))
    await commit_all(lanes, CutTables(catalog))
    assert rows_of(catalog) == in_objects(lanes)
    assert erasure(CutTables(catalog)).plan(SOURCE.name).files == 1  # the refused append wrote it after the search
    assert erase(CutTables(catalog)).files == 1
    assert traces(tmp_path, catalog) == []
    await checked(lanes, catalog)


async def test_without_the_barrier_the_rows_come_back(
    lanes: Lanes, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A negative control: an erasure that makes no snapshot if no row of the table matches."""
    lanes.write(rows=1)
    await commit_all(lanes, CutTables(catalog))
    monkeypatch.setattr(iceberg.Tables, "erase", lambda _, state, *args: state.snapshot)
    await stale_append(lanes, catalog, lambda: erase(CutTables(catalog)))
    assert rows_of(catalog) - in_objects(lanes) == Counter({(f"{tables_test.EPOCH}-0-4", 1): 1})


async def test_after_a_conflict_the_objects_are_read_anew(lanes: Lanes, catalog: Catalog) -> None:
    """By the committer that was refused, without reading the feed again."""
    entry, tables = lanes.write(rows=ROWS), CutTables(catalog)
    begun = await follow(lanes, tables)

    def rewrite() -> None:
        rows, file = pq.read_table(io.BytesIO(lanes.bucket.bodies[entry.file_path])), io.BytesIO()
        number = rows.column_names.index("vehicle_id")
        pq.write_table(rows.set_column(number, rows.schema.field(number), [["new"] * ROWS]), file)
        lanes.bucket.bodies[entry.file_path] = file.getvalue()
        erase(CutTables(catalog))

    tables.before = rewrite
    with pytest.raises(Conflict):
        await begun.commit("")
    await begun.commit("")
    assert set(contents(catalog)["vehicle_id"].to_pylist()) == {"new"}


@pytest.mark.parametrize(
    ("step", "other"),
    [
        ("search", "append"),
        *(("write", other) for other in ("compact", "reprocess", "erase")),
        *(("erase", other) for other in ("append", "compact", "reprocess", "expire", "erase", "put back", "foreign")),
        *(("expire", other) for other in ("append", "compact", "expire", "erase", "put back", "foreign")),
        *(("unreferenced", other) for other in ("append", "compact", "erase")),
        ("delete", "compact"),
    ],
)
async def test_other_commits_come_first(step: str, other: str, lanes: Lanes, catalog: Catalog, tmp_path: Path) -> None:
    """The rows are gone, and everything else is there."""
    await fill(lanes, catalog)
    compact(CutTables(catalog))
    lanes.write(rows=ROWS)
    await commit_all(lanes, CutTables(catalog))
    grow_old(tmp_path)
    before, foreign, tables = Lanes(), Rows(), HookedTables(catalog)
    before.bucket.bodies |= lanes.bucket.bodies
    erase_objects(lanes)

    def once() -> None:
        tables.hooks.clear()
        match other:
            case "append":
                lanes.write(rows=1)
                asyncio.run(commit_all(lanes, CutTables(catalog)))
            case "compact":
                compact(CutTables(catalog))
            case "reprocess":
                reprocess(CutTables(catalog), DAY, NEXT_DAY)
            case "expire":
                expire(CutTables(catalog))
            case "erase":
                erase(CutTables(catalog))
            case "put back":
                roll_back(catalog)
            case "foreign":  # it has the vehicle, too
                foreign.update(append_foreign(before, catalog) - Counter([("foreign", 1)]))

    tables.hooks[step] = once
    await asyncio.to_thread(erase, tables)
    assert traces(tmp_path, catalog) == []
    assert erasure(CutTables(catalog)).plan(SOURCE.name).files == 0
    await commit_all(lanes, CutTables(catalog))
    assert rows_of(catalog) == in_objects(lanes) + foreign
    assert referenced(catalog) <= stored(tmp_path)


@pytest.mark.parametrize("kind", ["compaction", "reprocessing"])
async def test_a_compaction_that_read_the_rows_before_is_refused(
    kind: str, lanes: Lanes, catalog: Catalog, tmp_path: Path
) -> None:
    """It has written its files, and deletes them."""
    await fill(lanes, catalog)
    tables = HookedReplace(catalog)

    def once() -> None:
        tables.hooks.clear()
        erase_objects(lanes)
        erase(CutTables(catalog))

    tables.hooks["replace"] = once
    done = compact(tables) if kind == "compaction" else reprocess(tables, DAY, NEXT_DAY)
    assert done.conflicts >= 1
    assert rows_of(catalog) == in_objects(lanes)
    assert traces(tmp_path, catalog) == []
    await checked(lanes, catalog)


class HookedReplace(StepTables):
    def replace(self, *args: Any) -> Any:
        self._call("replace")
        return super().replace(*args)


async def test_an_erasure_that_loses_each_time_says_so(lanes: Lanes, catalog: Catalog) -> None:
    await fill(lanes, catalog)
    tables = HookedTables(catalog)

    def append() -> None:
        lanes.write(rows=1)
        asyncio.run(commit_all(lanes, CutTables(catalog)))

    tables.hooks["erase"] = append
    with pytest.raises(TooManyConflicts, match="run the erasure again"):
        await asyncio.to_thread(erase, tables)
    assert len(lanes.feed.entries) == OBJECTS + COMMITS_MAX
    assert rows_of(catalog) == lanes.rows


async def test_a_reader_counts_the_rows_before_or_after(lanes: Lanes, catalog: Catalog) -> None:
    await fill(lanes, catalog)
    tables, after = HookedTables(catalog), OBJECTS * (ROWS - 1)
    counts = read_meanwhile(
        lanes, catalog, tables, STEPS, lambda look: erasure(tables).run(SOURCE.name, look), after=after
    )
    assert counts >= 2 * len(STEPS)


# --- the ways in which it can end


@pytest.mark.parametrize("step", [*STEPS, "a file", "the second file", "the last file"])
async def test_a_process_that_ends_is_continued_by_the_next(
    step: str, lanes: Lanes, catalog: Catalog, tmp_path: Path
) -> None:
    await fill(lanes, catalog)
    compact(CutTables(catalog))
    lanes.write(rows=ROWS)
    await commit_all(lanes, CutTables(catalog))
    before, planned = contents(catalog), erasure(CutTables(catalog)).plan(SOURCE.name)
    erase_objects(lanes)
    tables, seen = HookedTables(catalog), [0]
    tables.hooks[step] = fail(Cut())
    last: Mapping[str, int] = {"a file": 1, "the second file": 4, "the last file": 9}

    def on_file() -> None:
        seen[0] += 1
        if seen[0] == last.get(step):
            raise Cut

    with pytest.raises(Cut):
        erasure(tables).run(SOURCE.name, on_file)
    found = contents(catalog)
    assert found.equals(before) or found.equals(before.filter(pc.field("vehicle_id") != "v1"))
    assert referenced(catalog) <= stored(tmp_path)
    for _ in range(2):  # the second one as after a kill before the proof
        done = erase(CutTables(catalog))
        assert (done.rows, done.files, done.snapshots) == (planned.rows, planned.files, planned.snapshots + 1)
    assert traces(tmp_path, catalog) == []
    assert contents(catalog).equals(before.filter(pc.field("vehicle_id") != "v1"))
    await checked(lanes, catalog)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("kind", ["lost", "late"])
async def test_a_reply_that_does_not_come_does_no_harm(
    kind: str, number: int, lanes: Lanes, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the barrier, or of the expiry. The request arrives before its time is over, or after a whole other erasure."""
    await fill(lanes, catalog)
    erase_objects(lanes)
    commit, calls = catalog.commit_table, list[Any]()

    def fault(*args: Any) -> Any:
        calls.append(args)
        if len(calls) < number:
            return commit(*args)
        if kind == "lost":
            commit(*args)
        raise TimeoutError("no reply")

    monkeypatch.setattr(catalog, "commit_table", fault)
    with pytest.raises(Unavailable):
        erase(CutTables(catalog))
    monkeypatch.undo()
    erase(CutTables(catalog))
    if kind == "late":
        with pytest.raises(Exception, match=r"has changed|not|does not exist"):
            commit(*calls[-1])
    assert traces(tmp_path, catalog) == []
    assert entry_statuses(catalog) >= {ManifestEntryStatus.EXISTING}
    await checked(lanes, catalog)


def entry_statuses(catalog: Catalog) -> set[ManifestEntryStatus]:
    found = table(catalog)
    current = found.current_snapshot()
    assert current is not None
    return {
        entry.status
        for manifest in current.manifests(found.io)
        for entry in manifest.fetch_manifest_entry(found.io, discard_deleted=False)
    }
