"""One reader of the metrics for both exports and scrapes: with one for each, the SDK would aggregate every measurement
twice.
"""

import logging
import os
import threading
from typing import Any, Final

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.environment_variables import OTEL_METRIC_EXPORT_INTERVAL, OTEL_METRIC_EXPORT_TIMEOUT
from opentelemetry.sdk.metrics.export import MetricExporter, MetricsData
from prometheus_client import CollectorRegistry

#: The defaults of the specification, in milliseconds.
_INTERVAL_MS, _TIMEOUT_MS = 60_000.0, 30_000.0

_log: Final = logging.getLogger(__name__)


class ExportingReader(PrometheusMetricReader):
    """The collector of `/metrics`, which also exports at the interval of the standard variable.

    Its exporter needs cumulative sums, as `/metrics` does. A scrape must not take exemplars away from the next export:
    `exemplars.kept`.
    """

    def __init__(self, exporter: MetricExporter, registry: CollectorRegistry) -> None:
        super().__init__(scope_info_enabled=False, registry=registry)
        self._interval_s = float(os.environ.get(OTEL_METRIC_EXPORT_INTERVAL) or _INTERVAL_MS) / 1000
        self._timeout_ms = float(os.environ.get(OTEL_METRIC_EXPORT_TIMEOUT) or _TIMEOUT_MS)
        self._exporter = exporter
        self._exports = threading.local()
        self._one_export = threading.Lock()
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="metrics-export", daemon=True).start()

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        self._export(timeout_millis)
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **options: Any) -> None:
        """Exports for the last time."""
        self._ended.set()
        self._export(timeout_millis)
        self._exporter.shutdown(timeout_millis)
        super().shutdown(timeout_millis, **options)

    def _run(self) -> None:
        while not self._ended.wait(self._interval_s):
            self._export(self._timeout_ms)

    def _export(self, timeout_millis: float) -> None:
        self._exports.now = True
        try:
            self.collect(timeout_millis)
        except Exception:  # noqa: BLE001  telemetry never breaks its caller
            _log.exception("metrics cannot be exported")
        finally:
            self._exports.now = False

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **options: Any) -> None:
        if getattr(self._exports, "now", False):
            with self._one_export, suppress_instrumentation():
                self._exporter.export(metrics_data, timeout_millis)
        else:
            super()._receive_metrics(metrics_data, timeout_millis, **options)
