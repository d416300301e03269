"""The overview and the slowest Bronze writes, from Prometheus: for the page, which works without Grafana.

Queries read the series that came by OTLP (`job="bronze/..."`), as rules and dashboards do. An exemplar of the upload
latency carries the trace of that upload; the lineage of the trace contains the object.
"""

import asyncio
import datetime as dt
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from bronze.telemetry.promql import NO_CANARY, counted, histogram_series, missing, quantile_counted

WINDOW_S = 3600
#: The time limit of all queries together, in seconds.
ASK_S_MAX = 2.0
#: The time for which an answer is used again, so that the load of Prometheus does not grow with the number of users.
FRESH_S = 2.0
SLOWEST_MAX = 10

_RANGE = "1h"
_CONSUMER = f'job="bronze/consumer", {NO_CANARY}'
_UPLOADS = f'bronze_upload_duration_seconds{{{_CONSUMER}, bronze_outcome="success"}}'


def _ledger(outcome: str) -> str:
    return f'sum(max by (bronze_source) (bronze_ledger_records{{{_CONSUMER}, bronze_outcome="{outcome}"}}))'


#: The queries, by the field of `Glance` that they fill.
QUERIES: Mapping[str, str] = {
    "uploads": counted(f'bronze_uploads_total{{{_CONSUMER}, bronze_outcome="success"}}', _RANGE),
    "failures": counted(f'bronze_uploads_total{{{_CONSUMER}, bronze_outcome="failure"}}', _RANGE),
    "upload_p95_s": quantile_counted(0.95, _UPLOADS, _RANGE),
    "delivery_p95_s": quantile_counted(0.95, f"bronze_delivery_duration_seconds{{{_CONSUMER}}}", _RANGE),
    "delivery_objective_s": f"max(bronze_delivery_objective_seconds{{{_CONSUMER}}})",
    # exact, from the catalog, since the first record
    "stored": _ledger("stored"),
    "quarantined": f"{_ledger('quarantined')} + {_ledger('rejected')}",
    "missing": missing(_CONSUMER),
    "queue_depth": f"sum(max by (bronze_source, bronze_lane) (bronze_queue_depth{{{_CONSUMER}}}))",
    "queue_oldest_age_s": f"max(bronze_queue_oldest_age_seconds{{{_CONSUMER}}})",
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


class PrometheusUnavailable(Exception):
    """Prometheus does not answer, or another server answers; the message says what happened."""


class Prometheus:
    """The page's queries to Prometheus. Concurrent requests share one answer."""

    def __init__(self, client: httpx.AsyncClient, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._monotonic_s = monotonic_s
        self._lock = asyncio.Lock()
        self._answer: Glance | PrometheusUnavailable | None = None
        self._answered_s = -math.inf

    async def glance(self) -> Glance:
        """The overview, at most `FRESH_S` old, within `ASK_S_MAX`. Raises `PrometheusUnavailable`."""
        async with self._lock:
            if self._monotonic_s() - self._answered_s > FRESH_S:
                try:
                    self._answer = await self._query_all(time.time())
                except PrometheusUnavailable as error:
                    self._answer = error
                self._answered_s = self._monotonic_s()
        if isinstance(self._answer, Glance):
            return self._answer
        raise PrometheusUnavailable(str(self._answer))

    async def _query_all(self, now_s: float) -> Glance:
        try:
            async with asyncio.timeout(ASK_S_MAX):
                slowest, values = await asyncio.gather(
                    self._slowest(now_s),
                    asyncio.gather(*(self._value(query, now_s) for query in QUERIES.values())),
                )
        except TimeoutError as error:
            raise PrometheusUnavailable(f"no answer within {ASK_S_MAX:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise PrometheusUnavailable(str(error) or type(error).__name__) from error
        except (ValueError, KeyError, TypeError) as error:
            raise PrometheusUnavailable("the server that answers is not a Prometheus") from error
        return Glance(**dict(zip(QUERIES, values, strict=True)), slowest=slowest)

    async def _value(self, query: str, now_s: float) -> float | None:
        """The value of an instant query with at most one series; None if there is no series."""
        result = (await self._get("query", query=query, time=now_s))["result"]
        value = float(result[0]["value"][1]) if result else math.nan
        return None if math.isnan(value) else value

    async def _slowest(self, now_s: float) -> tuple[BronzeWrite, ...]:
        return slowest(await self._get("query_exemplars", query=EXEMPLARS, start=now_s - WINDOW_S, end=now_s + 1))

    async def _get(self, path: str, **parameters: str | float) -> Any:
        answer = await self._client.get(f"/api/v1/{path}", params=parameters)
        return answer.raise_for_status().json()["data"]


def slowest(exemplars_by_series: list[dict[str, Any]]) -> tuple[BronzeWrite, ...]:
    """The slowest writes among the exemplars of `/api/v1/query_exemplars`, each once.

    Each export repeats an exemplar until its histogram bucket has a newer one, so the same write occurs several times.
    One trace may contain several writes.
    """
    writes = {
        (exemplar["labels"]["trace_id"], float(exemplar["value"])): BronzeWrite(
            float(exemplar["value"]),
            series["seriesLabels"].get("bronze_source", ""),
            dt.datetime.fromtimestamp(float(exemplar["timestamp"]), dt.UTC),
            exemplar["labels"]["trace_id"],
        )
        for series in exemplars_by_series
        for exemplar in series["exemplars"]
        if "trace_id" in exemplar["labels"]
    }
    return tuple(sorted(writes.values(), key=lambda write: write.duration_s, reverse=True)[:SLOWEST_MAX])
