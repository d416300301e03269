"""What a declaration expects of the data of a source. Expectations refuse nothing: they are monitored.

They are no part of the registered declaration, so they may change at any time.
"""

import datetime as dt
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any

import msgspec

from bronze.records.fields import Field, FieldType

_PERIOD = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_UNIT_S = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
VALUES_MAX = 1000

#: The types that have an order, and the TOML types of their bounds.
_BOUNDS: Mapping[FieldType, tuple[type, ...]] = {
    **dict.fromkeys((FieldType.INT32, FieldType.INT64), (int,)),
    **dict.fromkeys((FieldType.FLOAT32, FieldType.FLOAT64, FieldType.DECIMAL), (int, float)),
    FieldType.TIMESTAMP: (dt.datetime,),
    FieldType.DATE: (dt.date,),
}
#: The types whose values can be listed.
_LISTED: Mapping[FieldType, type] = {FieldType.STRING: str, FieldType.INT32: int, FieldType.INT64: int}
#: The types that are stored with a dictionary, which knows the number of different values.
_COUNTED = frozenset({*_BOUNDS, *_LISTED} - {FieldType.TIMESTAMP})


class Expectation(StrEnum):
    """The expectations of a source, then those of a field."""

    EVERY = "every"
    RECORDS_PER_HOUR_MIN = "records_per_hour_min"
    NULL_SHARE_MAX = "null_share_max"
    MIN = "min"
    MAX = "max"
    VALUES = "values"
    DISTINCT_MAX = "distinct_max"


class InvalidExpectation(ValueError):
    """An expectation does not fit its field; the text says why, and what to do."""


class FieldExpectations(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The expectations of one field. `min` and `max` are numbers, times or dates, as the type of the field is."""

    null_share_max: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    min: Any = None
    max: Any = None
    values: tuple[str | int, ...] | None = None
    distinct_max: Annotated[int, msgspec.Meta(ge=1)] | None = None

    @property
    def limits(self) -> Mapping[Expectation, float]:
        """The limits that are numbers; times are seconds since 1970."""
        declared = {
            Expectation.NULL_SHARE_MAX: self.null_share_max,
            Expectation.MIN: None if self.min is None else number(self.min),
            Expectation.MAX: None if self.max is None else number(self.max),
            Expectation.DISTINCT_MAX: self.distinct_max,
        }
        return {name: limit for name, limit in declared.items() if limit is not None}


class Expectations(msgspec.Struct, frozen=True, omit_defaults=True):
    """The expectations of a source, and of its fields by name. `every_s`: new records come at least so often."""

    every_s: int | None = None
    records_per_hour_min: float | None = None
    fields: dict[str, FieldExpectations] = {}


class _OfSource(msgspec.Struct, forbid_unknown_fields=True):
    every: str | None = None
    records_per_hour_min: Annotated[float, msgspec.Meta(gt=0)] | None = None


def of_source(declared: Mapping[str, Any], fields: Mapping[str, FieldExpectations]) -> Expectations:
    """Raises `InvalidExpectation` or `msgspec.ValidationError`."""
    parsed = msgspec.convert(declared, _OfSource)
    every_s = None
    if parsed.every is not None:
        period = _PERIOD.fullmatch(parsed.every)
        if not period:
            raise InvalidExpectation(f"every = {parsed.every!r} is no period: write 30s, 10m, 2h or 7d")
        every_s = int(period[1]) * _UNIT_S[period[2]]
    return Expectations(every_s, parsed.records_per_hour_min, dict(fields))


def of_field(declared: Mapping[str, Any], field: Field) -> FieldExpectations:
    """Raises `InvalidExpectation` or `msgspec.ValidationError`."""
    expected = msgspec.convert(declared, FieldExpectations)
    _check_bounds(expected, field)
    if expected.values is not None:
        listed = _LISTED.get(field.type)
        if listed is None:
            raise InvalidExpectation(f"values belongs to fields of the types {', '.join(_LISTED)}")
        if not 1 <= len(expected.values) <= VALUES_MAX or any(type(value) is not listed for value in expected.values):
            raise InvalidExpectation(f"values must be a list of 1 to {VALUES_MAX} values of the type {field.type}")
    if expected.distinct_max is not None and field.type not in _COUNTED:
        raise InvalidExpectation(f"distinct_max belongs to fields of the types {', '.join(sorted(_COUNTED))}")
    return expected


def _check_bounds(expected: FieldExpectations, field: Field) -> None:
    for name, bound in (("min", expected.min), ("max", expected.max)):
        if bound is None:
            continue
        kinds = _BOUNDS.get(field.type)
        if kinds is None:
            raise InvalidExpectation(f"{name} belongs to fields of the types {', '.join(_BOUNDS)}")
        local = isinstance(bound, dt.datetime) and bound.tzinfo is None
        if type(bound) not in kinds or local or not math.isfinite(number(bound)):
            raise InvalidExpectation(f"{name} must be {_FORMS[kinds[-1]]}, since the field is a {field.type}")
    if expected.min is not None and expected.max is not None and expected.min > expected.max:
        raise InvalidExpectation(f"min = {expected.min} is above max = {expected.max}")


_FORMS: Mapping[type, str] = {
    int: "a number without fraction",
    float: "a number",
    dt.datetime: "a time with an offset, such as 2026-01-01T00:00:00Z",
    dt.date: "a date, such as 2026-01-01",
}


def period(seconds: int) -> str:
    """A period as it is declared, in its largest unit: 600 is 10m."""
    return next(f"{seconds // size}{unit}" for unit, size in _UNIT_S.items() if seconds % size == 0)


def number(value: float | Decimal | dt.date) -> float:
    """A value as a number: times and dates as seconds since 1970."""
    if isinstance(value, dt.datetime):
        return value.timestamp()
    if isinstance(value, dt.date):
        return (value - dt.date(1970, 1, 1)).total_seconds()
    return float(value)
