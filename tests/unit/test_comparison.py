"""The comparison of the catalog with the bucket: how much it reads, and what it reports; on modelled servers."""

import asyncio
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from bronze.consumer.ledger import Comparison
from bronze.protocol.documents import CatalogEntry, entry_of
from bronze.protocol.lane import Lane
from bronze.protocol.removal import removal_key
from bronze.servers.catalog import SUBJECTS, NatsCatalog
from bronze.servers.catalog_feed import Feed
from bronze.servers.jetstream import Outgoing
from bronze.telemetry.signals import Role
from tests import factories
from tests.contract.making import Heard, cancelled, until
from tests.delivery.servers import ModelBucket, ModelJetStream, Object, QueueServer

PREFIX, STREAM = "bronze", "BRONZE_CATALOG_1"
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


class Site:
    """A catalog and a bucket, and what was read of the catalog: from where on, each time."""

    def __init__(self, instruments: Any) -> None:
        self.now = NOW
        self.server = QueueServer(self._now_s)
        self.server.create({"name": STREAM, "subjects": SUBJECTS, "metadata": {}})
        self.objects: dict[str, Object] = {}
        self.begins: list[int | str] = []
        site = self

        class Reading(ModelJetStream):
            async def read_subject(self, stream: str, subject: str, begin: int | str, **bounds: Any) -> Any:
                site.begins.append(begin)
                return await super().read_subject(stream, subject, begin, **bounds)

        jetstream = Reading(self.server)
        self.comparison = Comparison(
            NatsCatalog(jetstream, STREAM),
            ModelBucket(self.objects),
            Feed(jetstream),
            instruments,
            ["status"],
            PREFIX,
            now=lambda: self.now,
        )

    def _now_s(self) -> float:
        return self.now.timestamp()

    def store(self, first: int) -> CatalogEntry:
        """The entry of an object of one message, which is in the bucket."""
        entry = entry_of(factories.contents(first, first, written_at=self.now.isoformat()))
        lane = Lane(entry.source, entry.lane, entry.epoch)
        self.server.store([Outgoing(lane.entry_subject, msgspec.json.encode(entry), {})])
        self.objects[entry.file_path] = Object(b"x", {})
        return entry


@pytest.fixture
def heard() -> Iterator[Heard]:
    heard = Heard(Role.CONSUMER)
    yield heard
    heard.telemetry.shutdown()


@pytest.fixture
def site(heard: Heard) -> Site:
    return Site(heard.telemetry.instruments)


async def test_a_catalog_without_new_entries_is_not_read_from_its_beginning(site: Site, heard: Heard) -> None:
    """A consumer that starts on an idle system: until there is a new entry, each read begins two hours ago."""
    site.store(1)
    site.now += timedelta(hours=5)
    for _ in range(3):
        await site.comparison.compare()
    assert all(isinstance(begin, str) for begin in site.begins)
    lost = site.store(2)
    del site.objects[lost.file_path]
    await site.comparison.compare()
    assert heard.count("bronze.missing.objects", bronze_source="vehicles") == 1
    await site.comparison.compare()
    assert site.begins[-1] == 3


async def test_a_source_that_is_not_declared_has_no_missing_objects_once_they_are_back(
    site: Site, heard: Heard
) -> None:
    entry = site.store(1)
    there = site.objects.pop(entry.file_path)
    await site.comparison.compare()
    assert heard.count("bronze.missing.objects", bronze_source="vehicles") == 1
    site.objects[entry.file_path] = there
    site.now += timedelta(hours=3)
    await site.comparison.compare()
    assert heard.count("bronze.missing.objects", bronze_source="vehicles") == 0


async def test_a_removal_record_that_cannot_be_read_is_an_error_in_the_log(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """What is missing is unknown then, until an operator has seen to it."""
    caplog.set_level(logging.INFO)
    entry = site.store(1)
    del site.objects[entry.file_path]
    await site.comparison.compare_all()
    site.objects[removal_key(PREFIX, entry.file_path)] = Object(b"{", {})
    running = asyncio.create_task(site.comparison.run())

    def levels() -> list[str]:
        return [record.levelname for record in caplog.records if "could not be compared" in record.message]

    await until(lambda: bool(levels()))
    await cancelled(running)
    assert levels() == ["ERROR"]
