"""The faults of a cluster. Each is a context: entered, the fault is there; left, it is repaired.

The runs of `test_cluster_faults.py` choose them from a seed, and wait after each until the cluster is whole again: a
fault on one server, while another one still lacks messages, is the loss of two.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import permutations, product

import nats.errors

import nats
from local.programs import LOOPBACK
from tests.delivery.cluster.disk import AVAILABLE
from tests.delivery.cluster.network import ROLES
from tests.delivery.cluster.system import SYSTEM_USER, Cluster
from tests.delivery.kill.harness import attempts

Fault = Callable[[Cluster, random.Random], AbstractAsyncContextManager[None]]

SLOW_MS = (5, 100)
#: Beyond a quarter of an hour, the bucket refuses what a role with this clock signs.
CLOCK_S = (-7200, -600, -30, 30, 600, 7200)


# --- processes


@asynccontextmanager
async def one_killed(cluster: Cluster, rng: random.Random) -> AsyncIterator[None]:
    name = await cluster.pick(rng)
    cluster.kill(name)
    yield
    await cluster.restart(name)


@asynccontextmanager
async def two_killed(cluster: Cluster, rng: random.Random) -> AsyncIterator[None]:
    names = rng.sample(cluster.names, 2)
    for name in names:
        cluster.kill(name)
    yield
    await cluster.restart(*names)


@asynccontextmanager
async def all_killed(cluster: Cluster, rng: random.Random) -> AsyncIterator[None]:
    for name in rng.sample(cluster.names, len(cluster.names)):
        cluster.kill(name)
    yield
    await cluster.restart(*cluster.names)


@asynccontextmanager
async def one_paused(cluster: Cluster, rng: random.Random) -> AsyncIterator[None]:
    name = await cluster.pick(rng)
    cluster.pause(name)
    yield
    cluster.resume(name)


@asynccontextmanager
async def wrong_clock(cluster: Cluster, rng: random.Random) -> AsyncIterator[None]:
    roles = rng.sample(cluster.roles, rng.randint(1, len(cluster.roles)))
    for role in roles:
        cluster.set_clock(role, rng.choice(CLOCK_S))
    yield
    for role in roles:
        cluster.set_clock(role, 0)


# --- the network


@asynccontextmanager
async def one_isolated(cluster: Cluster, rng: random.Random) -> AsyncIterator[None]:
    """No server sees this one, but roles do: it may be the leader."""
    one = await cluster.pick(rng)
    async with _stopped(cluster, rng, [pair for pair in permutations(cluster.names, 2) if one in pair]):
        yield


@asynccontextmanager
async def one_isolated_from_all(cluster: Cluster, rng: random.Random) -> AsyncIterator[None]:
    one = await cluster.pick(rng)
    async with _stopped(cluster, rng, [pair for pair in permutations([*cluster.names, ROLES], 2) if one in pair]):
        yield


@asynccontextmanager
async def not_heard(cluster: Cluster, rng: random.Random) -> AsyncIterator[None]:
    """One hears the others, and they do not hear it."""
    one = await cluster.pick(rng)
    async with _stopped(cluster, rng, product([one], cluster.others(one))):
        yield


@asynccontextmanager
async def not_hearing(cluster: Cluster, rng: random.Random) -> AsyncIterator[None]:
    """The others hear one, and it does not hear them."""
    one = await cluster.pick(rng)
    async with _stopped(cluster, rng, product(cluster.others(one), [one])):
        yield


@asynccontextmanager
async def two_apart(cluster: Cluster, rng: random.Random) -> AsyncIterator[None]:
    """The third sees both."""
    one, other = rng.sample(cluster.names, 2)
    async with _stopped(cluster, rng, [(one, other), (other, one)]):
        yield


@asynccontextmanager
async def ring(cluster: Cluster, rng: random.Random) -> AsyncIterator[None]:
    """Each hears one of the others, and is heard by the other one."""
    one, two, three = rng.sample(cluster.names, 3)
    async with _stopped(cluster, rng, [(one, two), (two, three), (three, one)]):
        yield


@asynccontextmanager
async def all_apart(cluster: Cluster, rng: random.Random) -> AsyncIterator[None]:
    async with _stopped(cluster, rng, permutations(cluster.names, 2)):
        yield


@asynccontextmanager
async def unseen_by_roles(cluster: Cluster, rng: random.Random) -> AsyncIterator[None]:
    """The servers see each other, and the roles do not see this one."""
    one = await cluster.pick(rng)
    async with _stopped(cluster, rng, [(one, ROLES), (ROLES, one)]):
        yield


@asynccontextmanager
async def answers_unseen(cluster: Cluster, rng: random.Random) -> AsyncIterator[None]:
    """Requests of the roles reach the servers, and answers do not come back."""
    async with _stopped(cluster, rng, product(cluster.names, [ROLES])):
        yield


@asynccontextmanager
async def connections_reset(cluster: Cluster, _: random.Random) -> AsyncIterator[None]:
    cluster.network.reset()
    yield


@asynccontextmanager
async def _stopped(cluster: Cluster, rng: random.Random, ways: Iterable[tuple[str, str]]) -> AsyncIterator[None]:
    """What was stopped arrives late, or never because the connections are closed."""
    cluster.network.stop(ways)
    yield
    if rng.random() < 0.5:
        cluster.network.reset()
    cluster.network.heal()


# --- disks


@asynccontextmanager
async def empty_disk(cluster: Cluster, rng: random.Random) -> AsyncIterator[None]:
    """A server is replaced by an empty one, after the others have elected leaders."""
    name = await cluster.pick(rng)
    cluster.kill(name)
    yield
    await cluster.led_without(name)
    cluster.replace_disk(name)
    await cluster.restart(name)


@asynccontextmanager
async def old_disk(cluster: Cluster, rng: random.Random) -> AsyncIterator[None]:
    """A server comes back with what it had earlier, after the others have elected leaders."""
    name = await cluster.pick(rng)
    if name not in cluster.copies:
        await asyncio.to_thread(cluster.copy_disk, name)
    yield
    cluster.kill(name)
    await cluster.led_without(name)
    cluster.replace_disk(name, copy=True)
    await cluster.restart(name)
    await cluster.whole()
    await asyncio.to_thread(cluster.copy_disk, name)


@asynccontextmanager
async def full_disk(cluster: Cluster, rng: random.Random) -> AsyncIterator[None]:
    """JetStream of a server without space ends itself, so that the server has to be restarted."""
    name = await cluster.pick(rng)
    cluster.disks[name].fill(full=True)
    yield
    cluster.disks[name].fill(full=False)
    await cluster.restart(name)


@asynccontextmanager
async def slow_disk(cluster: Cluster, rng: random.Random) -> AsyncIterator[None]:
    names = rng.sample(cluster.names, rng.randint(1, 3))
    for name in names:
        cluster.disks[name].slow(rng.choice(SLOW_MS))
    yield
    for name in names:
        cluster.disks[name].slow(0)


@asynccontextmanager
async def power_lost(cluster: Cluster, rng: random.Random) -> AsyncIterator[None]:
    name = await cluster.pick(rng)
    cluster.kill(name)
    cluster.disks[name].lose_power()
    yield
    await cluster.restart(name)


@asynccontextmanager
async def all_power_lost(cluster: Cluster, rng: random.Random) -> AsyncIterator[None]:
    for name in rng.sample(cluster.names, len(cluster.names)):
        cluster.kill(name)
    for disk in cluster.disks.values():
        disk.lose_power()
    yield
    await cluster.restart(*cluster.names)


# --- members


@asynccontextmanager
async def replaced_while_isolated(cluster: Cluster, rng: random.Random) -> AsyncIterator[None]:
    """An isolated server is removed from the cluster, and another one added in its place (nats-server#7545)."""
    name = await cluster.pick(rng)
    cluster.network.stop(pair for pair in permutations(cluster.names, 2) if name in pair)
    await cluster.led_without(name)
    await remove_member(cluster, name, rng.choice(cluster.others(name)))
    yield
    cluster.kill(name)
    cluster.network.heal()
    await cluster.replace_member(name)


async def remove_member(cluster: Cluster, name: str, through: str) -> None:
    """Ask a server to remove another one from the cluster."""
    port = cluster.server(through).program.ports["queue"]
    async for _ in attempts(60, f"{name} was not removed"):
        with suppress(nats.errors.Error, OSError, TimeoutError):
            client = await nats.connect(
                f"nats://{LOOPBACK}:{port}", user=SYSTEM_USER, password=SYSTEM_USER, allow_reconnect=False
            )
            try:
                request = json.dumps({"peer": cluster.member(name)}).encode()
                answer = await client.request("$JS.API.SERVER.REMOVE", request, timeout=5)
            finally:
                await client.close()
            if json.loads(answer.data).get("success"):
                return


@dataclass(frozen=True)
class Kind:
    fault: Fault
    needs_disk: bool = False


ALL: Mapping[str, Kind] = {
    "one server killed": Kind(one_killed),
    "two servers killed": Kind(two_killed),
    "all servers killed": Kind(all_killed),
    "one server paused": Kind(one_paused),
    "one server isolated, roles see it": Kind(one_isolated),
    "one server isolated from all": Kind(one_isolated_from_all),
    "one server is not heard": Kind(not_heard),
    "one server does not hear": Kind(not_hearing),
    "two servers apart, the third sees both": Kind(two_apart),
    "each server hears one other": Kind(ring),
    "all servers apart": Kind(all_apart),
    "roles do not see one server": Kind(unseen_by_roles),
    "answers do not reach roles": Kind(answers_unseen),
    "all connections reset": Kind(connections_reset),
    "empty disk": Kind(empty_disk),
    "old disk": Kind(old_disk),
    "full disk": Kind(full_disk, needs_disk=True),
    "slow disks": Kind(slow_disk, needs_disk=True),
    "power loss of one server": Kind(power_lost, needs_disk=True),
    "power loss of all servers": Kind(all_power_lost, needs_disk=True),
    "wrong clock of roles": Kind(wrong_clock),
    "isolated server replaced": Kind(replaced_while_isolated),
}
#: Those that this machine can have.
POSSIBLE = [name for name, kind in ALL.items() if AVAILABLE or not kind.needs_disk]
