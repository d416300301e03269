"""Fields: the typed columns that a source declares, and how a value of a record becomes a value of its column."""

import datetime as dt
import re
from collections.abc import Iterator, Mapping
from decimal import Context, Decimal, Inexact, InvalidOperation
from enum import StrEnum
from typing import Annotated, Any, TypedDict
from zoneinfo import ZoneInfo

import msgspec

#: The most digits that a decimal128 can have.
PRECISION_MAX = 38
#: How deep lists, structs and maps can be nested in a declaration.
DEPTH_MAX = 8
#: The largest float32.
FLOAT32_MAX = 3.4028234663852886e38
#: Why a time does not fit that Arrow could store, but most readers could not read.
CALENDAR_ERROR = "Expected a time from year 1 to year 9999 in UTC"

_DECIMAL = re.compile(r"decimal128\((\d{1,2}), ?(\d{1,2})\)")
CHILD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class FieldType(StrEnum):
    """The Arrow types that a field can be declared with, by their names in Arrow, and JSON."""

    STRING = "string"
    BOOL = "bool"
    INT32 = "int32"
    INT64 = "int64"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    DECIMAL = "decimal128"  # (precision, scale), exact, from a number or a string of digits
    TIMESTAMP = "timestamp"  # [us, UTC], from RFC 3339 with an offset
    DATE = "date32"
    BINARY = "binary"  # in JSON: base64
    JSON = "json"  # any JSON value, stored as its text
    LIST = "list"  # <type>
    STRUCT = "struct"  # <name: type, ...>
    MAP = "map"  # <string, type>, in JSON: an object

    @property
    def is_nested(self) -> bool:
        return self in {FieldType.LIST, FieldType.STRUCT, FieldType.MAP}


class TimeUnit(StrEnum):
    """The unit of times that are numbers: since the beginning of 1970, UTC."""

    SECOND = "s"
    MILLISECOND = "ms"
    MICROSECOND = "us"
    NANOSECOND = "ns"

    @property
    def microseconds(self) -> Decimal:
        return {"s": Decimal(10**6), "ms": Decimal(1000), "us": Decimal(1), "ns": Decimal("0.001")}[self.value]


_UNIT_NAMES: Mapping[TimeUnit, str] = {
    TimeUnit.SECOND: "seconds",
    TimeUnit.MILLISECOND: "milliseconds",
    TimeUnit.MICROSECOND: "microseconds",
    TimeUnit.NANOSECOND: "nanoseconds",
}

#: The types whose values another type can hold, and that a later version may therefore change to it.
WIDER: Mapping[FieldType, FieldType] = {
    FieldType.INT32: FieldType.INT64,
    FieldType.FLOAT32: FieldType.FLOAT64,
}

_DECODED: Mapping[FieldType, Any] = {
    FieldType.STRING: str,
    FieldType.BOOL: bool,
    FieldType.INT32: Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)],
    FieldType.INT64: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)],
    FieldType.FLOAT32: Annotated[float, msgspec.Meta(ge=-FLOAT32_MAX, le=FLOAT32_MAX)],
    FieldType.FLOAT64: float,
    FieldType.DECIMAL: Decimal,
    FieldType.TIMESTAMP: Annotated[dt.datetime, msgspec.Meta(tz=True)],
    FieldType.DATE: dt.date,
    FieldType.BINARY: bytes,
    FieldType.JSON: msgspec.Raw,
}


class Unfit(ValueError):
    """A value does not fit its field; the text says why, for the sender."""


class Field(msgspec.Struct, frozen=True):
    """One typed column of a source; a field that is not required may be absent or null.

    `since` is the version of the source that added the field; `widened_since`, if not 0, the one in which `type` took
    the place of `widened_from`. A decimal has `precision` digits, `scale` of them after the decimal point. `children`
    are those of Arrow: a list has one (its items), a map two (its keys and its values), a struct its fields.
    """

    name: str
    type: FieldType
    description: str
    required: bool = False
    since: int = 1
    precision: int = 0
    scale: int = 0
    children: tuple["Field", ...] = ()
    alias: str | None = None
    timezone: str | None = None
    unit: TimeUnit | None = None
    widened_from: FieldType | None = None
    widened_since: int = 0

    @property
    def name_in_records(self) -> str:
        """The name of the field in the records that are sent."""
        return self.alias or self.name

    @property
    def declared_type(self) -> str:
        """The type as it is declared, with its parameters."""
        match self.type:
            case FieldType.DECIMAL:
                return f"{self.type}({self.precision}, {self.scale})"
            case FieldType.STRUCT:
                return f"struct<{', '.join(f'{child.name}: {child.declared_type}' for child in self.children)}>"
            case FieldType.LIST | FieldType.MAP:
                return f"{self.type}<{', '.join(child.declared_type for child in self.children)}>"
            case _:
                return self.type.value

    @property
    def is_checked_by_value(self) -> bool:
        """Whether the decoder alone cannot tell if a value fits."""
        return (
            self.type in {FieldType.DECIMAL, FieldType.TIMESTAMP}
            or (self.type is FieldType.JSON and self.required)
            or any(child.is_checked_by_value for child in self.children)
        )

    @property
    def is_plain(self) -> bool:
        """Whether the value of a record is that of the column, in another form at most."""
        special = self.type in {FieldType.BINARY, FieldType.JSON} or self.type.is_nested
        return not special and self.timezone is None and self.unit is None

    def at_version(self, version: int) -> "Field":
        """The field as it was at an earlier version that already had it."""
        if self.widened_from is None or version >= self.widened_since:
            return self
        return msgspec.structs.replace(self, type=self.widened_from, widened_from=None, widened_since=0)

    @property
    def decoded_type(self) -> Any:
        """The type that the field's JSON value is decoded into."""
        match self.type:
            case FieldType.LIST:
                return list[self.children[0].optional_type]  # type: ignore[misc]  # a type that is computed
            case FieldType.MAP:
                return dict[str, self.children[1].optional_type]  # type: ignore[misc]
            case FieldType.STRUCT:
                fields = {child.name: child.optional_type for child in self.children}
                return TypedDict(self.name, fields, total=False)  # type: ignore[operator]
            case FieldType.TIMESTAMP if self.unit:
                return Decimal
            case FieldType.TIMESTAMP if self.timezone:
                return dt.datetime
            case _:
                return _DECODED[self.type]

    @property
    def expected_number(self) -> str:
        """What a value of a decimal, or of a time that is a number, has to be."""
        if self.unit:
            return f"Expected a number of {_UNIT_NAMES[self.unit]} since 1970, or a string of its digits"
        return f"Expected the digits of a number as in JSON, as a string or a number ({self.declared_type})"

    @property
    def optional_type(self) -> Any:
        """`decoded_type`, or null. JSON text contains its null."""
        return self.decoded_type if self.type is FieldType.JSON else self.decoded_type | None

    def check(self, value: Any) -> None:
        """Raises `Unfit` if a decoded value, which may be None, cannot be stored as it is."""
        if self.type is FieldType.JSON:
            if self.required and value is not None and bytes(value) in {b"", b"null"}:
                raise Unfit("Expected json, got null")
            return
        if value is None:
            return
        match self.type:
            case FieldType.DECIMAL:
                self._check_decimal(value)
            case FieldType.TIMESTAMP:
                self.time(value)
            case FieldType.LIST:
                for item in value:
                    self.children[0].check(item)
            case FieldType.MAP:
                for item in value.values():
                    self.children[1].check(item)
            case FieldType.STRUCT:
                for child in self.children:
                    child.check(value.get(child.name))
            case _:
                pass

    def fits(self, value: Any) -> bool:
        """Whether `check` raises nothing."""
        try:
            self.check(value)
        except Unfit:
            return False
        return True

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

    def _check_decimal(self, value: Decimal) -> None:
        try:
            self.quantize(value)
        except ValueError as error:
            raise Unfit(
                f"Expected a number with at most {self.precision - self.scale} digits before the decimal point and "
                f"{self.scale} after it ({self.declared_type})"
            ) from error

    def time(self, value: Any) -> dt.datetime:
        """The time of a decoded value of a timestamp, in UTC. Raises `Unfit` if there is none.

        A local time that occurs twice is the earlier one; one that is skipped is none (`docs/sources.md`).
        """
        try:
            if self.unit:
                return _EPOCH + dt.timedelta(microseconds=_microseconds(value, self.unit))
            if value.tzinfo is None:
                return self._local_time(value)
            return value.astimezone(dt.UTC)  # type: ignore[no-any-return]
        except (OverflowError, ArithmeticError) as error:
            raise Unfit(CALENDAR_ERROR) from error

    def _local_time(self, value: dt.datetime) -> dt.datetime:
        zone = ZoneInfo(self.timezone or "UTC")
        time = value.replace(tzinfo=zone, fold=0).astimezone(dt.UTC)
        if time.astimezone(zone).replace(tzinfo=None) != value:
            raise Unfit(f"Expected a time that exists in {self.timezone}: the clock was set forward over this one")
        return time


def _microseconds(value: Decimal, unit: TimeUnit) -> int:
    if not value.is_finite() or value.adjusted() > 30:  # its digits would be computed
        raise OverflowError
    return int((value * unit.microseconds).to_integral_value())


class InvalidType(ValueError):
    """A text is no type; the text of the error says why."""


def parse_type(text: str, name: str, description: str = "", depth: int = 0) -> Field:
    """The optional field of version 1 with a type as it is declared. Raises `InvalidType`."""
    text = text.strip()
    kind, bracket, rest = text.partition("<")
    if bracket and rest.endswith(">") and kind in {FieldType.LIST, FieldType.STRUCT, FieldType.MAP}:
        if depth == DEPTH_MAX:
            raise InvalidType(f"types are nested more than {DEPTH_MAX} deep")
        children = tuple(_children(FieldType(kind), _split(rest[:-1]), text, depth + 1))
        return Field(name, FieldType(kind), description, children=children)
    if decimal := _DECIMAL.fullmatch(text):
        precision, scale = int(decimal[1]), int(decimal[2])
        if not 1 <= precision <= PRECISION_MAX or scale > precision:
            raise InvalidType(
                f"{text}: the precision must be 1 to {PRECISION_MAX}, and the scale must not be larger than the "
                "precision"
            )
        return Field(name, FieldType.DECIMAL, description, precision=precision, scale=scale)
    if text not in _SIMPLE:
        raise InvalidType(f"there is no type {text!r}; the types are {', '.join(_FORMS)}")
    return Field(name, FieldType(text), description)


_SIMPLE = [kind.value for kind in FieldType if kind is not FieldType.DECIMAL and not kind.is_nested]
_FORMS = [*_SIMPLE, "decimal128(precision, scale)", "list<type>", "struct<name: type, ...>", "map<string, type>"]


def _children(kind: FieldType, parts: list[str], text: str, depth: int) -> Iterator[Field]:
    match kind:
        case FieldType.LIST:
            if len(parts) != 1:
                raise InvalidType(f"{text}: a list has one type: list<type>")
            yield parse_type(parts[0], "item", depth=depth)
        case FieldType.MAP:
            if len(parts) != 2 or parts[0].strip() != FieldType.STRING:
                raise InvalidType(f"{text}: the keys of a map are strings: map<string, type>")
            yield Field("key", FieldType.STRING, "", required=True)
            yield parse_type(parts[1], "value", depth=depth)
        case _:
            names: set[str] = set()
            for part in parts:
                name, colon, child = (piece.strip() for piece in part.partition(":"))
                if not colon or not CHILD_NAME.fullmatch(name) or name in names:
                    raise InvalidType(
                        f"{text}: each field of a struct has a name of its own and a type: struct<name: type, ...>. A "
                        "name has letters, digits and _, and does not begin with a digit"
                    )
                names.add(name)
                yield parse_type(child, name, depth=depth)


def _split(text: str) -> list[str]:
    """The parts between the commas that are in no brackets."""
    parts, start, depth = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "<(") - (character in ">)")
        if character == "," and not depth:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]]
