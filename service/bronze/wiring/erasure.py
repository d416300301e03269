"""Erasure."""

import argparse
import asyncio
from collections.abc import Callable, Mapping

from bronze.admin import erase_command
from bronze.admin.confirmation import Confirmation
from bronze.admin.erasure_run import Stores
from bronze.admin.rebuild_catalog import BucketContents
from bronze.client.condition import parse
from bronze.errors import Misconfigured, Refused
from bronze.maintenance.erasure import TableErasure
from bronze.maintenance.task import Task
from bronze.objects.selection import Chosen
from bronze.records import sources
from bronze.records.columns import object_schema
from bronze.records.sources import Source
from bronze.servers.catalog import NatsCatalog
from bronze.servers.catalog_feed import Feed
from bronze.servers.iceberg import has_catalog, open_tables
from bronze.servers.jetstream import JetStream
from bronze.servers.key_value import KeyValueStore
from bronze.servers.queue import NatsQueue
from bronze.servers.s3 import S3Bucket
from bronze.settings import Settings
from bronze.wiring.commands import bucket_target, queue_target, replace_catalog
from bronze.wiring.servers import queue_and_bucket


async def run_erase(
    args: argparse.Namespace,
    settings: Settings,
    substitute: Callable[[JetStream, S3Bucket], tuple[JetStream, S3Bucket]] = lambda *servers: servers,
) -> int:
    """Run `bronze erase`. Returns the exit code.

    `substitute`: as for `serve`, for queue and bucket.
    """
    declared = sources.load(settings.sources)
    selection = erase_command.selection(args)
    if selection.classification_id is not None:
        chosen = Chosen.of_classification(selection.classification_id)
    else:
        source = declared.get(selection.source or "")
        if source is None:
            raise Misconfigured(
                f"--source {selection.source}: no such source is declared. If it was once, set BRONZE_SOURCES for this "
                "command to a file that declares it: the condition is about its fields"
            )
        try:
            chosen = Chosen.of_source(source, parse(selection.where or "", object_schema(source)))
        except Refused as error:
            raise Misconfigured(f"--where: {error.detail}") from error
    async with queue_and_bucket(settings) as servers:
        jetstream, bucket = substitute(*servers)
        await bucket.check()
        if not args.dry_run:
            await bucket.check_replace()

        async def rebuild() -> None:
            await replace_catalog(settings, jetstream, bucket, BucketContents())

        stores = Stores(
            jetstream=jetstream,
            feed=Feed(jetstream),
            queue=NatsQueue(jetstream, KeyValueStore(jetstream, settings.queue_replicas), settings),
            bucket=bucket,
            prefix=settings.prefix,
            sources=declared,
            find_catalog=lambda: NatsCatalog.find(jetstream, settings),
            rebuild=rebuild,
            tables=await asyncio.to_thread(_tables, settings, declared) if has_catalog(settings) else None,
        )
        targets = [queue_target(jetstream), bucket_target(bucket, settings.prefix)]
        if stores.tables:
            targets.append(f"tables of the namespace {settings.table_namespace}")
        return await erase_command.run(args, stores, selection, chosen, Confirmation(targets, args.yes))


def _tables(settings: Settings, declared: Mapping[str, Source]) -> Callable[[Chosen, str], Task]:
    tables = open_tables(settings)

    def erasure(chosen: Chosen, erasure_id: str) -> Task:
        return TableErasure(tables, declared, chosen.in_table, erasure_id, f"{settings.bucket}/{settings.prefix}")

    return erasure
