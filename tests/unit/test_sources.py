"""Sources are data: what can be declared, and how a wrong declaration is refused."""

import datetime as dt

import msgspec
import pytest

from bronze import sources
from bronze.errors import Misconfigured
from bronze.sources import FieldType

FIELD = '{ name = "a", type = "string", description = "d" }'


def declare(fields: str, name: str = "things", more: str = "") -> str:
    return f'[{name}]\ndescription = "d"\n{more}\nfields = [{fields}]'


def test_four_sources_are_built_in() -> None:
    built_in = sources.built_in()
    assert list(built_in) == ["vehicles", "status", "results", "failures"]
    assert all(field.description for source in built_in.values() for field in source.fields)


def test_each_type_is_decoded_as_declared() -> None:
    """A field that is not required may be absent or null; what is undeclared is no error."""
    fields = ", ".join(f'{{ name = "f_{kind}", type = "{kind}", description = "d" }}' for kind in FieldType)
    source = sources.parse(declare(fields), "test")["things"]
    sent = (
        b'{"f_string": "s", "f_bool": true, "f_int64": 1, "f_float64": 2, "f_date32": "2013-01-02",'
        b' "f_timestamp": "2013-01-02T03:04:05+01:00", "other": {}}'
    )
    record = msgspec.structs.asdict(msgspec.json.decode(sent, type=source.record_type))
    assert record == {
        "f_string": "s",
        "f_bool": True,
        "f_int64": 1,
        "f_float64": 2.0,
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
        (declare(FIELD.replace('"string"', '"decimal"')), "decimal"),
        (declare(FIELD.replace('"a"', '"A"')), "things, field 'A'"),
        (declare(FIELD.replace('"a"', '"_payload"')), "things, field '_payload'"),
        (declare(FIELD.replace(" }", ", unit = 1 }")), "unit"),
        (declare('{ name = "a", type = "string" }'), "description"),
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
