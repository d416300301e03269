"""The span and the measurements of each attempt to send an event."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.trace import Link, use_span
from opentelemetry.util.types import AttributeValue

from bronze.notify.event import Event, SnapshotEvent, traceparent_of
from bronze.telemetry.context import extract, span_context
from bronze.telemetry.sdk import Telemetry
from bronze.telemetry.signals import Outcome, attribute, error_type, spans


class NotifyTelemetry:
    """The telemetry of the role."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._tracer = telemetry.tracer
        self._instruments = telemetry.instruments

    @contextmanager
    def sending(self, receiver: str, event: Event) -> Iterator[None]:
        """Record an attempt that the caller makes. Its span is the root of a trace of its own, with a link to the
        upload of the object, or to the commit of the snapshot.
        """
        written = span_context(extract({"traceparent": traceparent_of(event) or ""}))
        span = self._tracer.start_span(
            spans.notify.name(),
            context=Context(),
            kind=spans.notify.kind,
            links=[Link(written)] if written.is_valid else [],
            attributes={
                attribute.bronze_receiver: receiver,
                attribute.bronze_source: event.source,
                **_named(event),
            },
        )
        ended: dict[str, AttributeValue] = {attribute.bronze_outcome: Outcome.SUCCESS}
        with use_span(span, end_on_exit=True, record_exception=False):
            try:
                yield
            except Exception as error:
                ended = {attribute.bronze_outcome: Outcome.FAILURE, attribute.error_type: error_type(error)}
                raise
            finally:
                span.set_attributes(ended)
                self._instruments.notify_events.add(1, {attribute.bronze_receiver: receiver, **ended})

    def report(self, receiver: str, lag_s: float) -> None:
        """Report how far a receiver is behind."""
        self._instruments.notify_lag.set(lag_s, {attribute.bronze_receiver: receiver})


def _named(event: Event) -> Mapping[str, AttributeValue]:
    if isinstance(event, SnapshotEvent):
        return {attribute.bronze_table_snapshot_id: event.snapshot_id}
    return {attribute.bronze_file_path: event.file_path or ""}
