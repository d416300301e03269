"""Counts telemetry that was not exported, from 0, with the SDK's own metric names (`otel.sdk.*`).

The SDK's own counts are not enough. They count a batch as exported even if the collector answered with an error, or if
a shutdown ended its retries. And a series that begins with the first loss is invisible to `increase()`, in particular
if it goes through the collector that was unavailable. So the exporters here do not count: their wrappers do, from 0.
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
from bronze.telemetry.span_encoding import encode

T = TypeVar("T")

#: `error.type` if the collector answered with an error, or if no request was sent.
NOT_ACCEPTED: Final = "NotTaken"
#: `error.type` of exports: the class of the exception, as in the SDK. Other errors come only from wrong settings.
ERRORS: Final = ("ConnectionError", "ConnectTimeout", "ReadTimeout", NOT_ACCEPTED)
#: The name of the meter of the SDK's own metrics.
SDK_METER: Final = "opentelemetry-sdk"
QUEUE_FULL: Final = "queue_full"

_ENABLED: Final = "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"
_CREDENTIALS: Final = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_{}CREDENTIAL_PROVIDER"
_NO_METERS: Final = NoOpMeterProvider()


@dataclass(frozen=True)
class _Signal:
    """The names of a signal (spans, logs or metrics) in variables, addresses, component types and SDK metrics."""

    variable: str
    path: str
    component_type: str
    exported: Callable[[Meter], Counter]
    inflight: Callable[[Meter], UpDownCounter]
    numbers: "itertools.count[int]"

    def endpoint(self) -> str:
        """The address from the standard variables."""
        base = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or "http://localhost:4318"
        endpoint = os.environ.get(f"OTEL_EXPORTER_OTLP_{self.variable}_ENDPOINT")
        return endpoint or f"{base.removesuffix('/')}/{self.path}"

    def compressed(self) -> bool:
        """Whether the standard variables ask for compressed requests."""
        names = (f"OTEL_EXPORTER_OTLP_{self.variable}_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION")
        return (os.environ.get(names[0]) or os.environ.get(names[1]) or "none").strip().lower() != "none"

    def observed(self, session: "_Session") -> "_Session | None":
        """The session for the exporter, or None if the standard variables name one that adds credentials.

        Then an export that fails is counted as `NOT_ACCEPTED`, whatever the error.
        """
        provided = os.environ.get(_CREDENTIALS.format("")) or os.environ.get(_CREDENTIALS.format(f"{self.variable}_"))
        return None if provided else session


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
    """An exporter's connection. It remembers how its last request ended; exporters report only that they failed.

    It sends `content`, if that is set, instead of what the exporter has encoded.
    """

    error: str | None = None
    status: int | None = None
    content: bytes | None = None

    def reset(self) -> None:
        self.error = self.status = None

    def request(self, *args: Any, **options: Any) -> requests.Response:
        self.reset()
        if self.content is not None:
            options["data"] = self.content
        try:
            response = super().request(*args, **options)
        except Exception as error:
            self.error = type(error).__qualname__
            raise
        self.status = response.status_code
        return response


class _ExportCounts:
    """The counts of one exporter."""

    def __init__(self, signal: _Signal, endpoint: str, session: _Session, meters: MeterProvider) -> None:
        enabled = os.environ.get(_ENABLED, "").strip().lower() == "true"
        meter = (meters if enabled else _NO_METERS).get_meter(SDK_METER)
        self._session = session
        self._exported = signal.exported(meter)
        self._inflight = signal.inflight(meter)
        self._duration = otel_metrics.create_otel_sdk_exporter_operation_duration(meter)
        self._attributes: Mapping[str, str | int] = {
            OTEL_COMPONENT_TYPE: signal.component_type,
            OTEL_COMPONENT_NAME: f"{signal.component_type}/{next(signal.numbers)}",
            **_server(endpoint),
        }
        self._exported.add(0, self._attributes)
        for error in ERRORS:
            self._exported.add(0, {**self._attributes, attribute.error_type: error})

    def count(self, items: int, export: Callable[[], T], success: T) -> T:
        """Runs an export, and counts its result."""
        started_s = time.perf_counter()
        self._inflight.add(items, self._attributes)
        self._session.reset()
        result: T | None = None
        try:
            result = export()
        finally:
            duration_s = time.perf_counter() - started_s
            attributes, status = dict(self._attributes), {}
            if result is not success:
                attributes[attribute.error_type] = self._session.error or NOT_ACCEPTED
                if self._session.status is not None:
                    status = {HTTP_RESPONSE_STATUS_CODE: self._session.status}
            self._inflight.add(-items, self._attributes)
            self._exported.add(items, attributes)
            self._duration.record(duration_s, {**attributes, **status})
        return result


def _server(endpoint: str) -> dict[str, str | int]:
    parsed = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
    port = parsed.port or {"https": 443, "http": 80}.get(parsed.scheme)
    return {
        **({SERVER_ADDRESS: parsed.hostname} if parsed.hostname else {}),
        **({SERVER_PORT: port} if port is not None else {}),
    }


class CountedSpans(SpanExporter):
    """Exports spans over OTLP, and counts those that the collector accepts and those that it does not.

    The exporter sends them, with its headers and retries. It encodes them only if they are to be compressed, or if the
    session is not this module's.
    """

    def __init__(self, meters: MeterProvider, endpoint: str | None = None) -> None:
        endpoint, session = endpoint or _SPANS.endpoint(), _Session()
        observed = _SPANS.observed(session)
        self.wrapped = OTLPSpanExporter(endpoint, session=observed, meter_provider=_NO_METERS)
        self._session = None if _SPANS.compressed() else observed
        self._counts = _ExportCounts(_SPANS, endpoint, session, meters)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._counts.count(len(spans), lambda: self._export(spans), SpanExportResult.SUCCESS)

    def _export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._session is None:
            return self.wrapped.export(spans)
        self._session.content = encode(spans)
        return self.wrapped.export(())

    def shutdown(self) -> None:
        self.wrapped.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self.wrapped.force_flush(timeout_millis)


class CountedLogs(LogRecordExporter):
    """Exports log records over OTLP, and counts as `CountedSpans` does."""

    def __init__(self, meters: MeterProvider, endpoint: str | None = None) -> None:
        endpoint, session = endpoint or _LOGS.endpoint(), _Session()
        self.wrapped = OTLPLogExporter(endpoint, session=_LOGS.observed(session), meter_provider=_NO_METERS)
        self._counts = _ExportCounts(_LOGS, endpoint, session, meters)

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        return self._counts.count(len(batch), lambda: self.wrapped.export(batch), LogRecordExportResult.SUCCESS)

    def shutdown(self) -> None:
        self.wrapped.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 10_000) -> bool:
        return self.wrapped.force_flush(timeout_millis)


class CountedMetrics(MetricExporter):
    """Exports metrics over OTLP, and counts as `CountedSpans` does after `use_meters`.

    The meter provider is created with its readers and their exporters, so an exporter can get it only afterwards.
    """

    def __init__(self, endpoint: str | None = None) -> None:
        super().__init__()  # cumulative, with the declared buckets
        self._endpoint, self._session = endpoint or _METRICS.endpoint(), _Session()
        self.wrapped = OTLPMetricExporter(
            self._endpoint, session=_METRICS.observed(self._session), meter_provider=_NO_METERS
        )
        self._counts = _ExportCounts(_METRICS, self._endpoint, self._session, _NO_METERS)

    def use_meters(self, meters: MeterProvider) -> None:
        self._counts = _ExportCounts(_METRICS, self._endpoint, self._session, meters)

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **options: Any) -> MetricExportResult:
        points = sum(
            len(metric.data.data_points)
            for resource_metrics in metrics_data.resource_metrics
            for scope_metrics in resource_metrics.scope_metrics
            for metric in scope_metrics.metrics
        )
        return self._counts.count(
            points,
            lambda: self.wrapped.export(metrics_data, timeout_millis=timeout_millis, **options),
            MetricExportResult.SUCCESS,
        )

    def shutdown(self, timeout_millis: float = 30_000, **options: Any) -> None:
        self.wrapped.shutdown(timeout_millis=timeout_millis, **options)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return self.wrapped.force_flush(timeout_millis)


def zero_dropped(meters: MeterProvider, prometheus_registry: CollectorRegistry) -> None:
    """Sets the processors' counters, which count telemetry that is dropped when a queue is full, to 0.

    The processors count this themselves. The SDK numbers them; their names are read from the metrics of their queues'
    capacities, as a scrape gets them.
    """
    meter = meters.get_meter(SDK_METER)
    counters = {
        "otel_sdk_processor_span_queue_capacity": otel_metrics.create_otel_sdk_processor_span_processed,
        "otel_sdk_processor_log_queue_capacity": otel_metrics.create_otel_sdk_processor_log_processed,
    }
    for family in prometheus_registry.collect():
        for sample in family.samples:
            if sample.name in counters:
                attributes = {
                    name: sample.labels[name.replace(".", "_")] for name in (OTEL_COMPONENT_TYPE, OTEL_COMPONENT_NAME)
                }
                counter = counters[sample.name](meter)
                counter.add(0, attributes)
                counter.add(0, {**attributes, attribute.error_type: QUEUE_FULL})
