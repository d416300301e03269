"""What Prometheus computes and alerts on, as code: `python -m prometheus.rules` writes `rules/*.yaml`.

Names of metrics are those of the telemetry schema (docs/telemetry.md); what others emit is listed in `FOREIGN`. Rules
read what came by OTLP (`job="bronze/..."`). Scraped series (`job="scrape-..."`) only say what is up, what the servers
tell of themselves, and whether both ways agree.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bronze.telemetry.schema import registry

FOLDER = Path(__file__).resolve().parent / "rules"
WRITE = "python -m prometheus.rules"

#: Where operators read docs/runbook.md; each alert links to the heading with its name.
RUNBOOK_URL = "https://bronze.example/docs/runbook.md"

#: Alerts on the objectives look at a long window, which makes them sure, and a short one, which makes them end.
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")


@dataclass(frozen=True)
class Thresholds:
    """Every number that decides whether an alert fires.

    An error budget is the share of bad ones that an objective allows; a burn of 1 spends it in 30 days.
    """

    #: The line of the objectives on requests and uploads; a bound of their histograms.
    duration_s_max: float = 2
    requests_budget: float = 0.01
    uploads_budget: float = 0.01
    deliveries_budget: float = 0.01
    attempts_budget: float = 0.001

    page_burn_1h: float = 14.4  # 2 % of the budget of 30 days in an hour
    page_burn_6h: float = 6  # 5 % in six hours
    ticket_burn_1d: float = 3  # 10 % in a day
    ticket_burn_3d: float = 1  # 10 % in three days
    #: So many bad ones in the long window at least: where little happens, one of them is a large share.
    bad_min: float = 5

    #: How long a condition has to hold. A ticket's hold is shorter than `recent_s`, or a single event makes none.
    page_hold_s: int = 120
    ticket_hold_s: int = 600
    #: "Lately", for what is counted.
    recent_s: int = 900

    #: How far beyond its objective the oldest message of a lane may be.
    overdue_s_max: float = 300
    #: Messages of a lane that are not in the bucket yet.
    backlog_messages_max: float = 20_000
    #: A lane that has overdue messages and does not move for so long is stuck.
    lane_still_s: int = 600
    #: Errors of one kind in one step, lately.
    consumer_errors_max: float = 20
    #: Failed attempts to upload, lately, without a success.
    failed_uploads_max: float = 10
    #: What was accepted that long ago must have been followed by an upload since.
    upload_wait_s_max: int = 600
    #: Records accepted in an hour that are nowhere `settle_s` later, as a share. What a killed process had counted
    #: since its last export is lost, so this is not 0.
    missing_share_max: float = 0.005
    settle_s: int = 600

    #: A queue of the collector, as a share of its capacity in bytes.
    collector_queue_share_max: float = 0.7
    #: Exemplars that Prometheus refused, lately.
    exemplars_refused_max: float = 100
    #: How far the two ways of metrics may lag behind each other.
    parity_lag_s: int = 60


@dataclass(frozen=True)
class Recording:
    name: str
    expr: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Alert:
    """`severity` is `page` (somebody has to act now) or `ticket` (somebody has to act in the next days)."""

    name: str
    severity: str
    expr: str
    summary: str


@dataclass(frozen=True)
class Group:
    name: str
    interval: str
    rules: Sequence[Recording | Alert]


#: Metrics that are not ours, by who makes them, with the labels that rules may match or keep.
FOREIGN: Mapping[str, tuple[str, frozenset[str]]] = {
    name: (maker, frozenset({"job", "instance", *labels}))
    for maker, names, labels in (
        ("Prometheus, of each target", ("up",), ()),
        ("OpenTelemetry SDK, its resource", ("target_info",), ("service_instance_id",)),
        (
            "OpenTelemetry SDK, of itself",
            (
                "otel_sdk_processor_span_processed_total",
                "otel_sdk_processor_log_processed_total",
                "otel_sdk_exporter_span_exported_total",
                "otel_sdk_exporter_log_exported_total",
            ),
            ("error_type", "otel_component_name", "otel_component_type"),
        ),
        (
            "OpenTelemetry Collector, of itself",
            ("otelcol_exporter_queue_size", "otelcol_exporter_queue_capacity"),
            ("exporter", "data_type"),
        ),
        (
            "OpenTelemetry Collector, of itself",
            tuple(
                f"otelcol_exporter_{counted}_{items}"
                for counted in ("sent", "send_failed", "enqueue_failed")
                for items in ("spans", "metric_points", "log_records")
            ),
            ("exporter",),
        ),
        (
            "OpenTelemetry Collector, of itself",
            tuple(f"otelcol_receiver_refused_{items}" for items in ("spans", "metric_points", "log_records")),
            ("receiver", "transport"),
        ),
        (
            "Prometheus, of itself",
            (
                "prometheus_tsdb_out_of_bound_samples_total",
                "prometheus_tsdb_out_of_order_samples_total",
                "prometheus_tsdb_too_old_samples_total",
            ),
            ("type",),
        ),
        (
            "Prometheus, of itself",
            (
                "prometheus_tsdb_exemplar_out_of_order_exemplars_total",
                "prometheus_api_otlp_out_of_order_exemplars_total",
            ),
            (),
        ),
        ("Prometheus, of itself", ("prometheus_http_requests_total",), ("handler", "code")),
        ("Prometheus, of itself", ("prometheus_rule_evaluation_failures_total",), ("rule_group",)),
    )
    for name in names
}

_SIGNALS = ("spans", "metric_points", "log_records")


def groups(thresholds: Thresholds) -> Mapping[str, Sequence[Group]]:
    """All rules, by the file that they stand in."""
    return {
        **{f"objective_{one.name}": [_objective(one, thresholds)] for one in _objectives(thresholds)},
        "delivery": [_delivery(thresholds)],
        "telemetry": [_telemetry(thresholds)],
        "parity": [_parity(thresholds)],
    }


# --- the objectives


@dataclass(frozen=True)
class _Objective:
    """`total` and `good` are rates over 5 minutes, each one number."""

    name: str
    budget: float
    total: str
    good: str
    alert: str
    summary: str


def _objective(one: _Objective, at: Thresholds) -> Group:
    return Group(f"objective of {one.name}", "30s", [*_recordings(one), *_burn_alerts(one, at)])


def _objectives(at: Thresholds) -> tuple[_Objective, ...]:
    api, consumer = 'job="bronze/api"', 'job="bronze/consumer"'
    submissions = f'{api}, http_route="/v1/ingest/{{source}}", http_response_status_code'
    requests = "http_server_request_duration_seconds"
    line = f'le="{at.duration_s_max:g}"'
    uploads = f'{consumer}, bronze_outcome="success"'
    return (
        _Objective(
            "requests",
            at.requests_budget,
            # what is the sender's fault (4xx) is neither good nor bad
            f'sum(rate({requests}_count{{{submissions}!~"4.."}}[5m]))',
            f'sum(rate({requests}_bucket{{{submissions}=~"2..", {line}}}[5m]))',
            "BronzeRequestsSlow",
            f"Too many submissions take over {at.duration_s_max:g} s to be accepted, or are answered 5xx",
        ),
        _Objective(
            "uploads",
            at.uploads_budget,
            f"sum(rate(bronze_upload_duration_seconds_count{{{uploads}}}[5m]))",
            f"sum(rate(bronze_upload_duration_seconds_bucket{{{uploads}, {line}}}[5m]))",
            "BronzeUploadsSlow",
            f"Too many uploads take over {at.duration_s_max:g} s",
        ),
        _Objective(
            "deliveries",
            at.deliveries_budget,
            f"sum(rate(bronze_delivery_duration_seconds_count{{{consumer}}}[5m]))",
            f"""\
sum(
  rate(bronze_delivery_duration_seconds_bucket{{{consumer}}}[5m])
  # the bound that is the objective of this source, as the consumers tell it: their flush age + 2 s
  and on (bronze_source, le)
  count_values by (bronze_source) ("le",
    max by (bronze_source) (max_over_time(bronze_delivery_objective_seconds{{{consumer}}}[5m])))
)""",
            "BronzeDeliveriesLate",
            "Too many submissions reach the bucket later than the flush age + 2 s",
        ),
        _Objective(
            "attempts",
            at.attempts_budget,
            f"sum(rate(bronze_uploads_total{{{consumer}}}[5m]))",
            f"sum(rate(bronze_uploads_total{{{uploads}}}[5m]))",
            "BronzeUploadAttemptsFail",
            "Too many attempts to upload fail",
        ),
    )


def _recordings(one: _Objective) -> Iterator[Recording]:
    total, bad = f"bronze:{one.name}:rate5m", f"bronze:{one.name}_bad:rate5m"
    yield Recording(total, one.total)
    # nothing good was ever counted: all of it is bad
    yield Recording(bad, f"clamp_min({total} - ({one.good} or {total} * 0), 0)")
    for window in WINDOWS:
        # where nothing happened there is no ratio, and not NaN
        of = (
            (bad, total) if window == "5m" else (f"sum_over_time({bad}[{window}])", f"sum_over_time({total}[{window}])")
        )
        yield Recording(f"bronze:{one.name}_bad:ratio_rate{window}", f"{of[0]} / ({of[1]} > 0)")


def _burn_alerts(one: _Objective, at: Thresholds) -> Iterator[Alert]:
    def burns(factor: float, long: str, short: str) -> str:
        ratio, budget = f"bronze:{one.name}_bad:ratio_rate", f"{factor:g} * {one.budget:g}"
        bad = f"avg_over_time(bronze:{one.name}_bad:rate5m[{long}]) * {_seconds(long)} >= {at.bad_min:g}"
        return f"({ratio}{long} > {budget} and {ratio}{short} > {budget} and {bad})"

    yield Alert(
        one.alert,
        "page",
        f"{burns(at.page_burn_1h, '1h', '5m')}\nor\n{burns(at.page_burn_6h, '6h', '30m')}",
        f"{one.summary}: the month's error budget is gone in days",
    )
    yield Alert(
        one.alert,
        "ticket",
        f"{burns(at.ticket_burn_1d, '1d', '2h')}\nor\n{burns(at.ticket_burn_3d, '3d', '6h')}",
        f"{one.summary}: the month's error budget will not last",
    )


def _seconds(window: str) -> int:
    return int(window[:-1]) * {"m": 60, "h": 3600, "d": 86_400}[window[-1]]


# --- from accepted to stored


def _delivery(at: Thresholds) -> Group:
    consumer, lane = 'job="bronze/consumer"', "bronze_source, bronze_lane"
    position = f"max by ({lane}) (bronze_lane_position{{{consumer}}}"
    oldest = f"max by ({lane}) (bronze_queue_oldest_age_seconds{{{consumer}}})"
    objective = f"max by (bronze_source) (bronze_delivery_objective_seconds{{{consumer}}})"
    overdue = f"{oldest} - on (bronze_source) group_left () {objective}"
    accepted = 'bronze_records_total{job="bronze/api", bronze_outcome="accepted"}'
    ended = f'bronze_records_total{{{consumer}, bronze_outcome=~"stored|quarantined|duplicate"}}'
    records_accepted = "bronze_source:records_accepted:increase1h"
    records_missing = "bronze_source:records_missing:increase1h"
    recent = f"[{at.recent_s}s]"

    return Group(
        "delivery",
        "15s",
        [
            # What was accepted in an hour, until settle_s ago ...
            Recording(records_accepted, f"sum by (bronze_source) (increase({accepted}[1h] offset {at.settle_s}s))"),
            # ... was stored, set aside or recognized as a copy since that hour began; else it is still in the queue, or
            # missing. Records of unknown outcome that were stored, and those accepted before the hour, only add to the
            # right side: what this says is missing is missing.
            Recording(
                records_missing,
                f"""\
clamp_min(
  {records_accepted}
  - (sum by (bronze_source) (increase({ended}[{3600 + at.settle_s}s])) or {records_accepted} * 0),
  0)""",
            ),
            Alert(
                "BronzeRecordsMissing",
                "page",
                f"""\
{records_missing} > {at.missing_share_max:g} * {records_accepted}
# in flight is not missing
unless on (bronze_source) max by (bronze_source) ({oldest}) > {at.settle_s}""",
                "{{ $value | humanize }} records of {{ $labels.bronze_source }} were accepted, and are neither stored,"
                " set aside nor in the queue",
            ),
            Alert(
                "BronzeBacklogOverdue",
                "page",
                f"{overdue} > {at.overdue_s_max:g}",
                "The oldest message of {{ $labels.bronze_source }}/{{ $labels.bronze_lane }} should have been in the"
                " bucket {{ $value | humanizeDuration }} ago",
            ),
            Alert(
                "BronzeBacklogLarge",
                "ticket",
                f"max by ({lane}) (bronze_queue_depth{{{consumer}}}) > {at.backlog_messages_max:.0f}",
                "{{ $value | humanize }} messages of {{ $labels.bronze_source }}/{{ $labels.bronze_lane }} wait",
            ),
            Alert(
                "BronzeLaneStuck",
                "page",
                f"""\
{position})
  == {position} offset {at.lane_still_s}s)
# overdue: it has something to do
and {overdue} > 0""",
                "{{ $labels.bronze_source }}/{{ $labels.bronze_lane }} stands still at message {{ $value }}",
            ),
            # A halted lane stays so until its consumer starts anew, which is when this counter does.
            Alert(
                "BronzeLaneHalted",
                "page",
                f'sum by (bronze_source, bronze_step) (bronze_consumer_errors_total{{{consumer}, error_type="halted"}})'
                " > 0",
                "A lane of {{ $labels.bronze_source }} has stopped: queue, bucket and catalog contradict each other",
            ),
            Alert(
                "BronzePoison",
                "ticket",
                f"sum by (bronze_source) (increase(bronze_consumer_errors_total"
                f'{{{consumer}, error_type="poison"}}{recent})) > 0',
                "Messages of {{ $labels.bronze_source }} could not be decoded and are set aside",
            ),
            Alert(
                "BronzeRecordsQuarantined",
                "ticket",
                f"sum by (bronze_source) (increase(bronze_records_total"
                f'{{{consumer}, bronze_outcome="quarantined"}}{recent})) > 0',
                "{{ $value | humanize }} records of {{ $labels.bronze_source }} went to quarantine",
            ),
            Alert(
                "BronzeConsumerErrors",
                "ticket",
                f"sum by (bronze_source, bronze_step, error_type) (increase(bronze_consumer_errors_total"
                f'{{{consumer}, error_type!~"halted|poison"}}{recent})) > {at.consumer_errors_max:g}',
                "{{ $labels.bronze_source }}: {{ $value | humanize }} errors ({{ $labels.error_type }}) at the step"
                " {{ $labels.bronze_step }}",
            ),
            Alert(
                "BronzeUploadsFail",
                "page",
                f"""\
sum by (bronze_source) (increase(bronze_uploads_total{{{consumer}, bronze_outcome="failure"}}{recent}))
  > {at.failed_uploads_max:g}
unless on (bronze_source)
  sum by (bronze_source) (increase(bronze_uploads_total{{{consumer}, bronze_outcome="success"}}{recent})) > 0""",
                "Nothing of {{ $labels.bronze_source }} can be written to the bucket",
            ),
            Alert(
                "BronzeUploadsMissing",
                "page",
                f"""\
sum by (bronze_source) (increase({accepted}[{at.upload_wait_s_max}s] offset {at.upload_wait_s_max}s)) > 0
unless on (bronze_source)
  time() - max by (bronze_source) (bronze_upload_last_success_time_seconds{{{consumer}}})
    < 2 * {at.upload_wait_s_max}""",
                "{{ $labels.bronze_source }} accepts, and has uploaded nothing since",
            ),
        ],
    )


# --- the telemetry itself


def _telemetry(at: Thresholds) -> Group:
    role, collector = 'job=~"scrape-(api|consumer)"', 'job="scrape-collector"'
    prometheus, otlp = 'job="scrape-prometheus"', 'job=~"bronze/.+"'
    recent = f"{at.recent_s}s"

    written = 'handler=~"/api/v1/(otlp/v1/metrics|write)"'

    def grew(selectors: Sequence[str], by: str) -> str:
        """What is counted for the first time is a new series, which `increase` does not see."""
        return "\nor\n".join(
            f"sum by ({by}) (increase({one}[{recent}]) > 0 or ({one} unless {one} offset {recent})) > 0"
            for one in selectors
        )

    sent = "\n    or ".join(
        f"sum by (instance, exporter) (increase(otelcol_exporter_sent_{items}{{{collector}}}[{recent}]))"
        for items in _SIGNALS
    )
    sdk_dropped = [
        f'{name}{{{otlp}, error_type!=""}}'
        for item in ("span", "log")
        for name in (f"otel_sdk_processor_{item}_processed_total", f"otel_sdk_exporter_{item}_exported_total")
    ]
    return Group(
        "telemetry",
        "15s",
        [
            Alert(
                "BronzeRoleDown",
                "page",
                f"""\
max by (job) (up{{{role}}}) == 0
or absent(up{{job="scrape-api"}})
or absent(up{{job="scrape-consumer"}})""",
                "No process of {{ $labels.job }} answers",
            ),
            Alert(
                "BronzeTargetDown",
                "ticket",
                # publishers come and go; the collector serves metrics itself only in its layer prometheus-scrape
                'up{job!~"scrape-publisher|collector-exporter"} == 0',
                "{{ $labels.job }} {{ $labels.instance }} does not answer",
            ),
            Alert(
                "BronzeTelemetryMissing",
                "page",
                f"""\
label_replace(target_info{{{role}}}, "instance", "$1", "service_instance_id", "(.+)")
unless on (instance) bronze_records_total{{{otlp}}}""",
                "{{ $labels.instance }} runs, and nothing of it arrives by OTLP: alerts and panels are blind",
            ),
            Alert(
                "BronzeSdkDrops",
                "ticket",
                grew(sdk_dropped, "job, instance, error_type"),
                "{{ $labels.instance }} has dropped spans or logs ({{ $labels.error_type }})",
            ),
            Alert(
                "BronzeSeriesOverflow",
                "ticket",
                f"""\
count by (job, metric) (
  label_replace({{{otlp}, otel_metric_overflow="true"}}, "metric", "$1", "__name__", "(.+)")
) > 0""",
                "{{ $labels.metric }} of {{ $labels.job }} has more combinations of attributes than the SDK keeps",
            ),
            Alert(
                "BronzeCollectorRefuses",
                "ticket",
                grew([f"otelcol_receiver_refused_{items}{{{collector}}}" for items in _SIGNALS], "instance, receiver"),
                "The collector refuses telemetry: its memory or its queues are full",
            ),
            Alert(
                "BronzeCollectorDrops",
                "ticket",
                grew(
                    [
                        f"otelcol_exporter_{failed}_{items}{{{collector}}}"
                        for failed in ("enqueue_failed", "send_failed")
                        for items in _SIGNALS
                    ],
                    "instance, exporter",
                ),
                "The collector has dropped telemetry for {{ $labels.exporter }}",
            ),
            Alert(
                "BronzeCollectorQueueFull",
                "ticket",
                f"""\
otelcol_exporter_queue_size{{{collector}}} / otelcol_exporter_queue_capacity{{{collector}}}
  > {at.collector_queue_share_max:g}""",
                "The collector's queue for {{ $labels.exporter }} is {{ $value | humanizePercentage }} full",
            ),
            Alert(
                "BronzeExporterStalled",
                "ticket",
                f"""\
sum by (instance, exporter) (otelcol_exporter_queue_size{{{collector}}}) > 0
unless on (instance, exporter) (
       {sent}
) > 0""",
                "The collector delivers nothing to {{ $labels.exporter }}; what it has is kept in its queue",
            ),
            Alert(
                "BronzePrometheusRejects",
                "ticket",
                grew(
                    [
                        f"prometheus_tsdb_out_of_bound_samples_total{{{prometheus}}}",
                        f"prometheus_tsdb_out_of_order_samples_total{{{prometheus}}}",
                        f"prometheus_tsdb_too_old_samples_total{{{prometheus}}}",
                        f'prometheus_http_requests_total{{{prometheus}, {written}, code=~"[45].."}}',
                    ],
                    "instance",
                ),
                "Prometheus refuses samples",
            ),
            Alert(
                "BronzePrometheusRejectsExemplars",
                "ticket",
                f"""\
sum by (instance) (increase(prometheus_tsdb_exemplar_out_of_order_exemplars_total{{{prometheus}}}[{recent}]))
  + sum by (instance) (increase(prometheus_api_otlp_out_of_order_exemplars_total{{{prometheus}}}[{recent}]))
  > {at.exemplars_refused_max:g}""",
                "Prometheus refuses exemplars: panels lead to fewer traces",
            ),
            Alert(
                "BronzeRulesFail",
                "ticket",
                f"sum by (instance, rule_group) (increase("
                f"prometheus_rule_evaluation_failures_total{{{prometheus}}}[{recent}])) > 0",
                "Rules of {{ $labels.rule_group }} cannot be evaluated, so their alerts cannot fire",
            ),
        ],
    )


# --- parity: what each process says of itself, and what came through the collector


def _parity(at: Thresholds) -> Group:
    """Counters only grow and the ways differ by lag alone, so neither may be ahead of what the other says a lag later.

    That is exact under any load. Processes are compared one by one: those that have ended, or that one of the ways does
    not know (BronzeTelemetryMissing), are left out.
    """

    def recordings() -> Iterator[Recording]:
        for metric in registry().metrics.values():
            for role in metric.emits:
                name, labels = metric.prometheus_name, {"metric": metric.prometheus_name, "role": role}
                yield Recording("instance:counter:otlp", f'sum by (instance) ({name}{{job="bronze/{role}"}})', labels)
                yield Recording(
                    "instance:counter:scraped",
                    f"""\
sum by (instance) (label_replace(
  {name}{{job="scrape-{role}"}}
    # of two processes that were seen at one address lately, the later
    * on (job, instance) group_left (service_instance_id)
      topk by (job, instance) (1, timestamp(target_info{{job="scrape-{role}"}})) ^ 0,
  "instance", "$1", "service_instance_id", "(.+)"))""",
                    labels,
                )

    lag = f"offset {at.parity_lag_s}s"
    return Group(
        "parity",
        "5s",
        [
            *recordings(),
            Recording(
                "instance:counter:difference",
                f"""\
clamp_min(instance:counter:scraped {lag} - instance:counter:otlp, 0)
  + clamp_min(instance:counter:otlp {lag} - instance:counter:scraped, 0)""",
            ),
            Alert(
                "BronzePathsDiffer",
                "ticket",
                "instance:counter:difference > 0",
                "{{ $labels.metric }} of {{ $labels.instance }} differs by {{ $value }} between /metrics and OTLP",
            ),
        ],
    )


# --- what an expression reads

_NOT_READ = re.compile(
    r"""
    "[^"]*" | \#.*                                                      # strings, comments
    | \b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)   # labels
    | \[[^]]*\] | \boffset\s+\w+                                        # durations
    """,
    re.VERBOSE,
)
_WORDS = frozenset({"and", "or", "unless"})


def names(expr: str) -> frozenset[str]:
    """The series that a PromQL expression reads."""
    bare = re.sub(r"\{[^}]*\}", "{}", _NOT_READ.sub(" ", expr))
    return frozenset(re.findall(r"(?<![\w:.])[a-zA-Z_:][\w:]*(?![\w:]|\s*\()", bare)) - _WORDS


def readers(metric: str) -> list[str]:
    """The names of the rules that read a metric, given its name in Prometheus."""
    series = {metric, *(f"{metric}_{part}" for part in ("bucket", "sum", "count"))}
    found = (
        rule.name
        for group in (group for of_file in groups(Thresholds()).values() for group in of_file)
        for rule in group.rules
        if names(rule.expr) & series
    )
    return list(dict.fromkeys(found))


# --- files


def files(thresholds: Thresholds) -> Mapping[str, str]:
    """The rule files by their names."""
    return {
        f"{name}.yaml": f"# Generated by `{WRITE}`; what decides is in prometheus/rules.py.\n"
        + yaml.dump(
            {"groups": [_group(group, thresholds) for group in of_file]}, Dumper=_Dumper, sort_keys=False, width=1000
        )
        for name, of_file in groups(thresholds).items()
    }


def write(folder: Path, thresholds: Thresholds) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files(thresholds).items():
        (folder / name).write_text(text, encoding="utf-8")


def out_of_sync() -> list[str]:
    """The rule files that are not as this module would write them, and those that it would not write."""
    return differing(files(Thresholds()), FOLDER.glob("*.yaml"))


def differing(wanted: Mapping[str, str], written: Iterable[Path]) -> list[str]:
    """The names of generated files, given their texts by name, that were not written so, and of others beside them."""
    there = {path.name: path.read_text(encoding="utf-8") for path in written}
    return sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))


def _group(group: Group, at: Thresholds) -> dict[str, Any]:
    return {"name": group.name, "interval": group.interval, "rules": [_rule(rule, at) for rule in group.rules]}


def _rule(rule: Recording | Alert, at: Thresholds) -> dict[str, Any]:
    if isinstance(rule, Recording):
        return {"record": rule.name, "expr": rule.expr, **({"labels": dict(rule.labels)} if rule.labels else {})}
    return {
        "alert": rule.name,
        "expr": rule.expr,
        "for": f"{at.page_hold_s if rule.severity == 'page' else at.ticket_hold_s}s",
        "labels": {"severity": rule.severity},
        "annotations": {"summary": rule.summary, "runbook_url": f"{RUNBOOK_URL}#{rule.name.lower()}"},
    }


class _Dumper(yaml.SafeDumper):
    """Expressions of several lines stay readable."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)


_Dumper.add_representer(str, _Dumper.represent_str)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the rule files of Prometheus.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is not in sync")
    if not parser.parse_args().check:
        write(FOLDER, Thresholds())
    elif different := out_of_sync():
        sys.exit(f"prometheus/rules/: {', '.join(different)} out of sync with prometheus/rules.py: run {WRITE}")


if __name__ == "__main__":
    main()
