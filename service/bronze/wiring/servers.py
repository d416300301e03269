"""Connections to the queue and the bucket, which roles and commands use, and what several of them make."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bronze.consumer.tasks import cancel
from bronze.ledger.report import LedgerReport
from bronze.process import retry_until_available
from bronze.protocol.lane import Lane
from bronze.queue_servers import QueueServers
from bronze.records.sources import Source
from bronze.servers import schema_registry
from bronze.servers.bucket import Bucket
from bronze.servers.catalog import Catalog, NatsCatalog
from bronze.servers.catalog_feed import Feed
from bronze.servers.jetstream import JetStream
from bronze.servers.key_value import STREAM as KEYS
from bronze.servers.key_value import KeyValueStore
from bronze.servers.lane_lock import Lock, NatsLock
from bronze.servers.principal_store import PrincipalStore
from bronze.servers.queue import NatsQueue, Queue
from bronze.servers.queue_cluster import NatsCluster, QueueCluster
from bronze.servers.s3 import S3Bucket
from bronze.settings import Settings
from bronze.telemetry.sdk import Telemetry

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Servers:
    """The servers that the roles use."""

    lanes: list[Lane]
    queue: Queue
    bucket: Bucket
    catalog: Catalog
    feed: Feed
    lock: Callable[[Lane], Lock]
    principals: PrincipalStore
    check_sources: Callable[[Mapping[str, Source], str], Awaitable[None]]
    cluster: QueueCluster


async def connect_queue(servers: QueueServers, server_name: str | None, stop: asyncio.Event) -> JetStream:
    """Connect to the queue; wait if it does not answer. Raises `StopRequested`, `Unavailable` or `Misconfigured`."""
    return await retry_until_available(lambda: JetStream.connect(servers, server_name=server_name), stop)


async def open_queue(
    jetstream: JetStream, settings: Settings, declared: Mapping[str, Source], stop: asyncio.Event
) -> tuple[KeyValueStore, NatsQueue, list[Lane], NatsCatalog]:
    """Register the declared sources, and open what is in the queue; what is missing is created, if that is permitted.

    Raises `StopRequested`, `Unavailable` or `Misconfigured`.
    """
    key_values = KeyValueStore(jetstream, settings.queue_replicas)
    queue = NatsQueue(jetstream, key_values, settings)
    origin = str(settings.sources or "the built-in sources.toml")
    await retry_until_available(lambda: schema_registry.register(key_values, declared, origin), stop)
    lanes = await retry_until_available(lambda: queue.open(declared), stop)
    catalog = await retry_until_available(lambda: NatsCatalog.open(jetstream, key_values, settings), stop)
    return key_values, queue, lanes, catalog


async def prepare_sources(key_values: KeyValueStore, queue: NatsQueue, edited: Mapping[str, Source], file: str) -> None:
    """Do what a start with these sources does first, so that it cannot fail: check and register them, open their lanes.

    Raises `Misconfigured` and `Unavailable`.
    """
    await schema_registry.check(key_values, edited, file)
    await schema_registry.register(key_values, edited, file)
    await queue.open(edited)


@asynccontextmanager
async def open_servers(
    settings: Settings,
    declared: Mapping[str, Source],
    instance_id: str,
    stop: asyncio.Event,
    *,
    creates_objects: bool = False,
) -> AsyncIterator[Servers]:
    """Connect to the servers; wait for those that do not answer.

    A role that creates objects also tests the bucket's create-only PUT. Raises `StopRequested`, `Unavailable` or
    `Misconfigured`.
    """
    # an instance id may be preset and then stays the same after a restart; the lock has to notice that its owner died
    owner = f"{instance_id}-{secrets.token_hex(4)}"
    jetstream = await connect_queue(settings.queue_servers, settings.nats_server_name, stop)
    bucket = S3Bucket(settings)
    try:
        key_values, queue, lanes, catalog = await open_queue(jetstream, settings, declared, stop)
        if creates_objects:
            await retry_until_available(bucket.check_create_only, stop)
        yield Servers(
            lanes,
            queue,
            bucket,
            catalog,
            Feed(jetstream),
            lambda lane: NatsLock(key_values, lane, owner, settings.lock_expiry_s),
            PrincipalStore(key_values),
            lambda edited, file: prepare_sources(key_values, queue, edited, file),
            NatsCluster(jetstream, [*(lane.stream for lane in lanes), catalog.stream, KEYS]),
        )
    finally:
        bucket.close()
        await jetstream.close()


@asynccontextmanager
async def queue_and_bucket(settings: Settings) -> AsyncIterator[tuple[JetStream, S3Bucket]]:
    """The queue and the bucket, for a command. Raises `Unavailable` if the queue does not answer."""
    jetstream = await JetStream.connect(settings.queue_servers, server_name=settings.nats_server_name)
    try:
        bucket = S3Bucket(settings)
        try:
            yield jetstream, bucket
        finally:
            bucket.close()
    finally:
        await jetstream.close()


def ledger_report(servers: Servers, declared: Iterable[str], telemetry: Telemetry) -> LedgerReport:
    """The report of the ledger's metrics, which every role makes."""
    return LedgerReport(servers.catalog, servers.bucket, servers.queue, telemetry.instruments, servers.lanes, declared)


@asynccontextmanager
async def in_background(*work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Do work, which ends only by cancellation, during the block. If it fails nevertheless, the log says so."""
    tasks = [asyncio.create_task(one) for one in work]
    for task in tasks:
        task.add_done_callback(_log_failure)
    try:
        yield
    finally:
        await cancel(*tasks)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error("%s has ended, and is not done again before a restart", task.get_coro(), exc_info=error)
