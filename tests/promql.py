"""The series and labels in PromQL expressions, and those of the telemetry schema."""

import re
from collections.abc import Iterator
from functools import cache

from bronze.telemetry.schema import Metric, registry
from bronze.telemetry.signals import attribute
from local.builds import REPOSITORY

#: The resource attributes that Prometheus' configuration makes labels, in addition to job and instance.
RESOURCE = {attribute.service_name, attribute.service_version, attribute.deployment_environment_name}

_SELECTOR = re.compile(r'([a-zA-Z_:][\w:]*)?\{((?:[^"{}]|"[^"]*")*)\}')
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')


def label(key: str) -> str:
    return key.replace(".", "_")


@cache
def series() -> dict[str, Metric]:
    """The Bronze metrics by the names of their series."""
    parts = ("_bucket", "_sum", "_count")
    return {
        f"{metric.prometheus_name}{part}": metric
        for metric in registry().metrics.values()
        for part in (parts if metric.instrument == "histogram" else ("",))
    }


def labels_of(name: str) -> frozenset[str]:
    """Every label that a Bronze series can have."""
    bucket = {"le"} if name.endswith("_bucket") else set()
    return frozenset(map(label, {*series()[name].attributes, *RESOURCE})) | {"job", "instance"} | bucket


def selectors(expr: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """The name of each selector, and its matchers as (label, operator, value)."""
    for name, matchers in _SELECTOR.findall(expr):
        yield name, _MATCHER.findall(matchers)


def runbook() -> list[str]:
    """The queries of the runbook."""
    text = (REPOSITORY / "docs" / "runbook.md").read_text(encoding="utf-8")
    return re.findall(r"(?ms)^```promql\n(.*?)\n```", text)
