"""Lanes: how fast one consumer drains a backlog of a source with one lane, two and four."""

import signal
import time
from contextlib import ExitStack
from functools import partial

from benchmarks.load import Load
from benchmarks.rounds import Figures, Found, interleaved
from benchmarks.sample import status
from benchmarks.stand import SAMPLE, Options, System, forget_peak, offer, one_line, peak_bytes, say, system

LANES = (1, 2, 4)
PASSES = 4
RECORDS = 10_000
CONNECTIONS = 4
RATE = "records/s"


def drain(bench: System, file: str, passes: int) -> Figures:
    """The consumer is paused while the backlog comes, and goes on: the time from then to the last object."""
    consumer = bench.processes["consumer"]
    mark = bench.feed.mark
    consumer.signal(signal.SIGSTOP)
    try:
        sent = offer(
            Load(
                ports=[bench.port("api")],
                path="/v1/ingest/status",
                file=file,
                records=RECORDS,
                connections=CONNECTIONS,
                passes=passes,
            )
        )
    finally:
        began = time.monotonic()
        consumer.signal(signal.SIGCONT)
    forget_peak(consumer)
    with bench.cpu() as cpu:
        heard = bench.feed.until(mark, sent.records)
    wall_s = heard[-1].at - began
    return {
        RATE: sent.records / wall_s,
        "MB/s": sent.bytes / wall_s / 1e6,
        "wall, s": wall_s,
        "objects": len(heard),
        "peak consumer, MB": peak_bytes(consumer) / 1e6,
        **{name: cpu[name] for name in ("CPU consumer, s", "CPU nats, s", "CPU seaweedfs, s")},
    }


def run(options: Options) -> Found:
    file = str(status(SAMPLE, say))
    passes = 1 if options.quick else PASSES
    with ExitStack() as stopping:
        variants = {}
        for lanes in LANES:
            env = {"BRONZE_LANES": str(lanes), "BRONZE_QUEUE_BYTES_MAX": str(2**33 // lanes)}
            bench = stopping.enter_context(system(f"lanes-{lanes}", env))
            variants[f"{lanes} lanes" if lanes > 1 else "1 lane"] = partial(drain, bench, file, passes)
        runs = interleaved(
            variants,
            options.repeats,
            lambda n, variant, f: one_line(n, options.repeats, variant, f, RATE, "MB/s", "objects"),
        )
    return Found(runs, (), {"passes": passes, "records_per_request": RECORDS})
