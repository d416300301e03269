"""Lineage: from an id to the traces, timings and objects of what it names."""

from grafana_foundation_sdk.builders.dashboard import Panel
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.tempo import TempoQuery
from grafana_foundation_sdk.builders.text import Panel as Text

from grafana import house, traces
from grafana.house import Board, Row, Says


def board() -> Board:
    return Board(
        traces.LINEAGE,
        "Lineage",
        "Type a classification_id, a submission_id or a file_path: its traces, timings and objects.",
        [
            Row("Where to look", [guide()]),
            Row(
                "What was found",
                [
                    of_classification(),
                    of_submission(),
                    of_object(),
                ],
            ),
            Row("The latest Bronze writes", [latest_writes()]),
            Row("The trace", [trace()], closed=True),
        ],
        [
            house.typed("classification_id", "classification_id"),
            house.typed("submission_id", "submission_id"),
            house.typed("file_path", "file_path"),
            house.typed("trace_id", "trace_id"),
            traces.api_url(),
        ],
    )


def guide() -> Text:
    return house.note(
        "From an id to its object",
        """\
Type one of the ids above. Each table shows the spans that carry it; a row leads to its trace and to what the \
API says of its object and submission.

The API itself: [the submission](${api_url}/v1/submissions/${submission_id:percentencode}) · \
[the object](${api_url}/v1/objects/${file_path:percentencode}) (404: not known). \
Traces are kept for 15 days; what an object holds is in the object itself, for good.""",
    )


def of_classification() -> Table:
    says = Says(
        "classification_id ${classification_id}",
        "Requests, submissions and uploads of this run, over all its sources. A span names 128 runs at most; the "
        "column `classification_id` of the objects has them all.",
        "type a classification_id above; or it is not in this time range",
    )
    return traces.where(says, "span.bronze.classification_id", "classification_id")


def of_submission() -> Table:
    says = Says(
        "submission_id ${submission_id}",
        "The way of one submission: its request, its message to the queue, its processing, and the object it went to.",
        "type a submission_id above; or it is not in this time range",
    )
    return traces.where(says, "span.bronze.submission_id", "submission_id")


def of_object() -> Table:
    says = Says(
        "file_path ${file_path}",
        "The upload that wrote this object, and the submissions that it holds (their *process* spans).",
        "type a file_path above; or it is not in this time range",
    )
    return traces.where(says, "span.bronze.file_path", "file_path")


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
