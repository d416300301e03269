"""Inference: the fields that would take records as they are, with what is not sure about each.

A field is declared so that every value that was seen fits. What no type fits stays in `_payload`, or becomes `json`.
"""

import datetime as dt
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from bronze.plurals import counted
from bronze.records.arrow_cast import BYTES_TYPES, LIST_TYPES, TEXT_TYPES, is_any, storage, storage_type
from bronze.records.fields import CHILD_NAME, DEPTH_MAX, PRECISION_MAX
from bronze.records.sources import ALIAS, CLASSIFICATION_ID, RESERVED

#: How many fields of an object are known by name; with more, it is a map or JSON.
FIELDS_MAX = 200
_INT64 = range(-(2**63), 2**63)
_EXACT_IN_A_DOUBLE = 2**53
#: Numbers that are probably times: from 2000 to 2100, in seconds and in milliseconds.
_SECONDS = range(946_684_800, 4_102_444_800)
_MILLISECONDS = range(946_684_800_000, 4_102_444_800_000)

_OFFSET_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_LOCAL_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_INTEGER = re.compile(r"-?(0|[1-9]\d{0,37})", re.ASCII)
_NUMBER = re.compile(r"-?(0|[1-9]\d{0,37})(\.\d{1,37})?([eE][+-]?\d{1,3})?", re.ASCII)
_NOT_IN_A_NAME = re.compile(r"[^a-z0-9]+")
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@dataclass
class Inferred:
    """The type of a field, as it is declared; None: it cannot be declared. `notes` say what is not sure."""

    type: str | None
    notes: list[str] = field(default_factory=list)
    timezone: str | None = None


@dataclass
class InferredField:
    """A field: its name in records, what was inferred, and in how many records it has a value."""

    name: str
    inferred: Inferred
    present: int


# --- values of JSON and CSV


class Shape:
    """What was seen of the values of one field, or of the items of its lists."""

    def __init__(self) -> None:
        self.values = 0
        self.nulls = 0
        self.kinds: set[type] = set()
        self.least: Decimal | int | None = None
        self.greatest: Decimal | int | None = None
        self.digits_before = 0
        self.digits_after = 0
        self.inexact = False
        self.unbounded = False
        self.text_forms: set[str] = set()
        self.fields: dict[str, Shape] = {}
        self.too_many_fields = False
        self.items: Shape | None = None

    def add(self, value: Any, *, text_is_typed: bool) -> None:
        """A value of JSON, its numbers being int or Decimal. `text_is_typed`: text can be a number, as in CSV."""
        if value is None:
            self.nulls += 1
            return
        self.values += 1
        if isinstance(value, str) and text_is_typed:
            value = _typed(value)
        self.kinds.add(type(value))
        if isinstance(value, bool):
            return
        if isinstance(value, (int, Decimal)):
            self._add_number(value)
        elif isinstance(value, str):
            self.text_forms.add(_form(value))
        elif isinstance(value, list):
            self.items = self.items or Shape()
            for item in value:
                self.items.add(item, text_is_typed=text_is_typed)
        elif isinstance(value, dict):
            self._add_fields(value, text_is_typed=text_is_typed)

    def _add_number(self, value: int | Decimal) -> None:
        number = Decimal(value)
        if not number.is_finite() or abs(number.adjusted()) > PRECISION_MAX:
            self.unbounded = True
            self.inexact = self.inexact or not math.isfinite(float(number))
            return
        self.least = value if self.least is None else min(self.least, value)
        self.greatest = value if self.greatest is None else max(self.greatest, value)
        self.digits_after = max(self.digits_after, -int(number.as_tuple().exponent))
        self.digits_before = max(self.digits_before, number.adjusted() + 1, 1)
        if isinstance(value, Decimal) and Decimal(repr(float(value))) != value:
            self.inexact = True
        if isinstance(value, int) and abs(value) > _EXACT_IN_A_DOUBLE:
            self.inexact = True

    def _add_fields(self, value: Mapping[str, Any], *, text_is_typed: bool) -> None:
        for name, member in value.items():
            if name not in self.fields:
                if len(self.fields) == FIELDS_MAX:
                    self.too_many_fields = True
                    continue
                self.fields[name] = Shape()
            self.fields[name].add(member, text_is_typed=text_is_typed)

    def inferred(self, depth: int = 0) -> Inferred:
        """The type that all values fit."""
        kinds = self.kinds
        if not kinds:
            return Inferred(None, ["always null"])
        if kinds == {bool}:
            return Inferred("bool")
        if kinds <= {int, Decimal}:
            return self._number()
        if kinds == {str}:
            return self._text()
        if kinds == {list} and self.items and depth < DEPTH_MAX:
            item = self.items.inferred(depth + 1)
            if item.type is None:
                return Inferred("json", ["its lists have no values"])
            if item.timezone:
                item = Inferred("string", ["times without an offset"])
            return Inferred(f"list<{item.type}>", item.notes)
        if kinds == {dict} and depth < DEPTH_MAX:
            return self._object(depth)
        names = ", ".join(sorted(_NAMES[kind] for kind in kinds))
        return Inferred("json", [f"values of several types ({names})"] if len(kinds) > 1 else ["nested too deeply"])

    def _number(self) -> Inferred:
        if self.kinds == {int} and self.least in _INT64 and self.greatest in _INT64 and not self.unbounded:
            for unit, plausible in (("s", _SECONDS), ("ms", _MILLISECONDS)):
                if self.least in plausible and self.greatest in plausible:
                    return Inferred("int64", [f'if it is a time: type = "timestamp", unit = "{unit}"'])
            return Inferred("int64")
        precision = self.digits_before + self.digits_after
        if self.inexact and not self.unbounded and precision <= PRECISION_MAX:
            return Inferred(
                f"decimal128({precision}, {self.digits_after})", ["more digits than a float64 holds; raise them"]
            )
        if self.inexact:
            return Inferred("json", ["numbers that no column type holds exactly"])
        return Inferred("float64", ["whole numbers and fractions"] if int in self.kinds else [])

    def _text(self) -> Inferred:
        forms = self.text_forms
        if forms == {"time"}:
            return Inferred("timestamp")
        if forms <= {"time", "local time"} and forms:
            return Inferred("timestamp", ["times without an offset: is UTC right?"], "UTC")
        if forms == {"date"}:
            return Inferred("date32")
        return Inferred("string")

    def _object(self, depth: int) -> Inferred:
        if not self.fields:
            return Inferred("json", ["objects without fields"])
        children = {name: shape.inferred(depth + 1) for name, shape in self.fields.items()}
        if self.too_many_fields or not all(map(CHILD_NAME.fullmatch, children)):
            kinds = {child.type for child in children.values()} - {None}
            if len(kinds) == 1 and not any(child.timezone for child in children.values()):
                return Inferred(f"map<string, {kinds.pop()}>")
            return Inferred("json", ["objects with names that a struct cannot have"])
        notes = [f"{name}: {note}" for name, child in children.items() for note in child.notes]
        typed = {
            name: "string" if child.timezone else child.type
            for name, child in children.items()
            if child.type is not None
        }
        if not typed:
            return Inferred("json", ["objects whose fields are always null"])
        return Inferred(f"struct<{', '.join(f'{name}: {kind}' for name, kind in typed.items())}>", notes)


_NAMES = {bool: "bool", int: "number", Decimal: "number", str: "text", list: "list", dict: "object"}


def _typed(text: str) -> object:
    """The value of a cell of CSV."""
    if _INTEGER.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text):
        return Decimal(text)
    return {"true": True, "false": False}.get(text.lower(), text)


def _form(text: str) -> str:
    try:
        if _OFFSET_TIME.fullmatch(text):
            dt.datetime.fromisoformat(text).astimezone(dt.UTC)
            return "time"
        if _LOCAL_TIME.fullmatch(text):
            dt.datetime.fromisoformat(text)
            return "local time"
        if _DATE.fullmatch(text):
            dt.date.fromisoformat(text)
            return "date"
    except (ValueError, OverflowError):
        pass
    return "text"


_decode = msgspec.json.Decoder(float_hook=Decimal).decode


class RecordShapes:
    """What was seen of the records of text files."""

    def __init__(self) -> None:
        self.records = 0
        self.objects = Shape()

    def add(self, record: bytes, *, text_is_typed: bool) -> None:
        """A record; what is no JSON object counts, but has no fields."""
        self.records += 1
        try:
            value = _decode(record)
        except (msgspec.DecodeError, RecursionError):
            return
        if isinstance(value, dict):
            self.objects.add(value, text_is_typed=text_is_typed)

    def fields(self) -> Iterator[InferredField]:
        for name, shape in self.objects.fields.items():
            yield InferredField(name, shape.inferred(), shape.values)


# --- columns


class ColumnShapes:
    """What was seen of the columns of one Parquet or Arrow file."""

    def __init__(self, schema: pa.Schema) -> None:
        self.records = 0
        self._schema = schema
        self._present = dict.fromkeys(schema.names, 0)
        self._greatest: dict[str, int] = {}
        self._finer: set[str] = set()

    def add(self, batch: pa.RecordBatch) -> None:
        self.records += batch.num_rows
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            self._present[name] += len(column) - column.null_count
            plain = storage_type(column.type)
            if types.is_uint64(plain):
                self._greatest[name] = max(self._greatest.get(name, 0), pc.max(storage(column)).as_py() or 0)
            if types.is_timestamp(plain) and plain.unit == "ns" and _has_nanoseconds(storage(column)):
                self._finer.add(name)

    def fields(self) -> Iterator[InferredField]:
        for column in self._schema:
            yield InferredField(column.name, self._inferred(column.name, column.type), self._present[column.name])

    def _inferred(self, name: str, given: pa.DataType) -> Inferred:
        if types.is_uint64(storage_type(given)) and self._greatest.get(name, 0) not in _INT64:
            return Inferred("decimal128(20, 0)", ["integers beyond int64"])
        if name in self._finer:
            return Inferred(None, ["its nanoseconds would be lost"])
        return _of_arrow(given)


def _has_nanoseconds(column: pa.Array) -> bool:
    try:
        column.cast(pa.timestamp("us", column.type.tz))
    except pa.ArrowInvalid:
        return True
    return False


def _of_arrow(given: pa.DataType, depth: int = 0) -> Inferred:
    given = storage_type(given)
    for kind, found in _ARROW:
        if kind(given):
            return Inferred(found)
    if is_any(given, *TEXT_TYPES):
        return Inferred("string")
    if is_any(given, *BYTES_TYPES, types.is_fixed_size_binary):
        return Inferred("binary")
    if types.is_timestamp(given):
        return Inferred("timestamp") if given.tz else Inferred("timestamp", ["no time zone: is UTC right?"], "UTC")
    if types.is_decimal(given) and 0 <= given.scale <= given.precision <= PRECISION_MAX:
        return Inferred(f"decimal128({given.precision}, {given.scale})")
    if types.is_nested(given) and depth < DEPTH_MAX:
        return _of_nested(given, depth + 1)
    return Inferred(None, [f"no type of a field is {given}"])


_ARROW: Sequence[tuple[Any, str]] = (
    (types.is_boolean, "bool"),
    (lambda given: types.is_int8(given) or types.is_int16(given) or types.is_int32(given), "int32"),
    (lambda given: types.is_uint8(given) or types.is_uint16(given), "int32"),
    (types.is_integer, "int64"),
    (lambda given: types.is_float16(given) or types.is_float32(given), "float32"),
    (types.is_float64, "float64"),
    (types.is_date, "date32"),
)


def _of_nested(given: pa.DataType, depth: int) -> Inferred:
    if is_any(given, *LIST_TYPES):
        return _of_children("list<{}>", [_of_arrow(given.value_type, depth)])
    if types.is_map(given) and is_any(storage_type(given.key_type), *TEXT_TYPES):
        return _of_children("map<string, {}>", [_of_arrow(given.item_type, depth)])
    if types.is_struct(given) and given.num_fields:
        names = [child.name for child in given]
        if len({*names}) == len(names) and all(map(CHILD_NAME.fullmatch, names)):
            form = f"struct<{', '.join(f'{name}: {{}}' for name in names)}>"
            return _of_children(form, [_of_arrow(child.type, depth) for child in given])
    return Inferred("json", [f"{given} has no other type"])


def _of_children(form: str, children: Sequence[Inferred]) -> Inferred:
    if any(child.type is None or child.timezone for child in children):
        return Inferred("json", ["a part of it has no other type"])
    return Inferred(
        form.format(*(child.type for child in children)), [note for child in children for note in child.notes]
    )


# --- the declaration


def declaration(name: str, files: int, records: int, found: Iterable[InferredField]) -> str:
    """The TOML text that declares a source with these fields. Names in records that are no names of columns become
    aliases.
    """
    declared: list[str] = []
    left_out: list[str] = []
    names: set[str] = set(RESERVED)
    for each in _merged(found):
        notes = [*each.inferred.notes, *_absences(each, records)]
        if each.name == CLASSIFICATION_ID:
            continue
        if each.inferred.type is None or not ALIAS.fullmatch(each.name):
            left_out.append(f"#   {_quoted(each.name)}: {'; '.join(notes) or 'a name that cannot be declared'}")
            continue
        column = _column_name(each.name, names)
        names.add(column)
        declared += [f"    # {note}" for note in notes]
        declared.append(f"    {{ {', '.join(_properties(column, each))} }},")
    seen = f"{counted(records, 'record')} in {counted(files, 'file')}"
    lines = [
        f"# Inferred by `bronze sources infer` from {seen}. Check it, and describe the fields.",
        f"[{name}]",
        'description = ""',
    ]
    if declared:
        lines += ["fields = [", *declared, "]"]
    else:
        lines += ["# no field that can be declared: each record stays in _payload", "raw = true"]
    if left_out:
        lines += ["# Not declared, so it is only in _payload:", *left_out]
    return "\n".join(lines) + "\n"


def _merged(found: Iterable[InferredField]) -> Iterator[InferredField]:
    """The fields of several files: of one name, there is one. Types that differ become `json`."""
    fields: dict[str, InferredField] = {}
    for each in found:
        known = fields.get(each.name)
        if known is None or (known.inferred.type is None and each.inferred.type is not None):
            fields[each.name] = InferredField(each.name, each.inferred, each.present + (known.present if known else 0))
            continue
        known.present += each.present
        pair = {known.inferred.type, each.inferred.type} - {None}
        if pair == {"int32", "int64"}:
            known.inferred = Inferred("int64", known.inferred.notes)
        elif len(pair) > 1:
            known.inferred = Inferred("json", [f"another type in another file: {', '.join(sorted(map(str, pair)))}"])
    yield from fields.values()


def _absences(each: InferredField, records: int) -> Iterator[str]:
    if each.inferred.type is not None and each.present < records:
        yield f"absent or null in {records - each.present:,} of {records:,} records"


def _properties(column: str, each: InferredField) -> Iterator[str]:
    yield f'name = "{column}"'
    if column != each.name:
        yield f"alias = {_quoted(each.name)}"
    yield f'type = "{each.inferred.type}"'
    if each.inferred.timezone:
        yield f'timezone = "{each.inferred.timezone}"'
    yield 'description = ""'


def _column_name(name: str, taken: set[str]) -> str:
    words = _NOT_IN_A_NAME.sub("_", _WORDS.sub("_", name).lower()).strip("_")
    base = (words if words[:1].isalpha() else f"f_{words}".rstrip("_"))[:60]
    column, number = base, 2
    while column in taken:
        column, number = f"{base[:57]}_{number}", number + 1
    return column


def _quoted(text: str) -> str:
    """A basic string of TOML."""
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007f")
