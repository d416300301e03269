"""Follows the feed for one receiver."""

import asyncio
import logging

from bronze.client import AsyncClient, Checkpoint
from bronze.errors import Halted, Refusal, Refused, Unavailable
from bronze.notify.delivery import Delivery

log = logging.getLogger(__name__)

#: Events between two saved cursors: so many may be sent again after a crash.
PAGE_EVENTS = 20
WAIT_S = 15.0
#: Between two attempts to read a feed that the API refuses, until an operator has acted.
REFUSED_RETRY_S = 30.0
#: What to do about a position that cannot be read.
LOST_POSITION = (
    "nothing is sent to this receiver. Put the file back; or delete it, and restart bronze notify with "
    "BRONZE_NOTIFY_BEGIN=first: then events are repeated, and none is missing"
)


class Follower:
    """Delivers the events of the feed, in its order, each at least once.

    The cursor is saved after the events before it were taken, so a crash repeats some events and loses none. `begin`
    is where to read the feed if no cursor is saved.
    """

    def __init__(self, api: AsyncClient, delivery: Delivery, checkpoint: Checkpoint, begin: str = "") -> None:
        self._api = api
        self._delivery = delivery
        self._checkpoint = checkpoint
        self._begin = begin

    async def run(self) -> None:
        """Run until cancelled; returns if the receiver wants no more events, or the saved cursor cannot be used."""
        receiver = self._delivery.receiver.name
        cursor = self._checkpoint.load() or self._begin
        while True:
            try:
                cursor = await self._next(cursor)
            except Halted as error:
                log.error("%s: %s", receiver, error)
                return
            except Unavailable as error:  # the client has tried again for a while
                log.warning("%s: the feed cannot be read, trying again: %s", receiver, error)
            except Refused as error:
                if error.code is Refusal.INVALID_CURSOR:
                    log.error("%s: the cursor in %s is damaged: %s", receiver, self._checkpoint, LOST_POSITION)
                    return
                log.error("%s: the API refuses the feed, trying again: %s", receiver, error)
                await asyncio.sleep(REFUSED_RETRY_S)

    async def _next(self, cursor: str) -> str:
        """Deliver the next events of the feed. Returns the cursor after them, which is saved."""
        page = await self._api.feed(cursor, limit=PAGE_EVENTS, wait_s=WAIT_S)
        for event in page.events:
            await self._delivery.deliver(event)
        if page.cursor != cursor:
            await asyncio.to_thread(self._checkpoint.save, page.cursor)
        if not page.more:
            self._delivery.caught_up()
        return page.cursor
