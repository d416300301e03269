"""The panels that compare two periods, on a real Prometheus that was filled with a past."""

import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from local import programs, servers
from local.builds import Built
from local.machine import limit_s
from local.programs import LOOPBACK
from tests import panels
from tests.panels import Query

NOW = time.time() // 15 * 15
COMPARED = [query for query in panels.queries() if "$period" in query.expr]
VALUES = {"__rate_interval": "1m", "__range": "1800s", "source": ".*", "instance": ".*"}

_API = 'job="bronze/api",instance="a",bronze_source="vehicles"'
_CONSUMER = 'job="bronze/consumer",instance="c",bronze_source="vehicles"'
_SUCCEEDED = f'{_CONSUMER},bronze_outcome="success"'


@pytest.fixture(scope="module")
def prometheus(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Half an hour until now, and half an hour that ended an hour ago, with half as many and faster uploads."""
    state = tmp_path_factory.mktemp("compared")
    past = state / "past.om"
    past.write_text("".join(f"{line}\n" for line in (*_series(), "# EOF")))
    made = [str(built.promtool), "tsdb", "create-blocks-from", "openmetrics", str(past), str(state / "data")]
    subprocess.run(made, check=True, capture_output=True, timeout=limit_s(60))
    port = programs.free_ports()
    with programs.start(servers.prometheus(state, port, {}, executable=built.prometheus), state / "log"):
        yield f"http://{LOOPBACK}:{port}/api/v1/"


def test_a_tile_says_how_much_this_period_differs(prometheus: str) -> None:
    """Twice as many uploads and records; p95 from 0.1 s (of the bucket from 0.05 s) to 1 s (from 0.5 s)."""
    changes = {tile.panel: _values(prometheus, tile, "1h") for tile in COMPARED if tile.kind == "instant"}
    assert {panel: round(value, 1) for panel, (value,) in changes.items()} == {
        "Uploads": 1.0,
        "Records accepted": 1.0,
        "p95 upload": 9.0,
        "p95 delivery": 9.0,
    }


def test_a_graph_shows_the_same_time_of_the_earlier_period(prometheus: str) -> None:
    """And does not say that there is none."""
    for graph in (query for query in COMPARED if query.kind == "range"):
        absent = graph.expr.startswith("absent_over_time(")
        assert bool(_values(prometheus, graph, "1h")) != absent, graph.panel


def test_where_there_is_no_earlier_period_the_panels_say_so(prometheus: str) -> None:
    """A tile by the words it has for no data, a graph by a series that is named for it."""
    for query in COMPARED:
        values = _values(prometheus, query, "7d")
        if query.kind == "range" and query.expr.startswith("absent_over_time("):
            assert set(values) == {0}
            assert query.legend == "no data one ${period:text} earlier"
        else:
            assert not values
            assert query.kind == "range" or query.no_data == "no earlier data"


def _series() -> Iterator[str]:
    """In OpenMetrics, series by series, a sample each 15 s."""
    counters = {
        f"bronze_uploads_total{{{_SUCCEEDED}}}": 1,
        f'bronze_records_total{{{_API},bronze_outcome="accepted"}}': 100,
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
