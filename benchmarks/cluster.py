"""Cluster: one durable record per request, over 64 connections, with one queue server and with three.

Of three servers, two have a message on disk before it is acknowledged. All of them are on this machine, and share its
cores and its disk, so three are slower than three machines would be. Telemetry is off.
"""

from contextlib import ExitStack
from functools import partial

from benchmarks.rounds import Figures, Found, interleaved
from benchmarks.sample import status
from benchmarks.small import API, CPU, FOR_S, FOR_S_QUICK, OFF, RATE, WARM_UP_S, requests
from benchmarks.stand import SAMPLE, Options, System, one_line, say, system
from local.exporters import Exporters
from local.servers import NATS_SERVERS

CONNECTIONS = 64
PATH = "/v1/ingest/status"
P99 = "p99, ms"
#: Of which figures three are compared with one, within each round.
RATIOS = (RATE, "p50, ms", P99, CPU, "CPU nats, ms")


def run(options: Options) -> Found:
    file = str(status(SAMPLE, say))
    for_s = FOR_S_QUICK if options.quick else FOR_S

    def submit(bench: System, for_s: float) -> Figures:
        found = requests(bench, API[:1], PATH, file, for_s, CONNECTIONS)
        servers = [name for name in found if name.startswith("CPU nats")]
        kept = {name: value for name, value in found.items() if name not in servers}
        return {**kept, "CPU nats, ms": sum(found[name] for name in servers)}

    with ExitStack() as stopping:
        benches = {
            f"{count} server{'s' if count > 1 else ''}": stopping.enter_context(
                system(f"cluster-{count}", OFF, Exporters(traces=("none",)), nats_servers=count)
            )
            for count in NATS_SERVERS
        }
        for bench in benches.values():
            submit(bench, WARM_UP_S)
        runs = interleaved(
            {name: partial(submit, bench, for_s) for name, bench in benches.items()},
            options.repeats,
            lambda n, variant, f: one_line(n, options.repeats, variant, f, RATE, P99),
        )
    one, three = (runs[name] for name in benches)
    ratios = [
        {figure: mine[figure] / theirs[figure] for figure in RATIOS} for mine, theirs in zip(three, one, strict=True)
    ]
    return Found({**runs, "three / one": ratios}, notes={"for_s": for_s, "connections": CONNECTIONS})
