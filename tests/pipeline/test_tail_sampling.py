"""Tail sampling by the real collector keeps errors, slow requests and traces with an upload, whole, and a share of the
others.
"""

import json
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from bronze.objectives import DURATION_S_MAX
from bronze.telemetry.signals import attribute, spans
from local.builds import Built
from local.exporters import Exporters
from local.otlp import Receiver, attributes
from local.programs import Process, http_get
from local.stack import Ports, Stack
from tests.pipeline.rig import Rig, complaints
from tests.pipeline.test_sampling import CHILDREN, exemplars, footer
from tests.system.blackbox import SOON, Metrics, System, until, vehicles

SOURCE = "vehicles"
NEVER_SHARED = {"BRONZE_FLUSH_AGE_S": "0", "COLLECTOR_TRACES_PERCENTAGE": "0"}
SHARE = 0.1
FAST_S = DURATION_S_MAX

KINDS = {"internal": 1, "server": 2, "client": 3, "producer": 4, "consumer": 5}

#: A span as JSON, without its trace.
Made = dict[str, Any]


def made(name: str, kind: str, duration_s: float = 0.01, *, failed: bool = False, refused: bool = False) -> Made:
    error = {"key": attribute.error_type, "value": {"stringValue": "invalid_record"}}
    return {
        "spanId": secrets.token_hex(8),
        "parentSpanId": "00000000000000aa",
        "name": name,
        "kind": KINDS[kind],
        "startTimeUnixNano": str(10**18),
        "endTimeUnixNano": str(10**18 + round(duration_s * 1e9)),
        "status": {"code": 2} if failed else {},
        "attributes": [error] if refused else [],
    }


def request(duration_s: float = FAST_S, *, refused: bool = False) -> Made:
    return made(spans.ingest.template, "server", duration_s, refused=refused)


def followed() -> Made:
    """A request of the feed, which waits for events."""
    route = {"key": "http.route", "value": {"stringValue": "/v1/feed"}}
    return made("GET /v1/feed", "server", 10 * DURATION_S_MAX) | {"attributes": [route]}


def process(*, failed: bool = False) -> Made:
    """It lasts until the submission is stored, so most are longer than any request should be."""
    return made(spans.process.name(SOURCE), "consumer", 10 * DURATION_S_MAX, failed=failed)


UPLOAD = [made(name, "internal") for name in (*sorted(CHILDREN), spans.upload.name(SOURCE))]
KEPT: Mapping[str, Sequence[Sequence[Made]]] = {
    "a refused request": [[request(refused=True)]],
    "an error after the request": [[request()], [process(failed=True)]],
    "a request over the objective": [[made("publish", "client")], [request(FAST_S + 0.001)], [process()]],
    "a publisher's request over it": [[request()], [made("publish", "client", FAST_S + 0.001)]],
    "an upload": [[request()], [process()], UPLOAD],
    "spans after the upload": [[request()], UPLOAD, [process()]],
    "an upload that did not end": [[request()], UPLOAD[:1]],
}
DROPPED: Mapping[str, Sequence[Sequence[Made]]] = {
    "a fast request": [[made("publish", "client"), request()], [process()]],
    "a request without more": [[request()]],
    "a request that waits for events": [[followed()]],
}


def send(collector: Process, trace: str, batch: Sequence[Made]) -> None:
    body = {"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": trace, **span} for span in batch]}]}]}
    port = collector.program.ports["otlp"]
    http_get(port, "/v1/traces", method="POST", body=json.dumps(body).encode(), Content_Type="application/json")


def received(receiver: Receiver) -> dict[str, Counter[str]]:
    """The names of the spans of each trace."""
    found = defaultdict[str, Counter[str]](Counter)
    for _, span in receiver.spans:
        found[span.trace_id.hex()][span.name] += 1
    return found


def names(batches: Sequence[Sequence[Made]]) -> Counter[str]:
    return Counter(span["name"] for batch in batches for span in batch)


def dropped(collector: Process) -> float:
    """The traces that the collector has decided to drop."""
    own = Metrics.parse(http_get(collector.program.ports["metrics"], "/metrics").decode())
    name = "otelcol_processor_tail_sampling_global_count_traces_sampled"
    return sum(own.all(name, sampled="false"))


@contextmanager
def sampling(rig: Rig, receiver: Receiver, **env: str) -> Iterator[Process]:
    layer = {"OTLP_TRACES_ENDPOINT": receiver.url}
    with rig.collector("traces/otlp-http", sampling="tail", env={**layer, **env}) as collector:
        yield collector


def test_errors_slow_requests_and_uploads_are_kept_whole(rig: Rig) -> None:
    """Whichever of its spans comes first. No other trace is kept, and an upload that comes after its trace was dropped
    is kept too.
    """
    traces = {case: secrets.token_hex(16) for case in (*KEPT, *DROPPED)}
    with Receiver() as receiver, sampling(rig, receiver, **NEVER_SHARED) as collector:
        for case, batches in {**KEPT, **DROPPED}.items():
            for batch in batches:
                send(collector, traces[case], batch)
        expected = {traces[case]: names(batches) for case, batches in KEPT.items()}
        until("every trace that is kept", lambda: received(receiver) == expected)
        until("the others are dropped", lambda: dropped(collector) == len(DROPPED))
        late = traces["a fast request"]
        send(collector, late, UPLOAD)
        expected[late] = names([UPLOAD])
        until("an upload that came late", lambda: received(receiver) == expected)
    assert complaints(rig.log) == []


def test_a_share_of_the_others_is_kept_whole(rig: Rig) -> None:
    """By the trace id, so spans that come later follow the same decision."""
    ids = [secrets.token_hex(16) for _ in range(1000)]
    fast = [[request()], [process()]]
    with Receiver() as receiver, sampling(rig, receiver, BRONZE_FLUSH_AGE_S="0") as collector:
        for batch in fast:
            for trace in ids:
                send(collector, trace, batch)
        until("the others are dropped", lambda: dropped(collector) >= len(ids) * (1 - 2 * SHARE))
    found = received(receiver)  # the collector has ended, and has sent all that it kept
    assert set(found) <= set(ids)
    assert [counted for counted in found.values() if counted != names(fast)] == []
    assert abs(len(found) - SHARE * len(ids)) <= 5 * (SHARE * (1 - SHARE) * len(ids)) ** 0.5


# --- the system

RATE = 50
SUBMISSIONS = 400
REFUSED = 10


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def backends(built: Built, tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[System]:
    exporters = Exporters(traces=("otlp-http",), logs=("none",), sampling="tail")
    stack = Stack.create(tmp_path_factory.mktemp("tail"), Ports.free(), built, exporters)
    own = {"OTLP_TRACES_ENDPOINT": receiver.url, "COLLECTOR_TRACES_RATIO": "0"}
    collector = replace(stack.collector, env={**stack.collector.env, **own})
    system = System(stack, SOON | {"BRONZE_FLUSH_AGE_S": "1", "OTEL_LOGS_EXPORTER": "none"})
    servers = (program for program in stack.servers if program.name in {"seaweedfs", "prometheus"})
    with system.running(*servers, collector):
        yield system


def submit(system: System) -> list[int]:
    """Sends submissions of one record at a fixed rate, and some that are refused. Returns their statuses."""
    bodies = [*vehicles("load", SUBMISSIONS), *[b'{"seats": "many"}'] * REFUSED]
    began = time.monotonic()

    def one(number: int) -> int:
        time.sleep(max(0, began + number / RATE - time.monotonic()))  # the rate of the load
        return system.post(SOURCE, bodies[number]).status_code

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, range(len(bodies))))


def accepted_spans(system: System) -> int:
    """The spans that the collector has received."""
    own = Metrics.parse(http_get(system.stack.collector.ports["metrics"], "/metrics").decode())
    return int(sum(own.all("otelcol_receiver_accepted_spans")))


@pytest.mark.parametrize("ratio", [1, 0.1, 0.01], ids=lambda ratio: f"{ratio:.0%}")
def test_each_upload_is_kept_whole_and_its_exemplars_resolve(
    ratio: float, backends: System, receiver: Receiver, tmp_path: Path
) -> None:
    """At any ratio of head sampling. What was refused is kept whole too."""
    sampler = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": str(ratio)}
    system = backends.branch(tmp_path / "branch")
    before, accepted_before = len(receiver.spans), accepted_spans(backends)
    with system.queue(), system.running(*(system.role(role, **sampler) for role in ("api", "consumer"))):
        statuses = Counter(submit(system))
        system.fence()
    # the roles have ended and exported everything
    assert statuses == {202: SUBMISSIONS, 422: REFUSED}

    writes = [tuple(footer(body)["traceparent"].split("-")[1:3]) for body in map(system.body, system.keys())]
    found = until("the exemplars", lambda: exemplars(system))

    def stored() -> dict[tuple[str, str], Span] | None:
        """The spans, if every upload and, at 100 %, every refused request is there, and no trace lacks a span. The
        collector decides about each trace at another time.
        """
        by_id = {(span.trace_id.hex(), span.span_id.hex()): span for _, span in receiver.spans[before:]}
        parents = {(s.trace_id.hex(), s.parent_span_id.hex()) for s in by_id.values() if s.parent_span_id}
        refused = [
            s for s in by_id.values() if s.kind == s.SPAN_KIND_SERVER and "error.type" in attributes(s.attributes)
        ]
        is_whole = by_id.keys() >= {*writes, *parents} and (ratio < 1 or len(refused) == REFUSED)
        return by_id if is_whole else None

    by_id = until("every upload with its whole trace, and what was refused", stored)
    for trace_id, upload_id in writes:
        assert {s.name for s in by_id.values() if s.parent_span_id.hex() == upload_id} >= CHILDREN
        assert by_id[trace_id, upload_id].name == spans.upload.name(SOURCE)

    resolved, all_of = Counter[str](), Counter[str]()
    for series, exemplar in found:
        metric = series["__name__"].removesuffix("_bucket")
        if metric == "bronze_stage_duration_seconds":
            metric += f" of {series['bronze_stage']}"
        all_of[metric] += 1
        resolved[metric] += (exemplar["labels"]["trace_id"], exemplar["labels"]["span_id"]) in by_id
    of_uploads = [
        metric
        for metric in all_of
        if metric.startswith(("bronze_upload_", "bronze_stage_")) and not metric.endswith("of accept")
    ]
    assert len(of_uploads) >= 3
    assert [metric for metric in of_uploads if resolved[metric] < all_of[metric]] == []

    figures = {
        "sent": accepted_spans(backends) - accepted_before,
        "stored": len(by_id),
        "Bronze writes": len(writes),
        "exemplars that resolve": {metric: f"{resolved[metric]} of {all_of[metric]}" for metric in sorted(all_of)},
    }
    print(f"{ratio:.0%} of {sum(statuses.values())} submissions: {figures}")  # noqa: T201
