"""The API in process, on a real queue and a real bucket: its answers, and the data that is kept."""

import asyncio
import gzip
import json
import re
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from opentelemetry.trace import SpanKind

from bronze.api.cluster_report import ClusterReport
from bronze.api.problems import PROBLEM
from bronze.api.readiness import Readiness
from bronze.errors import Gone, Halted
from bronze.objects.encoder import encode_object
from bronze.objects.footer import CONTENT_TYPE, user_metadata
from bronze.protocol.chain import Position, reconcile
from bronze.protocol.keys import object_key
from bronze.protocol.lane import Lane
from bronze.protocol.message import HEADER_BYTES_MAX, MESSAGE_BYTES_MAX, Part
from bronze.records.media import JSON, MEDIA_TYPES, NDJSON, ColumnarType
from bronze.servers.catalog import NatsCatalog
from bronze.servers.jetstream import JetStream
from bronze.servers.key_value import KeyValueStore
from bronze.servers.queue import NatsQueue
from bronze.servers.queue_cluster import NatsCluster
from bronze.servers.s3 import S3Bucket
from bronze.settings import Settings
from bronze.telemetry.signals import Role
from local.programs import Process
from tests.contract.making import SOURCES, Heard, app_on, until, vehicle, wide

INGEST = "/v1/ingest/vehicles"
A = vehicle("a")
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"body_bytes_max": 3 * 2**20, "json_body_bytes_max": 2**16, "deadline_s": 2})


@pytest.fixture
def heard() -> Iterator[Heard]:
    heard = Heard(Role.API)
    yield heard
    heard.telemetry.shutdown()


@dataclass
class Served:
    """The API, a client, and its queue and telemetry."""

    client: httpx.AsyncClient
    app: FastAPI
    queue: NatsQueue
    lane: Lane
    heard: Heard
    fatal: list[Halted] = field(default_factory=list)

    async def post(self, body: Any, path: str = INGEST, **headers: str) -> httpx.Response:
        sent = {"Content-Type": NDJSON} | {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(path, content=body, headers=sent)

    async def queued(self) -> int:
        return (await self.queue.state(self.lane)).messages

    def count(self, outcome: str, **attributes: str) -> float:
        return self.heard.count("bronze.records", bronze_outcome=outcome, **attributes)


@pytest_asyncio.fixture
async def api(
    settings: Settings, queue: NatsQueue, bucket: S3Bucket, catalog: NatsCatalog, heard: Heard
) -> AsyncIterator[Served]:
    lanes = await queue.open(SOURCES)
    fatal: list[Halted] = []
    app = app_on(settings, lanes, queue, bucket, catalog, heard.telemetry, fatal.append)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
        yield Served(client, app, queue, lanes[0], heard, fatal)


# --- accepted


async def test_a_submission_is_accepted_when_it_is_durable(api: Served) -> None:
    """The 202 has everything that a client needs to follow the submission, in the trace that the client began."""
    answer = await api.post(A + b"\n" + A, traceparent=f"00-{TRACE_ID}-00f067aa0ba902b7-01", Bronze_File_Name="a%20b")
    body = answer.json()
    assert answer.status_code == 202
    assert body == {
        "submission_id": body["submission_id"],
        "classification_id": body["classification_id"],
        "classification_count": 1,
        "source": "vehicles",
        "records": 2,
        "rejected": 0,
        "trace_id": TRACE_ID,
        "status_url": f"/v1/submissions/{body['submission_id']}",
    }
    assert answer.headers["location"] == body["status_url"]
    assert re.fullmatch(f"00-{TRACE_ID}-[0-9a-f]{{16}}-01", answer.headers["traceresponse"])
    (message,) = await api.queue.read(api.lane, None)
    assert message.payload == A + b"\n" + A
    part = Part.parse(message.headers)
    assert (part.accepted.submission_id, part.accepted.origin) == (body["submission_id"], "a b")
    assert api.count("accepted") == 2


async def test_the_canary_has_a_route_of_its_own(api: Served) -> None:
    """The server's metrics have no source, so the route tells it from data. The lists of sources leave it out."""
    body = b'{"run_id":"r","number":1,"sent_at":"2026-11-24T12:34:56Z"}'
    answer = await api.post(body, "/v1/ingest/canary")
    assert (answer.status_code, answer.json()["source"]) == (202, "canary")
    await api.post(A)
    requests = api.heard.points("http.server.request.duration")
    assert sorted(point.attributes["http.route"] for point in requests) == ["/v1/ingest/canary", "/v1/ingest/{source}"]
    assert api.count("accepted", bronze_source="canary") == 1
    listed = (await api.client.get("/v1/sources")).json()["sources"]
    unknown = (await api.post(A, "/v1/ingest/nothing")).json()
    document = (await api.client.get("/openapi.json")).json()
    assert [source["name"] for source in listed] == unknown["sources"] == ["vehicles", "status", "results", "failures"]
    assert "/v1/ingest/canary" not in document["paths"]
    assert (await api.client.get("/v1/sources/canary/schema")).status_code == 200


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (A, {"Content_Type": JSON}),
        (b"[" + A + b"]", {"Content_Type": "application/json; charset=utf-8"}),
        (gzip.compress(A), {"Content_Encoding": "gzip"}),
        (gzip.compress(A), {"Content_Encoding": "x-gzip"}),
        (gzip.compress(b"[" + A + b"]"), {"Content_Type": JSON, "Content_Encoding": "GZIP"}),
        (A + b"\r\n\r\n", {}),
    ],
    ids=["object", "array", "gzip", "x-gzip", "gzipped array", "NDJSON"],
)
async def test_each_format_of_a_body_gives_the_same_message(api: Served, body: bytes, headers: dict[str, str]) -> None:
    answer = await api.post(body, **headers)
    assert (answer.status_code, answer.json()["records"]) == (202, 1)
    (message,) = await api.queue.read(api.lane, None)
    assert message.payload == A


async def test_a_streamed_body_of_several_messages_is_one_submission(api: Served) -> None:
    body = b"\n".join(wide("a", 3))

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 50_000):
            yield body[start : start + 50_000]

    answer = await api.post(pieces())
    assert (answer.status_code, answer.json()["records"]) == (202, 3)
    assert await api.queued() == 3


@pytest.mark.parametrize(
    ("records", "query", "header", "expected", "count"),
    [
        ([None], "?classification_id=q", None, "q", 1),
        ([None], "?classification_id=q", "h%C3%A9", "hé", 1),
        (["r"], "", "h", "r", 1),
        (["r", None], "", "h", None, 2),
        (["r", "s", "r"], "", None, None, 2),
        (["h", None], "", "h", "h", 1),
    ],
)
async def test_the_classification_id_comes_from_record_then_header_then_query(
    api: Served, records: list[str | None], query: str, header: str | None, expected: str | None, count: int
) -> None:
    lines = [{"vehicle_id": "v"} | ({"classification_id": name} if name else {}) for name in records]
    headers = {"Bronze_Classification_Id": header} if header else {}
    answer = await api.post("\n".join(map(json.dumps, lines)), INGEST + query, **headers)
    assert (answer.json()["classification_id"], answer.json()["classification_count"]) == (expected, count)


async def test_a_classification_id_is_assigned_if_there_is_none(api: Served) -> None:
    assigned = [(await api.post(A)).json()["classification_id"] for _ in range(2)]
    assert assigned[0] != assigned[1]


# --- refused

BOMB = gzip.compress(b"\n" * 2**25)


@pytest.mark.parametrize(
    ("body", "headers", "status", "kind", "members", "advice"),
    [
        pytest.param(A + b"\n{", {}, 400, "malformed-json", {"record": 1}, "one line", id="broken JSON"),
        pytest.param(
            b"\n".join([A, A, A, b'{"vehicle_id":"a","seats":"many"}', A]),
            {},
            422,
            "schema-violation",
            {"record": 3, "field": "seats"},
            "Expected `int | null`, got `str`",
            id="wrong type in record 3",
        ),
        pytest.param(
            A,
            {"Bronze_Classification_Id": "run-%E9"},
            400,
            "invalid-header",
            {"header": "Bronze-Classification-Id"},
            "percent-encoded UTF-8",
            id="id that is not UTF-8",
        ),
        pytest.param(
            gzip.compress(A),
            {"Content_Encoding": "gzip, gzip"},
            415,
            "unsupported-encoding",
            {"accepted": ["identity", "gzip", "zstd"]},
            "zstd",
            id="gzip twice",
        ),
        pytest.param(b'{"vehicle_id":"\xff"}', {}, 400, "invalid-utf8", {"record": 0}, "UTF-8", id="not UTF-8"),
        pytest.param(b"", {}, 400, "empty-body", {}, "Send one JSON object per line", id="empty"),
        pytest.param(
            A,
            {"Content_Type": "text/csv"},
            415,
            "unsupported-media-type",
            {"accepted": [*MEDIA_TYPES]},
            NDJSON,
            id="media",
        ),
        pytest.param(
            A,
            {"Content_Encoding": "br"},
            415,
            "unsupported-encoding",
            {"accepted": ["identity", "gzip", "zstd"]},
            "zstd",
            id="br",
        ),
        pytest.param(
            gzip.compress(A)[:-5],
            {"Content_Encoding": "gzip"},
            400,
            "corrupt-encoding",
            {},
            "ends before",
            id="cut gzip",
        ),
        pytest.param(
            BOMB, {"Content_Encoding": "gzip"}, 413, "body-too-costly", {"limit": 10_000}, "BLANK_LINES_MAX", id="bomb"
        ),
        pytest.param(
            (A + b"\n") * (2**22 // len(A)),
            {},
            413,
            "body-too-large",
            {"limit": 3 * 2**20},
            "several",
            id="body too large",
        ),
        pytest.param(
            b"[" + vehicle("a", 2**16) + b"]",
            {"Content_Type": JSON},
            413,
            "body-too-large",
            {"limit": 2**16},
            "Send NDJSON",
            id="document too large",
        ),
        pytest.param(
            A + b"\n" + vehicle("a", MESSAGE_BYTES_MAX - HEADER_BYTES_MAX),
            {},
            413,
            "record-too-large",
            {"record": 1},
            "Split it",
            id="record too large",
        ),
        pytest.param(
            A,
            {"Idempotency_Key": "k" * 256},
            400,
            "invalid-header",
            {"header": "Idempotency-Key"},
            "255",
            id="long key",
        ),
        pytest.param(
            A,
            {"Bronze_Classification_Id": "r" * 257},
            400,
            "invalid-header",
            {"header": "Bronze-Classification-Id"},
            "256",
            id="long run",
        ),
    ],
)
async def test_a_refusal_says_what_to_correct_and_keeps_nothing(
    api: Served,
    body: bytes,
    headers: dict[str, str],
    status: int,
    kind: str,
    members: Mapping[str, object],
    advice: str,
) -> None:
    """A problem document (RFC 9457) with its trace, counted by its kind; and the next submission is accepted."""
    answer = await api.post(body, **headers)
    problem = answer.json()
    assert answer.headers["content-type"] == PROBLEM
    assert (answer.status_code, problem["status"], problem["type"]) == (status, status, f"/problems/{kind}")
    assert problem["title"]
    assert advice in problem["detail"]
    assert members.items() <= problem.items()
    assert problem["trace_id"] == answer.headers["traceresponse"].split("-")[1]
    assert await api.queued() == 0
    assert api.count("rejected", error_type=kind, bronze_source="vehicles") >= 1
    assert api.count("accepted") == 0
    assert (await api.post(A)).status_code == 202


@pytest.mark.parametrize(
    "query", ["classification_id=run-%E9", "file_name=caf%E9", "classification_id=a&classification_id=b"]
)
async def test_a_query_is_not_decoded_with_replacement(api: Served, query: str) -> None:
    answer = await api.post(A, f"{INGEST}?{query}")
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/invalid-header")
    decoded = await api.post(A, f"{INGEST}?classification_id=caf%C3%A9+1&x=%E9&on_invalid=quarantine")
    assert decoded.json()["classification_id"] == "caf\N{LATIN SMALL LETTER E WITH ACUTE} 1"


@pytest.mark.parametrize("name", ["Idempotency-Key", "Bronze-Classification-Id", "Bronze-File-Name"])
async def test_a_header_with_two_values_is_refused(api: Served, name: str) -> None:
    """A proxy that adds its own key would make the data of others the same. The same value twice is one value."""
    for second, status in (("b", 400), ("a", 202)):
        headers = [("Content-Type", NDJSON), (name, "a"), (name, second)]
        answer = await api.client.post(INGEST, content=A, headers=headers)
        assert answer.status_code == status
        assert status == 202 or answer.json()["header"] == name


async def test_a_header_of_raw_bytes_is_refused(api: Served) -> None:
    """As text of another encoding, it would be other characters."""
    headers = [(b"Content-Type", NDJSON.encode()), (b"Bronze-File-Name", b"caf\xc3\xa9.csv")]
    answer = await api.client.post(INGEST, content=A, headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/invalid-header")


async def test_an_id_may_have_capital_letters(api: Served) -> None:
    accepted = (await api.post(A)).json()
    assert (await api.client.get(f"/v1/submissions/{accepted['submission_id'].upper()}")).status_code == 200


async def test_the_refusal_of_an_unknown_source_lists_the_known_sources(api: Served) -> None:
    """It is counted as `_OTHER`: text of a client never becomes a metric label."""
    answer = await api.post(A, "/v1/ingest/vehicle")
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/unknown-source")
    assert answer.json()["sources"] == [name for name in SOURCES if name != "canary"]
    assert "vehicles" in answer.json()["detail"]
    assert api.count("rejected", error_type="unknown-source", bronze_source="_OTHER") == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", INGEST, 405),
        ("GET", "/v1/submissions/not-a-uuid", 404),
        ("GET", "/v1/submissions/01939f4e-6b7c-7cc3-a4f5-0242ac120002", 404),
        ("GET", "/v1/objects/nothing.parquet", 404),
        ("GET", "/v1/objects/bronze/../../etc/passwd", 404),
    ],
)
async def test_a_missing_resource_is_a_problem_document(api: Served, method: str, path: str, status: int) -> None:
    answer = await api.client.request(method, path)
    assert (answer.status_code, answer.headers["content-type"], answer.json()["status"]) == (status, PROBLEM, status)


async def test_nothing_is_kept_of_a_body_whose_client_disconnects(api: Served) -> None:
    """Although the complete records so far would be a valid submission."""
    events: Iterator[dict[str, object]] = iter(
        [{"type": "http.request", "body": A + b"\n", "more_body": True}, {"type": "http.disconnect"}]
    )
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, object]:
        return next(events)

    async def send(event: Any) -> None:
        sent.append(event)

    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": INGEST,
        "raw_path": INGEST.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", NDJSON.encode()), (b"host", b"api")],
        "server": ("api", 80),
        "client": ("client", 1),
    }
    await api.app(scope, receive, send)
    assert [event.get("status") for event in sent if event["type"] == "http.response.start"] in ([400], [])
    assert await api.queued() == 0
    assert api.count("rejected", error_type="client-gone") == 1


# --- retries


async def test_a_retry_gets_the_same_202_and_another_body_409(api: Served) -> None:
    """Nothing is stored twice, and the retry is not counted as accepted."""
    first = await api.post(A, Idempotency_Key="k")
    retry = await api.post(A, Idempotency_Key="k", Bronze_Classification_Id="other")
    assert (retry.status_code, retry.json()) == (202, first.json())
    other = await api.post(vehicle("b"), Idempotency_Key="k")
    assert (other.status_code, other.json()["type"]) == (409, "/problems/idempotency-key-reused")
    assert other.json()["submission_id"] == first.json()["submission_id"]
    assert await api.queued() == 1
    assert (api.count("accepted"), api.count("replayed"), api.count("rejected")) == (1, 1, 1)
    other_source = await api.post(
        b'{"reason":"r","failed_on":"2013-01-01"}', "/v1/ingest/failures", Idempotency_Key="k"
    )
    assert other_source.status_code == 202


async def test_concurrent_retries_get_the_same_202(api: Served) -> None:
    answers = await asyncio.gather(*(api.post(A, Idempotency_Key="k") for _ in range(6)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.text for answer in answers}) == 1
    assert await api.queued() == 1
    assert (api.count("accepted"), api.count("replayed")) == (1, 5)


async def test_a_submission_is_followed_from_accepted_to_stored_and_purged(
    api: Served, bucket: S3Bucket, catalog: NatsCatalog, prefix: str
) -> None:
    """By status, object and retry. A retry gets the same 202, and another body a 409, also after the purge."""
    first = (await api.post(A, Idempotency_Key="k", Bronze_Classification_Id="run")).json()
    status = (await api.client.get(first["status_url"])).json()
    assert status.items() >= {"status": "accepted", "objects": [], "records": 1, "classification_id": "run"}.items()

    messages = await api.queue.read(api.lane, None)
    key = object_key(prefix, api.lane, messages[0])
    cut = reconcile(api.lane, messages, {})
    wrote = encode_object(SOURCES["vehicles"], api.lane, key, cut, f"00-{TRACE_ID}-{'1' * 16}-01")
    await bucket.create(key, wrote.body, user_metadata(wrote.contents), CONTENT_TYPE)
    await catalog.append(api.lane, Position(None, 0), wrote.stored)

    status = (await api.client.get(first["status_url"])).json()
    assert status["status"] == "stored"
    (link,) = status["objects"]
    assert link["file_path"] == key
    contents = (await api.client.get(link["url"])).json()
    assert contents.items() >= {"file_path": key, "records": 1, "first": 1, "last": 1, "trace_id": TRACE_ID}.items()
    assert contents["bytes"] == len(wrote.body)
    assert [part["submission_id"] for part in contents["submissions"]] == [first["submission_id"]]

    assert (await api.post(vehicle("b"))).status_code == 202  # the next submission, since the anchor is never purged
    await api.queue.purge_below(api.lane, 2)
    retry = await api.post(A, Idempotency_Key="k")
    assert (retry.status_code, retry.json()) == (202, first)
    assert (await api.post(vehicle("c"), Idempotency_Key="k")).status_code == 409
    assert await api.queued() == 1


# --- unavailable


async def test_without_the_queue_the_answer_is_503_with_retry_after_and_nothing_is_kept(
    api: Served, nats: Process, jetstream: JetStream
) -> None:
    """Readiness names the server that does not answer. Afterwards the same submission is accepted, once."""
    assert (await api.client.get("/readyz")).status_code == 200
    nats.signal(signal.SIGKILL)
    await until(lambda: not jetstream.connected)
    for headers in ({}, {"Idempotency_Key": "k"}):
        answer = await api.post(A, **headers)
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/queue-away")
        assert int(answer.headers["retry-after"]) > 0
    ready = await api.client.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["queue"].startswith("unavailable")
    assert ready.json()["bucket"] == "ok"
    await asyncio.to_thread(nats.restart)
    await until(lambda: jetstream.connected)
    assert (await api.post(A, Idempotency_Key="k")).status_code == 202
    assert await api.queued() == 1


async def test_a_deleted_lane_makes_the_api_not_ready(
    settings: Settings, jetstream: JetStream, bucket: S3Bucket, catalog: NatsCatalog, heard: Heard
) -> None:
    """Any one of them, by name; and with as few requests for many lanes as for one."""
    queue = NatsQueue(jetstream, KeyValueStore(jetstream, 1), settings)
    lanes = await queue.open(SOURCES)
    cluster = ClusterReport(NatsCluster(jetstream, [lanes[0].stream]), heard.telemetry.instruments)
    await cluster.report()
    readiness = Readiness(lanes, queue, catalog, bucket, cluster, "test")
    assert await readiness.check() == (
        True,
        {
            "status": "ready",
            "service_instance_id": "test",
            "queue": "ok",
            "queue_servers": f"{jetstream.server_name} leads 1 stream",
            "bucket": "ok",
        },
    )
    sent = jetstream._client.stats["out_msgs"]
    await readiness.check()
    assert jetstream._client.stats["out_msgs"] - sent == 3
    await queue.remove(lanes[-1])
    ready, body = await readiness.check()
    assert not ready
    assert body["status"] == "not ready: the queue lacks streams of lanes"
    assert body["queue"].endswith(lanes[-1].stream)
    await queue.create_lane(lanes[-1].source, 0)
    with pytest.raises(Gone):
        await readiness.check()


async def test_an_unknown_outcome_is_503_and_counted_as_neither_accepted_nor_rejected(
    api: Served, nats: Process
) -> None:
    """The server is paused and may still apply the request: the document names the submission to look up."""
    nats.signal(signal.SIGSTOP)
    try:
        answer = await api.post(A)
    finally:
        nats.signal(signal.SIGCONT)
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (503, "/problems/outcome-unknown")
    assert int(answer.headers["retry-after"]) > 0
    assert (api.count("unknown"), api.count("rejected"), api.count("accepted")) == (1, 0, 0)

    async def known() -> bool:
        return (await api.client.get(f"/v1/submissions/{problem['submission_id']}")).status_code == 200

    await until(known)


async def test_a_full_queue_is_503_with_retry_after(api: Served, jetstream: JetStream) -> None:
    info = await jetstream.api(f"STREAM.INFO.{api.lane.stream}")
    await jetstream.api(f"STREAM.UPDATE.{api.lane.stream}", info["config"] | {"max_bytes": 3_000})
    answer = await api.post(vehicle("a", 3_500))
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/queue-full")
    assert answer.headers["retry-after"] == "10"
    assert await api.queued() == 0
    assert (await api.post(A)).status_code == 202


async def test_a_lane_that_was_created_again_ends_the_process(api: Served, jetstream: JetStream) -> None:
    """The API has to restart with the new lane; until then nothing is accepted."""
    await jetstream.api(f"STREAM.DELETE.{api.lane.stream}")
    await api.queue.open(["vehicles"])
    answer = await api.post(A)
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/queue-away")
    assert len(api.fatal) == 1


async def test_an_unexpected_error_is_500_and_counted(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(api.queue, "submit", broken)
    answer = await api.post(A)
    assert (answer.status_code, answer.headers["content-type"]) == (500, PROBLEM)
    assert api.count("rejected", error_type="internal") == 1


# --- telemetry and documents


async def test_a_request_is_one_server_span_and_one_duration(api: Served) -> None:
    """However many pieces its body has. The send span is its child; probes and scrapes have no spans."""
    answer = await api.post(b"\n".join(wide("a", 3)))
    for path in ("/livez", "/readyz", "/metrics"):
        assert (await api.client.get(path)).status_code == 200
    (server,) = [span for span in api.heard.spans() if span.kind is SpanKind.SERVER]
    (send,) = [span for span in api.heard.spans() if span.kind is SpanKind.PRODUCER]
    assert api.heard.count("http.server.request.duration") == 1
    assert server.name == "POST /v1/ingest/{source}"
    assert send.name == "send bronze.vehicles"
    assert server.context is not None
    assert send.parent is not None
    assert send.parent.span_id == server.context.span_id
    assert server.attributes is not None
    assert server.attributes["bronze.submission_id"] == answer.json()["submission_id"]
    assert server.attributes["bronze.classification_id"] == (answer.json()["classification_id"],)
    assert server.attributes["bronze.outcome"] == "accepted"
    assert len(api.heard.spans()) == 2
    part = Part.parse((await api.queue.read(api.lane, None))[0].headers)
    assert send.context is not None
    assert part.accepted.traceparent.split("-")[2] == f"{send.context.span_id:016x}"


async def test_the_span_of_a_refusal_has_the_reason(api: Served) -> None:
    await api.post(b"{")
    (server,) = api.heard.spans()
    assert server.attributes is not None
    assert (server.attributes["error.type"], server.attributes["bronze.outcome"]) == ("malformed-json", "rejected")


async def test_the_examples_of_the_openapi_document_are_accepted(api: Served) -> None:
    """Each example body of the OpenAPI document gets a 202, and the answers have examples. Binary bodies have none,
    since the document is text.
    """
    document = (await api.client.get("/openapi.json")).json()
    operation = document["paths"]["/v1/ingest/{source}"]["post"]
    contents = operation["requestBody"]["content"]
    assert list(contents) == [*MEDIA_TYPES]
    binary = {media for media, content in contents.items() if "contentMediaType" in content["schema"]}
    assert binary == {*ColumnarType}
    for media in contents.keys() - binary:
        example = contents[media]["example"]
        body = example if isinstance(example, str) else json.dumps(example)
        assert (await api.post(body, Content_Type=media)).status_code == 202
    assert {"202", "400", "404", "409", "413", "415", "422", "503"} <= operation["responses"].keys()
    assert PROBLEM in operation["responses"]["422"]["content"]
    for schema in ("SubmissionAccepted", "Problem"):
        properties = document["components"]["schemas"][schema]["properties"]
        assert sum("examples" in member for member in properties.values()) >= 5
    headers = {parameter["name"].lower() for parameter in operation["parameters"] if parameter["in"] == "header"}
    assert headers >= {"idempotency-key", "bronze-classification-id", "bronze-file-name"}
