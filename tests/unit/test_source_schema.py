"""The API accepts what a source's JSON Schema accepts; and the reverse, for records that clients really send."""

import json
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.api import source_schema
from bronze.errors import Refused
from bronze.records import sources
from bronze.records.columns import object_schema
from bronze.records.fields import Field, FieldType
from bronze.records.json_intake import JsonIntake
from bronze.records.sources import Source

FIELDS = (
    Field("s", FieldType.STRING, "d", required=True),
    Field("b", FieldType.BOOL, "d"),
    Field("i", FieldType.INT64, "d"),
    Field("f", FieldType.FLOAT64, "d"),
    Field("n", FieldType.DECIMAL, "d", precision=6, scale=2),
    Field("small", FieldType.DECIMAL, "d", precision=3, scale=3),
    Field("whole", FieldType.DECIMAL, "d", precision=38),
    Field("t", FieldType.TIMESTAMP, "d"),
    Field("d", FieldType.DATE, "d", since=2),
)
SOURCE = Source("things", "Things.", 2, FIELDS)
SCHEMA = jsonschema_rs.Draft202012Validator(source_schema.json_schema(SOURCE), validate_formats=True)


def accepts(record: str) -> bool:
    """Whether the API accepts a record, as JSON."""
    intake = JsonIntake(SOURCE, body_bytes_max=2**20, spool_memory_bytes_max=2**20)
    try:
        intake.add_lines(record.encode() + b"\n")
    except Refused:
        return False
    finally:
        intake.close()
    return True


@pytest.mark.parametrize("source", [SOURCE, *sources.built_in().values()], ids=lambda source: source.name)
def test_the_schema_is_a_valid_json_schema(source: Source) -> None:
    """By draft 2020-12, also after it was sent as JSON."""
    schema = json.loads(source_schema.described(source).model_dump_json())["json_schema"]
    assert schema == source_schema.json_schema(source)
    jsonschema_rs.meta.validate(schema)
    assert schema["required"] == [field.name for field in source.fields if field.required]


#: A field, a value, and whether the value is accepted.
CASES: list[tuple[str, str, bool]] = [
    *(("s", value, True) for value in ('""', '"\\u00e9\u4e2d"', '"2013"')),
    *(("s", value, False) for value in ("null", "1", "[]", "true")),
    *(("b", value, True) for value in ("true", "false", "null")),
    *(("b", value, False) for value in ("0", '"true"')),
    *(("i", value, True) for value in ("0", "-1", "9223372036854775807", "-9223372036854775808", "null")),
    *(("i", value, False) for value in ("1.5", "9223372036854775808", '"1"', "true", "1e30")),
    *(("f", value, True) for value in ("0", "1.5", "-1e308", "1e-400", "12345678901234567890123", "null")),
    *(("f", value, False) for value in ('"1.5"', "true", '"NaN"')),
    *(("n", value, True) for value in ('"1.50"', "1.5", "-9999.99", '"-9999.99"', "1e3", '"007"', '"1.500"', "null")),
    *(("n", value, False) for value in ("1.505", "10000", '"10000"', '"1.505"', '""', '"NaN"', '"1,5"', "true", "[]")),
    *(("small", value, True) for value in ("0.125", '"0.125"', "-0.5", "0", '"0"')),
    *(("small", value, False) for value in ("1", '"1"', '"0.1234"', "0.0001")),
    *(("whole", value, True) for value in (f'"{"9" * 38}"', "1", "1.0", '"-3.0"')),
    *(("whole", value, False) for value in (f'"{"9" * 39}"', "1.5", '"1.5"')),
    *(
        ("t", f'"{value}"', True)
        for value in (
            "2013-01-01T05:15:00Z",
            "2013-01-01t05:15:00z",
            "2012-02-29T05:15:00.123456789+05:30",
            "0002-01-01T00:00:00+14:00",
            "9998-12-31T23:59:59-12:00",
        )
    ),
    *(
        ("t", value, False)
        for value in (
            '"2013-01-01T05:15:00"',
            '"2013-01-01"',
            '"2013-02-29T05:15:00Z"',
            '"2013-01-01T23:59:60Z"',
            '"2013-01-01T05:15Z"',
            '"2013-01-01T05:15:00+24:00"',
            '"0000-01-01T00:00:00Z"',
            '"0001-01-01T00:00:00+14:00"',
            "1357017300",
        )
    ),
    *(("d", f'"{value}"', True) for value in ("2013-01-01", "2012-02-29", "0001-01-01", "9999-12-31")),
    *(("d", value, False) for value in ('"2013-02-29"', '"0000-01-01"', '"2013-1-1"', '"2013-01-01T00:00:00Z"', "1")),
    *(("classification_id", value, True) for value in ('"run"', f'"{"x" * 256}"', "null")),
    *(("classification_id", value, False) for value in ('""', f'"{"x" * 257}"', "1")),
    *(("undeclared", value, True) for value in ("{}", "null", "[1.5]")),
]


@pytest.mark.parametrize(("name", "value", "accepted"), CASES)
def test_schema_and_api_agree(name: str, value: str, *, accepted: bool) -> None:
    record = f'{{"{name}": {value}}}' if name == "s" else f'{{"s": "", "{name}": {value}}}'
    assert (SCHEMA.is_valid(json.loads(record)), accepts(record)) == (accepted, accepted)


@pytest.mark.parametrize("record", ["{}", "[]", "1", "null", '"s"'])
def test_schema_and_api_refuse_json_that_is_not_a_record(record: str) -> None:
    assert (SCHEMA.is_valid(json.loads(record)), accepts(record)) == (False, False)


_DIGITS = st.from_regex(r"-?[0-9]{1,5}(\.[0-9]{1,4})?", fullmatch=True)
_MOMENTS = st.datetimes(timezones=st.timezones()).map(lambda time: time.isoformat())
_DATES = st.dates().map(str) | st.from_regex(r"[0-9]{4}-[0-3][0-9]-[0-3][0-9]", fullmatch=True)
_VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False).filter(lambda value: not value.is_integer())
    | st.text()
    | _DIGITS
    | st.decimals(-20_000, 20_000, places=3, allow_nan=False).map(float).filter(lambda value: not value.is_integer())
    | _MOMENTS
    | _DATES
    | st.tuples(_DATES, st.sampled_from(["T12:00:00Z", "T23:59:60Z", " 12:00:00Z", "T24:00:00Z"])).map("".join)
)


@settings(max_examples=300)
@given(st.sampled_from([*(field.name for field in FIELDS), "classification_id"]), _VALUES)
def test_the_api_accepts_what_the_schema_accepts(name: str, value: Any) -> None:
    record = {"s": "", name: value}
    if SCHEMA.is_valid(record):
        assert accepts(json.dumps(record))


def test_the_described_columns_are_those_of_the_objects() -> None:
    described = source_schema.described(SOURCE)
    assert [(column.name, column.type) for column in described.columns] == [
        (column.name, str(column.type)) for column in object_schema(SOURCE)
    ]
    assert [(field.name, field.type, field.required, field.since) for field in described.fields] == [
        ("s", "string", True, 1),
        ("b", "bool", False, 1),
        ("i", "int64", False, 1),
        ("f", "float64", False, 1),
        ("n", "decimal128(6, 2)", False, 1),
        ("small", "decimal128(3, 3)", False, 1),
        ("whole", "decimal128(38, 0)", False, 1),
        ("t", "timestamp", False, 1),
        ("d", "date32", False, 2),
    ]
