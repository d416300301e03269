"""What telemetry costs, as a share of what the data's way costs: `python -m benchmarks.telemetry`.

The same load with telemetry off, with a hundredth of the traces, with all of them, and with all but no collector: in
turn, several rounds of them, at a fixed rate and as fast as it goes. CPU time is by process and submission; what the
SDK costs is what API and consumer take beyond a run without it in the same round. Traces go to a sink that only reads,
since a trace store is no part of this.
"""

import argparse
import http.client
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any

from rich.table import Table

from benchmarks.stand import console, cpu_s, keep, memory_bytes, running, say, stack
from local.exporters import Exporters
from local.programs import LOOPBACK, Process
from local.stack import Stack

RATE = 50
CONNECTIONS = 8
#: Submissions per second; none: each connection's next one follows the one before it at once.
LOADS: Mapping[str, float | None] = {f"{RATE} submissions/s": RATE, f"full, {CONNECTIONS} connections": None}
SETTLE_S = 3  # the flush age, and what the SDK's and the collector's batches wait
RECORDS = 10

OFF, SAMPLED, WHOLE, AWAY = "off", "1 %", "100 %", "collector away"
MODES: Mapping[str, Mapping[str, str]] = {
    OFF: {"OTEL_SDK_DISABLED": "true"},
    SAMPLED: {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"},
    WHOLE: {},
    AWAY: {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{LOOPBACK}:9"},  # nobody listens there
}
SERVICE = ("api", "consumer")
DATA = (*SERVICE, "nats", "seaweedfs")
TELEMETRY = ("otel-collector", "prometheus")


@dataclass(frozen=True)
class Run:
    """One load in one mode. CPU is in ms a submission, by process; Memory is its own at the end, in MB."""

    load: str
    mode: str
    submissions_per_s: float
    latency_ms_median: float
    cpu_ms: Mapping[str, float]
    memory_mb: Mapping[str, float]

    def cpu_ms_of(self, names: Sequence[str]) -> float:
        return sum(self.cpu_ms[name] for name in names)


# --- load


def offer(port: int, for_s: float, rate: float | None) -> tuple[float, list[float]]:
    """Submissions for so long, at this rate a second, or each connection its next one at once. The seconds that it
    took, and each one's latency in seconds: from when it was due. Raises `RuntimeError` if one is refused.
    """
    body = b'{"vehicle_id": "BENCH", "manufacturer": "Nordwerk", "model": "N-40", "seats": 40}\n' * RECORDS
    numbers, latencies, refused = count(), list[float](), list[str]()
    began = time.monotonic()

    def send() -> None:
        connection = http.client.HTTPConnection(LOOPBACK, port, timeout=30)
        while not refused:
            due = began + next(numbers) / rate if rate else time.monotonic()
            if due >= began + for_s:
                break
            time.sleep(max(0, due - time.monotonic()))
            connection.request("POST", "/v1/ingest/vehicles", body, {"Content-Type": "application/x-ndjson"})
            answer = connection.getresponse()
            said = answer.read()
            latencies.append(time.monotonic() - due)
            if answer.status != 202:
                refused.append(f"{answer.status}: {said.decode()}")
        connection.close()

    senders = [threading.Thread(target=send) for _ in range(CONNECTIONS)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    if refused:
        raise RuntimeError(refused[0])
    return time.monotonic() - began, latencies


@contextmanager
def sink() -> Iterator[str]:
    """Takes any OTLP request and forgets it; its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the library's name
            pass

    with ThreadingHTTPServer((LOOPBACK, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{LOOPBACK}:{server.server_port}"
        server.shutdown()


# --- runs


def measure(
    load: str, mode: str, processes: Mapping[str, Process], offered: Callable[[], tuple[float, list[float]]]
) -> Run:
    before = {name: cpu_s(process) for name, process in processes.items()}
    seconds, latencies = offered()
    time.sleep(SETTLE_S)
    return Run(
        load,
        mode,
        len(latencies) / seconds,
        statistics.median(latencies) * 1000,
        {name: (cpu_s(process) - before[name]) * 1000 / len(latencies) for name, process in processes.items()},
        {name: memory_bytes(process) / 1e6 for name, process in processes.items()},
    )


def one_round(
    system: Stack, lasting: Mapping[str, Process], traces_to: str, number: int, for_s: float
) -> Iterator[Run]:
    """Each mode once, with fresh processes; a round begins with another mode than the one before it."""
    collector = replace(system.collector, env={**system.collector.env, "OTLP_TRACES_ENDPOINT": traces_to})
    prometheus = next(server for server in system.servers if server.name == "prometheus")
    for turn in range(len(MODES)):
        mode = [*MODES][(turn + number) % len(MODES)]
        roles = [replace(role, env={**role.env, **MODES[mode]}) for role in system.roles]
        with running(system, prometheus, collector) as telemetry, running(system, *roles) as service:
            processes = {**lasting, **telemetry, **service}
            offer(system.ports.api, 2, RATE)  # what starts slowly is no part of it
            for load, rate in LOADS.items():
                yield measure(load, mode, processes, partial(offer, system.ports.api, for_s, rate))


# --- figures


def compared(run: Run, off: Run) -> Mapping[str, float]:
    """A run's figures, CPU by submission, and ratios to the run of the same round without telemetry: to its service
    (API and consumer) or to all of the data's way (queue and bucket too).
    """
    sdk_ms = run.cpu_ms_of(SERVICE) - off.cpu_ms_of(SERVICE)
    collector_ms = run.cpu_ms["otel-collector"]
    return {
        "submissions/s": run.submissions_per_s,
        "submissions/s / off": run.submissions_per_s / off.submissions_per_s,
        "median latency, ms": run.latency_ms_median,
        **{f"CPU {name}, ms": run.cpu_ms[name] for name in (*DATA, *TELEMETRY)},
        "CPU SDK / service": sdk_ms / off.cpu_ms_of(SERVICE),
        "CPU collector / service": collector_ms / off.cpu_ms_of(SERVICE),
        "CPU SDK + collector / data": (sdk_ms + collector_ms) / off.cpu_ms_of(DATA),
        **{f"memory {name}, MB": run.memory_mb[name] for name in (*DATA, *TELEMETRY)},
    }


def figures(runs: Sequence[Run], load: str) -> Mapping[str, Mapping[str, float]]:
    """By mode, the medians over the rounds."""
    by_mode = {mode: [run for run in runs if (run.load, run.mode) == (load, mode)] for mode in MODES}
    rounds = {mode: list(map(compared, of_mode, by_mode[OFF])) for mode, of_mode in by_mode.items()}
    return {
        mode: {name: statistics.median(one[name] for one in of_mode) for name in of_mode[0]}
        for mode, of_mode in rounds.items()
    }


def show(load: str, by_mode: Mapping[str, Mapping[str, float]]) -> None:
    table = Table(load, *by_mode, box=None)
    for name in by_mode[OFF]:
        form = ".0%" if " / " in name else ",.2f"
        table.add_row(name, *(f"{values[name]:{form}}" for values in by_mode.values()))
    console.print(table, "")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.telemetry", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each mode (%(default)s)")
    parser.add_argument("--load-s", type=float, default=10, help="how long each load lasts, in seconds (%(default)g)")
    args = parser.parse_args(arguments)

    system = stack("telemetry", Exporters(metrics=("prometheus",), traces=("otlp-http",), logs=("file",)))
    runs: list[Run] = []
    wanted = args.rounds * len(MODES) * len(LOADS)
    with running(system, *(s for s in system.servers if s.name in {"nats", "seaweedfs"})) as lasting, sink() as to:
        for number in range(args.rounds):
            for run in one_round(system, lasting, to, number, args.load_s):
                runs.append(run)
                say(
                    f"{len(runs)}/{wanted}: telemetry {run.mode}, {run.load}: {run.submissions_per_s:.0f}/s, "
                    f"CPU of the service {run.cpu_ms_of(SERVICE):.1f} ms each, "
                    f"of the collector {run.cpu_ms['otel-collector']:.2f} ms"
                )
    found = {load: figures(runs, load) for load in LOADS}
    for load, by_mode in found.items():
        show(load, by_mode)
    say(f"{os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}: ratios of this run, no more")
    keep("telemetry", {"rounds": args.rounds, "loads": found, "runs": [asdict(run) for run in runs]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
