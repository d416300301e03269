"""The recording rules and alerts of Prometheus, as code: `python -m prometheus.rules` writes `rules/*.yaml`,
and the meaning of the verdicts for the API's page.

Metric names are those of the telemetry schema (docs/telemetry.md); `EXTERNAL_METRICS` lists those that other programs
emit. Rules read metrics received by OTLP (`job="bronze/..."`). Scraped series (`job="scrape-..."`) are used only for
`up`, for the servers' own metrics, and to compare scraped and received values.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from bronze.objectives import DURATION_S_MAX
from bronze.telemetry.promql import NO_CANARY
from bronze.telemetry.schema import registry
from bronze.telemetry.signals import Check
from prometheus import data, verdict
from prometheus.data import Problem
from prometheus.verdict import Limits, Part

FOLDER = Path(__file__).resolve().parent / "rules"
WRITE = "python -m prometheus.rules"
#: What the numbers of the verdicts mean, for the API's page: the package does not contain this module.
VERDICTS = FOLDER.parents[1] / "service" / "bronze" / "api" / "verdicts.json"

#: Where operators read docs/runbook.md; each alert links to the heading with its name. Prometheus expands it. External
#: labels are the only part of its configuration that reads the environment.
RUNBOOK_URL = "{{ $externalLabels.bronze_runbook_url }}"
#: Where browsers reach the API. The Watchdog has it as a label, which dashboards can read.
API_URL = "{{ $externalLabels.bronze_api_url }}"

#: Alerts on objectives use a long window, so that a short peak does not fire them, and a short window, so that they end
#: soon after the problem ends.
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
#: The time between two evaluations of an objective's rules: a sample of a rate is of so many seconds.
OBJECTIVE_INTERVAL_S = 30


@dataclass(frozen=True)
class Thresholds:
    """Every number that decides whether an alert fires.

    An error budget is the share of bad events that an objective allows. A burn rate of 1 uses it up in 30 days.
    """

    #: The limit of requests and uploads; a bucket bound of their histograms.
    duration_s_max: float = DURATION_S_MAX
    requests_budget: float = 0.01
    uploads_budget: float = 0.01
    deliveries_budget: float = 0.01
    attempts_budget: float = 0.001

    page_burn_1h: float = 14.4  # 2 % of the budget of 30 days in an hour
    page_burn_6h: float = 6  # 5 % in six hours
    ticket_burn_1d: float = 3  # 10 % in a day
    ticket_burn_3d: float = 1  # 10 % in three days
    #: At least so many bad events in the long window: among few events, a single bad one is a large share.
    bad_min: float = 5

    #: How long a condition has to be true. For tickets it is shorter than `recent_s`, so that a single event is enough.
    page_hold_s: int = 120
    ticket_hold_s: int = 600
    #: The window for counts of recent events.
    recent_s: int = 900

    #: How far beyond its objective the oldest message of a lane may be.
    overdue_s_max: float = 300
    #: The entries of the catalog, as a share of BRONZE_CATALOG_ENTRIES_MAX.
    catalog_share_max: float = 0.8

    #: Messages of a lane that are not in the bucket yet.
    backlog_messages_max: float = 20_000
    #: A lane is stuck if it has overdue messages and its position does not change for so long.
    lane_still_s: int = 600
    #: Errors of one type at one step, in `recent_s`.
    consumer_errors_max: float = 20
    #: What only fails for so long, without a success, is down. It is shorter than three runs of the canary, so that the
    #: alert that names the cause fires before those of the canary, which it silences.
    outage_s: int = 150
    #: Failed submissions or upload attempts in `outage_s`, without a success. A sender that backs off sends five. An
    #: attempt that waits for a bucket which does not answer takes half a minute.
    outage_failures_max: float = 3
    #: Records that were accepted so long ago must have been followed by an upload since.
    upload_wait_s_max: int = 600

    #: The age of the oldest object that is not in its table.
    table_age_s_max: float = 300
    #: Failed runs of a table's maintenance in so long, without one that succeeded.
    maintenance_s: int = 86_400
    maintenance_failures_max: float = 2.5
    #: For how long a receiver of notifications may lack events.
    notify_lag_s_max: float = 300
    #: So many intervals of retention may pass without a complete run.
    retention_intervals_max: float = 2
    #: For how long a retention that is gone is missed.
    retention_missed_s: int = 7 * 86_400

    #: The age of the canary's last run, in addition to the time in which its records have to be stored.
    canary_age_s_max: float = 300
    #: How often a check of the canary may fail in `recent_s`: twice, and `increase` extrapolates.
    canary_failures_max: float = 2.5

    #: A source is silent if its newest record is so many times as old as is usual at this time of day.
    silence_factor: float = 4
    #: And at least so old.
    silence_s_min: float = 300
    #: A source has too few records below this share of what is usual at this time of day. Half of them are too few.
    volume_share_min: float = 0.7
    #: If fewer are usual in five minutes, chance alone makes their number differ so much.
    volume_records_min: float = 200
    #: A field has too many nulls so far above the share that is usual.
    null_excess_max: float = 0.2
    #: With fewer values in five minutes, chance alone makes their share differ so much.
    null_values_min: float = 100

    #: How long a field that is not declared is new.
    field_new_s: int = 3600
    #: A source has too many rejected records above so many times what is usual, and above so many in five minutes.
    rejected_factor: float = 3
    rejected_records_min: float = 5

    #: What a role has verified counts for so long. It verifies each minute.
    verified_s_max: float = 300

    #: After a start of Prometheus, the programs that start with it are not down for so long.
    start_s: int = 90
    #: Metrics of a role arrive late, so nothing is known of it, if the newest is older than four exports and a delay.
    telemetry_age_s_max: float = 22

    #: The size of a collector queue, as a share of its capacity in bytes.
    collector_queue_share_max: float = 0.7
    #: Exemplars that Prometheus refused in `recent_s`.
    exemplars_refused_max: float = 100
    #: The window for what processes dropped, which they report when the collector is back.
    dropped_s: int = 3600
    #: How far scraped and received metrics may lag behind each other.
    parity_lag_s: int = 60


@dataclass(frozen=True)
class Recording:
    name: str
    expr: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Alert:
    """`severity` is `page` (an operator has to act now), `ticket` (an operator has to act in the next days), or `none`:
    it always fires, and only its absence means something.
    """

    name: str
    severity: str
    expr: str
    summary: str
    labels: Mapping[str, str] = field(default_factory=dict)
    #: Of a condition that is never true for a moment only: it does not have to hold first.
    at_once: bool = False


@dataclass(frozen=True)
class Group:
    name: str
    interval: str
    rules: Sequence[Recording | Alert]


#: The command `bronze verify`, which reports once; and roles that verify all the time.
COMMAND = 'job="bronze/verify"'
PERMANENT = 'job=~"bronze/.+", job!="bronze/verify"'

#: Metrics of other programs: who emits each, and the labels that rules may match or keep.
EXTERNAL_METRICS: Mapping[str, tuple[str, frozenset[str]]] = {
    name: (emitter, frozenset({"job", "instance", *labels}))
    for emitter, names, labels in (
        ("Prometheus, about each target", ("up",), ()),
        ("OpenTelemetry SDK, from its resource", ("target_info",), ("service_instance_id",)),
        (
            "OpenTelemetry SDK, about itself",
            (
                "otel_sdk_processor_span_processed_total",
                "otel_sdk_processor_log_processed_total",
                "otel_sdk_exporter_span_exported_total",
                "otel_sdk_exporter_log_exported_total",
            ),
            ("error_type", "otel_component_name", "otel_component_type"),
        ),
        (
            "OpenTelemetry Collector, about itself",
            ("otelcol_exporter_queue_size", "otelcol_exporter_queue_capacity"),
            ("exporter", "data_type"),
        ),
        (
            "OpenTelemetry Collector, about itself",
            tuple(
                f"otelcol_exporter_{counted}_{items}"
                for counted in ("sent", "send_failed", "enqueue_failed")
                for items in ("spans", "metric_points", "log_records")
            ),
            ("exporter",),
        ),
        (
            "OpenTelemetry Collector, about itself",
            tuple(f"otelcol_receiver_refused_{items}" for items in ("spans", "metric_points", "log_records")),
            ("receiver", "transport"),
        ),
        (
            "Prometheus, about itself",
            (
                "prometheus_tsdb_out_of_bound_samples_total",
                "prometheus_tsdb_too_old_samples_total",
            ),
            ("type",),
        ),
        (
            "Prometheus, about itself",
            (
                "prometheus_tsdb_exemplar_out_of_order_exemplars_total",
                "prometheus_api_otlp_out_of_order_exemplars_total",
            ),
            (),
        ),
        ("Prometheus, about itself", ("prometheus_http_requests_total",), ("handler", "code")),
        ("Prometheus, about itself", ("prometheus_rule_evaluation_failures_total",), ("rule_group",)),
        ("Prometheus, about itself", ("process_start_time_seconds",), ()),
    )
    for name in names
}

_SIGNALS = ("spans", "metric_points", "log_records")
_DROPPED_BY_SDK = tuple(
    f'{name}{{job=~"bronze/.+", error_type!=""}}'
    for item in ("span", "log")
    for name in (f"otel_sdk_processor_{item}_processed_total", f"otel_sdk_exporter_{item}_exported_total")
)
_DROPPED_BY_COLLECTOR = tuple(
    f'otelcol_exporter_{failed}_{items}{{job="scrape-collector"}}'
    for failed in ("enqueue_failed", "send_failed")
    for items in _SIGNALS
)


def groups(thresholds: Thresholds) -> Mapping[str, Sequence[Group]]:
    """All rules, by the name of their file."""
    return {
        **{
            f"objective_{objective.name}": [_objective(objective, thresholds), _budget(objective)]
            for objective in _objectives(thresholds)
        },
        "delivery": [_delivery(thresholds)],
        "queue": [_queue(thresholds)],
        "data": [_data(thresholds)],
        "tables": [_tables(thresholds)],
        "notify": [_notify(thresholds)],
        "retention": [_retention(thresholds)],
        "canary": [_canary(thresholds)],
        "telemetry": [_telemetry(thresholds)],
        "verdict": [_verdict(thresholds)],
        "parity": [_parity(thresholds)],
    }


# --- the objectives


@dataclass(frozen=True)
class _Objective:
    """`total` and `good` are PromQL for rates over 5 minutes, without labels."""

    name: str
    budget: float
    total: str
    good: str
    alert: str
    summary: str


def _objective(objective: _Objective, at: Thresholds) -> Group:
    return Group(
        f"objective of {objective.name}",
        f"{OBJECTIVE_INTERVAL_S}s",
        [*_recordings(objective), *_burn_alerts(objective, at)],
    )


def _objectives(at: Thresholds) -> tuple[_Objective, ...]:
    api, consumer = 'job="bronze/api"', f'job="bronze/consumer", {NO_CANARY}'
    submissions = f'{api}, http_route="/v1/ingest/{{source}}", http_response_status_code'
    requests = "http_server_request_duration_seconds"
    line = f'le="{at.duration_s_max:g}"'
    uploads = f'{consumer}, bronze_outcome="success"'
    return (
        _Objective(
            "requests",
            at.requests_budget,
            # the sender's errors (4xx) are neither good nor bad
            f'sum(rate({requests}_count{{{submissions}!~"4.."}}[5m]))',
            f'sum(rate({requests}_bucket{{{submissions}=~"2..", {line}}}[5m]))',
            "BronzeRequestsSlow",
            f"Too many submissions take over {at.duration_s_max:g} s to be accepted, or get a 5xx answer",
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
  # the bucket bound that is the objective of the source, as its consumers report it: flush age + {DURATION_S_MAX:g} s
  and on (bronze_source, le)
  count_values by (bronze_source) ("le",
    max by (bronze_source) (max_over_time(bronze_delivery_objective_seconds{{{consumer}}}[5m])))
)""",
            "BronzeDeliveriesLate",
            f"Too many submissions are stored later than the flush age + {DURATION_S_MAX:g} s after their 202",
        ),
        _Objective(
            "attempts",
            at.attempts_budget,
            f"sum(rate(bronze_uploads_total{{{consumer}}}[5m]))",
            f"sum(rate(bronze_uploads_total{{{uploads}}}[5m]))",
            "BronzeUploadAttemptsFail",
            "Too many upload attempts fail",
        ),
    )


def _recordings(objective: _Objective) -> Iterator[Recording]:
    total, bad = f"bronze:{objective.name}:rate5m", f"bronze:{objective.name}_bad:rate5m"
    yield Recording(total, objective.total)
    # before the first good event, the series of good events is absent: then every event is bad
    yield Recording(bad, f"clamp_min({total} - ({objective.good} or {total} * 0), 0)")
    for window in WINDOWS:
        # without events there is no ratio, rather than NaN
        part, whole = (
            (bad, total) if window == "5m" else (f"sum_over_time({bad}[{window}])", f"sum_over_time({total}[{window}])")
        )
        yield Recording(f"bronze:{objective.name}_bad:ratio_rate{window}", f"{part} / ({whole} > 0)")


def _budget(objective: _Objective) -> Group:
    """What is left of the error budget, of the last 30 days. It reads many samples, so it is evaluated less often."""
    bad, total = (f"sum_over_time(bronze:{objective.name}{part}:rate5m[30d])" for part in ("_bad", ""))
    left = Recording(budget_left(objective.name), f"clamp_min(1 - {bad} / ({total} > 0) / {objective.budget:g}, 0)")
    return Group(f"budget of {objective.name}", "2m", [left])


def budget_left(objective: str) -> str:
    """The recording of the share of an error budget that is left."""
    return f"bronze:{objective}:budget_left30d"


def _burn_alerts(objective: _Objective, at: Thresholds) -> Iterator[Alert]:
    def burns(factor: float, long: str, short: str) -> str:
        ratio, budget = f"bronze:{objective.name}_bad:ratio_rate", f"{factor:g} * {objective.budget:g}"
        # not the mean: in a system that is younger than the window, that would be of less time than the window
        rates = f"sum_over_time(bronze:{objective.name}_bad:rate5m[{long}])"
        bad = f"{rates} * {OBJECTIVE_INTERVAL_S} >= {at.bad_min:g}"
        return f"({ratio}{long} > {budget} and {ratio}{short} > {budget} and {bad})"

    yield Alert(
        objective.alert,
        "page",
        f"{burns(at.page_burn_1h, '1h', '5m')}\nor\n{burns(at.page_burn_6h, '6h', '30m')}",
        f"{objective.summary}: at this rate the 30-day error budget is used up within days",
    )
    yield Alert(
        objective.alert,
        "ticket",
        f"{burns(at.ticket_burn_1d, '1d', '2h')}\nor\n{burns(at.ticket_burn_3d, '3d', '6h')}",
        f"{objective.summary}: at this rate the 30-day error budget does not last",
    )


# --- from accepted to stored


def _delivery(at: Thresholds) -> Group:
    consumer, lane = f'job="bronze/consumer", {NO_CANARY}', "bronze_source, bronze_lane"
    # nothing may be lost, and no lane may halt, not even the canary's
    any_lane = 'job="bronze/consumer"'
    position = f"max by ({lane}) (bronze_lane_position{{{consumer}}}"
    oldest = f"max by ({lane}) (bronze_queue_oldest_age_seconds{{{consumer}}})"
    objective = f"max by (bronze_source) (bronze_delivery_objective_seconds{{{consumer}}})"
    overdue = f"{oldest} - on (bronze_source) group_left () {objective}"
    accepted = f'bronze_records_total{{job="bronze/api", {NO_CANARY}, bronze_outcome="accepted"}}'
    recent, outage, wait = f"[{at.recent_s}s]", f"[{at.outage_s}s]", f"{2 * at.upload_wait_s_max}s"
    submissions = 'http_server_request_duration_seconds_count{job="bronze/api", http_route="/v1/ingest/{source}"'

    return Group(
        "delivery",
        "15s",
        [
            # a share of many requests would be reached too late: senders that back off send few
            Alert(
                "BronzeRequestsFail",
                "page",
                f"""\
sum(increase({submissions}, http_response_status_code=~"5.."}}{outage})) > {at.outage_failures_max:g}
unless sum(increase({submissions}, http_response_status_code=~"2.."}}{outage})) > 0""",
                "Every submission is answered with a 5xx: nothing is accepted",
            ),
            # only what is proven: no difference between two counters
            Alert(
                "BronzeRecordsMissing",
                "page",
                f"""\
label_replace(
  sum by (bronze_source) (max by ({lane}) (bronze_missing_messages{{{any_lane}}})) > 0,
  "missing", "messages in the queue", "", "")
or label_replace(
  max by (bronze_source) (bronze_missing_objects{{{any_lane}}}) > 0,
  "missing", "objects in the bucket", "", "")""",
                "{{ $value | humanize }} {{ $labels.missing }} are missing, of {{ $labels.bronze_source }}",
            ),
            Alert(
                "BronzeBacklogOverdue",
                "page",
                f"{overdue} > {at.overdue_s_max:g}",
                "The oldest message of lane {{ $labels.bronze_source }}/{{ $labels.bronze_lane }} should have been "
                "stored {{ $value | humanizeDuration }} ago",
            ),
            Alert(
                "BronzeBacklogLarge",
                "ticket",
                f"max by ({lane}) (bronze_queue_depth{{{consumer}}}) > {at.backlog_messages_max:.0f}",
                "{{ $value | humanize }} messages wait in lane {{ $labels.bronze_source }}/{{ $labels.bronze_lane }}",
            ),
            Alert(
                "BronzeLaneStuck",
                "page",
                f"""\
{position})
  == {position} offset {at.lane_still_s}s)
# overdue: messages wait
and {overdue} > 0""",
                "Lane {{ $labels.bronze_source }}/{{ $labels.bronze_lane }} has overdue messages and makes no "
                'progress after message {{ $value | printf "%.0f" }}',
            ),
            # A lane stays halted until its consumer restarts, and so does this counter. With 15 s until it is evaluated
            # and Alertmanager's 30 s, operators know within a minute.
            Alert(
                "BronzeLaneHalted",
                "page",
                f'sum by (bronze_source, bronze_step) (bronze_consumer_errors_total{{{any_lane}, error_type="halted"}})'
                " > 0",
                "A lane of {{ $labels.bronze_source }} is halted at step {{ $labels.bronze_step }}: queue, bucket and "
                "catalog contradict each other",
                at_once=True,
            ),
            Alert(
                "BronzePoison",
                "ticket",
                f"sum by (bronze_source) (increase(bronze_consumer_errors_total"
                f'{{{consumer}, error_type="poison"}}{recent})) > 0',
                "Messages of {{ $labels.bronze_source }} could not be decoded and are in quarantine",
            ),
            Alert(
                "BronzeRecordsQuarantined",
                "ticket",
                f"sum by (bronze_source) (increase(bronze_records_total"
                f'{{{consumer}, bronze_outcome="quarantined"}}{recent} anchored)) > 0',
                "{{ $value | humanize }} records of {{ $labels.bronze_source }} went to quarantine",
            ),
            Alert(
                "BronzeConsumerErrors",
                "ticket",
                f"sum by (bronze_source, bronze_step, error_type) (increase(bronze_consumer_errors_total"
                f'{{{consumer}, error_type!~"halted|poison"}}{recent} anchored)) > {at.consumer_errors_max:g}',
                "The consumer had {{ $value | humanize }} errors ({{ $labels.error_type }}) for "
                "{{ $labels.bronze_source }} at step {{ $labels.bronze_step }}",
            ),
            Alert(
                "BronzeUploadsFail",
                "page",
                f"""\
sum by (bronze_source) (increase(bronze_uploads_total{{{consumer}, bronze_outcome="failure"}}{outage}))
  > {at.outage_failures_max:g}
unless on (bronze_source)
  sum by (bronze_source) (increase(bronze_uploads_total{{{consumer}, bronze_outcome="success"}}{outage})) > 0""",
                "Every upload of {{ $labels.bronze_source }} to the bucket fails",
            ),
            Alert(
                "BronzeUploadsMissing",
                "page",
                f"""\
sum by (bronze_source) (increase({accepted}[{at.upload_wait_s_max}s] offset {at.upload_wait_s_max}s)) > 0
unless on (bronze_source)
  # as last reported: while telemetry is missing, nothing is known to be wrong
  time() - max by (bronze_source) (max_over_time(bronze_upload_last_success_time_seconds{{{consumer}}}[{wait}]))
    < 2 * {at.upload_wait_s_max}""",
                "Records of {{ $labels.bronze_source }} are accepted, but nothing was uploaded for"
                f" {2 * at.upload_wait_s_max // 60} minutes",
            ),
        ],
    )


# --- the servers of the queue


def _queue(at: Thresholds) -> Group:
    api = 'job="bronze/api"'
    return Group(
        "queue",
        "15s",
        [
            Alert(
                "BronzeQueueLeaderless",
                "page",
                f"max(bronze_queue_leaderless{{{api}}}) > 0",
                "{{ $value }} streams of the queue have no leader: nothing can be written to them",
            ),
            Alert(
                "BronzeQueueReplicaBehind",
                "ticket",
                "max by (bronze_cluster_server, bronze_replica_state) "
                f'(bronze_queue_replicas{{{api}, bronze_replica_state=~"away|lagging"}}) > 0',
                "{{ $value }} replicas on the queue's server {{ $labels.bronze_cluster_server }} are "
                "{{ $labels.bronze_replica_state }}",
            ),
            Alert(
                "BronzeCatalogLarge",
                "ticket",
                f"max(bronze_catalog_entries{{{api}}}) / min(bronze_catalog_limit{{{api}}}) > {at.catalog_share_max:g}",
                "The catalog has {{ $value | humanizePercentage }} of the entries that it should have at most",
            ),
        ],
    )


# --- the data itself


def _data(at: Thresholds) -> Group:
    def problem(kind: Problem, expr: str) -> Recording:
        return Recording(data.PROBLEM, f"({expr}\n) * 0 + {kind:d}", {"problem": kind.label})

    return Group(
        "data",
        f"{data.INTERVAL_S}s",
        [
            *(
                Recording(name, expr)
                for name, expr in {
                    **data.age(),
                    **data.volume(),
                    **data.nulls(at.null_values_min),
                    **data.undeclared(at.field_new_s),
                    **data.rejected(),
                    data.BROKEN: data.broken(at.recent_s),
                }.items()
            ),
            problem(Problem.SILENT, data.silent(at.silence_factor, at.silence_s_min)),
            problem(Problem.VOLUME, data.few_records(at.volume_share_min, at.volume_records_min)),
            problem(Problem.NULLS, data.more_nulls(at.null_excess_max)),
            problem(Problem.REJECTED, data.many_rejected(at.rejected_factor, at.rejected_records_min)),
            problem(Problem.UNDECLARED, f"max by (bronze_source) ({data.NEW_FIELDS})"),
            problem(Problem.EXPECTATION, f"max by (bronze_source) ({data.BROKEN})"),
            Alert(
                "BronzeSourceSilent",
                "ticket",
                f"{data.AGE} and on (bronze_source) {Problem.SILENT.of}",
                "{{ $labels.bronze_source }} has sent nothing for {{ $value | humanizeDuration }}, "
                "which is longer than expected, or than usual at this time of day",
            ),
            Alert(
                "BronzeVolumeLow",
                "ticket",
                f"{data.VOLUME_RATIO} and on (bronze_source) {Problem.VOLUME.of}",
                "{{ $labels.bronze_source }} sends {{ $value | humanizePercentage }} of the records that are usual at "
                "this time of day",
            ),
            Alert(
                "BronzeNullsJumped",
                "ticket",
                f"{data.EXCESS_NULLS} > {at.null_excess_max:g}",
                "{{ $labels.bronze_field }} of {{ $labels.bronze_source }} is null in "
                "{{ $value | humanizePercentage }} more of the records than usual",
            ),
            Alert(
                "BronzeExpectationBroken",
                "ticket",
                # BronzeSourceSilent says that of `every`
                f'{data.BROKEN}{{bronze_expectation!="every"}}',
                "The data of {{ $labels.bronze_source }} is not as its declaration expects: "
                "{{ $labels.bronze_expectation }} {{ $labels.bronze_field }}",
            ),
            Alert(
                "BronzeRecordsRejected",
                "ticket",
                f"{data.REJECTED} and on (bronze_source) {Problem.REJECTED.of}",
                "{{ $value | humanize }} records of {{ $labels.bronze_source }} did not fit their source in "
                f"{data.WINDOW_S // 60} minutes, which is more than usual",
            ),
            Alert(
                "BronzeFieldUndeclared",
                "ticket",
                data.NEW_FIELDS,
                "Records of {{ $labels.bronze_source }} have a new field that is not declared: "
                "{{ $labels.bronze_field }}",
            ),
        ],
    )


# --- the canary

#: The alert on each check of the canary: its name, its severity, and what it means.
CANARY_ALERTS: Mapping[Check, tuple[str, str, str]] = {
    Check.ACCEPTED: ("BronzeCanaryNotAccepted", "page", "The API does not accept the canary's submissions"),
    Check.OBJECT: (
        "BronzeCanaryNotStored",
        "page",
        "The canary's records are not stored in time, or are not those that were sent",
    ),
    Check.ONCE: ("BronzeCanaryStoredTwice", "page", "The canary's records are not stored exactly once"),
    Check.LEDGER: (
        "BronzeCanaryMiscounted",
        "ticket",
        "Ledger or counters do not grow by the records that the canary sent",
    ),
    Check.TRACE: ("BronzeCanaryTraceIncomplete", "ticket", "The trace of the canary's submission is incomplete"),
    Check.EXEMPLAR: ("BronzeCanaryExemplarMissing", "ticket", "No exemplar leads to the trace of the canary's upload"),
    Check.LINEAGE: ("BronzeCanaryLineageMissing", "ticket", "The lineage of the canary's submission is not found"),
}


def canary_age_limit(at: Thresholds) -> str:
    """How long ago the canary's last run may be: a run lasts until its records are stored."""
    objective = 'max(bronze_delivery_objective_seconds{job="bronze/consumer", bronze_source="canary"})'
    return f"{at.canary_age_s_max:g} + ({objective} or vector(0))"


def _canary(at: Thresholds) -> Group:
    canary = 'job="bronze/canary"'
    last_run = f"bronze_canary_last_run_time_seconds{{{canary}}}"
    target = 'up{job="scrape-canary"}'

    def fails(check: Check) -> str:
        """Several runs failed, and one of the latest."""
        failed = f'bronze_canary_checks_total{{{canary}, bronze_check="{check}", bronze_outcome="failure"}}'
        several, latest = (
            f"sum by (bronze_check) (increase({failed}[{window:g}s]))" for window in (at.recent_s, at.canary_age_s_max)
        )
        return f"{several} > {at.canary_failures_max:g}\nand {latest} > 0"

    return Group(
        "canary",
        "15s",
        [
            Alert(
                "BronzeCanaryMissing",
                "page",
                f"""\
time() - max({last_run}) > {canary_age_limit(at)}
or absent({last_run})
  # the first run takes longer than the flush age
  unless on () (max({target}) unless max({target} offset {at.canary_age_s_max:g}s))""",
                f"The canary has not completed a run for {at.canary_age_s_max / 60:g} minutes, plus its objective",
            ),
            *(
                Alert(name, severity, fails(check), summary)
                for check, (name, severity, summary) in CANARY_ALERTS.items()
            ),
        ],
    )


# --- the tables


def _tables(at: Thresholds) -> Group:
    table = f'job="bronze/table", {NO_CANARY}'
    halted = f'bronze_table_commits_total{{{table}, error_type="halted"}}'

    def runs(outcome: str) -> str:
        of_outcome = f'bronze_table_maintenance_runs_total{{{table}, bronze_outcome="{outcome}"}}'
        return f"sum by (bronze_source) (increase({of_outcome}[{at.maintenance_s}s] anchored))"

    return Group(
        "tables",
        "15s",
        [
            Alert(
                "BronzeTableLags",
                "ticket",
                f"max by (bronze_source) (bronze_table_objects_oldest_age_seconds{{{table}}}) > {at.table_age_s_max:g}",
                f"Objects of {{{{ $labels.bronze_source }}}} have waited for their table for more than "
                f"{at.table_age_s_max / 60:g} minutes",
            ),
            Alert(
                "BronzeTableHalted",
                "ticket",
                f"sum by (bronze_source) (increase({halted}[{at.recent_s}s] anchored)) > 0",
                "Nothing is committed to the table of {{ $labels.bronze_source }} until an operator acts",
            ),
            Alert(
                "BronzeTableMaintenanceFails",
                "ticket",
                f"""\
{runs("failure")} > {at.maintenance_failures_max:g}
unless {runs("success")} > 0""",
                "The maintenance of the table of {{ $labels.bronze_source }} has only failed for "
                f"{at.maintenance_s / 3600:g} hours",
            ),
        ],
    )


# --- the notifications


def _notify(at: Thresholds) -> Group:
    lag = 'max by (bronze_receiver) (bronze_notify_lag_seconds{job="bronze/notify"})'
    return Group(
        "notify",
        "15s",
        [
            Alert(
                "BronzeNotifyLags",
                "ticket",
                f"{lag} > {at.notify_lag_s_max:g}",
                f"The receiver {{{{ $labels.bronze_receiver }}}} has lacked events for more than "
                f"{at.notify_lag_s_max / 60:g} minutes",
            ),
        ],
    )


# --- retention


def _retention(at: Thresholds) -> Group:
    retain, window = 'job="bronze/retain"', f"[{at.retention_missed_s}s]"
    succeeded, failed = (
        f'last_over_time(bronze_retention_last_run_time_seconds{{{retain}, bronze_outcome="{outcome}"}}{window})'
        for outcome in ("success", "failure")
    )
    interval = f"last_over_time(bronze_retention_interval_seconds{{{retain}}}{window})"
    # the oldest sign of life of any process, to the hour
    began = f"min_over_time(timestamp(bronze_retention_interval_seconds{{{retain}}})[{at.retention_missed_s}s:3600s])"
    return Group(
        "retention",
        "1m",  # it reads many samples
        [
            Alert(
                "BronzeRetentionFails",
                "ticket",
                f"""\
# the last run failed
max({failed}) > (max({succeeded}) or vector(0))
# or none has succeeded for so long, perhaps since the process is gone
or max({succeeded} + ignoring (bronze_outcome) {at.retention_intervals_max:g} * {interval}) < time()
# or none has ever succeeded, perhaps since the first one does not end
or min({began}) + {at.retention_intervals_max:g} * max({interval}) < time() unless max({succeeded})""",
                "Retention does not delete what is too old: its last run failed, or no run has succeeded for "
                f"{at.retention_intervals_max:g} intervals",
            ),
        ],
    )


# --- the telemetry itself


def _telemetry(at: Thresholds) -> Group:
    role, collector = 'job=~"scrape-(api|consumer|canary)"', 'job="scrape-collector"'
    prometheus, otlp = 'job="scrape-prometheus"', 'job=~"bronze/.+"'
    recent = f"{at.recent_s}s"

    written = 'handler=~"/api/v1/(otlp/v1/metrics|write)"'

    # a whole system that starts is not a fault of its parts
    not_starting = f"unless on () time() - max(process_start_time_seconds{{{prometheus}}}) < {at.start_s}"

    def grew(selectors: Sequence[str], by: str, window: str = recent) -> str:
        """Counters that grew. A first count creates a series, which `increase` does not see."""
        return "\nor\n".join(
            f"sum by ({by}) (increase({selector}[{window}]) > 0 or ({selector} unless {selector} offset {window})) > 0"
            for selector in selectors
        )

    sent = "\n    or ".join(
        f"sum by (instance, exporter) (increase(otelcol_exporter_sent_{items}{{{collector}}}[{at.outage_s}s]))"
        for items in _SIGNALS
    )
    return Group(
        "telemetry",
        "15s",
        [
            # its receiver reports if it does not arrive: then Prometheus or Alertmanager does not work
            Alert(
                "Watchdog",
                "none",
                "vector(1)",
                "Prometheus evaluates its rules, and its alerts arrive",
                {"api_url": API_URL},
            ),
            Alert(
                "BronzeRoleDown",
                "page",
                f"""\
(
  max by (job) (up{{{role}}}) == 0
  or absent(up{{job="scrape-api"}})
  or absent(up{{job="scrape-consumer"}})
  or absent(up{{job="scrape-canary"}})
)
{not_starting}""",
                "No process of {{ $labels.job }} answers Prometheus",
            ),
            Alert(
                "BronzeTargetDown",
                "ticket",
                # publishers run only for a while; the collector serves metrics only with its layer prometheus-scrape
                f'up{{job!~"scrape-publisher|collector-exporter"}} == 0\n{not_starting}',
                "{{ $labels.job }} {{ $labels.instance }} does not answer Prometheus",
            ),
            Alert(
                "BronzeTelemetryMissing",
                "page",
                f"""\
label_replace(target_info{{{role}}}, "instance", "$1", "service_instance_id", "(.+)")
unless on (instance) bronze_records_total{{{otlp}}}
unless on (instance) bronze_canary_checks_total{{{otlp}}}""",
                "{{ $labels.instance }} runs, but its metrics do not arrive by OTLP: alerts and panels miss it",
            ),
            Alert(
                "BronzeSdkDrops",
                "ticket",
                # counts of the time without a collector arrive after it: the window begins before an outage
                grew(_DROPPED_BY_SDK, "job, instance, error_type", f"{at.dropped_s}s"),
                "{{ $labels.instance }} has dropped spans or logs ({{ $labels.error_type }})",
            ),
            Alert(
                "BronzeSeriesOverflow",
                "ticket",
                f"""\
count by (job, metric) (
  label_replace({{{otlp}, otel_metric_overflow="true"}}, "metric", "$1", "__name__", "(.+)")
) > 0""",
                "{{ $labels.metric }} of {{ $labels.job }} has more attribute combinations than the SDK keeps",
            ),
            Alert(
                "BronzeCollectorRefuses",
                "ticket",
                grew([f"otelcol_receiver_refused_{items}{{{collector}}}" for items in _SIGNALS], "instance, receiver"),
                "The collector refuses telemetry at {{ $labels.receiver }}: its memory or its queues are full",
            ),
            Alert(
                "BronzeCollectorDrops",
                "ticket",
                grew(_DROPPED_BY_COLLECTOR, "instance, exporter"),
                "Telemetry for {{ $labels.exporter }} was refused: by its full queue, or by its destination",
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
                "The collector sends nothing to {{ $labels.exporter }}; its queue keeps the telemetry",
            ),
            Alert(
                "BronzePrometheusRejects",
                "ticket",
                grew(
                    [
                        # not `out_of_order`: as late samples are taken, it only counts the markers that a target has
                        # ended which began again
                        f"prometheus_tsdb_out_of_bound_samples_total{{{prometheus}}}",
                        f"prometheus_tsdb_too_old_samples_total{{{prometheus}}}",
                        # not 5xx: the collector sends again, or counts the loss (BronzeCollectorDrops)
                        f'prometheus_http_requests_total{{{prometheus}, {written}, code=~"4.."}}',
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
                "Prometheus refuses exemplars: panels link to fewer traces",
            ),
            # one faulty verification is enough; those that run all the time may be early once, and say nothing any more
            # if they stopped verifying
            Alert(
                "BronzeVerificationFaulty",
                "ticket",
                f"""\
min by (bronze_verify_check) (min_over_time(bronze_verify_share{{{COMMAND}}}[{recent}])) < 1
or
max by (bronze_verify_check) (
  max_over_time(bronze_verify_share{{{PERMANENT}}}[{recent}])
  and bronze_verify_last_run_time_seconds{{{PERMANENT}}} > time() - {at.verified_s_max:g}
) < 1""",
                "Only {{ $value | humanizePercentage }} of what was verified is correct "
                "({{ $labels.bronze_verify_check }}): telemetry, catalog and bucket do not agree",
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


# --- the verdict on each part, for the dashboards


def verdict_limits(at: Thresholds) -> Limits:
    return Limits(
        requests_budget=at.requests_budget,
        uploads_budget=at.uploads_budget,
        backlog_messages_max=at.backlog_messages_max,
        collector_queue_share_max=at.collector_queue_share_max,
        telemetry_age_s_max=at.telemetry_age_s_max,
        dropped=(*_DROPPED_BY_SDK, *_DROPPED_BY_COLLECTOR),
    )


def _verdict(at: Thresholds) -> Group:
    limits = verdict_limits(at)
    return Group(
        "verdict",
        "5s",
        [
            *(Recording(verdict.RECORD, verdict.expression(part, limits), {"part": part.value}) for part in Part),
            Recording(verdict.SOURCE_RECORD, verdict.source_expression(limits)),
        ],
    )


# --- parity: metrics scraped from each process, compared with those received through the collector


def _parity(at: Thresholds) -> Group:
    """Counters only grow and the two paths differ only by lag, so neither may exceed the other's value one lag later.

    This is exact under any load. Each process is compared with itself. Processes that have ended, or that only one path
    has (BronzeTelemetryMissing), are left out.

    A process may start again under its id, without some of its series: after a change of its sources, for example. A
    scrape ends those. Nothing ends those of OTLP, which Prometheus shows for five minutes: they are left out as soon as
    they are older than the others. Until the values of before are no longer read, nothing is compared. Its first export
    may come before the first scrape.
    """
    lag = f"{at.parity_lag_s}s"

    def recordings() -> Iterator[Recording]:
        for metric in registry().metrics.values():
            for role in metric.emits:
                name, labels = metric.prometheus_name, {"metric": metric.prometheus_name, "role": role}
                received = f'{name}{{job="bronze/{role}"}}'
                yield Recording(
                    "instance:counter:otlp",
                    f"""\
sum by (instance) (
  {received}
  and timestamp({received})
    > on (instance) group_left () (max by (instance) (timestamp({received})) - {at.parity_lag_s}))""",
                    labels,
                )
                yield Recording(
                    "instance:counter:scraped",
                    f"""\
sum by (instance) (label_replace(
  {name}{{job="scrape-{role}"}}
    # of two processes seen at one address, the later
    * on (job, instance) group_left (service_instance_id)
      topk by (job, instance) (1, timestamp(target_info{{job="scrape-{role}"}})) ^ 0,
  "instance", "$1", "service_instance_id", "(.+)"))""",
                    labels,
                )

    return Group(
        "parity",
        "5s",
        [
            *recordings(),
            Recording(
                "instance:counter:difference",
                f"""\
clamp_min(instance:counter:scraped offset {lag} - instance:counter:otlp, 0)
  + clamp_min(instance:counter:otlp offset {lag} - instance:counter:scraped, 0)
unless (resets(instance:counter:scraped[{3 * at.parity_lag_s}s]) > 0
  # its first export may come before its first scrape; two processes under one id reset it again and again
  or resets(instance:counter:otlp[{3 * at.parity_lag_s}s]) == 1)""",
            ),
            Alert(
                "BronzePathsDiffer",
                "ticket",
                "instance:counter:difference > 0",
                "{{ $labels.metric }} of {{ $labels.instance }} differs by {{ $value | humanize }} between /metrics "
                "and OTLP",
            ),
        ],
    )


# --- the metrics that an expression reads

_NO_METRIC = re.compile(
    r"""
    "[^"]*" | \#.*                                                      # strings, comments
    | \b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)   # labels
    | \[[^]]*\] | \boffset\s+\w+                                        # durations
    """,
    re.VERBOSE,
)
_OPERATORS = frozenset({"and", "or", "unless", "anchored"})


def names(expr: str) -> frozenset[str]:
    """The series that a PromQL expression reads."""
    bare = re.sub(r"\{[^}]*\}", "{}", _NO_METRIC.sub(" ", expr))
    return frozenset(re.findall(r"(?<![\w:.])[a-zA-Z_:][\w:]*(?![\w:]|\s*\()", bare)) - _OPERATORS


def all_alerts() -> list[Alert]:
    """Every alert, in the order of the rules."""
    every = (rule for of_file in groups(Thresholds()).values() for group in of_file for rule in group.rules)
    return [rule for rule in every if isinstance(rule, Alert)]


def readers(metric: str) -> list[str]:
    """The names of the rules that read a metric, given its name in Prometheus."""
    series = {metric, *(f"{metric}_{part}" for part in ("bucket", "sum", "count"))}
    return list(dict.fromkeys(rule for rule, read in _reads() if read & series))


@cache
def _reads() -> Sequence[tuple[str, frozenset[str]]]:
    """Each rule's name, and the names of the series that it reads."""
    return [
        (rule.name, names(rule.expr))
        for of_file in groups(Thresholds()).values()
        for group in of_file
        for rule in group.rules
    ]


# --- files


def files(thresholds: Thresholds) -> Mapping[str, str]:
    """The rule files by their names."""
    return {
        f"{name}.yaml": f"# Generated by `{WRITE}` from prometheus/rules.py.\n"
        + yaml.dump(
            {"groups": [_group(group, thresholds) for group in of_file]}, Dumper=_Dumper, sort_keys=False, width=1000
        )
        for name, of_file in groups(thresholds).items()
    }


def write(folder: Path, thresholds: Thresholds) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files(thresholds).items():
        (folder / name).write_text(text, encoding="utf-8")


def verdicts(thresholds: Thresholds) -> str:
    """The meaning of each verdict, as a file of the API's page."""
    return json.dumps(verdict.for_the_page(verdict_limits(thresholds)), indent=1) + "\n"


def out_of_sync() -> list[str]:
    """The names of files that differ from what this module writes, and of rule files that it does not write."""
    wanted = {**files(Thresholds()), VERDICTS.name: verdicts(Thresholds())}
    return differing(wanted, [*FOLDER.glob("*.yaml"), *VERDICTS.parent.glob(VERDICTS.name)])


def differing(wanted: Mapping[str, str], written: Iterable[Path]) -> list[str]:
    """The names of generated files that are missing, or differ from their wanted texts, or are not wanted."""
    existing = {path.name: path.read_text(encoding="utf-8") for path in written}
    return sorted(name for name in wanted.keys() | existing.keys() if wanted.get(name) != existing.get(name))


def _group(group: Group, at: Thresholds) -> dict[str, Any]:
    return {"name": group.name, "interval": group.interval, "rules": [_rule(rule, at) for rule in group.rules]}


def _rule(rule: Recording | Alert, at: Thresholds) -> dict[str, Any]:
    if isinstance(rule, Recording):
        return {"record": rule.name, "expr": rule.expr, **({"labels": dict(rule.labels)} if rule.labels else {})}
    hold_s = {"page": at.page_hold_s, "ticket": at.ticket_hold_s, "none": 0}[rule.severity]
    return {
        "alert": rule.name,
        "expr": rule.expr,
        "for": f"{0 if rule.at_once else hold_s}s",
        "labels": {"severity": rule.severity, **rule.labels},
        "annotations": {"summary": rule.summary, "runbook_url": f"{RUNBOOK_URL}#{rule.name.lower()}"},
    }


class _Dumper(yaml.SafeDumper):
    """Writes expressions of several lines as block scalars."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)


_Dumper.add_representer(str, _Dumper.represent_str)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the Prometheus rule files.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is out of sync")
    if not parser.parse_args().check:
        write(FOLDER, Thresholds())
        VERDICTS.write_text(verdicts(Thresholds()), encoding="utf-8")
    elif different := out_of_sync():
        sys.exit(f"{', '.join(different)} out of sync with prometheus/rules.py: run {WRITE}")


if __name__ == "__main__":
    main()
