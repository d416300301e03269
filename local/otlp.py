"""OTLP receivers by HTTP and gRPC, which keep what any OTLP backend would receive."""

import gzip
import http.server
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from local.programs import LOOPBACK, free_ports

Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """One accepted request. `headers` (gRPC: metadata) have lower-case names; `message` is the body."""

    path: str
    headers: Mapping[str, str]
    message: Any


@dataclass
class Receiver:
    """Listens between `start` and `stop`, on the same port each time; keeps each request that it answers with 200."""

    port: int = field(default_factory=free_ports)
    requests: list[Request] = field(default_factory=list)
    status: int = 200
    _server: http.server.ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def start(self) -> None:
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                if receiver._server is None:  # stopped: open connections get no answer either
                    self.close_connection = True
                    return
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if receiver.status == 200:
                    receiver.requests.append(_request(self.path, dict(self.headers.items()), body))
                self.send_response(receiver.status)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the library's name
                pass

        self._server = http.server.ThreadingHTTPServer((LOOPBACK, self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Refuses connections from now on, and keeps the requests received before."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @contextmanager
    def answering(self, status: int) -> Iterator[None]:
        """Answers every request with this status in the context, without keeping it."""
        self.status = status
        try:
            yield
        finally:
            self.status = 200

    @property
    def spans(self) -> list[tuple[Attributes, Span]]:
        """Each span with the attributes of its resource."""
        return [
            (attributes(resource.resource.attributes), span)
            for message in self._messages(ExportTraceServiceRequest)
            for resource in message.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def metrics(self) -> list[tuple[Attributes, Metric]]:
        """Each metric with the attributes of its resource."""
        return [
            (attributes(resource.resource.attributes), metric)
            for message in self._messages(ExportMetricsServiceRequest)
            for resource in message.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]

    @property
    def logs(self) -> list[tuple[Attributes, LogRecord]]:
        """Each log record with the attributes of its resource."""
        return [
            (attributes(resource.resource.attributes), record)
            for message in self._messages(ExportLogsServiceRequest)
            for resource in message.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]

    def _messages(self, kind: type[Message]) -> Iterator[Any]:
        return (request.message for request in list(self.requests) if isinstance(request.message, kind))


@dataclass
class GrpcReceiver(Receiver):
    """The same by gRPC. It ignores `status` and accepts every request."""

    _grpc: grpc.Server | None = None

    def start(self) -> None:
        self._grpc = grpc.server(ThreadPoolExecutor(2))
        handlers = [self._handler(path, kind) for path, kind in _METHODS.items()]
        self._grpc.add_generic_rpc_handlers(handlers)
        bound = self._grpc.add_insecure_port(f"{LOOPBACK}:{self.port}")
        if bound != self.port:
            raise OSError(f"port {self.port} is taken")
        self._grpc.start()

    def stop(self) -> None:
        if self._grpc:
            self._grpc.stop(grace=None).wait()
            self._grpc = None

    def _handler(self, service: str, kind: type[Message]) -> Any:
        def export(message: Message, context: grpc.ServicerContext) -> bytes:
            headers = {name: str(value) for name, value in context.invocation_metadata()}
            self.requests.append(Request(f"/{service}/Export", headers, message))
            return b""  # an empty response of OTLP means that all was accepted

        method = grpc.unary_unary_rpc_method_handler(export, request_deserializer=kind.FromString)
        return grpc.method_handlers_generic_handler(service, {"Export": method})


def attributes(pairs: Any) -> dict[str, Any]:
    """The attributes of a span, a data point or a resource as Python values."""

    def value(any_value: AnyValue) -> Any:
        kind = any_value.WhichOneof("value")
        if kind == "array_value":
            return [value(element) for element in any_value.array_value.values]
        return None if kind is None else getattr(any_value, kind)

    key_values: list[KeyValue] = list(pairs)
    return {pair.key: value(pair.value) for pair in key_values}


_KINDS: Mapping[str, type[Message]] = {
    "/v1/traces": ExportTraceServiceRequest,
    "/v1/metrics": ExportMetricsServiceRequest,
    "/v1/logs": ExportLogsServiceRequest,
}

_METHODS: Mapping[str, type[Message]] = {
    f"opentelemetry.proto.collector.{signal}.v1.{signal.title()}Service": kind
    for signal, kind in (
        ("trace", ExportTraceServiceRequest),
        ("metrics", ExportMetricsServiceRequest),
        ("logs", ExportLogsServiceRequest),
    )
}


def _request(path: str, headers: Mapping[str, str], body: bytes) -> Request:
    headers = {name.lower(): value for name, value in headers.items()}
    if headers.get("content-encoding") == "gzip":
        body = gzip.decompress(body)
    message = next(kind for end, kind in _KINDS.items() if path.endswith(end))()
    message.ParseFromString(body)
    return Request(path, headers, message)
