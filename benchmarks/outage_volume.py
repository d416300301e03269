"""An hour's telemetry through an outage, by volume: `python -m benchmarks.outage_volume`.

First what a submission makes is recorded, from the real roles. Then the spans of an hour, made from those with ids of
their own, are pushed into a collector whose receiver is away, as fast as it takes them; in the middle it is killed. The
receiver returns, and has to get every span that was acknowledged.
"""

import argparse
import http.client
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from benchmarks.stand import console, keep, memory_bytes, running, say, stack
from local.exporters import SIGNALS, Exporters
from local.otlp import Receiver, Request
from local.programs import LOOPBACK, Process
from local.servers import queues
from local.stack import Stack, collector_state

SUBMISSIONS_PER_S = 50
HOUR_S = 3600
FLUSH_AGES_S = (1, 15)
SENDERS = 4
RETRY_S = 0.2
STALLED_S = 60
COMPACTION_S = 15
MB = 1_000_000


# --- what a submission makes


@dataclass(frozen=True)
class Recorded:
    """The requests of API, consumer and publisher while these sent, and how many bytes they are by signal."""

    seconds: float
    submissions: int
    requests: Sequence[Request]

    def bytes(self, signal: str) -> int:
        return sum(request.message.ByteSize() for request in self.requests if request.path.endswith(signal))

    def bytes_per_hour(self, signal: str) -> float:
        """At `SUBMISSIONS_PER_S`. Spans and logs are by submission, metrics are by time."""
        if signal == "metrics":
            return self.bytes(signal) / self.seconds * HOUR_S
        return self.bytes(signal) / self.submissions * SUBMISSIONS_PER_S * HOUR_S


def record(system: Stack, flush_age_s: float, for_s: float) -> Recorded:
    """What the roles send to a collector while a publisher sends as fast as it can, one submission after the other."""
    with Receiver() as receiver:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "BRONZE_FLUSH_AGE_S": f"{flush_age_s:g}"}
        simulate = replace(system.simulate, command=(*system.simulate.command, "--interval-s", "0.005"))
        roles = [replace(role, env={**role.env, **env}) for role in (*system.roles, simulate)]
        with running(system, *roles):
            began = time.monotonic()
            time.sleep(for_s)
            seconds = time.monotonic() - began
        servers = [span for _, span in receiver.spans if span.kind == span.SPAN_KIND_SERVER]
    return Recorded(seconds, len(servers), receiver.requests)


# --- an hour of it


class Ids(list[Request]):
    """Keeps the ids of the spans that come, and nothing else: an hour would not fit into memory."""

    def __init__(self) -> None:
        super().__init__()
        self.distinct: set[bytes] = set()
        self.spans = 0
        self._lock = threading.Lock()

    def append(self, request: Request) -> None:
        ids = [span.span_id for span in spans_of(request.message)]
        with self._lock:
            self.distinct.update(ids)
            self.spans += len(ids)


def spans_of(message: ExportTraceServiceRequest) -> list[Any]:
    return [span for resource in message.resource_spans for scope in resource.scope_spans for span in scope.spans]


@dataclass
class Push:
    """Sends the recorded spans again and again, each time with ids of their own, until there are enough bytes. What
    is not acknowledged is sent again, as the SDK does it, but without an end.
    """

    port: int
    token: str
    templates: Sequence[bytes]
    bytes_wanted: int
    on_progress: Callable[[int], object]
    bytes_taken: int = 0
    acknowledged: set[bytes] = field(default_factory=set)
    refused: int = 0
    unanswered: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> None:
        with ThreadPoolExecutor(SENDERS) as senders:
            for done in [senders.submit(self._send_all, number) for number in range(SENDERS)]:
                done.result()

    def _send_all(self, number: int) -> None:
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=30)
        turn = number
        while self.bytes_taken < self.bytes_wanted:
            message = ExportTraceServiceRequest.FromString(self.templates[turn % len(self.templates)])
            turn += SENDERS
            ids = []
            for span in spans_of(message):
                span.trace_id, span.span_id = os.urandom(16), os.urandom(8)
                ids.append(span.span_id)
            body = message.SerializeToString()
            while not self._taken(connection, body):
                time.sleep(RETRY_S)
            with self._lock:
                self.acknowledged.update(ids)
                self.bytes_taken += len(body)
            self.on_progress(len(body))
        connection.close()

    def _taken(self, connection: http.client.HTTPConnection, body: bytes) -> bool:
        try:
            headers = {"Content-Type": "application/x-protobuf", "Authorization": f"Bearer {self.token}"}
            connection.request("POST", "/v1/traces", body, headers)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            with self._lock:
                self.unanswered += 1
            return False
        if answer.status != 200:
            with self._lock:
                self.refused += 1
        return answer.status == 200


@contextmanager
def watched(process: Process) -> Iterator[list[int]]:
    """The memory of a process over time, in bytes; of a killed one there is none."""
    seen = [memory_bytes(process)]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            with suppress(OSError, ValueError):
                seen.append(memory_bytes(process))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield seen
    finally:
        over.set()
        watching.join()


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=console
    )


def through_an_outage(
    system: Stack, templates: Sequence[bytes], bytes_wanted: int, memory_limit_mib: int | None
) -> Mapping[str, float]:
    """Figures by their names. `lost` has to be 0."""
    ids = Ids()
    receiver = Receiver(requests=ids)
    collector = replace(system.collector, env={**system.collector.env, "OTLP_TRACES_ENDPOINT": receiver.url})
    if memory_limit_mib:
        limits = {"limit_mib": memory_limit_mib, "spike_limit_mib": memory_limit_mib // 4}
        added = (("--config", f"yaml:processors::memory_limiter::{k}: {v}") for k, v in limits.items())
        collector = replace(collector, command=(*collector.command, *chain.from_iterable(added)))
    folder = queues(collector_state(system.root))
    with running(system, collector) as processes, watched(processes[collector.name]) as memory:
        process = processes[collector.name]
        began = time.monotonic()
        with bar() as shown, ThreadPoolExecutor(1) as pushing:
            task = shown.add_task("pushed, the receiver away", total=bytes_wanted)
            push = Push(
                collector.ports["otlp"],
                collector.env["COLLECTOR_OTLP_TOKEN"],
                templates,
                bytes_wanted,
                lambda n: shown.advance(task, n),
            )
            done = pushing.submit(push.run)
            while push.bytes_taken < bytes_wanted / 2 and not done.done():
                time.sleep(0.05)
            process.signal(signal.SIGKILL)
            process.restart()
            done.result()
        push_s = time.monotonic() - began
        queue_bytes = folder_bytes(folder)

        began = moved_at = time.monotonic()
        with bar() as shown, receiver:
            task = shown.add_task("drained, the receiver back", total=push.bytes_taken)
            while (came := len(ids.distinct)) < len(push.acknowledged) and time.monotonic() < moved_at + STALLED_S:
                time.sleep(0.2)
                if len(ids.distinct) > came:
                    moved_at = time.monotonic()
                shown.update(task, completed=push.bytes_taken * came / len(push.acknowledged))
        drain_s = time.monotonic() - began
        compacted_at_the_latest = time.monotonic() + COMPACTION_S
        while folder_bytes(folder) > queue_bytes / 10 and time.monotonic() < compacted_at_the_latest:
            time.sleep(0.2)
    return {
        "bytes": push.bytes_taken,
        "spans_acknowledged": len(push.acknowledged),
        "spans_received": len(ids.distinct & push.acknowledged),
        "lost": len(push.acknowledged - ids.distinct),
        "received_again": ids.spans - len(ids.distinct),
        "requests_refused": push.refused,
        "requests_unanswered": push.unanswered,
        "push_s": push_s,
        "drain_s": drain_s,
        "queue_file_bytes": queue_bytes,
        "queue_file_bytes_after": folder_bytes(folder),
        "collector_memory_bytes_max": max(memory),
    }


def show_recorded(by_age: Mapping[int, Recorded]) -> None:
    table = Table("flush age", "submissions/s", "signal", "B/submission", f"MB/h at {SUBMISSIONS_PER_S}/s", box=None)
    for age_s, recorded in by_age.items():
        rate = recorded.submissions / recorded.seconds
        for kind in SIGNALS:
            each = recorded.bytes(kind) / recorded.submissions
            hour = recorded.bytes_per_hour(kind) / MB
            table.add_row(f"{age_s} s", f"{rate:.0f}", kind, f"{each:,.0f}", f"{hour:,.0f}")
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outage_volume", description=__doc__)
    parser.add_argument(
        "--record-s", type=float, default=60, help="how long to record for each flush age (%(default)g)"
    )
    parser.add_argument(
        "--hours", type=float, default=1, help="how much to push, as far as the queue goes (%(default)g)"
    )
    parser.add_argument("--memory-limit-mib", type=int, help="another limit, to see the collector refuse")
    args = parser.parse_args(arguments)

    system = stack("outage-volume", Exporters(metrics=("none",), traces=("otlp-http",), logs=("none",)))
    by_age = {}
    with running(system, *(server for server in system.servers if server.name in {"nats", "seaweedfs"})):
        for age_s in FLUSH_AGES_S:
            say(f"recording what a submission makes, with a flush age of {age_s} s, for {args.record_s:g} s")
            by_age[age_s] = record(system, age_s, args.record_s)
    show_recorded(by_age)

    worst = max(by_age.values(), key=lambda recorded: recorded.bytes_per_hour("traces"))
    templates = [r.message.SerializeToString() for r in worst.requests if r.path.endswith("traces")]
    figures = through_an_outage(
        system, templates, int(worst.bytes_per_hour("traces") * args.hours), args.memory_limit_mib
    )
    table = Table(
        "figure", "value", title=f"{args.hours:g} h of spans through an outage, a SIGKILL in its middle", box=None
    )
    for name, value in figures.items():
        table.add_row(name, f"{value / MB:,.1f} MB" if "bytes" in name else f"{value:,.0f}")
    console.print(table)
    recorded = {
        f"flush_age_{age_s}_s": {f"{signal}_bytes_per_hour": round(r.bytes_per_hour(signal)) for signal in SIGNALS}
        for age_s, r in by_age.items()
    }
    keep("outage_volume", {"hours": args.hours, **recorded, "outage": figures})
    return 1 if figures["lost"] else 0


if __name__ == "__main__":
    sys.exit(main())
