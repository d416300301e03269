"""A source as a data contract, in the Open Data Contract Standard (ODCS, of Bitol): the contract that is exported.

What the standard has a place for is there: names (`physicalName` is the name in records), types, required fields,
descriptions and time zones. Everything else is in custom properties that begin with `bronze`, so that
`data_contract_import` makes the same declaration again.
"""

import datetime as dt
from collections.abc import Mapping
from typing import Any

import yaml

from bronze.records.expectations import Expectations, FieldExpectations, period
from bronze.records.fields import Field, FieldType
from bronze.records.sources import Source

KIND = "DataContract"
API_VERSION = "v3.1.0"
#: The custom properties of a source, and of a field.
VERSION, STRICT, EVENT_TIME, EXPECT = "bronzeVersion", "bronzeStrict", "bronzeEventTime", "bronzeExpect"
RETENTION_DAYS = "bronzeRetentionDays"
SINCE, UNIT, WIDENED_FROM, WIDENED_SINCE = "bronzeSince", "bronzeUnit", "bronzeWidenedFrom", "bronzeWidenedSince"


def contract_text(source: Source) -> str:
    """The contract as YAML."""
    return yaml.dump(contract(source), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def contract(source: Source) -> Mapping[str, Any]:
    """The contract, as the standard nests it."""
    of = source.expectations.fields
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "id": f"bronze-{source.name}",
        "name": source.name,
        "version": f"{source.version}.0.0",
        "status": "active",
        "schema": [
            {
                "name": source.name,
                "logicalType": "object",
                "physicalType": "file",
                "description": source.description,
                **_custom(
                    {
                        VERSION: source.version,
                        STRICT: source.strict or None,
                        EVENT_TIME: source.event_time,
                        RETENTION_DAYS: source.retention_days,
                        EXPECT: expected_of_source(source.expectations) or None,
                    }
                ),
                **(
                    {"properties": [_property(field, of.get(field.name)) for field in source.fields]}
                    if source.fields
                    else {}
                ),
            }
        ],
    }


def expected_of_source(expectations: Expectations) -> Mapping[str, Any]:
    """The expectations of a source itself, as they are declared."""
    every = expectations.every_s and period(expectations.every_s)
    declared = {"every": every, "records_per_hour_min": expectations.records_per_hour_min}
    return {name: value for name, value in declared.items() if value is not None}


def _expected_of_field(expected: FieldExpectations) -> Mapping[str, Any]:
    """The expectations of a field, as they are declared; times as text."""
    declared = {name: getattr(expected, name) for name in expected.__struct_fields__}
    return {
        name: value.isoformat() if isinstance(value, dt.date) else list(value) if isinstance(value, tuple) else value
        for name, value in declared.items()
        if value is not None
    }


def _rules(expected: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the standard has a place for: rules of data quality."""
    rules: list[Mapping[str, Any]] = []
    if "null_share_max" in expected:
        percent = round(100 * expected["null_share_max"], 6)
        rules.append({"metric": "nullValues", "unit": "percent", "mustBeLessOrEqualTo": percent})
    if "values" in expected:
        rules.append({"metric": "invalidValues", "arguments": {"validValues": expected["values"]}, "mustBe": 0})
    return {"quality": rules} if rules else {}


def _property(field: Field, expectations: FieldExpectations | None) -> Mapping[str, Any]:
    expected = _expected_of_field(expectations) if expectations else {}
    bounds = {long: expected[short] for short, long in (("min", "minimum"), ("max", "maximum")) if short in expected}
    typed = dict(_typed(field))
    if bounds:
        typed["logicalTypeOptions"] = {**typed.get("logicalTypeOptions", {}), **bounds}
    custom = {
        EXPECT: expected or None,
        SINCE: field.since if field.since > 1 else None,
        UNIT: field.unit and field.unit.value,
        WIDENED_FROM: field.widened_from and field.widened_from.value,
        WIDENED_SINCE: field.widened_since or None,
    }
    return {
        "name": field.name,
        **({"physicalName": field.alias} if field.alias else {}),
        **typed,
        "physicalType": field.declared_type,
        "required": field.required,
        "description": field.description,
        **_rules(expected),
        **_custom(custom),
    }


def _custom(values: Mapping[str, object]) -> Mapping[str, Any]:
    given = [{"property": name, "value": value} for name, value in values.items() if value is not None]
    return {"customProperties": given} if given else {}


def _typed(field: Field) -> Mapping[str, Any]:
    """The logical type, with its options and what it contains."""
    match field.type:
        case FieldType.STRING:
            return {"logicalType": "string"}
        case FieldType.BOOL:
            return {"logicalType": "boolean"}
        case FieldType.INT32 | FieldType.INT64:
            return {"logicalType": "integer", "logicalTypeOptions": {"format": f"i{field.type.value[3:]}"}}
        case FieldType.FLOAT32 | FieldType.FLOAT64:
            return {"logicalType": "number", "logicalTypeOptions": {"format": f"f{field.type.value[5:]}"}}
        case FieldType.DECIMAL:
            return {"logicalType": "number"}
        case FieldType.TIMESTAMP if field.timezone:
            return {
                "logicalType": "timestamp",
                "logicalTypeOptions": {"timezone": False, "defaultTimezone": field.timezone},
            }
        case FieldType.TIMESTAMP:
            return {"logicalType": "timestamp", "logicalTypeOptions": {"timezone": True}}
        case FieldType.DATE:
            return {"logicalType": "date", "logicalTypeOptions": {"format": "yyyy-MM-dd"}}
        case FieldType.BINARY:
            return {"logicalType": "string", "logicalTypeOptions": {"format": "byte"}}
        case FieldType.LIST:
            item = field.children[0]
            return {"logicalType": "array", "items": {**_typed(item), "physicalType": item.declared_type}}
        case FieldType.MAP | FieldType.JSON:  # the standard has maps since v3.2, and no type for any value
            return {"logicalType": "object"}
        case FieldType.STRUCT:
            children = [
                {"name": child.name, **_typed(child), "physicalType": child.declared_type} for child in field.children
            ]
            return {"logicalType": "object", "properties": children}


class _Dumper(yaml.SafeDumper):
    """Quotes text with control characters and other line breaks, which plain scalars would lose."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)
