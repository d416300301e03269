"""Each type and encoding of a body is stored so that three readers read the sent values."""

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import StrEnum
from io import BytesIO
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from local.builds import REPOSITORY
from tests.system.blackbox import System, vehicles


class Form(StrEnum):
    NDJSON = "application/x-ndjson"
    JSON = "application/json"
    ARROW = "application/vnd.apache.arrow.stream"
    PARQUET = "application/vnd.apache.parquet"


ENCODINGS: Mapping[str, Callable[[bytes], bytes]] = {
    "identity": lambda body: body,
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
}

TOKYO = timezone(timedelta(hours=9))
SCHEDULED = datetime(2013, 1, 1, 5, 15, 0, 123456, TOKYO)
#: Declared fields of the source `status`, in another order than in the source; None: may be null.
DECLARED: list[dict[str, Any]] = [
    {
        "scheduled_at": SCHEDULED,
        "delay_min": -0.1,
        "destination": "東京",
        "origin": 'quo"te\\\n',
        "run_number": 2**63 - 1,
        "operator": "UÄ\N{SNOWMAN}\N{PILE OF POO}",
        "vehicle_id": "N1",
        "departed_at": SCHEDULED,
    },
    {
        "scheduled_at": SCHEDULED,
        "delay_min": None,
        "destination": "",
        "origin": "\u200f",
        "run_number": -(2**63),
        "operator": "-",
        "vehicle_id": None,
        "departed_at": None,
    },
]
#: Undeclared fields: nested values with nulls, an integer beyond 64 bits, a decimal, a time with a time zone.
NESTED = {"é": [{"b": [1, None]}, None], "z": None}
BIG = 2**80
PRICE = Decimal("12.50")


def json_records() -> list[bytes]:
    """Spelled as no JSON encoder would."""

    def spelled(row: Mapping[str, Any], number: int) -> bytes:
        declared = {name: v.isoformat() if isinstance(v, datetime) else v for name, v in row.items()}
        text = json.dumps(declared, ensure_ascii=bool(number), separators=(" ,", " : "))
        undeclared = (
            f'"nested": {json.dumps(NESTED, ensure_ascii=False)},  "big":{BIG}, "price": {PRICE}, '
            f'"at":"{SCHEDULED.isoformat()}", "big":1e400'  # a duplicate name, a number beyond all types
        )
        return f"{text[:-1]}, {undeclared} }}".encode()

    return [spelled(row, number) for number, row in enumerate(DECLARED)]


def columns() -> pa.Table:
    """The same records as columns, some with other types than the source's that represent the same values."""
    declared: dict[str, Any] = {name: [row[name] for row in DECLARED] for name in DECLARED[0]}
    return pa.table(
        {
            "nested": pa.array([NESTED, None]),
            **declared,
            "scheduled_at": pa.array(declared["scheduled_at"], pa.timestamp("ns", "Asia/Tokyo")),
            "departed_at": pa.array(declared["departed_at"], pa.timestamp("us", "+09:00")),
            "operator": pa.array(declared["operator"], pa.large_string()),
            "destination": pa.array(declared["destination"]).dictionary_encode(),
            "big": pa.array([Decimal(BIG), None], pa.decimal128(38, 0)),
            "price": pa.array([PRICE, Decimal("-0.01")], pa.decimal128(9, 2)),
            "at": pa.array([SCHEDULED, None], pa.timestamp("ns", "Asia/Tokyo")),
        }
    )


#: The undeclared columns as stored according to `docs/bodies.md`.
COLUMNAR_PAYLOADS = [
    (
        '{"nested":{"é":[{"b":[1,null]},null],"z":null},"big":"1208925819614629174706176","price":"12.50",'
        '"at":"2012-12-31T20:15:00.123456000Z"}'
    ),
    '{"nested":null,"big":null,"price":"-0.01","at":null}',
]


def body(form: Form) -> tuple[bytes, list[str]]:
    """A body with the two records, and the payloads that are expected in the bucket."""
    match form:
        case Form.NDJSON:
            return b"\r\n".join(json_records()), [record.decode() for record in json_records()]
        case Form.JSON:
            return b"[\n" + b" ,\n".join(json_records()) + b"]", [record.decode() for record in json_records()]
        case Form.PARQUET:
            sink = BytesIO()
            pq.write_table(columns(), sink, row_group_size=1)
            return sink.getvalue(), COLUMNAR_PAYLOADS
        case Form.ARROW:
            return stream(columns(), max_chunksize=1), COLUMNAR_PAYLOADS


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("form", Form)
def test_sent_values_are_read_back(form: Form, encoding: str, system: System, tmp_path: Path) -> None:
    """Nulls, nested values, big integers, decimals, times with zones, any script and any order of columns: declared
    values are stored as sent, the others in `_payload`, byte for byte. PyArrow, Polars and DuckDB agree.
    """
    sent, payloads = body(form)
    answer = system.post("status", ENCODINGS[encoding](sent), Content_Type=form, Content_Encoding=encoding)
    assert answer.status_code == 202, answer.text
    accepted = answer.json()
    assert (accepted["records"], accepted["classification_count"]) == (2, 1)
    (link,) = system.stored(accepted["submission_id"])["objects"]
    file = tmp_path / "object.parquet"
    file.write_bytes(system.body(link["file_path"]))

    read = pq.read_table(file).to_pylist()
    rows = [row for row in read if row["_submission_id"] == accepted["submission_id"]]
    in_utc = [{name: _utc(value) for name, value in row.items()} for row in DECLARED]
    assert [{name: row[name] for name in DECLARED[0]} for row in rows] == in_utc
    assert [row["_payload"] for row in rows] == payloads
    assert [row["_record_index"] for row in rows] == [0, 1]
    assert {row["classification_id"] for row in rows} == {accepted["classification_id"]}

    names = ["_submission_id", "run_number", "operator", "destination", "delay_min", "scheduled_at", "_payload"]
    polars = pl.read_parquet(file).filter(pl.col("_submission_id") == accepted["submission_id"]).select(names)
    expected = [tuple(row[name] for name in names) for row in rows]
    assert polars.rows() == expected
    with duckdb.connect() as database:
        by_duckdb = database.execute(
            "SELECT * REPLACE (make_timestamp(epoch_us(scheduled_at)) AS scheduled_at) "
            f"FROM (SELECT {', '.join(names)} FROM read_parquet(?) WHERE _submission_id = ? ORDER BY _record_index)",
            [str(file), accepted["submission_id"]],
        ).fetchall()
    assert [(*row[:5], row[5].replace(tzinfo=UTC), row[6]) for row in by_duckdb] == expected


def _utc(value: Any) -> Any:
    return value.astimezone(UTC) if isinstance(value, datetime) else value


def test_the_guides_example_is_accepted(system: System, tmp_path: Path) -> None:
    """The example of `docs/bodies.md` works as printed, except for the address."""
    (snippet,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/bodies.md").read_text(), re.DOTALL)
    code = snippet.replace("http://127.0.0.1:8000", system.url)
    assert code != snippet
    outcome = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert outcome.stdout.startswith("202 "), outcome.stderr or outcome.stdout


def test_a_columnar_body_of_many_messages_is_one_submission(system: System, mark: str) -> None:
    """Each row has its own classification; a retry of the same body under its key gets the same 202."""
    count = 20_000
    names = [f"{mark}-{n}" for n in range(count)]
    sent = parquet(vehicle_id=names, classification_id=[f"run-{n % 3}" for n in range(count)], n=names)
    answers = [
        system.post("vehicles", sent, Content_Type=Form.PARQUET, Idempotency_Key=mark) for _ in ("once", "again")
    ]
    assert [answer.status_code for answer in answers] == [202, 202]
    accepted = answers[0].json()
    assert accepted == answers[1].json()
    assert (accepted["records"], accepted["classification_id"], accepted["classification_count"]) == (count, None, 3)
    stored = system.stored(accepted["submission_id"])
    tables = [pq.read_table(BytesIO(system.body(link["file_path"]))) for link in stored["objects"]]
    rows = pa.concat_tables(tables).select(["vehicle_id", "_record_index", "_submission_id"]).to_pylist()
    rows = [row for row in rows if row["_submission_id"] == accepted["submission_id"]]
    assert [row["_record_index"] for row in rows] == list(range(count))
    assert [row["vehicle_id"] for row in rows] == names


def parquet(**named: Any) -> bytes:
    sink = BytesIO()
    pq.write_table(pa.table(named), sink)
    return sink.getvalue()


def stream(table: pa.Table, **options: int) -> bytes:
    sink = BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, **options)
    return sink.getvalue()


def bomb() -> bytes:
    """Half a MB, referenced ten thousand times: 5 GB in a body that contains it once."""
    texts = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), 10_000), pa.array(["x" * 2**19]))
    return stream(pa.table({"vehicle_id": texts}))


HOSTILE: dict[str, tuple[Callable[[], bytes], Form, int, str]] = {
    "garbage": (lambda: b"PAR1" + b"\xff" * 1000 + b"PAR1", Form.PARQUET, 400, "unreadable-body"),
    "bomb": (bomb, Form.ARROW, 413, "body-too-costly"),
    "cut stream": (lambda: stream(columns())[:-100], Form.ARROW, 400, "unreadable-body"),
    "wrong type": (lambda: parquet(vehicle_id=["a"], seats=["many"]), Form.PARQUET, 422, "schema-violation"),
    "null where required": (lambda: parquet(vehicle_id=["a", None]), Form.PARQUET, 422, "schema-violation"),
    "no row": (lambda: parquet(vehicle_id=pa.array([], pa.string())), Form.PARQUET, 400, "empty-body"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_an_unreadable_body_gets_a_problem_document_and_the_api_continues(case: str, system: System) -> None:
    """Each status is in the OpenAPI document."""
    make, form, status, kind = HOSTILE[case]
    documented = system.get("/openapi.json").json()["paths"]["/v1/ingest/{source}"]["post"]["responses"]
    answer = system.post("vehicles", make(), Content_Type=form)
    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{kind}"), answer.text
    assert str(status) in documented
    assert system.post("vehicles", vehicles("after")[0]).status_code == 202
