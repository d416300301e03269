"""The small HTTP server of the roles that have none of their own: `/metrics` and `/livez`, in threads."""

import http.server
import json
import socketserver
import threading
from collections.abc import Callable, Mapping
from typing import Any, Self

from bronze.errors import Misconfigured

_REQUEST_S_MAX = 10
_POLL_S = 0.1  # how long `close` may take


class MetricsServer:
    """Serves from its making on until `close`. Raises `Misconfigured` that names a taken port and its variable."""

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
                        self._answer(404, "text/plain", b"/metrics and /livez are here\n")

            def _answer(self, status: int, content_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the library's name
                pass  # a scrape is no news

        try:
            self._server = _Server((host, port), Handler)
        except OSError as error:
            raise Misconfigured(
                f"{host}:{port} cannot be listened on ({error.strerror}): "
                f"set OTEL_EXPORTER_PROMETHEUS_PORT (or _HOST) to what is free"
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
    # not http.server's, which asks the name service for our name when it binds
    allow_reuse_address = True
    daemon_threads = True
