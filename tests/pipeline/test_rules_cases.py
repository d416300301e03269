"""The real promtool accepts the rules and their cases, and the queries of dashboards and runbook."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

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


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_the_cases_pass(built: Built, case: Path) -> None:
    outcome = promtool(built, "test", "rules", case)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.mark.parametrize("factor", [0.75, 1.25])
@pytest.mark.parametrize("threshold", fields(Thresholds), ids=lambda threshold: threshold.name)
def test_the_cases_fail_when_a_threshold_changes(
    built: Built, tmp_path: Path, threshold: "Field[float]", factor: float
) -> None:
    """Each threshold is tested: if it is a quarter higher or lower, some case fails."""
    assert callable(threshold.type)
    value: Any = threshold.type(getattr(Thresholds(), threshold.name) * factor)  # integers stay integers
    changed = replace(Thresholds(), **{threshold.name: value})
    rules.write(tmp_path / "rules", changed)
    shutil.copytree(FOLDER.parent / "tests", tmp_path / "tests")
    was, became = rules.files(Thresholds()), rules.files(changed)
    quickest_first = sorted(CASES, key=lambda case: case.stat().st_size)
    concerned = [case for case in quickest_first if was[case.name] != became[case.name]]
    assert concerned
    assert any(promtool(built, "test", "rules", tmp_path / "tests" / case.name).returncode for case in concerned)
