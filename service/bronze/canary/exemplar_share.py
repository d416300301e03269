"""The share of exemplars that lead to their trace, object and entry, every minute while the system runs."""

import asyncio
import datetime as dt
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from bronze.errors import BronzeError
from bronze.telemetry.instruments import Instruments
from bronze.verify.results import Period, report_shares
from bronze.verify.verification import SETTLE_S, Verification

log = logging.getLogger(__name__)

INTERVAL_S = 60.0


class ExemplarShare:
    """Reports the share. `connect` connects to the queue, whose catalog has the entries."""

    def __init__(
        self, connect: Callable[[], AbstractAsyncContextManager[Verification]], instruments: Instruments
    ) -> None:
        self._connect = connect
        self._instruments = instruments

    async def run(self) -> None:
        """Verify each minute's exemplars once they have settled, until cancelled."""
        while True:
            try:
                async with self._connect() as verification:
                    while True:
                        await self.report(verification, dt.datetime.now(dt.UTC))
                        await asyncio.sleep(INTERVAL_S)
            except BronzeError as error:
                log.warning("exemplars could not be verified: %s", error)
            except Exception:
                log.exception("exemplars could not be verified: unexpected error")
            await asyncio.sleep(INTERVAL_S)

    async def report(self, verification: Verification, now: dt.datetime) -> None:
        until = now - dt.timedelta(seconds=SETTLE_S)
        result = await verification.exemplars(Period(until - dt.timedelta(seconds=INTERVAL_S), until))
        for fault in result.faults:
            log.error("exemplar of trace %s, object %s: %s", fault.trace_id, fault.file_path, fault.problem)
        report_shares(self._instruments, [result], now.timestamp())
