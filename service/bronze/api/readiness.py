"""Whether the API can take submissions."""

import asyncio
from collections.abc import Awaitable, Sequence

from bronze.errors import Unavailable
from bronze.protocol.lane import Lane
from bronze.servers.bucket import Bucket
from bronze.servers.catalog import Catalog
from bronze.servers.queue import Queue

TIMEOUT_S = 3.0
OK = "ok"


class Readiness:
    """Asks the queue, which decides, and the bucket, whose absence is said and waited out."""

    def __init__(
        self, lanes: Sequence[Lane], queue: Queue, catalog: Catalog, bucket: Bucket, service_instance_id: str
    ) -> None:
        self._lanes = lanes
        self._queue = queue
        self._catalog = catalog
        self._bucket = bucket
        self._service_instance_id = service_instance_id

    async def check(self) -> tuple[bool, dict[str, str]]:
        """Whether submissions can be taken, and what `/readyz` says.

        Raises `Gone`: this is how an idle API learns that its queue was replaced.
        """
        queue, bucket = await asyncio.gather(_probe(self._queue_answers()), _probe(self._bucket.check()))
        ready = queue == OK
        return ready, {
            "status": "ready" if ready else "not ready: the queue is away",
            "service_instance_id": self._service_instance_id,
            "queue": queue,
            "bucket": bucket,
        }

    async def _queue_answers(self) -> None:
        lane = self._lanes[0]
        await self._queue.state(lane)
        await self._catalog.position(lane)


async def _probe(answer: Awaitable[object]) -> str:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await answer
    except (Unavailable, TimeoutError) as error:
        return f"away: {error}"
    return OK
