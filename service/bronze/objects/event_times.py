"""When what the rows of an object are about happened, and how late they were received."""

import pyarrow as pa
import pyarrow.compute as pc

from bronze.protocol.documents import EventTimes

_DAY_US = 86_400 * 10**6


class EventTimesOfObject:
    """The event times of an object that is being written. A row without one does not count."""

    def __init__(self, field: str | None) -> None:
        """`field` is the one that its source declares as its event time."""
        self._name = field
        self._bounds: list[pa.Scalar] = []
        self._lateness: list[pa.Array] = []

    def add(self, batch: pa.RecordBatch) -> None:
        if self._name is None:
            return
        column = batch.column(self._name)
        if column.null_count == len(column):
            return
        bounds = pc.min_max(column)
        self._bounds += [bounds["min"], bounds["max"]]
        received = batch.column("_received_at").cast(pa.int64())
        happened = column.cast(pa.timestamp("us")).cast(pa.int64())
        if pa.types.is_date(column.type):  # it may have happened at any time of the day
            happened = pc.add(happened, _DAY_US)
        self._lateness.append(pc.subtract(received, happened))

    @property
    def times(self) -> EventTimes | None:
        """The least and the greatest; None without any."""
        if self._name is None or not self._bounds:
            return None
        values = [bound.as_py() for bound in self._bounds]
        return EventTimes(self._name, min(values).isoformat(), max(values).isoformat())

    @property
    def lateness_s(self) -> float | None:
        """The median of the times from the events to their acceptance; 0 if they are in the future."""
        if not self._lateness:
            return None
        median: int = pc.quantile(pa.chunked_array(self._lateness), 0.5, interpolation="lower")[0].as_py()
        return max(0.0, median / 1e6)
