"""Three queue servers under load, with roles that are killed too: whatever happens to a server, its disk or the
network, nothing is lost or doubled.

BRONZE_CLUSTER_SEED is the seed of the run, BRONZE_CLUSTER_FAULTS the number of its faults (`make prove` has more).
"""

import asyncio
import os
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bronze.servers.jetstream import COMMIT_TIMEOUT_S
from tests.delivery.cluster import faults
from tests.delivery.cluster.run import Figures, order, run
from tests.delivery.cluster.system import Cluster
from tests.delivery.kill.checker import check
from tests.delivery.kill.harness import Clients, attempts

SEED = os.environ.get("BRONZE_CLUSTER_SEED", "24")
#: Without a number, one fault of each of these kinds.
FAULTS = int(os.environ.get("BRONZE_CLUSTER_FAULTS", "0"))
SHORT = (
    "one server killed",
    "one server isolated, roles see it",
    "one server does not hear",
    "empty disk",
    "power loss of all servers",
)
CLIENTS = 3
#: Longer than the API waits for the queue: its deadline, and then a batch that no leader finishes.
ANSWER_S = 1 + COMMIT_TIMEOUT_S + 20


@pytest.mark.timeout(300 + 60 * FAULTS)
async def test_faults_of_the_cluster_lose_and_double_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    """After each fault the cluster gets whole again by itself, and accepts; at the end each accepted record is stored
    once, no lane has halted, and one order of all operations explains every answer of the catalog.
    """
    seed = random.SystemRandom().randrange(10**6) if SEED == "random" else int(SEED)
    kinds = order(random.Random(seed), faults.POSSIBLE, FAULTS) or [kind for kind in SHORT if kind in faults.POSSIBLE]

    def say(line: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    say(f"\nfaults of a cluster: BRONZE_CLUSTER_SEED={seed} BRONZE_CLUSTER_FAULTS={FAULTS}, logs in {tmp_path}")
    figures = Figures()
    try:
        verdict = await run(tmp_path, seed, kinds, figures, say)
    finally:
        for kind, counts in figures.by_kind().items():
            for counted, count in counts.items():
                record_property(f"{kind}: {counted}", count)
    assert verdict, f"BRONZE_CLUSTER_SEED={seed} BRONZE_CLUSTER_FAULTS={FAULTS}, logs in {tmp_path}: {verdict}"


async def test_the_loss_of_the_majority_is_shown(tmp_path: Path) -> None:
    """While the leader of a lane is away, submissions are accepted and stored. While two of three are away, `/readyz`
    says so, and clients get a 503; when they are back, everything goes on by itself.
    """
    system, stop = Cluster(tmp_path), asyncio.Event()
    async with system, Clients(system, random.Random(24), timeout_s=ANSWER_S) as clients, asyncio.TaskGroup() as group:
        system.start("api", "serve")
        system.start("consumer-1", "consume")
        keep = group.create_task(system.keep())
        senders = [group.create_task(clients.run(stop)) for _ in range(CLIENTS)]
        await clients.some_more(10)

        leader = await system.leader("bronze.vehicles.0.>")
        system.kill(system.own_name(leader))
        await clients.some_more(20)
        assert await system.leader("bronze.vehicles.0.>") != leader
        async for _ in attempts(60, f"{leader} is not seen to be away"):
            status, body = await system.ready()
            seen = f"{leader} is away with" in body["queue_servers"]
            if (seen, status, await system.leaderless()) == (True, 200, 0):
                break
        await system.restart(system.own_name(leader))
        async for _ in attempts(60, f"{leader} did not catch up"):
            _, body = await system.ready()
            if not re.search("away|lags|no leader", body["queue_servers"]):
                break

        away = system.names[:2]
        for name in away:
            system.kill(name)
        async for _ in attempts(60, "the API does not see that the majority is lost"):
            status, body = await system.ready()
            says_so = "most of its servers do not run" in body["status"] and "no leader of" in body["queue_servers"]
            if status == 503 and says_so and await system.leaderless() > 0:
                break
        refused = await clients.deliver(clients.submission(keyed=False))
        assert refused["status"] == 503, refused
        await system.restart(*away)
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
