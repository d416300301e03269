"""A load generator that keeps its own record of every submission, independent of all telemetry.

Each submission has an Idempotency-Key and is sent again under it until it has a 202, as a careful client does. So each
of them must be stored exactly once, whatever happens to the processes meanwhile.
"""

import asyncio
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import httpx

from local.evidence import SOURCES
from local.samples import DAYS

BASE_PER_S = 6.0
#: Each minute begins with a peak of so many seconds, at so many times the base rate, and has a pause at its middle.
PEAK_S, PEAK_FACTOR = 8.0, 4.0
PAUSE_FROM_S, PAUSE_TO_S = 30.0, 36.0
RECORDS_MAX = 20
TIMEOUT_S = 10.0
RETRY_S = 0.5
#: Records that do not fit their source; a submission with one of them asks for quarantine.
INVALID = b'{"vehicle_id": 1}'


@dataclass
class Sent:
    """One submission. `statuses` has the status of each attempt, or 0 if there was no answer."""

    source: str
    records: int
    invalid: int
    at: float
    statuses: list[int] = field(default_factory=list)
    #: The duration of the last attempt, as the client sees it.
    duration_s: float = math.nan
    accepted_at: float = math.nan
    submission_id: str = ""
    trace_id: str = ""

    @property
    def accepted(self) -> bool:
        return self.statuses[-1:] == [202]


class Load:
    """Sends in a thread of its own while it is switched on. `urls` returns the addresses of the APIs that run."""

    def __init__(self, urls: Callable[[], Sequence[str]], seed: int, samples: Path = DAYS) -> None:
        self._urls = urls
        self._random = random.Random(seed)
        self._lines = {source: (samples / f"{source}.ndjson").read_bytes().splitlines() for source in SOURCES}
        self._next = dict.fromkeys(SOURCES, 0)
        self._on = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self.sent: list[Sent] = []
        #: Submissions still to send whose sender asks for quarantine.
        self.invalid = 0

    def start(self) -> None:
        self._thread.start()

    def on(self) -> None:
        self._on.set()

    def off(self) -> None:
        self._on.clear()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def waiting(self) -> int:
        """Submissions without a 202 so far."""
        return sum(not sent.accepted for sent in list(self.sent))

    async def _run(self) -> None:
        limits = httpx.Limits(max_keepalive_connections=20)
        async with (
            httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits, trust_env=False) as client,
            asyncio.TaskGroup() as tasks,
        ):
            while not self._over.is_set():
                rate = rate_per_s(time.time()) if self._on.is_set() else 0.0
                if rate:
                    tasks.create_task(self._send(client))
                await asyncio.sleep(self._random.expovariate(rate) if rate else 0.05)

    async def _send(self, client: httpx.AsyncClient) -> None:
        source = self._random.choice(SOURCES)
        lines = [self._line(source) for _ in range(self._random.randint(1, RECORDS_MAX))]
        invalid = 0
        if self.invalid and source == "vehicles":
            self.invalid -= 1
            invalid = 1
            lines.append(INVALID)
        sent = Sent(source, len(lines), invalid, time.time())
        self.sent.append(sent)
        headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": uuid4().hex}
        path = f"/v1/ingest/{source}{'?on_invalid=quarantine' if invalid else ''}"
        while not sent.accepted:
            began = time.perf_counter()
            try:
                url = self._random.choice(self._urls())
                answer = await client.post(f"{url}{path}", content=b"\n".join(lines), headers=headers)
            except httpx.TransportError:
                sent.statuses.append(0)
            else:
                sent.duration_s = time.perf_counter() - began
                sent.statuses.append(answer.status_code)
                if answer.status_code == 202:
                    sent.accepted_at = time.time()
                    body = answer.json()
                    sent.submission_id, sent.trace_id = body["submission_id"], body["trace_id"]
                    return
            await asyncio.sleep(RETRY_S)

    def _line(self, source: str) -> bytes:
        lines = self._lines[source]
        self._next[source] += 1
        return lines[self._next[source] % len(lines)]


def rate_per_s(at: float) -> float:
    """The rate at a time of the clock: steady, with a peak and a pause in each minute."""
    second = at % 60
    if second < PEAK_S:
        return BASE_PER_S * PEAK_FACTOR
    return 0.0 if PAUSE_FROM_S <= second < PAUSE_TO_S else BASE_PER_S
