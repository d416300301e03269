"""The panels that compare two periods, on a real Prometheus that was filled with a past."""

import json
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from local.builds import Built
from tests import panels
from tests.panels import Query
from tests.pipeline.past import filled

NOW = time.time() // 15 * 15
LATENCY = [query for query in panels.queries() if query.dashboard == "bronze-latency"]
#: The panels of which a query reads the earlier period, with all of their queries.
COMPARING = {query.panel for query in LATENCY if "$period" in query.expr}
GRAPHS = [query for query in LATENCY if query.kind == "range" and "$period" in query.expr]
TILES = [query for query in LATENCY if query.kind == "instant" and query.panel in COMPARING]
EARLIER = "one ${period:text} earlier"
VALUES = {"__rate_interval": "1m", "__interval": "15s", "__range": "1800s", "source": ".*", "instance": ".*"}

_API = 'job="bronze/api",instance="a",bronze_source="vehicles"'
_CONSUMER = 'job="bronze/consumer",instance="c",bronze_source="vehicles"'
_SUCCEEDED = f'{_CONSUMER},bronze_outcome="success"'


@pytest.fixture(scope="module")
def prometheus(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Half an hour until now, and half an hour that ended an hour ago, with half as many and faster uploads."""
    state = tmp_path_factory.mktemp("compared")
    with filled(built, state, _series()) as api:
        yield api


def test_a_tile_has_the_exact_number_of_each_period_and_how_many_times_as_large_it_is_now(prometheus: str) -> None:
    """An object each 15 s, and half as many an hour ago; p95 of uploads that took 0.05 to 0.1 s, then 0.5 to 1 s."""
    shown: dict[str, dict[str, float]] = {}
    for tile in TILES:
        (value,) = _values(prometheus, tile, "1h")
        shown.setdefault(tile.panel.partition(",")[0], {})[tile.legend] = round(value, 4)
    p95 = {"now": 0.975, EARLIER: 0.0975, "change": 10}
    assert shown == {
        "Uploads": {"now": 120, EARLIER: 60, "change": 2},
        "Records": {"now": 12_000, EARLIER: 6_000, "change": 2},
        "p95 upload": p95,
        "p95 delivery": p95,
    }


def test_a_graph_shows_the_same_time_of_the_earlier_period(prometheus: str) -> None:
    """And does not say that there is none."""
    for graph in GRAPHS:
        absent = graph.expr.startswith("absent_over_time(")
        assert bool(_values(prometheus, graph, "1h")) != absent, graph.panel


def test_where_there_is_no_earlier_period_the_panels_say_so(prometheus: str) -> None:
    """A tile by the name of the value -1, a graph by a series that is named for it and draws no line."""
    for query in GRAPHS:
        values = _values(prometheus, query, "7d")
        if query.expr.startswith("absent_over_time("):
            assert set(values) == {0}
            assert query.legend == f"no data {EARLIER}"
            assert _override(query.panel, "/no data/")["custom.lineWidth"] == 0
        else:
            assert not values
    for query in TILES:
        values = _values(prometheus, query, "7d")
        match query.legend:
            case "now":
                assert values
            case "change":
                assert not values
            case _:
                assert values == [-1]
                (shown,) = (m["options"]["-1"] for m in _defaults(query.panel)["mappings"] if "-1" in m["options"])
                assert shown["text"] == "no data"


def test_the_title_of_what_is_compared_says_with_which_period() -> None:
    assert {panel for panel in COMPARING if "${period:text}" not in panel} == set()
    assert {query.legend for query in TILES} == {"now", EARLIER, "change"}
    for title in {query.panel for query in TILES}:
        assert _override(title, "change")["unit"] == "prefix:\N{MULTIPLICATION SIGN}"


def _panel(title: str) -> dict[str, Any]:
    (found,) = (panel for uid, panel in panels.panels() if uid == "bronze-latency" and panel["title"] == title)
    return found


def _defaults(title: str) -> dict[str, Any]:
    defaults: dict[str, Any] = _panel(title)["fieldConfig"]["defaults"]
    return defaults


def _override(title: str, name: str) -> dict[str, Any]:
    """The properties of the series with this name."""
    overrides = _panel(title)["fieldConfig"]["overrides"]
    (properties,) = (override["properties"] for override in overrides if override["matcher"]["options"] == name)
    return {prop["id"]: prop["value"] for prop in properties}


def _series() -> Iterator[str]:
    """In OpenMetrics, series by series, a sample each 15 s."""
    counters = {
        f"bronze_uploads_total{{{_SUCCEEDED}}}": 1,
        f'bronze_records_total{{{_API},bronze_outcome="accepted"}}': 100,
        f"bronze_ledger_objects{{{_CONSUMER}}}": 1,
        f'bronze_ledger_records{{{_CONSUMER},bronze_outcome="accepted"}}': 100,
    }
    for series, step in counters.items():
        yield from _samples(series, step / 2, step)
    for name, labels in (("upload", _SUCCEEDED), ("delivery", _CONSUMER)):
        for le, earlier, now in (("0.05", 0, 0), ("0.1", 1, 0), ("0.5", 1, 0), ("1", 1, 2), ("+Inf", 1, 2)):
            yield from _samples(f'bronze_{name}_duration_seconds_bucket{{{labels},le="{le}"}}', earlier, now)


def _samples(series: str, earlier: float, now: float) -> Iterator[str]:
    value = 0.0
    for began, step in ((NOW - 5400, earlier), (NOW - 1800, now)):
        for number in range(121):
            value += step
            yield f"{series} {value} {began + 15 * number}"


def _values(prometheus: str, query: Query, period: str) -> list[float]:
    """All that Prometheus answers for the half hour until now."""
    parameters: Mapping[str, Any] = {"query": query.asked({**VALUES, "period": period})}
    if query.kind == "instant":
        result = _get(f"{prometheus}query", {**parameters, "time": NOW})
        return [float(series["value"][1]) for series in result]
    result = _get(f"{prometheus}query_range", {**parameters, "start": NOW - 1740, "end": NOW, "step": 15})
    return [float(value) for series in result for _, value in series["values"]]


def _get(url: str, parameters: Mapping[str, Any]) -> Any:
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(parameters)}", timeout=30) as answer:
        return json.load(answer)["data"]["result"]
