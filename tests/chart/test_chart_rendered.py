"""What the chart renders to: valid objects, as they are reviewed in golden/, with the files of the repository."""

import base64
import gzip
import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import bronze
from bronze.records import sources
from bronze.settings import Settings
from bronze.telemetry.schema import registry
from local import builds
from local.builds import REPOSITORY
from tests.chart import golden, schemas
from tests.chart.helm import CHART, RELEASE, VALUES, pods, render, run

each_values = pytest.mark.parametrize("values", VALUES, ids=lambda file: file.stem)
#: Settings that other values set, or that have no use in a pod.
NOT_FOR_USERS = {
    *("SOURCES", "LANES", "QUEUE_REPLICAS", "OPEN_BATCHES_MAX", "WORKERS", "BUCKET", "PREFIX", "VIEW_DIR"),
    *("NATS_URL", "NATS_USER", "NATS_PASSWORD", "NATS_PASSWORD_FILE", "NATS_SERVER_NAME"),
    *("NATS_CA_FILE", "NATS_CERT_FILE", "NATS_KEY_FILE"),
    *("WEBHOOK_URL", "WEBHOOK_SECRETS", "WEBHOOK_SECRETS_FILE", "NOTIFY_DIR", "NOTIFY_TABLES"),
    *("API_HOST", "API_PORT", "AUTH", "TLS_CERT_FILE", "TLS_KEY_FILE", "API_URL", "API_KEY", "API_KEY_FILE"),
    *("PROMETHEUS_URL", "TEMPO_URL", "ZIPKIN_URL"),
    *("TABLE_CATALOG", "RETENTION_DAYS"),
}


@cache
def rendered(values: Path) -> list[dict[str, Any]]:
    return render(values)


def named(values: str) -> list[dict[str, Any]]:
    return rendered(next(file for file in VALUES if file.stem == values))


@cache
def collector() -> Path:
    return builds.build_all().collector


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {document["metadata"]["name"]: document for document in documents if document["kind"] == kind}


def env(container: dict[str, Any]) -> dict[str, Any]:
    return {variable["name"]: variable.get("value") for variable in container["env"]}


@each_values
def test_helm_finds_no_fault(values: Path) -> None:
    outcome = run("lint", "--strict", CHART, "--values", values)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@each_values
def test_render_is_the_reviewed_one(values: Path) -> None:
    """After a change of the chart: `python -m tests.chart.golden`, and look at the difference."""
    assert golden.text(values) == (golden.FOLDER / values.name).read_text()


@each_values
@pytest.mark.parametrize("version", schemas.KUBERNETES)
def test_kubernetes_takes_every_object(version: str, values: Path) -> None:
    found = {document["metadata"]["name"]: schemas.faults(version, document) for document in rendered(values)}
    assert {name: faults for name, faults in found.items() if faults} == {}


def test_wrong_objects_are_found() -> None:
    """The schemas are those of the objects, and know every field."""
    for kind in ("Deployment", "ScaledObject", "ServiceMonitor", "PrometheusRule"):
        of_values = {"ScaledObject": "scaled-by-age", "Deployment": "default"}.get(kind, "monitored")
        document = next(iter(of_kind(named(of_values), kind).values()))
        for version in schemas.KUBERNETES:
            assert schemas.faults(version, document | {"spec": document["spec"] | {"unknown": 1}})
            assert schemas.faults(version, document | {"spec": []})


@each_values
def test_objects_fit_together(values: Path) -> None:
    """Names are unique, and whatever a pod names is there: volumes, ConfigMaps, service accounts, ports."""
    documents = rendered(values)
    names = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(names) == len(set(names))
    maps, accounts = of_kind(documents, "ConfigMap"), of_kind(documents, "ServiceAccount")
    claims = {name: found["spec"]["volumeClaimTemplates"] for name, found in of_kind(documents, "StatefulSet").items()}
    assert claims.keys() <= of_kind(documents, "Service").keys()
    for pod in pods(documents).values():
        (container,) = pod["containers"]
        assert pod.get("serviceAccountName", "default") in {*accounts, "default"}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        claimed = {claim["metadata"]["name"] for claim in claims.get(pod.get("serviceAccountName", ""), [])}
        assert {mount["name"] for mount in container["volumeMounts"]} == {*volumes, *claimed}
        assert {volume["configMap"]["name"] for volume in volumes.values() if "configMap" in volume} <= set(maps)
        variables = [variable["name"] for variable in container["env"]]
        assert len(variables) == len(set(variables))
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if port := container.get(probe, {}).get("httpGet", {}).get("port"):
                assert port in {named["name"] for named in container["ports"]}
    roles = of_kind(documents, "Deployment") | of_kind(documents, "StatefulSet")
    labels = [document["spec"]["template"]["metadata"]["labels"] for document in roles.values()]
    for scaled in of_kind(documents, "HorizontalPodAutoscaler").values():
        target = scaled["spec"]["scaleTargetRef"]
        assert roles[target["name"]]["kind"] == target["kind"]
    for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy", "ServiceMonitor"):
        for name, document in of_kind(documents, kind).items():
            spec = document["spec"]
            selector = spec.get("podSelector") or spec["selector"]
            selector = selector.get("matchLabels", selector)
            assert name.endswith("-admin") or any(selector.items() <= found.items() for found in labels)


@each_values
def test_a_pod_can_do_little_harm(values: Path) -> None:
    """Not root, no way to more, no token of the cluster, a root that cannot be written, and bounded memory."""
    for name, pod in pods(rendered(values)).items():
        (container,) = pod["containers"]
        assert pod["automountServiceAccountToken"] is False
        assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, 10000)
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
        writable = [volume["name"] for volume in pod["volumes"] if "emptyDir" in volume]
        assert writable == (["tmp", "state"] if name == "api" and values.stem != "every-role" else ["tmp"])
        assert all(volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if "emptyDir" in volume)


@each_values
def test_services_add_no_settings(values: Path) -> None:
    """Of a Service `bronze-api`, Kubernetes would set BRONZE_API_PORT to an address."""
    assert all(pod["enableServiceLinks"] is False for pod in pods(rendered(values)).values())


@each_values
def test_secrets_are_named_only(values: Path) -> None:
    documents = rendered(values)
    assert "Secret" not in {document["kind"] for document in documents}
    for pod in pods(documents).values():
        for variable in pod["containers"][0]["env"]:
            if re.search("SECRET|PASSWORD$|TOKEN|KEY_ID|API_KEY$", variable["name"]):
                assert "value" not in variable


def test_users_set_every_other_setting() -> None:
    """A setting of Bronze is one of the chart's values, or can be set in `settings`."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    known = {name.upper() for name in Settings.model_fields}
    assert known >= NOT_FOR_USERS
    assert schema["properties"]["settings"]["properties"].keys() == {f"BRONZE_{name}" for name in known - NOT_FOR_USERS}


def test_variables_are_settings() -> None:
    known = {f"BRONZE_{name.upper()}" for name in Settings.model_fields}
    for file in VALUES:
        for pod in pods(rendered(file)).values():
            assert {name for name in env(pod["containers"][0]) if name.startswith("BRONZE_")} <= known


def test_chart_and_image_have_the_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (bronze.__version__, bronze.__version__)
    images = {pod["containers"][0]["image"] for pod in pods(named("default")).values()}
    assert images == {f"bronze:{bronze.__version__}"}


def test_files_are_those_of_the_repository() -> None:
    """Links, so that nothing is copied."""
    assert {file.name for file in (CHART / "files").iterdir() if not file.is_symlink()} == set()
    assert all(file.resolve().is_relative_to(REPOSITORY) and file.exists() for file in (CHART / "files").iterdir())


def test_a_package_contains_them(tmp_path: Path) -> None:
    """What is rendered of it is the same."""
    monitored = next(file for file in VALUES if file.stem == "monitored")
    packaged = run("package", CHART, "--destination", tmp_path)
    assert packaged.returncode == 0, packaged.stderr
    (package,) = tmp_path.iterdir()
    renders = [run("template", *RELEASE, chart, "--values", monitored) for chart in (package, CHART)]
    assert [render.returncode for render in renders] == [0, 0]
    assert renders[0].stdout == renders[1].stdout


def test_rules_and_dashboards_are_passed_on() -> None:
    documents = named("monitored")
    rules = {name: document["spec"] for name, document in of_kind(documents, "PrometheusRule").items()}
    files = sorted((REPOSITORY / "prometheus/rules").glob("*.yaml"))
    assert rules == {
        f"bronze-{file.stem.replace('_', '-')}": yaml.load(file.read_bytes(), yaml.CSafeLoader) for file in files
    }
    boards = {
        file: text
        for document in of_kind(documents, "ConfigMap").values()
        if "grafana_dashboard" in document["metadata"]["labels"]
        for file, text in document["data"].items()
    }
    files = sorted((REPOSITORY / "grafana/provisioning/dashboards").glob("*.json"))
    assert boards == {file.name: file.read_text() for file in files}


def test_scraped_series_are_those_of_prometheus_yaml() -> None:
    """The jobs have the names that rules read, and their series the same labels."""
    configured = yaml.safe_load((REPOSITORY / "prometheus/prometheus.yaml").read_text())["scrape_configs"]
    relabelings = {job["job_name"]: job.get("metric_relabel_configs") for job in configured}
    for document in of_kind(named("monitored"), "ServiceMonitor").values():
        (endpoint,) = document["spec"]["endpoints"]
        (job,) = [rule["replacement"] for rule in endpoint["relabelings"] if rule["targetLabel"] == "job"]
        found = [
            {re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", key): value for key, value in rule.items()}
            for rule in endpoint["metricRelabelings"]
        ]
        assert found == relabelings[job]


def test_consumers_are_scaled_by_a_metric_of_the_schema() -> None:
    """And to no more than can work at the same time."""
    spec = of_kind(named("scaled-by-age"), "ScaledObject")["bronze-consumer"]["spec"]
    (trigger,) = spec["triggers"]
    (metric,) = re.findall(r"\bbronze_[a-z_]+(?=\{)", trigger["metadata"]["query"])
    assert metric in {known.prometheus_name for known in registry().metrics.values()}
    assert spec["maxReplicaCount"] == 4 * len(sources.built_in())
    assert "replicas" not in of_kind(named("scaled-by-age"), "Deployment")["bronze-consumer"]["spec"]


def test_apis_share_the_batches() -> None:
    """Also while a rollout adds one."""
    for values, most in (("default", 2), ("scaled-by-age", 9), ("least", 1)):
        share = int(env(pods(named(values))["api"]["containers"][0])["BRONZE_OPEN_BATCHES_MAX"])
        assert share * (most + 1) <= 40 < (share + 1) * (most + 1)


def test_the_collectors_configuration_is_merged_as_the_collector_does() -> None:
    for values, layers in {
        "default": ["sampling/all", "exporters/metrics/prometheus", "exporters/traces/tempo", "exporters/logs/none"],
        "least": None,
    }.items():
        found = of_kind(named(values), "ConfigMap").get("bronze-otel-collector")
        if layers is None:
            assert found is None
            continue
        expected: dict[str, Any] = {}
        for layer in ["config", *layers, "access/token"]:
            _merge(expected, yaml.safe_load((REPOSITORY / f"otel-collector/{layer}.yaml").read_text()))
        assert found is not None
        assert yaml.safe_load(found["data"]["relay"]) == expected


@each_values
def test_the_collector_takes_its_configuration(values: Path, tmp_path: Path) -> None:
    """With any layers, also those of the user's own."""
    if configured := of_kind(rendered(values), "ConfigMap").get("bronze-otel-collector"):
        file = tmp_path / "relay.yaml"
        file.write_text(configured["data"]["relay"])
        env = {"COLLECTOR_OTLP_TOKEN": "checked", "COLLECTOR_STATE_DIR": str(tmp_path)}
        command = [str(collector()), "validate", "--config", str(file)]
        checked = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert checked.returncode == 0, checked.stderr


def _merge(into: dict[str, Any], layer: dict[str, Any]) -> None:
    for key, value in layer.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def test_a_release_fits_into_a_secret() -> None:
    """Helm keeps chart and objects in one, compressed and twice in base64; Kubernetes takes 1 MiB."""
    files = [
        file for link in (CHART, *(CHART / "files").iterdir()) for file in link.resolve().rglob("*") if file.is_file()
    ]
    chart = [base64.b64encode(file.read_bytes()).decode() for file in files]
    release = gzip.compress(json.dumps([chart, named("monitored")]).encode())
    assert len(release) * (4 / 3) ** 2 < 0.75 * 2**20


def test_notes_say_what_is_left_to_do() -> None:
    outcome = run("install", *RELEASE, CHART, "--dry-run=client")
    assert outcome.returncode == 0, outcome.stderr
    notes = outcome.stdout.partition("NOTES:")[2]
    assert "bronze-canary-key" in notes
    assert "4 lanes in all" in notes
