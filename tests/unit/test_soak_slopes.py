"""`make soak`: a leak is found, noise and restarts are not taken for one."""

import random
from collections.abc import Callable

import pytest

from tests.soak.slopes import DAY_S, POINTS_MAX, Point, Slope, Verdict, judge, reduce, slope

INTERVAL_S = 30.0
BASE, NOISE = 100.0, 4.0
BOUND = 20.0


def part(
    seed: int, per_day: float = 0.0, count: int = 240, begin: int = 0, other: Callable[[int], float] = lambda n: 0.0
) -> list[Point]:
    """Samples that grow by so much, with noise."""
    rng = random.Random(seed)
    times = ((n, (begin + n) * INTERVAL_S) for n in range(count))
    return [(at, BASE + n * INTERVAL_S * per_day / DAY_S + rng.gauss(0, NOISE) + other(n)) for n, at in times]


def test_slope_and_interval_are_those_of_scipy() -> None:
    """The values are those of `scipy.stats.theilslopes` (1.17.1), with ties."""
    x = (0, 1, 2, 3, 5, 6, 7, 9, 10, 11, 12, 14)
    y = (2.0, 2.4, 1.9, 3.1, 2.8, 9.0, 3.0, 3.6, 3.6, 2.2, 4.1, 4.0)
    found = slope([list(zip(x, y, strict=True))])
    assert found is not None
    expected = (0.14285714285714285, 0.0181818181818182, 0.21250000000000002)
    assert (found.per_day / DAY_S, found.least / DAY_S, found.greatest / DAY_S) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(10))
def test_noise_is_no_leak(seed: int) -> None:
    """One interval of twenty does not contain zero: then it has to contain the bound."""
    assert judge(slope([part(seed)]), BOUND) is not Verdict.GROWS


@pytest.mark.parametrize("seed", range(10))
def test_a_leak_is_found_and_measured(seed: int) -> None:
    """It is a third of the noise per hour."""
    found = slope([part(seed, per_day=100.0)])
    assert judge(found, BOUND) is Verdict.GROWS
    assert found is not None
    assert found.least < found.per_day < found.greatest
    assert found.per_day == pytest.approx(100.0, rel=0.4)


def test_a_leak_is_found_although_each_kill_ends_it() -> None:
    """Within each life the memory grows; over all lives it does not."""
    lives = [part(n, per_day=300.0, count=40, begin=40 * n) for n in range(6)]
    whole = [point for life in lives for point in life]
    assert judge(slope([whole]), BOUND) is not Verdict.GROWS
    assert judge(slope(lives), BOUND) is Verdict.GROWS


def test_lives_that_begin_at_different_levels_are_flat() -> None:
    """Each process of a role begins with more memory than the one before: no process grows."""
    lives = [part(n, count=40, begin=40 * n, other=lambda _, n=n: 10.0 * n) for n in range(6)]  # type: ignore[misc]
    assert judge(slope(lives), BOUND) is Verdict.FLAT


def test_faults_are_outliers() -> None:
    """At every twentieth sample a fault makes the value ten times as large."""
    assert judge(slope([part(1, other=lambda n: 9 * BASE * (n % 20 == 0))]), BOUND) is Verdict.FLAT


def test_a_constant_series_is_flat() -> None:
    found = slope([[(float(n), 7.0) for n in range(20)]])
    assert found == Slope(0.0, 0.0, 0.0)
    assert judge(found, 0.0) is Verdict.FLAT


def test_too_few_points_and_too_short_a_run_decide_nothing() -> None:
    """A growth whose interval contains the bound needs a longer run."""
    assert judge(slope([part(1, count=5)]), BOUND) is Verdict.UNDECIDED
    assert judge(slope([[(0.0, 1.0)]] * 20), BOUND) is Verdict.UNDECIDED  # no pair
    assert judge(Slope(25.0, 5.0, 60.0), BOUND) is Verdict.UNDECIDED


def test_growth_below_the_bound_is_flat() -> None:
    assert judge(Slope(10.0, 5.0, 15.0), BOUND) is Verdict.FLAT
    assert judge(Slope(-50.0, -60.0, -40.0), BOUND) is Verdict.FLAT


def test_a_long_run_is_reduced_to_so_many_points() -> None:
    """Two days at 30 s, of two processes."""
    lives = [part(n, count=2880, begin=2880 * n) for n in range(2)]
    reduced = reduce(lives)
    assert len(reduced) == 2
    assert sum(map(len, reduced)) <= POINTS_MAX + 2
    assert judge(slope([part(1, per_day=50.0, count=5760)]), BOUND) is Verdict.GROWS
