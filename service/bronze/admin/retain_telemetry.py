"""The measurements of `bronze retain --every`."""

import datetime as dt
import time

from bronze.admin.retention import Deleted
from bronze.telemetry.instruments import Instruments
from bronze.telemetry.signals import Outcome, attribute, error_type


class RetainTelemetry:
    """The telemetry of the role, which runs again after each period."""

    def __init__(self, instruments: Instruments, every: dt.timedelta) -> None:
        self._instruments = instruments
        self._deleted = {
            Deleted.OBJECTS: instruments.retention_objects,
            Deleted.ENTRIES: instruments.retention_entries,
            Deleted.ROWS: instruments.retention_rows,
        }
        instruments.retention_interval.set(every.total_seconds())

    def count(self, what: Deleted, source: str, number: int) -> None:
        """Count what was deleted."""
        self._deleted[what].add(number, {attribute.bronze_source: source})

    def end(self, error: BaseException | None) -> None:
        """Count a run that has ended, and report when."""
        outcome = {attribute.bronze_outcome: Outcome.FAILURE if error else Outcome.SUCCESS}
        failed = {attribute.error_type: error_type(error)} if error else {}
        self._instruments.retention_runs.add(1, {**outcome, **failed})
        self._instruments.retention_last_run_time.set(time.time(), outcome)
