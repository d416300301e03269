"""Telemetry of one upload with sampling: every upload has a trace, and each exemplar leads to one."""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from bronze.consumer.upload_telemetry import TRACES_MAX, UploadTelemetry
from bronze.objects.encoder import encode_object
from bronze.protocol.chain import reconcile
from bronze.protocol.documents import Contents, trace_id_of
from bronze.protocol.lane import Lane, lane_subject
from bronze.protocol.message import Message, Part
from bronze.records import sources
from bronze.telemetry import sdk
from bronze.telemetry.context import extract, traceparent
from bronze.telemetry.signals import LINKS_MAX, Stage, attribute, spans
from tests import factories

LANE = Lane("vehicles", 0, "20261124T120000000")
SENT = "00000000000000aa"

UPLOAD = ("bronze.upload.duration", "bronze.upload.size", "bronze.upload.records", "bronze.stage.duration")
SUBMISSION = ("bronze.delivery.duration", "messaging.process.duration")

Written = tuple[Sequence[ReadableSpan], Mapping[str, Sequence[tuple[str, int]]]]
Write = Callable[[str], Written]


def message(sequence: int, parent: str) -> Message:
    """The only message of a submission, with a `traceparent`."""
    accepted = factories.accepted(submission_id=f"s{sequence}", trace_id=trace_id_of(parent), traceparent=parent)
    headers = Part(accepted, 1, 1, 0, 1).headers()
    subject = lane_subject("vehicles", 0, accepted.submission_id)
    return Message(sequence, subject, "2026-11-24T12:34:56.123456789Z", headers, b'[{"vehicle_id":"a"}]')


class Consumer:
    """Writes objects and records their telemetry, with the sampler of the environment."""

    def __init__(self) -> None:
        self._reader, self._exporter = InMemoryMetricReader(), InMemorySpanExporter()
        self.telemetry = sdk.assemble(
            Resource({attribute.service_name: "consumer"}),
            metric_readers=[self._reader],
            span_exporters=[lambda _: self._exporter],
        )

    def write(self, parents: Sequence[str]) -> Contents:
        """One object, with one submission for each `traceparent`."""
        cut = [message(number, parent) for number, parent in enumerate(parents, start=1)]
        reconciled = reconcile(LANE, cut, {})
        upload = UploadTelemetry(self.telemetry, LANE, reconciled, 0)
        with upload.stage(Stage.ENCODE, spans.encode):
            encoded = encode_object(sources.built_in()["vehicles"], LANE, "key", reconciled, upload.traceparent)
        with upload.stage(Stage.PUT, spans.put):
            pass
        upload.put_done(encoded.stored)
        upload.stored(encoded.stored)
        upload.close()
        return encoded.contents

    def exemplars(self) -> dict[str, list[tuple[str, int]]]:
        """The trace and span ids of the exemplars since the last call, by metric."""
        data = self._reader.get_metrics_data()
        return {
            metric.name: [
                (f"{exemplar.trace_id:032x}", exemplar.span_id or 0)
                for point in metric.data.data_points
                for exemplar in point.exemplars
            ]
            for resource_metrics in (data.resource_metrics if data else ())
            for scope_metrics in resource_metrics.scope_metrics
            for metric in scope_metrics.metrics
        }

    def spans(self) -> Sequence[ReadableSpan]:
        """The ended spans. Read exemplars before: the flush collects metrics too."""
        self.telemetry.flush()
        return self._exporter.get_finished_spans()


@pytest.fixture
def consumer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Consumer]]:
    """Makes a consumer with a sampler."""
    made: list[Consumer] = []

    def make(sampler: str, ratio: float | None = None, **variables: str) -> Consumer:
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
        if ratio is not None:
            monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", str(ratio))
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        made.append(Consumer())
        return made[-1]

    yield make
    for consumer in made:
        consumer.telemetry.shutdown()


@pytest.fixture
def write(consumer: Callable[..., Consumer]) -> Write:
    """Writes one object, with one submission per letter, sampled (`x`) or not (`.`); its trace id is its number. Only
    clients sample.

    Returns its spans, and the trace and span ids of its exemplars by metric.
    """
    clients_sample = consumer("parentbased_always_off")

    def write(submissions: str) -> Written:
        clients_sample.write(
            [f"00-{number:032x}-{SENT}-0{int(letter == 'x')}" for number, letter in enumerate(submissions, start=1)]
        )
        exemplars = clients_sample.exemplars()
        return clients_sample.spans(), exemplars

    return write


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


def test_if_sampling_is_off_there_is_neither_span_nor_exemplar_without_a_sampled_submission(write: Write) -> None:
    ended, exemplars = write("...")
    assert not ended
    assert not any(exemplars.values())
    assert set(UPLOAD) | set(SUBMISSION) <= set(exemplars)


def test_links_lead_only_to_sampled_submissions(write: Write) -> None:
    """A span keeps 128 links, and an object may have 999 submissions."""
    ended, _ = write("." * 200 + "x" * 200)
    (upload,) = [span for span in ended if span.name == "upload vehicles"]
    assert [link.context.trace_id for link in upload.links] == [*range(202, 202 + LINKS_MAX)]


def whole(upload: ReadableSpan, ended: Sequence[ReadableSpan]) -> bool:
    """Whether the parent of the upload, if it has one, and all its children were exported."""
    exported = {ids(span) for span in ended}
    of_upload = [span.name for span in ended if span.parent and span.parent.span_id == ids(upload)[1]]
    parent = upload.parent is None or (f"{upload.parent.trace_id:032x}", upload.parent.span_id) in exported
    return parent and sorted(of_upload) == ["S3 PutObject", "encode parquet"]


SAMPLERS = [
    *((name, ratio) for name in ("parentbased_traceidratio", "traceidratio") for ratio in (1, 0.1, 0.01)),
    ("parentbased_always_on", None),
    ("always_on", None),
]
OBJECTS = 60


@pytest.mark.parametrize("clients", ["without a traceparent", "with the sampled flag off"])
@pytest.mark.parametrize(("sampler", "ratio"), SAMPLERS)
def test_every_upload_has_a_whole_trace_at_any_ratio(
    sampler: str,
    ratio: float | None,
    clients: str,
    consumer: Callable[..., Consumer],
    record_property: Callable[[str, object], None],
) -> None:
    """Its span and its children are exported, all its exemplars lead to it, and the object carries its trace."""
    process = consumer(sampler, ratio)
    contents, exemplars = [], []
    for _ in range(OBJECTS):
        parents = []
        for _ in range(3):
            client = extract({"traceparent": f"00-{secrets.token_hex(16)}-{SENT}-00"} if "flag off" in clients else {})
            sent = process.telemetry.tracer.start_span("send", context=client or Context())
            sent.end()
            parents.append(traceparent(sent))
        contents.append(process.write(parents))
        found = process.exemplars()
        exemplars.append({id_ for metric in UPLOAD for id_ in found[metric]})
        assert all(found[metric] for metric in UPLOAD)
    ended = process.spans()
    uploads = [span for span in ended if span.name == "upload vehicles"]
    complete = [upload for upload in uploads if whole(upload, ended)]
    record_property("objects", OBJECTS)
    record_property("whole traces", len(complete))
    assert len(complete) == len(uploads) == OBJECTS
    assert exemplars == [{ids(upload)} for upload in uploads]
    assert [written.traceparent.split("-")[1:3] for written in contents] == [
        [trace_id, f"{span_id:016x}"] for trace_id, span_id in map(ids, uploads)
    ]
    sampled = {ids(span)[0] for span in ended if span.name == "process bronze.vehicles"}
    for upload in uploads:
        assert (upload.parent is not None) == (ids(upload)[0] in sampled)


def test_an_upload_without_a_sampled_submission_names_all_its_submissions(consumer: Callable[..., Consumer]) -> None:
    """By links, and by an attribute, since Zipkin shows no links; both are limited."""
    process = consumer("parentbased_traceidratio", 0.5)
    process.write([f"00-{number:032x}-{SENT}-00" for number in range(1, 201)])
    (upload,) = [span for span in process.spans() if span.name == "upload vehicles"]
    assert upload.parent is None
    assert [link.context.trace_id for link in upload.links] == [*range(1, LINKS_MAX + 1)]
    assert upload.attributes
    listed = [f"{number:032x}" for number in range(1, TRACES_MAX + 1)]
    assert upload.attributes[attribute.bronze_submission_trace_id] == tuple(listed)
    assert upload.attributes[attribute.bronze_submissions] == 200


def test_an_upload_names_the_traces_of_its_submissions_the_sampled_ones_first(write: Write) -> None:
    """Each once: a client may send several submissions in one trace. Leading zeros are kept."""
    ended, _ = write("." * 200 + "x" * 3)
    (upload,) = [span for span in ended if span.name == "upload vehicles"]
    assert upload.attributes
    listed = [f"{number:032x}" for number in (201, 202, 203, *range(1, TRACES_MAX - 2))]
    assert upload.attributes[attribute.bronze_submission_trace_id] == tuple(listed)


@pytest.mark.parametrize(
    ("sampler", "ratio"),
    [
        ("always_off", None),
        ("parentbased_always_off", None),
        ("traceidratio", 0),
        ("parentbased_traceidratio", 0),
    ],
)
def test_a_sampler_that_is_always_off_stays_off(
    sampler: str, ratio: float | None, consumer: Callable[..., Consumer]
) -> None:
    """The object then carries the trace of its oldest submission."""
    process = consumer(sampler, ratio)
    contents = process.write([f"00-{number:032x}-{SENT}-00" for number in (7, 8)])
    assert trace_id_of(contents.traceparent) == f"{7:032x}"
    assert not any(process.exemplars().values())
    assert not process.spans()


def test_a_disabled_sdk_stays_off(consumer: Callable[..., Consumer]) -> None:
    process = consumer("parentbased_traceidratio", 0.5, OTEL_SDK_DISABLED="true")
    contents = process.write([f"00-{7:032x}-{SENT}-00"])
    assert trace_id_of(contents.traceparent) == f"{7:032x}"
    assert not any(process.exemplars().values())
    assert not process.spans()
