"""Which identity can do what at each port of the started system: the table of docs/security.md, and how each cell is
tried.

A new port needs at least one `Right` here, with an attempt; `test_ports` finds ports without one.
"""

import json
import socket
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import boto3
import httpx
import trustme
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import NoSuchNamespaceError, RESTError

from local import servers
from local.programs import LOOPBACK
from local.stack import Stack
from tests.system.blackbox import NDJSON, vehicles

NOBODY = "nobody"
#: Somebody with a key, token or certificate that was not issued here.
WRONG_KEY = "wrong key"
#: A web page from elsewhere, in a browser on this machine: it has no key, and it must not read the answer either.
WEB_PAGE = "web page"
STRANGERS = (NOBODY, WRONG_KEY, WEB_PAGE)
#: The bucket's accounts.
ACCOUNTS = (*servers.S3_RIGHTS,)
#: What every role has: the token of the collector.
ROLE = "role"
#: The roles whose port is only for metrics and probes.
ROLES = ("consumer", "publisher", "canary", "table", "notify", "retain")
#: Every program on this machine, but no web page.
PROGRAMS = (NOBODY, WRONG_KEY)

ORIGIN = "https://elsewhere.example"


@dataclass(frozen=True)
class Right:
    """What can be done at a port, and the identities that can."""

    program: str
    port: str
    what: str
    who: tuple[str, ...]
    #: Tries it as an identity, and returns whether it was done.
    attempt: Callable[[Stack, int, str], bool]
    #: The identities as which it is tried.
    tried: tuple[str, ...] = STRANGERS


def _http(method: str, path: str, body: bytes | None = None, *, scheme: str = "http", **headers: str) -> Any:
    """An attempt by HTTP: as somebody with a wrong key, as a web page, or without anything."""

    def attempt(_: Stack, port: int, identity: str) -> bool:
        return _done(method, f"{scheme}://{LOOPBACK}:{port}{path}", body, headers, identity)

    return attempt


def _done(method: str, url: str, body: bytes | None, headers: dict[str, str], identity: str) -> bool:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    verify: ssl.SSLContext = ssl.create_default_context()
    verify.check_hostname, verify.verify_mode = False, ssl.CERT_NONE
    if identity == WRONG_KEY:
        sent.setdefault("Authorization", "Bearer wrong")
        trustme.CA().issue_cert(LOOPBACK).configure_cert(verify)
    with httpx.Client(verify=verify, trust_env=False, timeout=10) as client:
        try:
            if identity == WEB_PAGE:
                sent["Origin"] = ORIGIN
                if method not in {"GET", "HEAD"} or "Authorization" in sent:  # a browser asks first
                    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": method}
                    if not _readable(client.options(url, headers=asked)):
                        return False
            answer = client.request(method, url, content=body, headers=sent)
        except httpx.TransportError:
            return False
    return answer.is_success and (identity != WEB_PAGE or _readable(answer))


def _readable(answer: httpx.Response) -> bool:
    return answer.headers.get("Access-Control-Allow-Origin") in {"*", ORIGIN}


def _s3(call: Callable[[Any, str], object]) -> Callable[[Stack, int, str], bool]:
    """An attempt by S3, with an account or a wrong one."""

    def attempt(stack: Stack, port: int, identity: str) -> bool:
        if identity in {NOBODY, WEB_PAGE}:
            return _done("GET", f"http://{LOOPBACK}:{port}/{stack.account.bucket}", None, {}, identity)
        account = servers.S3Account(port, "bronze-admin", "wrong", stack.account.bucket)
        if identity in ACCOUNTS:
            account = servers.s3_account(stack.root / "seaweedfs", port, identity=identity)
        client = boto3.client(
            "s3",
            endpoint_url=f"http://{LOOPBACK}:{port}",
            aws_access_key_id=account.access_key,
            aws_secret_access_key=account.secret_key,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, proxies={}),
        )
        try:
            call(client, account.bucket)
        except (ClientError, BotoCoreError):
            return False
        finally:
            client.close()
        return True

    return attempt


def _iceberg(call: Callable[[Catalog], object]) -> Callable[[Stack, int, str], bool]:
    """An attempt at the catalog of tables, with an account or a wrong one."""

    def attempt(stack: Stack, port: int, identity: str) -> bool:
        if identity in {NOBODY, WEB_PAGE}:
            return _done("GET", f"http://{LOOPBACK}:{port}/v1/{servers.TABLES_BUCKET}/namespaces", None, {}, identity)
        state, first = stack.root / "seaweedfs", stack.ports.s3
        account = servers.S3Account(first, "bronze-admin", "wrong", stack.account.bucket)
        if identity in ACCOUNTS:
            account = servers.s3_account(state, first, identity=identity)
        try:
            call(load_catalog("tried", **servers.tables_catalog(account)))
        except (RESTError, NoSuchNamespaceError, OSError):  # an HTTPError is an OSError
            return False
        return True

    return attempt


def _otlp(stack: Stack, port: int, identity: str) -> bool:
    headers = {"Content_Type": "application/json"}
    if identity == ROLE:
        headers["Authorization"] = stack.client_env["OTEL_EXPORTER_OTLP_HEADERS"].partition("=")[2].replace("%20", " ")
    return _done("POST", f"http://{LOOPBACK}:{port}/v1/traces", b"{}", headers, identity)


def _grpc(service: str) -> Callable[[Stack, int, str], bool]:
    """An attempt to call a method that does not exist: a server that lets us in says so."""

    def attempt(stack: Stack, port: int, identity: str) -> bool:
        import grpc

        metadata: tuple[tuple[str, str], ...] = (("authorization", "Bearer wrong"),) if identity == WRONG_KEY else ()
        if identity == ROLE:
            token = stack.client_env["OTEL_EXPORTER_OTLP_HEADERS"].partition("=")[2].replace("%20", " ")
            metadata = (("authorization", token),)
        with grpc.insecure_channel(f"{LOOPBACK}:{port}") as channel:
            try:
                channel.unary_unary(service)(b"", timeout=10, metadata=metadata)
            except grpc.RpcError as error:
                return error.code() is grpc.StatusCode.UNIMPLEMENTED
        return True

    return attempt


def _nats(stack: Stack, port: int, identity: str) -> bool:
    """An attempt to connect to the queue as one of its users."""
    if identity == WEB_PAGE:
        return False  # it cannot speak this protocol
    options: dict[str, object] = {"verbose": False}
    if identity == WRONG_KEY:
        options |= {"user": "admin", "pass": "wrong"}
    elif identity in servers.NATS_USERS:
        password = servers.nats_password(stack.root / "nats", identity).read_text()
        options |= {"user": identity, "pass": password}
    with socket.create_connection((LOOPBACK, port), 10) as connection, connection.makefile("rwb") as io:
        io.readline()  # its INFO
        io.write(f"CONNECT {json.dumps(options)}\r\nPING\r\n".encode())
        io.flush()
        return io.readline().startswith(b"PONG")


_METRICS = _http("GET", "/metrics")
_LIVEZ = _http("GET", "/livez")
_SPANS = b'[{"traceId": "0000000000000abc", "id": "0000000000000abc"}]'
_EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_JSON = {"Content_Type": "application/json"}
_PROTOBUF = {"Content_Type": "application/x-protobuf"}

RIGHTS = (
    Right(
        "nats",
        "queue",
        "connect; [more](#identities-between-the-parts-the-queue)",
        servers.NATS_USERS,
        _nats,
        (*STRANGERS, *servers.NATS_USERS),
    ),
    Right(
        "seaweedfs",
        "s3",
        "read the bucket",
        ("admin", "api", "consumer", "canary", "table", "retain"),
        _s3(lambda s3, bucket: s3.list_objects_v2(Bucket=bucket)),
        (*STRANGERS, *ACCOUNTS),
    ),
    Right(
        "seaweedfs",
        "s3",
        "create and delete objects",
        ("admin", "consumer", "retain"),
        _s3(
            lambda s3, bucket: s3.delete_object(
                Bucket=bucket, Key=s3.put_object(Bucket=bucket, Key="tried") and "tried"
            )
        ),
        (*STRANGERS, *ACCOUNTS),
    ),
    Right(
        "seaweedfs",
        "s3",
        "make buckets",
        ("admin",),
        _s3(lambda s3, _: s3.create_bucket(Bucket="another")),
        (*STRANGERS, *ACCOUNTS),
    ),
    *(
        Right("seaweedfs", part, "anything", (), _http("GET", "/", scheme="https"))
        for part in ("filer", "master", "volume")
    ),
    *(
        Right("seaweedfs", f"{part}.grpc", "anything", (), _grpc("/a.Service/Method"))
        for part in ("s3", "filer", "master", "volume")
    ),
    Right(
        "seaweedfs",
        "iceberg",
        "read the catalog of tables",
        ("admin", "table", "api", "notify", "retain"),
        _iceberg(lambda catalog: catalog.list_namespaces()),
        (*STRANGERS, *ACCOUNTS),
    ),
    Right(
        "seaweedfs",
        "iceberg",
        "create and change tables",
        ("admin", "table", "retain"),
        _iceberg(lambda catalog: catalog.create_namespace(f"tried_{uuid4().hex}")),
        (*STRANGERS, *ACCOUNTS),
    ),
    Right("seaweedfs", "metrics", "read metrics", PROGRAMS, _METRICS),
    Right("prometheus", "api", "read metrics", PROGRAMS, _http("GET", "/api/v1/query?query=up")),
    Right("prometheus", "api", "write metrics", PROGRAMS, _http("POST", "/api/v1/otlp/v1/metrics", b"", **_PROTOBUF)),
    Right("zipkin", "api", "read traces", PROGRAMS, _http("GET", "/api/v2/services")),
    Right("zipkin", "api", "write traces", PROGRAMS, _http("POST", "/api/v2/spans", _SPANS, **_JSON)),
    Right("otel-collector", "otlp", "send telemetry", (ROLE,), _otlp, (*STRANGERS, ROLE)),
    Right("otel-collector", "otlp.grpc", "send telemetry", (ROLE,), _grpc(_EXPORT), (*STRANGERS, ROLE)),
    Right("otel-collector", "metrics", "read metrics", PROGRAMS, _METRICS),
    Right("otel-collector", "health", "read whether it works", PROGRAMS, _http("GET", "/")),
    Right(
        "api",
        "http",
        "send records (`BRONZE_AUTH=open`)",
        PROGRAMS,
        _http("POST", "/v1/ingest/vehicles", vehicles("tried")[0], Content_Type=NDJSON),
    ),
    Right("api", "http", "read everything (`BRONZE_AUTH=open`)", PROGRAMS, _http("GET", "/v1/sources")),
    *(Right(role, "http", "read metrics", PROGRAMS, _METRICS) for role in ROLES),
    *(Right(role, "http", "read whether it works", PROGRAMS, _LIVEZ) for role in ROLES),
)

_NAMES = {PROGRAMS: "every program on this machine", (ROLE,): "who has the token: roles and commands"}


def table(rights: Iterable[Right] = RIGHTS) -> str:
    """The rows of docs/security.md."""
    rows = ["| program | port | what | who |", "|---|---|---|---|"]
    for right in rights:
        who = _NAMES.get(right.who) or ", ".join(right.who) or "nobody else: its own parts, by certificates"
        rows.append(f"| {right.program} | {right.port} | {right.what} | {who} |")
    return "\n".join(rows) + "\n"
