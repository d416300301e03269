"""Searches for a lost or doubled record for hours, from a seed: `make prove SEED=7 HOURS=2`.

In each round, every suite runs with another seed, or only those that SUITES names. Each result becomes a line of
docs/proof.jsonl, from which docs/proof.md is written. Another call with the same seed continues after the last result.
A failure does not end the search; its log is kept, and the exit code is 1.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
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
#: Between a kind and what is counted, in the name of a figure.
KIND = ": "
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
#: The seed of a round is the given seed times this, plus the round's number.
ROUNDS_MAX = 1000


@dataclass(frozen=True)
class Suite:
    """Some tests, and the environment that makes them longer; `{seed}` in it is replaced by the round's seed."""

    name: str
    claim: str
    tests: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)

    def env_of(self, seed: int) -> dict[str, str]:
        return {name: value.format(seed=seed) for name, value in self.env.items()}


SUITES = (
    Suite(
        "model",
        "with modelled servers, I1 to I8 are true for each order of events that the search tries",
        [f"tests/delivery/test_model.py::{test}" for test in ("test_delivery", "test_rolled_back", "test_changed")],
        {"BRONZE_MODEL_SEED": "{seed}", "BRONZE_MODEL_EXAMPLES": "1000"},
    ),
    Suite(
        "change",
        "if the number of lanes changes under load and the command is killed, nothing is lost or doubled",
        ["tests/delivery/test_change.py"],
        {"BRONZE_KILL_SEED": "{seed}"},
    ),
    Suite(
        "kill",
        "if each process is killed and paused at each step, nothing is lost or doubled",
        ["tests/delivery/test_kill.py"],
        {"BRONZE_KILL_SEED": "{seed}", "BRONZE_KILL_ROUNDS": "3"},
    ),
    Suite(
        "cluster",
        "whatever happens to a server of the queue, its disk or the network, nothing is lost or doubled",
        ["tests/delivery/test_cluster_faults.py::test_faults_of_the_cluster_lose_and_double_nothing"],
        {"BRONZE_CLUSTER_SEED": "{seed}", "BRONZE_CLUSTER_FAULTS": "22"},
    ),
    Suite(
        "bucket",
        "if the bucket answers late, wrongly or not at all, nothing is lost or doubled",
        ["tests/delivery/test_bucket_faults.py"],
        {"BRONZE_KILL_SEED": "{seed}"},
    ),
    Suite(
        "table",
        "if all that commits to a table ends or loses replies, no row is lost or doubled, and erased rows stay away",
        ["tests/delivery/test_table_faults.py"],
        {"BRONZE_TABLE_SEED": "{seed}", "BRONZE_TABLE_CUTS": "300"},
    ),
    Suite(
        "table-reader",
        "each look at a table has its rows once, whatever is done to it meanwhile, and no row that was erased before",
        ["tests/delivery/test_table_reader.py"],
        {"BRONZE_TABLE_SEED": "{seed}", "BRONZE_TABLE_TASKS": "300"},
    ),
    Suite(
        "table-kills",
        "if the process that commits to a table is killed beside compactions, no row is lost or doubled",
        ["tests/system/test_table_kills.py"],
        {"BRONZE_TABLE_SEED": "{seed}", "BRONZE_TABLE_KILLS": "200"},
    ),
    Suite(
        "fuzz",
        "no answer is a server error or undocumented in the OpenAPI document",
        ["tests/system/test_fuzz.py"],
        {"BRONZE_FUZZ_SEED": "{seed}", "BRONZE_FUZZ_EXAMPLES": "100"},
    ),
    Suite(
        "outage",
        "if parts of the telemetry pipeline fail under load, no record is lost, and every loss of telemetry is counted",
        ["tests/pipeline/test_outages.py"],
        {"BRONZE_OUTAGE_S": "60"},
    ),
)


@dataclass(frozen=True)
class Result:
    """The result of a suite in a round. `code` identifies the service's source: the id of its tree in git."""

    seed: int
    round: int
    suite: str
    passed: bool
    seconds: float
    ended: str
    code: str
    figures: Mapping[str, float]


def prove(seed: int, hours: float, suites: Sequence[Suite] = SUITES, docs: Path = DOCS, logs: Path = LOGS) -> bool:
    """Runs suites that have no result yet until the time is over; a started suite is finished.

    Returns whether all of them passed. The page has the results of all suites, also of those that do not run now.
    """
    every = [*SUITES, *(suite for suite in suites if suite not in SUITES)]
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
        (docs / PAGE).write_text(written(read(results), every))
        say(f"{'passed' if result.passed else 'FAILED'} after {result.seconds:.0f} s: {shown(result.figures)}")
    return passed


def run(suite: Suite, seed: int, number: int, logs: Path) -> Result:
    of_round = seed * ROUNDS_MAX + number
    report, log = logs / f"{suite.name}-{of_round}.xml", logs / f"{suite.name}-{of_round}.log"
    folder = logs / f"{suite.name}-{of_round}"
    began, code = time.monotonic(), service()
    with log.open("wb") as output:
        outcome = subprocess.run(
            [*PYTEST, f"--basetemp={folder}", f"--junitxml={report}", *suite.tests],
            cwd=REPOSITORY,
            env={**os.environ, **suite.env_of(of_round)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if outcome.returncode not in {0, 1}:  # neither all passed nor some failed
        raise SystemExit(f"{suite.name} could not run: {log}")
    if outcome.returncode == 0:
        shutil.rmtree(folder, ignore_errors=True)
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
    """The sums of the figures that tests report (`record_property`)."""
    sums: Counter[str] = Counter()
    for figure in ET.parse(report).iter("property"):
        sums[figure.attrib["name"]] += int(float(figure.attrib["value"]))
    return dict(sums)


def service() -> str:
    """The id of the service's source in git, which does not change with other files."""

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
    """The page: the suites that ran with each version of the code, and their failures."""
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
        parts += (_by_kind(suite.name, [one for one in of_code if one.suite == suite.name]) for suite in suites)
        for result, suite in product(of_code, suites):
            if result.suite == suite.name and not result.passed:
                env = " ".join(f"{k}={v}" for k, v in suite.env_of(result.seed * ROUNDS_MAX + result.round).items())
                parts.append(f"Failed: `{env} pytest {' '.join(suite.tests)}`\n\n")
    return "".join(parts).rstrip() + "\n"


def _by_kind(suite: str, results: Sequence[Result]) -> str:
    """A table of the figures that are named `kind: what is counted`."""
    kinds: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for result in results:
        for name, value in result.figures.items():
            kind, _, counted = name.partition(KIND)
            if counted:
                kinds[kind][counted] += int(value)
    if not kinds:
        return ""
    columns = list(dict.fromkeys(counted for counts in kinds.values() for counted in counts))
    rows = [f"| {kind} | {' | '.join(f'{counts[one]:,}' for one in columns)} |\n" for kind, counts in kinds.items()]
    head = f"| kind | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}\n"
    return f"By kind, of the suite {suite}:\n\n{head}{''.join(sorted(rows))}\n"


_INTRODUCTION = """\
<!-- Generated by `make prove` from docs/proof.jsonl. -->

# Results of `make prove`

Random searches for a lost or doubled record, longer than the tests. `make prove SEED=7 HOURS=2` continues where the
last call with that seed ended, and adds to this page. [delivery.md](delivery.md#how-this-is-proven) describes the
suites. A service is identified by the id of its source: `git rev-parse --short=10 HEAD:service`.

"""


def shown(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{value:,} {name}" for name, value in figures.items() if KIND not in name)


def say(text: str) -> None:
    sys.stdout.write(f"{datetime.now(UTC):%H:%M:%S}  {text}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.prove", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the seed of the search (%(default)s)")
    parser.add_argument("--hours", type=float, default=1, help="the duration in hours (%(default)s)")
    names = [suite.name for suite in SUITES]
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(names)}; without any, all")
    args = parser.parse_args()
    if unknown := set(args.suites) - set(names):
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    try:
        with leave_nothing():
            chosen = [suite for suite in SUITES if suite.name in (args.suites or names)]
            return 0 if prove(args.seed, args.hours, chosen) else 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
