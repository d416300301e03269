"""The publisher against a real HTTP server on loopback with scripted answers. Time is simulated, so no test waits."""

import argparse
import datetime as dt
import io
import itertools
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from prometheus_client import CollectorRegistry

from bronze import publisher
from bronze.errors import Misconfigured, Refused
from bronze.protocol.message import MESSAGE_BYTES_MAX
from bronze.publisher import Batch, FileFormat, Plan, Sender, Stop, Summary, batches, checking, publishing, reading
from bronze.publisher.files import key_prefix, open_file
from bronze.publisher.fleet import fleet
from bronze.records import sources
from bronze.settings import Settings
from bronze.telemetry import Telemetry
from bronze.telemetry.instruments import Instruments
from local.machine import limit_s

# --- the server


@dataclass
class Request:
    """A request as the server received it."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def key(self) -> str:
        return self.headers["Idempotency-Key"]


@dataclass
class Answer:
    """The answer of the server to a request; without a status, the server drops the connection."""

    status: int | None
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def accepted(request: Request) -> Answer:
    records = len(request.body.splitlines())
    trace_id = request.headers["traceparent"].split("-")[1]
    receipt = {"submission_id": f"id of {request.key}", "records": records, "trace_id": trace_id, "source": "status"}
    return Answer(202, json.dumps(receipt).encode())


def problem(status: int, kind: str, detail: str, headers: dict[str, str] | None = None, **members: object) -> Answer:
    body = {"type": f"/problems/{kind}", "title": kind, "status": status, "detail": detail} | members
    return Answer(status, json.dumps(body).encode(), headers or {})


DROPPED = Answer(None)
BUSY = problem(503, "queue-full", "The queue is full.", {"Retry-After": "7"})

Step = Answer | Callable[[Request], Answer]


class Api:
    """Answers requests according to a script, and later requests with 202."""

    def __init__(self) -> None:
        self.script: list[Step] = []
        self.requests: list[Request] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = Request(self.path, dict(self.headers), self.rfile.read(int(self.headers["Content-Length"])))
                api.requests.append(request)
                step = api.script.pop(0) if api.script else accepted
                answer = step if isinstance(step, Answer) else step(request)
                if answer.status is None:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the library's name
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def api() -> Iterator[Api]:
    server = Api()
    yield server
    server.close()


# --- telemetry and time


class Exported(MetricExporter):
    """Keeps the metrics that a collector would receive."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[MetricsData] = []

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: object) -> MetricExportResult:
        self.batches.append(metrics_data)
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: object) -> None:
        pass

    def submissions(self) -> dict[tuple[str, str], float]:
        """The last exported value of the publisher's counter, by source and outcome."""
        points = {}
        for resource in self.batches[-1].resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if metric.name == "bronze.publisher.submissions":
                        for point in metric.data.data_points:
                            assert isinstance(point, NumberDataPoint)
                            labels = point.attributes or {}
                            points[str(labels["bronze.source"]), str(labels["bronze.outcome"])] = point.value
        return points


@dataclass
class Observed:
    """The publisher's telemetry, and what it exported."""

    telemetry: Telemetry
    exported: Exported
    _spans: InMemorySpanExporter

    def counts(self) -> dict[str, float]:
        """Submissions by outcome, for all sources together."""
        self.telemetry.flush()
        counts: Counter[str] = Counter()
        for (_, outcome), value in self.exported.submissions().items():
            counts[outcome] += int(value)
        return dict(counts)

    def spans(self) -> list[ReadableSpan]:
        return list(self._spans.get_finished_spans())


@pytest.fixture
def observed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Observed]:
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", "0")
    registry, exported, finished = CollectorRegistry(), Exported(), InMemorySpanExporter()
    reader = PeriodicExportingMetricReader(exported, export_interval_millis=float("inf"))
    meters = MeterProvider([PrometheusMetricReader(registry=registry), reader], shutdown_on_exit=False)
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(finished))
    telemetry = Telemetry(
        tracer=tracers.get_tracer("test"),
        instruments=Instruments.create(meters.get_meter("test")),
        resource={"service.name": "publisher", "service.instance.id": "test", "service.version": "0"},
        _tracers=tracers,
        _meters=meters,
        _loggers=LoggerProvider(shutdown_on_exit=False),
        _exporters=(),
        _readers=[reader],
        _prometheus_registry=registry,
        _logs=logging.NullHandler(),
    )
    yield Observed(telemetry, exported, finished)
    telemetry.shutdown()


class Time(Stop):
    """A simulated clock; requests a stop after a number of waits."""

    def __init__(self, waits_max: int = 1_000) -> None:
        super().__init__()
        self.now_s = 0.0
        self.waits: list[float] = []
        self._waits_max = waits_max

    def clock(self) -> float:
        return self.now_s

    def wait(self, timeout_s: float) -> bool:
        self.waits.append(timeout_s)
        self.now_s += timeout_s
        return self.requested or len(self.waits) >= self._waits_max


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def publish(api: Api, observed: Observed, time: Time) -> Callable[..., Summary]:
    def run(*files: Path, source: str = "status", **options: Any) -> Summary:
        arguments: dict[str, Any] = {"stop": time, "clock": time.clock}
        arguments |= {name: options.pop(name) for name in ("stop", "report") if name in options}
        plan = Plan(source, **({"records_max": 2} | options))
        return publisher.publish(Settings(api_url=api.url), observed.telemetry, plan, [*map(str, files)], **arguments)

    return run


def ndjson(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


# --- reading


def read(data: bytes, records_max: int = 10, bytes_max: int = 10_000) -> list[Batch]:
    stream = io.BytesIO(data)
    records = reading.records("f.ndjson", stream, FileFormat.NDJSON, lambda: sources.built_in()["status"])
    return list(batches("f.ndjson", records, records_max=records_max, bytes_max=bytes_max, position=stream.tell))


@given(
    lines=st.lists(st.sampled_from([b"", b" \t\r", b"{}", b'{"a":1}', b'{"a":"' + b"x" * 40 + b'"}'])),
    ends_with_newline=st.booleans(),
    records_max=st.integers(1, 5),
    bytes_max=st.integers(1, 100),
)
def test_batches_hold_every_record_once(
    lines: list[bytes], *, ends_with_newline: bool, records_max: int, bytes_max: int
) -> None:
    """With any bounds, the batches are the file's records in order, within the bounds and with their line numbers."""
    data = b"\n".join(lines) + (b"\n" if ends_with_newline else b"")
    result = read(data, records_max, bytes_max)
    assert b"".join(b.body for b in result).splitlines() == [line for line in lines if line.strip()]
    for batch in result:
        assert 1 <= batch.records <= records_max
        assert len(batch.body) <= bytes_max or batch.records == 1
        assert [lines[number - 1] for number in batch.numbers] == batch.body.splitlines()


def test_progress_counts_all_bytes_of_a_file() -> None:
    """The bytes read of all batches add up to the file's size, including blank lines."""
    data = b"\n{}\n\n{}\n{}\n"
    assert sum(batch.bytes_read for batch in read(data, records_max=2)) == len(data)


def test_a_batch_fits_a_message() -> None:
    """By default, a submission is one message in the queue, even if its records are large."""
    data = b"".join(b'{"a":"%s"}\n' % (b"x" * 2_000) for _ in range(1_000))
    result = read(data, publisher.BATCH_RECORDS, publisher.BATCH_BYTES)
    assert len(result) > 1
    assert max(len(batch.body) for batch in result) <= publisher.BATCH_BYTES < MESSAGE_BYTES_MAX


def test_a_line_without_end_is_refused_with_its_number() -> None:
    """A line that is larger than a message ends the reading, after the records before it were yielded."""
    stream = io.BytesIO(b"{}\n\n" + b"x" * (MESSAGE_BYTES_MAX + 1))
    records = reading.records("f.ndjson", stream, FileFormat.NDJSON, lambda: sources.built_in()["status"])
    result = batches("f.ndjson", records, records_max=10, bytes_max=10)
    assert next(result).numbers == (1,)
    with pytest.raises(Refused, match=r"f\.ndjson, line 3 is longer"):
        next(result)


# --- sending


def test_everything_is_sent_in_order(api: Api, publish: Callable[..., Summary], tmp_path: Path) -> None:
    """Each batch is one submission of one file, with its own key, and the summary adds up."""
    first = ndjson(tmp_path / "one.ndjson", '{"n":1}', "", '{"n":2}', '{"n":3}')
    second = ndjson(tmp_path / "two.ndjson", '{"n":4}')
    summary = publish(first, second)
    assert [request.body for request in api.requests] == [b'{"n":1}\n{"n":2}\n', b'{"n":3}\n', b'{"n":4}\n']
    assert {request.path for request in api.requests} == {"/v1/ingest/status"}
    assert {request.headers["Content-Type"] for request in api.requests} == {"application/x-ndjson"}
    assert [request.headers["Bronze-File-Name"] for request in api.requests] == [
        "one.ndjson",
        "one.ndjson",
        "two.ndjson",
    ]
    assert len({request.key for request in api.requests}) == 3
    assert (summary.submissions, summary.records, summary.bytes, summary.error) == (3, 4, 32, None)
    assert summary.submission_id_last == f"id of {api.requests[-1].key}"


def test_a_file_sent_again_uses_the_same_keys(api: Api, publish: Callable[..., Summary], tmp_path: Path) -> None:
    """The keys depend on path, content, publish run and classification, so that the API recognizes a repetition."""
    file = ndjson(tmp_path / "f.ndjson", "{}", "{}", "{}")
    for options in ({}, {}, {"run": "r"}, {"run": "r"}, {"classification_id": "c"}):
        publish(file, **options)
    publish(ndjson(file, "{}", "{}"))
    publish(ndjson(tmp_path / "g.ndjson", "{}", "{}"))
    keys = [request.key for request in api.requests]
    assert keys[0:2] == keys[2:4]
    assert keys[4:6] == keys[6:8]
    assert len(set(keys)) == 8


@pytest.mark.parametrize("name", ["plain.ndjson", "Flüge 100%.ndjson", "飛行.ndjson", " a  b .ndjson"])
def test_a_file_name_survives_the_header(api: Api, publish: Callable[..., Summary], tmp_path: Path, name: str) -> None:
    """The header is percent-encoded UTF-8, so any file name can be decoded from it."""
    publish(ndjson(tmp_path / name, "{}"))
    assert unquote(api.requests[0].headers["Bronze-File-Name"]) == name


def test_standard_input_has_no_file_name(
    api: Api, publish: Callable[..., Summary], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`-` reads standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"n":1}\n')))
    assert publish(Path(publisher.STDIN)).records == 1
    assert "Bronze-File-Name" not in api.requests[0].headers


def test_the_report_names_each_submission(api: Api, publish: Callable[..., Summary], tmp_path: Path) -> None:
    """The report has a line for each accepted submission, with the file's lines, the submission and the trace."""
    file = ndjson(tmp_path / "f.ndjson", "{}", "", "{}", "{}")
    report = io.StringIO()
    publish(file, report=report)
    lines = [json.loads(line) for line in report.getvalue().splitlines()]
    assert [(line["line_first"], line["line_last"], line["records"]) for line in lines] == [(1, 3, 2), (4, 4, 1)]
    assert [line["trace_id"] for line in lines] == [
        request.headers["traceparent"].split("-")[1] for request in api.requests
    ]
    assert (
        lines[0] | {"submission_id": f"id of {api.requests[0].key}", "source": "status", "file": str(file)} == lines[0]
    )


def test_the_address_may_have_a_path(api: Api, observed: Observed, time: Time, tmp_path: Path) -> None:
    """The API can be behind a path of a gateway, and no password gets into a span."""
    file = ndjson(tmp_path / "f.ndjson", "{}")
    url = api.url.replace("//", "//me:secret@") + "/bronze"
    publisher.publish(Settings(api_url=url), observed.telemetry, Plan("status"), [str(file)], stop=time)
    assert api.requests[0].path == "/bronze/v1/ingest/status"
    (span,) = observed.spans()
    assert span.attributes is not None
    assert span.attributes["url.full"] == f"{api.url}/bronze/v1/ingest/status"


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://localhost", "http://", "http://:x"])
def test_an_invalid_address_is_an_error(observed: Observed, time: Time, url: str) -> None:
    """An invalid address is reported at once, without retries."""
    with pytest.raises(Misconfigured, match="BRONZE_API_URL"):
        publisher.publish(Settings(api_url=url), observed.telemetry, Plan("status"), [], stop=time)
    assert not time.waits


# --- retries


def test_a_submission_is_retried_with_its_key(
    api: Api, observed: Observed, time: Time, publish: Callable[..., Summary], tmp_path: Path
) -> None:
    """After 503, a dropped connection and 500, a submission is retried: same key, body and trace, accepted once."""
    api.script = [BUSY, DROPPED, Answer(500)]
    summary = publish(ndjson(tmp_path / "f.ndjson", '{"n":1}'))
    assert len(api.requests) == 4
    assert len({(request.key, request.body, request.headers["traceparent"]) for request in api.requests}) == 1
    assert (summary.submissions, summary.retries, summary.error) == (1, 3, None)
    assert time.waits[0] == 7
    assert 0 < time.waits[1] <= time.waits[2] <= publisher.BACK_OFF_S_FIRST * 4
    assert observed.counts() == {"accepted": 1, "rejected": 0, "unknown": 0}
    (span,) = observed.spans()
    assert span.attributes is not None
    assert span.attributes["http.request.resend_count"] == 3
    assert [event.attributes for event in span.events] == [
        {"error.type": "queue-full", "http.response.status_code": 503},
        {"error.type": "unavailable"},
        {"error.type": "internal", "http.response.status_code": 500},
    ]
    assert span.status.is_unset


def test_back_off_grows_to_its_bound(api: Api, time: Time, publish: Callable[..., Summary], tmp_path: Path) -> None:
    """The waits double up to a bound; jitter makes them shorter."""
    api.script = [Answer(502)] * 12
    publish(ndjson(tmp_path / "f.ndjson", "{}"), retry_for_s=10_000)
    highest = [min(publisher.BACK_OFF_S_MAX, publisher.BACK_OFF_S_FIRST * 2**n) for n in range(12)]
    assert all(high / 2 <= wait <= high for high, wait in zip(highest, time.waits, strict=True))
    assert len(set(time.waits)) == 12


def test_it_gives_up_in_time(
    api: Api, observed: Observed, time: Time, publish: Callable[..., Summary], tmp_path: Path
) -> None:
    """Retries end after a time. The submission then counts as unknown, and nothing is sent after it."""
    api.script = [accepted, *[BUSY] * 1_000]
    summary = publish(ndjson(tmp_path / "f.ndjson", *["{}"] * 6), retry_for_s=60)
    assert 60 - publisher.BACK_OFF_S_MAX <= time.now_s <= 60
    assert summary.records == 2
    assert summary.error is not None
    assert "queue is full" in summary.error
    assert "it is unknown whether" in summary.error
    assert "lines 3 to 4 were accepted" in summary.error
    assert len({request.key for request in api.requests}) == 2
    assert observed.counts() == {"accepted": 1, "rejected": 0, "unknown": 1}


def test_a_long_retry_after_is_not_waited_for(
    api: Api, time: Time, publish: Callable[..., Summary], tmp_path: Path
) -> None:
    """A `Retry-After` beyond the time for retries ends the publish run at once."""
    api.script = [problem(429, "throttled", "Slow down.", {"Retry-After": "3600"})]
    summary = publish(ndjson(tmp_path / "f.ndjson", "{}"), retry_for_s=300)
    assert summary.error is not None
    assert "Slow down" in summary.error
    assert "3600 s" in summary.error
    assert not time.waits


def test_retry_after_may_be_a_date(api: Api, time: Time, publish: Callable[..., Summary], tmp_path: Path) -> None:
    """`Retry-After` may be a date; an invalid value is ignored."""
    later = format_datetime(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=100), usegmt=True)
    api.script = [Answer(503, headers={"Retry-After": later}), Answer(503, headers={"Retry-After": "soon"})]
    publish(ndjson(tmp_path / "f.ndjson", "{}"))
    assert 90 < time.waits[0] <= 100
    assert time.waits[1] < 2


def test_a_timeout_is_retried(observed: Observed, time: Time) -> None:
    """After a timeout the submission may have been accepted, so it is retried with the same key."""
    keys = []

    def answer(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["Idempotency-Key"])
        if len(keys) == 1:
            raise httpx.ReadTimeout("", request=request)
        return httpx.Response(202, json={"submission_id": "s", "records": 1, "trace_id": "t"})

    with httpx.Client(base_url="http://api", transport=httpx.MockTransport(answer)) as http:
        sender = Sender(http, observed.telemetry, retry_for_s=10, wait=time.wait, clock=time.clock)
        sender.send("status", "k", Batch("f", b"{}\n", [1], 3))
    assert keys == ["k", "k"]
    (event,) = observed.spans()[0].events
    assert event.attributes == {"error.type": "timeout"}


# --- refusals


def test_a_refusal_names_the_line(
    api: Api, observed: Observed, time: Time, publish: Callable[..., Summary], tmp_path: Path
) -> None:
    """A refusal ends the publish run; the error has the API's text and the line of the record in the file."""
    api.script = [accepted, problem(422, "schema-violation", "Record 1, field n: Expected `int`.", record=1)]
    file = ndjson(tmp_path / "f.ndjson", '{"n":1}', '{"n":2}', "", '{"n":3}', "", '{"n":"x"}', '{"n":5}')
    summary = publish(file)
    assert summary.error == f"{file}, line 6: 422 Record 1, field n: Expected `int`."
    assert (summary.submissions, summary.records) == (1, 2)
    assert len(api.requests) == 2
    assert not time.waits
    assert observed.counts() == {"accepted": 1, "rejected": 1, "unknown": 0}
    span = observed.spans()[-1]
    assert span.attributes is not None
    assert span.attributes["error.type"] == "schema-violation"
    assert span.attributes["http.response.status_code"] == 422
    assert span.attributes["bronze.outcome"] == "rejected"
    assert not span.status.is_ok


@pytest.mark.parametrize("body", [b"<html>no</html>", b"", b"[]", b'{"detail": 5}'])
def test_a_refusal_of_a_proxy(api: Api, publish: Callable[..., Summary], tmp_path: Path, body: bytes) -> None:
    """A refusal without a problem document is reported with the lines of the whole submission."""
    api.script = [Answer(403, body)]
    file = ndjson(tmp_path / "f.ndjson", "{}", "{}")
    assert publish(file).error == f"{file}, lines 1 to 2: 403 Forbidden"


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b"hello"),
        Answer(301, headers={"Location": "/elsewhere"}),
        Answer(202, b"hello"),
        Answer(202, b'{"submission_id": "s", "records": 1, "trace_id": "t"}'),
    ],
    ids=["success", "redirect", "no receipt", "another count"],
)
def test_answers_of_other_servers_do_not_count_as_accepted(
    api: Api, observed: Observed, publish: Callable[..., Summary], tmp_path: Path, answer: Answer
) -> None:
    """Only a 202 that accounts for all records counts as accepted."""
    api.script = [answer]
    summary = publish(ndjson(tmp_path / "f.ndjson", "{}", "{}"))
    assert summary.error is not None
    assert summary.records == 0
    assert observed.counts() == {"accepted": 0, "rejected": 0, "unknown": 1}


def test_a_file_that_an_earlier_version_sent_in_part_is_refused(
    api: Api, publish: Callable[..., Summary], tmp_path: Path
) -> None:
    """Its keys are the same, and the API answers that they belong to other data: nothing is stored twice."""
    table = pa.table({"vehicle_id": ["1"]})
    pq.write_table(table, tmp_path / "f.parquet")
    api.script = [problem(409, "idempotency-key-reused", "The Idempotency-Key belongs to another submission.")]
    summary = publish(tmp_path / "f.parquet", source="vehicles")
    assert "by another version of bronze publish" in str(summary.error)
    assert "use the same options, version and input as before" in str(summary.error)
    with open_file(str(tmp_path / "f.parquet")) as opened:
        assert api.requests[0].key == f"{key_prefix(opened, '', None)}-0"


@pytest.mark.parametrize(
    ("name", "content", "answers", "reason"),
    [
        ("a.parquet.gz", b"PAR1", [], "decompress the file first"),
        ("a.ndjson", b"{}\n", [Answer(409, b"<html>no</html>")], "409 Conflict"),
    ],
    ids=["a file that is compressed as a whole", "a conflict without a problem document"],
)
def test_a_watcher_goes_on_after_a_file_is_refused(
    api: Api, observed: Observed, tmp_path: Path, name: str, content: bytes, answers: list[Answer], reason: str
) -> None:
    """Such a refusal concerns one file only, so it does not end the watcher, which would meet the file again."""
    api.script = list(answers)
    (tmp_path / name).write_bytes(content)
    os.utime(tmp_path / name, (1, 1))  # the oldest file is sent first
    ndjson(tmp_path / "b.ndjson", "{}")
    stop = Time(waits_max=20)
    settings = Settings(api_url=api.url)
    summary = publisher.watch(settings, observed.telemetry, Plan("status"), tmp_path, stop=stop, clock=stop.clock)
    assert summary.error is None
    assert summary.records == 1
    assert [reason in refused for refused in summary.refused.values()] == [True]


@pytest.mark.parametrize("failures", [0, 1, 1_000])
def test_a_watcher_sends_files_of_any_name_once_they_can_be_read(
    api: Api, observed: Observed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """A name need not be UTF-8. A file that cannot be read is tried again, and is named if it never could be read."""
    file = tmp_path / os.fsdecode(b"caf\xe9.ndjson")
    ndjson(file, "{}")
    ndjson(tmp_path / "b.ndjson", "{}")
    denied = itertools.repeat(file, failures)

    def open_later(path: str) -> Any:
        if Path(path) == file and next(denied, None):
            raise PermissionError(13, "Permission denied", path)
        return open_file(path)

    monkeypatch.setattr(publishing, "open_file", open_later)
    stop = Time(waits_max=40)
    settings = Settings(api_url=api.url)
    summary = publisher.watch(settings, observed.telemetry, Plan("status"), tmp_path, stop=stop, clock=stop.clock)
    sent = [unquote(request.headers["Bronze-File-Name"]) for request in api.requests]
    assert sorted(sent) == ["b.ndjson"] + ([] if failures == 1_000 else ["caf\\xe9.ndjson"])
    assert summary.error is None
    assert list(summary.refused) == ([str(tmp_path / "caf\\xe9.ndjson")] if failures == 1_000 else [])
    summary.text().encode()


def test_a_dry_run_gives_the_reasons_without_the_advice(tmp_path: Path) -> None:
    """Nothing was sent, so the API's advice, to send the submission again, is left out."""
    file = ndjson(tmp_path / "f.ndjson", '{"vehicle_id":7}', '{"vehicle_id":"N1"}', '{"vehicle_id":"N1","seats":"q"}')
    findings = checking.check(Plan("vehicles"), sources.built_in()["vehicles"], [str(file)])
    assert findings.problems == [
        f"{file}, line 1, field vehicle_id: Expected `str`, got `int`",
        f"{file}, line 3, field seats: Expected `int | null`, got `str`",
    ]


def test_a_dry_run_names_alike_problems_once(tmp_path: Path) -> None:
    """With their number, and the last of them."""
    bad = ndjson(tmp_path / "bad.ndjson", *['{"vehicle_id":"1","seats":"q"}'] * 2_500, "no JSON")
    findings = checking.check(Plan("vehicles"), sources.built_in()["vehicles"], [str(bad)])
    alike, other = findings.problems
    assert alike == (
        f"{bad}, line 1, field seats: Expected `int | null`, got `str` "
        f"(2,500 records like it, the last: {bad}, line 2500)"
    )
    assert other.startswith(f"{bad}, line 2501: ")
    assert (findings.invalid, json.loads(findings.json())["invalid"]) == (2_501, 2_501)


def test_a_dry_run_says_that_a_file_cannot_be_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_bytes(b"vehicle_id\nA\ncaf\xe9\n")
    findings = checking.check(Plan("vehicles"), sources.built_in()["vehicles"], [str(tmp_path / "f.csv")])
    assert not findings.all_valid
    assert "is not UTF-8, line 3" in findings.problems[0]
    assert "all of them fit the source, and 1 file cannot be read to the end" in findings.text()


def test_a_dry_run_goes_on_behind_files_that_cannot_be_read(tmp_path: Path) -> None:
    """And counts them, as text and as JSON."""
    (tmp_path / "a.csv").write_bytes(b"\xff")
    good = ndjson(tmp_path / "c.ndjson", '{"vehicle_id":"A"}')
    files = [str(tmp_path / "a.csv"), str(tmp_path / "gone.ndjson")]
    findings = checking.check(Plan("vehicles"), sources.built_in()["vehicles"], files)
    assert "vehicles: 0 records in 2 files, but 2 files cannot be read to the end; nothing was sent" in findings.text()
    findings = checking.check(Plan("vehicles"), sources.built_in()["vehicles"], [*files, str(good)])
    assert findings.problems[1] == f"{tmp_path / 'gone.ndjson'}: cannot be read: No such file or directory"
    assert "1 record in 3 files, all of them fit the source, and 2 files cannot be read to the end" in findings.text()
    document = json.loads(findings.json())
    assert (document["files"], document["unreadable"], document["records"], document["invalid"]) == (3, 2, 1, 0)
    assert not findings.all_valid


# --- several files, and options for all records


def test_options_for_all_records(api: Api, publish: Callable[..., Summary], tmp_path: Path) -> None:
    """The classification is sent as a percent-encoded header, `on_invalid` as a query parameter; records that go to
    quarantine are counted.
    """

    def quarantine_first(request: Request) -> Answer:
        receipt = {"submission_id": "s", "records": 1, "rejected": 1, "trace_id": "another"}
        return Answer(202, json.dumps(receipt).encode())

    api.script = [quarantine_first]
    file = ndjson(tmp_path / "f.ndjson", "{}", "{}", "{}")
    summary = publish(file, classification_id="Flug 100% ü", on_invalid="quarantine")
    assert {request.path for request in api.requests} == {"/v1/ingest/status?on_invalid=quarantine"}
    assert {unquote(request.headers["Bronze-Classification-Id"]) for request in api.requests} == {"Flug 100% ü"}
    assert (summary.records, summary.records_rejected, summary.records_again) == (2, 1, 1)


def test_several_files_at_once(api: Api, publish: Callable[..., Summary], tmp_path: Path) -> None:
    """Two requests run at the same time; each file stays in order, and every record is sent once."""
    barrier = threading.Barrier(2)

    def answer_together(request: Request) -> Answer:
        barrier.wait(limit_s(10))
        return accepted(request)

    api.script = [answer_together, answer_together]
    files = [ndjson(tmp_path / f"{f}.ndjson", *[f'{{"f":{f},"n":{n}}}' for n in range(5)]) for f in range(4)]
    summary = publish(*files, parallel=2)
    assert (summary.files, summary.records, summary.submissions, summary.error) == (4, 20, 12, None)
    records = [json.loads(line) for request in api.requests for line in request.body.splitlines()]
    for f in range(4):
        assert [record["n"] for record in records if record["f"] == f] == [0, 1, 2, 3, 4]


def test_a_failure_among_several_files(api: Api, publish: Callable[..., Summary], tmp_path: Path) -> None:
    """Requests that are running are finished, and no other file is started."""
    api.script = [problem(422, "schema-violation", "Record 0: no.", record=0)] * 2
    files = [ndjson(tmp_path / f"{f}.ndjson", f'{{"f":{f}}}') for f in range(9)]
    summary = publish(*files, parallel=2)
    assert summary.error is not None
    assert "line 1: 422" in summary.error
    assert len(api.requests) <= 3


def test_a_signal_with_several_files(api: Api, time: Time, publish: Callable[..., Summary], tmp_path: Path) -> None:
    """The requests that are running count, and nothing is sent after them."""
    barrier = threading.Barrier(2, action=lambda: time._on_signal(signal.SIGINT, None))

    def answer_together(request: Request) -> Answer:
        barrier.wait(limit_s(10))
        return accepted(request)

    api.script = [answer_together, answer_together]
    files = [ndjson(tmp_path / f"{f}.ndjson", *["{}"] * 9) for f in range(4)]
    summary = publish(*files, parallel=2)
    assert summary.error == "stopped"
    assert summary.submissions == len(api.requests) == 2


# --- telemetry


def test_zeros_are_exported_before_anything_is_sent(
    api: Api, observed: Observed, publish: Callable[..., Summary], tmp_path: Path
) -> None:
    """The zeros are exported before the first request, so that the first count is an increase of an existing series."""
    exported: dict[tuple[str, str], float] = {}

    def first(request: Request) -> Answer:
        exported.update(observed.exported.submissions())
        return accepted(request)

    api.script = [first]
    publish(ndjson(tmp_path / "f.ndjson", "{}"))
    assert exported == {("status", outcome): 0 for outcome in ("accepted", "rejected", "unknown")}


def test_each_submission_begins_a_trace(
    api: Api, observed: Observed, publish: Callable[..., Summary], tmp_path: Path
) -> None:
    """Each submission has its own trace, which the API continues by `traceparent`."""
    with observed.telemetry.tracer.start_as_current_span("not the parent"):
        publish(ndjson(tmp_path / "f.ndjson", "{}", "{}", "{}"))
    client_spans = [span for span in observed.spans() if span.kind is SpanKind.CLIENT]
    assert [span.parent for span in client_spans] == [None, None]
    assert [span.name for span in client_spans] == ["POST /v1/ingest/status"] * 2
    sent = [request.headers["traceparent"].split("-")[1:3] for request in api.requests]
    assert sent == [[f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"] for span in client_spans]
    assert client_spans[0].attributes == {
        "http.request.method": "POST",
        "url.full": f"{api.url}/v1/ingest/status",
        "server.address": "127.0.0.1",
        "server.port": api.server.server_port,
        "http.response.status_code": 202,
        "bronze.source": "status",
        "bronze.records": 2,
        "bronze.bytes": 6,
        "bronze.submission_id": f"id of {api.requests[0].key}",
        "bronze.outcome": "accepted",
    }


def test_a_publisher_runs_if_the_metrics_port_is_in_use(
    api: Api,
    publish: Callable[..., Summary],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If another process uses the port, `/metrics` is served on a free port. The log says so at DEBUG only: after
    `make up`, every first `bronze publish` would warn otherwise.
    """
    caplog.set_level(logging.DEBUG, "bronze")
    pages: list[str] = []

    def scrape(request: Request) -> Answer:
        port = caplog.messages[0].rsplit("port ", 1)[1].split()[0]
        pages.append(httpx.get(f"http://127.0.0.1:{port}/metrics").text)
        return accepted(request)

    api.script = [scrape]
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", str(other.getsockname()[1]))
        assert publish(ndjson(tmp_path / "f.ndjson", "{}")).error is None
    assert "bronze_publisher_submissions_total" in pages[0]
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}


def test_a_simulation_warns_if_the_metrics_port_is_in_use(
    api: Api, observed: Observed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It runs for long, and Prometheus would scrape the other process."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", str(other.getsockname()[1]))
        publisher.simulate(Settings(api_url=api.url), observed.telemetry, stop=Time(waits_max=1))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "set OTEL_EXPORTER_PROMETHEUS_PORT" in record.message


def test_an_invalid_metrics_port_is_an_error(publish: Callable[..., Summary], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", "http")
    with pytest.raises(Misconfigured, match="OTEL_EXPORTER_PROMETHEUS_PORT: 'http'"):
        publish(Path(__file__))


def test_the_summary_counts_one_thing_in_the_singular() -> None:
    several = Summary("status", files=2, submissions=3, records=2_107, bytes=450_026, seconds=1.0, retries=2)
    assert several.text().startswith("status: 2,107 records accepted in 3 submissions, 450,026 bytes in 1.0 s (")
    assert several.text().endswith("2 retries)")
    refused = {"f.csv": "f.csv, line 2: no"}
    single = Summary(
        "status", records=1, submissions=1, records_again=1, records_rejected=1, retries=1, refused=refused
    )
    first, second, _ = single.text().splitlines()
    assert first.startswith("status: 1 record accepted in 1 submission, ")
    assert "1 retry; 1 record had already been accepted" in first
    assert first.endswith("; 1 record went to quarantine)")
    assert second.startswith("1 file was refused;")


# --- stopping


def test_a_running_request_is_finished(api: Api, time: Time, publish: Callable[..., Summary], tmp_path: Path) -> None:
    """After a signal during a request, its answer counts, and nothing is sent after it."""

    def interrupt(request: Request) -> Answer:
        time._on_signal(signal.SIGINT, None)
        return accepted(request)

    api.script = [interrupt]
    summary = publish(ndjson(tmp_path / "f.ndjson", *["{}"] * 4))
    assert (summary.submissions, summary.records, summary.error) == (1, 2, "stopped")
    assert len(api.requests) == 1


def test_a_signal_ends_the_wait_for_input(
    api: Api, time: Time, publish: Callable[..., Summary], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends a publisher that waits for standard input."""

    class Interrupted(io.BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            time._on_signal(signal.SIGINT, None)
            return b"{}\n"

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Interrupted()))
    assert publish(Path(publisher.STDIN), records_max=1).error == "stopped"
    assert not api.requests


def test_a_signal_ends_the_wait_for_a_retry(
    api: Api, observed: Observed, publish: Callable[..., Summary], tmp_path: Path
) -> None:
    """A stop does not wait for an API that does not answer; the error says that the outcome is unknown."""
    api.script = [BUSY]
    summary = publish(ndjson(tmp_path / "f.ndjson", "{}"), stop=Time(waits_max=1))
    assert summary.error is not None
    assert "it is unknown whether" in summary.error
    assert observed.counts()["unknown"] == 1


COMMAND = """
import bronze.__main__, bronze.publisher.stopping

bronze.publisher.stopping.GRACE_S = 0.1
bronze.__main__.main()
"""


@contextmanager
def command(api: Api, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """The command in a separate process."""
    environment = os.environ | {
        "BRONZE_API_URL": api.url,
        "OTEL_EXPORTER_PROMETHEUS_PORT": "0",
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
    }
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def send_signal(process: "subprocess.Popen[str]", number: int, answer: Callable[[Request], Answer]) -> Step:
    def step(request: Request) -> Answer:
        process.send_signal(number)
        return answer(request)

    return step


def test_ctrl_c(api: Api, tmp_path: Path) -> None:
    """Ctrl-C during a request gives exit code 130 and a summary that counts the request."""
    file = ndjson(tmp_path / "f.ndjson", "{}", "{}", "{}")
    with command(api, "publish", "status", "-", "--records", "1", "--json") as process:
        api.script = [send_signal(process, signal.SIGINT, accepted)]
        out, err = process.communicate(file.read_text(), timeout=limit_s(60))
    assert process.returncode == 130, err
    assert json.loads(out)["records"] == 1
    assert "--run" in err


def test_sigterm_does_not_wait_for_an_api_that_never_answers(api: Api) -> None:
    """SIGTERM ends a simulation in time with exit code 0, even if the API never answers."""
    test_ended = threading.Event()

    def never_answer(_: Request) -> Answer:
        test_ended.wait()
        return DROPPED

    with command(api, "simulate", "--interval-s", "0") as process:
        api.script = [accepted, accepted, send_signal(process, signal.SIGTERM, never_answer)]
        try:
            _, err = process.communicate(timeout=limit_s(30))  # less than the time that a request may take
        finally:
            test_ended.set()
    assert process.returncode == 0, err
    assert len(api.requests) == 3


def test_a_directory_and_a_limit_of_rejected_records(
    api: Api, observed: Observed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its files are sent in the order of their names. Exit code 1 if too large a share was rejected."""
    for name in ("b.ndjson", "a.ndjson", ".hidden.ndjson", "c.txt"):
        ndjson(tmp_path / name, "{}", "{}")

    def one_rejected(request: Request) -> Answer:
        return Answer(202, json.dumps(json.loads(accepted(request).body) | {"records": 1, "rejected": 1}).encode())

    def run(*arguments: str) -> int:
        parser = argparse.ArgumentParser()
        publisher.publish_arguments(parser)
        args = parser.parse_args(["status", str(tmp_path), *arguments])
        return publisher.run_publish(args, Settings(api_url=api.url), observed.telemetry)

    assert run() == 0
    assert [request.headers["Bronze-File-Name"] for request in api.requests] == ["a.ndjson", "b.ndjson"]
    for limit, code in (("1", 0), ("0", 1), ("25%", 0), ("24.9%", 1)):
        api.script = [one_rejected]
        assert run("--on-invalid", "quarantine", "--max-rejected", limit, "--run", limit.strip("%")) == code
    assert "more than 24.9% of the records were rejected" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--on-invalid", "refuse"]])
def test_a_limit_of_rejected_records_needs_the_quarantine(
    observed: Observed, tmp_path: Path, options: list[str]
) -> None:
    parser = argparse.ArgumentParser()
    publisher.publish_arguments(parser)
    args = parser.parse_args(["status", str(ndjson(tmp_path / "f.ndjson", "{}")), "--max-rejected", "1%", *options])
    with pytest.raises(Misconfigured, match=r"--max-rejected limits .*: add --on-invalid quarantine"):
        publisher.run_publish(args, Settings(), observed.telemetry)


def test_exit_codes(api: Api, tmp_path: Path) -> None:
    """0 if everything was accepted, 1 with the reason on standard error if not, 2 for wrong usage."""
    file = str(ndjson(tmp_path / "f.ndjson", "{}"))
    api.script = [accepted, problem(404, "unknown-source", "There is no source 'x'. The sources are: status.")]
    with command(api, "publish", "status", file, "--report", str(tmp_path / "r")) as process:
        out, err = process.communicate(timeout=limit_s(60))
        assert (process.returncode, err) == (0, "")
        assert out.startswith("status: 1 record accepted in 1 submission, 3 bytes in ")
        assert len((tmp_path / "r").read_text().splitlines()) == 1
    with command(api, "publish", "x", file) as process:
        _, err = process.communicate(timeout=limit_s(60))
        assert process.returncode == 1
        assert "The sources are: status." in err
    with command(api, "publish", "x", file, "--report", str(tmp_path / "none" / "r")) as process:
        _, err = process.communicate(timeout=limit_s(60))
        assert process.returncode == 2
        assert "--report" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "nowhere.ndjson"],
        ["status", "--dry-run", "nowhere.ndjson"],
        ["status", "--nonsense", "-"],
        ["status", "-", "--delimiter", ";;"],
        ["status", "-", "--encoding", "utf-9"],
        ["status", "-", "--max-rejected", "some"],
        ["status", "-", "--records", "0"],
        ["status", "-", "--retry-for", "inf"],
        ["status", "-", "--run", "two words"],
    ],
)
def test_usage(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong usage is reported before anything is sent, with exit code 2."""
    parser = argparse.ArgumentParser()
    publisher.publish_arguments(parser)
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(arguments)
    assert stopped.value.code == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "-", "-", "--dry-run"],
        ["status", "--dry-run", "-", "-"],
        ["--dry-run", "status", "-", "-"],
        ["status", "-", "--dry-run", "-"],
        ["status", "--on-invalid", "quarantine", "-", "--dry-run", "-"],
    ],
)
def test_options_may_stand_anywhere(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    publisher.publish_arguments(parser.add_subparsers().add_parser("publish"))
    args = parser.parse_args(["publish", *arguments])
    assert (args.source, args.files, args.dry_run) == ("status", ["-", "-"], True)


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["status"], "--watch"),
        (["status", "{file}", "--watch", "{folder}"], "not both"),
        (["status", "--watch", "{folder}", "--again"], "--again"),
        (["status", "--watch", "{folder}", "--pattern", "../*"], "--pattern"),
        (["status", "{file}.txt"], "--format"),
        (["status", "{folder}", "--pattern", "*.csv"], "has no file of a known format"),
        (["status", "{folder}", "--pattern", "../*"], "--pattern"),
        (["status", "{file}", "--report", "{folder}/none/r"], "--report"),
    ],
)
def test_options_that_exclude_each_other(
    arguments: Sequence[str], option: str, observed: Observed, tmp_path: Path
) -> None:
    """The error is raised before anything is sent; the command then ends with exit code 2."""
    file = ndjson(tmp_path / "f.ndjson", "{}")
    ndjson(tmp_path / "f.ndjson.txt", "{}")
    parser = argparse.ArgumentParser()
    publisher.publish_arguments(parser)
    args = parser.parse_args([argument.format(file=file, folder=tmp_path) for argument in arguments])
    with pytest.raises(Misconfigured, match=option):
        publisher.run_publish(args, Settings(api_url="http://127.0.0.1:9"), observed.telemetry)


# --- simulate


def test_the_fleet_is_plausible() -> None:
    """Every simulated record fits its source, and each trip has one status, and a result, a failure or both."""
    declared = sources.built_in()
    trips: dict[str, Counter[str]] = {source: Counter() for source in declared}
    for source, records in islice(fleet(random.Random(1)), 400):
        assert records
        for record in records:
            decoded: Any = msgspec.json.decode(msgspec.json.encode(record), type=declared[source].record_type)
            trips[source][decoded.classification_id] += 1
    assert set(trips["vehicles"]) == {None}
    assert max(trips["status"].values()) == 1
    assert trips["status"] == trips["results"] | trips["failures"]
    assert trips["results"] & trips["failures"]


def test_a_simulation_outlives_the_api(api: Api, observed: Observed) -> None:
    """It continues after an outage longer than its retries, a refusal and a foreign answer, and counts each."""
    outage = publisher.RETRY_FOR_S / (publisher.BACK_OFF_S_MAX / 2)
    refusal = problem(422, "schema-violation", "No.", record=0)
    api.script = [*[Answer(503)] * int(outage + 10), refusal, Answer(200)]
    time = Time(waits_max=60)
    publisher.simulate(Settings(api_url=api.url), observed.telemetry, stop=time, clock=time.clock)
    counts = observed.counts()
    assert counts["unknown"] >= 2
    assert counts["rejected"] == 1
    assert counts["accepted"] >= 4
    assert {request.path.rpartition("/")[2] for request in api.requests} == set(sources.built_in())


def test_a_simulation_is_slow(api: Api, observed: Observed) -> None:
    """It sends one submission per interval, and the zeros of all sources before the first."""
    time = Time(waits_max=3)
    publisher.simulate(Settings(api_url=api.url), observed.telemetry, stop=time, interval_s=5, clock=time.clock)
    assert time.waits == [5, 5, 5]
    assert len(api.requests) == 3
    assert set(observed.exported.submissions()) == {
        (source, outcome) for source in sources.built_in() for outcome in ("accepted", "rejected", "unknown")
    }
