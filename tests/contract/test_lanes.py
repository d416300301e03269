"""The change of the number of lanes on real servers: sealed, stored to the end, replaced; whatever cuts it short."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import pytest
import pytest_asyncio

from bronze import wiring
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
from local.machine import limit_s
from tests.contract.making import SOURCES, Heard, Submission, submission, vehicle, wide

SETTLED_S = 0.2


@dataclass(frozen=True)
class Parts:
    """A queue with two lanes of one source, and all that stores them."""

    settings: Settings
    jetstream: JetStream
    bucket: S3Bucket
    catalog: NatsCatalog
    key_values: KeyValueStore
    heard: Heard

    def queue(self, lanes: int) -> NatsQueue:
        """The queue of a role with such a setting."""
        return NatsQueue(
            self.jetstream, KeyValueStore(self.jetstream, 1), self.settings.model_copy(update={"lanes": lanes})
        )

    async def open(self, lanes: int) -> list[Lane]:
        return await self.queue(lanes).open(["vehicles"])

    def change(self, lanes: int, queue: LaneAdmin | None = None, **waits: float) -> LaneChange:
        queue = queue or self.queue(lanes)
        return LaneChange(queue, self.catalog, ["vehicles"], lanes, lambda _: None, **{"settled_s": SETTLED_S, **waits})

    async def submit(self, lanes: Sequence[Lane], one: Submission) -> None:
        """As an API that works on these lanes."""
        lane = lanes[lane_of(one.id, len(lanes))]
        assert await self.queue(len(lanes)).submit(lane, one.accepted, one.checked, boot_time_s() + 10) is None

    @asynccontextmanager
    async def consuming(self, lanes: Sequence[Lane]) -> AsyncIterator[asyncio.Task[None]]:
        """A consumer of these lanes for as long as the block runs."""
        stop = asyncio.Event()
        writers = [
            LaneWriter(
                lane,
                SOURCES["vehicles"],
                self.queue(len(lanes)),
                self.bucket,
                self.catalog,
                NatsLock(self.key_values, lane, object().__repr__(), self.settings.lock_expiry_s),
                self.heard.telemetry,
                prefix=self.settings.prefix,
                limits=wiring.limits(self.settings),
                purge_grace_s=60,
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
        """The ids of the submissions in the bucket, each as often as it is there."""
        found = [await read_contents(self.bucket, key) async for key in self.bucket.keys(f"{self.settings.prefix}/")]
        return sorted(one.accepted.submission_id for contents in found if contents for one in contents.submissions)


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
async def test_old_lanes_are_stored_to_their_end_and_new_ones_take_their_place(
    parts: Parts, before: int, after: int
) -> None:
    """Of a new epoch; consumers of the old ones end, also one that waits for the lock; a retry finds its identity."""
    old = await parts.open(before)
    sent = [submission(vehicle(str(number)), key=str(number)) for number in range(20)]
    for one in sent:
        await parts.submit(old, one)
    async with parts.consuming(old) as first, parts.consuming(old) as second:
        assert await parts.change(after).run()
        for consumer in (first, second):
            async with asyncio.timeout(limit_s(10)):
                with pytest.raises(Gone, match="restart this process"):
                    await consumer
    new = await parts.open(after)
    assert len(new) == after
    assert {lane.epoch for lane in new}.isdisjoint(lane.epoch for lane in old)
    assert await parts.stored() == sorted(one.id for one in sent)
    for one in sent:
        identity = await parts.catalog.identity(one.id)
        assert identity is not None
        assert identity.accepted == one.accepted
    with pytest.raises(Gone):
        await parts.submit(old, next(one for one in _many() if lane_of(one.id, before) == 0))
    more = [submission(vehicle(f"more {number}")) for number in range(5)]
    async with parts.consuming(new):
        for one in more:
            await parts.submit(new, one)
        assert not await parts.change(after).run(), "it is so already"
        assert await parts.open(after) == new
        assert await parts.change(before).run()
    assert await parts.stored() == sorted(one.id for one in [*sent, *more])


def _many() -> list[Submission]:
    return [submission(vehicle(f"late {number}")) for number in range(50)]


async def test_roles_with_the_number_of_before_are_refused(parts: Parts) -> None:
    """With both numbers named, and the command that changes it."""
    await parts.open(2)
    await parts.change(3).run()
    with pytest.raises(Misconfigured, match=r"'bronze.lanes': '3'.*'bronze.lanes': '2'.*bronze lanes N"):
        await parts.open(2)


async def test_a_sealed_lane_takes_nothing_and_keeps_all(parts: Parts) -> None:
    """Neither one message, nor several, nor a batch that was open when it was sealed; and that is said."""
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


class Cut(Exception):
    """The command was killed here."""


class CutShort:
    """A queue that stops its user after so many acts."""

    def __init__(self, queue: NatsQueue, acts: int) -> None:
        self._queue = queue
        self._left = acts

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._queue, name)
        if name not in {"hold_claim", "seal", "remove", "create_lane", "release_claim"}:
            return call

        async def act(*arguments: Any) -> None:
            if not self._left:
                raise Cut
            self._left -= 1
            await call(*arguments)

        return act


async def test_a_command_that_was_cut_short_anywhere_is_finished_by_the_next(parts: Parts) -> None:
    """Nobody makes lanes of the number of before meanwhile, nothing is lost, and nothing is there twice."""
    sent: list[Submission] = []
    for acts in range(100):
        before, after = (2, 3) if acts % 2 == 0 else (3, 2)
        old = await parts.open(before)
        sent.append(submission(vehicle(str(acts)), key=str(acts)))
        await parts.submit(old, sent[-1])
        async with parts.consuming(old):
            short = parts.change(after, cast(LaneAdmin, CutShort(parts.queue(after), acts)), settled_s=0)
            try:
                await short.run()
            except Cut:
                for lanes in (before, after):  # a role starts now: it works on what is whole, or refuses
                    try:
                        opened = await parts.open(lanes)
                    except (Misconfigured, Unavailable):
                        continue
                    there = await parts.queue(lanes).lanes_of("vehicles")
                    assert [one.lane for one in there] == opened
                await parts.change(after, settled_s=0).run()
            else:
                break
        assert len(await parts.open(after)) == after
    assert acts > 10
    assert await parts.stored() == sorted(one.id for one in sent)


async def test_a_drain_that_stands_still_is_given_up_and_goes_on_later(parts: Parts) -> None:
    old = await parts.open(2)
    one = submission(vehicle("waiting"))
    await parts.submit(old, one)
    with pytest.raises(Unavailable, match=rf"1 messages are still to be stored.*{old[lane_of(one.id, 2)].stream}"):
        await parts.change(1, stalled_s=0.3).run()
    async with parts.consuming(await parts.open(2)):
        assert await parts.change(1).run()
    assert await parts.stored() == [one.id]


class ReplacedMeanwhile(JetStream):
    """Somebody changes the number of lanes there and back while a role opens the last one."""

    meanwhile: Callable[[], Awaitable[object]] | None = None

    async def state(self, stream: str) -> StreamState:
        state = await super().state(stream)
        if self.meanwhile and "_1_" in stream:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        return state


async def test_lanes_that_were_not_there_at_one_moment_are_not_worked_on(parts: Parts) -> None:
    """A role that was paused while it opened them could send under the same key to lanes of two numbers."""
    await parts.open(2)
    slow = await ReplacedMeanwhile.connect(parts.settings.nats_url)

    async def there_and_back() -> None:
        for lanes in (3, 2):
            await parts.change(lanes, settled_s=0).run()

    slow.meanwhile = there_and_back
    try:
        queue = NatsQueue(slow, KeyValueStore(slow, 1), parts.settings.model_copy(update={"lanes": 2}))
        with pytest.raises(Unavailable, match="replaced while it was opened"):
            await queue.open(["vehicles"])
        assert await queue.open(["vehicles"]) == await parts.open(2)
    finally:
        await slow.close()


async def test_a_stream_that_is_missing_is_told_at_once_and_one_that_was_replaced_ends_the_role(parts: Parts) -> None:
    """The first may come back, as after a restored backup; a submission gets its 503 soon, and nothing is stored."""
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


async def test_an_api_that_only_hears_of_lanes_that_are_no_more_ends_too(parts: Parts) -> None:
    """There are fewer lanes now: of the last one's number there is no other stream whose answer would tell."""
    _, last = await parts.open(2)
    assert await parts.change(1).run()
    one = submission(vehicle("late"))
    for _ in range(2):
        with pytest.raises(Gone, match="restart this process"):
            await parts.queue(2).submit(last, one.accepted, one.checked, boot_time_s() + 10)
        with pytest.raises(Gone, match="restart this process"):
            await parts.queue(2).state(last)
