"""Monitors: what the data monitors take of the consumer's CPU, with small objects and with large ones.

The same load with and without them, in turn. Small objects show what the measurement of an object costs, and large ones
what that of a record costs.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from benchmarks.load import Load
from benchmarks.rounds import Figures, Found, Target, interleaved, ratio
from benchmarks.sample import status
from benchmarks.stand import SAMPLE, Options, System, offer, one_line, say, system
from local.programs import Process

#: Records per submission; submissions per second.
LOADS: Mapping[str, tuple[int, float]] = {"small objects": (10, 10), "large objects": (5_000, 2)}
FOR_S, FOR_S_QUICK = 15.0, 3.0
WARM_UP_S = 2.0
#: An object per submission of the small load.
FLUSH = {"BRONZE_FLUSH_AGE_S": "0.05"}
CPU = "CPU consumer, ms per object"


class Consumer:
    """The consumer, which is restarted if it is to be with monitors or without."""

    def __init__(self, bench: System) -> None:
        self._process: Process = bench.processes["consumer"]
        self._with = self._process.program
        without = (sys.executable, "-m", "benchmarks.unmonitored", *self._with.command[1:])
        self._programs = {True: self._with, False: replace(self._with, command=without)}

    def become(self, *, monitored: bool) -> bool:
        """Whether it was another."""
        if self._process.program is self._programs[monitored]:
            return False
        self._process.program = self._programs[monitored]
        self._process.restart()
        return True


def load(bench: System, file: str, records: int, rate: float, for_s: float) -> Figures:
    mark = bench.feed.mark
    submissions = Load(
        ports=[bench.port("api")],
        path="/v1/ingest/status",
        file=file,
        records=records,
        connections=4,
        for_s=for_s,
        rate=rate,
    )
    with bench.cpu() as cpu:
        sent = offer(submissions)
        objects = len(bench.feed.until(mark, sent.records))
    return {
        CPU: 1000 * cpu["CPU consumer, s"] / objects,
        "objects": objects,
        "records per object": sent.records / objects,
    }


def run(options: Options) -> Found:
    file = str(status(SAMPLE, say))
    for_s = FOR_S_QUICK if options.quick else FOR_S
    with system("monitors", FLUSH) as bench:
        consumer = Consumer(bench)

        def measure(of: str, *, monitored: bool) -> Figures:
            if consumer.become(monitored=monitored):
                load(bench, file, *LOADS[of], WARM_UP_S)
            return load(bench, file, *LOADS[of], for_s)

        variants: dict[str, Callable[[], Figures]] = {
            f"{of}, {'with' if monitored else 'without'}": partial(measure, of, monitored=monitored)
            for monitored in (True, False)
            for of in LOADS
        }
        runs = interleaved(
            variants, options.repeats, lambda n, variant, f: one_line(n, options.repeats, variant, f, *f)
        )
    targets = [
        Target(
            f"ratio_with_without_{of.replace(' ', '_')}",
            ratio(runs[f"{of}, with"], runs[f"{of}, without"], CPU),
            most=1.02,
        )
        for of in LOADS
    ]
    return Found(runs, targets, {"loads": LOADS, "for_s": for_s})
