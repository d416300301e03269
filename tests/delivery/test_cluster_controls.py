"""Negative controls of the faults of a cluster: a queue that is set up wrongly loses, and the checks find that."""

import asyncio
import random
from pathlib import Path

import pytest

from tests.delivery.cluster.disk import AVAILABLE
from tests.delivery.cluster.system import Cluster
from tests.delivery.kill.checker import Verdict, check, read_bucket
from tests.delivery.kill.harness import Clients, attempts

SUBMISSIONS = 20


async def accept(cluster: Cluster, clients: Clients) -> None:
    """Accept submissions of one source, which wait in the queue: no consumer runs."""
    cluster.start("api", "serve")
    await cluster.at_work("api")
    for _ in range(SUBMISSIONS):
        await clients.deliver(clients.submission("vehicles", keyed=True))
    await cluster.stop("api")


async def stored(cluster: Cluster, clients: Clients) -> Verdict:
    """What the check says when a consumer has stored what the queue still has."""
    cluster.start("consumer", "consume")
    return check(clients.sent, await cluster.drained())


@pytest.mark.skipif(not AVAILABLE, reason="a disk that loses power needs root and /dev/fuse")
async def test_checker_finds_the_loss_of_what_was_not_synced(tmp_path: Path) -> None:
    """With nats-server's own `sync_interval`, power loss of all servers loses what was accepted just before."""
    async with Cluster(tmp_path, sync_interval="2m") as cluster, Clients(cluster, random.Random(9)) as clients:
        for disk in cluster.disks.values():
            disk.settle()  # the servers run for longer than two minutes
        await accept(cluster, clients)
        for name in cluster.names:
            cluster.kill(name)
        assert all(disk.lose_power() for disk in cluster.disks.values())
        await cluster.restart(*cluster.names)
        await cluster.whole()
        verdict = await stored(cluster, clients)
    assert verdict.lost
    assert set(verdict.lost) <= clients.sent.accepted
    assert not verdict.doubled


async def test_checker_finds_the_loss_of_the_only_replica(tmp_path: Path) -> None:
    """With one replica, the loss of a disk loses what was accepted."""
    async with Cluster(tmp_path, replicas=1) as cluster, Clients(cluster, random.Random(9)) as clients:
        await accept(cluster, clients)
        name = cluster.own_name(await cluster.leader("bronze.vehicles.0.>"))
        cluster.kill(name)
        cluster.replace_disk(name)
        await cluster.restart(name)
        await cluster.whole()
        verdict = await stored(cluster, clients)
    assert verdict.lost
    assert set(verdict.lost) <= clients.sent.accepted
    assert not verdict.doubled


async def test_a_lane_halts_if_all_disks_are_old(tmp_path: Path) -> None:
    """If all servers come back with an earlier state, what depends on the rest cannot be continued: the lane halts, and
    within a minute its metric says so. Nothing in the bucket is changed.
    """
    async with Cluster(tmp_path) as cluster, Clients(cluster, random.Random(9)) as clients:
        cluster.start("api", "serve")
        cluster.start("consumer", "consume")
        await clients.deliver(clients.submission("vehicles", keyed=True))
        await cluster.drained()
        for name in cluster.names:
            cluster.copy_disk(name)
        await cluster.whole()
        for _ in range(SUBMISSIONS):
            await clients.deliver(clients.submission("vehicles", keyed=True))
        before = await cluster.drained()
        for role in ("api", "consumer"):
            await cluster.stop(role)
        for name in cluster.names:
            cluster.kill(name)
            cluster.replace_disk(name, copy=True)
        await cluster.restart(*cluster.names)
        await cluster.whole()
        cluster.start("consumer", "consume")
        await cluster.at_work("consumer")
        async for _ in attempts(60, "no lane has halted"):
            if "vehicles" in await cluster.halted():
                break
        objects, _, _ = await asyncio.to_thread(read_bucket, cluster.account)
    assert objects == before.objects
