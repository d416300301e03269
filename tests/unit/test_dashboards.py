"""Dashboards: in sync with their code, joined with the schema, and as a linter of dashboards would have them."""

import re
import shutil
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from bronze.telemetry.schema import registry
from grafana import __main__ as command
from grafana import boards
from grafana.components import RUNBOOK_URL
from grafana.promql import EXTERNAL_METRICS, INTERVAL, RANGE, STEP
from prometheus import rules, verdict
from prometheus.rules import Alert, Recording, Thresholds
from tests import panels
from tests.panels import VALUES, Query
from tests.promql import label, labels_of, selectors, series

DOCUMENTS = panels.documents()
PANELS = panels.panels()
QUERIES = panels.queries()
PROMQL = [query for query in QUERIES if query.datasource == "prometheus"]

RULES = [rule for of_file in rules.groups(Thresholds()).values() for group in of_file for rule in group.rules]
ALERTS = {rule.name for rule in RULES if isinstance(rule, Alert)}
RECORDINGS = {rule.name for rule in RULES if isinstance(rule, Recording)}

#: What Grafana itself puts in.
BUILT_IN = {
    *("__rate_interval", "__interval", "__range", "__range_s", "__url_time_range", "__all_variables"),
    *("__value", "__data", "__field"),
}

#: Panels that show no values have no unit.
NO_UNIT = {"nodeGraph", "traces"}

each_panel = pytest.mark.parametrize(
    ("uid", "panel"), PANELS, ids=[f"{uid}: {panel['title']}" for uid, panel in PANELS]
)
each_promql = pytest.mark.parametrize("query", PROMQL, ids=lambda q: f"{q.dashboard}: {q.panel} {q.ref_id}")


def test_the_dashboards_are_in_sync() -> None:
    """The committed files are those that the code writes."""
    assert boards.out_of_sync() == []


def test_check_names_a_file_that_is_not_in_sync_and_one_that_is_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(boards.FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "bronze-health.json").write_text("{}\n")
    (tmp_path / "extra.json").write_text("{}\n")
    monkeypatch.setattr(boards, "FOLDER", tmp_path)
    monkeypatch.setattr("sys.argv", ["grafana", "--check"])
    with pytest.raises(SystemExit, match=r"bronze-health\.json, extra\.json out of sync .* run python -m grafana$"):
        command.main()


# --- a dashboard


@pytest.mark.parametrize("uid", DOCUMENTS)
def test_a_dashboard_is_found_by_its_uid_and_cannot_be_changed(uid: str) -> None:
    document = DOCUMENTS[uid]
    assert (boards.FOLDER / f"{uid}.json").exists()
    assert document["editable"] is False
    assert (document["timezone"], document["refresh"]) == ("browser", "10s" if uid == "bronze-overview" else "30s")
    assert document["description"]
    ids = Counter(p["id"] for panel in document["panels"] for p in (panel, *panel.get("panels", ())))
    assert ids.most_common(1)[0][1] == 1


def test_the_uids_are_those_that_links_and_bookmarks_hold() -> None:
    assert set(DOCUMENTS) == {
        "bronze-overview",
        "bronze-source",
        "bronze-data",
        "bronze-tables",
        "bronze-latency",
        "bronze-lineage",
        "bronze-health",
    }


@pytest.mark.parametrize("uid", DOCUMENTS)
def test_a_dashboard_leads_to_the_others_for_the_same_time_and_the_same_choice(uid: str) -> None:
    (link,) = DOCUMENTS[uid]["links"]
    assert (link["type"], link["keepTime"], link["includeVars"]) == ("dashboards", True, True)
    assert all(set(link["tags"]) <= set(document["tags"]) for document in DOCUMENTS.values())


@pytest.mark.parametrize("uid", DOCUMENTS)
def test_datasources_are_variables_that_stand_on_the_provisioned_ones(uid: str) -> None:
    provisioned = yaml.safe_load((boards.FOLDER.parent / "datasources" / "bronze.yaml").read_text())["datasources"]
    kinds = {datasource["uid"]: datasource["type"] for datasource in provisioned}
    variables = {one["name"]: one for one in DOCUMENTS[uid]["templating"]["list"] if one["type"] == "datasource"}
    for name, variable in variables.items():
        assert variable["query"] == kinds[variable["current"]["value"]] == name
    for asking in (*DOCUMENTS[uid]["panels"], *DOCUMENTS[uid]["annotations"]["list"]):
        if datasource := asking.get("datasource"):
            assert datasource["uid"] in {f"${{{name}}}" for name in variables}


def test_what_an_alert_is_of_is_shown_with_it() -> None:
    """Each label that its summary names is a column of the list of alerts, and in the annotations of graphs."""
    summaries = [rule.summary for rule in RULES if isinstance(rule, Alert)]
    named = {name for summary in summaries for name in re.findall(r"\$labels\.(\w+)", summary)}
    lists = [panel for _, panel in PANELS if "ALERTS_FOR_STATE" in str(panel.get("targets"))]
    assert lists
    for panel in lists:
        (names,) = (
            one["options"]["include"]["names"] for one in panel["transformations"] if "include" in one["options"]
        )
        assert named <= set(names)
    for document in DOCUMENTS.values():
        (alerts,) = (one for one in document["annotations"]["list"] if "ALERTS" in one["target"]["expr"])
        assert named <= set(re.findall(r'"(\w+)"', alerts["target"]["expr"]))


@pytest.mark.parametrize("uid", DOCUMENTS)
def test_every_variable_that_is_read_is_declared_and_every_declared_one_is_read(uid: str) -> None:
    """A choice is on a board only if it has an effect there; one that filters, if a panel is filtered by it."""
    document = DOCUMENTS[uid]
    variables = document["templating"]["list"]
    declared = [variable["name"] for variable in variables]
    read = _variables([document["panels"], document["annotations"], *(v["query"] for v in variables)])
    assert read - BUILT_IN <= set(declared)
    assert set(declared) <= read
    asked = _variables([panel.get("targets") for panel in _inside(document)])
    assert {"source", "instance"} & set(declared) == {"source", "instance"} & asked
    for place, variable in enumerate(variables):
        assert _variables([variable["query"], variable.get("datasource")]) - BUILT_IN <= set(declared[:place])


@pytest.mark.parametrize("uid", DOCUMENTS)
def test_a_panel_says_which_choices_of_its_board_do_not_change_it(uid: str) -> None:
    document = DOCUMENTS[uid]
    declared = {variable["name"] for variable in document["templating"]["list"]}
    for panel in _inside(document):
        if not panel.get("targets"):
            continue
        without = {"source", "instance"} & declared - _variables(panel["targets"])
        (said,) = re.findall(r"\n\nNot changed by (.*)\.$", panel["description"]) or [""]
        assert {name.lower() for name in re.findall(r"\*(\w+)\*", said)} == without, panel["title"]


def test_instances_are_the_roles_that_ran_in_the_range_each_with_its_role() -> None:
    """And not each `bronze publish`, which is an instance of its own: panels on publishers do not read the choice."""
    for uid in ("bronze-overview", "bronze-latency"):
        (variable,) = (one for one in DOCUMENTS[uid]["templating"]["list"] if one["name"] == "instance")
        assert 'job=~"bronze/(api|consumer)"' in variable["query"]["query"]
        assert "[$__range]" in variable["query"]["query"]
        text = '{instance="0b9c",role="bronze/api 0b9c"} 1 1764413000000'
        found = re.search(variable["regex"].strip("/").replace("(?<", "(?P<"), text)
        assert found
        assert found.groupdict() == {"value": "0b9c", "text": "api 0b9c"}
    for query in PROMQL:
        for _, matchers in selectors(query.asked(VALUES)):
            if ("job", "=", "bronze/publisher") in matchers:
                assert "$instance" not in query.expr


@pytest.mark.parametrize("uid", DOCUMENTS)
def test_the_address_of_the_api_comes_from_a_setting(uid: str) -> None:
    """Prometheus has it from its environment, as a label of the Watchdog. Without it, it is that of this machine."""
    (variable,) = (one for one in DOCUMENTS[uid]["templating"]["list"] if one["name"] == "api_url")
    (watchdog,) = (rule for rule in RULES if isinstance(rule, Alert) and rule.name == "Watchdog")
    (name,) = watchdog.labels
    assert f'(ALERTS{{alertname="Watchdog", {name}=~"http.+"}})' in variable["query"]["query"]
    found = re.search(variable["regex"].strip("/"), f'{{{name}="https://bronze.your.company"}} 1 1764413000000')
    assert found
    assert found[1] == "https://bronze.your.company"


@pytest.mark.parametrize("uid", DOCUMENTS)
def test_panels_fill_the_grid_and_do_not_overlap(uid: str) -> None:
    """24 columns; each line is as wide as its row."""
    placed = [panel["gridPos"] for panel in DOCUMENTS[uid]["panels"]]
    for one, other in combinations(placed, 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y, (one, other)
    widths: Counter[int] = Counter()
    for at in placed:
        widths[at["y"]] += at["w"]
    assert set(widths.values()) == {24}


def test_each_stage_of_a_source_has_the_same_three_panels() -> None:
    """And each panel shows the chosen source alone."""
    rows: dict[str, list[str]] = {}
    for panel in DOCUMENTS["bronze-source"]["panels"]:
        if panel["type"] == "row":
            panels_of_row = rows.setdefault(panel["title"], [])
        else:
            panels_of_row.append(panel["title"])
    stages = {title.removeprefix("Stage: "): names for title, names in rows.items() if title.startswith("Stage: ")}
    assert list(stages) == ["ingest", "queue", "processing", "upload", "delivery"]
    for name, names in stages.items():
        stage = name.capitalize()
        assert names == [f"{stage}, by outcome", f"{stage}, duration", f"{stage}, errors"]
    for query in QUERIES:
        if query.dashboard == "bronze-source" and not query.panel.startswith(("annotation", "variable")):
            selected = selectors(query.asked({"__rate_interval": "1m", "__range": "30m"}))
            assert all("$source" in "".join(value for _, _, value in matchers) for _, matchers in selected), query


# --- a panel


@each_panel
def test_a_panel_says_what_it_means_and_what_it_is_without_data(uid: str, panel: dict[str, Any]) -> None:
    if panel["type"] == "text":
        return
    assert len(panel["description"]) > 20
    defaults = panel.get("fieldConfig", {}).get("defaults", {})
    if panel["type"] not in NO_UNIT:
        assert defaults["unit"]
    assert defaults["noValue"] not in {"", "No data"}
    if panel["type"] == "timeseries":
        logarithmic = defaults["custom"].get("scaleDistribution", {}).get("type") == "log"
        assert defaults["min"] > 0 if logarithmic else defaults["min"] == 0
    assert all(step["value"] != 80 for step in defaults.get("thresholds", {}).get("steps", ()))


@each_panel
def test_states_have_the_colours_of_their_thresholds(uid: str, panel: dict[str, Any]) -> None:
    """Grafana's default is a gradient, in which a red state can be orange."""
    if panel["type"] == "state-timeline":
        assert panel["fieldConfig"]["defaults"]["color"]["mode"] == "thresholds"


@each_panel
def test_a_tile_without_data_has_no_colour_that_judges(uid: str, panel: dict[str, Any]) -> None:
    if panel["type"] != "stat":
        return
    defaults = panel["fieldConfig"]["defaults"]
    (empty,) = [one["options"] for one in defaults["mappings"] if one["type"] == "special"]
    assert empty["match"] == "null+nan"
    assert (empty["result"]["text"], empty["result"]["color"]) == (defaults["noValue"], "gray")


def test_what_has_no_words_for_no_data_is_closed_until_it_is_wanted() -> None:
    for document in DOCUMENTS.values():
        assert not {panel["type"] for panel in document["panels"]} & {"nodeGraph", "traces"}


@each_panel
def test_the_links_of_a_panel_lead_somewhere(uid: str, panel: dict[str, Any]) -> None:
    """To an entry of the runbook, a dashboard of ours, or the API's page."""
    for target in re.findall(r"\]\(([^)]+)\)", panel.get("description", "")):
        url, _, anchor = target.partition("#")
        assert url == RUNBOOK_URL
        assert not anchor or anchor in {alert.lower() for alert in ALERTS}
    there = {(uid, str(panel["id"])) for uid, panel in PANELS}
    for link in _found(panel, "url"):
        dashboard = re.match(r"/d/([\w-]+)\?.*&viewPanel=panel-(\d+)$", link)
        of_source = re.match(
            r"/d/bronze-(?:source|data)\?.*&var-source=\$\{(__value\.raw|__field\.labels\.bronze_source)\}$", link
        )
        page = re.match(r"\$\{api_url\}/\?q=\$\{(__value\.raw:percentencode|__data\.fields\.traceIdHidden)\}$", link)
        runbook = link == f"{RUNBOOK_URL}#${{__data.fields.anchor}}"
        assert page or of_source or runbook or (dashboard and dashboard.groups() in there)


@each_panel
def test_a_tile_leads_to_the_panel_that_explains_it(uid: str, panel: dict[str, Any]) -> None:
    """For the same time range, and the source of the value if there is one per source."""
    if panel["type"] != "stat":
        return
    (link,) = panel["fieldConfig"]["defaults"]["links"]
    assert link["url"].startswith("/d/")
    assert "${__url_time_range}" in link["url"]
    explaining = re.search(r"viewPanel=panel-(\d+)$", link["url"])
    assert explaining
    assert int(explaining[1]) != panel["id"]
    of_source = any("{{bronze_source}}" in target["legendFormat"] for target in panel["targets"])
    assert ("var-source=${__field.labels.bronze_source}" if of_source else "${__all_variables}") in link["url"]


def test_every_alert_is_linked_from_a_panel() -> None:
    texts = (panel.get("description", "") for _, panel in PANELS)
    linked = {name for text in texts for name in re.findall(r"\[(Bronze\w+|Watchdog)\]", text)}
    assert linked == ALERTS


def test_alerts_are_listed_as_urgent_and_other_each_with_since_when_its_summary_and_its_runbook_entry() -> None:
    tables = {panel["title"]: panel for uid, panel in PANELS if uid == "bronze-health" and panel["type"] == "table"}
    for severity, title in (("page", "Alerts: urgent"), ("ticket", "Alerts: other")):
        table = tables[title]
        (target,) = table["targets"]
        assert f'severity="{severity}"' in target["expr"]
        of = {
            override["matcher"]["options"]: {prop["id"]: prop["value"] for prop in override["properties"]}
            for override in table["fieldConfig"]["overrides"]
        }
        assert of["Since"]["unit"] == "dateTimeFromNow"
        names = {rule.name for rule in RULES if isinstance(rule, Alert) and rule.severity == severity}
        summaries, anchors = (of[name]["mappings"][0]["options"] for name in ("Summary", "anchor"))
        assert {name for name, shown in summaries.items() if shown["text"] and "{{" not in shown["text"]} == names
        assert {name: shown["text"] for name, shown in anchors.items()} == {name: name.lower() for name in names}
        assert of["Alert"]["links"][0]["url"] == f"{RUNBOOK_URL}#${{__data.fields.anchor}}"


# --- a query


@each_promql
def test_a_query_reads_what_somebody_emits(query: Query) -> None:
    """Each name is of the schema, a recording of ours, or declared as foreign; each label is one that it has."""
    expr = query.asked(VALUES)
    for name in rules.names(expr):
        assert name in series() or name in RECORDINGS or name in EXTERNAL_METRICS, name
    for name, matchers in selectors(expr):
        if name in series() or name in EXTERNAL_METRICS:
            assert {key for key, _, _ in matchers} <= _labels(name)


def test_what_is_declared_as_foreign_is_read() -> None:
    assert EXTERNAL_METRICS.keys() - rules.EXTERNAL_METRICS.keys() <= set().union(
        *(rules.names(q.asked(VALUES)) for q in PROMQL)
    )


@each_promql
def test_a_legend_and_a_grouping_name_labels_that_are_there(query: Query) -> None:
    expr = query.asked(VALUES)
    grouped = [name.strip() for by in re.findall(r"\b(?:by|on) \(([^)]*)\)", expr) for name in by.split(",") if by]
    read = rules.names(expr) - RECORDINGS
    made = set(re.findall(r'label_(?:join|replace)\(.+?, "(\w+)"', expr))
    of_recordings = {"metric", "job", "instance", "part", "bronze_source", "bronze_field", "bronze_expectation"}
    known = {"metric"}.union(*map(_labels, read)) if read else of_recordings
    assert {*grouped, *query.labels} <= known | made
    if "sum by (" in expr:
        assert query.labels <= {*grouped}


@each_promql
def test_a_query_asks_for_values_that_are_emitted(query: Query) -> None:
    """A closed word is one of its attribute's."""
    for name, matchers in selectors(query.asked({k: v for k, v in VALUES.items() if k != "source"})):
        if metric := series().get(name):
            keys = {label(key): key for key in metric.attributes}
            for key, _, value in matchers:
                members = registry().attributes[keys[key]].members if key in keys else ()
                assert not members or "$" in value or not value or set(value.split("|")) <= set(members)


@each_promql
def test_a_query_reads_the_otlp_path(query: Query) -> None:
    for name, matchers in selectors(query.asked(VALUES)):
        if name in series():
            assert any(key == "job" and value.startswith("bronze/") for key, _, value in matchers), name


@each_promql
def test_windows_follow_the_time_range(query: Query) -> None:
    """No window is written out: a graph's is what the datasource's interval asks for, a number's the whole range. Only
    verdicts are asked for at each of their evaluations.
    """
    evaluations = f"{RANGE}:5s" if verdict.RECORD in query.expr else ""
    for window in re.findall(r"\[([^]]*)\]", query.expr):
        assert window in {STEP, INTERVAL, RANGE, f"{RANGE}:{STEP}", f"{RANGE}:{INTERVAL}", "1s:1s", "1h", evaluations}
    for offset in re.findall(r"\boffset\s+(\S+?)[\s)]", f"{query.expr} "):
        assert offset in {STEP, INTERVAL, RANGE, "$period"}


@each_promql
def test_counters_are_never_read_over_their_whole_life(query: Query) -> None:
    """What a counter has reached says when its process began; only whether it is there may be asked."""
    expr = query.asked(VALUES)
    for match in re.finditer(r'([a-zA-Z_:][\w:]*)\{(?:[^"{}]|"[^"]*")*\}', expr):
        metric = series().get(match[1])
        if metric and metric.instrument in {"counter", "histogram"}:
            follows, before = expr[match.end() :], expr[: match.start()]
            present = re.search(r"group by \([^)]*\) \($", before)
            assert present or follows.startswith(("[", " offset 30m)")), query.expr


@each_promql
def test_the_ledger_is_read_of_all_processes(query: Query) -> None:
    """Each reports the same numbers, at slightly different times: of one instance, a difference could be negative."""
    for name, matchers in selectors(query.expr):
        if name.startswith("bronze_ledger_"):
            assert {key for key, _, value in matchers if "$instance" in value} == set()


@each_promql
def test_lane_gauges_are_read_by_max(query: Query) -> None:
    """Several processes report the same lane: a sum would count it twice. `newest` is a maximum, too."""
    for name in re.findall(r"bronze_(?:lane_position|queue_\w+|upload_last\w+|delivery_objective\w+)", query.expr):
        assert re.search(rf"max(?: by \([^)]*\) )?\(\s*(?:max_over_time\()?{name}\{{", query.expr), name


def test_exemplars_are_asked_of_histograms_alone() -> None:
    asked = [query for query in PROMQL if query.exemplars]
    assert asked
    for query in asked:
        assert {name[-7:] for name in rules.names(query.asked(VALUES))} == {"_bucket"}


def test_traceql_selects_attributes_of_the_schema() -> None:
    for query in QUERIES:
        if query.kind == "traceql":
            for scope, attribute in re.findall(r"\b(span|resource)\.([\w.]+)", query.expr):
                assert attribute in registry().attributes, f"{scope}.{attribute}"


def test_each_metric_of_ours_is_on_a_panel() -> None:
    """But the sizes of bodies, which panels of records and bytes tell better."""
    unread = {metric for metric in registry().metrics if not boards.readers(registry().metrics[metric].prometheus_name)}
    assert {name for name in unread if not name.startswith("otel.sdk.")} == {
        "http.server.request.body.size",
        "http.server.response.body.size",
        "messaging.client.operation.duration",
    }


# --- the page


def test_the_page_tells_of_each_row() -> None:
    text = (boards.FOLDER.parents[2] / "docs" / "dashboards.md").read_text(encoding="utf-8")
    headings = re.findall(r"(?m)^##+ (.+)$", text)
    for document in DOCUMENTS.values():
        assert document["title"] in headings
        for panel in document["panels"]:
            if panel["type"] == "row":
                assert re.sub(r"\$\{(\w+):text\}", r"\1", panel["title"]) in headings
    assert set(re.findall(r"runbook\.md#(\w+)", text)) <= {alert.lower() for alert in ALERTS}


def _inside(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The panels of a dashboard, also in closed rows, and the headings of rows."""
    return [inner for panel in document["panels"] for inner in (panel, *panel.get("panels", ()))]


def _labels(name: str) -> frozenset[str]:
    return EXTERNAL_METRICS[name][1] if name in EXTERNAL_METRICS else labels_of(name)


def _found(tree: object, key: str) -> list[str]:
    """Every text under this key."""
    if isinstance(tree, list):
        return [text for one in tree for text in _found(one, key)]
    if isinstance(tree, dict):
        own = [tree[key]] if isinstance(tree.get(key), str) else []
        return own + [text for one in tree.values() for text in _found(one, key)]
    return []


def _variables(tree: object) -> set[str]:
    if isinstance(tree, str):
        return {first or second for first, second in re.findall(r"\$\{(\w+)[^}]*\}|\$(\w+)", tree)} - {"1"}
    if isinstance(tree, list):
        return set().union(*map(_variables, tree))
    if isinstance(tree, dict):
        return set().union(*map(_variables, tree.values()))
    return set()
