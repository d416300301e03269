"""The HTTP server's connections, with bounds on what a client may send before a request begins.

uvicorn accepts a head of any size and waits for its end forever. A connection that waits for a head costs the least to
its client, so if there are too many connections, the one that has waited longest is closed.
"""

import asyncio
import json
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress

import httptools
import uvicorn
from fastapi import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from bronze.api.problems import PROBLEM, document, outside_of_app
from bronze.errors import ErrorCode, Outage, Refusal
from bronze.settings import Settings

#: Requests of one connection that wait for the answer of an earlier one.
PIPELINED_MAX = 16
#: The headers and connection options with which a client offers another protocol.
_UPGRADE_HEADERS = frozenset({b"upgrade", b"http2-settings"})
#: The bytes of a header besides its name and its value.
SEPARATORS_BYTES = len(b": \r\n")


def create_server(
    app: ASGIApp,
    settings: Settings,
    stop_grace_s: float,
    on_refused: Callable[[ErrorCode], None],
    tls: ssl.SSLContext | None = None,
) -> uvicorn.Server:
    """The HTTP server, by TLS with a context. Requests in progress have `stop_grace_s` to end when it stops.

    `on_refused` is called for each answer that is given without a request.
    """
    return uvicorn.Server(
        uvicorn.Config(
            _StopAnswered(app),
            interface="asgi3",
            http=connection_class(settings, on_refused),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=int(stop_grace_s),
            ssl_context_factory=(lambda _, __: tls) if tls else None,
        )
    )


class _StopAnswered:
    """Answers requests that the stop of the server cancels: with uvicorn's 500, a client would not send them again."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            with suppress(RuntimeError):  # if the answer had begun
                await _stopped()(scope, receive, send)
                return
            raise


def _stopped() -> Response:
    return outside_of_app(
        Outage.OUTCOME_UNKNOWN,
        "The API stopped before the request was done, so it may have been carried out. Send it again, with the same "
        "Idempotency-Key if it had one.",
    )


def connection_class(settings: Settings, on_refused: Callable[[ErrorCode], None]) -> type[HttpToolsProtocol]:
    """The connections of one server, which share their number."""

    class Connection(BoundedConnection):
        bounds = settings
        count_refused = staticmethod(on_refused)
        waiting: dict[BoundedConnection, None] = {}  # noqa: RUF012  shared by the connections of one server

    return Connection


class _Parser(httptools.HttpRequestParser):
    """A parser that does not end at the offer of another protocol, such as HTTP/2."""

    def __init__(self, connection: "BoundedConnection") -> None:
        super().__init__(connection)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn
        self._connection = connection

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]  # as uvicorn calls it
        try:
            super().feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self.get_method() == b"CONNECT":
                raise
            self._connection.ignore_upgrade(data[upgrade.args[0] :])


class BoundedConnection(HttpToolsProtocol):
    """A connection whose heads have bounds of size, number of headers and time, and whose number is bounded.

    `waiting` has the connections that wait for a head, the longest first.
    """

    bounds: Settings
    count_refused: Callable[[ErrorCode], None]
    waiting: dict["BoundedConnection", None]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        super().connection_made(transport)
        #: bytes since the parser last completed a head or delivered a piece of a body
        self._unparsed_bytes = 0
        self._head_bytes = 0
        self._upgrade_ignored = False
        self.parser = _Parser(self)
        self._in_head = False
        self._in_body = False
        self._refused: tuple[ErrorCode, str, Mapping[str, object]] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._wait_for_head()
        if len(self.connections) > self.bounds.connections_max:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self.waiting.pop(self, None)
        self._stop_timer()
        self._stop_stalled()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The answer waits for the client. A client that reads nothing must not hold its memory forever."""
        super().pause_writing()
        self._stop_stalled()
        self._stalled = self.loop.call_later(self.bounds.answer_stall_s_max, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_stalled()

    def _stop_stalled(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def data_received(self, data: bytes) -> None:
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self._unparsed_bytes > self.bounds.head_bytes_max:
            self._refuse_head()
            self._answer_refusal()
        elif self._in_head or (self._unparsed_bytes and not self._in_body):
            self._start_timer()

    def ignore_upgrade(self, rest: bytes) -> None:
        """Parse the request again without its offer of another protocol, which a server may ignore (RFC 9110, 7.8)."""
        head = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                options = {option.strip() for option in value.lower().split(b",")} - _UPGRADE_HEADERS
                head.append(b"connection: " + b", ".join(options))
            elif name not in _UPGRADE_HEADERS:
                head.append(b"%s: %s" % (name, value))
        self._upgrade_ignored = False
        self.parser = _Parser(self)
        self.parser.feed_data(b"\r\n".join([*head, b"\r\n"]) + rest)

    # --- the parser's callbacks

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._add_to_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._add_to_head(len(name) + len(value) + SEPARATORS_BYTES)
        super().on_header(name, value)
        if len(self.headers) > self.bounds.headers_max:
            raise self._refusal(
                Refusal.HEAD_TOO_LARGE,
                f"The request has more than {self.bounds.headers_max} headers (BRONZE_HEADERS_MAX).",
                limit=self.bounds.headers_max,
                setting="BRONZE_HEADERS_MAX",
            )

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._upgrade_ignored = True  # the parser ends here, and takes what follows for another protocol
            return
        if len(self.pipeline) >= PIPELINED_MAX:
            raise self._refusal(
                Refusal.MALFORMED_REQUEST,
                f"More than {PIPELINED_MAX} requests were sent before the answer of an earlier one. Wait for answers, "
                "or use several connections.",
                limit=PIPELINED_MAX,
            )
        self._unparsed_bytes = 0
        self._in_head = False
        self._in_body = True
        self._stop_timer()
        self.waiting.pop(self, None)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._upgrade_ignored:
            return
        self._unparsed_bytes = 0
        self._in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body:
            self._start_timer()  # of the rest of a body that nobody reads, and of the next head
        if self.cycle.response_complete:  # it is not if a pipelined request was waiting
            self.waiting[self] = None

    # --- bounds

    def _add_to_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self.bounds.head_bytes_max:
            raise self._refuse_head()

    def _refuse_head(self) -> httptools.HttpParserError:
        limit = self.bounds.head_bytes_max
        return self._refusal(
            Refusal.HEAD_TOO_LARGE,
            f"Request line and headers are larger than {limit} bytes (BRONZE_HEAD_BYTES_MAX).",
            limit=limit,
            setting="BRONZE_HEAD_BYTES_MAX",
        )

    def _wait_for_head(self) -> None:
        self.waiting[self] = None
        self._start_timer()

    def _start_timer(self) -> None:
        if self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self.bounds.head_s_max, self._on_late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_late(self) -> None:
        self._timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._start_timer()  # the answer of an earlier request comes first
        elif self._in_head or (self._unparsed_bytes and not self._in_body):
            self._refusal(
                Refusal.HEAD_TOO_SLOW,
                f"The request's headers were not complete after {self.bounds.head_s_max:g} s (BRONZE_HEAD_S_MAX).",
                limit=self.bounds.head_s_max,
                setting="BRONZE_HEAD_S_MAX",
            )
            self._answer_refusal()
        else:
            self.transport.close()

    def _make_room(self) -> None:
        """Close the connection that waits longest; this one, if all others have a request in progress."""
        longest = next(iter(self.waiting))
        if longest is not self:
            longest.waiting.pop(longest)
            longest.transport.close()
            return
        limit = self.bounds.connections_max
        self._refusal(
            Outage.OVERLOADED,
            f"All {limit} connections have a request in progress (BRONZE_CONNECTIONS_MAX). Try again later.",
            limit=limit,
            setting="BRONZE_CONNECTIONS_MAX",
        )
        self._answer_refusal()

    # --- answers without a request

    def _refusal(self, code: ErrorCode, detail: str, **members: object) -> httptools.HttpParserError:
        """Note why the connection will be closed; to be raised in a callback, which ends the parser."""
        self._refused = code, detail, members
        return httptools.HttpParserError(detail)

    def _answer_refusal(self) -> None:
        self.send_400_response("Invalid HTTP request received.")

    def send_400_response(self, msg: str) -> None:
        """Answer with a problem document, unless the answer of a request in progress comes first, and close."""
        if self.transport.is_closing():
            return
        code, detail, members = self._refused or (Refusal.MALFORMED_REQUEST, msg, {})
        self.count_refused(code)
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = json.dumps(document(code.status, code, detail, members)).encode()
            retry = b"retry-after: 1\r\n" if isinstance(code, Outage) else b""
            self.transport.write(
                STATUS_LINE[code.status]
                + b"content-type: %s\r\ncontent-length: %d\r\n%sconnection: close\r\n\r\n%s"
                % (PROBLEM.encode(), len(body), retry, body)
            )
        self.transport.close()
