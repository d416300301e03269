"""Rules of Prometheus: joined with the schema, in sync with their files, each alert with cases and a way to act."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from bronze.telemetry.schema import registry
from bronze.telemetry.signals import attribute
from prometheus import rules
from prometheus.rules import EXTERNAL_METRICS, FOLDER, Alert, Recording, Thresholds
from tests import promql
from tests.promql import label, selectors, series

#: The tests in each file of cases.
CASES: Mapping[str, Sequence[Any]] = {
    file.stem: yaml.safe_load(file.read_text())["tests"] for file in sorted((FOLDER.parent / "tests").glob("*.yaml"))
}
RULES = [rule for of_file in rules.groups(Thresholds()).values() for group in of_file for rule in group.rules]
ALERTS = [rule for rule in RULES if isinstance(rule, Alert)]
RECORDINGS = {rule.name for rule in RULES if isinstance(rule, Recording)}
PARITY = {rule.expr for group in rules.groups(Thresholds())["parity"] for rule in group.rules}

_LABELS = re.compile(r"\b(?:by|on|group_left)\s*\(([^)]*)\)")

each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


def labels_of(name: str) -> frozenset[str]:
    return EXTERNAL_METRICS[name][1] if name in EXTERNAL_METRICS else promql.labels_of(name)


def test_the_rule_files_are_in_sync() -> None:
    """The committed files are those that the module writes; `--check` says which is not, and what to run."""
    assert rules.out_of_sync() == []


def test_check_names_a_file_that_is_not_in_sync_and_one_that_is_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "parity.yaml").write_text("groups: []\n")
    (tmp_path / "extra.yaml").write_text("groups: []\n")
    monkeypatch.setattr(rules, "FOLDER", tmp_path)
    monkeypatch.setattr("sys.argv", ["rules", "--check"])
    with pytest.raises(SystemExit, match=r"extra\.yaml, parity\.yaml .* run python -m prometheus\.rules"):
        rules.main()
    assert (tmp_path / "parity.yaml").read_text() == "groups: []\n"


# --- the join with the schema


@each_rule
def test_a_rule_reads_what_somebody_emits(rule: Alert | Recording) -> None:
    """Each name is of the schema, a recording of ours, or declared as foreign; each label is one that it has."""
    for name in rules.names(rule.expr):
        assert name in series() or name in RECORDINGS or name in EXTERNAL_METRICS, name
    for name, matchers in selectors(rule.expr):
        if name and not name.startswith(("bronze:", "instance:")):
            assert {key for key, _, _ in matchers} <= labels_of(name)


@each_rule
def test_a_rule_groups_by_labels_that_what_it_reads_has(rule: Alert | Recording) -> None:
    of_all = {"job", "instance", "metric", "role", label(attribute.bronze_source), label(attribute.bronze_field)}
    known = of_all.union(*(labels_of(name) for name in rules.names(rule.expr) if name not in RECORDINGS))
    for listed in _LABELS.findall(rule.expr):
        assert {name.strip() for name in listed.split(",") if name.strip()} <= known


@each_rule
def test_a_rule_asks_for_values_that_are_emitted(rule: Alert | Recording) -> None:
    """A closed word is one of its attribute's, and a counter's role emits it."""
    for name, matchers in selectors(rule.expr):
        metric = series().get(name)
        if not metric:
            continue
        keys = {label(key): key for key in metric.attributes}
        wanted = {keys[key]: set(value.split("|")) for key, _, value in matchers if key in keys and value}
        for key, words in wanted.items():
            members = registry().attributes[key].members
            assert not members or words <= set(members)
        role = next(
            (value.partition("/")[2] for key, _, value in matchers if (key, value[:7]) == ("job", "bronze/")), ""
        )
        if metric.emits.get(role):
            emitted = list(metric.combinations(role, ["vehicles", "canary"]))
            assert emitted
            for key, words in wanted.items():
                assert words <= {combination[key] for combination in emitted if key in combination}


@each_rule
def test_a_rule_reads_the_otlp_path(rule: Alert | Recording) -> None:
    """Our metrics are read by `job="bronze/..."` wherever they are not compared with what was scraped."""
    for name, matchers in selectors(rule.expr):
        if name in series() and rule.expr not in PARITY:
            assert any(key == "job" and value.startswith("bronze/") for key, _, value in matchers), name
    for name in rules.names(rule.expr) & series().keys():
        assert any(name == selected for selected, _ in selectors(rule.expr)), f"{name} of any job"


def test_lane_gauges_are_read_by_max() -> None:
    """Several processes report the same lane: a sum would count it twice."""
    for rule in RULES:
        for name in re.findall(r"bronze_(?:lane_position|queue_\w+|upload_last\w+|delivery_objective\w+)", rule.expr):
            assert re.search(rf"max(?: by \([^)]*\) )?\(\s*(?:max_over_time\()?{name}\{{", rule.expr), rule.name


def test_what_is_declared_as_foreign_is_read() -> None:
    assert set(EXTERNAL_METRICS) == set().union(*(rules.names(rule.expr) for rule in RULES)) - RECORDINGS - set(
        series()
    )


def test_every_counter_is_compared_on_both_ways_for_each_role_that_emits_it() -> None:
    compared = {
        (rule.name, rule.labels["role"], rule.labels["metric"])
        for rule in RULES
        if isinstance(rule, Recording) and rule.name in {"instance:counter:otlp", "instance:counter:scraped"}
    }
    assert compared == {
        (f"instance:counter:{way}", role, metric.prometheus_name)
        for way in ("otlp", "scraped")
        for metric in registry().metrics.values()
        for role in metric.emits
    }


# --- alerts


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: f"{alert.name}-{alert.severity}")
def test_an_alert_has_a_case_that_fires(alert: Alert) -> None:
    def fires(asked: dict[str, Any]) -> bool:
        severity = re.search(r'severity="(\w+)"', asked["expr"])
        named = "ALERTS" in asked["expr"] and alert.name in asked["expr"]
        return named and bool(asked["exp_samples"]) and (not severity or severity[1] == alert.severity)

    cases = [case for of_file in CASES.values() for case in of_file]
    told = (asked for case in cases for asked in case.get("alert_rule_test", ()))
    assert any(asked["alertname"] == alert.name and asked["exp_alerts"] for asked in told) or any(
        fires(asked) for case in cases for asked in case.get("promql_expr_test", ())
    )


@pytest.mark.parametrize("file", CASES)
def test_no_alert_fires_nor_is_pending_on_a_healthy_system(file: str) -> None:
    """A case says so, in which all that the file's rules read is there."""
    (case,) = [case for case in CASES[file] if case["name"] == "a healthy system"]
    asked = case["promql_expr_test"][0]
    assert asked["expr"] == ('ALERTS{alertname!="Watchdog"}' if file == "telemetry" else "ALERTS")
    assert asked["exp_samples"] == []
    there = {given["series"].partition("{")[0] for given in case["input_series"]}
    of_file = [rule for group in rules.groups(Thresholds())[file] for rule in group.rules]
    assert set().union(*(rules.names(rule.expr) for rule in of_file)) - RECORDINGS == there


def test_a_single_event_holds_until_its_ticket() -> None:
    thresholds = Thresholds()
    assert thresholds.page_hold_s < thresholds.ticket_hold_s < thresholds.recent_s


def test_every_alert_says_what_to_do() -> None:
    for path in FOLDER.glob("*.yaml"):
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                if name := rule.get("alert"):
                    assert rule["labels"]["severity"] in ({"none"} if name == "Watchdog" else {"page", "ticket"})
                    assert rule["annotations"]["summary"]
                    assert rule["annotations"]["runbook_url"] == f"{rules.RUNBOOK_URL}#{name.lower()}"


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: f"{alert.name}-{alert.severity}")
def test_the_summary_of_an_alert_names_what_it_is_of(alert: Alert) -> None:
    """Each source, lane, field and so on that its labels have."""
    named = set(re.findall(r"\$labels\.(\w+)", alert.summary))
    outermost = re.search(r"\bby \(([^)]*)\)", alert.expr)
    grouped = set(outermost[1].split(", ")) if outermost else set()
    # a notification has job and instance in any case; each check of the canary has an alert of its own
    assert grouped - {"job", "instance", "bronze_check"} <= named
    cases = [case for of_file in CASES.values() for case in of_file]
    for asked in (asked for case in cases for asked in case.get("alert_rule_test", ())):
        for expected in asked.get("exp_alerts", ()) if asked["alertname"] == alert.name else ():
            labels = expected["exp_labels"]
            if labels["severity"] == alert.severity:
                assert {name for name in labels if name.startswith("bronze_")} <= named


def test_the_configuration_has_the_labels_that_alerts_read() -> None:
    """And takes the addresses from alerts, which they do not identify."""
    config = yaml.safe_load((FOLDER.parent / "prometheus.yaml").read_text())
    read = [re.findall(r"\$externalLabels\.(\w+)", text)[0] for text in (rules.RUNBOOK_URL, rules.API_URL)]
    assert config["global"]["external_labels"] == dict(
        zip(read, ("${BRONZE_RUNBOOK_URL}", "${BRONZE_PUBLIC_URL}"), strict=True)
    )
    (watchdog,) = (alert for alert in ALERTS if alert.name == "Watchdog")
    dropped = {"regex": "|".join([*read, *watchdog.labels]), "action": "labeldrop"}
    assert dropped in config["alerting"]["alert_relabel_configs"]


def test_the_runbook_has_an_entry_for_each_alert_and_no_other() -> None:
    """An entry says what the alert means, what users notice, what to check, and what to do."""
    text = (FOLDER.parent.parent / "docs" / "runbook.md").read_text(encoding="utf-8")
    entries = dict(re.findall(r"(?ms)^### (\w+)\n(.*?)(?=^#|\Z)", text))
    assert list(entries) == list(dict.fromkeys(alert.name for alert in ALERTS))
    for name, entry in entries.items():
        assert re.findall(r"(?m)^\*\*(.+?)\*\*", entry) == ["Meaning.", "User impact.", "Check.", "Action."], name


def test_the_queries_of_the_runbook_read_what_is_emitted() -> None:
    assert promql.runbook()
    for query in promql.runbook():
        for name in rules.names(query):
            assert name in series() or name in RECORDINGS or name in EXTERNAL_METRICS or name == "ALERTS_FOR_STATE", (
                name
            )
        for name, matchers in selectors(query):
            if name in series() or name in EXTERNAL_METRICS:
                assert {key for key, _, _ in matchers} <= labels_of(name), query
