"""A process whose clock is an hour ahead: Prometheus refuses its metrics, and takes those of every other process."""

import time

import httpx
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tests.pipeline.rig import Rig, address
from tests.system.blackbox import until

#: Exports of both processes at the same time.
EXPORTS = 5
HOUR_S = 3600


def export(instance: str, at_s: float, metric: str) -> bytes:
    """An export of one gauge by a process."""
    request = ExportMetricsServiceRequest()
    of_process = request.resource_metrics.add()
    for key, value in (("service.namespace", "bronze"), ("service.name", "test"), ("service.instance.id", instance)):
        attribute = of_process.resource.attributes.add()
        attribute.key, attribute.value.string_value = key, value
    gauge = of_process.scope_metrics.add().metrics.add()
    gauge.name = metric
    point = gauge.gauge.data_points.add()
    point.time_unix_nano, point.as_double = int(at_s * 1e9), 1
    return bytes(request.SerializeToString())


@pytest.mark.parametrize(
    ("layer", "variable", "path"),
    [
        ("metrics/prometheus", "PROMETHEUS_OTLP_ENDPOINT", "otlp"),
        ("metrics/prometheus-remote-write", "PROMETHEUS_REMOTE_WRITE_ENDPOINT", "write"),
    ],
)
def test_a_process_with_a_wrong_clock_loses_only_its_own_metrics(
    rig: Rig, layer: str, variable: str, path: str
) -> None:
    """Two processes export at the same moment, the first of them with times an hour ahead. Each export of the second
    arrives.
    """
    marks = [f"wrong_clock_{path}_{number}" for number in range(EXPORTS)]
    with (
        rig.collector(layer, env={variable: f"{rig.prometheus}/api/v1/{path}"}) as collector,
        httpx.Client(trust_env=False) as http,
    ):
        for mark in marks:
            for instance, shift_s in (("ahead", HOUR_S), ("right", 0)):
                http.post(
                    f"{address(collector)}/v1/metrics",
                    content=export(instance, time.time() + shift_s, mark),
                    headers={"Content-Type": "application/x-protobuf"},
                ).raise_for_status()

        def arrived() -> set[str]:
            query = {"query": f'{{__name__=~"wrong_clock_{path}_.+", instance="right"}}'}
            answer = http.get(f"{rig.prometheus}/api/v1/query", params=query).raise_for_status()
            return {series["metric"]["__name__"] for series in answer.json()["data"]["result"]}

        until("the metrics of the second process are in Prometheus", lambda: arrived() == set(marks), 20)
