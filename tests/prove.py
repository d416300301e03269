"""Searches for a lost or doubled record for hours, from a seed: `make prove SEED=7 HOURS=2`.

Round after round, each suite runs with a seed of its own. What has finished is a line of docs/proof.jsonl, from which
docs/proof.md is written: a second call with the same seed goes on behind the last one. A failure ends nothing; its log
stays, and the exit code is 1.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import count, product
from pathlib import Path

from local.builds import REPOSITORY
from local.watch import leave_nothing

DOCS = REPOSITORY / "docs"
RESULTS, PAGE = "proof.jsonl", "proof.md"
LOGS = REPOSITORY / ".local" / "prove"
#: Seeds of rounds are the run's seed and the round's number side by side.
ROUNDS_MAX = 1000


@dataclass(frozen=True)
class Suite:
    """Some tests, and the environment that makes them longer; `{seed}` in it stands for the round's."""

    name: str
    claim: str
    tests: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)

    def env_of(self, seed: int) -> dict[str, str]:
        return {name: value.format(seed=seed) for name, value in self.env.items()}


SUITES = (
    Suite(
        "model",
        "each order of events that the search tries keeps I1 to I7, on modelled servers",
        [f"tests/delivery/test_model.py::{test}" for test in ("test_delivery", "test_rolled_back", "test_changed")],
        {"BRONZE_MODEL_SEED": "{seed}", "BRONZE_MODEL_EXAMPLES": "1000"},
    ),
    Suite(
        "change",
        "another number of lanes under load, its command killed: nothing is lost or doubled",
        ["tests/delivery/test_change.py"],
        {"BRONZE_KILL_SEED": "{seed}"},
    ),
    Suite(
        "kill",
        "each process killed and paused at each step: nothing is lost or doubled",
        ["tests/delivery/test_kill.py"],
        {"BRONZE_KILL_SEED": "{seed}", "BRONZE_KILL_ROUNDS": "3"},
    ),
    Suite(
        "fuzz",
        "no answer is an error of ours, or not in the OpenAPI document",
        ["tests/system/test_fuzz.py"],
        {"BRONZE_FUZZ_SEED": "{seed}", "BRONZE_FUZZ_EXAMPLES": "100"},
    ),
    Suite(
        "outage",
        "parts of the telemetry pipeline away under load: no record is lost, and no loss of telemetry is hidden",
        ["tests/pipeline/test_outages.py"],
        {"BRONZE_OUTAGE_S": "60"},
    ),
)


@dataclass(frozen=True)
class Result:
    """A suite's run in a round. `code` names the service's source: the id of its tree in git."""

    seed: int
    round: int
    suite: str
    passed: bool
    seconds: float
    ended: str
    code: str
    figures: Mapping[str, float]


def prove(seed: int, hours: float, suites: Sequence[Suite] = SUITES, docs: Path = DOCS, logs: Path = LOGS) -> bool:
    """Runs what is not in the results yet until the time is over; what has begun by then is finished.

    Gives whether all of it passed.
    """
    results, until = docs / RESULTS, time.monotonic() + hours * 3600
    logs.mkdir(parents=True, exist_ok=True)
    passed = True
    done = {(result.round, result.suite) for result in read(results) if result.seed == seed}
    for number, suite in ((number, suite) for number in count(1) for suite in suites):
        if (number, suite.name) in done:
            continue
        if time.monotonic() >= until:
            break
        say(f"round {number} of seed {seed}: {suite.name}")
        result = run(suite, seed, number, logs)
        passed &= result.passed
        with results.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        (docs / PAGE).write_text(written(read(results), suites))
        say(f"{'passed' if result.passed else 'FAILED'} after {result.seconds:.0f} s: {shown(result.figures)}")
    return passed


def run(suite: Suite, seed: int, number: int, logs: Path) -> Result:
    of_round = seed * ROUNDS_MAX + number
    report, log = logs / f"{suite.name}-{of_round}.xml", logs / f"{suite.name}-{of_round}.log"
    began, code = time.monotonic(), service()
    with log.open("wb") as output:
        outcome = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}", *suite.tests],
            cwd=REPOSITORY,
            env={**os.environ, **suite.env_of(of_round)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if outcome.returncode not in {0, 1}:  # neither all passed nor some failed
        raise SystemExit(f"{suite.name} could not run: {log}")
    return Result(
        seed,
        number,
        suite.name,
        passed=outcome.returncode == 0,
        seconds=round(time.monotonic() - began, 1),
        ended=datetime.now(UTC).isoformat(timespec="seconds"),
        code=code,
        figures=figures(report),
    )


def figures(report: Path) -> dict[str, float]:
    """The sums of what the tests say of themselves (`record_property`)."""
    sums: Counter[str] = Counter()
    for figure in ET.parse(report).iter("property"):
        sums[figure.attrib["name"]] += int(float(figure.attrib["value"]))
    return dict(sums)


def service() -> str:
    """The id of the service's source in git, which stays the same when only other things change."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--", "service")
        return git("rev-parse", "--short=10", "HEAD:service").strip() + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def read(results: Path) -> list[Result]:
    return [Result(**json.loads(line)) for line in results.read_text().splitlines()] if results.exists() else []


# --- the page


def written(results: Sequence[Result], suites: Sequence[Suite] = SUITES) -> str:
    """The page: what was run of each code, and what failed."""
    parts = [_INTRODUCTION]
    for code in dict.fromkeys(result.code for result in reversed(results)):
        of_code = [result for result in results if result.code == code]
        seeds = sorted({result.seed for result in of_code})
        parts.append(
            f"## Service {code}\n\n"
            f"{of_code[0].ended[:10]} to {of_code[-1].ended[:10]}, seeds {', '.join(map(str, seeds))}.\n\n"
            "| suite | claim | rounds | failed | hours | in all |\n|---|---|---|---|---|---|\n"
        )
        for suite in suites:
            if of_suite := [result for result in of_code if result.suite == suite.name]:
                sums: Counter[str] = Counter()
                for result in of_suite:
                    sums.update(result.figures)
                failed = sum(not result.passed for result in of_suite)
                hours = sum(result.seconds for result in of_suite) / 3600
                row = (suite.name, suite.claim, str(len(of_suite)), str(failed), f"{hours:.2f}", shown(sums))
                parts.append(f"| {' | '.join(row)} |\n")
        parts.append("\n")
        for result, suite in product(of_code, suites):
            if result.suite == suite.name and not result.passed:
                env = " ".join(f"{k}={v}" for k, v in suite.env_of(result.seed * ROUNDS_MAX + result.round).items())
                parts.append(f"Failed: `{env} pytest {' '.join(suite.tests)}`\n\n")
    return "".join(parts).rstrip() + "\n"


_INTRODUCTION = """\
<!-- Generated by `make prove` from docs/proof.jsonl. -->

# What `make prove` has found

Random searches for a lost or doubled record, longer than tests may take. `make prove SEED=7 HOURS=2` goes on where the
last call with that seed ended, and adds to this page. [delivery.md](delivery.md#how-this-is-proven) says what the
suites do. A service is named by the id of its source: `git rev-parse --short=10 HEAD:service`.

"""


def shown(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{value:,} {name}" for name, value in figures.items())


def say(text: str) -> None:
    sys.stdout.write(f"{datetime.now(UTC):%H:%M:%S}  {text}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.prove", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="another one is another search (%(default)s)")
    parser.add_argument("--hours", type=float, default=1, help="how long (%(default)s)")
    args = parser.parse_args()
    try:
        with leave_nothing():
            return 0 if prove(args.seed, args.hours) else 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
