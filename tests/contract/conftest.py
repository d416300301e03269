"""Fixtures on the real servers: each test has its own queue, and its own prefix in the bucket."""

import time
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from bronze.protocol.lane import Lane
from bronze.servers.catalog import NatsCatalog
from bronze.servers.jetstream import JetStream
from bronze.servers.key_value import KeyValueStore
from bronze.servers.queue import NatsQueue
from bronze.servers.s3 import S3Bucket
from bronze.settings import Settings
from bronze.telemetry.signals import Role
from local.programs import LOOPBACK, Process
from local.servers import S3Account
from tests.contract.making import Heard
from tests.contract.twins import MODEL, REAL
from tests.delivery.servers import ModelJetStream, QueueServer


@pytest.fixture
def settings(nats: Process, nats_name: str, prefix: str) -> Settings:
    return Settings(
        nats_url=f"nats://{LOOPBACK}:{nats.program.ports['queue']}",
        nats_server_name=nats_name,
        prefix=prefix,
        queue_bytes_max=64 * 2**20,
        flush_age_s=0.1,
        deadline_s=5,
        purge_grace_s=10,
        lock_expiry_s=1,
    )


@pytest_asyncio.fixture
async def jetstream(request: pytest.FixtureRequest) -> AsyncIterator[JetStream]:
    """A connection to the test's own nats-server, or to a model of one (`twins.on_both`)."""
    if getattr(request, "param", REAL) == MODEL:
        yield ModelJetStream(QueueServer(time.time))
        return
    settings: Settings = request.getfixturevalue("settings")
    connection = await JetStream.connect(settings.queue_servers, server_name=settings.nats_server_name)
    yield connection
    await connection.close()


@pytest.fixture
def queue(jetstream: JetStream, settings: Settings) -> NatsQueue:
    return NatsQueue(jetstream, KeyValueStore(jetstream, 1), settings)


@pytest_asyncio.fixture
async def lane(queue: NatsQueue) -> Lane:
    (lane,) = await queue.open(["vehicles"])
    return lane


@pytest_asyncio.fixture
async def catalog(jetstream: JetStream, settings: Settings) -> NatsCatalog:
    return await NatsCatalog.open(jetstream, KeyValueStore(jetstream, 1), settings)


@pytest_asyncio.fixture
async def key_values(jetstream: JetStream) -> KeyValueStore:
    key_values = KeyValueStore(jetstream, 1)
    await key_values.open()
    return key_values


@pytest.fixture
def bucket(s3_account: S3Account, s3_env: dict[str, str], prefix: str) -> Iterator[S3Bucket]:
    bucket = S3Bucket(Settings(bucket=s3_account.bucket, prefix=prefix))
    yield bucket
    bucket.close()


@pytest.fixture
def heard() -> Iterator[Heard]:
    heard = Heard(Role.CONSUMER)
    yield heard
    heard.telemetry.shutdown()
