"""How panels ask Prometheus: what came by OTLP (`job="bronze/..."`), of the instances and sources chosen above them.

Names of metrics are those of the telemetry schema (docs/telemetry.md); what others emit is listed in `FOREIGN`. Ratios
divide by what is above 0 and quantiles drop NaN, so that nothing is shown where nothing happened.
"""

from collections.abc import Mapping

from prometheus import rules
from prometheus.rules import Thresholds

#: The window of a point of a graph, and the whole range that a single number tells of.
STEP, RANGE = "$__rate_interval", "$__range"

THRESHOLDS = Thresholds()

#: The line of the objectives on requests and uploads; that of a delivery depends on the flush age.
LINE_S = THRESHOLDS.duration_s_max

INSTANCE, SOURCE = 'instance=~"$instance"', 'bronze_source=~"$source"'
API = f'job="bronze/api", {INSTANCE}'
CONSUMER = f'job="bronze/consumer", {INSTANCE}'
PUBLISHER = f'job="bronze/publisher", {INSTANCE}'
COLLECTOR, PROMETHEUS = 'job="scrape-collector"', 'job="scrape-prometheus"'

#: Submissions, of all that is asked of the API.
INGEST = f'{API}, http_route="/v1/ingest/{{source}}"'
REQUESTS = f"http_server_request_duration_seconds{{{INGEST}}}"
UPLOADS = f'bronze_upload_duration_seconds{{{CONSUMER}, {SOURCE}, bronze_outcome="success"}}'
DELIVERIES = f"bronze_delivery_duration_seconds{{{CONSUMER}, {SOURCE}}}"
OBJECTIVES = f"bronze_delivery_objective_seconds{{{CONSUMER}, {SOURCE}}}"
#: By when every chosen source should be in the bucket.
OBJECTIVE_S = f"max({OBJECTIVES})"

#: Metrics that rules do not read, by who makes them, with the labels that queries may match or keep.
FOREIGN: Mapping[str, tuple[str, frozenset[str]]] = {
    **rules.FOREIGN,
    **{
        name: (maker, frozenset({"job", "instance", *labels}))
        for maker, names, labels in (
            (
                "OpenTelemetry SDK, of itself",
                ("otel_sdk_processor_span_queue_size", "otel_sdk_processor_span_queue_capacity"),
                ("otel_component_name", "otel_component_type"),
            ),
            (
                "OpenTelemetry Collector, of itself",
                tuple(f"otelcol_receiver_accepted_{items}" for items in ("spans", "metric_points", "log_records")),
                ("receiver", "transport"),
            ),
            (
                "Prometheus, of itself",
                (
                    "prometheus_tsdb_exemplar_exemplars_appended_total",
                    "prometheus_tsdb_exemplar_exemplars_in_storage",
                    "prometheus_tsdb_exemplar_last_exemplars_timestamp_seconds",
                    "prometheus_tsdb_head_series",
                ),
                (),
            ),
            (
                "Prometheus, of its rules",
                ("ALERTS",),
                ("alertname", "alertstate", "severity", "bronze_source", "exporter"),
            ),
        )
        for name in names
    },
}


def part(histogram: str, suffix: str) -> str:
    """The series of a histogram that is given by its name and matchers: its `bucket`, `sum` or `count`."""
    return histogram.replace("{", f"_{suffix}{{", 1)


def rate(series: str, by: str = "", window: str = STEP, offset: str = "") -> str:
    return f"sum{_by(by)} (rate({series}[{window}]{_offset(offset)}))"


def counted(series: str, by: str = "") -> str:
    """How often in the panel's range, exactly: `increase` extrapolates to the ends of the range, and does not see what
    a process counted before its first export. It has to do where a process began its counters anew. A series that is
    not known at the beginning of the range counts from 0.
    """
    return f"""\
sum{_by(by)} (
  (increase({series}[{RANGE}]) and resets({series}[{RANGE}]) > 0)
  or (max_over_time({series}[{RANGE}]) - {series} offset {RANGE})
  or max_over_time({series}[{RANGE}])
)"""


def or_zero(expr: str) -> str:
    return f"{expr} or vector(0)"


def ratio(some: str, of: str) -> str:
    return f"{some} / ({of} > 0)"


def quantile(q: float, histogram: str, by: str = "", window: str = STEP, offset: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q:g}, {rate(part(histogram, 'bucket'), labels, window, offset)}) >= 0"


def quantile_counted(q: float, histogram: str) -> str:
    """Of all in the panel's range, be it a single one."""
    return f"histogram_quantile({q:g}, {counted(part(histogram, 'bucket'), 'le')}) >= 0"


def mean(histogram: str, by: str = "") -> str:
    return ratio(rate(part(histogram, "sum"), by), rate(part(histogram, "count"), by))


def mean_counted(histogram: str) -> str:
    """Of all in the panel's range, be it a single one."""
    return ratio(counted(part(histogram, "sum")), counted(part(histogram, "count")))


def beyond_line(histogram: str) -> str:
    """Which share took longer than the line."""
    within = part(histogram, "bucket").replace("{", f'{{le="{LINE_S:g}", ', 1)
    return f"1 - {ratio(rate(within), rate(part(histogram, 'count')))}"


def delivered_late() -> str:
    """Which share of the deliveries. Each source is held to what its consumers say, their flush age + 2 s."""
    return f"""\
1 - sum(
  rate({part(DELIVERIES, "bucket")}[{STEP}])
  and on (bronze_source, le)
  count_values by (bronze_source) ("le", max by (bronze_source) ({OBJECTIVES}))
) / ({rate(part(DELIVERIES, "count"))} > 0)"""


def seconds_above(expr: str, line: str) -> str:
    """How much of the panel's range an expression was above a line."""
    return or_zero(
        f"count_over_time((({expr}) > {line})[{RANGE}:{STEP}])"
        f" / count_over_time(vector(1)[{RANGE}:{STEP}]) * ${{__range_s}}"
    )


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""


def _offset(offset: str) -> str:
    return f" offset {offset}" if offset else ""
