"""The SDK as a role gets it: what comes out where, and that nothing of it breaks or holds up the role."""

import http.client
import http.server
import io
import json
import logging
import os
import secrets
import socket
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
from bronze import telemetry
from bronze.errors import Misconfigured
from bronze.settings import LogFormat, Settings
from bronze.telemetry import FASTAPI_TELEMETRY_OFF, Telemetry, logs, losses, sdk
from bronze.telemetry.context import extract, inject, span_context, trace_id_hex, traceparent
from bronze.telemetry.schema import registry
from bronze.telemetry.signals import Outcome, Role, attribute, spans
from local.machine import Deadline
from local.otlp import Receiver, attributes

UPLOADED = {attribute.bronze_source: "vehicles", attribute.bronze_outcome: Outcome.SUCCESS}


@pytest.fixture(autouse=True)
def _untouched() -> Iterator[None]:
    """What `start` sets for a whole process ends with the test; the machine's own OTEL_* are not heard."""
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


class Heard:
    """Telemetry that is kept in memory, and what it said."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self._exporter = InMemorySpanExporter()
        self.telemetry = sdk.assemble(
            Resource({attribute.service_name: "api", attribute.service_instance_id: "i"}),
            metric_readers=[self._reader],
            span_exporters=[lambda _: self._exporter],
        )

    def spans(self) -> Sequence[ReadableSpan]:
        """What has ended. The flush collects metrics too, so exemplars are read before."""
        self.telemetry.flush()
        return self._exporter.get_finished_spans()

    def metrics(self) -> Sequence[Metric]:
        data = self._reader.get_metrics_data()
        return [
            metric
            for of_resource in (data.resource_metrics if data else ())
            for of_scope in of_resource.scope_metrics
            for metric in of_scope.metrics
        ]

    def points(self, name: str) -> Sequence[Any]:
        return [point for metric in self.metrics() if metric.name == name for point in metric.data.data_points]


@pytest.fixture
def heard() -> Iterator[Heard]:
    heard = Heard()
    yield heard
    heard.telemetry.shutdown()


Start = Callable[[Role], Telemetry]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Telemetry] = []

    def start(role: Role) -> Telemetry:
        started.append(telemetry.start(role, Settings(), log_stream=io.StringIO()))
        return started[-1]

    yield start
    for one in started:
        one.shutdown()


def scraped(one: Telemetry) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Labels and values of each sample that `/metrics` has, by its name."""
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(one.metrics()[0].decode()):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return samples


def without_exporters() -> None:
    for signal in ("TRACES", "METRICS", "LOGS"):
        os.environ[f"OTEL_{signal}_EXPORTER"] = "none"


# --- metrics


def test_zeros_are_in_metrics_before_anything_happened(heard: Heard) -> None:
    heard.telemetry.instruments.zero(Role.CONSUMER, ["vehicles"])
    samples = scraped(heard.telemetry)
    failures = [labels for labels, value in samples["bronze_uploads_total"] if value == 0]
    assert {"bronze_source": "vehicles", "bronze_outcome": "failure", "error_type": "denied"} in failures
    assert samples["messaging_client_consumed_messages_total"][0][1] == 0


def test_metrics_are_named_as_on_the_way_through_the_collector(heard: Heard) -> None:
    """Unit and `_total` suffixed, labels as attributes with underscores, no labels of the scope."""
    heard.telemetry.instruments.records.add(3, UPLOADED)
    heard.telemetry.instruments.bytes.add(3, UPLOADED)
    heard.telemetry.instruments.upload_duration.record(1.5, UPLOADED)
    heard.telemetry.instruments.upload_size.record(3, {attribute.bronze_source: "vehicles"})
    heard.telemetry.instruments.upload_last_success_time.set(3, {attribute.bronze_source: "vehicles"})
    samples = scraped(heard.telemetry)
    labels = {"bronze_source": "vehicles", "bronze_outcome": "success"}
    assert samples["bronze_records_total"] == [(labels, 3)]
    assert samples["bronze_bytes_total"] == [(labels, 3)]
    assert samples["bronze_upload_duration_seconds_sum"] == [(labels, 1.5)]
    assert samples["bronze_upload_size_bytes_count"] == [({"bronze_source": "vehicles"}, 1)]
    assert samples["bronze_upload_last_success_time_seconds"] == [({"bronze_source": "vehicles"}, 3)]


def test_an_exemplar_carries_the_trace_of_the_context_it_was_recorded_with(heard: Heard) -> None:
    """Not that of the span around the recording: a delivery belongs to its submission and not to the flush."""
    tracer = heard.telemetry.tracer
    submission = tracer.start_span("submission")
    with tracer.start_as_current_span("flush"):
        heard.telemetry.instruments.delivery_duration.record(
            1.5, {attribute.bronze_source: "vehicles"}, context=set_span_in_context(submission)
        )
    (point,) = heard.points("bronze.delivery.duration")
    assert isinstance(point, HistogramDataPoint)
    (exemplar,) = point.exemplars
    assert exemplar.trace_id == submission.get_span_context().trace_id
    assert exemplar.span_id == submission.get_span_context().span_id


def test_what_is_not_sampled_has_no_exemplar() -> None:
    """An exemplar whose trace cannot be found is a defect."""
    os.environ["OTEL_TRACES_SAMPLER"] = "always_off"
    heard = Heard()
    with heard.telemetry.tracer.start_as_current_span("upload"):
        heard.telemetry.instruments.upload_duration.record(1.5, UPLOADED)
    (point,) = heard.points("bronze.upload.duration")
    assert not point.exemplars
    heard.telemetry.shutdown()


def test_a_gauge_says_its_last_value_until_it_is_set_again(heard: Heard) -> None:
    """On both ways: an idle lane has a position, an age and an objective, and does not vanish after a while."""
    heard.telemetry.instruments.lane_position.set(7, {attribute.bronze_lane: "0"})
    for _ in range(3):
        assert [point.value for point in heard.points("bronze.lane.position")] == [7]
        assert scraped(heard.telemetry)["bronze_lane_position"] == [({"bronze_lane": "0"}, 7)]


@pytest.mark.parametrize("flush_age_s", [0.2, 0.28, 1, 7.5, 15, 3600])
def test_the_objective_of_deliveries_is_one_of_their_bounds(flush_age_s: float) -> None:
    """Whatever the flush age: else no query could say how many were in time."""
    objective_s = Settings(flush_age_s=flush_age_s).delivery_objective_s
    one = sdk.assemble(Resource({attribute.service_name: "consumer"}), delivery_objective_s=objective_s)
    one.instruments.delivery_objective.set(objective_s, {attribute.bronze_source: "vehicles"})
    one.instruments.delivery_duration.record(objective_s, {attribute.bronze_source: "vehicles"})
    samples = scraped(one)
    ((_, said),) = samples["bronze_delivery_objective_seconds"]
    in_time = {float(labels["le"]): value for labels, value in samples["bronze_delivery_duration_seconds_bucket"]}
    assert in_time[said] == 1
    assert set(registry().metrics["bronze.delivery.duration"].buckets) < {*in_time}
    one.shutdown()


def test_a_scrape_waits_for_the_one_before(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    """What two scrapes collect goes to whichever is first: series twice for one, nothing for the other."""
    second = threading.Thread(target=heard.telemetry.metrics)
    waited: list[bool] = []

    def generate(registry: CollectorRegistry) -> bytes:
        if not waited:
            waited.append(False)
            second.start()
            second.join(timeout=0.05)
            waited[0] = second.is_alive()
        return generate_latest(registry)

    monkeypatch.setattr(sdk, "generate_latest", generate)
    heard.telemetry.metrics()
    second.join()
    assert waited == [True]


# --- sampling


def test_every_process_keeps_the_same_traces() -> None:
    """The choice is a function of the trace's id: the same in each role, and after a restart."""
    os.environ["OTEL_TRACES_SAMPLER"], os.environ["OTEL_TRACES_SAMPLER_ARG"] = "traceidratio", "0.1"
    one, other = Heard(), Heard()
    unsampled = [extract({"traceparent": f"00-{secrets.token_hex(16)}-00000000000000ef-00"}) for _ in range(500)]
    kept, same = [
        [heard.telemetry.tracer.start_span("upload", context).is_recording() for context in unsampled]
        for heard in (one, other)
    ]
    assert kept == same
    assert 0 < sum(kept) < 150
    for heard in (one, other):
        heard.telemetry.shutdown()


@pytest.mark.parametrize("sampled", [True, False])
def test_a_client_decides_for_its_own_trace(sampled: bool) -> None:  # noqa: FBT001  pytest's
    """And what else it says of the trace stays as it is."""
    os.environ["OTEL_TRACES_SAMPLER"] = "parentbased_traceidratio"
    os.environ["OTEL_TRACES_SAMPLER_ARG"] = "0" if sampled else "1"
    heard = Heard()
    theirs = {"traceparent": f"00-{'ab' * 16}-00000000000000ef-0{int(sampled)}", "tracestate": "ot=th:c,vendor=1"}
    span = heard.telemetry.tracer.start_span("upload", extract(theirs))
    assert span.is_recording() is sampled
    given = inject(set_span_in_context(span))
    assert given["traceparent"].endswith(f"-0{int(sampled)}")
    assert given["tracestate"] == theirs["tracestate"]
    heard.telemetry.shutdown()


# --- HTTP


@pytest.fixture
def app(heard: Heard) -> FastAPI:
    providers: TelemetryConfig = {
        "tracer_provider": heard.telemetry._tracers,  # as if it were the global one, which FastAPI's own would take
        "meter_provider": heard.telemetry._meters,
    }
    app = FastAPI(telemetry={**FASTAPI_TELEMETRY_OFF, **providers})

    @app.post("/v1/ingest/{source}")
    async def ingest(source: str) -> None:
        trace.get_current_span().set_attribute(attribute.bronze_source, source)

    @app.get("/livez")
    async def livez() -> None: ...

    heard.telemetry.instrument(app)
    return app


async def request(app: FastAPI, method: str, path: str, **headers: str) -> int:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://api.test") as client:
        return (await client.request(method, path, headers=headers)).status_code


async def test_a_request_is_one_server_span_and_one_duration(app: FastAPI, heard: Heard) -> None:
    """One instrumentation only, without spans of its parts, by the stable conventions."""
    remote = "00-0000000000000000000000000000abcd-00000000000000ef-01"
    assert await request(app, "POST", "/v1/ingest/vehicles", traceparent=remote) == 200
    (point,) = heard.points("http.server.request.duration")
    (span,) = heard.spans()
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


async def test_the_instrumentation_makes_the_metrics_that_are_declared(app: FastAPI, heard: Heard) -> None:
    """No more labels either: what a client sends as Host would be one without a bound."""
    await request(app, "POST", "/v1/ingest/vehicles")
    await request(app, "GET", "/nowhere")
    declared = {m.name: m for m in registry().metrics.values() if m.instrumentation == INSTRUMENTATION}
    made = {metric.name: metric for metric in heard.metrics() if metric.name.startswith("http.")}
    assert set(made) == set(declared)
    for name, metric in made.items():
        assert metric.unit == declared[name].unit
        for point in metric.data.data_points:
            assert set(point.attributes or {}) <= set(declared[name].attributes)
            if isinstance(point, HistogramDataPoint):
                assert tuple(point.explicit_bounds) == declared[name].buckets


async def test_no_metric_comes_out_that_is_not_declared(collector: Receiver, start: Start) -> None:
    """Ours, the instrumentation's and the SDK's own."""
    one = start(Role.API)
    app = FastAPI(telemetry=FASTAPI_TELEMETRY_OFF)
    one.instrument(app)
    await request(app, "GET", "/nowhere")
    one.instruments.zero(Role.API, ["vehicles"])
    one.flush()
    one.shutdown()
    names = {metric.name for _, metric in collector.metrics}
    assert {"bronze.records", "http.server.request.duration", "otel.sdk.processor.span.processed"} <= names
    assert [name for name in names if not registry().knows(name)] == []


async def test_probes_and_scrapes_are_no_traffic(app: FastAPI, heard: Heard) -> None:
    await request(app, "GET", "/livez")
    await request(app, "GET", "/livez?x=1")
    assert not heard.spans()
    assert not heard.points("http.server.request.duration")


async def test_what_is_only_named_like_a_probe_is_traffic(app: FastAPI, heard: Heard) -> None:
    await request(app, "POST", "/v1/ingest/metrics")
    assert len(heard.spans()) == 1


# --- context


def test_a_context_survives_headers(heard: Heard) -> None:
    with heard.telemetry.tracer.start_as_current_span("send") as span:
        headers = inject()
    carried = extract({name.title(): value for name, value in headers.items()})
    assert span_context(carried).trace_id == span.get_span_context().trace_id
    assert span_context(carried).span_id == span.get_span_context().span_id
    assert headers["traceparent"] == traceparent(span) == traceparent(set_span_in_context(span))
    assert trace_id_hex(carried) == trace_id_hex(span) == headers["traceparent"].split("-")[1]


def test_a_trace_id_keeps_its_leading_zeros() -> None:
    header = "00-00000000000000000000000000000abc-0000000000000def-01"
    context = extract({"traceparent": header})
    assert trace_id_hex(context) == "00000000000000000000000000000abc"
    assert traceparent(context) == header


@pytest.mark.parametrize("headers", [{}, {"traceparent": "nonsense"}, {"traceparent": ""}])
def test_headers_without_a_trace_give_none(headers: dict[str, str], heard: Heard) -> None:
    """Not the current one either: a consumer would tie strangers together."""
    with heard.telemetry.tracer.start_as_current_span("flush"):
        assert not span_context(extract(headers)).is_valid
        assert trace_id_hex(extract(headers)) == "0" * 32
        assert inject(extract(headers)) == {}


# --- the process: resource, settings, /metrics


def test_the_resource_says_who_speaks(start: Start) -> None:
    without_exporters()
    one = start(Role.CONSUMER)
    assert one.resource[attribute.service_namespace] == "bronze"
    assert one.service_name == "consumer"
    assert one.version == bronze.__version__
    assert one.resource[attribute.deployment_environment_name] == "local"
    assert one.instance_id != start(Role.CONSUMER).instance_id
    assert one.alive() == {
        "status": "alive",
        "service_name": "consumer",
        "service_instance_id": one.instance_id,
        "version": bronze.__version__,
    }


def test_the_environment_may_say_more_but_not_another_name(start: Start) -> None:
    """Dashboards and rules join on namespace and name; a runner recognises its process by the instance."""
    without_exporters()
    os.environ["OTEL_SERVICE_NAME"] = "something"
    os.environ["OTEL_RESOURCE_ATTRIBUTES"] = "service.instance.id=mine,deployment.environment.name=prod,team=a"
    one = start(Role.API)
    assert (one.service_name, one.instance_id) == ("api", "mine")
    assert one.resource[attribute.deployment_environment_name] == "prod"
    assert one.resource["team"] == "a"
    one.instruments.zero(Role.API, ["vehicles"])
    ((labels, _),) = scraped(one)["target_info"]
    assert labels["service_instance_id"] == "mine"


@pytest.mark.parametrize(("given", "spans_s"), [(None, 60), ("3", 3)])
def test_spans_and_logs_are_tried_for_a_minute_unless_the_environment_says_otherwise(
    given: str | None, spans_s: float, start: Start
) -> None:
    """Metrics are not: the next export says what the last one did."""
    if given:
        os.environ["OTEL_EXPORTER_OTLP_TIMEOUT"] = given
    one = start(Role.API)
    patience = {
        type(exporter): exporter.wrapped._client._timeout
        for exporter in one._exporters
        if isinstance(exporter, (losses.CountedSpans, losses.CountedLogs, losses.CountedMetrics))
    }
    assert patience == {
        losses.CountedSpans: spans_s,
        losses.CountedLogs: spans_s,
        losses.CountedMetrics: 3 if given else 10,
    }


def test_zeros_leave_before_the_first_interval_is_over(start: Start) -> None:
    """Else what is counted within it is the first sample, and to `increase()` nothing has happened."""
    os.environ["OTEL_METRIC_EXPORT_INTERVAL"] = "600000"
    with Receiver() as receiver:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = receiver.url
        start(Role.CONSUMER).begin(["vehicles"])
        deadline = Deadline(10)
        while not receiver.metrics:
            assert not deadline.passed(), "no metrics"
            time.sleep(0.01)
        sums = {metric.name: metric.sum.data_points for _, metric in receiver.metrics}
    assert [point.as_int for point in sums["bronze.uploads"]] == [0] * 7


def test_a_disabled_sdk_is_silent_and_in_nobodys_way(start: Start) -> None:
    os.environ["OTEL_SDK_DISABLED"] = "true"
    one = start(Role.CONSUMER)
    one.instruments.zero(Role.CONSUMER, ["vehicles"])
    with one.tracer.start_as_current_span("upload") as span:
        one.instruments.upload_duration.record(1, UPLOADED)
        assert not span.is_recording()
    assert not scraped(one)
    one.instrument(FastAPI(telemetry=FASTAPI_TELEMETRY_OFF))
    one.flush()
    one.shutdown()


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
        ("OTEL_TRACES_SAMPLER", "traceidratio"),  # without a ratio
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "1"),
    ],
)
def test_a_variable_that_cannot_work_is_an_error_and_no_silence(variable: str, value: str, start: Start) -> None:
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:9"
    if variable.startswith("OTEL_BSP_"):
        os.environ["OTEL_METRICS_EXPORTER"] = "none"  # it would have been started, and go on
    os.environ[variable] = value
    with pytest.raises(Misconfigured, match="OTEL_"):
        start(Role.API)


def test_metrics_and_livez_are_served_to_scrapers(start: Start) -> None:
    without_exporters()
    one = start(Role.PUBLISHER)
    one.instruments.zero(Role.PUBLISHER, ["vehicles"])
    with one.serve_metrics(port=0) as server:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as response:
            assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert b"bronze_publisher_submissions_total{" in response.read()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/livez") as response:
            assert json.load(response) == one.alive()
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("GET", "/")
        assert connection.getresponse().status == 404
        connection.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))


def test_a_taken_port_is_an_error_that_names_it_and_its_variable(start: Start) -> None:
    without_exporters()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        os.environ["OTEL_EXPORTER_PROMETHEUS_PORT"] = str(port)
        with pytest.raises(Misconfigured, match=rf"127\.0\.0\.1:{port} .*OTEL_EXPORTER_PROMETHEUS_PORT"):
            start(Role.CONSUMER).serve_metrics()


def test_a_port_that_is_none_is_an_error(start: Start) -> None:
    without_exporters()
    os.environ["OTEL_EXPORTER_PROMETHEUS_PORT"] = "http"
    with pytest.raises(Misconfigured, match="OTEL_EXPORTER_PROMETHEUS_PORT: 'http'"):
        start(Role.CONSUMER).serve_metrics()


# --- the collector, there and away


@pytest.fixture
def collector() -> Iterator[Receiver]:
    """OTEL_EXPORTER_OTLP_ENDPOINT leads here."""
    with Receiver() as receiver:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = receiver.url
        yield receiver


def test_shutdown_sends_what_there_is(collector: Receiver, start: Start) -> None:
    """Spans, logs, and metrics with exemplars and with enums as words, of a process that ends at once."""
    one = start(Role.CONSUMER)
    with one.tracer.start_as_current_span(spans.upload.name("vehicles"), attributes=UPLOADED) as span:
        one.instruments.upload_duration.record(1.5, UPLOADED)
        logging.getLogger("bronze.test").warning("late")
    one.shutdown()

    ((resource, sent),) = collector.spans
    assert resource["service.name"] == "consumer"
    assert sent.name == "upload vehicles"
    assert attributes(sent.attributes) == UPLOADED

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


def test_flush_sends_zeros_before_the_first_count(collector: Receiver, start: Start) -> None:
    """And leaves the scrape as it was: each series once."""
    one = start(Role.PUBLISHER)
    one.instruments.zero(Role.PUBLISHER, ["vehicles"])
    one.flush()
    assert "bronze.publisher.submissions" in {metric.name for _, metric in collector.metrics}
    assert len(scraped(one)["bronze_publisher_submissions_total"]) == 3


def test_a_dead_collector_is_counted_and_holds_nobody_up(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{closed.getsockname()[1]}"
    os.environ["OTEL_EXPORTER_OTLP_TIMEOUT"] = "0.5"  # less than the first back-off: one try, and it has failed
    one = start(Role.CONSUMER)
    with one.tracer.start_as_current_span("upload"):
        logging.getLogger("bronze.test").warning("away")
    one.flush()
    assert failed(one, "span") == {"ConnectionError": 1}
    assert failed(one, "log") == {"ConnectionError": 1}
    one.shutdown()


def failed(one: Telemetry, what: str) -> dict[str, float]:
    """How many spans, logs or metric_data_points could not be sent, by `error.type`, without zeros."""
    samples = scraped(one)[f"otel_sdk_exporter_{what}_exported_total"]
    return {labels["error_type"]: value for labels, value in samples if labels["error_type"] and value}


@pytest.mark.parametrize("status", [400, 413, 500, 503])
def test_what_the_collector_refuses_is_counted_as_failed(
    status: int, collector: Receiver, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK alone counts it as exported, since it was answered."""
    os.environ["OTEL_EXPORTER_OTLP_TIMEOUT"] = "0.5"
    one = start(Role.CONSUMER)
    with collector.answering(status):
        with one.tracer.start_as_current_span("upload"):
            logging.getLogger("bronze.test").warning("refused")
        one.flush()
        assert failed(one, "span") == failed(one, "log") == {"NotTaken": 1}
        assert set(failed(one, "metric_data_point")) == {"NotTaken"}


def test_losses_are_counted_from_zero(start: Start) -> None:
    """A series that begins with its first loss is invisible to `increase()`."""
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:9"
    os.environ["OTEL_EXPORTER_OTLP_TIMEOUT"] = "0.5"  # it ends soon
    samples = scraped(start(Role.PUBLISHER))
    for name in ("processor_span_processed", "processor_log_processed"):
        ((_, value),) = [s for s in samples[f"otel_sdk_{name}_total"] if s[0]["error_type"] == "queue_full"]
        assert value == 0
    for what in ("span", "log", "metric_data_point"):
        of = {labels["error_type"]: value for labels, value in samples[f"otel_sdk_exporter_{what}_exported_total"]}
        assert of == dict.fromkeys(["", *losses.ERRORS], 0)


def test_shutdown_does_not_wait_for_a_collector_that_hangs(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector takes the connection and never answers; the exporter would wait for 10 s."""
    monkeypatch.setattr(sdk, "_FLUSH_S_MAX", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        stream = io.StringIO()
        one = telemetry.start(Role.CONSUMER, Settings(), log_stream=stream)
        with one.tracer.start_as_current_span("upload"):
            logging.getLogger("bronze.test").warning("silence")
        one.shutdown()
        assert "did not take the last telemetry in time" in stream.getvalue()
        one.shutdown()


class Stuck(SpanExporter):
    """An exporter that takes no end until it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.let_go.wait()
        return SpanExportResult.SUCCESS


def test_spans_beyond_the_queue_are_dropped_and_counted() -> None:
    os.environ["OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"] = "true"
    os.environ["OTEL_BSP_MAX_QUEUE_SIZE"] = os.environ["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"] = "2"
    stuck = Stuck()
    one = sdk.assemble(Resource({attribute.service_name: "consumer"}), span_exporters=[lambda _: stuck])
    for _ in range(10):
        one.tracer.start_span("process").end()
    dropped = [
        value
        for labels, value in scraped(one)["otel_sdk_processor_span_processed_total"]
        if labels["error_type"] == "queue_full"
    ]
    assert dropped
    assert dropped[0] >= 10 - 2 - 2  # what fits the queue, and a batch that is under way
    stuck.let_go.set()
    one.shutdown()


# --- logs


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def log_to(stream: io.StringIO, form: LogFormat = LogFormat.JSON, level: str = "INFO") -> logging.Logger:
    logs.configure(form, level, {"service.name": "api", "service.instance.id": "i"}, stream)
    return logging.getLogger("bronze.test")


def test_a_json_line_carries_its_trace(heard: Heard, stream: io.StringIO) -> None:
    log = log_to(stream)
    with heard.telemetry.tracer.start_as_current_span("upload") as span:
        log.info("wrote %s", "x", extra={"records": 3, "level": "mine"})
    line = json.loads(stream.getvalue())
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
    (line,) = stream.getvalue().splitlines()
    assert "ValueError: two\nlines" in json.loads(line)["exception"]
    assert "trace_id" not in json.loads(line)


def test_the_console_is_for_the_eye(heard: Heard, stream: io.StringIO) -> None:
    log = log_to(stream, LogFormat.CONSOLE)
    with heard.telemetry.tracer.start_as_current_span("upload") as span:
        log.warning("late", extra={"lane": "0"})
    assert f"WARNING bronze.test: late lane=0 trace_id={trace_id_hex(span)}" in stream.getvalue()


def test_uvicorn_speaks_as_we_do_and_not_of_each_request(stream: io.StringIO) -> None:
    logging.getLogger("uvicorn.error").addHandler(logging.StreamHandler(io.StringIO()))
    log_to(stream)
    logging.getLogger("uvicorn.error").info("Uvicorn running")
    logging.getLogger("uvicorn.access").info("GET /livez 200")
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["message"] == "Uvicorn running"


def test_a_log_record_goes_out_with_its_trace_and_extra(collector: Receiver, start: Start) -> None:
    one = start(Role.API)
    with one.tracer.start_as_current_span("upload") as span:
        try:
            raise ValueError("too late")
        except ValueError:
            logging.getLogger("bronze.test").exception("lane %s", "0", extra={"records": 3, "key": Path("a")})
    logging.getLogger("bronze.test").debug("below the level")
    one.shutdown()
    ((resource, record),) = collector.logs
    assert resource["service.instance.id"] == one.instance_id
    assert (record.body.string_value, record.severity_text) == ("lane 0", "ERROR")
    assert record.severity_number == SeverityNumber.ERROR.value
    assert record.trace_id == span.get_span_context().trace_id.to_bytes(16, "big")
    assert record.span_id == span.get_span_context().span_id.to_bytes(8, "big")
    given = attributes(record.attributes)
    assert (given["records"], given["key"]) == (3, "a")
    assert (given["exception.type"], given["exception.message"]) == ("ValueError", "too late")


def test_what_exporters_say_is_not_sent_to_the_collector(collector: Receiver, start: Start) -> None:
    """Nor what their HTTP client says in an export: each failure would make another record to send."""
    one = start(Role.API)
    logging.getLogger("opentelemetry.exporter").error("Failed to export")
    with suppress_instrumentation():  # as the SDK has it in an export
        logging.getLogger("urllib3").error("connection lost")
    logging.getLogger("bronze.test").info("ours")
    one.shutdown()
    assert [record.body.string_value for _, record in collector.logs] == ["ours"]


def test_log_records_beyond_the_queue_are_dropped_and_counted() -> None:
    os.environ["OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"] = "true"
    os.environ["OTEL_BLRP_MAX_QUEUE_SIZE"] = os.environ["OTEL_BLRP_MAX_EXPORT_BATCH_SIZE"] = "2"
    let_go = threading.Event()

    class StuckLogs(LogRecordExporter):
        def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
            let_go.wait()
            return LogRecordExportResult.SUCCESS

        def force_flush(self, timeout_millis: int = 0) -> bool:
            return True

        def shutdown(self) -> None: ...

    one = sdk.assemble(Resource({attribute.service_name: "consumer"}), log_exporters=[lambda _: StuckLogs()])
    for _ in range(10):
        one._logs.emit(logging.makeLogRecord({"name": "bronze.test", "msg": "again", "levelno": logging.INFO}))
    dropped = {labels["error_type"]: value for labels, value in scraped(one)["otel_sdk_processor_log_processed_total"]}
    assert dropped["queue_full"] >= 10 - 2 - 2  # what fits the queue, and a batch that is under way
    let_go.set()
    one.shutdown()


def test_without_a_log_exporter_there_are_lines_alone(start: Start) -> None:
    without_exporters()
    start(Role.API)
    assert not [handler for handler in logging.getLogger().handlers if isinstance(handler, logs.Exported)]


@pytest.mark.parametrize(
    ("level", "number"), [(0, 1), (10, 5), (15, 5), (20, 9), (30, 13), (40, 17), (50, 21), (70, 21)]
)
def test_severities_are_those_of_the_data_model(level: int, number: int) -> None:
    assert logs._severity(level).value == number


def test_a_level_that_is_none_is_an_error(stream: io.StringIO) -> None:
    with pytest.raises(Misconfigured, match="BRONZE_LOG_LEVEL"):
        log_to(stream, level="LOUD")


def test_a_second_start_does_not_double_the_lines(stream: io.StringIO) -> None:
    log_to(io.StringIO())
    log_to(stream).info("once")
    assert len(stream.getvalue().splitlines()) == 1


def test_an_exporter_repeats_itself_once_a_minute(stream: io.StringIO) -> None:
    """And then says how often it would have; others say all that they have to say."""
    sparing = logs.Sparing()

    def said(name: str, at_s: float, message: str = "Failed to export %s") -> logging.LogRecord | None:
        record = logging.makeLogRecord({"name": name, "msg": message, "created": at_s})
        return record if sparing.filter(record) else None

    assert said("opentelemetry.exporter", 0)
    assert not said("opentelemetry.exporter", 30)
    assert not said("opentelemetry.exporter", 59)
    assert said("opentelemetry.exporter", 59, "another")
    assert said("bronze.api", 0)
    assert said("bronze.api", 0)
    again = said("opentelemetry.exporter", 61)
    assert again
    assert vars(again)["held_back"] == 2
