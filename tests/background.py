"""What runs beside a test."""

import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class InThread(ABC):
    """Runs in a thread of its own, in the context. `_over` is set at its end, and then `_run` has to return."""

    def __enter__(self) -> Self:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    @abstractmethod
    def _run(self) -> None: ...
