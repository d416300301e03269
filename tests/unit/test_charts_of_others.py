"""The values for the charts of other servers: their versions, and what records depend on."""

import re
from typing import Any

import pytest
import yaml

from local.builds import REPOSITORY

FOLDER = REPOSITORY / "charts" / "values"
COMPOSE = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]
PROMETHEUS = yaml.safe_load((REPOSITORY / "prometheus" / "prometheus.yaml").read_text())
FILES = sorted(FOLDER.glob("*.yaml"))


def values(chart: str) -> Any:
    return yaml.safe_load((FOLDER / f"{chart}.yaml").read_text())


@pytest.mark.parametrize("chart", [file.stem for file in FILES])
def test_the_page_installs_the_version_that_values_were_written_for(chart: str) -> None:
    header = (FOLDER / f"{chart}.yaml").read_text().replace("\n# ", " ")
    (version, repository) = re.findall(rf"chart {chart} (\S+) of (https://\S+)", header)[0]
    page = (REPOSITORY / "docs" / "kubernetes.md").read_text().replace("\\\n ", "")
    (command,) = re.findall(rf"^helm install \S+ {chart} .*$", page, re.MULTILINE)
    assert f"--version {version} " in command
    assert f"--repo {repository} " in command
    assert f"--values charts/values/{chart}.yaml" in command


def test_images_are_those_of_compose() -> None:
    """But for Tempo: its chart cannot run Tempo 3."""
    prometheus = values("kube-prometheus-stack")
    for service, tag in {
        "nats": values("nats")["container"]["image"]["tag"],
        "otel-collector": values("opentelemetry-collector")["image"]["tag"],
        "prometheus": prometheus["prometheus"]["prometheusSpec"]["image"]["tag"],
        "alertmanager": prometheus["alertmanager"]["alertmanagerSpec"]["image"]["tag"],
        "grafana": values("grafana")["image"]["tag"],
    }.items():
        assert COMPOSE[service]["image"].partition("@")[0].endswith(f":{tag}")


def test_an_acknowledged_message_is_on_disk() -> None:
    """On three servers, on nodes of their own; `config.merge` is nats-server's configuration."""
    config = values("nats")["config"]
    assert config["cluster"] == {"enabled": True, "replicas": 3}
    assert config["jetstream"]["merge"]["sync_interval"] == "always"
    spread = values("nats")["podTemplate"]["topologySpreadConstraints"]["kubernetes.io/hostname"]
    assert spread == {"maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}


def test_each_user_of_the_queue_has_a_password() -> None:
    env = values("nats")["container"]["env"]
    for user, variable in re.findall(
        r"user: (\w+)\n\s+password: \$(\w+)", (REPOSITORY / "nats/users.conf").read_text()
    ):
        named = f"BRONZE_KEY_{user.upper()}"
        assert env[variable] == f'"$({named})"'
        assert env[named]["valueFrom"]["secretKeyRef"] == {"name": "bronze-queue", "key": user}
        assert named < variable  # Kubernetes expands only variables before it, and the chart sorts them


def test_prometheus_is_configured_as_elsewhere() -> None:
    spec = values("kube-prometheus-stack")["prometheus"]["prometheusSpec"]
    assert spec["otlp"] == {
        "translationStrategy": PROMETHEUS["otlp"]["translation_strategy"],
        "promoteResourceAttributes": PROMETHEUS["otlp"]["promote_resource_attributes"],
    }
    assert spec["tsdb"]["outOfOrderTimeWindow"] == PROMETHEUS["storage"]["tsdb"]["out_of_order_time_window"]
    assert spec["exemplars"]["maxSize"] == PROMETHEUS["storage"]["exemplars"]["max_exemplars"]
    assert spec["externalLabels"].keys() == PROMETHEUS["global"]["external_labels"].keys()
    assert spec["additionalAlertRelabelConfigs"] == PROMETHEUS["alerting"]["alert_relabel_configs"]
    assert [spec[name] for name in ("scrapeInterval", "scrapeTimeout", "evaluationInterval")] == [
        PROMETHEUS["global"][name] for name in ("scrape_interval", "scrape_timeout", "evaluation_interval")
    ]


def test_the_collector_has_each_variable_of_compose() -> None:
    """But those of its user's own destinations, and those of tail sampling."""
    given = {variable["name"] for variable in values("opentelemetry-collector")["extraEnvs"]}
    optional = {name for name in COMPOSE["otel-collector"]["environment"] if name.startswith("OTLP_")}
    assert COMPOSE["otel-collector"]["environment"].keys() - optional - given == {
        "BRONZE_FLUSH_AGE_S",
        "COLLECTOR_TRACES_PERCENTAGE",
    }
