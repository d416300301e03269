"""Compares every number that is shown with the truth, for an hour: `make truth HOURS=1`, or `make truth S=300`.

A run of an hour or more writes docs/truth.json and docs/truth.md; a shorter one writes the same to .local/truth/.
"""

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from local.builds import REPOSITORY, build_all
from local.machine import describe
from local.watch import leave_nothing
from tests.prove import service
from tests.truth import day
from tests.truth.page import written
from tests.truth.run import run

LOCAL = REPOSITORY / ".local" / "truth"
OUTAGE_S_MAX = 600.0


def say(text: str) -> None:
    sys.stdout.write(f"{datetime.now(UTC):%H:%M:%S}  {text}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.truth", description=__doc__)
    parser.add_argument("--hours", type=float, default=1, help="the duration of the run, in hours (%(default)s)")
    parser.add_argument("--seconds", type=float, help="the same in seconds, for a shorter run")
    parser.add_argument("--seed", type=int, default=1, help="the seed of load and faults (%(default)s)")
    parser.add_argument("--note", default="", help="what else the page says of the run")
    args = parser.parse_args()
    seconds = args.seconds or args.hours * 3600
    outage_s = min(OUTAGE_S_MAX, seconds / 6)
    root = LOCAL / "system"
    shutil.rmtree(root, ignore_errors=True)
    began = time.time()
    of_run = {"service": service(), "machine": describe()}
    try:
        with leave_nothing():
            results = run(root, seconds, outage_s, args.seed, say)
            say("a synthetic day, by promtool")
            results["day"] = check_day(root / "day", args.seed)
    except KeyboardInterrupt:
        return 130
    if results["day"]["problems"]:
        results["problems"].append("the synthetic day: an expression is not exact")
    results |= {
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "took_s": round(time.time() - began),
        **of_run,
        "note": args.note,
    }
    folder = REPOSITORY / "docs" if seconds >= 3600 else LOCAL
    save(results, folder)
    for problem in results["problems"]:
        say(f"PROBLEM: {problem}")
    say(f"{len(results['problems'])} problems; {folder / 'truth.md'}")
    return 1 if results["problems"] else 0


def check_day(folder: Path, seed: int) -> dict[str, object]:
    folder.mkdir(parents=True, exist_ok=True)
    made = day.make(seed)
    complaints = day.check(build_all().promtool, folder, made)
    return {**day.figures(made), "problems": complaints[:2000]}


def save(results: object, folder: Path) -> None:
    """Writes the results, and the page that is made from them."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_plain(results), indent=1, allow_nan=False) + "\n"
    (folder / "truth.json").write_text(text)
    (folder / "truth.md").write_text(written(json.loads(text)))


def _plain(value: Any) -> Any:
    """The same as JSON has it: null instead of NaN."""
    if isinstance(value, Mapping):
        return {key: _plain(element) for key, element in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(element) for element in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())
