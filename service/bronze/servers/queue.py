"""The queue: one JetStream stream a lane. Publishing is the API's side, reading and purging the consumer's."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

from bronze.errors import DeadLetter, Misconfigured, Outage, Unavailable
from bronze.protocol.chain import Gap, Tail, follow, rolled_back
from bronze.protocol.lane import Lane, lane_subject, stream_prefix
from bronze.protocol.message import AcceptedSubmission, Message, Part
from bronze.records.spool import CheckedSubmission
from bronze.servers import jetstream as js
from bronze.servers import stream_metadata
from bronze.servers.jetstream import ApiError, JetStream, Missing, Outgoing, StreamState
from bronze.servers.key_value import KeyValueStore, timestamped_name
from bronze.settings import Settings

RETRY_WAIT_S = 0.1
#: How long a submission waits for a connection that is away before it is refused, with nothing sent.
RECONNECT_WAIT_S = 2.0
#: One read: what is under way to one reader at once.
READ_MESSAGES_MAX = 4096
READ_BYTES_MAX = 16 * 2**20


#: Refusals that pass, so that publishing again is right.
_PASSING = frozenset({js.SUBJECT_WRITE_IN_FLIGHT, js.TOO_MANY_OPEN_BATCHES, js.STREAM_FULL})


ADVICE = (
    "Set BRONZE_BUCKET, BRONZE_PREFIX and BRONZE_LANES as they were, or use another queue; `bronze lanes N` changes "
    "the number of lanes"
)


@dataclass(frozen=True, slots=True)
class LaneState:
    """A lane that exists: of how many its stream was made as one, and whether it takes nothing more."""

    lane: Lane
    lanes_total: int
    sealed: bool


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
    async def submit(
        self, lane: Lane, accepted: AcceptedSubmission, checked: CheckedSubmission, deadline_s: float
    ) -> AcceptedSubmission | None: ...
    async def find_submission(self, lane: Lane, submission_id: str) -> AcceptedSubmission | None: ...
    async def has_after(self, lane: Lane, after: int) -> bool: ...
    async def read(self, lane: Lane, tail: Tail | None) -> list[Message]: ...
    async def halt_if_lost(self, lane: Lane, gap: Gap) -> None: ...
    async def get(self, lane: Lane, sequence: int) -> Message | None: ...
    async def state(self, lane: Lane) -> StreamState: ...
    async def purge_below(self, lane: Lane, sequence: int) -> None: ...


class LaneAdmin(Protocol):
    """What the change of the number of lanes needs of a queue."""

    async def lanes_of(self, source: str) -> list[LaneState]: ...
    async def state(self, lane: Lane) -> StreamState: ...
    async def hold_claim(self, source: str, number: int, command: str) -> None: ...
    async def release_claim(self, source: str, number: int) -> None: ...
    async def seal(self, lane: Lane) -> None: ...
    async def remove(self, lane: Lane) -> None: ...
    async def create_lane(self, source: str, number: int) -> None: ...


class NatsQueue:
    """The queue on JetStream."""

    def __init__(
        self,
        jetstream: JetStream,
        key_values: KeyValueStore,
        settings: Settings,
        now_s: Callable[[], float] = boot_time_s,
    ) -> None:
        self._js = jetstream
        self._key_values = key_values
        self._settings = settings
        self._now_s = now_s
        self._batches: dict[Lane, asyncio.Semaphore] = {}

    async def open(self, sources: Iterable[str]) -> list[Lane]:
        """Each source's lanes; a lane without a stream gets one.

        All were there at one moment, so that no two processes ever work with different numbers of lanes at once.
        Raises `Misconfigured` where a stream was made with other settings; both values are named.
        """
        lanes = [await self._open(source, number) for source in sources for number in range(self._settings.lanes)]
        for lane in lanes:
            if await self._js.stream_names(lane_subject(lane.source, lane.number)) != [lane.stream]:
                raise Unavailable(Outage.QUEUE_AWAY, f"the stream {lane.stream} was replaced while it was opened")
        return lanes

    async def _open(self, source: str, number: int) -> Lane:
        name = await self._key_values.stream(
            _claim(source, number), stream_prefix(source, number), [lane_subject(source, number)], self._config()
        )
        stream_metadata.check(await self._js.state(name), stream_metadata.of_lane(self._settings), ADVICE)
        return Lane(source, number, name.rpartition("_")[2])

    def _config(self) -> dict[str, object]:
        return {
            "storage": "file",
            "retention": "limits",
            "discard": "new",
            "max_bytes": self._settings.queue_bytes_max,
            "num_replicas": self._settings.queue_replicas,
            "allow_atomic": True,
            "allow_direct": True,
            "metadata": stream_metadata.of_lane(self._settings),
        }

    # --- the change of the number of lanes (`admin/change_lanes.py`)

    async def lanes_of(self, source: str) -> list[LaneState]:
        """A source's lanes as they are, whatever number the settings say.

        Raises `Misconfigured` where one was made for another bucket, prefix or layout.
        """
        found = []
        for name in sorted(await self._js.stream_names(lane_subject(source, "*"))):
            state = await self._js.state(name)
            stream_metadata.check(state, stream_metadata.of_objects(self._settings), ADVICE)
            number, epoch = name.removeprefix(f"{stream_prefix(source, '')}").split("_")
            lane = Lane(source, int(number), epoch)
            found.append(LaneState(lane, int(state.metadata.get(stream_metadata.LANES, 0)), sealed=state.sealed))
        return found

    async def hold_claim(self, source: str, number: int, command: str) -> None:
        """From now on no role makes this lane's stream, until `give`."""
        await self._key_values.hold_claim(_claim(source, number), command)

    async def release_claim(self, source: str, number: int) -> None:
        await self._key_values.release_claim(_claim(source, number))

    async def seal(self, lane: Lane) -> None:
        """Have a lane take nothing more, for good; what it has can be read."""
        await self._js.seal(lane.stream)

    async def remove(self, lane: Lane) -> None:
        """Remove a lane's stream with all that it holds."""
        await self._js.delete_stream(lane.stream)

    async def create_lane(self, source: str, number: int) -> None:
        """Make a lane's stream under a held claim, unless there is one."""
        stream = {
            **self._config(),
            "name": timestamped_name(stream_prefix(source, number)),
            "subjects": [lane_subject(source, number)],
        }
        try:
            await self._js.create_stream(stream)
        except ApiError as error:
            if error.err_code != js.SUBJECTS_OVERLAP:
                raise Misconfigured(f"the queue refuses the stream {stream['name']}: {error}") from error

    # --- the API's side

    async def submit(
        self, lane: Lane, accepted: AcceptedSubmission, checked: CheckedSubmission, deadline_s: float
    ) -> AcceptedSubmission | None:
        """Store a submission's messages, unless its subject is taken: then give what stands there.

        None: stored now. An `AcceptedSubmission`: an earlier one stands there; equal digests mean the same submission.
        Raises `Unavailable`: `queue-full` and `queue-away` (nothing was stored), `outcome-unknown` (it may have
        been, and asking again under the same key tells); `Superseded` where the subject was taken and is free again;
        `Gone` where the stream is another one than at start.
        """
        connect_by_s = min(deadline_s, self._now_s() + RECONNECT_WAIT_S)
        unknown = missing = False
        while self._now_s() < (deadline_s if unknown or (self._js.connected and not missing) else connect_by_s):
            try:
                missing = False
                if self._js.connected and await self._publish(lane, accepted, checked, deadline_s):
                    return None
            except Missing as error:
                missing = True  # nobody took it
                with suppress(Unavailable):
                    if not unknown and await self._js.is_replaced(lane.stream, lane_subject(lane.source, "*")):
                        raise js.replaced_error(lane.stream) from error
            except Unavailable:
                unknown = True
            except ApiError as error:
                if error.err_code == js.WRONG_STREAM:
                    if unknown:
                        break
                    raise js.replaced_error(lane.stream) from error
                if error.err_code == js.WRONG_LAST_SEQUENCE:
                    # taken: by an earlier request, or by this one whose answer was lost
                    unknown = True
                    with suppress(Unavailable):
                        earlier = await self.find_submission(lane, accepted.submission_id)
                        if earlier is None:
                            raise Superseded from error
                        return None if earlier == accepted else earlier
                elif unknown:
                    pass  # no answer that says "not stored" is right any more
                elif error.err_code == js.SEALED:
                    raise Unavailable(
                        Outage.QUEUE_AWAY, "The number of lanes is being changed. Nothing was stored.", retry_after_s=2
                    ) from error
                elif error.err_code == js.STREAM_FULL:
                    raise Unavailable(
                        Outage.QUEUE_FULL, "The queue is full: the bucket is away or slow.", retry_after_s=10
                    ) from error
                elif error.err_code not in _PASSING and error.code < HTTPStatus.INTERNAL_SERVER_ERROR:
                    raise Unavailable(Outage.QUEUE_AWAY, f"The queue refuses the submission: {error}.") from error
            await asyncio.sleep(RETRY_WAIT_S)
        if unknown:
            raise Unavailable(
                Outage.OUTCOME_UNKNOWN,
                f"The queue did not answer in time: submission {accepted.submission_id} may or may not have been "
                "accepted. Send it again under the same Idempotency-Key, or ask for its status.",
                submission_id=accepted.submission_id,
            )
        raise Unavailable(Outage.QUEUE_AWAY, "The queue is away. Nothing was stored.")

    async def _publish(
        self, lane: Lane, accepted: AcceptedSubmission, checked: CheckedSubmission, deadline_s: float
    ) -> bool:
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

    async def find_submission(self, lane: Lane, submission_id: str) -> AcceptedSubmission | None:
        """What stands in the lane under a submission's subject, from the leader."""
        async with self._gone_if_replaced(lane):
            message = await self._js.get_last(lane.stream, lane_subject(lane.source, lane.number, submission_id))
        if message is None:
            return None
        try:
            return Part.parse(message.headers).accepted
        except DeadLetter as error:
            raise Unavailable(
                Outage.QUEUE_AWAY, f"What stands under {submission_id} cannot be read: {error}"
            ) from error

    # --- the consumer's side

    async def has_after(self, lane: Lane, after: int) -> bool:
        """Whether there seems to be a message after a sequence: a hint, from any replica."""
        async with self._gone_if_replaced(lane):
            return await self._js.has(lane.stream, after + 1)

    async def read(self, lane: Lane, tail: Tail | None) -> list[Message]:
        """What follows the tail without a gap, as much as one read takes; the tail is read again and must be the same.

        Raises `Gap` where a replica lacks what has to be there (`halt_if_lost` tells whether it is only late), and
        `Halted` where the tail is another message than it was.
        """
        first = tail.sequence if tail else 1
        async with self._gone_if_replaced(lane):
            read = await self._js.read(lane.stream, first, messages_max=READ_MESSAGES_MAX, bytes_max=READ_BYTES_MAX)
        return follow(tail, read) if tail or read else []

    async def halt_if_lost(self, lane: Lane, gap: Gap) -> None:
        """Ask the leader for a message that a read lacked; raises `Halted` where it lacks it too."""
        if await self.get(lane, gap.sequence) is None:
            raise rolled_back(gap.sequence, "is missing")

    async def get(self, lane: Lane, sequence: int) -> Message | None:
        async with self._gone_if_replaced(lane):
            return await self._js.get(lane.stream, sequence)

    async def state(self, lane: Lane) -> StreamState:
        async with self._gone_if_replaced(lane):
            return await self._js.state(lane.stream)

    async def purge_below(self, lane: Lane, sequence: int) -> None:
        """Drop the messages below a sequence: it and what follows stay."""
        async with self._gone_if_replaced(lane):
            await self._js.purge_below(lane.stream, sequence)

    def _gone_if_replaced(self, lane: Lane) -> AbstractAsyncContextManager[None]:
        """Raises `Gone` where the lane's stream was replaced: by another of its number, or by fewer."""
        return self._js.gone_if_replaced(lane.stream, lane_subject(lane.source, "*"))


def _claim(source: str, number: int) -> str:
    return f"stream.{source}.{number}"


def _outgoing(lane: Lane, accepted: AcceptedSubmission, checked: CheckedSubmission) -> Iterator[Outgoing]:
    subject = lane_subject(lane.source, lane.number, accepted.submission_id)
    for part, payload in checked.parts(accepted):
        headers = part.headers()
        if part.number == 1:
            headers |= {js.EXPECTED_LAST_SUBJECT_SEQUENCE: "0", js.EXPECTED_STREAM: lane.stream}
        yield Outgoing(subject, payload, headers)
