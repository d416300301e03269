"""Bronze overview: does everything work, and if not, which stage fails."""

from grafana_foundation_sdk.builders.heatmap import Panel as Heatmap
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries
from grafana_foundation_sdk.models.common import VizOrientation

from bronze.objectives import DURATION_S_MAX
from bronze.telemetry import promql
from bronze.telemetry.promql import NO_CANARY, histogram_series
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
    WRITES_PER_S,
    Board,
    PanelInfo,
    Row,
    graph,
    limit_line,
    query,
    single_value,
    tile,
)
from grafana.promql import (
    API,
    CANARY_ROUTE,
    CONSUMER,
    DELIVERIES,
    DESTINATION,
    INTERVAL,
    LEDGER,
    OBJECTIVE_S,
    PUBLISHER,
    REQUESTS,
    SOURCE,
    THRESHOLDS,
    UPLOADS,
    added,
    counted,
    counted_per_interval,
    mean,
    mean_counted,
    or_zero,
    quantile,
    quantile_counted,
    rate,
)

_LANE = "bronze_source, bronze_lane"
_ATTEMPTS = f"bronze_uploads_total{{{CONSUMER}, {SOURCE}}}"
_SUCCEEDED = f'bronze_uploads_total{{{CONSUMER}, {SOURCE}, bronze_outcome="success"}}'
_RECORDS = f"bronze_records_total{{{CONSUMER}, {SOURCE}, bronze_outcome="
_ACCEPTED = f'bronze_records_total{{{API}, {SOURCE}, bronze_outcome="accepted"}}'
_REJECTED = f'bronze_records_total{{{API}, {NO_CANARY}, bronze_outcome="rejected"}}'
_INVALID = f"bronze_records_invalid_total{{{API}, {NO_CANARY}}}"
_ENDED = f'{_RECORDS}~"stored|quarantined|duplicate"}}'
_PROCESSED = f"messaging_process_duration_seconds{{{CONSUMER}, {DESTINATION}}}"
_DEPTH = promql.newest(f"bronze_queue_depth{{{CONSUMER}, {SOURCE}}}", _LANE)
_AGE = promql.newest(f"bronze_queue_oldest_age_seconds{{{CONSUMER}, {SOURCE}}}", _LANE)
_POSITION = f"max by ({_LANE}) (bronze_lane_position{{{CONSUMER}, {SOURCE}}})"

#: No 4xx has a colour that means good, fair or bad: senders have to correct these.
_BY_STATUS = {
    "^2": GOOD,
    "^40[0-8]": "light-blue",
    "^409": "purple",
    "^41[0-4]": "blue",
    "^415": "#4CB5AE",
    "^4[2-9]": "gray",
    "^500": "dark-red",
    "^50[1-9]": BAD,
}


def board() -> Board:
    return Board(
        "bronze-overview",
        "Bronze overview",
        "Is all well now, and if not, where? The first row answers; the others follow the stages that data passes.",
        [
            Row(
                "Is all well now?",
                [
                    verdict.ingest(),
                    verdict.queue(),
                    verdict.upload(),
                    verdict.telemetry(),
                    verdict.pages(),
                    verdict.oldest_waiting(),
                    verdict.waiting(),
                    verdict.since_incident(),
                    verdict.over_time(),
                ],
            ),
            Row(
                "In the chosen time range",
                [
                    uploads_in_range(),
                    failed_uploads(),
                    mean_upload(),
                    requests_in_range(),
                    p95_upload(),
                    p95_delivery(),
                    missing(),
                    refused_in_range(),
                    mean_upload_by_source(),
                    uploads_counted(),
                    sources(),
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
            Row(
                "Since the first record",
                [
                    accepted_in_all(),
                    records_in_all(),
                    not_done(),
                    objects_in_all(),
                    bytes_in_all(),
                    not_in_rows(),
                ],
            ),
        ],
        refresh="10s",  # what goes wrong is seen within 30 s
    )


# --- in the chosen time range


def uploads_in_range() -> Stat:
    info = PanelInfo(
        "Successful uploads",
        "Objects written to the bucket in the chosen time range, by the catalog.",
        "no upload yet",
        ["BronzeUploadsFail", "BronzeUploadsMissing"],
        explained_by=("bronze-overview", "Uploads, succeeded and failed"),
    )
    objects = added(f"bronze_ledger_objects{{{LEDGER}, {SOURCE}}}")
    return tile(info, EXACT, single_value(or_zero(f"sum({objects})"))).decimals(0)


def mean_upload() -> Stat:
    info = PanelInfo(
        "Mean upload duration",
        f"Mean duration of one Bronze write (encode and PutObject) in the range. The limit is {DURATION_S_MAX:g} s.",
        "no upload",
        ["BronzeUploadsSlow"],
        explained_by=("bronze-overview", "Mean upload duration by source"),
    )
    return tile(info, SECONDS, single_value(mean_counted(UPLOADS))).thresholds(components.limit_thresholds())


def mean_upload_by_source() -> Timeseries:
    info = PanelInfo(
        "Mean upload duration by source",
        f"Mean duration of a Bronze write (encode and PutObject) over time, and p95 of all. The limit is "
        f"{DURATION_S_MAX:g} s. A mark links to the trace of an upload. Uploads that failed or have not ended are "
        "not in it: see the counts beside it, and *Age of the oldest message*.",
        "no upload yet",
        ["BronzeUploadsSlow"],
    )
    by_source = query(mean(UPLOADS, "bronze_source"), "{{bronze_source}}")
    p95 = query(quantile(0.95, UPLOADS), "p95 of all", exemplars=True)
    panel = components.log_axis(graph(info, SECONDS, by_source, p95, limit_line(), width=12))
    return components.by_source(components.faded(panel, "p95 of all"))


def uploads_counted() -> Timeseries:
    info = PanelInfo(
        "Uploads, succeeded and failed",
        "How many upload attempts succeeded and how many failed, in each interval of the graph. A failed attempt is "
        "retried.",
        "no consumer has reported yet",
        ["BronzeUploadsFail", "BronzeUploadAttemptsFail"],
    )
    attempts = f"sum by (bronze_outcome) (increase({_ATTEMPTS}[{INTERVAL}] anchored))"
    panel = components.bars(graph(info, COUNT, query(attempts, "{{bronze_outcome}}"), width=12))
    return components.expected_zero(components.colours(panel, {"success": GOOD, "failure": BAD}))


def requests_in_range() -> Stat:
    info = PanelInfo(
        "Requests",
        "Requests that the API answered in the range, with any status. Probes, scrapes and "
        "the canary's submissions are not counted.",
        "no request yet",
        ["BronzeRequestsSlow", "BronzeRequestsFail"],
        explained_by=("bronze-overview", "Requests by status"),
    )
    requests = f'http_server_request_duration_seconds_count{{{API}, http_route!="{CANARY_ROUTE}"}}'
    return tile(info, EXACT, single_value(or_zero(counted(requests)))).decimals(0)


def failed_uploads() -> Stat:
    info = PanelInfo(
        "Failed upload attempts",
        "Upload attempts that failed in the range. Each is retried: it costs time, but no data is lost. The objective "
        f"is that {1 - THRESHOLDS.attempts_budget:.1%} of the attempts succeed.",
        "no consumer has reported yet",
        ["BronzeUploadAttemptsFail", "BronzeUploadsFail"],
        explained_by=("bronze-overview", "Uploads, succeeded and failed"),
    )
    failed = f'bronze_uploads_total{{{CONSUMER}, {SOURCE}, bronze_outcome="failure"}}'
    panel = tile(info, EXACT, single_value(counted(failed))).decimals(0)
    return panel.thresholds(components.zero_is_good(fair=1, bad=THRESHOLDS.outage_failures_max))


def p95_upload() -> Stat:
    info = PanelInfo(
        "p95 upload",
        f"95 % of the uploads in the range took at most this long. Red from {DURATION_S_MAX:g} s on.",
        "no upload",
        ["BronzeUploadsSlow"],
        explained_by=("bronze-latency", "Upload duration"),
    )
    return tile(info, SECONDS, single_value(quantile_counted(0.95, UPLOADS))).thresholds(components.limit_thresholds())


def p95_delivery() -> Stat:
    info = PanelInfo(
        "p95 delivery",
        "95 % of the submissions in the range took at most this long from accepted to stored. Red from the objective "
        f"on, which is flush age + {DURATION_S_MAX:g} s.",
        "no delivery",
        ["BronzeDeliveriesLate"],
        explained_by=("bronze-latency", "Time by stage, p95"),
    )
    panel = tile(info, SECONDS, single_value(quantile_counted(0.95, DELIVERIES)), single_value(OBJECTIVE_S, "limit"))
    return components.red_from_query(panel, "B")


def missing() -> Stat:
    info = PanelInfo(
        "Missing objects and messages",
        "Objects that are in the catalog, but not in the bucket, or not with their size; and messages that are missing "
        "in the queue. Both are proven, not calculated from counters. If it is not 0, act now: see the runbook.",
        "no consumer has reported yet",
        ["BronzeRecordsMissing"],
        explained_by=("bronze-overview", "Lanes"),
    )
    number = single_value(promql.missing(f"{CONSUMER}, {SOURCE}"))
    return tile(info, EXACT, number).decimals(0).thresholds(components.zero_is_good(bad=1))


def refused_in_range() -> Stat:
    info = PanelInfo(
        "Refused records",
        "Records that were refused in the range. Nothing of them is stored. Most are for their senders to correct; "
        "*Ingest* turns red if the fault is Bronze's.",
        "no API has reported yet",
        explained_by=("bronze-overview", "Refused by reason"),
    )
    return tile(info, EXACT, single_value(counted(_REJECTED))).decimals(0)


def sources() -> Table:
    info = PanelInfo(
        "Sources",
        "Each source now: whether its uploads are well, its records that wait, the age of its oldest message, and the "
        "time since its last upload. A source without new records may have any time since its last upload.",
        "no source has reported yet",
        ["BronzeUploadsMissing", "BronzeLaneStuck"],
    )
    judged = f"max by (bronze_source) (bronze:source_verdict{{{SOURCE}}})"
    last = f"max by (bronze_source) (bronze_upload_last_success_time_seconds{{{CONSUMER}, {SOURCE}}})"
    panel = components.listing(
        info,
        components.rows(judged),
        components.rows(promql.waiting(f"{LEDGER}, {SOURCE}")),
        components.rows(f"max by (bronze_source) ({_AGE})"),
        components.rows(f"time() - {last}"),
        height=7,
    )
    return components.columns(
        components.merged(panel),
        {
            "bronze_source": ("Source", [components.links(components.source_link("__value.raw"))]),
            "Value #A": ("Verdict", verdict.as_cells()),
            "Value #B": ("Records that wait", [components.in_unit(EXACT)]),
            "Value #C": ("Oldest message", [components.in_unit(SECONDS)]),
            "Value #D": ("Since the last upload", [components.in_unit(SECONDS)]),
        },
    )


# --- ingestion


def requests_by_status() -> Timeseries:
    info = PanelInfo(
        "Requests by status",
        "How many submissions were answered in each interval of the graph, by status. 4xx: the sender has to correct "
        "them (see *Refused by reason*). 503: the queue is full or does not answer, and the sender retries. Other 5xx: "
        "a bug in Bronze.",
        "no submission yet",
        ["BronzeRequestsSlow", "BronzeRequestsFail"],
    )
    by_status = counted_per_interval(histogram_series(REQUESTS, "count"), "http_response_status_code")
    panel = components.bars(graph(info, COUNT, query(by_status, "{{http_response_status_code}}")))
    return components.colours(panel, _BY_STATUS)


def request_latency() -> Timeseries:
    info = PanelInfo(
        "Request latency",
        "From the first byte of a submission to its 202, which follows the queue's durable ack. Large bodies take "
        "longer. A mark links to the trace of a request.",
        "no submission yet",
        ["BronzeRequestsSlow"],
    )
    return components.percentile_graph(
        graph(info, SECONDS, *components.percentiles(REQUESTS, exemplars=True), limit_line())
    )


def refused() -> Timeseries:
    info = PanelInfo(
        "Refused by reason",
        "Refused records per second, by the `type` of the problem document in the response. Nothing of them is stored. "
        "*quarantined*: rejected records that were accepted for quarantine, because their senders asked for that.",
        "no submission yet",
    )
    return components.expected_zero(
        graph(
            info,
            RECORDS_PER_S,
            query(rate(_REJECTED), "all"),
            query(f"{rate(_REJECTED, 'error_type')} > 0", "{{error_type}}"),
            query(f"{rate(_INVALID, 'error_type')} > 0", "quarantined: {{error_type}}"),
        )
    )


def records_in() -> Timeseries:
    info = PanelInfo(
        "Records accepted",
        "Accepted records per second, by source. It falls to 0 when senders stop or their submissions are refused.",
        "no source has reported yet",
    )
    panel = graph(info, RECORDS_PER_S, query(rate(_ACCEPTED, "bronze_source"), "{{bronze_source}}"))
    return components.by_source(components.stacked(panel))


def bytes_in_and_out() -> Timeseries:
    info = PanelInfo(
        "Bytes accepted and stored",
        "Accepted: bytes of decompressed bodies. Stored: bytes of compressed objects, so this is lower, and changes "
        "only when objects are written.",
        "no source has reported yet",
    )
    return graph(
        info,
        BYTES_PER_S,
        query(rate(f'bronze_bytes_total{{{API}, {SOURCE}, bronze_outcome="accepted"}}'), "accepted"),
        query(rate(f'bronze_bytes_total{{{CONSUMER}, {SOURCE}, bronze_outcome="stored"}}'), "stored"),
    )


def publishers() -> Stat:
    info = PanelInfo(
        "Submissions of Bronze publishers",
        "Submissions of `bronze publish` and `bronze simulate` in the range, by outcome. Other clients are not "
        "included. unknown: neither a 202 nor a refusal arrived in time; a retry under the same Idempotency-Key "
        "shows the outcome.",
        "no publisher has run",
        explained_by=("bronze-overview", "Records accepted"),
    )
    sent = counted(f"bronze_publisher_submissions_total{{{PUBLISHER}, {SOURCE}}}", "bronze_outcome")
    panel = tile(info, EXACT, single_value(sent, "{{bronze_outcome}}"), width=8, height=9).decimals(0)
    return panel.orientation(VizOrientation.HORIZONTAL)


# --- processing


def messages() -> Timeseries:
    info = PanelInfo(
        "Messages",
        "Messages per second that the API sent to the queue and that the consumer read from it. While less is read "
        "than sent, the backlog grows.",
        "no process has reported yet",
        ["BronzeBacklogLarge"],
    )
    sent = f"messaging_client_sent_messages_total{{{API}, {DESTINATION}}}"
    received = f"messaging_client_consumed_messages_total{{{CONSUMER}, {DESTINATION}}}"
    return graph(info, MESSAGES_PER_S, query(rate(sent), "sent"), query(rate(received), "read"), width=6)


def records_out() -> Timeseries:
    info = PanelInfo(
        "Records by outcome",
        "stored: in an object. quarantined: stored byte for byte under `quarantine/`, because the sender asked for "
        "it or the message could not be decoded. duplicate: late copies of stored submissions, which an object only "
        "lists.",
        "no consumer has reported yet",
        ["BronzeRecordsQuarantined", "BronzePoison"],
    )
    panel = graph(info, RECORDS_PER_S, query(rate(_ENDED, "bronze_outcome"), "{{bronze_outcome}}"), width=6)
    return components.stacked(components.colours(panel, {"stored": GOOD, "quarantined": BAD, "duplicate": NEUTRAL}))


def processing_time() -> Timeseries:
    info = PanelInfo(
        "Processing time",
        "How long the messages of one submission are in the consumer, from read to stored, including the wait for the "
        "flush. A mark links to the trace.",
        "nothing processed yet",
        ["BronzeDeliveriesLate"],
    )
    return components.percentile_graph(
        graph(
            info,
            SECONDS,
            *components.percentiles(_PROCESSED, exemplars=True),
            components.delivery_limit_line(),
            width=6,
        )
    )


def consumer_errors() -> Timeseries:
    info = PanelInfo(
        "Consumer errors by step",
        "Errors per second, by step and type. `timeout`, `conflict` and `unavailable` are retried. `halted`: a lane "
        "has stopped until an operator acts. `poison`: a dead letter went to quarantine.",
        "no consumer has reported yet",
        ["BronzeConsumerErrors", "BronzeLaneHalted", "BronzePoison"],
    )
    errors = f"bronze_consumer_errors_total{{{CONSUMER}, {SOURCE}}}"
    return components.expected_zero(
        graph(
            info,
            COUNTS_PER_S,
            query(rate(errors), "all"),
            query(f"{rate(errors, 'bronze_step, error_type')} > 0", "{{bronze_step}}: {{error_type}}"),
            width=6,
        )
    )


def queue_depth() -> Timeseries:
    info = PanelInfo(
        "Queue depth",
        "Messages of each lane that are not in the bucket yet. It grows while the bucket is unavailable or the "
        "consumer is too slow. When the stream is full, senders get 503.",
        "no lane has reported yet",
        ["BronzeBacklogLarge", "BronzeBacklogOverdue"],
    )
    panel = graph(info, COUNT, query(_DEPTH, "{{bronze_source}}/{{bronze_lane}}"), width=6)
    return components.by_source(components.expected_zero(panel))


def oldest_age() -> Timeseries:
    info = PanelInfo(
        "Age of the oldest message",
        f"Age of the oldest message that is not in the bucket yet. The limit is flush age + {DURATION_S_MAX:g} s.",
        "no lane has reported yet",
        ["BronzeBacklogOverdue", "BronzeLaneStuck"],
    )
    by_lane = query(_AGE, "{{bronze_source}}/{{bronze_lane}}")
    return components.by_source(graph(info, SECONDS, by_lane, components.delivery_limit_line(), width=6))


def lanes() -> Table:
    info = PanelInfo(
        "Lanes",
        "Each lane: waiting messages, the age of the oldest, and the position, which is the sequence of the last "
        "stored message. If messages wait and the position does not change, the lane is stuck.",
        "no lane has reported yet",
        ["BronzeLaneStuck", "BronzeLaneHalted"],
    )
    return components.columns(
        components.merged(
            components.listing(
                info, components.rows(_DEPTH), components.rows(_AGE), components.rows(_POSITION), width=12
            )
        ),
        {
            "bronze_source": ("Source", []),
            "bronze_lane": ("Lane", [components.width_px(70)]),
            "Value #A": ("Waiting", [components.in_unit(EXACT)]),
            "Value #B": ("Oldest", [components.in_unit(SECONDS)]),
            "Value #C": ("Position", [components.in_unit(EXACT)]),
        },
    )


# --- upload


def uploads() -> Timeseries:
    info = PanelInfo(
        "Uploads",
        "Upload attempts per second, by outcome. Failures are retried. If there are failures and no successes, the "
        "bucket is unavailable, full, or denies access.",
        "no consumer has reported yet",
        ["BronzeUploadsFail", "BronzeUploadAttemptsFail"],
    )
    panel = graph(info, WRITES_PER_S, query(rate(_ATTEMPTS, "bronze_outcome"), "{{bronze_outcome}}"))
    return components.stacked(components.colours(panel, {"success": GOOD, "failure": BAD}))


def upload_latency_by_source() -> Timeseries:
    info = PanelInfo(
        "Upload duration by source, p95",
        "Encode and PutObject of one object. If one source is slower than the others, its objects are larger. If all "
        "are slow, the bucket is slow. A mark links to the trace of an upload.",
        "no upload yet",
        ["BronzeUploadsSlow"],
    )
    by_source = query(quantile(0.95, UPLOADS, "bronze_source"), "{{bronze_source}}", exemplars=True)
    return components.by_source(components.log_axis(graph(info, SECONDS, by_source, limit_line())))


def delivery_latency() -> Timeseries:
    info = PanelInfo(
        "Delivery duration",
        "From accepted to stored, per submission. Most of this time is the wait for the flush.",
        "no delivery yet",
        ["BronzeDeliveriesLate"],
    )
    return components.percentile_graph(
        graph(info, SECONDS, *components.percentiles(DELIVERIES, exemplars=True), components.delivery_limit_line())
    )


def upload_distribution() -> Heatmap:
    info = PanelInfo(
        "Upload duration",
        f"Number of uploads by duration. Uploads above the mark *{DURATION_S_MAX:g} s limit* miss the objective. Each "
        "orange mark is an upload: click it and choose *Show the trace*.",
        "no upload yet",
        ["BronzeUploadsSlow"],
    )
    return components.distribution(info, UPLOADS, width=12)


def object_size() -> Timeseries:
    info = PanelInfo(
        "Object size",
        "Bytes per object. Many small objects slow readers down; a longer flush age gives fewer and larger objects.",
        "no upload yet",
    )
    return _median_and_p95(info, BYTES, "bronze_upload_size_bytes")


def object_records() -> Timeseries:
    info = PanelInfo(
        "Records per object",
        "Rows per object. Few rows despite a high flush age: the source sends few records, which is not a fault.",
        "no upload yet",
    )
    return _median_and_p95(info, COUNT, "bronze_upload_records")


def _median_and_p95(info: PanelInfo, unit: str, name: str) -> Timeseries:
    histogram = f"{name}{{{CONSUMER}, {SOURCE}}}"
    panel = graph(info, unit, *components.percentiles(histogram, (0.5, 0.95)), width=6, height=10)
    return components.percentile_graph(panel, floor=1, base=2 if unit == BYTES else 10)


# --- since the first record


def accepted_in_all() -> Stat:
    info = PanelInfo(
        "Records accepted in all",
        "All records of each source that the queue accepted: of each submission with a 202, of those whose outcome the "
        "client does not know, and late copies. The numbers of this row are exact: they are written down in the queue "
        "and the catalog, and no restart changes them.",
        "no process has reported yet",
        explained_by=("bronze-overview", "Records accepted"),
    )
    return _of_each_source(info, EXACT, f'bronze_ledger_records{{{LEDGER}, {SOURCE}, bronze_outcome="accepted"}}')


def not_done() -> Stat:
    info = PanelInfo(
        "Records that wait",
        "Accepted records of each source that are neither in a row nor in quarantine, nor known to be copies. They "
        "wait in the queue. It returns to 0 when no new records arrive.",
        "no process has reported yet",
        ["BronzeBacklogOverdue"],
        explained_by=("bronze-overview", "Queue depth"),
    )
    value = single_value(promql.waiting(f"{LEDGER}, {SOURCE}"), "{{bronze_source}}")
    return tile(info, EXACT, value, width=4, height=5).decimals(0).orientation(VizOrientation.HORIZONTAL)


def records_in_all() -> Stat:
    info = PanelInfo(
        "Records in rows",
        "All records of each source that are in a row of an object.",
        "no process has reported yet",
        explained_by=("bronze-overview", "Records by outcome"),
    )
    return _of_each_source(info, EXACT, f'bronze_ledger_records{{{LEDGER}, {SOURCE}, bronze_outcome="stored"}}')


def objects_in_all() -> Stat:
    info = PanelInfo(
        "Objects",
        "All objects of each source.",
        "no process has reported yet",
        explained_by=("bronze-overview", "Uploads"),
    )
    return _of_each_source(info, EXACT, f"bronze_ledger_objects{{{LEDGER}, {SOURCE}}}")


def bytes_in_all() -> Stat:
    info = PanelInfo(
        "Bytes of objects",
        "The size of all objects of each source.",
        "no process has reported yet",
        explained_by=("bronze-overview", "Bytes accepted and stored"),
    )
    return _of_each_source(info, BYTES, f"bronze_ledger_bytes{{{LEDGER}, {SOURCE}}}")


def not_in_rows() -> Stat:
    info = PanelInfo(
        "Records in no row",
        "Records that are in quarantine: as dead letters (quarantined) or at the sender's request (rejected). And late "
        "copies of records that are stored already (duplicate).",
        "no process has reported yet",
        ["BronzeRecordsQuarantined"],
        explained_by=("bronze-overview", "Records by outcome"),
    )
    ended = f'bronze_ledger_records{{{LEDGER}, {SOURCE}, bronze_outcome=~"quarantined|rejected|duplicate"}}'
    each = f"max by (bronze_source, bronze_outcome) ({ended})"
    summed = single_value(f"sum by (bronze_outcome) ({each})", "{{bronze_outcome}}")
    return tile(info, EXACT, summed, width=4, height=5).decimals(0).orientation(VizOrientation.HORIZONTAL)


def _of_each_source(info: PanelInfo, unit: str, ledger: str) -> Stat:
    value = single_value(promql.in_ledger(ledger), "{{bronze_source}}")
    return tile(info, unit, value, width=4, height=5).orientation(VizOrientation.HORIZONTAL)
