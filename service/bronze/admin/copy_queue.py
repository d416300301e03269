"""`bronze queue copy`: moves the queue to other servers, such as from one to three."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bronze.admin.command_error import CommandError
from bronze.errors import Misconfigured, Outage, Unavailable
from bronze.protocol.lane import lane_subject
from bronze.servers.catalog import ENTRIES
from bronze.servers.catalog import PREFIX as CATALOG
from bronze.servers.jetstream import ApiError, JetStream
from bronze.servers.key_value import STREAM as KEYS
from bronze.servers.queue_cluster import ReplicaState, read_state

#: A lane with this limit accepts no message: each has headers.
CLOSED: Mapping[str, object] = {"max_msg_size": 1}
OPEN: Mapping[str, object] = {"max_msg_size": -1}
#: How long the replicas of the copies may take to be complete.
REPLICATED_S_MAX = 300.0
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied: streams and their messages."""

    streams: int
    messages: int


class QueueCopy:
    """Copies all streams of Bronze. The keys come last: a queue that has them is complete, or in use."""

    def __init__(
        self, source: JetStream, target: JetStream, replicas: int, quiet_s: float, step: Callable[[], None]
    ) -> None:
        """`quiet_s`: a consumer that runs writes its lock within this time."""
        self._source = source
        self._target = target
        self._replicas = replicas
        self._quiet_s = quiet_s
        self._step = step

    async def run(self) -> Copied:
        """Close the lanes, copy everything, and check that nothing has changed meanwhile.

        Raises `Unavailable`, `Misconfigured`, and `CommandError` if a consumer still runs.
        """
        lanes = await self._source.stream_names(lane_subject("*", "*"))
        catalog = await self._source.stream_names(ENTRIES)
        if len(catalog) != 1 or not lanes:
            raise Misconfigured("the queue to copy has no lanes, or not one catalog: check BRONZE_NATS_URL")
        names = [*sorted(lanes), *catalog, KEYS]
        await self._remove_unfinished(names)
        for lane in lanes:
            await self._source.update_stream(lane, **CLOSED)
        before = {name: await _mark(self._source, name) for name in names}
        quiet_at = asyncio.get_running_loop().time() + self._quiet_s
        *copied, keys = names
        for name in copied:
            await self._copy(name, OPEN if name in lanes else {})
        await asyncio.sleep(max(0.0, quiet_at - asyncio.get_running_loop().time()))
        changed = [name for name in names if await _mark(self._source, name) != before[name]]
        changed += [name for name in copied if await _mark(self._target, name) != before[name]]
        if changed:
            raise CommandError(
                f"{', '.join(dict.fromkeys(changed))} changed meanwhile: a consumer or a command still runs. Stop them "
                "all, and run this command again"
            )
        await self._copy(keys, {})
        await self._wait_replicated(names)
        states = [await self._target.state(name) for name in names]
        return Copied(len(names), sum(state.messages for state in states))

    async def _remove_unfinished(self, names: list[str]) -> None:
        """Delete the copies of an earlier run that was interrupted."""
        there = set(await self._target.stream_names(">"))
        if KEYS in there:
            raise Misconfigured("the queue to copy to has keys already: it is in use, or the copy is complete")
        for name in there.intersection(names):
            await self._target.delete_stream(name)

    async def _copy(self, name: str, changes: Mapping[str, object]) -> None:
        try:
            await self._source.copy_stream(name, self._target, num_replicas=self._replicas, **changes)
        except ApiError as error:
            raise Misconfigured(f"the stream {name} cannot be copied: {error}") from error
        self._step()

    async def _wait_replicated(self, names: list[str]) -> None:
        try:
            async with asyncio.timeout(REPLICATED_S_MAX):
                while True:
                    state = await read_state(self._target, names, clustered=True)
                    behind = [*state.servers_with(ReplicaState.AWAY), *state.servers_with(ReplicaState.LAGGING)]
                    if not behind and not state.leaderless:
                        return
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise Unavailable(
                Outage.QUEUE_AWAY, "everything is copied, but not all replicas are complete: check the servers"
            ) from None


async def _mark(jetstream: JetStream, name: str) -> tuple[int, ...]:
    """What is different after a stream was used. From the catalog, the server removes expired identities by itself."""
    state = await jetstream.state(name)
    return (state.last,) if name.startswith(CATALOG) else (state.last, state.messages)
