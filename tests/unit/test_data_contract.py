"""Data contracts (ODCS): an exported source fits the standard's schema, and comes back as the same declaration."""

import importlib.resources
import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.__main__ import parser
from bronze.admin import sources_command
from bronze.admin.data_contract import contract_text
from bronze.admin.data_contract_import import declarations
from bronze.errors import Misconfigured
from bronze.records import sources
from bronze.records.declaration_text import quoted
from bronze.records.sources import Source

SCHEMA = jsonschema_rs.validator_for(
    json.loads((importlib.resources.files("open_data_contract_standard") / "schema.json").read_text())
)
EVERYTHING = """
[everything]
description = "Each kind of field; \\"quoted\\", and\\nmore: {x} # no comment"
version = 4
strict = true
event_time = "d"
retention_days = 400
expect = { every = "90m", records_per_hour_min = 2.5 }
timezone = "Europe/Lisbon"
fields = [
    { name = "s", type = "string", required = true, description = "-", expect = {values = ["\\"b"], distinct_max = 3 }},
    { name = "b", type = "bool", description = "yes" },
    { name = "i__", type = "int32", description = "-", expect = { min = -5, max = 7, values = [1, 2] } },
    { name = "wide", type = "int64", widened_from = "int32", widened_since = 3, since = 2, description = "-" },
    { name = "f", type = "float32", description = "-", expect = { min = 0.5, null_share_max = 0.07 } },
    { name = "g", type = "float64", alias = "The G: #1", description = "-" },
    { name = "n", type = "decimal128(9, 2)", description = "-" },
    { name = "at", type = "timestamp", description = "local", expect = { min = 2020-01-01T00:00:00.5+02:00 } },
    { name = "at_new_york", type = "timestamp", timezone = "America/New_York", description = "-" },
    { name = "at_ms", type = "timestamp", unit = "ms", description = "-" },
    { name = "d", type = "date32", since = 4, description = "2013-01-01", expect = { max = 2030-01-01 } },
    { name = "y", type = "binary", description = "-" },
    { name = "j", type = "json", description = "-" },
    { name = "l", type = "list<struct<sku: string, At: timestamp, n: map<string, int32>>>", description = "-" },
    { name = "m", type = "map<string, list<decimal128(3, 3)>>", description = "-" },
]

[plain]
description = ""
fields = [ { name = "at", type = "timestamp", description = "-" } ]

[raw]
description = "-"
raw = true
"""
DECLARED = {**sources.built_in(), **sources.parse(EVERYTHING, "everything.toml")}


def there_and_back(source: Source) -> Source:
    text = contract_text(source)
    SCHEMA.validate(yaml.safe_load(text))
    return sources.parse(declarations(text, "a.odcs.yaml"), "a.odcs.yaml")[source.name]


@pytest.mark.parametrize("source", DECLARED.values(), ids=DECLARED)
def test_a_round_trip_loses_nothing(source: Source) -> None:
    again = there_and_back(source)
    assert again == source
    # these make it no other source
    assert (again.expectations, again.retention_days) == (source.expectations, source.retention_days)
    assert "not kept" not in declarations(contract_text(source), "f")


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\'), min_size=1, max_size=40),
)
@settings(max_examples=200, deadline=None)
def test_any_description_and_alias_comes_back(description: str, alias: str) -> None:
    field = f'{{ name = "a", type = "string", alias = {quoted(alias)}, description = {quoted(description)} }}'
    text = f"[s]\ndescription = {quoted(description)}\nfields = [ {field} ]"
    if alias == "classification_id":
        return
    source = sources.parse(text, "f")["s"]
    assert there_and_back(source) == source


def contract(*properties: dict[str, Any], **more: Any) -> str:
    schema = [{"name": "Orders", "logicalType": "object", "properties": list(properties), **more.pop("of_object", {})}]
    return yaml.safe_dump(
        {"apiVersion": "v3.2.0", "kind": "DataContract", "id": "x", "version": "1.2.0", "schema": schema, **more}
    )


def field_lines(*properties: dict[str, Any]) -> list[str]:
    text = declarations(contract(*properties), "f")
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


@pytest.mark.parametrize(
    ("given", "declared"),
    [
        ({"logicalType": "string", "physicalType": "VARCHAR(20)"}, 'type = "string"'),
        ({"logicalType": "integer"}, 'type = "int64"'),
        ({"logicalType": "integer", "logicalTypeOptions": {"format": "u8"}}, 'type = "int32"'),
        ({"logicalType": "integer", "logicalTypeOptions": {"format": "u64"}}, 'type = "decimal128(20, 0)"'),
        ({"logicalType": "number"}, 'type = "float64"'),
        (
            {"logicalType": "integer", "logicalTypeOptions": {"minimum": 0, "maximum": 9}},
            'type = "int64", expect = { min = 0, max = 9 }',
        ),
        ({"logicalType": "number", "physicalType": "DECIMAL(10,2)"}, 'type = "decimal128(10, 2)"'),
        (
            {
                "logicalType": "number",
                "physicalType": "DECIMAL(10,2)",
                "logicalTypeOptions": {"minimum": 0, "maximum": 99999999.99},
            },
            'type = "decimal128(10, 2)", expect = { min = 0, max = 99999999.99 }',
        ),
        ({"logicalType": "integer", "logicalTypeOptions": {"minimum": 1.0}}, 'type = "int64", expect = { min = 1 }'),
        (
            {"logicalType": "date", "logicalTypeOptions": {"minimum": "2020-01-01", "maximum": "2020-12-31"}},
            'type = "date32", expect = { min = 2020-01-01, max = 2020-12-31 }',
        ),
        (
            {"logicalType": "timestamp", "logicalTypeOptions": {"timezone": True, "minimum": "2020-01-01T00:00:00Z"}},
            'type = "timestamp", expect = { min = 2020-01-01T00:00:00+00:00 }',
        ),
        ({"logicalType": "date", "physicalType": "DATE"}, 'type = "date32"'),
        ({"logicalType": "boolean"}, 'type = "bool"'),
        ({"logicalType": "date", "required": True}, 'type = "date32", required = true'),
        ({"logicalType": "timestamp", "logicalTypeOptions": {"timezone": True}}, 'type = "timestamp"'),
        (
            {"logicalType": "timestamp", "logicalTypeOptions": {"defaultTimezone": "Europe/Lisbon"}},
            'type = "timestamp", timezone = "Europe/Lisbon"',
        ),
        ({"logicalType": "array", "items": {"logicalType": "integer"}}, 'type = "list<int64>"'),
        (
            {"logicalType": "object", "properties": [{"name": "Sku", "logicalType": "string"}]},
            'type = "struct<Sku: string>"',
        ),
        (
            {"logicalType": "map", "map": {"key": {"logicalType": "string"}, "value": {"logicalType": "number"}}},
            'type = "map<string, float64>"',
        ),
        ({"name": "deviceId", "logicalType": "string"}, 'alias = "deviceId", type = "string"'),
        ({"physicalName": "Device Id", "logicalType": "string"}, 'alias = "Device Id", type = "string"'),
    ],
)
def test_contracts_of_others_become_declarations(given: dict[str, Any], declared: str) -> None:
    """What they say is what is declared, without a word of doubt."""
    given = {"name": "x", **given}
    SCHEMA.validate(yaml.safe_load(contract(given)))
    name = "device_id" if given["name"] == "deviceId" else "x"
    declared, expect, bounds = declared.partition(", expect = ")
    assert field_lines(given) == [f'{{ name = "{name}", {declared}, description = ""{expect}{bounds} }},']


@pytest.mark.parametrize(
    ("given", "comments", "declared"),
    [
        ({"logicalType": "timestamp"}, ["times without an offset: is UTC right?"], 'timestamp", timezone = "UTC'),
        (
            {"logicalType": "date", "physicalType": "TIMESTAMP"},
            ["a date in the contract, but its physicalType is TIMESTAMP", "times without an offset: is UTC right?"],
            'timestamp", timezone = "UTC',
        ),
        (
            {"logicalType": "date", "physicalType": "datetime2(7)"},
            ["a date in the contract, but its physicalType is datetime2(7)", "times without an offset: is UTC right?"],
            'timestamp", timezone = "UTC',
        ),
        (
            {"logicalType": "date", "physicalType": "timestamp with time zone"},
            ["a date in the contract, but its physicalType is timestamp with time zone"],
            "timestamp",
        ),
        (
            {"logicalType": "date", "logicalTypeOptions": {"format": "yyyy-MM-ddTHH:mm:ssZ"}},
            [
                "a date in the contract, but its format has a time of day",
                "not kept: format = yyyy-MM-ddTHH:mm:ssZ",
            ],
            "timestamp",
        ),
        (
            {"logicalType": "timestamp", "physicalType": "DATE"},
            ["a timestamp in the contract, but its physicalType is DATE"],
            "date32",
        ),
        (
            {"logicalType": "integer", "physicalType": "DECIMAL(10,2)"},
            ["an integer in the contract, but its physicalType is DECIMAL(10,2)"],
            "decimal128(10, 2)",
        ),
        *(
            (
                {"logicalType": "number", "physicalType": physical},
                [f"if every digit counts: decimal128 instead; its physicalType is {physical}"],
                "float64",
            )
            for physical in ("NUMERIC(99,2)", "numeric", "MONEY")
        ),
        (
            {"logicalType": "number", "logicalTypeOptions": {"minimum": 5, "maximum": 1}},
            ["not kept: maximum = 1", "not kept: minimum = 5"],
            "float64",
        ),
        (
            {"logicalType": "integer", "logicalTypeOptions": {"minimum": 0.5}},
            ["not kept: minimum = 0.5"],
            "int64",
        ),
        ({"logicalType": "time"}, ["there is no type for a time of day"], "string"),
        ({"logicalType": "array"}, ["a list of items without a type"], "json"),
        (
            {"logicalType": "vector", "logicalTypeOptions": {"dimensions": 3}},
            ["the length of a vector is not checked", "not kept: dimensions = 3"],
            "list<float32>",
        ),
        (
            {"logicalType": "string", "unique": True, "logicalTypeOptions": {"maxLength": 9, "pattern": "^a"}},
            ["not kept: unique = True", "not kept: maxLength = 9", "not kept: pattern = ^a"],
            "string",
        ),
        (
            {"logicalType": "string", "tags": ["pii"], "customProperties": [{"property": "steward", "value": "me"}]},
            ["not kept: tags = ['pii']", "not kept: steward = me"],
            "string",
        ),
        (
            {"logicalType": "array", "items": {"logicalType": "string", "logicalTypeOptions": {"minLength": 1}}},
            ["items: not kept: minLength = 1"],
            "list<string>",
        ),
        (
            {"logicalType": "object", "properties": [{"name": "a", "logicalType": "timestamp", "required": True}]},
            [
                "a: times without an offset: is UTC right?",
                "a: times without an offset remain text",
                "a: required, but a value in another one may be null",
            ],
            "struct<a: string>",
        ),
    ],
)
def test_what_a_declaration_cannot_say_is_a_comment(given: dict[str, Any], comments: list[str], declared: str) -> None:
    given = {"name": "x", **given}
    SCHEMA.validate(yaml.safe_load(contract(given)))
    *said, field = field_lines(given)
    assert said == [f"# {comment}" for comment in comments]
    assert f'type = "{declared}"' in field


def test_without_a_logical_type_the_physical_one_counts_if_it_is_known() -> None:
    assert field_lines({"name": "x", "physicalType": "INT32"}) == ['{ name = "x", type = "int32", description = "" },']
    comment, field = field_lines({"name": "x", "physicalType": "GEOGRAPHY"})
    assert comment == "# no logical type, and no type of a field is GEOGRAPHY"
    assert 'type = "json"' in field


def test_what_is_not_of_a_field_is_a_comment_too() -> None:
    text = declarations(
        contract({"name": "a", "logicalType": "string"}, team={"name": "us"}, of_object={"tags": ["x"]}), "f"
    )
    assert text.splitlines()[:4] == [
        "# Imported by `bronze sources import` from the data contract 1.2.0. Check it.",
        "# not kept: team = {'name': 'us'}",
        "# Orders in the contract",
        "# not kept: tags = ['x']",
    ]


def test_names_that_columns_cannot_have_are_aliases_and_different() -> None:
    names = ["Unit Price", "unitPrice", "date", "42", "\N{SNOWMAN}"]
    declared = sources.parse(declarations(contract(*({"name": n, "logicalType": "string"} for n in names)), "f"), "f")
    assert [(field.name, field.alias) for field in declared["orders"].fields] == [
        ("unit_price", "Unit Price"),
        ("unit_price_2", "unitPrice"),
        ("date_2", "date"),
        ("f_42", "42"),
        ("f", "\N{SNOWMAN}"),
    ]


def test_a_name_that_no_record_can_have_is_not_declared() -> None:
    properties = [{"name": 'a"b', "logicalType": "string"}, {"name": "a"}, {"name": "a"}]
    text = declarations(contract(*properties), "f")
    assert text.count("is not declared: such a name in records is not possible, or given twice") == 2
    assert [field.name for field in sources.parse(text, "f")["orders"].fields] == ["a"]


def test_a_text_of_a_contract_cannot_leave_its_comment() -> None:
    """Whoever wrote the contract cannot declare a source with it."""
    evil = 'x\n[evil]\nraw = true\ndescription = "-"\n'
    given = {"name": "x", "logicalType": "string", "tags": [evil], "physicalType": evil, "classification": evil}
    text = declarations(contract(given, {"name": evil}, name=evil, domain=evil, of_object={"businessName": evil}), "f")
    assert [*sources.parse(text, "f")] == ["orders"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [", "not YAML"),
        ("[1]", "not a data contract"),
        ("kind: Other", "not a data contract"),
        ("kind: DataContract\napiVersion: v2.2.2", "apiVersion is v2.2.2; only v3 can be read"),
        ("kind: DataContract", "apiVersion is missing"),
        ("kind: DataContract\napiVersion: v3.0.0", "the contract has no schema"),
        ("kind: DataContract\napiVersion: v3.0.0\nschema: {a: 1}", "schema has to be a list"),
    ],
)
def test_what_is_no_contract_is_refused(text: str, reason: str) -> None:
    with pytest.raises(Misconfigured, match=f"a.yaml: .*{reason}") as error:
        declarations(text, "a.yaml")
    assert r"\x0a" not in str(error.value)


def test_a_contract_with_several_objects_declares_several_sources() -> None:
    document = yaml.safe_load(contract({"name": "a", "logicalType": "string"}))
    document["schema"].append({"name": "orders", "logicalType": "object"})
    declared = sources.parse(declarations(yaml.safe_dump(document), "f"), "f")
    assert [*declared] == ["orders", "orders_2"]
    assert declared["orders_2"].is_raw


def test_the_commands_write_to_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own.toml"
    own.write_text(EVERYTHING)
    arguments = ["sources", "export", "everything", "--odcs", "--file", str(own)]
    assert sources_command.export_contract(parser().parse_args(arguments), None) == 0
    (tmp_path / "a.odcs.yaml").write_text(capsys.readouterr().out)
    arguments = ["sources", "import", str(tmp_path / "a.odcs.yaml")]
    assert sources_command.import_contract(parser().parse_args(arguments)) == 0
    assert sources.parse(capsys.readouterr().out, "f")["everything"] == DECLARED["everything"]
    assert sources_command.import_contract(parser().parse_args(["sources", "import", str(tmp_path / "none")])) == 1
    with pytest.raises(Misconfigured, match="there is no source nothing; the sources are vehicles, status"):
        sources_command.export_contract(parser().parse_args(["sources", "export", "nothing", "--odcs"]), None)
