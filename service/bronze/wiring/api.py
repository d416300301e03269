"""The API: its parts, and its run."""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING

from bronze import process
from bronze.api.app import Parts, create_app
from bronze.api.audit import AuditLog
from bronze.api.authentication import ForeignTraces
from bronze.api.body import BodyReader
from bronze.api.budget import Budget
from bronze.api.callers import Callers
from bronze.api.certificate import certificate_of
from bronze.api.cluster_report import ClusterReport
from bronze.api.columnar_reader import ColumnarReaders
from bronze.api.connection import create_server
from bronze.api.feed import Followers
from bronze.api.glance import ASK_S_MAX, GlanceReader
from bronze.api.guard import Guard
from bronze.api.ingest import Ingest
from bronze.api.key_ring import KeyRing
from bronze.api.login_page import LoginPage
from bronze.api.manual import Manual
from bronze.api.page import Page
from bronze.api.rates import RateLimiter, Usages
from bronze.api.readiness import Readiness
from bronze.api.request_context import OwnContext
from bronze.api.sessions import Sessions
from bronze.api.undeclared_counts import UndeclaredCounts
from bronze.errors import ErrorCode, Gone, Misconfigured, Outage, Unavailable
from bronze.ledger.catalog_size import CatalogSizeReport
from bronze.lineage.catalog_index import CatalogIndex
from bronze.lineage.lookup import LineageLookup
from bronze.lineage.submission import SubmissionLookup
from bronze.lineage.table_snapshots import InLane, TableSnapshots
from bronze.process import STOP_GRACE_S, StopRequested, on_stop_signals, retry_until_available
from bronze.protocol.feed_cursor import system_of
from bronze.protocol.principals import Rates
from bronze.protocol.snapshot_summary import FirstSnapshot
from bronze.records import sources
from bronze.records.sources import Source
from bronze.servers.catalog_feed import Feed
from bronze.servers.queue import boot_time_s
from bronze.settings import Auth, Settings
from bronze.telemetry import sdk
from bronze.telemetry.sdk import Telemetry
from bronze.telemetry.signals import Role, attribute
from bronze.wiring.listener import bind, check_exposure, of_supervisor
from bronze.wiring.reload import SourcesReload, start_again
from bronze.wiring.servers import (
    Servers,
    in_background,
    ledger_report,
    open_servers,
)
from bronze.wiring.workers import Worker

if TYPE_CHECKING:
    from bronze.api.tokens import TokenVerifier
    from bronze.servers.prometheus import Prometheus

log = logging.getLogger(__name__)


@asynccontextmanager
async def _open_prometheus(url: str) -> "AsyncIterator[Callable[[], Awaitable[Prometheus]]]":
    """What opens Prometheus, with the first question: its client is slow to import."""
    opened: Prometheus | None = None
    async with AsyncExitStack() as to_close:

        async def connect() -> "Prometheus":
            nonlocal opened
            if opened is None:
                await asyncio.to_thread(import_module, "bronze.wiring.http_servers")
                from bronze.wiring.http_servers import open_prometheus_at

                try:
                    opened = await to_close.enter_async_context(open_prometheus_at(url, ASK_S_MAX))
                except Misconfigured as error:
                    raise Unavailable(Outage.UNAVAILABLE, str(error)) from error
            return opened

        yield connect


@asynccontextmanager
async def _open_tokens(settings: Settings) -> "AsyncIterator[TokenVerifier | None]":
    """The check of the tokens of the issuer in the settings, if there is one."""
    if settings.jwt_keys is None:
        yield None
        return
    from bronze.api.tokens import TokenVerifier, Trust  # slow to import, and most APIs have no issuer
    from bronze.wiring.http_servers import open_issuer_keys

    trust = Trust(
        issuer=settings.jwt_issuer or "",
        audience=settings.jwt_audience or "",
        algorithms=settings.jwt_algorithms.split(","),
        leeway_s=settings.jwt_leeway_s,
    )
    async with open_issuer_keys(settings.jwt_keys) as issuer_keys:
        yield TokenVerifier(issuer_keys, trust)


def _table_snapshots(settings: Settings, declared: Mapping[str, Source]) -> TableSnapshots | None:
    """None if this process has no settings of the catalog of the tables."""
    if not any(name.startswith(f"PYICEBERG_CATALOG__{settings.table_catalog.upper()}__") for name in os.environ):
        return None

    def find(objects: Sequence[InLane]) -> Sequence[FirstSnapshot | None]:
        from bronze.wiring.table import find_snapshots  # slow to import, and only for look-ups

        return find_snapshots(settings, objects)

    return TableSnapshots(find, sources.without_canary(declared))


def api_parts(
    settings: Settings,
    declared: Mapping[str, Source],
    servers: Servers,
    index: CatalogIndex,
    prometheus: "Callable[[], Awaitable[Prometheus]] | None",
    telemetry: Telemetry,
    on_gone: Callable[[Gone], None],
    now_s: Callable[[], float] = boot_time_s,
    stopping: Callable[[], bool] = lambda: False,
    tokens: "TokenVerifier | None" = None,
    worker: Worker | None = None,
) -> Parts:
    """The parts of the API, on these servers. If it needs keys, they still have to be read."""
    audit = AuditLog()

    def count_refused(code: ErrorCode) -> None:
        telemetry.instruments.requests_refused.add(1, {attribute.error_type: code})

    keys = KeyRing(servers.principals, audit)
    cluster = ClusterReport(servers.cluster, telemetry.instruments)
    lanes = {(lane.source, lane.number): lane for lane in servers.lanes}
    submissions = SubmissionLookup(lanes, settings.lanes, servers.queue, servers.catalog, servers.bucket)
    lookups = LineageLookup(
        index, servers.bucket, submissions.find, settings.prefix, snapshots=_table_snapshots(settings, declared)
    )
    return Parts(
        sources=declared,
        bodies=BodyReader(settings, ColumnarReaders(settings), Budget(settings)),
        ingest=Ingest(lanes, settings.lanes, servers.queue, servers.catalog, settings.deadline_s, now_s),
        undeclared=UndeclaredCounts(telemetry.instruments.fields_undeclared),
        submissions=submissions,
        lookups=lookups,
        index=index,
        followers=Followers(
            index,
            system_of(settings.bucket, settings.prefix),
            settings.followers_max,
            telemetry.instruments.feed_followers.set,
            stopping,
        ),
        bucket=servers.bucket,
        prefix=settings.prefix,
        page=Page(
            lookups,
            index,
            servers.bucket,
            declared,
            None if prometheus is None else GlanceReader(prometheus),
            settings.trace_url,
            settings.runbook_url,
        ),
        manual=Manual(settings.runbook_url),
        readiness=Readiness(
            servers.lanes, servers.queue, servers.catalog, servers.bucket, cluster, telemetry.instance_id
        ),
        cluster=cluster,
        telemetry=telemetry,
        has_metrics=worker is None,
        on_gone=on_gone,
        audit=audit,
        callers=Callers(keys, tokens, Sessions(keys, settings.session_s_max)) if settings.auth is Auth.KEYS else None,
        rates=RateLimiter(
            Rates(settings.requests_per_s_max, settings.bytes_per_s_max),
            settings.rate_window_s,
            Usages(worker.rates if worker else None),
        ),
        login=LoginPage(settings.runbook_url),
        on_refused=count_refused,
    )


async def serve(
    settings: Settings,
    substitute: Callable[[Servers], Servers] = lambda servers: servers,
    worker: Worker | None = None,
) -> int:
    """Run the API until a stop signal; requests in progress are answered first. Returns the exit code.

    `substitute` may replace servers, as the kill test does. `worker`: this process is one of several.
    """
    check_exposure(settings)
    settings = settings.share_of_worker()
    certificate = certificate_of(settings)
    process.tune_malloc()
    reload = SourcesReload(settings.sources)
    declared = sources.load(settings.sources)
    telemetry = sdk.start(Role.API, settings)
    telemetry.export_zeros(declared)
    failed: list[Gone] = []
    kept: socket.socket | None = None
    stop = asyncio.Event()
    on_stop_signals(stop.set)
    try:
        async with (
            open_servers(settings, declared, telemetry.instance_id, stop) as opened,
            _open_prometheus(settings.prometheus_url) if settings.prometheus_url else nullcontext() as prometheus,
            _open_tokens(settings) as tokens,
        ):
            servers = substitute(opened)

            def stop_on_gone(error: Gone) -> None:
                log.critical("%s", error)
                failed.append(error)
                server.should_exit = True

            index = CatalogIndex(
                settings.view_dir, f"view-{settings.api_port}" + (f"-{worker.number}" if worker else "")
            )
            parts = api_parts(
                settings,
                declared,
                servers,
                index,
                prometheus,
                telemetry,
                stop_on_gone,
                stopping=lambda: server.should_exit,
                tokens=tokens,
                worker=worker,
            )
            if parts.callers:
                await retry_until_available(parts.callers.read, stop)
            app = Guard(ForeignTraces(create_app(parts), parts.callers), settings, parts.on_refused)
            tls = certificate.context if certificate else None
            server = create_server(OwnContext(app), settings, STOP_GRACE_S, parts.on_refused, tls)

            def stop_serving() -> None:
                server.should_exit = True

            # until uvicorn handles the signals itself; when it ends, it raises them again, before the rest of this
            # function is done
            reload.stop_on_signals(stop_serving)
            if stop.is_set():
                stop_serving()
            reload.begin(servers.check_sources, stop_serving)
            with (
                of_supervisor() if worker else bind(settings) as listener,
                telemetry.serve_metrics() if worker else nullcontext(),
            ):
                kept = listener.dup()  # uvicorn closes the other one
                scheme = "https" if certificate else "http"
                log.info("listening on %s://%s:%d", scheme, settings.api_host, settings.api_port)
                following = [part.follow() for part in (parts.callers, certificate) if part]
                report = ledger_report(servers, declared, telemetry)
                size = CatalogSizeReport(servers.catalog, telemetry.instruments, settings.catalog_entries_max)
                async with (
                    _following(index, servers.feed, telemetry.instruments.catalog_lag.set),
                    in_background(
                        report.run(),
                        size.run(),
                        parts.cluster.run(),
                        parts.undeclared.run(),
                        reload.notice_edits(),
                        *following,
                    ),
                ):
                    process.freeze_startup_objects()
                    await server.serve(sockets=[listener])
    except StopRequested:
        log.info("stopped before the start was complete")
    finally:
        await asyncio.to_thread(telemetry.shutdown)
    if kept and reload.requested and not failed:
        start_again(None if worker else kept)
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
