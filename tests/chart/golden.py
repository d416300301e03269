"""The renders of all value files: `python -m tests.chart.golden` writes them to golden/."""

from pathlib import Path
from typing import Any

import yaml

from tests.chart.helm import VALUES, render

FOLDER = Path(__file__).parent / "golden"
LONG = 1000


def text(values: Path) -> str:
    """What a value file renders to, without the long texts that the chart only passes on."""
    documents = sorted(render(values), key=lambda document: (document["kind"], document["metadata"]["name"]))
    return yaml.dump_all(map(_shortened, documents), Dumper=yaml.CSafeDumper, width=120, default_flow_style=None)


def _shortened(document: dict[str, Any]) -> dict[str, Any]:
    if document["kind"] == "PrometheusRule":
        return document | {"spec": "passed on"}
    if document["kind"] == "ConfigMap":
        return document | {"data": {k: v if len(v) < LONG else "passed on" for k, v in document["data"].items()}}
    return document


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for values in VALUES:
        (FOLDER / values.name).write_text(text(values), encoding="utf-8")


if __name__ == "__main__":
    main()
