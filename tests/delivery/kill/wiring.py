"""The roles as the kill test runs them: the service's own parts, in wrappers that die where they are told to.

    python -m tests.delivery.kill.wiring consume|serve|lanes N|retain ...

An order is a file of the directory BRONZE_KILL_ORDERS, named after a step, that holds a signal. The process that comes
to the step first takes the order, by renaming the file to `{step}.{its name}.{its pid}`, and sends itself the signal.
"""

import asyncio
import datetime as dt
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

from bronze import settings
from bronze.__main__ import parser
from bronze.objects import encoder
from bronze.objects.encoder import Encoded
from bronze.objects.footer import CONTENT_TYPE, TAIL_BYTES, contents_of_footer, footer_start
from bronze.protocol.attempts import Attempt
from bronze.protocol.chain import Position, ReconciledCut
from bronze.protocol.documents import StoredObject
from bronze.protocol.lane import Lane
from bronze.protocol.message import AcceptedSubmission
from bronze.records.spool import CheckedSubmission
from bronze.servers.bucket import Bucket
from bronze.servers.catalog import PREFIX as CATALOG
from bronze.servers.catalog import Catalog
from bronze.servers.group_commit import Group, GroupLimits, GroupPublisher, Outcome
from bronze.servers.jetstream import JetStream, Outgoing, StreamState
from bronze.servers.queue import LaneAdmin, NatsQueue, Queue
from bronze.servers.s3 import S3Bucket
from bronze.wiring.api import serve
from bronze.wiring.commands import change_lanes
from bronze.wiring.consumer import run_consumer
from bronze.wiring.retention import run_retain
from bronze.wiring.servers import Servers
from tests.delivery.cluster.history import RecordedCatalog
from tests.truth.shifted_clock import Clock, shift_datetime, shift_time

NAME = "BRONZE_KILL_NAME"
ORDERS = "BRONZE_KILL_ORDERS"
LOCK = "BRONZE_KILL_LOCK"
HANDED = "handed to all"
CATALOG_FIRST = "BRONZE_KILL_CATALOG_FIRST"
#: A file: submissions are published in large groups, and the number of messages of each stored group is added to it.
GROUPS = "BRONZE_KILL_GROUPS"
#: All submissions of a group whose reply is lost count as stored.
GROUPS_BELIEVED = "BRONZE_KILL_GROUPS_BELIEVED"
#: `lanes` kills itself after so many requests.
ACTS = "BRONZE_KILL_ACTS"
#: A file with the seconds by which the wall clock of the process is ahead.
CLOCK = "BRONZE_KILL_CLOCK"
#: A file to which the process adds its reads and writes of positions in the catalog.
HISTORY = "BRONZE_KILL_HISTORY"
#: `retain` kills itself after so many requests of a kind: `delete 3`.
KINDS = "BRONZE_KILL_KINDS"

#: A record with this text kills the process that decodes it.
DEADLY = b"kills its decoder"
#: Decoding of a record with this text takes longer than the death of a decoder.
SLOW = b"is slow to decode"
DEATH_S, SLOW_S = 0.5, 2.0
#: The submissions of so long are a group.
HOLD_S = 0.2
#: How old objects seem to `retain`.
AGE = dt.timedelta(days=3)


class Step(StrEnum):
    """Between which two steps a process is killed."""

    READ_PUT = "read and PUT"
    PUT_CATALOG = "PUT and catalog entry"
    CATALOG_PURGE = "catalog entry and purge"
    PUBLISH_202 = "publish and 202"
    GROUP_MESSAGES = "two messages of a group"
    GROUP_ANSWERS = "group commit and answers"
    #: only for the negative control
    CATALOG_PUT = "catalog entry and PUT"


def obey(step: Step) -> None:
    """Take the order that waits at a step, if there is one."""
    order = Path(os.environ[ORDERS]) / step
    try:
        number = signal.Signals[order.read_text()]
        order.rename(f"{order}.{os.environ[NAME]}.{os.getpid()}")
    except FileNotFoundError:
        return  # no order, or another process took it
    os.kill(os.getpid(), number)


class Wrapper:
    """An edge with some of its calls replaced; the others are its own."""

    def __init__(self, edge: Any) -> None:
        self._edge = edge

    def __getattr__(self, name: str) -> Any:
        return getattr(self._edge, name)


class KilledQueue(Wrapper):
    async def submit(
        self, lane: Lane, accepted: AcceptedSubmission, checked: CheckedSubmission, deadline_s: float
    ) -> AcceptedSubmission | None:
        earlier: AcceptedSubmission | None = await self._edge.submit(lane, accepted, checked, deadline_s)
        obey(Step.PUBLISH_202)
        return earlier

    async def purge_below(self, lane: Lane, sequence: int) -> None:
        obey(Step.CATALOG_PURGE)
        await self._edge.purge_below(lane, sequence)


class GroupedQueue(KilledQueue):
    """Holds submissions for a while, and lets go of them at the same moment."""

    def __init__(self, edge: NatsQueue) -> None:
        super().__init__(edge)
        edge.publisher = KilledPublisher
        self._held: asyncio.Future[None] | None = None

    async def submit(
        self, lane: Lane, accepted: AcceptedSubmission, checked: CheckedSubmission, deadline_s: float
    ) -> AcceptedSubmission | None:
        if self._held is None or self._held.done():
            loop = asyncio.get_running_loop()
            self._held = loop.create_future()
            loop.call_later(HOLD_S, self._held.set_result, None)
        await asyncio.shield(self._held)
        return await super().submit(lane, accepted, checked, deadline_s)


class KilledPublisher(GroupPublisher):
    """Two messages are a group already, also after a refused group."""

    def __init__(
        self, jetstream: JetStream, limits: GroupLimits, batches: asyncio.Semaphore, now_s: Callable[[], float]
    ) -> None:
        limits = GroupLimits(alone_max=1, messages_min=2, pause_s=0.0)
        super().__init__(cast(JetStream, KilledBatches(jetstream)), limits, batches, now_s)

    async def _send(self, group: Group) -> Outcome:
        outcome = await super()._send(group)
        if os.environ.get(GROUPS_BELIEVED) and outcome is Outcome.UNKNOWN:
            return Outcome.STORED
        return outcome


class KilledBatches(Wrapper):
    """The connection on which groups are published."""

    async def publish_batch(self, messages: Iterable[Outgoing], count: int, **options: Any) -> int:
        last: int = await self._edge.publish_batch(_killed_halfway(messages, count), count, **options)
        _note_group(count)
        obey(Step.GROUP_ANSWERS)
        return last


def _note_group(count: int) -> None:
    with Path(os.environ[GROUPS]).open("a") as sizes:
        sizes.write(f"{count}\n")


def _killed_halfway(messages: Iterable[Outgoing], count: int) -> Iterator[Outgoing]:
    for number, message in enumerate(messages):
        if number == count // 2:
            obey(Step.GROUP_MESSAGES)
        yield message


class KilledBucket(Wrapper):
    async def create(self, key: str, body: bytes, metadata: Mapping[str, str], content_type: str) -> bool:
        if content_type != CONTENT_TYPE:
            return cast(bool, await self._edge.create(key, body, metadata, content_type))
        obey(Step.READ_PUT)
        created: bool = await self._edge.create(key, body, metadata, content_type)
        obey(Step.PUT_CATALOG)
        return created


class CatalogFirst(Wrapper):
    """The negative control: a bucket that appends the catalog entry before it creates the object."""

    def __init__(self, edges: Servers) -> None:
        super().__init__(edges.bucket)
        self._edges = edges

    async def create(self, key: str, body: bytes, metadata: Mapping[str, str], content_type: str) -> bool:
        if content_type == CONTENT_TYPE:
            contents = contents_of_footer(body[footer_start(len(body), body[-TAIL_BYTES:]) :])
            lane = Lane(contents.source, contents.lane, contents.epoch)
            position, _ = await self._edges.catalog.position(lane)
            await self._edges.catalog.append(lane, position, StoredObject(size=len(body), contents=contents))
            obey(Step.CATALOG_PUT)
        return cast(bool, await self._edge.create(key, body, metadata, content_type))


class CatalogDone(Wrapper):
    """The catalog for `CatalogFirst`: it ignores appended entries, which exist already."""

    async def append(self, lane: Lane, position: Position, stored: StoredObject) -> Position:
        return cast(Position, (await self._edge.position(lane))[0])


class Handed:
    """A lock that every consumer gets at once."""

    attempt = Attempt()

    async def acquire(self) -> None:
        pass

    async def begin_decoding(self, attempt: Attempt) -> None:
        pass

    async def end_decoding(self) -> None:
        pass

    async def keep_alive(self) -> None:
        await asyncio.Event().wait()

    async def release(self) -> None:
        pass


def wire(edges: Servers) -> Servers:
    """Replaces the service's connections by those that execute orders."""
    if os.environ.get(CATALOG_FIRST):
        bucket, catalog = cast(Bucket, CatalogFirst(edges)), cast(Catalog, CatalogDone(edges.catalog))
    else:
        bucket, catalog = cast(Bucket, KilledBucket(edges.bucket)), edges.catalog
    if os.environ.get(HISTORY):
        catalog = cast(Catalog, RecordedCatalog(catalog, Path(os.environ[HISTORY])))
    queue = GroupedQueue(cast(NatsQueue, edges.queue)) if os.environ.get(GROUPS) else KilledQueue(edges.queue)
    return replace(
        edges,
        queue=cast(Queue, queue),
        bucket=bucket,
        catalog=catalog,
        lock=(lambda lane: Handed()) if os.environ.get(LOCK) == HANDED else edges.lock,
    )


def decode_deadly() -> None:
    """Makes decoding of deadly records kill the process, like a library that crashes on some input."""
    encode = encoder.encode_object

    def crash(source: Any, lane: Lane, key: str, cut: ReconciledCut, *others: Any) -> Encoded:
        decoded = [one.message.content() for one in cut.accepted if not one.skip_reason]
        if any(DEADLY in content for content in decoded):
            time.sleep(DEATH_S)
            os.kill(os.getpid(), signal.SIGKILL)
        if any(SLOW in content for content in decoded):
            time.sleep(SLOW_S)
        return encode(source, lane, key, cut, *others)

    encoder.encode_object = crash  # type: ignore[assignment]


class Doomed(Wrapper):
    """A queue that kills its process before a request, after so many requests."""

    left = int(os.environ.get(ACTS, "1000000"))

    def _act(self) -> None:
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1

    async def hold_claim(self, source: str, number: int, command: str) -> None:
        self._act()
        await self._edge.hold_claim(source, number, command)

    async def seal(self, lane: Lane) -> None:
        self._act()
        await self._edge.seal(lane)

    async def remove(self, lane: Lane) -> None:
        self._act()
        await self._edge.remove(lane)

    async def create_lane(self, source: str, number: int) -> None:
        self._act()
        await self._edge.create_lane(source, number)


class DoomedRetention:
    """Queue and bucket for `retain`, which kill the process before a request, after so many of its kind. The queue's
    clock is days ahead, so that the objects are old.
    """

    def __init__(self) -> None:
        self._kind, _, left = os.environ.get(KINDS, "").partition(" ")
        self._left = int(left or 0)

    def act(self, kind: str) -> None:
        if kind == self._kind:
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)
            self._left -= 1

    def substitute(self, jetstream: JetStream, bucket: S3Bucket) -> tuple[JetStream, S3Bucket]:
        queue, objects = AgedQueue(jetstream), AgedBucket(bucket)
        queue.act = objects.act = self.act
        return cast(JetStream, queue), cast(S3Bucket, objects)


class AgedQueue(Wrapper):
    act: Callable[[str], None]

    async def state(self, stream: str) -> StreamState:
        state: StreamState = await self._edge.state(stream)
        later = dt.datetime.fromisoformat(state.now) + AGE
        return replace(state, now=later.isoformat()) if stream.startswith(CATALOG) else state

    async def publish(self, message: Outgoing) -> int:
        self.act("announce")
        return cast(int, await self._edge.publish(message))

    async def delete_message(self, stream: str, sequence: int) -> None:
        self.act("fold")
        await self._edge.delete_message(stream, sequence)


class AgedBucket(Wrapper):
    act: Callable[[str], None]

    async def create(self, key: str, body: bytes, metadata: Mapping[str, str], content_type: str) -> bool:
        self.act("mark")
        return cast(bool, await self._edge.create(key, body, metadata, content_type))

    async def delete(self, key: str) -> None:
        self.act("delete")
        await self._edge.delete(key)


def main(role: str, *arguments: str) -> int:
    decode_deadly()
    if os.environ.get(CLOCK):
        shift_time(Clock(Path(os.environ[CLOCK])).read)
        shift_datetime()
    chosen = settings.load()
    if role == "lanes":
        (number,) = map(int, arguments)
        return asyncio.run(change_lanes(chosen, number, lambda queue: cast(LaneAdmin, Doomed(queue)), yes=True))
    if role == "retain":
        args = parser().parse_args([role, *arguments])
        return asyncio.run(run_retain(args, chosen, DoomedRetention().substitute))
    if role == "serve":
        return asyncio.run(serve(chosen, wire))
    return asyncio.run(run_consumer(chosen, wire))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
