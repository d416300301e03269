"""The CPU that a small submission takes of an API with 1, 2 and 4 workers: `python -m tests.worker_cost`.

Each API runs on real servers, with telemetry, which another process takes and forgets. All processes of an API count.
The workers' shares are those of the requests that each has answered.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.load import Load
from benchmarks.rounds import Figures, interleaved, medians, ratio
from benchmarks.stand import console, offer, running, say
from local.builds import planned
from local.programs import Process, Program, free_ports, http_get
from local.settings import WORKERS_MAX
from local.stack import Ports, Stack
from tests.request_cost import sink
from tests.system.blackbox import Metrics

NUMBERS = (1, 2, 4)
ROUNDS = 5
REQUESTS = 3_000
CONNECTIONS = 64
WARM_REQUESTS = 500
COST = "CPU per request, us"
BODY = b'{"vehicle_id": "N14228", "manufacturer": "BOEING", "seats": 149}\n'


def processes(program: Process) -> Sequence[int]:
    """A program and its children."""
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
    return [program.pid, *map(int, children)]


def cpu_s(program: Process) -> float:
    """The CPU time of all its processes so far; the kernel counts it in nanoseconds."""
    threads = (task for pid in processes(program) for task in Path(f"/proc/{pid}/task").iterdir())
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


class Api:
    """A running API."""

    def __init__(self, stack: Stack, process: Process, file: Path) -> None:
        self._stack = stack
        self._process = process
        self._file = file
        self._send(WARM_REQUESTS)

    def run(self) -> Figures:
        before, began_s = self._answered(), cpu_s(self._process)
        self._send(REQUESTS)
        taken_s = cpu_s(self._process) - began_s
        shares = sorted(now - then for now, then in zip(self._answered(), before, strict=True))
        return {COST: taken_s / REQUESTS * 1e6, "least share, %": shares[0] / REQUESTS * 100}

    def _send(self, requests: int) -> None:
        offer(
            Load(
                ports=[self._stack.ports.api],
                path="/v1/ingest/vehicles",
                file=str(self._file),
                records=1,
                connections=CONNECTIONS,
                passes=requests,
                requests_max=requests,
            )
        )

    def _answered(self) -> Sequence[float]:
        ports = self._stack.worker_ports("api") or [self._stack.ports.api]
        scraped = [Metrics.parse(http_get(port, "/metrics").decode()) for port in ports]
        return [sum(metrics.all("bronze_records_total", bronze_source="vehicles")) for metrics in scraped]


def api(stack: Stack, collector: str) -> Program:
    """The API of a stack."""
    role = stack.roles[0]
    return replace(role, name=f"api-{stack.workers}", env={**role.env, "OTEL_EXPORTER_OTLP_ENDPOINT": collector})


@contextmanager
def apis(root: Path) -> Iterator[dict[str, Api]]:
    """An API with each number of workers, all on one queue and bucket."""
    file = root / "vehicles.ndjson"
    root.mkdir(exist_ok=True)
    file.write_bytes(BODY)
    stack = Stack.create(root / "state", Ports.free(), planned())
    stacks = [
        replace(
            stack, workers=number, ports=replace(stack.ports, api=free_ports(), workers=free_ports(2 * WORKERS_MAX))
        )
        for number in NUMBERS
    ]
    with sink() as collector, running(stack, *stack.stores), running(stack, *(api(s, collector) for s in stacks)) as up:
        yield {f"{s.workers} workers": Api(s, up[f"api-{s.workers}"], file) for s in stacks}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    chosen = arguments.parse_args()
    root = Path(tempfile.mkdtemp())
    try:
        with apis(root) as variants:
            runs = interleaved(
                {name: variant.run for name, variant in variants.items()},
                chosen.rounds,
                lambda number, name, figures: say(f"{number + 1}: {name}: {figures}"),
            )
    finally:
        shutil.rmtree(root)
    alone = runs[f"{NUMBERS[0]} workers"]
    for name, figures in runs.items():
        median = medians(figures)
        console.print(
            f"{name}: {median[COST]:.0f} us per request, {ratio(figures, alone, COST):.3f} of one worker's; "
            f"the worker with the least answered {median['least share, %']:.0f} %"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
