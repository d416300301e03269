"""One submission, followed from the publisher to the bucket, Prometheus and the trace store."""

import time
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from local.machine import limit_s
from tests.system.blackbox import System, drawn, ndjson, reported, until, vehicles

TRACE = """\
publisher CLIENT post /v1/ingest/vehicles
  api SERVER post /v1/ingest/{source}
    api PRODUCER send bronze.vehicles
      consumer CONSUMER process bronze.vehicles
        consumer - upload vehicles
          consumer - encode parquet
          consumer CLIENT s3 putobject"""

RECORDS = 7
#: Longer than a count needs to reach Prometheus.
STILL_S = 2.0


def counted(system: System, publisher: str) -> Mapping[str, float | None]:
    """The counts of the three services in Prometheus, by OTLP."""
    api = f'job="bronze/api",instance="{system.stack.instance("api")}",bronze_source="vehicles"'
    consumer = f'job="bronze/consumer",instance="{system.stack.instance("consumer")}",bronze_source="vehicles"'
    sent = f'job="bronze/publisher",instance="{publisher}",bronze_source="vehicles"'
    series = {
        "accepted": f'bronze_records_total{{{api},bronze_outcome="accepted"}}',
        "replayed": f'bronze_records_total{{{api},bronze_outcome="replayed"}}',
        "stored": f'bronze_records_total{{{consumer},bronze_outcome="stored"}}',
        "quarantined": f'bronze_records_total{{{consumer},bronze_outcome="quarantined"}}',
        "uploads": f'bronze_uploads_total{{{consumer},bronze_outcome="success"}}',
        "uploads that failed": f'sum(bronze_uploads_total{{{consumer},bronze_outcome="failure"}})',
        "submissions sent": f'bronze_publisher_submissions_total{{{sent},bronze_outcome="accepted"}}',
        "submissions refused": f'bronze_publisher_submissions_total{{{sent},bronze_outcome="rejected"}}',
    }
    return {name: system.value(query) for name, query in series.items()}


def standing(system: System, publisher: str) -> Mapping[str, float | None]:
    """The counts, as soon as each running service has every series and no count of earlier tests is still to come."""
    system.fence()
    seen: list[tuple[float, Mapping[str, float | None]]] = []

    def still() -> Mapping[str, float | None] | None:
        now = counted(system, publisher)
        if not seen or seen[0][1] != now:
            seen[:] = [(time.monotonic(), now)]
        complete = all(value is not None for name, value in now.items() if not name.startswith("submissions"))
        return now if complete and time.monotonic() - seen[0][0] > STILL_S else None

    return until("all series are there and stand still before the first record", still)


def test_one_submission_is_followed_from_publisher_to_trace(system: System, mark: str, tmp_path: Path) -> None:
    """A submission of `bronze publish` is stored byte for byte and counted once by each service in Prometheus. An
    exemplar links to its trace, and the trace names its object.
    """
    publisher = f"publisher-{mark}"
    before = standing(system, publisher)
    lines = vehicles(mark, RECORDS)
    file, report = tmp_path / "fleet of today.ndjson", tmp_path / "report"
    file.write_bytes(ndjson(lines))

    # publisher
    process = system.publisher(
        "vehicles", str(file), "--report", str(report), OTEL_RESOURCE_ATTRIBUTES=f"service.instance.id={publisher}"
    )
    output = process.communicate(timeout=limit_s(60))
    assert process.returncode == 0, output
    (receipt,) = reported(report)
    assert receipt["records"] == RECORDS

    # API
    status = system.stored(receipt["submission_id"])
    assert (status["source"], status["records"], status["origin"]) == ("vehicles", RECORDS, file.name)
    assert status["trace_id"] == receipt["trace_id"]
    (link,) = status["objects"]
    key = link["file_path"]

    # bucket
    assert key in system.keys(f"{system.prefix}/source=vehicles/")
    table = pq.read_table(BytesIO(system.body(key)))
    sent = [row for row in table.to_pylist() if row["_submission_id"] == receipt["submission_id"]]
    assert [row["_payload"].encode() for row in sent] == lines
    assert [(row["vehicle_id"], row["seats"]) for row in sent] == [(f"{mark}-{i}", i) for i in range(RECORDS)]
    assert [row["_record_index"] for row in sent] == list(range(RECORDS))
    assert {row["file_path"] for row in table.to_pylist()} == {key}
    assert {(row["_trace_id"], row["_origin"]) for row in sent} == {(receipt["trace_id"], file.name)}
    assert {row["classification_id"] for row in sent} == {status["classification_id"]}
    contents = system.get(link["url"]).json()
    assert (contents["file_path"], contents["records"]) == (key, table.num_rows)
    (listed,) = (
        submission for submission in contents["submissions"] if submission["submission_id"] == receipt["submission_id"]
    )
    assert (listed["records"], listed["trace_id"]) == (RECORDS, receipt["trace_id"])

    # Prometheus
    expected = {
        "accepted": RECORDS,
        "replayed": 0,
        "stored": RECORDS,
        "quarantined": 0,
        "uploads": 1,
        "uploads that failed": 0,
        "submissions sent": 1,
        "submissions refused": 0,
    }

    def added() -> Mapping[str, float | None]:
        now = counted(system, publisher)
        return {name: None if value is None else value - (before[name] or 0) for name, value in now.items()}

    try:
        until("each service has counted it once", lambda: added() == expected)
    except AssertionError:
        pytest.fail(f"counted {added()}, not {expected}")
    for histogram in (
        "http_server_request_duration_seconds_bucket",
        "bronze_upload_duration_seconds_bucket",
        "bronze_delivery_duration_seconds_bucket",
        "bronze_stage_duration_seconds_bucket",
        "messaging_process_duration_seconds_bucket",
    ):
        until(f"an exemplar of {histogram}", lambda name=histogram: receipt["trace_id"] in system.exemplars(name))  # type: ignore[misc]

    # trace store
    try:
        until("the whole trace", lambda: drawn(system.trace(receipt["trace_id"])) == TRACE)
    except AssertionError:
        pytest.fail(f"the trace is\n{drawn(system.trace(receipt['trace_id']))}\nand not\n{TRACE}")
    spans = {span["name"]: span["tags"] for span in system.trace(receipt["trace_id"])}
    for name in ("process bronze.vehicles", "upload vehicles", "s3 putobject"):
        assert spans[name]["bronze.file_path"] == key
    assert spans["s3 putobject"]["aws.s3.key"] == key
    for name in ("post /v1/ingest/vehicles", "send bronze.vehicles", "process bronze.vehicles"):
        assert spans[name]["bronze.submission_id"] == receipt["submission_id"]
    assert contents["trace_id"] == receipt["trace_id"]
