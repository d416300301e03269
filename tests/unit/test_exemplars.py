"""The exemplars of a histogram: of each bucket and collection interval the largest measurement, with its trace."""

from collections.abc import Iterator, Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from bronze.telemetry import sdk
from bronze.telemetry.exemplars import LargestOfEachBucket
from bronze.telemetry.schema import registry
from bronze.telemetry.signals import Stage, attribute

BOUNDARIES = (1, 2, 5)
SOURCE = {attribute.bronze_source: "vehicles"}


def sampled(trace_id: int) -> Context:
    return set_span_in_context(NonRecordingSpan(SpanContext(trace_id, 1, False, TraceFlags(1))), Context())


def bucket_of(value: float) -> int:
    return next((number for number, bound in enumerate(BOUNDARIES) if value <= bound), len(BOUNDARIES))


@settings(deadline=None)
@given(intervals=st.lists(st.lists(st.sampled_from([0, 0.5, 1, 1.5, 2, 3, 4.9, 5, 6, 60]), max_size=12), max_size=4))
def test_the_largest_of_each_bucket_and_interval_is_kept(intervals: Sequence[Sequence[float]]) -> None:
    """Of equal ones, the first; nothing is kept over a collection."""
    reservoir = LargestOfEachBucket(boundaries=BOUNDARIES)
    for interval in intervals:
        expected: dict[int, tuple[float, int]] = {}
        for trace_id, value in enumerate(interval, start=1):
            reservoir.offer(value, trace_id, SOURCE, sampled(trace_id))
            if value > expected.get(bucket_of(value), (-1, 0))[0]:
                expected[bucket_of(value)] = value, trace_id
        found = [(exemplar.value, exemplar.trace_id) for exemplar in reservoir.collect(SOURCE)]
        assert found == [expected[bucket] for bucket in sorted(expected)]


def test_an_exemplar_has_the_attributes_that_its_series_lacks() -> None:
    reservoir = LargestOfEachBucket(boundaries=BOUNDARIES)
    reservoir.offer(1, 7, {**SOURCE, "other": "x"}, sampled(3))
    reservoir.offer(3, 8, None, Context())
    assert reservoir.collect(SOURCE) == [Exemplar({"other": "x"}, 1, 7, 1, 3), Exemplar({}, 3, 8, None, None)]


@pytest.fixture
def readers() -> Iterator[tuple[sdk.Telemetry, Sequence[InMemoryMetricReader]]]:
    readers = [InMemoryMetricReader(), InMemoryMetricReader()]
    telemetry = sdk.assemble(
        Resource({attribute.service_name: "consumer"}), metric_readers=readers, delivery_objective_s=4
    )
    yield telemetry, readers
    telemetry.shutdown()


def exemplars(reader: InMemoryMetricReader) -> Mapping[str, Sequence[tuple[float, int | None]]]:
    data = reader.get_metrics_data()
    return {
        metric.name: [
            (e.value, e.trace_id) for point in metric.data.data_points for e in getattr(point, "exemplars", ())
        ]
        for resource_metrics in (data.resource_metrics if data else ())
        for scope_metrics in resource_metrics.scope_metrics
        for metric in scope_metrics.metrics
    }


def test_each_reader_and_scrape_has_its_own_exemplars(
    readers: tuple[sdk.Telemetry, Sequence[InMemoryMetricReader]],
) -> None:
    """A scrape of `/metrics` between two exports takes no exemplar away from the second."""
    telemetry, (export, other) = readers
    record = telemetry.instruments.upload_duration.record
    record(2.4, SOURCE, context=sampled(1))
    telemetry.metrics()
    assert exemplars(other)["bronze.upload.duration"] == [(2.4, 1)]
    record(2.1, SOURCE, context=sampled(2))
    telemetry.metrics()
    assert exemplars(export)["bronze.upload.duration"] == [(2.4, 1)]
    assert exemplars(other)["bronze.upload.duration"] == [(2.1, 2)]
    assert exemplars(export)["bronze.upload.duration"] == []


class Exported(MetricExporter):
    """An exporter that keeps the exemplars of the upload duration, by export."""

    def __init__(self) -> None:
        super().__init__()
        self.exemplars: list[list[tuple[float, int | None]]] = []

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: object) -> MetricExportResult:
        self.exemplars += [
            [(exemplar.value, exemplar.trace_id) for point in metric.data.data_points for exemplar in point.exemplars]
            for resource_metrics in metrics_data.resource_metrics
            for scope_metrics in resource_metrics.scope_metrics
            for metric in scope_metrics.metrics
            if metric.name == "bronze.upload.duration"
        ]
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: object) -> None:
        pass


def test_a_scrape_leaves_the_exemplars_to_the_export_of_the_same_reader() -> None:
    """Exports and scrapes share a reader, so that the SDK aggregates each measurement once. A shutdown exports, too."""
    exporter = Exported()
    telemetry = sdk.assemble(Resource({attribute.service_name: "consumer"}), metric_exporters=[exporter])
    record = telemetry.instruments.upload_duration.record
    record(2.4, SOURCE, context=sampled(1))
    assert b"bronze_upload_duration_seconds_count{" in telemetry.metrics()[0]
    telemetry.flush()
    telemetry.flush()
    record(2.1, SOURCE, context=sampled(2))
    telemetry.metrics()
    telemetry.shutdown()
    assert exporter.exemplars == [[(2.4, 1)], [], [(2.1, 2)]]


@pytest.mark.parametrize("name", [metric.name for metric in registry().metrics.values() if metric.buckets])
def test_every_declared_histogram_keeps_the_largest(
    name: str, readers: tuple[sdk.Telemetry, Sequence[InMemoryMetricReader]]
) -> None:
    """Also those of libraries; and the views leave the declared buckets as they are."""
    telemetry, (reader, _) = readers
    metric = registry().metrics[name]
    instrument = telemetry._meters.get_meter("library").create_histogram(
        name, metric.unit, metric.brief, explicit_bucket_boundaries_advisory=metric.buckets
    )
    low, bound = metric.buckets[1], metric.buckets[2]
    for trace_id, value in enumerate([(low + bound) / 2, bound, (2 * low + bound) / 3], start=1):
        instrument.record(value, SOURCE, sampled(trace_id))
    assert exemplars(reader)[name] == [(bound, 2)]


def test_stages_have_the_slowest_of_each_stage(
    readers: tuple[sdk.Telemetry, Sequence[InMemoryMetricReader]],
) -> None:
    telemetry, (reader, _) = readers
    for trace_id, (stage, value) in enumerate([(Stage.PUT, 0.03), (Stage.PUT, 0.04), (Stage.ENCODE, 0.03)], start=1):
        telemetry.instruments.stage_duration.record(
            value, {**SOURCE, attribute.bronze_stage: stage}, context=sampled(trace_id)
        )
    assert sorted(exemplars(reader)["bronze.stage.duration"]) == [(0.03, 3), (0.04, 2)]
