"""Casts of Arrow columns that either leave each value unaltered or fail."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

_US = 10**6
_YEAR_1_DAYS, _YEAR_10000_DAYS = -719_162, 2_932_897
_DAY_US = 86_400 * _US


def storage_type(given: pa.DataType) -> pa.DataType:
    """The type of the plain values of an extension, dictionary or run-end encoded type."""
    while True:
        if isinstance(given, pa.BaseExtensionType):
            given = given.storage_type
        elif types.is_dictionary(given) or types.is_run_end_encoded(given):
            given = given.value_type
        else:
            return given


def storage(column: pa.Array) -> pa.Array:
    """The plain values of an extension, dictionary or run-end encoded column."""
    while True:
        if isinstance(column.type, pa.BaseExtensionType):
            column = column.storage
        elif types.is_dictionary(column.type):
            column = column.dictionary_decode()
        elif types.is_run_end_encoded(column.type):
            column = pc.run_end_decode(column)
        else:
            return column


def is_any(given: pa.DataType, *kinds: Callable[[pa.DataType], Any]) -> bool:
    return any(kind(given) for kind in kinds)


TEXT_TYPES = (types.is_string, types.is_large_string, types.is_string_view)
BYTES_TYPES = (types.is_binary, types.is_large_binary, types.is_binary_view)
NUMBER_TYPES = (types.is_integer, types.is_floating)


def castable(given: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether the wanted type can hold some values of the given type unaltered; the cast then checks each value."""
    if types.is_null(given):
        return True
    if types.is_string(wanted):
        return is_any(given, *TEXT_TYPES, *BYTES_TYPES)
    if types.is_boolean(wanted):
        return is_any(given, types.is_boolean)
    if types.is_integer(wanted):
        return is_any(given, *NUMBER_TYPES, types.is_decimal)
    if types.is_floating(wanted):
        return is_any(given, *NUMBER_TYPES)
    if types.is_timestamp(wanted):
        return is_any(given, types.is_timestamp) and given.tz is not None
    if types.is_date(wanted):
        return is_any(given, types.is_date)
    return is_any(wanted, types.is_decimal) and is_any(given, types.is_decimal, types.is_integer)


def cast_unaltered(column: pa.Array, wanted: pa.DataType) -> pa.Array:
    """The column in the wanted type; raises `ArrowInvalid` if a value would be altered."""
    given = column.type
    if types.is_binary_view(given):
        column = column.cast(pa.binary())
    if types.is_float16(given):
        column = column.cast(pa.float64())
    if types.is_decimal(wanted) and types.is_integer(given):
        column = column.cast(
            pa.decimal128(20, 0)
        )  # holds every integer, so that only values too large for `wanted` fail
    return column.cast(wanted)


def fails_to_cast(column: pa.Array, wanted: pa.DataType) -> bool:
    try:
        cast_unaltered(column, wanted)
    except pa.ArrowInvalid:
        return True
    return False


def first_failing(fails: Callable[[int], bool], count: int) -> int:
    """The index of the first failing item: the last item of the shortest prefix, by its length, for which `fails`."""
    low, high = 1, count
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(middle) else (middle + 1, high)
    return low - 1


def first_outside_calendar(column: pa.Array) -> int | None:
    """The index of the first time outside the years 1 to 9999 in UTC.

    Arrow could store such a time, but most readers could not read it.
    """
    if types.is_timestamp(column.type):
        integers, units_per_day = column.cast(pa.int64()), _DAY_US
    elif types.is_date32(column.type):
        integers, units_per_day = column.cast(pa.int32()).cast(pa.int64()), 1
    else:
        return None
    outside = pc.or_(
        pc.less(integers, _YEAR_1_DAYS * units_per_day), pc.greater_equal(integers, _YEAR_10000_DAYS * units_per_day)
    )
    index: int = outside.index(pa.scalar(value=True)).as_py()
    return index if index >= 0 else None
