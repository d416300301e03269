"""Choices of exporters with the real programs: they are checked before anything starts and changed while the system
runs, and unsent telemetry of a removed layer is reported.
"""

import json
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from local import __main__ as commands
from local import checks, exporters, servers
from local.builds import Built
from local.evidence import Prometheus
from local.exporters import Exporters
from local.otlp import Receiver
from local.programs import LOOPBACK, LocalError, Program, free_ports, http_get, start
from local.queues import unsent
from local.stack import Ports, Stack
from local.supervision import Supervisor
from tests.system.blackbox import until

USING = ("metrics/none", "traces/otlp-http", "logs/none")
WITHOUT = ("metrics/none", "traces/none", "logs/none")


def send_spans(port: int, count: int) -> None:
    """Sends so many requests of one span."""
    for number in range(count):
        span = {"traceId": "ab" * 16, "spanId": f"{number + 1:016x}", "name": "s", "startTimeUnixNano": "1"}
        body = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
        http_get(port, "/v1/traces", method="POST", body=json.dumps(body).encode(), Content_Type="application/json")


def queue_size(port: int) -> dict[str, int]:
    """The bytes in each exporter's queue, from the collector's own metrics on this port."""
    lines = http_get(port, "/metrics").decode().splitlines()
    found = (line.rpartition(" ") for line in lines if line.startswith("otelcol_exporter_queue_size{"))
    return {series: int(float(value)) for series, _, value in found}


def test_unsent_telemetry_of_a_removed_layer_is_reported_and_sent_later(built: Built, tmp_path: Path) -> None:
    """The reported requests and bytes are those that the collector counted. Nothing is reported for layers in use."""
    receiver, port = Receiver(), free_ports(servers.COLLECTOR_PORTS)
    folder = servers.queues(tmp_path)

    def collector(layers: tuple[str, ...]) -> Program:
        env = {"OTLP_TRACES_ENDPOINT": receiver.url}
        return servers.collector(tmp_path, port, "ours", executable=built.collector, layers=layers, env=env)

    with start(collector(USING), tmp_path / "log"):
        send_spans(port, 5)
        (size_bytes,) = queue_size(port + 1).values()
        assert unsent(folder, WITHOUT, built) == []  # the running collector will send it
    assert unsent(folder, USING, built) == []
    with start(collector(WITHOUT), tmp_path / "log"):
        (left,) = unsent(folder, WITHOUT, built)
        assert (left.layer, left.requests, left.size_bytes) == ("traces/otlp-http", 5, size_bytes)
        assert "traces/otlp-http is not in use, and its queue has 5 unsent requests" in str(left)
    with receiver, start(collector(USING), tmp_path / "log"):
        until("the spans have come", lambda: len(receiver.spans) == 5)
    assert unsent(folder, WITHOUT, built) == []


def test_a_queue_that_cannot_be_read_is_named(built: Built, tmp_path: Path) -> None:
    """Its unsent telemetry is not ignored silently."""
    (tmp_path / "exporter_zipkin__traces").write_bytes(b"no database" * 1000)
    with pytest.raises(LocalError, match=r"exporter_zipkin__traces is a queue that cannot be read \(.*delete it"):
        unsent(tmp_path, WITHOUT, built)


def test_every_exporter_is_valid_alone(built: Built) -> None:
    """The same check as in `make check`, with the real collector."""
    layers = exporters.every_layer()
    checks.check_names(layers)
    checks.run(checks.alone(built, layer) for layer in layers)


@pytest.mark.parametrize(
    ("file", "before", "after", "sentence"),
    [
        (
            "exporters/traces/zipkin.yaml",
            "queue_size:",
            "queue_sise:",
            (
                r"otel-collector/exporters/traces/zipkin.yaml: .* invalid keys: queue_sise: "
                r"correct that setting in this file"
            ),
        ),
        (
            "exporters/logs/file.yaml",
            "exporters: [file/logs]",
            "exporters: [file/log]",
            r"otel-collector/exporters/logs/file.yaml: .*logs/file: references exporter \"file/log\" which is not conf",
        ),
        ("sampling/tail.yaml", "num_traces:", "num_trace:", r"otel-collector/sampling/tail.yaml: .*num_trace: correct"),
        ("config.yaml", "check_interval:", "chek_interval:", r"otel-collector/config.yaml: .*chek_interval: correct"),
    ],
)
def test_a_wrong_setting_is_reported_before_anything_starts(
    file: str, before: str, after: str, sentence: str, built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first line names the file, the setting and the remedy; the collector's output follows."""
    for original in exporters.COLLECTOR.rglob("*.yaml"):
        copy = tmp_path / "otel-collector" / original.relative_to(exporters.COLLECTOR)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(original.read_text())
    broken = tmp_path / "otel-collector" / file
    assert before in broken.read_text()
    broken.write_text(broken.read_text().replace(before, after))
    monkeypatch.setattr(exporters, "COLLECTOR", tmp_path / "otel-collector")
    monkeypatch.setattr(exporters, "REPOSITORY", tmp_path)
    with pytest.raises(LocalError) as error:
        checks.check_all(built, Exporters())
    first, *rest = str(error.value).splitlines()
    assert re.match(sentence, first), first
    assert any("Error: " in line for line in rest)


def test_a_wrong_variable_is_reported_before_anything_starts(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check runs with the settings that the collector will run with."""
    monkeypatch.setenv("OTLP_TRACES_HEADERS", "x-api-key=secret")
    with pytest.raises(LocalError, match=r"^the exporters in use \(.*otlp-http.*headers"):
        checks.check_choice(built, Exporters(traces=("otlp-http",)))


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    supervisor = Supervisor(tmp_path / "up")
    yield supervisor
    if supervisor.runs():
        supervisor.shutdown()


def test_another_choice_restarts_only_the_collector_and_the_canary(built: Built, supervisor: Supervisor) -> None:
    """Newly needed programs start, programs that are no longer needed stop, the others keep running, and a repetition
    changes nothing. The canary has to know where the traces are.
    """

    def pids() -> Mapping[str, int]:
        return {info["name"]: info["pid"] for info in supervisor._call("getAllProcessInfo")}

    first = Stack.create(supervisor.root, Ports.free(), built, Exporters(traces=("none",)))
    commands.launch(supervisor, first, restarts=True)
    commands.start(supervisor, first.senders)
    before = pids()
    assert "zipkin" not in before

    second = replace(first, exporters=Exporters(("prometheus-scrape",), ("zipkin",), ("file",)))
    commands.reconcile(supervisor, first, second)
    after = pids()
    assert {name for name in before if before[name] != after[name]} == {"otel-collector", "canary"}
    assert after.keys() - before.keys() == {"zipkin"}
    assert Stack.load(supervisor.root) == second
    collected = 'bronze_records_total{job="bronze/api",bronze_source="status",bronze_outcome="accepted"}'
    metrics = Prometheus(first.ports.prometheus)
    scraped = 'timestamp(up{job="collector-exporter"} == 1)'
    since = until("Prometheus finds the collector's exporter", lambda: metrics.value(scraped))
    until("metrics come that way", lambda: (metrics.value(f"timestamp({collected})") or 0) > since)
    until("traces are in Zipkin", lambda: json.loads(http_get(first.ports.zipkin, "/api/v2/services")))

    commands.reconcile(supervisor, second, second)
    assert pids() == after

    commands.reconcile(supervisor, second, first)
    assert pids().keys() == before.keys()
    assert {name for name in before if before[name] != pids()[name]} == {"otel-collector", "canary"}


def test_a_port_in_use_leaves_running_programs_unchanged(built: Built, supervisor: Supervisor) -> None:
    """If the port of a trace store is in use, the error comes before the collector is stopped."""
    first = Stack.create(supervisor.root, Ports.free(), built, Exporters(traces=("none",)))
    supervisor.launch(first.programs, restarts=True)
    commands.start(supervisor, [first.collector])
    second = replace(first, exporters=Exporters(traces=("zipkin",)))
    with (
        socket.create_server((LOOPBACK, first.ports.zipkin)),
        pytest.raises(LocalError, match=rf"port {first.ports.zipkin} \(api\) is in use by .*, but zipkin needs it"),
    ):
        commands.reconcile(supervisor, first, second)
    first.collector.ready()
    assert Stack.load(supervisor.root) == first
