"""Sources: the declared kinds of data. They are data, not code: one TOML file declares them.

A source's fields have Arrow types. A record's undeclared fields are never lost: they stay in `_payload`. `version`
counts the changes of a source's fields; only fields may be added, every other change is refused (`docs/sources.md`).
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

#: The name of the source of `bronze canary`, which exists in addition to the declared sources.
CANARY = "canary"

#: Names that a declared field must not have: columns that Bronze adds, and the partition keys of the object's path.
RESERVED = frozenset({CLASSIFICATION_ID, "file_path", "source", "date", "hour"})
#: The most digits that a decimal128 can have.
PRECISION_MAX = 38

_T = TypeVar("_T")

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_NAME_RULE = "a name must begin with a-z and have at most 63 characters of a-z, 0-9 and _"
_DECIMAL = re.compile(r"decimal128\((\d{1,2}), ?(\d{1,2})\)")
_INT64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Version = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


class FieldType(StrEnum):
    """The Arrow types that a field can be declared with, by their names in Arrow."""

    STRING = "string"
    BOOL = "bool"
    INT64 = "int64"
    FLOAT64 = "float64"
    DECIMAL = "decimal128"  # (precision, scale), exact, from a number or a string of digits
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

    `since` is the version of the source that added the field. A decimal has `precision` digits, `scale` of them after
    the decimal point.
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

    def quantize(self, value: Decimal) -> Decimal:
        """The value with the scale of this decimal field; raises `ValueError` if that would change the value."""
        context = Context(prec=self.precision, traps=[Inexact, InvalidOperation])
        try:
            quantized = value.quantize(Decimal(1).scaleb(-self.scale), context=context)
        except (Inexact, InvalidOperation) as error:
            raise ValueError(f"{value} does not fit {self.declared_type}") from error
        if not quantized.is_finite():
            raise ValueError(f"{value} is not a finite number")
        return quantized

    def fits(self, value: Decimal | None) -> bool:
        """Whether this decimal field can store the value unchanged."""
        try:
            if value is not None:
                self.quantize(value)
        except ValueError:
            return False
        return True


class RegisteredField(msgspec.Struct, frozen=True):
    """The properties of a field that readers depend on, and that therefore never change."""

    type: str
    required: bool
    since: int

    def __str__(self) -> str:
        return f"{self.type}, {'required' if self.required else 'optional'}, since version {self.since}"


class RegisteredSchema(msgspec.Struct, frozen=True):
    """The fields of a source at one version, as they are registered."""

    version: int
    fields: dict[str, RegisteredField]


@dataclass(frozen=True)
class Source:
    """A declared kind of data. `version` counts the changes of its fields and is stored with each row."""

    name: str
    description: str
    version: int
    fields: tuple[Field, ...]

    @cached_property
    def record_type(self) -> type[msgspec.Struct]:
        """The struct that a JSON record decodes into: the declared fields, then `classification_id`."""
        return self._struct(_DECODED)

    @cached_property
    def record_type_text_times(self) -> type[msgspec.Struct]:
        """The same, but with times as strings: for records that were already checked, to convert them to columns."""
        return self._struct({**_DECODED, FieldType.TIMESTAMP: str})

    def _struct(self, decoded_types: Mapping[FieldType, Any]) -> type[msgspec.Struct]:
        fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
        for field in self.fields:
            decoded = decoded_types[field.type]
            fields.append((field.name, decoded) if field.required else (field.name, decoded | None, None))
        classification = Annotated[str, msgspec.Meta(min_length=1, max_length=CLASSIFICATION_ID_CHARS_MAX)]
        fields.append((CLASSIFICATION_ID, classification | None, None))
        return msgspec.defstruct(f"{self.name}_record", fields, kw_only=True, gc=False)

    @property
    def schema(self) -> RegisteredSchema:
        fields = {
            field.name: RegisteredField(field.declared_type, field.required, field.since) for field in self.fields
        }
        return RegisteredSchema(self.version, fields)

    def at_version(self, version: int) -> "Source":
        """The source as it was at an earlier version, for records that were checked against that version."""
        if version >= self.version:
            return self
        if version not in self._earlier_versions:
            fields = tuple(field for field in self.fields if field.since <= version)
            self._earlier_versions[version] = replace(self, version=version, fields=fields)
        return self._earlier_versions[version]

    @cached_property
    def _earlier_versions(self) -> dict[int, "Source"]:
        return {}


def incompatibility(registered: RegisteredSchema, declared: RegisteredSchema) -> str | None:
    """Why two versions of a source cannot be read together: the field, and both values. None if they can.

    They can if the newer version equals the older version plus the fields that were added since.
    """
    older, newer = (registered, declared) if registered.version <= declared.version else (declared, registered)
    for name in {**registered.fields, **declared.fields}:
        old_field, new_field = older.fields.get(name), newer.fields.get(name)
        if old_field == new_field or (old_field is None and new_field and new_field.since > older.version):
            continue
        advice = (
            "you cannot remove a field or change its type, `required` or `since`: use a new field name instead"
            if old_field
            else f"a new field must be optional, with since = {older.version + 1} or higher, and the version of the "
            "source must be raised to that number"
        )
        return (
            f"field {name}: the registered version {registered.version} has "
            f"{registered.fields.get(name, 'no such field')}; the declared version {declared.version} has "
            f"{declared.fields.get(name, 'no such field')}; {advice}"
        )
    return None


# --- read the file


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
    """The sources that a file declares, or the built-in ones without a file; and the canary's.

    Raises `Misconfigured`.
    """
    if file is None:
        return with_canary(built_in())
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"BRONZE_SOURCES: {file} cannot be read: {error}") from error
    return with_canary(parse(text, str(file)))


def built_in() -> Mapping[str, Source]:
    """The four sources that come with the package."""
    file = files("bronze") / "sources.toml"
    return parse(file.read_text(encoding="utf-8"), file.name)


def with_canary(declared: Mapping[str, Source]) -> Mapping[str, Source]:
    """The declared sources, and the source of `bronze canary`."""
    canary = Source(
        CANARY,
        "Records that `bronze canary` sends and looks for again. They are not data of a sender.",
        1,
        (
            Field("run_id", FieldType.STRING, "The run of the canary.", required=True),
            Field("number", FieldType.INT64, "The number of the record in its run.", required=True),
            Field("sent_at", FieldType.TIMESTAMP, "When the run began.", required=True),
        ),
    )
    return {**declared, CANARY: canary}


def without_canary(known: Mapping[str, Source]) -> Mapping[str, Source]:
    """The sources for data: those that were declared."""
    return {name: source for name, source in known.items() if name != CANARY}


def parse(text: str, origin: str) -> Mapping[str, Source]:
    """The sources that a TOML text declares, by name; errors name the text by `origin`.

    Raises `Misconfigured`; its text names the file, the source and the field, and says what to do.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Misconfigured(f"{origin}: {error}") from error
    if not tables:
        raise Misconfigured(f"{origin}: declares no source: add a table [name] with description and fields")
    if CANARY in tables:
        raise Misconfigured(
            f"{origin}: source {CANARY}: the name is reserved for the source of `bronze canary`: choose another name"
        )
    return {name: source_from_table(name, table, origin) for name, table in tables.items()}


def source_from_table(name: str, table: object, origin: str) -> Source:
    """The source that a table declares; the table is from a file or from the API's answer. Raises as `parse` does."""
    if not _NAME.fullmatch(name):
        raise Misconfigured(f"{origin}: source {name!r}: {_NAME_RULE}")
    place = f"{origin}: source {name}"
    declared = _convert(place, table, _Declaration)
    if not declared.fields:
        raise Misconfigured(f"{place}: declares no field: add at least one")
    fields: dict[str, Field] = {}
    for number, entry in enumerate(declared.fields, start=1):
        field = _field(place, number, entry, declared.version)
        if field.name in fields:
            raise Misconfigured(f"{place}, field {field.name}: is declared twice: remove or rename one of them")
        fields[field.name] = field
    return Source(name, declared.description, declared.version, tuple(fields.values()))


def _field(source: str, number: int, entry: dict[str, Any], version: int) -> Field:
    place = f"{source}, field {entry.get('name', number)}"
    declared = _convert(place, entry, _FieldDeclaration)
    name, since = declared.name, declared.since
    if not _NAME.fullmatch(name):
        raise Misconfigured(f"{source}, field {name!r}: {_NAME_RULE}")
    if name in RESERVED:
        raise Misconfigured(f"{place}: the name is reserved: choose another name")
    if since > version:
        raise Misconfigured(
            f"{place}: since = {since} is higher than the version of the source ({version}): raise the version"
        )
    if since > 1 and declared.required:
        raise Misconfigured(
            f"{place}: cannot be required, because older records do not have it (since = {since}): set required = false"
        )
    kind, precision, scale = declared.type, 0, 0
    if decimal := _DECIMAL.fullmatch(declared.type):
        kind, precision, scale = FieldType.DECIMAL, int(decimal[1]), int(decimal[2])
        if not 1 <= precision <= PRECISION_MAX or scale > precision:
            raise Misconfigured(
                f"{place}: {declared.type}: the precision must be 1 to {PRECISION_MAX}, and the scale must not be "
                "larger than the precision"
            )
    elif kind not in set(FieldType) - {FieldType.DECIMAL}:
        known = [f"{t}(precision, scale)" if t is FieldType.DECIMAL else t.value for t in FieldType]
        raise Misconfigured(f"{place}: there is no type {declared.type!r}; the types are {', '.join(known)}")
    return Field(name, FieldType(kind), declared.description, declared.required, since, precision, scale)


def _convert(place: str, value: object, kind: type[_T]) -> _T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise Misconfigured(f"{place}: {error}") from error
