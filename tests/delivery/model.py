"""The delivery protocol in a model: the processes run the service's own code, the servers and time are modelled.

Each request to a server waits until a test decides its outcome: done, done with a lost reply, failed, applied late, or
answered by a stale replica. So a test can choose any order of events between two writers of one lane and an API, with
any crash and pause. It needs no real time and can be repeated exactly.
"""

import asyncio
import datetime as dt
import logging
import selectors
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache, lru_cache
from io import BytesIO
from typing import Any, TypeVar

import msgspec
import pyarrow.parquet as pq
from aiorwlock import RWLock
from opentelemetry.metrics import NoOpMeter
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import NoOpTracer

from bronze.admin.change_lanes import LaneChange
from bronze.admin.retention import Retention, Statement
from bronze.api.ingest import Ingest, SubmissionHead
from bronze.api.submit_telemetry import SubmissionTelemetry
from bronze.consumer.lane_writer import LaneWriter
from bronze.errors import Gone, Outage, Refused, Unavailable
from bronze.ledger.report import LedgerReport
from bronze.objects.footer import TAIL_BYTES, contents_of_footer, footer_start
from bronze.protocol.attempts import Attempt
from bronze.protocol.documents import CatalogEntry, Contents, Identity, StoredObject, Totals, entry_of
from bronze.protocol.expiry import lane_of_mark
from bronze.protocol.keys import KEY_LAYOUT
from bronze.protocol.lane import Lane, lane_subject
from bronze.protocol.limits import Limits
from bronze.protocol.message import AcceptedSubmission, MessageKind, Part, split_records
from bronze.records import sources
from bronze.records.json_intake import JsonIntake
from bronze.servers.catalog import SUBJECTS, NatsCatalog
from bronze.servers.group_commit import GroupLimits
from bronze.servers.jetstream import ApiError, Outgoing
from bronze.servers.key_value import KeyValueStore
from bronze.servers.queue import LaneState, NatsQueue
from bronze.settings import Settings
from bronze.telemetry import sdk
from bronze.telemetry.instruments import Instruments
from bronze.telemetry.sdk import Telemetry
from bronze.telemetry.signals import attribute
from tests.delivery.servers import ModelBucket, ModelJetStream, Object, QueueServer, Stream, at_once

T = TypeVar("T")

SOURCE = sources.built_in()["vehicles"]
CATALOG = "BRONZE_CATALOG_20260101T000000000"
SETTINGS = Settings(deadline_s=4, purge_grace_s=8)
#: The streams, as the service creates them.
LANE_CONFIG = {
    "subjects": [lane_subject(SOURCE.name, 0)],
    "allow_atomic": True,
    "metadata": {"bronze.bucket": SETTINGS.bucket, "bronze.prefix": SETTINGS.prefix, "bronze.key_layout": KEY_LAYOUT},
}
CATALOG_CONFIG = {"name": CATALOG, "subjects": SUBJECTS, "allow_atomic": True, "allow_msg_ttl": True}
#: Two small messages that wait while another is on its way are a group.
GROUPS = GroupLimits(alone_max=1, messages_min=2, pause_s=0.0)
#: Two writers that make different cuts, as two versions of the service may.
MESSAGES_MAX = (3, 2)
#: After this time a request has timed out, and its reply is lost.
REPLY_S_MAX = 2.0
#: The virtual time of a step: enough for an idle writer to read again.
STEP_S = 0.11
#: The age of objects that expire.
RETENTION = dt.timedelta(days=1)
#: The bucket refuses a request that was signed longer ago.
SIGNATURE_S_MAX = 900.0
#: The largest body; no test reaches it.
BODY_BYTES_MAX = 2**30
#: Without faults a client has its answer after so many attempts.
RETRIES_MAX = 2
#: The faults that were decided in all worlds since they were cleared, by kind.
FAULTS: Counter[str] = Counter()


# --- time


class _Clock(selectors.SelectSelector):
    """Advances virtual time instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now_s += max(0.0, timeout or 0.0)
        return super().select(0)

    def skip(self, seconds: float) -> None:
        self.now_s += seconds


class Loop(asyncio.SelectorEventLoop):
    """An event loop with virtual time, which advances only when nothing can run. Work for threads is done at once."""

    def __init__(self) -> None:
        self._clock = _Clock()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now_s

    def skip(self, seconds: float) -> None:
        """Let time pass in which nothing runs."""
        self._clock.skip(seconds)

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        done: asyncio.Future[T] = self.create_future()
        done.set_result(func(*args))
        return done


# --- the servers


class Outcome(StrEnum):
    """The outcome of a request. `STALE` differs from `DONE` only for requests that a replica may answer."""

    DONE = "done"
    LOST = "done, reply lost"
    FAILED = "not done"
    LATE = "given up, and done later"
    STALE = "answered by a replica that lags"


@dataclass(eq=False)
class Ask:
    """A request on its way to a server. `act` gets the number of newest messages that the replica lacks."""

    process: "Process"
    name: str
    act: Callable[[int], Any]
    writes: bool
    reply: asyncio.Future[Any]
    asked_s: float


class Link(ModelJetStream):
    """A process's connection to the queue. If it is patient, each request waits for the test."""

    def __init__(self, process: "Process", *, patient: bool = True) -> None:
        super().__init__(process.world.server, process.ask if patient else at_once)
        self._world = process.world

    async def create_stream(self, config: Mapping[str, Any]) -> None:
        """Create the lane's stream. The model names it by its own time."""
        await self._ask_server("make", lambda _: self._world.new_epoch(config), writes=True)

    async def has(self, stream: str, sequence: int) -> bool:
        return True  # only a hint; this one always makes the reader read


# --- the processes


class Unclaimed(NatsQueue):
    """The queue of the command that changes the lanes. It holds no claims: no role of the model creates a stream."""

    async def hold_claim(self, source: str, number: int, command: str) -> None: ...
    async def release_claim(self, source: str, number: int) -> None: ...


class NewEpoch(LaneChange):
    """The command that changes the lanes: here to one lane of a new epoch."""

    #: the epochs to replace
    outdated: AbstractSet[str] = frozenset()

    def _as_wanted(self, there: Sequence[LaneState]) -> bool:
        return bool(there) and not any(one.sealed or one.lane.epoch in self.outdated for one in there)


@dataclass(frozen=True)
class Wiring:
    """The parts of the processes. A negative control replaces a part by one that lacks a rule."""

    queue: type[NatsQueue] = NatsQueue
    catalog: type[NatsCatalog] = NatsCatalog
    bucket: type[ModelBucket] = ModelBucket
    writer: type[LaneWriter] = LaneWriter
    change: type[NewEpoch] = NewEpoch
    changed: type[Unclaimed] = Unclaimed
    retention: type[Retention] = Retention


#: The parts of the real service.
SERVICE = Wiring()


class BothOwn:
    """A lock that every consumer has: correctness must not depend on the lock."""

    attempt = Attempt()

    async def acquire(self) -> None: ...
    async def begin_decoding(self, attempt: Attempt) -> None: ...
    async def end_decoding(self) -> None: ...
    async def release(self) -> None: ...

    async def keep_alive(self) -> None:
        await asyncio.Event().wait()


class LedgerHeard:
    """A report of the ledger by one process, and the records that it last reported, by outcome."""

    def __init__(self, world: "World") -> None:
        link = Link(Process(world), patient=False)
        self.lanes = [lane for lane, _ in world.epochs if lane.stream in world.server.streams]
        self.records: dict[str, float] = {}
        instruments = replace(_telemetry().instruments, ledger_records=self)  # type: ignore[arg-type]
        self._report = LedgerReport(
            NatsCatalog(link, CATALOG),
            ModelBucket(world.objects),
            NatsQueue(link, KeyValueStore(link, 1), SETTINGS),
            instruments,
            self.lanes,
            [SOURCE.name],
        )

    def set(self, amount: float, attributes: Mapping[str, str]) -> None:
        self.records[str(attributes[attribute.bronze_outcome])] = amount

    async def report(self) -> Mapping[str, float]:
        await self._report.report()
        return dict(self.records)


class Process:
    """A running process with its concurrent tasks, all of which end at a crash."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.tasks: list[asyncio.Task[None]] = []

    async def ask(self, name: str, act: Callable[[int], T], *, writes: bool = False) -> T:
        """Let the test decide the outcome of a request."""
        return await self.world.ask(self, name, act, writes=writes)

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.world.loop.create_task(work)
        self.tasks.append(task)
        return task

    def kill(self) -> None:
        for task in self.tasks:
            task.cancel()
        self.world.loop.run_until_complete(asyncio.wait(self.tasks)) if self.tasks else None


class Consumer(Process):
    """A consumer of the lane. Each request of its writer waits for the test; its purges are done at once."""

    def __init__(self, world: "World", messages_max: int) -> None:
        super().__init__(world)
        self._lane = world.lane
        self.gone = False
        self.writing = self.start(self._until_gone(self._writer(messages_max, patient=True).run(asyncio.Event())))
        self.start(self._until_gone(self._writer(messages_max, patient=False).maintain()))

    async def _until_gone(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Gone:
            self.gone = True

    def _writer(self, messages_max: int, *, patient: bool) -> LaneWriter:
        link, made_of = Link(self, patient=patient), self.world.wiring
        return made_of.writer(
            self._lane,
            SOURCE,
            made_of.queue(link, KeyValueStore(link, 1), SETTINGS),
            made_of.bucket(self.world.objects, self.ask),
            made_of.catalog(link, CATALOG),
            BothOwn(),
            _telemetry(),
            RWLock(),
            prefix="bronze",
            limits=Limits(bytes_max=4 * 2**20, messages_max=messages_max, submissions_max=2, age_s_max=0.0),
            purge_grace_s=SETTINGS.purge_grace_s,
            now_s=self.world.now_s,
            clock_s=self.world.loop.time,
        )

    @property
    def halted(self) -> bool:
        return self.writing.done()


class ApiProcess(Process):
    """An API process."""

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        link = Link(self)
        self.ingest = Ingest(
            {(SOURCE.name, 0): world.lane},
            SETTINGS.lanes,
            world.wiring.queue(link, KeyValueStore(link, 1), SETTINGS, world.loop.time, GROUPS),
            world.wiring.catalog(link, CATALOG),
            SETTINGS.deadline_s,
            world.loop.time,
        )
        self.gone = False


class Changing(Process):
    """A running command that changes the lanes."""

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        link, made_of = Link(self), world.wiring
        self._change = made_of.change(
            made_of.changed(link, KeyValueStore(link, 1), SETTINGS),
            NatsCatalog(link, CATALOG),
            [SOURCE.name],
            1,
            lambda _: None,
            settled_s=0,
        )
        self._change.outdated = world.outdated
        self.working = self.start(self._run())
        self.working.add_done_callback(self._ended)

    async def _run(self) -> None:
        with suppress(Unavailable):  # the operator runs it again
            await self._change.run()

    def _ended(self, work: asyncio.Task[None]) -> None:
        if not work.cancelled() and (error := work.exception()):
            self.world.unforeseen.append(error)


class Retaining(Process):
    """A running command that deletes the oldest objects, and folds their entries."""

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        link, made_of = Link(self), world.wiring
        self._retention = made_of.retention(
            made_of.catalog(link, CATALOG),
            made_of.bucket(world.objects, self.ask),
            "bronze",
            [name for name in world.server.streams if name != CATALOG],
            now=lambda: dt.datetime.fromtimestamp(world.now_s(), dt.UTC),
        )
        self._before = dt.datetime.fromtimestamp(world.now_s(), dt.UTC) - RETENTION
        self.working = self.start(self._run())
        self.working.add_done_callback(self._ended)

    async def _run(self) -> None:
        with suppress(Unavailable):  # the operator runs it again
            for expired in await self._retention.find(None, self._before):
                await self._retention.expire(expired, Statement("too old", "the model"))
            await self._retention.delete(None, self._before)

    def _ended(self, work: asyncio.Task[None]) -> None:
        if not work.cancelled() and (error := work.exception()):
            self.world.unforeseen.append(error)


@cache
def _telemetry() -> Telemetry:
    """Telemetry without exporters."""
    return replace(
        sdk.assemble(Resource.get_empty()), tracer=NoOpTracer(), instruments=Instruments.create(NoOpMeter("model"))
    )


@dataclass(eq=False)
class Client:
    """A client that sends one body, and its answers: every 202, or a refusal."""

    records: Sequence[bytes]
    key: str | None = None
    answers: list[AcceptedSubmission] = field(default_factory=list)
    refused: Refused | None = None
    sending: asyncio.Task[None] | None = None

    @property
    def settled(self) -> bool:
        """Whether it has a final answer, or cannot retry: without a key, a retry would be another submission."""
        return bool(self.answers or self.refused or self.key is None)

    @property
    def waits(self) -> bool:
        return self.sending is not None and not self.sending.done()


# --- the whole model


class Objects(dict[str, Object]):
    """The objects of the bucket by key. It remembers those that were deleted, and which of these were created again."""

    def __init__(self) -> None:
        super().__init__()
        self.deleted: dict[str, Object] = {}
        self.again: set[str] = set()

    def setdefault(self, key: str, default: Any = None) -> Object:
        if key in self.deleted and key not in self:
            self.again.add(key)
        return super().setdefault(key, default)

    def pop(self, key: str, default: Any = None) -> Any:
        if key in self:
            self.deleted[key] = self[key]
        return super().pop(key, default)


@dataclass(frozen=True)
class Stored:
    """An object as a reader sees it."""

    contents: Contents
    rows: Sequence[tuple[str, bytes]]  # submission_id, payload


class _Unforeseen(logging.Handler):
    """Keeps the errors that the service logs as unexpected; ignores the others."""

    def __init__(self, errors: list[BaseException]) -> None:
        super().__init__(logging.ERROR)
        self._errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            self._errors.append(record.exc_info[1])


class World:
    """One lane, its servers, two consumers, an API and its clients. `began` is the servers' initial time."""

    def __init__(self, wiring: Wiring, began: str) -> None:
        self.wiring = wiring
        self.loop = Loop()
        self._began = dt.datetime.fromisoformat(began).replace(tzinfo=dt.UTC)
        self._moments = 0
        self.unforeseen: list[BaseException] = []
        self._log = logging.getLogger("bronze")
        self._handler = _Unforeseen(self.unforeseen)
        self._log.addHandler(self._handler)
        self._log.propagate = False

        self.server = QueueServer(self.now_s)
        self.server.create(CATALOG_CONFIG)
        self.catalog = self.server.stream(CATALOG)
        #: the lane's stream of every epoch
        self.epochs: list[tuple[Lane, Stream]] = []
        #: epochs that the change of the lanes replaces
        self.outdated: set[str] = set()
        self.changing: Changing | None = None
        self.new_epoch(LANE_CONFIG)
        self.objects = Objects()
        self.retaining: Retaining | None = None
        self.asks: list[Ask] = []
        self.late: list[Ask] = []
        self.clients: list[Client] = []
        #: for each record: when it was last accepted, and when a rollback removed it from the queue
        self.promised: dict[bytes, int] = {}
        self.taken: dict[bytes, int] = {}
        self.rolled_back = self.has_to_halt = False
        #: the process that reports the ledger since its lanes were created, and what was accepted by the last check
        self.ledger: LedgerHeard | None = None
        self.accepted = 0.0
        self.consumers = [Consumer(self, limit) for limit in MESSAGES_MAX]
        self.api = ApiProcess(self)
        self.run(STEP_S)

    @property
    def processes(self) -> list[Process]:
        return [*self.consumers, self.api, *(one for one in (self.changing, self.retaining) if one)]

    # --- the lane's streams

    @property
    def lane(self) -> Lane:
        return self.epochs[-1][0]

    @property
    def queue(self) -> Stream:
        return self.epochs[-1][1]

    def new_epoch(self, config: Mapping[str, Any]) -> None:
        """Create the lane's stream. The server refuses a second one."""
        now = self._began + dt.timedelta(seconds=self.loop.time())
        lane = Lane(SOURCE.name, 0, f"{now:%Y%m%dT%H%M%S}{len(self.epochs):03}")
        self.server.create({**config, "name": lane.stream})
        self.epochs.append((lane, self.server.stream(lane.stream)))

    def change(self) -> None:
        """Run the command that changes the lanes, for the first time or once more."""
        if self.changing:
            self.crash(self.changing)
        self.changing = Changing(self)
        self.run(STEP_S)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        self.loop.close()
        self._log.removeHandler(self._handler)
        self._log.propagate = True

    # --- time

    def now_s(self) -> float:
        return self._began.timestamp() + self.loop.time()

    def moment(self) -> int:
        """A number for the current moment, higher than all before."""
        self._moments += 1
        return self._moments

    def run(self, seconds: float) -> None:
        """Let every process run until it waits for a server, and advance the time."""
        self.loop.run_until_complete(asyncio.sleep(seconds))

    def skip(self, seconds: float) -> None:
        """Let a long time pass, in which all processes are suspended. Requests to the queue do not last so long: they
        arrive before it; and clients give up.
        """
        for ask in [ask for ask in self.asks if ask.writes and ask.process is self.api]:
            self.answer(ask, Outcome.LATE)
        while self.late:
            self.arrive(self.late[0])
        self.clients = [client for client in self.clients if client.settled]
        self.loop.skip(seconds)
        self.run(STEP_S)

    # --- requests and their outcomes

    async def ask(self, process: Process, name: str, act: Callable[[int], T], *, writes: bool) -> T:
        signed_s = self.loop.time()

        def act_if_valid(lag: int) -> T:
            if name in {"put", "delete"} and self.loop.time() - signed_s > SIGNATURE_S_MAX:
                raise Unavailable(Outage.DENIED, "the request was signed too long ago")
            return act(lag)

        ask = Ask(process, name, act_if_valid, writes, self.loop.create_future(), signed_s)
        self.asks.append(ask)
        reply: T = await ask.reply
        return reply

    def answer(self, ask: Ask, outcome: Outcome = Outcome.DONE, lag: int = 0) -> None:
        """Give one request its outcome."""
        self.asks.remove(ask)
        if ask.writes and outcome in {Outcome.DONE, Outcome.STALE} and self.loop.time() - ask.asked_s > REPLY_S_MAX:
            outcome = Outcome.LOST
        if outcome is not Outcome.DONE and (lag or outcome is not Outcome.STALE):
            FAULTS[outcome] += 1
        away = Unavailable(Outage.TIMEOUT, f"no reply: {ask.name}")
        match outcome:
            case Outcome.DONE | Outcome.STALE:
                try:
                    ask.reply.set_result(ask.act(lag if outcome is Outcome.STALE else 0))
                except (ApiError, Unavailable) as error:
                    ask.reply.set_exception(error)
            case Outcome.LOST:
                self._apply(ask)
                ask.reply.set_exception(away)
            case Outcome.FAILED:
                ask.reply.set_exception(away)
            case Outcome.LATE:
                if ask.writes:
                    self.late.append(ask)
                ask.reply.set_exception(away)
        self.run(STEP_S)
        self._supervise()

    def _supervise(self) -> None:
        """Restart a process that ended because its stream was replaced."""
        for number, consumer in enumerate(self.consumers):
            if consumer.gone:
                self.restart_consumer(number)
        if self.api.gone:
            self.restart_api()

    def work(self, process: Process, until: str) -> None:
        """Let a process run without faults until it makes this request."""
        while (ask := next(ask for ask in self.asks if ask.process is process)).name != until:
            self.answer(ask)

    def arrive(self, ask: Ask) -> None:
        """Apply a request that its sender no longer waits for."""
        self.late.remove(ask)
        self._apply(ask)

    @staticmethod
    def _apply(ask: Ask) -> None:
        with suppress(ApiError, Unavailable):  # nobody receives the server's error
            ask.act(0)

    # --- crashes

    def crash(self, process: Process) -> None:
        """Kill a process. Its pending writes may arrive later."""
        process.kill()
        mine = [ask for ask in self.asks if ask.process is process]
        self.asks = [ask for ask in self.asks if ask.process is not process]
        self.late += [ask for ask in mine if ask.writes]

    def restart_consumer(self, number: int) -> None:
        self.crash(self.consumers[number])
        self.consumers[number] = Consumer(self, MESSAGES_MAX[number])
        self.run(STEP_S)

    def restart_api(self) -> None:
        self.crash(self.api)
        self.api = ApiProcess(self)

    def roll_back(self, time: str, *, catalog: bool) -> None:
        """Reset the lane's data, and optionally the catalog's, to those of an earlier time."""
        FAULTS["queue rolled back"] += 1
        self.rolled_back = True
        lost = self.queue.roll_back(time)
        for message in lost:
            self.taken |= dict.fromkeys(_records(message.content()), self.moment())
        if catalog:
            self.catalog.roll_back(time)
        entries = self.entries()
        self.has_to_halt |= bool(entries) and entries[-1].last > self.queue.last

    # --- the ledger

    def check_ledger(self) -> None:
        """At any moment: a process that saw everything, and one that starts now, report the same; accepted never falls,
        never is less than what is done, and has every record that waits.
        """
        new = LedgerHeard(self)
        reported = self.loop.run_until_complete(new.report())
        if self.ledger and self.ledger.lanes == new.lanes:  # else its process has ended: a lane was replaced
            before = self.ledger.records["accepted"]
            assert self.loop.run_until_complete(self.ledger.report()) == reported, "ledger: two processes differ"
        else:
            before, self.ledger = self.accepted, new
        accepted = reported["accepted"]
        done = sum(reported.values()) - accepted
        last = {lane: entry.last for entry in self.entries() for lane, _ in self.epochs if lane.epoch == entry.epoch}
        waiting = [
            Part.parse(message.headers).records
            for lane, stream in self.epochs
            if lane.stream in self.server.streams
            for message in stream.present()
            if message.sequence > last.get(lane, 0) and message.headers
        ]
        assert accepted == done + sum(waiting), "ledger: accepted is not what is done and what waits"
        assert accepted >= before, "ledger: accepted fell"
        self.accepted = accepted

    # --- clients

    def send(self, client: Client) -> None:
        client.sending = self.api.start(self._send(self.api.ingest, client))
        self.run(STEP_S)

    async def _send(self, ingest: Ingest, client: Client) -> None:
        head = SubmissionHead(dt.datetime.now(dt.UTC), client.key)
        intake = JsonIntake(SOURCE, body_bytes_max=BODY_BYTES_MAX, spool_memory_bytes_max=BODY_BYTES_MAX)
        try:
            intake.add_lines(b"\n".join(client.records))
            with closing(intake.finish()) as checked:
                accepted = await ingest.submit(SOURCE, head, checked, SubmissionTelemetry(_telemetry(), SOURCE.name))
        except Refused as error:
            client.refused = error
        except Unavailable:
            pass  # 503: retry
        except Gone:
            self.api.gone = True  # the same
        else:
            client.answers.append(accepted)
            self.promised |= dict.fromkeys(client.records, self.moment())

    def poison(self, record: bytes) -> None:
        """Publish a message that no version of the service would write, if a lane accepts it."""
        if self.lane.stream not in self.server.streams or self.queue.sealed:
            return
        self.queue.store([Outgoing(lane_subject(SOURCE.name, 0, "poison"), b"[" + record + b"]", {})])
        self.promised[record] = self.moment()

    # --- retention

    def retain(self) -> None:
        """Run the command that deletes the oldest objects, after killing a running one."""
        if self.retaining:
            self.crash(self.retaining)
        self.retaining = Retaining(self)
        self.run(STEP_S)

    def finish_retaining(self) -> None:
        """Let the command run to its end without faults."""
        while self.retaining and (ask := next((ask for ask in self.asks if ask.process is self.retaining), None)):
            self.answer(ask)

    def check_retention(self) -> None:
        """At any moment: what was deleted has a mark; what a living identity names is there, as is the last object of a
        lane; and each object that was stored completely has its entry.
        """
        again = [key for key in self.objects.again if not key.startswith("bronze/.")]
        assert not again, f"I1: deleted, and stored again: {again}"
        assert self.deleted() <= self.marked(), "I9: an object without a mark was deleted"
        present = [message for message in self.catalog.present() if message.subject.startswith("catalog.")]
        entries = [msgspec.json.decode(message.payload, type=CatalogEntry) for message in present]
        named = {entry.file_path for entry in entries}
        assert {entry.file_path for entry in self.entries()} & self.objects.keys() <= named, "I3: folded too early"
        last = {entry.epoch: entry.file_path for entry in entries}
        for lane, _ in self.epochs:
            if lane.stream in self.server.streams and lane.epoch in last:
                assert last[lane.epoch] in self.objects, "I9: the last object of a lane was deleted"
        for message in self.catalog.present():
            if message.subject.startswith("identity."):
                identity = msgspec.json.decode(message.payload, type=Identity)
                assert self.objects.keys() >= set(identity.objects), "I4: an identity names a deleted object"

    def deleted(self) -> set[str]:
        """The objects that were deleted; some may be there again."""
        return {key for key in self.objects.deleted if key.startswith("bronze/source=")}

    def marked(self) -> set[str]:
        """The objects that have expired, by the marks in the bucket."""
        marks = [lane_of_mark(key) for key in self.objects if key.startswith("bronze/.expired/")]
        last: dict[Lane, int] = {}
        for lane, message in filter(None, marks):
            last[lane] = max(message, last.get(lane, 0))
        return {
            entry.file_path
            for entry in self.entries()
            if entry.last <= last.get(Lane(entry.source, entry.lane, entry.epoch), 0)
        }

    # --- the end: everything is drained, then checked

    def drain(self) -> None:
        """Start new processes without faults, and let every client retry until it has an answer.

        Late requests arrive at the very end, and new consumers process them.
        """
        self.restart_api()
        self._restart_consumers()
        if self.outdated:
            self.change()
            self.rest()
            self.restart_api()
        for _ in range(RETRIES_MAX):
            for client in self.clients:
                if not client.settled:
                    self.send(client)
            self.rest()
            if all(client.settled for client in self.clients):
                break
        if self.late:
            while self.late:
                self.arrive(self.late[0])
            self._restart_consumers()
            self.rest()
        if self.retaining:  # what was begun is finished
            self.retain()
            self.rest()

    def _restart_consumers(self) -> None:
        for number in range(len(self.consumers)):
            self.restart_consumer(number)

    def rest(self) -> None:
        """Run until writers only wait for new messages, for longer than any delay of the service including the purge
        grace.
        """
        seen: tuple[int, ...] = ()
        quiet_s = 0.0
        for _ in range(1000):
            idle = all(ask.name == "read" for ask in self.asks) and not any(client.waits for client in self.clients)
            idle = idle and (self.changing is None or self.changing.working.done())
            idle = idle and (self.retaining is None or self.retaining.working.done())
            for ask in list(self.asks):
                if ask in self.asks:
                    self.answer(ask)
            self.run(1.0)
            now = (self.queue.first, self.queue.last, self.catalog.last, len(self.objects))
            quiet_s = quiet_s + 1.0 if idle and now == seen else 0.0
            seen = now
            if quiet_s > SETTINGS.purge_grace_s:
                return
        raise AssertionError("it does not come to rest")

    def entries(self) -> list[CatalogEntry]:
        return [
            msgspec.json.decode(message.payload, type=CatalogEntry)
            for message in self.catalog.log
            if message.subject.startswith("catalog.")
        ]

    def identities(self) -> dict[str, Identity]:
        found = [
            msgspec.json.decode(message.payload, type=Identity)
            for message in self.catalog.log
            if message.subject.startswith("identity.")
        ]
        return {one.accepted.submission_id: one for one in found}

    def stored(self) -> dict[str, Stored]:
        """The objects, also those that were deleted."""
        objects = {**self.objects.deleted, **self.objects}
        return {key: _open(one.body) for key, one in objects.items() if key.startswith("bronze/source=")}

    def aside(self) -> dict[str, list[bytes]]:
        objects = {**self.objects.deleted, **self.objects}
        return {key: _records(one.body) for key, one in objects.items() if key.startswith("quarantine/")}

    def check(self) -> None:
        """Check the invariants of `docs/delivery.md` after everything is drained."""
        assert not self.unforeseen, self.unforeseen
        if self.retaining:
            self.check_retention()
        self.check_promise()
        if self.check_halted():
            return
        self.check_chain()
        self.check_identities()
        if not self.rolled_back:  # else a retry may find no trace of the first attempt, and is another submission
            self.check_answers()

    def check_promise(self) -> None:
        """I1: nothing is stored twice, and every accepted record is stored or quarantined once.

        In a halted lane it may still wait in the queue. Records that a rollback removed from the queue are lost.
        """
        held = Counter(payload for one in self.stored().values() for _, payload in one.rows)
        held += Counter(record for records in self.aside().values() for record in records)
        twice = [record for record, times in held.items() if times > 1]
        assert not twice, f"I1: stored twice: {twice}"
        halted = any(consumer.halted for consumer in self.consumers)
        queues = [stream for name, stream in self.server.streams.items() if name != CATALOG]
        waiting = {record for queue in queues for message in queue.present() for record in _records(message.content())}
        for record, promised in self.promised.items():
            kept = record in held or (halted and record in waiting)
            assert kept or self.taken.get(record, 0) > promised, f"I1: accepted and lost: {record!r}"

    def check_halted(self) -> bool:
        """I6: the lane halts if the queue lost the messages that the chain depends on, and never without a rollback."""
        halted = [consumer.halted for consumer in self.consumers]
        assert len(set(halted)) == 1, "I6: one consumer halts and another continues"
        assert not halted[0] or self.rolled_back, "I6: halted without a reason"
        assert halted[0] or not self.has_to_halt, "I6: the queue lost what the chain stands on, and the lane goes on"
        return halted[0]

    def check_chain(self) -> None:
        """I2, I3, I5: the ranges follow each other up to the queue's end, and catalog and bucket agree."""
        stored, entries = self.stored(), self.entries()
        for lane, queue in self.epochs:
            last = 0
            for entry in entries:
                if entry.epoch == lane.epoch:
                    assert entry.first == last + 1, f"I2: {entry.file_path} does not follow {last}"
                    last = entry.last
            assert last == queue.last, "I2: messages are left"
            assert queue.first <= max(1, last), "I5: the anchor was purged"
        assert len(entries) == len(stored), "I3: catalog and bucket differ"
        totals: dict[str, Totals] = {}
        for entry in entries:
            contents, rows = stored[entry.file_path].contents, stored[entry.file_path].rows
            before = totals.get(entry.epoch, Totals())
            assert contents.totals_before == before, "I8: an object's totals do not follow those before it"
            size = len({**self.objects.deleted, **self.objects}[entry.file_path].body)
            totals[entry.epoch] = before + StoredObject(size=size, contents=contents).totals
            assert entry == entry_of(contents, totals[entry.epoch]), "I3: an entry says something else than its object"
            assert entry.records == len(rows), "I3: an object does not hold what it says"
        assert sorted(key for entry in entries for key in entry.quarantined) == sorted(self.aside()), "I3: quarantine"

    def check_identities(self) -> None:
        """I4: each stored submission is complete, and its identity names exactly the objects that contain it."""
        held: dict[str, list[str]] = {}
        stored = self.stored()
        for entry in self.entries():
            for submission_id in dict.fromkeys(submission_id for submission_id, _ in stored[entry.file_path].rows):
                held.setdefault(submission_id, []).append(entry.file_path)
        identities = self.identities()
        for submission_id, objects in held.items():
            identity = identities[submission_id]
            assert identity.objects == objects, "I4: an identity does not name its objects"
            assert identity.parts_done == identity.parts, "I4: a stored submission is not whole"

    def check_answers(self) -> None:
        """I7: every client gets an answer, and the same body under the same key gets the same 202."""
        told: dict[tuple[str, Sequence[bytes]], set[tuple[str, str | None, str]]] = {}
        for client in self.clients:
            assert client.settled, f"I7: no answer in the end: {client}"
            if client.key is not None:
                told.setdefault((client.key, tuple(client.records)), set()).update(
                    (one.submission_id, one.classification_id, one.received_at) for one in client.answers
                )
        for (key, _), answers in told.items():
            assert len(answers) <= 1, f"I7: {key} was answered differently: {answers}"


def _records(content: bytes) -> list[bytes]:
    return split_records(MessageKind.RECORDS if content.startswith(b"[") else MessageKind.LINES, content)


@lru_cache(64)
def _open(body: bytes) -> Stored:
    table = pq.read_table(BytesIO(body), columns=["_submission_id", "_payload"])
    payloads = [payload.encode() for payload in table.column("_payload").to_pylist()]
    footer = body[footer_start(len(body), body[-TAIL_BYTES:]) :]
    contents = contents_of_footer(footer)
    return Stored(contents, list(zip(table.column("_submission_id").to_pylist(), payloads, strict=True)))
