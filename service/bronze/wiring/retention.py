"""Retention: once, or again and again as a role."""

import argparse
import asyncio
import datetime as dt
import sys
from collections.abc import Callable

from bronze.admin import retain_command
from bronze.admin.command_error import CommandError
from bronze.admin.confirmation import Confirmation
from bronze.admin.retain_telemetry import RetainTelemetry
from bronze.admin.retention import OnDeleted, Retention
from bronze.errors import Misconfigured
from bronze.process import on_stop_signals
from bronze.records import sources
from bronze.records.sources import Source
from bronze.servers.catalog import NatsCatalog
from bronze.servers.iceberg import has_catalog, open_tables
from bronze.servers.jetstream import JetStream
from bronze.servers.s3 import S3Bucket
from bronze.settings import Settings
from bronze.table.contents import TableContents
from bronze.telemetry import sdk
from bronze.telemetry.signals import Role
from bronze.wiring.commands import bucket_target, queue_target
from bronze.wiring.servers import queue_and_bucket
from bronze.wiring.table import table_target


async def run_retain(
    args: argparse.Namespace,
    settings: Settings,
    substitute: Callable[[JetStream, S3Bucket], tuple[JetStream, S3Bucket]] = lambda *servers: servers,
) -> int:
    """Run `bronze retain`, once or again and again. Returns the exit code.

    `substitute`: as for `serve`, for queue and bucket.
    """
    if args.every is None:
        return await _run_once(args, settings, substitute)
    if not args.yes or args.dry_run:
        raise Misconfigured("--every asks nobody: it needs --yes, and --dry-run is not for it")
    telemetry = sdk.start(Role.RETAIN, settings, log_stream=sys.stderr)
    telemetry.export_zeros(sources.without_canary(sources.load(settings.sources)))
    stop = asyncio.Event()
    on_stop_signals(stop.set)
    try:
        metrics_server = telemetry.serve_metrics()
        try:
            measuring = RetainTelemetry(telemetry.instruments, args.every)
            return await retain_command.run_every(
                args.every, lambda: _run_once(args, settings, substitute, measuring.count), stop, measuring.end
            )
        finally:
            metrics_server.close()
    finally:
        await asyncio.to_thread(telemetry.shutdown)


async def _run_once(
    args: argparse.Namespace,
    settings: Settings,
    substitute: Callable[[JetStream, S3Bucket], tuple[JetStream, S3Bucket]],
    on_deleted: OnDeleted = lambda *_: None,
) -> int:
    async with queue_and_bucket(settings) as servers:
        jetstream, bucket = substitute(*servers)
        await bucket.check()
        catalog = await NatsCatalog.find(jetstream, settings)
        if catalog is None:
            raise CommandError("the queue has no catalog: run `bronze catalog rebuild` first")
        living = await jetstream.stream_names("bronze.>")
        known = {lane.source for lane in await catalog.lanes()}
        declared = sources.without_canary(sources.load(settings.sources))
        with_own_age = {name for name, source in declared.items() if source.retention_days}  # also before its records
        targets = [queue_target(jetstream), bucket_target(bucket, settings.prefix)]
        contents: TableContents | None = None
        notes: list[str] = []
        if has_catalog(settings):
            tables = await asyncio.to_thread(open_tables, settings)
            contents = TableContents(tables, declared)
            targets.append(table_target(tables, settings))
        else:
            notes.append(
                "Tables are not looked at: neither BRONZE_TABLE_CATALOG nor "
                f"PYICEBERG_CATALOG__{settings.table_catalog.upper()}__URI is set."
            )
        retention = Retention(catalog, bucket, settings.prefix, living, contents.holds if contents else None)
        now = dt.datetime.fromisoformat(await catalog.now())
        delete_rows = contents.delete_rows if contents and not args.keep_rows else None
        return await retain_command.run(
            args,
            retention,
            now,
            {name: _age(declared.get(name), settings) for name in known | with_own_age},
            Confirmation(targets, args.yes),
            delete_rows,
            on_deleted,
            notes=notes,
        )


def _age(source: Source | None, settings: Settings) -> int | None:
    own = source.retention_days if source else None
    return own or settings.retention_days
