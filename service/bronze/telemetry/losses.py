"""What telemetry loses is counted from 0, by the SDK's own metrics (`otel.sdk.*`), which are mended in two places.

The SDK takes a batch for exported that the collector answered with an error, or that a shutdown gave up. And a series
that begins with the first loss is invisible to `increase()`, the more so when the collector that is to bring it is the
one that was away.
"""

from dataclasses import replace
from typing import Final

from opentelemetry.exporter.otlp.common._exporter_metrics import ExporterMetrics
from opentelemetry.exporter.otlp.common.http import _ExportResult
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from bronze.telemetry.signals import attribute


class NotTaken(Exception):
    """The collector answered with an error, or there was no time to ask again."""


#: `error.type` of exports, as the SDK names it: the exception's class. What else may come is an error of settings.
ERRORS: Final = ("ConnectionError", "ConnectTimeout", "ReadTimeout", NotTaken.__qualname__)


def count_dropped(processor: BatchSpanProcessor | BatchLogRecordProcessor) -> None:
    """Begins the counters of a processor, whose queue may be full, at 0."""
    metrics = processor._batch_processor._metrics  # noqa: SLF001  the SDK has no name for it
    metrics.finish_items(0)
    metrics.drop_items(0)


def count_failed(exporter: OTLPSpanExporter | OTLPMetricExporter | OTLPLogExporter) -> None:
    """Begins the counters of an exporter at 0, and has it count what was not taken as failed."""
    send = exporter._client.export  # noqa: SLF001

    def export(data: bytes) -> _ExportResult:
        result = send(data)
        return result if result.success or result.error else replace(result, error=NotTaken(result.reason))

    exporter._client.export = export  # type: ignore[method-assign]  # noqa: SLF001
    metrics = exporter._metrics  # noqa: SLF001
    if isinstance(metrics, ExporterMetrics):  # else the user does not want them
        for error in ({}, *({attribute.error_type: name} for name in ERRORS)):
            metrics._exported.add(0, {**metrics._standard_attrs, **error})  # noqa: SLF001
