"""Commands and probes of every container, as the chart has them, on the real program."""

import base64
import json
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
import yaml

from local import programs, servers
from local.builds import REPOSITORY
from local.machine import Deadline, limit_s
from local.programs import LOOPBACK, NotReady, Process, Program, http_get
from local.servers import NATS_USERS, S3_RIGHTS
from tests.chart.helm import pods, render
from tests.inbox import open_inbox

ENTRYPOINT = str(Path(sys.executable).parent / "bronze")
COMMAND_S_MAX = 60
#: Sources, with what they declare of the age of their objects.
_AGES = {"parts": "retention_days = 90\n", "tools": ""}
POLL_S = 0.1
#: The image's variables, without PATH.
_ENV = (REPOSITORY / "service/Dockerfile").read_text().rpartition("\nENV ")[2].partition("\nARG ")[0]
IMAGE = dict(re.findall(r"([A-Z_]+)=([\w.]+)", _ENV))
#: The variable of a role's port, which each container has the default of.
PORTS = {
    "api": "BRONZE_API_PORT",
    "consumer": "OTEL_EXPORTER_PROMETHEUS_PORT",
    "canary": "OTEL_EXPORTER_PROMETHEUS_PORT",
    "table": "OTEL_EXPORTER_PROMETHEUS_PORT",
    "notify": "OTEL_EXPORTER_PROMETHEUS_PORT",
    "retain": "OTEL_EXPORTER_PROMETHEUS_PORT",
}


@dataclass
class Node:
    """Runs the chart's containers on this machine, each with the ports of its own that are given."""

    state: Path
    values: dict[str, Any]
    secrets: dict[str, dict[str, str]]
    ports: Mapping[str, int]
    documents: list[dict[str, Any]] = field(default_factory=list)

    def install(self, **more: object) -> None:
        """Render the chart, with more values."""
        self.values |= more
        file = self.state / "values.yaml"
        file.write_text(yaml.safe_dump(self.values))
        self.documents = render(file)

    def run_job(self, name: str) -> str:
        """Run a Job to its end, and return its output."""
        container, env = self._container(name)
        outcome = subprocess.run(
            [ENTRYPOINT, *container["args"]],
            env=env,
            capture_output=True,
            text=True,
            timeout=limit_s(COMMAND_S_MAX),
            check=False,
        )
        assert outcome.returncode == 0, outcome.stderr
        return outcome.stdout

    def start(self, role: str) -> Process:
        """Start a container; it is ready when each of its probes has succeeded."""
        container, env = self._container(role)
        port = self.ports[role]

        def ready() -> None:
            for name in ("startupProbe", "livenessProbe", "readinessProbe"):
                if probe := container.get(name):
                    self._probe(container, probe, port)

        program = Program(role, (ENTRYPOINT, *container["args"]), {"http": port}, ready, env)
        return programs.start(program, self.state / f"{role}.log")

    def _probe(self, container: Mapping[str, Any], probe: Mapping[str, Any], port: int) -> None:
        if "httpGet" in probe:
            asked = probe["httpGet"]
            assert asked["port"] in {declared["name"] for declared in container["ports"]}
            if asked.get("scheme") == "HTTPS":
                _check_encrypted(port, asked["path"])
            else:
                http_get(port, asked["path"])
            return
        declared = str(container["ports"][0]["containerPort"])
        python, *arguments = (part.replace(declared, str(port)) for part in probe["exec"]["command"])
        assert python == "python"  # of the image
        outcome = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, timeout=COMMAND_S_MAX, check=False
        )
        if outcome.returncode:
            raise NotReady(outcome.stderr)

    def _container(self, name: str) -> tuple[dict[str, Any], dict[str, str]]:
        """A container with its environment, after its volumes were written to a folder."""
        pod = pods(self.documents)[name]
        (container,) = pod["containers"]
        root = self.state / name
        for mount in container["volumeMounts"]:
            for volume in pod["volumes"]:  # those that are claimed are empty
                if volume["name"] == mount["name"] and "emptyDir" not in volume:
                    self._write(root / mount["mountPath"].lstrip("/"), volume)
        env = dict(IMAGE) | {"BRONZE_API_HOST": LOOPBACK, "OTEL_EXPORTER_PROMETHEUS_HOST": LOOPBACK}
        for source in container.get("envFrom", []):
            secret = self.secrets[source["secretRef"]["name"]]
            env |= {source.get("prefix", "") + key: value for key, value in secret.items()}
        for variable in container["env"]:
            if "valueFrom" in variable:
                key = variable["valueFrom"]["secretKeyRef"]
                env[variable["name"]] = self.secrets[key["name"]][key["key"]]
            else:
                text = re.sub(r"\$\((\w+)\)", lambda found: env[found[1]], variable["value"])
                text = text.replace("://bronze-api:8000", f"://{LOOPBACK}:{self.ports['api']}")
                env[variable["name"]] = (
                    str(root) + text if text.startswith(("/etc/bronze", "/var/lib/bronze")) else text
                )
        if name in PORTS:
            env[PORTS[name]] = str(self.ports[name])
        return container, env

    def _write(self, folder: Path, volume: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if named := volume.get("configMap"):
            (found,) = [d for d in self.documents if (d["kind"], d["metadata"]["name"]) == ("ConfigMap", named["name"])]
            files = found["data"]
        else:
            secret = self.secrets[volume["secret"]["secretName"]]
            items = volume["secret"].get("items") or [{"key": key, "path": key} for key in secret]
            files = {item["path"]: secret[item["key"]] for item in items}
        for name, text in files.items():
            (folder / name).write_text(text)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A machine with queue and bucket, both with a user for each role."""
    first = programs.free_ports(servers.SEAWEEDFS_PORTS + 1 + len(PORTS))
    queue, *own = range(first + servers.SEAWEEDFS_PORTS, first + servers.SEAWEEDFS_PORTS + 1 + len(PORTS))
    nats, s3 = tmp_path / "nats", tmp_path / "s3"
    accounts = {identity: servers.s3_account(s3, first, identity=identity) for identity in S3_RIGHTS}
    passwords = {user: servers.nats_password(nats, user).read_text() for user in NATS_USERS}
    secrets = {
        f"bronze-bucket-{identity}": {"AWS_ACCESS_KEY_ID": own.access_key, "AWS_SECRET_ACCESS_KEY": own.secret_key}
        for identity, own in accounts.items()
    }
    tables = {
        name.removeprefix("PYICEBERG_CATALOG__BRONZE__"): value
        for name, value in servers.tables_env(accounts["table"]).items()
    }
    secrets["catalog"] = {"CREDENTIAL": tables.pop("CREDENTIAL")}
    values = {
        "queue": {"url": f"nats://{LOOPBACK}:{queue}", "serverName": "chart", "replicas": 1},
        "bucket": {"endpoint": f"http://{LOOPBACK}:{first}"},
        "telemetry": {"endpoint": "", "secret": "", "prometheusUrl": "", "tempoUrl": ""},
        "settings": {"BRONZE_FLUSH_AGE_S": "0.1", "BRONZE_CANARY_INTERVAL_S": "1"},
        "table": {"catalog": tables, "catalogSecret": "catalog"},
    }
    with (
        programs.start(servers.nats_with_users(nats, queue, "chart"), tmp_path / "nats.log"),
        programs.start(servers.seaweedfs(s3, accounts["admin"]), tmp_path / "s3.log"),
    ):
        yield Node(tmp_path, values, secrets | {"bronze-queue": passwords}, dict(zip(PORTS, own, strict=True)))


def test_the_chart_works_on_the_real_program(node: Node) -> None:
    """The first installation, a key of the canary, and an upgrade with another number of lanes: all Jobs end with 0,
    all probes succeed, and a record is stored before and after.
    """
    node.install()
    node.run_job("init")
    with ExitStack() as running:
        api, consumer = (running.enter_context(node.start(role)) for role in ("api", "consumer"))
        node.install(command=["keys", "create", "canary", "--scope", "admin", "--yes"])
        key = node.run_job("command").strip()
        node.secrets["bronze-canary-key"] = {"key": key}
        running.enter_context(node.start("canary"))
        _store(node, key)
        checked = rb'bronze_canary_checks_total\{[^}]*bronze_check="object"[^}]*bronze_outcome="success"[^}]*\} [1-9]'
        _until_counted(node, "canary", checked)  # its records were found in the bucket

        node.install(lanes=2, command=[])
        node.run_job("lanes")
        node.run_job("init")
        for role, process in (("api", api), ("consumer", consumer)):
            assert process.wait(COMMAND_S_MAX) == 1, f"{role} should notice that its lanes were replaced"
            running.enter_context(node.start(role))
        _store(node, key)


def test_the_roles_that_are_off_by_default_work_too(node: Node) -> None:
    """A stored record is committed to its table and announced to a webhook, as the chart runs both; retention finds
    nothing that is old enough, after it asked the tables, and its metrics say that it ran. The API has a certificate of
    a private authority.
    """
    authority = trustme.CA()
    issued, authority_file = authority.issue_cert(LOOPBACK), node.state / "authority.pem"
    authority.cert_pem.write_to_path(authority_file)
    node.secrets["api-tls"] = {
        "tls.crt": issued.cert_chain_pems[0].bytes().decode(),
        "tls.key": issued.private_key_pem.bytes().decode(),
        "ca.crt": authority_file.read_text(),
    }
    with open_inbox() as inbox, ExitStack() as running:
        node.values["api"] = {"tlsSecret": "api-tls", "caSecret": "api-tls"}
        node.values["table"] |= {"enabled": True}
        node.secrets["events"] = {"BRONZE_WEBHOOK_SECRETS": f"whsec_{base64.b64encode(bytes(32)).decode()}"}
        node.install(
            command=["keys", "create", "notify", "--scope", "admin", "--yes"],
            notify={"enabled": True, "webhookUrl": inbox.url, "secret": "events", "tables": True},
            retain={"enabled": True, "days": 1},
        )
        node.run_job("init")
        for role in ("api", "consumer"):
            running.enter_context(node.start(role))
        key = node.run_job("command").strip()
        node.secrets["bronze-notify-key"] = {"key": key}
        for role in ("table", "notify"):
            running.enter_context(node.start(role))
        assert not (node.state / "notify/etc/bronze/api-ca/tls.key").exists()
        _store(node, key, authority_file)
        deadline = Deadline(60)
        while {document["type"] for document in inbox.documents()} != {
            "bronze.object.stored",
            "bronze.table.committed",
        }:
            assert not deadline.passed(), (node.state / "notify.log").read_text()
            time.sleep(POLL_S)
        running.enter_context(node.start("retain"))
        _until_counted(node, "retain", rb'bronze_retention_runs_total\{[^}]*bronze_outcome="success"[^}]*\} 1')
        assert "0 objects deleted. 0 rows of tables deleted." in (node.state / "retain.log").read_text()


def test_retention_needs_no_age_but_that_of_a_source(node: Node) -> None:
    """Nor does it need the other roles."""
    declared = 'fields = [{ name = "part_id", type = "string", description = "Number of the part." }]'
    ages = "\n".join(f'[{name}]\ndescription = "A part."\n{more}{declared}\n' for name, more in _AGES.items())
    node.install(sources=ages, retain={"enabled": True, "every": "1s"})
    node.run_job("init")
    with node.start("retain"):
        _until_counted(node, "retain", rb'bronze_retention_runs_total\{[^}]*bronze_outcome="success"[^}]*\} [2-9]')
    assert "0 objects accepted before" in (node.state / "retain.log").read_text()


def _check_encrypted(port: int, path: str) -> None:
    """As a kubelet, which checks no certificate. Raises `NotReady`."""
    try:
        httpx.get(f"https://{LOOPBACK}:{port}{path}", verify=False, trust_env=False).raise_for_status()
    except httpx.HTTPError as error:
        raise NotReady(f"GET {path} on port {port}: {error}") from error


def _store(node: Node, key: str, authority: Path | None = None) -> None:
    """Send a record, until it is stored; by HTTPS if the certificate of an authority is given."""
    with httpx.Client(
        base_url=f"{'https' if authority else 'http'}://{LOOPBACK}:{node.ports['api']}",
        headers={"Authorization": f"Bearer {key}"},
        trust_env=False,
        verify=ssl.create_default_context(cafile=authority) if authority else True,
    ) as client:
        deadline = Deadline(30)
        while (answer := client.post("/v1/ingest/vehicles", json={"vehicle_id": "a"})).status_code != 202:
            assert not deadline.passed(), answer.text
            time.sleep(POLL_S)
        status = json.loads(answer.text)["status_url"]
        while client.get(status).json()["status"] != "stored":
            assert not deadline.passed()
            time.sleep(POLL_S)


def _until_counted(node: Node, role: str, pattern: bytes) -> None:
    """Until a line of a role's metrics has the pattern."""
    deadline = Deadline(60)
    while not re.search(pattern, http_get(node.ports[role], "/metrics")):
        assert not deadline.passed(), (node.state / f"{role}.log").read_text()
        time.sleep(POLL_S)
