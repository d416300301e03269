"""Whether the API can accept submissions."""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Sequence
from contextlib import suppress

from bronze.api.cluster_report import ClusterReport
from bronze.api.problems import without_addresses
from bronze.errors import Outage, Unavailable
from bronze.protocol.lane import Lane
from bronze.servers.bucket import Bucket
from bronze.servers.catalog import Catalog
from bronze.servers.jetstream import LOST_MAJORITY
from bronze.servers.queue import Queue

log = logging.getLogger(__name__)

TIMEOUT_S = 3.0
OK = "ok"
#: Missing lanes that are named.
NAMED_MAX = 10
LACKS = "the queue lacks streams of lanes"


class Readiness:
    """Checks the queue, which decides, and the bucket, whose outage is only reported: the queue bridges it."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        queue: Queue,
        catalog: Catalog,
        bucket: Bucket,
        cluster: ClusterReport,
        service_instance_id: str,
    ) -> None:
        self._lanes = lanes
        self._queue = queue
        self._catalog = catalog
        self._bucket = bucket
        self._cluster = cluster
        self._service_instance_id = service_instance_id
        self._probes = itertools.count()

    async def check(self) -> tuple[bool, dict[str, str]]:
        """Whether submissions can be accepted, and the body of `/readyz`.

        Raises `Gone`: so an idle API notices that its queue was replaced.
        """
        queue, bucket = await asyncio.gather(_probe(self._check_queue()), _probe(self._bucket.check()))
        ready = queue == OK
        reason = next((known for known in (LACKS, LOST_MAJORITY) if known in queue), "the queue does not answer")
        return ready, {
            "status": "ready" if ready else f"not ready: {reason}",
            "service_instance_id": self._service_instance_id,
            "queue": queue,
            "queue_servers": without_addresses(self._cluster.summary()),
            "bucket": bucket,
        }

    async def _check_queue(self) -> None:
        """Three requests, for any number of lanes: whether all exist, and whether one, in turns, has a leader."""
        if missing := await self._queue.missing(self._lanes):
            with suppress(Unavailable):
                await self._queue.state(missing[0])  # raises `Gone` if another one has replaced it
            named = ", ".join(lane.stream for lane in missing[:NAMED_MAX])
            raise Unavailable(Outage.QUEUE_AWAY, f"{LACKS}: {len(missing)}, {named}")
        lane = self._lanes[next(self._probes) % len(self._lanes)]
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
