"""Converts the columns of a columnar body to those of declared fields: a cast, or what the declaration says."""

from collections.abc import Sequence

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from bronze.records.arrow_cast import TEXT_TYPES, cast_unaltered, castable, is_any
from bronze.records.arrow_json import json_values
from bronze.records.columns import arrow_type
from bronze.records.fields import Field, FieldType


def convertible(given: pa.DataType, field: Field) -> bool:
    """Whether a column of a type can have values for the field; `convert` then checks each value."""
    if field.type is FieldType.JSON:
        return True
    if field.unit and is_any(given, types.is_integer):
        return True
    if field.timezone and types.is_timestamp(given) and given.tz is None:
        return True
    return castable(given, arrow_type(field))


def convert(column: pa.Array, field: Field) -> pa.Array:
    """The column of the field. Raises `ArrowInvalid` if a value would be altered, or is none of the field."""
    wanted = arrow_type(field)
    if field.type is FieldType.JSON:
        return pa.array(_json_texts(column), wanted)
    if field.unit and types.is_integer(column.type):
        column = column.cast(pa.int64()).cast(pa.timestamp(field.unit.value, "UTC"))
    elif field.timezone and types.is_timestamp(column.type) and column.type.tz is None:
        local = column.cast(pa.timestamp("us"))
        return pc.assume_timezone(local, field.timezone, ambiguous="earliest", nonexistent="raise").cast(wanted)
    return cast_unaltered(column, wanted)


def _json_texts(column: pa.Array) -> Sequence[str | None]:
    """Text is JSON already; other values become JSON. A JSON null is null."""
    if not is_any(column.type, *TEXT_TYPES):
        values = json_values(column)
        return [None if value is None else msgspec.json.encode(value).decode() for value in values]
    texts = column.to_pylist()
    for text in texts:
        if text is not None:
            try:
                msgspec.json.decode(text, type=msgspec.Raw)
            except (msgspec.DecodeError, RecursionError) as error:
                raise pa.ArrowInvalid(f"the text is not JSON: {error}") from error
    return [None if text is not None and text.strip() == "null" else text for text in texts]
