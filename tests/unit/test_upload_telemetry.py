"""Telemetry of one upload with sampling: each exemplar leads to a sampled trace, or there is none."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from bronze.consumer.upload_telemetry import UploadTelemetry
from bronze.objects.encoder import encode_object
from bronze.protocol.chain import reconcile
from bronze.protocol.lane import Lane, lane_subject
from bronze.protocol.message import Message, Part
from bronze.records import sources
from bronze.telemetry import sdk
from bronze.telemetry.signals import LINKS_MAX, Stage, attribute, spans
from tests import factories

LANE = Lane("vehicles", 0, "20261124T120000000")
SENT = "00000000000000aa"

UPLOAD = ("bronze.upload.duration", "bronze.upload.size", "bronze.upload.records", "bronze.stage.duration")
SUBMISSION = ("bronze.delivery.duration", "messaging.process.duration")

Written = tuple[Sequence[ReadableSpan], Mapping[str, Sequence[tuple[str, int]]]]
Write = Callable[[str], Written]


def message(sequence: int, *, sampled: bool) -> Message:
    """The only message of a submission; its trace id is the sequence."""
    accepted = factories.accepted(
        submission_id=f"s{sequence}",
        trace_id=f"{sequence:032x}",
        traceparent=f"00-{sequence:032x}-{SENT}-0{int(sampled)}",
    )
    headers = Part(accepted, 1, 1, 0, 1).headers()
    subject = lane_subject("vehicles", 0, accepted.submission_id)
    return Message(sequence, subject, "2026-11-24T12:34:56.123456789Z", headers, b'[{"vehicle_id":"a"}]')


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes one object, with one submission per letter, sampled (`x`) or not (`.`).

    Returns its spans, and the trace and span ids of its exemplars by metric.
    """
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")  # only clients sample
    reader, exporter = InMemoryMetricReader(), InMemorySpanExporter()
    telemetry = sdk.assemble(
        Resource({attribute.service_name: "consumer"}),
        metric_readers=[reader],
        span_exporters=[lambda _: exporter],
    )

    def write(submissions: str) -> Written:
        cut = [message(number, sampled=letter == "x") for number, letter in enumerate(submissions, start=1)]
        reconciled = reconcile(LANE, cut, {})
        upload = UploadTelemetry(telemetry, LANE, reconciled, 0)
        with upload.stage(Stage.ENCODE, spans.encode):
            encoded = encode_object(sources.built_in()["vehicles"], LANE, "key", reconciled, upload.traceparent)
        upload.put_done(encoded.contents, len(encoded.body))
        upload.stored(encoded.contents)
        upload.close()
        data = reader.get_metrics_data()
        exemplars = {
            metric.name: [
                (f"{exemplar.trace_id:032x}", exemplar.span_id or 0)
                for point in metric.data.data_points
                for exemplar in point.exemplars
            ]
            for resource_metrics in (data.resource_metrics if data else ())
            for scope_metrics in resource_metrics.scope_metrics
            for metric in scope_metrics.metrics
        }
        telemetry.flush()
        return exporter.get_finished_spans(), exemplars

    yield write
    telemetry.shutdown()


def ids(span: ReadableSpan) -> tuple[str, int]:
    context = span.get_span_context()
    assert context
    return f"{context.trace_id:032x}", context.span_id


@pytest.mark.parametrize("submissions", ["x", "xx", "x.x", ".x", "..x.x.", "xxxxxxxx"])
def test_an_upload_is_sampled_if_any_of_its_submissions_is(submissions: str, write: Write) -> None:
    """It is a child of the oldest sampled submission; each exemplar has the span in which it was measured."""
    ended, exemplars = write(submissions)
    process = {ids(span)[0]: ids(span) for span in ended if span.name == "process bronze.vehicles"}
    (upload,) = [span for span in ended if span.name == "upload vehicles"]
    sampled = [f"{number:032x}" for number, letter in enumerate(submissions, start=1) if letter == "x"]
    assert sorted(process) == sampled
    assert upload.parent
    assert upload.parent.span_id == process[sampled[0]][1]
    assert [f"{link.context.trace_id:032x}" for link in upload.links] == sampled[1:]
    for metric in UPLOAD:
        assert set(exemplars[metric]) == {ids(upload)}, metric
    for metric in SUBMISSION:
        assert exemplars[metric], metric
        assert set(exemplars[metric]) <= set(process.values()), metric


def test_without_a_sampled_submission_there_is_neither_span_nor_exemplar(write: Write) -> None:
    ended, exemplars = write("...")
    assert not ended
    assert not any(exemplars.values())
    assert set(UPLOAD) | set(SUBMISSION) <= set(exemplars)


def test_links_lead_only_to_sampled_submissions(write: Write) -> None:
    """A span keeps 128 links, and an object may have 999 submissions."""
    ended, _ = write("." * 200 + "x" * 200)
    (upload,) = [span for span in ended if span.name == "upload vehicles"]
    assert [link.context.trace_id for link in upload.links] == [*range(202, 202 + LINKS_MAX)]
