"""All dashboards: their files, and the metrics that their panels read."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from grafana import data, health, latency, lineage, overview, source, tables
from prometheus.rules import differing, names

FOLDER = Path(__file__).resolve().parent / "provisioning" / "dashboards"

#: A variable in a title, whose text Grafana puts in.
_TEXT = re.compile(r"\$\{(\w+):text\}")
_VARIABLE = re.compile(r"\$\{?\w+(?::\w+)?\}?")


@cache
def documents() -> Sequence[Mapping[str, Any]]:
    """All dashboards, in reading order. Built once."""
    modules = (overview, source, data, latency, tables, lineage, health)
    return [module.board().document() for module in modules]


def files() -> Mapping[str, str]:
    """The dashboards by the names of their files, which are their UIDs."""
    return {
        f"{document['uid']}.json": json.dumps(document, indent=2, ensure_ascii=False) + "\n" for document in documents()
    }


def out_of_sync() -> list[str]:
    """The names of files that differ from what this module writes, and of files that it does not write."""
    return differing(files(), FOLDER.glob("*.json"))


def readers(metric: str) -> Mapping[str, list[str]]:
    """The panels that read a metric, given its name in Prometheus: their titles, by the title of their dashboard."""
    series = {metric, *(f"{metric}_{part}" for part in ("bucket", "sum", "count"))}
    found: dict[str, list[str]] = {}
    for board, panel, read in _reads():
        if read & series:
            found.setdefault(board, []).append(panel)
    return found


@cache
def _reads() -> Sequence[tuple[str, str, frozenset[str]]]:
    """For each panel: its dashboard's title, its own title with the names of variables, and the series that its
    queries read.
    """
    return [
        (document["title"], _TEXT.sub(r"\1", panel["title"]), frozenset().union(*map(names, _expressions(panel))))
        for document in documents()
        for placed in document["panels"]
        for panel in (placed, *placed.get("panels", ()))
    ]


def _expressions(panel: Mapping[str, Any]) -> Iterator[str]:
    """The PromQL expressions of a panel. A duration replaces each variable, so that they can be parsed."""
    return (_VARIABLE.sub("1m", target["expr"]) for target in panel.get("targets", ()) if "expr" in target)
