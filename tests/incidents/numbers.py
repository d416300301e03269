"""The numbers of tiles and graphs of a system at rest, and independent readings of the same."""

import math
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import httpx

from bronze.telemetry.schema import registry
from local.evidence import SOURCES, source_of
from local.programs import LOOPBACK
from prometheus import rules
from tests import panels
from tests.incidents.readings import Readings
from tests.panels import Query
from tests.pipeline.asking import SCRAPE_S, Grafana
from tests.system.blackbox import System
from tests.tiles import legend_of
from tests.truth.bucket import Bucket

OVERVIEW, OF_SOURCE, LATENCY = "bronze-overview", "bronze-source", "bronze-latency"
#: The source that the board for one source shows.
SOURCE = "vehicles"
CLIENTS, PROXY, SPANS, BUCKET, BOTH = (
    "clients",
    "a proxy before the bucket",
    "the spans in the trace store",
    "the bucket's objects",
    "clients and a proxy before the bucket",
)

#: What the consumer's client of the bucket takes, and the proxy does not see; and a sender, and the API does not see.
CLIENT_S = 0.1

Values = Mapping[str, float]


@dataclass(frozen=True)
class Reading:
    """What a panel has to show, by the legend of each series. `over` is `all`: the sum of all points; or `steady`:
    their mean while the load was steady. `histogram` is the name of the one that a percentile is from: it may be
    anywhere in the true value's bucket.
    """

    values: Values
    by: str
    over: str = "all"
    error: float = 0.0
    slack: float = 0.0
    histogram: str = ""


@dataclass(frozen=True)
class Number:
    """A number that is shown, and what it should be. `low` and `high` say how exact it can be."""

    dashboard: str
    panel: str
    series: str
    shown: float | None
    true: float
    low: float
    high: float
    by: str

    @property
    def holds(self) -> bool:
        return self.shown is not None and self.low <= self.shown <= self.high


@dataclass(frozen=True)
class Rest:
    """A run without an incident: its begin, and the time in which the load was steady."""

    readings: Readings
    bucket: Bucket
    began: float
    steady: tuple[float, float]
    #: the end and the duration of each upload of each source, by the spans of the trace store
    spans: Mapping[str, Sequence[tuple[float, float]]]

    @property
    def seconds(self) -> float:
        return self.steady[1] - self.steady[0]

    def is_steady(self, at: float) -> bool:
        return self.steady[0] < at <= self.steady[1]


def numbers(grafana: Grafana, rest: Rest) -> list[Number]:
    """Every number of the panels for which there is a reading."""
    found = []
    for (dashboard, panel), reading in _readings(rest).items():
        queries = [q for q in panels.queries() if (q.dashboard, q.panel) == (dashboard, panel) and rules.names(q.expr)]
        shown: dict[str, float] = {}
        for query in queries:
            shown |= _shown(grafana, query, rest, reading.over)
        for series, true in reading.values.items():
            low, high = _bounds(reading, true)
            found.append(Number(dashboard, panel, series, shown.get(series), true, low, high, reading.by))
    return found


def uploads_in_traces(system: System) -> Mapping[str, Sequence[tuple[float, float]]]:
    """The end and the duration of each upload of each source, from the begin of its span to the end of PutObject."""
    return {source: list(_of_traces(system, source)) for source in SOURCES}


def _of_traces(system: System, source: str) -> Iterator[tuple[float, float]]:
    asked: dict[str, str | int] = {
        "serviceName": "consumer",
        "spanName": f"upload {source}",
        "limit": 5000,
        "lookback": 3_600_000,
    }
    answer = httpx.get(f"http://{LOOPBACK}:{system.stack.ports.zipkin}/api/v2/traces", params=asked, trust_env=False)
    spans = {span["id"]: span for trace in answer.raise_for_status().json() for span in trace}
    for put in spans.values():
        upload = spans.get(put.get("parentId", ""))
        if put["name"] == "s3 putobject" and upload and upload["name"] == f"upload {source}":
            ended = put["timestamp"] + put["duration"]
            yield ended / 1e6, (ended - upload["timestamp"]) / 1e6


def _shown(grafana: Grafana, query: Query, rest: Rest, over: str) -> Values:
    if query.dashboard == OF_SOURCE:
        grafana = replace(grafana, typed={"source": SOURCE})
    expr = grafana.expression(query)
    if query.kind == "instant":
        found = grafana.system.prometheus("query", query=expr)["result"]
        return {_key(query, series["metric"]): float(series["value"][1]) for series in found}
    begin, end = (rest.began, time.time()) if over == "all" else rest.steady
    answer = grafana.system.prometheus("query_range", query=expr, start=begin, end=end, step=SCRAPE_S)["result"]
    values = {_key(query, series["metric"]): [float(value) for _, value in series["values"]] for series in answer}
    return {key: math.fsum(of) if over == "all" else math.fsum(of) / len(of) for key, of in values.items()}


def _key(query: Query, labels: Mapping[str, str]) -> str:
    """The legend; without one, the labels, after the letter of the query if it is a column."""
    if query.legend:
        return legend_of(query.legend, labels)
    return " ".join([query.ref_id, *labels.values()]) if query.panel in _TABLES else " ".join(labels.values())


_TABLES = {"Lanes", "Sources", "Records and objects of each source"}


def _bounds(reading: Reading, true: float) -> tuple[float, float]:
    low, high = true * (1 - reading.error) - reading.slack, true * (1 + reading.error) + reading.slack
    if reading.histogram:
        bounds = registry().metrics[reading.histogram].buckets
        low = min(low, max((bound for bound in bounds if bound < low), default=0))
        high = max(high, bounds[min(bisect_left(bounds, high), len(bounds) - 1)])
    return low, high


def _readings(rest: Rest) -> Mapping[tuple[str, str], Reading]:
    """By dashboard and title."""
    of, bucket = rest.readings, rest.bucket
    sent: Counter[str] = Counter()
    submissions: Counter[str] = Counter()
    for attempt in of.accepted:
        sent[attempt.source] += attempt.records
        submissions[attempt.source] += 1
    answered = [a for a in of.attempts if a.status]
    rows, objects, sizes = bucket.records(), bucket.counts(), bucket.sizes()
    uploads = of.uploads
    spans = [seconds for found in rest.spans.values() for _, seconds in found]
    spans_of = {source: [s for at, s in found if rest.is_steady(at)] for source, found in rest.spans.items()}
    steady_spans = [seconds for found in spans_of.values() for seconds in found]
    deliveries = [seconds for _, seconds in of.deliveries]
    requests = [a.seconds for a in of.accepted if rest.is_steady(a.ended)]
    steady = {
        source: [p.seconds for p in of.uploads if source_of(p.key) == source and rest.is_steady(p.ended)]
        for source in SOURCES
    }
    puts = [seconds for found in steady.values() for seconds in found]
    delivered = [seconds for at, seconds in of.deliveries if rest.is_steady(at)]
    stored = [o for o in bucket.objects.values() if o.source in SOURCES and rest.is_steady(o.written_at)]

    def per_s(count: float) -> float:
        return count / rest.seconds

    def each(values: Callable[[str], float]) -> Values:
        return {source: values(source) for source in SOURCES}

    def accepted(source: str) -> float:
        return per_s(sum(a.records for a in of.accepted if a.source == source and rest.is_steady(a.ended)))

    waits = {
        source: [
            of.stored[a.submission_id] - a.ended for a in of.accepted if a.source == source and rest.is_steady(a.ended)
        ]
        for source in SOURCES
    }
    now = {"": 0.0}
    request, upload, delivery = (
        "http.server.request.duration",
        "bronze.upload.duration",
        "bronze.delivery.duration",
    )
    overview: Mapping[str, Reading] = {
        "Oldest waiting message": Reading(now, BOTH, slack=0.5),
        "Records that wait now": Reading(now, BOTH),
        "Successful uploads": Reading({"": len(uploads)}, PROXY),
        "Failed uploads": Reading({"": len(of.failures)}, PROXY),
        "Mean upload": Reading({"ended": _mean(spans)}, SPANS, error=0.05, slack=0.005),
        "Requests": Reading({"submissions": len(answered)}, CLIENTS),
        "p95 upload": Reading({"ended": _quantile(0.95, spans)}, SPANS, error=0.1, slack=0.01, histogram=upload),
        "p95 delivery": Reading({"ended": _quantile(0.95, deliveries)}, BOTH, error=0.2, histogram=delivery),
        "Missing data": Reading(now, "the submissions of the 202s are in the bucket's objects"),
        "Refused records": Reading(now, CLIENTS),
        "Sources": Reading({f"{column} {s}": 0 for column in "ABCE" for s in SOURCES}, BOTH, slack=0.5),
        "Records and objects of each source": Reading(
            {
                f"{column} {s}": value
                for s in SOURCES
                for column, value in (
                    ("A", sent[s]),
                    ("B", rows[s]),
                    ("D", sent[s] - rows[s]),
                    ("E", objects[s]),
                    ("F", sizes[s]),
                )
            },
            f"{CLIENTS}; {BUCKET}",
        ),
        "Mean upload duration by source": Reading(
            each(lambda s: _mean(spans_of[s])), SPANS, "steady", error=0.1, slack=0.005
        ),
        "Uploads, succeeded and failed": Reading({"success": len(uploads), "failure": len(of.failures)}, PROXY),
        "Requests by status": Reading(Counter(f"{a.status}" for a in answered), CLIENTS),
        "Request latency": Reading(
            _quantiles(requests), CLIENTS, "steady", error=0.2, slack=CLIENT_S, histogram=request
        ),
        "Refused by reason": Reading({"all": 0}, CLIENTS),
        "Records accepted": Reading(each(accepted), CLIENTS, "steady", error=0.05),
        "Records by outcome": Reading(
            {"stored": per_s(sum(sum(o.rows.values()) for o in stored)), "quarantined": 0, "duplicate": 0},
            BUCKET,
            "steady",
            error=0.05,
        ),
        "Processing time": Reading(_quantiles(delivered), BOTH, "steady", error=0.2, histogram=delivery),
        "Consumer errors by step": Reading({"all": 0}, PROXY),
        # sampled once per export, always at the same phase of a flush
        "Queue depth": Reading({f"{s}/0": per_s(math.fsum(waits[s])) for s in SOURCES}, BOTH, "steady", slack=1),
        "Age of the oldest message": Reading(
            {f"{s}/0": per_s(math.fsum(wait**2 / 2 for wait in waits[s])) for s in SOURCES}, BOTH, "steady", slack=1
        ),
        "Upload duration by source, p95": Reading(
            each(lambda s: _quantile(0.95, spans_of[s])), SPANS, "steady", error=0.2, slack=0.01, histogram=upload
        ),
        "Delivery duration": Reading(_quantiles(delivered), BOTH, "steady", error=0.2, histogram=delivery),
    }
    latency: Mapping[str, Reading] = {
        "Upload duration, percentiles": Reading(
            _quantiles(steady_spans), SPANS, "steady", error=0.2, slack=0.01, histogram=upload
        ),
        "Mean time by stage": Reading({"put": _mean(puts)}, PROXY, "steady", error=0.1, slack=CLIENT_S),
        "Time by stage, p95": Reading(
            {"put": _quantile(0.95, puts)}, PROXY, "steady", error=0.2, slack=CLIENT_S, histogram=upload
        ),
        "Uploads: time above limit": Reading(now, PROXY),
        "Requests: time above limit": Reading(now, CLIENTS, slack=of.ready - of.began),
        "Deliveries: time above limit": Reading(now, BOTH),
        "Load and latency": Reading(
            {"records accepted": math.fsum(accepted(s) for s in SOURCES)}, CLIENTS, "steady", error=0.05
        ),
        "Share above the limit": Reading(
            {"requests": 0, "uploads": sum(s > 2 for s in puts) / len(puts), "deliveries": 0},
            BOTH,
            "steady",
            slack=0.01,
        ),
        "Error budget burn rate": Reading({"requests": 0, "uploads": 0, "deliveries": 0}, BOTH, "steady", slack=1),
        "p95 upload, now and one ${period:text} earlier": Reading(
            {"now": _quantile(0.95, steady_spans)}, SPANS, "steady", error=0.2, slack=0.01, histogram=upload
        ),
    }
    own = [a for a in of.accepted if a.source == SOURCE]
    own_sent = [a for a in own if rest.is_steady(a.ended)]
    own_put = [p for p in uploads if source_of(p.key) == SOURCE]
    own_spans = spans_of[SOURCE]
    own_delivered = waits[SOURCE]
    own_stored = [o for o in stored if o.source == SOURCE]
    own_rate = per_s(len(own_sent))
    source: Mapping[str, Reading] = {
        "Mean upload duration": Reading(
            {"": _mean([s for _, s in rest.spans[SOURCE]])}, SPANS, error=0.05, slack=0.005
        ),
        "Records that wait": Reading(now, f"{CLIENTS}; {BUCKET}"),
        "Oldest message": Reading(now, BOTH, slack=0.5),
        "Records in the range": Reading(
            {"accepted": sent[SOURCE], "stored": rows[SOURCE], "rejected": 0}, f"{CLIENTS}; {BUCKET}"
        ),
        "Uploads in the range": Reading({"success": len(own_put), "failure": 0}, PROXY),
        "Lanes": Reading({f"A 0 {SOURCE}": 0, f"C 0 {SOURCE}": submissions[SOURCE]}, CLIENTS),
        "Ingest, by outcome": Reading({"accepted": accepted(SOURCE)}, CLIENTS, "steady", error=0.05),
        "Queue, by outcome": Reading({"sent": own_rate, "read": own_rate}, CLIENTS, "steady", error=0.05),
        "Processing, by outcome": Reading(
            {"stored": per_s(sum(sum(o.rows.values()) for o in own_stored))}, BUCKET, "steady", error=0.1
        ),
        "Upload, by outcome": Reading(
            {"success": per_s(len(steady[SOURCE])), "failure": 0}, PROXY, "steady", error=0.1
        ),
        "Upload, duration": Reading(
            {**_quantiles(own_spans, (0.5, 0.99)), "mean": _mean(own_spans)},
            SPANS,
            "steady",
            error=0.2,
            slack=0.02,
            histogram=upload,
        ),
        "Delivery, by outcome": Reading({"on time": own_rate, "late": 0}, BOTH, "steady", error=0.1),
        "Delivery, duration": Reading(
            {**_quantiles(own_delivered, (0.5, 0.99)), "mean": _mean(own_delivered)},
            BOTH,
            "steady",
            error=0.2,
            histogram=delivery,
        ),
        "Object size": Reading(
            _quantiles([o.bytes for o in own_stored], (0.5, 0.95)),
            BUCKET,
            "steady",
            error=0.1,
            histogram="bronze.upload.size",
        ),
        "Records per object": Reading(
            _quantiles([sum(o.rows.values()) for o in own_stored], (0.5, 0.95)),
            BUCKET,
            "steady",
            error=0.1,
            histogram="bronze.upload.records",
        ),
        "Bytes accepted and stored": Reading(
            {"stored": per_s(sum(o.bytes for o in own_stored))}, BUCKET, "steady", error=0.1
        ),
    }
    return {
        **{(OF_SOURCE, title): reading for title, reading in source.items()},
        **{(OVERVIEW, title): reading for title, reading in overview.items()},
        **{(LATENCY, title): reading for title, reading in latency.items()},
    }


def _quantiles(values: Sequence[float], of: Sequence[float] = (0.5, 0.95, 0.99)) -> Values:
    return {f"p{100 * q:g}": _quantile(q, values) for q in of}


def _quantile(q: float, values: Sequence[float]) -> float:
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / max(1, len(values))
