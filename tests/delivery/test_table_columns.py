"""A column that somebody removed from a table or renamed is never put back as an empty one: nothing is committed, and
nothing is compacted, until somebody has decided. A table that was dropped is made again.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table
from pyiceberg.table.update import SetCurrentSchemaUpdate
from pyiceberg.types import LongType, StringType

from bronze.errors import Halted
from bronze.maintenance.compaction import Compaction
from bronze.records.columns import table_schema
from bronze.records.fields import Field, FieldType
from bronze.records.sources import Source
from bronze.servers.bucket import Bucket
from bronze.servers.catalog_feed import Feed
from bronze.table.committer import Committer
from bronze.table.run import TableRole
from bronze.table.table_telemetry import TableTelemetry
from bronze.telemetry.signals import Role
from tests.contract.making import Heard
from tests.delivery import test_table as tables_test
from tests.delivery.test_table import (
    LATE,
    SOURCE,
    CutTables,
    Lanes,
    commit_all,
    committer,
    follow,
    rows_of,
    table,
)

catalog, lanes = tables_test.catalog, tables_test.lanes


def change(catalog: Catalog, do: Callable[[Any], object]) -> None:
    with table(catalog).update_schema(allow_incompatible_changes=True) as update:
        do(update)


def remove(name: str) -> Callable[[Any], object]:
    return lambda update: update.delete_column(name)


def set_schema(table: Table, number: int) -> None:
    """As docs/tables.md has it."""
    with table.transaction() as transaction:
        transaction._apply((SetCurrentSchemaUpdate(schema_id=number),))


REMOVED = (remove("_payload"), "lacks the column _payload, which it had: somebody removed it")
RENAMED = (
    lambda update: update.rename_column("vehicle_id", "veh"),
    "lacks the column vehicle_id, which it had: somebody renamed it to veh",
)


@pytest.mark.parametrize(("do", "said"), [REMOVED, RENAMED])
async def test_a_lost_column_halts_before_and_after_a_restart(
    do: Callable[[Any], object], said: str, lanes: Lanes, catalog: Catalog
) -> None:
    """Also compaction, whose files would lack its values. When the schema is back, all values are."""
    tables = CutTables(catalog)
    lanes.write()
    await commit_all(lanes, tables)
    lanes.write()
    await commit_all(lanes, tables)
    before, number = table(catalog).scan().to_arrow(), table(catalog).metadata.current_schema_id
    running = await follow(lanes, tables)
    lanes.write()
    running = await follow(lanes, tables)
    change(catalog, do)
    changed = table(catalog).metadata
    with pytest.raises(Halted, match=f"bronze.vehicles {said}"):
        await running.commit("")
    with pytest.raises(Halted, match=f"bronze.vehicles {said}"):
        await committer(lanes, tables).open()
    compaction = Compaction(tables, {SOURCE.name: SOURCE}, LATE.replace(year=2027), 2**20)
    with pytest.raises(Halted, match=said):
        compaction.run(SOURCE.name, lambda: None)
    assert table(catalog).metadata == changed
    set_schema(table(catalog), number)
    assert table(catalog).scan().to_arrow() == before
    await running.commit("")
    assert rows_of(catalog) == lanes.rows
    assert table(catalog).scan().to_arrow()["_payload"].null_count == 0


async def test_a_part_of_a_column_counts(lanes: Lanes, catalog: Catalog) -> None:
    parts = (Field("a", FieldType.STRING, ""), Field("b", FieldType.STRING, ""))
    source = with_field(Field("parts", FieldType.STRUCT, "", children=parts))
    tables = CutTables(catalog)
    tables.open(SOURCE.name, table_schema(source))
    change(catalog, lambda update: update.delete_column(("parts", "b")))
    with pytest.raises(Halted, match=r"lacks the column parts\.b, which it had"):
        tables.open(SOURCE.name, table_schema(source))


async def test_a_column_that_is_added_by_hand_is_accepted(lanes: Lanes, catalog: Catalog) -> None:
    """Whoever does that has decided that older rows have null in it."""
    tables = CutTables(catalog)
    lanes.write()
    await commit_all(lanes, tables)
    change(catalog, remove("_payload"))
    change(catalog, lambda update: update.add_column("_payload", StringType()))
    lanes.write()
    await commit_all(lanes, tables)
    assert rows_of(catalog) == lanes.rows
    assert table(catalog).scan().to_arrow()["_payload"].null_count == 2


async def test_a_field_that_its_source_removed_and_declared_again_has_its_column(
    lanes: Lanes, catalog: Catalog
) -> None:
    """`bronze table` removes no column of a table."""
    tables = CutTables(catalog)
    field = Field("colour", FieldType.STRING, "")
    for source in (SOURCE, with_field(field), SOURCE, with_field(field)):
        tables.open(SOURCE.name, table_schema(source))
    assert "colour" in table(catalog).schema().column_names
    lanes.write()
    await commit_all(lanes, tables)
    assert rows_of(catalog) == lanes.rows


async def test_columns_of_others_may_come_and_go(lanes: Lanes, catalog: Catalog) -> None:
    tables = CutTables(catalog)
    lanes.write()
    begun = await follow(lanes, tables)
    change(catalog, lambda update: update.add_column("own", StringType()))
    await begun.commit("")
    change(catalog, remove("own"))
    lanes.write()
    await commit_all(lanes, tables)
    assert rows_of(catalog) == lanes.rows


async def test_columns_that_somebody_widened_or_narrowed_take_the_rows(lanes: Lanes, catalog: Catalog) -> None:
    """A wider type stays, and a column that must not be null any more may be null again."""
    tables = CutTables(catalog)
    source = with_field(Field("doors", FieldType.INT32, ""))
    tables.open(SOURCE.name, table_schema(source))
    role = role_of(lanes, catalog, source)
    await role.step()
    change(catalog, lambda update: update.update_column("doors", LongType()))
    change(catalog, lambda update: update.update_column("model", required=True))
    lanes.write()
    for _ in range(3):
        await role.step()
    assert rows_of(catalog) == lanes.rows
    assert table(catalog).schema().find_type("doors") == LongType()


@pytest.mark.parametrize(
    ("do", "said"),
    [
        (
            lambda update: update.delete_column("seats").add_column("seats", StringType()),
            "cannot take the columns of the source.* seats: string -> ",
        ),
        (lambda update: update.add_column("x", StringType(), required=True), "column x must not be null"),
    ],
)
async def test_a_column_that_bronze_cannot_fill_halts(
    do: Callable[[Any], object], said: str, lanes: Lanes, catalog: Catalog
) -> None:
    tables = CutTables(catalog)
    lanes.write()
    begun = await follow(lanes, tables)
    change(catalog, do)
    with pytest.raises(Halted, match=said):
        await begun.commit("")
    with pytest.raises(Halted, match=said):
        await committer(lanes, tables).open()


def with_field(field: Field) -> Source:
    return replace(SOURCE, fields=(*SOURCE.fields, field))


# --- a table that was dropped


def role_of(lanes: Lanes, catalog: Catalog, source: Source = SOURCE) -> TableRole:
    feed, bucket = cast(Feed, lanes.feed), cast(Bucket, lanes.bucket)
    begun = Committer(source, CutTables(catalog), feed, bucket, "bronze", 2**20)
    return TableRole([begun], feed, TableTelemetry(Heard(Role.TABLE).telemetry), interval_s=0)


@pytest.mark.parametrize("made_again", ["", "made again"])
async def test_a_table_that_was_dropped_is_filled_from_the_bucket(
    made_again: str, lanes: Lanes, catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    """With the next object, and without a restart: also if somebody made another one with fewer columns."""
    field = Field("colour", FieldType.STRING, "")
    role = role_of(lanes, catalog, with_field(field))
    lanes.write()
    await role.step()
    assert rows_of(catalog) == lanes.rows
    catalog.drop_table(("bronze", SOURCE.name))
    if made_again:
        CutTables(catalog).open(SOURCE.name, table_schema(SOURCE))
    lanes.write()
    for _ in range(3):
        await role.step()
    assert rows_of(catalog) == lanes.rows
    assert "colour" in table(catalog).schema().column_names
    assert "the table vehicles was dropped or changed: it is opened again, and gets the rows" in caplog.text
