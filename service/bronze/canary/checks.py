"""What a run has sent and found, and what a check is."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from bronze.errors import Mismatch, Outage, Unavailable
from bronze.telemetry.signals import Check

T = TypeVar("T")

POLL_S = 0.5
#: The time limit of one request.
REQUEST_S_MAX = 5.0
#: How long the submission is retried.
ACCEPTED_S_MAX = 30.0
#: How much later than its objective the submission may be stored.
STORED_S_MORE = 30.0


@dataclass(frozen=True, slots=True)
class Accepted:
    """What a 202 says."""

    submission_id: str
    trace_id: str


@dataclass
class Run:
    """One run: what it sends, and what its checks have found so far, for those after them.

    `key` is the Idempotency-Key and the classification_id; `lines` are the records. The checks `accepted` and `object`
    set `accepted`, `file_path` and `upload_trace_id`.
    """

    key: str
    lines: tuple[bytes, ...]
    began_s: float
    #: When everything was prepared; what was stored earlier is not of this run.
    sent_s: float = 0.0
    accepted: Accepted | None = None
    file_path: str | None = None
    upload_trace_id: str | None = None


class CanaryCheck(ABC):
    """A check of a run. It is skipped if one of `needs` did not succeed, since it could then only fail too."""

    name: ClassVar[Check]
    needs: ClassVar[frozenset[Check]] = frozenset()

    async def prepare(self, run: Run) -> None:  # noqa: B027  most checks need nothing
        """Called before anything is sent. An error is one of the check."""

    @abstractmethod
    async def check(self, run: Run) -> None:
        """Raises `Mismatch`, or any other `BronzeError`, if the check fails."""


def found(value: T | None) -> T:
    """What an earlier check has found. A check whose `needs` are complete never finds None."""
    if value is None:
        raise Mismatch("an earlier check did not find what this one needs")
    return value


async def within(deadline_s: float, look: Callable[[], Awaitable[T]]) -> T:
    """Call a function until it returns; after the deadline, its last `Mismatch` or `Unavailable` is raised.

    A server that limits the rate is asked again when it says.
    """
    until_s = time.monotonic() + deadline_s
    while True:
        delay_s = POLL_S
        try:
            return await look()
        except (Mismatch, Unavailable) as error:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                raise
            if isinstance(error, Unavailable) and error.code in {Outage.QUOTA_EXCEEDED, Outage.THROTTLED}:
                delay_s = min(max(POLL_S, error.retry_after_s), left_s)
        await asyncio.sleep(delay_s)
