"""What Helm makes of the chart."""

import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from local.builds import REPOSITORY, build_helm

CHART = REPOSITORY / "charts" / "bronze"
VALUES = sorted((Path(__file__).parent / "values").glob("*.yaml"))
RELEASE = ("bronze", "--namespace", "data")


@cache
def program() -> Path:
    return build_helm()


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program(), *arguments], capture_output=True, text=True, timeout=60, check=False, env={"HOME": "/none"}
    )


def render(*values: Path) -> list[dict[str, Any]]:
    """The objects of the chart with value files."""
    files = [part for file in values for part in ("--values", str(file))]
    outcome = run("template", *RELEASE, CHART, *files)
    if outcome.returncode:
        raise AssertionError(outcome.stderr)
    return [document for document in yaml.load_all(outcome.stdout, yaml.CSafeLoader) if document]


def pods(documents: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The pods of Deployments, StatefulSets and Jobs, by the name of their container."""
    specs = (
        document["spec"]["template"]["spec"]
        for document in documents
        if document["kind"] in {"Deployment", "StatefulSet", "Job"}
    )
    return {spec["containers"][0]["name"]: spec for spec in specs}
