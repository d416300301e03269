"""Writes docs/truth.md from the results of a run."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

Results = Mapping[str, Any]


def written(results: Results) -> str:
    """The page: the tables first, then how each number is measured."""
    parts = (
        _INTRODUCTION,
        _summary(results),
        _numbers(results),
        _counters(results),
        _spans(results),
        _percentiles(results),
        _alerts(results),
        _controls(results),
        _CLOCKS,
        _problems(results),
        _METHOD,
    )
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _summary(r: Results) -> str:
    sent, made = r["sent"], r["evaluations"]
    note = r.get("note")
    outcome = "Everything held." if not r["problems"] else f"{len(r['problems'])} claims did not hold; they are below."
    return f"""\
Last run: {r["ended"][:10]}, seed {r["seed"]}, {r["seconds"] / 60:.0f} minutes with outages of {r["outage_s"]:.0f} \
s, service `{r["service"]}` ({r["machine"].partition(":")[0]}). {outcome}{f" {note}" if note else ""}

{
        _table(
            ("what", "result"),
            [
                ("submissions sent and accepted", f"{sent['submissions']:,} and {sent['accepted']:,}"),
                ("attempts, of them without an answer or refused", _attempts(sent)),
                ("records accepted", f"{sent['records']:,}"),
                ("rows read back, in objects", f"{sent['rows']:,} in {sent['objects']:,}"),
                ("rows of the canary, which no other number here counts", f"{sent['canary_rows']:,}"),
                (
                    "evaluations, every 15 s (Prometheus did not answer)",
                    f"{made['made']} ({made['unanswered']})",
                ),
                (
                    "evaluations at which *Missing* was not 0, or the ledger negative, too high or falling",
                    f"{made['problems']}",
                ),
                ("evaluations at which *BronzeRecordsMissing* was pending or firing", f"{made['missing_pending']}"),
                ("the same for a synthetic day (promtool)", _day(r["day"])),
                ("firings of alerts, of them explained by no fault", _firings(r)),
            ],
        )
    }"""


def _day(day: Mapping[str, Any]) -> str:
    faults = f"{day['kills']} kills, {day['restarts']} restarts and {day['gaps']} gaps"
    return f"{'**wrong**' if day['problems'] else 0} of {day['evaluations']:,}, with {faults}"


def _attempts(sent: Mapping[str, float]) -> str:
    return f"{sent['attempts']:,}, of them {sent['attempts_without_answer'] + sent['attempts_refused']:,}"


def _firings(r: Results) -> str:
    return f"{len(r['alerts'])}, of them {sum(not alert['by'] for alert in r['alerts'])}"


def _numbers(r: Results) -> str:
    def row(stage: Mapping[str, Any]) -> tuple[str, ...]:
        wrong = "; ".join(f"{name}: {what}" for name, what in stage["wrong"].items()) or "none"
        shown, true = stage["counted"]["Requests"]
        error = "no value" if shown is None else f"{shown - true:+.1f} of {true:,.0f}"
        return (
            stage["name"],
            _events(stage),
            f"{stage['settled_s']:.0f}",
            wrong,
            error,
        )

    return f"""\
## Numbers that have to be exact

After each stage, once the load has paused: the numbers on *Bronze overview* and on the API's page, by their own \
queries, against every object and row in the bucket and against the client's own 202s. The last column is a number \
that comes from counters: the tile *Requests*, since the begin of the run, against the answers that the client \
got.

{_table(("stage", "faults", "settled and read, s", "wrong numbers", "error of *Requests*"), map(row, r["stages"]))}

The time includes reading the new objects. Requests that a killed API counted since its last \
export are lost."""


def _events(stage: Mapping[str, Any]) -> str:
    return ", ".join(f"{number:.0f}x {kind}" for kind, number in stage["faults"].items()) or "none"


def _counters(r: Results) -> str:
    def rows() -> Iterable[tuple[str, ...]]:
        for stage in r["stages"]:
            for outcome, counter in stage["counters"].items():
                yield (
                    stage["name"],
                    outcome,
                    f"{counter['true']:,.0f}",
                    "0",
                    _error(counter["otlp"]),
                    _error(counter["scrape"]),
                    _signed(counter["anchored"]),
                    _signed(counter["increase"]),
                )

    return f"""\
## Error of the counters

Records that were accepted or stored in a stage, and by how many the counter `bronze_records_total` differs: from \
its raw samples by OTLP and by scrape (the source with the largest error in brackets), and by two functions of \
PromQL over the samples by OTLP. The ledger has no error in any stage, or the table above says so.

{_table(("stage", "records", "true", "ledger", "OTLP", "scrape", "`increase(… anchored)`", "`increase`"), rows())}

What a killed process counted since its last export or scrape, at most 5 s here, is lost. A retry \
after a lost answer counts as replayed, not as accepted."""


def _error(by_source: Mapping[str, float]) -> str:
    worst = max(by_source, key=lambda source: abs(by_source[source]))
    total = sum(by_source.values())
    return f"{total:+,.0f}" + (f" ({worst} {by_source[worst]:+,.0f})" if by_source[worst] else "")


def _signed(value: float | None) -> str:
    return "no value" if value is None else f"{value:+,.1f}"


def _spans(r: Results) -> str:
    def row(stage: Mapping[str, Any]) -> tuple[str, ...]:
        s = stage["spans"]
        return (
            stage["name"],
            f"{s['sent']:,.0f}",
            f"{s['dropped']:,.0f}",
            f"{s['collector_accepted']:,.0f}",
            f"{s['collector_sent']:,.0f}",
            f"{s['collector_lost']:,.0f}",
            f"{s['stored']:,}",
            f"{s['submissions_without_span']:,} of {s['submissions']:,}",
            f"{s['uploads_without_span']:,} of {s['uploads']:,}",
        )

    head = (
        "stage",
        "SDK: sent",
        "SDK: dropped",
        "collector: accepted",
        "sent",
        "lost",
        "stored",
        "submissions without a span",
        "uploads without a span",
    )
    return f"""\
## Spans

What the SDK of the roles counted as sent and as dropped, what the collector counted, and what arrived in the \
trace store. And what the store does not have: the request of an accepted submission, and the upload of an object \
in the bucket.

{_table(head, map(row, r["stages"]))}

Without a kill, every span that was sent is stored, and each missing span is among those counted as dropped. The \
collector's own spans, of 1 % of the requests to it, are in its counts and in the store. The spans of the last \
second and of open requests of a killed role are lost, which nothing counts. Counts end with the last export or scrape \
of a process: in the stage of a restart or a kill, more spans can be stored than were counted as sent. \
{r["spans_repeated"]:,} spans came more than once: an export whose answer was lost is repeated."""


def _percentiles(r: Results) -> str:
    def shown(value: float | None) -> str:
        return "" if value is None else f"{1000 * value:,.1f}"

    def off(value: float | None, true: float) -> str:
        return "no value" if value is None else f"{1000 * value:,.1f} ({value / true - 1:+.0%})"

    of_panels = [
        (
            p["of"],
            f"p{100 * p['q']:g}",
            f"{p['count']:,}",
            shown(p["measured_s"]),
            off(p["classic_s"], p["measured_s"]),
            shown(p["client_s"]),
        )
        for p in r["percentiles"]
    ]
    replayed = [
        (
            p["of"],
            f"p{100 * p['q']:g}",
            f"{p['count']:,}",
            shown(p["measured_s"]),
            off(p["classic_s"], p["measured_s"]),
            off(p["native_s"], p["measured_s"]),
        )
        for p in r["replayed"]
    ]
    head = ("duration of", "percentile", "measured", "spans, ms")
    return f"""\
## Error of the percentiles

In the first stage, in ms: the spans' own durations, the panel's percentile for the same time, and what the client \
measured, which includes the connection and its own event loop.

{_table((*head, "panel, ms (error)", "client, ms"), of_panels)}

All durations of the run, recorded once more in both kinds of histograms, exported by OTLP and asked for with \
`histogram_quantile`:

{_table((*head, "classic buckets (error)", "native histogram (error)"), replayed)}

{_DECISION}"""


_DECISION = """\
A percentile from classic buckets is a straight line between two bounds, so its error is up to the width of a \
bucket; a native histogram's buckets are about 9 % wide at most here. Bronze keeps the classic buckets and does \
not offer the native ones as a setting: what alerts decide on is the share within the objective (2 s, or flush age \
+ 2 s), for which a classic histogram has an exact bound and a native one has not; `/metrics`, which is compared \
with OTLP to find wrong telemetry, cannot express native histograms; and every rule, panel and test would need two \
forms. `OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION=base2_exponential_bucket_histogram` is refused at \
the start of a role, with this reason. For the exact duration of one upload, open its trace."""


def _alerts(r: Results) -> str:
    def key(alert: Mapping[str, Any]) -> str:
        return str(alert["alert"])

    rows = []
    for name, group in groupby(sorted(r["alerts"], key=key), key):
        firings = list(group)
        by = Counter(kind for firing in firings for kind in firing["by"])
        rows.append((name, f"{len(firings)}", ", ".join(by) or "**nothing**"))
    return f"""\
## Alerts

Every alert that fired, also in the negative controls, and the faults that explain it: those that can cause it and \
that happened before it, within its window.

{_table(("alert", "firings", "faults"), rows)}"""


def _controls(r: Results) -> str:
    rows = [
        (c["name"], _alert(c["found_by"]), "**not found**" if c["seconds"] is None else f"{c['seconds']:.0f}")
        for c in r["controls"]
    ]
    return f"""\
## Negative controls

{_table(("what was done", "what has to find it", "after, s"), rows)}"""


def _alert(labels: str) -> str:
    """The name of an alert and its other labels, in words."""
    name, *others = re.findall(r'"([^"]+)"', labels) or [labels]
    return f"*{name}* ({', '.join(others)})" if others else name


_CLOCKS = """\
## A wrong clock

- **Exact numbers** stay right: they come from the queue and the catalog, and any process that reports is enough.
- **Metrics of a process whose clock is more than ten minutes ahead** are refused by Prometheus until the clock is \
right again; then its counters are complete. Prometheus refuses whole requests (400); the collector sends the \
metrics of each process in requests of their own, so no other process is affected. *BronzePrometheusRejects* and \
*BronzeCollectorDrops* say so after ten minutes.
- **A consumer** whose clock is more than 15 minutes wrong cannot write to the bucket (403: its requests' \
signatures are too old or too new). It keeps its lanes, which wait until its clock is right or it ends; nothing is \
lost. Its delivery durations are wrong by the same time."""


def _problems(r: Results) -> str:
    if not r["problems"]:
        return ""
    found: Counter[str] = Counter(r["problems"])
    listed = [f"- {problem}" + (f" ({number} times)" if number > 1 else "") for problem, number in found.items()]
    return "\n".join(["## What did not hold", "", *listed, "", *r.get("notes", ())])


_INTRODUCTION = """\
<!-- Generated by `make truth` from docs/truth.json. -->

# How exact the telemetry is

Which numbers are exact, and by how much the others err: measured on a whole system under load, with faults, by a \
command that repeats it. `make truth HOURS=1` runs it again and writes this page; `make truth S=300` is a shorter \
run, whose page is in `.local/truth/`."""

_METHOD = """\
## How it is measured

- **The system** is the real one: NATS, SeaweedFS, the collector and Prometheus, and the roles as processes, with \
a flush age of 1 s, an export and a scrape every 5 s. A supervisor starts a role's process again when it has \
ended. The first process of a role keeps its instance id, as with `make up`; the others get a new one at each \
start, as containers do. Its trace store is an OTLP receiver that counts what it gets. The canary runs as in \
production, with Zipkin as its trace store: no number of data may count its records, and its own are compared too. \
Alerts are those of Prometheus, before Alertmanager holds back what follows from another alert.
- **The load** sends to all sources, about 8 submissions/s of 1 to 20 records: a peak at four times the rate and a \
pause in each minute. It keeps a record of its own of each attempt, its status and its duration. Each submission \
has an Idempotency-Key and is repeated until it has a 202, so the 202s say exactly what has to be in the bucket.
- **The truth** is that record, and the bucket: each object is read with S3 and PyArrow, its rows are counted by \
submission. At the end all objects are read again.
- **The faults** of a stage are drawn from the seed. A *suspended* Prometheus is stopped by SIGSTOP: it neither \
scrapes nor answers. A process with a *wrong clock* runs with a shim (`tests/truth/shifted_clock.py`) that adds an \
hour to `time.time`, `time.time_ns` and `datetime.now` of that process, and takes it away again while it runs. The \
clock of the machine does not change. One of three processes of the role has the wrong clock.
- **At each evaluation** (15 s), *Missing* is read with the query of the page and the expression of the alert, and \
the ledger of each source: it may not fall, not be negative, and not exceed what was sent. The queries of the \
tiles are those in the dashboards' own files.
- **Raw samples** of a counter are added up with every reset. This is the most that anybody could learn from them.
- **The synthetic day** is made from the seed as series for promtool: two consumers that are killed and restarted, \
with gaps of up to 20 minutes. The rules of delivery are evaluated every 15 s, and the page's queries have to give \
the exact number at 288 times."""
