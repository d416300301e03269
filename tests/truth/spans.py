"""The trace store of the run: an OTLP receiver that keeps of each span what is compared, and can be stopped."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from local.otlp import Receiver


@dataclass(frozen=True, slots=True)
class Span:
    trace_id: str
    parent: str
    name: str
    role: str
    began_s: float
    ended_s: float
    arrived_s: float

    @property
    def of_canary(self) -> bool:
        return self.name.endswith("canary")

    @property
    def duration_s(self) -> float:
        return self.ended_s - self.began_s


@dataclass
class Spans:
    """The spans that arrived, by their ids."""

    receiver: Receiver
    found: dict[str, Span] = field(default_factory=dict)
    #: Spans that came more than once, as an export does whose answer was lost.
    repeated: int = 0

    def take(self) -> None:
        """Takes over what the receiver got, so that it need not keep the requests."""
        requests, self.receiver.requests = self.receiver.requests, []
        taken = Receiver(self.receiver.port, requests)
        for resource, span in taken.spans:
            span_id = span.span_id.hex()
            if span_id in self.found:
                self.repeated += 1
            self.found[span_id] = Span(
                span.trace_id.hex(),
                span.parent_span_id.hex(),
                span.name,
                resource["service.name"],
                span.start_time_unix_nano / 1e9,
                span.end_time_unix_nano / 1e9,
                time.time(),
            )

    def requests(self) -> dict[str, Span]:
        """The SERVER spans of submissions, by trace."""
        return {s.trace_id: s for s in self._named("POST /v1/ingest/") if s.role == "api"}

    def count(self, began: float, ended: float) -> int:
        """The spans that arrived in a time range. Their own times may be wrong."""
        return sum(began <= span.arrived_s < ended for span in self.found.values())

    # --- durations of spans that ended in a time range

    def request_s(self, began: float, ended: float) -> list[float]:
        return [s.duration_s for s in self.requests().values() if began <= s.ended_s < ended]

    def upload_s(self, began: float, ended: float) -> list[float]:
        """From the begin of an upload to the end of its PutObject, as its histogram measures."""
        return [
            max(0.0, put.ended_s - upload.began_s)  # below 0 if the clock was set back meanwhile
            for put in self._named("S3 PutObject")
            if began <= put.ended_s < ended and (upload := self.found.get(put.parent)) and not upload.of_canary
        ]

    def delivery_s(self, began: float, ended: float) -> list[float]:
        """From the queue's acknowledgement to the end of the processing, of each submission."""
        sent = {span.trace_id: span.ended_s for span in self._named("send bronze.")}
        return [
            max(0.0, span.ended_s - sent[span.trace_id])
            for span in self._named("process bronze.")
            if began <= span.ended_s < ended and span.trace_id in sent
        ]

    def _named(self, begin: str) -> Iterable[Span]:
        return (span for span in self.found.values() if span.name.startswith(begin) and not span.of_canary)
