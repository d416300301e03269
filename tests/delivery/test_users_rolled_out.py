"""From a queue without users to one with users, under load, in the steps that docs/security.md has."""

import asyncio
import os
import random
from pathlib import Path

import pytest

from bronze.errors import Misconfigured
from bronze.queue_servers import QueueServers
from bronze.servers.jetstream import JetStream
from local import servers
from local.programs import Program
from tests.delivery.kill.checker import check
from tests.delivery.kill.harness import CONSUMERS, Clients, System, attempts

SEED = os.environ.get("BRONZE_KILL_SEED", "9")
CLIENTS = 3
#: Who gives no user is this one, who may do everything.
OPEN = """
no_auth_user: open
authorization {
    users: [
        {user: open, password: "never given"}
"""


class RolledOut(System):
    """A system whose roles get their users one after another."""

    def queue_program(self, *, lets_all_in: bool) -> Program:
        program = servers.nats_with_users(self.root / "nats", self._queue_port, self.root.name)
        if lets_all_in:
            file = Path(program.command[-1])
            before, _, after = file.read_text().partition("authorization {\n")
            file.write_text(before + OPEN + after.partition("users: [\n")[2])
        return program

    async def restart(self, name: str, command: str) -> None:
        await self.stop(name)
        self.start(name, command)


async def some_accepted(clients: Clients) -> None:
    """Wait until more submissions are accepted."""
    before = len(clients.accepted)
    async for _ in attempts(60, "nothing is accepted"):
        if len(clients.accepted) >= before + 10:
            break


async def connect_for_ever(url: str) -> None:
    """Connect as nobody, until the server refuses."""
    async for _ in attempts(10, "the server lets everybody in"):
        await (await JetStream.connect(QueueServers((url,)))).close()


async def test_users_are_introduced_under_load(tmp_path: Path) -> None:
    """Each accepted record is stored once, and at the end nobody without a user is let in."""
    seed = random.SystemRandom().randrange(10**6) if SEED == "random" else int(SEED)
    rng = random.Random(seed)
    system, stop = RolledOut(tmp_path, users=False), asyncio.Event()
    async with system, Clients(system, rng) as clients, asyncio.TaskGroup() as group:
        roles = [(name, "consume") for name in CONSUMERS] + [("api", "serve")]
        for name, command in roles:
            system.start(name, command)
        keep = group.create_task(system.keep())
        senders = [group.create_task(clients.run(stop)) for _ in range(CLIENTS)]
        await some_accepted(clients)
        system.configure_queue(system.queue_program(lets_all_in=True))
        await some_accepted(clients)
        system.users = True
        await system.initialize()
        for name, command in roles:
            await system.restart(name, command)
            await some_accepted(clients)
        system.configure_queue(system.queue_program(lets_all_in=False))
        with pytest.raises(Misconfigured, match="asks for a user"):
            await connect_for_ever(system.queue_env("api")["BRONZE_NATS_URL"])
        await some_accepted(clients)
        stop.set()
        await asyncio.gather(*senders)
        found = await system.drained()
        keep.cancel()
    verdict = check(clients.sent, found)
    assert verdict, f"BRONZE_KILL_SEED={seed}, logs in {tmp_path}: {verdict}"
    assert len(clients.accepted) > 50
