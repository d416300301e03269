"""What is true at every evaluation, read at the pace of the rules while the run goes on."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product

from bronze.api.glance import QUERIES
from bronze.telemetry.promql import in_ledger, waiting
from local.evidence import SOURCES
from prometheus import rules
from prometheus.rules import Alert, Thresholds
from tests.truth.series import EVALUATION_S, Prometheus, Unanswered

_ROLES = 'job=~"bronze/(api|consumer)", bronze_source!="canary"'
#: What each source's lanes have got and what is stored of it.
LEDGER = {
    outcome: in_ledger(f'bronze_ledger_records{{{_ROLES}, bronze_outcome="{outcome}"}}')
    for outcome in ("accepted", "stored")
}
_OF_PROCESS = "sum by (job, instance, bronze_source)"
#: What waits, by the ledger of each process.
BALANCE = f"""\
{_OF_PROCESS} (bronze_ledger_records{{{_ROLES}, bronze_outcome="accepted"}})
  - {_OF_PROCESS} (bronze_ledger_records{{{_ROLES}, bronze_outcome!="accepted"}})"""
WAITING = waiting(_ROLES)
RULES = [rule for of_file in rules.groups(Thresholds()).values() for group in of_file for rule in group.rules]
(MISSING,) = (r.expr for r in RULES if isinstance(r, Alert) and r.name == "BronzeRecordsMissing")


@dataclass
class Watch:
    """Reads the numbers that must be right at any time. `sent` returns the records of each source that were sent."""

    prometheus: Prometheus
    sent: Callable[[], Counter[str]]
    stage: str = ""
    evaluations: int = 0
    unanswered: int = 0
    #: Times at which a number had no series: no process had reported for some minutes.
    absent: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    _last: dict[tuple[str, str], float] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self._over.wait(EVALUATION_S - time.time() % EVALUATION_S):
            self.evaluations += 1
            try:
                self._check()
            except Unanswered:
                self.unanswered += 1

    def stop(self) -> None:
        self._over.set()

    def _check(self) -> None:
        missing = self.prometheus.value(QUERIES["missing"])
        if missing is None:
            self.absent["missing"] += 1
        elif missing != 0:
            self._fail(f"the page shows {missing:g} missing")
        if found := self.prometheus.vector(MISSING):
            self._fail(f"the condition of BronzeRecordsMissing is true: {found}")
        if negative := {of: value for of, value in self.prometheus.vector(BALANCE).items() if value < 0}:
            self._fail(f"the ledger has less accepted than stored: {negative}")
        if negative := {of: value for of, value in self.prometheus.vector(WAITING).items() if value < 0}:
            self._fail(f"the tile *Records that wait* shows {negative}")
        ledger = {outcome: self.prometheus.vector(query) for outcome, query in LEDGER.items()}
        sent = self.sent()  # after the query
        for outcome, source in product(LEDGER, SOURCES):
            number = ledger[outcome].get(source)
            if number is None:
                self.absent[f"ledger, {outcome}"] += 1
                continue
            last = self._last.get((outcome, source), 0)
            if number < last:
                self._fail(f"the ledger of {source} went from {last:g} to {number:g} {outcome}")
            if not 0 <= number <= sent[source]:
                self._fail(f"the ledger of {source} has {number:g} {outcome}, but {sent[source]} were sent")
            self._last[outcome, source] = number

    def _fail(self, what: str) -> None:
        self.problems.append(f"{time.strftime('%H:%M:%S', time.gmtime())} ({self.stage}): {what}")
