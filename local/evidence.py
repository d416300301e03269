"""Evidence that the system works: it sends the sample and follows it through Prometheus, the bucket and the traces.

None of the figures comes from a role directly. Sent records are counted in the sample's files; accepted and stored
records and latencies come from Prometheus; the trace comes from the trace store; rows are read from the objects in the
bucket. Counts include only this sample, latencies everything since the roles started.
"""

import datetime as dt
import hashlib
import json
import math
import subprocess
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from bronze.telemetry.promql import LEDGER, in_ledger
from local import samples
from local.exporters import PROMETHEUS
from local.programs import LOOPBACK, LocalError, NotReady, get_json
from local.servers import executable
from local.stack import Stack

SOURCES = ("vehicles", "status", "results", "failures")
SERVICES = frozenset({"publisher", "api", "consumer"})
#: The exporters whose traces can be read here, in order of preference.
TRACE_STORES = ("tempo", "zipkin")
#: The roles that Prometheus scrapes, as far as they run.
SCRAPED = ("api", "consumer", "publisher", "canary", "table")

PUBLISH_S_MAX = 120.0
#: It waits up to a minute for telemetry that is on its way.
VERIFY_S_MAX = 180.0
#: Records are stored within seconds; Prometheus has their counts one export and one batch later.
SETTLE_S_MAX = 60.0
#: A rate in records/s that even a busy machine reaches: a larger sample gets more time accordingly.
RATE_MIN = 2_000

BySource = Mapping[str, int]


def sample_file(source: str, sample: Path = samples.DAYS) -> Path:
    return sample / f"{source}.ndjson"


def payloads(file: Path) -> Counter[bytes]:
    """The multiset of the SHA-256 of a file's records: its lines, without the line ends."""
    return Counter(hashlib.sha256(line).digest() for line in file.read_bytes().splitlines() if line.strip())


# --- the sources of the evidence


@dataclass(frozen=True)
class Receipt:
    """One accepted submission, as the publisher reports it."""

    submission_id: str
    trace_id: str


@dataclass(frozen=True)
class Prometheus:
    port: int

    def vector(self, query: str) -> Mapping[str, float]:
        """An instant query's values, by the value of the result's only label ("" without a label)."""
        result = self._get("query", query=query)["result"]
        return {next(iter(series["metric"].values()), ""): float(series["value"][1]) for series in result}

    def value(self, query: str) -> float | None:
        value = next(iter(self.vector(query).values()), math.nan)
        return None if math.isnan(value) else value

    def exemplars(self, query: str, start: float, end: float) -> list[tuple[float, str]]:
        """The exemplars of a time range as (value, trace id), the largest value first."""
        found = self._get("query_exemplars", query=query, start=str(start), end=str(end))
        return sorted(
            ((float(e["value"]), e["labels"].get("trace_id", "")) for series in found for e in series["exemplars"]),
            reverse=True,
        )

    def _get(self, path: str, **parameters: str) -> Any:
        return get_json(self.port, f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")["data"]


@dataclass(frozen=True)
class Trace:
    """A trace in a trace store; `file_path` is an attribute of its upload span."""

    spans: int = 0
    services: tuple[str, ...] = ()
    file_path: str | None = None

    @classmethod
    def of(cls, spans: Sequence[tuple[str, str, str | None]]) -> "Trace":
        """Makes a trace from each span's service, name and `bronze.file_path`."""
        return cls(
            spans=len(spans),
            services=tuple(sorted({service for service, _, _ in spans})),
            file_path=next((path for _, name, path in spans if name.startswith("upload ")), None),
        )

    @property
    def whole(self) -> bool:
        return set(self.services) >= SERVICES and self.file_path is not None


@dataclass(frozen=True)
class Zipkin:
    port: int

    def url(self, trace_id: str) -> str:
        """The page that shows a trace."""
        return f"http://{LOOPBACK}:{self.port}/zipkin/traces/{trace_id}"

    def trace(self, trace_id: str) -> Trace:
        """The trace with the spans that have arrived so far."""
        try:
            return self.parse(get_json(self.port, f"/api/v2/trace/{trace_id}"))
        except NotReady:  # 404 until its first spans are there
            return Trace()

    @staticmethod
    def parse(spans: Sequence[Mapping[str, Any]]) -> Trace:
        return Trace.of(
            [
                (s["localEndpoint"]["serviceName"], s.get("name", ""), s.get("tags", {}).get("bronze.file_path"))
                for s in spans
            ]
        )


@dataclass(frozen=True)
class Tempo:
    port: int

    def url(self, trace_id: str) -> str:
        """The API's URL of a trace: Tempo has no pages."""
        return f"http://{LOOPBACK}:{self.port}/api/v2/traces/{trace_id}"

    def trace(self, trace_id: str) -> Trace:
        """The trace with the spans that have arrived so far."""
        return self.parse(get_json(self.port, f"/api/v2/traces/{trace_id}"))

    @staticmethod
    def parse(answer: Mapping[str, Any]) -> Trace:
        """Parses OTLP as JSON."""
        spans = []
        for resource in answer["trace"].get("resourceSpans", ()):
            service = _attributes(resource["resource"])["service.name"]
            for scope in resource["scopeSpans"]:
                spans += [(service, s["name"], _attributes(s).get("bronze.file_path")) for s in scope["spans"]]
        return Trace.of(spans)


def _attributes(owner: Mapping[str, Any]) -> Mapping[str, str]:
    """The attributes that are strings."""
    return {a["key"]: a["value"].get("stringValue", "") for a in owner.get("attributes", ())}


def trace_store(stack: Stack) -> Tempo | Zipkin | None:
    """The trace store that a stack's traces go to, if there is one that can be read."""
    stores: Mapping[str, Tempo | Zipkin] = {"tempo": Tempo(stack.ports.tempo), "zipkin": Zipkin(stack.ports.zipkin)}
    return next((stores[name] for name in TRACE_STORES if name in stack.exporters.traces), None)


@dataclass(frozen=True)
class Rows:
    """The rows of some submissions in the bucket, and the keys of their objects."""

    by_source: BySource
    payloads: Mapping[str, Counter[bytes]]
    duplicates: int
    keys_of_trace: Mapping[str, Sequence[str]]
    tables: Mapping[str, pa.Table]
    #: The number of rows of other submissions in the same objects.
    others: int = 0

    @classmethod
    def of(cls, tables: Mapping[str, pa.Table], submissions: frozenset[str]) -> "Rows":
        """`tables` are the objects' rows by key; rows of other submissions are only counted."""
        by_source: Counter[str] = Counter()
        digests: dict[str, Counter[bytes]] = {source: Counter() for source in SOURCES}
        positions: Counter[tuple[str, int]] = Counter()
        keys: dict[str, list[str]] = {}
        others = 0
        for key, table in tables.items():
            source = source_of(key)
            columns = (table.column(name).to_pylist() for name in ROW_COLUMNS)
            for submission, index, trace, payload in zip(*columns, strict=True):
                if submission not in submissions:
                    others += 1
                    continue
                by_source[source] += 1
                digests[source][hashlib.sha256(payload.encode()).digest()] += 1
                positions[submission, index] += 1
                if key not in keys.setdefault(trace, []):
                    keys[trace].append(key)
        return cls(by_source, digests, positions.total() - len(positions), keys, tables, others)


ROW_COLUMNS = ("_submission_id", "_record_index", "_trace_id", "_payload")


def source_of(key: str) -> str:
    """The source of an object, from the partition in its key."""
    return key.partition("/source=")[2].partition("/")[0]


# --- the evidence


@dataclass
class Evidence:
    """The fields are those of `evidence.json`; counts are by source."""

    records_sent: BySource
    metrics_exporters: tuple[str, ...] = ("prometheus",)
    traces_exporters: tuple[str, ...] = ("zipkin",)
    records_accepted: BySource = field(default_factory=dict)
    records_stored: BySource = field(default_factory=dict)
    rows_read_back: BySource = field(default_factory=dict)
    #: Records that somebody else sent meanwhile: the ledger counts them, too.
    rows_of_others: int = 0
    payloads_equal: bool = False
    duplicates: int | None = None
    uploads_success: int | None = None
    mean_upload_duration_s: float | None = None
    p95_delivery_s: float | None = None
    #: The roles that Prometheus has to scrape.
    prometheus_targets: tuple[str, ...] = SCRAPED
    prometheus_targets_up: int | None = None
    exemplar_trace_id: str | None = None
    trace_spans: int = 0
    trace_services: tuple[str, ...] = ()
    file_path: str | None = None
    file_path_in_trace: str | None = None
    url_trace: str | None = None
    verified: Mapping[str, int] = field(default_factory=dict)
    verify_faults: Mapping[str, int] = field(default_factory=dict)

    @property
    def sees_metrics(self) -> bool:
        return any(name in PROMETHEUS for name in self.metrics_exporters)

    @property
    def sees_traces(self) -> bool:
        return any(name in TRACE_STORES for name in self.traces_exporters)

    @property
    def _checks_with_items(self) -> tuple[str, ...]:
        """The checks of `bronze verify` that have something to check in each sample."""
        return ("exemplar", "entry", "object") if self.sees_metrics and self.sees_traces else ("entry", "object")

    def claims(self) -> Mapping[str, bool | str]:
        """Each claim about a working system, and whether it is true here, or why it was not checked."""
        elsewhere = "not checked: {} go to {}".format
        no_metrics = None if self.sees_metrics else elsewhere("metrics", ", ".join(self.metrics_exporters))
        no_count = no_metrics or (self.rows_of_others and "not checked: others sent records meanwhile") or None
        no_traces = None if self.sees_traces else elsewhere("traces", ", ".join(self.traces_exporters))
        return {
            "every source has as many rows in the bucket as records sent": bool(self.records_sent)
            and self.records_sent == self.rows_read_back,
            "the ledger in Prometheus has as many records accepted and stored": no_count
            or (bool(self.records_sent) and self.records_sent == self.records_accepted == self.records_stored),
            "the payloads in the bucket equal the sent records, byte for byte": self.payloads_equal,
            "no record is stored twice": self.duplicates == 0,
            "uploads and deliveries were measured": no_metrics
            or (
                bool(self.uploads_success)
                and self.mean_upload_duration_s is not None
                and self.p95_delivery_s is not None
            ),
            "the slowest upload's exemplar links to its trace": no_metrics
            or no_traces
            or (self.exemplar_trace_id is not None and self.trace_spans > 0),
            "the trace runs from publisher through API to consumer": no_traces or set(self.trace_services) >= SERVICES,
            "the trace names the object that contains its submission": no_traces
            or (self.file_path is not None and self.file_path_in_trace == self.file_path),
            "bronze verify finds no fault in telemetry, catalog and bucket": all(
                self.verified.get(check) for check in self._checks_with_items
            )
            and not any(self.verify_faults.values()),
            f"Prometheus scrapes {', '.join(self.prometheus_targets)}": self.prometheus_targets_up
            == len(self.prometheus_targets),
        }

    def holds(self) -> bool:
        """Whether every claim that was checked is true."""
        return all(self.claims().values())

    def document(self) -> dict[str, object]:
        """The content of `evidence.json`."""
        return {
            name: {"total": sum(value.values()), **value} if value and isinstance(value, Mapping) else value
            for name, value in vars(self).items()
        }


class Investigation:
    """Follows a sample, a directory of files, through a running stack."""

    def __init__(self, stack: Stack, say: Callable[[str], None], sample: Path = samples.DAYS) -> None:
        self._stack = stack
        self._say = say
        self._prometheus = Prometheus(stack.ports.prometheus)
        exporters = stack.exporters
        self._traces = trace_store(stack)
        self._series = {
            role: f'job="bronze/{role}",instance=~"{stack.instance(role)}(-[0-9]+)?",bronze_source!="canary"'
            for role in ("api", "consumer")
        }
        self._payloads = {source: payloads(sample_file(source, sample)) for source in SOURCES}
        self._sample = sample
        sent = {source: lines.total() for source, lines in self._payloads.items()}
        self._more_s = sum(sent.values()) / RATE_MIN
        scraped = tuple(role for role in SCRAPED if f"scrape-{role}" in stack.targets)
        self.evidence = Evidence(sent, exporters.metrics, exporters.traces, prometheus_targets=scraped)
        self.slowest: pa.Table | None = None

    def run(self) -> None:
        """Sends the sample and gathers everything but the scrape targets."""
        before = self._before() if self.evidence.sees_metrics else None
        began = time.time()
        receipts = self._publish()
        self._say("following the sample through Prometheus, the bucket and the traces")
        if before:
            self._count(before)
        rows = self._read(receipts, began)
        if before:
            self._measure()
        self._trace(receipts, rows, began)
        self._verify(began)

    def count_targets(self) -> None:
        """Counts the components that Prometheus scrapes from now on. Call it when all of them run."""
        scraped = self.evidence.prometheus_targets
        up = f'up{{job=~"scrape-({"|".join(scraped)})"}}'
        query = f"sum(min by (job) ({up} and timestamp({up}) >= {time.time()}))"
        self._settle(lambda: self._prometheus.value(query) == len(scraped))
        self.evidence.prometheus_targets_up = int(self._prometheus.value(query) or 0)

    def _settle(self, condition: Callable[[], bool]) -> None:
        """Waits for a condition, up to a limit. If it never becomes true, the evidence read afterwards shows that."""
        deadline = time.monotonic() + SETTLE_S_MAX + self._more_s
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.2)

    def _before(self) -> tuple[BySource, BySource]:
        """The counts before anything is sent."""
        self._say("waiting until the queue is empty and Prometheus has the ledger")
        self._settle(self._is_idle)
        return self._counts()

    def _is_idle(self) -> bool:
        consumer = self._series["consumer"]
        depths = self._prometheus.vector(f"max by (bronze_source) (bronze_queue_depth{{{consumer}}})")
        return depths == dict.fromkeys(SOURCES, 0) and all(count.keys() >= set(SOURCES) for count in self._counts())

    def _counts(self) -> tuple[BySource, BySource]:
        return self._records("accepted"), self._records("stored")

    def _records(self, outcome: str) -> BySource:
        """From the ledger, which is exact."""
        query = in_ledger(f'bronze_ledger_records{{{LEDGER},bronze_outcome="{outcome}"}}')
        return {k: int(v) for k, v in self._prometheus.vector(query).items()}

    def _publish(self) -> list[Receipt]:
        report = self._stack.root / "published.ndjson"
        receipts = []
        for source in SOURCES:
            file = str(sample_file(source, self._sample))
            command = [executable("bronze"), "publish", source, file, "--again", "--report", str(report)]
            try:
                subprocess.run(command, env=self._stack.publish_env, timeout=PUBLISH_S_MAX + self._more_s, check=True)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                raise LocalError(f"the sample could not be published: {error}") from error
            reported = (json.loads(line) for line in report.read_text().splitlines())
            receipts += [Receipt(r["submission_id"], r["trace_id"]) for r in reported]
        return receipts

    def _count(self, before: tuple[BySource, BySource]) -> None:
        sent = self.evidence.records_sent

        def added() -> tuple[BySource, BySource]:
            accepted, stored = (
                {source: now.get(source, 0) - then.get(source, 0) for source in SOURCES}
                for now, then in zip(self._counts(), before, strict=True)
            )
            return accepted, stored

        self._settle(lambda: all(count[source] >= sent[source] for count in added() for source in SOURCES))
        self.evidence.records_accepted, self.evidence.records_stored = added()

    def _read(self, receipts: Iterable[Receipt], began: float) -> Rows:
        evidence, submissions = self.evidence, frozenset(r.submission_id for r in receipts)

        rows = Rows.of({}, submissions)

        def complete() -> bool:
            nonlocal rows
            rows = Rows.of(read_objects(self._stack, since=began), submissions)
            return rows.by_source == evidence.records_sent

        self._settle(complete)
        evidence.rows_read_back = {source: rows.by_source.get(source, 0) for source in SOURCES}
        evidence.rows_of_others = rows.others
        evidence.duplicates = rows.duplicates
        evidence.payloads_equal = rows.payloads == self._payloads
        return rows

    def _measure(self) -> None:
        consumer, value = self._series["consumer"], self._prometheus.value
        success = f'{{{consumer},bronze_outcome="success"}}'
        uploads = value(f"sum(bronze_uploads_total{success})")
        self.evidence.uploads_success = None if uploads is None else int(uploads)
        self.evidence.mean_upload_duration_s = value(
            f"sum(bronze_upload_duration_seconds_sum{success}) / sum(bronze_upload_duration_seconds_count{success})"
        )
        self.evidence.p95_delivery_s = value(
            f"histogram_quantile(0.95, sum by (le) (bronze_delivery_duration_seconds_bucket{{{consumer}}}))"
        )

    def _trace(self, receipts: Sequence[Receipt], rows: Rows, began: float) -> None:
        """Follows the trace of the slowest upload, or any trace of the sample if metrics cannot be read."""
        evidence, traces = self.evidence, self._traces
        if evidence.sees_metrics:
            evidence.exemplar_trace_id = self._slowest({receipt.trace_id for receipt in receipts}, began)
            trace_id = evidence.exemplar_trace_id
        else:
            trace_id = receipts[0].trace_id
        if trace_id is None:
            return
        keys = rows.keys_of_trace.get(trace_id, ())
        evidence.file_path = next(iter(keys), None)
        if traces:
            self._settle(lambda: traces.trace(trace_id).whole)
            trace = traces.trace(trace_id)
            evidence.trace_spans, evidence.trace_services = trace.spans, trace.services
            evidence.file_path_in_trace = trace.file_path
            evidence.url_trace = traces.url(trace_id)
            if trace.file_path in keys:
                evidence.file_path = trace.file_path
        self.slowest = rows.tables[evidence.file_path] if evidence.file_path else None

    def _verify(self, began: float) -> None:
        """Lets `bronze verify` check everything that was written since then."""
        report = self._stack.root / "verified.json"
        since = dt.datetime.fromtimestamp(began, dt.UTC).isoformat()
        command = [executable("bronze"), "verify", "--deep", "--since", since, "--json", str(report)]
        stack = self._stack
        own = {**stack.trace_store_env, **stack.account.env, **stack.queue_env("reader")}
        env = {**stack.publish_env, **own}
        try:
            finished = subprocess.run(command, env=env, timeout=VERIFY_S_MAX + self._more_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise LocalError(f"bronze verify did not end: {error}") from error
        if finished.returncode not in {0, 1}:  # 1: it found faults, which its output names
            raise LocalError(f"bronze verify ended with exit code {finished.returncode}")
        checks = json.loads(report.read_text())["checks"]
        self.evidence.verified = {check["check"]: check["checked"] for check in checks}
        self.evidence.verify_faults = {check["check"]: check["faulty"] for check in checks}

    def _slowest(self, sent: set[str], began: float) -> str | None:
        """The trace of the slowest upload among these, from its exemplar."""
        query = f'bronze_upload_duration_seconds_bucket{{{self._series["consumer"]},bronze_outcome="success"}}'

        def exemplars() -> list[str]:
            found = self._prometheus.exemplars(query, began - 1, time.time() + 1)
            return [trace_id for _, trace_id in found if trace_id in sent]

        self._settle(lambda: bool(exemplars()))
        return next(iter(exemplars()), None)


def read_objects(stack: Stack, *, since: float) -> Mapping[str, pa.Table]:
    """The rows of the objects that were written since then, by key."""
    account = stack.account
    client = boto3.client(
        "s3",
        endpoint_url=account.env["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=account.access_key,
        aws_secret_access_key=account.secret_key,
        region_name=account.env["AWS_DEFAULT_REGION"],
    )
    tables = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=account.bucket, Prefix="bronze/"):
        for listed in page.get("Contents", ()):
            if listed["LastModified"].timestamp() >= int(since):  # listed in whole seconds
                body = client.get_object(Bucket=account.bucket, Key=listed["Key"])["Body"].read()
                tables[listed["Key"]] = pq.read_table(BytesIO(body))
    client.close()
    return tables


# --- output


def _figure(counts: Any, source: str) -> str:
    return f"{counts[source]:,}" if source in counts else "-"


def _text(value: object) -> str:
    """A figure for people: lists as words, durations to the millisecond."""
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {count:,}" for name, count in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def show(console: Console, evidence: Evidence, slowest: pa.Table | None) -> bool:
    """Prints the evidence; returns whether every claim is true."""
    counts = Table(title="records", title_justify="left")
    counts.add_column("source")
    columns = ("records_sent", "records_accepted", "records_stored", "rows_read_back")
    for name in columns:
        counts.add_column(name.removeprefix("records_").replace("_", " "), justify="right")
    document = evidence.document()
    for source in (*SOURCES, "total"):
        counts.add_row(source, *(_figure(document[name], source) for name in columns))
    console.print(counts)
    for name, value in document.items():
        if name not in columns:
            console.print(f"  {name:<24}{_text(value)}", markup=False, soft_wrap=True)
    if slowest is not None:
        console.print(f"\nthe object of that trace has {slowest.num_rows:,} rows, the first of them:")
        for row in slowest.slice(0, 3).select(["classification_id", "_payload"]).to_pylist():
            console.print(f"  {row['classification_id']}  {row['_payload']}", markup=False, soft_wrap=True)
    console.print()
    for claim, holds in evidence.claims().items():
        match holds:
            case True:
                console.print(f"[green]✓[/] {claim}")
            case False:
                console.print(f"[bold red]✗ {claim}[/]")
            case reason:
                console.print(f"[dim]- {claim} ({reason})[/]", soft_wrap=True)
    return evidence.holds()
