"""The real run: load, faults, a reading at every evaluation, and a comparison of all numbers after each stage."""

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bronze.telemetry.promql import LEDGER, counted, quantile_counted
from grafana.promql import DELIVERIES, REQUESTS, UPLOADS
from local.evidence import SOURCES
from tests.truth import controls, faults, histograms
from tests.truth.bucket import CANARY, Bucket
from tests.truth.controls import Control
from tests.truth.faults import EXPLAINED_S, EXPLAINS, Stage
from tests.truth.histograms import QUANTILES, Percentile, exact
from tests.truth.load import Load, Sent
from tests.truth.running import API, CONSUMER, ROLES, Running, running
from tests.truth.series import PAGE, Firing, Prometheus, Unanswered, asked, tiles
from tests.truth.spans import Spans
from tests.truth.watch import Watch

SETTLE_S_MAX = 120.0
#: The exports and scrapes after the last record: two intervals, and the collector's batch.
QUIET_S = 14.0
TAKE_S = 5.0

#: The numbers of things on *Bronze overview* that no reset of a counter may change.
NUMBERS = (
    "Accepted in all",
    "Records that wait",
    "Records in rows",
    "Objects",
    "Bytes of objects",
    "Records in no row",
    "Records that wait now",
    "Missing data",
    "Successful uploads",
    "Requests",
)

Values = Mapping[str, float]


@dataclass(frozen=True)
class Fault:
    kind: str
    began: float
    ended: float


@dataclass
class Finished:
    """A stage that has ended, with the times of its begin and of its settled end."""

    name: str
    began: float
    ended: float
    faults: Values
    settled_s: float
    wrong: dict[str, str]
    #: Numbers from counters since the begin of the run: what the tile shows, and what is true.
    counted: dict[str, tuple[float, float]]


@dataclass
class Run:
    """Everything that the run has found."""

    stages: list[Finished] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    controls: list[Control] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def run(root: Path, seconds: float, outage_s: float, seed: int, say: Any) -> dict[str, Any]:
    """Runs every stage and the controls; returns the results, with all problems in `problems`."""
    found = Run()
    with running(root, {}) as whole:
        prometheus = Prometheus(whole.system.stack.ports.prometheus)
        spans, bucket = Spans(whole.receiver), Bucket(whole.system)
        load = Load(whole.api_urls, seed)
        watch = Watch(prometheus, lambda: _records(load.sent))
        load.start()
        began = time.time()
        time.sleep(QUIET_S)
        with _thread(watch.run, watch.stop), _taking(spans):
            try:
                for stage in faults.stages(seconds, outage_s, seed):
                    say(f"{stage.name}: {stage.seconds:.0f} s")
                    watch.stage = stage.name
                    finished = _stage(stage, whole, load, bucket, prometheus, found, began)
                    found.stages.append(finished)
                    found.problems += [f"{stage.name}: {tile}: {what}" for tile, what in finished.wrong.items()]
                    say(f"  settled after {finished.settled_s:.0f} s, wrong: {finished.wrong or 'nothing'}")
                for name in [f"{role}-{number}" for role in reversed(ROLES) for number in (2, 3)]:
                    whole.remove(name)
                time.sleep(QUIET_S)
                say("negative control: counters reset")
                control, changed = controls.counters_reset(
                    whole, lambda: _numbers(prometheus, time.time() - began), 3 * QUIET_S
                )
                found.controls.append(control)
                found.problems += [
                    f"after a reset of the counters, {tile} differs by {by:g}" for tile, by in changed.items()
                ]
            finally:
                watch.stop()
        spans.take()
        ended = time.time()
        bucket.read(again=True)
        _check_rows(load.sent, bucket, found)
        say("negative controls: an object and a message are deleted")
        began_controls = time.time()
        found.controls += controls.losses(whole, prometheus, bucket)
        found.problems += [f"not found: {c.name}" for c in found.controls if c.seconds is None]
        found.faults += [
            Fault(kind, began_controls, time.time()) for kind in ("an object deleted", "a message deleted")
        ]
        load.stop()
        say("reading what was counted")
        firings = prometheus.firings(began, time.time())
        pending = prometheus.pending("BronzeRecordsMissing", began, ended)
        if pending:
            found.problems.append(f"BronzeRecordsMissing was pending or firing at {pending} evaluations of the run")
        alerts = [_explained(firing, found.faults) for firing in firings]
        found.problems += [f"{a['alert']} {a['labels']} fired, and no fault explains it" for a in alerts if not a["by"]]
        found.problems += watch.problems
        percentiles = _percentiles(found.stages[0], load.sent, spans, prometheus)
        durations = {name: values for name, values in _durations(spans, began, ended).items() if values}
        return {
            "seconds": round(ended - began),
            "outage_s": outage_s,
            "seed": seed,
            "sent": _sums(load.sent, bucket),
            "evaluations": {
                "made": watch.evaluations,
                "unanswered": watch.unanswered,
                "absent": dict(watch.absent),
                "problems": len(watch.problems),
                "missing_pending": pending,
            },
            "stages": [
                {
                    **asdict(s),
                    "counters": _counters(s, load.sent, bucket, prometheus),
                    "spans": _spans(s, load.sent, bucket, spans, prometheus),
                }
                for s in found.stages
            ],
            "alerts": alerts,
            "percentiles": percentiles,
            "replayed": [
                asdict(p) for p in histograms.replay(durations, prometheus, whole.system.stack.ports.prometheus)
            ],
            "spans_repeated": spans.repeated,
            "controls": [asdict(c) for c in found.controls],
            "problems": found.problems,
        }


@contextmanager
def _thread(target: Any, stop: Any) -> Iterator[None]:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join()


@contextmanager
def _taking(spans: Spans) -> Iterator[None]:
    over = threading.Event()

    def take() -> None:
        while not over.wait(TAKE_S):
            spans.take()

    with _thread(take, over.set):
        yield


# --- one stage


def _stage(
    stage: Stage, whole: Running, load: Load, bucket: Bucket, prometheus: Prometheus, found: Run, run_began: float
) -> Finished:
    began = time.time()
    load.on()
    times: dict[str, list[float]] = {}
    for event in sorted(stage.events, key=lambda e: e.at_s):
        time.sleep(max(0.0, began + event.at_s - time.time()))
        if event.fault:
            times.setdefault(event.fault, []).append(time.time())
        event.act(whole, load)
    time.sleep(max(0.0, began + stage.seconds - time.time()))
    load.off()
    whole.wait_ready()
    quiet = time.time()
    found.faults += [Fault(kind, at[0], quiet) for kind, at in times.items()]
    time.sleep(QUIET_S)
    until_at = time.monotonic() + SETTLE_S_MAX
    while True:
        wrong = _wrong(load.sent, bucket, prometheus, run_began)
        if not wrong or time.monotonic() > until_at:
            break
        time.sleep(1)
    ended = time.time()
    counts = _counted(load.sent, prometheus, ended - run_began)
    return Finished(
        stage.name,
        began,
        ended,
        {kind: len(at) for kind, at in times.items()},
        ended - quiet,
        wrong,
        counts,
    )


def _records(sent: list[Sent]) -> Counter[str]:
    records: Counter[str] = Counter()
    for submission in list(sent):
        records[submission.source] += submission.records
    return records


def _wrong(sent: list[Sent], bucket: Bucket, prometheus: Prometheus, began: float) -> dict[str, str]:
    """The exact tiles that differ from the bucket, and the bucket if it differs from the 202s."""
    wrong = {}
    if waiting := sum(not s.accepted for s in sent):
        wrong["load"] = f"{waiting} submissions have no 202"
    bucket.read()
    accepted = _records(sent)
    in_bucket = bucket.records()
    rejected = bucket.quarantined()
    if sum(accepted.values()) != sum(in_bucket[s] for s in SOURCES) + rejected:
        wrong["bucket"] = (
            f"{sum(accepted.values())} accepted, {sum(in_bucket[s] for s in SOURCES)} rows and {rejected} rejected"
        )
    try:
        for name, (shown, true) in _exact(accepted, bucket, prometheus, began).items():
            if shown != true:
                wrong[name] = f"shows {shown}, true is {true}"
    except Unanswered as error:
        wrong["Prometheus"] = str(error)
    return wrong


def _exact(accepted: Counter[str], bucket: Bucket, prometheus: Prometheus, began: float) -> dict[str, tuple[Any, Any]]:
    """The tiles that have to be exact: what each shows, and what the bucket says."""
    found = tiles()
    rejected = float(bucket.quarantined())
    records, counts, sizes = bucket.records(), bucket.counts(), bucket.sizes()
    canary = f'max(bronze_ledger_records{{{LEDGER}, bronze_source="{CANARY}", bronze_outcome="stored"}})'
    objects = sum(counts[s] for s in SOURCES)

    def by_source(title: str, true: Counter[str]) -> tuple[Any, Any]:
        shown = prometheus.vector(asked(found[title], 3600))
        return {s: shown.get(s) for s in SOURCES}, {s: float(true[s]) for s in SOURCES}

    shown_of_page = {name: prometheus.value(PAGE[name]) for name in ("stored", "quarantined", "missing", "queue_depth")}
    true_of_page = {
        "stored": float(sum(records[s] for s in SOURCES)),
        "quarantined": rejected,
        "missing": 0.0,
        "queue_depth": 0.0,
    }
    no_row = prometheus.vector(asked(found["Records in no row"], 3600))
    window_s = time.time() - began
    return {
        "Accepted in all": by_source("Accepted in all", accepted),
        "Records that wait": by_source("Records that wait", Counter()),
        "Records in rows": by_source("Records in rows", records),
        "Objects": by_source("Objects", counts),
        "Successful uploads": (prometheus.value(asked(found["Successful uploads"], window_s)), float(objects)),
        "Bytes of objects": by_source("Bytes of objects", sizes),
        "Records in no row": (sum(no_row.values()), rejected),
        "Records that wait now": (prometheus.value(asked(found["Records that wait now"], 3600)), 0.0),
        "Missing data": (prometheus.value(asked(found["Missing data"], 3600)), 0.0),
        "the canary's records in the ledger": (prometheus.value(canary), float(records[CANARY])),
        **{f"page: {name}": (shown_of_page[name], true) for name, true in true_of_page.items()},
    }


def _counted(sent: list[Sent], prometheus: Prometheus, window_s: float) -> dict[str, tuple[float, float]]:
    """The tile that reads a counter of processes, for the time since the run began; the truth is what got an answer."""
    shown = prometheus.value(asked(tiles()["Requests"], window_s))
    answered = sum(status != 0 for submission in list(sent) for status in submission.statuses)
    return {"Requests": (math.nan if shown is None else shown, float(answered))}


def _numbers(prometheus: Prometheus, window_s: float) -> Values:
    """Every number of things that tiles and page show; for a range, the time since the run began."""
    found = {
        f"{title} {labels}".strip(): value
        for title in NUMBERS
        for labels, value in prometheus.vector(asked(tiles()[title], window_s)).items()
    }
    for name in ("uploads", "stored", "quarantined", "missing", "queue_depth"):
        value = prometheus.value(PAGE[name])
        if value is not None:
            found[f"page: {name}"] = value
    return found


def _check_rows(sent: list[Sent], bucket: Bucket, found: Run) -> None:
    """Each accepted submission is in the bucket once, with exactly its rows."""
    rows = bucket.by_submission(SOURCES)
    wrong = [s for s in sent if rows[s.submission_id] != s.records - s.invalid]
    others = rows.keys() - {s.submission_id for s in sent}
    if wrong or others:
        found.problems.append(f"{len(wrong)} submissions do not have their rows once; {len(others)} were never sent")


# --- what was counted


def _in(stage: Finished, sent: list[Sent]) -> list[Sent]:
    return [s for s in sent if stage.began <= s.at < stage.ended]


def _counters(stage: Finished, sent: list[Sent], bucket: Bucket, prometheus: Prometheus) -> dict[str, Any]:
    """For accepted and stored records: the truth, and what the counters have by each path and by each function."""
    began, ended = stage.began, stage.ended
    window = f"{ended - began:.0f}s"
    result: dict[str, Any] = {}
    for outcome, role in (("accepted", API), ("stored", CONSUMER)):
        true = dict.fromkeys(SOURCES, 0.0)
        if outcome == "accepted":
            for submission in _in(stage, sent):
                true[submission.source] += submission.records
        else:
            for o in bucket.objects.values():
                if o.source in true and began <= o.written_at < ended:
                    true[o.source] += o.rows.total()  # type: ignore[attr-defined]
        kept: dict[str, dict[str, float]] = {}
        for path, job in (("otlp", f"bronze/{role}"), ("scrape", f"scrape-{role}")):
            kept[path] = {s: prometheus.kept(_records_of(job, outcome, s), began, ended) - true[s] for s in SOURCES}
        series = _records_of(f"bronze/{role}", outcome, "|".join(SOURCES))
        total = sum(true.values())

        def error(query: str, total: float = total) -> float:
            value = prometheus.value(query, ended)
            return math.nan if value is None else value - total

        result[outcome] = {
            "true": total,
            "otlp": kept["otlp"],
            "scrape": kept["scrape"],
            "increase": error(f"sum(increase({series}[{window}]))"),
            "anchored": error(f"sum(increase({series}[{window}] anchored))"),
            "counted": error(counted(series, window)),
        }
    return result


def _records_of(job: str, outcome: str, sources: str) -> str:
    return f'bronze_records_total{{job="{job}", bronze_outcome="{outcome}", bronze_source=~"{sources}"}}'


def _spans(stage: Finished, sent: list[Sent], bucket: Bucket, spans: Spans, prometheus: Prometheus) -> dict[str, float]:
    """Spans in the store, spans that the SDK and the collector counted, and what the store does not have."""
    began, ended = stage.began, stage.ended

    def sdk(name: str, lost: str) -> float:
        matchers = f'{{job=~"bronze/api|bronze/consumer|bronze/canary", error_type{lost}}}'
        return prometheus.kept(f"{name}{matchers}", began, ended)

    processed, exported = "otel_sdk_processor_span_processed_total", "otel_sdk_exporter_span_exported_total"
    requests = spans.requests()
    of_stage = _in(stage, sent)
    objects = [o for o in bucket.objects.values() if began <= o.written_at < ended]
    return {
        "stored": spans.count(began, ended),
        "sent": sdk(exported, '=""'),
        "dropped": sdk(exported, '!=""') + sdk(processed, '!=""'),
        **_of_collector(stage, prometheus),
        "submissions": len(of_stage),
        "submissions_without_span": sum(s.trace_id not in requests for s in of_stage),
        "uploads": len(objects),
        "uploads_without_span": sum(o.upload_span not in spans.found for o in objects),
    }


def _of_collector(stage: Finished, prometheus: Prometheus) -> dict[str, float]:
    """Spans that the collector took, passed on, and lost, by its own counters."""

    def kept(name: str) -> float:
        series = f'{name}{{job="scrape-collector", exporter!="zipkin"}}'  # which gets the same for the canary
        return prometheus.kept(series, stage.began, stage.ended)

    return {
        "collector_accepted": kept("otelcol_receiver_accepted_spans"),
        "collector_sent": kept("otelcol_exporter_sent_spans"),
        "collector_lost": kept("otelcol_exporter_send_failed_spans") + kept("otelcol_exporter_enqueue_failed_spans"),
    }


def _durations(spans: Spans, began: float, ended: float) -> dict[str, list[float]]:
    return {
        "request": spans.request_s(began, ended),
        "upload": spans.upload_s(began, ended),
        "delivery": [s for s in spans.delivery_s(began, ended) if s < 600],  # without those of a shifted clock
    }


def _percentiles(stage: Finished, sent: list[Sent], spans: Spans, prometheus: Prometheus) -> list[dict[str, Any]]:
    """The percentiles of the panels in a stage without faults, and those of the spans and of the client."""
    window_s = stage.ended - stage.began
    measured = _durations(spans, stage.began, stage.ended)
    client = [s.duration_s for s in _in(stage, sent) if s.statuses == [202]]
    found = []
    for kind, histogram in (("request", REQUESTS), ("upload", UPLOADS), ("delivery", DELIVERIES)):
        if not measured[kind]:
            continue
        for q in QUANTILES:
            shown = prometheus.value(asked(quantile_counted(q, histogram, f"{window_s:.0f}s"), window_s), stage.ended)
            found.append(
                {
                    **asdict(Percentile(kind, q, len(measured[kind]), exact(q, measured[kind]), math.nan, math.nan)),
                    "classic_s": math.nan if shown is None else shown,
                    "client_s": exact(q, client) if kind == "request" else math.nan,
                }
            )
    return found


def _explained(firing: Firing, kinds: list[Fault]) -> dict[str, Any]:
    by = sorted(
        {f.kind for f in kinds if firing.alert in EXPLAINS[f.kind] and f.began <= firing.began < f.ended + EXPLAINED_S}
    )
    return {"alert": firing.alert, "labels": firing.labels, "began": firing.began, "ended": firing.ended, "by": by}


def _sums(sent: list[Sent], bucket: Bucket) -> dict[str, float]:
    statuses = Counter(status for s in sent for status in s.statuses)
    return {
        "submissions": len(sent),
        "records": sum(s.records for s in sent),
        "accepted": sum(s.accepted for s in sent),
        "attempts": sum(statuses.values()),
        "attempts_without_answer": statuses[0],
        "attempts_refused": sum(number for status, number in statuses.items() if status >= 400),
        "objects": sum(bucket.counts()[s] for s in SOURCES),
        "rows": sum(bucket.records()[s] for s in SOURCES),
        "canary_rows": bucket.records()[CANARY],
    }
