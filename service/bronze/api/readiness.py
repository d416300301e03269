"""Whether the API can accept submissions."""

import asyncio
import logging
from collections.abc import Awaitable, Sequence

from bronze.api.problems import without_addresses
from bronze.errors import Unavailable
from bronze.protocol.lane import Lane
from bronze.servers.bucket import Bucket
from bronze.servers.catalog import Catalog
from bronze.servers.queue import Queue

log = logging.getLogger(__name__)

TIMEOUT_S = 3.0
OK = "ok"


class Readiness:
    """Checks the queue, which decides, and the bucket, whose outage is only reported: the queue bridges it."""

    def __init__(
        self, lanes: Sequence[Lane], queue: Queue, catalog: Catalog, bucket: Bucket, service_instance_id: str
    ) -> None:
        self._lanes = lanes
        self._queue = queue
        self._catalog = catalog
        self._bucket = bucket
        self._service_instance_id = service_instance_id

    async def check(self) -> tuple[bool, dict[str, str]]:
        """Whether submissions can be accepted, and the body of `/readyz`.

        Raises `Gone`: so an idle API notices that its queue was replaced.
        """
        queue, bucket = await asyncio.gather(_probe(self._check_queue()), _probe(self._bucket.check()))
        ready = queue == OK
        return ready, {
            "status": "ready" if ready else "not ready: the queue does not answer",
            "service_instance_id": self._service_instance_id,
            "queue": queue,
            "bucket": bucket,
        }

    async def _check_queue(self) -> None:
        lane = self._lanes[0]
        await self._queue.state(lane)
        await self._catalog.position(lane)


async def _probe(check: Awaitable[object]) -> str:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await check
    except (Unavailable, TimeoutError) as error:
        log.warning("not ready: %s", error)
        return f"unavailable: {without_addresses(str(error))}"
    return OK
