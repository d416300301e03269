"""Layers are swapped on a running system: all telemetry that the collector acknowledged arrives."""

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from bronze.telemetry.signals import Outcome, attribute
from local import programs, servers
from local.builds import REPOSITORY
from local.otlp import Receiver
from local.programs import LOOPBACK, get_json
from tests.pipeline.emitter import SOURCE, Emitter
from tests.pipeline.rig import Rig, address
from tests.system.blackbox import STOP_S_MAX, Metrics, until

SPANS_PER_S = 500
STORED = {attribute.bronze_source: SOURCE, attribute.bronze_outcome: Outcome.STORED}


@contextmanager
def load(emitter: Emitter) -> Iterator[None]:
    """Emits spans in the context, and counts a record in each."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(1 / SPANS_PER_S):
            with emitter.span("load"):
                emitter.telemetry.instruments.records.add(1, STORED)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def traces(*receivers: Receiver) -> list[str]:
    return [span.trace_id.hex() for receiver in receivers for _, span in receiver.spans]


def recorded(prometheus: str, instance: str) -> float:
    """The count of these records in Prometheus."""
    query = f'bronze_records_total{{instance="{instance}"}}'
    answer = get_json(int(prometheus.rpartition(":")[2]), f"/api/v1/query?query={quote(query)}")
    return sum(float(series["value"][1]) for series in answer["data"]["result"])


def test_a_swap_under_load_loses_at_most_what_was_not_acknowledged(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM, then a start with other layers for traces and metrics. The rest of the first layer's queue is sent when
    the layer is used again.
    """
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "500")
    with Receiver() as first, Receiver() as second, ExitStack() as stack:
        env = {
            "OTLP_TRACES_ENDPOINT": first.url,
            "TEMPO_OTLP_ENDPOINT": second.url,
            "PROMETHEUS_OTLP_ENDPOINT": f"{rig.prometheus}/api/v1/otlp",
            "PROMETHEUS_REMOTE_WRITE_ENDPOINT": f"{rig.prometheus}/api/v1/write",
        }
        with rig.collector("metrics/prometheus", "traces/otlp-http", env=env) as collector:
            emitter = stack.enter_context(Emitter("swapped", address(collector)))
            loading = stack.enter_context(ExitStack())
            loading.enter_context(load(emitter))
            until("spans at the first end", lambda: len(first.spans) > SPANS_PER_S)
            until("counts in Prometheus", lambda: recorded(rig.prometheus, "swapped"))
        with rig.collector("metrics/prometheus-remote-write", "traces/tempo", env=env):
            until("spans at the second end", lambda: len(second.spans) > SPANS_PER_S)
            loading.close()
            emitter.telemetry.flush()
            metrics = Metrics.parse(emitter.telemetry.metrics()[0].decode())
            exported = [s for s in metrics.samples if s[0] == "otel_sdk_exporter_span_exported_total"]
            acknowledged = int(sum(value for _, labels, value in exported if not labels.get("error_type")))
            counted = metrics.sum("bronze_records_total")
            until("all counts in Prometheus", lambda: recorded(rig.prometheus, "swapped") == counted)
        with rig.collector("metrics/none", "traces/otlp-http", "traces/tempo", env=env):
            until("all that was acknowledged", lambda: len(set(traces(first, second))) >= acknowledged)
        found = traces(first, second)
    ended = {trace for trace, _ in emitter.spans}
    lost = ended - set(found)
    assert len(lost) <= len(ended) - acknowledged
    row = {
        "ended": len(ended),
        "acknowledged": acknowledged,
        "found at the first end": len(set(traces(first))),
        "at the second": len(set(traces(second))),
        "lost": len(lost),
        "found twice": len(found) - len(set(found)),
    }
    file = REPOSITORY / ".local" / "swap.md"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"| {' | '.join(row)} |\n|{'---|' * len(row)}\n| {' | '.join(map(str, row.values()))} |\n")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_queue_waits_for_its_layer(end: signal.Signals, rig: Rig, tmp_path: Path) -> None:
    """The backends of two layers are unavailable; the collector stops, runs without the layers, and gets them back. All
    telemetry that it had acknowledged is delivered.
    """
    api = programs.free_ports()
    prometheus = servers.prometheus(tmp_path / "prometheus", api, {}, executable=rig.built.prometheus)
    receiver = Receiver(programs.free_ports())
    env = {
        "OTLP_TRACES_ENDPOINT": receiver.url,
        "PROMETHEUS_REMOTE_WRITE_ENDPOINT": f"http://{LOOPBACK}:{api}/api/v1/write",
    }
    layers = ("metrics/prometheus-remote-write", "traces/otlp-http")
    with rig.collector(*layers, env=env) as collector:
        with Emitter("queued", address(collector)) as emitter:
            emitter.emit_all()
        collector.signal(end)
        collector.wait(STOP_S_MAX)
    with rig.collector("metrics/none", "traces/none", env=env):
        assert not receiver.requests
    with receiver, programs.start(prometheus, tmp_path / "prometheus.log"), rig.collector(*layers, env=env):
        until("every span", lambda: {trace for trace, _ in emitter.spans} <= set(traces(receiver)))
        until("the metrics", lambda: recorded(f"http://{LOOPBACK}:{api}", "queued"))


def test_the_collector_traces_itself(rig: Rig) -> None:
    """The collector samples its own traces, and exports them with all other traces."""
    with (
        Receiver() as receiver,
        rig.collector("traces/otlp-http", env={"OTLP_TRACES_ENDPOINT": receiver.url, "COLLECTOR_TRACES_RATIO": "1"}),
    ):
        own = until("a span of the collector", lambda: [r for r, _ in receiver.spans])
        assert {resource["service.name"] for resource in own} == {"otel-collector"}
