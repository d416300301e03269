"""The change of the number of lanes on real servers: they are sealed, stored and replaced, whenever it is killed."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import pytest
import pytest_asyncio
from aiorwlock import RWLock

from bronze.admin.change_lanes import LaneChange
from bronze.consumer.lane_writer import LaneWriter
from bronze.consumer.run import consume
from bronze.errors import Gone, Misconfigured, Unavailable
from bronze.objects.reader import read_contents
from bronze.protocol.lane import Lane
from bronze.protocol.submission_id import lane_of
from bronze.servers.catalog import NatsCatalog
from bronze.servers.jetstream import SEALED, ApiError, JetStream, Outgoing, StreamState
from bronze.servers.key_value import KeyValueStore
from bronze.servers.lane_lock import NatsLock
from bronze.servers.queue import LaneAdmin, NatsQueue, boot_time_s
from bronze.servers.s3 import S3Bucket
from bronze.settings import Settings
from bronze.wiring.consumer import limits
from local.machine import limit_s
from tests.contract.making import SOURCES, Heard, Submission, submission, vehicle, wide

SETTLED_S = 0.2


@dataclass(frozen=True)
class Parts:
    """A queue with lanes of one source, and the servers and consumers that store them."""

    settings: Settings
    jetstream: JetStream
    bucket: S3Bucket
    catalog: NatsCatalog
    key_values: KeyValueStore
    heard: Heard

    def queue(self, lanes: int) -> NatsQueue:
        """The queue of a role with this number of lanes in its settings."""
        return NatsQueue(
            self.jetstream, KeyValueStore(self.jetstream, 1), self.settings.model_copy(update={"lanes": lanes})
        )

    async def open(self, lanes: int) -> list[Lane]:
        return await self.queue(lanes).open(["vehicles"])

    def change(self, lanes: int, queue: LaneAdmin | None = None, **waits: float) -> LaneChange:
        queue = queue or self.queue(lanes)
        return LaneChange(queue, self.catalog, ["vehicles"], lanes, lambda _: None, **{"settled_s": SETTLED_S, **waits})

    async def submit(self, lanes: Sequence[Lane], submitted: Submission) -> None:
        """Submit as an API with these lanes."""
        lane = lanes[lane_of(submitted.id, len(lanes))]
        assert (
            await self.queue(len(lanes)).submit(lane, submitted.accepted, submitted.checked, boot_time_s() + 10) is None
        )

    @asynccontextmanager
    async def consuming(self, lanes: Sequence[Lane], purge_grace_s: float = 60) -> AsyncIterator[asyncio.Task[None]]:
        """A consumer of these lanes while the block runs."""
        stop = asyncio.Event()
        decoding = RWLock()
        writers = [
            LaneWriter(
                lane,
                SOURCES["vehicles"],
                self.queue(len(lanes)),
                self.bucket,
                self.catalog,
                NatsLock(self.key_values, lane, object().__repr__(), self.settings.lock_expiry_s),
                self.heard.telemetry,
                decoding,
                prefix=self.settings.prefix,
                limits=limits(self.settings),
                purge_grace_s=purge_grace_s,
            )
            for lane in lanes
        ]
        task = asyncio.create_task(consume(writers, stop))
        try:
            yield task
        finally:
            stop.set()
            async with asyncio.timeout(limit_s(10)):
                await asyncio.gather(task, return_exceptions=True)

    async def stored(self) -> list[str]:
        """The ids of the submissions in the bucket, each as often as it occurs there."""
        objects = [
            await read_contents(self.bucket, key) async for key in self.bucket.keys(f"{self.settings.prefix}/source=")
        ]
        return sorted(
            stored.accepted.submission_id for contents in objects if contents for stored in contents.submissions
        )


@pytest_asyncio.fixture
async def parts(
    settings: Settings,
    jetstream: JetStream,
    bucket: S3Bucket,
    catalog: NatsCatalog,
    key_values: KeyValueStore,
    heard: Heard,
) -> Parts:
    return Parts(settings, jetstream, bucket, catalog, key_values, heard)


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 1)])
async def test_old_lanes_are_stored_completely_and_new_ones_replace_them(parts: Parts, before: int, after: int) -> None:
    """With a new epoch. Consumers of the old ones end, also one that waits for the lock; a retry finds its identity.

    That is no halted lane, of which an operator would be told at once.
    """
    old = await parts.open(before)
    sent = [submission(vehicle(str(number)), key=str(number)) for number in range(20)]
    for submitted in sent:
        await parts.submit(old, submitted)
    async with parts.consuming(old) as first, parts.consuming(old) as second:
        assert await parts.change(after).run()
        for consumer in (first, second):
            async with asyncio.timeout(limit_s(10)):
                with pytest.raises(Gone, match="restart this process"):
                    await consumer
    assert parts.heard.count("bronze.consumer.errors", error_type="halted") == 0
    new = await parts.open(after)
    assert len(new) == after
    assert {lane.epoch for lane in new}.isdisjoint(lane.epoch for lane in old)
    assert await parts.stored() == sorted(submitted.id for submitted in sent)
    for submitted in sent:
        identity = await parts.catalog.identity(submitted.id)
        assert identity is not None
        assert identity.accepted == submitted.accepted
    with pytest.raises(Gone):
        await parts.submit(old, next(late for late in _many() if lane_of(late.id, before) == 0))
    more = [submission(vehicle(f"more {number}")) for number in range(5)]
    async with parts.consuming(new):
        for submitted in more:
            await parts.submit(new, submitted)
        assert not await parts.change(after).run(), "nothing is left to change"
        assert await parts.open(after) == new
        assert await parts.change(before).run()
    assert await parts.stored() == sorted(submitted.id for submitted in [*sent, *more])


def _many() -> list[Submission]:
    return [submission(vehicle(f"late {number}")) for number in range(50)]


async def test_roles_with_the_old_number_are_refused(parts: Parts) -> None:
    """The error names both numbers, and the command that changes them."""
    await parts.open(2)
    await parts.change(3).run()
    with pytest.raises(Misconfigured, match=r"BRONZE_LANES is '3' for .* and '2' in .*bronze lanes N"):
        await parts.open(2)


async def test_a_sealed_lane_accepts_nothing_and_keeps_its_messages(parts: Parts) -> None:
    """Neither one message, nor several, nor a batch that was open when it was sealed; the error says why."""
    (lane,) = await parts.open(1)
    await parts.submit([lane], submission(vehicle("before")))
    opened = {"Nats-Batch-Id": "open", "Nats-Batch-Sequence": "1"}
    await parts.jetstream._request("bronze.vehicles.0.open", b"", opened)
    await parts.queue(1).seal(lane)
    commit = {"Nats-Batch-Id": "open", "Nats-Batch-Sequence": "2", "Nats-Batch-Commit": "1"}
    with pytest.raises(ApiError) as refused:
        await parts.jetstream.publish(Outgoing("bronze.vehicles.0.open", b"", commit))
    assert refused.value.err_code == SEALED
    for records in ([vehicle("after")], wide("after", 3)):
        with pytest.raises(Unavailable, match=r"number of lanes is being changed\. Nothing was stored"):
            await parts.submit([lane], submission(*records))
    assert (await parts.queue(1).state(lane)).last == 1
    assert await parts.open(1) == [lane], "a consumer that starts now drains it"


class Killed(Exception):
    """The command was killed."""


class KilledAfter:
    """A queue whose user is killed after a number of acts."""

    def __init__(self, queue: NatsQueue, acts: int) -> None:
        self._queue = queue
        self._left = acts

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._queue, name)
        if name not in {"hold_claim", "seal", "remove", "create_lane", "release_claim"}:
            return call

        async def act(*arguments: Any) -> None:
            if not self._left:
                raise Killed
            self._left -= 1
            await call(*arguments)

        return act


async def test_a_command_that_was_killed_at_any_step_is_finished_by_the_next(parts: Parts) -> None:
    """No role creates lanes of the old number in between, nothing is lost, and nothing is stored twice."""
    sent: list[Submission] = []
    for acts in range(100):
        before, after = (2, 3) if acts % 2 == 0 else (3, 2)
        old = await parts.open(before)
        sent.append(submission(vehicle(str(acts)), key=str(acts)))
        await parts.submit(old, sent[-1])
        async with parts.consuming(old):
            killed = parts.change(after, cast(LaneAdmin, KilledAfter(parts.queue(after), acts)), settled_s=0)
            try:
                await killed.run()
            except Killed:
                for lanes in (before, after):  # a role that starts now opens a complete set of lanes, or refuses
                    try:
                        opened = await parts.open(lanes)
                    except (Misconfigured, Unavailable):
                        continue
                    states = await parts.queue(lanes).lanes_of("vehicles")
                    assert [state.lane for state in states] == opened
                await parts.change(after, settled_s=0).run()
            else:
                break
        assert len(await parts.open(after)) == after
    assert acts > 10
    assert await parts.stored() == sorted(submitted.id for submitted in sent)


async def test_a_drain_without_progress_ends_and_can_be_continued(parts: Parts) -> None:
    old = await parts.open(2)
    waiting = submission(vehicle("waiting"))
    await parts.submit(old, waiting)
    with pytest.raises(Unavailable, match=rf"not stored yet: 1 message, .*{old[lane_of(waiting.id, 2)].stream}"):
        await parts.change(1, stalled_s=0.3).run()
    async with parts.consuming(await parts.open(2)):
        assert await parts.change(1).run()
    assert await parts.stored() == [waiting.id]


class ReplacedWhileOpening(JetStream):
    """Another process changes the number of lanes and changes it back while a role opens the last one."""

    replace: Callable[[], Awaitable[object]] | None = None

    async def state(self, stream: str) -> StreamState:
        state = await super().state(stream)
        if self.replace and "_1_" in stream:
            replace, self.replace = self.replace, None
            await replace()
        return state


async def test_lanes_that_did_not_exist_at_one_moment_are_not_opened(parts: Parts) -> None:
    """A role that was paused while it opened them could send the same key to lanes of two different numbers."""
    await parts.open(2)
    slow = await ReplacedWhileOpening.connect(parts.settings.queue_servers)

    async def change_and_change_back() -> None:
        for lanes in (3, 2):
            await parts.change(lanes, settled_s=0).run()

    slow.replace = change_and_change_back
    try:
        queue = NatsQueue(slow, KeyValueStore(slow, 1), parts.settings.model_copy(update={"lanes": 2}))
        with pytest.raises(Unavailable, match="replaced while it was opened"):
            await queue.open(["vehicles"])
        assert await queue.open(["vehicles"]) == await parts.open(2)
    finally:
        await slow.close()


async def test_a_missing_stream_is_reported_at_once_and_a_replaced_one_ends_the_role(parts: Parts) -> None:
    """A missing one may come back, as after a restored backup; submissions get a 503 soon, and nothing is stored."""
    (lane,) = await parts.open(1)
    queue = parts.queue(1)
    await queue.remove(lane)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: queue.read(lane, None),
        lambda: queue.get(lane, 1),
        lambda: queue.state(lane),
        lambda: queue.has_after(lane, 0),
        lambda: queue.find_submission(lane, "one"),
    ]
    for call in calls:
        began_s = time.monotonic()
        with pytest.raises(Unavailable, match="no stream"):
            await call()
        assert time.monotonic() - began_s < limit_s(1)
    began_s = time.monotonic()
    with pytest.raises(Unavailable, match="Nothing was stored"):
        await parts.submit([lane], submission(vehicle("one")))
    assert time.monotonic() - began_s < min(limit_s(4), parts.settings.deadline_s)
    await queue.create_lane("vehicles", 0)
    for call in [*calls, lambda: parts.submit([lane], submission(*wide("one", 2)))]:
        with pytest.raises(Gone, match="restart this process"):
            await call()


async def test_an_api_whose_lane_number_no_longer_exists_ends_too(parts: Parts) -> None:
    """There are fewer lanes now, so no other stream has the number of the last one."""
    _, last = await parts.open(2)
    assert await parts.change(1).run()
    late = submission(vehicle("late"))
    for _ in range(2):
        with pytest.raises(Gone, match="restart this process"):
            await parts.queue(2).submit(last, late.accepted, late.checked, boot_time_s() + 10)
        with pytest.raises(Gone, match="restart this process"):
            await parts.queue(2).state(last)
