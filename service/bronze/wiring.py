"""The composition root: the only module that creates the parts of the roles and connects them."""

import argparse
import asyncio
import logging
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import httpx
from aiorwlock import RWLock

from bronze import client, process
from bronze.admin import keys_command, objects_command, verify_command
from bronze.admin.acknowledge import Acknowledgement
from bronze.admin.change_lanes import LaneChange
from bronze.admin.confirmation import Confirmation, address
from bronze.admin.progress import Progress
from bronze.admin.quarantine_command import run
from bronze.admin.rebuild_catalog import BucketContents, Rebuild
from bronze.admin.reports import report_lanes, report_rebuilt
from bronze.api.app import Parts, create_app
from bronze.api.audit import AuditLog
from bronze.api.authentication import ForeignTraces
from bronze.api.body import BodyReader
from bronze.api.budget import Budget
from bronze.api.columnar_reader import ColumnarReaders
from bronze.api.connection import create_server
from bronze.api.glance import ASK_S_MAX, GlanceReader
from bronze.api.guard import Guard
from bronze.api.ingest import Ingest
from bronze.api.key_ring import KeyRing
from bronze.api.manual import Manual
from bronze.api.page import Page
from bronze.api.readiness import Readiness
from bronze.api.request_context import OwnContext
from bronze.canary.api import Api
from bronze.canary.api_checks import AcceptedCheck, LineageCheck
from bronze.canary.bucket_checks import ObjectCheck, OnceCheck
from bronze.canary.checks import ACCEPTED_S_MAX, REQUEST_S_MAX, STORED_S_MORE, Accepted, CanaryCheck
from bronze.canary.exemplar_share import ExemplarShare
from bronze.canary.run import Canary
from bronze.canary.telemetry_checks import ExemplarCheck, LedgerCheck, TraceCheck
from bronze.consumer.lane_writer import LaneWriter
from bronze.consumer.ledger import Comparison
from bronze.consumer.run import consume
from bronze.consumer.tasks import cancel
from bronze.errors import Gone, Misconfigured
from bronze.ledger.report import LedgerReport
from bronze.lineage.catalog_index import CatalogIndex
from bronze.lineage.lookup import LineageLookup
from bronze.lineage.submission import SubmissionLookup
from bronze.plurals import counted
from bronze.printable import printable
from bronze.process import STOP_GRACE_S, StopRequested, is_loopback, on_stop_signals, retry_until_available
from bronze.protocol import quarantine
from bronze.protocol.lane import Lane
from bronze.protocol.limits import Limits
from bronze.publisher import Batch, Sender
from bronze.records import sources
from bronze.records.sources import CANARY, Source
from bronze.servers import schema_registry
from bronze.servers.bucket import Bucket
from bronze.servers.catalog import Catalog, NatsCatalog
from bronze.servers.catalog_feed import Feed
from bronze.servers.catalog_rebuild import CatalogReplacement
from bronze.servers.jetstream import JetStream
from bronze.servers.key_value import KeyValueStore
from bronze.servers.lane_lock import Lock, NatsLock
from bronze.servers.principal_store import PrincipalStore
from bronze.servers.prometheus import Prometheus
from bronze.servers.queue import LaneAdmin, NatsQueue, Queue, boot_time_s
from bronze.servers.s3 import S3Bucket
from bronze.servers.trace_store import Tempo, TraceStore, Zipkin
from bronze.settings import Auth, Settings
from bronze.telemetry import sdk
from bronze.telemetry.sampling import always_sampled
from bronze.telemetry.sdk import Telemetry
from bronze.telemetry.signals import Role, attribute
from bronze.verify.results import report_shares
from bronze.verify.verification import Verification

log = logging.getLogger(__name__)

#: Time limit of each request to Prometheus and the trace store, in seconds.
TELEMETRY_S_MAX = 30.0


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
    jetstream = await retry_until_available(
        lambda: JetStream.connect(settings.nats_url, server_name=settings.nats_server_name), stop
    )
    bucket = S3Bucket(settings)
    try:
        key_values = KeyValueStore(jetstream, settings.queue_replicas)
        queue = NatsQueue(jetstream, key_values, settings)
        origin = str(settings.sources or "the built-in sources.toml")
        await retry_until_available(lambda: schema_registry.register(key_values, declared, origin), stop)
        lanes = await retry_until_available(lambda: queue.open(declared), stop)
        catalog = await retry_until_available(lambda: NatsCatalog.open(jetstream, key_values, settings), stop)
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
        )
    finally:
        bucket.close()
        await jetstream.close()


@asynccontextmanager
async def open_prometheus(settings: Settings, timeout_s: float) -> AsyncIterator[Prometheus | None]:
    """A client of the Prometheus in the settings, if there is one. Raises `Misconfigured` for an invalid address."""
    if settings.prometheus_url is None:
        yield None
        return
    async with _client("BRONZE_PROMETHEUS_URL", settings.prometheus_url, timeout_s) as client:
        yield Prometheus(client)


@asynccontextmanager
async def open_trace_store(settings: Settings, timeout_s: float) -> AsyncIterator[TraceStore | None]:
    """A client of the trace store in the settings, if there is one. Raises `Misconfigured` for an invalid address."""
    if settings.tempo_url:
        async with _client("BRONZE_TEMPO_URL", settings.tempo_url, timeout_s) as client:
            yield Tempo(client)
    elif settings.zipkin_url:
        async with _client("BRONZE_ZIPKIN_URL", settings.zipkin_url, timeout_s) as client:
            yield Zipkin(client)
    else:
        yield None


def _client(variable: str, url: str, timeout_s: float) -> httpx.AsyncClient:
    try:
        return httpx.AsyncClient(base_url=url, timeout=timeout_s)
    except httpx.InvalidURL as error:
        raise Misconfigured(f"{variable}: {url!r}: {error}") from error


def limits(settings: Settings) -> Limits:
    return Limits(
        bytes_max=settings.object_bytes_max,
        messages_max=settings.object_messages_max,
        submissions_max=settings.object_submissions_max,
        age_s_max=settings.flush_age_s,
    )


def check_exposure(settings: Settings) -> None:
    """Raises `Misconfigured` if everybody on the network could send requests and no setting says that this is meant."""
    if settings.auth is Auth.OPEN and not is_loopback(settings.api_host):
        raise Misconfigured(
            f"BRONZE_API_HOST={settings.api_host} is reachable from other machines, and with BRONZE_AUTH=open the API "
            "accepts requests from everybody. Set BRONZE_AUTH=keys and create keys with `bronze keys create`; or set "
            "BRONZE_AUTH=delegated if something in front of the API authenticates (docs/security.md)"
        )


def _listen(settings: Settings) -> socket.socket:
    try:
        return socket.create_server((settings.api_host, settings.api_port))
    except OSError as error:
        raise Misconfigured(
            f"cannot listen on {settings.api_host}:{settings.api_port}: {error.strerror}. "
            "Choose another address with BRONZE_API_HOST and BRONZE_API_PORT"
        ) from error


def api_parts(
    settings: Settings,
    declared: Mapping[str, Source],
    servers: Servers,
    index: CatalogIndex,
    prometheus: Prometheus | None,
    telemetry: Telemetry,
    on_gone: Callable[[Gone], None],
    now_s: Callable[[], float] = boot_time_s,
) -> Parts:
    """The parts of the API, on these servers. If it needs keys, they still have to be read."""
    audit = AuditLog()
    lanes = {(lane.source, lane.number): lane for lane in servers.lanes}
    submissions = SubmissionLookup(lanes, settings.lanes, servers.queue, servers.catalog, servers.bucket)
    lookups = LineageLookup(index, servers.bucket, submissions.find, settings.prefix)
    return Parts(
        sources=declared,
        bodies=BodyReader(settings, ColumnarReaders(settings), Budget(settings)),
        ingest=Ingest(lanes, settings.lanes, servers.queue, servers.catalog, settings.deadline_s, now_s),
        submissions=submissions,
        lookups=lookups,
        bucket=servers.bucket,
        prefix=settings.prefix,
        page=Page(
            lookups,
            servers.bucket,
            None if prometheus is None else GlanceReader(prometheus),
            settings.trace_url,
            settings.runbook_url,
        ),
        manual=Manual(settings.runbook_url),
        readiness=Readiness(servers.lanes, servers.queue, servers.catalog, servers.bucket, telemetry.instance_id),
        telemetry=telemetry,
        on_gone=on_gone,
        audit=audit,
        keys=KeyRing(servers.principals, audit) if settings.auth is Auth.KEYS else None,
    )


async def serve(settings: Settings, substitute: Callable[[Servers], Servers] = lambda servers: servers) -> int:
    """Run the API until a stop signal; requests in progress are answered first. Returns the exit code.

    `substitute` may replace servers, as the kill test does.
    """
    check_exposure(settings)
    process.tune_malloc()
    declared = sources.load(settings.sources)
    telemetry = sdk.start(Role.API, settings)
    telemetry.export_zeros(declared)
    failed: list[Gone] = []
    stop = asyncio.Event()
    on_stop_signals(stop.set)
    try:
        async with (
            open_servers(settings, declared, telemetry.instance_id, stop) as opened,
            open_prometheus(settings, ASK_S_MAX) as prometheus,
        ):
            servers = substitute(opened)

            def stop_on_gone(error: Gone) -> None:
                log.critical("%s", error)
                failed.append(error)
                server.should_exit = True

            index = CatalogIndex(settings.view_dir, f"view-{settings.api_port}")
            parts = api_parts(settings, declared, servers, index, prometheus, telemetry, stop_on_gone)
            if parts.keys:
                await retry_until_available(parts.keys.read, stop)
            app = Guard(ForeignTraces(create_app(parts), parts.keys), settings)
            server = create_server(OwnContext(app), settings, STOP_GRACE_S)

            def stop_serving() -> None:
                server.should_exit = True

            # until uvicorn handles the signals itself; when it ends, it raises them again, before the rest of this
            # function is done
            on_stop_signals(stop_serving)
            if stop.is_set():
                stop_serving()
            with _listen(settings) as listener:
                log.info("listening on http://%s:%d", settings.api_host, settings.api_port)
                report = ledger_report(servers, declared, telemetry)
                async with (
                    _following(index, servers.feed, telemetry.instruments.catalog_lag.set),
                    _in_background(report.run(), *([parts.keys.follow()] if parts.keys else [])),
                ):
                    process.freeze_startup_objects()
                    await server.serve(sockets=[listener])
    except StopRequested:
        log.info("stopped before the start was complete")
    finally:
        await asyncio.to_thread(telemetry.shutdown)
    return 1 if failed else 0


@asynccontextmanager
async def _following(index: CatalogIndex, feed: Feed, report: Callable[[float], None]) -> AsyncIterator[None]:
    """Keep the index up to date in the block. An event ends it, since the NATS client may lose a cancellation."""
    stop = asyncio.Event()
    await index.open()
    following = asyncio.create_task(index.follow(feed, stop, report))
    try:
        yield
    finally:
        stop.set()
        await following
        await index.close()


def ledger_report(servers: Servers, declared: Iterable[str], telemetry: Telemetry) -> LedgerReport:
    """The report of the ledger's metrics, which every role makes."""
    return LedgerReport(servers.catalog, servers.bucket, servers.queue, telemetry.instruments, servers.lanes, declared)


@asynccontextmanager
async def _in_background(*work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Do work, which ends only by cancellation, during the block."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        await cancel(*tasks)


async def with_feed(settings: Settings, follow: Callable[[Feed, asyncio.Event], Awaitable[None]]) -> int:
    """Call a follower with the catalog's feed, until it ends or a stop signal. Returns the exit code."""
    stop = asyncio.Event()
    on_stop_signals(stop.set)
    with suppress(StopRequested):
        jetstream = await retry_until_available(
            lambda: JetStream.connect(settings.nats_url, server_name=settings.nats_server_name), stop
        )
        try:
            await follow(Feed(jetstream), stop)
        finally:
            await jetstream.close()
    return 0


def _confirmation(args: argparse.Namespace, targets: Sequence[str]) -> Confirmation:
    """Of a command whose actions that change something have the option --yes."""
    return Confirmation(targets, yes=getattr(args, "yes", False))


def _queue_target(jetstream: JetStream) -> str:
    return f"queue at {address(jetstream.address)}, server {printable(str(jetstream.server_name))}"


def _bucket_target(bucket: S3Bucket, prefix: str) -> str:
    return f"bucket {bucket.name} at {address(bucket.address)}, prefix {prefix}"


async def run_quarantine(args: argparse.Namespace, settings: Settings) -> int:
    """Run a command of `bronze quarantine`, which needs only the bucket. Returns the exit code."""
    bucket = S3Bucket(settings)
    try:
        targets = [_bucket_target(bucket, quarantine.FOLDER), f"API at {address(settings.api_url)}"]
        return await run(args, settings, bucket, _confirmation(args, targets))
    finally:
        bucket.close()


@asynccontextmanager
async def _queue_and_bucket(settings: Settings) -> AsyncIterator[tuple[JetStream, S3Bucket]]:
    """The queue and the bucket, for a command. Raises `Unavailable` if the queue does not answer."""
    jetstream = await JetStream.connect(settings.nats_url, server_name=settings.nats_server_name)
    try:
        bucket = S3Bucket(settings)
        try:
            yield jetstream, bucket
        finally:
            bucket.close()
    finally:
        await jetstream.close()


async def run_objects(args: argparse.Namespace, settings: Settings) -> int:
    """Run a command of `bronze objects`. Returns the exit code."""
    async with _queue_and_bucket(settings) as (jetstream, bucket):
        await bucket.check()
        feed = Feed(jetstream)
        catalog = await NatsCatalog.find(jetstream, settings)
        acknowledgement = Acknowledgement(catalog, feed, bucket, settings.prefix)
        confirmation = _confirmation(args, [_queue_target(jetstream), _bucket_target(bucket, settings.prefix)])
        return await objects_command.run(args, feed, bucket, settings.prefix, acknowledgement, confirmation)


async def run_keys(args: argparse.Namespace, settings: Settings) -> int:
    """Run a command of `bronze keys`, which needs only the queue. Returns the exit code."""
    jetstream = await JetStream.connect(settings.nats_url, server_name=settings.nats_server_name)
    try:
        store = PrincipalStore(KeyValueStore(jetstream, settings.queue_replicas))
        return await keys_command.run(args, store, _confirmation(args, [_queue_target(jetstream)]))
    finally:
        await jetstream.close()


async def consume_role(settings: Settings, substitute: Callable[[Servers], Servers] = lambda servers: servers) -> int:
    """Run the consumer until a stop signal; uploads in progress are finished first. Returns the exit code.

    `substitute`: as for `serve`.
    """
    process.return_arrow_memory()
    declared = sources.load(settings.sources)
    telemetry = sdk.start(Role.CONSUMER, settings)
    for source in declared:
        telemetry.instruments.delivery_objective.set(settings.delivery_objective_s, {attribute.bronze_source: source})
    telemetry.export_zeros(declared)
    stop = asyncio.Event()
    on_stop_signals(stop.set)
    try:
        metrics_server = telemetry.serve_metrics()
        try:
            async with open_servers(settings, declared, telemetry.instance_id, stop, creates_objects=True) as opened:
                servers = substitute(opened)
                decoding = RWLock()
                writers = [
                    LaneWriter(
                        lane,
                        declared[lane.source],
                        servers.queue,
                        servers.bucket,
                        servers.catalog,
                        servers.lock(lane),
                        telemetry,
                        decoding,
                        prefix=settings.prefix,
                        limits=limits(settings),
                        purge_grace_s=settings.purge_grace_s,
                    )
                    for lane in servers.lanes
                ]
                comparison = Comparison(
                    servers.catalog, servers.bucket, servers.feed, telemetry.instruments, declared, settings.prefix
                )
                log.info("consuming %d lanes", len(writers))
                process.freeze_startup_objects()
                report = ledger_report(servers, declared, telemetry)
                async with _in_background(report.run(), comparison.run(), comparison.run_all()):
                    await consume(writers, stop)
        finally:
            metrics_server.close()
    except StopRequested:
        log.info("stopped before the start was complete")
    except Gone as error:
        log.critical("%s", error)
        return 1
    finally:
        await asyncio.to_thread(telemetry.shutdown)
    return 0


async def verify(args: argparse.Namespace, settings: Settings, telemetry: Telemetry) -> int:
    """Run `bronze verify`: print what it finds, and report the shares. Returns the exit code."""
    period = verify_command.period(args)
    async with _queue_and_bucket(settings) as (jetstream, bucket):
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


async def canary_role(settings: Settings) -> int:
    """Run the canary until a stop signal. Returns the exit code."""
    telemetry = sdk.start(Role.CANARY, settings)
    telemetry.export_zeros([CANARY])
    stop = asyncio.Event()
    interrupted = threading.Event()  # ends the waits of the sender, which is in a thread

    def stop_running() -> None:
        stop.set()
        interrupted.set()

    on_stop_signals(stop_running)
    try:
        metrics_server = telemetry.serve_metrics()
        try:
            async with open_canary_checks(settings, telemetry, interrupted) as checks:
                log.info("checking every %g s: %s", settings.canary_interval_s, ", ".join(c.name for c in checks))
                canary = Canary(checks, telemetry.instruments, settings.canary_interval_s)
                share = ExemplarShare(lambda: open_exemplar_verification(settings), telemetry.instruments)
                verifying = asyncio.create_task(share.run())
                try:
                    await canary.run(stop)
                finally:
                    await cancel(verifying)
        finally:
            metrics_server.close()
    finally:
        await asyncio.to_thread(telemetry.shutdown)
    return 0


@asynccontextmanager
async def open_exemplar_verification(settings: Settings) -> AsyncIterator[Verification]:
    """A verification that needs the bucket only to read, and the queue only for the catalog. Raises `Unavailable`."""
    async with (
        _queue_and_bucket(settings) as (jetstream, bucket),
        open_prometheus(settings, TELEMETRY_S_MAX) as prometheus,
        open_trace_store(settings, TELEMETRY_S_MAX) as trace_store,
    ):
        yield Verification(bucket, Feed(jetstream), prometheus, trace_store, settings.prefix)


@asynccontextmanager
async def open_canary_checks(
    settings: Settings, telemetry: Telemetry, interrupted: threading.Event
) -> AsyncIterator[Sequence[CanaryCheck]]:
    """The checks of the canary, in their order. Without Prometheus or a trace store, those that need it are left out.

    Raises `Misconfigured` for an invalid address.
    """
    bucket = S3Bucket(settings)
    try:
        async with (
            open_prometheus(settings, REQUEST_S_MAX) as prometheus,
            open_trace_store(settings, REQUEST_S_MAX) as traces,
            client.connect_async(settings, REQUEST_S_MAX) as http,
        ):
            with client.connect(settings, timeout_s=REQUEST_S_MAX) as sending:
                sender = Sender(
                    sending,
                    telemetry,
                    retry_for_s=ACCEPTED_S_MAX,
                    wait=interrupted.wait,
                    # each run is traced, at any sampling ratio
                    context=always_sampled,
                )

                def send(key: str, lines: Sequence[bytes]) -> Accepted:
                    body = b"\n".join(lines)
                    batch = Batch(f"{CANARY}.ndjson", body, range(1, len(lines) + 1), len(body))
                    receipt = sender.send(CANARY, key, batch)
                    return Accepted(receipt.submission_id, receipt.trace_id)

                api = Api(http, send)
                checks: list[CanaryCheck | None] = [
                    AcceptedCheck(api),
                    ObjectCheck(api, bucket, settings.delivery_objective_s + STORED_S_MORE),
                    OnceCheck(api, bucket, settings.prefix),
                    LedgerCheck(prometheus) if prometheus else None,
                    TraceCheck(traces) if traces else None,
                    ExemplarCheck(prometheus, traces) if prometheus and traces else None,
                    LineageCheck(api),
                ]
                yield [check for check in checks if check is not None]
    finally:
        bucket.close()


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
    jetstream = await JetStream.connect(settings.nats_url, server_name=settings.nats_server_name)
    try:
        targets = [_queue_target(jetstream), f"lanes of the bucket {settings.bucket}, prefix {settings.prefix}"]
        await Confirmation(targets, yes).ask(
            f"Change each source to {counted(number, 'lane')}? Submissions are refused until an API runs with this "
            "number."
        )
        key_values = KeyValueStore(jetstream, settings.queue_replicas)
        catalog = await NatsCatalog.open(jetstream, key_values, settings)
        queue = substitute(NatsQueue(jetstream, key_values, new_settings))
        with Progress("messages to be stored") as progress:
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
    async with _queue_and_bucket(settings) as (jetstream, bucket):
        await bucket.check()
        confirmation = Confirmation([_queue_target(jetstream), _bucket_target(bucket, settings.prefix)], yes)
        if dry_run:
            confirmation.show_targets()
        else:
            await confirmation.ask("Replace the catalog? API and consumers that use it end and have to be restarted.")
        with Progress("objects read") as progress, tempfile.TemporaryFile() as spool:
            rebuild = Rebuild(bucket, settings.prefix, progress.step)
            await rebuild.read_bucket(spool, found)
            if not dry_run:
                key_values = KeyValueStore(jetstream, settings.queue_replicas)
                await rebuild.run(CatalogReplacement(jetstream, key_values, settings), spool, found, time.time())
                queue = NatsQueue(jetstream, key_values, settings)
                declared = sources.load(settings.sources)
                lanes = [state.lane for source in declared for state in await queue.lanes_of(source)]
                await rebuild.compare(queue, lanes, found)
    report_rebuilt(found, dry_run=dry_run)
    return 0
