"""Declarations from a data contract in the Open Data Contract Standard (ODCS, of Bitol), versions 3.x.

What a contract says and a declaration cannot is named in comments: rules on values, owners, service levels and so on.
"""

import datetime as dt
import re
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import yaml

from bronze.admin.data_contract import (
    EVENT_TIME,
    EXPECT,
    KIND,
    RETENTION_DAYS,
    SINCE,
    STRICT,
    UNIT,
    VERSION,
    WIDENED_FROM,
    WIDENED_SINCE,
)
from bronze.errors import Misconfigured
from bronze.printable import printable
from bronze.records import expectations, sources
from bronze.records.declaration_text import column_name, quoted
from bronze.records.expectations import InvalidExpectation
from bronze.records.fields import CHILD_NAME, DEPTH_MAX, PRECISION_MAX, InvalidType, parse_type
from bronze.records.sources import ALIAS, CLASSIFICATION_ID, NAME, RESERVED

#: How much of a value that is not kept is shown, in characters.
_SHOWN_MAX = 60
_DECIMAL = re.compile(r"(?:decimal|numeric|number)(?:128)?\((\d{1,2})(?:, ?(\d{1,2}))?\)", re.IGNORECASE)
#: Physical types whose values are decimals or times; those of SQL and of warehouses.
_IN_DECIMALS = re.compile(r"(big|small)?(decimal|numeric|money)", re.IGNORECASE)
_IN_TIMES = re.compile(r"(small)?(timestamp|datetime)", re.IGNORECASE)
_WITH_ZONE = re.compile(r"tz|with (local )?time zone|offset", re.IGNORECASE)
#: A time or a date, as TOML writes it.
_TIME = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d))?", re.ASCII)
_INTEGERS = {
    **dict.fromkeys(("i8", "i16", "i32", "u8", "u16"), "int32"),
    **dict.fromkeys(("i64", "u32"), "int64"),
    "u64": "decimal128(20, 0)",
    "i128": f"decimal128({PRECISION_MAX}, 0)",
    "u128": f"decimal128({PRECISION_MAX}, 0)",
}
#: What a declaration has a place for; the rest of a contract is named in comments.
_HELD_OF_CONTRACT = {"apiVersion", "kind", "id", "name", "version", "status", "schema"}
_HELD_OF_OBJECT = {"id", "name", "logicalType", "physicalType", "physicalName", "description", "properties"}
_HELD_OF_PROPERTY = {
    "id",
    "name",
    "physicalName",
    "logicalType",
    "physicalType",
    "required",
    "description",
    "properties",
    "items",
    "map",
}
#: What says the same as its absence.
_DEFAULTS: Mapping[str, object] = {
    "unique": False,
    "primaryKey": False,
    "primaryKeyPosition": -1,
    "partitioned": False,
    "partitionKeyPosition": -1,
    "criticalDataElement": False,
    "deprecated": False,
}


@dataclass
class _Typed:
    """The type of a declaration, with what is not sure about it."""

    type: str
    notes: list[str] = field(default_factory=list)
    timezone: str | None = None
    unit: str | None = None


def declarations(text: str, origin: str) -> str:
    """The TOML text that declares a source for each object of a contract. Raises `Misconfigured`."""
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise Misconfigured(f"{origin}: not YAML: {printable(' '.join(str(error).split()))}") from error
    if not isinstance(document, Mapping) or document.get("kind") != KIND:
        raise Misconfigured(f"{origin}: not a data contract: it has to be a mapping with kind: {KIND}")
    version = str(document.get("apiVersion", ""))
    if not version.startswith("v3."):
        raise Misconfigured(f"{origin}: apiVersion is {printable(version) or 'missing'}; only v3 can be read")
    objects = [item for item in _list(document, "schema", origin) if isinstance(item, Mapping)]
    if not objects:
        raise Misconfigured(f"{origin}: the contract has no schema: there is nothing to declare")
    title = " ".join(str(document[key]) for key in ("name", "version") if document.get(key))
    head = [
        f"# Imported by `bronze sources import` from the data contract {printable(title)}. Check it.",
        *_not_kept(document, _HELD_OF_CONTRACT),
    ]
    names: set[str] = {sources.CANARY}
    parts = ["\n".join(_source(item, names, origin)) for item in objects]
    result = "\n".join(head) + "\n" + "\n\n".join(parts) + "\n"
    sources.parse(result, origin)
    return result


def _source(item: Mapping[str, Any], names: set[str], origin: str) -> Iterator[str]:
    given = str(item.get("name") or item.get("physicalName") or "source")
    name = _name(given, names)
    custom = _custom(item)
    own = VERSION in custom
    if name != given:
        yield f"# {printable(given)} in the contract"
    yield from _not_kept(item, _HELD_OF_OBJECT, custom, {VERSION, STRICT, EVENT_TIME, RETENTION_DAYS, EXPECT})
    yield f"[{name}]"
    yield f"description = {quoted(str(item.get('description') or ''))}"
    if _number(custom.get(VERSION)) > 1:
        yield f"version = {_number(custom[VERSION])}"
    if custom.get(STRICT) is True:
        yield "strict = true"
    if isinstance(event_time := custom.get(EVENT_TIME), str):
        yield f"event_time = {quoted(event_time)}"
    if own and _number(custom.get(RETENTION_DAYS)) > 0:
        yield f"retention_days = {_number(custom[RETENTION_DAYS])}"
    if own and isinstance(expected := custom.get(EXPECT), Mapping):
        yield f"expect = {_inline(expected)}"
    properties = [each for each in _list(item, "properties", origin) if isinstance(each, Mapping)]
    lines: list[str] = []
    columns: set[str] = set(RESERVED)
    in_records: set[str] = set()
    for each in properties:
        lines += _field(each, columns, in_records, own=own)
    if any(not line.lstrip().startswith("#") for line in lines):
        yield "fields = ["
        yield from lines
        yield "]"
    else:
        yield from lines
        yield "raw = true"


def _field(each: Mapping[str, Any], columns: set[str], in_records: set[str], *, own: bool) -> Iterator[str]:
    name = str(each.get("name") or each.get("physicalName") or "")
    in_record = str(each.get("physicalName") or name)
    if in_record == CLASSIFICATION_ID:
        return
    if not ALIAS.fullmatch(in_record) or in_record in in_records:
        yield f"    # {_shown(in_record)} is not declared: such a name in records is not possible, or given twice"
        return
    in_records.add(in_record)
    column = _name(name, columns)
    custom = _custom(each)
    typed = _own_type(each, custom) if own else None
    notes: Sequence[str] = []
    if typed is None:
        typed = _type(each)
        notes = typed.notes
    expected = custom.get(EXPECT) if own else _bounds(each, typed.type)
    used = {SINCE, UNIT, WIDENED_FROM, WIDENED_SINCE, EXPECT} if own else set()
    held = _HELD_OF_PROPERTY | {"logicalTypeOptions"} | ({"quality"} if own and expected else set())
    kept = {"minimum", "maximum"} if expected else set()
    yield from (f"    # {note}" for note in notes)
    yield from (f"    {line}" for line in chain(_not_kept(each, held, custom, used), _options_not_kept(each, kept)))
    properties = [f'name = "{column}"']
    if in_record != column:
        properties.append(f"alias = {quoted(in_record)}")
    properties.append(f'type = "{typed.type}"')
    if each.get("required") is True:
        properties.append("required = true")
    if typed.timezone:
        properties.append(f"timezone = {quoted(typed.timezone)}")
    if typed.unit:
        properties.append(f"unit = {quoted(typed.unit)}")
    if own:
        properties += _of_versions(custom)
    properties.append(f"description = {quoted(str(each.get('description') or ''))}")
    if isinstance(expected, Mapping) and expected:
        properties.append(f"expect = {_inline(expected, times=typed.type in {'timestamp', 'date32'})}")
    yield f"    {{ {', '.join(properties)} }},"


def _name(given: str, taken: set[str]) -> str:
    """The given name, or one like it that is possible and not taken."""
    name = given if NAME.fullmatch(given) and given not in taken else column_name(given, taken)
    taken.add(name)
    return name


def _bounds(each: Mapping[str, Any], declared: str) -> Mapping[str, object]:
    """The least and the greatest value that a contract allows, if they can be expected of this type."""
    options = _options(each)
    given = {short: options.get(long) for short, long in (("min", "minimum"), ("max", "maximum"))}
    expected = {name: _bound(value, declared) for name, value in given.items() if value is not None}
    try:
        expectations.of_field(expected, parse_type(declared, "field"))
    except InvalidExpectation:
        return {}
    return expected


def _bound(value: object, declared: str) -> object:
    """A bound as the type declares it: a number without fraction, a time or a date. Others are returned as they are."""
    if declared in {"int32", "int64"} and isinstance(value, float) and value.is_integer():
        return int(value)
    if declared in {"date32", "timestamp"} and isinstance(value, str) and _TIME.fullmatch(value):
        read = dt.date if declared == "date32" else dt.datetime
        with suppress(ValueError):
            return read.fromisoformat(value)
    return value


def _inline(values: Mapping[Any, object], *, times: bool = False) -> str:
    """An inline table of TOML. `times`: text in it is times or dates."""

    def item(value: object) -> str:
        if isinstance(value, list):
            return f"[{', '.join(map(item, value))}]"
        if isinstance(value, str):
            return value if times and _TIME.fullmatch(value) else quoted(value)
        return value.isoformat() if isinstance(value, dt.date) else str(value)

    return (
        f"{{ {', '.join(f'{name} = {item(value)}' for name, value in values.items() if NAME.fullmatch(str(name)))} }}"
    )


def _of_versions(custom: Mapping[str, object]) -> Iterator[str]:
    if _number(custom.get(SINCE)) > 1:
        yield f"since = {_number(custom[SINCE])}"
    if WIDENED_FROM in custom:
        yield f"widened_from = {quoted(str(custom[WIDENED_FROM]))}"
        yield f"widened_since = {_number(custom.get(WIDENED_SINCE))}"


# --- types


def _own_type(each: Mapping[str, Any], custom: Mapping[str, object]) -> _Typed | None:
    """The type of a field that was exported."""
    try:
        declared = parse_type(str(each.get("physicalType")), "field").declared_type
    except InvalidType:
        return None
    options = _options(each)
    zone = options.get("defaultTimezone") if options.get("timezone") is False else None
    unit = custom.get(UNIT)
    return _Typed(declared, timezone=str(zone) if zone else None, unit=str(unit) if unit else None)


def _type(each: Mapping[str, Any], depth: int = 0) -> _Typed:
    """The type for values of a logical type, or else of a physical one."""
    options = _options(each)
    physical = str(each.get("physicalType") or "")
    if depth > DEPTH_MAX:
        return _Typed("json", ["nested too deeply"])
    match each.get("logicalType"):
        case "string":
            return _Typed("binary" if options.get("format") in {"byte", "binary"} else "string")
        case "boolean":
            return _Typed("bool")
        case "integer":
            return _integer(options, physical)
        case "number":
            return _any_number(options, physical)
        case "timestamp" | "date" as logical:
            return _date_or_time(str(logical), options, physical)
        case "time":
            return _Typed("string", ["there is no type for a time of day"])
        case "array":
            return _array(each, depth)
        case "object":
            return _object(each, depth)
        case "map":
            return _map(each, depth)
        case "vector":
            return _Typed("list<float32>", ["the length of a vector is not checked"])
        case _:
            return _of_physical(physical)


def _of_physical(physical: str) -> _Typed:
    if decimal := _decimal(physical):
        return _Typed(decimal)
    try:
        return _Typed(parse_type(physical.lower(), "field").declared_type)
    except InvalidType:
        return _Typed("json", [f"no logical type, and no type of a field is {_shown(physical)}"])


def _decimal(physical: str) -> str | None:
    if (found := _DECIMAL.fullmatch(physical.strip())) is None:
        return None
    precision, scale = int(found[1]), int(found[2] or 0)
    return f"decimal128({precision}, {scale})" if 0 <= scale <= precision <= PRECISION_MAX and precision else None


def _integer(options: Mapping[str, Any], physical: str) -> _Typed:
    decimal = _DECIMAL.fullmatch(physical.strip())
    if decimal and int(decimal[2] or 0) and (typed := _decimal(physical)):
        return _Typed(typed, [f"an integer in the contract, but its physicalType is {_shown(physical)}"])
    return _Typed(_INTEGERS.get(str(options.get("format", "i64")), "int64"))


def _any_number(options: Mapping[str, Any], physical: str) -> _Typed:
    if decimal := _decimal(physical):
        return _Typed(decimal)
    notes = []
    if _IN_DECIMALS.match(physical.strip()):
        notes = [f"if every digit counts: decimal128 instead; its physicalType is {_shown(physical)}"]
    return _Typed("float32" if options.get("format") == "f32" else "float64", notes)


def _date_or_time(logical: str, options: Mapping[str, Any], physical: str) -> _Typed:
    """Which of both the values are, is said by the physical type, or else by the format: versions before 3.1 of the
    standard have no logical type for times.
    """
    in_times, in_dates = _IN_TIMES.match(physical.strip()), physical.strip().lower() in {"date", "date32"}
    form = str(options.get("format") or "")
    if logical == "date" and (in_times or re.search("[Hh]", form)):
        with_zone = re.search("[XxZ]$", form) or (in_times and _WITH_ZONE.search(physical))
        typed = _timestamp({"timezone": bool(with_zone), **options})
        why = f"physicalType is {_shown(physical)}" if in_times else "format has a time of day"
        return _Typed(typed.type, [f"a date in the contract, but its {why}", *typed.notes], timezone=typed.timezone)
    if logical == "timestamp" and in_dates:
        return _Typed("date32", [f"a timestamp in the contract, but its physicalType is {_shown(physical)}"])
    return _Typed("date32") if logical == "date" else _timestamp(options)


def _timestamp(options: Mapping[str, Any]) -> _Typed:
    if options.get("timezone") is True:
        return _Typed("timestamp")
    zone = options.get("defaultTimezone")
    notes = [] if zone else ["times without an offset: is UTC right?"]
    return _Typed("timestamp", notes, timezone=str(zone or "UTC"))


def _array(each: Mapping[str, Any], depth: int) -> _Typed:
    items = each.get("items")
    if not isinstance(items, Mapping):
        return _Typed("json", ["a list of items without a type"])
    item = _type(items, depth + 1)
    return _Typed(f"list<{_inner(item)}>", [*item.notes, *_inner_notes("items", items, item)])


def _object(each: Mapping[str, Any], depth: int) -> _Typed:
    children = [child for child in each.get("properties") or () if isinstance(child, Mapping)]
    names = [str(child.get("physicalName") or child.get("name")) for child in children]
    if not children or len({*names}) < len(names) or not all(map(CHILD_NAME.fullmatch, names)):
        return _Typed("json", ["an object with no properties, or with names that a struct cannot have"])
    typed = [_type(child, depth + 1) for child in children]
    notes = [
        note
        for name, child, kind in zip(names, children, typed, strict=True)
        for note in (*(f"{name}: {note}" for note in kind.notes), *_inner_notes(name, child, kind))
    ]
    return _Typed(f"struct<{', '.join(f'{n}: {_inner(t)}' for n, t in zip(names, typed, strict=True))}>", notes)


def _map(each: Mapping[str, Any], depth: int) -> _Typed:
    parts = each.get("map")
    key, value = (parts.get("key"), parts.get("value")) if isinstance(parts, Mapping) else (None, None)
    if not isinstance(key, Mapping) or not isinstance(value, Mapping) or key.get("logicalType") != "string":
        return _Typed("json", ["a map whose keys are not strings"])
    typed = _type(value, depth + 1)
    return _Typed(f"map<string, {_inner(typed)}>", [*typed.notes, *_inner_notes("values", value, typed)])


def _inner(typed: _Typed) -> str:
    """The type in another one, where times have no zone."""
    return "string" if typed.timezone else typed.type


def _inner_notes(name: str, each: Mapping[str, Any], typed: _Typed) -> Iterator[str]:
    """What a type in another one does not say of its values."""
    if typed.timezone:
        yield f"{name}: times without an offset remain text"
    if each.get("required") is True:
        yield f"{name}: required, but a value in another one may be null"
    held = {*_HELD_OF_PROPERTY, "logicalTypeOptions"}
    for line in chain(_not_kept(each, held), _options_not_kept(each)):
        yield f"{name}: {line.removeprefix('# ')}"


# --- what is not kept


def _not_kept(
    element: Mapping[str, Any],
    held: set[str],
    custom: Mapping[str, object] | None = None,
    used: set[str] | None = None,
) -> Iterator[str]:
    for key, value in element.items():
        if key == "customProperties":
            continue
        if key not in held and value is not None and value != _DEFAULTS.get(key, ()):
            yield f"# not kept: {_shown(key)} = {_shown(value)}"
    for key, value in (_custom(element) if custom is None else custom).items():
        if key not in (used or ()):
            yield f"# not kept: {_shown(key)} = {_shown(value)}"


def _options_not_kept(each: Mapping[str, Any], also_kept: AbstractSet[str] = frozenset()) -> Iterator[str]:
    """The options of a logical type that restrict its values."""
    kept = {"timezone", "defaultTimezone", *also_kept}
    formats = {*_INTEGERS, "f32", "f64", "byte", "binary", "yyyy-MM-dd"}
    for key, value in _options(each).items():
        if key not in kept and not (key == "format" and value in formats):
            yield f"# not kept: {_shown(key)} = {_shown(value)}"


def _shown(value: object) -> str:
    """A value of a contract, on one line of a comment."""
    text = printable(str(value))
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}..."


# --- reading


def _list(element: Mapping[str, Any], key: str, origin: str) -> Sequence[Any]:
    value = element.get(key)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise Misconfigured(f"{origin}: {key} has to be a list")
    return value


def _options(each: Mapping[str, Any]) -> Mapping[str, Any]:
    options = each.get("logicalTypeOptions")
    return options if isinstance(options, Mapping) else {}


def _custom(element: Mapping[str, Any]) -> Mapping[str, object]:
    given = element.get("customProperties")
    if not isinstance(given, list):
        return {}
    return {str(item.get("property")): item.get("value") for item in given if isinstance(item, Mapping)}


def _number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
