"""The board of one source, on a real Prometheus with the past of two: one is well, the other is not."""

import time
from collections.abc import Iterator

import pytest

from local.builds import Built
from tests import panels
from tests.pipeline.past import RANGE_S, STEP_S, Past, filled

NOW = time.time() // STEP_S * STEP_S
WELL, ILL = "status", "vehicles"
QUERIES = {(query.panel, query.legend): query for query in panels.queries() if query.dashboard == "bronze-source"}


@pytest.fixture(scope="module")
def past(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    with filled(built, tmp_path_factory.mktemp("source"), _series()) as api:
        yield Past(api, NOW)


def test_the_errors_are_those_of_the_chosen_source(past: Past) -> None:
    """Half of the attempts of the other source fail."""
    failures, by_type = QUERIES["Upload, errors", "all"], QUERIES["Upload, errors", "{{error_type}}"]
    assert set(past.values(failures, source=WELL)) == {0}
    assert past.values(by_type, source=WELL) == []
    assert past.values(failures, source=ILL)[-1] == pytest.approx(1 / STEP_S)
    assert [labels for labels, _ in past.answer(by_type, source=ILL)] == [{"error_type": "denied"}]


def test_a_delivery_is_late_by_the_objective_of_its_source(past: Past) -> None:
    """Each delivery takes 5 s; the objective is 17 s of one source and 3 s of the other."""
    on_time, late = (QUERIES["Delivery, by outcome", legend] for legend in ("on time", "late"))
    shown = {
        source: (past.values(on_time, source=source)[-1], past.values(late, source=source)[-1])
        for source in (WELL, ILL)
    }
    assert shown == {WELL: pytest.approx((1 / STEP_S, 0)), ILL: pytest.approx((0, 1 / STEP_S))}


def test_a_message_that_waits_is_in_the_duration_of_the_queue(past: Past) -> None:
    """While no wait ends, there are no percentiles, and the age of the oldest message is what there is to see."""
    oldest, p99 = QUERIES["Queue, duration", "oldest now"], QUERIES["Queue, duration", "p99"]
    assert past.values(p99, source=ILL) == []
    assert past.values(oldest, source=ILL)[-1] == RANGE_S
    assert past.values(oldest, source=WELL)[-1] == 0


def test_records_of_the_range_are_counted_exactly(past: Past) -> None:
    """The tile does not extrapolate."""
    query = QUERIES["Records in the range", "{{bronze_outcome}}"]
    shown = {labels["bronze_outcome"]: values for labels, values in past.answer(query, source=WELL)}
    assert shown == {"accepted": [7 * RANGE_S / STEP_S]}


def _series() -> Iterator[str]:
    """In OpenMetrics, series by series, by how much each rises in a step."""
    for source, failures, objective_s, aging_s in ((WELL, 0, 17, 0), (ILL, 1, 3, STEP_S)):
        api = f'job="bronze/api",instance="a",bronze_source="{source}"'
        consumer = f'job="bronze/consumer",instance="c",bronze_source="{source}"'
        rising = {
            f'bronze_uploads_total{{{consumer},bronze_outcome="success"}}': 1,
            f'bronze_uploads_total{{{consumer},bronze_outcome="failure",error_type="denied"}}': failures,
            f'bronze_records_total{{{api},bronze_outcome="accepted"}}': 7,
            f"bronze_delivery_duration_seconds_count{{{consumer}}}": 1,
            **{
                f'bronze_delivery_duration_seconds_bucket{{{consumer},le="{le}"}}': step
                for le, step in (("3", 0), ("5", 1), ("17", 1), ("+Inf", 1))
            },
            f'bronze_queue_oldest_age_seconds{{{consumer},bronze_lane="0"}}': aging_s,
        }
        for series, step in rising.items():
            yield from _samples(series, 0, step)
        yield from _samples(f"bronze_delivery_objective_seconds{{{consumer}}}", objective_s, 0)


def _samples(series: str, first: float, step: float) -> Iterator[str]:
    for number in range(RANGE_S // STEP_S + 1):
        yield f"{series} {first + step * number} {NOW - RANGE_S + STEP_S * number}"
