"""The real promtool accepts the rules, and the queries of dashboards and runbook; the cases test every threshold. That
the cases pass is part of `make check`.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from bronze.telemetry.promql import LEDGER, added, counted, waiting
from local.builds import Built
from prometheus import rules
from prometheus.rules import FOLDER, Thresholds
from tests import panels
from tests.panels import VALUES
from tests.promql import runbook

CASES = sorted((FOLDER.parent / "tests").glob("*.yaml"))


def promtool(built: Built, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([built.promtool, *arguments], capture_output=True, text=True, check=False)


def check_accepted(built: Built, queries: Sequence[str], file: Path) -> None:
    """Checks that Prometheus accepts each query as the expression of a rule."""
    as_rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": as_rules}]}))
    outcome = promtool(built, "check", "rules", file)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_prometheus_accepts_the_rules(built: Built) -> None:
    outcome = promtool(built, "check", "rules", "--lint=all", "--lint-fatal", *FOLDER.glob("*.yaml"))
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_prometheus_accepts_every_query_of_the_dashboards(built: Built, tmp_path: Path) -> None:
    queries = [query.asked(VALUES) for query in panels.queries() if query.datasource == "prometheus"]
    check_accepted(built, queries, tmp_path / "queries.yaml")


def test_prometheus_accepts_every_query_of_the_runbook(built: Built, tmp_path: Path) -> None:
    check_accepted(built, runbook(), tmp_path / "queries.yaml")


#: The samples of a counter or number, every 15 s from 0 to 2 h; what is counted in the last hour of them.
COUNTED = {
    "steady": ("100+1x480", 240),
    "began in the window": ("_x300 3+1x180", 183),
    "began with one event": ("_x470 1x10", 1),
    "restarted": ("100+1x300 0+1x179", 60 + 179),
    "restarted twice between two samples": ("100+1x300 _x20 5+1x100 2+1x58", 60 + 105 + 60),
    "not scraped for a while": ("100+1x300 _x40 441+1x139", 240),
    "not scraped when the window began": ("100+1x230 _x20 351+1x229", 250),
    "not scraped for long when the window began": ("100+1x210 _x60 371+1x209", 209),
    "of a process that ended before": ("100+1x100 stale", None),
}


@pytest.mark.parametrize("kind", COUNTED)
def test_events_are_counted_without_extrapolation(built: Built, tmp_path: Path, kind: str) -> None:
    """A count is the number of events between two samples: an integer, of counters that restart, start late or have
    gaps.
    """
    values, expected = COUNTED[kind]
    check_evaluated(built, tmp_path, {"a": values}, counted("a", "1h"), expected)


def test_a_counter_that_was_not_scraped_for_longer_than_the_window_is_not_new(built: Built, tmp_path: Path) -> None:
    """After an outage of 20 minutes, the last five minutes have what was counted since its end, not the whole
    counter.
    """
    check_evaluated(built, tmp_path, {"a": "100+1x390 _x80 571+1x10"}, counted("a", "5m"), 9)


def test_the_ledger_grows_by_what_it_says_at_both_ends(built: Built, tmp_path: Path) -> None:
    """Whichever process reports, and if one of them reports an old number for ever."""
    api, consumer = (f'a{{bronze_source="vehicles", job="{job}"}}' for job in ("api", "consumer"))
    check_evaluated(built, tmp_path, {api: "100+2x480"}, f"sum({added('a', '1h')})", 480)
    check_evaluated(built, tmp_path, {api: "100+2x250 602x230", consumer: "102+2x480"}, f"sum({added('a', '1h')})", 480)
    check_evaluated(built, tmp_path, {consumer: "_x300 0x10 7x170"}, f"sum({added('a', '1h')})", 7)


def test_waiting_records_are_never_negative(built: Built, tmp_path: Path) -> None:
    """A process that stopped reporting holds neither number back."""

    def records(job: str, outcome: str) -> str:
        labels = f'bronze_source="vehicles", job="bronze/{job}", instance="{job}", bronze_outcome="{outcome}"'
        return f"bronze_ledger_records{{{labels}}}"

    behind = {records("api", "accepted"): "10x480", records("api", "stored"): "9x480"}
    ahead = {
        records("consumer", "accepted"): "20x480",
        records("consumer", "stored"): "15x480",
        records("consumer", "duplicate"): "2x480",
    }
    check_evaluated(built, tmp_path, behind, f"sum({waiting(LEDGER)})", 1)
    check_evaluated(built, tmp_path, behind | ahead, f"sum({waiting(LEDGER)})", 3)


def check_evaluated(built: Built, folder: Path, series: Mapping[str, str], expr: str, expected: float | None) -> None:
    """Checks the value of an expression 2 h after the first of these samples, which are 15 s apart."""
    case = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": expr,
                "eval_time": "2h",
                "exp_samples": [] if expected is None else [{"labels": "{}", "value": expected}],
            }
        ],
    }
    file = folder / "case.yaml"
    file.write_text(yaml.safe_dump({"tests": [case]}))
    outcome = promtool(built, "test", "rules", file)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@dataclass(frozen=True)
class Case:
    """One of the tests in a file of cases; promtool evaluates the rules `evaluations` times for it."""

    file: str
    name: str
    reads: frozenset[str]
    evaluations: float

    def passes(self, built: Built, folder: Path) -> bool:
        file = folder / self.file
        return promtool(built, "test", "rules", "--run", f"^{re.escape(self.name)}$", file).returncode == 0


@cache
def every_case() -> Sequence[Case]:
    return [
        Case(file.name, case["name"], frozenset(_reads(case)), _last_s(case) / _seconds(of_file["evaluation_interval"]))
        for file in CASES
        for of_file in (yaml.safe_load(file.read_text()),)
        for case in of_file["tests"]
    ]


def _reads(case: Mapping[str, Any]) -> Iterator[str]:
    for test in case.get("promql_expr_test", ()):
        yield from rules.names(test["expr"])
        yield from re.findall(r'alertname="(\w+)"', test["expr"])
    yield from (test["alertname"] for test in case.get("alert_rule_test", ()))


def _last_s(case: Mapping[str, Any]) -> float:
    tests = (*case.get("promql_expr_test", ()), *case.get("alert_rule_test", ()))
    return max(_seconds(test["eval_time"]) for test in tests)


def _seconds(duration: str) -> float:
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([dhms])", duration))


def changed_rules(changed: Thresholds) -> frozenset[str]:
    """The names of the rules that these thresholds change, and of those that read them."""
    was, became = (
        [rule for of_file in rules.groups(at).values() for group in of_file for rule in group.rules]
        for at in (Thresholds(), changed)
    )
    found = [now for before, now in zip(was, became, strict=True) if before != now]
    for rule in found:  # which grows meanwhile
        values = [f'"{value}"' for value in rule.labels.values()]
        readers = (one for one in became if rule.name in rules.names(one.expr) and all(v in one.expr for v in values))
        found += [one for one in readers if one not in found]
    return frozenset(rule.name for rule in found)


@pytest.mark.parametrize("factor", [0.75, 1.25])
@pytest.mark.parametrize("threshold", fields(Thresholds), ids=lambda threshold: threshold.name)
def test_the_cases_fail_when_a_threshold_changes(
    built: Built, tmp_path: Path, threshold: "Field[float]", factor: float
) -> None:
    """Each threshold is tested: if it is a quarter higher or lower, some case fails. The cases run one by one until
    one fails: short ones and those that read several of the changed rules first, those that read none last.
    """
    assert callable(threshold.type)
    value: Any = threshold.type(getattr(Thresholds(), threshold.name) * factor)  # integers stay integers
    changed = replace(Thresholds(), **{threshold.name: value})
    rules.write(tmp_path / "rules", changed)
    shutil.copytree(FOLDER.parent / "tests", tmp_path / "tests")
    was, became, read = rules.files(Thresholds()), rules.files(changed), changed_rules(changed)
    concerned = [case for case in every_case() if was[case.file] != became[case.file]]
    concerned.sort(key=lambda case: (not case.reads & read, case.evaluations / max(1, len(case.reads & read))))
    assert concerned
    assert not all(case.passes(built, tmp_path / "tests") for case in concerned)
