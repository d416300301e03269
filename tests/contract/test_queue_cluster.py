"""The queue as a cluster of three servers, with users: addresses, names and replicas."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from signal import SIGCONT, SIGKILL, SIGSTOP

import pytest
from nats.errors import NoRespondersError

from bronze.admin.command_error import CommandError
from bronze.errors import Misconfigured, Unavailable
from bronze.servers import jetstream as jetstream_module
from bronze.servers.jetstream import JetStream
from bronze.servers.key_value import KeyValueStore
from bronze.servers.lane_lock import NatsLock
from bronze.servers.queue import NatsQueue
from bronze.settings import Settings
from bronze.wiring.commands import copy_queue, initialize
from bronze.wiring.servers import open_queue
from local import programs, servers
from local.programs import LOOPBACK, Process
from tests.contract.making import SOURCES, submission, until, vehicle
from tests.contract.test_queue import read_all, submit

NAME = "three"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Process], dict[str, str]]]:
    """The three servers, and the password of each user."""
    root = tmp_path_factory.mktemp("cluster")
    made = servers.nats_cluster(root, programs.free_ports(servers.NATS_PORTS), NAME)
    with ExitStack() as stack:
        processes = [stack.enter_context(Process(program, root / f"{program.name}.log")) for program in made]
        for process in processes:
            process.wait_ready()
        yield processes, {user: servers.nats_password(root, user).read_text() for user in servers.NATS_USERS}


@pytest.fixture
def of_cluster(cluster: tuple[list[Process], dict[str, str]], settings: Settings) -> dict[str, Settings]:
    """The settings of each user."""
    processes, passwords = cluster
    urls = ",".join(f"nats://{LOOPBACK}:{process.program.ports['queue']}" for process in processes)
    common = {
        **settings.model_dump(exclude_defaults=True),
        "nats_url": urls,
        "nats_server_name": NAME,
        "queue_replicas": 3,
    }
    return {user: Settings(**common, nats_user=user, nats_password=word) for user, word in passwords.items()}


async def connect(settings: Settings) -> JetStream:
    return await JetStream.connect(settings.queue_servers, server_name=settings.nats_server_name)


async def replicas(jetstream: JetStream) -> dict[str, int]:
    streams = await jetstream.stream_names(">")
    return {name: (await jetstream.api(f"STREAM.INFO.{name}"))["config"]["num_replicas"] for name in streams}


async def test_streams_of_roles_have_the_replicas_that_are_set(
    of_cluster: dict[str, Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    """`bronze init` raises those of existing streams, for example of a version without the setting, and never lowers
    them. The roles' users use them as on one server.
    """
    admin = of_cluster["admin"]
    assert await initialize(admin.model_copy(update={"queue_replicas": 1}), yes=True) == 0
    jetstream = await connect(admin)
    try:
        assert set((await replicas(jetstream)).values()) == {1}
        capsys.readouterr()
        assert await initialize(admin, yes=True) == 0
        raised = await replicas(jetstream)
        assert set(raised.values()) == {3}
        said = capsys.readouterr().out
        assert all(f"Gave the stream {name} 3 replicas\n" in said for name in raised)
        assert await initialize(admin.model_copy(update={"queue_replicas": 1}), yes=True) == 0
        assert await replicas(jetstream) == raised
        assert "Gave" not in capsys.readouterr().out
    finally:
        await jetstream.close()
    for user in ("api", "consumer"):
        connection = await connect(of_cluster[user])
        try:
            _, queue, lanes, catalog = await open_queue(connection, of_cluster[user], SOURCES, asyncio.Event())
            assert (await queue.state(lanes[0])).last == 0
            assert (await catalog.position(lanes[0]))[0].entry is None
        finally:
            await connection.close()


async def test_new_streams_have_three_replicas_from_the_start(of_cluster: dict[str, Settings]) -> None:
    admin = of_cluster["admin"]
    jetstream = await connect(admin)
    try:
        for name in await jetstream.stream_names(">"):
            await jetstream.delete_stream(name)
        assert await initialize(admin, yes=True) == 0
        assert set((await replicas(jetstream)).values()) == {3}
    finally:
        await jetstream.close()


async def test_the_name_is_that_of_a_server_or_of_the_cluster(of_cluster: dict[str, Settings]) -> None:
    servers_ = of_cluster["api"].queue_servers
    jetstream = await JetStream.connect(servers_, server_name=NAME)
    try:
        assert (jetstream.cluster_name, str(jetstream.server_name)[:-1]) == (NAME, f"{NAME}-")
        with pytest.raises(
            Misconfigured, match=f"in the cluster '{NAME}', but BRONZE_NATS_SERVER_NAME requires 'four'"
        ):
            await JetStream.connect(servers_, server_name="four")
    finally:
        await jetstream.close()


async def test_more_replicas_than_servers_is_a_wrong_setting(settings: Settings) -> None:
    """Of a queue with one server, by its streams that exist and by those that do not."""
    three = settings.model_copy(update={"queue_replicas": 3})
    with pytest.raises(Misconfigured, match="replicas > 1 not supported in non-clustered mode"):
        await initialize(three, yes=True)
    assert await initialize(settings, yes=True) == 0
    with pytest.raises(Misconfigured, match=r"BRONZE_QUEUE_REPLICAS=3: .*replicas > 1 not supported"):
        await initialize(three, yes=True)


async def test_a_queue_that_changes_is_not_copied(
    of_cluster: dict[str, Settings], settings: Settings, key_values: KeyValueStore, queue: NatsQueue
) -> None:
    """A consumer that still runs is noticed by its lock. Nothing is accepted meanwhile, and the next run completes the
    copy, with the messages that wait; it is not done twice.
    """
    admin = of_cluster["admin"]
    target = await connect(admin)
    await initialize(settings, yes=True)
    (lane,) = await queue.open(["vehicles"])
    await submit(queue, lane, submission(vehicle("first")))
    to = ",".join(admin.queue_servers.urls)
    chosen = settings.model_copy(update={"nats_user": admin.nats_user, "nats_password": admin.nats_password})
    chosen = chosen.model_copy(update={"queue_replicas": 3})
    try:
        for name in await target.stream_names(">"):
            await target.delete_stream(name)
        lock = NatsLock(key_values, lane, "consumer", settings.lock_expiry_s)
        await lock.acquire()
        alive = asyncio.create_task(lock.keep_alive())
        with pytest.raises(CommandError, match="KV_bronze changed meanwhile: a consumer or a command still runs"):
            await copy_queue(chosen, to, yes=True)
        alive.cancel()
        with pytest.raises(Unavailable, match="The queue is being moved to other servers"):
            await submit(queue, lane, submission(vehicle("second")))
        assert await copy_queue(chosen, to, yes=True) == 0
        copy = NatsQueue(target, KeyValueStore(target, 3), admin)
        assert await copy.open(["vehicles"]) == [lane]
        assert await read_all(copy, lane) == await read_all(queue, lane)
        await submit(copy, lane, submission(vehicle("second")))
        assert set((await replicas(target)).values()) == {3}
        with pytest.raises(Misconfigured, match="it is in use, or the copy is complete"):
            await copy_queue(chosen, to, yes=True)
    finally:
        await target.close()


async def test_a_copy_waits_until_the_server_listens(
    of_cluster: dict[str, Settings], settings: Settings, queue: NatsQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of about 150 copies on a busy machine finds no responders: the subject of a restore is there first."""
    await initialize(settings, yes=True)
    (lane,) = await queue.open(["vehicles"])
    await submit(queue, lane, submission(vehicle("first")))
    source, target = (await connect(settings), await connect(of_cluster["admin"]))
    request, unheard = target._client.request, 2

    async def not_heard_at_once(subject: str, *args: object, **kwargs: object) -> object:
        nonlocal unheard
        if subject.startswith("$JS.SNAPSHOT.RESTORE") and unheard:
            unheard -= 1
            raise NoRespondersError
        return await request(subject, *args, **kwargs)  # type: ignore[arg-type]

    try:
        for name in await target.stream_names(">"):
            await target.delete_stream(name)
        monkeypatch.setattr(target._client, "request", not_heard_at_once)
        await source.copy_stream(lane.stream, target, num_replicas=3)
        assert unheard == 0
        assert (await target.state(lane.stream)).messages == 1
        await target.delete_stream(lane.stream)
        unheard = 1000
        monkeypatch.setattr(jetstream_module, "RESTORE_HEARD_S_MAX", 0.2)
        with pytest.raises(Unavailable, match="broke it off"):
            await source.copy_stream(lane.stream, target, num_replicas=3)
    finally:
        await source.close()
        await target.close()


async def test_a_server_that_hangs_is_left(
    cluster: tuple[list[Process], dict[str, str]], of_cluster: dict[str, Settings]
) -> None:
    """Its connections stay open, so only that it answers nothing shows it."""
    jetstream = await connect(of_cluster["admin"])
    port = int(jetstream.address.rpartition(":")[2])
    (hanging,) = (process for process in cluster[0] if process.program.ports["queue"] == port)
    hanging.signal(SIGSTOP)
    try:

        async def works_elsewhere() -> bool:
            with suppress(Unavailable):
                return bool(await jetstream.stream_names(">")) and not jetstream.address.endswith(f":{port}")
            return False

        await until(works_elsewhere, within_s=40)
    finally:
        hanging.signal(SIGCONT)
        await jetstream.close()


async def test_a_replica_without_a_leader_does_not_say_what_a_stream_has(
    cluster: tuple[list[Process], dict[str, str]], of_cluster: dict[str, Settings]
) -> None:
    """It may lack messages. Of two replicas one is lost, so the stream has no majority; the three servers still have
    one, and let the other replica answer.
    """
    jetstream = await connect(of_cluster["admin"])
    try:
        await jetstream.create_stream({"name": "PAIR", "subjects": ["pair"], "num_replicas": 2, "storage": "file"})
        assert (await jetstream.state("PAIR")).messages == 0
        leader = str((await jetstream.cluster_of("PAIR"))["leader"]).removeprefix(NAME)
        (process,) = (one for one in cluster[0] if one.program.name == f"nats{leader}")
        process.signal(SIGKILL)

        async def is_refused() -> bool:
            try:
                await jetstream.state("PAIR")
            except Unavailable as error:
                return "the stream PAIR has no leader" in str(error)
            return False

        await until(is_refused, within_s=40)
        answer = await jetstream.api("STREAM.INFO.PAIR")
        assert ("state" in answer, answer["cluster"].get("leader", "")) == (True, "")
        process.restart()

        async def is_known() -> bool:
            try:
                return (await jetstream.state("PAIR")).messages == 0
            except Unavailable:
                return False

        await until(is_known, within_s=40)
        await jetstream.delete_stream("PAIR")
    finally:
        await jetstream.close()


async def test_without_a_majority_the_error_says_so(
    cluster: tuple[list[Process], dict[str, str]], of_cluster: dict[str, Settings]
) -> None:
    """And a role can start, and goes on, while one of the servers is away."""
    processes, _ = cluster
    first, second, _ = processes
    jetstream = await connect(of_cluster["admin"])
    try:
        first.signal(SIGKILL)

        async def works() -> bool:
            try:
                return bool(await jetstream.stream_names(">"))
            except Unavailable:
                return False

        await until(works)
        await (await connect(of_cluster["api"])).close()
        second.signal(SIGKILL)

        async def says_so() -> bool:
            try:
                await jetstream.stream_names(">")
            except Unavailable as error:
                return "most of its servers do not run" in str(error)
            return False

        await until(says_so)
        for process in (first, second):
            process.restart()
        await until(works)
    finally:
        await jetstream.close()
