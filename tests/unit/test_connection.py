"""The bounds on what a client may send before a request begins, on real connections to a trivial application."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from starlette.types import Receive, Scope, Send

from bronze.api.connection import PIPELINED_MAX, create_server
from bronze.api.problems import PROBLEM
from bronze.settings import Settings
from local.machine import limit_s

HEAD_BYTES_MAX = 4096
HEADERS_MAX = 20
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
SLOW = Settings(head_bytes_max=HEAD_BYTES_MAX, headers_max=HEADERS_MAX, connections_max=3)
HASTY = SLOW.model_copy(update={"head_s_max": 0.3})
IMPATIENT = SLOW.model_copy(update={"answer_stall_s_max": 0.3})
#: More than the buffers of both ends hold.
PIECES, PIECE = 1_000, b"x" * 2**16


@dataclass
class Server:
    port: int
    settings: Settings
    #: holds all answers until it is set
    answer: asyncio.Event = field(default_factory=asyncio.Event)
    requests: int = 0
    clients: list["Client"] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    #: set when a large answer was sent, or its client was closed
    large: asyncio.Event = field(default_factory=asyncio.Event)
    bodies: list[bytes] = field(default_factory=list)

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.requests += 1
        await self.answer.wait()
        if scope["path"] == "/large":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for number in range(PIECES):
                await send({"type": "http.response.body", "body": PIECE, "more_body": number < PIECES - 1})
            self.large.set()
            return
        body, more = b"", scope["path"] == "/body"
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def has_begun(self, requests: int) -> None:
        async with asyncio.timeout(limit_s(10)):
            while self.requests < requests:  # noqa: ASYNC110  it polls, with a deadline
                await asyncio.sleep(0.01)

    async def connect(self, *sent: bytes) -> "Client":
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        client = Client(reader, writer)
        self.clients.append(client)
        for piece in sent:
            await client.send(piece)
        return client


@dataclass
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, piece: bytes) -> None:
        self.writer.write(piece)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def read(self, until: bytes) -> bytes:
        async with asyncio.timeout(limit_s(10)):
            return await self.reader.readuntil(until)

    async def read_to_end(self) -> bytes:
        """What the server sends until it closes the connection."""
        received = b""
        async with asyncio.timeout(limit_s(10)):
            with contextlib.suppress(ConnectionError):
                while piece := await self.reader.read(2**16):
                    received += piece
        return received

    async def problem(self) -> Any:
        """The problem document with which the server closes the connection."""
        head, _, body = (await self.read_to_end()).partition(b"\r\n\r\n")
        document = json.loads(body)
        assert head.startswith(b"HTTP/1.1 %d " % document["status"])
        assert f"content-type: {PROBLEM}".encode() in head.lower()
        assert b"connection: close" in head.lower()
        return document


@pytest_asyncio.fixture
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    settings: Settings = getattr(request, "param", SLOW)
    made = Server(0, settings)
    made.answer.set()
    running = create_server(made.app, settings, 1, made.refused.append)
    listener = socket.create_server(("127.0.0.1", 0))
    made.port = listener.getsockname()[1]
    serving = asyncio.create_task(running._serve([listener]))
    yield made
    made.answer.set()
    for client in made.clients:
        client.writer.close()
        with contextlib.suppress(ConnectionError):
            await client.writer.wait_closed()
    running.should_exit = running.force_exit = True
    await serving


@pytest.mark.parametrize("cut", [0, 20, 119, 120, 125])
async def test_an_offer_of_another_protocol_is_ignored(cut: int, server: Server) -> None:
    """Java's clients and curl offer HTTP/2 with each request. The body counts, and the connection goes on."""
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM\r\n"
    request = b"POST /body HTTP/1.1\r\nHost: a\r\n" + offer + b"Content-Length: 7\r\n\r\nthe "
    client = await server.connect(request[:cut], request[cut:], b"end", REQUEST)
    for _ in range(2):
        assert b" 200 " in await client.read(b"ok")
    assert server.bodies == [b"the end", b""]


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nX: " + b"x" * HEAD_BYTES_MAX,  # never ends
        b"GET / HTTP/1.1\r\nX: " + b"x" * HEAD_BYTES_MAX + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: %s\r\n" % (b"x" * 500) * 9 + b"\r\n",
        b"GET /" + b"x" * HEAD_BYTES_MAX + b" HTTP/1.1\r\n\r\n",
        b"\r\n" * HEAD_BYTES_MAX,
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 2**20,
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"x" * 2**20,
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: %s\r\n" % (b"x" * 500) * 10,
    ],
    ids=["endless", "one header", "all together", "url", "line breaks", "chunk extension", "trailer", "trailers"],
)
@pytest.mark.parametrize("pieces", [1, 7])
async def test_a_head_is_not_larger_than_its_bound(server: Server, head: bytes, pieces: int) -> None:
    """Whatever part of it is large, whether it ends or not, and also behind a body. The answer names the setting."""
    server.answer.clear()
    step = len(head) // pieces + 1
    client = await server.connect(*(head[start : start + step] for start in range(0, len(head), step)))
    problem = await client.problem()
    assert (problem["type"], problem["status"]) == ("/problems/head-too-large", 431)
    assert (problem["limit"], problem["setting"]) == (HEAD_BYTES_MAX, "BRONZE_HEAD_BYTES_MAX")
    assert server.refused == ["head-too-large"]


async def test_a_request_has_a_bounded_number_of_headers(server: Server) -> None:
    client = await server.connect(b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * (HEADERS_MAX + 1) + b"\r\n")
    problem = await client.problem()
    assert (problem["type"], problem["setting"]) == ("/problems/head-too-large", "BRONZE_HEADERS_MAX")


@pytest.mark.parametrize("server", [IMPATIENT], indirect=True)
async def test_a_client_that_reads_nothing_of_its_answer_is_closed(server: Server) -> None:
    """Its answer then needs no memory any more."""
    await server.connect(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
    async with asyncio.timeout(limit_s(10)):
        await server.large.wait()


async def test_a_client_has_a_time_in_which_it_may_read_nothing(server: Server) -> None:
    await server.connect(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await server.large.wait()


async def test_bounds_are_per_request(server: Server) -> None:
    """A connection may be used for any number of requests whose heads and bodies together are large."""
    client = await server.connect()
    body = b"x" * (3 * HEAD_BYTES_MAX)
    for _ in range(3):
        await client.send(b"GET / HTTP/1.1\r\n" + b"A: %s\r\n" % (b"x" * 500) * 7 + b"\r\n")
        assert (await client.read(b"ok")).startswith(b"HTTP/1.1 200")
        await client.send(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert (await client.read(b"ok")).startswith(b"HTTP/1.1 200")
    assert server.requests == 6


@pytest.mark.parametrize("server", [HASTY], indirect=True)
@pytest.mark.parametrize("sent", [b"GET / HT", REQUEST[:-2], b"\r\n"], ids=["line", "headers", "line break"])
@pytest.mark.parametrize("after", [b"", REQUEST], ids=["first", "second"])
async def test_half_a_head_is_refused_after_its_time(server: Server, sent: bytes, after: bytes) -> None:
    client = await server.connect()
    if after:
        await client.send(after)
        await client.read(b"ok")
    await client.send(sent)
    problem = await client.problem()
    assert (problem["type"], problem["status"]) == ("/problems/head-too-slow", 408)
    assert problem["setting"] == "BRONZE_HEAD_S_MAX"
    assert server.refused == ["head-too-slow"]


@pytest.mark.parametrize("server", [HASTY], indirect=True)
async def test_a_silent_connection_is_closed(server: Server) -> None:
    client = await server.connect()
    assert await client.read_to_end() == b""


@pytest.mark.parametrize("server", [HASTY], indirect=True)
async def test_a_body_that_nobody_reads_does_not_keep_the_connection(server: Server) -> None:
    """Though each of its bytes ends uvicorn's wait for the next request."""
    client = await server.connect(b"POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n")
    await client.read(b"ok")
    closed = asyncio.create_task(client.read_to_end())
    async with asyncio.timeout(limit_s(10)):
        while not closed.done():
            await client.send(b"x")
            await asyncio.sleep(0.02)
    assert closed.result() == b""


@pytest.mark.parametrize("server", [HASTY], indirect=True)
async def test_half_a_head_does_not_cut_off_the_answer_before_it(server: Server) -> None:
    server.answer.clear()
    client = await server.connect(REQUEST + b"GET / HT")
    asyncio.get_running_loop().call_later(2 * HASTY.head_s_max, server.answer.set)
    assert (await client.read(b"ok")).startswith(b"HTTP/1.1 200")
    assert (await client.problem())["type"] == "/problems/head-too-slow"


async def test_the_number_of_waiting_requests_of_a_connection_is_bounded(server: Server) -> None:
    server.answer.clear()
    client = await server.connect(REQUEST * (PIPELINED_MAX + 2))
    assert (await client.problem())["type"] == "/problems/malformed-request"


async def test_the_connection_that_waits_longest_makes_room(server: Server) -> None:
    """Silent ones do not keep a sender out. The one whose request is in progress stays."""
    busy = await server.connect()
    server.answer.clear()
    await busy.send(REQUEST)
    await server.has_begun(1)
    silent = [await server.connect() for _ in range(4)]
    sender = await server.connect(REQUEST)
    for client in silent[:3]:
        assert await client.read_to_end() == b""
    server.answer.set()
    assert (await busy.read(b"ok")).startswith(b"HTTP/1.1 200")
    assert (await sender.read(b"ok")).startswith(b"HTTP/1.1 200")


async def test_above_the_number_of_connections_in_progress_the_answer_is_503(server: Server) -> None:
    server.answer.clear()
    busy = [await server.connect(REQUEST) for _ in range(SLOW.connections_max)]
    await server.has_begun(len(busy))
    one_more = await server.connect()
    problem = await one_more.problem()
    assert (problem["type"], problem["status"]) == ("/problems/overloaded", 503)
    assert server.refused == ["overloaded"]
    assert (problem["limit"], problem["setting"]) == (3, "BRONZE_CONNECTIONS_MAX")
    server.answer.set()
    for client in busy:
        assert (await client.read(b"ok")).startswith(b"HTTP/1.1 200")


async def test_what_is_not_http_is_a_problem_document(server: Server) -> None:
    client = await server.connect(b"\x16\x03\x01\x02\x00\r\n\r\n")
    assert (await client.problem())["type"] == "/problems/malformed-request"
    assert server.refused == ["malformed-request"]
