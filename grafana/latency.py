"""Latency analysis: when was it slow, at which stage, compared with what, and which write was it."""

from grafana_foundation_sdk.builders.heatmap import Panel as Heatmap
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries

from grafana import house, traces
from grafana.house import (
    BAD,
    FAIR,
    GOOD,
    NEUTRAL,
    RECORDS_PER_S,
    SECONDS,
    SHARE,
    TIMES,
    WRITES_PER_S,
    Board,
    Row,
    Says,
    graph,
    line,
    number,
    query,
    tile,
)
from grafana.promql import (
    API,
    CONSUMER,
    DELIVERIES,
    INSTANCE,
    LINE_S,
    OBJECTIVE_S,
    RANGE,
    REQUESTS,
    SOURCE,
    STEP,
    THRESHOLDS,
    UPLOADS,
    beyond_line,
    delivered_late,
    mean,
    or_zero,
    quantile,
    rate,
    seconds_above,
)

_STAGES = f'bronze_stage_duration_seconds{{job=~"bronze/.+", {INSTANCE}, {SOURCE}}}'
_ACCEPTED = f'bronze_records_total{{{API}, {SOURCE}, bronze_outcome="accepted"}}'
_SUCCEEDED = f'bronze_uploads_total{{{CONSUMER}, {SOURCE}, bronze_outcome="success"}}'
_PERIOD = "$period"
_EARLIER = "one ${period:text} earlier"
_NO_EARLIER = "no earlier data"

#: Apart from the colours that judge.
_STAGE_COLOURS = {
    "accept": "light-blue",
    "wait": "gray",
    "encode": "purple",
    "put": "blue",
    "catalog": "#4CB5AE",
}

_BUDGETS = {
    "requests": THRESHOLDS.requests_budget,
    "uploads": THRESHOLDS.uploads_budget,
    "deliveries": THRESHOLDS.deliveries_budget,
    "attempts": THRESHOLDS.attempts_budget,
}
_BURN_ALERTS = ["BronzeRequestsSlow", "BronzeUploadsSlow", "BronzeDeliveriesLate", "BronzeUploadAttemptsFail"]


def board() -> Board:
    return Board(
        "bronze-latency",
        "Latency analysis",
        "When was it slow, at which stage, compared with what, and which write was it.",
        [
            Row("The slowest Bronze writes", [upload_distribution(), upload_percentiles(), slowest_writes()]),
            Row("Where the time goes", [stages(), stages_p95(), load_and_latency()]),
            Row(
                f"The line of {LINE_S:g} s",
                [
                    time_above("Requests", REQUESTS, f"{LINE_S:g}", f"{LINE_S:g} s", "BronzeRequestsSlow"),
                    time_above("Uploads", UPLOADS, f"{LINE_S:g}", f"{LINE_S:g} s", "BronzeUploadsSlow"),
                    time_above("Deliveries", DELIVERIES, OBJECTIVE_S, "their objective", "BronzeDeliveriesLate"),
                    share_beyond(),
                    budget_burn(),
                ],
            ),
            Row(
                "This ${period:text} and the one before",
                [
                    change("Uploads", f"increase({_SUCCEEDED}[{RANGE}]"),
                    change("Records accepted", f"increase({_ACCEPTED}[{RANGE}]"),
                    change_of_p95("p95 upload", UPLOADS),
                    change_of_p95("p95 delivery", DELIVERIES),
                    compared_p95(),
                    compared_uploads(),
                ],
            ),
        ],
        [
            house.choice("period", "Compare with one", {"hour": "1h", "day": "1d", "week": "7d"}, "hour"),
            house.choice(
                "at_least", "Writes of at least", {d: d for d in ("1ms", "100ms", "500ms", "1s", "2s", "5s")}, "1ms"
            ),
            traces.api_url(),
        ],
    )


# --- the slowest Bronze writes


def upload_distribution() -> Heatmap:
    says = Says(
        "Upload duration",
        f"How many uploads took how long; above the mark *{LINE_S:g} s line* they are beyond the objective. Each "
        "orange mark is an upload: click it and choose *Show the trace*.",
        "no upload yet",
        ["BronzeUploadsSlow"],
    )
    return house.distribution(says, UPLOADS, width=14)


def upload_percentiles() -> Timeseries:
    says = Says(
        "Upload duration, percentiles",
        "p50 far below p99: some writes are slow, of large objects for instance. All of them high: the bucket is slow.",
        "no upload yet",
        ["BronzeUploadsSlow"],
    )
    panel = graph(says, SECONDS, *house.percentiles(UPLOADS, exemplars=True), line(), width=10, height=10)
    return house.percentile_graph(panel)


def slowest_writes() -> Table:
    says = Says(
        "Slowest Bronze writes",
        "Upload spans of the range, the slowest first, of the latest 200 that Tempo finds: choose *Writes of at least* "
        "to leave the fast ones out. *Span* opens the trace, *Object* what the API knows of it.",
        "no such write in this range",
        ["BronzeUploadsSlow"],
    )
    return traces.uploads(says, "$at_least", first="Duration")


# --- where the time goes


def stages() -> Timeseries:
    says = Says(
        "Mean time by stage",
        "accept: to the queue's durable ack. wait: for the flush, and for what is before it. encode: to Parquet. put: "
        "PutObject. catalog: identities and entry. A stage that grows is the one to look at.",
        "nothing stored yet",
    )
    panel = graph(says, SECONDS, query(mean(_STAGES, "bronze_stage"), "{{bronze_stage}}"))
    return house.stacked(house.colours(panel, _STAGE_COLOURS))


def stages_p95() -> Timeseries:
    says = Says(
        "Time by stage, p95",
        "As beside, of the slow ones. `wait` is the flush age at most, unless there is a backlog. Marks are traces.",
        "nothing stored yet",
        ["BronzeDeliveriesLate"],
    )
    by_stage = query(quantile(0.95, _STAGES, "bronze_stage"), "{{bronze_stage}}", exemplars=True)
    return house.colours(graph(says, SECONDS, by_stage), _STAGE_COLOURS)


def load_and_latency() -> Timeseries:
    says = Says(
        "Load and latency",
        "Records accepted (bars, right) beside p95 (lines, left). Lines that rise with the bars: more lanes or API "
        "processes. Lines that rise alone: the bucket or the queue.",
        "nothing accepted yet",
    )
    panel = graph(
        says,
        SECONDS,
        query(quantile(0.95, REQUESTS), "p95 request"),
        query(quantile(0.95, UPLOADS), "p95 upload"),
        query(rate(_ACCEPTED), "records accepted"),
    )
    panel = house.colours(panel, {"request$": "light-blue", "upload$": "purple"})
    return house.right_axis(panel, "records accepted", RECORDS_PER_S)


# --- the line


def time_above(what: str, histogram: str, limit: str, name: str, alert: str) -> Stat:
    says = Says(
        f"{what}: time above",
        f"How much of the chosen range p95 was above {name}. Times without {what.lower()} do not count.",
        "no time above",
        [alert],
    )
    above = number(seconds_above(quantile(0.95, histogram), limit))
    return tile(says, SECONDS, above, width=8).thresholds(house.none_is_good(fair=1, bad=THRESHOLDS.page_hold_s))


def share_beyond() -> Timeseries:
    says = Says(
        "Share beyond the line",
        f"Which share of requests and uploads took over {LINE_S:g} s, and of deliveries over flush age + {LINE_S:g} s. "
        f"The objective allows {THRESHOLDS.uploads_budget:.0%}, the dashed line.",
        "nothing has happened yet",
        _BURN_ALERTS[:3],
    )
    return graph(
        says,
        SHARE,
        query(or_zero(beyond_line(REQUESTS)), "requests"),
        query(or_zero(beyond_line(UPLOADS)), "uploads"),
        query(or_zero(delivered_late()), "deliveries"),
        line(f"vector({THRESHOLDS.uploads_budget:g})", f"line: {THRESHOLDS.uploads_budget:.0%}"),
        width=12,
    )


def budget_burn() -> Timeseries:
    says = Says(
        "Burn of the error budget",
        "How many times faster than allowed the last hour spent the month's budget: at 1 it lasts just 30 days, at "
        f"{THRESHOLDS.page_burn_1h:g} somebody is called. Of all sources, whatever is chosen above.",
        "the rules are not evaluated",
        _BURN_ALERTS,
    )
    burns = (
        query(or_zero(f"sum(bronze:{name}_bad:ratio_rate1h) / {budget:g}"), name) for name, budget in _BUDGETS.items()
    )
    limits = (
        line("vector(1)", "line: 1, lasts 30 days"),
        line(f"vector({THRESHOLDS.page_burn_1h:g})", f"line: {THRESHOLDS.page_burn_1h:g}, calls somebody"),
    )
    return graph(says, TIMES, *burns, *limits, width=12)


# --- this period and the one before


def change(what: str, increase: str) -> Stat:
    says = Says(
        what,
        f"{what} of the chosen range, against the same range {_EARLIER}: -20% is a fifth less. Less load alone is no "
        "fault; less load while senders are busy is.",
        _NO_EARLIER,
    )
    now, before = f"sum({increase}))", f"sum({increase} offset {_PERIOD}))"
    return (
        tile(says, SHARE, number(f"{now} / ({before} > 0) - 1"), width=6).thresholds(house.steps(NEUTRAL)).decimals(0)
    )


def change_of_p95(what: str, histogram: str) -> Stat:
    says = Says(
        what,
        f"{what} of the chosen range, against the same range {_EARLIER}. Yellow: a quarter slower; red: twice as slow.",
        _NO_EARLIER,
    )
    now, before = (quantile(0.95, histogram, window=RANGE, offset=offset) for offset in ("", _PERIOD))
    panel = tile(says, SHARE, number(f"({now}) / (({before}) > 0) - 1"), width=6).decimals(0)
    return panel.thresholds(house.steps(NEUTRAL, (-1, GOOD), (0.25, FAIR), (1, BAD)))


def compared_p95() -> Timeseries:
    says = Says(
        "p95 upload, now and then",
        f"The dashed grey line is the same time {_EARLIER}. Where nothing is known of that time, the legend says so.",
        "no upload yet",
    )
    return _compared(says, SECONDS, quantile(0.95, UPLOADS), quantile(0.95, UPLOADS, offset=_PERIOD), line())


def compared_uploads() -> Timeseries:
    says = Says(
        "Uploads, now and then",
        f"The dashed grey line is the same time {_EARLIER}. Where nothing is known of that time, the legend says so.",
        "no upload yet",
    )
    return _compared(says, WRITES_PER_S, rate(_SUCCEEDED), rate(_SUCCEEDED, offset=_PERIOD))


def _compared(says: Says, unit: str, now: str, earlier: str, *lines: house.Target) -> Timeseries:
    unknown = f"absent_over_time({_ACCEPTED}[{STEP}] offset {_PERIOD}) - 1"
    panel = graph(
        says,
        unit,
        query(now, "now"),
        query(earlier, _EARLIER),
        query(unknown, f"no data {_EARLIER}"),
        *lines,
        width=12,
    )
    return house.faded(panel, "earlier")
