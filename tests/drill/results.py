"""The results of the drill: one per case in docs/drill.jsonl, from which docs/drill.md is written."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from local.builds import REPOSITORY

DOCS = REPOSITORY / "docs"
RESULTS, PAGE = "drill.jsonl", "drill.md"


@dataclass(frozen=True)
class AlertResult:
    """An alert that fired. Times are in seconds since the fault; `ended_s` is in seconds since the repair."""

    name: str
    severity: str
    pending_s: int
    firing_s: int
    #: None: an inhibition rule of Alertmanager silenced it all the time
    sent_s: int | None
    ended_s: int | None
    #: why it is expected; "" for the symptom, None if it is not expected
    reason: str | None

    @property
    def heading(self) -> str:
        return f"{self.name} ({self.severity})"


@dataclass(frozen=True)
class StepResult:
    """A query or a command of the runbook's entry, and what it gave."""

    step: str
    result: str


@dataclass(frozen=True)
class Result:
    case: str
    fault: str
    passed: bool
    problems: tuple[str, ...]
    alerts: tuple[AlertResult, ...]
    #: the runbook's entry, "" if there is none for the case
    entry: str
    steps: tuple[StepResult, ...]
    cause: str
    repair: str
    #: for how long no alert fired, if none is expected
    quiet_s: int | None
    seconds: int
    ended: str
    code: str
    #: the longest evaluation of a group of rules, and how many were missed: they show a machine that is too busy
    evaluation_s_max: float
    evaluations_missed: int


def read(file: Path) -> dict[str, Result]:
    """The results by case."""
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        of = json.loads(line)
        lists: Mapping[str, object] = {
            "problems": tuple(of["problems"]),
            "alerts": tuple(AlertResult(**alert) for alert in of["alerts"]),
            "steps": tuple(StepResult(**step) for step in of["steps"]),
        }
        found[of["case"]] = Result(**{**of, **lists})
    return found


def write(docs: Path, results: Iterable[Result], order: Sequence[str]) -> None:
    """Replaces the results of these cases, and writes the page."""
    kept = read(docs / RESULTS) | {result.case: result for result in results}
    ordered = [kept[case] for case in order if case in kept]
    lines = (json.dumps(asdict(result)) + "\n" for result in ordered)
    (docs / RESULTS).write_text("".join(lines), encoding="utf-8")
    (docs / PAGE).write_text(written(ordered), encoding="utf-8")


# --- the page


def written(results: Sequence[Result]) -> str:
    rows = "".join(f"| {' | '.join(_row(result))} |\n" for result in results)
    details = "\n".join(filter(None, map(_details, results)))
    return f"{_INTRODUCTION}{_summary(results)}\n\n{_HEAD}{rows}\n{_DETAILS}{details}"


def _row(result: Result) -> tuple[str, ...]:
    symptom = next((alert for alert in result.alerts if alert.reason == ""), None)
    others = [_other(alert) for alert in result.alerts if alert is not symptom]
    return (
        result.case if result.passed else f"{result.case} **failed**",
        result.fault,
        _linked(symptom) if symptom else f"no alert in {_minutes(result.quiet_s or 0)}",
        f"{symptom.firing_s} s" if symptom else "",
        "; ".join(others) or "none",
        result.cause,
        f"{symptom.ended_s} s" if symptom and symptom.ended_s is not None else "",
    )


def _other(alert: AlertResult) -> str:
    """Another alert than the symptom: after how long it fired, and why, or that it was silenced."""
    why = "silenced" if alert.sent_s is None else alert.reason or "**not expected**"
    return f"{_linked(alert)} after {alert.firing_s} s: {why}"


def _linked(alert: AlertResult) -> str:
    return f"[{alert.name}](runbook.md#{alert.name.lower()}) ({alert.severity})"


def _minutes(seconds: float) -> str:
    return f"{round(seconds / 60)} minutes"


def _details(result: Result) -> str:
    lines = [f"### {result.case}\n"]
    if result.problems:
        lines.append("Problems: " + "; ".join(result.problems) + "\n")
    if result.entry:
        lines.append(f"Entry: [{result.entry}](runbook.md#{result.entry.lower()}). Repaired by: {result.repair}\n")
    lines += [f"- `{_one_line(step.step)}`: {step.result}" for step in result.steps]
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _summary(results: Sequence[Result]) -> str:
    if not results:
        return "There are no results yet."
    failed = [result.case for result in results if not result.passed]
    hours = sum(result.seconds for result in results) / 3600
    days = sorted({result.ended[:10] for result in results})
    verdict = f"failed: {', '.join(failed)}" if failed else "all passed"
    slowest = max(result.evaluation_s_max for result in results)
    missed = sum(result.evaluations_missed for result in results)
    return (
        f"{len(results)} cases, {verdict}; {hours:.1f} hours in all, {' to '.join(days[:1] + days[1:][-1:])}. "
        "Two at a time take half of that. Rules are evaluated every 5 to 30 s; the longest evaluation of a group took "
        f"{slowest * 1000:.0f} ms, and {missed} were missed."
    )


_INTRODUCTION = """\
<!-- Generated by `make drill` from docs/drill.jsonl. -->

# The drill: one fault, one alert

`make drill` breaks one thing at a time in a whole system, and checks that the right alert fires, that no other one is
sent, and that the [runbook](runbook.md) repairs it. Each case starts a system of its own on free ports, with the rules
and the hold times of production, one submission per second, and three days of history in which everything worked. It
waits until no alert is pending, causes the fault, and reads Prometheus' alerts every second. Then it follows the link
of the alert to the runbook that the API serves, runs the queries and commands of the entry, looks at the exemplar or
the panel that should lead to the cause, repairs the fault as the entry says, and waits until no alert is left.

"""

_HEAD = """\
- *Fires*: seconds from the fault until the first alert fires, of which 120 s (`page`) or 600 s (`ticket`) are the time
  for which its condition has to be true.
- *Other alerts*: that fired until the system was well again. *Silenced*: `alertmanager/alertmanager.yaml` holds it back
  while the alert fires of which it is a consequence.
- *Ends*: seconds from the repair until the alert has ended.

| case | fault | alert | fires | other alerts | leads to the cause | ends |
|---|---|---|---|---|---|---|
"""

_DETAILS = """\
`make drill C=bucket-slow` runs one case, `make drill C=--list` lists them, `PARALLEL=3` runs three at a time. Each
replaces its row here.

## What the runbook's entries gave

"""
