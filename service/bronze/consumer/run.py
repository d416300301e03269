"""The role of the consumer: it writes all lanes concurrently, until it is stopped."""

import asyncio
from collections.abc import Sequence

from bronze.consumer.lane_writer import LaneWriter
from bronze.consumer.tasks import cancel, stop_on_error
from bronze.process import STOP_GRACE_S


async def consume(writers: Sequence[LaneWriter], stop: asyncio.Event) -> None:
    """Write all lanes until stopped; then finish the writes in progress, within `STOP_GRACE_S`.

    Raises `Gone` if a stream was replaced; the writes in progress are finished in this case too.
    """
    maintain = [asyncio.create_task(stop_on_error(writer.maintain(), stop)) for writer in writers]
    write = [asyncio.create_task(stop_on_error(writer.run(stop), stop)) for writer in writers]
    await stop.wait()
    _, late = await asyncio.wait(write, timeout=STOP_GRACE_S)
    await cancel(*late, *maintain)
    for error in [task.exception() for task in [*write, *maintain] if not task.cancelled()]:
        if error:
            raise error
