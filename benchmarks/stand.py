"""What the benchmarks share: a system of their own on free ports, and what its processes use.

Figures of different machines, or of a busy one, compare with nothing: read the ratios within one run.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import DeliverPolicy
from rich.console import Console
from rich.markup import escape

import nats
from benchmarks.load import Load, Sent
from benchmarks.rounds import Figures
from local.builds import REPOSITORY, build_all
from local.exporters import Exporters
from local.programs import NotReady, Process, Program, free_ports, get_json
from local.stack import Ports, Stack

STATE = REPOSITORY / ".local" / "bench"
#: Where the sample lies that is sent.
SAMPLE = STATE / "sample"
READABLE_S_MAX = 120.0
#: A process is at rest if it takes less than this share of a core for so long. Telemetry leaves it every second.
REST_SHARE, REST_S, REST_POLL_S = 0.05, 3.0, 1.0
REST_S_MAX = 120.0
#: A lane's bound here: runs follow each other within the purge's grace, so more waits in the queue than in one run.
QUEUE_BYTES_MAX = 8 * 2**30
RESULTS = REPOSITORY / ".local" / "bench.json"

console = Console(highlight=False)
_began = time.monotonic()


def say(text: str) -> None:
    """A step of what happens, with the seconds since the benchmark began."""
    console.print(f"[dim]{time.monotonic() - _began:6.1f} s[/]  {escape(text)}", soft_wrap=True)


def stack(name: str, exporters: Exporters, nats_servers: int = 1) -> Stack:
    """A system with fresh state, of which nothing runs yet."""
    root = STATE / name
    shutil.rmtree(root, ignore_errors=True)
    return Stack.create(root, Ports.free(), build_all(say), exporters, nats_servers=nats_servers)


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


# --- the system as `make up` starts it


@dataclass(frozen=True)
class Options:
    """How much of it: how often each variant runs, and whether the whole is only to be tried."""

    repeats: int = 5
    quick: bool = False


@dataclass(frozen=True)
class System:
    """The whole system as `make up` starts it, without the simulated fleet; and what a benchmark adds to it."""

    stack: Stack
    processes: dict[str, Process]
    feed: "Feed"
    _stopping: ExitStack

    def add(self, *programs: Program) -> None:
        """Start programs that run as long as the system."""
        self.processes.update(self._stopping.enter_context(running(self.stack, *programs)))

    def api(self, name: str, env: Mapping[str, str]) -> Program:
        """One more API process, on a port of its own."""
        role, port, instance = self.stack.roles[0], free_ports(), self.stack.instance(name)
        return replace(
            role,
            name=name,
            ports={"http": port},
            ready=answers(port, "/readyz", instance),
            env={
                **role.env,
                "BRONZE_API_PORT": str(port),
                "OTEL_RESOURCE_ATTRIBUTES": f"service.instance.id={instance}",
                **env,
            },
        )

    def compared(self, module: str, name: str, *arguments: str) -> Program:
        """A program of this folder that the service is compared with."""
        port, instance = free_ports(), self.stack.instance(name)
        return Program(
            name=name,
            command=(sys.executable, "-m", f"benchmarks.{module}", str(port), *arguments, instance),
            ports={"http": port},
            ready=answers(port, "/livez", instance),
            env={**self.stack.client_env, **self.stack.queue_env("admin")},
        )

    def port(self, name: str) -> int:
        return self.processes[name].program.ports["http"]

    @contextmanager
    def cpu(self) -> Iterator[dict[str, float]]:
        """The CPU seconds that each process takes meanwhile and until it is at rest, by its name; there at the end.

        So what a variant leaves behind, such as traces in a queue, is counted to it and does not disturb the next one.
        """
        before = self._cpu_s()
        taken: dict[str, float] = {}
        yield taken
        taken |= {f"CPU {name}, s": after - before[name] for name, after in self._at_rest().items()}

    def _cpu_s(self) -> dict[str, float]:
        return {name: cpu_s(process) for name, process in self.processes.items()}

    def _at_rest(self) -> dict[str, float]:
        """Waits until no process has anything to do; what each had taken when that began. Raises `TimeoutError`."""
        deadline = time.monotonic() + REST_S_MAX
        began_s, last, since = time.monotonic(), self._cpu_s(), self._cpu_s()
        while time.monotonic() - began_s < REST_S:
            time.sleep(REST_POLL_S)
            now = self._cpu_s()
            busy = {name: now[name] - last[name] for name in now if now[name] - last[name] > REST_SHARE * REST_POLL_S}
            if busy:
                began_s, since = time.monotonic(), now
                if began_s > deadline:
                    raise TimeoutError(f"not at rest after {REST_S_MAX:g} s, CPU in the last {REST_POLL_S:g} s: {busy}")
            last = now
        return since


@contextmanager
def system(
    name: str,
    env: Mapping[str, str] | None = None,
    exporters: Exporters = Exporters(),  # noqa: B008  frozen
    *,
    nats_servers: int = 1,
) -> Iterator[System]:
    """The system with fresh state; `env` is added to the roles' own."""
    made = stack(name, exporters, nats_servers)
    added = {"BRONZE_QUEUE_BYTES_MAX": str(QUEUE_BYTES_MAX), **(env or {})}
    with ExitStack() as stopping:
        say("starting the system")
        processes = dict(stopping.enter_context(running(made, *made.servers)))
        roles = (replace(role, env={**role.env, **added}) for role in made.roles)
        processes.update(stopping.enter_context(running(made, *roles)))
        feed = stopping.enter_context(Feed(made.queue_options))
        yield System(made, processes, feed, stopping)


def answers(port: int, path: str, instance: str) -> Any:
    """What is ready once this instance answers on the port."""

    def ready() -> None:
        found = get_json(port, path).get("service_instance_id")
        if found != instance:
            raise NotReady(f"port {port} is the instance {found!r}, not {instance!r}")

    return ready


@dataclass(frozen=True)
class Heard:
    """A catalog entry, and when it was heard, in seconds of the machine's monotonic clock."""

    at: float
    entry: Mapping[str, Any]


class Feed:
    """The catalog's entries as they are appended: an object is in the bucket when its entry is heard."""

    def __init__(self, queue: Mapping[str, str]) -> None:
        self._queue = queue
        self._heard: list[Heard] = []
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._client = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(self, *of: object) -> None:
        asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> Client:
        client = await nats.connect(**self._queue)

        async def hear(message: Msg) -> None:
            heard = Heard(time.monotonic(), msgspec.json.decode(message.data))
            with self._changed:
                self._heard.append(heard)
                self._changed.notify_all()

        await client.jetstream().subscribe(
            "catalog.>", ordered_consumer=True, deliver_policy=DeliverPolicy.NEW, cb=hear
        )
        return client

    @property
    def mark(self) -> int:
        """Where the feed stands; what is heard from now on is after it."""
        return len(self._heard)

    def until(self, mark: int, records: int, timeout_s: float = READABLE_S_MAX) -> Sequence[Heard]:
        """The entries after a mark, once they hold so many records. Raises `TimeoutError`."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while (there := self._records(mark)) < records:
                if not self._changed.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                    raise TimeoutError(f"{there:,} of {records:,} records are readable after {timeout_s:g} s")
            if there > records:
                raise RuntimeError(f"{there:,} records are readable, and {records:,} were sent")
            return self._heard[mark:]

    def _records(self, mark: int) -> int:
        return sum(heard.entry["records"] for heard in self._heard[mark:])


def offer(load: Load) -> Sent:
    """Has a process of its own send it. Raises `RuntimeError` if a request is refused."""
    done = subprocess.run(
        (sys.executable, "-m", "benchmarks.load"), input=msgspec.json.encode(load), capture_output=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr.decode())
    return msgspec.json.decode(done.stdout, type=Sent)


def one_line(number: int, repeats: int, variant: str, figures: Figures, *shown: str) -> None:
    """Says what a run showed."""
    figures_text = ", ".join(f"{name} {figures[name]:,.4g}" for name in shown)
    say(f"{number + 1}/{repeats} {variant}: {figures_text}")


# --- what a process takes


def cpu_s(process: Process) -> float:
    """The CPU time that it has taken so far, of user and system, in seconds."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_bytes(process: Process) -> int:
    """The memory that is its own now. What it maps of files, as the collector its queues, the system can take back."""
    status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in status if line.startswith("RssAnon:"))
    return int(kib) * 1024


def forget_peak(process: Process) -> None:
    """Resets the peak, which is counted from now on (proc(5): clear_refs)."""
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def peak_bytes(process: Process) -> int:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kib) * 1024


def keep(benchmark: str, figures: Mapping[str, Any]) -> None:
    """Writes a benchmark's figures beside those of the others, with the machine that they are from."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    machine = {"cpus": os.cpu_count(), "load_average": [round(load, 1) for load in os.getloadavg()]}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**known, benchmark: {"machine": machine, **figures}}, indent=2) + "\n")
    say(f"the figures are in {os.path.relpath(RESULTS)}")
