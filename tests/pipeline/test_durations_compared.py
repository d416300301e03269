"""What panels say of durations that are compared, with the service's own instruments and a real Prometheus."""

import json
import random
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.resources import Resource

from bronze.objectives import DURATION_S_MAX, delivery_s_max
from bronze.telemetry import sdk
from bronze.telemetry.instruments import Instruments
from bronze.telemetry.schema import Metric
from bronze.telemetry.signals import Outcome, Role, Stage, attribute
from tests import panels
from tests.panels import Query
from tests.pipeline.rig import as_in_a_role
from tests.system.blackbox import until

SOURCE = "vehicles"
INGEST: Mapping[str, str | int] = {
    attribute.http_route: "/v1/ingest/{source}",
    attribute.http_response_status_code: 202,
}
#: An objective that is no bound of the registry.
OBJECTIVE_S = delivery_s_max(5)
#: How many submissions are compared.
MEASURED = 40
#: The bounds that uploads had in an earlier version.
EARLIER_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 20, 30, 60)

PROMQL = {(query.dashboard, query.panel, query.legend): query for query in panels.queries()}


def _quantiles(dashboard: str, panel: str) -> Mapping[str, Query]:
    return {legend: PROMQL[dashboard, panel, legend] for legend in ("p50", "p95", "p99")}


UPLOADS = _quantiles("bronze-latency", "Upload duration, percentiles")
PROCESSED = _quantiles("bronze-overview", "Processing time")
DELIVERIES = _quantiles("bronze-overview", "Delivery duration")
REQUESTS = _quantiles("bronze-overview", "Request latency")
STAGES = PROMQL["bronze-latency", "Time by stage, p95", "{{bronze_stage}}"]
UPLOAD_TILE, DELIVERY_TILE = (PROMQL["bronze-overview", f"p95 {kind}", "ended"] for kind in ("upload", "delivery"))
MEAN_TILE = PROMQL["bronze-overview", "Mean upload", "ended"]
SHARE_ABOVE = PROMQL["bronze-latency", "Share above the limit", "uploads"]


@dataclass(frozen=True)
class Submission:
    """The durations of one submission, stored as an object of its own."""

    accept_s: float
    wait_s: float
    encode_s: float
    put_s: float
    catalog_s: float
    more_s: float

    @property
    def request_s(self) -> float:
        return self.accept_s + self.more_s

    @property
    def upload_s(self) -> float:
        return self.encode_s + self.put_s

    @property
    def processed_s(self) -> float:
        return self.upload_s + self.catalog_s

    @property
    def delivery_s(self) -> float:
        return self.wait_s + self.processed_s


@dataclass(frozen=True)
class Shown:
    """What the panels show of one process."""

    prometheus: str
    instance: str

    def of(self, query: Query) -> dict[str, float]:
        """The values of a query, by stage where it has some."""
        values = {"__range": "1h", "__rate_interval": "1h", "source": ".*", "instance": self.instance}
        found = self._get(query.asked(values))
        return {series["metric"].get("bronze_stage", ""): round(float(series["value"][1]), 9) for series in found}

    def one(self, query: Query) -> float:
        (value,) = self.of(query).values()
        return value

    def counted(self) -> float:
        """How many deliveries have arrived."""
        name = "bronze_delivery_duration_seconds_count"
        return sum(float(s["value"][1]) for s in self._get(f'{name}{{instance="{self.instance}"}}'))

    def _get(self, query: str) -> list[dict[str, Any]]:
        url = f"{self.prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return result


@pytest.fixture(autouse=True)
def _exported_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    as_in_a_role(monkeypatch)


@contextmanager
def exported(
    prometheus: str, submissions: Sequence[Submission], objective_s: float | None = OBJECTIVE_S
) -> Iterator[Shown]:
    """The telemetry of an API and a consumer that do the same twice, so that graphs of rates have values, too."""
    shown = Shown(prometheus, uuid.uuid4().hex)
    api, consumer = (
        sdk.assemble(
            sdk._resource(role).merge(Resource({attribute.service_instance_id: shown.instance})),
            metric_exporters=[OTLPMetricExporter(f"{prometheus}/api/v1/otlp/v1/metrics")],
            delivery_objective_s=objective_s,
        )
        for role in (Role.API, Role.CONSUMER)
    )
    requests = api._meters.get_meter("as the instrumentation").create_histogram("http.server.request.duration", "s")
    for times in (1, 2):
        for submission in submissions:
            requests.record(submission.request_s, INGEST)
            _record(api.instruments, consumer.instruments, submission)
        api.flush()
        consumer.flush()
        expected = times * len(submissions)
        until("the measurements arrive", lambda expected=expected: shown.counted() == expected)  # type: ignore[misc]
    yield shown
    api.shutdown()
    consumer.shutdown()


def _record(api: Instruments, consumer: Instruments, of: Submission) -> None:
    source = {attribute.bronze_source: SOURCE}
    stages = {Stage.WAIT: of.wait_s, Stage.ENCODE: of.encode_s, Stage.PUT: of.put_s, Stage.CATALOG: of.catalog_s}
    api.stage_duration.record(of.accept_s, {**source, attribute.bronze_stage: Stage.ACCEPT})
    for stage, duration_s in stages.items():
        consumer.stage_duration.record(duration_s, {**source, attribute.bronze_stage: stage})
    consumer.upload_duration.record(of.upload_s, {**source, attribute.bronze_outcome: Outcome.SUCCESS})
    consumer.messaging_process_duration.record(
        of.processed_s, {attribute.messaging_destination_name: f"bronze.{SOURCE}"}
    )
    consumer.delivery_duration.record(of.delivery_s, source)


def _submissions(seed: int) -> list[Submission]:
    """Some whose durations are from a thousandth of the slowest on."""
    chosen = random.Random(seed)
    slowest_s = 10 ** chosen.uniform(-1, 2.5)
    return [Submission(*(slowest_s * 10 ** chosen.uniform(-3, 0) for _ in fields(Submission))) for _ in range(MEASURED)]


@pytest.mark.parametrize(
    "submissions",
    [*map(_submissions, range(5)), [Submission(0.01, 0.01, 0.01, OBJECTIVE_S - 0.1, 0.01, 0.01)] * MEASURED],
    ids=[*map(str, range(5)), "just within the objective"],
)
def test_a_part_never_exceeds_its_whole(prometheus: str, submissions: Sequence[Submission]) -> None:
    """In no percentile of any panel, with durations from milliseconds to minutes."""
    with exported(prometheus, submissions) as shown:
        stages = shown.of(STAGES)
        for q in UPLOADS:
            each = [shown.one(of[q]) for of in (UPLOADS, PROCESSED, DELIVERIES)]
            assert each == sorted(each), q
        upload_s, processed_s, delivery_s, request_s = (
            shown.one(of["p95"]) for of in (UPLOADS, PROCESSED, DELIVERIES, REQUESTS)
        )
        assert max(stages["encode"], stages["put"]) <= upload_s
        assert stages["catalog"] <= processed_s
        assert stages["wait"] <= delivery_s
        assert stages["accept"] <= request_s
        assert shown.one(UPLOAD_TILE) <= shown.one(DELIVERY_TILE)


def test_an_upload_of_150_s_reads_150_s(prometheus: str) -> None:
    """It read 60 s as an upload, and 292 s as a delivery."""
    with exported(prometheus, [Submission(0.02, 1, 0.1, 149.9, 0.01, 0.01)]) as shown:
        assert shown.one(MEAN_TILE) == pytest.approx(150)
        for query in (*UPLOADS.values(), *PROCESSED.values(), *DELIVERIES.values(), UPLOAD_TILE, DELIVERY_TILE):
            assert shown.one(query) == pytest.approx(150, rel=0.2), query.panel


def test_processes_with_the_bounds_of_an_earlier_version(prometheus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """During a rolling upgrade, what is over 2 s is counted exactly. A percentile is between the bounds of the earlier
    version around the true one; beyond its last bound, it is the last bound of this one.
    """

    def both(put_s: float) -> tuple[Shown, ExitStack]:
        stack, submissions = ExitStack(), [Submission(0.02, 0.1, 0, put_s, 0.01, 0.01)]
        new = stack.enter_context(exported(prometheus, submissions))
        with monkeypatch.context() as patched:
            patched.setattr(Metric, "bounds", lambda metric, _: EARLIER_S if metric.unit == "s" else metric.buckets)
            old = stack.enter_context(exported(prometheus, submissions))
        return replace(new, instance=f"{new.instance}|{old.instance}"), stack

    for put_s, low_s, high_s in ((0.06, 0.05, 0.1), (1.2, 1, 2), (2.7, 2, 3), (150, 120, 600)):
        shown, stack = both(put_s)
        with stack:
            assert shown.one(SHARE_ABOVE) == (put_s > DURATION_S_MAX)
            read = [shown.one(query) for query in UPLOADS.values()]
            assert all(low_s <= value_s <= high_s for value_s in read), read
    assert shown.one(UPLOADS["p99"]) == 600
