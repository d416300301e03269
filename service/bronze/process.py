"""The process of a role: its start, its stop signals and its use of memory.

Imports: errors.
Libraries: pyarrow.
"""

import asyncio
import ctypes
import gc
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import TypeVar

from bronze.errors import Misconfigured, NotPermitted, Unavailable

T = TypeVar("T")

log = logging.getLogger(__name__)

#: How long a start waits for a server that does not answer.
START_WAIT_S = 60.0
START_RETRY_S = 1.0
#: How long a stop waits for requests or writes in progress. Supervisors kill after 10 s, and telemetry needs a part.
STOP_GRACE_S = 6.0
#: New objects between two passes over the youngest; how many of these passes there are between two passes over the
#: next generation, and of those between two over all.
COLLECTION_THRESHOLDS = (10_000, 2, 5)
#: Options of glibc's mallopt(3), by its malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
#: An option of prctl(2): the signal that a process gets when its parent ends.
PR_SET_PDEATHSIG = 1


class StopRequested(Exception):
    """A stop signal arrived during start-up."""


async def retry_until_available(step: Callable[[], Awaitable[T]], stop: asyncio.Event) -> T:
    """Do a step of the start; retry it for `START_WAIT_S` while it raises `Unavailable`.

    Raises `StopRequested`, and `Misconfigured` if a server does not permit the step.
    """
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + START_WAIT_S
    stopped = asyncio.ensure_future(stop.wait())
    try:
        while True:
            attempt = asyncio.ensure_future(step())
            await asyncio.wait({stopped, attempt}, return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                attempt.cancel()
                raise StopRequested
            try:
                return attempt.result()
            except NotPermitted as error:
                raise Misconfigured(str(error)) from error
            except Unavailable as error:
                if loop.time() >= deadline_s:
                    raise
                log.warning("cannot start yet, trying again: %s", error)
            await asyncio.wait({stopped}, timeout=START_RETRY_S)
    finally:
        stopped.cancel()


def on_stop_signals(act: Callable[[], None]) -> None:
    """Call a function on SIGTERM and SIGINT, in the event loop."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, act)


def on_reload_signal(act: Callable[[], None]) -> None:
    """Call a function on SIGHUP, in the event loop."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, act)


def end_with(parent: int) -> None:
    """End this process by SIGKILL as soon as its parent has ended, however that ends. Needs Linux."""
    if prctl := getattr(ctypes.CDLL(None), "prctl", None):
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os.kill(os.getpid(), signal.SIGKILL)


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to an address to listen on, or to all addresses of a name."""
    try:
        found = socket.getaddrinfo(host or None, None, flags=socket.AI_PASSIVE)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


def pause_collection() -> None:
    """Collect no garbage during the start, until `freeze_startup_objects`: a seventh of the CPU of its imports."""
    gc.disable()


def freeze_startup_objects() -> None:
    """Exclude the objects of the start from garbage collection: each pass over them takes a tenth of a second.

    With telemetry, the API then serves a fifth more requests, and its p99 is less than half. New objects are looked
    through in larger portions, and all of them about as often as by default: spans wait for their export for a second,
    so most of the passes over few objects would find them in use.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTION_THRESHOLDS)
    gc.enable()


def tune_malloc() -> None:
    """Make glibc keep up to 16 MiB of freed memory, and serve allocations of less than 4 MiB from it.

    By default, each chunk of a body is allocated from the system and returned to it, which costs a fifth of the time of
    a check.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_THRESHOLD, 4 * 2**20)
        mallopt(M_TRIM_THRESHOLD, 16 * 2**20)


def return_arrow_memory() -> None:
    """Make Arrow use the allocator of the system: its own keeps freed memory, 40 MB more at the peak."""
    import pyarrow as pa  # a supervisor of workers does not need it

    pa.set_memory_pool(pa.system_memory_pool())


def return_large_buffers() -> None:
    """Make Arrow use the allocator of the system for all that it does, and glibc return each freed buffer of 1 MiB or
    more at once. Call it before Arrow is imported.

    Arrow fills a buffer of 10 MB for each file that it uploads, from its own allocator, whichever pool Python sets.
    That one keeps it for the thread that had it, and `release_unused` in another thread does not reach it. glibc by
    default raises the limit from which it returns a buffer, and the next one does not fit where the last one was.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_THRESHOLD, 2**20)


def return_freed_memory() -> None:
    """Return to the system what malloc keeps of freed memory, in all of its arenas."""
    if malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        malloc_trim(0)
