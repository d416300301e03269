"""What Prometheus says: tiles and page by their own queries, raw samples, and alerts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import httpx

from bronze.api.glance import QUERIES
from local.evidence import SOURCES
from local.programs import LOOPBACK
from tests import panels

EVALUATION_S = 15
RULES_S = 5


@dataclass(frozen=True)
class Firing:
    """One uninterrupted time in which an alert fired."""

    alert: str
    labels: Mapping[str, str]
    began: float
    ended: float


class Unanswered(Exception):
    """Prometheus did not answer: it is stopped, suspended, or starts."""


class Prometheus:
    def __init__(self, port: int) -> None:
        self._client = httpx.Client(base_url=f"http://{LOOPBACK}:{port}/api/v1", timeout=30, trust_env=False)

    def _get(self, path: str, **parameters: str | float) -> list[dict]:  # type: ignore[type-arg]
        try:
            answer = self._client.get(path, params=parameters).raise_for_status().json()
        except httpx.HTTPError as error:
            raise Unanswered(str(error)) from error
        found: list[dict] = answer["data"]["result"]  # type: ignore[type-arg]
        return found

    def vector(self, query: str, at: float | None = None) -> dict[str, float]:
        """An instant query's values, by the values of their labels."""
        parameters: dict[str, str | float] = {"query": query} if at is None else {"query": query, "time": at}
        return {" ".join(s["metric"].values()): float(s["value"][1]) for s in self._get("/query", **parameters)}

    def value(self, query: str, at: float | None = None) -> float | None:
        """The value of a query with at most one series; None without a series."""
        return next(iter(self.vector(query, at).values()), None)

    def kept(self, selector: str, began: float, ended: float) -> float:
        """By how much the counters rose in a time range, from every raw sample and with every reset: the best that can
        be known from the samples. A series that is new in the range counts from 0.
        """
        # one earlier sample of each series, as long as it is not much older
        answer = self._get("/query", query=f"{selector}[{ended - began + 300:.0f}s]", time=ended)
        return sum(_risen([(at, float(v)) for at, v in series["values"]], began) for series in answer)

    def firings(self, began: float, ended: float) -> list[Firing]:
        """Every firing of an alert of Bronze, from the samples that Prometheus wrote at each evaluation."""
        query = 'ALERTS{alertname=~"Bronze.+", alertstate="firing"}'
        found = []
        for series in self._get("/query", query=f"{query}[{ended - began:.0f}s]", time=ended):
            labels = {k: v for k, v in series["metric"].items() if k not in {"__name__", "alertname", "alertstate"}}
            times = [at for at, _ in series["values"]]
            first = last = times[0]
            for at in [*times[1:], float("inf")]:
                if at - last > 3 * EVALUATION_S:
                    found.append(Firing(series["metric"]["alertname"], labels, first, last))
                    first = at
                last = at
        return sorted(found, key=lambda firing: firing.began)

    def pending(self, alert: str, began: float, ended: float) -> int:
        """The number of evaluations at which an alert was pending or firing."""
        query = f'ALERTS{{alertname="{alert}"}}[{ended - began:.0f}s]'
        return sum(len(series["values"]) for series in self._get("/query", query=query, time=ended))


def _risen(samples: list[tuple[float, float]], began: float) -> float:
    value_before = next((value for at, value in reversed(samples) if at <= began), 0.0)
    risen = 0.0
    for at, value in samples:
        if at > began:
            risen += value - value_before if value >= value_before else value
            value_before = value
    return risen


@cache
def tiles() -> Mapping[str, str]:
    """The queries of the tiles of *Bronze overview*, by title, and of the columns of its table of the ledger, from the
    file that Grafana reads. A tile with several queries is left out, as is one that is not a number of things; of
    *Requests* and *Records that wait now*, it is the first, which counts submissions, and the records.
    """
    found: dict[str, list[str]] = {}
    stats = {(uid, panel["title"]) for uid, panel in panels.panels() if panel["type"] == "stat"}
    for query in panels.queries():
        if query.dashboard == "bronze-overview" and (query.dashboard, query.panel) in stats:
            found.setdefault(query.panel, []).append(query.expr)
    of_tiles = {title: queries[0] for title, queries in found.items() if len(queries) == 1}
    of_tiles |= {title: found[title][0] for title in ("Requests", "Records that wait now")}
    return {**of_tiles, **_columns("Records and objects of each source")}


def _columns(title: str) -> Mapping[str, str]:
    """The queries of a table, by the headings of the columns that show their values."""
    (table,) = (panel for _, panel in panels.panels() if panel["title"] == title)
    headings = next(t["options"]["renameByName"] for t in table["transformations"] if t["id"] == "organize")
    return {headings[f"Value #{target['refId']}"]: target["expr"] for target in table["targets"]}


def asked(expr: str, window_s: float) -> str:
    """A dashboard's query for a time range that ends now, and for all business sources."""
    values = {
        "__range": f"{window_s:.0f}s",
        "__range_s": f"{window_s:.0f}",
        "__rate_interval": "1m",
        "source": "|".join(SOURCES),
        "instance": ".*",
    }
    return re.sub(r"\$\{(\w+)(?::\w+)?\}|\$(\w+)", lambda m: values.get(m[1] or m[2], m[0]), expr)


PAGE = QUERIES
