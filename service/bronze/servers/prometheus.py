"""Prometheus: instant queries and exemplars."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from bronze.servers.http_json import get_json, other_server

SERVER = "Prometheus"


@dataclass(frozen=True, slots=True)
class Sample:
    """The value of a series, with the labels that the query kept."""

    labels: Mapping[str, str]
    value: float


#: The end of the year 9999: whoever may send telemetry may send any number.
AT_S_MAX = 253_402_300_799


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A measured value with the trace that it is from. `labels` are those of its series."""

    labels: Mapping[str, str]
    value: float
    #: both as exported, with their leading zeros
    trace_id: str
    span_id: str
    #: the time of the measurement, in seconds since the epoch
    at_s: float


class Prometheus:
    """The queries. Each raises `Unavailable`. The time limit is that of the client, per request."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def vector(self, query: str, at_s: float | None = None) -> Sequence[Sample]:
        """The result of an instant query, at a time in seconds since the epoch (default: now)."""
        answer = await self._get("query", query=query, time=time.time() if at_s is None else at_s)
        try:
            return [Sample(series["metric"], float(series["value"][1])) for series in answer["result"]]
        except (ValueError, KeyError, TypeError) as error:
            raise other_server(self._client, SERVER) from error

    async def value(self, query: str, at_s: float | None = None) -> float | None:
        """The value of an instant query with at most one series; None if there is no series, or no number."""
        result = await self.vector(query, at_s)
        return None if not result or not math.isfinite(result[0].value) else result[0].value

    async def exemplars(self, selector: str, start_s: float, end_s: float) -> Sequence[Exemplar]:
        """The exemplars of a time range that have a trace id.

        Each export repeats an exemplar until its histogram bucket has a newer one, so the same one may occur several
        times.
        """
        answer = await self._get("query_exemplars", query=selector, start=start_s, end=end_s)
        try:
            return [
                Exemplar(
                    series["seriesLabels"],
                    float(exemplar["value"]),
                    exemplar["labels"]["trace_id"],
                    exemplar["labels"].get("span_id", ""),
                    float(exemplar["timestamp"]),
                )
                for series in answer
                for exemplar in series["exemplars"]
                if "trace_id" in exemplar["labels"]
                and math.isfinite(float(exemplar["value"]))
                and 0 <= float(exemplar["timestamp"]) < AT_S_MAX
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise other_server(self._client, SERVER) from error

    async def _get(self, path: str, **parameters: str | float) -> Any:
        answer = await get_json(self._client, SERVER, f"/api/v1/{path}", parameters)
        if not isinstance(answer, dict) or "data" not in answer:
            raise other_server(self._client, SERVER)
        return answer["data"]
