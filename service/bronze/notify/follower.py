"""Follows the feed for one receiver, and sends each event until the receiver has taken it."""

import asyncio
import datetime as dt
import logging
import random
import time
from itertools import count
from typing import Protocol

from bronze.client import AsyncClient, Checkpoint
from bronze.client.calls import back_off_s
from bronze.errors import Halted, Refused, Unavailable
from bronze.notify.notify_telemetry import NotifyTelemetry
from bronze.protocol.feed_event import FeedEvent, ObjectEvent

log = logging.getLogger(__name__)

#: Events between two saved cursors: so many may be sent again after a crash.
PAGE_EVENTS = 20
WAIT_S = 15.0
#: The longest wait that a receiver can ask for by Retry-After.
RETRY_AFTER_S_MAX = 3600
#: Between two attempts to read a feed that the API refuses, until an operator has acted.
REFUSED_RETRY_S = 30.0


class Receiver(Protocol):
    """Where events go. `send` raises `Unavailable` if the event has to be sent again, `Halted` if nothing may be sent
    any more.
    """

    @property
    def name(self) -> str: ...

    async def send(self, event: FeedEvent) -> None: ...


class Follower:
    """Sends the events of the feed to a receiver, in the order of the feed, each at least once.

    The cursor is saved after the events before it were taken, so a crash repeats some events and loses none. `begin`
    is where to read the feed if no cursor is saved.
    """

    def __init__(
        self, api: AsyncClient, receiver: Receiver, checkpoint: Checkpoint, telemetry: NotifyTelemetry, begin: str = ""
    ) -> None:
        self.receiver = receiver
        self._api = api
        self._checkpoint = checkpoint
        self._telemetry = telemetry
        self._begin = begin
        self._jitter = random.Random()  # noqa: S311  (it protects nothing)
        self._caught_up_s = time.time()
        self._sending: FeedEvent | None = None

    @property
    def lag_s(self) -> float:
        """For how long there was an event that the receiver has not taken, as far as is known: since the feed was last
        read to its end, or since the event that is being sent was written, whichever is longer.
        """
        began_s = self._caught_up_s
        if isinstance(self._sending, ObjectEvent) and self._sending.written_at:
            began_s = min(began_s, dt.datetime.fromisoformat(self._sending.written_at).timestamp())
        return max(0.0, time.time() - began_s)

    async def run(self) -> None:
        """Run until cancelled; returns if the receiver wants no more events."""
        cursor = self._checkpoint.load() or self._begin
        while True:
            try:
                cursor = await self._next(cursor)
            except Halted as error:
                log.error("%s: %s", self.receiver.name, error)
                return
            except Unavailable as error:  # the client has tried again for a while
                log.warning("%s: the feed cannot be read, trying again: %s", self.receiver.name, error)
            except Refused as error:
                log.error("%s: the API refuses the feed, trying again: %s", self.receiver.name, error)
                await asyncio.sleep(REFUSED_RETRY_S)

    async def _next(self, cursor: str) -> str:
        """Send the next events of the feed. Returns the cursor after them, which is saved."""
        page = await self._api.feed(cursor, limit=PAGE_EVENTS, wait_s=WAIT_S)
        for event in page.events:
            await self._deliver(event)
        if page.cursor != cursor:
            await asyncio.to_thread(self._checkpoint.save, page.cursor)
        if not page.more:
            self._caught_up_s = time.time()
        return page.cursor

    async def _deliver(self, event: FeedEvent) -> None:
        self._sending = event
        for attempt in count(1):
            try:
                with self._telemetry.sending(self.receiver.name, event):
                    await self.receiver.send(event)
            except Unavailable as error:
                wait_s = max(back_off_s(attempt, self._jitter), min(error.retry_after_s, RETRY_AFTER_S_MAX))
                log.warning("%s: attempt %d, trying again in %.1f s: %s", self.receiver.name, attempt, wait_s, error)
                await asyncio.sleep(wait_s)
            else:
                break
        self._sending = None
