"""The records that a lane accepted: those of all messages that ever were in it."""

import asyncio
from dataclasses import dataclass

from bronze.errors import DeadLetter, Outage, Unavailable
from bronze.protocol.chain import Position
from bronze.protocol.lane import Lane
from bronze.protocol.message import Part
from bronze.servers.catalog import Catalog
from bronze.servers.jetstream import Header
from bronze.servers.queue import Queue

#: Between two pages of headers, so that reading a long queue takes at most a part of the process' time.
PAUSE_S = 0.02
#: A message that the leader has may be missing in a replica, or belong to a batch that is being committed.
EMPTY_READS_MAX = 5


@dataclass(frozen=True, slots=True)
class _Counted:
    """The records of all messages up to and including the sequence `last`."""

    last: int
    records: int


class AcceptedRecords:
    """Counts the accepted records of one lane: those in the totals of its position, and those of the messages after it.

    The totals of a position count each record of each message up to the position (I8). So a message's records have to
    be added only once, from its headers, and the sum stays right when the message is stored later.
    """

    def __init__(self, lane: Lane, queue: Queue, catalog: Catalog) -> None:
        self._lane = lane
        self._queue = queue
        self._catalog = catalog
        self._counted = _Counted(0, 0)

    async def count(self, position: Position) -> int:
        """The accepted records, at least up to the last message that the lane's leader has now.

        `position`, with its totals, was read before. Raises `Unavailable` if a replica that answers lacks messages.
        """
        state = await self._queue.state(self._lane)
        # a sum beyond the end of the lane: the queue was rolled back, and messages that were counted are lost
        if self._counted.last <= position.last or self._counted.last > state.last:
            self._counted = _Counted(position.last, position.totals.all_records if position.totals else 0)
        damaged = state.deleted > 0
        if state.first > self._counted.last + 1:
            newest, _ = await self._catalog.position(self._lane)
            if newest.last > position.last:
                raise Unavailable(Outage.QUEUE_AWAY, f"a replica of the catalog lacks entries of {self._lane.stream}")
            damaged = True
        empty_reads = 0
        while self._counted.last < state.last:
            page = await self._queue.headers(self._lane, self._counted.last + 1)
            if not damaged:
                page = _contiguous(page, self._counted.last + 1)
            if page:
                self._counted = _Counted(page[-1].sequence, self._counted.records + sum(map(_records, page)))
            elif damaged:
                self._counted = _Counted(state.last, self._counted.records)
            elif (empty_reads := empty_reads + 1) == EMPTY_READS_MAX:
                raise Unavailable(
                    Outage.QUEUE_AWAY, f"a replica of {self._lane.stream} lacks message {self._counted.last + 1}"
                )
            if self._counted.last < state.last:
                await asyncio.sleep(PAUSE_S)
        return self._counted.records


def _contiguous(page: list[Header], first: int) -> list[Header]:
    return [header for number, header in enumerate(page, start=first) if header.sequence == number]


def _records(header: Header) -> int:
    """As `quarantined_message` counts them, should the message become a dead letter."""
    try:
        return Part.parse(header.headers).records
    except DeadLetter:
        return 0
