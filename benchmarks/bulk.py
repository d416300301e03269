"""Bulk: NDJSON from the first request to the last object readable.

Against the single-thread limit (`limit.py`) and against what most teams write themselves (`naive.py`), with the same
client and as many connections.
"""

import json
import subprocess
import sys
from functools import partial

from benchmarks.load import Load
from benchmarks.rounds import Figures, Found, Target, interleaved, ratio
from benchmarks.sample import status
from benchmarks.stand import SAMPLE, Options, System, offer, one_line, say, system
from local.programs import environment

CONNECTIONS = 4
#: A bulk load is long against the flush age, a second that only the service waits at its end.
PASSES = 10
LARGE, SMALL = 10_000, 1_000
RATE = "records/s"


def service(bench: System, file: str, passes: int, records: int) -> Figures:
    """The service: done when the last object's catalog entry is there, which comes after the object."""
    mark = bench.feed.mark
    with bench.cpu() as cpu:
        load = Load(
            ports=[bench.port("api")],
            path="/v1/ingest/status",
            file=file,
            records=records,
            connections=CONNECTIONS,
            passes=passes,
        )
        sent = offer(load)
        heard = bench.feed.until(mark, sent.records)
    ended = max(sent.ended, heard[-1].at)
    return {
        RATE: sent.records / (ended - sent.began),
        "wall, s": ended - sent.began,
        "accepted after, s": sent.seconds,
        "objects": len(heard),
        "CPU client, s": sent.cpu_s,
        **cpu,
    }


def naive(bench: System, file: str, passes: int, records: int) -> Figures:
    """What most teams write: done with the last answer."""
    with bench.cpu() as cpu:
        sent = offer(
            Load(
                ports=[bench.port("naive")],
                path="/ingest",
                file=file,
                records=records,
                connections=CONNECTIONS,
                passes=passes,
            )
        )
    return {
        RATE: sent.records / sent.seconds,
        "wall, s": sent.seconds,
        "accepted after, s": sent.seconds,
        "objects": sent.requests,
        "CPU client, s": sent.cpu_s,
        **cpu,
    }


def limit(bench: System, file: str, passes: int) -> Figures:
    with bench.cpu() as cpu:
        done = subprocess.run(
            (sys.executable, "-m", "benchmarks.limit", file, str(passes)),
            env={**environment(), **bench.stack.client_env},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(done.stderr)
    took = json.loads(done.stdout)
    return {
        RATE: took["records"] / took["wall_s"],
        "wall, s": took["wall_s"],
        "objects": took["objects"],
        "CPU limit, s": took["cpu_s"],
        **cpu,
    }


def run(options: Options) -> Found:
    file = str(status(SAMPLE, say))
    passes = 1 if options.quick else PASSES
    with system("bulk") as bench:
        bench.add(bench.compared("naive", "naive", "naive"))
        variants = {
            "limit": partial(limit, bench, file, passes),
            "service 10k": partial(service, bench, file, passes, LARGE),
            "naive 10k": partial(naive, bench, file, passes, LARGE),
            "service 1k": partial(service, bench, file, passes, SMALL),
            "naive 1k": partial(naive, bench, file, passes, SMALL),
        }
        for warm_up in variants.values():  # the first of each imports, connects and makes volumes
            warm_up()
        runs = interleaved(
            variants, options.repeats, lambda n, variant, f: one_line(n, options.repeats, variant, f, RATE, "wall, s")
        )
    return Found(
        runs,
        (
            Target("ratio_bulk", ratio(runs["service 10k"], runs["limit"], RATE), least=0.5),
            Target("ratio_naive_10k", ratio(runs["service 10k"], runs["naive 10k"], RATE), least=0.6),
            Target("ratio_naive_1k", ratio(runs["service 1k"], runs["naive 1k"], RATE), least=1),
        ),
        {"connections": CONNECTIONS, "passes": passes},
    )
