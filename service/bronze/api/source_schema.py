"""The declared sources as the API describes them: fields, Arrow types, and a JSON Schema of the records.

A record that is valid by the schema (draft 2020-12) is accepted, except for rules that JSON Schema cannot express: an
integer has no fraction or exponent, and a record has limits of size and depth.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic import Field as Described

from bronze.records.columns import object_schema
from bronze.records.sources import CLASSIFICATION_ID, CLASSIFICATION_ID_CHARS_MAX, Field, FieldType, Source

FLOAT64_MAX = 1.7976931348623157e308

# [0-9] instead of \d, which matches more than ASCII digits in some implementations
_YEAR = "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
#: Without the first and the last year: in UTC, such a time may be in a year that is out of range.
_YEAR_INNER = "(?:000[2-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-8][0-9]{3}|9[0-8][0-9]{2}|99[0-8][0-9]|999[0-8])"
_MONTH_DAY = "(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"


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


class Column(BaseModel):
    """A column of the objects: a declared field, or a column that Bronze adds."""

    name: str
    type: str
    nullable: bool


class SourceSchema(BaseModel):
    """The schema of a source: its records as they are sent, and the rows of its objects."""

    source: str
    description: str
    version: int
    fields: list[DeclaredField]
    columns: list[Column] = Described(description="The columns of its objects with their Arrow types, in order.")
    json_schema: dict[str, Any] = Described(description="JSON Schema (draft 2020-12) of a JSON record.")


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
            )
            for field in source.fields
        ],
        columns=[
            Column(name=column.name, type=str(column.type), nullable=column.nullable)
            for column in object_schema(source)
        ],
        json_schema=json_schema(source),
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
        "type": "object",
        "properties": {
            **{field.name: _property(field) for field in source.fields},
            CLASSIFICATION_ID: _or_null(classification_id),
        },
        "required": [field.name for field in source.fields if field.required],
        "additionalProperties": True,
    }


def _property(field: Field) -> Mapping[str, Any]:
    value = {"description": field.description, **_value(field)}
    return value if field.required else _or_null(value)


def _or_null(value: Mapping[str, Any]) -> Mapping[str, Any]:
    kinds = value["type"]
    return {**value, "type": [*([kinds] if isinstance(kinds, str) else kinds), "null"]}


def _value(field: Field) -> dict[str, Any]:
    match field.type:
        case FieldType.STRING:
            return {"type": "string"}
        case FieldType.BOOL:
            return {"type": "boolean"}
        case FieldType.INT64:
            return {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
        case FieldType.FLOAT64:
            return {"type": "number", "minimum": -FLOAT64_MAX, "maximum": FLOAT64_MAX}
        case FieldType.DECIMAL:
            return _decimal(field.precision, field.scale)
        case FieldType.TIMESTAMP:
            return {"type": "string", "format": "date-time", "pattern": f"^{_YEAR_INNER}-{_MONTH_DAY}[Tt]{_TIME}$"}
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


def _schema_url(source: Source) -> str:
    return f"/v1/sources/{source.name}/schema"
