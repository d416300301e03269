"""The queue is moved from one server to three while clients send: nothing is lost or doubled."""

import asyncio
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from local import programs, servers
from local.programs import LOOPBACK, Program
from tests.delivery.kill.checker import check
from tests.delivery.kill.harness import Clients, System

CLIENTS = 3


class Cluster(System):
    """A system whose queue has three servers."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._queue_port = programs.free_ports(servers.NATS_PORTS)

    def queue_servers(self) -> Sequence[Program]:
        return servers.nats_cluster(self.root / "nats", self._queue_port, self.root.name)

    def queue_env(self, user: str) -> Mapping[str, str]:
        urls = ",".join(f"nats://{LOOPBACK}:{self._queue_port + n}" for n in range(max(servers.NATS_SERVERS)))
        return {**super().queue_env(user), "BRONZE_NATS_URL": urls, "BRONZE_QUEUE_REPLICAS": "3"}


class Moved(System):
    """A system with one queue server, and an empty cluster beside it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        (root / "new").mkdir()
        self.new = Cluster(root / "new")

    def start_new(self) -> None:
        """Start the cluster, with the users and passwords of the old server."""
        shutil.copytree(self.root / "nats" / "secrets", self.new.root / "nats" / "secrets")
        self.start_servers(*self.new.queue_servers())

    def use_new(self) -> None:
        """From now on, roles and commands get the addresses of the cluster."""
        self.queue_env = self.new.queue_env  # type: ignore[method-assign]

    async def copy(self) -> tuple[int, str]:
        to = self.new.queue_env("admin")["BRONZE_NATS_URL"]
        command = await self.command("queue", "copy", "--to", to, "--yes", BRONZE_QUEUE_REPLICAS="3")
        out, _ = await command.communicate()
        return command.returncode or 0, out.decode()


async def test_one_server_becomes_three_under_load(tmp_path: Path) -> None:
    """Clients send before, during and after the move, and get a 503 while nothing can be accepted. Submissions wait in
    the queue that is moved. What was accepted before has the same answer after.
    """
    system, stop = Moved(tmp_path), asyncio.Event()
    async with system, Clients(system, random.Random(24)) as clients, asyncio.TaskGroup() as group:
        system.start("api", "serve")
        system.start("consumer-1", "consume")
        keep = group.create_task(system.keep())
        senders = [group.create_task(clients.run(stop)) for _ in range(CLIENTS)]
        await clients.some_more(20)
        await asyncio.to_thread(system.start_new)
        await system.stop("consumer-1")
        await clients.some_more(10)
        code, said = await system.copy()
        assert code == 0, said
        refused = await clients.deliver(clients.submission(keyed=False))
        assert (refused["status"], refused["type"]) == (503, "/problems/queue-away"), refused
        before = [pair for pair in clients.accepted if pair[0].key]
        await system.stop("api")
        system.use_new()
        system.start("api", "serve")
        system.start("consumer-1", "consume")
        await clients.some_more(20)
        for submission, answer in before[-20:]:
            again = await clients.settle(submission)
            assert (again.status_code, again.json()) == (202, answer)
        stop.set()
        await asyncio.gather(*senders)
        found = await system.drained()
        keep.cancel()
    verdict = check(clients.sent, found)
    assert verdict, f"logs in {tmp_path}: {verdict}"
