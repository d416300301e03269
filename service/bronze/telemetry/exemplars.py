"""Which measurements of a histogram become exemplars: the largest of each bucket and collection interval.

The SDK's own reservoir keeps the last of each bucket; somebody who follows an exemplar looks for the slowest.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.metrics import Exemplar, ExemplarReservoir
from opentelemetry.trace import get_current_span
from opentelemetry.util.types import Attributes

_KEPT = ContextVar("exemplars_kept", default=False)


class LargestOfEachBucket(ExemplarReservoir):
    """Keeps the largest measurement of each bucket until the next collection; of equal ones, the first.

    The SDK creates one for each series and each reader. It offers only the measurements that
    `OTEL_METRICS_EXEMPLAR_FILTER` selects: by default, those in the context of a sampled span. `/metrics` has no
    exemplars, so a scrape leaves them to the next export of the same reader (`kept`).
    """

    def __init__(self, boundaries: Sequence[float], **parameters: Any) -> None:
        super().__init__(**parameters)
        self._boundaries = boundaries
        self._largest: dict[int, Exemplar] = {}
        self._lock = Lock()

    def offer(self, value: float, time_unix_nano: int, attributes: Attributes, context: Context) -> None:
        bucket = bisect_left(self._boundaries, value)  # a bucket includes its upper bound
        with self._lock:
            largest = self._largest.get(bucket)
            if largest is None or value > largest.value:
                span = get_current_span(context).get_span_context()
                ids = (span.span_id, span.trace_id) if span.is_valid else (None, None)
                self._largest[bucket] = Exemplar(attributes, value, time_unix_nano, *ids)

    def collect(self, point_attributes: Attributes) -> list[Exemplar]:
        if _KEPT.get():
            return []
        with self._lock:
            largest, self._largest = self._largest, {}
        of_point = point_attributes or {}
        return [
            Exemplar(
                {key: value for key, value in (exemplar.filtered_attributes or {}).items() if key not in of_point},
                exemplar.value,
                exemplar.time_unix_nano,
                exemplar.span_id,
                exemplar.trace_id,
            )
            for _, exemplar in sorted(largest.items())
        ]


@contextmanager
def kept() -> Iterator[None]:
    """In this context, a collection gets no exemplars and takes none away."""
    token = _KEPT.set(True)
    try:
        yield
    finally:
        _KEPT.reset(token)


def keep_largest(_: type) -> Any:
    """The reservoir of a `View`, for any aggregation; the SDK's type of a builder is not how it calls one."""
    return LargestOfEachBucket
