"""Values that cannot work are refused, with a sentence that says why: the first line of each value file."""

from pathlib import Path

import pytest

from tests.chart.helm import CHART, RELEASE, run

REFUSED = sorted((Path(__file__).parent / "refused").glob("*.yaml"))


@pytest.mark.parametrize("values", REFUSED, ids=lambda file: file.stem)
def test_values_are_refused(values: Path) -> None:
    sentence = values.read_text().splitlines()[0].removeprefix("# ")
    outcome = run("template", *RELEASE, CHART, "--values", values)
    assert outcome.returncode != 0
    assert sentence in outcome.stderr
