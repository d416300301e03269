"""How panels ask Tempo, and where the rows of its answers lead."""

from collections.abc import Mapping, Sequence

from grafana_foundation_sdk.builders.dashboard import TextBoxVariable
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import DynamicConfigValue

from grafana import house
from grafana.house import EXACT, Says

LINEAGE = "bronze-lineage"
#: The id of the panel that shows one trace.
TRACE_PANEL = 100

#: What rows say of an upload, and of a span that one came to by an id.
_OF_UPLOAD = "name, span.bronze.outcome, span.bronze.records, span.bronze.bytes, span.bronze.submissions"
_OF_SPAN = "name, resource.service.name, span.bronze.outcome, span.bronze.records, span.bronze.submission_id"

#: That panel, as large as the window, for the trace of the row and the same time.
_TRACE = (
    f"/d/{LINEAGE}?${{__url_time_range}}&${{api_url:queryparam}}"
    f"&var-trace_id=${{__data.fields.traceIdHidden}}&viewPanel=panel-{TRACE_PANEL}"
)

#: The page of the API: what became of an id or a path, wherever it was found.
_CHAIN = "${api_url}/?q="
_CHAIN_OF_CELL = f"{_CHAIN}${{__value.raw:percentencode}}"

Columns = Mapping[str, tuple[str, Sequence[DynamicConfigValue]]]


def api_url() -> TextBoxVariable:
    """Where the person who looks reaches the API."""
    return house.typed("api_url", "API", "http://127.0.0.1:8000")


def uploads(says: Says, at_least: str, first: str) -> Table:
    """Bronze writes of at least this duration."""
    columns: Columns = {
        "bronze.bytes": ("Bytes", [house.wide(90), house.of_unit(house.BYTES)]),
        "bronze.submissions": ("Submissions", [house.wide(110), house.of_unit(EXACT)]),
    }
    return _listed(says, f'name =~ "upload ($source)" && duration >= {at_least}', _OF_UPLOAD, columns, first)


def of_ids(says: Says, variables: Mapping[str, str]) -> Table:
    """Spans with any of these attributes as it is typed above; what is not typed is on no span."""
    columns: Columns = {
        "service.name": ("Service", [house.wide(90)]),
        "bronze.submission_id": (
            "Submission",
            [house.wide(200), house.leads(("What became of it", _CHAIN_OF_CELL))],
        ),
    }
    typed = " || ".join(f"{attribute} = ${{{variable}:doublequote}}" for attribute, variable in variables.items())
    return _listed(says, typed, _OF_SPAN, columns, "Start")


def _listed(says: Says, condition: str, selected: str, columns: Columns, first: str) -> Table:
    """The latest that there are. A row leads to its trace, and to what the page knows of its object.

    Columns are named as Grafana shows them; what a span does not say is Tempo's `nil`.
    """
    found = f"{{ {condition} }} | select({selected}, span.bronze.file_path) with (most_recent=true)"
    every: Columns = {
        "traceIdHidden": ("traceIdHidden", [house.hidden()]),  # the link to the trace needs it
        "Start time": ("Start", [house.wide(190)]),
        "Name": (
            "Span",
            [
                house.wide(180),
                house.leads(("Show the trace", _TRACE), ("Its chain", f"{_CHAIN}${{__data.fields.traceIdHidden}}")),
            ],
        ),
        "Duration": ("Duration", [house.wide(100), house.of_unit(units.Nanoseconds)]),
        "bronze.outcome": ("Outcome", [house.wide(100)]),
        "bronze.records": ("Records", [house.wide(100), house.of_unit(EXACT)]),
        **columns,
        "bronze.file_path": (
            "Object",
            [house.leads(("What it holds, and of whom", _CHAIN_OF_CELL))],
        ),
    }
    panel = house.saying(house.listing(says, house.spans(found), height=10), {"nil": "-"})
    return house.sorted_by(house.columns(panel, every), first)
