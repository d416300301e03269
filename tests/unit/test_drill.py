"""`make drill`: its cases name alerts, entries and panels that exist, and it reads Alertmanager's rules correctly."""

from pathlib import Path

import pytest

from prometheus import rules
from prometheus.rules import Alert, Thresholds
from tests import panels
from tests.drill import manual, results
from tests.drill.alerts import WATCHDOG, Inhibition, Labels, Routing, Watch
from tests.drill.cases import CASES, Case, Panel
from tests.drill.manual import Entry
from tests.drill.results import AlertResult, Result, StepResult

ALERTS = {
    (rule.name, rule.severity): rule
    for of_file in rules.groups(Thresholds()).values()
    for group in of_file
    for rule in group.rules
    if isinstance(rule, Alert)
}
RUNBOOK = manual.rendered()

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@each_case
def test_a_case_expects_alerts_that_exist(case: Case) -> None:
    assert case.alerts.keys() | case.after.keys() <= ALERTS.keys()
    assert not case.entry or case.entry in {name for name, _ in ALERTS}


@each_case
def test_the_entry_of_a_case_names_it_and_has_its_commands(case: Case) -> None:
    name = case.symptom[0] if case.symptom else case.entry
    if not name:
        assert not case.says
        return
    entry = Entry.of(RUNBOOK, name.lower())
    assert entry
    assert case.says
    assert case.repair
    assert entry.says(case.says)
    assert entry.says(case.repair)
    for word in case.prints:
        assert any(word in script for script in entry.blocks("sh")), word


@each_case
def test_the_panel_of_a_case_exists(case: Case) -> None:
    if isinstance(case.cause, Panel):
        titles = {(uid, panel["title"]) for uid, panel in panels.panels()}
        assert (case.cause.dashboard, case.cause.title) in titles


def test_an_entry_ends_at_the_next_heading() -> None:
    entry = Entry.of(RUNBOOK, "bronzerecordsmissing")
    assert entry
    assert entry.blocks("promql")
    assert entry.says("do not change the queue's streams")
    assert not entry.says("User impact. New data of this source is missing")
    assert Entry.of(RUNBOOK, "bronzenothing") is None


# --- alerts


def labels(name: str, severity: str = "page", **others: str) -> Labels:
    return {"alertname": name, "severity": severity, **others}


def test_a_rule_silences_what_it_names_with_equal_labels() -> None:
    rule = Inhibition(('alertname="Cause"',), ('alertname=~"Effect.*"', 'step!="put"'), ("source",))
    cause = labels("Cause", source="a")
    assert rule.silences(cause, labels("Effect", source="a"))
    assert not rule.silences(cause, labels("Effect", source="b"))
    assert not rule.silences(cause, labels("Effect", source="a", step="put"))
    assert not rule.silences(cause, labels("Other", source="a"))
    assert not rule.silences(labels("Effect", source="a"), cause)


def test_an_alert_on_both_sides_of_a_rule_is_not_silenced() -> None:
    rule = Inhibition(('severity="page"',), ('alertname=~"A|B"',))
    assert not rule.silences(labels("A"), labels("B"))


def test_the_rules_of_alertmanager_name_alerts_and_labels_that_exist() -> None:
    """Each rule silences some alert because of another one."""
    known = [labels(*key) for key in ALERTS]
    for rule in Routing.read().inhibitions:
        names = {"alertname", "severity"}
        sources = tuple(matcher for matcher in rule.sources if matcher.split("=")[0].rstrip("!") in names)
        targets = tuple(matcher for matcher in rule.targets if matcher.split("=")[0].rstrip("!") in names)
        equal = tuple(label for label in rule.equal if label in names)
        general = Inhibition(sources, targets, equal)
        assert any(general.silences(source, target) for source in known for target in known), rule


def test_a_page_silences_the_ticket_of_the_same_alert_only() -> None:
    routing = Routing.read()
    page, ticket = labels("BronzeUploadsSlow"), labels("BronzeUploadsSlow", "ticket")
    other = labels("BronzeRequestsSlow", "ticket")
    assert routing.unsilenced([page, ticket, other]) == [page, other]


def test_the_watch_tells_what_was_sent_from_what_was_silenced() -> None:
    """An alert is sent after the wait, unless another one silences it by then."""
    said: list[str] = []
    routing = Routing((Inhibition(('alertname="Cause"',), ('alertname="Effect"',)),), wait_s=30)
    watch = Watch("http://none", routing, said.append)

    def at(second: float, *alerts: tuple[str, str]) -> None:
        seen = [
            {"labels": labels(name), "state": state, "annotations": {"summary": "", "runbook_url": f"#{name}"}}
            for name, state in alerts
        ]
        watch.record(seen, watch.began_at + second)

    at(10, ("Effect", "pending"))
    at(20, ("Effect", "firing"), ("Cause", "pending"))
    at(40, ("Effect", "firing"), ("Cause", "firing"))
    at(80, ("Effect", "firing"), ("Cause", "firing"))
    at(85, ("Effect", "firing"))  # ends soon after its cause
    at(90)
    effect, cause = watch.courses["Effect", "page"], watch.courses["Cause", "page"]
    times = [round(course.firing_s or 0) for course in (effect, cause)]
    assert times == [20, 40]
    assert effect.sent_s is None
    assert round(cause.sent_s or 0) == 80
    assert [round(course.resolved_s or 0) for course in (effect, cause)] == [90, 85]
    assert watch.fired() == {("Effect", "page"), ("Cause", "page")}


# --- the page


def result(case: str, **fields: object) -> Result:
    alerts = (
        AlertResult("BronzePoison", "ticket", 5, 605, 635, 300, ""),
        AlertResult("BronzeRecordsQuarantined", "ticket", 5, 610, None, 300, None),
    )
    given: dict[str, object] = {
        "case": case,
        "fault": "a fault",
        "passed": True,
        "problems": (),
        "alerts": alerts,
        "entry": "BronzePoison",
        "steps": (StepResult("a | b", "none"),),
        "cause": "a panel",
        "repair": "start it",
        "quiet_s": None,
        "seconds": 1200,
        "ended": "2026-01-01T00:00:00+00:00",
        "code": "x",
        "evaluation_s_max": 0.1,
        "evaluations_missed": 0,
    }
    return Result(**{**given, **fields})  # type: ignore[arg-type]


def test_a_case_replaces_its_row(tmp_path: Path) -> None:
    order = ["first", "second"]
    results.write(tmp_path, [result("second"), result("first", passed=False, problems=("late",))], order)
    results.write(tmp_path, [result("first")], order)
    kept = results.read(tmp_path / results.RESULTS)
    assert list(kept) == order
    assert all(of.passed for of in kept.values())
    page = (tmp_path / results.PAGE).read_text()
    assert page == results.written(list(kept.values()))
    assert "BronzeRecordsQuarantined](runbook.md#bronzerecordsquarantined) (ticket) after 610 s: silenced" in page


def test_the_committed_page_is_what_the_results_say() -> None:
    kept = results.read(results.DOCS / results.RESULTS)
    if not kept:
        pytest.skip("no results yet")
    assert (results.DOCS / results.PAGE).read_text(encoding="utf-8") == results.written(list(kept.values()))
    assert list(kept) == [case.name for case in CASES if case.name in kept]


def test_the_watchdog_is_the_only_alert_without_severity() -> None:
    assert [name for name, severity in ALERTS if severity == "none"] == [WATCHDOG]
