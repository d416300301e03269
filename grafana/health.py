"""Telemetry health: can the other dashboards be trusted."""

import re

from grafana_foundation_sdk.builders.dashboard import Panel
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.tempo import TempoQuery
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries

from bronze.telemetry.promql import NO_CANARY
from grafana import components
from grafana.components import (
    BAD,
    COUNT,
    COUNTS_PER_S,
    EXACT,
    FAIR,
    GOOD,
    NEUTRAL,
    SECONDS,
    SHARE,
    Board,
    PanelInfo,
    Row,
    graph,
    limit_line,
    no_answer,
    query,
    single_value,
    tile,
)
from grafana.promql import (
    COLLECTOR,
    LEDGER,
    PROMETHEUS,
    RANGE,
    THRESHOLDS,
    VERIFIED,
    added,
    counted,
    mean,
    or_zero,
    rate,
)
from prometheus.rules import CANARY_ALERTS, COMMAND, PERMANENT, Alert, all_alerts, canary_age_limit

_SIGNALS = {"spans": "spans", "metric_points": "metric points", "log_records": "logs"}
_DROPPED_BY_SDK = tuple(
    f'otel_sdk_{part}_total{{job=~"bronze/.+", error_type!=""}}'
    for item in ("span", "log")
    for part in (f"processor_{item}_processed", f"exporter_{item}_exported")
)
_DROPPED_BY_COLLECTOR = tuple(
    f"otelcol_exporter_{what}_{items}{{{COLLECTOR}}}"
    for what in ("enqueue_failed", "send_failed")
    for items in _SIGNALS
)
#: Values in a summary.
_TEMPLATES = re.compile(r"\{\{.+?\}\}(?: \(?\{\{.+?\}\}\)?)*")
_ONE_IS_GOOD = components.steps(NEUTRAL, (0, BAD), (1, GOOD))
#: Without publishers, which run for a while, and the collector's scrape endpoint, which only one exporter layer opens.
_PERMANENT = 'job=~"scrape-(api|consumer|canary|collector|nats|seaweedfs|prometheus)"'
_CANARY = 'job="bronze/canary"'


def board() -> Board:
    return Board(
        "bronze-health",
        "Telemetry health",
        "Whether the other dashboards can be trusted: dropped, missing and contradictory telemetry.",
        [
            Row(
                "Can the dashboards be trusted?",
                [
                    alerts(),
                    targets_down(),
                    counters_that_differ(),
                    sdk_drops(),
                    collector_drops(),
                    verified(),
                    verification_age(),
                    firing("page", "Alerts: urgent", "Alerts with the severity *page*: they need somebody to act now."),
                    firing(
                        "ticket",
                        "Alerts: other",
                        "Alerts with the severity *ticket*: they need somebody to act in the next days.",
                    ),
                    targets(),
                ],
            ),
            Row("Canary", [canary_age(), canary_checks(), canary_failures(), canary_durations()]),
            Row("Collector", [accepted(), queues(), sent(), failed()]),
            Row(
                "Components",
                [
                    differences(),
                    sdk_queue(),
                    sdk_drops_over_time(),
                    catalog_lag(),
                    followers(),
                    counter_error(),
                    since_compared(),
                ],
            ),
            Row("Prometheus", [rejected(), exemplars(), series_by_metric()]),
            Row("Service graph", [service_graph()], closed=True),
        ],
    )


# --- can the dashboards be trusted


def alerts() -> Stat:
    info = PanelInfo(
        "Alerts firing",
        "Alerts that fire now: the urgent ones need somebody at once, the others in the next days. The tables below "
        "list them.",
        "the rules are not evaluated",
        explained_by=("bronze-health", "Alerts: urgent"),
    )
    urgent, other = (
        single_value(
            or_zero(f'count(ALERTS{{alertname=~"Bronze.+", alertstate="firing", severity="{severity}"}})'), name
        )
        for severity, name in (("page", "urgent"), ("ticket", "other"))
    )
    panel = tile(info, COUNT, urgent, other, width=6).thresholds(components.zero_is_good(bad=1))
    return components.of_field(panel, "other", COUNT, components.steps(NEUTRAL, (0, GOOD), (1, FAIR)))


def targets_down() -> Stat:
    info = PanelInfo(
        "Targets down",
        "Permanent components that do not answer Prometheus' scrapes: the process is down, or the network fails.",
        "nothing is scraped",
        ["BronzeTargetDown", "BronzeRoleDown"],
        explained_by=("bronze-health", "Prometheus targets"),
    )
    return tile(info, COUNT, single_value(or_zero(f"count(up{{{_PERMANENT}}} == 0)")), width=6).thresholds(
        components.zero_is_good(bad=1)
    )


def counters_that_differ() -> Stat:
    info = PanelInfo(
        "Counters that differ",
        "How many counters of how many processes differ between their /metrics and the values that arrived through the "
        "collector. If it is not 0, telemetry was lost or counted twice.",
        "no two values to compare yet",
        ["BronzePathsDiffer"],
        explained_by=("bronze-health", "Counters that differ, by how much"),
    )
    number = "count(instance:counter:difference > 0) or group(instance:counter:difference) - 1"
    return tile(info, EXACT, single_value(number), width=6).thresholds(components.zero_is_good(bad=1))


def sdk_drops() -> Stat:
    info = PanelInfo(
        "Dropped by components",
        "Spans and log records that processes dropped in the range, because the collector did not accept them in time.",
        "no process has reported yet",
        ["BronzeSdkDrops"],
        explained_by=("bronze-health", "Dropped by components, by reason"),
    )
    return (
        tile(info, EXACT, single_value(_in_range(_DROPPED_BY_SDK)), width=6)
        .decimals(0)
        .thresholds(components.zero_is_good(bad=1))
    )


def collector_drops() -> Stat:
    info = PanelInfo(
        "Dropped by the collector",
        "Items that the collector did not keep in the range. Either an exporter's queue was full: the collector "
        "refused them, and components retry. Or the destination refused them permanently: they are lost.",
        "the collector has not reported yet",
        ["BronzeCollectorDrops"],
        explained_by=("bronze-health", "Dropped by exporter"),
    )
    return (
        tile(info, EXACT, single_value(_in_range(_DROPPED_BY_COLLECTOR)), width=6)
        .decimals(0)
        .thresholds(components.zero_is_good(bad=1))
    )


def verified() -> Stat:
    info = PanelInfo(
        "Verified",
        "Share of what was correct in the last verification of the range, by check: exemplars of uploads that led to "
        "their trace, object and catalog entry; entries; gaps between entries; objects. bronze verify lists each "
        "fault.",
        "no verification in the range: run bronze verify",
        ["BronzeVerificationFaulty"],
        explained_by=("bronze-latency", "Slowest Bronze writes"),
    )
    by_check = single_value(f"min by (bronze_verify_check) ({_last_verified()})", "{{bronze_verify_check}}")
    return tile(info, SHARE, by_check, width=12).thresholds(_ONE_IS_GOOD)


def verification_age() -> Stat:
    info = PanelInfo(
        "Since the last verification",
        "Time since the last verification in the range, of any kind.",
        "no verification in the range: run bronze verify",
        explained_by=("bronze-latency", "Slowest Bronze writes"),
    )
    last = f"max(last_over_time(bronze_verify_last_run_time_seconds{{{VERIFIED}}}[{RANGE}]))"
    return tile(info, SECONDS, single_value(f"time() - {last}"), width=6).decimals(0)


def _last_verified() -> str:
    """The share of the last verification of each check: several processes may have verified in the range. A role that
    no longer verifies goes on reporting its last share, which does not count.
    """
    ran = "bronze_verify_last_run_time_seconds"
    of_role = f"{ran}{{{PERMANENT}}} > time() - {THRESHOLDS.verified_s_max:g}"
    at = f"(last_over_time({ran}{{{COMMAND}}}[{RANGE}]) or {of_role})"
    return f"""\
last_over_time(bronze_verify_share{{{VERIFIED}}}[{RANGE}])
and on (job, instance, bronze_verify_check)
  ({at} == on (bronze_verify_check) group_left () max by (bronze_verify_check) ({at}))"""


def firing(severity: str, title: str, meaning: str) -> Table:
    info = PanelInfo(
        title,
        f"{meaning} Those that are pending fire if their condition goes on. A click on one opens its entry in the "
        f"[runbook]({components.RUNBOOK_URL}). [Watchdog]({components.RUNBOOK_URL}#watchdog) always fires, and is not "
        "listed.",
        "none fires",
    )
    matchers = f'alertname=~"Bronze.+", severity="{severity}"'
    since = f"ALERTS{{{matchers}}} * ignoring (alertstate) group_left () ALERTS_FOR_STATE{{{matchers}}} * 1000"
    # its summary and the anchor of its runbook entry are names for the alert's name
    with_summary = f'label_replace(\n{since},\n"summary", "$1", "alertname", "(.+)")'
    rows = components.rows(f'label_replace({with_summary}, "anchor", "$1", "alertname", "(.+)")')
    alerts = [alert for alert in all_alerts() if alert.severity == severity]
    runbook = f"{components.RUNBOOK_URL}#${{__data.fields.anchor}}"
    return components.columns(
        components.listing(info, rows, width=24, height=5),
        {
            "Value": ("Since", [components.width_px(130), components.in_unit("dateTimeFromNow")]),
            "alertstate": (
                "State",
                [
                    components.width_px(80),
                    components.value_colours({"firing": ("firing", BAD), "pending": ("pending", FAIR)}),
                    components.as_background(),
                ],
            ),
            "alertname": ("Alert", [components.width_px(230), components.links(("Open the runbook", runbook))]),
            "summary": ("Summary", [components.value_texts({a.name: _summary(a) for a in alerts})]),
            **{label: (heading, [components.width_px(120)]) for label, heading in components.ALERT_LABELS.items()},
            "bronze_source": (
                components.ALERT_LABELS["bronze_source"],
                [components.width_px(90), components.links(components.source_link("__value.raw"))],
            ),
            "anchor": (
                "anchor",
                [components.hidden(), components.value_texts({a.name: a.name.lower() for a in alerts})],
            ),
        },
    )


def _summary(alert: Alert) -> str:
    """An alert's summary without its values, which are in other columns."""
    return _TEMPLATES.sub("…", alert.summary)


def targets() -> Table:
    info = PanelInfo(
        "Prometheus targets",
        "Each target that Prometheus scrapes, by job and instance. *not running* is no fault: publishers run only "
        "for a while, and collector-exporter is there only with the exporter layer metrics/prometheus-scrape.",
        "nothing is scraped",
        ["BronzeTargetDown"],
    )
    return components.columns(
        components.listing(info, components.rows(f"up{{{_PERMANENT}}} or up > 0 or up - 1"), height=11),
        {
            "job": ("Job", []),
            "instance": ("Instance", []),
            "Value": (
                "Up",
                [
                    components.width_px(110),
                    components.value_colours({"1": ("up", GOOD), "0": ("down", BAD), "-1": ("not running", NEUTRAL)}),
                    components.as_background(),
                ],
            ),
        },
    )


# --- canary


def canary_age() -> Stat:
    info = PanelInfo(
        "Time since the last run",
        "Time since the canary completed a run, whatever its outcome. Without a run, nothing is checked. Red from "
        f"{THRESHOLDS.canary_age_s_max / 60:g} minutes plus the objective of its source on, as the alert.",
        "the canary has not completed a run",
        ["BronzeCanaryMissing"],
        explained_by=("bronze-health", "Checks of the canary"),
    )
    age = single_value(f"time() - max(bronze_canary_last_run_time_seconds{{{_CANARY}}})")
    limit = single_value(canary_age_limit(THRESHOLDS), "limit")
    return components.red_from_query(tile(info, SECONDS, age, limit, width=8, height=10), "B")


def canary_checks() -> Table:
    info = PanelInfo(
        "Checks of the canary",
        "The outcome of each check in the last run. A check is skipped if one that it needs has failed: start with the "
        "one that failed.",
        "the canary has not completed a run",
        [name for name, _, _ in CANARY_ALERTS.values()],
    )
    state = f"max by (bronze_check, bronze_outcome) (bronze_canary_check_state{{{_CANARY}}}) == 1"
    outcomes = {"success": ("success", GOOD), "failure": ("failure", BAD), "skipped": ("skipped", NEUTRAL)}
    return components.columns(
        components.listing(info, components.rows(state), width=16, height=10),
        {
            "bronze_check": ("Check", []),
            "bronze_outcome": ("Outcome", [components.value_colours(outcomes), components.as_background()]),
        },
    )


def canary_failures() -> Timeseries:
    info = PanelInfo(
        "Failed checks of the canary",
        "Failures per second, by check and reason. A single one is no alert; the third one in "
        f"{THRESHOLDS.recent_s // 60} minutes is.",
        "the canary has not completed a run",
    )
    failed = f'bronze_canary_checks_total{{{_CANARY}, bronze_outcome="failure"}}'
    by_check = f"{rate(failed, 'bronze_check, error_type')} > 0"
    return components.expected_zero(
        graph(
            info,
            COUNTS_PER_S,
            query(rate(failed), "all"),
            query(by_check, "{{bronze_check}}: {{error_type}}"),
            width=12,
        )
    )


def canary_durations() -> Timeseries:
    info = PanelInfo(
        "Duration of the checks",
        "Mean duration of each check, until it succeeded or failed: for `object` the time until the records were "
        "stored, for `ledger`, `trace` and `exemplar` the time until the telemetry had arrived.",
        "the canary has not completed a run",
    )
    durations = f"bronze_canary_check_duration_seconds{{{_CANARY}}}"
    return graph(info, SECONDS, query(mean(durations, "bronze_check"), "{{bronze_check}}"), width=12)


# --- collector


def accepted() -> Timeseries:
    info = PanelInfo(
        "Accepted and refused",
        "Items per second that the collector accepted from the components, and that it refused: its memory or its "
        "queues are full. Components retry, then drop them.",
        "the collector has not reported yet",
        ["BronzeTelemetryMissing", "BronzeCollectorRefuses"],
    )
    refused = (
        query(f"{rate(f'otelcol_receiver_refused_{items}{{{COLLECTOR}}}')} > 0", f"refused {signal}")
        for items, signal in _SIGNALS.items()
    )
    panel = graph(
        info, COUNTS_PER_S, *_by_signal("otelcol_receiver_accepted"), *refused, no_answer("collector"), width=12
    )
    return components.colours(panel, {"^refused": BAD})


def queues() -> Timeseries:
    info = PanelInfo(
        "Queues",
        "How full the queue of each exporter is. It fills while its destination is unavailable, survives restarts, and "
        f"empties when the destination answers again. Above {THRESHOLDS.collector_queue_share_max:.0%}, act before it "
        "is full and the collector refuses telemetry.",
        "the collector has not reported yet",
        ["BronzeCollectorQueueFull", "BronzeExporterStalled"],
    )
    size, capacity = (
        f"max by (exporter) (otelcol_exporter_queue_{what}{{{COLLECTOR}}})" for what in ("size", "capacity")
    )
    limit = THRESHOLDS.collector_queue_share_max
    return graph(
        info,
        SHARE,
        query(f"{size} / {capacity}", "{{exporter}}"),
        limit_line(f"vector({limit:g})", f"limit: {limit:.0%}"),
        width=12,
    )


def sent() -> Timeseries:
    info = PanelInfo(
        "Sent by exporter",
        "Items per second that each destination received. If items are accepted and none is sent, it is unavailable.",
        "the collector has not reported yet",
        ["BronzeExporterStalled"],
    )
    return graph(
        info,
        COUNTS_PER_S,
        *(
            query(rate(f"otelcol_exporter_sent_{items}{{{COLLECTOR}}}", "exporter"), f"{name} to {{{{exporter}}}}")
            for items, name in _SIGNALS.items()
        ),
        width=12,
    )


def failed() -> Timeseries:
    info = PanelInfo(
        "Dropped by exporter",
        "Items per second that the collector did not keep: the exporter's queue was full (components retry), or the "
        "destination refused them permanently (they are lost).",
        "the collector has not reported yet",
        ["BronzeCollectorDrops"],
    )
    by_exporter = "\nor ".join(f"{rate(counter, 'exporter')} > 0" for counter in _DROPPED_BY_COLLECTOR)
    dropped = " + ".join(f"({or_zero(rate(counter))})" for counter in _DROPPED_BY_COLLECTOR)
    return components.expected_zero(
        graph(info, COUNTS_PER_S, query(dropped, "all"), query(by_exporter, "{{exporter}}"), width=12)
    )


# --- components


def differences() -> Table:
    info = PanelInfo(
        "Counters that differ, by how much",
        "Counters whose values in /metrics and by OTLP differed in the range: by how much now, by how much at most, "
        "and of how many.",
        "no counter differed in the range",
        ["BronzePathsDiffer"],
    )
    most = f"max_over_time(instance:counter:difference[{RANGE}]) > 0"
    panel = components.listing(
        info,
        components.rows(most),
        components.rows(f"instance:counter:difference and {most}"),
        components.rows(f"instance:counter:scraped and {most}"),
        width=8,
    )
    return components.columns(
        components.merged(panel),
        {
            "metric": ("Counter", []),
            "instance": ("Instance", []),
            "Value #B": ("Now", [components.in_unit(EXACT), components.width_px(70)]),
            "Value #A": ("At most", [components.in_unit(EXACT), components.width_px(80)]),
            "Value #C": ("Of", [components.in_unit(EXACT), components.width_px(90)]),
        },
    )


def sdk_queue() -> Timeseries:
    info = PanelInfo(
        "Span queue of the components",
        "How full the span queue of each process is. At 100 % the process drops spans, so that the data is not "
        "delayed.",
        "no process has reported yet",
        ["BronzeSdkDrops"],
    )
    size, capacity = (
        f'max by (job, instance) (otel_sdk_processor_span_queue_{what}{{job=~"bronze/.+"}})'
        for what in ("size", "capacity")
    )
    return graph(info, SHARE, query(f"{size} / {capacity}", "{{job}}")).max(1)


def sdk_drops_over_time() -> Timeseries:
    info = PanelInfo(
        "Dropped by components, by reason",
        "Spans and log records per second that processes dropped, by reason.",
        "no process has reported yet",
        ["BronzeSdkDrops", "BronzeSeriesOverflow"],
    )
    dropped = " + ".join(f"({or_zero(rate(counter))})" for counter in _DROPPED_BY_SDK)
    by_reason = "\nor ".join(f"{rate(counter, 'job, error_type')} > 0" for counter in _DROPPED_BY_SDK)
    return components.expected_zero(
        graph(info, COUNTS_PER_S, query(dropped, "all"), query(by_reason, "{{job}}: {{error_type}}"))
    )


def catalog_lag() -> Timeseries:
    info = PanelInfo(
        "Catalog index lag",
        "How far each API's catalog index is behind the catalog. Look-ups (`/v1/lineage`) do not find newer "
        "objects. It grows while the queue is unavailable, and after a start until the index is built. Ingestion "
        "does not depend on it.",
        "no API has reported yet",
    )
    lag = 'max by (instance) (bronze_catalog_lag_seconds{job="bronze/api"})'
    return graph(info, SECONDS, query(lag, "{{instance}}"), width=6)


def followers() -> Timeseries:
    info = PanelInfo(
        "Followers of the feed",
        "Requests of `/v1/feed` that wait for new objects, at each API. Above `BRONZE_FOLLOWERS_MAX`, a further one "
        "gets a 503.",
        "no API has reported yet",
    )
    waiting = 'max by (instance) (bronze_feed_followers{job="bronze/api"})'
    return graph(info, COUNT, query(waiting, "{{instance}}"), width=6)


def counter_error() -> Stat:
    info = PanelInfo(
        "Counters less ledger",
        "Stored records: how far the counters of the consumers are from the exact number in the range. A process "
        "that is killed loses what it counted since its last export, so the counters are lower; that is no fault. "
        "Records that are being stored now can be in only one of the two.",
        "the range has no report of the ledger",
        explained_by=("bronze-overview", "Records by outcome"),
    )
    counters = counted(f'bronze_records_total{{job="bronze/consumer", {NO_CANARY}, bronze_outcome="stored"}}')
    ledger = added(f'bronze_ledger_records{{{LEDGER}, {NO_CANARY}, bronze_outcome="stored"}}')
    return tile(info, EXACT, single_value(f"{counters} - sum({ledger})"), width=6, height=9).decimals(0)


def since_compared() -> Stat:
    info = PanelInfo(
        "Since full comparison",
        "Time since a consumer last completed the comparison of all entries of the catalog with the bucket: an older "
        "object that is missing is found within about this time. Objects of the last two hours are compared each "
        "minute.",
        "no comparison is complete yet",
        ["BronzeRecordsMissing"],
        ("bronze-overview", "Sources"),
    )
    compared = 'max(bronze_missing_compared_time_seconds{job="bronze/consumer"})'
    return tile(info, SECONDS, single_value(f"time() - {compared}"), width=6, height=9).decimals(0)


# --- Prometheus


def rejected() -> Timeseries:
    info = PanelInfo(
        "Refused by Prometheus",
        "Samples per second that Prometheus refused, by reason, and rule evaluations that failed. Refused samples "
        "are lost.",
        "Prometheus has not reported yet",
        ["BronzePrometheusRejects", "BronzeRulesFail"],
    )
    refusals = {
        "too old": "prometheus_tsdb_too_old_samples_total",
        "out of bounds": "prometheus_tsdb_out_of_bound_samples_total",
        "rules": "prometheus_rule_evaluation_failures_total",
    }
    return components.expected_zero(
        graph(
            info,
            COUNTS_PER_S,
            *(query(rate(f"{counter}{{{PROMETHEUS}}}"), reason) for reason, counter in refusals.items()),
        )
    )


def exemplars() -> Timeseries:
    info = PanelInfo(
        "Exemplars, stored and refused",
        "Exemplars per second. Prometheus refuses exemplars that arrive out of order, for example after an outage: "
        "graphs then link to fewer traces, and nothing else is affected.",
        "Prometheus has not reported yet",
        ["BronzePrometheusRejectsExemplars"],
    )
    return graph(
        info,
        COUNTS_PER_S,
        query(rate(f"prometheus_tsdb_exemplar_exemplars_appended_total{{{PROMETHEUS}}}"), "stored"),
        query(rate(f"prometheus_tsdb_exemplar_out_of_order_exemplars_total{{{PROMETHEUS}}}"), "refused"),
    )


def series_by_metric() -> Table:
    info = PanelInfo(
        "Series per metric",
        "The Bronze metrics, received by OTLP, that have the most series.",
        "no process has reported yet",
        ["BronzeSeriesOverflow"],
    )
    by_metric = (
        'sort_desc(topk(20, count by (metric) (label_replace({job=~"bronze/.+"}, "metric", "$1", "__name__", "(.+)"))))'
    )
    return components.columns(
        components.listing(info, components.rows(by_metric), width=8),
        {"metric": ("Metric", []), "Value": ("Series", [components.width_px(80)])},
    )


def service_graph() -> Panel:
    info = PanelInfo(
        "Service graph",
        "Calls per second between the services and their duration, as Tempo generates them from the traces. A missing "
        "edge means that traces are interrupted there.",
        "no trace yet",
    )
    return components.plugin("nodeGraph", info, TempoQuery().query_type("serviceMap"), height=14)


def _by_signal(name: str) -> list[components.Target]:
    reports = f"max(up{{{COLLECTOR}}} == 1) - 1"  # nothing is known while it does not
    return [
        query(f"{rate(f'{name}_{items}{{{COLLECTOR}}}')} or {reports}", signal) for items, signal in _SIGNALS.items()
    ]


def _in_range(counters: tuple[str, ...]) -> str:
    """The total of these counters in the range."""
    return " + ".join(f"({or_zero(counted(counter))})" for counter in counters)
