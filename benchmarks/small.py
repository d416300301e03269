"""Small: one durable record a request, over 16 connections.

Telemetry off and at 100 % sampling, one API process and two, against an endpoint that only publishes (`bare.py`).
"""

from functools import partial

from benchmarks.load import Load
from benchmarks.rounds import Figures, Found, Target, interleaved, quantile, ratio
from benchmarks.sample import status
from benchmarks.stand import SAMPLE, Options, System, offer, one_line, say, system

CONNECTIONS = 16
FOR_S = 5.0
FOR_S_QUICK = 1.5
RATE = "requests/s"
OFF = {"OTEL_SDK_DISABLED": "true"}
#: As `make up` has it, said aloud; two processes share the open batches of a stream.
ON = {"OTEL_TRACES_SAMPLER": "parentbased_always_on"}
SHARED = {"BRONZE_OPEN_BATCHES_MAX": "20"}


def requests(bench: System, names: tuple[str, ...], path: str, file: str, for_s: float) -> Figures:
    """The records one after the other, for so long; then what was accepted is waited for."""
    mark = bench.feed.mark
    load = Load(
        ports=[bench.port(name) for name in names],
        path=path,
        file=file,
        records=1,
        connections=CONNECTIONS,
        for_s=for_s,
    )
    with bench.cpu() as cpu:
        sent = offer(load)
    if not names[0].startswith("bare"):
        bench.feed.until(mark, sent.records)
    ms_each = 1000 / sent.requests
    servers = {name: seconds * ms_each for name, seconds in cpu.items()}
    own = sum(servers.pop(f"CPU {name}, s") for name in names)
    idle = ("api", "off", "on", "bare")
    kept = {name.replace(", s", ", ms"): ms for name, ms in servers.items() if not name[4:].startswith(idle)}
    return {
        RATE: sent.requests / sent.seconds,
        "p50, ms": quantile(sent.latencies_s, 0.5) * 1000,
        "p99, ms": quantile(sent.latencies_s, 0.99) * 1000,
        "CPU endpoint, ms": own,
        "CPU client, ms": sent.cpu_s * ms_each,
        **kept,
    }


def run(options: Options) -> Found:
    file = str(status(SAMPLE, say))
    for_s = FOR_S_QUICK if options.quick else FOR_S
    with system("small") as bench:
        bench.add(
            *(bench.api(f"off-{n}", {**OFF, **SHARED}) for n in (1, 2)),
            *(bench.api(f"on-{n}", {**ON, **SHARED}) for n in (1, 2)),
        )
        bench.add(*(bench.compared("bare", f"bare-{n}", bench.nats_url) for n in (1, 2)))
        ingest = partial(requests, bench, path="/v1/ingest/status", file=file, for_s=for_s)
        publish = partial(requests, bench, path="/publish", file=file, for_s=for_s)
        variants = {
            "bare": partial(publish, ("bare-1",)),
            "off": partial(ingest, ("off-1",)),
            "100 %": partial(ingest, ("on-1",)),
            "bare, two": partial(publish, ("bare-1", "bare-2")),
            "off, two": partial(ingest, ("off-1", "off-2")),
            "100 %, two": partial(ingest, ("on-1", "on-2")),
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
            Target("ratio_off_bare", ratio(runs["off"], runs["bare"], RATE), least=0.5),
            Target("ratio_on_off_two", ratio(runs["100 %, two"], runs["off, two"], RATE), least=0.6),
            Target("ratio_off_bare_two", ratio(runs["off, two"], runs["bare, two"], RATE), least=0.5),
        ),
        {"connections": CONNECTIONS, "for_s": for_s},
    )
