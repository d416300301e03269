"""Fields that a source does not declare: an accepted body says which it has, and a strict source refuses them."""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jsonschema_rs
import pyarrow as pa
import pytest

from bronze.api import source_schema
from bronze.errors import Misconfigured, Refusal, Refused
from bronze.publisher.batches import Batch
from bronze.publisher.checking import _problems
from bronze.publisher.formats import ANY_CSV
from bronze.publisher.text_files import csv_records
from bronze.records import sources
from bronze.records.columnar_intake import ColumnarIntake, ReadBody
from bronze.records.json_intake import SEARCHED_BYTES_MAX, JsonIntake
from bronze.records.media import NDJSON, ColumnarType
from bronze.records.sources import Source, incompatibility
from bronze.records.spool import CheckedSubmission
from bronze.records.undeclared import LISTED_MAX, NAME_CHARS_MAX, NAMES_MAX
from tests import factories

OPEN = sources.parse(
    """
    [things]
    description = "-"
    fields = [
        { name = "thing_id", type = "string", required = true, description = "-" },
        { name = "device", type = "string", alias = "deviceId", description = "-" },
        { name = "price", type = "decimal128(9, 2)", description = "-" },
        { name = "places", type = "list<struct<city: string, at: struct<x: int64>>>", description = "-" },
        { name = "by_name", type = "map<string, struct<x: int64>>", description = "-" },
        { name = "anything", type = "json", description = "-" },
    ]
    """,
    "things.toml",
)["things"]
STRICT = replace(OPEN, strict=True)
FLAT = replace(OPEN, fields=OPEN.fields[:2])


@dataclass(frozen=True)
class Taken:
    """What an accepted JSON body became."""

    submission: CheckedSubmission
    payloads: list[bytes]


def json_intake(records: bytes, source: Source = OPEN, *, document: bool = False, quarantine: bool = False) -> Taken:
    intake = JsonIntake(source, body_bytes_max=2**30, spool_memory_bytes_max=2**20, quarantine_rejected=quarantine)
    try:
        (intake.add_document if document else intake.add_lines)(records)
        checked = intake.finish()
        return Taken(checked, [payload for _, payload in checked.parts(factories.accepted())])
    finally:
        intake.close()


def undeclared(records: bytes, source: Source = OPEN, *, document: bool = False) -> tuple[str, ...]:
    return json_intake(records, source, document=document).submission.undeclared


def lines(*records: Mapping[str, object]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def columns(table: Mapping[str, Any], source: Source = OPEN) -> ReadBody:
    batch = pa.record_batch(table)
    intake = ColumnarIntake(source, batch.schema, io.BytesIO())
    intake.add(batch)
    return intake.finish()


def refused(act: Callable[[], object]) -> Refused:
    with pytest.raises(Refused) as refusal:
        act()
    return refusal.value


THING = {"thing_id": "1", "classification_id": "c", "deviceId": "d", "anything": {"any": 1}}
#: What a record has in addition, and the names that are found.
UNDECLARED: list[tuple[Mapping[str, object], tuple[str, ...]]] = [
    ({}, ()),
    ({"colour": None}, ("colour",)),
    ({"colour": "red", "size": 1}, ("colour", "size")),
    ({"device": "the name of the column"}, ("device",)),
    ({"places": [{"city": "a"}, {"city": "b", "zip": 1}, None]}, ("places.zip",)),
    ({"places": [{"at": {"x": 1, "y": 2}}], "by_name": {"any": {"x": 1}}}, ("places.at.y",)),
    ({"by_name": {"any": {"z": 1}, "none": None}}, ("by_name.z",)),
    ({"places": None, "by_name": {}}, ()),
]


@pytest.mark.parametrize(("more", "names"), UNDECLARED)
@pytest.mark.parametrize("document", [False, True])
def test_the_names_of_undeclared_fields_are_found_in_json(
    more: Mapping[str, object], names: tuple[str, ...], *, document: bool
) -> None:
    assert undeclared(lines({**THING, **more}), document=document) == names


@pytest.mark.parametrize(("more", "names"), UNDECLARED)
@pytest.mark.parametrize("document", [False, True])
def test_a_strict_source_refuses_undeclared_fields_and_names_them(
    more: Mapping[str, object], names: tuple[str, ...], *, document: bool
) -> None:
    """Also in structs; the JSON Schema says the same."""
    record = {**THING, **more}
    schema = jsonschema_rs.Draft202012Validator(source_schema.json_schema(STRICT), validate_formats=True)
    assert schema.is_valid(record) is not bool(names)
    assert jsonschema_rs.Draft202012Validator(source_schema.json_schema(OPEN)).is_valid(record)
    body = lines(THING, record)
    if document:
        body = b"[" + body.replace(b"\n", b",").rstrip(b",") + b"]"
    if not names:
        assert json_intake(body, STRICT, document=document).submission.records == 2
        return
    error = refused(lambda: json_intake(body, STRICT, document=document))
    assert error.code is Refusal.SCHEMA_VIOLATION
    assert error.members == {"record": 1, "field": names[0]}
    assert error.detail.startswith(f"Record 1, field {names[0]}: not declared")
    assert "declare each field, or set strict = false in the declaration of the source" in error.detail
    assert all(name in error.detail for name in names)


def test_a_strict_source_says_first_what_does_not_fit_its_declared_fields() -> None:
    error = refused(lambda: json_intake(lines({"colour": 1, "thing_id": 2}), STRICT))
    assert error.members["field"] == "thing_id"


def test_a_strict_source_keeps_records_with_undeclared_fields_in_quarantine_if_asked() -> None:
    body = lines(THING, {**THING, "colour": "red"}, THING)
    taken = json_intake(body, STRICT, quarantine=True)
    assert (taken.submission.records, taken.submission.rejected_by_code) == (2, {"schema-violation": 1})
    rejected = taken.payloads[-1]
    assert b"not declared" in rejected
    assert b'"field":"colour"' in rejected


#: The columns that a body has in addition, and the names that are found.
COLUMNS: list[tuple[Mapping[str, Any], list[str]]] = [
    ({}, []),
    ({"colour": pa.nulls(1)}, ["colour"]),
    ({"device": ["the name of the column"], "size": [1]}, ["device", "size"]),
    ({"places": [[{"city": "a", "zip": 1}]]}, ["places.zip"]),
    ({"places": [[{"at": {"x": 1, "y": 2}}]]}, ["places.at.y"]),
    ({"by_name": pa.array([[("a", {"z": 1})]], pa.map_(pa.string(), pa.struct([("z", pa.int64())])))}, ["by_name.z"]),
    ({"anything": [{"any": 1}]}, []),
    ({"places": pa.nulls(1)}, []),
]


@pytest.mark.parametrize(("more", "names"), COLUMNS)
def test_the_names_of_undeclared_columns_are_found(more: Mapping[str, Any], names: list[str]) -> None:
    assert columns({"thing_id": ["1"], **more}).undeclared == names


@pytest.mark.parametrize(("more", "names"), COLUMNS)
def test_a_strict_source_refuses_undeclared_columns_and_names_them(more: Mapping[str, Any], names: list[str]) -> None:
    table = {"thing_id": ["1"], **more}
    if not names:
        assert columns(table, STRICT).undeclared == []
        return
    error = refused(lambda: columns(table, STRICT))
    assert error.code is Refusal.SCHEMA_VIOLATION
    assert error.members == {"field": names[0]}
    assert all(name in error.detail for name in names)


def test_a_dry_run_reports_what_a_strict_source_refuses() -> None:
    """CSV and JSON lines by record, and columns by column."""
    csv = io.BytesIO(b"thing_id,colour\n1,red\n2,\n")
    text = b"".join(record for _, record in csv_records("a.csv", csv, lambda: STRICT, None, ANY_CSV))
    table = pa.table({"thing_id": ["1", "2"], "colour": ["red", None]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for body, media_type in ((text, NDJSON), (sink.getvalue().to_pybytes(), ColumnarType.ARROW_STREAM)):
        batch = Batch("a", body, (1, 2), 0, media_type=media_type)
        found = _problems(STRICT, batch)
        assert [(problem.record, problem.field) for problem in found] == [(0, "colour"), (1, "colour")]
        assert all("not declared" in problem.reason and "strict = false" in problem.reason for problem in found)
        assert not _problems(OPEN, batch)


@pytest.mark.parametrize("source", [OPEN, STRICT])
def test_a_record_that_is_nested_too_deeply_is_refused_as_such(source: Source) -> None:
    """Wherever it is found: the search of structs goes as deep as the check."""
    codes = set()
    for depth in (100, 300, 900, 960, 1_000, 1_100, 5_000):
        deep = b"[" * depth + b"]" * depth
        record = b'{"thing_id": "1", "places": [{"city": "a", "zip": ' + deep + b"}]}"
        try:
            json_intake(record, source)
        except Refused as error:
            codes.add((error.code, error.members.get("field")))
    undeclared_too = {(Refusal.SCHEMA_VIOLATION, "places.zip")} if source.strict else set()
    assert codes == {(Refusal.MALFORMED_JSON, None), *undeclared_too}


# --- names are chosen by senders


def test_a_field_that_one_record_of_many_has_is_found() -> None:
    """Though only some records are searched for the others."""
    records = [{"thing_id": str(number), "deviceId": "d"} for number in range(3_000)]
    records[1_234]["rare"] = "1"
    assert undeclared(lines(*records), FLAT) == ("rare",)


def test_names_are_bounded_in_number_and_length_and_printable() -> None:
    many = {f"field_{number}": number for number in range(5 * NAMES_MAX)}
    assert len(undeclared(lines({**THING, **many}))) == NAMES_MAX + 1
    assert len(columns({"thing_id": ["1"], **{name: [1] for name in many}}).undeclared) == NAMES_MAX + 1
    hostile = {"\x1b[31m\n": 1, "x" * 1_000: 1, "": 1, "\N{RIGHT-TO-LEFT OVERRIDE}a": 1}
    shown = ("\\x1b[31m\\x0a", "x" * NAME_CHARS_MAX, '""', "\\x202ea")
    assert undeclared(lines({**THING, **hostile})) == shown
    assert tuple(columns({"thing_id": ["1"], **{name: [1] for name in hostile}}).undeclared) == shown
    error = refused(lambda: json_intake(lines({**THING, **many}), STRICT))
    assert f"and {NAMES_MAX + 1 - LISTED_MAX} more" in error.detail
    assert len(error.detail) < 1_000


def test_a_large_record_is_not_searched_but_its_first_undeclared_field_is_known() -> None:
    names = {f"`f{number}`\n": number for number in range(SEARCHED_BYTES_MAX)}
    assert undeclared(lines({"thing_id": "1", **names}), FLAT) == ("`f0`\\x0a",)


def test_a_raw_source_has_no_undeclared_fields() -> None:
    raw = Source("raw", "-", 1, ())
    assert undeclared(lines({"colour": 1}), raw) == ()
    assert json_intake(lines({"colour": 1}), raw, quarantine=True).submission.undeclared == ()


# --- the declaration


def test_strict_is_declared_for_a_source_with_fields() -> None:
    field = 'fields = [{ name = "a", type = "string", description = "-" }]'
    assert sources.parse(f'[s]\ndescription = "-"\nstrict = true\n{field}', "f")["s"].strict
    with pytest.raises(Misconfigured, match="strict = true is for a source with fields"):
        sources.parse('[s]\ndescription = "-"\nraw = true\nstrict = true', "f")


@pytest.mark.parametrize(("old", "new"), [(OPEN, STRICT), (STRICT, OPEN)])
def test_strict_may_change_in_both_directions_and_at_any_version(old: Source, new: Source) -> None:
    """It concerns new records only: what is stored or waits is read as before."""
    assert incompatibility(old.schema, new.schema) is None
    assert incompatibility(old.schema, replace(new, version=2).schema) is None
