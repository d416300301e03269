"""The span and the measurements of POST requests, as OpenTelemetry's instrumentation of FastAPI makes them, for less.

The instrumentation collects everything that any request may need, several times, which takes longer than the rest of a
small submission. For the routes that are given here, this middleware makes the same span and the same measurements:
`tests/unit/test_post_requests.py` compares them, request by request. All other requests go on to the instrumentation.

Two differences are deliberate. The size of a response body is that of the request's own response (the instrumentation
takes the last one that any request sent), and a request that is not answered has none.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from http import HTTPStatus
from time import perf_counter
from typing import Any, Final, cast

from opentelemetry.context import attach, detach, get_current
from opentelemetry.instrumentation.asgi import asgi_getter
from opentelemetry.instrumentation.fastapi.version import __version__
from opentelemetry.instrumentation.utils import suppress_http_instrumentation
from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation
from opentelemetry.propagate import extract, get_global_textmap
from opentelemetry.semconv._incubating.attributes.user_agent_attributes import USER_AGENT_SYNTHETIC_TYPE
from opentelemetry.semconv._incubating.metrics import http_metrics
from opentelemetry.semconv.attributes.client_attributes import CLIENT_ADDRESS, CLIENT_PORT
from opentelemetry.semconv.attributes.url_attributes import URL_PATH, URL_QUERY
from opentelemetry.semconv.attributes.user_agent_attributes import USER_AGENT_ORIGINAL
from opentelemetry.semconv.schemas import Schemas
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider, set_span_in_context, use_span
from opentelemetry.util.http import detect_synthetic_user_agent
from opentelemetry.util.types import AttributeValue
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bronze.telemetry.signals import attribute

#: The scope of the instrumentation: in one scope, instruments of one name are one instrument.
SCOPE: Final = "opentelemetry.instrumentation.fastapi"
#: The bounds that the conventions advise, with which the instrumentation creates its histogram; views replace them.
_ADVISED: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_ERROR: Final = Status(StatusCode.ERROR)
_HTTP_PORT: Final = 80
_NO_SERVER: Final = ("0.0.0.0", _HTTP_PORT)  # noqa: S104  as the instrumentation says it

with suppress_http_instrumentation():
    #: The context of a request that the instrumentation leaves out.
    _OWN: Final = get_current()


class PostRequests:
    """Records the POST requests of the routes `paths`, which are tried in this order.

    `app` is the instrumented application, with its middleware.
    """

    def __init__(
        self, app: ASGIApp, paths: Sequence[str], tracer_provider: TracerProvider, meter_provider: MeterProvider
    ) -> None:
        self._app = app
        self._routes = [(compile_path(path)[0], path) for path in paths]
        self._trace_headers = {field.lower().encode("latin-1") for field in get_global_textmap().fields}
        schema_url = Schemas.V1_21_0.value
        self._tracer = tracer_provider.get_tracer(SCOPE, __version__, schema_url)
        meter = meter_provider.get_meter(SCOPE, __version__, schema_url)
        self._active = _ActiveRequests(meter)
        self._duration = meter.create_histogram(
            http_metrics.HTTP_SERVER_REQUEST_DURATION,
            "s",
            "Duration of HTTP server requests.",
            explicit_bucket_boundaries_advisory=_ADVISED,
        )
        self._request_size = http_metrics.create_http_server_request_body_size(meter)
        self._response_size = http_metrics.create_http_server_response_body_size(meter)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._route(scope)
        if route is None:
            await self._app(scope, receive, send)
            return
        start_s = perf_counter()
        headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))  # the first of several counts
        traced = not self._trace_headers.isdisjoint(headers)
        parent = extract(cast(dict[str, Any], scope), _OWN, asgi_getter) if traced else _OWN
        span = self._tracer.start_span(
            f"POST {route}", parent, SpanKind.SERVER, attributes=_span_attributes(scope, route, headers)
        )
        scheme: str = scope["scheme"]
        measured: dict[str, AttributeValue] = {
            attribute.http_request_method: "POST",
            attribute.url_scheme: scheme,
            attribute.network_protocol_version: scope["http_version"],
            attribute.http_route: route,
        }
        response_size: bytes | None = None

        async def send_recorded(message: Message) -> None:
            nonlocal response_size
            if message["type"] == "http.response.start":
                _set_status(span, message["status"], measured)
                response_size = _content_length(message.get("headers", ()))
                await send(message)
                return
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                span.end()

        token = attach(parent)
        self._active.begin(scheme)
        try:
            with use_span(span):
                await self._app(scope, receive, send_recorded)
        finally:
            of_span = set_span_in_context(span)
            self._duration.record(perf_counter() - start_s, measured, of_span)
            self._active.end(scheme)
            for histogram, size in (
                (self._request_size, headers.get(b"content-length")),
                (self._response_size, response_size),
            ):
                if size is not None and size.isdigit():
                    histogram.record(int(size), measured, of_span)
            detach(token)
            if span.is_recording():
                span.end()

    def _route(self, scope: Scope) -> str | None:
        """The route of a request that is recorded here."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope.get("root_path"):
            return None
        path: str = scope["path"]
        return next((route for pattern, route in self._routes if pattern.match(path)), None)


class _ActiveRequests:
    """The number of POST requests in progress, by scheme.

    The counter is the instrumentation's, which counts other requests with it. A change of it takes 9 us, so it gets the
    differences when it is collected: an instrument without values of its own is asked then.
    """

    def __init__(self, meter: Meter) -> None:
        self._counter = http_metrics.create_http_server_active_requests(meter)
        self._active: dict[str, int] = {}
        self._counted: dict[str, int] = {}
        meter.create_observable_up_down_counter("bronze.requests.active.counted", [self._count])

    def begin(self, scheme: str) -> None:
        self._active[scheme] = self._active.get(scheme, 0) + 1

    def end(self, scheme: str) -> None:
        self._active[scheme] -= 1

    def _count(self, _: CallbackOptions) -> Iterable[Observation]:
        for scheme, active in [*self._active.items()]:
            difference = active - self._counted.get(scheme, 0)
            self._counted[scheme] = active
            self._counter.add(difference, {attribute.http_request_method: "POST", attribute.url_scheme: scheme})
        return ()


def _span_attributes(scope: Scope, route: str, headers: Mapping[bytes, bytes]) -> dict[str, AttributeValue]:
    host, port = scope.get("client") or (None, None)
    query: bytes = scope["query_string"]
    return {
        **_of_connection(scope["scheme"], scope["http_version"], tuple(scope.get("server") or _NO_SERVER)),
        URL_PATH: scope["path"],
        **({URL_QUERY: query.decode("utf-8", "replace")} if query else {}),
        attribute.http_request_method: "POST",
        **_of_user_agent(headers.get(b"user-agent", b"")),
        **({CLIENT_ADDRESS: host} if host else {}),
        **({CLIENT_PORT: port} if port else {}),
        attribute.http_route: route,
    }


@lru_cache(64)
def _of_connection(scheme: str, version: str, server: tuple[str, int | None]) -> Mapping[str, AttributeValue]:
    host, port = server
    return {
        attribute.url_scheme: scheme,
        attribute.server_address: host if port == _HTTP_PORT else f"{host}:{port}",
        **({attribute.server_port: port} if port else {}),
        attribute.network_protocol_version: version,
    }


@lru_cache(64)
def _of_user_agent(header: bytes) -> Mapping[str, AttributeValue]:
    if not header:
        return {}
    try:
        name = header.decode()
    except UnicodeDecodeError:
        name = header.decode("latin-1")
    synthetic = detect_synthetic_user_agent(name)
    return {USER_AGENT_ORIGINAL: name, **({USER_AGENT_SYNTHETIC_TYPE: synthetic} if synthetic else {})}


def _set_status(span: Span, status: int, measured: dict[str, AttributeValue]) -> None:
    outcome: dict[str, AttributeValue] = {attribute.http_response_status_code: status}
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        outcome[attribute.error_type] = str(status)
    measured |= outcome
    if span.is_recording():
        span.set_attributes(outcome)
        if attribute.error_type in outcome:
            span.set_status(_ERROR)


def _content_length(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    return next((value for name, value in headers if name == b"content-length"), None)
