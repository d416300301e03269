"""The committer of tables, and their maintenance."""

import argparse
import asyncio
import datetime as dt
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from bronze.admin.confirmation import Confirmation, address
from bronze.admin.maintain_tables import run
from bronze.errors import ErrorCode
from bronze.lineage.table_snapshots import InLane
from bronze.maintenance.compaction import Compaction, closed_before
from bronze.maintenance.expiry import Expiry
from bronze.maintenance.reprocessing import Reprocessing
from bronze.maintenance.task import Task
from bronze.process import StopRequested, retry_until_available
from bronze.protocol.snapshot_summary import FirstSnapshot
from bronze.records.sources import Source, load, without_canary
from bronze.servers.catalog_feed import Feed
from bronze.servers.iceberg import Tables, open_tables
from bronze.servers.s3 import S3Bucket
from bronze.settings import Settings
from bronze.table.committer import Committer
from bronze.table.first_snapshot import FirstSnapshots
from bronze.table.maintenance import Maintenance
from bronze.table.run import TableRole
from bronze.table.table_telemetry import TableTelemetry
from bronze.telemetry import sdk
from bronze.telemetry.signals import Role
from bronze.wiring.reload import SourcesReload, start_again
from bronze.wiring.servers import connect_queue, in_background

log = logging.getLogger(__name__)

#: Size of the files that the role compacts to: their rows have to fit in its memory, beside those of a commit.
TARGET_BYTES = 16 * 2**20
#: Time between two removals of snapshots, in seconds: each commit takes longer, the more there are.
SNAPSHOTS_S = 300.0


async def run_table(settings: Settings) -> int:
    """Commit to the tables until a stop signal. Returns the exit code."""
    reload = SourcesReload(settings.sources)
    declared = without_canary(load(settings.sources))
    telemetry = sdk.start(Role.TABLE, settings)
    telemetry.export_zeros(declared)
    stop = asyncio.Event()
    reload.stop_on_signals(stop.set)
    try:
        metrics_server = telemetry.serve_metrics()
        bucket = S3Bucket(settings)
        try:
            with suppress(StopRequested):
                tables = await retry_until_available(lambda: asyncio.to_thread(open_tables, settings), stop)
                jetstream = await connect_queue(settings.queue_servers, settings.nats_server_name, stop)
                try:
                    feed = Feed(jetstream)
                    committers = [
                        Committer(source, tables, feed, bucket, settings.prefix, settings.table_commit_bytes_max)
                        for source in declared.values()
                    ]
                    log.info("committing the objects of %s to tables", ", ".join(declared))
                    measuring = TableTelemetry(telemetry)
                    role = TableRole(committers, feed, measuring, settings.table_interval_s)
                    reload.begin(_anything_that_can_be_read, stop.set)
                    maintenance = _maintenance(settings, declared, tables, measuring.count_maintenance)
                    async with in_background(reload.notice_edits(), *(each.run() for each in maintenance)):
                        await role.run(stop)
                finally:
                    await jetstream.close()
        finally:
            bucket.close()
            metrics_server.close()
    finally:
        await asyncio.to_thread(telemetry.shutdown)
    if reload.requested:
        start_again()
    return 0


def _maintenance(
    settings: Settings,
    declared: Mapping[str, Source],
    tables: Tables,
    on_run: Callable[[str, ErrorCode | None], None],
) -> Sequence[Maintenance]:
    """The maintenance that the settings ask for: all of it, and between its runs the snapshots."""
    age = dt.timedelta(days=settings.table_expire_days)
    if not settings.table_maintenance_interval_s:
        return []

    def everything(now: dt.datetime) -> Sequence[Task]:
        expiry = [Expiry(tables, now, age, _raw_data(settings))] if age else []
        return [Compaction(tables, declared, closed_before(now, 1), TARGET_BYTES), *expiry]

    def snapshots(now: dt.datetime) -> Sequence[Task]:
        return [Expiry(tables, now, age, None)]

    whole = Maintenance(declared, everything, settings.table_maintenance_interval_s, on_run)
    # not counted: if everything else fails, nobody may take it for a success
    return [whole, Maintenance(declared, snapshots, SNAPSHOTS_S, lambda *_: None)] if age else [whole]


async def _anything_that_can_be_read(_: Mapping[str, Source], __: str) -> None:
    """API and consumer check a file against what is registered, which the queue's user of this role may not read. A
    table whose columns cannot take the declaration halts, and the others go on.
    """


async def maintain_tables(args: argparse.Namespace, settings: Settings) -> int:
    """Run `bronze table compact`, `expire` or `reprocess`, which need only the tables. Returns the exit code."""
    declared = without_canary(load(settings.sources))
    tables = await asyncio.to_thread(open_tables, settings)
    now = dt.datetime.now(dt.UTC)
    task: Task
    if args.command == "compact":
        task = Compaction(tables, declared, closed_before(now, args.older_than), args.target_size)
        question = "Replace the small files of the tables?"
    elif args.command == "reprocess":
        task = Reprocessing(tables, declared, args.day)
        question = "Fill the columns that were declared later in the tables?"
    else:
        task = Expiry(tables, now, dt.timedelta(days=args.expire_days), _raw_data(settings))
        question = "Remove old snapshots of the tables, and delete the files that no snapshot has?"
    return await run(args, task, declared, question, Confirmation([table_target(tables, settings)], args.yes))


def table_target(tables: Tables, settings: Settings) -> str:
    return f"tables of the namespace {settings.table_namespace} in the catalog at {address(tables.address)}"


def find_snapshots(settings: Settings, objects: Sequence[InLane]) -> Sequence[FirstSnapshot | None]:
    """The first snapshot with the rows of each object, in their order. Raises `Unavailable`, `Halted` and
    `Misconfigured`.
    """
    snapshots = FirstSnapshots(open_tables(settings))
    return [snapshots.find(each.source, each.epoch, each.lane, each.last) for each in objects]


def _raw_data(settings: Settings) -> str:
    return f"{settings.bucket}/{settings.prefix}"
