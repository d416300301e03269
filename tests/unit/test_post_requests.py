"""The telemetry of POST requests by `PostRequests` is the same as by OpenTelemetry's instrumentation, request by
request: spans, metrics and exemplars; on modelled servers.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, fields
from typing import Any

import pytest
from fastapi import FastAPI
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Metric
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.types import Message

from bronze.records.media import NDJSON
from bronze.servers import jetstream as js
from bronze.servers.catalog import SUBJECTS, NatsCatalog
from bronze.servers.jetstream import ApiError, Outgoing
from bronze.servers.key_value import KeyValueStore
from bronze.servers.queue import NatsQueue
from bronze.settings import Settings
from bronze.telemetry import sdk
from bronze.telemetry.post_requests import PostRequests
from bronze.telemetry.sdk import Telemetry
from bronze.telemetry.signals import attribute
from tests.contract.making import SOURCES, app_on, vehicle
from tests.delivery.servers import ModelBucket, ModelJetStream, QueueServer

CATALOG = "BRONZE_CATALOG_1"
INGEST = "/v1/ingest/vehicles"
A = vehicle("a")
CANARY = b'{"run_id":"r","number":1,"sent_at":"2026-11-24T12:34:56Z"}'
REMOTE = ("traceparent", f"00-{'ab' * 16}-00000000000000ef-01")
#: Attributes that differ for each request.
OF_ONE_REQUEST = {
    attribute.bronze_submission_id,
    attribute.bronze_classification_id,
    "exception.stacktrace",
}
UUID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Queue(ModelJetStream):
    """The queue. It can refuse, and it can be slow."""

    error: Exception | None = None
    waits = False

    def __init__(self, server: QueueServer) -> None:
        super().__init__(server)
        self.reached = asyncio.Event()

    async def publish(self, message: Outgoing) -> int:
        self.reached.set()
        if self.waits:
            await asyncio.Event().wait()
        if self.error:
            raise self.error
        return await super().publish(message)


class OnlyInstrumentation(Telemetry):
    """Telemetry by the instrumentation alone."""

    def instrument(self, app: Any, frequent: Sequence[str] = ()) -> None:
        super().instrument(app)


@dataclass
class Site:
    """The API on modelled servers, and its telemetry."""

    app: FastAPI
    queue: Queue
    telemetry: Telemetry
    reader: InMemoryMetricReader
    exporter: InMemorySpanExporter

    async def request(self, case: "Case") -> int | None:
        """The status of the answer, if there is one."""
        sent: list[Message] = []
        task = self.begin(case, sent)
        if case.waits:
            await self.queue.reached.wait()
            task.cancel()
        with suppress(asyncio.CancelledError, RuntimeError):
            await task
        return next((message["status"] for message in sent if message["type"] == "http.response.start"), None)

    def begin(self, case: "Case", sent: list[Message]) -> asyncio.Task[None]:
        self.queue.error, self.queue.waits, self.queue.reached = case.error, case.waits, asyncio.Event()
        pieces = iter(case.messages())

        async def receive() -> Message:
            return next(pieces)

        async def send(message: Message) -> None:
            sent.append(message)

        return asyncio.create_task(self._run(case.scope(), receive, send))

    async def _run(self, *arguments: Any) -> None:
        await self.app(*arguments)

    def signals(self) -> "Signals":
        data = self.reader.get_metrics_data()
        self.telemetry.flush()
        ended = self.exporter.get_finished_spans()
        names = {span.context.span_id: span.name for span in ended if span.context}
        return Signals(
            sorted((described(span, names) for span in ended), key=str),
            sorted(
                (scope.scope.name, scope.scope.version, scope.schema_url, metric.name, points(metric, names))
                for resource in (data.resource_metrics if data else ())
                for scope in resource.scope_metrics
                for metric in scope.metrics
                if not metric.name.startswith("otel.sdk.")
            ),
        )


@dataclass(frozen=True)
class Signals:
    spans: Sequence[Any]
    metrics: Sequence[Any]


@dataclass(frozen=True)
class Case:
    """A request: its method, path and headers, its body in pieces, and what the queue does."""

    path: str = INGEST
    method: str = "POST"
    query: bytes = b""
    headers: Sequence[tuple[str, str]] = ()
    body: Sequence[bytes] = (A,)
    #: the client is gone before the end of the body
    breaks_off: bool = False
    error: Exception | None = None
    waits: bool = False
    scheme: str = "http"
    server: tuple[str, int | None] | None = ("127.0.0.1", 8000)
    client: tuple[str, int] | None = ("192.0.2.1", 50_000)

    def scope(self) -> dict[str, Any]:
        headers = [("host", "localhost"), ("content-type", NDJSON), *self.headers]
        if not self.breaks_off:
            headers.append(("content-length", str(sum(map(len, self.body)))))
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": self.scheme,
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": "",
            "query_string": self.query,
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
            "server": self.server,
            "client": self.client,
            "state": {},
        }

    def messages(self) -> Sequence[Message]:
        pieces: list[Message] = [{"type": "http.request", "body": piece, "more_body": True} for piece in self.body]
        if not self.breaks_off:
            pieces.append({"type": "http.request", "body": b"", "more_body": False})
        return [*pieces, {"type": "http.disconnect"}]


def described(span: ReadableSpan, names: Mapping[int, str]) -> Any:
    """A span without what differs for each request."""
    scope, context = span.instrumentation_scope, span.parent
    assert scope
    return {
        "name": span.name,
        "kind": span.kind.name,
        "parent": (names.get(context.span_id, f"{context.span_id:x}"), context.is_remote) if context else None,
        "status": (span.status.status_code.name, without_ids(span.status.description)),
        "attributes": values(span.attributes),
        "events": [(event.name, values(event.attributes)) for event in span.events],
        "links": len(span.links),
        "scope": (scope.name, scope.version, scope.schema_url),
    }


def points(metric: Metric, names: Mapping[int, str]) -> Any:
    """Unit, description and points of a metric; a duration without its value."""
    return (
        metric.unit,
        metric.description,
        type(metric.data).__name__,
        getattr(metric.data, "is_monotonic", None),
        sorted(
            (
                values(point.attributes),
                getattr(point, "count", None),
                None if metric.unit == "s" else getattr(point, "sum", getattr(point, "value", None)),
                getattr(point, "explicit_bounds", None),
                sorted(
                    {  # how many there are depends on the buckets of the durations
                        (names.get(exemplar.span_id or 0, ""), str(values(exemplar.filtered_attributes)))
                        for exemplar in getattr(point, "exemplars", ())
                        if hasattr(point, "explicit_bounds")
                    }
                ),
            )
            for point in metric.data.data_points
        ),
    )


def values(attributes: Any) -> Any:
    return sorted(
        (key, "" if key in OF_ONE_REQUEST else without_ids(value)) for key, value in (attributes or {}).items()
    )


def without_ids(value: Any) -> Any:
    return UUID.sub("", value) if isinstance(value, str) else value


@asynccontextmanager
async def site(kind: type[Telemetry] | None = None) -> AsyncIterator[Site]:
    """The API with telemetry as it is, or of another kind."""
    reader, exporter = InMemoryMetricReader(), InMemorySpanExporter()
    telemetry = sdk.assemble(
        Resource({attribute.service_name: "api", attribute.service_instance_id: "i", attribute.service_version: "0"}),
        metric_readers=[reader],
        span_exporters=[lambda _: exporter],
    )
    if kind is not None:
        telemetry = kind(**{each.name: getattr(telemetry, each.name) for each in fields(telemetry)})
    server = QueueServer(time.time)
    server.create({"name": CATALOG, "subjects": SUBJECTS, "metadata": {}})
    jetstream, settings = Queue(server), Settings(deadline_s=1)
    key_values = KeyValueStore(jetstream, 1)
    await key_values.open()
    queue = NatsQueue(jetstream, key_values, settings)
    lanes = await queue.open(SOURCES)
    app = app_on(settings, lanes, queue, ModelBucket({}), NatsCatalog(jetstream, CATALOG), telemetry)
    yield Site(app, jetstream, telemetry, reader, exporter)
    await asyncio.to_thread(telemetry.shutdown)


KEY = ("idempotency-key", "k")
FULL = ApiError(js.STREAM_FULL, 503, "maximum bytes exceeded")

ACCEPTED = [
    Case(),
    Case(body=(A, b"\n", A)),
    Case(headers=[REMOTE, ("tracestate", "vendor=1"), ("baggage", "a=b")]),
    Case(headers=[(REMOTE[0], REMOTE[1][:-1] + "0")]),
    Case(headers=[("traceparent", "nonsense")]),
    Case(headers=[("user-agent", "curl/8.5.0")]),
    Case(headers=[("user-agent", "Googlebot/2.1"), ("user-agent", "other")]),
    Case(headers=[("user-agent", "caf\xe9")]),
    Case(query=b"classification_id=a%20b&on_invalid=refuse"),
    Case(query=b"on_invalid=quarantine", body=(A, b"\n{")),
    Case(scheme="https", server=("::1", 443), client=None),
    Case(server=("127.0.0.1", 80)),
    Case(server=("/run/api", None), client=("", 0)),
    Case(server=None),
    Case(path="/v1/ingest/canary", body=(CANARY,)),
]
#: Requests to one API, and the status of the last answer.
CASES: Mapping[str, tuple[Sequence[Case], int | None]] = {
    "accepted": (ACCEPTED, 202),
    "keyed replay": ([Case(headers=[KEY]), Case(headers=[KEY])], 202),
    "key of another body": ([Case(headers=[KEY]), Case(headers=[KEY], body=(vehicle("b"),))], 409),
    "does not fit": ([Case(body=(b'{"vehicle_id":"a","seats":"many"}',))], 422),
    "malformed": ([Case(body=(b"{",))], 400),
    "unknown source": ([Case(path="/v1/ingest/nothing")], 404),
    "unknown path": ([Case(path="/v1/ingest/a/b")], 404),
    "slash at the end": ([Case(path=f"{INGEST}/")], 307),
    "queue full": ([Case(error=FULL)], 503),
    "exception": ([Case(error=RuntimeError("broken"))], 500),
    "HEAD": ([Case(method="HEAD", body=())], 405),
    "GET": ([Case(method="GET", body=())], 405),
    "body breaks off": ([Case(breaks_off=True)], 400),
    "client leaves while the queue is slow": ([Case(waits=True)], None),
    "other route": ([Case(method="GET", path="/v1/sources", body=())], 200),
    "both kinds of routes": ([Case(), Case(method="GET", path="/v1/sources", body=()), Case(path="/login")], 404),
}


@pytest.mark.parametrize("name", CASES)
async def test_the_signals_are_those_of_the_instrumentation(name: str) -> None:
    requests, status = CASES[name]
    async with site() as ours, site(OnlyInstrumentation) as theirs:
        for request in requests:
            answered = await ours.request(request)
            assert await theirs.request(request) == answered
        assert answered == status
        found, expected = ours.signals(), theirs.signals()
        assert isinstance(ours.app.middleware_stack, PostRequests)
        assert not isinstance(theirs.app.middleware_stack, PostRequests)
    assert found.spans == expected.spans
    assert found.metrics == expected.metrics


async def test_the_size_of_a_response_is_that_of_its_own_request() -> None:
    """A request that is not answered has none; the instrumentation takes that of another one."""
    sizes = {}
    for kind in (None, OnlyInstrumentation):
        async with site(kind) as api:
            await api.request(Case())
            await api.request(Case(waits=True))
            sizes[kind] = [
                sum(point[1] for point in points[-1])
                for *_, name, points in api.signals().metrics
                if name == "http.server.response.body.size"
            ]
    assert sizes == {None: [1], OnlyInstrumentation: [2]}


async def test_requests_in_progress_are_counted_while_they_are() -> None:
    async with site() as api:
        await api.request(Case())
        tasks = []
        for _ in range(2):
            tasks.append(api.begin(Case(waits=True), []))
            await api.queue.reached.wait()
        counted = [active(api)]
        for task in tasks:
            task.cancel()
            await asyncio.wait([task])
            counted += [active(api), active(api)]
    assert counted == [2, 1, 1, 0, 0]


def active(api: Site) -> int:
    """How many POST requests are in progress, by the metric."""
    (found,) = [points for *_, name, points in api.signals().metrics if name == "http.server.active_requests"]
    ((attributes, _, number, *_),) = found[-1]
    assert attributes == [("http.request.method", "POST"), ("url.scheme", "http")]
    return int(number)


async def test_headers_that_the_standard_variables_name_are_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """`PostRequests` does not capture any, so all requests are recorded by the instrumentation."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST", "content-type")
    async with site() as api:
        await api.request(Case())
        attributes = [dict(span["attributes"]) for span in api.signals().spans]
    assert [one["http.request.header.content_type"] for one in attributes if "http.route" in one] == [(NDJSON,)]
