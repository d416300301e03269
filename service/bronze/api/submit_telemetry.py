"""The spans and measurements of one ingest request.

    POST /v1/ingest/{source}     created by the FastAPI instrumentation; the submission's attributes are added to it
      send bronze.{source}       from the checked body to the durable ack of the queue

A histogram is recorded in the context of the span that it measures, so that its exemplar carries that trace.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry.trace import Span, get_current_span, use_span
from opentelemetry.util.types import AttributeValue

from bronze.errors import ErrorCode, Fault, Gone, Outage, Refused, Unavailable
from bronze.protocol.documents import CLASSIFICATIONS_LISTED_MAX
from bronze.protocol.lane import Lane
from bronze.protocol.message import AcceptedSubmission
from bronze.records.spool import CheckedSubmission
from bronze.telemetry.context import trace_id_hex, traceparent
from bronze.telemetry.sdk import Telemetry
from bronze.telemetry.signals import NATS, OTHER_SOURCE, Outcome, Stage, attribute, error_type, spans

SEND = "send"


@dataclass(frozen=True, slots=True)
class Sending:
    """The send span of a submission, with its `traceparent`."""

    span: Span
    traceparent: str

    def done(self, *, replayed: bool) -> None:
        self.span.set_attribute(attribute.bronze_outcome, Outcome.REPLAYED if replayed else Outcome.ACCEPTED)


class SubmissionTelemetry:
    """The metrics and span attributes of one request. `source` is None if the source is not declared."""

    def __init__(self, telemetry: Telemetry, source: str | None) -> None:
        self._tracer = telemetry.tracer
        self._instruments = telemetry.instruments
        self._source = source
        self._span = get_current_span()
        #: The number of records that a refusal counts: those read so far, at least 1.
        self.records = 1
        if source is not None:
            self._span.set_attribute(attribute.bronze_source, source)

    @property
    def trace_id(self) -> str:
        return trace_id_hex(self._span)

    @contextmanager
    def refusals_counted(self) -> Iterator[None]:
        """Count the records of a submission that is not accepted, by the error."""
        try:
            yield
        except Exception as error:
            self._count_refused(_code(error))
            raise

    def _count_refused(self, code: ErrorCode) -> None:
        # a submission with an unknown outcome may have been accepted
        outcome = Outcome.UNKNOWN if code is Outage.OUTCOME_UNKNOWN else Outcome.REJECTED
        attributes: dict[str, AttributeValue] = {attribute.bronze_outcome: outcome, attribute.error_type: code}
        self._instruments.records.add(
            self.records, {attribute.bronze_source: self._source or OTHER_SOURCE, **attributes}
        )
        self._span.set_attributes(attributes)

    def describe(
        self, accepted: AcceptedSubmission, checked: CheckedSubmission, classifications: Sequence[str]
    ) -> None:
        """Add the submission's attributes to the request's span."""
        self._span.set_attributes(
            {
                attribute.bronze_submission_id: accepted.submission_id,
                attribute.bronze_classification_id: classifications[:CLASSIFICATIONS_LISTED_MAX],
                attribute.bronze_classification_count: accepted.classification_count,
                attribute.bronze_records: checked.records,
                attribute.bronze_bytes: checked.body_bytes,
            }
        )

    @contextmanager
    def sending(self, lane: Lane, accepted: AcceptedSubmission, checked: CheckedSubmission) -> Iterator[Sending]:
        """Record the span and the duration of the send to the queue, also if it fails or is cancelled."""
        messaging: dict[str, AttributeValue] = {
            attribute.messaging_system: NATS,
            attribute.messaging_destination_name: f"bronze.{accepted.source}",
            attribute.messaging_operation_name: SEND,
        }
        failure: dict[str, AttributeValue] = {}
        span = self._tracer.start_span(
            spans.send.name(accepted.source),
            kind=spans.send.kind,
            attributes={
                **messaging,
                attribute.messaging_operation_type: SEND,
                attribute.messaging_batch_message_count: checked.messages,
                attribute.messaging_message_body_size: checked.body_bytes,
                attribute.bronze_source: accepted.source,
                attribute.bronze_lane: str(lane.number),
                attribute.bronze_submission_id: accepted.submission_id,
                attribute.bronze_records: checked.records,
            },
        )
        with use_span(span, end_on_exit=True):
            start_s = time.perf_counter()
            try:
                yield Sending(span, traceparent(span))
            except BaseException as error:
                failure = {attribute.error_type: error_type(error)}
                span.set_attributes(failure)
                raise
            finally:
                duration_s = time.perf_counter() - start_s
                self._instruments.messaging_client_sent_messages.add(checked.messages, messaging | failure)
                self._instruments.messaging_client_operation_duration.record(
                    duration_s, {**messaging, attribute.messaging_operation_type: SEND, **failure}
                )
                self._instruments.stage_duration.record(
                    duration_s, {attribute.bronze_source: accepted.source, attribute.bronze_stage: Stage.ACCEPT}
                )

    def accepted(self, accepted: AcceptedSubmission, checked: CheckedSubmission) -> None:
        """Count a submission that this request made durable."""
        attributes = self._count(accepted, Outcome.ACCEPTED)
        self._instruments.bytes.add(checked.body_bytes, attributes)
        for code, records in checked.rejected_by_code.items():
            self._instruments.records_invalid.add(
                records, {attribute.bronze_source: accepted.source, attribute.error_type: code}
            )

    def replayed(self, accepted: AcceptedSubmission) -> None:
        """Count a retry of a submission that was accepted before, with the same key."""
        self._count(accepted, Outcome.REPLAYED)

    def _count(self, accepted: AcceptedSubmission, outcome: Outcome) -> dict[str, AttributeValue]:
        attributes: dict[str, AttributeValue] = {
            attribute.bronze_source: accepted.source,
            attribute.bronze_outcome: outcome,
        }
        self._instruments.records.add(accepted.records + accepted.rejected, attributes)
        self._span.set_attribute(attribute.bronze_outcome, outcome)
        return attributes


def _code(error: Exception) -> ErrorCode:
    match error:
        case Refused(code=code) | Unavailable(code=code):
            return code
        case Gone():
            return Outage.QUEUE_AWAY
        case _:
            return Fault.INTERNAL
