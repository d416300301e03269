"""The CPU that API and consumer take to start, and at rest: `python -m tests.start_cost`.

They run on real servers, with telemetry, which another process takes and forgets. At rest `/metrics` is read as often
as Prometheus does. `--other FOLDER` measures the code of another checkout (its folder `service`) in turn with this one.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.rounds import Figures, interleaved, medians
from benchmarks.stand import console, running, say
from local.builds import planned
from local.programs import Program, http_get
from local.stack import Ports, Stack
from tests.request_cost import sink
from tests.worker_cost import cpu_s

ROUNDS = 10
REST_S = 30.0
#: After a start, what it leaves behind is over.
SETTLE_S = 10.0
SCRAPE_S = 5.0
START, WALL, REST = "CPU until ready, s", "until ready, s", "CPU at rest, % of a core"


def start(stack: Stack, role: Program, rest_s: float) -> Figures:
    """Starts a role; what it takes until it is ready and, if `rest_s` is not 0, afterwards."""
    began_s = time.monotonic()
    with running(stack, role) as processes:
        (process,) = processes.values()
        figures = {START: cpu_s(process), WALL: time.monotonic() - began_s}
        if rest_s:
            time.sleep(SETTLE_S)
            before_s, since_s = cpu_s(process), time.monotonic()
            while time.monotonic() - since_s < rest_s:
                http_get(next(iter(role.ports.values())), "/metrics")
                time.sleep(SCRAPE_S)
            figures[REST] = (cpu_s(process) - before_s) / (time.monotonic() - since_s) * 100
    return figures


@contextmanager
def variants(root: Path, other: Path | None) -> Iterator[Mapping[str, tuple[Stack, Program]]]:
    """The roles of this checkout, and of the other one if there is one; queue and bucket run."""
    stack = Stack.create(root / "state", Ports.free(), planned())
    folders = {"": None} if other is None else {"": None, ", other": other}
    with sink() as collector, running(stack, *stack.stores):
        yield {
            f"{role.name}{suffix}": (
                stack,
                replace(
                    role,
                    env={
                        **role.env,
                        "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
                        **({"PYTHONPATH": str(folder)} if folder else {}),
                    },
                ),
            )
            for role in stack.roles
            for suffix, folder in folders.items()
        }


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    arguments.add_argument("--rest-s", type=float, default=REST_S, help="0: only starts")
    arguments.add_argument("--other", type=Path, metavar="FOLDER")
    chosen = arguments.parse_args()
    root = Path(tempfile.mkdtemp())
    try:
        with variants(root, chosen.other and chosen.other.resolve()) as roles:
            runs = interleaved(
                {name: partial(start, stack, role, chosen.rest_s) for name, (stack, role) in roles.items()},
                chosen.rounds,
                lambda number, name, figures: say(f"{number + 1}: {name}: {figures}"),
            )
    finally:
        shutil.rmtree(root)
    for name, found in runs.items():
        console.print(f"{name}: " + ", ".join(f"{figure} {value:.2f}" for figure, value in medians(found).items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
