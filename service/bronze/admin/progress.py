"""The progress of an operator's command, on standard error."""

import sys
from typing import Self

from rich import progress
from rich.console import Console


class Progress:
    """A bar of something that is counted, on a terminal."""

    def __init__(self, what: str) -> None:
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[number]:,}"),
            progress.TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        self._task = self._bar.add_task(what, total=None, number=0)
        self._number = self._most = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def step(self) -> None:
        """One more is done; nobody knows of how many."""
        self._number += 1
        self._bar.update(self._task, number=self._number)

    def left(self, number: int) -> None:
        """So many are left."""
        self._most = max(self._most, number)
        self._bar.update(self._task, number=number, total=self._most or None, completed=self._most - number)
