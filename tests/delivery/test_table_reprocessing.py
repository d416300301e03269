"""Rows get the columns that were declared later, and everything else of a table stays as it is."""

import asyncio
import datetime as dt
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog

from bronze.maintenance.reprocessing import REPROCESSED, Reprocessed, Reprocessing
from bronze.maintenance.task import TooManyConflicts
from bronze.records.fields import Field, FieldType
from bronze.records.sources import Source, built_in_file
from bronze.servers.iceberg import Tables
from local.machine import limit_s
from tests.delivery import test_table as tables_test
from tests.delivery.test_table import (
    LATE,
    SOURCE,
    UNDECLARED,
    Cut,
    CutTables,
    Lanes,
    commit_all,
    fail,
    rows_of,
    table,
)
from tests.delivery.test_table_compaction import (
    OBJECTS,
    HookedTables,
    arrow_memory,
    compact,
    files,
    fill,
    fill_padded,
    position,
    stored,
)

catalog, lanes = tables_test.catalog, tables_test.lanes

#: The declaration of today: a field was added that records had before.
TODAY = replace(
    SOURCE,
    version=SOURCE.version + 1,
    fields=(*SOURCE.fields, Field(UNDECLARED, FieldType.STRING, "It.", since=SOURCE.version + 1)),
)
DAY, NEXT_DAY = LATE.date(), LATE.date() + dt.timedelta(days=1)


def reprocessing(tables: Tables, *days: dt.date, source: Source = TODAY) -> Reprocessing:
    return Reprocessing(tables, {SOURCE.name: source}, days or [DAY])


def reprocess(tables: Tables, *days: dt.date) -> Reprocessed:
    return reprocessing(tables, *days).run(SOURCE.name, lambda: None)


def contents(catalog: Catalog) -> pa.Table:
    """All rows, in a fixed order."""
    keys = [(name, "ascending") for name in ("_submission_id", "_record_index")]
    return table(catalog).scan().to_arrow().sort_by(keys)


def filled(catalog: Catalog) -> Counter[tuple[dt.date, str | None, int]]:
    """How often each day has each value and version."""
    rows = contents(catalog).select(["_received_at", UNDECLARED, "_schema_version"]).to_pylist()
    return Counter((row["_received_at"].date(), row[UNDECLARED], row["_schema_version"]) for row in rows)


HALF = Counter({(DAY, "value 0", TODAY.version): OBJECTS, (NEXT_DAY, None, SOURCE.version): OBJECTS})
WHOLE = Counter({(DAY, "value 0", TODAY.version): OBJECTS, (NEXT_DAY, "value 1", TODAY.version): OBJECTS})


async def test_the_rows_of_a_day_get_the_column_that_was_declared_later(lanes: Lanes, catalog: Catalog) -> None:
    await fill(lanes, catalog)
    before, told, snapshots = contents(catalog), position(catalog), len(table(catalog).snapshots())
    done = reprocess(CutTables(catalog))
    assert (done.rows, done.unfit, done.files, done.conflicts) == (OBJECTS, 0, OBJECTS, 0)
    assert filled(catalog) == HALF
    others = [name for name in before.column_names if name != "_schema_version"]
    assert contents(catalog).select(others).equals(before.select(others))
    assert position(catalog) == told
    snapshot = table(catalog).current_snapshot()
    assert snapshot is not None
    assert snapshot.summary is not None
    assert snapshot.snapshot_id == done.snapshot_id
    assert snapshot.summary.additional_properties[REPROCESSED] == str(OBJECTS)
    assert len(table(catalog).snapshots()) == snapshots + 1
    assert reprocess(CutTables(catalog)) == Reprocessed(SOURCE.name)
    assert reprocess(CutTables(catalog), DAY, NEXT_DAY).rows == OBJECTS
    assert filled(catalog) == WHOLE


async def test_bronze_table_goes_on_afterwards(lanes: Lanes, catalog: Catalog) -> None:
    await fill(lanes, catalog)
    reprocess(CutTables(catalog), DAY, NEXT_DAY)
    lanes.write()
    await commit_all(lanes, CutTables(catalog))
    assert rows_of(catalog) == lanes.rows
    compact(CutTables(catalog))
    assert rows_of(catalog) == lanes.rows
    assert filled(catalog)[DAY, "value 0", TODAY.version] == OBJECTS


async def test_a_dry_run_counts_and_changes_nothing(lanes: Lanes, catalog: Catalog, tmp_path: Path) -> None:
    await fill(lanes, catalog)
    before, kept = table(catalog).metadata, stored(tmp_path)
    planned = reprocessing(CutTables(catalog), DAY, NEXT_DAY).plan(SOURCE.name)
    assert (planned.rows, planned.files, planned.snapshot_id) == (2 * OBJECTS, 2 * OBJECTS, None)
    assert table(catalog).metadata == before
    assert stored(tmp_path) == kept
    assert "would reprocess" in str(planned)


async def test_rows_that_do_not_fit_stay_as_they_are(lanes: Lanes, catalog: Catalog) -> None:
    number = replace(TODAY, fields=(*SOURCE.fields, Field(UNDECLARED, FieldType.INT64, "It.", since=TODAY.version)))
    await fill(lanes, catalog)
    before = table(catalog).current_snapshot()
    done = reprocessing(CutTables(catalog), source=number).run(SOURCE.name, lambda: None)
    assert (done.rows, done.unfit, done.snapshot_id) == (0, OBJECTS, None)
    assert done.reason is not None
    assert UNDECLARED in done.reason
    assert table(catalog).current_snapshot() == before


async def test_rows_that_compress_well_are_reprocessed_in_parts(
    lanes: Lanes, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a compaction rewrites them."""
    objects, padding = await fill_padded(lanes, catalog, monkeypatch)
    with arrow_memory() as counted:
        reprocess(CutTables(catalog))
    assert counted.max_memory() < objects * len(padding)
    assert filled(catalog)[DAY, f"value 0{padding}", TODAY.version] == objects


@pytest.mark.parametrize("step", ["write", "replaceable", "replace"])
@pytest.mark.parametrize("other", ["append", "compact", "reprocess"])
async def test_other_commits_come_first(step: str, other: str, lanes: Lanes, catalog: Catalog) -> None:
    """What they did stays, and each row of the day is filled once."""
    await fill(lanes, catalog)
    tables = HookedTables(catalog)

    def once() -> None:
        tables.hooks.clear()
        if other == "append":
            lanes.write()
            asyncio.run(commit_all(lanes, CutTables(catalog)))
        elif other == "compact":
            compact(CutTables(catalog))
        else:
            reprocess(CutTables(catalog), DAY, NEXT_DAY)

    tables.hooks[step] = once
    await asyncio.to_thread(reprocess, tables, DAY, NEXT_DAY)
    assert rows_of(catalog) == lanes.rows
    new = 1 if other == "append" else 0
    assert filled(catalog) == WHOLE + Counter({(DAY, None, SOURCE.version): new, (NEXT_DAY, None, SOURCE.version): new})


@pytest.mark.parametrize("step", ["write", "replaceable", "replace"])
async def test_a_kill_leaves_the_table_as_it_was(step: str, lanes: Lanes, catalog: Catalog) -> None:
    await fill(lanes, catalog)
    before = contents(catalog)
    tables = HookedTables(catalog)
    tables.hooks[step] = fail(Cut())
    with pytest.raises(Cut):
        reprocess(tables, DAY, NEXT_DAY)
    assert contents(catalog).select(before.column_names).equals(before)
    reprocess(CutTables(catalog), DAY, NEXT_DAY)
    assert filled(catalog) == WHOLE
    assert rows_of(catalog) == lanes.rows


async def test_too_many_conflicts_change_nothing(lanes: Lanes, catalog: Catalog, tmp_path: Path) -> None:
    await fill(lanes, catalog)
    tables = HookedTables(catalog)

    def append() -> None:
        lanes.write()
        asyncio.run(commit_all(lanes, CutTables(catalog)))

    tables.hooks["replace"] = append
    with pytest.raises(TooManyConflicts):
        await asyncio.to_thread(reprocess, tables)
    assert rows_of(catalog) == lanes.rows
    assert stored(tmp_path) == {path.removeprefix("file://") for path in files(catalog)}


async def test_the_command_says_what_it_did(lanes: Lanes, catalog: Catalog, tmp_path: Path) -> None:
    await fill(lanes, catalog)
    declaration = tmp_path / "sources.toml"
    added = f'{{ name = "{UNDECLARED}", type = "string", since = {TODAY.version}, description = "It." }},'
    text = built_in_file().read_text().replace("\n[vehicles]\n", f"\n[vehicles]\nversion = {TODAY.version}\n")
    declaration.write_text(text.replace("\nfields = [\n", f"\nfields = [\n    {added}\n", 1))
    settings = {"TYPE": "sql", "URI": f"sqlite:///{tmp_path}/catalog.db", "WAREHOUSE": f"file://{tmp_path}"}
    command = [sys.executable, "-m", "bronze", "table", "reprocess", "--json", "--yes", "--source", SOURCE.name]
    done = await asyncio.to_thread(
        subprocess.run,
        [*command, "--day", str(DAY), "--day", str(NEXT_DAY)],
        env={**os.environ, **{f"PYICEBERG_CATALOG__TEST__{name}": value for name, value in settings.items()}}
        | {"BRONZE_TABLE_CATALOG": "test", "BRONZE_SOURCES": str(declaration)},
        capture_output=True,
        text=True,
        timeout=limit_s(60),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["source"], said["rows"], said["unfit"]) == (SOURCE.name, 2 * OBJECTS, 0)
    assert filled(catalog) == WHOLE
