"""The instruments of the metrics in the schema. They are passed as arguments; none is global.

    instruments.records.add(n, {attribute.bronze_source: source, attribute.bronze_outcome: Outcome.ACCEPTED})
    instruments.delivery_duration.record(age_s, {attribute.bronze_source: source}, context=submission_context)

Record a histogram in the context of what it measures; otherwise its exemplar leads to another trace.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from threading import Lock
from typing import Any, Protocol, Self

from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, Observation
from opentelemetry.util.types import AttributeValue

from bronze.errors import Misconfigured
from bronze.telemetry.schema import Metric, registry
from bronze.telemetry.signals import Role

_Attributes = Mapping[str, AttributeValue] | None
_Series = frozenset[tuple[str, AttributeValue]]


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
    fields_undeclared: Counter
    requests_refused: Counter
    bytes: Counter
    publisher_submissions: Counter
    uploads: Counter
    upload_duration: Histogram
    upload_last_success_time: Gauge
    data_staleness_last_update_timestamp: Gauge
    data_staleness_sla_threshold: Gauge
    event_lateness: Gauge
    field_values: Counter
    field_min: Gauge
    field_max: Gauge
    field_distinct: Gauge
    expectation_limit: Gauge
    expectation_broken: Counter
    principal_records: Counter
    principal_newest_time: Gauge
    upload_size: Histogram
    upload_records: Histogram
    stage_duration: Histogram
    delivery_duration: Histogram
    delivery_objective: Gauge
    consumer_errors: Counter
    queue_depth: Gauge
    queue_oldest_age: Gauge
    lane_position: Gauge
    queue_replicas: Gauge
    queue_leaderless: Gauge
    catalog_entries: Gauge
    catalog_limit: Gauge
    catalog_size: Gauge
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
    table_commits: Counter
    table_commit_duration: Histogram
    table_delivery_duration: Histogram
    table_records: Counter
    table_objects_oldest_age: Gauge
    table_files: Gauge
    table_size: Gauge
    table_maintenance_runs: Counter
    table_snapshots: Gauge
    table_snapshot_time: Gauge
    notify_events: Counter
    notify_lag: Gauge
    retention_runs: Counter
    retention_objects: Counter
    retention_entries: Counter
    retention_rows: Counter
    retention_last_run_time: Gauge
    retention_interval: Gauge
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
            name: _create(meter, metric, metric.bounds(delivery_objective_s)) for name, metric in declared.items()
        }
        return cls(**instruments)

    def zero(self, role: Role, sources: Iterable[str]) -> None:
        """Adds 0 to every counter and combination of this role, so that a first failure is an increase of a series."""
        names = tuple(sources)
        for metric in registry().metrics.values():
            for attributes in metric.combinations(role, names):
                getattr(self, _field(metric)).add(0, attributes)


class _SumCounter:
    """A counter whose sums the SDK reads when it collects: an addition takes a fraction of the time of the SDK's own.

    Its points have no exemplars. A sum is of many operations, so nobody could say what an exemplar of it shows.
    """

    def __init__(self, meter: Meter, metric: Metric) -> None:
        self._attributes: dict[_Series, Mapping[str, AttributeValue]] = {}
        self._sums: dict[_Series, float] = {}
        self._lock = Lock()
        meter.create_observable_counter(metric.name, [self._observe], metric.unit, metric.brief)

    def add(self, amount: float, attributes: _Attributes = None) -> None:
        series = frozenset((attributes or {}).items())
        with self._lock:
            if series not in self._sums:
                self._attributes[series] = _plain(attributes)
            self._sums[series] = self._sums.get(series, 0) + amount

    def _observe(self, _: CallbackOptions) -> Iterator[Observation]:
        with self._lock:
            sums = [*self._sums.items()]
        for series, amount in sums:
            yield Observation(amount, self._attributes[series])


class _PlainStringInstrument:
    """Converts enum members to plain strings: the SDK would make different series for a member and its string."""

    def __init__(self, instrument: Any) -> None:
        self._instrument = instrument

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
            return _SumCounter(meter, metric)
        case "gauge":
            return _PlainStringInstrument(meter.create_gauge(metric.name, metric.unit, metric.brief))
        case "histogram":
            return _PlainStringInstrument(
                meter.create_histogram(
                    metric.name, metric.unit, metric.brief, explicit_bucket_boundaries_advisory=bounds
                )
            )
        case instrument:
            raise Misconfigured(f"telemetry registry: {metric.name}: there is no kind of instrument {instrument!r}")
