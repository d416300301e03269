"""The report of the catalog's size, and of the bound that operators set for it.

Nothing refuses entries above the bound: the catalog is written after the object, so a refusal would stop the storing of
what is accepted already, and that for the sake of a start that takes long. An alert asks to fold old entries instead.
"""

import asyncio
import logging

from bronze.errors import BronzeError
from bronze.servers.catalog import Catalog
from bronze.telemetry.instruments import Instruments

log = logging.getLogger(__name__)

REPORT_S = 15.0


class CatalogSizeReport:
    """Reports how many entries the catalog has, how large it is, and how many entries it should have at most."""

    def __init__(self, catalog: Catalog, instruments: Instruments, entries_max: int) -> None:
        self._catalog = catalog
        self._instruments = instruments
        self._entries_max = entries_max
        self._warned = False

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            try:
                await self.report()
            except BronzeError as error:
                log.info("the size of the catalog is not known: %s", error)
            except Exception:
                log.exception("the size of the catalog: unexpected error")
            await asyncio.sleep(REPORT_S)

    async def report(self) -> None:
        """Report the size once; the log says it when the bound is passed. Raises `Unavailable`."""
        size = await self._catalog.size()
        self._instruments.catalog_limit.set(self._entries_max)
        self._instruments.catalog_entries.set(size.entries)
        self._instruments.catalog_size.set(size.bytes)
        above = size.entries > self._entries_max
        if above and not self._warned:
            log.warning(
                "the catalog has %d entries, more than BRONZE_CATALOG_ENTRIES_MAX (%d): delete objects that nobody "
                "needs with `bronze retain`, which also removes their entries, or set a higher bound",
                size.entries,
                self._entries_max,
            )
        self._warned = above
