"""The change of the number of lanes: seal the old lanes, drain them, and replace them by lanes of a new epoch.

The command may be interrupted at any step. The lanes are then either complete, or the roles refuse to use them. Running
the command again finishes the change: it continues from the current state.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

from bronze.errors import Gone, Outage, Unavailable
from bronze.plurals import counted
from bronze.servers.catalog import Catalog
from bronze.servers.jetstream import Missing
from bronze.servers.queue import LaneAdmin, LaneState

POLL_S = 0.1
#: The lanes must be empty for this long: a cluster may still be applying messages that it accepted before the seal.
SETTLED_S = 1.0
#: Without progress for this long, the command stops with an error; the lanes stay sealed.
STALLED_S = 300.0


class LaneChange:
    """Changes the number of lanes of all sources. The queue's settings must have the same number.

    `on_progress` is called with the number of messages that are not stored yet.
    """

    def __init__(
        self,
        queue: LaneAdmin,
        catalog: Catalog,
        sources: Sequence[str],
        lanes: int,
        on_progress: Callable[[int], None],
        *,
        settled_s: float = SETTLED_S,
        stalled_s: float = STALLED_S,
    ) -> None:
        self._queue = queue
        self._catalog = catalog
        self._sources = sources
        self._lanes = lanes
        self._on_progress = on_progress
        self._settled_s = settled_s
        self._stalled_s = stalled_s

    async def run(self) -> bool:
        """Change the number; False: nothing to change. Raises `Misconfigured`, and `Unavailable` if the drain stalls.

        No lane is removed before all lanes of its source are sealed and drained: from then on a retry finds the
        identity of its submission, whichever lane the retry goes to.
        """
        changed = False
        while sources := await self._sources_to_change():
            changed = True
            states = [state for source in sources for state in await self._queue.lanes_of(source)]
            claims = [
                (source, number)
                for source in sources
                for number in range(
                    max([self._lanes, *(state.lane.number + 1 for state in states if state.lane.source == source)])
                )
            ]
            for source, number in claims:
                await self._queue.hold_claim(source, number, f"bronze lanes {self._lanes}")
            for state in states:
                if not state.sealed:
                    await self._queue.seal(state.lane)
            await self._drain(states)
            for state in states:
                await self._queue.remove(state.lane)
            for source in sources:
                for number in range(self._lanes):
                    await self._queue.create_lane(source, number)
        for source in self._sources:
            for number in range(self._lanes):
                await self._queue.release_claim(source, number)
        return changed

    async def _sources_to_change(self) -> list[str]:
        return [source for source in self._sources if not self._is_complete(await self._queue.lanes_of(source))]

    def _is_complete(self, states: Sequence[LaneState]) -> bool:
        """Whether these are all lanes of a source after the change."""
        numbers = sorted(state.lane.number for state in states)
        return numbers == list(range(self._lanes)) and all(
            state.lanes_total == self._lanes and not state.sealed for state in states
        )

    async def _drain(self, states: Sequence[LaneState]) -> None:
        """Wait until the consumers have stored all messages of the sealed lanes."""
        previous, changed_s = -1, time.monotonic()
        while previous != 0 or time.monotonic() - changed_s < self._settled_s:
            pending = sum([await self._pending(state) for state in states])
            self._on_progress(pending)
            if pending != previous:
                previous, changed_s = pending, time.monotonic()
            elif pending and time.monotonic() - changed_s >= self._stalled_s:
                stalled = [state.lane.stream for state in states if await self._pending(state)]
                raise Unavailable(
                    Outage.QUEUE_AWAY,
                    f"not stored yet: {counted(pending, 'message')}, without progress for {self._stalled_s:g} s: "
                    f"{', '.join(stalled)}. The lanes are sealed: they accept no new messages. Check that consumers "
                    "run with the old value of BRONZE_LANES, and that the bucket answers (see the consumers' logs). "
                    "Then run this command again",
                )
            await asyncio.sleep(POLL_S)

    async def _pending(self, state: LaneState) -> int:
        """The number of a lane's messages that are not stored yet."""
        try:
            last = (await self._queue.state(state.lane)).last
        except (Missing, Gone):
            return 0  # the same command runs elsewhere too, and has removed the lane
        position, _ = await self._catalog.position(state.lane)
        return max(0, last - position.last)
