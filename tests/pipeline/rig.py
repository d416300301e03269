"""The real collector with layers of a test's choice, before backends of a test's choice."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from local import programs, servers
from local.builds import Built
from local.exporters import SIGNALS
from local.programs import LOOPBACK, Process


@dataclass(frozen=True)
class Rig:
    """The backends, and the collector's own places."""

    built: Built
    prometheus: str
    zipkin: Callable[[], str]
    scrape_port: int
    #: The collector's first port: the SDK's own metrics name it, so it is always the same.
    port: int
    state: Path

    @property
    def log(self) -> Path:
        return self.state / "log"

    @contextmanager
    def collector(self, *layers: str, env: Mapping[str, str]) -> Iterator[Process]:
        """The collector, with `none` for the signals that no layer takes."""
        signals = {layer.partition("/")[0] for layer in layers}
        layers += tuple(f"{signal}/none" for signal in SIGNALS if signal not in signals)
        own = {"COLLECTOR_TRACES_RATIO": "0"}  # it is ours that we count
        program = servers.collector(
            self.state, self.port, "test", executable=self.built.collector, layers=layers, env={**own, **env}
        )
        with programs.start(program, self.log) as process:
            yield process


def address(collector: Process) -> str:
    return f"http://{LOOPBACK}:{collector.program.ports['otlp']}"


def as_in_a_role(patch: pytest.MonkeyPatch) -> None:
    """The environment that the SDK reads; but metrics leave only when the test says so."""
    patch.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")
    patch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "600000")


#: Errors that are none: what a queue keeps while it stops is said to be dropped; a probe may come before the metrics.
_HARMLESS = ("interrupted due to shutdown", "reader is not registered")


def complaints(log: Path) -> list[str]:
    """What a collector warns of: of what is deprecated, among others."""
    lines = (json.loads(line) for line in log.read_text().splitlines() if line.startswith("{"))
    return [
        line["msg"]
        for line in lines
        if line["level"] != "info" and not str(line.get("error", "")).startswith(_HARMLESS)
    ]
