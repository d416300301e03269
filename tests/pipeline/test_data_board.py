"""What the board *Data* shows of a source with a problem and of others, on a real Prometheus with the past of all."""

import time
from collections.abc import Iterator

import pytest

from local.builds import Built
from prometheus import data
from prometheus.data import Problem
from tests import panels
from tests.pipeline.past import RANGE_S, STEP_S, Past, filled

NOW = time.time() // STEP_S * STEP_S
QUERIES = [query for query in panels.queries() if query.dashboard == "bronze-data"]
#: The age of the newest record, the records of five minutes, how many are usual, and the number of the verdict.
SOURCES = {
    "vehicles": (600, 0, 400, Problem.SILENT),
    "status": (30, 200, 400, Problem.VOLUME),
    "results": (30, 9, 9, 0),
}


@pytest.fixture(scope="module")
def past(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    with filled(built, tmp_path_factory.mktemp("data"), _series()) as api:
        yield Past(api, NOW)


def test_the_table_has_the_greatest_problem_of_each_source_and_its_numbers(past: Past) -> None:
    verdict, age, volume, excess, broken = (
        {labels["bronze_source"]: values[-1] for labels, values in past.answer(query)}
        for query in QUERIES
        if query.panel == "Verdict on each source"
    )
    assert verdict == {**{source: number for source, (*_, number) in SOURCES.items()}, "failures": -1}
    assert age == {source: seconds for source, (seconds, *_) in SOURCES.items()}
    assert volume == {source: records / usual for source, (_, records, usual, _) in SOURCES.items()}
    assert excess == {"status": 0.25}
    assert broken == {"status": 2, "vehicles": 0, "results": 0, "failures": 0}


def test_the_expectations_have_their_limits_and_whether_they_are_met(past: Past) -> None:
    limits, broken, _ = (
        {
            (labels.get("bronze_field"), labels["bronze_expectation"]): values[-1]
            for labels, values in past.answer(query)
        }
        for query in QUERIES
        if query.panel == "What is expected"
    )
    assert limits == {(None, "every"): 60, ("delay_min", "max"): 500, ("delay_min", "min"): 0}
    assert broken == {(None, "every"): 1, ("delay_min", "max"): 1}


def test_each_graph_has_its_values_and_its_limit(past: Past) -> None:
    """No limit is drawn for a source with few records."""
    for panel, limited in (
        ("Age of the newest record", set(SOURCES)),
        ("Records in five minutes", {"vehicles", "status"}),
    ):
        values, limits = (
            {labels["bronze_source"] for labels, _ in past.answer(query)} for query in QUERIES if query.panel == panel
        )
        assert (values, limits) == (set(SOURCES), limited)


def _series() -> Iterator[str]:
    times = [NOW - RANGE_S + step * STEP_S for step in range(RANGE_S // STEP_S + 1)]
    for source, (age_s, records, usual, problem) in SOURCES.items():
        of_source = f'bronze_source="{source}"'
        gauges = {
            f'data_staleness_last_update_timestamp_seconds{{job="bronze/consumer",{of_source}}}': NOW - age_s,
            f"{data.USUAL_AGE}{{{of_source}}}": 30,
            f"{data.VOLUME}{{{of_source}}}": records,
            f"{data.USUAL_VOLUME}{{{of_source}}}": usual,
            f"{data.VOLUME_RATIO}{{{of_source}}}": records / usual,
        }
        if problem:
            gauges[f'{data.PROBLEM}{{{of_source},problem="{Problem(problem).label}"}}'] = problem
        for series, value in gauges.items():
            yield from (f"{series} {value:.6f} {at}" for at in times)
    consumer = 'job="bronze/consumer",bronze_source="status"'
    field = 'bronze_source="status",bronze_field="delay_min"'
    for series, value in {
        f"{data.EXCESS_NULLS}{{{field}}}": 0.25,
        f'{data.BROKEN}{{bronze_source="status",bronze_expectation="every"}}': 90,
        f'{data.BROKEN}{{{field},bronze_expectation="max"}}': 3,
        f"data_staleness_sla_threshold_seconds{{{consumer}}}": 60,
        f'bronze_expectation_limit{{job="bronze/consumer",{field},bronze_expectation="max"}}': 500,
        f'bronze_expectation_limit{{job="bronze/consumer",{field},bronze_expectation="min"}}': 0,
    }.items():
        yield from (f"{series} {value:.6f} {at}" for at in times)
    for source in (*SOURCES, "failures"):
        labels = f'job="bronze/api",bronze_source="{source}",bronze_outcome="accepted"'
        yield from (f"bronze_ledger_records{{{labels}}} 0 {at}" for at in times)
