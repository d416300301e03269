"""`make prove`: rounds from a seed, that go on where they ended, and a page of what they found."""

import json
import re
from pathlib import Path

import pytest

from tests.prove import SUITES, Suite, prove, read, written

TEST = """
import os

def test_it(record_property):
    record_property("tries", 2)
    record_property("cable cut: faults", 3)
    record_property("cable cut: lost", 0)
    record_property("disk full: faults", 4)
    seed = int(os.environ["SEED_OF_ROUND"])
    print(seed)
    assert seed != 7002
"""
COUNTED = {"tries": 2, "cable cut: faults": 3, "cable cut: lost": 0, "disk full: faults": 4}


@pytest.fixture
def suites(tmp_path: Path) -> list[Suite]:
    file = tmp_path / "test_seeded.py"
    file.write_text(TEST)
    return [Suite("seeded", "the second round fails", [str(file)], {"SEED_OF_ROUND": "{seed}"})]


def test_a_second_call_goes_on_and_the_page_says_what_failed(tmp_path: Path, suites: list[Suite]) -> None:
    """Each finished round is kept, with its own seed; time that is over starts nothing more."""
    seconds = 0.5  # for one round each
    assert prove(7, seconds / 3600, suites, tmp_path, tmp_path)
    assert prove(7, 0, suites, tmp_path, tmp_path)  # nothing is left to do
    assert prove(8, seconds / 3600, suites, tmp_path, tmp_path)
    assert not prove(7, seconds / 3600, suites, tmp_path, tmp_path)
    results = read(tmp_path / "proof.jsonl")
    assert [(result.seed, result.round, result.passed, result.figures) for result in results] == [
        (7, 1, True, COUNTED),
        (8, 1, True, COUNTED),
        (7, 2, False, COUNTED),
    ]
    page = (tmp_path / "proof.md").read_text()
    assert page == written(results, [*SUITES, *suites])
    assert re.search(r"\| seeded \| the second round fails \| 3 \| 1 \| 0\.\d\d \| 6 tries \|", page)
    table = "| kind | faults | lost |\n|---|---|---|\n| cable cut | 9 | 0 |\n| disk full | 12 | 0 |\n"
    assert f"By kind, of the suite seeded:\n\n{table}" in page
    assert f"Failed: `SEED_OF_ROUND=7002 pytest {suites[0].tests[0]}`" in page


def test_a_suite_that_cannot_run_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"missing could not run: .*missing-1001\.log"):
        prove(1, 1, [Suite("missing", "", [str(tmp_path / "none.py")])], tmp_path, tmp_path)
    assert not (tmp_path / "proof.jsonl").exists()


def test_the_committed_page_is_what_the_results_say() -> None:
    docs = Path(__file__).parents[2] / "docs"
    results = read(docs / "proof.jsonl")
    if not results:
        pytest.skip("no results yet")
    assert (docs / "proof.md").read_text() == written(results)
    assert all(json.loads(line) for line in (docs / "proof.jsonl").read_text().splitlines())
