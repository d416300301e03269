"""The results of a verification: how much was checked, and each fault."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field

from bronze.telemetry.instruments import Instruments
from bronze.telemetry.signals import VerifyCheck, attribute

#: What each check compares, for people.
TITLES = {
    VerifyCheck.EXEMPLAR: "exemplars of uploads: trace, object, entry",
    VerifyCheck.ENTRY: "entries of the catalog: object, size, rows",
    VerifyCheck.CHAIN: "entries of a lane: no gap, no overlap",
    VerifyCheck.OBJECT: "objects in the bucket: an entry names each",
}


@dataclass(frozen=True, slots=True)
class Period:
    """A time range; both times are in UTC."""

    since: dt.datetime
    until: dt.datetime

    def contains(self, time: dt.datetime) -> bool:
        return self.since <= time <= self.until


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with an object or a trace, and what to do."""

    problem: str
    advice: str
    file_path: str | None = None
    trace_id: str | None = None


@dataclass(slots=True)
class CheckResult:
    """The result of a check. `notes` say what could not be checked."""

    check: VerifyCheck
    checked: int = 0
    #: objects that are gone and have a removal record
    removed: int = 0
    #: items that are not in `checked`, because a server failed to answer about them
    not_looked_up: int = 0
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def share(self) -> float | None:
        """The share that is correct; None if nothing was checked."""
        return 1 - len(self.faults) / self.checked if self.checked else None


def report_shares(instruments: Instruments, results: Sequence[CheckResult], now_s: float) -> None:
    """Report the shares, and when they were found. A check that checked nothing reports no share."""
    for result in results:
        if result.share is not None:
            instruments.verify_share.set(result.share, {attribute.bronze_verify_check: result.check})
            instruments.verify_last_run_time.set(now_s, {attribute.bronze_verify_check: result.check})
