"""What the commands of an operator say: their progress on standard error, their summary on standard output."""

import sys
from typing import Self

from rich import progress
from rich.console import Console

from bronze.rebuild import Found


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


def report_lanes(number: int, *, changed: bool) -> None:
    lanes = "1 lane" if number == 1 else f"{number} lanes"
    if changed:
        print(f"Each source has {lanes} now; all that was in the old ones is stored.")
    else:
        print(f"Each source has {lanes} already; nothing was changed.")
    print(f"Set BRONZE_LANES={number} and start the API and the consumers anew: with another number they refuse to.")


def report_rebuilt(found: Found, *, dry_run: bool) -> None:
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(
        f"{found.objects:,} objects of {len(found.ends):,} lanes in the bucket: {found.records:,} records of "
        f"{found.submissions:,} submissions; each chain is whole."
    )
    if found.others:
        print(f"{found.others:,} keys below the prefix are none of ours, and were left alone.")
    if dry_run:
        print("Nothing was changed. Without --dry-run, the catalog is replaced by one of these objects.")
    else:
        print(
            f"The catalog is made anew: {found.objects:,} entries, {found.identities:,} identities, which are kept "
            "from now on for as long as new ones. Identities whose time was over are not there again."
        )
