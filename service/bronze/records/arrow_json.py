"""Converts the values of Arrow columns to JSON values."""

import base64
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from bronze.records.arrow_cast import BYTES_TYPES, is_any, storage


def json_values(column: pa.Array) -> list[Any]:
    """A column's values as JSON values.

    Integers and finite floats become numbers. Decimals become strings, and so do floats that JSON numbers cannot
    express (`NaN`, `Infinity`, `-Infinity`), dates and times (RFC 3339, in UTC if the type has a zone) and bytes
    (base64). A duration becomes a number in its unit, an interval `[months, days, nanoseconds]`, a map a list of pairs.
    """
    column = storage(column)
    kind = column.type
    if types.is_floating(kind):
        column = column.cast(pa.float64())
        finite = pc.all(pc.is_finite(column), min_count=0).as_py()
        return list(column.to_pylist()) if finite else [_number(value) for value in column.to_pylist()]
    if types.is_decimal(kind):
        return [None if value is None else format(value, "f") for value in column.to_pylist()]
    if is_any(kind, *BYTES_TYPES, types.is_fixed_size_binary):
        return [None if value is None else base64.b64encode(value).decode() for value in column.to_pylist()]
    if types.is_timestamp(kind):
        if kind.tz is not None:
            column = column.cast(pa.timestamp(kind.unit, "UTC"))
        return [None if value is None else value.replace(" ", "T", 1) for value in column.cast(pa.string()).to_pylist()]
    if types.is_date(kind) or types.is_time(kind):
        return list(column.cast(pa.string()).to_pylist())
    if types.is_duration(kind):
        return list(column.cast(pa.int64()).to_pylist())
    if types.is_interval(kind):
        return [None if value is None else list(value) for value in column.to_pylist()]
    if types.is_struct(kind):
        return _structs(column, [field.name for field in kind])
    if types.is_map(kind):
        pairs = column.cast(pa.list_(pa.struct([kind.key_field, kind.item_field])))
        flat = pc.list_flatten(pairs)
        return _lists(pairs, [list(pair) for pair in zip(*map(json_values, flat.flatten()), strict=True)])
    if types.is_nested(kind) and not types.is_union(kind):
        return _lists(column, json_values(pc.list_flatten(column)))
    if types.is_union(kind):
        return [json_values(pa.repeat(scalar.value, 1))[0] for scalar in column]
    return list(column.to_pylist())


def _number(value: float | None) -> float | str | None:
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _structs(column: pa.Array, names: Sequence[str]) -> list[Any]:
    columns = [json_values(child) for child in column.flatten()]
    rows = zip(*columns, strict=True) if columns else [()] * len(column)
    # a struct may have several fields of the same name, which a JSON object cannot express
    container = dict if len(set(names)) == len(names) else list
    return [
        container(zip(names, row, strict=True)) if valid else None
        for row, valid in zip(rows, column.is_valid().to_pylist(), strict=True)
    ]


def _lists(column: pa.Array, values: list[Any]) -> list[Any]:
    lists: list[Any] = []
    start = 0
    for length in pc.list_value_length(column).to_pylist():
        lists.append(None if length is None else values[start : start + length])
        start += length or 0
    return lists
