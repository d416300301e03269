"""The OpenTelemetry SDK, set up for one role and handed in: no global providers, nothing at import.

The standard `OTEL_*` variables hold. What we would have otherwise than the SDK is set as their default when a role
starts, since the SDK and the instrumentations read some of them from the environment alone.

Telemetry never breaks or slows its caller: exports happen in threads of their own, from bounded queues; a collector
that is away costs telemetry, is counted (`otel.sdk.*`), and is mentioned in the log now and then.
"""

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TextIO, TypeVar

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, ConsoleLogRecordExporter, LogRecordExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    ConsoleMetricExporter,
    MetricExporter,
    MetricReader,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import Tracer
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

import bronze
from bronze.errors import Misconfigured
from bronze.settings import Settings
from bronze.telemetry import logs, losses
from bronze.telemetry.instruments import Instruments
from bronze.telemetry.schema import registry
from bronze.telemetry.scrape import MetricsServer
from bronze.telemetry.signals import Role, attribute

if TYPE_CHECKING:
    from fastapi import FastAPI
    from fastapi.telemetry import TelemetryConfig

#: FastAPI has telemetry of its own, on as soon as there is a global provider: one instrumentation is enough.
FASTAPI_TELEMETRY_OFF: Final["TelemetryConfig"] = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
}

_DEFAULTS: Final = {
    "OTEL_METRIC_EXPORT_INTERVAL": "5000",
    "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED": "true",  # what is dropped is counted
    "OTEL_BSP_SCHEDULE_DELAY": "1000",
    "OTEL_BSP_MAX_QUEUE_SIZE": "16384",  # an object ends up to 1,000 spans at once, and a backlog has one after another
}

#: How long an exporter tries again with what cannot be made up for by the next export, in seconds: meanwhile the queue
#: bridges, and by the SDK's 10 it would throw away one batch after another.
_PATIENCE_S: Final = "60"


#: Words that these variables may say, each with what would break otherwise.
_WORDS: Final = {
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": (
        ("cumulative",),
        "Prometheus refuses a request with any other; for a backend that wants deltas the collector makes them",
    ),
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": (
        ("explicit_bucket_histogram",),
        "rules and panels read the declared buckets",
    ),
    "OTEL_METRICS_EXEMPLAR_FILTER": (
        ("trace_based", "always_off"),
        "an exemplar of what is not sampled leads to no trace",
    ),
    "OTEL_TRACES_SAMPLER": (
        tuple(f"{kind}{name}" for kind in ("parentbased_", "") for name in ("always_on", "traceidratio", "always_off")),
        "the SDK would sample everything instead",
    ),
}

_METRICS_PORTS: Final = {Role.CONSUMER: 9464, Role.PUBLISHER: 9465}

_PROBES = r"^\w+://[^/]+/(metrics|livez|readyz)(\?|$)"

_FLUSH_S_MAX = 2.5

_log = logging.getLogger(__name__)

_Made = TypeVar("_Made")


@dataclass(frozen=True, eq=False)
class Telemetry:
    """What a role speaks with. `resource` says which process it is, by the names of the semantic conventions."""

    tracer: Tracer
    instruments: Instruments
    resource: Mapping[str, str]
    _tracers: TracerProvider = field(repr=False)
    _meters: MeterProvider = field(repr=False)
    _loggers: LoggerProvider = field(repr=False)
    _exporters: Sequence[SpanExporter | MetricExporter | LogRecordExporter] = field(repr=False)
    _readers: Sequence[MetricReader] = field(repr=False)  # but Prometheus', which is read by scrapes alone
    _scraped: CollectorRegistry = field(repr=False)
    _logs: logging.Handler = field(repr=False)
    _scrape: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _stopped: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def service_name(self) -> str:
        return self.resource[attribute.service_name]

    @property
    def instance_id(self) -> str:
        return self.resource[attribute.service_instance_id]

    @property
    def version(self) -> str:
        return self.resource[attribute.service_version]

    def alive(self) -> dict[str, str]:
        """The answer of `/livez`: that this process runs, and which it is."""
        return {
            "status": "alive",
            "service_name": self.service_name,
            "service_instance_id": self.instance_id,
            "version": self.version,
        }

    def instrument(self, app: "FastAPI") -> None:
        """One SERVER span and one duration for each request but those of probes and scrapes; none where the SDK is off.

        The app is made with `telemetry=FASTAPI_TELEMETRY_OFF`.
        """
        if _disabled():
            return  # it would still take each request apart
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

        _opt_in_to_stable_http()
        FastAPIInstrumentor.instrument_app(
            app,
            tracer_provider=self._tracers,
            meter_provider=self._meters,
            excluded_urls=_PROBES,
            exclude_spans=["receive", "send"],
        )

    def metrics(self) -> tuple[bytes, str]:
        """The metrics of this process in Prometheus' text format, and its content type. Takes some milliseconds."""
        with self._scrape:  # the reader mixes up scrapes that overlap
            return generate_latest(self._scraped), CONTENT_TYPE_PLAIN_0_0_4

    def serve_metrics(self, port: int | None = None) -> MetricsServer:
        """`/metrics` and `/livez` for a role without an API, until the returned server is closed.

        On OTEL_EXPORTER_PROMETHEUS_HOST and _PORT, unless a port is given (0: any that is free). Raises `Misconfigured`
        if the port is taken or no number.
        """
        host = os.environ.get("OTEL_EXPORTER_PROMETHEUS_HOST") or "127.0.0.1"
        if port is None:
            text = os.environ.get("OTEL_EXPORTER_PROMETHEUS_PORT") or str(_METRICS_PORTS[Role(self.service_name)])
            if not text.isdecimal() or int(text) > 65535:
                raise Misconfigured(f"OTEL_EXPORTER_PROMETHEUS_PORT: {text!r} is no port")
            port = int(text)
        return MetricsServer(host, port, self.metrics, self.alive)

    def begin(self, sources: Iterable[str]) -> None:
        """What this role counts stands at 0, and that is on its way: for Prometheus, what comes before a first export
        is no increase. Does not wait for the collector.
        """
        self.instruments.zero(Role(self.service_name), sources)
        threading.Thread(target=self.flush, name="telemetry", daemon=True).start()

    def flush(self) -> None:
        """Sends what there is now; returns after some seconds at the latest, whatever the collector does."""
        readers = [reader.force_flush for reader in self._readers]
        _together([self._tracers.force_flush, self._loggers.force_flush, *readers])

    def shutdown(self) -> None:
        """Sends what there is and ends. Returns after some seconds at the latest; a second call does nothing."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        logging.getLogger().removeHandler(self._logs)
        if not _together([self._tracers.shutdown, self._meters.shutdown, self._loggers.shutdown]):
            _log.warning("the collector did not take the last telemetry in time, it is lost")
            for exporter in self._exporters:
                exporter.shutdown()  # ends what is being tried again


def start(service_name: str, settings: Settings, *, log_stream: TextIO | None = None) -> Telemetry:
    """Telemetry and logs (on standard output, or `log_stream`) of this process in its role. `shutdown` ends it.

    Raises `Misconfigured` if a variable asks for what there is not.
    """
    for variable, value in _DEFAULTS.items():
        os.environ.setdefault(variable, value)
    if "OTEL_EXPORTER_OTLP_TIMEOUT" not in os.environ:
        for signal in ("TRACES", "LOGS"):
            os.environ.setdefault(f"OTEL_EXPORTER_OTLP_{signal}_TIMEOUT", _PATIENCE_S)
    resource = _resource(Role(service_name))
    logs.configure(settings.log_format, settings.log_level, _identity(resource), log_stream)
    _check_words()
    try:
        logs_to: list[Callable[[MeterProvider], LogRecordExporter]] = _chosen(
            "OTEL_LOGS_EXPORTER",
            lambda: losses.CountedLogs,
            lambda: lambda _: ConsoleLogRecordExporter(),
        )
        telemetry = assemble(
            resource,
            metric_exporters=_chosen("OTEL_METRICS_EXPORTER", losses.CountedMetrics, ConsoleMetricExporter),
            span_exporters=_chosen(
                "OTEL_TRACES_EXPORTER",
                lambda: losses.CountedSpans,
                lambda: lambda _: ConsoleSpanExporter(),
            ),
            log_exporters=logs_to,
            delivery_objective_s=settings.delivery_objective_s,
        )
    except ValueError as error:
        raise Misconfigured(f"a variable OTEL_* cannot work: {error}") from error
    if logs_to:
        logging.getLogger().addHandler(telemetry._logs)  # noqa: SLF001  this makes it
    return telemetry


def assemble(
    resource: Resource,
    *,
    metric_exporters: Sequence[MetricExporter] = (),
    metric_readers: Sequence[MetricReader] = (),
    span_exporters: Sequence[Callable[[MeterProvider], SpanExporter]] = (),
    log_exporters: Sequence[Callable[[MeterProvider], LogRecordExporter]] = (),
    delivery_objective_s: float | None = None,
) -> Telemetry:
    """Telemetry from its parts, which `start` and tests choose; an exporter counts by the provider that it is given.

    Without an objective, deliveries have the registry's buckets alone.
    """
    scraped = CollectorRegistry()  # not the library's global one
    readers = [*metric_readers, *(PeriodicExportingMetricReader(exporter) for exporter in metric_exporters)]
    meters = MeterProvider(
        [PrometheusMetricReader(scope_info_enabled=False, registry=scraped), *readers],
        resource,
        shutdown_on_exit=False,
        views=_views(),
    )
    for metrics_to in metric_exporters:
        if isinstance(metrics_to, losses.CountedMetrics):
            metrics_to.count_by(meters)

    # its own counts, of spans begun and open, would be three measurements a span; the processors count what is dropped
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False, meter_provider=NoOpMeterProvider())
    spans_to = [make(meters) for make in span_exporters]
    for spans in (BatchSpanProcessor(exporter, meter_provider=meters) for exporter in spans_to):
        tracers.add_span_processor(spans)

    loggers = LoggerProvider(resource, shutdown_on_exit=False, meter_provider=meters)
    logs_to = [make(meters) for make in log_exporters]
    for records in (BatchLogRecordProcessor(exporter, meter_provider=meters) for exporter in logs_to):
        loggers.add_log_record_processor(records)
    losses.begin_dropped(meters, scraped)

    return Telemetry(
        tracer=tracers.get_tracer(bronze.__name__, bronze.__version__),
        instruments=Instruments.create(meters.get_meter(bronze.__name__, bronze.__version__), delivery_objective_s),
        resource=_identity(resource),
        _tracers=tracers,
        _meters=meters,
        _loggers=loggers,
        _exporters=[*metric_exporters, *spans_to, *logs_to],
        _readers=readers,
        _scraped=scraped,
        _logs=logs.Exported(loggers),
    )


def _identity(resource: Resource) -> dict[str, str]:
    return {key: str(value) for key, value in resource.attributes.items()}


def _resource(role: Role) -> Resource:
    """Who speaks. Namespace and name are fixed, since dashboards and rules join on them; the rest may be given."""
    ours = {
        attribute.service_instance_id: str(uuid.uuid4()),
        attribute.service_version: bronze.__version__,
        attribute.deployment_environment_name: "local",
    }
    given = OTELResourceDetector().detect().attributes
    fixed = {attribute.service_namespace: bronze.__name__, attribute.service_name: role.value}
    return Resource.create({**ours, **given, **fixed})


def _opt_in_to_stable_http() -> None:
    """Of the HTTP conventions the instrumentation speaks the old ones, unless this is said before its first use."""
    opted = os.environ.get("OTEL_SEMCONV_STABILITY_OPT_IN", "").split(",")
    if not {"http", "http/dup"} & {word.strip() for word in opted}:
        os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = ",".join(["http", *filter(None, opted)])


def _views() -> list[View]:
    """The buckets of what others make; our own instruments come with theirs."""
    return [
        View(instrument_name=metric.name, aggregation=ExplicitBucketHistogramAggregation(metric.buckets))
        for metric in registry().metrics.values()
        if metric.instrumentation and metric.buckets
    ]


def _disabled() -> bool:
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def _chosen(variable: str, otlp: Callable[[], _Made], console: Callable[[], _Made]) -> list[_Made]:
    """The exporters that a standard variable lists: otlp (the default), console, none."""
    if _disabled():
        return []
    makers = {"otlp": [otlp], "console": [console], "none": [], "prometheus": []}  # /metrics is always there
    names = [name.strip() for name in (os.environ.get(variable) or "otlp").split(",")]
    for name in names:
        if name not in makers:
            raise Misconfigured(f"{variable}: {name!r} is not known, take otlp, console or none")
    if "otlp" in names:
        _check_protocol(variable.split("_")[1])
    return [make() for name in names for make in makers[name]]


def _check_words() -> None:
    """Raises `Misconfigured` for what the SDK would take in silence, or in another sense."""
    for variable, (words, why) in _WORDS.items():
        word = os.environ.get(variable, "").strip().lower()
        if word and word not in words:
            raise Misconfigured(f"{variable}: {word!r} is not taken, but {', '.join(words)}: {why}")
    if "ratio" in os.environ.get("OTEL_TRACES_SAMPLER", "").lower():
        text = os.environ.get("OTEL_TRACES_SAMPLER_ARG", "")
        try:
            sampled = 0 <= float(text) <= 1
        except ValueError:
            sampled = False
        if not sampled:
            raise Misconfigured(f"OTEL_TRACES_SAMPLER_ARG: {text!r} is no ratio from 0 to 1")


def _check_protocol(signal: str) -> None:
    for protocol in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if chosen := os.environ.get(protocol):
            if chosen != "http/protobuf":
                raise Misconfigured(f"{protocol}: {chosen!r} is not spoken here, but http/protobuf")
            return


def _together(actions: Sequence[Callable[[], object]]) -> bool:
    """Whether all ended within the bound; what did not goes on in its thread. An error is logged and is an end."""

    def run(action: Callable[[], object]) -> None:
        try:
            action()
        except Exception:  # noqa: BLE001  telemetry never breaks its caller
            _log.exception("telemetry cannot be sent")

    threads = [threading.Thread(target=run, args=(action,), name="telemetry", daemon=True) for action in actions]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + _FLUSH_S_MAX
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)
