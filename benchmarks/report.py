"""`python -m benchmarks.report` writes what `.local/bench.json` has into docs/performance.md and docs/sizing.md.

Only what stands between the marks `<!-- bench: NAME -->` and `<!-- end -->` is written; the text around it stays.
"""

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from benchmarks.rounds import VARIANTS_ACROSS, Figures, shown, tables
from benchmarks.stand import RESULTS
from bronze.settings import Settings
from local.builds import REPOSITORY

PERFORMANCE = REPOSITORY / "docs" / "performance.md"
SIZING = REPOSITORY / "docs" / "sizing.md"
_MARKED = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

DAY_S = 86_400
RATES = (1, 10, 100, 1_000, 10_000)
FLUSH_AGES_S = (1, 15, 60, 300)
OUTAGES_H = (1, 8, 24)
GB = 1e9

Bench = Mapping[str, Any]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *("--:" for _ in head[1:])], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# --- performance


def targets(bench: Bench) -> str:
    """What is to hold, of every part that was run."""
    rows = [
        (f"`{name}`", part, shown(target["value"]), bound(target), "yes" if target["holds"] else "**no**")
        for part, found in bench.items()
        for name, target in found.get("targets", {}).items()
    ]
    return table(("figure", "part", "value", "to be", "holds"), rows)


def bound(target: Mapping[str, Any]) -> str:
    return f"≥ {target['least']:g}" if target["least"] is not None else f"≤ {target['most']:g}"


def part(found: Mapping[str, Any]) -> str:
    """A part's medians, and what it was measured on."""
    machine = found["machine"]
    rounds = max(len(runs) for runs in found["runs"].values())
    said = (
        f"{machine['cpus']} CPUs, load average {machine['load_average'][0]:g} at the end, "
        f"{rounds} round{'s' if rounds > 1 else ''}{', `--quick`' if found['quick'] else ''}.\n"
    )
    return "\n".join([said, *(medians(found["medians"], *names) for names in tables(found["medians"]))])


def medians(of: Mapping[str, Figures], figures: Sequence[str], variants: Sequence[str]) -> str:
    if len(variants) > VARIANTS_ACROSS:
        return table(("", *figures), ([v, *(shown(of[v].get(f)) for f in figures)] for v in variants))
    return table(("", *variants), ([f, *(shown(of[v].get(f)) for v in variants)] for f in figures))


# --- sizing


def bytes_a_record(sizes: Sequence[Figures], records: float) -> float:
    """Between two sizes that were measured, along the logarithm; beyond them, as the nearest."""
    points = [(math.log(size["records"]), size["bytes per record"]) for size in sizes]
    at = math.log(max(records, 1))
    for (low, more), (high, less) in pairwise(points):
        if at <= high:
            return more + (less - more) * max(0.0, at - low) / (high - low)
    return points[-1][1]


def object_sizes(bench: Bench) -> str:
    """Objects per day, bytes per object, and bytes per day, by rate and flush age."""
    sizes, line = measured(bench), bench["objects"]["ndjson_bytes_a_record"]
    rows = []
    for rate in RATES:
        for age_s in FLUSH_AGES_S:
            # the record that begins it, and what comes until it is of age
            records = min(1 + rate * age_s, Settings().object_bytes_max / line)
            each = bytes_a_record(sizes, records)
            day = rate * DAY_S * each
            rows.append(
                (
                    f"{rate:,} records/s",
                    f"{age_s} s",
                    f"{rate * DAY_S / records:,.0f}",
                    f"{records:,.0f}",
                    f"{records * each / 1000:,.0f}",
                    f"{day / GB:,.3g}",
                    f"{each / line:.0%}",
                )
            )
    head = (
        "rate",
        "flush age",
        "objects per day",
        "records per object",
        "kB per object",
        "GB per day",
        "of its NDJSON",
    )
    return table(head, rows)


def measured(bench: Bench) -> list[Figures]:
    return [figures for figures in bench["objects"]["medians"].values() if "records per submission" in figures]


def queue_sizes(bench: Bench) -> str:
    """What waits in a lane while the bucket is away, at 1,000 records per second, and how long its bound lasts."""
    rows = []
    by_submission = {size["records per submission"]: size["queue bytes per record"] for size in measured(bench)}
    for records, each in by_submission.items():
        rate = 1_000 * each
        rows.append(
            (
                f"{records:,.0f}",
                f"{each:,.0f}",
                *(f"{rate * hours * 3600 / GB:,.1f}" for hours in OUTAGES_H),
                f"{Settings().queue_bytes_max / rate / 60:,.0f}",
            )
        )
    hours = (f"GB for {hours} h" for hours in OUTAGES_H)
    return table(("records per submission", "bytes per record", *hours, "minutes that 1 GiB lasts"), rows)


# --- the pages


def rendered(bench: Bench) -> Mapping[str, str]:
    """By the name of its place. What was not measured is left out, and its place stays as it is."""
    places = {name: part(found) for name, found in bench.items() if "medians" in found}
    places["targets"] = targets(bench)
    if "objects" in bench:
        places |= {"sizes": object_sizes(bench), "queue": queue_sizes(bench)}
    return places


def filled(page: str, places: Mapping[str, str]) -> str:
    return _MARKED.sub(lambda mark: f"{mark[1]}{places[mark[2]]}{mark[3]}" if mark[2] in places else mark[0], page)


def main() -> int:
    if not RESULTS.exists():
        print(f"{RESULTS} is not there: `make bench` writes it", file=sys.stderr)
        return 1
    places = rendered(json.loads(RESULTS.read_text()))
    for page in (PERFORMANCE, SIZING):
        page.write_text(filled(page.read_text(), places))
        print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
