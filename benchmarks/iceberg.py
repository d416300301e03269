"""Iceberg tables: a commit by the snapshots that a table has, and a week of small objects, before and after compaction.

The rows are those of the objects of the part *objects*. A table of that week has the files of many commits; the Arrow
dataset over the objects themselves is asked for comparison.
"""

import datetime as dt
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import fs
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.table.snapshots import SnapshotLogEntry
from rich.progress import track

from benchmarks.objects import BEGIN, DAY, OBJECT_RECORDS, OBJECTS, OBJECTS_QUICK, SOURCE, Making, rows_of, timed, week
from benchmarks.rounds import Figures, Found, Runs, Target, interleaved, ratio
from benchmarks.sample import status
from benchmarks.stand import SAMPLE, STATE, Options, console, one_line, running, say, stack
from bronze.maintenance.compaction import Compaction
from bronze.records.columns import table_schema
from bronze.servers.iceberg import Tables
from bronze.table.object_rows import with_columns
from local import servers
from local.exporters import Exporters

NAMESPACE = "bronze"
SNAPSHOTS = (10, 1_000, 5_000)
COMMIT_MOST = 1.5
#: Objects of one commit of the week.
PER_COMMIT = 20
TARGET_BYTES = 128 * 2**20


# --- a commit


def commits(making: Making, options: Options) -> Runs:
    """The CPU of a commit of one small object, with so many snapshots in the table's metadata."""
    columns = table_schema(SOURCE)
    rows = with_columns(rows_of(making.object(OBJECT_RECORDS, OBJECT_RECORDS // 4, BEGIN)), columns)
    variants: dict[str, Callable[[], Figures]] = {}
    for count in SNAPSHOTS[:2] if options.quick else SNAPSHOTS:
        folder = STATE / "tables" / str(count)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        catalog = load_catalog("bench", type="sql", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}")
        tables = Tables(catalog, NAMESPACE)
        tables.open(SOURCE.name, columns)
        tables.append(tables.read(SOURCE.name), rows, "0", {})
        _grow(catalog, count)
        variants[f"{count:,} snapshots"] = partial(_commit, tables, rows)
    return interleaved(
        variants,
        options.repeats,
        lambda n, variant, f: one_line(n, options.repeats, variant, f, "CPU commit, ms"),
    )


def _commit(tables: Tables, rows: pa.Table) -> Figures:
    state = tables.read(SOURCE.name)
    began_s, cpu_s = time.perf_counter(), time.process_time()
    tables.append(state, rows, "0", {})
    return {
        "CPU commit, ms": (time.process_time() - cpu_s) * 1000,
        "wall commit, ms": (time.perf_counter() - began_s) * 1000,
    }


def _grow(catalog: Catalog, count: int) -> None:
    """Write copies of the last snapshot into the metadata of the table: commits would take hours."""
    table = catalog.load_table((NAMESPACE, SOURCE.name))
    last, old = table.current_snapshot(), table.metadata
    if last is None:
        raise RuntimeError("the table has no snapshot")
    new = [
        last.model_copy(
            update={
                "snapshot_id": last.snapshot_id + number,
                "parent_snapshot_id": last.snapshot_id + number - 1,
                "sequence_number": (last.sequence_number or 0) + number,
            }
        )
        for number in range(1, count)
    ]
    log = [SnapshotLogEntry(snapshot_id=one.snapshot_id, timestamp_ms=one.timestamp_ms) for one in new]
    grown = old.model_copy(
        update={
            "snapshots": [*old.snapshots, *new],
            "snapshot_log": [*old.snapshot_log, *log],
            "last_sequence_number": new[-1].sequence_number,
            "current_snapshot_id": new[-1].snapshot_id,
            "refs": {"main": old.refs["main"].model_copy(update={"snapshot_id": new[-1].snapshot_id})},
        }
    )
    Path(table.metadata_location.removeprefix("file://")).write_text(grown.model_dump_json())


# --- a week


def layout(making: Making, options: Options) -> tuple[Runs, Mapping[str, float]]:
    """A week of small objects in the catalog of SeaweedFS, and what readers take to ask it."""
    count = OBJECTS_QUICK if options.quick else OBJECTS
    system = stack("tables", Exporters())
    bucket = next(server for server in system.servers if server.name == "seaweedfs")
    with running(system, bucket):
        account = servers.s3_account(system.root / "seaweedfs", system.ports.s3, identity="table")
        credentials = {"s3.access-key-id": account.access_key, "s3.secret-access-key": account.secret_key}
        catalog = load_catalog("bench", **servers.tables_catalog(account), **credentials)
        tables, columns = Tables(catalog, NAMESPACE), table_schema(SOURCE)
        tables.open(SOURCE.name, columns)
        objects = fs.S3FileSystem(
            access_key=system.account.access_key,
            secret_key=system.account.secret_key,
            endpoint_override=system.account.env["AWS_ENDPOINT_URL_S3"],
            region=system.account.env["AWS_DEFAULT_REGION"],
        )
        say(f"writing a week: {count:,} objects of {OBJECT_RECORDS} records, {PER_COMMIT} per commit")
        making_week = week(making, count)
        submission = ""
        for first in track([*range(0, count, PER_COMMIT)], "writing", console=console):
            made = list(islice(making_week, PER_COMMIT))
            for one in made:
                with objects.open_output_stream(f"{system.account.bucket}/{one.contents.file_path}") as file:
                    file.write(one.body)
            rows = pa.concat_tables([with_columns(rows_of(one), columns) for one in made])
            tables.append(tables.read(SOURCE.name), rows, "0", {})
            if first <= count / 2 < first + PER_COMMIT:
                submission = made[0].contents.submissions[0].accepted.submission_id
        root = f"{system.account.bucket}/bronze/source={SOURCE.name}"

        def asked(variants: Mapping[str, Callable[[], Figures]]) -> Runs:
            return interleaved(
                variants,
                options.repeats,
                lambda n, variant, f: one_line(n, options.repeats, variant, f, "count, s", "one submission, s"),
            )

        before = asked(
            {
                "objects, Arrow dataset": partial(_ask_objects, objects, root, submission),
                "table": partial(_ask_table, catalog, submission),
            }
        )
        files = len(list(catalog.load_table((NAMESPACE, SOURCE.name)).scan().plan_files()))
        compaction = Compaction(tables, {SOURCE.name: SOURCE}, BEGIN + dt.timedelta(days=8), TARGET_BYTES)
        took_s = timed(lambda: compaction.run(SOURCE.name, lambda: None))
        after = asked({"table, compacted": partial(_ask_table, catalog, submission)})
        notes = {"objects": count, "files": files, "compaction, s": took_s}
    return {**before, **after}, notes


def _ask_objects(objects: fs.S3FileSystem, root: str, submission: str) -> Figures:
    def count(condition: ds.Expression | None) -> object:
        return ds.dataset(root, filesystem=objects, partitioning="hive").count_rows(filter=condition)

    return {
        "count, s": timed(lambda: count(None)),
        "one day, s": timed(lambda: count(ds.field("date") == f"{DAY:%Y-%m-%d}")),
        "one submission, s": timed(lambda: count(ds.field("_submission_id") == submission)),
    }


def _ask_table(catalog: Catalog, submission: str) -> Figures:
    def count(condition: str | None) -> object:
        table = catalog.load_table((NAMESPACE, SOURCE.name))
        return (table.scan(row_filter=condition) if condition else table.scan()).count()

    begin, end = f"{DAY:%Y-%m-%d}", f"{DAY + dt.timedelta(days=1):%Y-%m-%d}"
    day = f"_received_at >= '{begin}T00:00:00+00:00' AND _received_at < '{end}T00:00:00+00:00'"
    return {
        "count, s": timed(lambda: count(None)),
        "one day, s": timed(lambda: count(day)),
        "one submission, s": timed(lambda: count(f"_submission_id = '{submission}'")),
    }


def run(options: Options) -> Found:
    making = Making(status(SAMPLE, say).read_bytes().splitlines())
    by_snapshots = commits(making, options)
    first, *_, last = by_snapshots
    by_reader, notes = layout(making, options)
    return Found(
        {**by_snapshots, **by_reader},
        [Target("ratio_commit_snapshots", _ratio(by_snapshots[last], by_snapshots[first]), most=COMMIT_MOST)],
        {"week": notes},
    )


def _ratio(many: Sequence[Figures], few: Sequence[Figures]) -> float:
    return ratio(many, few, "CPU commit, ms")
