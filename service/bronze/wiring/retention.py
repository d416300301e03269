"""Retention."""

import argparse
import asyncio
import datetime as dt
from collections.abc import Callable

from bronze.admin import retain_command
from bronze.admin.command_error import CommandError
from bronze.admin.confirmation import Confirmation
from bronze.admin.retention import Retention
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
    stop = asyncio.Event()
    on_stop_signals(stop.set)
    return await retain_command.run_every(args.every, lambda: _run_once(args, settings, substitute), stop)


async def _run_once(
    args: argparse.Namespace,
    settings: Settings,
    substitute: Callable[[JetStream, S3Bucket], tuple[JetStream, S3Bucket]],
) -> int:
    async with queue_and_bucket(settings) as servers:
        jetstream, bucket = substitute(*servers)
        await bucket.check()
        catalog = await NatsCatalog.find(jetstream, settings)
        if catalog is None:
            raise CommandError("the queue has no catalog: run `bronze catalog rebuild` first")
        living = await jetstream.stream_names("bronze.>")
        known = {lane.source for lane in await catalog.positions()}
        declared = sources.without_canary(sources.load(settings.sources))
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
            {name: _age(declared.get(name), settings) for name in known},
            Confirmation(targets, args.yes),
            delete_rows,
            notes=notes,
        )


def _age(source: Source | None, settings: Settings) -> int | None:
    own = source.retention_days if source else None
    return own or settings.retention_days
