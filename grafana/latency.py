"""Latency analysis: when was the system slow, at which stage, compared with which period, and for which write."""

from collections.abc import Sequence

from grafana_foundation_sdk.builders.dashboard import QueryVariable, ThresholdsConfig
from grafana_foundation_sdk.builders.heatmap import Panel as Heatmap
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries
from grafana_foundation_sdk.models.dashboard import VariableOption

from bronze.objectives import DURATION_S_MAX
from bronze.telemetry import promql
from bronze.telemetry.promql import histogram_series
from grafana import components, traces
from grafana.components import (
    BAD,
    COUNT,
    EXACT,
    FACTOR,
    FAIR,
    GOOD,
    NEUTRAL,
    NOTHING,
    RECORDS_PER_S,
    SECONDS,
    SHARE,
    TIMES,
    Board,
    PanelInfo,
    Row,
    graph,
    limit_line,
    no_answer,
    not_ended,
    query,
    single_value,
    tile,
)
from grafana.promql import (
    API,
    CONSUMER,
    DELIVERIES,
    DELIVERIES_STOOD,
    FAILED_UPLOADS,
    INSTANCE,
    INTERVAL,
    LEDGER,
    OBJECTIVE_S,
    PERIOD,
    REQUESTS,
    REQUESTS_STOOD,
    SOURCE,
    STEP,
    THRESHOLDS,
    UNFINISHED_UPLOAD_S,
    UPLOADS,
    UPLOADS_STOOD,
    added,
    all_above,
    counted,
    earlier,
    mean,
    or_zero,
    quantile,
    quantile_counted,
    rate,
    seconds_above,
    share_above_limit,
    share_delivered_late,
    share_failed_or_slow,
)
from prometheus import rules

_STAGES = f'bronze_stage_duration_seconds{{job=~"bronze/.+", {INSTANCE}, {SOURCE}}}'
_ACCEPTED = f'bronze_records_total{{{API}, {SOURCE}, bronze_outcome="accepted"}}'
_SUCCEEDED = f'bronze_uploads_total{{{CONSUMER}, {SOURCE}, bronze_outcome="success"}}'
#: What every process of a role reports from its first export on.
_BY_API, _BY_CONSUMER = (f"bronze_records_total{{{role}, {SOURCE}}}" for role in (API, CONSUMER))
_OBJECTS = f"bronze_ledger_objects{{{LEDGER}, {SOURCE}}}"
_ACCEPTED_IN_ALL = f'bronze_ledger_records{{{LEDGER}, {SOURCE}, bronze_outcome="accepted"}}'
_EARLIER = "one ${period:text} earlier"
_COMPARED_UPLOADS, _COMPARED_P95 = f"Uploads, now and {_EARLIER}", f"p95 upload, now and {_EARLIER}"

_BEFORE = "${period:text} before"

_CHANGE = "change"
#: Fewer than a search returns: a failed write has a span, too.
_SLOWEST_MAX = 150

#: None of the colours that mean good, fair or bad.
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
        "When was the system slow, at which stage, compared with which period, and for which write.",
        [
            Row("The slowest Bronze writes", [upload_distribution(), upload_percentiles(), slowest_writes()]),
            Row("Time per stage", [stages(), stages_p95(), load_and_latency()]),
            Row(
                f"The {DURATION_S_MAX:g} s limit",
                [
                    budget_left(),
                    requests_above(),
                    uploads_above(),
                    deliveries_above(),
                    share_above(),
                    budget_burn(),
                ],
            ),
            Row(
                "Comparison with the previous ${period:text}",
                [
                    change_of_count("Uploads", _OBJECTS, _COMPARED_UPLOADS),
                    change_of_count("Records", _ACCEPTED_IN_ALL, "Load and latency"),
                    change_of_p95("p95 upload", UPLOADS, _COMPARED_P95),
                    change_of_p95("p95 delivery", DELIVERIES, "Time by stage, p95"),
                    compared_p95(),
                    compared_uploads(),
                ],
            ),
        ],
        [
            components.choice_variable(
                "period", "Compare with the previous", {"hour": "1h", "day": "1d", "week": "7d"}, "hour"
            ),
            least_duration(),
        ],
    )


# --- the slowest Bronze writes


def upload_distribution() -> Heatmap:
    info = PanelInfo(
        "Upload duration",
        f"Number of uploads by duration. Uploads above the mark *{DURATION_S_MAX:g} s limit* miss the objective. Each "
        "orange mark is an upload: click it and choose *Show the trace*.",
        "no upload yet",
        ["BronzeUploadsSlow"],
    )
    return components.distribution(info, UPLOADS, width=14)


def upload_percentiles() -> Timeseries:
    info = PanelInfo(
        "Upload duration, percentiles",
        "p50 far below p99: some writes are slow, for example those of large objects. All high: the bucket is slow. "
        "*failed attempts*: p95 of attempts that failed. *not ended yet*: how long the upload that is due has taken, "
        "if that is over the limit. A mark links to the trace of an upload, or of an attempt that failed.",
        "no upload yet",
        ["BronzeUploadsSlow"],
    )
    targets = components.percentiles(UPLOADS, exemplars=True)
    # the first failure begins a series, which a rate does not show
    failed = query(promql.quantile_counted(0.95, FAILED_UPLOADS, STEP), "failed attempts", exemplars=True)
    others = failed, not_ended(UNFINISHED_UPLOAD_S), limit_line(), no_answer("consumer", DURATION_S_MAX)
    panel = graph(info, SECONDS, *targets, *others, width=10, height=10)
    return components.colours(components.percentile_graph(panel), {"^failed attempts": BAD})


def slowest_writes() -> Table:
    info = PanelInfo(
        "Slowest Bronze writes",
        "The writes of the whole range that took at least *Slowest writes from*, slowest first. That duration is the "
        f"smallest bound of the histogram which at most {_SLOWEST_MAX} writes exceeded, so none of these is missing. "
        "If more exceeded each bound, they are the latest of those above the highest one. *Span* opens the trace, "
        "*Object* opens the object's lineage.",
        "no such write in this range",
        ["BronzeUploadsSlow"],
    )
    return traces.uploads(info, "${at_least}s", first="Duration")


def least_duration() -> QueryVariable:
    variable = components.from_result("at_least", "Slowest writes from (s)", _least_of_the_slowest(), 'le="([^"]+)"')
    return variable.current(VariableOption(selected=True, text="0", value="0"))


def _least_of_the_slowest() -> str:
    """A bound of the histogram of uploads, as label `le`: the smallest that at most `_SLOWEST_MAX` writes of the range
    exceeded, and at least one; else the highest that any exceeded. 0 is a bound, too.

    Tempo does not sort: it has to be asked for no more spans than it returns.
    """
    every, within = counted(histogram_series(UPLOADS, "count")), counted(histogram_series(UPLOADS, "bucket"), "le")
    slower = f'(scalar({every}) - {within} or label_replace({every}, "le", "0", "", ""))'
    return f"""\
topk(1, {slower} > 0 <= {_SLOWEST_MAX})
or on () bottomk(1, {slower} > {_SLOWEST_MAX})
or on () label_replace(vector(0), "le", "0", "", "")"""


# --- where the time goes


def stages() -> Timeseries:
    info = PanelInfo(
        "Mean time by stage",
        "accept: until the queue's durable ack. wait: for the flush, and for the messages ahead. encode: to Parquet. "
        "put: PutObject. catalog: identities and catalog entry. Look at the stage that grows.",
        "nothing stored yet",
    )
    panel = graph(info, SECONDS, query(mean(_STAGES, "bronze_stage"), "{{bronze_stage}}"))
    return components.stacked(components.colours(panel, _STAGE_COLOURS))


def stages_p95() -> Timeseries:
    info = PanelInfo(
        "Time by stage, p95",
        "As *Mean time by stage*, at the 95th percentile. `wait` is at most the flush age, unless there is a backlog. "
        "Marks link to traces.",
        "nothing stored yet",
        ["BronzeDeliveriesLate"],
    )
    by_stage = query(quantile(0.95, _STAGES, "bronze_stage"), "{{bronze_stage}}", exemplars=True)
    return components.log_axis(components.colours(graph(info, SECONDS, by_stage), _STAGE_COLOURS))


def load_and_latency() -> Timeseries:
    info = PanelInfo(
        "Load and latency",
        "Records accepted (bars, right axis) and p95 (lines, left axis). If the lines rise with the bars, more "
        "lanes or API processes help. If the lines rise alone, the bucket or the queue is slow.",
        "nothing accepted yet",
    )
    panel = graph(
        info,
        SECONDS,
        query(quantile(0.95, REQUESTS), "p95 request"),
        query(quantile(0.95, UPLOADS), "p95 upload"),
        query(rate(_ACCEPTED), "records accepted"),
    )
    panel = components.colours(panel, {"request$": "light-blue", "upload$": "purple"})
    return components.right_axis(panel, "records accepted", RECORDS_PER_S)


# --- the limit


def requests_above() -> Stat:
    info = PanelInfo(
        "Requests: time above limit",
        f"How long in the chosen range more than 5 % of the submissions took over {DURATION_S_MAX:g} s or got a 5xx, "
        "or none was answered while some waited, or no API ran.",
        "never above the limit",
        ["BronzeRequestsSlow", "BronzeRequestsFail"],
        ("bronze-overview", "Request latency"),
    )
    return _time_above(info, share_failed_or_slow(), "0.05", REQUESTS_STOOD)


def uploads_above() -> Stat:
    info = PanelInfo(
        "Uploads: time above limit",
        f"How long p95 was above {DURATION_S_MAX:g} s in the chosen range, or an upload had not ended "
        f"{DURATION_S_MAX:g} s after the flush age, or records waited and no consumer ran. Times in which nothing was "
        "to be uploaded do not count.",
        "never above the limit",
        ["BronzeUploadsSlow", "BronzeUploadsFail"],
        ("bronze-latency", "Upload duration, percentiles"),
    )
    return _time_above(info, quantile(0.95, UPLOADS), f"{DURATION_S_MAX:g}", UPLOADS_STOOD)


def deliveries_above() -> Stat:
    info = PanelInfo(
        "Deliveries: time above limit",
        "How long p95 was above the objective in the chosen range, or a message waited for longer than that, or "
        "records waited and no consumer ran. Times in which nothing was to be delivered do not count.",
        "never above the limit",
        ["BronzeDeliveriesLate", "BronzeBacklogOverdue"],
        ("bronze-overview", "Delivery duration"),
    )
    return _time_above(info, quantile(0.95, DELIVERIES), OBJECTIVE_S, DELIVERIES_STOOD)


def _time_above(info: PanelInfo, expr: str, limit: str, stood: Sequence[str]) -> Stat:
    above = single_value(seconds_above(expr, limit, stood))
    return tile(info, SECONDS, above, width=8).thresholds(components.zero_is_good(fair=1, bad=THRESHOLDS.page_hold_s))


def share_above() -> Timeseries:
    info = PanelInfo(
        "Share above the limit",
        f"Share of the requests and uploads that took over {DURATION_S_MAX:g} s, and of the deliveries that took over "
        f"flush age + {DURATION_S_MAX:g} s. A request with a 5xx counts, too. All count in times in which nothing "
        f"ended although something waited. The objectives allow {THRESHOLDS.uploads_budget:.0%}, the dashed line.",
        "no request, upload or delivery yet",
        _BURN_ALERTS[:3],
    )
    return graph(
        info,
        SHARE,
        query(all_above(share_failed_or_slow(), REQUESTS_STOOD, _BY_API), "requests"),
        query(all_above(share_above_limit(UPLOADS), UPLOADS_STOOD, _BY_CONSUMER), "uploads"),
        query(all_above(share_delivered_late(), DELIVERIES_STOOD, _BY_CONSUMER), "deliveries"),
        limit_line(f"vector({THRESHOLDS.uploads_budget:g})", f"limit: {THRESHOLDS.uploads_budget:.0%}"),
        width=12,
    )


def budget_left() -> Stat:
    info = PanelInfo(
        "Error budget left, 30 days",
        "How much of the error budget of the last 30 days is left, or of as many of them as Prometheus keeps. At 0 the "
        "objective is missed. Always for all sources.",
        "no request, upload or delivery yet",
        _BURN_ALERTS,
        ("bronze-latency", "Error budget burn rate"),
    )
    left = (single_value(rules.budget_left(name), name) for name in _BUDGETS)
    panel = tile(info, SHARE, *left, width=24)
    return panel.thresholds(components.steps(NEUTRAL, (0, BAD), (0.001, FAIR), (0.25, GOOD))).decimals(0)


def budget_burn() -> Timeseries:
    info = PanelInfo(
        "Error budget burn rate",
        "How many times faster than allowed the last hour used the error budget. At 1 the budget lasts exactly 30 "
        f"days, at {THRESHOLDS.page_burn_1h:g} an alert pages. Always for all sources.",
        "the rules are not evaluated",
        _BURN_ALERTS,
    )
    burns = (
        query(or_zero(f"sum(bronze:{name}_bad:ratio_rate1h) / {budget:g}"), name) for name, budget in _BUDGETS.items()
    )
    limits = (
        limit_line("vector(1)", "limit: 1, lasts 30 days"),
        limit_line(f"vector({THRESHOLDS.page_burn_1h:g})", f"limit: {THRESHOLDS.page_burn_1h:g}, pages"),
    )
    return components.log_axis(graph(info, TIMES, *burns, *limits, width=12), floor=0.01)


# --- comparison with the previous period


def change_of_count(title: str, ledger: str, explained_by: str) -> Stat:
    return _change(
        PanelInfo(
            f"{title}, {_BEFORE}",
            f"{title} of the range, and of the same range {_EARLIER}, and how many times as many these are now. The "
            "counts are exact, from the catalog and the queue. Less load is a fault only if the senders are as busy as "
            "before.",
            "no process has reported yet",
            explained_by=("bronze-latency", explained_by),
        ),
        EXACT,
        f"sum({added(ledger)})",
        components.steps(NEUTRAL),
    )


def change_of_p95(title: str, histogram: str, explained_by: str) -> Stat:
    return _change(
        PanelInfo(
            f"{title}, {_BEFORE}",
            f"{title} of the range, and of the same range {_EARLIER}, and how many times as long it is now. Yellow: "
            "a quarter longer; red: twice as long.",
            "no upload",
            explained_by=("bronze-latency", explained_by),
        ),
        SECONDS,
        quantile_counted(0.95, histogram),
        components.steps(GOOD, (1.25, FAIR), (2, BAD)),
    )


def _change(info: PanelInfo, unit: str, value: str, of_change: ThresholdsConfig) -> Stat:
    """The value now, earlier, and how many times as large it is now."""
    before = earlier(value)
    panel = tile(
        info,
        unit,
        single_value(value, "now"),
        single_value(f"{before}\nor on () vector(-1)", _EARLIER),
        single_value(f"(\n{value}\n) / (\n{before} > 0\n)", _CHANGE),
        width=6,
        height=4,
    )
    return components.of_field(components.value_names(panel, {"-1": "no data"}, NOTHING), _CHANGE, FACTOR, of_change)


def compared_p95() -> Timeseries:
    info = PanelInfo(
        _COMPARED_P95,
        f"The dashed grey line is the same time {_EARLIER}. If there is no data for that time, the legend says so.",
        "no upload yet",
    )
    return _compared(info, SECONDS, quantile(0.95, UPLOADS), quantile(0.95, UPLOADS, offset=PERIOD), limit_line())


def compared_uploads() -> Timeseries:
    info = PanelInfo(
        _COMPARED_UPLOADS,
        "How many uploads succeeded in each interval of the graph. The dashed grey line is the same time "
        f"{_EARLIER}. If there is no data for that time, the legend says so.",
        "no upload yet",
    )
    now, before = (f"sum(increase({_SUCCEEDED}[{INTERVAL}] anchored{offset}))" for offset in ("", f" offset {PERIOD}"))
    return _compared(info, COUNT, now, before)


def _compared(info: PanelInfo, unit: str, now: str, before: str, *limits: components.Target) -> Timeseries:
    absent = f"absent_over_time({_ACCEPTED}[{STEP}] offset {PERIOD}) - 1"
    panel = graph(
        info,
        unit,
        query(now, "now"),
        query(before, _EARLIER),
        query(absent, f"no data {_EARLIER}"),
        *limits,
        width=12,
    )
    return components.legend_only(components.faded(panel, "earlier"), "no data")
