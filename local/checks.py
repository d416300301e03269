"""Lets the real programs validate their configuration before anything starts."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from local import exporters
from local.builds import REPOSITORY, Built
from local.exporters import (
    EVERY_TRACE,
    SAMPLING_VARIABLE,
    SIGNALS,
    Exporters,
    every_layer,
    known_samplings,
    layer_file,
    named,
    sampling_file,
    shown,
    variable,
)
from local.programs import LocalError, environment
from local.settings import settings

CHECK_S_MAX = 600.0
PROMETHEUS = REPOSITORY / "prometheus"


@dataclass(frozen=True)
class Check:
    """A command that ends with 0 if `subject` is valid; `remedy` says what to do if it is not."""

    subject: str
    command: tuple[str, ...]
    remedy: str
    env: Mapping[str, str] = field(default_factory=dict)

    def fault(self) -> str | None:
        """The error in one sentence, followed by the program's whole output; None if there is no error."""
        outcome = subprocess.run(
            self.command,
            env={**environment(), **self.env},
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=CHECK_S_MAX,
            check=False,
        )
        if outcome.returncode == 0:
            return None
        output = [line.strip() for line in outcome.stdout.splitlines() if line.strip()] or ["no reason given"]
        reason = output[-1].removeprefix("Error: ")  # the innermost error is last
        return f"{self.subject}: {reason}: {self.remedy}\n{textwrap.indent(outcome.stdout.rstrip(), '    ')}"


def check_all(built: Built, chosen: Exporters) -> list[str]:
    """Checks every file, each layer and each sampling alone, and the exporters in use. Returns and raises as `run`."""
    layers = every_layer()
    check_names(layers)
    run([_base(built)])  # what is wrong here is wrong with each layer
    run(alone(built, layer) for layer in layers)
    samplings = [sampling for sampling in known_samplings() if sampling != EVERY_TRACE]  # which every layer is run with
    run(_sampling(built, sampling) for sampling in samplings)
    each_layer = f"otel-collector/config.yaml with each of {len(layers)} exporters alone"
    rest = run([*_in_use(built, chosen), *_prometheus(built.promtool), *_generated()])
    return [each_layer, *map(shown, map(sampling_file, samplings)), *rest]


def check_choice(built: Built, chosen: Exporters) -> list[str]:
    """Checks only the exporters in use."""
    check_names(chosen.layers)
    return run([_base(built), *_in_use(built, chosen)])


def run(checks: Iterable[Check]) -> list[str]:
    """Runs the checks in parallel and returns their subjects. Raises `LocalError` with every error."""
    checks = list(checks)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = [fault for fault in pool.map(Check.fault, checks) if fault]
    if faults:
        raise LocalError("\n".join(faults))
    return [check.subject for check in checks]


def check_names(layers: Iterable[str]) -> None:
    """Each exporter and pipeline may be in one file only: the collector would silently merge two of the same name."""
    owners: dict[tuple[str, str], str] = {}
    for layer in layers:
        for kind, ids in named(layer).items():
            for name in ids:
                if (other := owners.setdefault((kind, name), layer)) != layer:
                    both = f"{shown(layer_file(other))} and {shown(layer_file(layer))}"
                    raise LocalError(f"{both} both have the {kind} {name!r}: rename it in one of the files")


def alone(built: Built, layer: str) -> Check:
    """Checks a layer, without exporters for the other signals."""
    signal = layer.partition("/")[0]
    layers = [layer if other == signal else f"{other}/none" for other in SIGNALS]
    return _collector(built, shown(layer_file(layer)), layers, "correct that setting in this file")


def _sampling(built: Built, sampling: str) -> Check:
    subject = shown(sampling_file(sampling))
    return _collector(
        built, subject, [f"{signal}/none" for signal in SIGNALS], "correct that setting in this file", sampling
    )


def _base(built: Built) -> Check:
    layers = [f"{signal}/none" for signal in SIGNALS]
    return _collector(built, "otel-collector/config.yaml", layers, "correct that setting")


def _collector(built: Built, subject: str, layers: Sequence[str], remedy: str, sampling: str = EVERY_TRACE) -> Check:
    """Checks with the settings that the collector would run with."""
    command = (str(built.collector), "validate", *exporters.arguments(layers, sampling))
    env = exporters.environment(layers, settings(), sampling) | {"COLLECTOR_OTLP_TOKEN": "checked"}
    return Check(subject, (*command, "--config", str(exporters.ACCESS)), remedy, env)


def _in_use(built: Built, chosen: Exporters) -> Iterator[Check]:
    settings_of_exporters = ", ".join([*map(variable, SIGNALS), SAMPLING_VARIABLE])
    remedy = f"correct the file or the variable that the error names, or change {settings_of_exporters}"
    yield _collector(built, f"the exporters in use ({chosen})", chosen.layers, remedy, chosen.sampling)
    if built.tempo:
        config = REPOSITORY / "tempo" / "tempo.yaml"
        flags = (f"-config.file={config}", "-config.expand-env=true", "-config.verify=true")
        yield Check("tempo/tempo.yaml", (str(built.tempo), *flags), "correct that setting in this file")


def _generated() -> Iterator[Check]:
    for subject, module in {
        "prometheus/rules/": "prometheus.rules",
        "grafana/provisioning/dashboards/": "grafana",
        "docs/telemetry.md": "docs.telemetry",
    }.items():
        yield Check(subject, (sys.executable, "-m", module, "--check"), "run `make generate`")


def _prometheus(promtool: Path) -> Iterator[Check]:
    config = PROMETHEUS / "prometheus.yaml"
    yield Check(
        "prometheus/prometheus.yaml",
        (str(promtool), "check", "config", str(config)),
        "correct that setting in this file",
    )
    for cases in sorted((PROMETHEUS / "tests").glob("*.yaml")):
        command = (str(promtool), "test", "rules", str(cases))
        yield Check(str(cases.relative_to(REPOSITORY)), command, "correct the rule or its case")
