"""A proxy that makes the bucket slow, and notes what became of each PutObject."""

import math
import re
import socket
import socketserver
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import unquote

from local.programs import LOOPBACK, free_ports

_PUT_OBJECT = re.compile(rb"PUT /[^/ ]+/(\S+\.parquet)[? ]")
_STATUS = re.compile(rb"HTTP/1\.1 ([2-5]\d\d) ")


@dataclass
class Put:
    """A PutObject of an object. It has the status 0 without an answer, and has not ended before `ended`."""

    key: str
    began: float
    ended: float = math.inf
    status: int = 0

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def succeeded(self) -> bool:
        return 200 <= self.status < 300

    @property
    def failed(self) -> bool:
        """Whether it ended without success. 412 says that the object was there."""
        return math.isfinite(self.ended) and not self.succeeded and self.status != 412


@dataclass
class SlowBucket:
    """A proxy to the S3 server on the port `to`. It forwards bytes unchanged, because S3 signatures include the header
    Host.

    Each PutObject of an object is delayed by `delay_s`; `slowed` has the keys of the delayed objects, `puts` every
    attempt.
    """

    to: int
    delay_s: float = 0
    port: int = field(default_factory=free_ports)
    slowed: set[str] = field(default_factory=set)
    puts: list[Put] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def __enter__(self) -> Self:
        bucket = self

        class Connection(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError):
                    bucket._connection(self.request)

        self._over = threading.Event()
        self._server = socketserver.ThreadingTCPServer((LOOPBACK, self.port), Connection)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def _connection(self, client: socket.socket) -> None:
        unanswered: list[Put] = []
        try:
            with closing(socket.create_connection((LOOPBACK, self.to))) as server:
                answers = threading.Thread(target=_answers, args=(server, client, unanswered), daemon=True)
                answers.start()
                self._requests(client, server, unanswered)
                answers.join()
        except ConnectionRefusedError:
            self._note(client.recv(65536), unanswered)
        finally:
            for put in unanswered:
                put.ended = time.time()

    def _requests(self, client: socket.socket, server: socket.socket, unanswered: list[Put]) -> None:
        """Forwards requests. A client waits for each answer, so received data starts at a request."""
        with suppress(OSError):
            while part := client.recv(65536):
                put = self._note(part, unanswered)
                if self.delay_s and put:
                    self.slowed.add(put.key)
                    self._over.wait(self.delay_s)
                server.sendall(part)
            server.shutdown(socket.SHUT_WR)

    def _note(self, part: bytes, unanswered: list[Put]) -> Put | None:
        found = _PUT_OBJECT.match(part)
        if found is None:
            return None
        put = Put(unquote(found[1].decode()), time.time())
        self.puts.append(put)
        unanswered.append(put)
        return put


def _answers(server: socket.socket, client: socket.socket, unanswered: list[Put]) -> None:
    """Forwards answers. The client learns if the server ends."""
    with suppress(OSError):
        while part := server.recv(65536):
            status = _STATUS.search(part)  # it may follow a 100
            if status and unanswered:
                put = unanswered.pop()
                put.status, put.ended = int(status[1]), time.time()
            client.sendall(part)
    with suppress(OSError):
        client.shutdown(socket.SHUT_WR)
