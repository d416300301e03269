"""Bronze overview: is all well, and if not, at which stage of the data's way."""

from grafana_foundation_sdk.builders.heatmap import Panel as Heatmap
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries
from grafana_foundation_sdk.models.common import VizOrientation

from grafana import house
from grafana.house import (
    BAD,
    BYTES,
    BYTES_PER_S,
    COUNT,
    COUNTS_PER_S,
    EXACT,
    FAIR,
    GOOD,
    MESSAGES_PER_S,
    NEUTRAL,
    RECORDS_PER_S,
    REQUESTS_PER_S,
    SECONDS,
    SHARE,
    WRITES_PER_S,
    Board,
    Row,
    Says,
    graph,
    line,
    number,
    query,
    tile,
)
from grafana.promql import (
    API,
    CONSUMER,
    DELIVERIES,
    LINE_S,
    OBJECTIVE_S,
    PUBLISHER,
    REQUESTS,
    SOURCE,
    THRESHOLDS,
    UPLOADS,
    counted,
    mean_counted,
    or_zero,
    part,
    quantile,
    quantile_counted,
    rate,
    ratio,
)

_LANE = "bronze_source, bronze_lane"
_ATTEMPTS = f"bronze_uploads_total{{{CONSUMER}, {SOURCE}}}"
_SUCCEEDED = f'bronze_uploads_total{{{CONSUMER}, {SOURCE}, bronze_outcome="success"}}'
_RECORDS = f"bronze_records_total{{{CONSUMER}, {SOURCE}, bronze_outcome="
_ACCEPTED = f'bronze_records_total{{{API}, {SOURCE}, bronze_outcome="accepted"}}'
_REJECTED = f'bronze_records_total{{{API}, bronze_outcome="rejected"}}'
_INVALID = f"bronze_records_invalid_total{{{API}}}"
_ENDED = f'{_RECORDS}~"stored|quarantined|duplicate"}}'
_PROCESSED = f'messaging_process_duration_seconds{{{CONSUMER}, messaging_destination_name=~"bronze.($source)"}}'
_DESTINATION = 'messaging_destination_name=~"bronze.($source)"'
_DEPTH = f"max by ({_LANE}) (bronze_queue_depth{{{CONSUMER}, {SOURCE}}})"
_AGE = f"max by ({_LANE}) (bronze_queue_oldest_age_seconds{{{CONSUMER}, {SOURCE}}})"
_POSITION = f"max by ({_LANE}) (bronze_lane_position{{{CONSUMER}, {SOURCE}}})"

_BY_STATUS = {"^2": GOOD, "^4": FAIR, "^5": BAD}


def board() -> Board:
    return Board(
        "bronze-overview",
        "Bronze overview",
        "From the request to the object in the bucket: rows stand in the order of the data's way.",
        [
            Row(
                "In the chosen time range",
                [
                    uploads_in_range(),
                    mean_upload(),
                    requests_in_range(),
                    success_rate(),
                    p95_upload(),
                    p95_delivery(),
                    balance(),
                    missing(),
                    alerts_firing(),
                    last_success(),
                ],
            ),
            Row(
                "Ingestion",
                [
                    requests_by_status(),
                    request_latency(),
                    refused(),
                    records_in(),
                    bytes_in_and_out(),
                    publishers(),
                ],
            ),
            Row(
                "Processing",
                [
                    messages(),
                    records_out(),
                    processing_time(),
                    consumer_errors(),
                    queue_depth(),
                    oldest_age(),
                    lanes(),
                ],
            ),
            Row(
                "Upload",
                [
                    uploads(),
                    upload_latency_by_source(),
                    delivery_latency(),
                    upload_distribution(),
                    object_size(),
                    object_records(),
                ],
            ),
        ],
    )


# --- in the chosen time range


def uploads_in_range() -> Stat:
    says = Says(
        "Successful uploads",
        "Objects written to the bucket in the chosen time range.",
        "no upload yet",
        ["BronzeUploadsFail", "BronzeUploadsMissing"],
    )
    return tile(says, EXACT, number(or_zero(counted(_SUCCEEDED)))).decimals(0)


def mean_upload() -> Stat:
    says = Says(
        "Mean upload duration",
        f"One Bronze write, encode and PutObject, on average over the range. The line is {LINE_S:g} s.",
        "no upload",
        ["BronzeUploadsSlow"],
    )
    return tile(says, SECONDS, number(mean_counted(UPLOADS))).thresholds(house.below_line())


def requests_in_range() -> Stat:
    says = Says(
        "Requests",
        "Requests that the API answered in the range, of any kind but probes and scrapes, with any status.",
        "no request yet",
        ["BronzeRequestsSlow"],
    )
    requests = f"http_server_request_duration_seconds_count{{{API}}}"
    return tile(says, EXACT, number(or_zero(counted(requests)))).decimals(0)


def success_rate() -> Stat:
    at = 1 - THRESHOLDS.attempts_budget
    says = Says(
        "Upload success",
        f"Which share of the attempts to upload succeeded; the objective is {at:.1%}. A failed attempt is made again: "
        "it costs time, never data.",
        "no upload",
        ["BronzeUploadAttemptsFail", "BronzeUploadsFail"],
    )
    share = number(ratio(counted(_SUCCEEDED), counted(_ATTEMPTS)))
    return tile(says, SHARE, share).thresholds(house.steps(NEUTRAL, (0, BAD), (0.99, FAIR), (at, GOOD))).decimals(2)


def p95_upload() -> Stat:
    says = Says(
        "p95 upload",
        f"95 of 100 uploads of the range took no longer. Red from {LINE_S:g} s on.",
        "no upload",
        ["BronzeUploadsSlow"],
    )
    return tile(says, SECONDS, number(quantile_counted(0.95, UPLOADS))).thresholds(house.below_line())


def p95_delivery() -> Stat:
    says = Says(
        "p95 delivery",
        "95 of 100 submissions of the range were in the bucket no later after they had been accepted. Red from the "
        f"objective on, which is flush age + {LINE_S:g} s.",
        "no delivery",
        ["BronzeDeliveriesLate"],
    )
    panel = tile(says, SECONDS, number(quantile_counted(0.95, DELIVERIES)), number(OBJECTIVE_S, "line"))
    return house.judged_by(panel, "B")


def balance() -> Stat:
    says = Says(
        "Balance",
        "Records accepted - stored - set aside - recognized as copies, in the range. What is left is in flight: it "
        "returns to 0 when nothing more comes in. Below 0: what was accepted before the range, or without a known "
        "outcome, was stored in it; or the consumer has reported a few seconds later than the API.",
        "nothing accepted yet",
        ["BronzeRecordsMissing"],
    )
    left = f"({or_zero(counted(_ACCEPTED))}) - ({or_zero(counted(_ENDED))})"
    return tile(says, EXACT, number(left)).decimals(0)


def missing() -> Stat:
    says = Says(
        "Missing, last hour",
        "Records that were accepted and are nowhere, 10 minutes later. Anything but 0 needs somebody: see the runbook.",
        "the rules are not evaluated",
        ["BronzeRecordsMissing"],
    )
    lost = number(or_zero(f"sum(bronze_source:records_missing:increase1h{{{SOURCE}}})"))
    return tile(says, EXACT, lost).decimals(0).thresholds(house.none_is_good(bad=1))


def alerts_firing() -> Stat:
    says = Says(
        "Alerts firing",
        "Alerts of ours that fire now. Which ones: *Telemetry health*.",
        "the rules are not evaluated",
    )
    firing = number(or_zero('count(ALERTS{alertname=~"Bronze.+", alertstate="firing"})'))
    return tile(says, COUNT, firing).thresholds(house.none_is_good(bad=1))


def last_success() -> Stat:
    says = Says(
        "Since the last successful upload",
        "How long ago each source last reached the bucket. A source that sends nothing grows old and is well; one that "
        "accepts and grows old is not.",
        "no source has reported yet",
        ["BronzeUploadsMissing", "BronzeLaneStuck"],
    )
    at = f"max by (bronze_source) (bronze_upload_last_success_time_seconds{{{CONSUMER}, {SOURCE}}})"
    never = f'group by (bronze_source) ({_RECORDS}"stored"}}) - 2'
    panel = tile(says, SECONDS, number(f"time() - {at}\nor {never}", "{{bronze_source}}"), width=18)
    return house.saying(panel, {"-1": "never"}).orientation(VizOrientation.AUTO).decimals(0)


# --- ingestion


def requests_by_status() -> Timeseries:
    says = Says(
        "Requests by status",
        "Submissions answered a second. 4xx is the sender's to mend (see *Refused*), 503 means that the queue is full "
        "or away and the sender tries again, other 5xx are defects of ours.",
        "no submission yet",
        ["BronzeRequestsSlow"],
    )
    by_status = rate(part(REQUESTS, "count"), "http_response_status_code")
    panel = graph(says, REQUESTS_PER_S, query(by_status, "{{http_response_status_code}}"))
    return house.stacked(house.colours(panel, _BY_STATUS))


def request_latency() -> Timeseries:
    says = Says(
        "Request latency",
        "From a submission's first byte to its 202, which comes after the queue's durable ack. Large bodies take "
        "longer. A mark leads to the trace of a request.",
        "no submission yet",
        ["BronzeRequestsSlow"],
    )
    return house.percentile_graph(graph(says, SECONDS, *house.percentiles(REQUESTS, exemplars=True), line()))


def refused() -> Timeseries:
    says = Says(
        "Refused by reason",
        "Records refused a second, by the `type` of the problem document that the sender got. Nothing of them is kept. "
        "*kept* are those that their senders had kept apart in quarantine instead.",
        "no submission yet",
    )
    return house.rare(
        graph(
            says,
            RECORDS_PER_S,
            query(rate(_REJECTED), "all"),
            query(f"{rate(_REJECTED, 'error_type')} > 0", "{{error_type}}"),
            query(f"{rate(_INVALID, 'error_type')} > 0", "kept: {{error_type}}"),
        )
    )


def records_in() -> Timeseries:
    says = Says(
        "Records accepted",
        "Records accepted a second, by source. It falls to 0 when senders stop or are refused.",
        "no source has reported yet",
    )
    panel = graph(says, RECORDS_PER_S, query(rate(_ACCEPTED, "bronze_source"), "{{bronze_source}}"))
    return house.stacked(panel)


def bytes_in_and_out() -> Timeseries:
    says = Says(
        "Bytes accepted and stored",
        "Accepted: bodies, decompressed. Stored: objects, compressed; so the second is lower, and follows in steps of "
        "the flush.",
        "no source has reported yet",
    )
    return graph(
        says,
        BYTES_PER_S,
        query(rate(f'bronze_bytes_total{{{API}, {SOURCE}, bronze_outcome="accepted"}}'), "accepted"),
        query(rate(f'bronze_bytes_total{{{CONSUMER}, {SOURCE}, bronze_outcome="stored"}}'), "stored"),
    )


def publishers() -> Stat:
    says = Says(
        "Submissions of our publishers",
        "What `bronze publish` and `bronze simulate` sent in the range, by how it ended. Other clients are not in it. "
        "Unknown: neither a 202 nor a refusal in time; a retry under the same key tells.",
        "no publisher has run",
    )
    sent = counted(f"bronze_publisher_submissions_total{{{PUBLISHER}, {SOURCE}}}", "bronze_outcome")
    panel = tile(says, EXACT, number(sent, "{{bronze_outcome}}"), width=8, height=9).decimals(0)
    return panel.orientation(VizOrientation.HORIZONTAL)


# --- processing


def messages() -> Timeseries:
    says = Says(
        "Messages",
        "Messages that the API sent to the queue and the consumer read from it, a second. Read falls behind sent while "
        "a backlog grows.",
        "no process has reported yet",
        ["BronzeBacklogLarge"],
    )
    sent = f"messaging_client_sent_messages_total{{{API}, {_DESTINATION}}}"
    received = f"messaging_client_consumed_messages_total{{{CONSUMER}, {_DESTINATION}}}"
    return graph(says, MESSAGES_PER_S, query(rate(sent), "sent"), query(rate(received), "read"), width=6)


def records_out() -> Timeseries:
    says = Says(
        "Records by outcome",
        "Stored: in an object. Quarantined: set aside byte for byte, because their sender asked for that or they could "
        "not be decoded. Duplicate: late copies of what is stored, which the object lists and does not hold.",
        "no consumer has reported yet",
        ["BronzeRecordsQuarantined", "BronzePoison"],
    )
    panel = graph(says, RECORDS_PER_S, query(rate(_ENDED, "bronze_outcome"), "{{bronze_outcome}}"), width=6)
    return house.stacked(house.colours(panel, {"stored": GOOD, "quarantined": BAD, "duplicate": NEUTRAL}))


def processing_time() -> Timeseries:
    says = Says(
        "Processing time",
        "The messages of one submission in the consumer, from read to stored, the wait for the flush included. A mark "
        "leads to the trace.",
        "nothing processed yet",
        ["BronzeDeliveriesLate"],
    )
    return house.percentile_graph(
        graph(says, SECONDS, *house.percentiles(_PROCESSED, exemplars=True), house.objective(), width=6)
    )


def consumer_errors() -> Timeseries:
    says = Says(
        "Consumer errors by step",
        "What failed, and at which step. Timeouts, conflicts and what is away pass by themselves; `halted` stops a "
        "lane until somebody looks, `poison` goes to quarantine.",
        "no consumer has reported yet",
        ["BronzeConsumerErrors", "BronzeLaneHalted", "BronzePoison"],
    )
    errors = f"bronze_consumer_errors_total{{{CONSUMER}, {SOURCE}}}"
    return house.rare(
        graph(
            says,
            COUNTS_PER_S,
            query(rate(errors), "all"),
            query(f"{rate(errors, 'bronze_step, error_type')} > 0", "{{bronze_step}}: {{error_type}}"),
            width=6,
        )
    )


def queue_depth() -> Timeseries:
    says = Says(
        "Queue depth",
        "Messages of a lane that are not in the bucket yet. It grows while the bucket is away or the consumer too "
        "slow; when the stream is full, senders get 503.",
        "no lane has reported yet",
        ["BronzeBacklogLarge", "BronzeBacklogOverdue"],
    )
    return house.rare(graph(says, COUNT, query(_DEPTH, "{{bronze_source}}/{{bronze_lane}}"), width=6))


def oldest_age() -> Timeseries:
    says = Says(
        "Age of the oldest message",
        f"How long the oldest message that is not in the bucket has waited. The line is flush age + {LINE_S:g} s.",
        "no lane has reported yet",
        ["BronzeBacklogOverdue", "BronzeLaneStuck"],
    )
    return graph(
        says,
        SECONDS,
        query(_AGE, "{{bronze_source}}/{{bronze_lane}}"),
        house.objective(),
        width=6,
    )


def lanes() -> Table:
    says = Says(
        "Lanes",
        "Each lane: messages that wait, the age of the oldest, and the sequence of the last message that is in the "
        "bucket. A position that stands while messages wait is a stuck lane.",
        "no lane has reported yet",
        ["BronzeLaneStuck", "BronzeLaneHalted"],
    )
    return house.columns(
        house.merged(house.listing(says, house.rows(_DEPTH), house.rows(_AGE), house.rows(_POSITION), width=12)),
        {
            "bronze_source": ("Source", []),
            "bronze_lane": ("Lane", [house.wide(70)]),
            "Value #A": ("Waiting", [house.of_unit(EXACT)]),
            "Value #B": ("Oldest", [house.of_unit(SECONDS)]),
            "Value #C": ("Position", [house.of_unit(EXACT)]),
        },
    )


# --- upload


def uploads() -> Timeseries:
    says = Says(
        "Uploads",
        "Attempts to write an object, a second, by outcome. Failures are made again; without successes beside them "
        "the bucket is away, full or denies.",
        "no consumer has reported yet",
        ["BronzeUploadsFail", "BronzeUploadAttemptsFail"],
    )
    panel = graph(says, WRITES_PER_S, query(rate(_ATTEMPTS, "bronze_outcome"), "{{bronze_outcome}}"))
    return house.stacked(house.colours(panel, {"success": GOOD, "failure": BAD}))


def upload_latency_by_source() -> Timeseries:
    says = Says(
        "Upload duration by source, p95",
        "Encode and PutObject of one object. One source above the others: its objects are larger. All of them: the "
        "bucket is slow. A mark leads to the trace of an upload.",
        "no upload yet",
        ["BronzeUploadsSlow"],
    )
    by_source = query(quantile(0.95, UPLOADS, "bronze_source"), "{{bronze_source}}", exemplars=True)
    return graph(says, SECONDS, by_source, line())


def delivery_latency() -> Timeseries:
    says = Says(
        "Delivery",
        "From accepted to readable in the bucket, of one submission. Most of it is waiting for the flush.",
        "no delivery yet",
        ["BronzeDeliveriesLate"],
    )
    return house.percentile_graph(
        graph(says, SECONDS, *house.percentiles(DELIVERIES, exemplars=True), house.objective())
    )


def upload_distribution() -> Heatmap:
    says = Says(
        "Upload duration",
        f"How many uploads took how long; what is above the mark *{LINE_S:g} s line* is beyond the objective. Each "
        "orange mark is an upload: click it and choose *Show the trace*.",
        "no upload yet",
        ["BronzeUploadsSlow"],
    )
    return house.distribution(says, UPLOADS, width=12)


def object_size() -> Timeseries:
    says = Says(
        "Object size",
        "Bytes of an object. Many small objects slow readers down: a longer flush age makes fewer, larger ones.",
        "no upload yet",
    )
    return _middle_and_most(says, BYTES, "bronze_upload_size_bytes")


def object_records() -> Timeseries:
    says = Says(
        "Records of an object",
        "Rows of an object. A source with few of them at a high flush age is a slow source, and that is fine.",
        "no upload yet",
    )
    return _middle_and_most(says, COUNT, "bronze_upload_records")


def _middle_and_most(says: Says, unit: str, name: str) -> Timeseries:
    histogram = f"{name}{{{CONSUMER}, {SOURCE}}}"
    panel = graph(says, unit, *house.percentiles(histogram, (0.5, 0.95)), width=6, height=10)
    return house.percentile_graph(panel)
