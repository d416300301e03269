"""Delivery: from a submission's 202 to its last record readable, at half of the bulk rate, with a flush age of 1 s."""

import re
import statistics
import time
from collections.abc import Mapping

from benchmarks.bulk import LARGE, RATE, service
from benchmarks.load import Load
from benchmarks.rounds import Figures, Found, Target, interleaved, quantile
from benchmarks.sample import status
from benchmarks.stand import SAMPLE, Options, System, offer, one_line, say, system
from local.programs import LOOPBACK, http_get

RECORDS = 1_000
CONNECTIONS = 16
FOR_S = 20.0
FOR_S_QUICK = 4.0
SCRAPE_S = 1.0
BULK_RUNS = 3
UPLOADS = "bronze_upload_duration_seconds"
_BUCKET = re.compile(
    rf'^{UPLOADS}_bucket{{(?=[^}}]*bronze_source="status")[^}}]*le="([^"]+)"[^}}]*}} (\S+)', re.MULTILINE
)


def upload_buckets(metrics: str) -> Mapping[float, float]:
    """How many uploads of this source took at most so many seconds, as `/metrics` says it."""
    found: dict[float, float] = {}
    for bound, number in _BUCKET.findall(metrics):
        found[float(bound)] = found.get(float(bound), 0.0) + float(number)
    return found


def bucket_quantile(before: Mapping[float, float], after: Mapping[float, float], q: float) -> float:
    """The bound of the bucket that the quantile is in: it is not above that."""
    grown = {bound: number - before.get(bound, 0.0) for bound, number in sorted(after.items())}
    total = max(grown.values(), default=0.0)
    return next((bound for bound, number in grown.items() if total and number >= q * total), 0.0)


def paced_load(bench: System, file: str, rate: float, for_s: float) -> Load:
    """Submissions of `RECORDS` records of `file`, so many records per second."""
    return Load(
        ports=[bench.port("api")],
        path="/v1/ingest/status",
        file=file,
        records=RECORDS,
        connections=CONNECTIONS,
        for_s=for_s,
        rate=rate / RECORDS,
        receipts=True,
    )


def paced(bench: System, file: str, rate: float, for_s: float) -> Figures:
    """Submissions of `RECORDS` records, so many records per second."""
    scrape = bench.stack.ports.consumer
    before = upload_buckets(http_get(scrape, "/metrics").decode())
    mark = bench.feed.mark
    with bench.cpu() as cpu:
        sent = offer(paced_load(bench, file, rate, for_s))
        heard = bench.feed.until(mark, sent.records)
    readable = {submission["submission_id"]: entry.at for entry in heard for submission in entry.entry["submissions"]}
    deliveries = [readable[submission] - answered for submission, _, answered in sent.receipts]
    time.sleep(SCRAPE_S)  # the upload is counted after its entry
    after = upload_buckets(http_get(scrape, "/metrics").decode())
    return {
        RATE: sent.records / sent.seconds,
        "p50, s": quantile(deliveries, 0.5),
        "p99, s": quantile(deliveries, 0.99),
        "max, s": max(deliveries),
        "accepted p99, s": quantile(sent.latencies_s, 0.99),
        "upload p99, s, at most": bucket_quantile(before, after, 0.99),
        "objects": len(heard),
        "CPU client, s": sent.cpu_s,
        **cpu,
    }


def run(options: Options) -> Found:
    file = str(status(SAMPLE, say))
    for_s = FOR_S_QUICK if options.quick else FOR_S
    with system("delivery") as bench:
        bulk = statistics.median(service(bench, file, 1, LARGE)[RATE] for _ in range(BULK_RUNS))
        say(f"bulk: {bulk:,.0f} records/s; half of that is offered to {LOOPBACK}")
        runs = interleaved(
            {"half of bulk": lambda: paced(bench, file, bulk / 2, for_s)},
            options.repeats,
            lambda n, variant, f: one_line(
                n, options.repeats, variant, f, RATE, "p50, s", "p99, s", "upload p99, s, at most"
            ),
        )
    found = Found(runs)
    medians = found.medians["half of bulk"]
    targets = (
        Target("delivery_p99_s", medians["p99, s"], most=3),
        Target("upload_p99_s", medians["upload p99, s, at most"], most=2),
    )
    return Found(runs, targets, {"bulk_records_per_s": bulk, "records_per_request": RECORDS, "for_s": for_s})
