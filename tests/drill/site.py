"""A whole system for one case: servers, roles, a sender, and three days of history."""

import json
import math
import os
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from local.builds import Built
from local.exporters import Exporters
from local.programs import LOOPBACK, LocalError, Process
from local.stack import Ports, Stack
from prometheus import rules
from tests import panels
from tests.pipeline.asking import Grafana
from tests.proxy import SlowBucket
from tests.system.blackbox import System

#: One submission per interval; each becomes an object, since the flush age is 1 s.
INTERVAL_S = 1.0
HISTORY_S = 3 * 86_400
HISTORY_STEP_S = 30
#: The history ends so long before the start: Prometheus uses a sample for five minutes.
HISTORY_GAP_S = 330
COMMAND_S_MAX = 60.0
#: What the history contains: the rates of events on which there are objectives.
OBJECTIVES = ("requests", "uploads", "deliveries", "attempts")


class Alertmanager:
    """Receives what Prometheus sends to an Alertmanager, and keeps the last state of each alert."""

    def __init__(self) -> None:
        self.alerts: dict[str, Mapping[str, Any]] = {}
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                for alert in json.loads(self.rfile.read(int(self.headers["Content-Length"]))):
                    receiver.alerts[json.dumps(alert["labels"], sort_keys=True)] = alert
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name of the library
                pass

        self._server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]

    @contextmanager
    def running(self) -> Iterator[None]:
        threading.Thread(target=self._server.serve_forever, args=(0.2,), daemon=True).start()
        try:
            yield
        finally:
            self._server.shutdown()
            self._server.server_close()

    def ends_at(self, name: str) -> float | None:
        """The time at which an alert ends if Prometheus does not send it again; None if it was never sent."""
        times = [_unix(alert["endsAt"]) for alert in self.alerts.values() if alert["labels"]["alertname"] == name]
        return max(times, default=None)


def _unix(text: str) -> float:
    import datetime as dt

    return dt.datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", text)).timestamp()


@dataclass
class Site:
    """The running system of a case. Its parts are child processes, which a case stops and starts."""

    system: System
    bucket: SlowBucket
    alertmanager: Alertmanager = field(default_factory=Alertmanager)
    parts: dict[str, Process] = field(default_factory=dict)
    #: When the fault began, in seconds since 1970.
    began_at: float = 0
    ending: ExitStack = field(default_factory=ExitStack)

    @property
    def stack(self) -> Stack:
        return self.system.stack

    @property
    def prometheus_url(self) -> str:
        return f"http://{LOOPBACK}:{self.stack.ports.prometheus}"

    def log(self, name: str) -> str:
        return self.system.log(name).read_text(errors="replace")

    # --- what dashboards and operators ask

    def panel(self, dashboard: str, title: str) -> dict[str, float]:
        """The current values of a panel's queries, without the line of its limit, by the labels of each series."""
        found = [
            query
            for query in panels.queries()
            if query.panel == title
            and query.dashboard == dashboard
            and query.datasource == "prometheus"
            and rules.names(query.expr)
        ]
        assert found, f"there is no panel {title!r}"
        return {
            f"{query.ref_id} {_shown(series.labels)}": series.values[-1]
            for query in found
            for series in Grafana(self.system).ask(query)
            if series.values
        }

    def query(self, expr: str) -> list[tuple[Mapping[str, str], float]]:
        result = self.system.prometheus("query", query=expr)["result"]
        return [(series["metric"], float(series["value"][1])) for series in result]

    def value(self, expr: str) -> float:
        """The sum of the series of an instant query."""
        return math.fsum(value for _, value in self.query(expr))

    def run(self, script: str, variables: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
        """Runs a block of commands of the runbook, after `. .local/up/env` as its introduction says."""
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f". {shlex.quote(str(self.stack.root / 'env'))}\n{script}"],
            env={**os.environ, "PATH": f"{Path(self.stack_command).parent}:{os.environ['PATH']}", **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S_MAX,
            check=False,
        )

    @property
    def stack_command(self) -> str:
        return self.stack.roles[0].command[0]


def _shown(labels: Mapping[str, str]) -> str:
    hidden = {"__name__", "job", "instance", "service_name", "service_version", "deployment_environment_name"}
    return " ".join(value for name, value in sorted(labels.items()) if name not in hidden)


def disjoint_ports(count: int) -> list[Ports]:
    """Ports for several systems that run at the same time, chosen before any of them listens."""
    chosen: list[Ports] = []
    while len(chosen) < count:
        ports = Ports.free()
        # a system's ports follow one another
        if all(abs(ports.nats - other.nats) > 100 for other in chosen):
            chosen.append(ports)
    return chosen


@contextmanager
def running(
    root: Path, ports: Ports, built: Built, env: Mapping[str, str], *, slow_bucket: bool, fleet: bool = True
) -> Iterator[Site]:
    """Starts everything, with a consumer that writes through the proxy if `slow_bucket` is set; a `fleet` sends."""
    stack = Stack.create(root, ports, built, Exporters.configured({}, tempo=built.tempo is not None))
    system = System(stack, env)
    write_history(built.promtool, root, stack)
    with SlowBucket(stack.account.port) as bucket:
        site = Site(system, bucket)
        through = {"AWS_ENDPOINT_URL_S3": bucket.url} if slow_bucket else {}
        publisher = system.role("publisher")
        publisher = replace(publisher, command=(*publisher.command, "--interval-s", str(INTERVAL_S)))
        with site.alertmanager.running():
            (root / "prometheus" / "targets" / "alertmanager.yaml").write_text(
                json.dumps([{"targets": [f"{LOOPBACK}:{site.alertmanager.port}"]}])
            )
            with (
                system.running(*stack.servers) as servers,
                system.running(system.role("api"), system.role("consumer", **through)) as roles,
                system.running(*((publisher,) if fleet else ()), system.role("canary")) as senders,
            ):
                site.parts = {**servers, **roles, **senders}
                with site.ending:
                    yield site


def write_history(promtool: Path, root: Path, stack: Stack) -> None:
    """Gives Prometheus three days in which the system worked at the load of the drill.

    Alerts on objectives compare the last minutes with hours and days: on a system without a past, they would fire
    earlier and end later than on one that runs for long.
    """
    assert stack.servers  # creates Prometheus' folder
    now = int(time.time()) - HISTORY_GAP_S
    lines = []
    for objective in OBJECTIVES:
        for name, value in ((f"bronze:{objective}:rate5m", 1 / INTERVAL_S), (f"bronze:{objective}_bad:rate5m", 0.0)):
            lines.append(f"# TYPE {name} gauge\n")
            lines += [f"{name} {value} {at}\n" for at in range(now - HISTORY_S, now, HISTORY_STEP_S)]
    file = root / "history.txt"
    file.write_text("".join((*lines, "# EOF\n")))
    outcome = subprocess.run(
        [promtool, "tsdb", "create-blocks-from", "openmetrics", file, root / "prometheus" / "data"],
        capture_output=True,
        text=True,
        check=False,
    )
    if outcome.returncode:
        raise LocalError(f"promtool could not write the history: {outcome.stderr}")


def values(found: Mapping[str, float]) -> str:
    """A panel's values as text, the largest first."""
    largest: Sequence[tuple[str, float]] = sorted(found.items(), key=lambda item: -item[1])[:4]
    return ", ".join(f"{name.partition(' ')[2]} {value:.3g}".strip() for name, value in largest)
