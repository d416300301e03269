"""The trace stores' adapters on the real servers, with spans that the real collector has sent to them."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from bronze.servers.trace_store import Span, Tempo, TraceStore, Zipkin
from local import programs, servers
from local.builds import Built
from local.machine import Deadline
from local.programs import LOOPBACK
from tests.pipeline.rig import Rig, address


@dataclass(frozen=True)
class Store:
    adapter: Callable[[httpx.AsyncClient], TraceStore]
    url: str


TRACE = "00ab" + "c1" * 14  # leading zeros get lost easily
ROOT, UPLOAD = "00b79bfd8ba57a61", "0ee19b7ec3c1b100"
START_NS = 1_767_323_045_000_000_000


def otlp(service: str, name: str, span_id: str, parent_id: str, start_ns: int, **attributes: object) -> object:
    span = {
        "traceId": TRACE,
        "spanId": span_id,
        "parentSpanId": parent_id,
        "name": name,
        "kind": 3,
        "startTimeUnixNano": str(start_ns),
        "endTimeUnixNano": str(start_ns + 250_000_000),
        "attributes": [{"key": key.replace("_", ".", 1), "value": value} for key, value in attributes.items()],
    }
    named = [{"key": "service.name", "value": {"stringValue": service}}]
    return {"resource": {"attributes": named}, "scopeSpans": [{"spans": [span]}]}


SENT = {
    "resourceSpans": [
        otlp(
            "consumer",
            "upload status",
            UPLOAD,
            ROOT,
            START_NS + 10**9,
            bronze_file_path={"stringValue": "bronze/source=status/e-0-1.parquet"},
            bronze_records={"intValue": "3"},
            bronze_submission_trace_id={"arrayValue": {"values": [{"stringValue": "00ab"}]}},
        ),
        otlp("publisher", "publish status", ROOT, "", START_NS),
    ]
}
EXPECTED = [
    Span("publish status", ROOT, None, "publisher", {}, START_NS / 1e9, 0.25),
    Span(
        "upload status",
        UPLOAD,
        ROOT,
        "consumer",
        {
            "bronze.file_path": "bronze/source=status/e-0-1.parquet",
            "bronze.records": "3",
            "bronze.submission_trace_id": '["00ab"]',
        },
        START_NS / 1e9 + 1,
        0.25,
    ),
]


@pytest.fixture(params=["zipkin", "tempo"])
def store(request: pytest.FixtureRequest, rig: Rig, built: Built, tmp_path: Path) -> Iterator[Store]:
    """A running trace store that the collector has sent the trace to. No package installs Tempo, so it is tested where
    it is on PATH.
    """
    with ExitStack() as running:
        if request.param == "zipkin":
            store = Store(Zipkin, rig.zipkin())
            env = {"ZIPKIN_SPANS_ENDPOINT": f"{store.url}/api/v2/spans"}
        elif built.tempo:
            port = programs.free_ports(servers.TEMPO_PORTS)
            program = servers.tempo(tmp_path / "tempo", port, executable=built.tempo, prometheus=port)
            running.enter_context(programs.start(program, tmp_path / "tempo.log"))
            store = Store(Tempo, f"http://{LOOPBACK}:{port}")
            env = {"TEMPO_OTLP_ENDPOINT": f"http://{LOOPBACK}:{port + 1}"}
        else:
            pytest.skip("Tempo is not on PATH")
        collector = running.enter_context(rig.collector(f"traces/{request.param}", env=env))
        httpx.post(f"{address(collector)}/v1/traces", json=SENT, trust_env=False).raise_for_status()
        yield store


async def test_a_trace_is_read_back_whole(store: Store) -> None:
    """With the zeros of its ids, its parents, its services, and its attributes as texts. The collector adds none."""
    async with httpx.AsyncClient(base_url=store.url, trust_env=False) as client:
        adapter = store.adapter(client)
        deadline = Deadline(30)
        while len(spans := await adapter.trace(TRACE) or ()) < len(EXPECTED):
            assert not deadline.passed(), spans
            await asyncio.sleep(0.05)
        assert spans == EXPECTED
        assert await adapter.trace("00ab" + "f" * 28) is None
