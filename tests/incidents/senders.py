"""Senders that keep a record of their own of every attempt, independent of all telemetry."""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from uuid import uuid4

import httpx

from local.evidence import SOURCES, sample_file
from tests.background import InThread

RETRY_S = 0.5
TIMEOUT_S = 10.0
ACCEPTED, FAULT = 202, 500
#: Each source has one sender, which sends a submission of so many records per interval.
RECORDS = 5
INTERVAL_S = 1.0


@dataclass(frozen=True)
class Submission:
    source: str
    lines: tuple[bytes, ...]


@dataclass(frozen=True)
class Attempt:
    """One request; its status is 0 without an answer. `ended` is known when it is in a record."""

    source: str
    records: int
    began: float
    ended: float
    status: int
    submission_id: str = ""

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def failed(self) -> bool:
        """Whether the fault is Bronze's."""
        return self.status == 0 or self.status >= FAULT


@dataclass
class Sender(InThread):
    """Sends one submission per interval, each until it has a 202 if `repeats`, from a thread in the context."""

    url: str
    submissions: Iterator[Submission]
    interval_s: float
    attempts: list[Attempt]
    repeats: bool = False

    def _run(self) -> None:
        due = time.monotonic()
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as http:
            for submission in self.submissions:
                key = uuid4().hex
                while not self._over.is_set():
                    attempt = self._attempt(http, submission, key)
                    self.attempts.append(attempt)
                    if attempt.status == ACCEPTED or not self.repeats:
                        break
                    self._over.wait(RETRY_S)
                due = max(due + self.interval_s, time.monotonic())
                if self._over.wait(due - time.monotonic()):
                    return

    def _attempt(self, http: httpx.Client, submission: Submission, key: str) -> Attempt:
        began, submission_id = time.time(), ""
        headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": key}
        try:
            url = f"{self.url}/v1/ingest/{submission.source}"
            answer = http.post(url, content=b"\n".join(submission.lines), headers=headers)
            status = answer.status_code
            submission_id = answer.json()["submission_id"] if status == ACCEPTED else ""
        except httpx.TransportError:
            status = 0
        return Attempt(submission.source, len(submission.lines), began, time.time(), status, submission_id)


def steady(url: str, attempts: list[Attempt]) -> list[Sender]:
    """A sender of each source."""
    return [Sender(url, _of_sample(source), INTERVAL_S, attempts, repeats=True) for source in SOURCES]


def repeated(source: str, body: Callable[[int], bytes]) -> Iterator[Submission]:
    return (Submission(source, (body(number),)) for number in itertools.count())


def _of_sample(source: str) -> Iterator[Submission]:
    lines = itertools.cycle(sample_file(source).read_bytes().splitlines())
    while True:
        yield Submission(source, tuple(itertools.islice(lines, RECORDS)))
