"""A wish to stop, and what it does not cut off."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: What SIGTERM leaves to the request in flight: less than what a supervisor leaves to us, less what flushing takes.
GRACE_S = 5.0


class Stop:
    """A wish to stop, by SIGINT or SIGTERM, that lets the requests in flight come to their end.

    A second signal does not wait for them, nor does SIGTERM after `GRACE_S`: they raise `KeyboardInterrupt`.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._wanted = threading.Event()
        self._interruptible = False

    @property
    def wanted(self) -> bool:
        return self._wanted.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Whether to stop, asked after this time at the latest."""
        return self._wanted.wait(timeout_s)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """What waits for input and not for an answer: `KeyboardInterrupt` ends it at once.

        Signals reach the main thread alone; another one only does not begin what is in here.
        """
        self._interruptible = threading.current_thread() is threading.main_thread()
        try:
            if self.wanted:
                raise KeyboardInterrupt
            yield
        finally:
            self._interruptible = False

    @contextmanager
    def by_signals(self) -> Iterator[None]:
        """Listens to the signals; for the main thread."""
        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
        before = [signal.signal(number, self._hear) for number in handled]
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in zip(handled, before, strict=True):
                signal.signal(number, handler)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        again = self.wanted
        if number != signal.SIGALRM:
            self.signal = self.signal or number
        self._wanted.set()
        if again or self._interruptible:
            raise KeyboardInterrupt
        if number == signal.SIGTERM:
            signal.setitimer(signal.ITIMER_REAL, GRACE_S)
