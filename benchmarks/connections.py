"""Connections: one durable record a request, over few connections and over many.

The endpoint that only publishes (`bare.py`), the API without group commit (`alone.py`) and the API as it is, all with
telemetry off; and the API with telemetry at 100 % sampling.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from benchmarks.rounds import Figures, Found, Target, interleaved, ratio
from benchmarks.sample import status
from benchmarks.small import API, BARE, FOR_S, FOR_S_QUICK, OFF, ON, RATE, SHARED, WARM_UP_S, Telemetry, requests
from benchmarks.stand import SAMPLE, Options, one_line, say, system
from local.exporters import Exporters

CONNECTIONS = (1, 16, 64, 256)
ALONE = API[1]
PATH = "/v1/ingest/status"


def run(options: Options) -> Found:
    file = str(status(SAMPLE, say))
    for_s = FOR_S_QUICK if options.quick else FOR_S
    with system("connections", SHARED, Exporters(traces=("none",))) as bench:
        alone = bench.api(ALONE, SHARED)
        bench.add(
            replace(alone, command=(sys.executable, "-m", "benchmarks.alone", "serve")),
            bench.compared("bare", BARE[0]),
        )
        telemetry = Telemetry(bench)

        def ingest(telemetry_is_on: bool, name: str, connections: int) -> Figures:  # noqa: FBT001  partial
            if telemetry.become(ON if telemetry_is_on else OFF):
                requests(bench, API, PATH, file, WARM_UP_S)
            return requests(bench, [name], PATH, file, for_s, connections)

        variants: dict[str, Callable[[], Figures]] = {}
        for what, measure in (
            ("bare", partial(requests, bench, BARE[:1], "/publish", file, for_s)),
            ("alone", partial(ingest, False, ALONE)),
            ("off", partial(ingest, False, API[0])),
            ("100 %", partial(ingest, True, API[0])),
        ):
            variants |= {f"{what}, {connections}": partial(measure, connections) for connections in CONNECTIONS}
        runs = interleaved(
            variants, options.repeats, lambda n, variant, f: one_line(n, options.repeats, variant, f, RATE, "p99, ms")
        )
    return Found(
        runs,
        (
            Target("ratio_off_bare_64", ratio(runs["off, 64"], runs["bare, 64"], RATE), least=1),
            Target("ratio_group_alone_64", ratio(runs["off, 64"], runs["alone, 64"], RATE), least=1),
            Target("p99_group_alone_1", ratio(runs["off, 1"], runs["alone, 1"], "p99, ms"), most=1.1),
            Target("p99_group_alone_16", ratio(runs["off, 16"], runs["alone, 16"], "p99, ms"), most=1.1),
        ),
        {"for_s": for_s},
    )
