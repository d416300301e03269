"""The report of the catalog's size, and what the log says when the bound is passed."""

import asyncio
import logging
from collections.abc import Iterator
from typing import cast

import pytest

from bronze.ledger.catalog_size import CatalogSizeReport
from bronze.servers.catalog import Catalog, CatalogSize
from bronze.telemetry.signals import Role
from tests.contract.making import Heard


class Sized:
    """A catalog of so many entries."""

    entries = 0

    async def size(self) -> CatalogSize:
        return CatalogSize(self.entries, 1_000 * self.entries)


@pytest.fixture
def heard() -> Iterator[Heard]:
    heard = Heard(Role.API)
    yield heard
    heard.telemetry.shutdown()


def test_the_log_says_once_that_the_bound_was_passed(heard: Heard, caplog: pytest.LogCaptureFixture) -> None:
    """Again only if the catalog was below it meanwhile. The metrics have each size."""
    caplog.set_level(logging.WARNING, "bronze")
    catalog = Sized()
    report = CatalogSizeReport(cast(Catalog, catalog), heard.telemetry.instruments, entries_max=3)
    warnings = []
    for catalog.entries in (0, 3, 4, 5, 3, 4):
        asyncio.run(report.report())
        warnings.append(len(caplog.records))
        values = {name: heard.points(f"bronze.catalog.{name}")[0].value for name in ("entries", "limit", "size")}
        assert values == {"entries": catalog.entries, "limit": 3, "size": 1_000 * catalog.entries}
    assert warnings == [0, 0, 1, 1, 1, 2]
    assert "more than BRONZE_CATALOG_ENTRIES_MAX (3)" in caplog.text
