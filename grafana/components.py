"""Components of the dashboards: queries, panels with their defaults, colours, thresholds, rows and variables."""

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, TypeAlias, TypeVar

from grafana_foundation_sdk.builders import (
    common,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    tempo,
    text,
    timeseries,
)
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
    ScaleDistribution,
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

from bronze.objectives import DURATION_S_MAX
from bronze.telemetry.promql import NO_CANARY, histogram_series
from grafana.promql import OBJECTIVE_S, RANGE, STEP, quantile, rate
from prometheus.verdict import does_not_answer

TAG = "bronze"

#: The UID of the board of a source.
SOURCE_BOARD = "bronze-source"
#: The UID of the board of the data.
DATA_BOARD = "bronze-data"

#: The runbook that the API serves. Each dashboard has the variable, since Grafana reads no setting in a dashboard.
RUNBOOK_URL = "${api_url}/runbook"

#: The provisioned datasources; a dashboard has a variable to choose others.
PROMETHEUS = model.DataSourceRef(type_val="prometheus", uid="${prometheus}")
TEMPO = model.DataSourceRef(type_val="tempo", uid="${tempo}")

#: Units. EXACT shows every digit. Grafana has no unit for uploads: they use its writes per second.
SECONDS, BYTES, BYTES_PER_S = units.Seconds, units.BytesIEC, units.BytesPerSecondIEC
COUNT, EXACT, SHARE, TIMES = units.Short, units.LocaleFormat, units.PercentUnit, "suffix:x"
#: How many times as large as another value.
FACTOR = "prefix:\N{MULTIPLICATION SIGN}"
REQUESTS_PER_S, RECORDS_PER_S, MESSAGES_PER_S, WRITES_PER_S, COUNTS_PER_S = "reqps", "recps", "mps", "wps", "cps"

#: Colours that are readable in the light and the dark theme. Blue (neutral) is for values without a limit.
GOOD, FAIR, BAD, NEUTRAL = "green", "yellow", "red", "blue"
#: The colours of what is not known although something runs, and of what does not exist.
UNKNOWN, NOTHING = "purple", "gray"

#: The name of what has not ended, and is over the limit, beside what has.
NOT_ENDED = "not ended yet"
#: What a graph says while nothing answers that reports its values, by role.
_NO_ANSWER = {
    "api": "no API answers",
    "consumer": "no consumer answers",
    "collector": "the collector does not answer",
}

Target: TypeAlias = prometheus.Dataquery | tempo.TempoQuery
Panel: TypeAlias = (
    timeseries.Panel | stat.Panel | statetimeline.Panel | table.Panel | heatmap.Panel | text.Panel | build.Panel
)
_ValuePanel = TypeVar("_ValuePanel", stat.Panel, statetimeline.Panel, table.Panel)
_Kind = TypeVar("_Kind", timeseries.Panel, stat.Panel, statetimeline.Panel, table.Panel, heatmap.Panel, build.Panel)

#: The choices that filter panels, by the names of their variables.
_CHOICES = {"source": "Source", "instance": "Instance"}
#: An instance in the result of a query, and its role.
_INSTANCE = 'instance="(?<value>[^"]+)",role="bronze/(?<text>[^"]+)"'
#: Where browsers reach the API, if Prometheus does not say it.
_API_URL = "http://127.0.0.1:8000"

#: Every API and consumer process has this counter from its first export on.
_PROCESSES = f'bronze_records_total{{job=~"bronze/(api|consumer)", {NO_CANARY}}}'


@dataclass(frozen=True)
class PanelInfo:
    """The texts of a panel: `meaning` explains what it shows and what to do, `no_data` replaces an empty result.

    `alerts` are the alerts on the same data; the description links to their sections in the runbook. `explained_by` is
    the UID of a dashboard and the title of its panel that explains the values of a tile: a click opens it.
    """

    title: str
    meaning: str
    no_data: str
    alerts: Sequence[str] = ()
    explained_by: tuple[str, str] | None = None

    @property
    def description(self) -> str:
        sections = ", ".join(f"[{name}]({RUNBOOK_URL}#{name.lower()})" for name in self.alerts)
        return f"{self.meaning}\n\nAlerts: {sections}" if sections else self.meaning


# --- queries


def query(expr: str, legend: str = "", *, exemplars: bool = False) -> prometheus.Dataquery:
    """The query of a graph. `exemplars` is for histograms only: each exemplar links to its trace."""
    return prometheus.Dataquery().expr(expr).legend_format(legend).exemplar(exemplars).range()


def single_value(expr: str, legend: str = "") -> prometheus.Dataquery:
    """The query of a tile: one value for the whole time range."""
    return prometheus.Dataquery().expr(expr).legend_format(legend).instant()


def rows(expr: str) -> prometheus.Dataquery:
    """The query of a table: one row per series, one column per label."""
    return prometheus.Dataquery().expr(expr).instant().format(PromQueryFormat.TABLE)


def spans(traceql: str) -> tempo.TempoQuery:
    return tempo.TempoQuery().query_type("traceql").query(traceql).limit(200).spss(20).table_type(SearchTableType.SPANS)


def limit_line(
    expr: str = f"vector({DURATION_S_MAX:g})", name: str = f"limit: {DURATION_S_MAX:g} s"
) -> prometheus.Dataquery:
    """The limit of a graph, as a series; `graph` draws it dashed and red."""
    return query(expr, name)


def delivery_limit_line() -> prometheus.Dataquery:
    """The limit of deliveries."""
    return limit_line(OBJECTIVE_S, f"limit: flush age + {DURATION_S_MAX:g} s")


def not_ended(expr: str) -> prometheus.Dataquery:
    """What has not ended; `graph` draws it red."""
    return query(expr, NOT_ENDED)


def no_answer(role: str, at: float = 0) -> prometheus.Dataquery:
    """When no process of the role answered, as a thick red line at a value. Not while the first one starts."""
    before = f'group(up{{job="scrape-{role}"}} offset {STEP})'
    return query(f"({does_not_answer(role)} and on () {before}) * 0 + {at:g}", _NO_ANSWER[role])


def percentiles(
    histogram: str, quantiles: Sequence[float] = (0.5, 0.95, 0.99), *, exemplars: bool = False
) -> list[prometheus.Dataquery]:
    """One query per percentile. Every percentile has the same exemplars, so only the highest asks for them."""
    return [
        query(quantile(q, histogram), f"p{q * 100:g}", exemplars=exemplars and q == quantiles[-1]) for q in quantiles
    ]


# --- kinds of panels


def graph(info: PanelInfo, unit: str, *targets: Target, width: int = 8, height: int = 9) -> timeseries.Panel:
    panel = timeseries.Panel().unit(unit).min(0).line_width(1).fill_opacity(8).gradient_mode(GraphGradientMode.OPACITY)
    panel = panel.line_interpolation(LineInterpolation.LINEAR).show_points(VisibilityMode.NEVER)
    panel = panel.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    panel = panel.legend(_legend(LegendDisplayMode.LIST))
    panel = panel.override_by_regexp(
        "/^limit:/",
        [
            _fixed_colour(BAD),
            _override("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
            _override("custom.fillOpacity", 0),
            _override("custom.stacking", {"mode": "none"}),
        ],
    )
    if any(target.build().legend_format == NOT_ENDED for target in targets if isinstance(target, prometheus.Dataquery)):
        panel = panel.override_by_name(NOT_ENDED, [_fixed_colour(BAD), _override("custom.lineWidth", 2)])
    named = f"/^({'|'.join(_NO_ANSWER.values())})$/"
    line = [_override("custom.drawStyle", GraphDrawStyle.LINE), _override("custom.stacking", {"mode": "none"})]
    panel = panel.override_by_regexp(named, [_fixed_colour(BAD), _override("custom.lineWidth", 4), *line])
    return _finished(panel, info, targets, width, height)


def percentile_graph(panel: timeseries.Panel, floor: float = 0.001, base: float = 10) -> timeseries.Panel:
    """Adds the last and the largest value of each percentile to the legend, fixed colours, and a logarithmic axis."""
    panel = panel.legend(_legend(LegendDisplayMode.TABLE).calcs(["lastNotNull", "max"]))
    by_name = {"^p50": "light-blue", "^p95": "blue", "^p99": "purple", "^mean": "#4CB5AE"}
    return log_axis(colours(panel, by_name), floor, base)


def expected_zero(panel: timeseries.Panel) -> timeseries.Panel:
    """For values that should be 0: if all values are 0, the axis ends at 1 and not at Grafana's default of 100."""
    return panel.axis_soft_max(1)


def log_axis(panel: timeseries.Panel, floor: float = 0.001, base: float = 10) -> timeseries.Panel:
    """For values that are judged by a line: those far below it can be distinguished, too. Bytes need the base 2."""
    scale = common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(base)
    return panel.scale_distribution(scale).min(floor).fill_opacity(0)


def bars(panel: timeseries.Panel) -> timeseries.Panel:
    """Counts per interval, as stacked bars."""
    panel = panel.draw_style(GraphDrawStyle.BARS).fill_opacity(80).line_width(0).gradient_mode(GraphGradientMode.NONE)
    return panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))


def stacked(panel: timeseries.Panel) -> timeseries.Panel:
    """Series whose sum matters, as stacked areas without lines: a line of nothing would be drawn on the others."""
    return panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(60).line_width(0)


def tile(info: PanelInfo, unit: str, *targets: prometheus.Dataquery, width: int = 6, height: int = 3) -> stat.Panel:
    """One large number, or one per source. A click opens the panel that explains it."""
    panel = stat.Panel().unit(unit).graph_mode(BigValueGraphMode.NONE).color_mode(BigValueColorMode.VALUE)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    panel = panel.text(common.VizTextDisplayOptions().title_size(13))  # the names of several values
    panel = panel.orientation(VizOrientation.VERTICAL).text_mode(BigValueTextMode.AUTO).thresholds(steps(NEUTRAL))
    panel = panel.mappings([_no_value(info.no_data)])
    if info.explained_by:
        uid, title = info.explained_by
        of_source = any("{{bronze_source}}" in str(target.build().legend_format) for target in targets)
        panel = panel.data_links([build.DashboardLink(title).url(panel_url(uid, title, of_source=of_source))])
    return _finished(panel, info, targets, width, height)


def panel_id(title: str) -> int:
    """The id of a panel on its dashboard. It follows from the title, so links to it need no list of ids."""
    return zlib.crc32(title.encode()) % 1_000_000 + 1000


def panel_url(uid: str, title: str, *, of_source: bool = False) -> str:
    """Opens a panel in full size, for the same time range and variables; `of_source`: for the source of the value."""
    choice = "var-source=${__field.labels.bronze_source}&${api_url:queryparam}" if of_source else "${__all_variables}"
    return f"/d/{uid}?${{__url_time_range}}&{choice}&viewPanel=panel-{panel_id(title)}"


def source_link(source: str) -> tuple[str, str]:
    """The title and URL of the board of a source, for the same time range. `source` is Grafana's variable for it."""
    return (
        "Show the source",
        f"/d/{SOURCE_BOARD}?${{__url_time_range}}&${{api_url:queryparam}}&var-source=${{{source}}}",
    )


def data_link(source: str) -> tuple[str, str]:
    """As `source_link`, to the board of its data."""
    return (
        "Show its data",
        f"/d/{DATA_BOARD}?${{__url_time_range}}&${{api_url:queryparam}}&var-source=${{{source}}}",
    )


def by_source(panel: timeseries.Panel, ref_id: str = "A") -> timeseries.Panel:
    """A click on a series of this query opens the board of its source."""
    return panel.override_by_query(ref_id, [links(source_link("__field.labels.bronze_source"))])


def states(info: PanelInfo, *targets: Target, width: int = 24, height: int = 6) -> statetimeline.Panel:
    """Values that are states, over time: one line per series, one block per state."""
    panel = statetimeline.Panel().unit(COUNT).show_value(VisibilityMode.NEVER).merge_values(True).row_height(0.8)
    panel = panel.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI)).fill_opacity(80).line_width(0)
    panel = panel.legend(common.VizLegendOptions().show_legend(False))
    # Grafana's default for this kind of panel is a gradient from the smallest to the largest value
    panel = panel.color_scheme(build.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
    return _finished(panel, info, targets, width, height)


def listing(info: PanelInfo, *targets: Target, width: int = 24, height: int = 9) -> table.Panel:
    panel = table.Panel().cell_height(TableCellHeight.SM).min_width(60).unit(COUNT)
    return _finished(panel, info, targets, width, height)


def distribution(info: PanelInfo, uploads: str, width: int) -> heatmap.Panel:
    """A heatmap of upload durations with a mark per exemplar; the bucket bound at the limit is labelled."""
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
            "renameByRegex", options={"regex": f"^{DURATION_S_MAX:g}$", "renamePattern": f"{DURATION_S_MAX:g} s limit"}
        )
    )
    # a heatmap has no text for an empty result: without data in the whole range, it shows the limit alone
    samples = f"count_over_time({histogram_series(uploads, 'bucket')}[{RANGE}] @ end())"
    bound = f'label_replace(vector(0), "le", "{DURATION_S_MAX:g}", "", "") unless on () sum({samples})'
    buckets = f"{rate(histogram_series(uploads, 'bucket'), 'le')} or on () ({bound})"
    target = query(buckets, "{{le}}", exemplars=True).format(PromQueryFormat.HEATMAP)
    return _finished(panel.unit(SECONDS), info, [target], width, height=10)


def note(title: str, markdown: str, width: int = 24, height: int = 4) -> text.Panel:
    return text.Panel().title(title).content(markdown).span(width).height(height)


def plugin(kind: str, info: PanelInfo, target: Target, width: int = 24, height: int = 12) -> build.Panel:
    """A panel kind that the SDK has no builder for. It shows no text for an empty result, so use it in a closed row."""
    return _finished(build.Panel().type(kind).options({}), info, [target], width, height)


def _legend(mode: LegendDisplayMode) -> common.VizLegendOptions:
    return common.VizLegendOptions().show_legend(True).display_mode(mode).placement(LegendPlacement.BOTTOM)


def _finished(panel: _Kind, info: PanelInfo, targets: Sequence[Target], width: int, height: int) -> _Kind:
    panel = panel.title(info.title).description(info.description).no_value(info.no_data).span(width).height(height)
    panel = panel.datasource(TEMPO if isinstance(targets[0], tempo.TempoQuery) else PROMETHEUS)
    for ref_id, target in zip(ascii_uppercase, targets, strict=False):
        panel = panel.with_target(target.ref_id(ref_id))
    return panel


# --- thresholds, columns and formats of values


def steps(base: str, *above: tuple[float, str]) -> build.ThresholdsConfig:
    """A colour, and the values from which on other colours are used."""
    return (
        build.ThresholdsConfig()
        .mode(model.ThresholdsMode.ABSOLUTE)
        .steps([model.Threshold(color=base), *(model.Threshold(value, color) for value, color in above)])
    )


def limit_thresholds(at: float = DURATION_S_MAX) -> build.ThresholdsConfig:
    """Green up to half the limit, red from the limit on."""
    return steps(NEUTRAL, (0, GOOD), (at / 2, FAIR), (at, BAD))


def zero_is_good(bad: float, fair: float | None = None) -> build.ThresholdsConfig:
    """Green at 0, yellow from `fair` on, red from `bad` on."""
    return steps(NEUTRAL, (0, GOOD), *([(fair, FAIR)] if fair else []), (bad, BAD))


def colours(panel: timeseries.Panel, by_name: Mapping[str, str]) -> timeseries.Panel:
    """Fixed colours for series whose names match these regular expressions."""
    for name, colour in by_name.items():
        panel = panel.override_by_regexp(f"/{name}/", [_fixed_colour(colour)])
    return panel


def shades(panel: timeseries.Panel, colour: str) -> timeseries.Panel:
    """For series of one meaning: each has a shade of the colour, and the sum of all is grey."""
    panel = panel.color_scheme(build.FieldColor().mode(model.FieldColorModeId.SHADES).fixed_color(colour))
    return colours(panel, {"^all": NOTHING})


def columns(panel: table.Panel, shown: Mapping[str, tuple[str, Sequence[model.DynamicConfigValue]]]) -> table.Panel:
    """Shows only these columns, in this order, each with its heading and overrides."""
    order = {name: position for position, name in enumerate(shown)}
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
    """Joins the results of several queries: one row per set of labels."""
    return panel.with_transformation(model.DataTransformerConfig("merge", options={}))


def value_names(panel: _ValuePanel, names: Mapping[str, str], colour: str | None = None) -> _ValuePanel:
    """Shows a name for some values, in the colour of their threshold, or in `colour`."""
    config = panel.build().field_config
    before: list[Any] = (config.defaults.mappings if config else None) or []
    return panel.mappings(
        [
            *before,
            *(
                model.ValueMap({value: model.ValueMappingResult(text=name, color=colour)})
                for value, name in names.items()
            ),
        ]
    )


def _no_value(text: str) -> model.SpecialValueMap:
    """An empty result is neither good nor bad. Without this, it has the colour of the first threshold."""
    result = model.ValueMappingResult(text=text, color=NOTHING)
    return model.SpecialValueMap(
        model.DashboardSpecialValueMapOptions(match=model.SpecialValueMatch.NULL_AND_NAN, result=result)
    )


def sorted_by(panel: table.Panel, heading: str) -> table.Panel:
    """Sorts by this column, largest value first."""
    return panel.sort_by([common.TableSortByFieldState().display_name(heading).desc(True)])


def in_unit(unit: str) -> model.DynamicConfigValue:
    return _override("unit", unit)


def absent(words: str) -> model.DynamicConfigValue:
    """What a cell without a value says."""
    return _override("noValue", words)


def width_px(pixels: int) -> model.DynamicConfigValue:
    return _override("custom.width", pixels)


def left() -> model.DynamicConfigValue:
    """A cell that is cut begins with its begin."""
    return _override("custom.align", "left")


def hidden() -> model.DynamicConfigValue:
    return _override("custom.hideFrom.viz", True)


def links(*targets: tuple[str, str]) -> model.DynamicConfigValue:
    """Links of a cell, as title and URL."""
    return _override(
        "links", [{"title": title, "url": url, "targetBlank": url.startswith("$")} for title, url in targets]
    )


def value_colours(values: Mapping[str, tuple[str, str]]) -> model.DynamicConfigValue:
    """A cell shows the name of its value, in the colour of the value."""
    options = {value: {"text": name, "color": colour} for value, (name, colour) in values.items()}
    return _override("mappings", [{"type": "value", "options": options}])


def value_texts(values: Mapping[str, str]) -> model.DynamicConfigValue:
    """A cell shows the text of its value."""
    return _override("mappings", [{"type": "value", "options": {value: {"text": t} for value, t in values.items()}}])


def as_background() -> model.DynamicConfigValue:
    return _override("custom.cellOptions", {"type": "color-background", "mode": "basic"})


def right_axis(panel: timeseries.Panel, name: str, unit: str) -> timeseries.Panel:
    """Draws a series of another unit as bars behind the others, with an axis on the right."""
    return panel.override_by_name(
        name,
        [
            in_unit(unit),
            _override("custom.axisPlacement", "right"),
            _override("custom.drawStyle", GraphDrawStyle.BARS),
            _override("custom.fillOpacity", 20),
            _override("custom.lineWidth", 0),
            _fixed_colour("gray"),
        ],
    )


def faded(panel: timeseries.Panel, name: str) -> timeseries.Panel:
    """Draws the series that others are compared with in grey."""
    return panel.override_by_regexp(
        f"/{name}/", [_fixed_colour("gray"), _override("custom.lineStyle", {"fill": "dash", "dash": [2, 4]})]
    )


def legend_only(panel: timeseries.Panel, name: str) -> timeseries.Panel:
    """Shows only the names of these series: they have no values."""
    return panel.override_by_regexp(
        f"/{name}/",
        [
            _override("custom.lineWidth", 0),
            _override("custom.fillOpacity", 0),
            _override("custom.hideFrom", {"legend": False, "tooltip": True, "viz": False}),
        ],
    )


def of_field(panel: stat.Panel, name: str, unit: str, limits: build.ThresholdsConfig) -> stat.Panel:
    """A value of a tile that has a unit and thresholds of its own."""
    return panel.override_by_name(name, [in_unit(unit), _override("thresholds", limits.build())])


def red_from_query(panel: stat.Panel, ref_id: str) -> stat.Panel:
    """Red from the value of this query on. The query's value is not shown.

    Grafana keeps only the first of the panel's own threshold steps.
    """
    return panel.thresholds(steps(GOOD)).with_transformation(
        model.DataTransformerConfig(
            "configFromData",
            options={
                "configRefId": ref_id,
                "mappings": [
                    {
                        "fieldName": "limit",
                        "handlerKey": "threshold1",
                        "handlerArguments": {"threshold": {"color": BAD}},
                    }
                ],
            },
        )
    )


def _override(name: str, value: object) -> model.DynamicConfigValue:
    return model.DynamicConfigValue(name, value)


def _fixed_colour(colour: str) -> model.DynamicConfigValue:
    return _override("color", {"mode": "fixed", "fixedColor": colour})


# --- a dashboard


@dataclass(frozen=True)
class Row:
    """Panels from left to right; each line fills 24 columns. A closed row runs no query until it is opened."""

    title: str
    panels: Sequence[Panel]
    closed: bool = False


@dataclass(frozen=True)
class Board:
    """`uid` never changes: links and bookmarks contain it."""

    uid: str
    title: str
    description: str
    rows: Sequence[Row]
    variables: Sequence[Builder[model.VariableModel]] = ()
    refresh: str = "30s"

    def document(self) -> dict[str, Any]:
        """The JSON model that Grafana reads."""
        board = build.Dashboard(self.title).uid(self.uid).description(self.description).tags([TAG]).readonly()
        board = board.time("now-30m", "now").refresh(self.refresh).timezone(TimeZoneBrowser)
        board = board.tooltip(model.DashboardCursorSync.CROSSHAIR)
        board = board.link(
            build.DashboardLink(TAG.capitalize())
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .keep_time(True)
            .include_vars(True)
        )
        panels = [panel for row in self.rows for panel in row.panels]
        variables = self._variables_read(panels)
        for panel in panels:
            _say_what_does_not_change_it(panel, {name for name, _ in variables})
            built_panel = panel.build()
            if built_panel.id_val is None:
                panel.id(panel_id(built_panel.title or ""))
        for number, row in enumerate(self.rows, 1):
            heading = build.Row(row.title).id(number).collapsed(row.closed)
            if row.closed:
                for panel in row.panels:
                    heading.with_panel(panel)
            board.with_row(heading)
            if not row.closed:
                for panel in row.panels:
                    board.with_panel(panel)
        board = board.variables([variable for _, variable in variables])
        built: dict[str, Any] = json.loads(json.dumps(board.build(), cls=JSONEncoder))
        # what the SDK, which knows Grafana 11.6, cannot express
        for variable in built["templating"]["list"]:
            if variable["name"] in _IN_MENU:
                variable["hide"] = 3  # in the menu of controls
        for placed in built["panels"]:
            if placed["type"] == "state-timeline":
                placed["options"]["perPage"] = 0  # no pages
        return {**built, "annotations": {"list": _ANNOTATIONS}}

    def _variables_read(self, panels: Sequence[Panel]) -> list[tuple[str, Builder[model.VariableModel]]]:
        """The variables that something on the board reads, in the order in which they are shown."""
        every = [(variable.build().name, variable) for variable in (*_variables(), *self.variables)]
        texts = [_json(panel.build()) for panel in panels] + [json.dumps([row.title for row in self.rows])]
        texts.append(json.dumps(_ANNOTATIONS))
        read: set[str] = set()
        for name, variable in reversed(every):  # a variable reads only those before it
            if any(_reads(text, name) for text in texts):
                read.add(name)
                texts.append(_json(variable.build()))
        return [(name, variable) for name, variable in every if name in read]


def _say_what_does_not_change_it(panel: Panel, variables: AbstractSet[str]) -> None:
    """Adds to a panel's description which choices of its board have no effect on it."""
    built = panel.build()
    if not built.targets:
        return
    queries = _json(built.targets)
    without = [f"*{label}*" for name, label in _CHOICES.items() if name in variables and not _reads(queries, name)]
    if without:
        panel.description(f"{built.description}\n\nNot changed by {' or '.join(without)}.")


def _reads(text: str, variable: str) -> bool:
    return re.search(rf"\$(?:{variable}\b|\{{{variable}[:}}])", text) is not None


def _json(built: object) -> str:
    return json.dumps(built, cls=JSONEncoder)


#: The variables that hardly anybody changes.
_IN_MENU = {"prometheus", "tempo", "api_url"}


def _variables() -> list[Builder[model.VariableModel]]:
    """A variable reads only those before it."""
    ours = f'{{__name__=~"bronze_(records|publisher_submissions)_total", job=~"bronze/.+", {NO_CANARY}}}'
    roles = f'last_over_time(bronze_records_total{{job=~"bronze/(api|consumer)", {NO_CANARY}}}[{RANGE}])'
    named = f'group by (instance, role) (label_join({roles}, "role", " ", "job", "instance"))'
    return [
        _datasource("prometheus", "Metrics"),
        _datasource("tempo", "Traces"),
        _several(from_query("source", _CHOICES["source"], f"label_values({ours}, bronze_source)")),
        _several(from_result("instance", _CHOICES["instance"], named, _INSTANCE)),
        _api_url(),
    ]


def from_query(name: str, label: str, values: str) -> build.QueryVariable:
    return (
        build.QueryVariable(name)
        .label(label)
        .datasource(PROMETHEUS)
        .query({"query": values, "refId": name})
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
    )


def from_result(name: str, label: str, expr: str, pattern: str) -> build.QueryVariable:
    """A variable whose values are in the results of a query at the end of the range.

    The pattern is for the labels of a result, in alphabetical order, without spaces. Its groups are the value, or value
    and text.
    """
    pattern = pattern.replace("/", r"\/")
    return from_query(name, label, f"query_result({' '.join(expr.split())})").regex(f"/{pattern}/")


def _several(variable: build.QueryVariable) -> build.QueryVariable:
    every = model.VariableOption(selected=True, text="All", value="$__all")
    return variable.multi(True).include_all(True).all_value(".*").current(every)


def _api_url() -> build.QueryVariable:
    """The address at which browsers reach the API. It is a setting of Prometheus, whose Watchdog has it as a label."""
    # without the external label, the label is its unexpanded template
    known = 'group by (api_url) (ALERTS{alertname="Watchdog", api_url=~"http.+"})'
    expr = f'{known} or on () label_replace(vector(1), "api_url", "{_API_URL}", "", "")'
    variable = from_result("api_url", "API", expr, 'api_url="([^"]+)"')
    return variable.current(model.VariableOption(selected=True, text=_API_URL, value=_API_URL))


def _datasource(kind: str, label: str) -> build.DatasourceVariable:
    """The UID of the provisioned datasource is its kind."""
    chosen = model.VariableOption(selected=True, text=kind.capitalize(), value=kind)
    return build.DatasourceVariable(kind).label(label).type(kind).current(chosen)


def choice_variable(name: str, label: str, options: Mapping[str, str], chosen: str) -> build.CustomVariable:
    """A variable with a list of values; `options` maps the name that is shown to the value."""
    values = ", ".join(f"{shown} : {value}" for shown, value in options.items())
    return (
        build.CustomVariable(name)
        .label(label)
        .values(values)
        .options([model.VariableOption(shown == chosen, shown, value) for shown, value in options.items()])
        .current(model.VariableOption(selected=True, text=chosen, value=options[chosen]))
    )


def text_variable(name: str, label: str, default: str = "") -> build.TextBoxVariable:
    """A variable that is a text field."""
    option = model.VariableOption(selected=True, text=default, value=default)
    return build.TextBoxVariable(name).label(label).default_value(default).current(option).options([option])


def _annotation(name: str, colour: str, expr: str, title: str, text_format: str) -> dict[str, Any]:
    """The SDK has no builder for the title format that annotations from Prometheus need. The name is shown beside the
    variables.
    """
    return {
        "name": name,
        "datasource": PROMETHEUS.to_json(),
        "enable": True,
        "hide": False,
        "iconColor": colour,
        "target": {"refId": "Anno", "expr": expr, "interval": "", "legendFormat": ""},
        "titleFormat": title,
        "textFormat": text_format,
    }


#: The labels that say of what an alert is, with their headings.
ALERT_LABELS: Mapping[str, str] = {
    "bronze_source": "Source",
    "bronze_receiver": "Receiver of events",
    "bronze_lane": "Lane",
    "bronze_field": "Field",
    "bronze_expectation": "Expectation",
    "missing": "Missing",
    "bronze_step": "Step",
    "error_type": "Error",
    "bronze_verify_check": "Check",
    "bronze_cluster_server": "Server",
    "bronze_replica_state": "Replicas",
    "job": "Job",
    "instance": "Instance",
    "receiver": "Receiver",
    "exporter": "Exporter",
    "rule_group": "Rules",
    "metric": "Counter",
}
_ALERT_LABELS_QUOTED = ", ".join(f'"{label}"' for label in ALERT_LABELS)
_FIRING = 'ALERTS{alertname=~"Bronze.+", alertstate="firing"}'
_ANNOTATIONS = [
    _annotation(
        "Alerts (red)",
        BAD,
        # Grafana shows the name of a label that an alert lacks
        f'label_join({_FIRING}, "of", " ", {_ALERT_LABELS_QUOTED})',
        "{{alertname}} ({{severity}})",
        "{{of}}",
    ),
    # A process started if it is new since the last step, or if its counters were reset under the same name.
    _annotation(
        "Starts (blue)",
        NEUTRAL,
        f"""\
group by (job, instance) ({_PROCESSES}) unless group by (job, instance) ({_PROCESSES} offset {STEP})
or max by (job, instance) (resets({_PROCESSES}[{STEP}])) > 0""",
        "{{job}} started",
        "{{instance}}",
    ),
    _annotation(
        "New versions (teal)",
        "#4CB5AE",
        f"""\
group by (job, service_version) ({_PROCESSES})
unless group by (job, service_version) (last_over_time({_PROCESSES}[{RANGE}] offset {STEP}))
and on (job) group by (job) (last_over_time({_PROCESSES}[{RANGE}] offset {STEP}))""",
        "{{job}} is at version {{service_version}}",
        "",
    ),
]
