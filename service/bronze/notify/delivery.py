"""Sends an event to a receiver until it is taken, and knows for how long the receiver has lacked events."""

import asyncio
import datetime as dt
import logging
import random
import time
from collections.abc import Mapping
from itertools import count
from typing import Protocol

from bronze.client import retry_after_s
from bronze.client.calls import back_off_s
from bronze.errors import Halted, Outage, Unavailable
from bronze.notify.event import Event, happened_at, type_and_subject
from bronze.notify.notify_telemetry import NotifyTelemetry

log = logging.getLogger(__name__)

#: The longest wait that a receiver can ask for by Retry-After.
RETRY_AFTER_S_MAX = 3600


class Receiver(Protocol):
    """Where events go. `send` raises `Unavailable` if the event has to be sent again, `Halted` if nothing may be sent
    any more.
    """

    @property
    def name(self) -> str: ...

    async def send(self, event: Event) -> None: ...


def refusal(place: str, status: int, reason: str, headers: Mapping[str, str]) -> Halted | Unavailable:
    """The error for an answer that does not take an event; `place` is who answered."""
    answer = f"{place} answers {status} {reason}"
    match status:
        case 410:
            return Halted(f"{answer}: it wants no more events. Nothing is sent to it until a restart")
        case 401 | 403:
            code = Outage.DENIED
        case 429:
            code = Outage.THROTTLED
        case _:
            code = Outage.UNAVAILABLE
    return Unavailable(code, answer, retry_after_s=retry_after_s(headers))


class Delivery:
    """The events of one origin on their way to a receiver."""

    def __init__(self, receiver: Receiver, telemetry: NotifyTelemetry) -> None:
        self.receiver = receiver
        self._telemetry = telemetry
        self._jitter = random.Random()  # noqa: S311  (only spreads retries)
        self._caught_up_s = time.time()
        self._sending: Event | None = None

    @property
    def lag_s(self) -> float:
        """For how long there was an event that the receiver has not taken, as far as is known: since all were taken, or
        since the event that is being sent happened, whichever is longer.
        """
        began_s = self._caught_up_s
        if self._sending and (at := happened_at(self._sending)):
            began_s = min(began_s, dt.datetime.fromisoformat(at).timestamp())
        return max(0.0, time.time() - began_s)

    def caught_up(self) -> None:
        """Everything that there is was taken."""
        self._caught_up_s = time.time()

    async def deliver(self, event: Event) -> None:
        """Send an event until it is taken. Raises `Halted`."""
        self._sending = event
        for attempt in count(1):
            try:
                with self._telemetry.sending(self.receiver.name, event):
                    await self.receiver.send(event)
            except Unavailable as error:
                wait_s = max(back_off_s(attempt, self._jitter), min(error.retry_after_s, RETRY_AFTER_S_MAX))
                log.warning(
                    "%s: attempt %d for %s %s, trying again in %.1f s: %s",
                    *(self.receiver.name, attempt, *type_and_subject(event), wait_s, error),
                )
                await asyncio.sleep(wait_s)
            else:
                break
        self._sending = None
