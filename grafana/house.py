"""How a dashboard of ours looks: defaults of each kind of panel, what colours mean, where a panel stands and leads."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from string import ascii_uppercase
from typing import Any, TypeAlias, TypeVar

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, table, tempo, text, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    GraphDrawStyle,
    GraphGradientMode,
    HeatmapCellLayout,
    LegendDisplayMode,
    LegendPlacement,
    LineInterpolation,
    SortOrder,
    StackingMode,
    TableCellHeight,
    TimeZoneBrowser,
    TooltipDisplayMode,
    VisibilityMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.tempo import SearchTableType

from grafana.promql import LINE_S, OBJECTIVE_S, RANGE, STEP, part, quantile, rate
from prometheus.rules import RUNBOOK_URL

TAG = "bronze"

#: The datasources that are provisioned; a dashboard lets one choose others.
PROMETHEUS = model.DataSourceRef(type_val="prometheus", uid="${prometheus}")
TEMPO = model.DataSourceRef(type_val="tempo", uid="${tempo}")

#: Units. EXACT shows every digit; what Grafana calls writes are our uploads.
SECONDS, BYTES, BYTES_PER_S = units.Seconds, units.BytesIEC, units.BytesPerSecondIEC
COUNT, EXACT, SHARE, TIMES = units.Short, units.LocaleFormat, units.PercentUnit, "suffix:x"
REQUESTS_PER_S, RECORDS_PER_S, MESSAGES_PER_S, WRITES_PER_S, COUNTS_PER_S = "reqps", "recps", "mps", "wps", "cps"

#: What colours say, in light and in dark. Blue judges nothing.
GOOD, FAIR, BAD, NEUTRAL = "green", "yellow", "red", "blue"

Target: TypeAlias = prometheus.Dataquery | tempo.TempoQuery
Panel: TypeAlias = timeseries.Panel | stat.Panel | table.Panel | heatmap.Panel | text.Panel | build.Panel
_Said = TypeVar("_Said", stat.Panel, table.Panel)
_Kind = TypeVar("_Kind", timeseries.Panel, stat.Panel, table.Panel, heatmap.Panel, build.Panel)

#: What each of our processes that stay counts, from its first export on.
_PROCESSES = 'bronze_records_total{job=~"bronze/(api|consumer)"}'


@dataclass(frozen=True)
class Says:
    """What a panel is for: `means` says what it shows and what to do, `nothing` what it is when there is no data.

    `alerts` are those that watch the same; their entries in the runbook are linked.
    """

    title: str
    means: str
    nothing: str
    alerts: Sequence[str] = ()

    @property
    def description(self) -> str:
        links = ", ".join(f"[{name}]({RUNBOOK_URL}#{name.lower()})" for name in self.alerts)
        return f"{self.means}\n\nAlerts: {links}" if links else self.means


# --- queries


def query(expr: str, legend: str = "", *, exemplars: bool = False) -> prometheus.Dataquery:
    """A graph's. With exemplars it must be of a histogram, and each point of them leads to a trace."""
    return prometheus.Dataquery().expr(expr).legend_format(legend).exemplar(exemplars).range()


def number(expr: str, legend: str = "") -> prometheus.Dataquery:
    """One value for the range."""
    return prometheus.Dataquery().expr(expr).legend_format(legend).instant()


def rows(expr: str) -> prometheus.Dataquery:
    """A table's: a row for each series, its labels are columns."""
    return prometheus.Dataquery().expr(expr).instant().format(PromQueryFormat.TABLE)


def spans(traceql: str) -> tempo.TempoQuery:
    return tempo.TempoQuery().query_type("traceql").query(traceql).limit(200).spss(20).table_type(SearchTableType.SPANS)


def line(expr: str = f"vector({LINE_S:g})", name: str = f"line: {LINE_S:g} s") -> prometheus.Dataquery:
    """What a graph is judged by, as a series of its own; `graph` draws it dashed."""
    return query(expr, name)


def objective() -> prometheus.Dataquery:
    """What deliveries are judged by."""
    return line(OBJECTIVE_S, f"line: flush age + {LINE_S:g} s")


def percentiles(
    histogram: str, which: Sequence[float] = (0.5, 0.95, 0.99), *, exemplars: bool = False
) -> list[prometheus.Dataquery]:
    """The highest brings the exemplars: they are those of the histogram, whatever is asked of it."""
    return [query(quantile(q, histogram), f"p{q * 100:g}", exemplars=exemplars and q == which[-1]) for q in which]


# --- kinds of panels


def graph(says: Says, unit: str, *targets: Target, width: int = 8, height: int = 9) -> timeseries.Panel:
    panel = timeseries.Panel().unit(unit).min(0).line_width(1).fill_opacity(8).gradient_mode(GraphGradientMode.OPACITY)
    panel = panel.line_interpolation(LineInterpolation.LINEAR).show_points(VisibilityMode.NEVER)
    panel = panel.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    panel = panel.legend(_legend(LegendDisplayMode.LIST))
    panel = panel.override_by_regexp(
        "/^line:/",
        [
            _fixed(BAD),
            _set("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
            _set("custom.fillOpacity", 0),
            _set("custom.stacking", {"mode": "none"}),
        ],
    )
    return _placed(panel, says, targets, width, height)


def percentile_graph(panel: timeseries.Panel) -> timeseries.Panel:
    """Percentiles, with the last and the largest value of each."""
    panel = panel.legend(_legend(LegendDisplayMode.TABLE).calcs(["lastNotNull", "max"]))
    return colours(panel, {"^p50": "light-blue", "^p95": "blue", "^p99": "purple"})


def rare(panel: timeseries.Panel) -> timeseries.Panel:
    """Of what should be 0: the axis does not invent hundreds where there is nothing."""
    return panel.axis_soft_max(1)


def stacked(panel: timeseries.Panel) -> timeseries.Panel:
    """What adds up: as areas on each other."""
    return panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(40)


def tile(says: Says, unit: str, *targets: Target, width: int = 6, height: int = 3) -> stat.Panel:
    """A number to be read from afar."""
    panel = stat.Panel().unit(unit).graph_mode(BigValueGraphMode.NONE).color_mode(BigValueColorMode.VALUE)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    panel = panel.orientation(VizOrientation.VERTICAL).text_mode(BigValueTextMode.AUTO).thresholds(steps(NEUTRAL))
    return _placed(panel, says, targets, width, height)


def listing(says: Says, *targets: Target, width: int = 24, height: int = 9) -> table.Panel:
    panel = table.Panel().cell_height(TableCellHeight.SM).min_width(60).unit(COUNT)
    return _placed(panel, says, targets, width, height)


def distribution(says: Says, uploads: str, width: int) -> heatmap.Panel:
    """How many uploads of which duration, over time, with a mark for each exemplar; the bound at the line is named."""
    panel = heatmap.Panel().calculate(False).cell_gap(1).show_value(VisibilityMode.NEVER)
    panel = panel.color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(64))
    panel = panel.y_axis(heatmap.YAxisConfig().unit(SECONDS)).cell_values(heatmap.CellValues().unit(WRITES_PER_S))
    panel = panel.filter_values(heatmap.FilterValueRange().le(1e-9)).rows_frame(
        heatmap.RowsHeatmapOptions().layout(HeatmapCellLayout.AUTO)
    )
    panel = (
        panel.mode(TooltipDisplayMode.SINGLE)
        .show_y_histogram()
        .show_color_scale(True)
        .exemplars_color("orange")
        .hide_legend()
    )
    panel = panel.with_transformation(
        model.DataTransformerConfig(
            "renameByRegex", options={"regex": f"^{LINE_S:g}$", "renamePattern": f"{LINE_S:g} s line"}
        )
    )
    # it has no words for no data: where there is none in the whole range, it shows the line alone
    there = f"count_over_time({part(uploads, 'bucket')}[{RANGE}] @ end())"
    bound = f'label_replace(vector(0), "le", "{LINE_S:g}", "", "") unless on () sum({there})'
    buckets = f"{rate(part(uploads, 'bucket'), 'le')} or on () ({bound})"
    target = query(buckets, "{{le}}", exemplars=True).format(PromQueryFormat.HEATMAP)
    return _placed(panel.unit(SECONDS), says, [target], width, height=10)


def note(title: str, markdown: str, width: int = 24, height: int = 4) -> text.Panel:
    return text.Panel().title(title).content(markdown).span(width).height(height)


def plugin(kind: str, says: Says, target: Target, width: int = 24, height: int = 12) -> build.Panel:
    """A panel that the SDK has no words for, nor itself for what there is without data: it stands in a closed row."""
    return _placed(build.Panel().type(kind).options({}), says, [target], width, height)


def _legend(mode: LegendDisplayMode) -> common.VizLegendOptions:
    return common.VizLegendOptions().show_legend(True).display_mode(mode).placement(LegendPlacement.BOTTOM)


def _placed(panel: _Kind, says: Says, targets: Sequence[Target], width: int, height: int) -> _Kind:
    panel = panel.title(says.title).description(says.description).no_value(says.nothing).span(width).height(height)
    panel = panel.datasource(TEMPO if isinstance(targets[0], tempo.TempoQuery) else PROMETHEUS)
    for ref_id, target in zip(ascii_uppercase, targets, strict=False):
        panel = panel.with_target(target.ref_id(ref_id))
    return panel


# --- what values mean


def steps(base: str, *above: tuple[float, str]) -> build.ThresholdsConfig:
    """A colour, and from which value on it is another. The first one is also that of no value."""
    return (
        build.ThresholdsConfig()
        .mode(model.ThresholdsMode.ABSOLUTE)
        .steps([model.Threshold(color=base), *(model.Threshold(value, color) for value, color in above)])
    )


def below_line(at: float = LINE_S) -> build.ThresholdsConfig:
    """Green to half the line, red beyond it."""
    return steps(NEUTRAL, (0, GOOD), (at / 2, FAIR), (at, BAD))


def none_is_good(bad: float, fair: float | None = None) -> build.ThresholdsConfig:
    """Green at 0; yellow and red from these on."""
    return steps(NEUTRAL, (0, GOOD), *([(fair, FAIR)] if fair else []), (bad, BAD))


def colours(panel: timeseries.Panel, by_name: Mapping[str, str]) -> timeseries.Panel:
    """Fixed colours of series, by a regular expression on their names."""
    for name, colour in by_name.items():
        panel = panel.override_by_regexp(f"/{name}/", [_fixed(colour)])
    return panel


def columns(panel: table.Panel, shown: Mapping[str, tuple[str, Sequence[model.DynamicConfigValue]]]) -> table.Panel:
    """Only these columns, in this order, each with its heading and what it is set to."""
    order = {name: number for number, name in enumerate(shown)}
    panel = panel.with_transformation(
        model.DataTransformerConfig("filterFieldsByName", options={"include": {"names": list(shown)}})
    ).with_transformation(
        model.DataTransformerConfig(
            "organize",
            options={"indexByName": order, "renameByName": {name: heading for name, (heading, _) in shown.items()}},
        )
    )
    for heading, properties in shown.values():
        panel = panel.override_by_name(heading, [*properties])
    return panel


def merged(panel: table.Panel) -> table.Panel:
    """One row for what several queries say of the same labels."""
    return panel.with_transformation(model.DataTransformerConfig("merge", options={}))


def saying(panel: _Said, names: Mapping[str, str]) -> _Said:
    """Values that are words."""
    return panel.mappings(
        [model.ValueMap({value: model.ValueMappingResult(text=name)}) for value, name in names.items()]
    )


def sorted_by(panel: table.Panel, heading: str) -> table.Panel:
    """The largest first."""
    return panel.sort_by([common.TableSortByFieldState().display_name(heading).desc(True)])


def of_unit(unit: str) -> model.DynamicConfigValue:
    return _set("unit", unit)


def wide(pixels: int) -> model.DynamicConfigValue:
    return _set("custom.width", pixels)


def hidden() -> model.DynamicConfigValue:
    return _set("custom.hideFrom.viz", True)


def leads(*links: tuple[str, str]) -> model.DynamicConfigValue:
    """Links of a cell: title and address."""
    return _set("links", [{"title": title, "url": url, "targetBlank": url.startswith("$")} for title, url in links])


def named(values: Mapping[str, tuple[str, str]]) -> model.DynamicConfigValue:
    """A cell says the name of its value, on the value's colour."""
    options = {value: {"text": name, "color": colour} for value, (name, colour) in values.items()}
    return _set("mappings", [{"type": "value", "options": options}])


def as_background() -> model.DynamicConfigValue:
    return _set("custom.cellOptions", {"type": "color-background", "mode": "basic"})


def right_axis(panel: timeseries.Panel, name: str, unit: str) -> timeseries.Panel:
    """A series of another unit, behind the others."""
    return panel.override_by_name(
        name,
        [
            of_unit(unit),
            _set("custom.axisPlacement", "right"),
            _set("custom.drawStyle", GraphDrawStyle.BARS),
            _set("custom.fillOpacity", 20),
            _set("custom.lineWidth", 0),
            _fixed("gray"),
        ],
    )


def faded(panel: timeseries.Panel, name: str) -> timeseries.Panel:
    """Series that the others are compared with."""
    return panel.override_by_regexp(
        f"/{name}/", [_fixed("gray"), _set("custom.lineStyle", {"fill": "dash", "dash": [2, 4]})]
    )


def judged_by(panel: stat.Panel, ref_id: str) -> stat.Panel:
    """Red from the value of this query on, which is not shown. Of the panel's own steps Grafana keeps the first."""
    return panel.thresholds(steps(GOOD)).with_transformation(
        model.DataTransformerConfig(
            "configFromData",
            options={
                "configRefId": ref_id,
                "mappings": [
                    {"fieldName": "line", "handlerKey": "threshold1", "handlerArguments": {"threshold": {"color": BAD}}}
                ],
            },
        )
    )


def _set(what: str, value: object) -> model.DynamicConfigValue:
    return model.DynamicConfigValue(what, value)


def _fixed(colour: str) -> model.DynamicConfigValue:
    return _set("color", {"mode": "fixed", "fixedColor": colour})


# --- a dashboard


@dataclass(frozen=True)
class Row:
    """Panels from left to right, 24 columns wide in each line of them. A closed one asks for nothing until it opens."""

    title: str
    panels: Sequence[Panel]
    closed: bool = False


@dataclass(frozen=True)
class Board:
    """`uid` never changes: links and bookmarks hold it."""

    uid: str
    title: str
    description: str
    rows: Sequence[Row]
    variables: Sequence[Builder[model.VariableModel]] = ()

    def document(self) -> dict[str, Any]:
        """As Grafana reads it."""
        board = build.Dashboard(self.title).uid(self.uid).description(self.description).tags([TAG]).readonly()
        board = board.time("now-30m", "now").refresh("30s").timezone(TimeZoneBrowser)
        board = board.tooltip(model.DashboardCursorSync.CROSSHAIR).variables([*_variables(), *self.variables])
        board = board.link(
            build.DashboardLink(TAG.capitalize())
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .keep_time(True)
            .include_vars(True)
        )
        ids = count(1)
        for row in self.rows:
            heading = build.Row(row.title).id(next(ids)).collapsed(row.closed)
            for panel in row.panels:
                if panel.build().id_val is None:
                    panel.id(next(ids))
                if row.closed:
                    heading.with_panel(panel)
            board.with_row(heading)
            if not row.closed:
                for panel in row.panels:
                    board.with_panel(panel)
        built: dict[str, Any] = json.loads(json.dumps(board.build(), cls=JSONEncoder))
        return {**built, "annotations": {"list": _ANNOTATIONS}}


def _variables() -> list[Builder[model.VariableModel]]:
    ours = '{__name__=~"bronze_(records|publisher_submissions)_total", job=~"bronze/.+"}'
    return [
        _of_label("source", "Source", f"label_values({ours}, bronze_source)"),
        _of_label("instance", "Instance", f"label_values({ours}, instance)"),
        _datasource("prometheus", "Metrics"),
        _datasource("tempo", "Traces"),
    ]


def _of_label(name: str, label: str, values: str) -> build.QueryVariable:
    return (
        build.QueryVariable(name)
        .label(label)
        .datasource(PROMETHEUS)
        .query({"query": values, "refId": name})
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(model.VariableOption(selected=True, text="All", value="$__all"))
    )


def _datasource(kind: str, label: str) -> build.DatasourceVariable:
    """The provisioned one has its kind as its UID."""
    chosen = model.VariableOption(selected=True, text=kind.capitalize(), value=kind)
    return build.DatasourceVariable(kind).label(label).type(kind).current(chosen)


def choice(name: str, label: str, options: Mapping[str, str], chosen: str) -> build.CustomVariable:
    """A variable with one of these values, each shown under its name."""
    values = ", ".join(f"{shown} : {value}" for shown, value in options.items())
    return (
        build.CustomVariable(name)
        .label(label)
        .values(values)
        .options([model.VariableOption(shown == chosen, shown, value) for shown, value in options.items()])
        .current(model.VariableOption(selected=True, text=chosen, value=options[chosen]))
    )


def typed(name: str, label: str, default: str = "") -> build.TextBoxVariable:
    """A variable that one writes into."""
    option = model.VariableOption(selected=True, text=default, value=default)
    return build.TextBoxVariable(name).label(label).default_value(default).current(option).options([option])


def _annotation(name: str, colour: str, expr: str, title: str, what: str) -> dict[str, Any]:
    """The SDK's annotations lack what Prometheus' need: the format of their title."""
    return {
        "name": name,
        "datasource": PROMETHEUS.to_json(),
        "enable": True,
        "hide": False,
        "iconColor": colour,
        "target": {"refId": "Anno", "expr": expr, "interval": "", "legendFormat": ""},
        "titleFormat": title,
        "textFormat": what,
    }


_ANNOTATIONS = [
    _annotation(
        "Alerts",
        BAD,
        'ALERTS{alertname=~"Bronze.+", alertstate="firing"}',
        "{{alertname}} ({{severity}})",
        "{{bronze_source}}{{instance}}{{exporter}}",
    ),
    # A process is new where it was not known a moment ago, or began its counters anew under the same name.
    _annotation(
        "Starts",
        "purple",
        f"""\
group by (job, instance) ({_PROCESSES}) unless group by (job, instance) ({_PROCESSES} offset {STEP})
or max by (job, instance) (resets({_PROCESSES}[{STEP}])) > 0""",
        "{{job}} started",
        "{{instance}}",
    ),
    _annotation(
        "Deployments",
        NEUTRAL,
        f"""\
group by (job, service_version) ({_PROCESSES}) unless group by (job, service_version) ({_PROCESSES} offset {STEP})""",
        "{{job}} is at version {{service_version}}",
        "",
    ),
]
