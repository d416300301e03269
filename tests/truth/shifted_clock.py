"""Runs `bronze` with a wall clock that is shifted: `python -m tests.truth.shifted_clock CLOCK serve`.

CLOCK is a file with one number (a double): the seconds by which the process' clock is ahead. It can be changed while
the process runs. `time.time`, `time.time_ns` and `datetime.now` are shifted, for the service and all libraries that are
written in Python; clocks that only measure durations stay. So this is what a process sees on a machine whose clock is
wrong, without changing this machine's clock.
"""

import datetime as dt
import importlib
import mmap
import pkgutil
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REAL_S, REAL_NS = time.time, time.time_ns
RealDatetime = dt.datetime


class Clock:
    """A file with the shift in seconds, which processes share."""

    def __init__(self, file: Path) -> None:
        if not file.exists():
            file.write_bytes(struct.pack("d", 0.0))
        with file.open("r+b") as opened:
            self._shift = mmap.mmap(opened.fileno(), 8)

    def read(self) -> float:
        shift: float = struct.unpack_from("d", self._shift)[0]
        return shift

    def set(self, shift_s: float) -> None:
        struct.pack_into("d", self._shift, 0, shift_s)


def shift_time(shift_s: Callable[[], float]) -> None:
    time.time = lambda: REAL_S() + shift_s()
    time.time_ns = lambda: REAL_NS() + int(shift_s() * 1e9)


def shift_datetime() -> None:
    """After all imports: libraries compare types of fields with the real class."""

    class OfReal(type):
        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, RealDatetime)

    class Shifted(RealDatetime, metaclass=OfReal):
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return RealDatetime(*args, **kwargs)

        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Any:
            return RealDatetime.fromtimestamp(time.time(), tz)

        @classmethod
        def utcnow(cls) -> Any:
            return RealDatetime.fromtimestamp(time.time(), dt.UTC).replace(tzinfo=None)

    dt.datetime = Shifted  # type: ignore[misc]


def main() -> None:
    shift_time(Clock(Path(sys.argv.pop(1))).read)
    import bronze

    for module in pkgutil.walk_packages(bronze.__path__, "bronze."):
        if module.name != "bronze.__main__":
            importlib.import_module(module.name)
    shift_datetime()
    sys.argv[0] = "bronze"
    importlib.import_module("bronze.__main__").main()


if __name__ == "__main__":
    main()
