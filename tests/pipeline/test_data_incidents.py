"""The data monitors find what is wrong with the data, and are quiet while nothing is: a week from a seed.

`BRONZE_WEEK_SEED=2 make test T="-s tests/pipeline/test_data_incidents.py"` replays another week, and prints the table.
"""

import os

import pytest

from local.builds import Built
from tests.pipeline import data_week
from tests.pipeline.data_week import FOUND_MIN, Found

SEED = int(os.environ.get("BRONZE_WEEK_SEED", "1"))
INCIDENTS = 100


@pytest.fixture(scope="module")
def found(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Found:
    return data_week.found(built, tmp_path_factory.mktemp("week"), SEED, INCIDENTS)


def test_incidents_are_found_within_two_windows(found: Found) -> None:
    in_time, of = found.in_time()
    print(f"\n{found.table()}\n\n{in_time} of {of} in {FOUND_MIN} minutes")  # noqa: T201
    assert of == INCIDENTS
    assert in_time >= 0.95 * of


def test_a_quiet_week_has_at_most_one_false_alarm(found: Found) -> None:
    print(f"\nwrong verdicts, in minutes: {dict(found.wrong_min)}; alerts: {dict(found.fired_min)}")  # noqa: T201
    assert len(found.fired_min) <= 1
