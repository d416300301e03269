"""Breaks one thing at a time in a whole system, and checks alerts, runbook and panels: `make drill`.

Each case replaces its line in docs/drill.jsonl, from which docs/drill.md is written. `.local/drill.json` has the
results of the last call. The exit code is 1 if a case failed.
"""

import argparse
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime

import httpx

from local.builds import REPOSITORY, Built, build_all
from local.programs import LocalError
from local.stack import Ports
from local.watch import leave_nothing
from tests.drill import manual, results
from tests.drill.alerts import Routing, Watch
from tests.drill.cases import CASES, AlertKey, Case
from tests.drill.manual import Entry
from tests.drill.results import AlertResult, Result, StepResult
from tests.drill.site import Site, disjoint_ports, running
from tests.prove import service
from tests.system.blackbox import until

STATE = REPOSITORY / ".local" / "drill"
DOCUMENT = REPOSITORY / ".local" / "drill.json"
PARALLEL = 2
CALM_S_MAX = 600.0
ENDED_S_MAX = 2400.0
#: Two evaluations of the slowest group of rules.
SETTLED_S = 65.0

Say = Callable[[str], None]


class Problems:
    """What is wrong in a case. A check that fails does not end the case: the system is still repaired."""

    def __init__(self, say: Say) -> None:
        self.found: list[str] = []
        self._say = say

    def add(self, text: str) -> None:
        self.found.append(text)
        self._say(f"PROBLEM: {text}")

    def guard(self, what: str, check: Callable[[], str]) -> str:
        """The result of a check; "" if it fails."""
        try:
            return check()
        except (AssertionError, LocalError, httpx.HTTPError, OSError, ValueError, StopIteration) as error:
            self.add(f"{what}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            return ""


def run(case: Case, ports: Ports, built: Built, starting: threading.Lock) -> Result:
    """Runs a case from the start of its system to its end."""
    began = time.monotonic()

    def say(text: str) -> None:
        sys.stdout.write(f"{datetime.now(UTC):%H:%M:%S}  {case.name:<17} {text}\n")
        sys.stdout.flush()

    root = STATE / case.name
    shutil.rmtree(root, ignore_errors=True)
    problems = Problems(say)
    say(case.fault)
    with ExitStack() as ending:
        with starting:
            site = ending.enter_context(running(root, ports, built, case.env, slow_bucket=case.slow_bucket))
        watch = ending.enter_context(Watch(site.prometheus_url, Routing.read(), say))
        return _drill(case, site, watch, problems, say, began)


def _drill(case: Case, site: Site, watch: Watch, problems: Problems, say: Say, began: float) -> Result:
    _calm(case, site, watch, say)
    say("no alert is pending: the fault begins")
    watch.begin()
    site.began_at = watch.began_at
    repair = case.begin(site)
    _await_symptom(case, watch, problems)
    _wait(case.watch_s if case.symptom else 0)

    entry, name = _entry(case, site, watch, problems)
    steps = _follow(case, site, entry, problems) if entry else []
    _check_logs(case, site, problems)
    cause = problems.guard("what leads to the cause", lambda: case.cause(site))
    say(f"cause: {cause}")
    quiet_s = None if case.symptom else round(time.time() - watch.began_at)

    say("repairing")
    repaired_at = time.time()
    problems.guard("the repair", lambda: str(repair()))
    _await_end(case, watch, problems)
    alerts = _alerts(case, watch, repaired_at, problems)
    for alert in alerts:
        say(
            f"{alert.heading}: fires {alert.firing_s} s, sent {alert.sent_s} s, ends {alert.ended_s} s after the repair"
        )
    result = Result(
        case=case.name,
        fault=case.fault,
        passed=not problems.found,
        problems=tuple(problems.found),
        alerts=tuple(alerts),
        entry=name,
        steps=tuple(steps),
        cause=cause,
        repair=case.repair,
        quiet_s=quiet_s,
        seconds=round(time.monotonic() - began),
        ended=datetime.now(UTC).isoformat(timespec="seconds"),
        code=service(),
        evaluation_s_max=round(site.value("max(max_over_time(prometheus_rule_group_last_duration_seconds[1h]))"), 3),
        evaluations_missed=round(site.value("sum(max_over_time(prometheus_rule_group_iterations_missed_total[1h]))")),
    )
    say(f"{'passed' if result.passed else 'FAILED'} after {result.seconds} s")
    return result


def _wait(seconds: float) -> None:
    over = time.monotonic() + seconds
    until("the time is over", lambda: time.monotonic() >= over, seconds + 60)


def _calm(case: Case, site: Site, watch: Watch, say: Say) -> None:
    """Returns when every source has objects, and no alert has been pending for two evaluations."""
    say("waiting until no alert is pending")
    stored = 'bronze_ledger_objects{job="bronze/consumer"} > 0'
    until("every source has objects", lambda: len(site.query(stored)) == 4, CALM_S_MAX)
    began, quiet_since = time.monotonic(), time.monotonic()
    while time.monotonic() - quiet_since < SETTLED_S or time.monotonic() - began < case.warm_s:
        if not watch.quiet():
            quiet_since = time.monotonic()
        assert time.monotonic() - began < CALM_S_MAX + case.warm_s, f"alerts before the fault: {watch.current}"
        time.sleep(0.5)


def _await_symptom(case: Case, watch: Watch, problems: Problems) -> None:
    over = time.monotonic() + case.deadline_s
    while time.monotonic() < over and case.symptom not in watch.fired():
        time.sleep(0.5)
    if case.symptom and case.symptom not in watch.fired():
        problems.add(f"{case.symptom[0]} did not fire within {case.deadline_s:g} s")


def _entry(case: Case, site: Site, watch: Watch, problems: Problems) -> tuple[Entry | None, str]:
    """The runbook's entry, by the link of the alert, as the API serves it. It has to name the case and its repair."""
    alert = case.symptom[0] if case.symptom else case.entry
    if not alert:
        return None, ""
    course = watch.courses.get(case.symptom) if case.symptom else None
    url = course.url if course and course.url else f"{site.system.url}/runbook#{alert.lower()}"
    address, _, anchor = url.partition("#")
    page = httpx.get(address, trust_env=False).raise_for_status().text if case.api_runs else manual.rendered()
    entry = Entry.of(page, anchor)
    if entry is None:
        problems.add(f"{url} has no heading {anchor}")
        return None, alert
    for phrase in (case.says, case.repair):
        if not entry.says(phrase):
            problems.add(f"the entry does not say {phrase!r}")
    return entry, alert


def _follow(case: Case, site: Site, entry: Entry, problems: Problems) -> list[StepResult]:
    """Runs the queries and the commands of an entry."""
    steps = []
    for query in entry.blocks("promql"):
        if not case.prometheus_runs:
            break
        found = site.query(query)
        largest = max((value for _, value in found), default=0)
        steps.append(StepResult(query, f"{len(found)} series, the largest value is {largest:.3g}" if found else "none"))
    for script in entry.blocks("sh"):
        outcome = site.run(script, case.variables(site))
        printed = (outcome.stdout + outcome.stderr).strip()
        expected = [text for word, text in case.prints.items() if word in script]
        if outcome.returncode:
            problems.add(f"{script!r} ends with {outcome.returncode}: {printed[-300:]}")
        for text in expected:
            if text not in printed:
                problems.add(f"{script!r} does not print {text!r}: {printed[:300]}")
        steps.append(StepResult(script, f"prints `{expected[0]}`" if expected else "works"))
    for word in case.prints:
        if not any(word in script for script in entry.blocks("sh")):
            problems.add(f"the entry has no command with {word!r}")
    return steps


def _check_logs(case: Case, site: Site, problems: Problems) -> None:
    for program, pattern in case.logs.items():
        if not re.search(pattern, site.log(program)):
            problems.add(f"the log of {program} has no line {pattern!r}")


def _await_end(case: Case, watch: Watch, problems: Problems) -> None:
    """Returns when no alert has been pending for two evaluations, except those that may last."""
    began, quiet_since = time.monotonic(), time.monotonic()
    while time.monotonic() - quiet_since < SETTLED_S:
        if not watch.quiet(case.after.keys()):
            quiet_since = time.monotonic()
        if time.monotonic() - began > ENDED_S_MAX:
            problems.add(f"alerts {ENDED_S_MAX:g} s after the repair: {sorted(watch.fired())}")
            return
        time.sleep(0.5)


def _alerts(case: Case, watch: Watch, repaired_at: float, problems: Problems) -> list[AlertResult]:
    repaired_s = repaired_at - watch.began_at
    found = []
    reasons: dict[AlertKey, str] = {**case.alerts, **case.after}
    for key, course in sorted(watch.courses.items(), key=lambda item: item[1].firing_s or 0):
        if course.firing_s is None:
            continue
        if course.sent_s is not None and key not in reasons:
            problems.add(f"{' '.join(key)} is sent after {course.sent_s:.0f} s, and is not expected")
        found.append(
            AlertResult(
                *key,
                pending_s=round(course.pending_s),
                firing_s=round(course.firing_s),
                sent_s=None if course.sent_s is None else round(course.sent_s),
                ended_s=None if course.resolved_s is None else round(course.resolved_s - repaired_s),
                reason=reasons.get(key),
            )
        )
    for key in case.alerts:
        seen = watch.courses.get(key)
        if seen is None or seen.sent_s is None:
            problems.add(f"{' '.join(key)} is expected, and was not sent")
    return found


def drill(cases: Sequence[Case], parallel: int) -> bool:
    """Runs cases, some at a time. Returns whether all of them passed."""
    built = build_all()
    STATE.mkdir(parents=True, exist_ok=True)
    order = [case.name for case in CASES]
    finished: list[Result] = []
    starting = threading.Lock()
    pool = ThreadPoolExecutor(parallel)
    chosen = zip(cases, disjoint_ports(len(cases)), strict=True)
    futures = {pool.submit(run, case, ports, built, starting): case for case, ports in chosen}
    passed = True
    for future in as_completed(futures):
        try:
            result = future.result()
        except (AssertionError, LocalError, httpx.HTTPError) as error:
            sys.stdout.write(f"{futures[future].name} could not run: {error}\n")
            passed = False
            continue
        passed &= result.passed
        finished.append(result)
        results.write(results.DOCS, [result], order)
        DOCUMENT.write_text(json.dumps([asdict(one) for one in finished], indent=2) + "\n")
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drill", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="the cases to run (default: all)")
    parser.add_argument("--parallel", type=int, default=PARALLEL, help="cases at a time (%(default)s)")
    parser.add_argument("--list", action="store_true", help="list the cases")
    args = parser.parse_args()
    known = {case.name: case for case in CASES}
    if args.list:
        sys.stdout.writelines(f"{name:<17} {case.fault}\n" for name, case in known.items())
        return 0
    if unknown := set(args.cases) - known.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; --list shows the cases")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with leave_nothing():
            return 0 if drill([known[name] for name in args.cases or known], args.parallel) else 1
    except KeyboardInterrupt:
        os._exit(130)  # every process has ended; the threads that wait for them need not notice


if __name__ == "__main__":
    sys.exit(main())
