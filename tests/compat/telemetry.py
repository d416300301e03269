"""The form of the roles' telemetry: names of metrics, spans, labels and attributes."""

import re
from collections import defaultdict
from types import TracebackType
from typing import Any, Self

from local.otlp import Receiver, attributes
from local.programs import http_get

_TYPE = re.compile(r"# TYPE (?P<name>\S+) (?P<type>.*)")
_SAMPLE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>.*)\})? \S+")
_LABEL = re.compile(r'(\w+)="')


class Heard:
    """Receives the telemetry that roles export during the scenario; `env` has its address for them."""

    def __init__(self) -> None:
        self._receiver = Receiver()
        self._scrapes: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._receiver.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._receiver.stop()

    @property
    def env(self) -> dict[str, str]:
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self._receiver.url, "OTEL_TRACES_EXPORTER": "otlp"}

    def scrape(self, role: str, port: int) -> None:
        self._scrapes[role] = http_get(port, "/metrics").decode()

    def form(self) -> dict[str, Any]:
        return {"metrics": {role: families(text) for role, text in self._scrapes.items()}, "spans": self._spans()}

    def _spans(self) -> dict[str, Any]:
        """For each span name: the names of attributes and events, and whether there are links."""
        found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        for resource, span in self._receiver.spans:
            name = f"{resource['service.name']} {span.name} {span.kind}"
            found[name]["attributes"] |= attributes(span.attributes).keys()
            found[name]["events"] |= {event.name for event in span.events}
            found[name]["resource"] |= resource.keys()
            found[name]["links"] |= {"yes"} if span.links else set()
        return {name: {what: sorted(names) for what, names in sorted(of.items())} for name, of in sorted(found.items())}


def families(text: str) -> dict[str, Any]:
    """For each metric family of a scrape: its type and the names of its labels."""
    found: dict[str, dict[str, Any]] = {}
    labels: dict[str, set[str]] = defaultdict(set)
    for line in text.splitlines():
        if said := _TYPE.match(line):
            found[said["name"]] = {"type": said["type"]}
        elif sample := _SAMPLE.match(line):
            name = re.sub(r"_(bucket|sum|count)$", "", sample["name"])
            labels[name if name in found else sample["name"]] |= set(_LABEL.findall(sample["labels"] or ""))
    return {name: {**of, "labels": sorted(labels[name])} for name, of in sorted(found.items())}
