"""Outages of 150 s, sample by sample, on a real Prometheus: what panels of durations show, which count what has ended,
of the time in which nothing ended.
"""

import json
import time
import urllib.parse
import urllib.request
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate

import pytest

from bronze.telemetry.schema import registry
from local.builds import Built
from prometheus import rules, verdict
from prometheus.rules import Thresholds
from tests import panels
from tests.panels import Query
from tests.pipeline.past import filled

STEP_S = 5
OUTAGE_S = 150
BEFORE_S, AFTER_S = 600, 300
OBJECTIVE_S = 3.0
#: The clock of the consumer is ahead of that of Prometheus.
CLOCK_AHEAD_S = 2
#: The window of one point of a graph at the default range: what was slow is in it for so long afterwards.
WINDOW_S = 20
VALUES = {
    "__range": "30m",
    "__range_s": "1800",
    "__interval": "5s",
    "__rate_interval": f"{WINDOW_S}s",
    "source": ".*",
    "instance": ".*",
}

PROMQL = {(query.panel, query.legend): query for query in panels.queries() if query.datasource == "prometheus"}
ABOVE = {kind: PROMQL[f"{kind}: time above limit", ""] for kind in ("Requests", "Uploads", "Deliveries")}
SHARES = {kind: PROMQL["Share above the limit", kind.lower()] for kind in ABOVE}
#: What shows an upload or a delivery that has not ended.
GRAPHS = [
    *("Mean upload duration by source", "Upload duration by source, p95", "Upload duration, percentiles"),
    "Delivery duration",
    "Upload, duration",
    "Delivery, duration",
]
TILES = ("Mean upload", "p95 upload", "p95 delivery")
BOUNDS = registry().metrics["bronze.upload.duration"].buckets


@dataclass(frozen=True)
class Second:
    """What happens in one step; durations by how often each was measured."""

    api: bool = True
    consumer: bool = True
    requests: Mapping[float, int] = field(default_factory=lambda: {0.02: 10})
    uploads: Mapping[float, int] = field(default_factory=lambda: {0.05: 5})
    deliveries: Mapping[float, int] = field(default_factory=lambda: {0.9: 10})
    faults: Mapping[float, int] = field(default_factory=dict)
    failed_uploads: Mapping[float, int] = field(default_factory=dict)
    open_requests: int = 0
    oldest_s: float = 0.4
    waiting: int = 5


NOTHING: Mapping[float, int] = {}


@dataclass(frozen=True)
class Outage:
    at: Callable[[int], Second]
    #: of these, nothing ends
    stands: frozenset[str]
    #: what happens in the first step after it
    after: Second = field(default_factory=Second)
    #: whether the consumer reports how long the oldest message waits
    reported: bool = True
    lasts_s: int = OUTAGE_S


#: Prometheus forgets after five minutes what a process reported.
FORGOTTEN = Outage(lambda at_s: Second(consumer=False, waiting=2 * at_s + 5), frozenset(), reported=False, lasts_s=600)

UPLOADS, REQUESTS = frozenset({"Uploads", "Deliveries"}), frozenset({"Requests"})
#: What waited is stored at once.
STORED = Second(uploads={150: 1, 0.05: 5}, deliveries={150: 10, 100: 100, 50: 100})

OUTAGES = {
    "nothing": Outage(lambda _: Second(), frozenset()),
    "nobody sends": Outage(
        lambda _: Second(requests=NOTHING, uploads=NOTHING, deliveries=NOTHING, oldest_s=0, waiting=0), frozenset()
    ),
    "the bucket does not answer": Outage(
        lambda at_s: Second(uploads=NOTHING, deliveries=NOTHING, oldest_s=at_s + 0.5, waiting=2 * at_s + 5),
        UPLOADS,
        STORED,
    ),
    "each attempt fails": Outage(
        lambda at_s: Second(
            uploads=NOTHING, deliveries=NOTHING, failed_uploads={0.3: 2}, oldest_s=at_s + 0.5, waiting=2 * at_s + 5
        ),
        UPLOADS,
        STORED,
    ),
    "no consumer runs": Outage(
        lambda at_s: Second(consumer=False, waiting=2 * at_s + 5), UPLOADS, STORED, reported=False
    ),
    "no consumer runs, and nobody sends": Outage(
        lambda _: Second(consumer=False, requests=NOTHING, waiting=0), frozenset(), reported=False
    ),
    "the queue is full": Outage(lambda _: Second(requests=NOTHING, faults={0.01: 3}), REQUESTS),
    "requests are not answered": Outage(
        lambda _: Second(requests=NOTHING, open_requests=3), REQUESTS, Second(requests={0.02: 10, 150: 3})
    ),
    "no API runs": Outage(lambda _: Second(api=False), REQUESTS),
}


@pytest.fixture(scope="module")
def prometheus(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Has the outages one after another, an hour apart; when each began."""
    state = tmp_path_factory.mktemp("outages")
    newest = time.time() // WINDOW_S * WINDOW_S - AFTER_S - FORGOTTEN.lasts_s
    outages = {"forgotten": FORGOTTEN, **OUTAGES}
    begins = {name: newest - 3600 * number for number, name in enumerate(outages)}
    samples: dict[str, list[str]] = {}
    for name, at in sorted(begins.items(), key=lambda item: item[1]):
        for series, value, time_s in _samples(outages[name], at):
            samples.setdefault(series, []).append(f"{series} {value:.12g} {time_s:.0f}")
    with filled(built, state, (line for lines in samples.values() for line in lines)) as api:
        yield f"{api}query", begins


@pytest.mark.parametrize("name", OUTAGES)
def test_the_time_of_an_outage_is_above_the_limit(prometheus: tuple[str, Mapping[str, float]], name: str) -> None:
    """All of it, and at most the time until the slow ones have left the window of the percentile; else none."""
    url, begins = prometheus
    for kind, query in ABOVE.items():
        shown_s = _one(url, query, begins[name] + OUTAGE_S + AFTER_S)
        if kind in OUTAGES[name].stands:
            assert OUTAGE_S <= shown_s <= OUTAGE_S + 2 * WINDOW_S, kind
        else:
            assert shown_s == 0, kind


@pytest.mark.parametrize("name", OUTAGES)
def test_while_nothing_ends_everything_is_above_the_limit(
    prometheus: tuple[str, Mapping[str, float]], name: str
) -> None:
    """Of the rest, nothing is; where no process reports, nothing is known."""
    url, begins = prometheus
    for at_s in (60, 145):
        now = OUTAGES[name].at(at_s)
        for kind, query in SHARES.items():
            reports = now.api if kind == "Requests" else now.consumer
            expected = [1] if kind in OUTAGES[name].stands else [0] if reports else []
            assert _all(url, query, begins[name] + at_s) == expected, kind


@pytest.mark.parametrize("name", OUTAGES)
def test_what_has_not_ended_is_in_the_pictures(prometheus: tuple[str, Mapping[str, float]], name: str) -> None:
    """With the time that it has taken until now, while that is over the limit."""
    url, begins = prometheus
    shows = bool(OUTAGES[name].stands & UPLOADS) and OUTAGES[name].reported
    unfinished = [PROMQL[title, "not ended yet"] for title in (*GRAPHS, *TILES)]
    for at_s in (-60, 60, 145, OUTAGE_S + 60):
        for query in unfinished:
            flush_age_s = 0 if "elivery" in query.panel else OBJECTIVE_S - 2
            expected = [at_s + 0.5 - flush_age_s] if shows and 0 < at_s < OUTAGE_S else []
            assert _all(url, query, begins[name] + at_s) == expected, query.panel


def test_failed_attempts_are_in_the_pictures(prometheus: tuple[str, Mapping[str, float]]) -> None:
    url, begins = prometheus
    failed = PROMQL["Upload duration, percentiles", "failed attempts"]
    (shown_s,) = _all(url, failed, begins["each attempt fails"] + 100)
    assert shown_s == pytest.approx(0.3, rel=0.7)
    assert _all(url, failed, begins["nothing"] + 100) == []


def test_the_table_of_sources_knows_each_while_no_consumer_runs(
    prometheus: tuple[str, Mapping[str, float]],
) -> None:
    """Its verdict, what waits and since when nothing was uploaded; it does not know how old the oldest message is."""
    url, begins = prometheus
    assert _row(url, begins["forgotten"] - 60) == ("OK", 5, 0.4, 0, 0)
    for at_s in (60, 580):
        judged, waiting, oldest_s, since_s, _ = _row(url, begins["forgotten"] + at_s)
        assert (judged, waiting, oldest_s) == ("failing: no consumer answers", 2 * at_s + 5, None)
        assert since_s == pytest.approx(at_s, abs=STEP_S + CLOCK_AHEAD_S)


def _row(url: str, at: float) -> tuple[str | float | None, ...]:
    """The row of the only source; its verdict by the rule that is recorded."""
    limits = rules.verdict_limits(Thresholds())
    judged, *others = (query for query in panels.queries() if query.panel == "Sources")
    assert "bronze:source_verdict" in judged.expr
    (number,) = _all(url, replace(judged, expr=verdict.source_expression(limits)), at)
    values = (_all(url, query, at) for query in others)
    return verdict.texts(limits)[int(number)], *(value[0] if value else None for value in values)


def _samples(outage: Outage, began: float) -> Iterator[tuple[str, float, float]]:
    """The samples of a system with one source and one lane. Each outage has processes of its own."""
    counts: dict[str, float] = {}
    for at_s in range(-BEFORE_S, outage.lasts_s + AFTER_S, STEP_S):
        now = Second()
        if 0 <= at_s <= outage.lasts_s:
            now = outage.at(at_s) if at_s < outage.lasts_s else outage.after
        increments, gauges = _increments(now, f"{began:.0f}", began + at_s)
        for series, more in increments.items():
            if more or "503" not in series or series in counts:  # that of a status begins with its first answer
                counts[series] = counts.get(series, 0) + more
        for role, is_up in (("api", now.api), ("consumer", now.consumer)):
            yield f'up{{job="scrape-{role}"}}', is_up, began + at_s
        for series, value in (*counts.items(), *gauges.items()):
            if now.api if 'job="bronze/api"' in series else now.consumer:
                yield series, value, began + at_s


def _increments(now: Second, instance: str, at: float) -> tuple[Mapping[str, float], Mapping[str, float]]:
    source = 'bronze_source="vehicles"'
    api = f'job="bronze/api",instance="{instance}a"'
    consumer = f'job="bronze/consumer",instance="{instance}c",{source}'
    request = f'{api},http_route="/v1/ingest/{{source}}",http_response_status_code='
    counts: dict[str, float] = {
        f'bronze_records_total{{{api},{source},bronze_outcome="accepted"}}': 1,
        f'bronze_records_total{{{consumer},bronze_outcome="stored"}}': 1,
    }
    for name, labels, measured in (
        ("http_server_request", f'{request}"202"', now.requests),
        ("http_server_request", f'{request}"503"', now.faults),
        ("bronze_upload", f'{consumer},bronze_outcome="success"', now.uploads),
        ("bronze_upload", f'{consumer},bronze_outcome="failure"', now.failed_uploads),
        ("bronze_delivery", consumer, now.deliveries),
    ):
        buckets = [0] * (len(BOUNDS) + 1)
        for duration_s, often in measured.items():
            buckets[bisect_left(BOUNDS, duration_s)] += often
        for bound, often in zip((*BOUNDS, float("inf")), accumulate(buckets), strict=True):
            le = "+Inf" if bound == float("inf") else f"{bound:g}"
            counts[f'{name}_duration_seconds_bucket{{{labels},le="{le}"}}'] = often
        counts[f"{name}_duration_seconds_count{{{labels}}}"] = sum(buckets)
        counts[f"{name}_duration_seconds_sum{{{labels}}}"] = sum(s * often for s, often in measured.items())
    gauges = {
        f'http_server_active_requests{{{api},http_request_method="POST"}}': now.open_requests,
        f'bronze_ledger_records{{{api},{source},bronze_outcome="accepted"}}': 1000 + now.waiting,
        f'bronze_ledger_records{{{api},{source},bronze_outcome="stored"}}': 1000,
        f'bronze_queue_oldest_age_seconds{{{consumer},bronze_lane="0"}}': now.oldest_s,
        f"bronze_delivery_objective_seconds{{{consumer}}}": OBJECTIVE_S,
        f"bronze_missing_objects{{{consumer}}}": 0,
        f'bronze_missing_messages{{{consumer},bronze_lane="0"}}': 0,
        f'bronze_upload_last_success_time_seconds{{{consumer},bronze_lane="0"}}': at + CLOCK_AHEAD_S,
    }
    return counts, gauges


def _one(url: str, query: Query, at: float) -> float:
    (value,) = _all(url, query, at)
    return value


def _all(url: str, query: Query, at: float) -> list[float]:
    """The values of a panel's query at a time."""
    asked = urllib.parse.urlencode({"query": query.asked(VALUES), "time": at})
    with urllib.request.urlopen(f"{url}?{asked}", timeout=30) as answer:
        return [round(float(series["value"][1]), 6) for series in json.load(answer)["data"]["result"]]
