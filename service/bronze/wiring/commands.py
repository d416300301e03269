"""The commands that need a server."""

import argparse
import asyncio
import logging
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace

from bronze.admin import keys_command, objects_command, sources_command, verify_command
from bronze.admin.acknowledge import Acknowledgement
from bronze.admin.change_lanes import LaneChange
from bronze.admin.command_error import run_again_if_replaced
from bronze.admin.confirmation import Confirmation, address, unfinished_if_interrupted
from bronze.admin.copy_queue import QueueCopy
from bronze.admin.progress import Progress
from bronze.admin.quarantine_command import run
from bronze.admin.rebuild_catalog import BucketContents, Rebuild
from bronze.admin.reports import report_copied, report_initialized, report_lanes, report_rebuilt
from bronze.errors import Misconfigured
from bronze.plurals import counted
from bronze.printable import printable
from bronze.process import StopRequested, on_stop_signals
from bronze.protocol import quarantine
from bronze.queue_servers import Addresses
from bronze.records import sources
from bronze.servers import schema_registry
from bronze.servers.bucket import Bucket
from bronze.servers.catalog import NatsCatalog
from bronze.servers.catalog_feed import Feed
from bronze.servers.catalog_rebuild import CatalogReplacement
from bronze.servers.jetstream import ApiError, JetStream
from bronze.servers.key_value import STREAM as KEYS
from bronze.servers.key_value import KeyValueStore
from bronze.servers.principal_store import PrincipalStore
from bronze.servers.queue import LaneAdmin, NatsQueue
from bronze.servers.s3 import S3Bucket
from bronze.settings import Settings
from bronze.telemetry.sdk import Telemetry
from bronze.verify.results import report_shares
from bronze.verify.verification import Verification
from bronze.wiring.http_servers import TELEMETRY_S_MAX, open_prometheus, open_trace_store
from bronze.wiring.servers import (
    connect_queue,
    open_queue,
    queue_and_bucket,
)

log = logging.getLogger(__name__)


def _confirmation(args: argparse.Namespace, targets: Sequence[str]) -> Confirmation:
    """Of a command whose actions that change something have the option --yes."""
    return Confirmation(targets, yes=getattr(args, "yes", False))


def queue_target(jetstream: JetStream) -> str:
    cluster = f" of the cluster {printable(jetstream.cluster_name)}" if jetstream.cluster_name else ""
    return f"queue at {address(jetstream.address)}, server {printable(str(jetstream.server_name))}{cluster}"


def bucket_target(bucket: S3Bucket, prefix: str) -> str:
    return f"bucket {bucket.name} at {address(bucket.address)}, prefix {prefix}"


async def run_quarantine(args: argparse.Namespace, settings: Settings) -> int:
    """Run a command of `bronze quarantine`, which needs only the bucket. Returns the exit code."""
    bucket = S3Bucket(settings)
    try:
        targets = [bucket_target(bucket, quarantine.FOLDER), f"API at {address(settings.api_url)}"]
        return await run(args, settings, bucket, _confirmation(args, targets))
    finally:
        bucket.close()


async def run_objects(args: argparse.Namespace, settings: Settings) -> int:
    """Run a command of `bronze objects`. Returns the exit code."""
    async with queue_and_bucket(settings) as (jetstream, bucket):
        await bucket.check()
        feed = Feed(jetstream)
        catalog = await NatsCatalog.find(jetstream, settings)
        acknowledgement = Acknowledgement(catalog, feed, bucket, settings.prefix)
        confirmation = _confirmation(args, [queue_target(jetstream), bucket_target(bucket, settings.prefix)])
        return await objects_command.run(args, feed, bucket, settings.prefix, acknowledgement, confirmation)


async def check_sources(args: argparse.Namespace, settings: Settings) -> int:
    """Run `bronze sources check`. Returns the exit code."""
    declared = sources_command.load(args.file, settings.sources)
    jetstream = await JetStream.connect(settings.queue_servers, server_name=settings.nats_server_name)
    try:
        _confirmation(args, [queue_target(jetstream)]).show_targets()
        registered = await schema_registry.registered(KeyValueStore(jetstream, settings.queue_replicas))
    finally:
        await jetstream.close()
    return sources_command.report(args, registered, declared)


async def run_keys(args: argparse.Namespace, settings: Settings) -> int:
    """Run a command of `bronze keys`, which needs only the queue. Returns the exit code."""
    jetstream = await JetStream.connect(settings.queue_servers, server_name=settings.nats_server_name)
    try:
        store = PrincipalStore(KeyValueStore(jetstream, settings.queue_replicas))
        return await keys_command.run(args, store, _confirmation(args, [queue_target(jetstream)]))
    finally:
        await jetstream.close()


async def with_feed(settings: Settings, follow: Callable[[Feed, asyncio.Event], Awaitable[None]]) -> int:
    """Call a follower with the catalog's feed, until it ends or a stop signal. Returns the exit code."""
    stop = asyncio.Event()
    on_stop_signals(stop.set)
    with suppress(StopRequested):
        jetstream = await connect_queue(settings.queue_servers, settings.nats_server_name, stop)
        try:
            await follow(Feed(jetstream), stop)
        finally:
            await jetstream.close()
    return 0


async def verify(args: argparse.Namespace, settings: Settings, telemetry: Telemetry) -> int:
    """Run `bronze verify`: print what it finds, and report the shares. Returns the exit code."""
    period = verify_command.period(args)
    async with queue_and_bucket(settings) as (jetstream, bucket):
        await bucket.check()
        async with (
            open_prometheus(settings, TELEMETRY_S_MAX) as prometheus,
            open_trace_store(settings, TELEMETRY_S_MAX) as trace_store,
        ):
            with Progress("checked") as progress:
                verification = Verification(
                    bucket,
                    Feed(jetstream),
                    prometheus,
                    trace_store,
                    settings.prefix,
                    progress.step,
                )
                results = await verification.run(period, sources.load(settings.sources), deep=args.deep)
    report_shares(telemetry.instruments, results, time.time())
    return verify_command.report(args, period, results)


async def initialize(settings: Settings, *, yes: bool) -> int:
    """Run `bronze init`: create what the roles need in the queue. Returns the exit code.

    `yes`: it does not ask.
    """
    stop = asyncio.Event()
    declared = sources.load(settings.sources)
    jetstream = await connect_queue(settings.queue_servers, settings.nats_server_name, stop)
    try:
        targets = [queue_target(jetstream), f"lanes of the bucket {settings.bucket}, prefix {settings.prefix}"]
        await Confirmation(targets, yes).ask(
            "Create the streams that are missing, raise the others to BRONZE_QUEUE_REPLICAS, and register the sources?"
        )
        before = set(await jetstream.stream_names(">"))
        key_values, queue, lanes, catalog = await open_queue(jetstream, settings, declared, stop)
        created = sorted(set(await jetstream.stream_names(">")) - before)
        protected = [lane.stream for lane in lanes if await queue.protect(lane)]
        protected += [KEYS] * await key_values.protect() + [catalog.stream] * await catalog.protect()
        streams = [*(lane.stream for lane in lanes), catalog.stream, KEYS]
        replicated = [stream for stream in streams if await _replicate(jetstream, stream, settings.queue_replicas)]
    finally:
        await jetstream.close()
    report_initialized(len(lanes), created, protected, replicated, settings.queue_replicas)
    return 0


async def _replicate(jetstream: JetStream, stream: str, replicas: int) -> bool:
    """As `JetStream.raise_replicas`. Raises `Misconfigured` if the queue cannot have so many."""
    try:
        return await jetstream.raise_replicas(stream, replicas)
    except ApiError as error:
        raise Misconfigured(
            f"BRONZE_QUEUE_REPLICAS={replicas}: the queue refuses that for {stream}: {error}"
        ) from error


async def copy_queue(settings: Settings, to: str, *, yes: bool) -> int:
    """Run `bronze queue copy`: copy the queue to servers that have none. Returns the exit code.

    `yes`: it does not ask.
    """
    try:
        servers = replace(settings.queue_servers, urls=Addresses.parse(to).urls)
    except ValueError as error:
        raise Misconfigured(f"--to: {error}") from error
    source = await JetStream.connect(settings.queue_servers, server_name=settings.nats_server_name)
    try:
        target = await JetStream.connect(servers)
        try:
            targets = [queue_target(source), f"{queue_target(target)}, which gets the copy"]
            await Confirmation(targets, yes).ask(
                "Copy the queue? From now on it accepts nothing: submissions get a 503 until APIs use the copy."
            )
            with unfinished_if_interrupted("queue"), Progress("streams") as progress:
                copied = await QueueCopy(
                    source, target, settings.queue_replicas, settings.lock_expiry_s, progress.step
                ).run()
        finally:
            await target.close()
    finally:
        await source.close()
    report_copied(copied.streams, copied.messages, ",".join(servers.urls))
    return 0


async def change_lanes(
    settings: Settings,
    number: int,
    substitute: Callable[[LaneAdmin], LaneAdmin] = lambda queue: queue,
    *,
    yes: bool,
) -> int:
    """Run `bronze lanes`: change the number of lanes of each source. Returns the exit code.

    `substitute`: as for `serve`, for the queue. `yes`: it does not ask.
    """
    if number < 1:
        raise Misconfigured(f"{number} lanes: a source needs at least one lane")
    new_settings = settings.model_copy(update={"lanes": number})
    jetstream = await JetStream.connect(settings.queue_servers, server_name=settings.nats_server_name)
    try:
        targets = [queue_target(jetstream), f"lanes of the bucket {settings.bucket}, prefix {settings.prefix}"]
        await Confirmation(targets, yes).ask(
            f"Change each source to {counted(number, 'lane')}? Submissions are refused until an API runs with this "
            "number. If that takes over two minutes, alerts on refused submissions are sent."
        )
        key_values = KeyValueStore(jetstream, settings.queue_replicas)
        catalog = await NatsCatalog.open(jetstream, key_values, settings)
        queue = substitute(NatsQueue(jetstream, key_values, new_settings))
        with unfinished_if_interrupted("lanes"), Progress("messages to be stored") as progress:
            changed = await LaneChange(
                queue, catalog, list(sources.load(settings.sources)), number, progress.left
            ).run()
    finally:
        await jetstream.close()
    report_lanes(number, changed=changed)
    return 0


async def rebuild_catalog(settings: Settings, *, dry_run: bool, yes: bool) -> int:
    """Run `bronze catalog rebuild`: rebuild the catalog from the bucket. Returns the exit code.

    `yes`: it does not ask.
    """
    found = BucketContents()
    async with queue_and_bucket(settings) as (jetstream, bucket):
        await bucket.check()
        confirmation = Confirmation([queue_target(jetstream), bucket_target(bucket, settings.prefix)], yes)
        if dry_run:
            confirmation.show_targets()
        else:
            await confirmation.ask("Replace the catalog? API and consumers that use it end and have to be restarted.")
        with run_again_if_replaced(), unfinished_if_interrupted("catalog") if not dry_run else nullcontext():
            await replace_catalog(settings, jetstream, bucket, found, dry_run=dry_run)
    report_rebuilt(found, dry_run=dry_run)
    return 0


async def replace_catalog(
    settings: Settings, jetstream: JetStream, bucket: Bucket, found: BucketContents, *, dry_run: bool = False
) -> None:
    """Rebuild the catalog from the bucket; `dry_run`: only read the bucket."""
    with Progress("objects read") as progress, tempfile.TemporaryFile() as spool:
        rebuild = Rebuild(bucket, settings.prefix, progress.step)
        await rebuild.read_bucket(spool, found)
        if dry_run:
            return
        key_values = KeyValueStore(jetstream, settings.queue_replicas)
        await rebuild.run(CatalogReplacement(jetstream, key_values, settings), spool, found, time.time())
        queue = NatsQueue(jetstream, key_values, settings)
        declared = sources.load(settings.sources)
        lanes = [state.lane for source in declared for state in await queue.lanes_of(source)]
        await rebuild.compare(queue, lanes, found)
