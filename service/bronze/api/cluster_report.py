"""The state of the queue's servers: as metrics, and for `/readyz`."""

import asyncio
import logging
from collections import Counter

from bronze.errors import BronzeError
from bronze.plurals import counted
from bronze.servers.queue_cluster import ClusterState, QueueCluster, ReplicaState
from bronze.telemetry.instruments import Instruments
from bronze.telemetry.signals import attribute

log = logging.getLogger(__name__)

REPORT_S = 5.0
#: Streams that are named.
NAMED_MAX = 10


class ClusterReport:
    """Asks the queue's servers again and again."""

    def __init__(self, cluster: QueueCluster, instruments: Instruments) -> None:
        self._cluster = cluster
        self._instruments = instruments
        self._state: ClusterState | None = None
        #: Of a server that no stream names any more, zeros are reported.
        self._known: set[str] = set()

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            try:
                await self.report()
            except BronzeError as error:
                self._state = None
                log.info("the state of the queue's servers is not known: %s", error)
            except Exception:
                log.exception("the state of the queue's servers: unexpected error")
            await asyncio.sleep(REPORT_S)

    async def report(self) -> None:
        """Report the state once. Raises `Unavailable`."""
        state = self._state = await self._cluster.state()
        self._known |= state.servers.keys()
        self._instruments.queue_leaderless.set(len(state.leaderless))
        if state.leaderless:
            log.warning("streams without a leader: %s", _named(state))
        for server in self._known:
            numbers = state.servers.get(server, Counter())
            for one in ReplicaState:
                attributes = {attribute.bronze_cluster_server: server, attribute.bronze_replica_state: one}
                self._instruments.queue_replicas.set(numbers[one], attributes)

    def summary(self) -> str:
        """The last state, in one line; what needs somebody comes first."""
        if (state := self._state) is None:
            return "not known"
        parts = [f"no leader of {_named(state)}"] if state.leaderless else []
        for kind, verb in (
            (ReplicaState.AWAY, "is away with"),
            (ReplicaState.LAGGING, "lags with"),
            (ReplicaState.LEADER, "leads"),
        ):
            parts += [
                f"{server} {verb} {counted(number, 'stream')}" for server, number in state.servers_with(kind).items()
            ]
        return "; ".join(parts)


def _named(state: ClusterState) -> str:
    named = ", ".join(state.leaderless[:NAMED_MAX])
    return f"{counted(len(state.leaderless), 'stream')} ({named}{', ...' * (len(state.leaderless) > NAMED_MAX)})"
