"""Sources: the declared kinds of data. They are data, not code: one TOML file declares them.

A source's fields are typed by Arrow types. What a record holds beyond them is never lost: it stays in `_payload`.
"""

import datetime as dt
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from importlib.resources import files
from typing import Annotated, Any

import msgspec

from bronze.errors import Misconfigured

CLASSIFICATION_ID = "classification_id"
CLASSIFICATION_ID_CHARS_MAX = 256

#: Names that a declared field may not take: columns of ours and the partition keys of the object's path.
RESERVED = frozenset({CLASSIFICATION_ID, "file_path", "source", "date", "hour"})

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_INT64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class FieldType(StrEnum):
    """The Arrow types that a field can be declared with, by Arrow's names."""

    STRING = "string"
    BOOL = "bool"
    INT64 = "int64"
    FLOAT64 = "float64"
    TIMESTAMP = "timestamp"  # [us, UTC], from RFC 3339 with an offset
    DATE = "date32"


_DECODED: Mapping[FieldType, Any] = {
    FieldType.STRING: str,
    FieldType.BOOL: bool,
    FieldType.INT64: _INT64,
    FieldType.FLOAT64: float,
    FieldType.TIMESTAMP: Annotated[dt.datetime, msgspec.Meta(tz=True)],
    FieldType.DATE: dt.date,
}


class Field(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One typed column of a source; a field that is not required may be absent or null."""

    name: str
    type: FieldType
    description: str
    required: bool = False


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
        fields: list[tuple[str, Any] | tuple[str, Any, Any]] = [
            (f.name, _DECODED[f.type]) if f.required else (f.name, _DECODED[f.type] | None, None) for f in self.fields
        ]
        classification = Annotated[str, msgspec.Meta(min_length=1, max_length=CLASSIFICATION_ID_CHARS_MAX)]
        fields.append((CLASSIFICATION_ID, classification | None, None))
        return msgspec.defstruct(f"{self.name}_record", fields, kw_only=True, gc=False)


class _Declaration(msgspec.Struct, forbid_unknown_fields=True):
    description: str
    fields: list[Field]
    version: int = 1


def parse(text: str, origin: str) -> Mapping[str, Source]:
    """The sources that a TOML text declares, by name; `origin` names the text in errors.

    Raises `Misconfigured` that names the file, the source and the field.
    """
    try:
        tables = tomllib.loads(text)
        declared = msgspec.convert(tables, dict[str, _Declaration])
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise Misconfigured(f"{origin}: {error}") from error
    if not declared:
        raise Misconfigured(f"{origin}: declares no source")
    for name, declaration in declared.items():
        _check(origin, name, declaration)
    return {
        name: Source(name, declaration.description, declaration.version, tuple(declaration.fields))
        for name, declaration in declared.items()
    }


def _check(origin: str, name: str, declaration: _Declaration) -> None:
    if not _NAME.fullmatch(name):
        raise Misconfigured(f"{origin}: source {name!r}: a name is a-z, 0-9 and _, and starts with a letter")
    if not declaration.fields:
        raise Misconfigured(f"{origin}: source {name}: declares no field")
    seen: set[str] = set()
    for field in declaration.fields:
        if not _NAME.fullmatch(field.name):
            raise Misconfigured(
                f"{origin}: source {name}, field {field.name!r}: a name is a-z, 0-9 and _, and starts with a letter"
            )
        if field.name in RESERVED:
            raise Misconfigured(f"{origin}: source {name}, field {field.name}: the name is taken, choose another")
        if field.name in seen:
            raise Misconfigured(f"{origin}: source {name}, field {field.name}: is declared twice")
        seen.add(field.name)


def built_in() -> Mapping[str, Source]:
    """The four sources that come with the package."""
    file = files("bronze") / "sources.toml"
    return parse(file.read_text(encoding="utf-8"), file.name)
