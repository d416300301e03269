"""The cases of the alerts, run by the real promtool, and that they stand close to each threshold."""

import shutil
import subprocess
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any

import pytest

from local.builds import Built
from prometheus import rules
from prometheus.rules import FOLDER, Thresholds

CASES = sorted((FOLDER.parent / "tests").glob("*.yaml"))


def promtool(built: Built, case: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([built.promtool, "test", "rules", case], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_the_cases_pass(built: Built, case: Path) -> None:
    outcome = promtool(built, case)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.mark.parametrize("factor", [0.75, 1.25])
@pytest.mark.parametrize("threshold", fields(Thresholds), ids=lambda threshold: threshold.name)
def test_the_cases_fail_when_a_threshold_changes(
    built: Built, tmp_path: Path, threshold: "Field[float]", factor: float
) -> None:
    """Each number decides: with any one of them a quarter higher, or lower, some case fails."""
    assert callable(threshold.type)
    value: Any = threshold.type(getattr(Thresholds(), threshold.name) * factor)  # whole seconds stay whole
    changed = replace(Thresholds(), **{threshold.name: value})
    rules.write(tmp_path / "rules", changed)
    shutil.copytree(FOLDER.parent / "tests", tmp_path / "tests")
    was, became = rules.files(Thresholds()), rules.files(changed)
    quickest_first = sorted(CASES, key=lambda case: case.stat().st_size)
    concerned = [case for case in quickest_first if was[case.name] != became[case.name]]
    assert concerned
    assert any(promtool(built, tmp_path / "tests" / case.name).returncode for case in concerned)
