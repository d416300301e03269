"""The load of a soak, with its own account of what was accepted, which needs one byte per record."""

import asyncio
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import httpx
import msgspec

from local.evidence import SOURCES

TIMEOUT_S = 10.0
RETRY_S = 0.5
#: What a small submission has at most, and what a large one has: about 2 kB, and 2 MB.
SMALL_RECORDS_MAX = 20
LARGE_RECORDS, LARGE_BYTES = 20, 100_000
LARGE_SHARE = 0.01
#: More submissions than these do not wait for an answer: during an outage the load waits, too.
UNANSWERED_MAX = 64
#: The load makes up for so much time in which it sent nothing.
BEHIND_S_MAX = 0.5
#: For so long after the end, submissions without an answer are sent again; then nobody knows of them.
GIVE_UP_S = 60.0
RETRIABLE = frozenset({429, 503})

#: What a record of a source needs besides its name.
REQUIRED: Mapping[str, Mapping[str, object]] = {
    "vehicles": {},
    "status": {
        "operator": "soak",
        "run_number": 1,
        "origin": "A",
        "destination": "B",
        "scheduled_at": "2026-11-30T08:00:00Z",
    },
    "results": {"arrived_at": "2026-11-30T08:00:00Z"},
    "failures": {"reason": "late", "failed_on": "2026-11-30"},
}


@dataclass
class Account:
    """What was sent: record `n` is named `soak-n`. `accepted[n]` is 1 once a 202 promised it."""

    accepted: bytearray = field(default_factory=bytearray)
    submissions: int = 0
    #: answers by status, 0: none
    statuses: Counter[int] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, count: int) -> int:
        """The number of the first of so many new records."""
        with self._lock:
            first = len(self.accepted)
            self.accepted.extend(bytes(count))
            return first

    def accept(self, first: int, count: int) -> None:
        with self._lock:
            self.accepted[first : first + count] = b"\1" * count
            self.submissions += 1


def name_of(number: int) -> str:
    return f"soak-{number}"


def number_of(name: str) -> int:
    return int(name.removeprefix("soak-"))


class Load:
    """Sends in a thread of its own. Each submission has a key, and is sent until it has a 202."""

    def __init__(self, url: str, seed: int) -> None:
        self.account = Account()
        self._url = url
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._give_up = math.inf
        self._latencies: list[float] = []
        self._lock = threading.Lock()

    @contextmanager
    def running(self, rate: float) -> Iterator[None]:
        """Sends in the context. At its end, what has no answer yet is sent for some time more."""
        thread = self._started(lambda client: self._steady(client, rate))
        try:
            yield
        finally:
            self._give_up = time.monotonic() + GIVE_UP_S
            self._over.set()
            thread.join()

    def calibrate(self, seconds: float, connections: int = 8) -> float:
        """The submissions per second that are accepted if each connection's next one follows its answer."""
        began, before = time.monotonic(), self.account.submissions

        async def send(client: httpx.AsyncClient) -> None:
            async def connection() -> None:
                while time.monotonic() - began < seconds:
                    await self._deliver(client)

            await asyncio.gather(*(connection() for _ in range(connections)))

        self._started(send).join()
        return (self.account.submissions - before) / (time.monotonic() - began)

    def _started(self, send: Callable[[httpx.AsyncClient], Awaitable[None]]) -> threading.Thread:
        async def run() -> None:
            limits = httpx.Limits(max_keepalive_connections=20)
            async with httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits, trust_env=False) as client:
                await send(client)

        thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
        thread.start()
        return thread

    def latencies(self) -> list[float]:
        """The times from request to 202 since the last call, in seconds."""
        with self._lock:
            taken, self._latencies = self._latencies, []
        return taken

    async def _steady(self, client: httpx.AsyncClient, rate: float) -> None:
        room = asyncio.Semaphore(UNANSWERED_MAX)

        async def one() -> None:
            try:
                await self._deliver(client)
            finally:
                room.release()

        due = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            while not self._over.is_set():
                await room.acquire()
                tasks.create_task(one())
                # what this thread does meanwhile must not make the rate lower; an outage is not made up for
                due = max(due + self._random.expovariate(rate), time.monotonic() - BEHIND_S_MAX)
                await asyncio.sleep(due - time.monotonic())

    async def _deliver(self, client: httpx.AsyncClient) -> None:
        source, records = self._records()
        first = self.account.begin(len(records))
        body = b"\n".join(
            msgspec.json.encode({"vehicle_id": name_of(first + n), **record}) for n, record in enumerate(records)
        )
        headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": uuid4().hex}
        while True:
            began = time.monotonic()
            try:
                answer = await client.post(f"{self._url}/v1/ingest/{source}", content=body, headers=headers)
            except httpx.TransportError:
                status = 0
            else:
                status = answer.status_code
            self.account.statuses[status] += 1
            if status == httpx.codes.ACCEPTED:
                with self._lock:
                    self._latencies.append(time.monotonic() - began)
                self.account.accept(first, len(records))
                return
            if status and status not in RETRIABLE:
                self.account.problems.append(f"{source} got {status}: {answer.text[:300]}")
                return
            if time.monotonic() > self._give_up:
                return
            await asyncio.sleep(RETRY_S)

    def _records(self) -> tuple[str, Sequence[Mapping[str, object]]]:
        source = self._random.choice(SOURCES)
        large = self._random.random() < LARGE_SHARE
        count = LARGE_RECORDS if large else self._random.randint(1, SMALL_RECORDS_MAX)
        # what no field declares is kept in the record's payload; random text, so that it is not compressed to nothing
        filling = self._random.randbytes((LARGE_BYTES if large else 40) // 2).hex()
        return source, [{**REQUIRED[source], "filling": filling}] * count
