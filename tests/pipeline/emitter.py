"""The telemetry of a role, by the service's own SDK: every instrument of the schema, and a span and a log record around
each measurement. It is the same each time except for the instance, so that the telemetry at two ends can be compared.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import httpx
from fastapi import FastAPI
from opentelemetry.sdk.resources import Resource

from bronze.telemetry import FASTAPI_TELEMETRY_OFF, Telemetry, losses, sdk
from bronze.telemetry.context import extract
from bronze.telemetry.schema import Metric, registry
from bronze.telemetry.signals import OTHER_SOURCE, Role, attribute, spans

SOURCE = "vehicles"
HTTP = registry().metrics["http.server.request.duration"]

#: Values that have to arrive together at the other end.
Fact = tuple[str, ...]


@dataclass
class Emitter:
    """A consumer with this instance id, whose collector has OTLP/HTTP at this address."""

    instance: str
    collector: str
    #: (trace id, name)
    spans: set[Fact] = field(default_factory=set)
    #: (body, trace id)
    logs: set[Fact] = field(default_factory=set)
    #: (name,)
    metrics: set[Fact] = field(default_factory=set)
    #: (name of the metric, trace id)
    exemplars: set[Fact] = field(default_factory=set)
    _traces: int = 0

    def __enter__(self) -> Self:
        resource = sdk._resource(Role.CONSUMER).merge(Resource({attribute.service_instance_id: self.instance}))
        url = self.collector
        self.telemetry: Telemetry = sdk.assemble(
            resource,
            metric_exporters=[losses.CountedMetrics(f"{url}/v1/metrics")],
            span_exporters=[lambda meters: losses.CountedSpans(meters, f"{url}/v1/traces")],
            log_exporters=[lambda meters: losses.CountedLogs(meters, f"{url}/v1/logs")],
        )
        self._log = logging.getLogger(f"emitter.{self.instance}")
        self._log.propagate = False
        self._log.setLevel(logging.INFO)
        self._log.addHandler(self.telemetry._logs)
        # The SDK's metrics about an export are in the next export of metrics: from now on, all of them exist.
        for _ in range(2):
            with self.span("first"):
                pass
            self.telemetry.flush()
        return self

    def __exit__(self, *_: object) -> None:
        self._log.removeHandler(self.telemetry._logs)
        self.telemetry.shutdown()

    @contextmanager
    def span(self, name: str) -> Iterator[str]:
        """Makes a span with a log record in it, and yields its trace id."""
        trace = self._next()
        attributes = {attribute.bronze_source: SOURCE, attribute.bronze_classification_id: ["one", "two"]}
        with self.telemetry.tracer.start_as_current_span(name, extract(_from(trace)), attributes=attributes):
            body = f"{name} in {trace}"
            self._log.info(body)
            yield trace
        self.spans.add((trace, name))
        self.logs.add((body, trace))

    def emit_all(self) -> None:
        """Measures with every instrument, once per histogram bucket, and exports everything: metrics last, and once."""
        self.telemetry.instruments.zero(Role.CONSUMER, [SOURCE])
        for metric in registry().metrics.values():
            if not metric.instrumentation:
                self._measure(metric)
        asyncio.run(self._request())
        self.telemetry._tracers.force_flush()
        self.telemetry._loggers.force_flush()
        for reader in self.telemetry._readers:
            reader.force_flush()

    def _measure(self, metric: Metric) -> None:
        instrument: Any = getattr(self.telemetry.instruments, metric.name.removeprefix("bronze.").replace(".", "_"))
        attributes = {key: SOURCE if key == attribute.bronze_source else "any" for key in metric.attributes}
        self.metrics.add((metric.name,))
        match metric.instrument:
            case "counter":
                with self.span(metric.name):
                    instrument.add(1, attributes)
            case "gauge":
                instrument.set(1.5, attributes)
            case "histogram":
                for value in (*metric.buckets, metric.buckets[-1] + 1):
                    with self.span(metric.name) as trace:
                        instrument.record(value, attributes)
                    self.exemplars.add((metric.name, trace))

    def _next(self) -> str:
        """A trace id that begins with zeros, which some programs drop. (Not the whole first half: Zipkin would then use
        only the second half as the id.)
        """
        self._traces += 1
        return f"{1:016x}{self._traces:016x}"

    async def _request(self) -> None:
        """Sends one request to an API. Its duration is unknown."""
        app = FastAPI(telemetry=FASTAPI_TELEMETRY_OFF)
        app.add_api_route("/v1/ingest/{source}", lambda source: source, methods=["POST"])
        self.telemetry.instrument(app)
        trace = self._next()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as client:
            await client.post(f"/v1/ingest/{OTHER_SOURCE}", headers=_from(trace))
        self.spans.add((trace, spans.ingest.template))
        self.metrics.add((HTTP.name,))
        self.exemplars.add((HTTP.name, trace))


def _from(trace: str) -> dict[str, str]:
    return {"traceparent": f"00-{trace}-00000000000000aa-01"}
