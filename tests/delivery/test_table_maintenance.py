"""`bronze table` maintains its tables beside its commits, and what fails there stops nothing."""

import asyncio
import ctypes
import datetime as dt
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from pyiceberg.catalog import Catalog

from bronze.errors import ErrorCode, Fault, Outage, Unavailable
from bronze.maintenance.compaction import Compaction
from bronze.maintenance.expiry import Expired, Expiry
from bronze.maintenance.task import Done, Task, TooManyConflicts
from bronze.servers.iceberg import Conflict
from bronze.settings import Settings
from bronze.table.maintenance import Maintenance
from bronze.wiring.table import _maintenance
from local.machine import limit_s
from tests.delivery import test_table as tables_test
from tests.delivery.test_table import SOURCE, CutTables, Lanes, commit_all, rows_of
from tests.delivery.test_table_compaction import checked, compaction, files, fill
from tests.delivery.test_table_expiry import current, expiry, grow_old, referenced, snapshot_ids, stored

catalog, lanes = tables_test.catalog, tables_test.lanes


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(limit_s(60)):
        while not await asyncio.to_thread(done):
            pass


class FailingTask:
    """Fails once in each way."""

    def __init__(self) -> None:
        self.errors: list[Exception] = [
            TooManyConflicts("other"),
            Unavailable(Outage.UNAVAILABLE, "no answer"),
            ValueError("a bug"),
        ]
        self.runs: list[str] = []

    def plan(self, source: str) -> Done:
        raise NotImplementedError

    def run(self, source: str, on_file: Callable[[], None]) -> Done:
        self.runs.append(source)
        if self.errors:
            raise self.errors.pop()
        on_file()
        return Expired(source)


async def test_the_tables_are_maintained_while_rows_are_committed(
    lanes: Lanes, catalog: Catalog, tmp_path: Path
) -> None:
    await fill(lanes, catalog)
    grow_old(tmp_path)
    before = len(snapshot_ids(catalog))

    def tasks(_: dt.datetime) -> Sequence[Task]:
        return [compaction(CutTables(catalog)), expiry(CutTables(catalog))]

    running = asyncio.create_task(Maintenance([SOURCE.name], tasks, 0.05, lambda *_: None).run())
    for _ in range(3):
        lanes.write()
        is_committed = False
        while not is_committed:
            with suppress(Conflict):
                await commit_all(lanes, CutTables(catalog))
                is_committed = True
    await until(lambda: len(files(catalog)) == 2 and snapshot_ids(catalog) == [current(catalog).snapshot_id])
    running.cancel()
    await asyncio.wait({running})
    assert before > 1
    assert rows_of(catalog) == lanes.rows
    assert referenced(catalog) <= stored(tmp_path)
    await checked(lanes, catalog)


async def test_a_failure_stops_neither_the_other_tables_nor_the_next_run() -> None:
    """Of a run, the first error counts."""
    task, runs = FailingTask(), list[tuple[str, ErrorCode | None]]()
    running = asyncio.create_task(
        Maintenance(["one", "other"], lambda _: [task, task], 0.01, lambda *run: runs.append(run)).run()
    )
    await until(lambda: len(runs) >= 4)
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()
    assert task.runs[:6] == ["one"] * 2 + ["other"] * 2 + ["one"] * 2
    assert runs[:4] == [("one", Fault.INTERNAL), ("other", Outage.CONFLICT), ("one", None), ("other", None)]


async def test_a_run_returns_the_memory_that_it_freed() -> None:
    """By itself, malloc keeps what its thread freed below a block that is still used."""
    libc, task, resident = ctypes.CDLL(None), FailingTask(), list[int]()
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )

    def run(source: str, _: Callable[[], None]) -> Done:
        blocks = [libc.malloc(60_000) for _ in range(1000)]
        for block in blocks:
            ctypes.memset(block, 1, 60_000)
        resident.append(psutil.Process().memory_info().rss)
        for block in blocks[:-1]:
            libc.free(block)
        return Expired(source)

    setattr(task, "run", run)  # noqa: B010
    ran = asyncio.Event()

    def on_run(*_: object) -> None:
        resident.append(psutil.Process().memory_info().rss)
        ran.set()

    running = asyncio.create_task(Maintenance(["one"], lambda _: [task], 60, on_run).run())
    async with asyncio.timeout(limit_s(60)):
        await ran.wait()
    running.cancel()
    await asyncio.wait({running})
    peak, after = resident
    assert peak - after > 50_000_000


async def test_an_end_comes_after_the_next_file() -> None:
    """What a thread does is not waited for longer."""
    begun, ended, task = threading.Event(), threading.Event(), FailingTask()

    def run(_: str, on_file: Callable[[], None]) -> Done:
        begun.set()
        try:
            while True:
                on_file()
        finally:
            ended.set()

    setattr(task, "run", run)  # noqa: B010
    running = asyncio.create_task(Maintenance(["one"], lambda _: [task], 60, lambda *_: None).run())
    await until(begun.is_set)
    running.cancel()
    await until(ended.is_set)


@pytest.mark.parametrize(
    ("settings", "tasks"),
    [
        (Settings(), [[Compaction, Expiry], [Expiry]]),
        (Settings(table_expire_days=0), [[Compaction]]),
        (Settings(table_maintenance_interval_s=0), []),
    ],
)
def test_settings_turn_it_off(settings: Settings, tasks: list[list[type]], catalog: Catalog) -> None:
    found = _maintenance(settings, {SOURCE.name: SOURCE}, CutTables(catalog), lambda *_: None)
    now = dt.datetime.now(dt.UTC)
    assert [[type(task) for task in each._tasks(now)] for each in found] == tasks
