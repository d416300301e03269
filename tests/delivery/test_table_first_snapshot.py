"""Which snapshot made the rows of an object queryable, whatever was done to the table since."""

import datetime as dt

from pyiceberg.catalog import Catalog

from bronze.protocol.documents import CatalogEntry
from bronze.protocol.snapshot_summary import FirstSnapshot
from bronze.servers.iceberg import Tables
from bronze.table.first_snapshot import FirstSnapshots
from tests.delivery import test_table as tables_test
from tests.delivery.test_table import EPOCH, SOURCE, CutTables, Lanes, follow, table
from tests.delivery.test_table_compaction import compact
from tests.delivery.test_table_expiry import expire, roll_back

catalog, lanes = tables_test.catalog, tables_test.lanes

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


def find(catalog: Catalog, entry: CatalogEntry) -> FirstSnapshot | None:
    return FirstSnapshots(Tables(catalog, "bronze")).find(entry.source, entry.epoch, entry.lane, entry.last)


async def commit(lanes: Lanes, catalog: Catalog) -> str:
    """Commit what there is; the id of the snapshot."""
    begun = await follow(lanes, CutTables(catalog))
    done = await begun.commit(TRACEPARENT)
    assert done is not None
    return str(done.snapshot_id)


async def test_each_object_has_the_snapshot_that_appended_it(lanes: Lanes, catalog: Catalog) -> None:
    one, other = lanes.write(), lanes.write(1)
    first = await commit(lanes, catalog)
    later = lanes.write()
    assert find(catalog, later) is None
    second = await commit(lanes, catalog)
    compact(CutTables(catalog))
    for entry, snapshot_id in ((one, first), (other, first), (later, second)):
        found = find(catalog, entry)
        assert found is not None
        assert (found.snapshot_id, found.is_exact, found.trace_id) == (snapshot_id, True, TRACE_ID)
        snapshot = table(catalog).snapshot_by_id(int(snapshot_id))
        assert snapshot is not None
        assert dt.datetime.fromisoformat(found.committed_at).timestamp() * 1000 == snapshot.timestamp_ms


async def test_without_a_table_there_is_none(lanes: Lanes, catalog: Catalog) -> None:
    assert find(catalog, lanes.write()) is None
    assert FirstSnapshots(Tables(catalog, "bronze")).find("status", EPOCH, 0, 1) is None


async def test_what_was_put_back_does_not_count(lanes: Lanes, catalog: Catalog) -> None:
    """The rows are in the table since they were appended again."""
    lanes.write()
    first = await commit(lanes, catalog)
    later = lanes.write()
    await commit(lanes, catalog)
    roll_back(catalog)
    current = table(catalog).current_snapshot()
    assert current is not None
    assert str(current.snapshot_id) == first
    assert find(catalog, later) is None
    again = await commit(lanes, catalog)
    found = find(catalog, later)
    assert found is not None
    assert found.snapshot_id == again


async def test_of_what_has_expired_it_says_at_the_latest(lanes: Lanes, catalog: Catalog) -> None:
    entry = lanes.write()
    await commit(lanes, catalog)
    lanes.write()
    last = await commit(lanes, catalog)
    expire(CutTables(catalog))
    assert [str(snapshot.snapshot_id) for snapshot in table(catalog).snapshots()] == [last]
    found = find(catalog, entry)
    assert found is not None
    assert (found.snapshot_id, found.is_exact) == (last, False)
    assert SOURCE.name == entry.source
