"""The whole system on this machine: which programs, on which ports, with which settings."""

import json
import os
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Self

from local import servers
from local.builds import Built
from local.programs import LOOPBACK, PORT_VARIABLE, LocalError, NotReady, Program, environment, free_ports, get_json

FLUSH_AGE_S = 1
BUCKET = "bronze"


@dataclass(frozen=True)
class Ports:
    """The first port of each program; the defaults are the programs' usual ones."""

    nats: int = 4222
    s3: int = 8333
    otlp: int = 4318
    prometheus: int = 9090
    zipkin: int = 9411
    api: int = 8000
    consumer: int = 9464
    publisher: int = 9465

    @classmethod
    def configured(cls) -> Self:
        """The defaults, each moved by its variable, `BRONZE_LOCAL_PORT_NATS` and so on."""
        chosen = {}
        for field in fields(cls):
            variable = f"{PORT_VARIABLE}{field.name.upper()}"
            if text := os.environ.get(variable):
                if not text.isdecimal() or not 0 < int(text) < 65_536:
                    raise LocalError(f"{variable}={text}: not a port")
                chosen[field.name] = int(text)
        return cls(**chosen)

    @classmethod
    def free(cls) -> Self:
        names = [field.name for field in fields(cls)]
        counts = [{"s3": servers.SEAWEEDFS_PORTS, "otlp": servers.COLLECTOR_PORTS}.get(name, 1) for name in names]
        first = free_ports(sum(counts))
        return cls(*(first + offset for offset in accumulate(counts[:-1], initial=0)))


@dataclass(frozen=True)
class Stack:
    """Everything that runs for one state directory.

    `name` is new at each start and part of every program's identity, so a program of an earlier start, or of another
    checkout, is never taken for ours.
    """

    root: Path
    name: str
    ports: Ports
    built: Built

    @classmethod
    def create(cls, root: Path, ports: Ports, built: Built) -> Self:
        """A new start on a state directory, old or fresh; `load` finds it again."""
        stack = cls(root, f"{root.name}-{secrets.token_hex(4)}", ports, built)
        root.mkdir(parents=True, exist_ok=True)
        known = {"name": stack.name, "ports": asdict(ports), "built": {k: str(v) for k, v in asdict(built).items()}}
        _file(root).write_text(json.dumps(known, indent=2))
        exports = (f"export {k}={shlex.quote(v)}\n" for k, v in sorted(stack.client_env.items()))
        (root / "env").touch(mode=0o600)
        (root / "env").write_text("".join(exports))
        return stack

    @classmethod
    def load(cls, root: Path) -> Self | None:
        """The last start on this state directory, if there was one."""
        try:
            known = json.loads(_file(root).read_text())
        except FileNotFoundError:
            return None
        built = Built(**{k: Path(v) for k, v in known["built"].items()})
        return cls(root, known["name"], Ports(**known["ports"]), built)

    @cached_property
    def account(self) -> servers.S3Account:
        return servers.s3_account(self.root / "seaweedfs", self.ports.s3, BUCKET)

    def instance(self, role: str) -> str:
        """The `service.instance.id` of a role, in its telemetry and its `/livez`."""
        return f"{self.name}-{role}"

    @cached_property
    def client_env(self) -> Mapping[str, str]:
        """What a client needs to reach this system: a publisher, a reader of the bucket, any role."""
        return {
            **self.account.env,
            "BRONZE_API_URL": f"http://{LOOPBACK}:{self.ports.api}",
            "BRONZE_BUCKET": self.account.bucket,
            "BRONZE_PREFIX": "bronze",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{LOOPBACK}:{self.ports.otlp}",
        }

    @cached_property
    def servers(self) -> tuple[Program, ...]:
        ports, root, built = self.ports, self.root, self.built
        metrics = {
            "scrape-api": ports.api,
            "scrape-consumer": ports.consumer,
            "scrape-publisher": ports.publisher,
            "scrape-collector": ports.otlp + 1,
        }
        return (
            servers.nats(root / "nats", ports.nats, self.name),
            servers.seaweedfs(root / "seaweedfs", self.account),
            servers.prometheus(root / "prometheus", ports.prometheus, metrics, executable=built.prometheus),
            servers.zipkin(ports.zipkin, self.name, jar=built.zipkin),
            servers.collector(
                root / "otel-collector",
                ports.otlp,
                self.name,
                executable=built.collector,
                env={
                    "PROMETHEUS_OTLP_ENDPOINT": f"http://{LOOPBACK}:{ports.prometheus}/api/v1/otlp",
                    "ZIPKIN_SPANS_ENDPOINT": f"http://{LOOPBACK}:{ports.zipkin}/api/v2/spans",
                },
            ),
        )

    @cached_property
    def roles(self) -> tuple[Program, ...]:
        return (
            self._role("api", "serve", self.ports.api, "/readyz", {"BRONZE_API_PORT": str(self.ports.api)}),
            self._role("consumer", "consume", self.ports.consumer, "/livez", {}),
        )

    @cached_property
    def simulate(self) -> Program:
        return self._role("publisher", "simulate", self.ports.publisher, "/livez", {})

    @property
    def programs(self) -> tuple[Program, ...]:
        return (*self.servers, *self.roles, self.simulate)

    @property
    def publish_env(self) -> Mapping[str, str]:
        """The environment of `bronze publish` on this system: as `simulate`, but each run is an instance of its own."""
        return {k: v for k, v in environment(self.simulate).items() if k != "OTEL_RESOURCE_ATTRIBUTES"}

    def _role(self, role: str, command: str, port: int, probe: str, env: Mapping[str, str]) -> Program:
        instance = self.instance(role)

        def ready() -> None:
            found = get_json(port, probe).get("service_instance_id")
            if found != instance:
                raise NotReady(f"port {port} is the instance {found!r}, not {instance!r}")

        return Program(
            name=role,
            command=(servers.executable("bronze"), command),
            ports={"http": port},
            ready=ready,
            env={
                **self.client_env,
                "BRONZE_NATS_URL": f"nats://{LOOPBACK}:{self.ports.nats}",
                "BRONZE_NATS_SERVER_NAME": self.name,
                "BRONZE_FLUSH_AGE_S": str(FLUSH_AGE_S),
                "OTEL_RESOURCE_ATTRIBUTES": f"service.instance.id={instance}",
                "OTEL_EXPORTER_PROMETHEUS_HOST": LOOPBACK,
                "OTEL_EXPORTER_PROMETHEUS_PORT": str(port),
                **env,
            },
            port_variable=f"{PORT_VARIABLE}{role.upper()}",
        )


def _file(root: Path) -> Path:
    return root / "stack.json"
