"""Data: is what the sources send as it usually is, and as it is expected to be?"""

from grafana_foundation_sdk.builders.statetimeline import Panel as StateTimeline
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries

from bronze.consumer.monitors import PRINCIPALS_MAX
from bronze.objects.measurements import FIELDS_MAX
from bronze.records.undeclared import NAMES_MAX
from bronze.telemetry.promql import LEDGER
from bronze.telemetry.signals import OTHER_FIELD
from grafana import components
from grafana.components import (
    BAD,
    COUNT,
    DATA_BOARD,
    EXACT,
    GOOD,
    NOTHING,
    SECONDS,
    SHARE,
    Board,
    PanelInfo,
    Row,
    graph,
    limit_line,
    query,
)
from grafana.promql import RANGE, SOURCE, THRESHOLDS, counted, rate, ratio, since
from prometheus import data

_CONSUMER = f'job="bronze/consumer", {SOURCE}'
_FIELD = "bronze_source, bronze_field"
_VALUES = f"bronze_field_values_total{{{_CONSUMER}}}"
_NULLS = f'bronze_field_values_total{{{_CONSUMER}, bronze_value="null"}}'
_NOTHING_REPORTED = "-1"
#: The texts of the verdicts. Only what is wrong has a number of its own.
_TEXTS = {
    _NOTHING_REPORTED: ("no record yet", NOTHING),
    "0": ("OK", GOOD),
    **{f"{problem:d}": (text, BAD) for problem, text in data.TEXTS.items()},
}
_LEDGER = f'bronze_ledger_records{{{LEDGER}, {SOURCE}, bronze_outcome="accepted"}}'
_AGE = since(f"max by (bronze_source) (data_staleness_last_update_timestamp_seconds{{{_CONSUMER}}})")
#: The greatest problem of each source; 0 if it has none.
_VERDICT = f"""\
max by (bronze_source) ({data.PROBLEM}{{{SOURCE}}})
or {_AGE} * 0
or max by (bronze_source) ({_LEDGER}) * 0 - 1"""


def board() -> Board:
    return Board(
        DATA_BOARD,
        "Data",
        "What each source sends, compared with its own past and with what its declaration expects. It is measured "
        "where objects are written, and never judges how Bronze works: that is on the other dashboards.",
        [
            Row("Is the data as usual?", [sources(), problems()]),
            Row("Freshness and volume", [age(), volume(), lateness()]),
            Row("Fields", [fields(), null_shares()]),
            Row("Expectations", [expectations()]),
            Row("Drift", [undeclared_fields(), rejected()]),
            Row("Principals", [principals()], closed=True),
        ],
    )


def sources() -> Table:
    info = PanelInfo(
        "Verdict on each source",
        "Each source now: what is wrong with its data, the age of its newest stored record, its records of the last "
        "five minutes as a share of what nine of ten such windows have at this time of day, by how much the nulls of "
        "a field are above their usual share (of the worst field), and how many expectations it does not meet. A "
        "source without a past is not compared with it.",
        "no process has reported yet",
        [
            "BronzeSourceSilent",
            "BronzeVolumeLow",
            "BronzeNullsJumped",
            "BronzeExpectationBroken",
            "BronzeRecordsRejected",
            "BronzeFieldUndeclared",
        ],
    )
    volume = f"max by (bronze_source) ({data.VOLUME_RATIO}{{{SOURCE}}})"
    excess = f"max by (bronze_source) ({data.EXCESS_NULLS}{{{SOURCE}}})"
    broken = f"count by (bronze_source) ({data.BROKEN}{{{SOURCE}}}) or max by (bronze_source) ({_LEDGER}) * 0"
    panel = components.listing(
        info,
        components.rows(_VERDICT),
        components.rows(_AGE),
        components.rows(volume),
        components.rows(excess),
        components.rows(broken),
        height=8,
    )
    return components.columns(
        components.merged(panel),
        {
            "bronze_source": (
                "Source",
                [components.links(components.source_link("__value.raw"), components.data_link("__value.raw"))],
            ),
            "Value #A": (
                "Verdict",
                [
                    components.width_px(260),
                    components.left(),
                    components.value_colours(_TEXTS),
                    components.as_background(),
                ],
            ),
            "Value #B": ("Newest record", [components.in_unit(SECONDS), components.absent("none yet")]),
            "Value #C": ("Volume, of usual", [components.in_unit(SHARE), components.absent("no past")]),
            "Value #D": ("Nulls, above usual", [components.in_unit(SHARE), components.absent("no past")]),
            "Value #E": ("Expectations not met", [components.in_unit(COUNT)]),
        },
    )


def problems() -> StateTimeline:
    info = PanelInfo(
        "Problems over time",
        "The verdict on each source in the range. Move over a block to see what was wrong.",
        "no process has reported yet",
    )
    panel = components.states(info, query(_VERDICT, "{{bronze_source}}"), height=7)
    named = components.value_names(panel, {value: text for value, (text, _) in _TEXTS.items()})
    return named.thresholds(components.steps(NOTHING, (0, GOOD), (1, BAD)))


def age() -> Timeseries:
    info = PanelInfo(
        "Age of the newest record",
        "Time since the newest stored record was accepted. The limit is "
        f"{THRESHOLDS.silence_factor:g} times what is usual at this time of day, and at least "
        f"{THRESHOLDS.silence_s_min / 60:g} minutes. If records wait, the source is not silent.",
        "no record yet",
        ["BronzeSourceSilent"],
    )
    limit = f"clamp_min({THRESHOLDS.silence_factor:g} * {data.USUAL_AGE}{{{SOURCE}}}, {THRESHOLDS.silence_s_min:g})"
    panel = graph(
        info,
        SECONDS,
        query(_AGE, "{{bronze_source}}"),
        limit_line(f"max by (bronze_source) ({limit})", "limit: {{bronze_source}}"),
        width=12,
    )
    return components.by_source(components.log_axis(panel, floor=1))


def volume() -> Timeseries:
    info = PanelInfo(
        "Records in five minutes",
        "Accepted records of each window of five minutes. The limit is "
        f"{THRESHOLDS.volume_share_min:.0%} of what nine of ten windows have at this time of day. It is drawn only for "
        "sources that usually have enough records.",
        "no five minutes yet",
        ["BronzeVolumeLow"],
    )
    usual = f"({data.USUAL_VOLUME}{{{SOURCE}}} > {THRESHOLDS.volume_records_min:g})"
    panel = graph(
        info,
        COUNT,
        query(f"max by (bronze_source) ({data.VOLUME}{{{SOURCE}}})", "{{bronze_source}}"),
        limit_line(f"max by (bronze_source) ({THRESHOLDS.volume_share_min:g} * {usual})", "limit: {{bronze_source}}"),
        width=12,
    )
    return components.by_source(panel)


def lateness() -> Timeseries:
    info = PanelInfo(
        "Lateness",
        "Median time from the events to the acceptance of their records, in the newest object of each source that "
        "declares an event_time. A backfill is as late as its data is old: no alert reads this.",
        "no source declares an event_time",
    )
    gauge = f"max by (bronze_source) (bronze_event_lateness_seconds{{{_CONSUMER}}})"
    panel = graph(info, SECONDS, query(gauge, "{{bronze_source}}"), width=24)
    return components.by_source(components.log_axis(panel, floor=1))


# --- fields


def fields() -> Table:
    info = PanelInfo(
        "Fields",
        "Each declared field: its records in the range, the share of them in which it is null, and of the last object "
        "its smallest and greatest value (of times in seconds since 1970) and how many different values it has. Of "
        f"objects with over 32,768 rows, there are at least so many. At most {FIELDS_MAX} fields of a source are "
        "measured.",
        "nothing was stored yet",
        ["BronzeNullsJumped"],
    )
    nulls = ratio(counted(_NULLS, _FIELD), counted(_VALUES, _FIELD))
    gauges = (f"{of} by ({_FIELD}) (bronze_field_{of}{{{_CONSUMER}}})" for of in ("min", "max"))
    panel = components.listing(
        info,
        components.rows(counted(_VALUES, _FIELD)),
        components.rows(nulls),
        *map(components.rows, gauges),
        components.rows(f"max by ({_FIELD}) (bronze_field_distinct{{{_CONSUMER}}})"),
        width=14,
    )
    return components.columns(
        components.merged(panel),
        {
            "bronze_source": ("Source", [components.links(components.data_link("__value.raw"))]),
            "bronze_field": ("Field", []),
            "Value #A": ("Records", [components.in_unit(EXACT)]),
            "Value #B": ("Nulls", [components.in_unit(SHARE)]),
            "Value #C": ("Smallest", [components.absent("")]),
            "Value #D": ("Greatest", [components.absent("")]),
            "Value #E": ("Different values", [components.absent("")]),
        },
    )


def null_shares() -> Timeseries:
    info = PanelInfo(
        "Nulls by field",
        "The share of the stored records in which a field is null. A field that is never null is not drawn.",
        "no field is null",
        ["BronzeNullsJumped"],
    )
    share = f"{ratio(rate(_NULLS, _FIELD), rate(_VALUES, _FIELD))} > 0"
    return graph(info, SHARE, query(share, "{{bronze_source}}: {{bronze_field}}"), width=10)


# --- expectations


def expectations() -> Table:
    info = PanelInfo(
        "What is expected",
        "The limits in the declarations of the sources, and whether they are met now: *every* and "
        "*records_per_hour_min* at this moment, the others by the objects of the last 15 minutes. Limits of times are "
        "seconds since 1970. A list of values has no limit: it is here once an object did not meet it.",
        "no source expects anything",
        ["BronzeExpectationBroken", "BronzeSourceSilent"],
    )
    by = f"{_FIELD}, bronze_expectation"
    every = f"max by (bronze_source) (data_staleness_sla_threshold_seconds{{{_CONSUMER}}})"
    limits = f"""\
max by ({by}) (bronze_expectation_limit{{{_CONSUMER}}})
or label_replace({every}, "bronze_expectation", "every", "", "")"""
    broken = f"max by ({by}) ({data.BROKEN}{{{SOURCE}}}) * 0 + 1"
    objects = f"{counted(f'bronze_expectation_broken_total{{{_CONSUMER}}}', by)} > 0"
    panel = components.listing(info, *map(components.rows, (limits, broken, objects)))
    met = {"1": ("not met", BAD)}
    return components.columns(
        components.merged(panel),
        {
            "bronze_source": ("Source", [components.links(components.data_link("__value.raw"))]),
            "bronze_field": ("Field", [components.absent("")]),
            "bronze_expectation": ("Expectation", []),
            "Value #A": ("Limit", [components.absent("")]),
            "Value #B": (
                "Now",
                [components.absent("met"), components.value_colours(met), components.as_background()],
            ),
            "Value #C": (
                "Objects in the range that do not meet it",
                [components.in_unit(EXACT), components.absent("")],
            ),
        },
    )


# --- drift


def undeclared_fields() -> Table:
    info = PanelInfo(
        "Fields that are not declared",
        "The fields that records have and their source does not declare, with the submissions of the range in which "
        f"they were seen. They are kept in _payload. Each API names the first {NAMES_MAX} fields of a source; "
        f"{OTHER_FIELD} are all others.",
        "no undeclared field in this range",
        ["BronzeFieldUndeclared"],
    )
    fields = counted(f'bronze_fields_undeclared_total{{job="bronze/api", {SOURCE}}}', _FIELD)
    panel = components.listing(
        info,
        components.rows(f"0 < {fields}"),
        components.rows(f"max by ({_FIELD}) ({data.NEW_FIELDS}{{{SOURCE}}})"),
        width=12,
    )
    return components.columns(
        components.merged(panel),
        {
            "bronze_source": ("Source", [components.links(components.source_link("__value.raw"))]),
            "bronze_field": ("Field", []),
            "Value #A": ("Submissions", []),
            "Value #B": ("New", [components.value_colours({"1": ("new", BAD)}), components.absent("-")]),
        },
    )


def rejected() -> Timeseries:
    info = PanelInfo(
        "Rejected records in five minutes",
        "Records that do not fit their source, of submissions that were refused: at least one of each. The limit is "
        f"{THRESHOLDS.rejected_factor:g} times what is usual, and at least {THRESHOLDS.rejected_records_min:g}.",
        "no process has reported yet",
        ["BronzeRecordsRejected"],
    )
    usual = f"{THRESHOLDS.rejected_factor:g} * {data.USUALLY_REJECTED}{{{SOURCE}}}"
    limit = f"clamp_min({usual}, {THRESHOLDS.rejected_records_min:g})"
    panel = graph(
        info,
        COUNT,
        query(f"max by (bronze_source) ({data.REJECTED}{{{SOURCE}}})", "{{bronze_source}}"),
        limit_line(f"max by (bronze_source) ({limit})", "limit: {{bronze_source}}"),
        width=12,
    )
    return components.by_source(panel)


# --- principals


def principals() -> Table:
    info = PanelInfo(
        "Principals",
        "Who sent the records that were stored in the range, and the age of the newest one of each. A consumer names "
        f"the first {PRINCIPALS_MAX} principals of a source; all others are _OTHER. Without API keys, nobody is named.",
        "no sender has an API key",
    )
    by = "bronze_source, enduser_id"
    newest = f"max by ({by}) (max_over_time(bronze_principal_newest_time_seconds{{{_CONSUMER}}}[{RANGE}]))"
    panel = components.listing(
        info,
        components.rows(counted(f"bronze_principal_records_total{{{_CONSUMER}}}", by)),
        components.rows(since(newest)),
    )
    return components.columns(
        components.merged(panel),
        {
            "bronze_source": ("Source", [components.links(components.data_link("__value.raw"))]),
            "enduser_id": ("Principal", []),
            "Value #A": ("Records in the range", [components.in_unit(EXACT)]),
            "Value #B": ("Newest record", [components.in_unit(SECONDS)]),
        },
    )
