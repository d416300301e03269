"""What the declaration of a source expects of its data, with what the monitors found last, as the page shows it."""

import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bronze.api.formats import format_duration, format_timestamp
from bronze.api.glance import Glance
from bronze.records.expectations import Expectation, period
from bronze.records.fields import FieldType
from bronze.records.sources import Source

#: How many of the values that are expected are listed.
VALUES_MAX = 10
_TIMES = frozenset({FieldType.TIMESTAMP, FieldType.DATE})


@dataclass(frozen=True, slots=True)
class ExpectationRow:
    """An expectation as it is declared. `field` is "" if it is one of the source; `found` is "" without a number.

    `met` is None if nobody knows.
    """

    field: str
    expectation: Expectation
    limit: str
    found: str
    met: bool | None


def expectation_rows(source: Source, glance: Glance | None) -> list[ExpectationRow]:
    """Each expectation of a source, then those of its fields. Without verdicts, the rules do not work."""
    known = glance is not None and bool(glance.verdicts)
    types = {field.name: field.type for field in source.fields}
    rows = []
    for field, expectation, limit in _declared(source):
        key = (source.name, field, expectation.value)
        found = glance.found.get(key) if glance else None
        rows.append(
            ExpectationRow(
                field,
                expectation,
                limit,
                "" if found is None else _found(expectation, found, types.get(field)),
                key not in glance.broken if glance and known else None,
            )
        )
    return rows


def _declared(source: Source) -> Iterator[tuple[str, Expectation, str]]:
    expected = source.expectations
    if expected.every_s is not None:
        yield "", Expectation.EVERY, period(expected.every_s)
    if expected.records_per_hour_min is not None:
        yield "", Expectation.RECORDS_PER_HOUR_MIN, _number(expected.records_per_hour_min)
    for field in source.fields:
        of_field: Mapping[Expectation, Any] = {
            expectation: getattr(expected.fields.get(field.name), expectation.value, None)
            for expectation in Expectation
        }
        yield from (
            (field.name, expectation, _limit(limit)) for expectation, limit in of_field.items() if limit is not None
        )


def _limit(limit: Any) -> str:
    match limit:
        case dt.datetime():
            return format_timestamp(limit.isoformat())
        case dt.date():
            return limit.isoformat()
        case tuple():
            more = f" (+{len(limit) - VALUES_MAX})" if len(limit) > VALUES_MAX else ""
            return ", ".join(str(value) for value in limit[:VALUES_MAX]) + more
        case _:
            return _number(limit)


def _found(expectation: Expectation, value: float, type_: FieldType | None) -> str:
    match expectation:
        case Expectation.EVERY:
            return f"the newest record is {format_duration(value)} old"
        case Expectation.RECORDS_PER_HOUR_MIN:
            return f"{_number(value)} in the last hour"
        case Expectation.NULL_SHARE_MAX:
            return f"{value:.3g}"
        case Expectation.MIN | Expectation.MAX if type_ in _TIMES:
            return _time(value, type_)
        case _:
            return _number(value)


def _time(seconds: float, type_: FieldType | None) -> str:
    try:
        at = dt.datetime.fromtimestamp(seconds, dt.UTC)
    except (OverflowError, OSError, ValueError):  # anybody may send any number
        return _number(seconds)
    return at.date().isoformat() if type_ is FieldType.DATE else format_timestamp(at.isoformat())


def _number(value: float) -> str:
    return f"{value:,.10g}"
