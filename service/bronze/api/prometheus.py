"""The state at a glance and the slowest Bronze writes, from Prometheus: for the page, where there is no Grafana.

Queries read what came by OTLP (`job="bronze/..."`), as rules and dashboards do. A point of the upload's latency has an
exemplar, the trace of that very write; from the trace the lineage knows the object.
"""

import asyncio
import datetime as dt
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

WINDOW_S = 3600
#: For all that is asked at once.
ASK_S_MAX = 2.0
#: So long an answer is shown again: however many look, Prometheus is asked once.
FRESH_S = 2.0
SLOWEST_MAX = 10
#: The line of the objective on uploads; prometheus/rules.py has it for the alerts.
UPLOAD_S_MAX = 2.0

_RANGE = "1h"
_API, _CONSUMER = 'job="bronze/api"', 'job="bronze/consumer"'
_UPLOADS = f'bronze_upload_duration_seconds_bucket{{{_CONSUMER}, bronze_outcome="success"}}'


def _counted(series: str, by: str = "") -> str:
    """How often in the hour, exactly; why not just `increase`: grafana/promql.py."""
    return f"""\
sum{by} (
  (increase({series}[{_RANGE}]) and resets({series}[{_RANGE}]) > 0)
  or (max_over_time({series}[{_RANGE}]) - {series} offset {_RANGE})
  or max_over_time({series}[{_RANGE}])
)"""


def _p95(buckets: str) -> str:
    return f"histogram_quantile(0.95, {_counted(buckets, ' by (le)')}) >= 0"


def _records(job: str, outcome: str) -> str:
    return _counted(f'bronze_records_total{{{job}, bronze_outcome="{outcome}"}}')


#: By the field of `Glance` that each answers.
QUERIES: Mapping[str, str] = {
    "uploads": _counted(f'bronze_uploads_total{{{_CONSUMER}, bronze_outcome="success"}}'),
    "failures": _counted(f'bronze_uploads_total{{{_CONSUMER}, bronze_outcome="failure"}}'),
    "upload_p95_s": _p95(_UPLOADS),
    "delivery_p95_s": _p95(f"bronze_delivery_duration_seconds_bucket{{{_CONSUMER}}}"),
    "delivery_objective_s": f"max(bronze_delivery_objective_seconds{{{_CONSUMER}}})",
    "accepted": _records(_API, "accepted"),
    "stored": _records(_CONSUMER, "stored"),
    "quarantined": _records(_CONSUMER, "quarantined"),
    "duplicates": _records(_CONSUMER, "duplicate"),
    # none are known for the first ten minutes
    "missing": "sum(bronze_source:records_missing:increase1h) or vector(0)",
    "queue_depth": f"sum(max by (bronze_source, bronze_lane) (bronze_queue_depth{{{_CONSUMER}}}))",
    "queue_oldest_age_s": f"max(bronze_queue_oldest_age_seconds{{{_CONSUMER}}})",
}
EXEMPLARS = _UPLOADS


@dataclass(frozen=True)
class BronzeWrite:
    """A Bronze write that Prometheus has an exemplar of."""

    duration_s: float
    source: str
    at: dt.datetime
    trace_id: str


@dataclass(frozen=True)
class Glance:
    """The last hour's counts and percentiles, and the queue as it is now. None is what nobody has reported."""

    uploads: float | None
    failures: float | None
    upload_p95_s: float | None
    delivery_p95_s: float | None
    delivery_objective_s: float | None
    accepted: float | None
    stored: float | None
    quarantined: float | None
    duplicates: float | None
    missing: float | None
    queue_depth: float | None
    queue_oldest_age_s: float | None
    #: The slowest first.
    slowest: tuple[BronzeWrite, ...]

    @property
    def in_flight(self) -> float | None:
        """Records accepted in the hour and not ended: the balance, which returns to 0 when nothing comes in."""
        if self.accepted is None:
            return None
        return self.accepted - sum(ended or 0 for ended in (self.stored, self.quarantined, self.duplicates))


class PrometheusUnavailable(Exception):
    """Prometheus does not answer, or something else does; says what happened."""


class Prometheus:
    """What the page asks of Prometheus. Whoever asks while another does gets the same answer."""

    def __init__(self, client: httpx.AsyncClient, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._monotonic_s = monotonic_s
        self._asking = asyncio.Lock()
        self._answer: Glance | PrometheusUnavailable | None = None
        self._answered_s = -math.inf

    async def glance(self) -> Glance:
        """The state as of `FRESH_S` ago or later, within `ASK_S_MAX`. Raises `PrometheusUnavailable`."""
        async with self._asking:
            if self._monotonic_s() - self._answered_s > FRESH_S:
                try:
                    self._answer = await self._ask(time.time())
                except PrometheusUnavailable as error:
                    self._answer = error
                self._answered_s = self._monotonic_s()
        if isinstance(self._answer, Glance):
            return self._answer
        raise PrometheusUnavailable(str(self._answer))

    async def _ask(self, now_s: float) -> Glance:
        try:
            async with asyncio.timeout(ASK_S_MAX):
                slowest, values = await asyncio.gather(
                    self._slowest(now_s),
                    asyncio.gather(*(self._value(query, now_s) for query in QUERIES.values())),
                )
        except TimeoutError as error:
            raise PrometheusUnavailable(f"it has not answered within {ASK_S_MAX:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise PrometheusUnavailable(str(error) or type(error).__name__) from error
        except (ValueError, KeyError, TypeError) as error:
            raise PrometheusUnavailable("what answers is no Prometheus") from error
        return Glance(**dict(zip(QUERIES, values, strict=True)), slowest=slowest)

    async def _value(self, query: str, now_s: float) -> float | None:
        """The one value of an instant query; none where there is no series."""
        result = (await self._get("query", query=query, time=now_s))["result"]
        value = float(result[0]["value"][1]) if result else math.nan
        return None if math.isnan(value) else value

    async def _slowest(self, now_s: float) -> tuple[BronzeWrite, ...]:
        found = await self._get("query_exemplars", query=EXEMPLARS, start=now_s - WINDOW_S, end=now_s + 1)
        return slowest(found)

    async def _get(self, path: str, **parameters: str | float) -> Any:
        answer = await self._client.get(f"/api/v1/{path}", params=parameters)
        return answer.raise_for_status().json()["data"]


def slowest(found: list[dict[str, Any]]) -> tuple[BronzeWrite, ...]:
    """The slowest writes among the exemplars of `/api/v1/query_exemplars`, each once.

    An exemplar is kept at each export for as long as its bucket has no newer one, so the same write comes up again;
    several writes of one trace are several.
    """
    writes = {
        (one["labels"]["trace_id"], float(one["value"])): BronzeWrite(
            float(one["value"]),
            series["seriesLabels"].get("bronze_source", ""),
            dt.datetime.fromtimestamp(float(one["timestamp"]), dt.UTC),
            one["labels"]["trace_id"],
        )
        for series in found
        for one in series["exemplars"]
        if "trace_id" in one["labels"]
    }
    return tuple(sorted(writes.values(), key=lambda write: write.duration_s, reverse=True)[:SLOWEST_MAX])
