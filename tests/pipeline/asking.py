"""The queries that Grafana sends to Prometheus and Tempo when a dashboard is opened, with values for its variables."""

import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlencode

import yaml

from local.programs import get_json
from tests import panels
from tests.panels import Query
from tests.system.blackbox import System

_DOCUMENTS = panels.documents()
DATASOURCES = yaml.safe_load((panels.FOLDER.parent / "datasources" / "bronze.yaml").read_text())["datasources"]

#: The scrape interval in Grafana's datasource settings, and the number of points of a panel.
SCRAPE_S = next(int(one["jsonData"]["timeInterval"].removesuffix("s")) for one in DATASOURCES if one["isDefault"])
POINTS_MAX = 1000


@dataclass(frozen=True)
class Series:
    """A series of an answer: its labels and values. In a list of series it has no values."""

    labels: Mapping[str, str]
    values: Sequence[float] = ()


@dataclass(frozen=True)
class Grafana:
    """The dashboards with a running system as datasource. `typed` are values that a user has entered; the other
    variables and the time range have their defaults.
    """

    system: System
    typed: Mapping[str, str] = field(default_factory=dict)

    def expression(self, query: Query) -> str:
        """A query as Grafana sends it to the datasource."""
        values = self._values(query.dashboard)
        quoted = re.sub(r"\$\{(\w+):doublequote\}", lambda m: json.dumps(values[m[1]]), query.expr)
        return replace(query, expr=quoted).asked(values)

    def _values(self, dashboard: str) -> Mapping[str, str]:
        range_s = self._range_s(dashboard)
        variables = {
            variable["name"]: variable["allValue"]
            if variable["current"]["value"] == "$__all"
            else variable["current"]["value"]
            for variable in _DOCUMENTS[dashboard]["templating"]["list"]
        }
        macros = {
            "__range": f"{range_s}s",
            "__range_s": f"{range_s}",
            "__interval": f"{self._step_s(dashboard)}s",
            "__rate_interval": f"{max(self._step_s(dashboard) + SCRAPE_S, 4 * SCRAPE_S)}s",
        }
        return {**variables, **macros, **self.typed}

    def _range_s(self, dashboard: str) -> int:
        begins = re.fullmatch(r"now-(\d+)([mh])", _DOCUMENTS[dashboard]["time"]["from"])
        assert begins
        return int(begins[1]) * {"m": 60, "h": 3600}[begins[2]]

    def _step_s(self, dashboard: str) -> int:
        return max(self._range_s(dashboard) // POINTS_MAX, SCRAPE_S)

    # --- Prometheus

    def ask(self, query: Query) -> list[Series]:
        """Runs a query. Fails if a value is NaN, which a panel should not show."""
        expr, times = self.expression(query), self._times(query.dashboard)
        match query.kind:
            case "range":
                step = self._step_s(query.dashboard)
                found = self.system.prometheus("query_range", query=expr, step=step, **times)["result"]
            case "instant":
                found = self.system.prometheus("query", query=expr)["result"]
            case "series":
                return [Series(labels) for labels in self.system.prometheus("series", **{"match[]": expr}, **times)]
            case _:
                raise AssertionError(f"{query.kind} is nothing for Prometheus")
        answer = [
            Series(series["metric"], [float(v) for _, v in series.get("values") or [series["value"]]])
            for series in found
        ]
        assert not any(math.isnan(value) for series in answer for value in series.values), f"NaN: {query}"
        return answer

    def exemplars(self, query: Query) -> dict[str, float]:
        """The values of the exemplars that a panel shows, by trace id."""
        found = self.system.prometheus("query_exemplars", query=self.expression(query), **self._times(query.dashboard))
        return {
            exemplar["labels"]["trace_id"]: float(exemplar["value"])
            for series in found
            for exemplar in series["exemplars"]
        }

    def parsed(self, expr: str) -> "Parsed":
        return Parsed(self.system.prometheus("parse_query", query=expr))

    def has(self, selector: str) -> bool:
        """Whether a selector matches any series."""
        return bool(self.system.prometheus("series", **{"match[]": selector}, limit=1))

    def _times(self, dashboard: str) -> dict[str, float]:
        now = time.time()
        return {"start": now - self._range_s(dashboard), "end": now}

    # --- Tempo

    def search(self, query: Query) -> list[dict[str, Any]]:
        """The traces that a TraceQL query finds."""
        times = {name: str(int(at) + 1) for name, at in self._times(query.dashboard).items()}
        path = f"/api/search?{urlencode({'q': self.expression(query), 'limit': '200', **times})}"
        found: list[dict[str, Any]] = get_json(self.system.stack.ports.tempo, path)["traces"]
        return found


@dataclass(frozen=True)
class Parsed:
    """A PromQL expression, as Prometheus itself has parsed it."""

    root: Mapping[str, Any]

    def selectors(self) -> Iterator[str]:
        """All selectors in the expression."""
        for node in self._nodes(self.root):
            if node["type"] in {"vectorSelector", "matrixSelector"}:
                yield "{" + ", ".join(f"{m['name']}{m['type']}{json.dumps(m['value'])}" for m in node["matchers"]) + "}"

    @property
    def finds(self) -> bool:
        """Whether the expression filters, so that it may have no result although its series exist (failures, for
        example).
        """
        return self._finds(self.root)

    def _finds(self, node: Mapping[str, Any]) -> bool:
        match node["type"]:
            case "parenExpr" | "aggregation" | "subquery":
                return self._finds(node["expr"])
            case "call":
                return node["func"]["name"].startswith("absent") or any(map(self._finds, node["args"]))
            case "binaryExpr" if node["op"] == "or":
                return self._finds(node["lhs"]) and self._finds(node["rhs"])
            case "binaryExpr" if node["op"] == "and":
                return self._finds(node["lhs"]) or self._finds(node["rhs"])
            case "binaryExpr" if node["op"] == "unless":
                return True
            case "binaryExpr" if node["op"] in _COMPARISONS:
                return not node["bool"] and not _drops_nan(node)
            case "binaryExpr":
                return self._finds(node["lhs"])
            case _:
                return False

    def _nodes(self, node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        yield node
        for part in ("expr", "lhs", "rhs", "param"):
            if isinstance(node.get(part), dict):
                yield from self._nodes(node[part])
        for argument in node.get("args", ()):
            yield from self._nodes(argument)


_COMPARISONS = {">", "<", ">=", "<=", "==", "!="}


def _drops_nan(node: Mapping[str, Any]) -> bool:
    """Whether it is `x >= 0`, which only removes NaN here."""
    return bool(node["op"] == ">=" and node["rhs"].get("val") == "0")
