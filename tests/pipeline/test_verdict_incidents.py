"""Incidents as they develop, sample by sample, on a real Prometheus: which tiles of the overview's first row turn red,
after how many seconds, and that none is red before, or without a reason, or for long after.
"""

import json
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from local.builds import Built
from prometheus import rules, verdict
from prometheus.rules import Thresholds
from prometheus.verdict import Level, Part
from tests import panels
from tests.pipeline.past import filled

STEP_S = 5
#: The rate interval of a graph over 30 minutes.
POINT_S = 20
VERDICT = f'{verdict.RECORD}{{part="{Part.INGEST}"}}'
#: Times around an incident: what runs before it, and after it.
BEFORE_S, AFTER_S = 600, 600
FLUSH_AGE_S, OBJECTIVE_S = 1.0, 3.0

#: An incident has to be seen within 30 s. An export of metrics, the rules' interval and the dashboard's refresh take up
#: to 16 s of them.
SEEN_S_MAX = 14
#: The metrics of three exports may be missing.
UNKNOWN_S_MAX = 25
#: What is judged by the last minute may be red for so long after the end, and then yellow for five minutes.
RED_AFTER_S_MAX = 65
YELLOW_AFTER_S_MAX = 370

TILES = {panel["title"]: panel for uid, panel in panels.panels() if uid == "bronze-overview"}


@dataclass(frozen=True)
class Second:
    """What happens in one step. Counts are per step."""

    api: bool = True
    consumer: bool = True
    collector: bool = True
    accepted: int = 10
    rejected: int = 0
    queue_full: int = 0
    uploads: int = 5
    upload_s: float = 0.05
    failures: int = 0
    oldest_s: float = 0.4
    #: whether the consumer has reported its lanes
    lanes: bool = True


@dataclass(frozen=True)
class Incident:
    """What happens from its begin to its end; and the parts whose tiles have to turn red."""

    lasts_s: int
    at: Callable[[int], Second]
    red: frozenset[Part]
    unknown: frozenset[Part] = frozenset()
    #: seconds after the begin at which there is something to be seen
    begins_s: int = 0
    #: what the tiles of these parts may show until the end; a peak is over before the next
    while_it_lasts: frozenset[str] = frozenset({"red"})
    #: whether a tile says afterwards that there was something; else *Since the last incident* says it
    is_over: bool = True
    #: what happens in the first steps after the end
    after: Mapping[int, Second] = field(default_factory=dict)


def _frozen(at_s: int) -> Second:
    """The bucket does not answer for 5 s of each 60: one upload takes as long, the messages behind it wait."""
    match at_s % 60:
        case 0:
            return Second(uploads=1)
        case 5:
            return Second(uploads=1, upload_s=5.1, oldest_s=0.4)
        case _:
            return Second()


def _creeping(at_s: int) -> Second:
    """From 50 ms to 3 s in five minutes."""
    return Second(upload_s=0.05 + min(at_s, 300) / 300 * 2.95, oldest_s=min(2.9, 1 + at_s / 300))


INGEST, QUEUE, UPLOAD, TELEMETRY = Part
INCIDENTS = {
    "the bucket freezes for 5 s, five times": Incident(
        300, _frozen, frozenset({UPLOAD}), begins_s=5, while_it_lasts=frozenset({"red", "yellow"})
    ),
    "the bucket is away for 3 minutes": Incident(
        180,
        lambda at_s: Second(uploads=0, failures=2, oldest_s=at_s + 0.5),
        frozenset({QUEUE, UPLOAD}),
        after={0: Second(uploads=20, oldest_s=60), 5: Second(uploads=20)},
    ),
    "the bucket hangs: no attempt ends for 3 minutes": Incident(
        180, lambda at_s: Second(uploads=0, oldest_s=at_s + 0.5), frozenset({QUEUE, UPLOAD})
    ),
    "the consumer is dead": Incident(
        180,
        lambda _: Second(consumer=False),
        frozenset({QUEUE, UPLOAD}),
        is_over=False,
        after={0: Second(uploads=0, lanes=False)},
    ),
    "the API is dead": Incident(
        180, lambda _: Second(api=False, accepted=0, uploads=0, oldest_s=0), frozenset({INGEST}), is_over=False
    ),
    "the queue is full": Incident(
        180,
        lambda at_s: Second(accepted=0, queue_full=3, uploads=0, failures=1, oldest_s=at_s + 600),
        frozenset({INGEST, QUEUE, UPLOAD}),
    ),
    "the queue is full for a large sender": Incident(
        180, lambda at_s: Second(queue_full=2 if at_s % 15 else 0), frozenset({INGEST, QUEUE})
    ),
    "a sender sends rubbish": Incident(180, lambda _: Second(rejected=200), frozenset(), is_over=False),
    "the collector is frozen": Incident(
        180,
        lambda _: Second(collector=False),
        frozenset({TELEMETRY}),
        frozenset({INGEST, QUEUE, UPLOAD}),
        is_over=False,
    ),
    "uploads creep from 50 ms to 3 s": Incident(600, _creeping, frozenset({UPLOAD}), begins_s=200),
}


@dataclass(frozen=True)
class Shown:
    """What a tile shows over an incident: its colours by the seconds since the begin."""

    colours: Mapping[int, str]

    def first(self, colour: str) -> int | None:
        return next((at_s for at_s, shown in self.colours.items() if shown == colour), None)

    def within(self, begin_s: int, end_s: int) -> set[str]:
        return {shown for at_s, shown in self.colours.items() if begin_s <= at_s <= end_s}


@pytest.fixture(scope="module")
def prometheus(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Has the incidents one after another, an hour apart; when each began."""
    state = tmp_path_factory.mktemp("verdict")
    newest = time.time() // STEP_S * STEP_S - AFTER_S - max(incident.lasts_s for incident in INCIDENTS.values())
    begins = {name: newest - 3600 * number for number, name in enumerate(reversed(INCIDENTS))}
    samples: dict[str, list[str]] = {}
    for name, at in sorted(begins.items(), key=lambda item: item[1]):
        for series, value, time_s in _samples(INCIDENTS[name], at):
            samples.setdefault(series, []).append(f"{series} {value:g} {time_s:.0f}")
    short = _short(next(iter(begins.values())))
    samples[VERDICT] = [f"{VERDICT} {Level.FAILING + 1 if at == short else 0} {at:.0f}" for at in _around(short)]
    with filled(built, state, (line for lines in samples.values() for line in lines)) as api:
        yield api, begins


@pytest.mark.parametrize("name", INCIDENTS)
def test_an_incident_is_seen_soon_and_its_end_too(prometheus: tuple[str, Mapping[str, float]], name: str) -> None:
    url, begins = prometheus
    incident = INCIDENTS[name]
    end_s, is_over = incident.lasts_s, False
    for part in Part:
        shown = _shown(url, part, begins[name], incident)
        seen = {colour: shown.first(colour) for colour in ("red", "purple", "yellow")}
        print(f"{name}: {part}: {seen}")  # noqa: T201
        assert shown.within(-300, -STEP_S) == {"green"}, "before"
        assert shown.within(end_s + YELLOW_AFTER_S_MAX, end_s + AFTER_S) == {"green"}, "long after"
        assert "red" not in shown.within(end_s + RED_AFTER_S_MAX, end_s + AFTER_S), "after"
        if part in incident.red:
            first = shown.first("red")
            assert first is not None
            assert incident.begins_s <= first <= incident.begins_s + SEEN_S_MAX
            assert shown.within(first, end_s - STEP_S) <= incident.while_it_lasts, "while it goes on"
            for at_s in incident.after:
                assert "green" not in shown.within(end_s + at_s, end_s + at_s), "not yet well"
        elif part in incident.unknown:
            first = shown.first("purple")
            assert first is not None
            assert first <= UNKNOWN_S_MAX
            assert shown.within(first, end_s - STEP_S) == {"purple"}
            assert "red" not in shown.within(-300, end_s + AFTER_S)
        else:
            assert shown.within(-300, end_s + AFTER_S) == {"green"}
        is_over |= "yellow" in shown.within(end_s, end_s + AFTER_S)
    assert is_over == incident.is_over


def test_an_incident_of_one_evaluation_is_counted_from(prometheus: tuple[str, Mapping[str, float]]) -> None:
    """*Since the last incident* misses none, wherever it is between two points of a graph."""
    url, begins = prometheus
    short = _short(next(iter(begins.values())))
    (target,) = TILES["Since the last incident"]["targets"]
    expr = target["expr"].replace("$__range", "30m").replace("$__rate_interval", f"{POINT_S}s")
    (series,) = _get(f"{url}query", {"query": expr, "time": short + 300})
    assert float(series["value"][1]) == 300


def _short(began: float) -> float:
    """A time between two points of a graph."""
    return began // POINT_S * POINT_S + STEP_S


def _around(short: float) -> Iterator[float]:
    return (short + at_s for at_s in range(-BEFORE_S, AFTER_S, STEP_S))


def _shown(url: str, part: Part, began: float, incident: Incident) -> Shown:
    """The colours of the part's tile, by its own query, in which the recording is replaced by its rule, and by its own
    thresholds.
    """
    tile = TILES[part.capitalize()]
    (target,) = tile["targets"]
    assert target["expr"] == f'{verdict.RECORD}{{part="{part}"}}'
    expr = verdict.expression(part, rules.verdict_limits(Thresholds()))
    times = {"start": began - 300, "end": began + incident.lasts_s + AFTER_S, "step": STEP_S}
    (series,) = _get(f"{url}query_range", {"query": expr, **times})
    steps = [
        (float("-inf") if step["value"] is None else step["value"], step["color"])
        for step in tile["fieldConfig"]["defaults"]["thresholds"]["steps"]
    ]
    return Shown(
        {
            int(at - began): max((limit, colour) for limit, colour in steps if limit <= float(value))[1]
            for at, value in series["values"]
        }
    )


def _samples(incident: Incident, began: float) -> Iterator[tuple[str, float, float]]:
    """The samples of a system with one source and one lane. Each incident has processes of its own."""
    counts: dict[str, float] = {}
    first = True
    for at_s in range(-BEFORE_S, incident.lasts_s + AFTER_S, STEP_S):
        during = 0 <= at_s < incident.lasts_s
        now = incident.at(at_s) if during else incident.after.get(at_s - incident.lasts_s, Second())
        values, gauges = _increments(now, f"{began:.0f}")
        for series, more in values.items():
            counts[series] = counts.get(series, 0) + (0 if first else more)
        first = False
        for role, is_up in (("api", now.api), ("consumer", now.consumer), ("collector", now.collector)):
            yield f'up{{job="scrape-{role}"}}', is_up, began + at_s
        for series, value in (*counts.items(), *gauges.items()):
            reports = now.api if 'job="bronze/api"' in series else now.consumer
            if reports and now.collector:
                yield series, value, began + at_s


def _increments(now: Second, instance: str) -> tuple[Mapping[str, float], Mapping[str, float]]:
    api = f'job="bronze/api",instance="{instance}a"'
    consumer = f'job="bronze/consumer",instance="{instance}c",bronze_source="vehicles"'
    records = f'bronze_records_total{{{api},bronze_source="vehicles",bronze_outcome='
    request = f'{api},http_route="/v1/ingest/{{source}}",http_response_status_code="202"'
    upload, duration = f'{consumer},bronze_outcome="success"', "bronze_upload_duration_seconds"
    counts = {
        f'{records}"accepted"}}': now.accepted,
        f'{records}"rejected",error_type="schema-violation"}}': now.rejected,
        f'{records}"rejected",error_type="queue-full"}}': now.queue_full,
        f"http_server_request_duration_seconds_count{{{request}}}": now.accepted,
        f'http_server_request_duration_seconds_bucket{{{request},le="2"}}': now.accepted,
        f'bronze_records_total{{{consumer},bronze_outcome="stored"}}': now.uploads,
        f"bronze_uploads_total{{{upload}}}": now.uploads,
        f'bronze_uploads_total{{{consumer},bronze_outcome="failure",error_type="unavailable"}}': now.failures,
        f'{duration}_bucket{{{upload},le="2"}}': now.uploads if now.upload_s <= 2 else 0,
        f"{duration}_count{{{upload}}}": now.uploads,
        f"{duration}_sum{{{upload}}}": now.uploads * now.upload_s,
    }
    gauges = {
        **({f'bronze_queue_oldest_age_seconds{{{consumer},bronze_lane="0"}}': now.oldest_s} if now.lanes else {}),
        f"bronze_delivery_objective_seconds{{{consumer}}}": OBJECTIVE_S,
    }
    return counts, gauges


def _get(url: str, parameters: Mapping[str, Any]) -> Any:
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(parameters)}", timeout=30) as answer:
        return json.load(answer)["data"]["result"]
