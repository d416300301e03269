"""Casts of Arrow columns that either leave each value unaltered or fail."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import lib, types

_US = 10**6
_YEAR_1_DAYS, _YEAR_10000_DAYS = -719_162, 2_932_897
_DAY_S = 86_400
_UNREADABLE = (lib.Type_INTERVAL_MONTHS, lib.Type_INTERVAL_DAY_TIME)


def storage_type(given: pa.DataType) -> pa.DataType:
    """The type of the plain values of an extension, dictionary or run-end encoded type."""
    while True:
        if isinstance(given, pa.BaseExtensionType):
            given = given.storage_type
        elif types.is_dictionary(given) or types.is_run_end_encoded(given):
            given = given.value_type
        else:
            return given


def is_readable(given: pa.DataType) -> bool:
    """Whether PyArrow can read the values of a type. For two of Arrow's three intervals, it has no class."""
    kind = storage_type(given)
    return kind.id not in _UNREADABLE and all(is_readable(kind.field(index).type) for index in range(kind.num_fields))


def storage(column: pa.Array) -> pa.Array:
    """The plain values of a column: without extension types, dictionaries, runs and views, at any depth.

    Arrow lacks functions for some of them, and its cast of list views is wrong.
    """
    kind = column.type
    if not is_encoded(kind):
        return column
    if isinstance(kind, pa.BaseExtensionType):
        return storage(column.storage)
    if types.is_dictionary(kind):
        return storage(column.dictionary).take(column.indices)
    if types.is_run_end_encoded(kind):
        # Arrow expands runs of few types, numbers among them, and takes items of nearly all
        numbers = pa.array(range(len(column.values)), pa.int64())
        runs = pa.RunEndEncodedArray.from_arrays(column.run_ends, numbers).slice(column.offset, len(column))
        return storage(column.values).take(pc.run_end_decode(runs))
    if types.is_string_view(kind):
        return column.cast(pa.string())
    if types.is_binary_view(kind):
        return column.cast(pa.binary())
    if types.is_struct(kind):
        columns = list(map(storage, column.flatten()))
        return pa.StructArray.from_arrays(columns, [field.name for field in kind], mask=column.is_null())
    pairs = column.cast(pa.list_(pa.struct([kind.key_field, kind.item_field]))) if types.is_map(kind) else column
    lengths = pc.list_value_length(pairs).fill_null(0)
    offsets = pa.concat_arrays([pa.array([0], lengths.type), pc.cumulative_sum(lengths)])
    values = storage(pc.list_flatten(pairs))
    if types.is_map(kind):
        return pa.MapArray.from_arrays(offsets, *values.flatten(), mask=column.is_null())
    lists = pa.LargeListArray if types.is_int64(lengths.type) else pa.ListArray
    return lists.from_arrays(offsets, values, mask=column.is_null())


def is_encoded(given: pa.DataType) -> bool:
    """Whether a type, or one in it, is an extension, dictionary or run-end encoded type, or a view."""
    if storage_type(given) != given or is_any(given, *_VIEW_TYPES):
        return True
    if not types.is_nested(given) or types.is_union(given):
        return False
    return any(is_encoded(given.field(index).type) for index in range(given.num_fields))


def is_any(given: pa.DataType, *kinds: Callable[[pa.DataType], Any]) -> bool:
    return any(kind(given) for kind in kinds)


TEXT_TYPES = (types.is_string, types.is_large_string, types.is_string_view)
BYTES_TYPES = (types.is_binary, types.is_large_binary, types.is_binary_view)
NUMBER_TYPES = (types.is_integer, types.is_floating)
_VIEW_TYPES = (types.is_string_view, types.is_binary_view, types.is_list_view, types.is_large_list_view)
LIST_TYPES = (
    types.is_list,
    types.is_large_list,
    types.is_fixed_size_list,
    types.is_list_view,
    types.is_large_list_view,
)


def castable(given: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether the wanted type can hold some values of the given type unaltered; the cast then checks each value."""
    given = storage_type(given)
    if types.is_null(given):
        return True
    if types.is_nested(wanted):
        return _nested_castable(given, wanted)
    if types.is_binary(wanted):
        return is_any(given, *BYTES_TYPES, types.is_fixed_size_binary)
    if types.is_float32(wanted):
        return is_any(given, types.is_integer, types.is_float16, types.is_float32)
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


def _nested_castable(given: pa.DataType, wanted: pa.DataType) -> bool:
    if types.is_map(wanted):
        return types.is_map(given) and all(
            castable(*pair) for pair in ((given.key_type, wanted.key_type), (given.item_type, wanted.item_type))
        )
    if types.is_list(wanted):
        return is_any(given, *LIST_TYPES) and castable(given.value_type, wanted.value_type)
    if not types.is_struct(given):
        return False
    names = [child.name for child in given]
    return len({*names}) == len(names) and all(
        castable(given.field(child.name).type, child.type) for child in wanted if child.name in names
    )


def casts_all(given: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether the wanted type has a place for every part of the given one: its structs lack no field."""
    given = storage_type(given)
    if types.is_null(given) or not types.is_nested(wanted):
        return True
    if types.is_map(wanted):
        return casts_all(given.item_type, wanted.item_type)
    if types.is_list(wanted):
        return casts_all(given.value_type, wanted.value_type)
    places = {child.name: child.type for child in wanted}
    return all(child.name in places and casts_all(child.type, places[child.name]) for child in given)


def cast_unaltered(column: pa.Array, wanted: pa.DataType) -> pa.Array:
    """The column in the wanted type; raises `ArrowInvalid` if a value would be altered."""
    given = column.type
    if types.is_float16(given):
        column = column.cast(pa.float64())
    if types.is_decimal(wanted) and types.is_integer(given):
        column = column.cast(
            pa.decimal128(20, 0)
        )  # holds every integer, so that only values too large for `wanted` fail
    return column.cast(wanted)


def first_failing(fails: Callable[[int], bool], count: int) -> int:
    """The index of the first failing item: the last item of the shortest prefix, by its length, for which `fails`."""
    low, high = 1, count
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(middle) else (middle + 1, high)
    return low - 1


def first_outside_calendar(column: pa.Array) -> int | None:
    """The index of the first value with a time outside the years 1 to 9999 in UTC.

    Arrow could store such a time, but most readers could not read it.
    """
    if types.is_nested(column.type):
        if not _has_outside_calendar(column):
            return None
        return first_failing(lambda count: _has_outside_calendar(column.slice(0, count)), len(column))
    outside = outside_calendar(column)
    if outside is None:
        return None
    index: int = outside.index(pa.scalar(value=True)).as_py()
    return index if index >= 0 else None


def rows_outside_calendar(column: pa.Array) -> list[int]:
    """The indexes of all such values."""
    if types.is_nested(column.type):
        rows = range(len(column)) if _has_outside_calendar(column) else ()
        return [row for row in rows if _has_outside_calendar(column.slice(row, 1))]
    outside = outside_calendar(column)
    return [] if outside is None else pc.indices_nonzero(outside.fill_null(False)).to_pylist()


def outside_calendar(column: pa.Array) -> pa.Array | None:
    """Which times, in seconds or microseconds, or dates are outside those years; None for other columns."""
    if types.is_timestamp(column.type):
        integers, units_per_day = column.cast(pa.int64()), _DAY_S * (1 if column.type.unit == "s" else _US)
    elif types.is_date32(column.type):
        integers, units_per_day = column.cast(pa.int32()).cast(pa.int64()), 1
    else:
        return None
    return pc.or_(
        pc.less(integers, _YEAR_1_DAYS * units_per_day), pc.greater_equal(integers, _YEAR_10000_DAYS * units_per_day)
    )


def _has_outside_calendar(column: pa.Array) -> bool:
    kind = column.type
    if types.is_map(kind):
        column = column.cast(pa.list_(pa.struct([kind.key_field, kind.item_field])))
    if types.is_list(column.type):
        return _has_outside_calendar(pc.list_flatten(column))
    if types.is_struct(kind):
        return any(map(_has_outside_calendar, column.flatten()))
    return first_outside_calendar(column) is not None
