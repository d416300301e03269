"""The telemetry schema, as declared in `registry/*.yaml`: what every signal is called and may say.

The files are data of the package in the format of OpenTelemetry Weaver; `annotations.bronze` holds what that format has
no word for (see metrics.yaml). Nothing else in the code types the name of a signal.
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

#: What stands for each declared source in attribute values and span names.
SOURCE = "{source}"

Combination = Mapping[str, Sequence[str]]

#: UCUM units as Prometheus spells them at the end of a name; what is counted in braces has no suffix.
_PROMETHEUS_UNITS = {"s": "seconds", "By": "bytes"}

_Signal = TypeVar("_Signal")


@dataclass(frozen=True)
class Attribute:
    """A name on metrics, spans or the resource. `members`, with what each says, is empty where the values are open."""

    key: str
    members: Mapping[str, str] = field(default_factory=dict)
    brief: str = ""


@dataclass(frozen=True)
class Metric:
    """An instrument. `buckets` are a histogram's explicit bounds, in its unit.

    `emits` says for a counter, by role, the products of attribute values that the role can emit. `instrumentation`
    names who makes the instrument where that is not us. `roles` are those whose processes have it.
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
        """The name in Prometheus, on each way in; a histogram's series add `_bucket`, `_sum` and `_count` to it."""
        words = self.name.replace(".", "_").split("_")
        suffixes = (_PROMETHEUS_UNITS.get(self.unit), "total" if self.instrument == "counter" else None)
        return "_".join([*words, *(suffix for suffix in suffixes if suffix and suffix not in words)])

    def combinations(self, role: str, sources: Sequence[str]) -> Iterator[dict[str, str]]:
        """Each set of attributes that a process of this role can emit, given the declared sources."""
        for factors in self.emits.get(role, ()):
            spread = {
                key: [
                    value.replace(SOURCE, source)
                    for value in values
                    for source in (sources if SOURCE in value else ("",))
                ]
                for key, values in factors.items()
            }
            for values in product(*spread.values()):
                yield dict(zip(spread, values, strict=True))


@dataclass(frozen=True)
class Span:
    """A span; `name` holds `{source}` where the source stands. `kind` is the word of the registry's format."""

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
    """Every signal by its name: metrics and events by theirs, spans by type."""

    schema_url: str
    attributes: Mapping[str, Attribute]
    metrics: Mapping[str, Metric]
    spans: Mapping[str, Span]
    events: Mapping[str, Event]
    imports: tuple[str, ...] = ()  # patterns of metrics that others make as the semantic conventions have them

    def knows(self, metric: str) -> bool:
        """Whether a metric of this name may come out of a process of ours."""
        return metric in self.metrics or any(fnmatchcase(metric, pattern) for pattern in self.imports)


@cache
def registry() -> Registry:
    """The schema that comes with the package, read once."""
    folder = files("bronze.telemetry") / "registry"
    documents = [
        yaml.safe_load(file.read_text(encoding="utf-8"))
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".yaml")
    ]
    return parse(documents)


def parse(documents: Sequence[Mapping[str, Any]]) -> Registry:
    """Joins the files of a registry. Raises `Misconfigured` that names what is declared twice or not at all."""
    schema_url = next((d["schema_url"] for d in documents if "schema_url" in d), "")
    groups: dict[str, list[Mapping[str, Any]]] = {
        group["id"]: group["attributes"] for group in _all(documents, "attribute_groups")
    }

    def refs(signal: Mapping[str, Any], key: str = "attributes") -> tuple[str, ...]:
        return tuple(
            ref["ref"]
            for entry in signal.get(key, ())
            for ref in (groups[entry["ref_group"]] if "ref_group" in entry else (entry,))
        )

    attributes: dict[str, Attribute] = {}
    for declared in _all(documents, "attributes"):
        members = declared["type"]["members"] if isinstance(declared["type"], dict) else ()
        said = {member["value"]: member["brief"] for member in members}
        _once(attributes, declared["key"], Attribute(declared["key"], said, declared.get("brief", "")))
    for ref in (ref for group in groups.values() for ref in group if "members" in _ours(ref)):
        _once(attributes, ref["ref"], Attribute(ref["ref"], _ours(ref)["members"]))

    metrics: dict[str, Metric] = {}
    for declared in (*_all(documents, "metrics"), *_all(documents, "metric_refinements")):
        name = declared.get("name") or declared["ref"]
        ours = _ours(declared)
        _once(
            metrics,
            name,
            Metric(
                name=name,
                instrument=declared.get("instrument") or ours["instrument"],
                unit=declared.get("unit") or ours["unit"],
                brief=declared.get("brief", ""),
                attributes=refs(declared),
                buckets=tuple(ours.get("buckets", ())),
                emits=ours.get("emits", {}),
                instrumentation=ours.get("by"),
                roles=tuple(ours.get("roles", ours.get("emits", ()))),
            ),
        )

    spans: dict[str, Span] = {}
    for declared in _all(documents, "spans"):
        name, brief = declared["name"]["note"], declared["brief"]
        _once(spans, declared["type"], Span(declared["type"], name, declared["kind"], refs(declared), brief))
    for declared in _all(documents, "span_refinements"):
        kind = declared["ref"].rpartition(".")[2]
        name, brief = declared["name"]["note"], declared["brief"]
        _once(spans, declared["id"], Span(declared["id"], name, kind, refs(declared), brief))

    events: dict[str, Event] = {}
    for declared in _all(documents, "events"):
        _once(events, declared["name"], Event(declared["name"], refs(declared), declared["brief"]))

    used = [key for metric in metrics.values() for key in metric.attributes]
    used += [key for span in spans.values() for key in span.attributes]
    used += [key for event in events.values() for key in event.attributes]
    used += [
        key
        for entity in _all(documents, "entities")
        for part in ("identity", "description")
        for key in refs(entity, part)
    ]
    for key in used:
        if key.startswith("bronze.") and key not in attributes:
            raise Misconfigured(f"telemetry registry: {key} is used and not declared")
        attributes.setdefault(key, Attribute(key))  # of the semantic conventions
    return Registry(
        schema_url=schema_url,
        attributes=attributes,
        metrics=metrics,
        spans=spans,
        events=events,
        imports=tuple(name for document in documents for name in document.get("imports", {}).get("metrics", ())),
    )


def _all(documents: Sequence[Mapping[str, Any]], section: str) -> Iterator[Mapping[str, Any]]:
    for document in documents:
        yield from document.get(section, ())


def _ours(declared: Mapping[str, Any]) -> Mapping[str, Any]:
    ours: Mapping[str, Any] = declared.get("annotations", {}).get("bronze", {})
    return ours


def _once(known: dict[str, _Signal], name: str, value: _Signal) -> None:
    if name in known:
        raise Misconfigured(f"telemetry registry: {name} is declared twice")
    known[name] = value
