"""The servers of the queue: which of them leads each stream, and which replicas are behind."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from bronze.errors import Unavailable
from bronze.servers.jetstream import JetStream

#: A replica whose leader has not heard of it for so long is away; the server takes as long to see that.
AWAY_NS = 10 * 10**9
#: Requests at the same time.
ASKED_MAX = 16


class ReplicaState(StrEnum):
    LEADER = "leader"
    CURRENT = "current"
    LAGGING = "lagging"
    AWAY = "away"


@dataclass(frozen=True, slots=True)
class ClusterState:
    """The number of replicas by server and state, and the streams without a leader, at about one moment."""

    servers: Mapping[str, Counter[ReplicaState]] = field(default_factory=dict)
    leaderless: Sequence[str] = ()

    def servers_with(self, state: ReplicaState) -> Mapping[str, int]:
        """The servers that have replicas in a state, with their number."""
        return {name: states[state] for name, states in sorted(self.servers.items()) if states[state]}


class QueueCluster(Protocol):
    """What the roles ask the servers of the queue."""

    async def state(self) -> ClusterState: ...


class NatsCluster:
    """The servers of a JetStream, which may be only one."""

    def __init__(self, jetstream: JetStream, streams: Sequence[str]) -> None:
        self._js = jetstream
        self._streams = streams
        self._clustered = False

    async def state(self) -> ClusterState:
        """Raises `Unavailable` if a single server does not answer."""
        self._clustered = self._clustered or self._js.cluster_name is not None
        return await read_state(self._js, self._streams, clustered=self._clustered)


async def read_state(jetstream: JetStream, streams: Sequence[str], *, clustered: bool) -> ClusterState:
    """The state of these streams. Of a cluster, a stream that nobody answers for has no leader.

    Raises `Unavailable` if a single server does not answer.
    """
    asking = asyncio.Semaphore(ASKED_MAX)

    async def ask(stream: str) -> Mapping[str, Any] | None:
        async with asking:
            try:
                return await jetstream.cluster_of(stream)
            except Unavailable:
                if not clustered:
                    raise
                return None

    servers: dict[str, Counter[ReplicaState]] = {}
    leaderless = []
    for stream, found in zip(streams, await asyncio.gather(*map(ask, streams)), strict=True):
        if not found or not found.get("leader"):
            leaderless.append(stream)
            continue
        servers.setdefault(found["leader"], Counter())[ReplicaState.LEADER] += 1
        for replica in found.get("replicas") or ():
            servers.setdefault(replica["name"], Counter())[_state(replica)] += 1
    return ClusterState(servers, leaderless)


def _state(replica: Mapping[str, Any]) -> ReplicaState:
    if replica.get("current"):
        return ReplicaState.CURRENT
    # 0: the leader has not heard of it since it leads
    heard_ns = replica.get("active", 0)
    away = replica.get("offline") or not heard_ns or heard_ns >= AWAY_NS
    return ReplicaState.AWAY if away else ReplicaState.LAGGING
