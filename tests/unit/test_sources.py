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
from bronze.records.sources import Field, FieldType, RegisteredField, RegisteredSchema, Source, incompatibility

FIELD = '{ name = "a", type = "string", description = "d" }'
#: Each type, as in a declaration.
TYPES = [f"{kind}(4, 2)" if kind is FieldType.DECIMAL else kind.value for kind in FieldType]


def declare(fields: str, name: str = "things", more: str = "") -> str:
    return f'[{name}]\ndescription = "d"\n{more}\nfields = [{fields}]'


def test_four_sources_are_built_in() -> None:
    built_in = sources.built_in()
    assert list(built_in) == ["vehicles", "status", "results", "failures"]
    assert all(field.description for source in built_in.values() for field in source.fields)


def test_each_type_is_decoded_as_declared() -> None:
    """A field that is not required may be absent or null; undeclared fields are no error."""
    fields = ", ".join(f'{{ name = "f_{t.partition("(")[0]}", type = "{t}", description = "d" }}' for t in TYPES)
    source = sources.parse(declare(fields), "test")["things"]
    sent = (
        b'{"f_string": "s", "f_bool": true, "f_int64": 1, "f_float64": 2, "f_date32": "2013-01-02",'
        b' "f_timestamp": "2013-01-02T03:04:05+01:00", "f_decimal128": 12.30, "other": {}}'
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
        (declare(""), "things: declares no field"),
        (declare(FIELD, name="Things"), "'Things'"),
        (declare(FIELD, name='"a.b"'), "'a.b'"),
        (declare(f"{FIELD}, {FIELD}"), "things, field a: is declared twice"),
        (declare(FIELD.replace('"string"', '"decimal"')), "no type 'decimal'; the types are string, bool, int64"),
        (declare(FIELD.replace('"string"', '"decimal128"')), "decimal128(precision, scale)"),
        *(
            (declare(FIELD.replace('"string"', f'"decimal128({digits})"')), f"decimal128({digits})")
            for digits in ("0, 0", "39, 2", "2, 3", "2", "-1, 0")
        ),
        ("[things]\nfields = []", "source things: Object missing required field `description`"),
        ("things = 1", "source things: Expected `object`"),
        (declare(FIELD, more="version = 0"), "source things: Expected `int` >= 1"),
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
        (declare(FIELD.replace(" }", ", unit = 1 }")), "unit"),
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
    kinds = st.sampled_from([kind for kind in FieldType if kind is not FieldType.DECIMAL])
    fields = []
    for name in draw(st.lists(st.sampled_from("abcdef"), min_size=1, unique=True)):
        since = draw(st.integers(1, version))
        fields.append(Field(name, draw(kinds), "d", required=since == 1 and draw(st.booleans()), since=since))
    return Source("things", "d", version, tuple(fields))


@given(versioned_sources(), st.integers(1, 4))
def test_every_version_of_a_source_can_be_read_with_every_other(source: Source, version: int) -> None:
    earlier = source.at_version(version)
    assert incompatibility(earlier.schema, source.schema) is None
    assert incompatibility(source.schema, earlier.schema) is None
