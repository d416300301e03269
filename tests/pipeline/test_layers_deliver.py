"""Each file of `otel-collector/exporters/` delivers the telemetry of the service's SDK through the real collector to
its kind of backend.

The results are written to `.local/layers.md`, and the table in `docs/exporters.md` has to be the same.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, Self

import httpx
import pytest

from bronze.telemetry.schema import registry
from local.builds import REPOSITORY, Built
from local.exporters import PROMETHEUS, SIGNALS, known
from local.otlp import GrpcReceiver, Receiver
from local.programs import LOOPBACK, http_get
from tests.pipeline.emitter import HTTP, Emitter, Fact
from tests.pipeline.rig import Rig, address, as_in_a_role, complaints
from tests.system.blackbox import Metrics, until

LAYERS = [f"{signal}/{name}" for signal in SIGNALS for name in known(signal)]
KEY = "the key of this test"
HEAD = ("| Layer | Delivered | Trace ids, exemplars | Names, labels |", "|---|---|---|---|")


@dataclass(frozen=True)
class Found:
    """The telemetry at the other end, in the form of `Emitter`."""

    spans: set[Fact] = field(default_factory=set)
    logs: set[Fact] = field(default_factory=set)
    metrics: set[Fact] = field(default_factory=set)
    exemplars: set[Fact] = field(default_factory=set)


#: Labels with the name of the series among them.
Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Series:
    """All series of an instance in Prometheus, without the values that differ between instances."""

    values: Mapping[Labels, str]
    exemplars: set[tuple[Labels, str]]

    @classmethod
    def of(cls, prometheus: str, instance: str) -> Self:
        selector = f'{{instance="{instance}",__name__!~".+:.+"}}'  # without the results of recording rules
        now = time.time()
        found = get(f"{prometheus}/api/v1/query", query=selector)["data"]["result"]
        seen = get(f"{prometheus}/api/v1/query_exemplars", query=selector, start=now - 60, end=now + 1)["data"]
        return cls(
            {_common(series["metric"]): series["value"][1] for series in found},
            {
                (_common(series["seriesLabels"]), e["labels"]["trace_id"])
                for series in seen
                for e in series["exemplars"]
            },
        )

    def comparable(self) -> tuple[Mapping[Labels, str], set[tuple[Labels, str]]]:
        """Values and exemplars that the emitter measured itself. Request durations and the SDK's own metrics differ
        each time.
        """
        own_metrics = {metric.prometheus_name for metric in registry().metrics.values() if not metric.instrumentation}

        def measured(labels: Labels) -> bool:
            name = dict(labels)["__name__"]
            return not own_metrics.isdisjoint({name, name.rpartition("_")[0]})

        values = {labels: value for labels, value in self.values.items() if measured(labels)}
        return values, {(labels, trace) for labels, trace in self.exemplars if measured(labels)}


def _common(labels: Mapping[str, str]) -> Labels:
    """Removes the numbers that the SDK gives to its components in a process."""
    own = {key: value for key, value in labels.items() if key != "instance"}
    if "otel_component_name" in own:
        own["otel_component_name"] = own["otel_component_name"].rpartition("/")[0]
    return frozenset(own.items())


@dataclass(frozen=True)
class End:
    """The backend of a layer. `env` has its address for the collector."""

    env: Mapping[str, str]
    find: Callable[[], Found]


def documentation() -> str:
    return (REPOSITORY / "docs" / "exporters.md").read_text()


def get(url: str, **parameters: str | float) -> Any:
    return httpx.get(url, params=parameters, trust_env=False).raise_for_status().json()


# --- the ends


@contextmanager
def otlp(rig: Rig, instance: str, *, signal: str, kind: type[Receiver]) -> Iterator[End]:
    """A backend that requires a key in each request."""
    with kind() as receiver:

        def find() -> Found:
            assert {request.headers.get("x-api-key") for request in receiver.requests} <= {KEY}
            if kind is Receiver:
                assert {request.headers.get("content-encoding") for request in receiver.requests} <= {"gzip"}
            return received(receiver)

        variable = f"OTLP_{signal.upper()}"
        yield End({f"{variable}_ENDPOINT": receiver.url, f"{variable}_HEADERS": json.dumps({"X-Api-Key": KEY})}, find)


@contextmanager
def tempo(rig: Rig, instance: str) -> Iterator[End]:
    """The requests that Tempo's OTLP receiver would get."""
    with Receiver() as receiver:
        yield End({"TEMPO_OTLP_ENDPOINT": receiver.url}, partial(received, receiver))


def received(receiver: Receiver) -> Found:
    found = Found()
    for _, span in receiver.spans:
        found.spans.add((span.trace_id.hex(), span.name))
    for _, record in receiver.logs:
        found.logs.add((record.body.string_value, record.trace_id.hex()))
    for _, metric in receiver.metrics:
        found.metrics.add((metric.name,))
        data = getattr(metric, str(metric.WhichOneof("data")))
        for exemplar in chain.from_iterable(point.exemplars for point in data.data_points):
            found.exemplars.add((metric.name, exemplar.trace_id.hex()))
    return found


@contextmanager
def zipkin(rig: Rig, instance: str) -> Iterator[End]:
    url = rig.zipkin()

    def find() -> Found:
        traces = get(f"{url}/api/v2/traces", serviceName="consumer", limit=1000)
        return Found(spans={(span["traceId"], span["name"]) for trace in traces for span in trace})

    yield End({"ZIPKIN_SPANS_ENDPOINT": f"{url}/api/v2/spans"}, find)


@contextmanager
def files(rig: Rig, instance: str, *, signal: str) -> Iterator[End]:
    """Lines of OTLP JSON."""
    file = rig.state / "files" / f"{signal}.json"

    def find() -> Found:
        found = Found()
        for line in file.read_text().splitlines() if file.exists() else ():
            for scope in chain.from_iterable(
                each(resource, "scope") for resource in each(json.loads(line), "resource")
            ):
                found.spans.update((span["traceId"], span["name"]) for span in scope.get("spans", ()))
                found.logs.update((log["body"]["stringValue"], log["traceId"]) for log in scope.get("logRecords", ()))
                for metric in scope.get("metrics", ()):
                    found.metrics.add((metric["name"],))
                    (data,) = (metric[kind] for kind in ("sum", "gauge", "histogram") if kind in metric)
                    for exemplar in chain.from_iterable(point.get("exemplars", ()) for point in data["dataPoints"]):
                        found.exemplars.add((metric["name"], exemplar["traceId"]))
        return found

    yield End({}, find)


def each(document: Mapping[str, Any], start: str) -> Any:
    """The list under the only key that starts so: resourceSpans, scopeLogs and so on."""
    (found,) = (value for key, value in document.items() if key.startswith(start) and isinstance(value, list))
    return found


@contextmanager
def debug(rig: Rig, instance: str) -> Iterator[End]:
    """Text for people, in which each value is searched."""

    class Said(set[Fact]):
        def __ge__(self, facts: Any) -> bool:
            text = rig.log.read_text()
            return all(word in text for fact in facts for word in fact)

    yield End({}, lambda: Found(Said(), Said(), Said(), Said()))


@contextmanager
def nothing(rig: Rig, instance: str) -> Iterator[End]:
    yield End({}, Found)


@contextmanager
def prometheus_of(rig: Rig, instance: str) -> Iterator[End]:
    """The Prometheus that gets OTLP or remote write from the collector, or scrapes it."""
    names = {metric.prometheus_name: metric.name for metric in registry().metrics.values()}

    def name(labels: Mapping[str, str]) -> str:
        return names.get(labels["__name__"]) or names.get(labels["__name__"].rpartition("_")[0], "")

    def find() -> Found:
        series = Series.of(rig.prometheus, instance)
        return Found(
            metrics={(name(dict(labels)),) for labels in series.values},
            exemplars={(name(dict(labels)), trace) for labels, trace in series.exemplars},
        )

    env = {
        "PROMETHEUS_OTLP_ENDPOINT": f"{rig.prometheus}/api/v1/otlp",
        "PROMETHEUS_REMOTE_WRITE_ENDPOINT": f"{rig.prometheus}/api/v1/write",
        "COLLECTOR_SCRAPE_ENDPOINT": f"{LOOPBACK}:{rig.scrape_port}",
    }
    yield End(env, find)


#: The backend of each layer.
ENDS: Mapping[str, Callable[[Rig, str], AbstractContextManager[End]]] = {
    **{f"{signal}/otlp-http": partial(otlp, signal=signal, kind=Receiver) for signal in SIGNALS},
    **{f"{signal}/otlp-grpc": partial(otlp, signal=signal, kind=GrpcReceiver) for signal in SIGNALS},
    **{f"{signal}/file": partial(files, signal=signal) for signal in SIGNALS},
    **{f"{signal}/debug": debug for signal in SIGNALS},
    **{f"{signal}/none": nothing for signal in SIGNALS},
    **{f"metrics/{name}": prometheus_of for name in PROMETHEUS},
    "traces/tempo": tempo,
    "traces/zipkin": zipkin,
}


# --- each layer


@pytest.fixture(scope="module")
def measured() -> Iterator[list[str]]:
    """Collects rows of the documentation's table, and writes them to `.local/layers.md`."""
    rows: list[str] = []
    yield rows
    file = REPOSITORY / ".local" / "layers.md"
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(f"{row}\n" for row in [*HEAD, *rows]))


@pytest.fixture(scope="module")
def by_otlp(built: Built, prometheus: str, port: int, tmp_path_factory: pytest.TempPathFactory) -> Series:
    """The series in Prometheus by the default layer, which panels and rules rely on."""
    with pytest.MonkeyPatch.context() as patch:
        as_in_a_role(patch)
        rig = Rig(built, prometheus, str, 0, port, tmp_path_factory.mktemp("by-otlp"))
        deliver(rig, "metrics/prometheus", "by-otlp")
    return Series.of(prometheus, "by-otlp")


def deliver(rig: Rig, layer: str, instance: str) -> str:
    """Starts the collector with the layer, emits all telemetry and waits until it arrives. Returns the layer's row."""
    with (
        ENDS[layer](rig, instance) as end,
        rig.collector(layer, env=end.env) as collector,
        Emitter(instance, address(collector)) as sent,
    ):
        sent.emit_all()

        def row() -> str | None:
            found = end.find()
            match layer.partition("/")[0]:
                case "metrics":
                    arrived = sent.metrics <= found.metrics, sent.exemplars <= found.exemplars
                    names = "equal"
                case "traces":
                    equal = sent.spans <= found.spans
                    arrived = equal or lower(sent.spans) <= lower(found.spans), True
                    names = "equal" if equal else "in lower case"
                case _:
                    arrived = sent.logs <= found.logs, True
                    names = "equal"
            return f"| `{layer}` | all | all | {names} |" if all(arrived) else None

        return until(f"all of it by {layer}", row)


def lower(spans: set[Fact]) -> set[Fact]:
    return {(trace, name.lower()) for trace, name in spans}


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if ENDS.get(layer) not in {nothing, prometheus_of}])
def test_a_layer_delivers(layer: str, rig: Rig, measured: list[str]) -> None:
    """All telemetry arrives with its trace ids, the collector logs no warning, and the documentation has the result."""
    check(deliver(rig, layer, layer), rig, measured)


def check(row: str, rig: Rig, measured: list[str]) -> None:
    measured.append(row)
    assert complaints(rig.log) == []
    assert row in documentation().splitlines()


@pytest.mark.parametrize("layer", [f"metrics/{name}" for name in PROMETHEUS])
def test_series_are_the_same_by_each_way_into_prometheus(
    layer: str, rig: Rig, by_otlp: Series, measured: list[str]
) -> None:
    """Names and labels (also `le`, `job` and target_info), values and exemplars are the same, so dashboards keep
    working.
    """
    row = deliver(rig, layer, layer)
    series = Series.of(rig.prometheus, layer)
    assert series.values.keys() == by_otlp.values.keys()
    assert series.comparable() == by_otlp.comparable()
    names = {dict(labels)["__name__"] for labels in series.values}
    assert {"target_info", "bronze_records_total", f"{HTTP.prometheus_name}_bucket"} <= names
    assert len(series.exemplars) > 100
    check(row, rig, measured)


@pytest.mark.parametrize("signal", SIGNALS)
def test_none_takes_a_signal_and_keeps_nothing(signal: str, rig: Rig) -> None:
    """The senders see no failure."""
    with rig.collector(f"{signal}/none", env={}) as collector, Emitter("nobody", address(collector)) as sent:
        sent.emit_all()
        own = Metrics.parse(http_get(collector.program.ports["metrics"], "/metrics").decode())
    counted = {name: value for name, _, value in own.samples}
    assert all(value > 0 for name, value in counted.items() if name.startswith("otelcol_receiver_accepted_"))
    assert not any(value for name, value in counted.items() if re.match("otelcol_receiver_(failed|refused)_", name))
    assert {f"otelcol_receiver_{what}_spans" for what in ("accepted", "failed", "refused")} <= counted.keys()
    assert complaints(rig.log) == []


def test_each_layer_has_an_end() -> None:
    """Every file has a backend here, so that new files are tested, too."""
    assert set(LAYERS) == set(ENDS)


def test_the_documented_layer_of_ones_own_delivers(rig: Rig) -> None:
    """The example of the documentation works, character by character."""
    (text,) = re.findall(r"<!-- layer: traces/acme -->\n```yaml\n(.*?)```", documentation(), re.DOTALL)
    (rig.state / "acme.yaml").write_text(text)
    own = str(rig.state / "acme")  # a layer's name is a path below the layers' folder, or an absolute one
    with (
        Receiver() as receiver,
        rig.collector(own, "traces/none", env={"ACME_ENDPOINT": receiver.url, "ACME_KEY": KEY}) as collector,
        Emitter("acme", address(collector)) as sent,
    ):
        sent.emit_all()
        until("every span", lambda: sent.spans <= received(receiver).spans)
        assert {request.headers["x-acme-key"] for request in receiver.requests} == {KEY}
    assert complaints(rig.log) == []
