"""The declared schema, and the constants and instruments that are created from it."""

import ast
from enum import StrEnum
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from opentelemetry.metrics import Histogram, UpDownCounter
from opentelemetry.metrics import _Gauge as Gauge
from opentelemetry.sdk.metrics import Counter, MeterProvider
from opentelemetry.sdk.metrics.export import Histogram as HistogramData
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricsData, NumberDataPoint
from opentelemetry.sdk.metrics.export import Metric as MetricData
from opentelemetry.semconv import attributes as stable
from opentelemetry.semconv._incubating import attributes as incubating
from opentelemetry.semconv._incubating.metrics import http_metrics, messaging_metrics, otel_metrics
from opentelemetry.semconv.metrics import http_metrics as stable_http_metrics

from bronze.errors import DeadLetter, Fault, Halted, Misconfigured, Outage, Refusal, Refused, Unavailable
from bronze.objectives import DURATION_S_MAX, delivery_s_max
from bronze.telemetry import schema
from bronze.telemetry.instruments import Instruments
from bronze.telemetry.schema import Metric, registry
from bronze.telemetry.signals import (
    OTHER_SOURCE,
    Operation,
    Outcome,
    Role,
    Stage,
    Step,
    VerifyCheck,
    attribute,
    error_type,
    spans,
)

SOURCES = ("vehicles", "status")

METRICS = pytest.mark.parametrize("metric", registry().metrics.values(), ids=lambda metric: metric.name)

#: The bounds that the semantic conventions advise for durations of requests and messaging, in seconds.
ADVISED_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)

#: The part of UCUM that the semantic conventions use: base units, and annotations for what is counted.
UCUM = {"s", "By", "1"}


def convention_attributes() -> set[str]:
    """Every attribute of the semantic conventions that the SDK is built on."""
    folders = [Path(next(iter(package.__path__))) for package in (stable, incubating)]
    names: set[str] = set()
    for file in (file for folder in folders for file in folder.glob("*_attributes.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Constant):
                names.add(str(node.value.value))
    return names


def convention(name: str) -> tuple[str, str]:
    """Kind and unit of a metric in the semantic conventions."""
    maker = "create_" + name.replace(".", "_")
    for module in (stable_http_metrics, http_metrics, messaging_metrics, otel_metrics):
        if hasattr(module, maker):
            reader = InMemoryMetricReader()
            instrument = getattr(module, maker)(MeterProvider([reader]).get_meter("conventions"))
            kinds = {Counter: "counter", UpDownCounter: "updowncounter", Histogram: "histogram", Gauge: "gauge"}
            kind = next(kind for type_, kind in kinds.items() if isinstance(instrument, type_))
            return kind, instrument.unit
    pytest.fail(f"the conventions have no metric {name}")


def numbers(metric: MetricData) -> list[NumberDataPoint]:
    return [point for point in metric.data.data_points if isinstance(point, NumberDataPoint)]


def collected(reader: InMemoryMetricReader) -> MetricsData:
    data = reader.get_metrics_data()
    assert data is not None
    return data


def test_each_file_has_weavers_second_format() -> None:
    folder = files("bronze.telemetry") / "registry"
    names = {file.name for file in folder.iterdir()}
    assert {"manifest.yaml", "attributes.yaml", "metrics.yaml", "spans.yaml"} <= names
    for name in names - {"manifest.yaml"}:
        document = yaml.safe_load((folder / name).read_text(encoding="utf-8"))
        assert document["file_format"] == "definition/2", name


@pytest.mark.parametrize("section", ["attributes", "metrics", "metric_refinements", "spans", "events"])
def test_each_declaration_has_a_brief_and_a_stability(section: str) -> None:
    folder = files("bronze.telemetry") / "registry"
    for file in folder.iterdir():
        for entry in yaml.safe_load(file.read_text(encoding="utf-8")).get(section, ()):
            assert entry.get("brief") or section.endswith("refinements"), entry
            assert entry.get("stability") == "development" or "ref" in entry, entry
            if section == "attributes":
                assert "members" in entry["type"] or entry.get("examples"), entry


def test_every_name_is_declared_exactly_once() -> None:
    """A name that is declared twice, or a Bronze name that is used and not declared, is an error."""
    declared = {"key": "bronze.x", "type": "string"}
    with pytest.raises(Misconfigured, match=r"bronze\.x is declared twice"):
        schema.parse([{"attributes": [declared, declared]}])
    metric = {"name": "bronze.m", "instrument": "counter", "unit": "1", "attributes": [{"ref": "bronze.y"}]}
    with pytest.raises(Misconfigured, match=r"bronze\.y is used and not declared"):
        schema.parse([{"metrics": [metric]}])


def test_all_other_attributes_are_in_the_semantic_conventions() -> None:
    other = {key for key in registry().attributes if not key.startswith("bronze.")}
    assert other
    assert other <= convention_attributes()


@METRICS
def test_units_are_ucum(metric: Metric) -> None:
    annotated = metric.unit.startswith("{") and metric.unit.endswith("}") and metric.unit[1:-1].isalpha()
    assert annotated or metric.unit in UCUM


#: Metrics with the names of drafts, which no release of the semantic conventions has.
DRAFTS = ("bronze.", "data.staleness.")


@pytest.mark.parametrize("name", [name for name in registry().metrics if not name.startswith(DRAFTS)])
def test_metrics_of_the_conventions_have_their_kind_and_unit(name: str) -> None:
    metric = registry().metrics[name]
    assert (metric.instrument, metric.unit) == convention(metric.name)


@METRICS
def test_histograms_have_buckets_and_every_latency_a_bound_of_two_seconds(metric: Metric) -> None:
    assert bool(metric.buckets) == (metric.instrument == "histogram")
    assert all(low < high for low, high in pairwise(metric.buckets))
    if metric.instrument == "histogram" and metric.unit == "s":
        assert 2 in metric.buckets


def test_durations_with_a_flush_have_a_bound_at_flush_age_plus_two_seconds() -> None:
    for name in ("bronze.delivery.duration", "bronze.stage.duration"):
        assert {1 + 2, 15 + 2} <= set(registry().metrics[name].buckets)
        assert registry().metrics[name].buckets[-1] >= 300


@METRICS
def test_every_emitted_combination_is_declared(metric: Metric) -> None:
    """Each combination has only attributes of the metric, with values of their closed sets."""
    assert bool(metric.emits) == (metric.instrument == "counter")
    for role in metric.emits:
        for combination in metric.combinations(Role(role), SOURCES):
            assert set(combination) <= set(metric.attributes)
            for key, value in combination.items():
                members = registry().attributes[key].members
                assert not members or value in members


@METRICS
def test_no_combination_is_declared_twice(metric: Metric) -> None:
    for role in metric.emits:
        combinations = [tuple(sorted(combination.items())) for combination in metric.combinations(role, SOURCES)]
        assert len(combinations) == len(set(combinations))


@pytest.mark.parametrize(
    ("key", "values"),
    [
        (attribute.bronze_outcome, set(Outcome)),
        (attribute.bronze_stage, set(Stage)),
        (attribute.bronze_step, set(Step)),
        (attribute.bronze_verify_check, set(VerifyCheck)),
        (attribute.error_type, set[StrEnum](Refusal) | set[StrEnum](Outage) | set[StrEnum](Fault)),
    ],
)
def test_the_enums_have_the_declared_values(key: str, values: set[StrEnum]) -> None:
    assert {str(value) for value in values} == set(registry().attributes[key].members)


def test_the_operations_are_declared() -> None:
    emitted = {
        operation
        for metric in registry().metrics.values()
        for products in metric.emits.values()
        for product in products
        for operation in product.get(attribute.messaging_operation_name, ())
    }
    assert emitted <= set(Operation)


def test_no_error_type_has_two_meanings() -> None:
    error_types = [str(code) for code in (*Refusal, *Outage, *Fault)]
    assert len(error_types) == len(set(error_types))


def test_instruments_are_the_registrys_metrics() -> None:
    """The emitted metrics are the declared ones of Bronze: name, unit and description."""
    reader = InMemoryMetricReader()
    instruments = Instruments.create(MeterProvider([reader]).get_meter("test"))
    declared = {name: metric for name, metric in registry().metrics.items() if not metric.instrumentation}
    measure = {"counter": "add", "histogram": "record", "gauge": "set"}
    for metric in declared.values():
        field = metric.name.removeprefix("bronze.").replace(".", "_")
        getattr(getattr(instruments, field), measure[metric.instrument])(1)
    emitted = [
        metric
        for resource_metrics in collected(reader).resource_metrics
        for scope_metrics in resource_metrics.scope_metrics
        for metric in scope_metrics.metrics
    ]
    assert {(m.name, m.unit, m.description) for m in emitted} == {(m.name, m.unit, m.brief) for m in declared.values()}
    for metric_data in emitted:
        if isinstance(metric_data.data, HistogramData):
            bounds = metric_data.data.data_points[0].explicit_bounds
            assert tuple(bounds) == declared[metric_data.name].buckets


def test_all_durations_have_the_same_bounds() -> None:
    """Also each with the objective of deliveries: a percentile of a part is never above that of the whole."""
    durations = [metric for metric in registry().metrics.values() if metric.instrument == "histogram"]
    durations = [metric for metric in durations if metric.unit == "s"]
    for objective_s in (None, delivery_s_max(5)):
        (bounds,) = {metric.bounds(objective_s) for metric in durations}
    assert {*ADVISED_S, DURATION_S_MAX, delivery_s_max(1), delivery_s_max(15), delivery_s_max(5)} < {*bounds}
    assert max(bounds) == 600


def test_a_declared_metric_without_an_instrument_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    known = registry()
    added = Metric("bronze.more", "counter", "1", "", (), (), {}, None)
    extended = schema.Registry("", known.attributes, {**known.metrics, added.name: added}, known.spans, known.events)
    monkeypatch.setattr("bronze.telemetry.instruments.registry", lambda: extended)
    with pytest.raises(Misconfigured, match=r"differ in \['more'\]"):
        Instruments.create(MeterProvider().get_meter("test"))


def test_every_combination_of_a_role_starts_at_zero() -> None:
    for role in Role:
        reader = InMemoryMetricReader()
        Instruments.create(MeterProvider([reader]).get_meter("test")).zero(role, SOURCES)
        data = reader.get_metrics_data()
        zeros = {
            (metric.name, tuple(sorted((point.attributes or {}).items())))
            for resource_metrics in (data.resource_metrics if data else ())
            for scope_metrics in resource_metrics.scope_metrics
            for metric in scope_metrics.metrics
            for point in metric.data.data_points
        }
        assert zeros == {
            (metric.name, tuple(sorted(combination.items())))
            for metric in registry().metrics.values()
            for combination in metric.combinations(role, SOURCES)
        }
        assert zeros or role is Role.VERIFY  # it has no counter


def test_the_first_count_adds_to_the_series_that_was_zero() -> None:
    """To the SDK, an enum member and its plain string are two values, which look the same after the export."""
    reader = InMemoryMetricReader()
    instruments = Instruments.create(MeterProvider([reader]).get_meter("test"))
    instruments.zero(Role.PUBLISHER, ["vehicles"])
    instruments.publisher_submissions.add(
        3, {attribute.bronze_source: "vehicles", attribute.bronze_outcome: Outcome.ACCEPTED}
    )
    metrics = collected(reader).resource_metrics[0].scope_metrics[0].metrics
    (metric,) = (metric for metric in metrics if metric.name == "bronze.publisher.submissions")
    counts = {(point.attributes or {})["bronze.outcome"]: point.value for point in numbers(metric)}
    assert len(metric.data.data_points) == 3
    assert counts == {"accepted": 3, "rejected": 0, "unknown": 0}


def test_a_source_that_is_not_declared_counts_as_other() -> None:
    """Client values are unbounded and never become a label."""
    rejected = {
        attribute.bronze_source: OTHER_SOURCE,
        attribute.bronze_outcome: Outcome.REJECTED,
        attribute.error_type: Refusal.UNKNOWN_SOURCE,
    }
    assert rejected in list(registry().metrics["bronze.records"].combinations(Role.API, SOURCES))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Refused(Refusal.MALFORMED_JSON, ""), Refusal.MALFORMED_JSON),
        (Unavailable(Outage.QUEUE_FULL, ""), Outage.QUEUE_FULL),
        (DeadLetter(), Fault.POISON),
        (Halted(), Fault.HALTED),
        (TimeoutError(), Outage.TIMEOUT),
        (KeyError(), Fault.INTERNAL),
    ],
)
def test_each_error_has_an_error_type_of_the_closed_set(error: Exception, code: str) -> None:
    assert error_type(error) == code


def test_span_names_contain_the_source_and_nothing_of_higher_cardinality() -> None:
    assert spans.upload.name("vehicles") == "upload vehicles"
    assert spans.process.name("vehicles") == "process bronze.vehicles"
    assert spans.encode.name() == "encode parquet"
    for span in registry().spans.values():
        assert "{" not in span.name.replace(schema.SOURCE, "")
