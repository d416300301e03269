"""Every query of every panel and every rule, asked of the real servers: of a system that nobody has used yet, then of
the same one under load.

What is asked is listed from the dashboards and the rules themselves: a new panel that has no data fails here.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import TypeVar
from urllib.parse import quote

import pytest

from local.builds import REPOSITORY, Built
from local.evidence import trace_store
from prometheus import rules
from prometheus.rules import RUNBOOK_URL, Alert, Recording, Thresholds
from tests import panels
from tests.panels import Query
from tests.pipeline.asking import DATASOURCES, Grafana
from tests.pipeline.whole import quicken, stack
from tests.system.blackbox import SOON, System, ndjson, until, vehicles

T = TypeVar("T")

QUERIES = panels.queries()
PROMQL = [query for query in QUERIES if query.datasource == "prometheus"]
TRACEQL = [query for query in QUERIES if query.datasource == "tempo"]
SEARCHES = [query for query in TRACEQL if query.kind == "traceql"]
#: So that what was accepted is settled and both ways are compared within the test, and an alert fires.
QUICK = replace(Thresholds(), bad_min=1, page_hold_s=1, settle_s=5, parity_lag_s=6)
RULES = [rule for of_file in rules.groups(QUICK).values() for group in of_file for rule in group.rules]

#: An hour ago this system was not there; a panel that compares is given a past in test_panels_compared.
PERIOD = {"period": "10s"}
#: What a panel says where a part of the system is silent. One that reads what nobody has done yet says so in other
#: words.
SILENCE = re.compile(r"reported|evaluated|scraped")
#: Selectors of what begins with the first failure, and why.
BEGINS_WITH_A_FAILURE = {
    r'"otelcol_exporter_(send|enqueue)_failed_': "the Collector makes a counter of failures at the first one",
    r'code=~"\[45\].+"prometheus_http_requests_total"': "Prometheus counts a status once it has answered it",
    r'otel_metric_overflow="true"': "the SDK makes this series of what is too much for it",
}
UPLOADS = "bronze_uploads_total"
#: What is wrong in as many ways as there are.
REFUSED: Mapping[int, tuple[str, bytes, dict[str, str]]] = {
    400: ("vehicles", b"{", {}),
    404: ("nowhere", b"{}", {}),
    415: ("vehicles", b"{}", {"Content_Type": "text/csv"}),
    422: ("vehicles", b'{"vehicle_id": 1}', {}),
}


@pytest.fixture(scope="module")
def idle(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grafana]:
    """A system that has just started."""
    whole = stack(tmp_path_factory.mktemp("panels"), built)
    quicken(whole, QUICK)
    system = System(whole, SOON)
    with system.running(*whole.servers), system.running(system.role("api"), system.role("consumer")):
        yield Grafana(system, PERIOD)


@pytest.fixture(scope="module")
def busy(idle: Grafana) -> Iterator[Grafana]:
    """The same under load: all sources, refusals, uploads that failed. Somebody looks for one of its submissions."""
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
        ids = {name: accepted[name] for name in ("submission_id", "classification_id", "trace_id")}
        yield Grafana(system, {**PERIOD, **ids, "file_path": stored["file_path"]})


def test_an_idle_system_has_data_or_words_for_what_nobody_has_done(idle: Grafana) -> None:
    """No panel is empty without a word, and none says that a part of the system is silent."""
    shown = {(uid, panel["title"]) for uid, panel in panels.panels() if panel["type"] != "text"}
    asked = {(query.dashboard, query.panel) for query in QUERIES}
    assert shown <= asked, "panels that ask nothing"

    def is_well(panel: tuple[str, str]) -> bool:
        queries = [query for query in PROMQL if (query.dashboard, query.panel) == panel and not is_line(query)]
        has_data = [bool(idle.ask(query)) for query in queries]  # each is asked, or none of their errors is seen
        return any(has_data) or all(query.nothing and not SILENCE.search(query.nothing) for query in queries)

    settled(shown, is_well)
    if has_tempo(idle):
        for query in SEARCHES:
            idle.search(query)


def test_every_query_has_data_under_load(busy: Grafana) -> None:
    """Every query of a panel, a variable or an annotation has an answer, with the labels that its legend names. One
    that looks for what is wrong may find nothing: what it reads is there.
    """
    expressions = {query: busy.expression(query) for query in PROMQL}
    finds = {query for query, expr in expressions.items() if busy.parsed(expr).finds}

    def has_data(query: Query) -> bool:
        answer = busy.ask(query)
        some = any if query.panel.startswith("annotation ") else all  # each mark has a label of its kind, or two
        labelled = all(some(label in series.labels for label in query.labels) for series in answer if query.labels)
        return labelled and bool(answer or query in finds)

    settled(expressions, has_data)
    settled([query for query in PROMQL if query.exemplars], lambda query: bool(busy.exemplars(query)))
    quiet = sum(not busy.ask(query) for query in finds)
    print(  # noqa: T201
        f"{len(panels.panels())} panels, {len(QUERIES)} queries: {len(PROMQL)} in PromQL, {quiet} of which look for"
        f" what is wrong and found nothing; {len(TRACEQL)} for Tempo"
    )


def test_every_rule_has_data_under_load(busy: Grafana) -> None:
    """Prometheus evaluates every rule, and each recording has a value."""
    running = busy.system.prometheus("rules")["groups"]
    assert Counter(rule["name"] for group in running for rule in group["rules"]) == Counter(r.name for r in RULES)

    def is_well(rule: Recording | Alert) -> bool:
        return isinstance(rule, Alert) or bool(busy.system.prometheus("query", query=rule.name)["result"])

    settled(RULES, is_well)
    rules_now = [rule for group in busy.system.prometheus("rules")["groups"] for rule in group["rules"]]
    assert {(rule["health"], rule.get("lastError", "")) for rule in rules_now} == {("ok", "")}
    print(f"{len(RULES)} rules, {sum(isinstance(rule, Alert) for rule in RULES)} of them alerts")  # noqa: T201


def test_whatever_panels_and_rules_read_is_there(busy: Grafana) -> None:
    """Each selector, wherever in an expression, selects a series: also of those that look for what is wrong."""
    expressions = [*(busy.expression(query) for query in PROMQL), *(rule.expr for rule in RULES)]
    selectors = {selector for expr in expressions for selector in busy.parsed(expr).selectors()}
    begin_late = {one: reason for one in selectors if (reason := begins_late(one))}
    settled(selectors - begin_late.keys(), busy.has)
    assert set(begin_late.values()) == set(BEGINS_WITH_A_FAILURE.values())
    print(f"{len(selectors)} selectors, {len(begin_late)} of which begin with a failure")  # noqa: T201


def test_traceql_finds_under_load(busy: Grafana) -> None:
    """Every search has an answer, and so have the trace and the service graph."""
    if not has_tempo(busy):
        pytest.skip(f"NOT RUN: {len(TRACEQL)} queries for Tempo; there is no program `tempo` on PATH")
    settled(SEARCHES, lambda query: bool(busy.search(query)))
    (trace,) = (query for query in TRACEQL if query.kind == "trace")
    store = trace_store(busy.system.stack)
    assert store
    settled([trace], lambda query: store.trace(busy.expression(query)).spans > 0)
    # Grafana has the graph from Prometheus, to which Tempo writes it
    settled(["traces_service_graph_request_total"], lambda name: busy.has(f'{name}{{client="api", server="consumer"}}'))


def test_every_link_leads_somewhere(busy: Grafana) -> None:
    """To a panel that exists, with variables that it has, or to the API's page, which finds what the link names."""
    links = {link.replace("$$", "$") for link in found([panels.documents(), DATASOURCES], "url") if "/" in link}
    assert links
    for link in links:
        if dashboard := re.match(r"/d/([\w-]+)\?", link):
            document = panels.documents()[dashboard[1]]
            ids = {f"panel-{panel['id']}" for uid, panel in panels.panels() if uid == dashboard[1]}
            assert set(re.findall(r"viewPanel=([\w-]+)", link)) <= ids
            variables = {one["name"] for one in document["templating"]["list"]}
            assert set(re.findall(r"var-(\w+)=", link)) <= variables
            continue
        page = re.fullmatch(r"\$\{api_url\}(/\?q=)\$\{[\w.]+(:percentencode)?\}", link, re.IGNORECASE)
        assert page, link
        for by in ("submission_id", "file_path", "trace_id"):
            value = busy.typed[by]
            found_by = busy.system.get(page[1] + (quote(value, safe="") if page[2] else value)).text
            assert f"Found by {by}" in found_by, link


def test_every_anchor_is_a_heading() -> None:
    """Of the pages that panels and alerts lead to, and of what those lead to."""
    files = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    pages = {page.name: page.read_text(encoding="utf-8") for page in files}
    headings = {name: set(map(anchor, re.findall(r"(?m)^#+ (.+)$", text))) for name, text in pages.items()}
    words = [text for key in ("description", "content") for text in found(panels.documents(), key)]
    alerts = [f"]({RUNBOOK_URL}#{rule.name.lower()})" for rule in RULES if isinstance(rule, Alert)]
    for name, text in [*pages.items(), *(("", text) for text in (*words, *alerts))]:
        for page, heading in re.findall(r"\]\(([^)\s]*)#([^)\s]+)\)", text):
            assert heading in headings[page.rpartition("/")[2] or name], f"{name}: {page}#{heading}"


def settled(asked: Iterable[T], is_well: Callable[[T], bool]) -> None:
    """Returns when all are well; fails with those that are not within a minute."""
    waiting = list(asked)

    def are_well() -> bool:
        waiting[:] = [one for one in waiting if not is_well(one)]
        return not waiting

    try:
        until("all are well", are_well, timeout_s=60)
    except AssertionError:
        pytest.fail("without data:\n" + "\n".join(map(str, waiting)))


def is_line(query: Query) -> bool:
    """What a panel judges by is no data."""
    return query.legend.startswith("limit")


def begins_late(selector: str) -> str | None:
    return next((reason for of, reason in BEGINS_WITH_A_FAILURE.items() if re.search(of, selector)), None)


def has_tempo(grafana: Grafana) -> bool:
    return "tempo" in grafana.system.stack.exporters.traces


def anchor(heading: str) -> str:
    """As the pages of a repository have it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def found(tree: object, key: str) -> Iterator[str]:
    """Every text under this key."""
    if isinstance(tree, list):
        for one in tree:
            yield from found(one, key)
    if isinstance(tree, dict):
        if isinstance(tree.get(key), str):
            yield tree[key]
        for one in tree.values():
            yield from found(one, key)
