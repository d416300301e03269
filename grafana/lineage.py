"""Lineage: from an id to its traces, timings and objects."""

from grafana_foundation_sdk.builders.dashboard import Panel
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.tempo import TempoQuery
from grafana_foundation_sdk.builders.text import Panel as Text
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries

from grafana import components, traces
from grafana.components import COUNTS_PER_S, SECONDS, Board, PanelInfo, Row, graph, limit_line, query
from grafana.promql import THRESHOLDS, rate

_NOTIFY = 'job="bronze/notify"'
_NO_RECEIVERS = "bronze notify has not reported yet: it runs if it has a receiver (docs/events.md)"
_IDS = ("classification_id", "submission_id", "file_path")


def board() -> Board:
    return Board(
        traces.LINEAGE,
        "Lineage",
        "Type a classification_id, a submission_id, a file_path or a trace_id: its traces, timings and objects.",
        [
            Row("Search", [guide(), results(), writes_of_trace()]),
            Row("Latest Bronze writes", [latest_writes()]),
            Row("Lineage for others", [receivers(), attempts()]),
            Row("Trace", [trace()], closed=True),
        ],
        [
            *(components.text_variable(name, name) for name in (*_IDS, "trace_id")),
        ],
    )


def guide() -> Text:
    return components.note(
        "From an id to its object",
        """\
Type one of the ids above. The next table shows the spans with this id; for a trace_id, the one below it shows the \
Bronze writes that stored the trace's submissions. Each row links to its trace and its lineage: \
submissions, objects, rows and timings, and the snapshot of the table that made each object queryable.

The lineage without traces, as long as the data is in the bucket: [any id or path](${api_url}/), \
[this classification](${api_url}/?q=${classification_id:percentencode}), \
[this submission](${api_url}/?q=${submission_id:percentencode}), \
[this object](${api_url}/?q=${file_path:percentencode}), [this trace](${api_url}/?q=${trace_id:percentencode}).

The API itself: [the submission](${api_url}/v1/submissions/${submission_id:percentencode}) · \
[the object](${api_url}/v1/objects/${file_path:percentencode}) (404: unknown). \
Traces are kept for 15 days. The lineage of an object is recorded in the object itself.""",
    )


def results() -> Table:
    info = PanelInfo(
        "Spans of the ids above",
        "Every span with one of the ids, newest first. For a submission: its request, messages and processing. For "
        "an object: its upload and the submissions in it. For a classification: all of these, across sources. A "
        "span names at most 128 classifications; the column `classification_id` of the objects has all of them.",
        "type one of the first three ids above; or no span with this id is in the time range",
    )
    return traces.of_ids(info, {f"span.bronze.{name}": name for name in _IDS}).height(6)


def writes_of_trace() -> Table:
    info = PanelInfo(
        "Bronze writes of trace ${trace_id}",
        "The uploads that stored a submission of this trace, whichever trace they are in: an upload is in the trace of "
        "its oldest submission, or in its own. An upload names the traces of at most 128 submissions.",
        "type a trace_id above; or its submissions were not stored in the time range",
    )
    return traces.uploads_of(info, "trace_id").height(6)


def trace() -> Panel:
    info = PanelInfo(
        "Trace ${trace_id}",
        "The trace of the clicked row: publisher, API, queue, consumer, upload. The upload span has the path of the "
        "object.",
        "click a row's *Span*, or type a trace_id above",
    )
    query = TempoQuery().query_type("traceql").query("${trace_id}")
    return components.plugin("traces", info, query, height=20).id(traces.TRACE_PANEL)


def latest_writes() -> Table:
    info = PanelInfo(
        "Latest Bronze writes",
        "Uploads in the range. Start here if you have no id.",
        "no write in this range",
    )
    return traces.uploads(info, "1ns", first="Start")


def receivers() -> Timeseries:
    info = PanelInfo(
        "Lag of the receivers",
        "For how long each receiver of `bronze notify` has not had all events of the feed. Without new objects it "
        "stays below 20 s.",
        _NO_RECEIVERS,
        ["BronzeNotifyLags"],
    )
    lag = f"max by (bronze_receiver) (bronze_notify_lag_seconds{{{_NOTIFY}}})"
    limit = limit_line(f"vector({THRESHOLDS.notify_lag_s_max:g})", f"limit: {THRESHOLDS.notify_lag_s_max:g} s")
    return graph(info, SECONDS, query(lag, "{{bronze_receiver}}"), limit, width=12)


def attempts() -> Timeseries:
    info = PanelInfo(
        "Events sent",
        "Attempts per second to send an event to a receiver. A failed one is repeated until the receiver has taken the "
        "event; after *halted*, nothing is sent until a restart.",
        _NO_RECEIVERS,
        ["BronzeNotifyLags"],
    )
    sent = rate(f'bronze_notify_events_total{{{_NOTIFY}, bronze_outcome="success"}}', "bronze_receiver")
    failures = f'bronze_notify_events_total{{{_NOTIFY}, bronze_outcome="failure"}}'
    failed = rate(failures, "bronze_receiver, error_type")
    return graph(
        info,
        COUNTS_PER_S,
        query(sent, "{{bronze_receiver}}"),
        query(f"{failed} > 0", "{{bronze_receiver}}: {{error_type}}"),
        width=12,
    )
