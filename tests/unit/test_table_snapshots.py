"""What a look-up says of the snapshots of its objects, whatever the catalog of the tables does."""

import asyncio
import logging
import threading
from collections.abc import Sequence

import pytest

from bronze.errors import Outage, Unavailable
from bronze.lineage.lookup import LineageObject
from bronze.lineage.table_snapshots import InLane, TableSnapshots
from bronze.protocol.snapshot_summary import FirstSnapshot

STORED_AT = "2026-11-28T08:00:00Z"
LATE = FirstSnapshot("7", "2026-11-28T08:00:09+00:00", is_exact=True, trace_id="a" * 32)


def written(number: int, source: str = "vehicles") -> LineageObject:
    return LineageObject(f"{source}-{number}", source, "e", 0, number, number, 1, 1, 1, 9, "0" * 32, STORED_AT)


class Catalog:
    """Has the first `committed` messages of each lane, and answers when it may."""

    def __init__(self) -> None:
        self.committed = 2
        self.asked: list[list[str]] = []
        self.error: Exception | None = None
        self.answers = threading.Event()
        self.answers.set()

    def find(self, objects: Sequence[InLane]) -> Sequence[FirstSnapshot | None]:
        self.asked.append([each.file_path for each in objects])
        self.answers.wait()
        if self.error:
            raise self.error
        return [LATE if each.last <= self.committed else None for each in objects]


async def test_a_snapshot_is_looked_up_once_and_what_is_not_committed_again() -> None:
    catalog = Catalog()
    snapshots = TableSnapshots(catalog.find, {"vehicles"}, read_s_max=60)
    objects = [written(1), written(3), written(1, "canary")]
    assert await snapshots.of(objects) == {"vehicles-1": LATE, "vehicles-3": None}
    catalog.committed = 3
    assert await snapshots.of(objects) == {"vehicles-1": LATE, "vehicles-3": LATE}
    assert await snapshots.of(objects) == {"vehicles-1": LATE, "vehicles-3": LATE}
    assert catalog.asked == [["vehicles-1", "vehicles-3"], ["vehicles-3"]]


@pytest.mark.parametrize("error", [Unavailable(Outage.UNAVAILABLE, "away"), ValueError("unexpected")])
async def test_an_error_of_the_catalog_leaves_objects_out(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    catalog = Catalog()
    catalog.error = error
    snapshots = TableSnapshots(catalog.find, {"vehicles"}, read_s_max=60)
    with caplog.at_level(logging.WARNING):
        assert await snapshots.of([written(1)]) == {}
    assert "look-ups do not say which snapshots" in caplog.text
    catalog.error = None
    assert await snapshots.of([written(1)]) == {"vehicles-1": LATE}


async def test_a_catalog_that_hangs_is_asked_once_at_a_time() -> None:
    """Look-ups go on without it, and what it says at last is there for the next one."""
    catalog = Catalog()
    catalog.answers.clear()
    snapshots = TableSnapshots(catalog.find, {"vehicles"}, read_s_max=0.05)
    assert await asyncio.gather(snapshots.of([written(1)]), snapshots.of([written(2)])) == [{}, {}]  # type: ignore[comparison-overlap]
    assert await snapshots.of([written(2)]) == {}
    assert catalog.asked == [["vehicles-1"]]
    catalog.answers.set()
    snapshots._read_s_max = 60
    assert await snapshots.of([written(1), written(2)]) == {"vehicles-1": LATE, "vehicles-2": LATE}
    assert catalog.asked == [["vehicles-1"], ["vehicles-1", "vehicles-2"]]
