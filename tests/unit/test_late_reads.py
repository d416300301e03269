"""Reads that a look-up gives up are cancelled: one that failed later would be reported as never awaited."""

import asyncio

from bronze.lineage.lookup import finish_in_time


async def test_a_look_up_that_is_cancelled_cancels_its_reads() -> None:
    read = asyncio.create_task(asyncio.Event().wait())
    look_up = asyncio.create_task(finish_in_time([read], seconds=60))
    await asyncio.sleep(0)
    look_up.cancel()
    await asyncio.gather(look_up, return_exceptions=True)
    assert look_up.cancelled()
    assert read.cancelled()


async def test_what_is_not_in_time_is_cancelled() -> None:
    late = asyncio.create_task(asyncio.Event().wait())
    await finish_in_time([late], seconds=0)
    assert late.cancelled()


async def test_a_read_that_fails_is_no_failure_of_the_look_up() -> None:
    async def read() -> None:
        raise OSError("the bucket is unavailable")

    await finish_in_time([asyncio.create_task(read())], seconds=60)
