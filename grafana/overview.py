"""Bronze overview: does everything work, and if not, which stage fails."""

from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries

from bronze.objectives import DURATION_S_MAX
from bronze.telemetry import promql
from bronze.telemetry.promql import NO_CANARY, histogram_series
from grafana import components, verdict
from grafana.components import (
    BAD,
    BYTES,
    COUNT,
    COUNTS_PER_S,
    EXACT,
    GOOD,
    NEUTRAL,
    RECORDS_PER_S,
    SECONDS,
    Board,
    PanelInfo,
    Row,
    graph,
    limit_line,
    no_answer,
    not_ended,
    query,
    single_value,
    tile,
)
from grafana.promql import (
    API,
    CONSUMER,
    DELIVERIES,
    DESTINATION,
    INTERVAL,
    LEDGER,
    OBJECTIVE_S,
    RANGE,
    REQUESTS,
    SOURCE,
    THRESHOLDS,
    UNFINISHED_DELIVERY_S,
    UNFINISHED_UPLOAD_S,
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
    reported,
    since,
)

_LANE = "bronze_source, bronze_lane"
_ATTEMPTS = f"bronze_uploads_total{{{CONSUMER}, {SOURCE}}}"
_SUCCEEDED = f'bronze_uploads_total{{{CONSUMER}, {SOURCE}, bronze_outcome="success"}}'
_RECORDS = f"bronze_records_total{{{CONSUMER}, {SOURCE}, bronze_outcome="
_ACCEPTED = f'bronze_records_total{{{API}, {SOURCE}, bronze_outcome="accepted"}}'
_REJECTED = f'bronze_records_total{{{API}, {NO_CANARY}, bronze_outcome="rejected"}}'
_INVALID = f"bronze_records_invalid_total{{{API}, {NO_CANARY}}}"
_REFUSED_REQUESTS = f"bronze_requests_refused_total{{{API}}}"
_ENDED = f'{_RECORDS}~"stored|quarantined|duplicate"}}'
_PROCESSED = f"messaging_process_duration_seconds{{{CONSUMER}, {DESTINATION}}}"
#: Each API reports all servers of the queue, so the variables do not choose among them.
_ANY_API = 'job="bronze/api"'
_QUEUE_REPLICAS = "bronze_queue_replicas"
_QUEUE_LEADERLESS = f"bronze_queue_leaderless{{{_ANY_API}}}"
_DEPTH = reported(f"bronze_queue_depth{{{CONSUMER}, {SOURCE}}}", _LANE)
_AGE = reported(f"bronze_queue_oldest_age_seconds{{{CONSUMER}, {SOURCE}}}", _LANE)
_POSITION = f"max by ({_LANE}) (bronze_lane_position{{{CONSUMER}, {SOURCE}}})"

_TO_SOURCE = components.links(components.source_link("__value.raw"), components.data_link("__value.raw"))

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
                    verdict.urgent_alerts(),
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
                ],
            ),
            Row(
                "Processing",
                [
                    records_out(),
                    processing_time(),
                    consumer_errors(),
                    queue_depth(),
                    oldest_age(),
                ],
            ),
            Row(
                "Upload",
                [
                    upload_latency_by_source(),
                    delivery_latency(),
                ],
            ),
            Row(
                "Queue servers",
                [
                    leaderless(),
                    replicas_behind(),
                    streams_led(),
                    catalog_entries(),
                    catalog_size(),
                ],
            ),
            Row(
                "Since the first record",
                [
                    ledger(),
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
        "Mean upload",
        f"Mean duration of one Bronze write (encode and PutObject) in the range. The limit is {DURATION_S_MAX:g} s. "
        "*not ended yet*: an upload that is over it at the end of the range.",
        "no upload",
        ["BronzeUploadsSlow"],
        explained_by=("bronze-overview", "Mean upload duration by source"),
    )
    targets = single_value(mean_counted(UPLOADS), "ended"), single_value(UNFINISHED_UPLOAD_S, components.NOT_ENDED)
    return tile(info, SECONDS, *targets).thresholds(components.limit_thresholds())


def mean_upload_by_source() -> Timeseries:
    info = PanelInfo(
        "Mean upload duration by source",
        f"Mean duration of a Bronze write (encode and PutObject) over time, and p95 of all. The limit is "
        f"{DURATION_S_MAX:g} s. A mark links to the trace of an upload. Attempts that failed are counted beside it. "
        "*not ended yet*: how long the upload that is due has taken, if that is over the limit.",
        "no upload yet",
        ["BronzeUploadsSlow"],
    )
    by_source = query(mean(UPLOADS, "bronze_source"), "{{bronze_source}}")
    p95 = query(quantile(0.95, UPLOADS), "p95 of all", exemplars=True)
    panel = graph(info, SECONDS, by_source, p95, not_ended(UNFINISHED_UPLOAD_S), limit_line(), width=12)
    panel = components.log_axis(panel)
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
        "Requests that the API answered in the range, with any status: submissions, and all others, which are look-ups "
        "and pages. Probes, scrapes and the canary's submissions are not counted.",
        "no request yet",
        ["BronzeRequestsSlow", "BronzeRequestsFail"],
        explained_by=("bronze-overview", "Requests by status"),
    )
    others = f'http_server_request_duration_seconds_count{{{API}, http_route!~"/v1/ingest/.+"}}'
    return tile(
        info,
        EXACT,
        single_value(or_zero(counted(histogram_series(REQUESTS, "count"))), "submissions"),
        single_value(or_zero(counted(others)), "others"),
    ).decimals(0)


def failed_uploads() -> Stat:
    info = PanelInfo(
        "Failed uploads",
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
        f"95 % of the uploads in the range took at most this long. Red from {DURATION_S_MAX:g} s on. *not ended yet*: "
        "an upload that is over it at the end of the range.",
        "no upload",
        ["BronzeUploadsSlow"],
        explained_by=("bronze-latency", "Upload duration"),
    )
    p95 = single_value(quantile_counted(0.95, UPLOADS), "ended")
    panel = tile(info, SECONDS, p95, single_value(UNFINISHED_UPLOAD_S, components.NOT_ENDED))
    return panel.thresholds(components.limit_thresholds())


def p95_delivery() -> Stat:
    info = PanelInfo(
        "p95 delivery",
        "95 % of the submissions in the range took at most this long from accepted to stored. Red from the objective "
        f"on, which is flush age + {DURATION_S_MAX:g} s. *not ended yet*: a message that is older at the end of the "
        "range.",
        "no delivery",
        ["BronzeDeliveriesLate"],
        explained_by=("bronze-latency", "Time by stage, p95"),
    )
    p95 = single_value(quantile_counted(0.95, DELIVERIES), "ended")
    unfinished = single_value(UNFINISHED_DELIVERY_S, components.NOT_ENDED)
    panel = tile(info, SECONDS, p95, single_value(OBJECTIVE_S, "limit"), unfinished)
    return components.red_from_query(panel, "B")


def missing() -> Stat:
    info = PanelInfo(
        "Missing data",
        "Objects that are in the catalog, but not in the bucket, or not with their size; and messages that are missing "
        "in the queue. Both are proven, not calculated from counters. If it is not 0, act now: see the runbook.",
        "no consumer has reported yet",
        ["BronzeRecordsMissing"],
        explained_by=("bronze-overview", "Sources"),
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
        "Each source now: whether its uploads are well, its records that wait, the age of its oldest message, the "
        "time since its last upload, and what is missing. A source without new records may have any time since its "
        "last upload. It is that of all instances, whichever is selected.",
        "no source has reported yet",
        ["BronzeUploadsMissing", "BronzeLaneStuck", "BronzeRecordsMissing"],
    )
    judged = f"max by (bronze_source) (bronze:source_verdict{{{SOURCE}}})"
    of_source = f'job="bronze/consumer", {SOURCE}'  # of all instances, as verdict and ledger
    # the last value of a consumer that reports no more says nothing about now
    age = f"bronze_queue_oldest_age_seconds{{{of_source}}}"
    reported_s = f"time() - {THRESHOLDS.telemetry_age_s_max:g}"
    # also while no consumer runs
    last = f"max by (bronze_source) (max_over_time(bronze_upload_last_success_time_seconds{{{of_source}}}[{RANGE}]))"
    panel = components.listing(
        info,
        components.rows(judged),
        components.rows(promql.waiting(f"{LEDGER}, {SOURCE}")),
        components.rows(f"max by (bronze_source) ({age} and timestamp({age}) > {reported_s})"),
        components.rows(since(last)),
        components.rows(promql.missing(of_source, "bronze_source")),
        height=7,
    )
    return components.columns(
        components.merged(panel),
        {
            "bronze_source": ("Source", [_TO_SOURCE]),
            "Value #A": ("Verdict", [components.width_px(300), components.left(), *verdict.as_cells()]),
            "Value #B": ("Records that wait", [components.in_unit(EXACT)]),
            "Value #C": ("Oldest message", [components.in_unit(SECONDS), components.absent("not known")]),
            "Value #D": (
                "Since the last upload",
                [components.in_unit(SECONDS), components.absent("none seen")],
            ),
            "Value #E": ("Missing", [components.in_unit(EXACT)]),
        },
    )


# --- ingestion


def requests_by_status() -> Timeseries:
    info = PanelInfo(
        "Requests by status",
        "How many submissions were answered in each interval of the graph, by status. 4xx: the sender has to correct "
        "them (see *Refused by reason*); 429: it sends faster than it may. 503: the queue is full or does not answer, "
        "and the sender retries. Other 5xx: "
        "a bug in Bronze.",
        "no submission yet",
        ["BronzeRequestsSlow", "BronzeRequestsFail"],
    )
    by_status = counted_per_interval(histogram_series(REQUESTS, "count"), "http_response_status_code")
    answered = query(by_status, "{{http_response_status_code}}")
    return components.colours(components.bars(graph(info, COUNT, answered, no_answer("api"), width=6)), _BY_STATUS)


def request_latency() -> Timeseries:
    info = PanelInfo(
        "Request latency",
        "From the first byte of a submission to its 202, which follows the queue's durable ack. Large bodies take "
        "longer. A mark links to the trace of a request.",
        "no submission yet",
        ["BronzeRequestsSlow"],
    )
    return components.percentile_graph(
        graph(info, SECONDS, *components.percentiles(REQUESTS, exemplars=True), limit_line(), width=6)
    )


def refused() -> Timeseries:
    info = PanelInfo(
        "Refused by reason",
        "Refused records per second, by the `type` of the problem document in the response. Nothing of them is stored. "
        "*quarantined*: rejected records that were accepted for quarantine, because their senders asked for that. "
        "*request*: requests per second of which no record was read, such as those without a valid key or with more "
        "requests than a principal may send.",
        "no submission yet",
    )
    return components.expected_zero(
        graph(
            info,
            RECORDS_PER_S,
            query(rate(_REJECTED), "all"),
            query(f"{rate(_REJECTED, 'error_type')} > 0", "{{error_type}}"),
            query(f"{rate(_INVALID, 'error_type')} > 0", "quarantined: {{error_type}}"),
            query(f"{rate(_REFUSED_REQUESTS, 'error_type')} > 0", "request: {{error_type}}"),
            width=6,
        )
    )


def records_in() -> Timeseries:
    info = PanelInfo(
        "Records accepted",
        "Accepted records per second, by source. It falls to 0 when senders stop or their submissions are refused.",
        "no source has reported yet",
    )
    panel = graph(info, RECORDS_PER_S, query(rate(_ACCEPTED, "bronze_source"), "{{bronze_source}}"), width=6)
    return components.by_source(components.stacked(panel))


# --- processing


def records_out() -> Timeseries:
    info = PanelInfo(
        "Records by outcome",
        "stored: in an object. quarantined: stored byte for byte under `quarantine/`, because the sender asked for "
        "it or the message could not be decoded. duplicate: late copies of stored submissions, which an object only "
        "lists.",
        "no consumer has reported yet",
        ["BronzeRecordsQuarantined", "BronzePoison"],
    )
    panel = graph(info, RECORDS_PER_S, query(rate(_ENDED, "bronze_outcome"), "{{bronze_outcome}}"))
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
    panel = components.expected_zero(
        graph(
            info,
            COUNTS_PER_S,
            query(rate(errors), "all"),
            query(f"{rate(errors, 'bronze_step, error_type')} > 0", "{{bronze_step}}: {{error_type}}"),
        )
    )
    return components.shades(panel, BAD)


def queue_depth() -> Timeseries:
    info = PanelInfo(
        "Queue depth",
        "Messages of each lane that are not in the bucket yet. It grows while the bucket is unavailable or the "
        "consumer is too slow. When the stream is full, senders get 503.",
        "no lane has reported yet",
        ["BronzeBacklogLarge", "BronzeBacklogOverdue"],
    )
    panel = graph(info, COUNT, query(_DEPTH, "{{bronze_source}}/{{bronze_lane}}"), width=12)
    return components.by_source(components.expected_zero(panel))


def oldest_age() -> Timeseries:
    info = PanelInfo(
        "Age of the oldest message",
        f"Age of the oldest message that is not in the bucket yet. The limit is flush age + {DURATION_S_MAX:g} s. "
        "While no consumer answers, nobody knows it.",
        "no lane has reported yet",
        ["BronzeBacklogOverdue", "BronzeLaneStuck"],
    )
    by_lane = query(_AGE, "{{bronze_source}}/{{bronze_lane}}")
    return components.by_source(
        graph(info, SECONDS, by_lane, components.delivery_limit_line(), no_answer("consumer"), width=12)
    )


# --- queue servers


def leaderless() -> Stat:
    info = PanelInfo(
        "Streams without a leader",
        "Streams of a queue with several servers that none of them leads: nothing can be written to them. It is 0 "
        "but for seconds after a server is lost.",
        "no API has reported yet",
        ["BronzeQueueLeaderless"],
        explained_by=("bronze-overview", "Streams by leader"),
    )
    panel = tile(info, COUNT, single_value(f"max({_QUEUE_LEADERLESS})"), width=6, height=9)
    return panel.thresholds(components.zero_is_good(bad=1))


def replicas_behind() -> Timeseries:
    info = PanelInfo(
        "Replicas behind",
        "Replicas of streams that are not up to date, by server. *away*: the leader does not hear of it; *lagging*: it "
        "catches up, for example after a restart. A queue with one server has none.",
        "no API has reported yet",
        ["BronzeQueueReplicaBehind"],
    )
    labels = "bronze_cluster_server, bronze_replica_state"
    behind = f'max by ({labels}) ({_QUEUE_REPLICAS}{{{_ANY_API}, bronze_replica_state=~"away|lagging"}})'
    panel = graph(info, COUNT, query(behind, "{{bronze_cluster_server}}: {{bronze_replica_state}}"), width=9)
    return components.expected_zero(panel)


def streams_led() -> Timeseries:
    info = PanelInfo(
        "Streams by leader",
        "How many streams (lanes, catalog, keys) each server of the queue leads. After a server is lost, the others "
        "take over its streams within seconds.",
        "no API has reported yet",
        ["BronzeQueueLeaderless"],
    )
    led = f'max by (bronze_cluster_server) ({_QUEUE_REPLICAS}{{{_ANY_API}, bronze_replica_state="leader"}})'
    return components.stacked(graph(info, COUNT, query(led, "{{bronze_cluster_server}}"), width=9))


def catalog_entries() -> Timeseries:
    info = PanelInfo(
        "Entries of the catalog",
        "One per object, until `bronze retain` removes it. The dashed line is the most that there should be "
        "(`BRONZE_CATALOG_ENTRIES_MAX`): an API that has to read them all finds old objects only minutes after its "
        "start. Above it, everything goes on.",
        "no API has reported yet",
        ["BronzeCatalogLarge"],
    )
    entries = query(f"max(bronze_catalog_entries{{{_ANY_API}}})", "entries")
    limit = limit_line(f"min(bronze_catalog_limit{{{_ANY_API}}})", "limit")
    return graph(info, COUNT, entries, limit, width=12)


def catalog_size() -> Timeseries:
    info = PanelInfo(
        "Size of the catalog",
        "Bytes of the catalog in the queue, on the disk of each of its servers: entries, removals, and the identity of "
        "each submission, which is kept for a day, or for 30 days with an `Idempotency-Key`.",
        "no API has reported yet",
        ["BronzeCatalogLarge"],
    )
    return graph(info, BYTES, query(f"max(bronze_catalog_size_bytes{{{_ANY_API}}})", "bytes"), width=12)


# --- upload


def upload_latency_by_source() -> Timeseries:
    info = PanelInfo(
        "Upload duration by source, p95",
        "Encode and PutObject of one object. If one source is slower than the others, its objects are larger. If all "
        "are slow, the bucket is slow. A mark links to the trace of an upload.",
        "no upload yet",
        ["BronzeUploadsSlow"],
    )
    by_source = query(quantile(0.95, UPLOADS, "bronze_source"), "{{bronze_source}}", exemplars=True)
    panel = graph(info, SECONDS, by_source, not_ended(UNFINISHED_UPLOAD_S), limit_line(), width=12)
    return components.by_source(components.log_axis(panel))


def delivery_latency() -> Timeseries:
    info = PanelInfo(
        "Delivery duration",
        "From accepted to stored, per submission. Most of this time is the wait for the flush. *not ended yet*: the "
        "oldest message that is not in the bucket, if it is late.",
        "no delivery yet",
        ["BronzeDeliveriesLate"],
    )
    targets = [*components.percentiles(DELIVERIES, exemplars=True), not_ended(UNFINISHED_DELIVERY_S)]
    return components.percentile_graph(graph(info, SECONDS, *targets, components.delivery_limit_line(), width=12))


# --- since the first record


def ledger() -> Table:
    info = PanelInfo(
        "Records and objects of each source",
        "All that each source ever got. Accepted: by the queue, also those whose outcome the client does not know, and "
        "late copies. In no row: in quarantine, or a late copy of a stored record. What is left waits. The numbers are "
        "exact: they are written down in the queue and the catalog, and no restart changes them. An object that was "
        "removed later still counts.",
        "no process has reported yet",
        ["BronzeRecordsQuarantined"],
    )
    records = f"bronze_ledger_records{{{LEDGER}, {SOURCE}, bronze_outcome="
    no_row = f'max by (bronze_source, bronze_outcome) ({records}~"quarantined|rejected|duplicate"}})'
    numbers = {
        "Accepted in all": promql.in_ledger(f'{records}"accepted"}}'),
        "Records in rows": promql.in_ledger(f'{records}"stored"}}'),
        "Records in no row": f"sum by (bronze_source) ({no_row})",
        "Records that wait": promql.waiting(f"{LEDGER}, {SOURCE}"),
        "Objects": promql.in_ledger(f"bronze_ledger_objects{{{LEDGER}, {SOURCE}}}"),
        "Bytes of objects": promql.in_ledger(f"bronze_ledger_bytes{{{LEDGER}, {SOURCE}}}"),
    }
    panel = components.merged(components.listing(info, *map(components.rows, numbers.values()), height=7))
    units = {heading: [components.in_unit(BYTES if "Bytes" in heading else EXACT)] for heading in numbers}
    fields = {f"Value #{ref_id}": (heading, units[heading]) for ref_id, heading in zip("ABCDEF", numbers, strict=True)}
    return components.columns(panel, {"bronze_source": ("Source", [_TO_SOURCE]), **fields})
