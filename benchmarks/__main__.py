"""What is claimed about speed and cost, measured on the system as `make up` starts it: `make bench`.

Read the ratios within one run: figures of different machines, or of a busy one, compare with nothing.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

from rich.table import Column, Table

from benchmarks import (
    auth,
    bulk,
    cluster,
    connections,
    delivery,
    erasure,
    growth,
    iceberg,
    identities,
    lanes,
    memory,
    monitors,
    objects,
    outage_volume,
    queryable,
    small,
    telemetry,
    view,
)
from benchmarks.rounds import VARIANTS_ACROSS, Found, shown, tables
from benchmarks.stand import Options, console, keep, say
from local.watch import leave_nothing

#: The data's way, in the order in which `make bench` runs it.
PARTS: Mapping[str, Callable[[Options], Found]] = {
    "bulk": bulk.run,
    "small": small.run,
    "connections": connections.run,
    "cluster": cluster.run,
    "auth": auth.run,
    "delivery": delivery.run,
    "memory": memory.run,
    "lanes": lanes.run,
    "growth": growth.run,
    "objects": objects.run,
    "monitors": monitors.run,
    "identities": identities.run,
    "view": view.run,
    "tables": iceberg.run,
    "erasure": erasure.run,
    "queryable": queryable.run,
}
#: What telemetry costs: with options of their own, so they run only when they are named.
OTHERS: Mapping[str, Callable[[Sequence[str]], int]] = {"telemetry": telemetry.main, "outage": outage_volume.main}


def show(part: str, found: Found) -> None:
    """The medians, variants that show the same figures in one table, and what was to hold."""
    medians = found.medians
    for figures, variants in tables(medians):
        across = len(variants) <= VARIANTS_ACROSS
        columns, rows = (variants, figures) if across else (figures, variants)
        table = Table(Column(part, no_wrap=True), *(Column(name, justify="right") for name in columns), box=None)
        for row in rows:
            cells = ((column, row) if across else (row, column) for column in columns)
            table.add_row(row, *(shown(medians[variant].get(figure)) for variant, figure in cells))
        console.print(table, "")
    for target in found.targets:
        console.print(f"[{'green' if target.holds else 'red'}]{target}[/]")


def names(text: str) -> list[str]:
    """The parts that a list names. Raises `ArgumentTypeError` for one that there is not."""
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    for name in wanted:
        if name not in {**PARTS, **OTHERS}:
            raise argparse.ArgumentTypeError(f"there is no {name!r}; there are {', '.join({**PARTS, **OTHERS})}")
    return wanted


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if all that was to hold does."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts",
        nargs="*",
        type=names,
        help=f"by comma or space, of {', '.join(PARTS)} (all of these unless named) and {', '.join(OTHERS)}",
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of which the median counts (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="less of everything: whether it works, not how fast")
    args = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was started is stopped then, too
    wanted = dict.fromkeys(name for part in args.parts for name in part) or PARTS
    holds = True
    with leave_nothing():
        for part in wanted:
            say(f"--- {part}")
            if part in OTHERS:
                holds &= OTHERS[part]([]) == 0
                continue
            found = PARTS[part](Options(args.repeats, args.quick))
            show(part, found)
            keep(part, {"repeats": args.repeats, "quick": args.quick, **found.document()})
            holds &= all(target.holds for target in found.targets)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
