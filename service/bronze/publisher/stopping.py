"""Requests to stop, and the work that they let finish."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: How long a request may still take after SIGTERM: less than a supervisor waits, and it leaves time for the flush.
GRACE_S = 5.0


class Stop:
    """Whether a stop was requested, by SIGINT or SIGTERM. Requests to the API that are running may finish.

    A second signal, or the end of `GRACE_S` after SIGTERM, raises `KeyboardInterrupt` and so ends them too.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._requested = threading.Event()
        self._interruptible = False

    @property
    def requested(self) -> bool:
        return self._requested.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Waits until a stop is requested, at most for this time. Returns whether it is."""
        return self._requested.wait(timeout_s)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """For code that waits for input and not for an answer of the API: a stop raises `KeyboardInterrupt` at once.

        Signals reach only the main thread. In other threads, only a stop that was requested before raises.
        """
        self._interruptible = threading.current_thread() is threading.main_thread()
        try:
            if self.requested:
                raise KeyboardInterrupt
            yield
        finally:
            self._interruptible = False

    @contextmanager
    def by_signals(self) -> Iterator[None]:
        """Handles SIGINT and SIGTERM. Call it in the main thread."""
        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
        previous = [signal.signal(number, self._on_signal) for number in handled]
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in zip(handled, previous, strict=True):
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        requested_before = self.requested
        if number != signal.SIGALRM:
            self.signal = self.signal or number
        self._requested.set()
        if requested_before or self._interruptible:
            raise KeyboardInterrupt
        if number == signal.SIGTERM:
            signal.setitimer(signal.ITIMER_REAL, GRACE_S)
