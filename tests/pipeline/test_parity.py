"""Metrics by OTLP and by scrape are compared, and an alert fires when they differ."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.resources import Resource

from bronze.telemetry import Telemetry, losses, sdk
from bronze.telemetry.schema import registry
from bronze.telemetry.signals import Outcome, Role, attribute
from local import programs, servers
from local.builds import Built
from local.programs import LOOPBACK, Process
from prometheus import rules
from prometheus.rules import EXTERNAL_METRICS, Thresholds
from tests.pipeline.emitter import Emitter
from tests.pipeline.rig import as_in_a_role
from tests.system.blackbox import until

INSTANCE = "parity-test"
UPLOADED = {attribute.bronze_source: "vehicles", attribute.bronze_outcome: Outcome.SUCCESS}
#: The counters that a consumer reports before it has counted anything.
COUNTERS = {
    metric.prometheus_name
    for metric in registry().metrics.values()
    if Role.CONSUMER in metric.emits and any(metric.combinations(Role.CONSUMER, ["vehicles"]))
}

DIFFERENCE = "instance:counter:difference"
FIRING = 'ALERTS{alertname="BronzePathsDiffer", alertstate="firing"}'

#: Evaluated every second instead of every five, with shorter times in proportion.
QUICK = replace(Thresholds(), parity_lag_s=6, ticket_hold_s=3)
SCRAPED_EACH_SECOND = {"_interval: 5s": "_interval: 1s", "_timeout: 4s": "_timeout: 1s"}


@dataclass(frozen=True)
class Backend:
    """Prometheus with the repository's configuration and quicker rules, and its scrape target."""

    url: str
    consumer_port: int
    collector_port: int

    @cached_property
    def _http(self) -> httpx.Client:
        return httpx.Client(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))

    def ask(self, query: str) -> list[dict[str, Any]]:
        answer = self._http.get(f"{self.url}/api/v1/query", params={"query": query})
        found: list[dict[str, Any]] = answer.raise_for_status().json()["data"]["result"]
        return found

    def values(self, query: str) -> dict[str, float]:
        """The values by the label `metric`."""
        return {series["metric"].get("metric", ""): float(series["value"][1]) for series in self.ask(query)}


@pytest.fixture
def backend(built: Built, tmp_path: Path) -> Iterator[Backend]:
    state, port = tmp_path / "prometheus", programs.free_ports()
    consumer, collector = programs.free_ports(), programs.free_ports(servers.COLLECTOR_PORTS)
    targets = {"scrape-consumer": [consumer], "scrape-collector": [collector + 1], "scrape-prometheus": [port]}
    program = servers.prometheus(state, port, targets, executable=built.prometheus)
    config = (state / "prometheus.yaml").read_text()
    for usual, quick in SCRAPED_EACH_SECOND.items():
        assert usual in config
        config = config.replace(usual, quick)
    for link in (state / "prometheus.yaml", state / "rules"):
        link.unlink()
    (state / "prometheus.yaml").write_text(config)
    rules.write(state / "rules", QUICK)
    parity = state / "rules" / "parity.yaml"
    parity.write_text(parity.read_text().replace("interval: 5s", "interval: 1s"))
    with programs.start(program, state / "log"):
        yield Backend(f"http://{LOOPBACK}:{port}", consumer, collector)


@pytest.fixture
def collector(backend: Backend, built: Built, tmp_path: Path) -> Callable[[], Any]:
    """Starts the collector that sends to the backend."""

    @contextmanager
    def running() -> Iterator[Process]:
        program = servers.collector(
            tmp_path / "collector",
            backend.collector_port,
            INSTANCE,
            executable=built.collector,
            layers=("metrics/prometheus", "traces/otlp-http", "logs/otlp-http"),
            env={
                "PROMETHEUS_OTLP_ENDPOINT": f"{backend.url}/api/v1/otlp",
                "OTLP_TRACES_ENDPOINT": backend.url,
                "OTLP_LOGS_ENDPOINT": backend.url,
            },
        )
        with programs.start(program, tmp_path / "collector.log") as process:
            yield process

    return running


@pytest.fixture
def quick_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    as_in_a_role(monkeypatch)
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "500")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")


@contextmanager
def consumer(backend: Backend, *sources: str) -> Iterator[Telemetry]:
    """The telemetry of a consumer, sent by OTLP and scraped."""
    with Emitter(INSTANCE, f"http://{LOOPBACK}:{backend.collector_port}") as emitter:
        emitter.telemetry.instruments.zero(Role.CONSUMER, ["vehicles", *sources])
        server = emitter.telemetry.serve_metrics(backend.consumer_port)
        try:
            yield emitter.telemetry
        finally:
            server.close()


def double(backend: Backend) -> Telemetry:
    """Another process with the same instance id, which sends directly to the backend."""
    resource = sdk._resource(Role.CONSUMER).merge(Resource({attribute.service_instance_id: INSTANCE}))
    return sdk.assemble(resource, metric_exporters=[losses.CountedMetrics(f"{backend.url}/api/v1/otlp/v1/metrics")])


def counting(telemetry: Telemetry, probe: Callable[[], Any]) -> Callable[[], Any]:
    """A probe that counts an upload before each call, so that the comparison runs under load."""

    def probed() -> Any:
        telemetry.instruments.uploads.add(1, UPLOADED)
        return probe()

    return probed


@pytest.mark.usefixtures("quick_exports")
def test_the_ways_agree_under_load_and_an_alert_says_when_they_part(
    backend: Backend, collector: Callable[[], Any]
) -> None:
    """The difference of every counter is 0 while both paths work, under any load. It is above 0 while the collector is
    down, and 0 again after its restart. It is also above 0 if OTLP has more than the process itself.
    """
    with collector() as process, consumer(backend) as telemetry:
        until(
            "every counter is compared",
            counting(telemetry, lambda: set(backend.values(DIFFERENCE)) == COUNTERS),
            timeout_s=60,
        )
        compared = f"min(count_over_time({DIFFERENCE}[1m])) >= 10"
        until("for ten seconds", counting(telemetry, lambda: backend.ask(compared)), timeout_s=60)
        assert set(backend.values(f"max_over_time({DIFFERENCE}[1m])").values()) == {0}
        assert backend.ask('instance:counter:scraped{metric="bronze_uploads_total"} > 0')
        assert backend.ask(FIRING) == []

        check_foreign(backend)

        process.stop()
        fired = counting(telemetry, lambda: backend.ask(FIRING))
        (alert,) = until("the alert, without a collector", fired, timeout_s=60)
        assert alert["metric"].items() >= {"metric": "bronze_uploads_total", "instance": INSTANCE}.items()
        ahead = f'{DIFFERENCE}{{metric="bronze_uploads_total"}} > 0'
        assert backend.ask(ahead)

        with collector():
            until("both paths agree again", counting(telemetry, lambda: not backend.ask(ahead)), timeout_s=60)
            until("the alert ends", counting(telemetry, lambda: not backend.ask(FIRING)), timeout_s=60)

            twin = double(backend)
            twin.instruments.consumer_errors.add(
                7,
                {
                    attribute.bronze_source: "vehicles",
                    attribute.bronze_step: "put",
                    attribute.error_type: "nobody counted this",
                },
            )
            try:
                until(
                    "the alert, by what OTLP alone has",
                    lambda: 7 in backend.values(f"{DIFFERENCE} and on (metric) {FIRING}").values(),
                    timeout_s=60,
                )
            finally:
                twin.shutdown()


@pytest.mark.usefixtures("quick_exports")
def test_the_ways_agree_after_a_start_with_fewer_sources(backend: Backend, collector: Callable[[], Any]) -> None:
    """A process that starts again under its id is compared with itself, although Prometheus still shows what its
    predecessor sent of a source that it does not have.
    """
    of_status = {**UPLOADED, attribute.bronze_source: "status"}
    sent = f'bronze_uploads_total{{job="bronze/consumer", instance="{INSTANCE}", bronze_source="status"}} >= 7'
    uploads = f'{DIFFERENCE}{{metric="bronze_uploads_total"}}'
    with collector():
        with consumer(backend, "status") as telemetry:
            telemetry.instruments.uploads.add(7, of_status)
            until("the process is compared", counting(telemetry, lambda: backend.ask(uploads)), timeout_s=60)
            until("the counts of both sources", counting(telemetry, lambda: backend.ask(sent)), timeout_s=60)
        with consumer(backend) as telemetry:
            compared_again = f"resets(instance:counter:scraped[2m]) > 0 and {uploads}"
            until("it is compared again", counting(telemetry, lambda: backend.ask(compared_again)), timeout_s=60)
            steadily = f"count_over_time({uploads}[12s]) >= 10"
            until("for ten seconds", counting(telemetry, lambda: backend.ask(steadily)), timeout_s=60)
            assert backend.ask(sent)
            assert set(backend.values(f"max_over_time({uploads}[2m])").values()) == {0}


def check_foreign(backend: Backend) -> None:
    """The servers' metrics that rules read exist in the running versions.

    Some counters of the collector begin with the first event: here, a sent or permanently refused item.
    """
    unseen = [f"otelcol_exporter_enqueue_failed_{items}" for items in ("spans", "metric_points", "log_records")]
    unseen += ["otelcol_exporter_sent_spans", "otelcol_exporter_sent_log_records"]
    unseen += ["otelcol_exporter_send_failed_metric_points"]
    for name, (_, labels) in EXTERNAL_METRICS.items():
        if name not in unseen:
            found = until(name, lambda name=name: backend.ask(f'{{__name__="{name}"}}'))  # type: ignore[misc]
            assert labels <= {label for series in found for label in series["metric"]}, name
