"""The instruments of the metrics in the schema. They are passed as arguments; none is global.

    instruments.records.add(n, {attribute.bronze_source: source, attribute.bronze_outcome: Outcome.ACCEPTED})
    instruments.delivery_duration.record(age_s, {attribute.bronze_source: source}, context=submission_context)

Record a histogram in the context of what it measures; otherwise its exemplar leads to another trace.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

from opentelemetry.context import Context
from opentelemetry.metrics import Counter, Histogram, Meter
from opentelemetry.util.types import AttributeValue

from bronze.errors import Misconfigured
from bronze.telemetry.schema import Metric, registry
from bronze.telemetry.signals import Role

_Attributes = Mapping[str, AttributeValue] | None


class Gauge(Protocol):
    """The synchronous gauge of the OpenTelemetry API, which has no public name for its type."""

    def set(
        self,
        amount: float,
        attributes: _Attributes = None,
        context: Context | None = None,
    ) -> None: ...


@dataclass(frozen=True)
class Instruments:
    """All instruments of Bronze. A field is the metric's name without `bronze.`, with underscores for dots."""

    records: Counter
    records_invalid: Counter
    requests_refused: Counter
    bytes: Counter
    publisher_submissions: Counter
    uploads: Counter
    upload_duration: Histogram
    upload_last_success_time: Gauge
    upload_size: Histogram
    upload_records: Histogram
    stage_duration: Histogram
    delivery_duration: Histogram
    delivery_objective: Gauge
    consumer_errors: Counter
    queue_depth: Gauge
    queue_oldest_age: Gauge
    lane_position: Gauge
    catalog_lag: Gauge
    feed_followers: Gauge
    ledger_records: Gauge
    ledger_objects: Gauge
    ledger_bytes: Gauge
    missing_objects: Gauge
    missing_compared_time: Gauge
    missing_messages: Gauge
    verify_share: Gauge
    verify_last_run_time: Gauge
    canary_checks: Counter
    canary_check_duration: Histogram
    canary_check_state: Gauge
    canary_last_run_time: Gauge
    messaging_client_sent_messages: Counter
    messaging_client_consumed_messages: Counter
    messaging_client_operation_duration: Histogram
    messaging_process_duration: Histogram

    @classmethod
    def create(cls, meter: Meter, delivery_objective_s: float | None = None) -> Self:
        """Creates the instruments as the registry declares them. The objective becomes a bound of every duration.

        Raises `Misconfigured` if the registry and the fields of this class differ.
        """
        declared = {_field(metric): metric for metric in registry().metrics.values() if not metric.instrumentation}
        names = {field.name for field in fields(cls)}
        if names != set(declared):
            raise Misconfigured(f"telemetry registry and Instruments differ in {sorted(names ^ set(declared))}")
        instruments: dict[str, Any] = {
            name: _PlainStringInstrument(_create(meter, metric, metric.bounds(delivery_objective_s)))
            for name, metric in declared.items()
        }
        return cls(**instruments)

    def zero(self, role: Role, sources: Iterable[str]) -> None:
        """Adds 0 to every counter and combination of this role, so that a first failure is an increase of a series."""
        names = tuple(sources)
        for metric in registry().metrics.values():
            for attributes in metric.combinations(role, names):
                getattr(self, _field(metric)).add(0, attributes)


class _PlainStringInstrument:
    """Converts enum members to plain strings: the SDK would make different series for a member and its string."""

    def __init__(self, instrument: Any) -> None:
        self._instrument = instrument

    def add(self, amount: float, attributes: _Attributes = None, context: Context | None = None) -> None:
        self._instrument.add(amount, _plain(attributes), context)

    def record(self, amount: float, attributes: _Attributes = None, context: Context | None = None) -> None:
        self._instrument.record(amount, _plain(attributes), context)

    def set(self, amount: float, attributes: _Attributes = None, context: Context | None = None) -> None:
        self._instrument.set(amount, _plain(attributes), context)


def _plain(attributes: _Attributes) -> dict[str, AttributeValue]:
    return {key: str(value) if isinstance(value, str) else value for key, value in (attributes or {}).items()}


def _field(metric: Metric) -> str:
    return metric.name.removeprefix("bronze.").replace(".", "_")


def _create(meter: Meter, metric: Metric, bounds: Sequence[float]) -> Any:
    match metric.instrument:
        case "counter":
            return meter.create_counter(metric.name, metric.unit, metric.brief)
        case "gauge":
            return meter.create_gauge(metric.name, metric.unit, metric.brief)
        case "histogram":
            return meter.create_histogram(
                metric.name, metric.unit, metric.brief, explicit_bucket_boundaries_advisory=bounds
            )
        case instrument:
            raise Misconfigured(f"telemetry registry: {metric.name}: there is no kind of instrument {instrument!r}")
