"""`bronze sources infer`: the declaration takes what it was made from, with the types that a person would choose."""

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from bronze.__main__ import parser
from bronze.errors import Misconfigured, Refused
from bronze.publisher import Plan, run_infer
from bronze.publisher.batches import batches_of
from bronze.publisher.files import open_file
from bronze.publisher.formats import ANY_CSV, CsvOptions
from bronze.publisher.inferring import infer
from bronze.records import sources
from bronze.records.json_intake import JsonIntake
from bronze.records.sources import Source
from tests.unit.test_declared_types import columnar, rows

DAY = dt.datetime(2013, 1, 1, 5, 15, tzinfo=dt.UTC)


def inferred(file: Path, **options: Any) -> Source:
    return sources.parse(infer("things", [str(file)], **options), "inferred")["things"]


def types_of(source: Source) -> dict[str, str]:
    return {field.name_in_records: field.declared_type for field in source.fields}


def of_json(tmp_path: Path, *records: object) -> Source:
    file = tmp_path / "sample.ndjson"
    file.write_text("".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records))
    source = inferred(file)
    takes(source, file)
    return source


def takes(source: Source, file: Path, csv: CsvOptions = ANY_CSV) -> list[dict[str, Any]]:
    """The rows that the records of a file become, which all have to be accepted."""
    stored: list[dict[str, Any]] = []
    with open_file(str(file)) as opened:
        for batch in batches_of(opened, Plan(source.name, csv=csv), lambda: source):
            if batch.unit == "row" or not batch.media_type.endswith("ndjson"):
                with pa.ipc.open_stream(batch.body) as stream:
                    for part in stream:
                        stored += rows(columnar(source, part), source)
                continue
            intake = JsonIntake(source, body_bytes_max=2**30, spool_memory_bytes_max=2**20)
            try:
                intake.add_lines(batch.body)
            except Refused:
                intake.close()
                raise
            stored += rows(intake.finish(), source)
    return stored


@pytest.mark.parametrize(
    ("values", "declared"),
    [
        ([1, -5], "int64"),
        ([2**63], "decimal128(19, 0)"),
        ([1, 2.5], "float64"),
        (["x", "", "2013-01-01"], "string"),
        ([True, False], "bool"),
        (["2013-01-01T05:15:00Z", "2013-01-01T05:15:00.5+01:00"], "timestamp"),
        (["2013-01-01", "2012-02-29"], "date32"),
        (["2013-02-30"], "string"),
        (["0001-01-01T00:00:00+14:00"], "string"),
        (["007", "12"], "string"),
        ([1, "x"], "json"),
        ([[1, 2], [], None], "list<int64>"),
        ([["a"], [1]], "list<json>"),
        ([[]], "json"),
        ([{}], "json"),
        ([{"x": 1, "y": [{"z": "2013-01-01T00:00:00Z"}]}], "struct<x: int64, y: list<struct<z: timestamp>>>"),
        ([{"x": 1}, {"y": None}], "struct<x: int64>"),
        ([{"a b": 1, "c": 2}], "map<string, int64>"),
        ([{"a b": 1, "c": "x"}], "json"),
        ([{f"k{n}": "v" for n in range(300)}], "map<string, string>"),
    ],
    ids=str,
)
def test_values_of_json_get_the_narrowest_type_that_takes_all(tmp_path: Path, values: list[Any], declared: str) -> None:
    assert types_of(of_json(tmp_path, *({"a": value} for value in values), {})) == {"a": declared}


def test_digits_that_a_double_cannot_hold_are_kept(tmp_path: Path) -> None:
    assert types_of(of_json(tmp_path, '{"a": 12345678901234567890.123}', '{"a": 1}')) == {"a": "decimal128(23, 3)"}
    assert types_of(of_json(tmp_path, '{"a": 1e400}')) == {"a": "json"}
    assert types_of(of_json(tmp_path, '{"a": 1e-400}')) == {"a": "float64"}


def test_names_become_those_of_columns_with_aliases(tmp_path: Path) -> None:
    names = ["deviceId", "HTTPStatus", "ürün", "2nd", "a b", "a-b", "source", "file_path", "x", "", '"', "_payload"]
    source = of_json(tmp_path, dict.fromkeys(names, 1) | {"classification_id": "c"})
    assert {field.name: field.alias for field in source.fields} == {
        "device_id": "deviceId",
        "http_status": "HTTPStatus",
        "r_n": "ürün",
        "f_2nd": "2nd",
        "a_b": "a b",
        "a_b_2": "a-b",
        "source_2": "source",
        "file_path_2": "file_path",
        "x": None,
        "payload": "_payload",
    }


def test_comments_say_what_is_not_sure(tmp_path: Path) -> None:
    file = tmp_path / "sample.ndjson"
    file.write_text('{"at": "2013-01-01T05:15:00", "epoch": 1357017300000, "none": null}\n{"epoch": 1357017301000}\n')
    assert infer("things", [str(file)]) == (
        "# Inferred by `bronze sources infer` from 2 records in 1 file. Check it, and describe the fields.\n"
        "[things]\n"
        'description = ""\n'
        "fields = [\n"
        "    # times without an offset: is UTC right?\n"
        "    # absent or null in 1 of 2 records\n"
        '    { name = "at", type = "timestamp", timezone = "UTC", description = "" },\n'
        '    # if it is a time: type = "timestamp", unit = "ms"\n'
        '    { name = "epoch", type = "int64", description = "" },\n'
        "]\n"
        "# Not declared, so it is only in _payload:\n"
        '#   "none": always null\n'
    )


@pytest.mark.parametrize(
    ("values", "note"),
    [
        (["1234.50", "7.5"], 'if these are numbers: type = "decimal128(6, 2)", with as many digits as may come'),
        (["1234,50"], "if these are numbers (decimal128, if they are money): send them with a point"),
        (
            [1234.5, 0.25],
            'if every digit counts, as of money: type = "decimal128(6, 2)", with as many digits as may come',
        ),
        ([7, 0.5], 'if every digit counts, as of money: type = "decimal128(2, 1)", with as many digits as may come'),
        (["12", "7"], None),
        (["7.5", "x"], None),
        ([1e300], None),
    ],
    ids=str,
)
def test_a_decimal_is_proposed_for_what_may_be_money(tmp_path: Path, values: list[Any], note: str | None) -> None:
    file = tmp_path / "sample.ndjson"
    file.write_text("".join(json.dumps({"price": value}) + "\n" for value in values))
    text = infer("things", [str(file)])
    assert (f"    # {note}\n" in text) if note else ("decimal128" not in text)


@pytest.mark.parametrize(
    ("text", "csv", "note"),
    [
        ("price\n1234.50\n 7.5\n", ANY_CSV, 'if every digit counts, as of money: type = "decimal128(6, 2)"'),
        ("price;x\n1234,50;\n 7,5;\n", CsvOptions(decimal_comma=True), 'as of money: type = "decimal128(6, 2)"'),
        (
            "price;x\n1234,50;\n 7,5;\n",
            ANY_CSV,
            "(decimal128, if they are money): infer and publish with --decimal-comma",
        ),
    ],
)
def test_a_decimal_is_proposed_for_what_may_be_money_in_csv(
    tmp_path: Path, text: str, csv: CsvOptions, note: str
) -> None:
    """And the type that is proposed takes the file."""
    file = tmp_path / "sample.csv"
    file.write_text(text)
    declared = infer("things", [str(file)], csv=csv)
    assert note in declared
    for kind in ("float64", "string"):
        declared = declared.replace(f'type = "{kind}"', 'type = "decimal128(6, 2)"')
    if "infer and publish" not in note:
        taken = takes(sources.parse(declared, "inferred")["things"], file, csv)
        assert [str(row["price"]) for row in taken] == ["1234.50", "7.50"]


def test_records_that_the_declaration_does_not_take_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In a comment and on standard error, with the first of each kind."""
    file, other = tmp_path / "a\nb.ndjson", tmp_path / "b.parquet"
    lines = ['{"a": 1}', "a: 2", '{"a": 3', "[4]", '{"classification_id": 5}', '{"classification_id": ""}']
    file.write_bytes("\n".join([*lines, '{"classification_id": "6"}', '{"a": "']).encode() + b'\xff"}\n')
    pq.write_table(pa.table({"classification_id": [5, 6]}), other)
    text = infer("things", [str(file), str(other)])
    not_text = "classification_id is no text of 1 to 256 characters, so they are refused"
    problems = [
        f"not JSON, so they are refused: 3 records, the first in {file}, line 2",
        f"no JSON objects, which only a raw source takes: 1 record, the first in {file}, line 4",
        f"{not_text}: 4 records, the first in {file}, line 5",
    ]
    problems = [problem.replace("\n", r"\x0a") for problem in problems]
    assert caplog.messages == problems
    assert text.splitlines()[1:4] == [f"# {problem}" for problem in problems]
    assert "from 7 records in 2 files" in text
    assert types_of(sources.parse(text, "inferred")["things"]) == {"a": "int64"}


def test_a_classification_of_csv_is_any_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "a.csv"
    file.write_text("a,classification_id\n1,5\n2,\n")
    assert types_of(inferred(file)) == {"a": "int64"}
    assert caplog.messages == []


def test_a_file_without_any_json_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "a.ndjson"
    file.write_text("a;b\n1;2\n")
    with pytest.raises(Misconfigured, match=r"there is no record in .*not JSON, so they are refused: 2 records"):
        infer("things", [str(file)])


def test_records_that_are_no_objects_make_a_raw_source(tmp_path: Path) -> None:
    assert of_json(tmp_path, [1], "2", {}).is_raw


def test_several_files_are_one_source(tmp_path: Path) -> None:
    """Also of different formats; a type that differs becomes json, which takes both."""
    (tmp_path / "a.ndjson").write_text('{"x": 1, "y": 1}\n')
    pq.write_table(pa.table({"y": ["text"], "z": [1.5]}), tmp_path / "b.parquet")
    files = [tmp_path / "a.ndjson", tmp_path / "b.parquet"]
    source = sources.parse(infer("things", list(map(str, files))), "inferred")["things"]
    assert types_of(source) == {"x": "int64", "y": "json", "z": "float64"}


def test_only_the_first_records_are_read_if_asked(tmp_path: Path) -> None:
    file = tmp_path / "sample.ndjson"
    file.write_text('{"a": 1}\n{"a": "x"}\n')
    assert types_of(inferred(file, records_max=1)) == {"a": "int64"}


# --- the command


def run(*words: str) -> int:
    return run_infer(parser().parse_args(["sources", "infer", *words]))


def test_the_source_has_the_name_of_the_file_or_that_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "2024-Orders.ndjson"
    file.write_text('{"a": 1}\n')
    assert run(str(file)) == 0
    assert "[source_2024_orders]" in capsys.readouterr().out
    assert run(str(file), "--name", "orders") == 0
    assert "[orders]" in capsys.readouterr().out
    with pytest.raises(Misconfigured, match="source 'Orders'"):
        run(str(file), "--name", "Orders")


def test_what_cannot_be_read_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.parquet"
    assert run(str(file)) == 1
    assert "No such file" in capsys.readouterr().err
    file.write_bytes(b"PAR1")
    assert run(str(file)) == 1
    assert "is not a readable parquet file" in capsys.readouterr().err
    with pytest.raises(Misconfigured, match="no known extension"):
        run(str(tmp_path / "a.txt"))
    (tmp_path / "empty.ndjson").write_text("")
    with pytest.raises(Misconfigured, match="there is no record"):
        run(str(tmp_path / "empty.ndjson"))
