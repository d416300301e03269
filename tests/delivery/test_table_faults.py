"""Two committers, compaction, expiry, reprocessing and erasure of one table, each of which ends or loses its reply at
random.

BRONZE_TABLE_SEED sets the seed of the search, BRONZE_TABLE_CUTS its length.
"""

import asyncio
import io
import os
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import CommitFailedException

from bronze.errors import Unavailable
from bronze.maintenance.task import TooManyConflicts
from bronze.servers.iceberg import Condition, Conflict
from tests.delivery import test_table as tables_test
from tests.delivery.test_table import (
    EPOCH,
    NEXT_EPOCH,
    SOURCE,
    Cut,
    CutTables,
    Lanes,
    Rows,
    commit_all,
    follow,
    read_on,
    rows_of,
)
from tests.delivery.test_table_compaction import compact
from tests.delivery.test_table_erasure import erase, erasure
from tests.delivery.test_table_expiry import expire, grow_old, referenced, stored
from tests.delivery.test_table_reprocessing import DAY, NEXT_DAY, reprocess

catalog, lanes = tables_test.catalog, tables_test.lanes

SEED = int(os.environ.get("BRONZE_TABLE_SEED", "1"))
CUTS = int(os.environ.get("BRONZE_TABLE_CUTS", "40"))
#: Of them, those after which the outcome of the commit is not known to who made it.
UNKNOWN = {"lost", "late", "ended after"}


class Faults:
    """What happens to the next commit at the catalog: it is refused by an end of the process, made without a reply, or
    made much later.
    """

    def __init__(self, catalog: Catalog, chosen: random.Random) -> None:
        self.commit: Callable[..., Any] = catalog.commit_table
        self.chosen = chosen
        self.counts: Counter[str] = Counter()
        self.late: list[tuple[Any, ...]] = []

    def __call__(self, *args: Any) -> Any:
        fault = self.chosen.choice(["none", "ended before", "ended before", "ended before", *sorted(UNKNOWN)])
        self.counts[fault] += 1
        match fault:
            case "ended before":
                raise Cut
            case "ended after":
                self.commit(*args)
                raise Cut
            case "lost":
                self.commit(*args)
                raise TimeoutError("the reply was lost")
            case "late":
                self.late.append(args)
                raise TimeoutError("no reply")
        return self.commit(*args)

    def arrive(self) -> None:
        """A request that was on its way arrives."""
        with suppress(CommitFailedException, ValueError):  # another one came first; its snapshots are gone
            self.commit(*self.late.pop(self.chosen.randrange(len(self.late))))
            self.counts["arrived late and made"] += 1

    @property
    def cuts(self) -> int:
        return sum(number for fault, number in self.counts.items() if fault in {*UNKNOWN, "ended before"})


class Erasures:
    """Of the last rows of objects, one after the other. `begun`: the row that may be in the table still."""

    def __init__(self, lanes: Lanes, chosen: random.Random) -> None:
        self._lanes = lanes
        self._chosen = chosen
        self.begun: tuple[str, int] | None = None
        self.ended: list[tuple[str, int]] = []

    @property
    def left(self) -> Rows:
        """What may be in the table besides the rows of the objects."""
        return Counter([self.begun] if self.begun else [])

    def begin(self) -> None:
        """Write an object again without its last row, unless an erasure has begun."""
        entries = self._lanes.feed.entries
        having = [number for number, entry in enumerate(entries) if entry.records]
        if self.begun is not None or not having:
            return
        number = self._chosen.choice(having)
        entry, file = entries[number], io.BytesIO()
        rows = pq.read_table(io.BytesIO(self._lanes.bucket.bodies[entry.file_path]))
        pq.write_table(rows.slice(0, entry.records - 1), file)
        self._lanes.bucket.bodies[entry.file_path] = file.getvalue()
        entries[number] = msgspec.structs.replace(entry, records=entry.records - 1)
        self.begun = (f"{entry.epoch}-{entry.lane}-{entry.first}", entry.records - 1)

    def run(self, catalog: Catalog) -> None:
        """Erase the row from the table, or what is left of it after an erasure that did not end."""
        if self.begun is not None:
            erase(CutTables(catalog), is_row(*self.begun))
            self.ended.append(self.begun)
            self.begun = None


def is_row(submission_id: str, index: int) -> Condition:
    return lambda _: (pc.field("_submission_id") == submission_id) & (pc.field("_record_index") == index)


async def test_no_row_is_lost_or_doubled(
    lanes: Lanes,
    catalog: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    """Between new objects, new lanes, rebuilds of the catalog, and files that grow old."""
    chosen = random.Random(SEED)
    faults = Faults(catalog, chosen)
    lanes.write()
    await commit_all(lanes, CutTables(catalog))
    both = [await follow(lanes, CutTables(catalog)) for _ in range(2)]
    erasures = Erasures(lanes, chosen)
    while faults.cuts < CUTS:
        for _ in range(chosen.randrange(3)):
            lanes.write(chosen.randrange(2), chosen.choice([EPOCH, EPOCH, NEXT_EPOCH]), rows=chosen.randrange(4))
        if chosen.random() < 0.05:
            lanes.feed.rebuild()
        if faults.late and chosen.random() < 0.5:
            faults.arrive()
        which = chosen.randrange(2)
        monkeypatch.setattr(catalog, "commit_table", faults)
        try:
            match chosen.choice(["append", "append", "append", "compact", "expire", "reprocess", "erase"]):
                case "append":
                    await read_on(lanes, both[which], await both[which].open())
                    while await both[which].commit("") is not None:
                        pass
                case "compact":
                    await asyncio.to_thread(compact, CutTables(catalog))
                case "expire":
                    if not faults.late:  # no request is on its way for days
                        grow_old(tmp_path)
                    await asyncio.to_thread(expire, CutTables(catalog))
                case "reprocess":
                    await asyncio.to_thread(reprocess, CutTables(catalog), DAY, NEXT_DAY)
                case "erase":
                    erasures.begin()
                    both = [await follow(lanes, CutTables(catalog)) for _ in range(2)]  # the entry has changed
                    await asyncio.to_thread(erasures.run, catalog)
        except (Unavailable, Conflict, TooManyConflicts):
            pass
        except Cut:
            monkeypatch.setattr(catalog, "commit_table", faults.commit)
            both[which] = await follow(lanes, CutTables(catalog))
        monkeypatch.setattr(catalog, "commit_table", faults.commit)
        assert not rows_of(catalog) - lanes.rows - erasures.left
    while faults.late:
        faults.arrive()
    await asyncio.to_thread(erasures.run, catalog)
    await commit_all(lanes, CutTables(catalog))
    assert rows_of(catalog) == lanes.rows
    assert referenced(catalog) <= stored(tmp_path)
    for row in erasures.ended[-1:]:
        erase(CutTables(catalog), is_row(*row))  # what a process wrote only after the search
        assert erasure(CutTables(catalog), is_row(*row)).plan(SOURCE.name).files == 0
    record_property("cuts of commits", faults.cuts)
    record_property("of them with an unknown outcome", sum(faults.counts[one] for one in UNKNOWN))
    record_property("rows", sum(lanes.rows.values()))
    record_property("erasures", len(erasures.ended))
