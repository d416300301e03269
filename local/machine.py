"""How slow this machine is now. Time limits are chosen for two idle cores, and are multiplied by this factor elsewhere.

    deadline = Deadline(30)
    while not done():
        if deadline.passed(): ...

On the reference machine the factor is 1, so a claim such as "ends within 10 s" means exactly that there.
"""

import os
import time
from functools import cache

#: CPU time of `_work` on the machine that the limits were chosen on, in seconds: 3 GHz, Python 3.11.
REFERENCE_S = 0.0105
#: The load that `make test` itself causes on two cores: three workers and their servers.
NORMAL_LOAD_PER_CORE = 2.0
#: Limits do not grow beyond it: a failure on a machine that is slower does not show a fault of the code.
SLOWNESS_MAX = 10.0


def slowness() -> float:
    """1 on the reference machine or a faster one; at most `SLOWNESS_MAX`."""
    return min(max(1.0, _slowness_of_core()) * max(1.0, load_per_core() / NORMAL_LOAD_PER_CORE), SLOWNESS_MAX)


def is_too_busy() -> bool:
    return slowness() == SLOWNESS_MAX


def describe() -> str:
    return (
        f"{_cores()} cores, each at {1 / _slowness_of_core():.0%} of the reference, load {os.getloadavg()[0]:.1f}: "
        f"time limits are multiplied by {slowness():.1f}"
    )


def limit_s(seconds: float) -> float:
    """A time limit adapted to the current load, for calls that need a fixed value; a `Deadline` adapts continuously."""
    return seconds * slowness()


class Deadline:
    """A time limit from now on, which grows while the machine is slow."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._began = time.monotonic()

    def passed(self) -> bool:
        return time.monotonic() - self._began > limit_s(self.seconds)


def load_per_core() -> float:
    """The mean number of processes in the last minute that run, wait to run, or wait for the disk."""
    return os.getloadavg()[0] / _cores()


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@cache
def _slowness_of_core() -> float:
    """Measured by CPU time, which other processes hardly affect; the best of five, since they do affect caches."""
    return min(_work_s() for _ in range(5)) / REFERENCE_S


def _work_s() -> float:
    began = time.thread_time()
    total = 0
    for number in range(200_000):
        total += number * number % 7
    return time.thread_time() - began
