"""Tasks that end when the role stops."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

CANCEL_AGAIN_S = 0.5


async def stop_on_error(work: Coroutine[None, None, None], stop: asyncio.Event) -> None:
    """Do the work; if it fails, set `stop`, so that all other tasks stop too."""
    try:
        await work
    except BaseException:
        stop.set()
        raise


async def wait_unless_stopped(stop: asyncio.Event, seconds: float) -> None:
    """Wait for some seconds, or until stopped."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)


async def run_unless_stopped(stop: asyncio.Event, work: Coroutine[None, None, None]) -> None:
    """Do the work, or cancel it when stopped."""
    tasks: set[asyncio.Task[Any]] = {asyncio.create_task(work), asyncio.create_task(stop.wait())}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel(*tasks)
    for task in done:
        task.result()


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks until they have ended.

    Once is not enough: before Python 3.12, `asyncio.wait_for`, which the NATS client uses, loses a cancellation that
    arrives together with the answer.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not log that it never was
