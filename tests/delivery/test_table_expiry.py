"""An expiry leaves the rows of a table as they are, and every file that a snapshot or a commit on its way has."""

import asyncio
import datetime as dt
import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.table import TableProperties
from pyiceberg.table.snapshots import Operation, Snapshot, SnapshotLogEntry, Summary
from pyiceberg.table.update import AssertRefSnapshotId

from bronze.errors import Halted, Unavailable
from bronze.maintenance.expiry import FILE_AGE_MIN, Expired, Expiry
from bronze.maintenance.task import COMMITS_MAX, TooManyConflicts
from bronze.servers import iceberg
from bronze.servers.iceberg import StoredFile, TableState
from local.machine import limit_s
from tests.delivery import test_table as tables_test
from tests.delivery.test_table import (
    SOURCE,
    Cut,
    CutTables,
    Lanes,
    append_foreign,
    commit_all,
    fail,
    follow,
    rows_of,
    set_retries,
    table,
)
from tests.delivery.test_table_compaction import StepTables, checked, compact, fill, read_meanwhile

catalog, lanes = tables_test.catalog, tables_test.lanes

AGE = dt.timedelta(days=7)
#: Later than all snapshots by more than that. A clock that is wrong by this much deletes no new file.
LATER = dt.datetime.now(dt.UTC) + dt.timedelta(days=30)
RAW_DATA = "bucket/bronze"


class HookedTables(StepTables):
    """The steps of an expiry."""

    def expirable(self, *args: Any) -> list[int]:
        self._call("expirable")
        return super().expirable(*args)

    def expire(self, state: TableState, snapshot_ids: Sequence[int]) -> None:
        self._call("expire")
        super().expire(state, snapshot_ids)

    def unreferenced(self, name: str, raw_data: str, without: Collection[int] = ()) -> Any:
        self._call("unreferenced")
        return super().unreferenced(name, raw_data, without)

    def delete(self, name: str, files: Sequence[StoredFile], on_file: Callable[[], None]) -> None:
        self._call("delete")
        super().delete(name, files, on_file)


STEPS = ("expirable", "expire", "unreferenced", "delete")


def expiry(tables: iceberg.Tables, raw_data: str = RAW_DATA, now: dt.datetime = LATER) -> Expiry:
    return Expiry(tables, now, AGE, raw_data)


def expire(tables: iceberg.Tables) -> Expired:
    return expiry(tables).run(SOURCE.name, lambda: None)


async def fill_and_compact(lanes: Lanes, catalog: Catalog, tmp_path: Path) -> None:
    """A table whose files are old, and in part in old snapshots only."""
    await fill(lanes, catalog)
    compact(CutTables(catalog))
    grow_old(tmp_path)


def grow_old(tmp_path: Path) -> None:
    """All files were written long ago. A commit writes one that is new."""
    time_s = (dt.datetime.now(dt.UTC) - 2 * FILE_AGE_MIN).timestamp()
    for path in stored(tmp_path):
        os.utime(path, (time_s, time_s))


def stored(tmp_path: Path) -> set[Path]:
    """The files of the tables that may be deleted."""
    return {path for path in tmp_path.rglob("*") if path.suffix in iceberg.DELETABLE}


def referenced(catalog: Catalog) -> set[Path]:
    """The files that the snapshots have, as a reader finds them."""
    found = table(catalog)
    manifests = [each for snapshot in found.snapshots() for each in snapshot.manifests(found.io)]
    data = {entry.data_file.file_path for each in manifests for entry in each.fetch_manifest_entry(found.io)}
    lists = {snapshot.manifest_list for snapshot in found.snapshots()}
    return {Path(path.removeprefix("file://")) for path in {*data, *lists, *(each.manifest_path for each in manifests)}}


def snapshot_ids(catalog: Catalog) -> list[int]:
    return [snapshot.snapshot_id for snapshot in table(catalog).snapshots()]


def current(catalog: Catalog) -> Snapshot:
    return cast(Snapshot, table(catalog).current_snapshot())


async def test_old_snapshots_and_the_files_that_only_they_had_are_removed(
    lanes: Lanes, catalog: Catalog, tmp_path: Path
) -> None:
    await fill_and_compact(lanes, catalog, tmp_path)
    before, number = stored(tmp_path), len(snapshot_ids(catalog))
    done = expire(CutTables(catalog))
    assert done.expired_snapshots == number - 1
    assert snapshot_ids(catalog) == [current(catalog).snapshot_id]
    assert stored(tmp_path) == referenced(catalog)
    assert done.deleted_files == len(before - stored(tmp_path)) > 0
    assert expire(CutTables(catalog)) == Expired(SOURCE.name)
    await checked(lanes, catalog)


async def test_young_snapshots_and_young_files_stay(lanes: Lanes, catalog: Catalog, tmp_path: Path) -> None:
    await fill(lanes, catalog)
    compact(CutTables(catalog))
    orphan = tmp_path / next(iter(stored(tmp_path))).parent / "orphan.parquet"
    orphan.write_bytes(b"")
    contents = stored(tmp_path)
    assert expiry(CutTables(catalog), now=dt.datetime.now(dt.UTC)).run(SOURCE.name, lambda: None).deleted_files == 0
    assert expire(CutTables(catalog)).expired_snapshots > 0
    assert stored(tmp_path) == contents
    await checked(lanes, catalog)


async def test_a_table_that_was_idle_keeps_its_last_snapshots(lanes: Lanes, catalog: Catalog) -> None:
    """Of a snapshot the time counts at which it was last current: readers may still be at it."""
    await fill(lanes, catalog)
    state = CutTables(catalog).read(SOURCE.name)
    long_ago = [
        snapshot.model_copy(update={"timestamp_ms": 1000 * number})
        for number, snapshot in enumerate(state.table.snapshots()[:-1])
    ]
    snapshots = [*long_ago, current(catalog)]
    log = [SnapshotLogEntry(snapshot_id=one.snapshot_id, timestamp_ms=one.timestamp_ms) for one in snapshots]
    changed = state.table.metadata.model_copy(update={"snapshots": snapshots, "snapshot_log": log})
    state.table.metadata = changed
    before = dt.datetime.now(dt.UTC) - AGE
    assert CutTables(catalog).expirable(state, before, before) == [one.snapshot_id for one in long_ago[:-1]]


async def test_the_files_can_stay_until_another_run(lanes: Lanes, catalog: Catalog, tmp_path: Path) -> None:
    await fill_and_compact(lanes, catalog, tmp_path)
    before, rows = stored(tmp_path), rows_of(catalog)
    done = Expiry(CutTables(catalog), LATER, AGE, None).run(SOURCE.name, lambda: None)
    assert done.expired_snapshots > 1
    assert done.deleted_files == 0
    assert stored(tmp_path) >= before
    assert rows_of(catalog) == rows
    assert expire(CutTables(catalog)).deleted_files > 0


async def test_one_snapshot_per_hour_stays(lanes: Lanes, catalog: Catalog) -> None:
    """If what came after the others only appended; and all of the last hour."""
    await fill(lanes, catalog)
    state = CutTables(catalog).read(SOURCE.name)
    now = dt.datetime(2026, 11, 29, 12, 10, tzinfo=dt.UTC)
    minutes_ago = [200, 195, 190, 130, 125, 65, 20, 15, 0]
    operations = [Operation.APPEND] * len(minutes_ago)
    operations[4] = Operation.OVERWRITE
    snapshots = [
        Snapshot(
            snapshot_id=number,
            parent_snapshot_id=number - 1 or None,
            sequence_number=number,
            timestamp_ms=int((now - dt.timedelta(minutes=ago)).timestamp() * 1000),
            manifest_list="",
            summary=Summary(operation, **{iceberg.POSITION: "position"}),
            schema_id=0,
        )
        for number, (ago, operation) in enumerate(zip(minutes_ago, operations, strict=True), 1)
    ]
    log = [SnapshotLogEntry(snapshot_id=one.snapshot_id, timestamp_ms=one.timestamp_ms) for one in snapshots]
    metadata = state.table.metadata
    state.table.metadata = metadata.model_copy(
        update={
            "snapshots": snapshots,
            "snapshot_log": log,
            "current_snapshot_id": len(snapshots),
            "refs": {"main": metadata.refs["main"].model_copy(update={"snapshot_id": len(snapshots)})},
        }
    )
    hour_ago, long_ago = now - dt.timedelta(hours=1), now - AGE
    # 8:50, 8:55, 9:00 | 10:00, 10:05 (compaction) | 11:05 | 11:50, 11:55 | 12:10
    assert CutTables(catalog).expirable(state, long_ago, hour_ago) == [1]
    operations[4] = Operation.APPEND
    snapshots[4] = snapshots[4].model_copy(update={"summary": Summary(Operation.APPEND)})
    assert CutTables(catalog).expirable(state, long_ago, hour_ago) == [1, 4]


async def test_the_way_to_the_position_stays(
    lanes: Lanes, catalog: Catalog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Other programs have made the newest snapshots. The rows are appended once, from the position."""
    await fill_and_compact(lanes, catalog, tmp_path)
    foreign = append_foreign(lanes, catalog) + append_foreign(lanes, catalog)
    left = snapshot_ids(catalog)[-3:]
    expire(CutTables(catalog))
    assert snapshot_ids(catalog) == left
    lanes.write(1)
    await commit_all(lanes, CutTables(catalog))
    assert rows_of(catalog) == lanes.rows + foreign
    assert "file_path is read" not in caplog.text


async def test_an_expired_position_is_found_by_the_rows(lanes: Lanes, catalog: Catalog, tmp_path: Path) -> None:
    """A table without a position at all, in any snapshot: each row is appended once."""
    await fill_and_compact(lanes, catalog, tmp_path)
    foreign = append_foreign(lanes, catalog)
    *old, _ = snapshot_ids(catalog)
    table(catalog).maintenance.expire_snapshots().by_ids(old).commit()
    foreign += append_foreign(lanes, catalog)
    expire(CutTables(catalog))
    lanes.write(1)
    await commit_all(lanes, CutTables(catalog))
    assert rows_of(catalog) == lanes.rows + foreign


@pytest.mark.parametrize("kind", ["tag", "branch"])
async def test_what_a_tag_or_a_branch_names_stays(kind: str, lanes: Lanes, catalog: Catalog, tmp_path: Path) -> None:
    await fill(lanes, catalog)
    snapshot, rows = current(catalog).snapshot_id, rows_of(catalog)
    manage = table(catalog).manage_snapshots()
    (manage.create_tag(snapshot, "named") if kind == "tag" else manage.create_branch(snapshot, "named")).commit()
    compact(CutTables(catalog))
    grow_old(tmp_path)
    expire(CutTables(catalog))
    assert snapshot_ids(catalog) == [snapshot, current(catalog).snapshot_id]
    assert table(catalog).scan(snapshot_id=snapshot).to_arrow().num_rows == sum(rows.values())
    assert stored(tmp_path) == referenced(catalog)


async def test_a_branch_with_rules_of_its_own_is_left(lanes: Lanes, catalog: Catalog, tmp_path: Path) -> None:
    """Another program expires its snapshots."""
    await fill_and_compact(lanes, catalog, tmp_path)
    before = snapshot_ids(catalog)
    manage = table(catalog).manage_snapshots()
    manage.create_branch(before[-2], "own", min_snapshots_to_keep=3).commit()
    assert expire(CutTables(catalog)).expired_snapshots == 0
    assert snapshot_ids(catalog) == before


# --- beside others


@pytest.mark.parametrize("step", STEPS)
async def test_what_is_appended_meanwhile_stays(step: str, lanes: Lanes, catalog: Catalog, tmp_path: Path) -> None:
    await fill_and_compact(lanes, catalog, tmp_path)
    tables = HookedTables(catalog)

    def append() -> None:
        tables.hooks.clear()
        lanes.write()
        asyncio.run(commit_all(lanes, CutTables(catalog)))

    tables.hooks[step] = append
    done = await asyncio.to_thread(expire, tables)
    assert done.deleted_files > 0
    assert referenced(catalog) <= stored(tmp_path)
    await checked(lanes, catalog)


@pytest.mark.parametrize("kind", ["append", "compaction"])
async def test_the_files_of_a_commit_on_its_way_stay(
    kind: str, lanes: Lanes, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole expiry comes between the writing of its files and its commit. Older files without a snapshot go."""
    await fill(lanes, catalog)
    grow_old(tmp_path)
    orphan = next(iter(stored(tmp_path))).parent / "orphan.parquet"
    orphan.write_bytes(b"")
    grow_old(tmp_path)
    commit = catalog.commit_table

    def expire_before(*args: Any) -> Any:
        monkeypatch.undo()
        expire(CutTables(catalog))
        return commit(*args)

    monkeypatch.setattr(catalog, "commit_table", expire_before)
    if kind == "compaction":
        assert compact(CutTables(catalog)).new_files == 2
    else:
        lanes.write()
        await commit_all(lanes, CutTables(catalog))
    assert not orphan.exists()
    assert referenced(catalog) <= stored(tmp_path)
    await checked(lanes, catalog)


def roll_back(catalog: Catalog) -> None:
    first = snapshot_ids(catalog)[0]
    table(catalog).manage_snapshots().rollback_to_snapshot(first).commit()


async def test_a_table_that_is_put_back_meanwhile_keeps_that_snapshot(
    lanes: Lanes, catalog: Catalog, tmp_path: Path
) -> None:
    await fill_and_compact(lanes, catalog, tmp_path)
    first = snapshot_ids(catalog)[0]
    tables = HookedTables(catalog)

    def once() -> None:
        tables.hooks.clear()
        roll_back(catalog)

    tables.hooks["expire"] = once
    expire(tables)
    assert current(catalog).snapshot_id == first
    assert referenced(catalog) <= stored(tmp_path)
    await commit_all(lanes, CutTables(catalog))
    await checked(lanes, catalog)


async def test_without_its_requirement_a_table_that_is_put_back_loses_its_rows(
    lanes: Lanes, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A negative control: the catalog removes the branch together with its snapshot."""
    await fill_and_compact(lanes, catalog, tmp_path)
    tables = HookedTables(catalog)
    tables.hooks["expire"] = lambda: roll_back(catalog)
    commit = catalog.commit_table

    def forget(to: Any, requirements: tuple[Any, ...], updates: tuple[Any, ...]) -> Any:
        return commit(to, tuple(one for one in requirements if not isinstance(one, AssertRefSnapshotId)), updates)

    real = iceberg.Tables.expire

    def expire_unguarded(*args: Any) -> None:
        monkeypatch.setattr(catalog, "commit_table", forget)
        real(*args)

    monkeypatch.setattr(iceberg.Tables, "expire", expire_unguarded)
    expire(tables)
    assert table(catalog).current_snapshot() is None


async def test_an_expiry_that_loses_each_time_says_so(lanes: Lanes, catalog: Catalog, tmp_path: Path) -> None:
    await fill_and_compact(lanes, catalog, tmp_path)
    tables, appended = HookedTables(catalog), []

    def append() -> None:
        appended.append(lanes.write())
        asyncio.run(commit_all(lanes, CutTables(catalog)))

    tables.hooks["expire"] = append
    with pytest.raises(TooManyConflicts, match="came first"):
        await asyncio.to_thread(expire, tables)
    assert len(appended) == COMMITS_MAX
    await checked(lanes, catalog)


async def test_a_reader_sees_all_rows_all_the_time(lanes: Lanes, catalog: Catalog, tmp_path: Path) -> None:
    await fill_and_compact(lanes, catalog, tmp_path)
    tables = HookedTables(catalog)
    counts = read_meanwhile(lanes, catalog, tables, STEPS, lambda look: expiry(tables).run(SOURCE.name, look))
    assert counts >= 2 * len(STEPS)


# --- the ways in which it can end


@pytest.mark.parametrize("step", [*STEPS, "a file"])
async def test_a_process_that_ends_leaves_the_rows(step: str, lanes: Lanes, catalog: Catalog, tmp_path: Path) -> None:
    await fill_and_compact(lanes, catalog, tmp_path)
    tables = HookedTables(catalog)
    tables.hooks[step] = fail(Cut())
    with pytest.raises(Cut):
        expiry(tables).run(SOURCE.name, tables.hooks[step] if step == "a file" else lambda: None)
    assert rows_of(catalog) == lanes.rows
    assert referenced(catalog) <= stored(tmp_path)
    expire(CutTables(catalog))
    grow_old(tmp_path)
    table(catalog).append(table(catalog).scan(limit=0).to_arrow())  # writes a file that is new
    expire(CutTables(catalog))
    assert stored(tmp_path) == referenced(catalog)
    await checked(lanes, catalog)


async def test_a_lost_reply_is_no_loss(
    lanes: Lanes, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill_and_compact(lanes, catalog, tmp_path)
    commit = catalog.commit_table

    def lose(*args: Any) -> None:
        commit(*args)
        raise TimeoutError("the reply was lost")

    monkeypatch.setattr(catalog, "commit_table", lose)
    with pytest.raises(Unavailable):
        expire(CutTables(catalog))
    monkeypatch.undo()
    assert expire(CutTables(catalog)).deleted_files > 0
    await checked(lanes, catalog)


async def test_what_cannot_be_listed_is_left(
    lanes: Lanes, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage fails, or lists the files under other names than the table has."""
    await fill_and_compact(lanes, catalog, tmp_path)
    contents = stored(tmp_path)
    real = iceberg._list
    monkeypatch.setattr(iceberg, "_list", lambda *_: fail(OSError("no answer"))())
    with pytest.raises(Unavailable, match="no answer"):
        expire(CutTables(catalog))
    other = [replace(file, path=f"{file.path}%") for file in real(table(catalog), iceberg._folders(table(catalog)))]
    monkeypatch.setattr(iceberg, "_list", lambda *_: other)
    with pytest.raises(Halted, match="does not list"):
        expire(CutTables(catalog))
    assert stored(tmp_path) == contents


async def test_what_is_not_the_tables_own_is_left(lanes: Lanes, catalog: Catalog, tmp_path: Path) -> None:
    """Files of other kinds, those beside its folders, and raw data."""
    await fill_and_compact(lanes, catalog, tmp_path)
    location = Path(table(catalog).location().removeprefix("file://"))
    others = [location / name for name in ("data/notes.txt", "other.parquet", "other/data/file.parquet")]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    grow_old(tmp_path)
    contents = stored(tmp_path)
    for raw_data in (f"{location}/data", f"{location}", f"{location}/data/bronze"):
        with pytest.raises(Halted, match="raw data"):
            expiry(CutTables(catalog), raw_data).run(SOURCE.name, lambda: None)
    assert stored(tmp_path) == contents
    assert all(path.exists() for path in others)


async def test_a_table_whose_commits_are_repeated_is_refused(lanes: Lanes, catalog: Catalog, tmp_path: Path) -> None:
    await fill_and_compact(lanes, catalog, tmp_path)
    set_retries(catalog, 4)
    with pytest.raises(Halted, match=TableProperties.COMMIT_NUM_RETRIES):
        expire(CutTables(catalog))


async def test_a_dry_run_says_what_would_be_removed(lanes: Lanes, catalog: Catalog, tmp_path: Path) -> None:
    await fill_and_compact(lanes, catalog, tmp_path)
    table(catalog).append(table(catalog).scan(limit=0).to_arrow())  # writes a file that is new
    before, contents = table(catalog).metadata, stored(tmp_path)
    planned = expiry(CutTables(catalog)).plan(SOURCE.name)
    assert table(catalog).metadata == before
    assert stored(tmp_path) == contents
    assert planned == replace(expire(CutTables(catalog)), is_planned=True)


async def test_a_table_without_rows_is_left(lanes: Lanes, catalog: Catalog) -> None:
    tables = CutTables(catalog)
    assert expire(tables) == Expired(SOURCE.name)
    await follow(lanes, tables)
    assert expire(tables) == Expired(SOURCE.name)


async def test_the_command_says_what_it_did(lanes: Lanes, catalog: Catalog, tmp_path: Path) -> None:
    """A process of its own. Nothing is old enough; a source that has no table is left."""
    await fill(lanes, catalog)
    settings = {"TYPE": "sql", "URI": f"sqlite:///{tmp_path}/catalog.db", "WAREHOUSE": f"file://{tmp_path}"}
    command = [sys.executable, "-m", "bronze", "table", "expire", "--yes", "--json"]
    done = await asyncio.to_thread(
        subprocess.run,
        [*command, "--expire-days", "1", "--source", SOURCE.name, "--source", "status"],
        env={**os.environ, **{f"PYICEBERG_CATALOG__TEST__{name}": value for name, value in settings.items()}}
        | {"BRONZE_TABLE_CATALOG": "test"},
        capture_output=True,
        text=True,
        timeout=limit_s(60),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Acts on the tables of the namespace bronze" in done.stderr
    nothing = {"expired_snapshots": 0, "deleted_files": 0, "deleted_bytes": 0}
    assert [*map(json.loads, done.stdout.splitlines())] == [
        {"source": SOURCE.name, **nothing},
        {"source": "status", **nothing},
    ]
