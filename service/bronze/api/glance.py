"""The overview and the slowest Bronze writes, from Prometheus: for the page, which works without Grafana.

Queries read the series that came by OTLP (`job="bronze/..."`), as rules and dashboards do. An exemplar of the upload
latency carries the trace of that upload; the lineage of the trace contains the object.
"""

import asyncio
import datetime as dt
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bronze.errors import Outage, Unavailable
from bronze.servers.prometheus import Exemplar, Prometheus
from bronze.telemetry.promql import (
    LEDGER,
    NO_CANARY,
    added,
    counted,
    histogram_series,
    in_ledger,
    missing,
    newest,
    quantile_counted,
)

WINDOW_S = 3600
#: The time limit of all queries together, in seconds.
ASK_S_MAX = 2.0
#: The time for which an answer is used again, so that the load of Prometheus does not grow with the number of users.
FRESH_S = 2.0
SLOWEST_MAX = 10

_RANGE = "1h"
_CONSUMER = f'job="bronze/consumer", {NO_CANARY}'
_LANE = "bronze_source, bronze_lane"
_UPLOADS = f'bronze_upload_duration_seconds{{{_CONSUMER}, bronze_outcome="success"}}'


def _ledger(outcome: str) -> str:
    return "sum(" + in_ledger(f'bronze_ledger_records{{{LEDGER}, {NO_CANARY}, bronze_outcome="{outcome}"}}') + ")"


#: The queries, by the field of `Glance` that they fill.
QUERIES: Mapping[str, str] = {
    "uploads": f"sum({added(f'bronze_ledger_objects{{{LEDGER}, {NO_CANARY}}}', _RANGE)})",
    "failures": counted(f'bronze_uploads_total{{{_CONSUMER}, bronze_outcome="failure"}}', _RANGE),
    "upload_p95_s": quantile_counted(0.95, _UPLOADS, _RANGE),
    "delivery_p95_s": quantile_counted(0.95, f"bronze_delivery_duration_seconds{{{_CONSUMER}}}", _RANGE),
    "delivery_objective_s": f"max(bronze_delivery_objective_seconds{{{_CONSUMER}}})",
    # exact, from the catalog, since the first record
    "stored": _ledger("stored"),
    "quarantined": f"{_ledger('quarantined')} + {_ledger('rejected')}",
    "missing": missing(_CONSUMER),
    "queue_depth": f"sum({newest(f'bronze_queue_depth{{{_CONSUMER}}}', _LANE)})",
    "queue_oldest_age_s": f"max({newest(f'bronze_queue_oldest_age_seconds{{{_CONSUMER}}}', _LANE)})",
}
EXEMPLARS = histogram_series(_UPLOADS, "bucket")


@dataclass(frozen=True)
class BronzeWrite:
    """A Bronze write for which Prometheus has an exemplar."""

    duration_s: float
    source: str
    at: dt.datetime
    trace_id: str


@dataclass(frozen=True)
class Glance:
    """The uploads of the last hour, and the current state of bucket and queue. None: not reported."""

    uploads: float | None
    failures: float | None
    upload_p95_s: float | None
    delivery_p95_s: float | None
    delivery_objective_s: float | None
    stored: float | None
    quarantined: float | None
    missing: float | None
    queue_depth: float | None
    queue_oldest_age_s: float | None
    #: in descending order of duration
    slowest: tuple[BronzeWrite, ...]


class GlanceReader:
    """Reads the overview from Prometheus. Concurrent requests share one answer."""

    def __init__(self, prometheus: Prometheus, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._prometheus = prometheus
        self._monotonic_s = monotonic_s
        self._lock = asyncio.Lock()
        self._answer: Glance | Unavailable = Unavailable(Outage.UNAVAILABLE, "Prometheus was not asked yet")
        self._answered_s = -math.inf

    async def read(self) -> Glance:
        """The overview, at most `FRESH_S` old, within `ASK_S_MAX`. Raises `Unavailable`."""
        async with self._lock:
            if self._monotonic_s() - self._answered_s > FRESH_S:
                try:
                    self._answer = await self._query_all(time.time())
                except Unavailable as error:
                    self._answer = error
                self._answered_s = self._monotonic_s()
        if isinstance(self._answer, Unavailable):
            raise Unavailable(self._answer.code, self._answer.detail)
        return self._answer

    async def _query_all(self, now_s: float) -> Glance:
        try:
            async with asyncio.timeout(ASK_S_MAX):
                exemplars, values = await asyncio.gather(
                    self._prometheus.exemplars(EXEMPLARS, now_s - WINDOW_S, now_s + 1),
                    asyncio.gather(*(self._prometheus.value(query, now_s) for query in QUERIES.values())),
                )
        except TimeoutError as error:
            raise Unavailable(Outage.TIMEOUT, f"Prometheus does not answer within {ASK_S_MAX:g} s") from error
        return Glance(**dict(zip(QUERIES, values, strict=True)), slowest=slowest(exemplars))


def slowest(exemplars: Sequence[Exemplar]) -> tuple[BronzeWrite, ...]:
    """The slowest writes among exemplars, each once. One trace may contain several writes."""
    writes = {
        (exemplar.trace_id, exemplar.value): BronzeWrite(
            exemplar.value,
            exemplar.labels.get("bronze_source", ""),
            dt.datetime.fromtimestamp(exemplar.at_s, dt.UTC),
            exemplar.trace_id,
        )
        for exemplar in exemplars
    }
    return tuple(sorted(writes.values(), key=lambda write: write.duration_s, reverse=True)[:SLOWEST_MAX])
