"""JSON schemas of the objects of Kubernetes, KEDA and the Prometheus operator, from their Go modules.

A module is downloaded once; what is kept of it is in the cache of `local.builds`.
"""

import functools
import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema_rs
import yaml

from local import builds
from local.builds import Build
from local.programs import LocalError

#: The versions of Kubernetes: each module with the checksum that Go computes of it.
KUBERNETES = {
    "v1.35.4": "h1:o/8dBC/pHVpYoGV4OAIytAlNPZbdYVTXJHoYvXC4qzM=",
    "v1.36.3": "h1:qDQdoMiluAE2Eab6Fa52YV+WjiGz9mZFFoagEA6cI+o=",
    "v1.37.2": "h1:A2VDEiObzkYqFTKhSsn0ZEb0RlLEXpHWj93gi2HqEwE=",
}
_KUBERNETES = "k8s.io/kubernetes"
_OPENAPI = "api/openapi-spec/v3"
_KINDS = (
    "api__v1",
    "apis__apps__v1",
    "apis__autoscaling__v2",
    "apis__batch__v1",
    "apis__networking.k8s.io__v1",
    "apis__policy__v1",
)
_CRDS = (
    (
        "github.com/kedacore/keda/v2",
        "v2.21.0",
        "h1:R6z2HZvstK4RLUMxroNACzBj74xGxt3kG59b5Xc+Xps=",
        "config/crd/bases/keda.sh_scaledobjects.yaml",
    ),
    (
        "github.com/prometheus-operator/prometheus-operator",
        "v0.85.0",
        "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
        "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
    ),
)
_MODULES = (
    *(
        (_KUBERNETES, version, checksum, *(f"{_OPENAPI}/{kind}_openapi.json" for kind in _KINDS))
        for version, checksum in KUBERNETES.items()
    ),
    *_CRDS,
)


def faults(version: str, document: dict[str, Any]) -> list[str]:
    """What is wrong with an object, in a version of Kubernetes."""
    validator = _validator(version, document["apiVersion"], document["kind"])
    return [f"{'/'.join(map(str, error.instance_path))}: {error.message}" for error in validator.iter_errors(document)]


@functools.cache
def _validator(version: str, api_version: str, kind: str) -> jsonschema_rs.Draft7Validator:
    return jsonschema_rs.Draft7Validator(_schemas(version)[api_version, kind])


@functools.cache
def _schemas(version: str) -> dict[tuple[str, str], Any]:
    folder = builds.ensure(_build())
    found = {}
    for file in (folder / version).glob("*.json"):
        components = json.loads(file.read_bytes())["components"]
        _close(components)
        for name, schema in components["schemas"].items():
            for kind in schema.get("x-kubernetes-group-version-kind", []):
                root = {"$ref": f"#/components/schemas/{name}", "components": components}
                group = f"{kind['group']}/" if kind["group"] else ""
                key = f"{group}{kind['version']}", kind["kind"]
                if key[0] in _api_versions(file):
                    found[key] = root
    for file in folder.glob("*.yaml"):
        crd = yaml.safe_load(file.read_bytes())["spec"]
        for served in crd["versions"]:
            schema = served["schema"]["openAPIV3Schema"]
            _close(schema)
            found[f"{crd['group']}/{served['name']}", crd["names"]["kind"]] = schema
    return found


def _api_versions(file: Path) -> str:
    """The API version that a file of OpenAPI documents is named for."""
    return file.name.removesuffix("_openapi.json").removeprefix("apis__").removeprefix("api__").replace("__", "/")


def _close(node: object) -> None:
    """Refuse unknown fields, as the API server does when it is asked to be strict."""
    if isinstance(node, dict):
        if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
            node.setdefault("additionalProperties", False)
        if isinstance(pattern := node.get("pattern"), str):
            node["pattern"] = pattern.replace("(?i)", "")  # only in Go
        for part in node.values():
            _close(part)
    elif isinstance(node, list):
        for part in node:
            _close(part)


def _build() -> Build:
    return Build("Kubernetes' schemas", f"kubernetes-{hashlib.sha256(repr(_MODULES).encode()).hexdigest()[:12]}", _make)


def _make(result: Path, log: Path) -> None:
    modules = result.parent / "modules"
    for module, version, checksum, *files in _MODULES:
        command = [str(builds.go_binaries() / "go"), "mod", "download", f"{module}@{version}"]
        env = builds.go_environment() | {"GOMODCACHE": str(modules), "GOFLAGS": "-modcacherw"}
        with log.open("ab") as output:
            subprocess.run(command, cwd=result, env=env, stdout=output, stderr=subprocess.STDOUT, check=True)
        found = (modules / "cache/download" / module / "@v" / f"{version}.ziphash").read_text().strip()
        if found != checksum:
            raise LocalError(f"{module}@{version}: the checksum is {found}, expected {checksum}")
        target = result / version if module == _KUBERNETES else result
        target.mkdir(exist_ok=True)
        for file in files:
            shutil.copy(modules / f"{module}@{version}" / file, target)
        shutil.rmtree(modules)
