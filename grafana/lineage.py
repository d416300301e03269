"""Lineage: from an id to the traces, timings and objects of what it names."""

from grafana_foundation_sdk.builders.dashboard import Panel
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.tempo import TempoQuery
from grafana_foundation_sdk.builders.text import Panel as Text

from grafana import house, traces
from grafana.house import Board, Row, Says

_IDS = ("classification_id", "submission_id", "file_path")


def board() -> Board:
    return Board(
        traces.LINEAGE,
        "Lineage",
        "Type a classification_id, a submission_id or a file_path: its traces, timings and objects.",
        [
            Row("Where to look", [guide()]),
            Row("What was found", [found()]),
            Row("The latest Bronze writes", [latest_writes()]),
            Row("The trace", [trace()], closed=True),
        ],
        [
            *(house.typed(name, name) for name in (*_IDS, "trace_id")),
            traces.api_url(),
        ],
    )


def guide() -> Text:
    return house.note(
        "From an id to its object",
        """\
Type one of the ids above: the next table shows the spans that carry it. A row leads to its trace, and to its chain: \
submissions, objects, rows and timings.

The same without traces, for as long as the data is there: [any id or path](${api_url}/), \
[this run](${api_url}/?q=${classification_id:percentencode}), \
[this submission](${api_url}/?q=${submission_id:percentencode}), \
[this object](${api_url}/?q=${file_path:percentencode}), [this trace](${api_url}/?q=${trace_id:percentencode}).

The API itself: [the submission](${api_url}/v1/submissions/${submission_id:percentencode}) · \
[the object](${api_url}/v1/objects/${file_path:percentencode}) (404: not known). \
Traces are kept for 15 days; what an object holds is in the object itself, for good.""",
    )


def found() -> Table:
    says = Says(
        "Spans of the ids above",
        "Every span that carries one of the ids, newest first. Of a submission: its request, its message, its "
        "processing. Of an object: the upload that wrote it and the submissions that it holds. Of a run: all of that, "
        "over all its sources; a span names 128 runs at most, the column `classification_id` of the objects has all.",
        "type an id above; or nothing of it is in this time range",
    )
    return traces.of_ids(says, {f"span.bronze.{name}": name for name in _IDS})


def trace() -> Panel:
    says = Says(
        "Trace ${trace_id}",
        "Publisher, API, queue, consumer, upload, of the row that was clicked. The span of the upload carries the path "
        "of the object.",
        "click a row's trace, or type a trace_id above",
    )
    asked = TempoQuery().query_type("traceql").query("${trace_id}")
    return house.plugin("traces", says, asked, height=20).id(traces.TRACE_PANEL)


def latest_writes() -> Table:
    says = Says(
        "Latest Bronze writes",
        "Uploads of the range: where to begin when there is no id yet.",
        "no write in this range",
    )
    return traces.uploads(says, "1ns", first="Start")
