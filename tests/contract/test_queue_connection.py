"""The connection to the queue: several servers, users, and what is a wrong setting instead of an outage."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bronze.errors import Misconfigured, NotPermitted, Unavailable
from bronze.queue_servers import QueueServers
from bronze.servers.jetstream import JetStream, Outgoing
from bronze.wiring.servers import connect_queue
from local import programs, servers
from local.machine import limit_s
from local.programs import LOOPBACK, Process
from tests.contract.making import until

PASSWORD = "of-the-test"
USERS = """
authorization {{
    users: [
        {{user: boss, password: "{password}"}}
        {{
            user: guest, password: "{password}"
            permissions: {{publish: ["$JS.API.STREAM.NAMES", "allowed"], subscribe: "_INBOX_guest.>"}}
        }}
    ]
}}
"""


@pytest.fixture
def closed(tmp_path: Path, nats_name: str) -> Iterator[Process]:
    """A nats-server that asks for a user."""
    program = servers.nats(
        tmp_path / "nats",
        programs.free_ports(),
        nats_name,
        more=USERS.format(password=PASSWORD),
        user=("boss", PASSWORD),
    )
    with programs.start(program, tmp_path / "nats.log") as process:
        yield process


def url(server: Process) -> str:
    return f"nats://{LOOPBACK}:{server.program.ports['queue']}"


def reload(server: Process, configuration: str) -> None:
    """Replace what follows the first part of the server's configuration."""
    file = Path(server.program.command[-1])
    own = file.read_text().partition("\nauthorization")[0]
    file.write_text(own + configuration)
    server.signal(signal.SIGHUP)


@pytest.mark.parametrize(
    ("user", "password", "reason"),
    [
        ("boss", "wrong", "refuses the user 'boss' or its password"),
        ("nobody", PASSWORD, "refuses the user 'nobody'"),
        (None, "", "asks for a user: set BRONZE_NATS_USER"),
    ],
)
async def test_a_wrong_user_is_a_wrong_setting(closed: Process, user: str | None, password: str, reason: str) -> None:
    """It is reported at once, and without the password."""
    began_s = asyncio.get_running_loop().time()
    with pytest.raises(Misconfigured, match=reason) as refused:
        await JetStream.connect(QueueServers((url(closed),), user, password))
    assert asyncio.get_running_loop().time() - began_s < limit_s(1)
    assert not password or password not in str(refused.value)


async def test_of_several_servers_one_that_accepts_is_enough(closed: Process, nats: Process) -> None:
    """One of the others is away, and one refuses the user."""
    away = f"nats://{LOOPBACK}:{programs.free_ports()}"
    several = QueueServers((away, url(closed), url(nats)), "boss", "wrong")
    jetstream = await JetStream.connect(several)
    try:
        assert jetstream.address == url(nats)
    finally:
        await jetstream.close()
    with pytest.raises(Misconfigured, match="refuses the user"):
        await JetStream.connect(QueueServers((away, url(closed)), "boss", "wrong"))
    with pytest.raises(Unavailable, match=f"{away} does not answer"):
        await JetStream.connect(QueueServers((away,)))


async def test_the_role_ends_with_a_wrong_user_and_waits_for_a_missing_server(closed: Process) -> None:
    stop = asyncio.Event()
    with pytest.raises(Misconfigured, match="refuses the user"):
        await connect_queue(QueueServers((url(closed),), "boss", "wrong"), None, stop)


async def test_a_user_that_is_removed_while_its_process_runs_can_come_back(closed: Process, tmp_path: Path) -> None:
    """Until then requests fail and nothing is sent; with a new password in its file, the same process goes on."""
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n")
    jetstream = await JetStream.connect(QueueServers((url(closed),), "boss", file))

    async def works() -> bool:
        try:
            return await jetstream.stream_names(">") == []
        except Unavailable:
            return False

    try:
        assert await works()
        reload(closed, USERS.format(password="another"))

        async def fails() -> bool:
            return not await works()

        await until(fails)
        file.write_text("another")
        await until(works)
    finally:
        await jetstream.close()


async def test_what_the_user_may_not_do_is_no_outage(closed: Process) -> None:
    """The error names the subject, and the connection stays."""
    jetstream = await JetStream.connect(QueueServers((url(closed),), "guest", PASSWORD))
    try:
        with pytest.raises(NotPermitted, match=r"\$js\.api\.stream\.info\.any"):
            await jetstream.state("any")
        with pytest.raises(NotPermitted, match="forbidden"):
            await jetstream.publish(Outgoing("forbidden", b"", {}))
        with pytest.raises(NotPermitted, match=r"\$js\.api\.direct\.get\.any"):
            await jetstream.read("any", 1, messages_max=1, bytes_max=1)
        assert await jetstream.stream_names(">") == []
    finally:
        await jetstream.close()


async def test_a_password_file_that_is_missing_or_empty_is_a_wrong_setting(nats: Process, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    for file in (tmp_path / "missing", empty):
        with pytest.raises(Misconfigured, match=f"BRONZE_NATS_PASSWORD_FILE: .*{file.name}"):
            await JetStream.connect(QueueServers((url(nats),), "boss", file))
