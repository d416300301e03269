"""A reader that looks again and again while everything is done to a table that Bronze does: each look has the rows that
were committed, once, and none that were erased before it began.

BRONZE_TABLE_SEED sets the seed of the order, BRONZE_TABLE_TASKS how much is done.
"""

import asyncio
import datetime as dt
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Self

from pyiceberg.catalog import Catalog

from bronze.table.contents import TableContents
from local.machine import limit_s
from tests.delivery import test_table as tables_test
from tests.delivery.test_table import SOURCE, CutTables, Lanes, commit_all, rows_of, table
from tests.delivery.test_table_compaction import compact
from tests.delivery.test_table_expiry import expire, grow_old
from tests.delivery.test_table_faults import Erasures
from tests.delivery.test_table_reprocessing import DAY, NEXT_DAY, reprocess

catalog, lanes = tables_test.catalog, tables_test.lanes

SEED = int(os.environ.get("BRONZE_TABLE_SEED", "1"))
TASKS = int(os.environ.get("BRONZE_TABLE_TASKS", "12"))
KINDS = ("append", "compact", "expire", "reprocess", "erase", "retain")

Row = tuple[str, int]


class Reader:
    """Looks at the rows in a thread. The sets are replaced, never changed: a look takes them as they are.

    `sent` before its rows are committed, `committed` after that. `removing` before rows are removed, `removed` after.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.sent: frozenset[Row] = frozenset()
        self.committed: frozenset[Row] = frozenset()
        self.removing: frozenset[Row] = frozenset()
        self.removed: frozenset[Row] = frozenset()
        self.looks = 0
        self.gone = 0
        self.wrong: list[str] = []
        self._catalog = catalog
        self._ended = threading.Event()
        self._looked = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def look(self) -> None:
        """A whole look begins and ends here."""
        for _ in range(2):
            self._looked.clear()
            assert self._looked.wait(limit_s(60))

    def _run(self) -> None:
        while not self._ended.is_set():
            committed, removed = self.committed, self.removed
            try:
                found = rows_of(self._catalog)
            except FileNotFoundError:  # its snapshot was removed meanwhile
                self.gone += 1
                continue
            rows = frozenset(found)
            wrong = {
                "doubled": {row for row, number in found.items() if number > 1},
                "unknown": rows - self.sent,
                "missing": committed - self.removing - rows,
                "erased": rows & removed,
            }
            self.wrong += [f"{kind}: {sorted(some)}" for kind, some in wrong.items() if some]
            self.looks += 1
            self._looked.set()


async def test_a_reader_sees_the_right_rows_all_the_time(
    lanes: Lanes, catalog: Catalog, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    chosen, erasures = random.Random(SEED), Erasures(lanes, random.Random(SEED))
    kinds = [*KINDS, *chosen.choices(["append", *KINDS], k=max(0, TASKS - len(KINDS)))]
    await append(lanes, catalog, Reader(catalog))
    reader = Reader(catalog)
    reader.sent = reader.committed = frozenset(lanes.rows)
    began = time.monotonic()
    with reader:
        for kind in kinds:
            reader.look()
            match kind:
                case "append":
                    await append(lanes, catalog, reader)
                case "compact":
                    await asyncio.to_thread(compact, CutTables(catalog))
                case "expire":
                    grow_old(tmp_path)
                    await asyncio.to_thread(expire, CutTables(catalog))
                case "reprocess":
                    await asyncio.to_thread(reprocess, CutTables(catalog), DAY, NEXT_DAY)
                case "erase":
                    erasures.begin()
                    reader.removing |= frozenset(erasures.left)
                    await asyncio.to_thread(erasures.run, catalog)
                    reader.removed = reader.removing
                case "retain":
                    reader.removing |= frozenset(row for row in lanes.rows if row[1] == 0)  # of the first day
                    midnight = dt.datetime.combine(NEXT_DAY, dt.time(), dt.UTC)
                    await TableContents(CutTables(catalog), [SOURCE.name]).delete_rows(SOURCE.name, midnight)
                    reader.removed = reader.removing
        reader.look()
    assert reader.wrong == []
    assert rows_of(catalog) == lanes.rows - Counter(reader.removed)
    record_property("looks of a reader", reader.looks)
    record_property("looks per second", round(reader.looks / (time.monotonic() - began)))
    record_property("looks at a removed snapshot", reader.gone)
    for kind in KINDS:
        record_property(f"{kind}: tasks", kinds.count(kind))


async def append(lanes: Lanes, catalog: Catalog, reader: Reader) -> None:
    for number in range(2):
        lanes.write(number, rows=4)
    reader.sent |= frozenset(lanes.rows)
    await asyncio.to_thread(asyncio.run, commit_all(lanes, CutTables(catalog)))
    reader.committed |= frozenset(lanes.rows)


async def test_the_reader_finds_what_is_wrong(lanes: Lanes, catalog: Catalog) -> None:
    """A negative control: another program deletes a row, and doubles others."""
    reader = Reader(catalog)
    await append(lanes, catalog, reader)
    rows = table(catalog).scan().to_arrow()
    with reader:
        reader.look()
        table(catalog).append(rows)
        reader.look()
        table(catalog).delete("_record_index == 0")
        reader.look()
    assert {one.partition(":")[0] for one in reader.wrong} == {"doubled", "missing"}
