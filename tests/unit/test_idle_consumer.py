"""A consumer without messages looks for them less often, and still in time; on modelled servers, in virtual time."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

import pytest
from aiorwlock import RWLock

from bronze.consumer.lane_writer import LaneWriter
from bronze.protocol.limits import Limits
from bronze.protocol.message import Message
from bronze.servers.catalog import SUBJECTS, NatsCatalog
from bronze.servers.jetstream import StreamState
from bronze.servers.key_value import KeyValueStore
from bronze.servers.queue import NatsQueue
from bronze.settings import Settings
from bronze.telemetry.signals import Role
from tests.contract.making import SOURCES, Heard, submission, until, vehicle
from tests.delivery.model import BothOwn, Loop
from tests.delivery.servers import ModelBucket, ModelJetStream, Object, QueueServer

CATALOG = "BRONZE_CATALOG_1"


class Asked(ModelJetStream):
    """A connection that counts the questions for new messages, and the reads of messages."""

    questions = 0
    reads = 0
    states = 0

    async def has(self, stream: str, sequence: int) -> bool:
        self.questions += 1
        return await super().has(stream, sequence)

    async def read(self, stream: str, first: int, *, messages_max: int, bytes_max: int) -> list[Message]:
        self.reads += 1
        return await super().read(stream, first, messages_max=messages_max, bytes_max=bytes_max)

    async def state(self, stream: str) -> StreamState:
        self.states += 1
        return await super().state(stream)


@dataclass
class Site:
    """A consumer of one lane, and its servers."""

    loop: Loop
    heard: Heard
    objects: dict[str, Object] = field(default_factory=dict)

    async def open(self, age_s: float) -> tuple[Asked, NatsQueue, LaneWriter]:
        """The connection, the queue, and the writer of its lane."""
        server = QueueServer(self.loop.time)
        server.create({"name": CATALOG, "subjects": SUBJECTS, "allow_atomic": True, "allow_msg_ttl": True})
        jetstream, settings = Asked(server), Settings()
        key_values = KeyValueStore(jetstream, 1)
        await key_values.open()
        queue = NatsQueue(jetstream, key_values, settings, self.loop.time)
        (lane,) = await queue.open(["vehicles"])
        writer = LaneWriter(
            lane,
            SOURCES["vehicles"],
            queue,
            ModelBucket(self.objects),
            NatsCatalog(jetstream, CATALOG),
            BothOwn(),
            self.heard.telemetry,
            RWLock(),
            prefix="bronze",
            limits=Limits(bytes_max=2**20, messages_max=100, submissions_max=100, age_s_max=age_s),
            purge_grace_s=60,
            now_s=self.loop.time,
        )
        return jetstream, queue, writer

    async def run(self, age_s: float, idle_s: float) -> tuple[int, int, float]:
        """The questions and reads while the lane is idle, and the seconds from a message to its object."""
        jetstream, queue, writer = await self.open(age_s)
        (lane,) = await queue.open(["vehicles"])
        stop = asyncio.Event()
        running = asyncio.create_task(writer.run(stop))
        await asyncio.sleep(idle_s)
        questions, reads = jetstream.questions, jetstream.reads
        sent = submission(vehicle("a"))
        await queue.submit(lane, sent.accepted, sent.checked, self.loop.time() + 10)
        sent_s = self.loop.time()
        await until(lambda: bool(self.objects), within_s=age_s + 5)
        taken_s = self.loop.time() - sent_s
        stop.set()
        await running
        return questions, reads, taken_s


@pytest.fixture
def site() -> Iterator[Site]:
    heard = Heard(Role.CONSUMER)
    with closing(Loop()) as loop:
        yield Site(loop, heard)
    heard.telemetry.shutdown()


@pytest.mark.parametrize(("age_s", "questions_max"), [(15, 70), (1, 130), (0, 620)])
def test_an_idle_lane_is_asked_rarely_and_its_next_message_is_in_time(
    site: Site, age_s: float, questions_max: int
) -> None:
    """In a minute: once per second by default. The object is written when its message is due, as without the wait. The
    last message is read again, which notices a queue that was rolled back, but more rarely: it may be large.
    """
    questions, reads, taken_s = site.loop.run_until_complete(site.run(age_s, 60))
    assert questions_max / 2 < questions + reads <= questions_max
    assert 10 <= reads <= 15
    assert age_s <= taken_s <= age_s + 0.25


def test_an_idle_lane_is_maintained_rarely_and_a_waiting_message_is_reported_in_time(site: Site) -> None:
    """In a minute: every 2.5 s, and each second while a message waits."""

    async def states() -> tuple[int, int]:
        jetstream, queue, writer = await site.open(15)
        (lane,) = await queue.open(["vehicles"])
        maintenance = asyncio.create_task(writer.maintain())
        before = jetstream.states
        await asyncio.sleep(60)
        idle = jetstream.states - before
        sent = submission(vehicle("a"))
        await queue.submit(lane, sent.accepted, sent.checked, site.loop.time() + 10)
        await asyncio.sleep(3)
        (depth,) = site.heard.points("bronze.queue.depth")
        assert depth.value == 1
        before = jetstream.states
        await asyncio.sleep(10)
        maintenance.cancel()
        return idle, jetstream.states - before

    idle, waiting = site.loop.run_until_complete(states())
    assert 20 <= idle <= 25
    assert 8 <= waiting <= 10
