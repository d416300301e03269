"""Draws the samples of a soak: `uv run --with-requirements requirements-plots.lock python -m tests.soak.plots FOLDER`.

It imports nothing of this repository, so that it needs no other package than Matplotlib.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

ROLES = ("api", "consumer", "table")
SERVERS = ("nats", "seaweedfs", "otel-collector")
#: Each picture has panels: a title, and the samples in it.
PICTURES = {
    "processes": (
        ("Memory of the roles, MB", [f"{name} memory, MB" for name in ROLES]),
        ("Memory of the servers, MB", [f"{name} memory, MB" for name in SERVERS]),
        ("File handles of the roles", [f"{name} file handles" for name in ROLES]),
        ("File handles of the servers", [f"{name} file handles" for name in SERVERS]),
    ),
    "data": (
        ("Messages in the queue's lanes", ["queue messages"]),
        ("Disk, MB", ["queue disk, MB", "view disk, MB", "queue catalog, MB"]),
        ("Entries of the catalog", ["catalog entries"]),
        ("Latency, s", ["accept p50, s", "accept p99, s", "store p50, s", "store p99, s", "queryable p95, s"]),
    ),
}
LOGARITHMIC = {"Latency, s", "Messages in the queue's lanes"}


def draw(folder: Path) -> None:
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    result = json.loads((folder / "result.json").read_text())
    mpl.rcParams.update(
        {"font.size": 8, "svg.hashsalt": "bronze", "svg.fonttype": "none", "axes.grid": True, "grid.alpha": 0.3}
    )
    for name, panels in PICTURES.items():
        figure, axes = plt.subplots(2, 2, figsize=(10, 5.5), layout="constrained", sharex=True)
        for axis, (title, series) in zip(axes.flat, panels, strict=True):
            for one in series:
                points = [(sample["at"] / 60, sample[one]) for sample in samples if one in sample]
                if points:
                    label = (
                        one.removesuffix(", s")
                        .removesuffix(", MB")
                        .removesuffix(" memory")
                        .removesuffix(" file handles")
                    )
                    axis.plot(*zip(*points, strict=True), linewidth=1, label=label)
            mark(axis, result["faults"])
            axis.set_title(title)
            axis.set_yscale(
                "symlog" if title in LOGARITHMIC else "linear", **({"linthresh": 0.01} if title == "Latency, s" else {})
            )
            axis.set_ylim(bottom=0)
            axis.legend(fontsize=7, loc="best")
        for axis in axes[-1]:
            axis.set_xlabel("minutes; dotted: a fault")
        file = folder / f"soak-{name}.svg"
        figure.savefig(file, metadata={"Date": None})
        plt.close(figure)
        # a tenth of a point is enough, and makes the file half as large
        file.write_text(re.sub(r"(\d\.\d)\d+", r"\1", file.read_text()))


def mark(axis: Any, faults: list[dict[str, Any]]) -> None:
    for fault in faults:
        axis.axvline(fault["at"] / 60, color="grey", linewidth=0.6, linestyle=":")


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
