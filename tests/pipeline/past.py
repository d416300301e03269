"""A real Prometheus that was filled with a past, and the queries of panels against it."""

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local import programs, servers
from local.builds import Built
from local.machine import limit_s
from local.programs import LOOPBACK
from tests.panels import Query

STEP_S = 15
RANGE_S = 1800
VALUES = {"__rate_interval": "1m", "__interval": "15s", "__range": f"{RANGE_S}s", "source": ".*", "instance": ".*"}


@dataclass(frozen=True)
class Past:
    """Half an hour that ended at `ended`, a sample each 15 s."""

    api: str
    ended: float

    def answer(self, query: Query, **values: str) -> list[tuple[Mapping[str, str], Sequence[float]]]:
        """The labels and values of each series of a panel's query, with these values for variables."""
        parameters: Mapping[str, Any] = {"query": query.asked({**VALUES, **values})}
        if query.kind == "instant":
            result = self._get("query", {**parameters, "time": self.ended})
            return [(series["metric"], [float(series["value"][1])]) for series in result]
        times = {"start": self.ended - RANGE_S + 4 * STEP_S, "end": self.ended, "step": STEP_S}
        result = self._get("query_range", {**parameters, **times})
        return [(series["metric"], [float(value) for _, value in series["values"]]) for series in result]

    def values(self, query: Query, **values: str) -> list[float]:
        """The values of all series."""
        return [value for _, of_series in self.answer(query, **values) for value in of_series]

    def _get(self, path: str, parameters: Mapping[str, Any]) -> Any:
        with urllib.request.urlopen(f"{self.api}{path}?{urllib.parse.urlencode(parameters)}", timeout=30) as answer:
            return json.load(answer)["data"]["result"]


@contextmanager
def filled(built: Built, state: Path, lines: Iterable[str]) -> Iterator[str]:
    """The URL of the API of a Prometheus with these samples: lines of OpenMetrics, series by series."""
    past = state / "past.om"
    past.write_text("".join(f"{line}\n" for line in (*lines, "# EOF")))
    made = [str(built.promtool), "tsdb", "create-blocks-from", "openmetrics", str(past), str(state / "data")]
    subprocess.run(made, check=True, capture_output=True, timeout=limit_s(120))
    port = programs.free_ports()
    with programs.start(servers.prometheus(state, port, {}, executable=built.prometheus), state / "log"):
        yield f"http://{LOOPBACK}:{port}/api/v1/"
