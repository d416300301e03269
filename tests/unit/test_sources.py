"""Sources are data: the declarations that are possible, and the errors for invalid declarations."""

import datetime as dt
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bronze.errors import Misconfigured
from bronze.records import sources
from bronze.records.fields import WIDER, Field, FieldType
from bronze.records.sources import RegisteredField, RegisteredSchema, Source, incompatibility

FIELD = '{ name = "a", type = "string", description = "d" }'
#: Each type, as in a declaration.
PARAMETERS = {
    FieldType.DECIMAL: "(4, 2)",
    FieldType.LIST: "<string>",
    FieldType.STRUCT: "<x: int64, when: timestamp>",
    FieldType.MAP: "<string, list<float64>>",
}
TYPES = [f"{kind}{PARAMETERS.get(kind, '')}" for kind in FieldType]


def declare(fields: str, name: str = "things", more: str = "") -> str:
    return f'[{name}]\ndescription = "d"\n{more}\nfields = [{fields}]'


def test_four_sources_are_built_in() -> None:
    built_in = sources.built_in()
    assert list(built_in) == ["vehicles", "status", "results", "failures"]
    assert all(field.description for source in built_in.values() for field in source.fields)


def test_each_type_is_decoded_as_declared() -> None:
    """A field that is not required may be absent or null; undeclared fields are no error."""
    fields = ", ".join(
        f'{{ name = "f_{kind}", type = "{t}", description = "d" }}' for kind, t in zip(FieldType, TYPES, strict=True)
    )
    source = sources.parse(declare(fields), "test")["things"]
    sent = (
        b'{"f_string": "s", "f_bool": true, "f_int64": 1, "f_float64": 2, "f_date32": "2013-01-02",'
        b' "f_timestamp": "2013-01-02T03:04:05+01:00", "f_decimal128": 12.30, "other": {}, "f_int32": -1,'
        b' "f_float32": 1.5, "f_binary": "AP8=", "f_json": [1, {"a": 2.50}], "f_list": ["a", null],'
        b' "f_struct": {"x": 1, "when": "2013-01-02T03:04:05Z", "more": 0}, "f_map": {"a": [1, null], "b": null}}'
    )
    record = msgspec.structs.asdict(msgspec.json.decode(sent, type=source.record_type))
    assert record == {
        "f_string": "s",
        "f_bool": True,
        "f_int64": 1,
        "f_float64": 2.0,
        "f_decimal128": Decimal("12.30"),
        "f_timestamp": dt.datetime(2013, 1, 2, 2, 4, 5, tzinfo=dt.UTC),
        "f_date32": dt.date(2013, 1, 2),
        "f_int32": -1,
        "f_float32": 1.5,
        "f_binary": b"\x00\xff",
        "f_json": msgspec.Raw(b'[1, {"a": 2.50}]'),
        "f_list": ["a", None],
        "f_struct": {"x": 1, "when": dt.datetime(2013, 1, 2, 3, 4, 5, tzinfo=dt.UTC)},
        "f_map": {"a": [1.0, None], "b": None},
        "classification_id": None,
    }
    empty = msgspec.json.decode(b'{"f_string": null}', type=source.record_type)
    assert set(msgspec.structs.astuple(empty)) == {None}


def test_a_version_counts_changes_and_begins_at_1() -> None:
    assert sources.parse(declare(FIELD), "test")["things"].version == 1
    assert sources.parse(declare(FIELD, more="version = 2"), "test")["things"].version == 2


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "declares no source"),
        ("[things", "table declaration"),
        ('[things]\ndescription = "d"', "things: declares no field: add at least one, or raw = true"),
        (declare(FIELD, more="raw = true"), "things: raw = true is for a source without fields"),
        (declare(FIELD, name="Things"), "'Things'"),
        (declare(FIELD, name='"a.b"'), "'a.b'"),
        (declare(f"{FIELD}, {FIELD}"), "things, field a: is declared twice"),
        (declare(FIELD.replace('"string"', '"decimal"')), "no type 'decimal'; the types are string, bool, int32"),
        *(
            (declare(FIELD.replace('"string"', f'"{declared}"')), reason)
            for declared, reason in (
                ("list", "no type 'list'"),
                ("list<>", "field a: there is no type ''"),
                ("list<string, int64>", "a list has one type: list<type>"),
                ("list<decimal128(39, 0)>", "the precision must be 1 to 38"),
                ("map<int64, string>", "the keys of a map are strings: map<string, type>"),
                ("map<string>", "the keys of a map are strings: map<string, type>"),
                ("struct<>", "each field of a struct has a name of its own and a type"),
                ("struct<a: int64, a: int64>", "each field of a struct has a name of its own and a type"),
                ("struct<1a: int64>", "each field of a struct has a name of its own and a type"),
                ("struct<a: int64, b>", "each field of a struct has a name of its own and a type"),
                ("list<struct<a: list<text>>>", "no type 'text'"),
                ("list<" * 9 + "string" + ">" * 9, "types are nested more than 8 deep"),
            )
        ),
        *(
            (declare(FIELD.replace('"string"', f'"{declared}"')), reason)
            for declared, reason in (
                ('string", timezone = "Europe/Lisbon', "timezone and unit belong to fields of the type timestamp"),
                ('int64", unit = "ms', "timezone and unit belong to fields of the type timestamp"),
                ('timestamp", unit = "min', "Invalid enum value 'min'"),
                ('timestamp", timezone = "Lisbon', "there is no time zone 'Lisbon': use a name of the tz database"),
                ('timestamp", timezone = "../etc', "there is no time zone '../etc'"),
                ('timestamp", unit = "s", timezone = "UTC', "a number of s since 1970 has no time zone"),
                ('int64", widened_from = "int32', "widened_from and widened_since belong together"),
                ('string", alias = "classification_id', "the alias is reserved"),
                ('string", alias = "', "the alias must have 1 to 256 characters"),
                ('string", alias = "a\\\\b', "the alias must have 1 to 256 characters, none of which is a quotation"),
            )
        ),
        (
            declare(FIELD + ", " + FIELD.replace('"a"', '"b"').replace(" }", ', alias = "a" }')),
            "field b: has the same name in records as the field a: a",
        ),
        *(
            (declare(FIELD.replace('"string"', f'"{declared}"'), more="version = 3"), reason)
            for declared, reason in (
                ('int64", widened_since = 2, widened_from = "float32', "float32 cannot become int64; what can be"),
                ('int32", widened_since = 2, widened_from = "int64', "int64 cannot become int32; what can be widened"),
                ('int64", widened_since = 1, widened_from = "int32', "widened_since = 1 must be higher than its since"),
                ('int64", widened_since = 4, widened_from = "int32', "and not higher than the version of the source"),
            )
        ),
        (declare(FIELD.replace('"string"', '"decimal128"')), "decimal128(precision, scale)"),
        *(
            (declare(FIELD.replace('"string"', f'"decimal128({digits})"')), f"decimal128({digits})")
            for digits in ("0, 0", "39, 2", "2, 3", "2", "-1, 0")
        ),
        ("[things]\nfields = []", "source things: Object missing required field `description`"),
        ("things = 1", "source things: Expected `object`"),
        (declare(FIELD, more="version = 0"), "source things: Expected `int` >= 1"),
        (declare(FIELD, more="retention_days = 0"), "source things: Expected `int` >= 1"),
        (declare(FIELD, more="retention_days = 40000"), "source things: Expected `int` <= 36500"),
        (declare(FIELD, more="versions = 2"), "source things: Object contains unknown field `versions`"),
        (
            declare(FIELD.replace(" }", ", since = 2 }")),
            "field a: since = 2 is higher than the version of the source (1)",
        ),
        (declare(FIELD.replace(" }", ", since = 0 }"), more="version = 2"), "field a: Expected `int` >= 1"),
        (
            declare(FIELD.replace(" }", ", since = 2, required = true }"), more="version = 2"),
            "field a: cannot be required, because older records do not have it (since = 2): set required = false",
        ),
        (declare(FIELD.replace('"a"', '"A"')), "things, field 'A'"),
        (declare(FIELD.replace('"a"', '"_payload"')), "things, field '_payload'"),
        (declare(FIELD.replace(" }", ", units = 1 }")), "units"),
        (declare('{ name = "a", type = "string" }'), "source things, field a: Object missing required field `desc"),
        (
            declare('{ type = "string", description = "d" }'),
            "source things, field 1: Object missing required field `name",
        ),
        *(
            (declare(FIELD.replace('"a"', f'"{name}"')), f"field {name}: the name is reserved")
            for name in sorted(sources.RESERVED)
        ),
    ],
)
def test_the_error_for_an_invalid_declaration_names_file_source_and_field(text: str, named: str) -> None:
    with pytest.raises(Misconfigured, match=r"^things\.toml: ") as refused:
        sources.parse(text, "things.toml")
    assert named in str(refused.value)


def test_the_error_for_an_unreadable_file_names_the_file_and_the_setting(tmp_path: Path) -> None:
    latin = tmp_path / "latin.toml"
    latin.write_bytes(declare(FIELD).encode() + b"# \xe9")
    for file in (tmp_path, tmp_path / "none.toml", latin):
        with pytest.raises(Misconfigured, match=rf"^BRONZE_SOURCES: {file} cannot be read: "):
            sources.load(file)


def test_the_age_of_its_objects_is_no_part_of_what_readers_depend_on() -> None:
    """A role goes on with an edited age, and nothing is registered anew."""
    before = sources.parse(declare(FIELD), "f")["things"]
    after = sources.parse(declare(FIELD, more="retention_days = 30"), "f")["things"]
    assert (before.retention_days, after.retention_days) == (None, 30)
    assert (before, before.schema) == (after, after.schema)


def test_a_file_replaces_the_built_in_sources(tmp_path: Path) -> None:
    file = tmp_path / "things.toml"
    file.write_text(declare(FIELD))
    assert list(sources.without_canary(sources.load(file))) == ["things"]
    assert sources.without_canary(sources.load(None)) == sources.built_in()


def test_the_source_of_the_canary_is_there_beside_any_declared_ones(tmp_path: Path) -> None:
    """It has the schema that a declaration of it would have."""
    file = tmp_path / "things.toml"
    file.write_text(declare(FIELD))
    assert sources.load(file)[sources.CANARY] == sources.load(None)[sources.CANARY]


def test_the_name_of_the_canary_is_reserved(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"source canary: the name is reserved .* choose another name"):
        sources.parse(declare(FIELD).replace("[things]", "[canary]"), "own.toml")


# --- decimals


@given(st.decimals(allow_nan=True, allow_infinity=True), st.integers(1, 38), st.data())
def test_a_decimal_is_stored_exactly_or_refused(value: Decimal, precision: int, data: st.DataObject) -> None:
    scale = data.draw(st.integers(0, precision))
    field = Field("a", FieldType.DECIMAL, "d", precision=precision, scale=scale)
    digits = Fraction(value) * 10**scale if value.is_finite() else None
    fits = digits is not None and digits.denominator == 1 and abs(digits) < 10**precision
    try:
        quantized = field.quantize(value)
    except ValueError:
        assert not fits
    else:
        assert fits
        assert (quantized, quantized.as_tuple().exponent) == (value, -scale)


# --- versions

INT = RegisteredField("int64", required=False, since=1)
NEW = RegisteredField("string", required=False, since=2)
INT32 = RegisteredField("int32", required=False, since=1)
WIDENED = RegisteredField("int64", required=False, since=1, widened_from="int32", widened_since=2)


@pytest.mark.parametrize(
    ("registered", "declared", "reason"),
    [
        pytest.param(RegisteredSchema(1, {"a": INT}), RegisteredSchema(1, {"a": INT}), None, id="the same"),
        pytest.param(
            RegisteredSchema(1, {"a": INT}),
            RegisteredSchema(2, {"a": INT, "b": NEW}),
            None,
            id="one more optional field",
        ),
        pytest.param(
            RegisteredSchema(2, {"a": INT, "b": NEW}), RegisteredSchema(1, {"a": INT}), None, id="an older process"
        ),
        pytest.param(
            RegisteredSchema(1, {"a": INT}),
            RegisteredSchema(3, {"b": NEW, "a": INT}),
            None,
            id="two versions later, in another order",
        ),
        pytest.param(
            RegisteredSchema(1, {"a": INT}), RegisteredSchema(2, {"a": INT}), None, id="a version without a change"
        ),
        pytest.param(RegisteredSchema(1, {"a": INT32}), RegisteredSchema(2, {"a": WIDENED}), None, id="widened"),
        pytest.param(
            RegisteredSchema(3, {"a": WIDENED}), RegisteredSchema(1, {"a": INT32}), None, id="not widened yet"
        ),
        pytest.param(
            RegisteredSchema(2, {"a": INT32}),
            RegisteredSchema(3, {"a": WIDENED}),
            "field a: the registered version 2 has int32, optional, since version 1; the declared version 3 has int64, "
            "optional, since version 1, widened_from int32; you cannot remove a field or change it, except for a wider",
            id="widened in a version that exists already",
        ),
        pytest.param(
            RegisteredSchema(2, {"a": WIDENED}),
            RegisteredSchema(3, {"a": INT}),
            "you cannot remove a field or change it",
            id="forgets that it was widened",
        ),
        pytest.param(
            RegisteredSchema(1, {"a": INT}),
            RegisteredSchema(2, {"a": RegisteredField("int64", required=False, since=1, alias="A")}),
            "the declared version 2 has int64, optional, since version 1, alias A; you cannot remove a field",
            id="another name in records",
        ),
        pytest.param(
            RegisteredSchema(1, {"a": INT}),
            RegisteredSchema(2, {"a": RegisteredField("string", required=False, since=1)}),
            "field a: the registered version 1 has int64, optional, since version 1; "
            "the declared version 2 has string, optional, since version 1; you cannot remove a field",
            id="another type",
        ),
        pytest.param(
            RegisteredSchema(1, {"a": INT}),
            RegisteredSchema(2, {"a": RegisteredField("int64", required=True, since=1)}),
            "has int64, required, since version 1; you cannot remove a field",
            id="newly required",
        ),
        pytest.param(
            RegisteredSchema(1, {"a": RegisteredField("int64", required=True, since=1)}),
            RegisteredSchema(2, {"a": INT}),
            "has int64, optional, since version 1; you cannot remove a field",
            id="no longer required",
        ),
        pytest.param(
            RegisteredSchema(1, {"a": INT, "c": INT}),
            RegisteredSchema(2, {"a": INT}),
            "field c: the registered version 1 has int64, optional, since version 1; "
            "the declared version 2 has no such field",
            id="removed",
        ),
        pytest.param(
            RegisteredSchema(1, {"a": INT}),
            RegisteredSchema(2, {"a": INT, "c": INT}),
            "a new field must be optional, with since = 2 or higher",
            id="added without since",
        ),
        pytest.param(
            RegisteredSchema(1, {"a": INT}),
            RegisteredSchema(1, {"a": INT, "c": INT}),
            "must be optional, with since = 2 or higher, and the version of the source must be raised",
            id="added at the same version",
        ),
        pytest.param(
            RegisteredSchema(2, {"a": INT, "b": NEW}),
            RegisteredSchema(1, {"a": INT, "b": INT}),
            "field b: the registered version 2 has string, optional, since version 2; the declared version 1 has int64",
            id="an older process that differs",
        ),
        pytest.param(
            RegisteredSchema(3, {"a": INT, "b": NEW}),
            RegisteredSchema(2, {"a": INT}),
            "field b: the registered version 3 has string",
            id="an older process that lacks a field of its version",
        ),
    ],
)
def test_two_versions_can_be_read_together_or_the_error_names_the_field(
    registered: RegisteredSchema, declared: RegisteredSchema, reason: str | None
) -> None:
    error = incompatibility(registered, declared)
    assert (error is None) == (reason is None)
    assert (reason or "") in (error or "")


def test_a_source_at_an_earlier_version_has_no_later_fields() -> None:
    """It is the same object each time, so that its decoder is made only once."""
    later = FIELD.replace('"a"', '"b"').replace(" }", ", since = 3 }")
    source = sources.parse(declare(f"{FIELD}, {later}", more="version = 4"), "test")["things"]
    names = {version: [field.name for field in source.at_version(version).fields] for version in (1, 2, 3, 4, 5)}
    assert names == {1: ["a"], 2: ["a"], 3: ["a", "b"], 4: ["a", "b"], 5: ["a", "b"]}
    assert source.at_version(2) is source.at_version(2)
    assert source.at_version(4) is source.at_version(5) is source


@st.composite
def versioned_sources(draw: st.DrawFn) -> Source:
    version = draw(st.integers(1, 4))
    kinds = st.sampled_from([kind for kind in FieldType if kind.value in TYPES])
    fields = []
    for name in draw(st.lists(st.sampled_from("abcdef"), min_size=1, unique=True)):
        since = draw(st.integers(1, version))
        kind, widened = draw(kinds), draw(st.integers(0, version))
        narrower = next((narrow for narrow, wider in WIDER.items() if wider is kind and widened > since), None)
        fields.append(
            Field(
                name,
                kind,
                "d",
                required=since == 1 and draw(st.booleans()),
                since=since,
                widened_from=narrower,
                widened_since=widened if narrower else 0,
            )
        )
    return Source("things", "d", version, tuple(fields))


@given(versioned_sources(), st.integers(1, 4))
def test_every_version_of_a_source_can_be_read_with_every_other(source: Source, version: int) -> None:
    earlier = source.at_version(version)
    assert incompatibility(earlier.schema, source.schema) is None
    assert incompatibility(source.schema, earlier.schema) is None
