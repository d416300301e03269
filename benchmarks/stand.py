"""What the benchmarks share: a system of their own on free ports, and what its processes use.

Figures of different machines, or of a busy one, compare with nothing: read the ratios within one run.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from local.builds import REPOSITORY, build_all
from local.exporters import Exporters
from local.programs import Process, Program
from local.stack import Ports, Stack

STATE = REPOSITORY / ".local" / "bench"
RESULTS = REPOSITORY / ".local" / "bench.json"

console = Console(highlight=False)
_began = time.monotonic()


def say(text: str) -> None:
    """A step of what happens, with the seconds since the benchmark began."""
    console.print(f"[dim]{time.monotonic() - _began:6.1f} s[/]  {escape(text)}", soft_wrap=True)


def stack(name: str, exporters: Exporters) -> Stack:
    """A system with fresh state, of which nothing runs yet."""
    root = STATE / name
    shutil.rmtree(root, ignore_errors=True)
    return Stack.create(root, Ports.free(), build_all(say), exporters)


@contextmanager
def running(stack: Stack, *programs: Program) -> Iterator[Mapping[str, Process]]:
    """The programs by their names, started at once and ready; stopped in reverse."""
    with ExitStack() as stopping:
        processes = {
            program.name: stopping.enter_context(Process(program, stack.root / "logs" / f"{program.name}.log"))
            for program in programs
        }
        for process in processes.values():
            process.wait_ready()
        yield processes


def cpu_s(process: Process) -> float:
    """The CPU time that it has taken so far, of user and system, in seconds."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_bytes(process: Process) -> int:
    """The memory that is its own now. What it maps of files, as the collector its queues, the system can take back."""
    status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in status if line.startswith("RssAnon:"))
    return int(kib) * 1024


def keep(benchmark: str, figures: Mapping[str, Any]) -> None:
    """Writes a benchmark's figures beside those of the others, with the machine that they are from."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    machine = {"cpus": os.cpu_count(), "load_average": [round(load, 1) for load in os.getloadavg()]}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**known, benchmark: {"machine": machine, **figures}}, indent=2) + "\n")
    say(f"the figures are in {os.path.relpath(RESULTS)}")
