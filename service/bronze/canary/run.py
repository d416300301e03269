"""The role: it runs the checks again and again, and reports the outcome of each."""

import asyncio
import datetime as dt
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from uuid import uuid4

import msgspec

from bronze.canary.checks import CanaryCheck, Run
from bronze.errors import BronzeError
from bronze.records.sources import CLASSIFICATION_ID
from bronze.telemetry.instruments import Instruments
from bronze.telemetry.signals import Check, Outcome, attribute, error_type

log = logging.getLogger(__name__)

RECORDS = 3
OUTCOMES = (Outcome.SUCCESS, Outcome.FAILURE, Outcome.SKIPPED)


def new_run(now_s: Callable[[], float] = time.time) -> Run:
    """A run with new records."""
    run_id, began_s = uuid4().hex, now_s()
    sent_at = dt.datetime.fromtimestamp(began_s, dt.UTC)
    key = f"canary-{run_id}"
    records = (
        {"run_id": run_id, "number": number, "sent_at": sent_at, CLASSIFICATION_ID: key} for number in range(RECORDS)
    )
    return Run(key, tuple(map(msgspec.json.encode, records)), began_s)


class Canary:
    """Runs the checks, in their order."""

    def __init__(self, checks: Sequence[CanaryCheck], instruments: Instruments, interval_s: float) -> None:
        self._checks = checks
        self._instruments = instruments
        self._interval_s = interval_s

    async def run(self, stop: asyncio.Event) -> None:
        """One run per interval, until stopped. A run that takes longer delays the next one; a stop ends it."""
        stopped = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                began_s = time.monotonic()
                running = asyncio.create_task(self.run_once(new_run()))
                await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not running.done():
                    running.cancel()
                with suppress(asyncio.CancelledError):
                    await running
                await asyncio.wait({stopped}, timeout=max(0.0, self._interval_s - (time.monotonic() - began_s)))
        finally:
            stopped.cancel()

    async def run_once(self, run: Run) -> dict[Check, Outcome]:
        """One run; the outcome of each check."""
        outcomes: dict[Check, Outcome] = {}
        failed: dict[Check, Exception] = {}
        for check in self._checks:
            try:
                await check.prepare(run)
            except Exception as error:  # noqa: BLE001  it is the failure of this check, when its turn comes
                failed[check.name] = error
        run.sent_s = time.time()
        for check in self._checks:
            if any(outcomes.get(needed) is not Outcome.SUCCESS for needed in check.needs):
                outcomes[check.name] = self._report(check.name, Outcome.SKIPPED)
                continue
            began_s = time.monotonic()
            failure = failed.get(check.name)
            if failure is None:
                try:
                    await check.check(run)
                except Exception as error:  # noqa: BLE001  a defect of a check is a failure too
                    failure = error
            self._instruments.canary_check_duration.record(
                time.monotonic() - began_s, {attribute.bronze_check: check.name}
            )
            outcomes[check.name] = self._report(check.name, Outcome.FAILURE if failure else Outcome.SUCCESS, failure)
        self._instruments.canary_last_run_time.set(time.time())
        log.info("run %s: %s", run.key, ", ".join(f"{name} {outcome}" for name, outcome in outcomes.items()))
        return outcomes

    def _report(self, name: Check, outcome: Outcome, error: Exception | None = None) -> Outcome:
        of_check = {attribute.bronze_check: name}
        failure = {} if error is None else {attribute.error_type: error_type(error)}
        self._instruments.canary_checks.add(1, {**of_check, attribute.bronze_outcome: outcome, **failure})
        for possible in OUTCOMES:
            self._instruments.canary_check_state.set(
                int(possible is outcome), {**of_check, attribute.bronze_outcome: possible}
            )
        if isinstance(error, BronzeError):
            log.error("the check %s failed: %s", name, error)
        elif error is not None:
            log.error("the check %s failed", name, exc_info=error)
        return outcome
