"""The consumer's role: all lanes at once, until it is stopped."""

import asyncio
from collections.abc import Sequence

from bronze.consumer.lane_writer import LaneWriter
from bronze.consumer.tasks import cancel, stop_on_error
from bronze.process import STOP_GRACE_S


async def consume(writers: Sequence[LaneWriter], stop: asyncio.Event) -> None:
    """Write all lanes until stopped; then finish what is under way, within the grace.

    Raises `Gone` where a stream was replaced: then this process has none to work on, and stops likewise.
    """
    tend = [asyncio.create_task(stop_on_error(writer.maintain(), stop)) for writer in writers]
    write = [asyncio.create_task(stop_on_error(writer.run(stop), stop)) for writer in writers]
    await stop.wait()
    _, late = await asyncio.wait(write, timeout=STOP_GRACE_S)
    await cancel(*late, *tend)
    for error in [task.exception() for task in [*write, *tend] if not task.cancelled()]:
        if error:
            raise error
