"""The change of the number of lanes: seal the old ones, drain them, put new ones of a new epoch in their place.

Every step may be cut short. What is there then is either whole or refuses to be used, and the same command again
finishes it: it begins at what it finds.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

from bronze.errors import Gone, Outage, Unavailable
from bronze.servers.catalog import Catalog
from bronze.servers.jetstream import Missing
from bronze.servers.queue import LaneAdmin, LaneState

POLL_S = 0.1
#: Drained has to be seen for this long: a cluster may still be applying what it took before the seal.
SETTLED_S = 1.0
#: Without any progress for this long, the command gives up; the lanes stay sealed.
STALLED_S = 300.0


class LaneChange:
    """The change of a queue's sources to a number of lanes, the queue's own settings saying to how many.

    `told` hears how many messages are still to be stored.
    """

    def __init__(
        self,
        queue: LaneAdmin,
        catalog: Catalog,
        sources: Sequence[str],
        lanes: int,
        told: Callable[[int], None],
        *,
        settled_s: float = SETTLED_S,
        stalled_s: float = STALLED_S,
    ) -> None:
        self._queue = queue
        self._catalog = catalog
        self._sources = sources
        self._lanes = lanes
        self._told = told
        self._settled_s = settled_s
        self._stalled_s = stalled_s

    async def run(self) -> bool:
        """Change it; False: it is so already. Raises `Misconfigured`, and `Unavailable` where the drain stands still.

        No lane is removed before each of its source's lanes is sealed and stored to its end: from then on a retry finds
        its identity, whichever lane it would go to now.
        """
        changed = False
        while old := await self._old():
            changed = True
            there = [one for source in old for one in await self._queue.lanes_of(source)]
            held = [
                (source, number)
                for source in old
                for number in range(
                    max([self._lanes, *(one.lane.number + 1 for one in there if one.lane.source == source)])
                )
            ]
            for source, number in held:
                await self._queue.hold_claim(source, number, f"bronze lanes {self._lanes}")
            for one in there:
                if not one.sealed:
                    await self._queue.seal(one.lane)
            await self._drain(there)
            for one in there:
                await self._queue.remove(one.lane)
            for source in old:
                for number in range(self._lanes):
                    await self._queue.create_lane(source, number)
        for source in self._sources:
            for number in range(self._lanes):
                await self._queue.release_claim(source, number)
        return changed

    async def _old(self) -> list[str]:
        """The sources whose lanes are not as they have to be."""
        return [source for source in self._sources if not self._as_wanted(await self._queue.lanes_of(source))]

    def _as_wanted(self, there: Sequence[LaneState]) -> bool:
        numbers = sorted(one.lane.number for one in there)
        return numbers == list(range(self._lanes)) and all(
            one.lanes_total == self._lanes and not one.sealed for one in there
        )

    async def _drain(self, lanes: Sequence[LaneState]) -> None:
        """Wait until the consumers have stored all that sealed lanes hold."""
        seen, moved_s = -1, time.monotonic()
        while seen != 0 or time.monotonic() - moved_s < self._settled_s:
            left = sum([await self._left(one) for one in lanes])
            self._told(left)
            if left != seen:
                seen, moved_s = left, time.monotonic()
            elif left and time.monotonic() - moved_s >= self._stalled_s:
                waiting = [one.lane.stream for one in lanes if await self._left(one)]
                raise Unavailable(
                    Outage.QUEUE_AWAY,
                    f"{left} messages are still to be stored, and nothing has moved for {self._stalled_s:g} s: "
                    f"{', '.join(waiting)}. Their lanes are sealed. See that consumers run with BRONZE_LANES as it was "
                    "and that the bucket answers (their log tells), then run this again",
                )
            await asyncio.sleep(POLL_S)

    async def _left(self, one: LaneState) -> int:
        try:
            last = (await self._queue.state(one.lane)).last
        except (Missing, Gone):
            return 0  # somebody else runs this command too, and has removed it
        position, _ = await self._catalog.position(one.lane)
        return max(0, last - position.last)
