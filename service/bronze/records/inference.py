"""Inference: the fields that would take records as they are, with what is not sure about each.

A field is declared so that every value that was seen fits. What no type fits stays in `_payload`, or becomes `json`.
"""

import datetime as dt
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from bronze.plurals import counted
from bronze.records.arrow_cast import BYTES_TYPES, LIST_TYPES, TEXT_TYPES, castable, is_any, storage, storage_type
from bronze.records.declaration_text import column_name, quoted
from bronze.records.fields import CHILD_NAME, DEPTH_MAX, PRECISION_MAX
from bronze.records.sources import ALIAS, CLASSIFICATION_ID, CLASSIFICATION_ID_CHARS_MAX, RESERVED

#: Gives the value of a text, which may be a number.
ReadText = Callable[[str], object]
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
_COMMA_NUMBER = re.compile(r"-?(0|[1-9]\d{0,37}),\d{1,37}", re.ASCII)


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
        self.has_cells = False
        self.fields: dict[str, Shape] = {}
        self.too_many_fields = False
        self.items: Shape | None = None

    def add(self, value: Any, read_text: ReadText | None) -> None:
        """A value of JSON, its numbers being int or Decimal. `read_text` gives the value of a text that is a cell of
        CSV.
        """
        if value is None:
            self.nulls += 1
            return
        self.values += 1
        if isinstance(value, str) and read_text:
            self.has_cells = True
            value = read_text(value)
        self.kinds.add(type(value))
        if isinstance(value, bool):
            return
        if isinstance(value, (int, Decimal)):
            self._add_number(value)
        elif isinstance(value, str):
            form = _form(value)
            self.text_forms.add(form)
            if form == "number":
                self._add_number(Decimal(value))
        elif isinstance(value, list):
            self.items = self.items or Shape()
            for item in value:
                self.items.add(item, read_text)
        elif isinstance(value, dict):
            self._add_fields(value, read_text)

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

    def _add_fields(self, value: Mapping[str, Any], read_text: ReadText | None) -> None:
        for name, member in value.items():
            if name not in self.fields:
                if len(self.fields) == FIELDS_MAX:
                    self.too_many_fields = True
                    continue
                self.fields[name] = Shape()
            self.fields[name].add(member, read_text)

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
        notes = ["whole numbers and fractions"] if int in self.kinds else []
        if self.digits_after and not self.unbounded and precision <= PRECISION_MAX:
            notes.append(f"if every digit counts, as of money: {self._decimal(precision)}")
        return Inferred("float64", notes)

    def _decimal(self, precision: int) -> str:
        return f'type = "decimal128({precision}, {self.digits_after})", with as many digits as may come'

    def _text(self) -> Inferred:
        forms = self.text_forms
        if forms == {"time"}:
            return Inferred("timestamp")
        if forms <= {"time", "local time"} and forms:
            return Inferred("timestamp", ["times without an offset: is UTC right?"], "UTC")
        if forms == {"date"}:
            return Inferred("date32")
        if forms == {"decimal comma"}:
            if self.has_cells:
                note = "if these are numbers (decimal128, if they are money): infer and publish with --decimal-comma"
            else:
                note = "if these are numbers (decimal128, if they are money): send them with a point"
            return Inferred("string", [note])
        precision = self.digits_before + self.digits_after
        if forms == {"number"} and self.digits_after and not self.has_cells and precision <= PRECISION_MAX:
            return Inferred("string", [f"if these are numbers: {self._decimal(precision)}"])
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


def cell(text: str) -> object:
    """The value of a cell of CSV."""
    trimmed = text.strip(" \t")
    if _INTEGER.fullmatch(trimmed):
        return int(trimmed)
    if _NUMBER.fullmatch(trimmed):
        return Decimal(trimmed)
    return {"true": True, "false": False}.get(trimmed.lower(), text)


def cell_with_decimal_comma(text: str) -> object:
    """The same, if its numbers are written as 1,5. A point may separate thousands, so such a number stays text."""
    if _COMMA_NUMBER.fullmatch(text.strip(" \t")):
        return cell(text.replace(",", "."))
    return text if "." in text else cell(text)


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
        if _COMMA_NUMBER.fullmatch(text.strip(" \t")):
            return "decimal comma"
        if _NUMBER.fullmatch(text):
            return "number"
    except (ValueError, OverflowError):
        pass
    return "text"


_decode = msgspec.json.Decoder(float_hook=Decimal).decode

#: Why a source would refuse a record.
NOT_JSON = "not JSON, so they are refused"
NO_OBJECT = "no JSON objects, which only a raw source takes"
NO_CLASSIFICATION_ID = (
    f"{CLASSIFICATION_ID} is no text of 1 to {CLASSIFICATION_ID_CHARS_MAX} characters, so they are refused"
)


class RecordShapes:
    """What was seen of the records of text files. `records` is the number of those that are JSON."""

    def __init__(self) -> None:
        self.records = 0
        self.objects = Shape()

    def add(self, record: bytes, read_text: ReadText | None = None) -> str | None:
        """A record. Returns why a source with the fields that are inferred would refuse it. `read_text` as in `Shape`,
        in which a `classification_id` is text.
        """
        try:
            record.decode()
            value = _decode(record)
        except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
            return NOT_JSON
        self.records += 1
        if not isinstance(value, dict):
            return NO_OBJECT
        classification_id = value.pop(CLASSIFICATION_ID, None)
        self.objects.add(value, read_text)
        is_text = isinstance(classification_id, str) and 1 <= len(classification_id) <= CLASSIFICATION_ID_CHARS_MAX
        return None if classification_id is None or is_text else NO_CLASSIFICATION_ID

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

    def problem(self) -> str | None:
        """Why a source would refuse all rows of the file."""
        given = self._schema.field(CLASSIFICATION_ID).type if CLASSIFICATION_ID in self._schema.names else pa.string()
        return None if castable(given, pa.string()) else NO_CLASSIFICATION_ID

    def fields(self) -> Iterator[InferredField]:
        for column in self._schema:
            if column.name == CLASSIFICATION_ID:
                continue
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


def declaration(
    name: str, files: int, records: int, found: Iterable[InferredField], problems: Sequence[str] = ()
) -> str:
    """The TOML text that declares a source with these fields. Names in records that are no names of columns become
    aliases. `problems` say which records it does not take.
    """
    declared: list[str] = []
    left_out: list[str] = []
    names: set[str] = set(RESERVED)
    for each in _merged(found):
        notes = [*each.inferred.notes, *_absences(each, records)]
        if each.inferred.type is None or not ALIAS.fullmatch(each.name):
            left_out.append(f"#   {quoted(each.name)}: {'; '.join(notes) or 'a name that cannot be declared'}")
            continue
        column = column_name(each.name, names)
        names.add(column)
        declared += [f"    # {note}" for note in notes]
        declared.append(f"    {{ {', '.join(_properties(column, each))} }},")
    seen = f"{counted(records, 'record')} in {counted(files, 'file')}"
    lines = [
        f"# Inferred by `bronze sources infer` from {seen}. Check it, and describe the fields.",
        *(f"# {problem}" for problem in problems),
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
        yield f"alias = {quoted(each.name)}"
    yield f'type = "{each.inferred.type}"'
    if each.inferred.timezone:
        yield f'timezone = "{each.inferred.timezone}"'
    yield 'description = ""'
