"""The users of the queue (nats/users.conf): each can do what it needs, and nothing else. Every right is asked for."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import nats.errors
import pytest
import pytest_asyncio
from nats.aio.client import Client

import nats
from bronze.errors import Halted, Misconfigured, Unavailable
from bronze.protocol.chain import Position
from bronze.records import sources
from bronze.servers.catalog_feed import Feed, FeedPosition
from bronze.servers.jetstream import JetStream, Outgoing
from bronze.servers.key_value import KeyValueStore
from bronze.servers.lane_lock import NatsLock
from bronze.servers.principal_store import PrincipalStore
from bronze.settings import Settings
from bronze.wiring.commands import initialize
from bronze.wiring.servers import open_queue, prepare_sources
from local import programs, servers
from local.builds import REPOSITORY
from local.programs import LOOPBACK, Process
from local.servers import NATS_USERS
from tests import factories
from tests.contract.making import SOURCES, submission, until, vehicle, wide
from tests.contract.test_queue import read_all, submit

PASSWORDS = {user: f"password-of-{user}" for user in NATS_USERS}
NOBODY = "nobody"
SOURCES_FILE = REPOSITORY / "service" / "bronze" / "sources.toml"
SECURITY = REPOSITORY / "docs" / "security.md"


@pytest.fixture
def nats_process(tmp_path: Path, nats_name: str) -> Iterator[Process]:
    program = servers.nats(
        tmp_path / "nats",
        programs.free_ports(),
        nats_name,
        more=servers.nats_users(PASSWORDS),
        user=("admin", PASSWORDS["admin"]),
    )
    with programs.start(program, tmp_path / "nats.log") as process:
        yield process


@pytest.fixture
def settings(nats_process: Process, settings: Settings) -> Settings:
    """Those of nobody."""
    return settings.model_copy(update={"nats_url": url(nats_process)})


def url(process: Process, user: str | None = None) -> str:
    credentials = f"{user}:{PASSWORDS[user]}@" if user else ""
    return f"nats://{credentials}{LOOPBACK}:{process.program.ports['queue']}"


def of(user: str, settings: Settings) -> Settings:
    """The settings of a user."""
    return settings.model_copy(update={"nats_url": settings.nats_url.replace("//", f"//{user}:{PASSWORDS[user]}@")})


class Connected:
    """Connections of the service, each as one user."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._open: dict[str, JetStream] = {}

    async def as_user(self, user: str) -> JetStream:
        if user not in self._open:
            self._open[user] = await JetStream.connect(of(user, self._settings).queue_servers)
        return self._open[user]

    async def close(self) -> None:
        for jetstream in self._open.values():
            await jetstream.close()


@pytest_asyncio.fixture
async def connected(settings: Settings) -> AsyncIterator[Connected]:
    connected = Connected(settings)
    yield connected
    await connected.close()


def violations(process: Process) -> list[str]:
    """What the server has refused so far, by its log."""
    return [line for line in process.log.read_text().splitlines() if "iolation" in line]


# --- what they need


async def test_each_role_can_do_its_work(settings: Settings, nats_process: Process, connected: Connected) -> None:
    """After `bronze init`, nothing that a role does is refused."""
    assert await initialize(of("admin", settings), yes=True) == 0
    stop = asyncio.Event()
    api, consumer, reader = [await connected.as_user(user) for user in ("api", "consumer", "reader")]

    _, queue, lanes, catalog = await open_queue(api, settings, SOURCES, stop)
    (lane,) = (lane for lane in lanes if lane.source == "vehicles")
    for records in ([vehicle("a")], wide("b", 3)):
        submitted = submission(*records, key=str(len(records)))
        assert await submit(queue, lane, submitted) is None
        assert await queue.find_submission(lane, submitted.id) == submitted.accepted
        assert await catalog.identity(submitted.id) is None
    assert len(await queue.headers(lane, 1)) == 4
    assert await catalog.positions() == {}
    assert (await PrincipalStore(KeyValueStore(api, 1)).read())[1] == 0
    assert await queue.missing(lanes) == []

    key_values, queue, lanes, catalog = await open_queue(consumer, settings, SOURCES, stop)
    lock = NatsLock(key_values, lane, "test", 1)
    await lock.acquire()
    await lock.release()
    assert await queue.has_after(lane, 0)
    assert len(await read_all(queue, lane)) == 4
    position = await catalog.append(
        lane, Position(None, 0), factories.stored(factories.contents(1, 4, epoch=lane.epoch))
    )
    assert await catalog.identities(lane, position, ["x"]) is not None
    await queue.purge_below(lane, 4)
    assert (await queue.state(lane)).first == 4
    assert len(await queue.headers(lane, 1)) == 1

    assert len((await Feed(reader).read(FeedPosition())).entries) == 1
    assert violations(nats_process) == []


async def test_a_role_cannot_create_what_is_missing_and_says_what_to_do(
    settings: Settings, connected: Connected
) -> None:
    """At once, instead of waiting for it as for a server that is away."""
    stop = asyncio.Event()
    for user in ("api", "consumer"):
        with pytest.raises(Misconfigured, match="run `bronze init`"):
            await open_queue(await connected.as_user(user), settings, SOURCES, stop)
    assert await initialize(of("admin", settings), yes=True) == 0
    admin, api = await connected.as_user("admin"), await connected.as_user("api")
    _, _, lanes, catalog = await open_queue(api, settings, SOURCES, stop)
    await admin.delete_stream(lanes[0].stream)
    with pytest.raises(Misconfigured, match=rf"no stream on bronze\.{lanes[0].source}\.0.* run `bronze init`"):
        await open_queue(api, settings, SOURCES, stop)
    await admin.delete_stream(catalog.stream)
    await initialize(of("admin", settings), yes=True)
    await open_queue(api, settings, SOURCES, stop)


async def test_an_edited_declaration_is_not_taken_before_it_is_registered(
    settings: Settings, connected: Connected, tmp_path: Path
) -> None:
    """A role that took it would begin again and end, because it may not register it."""
    own = tmp_path / "own.toml"
    own.write_text(
        SOURCES_FILE.read_text()
        + '\n[added]\ndescription = "One more."\nfields = [{ name = "a", type = "string", description = "A." }]\n'
    )
    edited = sources.load(own)
    assert await initialize(of("admin", settings), yes=True) == 0
    key_values, queue, _, _ = await open_queue(await connected.as_user("api"), settings, SOURCES, asyncio.Event())
    with pytest.raises(Misconfigured, match=r"source added.* run `bronze init`"):
        await prepare_sources(key_values, queue, edited, str(own))
    assert await initialize(of("admin", settings).model_copy(update={"sources": own}), yes=True) == 0
    await prepare_sources(key_values, queue, edited, str(own))


# --- what they may not do


@dataclass(frozen=True)
class Request:
    """Something that a user of the queue can ask for. `who` may; the others are refused.

    `{lane}` and `{catalog}` are the names of streams, and `{scratch}` is one that nobody needs.
    """

    what: str
    subject: str
    who: str = "admin"
    payload: Mapping[str, Any] | None = None
    #: a subscription instead of a message
    listen: bool = False


REQUESTS = (
    Request("store a submission", "bronze.vehicles.0.forged", "admin api"),
    Request("write an entry of the catalog", "catalog.vehicles.0.forged", "admin consumer"),
    Request("write the identity of a submission", "identity.forged", "admin consumer"),
    Request("announce a removed object", "removed.vehicles.0.forged.1"),
    Request("take the lock of a lane", "$KV.bronze.lock.vehicles.0.forged", "admin consumer"),
    Request("create, change or revoke an API key", "$KV.bronze.principals"),
    Request("register a source", "$KV.bronze.schema.forged"),
    Request("claim a stream", "$KV.bronze.stream.forged"),
    Request("list streams", "$JS.API.STREAM.NAMES", "admin api consumer reader"),
    Request("see the state of a stream", "$JS.API.STREAM.INFO.{lane}", "admin api consumer reader"),
    Request("read messages of lanes and catalog", "$JS.API.DIRECT.GET.{lane}", "admin api consumer reader", {"seq": 1}),
    Request("read the hashes of API keys", "$JS.API.DIRECT.GET.KV_bronze", "admin api consumer", {"seq": 1}),
    Request("read them from the leader", "$JS.API.STREAM.MSG.GET.KV_bronze", "admin api consumer", {"seq": 1}),
    Request("read headers of a lane", "$JS.API.CONSUMER.CREATE.{lane}.any", "admin api consumer reader"),
    Request("follow the catalog", "$JS.API.CONSUMER.CREATE.{catalog}.any.catalog.>", "admin reader"),
    Request("the same of the keys", "$JS.API.CONSUMER.CREATE.KV_bronze.any"),
    Request("create a consumer for good", "$JS.API.CONSUMER.DURABLE.CREATE.{lane}.any"),
    Request("see the consumers of others", "$JS.API.CONSUMER.LIST.{lane}"),
    Request("purge a lane", "$JS.API.STREAM.PURGE.{scratch}", "admin consumer", {"seq": 1}),
    Request("purge the catalog", "$JS.API.STREAM.PURGE.{catalog}", "", {"seq": 1}),
    Request("purge the keys", "$JS.API.STREAM.PURGE.KV_bronze", "", {"seq": 1}),
    Request("delete a message of a lane", "$JS.API.STREAM.MSG.DELETE.{scratch}"),
    Request("create a stream", "$JS.API.STREAM.CREATE.{scratch}"),
    Request("change a stream", "$JS.API.STREAM.UPDATE.{scratch}"),
    Request("copy a whole stream", "$JS.API.STREAM.SNAPSHOT.{lane}"),
    Request("delete a stream", "$JS.API.STREAM.DELETE.{scratch}"),
    Request("see the limits of the account", "$JS.API.INFO"),
    Request("read records while they are stored", "bronze.>", "", listen=True),
    Request("read everything", ">", "", listen=True),
    Request("read the answers to the API", "_INBOX_api.>", "api", listen=True),
    Request("read the answers to a consumer", "_INBOX_consumer.>", "consumer", listen=True),
    Request("read the answers to commands", "_INBOX_admin.>", "admin", listen=True),
    Request("answer in the place of the queue", "_INBOX_api.guessed", ""),
    Request("ask the server about its connections", "$SYS.REQ.SERVER.PING.CONNZ", ""),
)
#: Catalog and keys themselves refuse to be purged.
REFUSED = b"stream purge not permitted"


class Asking:
    """A connection of one user, by the client library alone."""

    def __init__(self, client: Client, errors: list[str]) -> None:
        self._client = client
        self._errors = errors

    @classmethod
    async def connect(cls, process: Process, user: str) -> "Asking":
        errors: list[str] = []

        async def note(error: Exception) -> None:
            errors.append(str(error))

        return cls(
            await nats.connect(
                url(process),
                user=user,
                password=PASSWORDS[user],
                inbox_prefix=f"_INBOX_{user}",
                error_cb=note,
                allow_reconnect=False,
            ),
            errors,
        )

    async def may(self, request: Request, streams: Mapping[str, str]) -> bool:
        """Whether the user may do it, by what the server does."""
        subject = re.sub(r"{(\w+)}", lambda match: streams[match[1]], request.subject)
        if request.listen:
            await (await self._client.subscribe(subject)).unsubscribe()
            await self._settle()
            return not self._denied(subject)
        inbox = self._client.new_inbox()
        answers = await self._client.subscribe(inbox)
        await self._client.publish(subject, json.dumps(request.payload or {}).encode(), reply=inbox)
        await self._settle()
        if self._denied(subject):
            return False
        if subject.startswith("$JS.API"):
            answer = (await answers.next_msg(timeout=5)).data
            return REFUSED not in answer
        return True

    async def _settle(self) -> None:
        """Twice, since the first may overtake what waits to be sent."""
        await self._client.flush()
        await self._client.flush()

    def _denied(self, subject: str) -> bool:
        refused = [error for error in self._errors if f'"{subject.lower()}"' in error]
        self._errors.clear()
        return bool(refused)

    async def close(self) -> None:
        await self._client.close()


@pytest.mark.parametrize("user", NATS_USERS)
async def test_every_request_is_refused_to_all_but_those_who_may(
    settings: Settings, nats_process: Process, connected: Connected, user: str
) -> None:
    admin = await connected.as_user("admin")
    _, _, lanes, catalog = await open_queue(admin, settings, SOURCES, asyncio.Event())
    lane = lanes[0].stream
    await admin.publish(Outgoing(f"bronze.{lanes[0].source}.0.first", b"x", {}))
    await admin.create_stream({"name": "SCRATCH", "subjects": ["scratch"], "storage": "file"})
    before = [(await admin.state(stream)).last for stream in (lane, catalog.stream, "KV_bronze")]
    asking = await Asking.connect(nats_process, user)
    try:
        streams = {"lane": lane, "catalog": catalog.stream, "scratch": "SCRATCH"}
        answers = {request.what: await asking.may(request, streams) for request in REQUESTS}
    finally:
        await asking.close()
    assert answers == {request.what: user in request.who.split() for request in REQUESTS}
    if user == "reader":  # it changed nothing at all
        assert [(await admin.state(stream)).last for stream in (lane, catalog.stream, "KV_bronze")] == before


@pytest.mark.parametrize("wrong", [None, "api:wrong", "root:password-of-admin", "api:"])
async def test_nobody_else_is_let_in(nats_process: Process, wrong: str | None) -> None:
    address = url(nats_process).replace("//", f"//{wrong}@" if wrong else "//")
    errors: list[str] = []

    async def note(error: Exception) -> None:
        errors.append(str(error))

    client = Client()
    try:
        with pytest.raises(nats.errors.Error, match="Authorization Violation"):
            await client.connect(address, allow_reconnect=False, error_cb=note)
    finally:
        await client.close()


def table() -> str:
    """The rights of the users, as docs/security.md has them."""
    lines = [f"| right | {' | '.join(NATS_USERS)} | subject |", "|---" * (len(NATS_USERS) + 2) + "|"]
    for request in REQUESTS:
        marks = ["yes" if user in request.who.split() else "" for user in NATS_USERS]
        subject = re.sub(r"{(\w+)}", r"\1", request.subject)
        lines.append(f"| {request.what} | {' | '.join(marks)} | `{'SUB ' * request.listen}{subject}` |")
    return "\n".join(lines) + "\n"


def test_the_documented_rights_are_those_that_were_asked_for() -> None:
    assert table() in SECURITY.read_text(), f"docs/security.md needs this table:\n\n{table()}"


# --- answers that a user lets the server send elsewhere


async def test_a_key_that_the_server_was_made_to_write_is_not_used(
    settings: Settings, nats_process: Process, connected: Connected
) -> None:
    """A server sends its answer to any subject that a request names, so that readers can write what they can read."""
    admin = await connected.as_user("admin")
    key_values, _, lanes, _ = await open_queue(admin, settings, SOURCES, asyncio.Event())
    lane = next(lane for lane in lanes if lane.source == "vehicles")
    store = PrincipalStore(key_values)
    forged = b'{"principals":[]}'
    await admin.publish(Outgoing("bronze.vehicles.0.forged", forged, {}))
    await admin.publish(Outgoing("bronze.vehicles.0.empty", b"", {}))
    requests: list[tuple[str, bytes]] = [
        (f"$JS.API.DIRECT.GET.{lane.stream}", b'{"seq":1}'),
        (f"$JS.API.DIRECT.GET.{lane.stream}", b'{"seq":2}'),
        (f"$JS.API.STREAM.INFO.{lane.stream}", b""),
    ]
    client = await nats.connect(url(nats_process), user="reader", password=PASSWORDS["reader"])
    try:
        for subject, request in requests:
            before = (await admin.state("KV_bronze")).last
            await client.publish(subject, request, reply="$KV.bronze.principals")

            async def arrived(before: int = before) -> bool:
                return (await admin.state("KV_bronze")).last > before

            await until(arrived)
            with pytest.raises(Unavailable, match="not written by Bronze"):
                await store.read()
    finally:
        await client.close()
    await admin.publish(Outgoing("$KV.bronze.principals", b"", {"KV-Operation": "DEL"}))  # as `nats kv del` does
    assert (await store.read())[0].principals == []


async def test_a_catalog_entry_that_the_server_was_made_to_write_halts_the_lane(
    settings: Settings, nats_process: Process, connected: Connected
) -> None:
    """A user of the API could publish the entry as a message of a lane, and let the server send it to the catalog."""
    admin = await connected.as_user("admin")
    _, _, lanes, catalog = await open_queue(admin, settings, SOURCES, asyncio.Event())
    lane = next(lane for lane in lanes if lane.source == "vehicles")
    entry = Position(None, 0).entry_after(factories.stored(factories.contents(1, 4, epoch=lane.epoch)))
    await (await connected.as_user("api")).publish(Outgoing("bronze.vehicles.0.forged", msgspec.json.encode(entry), {}))
    client = await nats.connect(url(nats_process), user="api", password=PASSWORDS["api"])
    try:
        await client.publish(f"$JS.API.DIRECT.GET.{lane.stream}", b'{"seq":1}', reply=lane.entry_subject)

        async def arrived() -> bool:
            return (await admin.state(catalog.stream)).last == 1

        await until(arrived)
        with pytest.raises(Halted, match="not written by Bronze"):
            await catalog.position(lane)
    finally:
        await client.close()
