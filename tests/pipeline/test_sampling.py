"""With any sampling ratio, every Bronze write is traced, and every exemplar in Prometheus links to its span.

The service sends its metrics to a real Prometheus and its spans to a receiver, without a collector between.
"""

import asyncio
import json
import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from local.builds import build_all
from local.machine import limit_s
from local.otlp import Receiver, attributes
from local.programs import LOOPBACK
from local.stack import Ports, Stack
from tests.system.blackbox import NDJSON, SOON, System, ndjson, until, vehicles

CONNECTIONS = 32
PUBLISHED = 100

#: The span in which a histogram is measured; its name may contain labels of the series. Exemplars of other metrics have
#: to link to some span.
MEASURED_IN = {
    "http_server_request_duration_seconds_bucket": "{http_request_method} {http_route}",
    "messaging_client_operation_duration_seconds_bucket": "send bronze.vehicles",
    "messaging_process_duration_seconds_bucket": "process bronze.vehicles",
    "bronze_delivery_duration_seconds_bucket": "process bronze.vehicles",
    "bronze_stage_duration_seconds_bucket": "{bronze_stage}",
    "bronze_upload_duration_seconds_bucket": "upload vehicles",
    "bronze_upload_size_bytes_bucket": "upload vehicles",
    "bronze_upload_records_bucket": "upload vehicles",
}
#: For stages, the stage.
MEASURED_IN_STAGE = {"accept": "send bronze.vehicles"} | dict.fromkeys(
    ("wait", "encode", "put", "catalog"), "upload vehicles"
)
CHILDREN = {"encode parquet", "S3 PutObject"}


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


def unsampled() -> str:
    """A client's `traceparent` with the sampled flag off; the first half of its trace id is zeros."""
    return f"00-{secrets.token_hex(8):0>32}-{secrets.token_hex(8)}-00"


async def submit(port: int, count: int, traceparent: Callable[[], str | None]) -> None:
    """Sends so many submissions of one record over `CONNECTIONS` connections. Each has to be accepted."""
    (record,) = vehicles("load")
    head = "POST /v1/ingest/vehicles HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Content-Type: {NDJSON}\r\nContent-Length: {len(record)}"

    async def connection(share: int) -> None:
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        for _ in range(share):
            traced = f"\r\ntraceparent: {value}" if (value := traceparent()) else ""
            writer.write(f"{head}{traced}\r\n\r\n".encode() + record)
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


def footer(body: bytes) -> dict[str, Any]:
    contents: dict[str, Any] = json.loads(pq.read_schema(BytesIO(body)).metadata[b"bronze"])
    return contents


@pytest.mark.parametrize(
    ("ratio", "submissions", "traceparent", "exemplars_min"),
    [(1, 500, None, 50), (0.1, 2000, None, 50), (0.01, 5000, None, 50), (1, 2000, unsampled, 30)],
    ids=["100 %", "10 %", "1 %", "clients that do not sample"],
)
def test_every_bronze_write_is_traced_and_every_exemplar_leads_to_its_span(
    ratio: float,
    submissions: int,
    traceparent: Callable[[], str] | None,
    exemplars_min: int,
    backends: System,
    receiver: Receiver,
    tmp_path: Path,
) -> None:
    """The upload of each object is exported with its parent, if it has one, and its children. Each exemplar links to
    the span in which it was measured, and no trace has a missing span.
    """
    sampler = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": str(ratio)}
    system = backends.branch(tmp_path / "branch")
    before = len(receiver.spans)
    with system.queue(), system.running(system.role("api", **sampler), system.role("consumer", **sampler)):
        publisher = system.publisher("vehicles", "-", "--records", "1", **sampler)
        asyncio.run(submit(system.stack.ports.api, submissions, traceparent or (lambda: None)))
        _, errors = publisher.communicate(ndjson(vehicles("published", PUBLISHED)).decode(), timeout=limit_s(120))
        assert publisher.returncode == 0, errors
        system.fence()
    # the roles have ended and exported everything

    ended = [span for _, span in receiver.spans[before:]]
    by_id = {(span.trace_id.hex(), span.span_id.hex()): span.name for span in ended}
    orphans = [s.name for s in ended if s.parent_span_id and (s.trace_id.hex(), s.parent_span_id.hex()) not in by_id]
    assert orphans == []

    children = defaultdict(set)
    for span in ended:
        children[span.parent_span_id.hex()].add(span.name)
    writes = [footer(body) for body in map(system.body, system.keys())]
    ids = [tuple(contents["traceparent"].split("-")[1:3]) for contents in writes]
    untraced = [id_ for id_ in ids if by_id.get(id_) != "upload vehicles" or not children[id_[1]] >= CHILDREN]
    assert untraced == []

    stored = {row["_trace_id"] for row in system.rows("vehicles")}
    uploads = [span for span in ended if span.name == "upload vehicles"]
    for span in uploads:
        assert set(attributes(span.attributes)["bronze.submission_trace_id"]) <= stored
        assert {link.trace_id.hex() for link in span.links} <= stored

    found = until("the exemplars", lambda: exemplars(system))
    lost = []
    for series, exemplar in found:
        span_name = by_id.get((exemplar["labels"]["trace_id"], exemplar["labels"]["span_id"]))
        measured_in = MEASURED_IN.get(series["__name__"], "").format(**series)
        if not span_name or MEASURED_IN_STAGE.get(measured_in, measured_in) not in {"", span_name}:
            lost.append((series, exemplar, span_name))
    assert lost == []
    assert len(found) >= exemplars_min
    assert set(MEASURED_IN) <= {series["__name__"] for series, _ in found}

    requests = sum(span.kind == span.SPAN_KIND_SERVER and "ingest" in span.name for span in ended)
    sent = (0 if traceparent else submissions) + PUBLISHED + 1
    assert abs(requests - ratio * sent) <= 5 * (ratio * (1 - ratio) * sent) ** 0.5
    summary = (
        f"{ratio:.0%} of {sent} submissions, of {submissions + PUBLISHED + 1}: {requests} requests sampled; "
        f"{len(writes)} Bronze writes, all traced, {sum(not s.parent_span_id for s in uploads)} as a trace of their "
        f"own; {len(found)} exemplars, all of them resolve"
    )
    print(summary)  # noqa: T201
