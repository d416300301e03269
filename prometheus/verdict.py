"""The verdict on each part of the system: is it well now, and if not, why. `prometheus/rules.py` records it.

A verdict is a number, which dashboards show as a text. It is judged over fixed times, whatever range a dashboard
shows: what fails is judged by its latest attempt, what is slow by the last minute. What failed or was slow in the last
five minutes and is well again is a warning.

The canary's submissions count, too: without other traffic, they are what shows that the system works.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from bronze.errors import Outage
from bronze.objectives import DURATION_S_MAX
from bronze.telemetry.promql import LEDGER, newest

RECORD, SOURCE_RECORD = "bronze:verdict", "bronze:source_verdict"


class Part(StrEnum):
    """The parts in the order in which data passes them, and the telemetry, without which nothing is known of them."""

    INGEST = "ingest"
    QUEUE = "queue"
    UPLOAD = "upload"
    TELEMETRY = "telemetry"


class Level(IntEnum):
    """The hundreds of a verdict's number."""

    WELL = 0
    WARNING = 100
    FAILING = 200
    UNKNOWN = 300


@dataclass(frozen=True)
class Cause:
    """A reason for a verdict. It is true if `expr` has a result; the runbook's entry of `alert` says what to do."""

    level: Level
    text: str
    expr: str
    alert: str


@dataclass(frozen=True)
class Limits:
    """From the thresholds of the alerts, and the counters of dropped telemetry."""

    requests_budget: float
    uploads_budget: float
    backlog_messages_max: float
    collector_queue_share_max: float
    telemetry_age_s_max: float
    dropped: Sequence[str]


#: An attempt is the latest one if there was none of the other outcome since. At least two exports, and at most the time
#: over which a verdict judges.
_WINDOWS = ("20s", "40s", "1m", "2m", "5m")
_JUST_NOW, _NOW, _RECENTLY = _WINDOWS[0], "1m", "5m"
#: A process that does not answer starts, if Prometheus has had it as a target for less than this.
_STARTS_S = 25

_API, _CONSUMER = 'job="bronze/api"', 'job="bronze/consumer"'
_FAULTS = f"bronze_records_total{{{_API}, error_type=~"
_ANSWERED = f'bronze_records_total{{{_API}, bronze_outcome=~"accepted|replayed"}}'
_QUEUE_AWAY = f"{Outage.QUEUE_AWAY}|{Outage.OUTCOME_UNKNOWN}"
_EVERY_FAULT = f'{_FAULTS}"internal|{Outage.READERS_BUSY}|{Outage.QUEUE_FULL}|{_QUEUE_AWAY}"}}'
_ERRORS = f"bronze_consumer_errors_total{{{_CONSUMER}, "
_ATTEMPTS = f"bronze_uploads_total{{{_CONSUMER}, bronze_outcome="
_REQUESTS = (
    f'http_server_request_duration_seconds{{{_API}, http_route=~"/v1/ingest/.+", http_response_status_code=~"2.."}}'
)
_UPLOADS = f'bronze_upload_duration_seconds{{{_CONSUMER}, bronze_outcome="success"}}'
_AGE = f"bronze_queue_oldest_age_seconds{{{_CONSUMER}}}"
_LANE = "bronze_source, bronze_lane"
_OBJECTIVE = f"max by (bronze_source) (bronze_delivery_objective_seconds{{{_CONSUMER}}})"
_NOT_KNOWN = "not known: see Telemetry"
_OVER_LIMIT, _AGAIN = f"take over {DURATION_S_MAX:g} s", "in the last 5 minutes, now well"
_OVERDUE = f"{newest(_AGE, _LANE)}\n- on (bronze_source) group_left () {_OBJECTIVE} > 0"


def _latest_failed(failed: str, succeeded: str, by: str = "") -> str:
    """The latest attempt failed: there is a time in which some failed and none succeeded since."""
    grouped, on = (f" by ({by})", f" on ({by})") if by else ("", " on ()")
    return "\nor ".join(
        f"(sum{grouped} (increase({failed}[{window}])) > 0"
        f" unless{on} sum{grouped} (increase({succeeded}[{window}])) > 0)"
        for window in _WINDOWS
    )


def _submissions_fail(types: str, at: Limits) -> str:
    """The latest one failed; or a larger share of the records than the objective allows, and some of them just now."""
    failed = f'{_FAULTS}"{types}"}}'
    rates = f"sum(rate({failed}[{_NOW}]))", f"sum(rate({_ANSWERED}[{_NOW}]))"
    share = f"{rates[0]} / ({' + '.join(rates)} > 0) > {at.requests_budget:g}"
    just_now = f"sum(increase({failed}[{_JUST_NOW}])) > 0"
    return f"{_latest_failed(failed, _ANSWERED)}\nor ({share} and on () {just_now})"


_UPLOADS_FAIL = _latest_failed(f'{_ATTEMPTS}"failure"}}', f'{_ATTEMPTS}"success"}}', "bronze_source")
_UPLOADS_HANG = f"""\
max by (bronze_source) ({_OVERDUE})
unless on (bronze_source) sum by (bronze_source) (increase({_ATTEMPTS}"success"}}[{_JUST_NOW}])) > 0"""


def causes(at: Limits) -> Mapping[Part, Sequence[Cause]]:
    """The causes of each part, the weightiest first. A cause that two parts share is named once: the other part says
    where.
    """
    failing, warning = Level.FAILING, Level.WARNING
    # a consumer that has just started exports its counters before it knows its lanes
    no_lanes = _late("consumer", at, _AGE)
    queue_away = _queue_away()
    return {
        Part.INGEST: (
            Cause(failing, "failing: no API answers", down("api"), "BronzeRoleDown"),
            Cause(Level.UNKNOWN, "not known: the API starts", does_not_answer("api"), "BronzeRoleDown"),
            Cause(Level.UNKNOWN, _NOT_KNOWN, _late("api", at), "BronzeTelemetryMissing"),
            Cause(failing, "failing: see Queue", _submissions_fail(Outage.QUEUE_FULL, at), "BronzeBacklogLarge"),
            Cause(
                failing,
                "failing: see Queue",
                f"{queue_away}\nand on () ({_submissions_fail(_QUEUE_AWAY, at)})",
                "BronzeRequestsFail",
            ),
            Cause(
                failing, "failing: the queue does not answer", _submissions_fail(_QUEUE_AWAY, at), "BronzeRequestsFail"
            ),
            Cause(
                failing,
                "failing: submissions get a 5xx",
                _submissions_fail(f"internal|{Outage.READERS_BUSY}", at),
                "BronzeRequestsFail",
            ),
            Cause(
                failing, f"slow: submissions {_OVER_LIMIT}", _slow(_REQUESTS, at.requests_budget), "BronzeRequestsSlow"
            ),
            Cause(
                warning,
                "some submissions get a 5xx",
                f"sum(increase({_EVERY_FAULT}[{_JUST_NOW}])) > 0",
                "BronzeRequestsFail",
            ),
            Cause(
                warning,
                f"some got a 5xx {_AGAIN}",
                f"sum(increase({_EVERY_FAULT}[{_RECENTLY}])) > 0",
                "BronzeRequestsFail",
            ),
            Cause(warning, f"slow {_AGAIN}", _was_slow(_REQUESTS, at.requests_budget), "BronzeRequestsSlow"),
        ),
        Part.QUEUE: (
            Cause(failing, "failing: no consumer answers", down("consumer"), "BronzeRoleDown"),
            Cause(Level.UNKNOWN, "not known: the consumer starts", does_not_answer("consumer"), "BronzeRoleDown"),
            Cause(Level.UNKNOWN, _NOT_KNOWN, _late("consumer", at), "BronzeTelemetryMissing"),
            Cause(failing, "failing: the queue does not answer", queue_away, "BronzeConsumerErrors"),
            Cause(failing, "failing: a lane is halted", f'sum({_ERRORS}error_type="halted"}}) > 0', "BronzeLaneHalted"),
            Cause(
                failing,
                "failing: messages are missing",
                f"max by ({_LANE}) (bronze_missing_messages{{{_CONSUMER}}}) > 0",
                "BronzeRecordsMissing",
            ),
            Cause(
                failing, "failing: the queue is full", _submissions_fail(Outage.QUEUE_FULL, at), "BronzeBacklogLarge"
            ),
            Cause(failing, "late: see Upload", _uploads_are_late(at), "BronzeUploadsFail"),
            Cause(
                failing,
                f"late: a message waits over flush age + {DURATION_S_MAX:g} s",
                _OVERDUE,
                "BronzeBacklogOverdue",
            ),
            Cause(
                warning,
                "many messages wait",
                f"{newest(f'bronze_queue_depth{{{_CONSUMER}}}', _LANE)} > {at.backlog_messages_max:.0f}",
                "BronzeBacklogLarge",
            ),
            Cause(
                warning,
                f"late {_AGAIN}",
                f"max by ({_LANE}) (max_over_time({_AGE}[{_RECENTLY}]))"
                f"\n- on (bronze_source) group_left () {_OBJECTIVE} > 0",
                "BronzeBacklogOverdue",
            ),
            Cause(Level.UNKNOWN, "not known: no lane has reported", no_lanes, "BronzeTelemetryMissing"),
        ),
        Part.UPLOAD: (
            Cause(failing, "failing: see Queue", down("consumer"), "BronzeRoleDown"),
            Cause(Level.UNKNOWN, "not known: see Queue", does_not_answer("consumer"), "BronzeRoleDown"),
            Cause(Level.UNKNOWN, _NOT_KNOWN, _late("consumer", at), "BronzeTelemetryMissing"),
            Cause(
                failing,
                "failing: objects are missing",
                f"max by (bronze_source) (bronze_missing_objects{{{_CONSUMER}}}) > 0",
                "BronzeRecordsMissing",
            ),
            Cause(
                failing,
                "failing: uploads fail",
                _UPLOADS_FAIL,
                "BronzeUploadsFail",
            ),
            Cause(failing, "failing: no upload ends, and messages wait", _UPLOADS_HANG, "BronzeLaneStuck"),
            Cause(
                failing,
                f"slow: uploads {_OVER_LIMIT}",
                _slow(_UPLOADS, at.uploads_budget, "bronze_source"),
                "BronzeUploadsSlow",
            ),
            Cause(warning, f"uploads take over {DURATION_S_MAX / 2:g} s", _mean_above_half(), "BronzeUploadsSlow"),
            Cause(
                warning,
                "some attempts fail",
                f'sum(increase({_ATTEMPTS}"failure"}}[{_JUST_NOW}])) > 0',
                "BronzeUploadAttemptsFail",
            ),
            Cause(
                warning,
                f"attempts failed {_AGAIN}",
                f'sum(increase({_ATTEMPTS}"failure"}}[{_RECENTLY}])) > 0',
                "BronzeUploadAttemptsFail",
            ),
            Cause(
                warning, f"slow {_AGAIN}", _was_slow(_UPLOADS, at.uploads_budget, "bronze_source"), "BronzeUploadsSlow"
            ),
            Cause(Level.UNKNOWN, "not known: see Queue", no_lanes, "BronzeTelemetryMissing"),
        ),
        Part.TELEMETRY: (
            Cause(failing, "blind: the collector does not answer", down("collector"), "BronzeTargetDown"),
            Cause(
                failing,
                "blind: metrics do not arrive",
                f"{_late('api', at)}\nor {_late('consumer', at)}",
                "BronzeTelemetryMissing",
            ),
            Cause(
                warning,
                "the collector cannot send",
                'otelcol_exporter_queue_size{job="scrape-collector"}'
                ' / otelcol_exporter_queue_capacity{job="scrape-collector"}'
                f" > {at.collector_queue_share_max:g}",
                "BronzeCollectorQueueFull",
            ),
            Cause(
                warning,
                "some was dropped in the last 5 minutes",
                "\nor ".join(map(_grew, at.dropped)),
                "BronzeCollectorDrops",
            ),
        ),
    }


def causes_of_source(at: Limits) -> Sequence[Cause]:
    """The causes of a source. Each expression has the label of the sources of which it is true."""
    failing, warning = Level.FAILING, Level.WARNING
    # five minutes after the last consumer ended, only the APIs name the sources
    reported = f"group by (bronze_source) ({_OBJECTIVE} or bronze_ledger_records{{{LEDGER}}})"
    return (
        Cause(failing, "failing: no consumer answers", f"{reported} and on () ({down('consumer')})", "BronzeRoleDown"),
        Cause(
            Level.UNKNOWN,
            "not known: the consumer starts",
            f"{reported} and on () ({does_not_answer('consumer')})",
            "BronzeRoleDown",
        ),
        Cause(Level.UNKNOWN, _NOT_KNOWN, f"{reported} and on () {_late('consumer', at)}", "BronzeTelemetryMissing"),
        Cause(failing, "failing: uploads fail", _UPLOADS_FAIL, "BronzeUploadsFail"),
        Cause(failing, "failing: no upload ends, and messages wait", _UPLOADS_HANG, "BronzeLaneStuck"),
        Cause(
            failing,
            f"slow: uploads {_OVER_LIMIT}",
            _slow(_UPLOADS, at.uploads_budget, "bronze_source"),
            "BronzeUploadsSlow",
        ),
        Cause(
            failing, "late: a message waits too long", f"max by (bronze_source) ({_OVERDUE})", "BronzeBacklogOverdue"
        ),
        Cause(
            warning,
            "some attempts fail",
            f'sum by (bronze_source) (increase({_ATTEMPTS}"failure"}}[{_JUST_NOW}])) > 0',
            "BronzeUploadAttemptsFail",
        ),
        Cause(
            warning,
            f"attempts failed {_AGAIN}",
            f'sum by (bronze_source) (increase({_ATTEMPTS}"failure"}}[{_RECENTLY}])) > 0',
            "BronzeUploadAttemptsFail",
        ),
        Cause(warning, f"slow {_AGAIN}", _was_slow(_UPLOADS, at.uploads_budget, "bronze_source"), "BronzeUploadsSlow"),
        Cause(
            Level.UNKNOWN,
            "not known: no lane has reported",
            f"{reported} and on () {_late('consumer', at, _AGE)}",
            "BronzeTelemetryMissing",
        ),
    )


def _numbers(place: int, ordered: Sequence[Cause]) -> Mapping[int, Cause]:
    return {cause.level + 20 * place + number: cause for number, cause in enumerate(ordered, 1)}


def numbered(at: Limits) -> Mapping[Part, Mapping[int, Cause]]:
    """The causes of each part by the number of the verdict. No number has two meanings."""
    return {part: _numbers(place, ordered) for place, (part, ordered) in enumerate(causes(at).items())}


def texts(at: Limits) -> Mapping[int, str]:
    """What each number means."""
    every = [*numbered(at).values(), _numbers(len(Part), causes_of_source(at))]
    return {0: "OK", **{number: cause.text for of_part in every for number, cause in of_part.items()}}


def for_the_page(at: Limits) -> Mapping[str, Mapping[str, str]]:
    """What each number means, and the entry of the runbook, for the API's page."""
    every = [*numbered(at).values(), _numbers(len(Part), causes_of_source(at))]
    return {
        f"{number}": {"text": cause.text, "alert": cause.alert}
        for of_part in every
        for number, cause in of_part.items()
    }


def expression(part: Part, at: Limits) -> str:
    """The verdict on a part: the number of its first cause that is true, 0 if none is. Nothing if none reported."""
    seen = {
        Part.INGEST: f"bronze_records_total{{{_API}}}",
        Part.QUEUE: f"bronze_records_total{{{_CONSUMER}}}",
        Part.UPLOAD: f"bronze_records_total{{{_CONSUMER}}}",
        Part.TELEMETRY: 'up{job="scrape-collector"}',
    }
    ordered = {**{number: cause.expr for number, cause in numbered(at)[part].items()}, 0: seen[part]}
    return "\nor\n".join(f"(vector({number:d}) and on () (\n{_indented(expr)}\n))" for number, expr in ordered.items())


def source_expression(at: Limits) -> str:
    """The verdict on each source, as `expression`."""
    causes = {number: cause.expr for number, cause in _numbers(len(Part), causes_of_source(at)).items()}
    ordered = {**causes, 0: f"group by (bronze_source) ({_OBJECTIVE})"}
    return "\nor\n".join(f"((\n{_indented(expr)}\n) * 0 + {number:d})" for number, expr in ordered.items())


def _indented(expr: str) -> str:
    return "\n".join(f"  {line}" for line in expr.splitlines())


def down(role: str) -> str:
    """No process of the role answers, and it has been a target for longer than a start takes."""
    before = f'group(present_over_time(up{{job="scrape-{role}"}}[20s] offset {_STARTS_S}s))'
    return f"{does_not_answer(role)} and on () {before}"


def does_not_answer(role: str) -> str:
    """No process of the role answers, although there should be one."""
    return f'max(up{{job="scrape-{role}"}}) == 0'


def _late(role: str, at: Limits, reported: str = "") -> str:
    """A process of the role answers, and the newest sample of the role is old, or there is none."""
    reported = reported or f'bronze_records_total{{job="bronze/{role}"}}'
    return (
        f'(max(up{{job="scrape-{role}"}}) == 1 and on ()'
        f" (time() - max(timestamp({reported})) > {at.telemetry_age_s_max:g} or absent({reported})))"
    )


def _queue_away() -> str:
    """The state of the lanes could not be read, of no source."""
    away = f'{_ERRORS}bronze_step="purge", error_type=~"queue-away|timeout"}}'
    return f"min(sum by (bronze_source) (increase({away}[{_JUST_NOW}]))) > 0"


def _uploads_are_late(at: Limits) -> str:
    """Messages are late, and the uploads of their source fail, hang or are slow."""
    slow = _slow(_UPLOADS, at.uploads_budget, "bronze_source")
    return f"{_OVERDUE}\nand on (bronze_source) (\n{_UPLOADS_FAIL}\nor {_UPLOADS_HANG}\nor {slow})"


def _slow(histogram: str, budget: float, by: str = "") -> str:
    """A larger share than the objective allows took over the limit."""
    return f"{_share_above_limit(histogram, by)} > {budget:g}"


def _was_slow(histogram: str, budget: float, by: str = "") -> str:
    """It was, in some minute. In the whole time, the share may be within the objective."""
    return f"max_over_time((\n  {_share_above_limit(histogram, by)}\n)[{_RECENTLY}:10s]) > {budget:g}"


def _share_above_limit(histogram: str, by: str) -> str:
    grouped = f" by ({by})" if by else ""
    within = histogram.replace("{", f'_bucket{{le="{DURATION_S_MAX:g}", ', 1)
    count = histogram.replace("{", "_count{", 1)
    return f"1 - sum{grouped} (rate({within}[{_NOW}])) / (sum{grouped} (rate({count}[{_NOW}])) > 0)"


def _mean_above_half() -> str:
    total, count = (_UPLOADS.replace("{", f"_{part}{{", 1) for part in ("sum", "count"))
    of_source = "sum by (bronze_source) (rate"
    mean = f"{of_source}({total}[{_NOW}])) / ({of_source}({count}[{_NOW}])) > 0)"
    return f"{mean} > {DURATION_S_MAX / 2:g}"


def _grew(counter: str) -> str:
    """A first count creates a series, which `increase` does not see."""
    return f"(increase({counter}[{_RECENTLY}]) > 0 or ({counter} unless {counter} offset {_RECENTLY}) > 0)"
