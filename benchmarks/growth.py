"""Growth: ten times the records take at most ten times the CPU, and the 10,000th object costs what the 10th cost."""

import time
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path

from benchmarks.bulk import LARGE, service
from benchmarks.load import Load
from benchmarks.rounds import Figures, Found, Runs, Target, interleaved, quantile, ratio
from benchmarks.sample import RECORDS, repeated, status
from benchmarks.stand import SAMPLE, Options, System, offer, one_line, say, system
from local.programs import LOOPBACK

SERVICE = ("api", "consumer", "nats", "seaweedfs")
QUICK = 10  # so much less
OBJECTS = 10_000
OBJECTS_S_MAX = 1800.0
#: So many times `OBJECTS_AT_ONCE`.
OBJECTS_A_WINDOW = 20
OBJECTS_AT_ONCE = 8
#: An object for each message, and purged as soon as the rules allow.
EACH_MESSAGE = {
    "BRONZE_FLUSH_AGE_S": "0.001",
    "BRONZE_OBJECT_MESSAGES_MAX": "1",
    "BRONZE_DEADLINE_S": "2",
    "BRONZE_PURGE_GRACE_S": "4",
}
CPU = "CPU, s"


def service_cpu(figures: Figures) -> Figures:
    return {**figures, CPU: sum(figures[f"CPU {name}, s"] for name in SERVICE)}


def window(bench: System, line: bytes, objects: int) -> Figures:
    """So many submissions of one record, each of which becomes an object, a few at a time: a backlog would be another
    cost. CPU is in ms an object.
    """
    http = HTTPConnection(LOOPBACK, bench.port("api"), timeout=30)
    waits, began = [], time.monotonic()
    with bench.cpu() as cpu:
        for _ in range(0, objects, OBJECTS_AT_ONCE):
            mark = bench.feed.mark
            for _ in range(OBJECTS_AT_ONCE):
                http.request("POST", "/v1/ingest/status", line, {"Content-Type": "application/x-ndjson"})
                answer = http.getresponse()
                said = answer.read()
                if answer.status != HTTPStatus.ACCEPTED:
                    raise RuntimeError(f"{answer.status}: {said.decode()}")
            accepted = time.monotonic()
            waits.append(bench.feed.until(mark, OBJECTS_AT_ONCE)[-1].at - accepted)
        took_s = time.monotonic() - began
    http.close()
    each = {f"CPU {name}, ms": cpu[f"CPU {name}, s"] / objects * 1000 for name in SERVICE}
    return {
        "objects/s": objects / took_s,
        "readable after p50, ms": quantile(waits, 0.5) * 1000,
        "readable after p99, ms": quantile(waits, 0.99) * 1000,
        **each,
        "CPU, ms": sum(each.values()),
    }


def objects(options: Options, sample: Path) -> Runs:
    """A lane that has had its objects, in turn with a young one."""
    less = QUICK if options.quick else 1
    old, size = OBJECTS // less, OBJECTS_A_WINDOW // less * OBJECTS_AT_ONCE
    with sample.open("rb") as lines:
        line = next(lines)
    with system("growth-old", EACH_MESSAGE) as aged:
        say(f"making {old:,} objects")
        load = Load(
            ports=[aged.port("api")],
            path="/v1/ingest/status",
            file=str(sample),
            records=1,
            connections=4,
            requests_max=old,
        )
        mark = aged.feed.mark
        offer(load)
        aged.feed.until(mark, old, OBJECTS_S_MAX)
        with system("growth-young", EACH_MESSAGE) as young:
            variants = {
                "young lane": partial(window, young, line, size),
                f"after {old:,} objects": partial(window, aged, line, size),
            }
            for bench in (young, aged):  # what is imported and connected at first use is no part of it
                window(bench, line, OBJECTS_AT_ONCE)
            shown = ("objects/s", "readable after p50, ms", "CPU, ms")
            return interleaved(
                variants,
                options.repeats,
                lambda n, variant, figures: one_line(n, options.repeats, variant, figures, *shown),
            )


def run(options: Options) -> Found:
    sample = status(SAMPLE, say)
    one = sample
    if options.quick:
        one = repeated(sample, RECORDS // QUICK, SAMPLE / "tenth.ndjson")
    with system("growth") as bench:
        records = {
            name: partial(lambda passes: service_cpu(service(bench, str(one), passes, LARGE)), passes)
            for name, passes in {"once": 1, "ten times": 10}.items()
        }
        records["once"]()
        runs = interleaved(
            records,
            options.repeats,
            lambda n, variant, f: one_line(n, options.repeats, variant, f, "records/s", CPU),
        )
    growth = ratio(runs["ten times"], runs["once"], CPU)
    by_age = objects(options, sample)
    young, aged = by_age.values()
    return Found(
        {**runs, **by_age},
        (
            Target("cpu_growth_at_ten_times", growth, most=10),
            Target("cpu_old_lane_by_young", ratio(aged, young, "CPU, ms"), most=1.1),
            Target("wait_old_lane_by_young", ratio(aged, young, "readable after p50, ms"), most=1.1),
        ),
    )
