"""Small: one durable record a request, over 16 connections.

Telemetry off and at 100 % sampling, one API process and two, against an endpoint that only publishes (`bare.py`).
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from benchmarks.load import Load
from benchmarks.rounds import Figures, Found, Target, interleaved, quantile, ratio
from benchmarks.sample import status
from benchmarks.stand import SAMPLE, Options, System, offer, one_line, say, system
from local.exporters import Exporters
from local.programs import Process

CONNECTIONS = 16
FOR_S = 5.0
FOR_S_QUICK = 1.5
WARM_UP_S = 1.0
RATE = "requests/s"
#: Of all processes but the client.
CPU = "CPU, ms"
OFF = {"OTEL_SDK_DISABLED": "true"}
#: As `make up` has it, said aloud; two processes share the open batches of a stream.
ON = {"OTEL_TRACES_SAMPLER": "parentbased_always_on"}
SHARED = {"BRONZE_OPEN_BATCHES_MAX": "20"}
API = ("api", "api-2")
BARE = ("bare", "bare-2")
SERVICE = (*API, "consumer")


class Telemetry:
    """Telemetry of the whole service, API and consumer, which is on or off; a change restarts them."""

    def __init__(self, bench: System) -> None:
        self._processes = [bench.processes[name] for name in SERVICE]
        self._programs = [process.program for process in self._processes]
        self._now: Mapping[str, str] = {}

    def become(self, env: Mapping[str, str]) -> bool:
        """Whether it was another."""
        if env == self._now:
            return False
        self._now = env
        for process, program in zip(self._processes, self._programs, strict=True):
            process.program = replace(program, env={**program.env, **env})
        with ThreadPoolExecutor(len(SERVICE)) as starting:
            list(starting.map(Process.restart, self._processes))
        return True


def requests(
    bench: System, names: Sequence[str], path: str, file: str, for_s: float, connections: int = CONNECTIONS
) -> Figures:
    """The records one after the other, for so long; then what was accepted is waited for."""
    mark = bench.feed.mark
    load = Load(
        ports=[bench.port(name) for name in names],
        path=path,
        file=file,
        records=1,
        connections=connections,
        for_s=for_s,
    )
    with bench.cpu() as cpu:
        sent = offer(load)
    if names[0] not in BARE:
        bench.feed.until(mark, sent.records)
    ms_each = 1000 / sent.requests
    servers = {name: seconds * ms_each for name, seconds in cpu.items()}
    own = sum(servers.pop(f"CPU {name}, s") for name in names)
    kept = {
        name.replace(", s", ", ms"): ms
        for name, ms in servers.items()
        if name not in {f"CPU {idle}, s" for idle in (*API, *BARE)}
    }
    return {
        RATE: sent.requests / sent.seconds,
        "p50, ms": quantile(sent.latencies_s, 0.5) * 1000,
        "p99, ms": quantile(sent.latencies_s, 0.99) * 1000,
        "p99.9, ms": quantile(sent.latencies_s, 0.999) * 1000,
        CPU: own + sum(kept.values()),
        "CPU endpoint, ms": own,
        "CPU client, ms": sent.cpu_s * ms_each,
        **kept,
    }


def run(options: Options) -> Found:
    file = str(status(SAMPLE, say))
    for_s = FOR_S_QUICK if options.quick else FOR_S
    # the collector takes the traces and ends them: a trace store is no part of the service
    with system("small", SHARED, Exporters(traces=("none",))) as bench:
        bench.add(bench.api(API[1], SHARED))
        bench.add(*(bench.compared("bare", name) for name in BARE))
        telemetry = Telemetry(bench)

        def ingest(env: Mapping[str, str], names: Sequence[str]) -> Figures:
            if telemetry.become(env):
                requests(bench, API, "/v1/ingest/status", file, WARM_UP_S)
            return requests(bench, names, "/v1/ingest/status", file, for_s)

        publish = partial(requests, bench, path="/publish", file=file, for_s=for_s)
        variants = {
            "bare": partial(publish, BARE[:1]),
            "off": partial(ingest, OFF, API[:1]),
            "off, two": partial(ingest, OFF, API),
            "bare, two": partial(publish, BARE),
            "100 %": partial(ingest, ON, API[:1]),
            "100 %, two": partial(ingest, ON, API),
        }
        for warm_up in variants.values():
            warm_up()
        runs = interleaved(
            variants,
            options.repeats,
            lambda n, variant, f: one_line(n, options.repeats, variant, f, RATE, "CPU endpoint, ms", "CPU client, ms"),
        )
    return Found(
        runs,
        (
            Target("ratio_on_off", ratio(runs["100 %"], runs["off"], RATE), least=0.6),
            Target("cpu_on_off", ratio(runs["100 %"], runs["off"], CPU), most=1.6),
            Target("ratio_off_bare", ratio(runs["off"], runs["bare"], RATE), least=0.5),
            Target("ratio_on_off_two", ratio(runs["100 %, two"], runs["off, two"], RATE), least=0.6),
            Target("cpu_on_off_two", ratio(runs["100 %, two"], runs["off, two"], CPU), most=1.6),
            Target("ratio_off_bare_two", ratio(runs["off, two"], runs["bare, two"], RATE), least=0.5),
        ),
        {"connections": CONNECTIONS, "for_s": for_s},
    )
