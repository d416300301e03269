"""The table of unusual inputs names a test for each, which exists."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ROWS = [line for line in (TESTS / "inputs.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_each_input_has_a_test(row: str) -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", row.split("|")[-2])
    assert named
    for file, test in named:
        assert re.search(rf"^(async )?def {test}\(", (TESTS / file).read_text(encoding="utf-8"), re.MULTILINE), test
