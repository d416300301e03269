"""The consumer."""

import asyncio
import logging
from collections.abc import Callable

from aiorwlock import RWLock

from bronze import process
from bronze.consumer.lane_writer import LaneWriter
from bronze.consumer.ledger import Comparison
from bronze.consumer.monitors import Monitors
from bronze.consumer.run import consume
from bronze.errors import Gone
from bronze.process import StopRequested, on_stop_signals
from bronze.protocol.limits import Limits
from bronze.records import sources
from bronze.settings import Settings
from bronze.telemetry import sdk
from bronze.telemetry.signals import Role, attribute
from bronze.wiring.reload import SourcesReload, start_again
from bronze.wiring.servers import Servers, in_background, ledger_report, open_servers

log = logging.getLogger(__name__)


def limits(settings: Settings) -> Limits:
    return Limits(
        bytes_max=settings.object_bytes_max,
        messages_max=settings.object_messages_max,
        submissions_max=settings.object_submissions_max,
        age_s_max=settings.flush_age_s,
    )


async def run_consumer(settings: Settings, substitute: Callable[[Servers], Servers] = lambda servers: servers) -> int:
    """Run the consumer until a stop signal; uploads in progress are finished first. Returns the exit code.

    `substitute`: as for `serve`.
    """
    process.return_arrow_memory()
    reload = SourcesReload(settings.sources)
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
                reload.stop_on_signals(stop.set)
                reload.begin(servers.check_sources, stop.set)
                decoding = RWLock()
                monitors = Monitors(declared, telemetry.instruments)
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
                        monitors=monitors,
                    )
                    for lane in servers.lanes
                ]
                comparison = Comparison(
                    servers.catalog, servers.bucket, servers.feed, telemetry.instruments, declared, settings.prefix
                )
                log.info("consuming %d lanes", len(writers))
                process.freeze_startup_objects()
                report = ledger_report(servers, declared, telemetry)
                async with in_background(
                    report.run(), comparison.run(), comparison.run_all(), monitors.run(), reload.notice_edits()
                ):
                    await consume(writers, stop)
        finally:
            metrics_server.close()
    except StopRequested:
        log.info("stopped before the start was complete")
        return 0
    except Gone as error:
        log.critical("%s", error)
        return 1
    finally:
        await asyncio.to_thread(telemetry.shutdown)
    if reload.requested:
        start_again()
    return 0
