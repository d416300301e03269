"""What the tiles of a dashboard show, as Grafana does: their values by their own queries, and the colours by their own
thresholds and value mappings.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests import panels
from tests.pipeline.asking import Grafana

#: A tile with several values has the colour that says most.
_ORDER = ("red", "yellow", "purple", "gray", "blue", "green")
_FROM_DATA = "configFromData"

_QUERIES = panels.queries()


def tiles(dashboard: str) -> list[Mapping[str, Any]]:
    return [panel for uid, panel in panels.panels() if uid == dashboard and panel["type"] == "stat"]


@dataclass(frozen=True)
class Shown:
    """The values of a tile, by the text of their legends; the text of the first one, and the colours of all."""

    values: Mapping[str, float]
    text: str
    colours: frozenset[str]

    @property
    def colour(self) -> str:
        return next(colour for colour in (*_ORDER, *sorted(self.colours)) if colour in self.colours)


def shown(grafana: Grafana, dashboard: str, tile: Mapping[str, Any]) -> Shown:
    """What a tile shows now. A query may add a threshold."""
    limit_ref_id = next(
        (t["options"]["configRefId"] for t in tile.get("transformations", ()) if t["id"] == _FROM_DATA), None
    )
    queries = [query for query in _QUERIES if (query.dashboard, query.panel) == (dashboard, tile["title"])]
    answers = {query.ref_id: (query.legend, grafana.ask(query)) for query in queries}
    steps = list(tile["fieldConfig"]["defaults"]["thresholds"]["steps"])
    if limit_ref_id:
        _, limits = answers.pop(limit_ref_id)
        steps += [{"value": series.values[-1], "color": "red"} for series in limits]
    values = {
        legend_of(legend, series.labels): series.values[-1] for legend, found in answers.values() for series in found
    }
    mapped = _mapped(tile)
    return Shown(
        values,
        next((mapped.get(value, {}).get("text", f"{value:.6g}") for value in values.values()), _no_value(tile)),
        frozenset(mapped.get(value, {}).get("color") or _by_steps(value, steps) for value in values.values())
        or frozenset({steps[0]["color"]}),
    )


def _mapped(tile: Mapping[str, Any]) -> dict[float, Mapping[str, str]]:
    mappings = tile["fieldConfig"]["defaults"].get("mappings", ())
    values = (mapping["options"] for mapping in mappings if mapping["type"] == "value")
    return {float(key): option for options in values for key, option in options.items()}


def _by_steps(value: float, steps: Sequence[Mapping[str, Any]]) -> str:
    """The colour of the highest step that a value reaches."""
    at = [(-math.inf if step["value"] is None else step["value"], step["color"]) for step in steps]
    return str(max((limit, colour) for limit, colour in at if limit <= value)[1])


def _no_value(tile: Mapping[str, Any]) -> str:
    return str(tile["fieldConfig"]["defaults"].get("noValue", ""))


def legend_of(legend: str, labels: Mapping[str, str]) -> str:
    for name, value in labels.items():
        legend = legend.replace("{{" + name + "}}", value)
    return legend
