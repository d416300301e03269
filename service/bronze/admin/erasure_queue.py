"""The queue's part of an erasure: what waits is stored first, and what is stored already is purged later."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping

from bronze.admin.erasure import lane_name
from bronze.errors import DeadLetter, Gone, Outage, Unavailable
from bronze.objects.quarantine_erasing import NotSearchable, erase_records
from bronze.objects.selection import Chosen
from bronze.plurals import counted
from bronze.protocol.erasure import LaneRest
from bronze.protocol.lane import Lane
from bronze.protocol.message import Message, MessageKind, Part
from bronze.protocol.quarantine import MESSAGE, REJECTED
from bronze.servers.catalog import NatsCatalog
from bronze.servers.jetstream import JetStream
from bronze.servers.queue import LaneAdmin

POLL_S = 0.2
READ_MESSAGES = 256
READ_BYTES = 8 * 2**20


class QueueErasure:
    """The lanes of some sources."""

    def __init__(
        self, queue: LaneAdmin, jetstream: JetStream, catalog: NatsCatalog, sources: Collection[str], chosen: Chosen
    ) -> None:
        self._queue = queue
        self._js = jetstream
        self._catalog = catalog
        self._sources = sorted(sources)
        self._chosen = chosen

    async def ends(self) -> Mapping[Lane, int]:
        """The last message of each lane now."""
        lanes = [state.lane for source in self._sources for state in await self._queue.lanes_of(source)]
        return {lane: (await self._queue.state(lane)).last for lane in lanes}

    async def waiting(self, ends: Mapping[Lane, int]) -> int:
        """The messages up to these ends that are not stored yet."""
        positions = {lane: (await self._catalog.position(lane))[0].last for lane in ends}
        return sum(max(0, end - positions[lane]) for lane, end in ends.items())

    async def wait_until_stored(self, ends: Mapping[Lane, int], within_s: float) -> None:
        """Wait for the consumers. Raises `Unavailable` if they have not stored all messages in time."""
        deadline_s = time.monotonic() + within_s
        while waiting := await self.waiting(ends):
            if time.monotonic() > deadline_s:
                raise Unavailable(
                    Outage.TIMEOUT,
                    f"{counted(waiting, 'message')} that the queue had at the start are not stored after "
                    f"{within_s:g} s. Nothing was erased yet. Check that the consumers run and that the bucket "
                    "answers, then run this command again",
                )
            await asyncio.sleep(POLL_S)

    async def rest(self) -> list[LaneRest]:
        """The lanes that still have stored messages with chosen records."""
        found = []
        for source in self._sources:
            for state in await self._queue.lanes_of(source):
                position, _ = await self._catalog.position(state.lane)
                chosen = [message.sequence async for message in self._messages(state.lane, position.last)]
                anchor = position.last in chosen
                if chosen:
                    purged = len(chosen) - anchor
                    found.append(LaneRest(lane=lane_name(state.lane), purged_later=purged, anchor=anchor))
        return found

    async def _messages(self, lane: Lane, last: int) -> AsyncIterator[Message]:
        """The messages up to a sequence that have chosen records, or the classification in their headers."""
        following = 1
        while following <= last:
            try:
                read = await self._js.read(lane.stream, following, messages_max=READ_MESSAGES, bytes_max=READ_BYTES)
            except Gone:
                return  # it was replaced, and its messages with it
            for message in read:
                if message.sequence <= last and self._has(message):
                    yield message
            if not read:
                return
            following = read[-1].sequence + 1

    def _has(self, message: Message) -> bool:
        try:
            part = Part.parse(message.headers)
            content = message.content()
        except DeadLetter:
            texts = [text.encode() for text in message.headers.values()]
            return any(map(self._chosen.mentions, [*texts, message.payload]))
        if self._chosen.cleared(part.accepted) != part.accepted:
            return True
        key = REJECTED if part.kind is MessageKind.REJECTED else MESSAGE
        try:
            return erase_records(key, content, part, self._chosen) is not None
        except NotSearchable:
            return False
