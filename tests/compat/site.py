"""A queue, a bucket, and roles of any version of Bronze that use them. This module uses only the command `bronze`, its
settings and its addresses, so that it works with versions whose modules have other names.
"""

import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import boto3
import httpx

from local import programs, servers
from local.machine import limit_s
from local.programs import LOOPBACK, Process, Program, environment, free_ports, http_get
from local.servers import S3Account

T = TypeVar("T")

QUIET = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}

#: Servers restart.
NO_REUSE = httpx.Limits(max_keepalive_connections=0)


def until(what: str, probe: Callable[[], T | None], timeout_s: float = 60) -> T:
    """Waits until the probe's result is true, and returns it. Fails after the deadline and names what is missing."""
    deadline = time.monotonic() + timeout_s
    while not (found := probe()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)
    return found


@dataclass
class Site:
    """The queue and the bucket that the roles use."""

    root: Path
    account: S3Account
    env: Mapping[str, str] = field(default_factory=dict)
    #: the command of the running version
    bronze: Path = field(default_factory=lambda: Path(servers.executable("bronze")))
    nats_port: int = field(default_factory=free_ports)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.s3.close()

    # --- its processes

    def queue(self) -> Program:
        return servers.nats(self.root / "nats", self.nats_port, "compat")

    @property
    def settings(self) -> dict[str, str]:
        """The settings of every role and command."""
        return {
            **QUIET,
            **self.account.env,
            "BRONZE_BUCKET": self.account.bucket,
            "BRONZE_NATS_URL": f"nats://{LOOPBACK}:{self.nats_port}",
            "BRONZE_NATS_SERVER_NAME": "compat",
            **self.env,
        }

    def role(self, name: str, command: str, **env: str) -> Program:
        """Runs a role, which listens on its own port."""
        port = free_ports()
        return Program(
            name=name,
            command=(str(self.bronze), command),
            ports={"http": port},
            ready=lambda: http_get(port, "/livez"),
            env={
                **self.settings,
                "BRONZE_API_PORT": str(port),
                "OTEL_EXPORTER_PROMETHEUS_PORT": str(port),
                "OTEL_SERVICE_NAME": "bronze-" + ("api" if command == "serve" else "consumer"),
                **env,
            },
        )

    def started(self, program: Program) -> Process:
        return programs.start(program, self.root / f"{program.name}.log")

    def publisher(self, *arguments: str, **env: str) -> Program:
        """Runs a command until it is stopped."""
        port = free_ports()
        return Program(
            name="publisher",
            command=(str(self.bronze), *arguments),
            ports={"http": port},
            ready=lambda: http_get(port, "/livez"),
            env={**self.settings, "OTEL_EXPORTER_PROMETHEUS_PORT": str(port), **env},
        )

    def run(self, *arguments: str, given: bytes = b"", **env: str) -> str:
        """The standard output of a command, which has to succeed."""
        done = subprocess.run(
            [str(self.bronze), *arguments],
            env={**environment(), **self.settings, **env},
            input=given,
            capture_output=True,
            timeout=limit_s(60),
            check=False,
        )
        said = f"bronze {' '.join(arguments)}: {done.returncode}\n{done.stdout!r}\n{done.stderr!r}"
        assert done.returncode == 0, said
        return done.stdout.decode()

    # --- its bucket

    @cached_property
    def s3(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.account.env["AWS_ENDPOINT_URL_S3"],
            aws_access_key_id=self.account.access_key,
            aws_secret_access_key=self.account.secret_key,
            region_name=self.account.env["AWS_DEFAULT_REGION"],
        )


@dataclass(frozen=True)
class Api:
    """A running API, over HTTP."""

    port: int
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=60, trust_env=False, limits=NO_REUSE))

    @classmethod
    def of(cls, process: Process) -> "Api":
        return cls(process.program.ports["http"])

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def get(self, path: str, **parameters: str) -> Any:
        """The JSON of an answer, which has to be a 200."""
        answer = self.http.get(f"{self.url}{path}", params=parameters)
        assert answer.status_code == httpx.codes.OK, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> httpx.Response:
        return self.http.post(f"{self.url}{path}", content=body, headers=dict(headers))
