"""The running system as its users see it: HTTP, S3, exit codes and the backends' own APIs. Nothing of `bronze` is known
here but its command and its addresses.
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
from local.stack import Stack

T = TypeVar("T")

NDJSON = "application/x-ndjson"
#: What the roles of all tests run with: objects and metrics come soon.
SOON = {"BRONZE_FLUSH_AGE_S": "0.2", "OTEL_METRIC_EXPORT_INTERVAL": "500"}
#: Of a system beside the whole one: exemplars in Prometheus lead to objects of the whole one, whose page shows them.
NO_EXEMPLARS = {"OTEL_METRICS_EXEMPLAR_FILTER": "always_off"}
STOP_S_MAX = 10.0

_SAMPLE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="([^"]+)"')  # an empty label is none, as Prometheus has it


def until(what: str, probe: Callable[[], T | None], timeout_s: float = 30) -> T:
    """What a probe gives once that is true; fails after the deadline and says what did not come."""
    deadline = Deadline(timeout_s)
    while not (found := probe()):
        assert not deadline.passed(), f"not within {timeout_s:g} s: {what} ({describe()})"
        time.sleep(0.05)
    return found


def vehicles(mark: str, count: int = 1) -> list[bytes]:
    """Records that are found again by their mark: lines of NDJSON, each another one."""
    return [
        b'{"vehicle_id": "%s-%d",  "seats":%d, "undeclared": [1, 2.50]}' % (mark.encode(), i, i) for i in range(count)
    ]


def ndjson(records: Sequence[bytes]) -> bytes:
    return b"".join(record + b"\n" for record in records)


@dataclass(frozen=True)
class System:
    """A stack's roles with settings of their own, and what is seen of them."""

    stack: Stack
    env: Mapping[str, str]

    # --- its processes

    def role(self, name: str, **env: str) -> Program:
        program = next(p for p in (*self.stack.roles, self.stack.simulate) if p.name == name)
        return replace(program, env={**program.env, **self.env, **env})

    def log(self, name: str) -> Path:
        return self.stack.root / "logs" / f"{name}.log"

    @contextmanager
    def running(self, *programs: Program) -> Iterator[dict[str, Process]]:
        """The programs, started at once and ready; stopped in reverse."""
        with ExitStack() as stack:
            processes = {p.name: stack.enter_context(Process(p, self.log(p.name))) for p in programs}
            for process in processes.values():
                process.wait_ready()
            yield processes

    @contextmanager
    def queue(self) -> Iterator[Process]:
        """A queue of its own, where it is not that of the whole stack."""
        program = servers.nats(self.stack.root / "nats", self.stack.ports.nats, self.stack.name)
        with self.running(program) as processes:
            yield processes["nats"]

    def publisher(self, *arguments: str, **env: str) -> "subprocess.Popen[str]":
        """A `bronze publish` that has been started."""
        return subprocess.Popen(
            [servers.executable("bronze"), "publish", *arguments],
            env={**environment(), **self.role("publisher").env, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def branch(self, root: Path) -> "System":
        """A system with a queue, roles and keys of its own, on this one's bucket and backends; none of it runs yet."""
        ports = replace(
            self.stack.ports, nats=free_ports(), api=free_ports(), consumer=free_ports(), publisher=free_ports()
        )
        name = f"test-{uuid4().hex[:12]}"
        own = {"BRONZE_PREFIX": name, "BRONZE_BUCKET": self.bucket, **self.stack.account.env}
        return System(replace(self.stack, root=root, name=name, ports=ports), {**self.env, **own})

    # --- its API

    @cached_property
    def _http(self) -> httpx.Client:
        no_reuse = httpx.Limits(max_keepalive_connections=0)  # servers come and go
        return httpx.Client(timeout=limit_s(60), limits=no_reuse, trust_env=False)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.stack.ports.api}"

    def post(self, source: str, body: bytes, **headers: str) -> httpx.Response:
        """One submission of NDJSON unless a header says otherwise; an underscore stands for a dash."""
        named = {"Content-Type": NDJSON} | {name.replace("_", "-"): value for name, value in headers.items()}
        return self._http.post(f"{self.url}/v1/ingest/{source}", content=body, headers=named)

    def get(self, path: str) -> httpx.Response:
        return self._http.get(f"{self.url}{path}")

    def stored(self, submission_id: str) -> dict[str, Any]:
        """A submission's status, once it says `stored`."""

        def status() -> dict[str, Any] | None:
            answer = self.get(f"/v1/submissions/{submission_id}")
            body: dict[str, Any] = answer.json()
            return body if answer.status_code == 200 and body["status"] == "stored" else None

        return until(f"submission {submission_id} is stored", status)

    def fence(self, source: str = "vehicles") -> dict[str, Any]:
        """A submission of our own, stored, and what its object says of itself. A lane is in order: whatever was in the
        source's one lane before it is in the bucket by then.
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
        """What a reader of the bucket is given."""
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
        """The keys under a prefix; without one, those of the system's objects."""
        prefix = f"{self.prefix}/" if prefix is None else prefix
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", ())]

    def body(self, key: str) -> bytes:
        content: bytes = self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return content

    def rows(self, source: str) -> list[dict[str, Any]]:
        """All rows of a source, from all of its objects."""
        keys = self.keys(f"{self.prefix}/source={source}/")
        return [row for key in keys for row in pq.read_table(BytesIO(self.body(key))).to_pylist()]

    def payloads(self, mark: str, source: str = "vehicles") -> list[bytes]:
        """The payloads with a mark in them, in the bucket, each as often as it is there. Columns may have none."""
        return sorted(row["_payload"].encode() for row in self.rows(source) if mark in (row["_payload"] or ""))

    @contextmanager
    def bucket_refuses(self) -> Iterator[None]:
        """Meanwhile the bucket's own policy denies every PUT below the system's prefix."""
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
        """What a role's own `/metrics` says now."""
        port = {
            "api": self.stack.ports.api,
            "consumer": self.stack.ports.consumer,
            "publisher": self.stack.ports.publisher,
        }[role]
        return Metrics.parse(self._http.get(f"http://{LOOPBACK}:{port}/metrics").raise_for_status().text)

    def prometheus(self, path: str, **parameters: str | float) -> Any:
        url = f"http://{LOOPBACK}:{self.stack.ports.prometheus}/api/v1/{path}"
        return self._http.get(url, params=parameters).raise_for_status().json()["data"]

    def value(self, query: str) -> float | None:
        """An instant query's one value; none while there is no series."""
        found = self.prometheus("query", query=query)["result"]
        assert len(found) <= 1, f"{query} has several series: {found}"
        return float(found[0]["value"][1]) if found else None

    def exemplars(self, query: str) -> set[str]:
        """The trace ids of a metric's exemplars of the last minutes."""
        now = time.time()
        found = self.prometheus("query_exemplars", query=query, start=now - 300, end=now + 1)
        return {exemplar["labels"]["trace_id"] for series in found for exemplar in series["exemplars"]}

    def trace(self, trace_id: str) -> list[dict[str, Any]]:
        """The spans of a trace, as the trace store has them by now."""
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
        """The values of each series of a name that has these labels."""
        return [value for n, has, value in self.samples if n == name and labels.items() <= has.items()]

    def sum(self, name: str, **labels: str) -> float:
        """Their sum; there has to be one."""
        found = self.all(name, **labels)
        assert found, f"no series {name} {labels}; there are: {sorted({n for n, _, _ in self.samples})}"
        return sum(found)


def drawn(spans: Sequence[Mapping[str, Any]]) -> str:
    """A trace as a drawing: a line a span, `service KIND name`, children below their parents. Zipkin keeps names in
    lower case and knows no kind INTERNAL.
    """
    ids = {span["id"] for span in spans}

    def lines(parent: str | None, depth: int) -> Iterator[str]:
        for span in sorted(spans, key=lambda s: int(s["timestamp"])):
            if span.get("parentId") == parent or (parent is None and span.get("parentId") not in ids):
                yield f"{'  ' * depth}{span['localEndpoint']['serviceName']} {span.get('kind', '-')} {span['name']}"
                yield from lines(span["id"], depth + 1)

    return "\n".join(lines(None, 0))


def reported(report: Path) -> list[dict[str, Any]]:
    """What a publisher says was accepted."""
    return [json.loads(line) for line in report.read_text().splitlines()]
