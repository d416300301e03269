"""The SDK as a role uses it: what is exported and where, and that telemetry neither breaks nor delays the role."""

import http.client
import http.server
import io
import json
import logging
import os
import secrets
import socket
import struct
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from opentelemetry._logs import SeverityNumber
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, Metric
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, set_span_in_context
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import bronze
from bronze.errors import Misconfigured
from bronze.settings import LogFormat, Settings
from bronze.telemetry import FASTAPI_TELEMETRY_OFF, Telemetry, logs, losses, sdk
from bronze.telemetry import start as start_telemetry
from bronze.telemetry.context import extract, inject, span_context, trace_id_hex, traceparent
from bronze.telemetry.schema import registry
from bronze.telemetry.scrape import MetricsServer
from bronze.telemetry.signals import Outcome, Role, attribute, spans
from local.machine import Deadline
from local.otlp import Receiver, attributes

UPLOADED = {attribute.bronze_source: "vehicles", attribute.bronze_outcome: Outcome.SUCCESS}


@pytest.fixture(autouse=True)
def _restored_process() -> Iterator[None]:
    """Restores after each test what `start` sets for the process, and removes the machine's own OTEL_* variables."""
    environment = dict(os.environ)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    for name in [name for name in environment if name.startswith("OTEL_")]:
        del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(environment)
    root.handlers[:] = handlers
    root.setLevel(level)


class RecordedTelemetry:
    """Telemetry that is kept in memory, with access to its spans and metrics."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self._exporter = InMemorySpanExporter()
        self.telemetry = sdk.assemble(
            Resource({attribute.service_name: "api", attribute.service_instance_id: "i"}),
            metric_readers=[self._reader],
            span_exporters=[lambda _: self._exporter],
        )

    def spans(self) -> Sequence[ReadableSpan]:
        """The ended spans. Read exemplars before: the flush collects metrics too."""
        self.telemetry.flush()
        return self._exporter.get_finished_spans()

    def metrics(self) -> Sequence[Metric]:
        data = self._reader.get_metrics_data()
        return [
            metric
            for resource_metrics in (data.resource_metrics if data else ())
            for scope_metrics in resource_metrics.scope_metrics
            for metric in scope_metrics.metrics
        ]

    def points(self, name: str) -> Sequence[Any]:
        return [point for metric in self.metrics() if metric.name == name for point in metric.data.data_points]


@pytest.fixture
def recorded() -> Iterator[RecordedTelemetry]:
    recorded = RecordedTelemetry()
    yield recorded
    recorded.telemetry.shutdown()


Start = Callable[[Role], Telemetry]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Telemetry] = []

    def start(role: Role) -> Telemetry:
        started.append(start_telemetry(role, Settings(), log_stream=io.StringIO()))
        return started[-1]

    yield start
    for telemetry in started:
        telemetry.shutdown()


def scrape(telemetry: Telemetry) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Labels and values of all samples of `/metrics`, by name."""
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(telemetry.metrics()[0].decode()):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return samples


def without_exporters() -> None:
    for signal in ("TRACES", "METRICS", "LOGS"):
        os.environ[f"OTEL_{signal}_EXPORTER"] = "none"


# --- metrics


def test_zeros_are_in_metrics_before_the_first_event(recorded: RecordedTelemetry) -> None:
    recorded.telemetry.instruments.zero(Role.CONSUMER, ["vehicles"])
    samples = scrape(recorded.telemetry)
    failures = [labels for labels, value in samples["bronze_uploads_total"] if value == 0]
    assert {"bronze_source": "vehicles", "bronze_outcome": "failure", "error_type": "denied"} in failures
    assert samples["messaging_client_consumed_messages_total"][0][1] == 0


def test_a_counter_is_exact_and_has_one_series_for_an_enum_member_and_its_string(recorded: RecordedTelemetry) -> None:
    """Also if threads count at once, and while metrics are collected. A second collection has the same sums."""

    def count() -> None:
        for _ in range(2_000):
            recorded.telemetry.instruments.records.add(1, UPLOADED)
            recorded.telemetry.instruments.records.add(2, {name: str(value) for name, value in UPLOADED.items()})

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        recorded.metrics()
    for _ in range(2):
        (point,) = recorded.points("bronze.records")
        assert point.value == 24_000
        assert [(value, type(value)) for value in point.attributes.values()] == [("vehicles", str), ("success", str)]


def test_metrics_have_the_same_names_as_through_the_collector(recorded: RecordedTelemetry) -> None:
    """Suffixes for the unit and `_total`, attributes with underscores as labels, no labels of the scope."""
    recorded.telemetry.instruments.records.add(3, UPLOADED)
    recorded.telemetry.instruments.bytes.add(3, UPLOADED)
    recorded.telemetry.instruments.upload_duration.record(1.5, UPLOADED)
    recorded.telemetry.instruments.upload_size.record(3, {attribute.bronze_source: "vehicles"})
    recorded.telemetry.instruments.upload_last_success_time.set(3, {attribute.bronze_source: "vehicles"})
    samples = scrape(recorded.telemetry)
    labels = {"bronze_source": "vehicles", "bronze_outcome": "success"}
    assert samples["bronze_records_total"] == [(labels, 3)]
    assert samples["bronze_bytes_total"] == [(labels, 3)]
    assert samples["bronze_upload_duration_seconds_sum"] == [(labels, 1.5)]
    assert samples["bronze_upload_size_bytes_count"] == [({"bronze_source": "vehicles"}, 1)]
    assert samples["bronze_upload_last_success_time_seconds"] == [({"bronze_source": "vehicles"}, 3)]


def test_an_exemplar_carries_the_trace_of_the_context_it_was_recorded_with(recorded: RecordedTelemetry) -> None:
    """It is not that of the current span: a delivery belongs to its submission and not to the flush."""
    tracer = recorded.telemetry.tracer
    submission = tracer.start_span("submission")
    with tracer.start_as_current_span("flush"):
        recorded.telemetry.instruments.delivery_duration.record(
            1.5, {attribute.bronze_source: "vehicles"}, context=set_span_in_context(submission)
        )
    (point,) = recorded.points("bronze.delivery.duration")
    assert isinstance(point, HistogramDataPoint)
    (exemplar,) = point.exemplars
    assert exemplar.trace_id == submission.get_span_context().trace_id
    assert exemplar.span_id == submission.get_span_context().span_id


def test_unsampled_spans_have_no_exemplars() -> None:
    """An exemplar must lead to a trace that exists."""
    os.environ["OTEL_TRACES_SAMPLER"] = "always_off"
    recorded = RecordedTelemetry()
    with recorded.telemetry.tracer.start_as_current_span("upload"):
        recorded.telemetry.instruments.upload_duration.record(1.5, UPLOADED)
    (point,) = recorded.points("bronze.upload.duration")
    assert not point.exemplars
    recorded.telemetry.shutdown()


def test_a_gauge_keeps_its_last_value_until_it_is_set_again(recorded: RecordedTelemetry) -> None:
    """By OTLP and when scraped: the position, age and objective of an idle lane do not disappear."""
    recorded.telemetry.instruments.lane_position.set(7, {attribute.bronze_lane: "0"})
    for _ in range(3):
        assert [point.value for point in recorded.points("bronze.lane.position")] == [7]
        assert scrape(recorded.telemetry)["bronze_lane_position"] == [({"bronze_lane": "0"}, 7)]


@pytest.mark.parametrize("flush_age_s", [0.2, 0.28, 1, 7.5, 15, 3600])
def test_the_objective_of_deliveries_is_one_of_their_bounds(flush_age_s: float) -> None:
    """With any flush age: otherwise no query could count the deliveries that met the objective."""
    objective_s = Settings(flush_age_s=flush_age_s).delivery_objective_s
    telemetry = sdk.assemble(Resource({attribute.service_name: "consumer"}), delivery_objective_s=objective_s)
    telemetry.instruments.delivery_objective.set(objective_s, {attribute.bronze_source: "vehicles"})
    telemetry.instruments.delivery_duration.record(objective_s, {attribute.bronze_source: "vehicles"})
    samples = scrape(telemetry)
    ((_, objective_exported_s),) = samples["bronze_delivery_objective_seconds"]
    in_time = {float(labels["le"]): value for labels, value in samples["bronze_delivery_duration_seconds_bucket"]}
    assert in_time[objective_exported_s] == 1
    assert set(registry().metrics["bronze.delivery.duration"].buckets) < {*in_time}
    telemetry.shutdown()


def test_concurrent_scrapes_wait_for_each_other(recorded: RecordedTelemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this, the first of two concurrent scrapes gets all series twice, and the second none."""
    second = threading.Thread(target=recorded.telemetry.metrics)
    waited: list[bool] = []

    def generate(registry: CollectorRegistry) -> bytes:
        if not waited:
            waited.append(False)
            second.start()
            second.join(timeout=0.05)
            waited[0] = second.is_alive()
        return generate_latest(registry)

    monkeypatch.setattr(sdk, "generate_latest", generate)
    recorded.telemetry.metrics()
    second.join()
    assert waited == [True]


# --- sampling


def test_every_process_samples_the_same_traces() -> None:
    """Sampling depends only on the trace id: it is the same in each role, and after a restart."""
    os.environ["OTEL_TRACES_SAMPLER"], os.environ["OTEL_TRACES_SAMPLER_ARG"] = "traceidratio", "0.1"
    processes = RecordedTelemetry(), RecordedTelemetry()
    contexts = [extract({"traceparent": f"00-{secrets.token_hex(16)}-00000000000000ef-00"}) for _ in range(500)]
    first, second = [
        [process.telemetry.tracer.start_span("upload", context).is_recording() for context in contexts]
        for process in processes
    ]
    assert first == second
    assert 0 < sum(first) < 150
    for process in processes:
        process.telemetry.shutdown()


@pytest.mark.parametrize("sampled", [True, False])
def test_a_client_decides_for_its_own_trace(sampled: bool) -> None:  # noqa: FBT001  pytest's
    """The client's `tracestate` is passed on unchanged."""
    os.environ["OTEL_TRACES_SAMPLER"] = "parentbased_traceidratio"
    os.environ["OTEL_TRACES_SAMPLER_ARG"] = "0" if sampled else "1"
    recorded = RecordedTelemetry()
    client_headers = {
        "traceparent": f"00-{'ab' * 16}-00000000000000ef-0{int(sampled)}",
        "tracestate": "ot=th:c,vendor=1",
    }
    span = recorded.telemetry.tracer.start_span("upload", extract(client_headers))
    assert span.is_recording() is sampled
    headers = inject(set_span_in_context(span))
    assert headers["traceparent"].endswith(f"-0{int(sampled)}")
    assert headers["tracestate"] == client_headers["tracestate"]
    recorded.telemetry.shutdown()


# --- HTTP


@pytest.fixture
def app(recorded: RecordedTelemetry) -> FastAPI:
    providers: TelemetryConfig = {
        "tracer_provider": recorded.telemetry._tracers,  # FastAPI's own telemetry would use them
        "meter_provider": recorded.telemetry._meters,
    }
    app = FastAPI(telemetry={**FASTAPI_TELEMETRY_OFF, **providers})

    @app.post("/v1/ingest/{source}")
    async def ingest(source: str) -> None:
        trace.get_current_span().set_attribute(attribute.bronze_source, source)

    @app.get("/livez")
    async def livez() -> None: ...

    recorded.telemetry.instrument(app)
    return app


async def request(app: FastAPI, method: str, path: str, **headers: str) -> int:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://api.test") as client:
        return (await client.request(method, path, headers=headers)).status_code


async def test_a_request_is_one_server_span_and_one_duration(app: FastAPI, recorded: RecordedTelemetry) -> None:
    """Only one instrumentation records it, without child spans, with the stable conventions."""
    remote = "00-0000000000000000000000000000abcd-00000000000000ef-01"
    assert await request(app, "POST", "/v1/ingest/vehicles", traceparent=remote) == 200
    (point,) = recorded.points("http.server.request.duration")
    (span,) = recorded.spans()
    assert (span.name, span.kind) == ("POST /v1/ingest/{source}", SpanKind.SERVER)
    assert trace.format_trace_id(span.context.trace_id) == "0000000000000000000000000000abcd"
    assert (span.attributes or {})[attribute.http_route] == "/v1/ingest/{source}"
    assert (span.attributes or {})[attribute.bronze_source] == "vehicles"

    assert point.count == 1
    assert point.attributes[attribute.http_route] == "/v1/ingest/{source}"
    assert point.attributes[attribute.http_response_status_code] == 200
    assert 2 in point.explicit_bounds
    assert point.exemplars[0].trace_id == 0xABCD


INSTRUMENTATION = "opentelemetry.instrumentation.fastapi"


async def test_the_instrumentation_emits_the_declared_metrics(app: FastAPI, recorded: RecordedTelemetry) -> None:
    """It adds no other labels: a client's Host header would be a label with unbounded values."""
    await request(app, "POST", "/v1/ingest/vehicles")
    await request(app, "GET", "/nowhere")
    declared = {m.name: m for m in registry().metrics.values() if m.instrumentation == INSTRUMENTATION}
    emitted = {metric.name: metric for metric in recorded.metrics() if metric.name.startswith("http.")}
    assert set(emitted) == set(declared)
    for name, metric in emitted.items():
        assert metric.unit == declared[name].unit
        for point in metric.data.data_points:
            assert set(point.attributes or {}) <= set(declared[name].attributes)
            if isinstance(point, HistogramDataPoint):
                assert tuple(point.explicit_bounds) == declared[name].buckets


async def test_every_exported_metric_is_declared(collector: Receiver, start: Start) -> None:
    """Bronze's own metrics, and those of the instrumentation and of the SDK."""
    telemetry = start(Role.API)
    app = FastAPI(telemetry=FASTAPI_TELEMETRY_OFF)
    telemetry.instrument(app)
    await request(app, "GET", "/nowhere")
    telemetry.instruments.zero(Role.API, ["vehicles"])
    telemetry.flush()
    telemetry.shutdown()
    names = {metric.name for _, metric in collector.metrics}
    assert {"bronze.records", "http.server.request.duration", "otel.sdk.processor.span.processed"} <= names
    assert [name for name in names if not registry().knows(name)] == []


async def test_probes_and_scrapes_are_not_recorded(app: FastAPI, recorded: RecordedTelemetry) -> None:
    await request(app, "GET", "/livez")
    await request(app, "GET", "/livez?x=1")
    assert not recorded.spans()
    assert not recorded.points("http.server.request.duration")


async def test_a_source_named_like_a_probe_is_recorded(app: FastAPI, recorded: RecordedTelemetry) -> None:
    await request(app, "POST", "/v1/ingest/metrics")
    assert len(recorded.spans()) == 1


# --- context


def test_a_context_survives_headers(recorded: RecordedTelemetry) -> None:
    with recorded.telemetry.tracer.start_as_current_span("send") as span:
        headers = inject()
    context = extract({name.title(): value for name, value in headers.items()})
    assert span_context(context).trace_id == span.get_span_context().trace_id
    assert span_context(context).span_id == span.get_span_context().span_id
    assert headers["traceparent"] == traceparent(span) == traceparent(set_span_in_context(span))
    assert trace_id_hex(context) == trace_id_hex(span) == headers["traceparent"].split("-")[1]


def test_a_trace_id_keeps_its_leading_zeros() -> None:
    header = "00-00000000000000000000000000000abc-0000000000000def-01"
    context = extract({"traceparent": header})
    assert trace_id_hex(context) == "00000000000000000000000000000abc"
    assert traceparent(context) == header


@pytest.mark.parametrize("headers", [{}, {"traceparent": "nonsense"}, {"traceparent": ""}])
def test_headers_without_a_trace_give_an_empty_context(headers: dict[str, str], recorded: RecordedTelemetry) -> None:
    """The current trace is not used: a consumer would connect unrelated submissions."""
    with recorded.telemetry.tracer.start_as_current_span("flush"):
        assert not span_context(extract(headers)).is_valid
        assert trace_id_hex(extract(headers)) == "0" * 32
        assert inject(extract(headers)) == {}


# --- the process: resource, settings, /metrics


def test_the_resource_identifies_the_process(start: Start) -> None:
    without_exporters()
    telemetry = start(Role.CONSUMER)
    assert telemetry.resource[attribute.service_namespace] == "bronze"
    assert telemetry.service_name == "consumer"
    assert telemetry.version == bronze.__version__
    assert telemetry.resource[attribute.deployment_environment_name] == "local"
    assert telemetry.instance_id != start(Role.CONSUMER).instance_id
    assert telemetry.alive() == {
        "status": "alive",
        "service_name": "consumer",
        "service_instance_id": telemetry.instance_id,
        "version": bronze.__version__,
    }


def test_the_environment_can_add_attributes_but_not_change_the_name(start: Start) -> None:
    """Dashboards and rules join on namespace and name; a runner recognizes its process by the instance id."""
    without_exporters()
    os.environ["OTEL_SERVICE_NAME"] = "something"
    os.environ["OTEL_RESOURCE_ATTRIBUTES"] = "service.instance.id=mine,deployment.environment.name=prod,team=a"
    telemetry = start(Role.API)
    assert (telemetry.service_name, telemetry.instance_id) == ("api", "mine")
    assert telemetry.resource[attribute.deployment_environment_name] == "prod"
    assert telemetry.resource["team"] == "a"
    telemetry.instruments.zero(Role.API, ["vehicles"])
    ((labels, _),) = scrape(telemetry)["target_info"]
    assert labels["service_instance_id"] == "mine"


@pytest.mark.parametrize(("configured", "spans_s"), [(None, 60), ("3", 3)])
def test_spans_and_logs_are_retried_for_a_minute_unless_the_environment_changes_it(
    configured: str | None, spans_s: float, start: Start
) -> None:
    """Metrics are not, since the next export contains all of them again."""
    if configured:
        os.environ["OTEL_EXPORTER_OTLP_TIMEOUT"] = configured
    telemetry = start(Role.API)
    timeouts = {
        type(exporter): exporter.wrapped._client._timeout
        for exporter in telemetry._exporters
        if isinstance(exporter, (losses.CountedSpans, losses.CountedLogs, losses.CountedMetrics))
    }
    assert timeouts == {
        losses.CountedSpans: spans_s,
        losses.CountedLogs: spans_s,
        losses.CountedMetrics: 3 if configured else 10,
    }


def test_zeros_are_exported_before_the_end_of_the_first_interval(start: Start) -> None:
    """Otherwise counts within the interval are the first sample, and `increase()` shows nothing."""
    os.environ["OTEL_METRIC_EXPORT_INTERVAL"] = "600000"
    with Receiver() as receiver:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = receiver.url
        start(Role.CONSUMER).export_zeros(["vehicles"])
        deadline = Deadline(10)
        while not receiver.metrics:
            assert not deadline.passed(), "no metrics"
            time.sleep(0.01)
        sums = {metric.name: metric.sum.data_points for _, metric in receiver.metrics}
    assert [point.as_int for point in sums["bronze.uploads"]] == [0] * 7


def test_a_disabled_sdk_records_nothing_and_causes_no_error(start: Start) -> None:
    os.environ["OTEL_SDK_DISABLED"] = "true"
    telemetry = start(Role.CONSUMER)
    telemetry.instruments.zero(Role.CONSUMER, ["vehicles"])
    with telemetry.tracer.start_as_current_span("upload") as span:
        telemetry.instruments.upload_duration.record(1, UPLOADED)
        assert not span.is_recording()
    assert not scrape(telemetry)
    telemetry.instrument(FastAPI(telemetry=FASTAPI_TELEMETRY_OFF))
    telemetry.flush()
    telemetry.shutdown()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_METRICS_EXPORTER", "otlp,statsd"),
        ("OTEL_LOGS_EXPORTER", "file"),
        ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta"),
        ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "base2_exponential_bucket_histogram"),
        ("OTEL_METRICS_EXEMPLAR_FILTER", "always_on"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_TRACES_SAMPLER_ARG", "2"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "1"),
    ],
)
def test_an_unsupported_value_of_a_variable_is_an_error(variable: str, value: str, start: Start) -> None:
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:9"
    if variable.startswith("OTEL_BSP_"):
        os.environ["OTEL_METRICS_EXPORTER"] = "none"  # its reader would have been started, and would keep running
    if variable == "OTEL_TRACES_SAMPLER_ARG":
        os.environ["OTEL_TRACES_SAMPLER"] = "traceidratio"
    os.environ[variable] = value
    with pytest.raises(Misconfigured, match=variable if value in {"0", "2"} else "OTEL_"):
        start(Role.API)


@pytest.mark.parametrize(
    "variable", ["OTEL_METRICS_EXEMPLAR_FILTER", "OTEL_METRIC_EXPORT_INTERVAL", "OTEL_TRACES_SAMPLER"]
)
def test_an_empty_variable_is_as_unset(variable: str, start: Start) -> None:
    """And so says OpenTelemetry's specification, which also makes 1 the ratio that is not given."""
    without_exporters()
    os.environ["OTEL_TRACES_SAMPLER"], os.environ["OTEL_TRACES_SAMPLER_ARG"] = "traceidratio", ""
    os.environ[variable] = ""
    telemetry = start(Role.PUBLISHER)
    with telemetry.tracer.start_as_current_span("publish") as span:
        assert span.get_span_context().trace_flags.sampled


def test_metrics_and_livez_are_served_to_scrapers(start: Start) -> None:
    without_exporters()
    telemetry = start(Role.PUBLISHER)
    telemetry.instruments.zero(Role.PUBLISHER, ["vehicles"])
    with telemetry.serve_metrics(port=0) as server:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as response:
            assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert b"bronze_publisher_submissions_total{" in response.read()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/livez") as response:
            assert json.load(response) == telemetry.alive()
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("GET", "/")
        assert connection.getresponse().status == 404
        connection.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))


def test_a_scraper_that_does_not_wait_is_no_error(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """What fails in the process itself is one, in its log."""
    asked, gone = threading.Event(), threading.Event()

    def metrics() -> tuple[bytes, str]:
        asked.set()
        assert gone.wait(30)
        if is_broken:
            raise ValueError("broken")
        return b"metrics", "text/plain"

    def scrape(port: int) -> None:
        asked.clear()
        gone.clear()
        with socket.create_connection(("127.0.0.1", port)) as scraper:
            scraper.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            scraper.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed by a reset
            assert asked.wait(30)
        gone.set()
        deadline = Deadline(30)
        while any("process_request" in thread.name for thread in threading.enumerate()):
            assert not deadline.passed()

    with MetricsServer("127.0.0.1", 0, metrics, dict) as server:
        is_broken = False
        scrape(server.port)
        assert not caplog.records
        is_broken = True
        scrape(server.port)
        assert [record.message for record in caplog.records] == ["a request to the port of /metrics failed"]
    assert capfd.readouterr().err == ""


def test_a_port_in_use_is_an_error_that_names_it_and_its_variable(start: Start) -> None:
    without_exporters()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        os.environ["OTEL_EXPORTER_PROMETHEUS_PORT"] = str(port)
        with pytest.raises(Misconfigured, match=rf"127\.0\.0\.1:{port} .*OTEL_EXPORTER_PROMETHEUS_PORT"):
            start(Role.CONSUMER).serve_metrics()


def test_an_invalid_port_is_an_error(start: Start) -> None:
    without_exporters()
    os.environ["OTEL_EXPORTER_PROMETHEUS_PORT"] = "http"
    with pytest.raises(Misconfigured, match="OTEL_EXPORTER_PROMETHEUS_PORT: 'http'"):
        start(Role.CONSUMER).serve_metrics()


@pytest.mark.parametrize("given", ["service.instance.id=mine,team=a%20b", ""])
def test_each_worker_has_an_instance_id_and_a_port_of_its_own(given: str, start: Start) -> None:
    """They follow those of the process that starts it; other attributes stay."""
    without_exporters()
    os.environ["OTEL_RESOURCE_ATTRIBUTES"] = given
    os.environ["OTEL_EXPORTER_PROMETHEUS_PORT"] = "9100"
    of_all = sdk.identity(Role.CONSUMER)
    os.environ |= sdk.worker_variables(of_all, 2)
    worker = start(Role.CONSUMER)
    assert worker.instance_id == f"{of_all['service.instance.id']}-2"
    assert worker.resource.get("team") == ("a b" if given else None)
    assert os.environ["OTEL_EXPORTER_PROMETHEUS_PORT"] == "9101"
    if given:
        assert worker.instance_id == "mine-2"
    os.environ["OTEL_EXPORTER_PROMETHEUS_PORT"] = "65535"
    with pytest.raises(Misconfigured, match="65536"):
        sdk.worker_variables(of_all, 2)


# --- the collector, available and unavailable


@pytest.fixture
def collector() -> Iterator[Receiver]:
    """The receiver at OTEL_EXPORTER_OTLP_ENDPOINT."""
    with Receiver() as receiver:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = receiver.url
        yield receiver


def test_shutdown_exports_everything(collector: Receiver, start: Start) -> None:
    """Spans, logs, and metrics with exemplars and with enum members as strings, of a process that ends at once."""
    telemetry = start(Role.CONSUMER)
    with telemetry.tracer.start_as_current_span(spans.upload.name("vehicles"), attributes=UPLOADED) as span:
        telemetry.instruments.upload_duration.record(1.5, UPLOADED)
        logging.getLogger("bronze.test").warning("late")
    telemetry.shutdown()

    ((resource, exported_span),) = collector.spans
    assert resource["service.name"] == "consumer"
    assert exported_span.name == "upload vehicles"
    assert attributes(exported_span.attributes) == UPLOADED

    (point,) = [
        point
        for _, metric in collector.metrics
        if metric.name == "bronze.upload.duration"
        for point in metric.histogram.data_points
    ]
    assert attributes(point.attributes)["bronze.outcome"] == "success"
    assert point.exemplars[0].trace_id == span.get_span_context().trace_id.to_bytes(16, "big")

    ((resource, record),) = collector.logs
    assert resource["service.name"] == "consumer"
    assert record.body.string_value == "late"


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_COMPRESSION", "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION"])
def test_spans_are_compressed_if_the_standard_variables_ask_for_it(
    variable: str, collector: Receiver, start: Start
) -> None:
    os.environ[variable] = "gzip"
    telemetry = start(Role.CONSUMER)
    telemetry.tracer.start_span("upload vehicles").end()
    telemetry.shutdown()
    ((_, span),) = collector.spans
    assert span.name == "upload vehicles"
    (request,) = [request for request in collector.requests if request.path == "/v1/traces"]
    assert {name.lower(): value for name, value in request.headers.items()}["content-encoding"] == "gzip"


def test_flush_exports_zeros_before_the_first_count(collector: Receiver, start: Start) -> None:
    """It does not change the scrape, which has each series once."""
    telemetry = start(Role.PUBLISHER)
    telemetry.instruments.zero(Role.PUBLISHER, ["vehicles"])
    telemetry.flush()
    assert "bronze.publisher.submissions" in {metric.name for _, metric in collector.metrics}
    assert len(scrape(telemetry)["bronze_publisher_submissions_total"]) == 3


def test_exports_to_an_unavailable_collector_are_counted_and_delay_nobody(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{closed.getsockname()[1]}"
    os.environ["OTEL_EXPORTER_OTLP_TIMEOUT"] = "0.5"  # less than the first back-off: the export fails after one attempt
    telemetry = start(Role.CONSUMER)
    with telemetry.tracer.start_as_current_span("upload"):
        logging.getLogger("bronze.test").warning("unavailable")
    telemetry.flush()
    assert failed_exports(telemetry, "span") == {"ConnectionError": 1}
    assert failed_exports(telemetry, "log") == {"ConnectionError": 1}
    telemetry.shutdown()


def failed_exports(telemetry: Telemetry, signal: str) -> dict[str, float]:
    """The number of spans, logs or metric_data_points that were not exported, by `error.type`, without zeros."""
    samples = scrape(telemetry)[f"otel_sdk_exporter_{signal}_exported_total"]
    return {labels["error_type"]: value for labels, value in samples if labels["error_type"] and value}


@pytest.mark.parametrize("status", [400, 413, 500, 503])
def test_telemetry_that_the_collector_refuses_is_counted_as_failed(
    status: int, collector: Receiver, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK's own counts would show it as exported, since the collector answered."""
    os.environ["OTEL_EXPORTER_OTLP_TIMEOUT"] = "0.5"
    telemetry = start(Role.CONSUMER)
    with collector.answering(status):
        with telemetry.tracer.start_as_current_span("upload"):
            logging.getLogger("bronze.test").warning("refused")
        telemetry.flush()
        assert failed_exports(telemetry, "span") == failed_exports(telemetry, "log") == {"NotTaken": 1}
        assert set(failed_exports(telemetry, "metric_data_point")) == {"NotTaken"}


def test_losses_are_counted_from_zero(start: Start) -> None:
    """A series that begins with its first loss is invisible to `increase()`."""
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:9"
    os.environ["OTEL_EXPORTER_OTLP_TIMEOUT"] = "0.5"  # ends the retries soon
    samples = scrape(start(Role.PUBLISHER))
    for name in ("processor_span_processed", "processor_log_processed"):
        ((_, value),) = [s for s in samples[f"otel_sdk_{name}_total"] if s[0]["error_type"] == "queue_full"]
        assert value == 0
    for signal in ("span", "log", "metric_data_point"):
        counts = {
            labels["error_type"]: value for labels, value in samples[f"otel_sdk_exporter_{signal}_exported_total"]
        }
        assert counts == dict.fromkeys(["", *losses.ERRORS], 0)


def test_shutdown_does_not_wait_for_a_collector_that_hangs(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector accepts the connection and never answers; the exporter would wait for 10 s."""
    monkeypatch.setattr(sdk, "_FLUSH_S_MAX", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        stream = io.StringIO()
        telemetry = start_telemetry(Role.CONSUMER, Settings(), log_stream=stream)
        with telemetry.tracer.start_as_current_span("upload"):
            logging.getLogger("bronze.test").warning("silence")
        telemetry.shutdown()
        assert "did not accept the last telemetry in time" in stream.getvalue()
        telemetry.shutdown()


class BlockingExporter(SpanExporter):
    """An exporter whose exports do not end until they are released."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.released.wait()
        return SpanExportResult.SUCCESS


def test_spans_beyond_the_queue_are_dropped_and_counted() -> None:
    os.environ["OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"] = "true"
    os.environ["OTEL_BSP_MAX_QUEUE_SIZE"] = os.environ["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"] = "2"
    exporter = BlockingExporter()
    telemetry = sdk.assemble(Resource({attribute.service_name: "consumer"}), span_exporters=[lambda _: exporter])
    for _ in range(10):
        telemetry.tracer.start_span("process").end()
    dropped = [
        value
        for labels, value in scrape(telemetry)["otel_sdk_processor_span_processed_total"]
        if labels["error_type"] == "queue_full"
    ]
    assert dropped
    assert dropped[0] >= 10 - 2 - 2  # a full queue, and a batch that is being exported
    exporter.released.set()
    telemetry.shutdown()


# --- logs


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def log_to(stream: io.StringIO, form: LogFormat = LogFormat.JSON, level: str = "INFO") -> logging.Logger:
    logs.configure(form, level, {"service.name": "api", "service.instance.id": "i"}, stream)
    return logging.getLogger("bronze.test")


def written(stream: io.StringIO) -> list[str]:
    """The lines of a stream, without those of exporters: one that an earlier test gave up may log from its thread."""
    return [line for line in stream.getvalue().splitlines() if "opentelemetry.exporter" not in line]


def test_a_json_line_carries_its_trace(recorded: RecordedTelemetry, stream: io.StringIO) -> None:
    log = log_to(stream)
    with recorded.telemetry.tracer.start_as_current_span("upload") as span:
        log.info("wrote %s", "x", extra={"records": 3, "level": "other"})
    line = json.loads(*written(stream))
    assert line["message"] == "wrote x"
    assert (line["level"], line["logger"], line["records"]) == ("INFO", "bronze.test", 3)
    assert line["time"].endswith("Z")
    assert (line["service_name"], line["service_instance_id"]) == ("api", "i")
    assert line["trace_id"] == trace_id_hex(span)
    assert line["span_id"] == trace.format_span_id(span.get_span_context().span_id)


def test_a_json_line_is_one_line_with_its_exception(stream: io.StringIO) -> None:
    log = log_to(stream)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("failed")
    (line,) = written(stream)
    assert "ValueError: two\nlines" in json.loads(line)["exception"]
    assert "trace_id" not in json.loads(line)


def test_the_console_format_is_text(recorded: RecordedTelemetry, stream: io.StringIO) -> None:
    log = log_to(stream, LogFormat.CONSOLE)
    with recorded.telemetry.tracer.start_as_current_span("upload") as span:
        log.warning("late", extra={"lane": "0"})
    assert f"WARNING bronze.test: late lane=0 trace_id={trace_id_hex(span)}" in stream.getvalue()


def test_uvicorn_logs_in_the_same_format_and_not_each_request(stream: io.StringIO) -> None:
    logging.getLogger("uvicorn.error").addHandler(logging.StreamHandler(io.StringIO()))
    log_to(stream)
    logging.getLogger("uvicorn.error").info("Uvicorn running")
    logging.getLogger("uvicorn.access").info("GET /livez 200")
    (line,) = written(stream)
    assert json.loads(line)["message"] == "Uvicorn running"


def test_a_log_record_is_exported_with_its_trace_and_extra(collector: Receiver, start: Start) -> None:
    telemetry = start(Role.API)
    with telemetry.tracer.start_as_current_span("upload") as span:
        try:
            raise ValueError("too late")
        except ValueError:
            logging.getLogger("bronze.test").exception("lane %s", "0", extra={"records": 3, "key": Path("a")})
    logging.getLogger("bronze.test").debug("below the level")
    telemetry.shutdown()
    ((resource, record),) = collector.logs
    assert resource["service.instance.id"] == telemetry.instance_id
    assert (record.body.string_value, record.severity_text) == ("lane 0", "ERROR")
    assert record.severity_number == SeverityNumber.ERROR.value
    assert record.trace_id == span.get_span_context().trace_id.to_bytes(16, "big")
    assert record.span_id == span.get_span_context().span_id.to_bytes(8, "big")
    exported = attributes(record.attributes)
    assert (exported["records"], exported["key"]) == (3, "a")
    assert (exported["exception.type"], exported["exception.message"]) == ("ValueError", "too late")


def test_records_of_exporters_are_not_exported(collector: Receiver, start: Start) -> None:
    """Nor are those of their HTTP client during an export: each failure would add a record to export."""
    telemetry = start(Role.API)
    logging.getLogger("opentelemetry.exporter").error("Failed to export")
    with suppress_instrumentation():  # as the SDK does during an export
        logging.getLogger("urllib3").error("connection lost")
    logging.getLogger("bronze.test").info("bronze")
    telemetry.shutdown()
    assert [record.body.string_value for _, record in collector.logs] == ["bronze"]


def test_log_records_beyond_the_queue_are_dropped_and_counted() -> None:
    os.environ["OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"] = "true"
    os.environ["OTEL_BLRP_MAX_QUEUE_SIZE"] = os.environ["OTEL_BLRP_MAX_EXPORT_BATCH_SIZE"] = "2"
    released = threading.Event()

    class BlockingLogExporter(LogRecordExporter):
        def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
            released.wait()
            return LogRecordExportResult.SUCCESS

        def force_flush(self, timeout_millis: int = 0) -> bool:
            return True

        def shutdown(self) -> None: ...

    telemetry = sdk.assemble(
        Resource({attribute.service_name: "consumer"}), log_exporters=[lambda _: BlockingLogExporter()]
    )
    for _ in range(10):
        telemetry._logs.emit(logging.makeLogRecord({"name": "bronze.test", "msg": "repeated", "levelno": logging.INFO}))
    dropped = {
        labels["error_type"]: value for labels, value in scrape(telemetry)["otel_sdk_processor_log_processed_total"]
    }
    assert dropped["queue_full"] >= 10 - 2 - 2  # a full queue, and a batch that is being exported
    released.set()
    telemetry.shutdown()


def test_without_a_log_exporter_records_are_only_written_to_the_stream(start: Start) -> None:
    without_exporters()
    start(Role.API)
    assert not [handler for handler in logging.getLogger().handlers if isinstance(handler, logs.ExportHandler)]


@pytest.mark.parametrize(
    ("level", "number"), [(0, 1), (10, 5), (15, 5), (20, 9), (30, 13), (40, 17), (50, 21), (70, 21)]
)
def test_severities_are_those_of_the_data_model(level: int, number: int) -> None:
    assert logs._severity(level).value == number


def test_an_unknown_level_is_an_error(stream: io.StringIO) -> None:
    with pytest.raises(Misconfigured, match="BRONZE_LOG_LEVEL"):
        log_to(stream, level="LOUD")


def test_a_second_start_does_not_double_the_lines(stream: io.StringIO) -> None:
    log_to(io.StringIO())
    log_to(stream).info("once")
    assert len(written(stream)) == 1


def test_a_message_of_an_exporter_is_repeated_once_per_minute() -> None:
    """The repetition has the number of messages that were held back; all records of other loggers pass."""
    repetitions = logs.RepetitionFilter()

    def passed(name: str, at_s: float, message: str = "Failed to export %s") -> logging.LogRecord | None:
        record = logging.makeLogRecord({"name": name, "msg": message, "created": at_s})
        return record if repetitions.filter(record) else None

    assert passed("opentelemetry.exporter", 0)
    assert not passed("opentelemetry.exporter", 30)
    assert not passed("opentelemetry.exporter", 59)
    assert passed("opentelemetry.exporter", 59, "another")
    assert passed("bronze.api", 0)
    assert passed("bronze.api", 0)
    repeated = passed("opentelemetry.exporter", 61)
    assert repeated
    assert vars(repeated)["held_back"] == 2


@pytest.mark.parametrize("signal", ["", "TRACES_"])
def test_exporters_use_the_provider_of_credentials_that_the_standard_variables_name(signal: str) -> None:
    """The SDK loads it only if an exporter gets no session; an unknown one is an error, not silence."""
    os.environ[f"OTEL_PYTHON_EXPORTER_OTLP_HTTP_{signal}CREDENTIAL_PROVIDER"] = "none-of-this-name"
    with pytest.raises(RuntimeError, match="none-of-this-name"):
        losses.CountedSpans(NoOpMeterProvider())


def test_a_long_value_of_a_span_is_cut(start: Start) -> None:
    """A User-Agent may be as long as a head: a batch of such spans would be too large for the collector, and lost."""
    telemetry = start(Role.API)
    span = telemetry.tracer.start_span("request", attributes={"user_agent.original": "x" * 60_000})
    assert isinstance(span, ReadableSpan)
    assert span.attributes is not None
    assert len(str(span.attributes["user_agent.original"])) == 4096
    span.end()
