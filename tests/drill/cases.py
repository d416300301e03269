"""The cases of the drill: one fault each, which alerts have to be sent, and how the runbook's entry repairs it."""

import asyncio
import gzip
import json
import os
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import httpx

import nats
from bronze.protocol.lane import lane_subject
from local.evidence import trace_store
from tests.background import InThread
from tests.drill.alerts import WATCHDOG
from tests.drill.site import Site, values
from tests.system.blackbox import until

PAGE, TICKET = "page", "ticket"
SLOW_S = 3.0

AlertKey = tuple[str, str]
Headers = Mapping[str, str]
#: Repairs what a fault did.
Repair = Callable[[], None]


@dataclass(frozen=True)
class Panel:
    """A panel that leads to the cause: it shows a value above 0, of a series with this word in its labels."""

    dashboard: str
    title: str
    series: str = ""

    def __call__(self, site: Site) -> str:
        """What the panel shows. Fails if that is nothing above 0."""

        def shown() -> Mapping[str, float] | None:
            found = {
                labels: value
                for labels, value in site.panel(self.dashboard, self.title).items()
                if self.series in labels and value > 0
            }
            return found or None

        return f"*{self.title}*: {values(until(f'panel {self.title} shows {self.series}', shown, 60))}"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fault: `begin` causes it, and returns what repairs it.

    `alerts` are all that have to be sent, each with the reason; the first is the symptom. `after` may be sent after the
    repair, and may last, since they look back. `entry` is the symptom's entry in the runbook, or another one; it has to
    contain `says`, `repair`, and commands that print what `prints` has by a word of the command.
    """

    name: str
    fault: str
    begin: Callable[[Site], Repair]
    alerts: Mapping[AlertKey, str] = field(default_factory=dict)
    after: Mapping[AlertKey, str] = field(default_factory=dict)
    entry: str = ""
    says: str = ""
    repair: str = ""
    prints: Mapping[str, str] = field(default_factory=dict)
    #: A line of the log of a program.
    logs: Mapping[str, str] = field(default_factory=dict)
    #: What leads to the cause; it fails if nothing does.
    cause: Callable[[Site], str]
    #: The variables that the entry tells its reader to set.
    variables: Callable[[Site], Mapping[str, str]] = lambda site: {}
    #: Seconds from the fault until the symptom has to fire; without alerts, how long none may be sent.
    deadline_s: float
    #: Seconds after the symptom, in which no other alert may be sent.
    watch_s: float = 180
    #: Seconds for which the system has to run before the fault.
    warm_s: float = 90
    env: Mapping[str, str] = field(default_factory=dict)
    #: Whether the consumer writes through a proxy that can be slow.
    slow_bucket: bool = False
    #: What runs after the fault.
    api_runs: bool = True
    prometheus_runs: bool = True

    @property
    def symptom(self) -> AlertKey | None:
        return next(iter(self.alerts), None)


def killed(*parts: str) -> Callable[[Site], Repair]:
    """The first of these parts that the system has is killed; it is started again."""

    def begin(site: Site) -> Repair:
        process = next(site.parts[part] for part in parts if part in site.parts)
        process.signal(signal.SIGKILL)
        return process.restart

    return begin


class Sending(InThread):
    """Sends bodies in the context, at a rate, whatever the answers are; `statuses` counts these."""

    def __init__(self, site: Site, submission: Callable[[], tuple[str, bytes, Headers]], per_s: float) -> None:
        self.statuses: dict[int, int] = {}
        self._site, self._submission, self._per_s = site, submission, per_s

    def stop(self) -> None:
        self.__exit__(None, None, None)

    def _run(self) -> None:
        began = time.monotonic()
        for number in count(1):
            source, body, headers = self._submission()
            try:
                status = self._site.system.post(source, body, **headers).status_code
            except httpx.HTTPError:
                status = 0
            self.statuses[status] = self.statuses.get(status, 0) + 1
            if self._over.wait(max(0.0, began + number / self._per_s - time.monotonic())):
                return


# --- the bucket


def _slow(site: Site) -> Repair:
    site.bucket.delay_s = SLOW_S

    def repair() -> None:
        site.bucket.delay_s = 0

    return repair


def _slow_put(site: Site) -> str:
    """The slowest exemplar of the upload duration leads to a trace whose span S3 PutObject is slow."""
    now = time.time()
    found = site.system.prometheus(
        "query_exemplars", query="bronze_upload_duration_seconds_bucket", start=now - 600, end=now + 1
    )
    points = {e["labels"]["trace_id"]: float(e["value"]) for series in found for e in series["exemplars"]}
    trace_id = max(points, key=lambda trace: points[trace])
    store = trace_store(site.stack)
    assert store
    file_path = until("the trace of the slowest exemplar", lambda: store.trace(trace_id).file_path)
    assert file_path in site.bucket.slowed, f"{file_path} was not slowed"
    puts = [span["duration"] / 1e6 for span in site.system.trace(trace_id) if span["name"] == "s3 putobject"]
    assert max(puts) >= SLOW_S, puts
    return f"the slowest exemplar ({points[trace_id]:.1f} s) leads to a trace with a PutObject of {max(puts):.1f} s"


def _delete_object(site: Site) -> Repair:
    bucket = {"Bucket": site.system.bucket, "Key": max(site.system.keys(f"{site.system.prefix}/source=vehicles/"))}
    body = site.system.body(bucket["Key"])
    metadata = site.system.s3.head_object(**bucket)["Metadata"]
    site.system.s3.delete_object(**bucket)

    def repair() -> None:
        site.system.s3.put_object(**bucket, Body=body, Metadata=metadata)

    return repair


_MISSING_LINE = r"([^\s\"]+\.parquet) is in the catalog, but not in the bucket"


def _missing_path(site: Site) -> Mapping[str, str]:
    """The path that the consumer's log names."""
    found = re.search(_MISSING_LINE, site.log("consumer"))
    assert found
    return {"FILE_PATH": found[1]}


# --- the queue


def _flood(site: Site) -> Repair:
    def bulk() -> tuple[str, bytes, Headers]:
        return "vehicles", json.dumps({"vehicle_id": "BULK", "undeclared": os.urandom(96 * 1024).hex()}).encode(), {}

    sending = site.ending.enter_context(Sending(site, bulk, per_s=2))
    return sending.stop


def _publish_poison(site: Site) -> Repair:
    async def publish() -> None:
        queue = await nats.connect(**site.stack.queue_options)
        await queue.jetstream().publish(lane_subject("vehicles", 0, "drill"), b"\x00\xff no JSON")
        await queue.close()

    asyncio.run(publish())
    return lambda: None  # the message is in quarantine, and its lane has continued: the alert ends by itself


# --- senders


def _send_nonsense(site: Site) -> Repair:
    bodies: Sequence[tuple[str, bytes, Headers]] = (
        ("vehicles", b"no JSON\n", {}),
        ("vehicles", b'{"vehicle_id": 7}\n', {}),
        ("vehicles", b'{"seats": "many"}\n', {}),
        ("nothing", b'{"vehicle_id": "N1"}\n', {}),
        ("status", gzip.compress(b"{}")[:-4], {"Content_Encoding": "gzip"}),
    )
    numbers = count()
    sending = site.ending.enter_context(Sending(site, lambda: bodies[next(numbers) % len(bodies)], per_s=5))

    def repair() -> None:
        sending.stop()
        assert sending.statuses
        assert set(sending.statuses) <= {400, 404, 415, 422}, sending.statuses

    return repair


# --- Prometheus


def _kill_prometheus(site: Site) -> Repair:
    until("the watchdog was sent", lambda: site.alertmanager.ends_at(WATCHDOG), 120)
    return killed("prometheus")(site)


def _no_watchdog(site: Site) -> str:
    """The page says that Prometheus does not answer, and the watchdog has ended where it was sent to."""
    assert "Prometheus does not answer" in site.system.get("/").text
    ends_at = site.alertmanager.ends_at(WATCHDOG)
    assert ends_at
    assert ends_at < time.time(), "the watchdog has not ended"
    return f"the page says so; *{WATCHDOG}* ends at its receiver {ends_at - site.began_at:.0f} s after the fault"


_COUNTED = "counts what the canary found in the last 15 minutes"

CASES: Sequence[Case] = (
    Case(
        name="bucket-slow",
        fault=f"every PutObject takes {SLOW_S:g} s longer",
        begin=_slow,
        slow_bucket=True,
        alerts={("BronzeUploadsSlow", PAGE): ""},
        says="put is slow: check the bucket",
        repair="check the bucket and the network connection to it",
        cause=_slow_put,
        deadline_s=900,
    ),
    Case(
        name="bucket-down",
        fault="SeaweedFS is killed",
        begin=killed("seaweedfs"),
        alerts={("BronzeUploadsFail", PAGE): ""},
        says="unavailable, timeout: check the bucket",
        repair="check the bucket's service and the network connection to it. If it does not run, start it",
        prints={"/readyz": '"bucket":"unavailable'},
        after={
            ("BronzeUploadAttemptsFail", PAGE): "looks back by 30 minutes",
            ("BronzeDeliveriesLate", PAGE): "what had waited was stored late",
            ("BronzeConsumerErrors", TICKET): "counts the errors of 15 minutes",
            ("BronzeUploadAttemptsFail", TICKET): "looks back by two hours",
            ("BronzeCanaryNotStored", PAGE): _COUNTED,
        },
        cause=Panel("bronze-overview", "Uploads, succeeded and failed", "failure"),
        deadline_s=900,
        watch_s=600,  # from the first alert: also consequences that are tickets fire
    ),
    Case(
        name="queue-full",
        fault="a sender sends more than the queue holds for a minute (`BRONZE_QUEUE_BYTES_MAX` is 4 MiB)",
        begin=_flood,
        env={"BRONZE_QUEUE_BYTES_MAX": str(4 * 2**20)},
        alerts={("BronzeRequestsSlow", PAGE): ""},
        says="queue-full",
        repair="queue-full",
        cause=Panel("bronze-overview", "Refused by reason", "queue-full"),
        deadline_s=900,
    ),
    Case(
        name="queue-away",
        fault="NATS is killed",
        begin=killed("nats"),
        alerts={("BronzeRequestsFail", PAGE): ""},
        says="queue-away",
        repair="check whether NATS",
        after={
            ("BronzeConsumerErrors", TICKET): "counts the errors of 15 minutes",
            ("BronzeCanaryNotAccepted", PAGE): _COUNTED,
        },
        prints={"/readyz": "not ready: the queue does not answer"},
        cause=Panel("bronze-overview", "Refused by reason", "queue-away"),
        deadline_s=600,
        watch_s=480,
    ),
    Case(
        name="poison",
        fault="another program publishes a message that cannot be decoded",
        begin=_publish_poison,
        alerts={("BronzePoison", TICKET): ""},
        says="could not be decoded",
        repair="another program publishes to the queue directly",
        variables=lambda site: {"SOURCE": "vehicles"},
        prints={"bronze quarantine list": "vehicles"},
        logs={"consumer": r"message \d+ of lane \S+ was quarantined as quarantine/\S+"},
        cause=Panel("bronze-overview", "Consumer errors by step", "poison"),
        deadline_s=900,
        watch_s=60,
    ),
    Case(
        name="consumer-killed",
        fault="the only consumer is killed, and not started again",
        begin=killed("consumer"),
        alerts={("BronzeRoleDown", PAGE): ""},
        says="without a consumer, accepted data waits in the queue",
        repair="start the role",
        after={
            ("BronzeDeliveriesLate", PAGE): "what had waited was stored late",
            ("BronzeCanaryNotStored", PAGE): _COUNTED,
        },
        prints={"/api/v1/targets": "scrape-consumer"},
        cause=Panel("bronze-health", "Targets down"),
        deadline_s=240,
        watch_s=600,
    ),
    Case(
        name="api-killed",
        fault="the only API is killed, and not started again",
        begin=killed("api"),
        api_runs=False,
        alerts={("BronzeRoleDown", PAGE): ""},
        says="without an API nothing is accepted",
        repair="start the role",
        after={("BronzeCanaryNotAccepted", PAGE): _COUNTED},
        prints={"/api/v1/targets": "scrape-api"},
        cause=Panel("bronze-health", "Targets down"),
        deadline_s=240,
        watch_s=600,
    ),
    Case(
        name="collector-down",
        fault="the collector is killed",
        begin=killed("otel-collector"),
        alerts={("BronzeTelemetryMissing", PAGE): ""},
        after={
            ("BronzeSdkDrops", TICKET): "the roles had to drop spans",
            ("BronzeCanaryMiscounted", TICKET): _COUNTED,
            ("BronzeCanaryTraceIncomplete", TICKET): _COUNTED,
            ("BronzeCanaryExemplarMissing", TICKET): _COUNTED,
        },
        says="all are affected",
        repair="check that the collector runs",
        cause=Panel("bronze-health", "Targets down"),
        deadline_s=600,
        watch_s=360,
        warm_s=660,  # alerts that look back by 10 minutes have data then
    ),
    Case(
        name="prometheus-down",
        fault="Prometheus is killed",
        begin=_kill_prometheus,
        prometheus_runs=False,
        after={
            ("BronzeCanaryMiscounted", TICKET): _COUNTED,
            ("BronzeCanaryExemplarMissing", TICKET): _COUNTED,
        },
        entry=WATCHDOG,
        says="Prometheus",
        repair="start it",
        cause=_no_watchdog,
        deadline_s=330,
    ),
    Case(
        name="trace-store-down",
        fault="the trace store is killed",
        begin=killed("tempo", "zipkin"),
        alerts={("BronzeExporterStalled", TICKET): ""},
        says="delivered nothing to a backend",
        repair="restore the backend",
        after={
            ("BronzeCanaryTraceIncomplete", TICKET): _COUNTED,
            ("BronzeCanaryExemplarMissing", TICKET): _COUNTED,
        },
        cause=Panel("bronze-health", "Queues"),
        deadline_s=900,
        watch_s=120,
    ),
    Case(
        name="object-deleted",
        fault="an object is deleted from the bucket",
        begin=_delete_object,
        alerts={("BronzeRecordsMissing", PAGE): ""},
        says="no longer in the bucket",
        repair="restore it under the same key",
        variables=_missing_path,
        prints={"/v1/lineage": '"submissions"', "objects missing": ".parquet"},
        logs={"consumer": _MISSING_LINE},
        cause=Panel("bronze-overview", "Missing data"),
        deadline_s=300,
    ),
    Case(
        name="canary-stopped",
        fault="the canary is killed, and not started again",
        begin=killed("canary"),
        alerts={("BronzeRoleDown", PAGE): ""},
        says="without a canary, nothing is checked",
        repair="start the role",
        prints={"/api/v1/targets": "scrape-canary"},
        cause=Panel("bronze-health", "Targets down"),
        deadline_s=240,
        watch_s=360,
    ),
    Case(
        name="nonsense",
        fault="a sender sends what is no JSON, does not fit its source, or names no source: five bodies per second",
        begin=_send_nonsense,
        cause=Panel("bronze-overview", "Refused by reason", "schema-violation"),
        deadline_s=780,
    ),
)
