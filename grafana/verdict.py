"""Is all well now? The tiles of the verdicts, which `prometheus/verdict.py` defines and Prometheus records."""

from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.statetimeline import Panel as StateTimeline
from grafana_foundation_sdk.models.common import BigValueColorMode, BigValueTextMode
from grafana_foundation_sdk.models.dashboard import DynamicConfigValue

from bronze.objectives import DURATION_S_MAX
from bronze.telemetry import promql
from bronze.telemetry.promql import NO_CANARY
from grafana import components
from grafana.components import (
    BAD,
    COUNT,
    EXACT,
    FAIR,
    GOOD,
    NEUTRAL,
    NOTHING,
    SECONDS,
    UNKNOWN,
    PanelInfo,
    query,
    tile,
)
from grafana.promql import LEDGER, RANGE, THRESHOLDS
from prometheus import rules, verdict
from prometheus.verdict import Level, Part

OVERVIEW, LATENCY, HEALTH = "bronze-overview", "bronze-latency", "bronze-health"

_LIMITS = rules.verdict_limits(THRESHOLDS)
#: The text of each verdict.
TEXTS = {f"{number}": text for number, text in verdict.texts(_LIMITS).items()}
COLOURS = components.steps(NOTHING, (0, GOOD), (Level.WARNING, FAIR), (Level.FAILING, BAD), (Level.UNKNOWN, UNKNOWN))
_OVER_TIME = "Verdicts over time (grey: nothing recorded)"
_FAILING = f"{verdict.RECORD} >= {Level.FAILING:d} < {Level.UNKNOWN:d}"
_QUEUE_FAILS = f'{verdict.RECORD}{{part="{Part.QUEUE}"}} >= {Level.FAILING:d} < {Level.UNKNOWN:d}'
#: What was reported so long ago says nothing about now.
_REPORTED = f"> time() - {THRESHOLDS.telemetry_age_s_max:g}"
_NOT_KNOWN = "not known"


def ingest() -> Stat:
    info = PanelInfo(
        "Ingest",
        f"Does the API accept submissions, each within {DURATION_S_MAX:g} s? *failing*: the latest submission got a "
        "5xx, or no API answers. What senders have to correct (4xx) is no fault.",
        "no API has reported yet",
        ["BronzeRequestsFail", "BronzeRequestsSlow", "BronzeRoleDown"],
        (OVERVIEW, "Requests by status"),
    )
    return _verdict(info, Part.INGEST)


def queue() -> Stat:
    info = PanelInfo(
        "Queue",
        "Do the queue and the consumer work, and is no message late? *late*: a message is not in the bucket after the "
        f"flush age + {DURATION_S_MAX:g} s.",
        "no consumer has reported yet",
        ["BronzeBacklogOverdue", "BronzeLaneStuck", "BronzeLaneHalted", "BronzeRecordsMissing", "BronzeRoleDown"],
        (OVERVIEW, "Age of the oldest message"),
    )
    return _verdict(info, Part.QUEUE)


def upload() -> Stat:
    info = PanelInfo(
        "Upload",
        f"Do uploads succeed, each within {DURATION_S_MAX:g} s? *failing*: the latest attempt of a source failed, or "
        "none ends while messages are late.",
        "no consumer has reported yet",
        ["BronzeUploadsFail", "BronzeUploadsSlow", "BronzeUploadAttemptsFail", "BronzeUploadsMissing"],
        (LATENCY, "Upload duration, percentiles"),
    )
    return _verdict(info, Part.UPLOAD)


def telemetry() -> Stat:
    info = PanelInfo(
        "Telemetry",
        "Do the metrics arrive? *blind*: they do not, so the other tiles say *not known*, and graphs end.",
        "the collector is not scraped",
        ["BronzeTelemetryMissing", "BronzeCollectorDrops", "BronzeCollectorQueueFull", "BronzeSdkDrops"],
        (HEALTH, "Accepted and refused"),
    )
    return _verdict(info, Part.TELEMETRY)


def urgent_alerts() -> Stat:
    info = PanelInfo(
        "Urgent alerts",
        "The alerts that fire now and need somebody to act now. They fire when a fault lasts, so later than the "
        "verdicts: *none yet* while a verdict is red. *Telemetry health* lists all, with their runbook entries.",
        "the rules are not evaluated",
        ["Watchdog"],
        (HEALTH, "Alerts: urgent"),
    )
    fires = 'ALERTS{alertname=~"Bronze.+", alertstate="firing", severity="page"}'
    named = components.single_value(f"group by (alertname) ({fires})", "{{alertname}}")
    watched = 'group(ALERTS{alertname="Watchdog", alertstate="firing"})'
    none = components.single_value(f"({watched} - 1) unless on () {fires} unless on () {_FAILING}", "none")
    not_yet = components.single_value(f"(({watched} - 2) unless on () {fires}) and on () {_FAILING}", "none yet")
    panel = tile(info, COUNT, named, none, not_yet, height=4).text_mode(BigValueTextMode.NAME)
    return panel.thresholds(components.steps(NOTHING, (0, GOOD), (1, BAD)))


def oldest_waiting() -> Stat:
    info = PanelInfo(
        "Oldest waiting message",
        f"Age of the oldest message that is not in the bucket. Red from the objective on: flush age + "
        f"{DURATION_S_MAX:g} s, of the source that has the longest.",
        "no lane has reported yet",
        ["BronzeBacklogOverdue"],
        (OVERVIEW, "Age of the oldest message"),
    )
    gauge = f'bronze_queue_oldest_age_seconds{{job="bronze/consumer", {NO_CANARY}}}'
    age = components.single_value(f"max({gauge} and timestamp({gauge}) {_REPORTED})\nor group({verdict.RECORD}) - 2")
    limit = components.single_value(
        f'max(bronze_delivery_objective_seconds{{job="bronze/consumer", {NO_CANARY}}})', "limit"
    )
    panel = components.value_names(tile(info, SECONDS, age, limit, height=4), {"-1": _NOT_KNOWN}, UNKNOWN)
    return components.red_from_query(panel, "B")


def waiting() -> Stat:
    info = PanelInfo(
        "Records that wait now",
        "Accepted records that are not done: neither in the bucket, nor in quarantine, nor known to be copies. Red if "
        "some wait and *Queue* is red.",
        "no process has reported yet",
        ["BronzeBacklogLarge"],
        (OVERVIEW, "Queue depth"),
    )
    reported = f"max(timestamp(bronze_ledger_records{{{LEDGER}, {NO_CANARY}}})) {_REPORTED}"
    number = components.single_value(
        f"sum(\n{promql.waiting(f'{LEDGER}, {NO_CANARY}')}\n) and on () {reported}\nor group({verdict.RECORD}) - 2"
    )
    some = components.single_value(f"max({_QUEUE_FAILS}) * 0 + 1", "limit")
    panel = components.value_names(tile(info, EXACT, number, some, height=4), {"-1": _NOT_KNOWN}, UNKNOWN)
    return components.red_from_query(panel, "B").decimals(0)


def since_incident() -> Stat:
    info = PanelInfo(
        "Since the last incident",
        "How long ago a verdict was red for the last time in the range. The timeline below shows when and which.",
        "the rules are not evaluated",
        explained_by=(OVERVIEW, _OVER_TIME),
    )
    # a step of the rules' interval, so that none is missed
    last = f"max(max_over_time(timestamp({_FAILING})[{RANGE}:5s]))"
    none = f"group({verdict.RECORD} offset {RANGE}) - 2"
    none_recorded = f"group(last_over_time({verdict.RECORD}[{RANGE}])) - 3"
    since = components.single_value(f"max({_FAILING}) * 0\nor ({last} - time()) * -1\nor {none}\nor {none_recorded}")
    panel = components.value_names(
        tile(info, SECONDS, since, height=4),
        {"-2": "none since recording began", "-1": "none in this range", "0": "ongoing"},
    )
    return panel.decimals(0).thresholds(components.steps(GOOD, (0, BAD), (1, NEUTRAL)))


def over_time() -> StateTimeline:
    info = PanelInfo(
        _OVER_TIME,
        "The verdict on each part, in the range: when something failed or was slow, and when it ended. Move over a "
        "block to see the reason. Grey: nothing was recorded, for example because the system did not run.",
        "the rules are not evaluated",
    )
    nothing = (f'label_replace(vector(-1), "part", "{part}", "", "")' for part in Part)
    by_part = "\nor ".join((f"max by (part) ({verdict.RECORD})", *nothing))
    panel = components.states(info, query(by_part, "{{part}}"))
    return components.value_names(panel, {**TEXTS, "-1": "nothing recorded"}).thresholds(COLOURS)


def as_cells() -> list[DynamicConfigValue]:
    """A column of verdicts: the texts, in their colours."""
    colours = {Level.WELL: GOOD, Level.WARNING: FAIR, Level.FAILING: BAD, Level.UNKNOWN: UNKNOWN}
    named = {number: (text, colours[Level(int(number) // 100 * 100)]) for number, text in TEXTS.items()}
    return [components.value_colours(named), components.as_background()]


def _verdict(info: PanelInfo, part: Part) -> Stat:
    panel = tile(info, COUNT, components.single_value(f'{verdict.RECORD}{{part="{part}"}}'), height=4)
    panel = components.value_names(panel, TEXTS).color_mode(BigValueColorMode.BACKGROUND_SOLID)
    return panel.thresholds(COLOURS)
