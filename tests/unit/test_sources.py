"""Sources are data: what can be declared, and how a wrong declaration is refused."""

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
#: Each type as it may be declared.
TYPES = [f"{kind}(4, 2)" if kind is FieldType.DECIMAL else kind.value for kind in FieldType]


def declare(fields: str, name: str = "things", more: str = "") -> str:
    return f'[{name}]\ndescription = "d"\n{more}\nfields = [{fields}]'


def test_four_sources_are_built_in() -> None:
    built_in = sources.built_in()
    assert list(built_in) == ["vehicles", "status", "results", "failures"]
    assert all(field.description for source in built_in.values() for field in source.fields)


def test_each_type_is_decoded_as_declared() -> None:
    """A field that is not required may be absent or null; what is undeclared is no error."""
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
        (declare(FIELD.replace(" }", ", since = 2 }")), "field a: since = 2, and the source's version is 1"),
        (declare(FIELD.replace(" }", ", since = 0 }"), more="version = 2"), "field a: Expected `int` >= 1"),
        (
            declare(FIELD.replace(" }", ", since = 2, required = true }"), more="version = 2"),
            "field a: is required, and older records do not have it",
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
            (declare(FIELD.replace('"a"', f'"{name}"')), f"field {name}: the name is taken")
            for name in sorted(sources.RESERVED)
        ),
    ],
)
def test_a_wrong_declaration_is_refused_by_file_source_and_field(text: str, named: str) -> None:
    with pytest.raises(Misconfigured, match=r"^things\.toml: ") as refused:
        sources.parse(text, "things.toml")
    assert named in str(refused.value)


def test_a_file_that_cannot_be_read_is_named_with_its_setting(tmp_path: Path) -> None:
    latin = tmp_path / "latin.toml"
    latin.write_bytes(declare(FIELD).encode() + b"# \xe9")
    for file in (tmp_path, tmp_path / "none.toml", latin):
        with pytest.raises(Misconfigured, match=rf"^BRONZE_SOURCES: {file} cannot be read: "):
            sources.load(file)


def test_the_file_is_the_whole_list(tmp_path: Path) -> None:
    file = tmp_path / "things.toml"
    file.write_text(declare(FIELD))
    assert list(sources.load(file)) == ["things"]
    assert sources.load(None) == sources.built_in()


# --- decimals


@given(st.decimals(allow_nan=True, allow_infinity=True), st.integers(1, 38), st.data())
def test_a_decimal_is_kept_to_the_digit_or_refused(value: Decimal, precision: int, data: st.DataObject) -> None:
    scale = data.draw(st.integers(0, precision))
    field = Field("a", FieldType.DECIMAL, "d", precision=precision, scale=scale)
    digits = Fraction(value) * 10**scale if value.is_finite() else None
    fits = digits is not None and digits.denominator == 1 and abs(digits) < 10**precision
    try:
        exact = field.exact(value)
    except ValueError:
        assert not fits
    else:
        assert fits
        assert (exact, exact.as_tuple().exponent) == (value, -scale)


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
            id="an optional field more",
        ),
        pytest.param(
            RegisteredSchema(2, {"a": INT, "b": NEW}), RegisteredSchema(1, {"a": INT}), None, id="an older process"
        ),
        pytest.param(
            RegisteredSchema(1, {"a": INT}),
            RegisteredSchema(3, {"b": NEW, "a": INT}),
            None,
            id="two versions on, other order",
        ),
        pytest.param(
            RegisteredSchema(1, {"a": INT}), RegisteredSchema(2, {"a": INT}), None, id="a version without a change"
        ),
        pytest.param(
            RegisteredSchema(1, {"a": INT}),
            RegisteredSchema(2, {"a": RegisteredField("string", required=False, since=1)}),
            "field a: version 1, which is registered, has int64, optional, since version 1; "
            "version 2, which is declared, has string, optional, since version 1; a field is never removed",
            id="another type",
        ),
        pytest.param(
            RegisteredSchema(1, {"a": INT}),
            RegisteredSchema(2, {"a": RegisteredField("int64", required=True, since=1)}),
            "has int64, required, since version 1; a field is never removed",
            id="required from now on",
        ),
        pytest.param(
            RegisteredSchema(1, {"a": RegisteredField("int64", required=True, since=1)}),
            RegisteredSchema(2, {"a": INT}),
            "has int64, optional, since version 1; a field is never removed",
            id="no longer required",
        ),
        pytest.param(
            RegisteredSchema(1, {"a": INT, "c": INT}),
            RegisteredSchema(2, {"a": INT}),
            "field c: version 1, which is registered, has int64, optional, since version 1; "
            "version 2, which is declared, has no such field",
            id="removed",
        ),
        pytest.param(
            RegisteredSchema(1, {"a": INT}),
            RegisteredSchema(2, {"a": INT, "c": INT}),
            "is optional and says since = 2 or later",
            id="added without since",
        ),
        pytest.param(
            RegisteredSchema(1, {"a": INT}),
            RegisteredSchema(1, {"a": INT, "c": INT}),
            "is optional and says since = 2 or later, and the source's version is raised",
            id="added at the same version",
        ),
        pytest.param(
            RegisteredSchema(2, {"a": INT, "b": NEW}),
            RegisteredSchema(1, {"a": INT, "b": INT}),
            "field b: version 2, which is registered, has string, optional, since version 2; "
            "version 1, which is declared, has int64",
            id="an older process that differs",
        ),
        pytest.param(
            RegisteredSchema(3, {"a": INT, "b": NEW}),
            RegisteredSchema(2, {"a": INT}),
            "field b: version 3, which is registered, has string",
            id="an older process that lacks what it should have",
        ),
    ],
)
def test_two_versions_can_be_read_together_or_the_field_is_named(
    registered: RegisteredSchema, declared: RegisteredSchema, reason: str | None
) -> None:
    why = incompatibility(registered, declared)
    assert (why is None) == (reason is None)
    assert (reason or "") in (why or "")


def test_a_source_at_an_earlier_version_lacks_what_came_later() -> None:
    """It is the same object each time: its decoder is made once."""
    later = FIELD.replace('"a"', '"b"').replace(" }", ", since = 3 }")
    source = sources.parse(declare(f"{FIELD}, {later}", more="version = 4"), "test")["things"]
    names = {version: [field.name for field in source.at(version).fields] for version in (1, 2, 3, 4, 5)}
    assert names == {1: ["a"], 2: ["a"], 3: ["a", "b"], 4: ["a", "b"], 5: ["a", "b"]}
    assert source.at(2) is source.at(2)
    assert source.at(4) is source.at(5) is source


@st.composite
def versioned(draw: st.DrawFn) -> Source:
    version = draw(st.integers(1, 4))
    kinds = st.sampled_from([kind for kind in FieldType if kind is not FieldType.DECIMAL])
    fields = []
    for name in draw(st.lists(st.sampled_from("abcdef"), min_size=1, unique=True)):
        since = draw(st.integers(1, version))
        fields.append(Field(name, draw(kinds), "d", required=since == 1 and draw(st.booleans()), since=since))
    return Source("things", "d", version, tuple(fields))


@given(versioned(), st.integers(1, 4))
def test_every_version_of_a_source_can_be_read_with_every_other(source: Source, version: int) -> None:
    earlier = source.at(version)
    assert incompatibility(earlier.schema, source.schema) is None
    assert incompatibility(source.schema, earlier.schema) is None
