"""The notifications: what follows the feed, and where it sends events."""

import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import httpx

from bronze.client import AsyncClient, FileCheckpoint, connect_async
from bronze.consumer.tasks import cancel, stop_on_error
from bronze.errors import Misconfigured
from bronze.notify.follower import Follower, Receiver
from bronze.notify.lineage_event import Site
from bronze.notify.notify_telemetry import NotifyTelemetry
from bronze.notify.openlineage import OpenLineage, open_client
from bronze.notify.signature import parse_secrets
from bronze.notify.webhook import Webhook
from bronze.process import on_stop_signals
from bronze.settings import NotifyBegin, Settings, sends_openlineage
from bronze.telemetry import sdk
from bronze.telemetry.signals import Role

log = logging.getLogger(__name__)

REPORT_S = 5.0


async def run_notify(settings: Settings) -> int:
    """Send events to the receivers until a stop signal. Returns the exit code."""
    lineage = open_client() if sends_openlineage(os.environ) else None
    if settings.webhook_url is None and lineage is None:
        raise Misconfigured(
            "there is nobody to send events to: set BRONZE_WEBHOOK_URL or OPENLINEAGE_URL (docs/events.md)"
        )
    if settings.notify_dir is None:
        raise Misconfigured("set BRONZE_NOTIFY_DIR, where `bronze notify` stores how far it is (docs/events.md)")
    secrets = _secrets(settings) if settings.webhook_url else []
    folder = _writable(settings.notify_dir)
    telemetry = sdk.start(Role.NOTIFY, settings)
    telemetry.export_zeros([])
    stop = asyncio.Event()
    on_stop_signals(stop.set)
    try:
        metrics_server = telemetry.serve_metrics()
        try:
            async with AsyncClient() as api, httpx.AsyncClient() as http, connect_async(settings) as lookups:
                measuring = NotifyTelemetry(telemetry)
                begin = "latest" if settings.notify_begin is NotifyBegin.LATEST else ""
                receivers: list[Receiver] = []
                if settings.webhook_url:
                    receivers.append(Webhook(http, settings.webhook_url, secrets, settings.bucket, settings.prefix))
                if lineage:
                    receivers.append(OpenLineage(lineage, lookups, _site(settings)))
                followers = [
                    Follower(api, receiver, FileCheckpoint(folder / f"{receiver.name}.cursor"), measuring, begin)
                    for receiver in receivers
                ]
                log.info("sending events to %s", ", ".join(follower.receiver.name for follower in followers))
                work = [*(follower.run() for follower in followers), _report(followers, measuring)]
                tasks = [asyncio.create_task(stop_on_error(part, stop)) for part in work]
                try:
                    await stop.wait()
                finally:
                    await cancel(*tasks)
                for task in tasks:
                    if not task.cancelled():
                        task.result()  # an unexpected error ends the process; its supervisor starts it again
        finally:
            metrics_server.close()
    finally:
        await asyncio.to_thread(telemetry.shutdown)
    return 0


def _site(settings: Settings) -> Site:
    namespace = os.environ.get("OPENLINEAGE_NAMESPACE") or "bronze"
    return Site(settings.bucket, settings.prefix, f"{settings.api_url.rstrip('/')}/", namespace)


def _secrets(settings: Settings) -> Sequence[bytes]:
    secrets, file = settings.webhook_secrets, settings.webhook_secrets_file
    if file is None:
        return parse_secrets(secrets.get_secret_value() if secrets else "", "BRONZE_WEBHOOK_SECRETS")
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"BRONZE_WEBHOOK_SECRETS_FILE cannot be read: {error}") from error
    return parse_secrets(text, "BRONZE_WEBHOOK_SECRETS_FILE")


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise Misconfigured(f"BRONZE_NOTIFY_DIR: nothing can be written there: {error}") from error
    return folder


async def _report(followers: Sequence[Follower], telemetry: NotifyTelemetry) -> None:
    while True:
        for follower in followers:
            telemetry.report(follower.receiver.name, follower.lag_s)
        await asyncio.sleep(REPORT_S)
