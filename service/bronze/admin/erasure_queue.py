"""The queue's part of an erasure: what waits is stored first, and what is stored already is purged later."""

import asyncio
import datetime as dt
import hashlib
import time
from collections.abc import AsyncIterator, Collection, Mapping

import msgspec

from bronze.admin.erasure import lane_name
from bronze.errors import DeadLetter, Gone, Outage, Unavailable
from bronze.objects.quarantine_erasing import NotSearchable, erase_records
from bronze.objects.selection import Chosen
from bronze.plurals import counted
from bronze.protocol import rejected_records
from bronze.protocol.erasure import LaneRest
from bronze.protocol.lane import Lane, lane_subject
from bronze.protocol.message import AcceptedSubmission, Message, MessageKind, Part
from bronze.protocol.quarantine import MESSAGE, REJECTED
from bronze.protocol.submission_id import lane_of, new_id
from bronze.servers import jetstream as js
from bronze.servers.catalog import NatsCatalog
from bronze.servers.jetstream import ApiError, JetStream, Outgoing
from bronze.servers.queue import LaneAdmin, LaneState

POLL_S = 0.2
#: The origin of the empty submissions that become anchors.
ORIGIN = "bronze erase"
READ_MESSAGES = 256
READ_BYTES = 8 * 2**20


def _empty_submission(state: LaneState, now: dt.datetime) -> Outgoing:
    """A submission of no records, under an id that leads to the lane."""
    lane = state.lane
    ids = iter(new_id, None)
    lanes = max(state.lanes_total, lane.number + 1)
    accepted = AcceptedSubmission(
        submission_id=next(each for each in ids if lane_of(each, lanes) == lane.number),
        source=lane.source,
        digest=hashlib.sha256().hexdigest(),
        records=0,
        classification_id=None,
        classification_default=None,
        classification_count=0,
        received_at=now.isoformat(timespec="microseconds"),
        trace_id="0" * 32,
        traceparent=f"00-{'0' * 32}-{'0' * 16}-00",
        origin=ORIGIN,
    )
    content = msgspec.json.encode(accepted) + b"\n" + rejected_records.pack([], [])
    headers = Part(accepted, 1, 1, 0, 0, MessageKind.REJECTED).headers()
    expected = {js.EXPECTED_LAST_SUBJECT_SEQUENCE: "0", js.EXPECTED_STREAM: lane.stream}
    return Outgoing(lane_subject(lane.source, lane.number, accepted.submission_id), content, headers | expected)


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

    async def move_anchors(self, now: dt.datetime) -> None:
        """Submit nothing to each lane of which the anchor has chosen records: a message of no rejected records.

        When it is stored, it is the anchor, and the messages before it are purged as others are (rule 6). All versions
        of the consumer know its kind. A lane that takes no messages now is left out: it is about to be replaced. Raises
        `Unavailable`.
        """
        for source in self._sources:
            for state in await self._queue.lanes_of(source):
                position, _ = await self._catalog.position(state.lane)
                anchor = await self._js.get(state.lane.stream, position.last) if position.last else None
                if anchor and not state.sealed and self._has(anchor):
                    try:
                        await self._js.publish(_empty_submission(state, now))
                    except ApiError as error:
                        raise Unavailable(
                            Outage.QUEUE_AWAY,
                            f"the queue refuses a message that is to follow the last one of {state.lane.stream}: "
                            f"{error}. Everything else is done. Run this command again",
                        ) from error

    async def rest(self) -> list[LaneRest]:
        """The lanes that still have stored messages with chosen records."""
        found = []
        for source in self._sources:
            for state in await self._queue.lanes_of(source):
                position, _ = await self._catalog.position(state.lane)
                chosen = [message.sequence async for message in self._messages(state.lane, position.last)]
                anchor = position.last in chosen
                if chosen:
                    found.append(LaneRest(lane=lane_name(state.lane), messages=len(chosen), anchor=anchor))
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
