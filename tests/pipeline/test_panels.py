"""Every query of every panel and rule, run against the real servers: of an unused system, then of the same system under
load.

The queries are read from the dashboards and rules themselves, so a new panel without data fails here.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import TypeVar
from urllib.parse import quote

import pytest

from grafana.components import RUNBOOK_URL
from local.builds import REPOSITORY, Built
from local.evidence import trace_store
from prometheus import rules
from prometheus.rules import Alert, Recording, Thresholds
from tests import panels
from tests.inbox import open_inbox
from tests.panels import Query
from tests.pipeline.asking import DATASOURCES, Grafana
from tests.pipeline.whole import quicken, stack
from tests.system.blackbox import SOON, System, ndjson, until, vehicles

T = TypeVar("T")

QUERIES = panels.queries()
PROMQL = [query for query in QUERIES if query.datasource == "prometheus"]
TRACEQL = [query for query in QUERIES if query.datasource == "tempo"]
SEARCHES = [query for query in TRACEQL if query.kind == "traceql"]
#: Short times, so that recordings have values and an alert fires within the test.
QUICK = replace(Thresholds(), bad_min=1, page_hold_s=1, parity_lag_s=6)
RULES = [rule for of_file in rules.groups(QUICK).values() for group in of_file for rule in group.rules]

#: This system did not exist an hour ago. test_panels_compared tests the comparing panels with earlier data.
PERIOD = {"period": "10s"}
#: Texts of panels for a part of the system that does not report. Texts for "nothing happened yet" are different.
SILENCE = re.compile(r"reported|evaluated|scraped")
_OF_A_PAST = "bronze:(data_(volume|age:usual|problem|fields:(new|watched))|field_nulls|expectation)"
#: Selectors of series that begin with the first failure, and the reason.
BEGINS_WITH_A_FAILURE = {
    r'"otelcol_exporter_(send|enqueue)_failed_': "the Collector makes a counter of failures at the first one",
    r'http_response_status_code=~"5': "the API has the series of a status once it has answered it",
    r'code=~"4\.\.".+"prometheus_http_requests_total"': "Prometheus counts a status once it has answered it",
    r'job!="bronze/verify".*"bronze_verify_(share|last_run)': "only a role that verifies all the time has these series",
    r'alertstate="firing", severity="(page|ticket)".*"ALERTS"': "an alert has a series only while it fires",
    r'otel_metric_overflow="true"': "the SDK makes this series of what is too much for it",
    r'bronze_outcome="failure".+"bronze_retention_last_run': "the role has the time of a failed run once one failed",
    f'"{_OF_A_PAST}': "the past is minutes or days long",
    r"_event_lateness_\w+\"": "no built-in source declares an event time",
    r"_(sla_threshold_seconds|expectation_\w+)\"": "the built-in sources expect nothing",
    r"_principal_\w+\"": "only keys have principals",
}
#: Series that need a past, which tests/pipeline/test_data_board.py has, or another declaration.
NEEDS_A_PAST = re.compile(f"{_OF_A_PAST}|_expectation_|_principal_|_lateness_")
UPLOADS = "bronze_uploads_total"
#: Requests that are refused, by their status.
REFUSED: Mapping[int, tuple[str, bytes, dict[str, str]]] = {
    400: ("vehicles", b"{", {}),
    404: ("nowhere", b"{}", {}),
    415: ("vehicles", b"{}", {"Content_Type": "text/csv"}),
    422: ("vehicles", b'{"vehicle_id": 1}', {}),
}


@pytest.fixture(scope="module")
def idle(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grafana]:
    """A system that has just started. Only its canary sends, which panels of data do not count."""
    with open_inbox() as inbox, pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRONZE_WEBHOOK_URL", inbox.url)  # so Prometheus has a target for `bronze notify`, too
        patch.setenv("BRONZE_WEBHOOK_SECRETS", f"whsec_{'A' * 32}")
        patch.setenv("BRONZE_RETENTION_DAYS", "365")  # the same for `bronze retain`
        whole = stack(tmp_path_factory.mktemp("panels"), built)
        quicken(whole, QUICK)
        system = System(whole, SOON)
        canary = system.role("canary", BRONZE_CANARY_INTERVAL_S="5")
        roles = [system.role(name) for name in ("api", "consumer", "table", "notify", "retain")]
        with system.running(*whole.servers), system.running(*roles, canary):
            yield Grafana(system, PERIOD)


@pytest.fixture(scope="module")
def busy(idle: Grafana) -> Iterator[Grafana]:
    """The same system under load, with all sources, refusals and failed uploads, and the ids of a submission."""
    system = idle.system
    publisher = system.role("publisher")
    with ExitStack() as load:
        load.enter_context(system.running(replace(publisher, command=(*publisher.command, "--interval-s", "0.3"))))
        with system.bucket_refuses():
            until("an upload fails", lambda: system.metrics("consumer").sum(UPLOADS, error_type="denied"))
        for status, (source, body, headers) in REFUSED.items():
            assert system.post(source, body, **headers).status_code == status
        accepted = system.post("vehicles", ndjson(vehicles("looked-for", 3))).json()
        (stored,) = system.stored(accepted["submission_id"])["objects"]
        until("a verification of exemplars", lambda: verifies_exemplars(system), timeout_s=60)
        ids = {name: accepted[name] for name in ("submission_id", "classification_id", "trace_id")}
        yield Grafana(system, {**PERIOD, **ids, "file_path": stored["file_path"]})


def verifies_exemplars(system: System) -> bool:
    """Runs `bronze verify`. Returns whether exemplars had arrived, and each led to its object."""
    done = system.verify("--json", "-")
    assert done.returncode == 0, done.stdout
    return any(check["check"] == "exemplar" and check["checked"] for check in json.loads(done.stdout)["checks"])


def test_panels_of_an_idle_system_have_data_or_a_text(idle: Grafana) -> None:
    """No panel is empty without a text, and no panel shows that a part of the system does not report."""
    shown = {(uid, panel["title"]) for uid, panel in panels.panels() if panel["type"] != "text"}
    queried = {(query.dashboard, query.panel) for query in QUERIES}
    assert shown <= queried, "panels without queries"

    def is_well(panel: tuple[str, str]) -> bool:
        queries = [query for query in PROMQL if (query.dashboard, query.panel) == panel and not is_limit(query)]
        has_data = [bool(idle.ask(query)) for query in queries]  # every query runs, so that the errors of each are seen
        return any(has_data) or all(query.no_data and not SILENCE.search(query.no_data) for query in queries)

    settled(shown, is_well)
    if has_tempo(idle):
        for query in SEARCHES:
            idle.search(query)


def test_every_query_has_data_under_load(busy: Grafana) -> None:
    """Every query of a panel, variable or annotation has a result, with the labels in its legend. A query that filters
    for failures may have none, but the series that it reads exist.
    """
    expressions = {query: busy.expression(query) for query in PROMQL}
    finds = {query for query, expr in expressions.items() if busy.parsed(expr).finds}

    def has_data(query: Query) -> bool:
        answer = busy.ask(query)
        some = (
            any if query.panel.startswith("annotation ") else all
        )  # an annotation has some of the labels, depending on its kind
        labelled = all(some(label in series.labels for label in query.labels) for series in answer if query.labels)
        return labelled and bool(answer or query in finds or NEEDS_A_PAST.search(query.expr))

    settled(expressions, has_data)
    settled([query for query in PROMQL if query.exemplars], lambda query: bool(busy.exemplars(query)))
    quiet = sum(not busy.ask(query) for query in finds)
    print(  # noqa: T201
        f"{len(panels.panels())} panels, {len(QUERIES)} queries: {len(PROMQL)} in PromQL, {quiet} of which filter for"
        f" failures and found none; {len(TRACEQL)} for Tempo"
    )


def test_every_rule_has_data_under_load(busy: Grafana) -> None:
    """Prometheus evaluates every rule, and each recording has a value."""
    running = busy.system.prometheus("rules")["groups"]
    assert Counter(rule["name"] for group in running for rule in group["rules"]) == Counter(r.name for r in RULES)

    def is_well(rule: Recording | Alert) -> bool:
        if isinstance(rule, Alert) or NEEDS_A_PAST.match(rule.name):
            return True
        return bool(busy.system.prometheus("query", query=rule.name)["result"])

    settled(RULES, is_well)
    rules_now = [rule for group in busy.system.prometheus("rules")["groups"] for rule in group["rules"]]
    assert {(rule["health"], rule.get("lastError", "")) for rule in rules_now} == {("ok", "")}
    print(f"{len(RULES)} rules, {sum(isinstance(rule, Alert) for rule in RULES)} of them alerts")  # noqa: T201


def test_all_series_that_panels_and_rules_read_exist(busy: Grafana) -> None:
    """Each selector in each expression matches a series, also in queries that filter for failures."""
    expressions = [*(busy.expression(query) for query in PROMQL), *(rule.expr for rule in RULES)]
    selectors = {selector for expr in expressions for selector in busy.parsed(expr).selectors()}
    begin_late = {selector: reason for selector in selectors if (reason := begins_late(selector))}
    settled(selectors - begin_late.keys(), busy.has)
    assert set(begin_late.values()) == set(BEGINS_WITH_A_FAILURE.values())
    print(f"{len(selectors)} selectors, {len(begin_late)} of which begin with a failure")  # noqa: T201


def test_traceql_finds_under_load(busy: Grafana) -> None:
    """Every search has a result, and so have the trace and the service graph."""
    if not has_tempo(busy):
        pytest.skip(f"NOT RUN: {len(TRACEQL)} queries for Tempo; there is no program `tempo` on PATH")
    settled(SEARCHES, lambda query: bool(busy.search(query)))
    (trace,) = (query for query in TRACEQL if query.kind == "trace")
    store = trace_store(busy.system.stack)
    assert store
    settled([trace], lambda query: store.trace(busy.expression(query)).spans > 0)
    # Grafana reads the graph from Prometheus, to which Tempo writes it
    settled(["traces_service_graph_request_total"], lambda name: busy.has(f'{name}{{client="api", server="consumer"}}'))


def test_every_link_leads_somewhere(busy: Grafana) -> None:
    """To an existing panel with existing variables, or to the API's page, which finds the id or path in the link."""
    links = {link.replace("$$", "$") for link in found([panels.documents(), DATASOURCES], "url") if "/" in link}
    assert links
    for link in links:
        if dashboard := re.match(r"/d/([\w-]+)\?", link):
            document = panels.documents()[dashboard[1]]
            ids = {f"panel-{panel['id']}" for uid, panel in panels.panels() if uid == dashboard[1]}
            assert set(re.findall(r"viewPanel=([\w-]+)", link)) <= ids
            variables = {variable["name"] for variable in document["templating"]["list"]}
            assert set(re.findall(r"var-(\w+)=", link)) <= variables
            continue
        if link == f"{RUNBOOK_URL}#${{__data.fields.anchor}}":  # test_every_anchor_is_a_heading
            continue
        page = re.fullmatch(r"\$\{api_url\}(/\?q=)\$\{[\w.]+(:percentencode)?\}", link, re.IGNORECASE)
        assert page, link
        for by, kind in (("submission_id", "submission"), ("file_path", "object"), ("trace_id", "trace")):
            value = busy.typed[by]
            found_by = busy.system.get(page[1] + (quote(value, safe="") if page[2] else value)).text
            assert f"Found by {kind}" in found_by, link


def test_every_anchor_is_a_heading() -> None:
    """The links in the pages that panels and alerts link to have existing targets, too."""
    files = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    pages = {page.name: page.read_text(encoding="utf-8") for page in files}
    headings = {name: set(map(anchor, re.findall(r"(?m)^#+ (.+)$", text))) for name, text in pages.items()}
    words = [text for key in ("description", "content") for text in found(panels.documents(), key)]
    alerts = [f"]({RUNBOOK_URL}#{rule.name.lower()})" for rule in RULES if isinstance(rule, Alert)]
    for name, text in [*pages.items(), *(("", text) for text in (*words, *alerts))]:
        for page, heading in re.findall(r"\]\(([^)\s]*)#([^)\s]+)\)", text):
            file = "runbook.md" if page == RUNBOOK_URL else page.rpartition("/")[2]
            assert heading in headings[file or name], f"{name}: {page}#{heading}"


def settled(items: Iterable[T], is_well: Callable[[T], bool]) -> None:
    """Waits until `is_well` is true for all items. Fails after a minute and names the others."""
    waiting = list(items)

    def are_well() -> bool:
        waiting[:] = [item for item in waiting if not is_well(item)]
        return not waiting

    try:
        until("all are well", are_well, timeout_s=60)
    except AssertionError:
        pytest.fail("without data:\n" + "\n".join(map(str, waiting)))


def is_limit(query: Query) -> bool:
    """Whether a query only draws the limit of a panel, which is no data."""
    return query.legend.startswith("limit")


def begins_late(selector: str) -> str | None:
    return next((reason for of, reason in BEGINS_WITH_A_FAILURE.items() if re.search(of, selector)), None)


def has_tempo(grafana: Grafana) -> bool:
    return "tempo" in grafana.system.stack.exporters.traces


def anchor(heading: str) -> str:
    """The anchor of a heading, as repository hosts generate it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def found(tree: object, key: str) -> Iterator[str]:
    """Every text under this key."""
    if isinstance(tree, list):
        for child in tree:
            yield from found(child, key)
    if isinstance(tree, dict):
        if isinstance(tree.get(key), str):
            yield tree[key]
        for child in tree.values():
            yield from found(child, key)
