"""The delivery protocol under every order of events that a random search reaches (`docs/delivery.md`).

BRONZE_MODEL_SEED sets the seed of the search, BRONZE_MODEL_EXAMPLES its length.
"""

import datetime as dt
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bronze.admin.retention import ExpiredObjects, HeldBy, Retention, Statement
from bronze.consumer.lane_writer import LaneWriter
from bronze.consumer.upload_telemetry import UploadTelemetry
from bronze.errors import Unavailable
from bronze.objects.encoder import Encoded
from bronze.objects.expiry import expired_up_to, read_mark
from bronze.protocol.chain import Position, Tail, follow
from bronze.protocol.documents import CatalogEntry, Identity, StoredObject
from bronze.protocol.lane import Lane
from bronze.protocol.message import Message
from bronze.servers import jetstream as js
from bronze.servers.bucket import ErasableBucket
from bronze.servers.catalog import NatsCatalog
from bronze.servers.group_commit import Group, GroupPublisher
from bronze.servers.group_commit import Outcome as GroupOutcome
from bronze.servers.queue import READ_BYTES_MAX, READ_MESSAGES_MAX, LaneState, NatsQueue
from tests.delivery.model import (
    FAULTS,
    SERVICE,
    SETTINGS,
    Client,
    NewEpoch,
    Outcome,
    Process,
    Unclaimed,
    Wiring,
    World,
)
from tests.delivery.servers import ModelBucket, Object

SEED = os.environ.get("BRONZE_MODEL_SEED")
EXAMPLES = int(os.environ.get("BRONZE_MODEL_EXAMPLES", "100"))

pytestmark = pytest.mark.timeout(200 + EXAMPLES)

#: Two of these records make a submission of two messages.
LARGE_CHARS = 600_000
POISONS_MAX = 3
EPOCHS_MAX = 3
SKIPS_MAX = 3
#: With fewer clients without an answer, others send at the same moment: the modelled servers answer one request after
#: the other, and a client has to get its answer within the deadline.
WAITING_MAX = 4
#: Longer than the purge grace.
PURGED_S = SETTINGS.purge_grace_s + 1

#: Outcomes of a process's next requests: some succeed, then a fault happens.
fates = st.builds(lambda steps, last: [Outcome.DONE] * steps + [last], st.integers(0, 8), st.sampled_from(Outcome))
numbers = st.integers(0, 2**10)
processes = st.integers(0, 2)  # two consumers and the API
lags = st.integers(1, 4)
sizes = st.sampled_from([0, 0, 0, LARGE_CHARS])


class Delivery(RuleBasedStateMachine):
    """Clients, an API and two writers of one lane. Rules choose the outcome of every request, every crash and pause."""

    began = "2026-01-01T00:59:50"  # so that objects are in two hours
    wiring = SERVICE
    promise_only = False

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.wiring, self.began)
        self.sent = 0
        self.poisons = 0

    def teardown(self) -> None:
        try:
            self.world.drain()
            if self.promise_only:
                self.world.check_promise()
            else:
                self.world.check()
        finally:
            self.world.close()

    @initialize(where=st.sampled_from(["new", "stored", "behind", "late", "racing"]))
    def begin(self, where: str) -> None:
        """Most searches start in a state close to a possible fault, so that a short search finds it; the rest is
        random.
        """
        if where == "new":
            return
        slow, quick = self.world.consumers
        for writer in (slow, quick):
            self.world.work(writer, until="read")
        if where == "late":  # a request for messages that are then stored and purged is still on its way
            self.send("a", 0, [Outcome.DONE, Outcome.LATE, Outcome.DONE], 1)
        else:
            self.send(None, 0, [Outcome.DONE], 1)
        if where == "racing":  # both writers are about to write the same key, and the first object has more messages
            self.world.work(slow, until="put")
        self.send(None, 0, [Outcome.DONE], 1)
        self.world.work(quick, until="put")
        if where != "racing":
            self.world.work(quick, until="read")
        if where in {"late", "behind"}:  # the slow writer still waits for its first read, whose messages are purged
            self.world.run(PURGED_S)

    @invariant()
    def ledger(self) -> None:
        if not self.promise_only and not self.world.rolled_back:  # what a rollback takes away is no longer accepted
            self.world.check_ledger()

    def _record(self, size: int = 0) -> bytes:
        self.sent += 1
        return b'{"vehicle_id":"%d","pad":"%s"}' % (self.sent, b"x" * size)

    @rule(key=st.sampled_from(["a", "b", None]), size=sizes, fates=fates, lag=lags)
    def send(self, key: str | None, size: int, fates: Sequence[Outcome], lag: int) -> None:
        """Send a new body. Under a used key this is a mistake of the client."""
        client = Client([self._record(size), self._record(size)], key)
        self.world.clients.append(client)
        self._send(client, fates, lag)

    @precondition(lambda self: any(client.key for client in self.world.clients))
    @rule(number=numbers, fates=fates, lag=lags)
    def send_again(self, number: int, fates: Sequence[Outcome], lag: int) -> None:
        keyed = [client for client in self.world.clients if client.key]
        self._send(keyed[number % len(keyed)], fates, lag)

    def _send(self, client: Client, fates: Sequence[Outcome], lag: int) -> None:
        if not client.waits:
            self.world.send(client)
            self._answer(self.world.api, -1, fates, lag)

    @rule(number=processes, which=numbers, fates=fates, lag=lags)
    def go_on(self, number: int, which: int, fates: Sequence[Outcome], lag: int) -> None:
        """Let one process run, with a chosen outcome for each request, while the others are paused."""
        self._answer(self.world.processes[number], which, fates, lag)

    def _answer(self, process: Process, which: int, fates: Sequence[Outcome], lag: int) -> None:
        for outcome in fates:
            mine = [ask for ask in self.world.asks if ask.process is process]
            if mine:
                self.world.answer(mine[which % len(mine)], outcome, lag)

    @rule(number=processes)
    def crash(self, number: int) -> None:
        FAULTS["process killed"] += 1
        if number < len(self.world.consumers):
            self.world.restart_consumer(number)
        else:
            self.world.restart_api()

    @rule(seconds=st.sampled_from([1.0, SETTINGS.deadline_s, PURGED_S]))
    def wait(self, seconds: float) -> None:
        self.world.run(seconds)

    @precondition(lambda self: self.world.late)
    @rule(number=numbers)
    def arrive(self, number: int) -> None:
        self.world.arrive(self.world.late[number % len(self.world.late)])

    @precondition(lambda self: self.poisons < POISONS_MAX)
    @rule()
    def poison(self) -> None:
        self.poisons += 1
        self.world.poison(b'"poison %d"' % self.poisons)


class Grouped(Delivery):
    """The same, and submissions wait at the same moment. The API publishes those that wait as a group."""

    @initialize(
        where=st.sampled_from(["waiting", "late", "stored"]),
        first=st.sampled_from([Outcome.DONE, Outcome.FAILED]),
        fate=st.sampled_from([None, Outcome.DONE, Outcome.LOST, Outcome.FAILED, Outcome.LATE]),
    )
    def begin(self, where: str, first: Outcome, fate: Outcome | None) -> None:
        """A submission is on its way, and a group of two waits for it. Of one of these, an earlier message is late or
        stored. Without a fate, the rest of the search decides what becomes of the group.
        """
        for writer in self.world.consumers:
            self.world.work(writer, until="read")
        if where != "waiting":
            self.send("a", 0, [Outcome.DONE, Outcome.LATE], 1)
            self.crash(len(self.world.consumers))
            if where == "stored":
                self.arrive(0)
        self.send(None, 0, [], 1)
        self.send("b", 0, [Outcome.DONE], 1)
        if where == "waiting":
            self.send("a", 0, [Outcome.DONE], 1)
        else:
            self.send_again(0, [Outcome.DONE], 1)
        self._settle_store(first)
        if fate:
            self._settle_store(fate)

    def _settle_store(self, outcome: Outcome) -> None:
        """Give the API's oldest message or group on its way an outcome."""
        asks = [ask for ask in self.world.asks if ask.process is self.world.api and ask.name.startswith("store")]
        self.world.answer(asks[0], outcome)

    @precondition(lambda self: sum(client.waits or not client.settled for client in self.world.clients) < WAITING_MAX)
    @rule(keys=st.lists(st.sampled_from(["a", "b", None]), min_size=2, max_size=3))
    def send_together(self, keys: Sequence[str | None]) -> None:
        """Several clients send at the same moment, and their submissions wait to be published."""
        for key in keys:
            self.send(key, 0, [Outcome.DONE] if key else [], 1)


class RolledBack(Delivery):
    """The same, and the queue's data is reset to an earlier time."""

    began = "2026-01-01T00:00:00"

    @precondition(lambda self: self.world.queue.commits)
    @rule(lost=st.integers(1, 4), catalog=st.booleans())
    def roll_back(self, lost: int, *, catalog: bool) -> None:
        kept = self.world.queue.commits[:-lost]
        self.world.roll_back(kept[-1] if kept else "", catalog=catalog)


class Changed(Delivery):
    """The same, and the lane is sealed, drained and replaced by a lane of a new epoch."""

    @initialize(where=st.sampled_from(["changing", "new", "stored", "behind", "late", "racing"]))
    def begin(self, where: str) -> None:
        """Some searches start with an empty lane that is about to be removed."""
        if where != "changing":
            super().begin(where)
            return
        self.change(again=False)
        assert self.world.changing
        self.world.work(self.world.changing, until="remove")

    @precondition(lambda self: len(self.world.epochs) < EPOCHS_MAX)
    @rule(again=st.booleans())
    def change(self, *, again: bool) -> None:
        """Run the command, after killing a running one. A repetition only finishes the change that was begun."""
        if not again or not self.world.outdated:
            self.world.outdated |= {lane.epoch for lane, _ in self.world.epochs}
        self.world.change()

    @precondition(lambda self: self.world.changing and not self.world.changing.working.done())
    @rule(fates=fates, lag=lags)
    def change_on(self, fates: Sequence[Outcome], lag: int) -> None:
        assert self.world.changing
        self._answer(self.world.changing, 0, fates, lag)


class Retained(Changed):
    """The same, and days pass, after which the oldest objects are deleted and their entries are folded."""

    def __init__(self) -> None:
        super().__init__()
        self.skips = 0

    @initialize(where=st.sampled_from(["new", "old", "paused", "resumed", "kept", "killed"]))
    def begin(self, where: str) -> None:
        """Most searches start with old objects; in some of them, a writer is suspended since before they were stored,
        an identity is kept for longer, or the command was killed.
        """
        if where == "new":
            return
        slow, quick = self.world.consumers
        for writer in (slow, quick):
            self.world.work(writer, until="read")
        self.send("a" if where == "kept" else None, 0, [Outcome.DONE] * 2, 1)
        if where in {"paused", "resumed"}:
            self.send(None, 0, [Outcome.DONE], 1)
            self.world.work(slow, until="identities")
        for _ in range(3):
            self.world.work(quick, until="store catalog")
            self.world.work(quick, until="read")
            self.send(None, 0, [Outcome.DONE], 1)
        self.skip(1)
        if where in {"paused", "resumed"}:
            self.world.retain()
            self.world.finish_retaining()
        if where == "resumed":  # the writer goes on when the objects are gone
            self._answer(slow, 0, [Outcome.DONE] * 2, 1)
        if where == "killed":  # the command was killed after it had created the mark
            self.world.retain()
            assert self.world.retaining
            self.world.work(self.world.retaining, until="store removed")
            self.world.crash(self.world.retaining)

    @invariant()
    def retention(self) -> None:
        if not self.world.unforeseen:
            self.world.check_retention()

    @precondition(lambda self: self.skips < SKIPS_MAX)
    @rule(days=st.sampled_from([1, 1, 30]))
    def skip(self, days: int) -> None:
        self.skips += 1
        self.world.skip(days * 86_400 + 3_600)

    @rule(key=st.sampled_from(["a", "b", None]), size=sizes, fates=fates, lag=lags)
    def send(self, key: str | None, size: int, fates: Sequence[Outcome], lag: int) -> None:
        """No key is used again after days: its identity may be over."""
        super().send(key and f"{key}{self.skips}", size, fates, lag)

    @precondition(lambda self: any((client.key or "").endswith(str(self.skips)) for client in self.world.clients))
    @rule(number=numbers, fates=fates, lag=lags)
    def send_again(self, number: int, fates: Sequence[Outcome], lag: int) -> None:
        keyed = [client for client in self.world.clients if (client.key or "").endswith(str(self.skips))]
        self._send(keyed[number % len(keyed)], fates, lag)

    @rule(whole=st.booleans())
    def retain(self, *, whole: bool) -> None:
        self.world.retain()
        if whole:
            self.world.finish_retaining()

    @precondition(lambda self: self.world.retaining and not self.world.retaining.working.done())
    @rule(fates=fates, lag=lags)
    def retain_on(self, fates: Sequence[Outcome], lag: int) -> None:
        assert self.world.retaining
        self._answer(self.world.retaining, 0, fates, lag)


def search(machine: type[Delivery], examples: int, chosen: str | None = None) -> None:
    """A random search, which is the same for the same seed. The default seed is a digest of the state machine."""
    if chosen:
        machine = seed(int(chosen))(type(machine.__name__, (machine,), {}))
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


def search_and_count(machine: type[Delivery], examples: int, record_property: Callable[[str, object], None]) -> None:
    FAULTS.clear()
    search(machine, examples, SEED)
    record_property("runs", examples)
    for kind, times in FAULTS.items():
        record_property(f"{kind}: faults", times)


def test_delivery(record_property: Callable[[str, object], None]) -> None:
    """With any crash, pause, and lost, stale or late answer, each accepted record is stored once, and all records
    agree.
    """
    search_and_count(Delivery, EXAMPLES, record_property)


def test_grouped(record_property: Callable[[str, object], None]) -> None:
    """If submissions are published as a group, each of them gets its own answer, whatever happens to the group."""
    search_and_count(Grouped, EXAMPLES, record_property)


def test_rolled_back(record_property: Callable[[str, object], None]) -> None:
    """After a rollback of the queue, no stored record is doubled and no queued record is dropped: the lane halts."""
    search_and_count(RolledBack, EXAMPLES, record_property)


def test_changed(record_property: Callable[[str, object], None]) -> None:
    """If a working lane is replaced and any process dies meanwhile, nothing is lost or stored twice."""
    search_and_count(Changed, EXAMPLES * 3 // 5, record_property)


def test_retained(record_property: Callable[[str, object], None]) -> None:
    """If old objects are deleted and any process dies or is paused for days meanwhile, nothing comes back, and nothing
    is deleted that is needed.
    """
    search(Retained, EXAMPLES * 3 // 5, SEED)
    record_property("runs", EXAMPLES * 3 // 5)


@pytest.fixture
def world() -> Iterator[World]:
    world = World(SERVICE, RolledBack.began)
    yield world
    world.close()


def test_a_rolled_back_queue_is_not_purged(world: World) -> None:
    """The messages of a halted lane stay in the queue, even if their sequences are those of stored messages."""
    for number in range(3):
        world.poison(b'"stored %d"' % number)
    world.rest()
    world.roll_back(world.queue.commits[0], catalog=False)
    for number in range(3):
        world.poison(b'"accepted %d"' % number)
    world.drain()
    world.check()
    assert [consumer.halted for consumer in world.consumers] == [True, True]
    assert len(world.queue.present()) == 4


def test_bytes_that_nobody_has_halt_the_lane(world: World) -> None:
    """An object that lists a quarantined message, removed by a rollback, halts the lane instead of endless retries."""
    for number in range(2):
        world.poison(b'"%d"' % number)
    world.work(world.consumers[0], until="put")
    world.restart_consumer(0)  # dies while its PUT is on the way
    world.arrive(world.late[0])
    world.roll_back(world.queue.commits[0], catalog=False)
    world.drain()
    world.check()
    assert [consumer.halted for consumer in world.consumers] == [True, True]


# --- negative controls: parts that each lack one rule


class AnyTail(NatsQueue):
    """Accepts any message at the sequence of the anchor."""

    async def read(self, lane: Lane, tail: Tail | None) -> list[Message]:
        first = tail.sequence if tail else 1
        read = await self._js.read(lane.stream, first, messages_max=READ_MESSAGES_MAX, bytes_max=READ_BYTES_MAX)
        return follow(Tail(tail.sequence, read[0].time) if tail else None, read) if read else []


class SkipsGaps(NatsQueue):
    """Accepts the next message, even if messages before it are missing."""

    async def read(self, lane: Lane, tail: Tail | None) -> list[Message]:
        first = tail.sequence + 1 if tail else 1
        return await self._js.read(lane.stream, first, messages_max=READ_MESSAGES_MAX, bytes_max=READ_BYTES_MAX)


class NoIdentities(NatsCatalog):
    """Does not look up whether a submission is already stored."""

    async def identities(self, lane: Lane, position: Position, ids: Sequence[str]) -> Mapping[str, Identity]:
        return {}


class OwnMind(LaneWriter):
    """Continues after the cut that it wanted to write, not after the object in the bucket."""

    async def _create(self, encoded: Encoded, upload: UploadTelemetry, read: Sequence[Message]) -> StoredObject:
        await super()._create(encoded, upload, read)
        return encoded.stored


class Overwriting(ModelBucket):
    """A bucket whose PUT overwrites existing objects."""

    def put(self, key: str, new: Object) -> bool:
        self._objects[key] = new
        return True


class SettledAsWhole(NatsQueue):
    """If the reply to a group is lost, all its messages count as stored if its last message is."""

    class Publisher(GroupPublisher):
        async def _send(self, group: Group) -> GroupOutcome:
            outcome = await super()._send(group)
            if outcome is GroupOutcome.UNKNOWN:
                last = [*group.messages.values()][-1]
                with suppress(Unavailable):
                    if await self._js.get_last(last.headers[js.EXPECTED_STREAM], last.subject):
                        return GroupOutcome.STORED
            return outcome

    publisher = Publisher


class OneCondition(NatsQueue):
    """Only the first message of a group has the condition that its subject has no message yet."""

    class Publisher(GroupPublisher):
        async def _send(self, group: Group) -> GroupOutcome:
            for message in [*group.messages.values()][1:]:
                headers = {**message.headers}
                del headers[js.EXPECTED_LAST_SUBJECT_SEQUENCE]
                group.messages[message.subject] = replace(message, headers=headers)
            return await super()._send(group)

    publisher = Publisher


class NotSealed(Unclaimed):
    """Replaces a lane that still accepts messages."""

    async def lanes_of(self, source: str) -> list[LaneState]:
        return [replace(one, sealed=False) for one in await super().lanes_of(source)]

    async def seal(self, lane: Lane) -> None: ...


class NotDrained(NewEpoch):
    """Replaces a lane that is not drained."""

    async def _drain(self, lanes: Sequence[LaneState]) -> None: ...


class LastToo(Retention):
    """Deletes the last object of a lane, too."""

    def __init__(
        self, catalog: NatsCatalog, bucket: ErasableBucket, prefix: str, living: Collection[str], **options: Any
    ) -> None:
        super().__init__(catalog, bucket, prefix, (), **options)


class AnyIdentity(Retention):
    """Deletes an object of which an identity lives."""

    async def _held_by(self, lane: Lane, sequence: int, entry: CatalogEntry) -> HeldBy | None:
        return None


class FoldsFirst(Retention):
    """Folds the entries of objects before these are deleted."""

    async def delete(self, sources: Collection[str] | None, entries_before: dt.datetime) -> int:  # type: ignore[override]
        for lane in await expired_up_to(self._bucket, self._prefix):
            if mark := await read_mark(self._bucket, self._prefix, lane):
                await self._catalog.fold(mark.removal(), entries_before.timestamp())
        return await super().delete(sources, entries_before)


class NoMark(Retention):
    """Deletes an object without a mark."""

    async def expire(self, expired: ExpiredObjects, statement: Statement) -> None:
        await self._bucket.delete(expired.entry.file_path)


class AnyTime(LaneWriter):
    """Creates an object, however long ago it read the position."""

    def _check_time(self) -> None: ...


@pytest.mark.parametrize(
    ("machine", "without", "found"),
    [
        pytest.param(Retained, Wiring(retention=LastToo), "I9: the last object", id="the last object"),
        pytest.param(Retained, Wiring(retention=AnyIdentity), "I4: an identity names", id="the identities"),
        pytest.param(Retained, Wiring(retention=FoldsFirst), "I3: folded too early", id="objects before entries"),
        pytest.param(Retained, Wiring(retention=NoMark), "I9: an object without a mark", id="the mark"),
        pytest.param(Retained, Wiring(writer=AnyTime), "I1", id="the time of a write"),
    ],
)
def test_each_rule_of_retention_is_needed(machine: type[Delivery], without: Wiring, found: str) -> None:
    """If any one of them is missing, the same search finds what was deleted too early, or came back."""
    lacking: type[Delivery] = type("Lacking", (machine,), {"wiring": without})
    with pytest.raises(AssertionError, match=found):
        search(lacking, 400)


@pytest.mark.parametrize(
    ("machine", "without", "found"),
    [
        pytest.param(RolledBack, Wiring(queue=AnyTail), "I1", id="the anchor"),
        pytest.param(Delivery, Wiring(catalog=NoIdentities), "I1", id="the identity check"),
        pytest.param(Delivery, Wiring(writer=OwnMind), "I1", id="the object decides"),
        pytest.param(Delivery, Wiring(bucket=Overwriting), "I1", id="create-only"),
        pytest.param(Delivery, Wiring(queue=SkipsGaps), "I1", id="the gap rule"),
        pytest.param(Grouped, Wiring(queue=SettledAsWhole), "I1: accepted and lost", id="each settled on its own"),
        pytest.param(Grouped, Wiring(queue=OneCondition), "I1: stored twice", id="the condition of each in a group"),
        pytest.param(Changed, Wiring(changed=NotSealed), "I1", id="the seal"),
        pytest.param(Changed, Wiring(change=NotDrained), "I1", id="the drain"),
    ],
)
def test_each_rule_is_needed(machine: type[Delivery], without: Wiring, found: str) -> None:
    """If any one of these rules is missing, the same search finds a record that is lost or stored twice."""
    lacking: type[Delivery] = type("Lacking", (machine,), {"wiring": without, "promise_only": True})
    with pytest.raises(AssertionError, match=found):
        search(lacking, 400)
