"""Group commit: small messages that wait for a lane at the same moment become durable in one atomic batch.

Each keeps its own subject, condition and answer. Nothing waits for a time to pass: while few messages are on their
way, each is published alone and at once.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from bronze.errors import Outage, Unavailable
from bronze.servers.jetstream import REQUEST_TIMEOUT_S, ApiError, JetStream, Missing, Outgoing


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """When messages are published as a group.

    Messages wait while a group or `alone_max` messages are on their way. Then at least `messages_min` of them, and at
    most `messages_max`, are one group; fewer are published alone. Larger messages than `payload_bytes_max` never wait.
    After a refused group, messages are published alone for `pause_s`, so that a client that sends the same submission
    again and again does not slow down the others.
    """

    alone_max: int = 16
    messages_min: int = 16
    messages_max: int = 128
    payload_bytes_max: int = 16 * 2**10
    pause_s: float = 1.0


class Outcome(Enum):
    """The outcome of a group. `ALONE`: nothing of it was stored, and each message is published alone."""

    STORED = auto()
    ALONE = auto()
    UNKNOWN = auto()


@dataclass(eq=False, slots=True)
class Group:
    """Messages of different subjects, by subject; the earliest deadline of a message is that of all."""

    deadline_s: float
    messages: dict[str, Outgoing] = field(default_factory=dict)
    outcome: asyncio.Future[Outcome] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def add(self, message: Outgoing, deadline_s: float) -> None:
        self.messages[message.subject] = message
        self.deadline_s = min(self.deadline_s, deadline_s)


class GroupPublisher:
    """Publishes small messages to one lane. A group takes one of the process's open batches."""

    def __init__(
        self, jetstream: JetStream, limits: GroupLimits, batches: asyncio.Semaphore, now_s: Callable[[], float]
    ) -> None:
        self._js = jetstream
        self._limits = limits
        self._batches = batches
        self._now_s = now_s
        self._collecting: Group | None = None
        self._group_sent = False
        self._alone = 0
        self._turn: asyncio.Future[None] | None = None
        self._groups_from_s = 0.0

    async def publish(self, message: Outgoing, deadline_s: float) -> bool:
        """Store a message durably; False if nothing was sent, since the deadline passed or the connection was lost.

        Raises as `JetStream.publish`. A group whose answer is lost is unknown for each of its messages.
        """
        match await self._publish_in_group(message, deadline_s):
            case Outcome.STORED:
                return True
            case Outcome.UNKNOWN:
                raise Unavailable(Outage.QUEUE_AWAY, "the queue did not answer to the batch of the group")
        if not self._can_send(deadline_s):
            return False
        self._alone += 1
        try:
            await self._js.publish(message)
        finally:
            self._alone -= 1
            self._give_turn()
        return True

    async def _publish_in_group(self, message: Outgoing, deadline_s: float) -> Outcome:
        if len(message.payload) > self._limits.payload_bytes_max or self._now_s() < self._groups_from_s:
            return Outcome.ALONE
        group = self._collecting
        if group is None:
            return await self._lead(message, deadline_s)
        if message.subject in group.messages or len(group.messages) >= self._limits.messages_max:
            return Outcome.ALONE
        group.add(message, deadline_s)
        return await asyncio.shield(group.outcome)

    async def _lead(self, message: Outgoing, deadline_s: float) -> Outcome:
        """Collect a group until its turn, and publish it. If this is cancelled, the others are settled alone."""
        group = self._collecting = Group(deadline_s)
        group.add(message, deadline_s)
        outcome = Outcome.ALONE
        try:
            await asyncio.sleep(0)  # those that arrive at the same moment join
            while self._is_busy():
                self._turn = asyncio.get_running_loop().create_future()
                await self._turn
            self._collecting = None
            if len(group.messages) >= self._limits.messages_min and not self._batches.locked():
                outcome = Outcome.UNKNOWN
                outcome = await self._send(group)
        finally:
            if self._collecting is group:
                self._collecting = None
            group.outcome.set_result(outcome)
        return outcome

    async def _send(self, group: Group) -> Outcome:
        if not self._can_send(group.deadline_s):
            return Outcome.ALONE
        self._group_sent = True
        try:
            async with self._batches:
                await self._js.publish_batch(
                    group.messages.values(),
                    len(group.messages),
                    in_time=lambda: self._now_s() < group.deadline_s,
                    commit_timeout_s=REQUEST_TIMEOUT_S,  # a group is small
                )
        except (ApiError, Missing):
            self._groups_from_s = self._now_s() + self._limits.pause_s
            return Outcome.ALONE
        except Unavailable:
            return Outcome.UNKNOWN
        finally:
            self._group_sent = False
            self._give_turn()
        return Outcome.STORED

    def _can_send(self, deadline_s: float) -> bool:
        return self._js.connected and self._now_s() < deadline_s

    def _is_busy(self) -> bool:
        return self._group_sent or self._alone >= self._limits.alone_max

    def _give_turn(self) -> None:
        if self._turn and not self._turn.done() and not self._is_busy():
            self._turn.set_result(None)
