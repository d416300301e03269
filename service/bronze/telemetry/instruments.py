"""The instruments of the schema, to be handed in: nothing here is global.

    instruments.records.add(n, {attribute.bronze_source: source, attribute.bronze_outcome: Outcome.ACCEPTED})
    instruments.delivery_duration.record(age_s, {attribute.bronze_source: source}, context=submission_context)

A histogram is recorded under the context of what it measures, or its exemplar leads to another trace.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self

from opentelemetry.context import Context
from opentelemetry.metrics import Counter, Histogram, Meter
from opentelemetry.util.types import AttributeValue

from bronze.errors import Misconfigured
from bronze.telemetry.schema import Metric, registry
from bronze.telemetry.signals import Role

_Attributes = Mapping[str, AttributeValue] | None


class Gauge(Protocol):
    """The API has a synchronous gauge and no public name for it."""

    def set(
        self,
        amount: float,
        attributes: _Attributes = None,
        context: Context | None = None,
    ) -> None: ...


@dataclass(frozen=True)
class Instruments:
    """Every instrument that we make: the metric's name without `bronze.`, with underscores for dots."""

    records: Counter
    records_invalid: Counter
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
    messaging_client_sent_messages: Counter
    messaging_client_consumed_messages: Counter
    messaging_client_operation_duration: Histogram
    messaging_process_duration: Histogram

    @classmethod
    def create(cls, meter: Meter, delivery_objective_s: float | None = None) -> Self:
        """Makes what the registry declares; the objective becomes a bound of the deliveries' buckets.

        Raises `Misconfigured` where the registry and what stands here differ.
        """
        declared = {_field(metric): metric for metric in registry().metrics.values() if not metric.instrumentation}
        typed = {field.name for field in fields(cls)}
        if typed != set(declared):
            raise Misconfigured(f"telemetry registry and Instruments differ in {sorted(typed ^ set(declared))}")
        if delivery_objective_s is not None:
            deliveries = declared["delivery_duration"]
            buckets = tuple(sorted({*deliveries.buckets, delivery_objective_s}))
            declared["delivery_duration"] = replace(deliveries, buckets=buckets)
        made: dict[str, Any] = {name: _Worded(_create(meter, metric)) for name, metric in declared.items()}
        return cls(**made)

    def zero(self, role: Role, sources: Iterable[str]) -> None:
        """Adds 0 for all that this role can count, so that a first failure is an increase and not a new series."""
        names = tuple(sources)
        for metric in registry().metrics.values():
            for attributes in metric.combinations(role, names):
                getattr(self, _field(metric)).add(0, attributes)


class _Worded:
    """An instrument that takes a word of an enum for its plain string: the SDK would make two series of them."""

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


def _create(meter: Meter, metric: Metric) -> Any:
    match metric.instrument:
        case "counter":
            return meter.create_counter(metric.name, metric.unit, metric.brief)
        case "gauge":
            return meter.create_gauge(metric.name, metric.unit, metric.brief)
        case "histogram":
            return meter.create_histogram(
                metric.name, metric.unit, metric.brief, explicit_bucket_boundaries_advisory=metric.buckets
            )
        case instrument:
            raise Misconfigured(f"telemetry registry: {metric.name}: no instrument {instrument}")
