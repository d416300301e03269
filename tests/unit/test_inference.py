"""`bronze sources infer`: the declaration takes what it was made from, with the types that a person would choose."""

import datetime as dt
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from bronze.__main__ import parser
from bronze.errors import Misconfigured
from bronze.publisher import Plan, run_infer
from bronze.publisher.batches import batches_of
from bronze.publisher.files import open_file
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


def takes(source: Source, file: Path) -> list[dict[str, Any]]:
    """The rows that the records of a file become, which all have to be accepted."""
    stored: list[dict[str, Any]] = []
    with open_file(str(file)) as opened:
        for batch in batches_of(opened, Plan(source.name), lambda: source):
            if batch.unit == "row" or not batch.media_type.endswith("ndjson"):
                with pa.ipc.open_stream(batch.body) as stream:
                    for part in stream:
                        stored += rows(columnar(source, part), source)
                continue
            intake = JsonIntake(source, body_bytes_max=2**30, spool_memory_bytes_max=2**20)
            intake.add_lines(batch.body)
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


# --- files of other programs


def pandas_integers_with_nulls(file: Path) -> None:
    """As `DataFrame.to_parquet`: integers with a missing value are doubles, and text is large."""
    table = pa.table(
        {"id": pa.array(["a", None], pa.large_string()), "count": [1.0, None], "__index_level_0__": [0, 1]}
    )
    pq.write_table(table.replace_schema_metadata({"pandas": "{}"}), file)


def polars_categories(file: Path) -> None:
    frame = pl.DataFrame({"kind": ["x", "y"], "when": [DAY, DAY], "tags": [["a"], []], "n": [1, 2]})
    frame.with_columns(pl.col("kind").cast(pl.Categorical)).write_ipc(file)


def duckdb_types(file: Path) -> None:
    struct, mapping = "{'a': 1, 'b': 'z'}", "MAP {'k': 1.5::DOUBLE}"
    duckdb.execute(
        "COPY (SELECT 1::TINYINT AS t, 2::UBIGINT AS u, 1.50::DECIMAL(9,2) AS d, '2013-01-01'::DATE AS day, "
        f"'2013-01-01 05:15:00'::TIMESTAMP AS at, 'x'::BLOB AS raw, {struct} AS s, [1,2] AS l, {mapping} AS m, "
        f"'05:15:00'::TIME AS t2, uuid() AS id) TO '{file}' (FORMAT parquet)"
    )


def spark_times(file: Path) -> None:
    """As Spark writes by default: times as INT96, in UTC."""
    table = pa.table({"at": pa.array([DAY], pa.timestamp("us")), "n": pa.array([1], pa.int32())})
    pq.write_table(table, file, use_deprecated_int96_timestamps=True)


def excel_csv(file: Path) -> None:
    rows = ["0017,12.50,2013-01-01T05:15:00,TRUE", "0018,,2013-01-02T05:15:00,FALSE"]
    lines = ["\ufeffOrder ID,Amount,Ordered At,Paid", *rows]
    file.write_text("".join(f"{line}\r\n" for line in lines), newline="")


def json_of_github(file: Path) -> None:
    event = {
        "id": "22249084964",
        "type": "PushEvent",
        "actor": {"id": 583231, "login": "octocat", "gravatar_id": "", "url": "https://api.github.com/users/octocat"},
        "payload": {"size": 1, "commits": [{"sha": "7a8f", "author": {"email": "o@github.com"}, "distinct": True}]},
        "public": True,
        "created_at": "2022-06-09T12:47:28Z",
        "org": None,
    }
    file.write_text(json.dumps([event, {**event, "payload": {"action": "started"}}]))


def json_of_weather(file: Path) -> None:
    answer = {
        "latitude": 52.52,
        "generationtime_ms": 2.2119,
        "hourly": {"time": ["2022-07-01T00:00", "2022-07-01T01:00"], "temperature_2m": [13, 12.7, None]},
        "hourly_units": {"temperature_2m": "°C"},
    }
    file.write_text(json.dumps(answer))


def json_of_stripe(file: Path) -> None:
    charge = {
        "id": "ch_1",
        "object": "charge",
        "amount": 1099,
        "created": 1679090539,
        "metadata": {},
        "livemode": False,
        "payment_method_details": {"card": {"checks": {"cvc_check": None}, "exp_year": 2028}, "type": "card"},
    }
    file.write_text("".join(json.dumps({**charge, "metadata": {"order id": str(n)}}) + "\n" for n in range(3)))


def arrow_of_everything(file: Path) -> None:
    table = pa.table(
        {
            "f16": pa.array([1.5], pa.float16()),
            "u64": pa.array([2**64 - 1], pa.uint64()),
            "ns": pa.array([1357017300000000001], pa.timestamp("ns", "UTC")),
            "dur": pa.array([5], pa.duration("s")),
            "fixed": pa.array([b"ab"], pa.binary(2)),
            "dec": pa.array([Decimal("1.5")], pa.decimal256(60, 1)),
            "nothing": pa.nulls(1),
            "ree": pa.RunEndEncodedArray.from_arrays([1], ["r"]),
            "weird": pa.array([{"a b": 1}]),
            "by_int": pa.array([[(1, "x")]], pa.map_(pa.int32(), pa.string())),
        }
    )
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def csv_of_polars(file: Path) -> None:
    pl.DataFrame({"a": [1, 2], "b": ["x,y", None], "c": [1.5, 1e300], "d": [True, False], "at": [DAY, DAY]}).write_csv(
        file, datetime_format="%Y-%m-%dT%H:%M:%S%:z"
    )


FILES: list[tuple[str, Callable[[Path], None], dict[str, str]]] = [
    ("pandas.parquet", pandas_integers_with_nulls, {"id": "string", "count": "float64", "__index_level_0__": "int64"}),
    (
        "polars.arrow",
        polars_categories,
        {"kind": "string", "when": "timestamp", "tags": "list<string>", "n": "int64"},
    ),
    (
        "duckdb.parquet",
        duckdb_types,
        {
            "t": "int32",
            "u": "int64",
            "d": "decimal128(9, 2)",
            "day": "date32",
            "at": "timestamp",
            "raw": "binary",
            "s": "struct<a: int32, b: string>",
            "l": "list<int32>",
            "m": "map<string, float64>",
            "id": "binary",
        },
    ),
    ("spark.parquet", spark_times, {"at": "timestamp", "n": "int32"}),
    ("excel.csv", excel_csv, {"Order ID": "string", "Amount": "float64", "Ordered At": "timestamp", "Paid": "bool"}),
    (
        "github.json",
        json_of_github,
        {
            "id": "string",
            "type": "string",
            "actor": "struct<id: int64, login: string, gravatar_id: string, url: string>",
            "payload": "struct<size: int64, commits: list<struct<sha: string, author: struct<email: string>, "
            "distinct: bool>>, action: string>",
            "public": "bool",
            "created_at": "timestamp",
        },
    ),
    (
        "weather.json",
        json_of_weather,
        {
            "latitude": "float64",
            "generationtime_ms": "float64",
            "hourly": "struct<time: list<string>, temperature_2m: list<float64>>",
            "hourly_units": "struct<temperature_2m: string>",
        },
    ),
    (
        "stripe.jsonl",
        json_of_stripe,
        {
            "id": "string",
            "object": "string",
            "amount": "int64",
            "created": "int64",
            "metadata": "map<string, string>",
            "livemode": "bool",
            "payment_method_details": "struct<card: struct<checks: json, exp_year: int64>, type: string>",
        },
    ),
    (
        "everything.feather",
        arrow_of_everything,
        {
            "f16": "float32",
            "u64": "decimal128(20, 0)",
            "fixed": "binary",
            "ree": "string",
            "weird": "json",
            "by_int": "json",
        },
    ),
    (
        "polars.csv",
        csv_of_polars,
        {"a": "int64", "b": "string", "c": "float64", "d": "bool", "at": "timestamp"},
    ),
]


@pytest.mark.parametrize(("name", "write", "declared"), FILES, ids=[name for name, *_ in FILES])
def test_files_of_other_programs_are_declared_and_taken(
    tmp_path: Path, name: str, write: Callable[[Path], None], declared: dict[str, str]
) -> None:
    """Each record becomes a row, in columns of these types."""
    file = tmp_path / name
    write(file)
    source = inferred(file)
    assert types_of(source) == declared
    stored = takes(source, file)
    assert stored
    for row in stored:
        for field in source.fields:
            assert row[field.name] is not None or "null" in infer("things", [str(file)])


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
