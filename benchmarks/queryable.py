"""From a submission's 202 to its rows in the Iceberg table of its source, at half of the bulk rate."""

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow.parquet as pq
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import NoSuchTableError

from benchmarks.bulk import LARGE, RATE
from benchmarks.delivery import BULK_RUNS, CONNECTIONS, FOR_S, FOR_S_QUICK, RECORDS, paced_load
from benchmarks.load import Load
from benchmarks.rounds import Figures, Found, Target, interleaved, quantile
from benchmarks.sample import status
from benchmarks.stand import SAMPLE, Options, System, offer, one_line, say, system
from local import servers
from local.machine import limit_s

TABLE = ("bronze", "status")
SUBMISSION_ID = "_submission_id"
POLL_S = 0.1
FLUSH_AGE_S = 1.0
#: Beyond the flush age.
AIM_S = 5.0


class Watch:
    """A reader that asks the catalog all the time: since when it counts the rows of each submission."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._ended = threading.Event()
        self._read: set[str] = set()
        self.error: Exception | None = None
        self.rows = 0
        self.since: dict[str, float] = {}

    @contextmanager
    def running(self) -> Iterator["Watch"]:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()

    def until(self, rows: int) -> None:
        """Wait for so many rows in all. Raises `TimeoutError`."""
        deadline = time.monotonic() + limit_s(300)
        while self.rows < rows and not self.error:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.rows:,} of {rows:,} rows are in the table")
            time.sleep(POLL_S)
        if self.error:
            raise self.error

    def _run(self) -> None:
        try:
            while not self._ended.wait(POLL_S):
                try:
                    table = self._catalog.load_table(TABLE)
                except NoSuchTableError:
                    continue
                at = time.monotonic()
                files = [task.file for task in table.scan().plan_files()]
                for file in files:
                    if file.file_path not in self._read:
                        self._read.add(file.file_path)
                        with table.io.new_input(file.file_path).open() as stream:
                            column = pq.read_table(stream, columns=[SUBMISSION_ID])[SUBMISSION_ID]
                        for submission in column.unique().to_pylist():
                            self.since.setdefault(submission, at)
                self.rows = sum(file.record_count for file in files)
        except Exception as error:  # noqa: BLE001 - `until` raises it
            self.error = error


def paced(bench: System, watch: Watch, file: str, rate: float, for_s: float) -> Figures:
    """Submissions of `RECORDS` records, so many records per second."""
    before = watch.rows
    sent = offer(paced_load(bench, file, rate, for_s))
    watch.until(before + sent.records)
    took = [watch.since[submission] - answered for submission, _, answered in sent.receipts]
    return {
        RATE: sent.records / sent.seconds,
        "p50, s": quantile(took, 0.5),
        "p95, s": quantile(took, 0.95),
        "max, s": max(took),
    }


def bulk_rate(bench: System, watch: Watch, file: str, repeats: int) -> float:
    """The rate at which objects are stored, once the table has all that was sent for it.

    What processes take is not of interest, so nobody waits until they are at rest.
    """
    load = Load(
        ports=[bench.port("api")], path="/v1/ingest/status", file=file, records=LARGE, connections=CONNECTIONS, passes=1
    )
    rates = []
    for _ in range(repeats):
        before, mark = watch.rows, bench.feed.mark
        sent = offer(load)
        stored = bench.feed.until(mark, sent.records)
        rates.append(sent.records / (stored[-1].at - sent.began))
        watch.until(before + sent.records)
    return statistics.median(rates)


def run(options: Options) -> Found:
    file = str(status(SAMPLE, say))
    for_s = FOR_S_QUICK if options.quick else FOR_S
    with system("queryable") as bench:
        bench.add(bench.stack.table)
        account = servers.s3_account(bench.stack.root / "seaweedfs", bench.stack.ports.s3, identity="table")
        credentials = {"s3.access-key-id": account.access_key, "s3.secret-access-key": account.secret_key}
        watch = Watch(load_catalog("bench", **servers.tables_catalog(account), **credentials))
        with watch.running():
            bulk = bulk_rate(bench, watch, file, 1 if options.quick else BULK_RUNS)
            say(f"bulk: {bulk:,.0f} records/s; half of that is offered")
            runs = interleaved(
                {"half of bulk": lambda: paced(bench, watch, file, bulk / 2, for_s)},
                options.repeats,
                lambda n, variant, f: one_line(n, options.repeats, variant, f, RATE, "p50, s", "p95, s"),
            )
    p95_s = Found(runs).medians["half of bulk"]["p95, s"]
    target = Target("queryable_p95_s", p95_s, most=FLUSH_AGE_S + AIM_S)
    return Found(runs, [target], {"bulk_records_per_s": bulk, "records_per_request": RECORDS, "for_s": for_s})
