"""The notifications: what follows the feed, and where it sends events."""

import asyncio
import fcntl
import logging
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx

from bronze.client import AsyncClient, FileCheckpoint, connect_async
from bronze.consumer.tasks import cancel, stop_on_error
from bronze.errors import Misconfigured
from bronze.notify.delivery import Delivery, Receiver
from bronze.notify.follower import Follower
from bronze.notify.lineage_event import Site
from bronze.notify.notify_telemetry import NotifyTelemetry
from bronze.notify.openlineage import OpenLineage, open_client
from bronze.notify.signature import parse_secrets
from bronze.notify.snapshots import SnapshotFollower
from bronze.notify.webhook import Webhook
from bronze.process import on_stop_signals
from bronze.settings import NotifyBegin, Settings, sends_openlineage
from bronze.telemetry import sdk
from bronze.telemetry.signals import Role

if TYPE_CHECKING:
    from bronze.servers.iceberg import TableHistory, Tables

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
    folder = _own(settings.notify_dir)
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
                log.info("sending events to %s", ", ".join(receiver.name for receiver in receivers))
                deliveries = [Delivery(receiver, measuring) for receiver in receivers]
                work = [
                    Follower(api, delivery, FileCheckpoint(folder / f"{delivery.receiver.name}.cursor"), begin).run()
                    for delivery in deliveries
                ]
                if settings.notify_tables:
                    of_snapshots = [Delivery(receiver, measuring) for receiver in receivers]
                    work += [
                        SnapshotFollower(
                            LateTables(settings),
                            delivery,
                            FileCheckpoint(folder / f"{delivery.receiver.name}.snapshots"),
                            skip=settings.notify_begin is NotifyBegin.LATEST,
                        ).run()
                        for delivery in of_snapshots
                    ]
                    deliveries += of_snapshots
                work.append(_report(deliveries, measuring))
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
    uri = urlsplit(os.environ.get(f"PYICEBERG_CATALOG__{settings.table_catalog.upper()}__URI", ""))
    # of a REST catalog, without a password; others may be a database with one
    address = f"{uri.scheme}://{uri.netloc.rpartition('@')[2]}" if uri.netloc else settings.table_catalog
    api_url = f"{settings.api_url.rstrip('/')}/"
    return Site(settings.bucket, settings.prefix, api_url, namespace, address, settings.table_namespace)


def _secrets(settings: Settings) -> Sequence[bytes]:
    secrets, file = settings.webhook_secrets, settings.webhook_secrets_file
    if file is None:
        return parse_secrets(secrets.get_secret_value() if secrets else "", "BRONZE_WEBHOOK_SECRETS")
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"BRONZE_WEBHOOK_SECRETS_FILE cannot be read: {error}") from error
    return parse_secrets(text, "BRONZE_WEBHOOK_SECRETS_FILE")


def _own(folder: Path) -> Path:
    """The folder, which no other process uses until this one ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_CREAT | os.O_WRONLY)  # it stays open
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Misconfigured(f"BRONZE_NOTIFY_DIR: another bronze notify uses {folder}: choose another folder") from error
    except OSError as error:
        raise Misconfigured(f"BRONZE_NOTIFY_DIR: nothing can be written there: {error}") from error
    return folder


class LateTables:
    """The tables of the catalog, which is opened when it is first needed, and does not have to answer before."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def _tables(self) -> "Tables":
        from bronze.servers.iceberg import open_tables  # slow to import

        return open_tables(self._settings)

    def names(self) -> list[str]:
        return self._tables.names()

    def history(self, name: str) -> "TableHistory":
        return self._tables.history(name)


async def _report(deliveries: Sequence[Delivery], telemetry: NotifyTelemetry) -> None:
    while True:
        for receiver in {delivery.receiver.name for delivery in deliveries}:
            telemetry.report(receiver, max(one.lag_s for one in deliveries if one.receiver.name == receiver))
        await asyncio.sleep(REPORT_S)
