"""The telemetry schema, as declared in `registry/*.yaml`: the names of all signals, and their attributes and values.

The files are package data in the format of OpenTelemetry Weaver; `annotations.bronze` holds what that format cannot
express (see metrics.yaml). Besides the registry, only `signals` and `instruments` contain names of signals.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from itertools import product
from typing import Any, TypeVar

import yaml

from bronze.errors import Misconfigured

#: The placeholder for a declared source in attribute values and span names.
SOURCE = "{source}"

Combination = Mapping[str, Sequence[str]]

#: UCUM units and the suffixes that Prometheus uses for them. Units in braces, such as {record}, have no suffix.
_PROMETHEUS_UNITS = {"s": "seconds", "By": "bytes"}

#: Each process reads the registry when it starts; the loader of libyaml does so in an eighth of the time.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_Signal = TypeVar("_Signal")

#: The references of each attribute group, by the id of the group.
_Groups = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Attribute:
    """An attribute of metrics, spans or the resource. `members` has the description of each value of a closed set."""

    key: str
    members: Mapping[str, str] = field(default_factory=dict)
    brief: str = ""


@dataclass(frozen=True)
class Metric:
    """An instrument. `buckets` are a histogram's explicit bounds, in its unit.

    `emits`, for a counter, has the products of attribute values that each role can emit. `instrumentation` is the
    library that creates the instrument, if it is not Bronze. `roles` are the roles whose processes have the instrument.
    """

    name: str
    instrument: str
    unit: str
    brief: str
    attributes: tuple[str, ...]
    buckets: tuple[float, ...]
    emits: Mapping[str, Sequence[Combination]]
    instrumentation: str | None
    roles: tuple[str, ...] = ()

    @property
    def prometheus_name(self) -> str:
        """The name in Prometheus, scraped or by OTLP; a histogram's series add `_bucket`, `_sum` and `_count` to it."""
        words = self.name.replace(".", "_").split("_")
        suffixes = (_PROMETHEUS_UNITS.get(self.unit), "total" if self.instrument == "counter" else None)
        return "_".join([*words, *(suffix for suffix in suffixes if suffix and suffix not in words)])

    def bounds(self, delivery_objective_s: float | None) -> tuple[float, ...]:
        """The buckets in a process with this objective of deliveries, which is a bound of every duration.

        Durations that are compared need the same bounds: otherwise a percentile of a part can be above that of the
        whole.
        """
        if delivery_objective_s is None or not self.buckets or self.unit != "s":
            return self.buckets
        return tuple(sorted({*self.buckets, delivery_objective_s}))

    def combinations(self, role: str, sources: Sequence[str]) -> Iterator[dict[str, str]]:
        """Each set of attributes that a process of this role can emit, given the declared sources."""
        for factors in self.emits.get(role, ()):
            values_by_key = {
                key: [
                    value.replace(SOURCE, source)
                    for value in values
                    for source in (sources if SOURCE in value else ("",))
                ]
                for key, values in factors.items()
            }
            for values in product(*values_by_key.values()):
                yield dict(zip(values_by_key, values, strict=True))


@dataclass(frozen=True)
class Span:
    """A span. `name` contains `{source}` in the place of the source; `kind` is spelled as in the registry's format."""

    type: str
    name: str
    kind: str
    attributes: tuple[str, ...]
    brief: str = ""


@dataclass(frozen=True)
class Event:
    """An event on a span."""

    name: str
    attributes: tuple[str, ...]
    brief: str = ""


@dataclass(frozen=True)
class Registry:
    """All signals: metrics and events by name, spans by type."""

    schema_url: str
    attributes: Mapping[str, Attribute]
    metrics: Mapping[str, Metric]
    spans: Mapping[str, Span]
    events: Mapping[str, Event]
    imports: tuple[str, ...] = ()  # patterns of metrics that libraries create as in the semantic conventions

    def knows(self, metric: str) -> bool:
        """Whether a process of Bronze may emit a metric of this name."""
        return metric in self.metrics or any(fnmatchcase(metric, pattern) for pattern in self.imports)


@cache
def registry() -> Registry:
    """The schema that comes with the package, read once."""
    folder = files("bronze.telemetry") / "registry"
    documents = [
        yaml.load(file.read_text(encoding="utf-8"), _LOADER)  # noqa: S506  a safe loader
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".yaml")
    ]
    return parse(documents)


def parse(documents: Sequence[Mapping[str, Any]]) -> Registry:
    """Joins the files of a registry. Raises `Misconfigured` with the name that is declared twice, or not at all."""
    groups: _Groups = {group["id"]: group["attributes"] for group in _entries(documents, "attribute_groups")}
    attributes = _attributes(documents, groups)
    metrics = _metrics(documents, groups)
    spans = _spans(documents, groups)
    events = _events(documents, groups)
    signals: list[Metric | Span | Event] = [*metrics.values(), *spans.values(), *events.values()]
    used = [key for signal in signals for key in signal.attributes]
    for key in (*used, *_resource_attributes(documents, groups)):
        if key.startswith("bronze.") and key not in attributes:
            raise Misconfigured(f"telemetry registry: {key} is used and not declared")
        attributes.setdefault(key, Attribute(key))  # declared by the semantic conventions
    return Registry(
        schema_url=next((document["schema_url"] for document in documents if "schema_url" in document), ""),
        attributes=attributes,
        metrics=metrics,
        spans=spans,
        events=events,
        imports=tuple(name for document in documents for name in document.get("imports", {}).get("metrics", ())),
    )


def _attributes(documents: Sequence[Mapping[str, Any]], groups: _Groups) -> dict[str, Attribute]:
    attributes: dict[str, Attribute] = {}
    for declared in _entries(documents, "attributes"):
        members = declared["type"]["members"] if isinstance(declared["type"], dict) else ()
        briefs = {member["value"]: member["brief"] for member in members}
        _declare(attributes, declared["key"], Attribute(declared["key"], briefs, declared.get("brief", "")))
    for ref in (ref for group in groups.values() for ref in group if "members" in _annotations(ref)):
        _declare(attributes, ref["ref"], Attribute(ref["ref"], _annotations(ref)["members"]))
    return attributes


def _metrics(documents: Sequence[Mapping[str, Any]], groups: _Groups) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {}
    for declared in (*_entries(documents, "metrics"), *_entries(documents, "metric_refinements")):
        name = declared.get("name") or declared["ref"]
        annotations = _annotations(declared)
        metric = Metric(
            name=name,
            instrument=declared.get("instrument") or annotations["instrument"],
            unit=declared.get("unit") or annotations["unit"],
            brief=declared.get("brief", ""),
            attributes=_refs(declared, groups),
            buckets=tuple(annotations.get("buckets", ())),
            emits=annotations.get("emits", {}),
            instrumentation=annotations.get("by"),
            roles=tuple(annotations.get("roles", annotations.get("emits", ()))),
        )
        _declare(metrics, name, metric)
    return metrics


def _spans(documents: Sequence[Mapping[str, Any]], groups: _Groups) -> dict[str, Span]:
    spans: dict[str, Span] = {}
    for declared in (*_entries(documents, "spans"), *_entries(documents, "span_refinements")):
        span_type = declared.get("type") or declared["id"]
        kind = declared.get("kind") or declared["ref"].rpartition(".")[2]
        name, brief = declared["name"]["note"], declared["brief"]
        _declare(spans, span_type, Span(span_type, name, kind, _refs(declared, groups), brief))
    return spans


def _events(documents: Sequence[Mapping[str, Any]], groups: _Groups) -> dict[str, Event]:
    events: dict[str, Event] = {}
    for declared in _entries(documents, "events"):
        _declare(events, declared["name"], Event(declared["name"], _refs(declared, groups), declared["brief"]))
    return events


def _resource_attributes(documents: Sequence[Mapping[str, Any]], groups: _Groups) -> Iterator[str]:
    for entity in _entries(documents, "entities"):
        for part in ("identity", "description"):
            yield from _refs(entity, groups, part)


def _refs(signal: Mapping[str, Any], groups: _Groups, key: str = "attributes") -> tuple[str, ...]:
    """The attributes that a signal refers to, including those of groups."""
    return tuple(
        ref["ref"]
        for entry in signal.get(key, ())
        for ref in (groups[entry["ref_group"]] if "ref_group" in entry else (entry,))
    )


def _entries(documents: Sequence[Mapping[str, Any]], section: str) -> Iterator[Mapping[str, Any]]:
    for document in documents:
        yield from document.get(section, ())


def _annotations(declared: Mapping[str, Any]) -> Mapping[str, Any]:
    annotations: Mapping[str, Any] = declared.get("annotations", {}).get("bronze", {})
    return annotations


def _declare(signals: dict[str, _Signal], name: str, signal: _Signal) -> None:
    if name in signals:
        raise Misconfigured(f"telemetry registry: {name} is declared twice")
    signals[name] = signal
