"""The Python client: what it sends, when it tries again, and where a follower continues."""

import asyncio
import datetime as dt
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pyarrow as pa
import pytest

from bronze.api.source_schema import described
from bronze.client import AsyncClient, Client, FileCheckpoint, Misconfigured, Refused, Unavailable
from bronze.client import calls as client_calls
from bronze.client.calls import Policy
from bronze.errors import Refusal
from bronze.records import sources
from bronze.records.columns import object_schema
from bronze.records.media import NDJSON, ColumnarType
from bronze.records.sources import Source

URL = "http://api.example"
Answer = httpx.Response | httpx.RequestError


def accepted() -> httpx.Response:
    body = {"submission_id": "1", "source": "vehicles", "records": 1, "trace_id": "0" * 32, "new member": 1}
    return httpx.Response(202, json=body)


class Api:
    """Answers requests in turn, and keeps them."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, httpx.RequestError):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits of the clients, which take no time."""
    waits: list[float] = []

    async def wait(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("bronze.client.clients.time.sleep", waits.append)
    monkeypatch.setattr("bronze.client.clients.asyncio.sleep", wait)
    return waits


def client(*answers: Answer, **options: Any) -> tuple[Client, Api]:
    api, made = Api(*answers), Client(URL, **options)
    made._http = httpx.Client(base_url=URL, transport=httpx.MockTransport(api), headers=made._http.headers)
    return made, api


def problem(status: int, code: str, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, json={"type": f"/problems/{code}", "detail": "why", "record": 3}, headers=named)


def page(*paths: str, cursor: str = "c", more: bool = False) -> httpx.Response:
    facts = {
        "source": "vehicles", "lane": 0, "epoch": "e", "first": 1, "last": 1, "records": 1, "bytes": None,
        "schema_versions": None, "classification_count": None, "classification_least": None,
        "classification_greatest": None, "principals": [], "principal_count": 0, "written_at": None,
        "first_received_at": None, "last_received_at": None, "trace_id": "", "new member": 1,
    }  # fmt: skip
    events: list[dict[str, Any]] = [{"kind": "object", "file_path": path, **facts} for path in paths]
    return httpx.Response(200, json={"events": [*events, {"kind": "new kind"}], "cursor": cursor, "more": more})


def test_a_submission_is_sent_again_under_the_same_key(waits: list[float]) -> None:
    """Whatever failed. The caller's key, else one of the call's own; each call has another."""
    lost = httpx.ReadTimeout("lost")
    bronze, api = client(lost, problem(503, "queue-away", Retry_After="7"), httpx.Response(502), accepted(), accepted())
    answer = bronze.submit("vehicles", [{"vehicle_id": "a"}])
    assert (answer.submission_id, answer.records, answer.rejected) == ("1", 1, 0)
    keys = {request.headers["idempotency-key"] for request in api.requests}
    assert (len(api.requests), len(keys)) == (4, 1)
    assert waits[1] >= 7
    bronze.submit("vehicles", [{"vehicle_id": "a"}], key="mine")
    assert api.requests[-1].headers["idempotency-key"] == "mine"
    assert {request.content for request in api.requests} == {b'{"vehicle_id":"a"}\n'}


def test_retries_end(waits: list[float]) -> None:
    bronze, api = client(*[httpx.Response(503)] * 99, retry_for_s=0)
    with pytest.raises(Unavailable, match="gave up after 1 attempts"):
        bronze.submit("vehicles", [{}])
    assert (len(api.requests), waits) == (1, [])


def test_a_refusal_is_raised_at_once() -> None:
    """With its code and the record."""
    bronze, api = client(problem(422, "schema-violation"))
    with pytest.raises(Refused) as caught:
        bronze.submit("vehicles", [{}])
    assert (caught.value.code, caught.value.members["record"]) == (Refusal.SCHEMA_VIOLATION, 3)
    assert len(api.requests) == 1


@pytest.mark.parametrize("answer", [httpx.Response(200, json=[]), httpx.Response(301), httpx.Response(202, text="<")])
def test_another_server_is_named(answer: httpx.Response) -> None:
    bronze, _ = client(answer)
    with pytest.raises(Misconfigured, match="BRONZE_API_URL"):
        bronze.submit("vehicles", [{}])


@pytest.mark.parametrize(
    ("records", "media_type", "body"),
    [
        ([{"a": 1}, {"a": 2}], NDJSON, b'{"a":1}\n{"a":2}\n'),
        (iter([{"a": 1}]), NDJSON, b'{"a":1}\n'),
        (b"x", NDJSON, b"x"),
        (bytearray(b"x"), NDJSON, b"x"),
    ],
)
def test_records_become_bodies(records: Any, media_type: str, body: bytes) -> None:
    assert client_calls.encode(records) == (body, media_type)


@pytest.mark.parametrize("value", [float("nan"), [1.0, float("inf")], {"deep": -float("inf")}])
def test_numbers_that_json_does_not_have_are_refused(value: object) -> None:
    """The encoder would make nulls of them."""
    with pytest.raises(Refused, match="Record 1, field value") as refused:
        client_calls.encode([{"value": None}, {"value": value}])
    assert refused.value.members == {"record": 1, "field": "value"}


class Frame:
    """A frame of a library that speaks Arrow's interface, and has other attributes of the same names."""

    schema = ("a",)
    columns = ("a",)

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)


def test_arrow_becomes_a_stream() -> None:
    """Of any library."""
    table = pa.table({"a": [1, 2]})
    for records in (table, table.to_batches()[0], table.to_reader(), Frame(table), pl.DataFrame({"a": [1, 2]})):
        body, media_type = client_calls.encode(records)
        assert media_type == ColumnarType.ARROW_STREAM
        assert pa.ipc.open_stream(body).read_all() == table


class OldFrame(list[str]):
    """A frame without that interface: its items are the names of its columns."""

    columns = ("a",)


@pytest.mark.parametrize("records", ["{}", {"a": 1}, OldFrame(["a"]), 5, None, pl.Series([1])], ids=repr)
def test_what_cannot_be_sent_is_an_error_that_says_what_can(records: Any) -> None:
    with pytest.raises(TypeError, match=r"^\w+ is not what can be sent: give a list of dicts, .* PyCapsule interface"):
        client_calls.encode(records)


def test_retries_of_more_than_a_second_are_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits for a minute without a word; a short one is not worth any."""
    bronze, _ = client(httpx.Response(503), accepted())
    bronze._policy = Policy(60, clock=lambda: 0)
    bronze.submit("vehicles", [{}])
    assert caplog.messages == []
    bronze, _ = client(httpx.ConnectError("refused"), problem(503, "queue-away", Retry_After="7"), accepted())
    times = iter(range(0, 100, 10))
    bronze._policy = Policy(60, clock=lambda: next(times))
    bronze.submit("vehicles", [{}])
    first, second = caplog.messages
    assert first.startswith("cannot reach the API at http://api.example (set BRONZE_API_URL to its address): refused; ")
    assert second.endswith("answers 503 why; trying again in 7.0 s, for 60 s in all")


def test_what_a_submission_says_is_in_its_headers() -> None:
    bronze, api = client(accepted(), api_key="bronze_key")
    bronze.submit(
        "vehicles", b"<", media_type="text/x", classification_id="ä", file_name="ö.csv", on_invalid="quarantine",
        traceparent="00-1-2-01",
    )  # fmt: skip
    (request,) = api.requests
    assert request.url == f"{URL}/v1/ingest/vehicles?on_invalid=quarantine"
    assert request.headers["authorization"] == "Bearer bronze_key"
    assert request.headers["content-type"] == "text/x"
    assert request.headers["bronze-classification-id"] == "%C3%A4"
    assert request.headers["bronze-file-name"] == "%C3%B6.csv"
    assert request.headers["traceparent"] == "00-1-2-01"


def test_a_wait_ends_when_the_submission_is_stored(waits: list[float]) -> None:
    def status(name: str) -> httpx.Response:
        objects = [{"file_path": "p", "url": "u"}] if name == "stored" else []
        return httpx.Response(
            200, json={"submission_id": "1", "source": "s", "status": name, "records": 1, "objects": objects}
        )

    bronze, _ = client(status("accepted"), status("accepted"), status("stored"))
    assert bronze.wait_until_stored("1").file_paths == ["p"]
    assert len(waits) == 2
    bronze, _ = client(*[status("accepted")] * 9)
    with pytest.raises(Unavailable, match="not stored after 0 s"):
        bronze.wait_until_stored("1", timeout_s=0)


def follow(bronze: Client, **options: Any) -> list[str]:
    return [event.file_path for found in bronze.follow(wait_s=0, **options) for event in found.objects]


def test_a_follower_goes_from_cursor_to_cursor() -> None:
    """And leaves out what it does not know."""
    bronze, api = client(page("a", "b", cursor="1", more=True), page(cursor="2", more=True), page("c", cursor="3"))
    assert follow(bronze, sources=["vehicles"]) == ["a", "b", "c"]
    assert [request.url.params["after"] for request in api.requests] == ["", "1", "2"]


def test_a_checkpoint_has_the_cursor_of_the_last_page_that_was_worked_off(tmp_path: Path) -> None:
    """A page whose work failed comes again."""
    file = tmp_path / "cursor"
    bronze, _ = client(page("a", cursor="1", more=True), page("b", cursor="2", more=True))
    pages = bronze.follow(checkpoint=FileCheckpoint(file))
    assert [next(pages).cursor, next(pages).cursor] == ["1", "2"]  # and the work on the second one fails
    pages.close()  # type: ignore[attr-defined]
    assert FileCheckpoint(file).load() == "1"
    bronze, api = client(page("b", cursor="2"))
    assert follow(bronze, checkpoint=FileCheckpoint(file), after="ignored") == ["b"]
    assert api.requests[0].url.params["after"] == "1"
    assert FileCheckpoint(file).load() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["cursor"]


def test_objects_are_those_in_the_bucket_that_may_have_rows_of_the_time() -> None:
    early, late = "2026-11-29T10:00:00.5+00:00", "2026-11-29T12:00:00+00:00"
    answer = json.loads(page("removed", "empty", "late", "early").content)
    facts: list[dict[str, Any]] = [
        {"removed": True},
        {"records": 0},
        {"first_received_at": late},
        {"first_received_at": early},
    ]
    answer["events"] = [{**event, **its} for event, its in zip(answer["events"], facts, strict=False)]
    bronze, api = client(httpx.Response(200, json=answer))
    found = list(bronze.objects("vehicles", since="2026-11-29T09:00:00+00:00", until="2026-11-29T11:00:00Z"))
    assert [event.file_path for event in found] == ["early"]
    assert api.requests[0].url.params["since"] == "2026-11-29T09:00:00+00:00"


@pytest.mark.parametrize("until", ["2026-11-29T10:00:00", dt.datetime(2026, 11, 29), "yesterday"])  # noqa: DTZ001
def test_a_time_without_its_zone_is_refused(until: str | dt.datetime) -> None:
    """Nobody knows which moment it is."""
    answer = json.loads(page("a").content)
    answer["events"][0]["first_received_at"] = "2026-11-29T10:00:00+00:00"
    bronze, _ = client(httpx.Response(200, json=answer))
    with pytest.raises(Refused, match="is not a time with its zone"):
        list(bronze.objects("vehicles", until=until))


@pytest.mark.parametrize("since", ["2026-11-29", dt.date(2026, 11, 29), dt.datetime(2026, 11, 29, tzinfo=dt.UTC)])
def test_a_date_is_a_time_at_its_beginning_in_utc(since: str | dt.date) -> None:
    bronze, api = client(page("a"))
    assert len(list(bronze.objects("vehicles", since=since, until=dt.date(2026, 11, 30)))) == 1
    assert api.requests[0].url.params["since"] == "2026-11-29T00:00:00+00:00"


def test_a_range_without_any_time_is_refused() -> None:
    """Before anything is asked for."""
    bronze, api = client()
    with pytest.raises(Refused, match=r"since \(2026-11-29\) has to be before until \(2026-11-29T00:00:00Z\)"):
        list(bronze.objects("vehicles", since="2026-11-29", until="2026-11-29T00:00:00Z"))
    assert api.requests == []


@pytest.mark.parametrize("source", [*sources.built_in().values()], ids=lambda source: source.name)
def test_the_columns_of_a_source_are_those_of_its_objects(source: Source) -> None:
    answer = described(source).model_dump_json(exclude_none=True)
    bronze, _ = client(httpx.Response(200, text=answer), httpx.Response(200, text=answer))
    assert bronze.columns(source.name) == object_schema(source)
    assert bronze.event_time(source.name) == source.event_time


def test_the_async_client_does_the_same(waits: list[float]) -> None:
    """One after the other: a retry, the status, the feed."""
    stored = httpx.Response(
        200, json={"submission_id": "1", "source": "s", "status": "stored", "records": 1, "objects": []}
    )
    answers: Sequence[Answer] = [httpx.ConnectError("no"), accepted(), stored, page("a", cursor="1"), page("a")]

    async def run(check: Callable[[Api, list[str]], None]) -> None:
        api = Api(*answers)
        async with AsyncClient(URL) as bronze:
            bronze._http = httpx.AsyncClient(base_url=URL, transport=httpx.MockTransport(api))
            submission = await bronze.submit("vehicles", [{}])
            assert (await bronze.wait_until_stored(submission.submission_id)).status == "stored"
            pages = [found async for found in bronze.follow(wait_s=0)]
            objects = [event.file_path async for event in bronze.objects("vehicles")]
            check(api, [event.file_path for found in pages for event in found.objects] + objects)

    def check(api: Api, paths: list[str]) -> None:
        assert paths == ["a", "a"]
        assert len(api.requests) == 5

    asyncio.run(run(check))
    assert len(waits) == 1
