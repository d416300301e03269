"""What Telemetry health says of counters that differ and of alerts, on a real Prometheus with the past of both."""

import time
from collections.abc import Iterator

import pytest

from local.builds import Built
from tests import panels
from tests.pipeline.past import RANGE_S, STEP_S, Past, filled

NOW = time.time() // STEP_S * STEP_S
HEALTH = [query for query in panels.queries() if query.dashboard == "bronze-health"]
#: How far each counter of a process was off, and is now; and its value.
DIFFERENCES = {"bronze_records_total": (5, 5, 700), "bronze_uploads_total": (2, 0, 90), "bronze_bytes_total": (0, 0, 9)}


@pytest.fixture(scope="module")
def past(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    with filled(built, tmp_path_factory.mktemp("health"), _series()) as api:
        yield Past(api, NOW)


def test_the_tile_says_how_many_counters_differ_now(past: Past) -> None:
    """Not by how much the worst one does."""
    (tile,) = (query for query in HEALTH if query.panel == "Counters that differ")
    assert past.values(tile) == [1]


def test_the_table_says_by_how_much_which_counter_differed_and_of_how_many(past: Past) -> None:
    queries = [query for query in HEALTH if query.panel.startswith("Counters that differ,")]
    most, now, of = ({labels["metric"]: value for labels, [value] in past.answer(query)} for query in queries)
    shown = {name: (most[name], now[name], of[name]) for name in most}
    assert shown == {name: values for name, values in DIFFERENCES.items() if any(values[:2])}


def test_pages_and_tickets_are_apart_and_say_since_when(past: Past) -> None:
    for title, severity, since_s in (("Alerts: urgent", "page", 600), ("Alerts: other", "ticket", 60)):
        (query,) = (query for query in HEALTH if query.panel == title)
        ((labels, [since_ms]),) = past.answer(query)
        assert since_ms == (NOW - since_s) * 1000
        assert labels["severity"] == severity
        assert labels["summary"] == labels["anchor"] == labels["alertname"]
    (tile,) = (query for query in HEALTH if query.panel == "Alerts firing" and query.legend == "urgent")
    assert past.values(tile) == [1]
    (tile,) = (query for query in HEALTH if query.panel == "Alerts firing" and query.legend == "other")
    assert past.values(tile) == [0]


def _series() -> Iterator[str]:
    for metric, (before, now, value) in DIFFERENCES.items():
        labels = f'metric="{metric}",role="consumer",instance="c"'
        times = _times()
        for at in times:
            yield f"instance:counter:difference{{{labels}}} {now if at > NOW - RANGE_S / 2 else before} {at}"
        for at in times:
            yield f"instance:counter:scraped{{{labels}}} {value} {at}"
    for alert, severity, state, since_s in (
        ("BronzeUploadsFail", "page", "firing", 600),
        ("BronzeSdkDrops", "ticket", "pending", 60),
    ):
        labels = f'alertname="{alert}",severity="{severity}"'
        for at in _times():
            yield f'ALERTS{{{labels},alertstate="{state}"}} 1 {at}'
        for at in _times():
            yield f"ALERTS_FOR_STATE{{{labels}}} {NOW - since_s} {at}"


def _times() -> list[float]:
    return [NOW - RANGE_S + number * STEP_S for number in range(RANGE_S // STEP_S + 1)]
