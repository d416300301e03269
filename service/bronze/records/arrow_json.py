"""Converts the values of Arrow columns to JSON values."""

import base64
import datetime as dt
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from bronze.records.arrow_cast import BYTES_TYPES, is_any, storage

#: Fractions of a second, and how many digits they have, by the unit of a time.
_UNITS = {"s": (1, 0), "ms": (10**3, 3), "us": (10**6, 6), "ns": (10**9, 9)}
_DAY_S = 86_400
_DAY_MS = _DAY_S * 1000
#: The first days since 1970 of the years 0 and 10000.
_FOUR_DIGIT_YEARS = -719_528, 2_932_897
#: The calendar repeats after 400 years; the ordinal of the first day of the year 400.
_CYCLE_DAYS = 146_097
_CYCLE_ORDINAL = dt.date(400, 1, 1).toordinal()


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
        return _times(column)
    if types.is_date(kind):
        days = column.cast(pa.int32()) if types.is_date32(kind) else pc.divide(column.cast(pa.int64()), _DAY_MS)
        return [None if day is None else _date(day) for day in days.to_pylist()]
    if types.is_time(kind):
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


def _times(column: pa.Array) -> list[Any]:
    """RFC 3339; a year that has no four digits has a sign and at least six digits, as in ISO 8601 and ECMAScript."""
    unit, zone = column.type.unit, "" if column.type.tz is None else "Z"
    per_second, digits = _UNITS[unit]
    numbers = column.cast(pa.int64())
    first, last = (max(-(2**63), min(2**63 - 1, day * _DAY_S * per_second)) for day in _FOUR_DIGIT_YEARS)
    usual = pc.and_(pc.greater_equal(numbers, first), pc.less(numbers, last))
    # Arrow's text is fast, and wrong or an error message for other years
    texts = pc.if_else(usual, column, None).cast(pa.timestamp(unit, "UTC" if zone else None)).cast(pa.string())
    values = [None if text is None else text.replace(" ", "T", 1) for text in texts.to_pylist()]
    for index in pc.indices_nonzero(pc.invert(usual)).to_pylist():
        seconds, fraction = divmod(numbers[index].as_py(), per_second)
        day, second = divmod(seconds, _DAY_S)
        time = f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
        values[index] = f"{_date(day)}T{time}{f'.{fraction:0{digits}}' if digits else ''}{zone}"
    return values


def _date(day: int) -> str:
    """The date of a day since 1970, of any year."""
    cycle, day_of_cycle = divmod(day - _FOUR_DIGIT_YEARS[0], _CYCLE_DAYS)
    date = dt.date.fromordinal(_CYCLE_ORDINAL + day_of_cycle)
    year = 400 * cycle + date.year - 400
    return f"{year:04}-{date:%m-%d}" if 0 <= year <= 9999 else f"{year:+07}-{date:%m-%d}"


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
