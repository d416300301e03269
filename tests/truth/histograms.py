"""How far percentiles from histograms are from the measured durations, with both kinds of buckets.

The durations that the spans of a run have are recorded again by the SDK, in the declared buckets and in exponential
buckets, exported by OTLP to the Prometheus of the run, and asked for with the function that the panels use. So both
kinds see exactly the same measurements.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import uuid4

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import (
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
    View,
)
from opentelemetry.sdk.resources import Resource

from bronze.telemetry.schema import registry
from tests.system.blackbox import until
from tests.truth.series import Prometheus

QUANTILES = (0.5, 0.95, 0.99)
#: The histogram of the registry whose buckets are used for each kind of duration.
DECLARED = {
    "request": "http.server.request.duration",
    "upload": "bronze.upload.duration",
    "delivery": "bronze.delivery.duration",
}


@dataclass(frozen=True)
class Percentile:
    """One percentile: measured, and what each kind of histogram says. NaN: Prometheus has no such histogram."""

    of: str
    q: float
    count: int
    measured_s: float
    classic_s: float
    native_s: float


def exact(q: float, values: Sequence[float]) -> float:
    """The smallest value that is not below a share `q` of the values."""
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)]


def replay(durations: Mapping[str, Sequence[float]], prometheus: Prometheus, port: int) -> list[Percentile]:
    """Records the durations, and asks for their percentiles."""
    instance = uuid4().hex
    exporter = OTLPMetricExporter(f"http://127.0.0.1:{port}/api/v1/otlp/v1/metrics")
    views = [View(instrument_name="truth.*.native", aggregation=ExponentialBucketHistogramAggregation())]
    views += [
        View(
            instrument_name=f"truth.{kind}.classic",
            aggregation=ExplicitBucketHistogramAggregation(registry().metrics[metric].buckets or ()),
        )
        for kind, metric in DECLARED.items()
    ]
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=math.inf)
    provider = MeterProvider(
        [reader],
        Resource({"service.name": "truth", "service.instance.id": instance}),
        views=views,
        shutdown_on_exit=False,
    )
    meter = provider.get_meter("truth")
    for kind, values in durations.items():
        for form in ("classic", "native"):
            histogram = meter.create_histogram(f"truth.{kind}.{form}", "s")
            for value in values:
                histogram.record(value)
    provider.force_flush()
    provider.shutdown()
    of = f'{{instance="{instance}"}}'
    until("the classic histograms", lambda: prometheus.vector(f"truth_upload_classic_seconds_count{of}"))
    time.sleep(1)  # the others came in the same request

    def asked(query: str) -> float:
        value = prometheus.value(query)
        return math.nan if value is None else value

    return [
        Percentile(
            kind,
            q,
            len(values),
            exact(q, values),
            asked(f"histogram_quantile({q}, sum by (le) (truth_{kind}_classic_seconds_bucket{of}))"),
            asked(f"histogram_quantile({q}, sum(truth_{kind}_native_seconds{of}))"),
        )
        for kind, values in durations.items()
        if values
        for q in QUANTILES
    ]
