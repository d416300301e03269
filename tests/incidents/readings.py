"""What was true, second by second, by readings that no telemetry is part of: what clients were answered, what a proxy
saw at the bucket, what its objects contain, and when a fault was there.
"""

import bisect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from bronze.objectives import DURATION_S_MAX
from local.evidence import SOURCES, source_of
from local.stack import FLUSH_AGE_S
from prometheus.verdict import Part
from tests.incidents.senders import ACCEPTED, Attempt
from tests.proxy import Put
from tests.truth.bucket import Bucket

#: The objective of a delivery.
LATE_S = FLUSH_AGE_S + DURATION_S_MAX
#: What a client or an upload met counts for so long: there is not one of each in every second.
MET_S = 10
#: An upload that waits without an end of another one.
HANGS_S = 20

Interval = tuple[float, float]


@dataclass(frozen=True)
class Readings:
    """Times are in seconds since 1970. `stored` is when each submission was in the bucket."""

    began: float
    ended: float
    attempts: Sequence[Attempt]
    puts: Sequence[Put]
    stored: Mapping[str, float]
    faults: Sequence[tuple[str, float, float]]

    @classmethod
    def of(
        cls,
        began: float,
        ended: float,
        attempts: Sequence[Attempt],
        puts: Sequence[Put],
        bucket: Bucket,
        faults: Sequence[tuple[str, float, float]],
    ) -> "Readings":
        answered = {put.key: put.ended for put in puts if put.succeeded}
        stored: dict[str, float] = {}
        for found in bucket.objects.values():
            at = answered.get(found.key, found.written_at)
            stored |= {submission_id: max(at, stored.get(submission_id, 0)) for submission_id in found.rows}
        return cls(began, ended, list(attempts), list(puts), stored, list(faults))

    # --- what was sent and stored

    @cached_property
    def accepted(self) -> Sequence[Attempt]:
        return sorted((a for a in self.attempts if a.status == ACCEPTED), key=lambda a: a.ended)

    @cached_property
    def uploads(self) -> Sequence[Put]:
        """The uploads of the sources that succeeded, in the order of their ends."""
        return sorted((put for put in self._of_sources if put.succeeded), key=lambda put: put.ended)

    @cached_property
    def writes(self) -> Sequence[tuple[float, float]]:
        """The end and the duration of each upload, from its first attempt on."""
        first: dict[str, float] = {}
        for put in self._of_sources:
            first[put.key] = min(put.began, first.get(put.key, math.inf))
        return [(put.ended, put.ended - first[put.key]) for put in self.uploads]

    @cached_property
    def failures(self) -> Sequence[Put]:
        return sorted((put for put in self._of_sources if put.failed), key=lambda put: put.ended)

    @property
    def _of_sources(self) -> Sequence[Put]:
        return [put for put in self.puts if source_of(put.key) in SOURCES]

    @cached_property
    def deliveries(self) -> Sequence[tuple[float, float]]:
        """The end and the duration of each delivery, from a client's 202 to the bucket's answer."""
        ends = ((self.stored.get(a.submission_id), a.ended) for a in self.accepted)
        return sorted((at, max(0.0, at - accepted)) for at, accepted in ends if at)

    # --- by second since `began`

    @cached_property
    def oldest_s(self) -> Sequence[float]:
        """The age of the oldest submission that is accepted and not in the bucket, at each second."""
        return self._waiting(lambda waiting, now: max((now - a.ended for a in waiting), default=0.0))

    @cached_property
    def waiting(self) -> Sequence[float]:
        """The records that are accepted and not in the bucket, at each second."""
        return self._waiting(lambda waiting, now: float(sum(a.records for a in waiting)))

    def _waiting(self, measure: Callable[[Sequence[Attempt], float], float]) -> Sequence[float]:
        found, open_since, todo = [], [], list(reversed(self.accepted))
        for second in range(self.seconds):
            now = self.began + second
            while todo and todo[-1].ended <= now:
                open_since.append(todo.pop())
            open_since = [a for a in open_since if self.stored.get(a.submission_id, math.inf) > now]
            found.append(measure(open_since, now))
        return found

    @property
    def seconds(self) -> int:
        return int(self.ended - self.began) + 1

    @cached_property
    def bad(self) -> Mapping[Part, Sequence[bool]]:
        """When a part was not well."""
        late = [age > LATE_S for age in self.oldest_s]
        no_consumer = self._during(self._faults("consumer"))
        ends = [put.ended for put in self.uploads]
        hangs = [
            is_late and bisect.bisect(ends, at) == bisect.bisect(ends, at - HANGS_S)
            for at, is_late in ((self.began + second, is_late) for second, is_late in enumerate(late))
        ]
        unanswered = self._during(
            (a.began + DURATION_S_MAX, a.ended + MET_S) for a in self.attempts if a.seconds > DURATION_S_MAX
        )
        refused = self._during((a.ended, a.ended + MET_S) for a in self.attempts if a.failed)
        full = self._during((a.ended, a.ended + MET_S) for a in self.attempts if a.status == 503)
        failed = self._during((p.ended, p.ended + MET_S) for p in self.puts if p.failed)
        slow = self._during(
            (p.began + DURATION_S_MAX, p.ended + MET_S) for p in self.puts if p.seconds > DURATION_S_MAX
        )
        no_metrics = self._during(self._faults("otel-collector"))
        return {
            Part.INGEST: _any(unanswered, refused),
            Part.QUEUE: _any(no_consumer, late, full),
            Part.UPLOAD: _any(no_consumer, hangs, failed, slow),
            Part.TELEMETRY: no_metrics,
        }

    @property
    def ready(self) -> float:
        """When every part of the system had started."""
        return max((ended for _, ended in self._faults("start")), default=-math.inf)

    def _faults(self, what: str) -> Sequence[Interval]:
        return [(began, ended) for name, began, ended in self.faults if name == what]

    def _during(self, intervals: Iterable[Interval]) -> Sequence[bool]:
        """Whether a second is in one of the intervals."""
        found = [False] * self.seconds
        for began, ended in intervals:
            if ended > began:
                last = min(ended - self.began, self.seconds - 1)
                for second in range(max(0, math.ceil(began - self.began)), math.floor(last) + 1):
                    found[second] = True
        return found


def _any(*found: Sequence[bool]) -> Sequence[bool]:
    return [any(at) for at in zip(*found, strict=True)]
