"""The real collector with layers and backends that a test chooses."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from local import programs, servers
from local.builds import Built
from local.exporters import EVERY_TRACE, SIGNALS
from local.programs import LOOPBACK, Process


@dataclass(frozen=True)
class Rig:
    """The backends, and the collector's ports and folders."""

    built: Built
    prometheus: str
    zipkin: Callable[[], str]
    scrape_port: int
    #: The collector's first port. It is always the same, because it is a label of the SDK's own metrics.
    port: int
    state: Path

    @property
    def log(self) -> Path:
        return self.state / "log"

    @contextmanager
    def collector(self, *layers: str, sampling: str = EVERY_TRACE, env: Mapping[str, str]) -> Iterator[Process]:
        """The collector, with `none` for the signals without a layer."""
        signals = {layer.partition("/")[0] for layer in layers}
        layers += tuple(f"{signal}/none" for signal in SIGNALS if signal not in signals)
        own = {"COLLECTOR_TRACES_RATIO": "0"}  # only the test's own spans are counted
        program = servers.collector(
            self.state,
            self.port,
            "test",
            executable=self.built.collector,
            layers=layers,
            sampling=sampling,
            env={**own, **env},
        )
        with programs.start(program, self.log) as process:
            yield process


def address(collector: Process) -> str:
    return f"http://{LOOPBACK}:{collector.program.ports['otlp']}"


def as_in_a_role(patch: pytest.MonkeyPatch) -> None:
    """The environment that the SDK reads, except that metrics are exported only on the test's request."""
    patch.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")
    patch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "600000")


#: Log lines that are no errors: a stopping queue logs kept data as dropped; a probe may arrive before the metrics.
_HARMLESS = ("interrupted due to shutdown", "reader is not registered")


def complaints(log: Path) -> list[str]:
    """The collector's warnings, for example about deprecated settings."""
    lines = (json.loads(line) for line in log.read_text().splitlines() if line.startswith("{"))
    return [
        line["msg"]
        for line in lines
        if line["level"] != "info" and not str(line.get("error", "")).startswith(_HARMLESS)
    ]
