"""Sources by stage: a row per stage, each with the same three panels: by outcome, duration, errors."""

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.statetimeline import Panel as StateTimeline
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries
from grafana_foundation_sdk.models.common import BigValueColorMode, VizOrientation

from bronze.objectives import DURATION_S_MAX
from bronze.telemetry import promql
from bronze.telemetry.promql import histogram_series
from grafana import components, verdict
from grafana.components import (
    BAD,
    BYTES,
    BYTES_PER_S,
    COUNT,
    COUNTS_PER_S,
    EXACT,
    GOOD,
    MESSAGES_PER_S,
    NEUTRAL,
    RECORDS_PER_S,
    SECONDS,
    SOURCE_BOARD,
    WRITES_PER_S,
    Board,
    PanelInfo,
    Row,
    Target,
    graph,
    limit_line,
    not_ended,
    query,
    single_value,
    tile,
)
from grafana.promql import (
    DESTINATION,
    LEDGER,
    OBJECTIVE_S,
    SOURCE,
    THRESHOLDS,
    UNFINISHED_DELIVERY_S,
    UNFINISHED_UPLOAD_S,
    counted,
    delivered_on_time,
    mean,
    mean_counted,
    rate,
    reported,
    since,
)
from prometheus.verdict import SOURCE_RECORD

# of all processes: a source has no instance
_API, _CONSUMER = f'job="bronze/api", {SOURCE}', f'job="bronze/consumer", {SOURCE}'
_TO_QUEUE = f'messaging_client_sent_messages_total{{job="bronze/api", {DESTINATION}'
_FROM_QUEUE = f'messaging_client_consumed_messages_total{{job="bronze/consumer", {DESTINATION}}}'
_RECORDS = f'bronze_records_total{{job=~"bronze/(api|consumer)", {SOURCE}, bronze_outcome=~'
_REJECTED = f'bronze_records_total{{{_API}, bronze_outcome=~"rejected|unknown"}}'
_INVALID = f"bronze_records_invalid_total{{{_API}}}"
_ERRORS = f"bronze_consumer_errors_total{{{_CONSUMER}, bronze_step=~"
_ATTEMPTS = f"bronze_uploads_total{{{_CONSUMER}}}"
_FAILED = f'bronze_uploads_total{{{_CONSUMER}, bronze_outcome="failure"}}'
_HALTED = f'{_ERRORS}"put", error_type="halted"}}'
_ACCEPT = f'bronze_stage_duration_seconds{{{_API}, bronze_stage="accept"}}'
_WAIT = f'bronze_stage_duration_seconds{{{_CONSUMER}, bronze_stage="wait"}}'
_PROCESSED = f'messaging_process_duration_seconds{{job="bronze/consumer", {DESTINATION}}}'
_UPLOADS = f'bronze_upload_duration_seconds{{{_CONSUMER}, bronze_outcome="success"}}'
_DELIVERIES = f"bronze_delivery_duration_seconds{{{_CONSUMER}}}"
_LANE = "bronze_source, bronze_lane"
_DEPTH, _AGE = (reported(f"bronze_queue_{name}{{{_CONSUMER}}}", _LANE) for name in ("depth", "oldest_age_seconds"))
_POSITION = f"max by ({_LANE}) (bronze_lane_position{{{_CONSUMER}}})"

#: No colour that means good, fair or bad for what senders have to correct.
_OUTCOMES = {
    "^(accepted|stored|success|on time)": GOOD,
    "^(failure|unknown|quarantined|late)": BAD,
    "^rejected": "light-blue",
    "^replayed": "purple",
    "^duplicate": NEUTRAL,
    "^sent": "light-blue",
    "^read": "purple",
}
#: What is no sender's to correct.
_FAULTS = {"^(send: )?(queue-|outcome-unknown|internal|readers-busy)": BAD}


@dataclass(frozen=True)
class Stage:
    """A stage that data passes. `errors` are counters or gauges; `limit` is the objective of its duration."""

    name: str
    #: what is counted, and the series by outcome
    counted: str
    unit: str
    outcomes: Sequence[Target]
    #: what the duration is, its histogram, and other durations
    measured: str
    histogram: str
    limit: Target
    #: which errors there are, and what to do
    failed: str
    errors: Sequence[Target]
    errors_unit: str
    no_data: str
    alerts: Sequence[str] = ()
    also: Sequence[Target] = ()
    outcomes_add_up: bool = True
    colour_of_errors: str = BAD

    def row(self) -> Row:
        outcomes = graph(PanelInfo(f"{self.name}, by outcome", self.counted, self.no_data), self.unit, *self.outcomes)
        durations = graph(
            PanelInfo(f"{self.name}, duration", f"{self.measured} A mark links to a trace.", "none ended yet"),
            SECONDS,
            *components.percentiles(self.histogram, (0.5, 0.99), exemplars=True),
            query(mean(self.histogram), "mean"),
            *self.also,
            self.limit,
        )
        errors = graph(
            PanelInfo(f"{self.name}, errors", self.failed, self.no_data, self.alerts), self.errors_unit, *self.errors
        )
        outcomes = components.colours(outcomes, _OUTCOMES)
        errors = components.colours(components.shades(errors, self.colour_of_errors), _FAULTS)
        return Row(
            f"Stage: {self.name.lower()}",
            [
                components.stacked(outcomes) if self.outcomes_add_up else outcomes,
                components.percentile_graph(durations),
                components.expected_zero(errors),
            ],
        )


def board() -> Board:
    return Board(
        SOURCE_BOARD,
        "Sources by stage",
        "A source, or several, from the request to the bucket: the verdict, and the outcomes, duration and errors of "
        "each stage.",
        [
            Row(
                "Is the source well?",
                [
                    judged(),
                    waiting(),
                    oldest(),
                    since_upload(),
                    mean_upload(),
                    records(),
                    uploads(),
                    judged_over_time(),
                    lanes(),
                ],
            ),
            *(stage.row() for stage in stages()),
            Row("Objects and senders", [object_size(), object_records(), volume(), publishers()], closed=True),
        ],
    )


# --- is it well


def judged() -> Stat:
    info = PanelInfo(
        "Verdict",
        "Is the source well now? Judged by the latest upload attempts, the uploads of the last minute and the age of "
        "the oldest message, whatever range is chosen. If several sources are chosen, the verdict on the worst.",
        "no consumer has reported yet",
        ["BronzeUploadsFail", "BronzeUploadsMissing", "BronzeLaneStuck"],
        (SOURCE_BOARD, "Verdict over time"),
    )
    panel = tile(info, COUNT, single_value(f"max({SOURCE_RECORD}{{{SOURCE}}})"), height=4)
    panel = components.value_names(panel, verdict.TEXTS).color_mode(BigValueColorMode.BACKGROUND_SOLID)
    return panel.thresholds(verdict.COLOURS)


def judged_over_time() -> StateTimeline:
    info = PanelInfo(
        "Verdict over time",
        "The verdict on each chosen source in the range. Move over a block to see the reason.",
        "no consumer has reported yet",
    )
    each = query(f"max by (bronze_source) ({SOURCE_RECORD}{{{SOURCE}}})", "{{bronze_source}}")
    panel = components.states(info, each, width=12, height=7)
    return components.value_names(panel, verdict.TEXTS).thresholds(verdict.COLOURS)


def mean_upload() -> Stat:
    info = PanelInfo(
        "Mean upload duration",
        f"Mean duration of one Bronze write (encode and PutObject) in the range. The limit is {DURATION_S_MAX:g} s.",
        "no upload",
        ["BronzeUploadsSlow"],
        (SOURCE_BOARD, "Upload, duration"),
    )
    panel = tile(info, SECONDS, single_value(mean_counted(_UPLOADS)), height=4)
    return panel.thresholds(components.limit_thresholds())


def waiting() -> Stat:
    info = PanelInfo(
        "Records that wait",
        "Accepted records that are neither in a row nor in quarantine, nor known to be copies. Exact.",
        "no process has reported yet",
        ["BronzeBacklogLarge"],
        (SOURCE_BOARD, "Lanes"),
    )
    number = single_value(f"sum({promql.waiting(f'{LEDGER}, {SOURCE}')})")
    return tile(info, EXACT, number, height=4).decimals(0)


def oldest() -> Stat:
    info = PanelInfo(
        "Oldest message",
        f"Age of the oldest message that is not in the bucket. Red from the objective on: flush age + "
        f"{DURATION_S_MAX:g} s.",
        "no lane has reported yet",
        ["BronzeBacklogOverdue"],
        (SOURCE_BOARD, "Queue, duration"),
    )
    age, limit = single_value(f"max({_AGE})"), single_value(OBJECTIVE_S, "limit")
    return components.red_from_query(tile(info, SECONDS, age, limit, height=4), "B")


def since_upload() -> Stat:
    info = PanelInfo(
        "Since the last upload",
        "Time since the last object was written. It has no limit, since a source may have no new records.",
        "no upload yet",
        ["BronzeUploadsMissing"],
        (SOURCE_BOARD, "Upload, by outcome"),
    )
    last = f"max(bronze_upload_last_success_time_seconds{{{_CONSUMER}}})"
    return tile(info, SECONDS, single_value(since(last)), height=4).decimals(0)


def records() -> Stat:
    info = PanelInfo(
        "Records in the range",
        "Records that the API accepted, refused (rejected) or could not confirm (unknown), and that the consumer "
        "stored or put into quarantine, in the chosen range.",
        "no process has reported yet",
        explained_by=(SOURCE_BOARD, "Processing, by outcome"),
    )
    shown = f'{_RECORDS}"accepted|rejected|unknown|stored|quarantined"}}'
    by_outcome = single_value(counted(shown, "bronze_outcome"), "{{bronze_outcome}}")
    return tile(info, EXACT, by_outcome, width=12, height=4).decimals(0)


def uploads() -> Stat:
    info = PanelInfo(
        "Uploads in the range",
        "Upload attempts that succeeded and that failed in the chosen range. A failed attempt is retried.",
        "no consumer has reported yet",
        ["BronzeUploadAttemptsFail"],
        (SOURCE_BOARD, "Upload, errors"),
    )
    by_outcome = single_value(counted(_ATTEMPTS, "bronze_outcome"), "{{bronze_outcome}}")
    panel = tile(info, EXACT, by_outcome, height=4).decimals(0)
    limits = components.zero_is_good(fair=1, bad=THRESHOLDS.outage_failures_max)
    return components.of_field(panel, "failure", EXACT, limits)


def lanes() -> Table:
    info = PanelInfo(
        "Lanes",
        "Each lane: waiting messages, the age of the oldest, and the position, which is the sequence of the last "
        "stored message. If messages wait and the position does not change, the lane is stuck.",
        "no lane has reported yet",
        ["BronzeLaneStuck", "BronzeLaneHalted"],
    )
    each = (components.rows(expr) for expr in (_DEPTH, _AGE, _POSITION))
    return components.columns(
        components.merged(components.listing(info, *each, width=12, height=7)),
        {
            "bronze_source": ("Source", [components.links(components.data_link("__value.raw"))]),
            "bronze_lane": ("Lane", [components.width_px(70)]),
            "Value #A": ("Waiting", [components.in_unit(EXACT)]),
            "Value #B": ("Oldest", [components.in_unit(SECONDS)]),
            "Value #C": ("Position", [components.in_unit(EXACT)]),
        },
    )


# --- the stages


def stages() -> Sequence[Stage]:
    """In the order in which data passes them."""
    on_time = delivered_on_time(_DELIVERIES)
    return (
        Stage(
            "Ingest",
            "Records per second, by outcome. rejected: the sender has to correct them. unknown: the queue did not "
            "confirm in time; a retry finds out.",
            RECORDS_PER_S,
            [query(rate(f"bronze_records_total{{{_API}}}", "bronze_outcome"), "{{bronze_outcome}}")],
            "From the complete body to the queue's durable ack, which is followed by the 202.",
            _ACCEPT,
            limit_line(),
            "Records per second that were not accepted, by the `type` of the problem document in the response, and "
            "those that were accepted for quarantine, because their senders asked for that.",
            [
                *_errors(_REJECTED, "error_type", "{{error_type}}"),
                query(f"{rate(_INVALID, 'error_type')} > 0", "quarantined: {{error_type}}"),
            ],
            RECORDS_PER_S,
            "no API has reported yet",
            ["BronzeRequestsFail"],
            colour_of_errors=NEUTRAL,
        ),
        Stage(
            "Queue",
            "Messages per second that the API sent to the queue and that the consumer read from it. While less is read "
            "than sent, the backlog grows.",
            MESSAGES_PER_S,
            [
                query(rate(f'{_TO_QUEUE}, error_type=""}}'), "sent"),
                query(rate(_FROM_QUEUE), "read"),
            ],
            "From the durable ack to the read of the message for an object: the wait for the flush, and for the "
            "messages ahead. *oldest now* waits still, and is in no percentile.",
            _WAIT,
            components.delivery_limit_line(),
            "Messages per second that the queue did not confirm, and errors of the consumer with the queue. "
            "`queue-full`: the bucket is away or the consumer is too slow. `halted`: a lane has stopped until an "
            "operator acts.",
            [
                *_errors(f'{_TO_QUEUE}, error_type!=""}}', "error_type", "send: {{error_type}}"),
                *_errors(f'{_ERRORS}"lock|position|read|purge"}}', "bronze_step, error_type", _STEP, "all of consumer"),
            ],
            COUNTS_PER_S,
            "no process has reported yet",
            ["BronzeLaneHalted", "BronzeConsumerErrors"],
            [query(f"max({_AGE})", "oldest now")],
            outcomes_add_up=False,
        ),
        Stage(
            "Processing",
            "Records per second that the consumer is done with. stored: in a row of an object. quarantined: stored "
            "byte for byte under `quarantine/`. duplicate: late copies, which an object only lists.",
            RECORDS_PER_S,
            [query(rate(f"bronze_records_total{{{_CONSUMER}}}", "bronze_outcome"), "{{bronze_outcome}}")],
            "From the read of a submission's messages to the catalog entry of their object, including the rest of the "
            "wait for the flush, and the upload.",
            _PROCESSED,
            components.delivery_limit_line(),
            "Errors per second of the steps around the upload. `timeout`, `conflict` and `queue-away` are retried. "
            "`poison`: a dead letter went to quarantine.",
            _errors(f'{_ERRORS}"identities|encode|quarantine|catalog"}}', "bronze_step, error_type", _STEP),
            COUNTS_PER_S,
            "no consumer has reported yet",
            ["BronzeConsumerErrors", "BronzePoison", "BronzeRecordsQuarantined"],
        ),
        Stage(
            "Upload",
            "Upload attempts (Bronze writes) per second. If there are failures and no successes, the bucket is "
            "unavailable, full, or denies access.",
            WRITES_PER_S,
            [query(rate(_ATTEMPTS, "bronze_outcome"), "{{bronze_outcome}}")],
            f"Encode and PutObject of one object that was written. The limit is {DURATION_S_MAX:g} s. *not ended yet*: "
            "how long the upload that is due has taken, if that is over the limit.",
            _UPLOADS,
            limit_line(),
            "Failed attempts per second, by what the bucket answered. `halted`: another object is at the key, and the "
            "lane has stopped until an operator acts.",
            [
                *_errors(_FAILED, "error_type", "{{error_type}}"),
                query(f"{rate(_HALTED)} > 0", "halted"),
            ],
            WRITES_PER_S,
            "no consumer has reported yet",
            ["BronzeUploadsFail", "BronzeUploadAttemptsFail", "BronzeLaneHalted"],
            [not_ended(UNFINISHED_UPLOAD_S)],
        ),
        Stage(
            "Delivery",
            "Submissions per second that were stored, on time or late by the objective of the source: flush age + "
            f"{DURATION_S_MAX:g} s.",
            COUNTS_PER_S,
            [
                query(on_time, "on time"),
                query(f"{rate(histogram_series(_DELIVERIES, 'count'))} - {on_time}", "late"),
            ],
            "From accepted to stored, per submission. Most of this time is the wait for the flush. *not ended yet*: "
            "the oldest message that is not in the bucket, if it is late.",
            _DELIVERIES,
            components.delivery_limit_line(),
            "Objects that are in the catalog, but not in the bucket, or not with their size, and messages that are "
            "missing in the queue. If it is not 0, act now.",
            [
                query(f"sum(max by (bronze_source) (bronze_missing_objects{{{_CONSUMER}}}))", "objects"),
                query(f"sum(max by ({_LANE}) (bronze_missing_messages{{{_CONSUMER}}}))", "messages"),
            ],
            COUNT,
            "no delivery yet",
            ["BronzeRecordsMissing"],
            [not_ended(UNFINISHED_DELIVERY_S)],
        ),
    )


_STEP = "{{bronze_step}}: {{error_type}}"


def _errors(counter: str, by: str, legend: str, name: str = "all") -> list[Target]:
    """A counter of errors: the sum, which is 0 without any, and those that occur."""
    return [query(rate(counter), name), query(f"{rate(counter, by)} > 0", legend)]


# --- objects and senders


def object_size() -> Timeseries:
    info = PanelInfo(
        "Object size",
        "Bytes per object. Many small objects slow readers down; a longer flush age gives fewer and larger objects.",
        "no upload yet",
    )
    return _per_object(info, BYTES, "bronze_upload_size_bytes")


def object_records() -> Timeseries:
    info = PanelInfo(
        "Records per object",
        "Rows per object. Few rows despite a high flush age: the source sends few records, which is not a fault.",
        "no upload yet",
    )
    return _per_object(info, COUNT, "bronze_upload_records")


def volume() -> Timeseries:
    info = PanelInfo(
        "Bytes accepted and stored",
        "Accepted: bytes of decompressed bodies. Stored: bytes of compressed objects, so this is lower, and changes "
        "only when objects are written.",
        "no process has reported yet",
    )
    return graph(
        info,
        BYTES_PER_S,
        query(rate(f'bronze_bytes_total{{{_API}, bronze_outcome="accepted"}}'), "accepted"),
        query(rate(f'bronze_bytes_total{{{_CONSUMER}, bronze_outcome="stored"}}'), "stored"),
        width=6,
    )


def publishers() -> Stat:
    info = PanelInfo(
        "Submissions of Bronze publishers",
        "Submissions of `bronze publish` and `bronze simulate` in the range, by outcome. Other clients are not "
        "included. unknown: neither a 202 nor a refusal arrived in time; a retry under the same Idempotency-Key "
        "shows the outcome.",
        "no publisher has run",
        explained_by=(SOURCE_BOARD, "Ingest, by outcome"),
    )
    sent = counted(f'bronze_publisher_submissions_total{{job="bronze/publisher", {SOURCE}}}', "bronze_outcome")
    panel = tile(info, EXACT, single_value(sent, "{{bronze_outcome}}"), height=9).decimals(0)
    return panel.orientation(VizOrientation.HORIZONTAL)


def _per_object(info: PanelInfo, unit: str, name: str) -> Timeseries:
    panel = graph(info, unit, *components.percentiles(f"{name}{{{_CONSUMER}}}", (0.5, 0.95)), width=6)
    return components.percentile_graph(panel, floor=1, base=2 if unit == BYTES else 10)
