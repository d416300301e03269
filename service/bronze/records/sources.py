"""Sources: the declared kinds of data. They are data, not code: one TOML file declares them.

A source's fields are typed by Arrow types. What a record holds beyond them is never lost: it stays in `_payload`.
`version` counts the changes of a source's fields; a change is additive, or it is refused (`docs/sources.md`).
"""

import datetime as dt
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Context, Decimal, Inexact, InvalidOperation
from enum import StrEnum
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from bronze.errors import Misconfigured

CLASSIFICATION_ID = "classification_id"
CLASSIFICATION_ID_CHARS_MAX = 256

#: Names that a declared field may not take: columns of ours and the partition keys of the object's path.
RESERVED = frozenset({CLASSIFICATION_ID, "file_path", "source", "date", "hour"})
#: Digits of a decimal128, in all.
PRECISION_MAX = 38

_T = TypeVar("_T")

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_DECIMAL = re.compile(r"decimal128\((\d{1,2}), ?(\d{1,2})\)")
_INT64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Version = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


class FieldType(StrEnum):
    """The Arrow types that a field can be declared with, by Arrow's names."""

    STRING = "string"
    BOOL = "bool"
    INT64 = "int64"
    FLOAT64 = "float64"
    DECIMAL = "decimal128"  # (precision, scale), exactly, from a number or a string of digits
    TIMESTAMP = "timestamp"  # [us, UTC], from RFC 3339 with an offset
    DATE = "date32"


_DECODED: Mapping[FieldType, Any] = {
    FieldType.STRING: str,
    FieldType.BOOL: bool,
    FieldType.INT64: _INT64,
    FieldType.FLOAT64: float,
    FieldType.DECIMAL: Decimal,
    FieldType.TIMESTAMP: Annotated[dt.datetime, msgspec.Meta(tz=True)],
    FieldType.DATE: dt.date,
}


class Field(msgspec.Struct, frozen=True):
    """One typed column of a source; a field that is not required may be absent or null.

    `since` is the version of the source that added it. A decimal has `precision` digits, `scale` of them after the
    point.
    """

    name: str
    type: FieldType
    description: str
    required: bool = False
    since: int = 1
    precision: int = 0
    scale: int = 0

    @property
    def declared_type(self) -> str:
        """The type as it is declared, with its parameters."""
        return f"{self.type}({self.precision}, {self.scale})" if self.type is FieldType.DECIMAL else self.type.value

    def exact(self, value: Decimal) -> Decimal:
        """A value in just the digits that this decimal has; raises `ValueError` where that would change it."""
        exactly = Context(prec=self.precision, traps=[Inexact, InvalidOperation])
        try:
            fitting = value.quantize(Decimal(1).scaleb(-self.scale), context=exactly)
        except (Inexact, InvalidOperation) as error:
            raise ValueError(f"{value} does not fit {self.declared_type}") from error
        if not fitting.is_finite():
            raise ValueError(f"{value} is no number")
        return fitting

    def holds(self, value: Decimal | None) -> bool:
        """Whether a value of this decimal stays as it is."""
        try:
            if value is not None:
                self.exact(value)
        except ValueError:
            return False
        return True


class RegisteredField(msgspec.Struct, frozen=True):
    """What of a field its readers rest on: it never changes."""

    type: str
    required: bool
    since: int

    def __str__(self) -> str:
        return f"{self.type}, {'required' if self.required else 'optional'}, since version {self.since}"


class RegisteredSchema(msgspec.Struct, frozen=True):
    """The fields of a source at a version, as they are registered."""

    version: int
    fields: dict[str, RegisteredField]


@dataclass(frozen=True)
class Source:
    """A declared kind of data. `version` counts the changes of its fields and is kept with each row."""

    name: str
    description: str
    version: int
    fields: tuple[Field, ...]

    @cached_property
    def record_type(self) -> type[msgspec.Struct]:
        """The struct that a JSON record decodes into: the declared fields, then `classification_id`."""
        return self._struct(_DECODED)

    @cached_property
    def text_type(self) -> type[msgspec.Struct]:
        """The same, with times as the texts that they are: for records that were checked, to be made columns of."""
        return self._struct({**_DECODED, FieldType.TIMESTAMP: str})

    def _struct(self, decoded: Mapping[FieldType, Any]) -> type[msgspec.Struct]:
        fields: list[tuple[str, Any] | tuple[str, Any, Any]] = [
            (f.name, decoded[f.type]) if f.required else (f.name, decoded[f.type] | None, None) for f in self.fields
        ]
        classification = Annotated[str, msgspec.Meta(min_length=1, max_length=CLASSIFICATION_ID_CHARS_MAX)]
        fields.append((CLASSIFICATION_ID, classification | None, None))
        return msgspec.defstruct(f"{self.name}_record", fields, kw_only=True, gc=False)

    @property
    def schema(self) -> RegisteredSchema:
        shapes = {
            field.name: RegisteredField(field.declared_type, field.required, field.since) for field in self.fields
        }
        return RegisteredSchema(self.version, shapes)

    def at(self, version: int) -> "Source":
        """The source as it was at an earlier version, which records of that time were checked against."""
        if version >= self.version:
            return self
        if version not in self._earlier:
            fields = tuple(field for field in self.fields if field.since <= version)
            self._earlier[version] = replace(self, version=version, fields=fields)
        return self._earlier[version]

    @cached_property
    def _earlier(self) -> dict[int, "Source"]:
        return {}


def incompatibility(registered: RegisteredSchema, declared: RegisteredSchema) -> str | None:
    """Why two versions of a source cannot be read together: the field, and both values. None where they can.

    They can where the newer one, without the fields that it added since the older one, is the older one.
    """
    older, newer = (registered, declared) if registered.version <= declared.version else (declared, registered)
    for name in {**registered.fields, **declared.fields}:
        was, now = older.fields.get(name), newer.fields.get(name)
        if was == now or (was is None and now and now.since > older.version):
            continue
        there, here = registered.fields.get(name), declared.fields.get(name)
        advice = (
            "a field is never removed, and keeps its type, `required` and `since`: take another name for what changes"
            if was
            else f"a field that is added is optional and says since = {older.version + 1} or later, "
            "and the source's version is raised to that"
        )
        return (
            f"field {name}: version {registered.version}, which is registered, has {there or 'no such field'}; "
            f"version {declared.version}, which is declared, has {here or 'no such field'}; {advice}"
        )
    return None


# --- reading the file


class _FieldDeclaration(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    type: str
    description: str
    required: bool = False
    since: _Version = 1


class _Declaration(msgspec.Struct, forbid_unknown_fields=True):
    description: str
    fields: list[dict[str, Any]]
    version: _Version = 1


def load(file: Path | None) -> Mapping[str, Source]:
    """The sources that a file declares, or the built-in ones without a file. Raises `Misconfigured`."""
    if file is None:
        return built_in()
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"BRONZE_SOURCES: {file} cannot be read: {error}") from error
    return parse(text, str(file))


def built_in() -> Mapping[str, Source]:
    """The four sources that come with the package."""
    file = files("bronze") / "sources.toml"
    return parse(file.read_text(encoding="utf-8"), file.name)


def parse(text: str, origin: str) -> Mapping[str, Source]:
    """The sources that a TOML text declares, by name; `origin` names the text in errors.

    Raises `Misconfigured` that names the file, the source and the field, and says what to do.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Misconfigured(f"{origin}: {error}") from error
    if not tables:
        raise Misconfigured(f"{origin}: declares no source; a table [name] with description and fields declares one")
    return {name: source_from_table(name, table, origin) for name, table in tables.items()}


def source_from_table(name: str, table: object, origin: str) -> Source:
    """The source that a table of a file declares, or the API's answer to what is declared. Raises as `parse` does."""
    if not _NAME.fullmatch(name):
        raise Misconfigured(f"{origin}: source {name!r}: a name is a-z, 0-9 and _, and starts with a letter")
    place = f"{origin}: source {name}"
    declared = _convert(place, table, _Declaration)
    if not declared.fields:
        raise Misconfigured(f"{place}: declares no field")
    fields: dict[str, Field] = {}
    for number, entry in enumerate(declared.fields, start=1):
        field = _field(place, number, entry, declared.version)
        if field.name in fields:
            raise Misconfigured(f"{place}, field {field.name}: is declared twice")
        fields[field.name] = field
    return Source(name, declared.description, declared.version, tuple(fields.values()))


def _field(source: str, number: int, entry: dict[str, Any], version: int) -> Field:
    place = f"{source}, field {entry.get('name', number)}"
    one = _convert(place, entry, _FieldDeclaration)
    if not _NAME.fullmatch(one.name):
        raise Misconfigured(f"{source}, field {one.name!r}: a name is a-z, 0-9 and _, and starts with a letter")
    if one.name in RESERVED:
        raise Misconfigured(f"{place}: the name is taken, choose another")
    if one.since > version:
        raise Misconfigured(f"{place}: since = {one.since}, and the source's version is {version}: raise that")
    if one.since > 1 and one.required:
        raise Misconfigured(f"{place}: is required, and older records do not have it (since = {one.since})")
    kind, precision, scale = one.type, 0, 0
    if found := _DECIMAL.fullmatch(one.type):
        kind, precision, scale = FieldType.DECIMAL, int(found[1]), int(found[2])
        if not 1 <= precision <= PRECISION_MAX or scale > precision:
            raise Misconfigured(
                f"{place}: {one.type} has to have 1 to {PRECISION_MAX} digits, and no more of them after the point"
            )
    elif kind not in set(FieldType) - {FieldType.DECIMAL}:
        known = [f"{t}(precision, scale)" if t is FieldType.DECIMAL else t.value for t in FieldType]
        raise Misconfigured(f"{place}: there is no type {one.type!r}; the types are {', '.join(known)}")
    return Field(one.name, FieldType(kind), one.description, one.required, one.since, precision, scale)


def _convert(place: str, value: object, kind: type[_T]) -> _T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise Misconfigured(f"{place}: {error}") from error
