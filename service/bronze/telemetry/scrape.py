"""The HTTP server of roles without an API: `/metrics` and `/livez`, in threads."""

import http.server
import json
import logging
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, Self

from bronze.errors import Misconfigured

log = logging.getLogger(__name__)

_REQUEST_S_MAX = 10
_POLL_S = 0.1  # the longest time that `close` takes


class CannotListen(Misconfigured):
    """The port is in use, or the address is not one of this machine; the message names the variable."""


class MetricsServer:
    """Serves from its creation until `close`. Raises `CannotListen`."""

    def __init__(
        self,
        host: str,
        port: int,
        metrics: Callable[[], tuple[bytes, str]],
        alive: Callable[[], Mapping[str, str]],
    ) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            timeout = _REQUEST_S_MAX

            def do_GET(self) -> None:
                match self.path.partition("?")[0]:
                    case "/metrics":
                        body, content_type = metrics()
                        self._answer(200, content_type, body)
                    case "/livez":
                        self._answer(200, "application/json", json.dumps(alive()).encode())
                    case _:
                        self._answer(404, "text/plain", b"this server has only /metrics and /livez\n")

            def _answer(self, status: int, content_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the library's name
                pass  # regular scrapes would fill the log

        try:
            self._server = _Server((host, port), Handler)
        except OSError as error:
            raise CannotListen(
                f"cannot listen on {host}:{port} ({error.strerror}): "
                f"set OTEL_EXPORTER_PROMETHEUS_PORT (or _HOST) to a free port"
            ) from error
        self.host, self.port = self._server.server_address[:2]
        threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), name="metrics", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Server(socketserver.ThreadingTCPServer):
    # http.server's own class is not used: it asks the name service for the host name when it binds
    allow_reuse_address = True
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):  # else the client does not wait any more
            log.error("a request to the port of /metrics failed", exc_info=error)
