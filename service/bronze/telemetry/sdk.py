"""Sets up the OpenTelemetry SDK for one role. It is passed as an argument: no global providers, nothing at import.

The standard `OTEL_*` variables apply. Where Bronze needs other defaults than the SDK, they are set in the environment
when a role starts, since the SDK and the instrumentations read some variables only from there.

Telemetry never breaks or slows its caller: exports run in separate threads, from bounded queues. If the collector is
unavailable, telemetry can be lost; the loss is counted (`otel.sdk.*`), and logged at most once per minute.
"""

import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TextIO, TypeVar
from urllib.parse import quote

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
from bronze.telemetry import exemplars, logs, losses, sampling
from bronze.telemetry.instruments import Instruments
from bronze.telemetry.metric_reader import ExportingReader
from bronze.telemetry.schema import registry
from bronze.telemetry.scrape import MetricsServer
from bronze.telemetry.signals import Role, attribute

if TYPE_CHECKING:
    from fastapi import FastAPI
    from fastapi.telemetry import TelemetryConfig

#: FastAPI's own telemetry is on as soon as there is a global provider. It would record each request a second time.
FASTAPI_TELEMETRY_OFF: Final["TelemetryConfig"] = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
}

_DEFAULTS: Final = {
    "OTEL_METRIC_EXPORT_INTERVAL": "5000",
    "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED": "true",  # counts what is dropped
    # a header may have 64 KiB, and a batch has hundreds of spans: one that is too large for the collector is lost
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "4096",
    "OTEL_BSP_SCHEDULE_DELAY": "1000",
    "OTEL_BSP_MAX_QUEUE_SIZE": "16384",  # one upload ends up to 1,000 spans at once, and a backlog has many uploads
}

#: How long an exporter retries spans and logs, in seconds: the next export does not repeat them, as it does metrics.
#: Meanwhile they wait in the queue; with the SDK's 10 s, one batch after another would be dropped.
_RETRY_TIMEOUT_S: Final = "60"


#: The values that these variables may have, and the reason why others do not work.
_ALLOWED_VALUES: Final = {
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": (
        ("cumulative",),
        "Prometheus refuses requests with other values; for a backend that needs deltas, the collector computes them",
    ),
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": (
        ("explicit_bucket_histogram",),
        "alert rules and panels read the declared buckets",
    ),
    "OTEL_METRICS_EXEMPLAR_FILTER": (
        ("trace_based", "always_off"),
        "an exemplar of a span that is not sampled leads to no trace",
    ),
    "OTEL_TRACES_SAMPLER": (
        tuple(f"{kind}{name}" for kind in ("parentbased_", "") for name in ("always_on", "traceidratio", "always_off")),
        "the SDK would sample every trace instead",
    ),
}

_POSITIVE_NUMBERS: Final = (
    "OTEL_METRIC_EXPORT_INTERVAL",
    "OTEL_METRIC_EXPORT_TIMEOUT",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
)

#: The API has this one only for its workers.
_METRICS_PORTS: Final = {
    Role.CONSUMER: 9464,
    Role.PUBLISHER: 9465,
    Role.CANARY: 9466,
    Role.API: 9467,
    Role.TABLE: 9468,
    Role.NOTIFY: 9469,
    Role.RETAIN: 9486,  # after those of workers in `make up`
}

_PORT_VARIABLE: Final = "OTEL_EXPORTER_PROMETHEUS_PORT"

_PROBES = r"^\w+://[^/]+/(metrics|livez|readyz)(\?|$)"

_FLUSH_S_MAX = 2.5

_log = logging.getLogger(__name__)

_Made = TypeVar("_Made")


@dataclass(frozen=True, eq=False)
class Telemetry:
    """The telemetry of a role. `resource` identifies the process, with the names of the semantic conventions."""

    tracer: Tracer
    instruments: Instruments
    resource: Mapping[str, str]
    _tracers: TracerProvider = field(repr=False)
    _meters: MeterProvider = field(repr=False)
    _loggers: LoggerProvider = field(repr=False)
    _exporters: Sequence[SpanExporter | MetricExporter | LogRecordExporter] = field(repr=False)
    _readers: Sequence[MetricReader] = field(repr=False)  # without one that only scrapes read
    _prometheus_registry: CollectorRegistry = field(repr=False)
    _logs: logging.Handler = field(repr=False)
    _scrape_lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _shut_down: threading.Event = field(default_factory=threading.Event, repr=False)

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
        """The answer of `/livez`: that this process runs, and its identity."""
        return {
            "status": "alive",
            "service_name": self.service_name,
            "service_instance_id": self.instance_id,
            "version": self.version,
        }

    def instrument(self, app: "FastAPI", frequent: Sequence[str] = ()) -> None:
        """Records one SERVER span and one duration for each request, except probes and scrapes. Does nothing if the SDK
        is disabled.

        The app must be complete, and created with `telemetry=FASTAPI_TELEMETRY_OFF`. The POST requests of the routes
        `frequent` are recorded in the same way at a lower cost.
        """
        if _disabled():
            return  # the instrumentation would still parse each request
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

        _opt_in_to_stable_http()
        FastAPIInstrumentor.instrument_app(
            app,
            tracer_provider=self._tracers,
            meter_provider=self._meters,
            excluded_urls=_PROBES,
            exclude_spans=["receive", "send"],
            # also if the standard variables ask for all headers
            http_capture_headers_sanitize_fields=["authorization", "cookie"],
        )
        if frequent and not _asks_for_more():
            from bronze.telemetry.post_requests import PostRequests

            app.middleware_stack = PostRequests(app.build_middleware_stack(), frequent, self._tracers, self._meters)

    def metrics(self) -> tuple[bytes, str]:
        """The metrics of this process in Prometheus' text format, and its content type. Takes some milliseconds."""
        with self._scrape_lock, exemplars.kept():  # the reader returns wrong series to concurrent scrapes
            return generate_latest(self._prometheus_registry), CONTENT_TYPE_PLAIN_0_0_4

    def serve_metrics(self, port: int | None = None) -> MetricsServer:
        """Serves `/metrics` and `/livez` on a port of their own, until the returned server is closed.

        Listens on OTEL_EXPORTER_PROMETHEUS_HOST and _PORT, unless a port is given (0: any free port). Raises
        `CannotListen` if the port is in use, and `Misconfigured` if it is not a valid number.
        """
        host = os.environ.get("OTEL_EXPORTER_PROMETHEUS_HOST") or "127.0.0.1"
        if port is None:
            port = _metrics_port(Role(self.service_name))
        return MetricsServer(host, port, self.metrics, self.alive)

    def export_zeros(self, sources: Iterable[str]) -> None:
        """Sets the counters of this role to 0 and exports them, without waiting for the collector.

        To Prometheus, counts before the first export are not an increase.
        """
        self.instruments.zero(Role(self.service_name), sources)
        threading.Thread(target=self.flush, name="telemetry", daemon=True).start()

    def flush(self) -> None:
        """Exports all recorded telemetry. Returns within some seconds, even if the collector does not answer."""
        readers = [reader.force_flush for reader in self._readers]
        _run_in_time([self._tracers.force_flush, self._loggers.force_flush, *readers])

    def shutdown(self) -> None:
        """Exports all recorded telemetry, and ends. Returns within some seconds; a second call does nothing."""
        if self._shut_down.is_set():
            return
        self._shut_down.set()
        logging.getLogger().removeHandler(self._logs)
        if not _run_in_time([self._tracers.shutdown, self._meters.shutdown, self._loggers.shutdown]):
            _log.warning("the collector did not accept the last telemetry in time; it is lost")
            for exporter in self._exporters:
                exporter.shutdown()  # ends its retries


def start(service_name: str, settings: Settings, *, log_stream: TextIO | None = None) -> Telemetry:
    """Starts telemetry and logs (on standard output, or `log_stream`) of this process. `Telemetry.shutdown` ends them.

    Raises `Misconfigured` if a variable has a value that is not supported.
    """
    for variable in [name for name, text in os.environ.items() if name.startswith("OTEL_") and not text.strip()]:
        del os.environ[variable]  # as the specification says; the SDK takes some empty values for invalid ones
    for variable, value in _DEFAULTS.items():
        os.environ.setdefault(variable, value)
    if "OTEL_EXPORTER_OTLP_TIMEOUT" not in os.environ:
        for signal in ("TRACES", "LOGS"):
            os.environ.setdefault(f"OTEL_EXPORTER_OTLP_{signal}_TIMEOUT", _RETRY_TIMEOUT_S)
    resource = _resource(Role(service_name))
    logs.configure(settings.log_format, settings.log_level, _identity(resource), log_stream)
    _check_values()
    try:
        log_exporters: list[Callable[[MeterProvider], LogRecordExporter]] = _exporters(
            "OTEL_LOGS_EXPORTER",
            lambda: losses.CountedLogs,
            lambda: lambda _: ConsoleLogRecordExporter(),
        )
        telemetry = assemble(
            resource,
            metric_exporters=_exporters("OTEL_METRICS_EXPORTER", losses.CountedMetrics, ConsoleMetricExporter),
            span_exporters=_exporters(
                "OTEL_TRACES_EXPORTER",
                lambda: losses.CountedSpans,
                lambda: lambda _: ConsoleSpanExporter(),
            ),
            log_exporters=log_exporters,
            delivery_objective_s=settings.delivery_objective_s,
        )
    except ValueError as error:
        raise Misconfigured(f"an OTEL_* variable has an invalid value: {error}") from error
    if log_exporters:
        logging.getLogger().addHandler(telemetry._logs)  # noqa: SLF001  created in this module
    return telemetry


def identity(role: Role) -> Mapping[str, str]:
    """The resource of a process of this role, as the environment says. An instance id that it lacks is a new one."""
    return _identity(_resource(role))


def worker_variables(of_all: Mapping[str, str], number: int) -> Mapping[str, str]:
    """The variables of a worker: an instance id and a port of `/metrics` of its own. `of_all` is the identity of the
    process that starts it; `number` begins with 1. Raises `Misconfigured` if there is no such port.
    """
    port = _metrics_port(Role(of_all[attribute.service_name]))
    instance_id = f"{of_all[attribute.service_instance_id]}-{number}"
    given = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "").strip()
    own = f"{attribute.service_instance_id}={quote(instance_id, safe='')}"
    return {
        "OTEL_RESOURCE_ATTRIBUTES": f"{given},{own}" if given else own,  # the last one of a name holds
        _PORT_VARIABLE: str(_port(str(port + number - 1 if port else 0))),
    }


def assemble(
    resource: Resource,
    *,
    metric_exporters: Sequence[MetricExporter] = (),
    metric_readers: Sequence[MetricReader] = (),
    span_exporters: Sequence[Callable[[MeterProvider], SpanExporter]] = (),
    log_exporters: Sequence[Callable[[MeterProvider], LogRecordExporter]] = (),
    delivery_objective_s: float | None = None,
) -> Telemetry:
    """Telemetry from parts that `start` and tests choose. Exporters are created with the provider for their counts.

    Without an objective, durations have only the registry's buckets.
    """
    prometheus_registry = CollectorRegistry()  # not the library's global registry
    readers: list[MetricReader] = [*metric_readers]
    if metric_exporters:
        exported, *others = metric_exporters
        readers.append(ExportingReader(exported, prometheus_registry))
        readers += [PeriodicExportingMetricReader(exporter) for exporter in others]
        scraped = []
    else:
        scraped = [PrometheusMetricReader(scope_info_enabled=False, registry=prometheus_registry)]
    meters = MeterProvider([*scraped, *readers], resource, shutdown_on_exit=False, views=_views(delivery_objective_s))
    for metric_exporter in metric_exporters:
        if isinstance(metric_exporter, losses.CountedMetrics):
            metric_exporter.use_meters(meters)
    made_span_exporters = [make(meters) for make in span_exporters]
    made_log_exporters = [make(meters) for make in log_exporters]
    tracers = _tracer_provider(resource, meters, made_span_exporters)
    loggers = _logger_provider(resource, meters, made_log_exporters)
    losses.zero_dropped(meters, prometheus_registry)
    return Telemetry(
        tracer=tracers.get_tracer(bronze.__name__, bronze.__version__),
        instruments=Instruments.create(meters.get_meter(bronze.__name__, bronze.__version__), delivery_objective_s),
        resource=_identity(resource),
        _tracers=tracers,
        _meters=meters,
        _loggers=loggers,
        _exporters=[*metric_exporters, *made_span_exporters, *made_log_exporters],
        _readers=readers,
        _prometheus_registry=prometheus_registry,
        _logs=logs.ExportHandler(loggers),
    )


def _tracer_provider(resource: Resource, meters: MeterProvider, exporters: Sequence[SpanExporter]) -> TracerProvider:
    # The provider's own counts of started and open spans would cost three measurements per span, so it gets no meters.
    # The processors count dropped spans.
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False, meter_provider=NoOpMeterProvider())
    if not sampling.always_off():
        tracers.sampler = sampling.WithAlwaysSampled(tracers.sampler)  # the provider has read the standard variables
    for exporter in exporters:
        tracers.add_span_processor(BatchSpanProcessor(exporter, meter_provider=meters))
    return tracers


def _logger_provider(
    resource: Resource, meters: MeterProvider, exporters: Sequence[LogRecordExporter]
) -> LoggerProvider:
    loggers = LoggerProvider(resource, shutdown_on_exit=False, meter_provider=meters)
    for exporter in exporters:
        loggers.add_log_record_processor(BatchLogRecordProcessor(exporter, meter_provider=meters))
    return loggers


def _identity(resource: Resource) -> dict[str, str]:
    return {key: str(value) for key, value in resource.attributes.items()}


def _resource(role: Role) -> Resource:
    """The identity of this process. Namespace and name are fixed, since dashboards and rules join on them. The
    environment can set the other attributes.
    """
    defaults = {
        attribute.service_instance_id: str(uuid.uuid4()),
        attribute.service_version: bronze.__version__,
        attribute.deployment_environment_name: "local",
    }
    configured = OTELResourceDetector().detect().attributes
    fixed = {attribute.service_namespace: bronze.__name__, attribute.service_name: role.value}
    return Resource.create({**defaults, **configured, **fixed})


def _metrics_port(role: Role) -> int:
    return _port(os.environ.get(_PORT_VARIABLE) or str(_METRICS_PORTS[role]))


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise Misconfigured(f"{_PORT_VARIABLE}: {text!r} is not a port: use a number from 0 to 65535")
    return int(text)


def _opt_in_to_stable_http() -> None:
    """Selects the stable HTTP conventions before the first use of the instrumentation; its default is the old ones."""
    opted = os.environ.get("OTEL_SEMCONV_STABILITY_OPT_IN", "").split(",")
    if not {"http", "http/dup"} & {option.strip() for option in opted}:
        os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = ",".join(["http", *filter(None, opted)])


def _asks_for_more() -> bool:
    """Whether the standard variables ask the instrumentation for more than `PostRequests` records."""
    opted = os.environ.get("OTEL_SEMCONV_STABILITY_OPT_IN", "").split(",")
    return "http/dup" in {option.strip() for option in opted} or any(
        os.environ.get(f"OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_{side}") for side in ("REQUEST", "RESPONSE")
    )


def _views(delivery_objective_s: float | None) -> list[View]:
    """The exemplars of every histogram, and the buckets of those that libraries create.

    The others have the buckets with which they are created.
    """
    return [
        View(
            instrument_name=metric.name,
            aggregation=ExplicitBucketHistogramAggregation(bounds) if metric.instrumentation else None,
            exemplar_reservoir_factory=exemplars.keep_largest,
        )
        for metric in registry().metrics.values()
        if (bounds := metric.bounds(delivery_objective_s))
    ]


def _disabled() -> bool:
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def _exporters(variable: str, otlp: Callable[[], _Made], console: Callable[[], _Made]) -> list[_Made]:
    """The exporters that a standard variable lists: otlp (the default), console, none."""
    if _disabled():
        return []
    makers = {"otlp": [otlp], "console": [console], "none": [], "prometheus": []}  # /metrics is always served
    names = [name.strip() for name in (os.environ.get(variable) or "otlp").split(",")]
    for name in names:
        if name not in makers:
            raise Misconfigured(f"{variable}: {name!r} is not supported. Use otlp, console or none")
    if "otlp" in names:
        _check_protocol(variable.split("_")[1])
    return [make() for name in names for make in makers[name]]


def _check_values() -> None:
    """Raises `Misconfigured` for values that the SDK would ignore without an error, or that break other parts."""
    for variable, (allowed, reason) in _ALLOWED_VALUES.items():
        value = os.environ.get(variable, "").strip().lower()
        if value and value not in allowed:
            raise Misconfigured(f"{variable}: {value!r} is not supported. Use {' or '.join(allowed)}: {reason}")
    if "ratio" in os.environ.get("OTEL_TRACES_SAMPLER", "").lower():
        text = os.environ.get("OTEL_TRACES_SAMPLER_ARG", "1")
        try:
            valid = 0 <= float(text) <= 1
        except ValueError:
            valid = False
        if not valid:
            raise Misconfigured(f"OTEL_TRACES_SAMPLER_ARG: {text!r} is not a number from 0 to 1")
    for variable in _POSITIVE_NUMBERS:
        text = os.environ.get(variable, "1")
        if not re.fullmatch(r"[0-9]*[1-9][0-9]*(\.[0-9]*)?", text.strip()):
            raise Misconfigured(f"{variable}: {text!r} is not a number above 0")


def _check_protocol(signal: str) -> None:
    for protocol in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if chosen := os.environ.get(protocol):
            if chosen != "http/protobuf":
                raise Misconfigured(f"{protocol}: {chosen!r} is not supported. Use http/protobuf")
            return


def _run_in_time(actions: Sequence[Callable[[], object]]) -> bool:
    """Runs actions in parallel threads, and waits at most `_FLUSH_S_MAX`. Returns whether all have ended.

    An action that takes longer continues in its thread. Errors are logged.
    """

    def run(action: Callable[[], object]) -> None:
        try:
            action()
        except Exception:  # noqa: BLE001  telemetry never breaks its caller
            _log.exception("telemetry cannot be exported")

    threads = [threading.Thread(target=run, args=(action,), name="telemetry", daemon=True) for action in actions]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + _FLUSH_S_MAX
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)
