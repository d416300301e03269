"""A compaction leaves the rows of a table and its position as they are, whatever happens around it."""

import asyncio
import datetime as dt
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.table import TableProperties
from pyiceberg.table.update import AddSnapshotUpdate, AssertRefSnapshotId

from bronze.errors import Halted, Unavailable
from bronze.maintenance.compaction import Compacted, Compaction, closed_before
from bronze.maintenance.task import COMMITS_MAX, TooManyConflicts
from bronze.servers import iceberg
from bronze.servers.iceberg import POSITION, FileGroup, RewrittenGroup, TableState
from bronze.table.committer import Committer
from local.machine import limit_s
from tests.delivery import test_table as tables_test
from tests.delivery.test_table import (
    LATE,
    NEXT_EPOCH,
    SOURCE,
    Cut,
    CutTables,
    Lanes,
    commit_all,
    commit_meanwhile,
    fail,
    follow,
    rows_of,
    set_retries,
    table,
)

catalog, lanes = tables_test.catalog, tables_test.lanes

#: Later than all rows.
AFTER = LATE + dt.timedelta(days=2)
OBJECTS = 4


class StepTables(CutTables):
    """Tables that call something before a step, each time."""

    def __init__(self, opened: Catalog) -> None:
        super().__init__(opened)
        self.hooks: dict[str, Callable[[], None]] = {}

    def _call(self, step: str) -> None:
        self.hooks.get(step, lambda: None)()


class HookedTables(StepTables):
    """The steps of a compaction."""

    def small_files(self, state: TableState, before: dt.datetime, target_bytes: int) -> list[FileGroup]:
        self._call("small_files")
        return super().small_files(state, before, target_bytes)

    def write(self, group: FileGroup, parts: Iterable[pa.Table]) -> RewrittenGroup:
        self._call("write")
        return super().write(group, parts)

    def replaceable(self, state: TableState, rewritten: Sequence[RewrittenGroup]) -> list[RewrittenGroup]:
        self._call("replaceable")
        return super().replaceable(state, rewritten)

    def replace(self, *args: Any) -> Any:
        self._call("replace")
        return super().replace(*args)


STEPS = ("small_files", "write", "replaceable", "replace")


async def fill(lanes: Lanes, catalog: Catalog) -> None:
    """A commit for each of some objects: each has a row on either of two days."""
    for number in range(OBJECTS):
        lanes.write(number % 2)
        await commit_all(lanes, CutTables(catalog))


def compaction(tables: iceberg.Tables, before: dt.datetime = AFTER, target_bytes: int = 2**20) -> Compaction:
    return Compaction(tables, {SOURCE.name: SOURCE}, before, target_bytes)


def compact(tables: iceberg.Tables) -> Compacted:
    return compaction(tables).run(SOURCE.name, lambda: None)


def files(catalog: Catalog) -> list[str]:
    return sorted(scan.file.file_path for scan in table(catalog).scan().plan_files())


def stored(tmp_path: Path) -> set[str]:
    """The data files in the storage."""
    return {str(path) for path in tmp_path.rglob("*.parquet")}


def position(catalog: Catalog) -> str | None:
    return iceberg._position(table(catalog))


async def checked(lanes: Lanes, catalog: Catalog) -> None:
    """The table has the rows of the bucket, and goes on with those of new objects."""
    assert rows_of(catalog) == lanes.rows
    await commit_all(lanes, CutTables(catalog))
    lanes.write()
    await commit_all(lanes, CutTables(catalog))
    assert rows_of(catalog) == lanes.rows


async def fill_padded(lanes: Lanes, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Commit objects, whose rows are rewritten in parts of a few; returns how many, and what makes each row large."""
    objects, padding = 40, "x" * 2**20
    for _ in range(objects):
        lanes.write(padding=padding)
        await commit_all(lanes, CutTables(catalog))
    monkeypatch.setattr(iceberg, "PART_BYTES", 4 * 2**20)
    return objects, padding


@contextmanager
def arrow_memory() -> Iterator[pa.MemoryPool]:
    """Counts what Arrow allocates from now on."""
    default = pa.default_memory_pool()
    counted = pa.proxy_memory_pool(default)
    pa.set_memory_pool(counted)
    try:
        yield counted
    finally:
        pa.set_memory_pool(default)


async def test_rows_that_compress_well_are_rewritten_in_parts(
    lanes: Lanes, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two MB of rows are a few kB in a file. In memory are a few files and a part, and not all rows of the new file."""
    objects, padding = await fill_padded(lanes, catalog, monkeypatch)
    before = table(catalog).scan().to_arrow()
    with arrow_memory() as counted:
        done = compact(CutTables(catalog))
    assert (done.files, done.new_files) == (2 * objects, 2)
    assert counted.max_memory() < objects * len(padding)
    keys = [(name, "ascending") for name in ("_submission_id", "_record_index")]
    assert table(catalog).scan().to_arrow().sort_by(keys).equals(before.sort_by(keys))
    for path in files(catalog):
        groups = pq.ParquetFile(path.removeprefix("file://"))
        assert groups.num_row_groups > 1
        ids = {one.name: int(one.metadata[b"PARQUET:field_id"]) for one in groups.schema_arrow}
        assert ids == {one.name: one.field_id for one in table(catalog).schema().fields}
        times = groups.read(columns=["_received_at"])["_received_at"].to_pylist()
        assert times == sorted(times)


async def test_small_files_become_one_per_day_with_the_same_rows(lanes: Lanes, catalog: Catalog) -> None:
    await fill(lanes, catalog)
    before, told = table(catalog).scan().to_arrow(), position(catalog)
    assert len(files(catalog)) == 2 * OBJECTS
    done = compact(CutTables(catalog))
    assert (done.files, done.rows, done.new_files, done.conflicts) == (2 * OBJECTS, 2 * OBJECTS, 2, 0)
    assert len(files(catalog)) == 2
    keys = [(name, "ascending") for name in ("_submission_id", "_record_index")]
    after = table(catalog).scan().to_arrow()
    assert after.sort_by(keys).equals(before.sort_by(keys))
    snapshot = table(catalog).current_snapshot()
    assert snapshot is not None
    assert snapshot.summary is not None
    assert snapshot.snapshot_id == done.snapshot_id
    assert snapshot.summary.additional_properties[POSITION] == told == position(catalog)
    assert table(catalog).properties[POSITION] == told
    assert table(catalog).properties[iceberg.POSITION_SNAPSHOT] == str(snapshot.snapshot_id)
    assert compact(CutTables(catalog)) == Compacted(SOURCE.name)
    await checked(lanes, catalog)


async def test_the_rows_of_a_file_are_sorted(lanes: Lanes, catalog: Catalog) -> None:
    await fill(lanes, catalog)
    lanes.write(rows=5)
    await commit_all(lanes, CutTables(catalog))
    compact(CutTables(catalog))
    for path in files(catalog):
        with table(catalog).io.new_input(path).open() as file:
            times = pq.read_table(file)["_received_at"].to_pylist()
        assert times == sorted(times)


async def test_rows_of_the_open_hour_are_left(lanes: Lanes, catalog: Catalog) -> None:
    """Of the two days, the second one's rows are not older than the time."""
    await fill(lanes, catalog)
    midnight = LATE.replace(hour=0, minute=0) + dt.timedelta(days=1)
    done = compaction(CutTables(catalog), before=midnight).run(SOURCE.name, lambda: None)
    assert done.files == OBJECTS
    assert len(files(catalog)) == OBJECTS + 1
    now = LATE + dt.timedelta(minutes=5)
    assert closed_before(now, 0) == LATE.replace(minute=0) + dt.timedelta(hours=1)
    assert closed_before(now, 1) == LATE.replace(minute=0)
    assert closed_before(now, 24) == LATE.replace(minute=0) - dt.timedelta(hours=23)


async def test_files_have_the_target_size(lanes: Lanes, catalog: Catalog) -> None:
    """As many old files as fit become one; files of about the target size are left."""
    await fill(lanes, catalog)
    largest = max(scan.file.file_size_in_bytes for scan in table(catalog).scan().plan_files())
    done = compaction(CutTables(catalog), target_bytes=3 * largest).run(SOURCE.name, lambda: None)
    assert done.new_files is not None
    assert 2 * OBJECTS // 3 <= done.new_files <= OBJECTS
    assert compaction(CutTables(catalog), target_bytes=largest).plan(SOURCE.name).files == 0
    await checked(lanes, catalog)


async def test_a_dry_run_changes_nothing(lanes: Lanes, catalog: Catalog, tmp_path: Path) -> None:
    await fill(lanes, catalog)
    before, contents = table(catalog).metadata, stored(tmp_path)
    planned = compaction(CutTables(catalog)).plan(SOURCE.name)
    assert (planned.files, planned.rows, planned.new_files) == (2 * OBJECTS, 2 * OBJECTS, None)
    assert table(catalog).metadata == before
    assert stored(tmp_path) == contents


@pytest.mark.parametrize(("option", "new_files"), [("--dry-run", None), ("--yes", 2)])
async def test_the_command_says_what_it_did(
    option: str, new_files: int | None, lanes: Lanes, catalog: Catalog, tmp_path: Path
) -> None:
    """A process of its own; of a source that has no table it says that there is nothing to do."""
    await fill(lanes, catalog)
    settings = {"TYPE": "sql", "URI": f"sqlite:///{tmp_path}/catalog.db", "WAREHOUSE": f"file://{tmp_path}"}
    command = [sys.executable, "-m", "bronze", "table", "compact", "--json", option]
    done = await asyncio.to_thread(
        subprocess.run,
        [*command, "--source", SOURCE.name, "--source", "status"],
        env={**os.environ, **{f"PYICEBERG_CATALOG__TEST__{name}": value for name, value in settings.items()}}
        | {"BRONZE_TABLE_CATALOG": "test"},
        capture_output=True,
        text=True,
        timeout=limit_s(60),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Acts on the tables of the namespace bronze" in done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["files"], first["new_files"]) == (2 * OBJECTS, new_files)
    assert (second["source"], second["files"]) == ("status", 0)
    assert len(files(catalog)) == (new_files or 2 * OBJECTS)


async def test_a_table_without_rows_is_left(lanes: Lanes, catalog: Catalog) -> None:
    tables = CutTables(catalog)
    assert not tables.exists(SOURCE.name)
    await follow(lanes, tables)
    assert tables.exists(SOURCE.name)
    assert compact(tables) == Compacted(SOURCE.name)


# --- beside others


@pytest.mark.parametrize("step", STEPS)
async def test_what_is_appended_meanwhile_stays(step: str, lanes: Lanes, catalog: Catalog) -> None:
    await fill(lanes, catalog)
    tables = HookedTables(catalog)
    lanes.write(0, NEXT_EPOCH)
    other: list[Committer] = [await follow(lanes, CutTables(catalog))]
    tables.hooks[step] = lambda: commit_meanwhile(other.pop()) if other else None
    done = await asyncio.to_thread(compact, tables)
    assert done.new_files == 2
    assert done.conflicts == (1 if step in {"replaceable", "replace"} else 0)
    await checked(lanes, catalog)


async def test_a_compaction_that_loses_each_time_deletes_its_files(
    lanes: Lanes, catalog: Catalog, tmp_path: Path
) -> None:
    await fill(lanes, catalog)
    tables = HookedTables(catalog)

    appended: list[str] = []

    def append() -> None:
        appended.append(lanes.write().file_path)
        asyncio.run(commit_all(lanes, CutTables(catalog)))

    tables.hooks["replace"] = append
    with pytest.raises(TooManyConflicts, match="came first"):
        await asyncio.to_thread(compact, tables)
    assert len(appended) == COMMITS_MAX
    assert {f"file://{path}" for path in stored(tmp_path)} == set(files(catalog))
    await checked(lanes, catalog)


def each_once(others: list[CutTables]) -> None:
    """Another compaction, once."""
    if others:
        compact(others.pop())


async def test_of_two_compactions_one_has_nothing_to_do(lanes: Lanes, catalog: Catalog, tmp_path: Path) -> None:
    await fill(lanes, catalog)
    old = stored(tmp_path)
    tables, others = HookedTables(catalog), [CutTables(catalog)]
    tables.hooks["replace"] = lambda: each_once(others)
    done = compact(tables)
    assert (done.files, done.conflicts) == (0, 1)
    assert len(stored(tmp_path) - old) == 2
    await checked(lanes, catalog)


async def test_rows_that_another_program_deletes_meanwhile_stay_deleted(lanes: Lanes, catalog: Catalog) -> None:
    await fill(lanes, catalog)
    tables = HookedTables(catalog)
    gone = next(iter(lanes.rows))
    tables.hooks["replaceable"] = lambda: table(catalog).delete(
        f"_submission_id == '{gone[0]}' and _record_index == {gone[1]}"
    )
    compact(tables)
    assert rows_of(catalog) == lanes.rows - Counter([gone])


def read_meanwhile(
    lanes: Lanes,
    catalog: Catalog,
    tables: StepTables,
    steps: Sequence[str],
    work: Callable[[Callable[[], None]], object],
    after: int | None = None,
) -> int:
    """Count the rows again and again while `work` is done, at least twice before each of its steps and whenever it
    calls its argument; each count has to be right. Returns how often they were counted.

    `after`: the number of rows that `work` leaves. Files that a reader needs may then be gone: it reads again.
    """
    right, wrong, counts = [sum(lanes.rows.values()), after], [], 0
    ended, looked = threading.Event(), threading.Event()

    def read() -> None:
        nonlocal counts
        while not ended.is_set():
            try:
                found = table(catalog).scan().to_arrow().num_rows
            except FileNotFoundError:
                assert after is not None
                continue
            if found == after:
                right[0] = after  # there is no way back
            if found != right[0]:
                wrong.append(found)
            counts += 1
            looked.set()

    def look() -> None:
        """A whole look of the reader begins and ends here."""
        for _ in range(2):
            looked.clear()
            assert looked.wait(limit_s(60))

    tables.hooks = dict.fromkeys(steps, look)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        work(look)
        look()
    finally:
        ended.set()
        reader.join()
    assert wrong == []
    assert after in {None, right[0]}
    return counts


async def test_a_reader_sees_all_rows_all_the_time(lanes: Lanes, catalog: Catalog) -> None:
    await fill(lanes, catalog)
    tables = HookedTables(catalog)
    assert read_meanwhile(lanes, catalog, tables, STEPS, lambda _: compact(tables)) >= 2 * len(STEPS)


# --- the ways in which its commit can end


async def test_a_lost_reply_is_looked_up(
    lanes: Lanes, catalog: Catalog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The commit landed: that is what the compaction says, and its files stay."""
    await fill(lanes, catalog)
    commit = catalog.commit_table

    def lose(*args: Any) -> None:
        commit(*args)
        raise TimeoutError("the reply was lost")

    monkeypatch.setattr(catalog, "commit_table", lose)
    done = compact(CutTables(catalog))
    monkeypatch.undo()
    current = table(catalog).current_snapshot()
    assert current is not None
    assert current.snapshot_id == done.snapshot_id
    assert len(files(catalog)) == 2
    await checked(lanes, catalog)


async def test_a_commit_that_may_land_later_keeps_its_files(
    lanes: Lanes, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is on its way when the compaction looks whether it landed."""
    await fill(lanes, catalog)
    commit = catalog.commit_table
    late: list[tuple[Any, ...]] = []

    def delay(*args: Any) -> None:
        late.append(args)
        raise TimeoutError("no reply")

    monkeypatch.setattr(catalog, "commit_table", delay)
    with pytest.raises(Unavailable):
        compact(CutTables(catalog))
    monkeypatch.undo()
    assert rows_of(catalog) == lanes.rows
    commit(*late.pop())
    assert len(files(catalog)) == 2
    await checked(lanes, catalog)


@pytest.mark.parametrize("step", STEPS)
async def test_a_process_that_ends_leaves_the_table_as_it_was(step: str, lanes: Lanes, catalog: Catalog) -> None:
    await fill(lanes, catalog)
    before = table(catalog).metadata
    tables = HookedTables(catalog)
    tables.hooks[step] = fail(Cut())
    with pytest.raises(Cut):
        compact(tables)
    assert table(catalog).metadata == before
    assert compact(CutTables(catalog)).new_files == 2
    await checked(lanes, catalog)


async def test_a_table_whose_commits_are_repeated_is_refused(lanes: Lanes, catalog: Catalog) -> None:
    await fill(lanes, catalog)
    set_retries(catalog, 4)
    with pytest.raises(Halted, match=TableProperties.COMMIT_NUM_RETRIES):
        compact(CutTables(catalog))


async def test_a_repeated_commit_doubles_rows(lanes: Lanes, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """A negative control: pyiceberg puts the snapshot with the older position on top of newer rows."""
    await fill(lanes, catalog)
    set_retries(catalog, 1)
    with table(catalog).transaction() as transaction:
        transaction.set_properties({TableProperties.WRITE_DELETE_ISOLATION_LEVEL: "snapshot"})
    monkeypatch.setattr(iceberg, "RETRIES", "1")
    tables = HookedTables(catalog)
    lanes.write(0, NEXT_EPOCH)
    other = [await follow(lanes, CutTables(catalog))]
    tables.hooks["replace"] = lambda: commit_meanwhile(other.pop()) if other else None
    await asyncio.to_thread(compact, tables)
    await commit_all(lanes, CutTables(catalog))
    with pytest.raises(AssertionError):
        await checked(lanes, catalog)
    assert rows_of(catalog) - lanes.rows == Counter({(f"{NEXT_EPOCH}-0-1", 0): 1, (f"{NEXT_EPOCH}-0-1", 1): 1})


async def test_without_the_parent_rows_are_missing(
    lanes: Lanes, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A negative control: the catalog does not look whether the parent is the current snapshot."""
    await fill(lanes, catalog)
    tables = HookedTables(catalog)
    lanes.write(0, NEXT_EPOCH)
    other = [await follow(lanes, CutTables(catalog))]
    tables.hooks["replace"] = lambda: commit_meanwhile(other.pop()) if other else None
    commit = catalog.commit_table

    def forget(to: Any, requirements: tuple[Any, ...], updates: tuple[Any, ...]) -> Any:
        # a snapshot's number has to be the next one in any case
        number = {"sequence_number": table(catalog).last_sequence_number + 1}
        changed = [
            AddSnapshotUpdate(snapshot=one.snapshot.model_copy(update=number))
            if isinstance(one, AddSnapshotUpdate)
            else one
            for one in updates
        ]
        kept = [one for one in requirements if not isinstance(one, AssertRefSnapshotId)]
        return commit(to, tuple(kept), tuple(changed))

    monkeypatch.setattr(catalog, "commit_table", forget)
    await asyncio.to_thread(compact, tables)
    monkeypatch.undo()
    with pytest.raises(AssertionError):
        await checked(lanes, catalog)
    assert sum((lanes.rows - rows_of(catalog)).values()) == 2
