"""Look-ups on the real servers: from each id to the whole chain, by a view that may be lost at any time."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio

from bronze.errors import Refused, Unavailable
from bronze.lineage import catalog_index
from bronze.lineage.catalog_index import CatalogIndex
from bronze.lineage.lookup import Lineage, LineageLookup, ObjectShare
from bronze.lineage.submission import SubmissionLookup
from bronze.objects.encoder import encode_object
from bronze.objects.footer import CONTENT_TYPE, user_metadata
from bronze.protocol.chain import Position, Tail, reconcile
from bronze.protocol.documents import Contents, entry_of
from bronze.protocol.keys import object_key
from bronze.protocol.lane import Lane
from bronze.protocol.submission_id import new_id
from bronze.servers.catalog import NatsCatalog
from bronze.servers.catalog_feed import Feed, FeedPosition
from bronze.servers.jetstream import JetStream, Outgoing
from bronze.servers.queue import NatsQueue, boot_time_s
from bronze.servers.s3 import S3Bucket
from bronze.servers.stream_metadata import REBUILDING
from bronze.settings import Settings
from local.machine import limit_s
from local.programs import Process
from tests.contract.making import RECEIVED_AT, SOURCES, Heard, Submission, app_on, submission, until, wide

UPLOAD = "ab" * 16
WRITTEN_AT = "2026-11-24T12:34:58.000000+00:00"


def of_run(run: str, name: str = "a") -> bytes:
    return b'{"vehicle_id":"%s","classification_id":"%s"}' % (name.encode(), run.encode())


def of_runs(*runs: str, **facts: Any) -> Submission:
    """A submission of a record a run, as the API would accept it."""
    facts |= {"classification_id": runs[0] if len(runs) == 1 else None, "classification_count": len(runs)}
    return submission(*map(of_run, runs), **facts, classification_default=None)


class Data:
    """What data there is: submissions are queued and stored as the roles do it, when the test says so."""

    def __init__(self, queue: NatsQueue, lane: Lane, bucket: S3Bucket, catalog: NatsCatalog, prefix: str) -> None:
        self.queue, self.lane, self.bucket, self.catalog, self.prefix = queue, lane, bucket, catalog, prefix
        self._position = Position(None, 0)

    async def send(self, *submissions: Submission) -> None:
        for one in submissions:
            await self.queue.submit(self.lane, one.accepted, one.checked, boot_time_s() + 5)

    async def store(self, *submissions: Submission, messages_max: int = 4096, upload: str = UPLOAD) -> Contents:
        """One object of what was sent last and what waits before it."""
        await self.send(*submissions)
        messages = (await self.queue.read(self.lane, Tail.of(self._position, [])))[:messages_max]
        ids = list(dict.fromkeys(message.submission_id for message in messages))
        identities = await self.catalog.identities(self.lane, self._position, ids)
        key = object_key(self.prefix, self.lane, messages[0])
        cut = reconcile(self.lane, messages, identities)
        wrote = encode_object(SOURCES["vehicles"], self.lane, key, cut, f"00-{upload}-{'1' * 16}-01", WRITTEN_AT)
        await self.bucket.create(key, wrote.body, user_metadata(wrote.contents), CONTENT_TYPE)
        self._position = await self.catalog.append(self.lane, self._position, wrote.contents)
        return wrote.contents


@pytest.fixture
def data(queue: NatsQueue, lane: Lane, bucket: S3Bucket, catalog: NatsCatalog, prefix: str) -> Data:
    return Data(queue, lane, bucket, catalog, prefix)


@pytest.fixture
def feed(jetstream: JetStream, catalog: NatsCatalog) -> Feed:
    return Feed(jetstream)


@pytest_asyncio.fixture
async def seen(feed: Feed) -> AsyncIterator[CatalogIndex]:
    """A view that nobody keeps up to date but the test."""
    view = await CatalogIndex().open()
    yield view
    await view.close()


@pytest.fixture
def submissions(data: Data) -> SubmissionLookup:
    return SubmissionLookup({(data.lane.source, data.lane.number): data.lane}, 1, data.queue, data.catalog)


@pytest.fixture
def looking(seen: CatalogIndex, bucket: S3Bucket, submissions: SubmissionLookup, prefix: str) -> LineageLookup:
    return LineageLookup(seen, bucket, submissions.find, prefix)


async def caught_up(view: CatalogIndex, feed: Feed) -> None:
    while not await view.catch_up(feed):
        pass


def ids(chain: Lineage) -> list[str]:
    return [one.submission_id for one in chain.submissions]


def paths(chain: Lineage) -> list[str]:
    return [one.file_path for one in chain.objects]


async def test_each_id_leads_to_the_same_chain(
    data: Data, looking: LineageLookup, seen: CatalogIndex, feed: Feed
) -> None:
    """By its own id, its trace, its run, its object and the upload's trace: whose data, which write, when."""
    one = of_runs("run-1", trace_id="1" * 32, origin="fleet.csv")
    other = of_runs("run-2", trace_id="2" * 32)
    wrote = await data.store(one, other)
    await caught_up(seen, feed)
    by_id = await looking.lineage("submission_id", one.id)
    (line,), (of,) = by_id.submissions, by_id.objects
    assert (line.submission_id, line.source, line.status, line.records) == (one.id, "vehicles", "stored", 1)
    assert (line.classification_id, line.classification_count, line.origin) == ("run-1", 1, "fleet.csv")
    assert (line.trace_id, line.objects) == ("1" * 32, [ObjectShare(wrote.file_path, 1)])
    first = await data.queue.get(data.lane, 1)
    assert first
    assert (line.received_at, line.queued_at, line.stored_at) == (RECEIVED_AT, first.time, WRITTEN_AT)
    assert (of.file_path, of.trace_id, of.stored_at) == (wrote.file_path, UPLOAD, WRITTEN_AT)
    assert (of.first, of.last, of.messages, of.submissions, of.records) == (1, 2, 2, 2, 2)
    head = await data.bucket.head(wrote.file_path)
    assert head
    assert of.bytes == head.size
    for by, value in (("trace_id", "1" * 32), ("classification_id", "run-1")):
        same = await looking.lineage(by, value)  # type: ignore[arg-type]
        assert (same.by, same.value, same.submissions, same.objects) == (by, value, [line], [of])
    by_path = await looking.lineage("file_path", wrote.file_path)
    assert (ids(by_path), by_path.objects) == ([one.id, other.id], [of])
    assert (by_path.truncated, by_path.complete) == (False, True)
    assert paths(await looking.lineage("trace_id", UPLOAD)) == [wrote.file_path]


async def test_any_text_is_taken_for_what_it_is(
    data: Data, looking: LineageLookup, seen: CatalogIndex, feed: Feed
) -> None:
    run = new_id()  # as the API assigns it: it looks like a submission's id
    one = of_runs(run, trace_id="1" * 32)
    wrote = await data.store(one)
    await caught_up(seen, feed)
    for text, by in (
        (one.id, "submission_id"),
        (run, "classification_id"),
        ("1" * 32, "trace_id"),
        (f"00-{'1' * 32}-{'2' * 16}-01", "trace_id"),
        (wrote.file_path, "file_path"),
        (f" s3://bronze/{wrote.file_path}\n", "file_path"),
    ):
        found = await looking.guess(text)
        assert (found.by, ids(found), paths(found)) == (by, [one.id], [wrote.file_path])
    with pytest.raises(Refused, match=r"nobody.*classification_id"):
        await looking.guess("nobody")
    with pytest.raises(Refused, match=r"submission_id nor as classification_id"):
        await looking.guess(new_id())


async def test_a_submission_over_several_objects_is_told_whole(
    data: Data, looking: LineageLookup, seen: CatalogIndex, feed: Feed
) -> None:
    """From each of its objects; until its last part is stored, it is accepted."""
    large = submission(*wide("a", 3))
    first = await data.store(large, messages_max=2)
    await caught_up(seen, feed)
    (line,) = (await looking.lineage("submission_id", large.id)).submissions
    assert (line.status, line.records, line.objects) == ("accepted", 3, [ObjectShare(first.file_path, 2)])
    second = await data.store()
    await caught_up(seen, feed)
    for by, value in (("file_path", first.file_path), ("submission_id", large.id), ("classification_id", "run")):
        (line,) = (await looking.lineage(by, value)).submissions  # type: ignore[arg-type]
        assert (line.status, line.records) == ("stored", 3)
        assert line.objects == [ObjectShare(first.file_path, 2), ObjectShare(second.file_path, 1)]
    assert paths(await looking.lineage("submission_id", large.id)) == [first.file_path, second.file_path]


async def test_a_run_among_many_of_a_submission_is_found_by_the_objects_column(
    data: Data, looking: LineageLookup, seen: CatalogIndex, feed: Feed
) -> None:
    """Also where the object has more runs than are listed; a run that lies between them and is not there is not."""
    runs = [f"run-{number:04}" for number in range(0, 600, 2)]
    many, few, single = of_runs(*runs), of_runs("few-1", "few-2"), of_runs("run-0100")
    wrote = await data.store(many, of_runs("other"))
    later = await data.store(few)
    last = await data.store(single)
    await caught_up(seen, feed)
    found = await looking.lineage("classification_id", "run-0598")  # not among the first 128
    assert (ids(found), paths(found), found.complete) == ([many.id], [wrote.file_path], True)
    assert (found.submissions[0].classification_id, found.submissions[0].classification_count) == (None, 300)
    found = await looking.lineage("classification_id", "run-0100")
    assert (ids(found), paths(found)) == ([many.id, single.id], [wrote.file_path, last.file_path])
    found = await looking.lineage("classification_id", "few-2")
    assert (ids(found), paths(found)) == ([few.id], [later.file_path])
    with pytest.raises(Refused):
        await looking.lineage("classification_id", "run-0101")
    assert await seen.to_search("zzz", 9) == []


async def test_more_candidates_than_are_searched_make_an_answer_incomplete(
    data: Data,
    seen: CatalogIndex,
    bucket: S3Bucket,
    submissions: SubmissionLookup,
    prefix: str,
    feed: Feed,
) -> None:
    """The newest are searched; where nothing is found, nobody can tell, which is not the same as not there."""
    many = [f"a-{number:04}" for number in range(200)]
    for number in range(3):
        await data.store(of_runs(*many, f"b-{number}", "z"))
    await caught_up(seen, feed)
    looking = LineageLookup(seen, bucket, submissions.find, prefix, searched_max=2)
    found = await looking.lineage("classification_id", "z")
    assert (len(found.objects), found.complete) == (2, False)
    with pytest.raises(Unavailable, match="not each"):
        await looking.lineage("classification_id", "b-0")


async def test_a_limit_truncates_and_says_so(
    data: Data, looking: LineageLookup, seen: CatalogIndex, feed: Feed
) -> None:
    wrote = await data.store(*(of_runs("run") for _ in range(3)))
    await data.store(of_runs("run"))
    await caught_up(seen, feed)
    found = await looking.lineage("file_path", wrote.file_path, limit=2)
    assert (len(found.submissions), len(found.objects), found.truncated) == (2, 1, True)
    found = await looking.lineage("classification_id", "run", limit=1)
    assert (len(found.submissions), len(found.objects), found.truncated) == (1, 1, True)
    found = await looking.lineage("classification_id", "run", limit=4)
    assert (len(found.submissions), len(found.objects), found.truncated) == (4, 2, False)


async def test_what_the_view_has_not_seen_is_asked_of_those_who_know(
    data: Data, looking: LineageLookup, seen: CatalogIndex, feed: Feed
) -> None:
    """A submission that waits, one that was just stored, and its object: the same answers as the view's later."""
    one = of_runs("run", origin="a.csv")
    await data.send(one)
    waiting = await looking.lineage("submission_id", one.id)
    (line,) = waiting.submissions
    assert (line.status, line.records, line.origin, line.objects) == ("accepted", 1, "a.csv", [])
    assert waiting.objects == []
    wrote = await data.store()
    fresh = [await looking.lineage("submission_id", one.id), await looking.lineage("file_path", wrote.file_path)]
    await caught_up(seen, feed)
    later = [await looking.lineage("submission_id", one.id), await looking.lineage("file_path", wrote.file_path)]
    assert [replace(chain, lag_s=0) for chain in fresh] == [replace(chain, lag_s=0) for chain in later]


async def test_a_view_that_is_behind_does_not_say_that_nothing_is_there(
    looking: LineageLookup, seen: CatalogIndex, bucket: S3Bucket, submissions: SubmissionLookup, prefix: str
) -> None:
    with pytest.raises(Refused):
        await looking.lineage("trace_id", "1" * 32)
    stricter = LineageLookup(seen, bucket, submissions.find, prefix, lag_s_max=0)
    with pytest.raises(Unavailable, match="behind") as raised:
        await stricter.lineage("trace_id", "1" * 32)
    assert raised.value.code == "undecided"


async def test_a_view_is_kept_lost_and_made_again(
    data: Data, feed: Feed, bucket: S3Bucket, submissions: SubmissionLookup, prefix: str, tmp_path: Path
) -> None:
    """Opened again it goes on where it was; deleted, spoilt or of another catalog it begins anew."""
    one = of_runs("run")
    await data.store(one)
    first = await CatalogIndex(tmp_path).open()
    await caught_up(first, feed)
    position = first.position
    beside = await CatalogIndex(tmp_path).open()  # the file is taken: it has one of its own
    assert beside.position == FeedPosition()
    await beside.close()
    said = await LineageLookup(first, bucket, submissions.find, prefix).lineage("submission_id", one.id)
    await first.close()

    kept = await CatalogIndex(tmp_path).open()
    assert kept.position == position
    await kept.close()
    file = tmp_path / "view.sqlite"
    for spoil in (file.unlink, lambda: file.write_bytes(b"no database" * 1_000)):
        spoil()
        anew = await CatalogIndex(tmp_path).open()
        assert anew.position == FeedPosition()
        await caught_up(anew, feed)
        again = await LineageLookup(anew, bucket, submissions.find, prefix).lineage("submission_id", one.id)
        assert replace(again, lag_s=0) == replace(said, lag_s=0)
        await anew.close()


async def test_another_catalog_begins_the_view_anew(
    data: Data, seen: CatalogIndex, feed: Feed, jetstream: JetStream, catalog: NatsCatalog
) -> None:
    """A catalog that was made again is another stream, which is taken when it is whole; what the old one said is gone
    from the view.
    """
    await data.store(of_runs("run"))
    await caught_up(seen, feed)
    before = seen.position
    await jetstream.api(f"STREAM.DELETE.{catalog._stream}")
    with pytest.raises(Unavailable):
        await seen.catch_up(feed)
    config: dict[str, Any] = {"name": "ANOTHER", "subjects": ["catalog.>", "identity.*"], "allow_direct": True}
    await jetstream.create_stream({**config, "metadata": {REBUILDING: "yes"}})
    with pytest.raises(Unavailable, match="being rebuilt"):
        await seen.catch_up(feed)
    assert seen.position == before
    await jetstream.update_stream("ANOTHER", metadata={})
    await caught_up(seen, feed)
    assert (seen.position.stream, seen.position.sequence) == ("ANOTHER", 0)
    assert before.stream != "ANOTHER"
    assert await seen.by_id(catalog_index.IdKind.CLASSIFICATION, "run", 9, lambda noted: noted) == []


async def test_a_view_follows_and_says_how_far_behind_it_is(
    data: Data, seen: CatalogIndex, feed: Feed, nats: Process, jetstream: JetStream
) -> None:
    """The lag grows while the queue is away, shrinks after it, and a stop is heeded at once."""
    lags: list[float] = []
    stop = asyncio.Event()
    following = asyncio.create_task(seen.follow(feed, stop, lags.append))
    await data.store(of_runs("run"))
    await until(lambda: seen.position.sequence > 0)
    await asyncio.to_thread(nats.stop)
    await until(lambda: seen.lag_s > 1.5 and lags[-1] > 1)
    await asyncio.to_thread(nats.restart)
    await until(lambda: lags[-1] < 0.5)
    stop.set()
    async with asyncio.timeout(limit_s(1)):
        await following


async def test_an_entry_that_cannot_be_read_is_left_out(
    data: Data, seen: CatalogIndex, feed: Feed, jetstream: JetStream
) -> None:
    """And an entry of before, which says less, is read."""
    await jetstream.publish(Outgoing("catalog.vehicles.9.x", b'{"first": "one"}', {}))
    one = of_runs("run")
    entry = msgspec.to_builtins(entry_of(await data.store(one)))
    old = {name: value for name, value in entry.items() if not name.startswith(("classification", "written"))}
    old["submissions"] = [
        {name: of[name] for name in ("submission_id", "trace_id", "records")} for of in old["submissions"]
    ]
    await jetstream.publish(Outgoing("catalog.vehicles.8.x", msgspec.json.encode({**old, "file_path": "old"}), {}))
    await caught_up(seen, feed)
    (noted,) = await seen.by_path("old", lambda noted: noted)
    assert noted.stored_at == noted.time
    assert set(await seen.to_search("run", 9)) == {"old"}


# --- over HTTP


async def test_one_of_the_ids_is_asked_for_and_refusals_are_problems(
    settings: Settings, data: Data, looking: LineageLookup, seen: CatalogIndex, feed: Feed, heard: Heard
) -> None:
    one = of_runs("run")
    await data.store(one)
    await caught_up(seen, feed)
    app = app_on(settings, [data.lane], data.queue, data.bucket, data.catalog, heard.telemetry, view=seen)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:

        async def ask(**query: str | int) -> httpx.Response:
            return await client.get("/v1/lineage", params=query)

        said = (await ask(submission_id=one.id)).json()
        known = asdict(await looking.lineage("submission_id", one.id))
        assert {**said, "lag_s": 0} == {**known, "lag_s": 0}
        assert (await ask(id=one.id)).json()["by"] == "submission_id"
        answers: Sequence[tuple[dict[str, str | int], int, str]] = [
            ({}, 400, "invalid-query"),
            ({"file_path": ""}, 400, "invalid-query"),
            ({"file_path": "a", "trace_id": "b"}, 400, "invalid-query"),
            ({"id": "a", "trace_id": "b"}, 400, "invalid-query"),
            ({"id": "a", "limit": 0}, 422, "invalid-request"),
            ({"id": "a", "limit": 1001}, 422, "invalid-request"),
            ({"trace_id": "1" * 32}, 404, "not-found"),
            ({"submission_id": "no id"}, 404, "not-found"),
            ({"file_path": f"{data.prefix}/nothing.parquet"}, 404, "not-found"),
            ({"id": "nobody"}, 404, "not-found"),
        ]
        for query, status, kind in answers:
            answer = await ask(**query)
            assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{kind}"), query
