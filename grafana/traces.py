"""Tables of spans from Tempo, and the links of their rows."""

from collections.abc import Mapping, Sequence

from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import DynamicConfigValue

from grafana import components
from grafana.components import EXACT, PanelInfo

LINEAGE = "bronze-lineage"
#: The id of the panel that shows one trace.
TRACE_PANEL = 100

#: Fields of the rows for uploads, and for spans found by an id.
_OF_UPLOAD = "name, span.bronze.outcome, span.bronze.records, span.bronze.bytes, span.bronze.submissions"
_OF_SPAN = "name, resource.service.name, span.bronze.outcome, span.bronze.records, span.bronze.submission_id"

#: The URL of that panel in full size, for the trace of a row and the same time range.
_TRACE = (
    f"/d/{LINEAGE}?${{__url_time_range}}&${{api_url:queryparam}}"
    f"&var-trace_id=${{__data.fields.traceIdHidden}}&viewPanel=panel-{TRACE_PANEL}"
)

#: The URL of the API's page with the lineage of an id or a path.
_LINEAGE = "${api_url}/?q="
_LINEAGE_OF_CELL = f"{_LINEAGE}${{__value.raw:percentencode}}"

Columns = Mapping[str, tuple[str, Sequence[DynamicConfigValue]]]


def uploads(info: PanelInfo, at_least: str, first: str) -> Table:
    """Bronze writes of at least this duration."""
    return _uploads(info, f'name =~ "upload ($source)" && name != "upload canary" && duration >= {at_least}', first)


def uploads_of(info: PanelInfo, variable: str) -> Table:
    """Bronze writes with a submission of the trace whose id is typed into a variable. An empty one matches none.

    Tempo shows ids without their leading zeros; the attribute has them.
    """
    return _uploads(info, f'span.bronze.submission_trace_id =~ "0*${{{variable}:regex}}"', "Start")


def _uploads(info: PanelInfo, condition: str, first: str) -> Table:
    columns: Columns = {
        "bronze.bytes": ("Bytes", [components.width_px(90), components.in_unit(components.BYTES)]),
        "bronze.submissions": ("Submissions", [components.width_px(110), components.in_unit(EXACT)]),
    }
    return _listed(info, condition, _OF_UPLOAD, columns, first)


def of_ids(info: PanelInfo, variables: Mapping[str, str]) -> Table:
    """Spans with any of these attributes, whose values are typed into variables. An empty variable matches no span."""
    columns: Columns = {
        "service.name": ("Service", [components.width_px(90)]),
        "bronze.submission_id": (
            "Submission",
            [components.width_px(200), components.links(("Show the lineage", _LINEAGE_OF_CELL))],
        ),
    }
    condition = " || ".join(f"{attribute} = ${{{variable}:doublequote}}" for attribute, variable in variables.items())
    return _listed(info, condition, _OF_SPAN, columns, "Start")


def _listed(info: PanelInfo, condition: str, selected: str, columns: Columns, first: str) -> Table:
    """The latest spans that match. A row links to its trace and to the lineage of its object.

    The keys of `columns` are the names that Grafana gives to Tempo's fields. Tempo shows a missing attribute as `nil`.
    """
    query = f"{{ {condition} }} | select({selected}, span.bronze.file_path) with (most_recent=true)"
    every: Columns = {
        "traceIdHidden": ("traceIdHidden", [components.hidden()]),  # the link to the trace needs it
        "Start time": ("Start", [components.width_px(190)]),
        "Name": (
            "Span",
            [
                components.width_px(180),
                components.links(
                    ("Show the trace", _TRACE), ("Show the lineage", f"{_LINEAGE}${{__data.fields.traceIdHidden}}")
                ),
            ],
        ),
        "Duration": ("Duration", [components.width_px(100), components.in_unit(units.Nanoseconds)]),
        "bronze.outcome": ("Outcome", [components.width_px(100)]),
        "bronze.records": ("Records", [components.width_px(100), components.in_unit(EXACT)]),
        **columns,
        "bronze.file_path": (
            "Object",
            [components.links(("Show the lineage", _LINEAGE_OF_CELL))],
        ),
    }
    panel = components.value_names(components.listing(info, components.spans(query), height=10), {"nil": "-"})
    return components.sorted_by(components.columns(panel, every), first)
