"""The progress of an operator's command, on standard error."""

import sys
from typing import Self

from rich import progress
from rich.console import Console


class Progress:
    """A progress bar with a count, if standard error is a terminal."""

    def __init__(self, label: str) -> None:
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[number]:,}"),
            progress.TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        self._task = self._bar.add_task(label, total=None, number=0)
        self._number = self._number_max = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def step(self) -> None:
        """Count one more item; the total is not known."""
        self._number += 1
        self._bar.update(self._task, number=self._number)

    def left(self, number: int) -> None:
        """Show the number of items that are left."""
        self._number_max = max(self._number_max, number)
        self._bar.update(self._task, number=number, total=self._number_max or None, completed=self._number_max - number)
