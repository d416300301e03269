"""`bronze publish` from the outside: files of every format are sent once, checked, rate-limited and continued."""

import gzip
import json
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import zstandard

from local.machine import limit_s
from tests.system.blackbox import System, ndjson, reported, until, vehicles


def publish(system: System, *arguments: str, code: int = 0, env: Mapping[str, str] = {}) -> dict[str, Any]:
    """Runs `bronze publish`, which has to end with this exit code, and returns its summary."""
    process = system.publisher(*arguments, "--json", **env)
    out, errors = process.communicate(timeout=limit_s(60))
    assert process.returncode == code, errors
    summary: dict[str, Any] = json.loads(out)
    return summary


def rows_of_file(system: System, name: str, source: str = "vehicles") -> list[dict[str, Any]]:
    """A file's rows in the bucket, in the order of the file."""
    rows = [row for row in system.rows(source) if row["_origin"] == name]
    return sorted(rows, key=lambda row: row["vehicle_id"])


def fleet(mark: str, count: int = 3) -> list[dict[str, Any]]:
    return [{"vehicle_id": f"{mark}-{i}", "seats": i, "engine": None, "note": f"é, {i}\n"} for i in range(count)]


def write_all_formats(folder: Path, mark: str) -> list[Path]:
    """Writes the same records to a file of every format, marked with the file's name."""
    names = ["csv", "csv.gz", "json", "json.zst", "ndjson.gz", "parquet", "arrow", "arrows"]
    files = [folder / f"{mark}.{name}" for name in names]
    for file in files:
        records = fleet(file.name)
        table = pa.Table.from_pylist(records)
        lines = "".join(f'{r["vehicle_id"]},{r["seats"]},,"{r["note"]}"\n' for r in records)
        comma_separated = f"vehicle_id,seats,engine,note\n{lines}".encode()
        array = json.dumps(records, indent=2).encode()
        match file.name.removeprefix(f"{mark}."):
            case "csv":
                file.write_bytes(comma_separated)
            case "csv.gz":
                file.write_bytes(gzip.compress(comma_separated))
            case "json":
                file.write_bytes(array)
            case "json.zst":
                file.write_bytes(zstandard.compress(array))
            case "ndjson.gz":
                file.write_bytes(gzip.compress(ndjson([json.dumps(r).encode() for r in records])))
            case "parquet":
                pq.write_table(table, file)
            case name:
                new = pa.ipc.new_file if name == "arrow" else pa.ipc.new_stream
                with new(str(file), table.schema) as writer:
                    writer.write_table(table)
    return files


def test_files_of_every_format(system: System, mark: str, tmp_path: Path) -> None:
    """Files sent in parallel have the same rows in the bucket: with declared types, nulls for empty values, undeclared
    fields, and the given classification. Sending all files again adds nothing, and the summary says so.
    """
    files = write_all_formats(tmp_path, mark)
    command = ("vehicles", *map(str, files), "--parallel", "3", "--records", "2", "--classification-id", f"run {mark}")
    summary = publish(system, *command)
    assert (summary["files"], summary["records"], summary["records_again"]) == (8, 24, 0)
    assert summary["submissions"] == 16
    repeated = publish(system, *command)
    assert (repeated["records"], repeated["records_again"]) == (24, 24)
    system.fence()
    for file in files:
        rows = rows_of_file(system, file.name)
        payloads: list[Mapping[str, Any]] = [json.loads(row["_payload"]) for row in rows]
        undeclared = [{"note": record["note"]} for record in fleet(file.name)]  # all that a columnar file has there
        columnar = file.suffix in {".parquet", ".arrow", ".arrows"}
        assert payloads == (undeclared if columnar else fleet(file.name)), file.name
        assert [(row["seats"], row["engine"], row["classification_id"]) for row in rows] == [
            (i, None, f"run {mark}") for i in range(3)
        ]


def test_objects_of_a_bucket(system: System, mark: str) -> None:
    """A folder of a bucket is sent as a directory is: each object once, by its address and content."""
    for number in range(2):
        body = f"vehicle_id,seats\n{mark}-{number},{number}\n".encode()
        system.s3.put_object(Bucket=system.bucket, Key=f"landing-{mark}/{mark}-{number}.csv", Body=body)
    command = ("vehicles", f"s3://{system.bucket}/landing-{mark}/", "--pattern", "*.csv")
    env = system.stack.account.env
    summaries = [publish(system, *command, env=env) for _ in range(2)]
    assert [(summary["files"], summary["records_again"]) for summary in summaries] == [(2, 0), (2, 2)]
    system.fence()
    for number in range(2):
        assert [row["seats"] for row in rows_of_file(system, f"{mark}-{number}.csv")] == [number]
    error = system.publisher("vehicles", f"s3://{system.bucket}/landing-{mark}/none.csv", **env)
    _, errors = error.communicate(timeout=limit_s(60))
    assert error.returncode == 2
    assert "none.csv" in errors


def test_a_file_with_a_refused_record_is_continued_with_quarantine(system: System, mark: str, tmp_path: Path) -> None:
    """Nothing is stored twice, and the error says that a corrected file would be a new one."""
    file = tmp_path / f"{mark}.ndjson"
    records = [json.dumps({"vehicle_id": 7 if number == 3 else f"{mark}-{number}"}).encode() for number in range(5)]
    file.write_bytes(ndjson(records))
    process = system.publisher("vehicles", str(file), "--records", "2")
    _, errors = process.communicate(timeout=limit_s(60))
    assert process.returncode == 1
    assert "A corrected file counts as a new file" in errors
    summary = publish(system, "vehicles", str(file), "--records", "2", "--on-invalid", "quarantine")
    assert (summary["records"], summary["records_again"], summary["records_rejected"]) == (4, 2, 1)
    system.fence()
    assert [row["vehicle_id"] for row in rows_of_file(system, file.name)] == [
        f"{mark}-{number}" for number in (0, 1, 2, 4)
    ]


def test_a_column_gives_the_classification(system: System, mark: str, tmp_path: Path) -> None:
    """Each record belongs to the classification in its column, or to that of the option if the column is empty."""
    file = tmp_path / f"{mark}.csv"
    file.write_text(f"vehicle_id,leg\n{mark}-0,{mark}-a\n{mark}-1,\n{mark}-2,{mark}-b\n")
    publish(system, "vehicles", str(file), "--classification-column", "leg", "--classification-id", mark)
    system.fence()
    rows = rows_of_file(system, file.name)
    assert [row["classification_id"] for row in rows] == [f"{mark}-a", mark, f"{mark}-b"]


def test_a_killed_publisher_continues(system: System, mark: str, tmp_path: Path) -> None:
    """After kill -9 the same command sends the missing records, so that each is stored exactly once, without `--run`.
    With other options the file would be split into other submissions: that is refused, and the error says what to do.
    """
    file, report = tmp_path / "fleet.ndjson", tmp_path / "report"
    records = vehicles(mark, 400)
    file.write_bytes(ndjson(records))
    command = ("vehicles", str(file), "--records", "5")
    publisher = system.publisher(*command, "--report", str(report))
    try:
        until("the publisher is at work", lambda: report.exists() and len(reported(report)) >= 5)
    finally:
        publisher.kill()
        publisher.communicate()
    summary = publish(system, *command)
    assert summary["records"] == 400
    assert 25 <= summary["records_again"] < 400
    system.fence()
    assert system.payloads(mark) == sorted(records)
    summary = publish(system, "vehicles", str(file), "--records", "7", code=1)
    assert "--again" in summary["error"]
    system.fence()
    assert system.payloads(mark) == sorted(records)


def test_a_dry_run_sends_nothing(system: System, mark: str, tmp_path: Path) -> None:
    """Every invalid record of all files is reported with file, line and field."""
    rows, array, good = tmp_path / "one.csv", tmp_path / "two.json", tmp_path / "good.csv"
    rows.write_text(f"vehicle_id,seats\n{mark}-0,1\n,2\n{mark}-2,many\n{mark}-3,3\n")
    array.write_text(json.dumps([{"vehicle_id": mark}, {"vehicle_id": mark, "year_built": "old"}]))
    good.write_text(f"vehicle_id,seats\n{mark}-0,1\n")
    findings = publish(system, "vehicles", *map(str, (rows, good, array)), "--dry-run", code=1)
    assert (findings["files"], findings["records"], findings["invalid"]) == (3, 7, 3)
    places = [problem.partition(": ")[0] for problem in findings["problems"]]
    assert places == [
        f"{rows}, line 3, field vehicle_id",
        f"{rows}, line 4, field seats",
        f"{array}, record 2, field year_built",
    ]
    system.fence()
    assert system.payloads(mark) == []


def test_a_rate_is_kept(system: System, mark: str, tmp_path: Path) -> None:
    """There are never more submissions than the rate allows for the time since the start."""
    file, report = tmp_path / "fleet.ndjson", tmp_path / "report"
    file.write_bytes(ndjson(vehicles(mark, 1_000)))
    started = time.monotonic()
    publisher = system.publisher("vehicles", str(file), "--records", "2", "--rate", "40", "--report", str(report))
    try:
        until("some submissions", lambda: report.exists() and len(reported(report)) >= 12)
        assert len(reported(report)) <= 1 + (time.monotonic() - started) * 20
        publisher.send_signal(signal.SIGINT)
        publisher.communicate(timeout=limit_s(10))
    finally:
        publisher.kill()
    assert publisher.returncode == 130


def test_records_that_do_not_fit_go_to_quarantine(system: System, mark: str, tmp_path: Path) -> None:
    """With `--on-invalid quarantine`, valid records are in the bucket and the others are counted. Without it, the file
    is refused, and the error has the position of the record.
    """
    file = tmp_path / f"{mark}.csv"
    file.write_text(f"vehicle_id,seats\n{mark}-0,1\n{mark}-1,many\n{mark}-2,2\n")
    refused = publish(system, "vehicles", str(file), code=1)
    assert f"{file}, line 3: 422 Record 1, field seats" in refused["error"]
    summary = publish(system, "vehicles", str(file), "--on-invalid", "quarantine")
    assert (summary["records"], summary["records_rejected"]) == (2, 1)
    system.fence()
    assert [(row["seats"], row["_record_index"]) for row in rows_of_file(system, file.name)] == [(1, 0), (2, 2)]
