"""Files as other people's programs write them: published, typed, and read back equal; or refused with what to do.

`bronze sources infer` gives each of them a declaration that takes it. `files/pandas.parquet` was written by pandas
3.1.1, which is no dependency of the tests:

    pd.DataFrame({
        "id": ["a", "b", "c"],
        "seats": [149, None, 182],
        "exact": pd.array([2**53 + 1, None, 3], dtype="Int64"),
        "maker": pd.Categorical(["BOEING", "AIRBUS", "BOEING"]),
        "at": pd.to_datetime(["2013-01-01T05:15:00.123456Z", None, "2013-01-02T05:15:00Z"], format="ISO8601"),
        "late": [True, False, True],
        "ratio": [0.1, float("nan"), 2.5],
    }, index=[10, 20, 30]).to_parquet("pandas.parquet")
"""

import datetime as dt
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from bronze.errors import Misconfigured, Refused
from bronze.publisher.formats import ANY_CSV, CsvOptions
from bronze.publisher.inferring import infer
from bronze.records import sources
from bronze.records.sources import Source
from tests.unit.test_inference import takes, types_of

DAY = dt.datetime(2013, 1, 1, 5, 15, tzinfo=dt.UTC)
NEXT_DAY = DAY + dt.timedelta(days=1)


def pandas_frame(file: Path) -> None:
    """Integers with a missing value are doubles, text is large, the index is a column."""
    shutil.copy(Path(__file__).parent / "files" / "pandas.parquet", file)


def pandas_lines(file: Path) -> None:
    """As `DataFrame.to_json(orient="records", lines=True)`: times are milliseconds."""
    file.write_text('{"id":"a","at":1357017300000,"n":1.0}\n{"id":"b","at":null,"n":null}\n')


def polars_categories(file: Path) -> None:
    frame = pl.DataFrame({"kind": ["x", "y"], "when": [DAY, DAY], "tags": [["a"], []], "n": [1, 2]})
    frame.with_columns(pl.col("kind").cast(pl.Categorical)).write_ipc(file)


def duckdb_types(file: Path) -> None:
    struct, mapping = "{'a': 1, 'b': 'z'}", "MAP {'k': 1.5::DOUBLE}"
    duckdb.execute(
        "COPY (SELECT 1::TINYINT AS t, 2::UBIGINT AS u, 1.50::DECIMAL(9,2) AS d, '2013-01-01'::DATE AS day, "
        f"'2013-01-01 05:15:00'::TIMESTAMP AS at, 'x'::BLOB AS raw, {struct} AS s, [1,2] AS l, {mapping} AS m, "
        f"'05:15:00'::TIME AS t2, 'd48d9e04-5e13-4e9e-a0f1-432d41d4996f'::UUID AS id) TO '{file}' (FORMAT parquet)"
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


def excel_of_europe(file: Path) -> None:
    """As Excel saves "CSV UTF-8" where the decimal separator is a comma."""
    rows = ["Größe;Preis;Datum;Zahl", "M;12,50;2013-01-01;3", "L;1,5;2013-01-02;", '"a;b";-0,25;;-7']
    file.write_text("\ufeff" + "".join(f"{row}\r\n" for row in rows), encoding="utf-8", newline="")


@dataclass(frozen=True)
class Case:
    """A file, the types of its declaration, and its rows in the bucket."""

    name: str
    write: Callable[[Path], None]
    types: dict[str, str]
    rows: Sequence[dict[str, Any]]
    csv: CsvOptions = ANY_CSV
    #: the payload of the first row, if it has what no column has
    payload: str | None = None


OCTOCAT = {"id": 583231, "login": "octocat", "gravatar_id": "", "url": "https://api.github.com/users/octocat"}
EVENT = {"id": "22249084964", "type": "PushEvent", "actor": OCTOCAT, "public": True}
AT_GITHUB = dt.datetime(2022, 6, 9, 12, 47, 28, tzinfo=dt.UTC)
CHARGE = {"id": "ch_1", "object": "charge", "amount": 1099, "created": 1679090539, "livemode": False}

CASES = [
    Case(
        "pandas.parquet",
        pandas_frame,
        {
            "id": "string",
            "seats": "float64",
            "exact": "int64",
            "maker": "string",
            "at": "timestamp",
            "late": "bool",
            "ratio": "float64",
            "__index_level_0__": "int64",
        },
        [
            {"id": "a", "seats": 149.0, "exact": 2**53 + 1, "maker": "BOEING", "at": DAY.replace(microsecond=123456),
             "late": True, "ratio": 0.1, "index_level_0": 10},
            {"id": "b", "seats": None, "exact": None, "maker": "AIRBUS", "at": None, "late": False, "ratio": None,
             "index_level_0": 20},
            {"id": "c", "seats": 182.0, "exact": 3, "maker": "BOEING", "at": NEXT_DAY, "late": True, "ratio": 2.5,
             "index_level_0": 30},
        ],
    ),
    Case(
        "pandas.ndjson",
        pandas_lines,
        {"id": "string", "at": "int64", "n": "float64"},
        [{"id": "a", "at": 1357017300000, "n": 1.0}, {"id": "b", "at": None, "n": None}],
    ),
    Case(
        "polars.arrow",
        polars_categories,
        {"kind": "string", "when": "timestamp", "tags": "list<string>", "n": "int64"},
        [
            {"kind": "x", "when": DAY, "tags": ["a"], "n": 1},
            {"kind": "y", "when": DAY, "tags": [], "n": 2},
        ],
    ),
    Case(
        "polars.csv",
        csv_of_polars,
        {"a": "int64", "b": "string", "c": "float64", "d": "bool", "at": "timestamp"},
        [
            {"a": 1, "b": "x,y", "c": 1.5, "d": True, "at": DAY},
            {"a": 2, "b": None, "c": 1e300, "d": False, "at": DAY},
        ],
    ),
    Case(
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
        [
            {"t": 1, "u": 2, "d": Decimal("1.50"), "day": DAY.date(), "at": DAY, "raw": b"x", "s": {"a": 1, "b": "z"},
             "l": [1, 2], "m": {"k": 1.5}, "id": bytes.fromhex("d48d9e045e134e9ea0f1432d41d4996f")},
        ],
        payload='{"t2":"05:15:00.000000"}',
    ),
    Case("spark.parquet", spark_times, {"at": "timestamp", "n": "int32"}, [{"at": DAY, "n": 1}]),
    Case(
        "excel.csv",
        excel_csv,
        {"Order ID": "string", "Amount": "float64", "Ordered At": "timestamp", "Paid": "bool"},
        [
            {"order_id": "0017", "amount": 12.5, "ordered_at": DAY, "paid": True},
            {"order_id": "0018", "amount": None, "ordered_at": NEXT_DAY, "paid": False},
        ],
    ),
    Case(
        "excel-of-europe.csv",
        excel_of_europe,
        {"Größe": "string", "Preis": "float64", "Datum": "date32", "Zahl": "int64"},
        [
            {"gr_e": "M", "preis": 12.5, "datum": DAY.date(), "zahl": 3},
            {"gr_e": "L", "preis": 1.5, "datum": NEXT_DAY.date(), "zahl": None},
            {"gr_e": "a;b", "preis": -0.25, "datum": None, "zahl": -7},
        ],
        CsvOptions(decimal_comma=True),
    ),
    Case(
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
        [
            {
                **EVENT,
                "payload": {
                    "size": 1,
                    "commits": [{"sha": "7a8f", "author": {"email": "o@github.com"}, "distinct": True}],
                    "action": None,
                },
                "created_at": AT_GITHUB,
            },
            {**EVENT, "payload": {"size": None, "commits": None, "action": "started"}, "created_at": AT_GITHUB},
        ],
    ),
    Case(
        "weather.json",
        json_of_weather,
        {
            "latitude": "float64",
            "generationtime_ms": "float64",
            "hourly": "struct<time: list<string>, temperature_2m: list<float64>>",
            "hourly_units": "struct<temperature_2m: string>",
        },
        [
            {
                "latitude": 52.52,
                "generationtime_ms": 2.2119,
                "hourly": {"time": ["2022-07-01T00:00", "2022-07-01T01:00"], "temperature_2m": [13.0, 12.7, None]},
                "hourly_units": {"temperature_2m": "°C"},
            }
        ],
    ),
    Case(
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
        [
            {
                **CHARGE,
                "metadata": {"order id": f"{number}"},
                "payment_method_details": {"card": {"checks": '{"cvc_check": null}', "exp_year": 2028}, "type": "card"},
            }
            for number in range(3)
        ],
    ),
    Case(
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
        [
            {"f16": 1.5, "u64": Decimal(2**64 - 1), "fixed": b"ab", "ree": "r", "weird": '{"a b":1}',
             "by_int": '[[1,"x"]]'},
        ],
        payload='{"ns":"2013-01-01T05:15:00.000000001Z","dur":5,"dec":"1.5","nothing":null}',
    ),
]  # fmt: skip


def inferred(file: Path, csv: CsvOptions = ANY_CSV) -> Source:
    return sources.parse(infer("things", [str(file)], csv=csv), "inferred")["things"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_file_is_declared_published_and_read_back_equal(case: Case, tmp_path: Path) -> None:
    """Each record becomes a row, in columns of the types that a person would choose, and no value changes."""
    file = tmp_path / case.name
    case.write(file)
    source = inferred(file, case.csv)
    assert types_of(source) == case.types
    stored = takes(source, file, case.csv)
    assert [{field.name: row[field.name] for field in source.fields} for row in stored] == list(case.rows)
    if case.payload is not None:
        assert stored[0]["_payload"] == case.payload


# --- what is refused


def declared(field: str) -> Source:
    """A source with one field, `NAME: TYPE` in its records."""
    name, kind = field.split(": ")
    line = f'{{ name = "{name.lower()}", alias = "{name}", type = "{kind}", description = "-" }}'
    return sources.parse(f'[things]\ndescription = "-"\nfields = [{line}]', "things.toml")["things"]


def nan_from_pandas(file: Path) -> None:
    """As `DataFrame.to_parquet` with the engine fastparquet, which keeps NaN in a column of integers."""
    pq.write_table(pa.table({"seats": [1.0, float("nan")]}), file)


def decimals_of_duckdb(file: Path) -> None:
    duckdb.execute(f"COPY (SELECT 12345678901234567890.123::DECIMAL(38,3) AS price) TO '{file}' (FORMAT parquet)")


def local_times_of_polars(file: Path) -> None:
    pl.DataFrame({"at": [DAY.replace(tzinfo=None)]}).write_parquet(file)


def excel_workbook(file: Path) -> None:
    file.write_bytes(b"PK\x03\x04")


REFUSED: list[tuple[str, Callable[[Path], None], str, str]] = [
    ("fastparquet.parquet", nan_from_pandas, "seats: int64", r"[Rr]ecord 1, field seats: .*nan"),
    ("duckdb.parquet", decimals_of_duckdb, "price: float64", r"Field price: Expected double, got decimal128\(38, 3"),
    ("polars.parquet", local_times_of_polars, "at: timestamp", r"Field at: .*without a time zone"),
    ("excel.csv", excel_of_europe, "Preis: float64", r"Record 0, field Preis: Expected `float \| null`, got `str`"),
    ("excel.xlsx", excel_workbook, "a: int64", r"no known extension"),
]


@pytest.mark.parametrize(("name", "write", "field", "reason"), REFUSED, ids=[name for name, *_ in REFUSED])
def test_a_file_that_does_not_fit_is_refused_with_the_field_and_the_reason(
    name: str, write: Callable[[Path], None], field: str, reason: str, tmp_path: Path
) -> None:
    """Nothing is rounded, guessed or left out to make it fit."""
    file = tmp_path / name
    write(file)
    with pytest.raises((Refused, Misconfigured), match=reason):
        takes(declared(field), file)


def test_numbers_with_a_decimal_comma_are_not_guessed(tmp_path: Path) -> None:
    """They may be thousands. Inferred without the option, they are text, and a comment names the option."""
    file = tmp_path / "excel.csv"
    excel_of_europe(file)
    text = infer("things", [str(file)])
    assert "--decimal-comma" in text
    source = sources.parse(text, "inferred")["things"]
    assert types_of(source)["Preis"] == "string"
    assert [row["preis"] for row in takes(source, file)] == ["12,50", "1,5", "-0,25"]
