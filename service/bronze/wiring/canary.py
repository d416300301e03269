"""The canary and its checks."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from bronze import client
from bronze.canary.api import Api
from bronze.canary.api_checks import AcceptedCheck, LineageCheck
from bronze.canary.bucket_checks import ObjectCheck, OnceCheck
from bronze.canary.checks import ACCEPTED_S_MAX, REQUEST_S_MAX, STORED_S_MORE, Accepted, CanaryCheck
from bronze.canary.exemplar_share import ExemplarShare
from bronze.canary.run import Canary
from bronze.canary.telemetry_checks import ExemplarCheck, LedgerCheck, TraceCheck
from bronze.consumer.tasks import cancel
from bronze.process import on_stop_signals
from bronze.publisher import Batch, Sender
from bronze.records.sources import CANARY
from bronze.servers.catalog_feed import Feed
from bronze.servers.s3 import S3Bucket
from bronze.settings import Settings
from bronze.telemetry import sdk
from bronze.telemetry.sampling import always_sampled
from bronze.telemetry.sdk import Telemetry
from bronze.telemetry.signals import Role
from bronze.verify.verification import Verification
from bronze.wiring.http_servers import TELEMETRY_S_MAX, open_prometheus, open_trace_store
from bronze.wiring.servers import (
    queue_and_bucket,
)

log = logging.getLogger(__name__)


async def run_canary(settings: Settings) -> int:
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
        queue_and_bucket(settings) as (jetstream, bucket),
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
