"""Every panel and query of the dashboards, read from the files that Grafana reads."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "grafana" / "provisioning" / "dashboards"

#: Values of the variables with which Prometheus accepts every query.
VALUES = {
    "__rate_interval": "1m",
    "__interval": "5s",
    "__range": "30m",
    "__range_s": "1800",
    "period": "1h",
    "source": "vehicles|status",
    "instance": ".*",
}

_LABEL = re.compile(r"\{\{\s*(\w+)\s*\}\}")


@dataclass(frozen=True)
class Query:
    """The query of a panel, an annotation or a variable.

    `panel` is the title of the panel, or the annotation's or variable's name. `datasource` is `prometheus` or `tempo`;
    `expr` is PromQL, a list of series, or TraceQL (empty for the service graph), as Grafana has it before it puts in
    values for variables. `kind` is `range`, `instant`, `series`, `traceql`, `trace` (by its id) or `serviceMap`.
    `no_data` is the panel's text for an empty result, "" if it has none.
    """

    dashboard: str
    panel: str
    ref_id: str
    datasource: str
    expr: str
    kind: str
    legend: str
    exemplars: bool
    no_data: str

    @property
    def labels(self) -> frozenset[str]:
        """The labels in the legend."""
        return frozenset(_LABEL.findall(self.legend))

    def asked(self, values: Mapping[str, str]) -> str:
        """The expression with these values for the variables, in any format; other variables stay."""
        return re.sub(r"\$\{(\w+)(?::\w+)?\}|\$(\w+)", lambda m: values.get(m[1] or m[2], m[0]), self.expr)


def documents() -> dict[str, dict[str, Any]]:
    """The dashboards by their UIDs."""
    read = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json")))
    return {document["uid"]: document for document in read}


def panels() -> list[tuple[str, dict[str, Any]]]:
    """Every panel with the UID of its dashboard, also in closed rows, without the headings of rows."""
    return [
        (uid, panel)
        for uid, document in documents().items()
        for placed in document["panels"]
        for panel in (placed, *placed.get("panels", ()))
        if panel["type"] != "row"
    ]


def queries() -> list[Query]:
    """The queries of all panels, annotations and variables."""
    return [*_of_panels(), *_of_annotations(), *_of_variables()]


def _of_panels() -> Iterator[Query]:
    for uid, panel in panels():
        for target in panel.get("targets", ()):
            is_tempo = panel["datasource"]["type"] == "tempo"
            yield Query(
                dashboard=uid,
                panel=panel["title"],
                ref_id=target["refId"],
                datasource=panel["datasource"]["type"],
                expr=target.get("query", "") if is_tempo else target["expr"],
                kind=_kind(target),
                legend=target.get("legendFormat", ""),
                exemplars=target.get("exemplar", False),
                no_data=panel.get("fieldConfig", {}).get("defaults", {}).get("noValue", ""),
            )


def _kind(target: Mapping[str, Any]) -> str:
    if "expr" in target:
        return "instant" if target.get("instant") else "range"
    return "trace" if target.get("query") == "${trace_id}" else target["queryType"]


def _of_annotations() -> Iterator[Query]:
    for uid, document in documents().items():
        for annotation in document["annotations"]["list"]:
            words = annotation["titleFormat"] + annotation["textFormat"]
            yield Query(
                dashboard=uid,
                panel=f"annotation {annotation['name']}",
                ref_id=annotation["target"]["refId"],
                datasource="prometheus",
                expr=annotation["target"]["expr"],
                kind="range",
                legend=words,
                exemplars=False,
                no_data="",
            )


def _of_variables() -> Iterator[Query]:
    for uid, document in documents().items():
        for variable in document["templating"]["list"]:
            if variable["type"] != "query":
                continue
            listed = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            result = re.fullmatch(r"query_result\((.+)\)", variable["query"]["query"])
            match = listed or result
            assert match, variable["name"]
            labels = [listed[2]] if listed else re.findall(r'(\w+)="', variable["regex"])
            yield Query(
                dashboard=uid,
                panel=f"variable {variable['name']}",
                ref_id="",
                datasource="prometheus",
                expr=match[1],
                kind="series" if listed else "instant",
                legend=" ".join(f"{{{{{label}}}}}" for label in labels),
                exemplars=False,
                no_data="",
            )
