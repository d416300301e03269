"""PromQL of the panels: metrics received by OTLP (`job="bronze/..."`), filtered by the dashboard's variables.

Metric names are those of the telemetry schema (docs/telemetry.md); `EXTERNAL_METRICS` lists those that other programs
emit. Ratios divide only by values above 0 and quantiles drop NaN, so a panel shows nothing for times without events.
"""

from collections.abc import Mapping, Sequence

from bronze.objectives import DURATION_S_MAX
from bronze.telemetry import promql
from bronze.telemetry.promql import NO_CANARY, histogram_series
from prometheus import rules
from prometheus.rules import Thresholds
from prometheus.verdict import does_not_answer

#: The window of one point of a graph, and the whole time range of the dashboard, which single values are for.
STEP, RANGE = "$__rate_interval", "$__range"

#: The time between two points of a graph, for counts that add up.
INTERVAL = "$__interval"

#: How long before the range the one that it is compared with is.
PERIOD = "$period"

THRESHOLDS = Thresholds()

INSTANCE, SOURCE = 'instance=~"$instance"', f'bronze_source=~"$source", {NO_CANARY}'
DESTINATION = 'messaging_destination_name=~"bronze.($source)", messaging_destination_name!="bronze.canary"'
API = f'job="bronze/api", {INSTANCE}'
CONSUMER = f'job="bronze/consumer", {INSTANCE}'
#: Its numbers are those of a source, not of an instance.
LEDGER = promql.LEDGER
#: Who verifies: the command, and a role that follows exemplars all the time.
VERIFIED = 'job=~"bronze/.+"'
COLLECTOR, PROMETHEUS = 'job="scrape-collector"', 'job="scrape-prometheus"'

#: Submissions of data only, without the other requests to the API.
INGEST = f'{API}, http_route="/v1/ingest/{{source}}"'
REQUESTS = f"http_server_request_duration_seconds{{{INGEST}}}"
UPLOADS = f'bronze_upload_duration_seconds{{{CONSUMER}, {SOURCE}, bronze_outcome="success"}}'
FAILED_UPLOADS = f'bronze_upload_duration_seconds{{{CONSUMER}, {SOURCE}, bronze_outcome="failure"}}'
DELIVERIES = f"bronze_delivery_duration_seconds{{{CONSUMER}, {SOURCE}}}"
_OBJECTIVES = f'bronze_delivery_objective_seconds{{job="bronze/consumer", {SOURCE}}}'
#: The limit of deliveries: the largest of the chosen sources.
OBJECTIVE_S = f"max({_OBJECTIVES})"

_AGES = f'bronze_queue_oldest_age_seconds{{job="bronze/consumer", {SOURCE}}}'
_OLDEST_S = f"max(\n{promql.newest(_AGES, 'bronze_source, bronze_lane')}\n)"
#: How long the delivery that has not ended has taken until now, if that is over the limit; and its upload, which is due
#: at the flush age. A histogram has only what has ended.
UNFINISHED_DELIVERY_S = f"{_OLDEST_S} > {OBJECTIVE_S}"
UNFINISHED_UPLOAD_S = f"{_OLDEST_S} - ({OBJECTIVE_S} - {DURATION_S_MAX:g}) > {DURATION_S_MAX:g}"

_UNATTENDED = f"sum({promql.waiting(f'{LEDGER}, {SOURCE}')}) > 0 and on () {does_not_answer('consumer')}"
_OPEN = f'http_server_active_requests{{{API}, http_request_method="POST"}}'
_ENDED = histogram_series(REQUESTS, "count")
#: True in times in which nothing ended, although something waited.
REQUESTS_STOOD = (
    f"sum(min_over_time({_OPEN}[{STEP}])) > 0 unless on () sum(rate({_ENDED}[{STEP}])) > 0",
    does_not_answer("api"),
)
UPLOADS_STOOD, DELIVERIES_STOOD = (UNFINISHED_UPLOAD_S, _UNATTENDED), (UNFINISHED_DELIVERY_S, _UNATTENDED)

#: Metrics of other programs: who emits each, and the labels that queries may match or group by. Includes those of
#: the rules.
EXTERNAL_METRICS: Mapping[str, tuple[str, frozenset[str]]] = {
    **rules.EXTERNAL_METRICS,
    **{
        name: (maker, frozenset({"job", "instance", *labels}))
        for maker, names, labels in (
            (
                "OpenTelemetry SDK, about itself",
                ("otel_sdk_processor_span_queue_size", "otel_sdk_processor_span_queue_capacity"),
                ("otel_component_name", "otel_component_type"),
            ),
            (
                "OpenTelemetry Collector, about itself",
                tuple(f"otelcol_receiver_accepted_{items}" for items in ("spans", "metric_points", "log_records")),
                ("receiver", "transport"),
            ),
            (
                "Prometheus, about itself",
                ("prometheus_tsdb_exemplar_exemplars_appended_total",),
                (),
            ),
            (
                "Prometheus, about its rules",
                ("ALERTS", "ALERTS_FOR_STATE"),
                ("alertname", "alertstate", "severity", "bronze_source", "exporter", "api_url"),
            ),
        )
        for name in names
    },
}


def rate(series: str, by: str = "", window: str = STEP, offset: str = "") -> str:
    return f"sum{_by(by)} (rate({series}[{window}]{_offset(offset)}))"


def counted(series: str, by: str = "") -> str:
    """How often in the dashboard's time range, exactly."""
    return promql.counted(series, RANGE, by)


def counted_per_interval(series: str, by: str) -> str:
    """How often in each interval of a graph, exactly. A series that is new in the interval counts from 0."""
    return f"""\
sum by ({by}) (
  (increase({series}[{INTERVAL}] anchored) and present_over_time({series}[{RANGE}] offset {INTERVAL}))
  or max_over_time({series}[{INTERVAL}])
)"""


def added(series: str) -> str:
    """By how much a number of the ledger grew in the dashboard's time range, of each source."""
    return promql.added(series, RANGE)


def earlier(expr: str) -> str:
    """The value of an expression one `PERIOD` earlier, whatever offsets it has itself."""
    return f"last_over_time((\n{expr}\n)[1s:1s] offset {PERIOD})"


def reported(gauge: str, by: str) -> str:
    """As `promql.newest`, but only while a process reports: its last value says nothing about later."""
    now = f"max by ({by}) (timestamp({gauge})) > time() - {THRESHOLDS.telemetry_age_s_max:g}"
    return f"{promql.newest(gauge, by)}\nand on ({by}) ({now})"


def since(time_s: str) -> str:
    """The seconds since a time that a process reported. Its clock may be ahead of Prometheus'."""
    return f"clamp_min(time() - {time_s}, 0)"


def or_zero(expr: str) -> str:
    return f"{expr} or vector(0)"


def ratio(some: str, of: str) -> str:
    return f"{some} / ({of} > 0)"


def quantile(q: float, histogram: str, by: str = "", window: str = STEP, offset: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q:g}, {rate(histogram_series(histogram, 'bucket'), labels, window, offset)}) >= 0"


def quantile_counted(q: float, histogram: str) -> str:
    """A quantile of every measurement in the dashboard's time range, even if there is only one."""
    return promql.quantile_counted(q, histogram, RANGE)


def mean(histogram: str, by: str = "") -> str:
    return ratio(rate(histogram_series(histogram, "sum"), by), rate(histogram_series(histogram, "count"), by))


def mean_counted(histogram: str) -> str:
    """The mean of every measurement in the dashboard's time range, even if there is only one."""
    return ratio(counted(histogram_series(histogram, "sum")), counted(histogram_series(histogram, "count")))


def share_above_limit(histogram: str) -> str:
    """The share that took longer than `DURATION_S_MAX`."""
    within = histogram_series(histogram, "bucket").replace("{", f'{{le="{DURATION_S_MAX:g}", ', 1)
    return f"1 - {ratio(rate(within), rate(histogram_series(histogram, 'count')))}"


def share_delivered_late() -> str:
    """The share of late deliveries, by the objective that the consumers of each source report."""
    return f"1 - {ratio(delivered_on_time(DELIVERIES), rate(histogram_series(DELIVERIES, 'count')))}"


def delivered_on_time(deliveries: str) -> str:
    """Deliveries per second within the objective of their source."""
    return f"""\
sum(
  rate({histogram_series(deliveries, "bucket")}[{STEP}])
  and on (bronze_source, le)
  count_values by (bronze_source) ("le", max by (bronze_source) ({_OBJECTIVES}))
)"""


def share_failed_or_slow() -> str:
    """The share of the submissions that got a 5xx, or took longer than `DURATION_S_MAX`; a 4xx does not count."""
    status = "http_response_status_code"
    judged = _ENDED.replace("{", f'{{{status}!~"4..", ', 1)
    good = histogram_series(REQUESTS, "bucket").replace("{", f'{{{status}=~"2..", le="{DURATION_S_MAX:g}", ', 1)
    return f"1 - ({rate(good)} or vector(0)) / ({rate(judged)} > 0)"


def seconds_above(expr: str, limit: str, stood: Sequence[str]) -> str:
    """How long an expression was above a limit, or nothing ended, in the dashboard's time range, in seconds."""
    above = "\nor ".join(f"({condition})" for condition in (f"({expr}) > {limit}", *stood))
    return or_zero(
        f"count_over_time((\n{above}\n)[{RANGE}:{INTERVAL}])"
        f" / count_over_time(vector(1)[{RANGE}:{INTERVAL}]) * ${{__range_s}}"
    )


def all_above(share: str, stood: Sequence[str], counter: str) -> str:
    """The share, 1 in times in which nothing ended, and 0 in times without events, if a process reported its counter
    then.
    """
    nothing_ended = "\nor ".join(f"({condition})" for condition in stood)
    reported = f"group(present_over_time({counter}[{STEP}]))"
    return f"({nothing_ended}) * 0 + 1\nor {share}\nor {reported} - 1"


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""


def _offset(offset: str) -> str:
    return f" offset {offset}" if offset else ""
