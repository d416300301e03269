"""A whole system of a test's own."""

import re
from collections.abc import Mapping
from pathlib import Path

from local import exporters
from local.builds import Built
from local.exporters import Exporters
from local.stack import Ports, Stack
from prometheus import rules
from prometheus.rules import Thresholds

EVERY = "2s"


def stack(root: Path, built: Built, **chosen: str) -> Stack:
    """Traces go to Tempo where this machine has one, else to Zipkin; `chosen` are exporters by their signals."""
    settings: Mapping[str, str] = {exporters.variable(signal): name for signal, name in chosen.items()}
    return Stack.create(root, Ports.free(), built, Exporters.configured(settings, tempo=built.tempo is not None))


def quicken(stack: Stack, thresholds: Thresholds) -> None:
    """Its Prometheus, which is not started yet, gets the rules with these thresholds and evaluates them often."""
    folder = stack.root / "prometheus" / "rules"
    assert stack.servers
    folder.unlink()
    rules.write(folder, thresholds)
    for file in folder.iterdir():
        file.write_text(re.sub(r"\binterval: \w+", f"interval: {EVERY}", file.read_text()))
