"""The least duration of the table of slowest writes, on a real Prometheus: none that is slower may be missing."""

import time
from collections.abc import Iterator, Mapping

import pytest

from local.builds import Built
from tests import panels
from tests.pipeline.past import RANGE_S, STEP_S, Past, filled

NOW = time.time() // STEP_S * STEP_S
STEPS = RANGE_S // STEP_S
(LEAST,) = (query for query in panels.queries() if query.panel == "variable at_least")

#: How many writes of each step took at most so many seconds, by the source that has them.
WRITES: Mapping[str, Mapping[str, int]] = {
    "few": {"0.05": 1, "0.1": 1, "2": 1, "5": 1, "+Inf": 1},
    "a-slow-one": {"0.05": 0, "0.1": 8, "2": 9, "5": 10, "+Inf": 10},
    "alike": {"0.05": 0, "0.1": 10, "2": 10, "5": 10, "+Inf": 10},
}


@pytest.fixture(scope="module")
def past(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    with filled(built, tmp_path_factory.mktemp("slowest"), _series()) as api:
        yield Past(api, NOW)


@pytest.mark.parametrize(
    ("source", "least"),
    [
        ("few", "0"),  # all are listed
        ("a-slow-one", "2"),  # one of each step took longer, and two took over 0.1 s, which is too many
        ("alike", "0.05"),  # too many in one bucket, and none above: the latest of that bucket
        ("none", "0"),
    ],
)
def test_no_slower_write_is_missing(past: Past, source: str, least: str) -> None:
    ((labels, _),) = past.answer(LEAST, source=source)
    assert labels["le"] == least


def test_the_search_returns_as_many_as_can_be_slower() -> None:
    (search,) = (query for query in panels.queries() if query.panel == "Slowest Bronze writes")
    assert "duration >= ${at_least}s" in search.expr
    ((_, panel),) = (found for found in panels.panels() if found[1]["title"] == "Slowest Bronze writes")
    assert "<= 150)" in LEAST.expr
    assert panel["targets"][0]["limit"] >= 200


def _series() -> Iterator[str]:
    for source, buckets in WRITES.items():
        labels = f'job="bronze/consumer",instance="c",bronze_source="{source}",bronze_outcome="success"'
        for le, step in buckets.items():
            yield from _samples(f'bronze_upload_duration_seconds_bucket{{{labels},le="{le}"}}', step)
        yield from _samples(f"bronze_upload_duration_seconds_count{{{labels}}}", buckets["+Inf"])


def _samples(series: str, step: int) -> Iterator[str]:
    """From one step before the range on, so that the range counts each of its steps."""
    return (f"{series} {step * number} {NOW - RANGE_S + STEP_S * number}" for number in range(STEPS + 1))
