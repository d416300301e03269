"""Outages of the pipeline under load: nothing is lost if a queue keeps the telemetry, and every loss is counted.

Each outage lasts BRONZE_OUTAGE_S seconds; `make outage-test` uses three minutes.
"""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Self

import pytest

from local.builds import build_all
from local.exporters import Exporters
from local.machine import limit_s
from local.otlp import Receiver
from local.programs import Process
from local.stack import Ports, Stack
from tests.system.blackbox import SOON, System, until, vehicles

OUTAGE_S = float(os.environ.get("BRONZE_OUTAGE_S", "4"))
#: The collector retries after at most 30 s plus a random half of that.
DRAIN_S_MAX = 90.0
SUBMISSIONS_PER_S = 50
INTERVAL_S = 2.0
ENV = {**SOON, "OTEL_METRIC_EXPORT_INTERVAL": str(int(INTERVAL_S * 1000))}
#: Spans are dropped after 2 s without a collector, so that a short outage already loses some.
IMPATIENT = {"OTEL_EXPORTER_OTLP_TIMEOUT": "2", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "2"}
ROLES = API, CONSUMER = ("api", "consumer")

pytestmark = pytest.mark.timeout(120 + 2 * OUTAGE_S)


@pytest.fixture(autouse=True)
def print_figures(record_property: Callable[[str, object], None]) -> None:
    record_property("s of outages", OUTAGE_S)


@dataclass(frozen=True)
class Pipeline:
    """The destinations of telemetry: Prometheus for metrics, a receiver for spans. Tests stop and restart its parts."""

    system: System
    collector: Process
    prometheus: Process
    receiver: Receiver


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    exporters = Exporters(metrics=("prometheus",), traces=("otlp-http",), logs=("none",))
    stack = Stack.create(tmp_path_factory.mktemp("pipeline"), Ports.free(), build_all(), exporters)
    system = System(stack, ENV)
    with Receiver() as receiver:
        collector = replace(stack.collector, env={**stack.collector.env, "OTLP_TRACES_ENDPOINT": receiver.url})
        backends = [program for program in stack.servers if program.name in {"seaweedfs", "prometheus"}]
        with system.running(*backends, collector) as processes:
            yield Pipeline(system, processes["otel-collector"], processes["prometheus"], receiver)


@pytest.fixture
def branch(pipeline: Pipeline, tmp_path: Path) -> System:
    """A queue and roles for one test, so that all counters start at 0."""
    return pipeline.system.branch(tmp_path / "branch")


@contextmanager
def running(branch: System, **env: str) -> Iterator[None]:
    with branch.queue(), branch.running(*(branch.role(role, **env) for role in ROLES)):
        yield


@contextmanager
def stopped(part: Process | Receiver) -> Iterator[None]:
    part.stop()
    try:
        yield
    finally:
        part.restart() if isinstance(part, Process) else part.start()


@contextmanager
def killed(process: Process) -> Iterator[None]:
    process.signal(signal.SIGKILL)
    try:
        yield
    finally:
        process.restart()


@dataclass
class Load:
    """Sends `SUBMISSIONS_PER_S` submissions of one record in the context. Each has to be accepted."""

    system: System
    trace_ids: list[str] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def _run(self) -> None:
        began = time.monotonic()
        while not self._over.wait(began + len(self.sent) / SUBMISSIONS_PER_S - time.monotonic()):
            (record,) = vehicles(f"load-{len(self.sent)}")
            self.sent.append(record)
            try:
                answer = self.system.post("vehicles", record)
                assert answer.status_code == 202, answer.text
                self.trace_ids.append(answer.json()["trace_id"])
            except Exception as error:  # noqa: BLE001  a thread's error is seen by nobody else
                self.refused.append(repr(error))

    def goes_on(self, for_s: float) -> None:
        until_at = time.monotonic() + for_s
        until("the load has gone on", lambda: time.monotonic() >= until_at, timeout_s=for_s + 1)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def check_stored(self) -> None:
        """Every submission was accepted, and each record is in the bucket once."""
        assert self.refused == []
        assert len(self.trace_ids) == len(self.sent) > 0
        self.system.fence()
        assert self.system.payloads("load-") == sorted(self.sent)


def say(text: str) -> None:
    """Prints a figure, which pytest's option `-s` shows."""
    print(text)  # noqa: T201


# --- spans


@dataclass(frozen=True)
class Spans:
    """The SDK's counts of a role's spans: ended, sent to the collector, and lost before it."""

    ended: int
    exported: int
    lost: int

    @classmethod
    def of(cls, system: System, role: str) -> Self | None:
        """None while spans are still waiting for their export."""
        samples = system.metrics(role).samples

        def count(name: str, *, failed: bool = False) -> int:
            return int(sum(v for n, labels, v in samples if n == name and ("error_type" in labels) is failed))

        processed, exported = "otel_sdk_processor_span_processed_total", "otel_sdk_exporter_span_exported_total"
        dropped = count(processed, failed=True)
        spans = cls(count(processed) + dropped, count(exported), count(exported, failed=True) + dropped)
        waiting = count("otel_sdk_processor_span_queue_size") + count("otel_sdk_exporter_span_inflight")
        return spans if not waiting and spans.ended == spans.exported + spans.lost else None


def check_received(pipeline: Pipeline, branch: System, role: str) -> Spans:
    """After the load: every span that the collector accepted has arrived, and every missing span is counted as lost."""
    sent = until(f"the spans of {role} have left", lambda: Spans.of(branch, role), DRAIN_S_MAX)
    instance = branch.stack.instance(role)

    def come() -> Counter[bytes] | None:
        of_role = (s for resource, s in pipeline.receiver.spans if resource["service.instance.id"] == instance)
        found = Counter(span.span_id for span in of_role)
        return found if len(found) >= sent.exported > 0 else None

    received = until(f"the {sent.exported} spans that the collector took from {role}", come, DRAIN_S_MAX)
    assert len(received) <= sent.ended
    say(f"{role}: {sent}, received {len(received)}, of them again {received.total() - len(received)}")
    return sent


def requests_received(pipeline: Pipeline, trace_ids: list[str]) -> int:
    """The number of these traces that have the span of their request."""
    servers = {span.trace_id.hex() for _, span in pipeline.receiver.spans if span.kind == span.SPAN_KIND_SERVER}
    return len(servers & set(trace_ids))


# --- metrics


def accepted(branch: System) -> str:
    """The selector of the API's counter of accepted records, by OTLP."""
    of = f'job="bronze/api", instance="{branch.stack.instance(API)}"'
    return f'bronze_records_total{{{of}, bronze_source="vehicles", bronze_outcome="accepted"}}'


def exports(branch: System) -> float:
    """The number of successful exports of the API's metrics. Fails if an export failed."""
    (count,) = branch.metrics(API).all(
        "otel_sdk_exporter_operation_duration_seconds_count", otel_component_type="otlp_http_metric_exporter"
    )
    return count


def samples(branch: System, counter: str) -> list[tuple[float, float]]:
    """The raw samples of a single series: collection times in seconds since 1970, and values."""
    (series,) = branch.prometheus("query", query=f"{counter}[1h]")["result"]
    return [(at, float(value)) for at, value in series["values"]]


def check_loss_is_visible(branch: System, role: str, lost: int) -> None:
    of = f'job="bronze/{role}", instance="{branch.stack.instance(role)}", error_type!=""'
    query = f"sum(otel_sdk_exporter_span_exported_total{{{of}}}) + sum(otel_sdk_processor_span_processed_total{{{of}}})"
    until(f"Prometheus knows of the {lost} spans that {role} lost", lambda: branch.value(query) == lost)


# --- the outages


def test_a_stopped_prometheus_misses_nothing(pipeline: Pipeline, branch: System) -> None:
    """Prometheus is stopped under load and restarted: the raw counter rises by the number of accepted records and
    every export has a sample at its own time, also those of the outage.
    """
    counter = accepted(branch)
    with running(branch):
        branch.fence()
        until("the count of before the outage", lambda: branch.value(counter) == 1)
        with Load(branch) as load:
            with stopped(pipeline.prometheus):
                stopped_at = time.time()
                load.goes_on(OUTAGE_S)
                started_at = time.time()
            load.goes_on(1)
        until("the count of after the outage", lambda: branch.value(counter) == 1 + len(load.trace_ids), DRAIN_S_MAX)
        # The queue sends several batches in parallel, each with backoff: the newest may arrive before older batches.
        until("each export's sample", lambda: len(samples(branch, counter)) >= exports(branch), DRAIN_S_MAX)

        found = samples(branch, counter)
        risen = found[-1][1] - 1  # until Prometheus has stopped, which takes a while on a busy machine, it gets exports
        gap_s_max = max(later - earlier for (earlier, _), (later, _) in pairwise(found))
        say(f"the counter rose by {risen:g}, {len(load.trace_ids)} were accepted; the longest gap is {gap_s_max:.2f} s")
        assert risen == len(load.trace_ids)
        # an export takes some time in addition to the interval; a missing export would double the distance
        assert gap_s_max < INTERVAL_S + limit_s(INTERVAL_S)
        assert any(stopped_at < at < started_at for at, _ in found)
        assert found == sorted(found, key=lambda sample: sample[1]), "a counter went back"
        load.check_stored()


def test_a_stopped_trace_store_misses_nothing(pipeline: Pipeline, branch: System) -> None:
    """The trace store is stopped under load and restarted: spans sent equal spans received."""
    with running(branch):
        with Load(branch) as load, stopped(pipeline.receiver):
            came = len(pipeline.receiver.requests)
            load.goes_on(OUTAGE_S)
            assert len(pipeline.receiver.requests) == came, "the store was not stopped"
        load.check_stored()
        for role in ROLES:
            assert check_received(pipeline, branch, role).lost == 0
        assert requests_received(pipeline, load.trace_ids) == len(load.sent)


def test_a_killed_collector_keeps_what_it_took(pipeline: Pipeline, branch: System) -> None:
    """The collector is killed while the trace store is unavailable, and restarted. Every span that it had acknowledged
    arrives when the store runs again, and all spans that may be missing are counted.
    """
    with running(branch, **IMPATIENT):
        with Load(branch) as load, stopped(pipeline.receiver):
            load.goes_on(OUTAGE_S / 2)
            with killed(pipeline.collector):
                load.goes_on(3)
            load.goes_on(OUTAGE_S / 2)
        load.check_stored()
        sent = {role: check_received(pipeline, branch, role) for role in ROLES}
        missing = len(load.sent) - requests_received(pipeline, load.trace_ids)
        assert missing <= sent[API].lost


def test_a_collector_that_is_down_costs_telemetry_alone(pipeline: Pipeline, branch: System) -> None:
    """The collector is down under load: every submission is accepted and stored. After its restart the counters include
    the outage, and every loss is counted, in Prometheus too.
    """
    counter = accepted(branch)
    with running(branch, **IMPATIENT):
        with Load(branch) as load:
            load.goes_on(INTERVAL_S)
            with stopped(pipeline.collector):
                load.goes_on(max(OUTAGE_S, 5))
        load.check_stored()
        total = len(load.sent) + 1  # and the submission of `fence`
        until("the counter has caught up", lambda: branch.value(counter) == total, DRAIN_S_MAX)
        sent = {role: check_received(pipeline, branch, role) for role in ROLES}
        assert sent[API].lost > 0, "the outage was too short to show anything"
        for role, of in sent.items():
            check_loss_is_visible(branch, role, of.lost)
