"""The whole system on this machine: its programs, their ports and their settings."""

import json
import secrets
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Self

from local import exporters, servers
from local.builds import Built
from local.exporters import SIGNALS, Exporters
from local.programs import LOOPBACK, PORT_VARIABLE, LocalError, NotReady, Program, environment, free_ports, get_json
from local.secret_files import SecretFiles
from local.settings import role_settings, service_settings, settings, sources_file

FLUSH_AGE_S = 1
BUCKET = "bronze"
#: The users of the roles at the queue.
_QUEUE_USERS = {"api": "api", "consumer": "consumer", "canary": "reader"}


@dataclass(frozen=True)
class Ports:
    """The first port of each program; the defaults are the programs' usual ones."""

    nats: int = 4222
    s3: int = 8333
    otlp: int = 4318
    prometheus: int = 9090
    zipkin: int = 9411
    tempo: int = 3200
    grafana: int = 3000
    api: int = 8000
    consumer: int = 9464
    publisher: int = 9465
    canary: int = 9466

    @classmethod
    def configured(cls, settings: Mapping[str, str]) -> Self:
        """The default ports, except those that a setting such as `BRONZE_LOCAL_PORT_NATS` changes."""
        chosen = {}
        for field in fields(cls):
            variable = f"{PORT_VARIABLE}{field.name.upper()}"
            if text := settings.get(variable):
                if not text.isdecimal() or not 0 < int(text) < 65_536:
                    raise LocalError(f"{variable}={text} is not a port: use a number from 1 to 65535")
                chosen[field.name] = int(text)
        return cls(**chosen)

    @classmethod
    def free(cls) -> Self:
        names = [field.name for field in fields(cls)]
        several = {"s3": servers.SEAWEEDFS_PORTS, "otlp": servers.COLLECTOR_PORTS, "tempo": servers.TEMPO_PORTS}
        counts = [several.get(name, 1) for name in names]
        first = free_ports(sum(counts))
        return cls(*(first + offset for offset in accumulate(counts[:-1], initial=0)))


@dataclass(frozen=True)
class Stack:
    """All programs of one state directory.

    `name` is new at each start and part of every program's identity, so a program of an earlier start or of another
    checkout is never mistaken for one of this stack.
    """

    root: Path
    name: str
    ports: Ports
    built: Built
    exporters: Exporters

    @classmethod
    def create(cls, root: Path, ports: Ports, built: Built, chosen: Exporters = Exporters()) -> Self:  # noqa: B008  frozen
        """Creates and saves a stack for a new start, with an existing or a new state directory."""
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o700)  # it has the accounts of the servers, and all data
        stack = cls(root, f"{root.name}-{secrets.token_hex(4)}", ports, built, chosen)
        stack.save()
        return stack

    def save(self) -> None:
        """Saves the stack, so that later commands can `load` it, and the variables for clients and commands."""
        saved = asdict(self)
        del saved["root"]  # the folder may be moved
        _file(self.root).write_text(json.dumps(saved, indent=2, default=str))
        own = {**sources_file(), **self.client_env, **self.queue_env("admin"), **self.trace_store_env}
        variables = {**role_settings(), **_flush_age(), **own}
        exports = (f"export {k}={shlex.quote(v)}\n" for k, v in sorted(variables.items()))
        (self.root / "env").touch(mode=0o600)
        commands = shlex.quote(str(Path(servers.executable("bronze")).parent))
        (self.root / "env").write_text("".join(exports) + f'export PATH={commands}:"$PATH"\n')

    @classmethod
    def load(cls, root: Path) -> Self | None:
        """The stack of the last start with this state directory, if there is one."""
        file = _file(root)
        try:
            saved = json.loads(file.read_text())
            built = Built(**{k: v and Path(v) for k, v in saved["built"].items()})
            layers = {signal: tuple(saved["exporters"][signal]) for signal in SIGNALS}
            chosen = Exporters(**layers, sampling=saved["exporters"]["sampling"])
            return cls(root, saved["name"], Ports(**saved["ports"]), built, chosen)
        except FileNotFoundError:
            return None
        except (KeyError, TypeError) as error:
            raise LocalError(f"{file} was written by another version: run `make down`, then `make up`") from error

    @cached_property
    def account(self) -> servers.S3Account:
        """The bucket, with the account of the commands."""
        return servers.s3_account(self.root / "seaweedfs", self.ports.s3, BUCKET)

    def _bucket_env(self, role: str) -> Mapping[str, str]:
        """The variables of the bucket for a role, which has an account of its own; none for one that needs none."""
        if role not in servers.S3_RIGHTS:
            return {}
        return servers.s3_account(self.root / "seaweedfs", self.ports.s3, BUCKET, role).env

    def instance(self, role: str) -> str:
        """The `service.instance.id` of a role, in its telemetry and its `/livez`."""
        return f"{self.name}-{role}"

    @cached_property
    def client_env(self) -> Mapping[str, str]:
        """The variables that commands need, except those of the queue and the trace store."""
        return {**self.account.env, **self._addresses}

    @property
    def _addresses(self) -> Mapping[str, str]:
        return {
            "BRONZE_API_URL": f"http://{LOOPBACK}:{self.ports.api}",
            "BRONZE_PROMETHEUS_URL": f"http://{LOOPBACK}:{self.ports.prometheus}",
            "BRONZE_BUCKET": self.account.bucket,
            "BRONZE_PREFIX": "bronze",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{LOOPBACK}:{self.ports.otlp}",
            "OTEL_EXPORTER_OTLP_HEADERS": f"Authorization=Bearer%20{self._otlp_token}",
        }

    @cached_property
    def _otlp_token(self) -> str:
        return SecretFiles(self.root / "secrets").value("otlp")

    @property
    def public_url(self) -> str:
        """Where browsers reach the API, for links."""
        return settings().get("BRONZE_PUBLIC_URL") or f"http://{LOOPBACK}:{self.ports.api}"

    def queue_env(self, user: str) -> Mapping[str, str]:
        """The variables of the queue for a role or a command, as this user."""
        return {
            "BRONZE_NATS_URL": f"nats://{LOOPBACK}:{self.ports.nats}",
            "BRONZE_NATS_SERVER_NAME": self.name,
            "BRONZE_NATS_USER": user,
            "BRONZE_NATS_PASSWORD": servers.nats_password(self.root / "nats", user).read_text(),
            "BRONZE_NATS_PASSWORD_FILE": "",  # of the user's shell
        }

    @property
    def queue_options(self) -> Mapping[str, str]:
        """The arguments of `nats.connect` for a connection of `admin`."""
        env = self.queue_env("admin")
        return {
            "servers": env["BRONZE_NATS_URL"],
            "user": env["BRONZE_NATS_USER"],
            "password": env["BRONZE_NATS_PASSWORD"],
            "inbox_prefix": f"_INBOX_{env['BRONZE_NATS_USER']}",
        }

    @property
    def trace_store_env(self) -> Mapping[str, str]:
        """The variables for those who read traces: the address of the trace store that the exporters choose."""
        tempo = "tempo" in self.exporters.traces and self.built.tempo is not None
        zipkin = "zipkin" in self.exporters.traces and not tempo
        return {
            "BRONZE_TEMPO_URL": f"http://{LOOPBACK}:{self.ports.tempo}" if tempo else "",
            "BRONZE_ZIPKIN_URL": f"http://{LOOPBACK}:{self.ports.zipkin}" if zipkin else "",
        }

    @cached_property
    def servers(self) -> tuple[Program, ...]:
        """The servers, in the order of their start."""
        ports, root, built = self.ports, self.root, self.built
        return (
            self._queue,
            servers.seaweedfs(root / "seaweedfs", self.account),
            servers.prometheus(
                root / "prometheus",
                ports.prometheus,
                self._targets,
                executable=built.prometheus,
                runbook_url=settings().get("BRONZE_RUNBOOK_URL") or f"{self.public_url}/runbook",
                public_url=self.public_url,
            ),
            *self._trace_stores,
            self.collector,
            *self._dashboards,
        )

    @property
    def _queue(self) -> Program:
        """NATS, which is ready when it also has what the roles need: they may not create it."""
        program = servers.nats_with_users(self.root / "nats", self.ports.nats, self.name)
        done = self.root / "nats" / "initialized"

        def ready() -> None:
            program.ready()
            if not done.exists() or done.read_text() != self.name:
                self.initialize_queue()
                done.write_text(self.name)

        return replace(program, ready=ready)

    def initialize_queue(self) -> None:
        """Creates what the roles need in the queue, and registers the sources, by `bronze init`. Raises `NotReady`."""
        own = {**service_settings(), **sources_file(), **self._addresses, **self.queue_env("admin")}
        outcome = subprocess.run(
            [servers.executable("bronze"), "init", "--yes"],
            env={**environment(), **own},
            capture_output=True,
            text=True,
            check=False,
        )
        if outcome.returncode != 0:
            raise NotReady(outcome.stderr.strip() or outcome.stdout.strip())

    @cached_property
    def collector(self) -> Program:
        ports, chosen = self.ports, self.exporters
        prometheus = f"http://{LOOPBACK}:{ports.prometheus}/api/v1"
        return servers.collector(
            collector_state(self.root),
            ports.otlp,
            self.name,
            executable=self.built.collector,
            layers=chosen.layers,
            sampling=chosen.sampling,
            token=self._otlp_token,
            env={
                **exporters.environment(chosen.layers, settings(), chosen.sampling),
                **_flush_age(),
                "PROMETHEUS_OTLP_ENDPOINT": f"{prometheus}/otlp",
                "PROMETHEUS_REMOTE_WRITE_ENDPOINT": f"{prometheus}/write",
                "TEMPO_OTLP_ENDPOINT": f"http://{LOOPBACK}:{ports.tempo + 1}",
                "ZIPKIN_SPANS_ENDPOINT": f"http://{LOOPBACK}:{ports.zipkin}/api/v2/spans",
            },
        )

    @cached_property
    def _trace_stores(self) -> tuple[Program, ...]:
        """The trace stores that the exporters in use send to."""
        stores = []
        if "zipkin" in self.exporters.traces:
            stores.append(servers.zipkin(self.ports.zipkin, self.name, jar=self.built.zipkin))
        if "tempo" in self.exporters.traces and self.built.tempo:
            state, ports = self.root / "tempo", self.ports
            stores.append(servers.tempo(state, ports.tempo, executable=self.built.tempo, prometheus=ports.prometheus))
        return tuple(stores)

    @cached_property
    def _dashboards(self) -> tuple[Program, ...]:
        """Grafana, if it is installed."""
        if self.built.grafana is None:
            return ()
        ports = self.ports
        return (
            servers.grafana(
                self.root / "grafana",
                ports.grafana,
                self.name,
                executable=self.built.grafana,
                prometheus=ports.prometheus,
                tempo=ports.tempo,
                public_url=self.public_url,
            ),
        )

    @property
    def _targets(self) -> Mapping[str, int]:
        """The port of each Prometheus scrape job's target.

        There is none for scrape-nats: the server reports its state as JSON, and no package has an exporter for it.
        """
        targets = {
            "scrape-api": self.ports.api,
            "scrape-consumer": self.ports.consumer,
            "scrape-publisher": self.ports.publisher,
            "scrape-canary": self.ports.canary,
            "scrape-collector": self.collector.ports["metrics"],
            "scrape-prometheus": self.ports.prometheus,
            "scrape-seaweedfs": self.ports.s3 + servers.SEAWEEDFS_PORTS - 1,
        }
        if "scrape" in self.collector.ports:
            targets["collector-exporter"] = self.collector.ports["scrape"]
        return targets

    @cached_property
    def roles(self) -> tuple[Program, ...]:
        return (
            self._role("api", "serve", self.ports.api, "/readyz", self._api_env),
            self._role("consumer", "consume", self.ports.consumer, "/livez", {}),
        )

    @property
    def _api_env(self) -> Mapping[str, str]:
        """The API's own variables. They do not depend on the exporters, so another choice does not restart the API:
        its page links to the default trace viewer of this machine, or to the one of `BRONZE_TRACE_URL`.
        """
        ports = self.ports
        traces = f"{ports.zipkin}/zipkin/traces/{{trace_id}}"
        if self.built.grafana and self.built.tempo:
            traces = f"{ports.grafana}/d/bronze-lineage?var-trace_id={{trace_id}}&viewPanel=panel-100"
        return {
            "BRONZE_API_PORT": str(ports.api),
            **dict.fromkeys(("BRONZE_TLS_CERT_FILE", "BRONZE_TLS_KEY_FILE"), ""),  # its own clients use HTTP
            "BRONZE_TRACE_URL": settings().get("BRONZE_TRACE_URL") or f"http://{LOOPBACK}:{traces}",
        }

    @cached_property
    def simulate(self) -> Program:
        publisher = self._role("publisher", "simulate", self.ports.publisher, "/livez", {})
        return replace(publisher, stage=3)

    @cached_property
    def canary(self) -> Program:
        return self._role("canary", "canary", self.ports.canary, "/livez", self.trace_store_env)

    @property
    def programs(self) -> tuple[Program, ...]:
        return (*self.servers, *self.roles, self.canary, self.simulate)

    @property
    def publish_env(self) -> Mapping[str, str]:
        """The environment of `bronze publish` on this system: as `simulate`, but each process is its own instance."""
        return {k: v for k, v in environment(self.simulate).items() if k != "OTEL_RESOURCE_ATTRIBUTES"}

    def _role(self, role: str, command: str, port: int, probe: str, env: Mapping[str, str]) -> Program:
        instance = self.instance(role)

        def ready() -> None:
            running = get_json(port, probe).get("service_instance_id")
            if running != instance:
                raise NotReady(f"port {port} is the instance {running!r}, not {instance!r}")

        return Program(
            name=role,
            command=(servers.executable("bronze"), command),
            ports={"http": port},
            ready=ready,
            env={
                **service_settings(),
                **_flush_age(),
                **sources_file(),
                **self._addresses,
                **self._bucket_env(role),
                **(self.queue_env(_QUEUE_USERS[role]) if role in _QUEUE_USERS else {}),
                "OTEL_RESOURCE_ATTRIBUTES": f"service.instance.id={instance}",
                "OTEL_EXPORTER_PROMETHEUS_HOST": LOOPBACK,
                "OTEL_EXPORTER_PROMETHEUS_PORT": str(port),
                **env,
            },
            port_variable=f"{PORT_VARIABLE}{role.upper()}",
            stage=2,
        )


def _flush_age() -> Mapping[str, str]:
    """The flush age of the roles, which the collector has to know too."""
    name = "BRONZE_FLUSH_AGE_S"
    return {name: service_settings().get(name, str(FLUSH_AGE_S))}


def collector_state(root: Path) -> Path:
    return root / "otel-collector"


def _file(root: Path) -> Path:
    return root / "stack.json"
