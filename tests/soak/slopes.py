"""Whether a series of samples grows: its slope, with an interval, and a verdict.

The slope is that of Theil and Sen: the median of the slopes between all pairs of points, which outliers such as those
of a fault hardly change. A process that is killed begins anew, so a series may have several parts: only pairs of the
same part are compared, and the variances of the parts are added (the seasonal slope of Hirsch, Slack and Smith, 1982,
https://doi.org/10.1029/WR018i001p00107). The interval is that of Sen (1968), as in `scipy.stats.theilslopes`. It is
meant for independent errors, so the samples are first reduced to medians of blocks.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from statistics import NormalDist, median

DAY_S = 86_400.0
CONFIDENCE = 0.95
#: Points of a series, in all parts, so that the number of pairs has a bound.
POINTS_MAX = 500
#: Fewer say nothing about the interval.
POINTS_MIN = 8

#: The time in seconds, and the value.
Point = tuple[float, float]


@dataclass(frozen=True)
class Slope:
    """Growth per day, and the ends of its interval."""

    per_day: float
    least: float
    greatest: float


class Verdict(StrEnum):
    #: The interval contains zero or less, or ends below the bound.
    FLAT = "flat"
    #: The whole interval is above the bound.
    GROWS = "grows"
    #: There are too few points, or the growth may be above or below the bound: a longer run can tell.
    UNDECIDED = "undecided"


def slope(parts: Sequence[Sequence[Point]], confidence: float = CONFIDENCE) -> Slope | None:
    """The common slope of the parts; None if there are too few points."""
    reduced = reduce(parts)
    slopes = sorted(
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for part in reduced
        for earlier, later in combinations(sorted(part), 2)
        if later[0] > earlier[0]
    )
    if sum(map(len, reduced)) < POINTS_MIN or not slopes:
        return None
    deviation = math.sqrt(sum(map(_variance, reduced)))
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * deviation
    first = max(round((len(slopes) - reach) / 2) - 1, 0)
    last = min(round((len(slopes) + reach) / 2), len(slopes) - 1)
    return Slope(median(slopes) * DAY_S, slopes[first] * DAY_S, slopes[last] * DAY_S)


def _variance(part: Sequence[Point]) -> float:
    """That of Kendall's S, the number of rising pairs less that of falling pairs, if the values have no trend."""

    def term(count: int) -> int:
        return count * (count - 1) * (2 * count + 5)

    ties = Counter(value for _, value in part).values()
    return (term(len(part)) - sum(map(term, ties))) / 18


def reduce(parts: Sequence[Sequence[Point]], points_max: int = POINTS_MAX) -> list[list[Point]]:
    """Medians of blocks of neighbours, so that there are not more than so many, plus one per part."""
    size = max(1, math.ceil(sum(map(len, parts)) / points_max))
    return [
        [
            (median(at for at, _ in block), median(value for _, value in block))
            for block in (part[n : n + size] for n in range(0, len(part), size))
        ]
        for part in parts
    ]


def judge(found: Slope | None, bound_per_day: float) -> Verdict:
    if found is None:
        return Verdict.UNDECIDED
    if found.least <= 0 or found.greatest <= bound_per_day:
        return Verdict.FLAT
    return Verdict.GROWS if found.least > bound_per_day else Verdict.UNDECIDED
