"""How panels ask Tempo, and where the rows of its answers lead."""

from collections.abc import Mapping, Sequence

from grafana_foundation_sdk.builders.dashboard import TextBoxVariable
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import DynamicConfigValue

from grafana import house
from grafana.house import EXACT, Says

LINEAGE = "bronze-lineage"

#: What rows say of an upload, and of a span that one came to by an id.
_OF_UPLOAD = "name, span.bronze.outcome, span.bronze.records, span.bronze.bytes, span.bronze.submissions"
_OF_SPAN = "name, resource.service.name, span.bronze.outcome, span.bronze.records, span.bronze.submission_id"

#: The id of the panel that shows one trace.
TRACE_PANEL = 100

#: That panel, as large as the window, for the trace of the row and the same time.
_TRACE = (
    f"/d/{LINEAGE}?${{__url_time_range}}&${{api_url:queryparam}}"
    f"&var-trace_id=${{__data.fields.traceIdHidden}}&viewPanel=panel-{TRACE_PANEL}"
)

Columns = Mapping[str, tuple[str, Sequence[DynamicConfigValue]]]


def api_url() -> TextBoxVariable:
    """Where the person who looks reaches the API."""
    return house.typed("api_url", "API", "http://127.0.0.1:8000")


def uploads(says: Says, at_least: str, first: str) -> Table:
    """Bronze writes of at least this duration."""
    found = f'{{ name =~ "upload ($source)" && duration >= {at_least} }} | select({_OF_UPLOAD}, span.bronze.file_path)'
    columns: Columns = {
        "bronze.bytes": ("Bytes", [house.wide(90), house.of_unit(house.BYTES)]),
        "bronze.submissions": ("Submissions", [house.wide(110), house.of_unit(EXACT)]),
    }
    return _listed(says, found, columns, first)


def where(says: Says, attribute: str, variable: str) -> Table:
    """Spans that carry what is typed above."""
    found = f"{{ {attribute} = ${{{variable}:doublequote}} }} | select({_OF_SPAN}, span.bronze.file_path)"
    columns: Columns = {
        "service.name": ("Service", [house.wide(90)]),
        "bronze.submission_id": (
            "Submission",
            [
                house.wide(300),
                house.leads(("What became of it", "${api_url}/v1/submissions/${__value.raw:percentencode}")),
            ],
        ),
    }
    return _listed(says, found, columns, "Start")


def _listed(says: Says, found: str, columns: Columns, first: str) -> Table:
    """A row leads to its trace, and to what the API knows of its object. What a span does not say is `nil`."""
    panel = house.listing(says, house.spans(found), height=9)
    every: Columns = {
        "traceIdHidden": ("traceIdHidden", [house.hidden()]),  # the link of the next one needs it
        "spanID": ("Trace", [house.wide(160), house.leads(("Show the trace", _TRACE))]),
        "time": ("Start", [house.wide(170)]),
        "name": ("Span", [house.wide(180)]),
        "duration": ("Duration", [house.wide(100), house.of_unit(units.Nanoseconds)]),
        "bronze.outcome": ("Outcome", [house.wide(90)]),
        "bronze.records": ("Records", [house.wide(90), house.of_unit(EXACT)]),
        **columns,
        "bronze.file_path": (
            "Object",
            [house.leads(("What it holds", "${api_url}/v1/objects/${__value.raw:percentencode}"))],
        ),
    }
    return house.sorted_by(house.columns(panel, every), first)
