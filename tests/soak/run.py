"""The system of a soak, its faults, and its samples."""

import asyncio
import os
import random
import re
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any, Self
from urllib.parse import urlencode
from uuid import uuid4

import httpx
import msgspec
import psutil
import pyarrow.parquet as pq
from pyiceberg.catalog import load_catalog

import nats
from local import servers
from local.builds import build_all
from local.evidence import SOURCES
from local.exporters import Exporters
from local.machine import Deadline
from local.programs import LocalError, NotReady, Process, get_json, http_get
from local.stack import Ports, Stack
from tests.background import InThread
from tests.soak.load import REQUIRED, Account, Load, name_of, number_of
from tests.system.blackbox import System

API, CONSUMER, TABLE, NATS, BUCKET = "api", "consumer", "table", "nats", "seaweedfs"
TARGETS = (API, CONSUMER, TABLE, NATS, BUCKET)
#: Also the collector; what else runs is not a part of the system.
MEASURED = (*TARGETS, "otel-collector")
PAUSE_S = (1.0, 8.0)
SUPERVISE_S = 0.5
#: One small submission per so many seconds is followed until it is stored.
PROBE_S = 1.0
PROBE_POLL_S = 0.1
#: The time from acceptance to the table. Without a commit in the last minute there is no number, and no sample.
QUERYABLE = (
    "histogram_quantile(0.95, sum by (le) "
    '(rate(bronze_table_delivery_duration_seconds_bucket{job="bronze/table"}[1m]))) >= 0'
)
STORED_S_MAX = 120.0
TABLES_S_MAX = 120.0
READERS = 4

Sample = dict[str, Any]
Say = Callable[[str], None]


class Running:
    """Queue, bucket, API, consumer and `bronze table`, with collector and Prometheus for their telemetry; processes
    that end are started again.
    """

    def __init__(self, root: Path, say: Say) -> None:
        exporters = Exporters(traces=("none",), logs=("none",))  # Prometheus alone: no trace store
        self.stack = Stack.create(root, Ports.free(), build_all(say), exporters, fleet=False)
        self.view = root / "view"
        self.view.mkdir(exist_ok=True)
        self.system = System(self.stack, {})
        self.processes: dict[str, Process] = {}
        #: when each process began to run, in the order of their starts
        self.lives: dict[str, list[float]] = defaultdict(list)
        #: processes that ended without a fault
        self.ended: list[str] = []
        self._stop = ExitStack()
        #: Held while a fault happens, and while processes are started.
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        table = self.system.role(TABLE)
        api = self.system.role(API, BRONZE_VIEW_DIR=str(self.view))
        try:
            for programs in (self.stack.servers, (api, self.system.role(CONSUMER), table)):
                for program in programs:
                    log = self.system.log(program.name)
                    self.processes[program.name] = self._stop.enter_context(Process(program, log))
                    self.lives[program.name].append(time.time())
                for program in programs:
                    self.processes[program.name].wait_ready()
        except BaseException:
            self._stop.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes.values():
            process.signal(SIGCONT)
        self._stop.close()

    @property
    def url(self) -> str:
        return self.stack.api_url

    def kill(self, name: str) -> None:
        with self._lock:
            process = self.processes[name]
            process.signal(SIGKILL)
            self._restart(name)

    def pause(self, name: str, seconds: float, over: threading.Event) -> None:
        with self._lock:
            process = self.processes[name]
            process.signal(SIGSTOP)
            over.wait(seconds)
            process.signal(SIGCONT)

    def supervise(self) -> None:
        """Starts what has ended."""
        with self._lock:
            for name, process in self.processes.items():
                if not process.alive():
                    self.ended.append(f"{name} ended by itself, with {process.wait(0)}")
                    self._restart(name)

    def _restart(self, name: str) -> None:
        process, deadline = self.processes[name], Deadline(60)
        while True:
            with suppress(LocalError):  # its port is still taken, or it has ended once more
                process.restart()
                break
            if deadline.passed():
                raise LocalError(f"{name} does not start again")
        self.lives[name].append(time.time())


# --- faults


@dataclass(frozen=True)
class Fault:
    """`pause_s` is 0 for a kill."""

    target: str
    pause_s: float

    def __str__(self) -> str:
        return f"{self.target} paused for {self.pause_s:.1f} s" if self.pause_s else f"{self.target} killed"


def faults(seed: int) -> Iterator[Fault]:
    """Kills and pauses of all targets, in random order, round after round."""
    rng = random.Random(seed)
    while True:
        of_round = [(target, kill) for target in TARGETS for kill in (True, False)]
        for target, kill in rng.sample(of_round, len(of_round)):
            yield Fault(target, 0.0 if kill else rng.uniform(*PAUSE_S))


@dataclass
class Faults(InThread):
    """Causes a fault per interval, and starts again what has ended."""

    running: Running
    seed: int
    every_s: float
    #: what happened, by the time at which it began
    happened: list[tuple[float, Fault]] = field(default_factory=list)
    problem: str = ""

    def _run(self) -> None:
        plan, due = faults(self.seed), time.monotonic() + self.every_s
        try:
            while not self._over.wait(SUPERVISE_S):
                self.running.supervise()
                if self.every_s and time.monotonic() >= due:
                    fault = next(plan)
                    self.happened.append((time.time(), fault))
                    if fault.pause_s:
                        self.running.pause(fault.target, fault.pause_s, self._over)
                    else:
                        self.running.kill(fault.target)
                    due += self.every_s
        except LocalError as error:
            self.problem = str(error)


# --- samples


@dataclass
class Probe(InThread):
    """Sends a small submission each second, and measures until it is stored. Its records are in the account, too."""

    load: Load
    url: str
    #: seconds from the 202 to `stored`
    stored_s: list[float] = field(default_factory=list)

    def _run(self) -> None:
        with httpx.Client(timeout=10, trust_env=False) as http:
            while not self._over.wait(PROBE_S):
                with suppress(httpx.HTTPError):
                    self._measure(http)

    def _measure(self, http: httpx.Client) -> None:
        account = self.load.account
        first = account.begin(1)
        body = b'{"vehicle_id": "%s"}' % name_of(first).encode()
        answer = http.post(
            f"{self.url}/v1/ingest/vehicles",
            content=body,
            headers={"Content-Type": "application/x-ndjson", "Idempotency-Key": uuid4().hex},
        )
        if answer.status_code != httpx.codes.ACCEPTED:
            return
        accepted = time.monotonic()
        account.accept(first, 1)
        url = f"{self.url}/v1/submissions/{answer.json()['submission_id']}"
        while time.monotonic() - accepted < STORED_S_MAX and not self._over.wait(PROBE_POLL_S):
            status = http.get(url)
            if status.status_code == httpx.codes.OK and status.json()["status"] == "stored":
                self.stored_s.append(time.monotonic() - accepted)
                return

    def taken(self) -> list[float]:
        taken, self.stored_s = self.stored_s, []
        return taken


def sample(running: Running, load: Load, probe: Probe, began: float) -> Sample:
    """What is measured at one time. What cannot be read now, because of a fault, is left out."""
    took: Sample = {"at": round(time.time() - began, 1)}
    for name in MEASURED:
        process = running.processes[name]
        with suppress(psutil.Error):
            of_all = [one := psutil.Process(process.pid), *one.children(recursive=True)]
            took[f"{name} memory, MB"] = round(sum(of.memory_info().rss for of in of_all) / 1e6, 2)
            took[f"{name} file handles"] = sum(of.num_fds() for of in of_all)
            took[f"{name} life"] = len(running.lives[name])
    with suppress(nats.errors.Error, OSError, TimeoutError):
        took |= asyncio.run(_queue(running.stack))
    with suppress(NotReady):
        text = http_get(running.stack.ports.api, "/metrics").decode()
        entries = re.findall(r"^bronze_ledger_objects\{.*\} (\S+)", text, re.MULTILINE)
        took["catalog entries"] = sum(map(float, entries))
    took["queue disk, MB"] = round(disk_bytes(running.stack.root / "nats") / 1e6, 3)
    took["view disk, MB"] = round(disk_bytes(running.view) / 1e6, 3)
    for name, seconds in (("accept", load.latencies()), ("store", probe.taken())):
        if len(seconds) > 1:
            cuts = statistics.quantiles(seconds, n=100, method="inclusive")
            took |= {f"{name} p50, s": round(cuts[49], 4), f"{name} p99, s": round(cuts[98], 4)}
    with suppress(NotReady):
        asked = get_json(running.stack.ports.prometheus, f"/api/v1/query?{urlencode({'query': QUERYABLE})}")
        for one in asked["data"]["result"]:
            took["queryable p95, s"] = round(float(one["value"][1]), 4)
    took["submissions"] = load.account.submissions
    return took


async def _queue(stack: Stack) -> Sample:
    """The messages of the lanes, and the bytes of lanes and catalog as the server counts them."""
    client = await nats.connect(**stack.queue_options, connect_timeout=2, max_reconnect_attempts=1)
    try:
        streams = await client.jetstream().streams_info()
    finally:
        await client.close()
    lanes = [one for one in streams if any(subject.startswith("bronze.") for subject in one.config.subjects or ())]
    catalog = [one for one in streams if "catalog.>" in (one.config.subjects or ())]
    return {
        "queue messages": sum(one.state.messages for one in lanes),
        "queue lanes, MB": round(sum(one.state.bytes for one in lanes) / 1e6, 3),
        "queue catalog, MB": round(sum(one.state.bytes for one in catalog) / 1e6, 3),
    }


def disk_bytes(folder: Path) -> int:
    """What the files of a folder take on the disk."""
    size = 0
    for at, _, files in os.walk(folder):
        for file in files:
            with suppress(FileNotFoundError):
                size += (Path(at) / file).stat().st_blocks * 512
    return size


# --- the end


def settle(system: System, account: Account) -> None:
    """Returns when all that was accepted is stored: a lane is in order, so the last submission of a source tells."""
    for source in SOURCES:
        first = account.begin(1)
        answer = system.post(source, msgspec.json.encode({"vehicle_id": name_of(first), **REQUIRED[source]}))
        assert answer.status_code == httpx.codes.ACCEPTED, answer.text
        account.accept(first, 1)
        system.stored(answer.json()["submission_id"])


def stored(system: System, records: int) -> tuple[bytearray, Counter[str], int]:
    """How often each record is in an object (at most 255 times), the rows by source, and the number of objects."""
    found, rows = bytearray(records), Counter[str]()
    pages = system.s3.get_paginator("list_objects_v2").paginate(Bucket=system.bucket, Prefix="bronze/source=")
    keys = [item["Key"] for page in pages for item in page.get("Contents", ())]

    def names(key: str) -> tuple[str, list[str]]:
        table = pq.ParquetFile(BytesIO(system.body(key))).read(["vehicle_id"])
        return key.split("/")[1].partition("=")[2], table.column(0).to_pylist()

    with ThreadPoolExecutor(READERS) as readers:
        for source, there in readers.map(names, keys):
            rows[source] += len(there)
            for name in there:
                number = number_of(name)
                found[number] = min(255, found[number] + 1)
    return found, rows, len(keys)


def compare(account: Account, found: Sequence[int]) -> dict[str, int]:
    """Accepted records, those of them that are lost, records that are stored several times, and those that nobody got
    an answer for.
    """
    pairs = list(zip(account.accepted, found, strict=True))
    return {
        "accepted": sum(account.accepted),
        "lost": sum(1 for accepted, times in pairs if accepted and not times),
        "doubled": sum(1 for _, times in pairs if times > 1),
        "without an answer": sum(1 for accepted, _ in pairs if not accepted),
    }


def table_rows(running: Running, expected: Counter[str]) -> Counter[str]:
    """The rows of each table, by source, once they are those of the bucket, or after a deadline."""
    account, deadline = running.stack.account, Deadline(TABLES_S_MAX)
    credentials = {"s3.access-key-id": account.access_key, "s3.secret-access-key": account.secret_key}
    catalog = load_catalog("soak", **servers.tables_catalog(account), **credentials)
    while True:
        rows = Counter({name[-1]: catalog.load_table(name).scan().count() for name in catalog.list_tables("bronze")})
        if rows == expected or deadline.passed():
            return rows
        time.sleep(1)
