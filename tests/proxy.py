"""A proxy that makes the bucket slow."""

import re
import socket
import socketserver
import threading
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import unquote

from local.programs import LOOPBACK, free_ports

_PUT_OBJECT = re.compile(rb"PUT /[^/ ]+/(\S+\.parquet)[? ]")


@dataclass
class SlowBucket:
    """A proxy to the S3 server on the port `to`. It forwards bytes unchanged, because S3 signatures include the header
    Host.

    Each PutObject of an object is delayed by `delay_s`; `slowed` has the keys of the delayed objects.
    """

    to: int
    delay_s: float = 0
    port: int = field(default_factory=free_ports)
    slowed: set[str] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def __enter__(self) -> Self:
        bucket = self

        class Connection(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with closing(socket.create_connection((LOOPBACK, bucket.to))) as server:
                    answers = threading.Thread(target=_pass_on, args=(server, self.request), daemon=True)
                    answers.start()
                    bucket._requests(self.request, server)
                    answers.join()

        self._over = threading.Event()
        self._server = socketserver.ThreadingTCPServer((LOOPBACK, self.port), Connection)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        """Forwards requests. A client waits for each answer, so received data starts at a request."""
        with suppress(OSError):
            while part := client.recv(65536):
                if self.delay_s and (put := _PUT_OBJECT.match(part)):
                    self.slowed.add(unquote(put[1].decode()))
                    self._over.wait(self.delay_s)
                server.sendall(part)
            server.shutdown(socket.SHUT_WR)


def _pass_on(source: socket.socket, destination: socket.socket) -> None:
    with suppress(OSError):
        while part := source.recv(65536):
            destination.sendall(part)
        destination.shutdown(socket.SHUT_WR)
