"""Three queue servers under load: the leader of a lane is killed, then two of three, and nothing is lost or doubled."""

import asyncio
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGKILL

import httpx

from bronze.errors import Unavailable
from local import programs, servers
from local.programs import LOOPBACK, Process, Program
from tests.delivery.kill.checker import check, streams
from tests.delivery.kill.harness import Clients, System, attempts

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

    def server(self, name: str) -> Process:
        """By its name in the cluster, which ends with its number."""
        return self._servers[f"nats-{name.rpartition('-')[2]}"]

    async def leader(self, subject: str) -> str:
        """The server that leads the stream on a subject."""
        jetstream = await self.queue()
        try:
            async for _ in attempts(60, f"nobody leads {subject}"):
                try:
                    (stream,) = await streams(jetstream, subject)
                    if leader := str((await jetstream.cluster_of(stream))["leader"]):
                        return leader
                except Unavailable:
                    continue
        finally:
            await jetstream.close()
        raise AssertionError  # `attempts` raises

    async def ready(self) -> tuple[int, dict[str, str]]:
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            answer = await http.get(f"{self.api_url}/readyz")
            return answer.status_code, answer.json()

    async def leaderless(self) -> float:
        """The series that the alert BronzeQueueLeaderless reads."""
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            text = (await http.get(f"{self.api_url}/metrics")).text
        found = re.search(r"^bronze_queue_leaderless(?:\{.*\})? (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else -1


async def test_servers_of_the_queue_are_killed_under_load(tmp_path: Path) -> None:
    """While the leader of a lane is away, submissions are accepted and stored. While two of three are away, `/readyz`
    says so, and clients get a 503; when they are back, everything goes on by itself.
    """
    system, stop = Cluster(tmp_path), asyncio.Event()
    async with system, Clients(system, random.Random(24), timeout_s=10) as clients, asyncio.TaskGroup() as group:
        system.start("api", "serve")
        system.start("consumer-1", "consume")
        keep = group.create_task(system.keep())
        senders = [group.create_task(clients.run(stop)) for _ in range(CLIENTS)]
        await clients.some_more(10)

        leader = await system.leader("bronze.vehicles.0.>")
        system.server(leader).signal(SIGKILL)
        await clients.some_more(20)
        assert await system.leader("bronze.vehicles.0.>") != leader
        async for _ in attempts(60, f"{leader} is not seen to be away"):
            status, body = await system.ready()
            seen = f"{leader} is away with" in body["queue_servers"]
            if (seen, status, await system.leaderless()) == (True, 200, 0):
                break
        await asyncio.to_thread(system.server(leader).restart)
        async for _ in attempts(60, f"{leader} did not catch up"):
            _, body = await system.ready()
            if not re.search("away|lags|no leader", body["queue_servers"]):
                break

        away = [system.server(f"-{number}") for number in (1, 2)]
        for server in away:
            server.signal(SIGKILL)
        async for _ in attempts(60, "the API does not see that the majority is lost"):
            status, body = await system.ready()
            says_so = "most of its servers do not run" in body["status"] and "no leader of" in body["queue_servers"]
            if status == 503 and says_so and await system.leaderless() > 0:
                break
        refused = await clients.deliver(clients.submission(keyed=False))
        assert refused["status"] == 503, refused
        await asyncio.gather(*(asyncio.to_thread(server.restart) for server in away))
        await clients.some_more(10)
        async for _ in attempts(60, "the API is not ready again"):
            if (await system.ready())[0] == 200 and await system.leaderless() == 0:
                break

        stop.set()
        await asyncio.gather(*senders)
        found = await system.drained()
        keep.cancel()
    verdict = check(clients.sent, found)
    assert verdict, f"logs in {tmp_path}: {verdict}"
