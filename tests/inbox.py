"""A receiver of events on a real socket, which answers as a test says, and remembers what it took."""

import http.server
import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from local.programs import LOOPBACK


@dataclass(frozen=True)
class Request:
    """A request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


#: Decides the answer to a request: a status with headers, or None to close the connection without one.
Answer = tuple[int, dict[str, str]] | None
OK: Answer = (204, {})


@dataclass
class Inbox:
    """`requests` are all that came, `taken` those that got a 2xx, or that were taken although their answer was lost.

    `script` has the answers of the next requests; after them, each is taken.
    """

    port: int
    requests: list[Request] = field(default_factory=list)
    taken: list[Request] = field(default_factory=list)
    script: list[Callable[[Request], Answer]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}/inbox?token=not-for-logs"

    def documents(self) -> list[Any]:
        with self.lock:
            return [request.document for request in self.taken]

    def answer(self, request: Request) -> Answer:
        with self.lock:
            self.requests.append(request)
            next_answer = self.script.pop(0) if self.script else None
        answer = next_answer(request) if next_answer else OK
        if answer and 200 <= answer[0] < 300:
            self.take(request)
        return answer

    def take(self, request: Request) -> None:
        with self.lock:
            self.taken.append(request)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    inbox: Inbox

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed closes its connection: that is what some tests are about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = self.server.inbox.answer(Request(self.path, dict(self.headers.items()), body))
        if answer is None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        status, headers = answer
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002  (the name of the base class)


@contextmanager
def open_inbox(port: int = 0, before: Iterable[Request] = ()) -> Iterator[Inbox]:
    """An inbox; with the port of an earlier one and what it took, the same one after a restart."""
    server = _Server((LOOPBACK, port), _Handler)
    server.inbox = Inbox(server.server_address[1], taken=list(before))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.inbox
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
