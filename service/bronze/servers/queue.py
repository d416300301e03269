"""The queue: one JetStream stream per lane. The API publishes; the consumer reads and purges."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from bronze.servers.group_commit import GroupLimits, GroupPublisher
from bronze.servers.jetstream import ApiError, Header, JetStream, Missing, Outgoing, StreamState
from bronze.servers.key_value import KeyValueStore, timestamped_name
from bronze.settings import Settings

RETRY_WAIT_S = 0.1
#: How long a submission waits for the connection before it is refused. Until then nothing was sent.
RECONNECT_WAIT_S = 2.0
#: Bounds of one read, so of the data in flight to one reader.
READ_MESSAGES_MAX = 4096
READ_BYTES_MAX = 16 * 2**20
#: Messages whose headers one read returns.
HEADERS_MAX = 1_000

#: A consumer that is not used is deleted: ours live for one read.
PROTECTION: Mapping[str, object] = {"consumer_limits": {"inactive_threshold": js.HEADERS_CONSUMER_NS}}

#: Temporary refusals: publishing is retried.
_TEMPORARY = frozenset({js.SUBJECT_WRITE_IN_FLIGHT, js.TOO_MANY_OPEN_BATCHES, js.STREAM_FULL})

#: Why a lane accepts nothing.
_CLOSED = {
    js.SEALED: "The number of lanes is being changed",
    js.MESSAGE_TOO_LARGE: "The queue is being moved to other servers",
}

ADVICE = (
    "Set BRONZE_BUCKET, BRONZE_PREFIX and BRONZE_LANES to the values of the stream, or use another queue. To change "
    "the number of lanes, run `bronze lanes N`"
)


@dataclass(frozen=True, slots=True)
class LaneState:
    """A lane that exists, with the number of lanes that its source had when it was created.

    A sealed lane accepts no more messages.
    """

    lane: Lane
    lanes_total: int
    sealed: bool


class Superseded(Exception):
    """The submission's subject was in use and is free again: it was stored and purged, and now has an identity."""


def boot_time_s() -> float:
    """A clock that continues while the machine or the process is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Queue(Protocol):
    """The calls of a queue that the roles need.

    `submit` returns when all parts of a submission are durable, contiguous and stored exactly once under its id. A read
    never skips a message silently.
    """

    async def open(self, sources: Iterable[str]) -> list[Lane]: ...
    async def missing(self, lanes: Sequence[Lane]) -> list[Lane]: ...
    async def submit(
        self, lane: Lane, accepted: AcceptedSubmission, checked: CheckedSubmission, deadline_s: float
    ) -> AcceptedSubmission | None: ...
    async def find_submission(self, lane: Lane, submission_id: str) -> AcceptedSubmission | None: ...
    async def has_after(self, lane: Lane, after: int) -> bool: ...
    async def read(self, lane: Lane, tail: Tail | None) -> list[Message]: ...
    async def halt_if_lost(self, lane: Lane, gap: Gap) -> None: ...
    async def get(self, lane: Lane, sequence: int) -> Message | None: ...
    async def headers(self, lane: Lane, first: int) -> list[Header]: ...
    async def state(self, lane: Lane) -> StreamState: ...
    async def purge_below(self, lane: Lane, sequence: int) -> None: ...


class LaneAdmin(Protocol):
    """The calls of a queue that the change of the number of lanes needs."""

    async def lanes_of(self, source: str) -> list[LaneState]: ...
    async def state(self, lane: Lane) -> StreamState: ...
    async def hold_claim(self, source: str, number: int, command: str) -> None: ...
    async def release_claim(self, source: str, number: int) -> None: ...
    async def seal(self, lane: Lane) -> None: ...
    async def remove(self, lane: Lane) -> None: ...
    async def create_lane(self, source: str, number: int) -> None: ...


class NatsQueue:
    """The queue on JetStream."""

    #: how small messages are published
    publisher: type[GroupPublisher] = GroupPublisher

    def __init__(
        self,
        jetstream: JetStream,
        key_values: KeyValueStore,
        settings: Settings,
        now_s: Callable[[], float] = boot_time_s,
        group_limits: GroupLimits = GroupLimits(),  # noqa: B008  frozen
    ) -> None:
        self._js = jetstream
        self._key_values = key_values
        self._settings = settings
        self._now_s = now_s
        self._group_limits = group_limits
        self._batches: dict[Lane, asyncio.Semaphore] = {}
        self._publishers: dict[Lane, GroupPublisher] = {}

    async def open(self, sources: Iterable[str]) -> list[Lane]:
        """The lanes of each source; the stream of a lane is created if it does not exist.

        All streams existed at one moment, so that two processes never work with different numbers of lanes at once.
        Raises `Misconfigured`, with both values, if a stream was created with other settings.
        """
        lanes = [await self._open(source, number) for source in sources for number in range(self._settings.lanes)]
        for lane in lanes:
            if await self._js.stream_names(lane_subject(lane.source, lane.number)) != [lane.stream]:
                raise Unavailable(Outage.QUEUE_AWAY, f"the stream {lane.stream} was replaced while it was opened")
        return lanes

    async def missing(self, lanes: Sequence[Lane]) -> list[Lane]:
        """Those of the lanes that do not exist now; one request for all of them."""
        names = set(await self._js.stream_names(lane_subject("*", "*")))
        return [lane for lane in lanes if lane.stream not in names]

    async def _open(self, source: str, number: int) -> Lane:
        name = await self._key_values.open_stream(
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
            **PROTECTION,
            "metadata": stream_metadata.of_lane(self._settings),
        }

    async def protect(self, lane: Lane) -> bool:
        """As `KeyValueStore.protect`."""
        return await self._js.update_stream(lane.stream, **PROTECTION)

    # --- the change of the number of lanes (`admin/change_lanes.py`)

    async def lanes_of(self, source: str) -> list[LaneState]:
        """The lanes of a source that exist, whatever number the settings say.

        Raises `Misconfigured` if a lane was created for another bucket, prefix or key layout.
        """
        lanes = []
        for name in sorted(await self._js.stream_names(lane_subject(source, "*"))):
            state = await self._js.state(name)
            stream_metadata.check(state, stream_metadata.of_objects(self._settings), ADVICE)
            number, epoch = name.removeprefix(f"{stream_prefix(source, '')}").split("_")
            lane = Lane(source, int(number), epoch)
            lanes.append(LaneState(lane, int(state.metadata.get(stream_metadata.LANES, 0)), sealed=state.sealed))
        return lanes

    async def hold_claim(self, source: str, number: int, command: str) -> None:
        """From now on no role creates this lane's stream, until `release_claim`."""
        await self._key_values.hold_claim(_claim(source, number), command)

    async def release_claim(self, source: str, number: int) -> None:
        await self._key_values.release_claim(_claim(source, number))

    async def seal(self, lane: Lane) -> None:
        """Make a lane refuse all further messages, permanently; its messages can still be read."""
        await self._js.seal(lane.stream)

    async def remove(self, lane: Lane) -> None:
        """Delete a lane's stream with all its messages."""
        await self._js.delete_stream(lane.stream)

    async def create_lane(self, source: str, number: int) -> None:
        """Create a lane's stream while its claim is held, unless it exists."""
        config = {
            **self._config(),
            "name": timestamped_name(stream_prefix(source, number)),
            "subjects": [lane_subject(source, number)],
        }
        try:
            await self._js.create_stream(config)
        except ApiError as error:
            if error.err_code != js.SUBJECTS_OVERLAP:
                raise Misconfigured(f"the queue refuses the stream {config['name']}: {error}") from error

    # --- the API's side

    async def submit(
        self, lane: Lane, accepted: AcceptedSubmission, checked: CheckedSubmission, deadline_s: float
    ) -> AcceptedSubmission | None:
        """Store a submission's messages, unless its subject is in use.

        Returns None if they were stored now, and the `AcceptedSubmission` that has the subject if there is an earlier
        one; equal digests mean the same submission. Raises `Unavailable`: `queue-full` and `queue-away` if nothing was
        stored, `outcome-unknown` if that is not known (a retry under the same key finds out). Raises `Superseded` if
        the subject was in use and is free again, and `Gone` if the stream was replaced since the start.
        """
        connect_by_s = min(deadline_s, self._now_s() + RECONNECT_WAIT_S)
        unknown = missing = False
        first = True
        while self._now_s() < (deadline_s if unknown or (self._js.connected and not missing) else connect_by_s):
            try:
                missing = False
                if self._js.connected:
                    may_join, first = first, False
                    if await self._publish(lane, accepted, checked, deadline_s, may_join=may_join):
                        return None
            except Missing as error:
                missing = True  # this attempt stored nothing
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
                    # in use: by an earlier request, or by this one, whose answer was lost
                    unknown = True
                    with suppress(Unavailable):
                        earlier = await self.find_submission(lane, accepted.submission_id)
                        if earlier is None:
                            raise Superseded from error
                        return None if earlier == accepted else earlier
                elif unknown:
                    pass  # an answer that says "not stored" would no longer be true
                elif reason := _CLOSED.get(error.err_code):
                    raise Unavailable(Outage.QUEUE_AWAY, f"{reason}. Nothing was stored.", retry_after_s=2) from error
                elif error.err_code == js.STREAM_FULL:
                    raise Unavailable(
                        Outage.QUEUE_FULL,
                        "The queue is full: the bucket or the consumers are unavailable or slow. Nothing was stored. "
                        "Send the submission again later.",
                        retry_after_s=10,
                    ) from error
                elif error.err_code not in _TEMPORARY and error.code < HTTPStatus.INTERNAL_SERVER_ERROR:
                    raise Unavailable(Outage.QUEUE_AWAY, f"The queue refuses the submission: {error}.") from error
            await asyncio.sleep(RETRY_WAIT_S)
        if unknown:
            raise Unavailable(
                Outage.OUTCOME_UNKNOWN,
                f"The queue did not answer in time: submission {accepted.submission_id} may or may not have been "
                "accepted. If it had an Idempotency-Key, send it again with the same key. If not, ask for its status "
                "before you send it again.",
                submission_id=accepted.submission_id,
            )
        raise Unavailable(Outage.QUEUE_AWAY, "The queue is unavailable. Nothing was stored.")

    async def _publish(
        self,
        lane: Lane,
        accepted: AcceptedSubmission,
        checked: CheckedSubmission,
        deadline_s: float,
        *,
        may_join: bool,
    ) -> bool:
        """Publish all messages once; False if the deadline passed before that, and nothing was sent.

        `may_join`: a single message may be published in a group.
        """
        if checked.messages == 1:
            message = next(_outgoing(lane, accepted, checked))
            if may_join:
                return await self._publisher(lane).publish(message, deadline_s)
            await self._js.publish(message)
            return True
        async with self._open_batches(lane):
            if self._now_s() >= deadline_s:
                return False
            await self._js.publish_batch(
                _outgoing(lane, accepted, checked),
                checked.messages,
                in_time=lambda: self._now_s() < deadline_s,
            )
        return True

    def _open_batches(self, lane: Lane) -> asyncio.Semaphore:
        return self._batches.setdefault(lane, asyncio.Semaphore(self._settings.open_batches_max))

    def _publisher(self, lane: Lane) -> GroupPublisher:
        if lane not in self._publishers:
            self._publishers[lane] = self.publisher(self._js, self._group_limits, self._open_batches(lane), self._now_s)
        return self._publishers[lane]

    async def find_submission(self, lane: Lane, submission_id: str) -> AcceptedSubmission | None:
        """The submission that is in the lane under an id, from the leader; None if there is none."""
        async with self._gone_if_replaced(lane):
            message = await self._js.get_last(lane.stream, lane_subject(lane.source, lane.number, submission_id))
        if message is None:
            return None
        try:
            return Part.parse(message.headers).accepted
        except DeadLetter as error:
            raise Unavailable(
                Outage.QUEUE_AWAY, f"The stored message of submission {submission_id} cannot be read: {error}"
            ) from error

    # --- the consumer's side

    async def has_after(self, lane: Lane, after: int) -> bool:
        """Whether there is a message after a sequence: only a hint, since any replica answers."""
        async with self._gone_if_replaced(lane):
            return await self._js.has(lane.stream, after + 1)

    async def read(self, lane: Lane, tail: Tail | None) -> list[Message]:
        """The messages after the tail, without a gap, within the bounds of one read.

        The tail is read again and must be the same message. Raises `Gap` if a replica lacks a message that has to exist
        (`halt_if_lost` asks whether the leader has it), and `Halted` if the tail is another message.
        """
        first = tail.sequence if tail else 1
        async with self._gone_if_replaced(lane):
            messages = await self._js.read(lane.stream, first, messages_max=READ_MESSAGES_MAX, bytes_max=READ_BYTES_MAX)
        return follow(tail, messages) if tail or messages else []

    async def halt_if_lost(self, lane: Lane, gap: Gap) -> None:
        """Ask the leader for a message that a replica lacks; raises `Halted` if the leader lacks it too."""
        if await self.get(lane, gap.sequence) is None:
            raise rolled_back(gap.sequence, "is missing")

    async def get(self, lane: Lane, sequence: int) -> Message | None:
        async with self._gone_if_replaced(lane):
            return await self._js.get(lane.stream, sequence)

    async def headers(self, lane: Lane, first: int) -> list[Header]:
        """The headers of a replica's messages from a sequence on, without payloads; at most `HEADERS_MAX`."""
        async with self._gone_if_replaced(lane):
            return await self._js.read_headers(lane.stream, first, messages_max=HEADERS_MAX)

    async def state(self, lane: Lane) -> StreamState:
        async with self._gone_if_replaced(lane):
            return await self._js.state(lane.stream)

    async def purge_below(self, lane: Lane, sequence: int) -> None:
        """Delete the messages below a sequence; the message at the sequence and all later ones stay."""
        async with self._gone_if_replaced(lane):
            await self._js.purge_below(lane.stream, sequence)

    def _gone_if_replaced(self, lane: Lane) -> AbstractAsyncContextManager[None]:
        """Raises `Gone` if the lane's stream was replaced, by another one or by a smaller number of lanes."""
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
