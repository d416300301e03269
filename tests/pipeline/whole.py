"""A complete system for one test module."""

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
    """A stack with traces in Tempo if it is installed, else in Zipkin. `chosen` are exporters by signal."""
    settings: Mapping[str, str] = {exporters.variable(signal): name for signal, name in chosen.items()}
    return Stack.create(root, Ports.free(), built, Exporters.configured(settings, tempo=built.tempo is not None))


def quicken(stack: Stack, thresholds: Thresholds) -> None:
    """Gives the stack's Prometheus, before its start, rules with these thresholds and short evaluation intervals."""
    folder = stack.root / "prometheus" / "rules"
    assert stack.servers
    folder.unlink()
    rules.write(folder, thresholds)
    for file in folder.iterdir():
        file.write_text(re.sub(r"\binterval: \w+", f"interval: {EVERY}", file.read_text()))
