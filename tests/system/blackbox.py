"""The running system as its users see it: HTTP, S3, exit codes and the backends' own APIs. These tests use only the
command `bronze` and the system's addresses, not the package.
"""

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import boto3
import httpx
import pyarrow.parquet as pq

from local import servers
from local.machine import Deadline, describe, limit_s
from local.programs import LOOPBACK, Process, Program, environment, free_ports
from local.settings import WORKERS_MAX
from local.stack import Stack

T = TypeVar("T")

NDJSON = "application/x-ndjson"
#: Settings of the roles in all tests, so that objects and metrics arrive soon.
SOON = {"BRONZE_FLUSH_AGE_S": "0.2", "OTEL_METRIC_EXPORT_INTERVAL": "500"}
#: Settings of a branch: its exemplars would link to objects that the page of the main system does not know.
NO_EXEMPLARS = {"OTEL_METRICS_EXEMPLAR_FILTER": "always_off"}
STOP_S_MAX = 10.0

_SAMPLE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="([^"]+)"')  # an empty label is no label, as in Prometheus


def until(what: str, probe: Callable[[], T | None], timeout_s: float = 30) -> T:
    """Waits until the probe's result is true, and returns it. Fails after the deadline and names what is missing."""
    deadline = Deadline(timeout_s)
    while not (found := probe()):
        assert not deadline.passed(), f"not within {timeout_s:g} s: {what} ({describe()})"
        time.sleep(0.05)
    return found


def vehicles(mark: str, count: int = 1) -> list[bytes]:
    """Different records as NDJSON lines, which can be found by their mark."""
    return [
        b'{"vehicle_id": "%s-%d",  "seats":%d, "undeclared": [1, 2.50]}' % (mark.encode(), i, i) for i in range(count)
    ]


def ndjson(records: Sequence[bytes]) -> bytes:
    return b"".join(record + b"\n" for record in records)


@dataclass(frozen=True)
class System:
    """A stack whose roles have additional settings, and access to it from outside."""

    stack: Stack
    env: Mapping[str, str]

    # --- its processes

    def role(self, name: str, **env: str) -> Program:
        others = (self.stack.canary, self.stack.table, self.stack.notify, self.stack.retain, self.stack.simulate)
        program = next(p for p in (*self.stack.roles, *others) if p.name == name)
        return replace(program, env={**program.env, **self.env, **env})

    def log(self, name: str) -> Path:
        return self.stack.root / "logs" / f"{name}.log"

    @contextmanager
    def running(self, *programs: Program) -> Iterator[dict[str, Process]]:
        """Starts the programs in parallel until they are ready, and stops them in reverse order."""
        with ExitStack() as stack:
            processes = {p.name: stack.enter_context(Process(p, self.log(p.name))) for p in programs}
            for process in processes.values():
                process.wait_ready()
            yield processes

    @contextmanager
    def queue(self) -> Iterator[Process]:
        """The queue of a branch."""
        program = servers.nats(self.stack.root / "nats", self.stack.ports.nats, self.stack.name)
        with self.running(program) as processes:
            yield processes["nats"]

    def publisher(self, *arguments: str, **env: str) -> "subprocess.Popen[str]":
        """Starts a `bronze publish`."""
        return subprocess.Popen(
            [servers.executable("bronze"), "publish", *arguments],
            env={**environment(), **self.role("publisher").env, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def verify(self, *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
        """Runs `bronze verify` until it ends."""
        own = {**environment(), **self.role("api").env, **self.stack.trace_store_env, **env}
        del own["OTEL_RESOURCE_ATTRIBUTES"]  # the API's
        command = [servers.executable("bronze"), "verify", *arguments]
        return subprocess.run(command, env=own, capture_output=True, text=True, timeout=limit_s(150), check=False)

    def branch(self, root: Path) -> "System":
        """A system with its own queue, roles and object keys, but with this one's bucket and backends. It is not
        started.
        """
        ports = replace(
            self.stack.ports,
            nats=free_ports(),
            api=free_ports(),
            consumer=free_ports(),
            publisher=free_ports(),
            canary=free_ports(),
            table=free_ports(),
            notify=free_ports(),
            retain=free_ports(),
            workers=free_ports(2 * WORKERS_MAX),
        )
        name = f"test-{uuid4().hex[:12]}"
        token = self.stack.client_env["OTEL_EXPORTER_OTLP_HEADERS"]  # the collector's
        own = {
            "BRONZE_PREFIX": name,
            "BRONZE_BUCKET": self.bucket,
            "OTEL_EXPORTER_OTLP_HEADERS": token,
            **self.stack.account.env,
        }
        return System(replace(self.stack, root=root, name=name, ports=ports), {**self.env, **own})

    # --- its API

    @cached_property
    def _http(self) -> httpx.Client:
        no_reuse = httpx.Limits(max_keepalive_connections=0)  # servers restart during tests
        return httpx.Client(timeout=limit_s(60), limits=no_reuse, trust_env=False)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.stack.ports.api}"

    def post(self, source: str, body: bytes, **headers: str) -> httpx.Response:
        """Sends a submission, as NDJSON unless a header says otherwise. Underscores in header names become dashes."""
        named = {"Content-Type": NDJSON} | {name.replace("_", "-"): value for name, value in headers.items()}
        return self._http.post(f"{self.url}/v1/ingest/{source}", content=body, headers=named)

    def get(self, path: str) -> httpx.Response:
        return self._http.get(f"{self.url}{path}")

    def stored(self, submission_id: str) -> dict[str, Any]:
        """Waits until a submission's status is `stored`, and returns it."""

        def status() -> dict[str, Any] | None:
            answer = self.get(f"/v1/submissions/{submission_id}")
            body: dict[str, Any] = answer.json()
            return body if answer.status_code == 200 and body["status"] == "stored" else None

        return until(f"submission {submission_id} is stored", status)

    def fence(self, source: str = "vehicles") -> dict[str, Any]:
        """Sends a submission, waits until it is stored, and returns its object's contents. A lane is in order, so all
        earlier messages of the source's only lane are in the bucket then, too.
        """
        accepted = self.post(source, vehicles("fence")[0])
        assert accepted.status_code == 202, accepted.text
        (link,) = self.stored(accepted.json()["submission_id"])["objects"]
        contents: dict[str, Any] = self.get(link["url"]).json()
        return contents

    # --- its bucket

    @property
    def bucket(self) -> str:
        return self.env.get("BRONZE_BUCKET", self.stack.account.bucket)

    @property
    def prefix(self) -> str:
        return self.env.get("BRONZE_PREFIX", "bronze")

    @property
    def client_env(self) -> dict[str, str]:
        """The environment of a reader of the bucket."""
        return {**environment(), **self.stack.client_env, **self.env}

    @cached_property
    def s3(self) -> Any:
        env = self.client_env
        return boto3.client(
            "s3",
            endpoint_url=env["AWS_ENDPOINT_URL_S3"],
            aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
            region_name=env["AWS_DEFAULT_REGION"],
        )

    def keys(self, prefix: str | None = None) -> list[str]:
        """The keys with a prefix; by default, those of the system's objects."""
        prefix = f"{self.prefix}/" if prefix is None else prefix
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", ())]

    def body(self, key: str) -> bytes:
        content: bytes = self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return content

    def rows(self, source: str) -> list[dict[str, Any]]:
        """All rows of a source, from all its objects."""
        keys = self.keys(f"{self.prefix}/source={source}/")
        return [row for key in keys for row in pq.read_table(BytesIO(self.body(key))).to_pylist()]

    def payloads(self, mark: str, source: str = "vehicles") -> list[bytes]:
        """The payloads in the bucket that contain the mark, with repetitions. Rows without a payload are ignored."""
        return sorted(row["_payload"].encode() for row in self.rows(source) if mark in (row["_payload"] or ""))

    @contextmanager
    def bucket_refuses(self) -> Iterator[None]:
        """In the context, the bucket's policy denies every PUT with the system's prefix."""
        denied = {
            "Effect": "Deny",
            "Principal": "*",
            "Action": ["s3:PutObject"],
            "Resource": [f"arn:aws:s3:::{self.bucket}/{self.prefix}/*"],
        }
        policy = {"Version": "2012-10-17", "Statement": [denied]}
        self.s3.put_bucket_policy(Bucket=self.bucket, Policy=json.dumps(policy))
        try:
            yield
        finally:
            self.s3.delete_bucket_policy(Bucket=self.bucket)

    # --- its telemetry

    def metrics(self, role: str) -> "Metrics":
        """The current content of a role's `/metrics`."""
        port = {
            "api": self.stack.ports.api,
            "consumer": self.stack.ports.consumer,
            "publisher": self.stack.ports.publisher,
            "notify": self.stack.ports.notify,
            "retain": self.stack.ports.retain,
        }[role]
        return Metrics.parse(self._http.get(f"http://{LOOPBACK}:{port}/metrics").raise_for_status().text)

    def prometheus(self, path: str, **parameters: str | float) -> Any:
        url = f"http://{LOOPBACK}:{self.stack.ports.prometheus}/api/v1/{path}"
        return self._http.get(url, params=parameters).raise_for_status().json()["data"]

    def value(self, query: str) -> float | None:
        """The only value of an instant query; None if there is no series."""
        found = self.prometheus("query", query=query)["result"]
        assert len(found) <= 1, f"{query} has several series: {found}"
        return float(found[0]["value"][1]) if found else None

    def exemplars(self, query: str) -> set[str]:
        """The trace ids of a metric's exemplars in the last minutes."""
        now = time.time()
        found = self.prometheus("query_exemplars", query=query, start=now - 300, end=now + 1)
        return {exemplar["labels"]["trace_id"] for series in found for exemplar in series["exemplars"]}

    def trace(self, trace_id: str) -> list[dict[str, Any]]:
        """The spans of a trace that the trace store has so far."""
        answer = self._http.get(f"http://{LOOPBACK}:{self.stack.ports.zipkin}/api/v2/trace/{trace_id}")
        spans: list[dict[str, Any]] = [] if answer.status_code == 404 else answer.raise_for_status().json()
        return spans


@dataclass(frozen=True)
class Metrics:
    """The samples of a scrape."""

    samples: Sequence[tuple[str, Mapping[str, str], float]]

    @classmethod
    def parse(cls, text: str) -> "Metrics":
        found = (_SAMPLE.fullmatch(line) for line in text.splitlines() if not line.startswith("#"))
        return cls([(m["name"], dict(_LABEL.findall(m["labels"] or "")), float(m["value"])) for m in found if m])

    def all(self, name: str, **labels: str) -> list[float]:
        """The values of the series with this name and these labels."""
        return [value for n, has, value in self.samples if n == name and labels.items() <= has.items()]

    def sum(self, name: str, **labels: str) -> float:
        """The sum of `all`; fails if there is no such series."""
        found = self.all(name, **labels)
        assert found, f"no series {name} {labels}; there are: {sorted({n for n, _, _ in self.samples})}"
        return sum(found)


def drawn(spans: Sequence[Mapping[str, Any]]) -> str:
    """A trace as text: one line per span, `service KIND name`, with children below their parents. Zipkin stores names
    in lower case and has no kind INTERNAL.
    """
    ids = {span["id"] for span in spans}

    def lines(parent: str | None, depth: int) -> Iterator[str]:
        for span in sorted(spans, key=lambda s: int(s["timestamp"])):
            if span.get("parentId") == parent or (parent is None and span.get("parentId") not in ids):
                yield f"{'  ' * depth}{span['localEndpoint']['serviceName']} {span.get('kind', '-')} {span['name']}"
                yield from lines(span["id"], depth + 1)

    return "\n".join(lines(None, 0))


def reported(report: Path) -> list[dict[str, Any]]:
    """The submissions in a publisher's report."""
    return [json.loads(line) for line in report.read_text().splitlines()]
