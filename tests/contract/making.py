"""Helpers of the contract tests: submissions as the API creates them, and telemetry that is recorded in memory."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, cast

import msgspec
from fastapi import FastAPI
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from bronze.api.app import create_app
from bronze.errors import Gone
from bronze.lineage.catalog_index import CatalogIndex
from bronze.protocol.lane import Lane
from bronze.protocol.message import AcceptedSubmission
from bronze.protocol.submission_id import keyed_id, new_id
from bronze.records import sources
from bronze.records.json_intake import JsonIntake
from bronze.records.spool import CheckedSubmission
from bronze.servers.bucket import Bucket
from bronze.servers.catalog import Catalog
from bronze.servers.queue import Queue
from bronze.settings import Settings
from bronze.telemetry import sdk
from bronze.telemetry.sdk import Telemetry
from bronze.telemetry.signals import Role, attribute
from bronze.wiring.api import api_parts
from bronze.wiring.servers import Servers
from local.machine import limit_s
from tests import factories

SOURCES = sources.load(None)
RECEIVED_AT = "2026-11-24T12:34:56.000000+00:00"


@dataclass(frozen=True)
class Submission:
    accepted: AcceptedSubmission
    checked: CheckedSubmission

    @property
    def id(self) -> str:
        return self.accepted.submission_id


def submission(
    *records: bytes,
    source: str = "vehicles",
    key: str | None = None,
    trace_id: str = "0" * 32,
    quarantine_rejected: bool = False,
    **facts: Any,
) -> Submission:
    """A checked submission with these records; `facts` replace values of its `AcceptedSubmission`."""
    intake = JsonIntake(
        SOURCES[source],
        body_bytes_max=2**40,
        spool_memory_bytes_max=2**40,
        quarantine_rejected=quarantine_rejected,
    )
    intake.add_lines(b"\n".join(records))
    checked = intake.finish()
    with checked._spool as spool:
        spool.seek(0)
        checked._spool = cast(Any, BytesIO(spool.read()))  # does not have to be closed
    accepted = factories.accepted(
        submission_id=keyed_id(source, key) if key else new_id(),
        source=source,
        digest=checked.digest,
        records=checked.records,
        rejected=checked.rejected,
        received_at=RECEIVED_AT,
        trace_id=trace_id,
        traceparent=f"00-{trace_id}-{'0' * 15}1-01",
        keyed=key is not None,
    )
    return Submission(msgspec.structs.replace(accepted, **facts), checked)


def vehicle(name: str, size: int = 0) -> bytes:
    """A record of at least `size` bytes."""
    record = b'{"vehicle_id":"%s","x":""}' % name.encode()
    return record[:-2] + b"x" * (size - len(record)) + record[-2:]


def wide(name: str, messages: int) -> list[bytes]:
    """Records that need this number of messages."""
    return [vehicle(f"{name}{number}", 600_000) for number in range(messages)]


def app_on(
    settings: Settings,
    lanes: Sequence[Lane],
    queue: Queue,
    bucket: Bucket,
    catalog: Catalog,
    telemetry: Telemetry,
    on_gone: Callable[[Gone], None] = lambda _: None,
    view: CatalogIndex | None = None,
) -> FastAPI:
    """The API on these servers, without Prometheus."""
    unused = cast(Any, None)  # the API uses neither feed nor lock
    servers = Servers(
        list(lanes),
        queue,
        bucket,
        catalog,
        feed=unused,
        lock=unused,
        principals=unused,
        check_sources=unused,
        cluster=unused,
    )
    return create_app(api_parts(settings, SOURCES, servers, view or CatalogIndex(), None, telemetry, on_gone))


class Heard:
    """The telemetry of a role, with the signals that it has recorded."""

    def __init__(self, role: Role) -> None:
        self._reader = InMemoryMetricReader()
        self._exporter = InMemorySpanExporter()
        self.telemetry = sdk.assemble(
            Resource(
                {
                    attribute.service_name: role.value,
                    attribute.service_instance_id: "test",
                    attribute.service_version: "0",
                }
            ),
            metric_readers=[self._reader],
            span_exporters=[lambda _: self._exporter],
        )

    def spans(self, name: str | None = None) -> Sequence[ReadableSpan]:
        self.telemetry.flush()
        return [span for span in self._exporter.get_finished_spans() if name is None or span.name == name]

    def points(self, name: str) -> Sequence[Any]:
        data = self._reader.get_metrics_data()
        return [
            point
            for resource_metrics in (data.resource_metrics if data else ())
            for scope_metrics in resource_metrics.scope_metrics
            for metric in scope_metrics.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def count(self, name: str, **attributes: str) -> float:
        """The sum of a counter's points, or the number of a histogram's measurements, with these attributes."""
        expected = {getattr(attribute, key): value for key, value in attributes.items()}
        return sum(
            float(point.value if hasattr(point, "value") else point.count)
            for point in self.points(name)
            if expected.items() <= dict(point.attributes).items()
        )


async def until(condition: Callable[[], bool | Awaitable[bool]], within_s: float = 20) -> None:
    """Wait until the condition is true; raises `TimeoutError` if it is not in time."""
    async with asyncio.timeout(limit_s(within_s)):
        while True:
            result = condition()
            if await result if isinstance(result, Awaitable) else result:
                return
            await asyncio.sleep(0.02)


async def cancelled(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks until they have ended: before Python 3.12, asyncio.wait_for loses a cancellation that arrives
    together with the answer.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.5)
    await asyncio.gather(*tasks, return_exceptions=True)
