"""Telemetry health: may the other dashboards be trusted."""

from grafana_foundation_sdk.builders.dashboard import Panel
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.tempo import TempoQuery
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries

from grafana import house
from grafana.house import (
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
    Row,
    Says,
    graph,
    line,
    number,
    query,
    tile,
)
from grafana.promql import COLLECTOR, PROMETHEUS, THRESHOLDS, counted, or_zero, rate

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
#: A publisher comes and goes, and the collector's own scrape endpoint is there only with its layer.
_STAYING = 'job=~"scrape-(api|consumer|collector|nats|seaweedfs|prometheus)"'


def board() -> Board:
    return Board(
        "bronze-health",
        "Telemetry health",
        "Whether the other dashboards may be trusted: what was dropped, what is not seen, what does not agree.",
        [
            Row(
                "Is what the dashboards show the truth?",
                [
                    alerts(),
                    targets_down(),
                    parity_now(),
                    sdk_drops(),
                    collector_drops(),
                    exemplars_stored(),
                    firing(),
                    targets(),
                ],
            ),
            Row("Collector", [accepted(), refused(), queues(), sent(), failed()]),
            Row("Components", [parity(), sdk_queue(), sdk_drops_over_time(), catalog_lag()]),
            Row("Prometheus", [rejected(), exemplars(), exemplar_age(), series(), series_by_metric()]),
            Row("Who calls whom", [service_graph()], closed=True),
        ],
    )


# --- is what the dashboards show the truth


def alerts() -> Stat:
    says = Says("Alerts firing", "Alerts of ours that fire now; they are listed below.", "the rules are not evaluated")
    firing_now = number(or_zero('count(ALERTS{alertname=~"Bronze.+", alertstate="firing"})'))
    return tile(says, COUNT, firing_now, width=8).thresholds(house.none_is_good(bad=1))


def targets_down() -> Stat:
    says = Says(
        "Targets down",
        "Components that stay and do not answer Prometheus' scrape: the process, or the network between.",
        "nothing is scraped",
        ["BronzeTargetDown", "BronzeRoleDown"],
    )
    return tile(says, COUNT, number(or_zero(f"count(up{{{_STAYING}}} == 0)")), width=8).thresholds(
        house.none_is_good(bad=1)
    )


def parity_now() -> Stat:
    says = Says(
        "Parity",
        "The largest difference of a counter between what a process says on /metrics and what came through the "
        "collector. Anything but 0 means that telemetry was lost or doubled.",
        "nothing to compare for a minute yet",
        ["BronzePathsDiffer"],
    )
    return tile(says, EXACT, number("max(instance:counter:difference)"), width=8).thresholds(house.none_is_good(bad=1))


def sdk_drops() -> Stat:
    says = Says(
        "Dropped by components",
        "Spans and logs that the processes dropped in the range, because the collector did not take them in time.",
        "no process has reported yet",
        ["BronzeSdkDrops"],
    )
    return (
        tile(says, EXACT, number(_in_range(_DROPPED_BY_SDK)), width=8).decimals(0).thresholds(house.none_is_good(bad=1))
    )


def collector_drops() -> Stat:
    says = Says(
        "Dropped by the collector",
        "Items that the collector dropped in the range: its queue was full, or the destination refused them for good.",
        "the collector has not reported yet",
        ["BronzeCollectorDrops"],
    )
    return (
        tile(says, EXACT, number(_in_range(_DROPPED_BY_COLLECTOR)), width=8)
        .decimals(0)
        .thresholds(house.none_is_good(bad=1))
    )


def exemplars_stored() -> Stat:
    says = Says(
        "Exemplars",
        "Exemplars that Prometheus holds: the marks that lead from a graph to a trace. None while there is traffic: "
        "sampling is off, or the metrics layer drops them.",
        "Prometheus has not reported yet",
        ["BronzePrometheusRejectsExemplars"],
    )
    return tile(
        says, EXACT, number(f"sum(prometheus_tsdb_exemplar_exemplars_in_storage{{{PROMETHEUS}}})"), width=8
    ).decimals(0)


def firing() -> Table:
    says = Says(
        "Alerts",
        "What fires or is about to. The runbook (docs/runbook.md) has an entry for each.",
        "no alert fires",
    )
    panel = house.listing(says, house.rows('ALERTS{alertname=~"Bronze.+"}'), width=12)
    return house.columns(
        panel,
        {
            "alertname": ("Alert", []),
            "alertstate": (
                "State",
                [
                    house.wide(90),
                    house.named({"firing": ("firing", BAD), "pending": ("pending", FAIR)}),
                    house.as_background(),
                ],
            ),
            "severity": ("Severity", [house.wide(90)]),
            "bronze_source": ("Source", [house.wide(100)]),
            "instance": ("Instance", []),
        },
    )


def targets() -> Table:
    says = Says(
        "Prometheus' targets",
        "Each target that Prometheus scrapes, by job and instance. Away is what need not be there: a "
        "publisher runs for a while, collector-exporter comes with the layer metrics/prometheus-scrape.",
        "nothing is scraped",
        ["BronzeTargetDown"],
    )
    return house.columns(
        house.listing(says, house.rows(f"up{{{_STAYING}}} or up > 0 or up - 1"), width=12),
        {
            "job": ("Job", []),
            "instance": ("Instance", []),
            "Value": (
                "Up",
                [
                    house.wide(80),
                    house.named({"1": ("up", GOOD), "0": ("down", BAD), "-1": ("away", NEUTRAL)}),
                    house.as_background(),
                ],
            ),
        },
    )


# --- collector


def accepted() -> Timeseries:
    says = Says(
        "Accepted",
        "What the collector took from the components, a second.",
        "the collector has not reported yet",
        ["BronzeTelemetryMissing"],
    )
    return graph(says, COUNTS_PER_S, *_by_signal("otelcol_receiver_accepted"))


def refused() -> Timeseries:
    says = Says(
        "Refused",
        "What the collector did not take: its memory or its queues are full. Components try again, then drop.",
        "the collector has not reported yet",
        ["BronzeCollectorRefuses"],
    )
    return house.rare(graph(says, COUNTS_PER_S, *_by_signal("otelcol_receiver_refused")))


def queues() -> Timeseries:
    says = Says(
        "Queues",
        "How full the queue of each exporter is. It fills while its destination is away, survives restarts, and "
        f"empties by itself. Above {THRESHOLDS.collector_queue_share_max:.0%} something will soon be dropped.",
        "the collector has not reported yet",
        ["BronzeCollectorQueueFull", "BronzeExporterStalled"],
    )
    size, capacity = (
        f"max by (exporter) (otelcol_exporter_queue_{what}{{{COLLECTOR}}})" for what in ("size", "capacity")
    )
    limit = THRESHOLDS.collector_queue_share_max
    return graph(
        says, SHARE, query(f"{size} / {capacity}", "{{exporter}}"), line(f"vector({limit:g})", f"line: {limit:.0%}")
    )


def sent() -> Timeseries:
    says = Says(
        "Sent by exporter",
        "What reached each destination, a second. None while something is accepted: the destination is away.",
        "the collector has not reported yet",
        ["BronzeExporterStalled"],
    )
    return graph(
        says,
        COUNTS_PER_S,
        *(
            query(rate(f"otelcol_exporter_sent_{items}{{{COLLECTOR}}}", "exporter"), f"{name} to {{{{exporter}}}}")
            for items, name in _SIGNALS.items()
        ),
        width=12,
    )


def failed() -> Timeseries:
    says = Says(
        "Dropped by exporter",
        "What did not reach its destination and is not tried again, a second.",
        "the collector has not reported yet",
        ["BronzeCollectorDrops"],
    )
    by_exporter = "\nor ".join(f"{rate(one, 'exporter')} > 0" for one in _DROPPED_BY_COLLECTOR)
    dropped = " + ".join(f"({or_zero(rate(one))})" for one in _DROPPED_BY_COLLECTOR)
    return house.rare(graph(says, COUNTS_PER_S, query(dropped, "all"), query(by_exporter, "{{exporter}}"), width=12))


# --- components


def parity() -> Timeseries:
    says = Says(
        "Parity by counter",
        "Where the two ways of metrics part, by counter: the largest difference of a process.",
        "nothing to compare for a minute yet",
        ["BronzePathsDiffer"],
    )
    by_metric = query("max by (metric) (instance:counter:difference) > 0", "{{metric}}")
    return house.rare(graph(says, COUNT, query("max(instance:counter:difference)", "all"), by_metric))


def sdk_queue() -> Timeseries:
    says = Says(
        "Span queue of the components",
        "How full each process' queue of spans is. At 100 % it drops, rather than slow the data down.",
        "no process has reported yet",
        ["BronzeSdkDrops"],
    )
    size, capacity = (
        f'max by (job, instance) (otel_sdk_processor_span_queue_{what}{{job=~"bronze/.+"}})'
        for what in ("size", "capacity")
    )
    return graph(says, SHARE, query(f"{size} / {capacity}", "{{job}}")).max(1)


def sdk_drops_over_time() -> Timeseries:
    says = Says(
        "Dropped by components",
        "Spans and logs that processes dropped, a second, by reason.",
        "no process has reported yet",
        ["BronzeSdkDrops", "BronzeSeriesOverflow"],
    )
    dropped = " + ".join(f"({or_zero(rate(one))})" for one in _DROPPED_BY_SDK)
    by_reason = "\nor ".join(f"{rate(one, 'job, error_type')} > 0" for one in _DROPPED_BY_SDK)
    return house.rare(graph(says, COUNTS_PER_S, query(dropped, "all"), query(by_reason, "{{job}}: {{error_type}}")))


def catalog_lag() -> Timeseries:
    says = Says(
        "Look-ups behind the catalog",
        "How far each API's view of the catalog is behind: look-ups (`/v1/lineage`) do not know what is newer. It "
        "grows while the queue is away, or after a start until the view is made; the data does not depend on it.",
        "no API has reported yet",
    )
    lag = 'max by (instance) (bronze_catalog_lag_seconds{job="bronze/api"})'
    return graph(says, SECONDS, query(lag, "{{instance}}"), width=24)


# --- Prometheus


def rejected() -> Timeseries:
    says = Says(
        "Refused by Prometheus",
        "Samples that Prometheus did not take, by why, and rules that it could not evaluate. What is refused is gone.",
        "Prometheus has not reported yet",
        ["BronzePrometheusRejects", "BronzeRulesFail"],
    )
    refusals = {
        "too old": "prometheus_tsdb_too_old_samples_total",
        "out of bounds": "prometheus_tsdb_out_of_bound_samples_total",
        "out of order": "prometheus_tsdb_out_of_order_samples_total",
        "rules": "prometheus_rule_evaluation_failures_total",
    }
    return house.rare(
        graph(
            says,
            COUNTS_PER_S,
            *(query(rate(f"{counter}{{{PROMETHEUS}}}"), why) for why, counter in refusals.items()),
        )
    )


def exemplars() -> Timeseries:
    says = Says(
        "Exemplars, stored and refused",
        "Exemplars a second. Refused are those that come out of order, after an outage for instance: graphs lead to "
        "fewer traces, and nothing else is wrong.",
        "Prometheus has not reported yet",
        ["BronzePrometheusRejectsExemplars"],
    )
    return graph(
        says,
        COUNTS_PER_S,
        query(rate(f"prometheus_tsdb_exemplar_exemplars_appended_total{{{PROMETHEUS}}}"), "stored"),
        query(rate(f"prometheus_tsdb_exemplar_out_of_order_exemplars_total{{{PROMETHEUS}}}"), "refused"),
    )


def exemplar_age() -> Timeseries:
    says = Says(
        "How far back exemplars go",
        "The age of the oldest exemplar, once Prometheus holds as many as it may. Traces are kept longer than that, so "
        "that each mark leads somewhere.",
        "no exemplar yet",
    )
    oldest = f"time() - (prometheus_tsdb_exemplar_last_exemplars_timestamp_seconds{{{PROMETHEUS}}} > 0)"
    return graph(says, SECONDS, query(oldest, "oldest"))


def series() -> Timeseries:
    says = Says(
        "Series",
        "Series that Prometheus holds in memory. It rises with processes and sources; a steep rise is an attribute "
        "that has too many values.",
        "Prometheus has not reported yet",
        ["BronzeSeriesOverflow"],
    )
    return graph(says, COUNT, query(f"sum(prometheus_tsdb_head_series{{{PROMETHEUS}}})", "series"), width=12)


def series_by_metric() -> Table:
    says = Says(
        "Series per metric",
        "The metrics of ours that take the most series, that came by OTLP.",
        "no process has reported yet",
        ["BronzeSeriesOverflow"],
    )
    by_metric = (
        'sort_desc(topk(20, count by (metric) (label_replace({job=~"bronze/.+"}, "metric", "$1", "__name__", "(.+)"))))'
    )
    return house.columns(
        house.listing(says, house.rows(by_metric), width=12),
        {"metric": ("Metric", []), "Value": ("Series", [house.wide(80)])},
    )


def service_graph() -> Panel:
    says = Says(
        "Service graph",
        "Calls a second and their duration between the services, as Tempo makes them of the traces. An edge that is "
        "missing is a trace that breaks.",
        "no trace yet",
    )
    return house.plugin("nodeGraph", says, TempoQuery().query_type("serviceMap"), height=14)


def _by_signal(name: str) -> list[house.Target]:
    return [query(or_zero(rate(f"{name}_{items}{{{COLLECTOR}}}")), said) for items, said in _SIGNALS.items()]


def _in_range(counters: tuple[str, ...]) -> str:
    """How often any of them in the range."""
    return " + ".join(f"({or_zero(counted(one))})" for one in counters)
