"""A source through its whole life: a field is added, one widened, one added under an alias, and the source becomes
strict; a field cannot be removed, but the source can. Records that were accepted at any version are read together, by
old consumers and by new ones, and by readers of the bucket.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from bronze.admin.source_changes import Verdict, changes
from bronze.errors import Refused
from bronze.objects.encoder import encode_object
from bronze.protocol.chain import reconcile
from bronze.protocol.lane import Lane, lane_subject
from bronze.protocol.message import Message, Part
from bronze.records import sources
from bronze.records.columnar_intake import ColumnarIntake
from bronze.records.json_intake import JsonIntake
from bronze.records.sources import Source, incompatibility
from tests import factories

THING_ID = '{ name = "thing_id", type = "string", required = true, description = "-" }'
SIZE = '{ name = "size", type = "int32", description = "-" }'
WIDE = '{ name = "size", type = "int64", widened_from = "int32", widened_since = 3, description = "-" }'
COLOUR = '{ name = "colour", type = "string", since = 2, description = "-" }'
DEVICE = '{ name = "device", type = "string", alias = "deviceId", since = 4, description = "-" }'


def declared(version: int, *fields: str, more: str = "") -> Source:
    text = f'[things]\ndescription = "-"\nversion = {version}\n{more}\nfields = [{", ".join(fields)}]'
    return sources.parse(text, "things.toml")["things"]


@dataclass(frozen=True)
class Step:
    """A declaration, a record that it accepts, the columns of its row, and a record that it refuses."""

    name: str
    source: Source
    record: bytes
    row: dict[str, Any]
    refused: bytes


STEPS = [
    Step(
        "first",
        declared(1, THING_ID, SIZE),
        b'{"thing_id": "1", "size": 1, "colour": [1], "deviceId": 1}',  # undeclared: not checked, in _payload
        {"thing_id": "1", "size": 1},
        b'{"thing_id": "1", "size": 3000000000}',
    ),
    Step(
        "add",
        declared(2, THING_ID, SIZE, COLOUR),
        b'{"thing_id": "2", "size": 2, "colour": "red", "deviceId": 2}',
        {"thing_id": "2", "size": 2, "colour": "red"},
        b'{"thing_id": "2", "colour": [1]}',
    ),
    Step(
        "widen",
        declared(3, THING_ID, WIDE, COLOUR),
        b'{"thing_id": "3", "size": 3000000000, "colour": null}',
        {"thing_id": "3", "size": 3_000_000_000},
        b'{"thing_id": "3", "size": 1.5}',
    ),
    Step(
        "alias",
        declared(4, THING_ID, WIDE, COLOUR, DEVICE),
        b'{"thing_id": "4", "deviceId": "d", "device": 4}',
        {"thing_id": "4", "device": "d"},
        b'{"thing_id": "4", "deviceId": 4}',
    ),
    Step(
        "strict",
        declared(4, THING_ID, WIDE, COLOUR, DEVICE, more="strict = true"),
        b'{"thing_id": "5", "deviceId": "d", "size": 5, "colour": "blue"}',
        {"thing_id": "5", "device": "d", "size": 5, "colour": "blue"},
        b'{"thing_id": "5", "device": "d"}',
    ),
]
LAST = STEPS[-1].source
NAMES = ("thing_id", "size", "colour", "device")
LANE = Lane("things", 0, "20261124T120000000")


def accepted(source: Source, record: bytes, submission_id: str = "s") -> tuple[dict[str, str], bytes]:
    """The headers and the payload of the message that a record becomes. Raises `Refused`."""
    intake = JsonIntake(source, body_bytes_max=2**20, spool_memory_bytes_max=2**20)
    try:
        intake.add_lines(record)
        facts = factories.accepted(source="things", submission_id=submission_id, schema_version=source.version)
        ((part, payload),) = intake.finish().parts(facts)
    finally:
        intake.close()
    return Part(facts, 1, 1, 0, 1, part.kind).headers(), payload


def stored(consumer: Source, steps: Sequence[Step]) -> bytes:
    """The object that a consumer with this declaration writes of the records of these steps."""
    messages = []
    for sequence, step in enumerate(steps, 1):
        headers, payload = accepted(step.source, step.record, f"s{sequence}")
        messages.append(Message(sequence, lane_subject("things", 0, f"s{sequence}"), factories.TIME, headers, payload))
    return encode_object(consumer, LANE, "key", reconcile(LANE, messages, {}), "").body


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_each_version_accepts_its_records_and_refuses_others(step: Step) -> None:
    accepted(step.source, step.record)
    with pytest.raises(Refused):
        accepted(step.source, step.refused)


@pytest.mark.parametrize("old", range(len(STEPS)), ids=[step.name for step in STEPS])
@pytest.mark.parametrize("new", range(len(STEPS)), ids=[step.name for step in STEPS])
def test_processes_of_any_two_versions_may_run_together(old: int, new: int) -> None:
    assert incompatibility(STEPS[old].source.schema, STEPS[new].source.schema) is None


def test_a_field_or_its_alias_cannot_be_removed_but_the_source_can() -> None:
    """It keeps its objects; what waits in the queue waits for its declaration."""
    for fields in ((THING_ID, WIDE, DEVICE), (THING_ID, WIDE, COLOUR, DEVICE.replace("deviceId", "dev"))):
        reason = incompatibility(LAST.schema, declared(5, *fields).schema)
        assert reason is not None
        assert "you cannot remove a field or change it" in reason
    (change,) = changes({"things": LAST.schema}, {})
    assert change.verdict is Verdict.REMOVED


@pytest.mark.parametrize("consumer", range(len(STEPS)), ids=[step.name for step in STEPS])
def test_a_consumer_reads_what_was_accepted_at_its_version_and_before(consumer: int) -> None:
    """Also a strict one: it was not refused. The value of a field that was added later is in the payload alone."""
    steps = STEPS[: consumer + 1]
    rows = pa.parquet.read_table(pa.BufferReader(stored(STEPS[consumer].source, steps))).to_pylist()
    names = [field.name for field in STEPS[consumer].source.fields]
    assert [{name: row[name] for name in names} for row in rows] == [
        {name: step.row.get(name) for name in names} for step in steps
    ]
    assert [row["_payload"].encode() for row in rows] == [step.record for step in steps]
    assert [row["_schema_version"] for row in rows] == [step.source.version for step in steps]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An object of each version, written by a consumer of the same version."""
    folder = tmp_path_factory.mktemp("life")
    for number, step in enumerate(STEPS):
        (folder / f"{number}.parquet").write_bytes(stored(step.source, [step]))
    return folder


EXPECTED = [tuple(step.row.get(name) for name in NAMES) for step in STEPS]


def test_pyarrow_reads_all_objects_together(bucket: Path) -> None:
    schemas = [file.physical_schema for file in ds.dataset(bucket).get_fragments()]
    columns = pa.unify_schemas(schemas, promote_options="permissive")
    table = ds.dataset(bucket, schema=columns).to_table(columns=list(NAMES)).sort_by("thing_id")
    assert [tuple(row.values()) for row in table.to_pylist()] == EXPECTED


def test_duckdb_reads_all_objects_together(bucket: Path) -> None:
    query = f"SELECT {', '.join(NAMES)} FROM read_parquet(?, union_by_name = true) ORDER BY thing_id"
    assert duckdb.execute(query, [f"{bucket}/*.parquet"]).fetchall() == EXPECTED


def test_polars_reads_all_objects_together(bucket: Path) -> None:
    objects = sorted(bucket.glob("*.parquet"))
    columns = {name: kind for file in objects for name, kind in pl.read_parquet_schema(file).items()}
    wider = pl.ScanCastOptions(integer_cast="upcast", float_cast="upcast")
    found = pl.scan_parquet(objects, schema=columns, missing_columns="insert", cast_options=wider)
    assert found.select(NAMES).sort("thing_id").collect().rows() == EXPECTED


def test_columns_follow_the_same_rules_as_records() -> None:
    """An Arrow body with the columns of the last version, under its names in records."""
    table = pa.record_batch({"thing_id": ["6"], "size": pa.array([6], pa.int64()), "deviceId": ["d"]})
    for step in STEPS:
        known = {field.name_in_records for field in step.source.fields}
        intake = ColumnarIntake(step.source, table.schema, io.BytesIO())
        intake.add(table)
        assert intake.finish().undeclared == [name for name in table.schema.names if name not in known]
