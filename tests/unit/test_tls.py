"""TLS with a certificate authority of one's own: the API's, and that of each client of ours, by its setting."""

import asyncio
import http.server
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
import trustme
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from starlette.types import Receive, Scope, Send

from bronze import client
from bronze.api.certificate import Certificate, certificate_of
from bronze.api.connection import create_server
from bronze.errors import Misconfigured, Unavailable
from bronze.servers.prometheus import Prometheus
from bronze.servers.s3 import S3Bucket
from bronze.settings import Settings
from bronze.telemetry.losses import CountedSpans
from bronze.wiring.http_servers import open_prometheus
from local.machine import limit_s

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Authority:
    """A private certificate authority; `file` has its certificate."""

    folder: Path
    ca: trustme.CA = field(default_factory=trustme.CA)

    @property
    def file(self) -> Path:
        path = self.folder / "authority.pem"
        self.ca.cert_pem.write_to_path(path)
        return path

    def issue(self, *names: str) -> tuple[Path, Path]:
        """New files of a certificate and its key, in the same places."""
        issued = self.ca.issue_cert(*names or (LOOPBACK,))
        paths = self.folder / "certificate.pem", self.folder / "key.pem"
        issued.cert_chain_pems[0].write_to_path(paths[0])
        issued.private_key_pem.write_to_path(paths[1])
        return paths


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def serial_of(port: int, authority: Authority) -> int:
    """The serial number of the certificate that a server shows."""
    trusting = ssl.create_default_context(cafile=authority.file)
    with (
        socket.create_connection((LOOPBACK, port), 10) as plain,
        trusting.wrap_socket(plain, server_hostname=LOOPBACK) as tls,
    ):
        shown = tls.getpeercert()
    assert shown is not None
    return int(str(shown["serialNumber"]), 16)


# --- the API


@dataclass(frozen=True)
class Api:
    port: int
    certificate: Certificate


@pytest_asyncio.fixture
async def api(authority: Authority) -> AsyncIterator[Api]:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})

    cert_file, key_file = authority.issue()
    settings = Settings(tls_cert_file=cert_file, tls_key_file=key_file)
    certificate = certificate_of(settings)
    assert certificate is not None
    server = create_server(app, settings, 1, lambda _: None, certificate.context)
    with socket.create_server((LOOPBACK, 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        yield Api(listener.getsockname()[1], certificate)
        server.should_exit = True
        async with asyncio.timeout(limit_s(10)):
            await serving


async def test_commands_reach_the_api_by_tls_if_they_trust_its_authority(
    api: Api, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`SSL_CERT_FILE` names it, for publisher, canary and every command."""
    settings = Settings(api_url=f"https://{LOOPBACK}:{api.port}")
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    async with client.connect_async(settings) as stranger:
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            await stranger.get("/livez")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    async with client.connect_async(settings) as trusting:
        assert (await trusting.get("/livez")).status_code == 200

    def blocking() -> int:
        with client.connect(settings) as publisher:
            return publisher.get("/livez").status_code

    assert await asyncio.to_thread(blocking) == 200


async def test_the_api_speaks_tls_1_2_at_least(api: Api, authority: Authority) -> None:
    assert api.certificate.context.minimum_version is ssl.TLSVersion.TLSv1_2
    plain, unencrypted = await asyncio.open_connection(LOOPBACK, api.port)
    unencrypted.write(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
    async with asyncio.timeout(limit_s(10)):
        answered = b"HTTP/" in await plain.read()
    unencrypted.close()
    assert not answered


async def test_a_renewed_certificate_is_used_without_a_restart(
    api: Api, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """One that cannot be used is not: the earlier one stays."""
    first = await asyncio.to_thread(serial_of, api.port, authority)
    authority.issue()
    api.certificate.renew()
    second = await asyncio.to_thread(serial_of, api.port, authority)
    assert second != first
    (authority.folder / "key.pem").write_text("half a ke")
    api.certificate.renew()
    assert "the changed TLS certificate cannot be used" in caplog.text
    assert await asyncio.to_thread(serial_of, api.port, authority) == second


def test_files_that_are_no_certificate_are_a_wrong_setting(tmp_path: Path, authority: Authority) -> None:
    cert_file, key_file = authority.issue()
    (tmp_path / "text").write_text("no certificate")
    for wrong in ((tmp_path / "missing", key_file), (tmp_path / "text", key_file), (cert_file, tmp_path / "text")):
        with pytest.raises(Misconfigured, match="BRONZE_TLS_CERT_FILE"):
            certificate_of(Settings(tls_cert_file=wrong[0], tls_key_file=wrong[1]))
    with pytest.raises(ValueError, match="set both, or none"):
        Settings(tls_cert_file=cert_file)
    assert certificate_of(Settings.model_validate({"tls_cert_file": "", "tls_key_file": ""})) is None


# --- the clients of other servers


@pytest.fixture
def server(authority: Authority) -> Iterator[str]:
    """The address of an HTTPS server that answers every request as Prometheus answers one without a result."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b'{"data": {"result": []}}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_POST = do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            pass

    class Listener(http.server.ThreadingHTTPServer):
        def handle_error(self, *refused: object) -> None:
            """A client that does not trust the authority ends the handshake."""

    listener = Listener((LOOPBACK, 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue())
    listener.socket = context.wrap_socket(listener.socket, server_side=True, do_handshake_on_connect=False)
    serving = threading.Thread(target=listener.serve_forever)
    serving.start()
    yield f"https://{LOOPBACK}:{listener.server_address[1]}"
    listener.shutdown()
    serving.join()
    listener.server_close()


async def bucket(url: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
    opened = S3Bucket(Settings())
    try:
        await opened.check()
    except Unavailable as error:
        assert "certificate verify failed" in str(error)  # noqa: PT017
        return False
    finally:
        opened.close()
    return True


async def figures(url: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    async with open_prometheus(Settings(prometheus_url=url), 10) as prometheus:
        assert isinstance(prometheus, Prometheus)
        try:
            await prometheus.vector("up")
        except Unavailable as error:
            assert "certificate" in str(error).lower()  # noqa: PT017
            return False
    return True


async def spans(url: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2")
    exporter: SpanExporter = CountedSpans(NoOpMeterProvider())
    assert isinstance(exporter.wrapped, OTLPSpanExporter)  # type: ignore[attr-defined]
    span = TracerProvider().get_tracer("test").start_span("a span")
    span.end()
    try:
        return await asyncio.to_thread(exporter.export, [span]) is SpanExportResult.SUCCESS  # type: ignore[list-item]
    finally:
        exporter.shutdown()


@pytest.mark.parametrize(
    ("variable", "reach"),
    [("AWS_CA_BUNDLE", bucket), ("SSL_CERT_FILE", figures), ("OTEL_EXPORTER_OTLP_CERTIFICATE", spans)],
)
async def test_a_client_trusts_the_authority_that_its_variable_names(
    server: str,
    authority: Authority,
    variable: str,
    reach: Callable[[str, pytest.MonkeyPatch], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without it, or with another authority, nothing is sent: bucket, Prometheus and trace store, telemetry."""
    for name in ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    other = authority.folder / "other"
    other.mkdir()
    assert await reach(server, monkeypatch) is False  # type: ignore[misc]
    monkeypatch.setenv(variable, str(Authority(other).file))
    assert await reach(server, monkeypatch) is False  # type: ignore[misc]
    monkeypatch.setenv(variable, str(authority.file))
    assert await reach(server, monkeypatch) is True  # type: ignore[misc]
