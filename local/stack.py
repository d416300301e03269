"""The whole system on this machine: its programs, their ports and their settings."""

import json
import secrets
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from itertools import accumulate, combinations
from pathlib import Path
from typing import Any, Self

from bronze.protocol.principals import parse_key
from local import exporters, servers
from local.builds import Built
from local.exporters import SIGNALS, Exporters
from local.programs import LOOPBACK, PORT_VARIABLE, LocalError, NotReady, Program, environment, free_ports, get_json
from local.secret_files import SecretFiles
from local.settings import (
    NATS_VARIABLE,
    WORKERS_MAX,
    notifications,
    retention,
    service_settings,
    settings,
    sources_file,
)

FLUSH_AGE_S = 1
BUCKET = "bronze"
#: The exit code of a command whose queue does not answer.
UNAVAILABLE = 3
#: What the API keys of the system's own clients allow, by principal, if the API asks for keys.
API_KEY_SCOPES = {
    "publisher": ("ingest:*", "trace"),
    "canary": ("ingest:canary", "read:canary", "trace"),
    "prometheus": ("read:*",),
    "notify": ("read:*",),
}
_REPLICAS = "BRONZE_QUEUE_REPLICAS"
#: The users of the roles at the queue.
_QUEUE_USERS = {"api": "api", "consumer": "consumer", "canary": "reader", "table": "reader", "retain": "admin"}


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
    table: int = 9468
    notify: int = 9469
    #: `/metrics` of each worker, first those of the API
    workers: int = 9470
    retain: int = 9486

    @classmethod
    def configured(cls, settings: Mapping[str, str]) -> Self:
        """The default ports, except those that a setting such as `BRONZE_LOCAL_PORT_NATS` changes."""
        chosen = {}
        for name in _PORTS_OF:
            variable = _port_variable(name)
            if text := settings.get(variable):
                if not text.isdecimal() or not 0 < int(text) < 65_536:
                    raise LocalError(f"{variable}={text} is not a port: use a number from 1 to 65535")
                chosen[name] = int(text)
        ports = cls(**chosen)
        ports._check_blocks()
        return ports

    def _check_blocks(self) -> None:
        """Raises `LocalError` if two programs would use the same port; it names both settings and their ports."""
        blocks = [(range(first, first + _PORTS_OF[name]), name) for name, first in asdict(self).items()]
        errors = [
            f"{_port_text(name, ports)} ends after the last port, 65535: choose a lower one"
            for ports, name in blocks
            if ports.stop > 65_536
        ]
        for (ports, name), (others, other) in combinations(sorted(blocks, key=lambda block: block[0].start), 2):
            if others.start < ports.stop:
                errors.append(f"{_port_text(name, ports)} and {_port_text(other, others)} overlap: change one of them")
        if errors:
            raise LocalError("\n".join(errors))

    def ignored(self, chosen: Self) -> Iterator[str]:
        """The settings that a system on these ports does not take while it runs, each in one sentence."""
        for name, port in asdict(self).items():
            if (other := getattr(chosen, name)) != port:
                yield (
                    f"{_port_variable(name)} is {other} now, but the system runs on {port}: "
                    "`make down`, then `make up` change it"
                )

    @classmethod
    def free(cls) -> Self:
        counts = list(_PORTS_OF.values())
        first = free_ports(sum(counts))
        return cls(*(first + offset for offset in accumulate(counts[:-1], initial=0)))


#: The number of consecutive ports of each program, of which `Ports` has the first.
_PORTS_OF = dict.fromkeys((field.name for field in fields(Ports)), 1) | {
    "nats": servers.NATS_PORTS,
    "s3": servers.SEAWEEDFS_PORTS,
    "otlp": servers.COLLECTOR_PORTS,
    "tempo": servers.TEMPO_PORTS,
    "workers": 2 * WORKERS_MAX,
}


def _port_variable(name: str) -> str:
    return f"{PORT_VARIABLE}{name.upper()}"


def _port_text(name: str, ports: range) -> str:
    """The setting of a program, with all ports that it takes."""
    several = f" (ports {ports.start} to {ports[-1]})" if len(ports) > 1 else ""
    return f"{_port_variable(name)}={ports.start}{several}"


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
    #: Whether a simulated fleet sends data.
    fleet: bool = True
    #: The processes of the API, and of the consumer.
    workers: int = 1
    #: The servers of the queue.
    nats_servers: int = 1

    @classmethod
    def create(
        cls,
        root: Path,
        ports: Ports,
        built: Built,
        chosen: Exporters = Exporters(),  # noqa: B008  frozen
        *,
        fleet: bool = True,
        workers: int = 1,
        nats_servers: int = 1,
    ) -> Self:
        """Creates and saves a stack for a new start, with an existing or a new state directory.

        Raises `LocalError` if the state's queue has another number of servers.
        """
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o700)  # it has the accounts of the servers, and all data
        stack = cls(root, f"{root.name}-{secrets.token_hex(4)}", ports, built, chosen, fleet, workers, nats_servers)
        stack.check_queue_state()
        stack.save()
        return stack

    def save(self) -> None:
        """Saves the stack, so that later commands can `load` it, and the variables for clients and commands."""
        saved = asdict(self)
        del saved["root"]  # the folder may be moved
        _file(self.root).write_text(json.dumps(saved, indent=2, default=str))
        own = {**sources_file(), **self.client_env, **self.queue_env("admin"), **self.trace_store_env}
        variables = {**service_settings(), **_flush_age(), **own}
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
            ports = Ports(**saved["ports"])
            counts = saved["workers"], saved["nats_servers"]
            return cls(root, saved["name"], ports, built, chosen, saved["fleet"], *counts)
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

    def _tables_env(self, role: str) -> Mapping[str, str]:
        """The variables of the catalog of the tables for a role, by its account of the bucket."""
        return servers.tables_env(servers.s3_account(self.root / "seaweedfs", self.ports.s3, BUCKET, role))

    def instance(self, role: str) -> str:
        """The `service.instance.id` of a role, in its telemetry and its `/livez`; a worker adds `-` and its number."""
        return f"{self.name}-{role}"

    def worker_ports(self, role: str) -> Sequence[int]:
        """The port of `/metrics` of each worker of API or consumer; none if it is a single process."""
        first = self.ports.workers + (0 if role == "api" else WORKERS_MAX)
        return range(first, first + self.workers) if self.workers > 1 else ()

    @cached_property
    def client_env(self) -> Mapping[str, str]:
        """The variables that commands need, except those of the queue and the trace store."""
        return {**self.account.env, **servers.tables_env(self.account), **self._addresses}

    @property
    def _addresses(self) -> Mapping[str, str]:
        return {
            "BRONZE_API_URL": self.api_url,
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
    def api_url(self) -> str:
        return f"http://{LOOPBACK}:{self.ports.api}"

    @property
    def public_url(self) -> str:
        """Where browsers reach the API, for links."""
        return settings().get("BRONZE_PUBLIC_URL") or self.api_url

    def queue_env(self, user: str) -> Mapping[str, str]:
        """The variables of the queue for a role or a command, as this user."""
        replicas = settings().get(_REPLICAS) or str(self.nats_servers)
        return {
            "BRONZE_NATS_URL": ",".join(f"nats://{LOOPBACK}:{self.ports.nats + n}" for n in range(self.nats_servers)),
            "BRONZE_NATS_SERVER_NAME": self.queue_name,
            **({_REPLICAS: replicas} if self.nats_servers > 1 else {}),
            "BRONZE_NATS_USER": user,
            "BRONZE_NATS_PASSWORD": servers.nats_password(self._queue_state, user).read_text(),
            # of the user's shell
            **dict.fromkeys((f"BRONZE_NATS_{file}_FILE" for file in ("PASSWORD", "CA", "CERT", "KEY")), ""),
        }

    @property
    def queue_options(self) -> Mapping[str, Any]:
        """The arguments of `nats.connect` for a connection of `admin`."""
        env = self.queue_env("admin")
        return {
            "servers": env["BRONZE_NATS_URL"].split(","),
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
            *self.stores,
            servers.prometheus(
                root / "prometheus",
                ports.prometheus,
                self.targets,
                executable=built.prometheus,
                runbook_url=settings().get("BRONZE_RUNBOOK_URL") or f"{self.public_url}/runbook",
                public_url=self.public_url,
                api_key_file=self._api_key_file("prometheus") if self.needs_keys else None,
            ),
            *self._trace_stores,
            self.collector,
            *self._dashboards,
        )

    @cached_property
    def stores(self) -> tuple[Program, ...]:
        """Queue and bucket: what the roles need to accept and store records."""
        return *self._queue, servers.seaweedfs(self.root / "seaweedfs", self.account)

    @property
    def queue_name(self) -> str:
        """The name of the queue's server or of its cluster. That of a cluster stays the same at each start."""
        if self.nats_servers == 1:
            return self.name
        return f"{self.root.name}-{SecretFiles(self._queue_state / 'secrets').value('cluster')[:8]}"

    @property
    def _queue_state(self) -> Path:
        return self.root / "nats"

    def check_queue_state(self) -> None:
        """Raises `LocalError` if the state's queue has another number of servers: NATS deletes the streams of a single
        server that becomes one of a cluster.
        """
        of_one, of_several = ((self._queue_state / part).exists() for part in ("jetstream", "1"))
        if of_one if self.nats_servers > 1 else of_several:
            there, wanted = ("one server", "three") if of_one else ("three servers", "one")
            raise LocalError(
                f"the queue in {self._queue_state} has {there}, and cannot get {wanted} by a setting: set "
                f"{NATS_VARIABLE}={1 if of_one else 3}, delete {self.root} to begin with fresh state, or move the "
                'queue: docs/operations.md, "Three queue servers"'
            )

    @property
    def _queue(self) -> tuple[Program, ...]:
        """NATS. Its last server is ready when the queue also has what the roles need: they may not create it."""
        state, port = self._queue_state, self.ports.nats
        if self.nats_servers == 1:
            return (self._with_streams(servers.nats_with_users(state, port, self.name)),)
        *others, last = servers.nats_cluster(state, port, self.queue_name)
        return *others, self._with_streams(last)

    def _with_streams(self, program: Program) -> Program:
        done = self._queue_state / "initialized"

        def ready() -> None:
            program.ready()
            if not done.exists() or done.read_text() != self.name:
                self.initialize_queue()
                done.write_text(self.name)

        return replace(program, ready=ready)

    def initialize_queue(self) -> None:
        """Creates what the roles need in the queue, and registers the sources, by `bronze init`.

        Raises `NotReady` if the queue does not answer, and `LocalError` if a setting or a declaration cannot work.
        """
        self._command("init", "--yes")
        if self.needs_keys:
            self._create_api_keys()

    def _create_api_keys(self) -> None:
        """Creates the keys of the system's own clients, as far as the queue has none that is in their files."""
        listed = map(json.loads, self._command("keys", "list", "--json").splitlines())
        known = {key["key_id"] for key in listed if key["revoked_at"] is None}
        for principal, scopes in API_KEY_SCOPES.items():
            file = self._api_key_file(principal)
            parsed = parse_key(file.read_text()) if file.exists() else None
            if parsed is None or parsed[0] not in known:
                allowed = (word for scope in scopes for word in ("--scope", scope))
                key = self._command("keys", "create", principal, *allowed, "--expires", "never", "--yes").strip()
                SecretFiles(file.parent).replace(file.name, key)

    def _api_key_file(self, principal: str) -> Path:
        return self.root / "secrets" / f"api-key-{principal}"

    def _api_key_env(self, principal: str) -> Mapping[str, str]:
        """The variables of a client of the API; the key of the user's shell is not for it."""
        if not self.needs_keys:
            return {}
        return {"BRONZE_API_KEY_FILE": str(self._api_key_file(principal)), "BRONZE_API_KEY": ""}

    @property
    def needs_keys(self) -> bool:
        """Whether the API asks for keys."""
        return settings().get("BRONZE_AUTH") == "keys"

    def _command(self, *words: str) -> str:
        """The output of a command that needs the queue, as its `admin`. Raises as `initialize_queue`."""
        own = {**service_settings(), **sources_file(), **self._addresses, **self.queue_env("admin")}
        outcome = subprocess.run(
            [servers.executable("bronze"), *words],
            env={**environment(), **own},
            capture_output=True,
            text=True,
            check=False,
        )
        if outcome.returncode != 0:
            error = NotReady if outcome.returncode == UNAVAILABLE else LocalError
            raise error(outcome.stderr.strip() or outcome.stdout.strip())
        return outcome.stdout

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
    def targets(self) -> Mapping[str, Sequence[int]]:
        """The ports of each Prometheus scrape job's targets.

        There is none for scrape-nats: the server reports its state as JSON, and no package has an exporter for it.
        """
        targets = {
            "scrape-api": self.worker_ports("api") or [self.ports.api],
            "scrape-consumer": self.worker_ports("consumer") or [self.ports.consumer],
            **({"scrape-publisher": [self.ports.publisher]} if self.fleet else {}),
            "scrape-canary": [self.ports.canary],
            "scrape-table": [self.ports.table],
            **({"scrape-notify": [self.ports.notify]} if notifications() else {}),
            **({"scrape-retain": [self.ports.retain]} if retention() else {}),
            "scrape-collector": [self.collector.ports["metrics"]],
            "scrape-prometheus": [self.ports.prometheus],
            "scrape-seaweedfs": [self.ports.s3 + servers.SEAWEEDFS_PORTS - 1],
        }
        if "scrape" in self.collector.ports:
            targets["collector-exporter"] = [self.collector.ports["scrape"]]
        return targets

    @cached_property
    def roles(self) -> tuple[Program, ...]:
        api = self._role("api", "serve", self.ports.api, "/readyz", self._api_env)
        consumer = self._role("consumer", "consume", self.ports.consumer, "/livez", {})
        if self.workers == 1:
            return api, consumer
        return self._of_workers(api, **api.ports), self._of_workers(consumer)

    def _of_workers(self, program: Program, **shared: int) -> Program:
        """The same role as several processes, which may share a port."""
        ports = self.worker_ports(program.name)

        def ready() -> None:
            for number, port in enumerate(ports, 1):
                _check_instance(port, "/livez", [f"{self.instance(program.name)}-{number}"])
            for port in shared.values():
                _check_instance(port, "/readyz", [f"{self.instance(program.name)}-{n + 1}" for n in range(len(ports))])

        return replace(
            program,
            ports={**shared, **{f"worker {number}": port for number, port in enumerate(ports, 1)}},
            ready=ready,
            env={
                **program.env,
                "BRONZE_WORKERS": str(self.workers),
                "OTEL_EXPORTER_PROMETHEUS_PORT": str(ports[0]),
            },
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
            # a start continues with the catalog index of the one before
            "BRONZE_VIEW_DIR": settings().get("BRONZE_VIEW_DIR") or str(self.root / "view"),
            **self._tables_env("api"),
            **dict.fromkeys(("BRONZE_TLS_CERT_FILE", "BRONZE_TLS_KEY_FILE"), ""),  # its own clients use HTTP
            "BRONZE_TRACE_URL": settings().get("BRONZE_TRACE_URL") or f"http://{LOOPBACK}:{traces}",
        }

    @cached_property
    def simulate(self) -> Program:
        publisher = self._role("publisher", "simulate", self.ports.publisher, "/livez", self._api_key_env("publisher"))
        return replace(publisher, stage=3)

    @cached_property
    def canary(self) -> Program:
        env = {**self.trace_store_env, **self._api_key_env("canary")}
        return self._role("canary", "canary", self.ports.canary, "/livez", env)

    @cached_property
    def table(self) -> Program:
        return self._role("table", "table", self.ports.table, "/livez", self._tables_env("table"))

    @cached_property
    def notify(self) -> Program:
        env = {**notifications(), **self._api_key_env("notify"), "BRONZE_NOTIFY_DIR": str(self.root / "notify")}
        if env.get("BRONZE_NOTIFY_TABLES"):
            env |= self._tables_env("notify")
        return self._role("notify", "notify", self.ports.notify, "/livez", env)

    @cached_property
    def retain(self) -> Program:
        program = self._role("retain", "retain", self.ports.retain, "/livez", self._tables_env("retain"))
        return replace(program, command=(*program.command, "--every", "1d", "--yes", "--by", "retain"))

    @property
    def programs(self) -> tuple[Program, ...]:
        return (*self.servers, *self.roles, *self.senders)

    @property
    def senders(self) -> tuple[Program, ...]:
        """The programs that work by themselves while API and consumer run."""
        return (
            *(self.canary, self.table),
            *([self.notify] if notifications() else []),
            *([self.retain] if retention() else []),
            *([self.simulate] if self.fleet else []),
        )

    @property
    def publish_env(self) -> Mapping[str, str]:
        """The environment of `bronze publish` on this system: as `simulate`, but each process is its own instance."""
        return {k: v for k, v in environment(self.simulate).items() if k != "OTEL_RESOURCE_ATTRIBUTES"}

    def _role(self, role: str, command: str, port: int, probe: str, env: Mapping[str, str]) -> Program:
        instance = self.instance(role)
        return Program(
            name=role,
            command=(servers.executable("bronze"), command),
            ports={"http": port},
            ready=lambda: _check_instance(port, probe, [instance]),
            env={
                **service_settings(),
                "BRONZE_WORKERS": "1",
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


def _check_instance(port: int, probe: str, expected: Sequence[str]) -> None:
    """Raises `NotReady` if the process at a port is none of these instances."""
    running = get_json(port, probe).get("service_instance_id")
    if running not in expected:
        raise NotReady(f"port {port} is the instance {running!r}, not {' or '.join(map(repr, expected))}")


def _flush_age() -> Mapping[str, str]:
    """The flush age of the roles, which the collector has to know too."""
    name = "BRONZE_FLUSH_AGE_S"
    return {name: settings().get(name) or str(FLUSH_AGE_S)}


def collector_state(root: Path) -> Path:
    return root / "otel-collector"


def _file(root: Path) -> Path:
    return root / "stack.json"
