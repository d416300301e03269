"""The catalog of tables that SeaweedFS has, with the account of `bronze table`: what the maintenance relies on."""

import datetime as dt
from collections.abc import Iterator

import pytest
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.utils.config import Config

from bronze.errors import Halted, NotPermitted
from bronze.maintenance import expiry as expiry_module
from bronze.servers.iceberg import Conflict, open_tables
from bronze.settings import Settings
from local import servers
from local.programs import Process, free_ports, start
from tests.delivery import test_table_erasure as erasure_test
from tests.delivery.test_table import SOURCE, CutTables, Lanes, commit_all, rows_of, table
from tests.delivery.test_table_columns import set_schema
from tests.delivery.test_table_compaction import checked, compact, files, fill
from tests.delivery.test_table_erasure import erase, erasure, stale_append
from tests.delivery.test_table_expiry import HookedTables, current, expire, roll_back, snapshot_ids
from tests.delivery.test_table_reprocessing import NEXT_DAY


@pytest.fixture(scope="module")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    state = tmp_path_factory.mktemp("tables")
    account = servers.s3_account(state, free_ports(servers.SEAWEEDFS_PORTS))
    with start(servers.seaweedfs(state, account), state / "log") as process:
        yield process


@pytest.fixture
def catalog(weed: Process, monkeypatch: pytest.MonkeyPatch) -> Iterator[Catalog]:
    """All files are old enough to be deleted: times there are whole seconds, and nothing can be made older."""
    monkeypatch.setattr(expiry_module, "FILE_AGE_MIN", dt.timedelta(days=-1))
    account = servers.s3_account(weed.log.parent, weed.program.ports["s3"], identity="table")
    credentials = {"s3.access-key-id": account.access_key, "s3.secret-access-key": account.secret_key}
    opened = load_catalog("table", **servers.tables_catalog(account), **credentials)
    yield opened
    opened.drop_table(("bronze", SOURCE.name))


async def test_old_snapshots_and_their_files_are_removed(catalog: Catalog) -> None:
    lanes = Lanes()
    await fill(lanes, catalog)
    first = table(catalog).snapshots()[0]
    compact(CutTables(catalog))
    done = expire(CutTables(catalog))
    assert done.expired_snapshots > 0
    assert done.deleted_files > 0
    assert snapshot_ids(catalog) == [current(catalog).snapshot_id]
    assert not table(catalog).io.new_input(first.manifest_list).exists()
    await checked(lanes, catalog)


async def test_the_schema_from_before_can_be_made_current_again(catalog: Catalog) -> None:
    """As docs/tables.md says, for a column that somebody removed: its values are back."""
    lanes = Lanes()
    await fill(lanes, catalog)
    before = table(catalog)
    with before.update_schema() as update:
        update.delete_column("_payload")
    with pytest.raises(Halted, match="_payload"):
        await checked(lanes, catalog)
    set_schema(table(catalog), before.metadata.schemas[0].schema_id)
    assert table(catalog).scan().to_arrow()["_payload"].null_count == 0
    await checked(lanes, catalog)


def test_wrong_credentials_are_named_as_such(weed: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    account = servers.s3_account(weed.log.parent, weed.program.ports["s3"], identity="table")
    for name, value in (servers.tables_env(account) | {"PYICEBERG_CATALOG__BRONZE__CREDENTIAL": "a:b"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())  # it was read when pyiceberg was imported
    with pytest.raises(NotPermitted, match="refuses the credentials"):
        open_tables(Settings())


async def test_a_table_that_is_put_back_meanwhile_keeps_that_snapshot(catalog: Catalog) -> None:
    lanes = Lanes()
    await fill(lanes, catalog)
    first = snapshot_ids(catalog)[0]
    tables = HookedTables(catalog)

    def once() -> None:
        tables.hooks.clear()
        roll_back(catalog)

    tables.hooks["expire"] = once
    expire(tables)
    assert current(catalog).snapshot_id == first
    await commit_all(lanes, CutTables(catalog))
    assert rows_of(catalog) == lanes.rows
    await checked(lanes, catalog)


async def test_rows_are_erased_from_all_files(catalog: Catalog) -> None:
    """And an append that has read an object before is refused, and reads it again."""
    lanes = Lanes()
    await erasure_test.fill(lanes, catalog)
    first = table(catalog).snapshots()[0]
    old = [path for path in files(catalog) if str(NEXT_DAY) in path]
    compact(CutTables(catalog))
    with pytest.raises(Conflict):
        await stale_append(lanes, catalog, lambda: erase(CutTables(catalog)))
    assert snapshot_ids(catalog) == [current(catalog).snapshot_id]
    assert not any(table(catalog).io.new_input(path).exists() for path in (first.manifest_list, *old))
    await commit_all(lanes, CutTables(catalog))
    assert erasure(CutTables(catalog)).plan(SOURCE.name).files == 1  # the refused append wrote it after the search
    erase(CutTables(catalog))
    left = erasure(CutTables(catalog)).plan(SOURCE.name)
    assert (left.rows, left.files, left.snapshots) == (0, 0, 0)
    await erasure_test.checked(lanes, catalog)
