"""A day with restarts, kills and gaps as series for promtool: the rules and the page's queries, at 5,760 evaluations.

The series are what two consumers export, made from a seed: both report the ledger and the queue, each has counters of
its own that begin again at 0, a killed one takes an interval of its counts along, one has a new instance id at each
start, and Prometheus has gaps of up to 20 minutes.
"""

import math
import random
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bronze.api.glance import QUERIES
from bronze.telemetry.promql import LEDGER_AGE_S_MAX
from local.evidence import SOURCES
from prometheus import rules
from prometheus.rules import Thresholds

STEP_S = 15
STEPS = 24 * 3600 // STEP_S
#: A series has a value until its last sample is so old.
LOOKBACK_STEPS = 300 // STEP_S
#: The page's numbers are compared at each of these steps.
COMPARED_STEPS = 20

Samples = list[float | None]
_STORED = 'job="bronze/consumer", bronze_source="{}", bronze_outcome="stored"'


@dataclass
class Day:
    """The series by their text in Prometheus, and the records that were stored at each step."""

    steps: int = STEPS
    series: dict[str, Samples] = field(default_factory=dict)
    stored: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    kills: int = 0
    restarts: int = 0
    gaps: int = 0


def make(seed: int, steps: int = STEPS, missing_at: range = range(0)) -> Day:
    """The day of a seed, or its first steps. In `missing_at`, an object is missing in addition."""
    chosen, day = random.Random(seed), Day(steps)
    gap = _gaps(chosen, day)
    totals = [dict.fromkeys(SOURCES, 0)]
    for step in range(1, steps + 1):
        rate = 0 if step % 240 < 20 else (40 if step % 240 < 40 else 8)  # each hour a pause, then a peak
        totals.append({s: totals[-1][s] + rate * chosen.randint(0, 3) for s in SOURCES})
    day.stored = [sum(of_step.values()) for of_step in totals]
    day.waiting = [0 if step % 240 < 20 else chosen.randint(0, 9) for step in range(steps + 1)]
    for instance in ("a", "b"):
        _consumer(chosen, day, instance, totals, gap, missing_at)
    return day


def _gaps(chosen: random.Random, day: Day) -> set[int]:
    gap: set[int] = set()
    for _ in range(max(1, day.steps // 480)):  # every two hours
        began = chosen.randrange(day.steps)
        gap |= set(range(began, began + chosen.randint(1, 80)))
        day.gaps += 1
    return gap - {0, day.steps}


def _consumer(
    chosen: random.Random,
    day: Day,
    instance: str,
    totals: Sequence[Mapping[str, int]],
    gap: set[int],
    missing_at: range,
) -> None:
    of = f'job="bronze/consumer", instance="{instance}"'
    away = starts = 0
    counters = dict.fromkeys(SOURCES, 0)
    for step in range(day.steps + 1):
        if not away and step and chosen.random() < 1 / 120:  # every half hour
            away = chosen.randint(1, 4)
            killed = chosen.random() < 0.5
            day.kills, day.restarts = day.kills + killed, day.restarts + (not killed)
            counters = dict.fromkeys(SOURCES, 0)  # a kill loses what was counted since the last sample
            starts += 1
            if instance == "b":
                of = f'job="bronze/consumer", instance="{instance}-{starts}"'
        seen = not away and step not in gap
        for source in SOURCES:
            stored = totals[step][source]
            if not away and step:
                counters[source] += (stored - totals[step - 1][source]) // 2  # each consumer writes a part
            labels = f'{of}, bronze_source="{source}"'
            values = {
                f'bronze_ledger_records{{{labels}, bronze_outcome="stored"}}': stored,
                f'bronze_records_total{{{labels}, bronze_outcome="stored"}}': counters[source],
                f"bronze_missing_objects{{{labels}}}": int(step in missing_at and source == SOURCES[0]),
                f'bronze_missing_messages{{{labels}, bronze_lane="0"}}': 0,
                f'bronze_queue_depth{{{labels}, bronze_lane="0"}}': day.waiting[step],
            }
            for series, value in values.items():
                samples = day.series.setdefault(series, [None] * step)
                samples.append(float(value) if seen else None)
        away = max(0, away - 1)


def document(day: Day, folder: Path) -> dict[str, Any]:
    """The test of promtool."""
    compared = range(COMPARED_STEPS, day.steps + 1, COMPARED_STEPS)
    exprs: list[dict[str, Any]] = []
    for step in compared:
        stored = _shown(day, "bronze_ledger_records", step) if _is_of_now(day, step) else None
        missing = _shown(day, "bronze_missing_objects", step)
        exprs.append(_expected(QUERIES["stored"], step, stored))
        exprs.append(_expected(QUERIES["missing"], step, missing))
        exprs.append(_expected(QUERIES["queue_depth"], step, _waiting(day, step)))
    exprs.append(_expected('count_over_time(ALERTS{alertname="BronzeRecordsMissing"}[1d])', day.steps, None))
    selector = 'bronze_records_total{job="bronze/consumer", bronze_outcome="stored"}'
    risen = sum(_risen(values) for name, values in day.series.items() if name.startswith("bronze_records_total"))
    exprs.append(_expected(f"sum(increase({selector}[1d] anchored))", day.steps, risen))
    return {
        "rule_files": [str(folder / "delivery.yaml")],
        "evaluation_interval": f"{STEP_S}s",
        "tests": [
            {
                "name": "a day",
                "interval": f"{STEP_S}s",
                "input_series": [
                    {"series": name, "values": " ".join("_" if v is None else f"{v:g}" for v in values)}
                    for name, values in day.series.items()
                ],
                "promql_expr_test": exprs,
            }
        ],
    }


def _expected(expr: str, step: int, value: float | None) -> dict[str, Any]:
    samples = [] if value is None else [{"labels": "{}", "value": value}]
    return {"expr": expr, "eval_time": f"{step * STEP_S}s", "exp_samples": samples}


def _shown(day: Day, metric: str, step: int) -> float | None:
    """The sum over the sources of the highest value that a consumer has reported within the last five minutes."""
    sources: dict[str, float] = {}
    for name, values in day.series.items():
        if name.startswith(metric):
            recent = [v for v in values[max(0, step - LOOKBACK_STEPS + 1) : step + 1] if v is not None]
            source = name.partition('bronze_source="')[2].partition('"')[0]
            if recent:
                sources[source] = max(recent[-1], sources.get(source, 0))
    return sum(sources.values()) if sources else None


def _is_of_now(day: Day, step: int) -> bool:
    """Whether the ledger was reported so recently that it is known now."""
    recent = range(max(0, step - math.ceil(LEDGER_AGE_S_MAX / STEP_S) + 1), step + 1)
    ledger = [values for name, values in day.series.items() if name.startswith("bronze_ledger_records")]
    return any(at < len(values) and values[at] is not None for values in ledger for at in recent)


def _waiting(day: Day, step: int) -> float | None:
    """What was waiting at the last step at which a consumer reported."""
    ledger = [values for name, values in day.series.items() if name.startswith("bronze_queue_depth")]
    for at in range(step, max(-1, step - LOOKBACK_STEPS), -1):
        if any(at < len(values) and values[at] is not None for values in ledger):
            return float(day.waiting[at] * len(SOURCES))
    return None


def _risen(values: Samples) -> float:
    risen, before = 0.0, None
    for value in values:
        if value is not None:
            risen += 0 if before is None else value - before if value >= before else value
            before = value
    return risen


def check(promtool: Path, folder: Path, day: Day) -> str:
    """Runs promtool on the day; returns its complaints, "" if every expression has the expected value."""
    rules.write(folder / "rules", Thresholds())
    file = folder / "day.yaml"
    file.write_text(yaml.safe_dump(document(day, folder / "rules"), width=10**9))
    outcome = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, check=False)
    return "" if outcome.returncode == 0 else outcome.stdout + outcome.stderr


def figures(day: Day) -> dict[str, float]:
    """What the page shows of a day, and by how much the counters err at its end."""
    kept = sum(_risen(values) for name, values in day.series.items() if name.startswith("bronze_records_total"))
    return {
        "evaluations": day.steps,
        "compared": day.steps // COMPARED_STEPS,
        "kills": day.kills,
        "restarts": day.restarts,
        "gaps": day.gaps,
        "stored": day.stored[-1],
        "counters_kept": kept,
    }
