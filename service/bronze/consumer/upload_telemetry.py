"""Telemetry of one upload: its spans and measurements, kept out of the consumer's loop.

    send bronze.{source}           (API)
      process bronze.{source}      one per submission, from read to stored
        upload {source}            a child of that of the oldest sampled submission; the others link to it
          encode parquet
          S3 PutObject

Every histogram is recorded in the context of the span that it measures, so that its exemplar leads to that span.

Every upload is sampled, at any sampling ratio and whatever the clients decide: if none of its submissions is, it begins
a trace of its own. Only if sampling is off is it not sampled; then it has the trace id of its oldest submission.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, Status, StatusCode, set_span_in_context
from opentelemetry.util.types import AttributeValue

from bronze.protocol.chain import AcceptedMessage, ReconciledCut
from bronze.protocol.documents import StoredObject
from bronze.protocol.lane import Lane
from bronze.protocol.message import AcceptedSubmission, unix_time_s
from bronze.telemetry.context import extract, trace_id_hex, traceparent
from bronze.telemetry.sampling import always_sampled
from bronze.telemetry.sdk import Telemetry
from bronze.telemetry.signals import LINKS_MAX, NATS, Outcome, SpanSignal, Stage, attribute, error_type, events, spans

RECEIVE = "receive"
PROCESS = "process"

#: Number of trace ids of submissions that an upload's span lists.
TRACES_MAX = 128


class UploadTelemetry:
    """From the cut to the catalog entry of one object. Always call `close`."""

    def __init__(self, telemetry: Telemetry, lane: Lane, cut: ReconciledCut, read_ns: int) -> None:
        self._telemetry = telemetry
        self._instruments = telemetry.instruments
        self._lane = lane
        self._cut = cut
        self._source: dict[str, AttributeValue] = {attribute.bronze_source: lane.source}
        self._messaging = {
            attribute.messaging_system: NATS,
            attribute.messaging_destination_name: f"bronze.{lane.source}",
        }
        self._began_s = time.perf_counter()
        self._read_ns = read_ns
        self._process: dict[str, Span] = {}
        by_submission: dict[str, list[AcceptedMessage]] = {}
        for message in cut.accepted:
            by_submission.setdefault(message.part.accepted.submission_id, []).append(message)
        for submission_id, messages in by_submission.items():
            self._process[submission_id] = self._start_process(messages)
        self.upload = self._start_upload(cut)
        self.context = set_span_in_context(self.upload, Context())
        self.traceparent = traceparent(self.upload)
        self._instruments.messaging_client_consumed_messages.add(
            len(cut.messages), {**self._messaging, attribute.messaging_operation_name: RECEIVE}
        )
        wait_s = time.time() - unix_time_s(cut.messages[0].time)
        self._instruments.stage_duration.record(
            max(0.0, wait_s), {**self._source, attribute.bronze_stage: Stage.WAIT}, context=self.context
        )

    def _start_upload(self, cut: ReconciledCut) -> Span:
        process = list(self._process.values())
        sampled = [span for span in process if span.get_span_context().trace_flags.sampled]
        # the sampled ones first, since the list is limited
        traces = list(dict.fromkeys(trace_id_hex(span) for span in [*sampled, *process]))
        attributes: dict[str, AttributeValue] = {
            **self._source,
            attribute.bronze_lane: str(self._lane.number),
            attribute.bronze_epoch: self._lane.epoch,
            attribute.bronze_sequence_first: cut.messages[0].sequence,
            attribute.bronze_sequence_last: cut.messages[-1].sequence,
            attribute.bronze_messages: len(cut.messages),
            attribute.bronze_submissions: len(process),
            attribute.bronze_submission_trace_id: traces[:TRACES_MAX],
        }

        def start(context: Context, linked: Sequence[Span]) -> Span:
            return self._telemetry.tracer.start_span(
                spans.upload.name(self._lane.source),
                context=context,
                kind=spans.upload.kind,
                links=[Link(span.get_span_context()) for span in linked[:LINKS_MAX]],
                attributes=attributes,
            )

        if sampled:
            return start(set_span_in_context(sampled[0], Context()), sampled[1:])
        upload = start(always_sampled(), process)
        if process and not upload.get_span_context().trace_flags.sampled:  # sampling is off
            return start(set_span_in_context(process[0], Context()), [])
        return upload

    def _start_process(self, messages: Sequence[AcceptedMessage]) -> Span:
        accepted = messages[0].part.accepted
        return self._telemetry.tracer.start_span(
            spans.process.name(self._lane.source),
            context=extract({"traceparent": accepted.traceparent}),
            kind=spans.process.kind,
            start_time=self._read_ns,
            attributes={
                **self._source,
                **self._messaging,
                **_classification(accepted),
                **({attribute.enduser_id: accepted.principal} if accepted.principal else {}),
                attribute.messaging_operation_name: PROCESS,
                attribute.messaging_operation_type: PROCESS,
                attribute.messaging_batch_message_count: len(messages),
                attribute.bronze_lane: str(self._lane.number),
                attribute.bronze_submission_id: accepted.submission_id,
                attribute.bronze_records: sum(message.part.records for message in messages),
            },
        )

    @contextmanager
    def stage(
        self, stage: Stage, signal: SpanSignal | None = None, attributes: Mapping[str, AttributeValue] | None = None
    ) -> Iterator[None]:
        """One stage; with a `signal`, it has its own span."""
        began_s = time.perf_counter()
        try:
            if signal is None:
                yield
            else:
                with self._telemetry.tracer.start_as_current_span(
                    signal.name(self._lane.source),
                    context=self.context,
                    kind=signal.kind,
                    attributes={**self._source, **(attributes or {})},
                ) as span:
                    try:
                        yield
                    except Exception as error:
                        span.set_attribute(attribute.error_type, error_type(error))
                        raise
        finally:
            self._instruments.stage_duration.record(
                time.perf_counter() - began_s,
                {**self._source, attribute.bronze_stage: stage},
                context=self.context,
            )

    def put_failed(self, error: Exception, began_s: float) -> None:
        """An attempt to write the object failed, and will be retried."""
        kind = error_type(error)
        failed = {**self._source, attribute.bronze_outcome: Outcome.FAILURE}
        self._instruments.uploads.add(1, {**failed, attribute.error_type: kind})
        self._instruments.upload_duration.record(time.perf_counter() - began_s, failed, context=self.context)
        self.upload.add_event(events.retry, {attribute.error_type: kind})

    def put_done(self, written: StoredObject) -> None:
        """The object is in the bucket, and it is the one of this upload."""
        contents, size = written.contents, written.size
        succeeded = {**self._source, attribute.bronze_outcome: Outcome.SUCCESS}
        self._instruments.uploads.add(1, succeeded)
        self._instruments.bytes.add(size, {**self._source, attribute.bronze_outcome: Outcome.STORED})
        self._instruments.upload_duration.record(time.perf_counter() - self._began_s, succeeded, context=self.context)
        self._instruments.upload_size.record(size, self._source, context=self.context)
        self._instruments.upload_records.record(contents.records, self._source, context=self.context)
        self.upload.set_attributes(
            {
                attribute.bronze_file_path: contents.file_path,
                attribute.bronze_records: contents.records,
                attribute.bronze_bytes: size,
                attribute.bronze_classification_id: contents.classifications,
                attribute.bronze_classification_count: contents.classification_count,
                attribute.bronze_duplicates: len(contents.duplicates),
                attribute.bronze_quarantined: len(contents.quarantined),
                attribute.bronze_outcome: Outcome.SUCCESS,
            }
        )

    def stored(self, written: StoredObject) -> None:
        """The object is in the catalog: its records are stored, whichever consumer wrote it."""
        contents, totals = written.contents, written.totals
        add = self._instruments.records.add
        add(totals.records, {**self._source, attribute.bronze_outcome: Outcome.STORED})
        add(totals.quarantined + totals.rejected, {**self._source, attribute.bronze_outcome: Outcome.QUARANTINED})
        add(totals.duplicates, {**self._source, attribute.bronze_outcome: Outcome.DUPLICATE})
        now_s, now_ns = time.time(), time.time_ns()
        written_here = contents.traceparent == self.traceparent
        times = {message.part.accepted.submission_id: message.message.time for message in self._cut.accepted}
        for stored in contents.submissions:
            span = self._process.get(stored.accepted.submission_id)
            if span is None:
                continue
            context = set_span_in_context(span, Context())
            span.set_attribute(attribute.bronze_file_path, contents.file_path)
            span.set_attribute(
                attribute.bronze_outcome,
                Outcome.QUARANTINED if stored.parts_quarantined else Outcome.STORED,
            )
            if written_here:
                span.add_link(self.upload.get_span_context())
            if stored.parts_done == stored.parts:
                self._instruments.delivery_duration.record(
                    max(0.0, now_s - unix_time_s(times[stored.accepted.submission_id])), self._source, context=context
                )
            self._instruments.messaging_process_duration.record(
                (now_ns - self._read_ns) / 1e9,
                {**self._messaging, attribute.messaging_operation_name: PROCESS},
                context=context,
            )

    def close(self, error: BaseException | None = None) -> None:
        """End every span, with the error if the upload failed."""
        for span in [self.upload, *self._process.values()]:
            if error is not None:
                span.set_attribute(attribute.error_type, error_type(error))
                span.set_status(Status(StatusCode.ERROR, str(error)))
            span.end()


def _classification(accepted: AcceptedSubmission) -> dict[str, AttributeValue]:
    listed = [accepted.classification_id] if accepted.classification_id else []
    return {
        attribute.bronze_classification_id: listed,
        attribute.bronze_classification_count: accepted.classification_count,
    }
