"""Runs of several variants in turn, and what they show: medians, and ratios within a round.

A machine's figures change with what else it does; two variants that ran one after the other saw about the same machine.
So each round runs every variant once, begins with another one than the round before, and a ratio is the median over the
rounds of each round's own.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

#: What one run showed, by name; the unit stands last in a name.
Figures = Mapping[str, float]
Runs = Mapping[str, Sequence[Figures]]
#: More variants than these stand below each other in a table.
VARIANTS_ACROSS = 6


@dataclass(frozen=True)
class Target:
    """A figure that is to be `least` or more, or `most` or less."""

    name: str
    value: float
    least: float | None = None
    most: float | None = None

    @property
    def holds(self) -> bool:
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)

    def __str__(self) -> str:
        bound = f"at least {self.least:g}" if self.least is not None else f"at most {self.most:g}"
        return f"{self.name} = {self.value:.3g}, {bound}: {'holds' if self.holds else 'MISSED'}"


@dataclass(frozen=True)
class Found:
    """What a benchmark found: every run by its variant, in the order of the rounds, and what is to hold."""

    runs: Runs
    targets: Sequence[Target] = ()
    #: What it was measured with, and what else is worth keeping.
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def medians(self) -> Mapping[str, Figures]:
        return {variant: medians(of_variant) for variant, of_variant in self.runs.items()}

    def document(self) -> Mapping[str, Any]:
        return {
            **self.notes,
            "targets": {target.name: {**asdict(target), "holds": target.holds} for target in self.targets},
            "medians": self.medians,
            "runs": self.runs,
        }


def interleaved(
    variants: Mapping[str, Callable[[], Figures]], repeats: int, done: Callable[[int, str, Figures], object]
) -> dict[str, list[Figures]]:
    """Each variant once a round; tells `done` the round, the variant and its figures."""
    names = [*variants]
    runs: dict[str, list[Figures]] = {name: [] for name in names}
    for number in range(repeats):
        for turn in range(len(names)):
            name = names[(turn + number) % len(names)]
            runs[name].append(variants[name]())
            done(number, name, runs[name][-1])
    return runs


def medians(runs: Sequence[Figures]) -> Figures:
    """Each figure's median over the runs that have it, in order of appearance."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: statistics.median(run[name] for run in runs if name in run) for name in names}


def ratio(of: Sequence[Figures], to: Sequence[Figures], figure: str) -> float:
    """The median over the rounds of one variant's figure by the other's."""
    return statistics.median(mine[figure] / theirs[figure] for mine, theirs in zip(of, to, strict=True))


def quantile(values: Sequence[float], q: float) -> float:
    """The least value that a share `q` of all does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def tables(by_variant: Mapping[str, Figures]) -> list[tuple[list[str], list[str]]]:
    """What makes a table each: figures, and the variants that have them; they agree on the first figure."""
    by_first: dict[str, list[str]] = {}
    for variant, figures in by_variant.items():
        by_first.setdefault(next(iter(figures)), []).append(variant)
    return [
        (list(dict.fromkeys(figure for variant in variants for figure in by_variant[variant])), variants)
        for variants in by_first.values()
    ]


def shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
