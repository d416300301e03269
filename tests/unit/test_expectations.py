"""Expectations: what can be declared, the errors for what cannot, and that they are no part of the contract."""

import datetime as dt
from pathlib import Path

import pytest

from bronze.api.source_schema import described
from bronze.errors import Misconfigured
from bronze.records import sources
from bronze.records.expectations import Expectation, Expectations, FieldExpectations
from bronze.records.sources import Source, incompatibility


def declare(expect: str = "", kind: str = "int64", of_source: str = "") -> Source:
    field = f'{{ name = "a", type = "{kind}", description = "d"{expect and f", expect = {{ {expect} }}"} }}'
    source = of_source and f"expect = {{ {of_source} }}"
    text = f'[things]\ndescription = "d"\n{source}\nfields = [{field}]'
    return sources.parse(text, "own.toml")["things"]


def test_expectations_have_toml_types() -> None:
    source = declare(
        "null_share_max = 0.01, min = 0, max = 100, values = [1, 2], distinct_max = 2", "int64", 'every = "10m"'
    )
    assert source.expectations == Expectations(
        600, None, {"a": FieldExpectations(null_share_max=0.01, min=0, max=100, values=(1, 2), distinct_max=2)}
    )
    at = declare("min = 2013-01-01T00:00:00+01:00", "timestamp").expectations.fields["a"]
    assert at.min == dt.datetime(2012, 12, 31, 23, tzinfo=dt.UTC)
    assert at.limits == {Expectation.MIN: at.min.timestamp()}
    assert declare("max = 1970-01-02", "date32").expectations.fields["a"].limits == {Expectation.MAX: 86_400}
    assert declare("max = 1", "decimal128(4, 2)").expectations.fields["a"].limits == {Expectation.MAX: 1}
    assert declare(of_source='every = "2d", records_per_hour_min = 7').expectations == Expectations(172_800, 7)
    assert declare().expectations == Expectations()


@pytest.mark.parametrize(
    ("expect", "kind", "said"),
    [
        ("min = 0.5", "int64", "min must be a number without fraction"),
        ("min = true", "int64", "min must be a number without fraction"),
        ('max = "9"', "float64", "max must be a number"),
        ("max = nan", "float64", "max must be a number"),
        ("min = 1", "string", "min belongs to fields of the types int32, int64"),
        ("min = 3, max = 1", "int64", "min = 3 is above max = 1"),
        ("min = 2013-01-01", "timestamp", "min must be a time with an offset"),
        ("min = 2013-01-01T00:00:00", "timestamp", "min must be a time with an offset"),
        ("min = 2013-01-01T00:00:00Z", "date32", "min must be a date"),
        ("values = [1]", "float64", "values belongs to fields of the types string, int32, int64"),
        ("values = [1]", "string", "values must be a list of 1 to 1000 values of the type string"),
        ("values = []", "string", "values must be a list of 1 to 1000 values"),
        ("distinct_max = 2", "bool", "distinct_max belongs to fields of the types"),
        ("distinct_max = 0", "string", "distinct_max"),
        ("null_share_max = 1.1", "string", "null_share_max"),
        ("null_share = 0.1", "string", "unknown field `null_share`"),
    ],
)
def test_an_expectation_that_does_not_fit_its_field_is_an_error(expect: str, kind: str, said: str) -> None:
    """It names the file, the source and the field, and says what to do."""
    with pytest.raises(Misconfigured, match=r"own\.toml: source things, field a: expect: ") as raised:
        declare(expect, kind)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("expect", "said"),
    [
        ('every = "10"', "every = '10' is no period: write 30s, 10m, 2h or 7d"),
        ('every = "0m"', "is no period"),
        ("every = 10", "Expected `str | null`, got `int` - at `$.every`"),
        ("records_per_hour_min = 0", "records_per_hour_min"),
        ("null_share_max = 0.1", "unknown field `null_share_max`"),
    ],
)
def test_an_invalid_expectation_of_a_source_is_an_error(expect: str, said: str) -> None:
    with pytest.raises(Misconfigured, match=r"own\.toml: source things: expect: ") as raised:
        declare(of_source=expect)
    assert said in str(raised.value)


def test_a_raw_source_has_expectations_of_its_records() -> None:
    text = '[any]\ndescription = "d"\nraw = true\nexpect = { every = "1h" }'
    assert sources.parse(text, "own.toml")["any"].expectations.every_s == 3600


def test_expectations_are_no_part_of_the_contract(tmp_path: Path) -> None:
    """A source with others is the same source, of the same version."""
    before, after = declare(), declare("min = 0", of_source='every = "1h"')
    assert before == after
    assert before.schema == after.schema
    assert incompatibility(before.schema, after.schema) is None


def test_the_schema_of_a_source_has_its_expectations() -> None:
    shown = described(declare("min = 2013-01-01T00:00:00Z", "timestamp", 'every = "1h"')).model_dump(exclude_none=True)
    assert shown["expectations"] == {"every_s": 3600, "fields": {"a": {"min": "2013-01-01T00:00:00Z"}}}
