"""The real processes of the kill test, which are killed at chosen steps or at any moment, and their clients."""

import asyncio
import itertools
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any, Self, TypeVar

import httpx
import msgspec
import zstandard

from bronze.errors import Unavailable
from bronze.protocol.lane import Lane, lane_subject
from bronze.protocol.message import HEADER_KIND, HEADER_SUBMISSION, Message, MessageKind, Part, decompress
from bronze.queue_servers import QueueServers
from bronze.servers.jetstream import (
    EXPECTED_LAST_SUBJECT_SEQUENCE,
    EXPECTED_STREAM,
    WRONG_LAST_SEQUENCE,
    ApiError,
    JetStream,
    Outgoing,
)
from local import programs, servers
from local.machine import Deadline
from local.programs import LOOPBACK, NotReady, Process, Program, http_get
from tests.delivery.kill import checker, wiring
from tests.delivery.kill.checker import Found, Sent
from tests.delivery.kill.wiring import Step

T = TypeVar("T")

ANYWHERE = "anywhere"
DECODING = "decoding a deadly record"
CONSUMERS = ("consumer-1", "consumer-2")
POLL_S = 0.05
REQUEST_TIMEOUT_S = 2.0
#: Clients pause between two submissions, so that the machine has time to start processes.
REST_S_MAX = 0.2
PURGE_GRACE_S = 2

#: Short times, so that there are many purges, late copies and takeovers; small objects, so that there are many.
SETTINGS = {
    "BRONZE_DEADLINE_S": "1",
    "BRONZE_PURGE_GRACE_S": str(PURGE_GRACE_S),
    "BRONZE_LOCK_EXPIRY_S": "1",
    "BRONZE_FLUSH_AGE_S": "0.2",
    "BRONZE_OBJECT_MESSAGES_MAX": "16",
    "BRONZE_OBJECT_BYTES_MAX": str(3 * 2**19),
    "BRONZE_LOG_FORMAT": "console",
    "OTEL_TRACES_EXPORTER": "none",
    "OTEL_METRICS_EXPORTER": "none",
}


async def attempts(deadline_s: float, missing: str | Callable[[], str]) -> AsyncIterator[None]:
    """Repeats until the caller breaks out of the loop. Fails the test after the deadline, and says what is missing."""
    deadline = Deadline(deadline_s)
    while not deadline.passed():
        yield
        await asyncio.sleep(POLL_S)
    raise AssertionError(f"{missing if isinstance(missing, str) else missing()}, in {deadline_s:g} s")


class System:
    """NATS, SeaweedFS, the API and consumers: separate processes, which are restarted when they die.

    Every process is a user of the queue with only its own rights, unless the queue has no users.
    """

    lanes = 1

    def __init__(self, root: Path, *, users: bool = True) -> None:
        self.root = root
        self.users = users
        #: ordered kills and pauses, by process, step and signal
        self.kills: Counter[tuple[str, str, str]] = Counter()
        self._orders = root / "orders"
        self._orders.mkdir()
        self._servers: dict[str, Process] = {}
        self._roles: dict[str, Process] = {}
        self._killed: dict[int, str] = {}
        self._account = servers.s3_account(root / "seaweedfs", programs.free_ports(servers.SEAWEEDFS_PORTS))
        self._queue_port = programs.free_ports()
        self._stack = ExitStack()
        self.api_url = ""

    async def __aenter__(self) -> Self:
        self._stack.callback(self._stop_roles)
        try:
            self.start_servers(*self.queue_servers(), servers.seaweedfs(self.root / "seaweedfs", self._account))
            if self.users:
                await self.initialize()
        except BaseException:
            self._stack.close()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await asyncio.to_thread(self._stack.close)

    def queue_servers(self) -> Sequence[Program]:
        make = servers.nats_with_users if self.users else servers.nats
        return (make(self.root / "nats", self._queue_port, self.root.name),)

    def start_servers(self, *chosen: Program) -> None:
        """Start servers at the same time; returns when they are ready."""
        for program in chosen:
            process = Process(program, self.root / f"{program.name}.log")
            self._servers[program.name] = self._stack.enter_context(process)
        for program in chosen:
            self._servers[program.name].wait_ready()

    # --- the roles

    def start(self, name: str, command: str, **env: str) -> None:
        """Start a role. It is restarted whenever it dies."""
        port = programs.free_ports()
        identity = "api" if command == "serve" else "consumer"
        if command == "serve":
            self.api_url = f"http://{LOOPBACK}:{port}"
        program = Program(
            name=name,
            command=(sys.executable, "-m", wiring.__name__, command),
            ports={"http": port},
            ready=lambda: http_get(port, "/livez"),
            env={
                **SETTINGS,
                **servers.s3_account(self.root / "seaweedfs", self._account.port, identity=identity).env,
                **self.queue_env(identity),
                "BRONZE_API_PORT": str(port),
                "OTEL_EXPORTER_PROMETHEUS_PORT": str(port),
                "OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=as-preset",  # as a supervisor sets it
                wiring.NAME: name,
                wiring.ORDERS: str(self._orders),
                **env,
            },
        )
        self._roles[name] = Process(program, self.root / f"{name}.log")

    def queue_env(self, user: str) -> Mapping[str, str]:
        """The variables of the queue, for this user if it has users."""
        address = {
            "BRONZE_NATS_URL": f"nats://{LOOPBACK}:{self._queue_port}",
            "BRONZE_NATS_SERVER_NAME": self.root.name,
        }
        if not self.users:
            return address
        password = servers.nats_password(self.root / "nats", user)
        return {**address, "BRONZE_NATS_USER": user, "BRONZE_NATS_PASSWORD_FILE": str(password)}

    async def initialize(self) -> None:
        """Run `bronze init`."""
        env = {**programs.environment(), **self.queue_env("admin"), "BRONZE_LANES": str(self.lanes)}
        command = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bronze", "init", "--yes"), env=env, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await command.communicate()
        assert command.returncode == 0, out

    def configure_queue(self, program: Program) -> None:
        """Let the queue's server read its configuration again, which this program has written."""
        assert program.command == self._servers["nats"].program.command
        self._servers["nats"].signal(signal.SIGHUP)

    async def keys(self, *words: str) -> str:
        """Run `bronze keys`, and return its output."""
        command = await self.command("keys", *words, "--yes")
        out, _ = await command.communicate()
        assert command.returncode == 0
        return out.decode().strip()

    async def command(self, *words: str, key: str = "", user: str = "admin", **env: str) -> asyncio.subprocess.Process:
        """Start a command of `bronze`, as a user of the queue, with an API key in its environment."""
        env |= {"BRONZE_API_URL": self.api_url, "BRONZE_API_KEY": key} if key else {}
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bronze", *words),
            env={**programs.environment(), **SETTINGS, **self._account.env, **self.queue_env(user), **env},
            stdout=asyncio.subprocess.PIPE,
            stderr=None if words[0] == "keys" else asyncio.subprocess.STDOUT,
        )

    async def keep(self) -> None:
        """Restart processes that die. Fail if a process ends otherwise than by SIGKILL."""
        while True:
            for name, process in self._roles.items():
                if not process.alive():
                    code = process.wait(0)
                    assert code == -SIGKILL, f"{name} ended by itself ({code})\n{programs.log_tail(process.log)}"
                    self._killed[process.pid] = name
                    self._roles[name] = Process(process.program, process.log)
            await asyncio.sleep(POLL_S)

    async def stop(self, name: str) -> None:
        """Send SIGTERM, and check exit code 0 within 10 s."""
        process = self._roles.pop(name)
        await asyncio.to_thread(process.wait_ready)
        process.signal(signal.SIGTERM)
        code = await asyncio.to_thread(process.wait, 10)
        assert code == 0, f"{name} ended with {code}\n{programs.log_tail(process.log)}"

    def _stop_roles(self) -> None:
        for process in self._roles.values():
            process.signal(SIGCONT)
            process.signal(SIGKILL)

    # --- kills

    async def strike(
        self, target: Step | str, number: signal.Signals, pause_s: float = 0.0, *, server: str = ""
    ) -> None:
        """Kill or pause the first process that reaches a step, or a process of this name at any moment.

        With a `server`, the pause lasts until this server was killed and restarted.
        """
        if target in self._servers:
            await self._strike_server(self._servers[target])
            self.kills[target, ANYWHERE, number.name] += 1
            return
        if isinstance(target, Step):
            name, pid = await self._order(target, number)
        else:
            name, pid = target, await self.at_work(target)
            os.kill(pid, number)
        if number is SIGSTOP:
            async for _ in attempts(10, f"{name} did not stop: {target}"):
                if _is_stopped(pid):
                    break
            if server:
                await self.strike(server, SIGKILL)
            else:
                await asyncio.sleep(pause_s)
            os.kill(pid, SIGCONT)
        else:
            async for _ in attempts(10, f"{name} did not die: {target}"):
                if pid in self._killed:
                    break
        self.kills[name, target if isinstance(target, Step) else ANYWHERE, number.name] += 1

    async def at_work(self, name: str) -> int:
        """The pid of a role after its start: a kill during the start tests nothing."""
        async for _ in attempts(60, f"{name} is not ready"):
            with suppress(NotReady):
                await asyncio.to_thread(self._roles[name].program.ready)
                break
        return self._roles[name].pid

    async def _order(self, step: Step, number: signal.Signals) -> tuple[str, int]:
        """Order a kill or pause at a step; returns the process that executed it."""
        (self._orders / "new").write_text(number.name)
        (self._orders / "new").rename(self._orders / step)
        async for _ in attempts(60, f"nobody came between {step}"):
            for taken in self._orders.glob(f"{step}.*"):
                _, name, pid = taken.name.split(".")
                taken.unlink()
                return name, int(pid)
        raise AssertionError  # `attempts` raises

    async def _strike_server(self, server: Process) -> None:
        server.signal(SIGKILL)
        async for _ in attempts(30, f"the ports of {server.program.name} are taken"):
            if all(map(programs.is_free, server.program.ports.values())):
                break
        await asyncio.to_thread(server.restart)

    def table(self) -> str:
        """Kills and pauses by process and step. All other deaths are caused by a deadly record."""
        kills = self.kills.copy()
        for name, deaths in Counter(self._killed.values()).items():
            ours = sum(times for (of, _, number), times in kills.items() if (of, number) == (name, SIGKILL.name))
            if deaths > ours:
                kills[name, DECODING, SIGKILL.name] = deaths - ours
        rows = (f"{name:12} {step:26} {number:8} {times:5}" for (name, step, number), times in sorted(kills.items()))
        return "\n".join(rows)

    # --- the contents of the servers

    async def queue(self) -> JetStream:
        own = self.queue_env("admin")
        password = Path(own["BRONZE_NATS_PASSWORD_FILE"]) if self.users else ""
        urls = own["BRONZE_NATS_URL"].split(",")
        queue = QueueServers(urls, own.get("BRONZE_NATS_USER"), password)
        return await JetStream.connect(queue, name="kill test")

    async def drained(self) -> Found:
        """The contents of the servers after each lane is stored to its end and purged below its anchor."""
        jetstream = await self.queue()
        try:
            left: list[str] = []
            async for _ in attempts(60, lambda: f"the lanes were not drained and purged: {left}"):  # noqa: B023
                entries, identities = await checker.read_catalog(jetstream)
                ends = {Lane(one.source, one.lane, one.epoch).stream: one.last for one in entries}
                states = [await jetstream.state(name) for name in await checker.streams(jetstream, "bronze.>")]
                left = [
                    f"{one.name} has {one.first} to {one.last}, stored to {ends.get(one.name, 0)}"
                    for one in states
                    if not one.first >= one.last == ends.get(one.name, 0)
                ]
                if not left:
                    break
            logs = [server.log.read_text() for name, server in self._servers.items() if name.startswith("nats")]
            refused = [line for log in logs for line in log.splitlines() if "iolation" in line]
            assert not refused, "the queue refused what a role needs"
            objects, quarantine, sizes = await asyncio.to_thread(checker.read_bucket, self._account)
            return Found(
                objects, quarantine, sizes, entries, identities, {one.name: (one.first, one.last) for one in states}
            )
        finally:
            await jetstream.close()


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


# --- clients

#: Settings of an API that needs keys.
CLOSED = {"BRONZE_AUTH": "keys"}


def bearer(key: str) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {key}"}


@dataclass(frozen=True)
class Submission:
    source: str
    key: str | None
    records: tuple[str, ...]

    @property
    def body(self) -> str:
        return "\n".join(self.records)


class Clients:
    """Clients that send, and retry under the same key until they get a 202."""

    def __init__(self, system: System, rng: random.Random, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self.sent = Sent()
        #: each accepted submission, with its 202
        self.accepted: list[tuple[Submission, Mapping[str, Any]]] = []
        #: ids of submissions with a late copy, which has to be listed as a duplicate
        self.late: set[str] = set()
        #: added to each request
        self.headers: Mapping[str, str] = {}
        self._system = system
        self._rng = rng
        self._numbers = itertools.count()
        self._http = httpx.AsyncClient(timeout=timeout_s, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.aclose()

    async def some_more(self, count: int) -> None:
        """Wait until so many more submissions are accepted."""
        before = len(self.accepted)
        async for _ in attempts(60, "nothing is accepted"):
            if len(self.accepted) >= before + count:
                break

    def use(self, key: str) -> None:
        """Send this API key with each request from now on."""
        self.headers = bearer(key)

    def submission(self, source: str = "", filling: str = "", *, keyed: bool | None = None) -> Submission:
        """A new submission with unique records: most are small and have a key, some have several messages, and some
        have rejected records.
        """
        number, choice = next(self._numbers), self._rng
        large = not filling and choice.random() < 0.01
        records = [
            {"vehicle_id": f"sent-{number}-{index}", "model": filling or "x" * (250_000 if large else 20)}
            for index in range(choice.randint(1, 4) + 5 * large)
        ]
        if (source := source or choice.choice(["vehicles", "failures"])) == "failures":
            records = [{"reason": "late", "failed_on": "2013-01-01", **record} for record in records]
        if not filling and choice.random() < 0.3:
            records.insert(choice.randrange(len(records)), {"bad": f"sent-{number}"})
        key = f"key {number}" if keyed or (keyed is None and choice.random() < 0.8) else None
        return Submission(source, key, tuple(msgspec.json.encode(record).decode() for record in records))

    async def run(self, stop: asyncio.Event) -> None:
        """Run a client that sends one submission after the other."""
        while not stop.is_set():
            await self.deliver(self.submission())
            await asyncio.sleep(self._rng.uniform(0, REST_S_MAX))

    async def deliver(self, submission: Submission) -> Mapping[str, Any]:
        """Send and record the outcome; returns the answer's body. A submission without a key is sent only once."""
        answer = await (self.settle(submission) if submission.key else self.post(submission))
        if answer is None:
            self.sent.unknown.update(submission.records)
            return {}
        assert answer.status_code in {202, 503}, answer.text
        body: Mapping[str, Any] = answer.json()
        if answer.status_code == 202:
            self.accepted.append((submission, body))
            self.sent.accepted.update(submission.records)
            self.sent.submissions[body["submission_id"]] = submission.key is not None
        else:
            nothing = body["type"] != "/problems/outcome-unknown"
            (self.sent.refused if nothing else self.sent.unknown).update(submission.records)
        return body

    async def settle(self, submission: Submission) -> httpx.Response:
        """Send until there is an answer other than `503`."""
        async for _ in attempts(120, f"{submission.key} was not settled"):
            answer = await self.post(submission)
            if answer is not None and answer.status_code != 503:
                return answer
        raise AssertionError  # `attempts` raises

    async def post(self, submission: Submission) -> httpx.Response | None:
        """Send one request; None if there is no answer."""
        headers = {"Content-Type": "application/x-ndjson", **self.headers}
        if submission.key:
            headers["Idempotency-Key"] = submission.key
        try:
            return await self._http.post(
                f"{self._system.api_url}/v1/ingest/{submission.source}?on_invalid=quarantine",
                content=submission.body,
                headers=headers,
            )
        except httpx.TransportError:
            return None

    async def status(self, submission_id: str) -> str | None:
        """`accepted`, `stored` or `quarantined`; None if the API does not answer."""
        with suppress(httpx.TransportError):
            answer = await self._http.get(
                f"{self._system.api_url}/v1/submissions/{submission_id}", headers=self.headers
            )
            if answer.status_code == 200:
                status: str = answer.json()["status"]
                return status
        return None

    # --- late sends

    async def send_late(self, *, foreign: bool) -> None:
        """Send a submission, and publish its messages again after they are purged: unchanged, or with another body."""
        jetstream = await self._system.queue()
        try:
            async for _ in attempts(120, "each submission was purged before it was seen"):
                sent_s = time.monotonic()
                submission = self.submission(keyed=True)
                submission_id = (await self.deliver(submission))["submission_id"]
                subject = lane_subject(submission.source, 0, submission_id)
                (stream,) = await _settled(lambda: checker.streams(jetstream, subject))  # noqa: B023
                last = await _settled(lambda: jetstream.get_last(stream, subject))  # noqa: B023
                if last is not None:
                    count = Part.parse(last.headers).count
                    first = last.sequence - count + 1
                    messages = await _settled(
                        lambda: jetstream.read(stream, first, messages_max=count, bytes_max=2**24)  # noqa: B023
                    )
                    if [one.subject for one in messages] == [subject] * count:
                        break
                # the API was killed after publishing, and back later than the purge
                assert time.monotonic() - sent_s > PURGE_GRACE_S, f"{subject} was purged before its time"
            copies = [_copy(one, stream, foreign=foreign) for one in messages]
            async for _ in attempts(300, f"{subject} was not purged"):
                if await _settled(lambda: jetstream.get_last(stream, subject)) is None:
                    break
            await _settled(lambda: _publish(jetstream, copies))
        finally:
            await jetstream.close()
        if foreign:
            self.sent.foreign.update(
                record
                for one in copies
                for record in checker.records_of(
                    decompress(one.headers, one.payload), apart=one.headers.get(HEADER_KIND) == MessageKind.REJECTED
                )
            )
        else:
            self.late.add(submission_id)


def _copy(message: Message, stream: str, *, foreign: bool) -> Outgoing:
    """A message for publishing, optionally with another body."""
    part = Part.parse(message.headers)
    headers, payload = part.headers(), message.payload
    if foreign:
        headers[HEADER_SUBMISSION] = headers[HEADER_SUBMISSION].replace(part.accepted.digest, "0" * 64)
        other = message.content().replace(b"sent-", b"late-")  # as long: notes tell sizes
        payload = zstandard.compress(other) if part.zstd else other
    if part.number == 1:
        headers |= {EXPECTED_LAST_SUBJECT_SEQUENCE: "0", EXPECTED_STREAM: stream}
    return Outgoing(message.subject, payload, headers)


async def _publish(jetstream: JetStream, messages: list[Outgoing]) -> None:
    try:
        if len(messages) == 1:
            await jetstream.publish(messages[0])
        else:
            await jetstream.publish_batch(messages, len(messages))
    except ApiError as error:
        if error.err_code != WRONG_LAST_SEQUENCE:  # else it was stored at an attempt whose answer was lost
            raise


async def _settled(call: Callable[[], Awaitable[T]]) -> T:
    """Retries until the queue, which may be unavailable for a while, answers."""
    async for _ in attempts(60, "the queue is away"):
        with suppress(Unavailable):
            return await call()
    raise AssertionError  # `attempts` raises
