"""PromQL of the data monitors: how each source's data compares with its own past, and with what its declaration
expects. `prometheus/rules.py` records it.

The past of a value is the same time of the last seven days: a quantile of the days, or the value of a week ago if that
is more lenient, so that neither a bad day nor a quiet weekend counts. The windows are centred: those of yesterday reach
from half a window before this time to half a window after it. A source without a past is not judged.
"""

from collections.abc import Mapping
from enum import IntEnum

from bronze.telemetry.promql import LEDGER, NO_CANARY
from bronze.telemetry.signals import OTHER_FIELD

#: The time between two evaluations; a rule judges the last five of them.
INTERVAL_S = 60
WINDOW_S = 300

AGE, LONGEST_AGE, USUAL_AGE = "bronze:data_age:seconds", "bronze:data_age:max4h", "bronze:data_age:usual"
VOLUME, LOW_VOLUME = "bronze:data_volume:records5m", "bronze:data_volume:low1h"
USUAL_VOLUME, VOLUME_RATIO = "bronze:data_volume:usual", "bronze:data_volume:ratio"
NULLS, HIGH_NULLS = "bronze:field_nulls:share5m", "bronze:field_nulls:high1h"
USUAL_NULLS, EXCESS_NULLS = "bronze:field_nulls:usual", "bronze:field_nulls:excess"
#: The undeclared fields that were seen of each source since its API started, those that are new, and the sources of
#: which that is known; and the records that were rejected in five minutes.
SEEN_FIELDS, NEW_FIELDS = "bronze:data_fields:seen", "bronze:data_fields:new"
WATCHED = "bronze:data_fields:watched"
REJECTED, USUALLY_REJECTED = "bronze:data_rejected:records5m", "bronze:data_rejected:usual"
#: What a source's data does not meet now, one series per expectation.
BROKEN = "bronze:expectation_broken"
#: What is wrong with a source's data now, one series per problem; the value is its number.
PROBLEM = "bronze:data_problem"

DAYS = 7
_DAY_MIN = 24 * 60
#: Samples without which an hour is no past: nearly half of them.
_SAMPLES_MIN = 25

_CONSUMER = f'job="bronze/consumer", {NO_CANARY}'
_API = f'job="bronze/api", {NO_CANARY}'
_OF_FIELD = "bronze_source, bronze_field"
_ACCEPTED = f'bronze_ledger_records{{{LEDGER}, {NO_CANARY}, bronze_outcome="accepted"}}'
#: The age that a declaration expects, and the delivery takes as long as its objective allows.
_EXPECTED_AGE = f"""\
max by (bronze_source) (data_staleness_sla_threshold_seconds{{{_CONSUMER}}})
    + on (bronze_source) max by (bronze_source) (bronze_delivery_objective_seconds{{{_CONSUMER}}})"""


class Problem(IntEnum):
    """The problems that a source's data can have. The number is the weight: a table shows the greatest."""

    UNDECLARED = 40
    REJECTED = 50
    EXPECTATION = 60
    NULLS = 70
    VOLUME = 80
    SILENT = 90

    @property
    def label(self) -> str:
        return self.name.lower()

    @property
    def of(self) -> str:
        """The series of the problem."""
        return f'{PROBLEM}{{problem="{self.label}"}}'


#: What a verdict says.
TEXTS: Mapping[Problem, str] = {
    Problem.SILENT: "silent: no new records",
    Problem.VOLUME: "fewer records than usual",
    Problem.NULLS: "more nulls than usual",
    Problem.EXPECTATION: "not as expected",
    Problem.REJECTED: "more rejected records than usual",
    Problem.UNDECLARED: "a new field that is not declared",
}


def age() -> Mapping[str, str]:
    """How old the newest stored record of each source is, and the longest that is usual at this time of day."""
    newest = f"max by (bronze_source) (data_staleness_last_update_timestamp_seconds{{{_CONSUMER}}})"
    return {
        AGE: f"time() - {newest}",
        LONGEST_AGE: f"max_over_time({AGE}[4h])",
        USUAL_AGE: _usual(LONGEST_AGE, "bronze_source", "max", window_min=240),
    }


def silent(factor: float, at_least_s: float) -> str:
    """No record for longer than expected, or than usual, and none waits: what waits is late, and not missing."""
    return f"""\
(
  {AGE} > on (bronze_source) ({_EXPECTED_AGE})
  or ({AGE} > {factor:g} * {USUAL_AGE} and {AGE} > {at_least_s:g})
    unless on (bronze_source) data_staleness_sla_threshold_seconds{{{_CONSUMER}}}
)
unless on (bronze_source) max by (bronze_source) (bronze_queue_depth{{{_CONSUMER}}}) > 0"""


def volume() -> Mapping[str, str]:
    """The records of five minutes, what nine of ten such windows have at this time of day, and the ratio of both.

    Of a source that sends in bursts, more than one window of ten is empty: nothing is expected of it.
    """
    hour = f"{VOLUME}[1h]"
    return {
        VOLUME: _accepted_in(f"{WINDOW_S}s"),
        LOW_VOLUME: f"quantile_over_time(0.1, {hour})\nand count_over_time({hour}) >= {_SAMPLES_MIN}",
        # on the first day, the hour before the last one: the last one contains what is judged
        USUAL_VOLUME: f"{_usual(LOW_VOLUME, 'bronze_source', 'min', 60, 0.75)}\nor {LOW_VOLUME} offset 1h",
        VOLUME_RATIO: f"{VOLUME} / ({USUAL_VOLUME} > 0)",
    }


def few_records(ratio_min: float, usual_min: float) -> str:
    """So few records as of half a sender, of a source that has enough for such a statement."""
    return f"""\
({VOLUME_RATIO} < {ratio_min:g} and {USUAL_VOLUME} > {usual_min:g})
unless on (bronze_source) {Problem.SILENT.of}"""


def nulls(records_min: float) -> Mapping[str, str]:
    """The share of nulls in five minutes, what it is at most in nine of ten at this time of day, and the difference."""
    hour = f"{NULLS}[1h]"
    return {
        NULLS: _null_share(f"{WINDOW_S}s", records_min),
        HIGH_NULLS: f"quantile_over_time(0.9, {hour})\nand count_over_time({hour}) >= {_SAMPLES_MIN}",
        USUAL_NULLS: f"{_usual(HIGH_NULLS, _OF_FIELD, 'max', 60, 0.25)}\nor {HIGH_NULLS} offset 1h",
        EXCESS_NULLS: f"{NULLS} - {USUAL_NULLS}",
    }


def more_nulls(excess_max: float) -> str:
    return f"max by (bronze_source) ({EXCESS_NULLS}) > {excess_max:g}"


def broken(window_s: int) -> str:
    """Each expectation that is not met: now, in the last hour, or by an object or a share of the window."""

    def named(expectation: str, expr: str) -> str:
        return f'label_replace(\n{expr},\n"bronze_expectation", "{expectation}", "", "")'

    def limit(expectation: str, by: str) -> str:
        matchers = f'{_CONSUMER}, bronze_expectation="{expectation}"'
        return f"max by ({by}) (bronze_expectation_limit{{{matchers}}})"

    few = f"{_accepted_in('1h')}\n< on (bronze_source) {limit('records_per_hour_min', 'bronze_source')}"
    null = f"{_null_share(f'{window_s}s', 0)}\n> on ({_OF_FIELD}) {limit('null_share_max', _OF_FIELD)}"
    objects = f"increase(bronze_expectation_broken_total{{{_CONSUMER}}}[{window_s}s])"
    return f"""\
{named("every", f"{AGE} > on (bronze_source) ({_EXPECTED_AGE})")}
or {named("records_per_hour_min", few)}
or {named("null_share_max", null)}
or sum by ({_OF_FIELD}, bronze_expectation) ({objects}) > 0"""


def undeclared(new_s: int) -> Mapping[str, str]:
    """The undeclared fields, and those that are new: of a source that sent records before, without the field.

    A process counts a field from its first record on, and forgets it when it ends: that is not new to the source.
    """
    fields = f"bronze_fields_undeclared_total{{{_API}"
    known = f"max by (bronze_source) (max_over_time({WATCHED}[1d] offset {new_s}s))"
    return {
        SEEN_FIELDS: f"group by (bronze_source, bronze_field) ({fields}}} > 0)",
        # the series of all other fields is there from the start of an API that counts fields
        WATCHED: f"""\
max by (bronze_source) ({VOLUME} > 0)
and on (bronze_source) {fields}, bronze_field="{OTHER_FIELD}"}}""",
        NEW_FIELDS: f"""\
{SEEN_FIELDS}
unless on (bronze_source, bronze_field) max_over_time({SEEN_FIELDS}[1d] offset {new_s}s)
and on (bronze_source) {known}""",
    }


def rejected() -> Mapping[str, str]:
    """The records that did not fit their source, of submissions that were refused, and how many are usual in a day.

    What is usual begins an hour ago, so that it does not contain what is judged.
    """
    records = f'bronze_records_total{{{_API}, bronze_outcome="rejected", error_type="schema-violation"}}'
    return {
        REJECTED: f"sum by (bronze_source) (increase({records}[{WINDOW_S}s] anchored))",
        USUALLY_REJECTED: f"quantile_over_time(0.95, {REJECTED}[1d] offset 1h) or {REJECTED} * 0",
    }


def many_rejected(factor: float, at_least: float) -> str:
    """More records than usual do not fit their source."""
    return f"{REJECTED} > {at_least:g} and {REJECTED} > {factor:g} * {USUALLY_REJECTED}"


def _accepted_in(window: str) -> str:
    """The records of each source that were accepted in the window, by the ledger."""
    return f"max by (bronze_source) ({_ACCEPTED})\n- max by (bronze_source) ({_ACCEPTED} offset {window})"


def _null_share(window: str, records_min: float) -> str:
    """The share of nulls in each field; none of a field with fewer records."""
    counted = f"bronze_field_values_total{{{_CONSUMER}}}[{window}]"
    null = counted.replace("}", ', bronze_value="null"}', 1)
    every = f"sum by ({_OF_FIELD}) (increase({counted}))"
    return f"sum by ({_OF_FIELD}) (increase({null}))\n/ ({every} > {records_min:g})"


def _usual(series: str, by: str, lenient: str, window_min: int, quantile: float = 0.5) -> str:
    """The value of a window at this time of day: a quantile of the last days, or that of a week ago; `lenient` chooses.

    No subquery: its steps would be at midnight, whatever the time is.
    """

    def before(days: int) -> str:
        return f"{series} offset {days * _DAY_MIN - window_min // 2}m"

    each = "\n    or ".join(f'label_replace({before(days)}, "day", "{days}", "", "")' for days in range(1, DAYS + 1))
    return f"""\
{lenient} by ({by}) (
  label_replace(quantile by ({by}) ({quantile:g},
    {each}
  ), "past", "days", "", "")
  or label_replace({before(DAYS)}, "past", "week", "", "")
)"""
