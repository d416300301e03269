"""With any sampling ratio, every exemplar in Prometheus links to a span of a sampled trace.

The service sends its metrics to a real Prometheus and its spans to a receiver, without a collector between.
"""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local.builds import build_all
from local.machine import limit_s
from local.otlp import Receiver
from local.programs import LOOPBACK
from local.stack import Ports, Stack
from tests.system.blackbox import NDJSON, SOON, System, ndjson, until, vehicles

CONNECTIONS = 32
PUBLISHED = 100
EXEMPLARS_MIN = 50

#: The span in which a histogram is measured; its name may contain labels of the series. Exemplars of other metrics have
#: to link to some span.
MEASURED_IN = {
    "http_server_request_duration_seconds_bucket": "{http_request_method} {http_route}",
    "messaging_client_operation_duration_seconds_bucket": "send bronze.vehicles",
    "messaging_process_duration_seconds_bucket": "process bronze.vehicles",
    "bronze_delivery_duration_seconds_bucket": "process bronze.vehicles",
    "bronze_upload_duration_seconds_bucket": "upload vehicles",
    "bronze_upload_size_bytes_bucket": "upload vehicles",
    "bronze_upload_records_bucket": "upload vehicles",
}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def backends(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[System]:
    stack = Stack.create(tmp_path_factory.mktemp("sampling"), Ports.free(), build_all())
    metrics = f"http://{LOOPBACK}:{stack.ports.prometheus}/api/v1/otlp/v1/metrics"
    env = {
        **SOON,
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": metrics,
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{receiver.url}/v1/traces",
        "OTEL_LOGS_EXPORTER": "none",
    }
    with System(stack, env).running(*(p for p in stack.servers if p.name in {"seaweedfs", "prometheus"})):
        yield System(stack, env)


async def submit(port: int, count: int) -> None:
    """Sends so many submissions of one record over `CONNECTIONS` connections. Each has to be accepted."""
    (record,) = vehicles("load")
    head = f"POST /v1/ingest/vehicles HTTP/1.1\r\nHost: api\r\nContent-Type: {NDJSON}\r\nContent-Length: {len(record)}"

    async def connection(share: int) -> None:
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        for _ in range(share):
            writer.write(head.encode() + b"\r\n\r\n" + record)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert b" 202 " in answer.partition(b"\r\n")[0], answer
            length = re.search(rb"content-length: (\d+)", answer, re.IGNORECASE)
            assert length
            await reader.readexactly(int(length[1]))
        writer.close()
        await writer.wait_closed()

    async with asyncio.TaskGroup() as connections:
        for number in range(CONNECTIONS):
            connections.create_task(connection(len(range(number, count, CONNECTIONS))))


def exemplars(system: System) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Each exemplar of the system's roles in Prometheus, with the labels of its series."""
    roles = "|".join(system.stack.instance(role) for role in ("api", "consumer"))
    found = system.prometheus("query_exemplars", query=f'{{instance=~"{roles}"}}', start=0, end=2**32)
    return [(series["seriesLabels"], exemplar) for series in found for exemplar in series["exemplars"]]


@pytest.mark.parametrize(("ratio", "submissions"), [(1, 500), (0.1, 2000), (0.01, 5000)])
def test_every_exemplar_leads_to_its_span(
    ratio: float, submissions: int, backends: System, receiver: Receiver, tmp_path: Path
) -> None:
    """Each exemplar links to the span in which it was measured, and no trace has a missing span."""
    sampler = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": str(ratio)}
    system = backends.branch(tmp_path / "branch")
    before = len(receiver.spans)
    with system.queue(), system.running(system.role("api", **sampler), system.role("consumer", **sampler)):
        publisher = system.publisher("vehicles", "-", "--records", "1", **sampler)
        asyncio.run(submit(system.stack.ports.api, submissions))
        _, errors = publisher.communicate(ndjson(vehicles("published", PUBLISHED)).decode(), timeout=limit_s(120))
        assert publisher.returncode == 0, errors
        system.fence()
    # the roles have ended and exported everything

    ended = receiver.spans[before:]
    by_id = {(span.trace_id.hex(), span.span_id.hex()): span.name for _, span in ended}
    orphans = [s.name for _, s in ended if s.parent_span_id and (s.trace_id.hex(), s.parent_span_id.hex()) not in by_id]
    assert orphans == []

    found = until("the exemplars", lambda: exemplars(system))
    lost = []
    for series, exemplar in found:
        span = by_id.get((exemplar["labels"]["trace_id"], exemplar["labels"]["span_id"]))
        measured_in = MEASURED_IN.get(series["__name__"], "")
        if not span or measured_in.format(**series) not in {"", span}:
            lost.append((series, exemplar, span))
    assert lost == []
    assert len(found) >= EXEMPLARS_MIN
    assert set(MEASURED_IN) <= {series["__name__"] for series, _ in found}

    requests = sum(span.kind == span.SPAN_KIND_SERVER and "ingest" in span.name for _, span in ended)
    sent = submissions + PUBLISHED + 1
    assert abs(requests - ratio * sent) <= 5 * (ratio * (1 - ratio) * sent) ** 0.5
    summary = (
        f"{ratio:.0%} of {sent} submissions: {requests} requests sampled, {len(found)} exemplars, all of them resolve"
    )
    print(summary)  # noqa: T201
