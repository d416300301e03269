"""The maintenance of the tables, beside the commits."""

import asyncio
import datetime as dt
import logging
import threading
from collections.abc import Callable, Collection, Sequence

from bronze import process
from bronze.errors import BronzeError, ErrorCode, Outage
from bronze.maintenance.task import Task, TooManyConflicts
from bronze.telemetry.signals import error_type

log = logging.getLogger(__name__)


class _Ending(Exception):
    """The process ends."""


class Maintenance:
    """Runs tasks for each table every `interval_s` seconds. `tasks` makes them for a time, and `on_run` is called after
    those of a table, with their first error.

    A task that failed is done again by the next run: none of them changes a row.
    """

    def __init__(
        self,
        sources: Collection[str],
        tasks: Callable[[dt.datetime], Sequence[Task]],
        interval_s: float,
        on_run: Callable[[str, ErrorCode | None], None],
    ) -> None:
        self._sources = sources
        self._tasks = tasks
        self._interval_s = interval_s
        self._on_run = on_run

    async def run(self) -> None:
        """Run until cancelled. What a thread does then ends after the next file."""
        ending = threading.Event()

        def on_file() -> None:
            if ending.is_set():
                raise _Ending

        try:
            while True:
                for source in self._sources:
                    tasks = self._tasks(dt.datetime.now(dt.UTC))
                    errors = [await self._run(task, source, on_file) for task in tasks]
                    # a compaction has some 200 MB at its peak, of which malloc keeps a part
                    await asyncio.to_thread(process.return_freed_memory)
                    self._on_run(source, next(filter(None, errors), None))
                await asyncio.sleep(self._interval_s)
        finally:
            ending.set()

    async def _run(self, task: Task, source: str, on_file: Callable[[], None]) -> ErrorCode | None:
        try:
            log.info("%s", await asyncio.to_thread(task.run, source, on_file))
        except (BronzeError, TooManyConflicts) as error:
            log.warning("the maintenance of the table %s goes on in %g s: %s", source, self._interval_s, error)
            return Outage.CONFLICT if isinstance(error, TooManyConflicts) else error_type(error)
        except Exception as error:
            log.exception("the maintenance of the table %s: unexpected error", source)
            return error_type(error)
        return None
