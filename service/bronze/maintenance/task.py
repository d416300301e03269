"""A task of the maintenance of tables."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Protocol

#: Commits that are tried. Each takes less time than `bronze table` leaves between two appends, by default.
COMMITS_MAX = 8


class Done(Protocol):
    """What a task did to a table, or would do. `str` says it in a sentence."""

    def as_dict(self) -> dict[str, str | int | None]: ...


def figures(done: Any) -> dict[str, str | int | None]:
    """The fields of a `Done` that is a dataclass, without whether it was only planned: who asked for it knows that."""
    return {name: value for name, value in asdict(done).items() if name != "is_planned"}


class Task(Protocol):
    """A task, for one table at a time. Its methods block."""

    def plan(self, source: str) -> Done:
        """What `run` would do. Raises `Halted` and `Unavailable`."""
        ...

    def run(self, source: str, on_file: Callable[[], None]) -> Done:
        """Do it. `on_file` is called for each file that was written or deleted, and ends the task if it raises.

        Raises `TooManyConflicts`, `Halted` and `Unavailable`; the rows of the table are the same in any case.
        """
        ...


class TooManyConflicts(Exception):
    """Other commits came first each time. `outcome` says what became of the task."""

    def __init__(self, source: str, outcome: str = "Nothing was changed") -> None:
        super().__init__(f"{source}: other commits to the table came first {COMMITS_MAX} times. {outcome}")
