"""Reads of the bucket that a look-up gives up are never reported as failed tasks that nobody awaited."""

import asyncio
import gc
from typing import Any

from bronze.lineage.lookup import finish_in_time


async def test_a_look_up_that_is_cancelled_leaves_no_task_behind() -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    started, answer = asyncio.Event(), asyncio.Event()

    async def read() -> None:
        started.set()
        await answer.wait()
        raise OSError("the bucket is unavailable")

    look_up = asyncio.create_task(finish_in_time([asyncio.create_task(read())], seconds=60))
    await started.wait()
    look_up.cancel()
    await asyncio.gather(look_up, return_exceptions=True)
    answer.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del look_up  # its traceback holds the reads
    gc.collect()
    assert reported == []


async def test_what_is_not_in_time_is_cancelled() -> None:
    late = asyncio.create_task(asyncio.Event().wait())
    await finish_in_time([late], seconds=0)
    assert late.cancelled()
