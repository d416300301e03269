"""The declared sources as the API describes them: fields, Arrow types, and a JSON Schema of the records.

A record that is valid by the schema (draft 2020-12) is accepted, except for rules that JSON Schema cannot express: an
integer has no fraction or exponent, and a record has limits of size and depth.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from pydantic import BaseModel
from pydantic import Field as Described

from bronze.records.columns import object_schema
from bronze.records.fields import FLOAT32_MAX, Field, FieldType, TimeUnit
from bronze.records.sources import CLASSIFICATION_ID, CLASSIFICATION_ID_CHARS_MAX, Source

FLOAT64_MAX = 1.7976931348623157e308

# [0-9] instead of \d, which matches more than ASCII digits in some implementations
_YEAR = "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
#: Without the first and the last year: in UTC, such a time may be in a year that is out of range.
_YEAR_INNER = "(?:000[2-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-8][0-9]{3}|9[0-8][0-9]{2}|99[0-8][0-9]|999[0-8])"
_MONTH_DAY = "(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
_BASE64 = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
_NUMBER = r"^-?[0-9]{1,20}(?:\.[0-9]+)?$"
_TIME = rf"{_YEAR_INNER}-{_MONTH_DAY}[Tt](?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?"
_OFFSET = "(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
#: The years 1 to 9999, in seconds since 1970.
_SECONDS_MIN, _SECONDS_MAX = -62_135_596_800, 253_402_300_799


class DeclaredSource(BaseModel):
    """A source, with the URLs to which its records are sent and where they are described."""

    name: str = Described(examples=["vehicles"])
    description: str
    version: int = Described(description="Version of the fields; it increases with each change.", examples=[1])
    ingest_url: str = Described(examples=["/v1/ingest/vehicles"])
    schema_url: str = Described(examples=["/v1/sources/vehicles/schema"])


class DeclaredSources(BaseModel):
    sources: list[DeclaredSource]


class DeclaredField(BaseModel):
    """A declared field; `since` is the version of the source that added it."""

    name: str
    type: str = Described(description="The declared type.", examples=["timestamp"])
    required: bool
    since: int
    description: str
    alias: str | None = Described(None, description="The name in records, if it is not that of the column.")
    timezone: str | None = Described(None, description="The time zone of times without an offset.")
    unit: TimeUnit | None = Described(None, description="The unit of times that are numbers since 1970, UTC.")
    widened_from: str | None = Described(None, description="The narrower type before the version `widened_since`.")
    widened_since: int | None = None


class Column(BaseModel):
    """A column of the objects: a declared field, or a column that Bronze adds."""

    name: str
    type: str
    nullable: bool


class ExpectedOfField(BaseModel):
    """What is expected of the values of a field; times are RFC 3339."""

    null_share_max: float | None = None
    min: int | float | str | None = None
    max: int | float | str | None = None
    values: list[int | str] | None = None
    distinct_max: int | None = None


class Expected(BaseModel):
    """What the declaration expects of the data. It is monitored, and refuses no record."""

    every_s: int | None = Described(None, description="New records come at least so often, in seconds.")
    records_per_hour_min: float | None = None
    fields: dict[str, ExpectedOfField] = {}


class SourceSchema(BaseModel):
    """The schema of a source: its records as they are sent, and the rows of its objects."""

    source: str
    description: str
    version: int
    fields: list[DeclaredField]
    columns: list[Column] = Described(description="The columns of its objects with their Arrow types, in order.")
    json_schema: dict[str, Any] = Described(description="JSON Schema (draft 2020-12) of a JSON record.")
    strict: bool = Described(description="Whether a record with a field that is not declared is refused.")
    expectations: Expected
    event_time: str | None = Described(None, description="The field that says when what a record is about happened.")


def listed(sources: Iterable[Source]) -> DeclaredSources:
    return DeclaredSources(
        sources=[
            DeclaredSource(
                name=source.name,
                description=source.description,
                version=source.version,
                ingest_url=f"/v1/ingest/{source.name}",
                schema_url=_schema_url(source),
            )
            for source in sources
        ]
    )


def described(source: Source) -> SourceSchema:
    return SourceSchema(
        source=source.name,
        description=source.description,
        version=source.version,
        fields=[
            DeclaredField(
                name=field.name,
                type=field.declared_type,
                required=field.required,
                since=field.since,
                description=field.description,
                alias=field.alias,
                timezone=field.timezone,
                unit=field.unit,
                widened_from=field.widened_from,
                widened_since=field.widened_since or None,
            )
            for field in source.fields
        ],
        columns=[
            Column(name=column.name, type=str(column.type), nullable=column.nullable)
            for column in object_schema(source)
        ],
        json_schema=json_schema(source),
        strict=source.strict,
        expectations=Expected.model_validate(msgspec.to_builtins(source.expectations)),
        event_time=source.event_time,
    )


def json_schema(source: Source) -> dict[str, Any]:
    """The JSON Schema of a source's records. A validator must treat `format` as an assertion."""
    classification_id = {
        "type": "string",
        "minLength": 1,
        "maxLength": CLASSIFICATION_ID_CHARS_MAX,
        "description": "The id of the classification that the record belongs to.",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": _schema_url(source),
        "title": source.name,
        "description": source.description,
        # a source without fields takes any JSON value
        **({} if source.is_raw else {"type": "object"}),
        "properties": {
            **{field.name_in_records: _property(field, strict=source.strict) for field in source.fields},
            CLASSIFICATION_ID: _or_null(classification_id),
        },
        "required": [field.name_in_records for field in source.fields if field.required],
        "additionalProperties": not source.strict,
    }


def _property(field: Field, *, strict: bool) -> Mapping[str, Any]:
    value = {"description": field.description, **_value(field, strict=strict)}
    return value if field.required else _or_null(value)


def _or_null(value: Mapping[str, Any]) -> Mapping[str, Any]:
    kinds = value.get("type", [])
    if not kinds:  # any value
        return value
    return {**value, "type": [*([kinds] if isinstance(kinds, str) else kinds), "null"]}


def _value(field: Field, *, strict: bool) -> dict[str, Any]:
    match field.type:
        case FieldType.STRING:
            return {"type": "string"}
        case FieldType.BOOL:
            return {"type": "boolean"}
        case FieldType.INT32:
            return {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1}
        case FieldType.INT64:
            return {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
        case FieldType.FLOAT32:
            return {"type": "number", "minimum": -FLOAT32_MAX, "maximum": FLOAT32_MAX}
        case FieldType.FLOAT64:
            return {"type": "number", "minimum": -FLOAT64_MAX, "maximum": FLOAT64_MAX}
        case FieldType.DECIMAL:
            return _decimal(field.precision, field.scale)
        case FieldType.BINARY:
            return {"type": "string", "contentEncoding": "base64", "pattern": _BASE64}
        case FieldType.JSON:
            return {"not": {"type": "null"}} if field.required else {}
        case FieldType.LIST:
            return {"type": "array", "items": _or_null(_value(field.children[0], strict=strict))}
        case FieldType.MAP:
            return {"type": "object", "additionalProperties": _or_null(_value(field.children[1], strict=strict))}
        case FieldType.STRUCT:
            children = {child.name: _or_null(_value(child, strict=strict)) for child in field.children}
            return {"type": "object", "properties": children, **({"additionalProperties": False} if strict else {})}
        case FieldType.TIMESTAMP if field.unit:
            return {"type": ["number", "string"], **_epoch_bounds(field.unit), "pattern": _NUMBER}
        case FieldType.TIMESTAMP if field.timezone:
            return {"type": "string", "pattern": f"^{_TIME}{_OFFSET}?$"}
        case FieldType.TIMESTAMP:
            return {
                "type": "string",
                "format": "date-time",
                "pattern": f"^{_TIME}{_OFFSET}$",
            }
        case FieldType.DATE:
            return {"type": "string", "format": "date", "pattern": f"^{_YEAR}-{_MONTH_DAY}$"}


def _decimal(precision: int, scale: int) -> dict[str, Any]:
    """A decimal as a string or a number: `pattern` applies to strings only, the other keywords to numbers only."""
    before = precision - scale
    whole = f"0*[0-9]{{1,{before}}}" if before else "0+"
    fraction = rf"(?:\.[0-9]{{1,{scale}}}0*)?" if scale else r"(?:\.0+)?"
    return {
        "type": ["string", "number"],
        "pattern": f"^-?{whole}{fraction}$",
        "multipleOf": float(f"1e-{scale}") if scale else 1,
        "exclusiveMinimum": -(10**before),
        "exclusiveMaximum": 10**before,
    }


def _epoch_bounds(unit: TimeUnit) -> dict[str, int]:
    per_second = int(10**6 / unit.microseconds)
    return {"minimum": _SECONDS_MIN * per_second, "maximum": _SECONDS_MAX * per_second}


def _schema_url(source: Source) -> str:
    return f"/v1/sources/{source.name}/schema"
