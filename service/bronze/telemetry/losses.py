"""What telemetry loses is counted from 0, under the SDK's own names for it (`otel.sdk.*`).

By its own counts the SDK takes a batch for exported that the collector answered with an error, or that a shutdown gave
up. And a series that begins with the first loss is invisible to `increase()`, the more so when the collector that is to
bring it is the one that was away. So the exporters count nothing themselves: what wraps them does, from 0.
"""

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import requests
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import Counter, Meter, MeterProvider, NoOpMeterProvider, UpDownCounter
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.semconv._incubating.attributes.otel_attributes import OTEL_COMPONENT_NAME, OTEL_COMPONENT_TYPE
from opentelemetry.semconv._incubating.metrics import otel_metrics
from opentelemetry.semconv.attributes.http_attributes import HTTP_RESPONSE_STATUS_CODE
from opentelemetry.semconv.attributes.server_attributes import SERVER_ADDRESS, SERVER_PORT
from prometheus_client import CollectorRegistry

from bronze.telemetry.signals import attribute

T = TypeVar("T")

#: `error.type` where the collector answered with an error, or nobody was asked.
NOT_TAKEN: Final = "NotTaken"
#: `error.type` of exports: the exception's class, as the SDK has it. What else may come is an error of settings.
ERRORS: Final = ("ConnectionError", "ConnectTimeout", "ReadTimeout", NOT_TAKEN)
#: The name of the meter that the SDK counts itself by.
SDK_METER: Final = "opentelemetry-sdk"
QUEUE_FULL: Final = "queue_full"

_ENABLED: Final = "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"
_NOBODY: Final = NoOpMeterProvider()


@dataclass(frozen=True)
class _Signal:
    """What is exported: as the variables, the address, the component's type and the SDK's metrics name it."""

    variable: str
    path: str
    component_type: str
    exported: Callable[[Meter], Counter]
    inflight: Callable[[Meter], UpDownCounter]
    numbers: "itertools.count[int]"

    def endpoint(self) -> str:
        """Where the standard variables say that it goes."""
        base = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or "http://localhost:4318"
        given = os.environ.get(f"OTEL_EXPORTER_OTLP_{self.variable}_ENDPOINT")
        return given or f"{base.removesuffix('/')}/{self.path}"


_SPANS: Final = _Signal(
    "TRACES",
    "v1/traces",
    "otlp_http_span_exporter",
    otel_metrics.create_otel_sdk_exporter_span_exported,
    otel_metrics.create_otel_sdk_exporter_span_inflight,
    itertools.count(),
)
_LOGS: Final = _Signal(
    "LOGS",
    "v1/logs",
    "otlp_http_log_exporter",
    otel_metrics.create_otel_sdk_exporter_log_exported,
    otel_metrics.create_otel_sdk_exporter_log_inflight,
    itertools.count(),
)
_METRICS: Final = _Signal(
    "METRICS",
    "v1/metrics",
    "otlp_http_metric_exporter",
    otel_metrics.create_otel_sdk_exporter_metric_data_point_exported,
    otel_metrics.create_otel_sdk_exporter_metric_data_point_inflight,
    itertools.count(),
)


class _Session(requests.Session):
    """An exporter's connection, which tells how its last request ended: exporters say only that they failed."""

    error: str | None = None
    status: int | None = None

    def forget(self) -> None:
        self.error = self.status = None

    def request(self, *args: Any, **options: Any) -> requests.Response:
        self.forget()
        try:
            response = super().request(*args, **options)
        except Exception as error:
            self.error = type(error).__qualname__
            raise
        self.status = response.status_code
        return response


class _Exports:
    """The counts of one exporter."""

    def __init__(self, signal: _Signal, endpoint: str, session: _Session, meters: MeterProvider) -> None:
        enabled = os.environ.get(_ENABLED, "").strip().lower() == "true"
        meter = (meters if enabled else _NOBODY).get_meter(SDK_METER)
        self._session = session
        self._exported = signal.exported(meter)
        self._inflight = signal.inflight(meter)
        self._duration = otel_metrics.create_otel_sdk_exporter_operation_duration(meter)
        self._of: Mapping[str, str | int] = {
            OTEL_COMPONENT_TYPE: signal.component_type,
            OTEL_COMPONENT_NAME: f"{signal.component_type}/{next(signal.numbers)}",
            **_server(endpoint),
        }
        self._exported.add(0, self._of)
        for error in ERRORS:
            self._exported.add(0, {**self._of, attribute.error_type: error})

    def count(self, items: int, export: Callable[[], T], success: T) -> T:
        """Export, and count what became of it."""
        begun_s = time.perf_counter()
        self._inflight.add(items, self._of)
        self._session.forget()
        result: T | None = None
        try:
            result = export()
        finally:
            took_s = time.perf_counter() - begun_s
            of, status = dict(self._of), {}
            if result is not success:
                of[attribute.error_type] = self._session.error or NOT_TAKEN
                if self._session.status is not None:
                    status = {HTTP_RESPONSE_STATUS_CODE: self._session.status}
            self._inflight.add(-items, self._of)
            self._exported.add(items, of)
            self._duration.record(took_s, {**of, **status})
        return result


def _server(endpoint: str) -> dict[str, str | int]:
    parsed = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
    port = parsed.port or {"https": 443, "http": 80}.get(parsed.scheme)
    return {
        **({SERVER_ADDRESS: parsed.hostname} if parsed.hostname else {}),
        **({SERVER_PORT: port} if port is not None else {}),
    }


class CountedSpans(SpanExporter):
    """Exports spans over OTLP, and counts what the collector takes and what not."""

    def __init__(self, meters: MeterProvider, endpoint: str | None = None) -> None:
        endpoint, session = endpoint or _SPANS.endpoint(), _Session()
        self.wrapped = OTLPSpanExporter(endpoint, session=session, meter_provider=_NOBODY)
        self._exports = _Exports(_SPANS, endpoint, session, meters)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._exports.count(len(spans), lambda: self.wrapped.export(spans), SpanExportResult.SUCCESS)

    def shutdown(self) -> None:
        self.wrapped.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self.wrapped.force_flush(timeout_millis)


class CountedLogs(LogRecordExporter):
    """Exports log records over OTLP, and counts as `CountedSpans` does."""

    def __init__(self, meters: MeterProvider, endpoint: str | None = None) -> None:
        endpoint, session = endpoint or _LOGS.endpoint(), _Session()
        self.wrapped = OTLPLogExporter(endpoint, session=session, meter_provider=_NOBODY)
        self._exports = _Exports(_LOGS, endpoint, session, meters)

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        return self._exports.count(len(batch), lambda: self.wrapped.export(batch), LogRecordExportResult.SUCCESS)

    def shutdown(self) -> None:
        self.wrapped.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 10_000) -> bool:
        return self.wrapped.force_flush(timeout_millis)


class CountedMetrics(MetricExporter):
    """Exports metrics over OTLP, and counts as `CountedSpans` does, once it is given what to count by.

    The provider is made of its readers, so it comes later than they.
    """

    def __init__(self, endpoint: str | None = None) -> None:
        super().__init__()  # cumulative, and by the declared buckets
        self._endpoint, self._session = endpoint or _METRICS.endpoint(), _Session()
        self.wrapped = OTLPMetricExporter(self._endpoint, session=self._session, meter_provider=_NOBODY)
        self._exports = _Exports(_METRICS, self._endpoint, self._session, _NOBODY)

    def count_by(self, meters: MeterProvider) -> None:
        self._exports = _Exports(_METRICS, self._endpoint, self._session, meters)

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **options: Any) -> MetricExportResult:
        points = sum(
            len(metric.data.data_points)
            for of_resource in metrics_data.resource_metrics
            for of_scope in of_resource.scope_metrics
            for metric in of_scope.metrics
        )
        return self._exports.count(
            points,
            lambda: self.wrapped.export(metrics_data, timeout_millis=timeout_millis, **options),
            MetricExportResult.SUCCESS,
        )

    def shutdown(self, timeout_millis: float = 30_000, **options: Any) -> None:
        self.wrapped.shutdown(timeout_millis=timeout_millis, **options)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return self.wrapped.force_flush(timeout_millis)


def begin_dropped(meters: MeterProvider, scraped: CollectorRegistry) -> None:
    """Begins the counters of the processors, whose queues may be full, at 0.

    Only they know what they drop, so they count it themselves. Which they are, by the SDK's numbers, their queues'
    capacities say in what a scrape gets.
    """
    meter = meters.get_meter(SDK_METER)
    processed = {
        "otel_sdk_processor_span_queue_capacity": otel_metrics.create_otel_sdk_processor_span_processed,
        "otel_sdk_processor_log_queue_capacity": otel_metrics.create_otel_sdk_processor_log_processed,
    }
    for family in scraped.collect():
        for sample in family.samples:
            if sample.name in processed:
                of = {
                    name: sample.labels[name.replace(".", "_")] for name in (OTEL_COMPONENT_TYPE, OTEL_COMPONENT_NAME)
                }
                counter = processed[sample.name](meter)
                counter.add(0, of)
                counter.add(0, {**of, attribute.error_type: QUEUE_FULL})
