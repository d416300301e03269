"""With access/token.yaml, the collector takes telemetry from those only who have the token."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from local import servers
from local.builds import Built
from local.programs import LOOPBACK, Process, free_ports, start
from tests.system.blackbox import until

TOKEN = "the-token"
LAYERS = ("metrics/prometheus-remote-write", "traces/file", "logs/none")
REQUEST = ExportTraceServiceRequest(resource_spans=[ResourceSpans()]).SerializeToString()


@pytest.fixture(scope="module")
def collector(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    state = tmp_path_factory.mktemp("collector")
    ratio = {"COLLECTOR_TRACES_RATIO": "1"}
    program = servers.collector(
        state,
        free_ports(servers.COLLECTOR_PORTS),
        "a",
        executable=built.collector,
        layers=LAYERS,
        token=TOKEN,
        env=ratio,
    )
    with start(program, state / "log") as process:
        yield process


def files(collector: Process) -> Path:
    return collector.log.parent / "files"


@pytest.mark.parametrize("receiver", ["otlp", "remote-write"])
@pytest.mark.parametrize(
    ("header", "status"),
    [(None, 401), ("Bearer another", 401), (TOKEN, 401), ("Basic dGhlIHRva2Vu", 401), (f"Bearer {TOKEN}", 200)],
)
@pytest.mark.parametrize("signal", ["traces", "metrics", "logs"])
def test_without_the_token_nothing_is_accepted(
    collector: Process, receiver: str, header: str | None, status: int, signal: str
) -> None:
    """By any receiver; its own, in front of the remote write, takes metrics alone."""
    url = f"http://{LOOPBACK}:{collector.program.ports[receiver]}/v1/{signal}"
    headers = {"Content-Type": "application/json"} | ({"Authorization": header} if header else {})
    answer = httpx.post(url, content=b"{}", headers=headers, trust_env=False)
    takes = receiver == "otlp" or signal == "metrics"
    assert answer.status_code == (404 if status == 200 and not takes else status)


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        ((), grpc.StatusCode.UNAUTHENTICATED),
        ((("authorization", "Bearer another"),), grpc.StatusCode.UNAUTHENTICATED),
        ((("authorization", f"Bearer {TOKEN}"),), None),
    ],
)
def test_the_same_by_grpc(
    collector: Process, metadata: tuple[tuple[str, str], ...], code: grpc.StatusCode | None
) -> None:
    with grpc.insecure_channel(f"{LOOPBACK}:{collector.program.ports['otlp.grpc']}") as channel:
        export = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
        try:
            export(REQUEST, timeout=10, metadata=metadata)
        except grpc.RpcError as error:
            assert error.code() is code  # noqa: PT017
        else:
            assert code is None


def test_no_web_page_can_send(collector: Process) -> None:
    """It may not even ask: no origin is allowed."""
    preflight = {
        "Origin": "https://elsewhere.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    url = f"http://{LOOPBACK}:{collector.program.ports['otlp']}/v1/traces"
    answer = httpx.options(url, headers=preflight, trust_env=False)
    assert not {name for name in answer.headers if name.startswith("access-control-")}


def test_the_standard_variable_has_the_token(collector: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the collector traces of itself arrives, too."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{LOOPBACK}:{collector.program.ports['otlp']}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20the-token")
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
    provider.get_tracer("test").start_span("by the standard variable").end()
    provider.shutdown()

    def written() -> str:
        return "".join(file.read_text() for file in files(collector).glob("traces*.json"))

    until("both are written", lambda: "by the standard variable" in written() and '"otel-collector"' in written())
