"""Sources: the declared kinds of data. They are data, not code: one TOML file declares them.

A source's fields have Arrow types. A record's undeclared fields are never lost: they stay in `_payload`. `version`
counts the changes of a source's fields; fields may be added and types widened, every other change is refused
(`docs/sources.md`).
"""

import re
import tomllib
import zoneinfo
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from bronze.errors import Misconfigured
from bronze.records import expectations
from bronze.records.expectations import Expectations, FieldExpectations, InvalidExpectation
from bronze.records.fields import WIDER, Field, FieldType, InvalidType, TimeUnit, parse_type

CLASSIFICATION_ID = "classification_id"
CLASSIFICATION_ID_CHARS_MAX = 256

#: Of the age of the objects that `bronze retain` deletes: a hundred years.
RETENTION_DAYS_MAX = 36_500

#: The name of the source of `bronze canary`, which exists in addition to the declared sources.
CANARY = "canary"

#: A name that a field can have in records; the decoder cannot look for others.
ALIAS = re.compile(r'[^"\\\x00-\x1f]{1,256}')

#: Names that a declared field must not have: columns that Bronze adds, and the partition keys of the object's path.
RESERVED = frozenset({CLASSIFICATION_ID, "file_path", "source", "date", "hour"})

#: The name of a source or a field.
NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")

_T = TypeVar("_T")

_NAME_RULE = "a name must begin with a-z and have at most 63 characters of a-z, 0-9 and _"
_Version = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
_Days = Annotated[int, msgspec.Meta(ge=1, le=RETENTION_DAYS_MAX)]


class RegisteredField(msgspec.Struct, frozen=True, omit_defaults=True):
    """The properties of a field that readers depend on, and that therefore never change, except for a wider type."""

    type: str
    required: bool
    since: int
    alias: str | None = None
    timezone: str | None = None
    unit: TimeUnit | None = None
    widened_from: str | None = None
    widened_since: int = 0

    @classmethod
    def of(cls, field: Field) -> "RegisteredField":
        return cls(
            field.declared_type,
            field.required,
            field.since,
            field.alias,
            field.timezone,
            field.unit,
            field.widened_from,
            field.widened_since,
        )

    def succeeds(self, older: "RegisteredField", version: int) -> bool:
        """Whether it may take the place of the field of an older version: it is the same, or widened since."""
        widened = self.widened_from == older.type and self.widened_since > version
        return self == older or (widened and self.before_it_was_widened == older)

    @property
    def before_it_was_widened(self) -> "RegisteredField":
        return msgspec.structs.replace(self, type=self.widened_from or self.type, widened_from=None, widened_since=0)

    def __str__(self) -> str:
        properties = {
            "alias": self.alias,
            "timezone": self.timezone,
            "unit": self.unit,
            "widened_from": self.widened_from,
        }
        more = [f"{name} {value}" for name, value in properties.items() if value]
        required = "required" if self.required else "optional"
        return ", ".join([self.type, required, f"since version {self.since}", *more])


class RegisteredSchema(msgspec.Struct, frozen=True, omit_defaults=True):
    """The fields of a source at one version, as they are registered.

    Readers do not depend on `strict` and `event_time`: they are registered so that a change of them can be shown.
    """

    version: int
    fields: dict[str, RegisteredField]
    strict: bool = False
    event_time: str | None = None


@dataclass(frozen=True)
class Source:
    """A declared kind of data. `version` counts the changes of its fields and is stored with each row.

    If it is `strict`, a new record must not have fields that are not declared. `event_time` is the field that says when
    what a record is about happened.
    What is expected of its data, and after how many days its objects are deleted (`retention_days`; None: the setting
    says it), may change at any time, and makes it no other source.
    """

    name: str
    description: str
    version: int
    fields: tuple[Field, ...]
    strict: bool = False
    expectations: Expectations = dataclass_field(default_factory=Expectations, compare=False)
    event_time: str | None = None
    retention_days: int | None = dataclass_field(default=None, compare=False)

    def __hash__(self) -> int:
        """Of name and version alone: each body looks its source up, and has no time for all fields."""
        return hash((self.name, self.version))

    @property
    def is_raw(self) -> bool:
        """Whether it declares no field: any JSON value is a record of it, whole in `_payload`."""
        return not self.fields

    def decode_raw(self, record: bytes) -> Any:
        """A record of a source without fields: any JSON value, of which only an object can have a classification."""
        if record.startswith(b"{"):
            return msgspec.json.decode(record, type=self.record_type)
        msgspec.json.decode(record, type=msgspec.Raw)
        return self.record_type()

    @cached_property
    def record_type(self) -> type[msgspec.Struct]:
        """The struct that a JSON record decodes into: the declared fields, then `classification_id`."""
        return self._struct(text_times=False)

    @cached_property
    def record_type_text_times(self) -> type[msgspec.Struct]:
        """The same, but with RFC 3339 times as strings: for records that were already checked, to convert them to
        columns.
        """
        return self._struct(text_times=True)

    @cached_property
    def closed_record_type(self) -> type[msgspec.Struct]:
        """The same as `record_type`, but no record with an undeclared field decodes into it."""
        return self._struct(text_times=False, closed=True)

    def _struct(self, *, text_times: bool, closed: bool = False) -> type[msgspec.Struct]:
        fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
        for field in self.fields:
            if text_times and field.type is FieldType.TIMESTAMP and field.is_plain:
                decoded, optional = str, str | None
            else:
                decoded, optional = field.decoded_type, field.optional_type
            fields.append((field.name, decoded) if field.required else (field.name, optional, None))
        classification = Annotated[str, msgspec.Meta(min_length=1, max_length=CLASSIFICATION_ID_CHARS_MAX)]
        fields.append((CLASSIFICATION_ID, classification | None, None))
        # a list or an object of a record is in no cycle
        return msgspec.defstruct(
            f"{self.name}_record",
            fields,
            rename={field.name: field.name_in_records for field in self.fields},
            forbid_unknown_fields=closed,
            kw_only=True,
            gc=False,
        )

    @property
    def schema(self) -> RegisteredSchema:
        fields = {field.name: RegisteredField.of(field) for field in self.fields}
        return RegisteredSchema(self.version, fields, self.strict, self.event_time)

    def at_version(self, version: int) -> "Source":
        """The source as it was at an earlier version, for records that were checked against that version."""
        if version >= self.version:
            return self
        if version not in self._earlier_versions:
            fields = tuple(field.at_version(version) for field in self.fields if field.since <= version)
            event_time = self.event_time if self.event_time in {field.name for field in fields} else None
            self._earlier_versions[version] = replace(self, version=version, fields=fields, event_time=event_time)
        return self._earlier_versions[version]

    @cached_property
    def _earlier_versions(self) -> dict[int, "Source"]:
        return {}


def incompatibility(registered: RegisteredSchema, declared: RegisteredSchema) -> str | None:
    """Why two versions of a source cannot be read together: the field, and both values. None if they can.

    They can if the newer version equals the older version plus the fields that were added, and the types that were
    widened since.
    """
    older, newer = (registered, declared) if registered.version <= declared.version else (declared, registered)
    for name in {**registered.fields, **declared.fields}:
        old_field, new_field = older.fields.get(name), newer.fields.get(name)
        added = old_field is None and new_field is not None and new_field.since > older.version
        if added or (old_field and new_field and new_field.succeeds(old_field, older.version)):
            continue
        advice = (
            "you cannot remove a field or change it, except for a wider type (widened_from): use a new field name "
            "instead"
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
    alias: str | None = None
    timezone: str | None = None
    unit: TimeUnit | None = None
    widened_from: str | None = None
    widened_since: _Version | None = None
    expect: dict[str, Any] = {}


class _Declaration(msgspec.Struct, forbid_unknown_fields=True):
    description: str
    fields: list[dict[str, Any]] | None = None
    version: _Version = 1
    raw: bool = False
    strict: bool = False
    event_time: str | None = None
    timezone: str | None = None
    retention_days: _Days | None = None
    expect: dict[str, Any] = {}


def load(file: Path | None, *, setting: str | None = "BRONZE_SOURCES") -> Mapping[str, Source]:
    """The sources that a file declares, or the built-in ones without a file; and the canary's.

    `setting` names the file, unless an argument of a command does. Raises `Misconfigured`.
    """
    if file is None:
        return with_canary(built_in())
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        named_by = f"{setting}: " if setting else ""
        raise Misconfigured(f"{named_by}{file} cannot be read: {error}") from error
    return with_canary(parse(text, str(file)))


def built_in() -> Mapping[str, Source]:
    """The four sources that come with the package."""
    file = built_in_file()
    return parse(file.read_text(encoding="utf-8"), file.name)


def built_in_file() -> Path:
    return Path(str(files("bronze") / "sources.toml"))


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
    if not NAME.fullmatch(name):
        raise Misconfigured(f"{origin}: source {name!r}: {_NAME_RULE}")
    place = f"{origin}: source {name}"
    declared = _convert(place, table, _Declaration)
    if declared.raw and declared.fields:
        raise Misconfigured(f"{place}: raw = true is for a source without fields: remove it, or the fields")
    if declared.fields is None and not declared.raw:
        raise Misconfigured(f"{place}: declares no field: add at least one, or raw = true to take any record as it is")
    if declared.strict and not declared.fields:
        raise Misconfigured(f"{place}: strict = true is for a source with fields: a raw source takes any record")
    fields: dict[str, Field] = {}
    expected: dict[str, FieldExpectations] = {}
    in_records: dict[str, str] = {}
    for number, entry in enumerate(declared.fields or [], start=1):
        field = _field(place, number, entry, declared)
        if field.name in fields:
            raise Misconfigured(f"{place}, field {field.name}: is declared twice: remove or rename one of them")
        if field.name_in_records in in_records:
            raise Misconfigured(
                f"{place}, field {field.name}: has the same name in records as the field "
                f"{in_records[field.name_in_records]}: {field.name_in_records}"
            )
        fields[field.name] = field
        in_records[field.name_in_records] = field.name
        if entry.get("expect"):
            with _errors_at(f"{place}, field {field.name}: expect"):
                expected[field.name] = expectations.of_field(entry["expect"], field)
    with _errors_at(f"{place}: expect"):
        of_source = expectations.of_source(declared.expect, expected)
    _check_event_time(place, declared.event_time, fields)
    return Source(
        name,
        declared.description,
        declared.version,
        tuple(fields.values()),
        declared.strict,
        of_source,
        declared.event_time,
        declared.retention_days,
    )


def _check_event_time(place: str, name: str | None, fields: Mapping[str, Field]) -> None:
    times = [field.name for field in fields.values() if field.type in {FieldType.TIMESTAMP, FieldType.DATE}]
    if name is not None and name not in times:
        raise Misconfigured(
            f"{place}: event_time = {name!r} must be the name of a field of the type timestamp or date32; there is "
            f"{' or '.join(times) if times else 'none'}"
        )


def _field(source: str, number: int, entry: dict[str, Any], of: _Declaration) -> Field:
    place = f"{source}, field {entry.get('name', number)}"
    declared = _convert(place, entry, _FieldDeclaration)
    name, since = declared.name, declared.since
    if not NAME.fullmatch(name):
        raise Misconfigured(f"{source}, field {name!r}: {_NAME_RULE}")
    if name in RESERVED:
        raise Misconfigured(f"{place}: the name is reserved: choose another name")
    if declared.alias is not None and not ALIAS.fullmatch(declared.alias):
        raise Misconfigured(
            f"{place}: the alias must have 1 to 256 characters, none of which is a quotation mark, a backslash or a "
            "control character"
        )
    if declared.alias == CLASSIFICATION_ID:
        raise Misconfigured(f"{place}: the alias is reserved: records have their {CLASSIFICATION_ID} in it")
    if since > of.version:
        raise Misconfigured(
            f"{place}: since = {since} is higher than the version of the source ({of.version}): raise the version"
        )
    if since > 1 and declared.required:
        raise Misconfigured(
            f"{place}: cannot be required, because older records do not have it (since = {since}): set required = false"
        )
    try:
        typed = parse_type(declared.type, name, declared.description)
    except InvalidType as error:
        raise Misconfigured(f"{place}: {error}") from error
    field = msgspec.structs.replace(
        typed,
        required=declared.required,
        since=since,
        alias=None if declared.alias == name else declared.alias,
        **_time_properties(place, typed, declared, of.timezone),
    )
    return _widened(place, field, declared, of.version)


def _time_properties(
    place: str, field: Field, declared: _FieldDeclaration, timezone: str | None
) -> dict[str, str | TimeUnit | None]:
    """Of a timestamp: its zone, by default that of the source, or its unit."""
    if field.type is not FieldType.TIMESTAMP:
        if declared.timezone or declared.unit:
            raise Misconfigured(f"{place}: timezone and unit belong to fields of the type timestamp")
        return {}
    if declared.timezone and declared.unit:
        raise Misconfigured(f"{place}: a number of {declared.unit} since 1970 has no time zone: remove one of them")
    zone = None if declared.unit else declared.timezone or timezone
    if zone:
        try:
            zoneinfo.ZoneInfo(zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise Misconfigured(
                f"{place}: there is no time zone {zone!r}: use a name of the tz database, such as Europe/Lisbon"
            ) from error
    return {"timezone": zone, "unit": declared.unit}


def _widened(place: str, field: Field, declared: _FieldDeclaration, version: int) -> Field:
    if declared.widened_from is None and declared.widened_since is None:
        return field
    if declared.widened_from is None or declared.widened_since is None:
        raise Misconfigured(f"{place}: widened_from and widened_since belong together: give both or none")
    narrower = next((kind for kind, wider in WIDER.items() if wider is field.type), None)
    if declared.widened_from != narrower:
        known = ", ".join(f"{kind} to {wider}" for kind, wider in WIDER.items())
        raise Misconfigured(
            f"{place}: {declared.widened_from} cannot become {field.declared_type}; what can be widened is {known}"
        )
    if not field.since < declared.widened_since <= version:
        raise Misconfigured(
            f"{place}: widened_since = {declared.widened_since} must be higher than its since ({field.since}), and not "
            f"higher than the version of the source ({version})"
        )
    return msgspec.structs.replace(field, widened_from=narrower, widened_since=declared.widened_since)


def _convert(place: str, value: object, kind: type[_T]) -> _T:
    with _errors_at(place):
        return msgspec.convert(value, kind)


@contextmanager
def _errors_at(place: str) -> Iterator[None]:
    """Says where in the file an error is."""
    try:
        yield
    except (msgspec.ValidationError, InvalidExpectation) as error:
        raise Misconfigured(f"{place}: {error}") from error
