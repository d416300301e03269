"""The queue: one JetStream stream a lane. Publishing is the API's side, reading and purging the consumer's."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from http import HTTPStatus
from typing import Protocol

from bronze import jetstream as js
from bronze.chain import KEY_LAYOUT, Gap, Lane, Message, Tail, follow, lane_subject, rolled_back, stream_prefix
from bronze.claims import Claims
from bronze.errors import Halted, Misconfigured, Poison, Unavailable
from bronze.jetstream import ApiError, JetStream, Outgoing, StreamState
from bronze.settings import Settings
from bronze.submission import Accepted, Checked, Part

RETRY_WAIT_S = 0.1
#: How long a submission waits for a connection that is away before it is refused, with nothing sent.
RECONNECT_WAIT_S = 2.0
#: One read: what is under way to one reader at once.
READ_MESSAGES_MAX = 4096
READ_BYTES_MAX = 32 * 2**20


#: Refusals that pass, so that publishing again is right.
_PASSING = frozenset({js.SUBJECT_WRITE_IN_FLIGHT, js.TOO_MANY_OPEN_BATCHES, js.STREAM_FULL})


class Superseded(Exception):
    """The submission's subject was taken and is free again: it is stored and purged, and its identity tells."""


def boot_time_s() -> float:
    """A clock that goes on while the machine or the process is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Queue(Protocol):
    """What the roles need of a queue.

    `submit` returns once each part is durable, all of them contiguous, exactly once under the submission's id; a read
    never skips a message silently.
    """

    async def open(self, sources: Iterable[str]) -> list[Lane]: ...
    async def submit(self, lane: Lane, accepted: Accepted, checked: Checked, deadline_s: float) -> Accepted | None: ...
    async def submitted(self, lane: Lane, submission_id: str) -> Accepted | None: ...
    async def waiting(self, lane: Lane, after: int) -> bool: ...
    async def read(self, lane: Lane, tail: Tail | None) -> list[Message]: ...
    async def confirm_gap(self, lane: Lane, gap: Gap) -> None: ...
    async def get(self, lane: Lane, sequence: int) -> Message | None: ...
    async def state(self, lane: Lane) -> StreamState: ...
    async def purge_below(self, lane: Lane, sequence: int) -> None: ...


class NatsQueue:
    """The queue on JetStream."""

    def __init__(self, jetstream: JetStream, settings: Settings, now_s: Callable[[], float] = boot_time_s) -> None:
        self._js = jetstream
        self._settings = settings
        self._now_s = now_s
        self._claims = Claims(jetstream, settings.queue_replicas)
        self._batches: dict[Lane, asyncio.Semaphore] = {}

    async def open(self, sources: Iterable[str]) -> list[Lane]:
        """Each source's lanes; a lane without a stream gets one.

        Raises `Misconfigured` where a stream was made with other settings; both values are named.
        """
        return [await self._open(source, number) for source in sources for number in range(self._settings.lanes)]

    async def _open(self, source: str, number: int) -> Lane:
        config = {
            "storage": "file",
            "retention": "limits",
            "discard": "new",
            "max_bytes": self._settings.queue_bytes_max,
            "num_replicas": self._settings.queue_replicas,
            "allow_atomic": True,
            "allow_direct": True,
            "metadata": self._metadata(),
        }
        name = await self._claims.stream(
            f"stream.{source}.{number}", stream_prefix(source, number), [lane_subject(source, number)], config
        )
        state = await self._js.state(name)
        made_with = {key: state.metadata.get(key) for key in self._metadata()}
        if made_with != self._metadata():
            raise Misconfigured(
                f"the stream {name} was made with {made_with}, and the settings say {self._metadata()}: "
                "set BRONZE_BUCKET, BRONZE_PREFIX and BRONZE_LANES as they were, or use another queue"
            )
        return Lane(source, number, name.rpartition("_")[2])

    def _metadata(self) -> dict[str, str]:
        return {
            "bronze.bucket": self._settings.bucket,
            "bronze.prefix": self._settings.prefix,
            "bronze.key_layout": KEY_LAYOUT,
            "bronze.lanes": str(self._settings.lanes),
        }

    # --- the API's side

    async def submit(self, lane: Lane, accepted: Accepted, checked: Checked, deadline_s: float) -> Accepted | None:
        """Store a submission's messages, unless its subject is taken: then give what stands there.

        None: stored now. An `Accepted`: an earlier one stands there; equal digests mean the same submission.
        Raises `Unavailable`: `queue-full` and `queue-away` (nothing was stored), `outcome-unknown` (it may have
        been, and asking again under the same key tells); `Superseded` where the subject was taken and is free again;
        `Halted` where the stream is another one than at start.
        """
        connect_by_s = min(deadline_s, self._now_s() + RECONNECT_WAIT_S)
        unknown = False
        while self._now_s() < (deadline_s if unknown or self._js.connected else connect_by_s):
            try:
                if self._js.connected and await self._publish(lane, accepted, checked, deadline_s):
                    return None
            except Unavailable:
                unknown = True
            except ApiError as error:
                if error.err_code == js.WRONG_STREAM:
                    raise Halted(f"the stream {lane.stream} is gone: start anew") from error
                if error.err_code == js.WRONG_LAST_SEQUENCE:
                    # taken: by an earlier request, or by this one whose answer was lost
                    unknown = True
                    with suppress(Unavailable):
                        earlier = await self.submitted(lane, accepted.submission_id)
                        if earlier is None:
                            raise Superseded from error
                        return None if earlier == accepted else earlier
                elif unknown:
                    pass  # no answer that says "not stored" is right any more
                elif error.err_code == js.STREAM_FULL:
                    raise Unavailable(
                        "queue-full", "The queue is full: the bucket is away or slow.", retry_after_s=10
                    ) from error
                elif error.err_code not in _PASSING and error.code < HTTPStatus.INTERNAL_SERVER_ERROR:
                    raise Unavailable("queue-away", f"The queue refuses the submission: {error}.") from error
            await asyncio.sleep(RETRY_WAIT_S)
        if unknown:
            raise Unavailable(
                "outcome-unknown",
                f"The queue did not answer in time: submission {accepted.submission_id} may or may not have been "
                "accepted. Send it again under the same Idempotency-Key, or ask for its status.",
                submission_id=accepted.submission_id,
            )
        raise Unavailable("queue-away", "The queue is away. Nothing was stored.")

    async def _publish(self, lane: Lane, accepted: Accepted, checked: Checked, deadline_s: float) -> bool:
        """False: nothing was sent, the deadline passed while others had the batches."""
        if checked.messages == 1:
            await self._js.publish(next(_outgoing(lane, accepted, checked)))
            return True
        async with self._batches.setdefault(lane, asyncio.Semaphore(self._settings.open_batches_max)):
            if self._now_s() >= deadline_s:
                return False
            await self._js.publish_batch(
                _outgoing(lane, accepted, checked),
                checked.messages,
                in_time=lambda: self._now_s() < deadline_s,
            )
        return True

    async def submitted(self, lane: Lane, submission_id: str) -> Accepted | None:
        """What stands in the lane under a submission's subject, from the leader."""
        message = await self._js.get_last(lane.stream, lane_subject(lane.source, lane.number, submission_id))
        if message is None:
            return None
        try:
            return Part.parse(message.headers).accepted
        except Poison as error:
            raise Unavailable("queue-away", f"What stands under {submission_id} cannot be read: {error}") from error

    # --- the consumer's side

    async def waiting(self, lane: Lane, after: int) -> bool:
        """Whether there seems to be a message after a sequence: a hint, from any replica."""
        return await self._js.has(lane.stream, after + 1)

    async def read(self, lane: Lane, tail: Tail | None) -> list[Message]:
        """What follows the tail without a gap, as much as one read takes; the tail is read again and must be the same.

        Raises `Gap` where a replica lacks what has to be there (`confirm_gap` tells whether it is only late), and
        `Halted` where the tail is another message than it was.
        """
        first = tail.sequence if tail else 1
        read = await self._js.read(lane.stream, first, messages_max=READ_MESSAGES_MAX, bytes_max=READ_BYTES_MAX)
        return follow(tail, read) if tail or read else []

    async def confirm_gap(self, lane: Lane, gap: Gap) -> None:
        """Ask the leader for a message that a read lacked; raises `Halted` where it lacks it too."""
        if await self.get(lane, gap.sequence) is None:
            raise rolled_back(gap.sequence, "is missing")

    async def get(self, lane: Lane, sequence: int) -> Message | None:
        return await self._js.get(lane.stream, sequence)

    async def state(self, lane: Lane) -> StreamState:
        return await self._js.state(lane.stream)

    async def purge_below(self, lane: Lane, sequence: int) -> None:
        """Drop the messages below a sequence: it and what follows stay."""
        await self._js.purge_below(lane.stream, sequence)


def _outgoing(lane: Lane, accepted: Accepted, checked: Checked) -> Iterator[Outgoing]:
    subject = lane_subject(lane.source, lane.number, accepted.submission_id)
    for part, payload in checked.parts(accepted):
        headers = part.headers()
        if part.number == 1:
            headers |= {js.EXPECTED_LAST_SUBJECT_SEQUENCE: "0", js.EXPECTED_STREAM: lane.stream}
        yield Outgoing(subject, payload, headers)
