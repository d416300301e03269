"""The incidents: each is caused in a whole system, and ends."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from prometheus.verdict import Part
from tests.drill.site import Site
from tests.incidents.senders import Attempt, Sender, Submission, repeated

OUTAGE_S = 180.0
FREEZES, FREEZE_S, FREEZE_EVERY_S = 5, 5.0, 45.0
CREEP_S, CREEP_FROM_S, CREEP_TO_S, CREEP_STEP_S = 240.0, 0.05, 3.0, 5.0
QUEUE_BYTES = 4 * 2**20

INGEST, QUEUE, UPLOAD, TELEMETRY = Part


@dataclass
class Scene:
    """A running system, what its clients see, and when which fault was there, in seconds since 1970."""

    site: Site
    attempts: list[Attempt] = field(default_factory=list)
    faults: list[tuple[str, float, float]] = field(default_factory=list)
    _never: threading.Event = field(default_factory=threading.Event)

    def wait(self, seconds: float) -> None:
        self._never.wait(seconds)

    @contextmanager
    def fault(self, what: str) -> Iterator[None]:
        began = time.time()
        try:
            yield
        finally:
            self.faults.append((what, began, time.time()))

    @contextmanager
    def killed(self, part: str) -> Iterator[None]:
        """In the context, a part does not run."""
        process = self.site.parts[part]
        with self.fault(part):
            process.signal(signal.SIGKILL)
            yield
            process.restart()

    @contextmanager
    def frozen(self, part: str) -> Iterator[None]:
        process = self.site.parts[part]
        with self.fault(part):
            process.signal(signal.SIGSTOP)
            try:
                yield
            finally:
                process.signal(signal.SIGCONT)

    @contextmanager
    def sending(self, submissions: Iterator[Submission], interval_s: float) -> Iterator[None]:
        sender = Sender(self.site.system.url, submissions, interval_s, self.attempts)
        with self.fault("sender"), sender:
            yield


@dataclass(frozen=True, kw_only=True)
class Incident:
    """`red` are the parts whose tiles have to turn red. Readings decide about the others. At the end of `rest`, all
    numbers are compared.
    """

    name: str
    fault: str
    happen: Callable[[Scene], None]
    red: frozenset[Part] = frozenset()
    env: Mapping[str, str] = field(default_factory=dict)


def _bucket_freezes(scene: Scene) -> None:
    for _ in range(FREEZES):
        with scene.frozen("seaweedfs"):
            scene.wait(FREEZE_S)
        scene.wait(FREEZE_EVERY_S - FREEZE_S)


def _without(part: str) -> Callable[[Scene], None]:
    def happen(scene: Scene) -> None:
        with scene.killed(part):
            scene.wait(OUTAGE_S)

    return happen


def _queue_full(scene: Scene) -> None:
    def body(number: int) -> bytes:
        return json.dumps({"vehicle_id": f"BULK-{number}", "undeclared": os.urandom(96 * 1024).hex()}).encode()

    with scene.sending(repeated("vehicles", body), 0.5):
        scene.wait(OUTAGE_S)


def _rubbish(scene: Scene) -> None:
    bodies = (b"no JSON", b'{"vehicle_id": 7}', b'{"seats": "many"}')
    with scene.sending(repeated("vehicles", lambda number: bodies[number % len(bodies)]), 0.2):
        scene.wait(OUTAGE_S)


def _collector_frozen(scene: Scene) -> None:
    with scene.frozen("otel-collector"):
        scene.wait(OUTAGE_S)


def _creeping(scene: Scene) -> None:
    bucket = scene.site.bucket
    with scene.fault("slow"):
        for step in range(round(CREEP_S / CREEP_STEP_S)):
            bucket.delay_s = CREEP_FROM_S + (CREEP_TO_S - CREEP_FROM_S) * step * CREEP_STEP_S / CREEP_S
            scene.wait(CREEP_STEP_S)
        scene.wait(60)
        bucket.delay_s = 0


def _rest(scene: Scene) -> None:
    scene.wait(OUTAGE_S)


REST = Incident(name="rest", fault="none: the numbers are compared", happen=_rest)
INCIDENTS: Sequence[Incident] = (
    REST,
    Incident(
        name="bucket-freezes",
        fault=f"SeaweedFS is suspended for {FREEZE_S:g} s, {FREEZES} times, every {FREEZE_EVERY_S:g} s",
        happen=_bucket_freezes,
        red=frozenset({UPLOAD}),
    ),
    Incident(
        name="bucket-away",
        fault=f"SeaweedFS is killed, and started after {OUTAGE_S:g} s",
        happen=_without("seaweedfs"),
        red=frozenset({QUEUE, UPLOAD}),
    ),
    Incident(
        name="consumer-dead",
        fault=f"the only consumer is killed, and started after {OUTAGE_S:g} s",
        happen=_without("consumer"),
        red=frozenset({QUEUE, UPLOAD}),
    ),
    Incident(
        name="api-dead",
        fault=f"the only API is killed, and started after {OUTAGE_S:g} s",
        happen=_without("api"),
        red=frozenset({INGEST}),
    ),
    Incident(
        name="queue-full",
        fault=f"a sender sends more than the queue may hold (`BRONZE_QUEUE_BYTES_MAX` is {QUEUE_BYTES >> 20} MiB)",
        happen=_queue_full,
        env={"BRONZE_QUEUE_BYTES_MAX": str(QUEUE_BYTES)},
        red=frozenset({INGEST, QUEUE}),
    ),
    Incident(
        name="rubbish",
        fault="a sender sends five bodies per second that are no JSON or do not fit their source",
        happen=_rubbish,
    ),
    Incident(
        name="collector-frozen",
        fault=f"the collector is suspended for {OUTAGE_S:g} s",
        happen=_collector_frozen,
        red=frozenset({TELEMETRY}),
    ),
    Incident(
        name="latency-creeps",
        fault=f"each PutObject takes longer: from {CREEP_FROM_S * 1000:g} ms to {CREEP_TO_S:g} s in "
        f"{CREEP_S / 60:g} minutes, and so for another",
        happen=_creeping,
        red=frozenset({UPLOAD}),
    ),
)
