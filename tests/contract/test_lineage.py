"""Look-ups on real servers: from each id to its lineage, with a catalog index that may be lost at any time."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio

from bronze.errors import Refusal, Refused, Unavailable
from bronze.lineage import catalog_index
from bronze.lineage.catalog_index import CatalogIndex
from bronze.lineage.lookup import Lineage, LineageLookup, LineageRemoval, ObjectShare
from bronze.lineage.submission import SubmissionLookup
from bronze.objects.encoder import encode_object
from bronze.objects.expiry import write_mark
from bronze.objects.footer import CONTENT_TYPE, user_metadata
from bronze.objects.removals import write_removal
from bronze.protocol.chain import Position, Tail, reconcile
from bronze.protocol.documents import Contents, entry_of
from bronze.protocol.expiry import ExpiryMark, anchor_of
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
from tests import factories
from tests.contract.making import RECEIVED_AT, SOURCES, Heard, Submission, app_on, submission, until, wide

UPLOAD = "ab" * 16
WRITTEN_AT = "2026-11-24T12:34:58.000000+00:00"


def record_of(classification_id: str, name: str = "a") -> bytes:
    return b'{"vehicle_id":"%s","classification_id":"%s"}' % (name.encode(), classification_id.encode())


def submission_of(*classification_ids: str, **fields: Any) -> Submission:
    """A submission with one record per classification, as the API would accept it."""
    fields |= {
        "classification_id": classification_ids[0] if len(classification_ids) == 1 else None,
        "classification_count": len(classification_ids),
    }
    return submission(*map(record_of, classification_ids), **fields, classification_default=None)


class Data:
    """The data of a test: it queues and stores submissions as the roles do."""

    def __init__(self, queue: NatsQueue, lane: Lane, bucket: S3Bucket, catalog: NatsCatalog, prefix: str) -> None:
        self.queue, self.lane, self.bucket, self.catalog, self.prefix = queue, lane, bucket, catalog, prefix
        self._position = Position(None, 0)

    async def send(self, *submissions: Submission) -> None:
        for sent in submissions:
            await self.queue.submit(self.lane, sent.accepted, sent.checked, boot_time_s() + 5)

    async def store(self, *submissions: Submission, messages_max: int = 4096, upload: str = UPLOAD) -> Contents:
        """Send these submissions, and store all waiting messages as one object."""
        await self.send(*submissions)
        messages = (await self.queue.read(self.lane, Tail.of(self._position, [])))[:messages_max]
        ids = list(dict.fromkeys(message.submission_id for message in messages))
        identities = await self.catalog.identities(self.lane, self._position, ids)
        key = object_key(self.prefix, self.lane, messages[0])
        cut = reconcile(self.lane, messages, identities)
        wrote = encode_object(SOURCES["vehicles"], self.lane, key, cut, f"00-{upload}-{'1' * 16}-01", WRITTEN_AT)
        await self.bucket.create(key, wrote.body, user_metadata(wrote.contents), CONTENT_TYPE)
        self._position = await self.catalog.append(self.lane, self._position, wrote.stored)
        return wrote.contents


@pytest.fixture
def data(queue: NatsQueue, lane: Lane, bucket: S3Bucket, catalog: NatsCatalog, prefix: str) -> Data:
    return Data(queue, lane, bucket, catalog, prefix)


@pytest.fixture
def feed(jetstream: JetStream, catalog: NatsCatalog) -> Feed:
    return Feed(jetstream)


@pytest_asyncio.fixture
async def index(feed: Feed) -> AsyncIterator[CatalogIndex]:
    """An index that only the test updates."""
    index = await CatalogIndex().open()
    yield index
    await index.close()


@pytest.fixture
def submissions(data: Data) -> SubmissionLookup:
    return SubmissionLookup({(data.lane.source, data.lane.number): data.lane}, 1, data.queue, data.catalog, data.bucket)


@pytest.fixture
def lookup(index: CatalogIndex, bucket: S3Bucket, submissions: SubmissionLookup, prefix: str) -> LineageLookup:
    return LineageLookup(index, bucket, submissions.find, prefix)


async def catch_up(index: CatalogIndex, feed: Feed) -> None:
    while not await index.catch_up(feed):
        pass


def ids(lineage: Lineage) -> list[str]:
    return [found.submission_id for found in lineage.submissions]


def paths(lineage: Lineage) -> list[str]:
    return [found.file_path for found in lineage.objects]


async def test_each_id_leads_to_the_same_lineage(
    data: Data, lookup: LineageLookup, index: CatalogIndex, feed: Feed
) -> None:
    """By the ids of submission, trace, classification and upload, and by the path of the object."""
    sent = submission_of("run-1", trace_id="1" * 32, origin="fleet.csv")
    other = submission_of("run-2", trace_id="2" * 32)
    wrote = await data.store(sent, other)
    await catch_up(index, feed)
    by_id = await lookup.lineage("submission_id", sent.id)
    (found,), (written,) = by_id.submissions, by_id.objects
    assert (found.submission_id, found.source, found.status, found.records) == (sent.id, "vehicles", "stored", 1)
    assert (found.classification_id, found.classification_count, found.origin) == ("run-1", 1, "fleet.csv")
    assert (found.trace_id, found.objects) == ("1" * 32, [ObjectShare(wrote.file_path, 1)])
    first = await data.queue.get(data.lane, 1)
    assert first
    assert (found.received_at, found.queued_at, found.stored_at) == (RECEIVED_AT, first.time, WRITTEN_AT)
    assert (written.file_path, written.trace_id, written.stored_at) == (wrote.file_path, UPLOAD, WRITTEN_AT)
    assert (written.first, written.last, written.messages, written.submissions, written.records) == (1, 2, 2, 2, 2)
    head = await data.bucket.head(wrote.file_path)
    assert head
    assert written.bytes == head.size
    for by, value in (("trace_id", "1" * 32), ("classification_id", "run-1")):
        same = await lookup.lineage(by, value)  # type: ignore[arg-type]
        assert (same.by, same.value, same.submissions, same.objects) == (by, value, [found], [written])
    by_path = await lookup.lineage("file_path", wrote.file_path)
    assert (ids(by_path), by_path.objects) == ([sent.id, other.id], [written])
    assert (by_path.truncated, by_path.complete) == (False, True)
    of_upload = await lookup.lineage("trace_id", UPLOAD)
    assert (ids(of_upload), of_upload.objects) == ([sent.id, other.id], [written])


async def test_the_kind_of_an_id_is_recognized(
    data: Data, lookup: LineageLookup, index: CatalogIndex, feed: Feed
) -> None:
    classification_id = new_id()  # as the API assigns it: it looks like a submission_id
    sent = submission_of(classification_id, trace_id="1" * 32)
    wrote = await data.store(sent)
    await catch_up(index, feed)
    for text, by in (
        (sent.id, "submission_id"),
        (classification_id, "classification_id"),
        ("1" * 32, "trace_id"),
        (f"00-{'1' * 32}-{'2' * 16}-01", "trace_id"),
        (wrote.file_path, "file_path"),
        (f" s3://bronze/{wrote.file_path}\n", "file_path"),
    ):
        found = await lookup.guess(text)
        assert (found.by, ids(found), paths(found)) == (by, [sent.id], [wrote.file_path])
    with pytest.raises(Refused, match=r"nobody.*classification_id"):
        await lookup.guess("nobody")
    with pytest.raises(Refused, match=r"no submission_id or classification_id has this value"):
        await lookup.guess(new_id())


@pytest.mark.parametrize("digits", [1, 16, 31])
async def test_a_trace_id_is_found_without_its_leading_zeros(
    digits: int, data: Data, lookup: LineageLookup, index: CatalogIndex, feed: Feed
) -> None:
    """As Tempo's search and Zipkin show it; it is stored and answered with all 32 digits."""
    shown = "7" * digits
    sent = submission_of("run", trace_id=f"{shown:0>32}")
    wrote = await data.store(sent)
    await catch_up(index, feed)
    for found in (
        await lookup.guess(shown),
        await lookup.guess(f"{shown:0>32}"),
        await lookup.lineage("trace_id", shown),
    ):
        assert (found.by, ids(found), paths(found)) == ("trace_id", [sent.id], [wrote.file_path])
        assert [submission.trace_id for submission in found.submissions] == [f"{shown:0>32}"]


async def test_a_submission_in_several_objects_is_found_as_a_whole(
    data: Data, lookup: LineageLookup, index: CatalogIndex, feed: Feed
) -> None:
    """From each of its objects. Until its last part is stored, its status is accepted."""
    large = submission(*wide("a", 3))
    first = await data.store(large, messages_max=2)
    await catch_up(index, feed)
    (found,) = (await lookup.lineage("submission_id", large.id)).submissions
    assert (found.status, found.records, found.objects) == ("accepted", 3, [ObjectShare(first.file_path, 2)])
    second = await data.store()
    await catch_up(index, feed)
    for by, value in (("file_path", first.file_path), ("submission_id", large.id), ("classification_id", "run")):
        (found,) = (await lookup.lineage(by, value)).submissions  # type: ignore[arg-type]
        assert (found.status, found.records) == ("stored", 3)
        assert found.objects == [ObjectShare(first.file_path, 2), ObjectShare(second.file_path, 1)]
    assert paths(await lookup.lineage("submission_id", large.id)) == [first.file_path, second.file_path]


async def test_a_classification_among_many_is_found_by_the_objects_column(
    data: Data, lookup: LineageLookup, index: CatalogIndex, feed: Feed
) -> None:
    """Also if the entry does not list all ids of the object; an id within the range that has no rows is not found."""
    classification_ids = [f"run-{number:04}" for number in range(0, 600, 2)]
    many, few, single = submission_of(*classification_ids), submission_of("few-1", "few-2"), submission_of("run-0100")
    wrote = await data.store(many, submission_of("other"))
    later = await data.store(few)
    last = await data.store(single)
    await catch_up(index, feed)
    found = await lookup.lineage("classification_id", "run-0598")  # not among the first 128
    assert (ids(found), paths(found), found.complete) == ([many.id], [wrote.file_path], True)
    assert (found.submissions[0].classification_id, found.submissions[0].classification_count) == (None, 300)
    found = await lookup.lineage("classification_id", "run-0100")
    assert (ids(found), paths(found)) == ([many.id, single.id], [wrote.file_path, last.file_path])
    found = await lookup.lineage("classification_id", "few-2")
    assert (ids(found), paths(found)) == ([few.id], [later.file_path])
    with pytest.raises(Refused):
        await lookup.lineage("classification_id", "run-0101")
    assert await index.candidates("zzz", 9) == []


async def test_more_candidates_than_are_searched_make_an_answer_incomplete(
    data: Data,
    index: CatalogIndex,
    bucket: S3Bucket,
    submissions: SubmissionLookup,
    prefix: str,
    feed: Feed,
) -> None:
    """The newest are searched. If nothing is found there, the answer is undecided instead of not found."""
    many = [f"a-{number:04}" for number in range(200)]
    for number in range(3):
        await data.store(submission_of(*many, f"b-{number}", "z"))
    await catch_up(index, feed)
    lookup = LineageLookup(index, bucket, submissions.find, prefix, searched_max=2)
    found = await lookup.lineage("classification_id", "z")
    assert (len(found.objects), found.complete) == (2, False)
    with pytest.raises(Unavailable, match="not all objects"):
        await lookup.lineage("classification_id", "b-0")


async def test_a_limit_truncates_and_says_so(
    data: Data, lookup: LineageLookup, index: CatalogIndex, feed: Feed
) -> None:
    wrote = await data.store(*(submission_of("run") for _ in range(3)))
    await data.store(submission_of("run"))
    await catch_up(index, feed)
    found = await lookup.lineage("file_path", wrote.file_path, limit=2)
    assert (len(found.submissions), len(found.objects), found.truncated) == (2, 1, True)
    found = await lookup.lineage("classification_id", "run", limit=1)
    assert (len(found.submissions), len(found.objects), found.truncated) == (1, 1, True)
    found = await lookup.lineage("classification_id", "run", limit=4)
    assert (len(found.submissions), len(found.objects), found.truncated) == (4, 2, False)


async def test_new_data_is_found_without_the_index(
    data: Data, lookup: LineageLookup, index: CatalogIndex, feed: Feed
) -> None:
    """For a waiting and a just stored submission, and its object, the answers equal those of the index later."""
    sent = submission_of("run", origin="a.csv")
    await data.send(sent)
    waiting = await lookup.lineage("submission_id", sent.id)
    (found,) = waiting.submissions
    assert (found.status, found.records, found.origin, found.objects) == ("accepted", 1, "a.csv", [])
    assert waiting.objects == []
    wrote = await data.store()
    fresh = [await lookup.lineage("submission_id", sent.id), await lookup.lineage("file_path", wrote.file_path)]
    await catch_up(index, feed)
    later = [await lookup.lineage("submission_id", sent.id), await lookup.lineage("file_path", wrote.file_path)]
    assert [replace(lineage, lag_s=0) for lineage in fresh] == [replace(lineage, lag_s=0) for lineage in later]


async def test_an_index_that_is_behind_does_not_answer_not_found(
    lookup: LineageLookup, index: CatalogIndex, bucket: S3Bucket, submissions: SubmissionLookup, prefix: str
) -> None:
    with pytest.raises(Refused):
        await lookup.lineage("trace_id", "1" * 32)
    stricter = LineageLookup(index, bucket, submissions.find, prefix, lag_s_max=0)
    with pytest.raises(Unavailable, match="behind") as raised:
        await stricter.lineage("trace_id", "1" * 32)
    assert raised.value.code == "undecided"


async def test_an_index_file_is_reopened_or_rebuilt(
    data: Data, feed: Feed, bucket: S3Bucket, submissions: SubmissionLookup, prefix: str, tmp_path: Path
) -> None:
    """Reopened, the index continues at its position. If its file was deleted or is corrupt, it is rebuilt."""
    sent = submission_of("run")
    await data.store(sent)
    first = await CatalogIndex(tmp_path).open()
    await catch_up(first, feed)
    position = first.position
    second = await CatalogIndex(tmp_path).open()  # the first one has the file: this one uses a temporary file
    assert second.position == FeedPosition()
    await second.close()
    before = await LineageLookup(first, bucket, submissions.find, prefix).lineage("submission_id", sent.id)
    await first.close()

    reopened = await CatalogIndex(tmp_path).open()
    assert reopened.position == position
    await reopened.close()
    file = tmp_path / "view.sqlite"
    for destroy in (file.unlink, lambda: file.write_bytes(b"no database" * 1_000)):
        destroy()
        rebuilt = await CatalogIndex(tmp_path).open()
        assert rebuilt.position == FeedPosition()
        await catch_up(rebuilt, feed)
        after = await LineageLookup(rebuilt, bucket, submissions.find, prefix).lineage("submission_id", sent.id)
        assert replace(after, lag_s=0) == replace(before, lag_s=0)
        await rebuilt.close()


async def test_another_catalog_replaces_the_contents_of_the_index(
    data: Data, index: CatalogIndex, feed: Feed, jetstream: JetStream, catalog: NatsCatalog
) -> None:
    """A rebuilt catalog is another stream. The index reads it when it is complete, and drops the old entries."""
    await data.store(submission_of("run"))
    await catch_up(index, feed)
    before = index.position
    await jetstream.api(f"STREAM.DELETE.{catalog.stream}")
    with pytest.raises(Unavailable):
        await index.catch_up(feed)
    config: dict[str, Any] = {"name": "ANOTHER", "subjects": ["catalog.>", "identity.*"], "allow_direct": True}
    await jetstream.create_stream({**config, "metadata": {REBUILDING: "yes"}})
    with pytest.raises(Unavailable, match="being rebuilt"):
        await index.catch_up(feed)
    assert index.position == before
    await jetstream.update_stream("ANOTHER", metadata={})
    await catch_up(index, feed)
    assert (index.position.stream, index.position.sequence) == ("ANOTHER", 0)
    assert before.stream != "ANOTHER"
    assert await index.by_id(catalog_index.IdKind.CLASSIFICATION, "run", 9, lambda item: item) == []


async def test_an_index_follows_the_catalog_and_reports_its_lag(
    data: Data, index: CatalogIndex, feed: Feed, nats: Process, jetstream: JetStream
) -> None:
    """The lag grows while the queue does not answer, and shrinks after that. A stop takes effect at once."""
    lags: list[float] = []
    stop = asyncio.Event()
    following = asyncio.create_task(index.follow(feed, stop, lags.append))
    await data.store(submission_of("run"))
    await until(lambda: index.position.sequence > 0)
    await asyncio.to_thread(nats.stop)
    await until(lambda: index.lag_s > 1.5 and lags[-1] > 1)
    await asyncio.to_thread(nats.restart)
    await until(lambda: lags[-1] < 0.5)
    stop.set()
    async with asyncio.timeout(limit_s(1)):
        await following


async def test_an_unreadable_entry_is_skipped(
    data: Data, index: CatalogIndex, feed: Feed, jetstream: JetStream
) -> None:
    """And an entry of an earlier version, with fewer fields, is read."""
    await jetstream.publish(Outgoing("catalog.vehicles.9.x", b'{"first": "one"}', {}))
    sent = submission_of("run")
    entry = msgspec.to_builtins(entry_of(await data.store(sent)))
    old = {name: value for name, value in entry.items() if not name.startswith(("classification", "written"))}
    old["submissions"] = [
        {name: part[name] for name in ("submission_id", "trace_id", "records")} for part in old["submissions"]
    ]
    await jetstream.publish(Outgoing("catalog.vehicles.8.x", msgspec.json.encode({**old, "file_path": "old"}), {}))
    await catch_up(index, feed)
    (item,) = await index.by_path("old", lambda item: item)
    assert item.stored_at == item.time
    assert set(await index.candidates("run", 9)) == {"old"}


@pytest.mark.parametrize("indexed", [True, False])
async def test_a_removed_object_says_why(
    data: Data, lookup: LineageLookup, index: CatalogIndex, feed: Feed, *, indexed: bool
) -> None:
    """By its path and the ids of its submissions; also if only the record is left of it. Its records stay countable."""
    sent = submission_of("run")
    removed, kept = await data.store(sent), await data.store(submission_of("run"))
    removal = factories.removal(removed)
    for contents in (removed, kept):  # a record is created before the object is deleted
        await write_removal(data.bucket, data.prefix, factories.removal(contents))
    await asyncio.to_thread(data.bucket._s3.delete_object, Bucket=data.bucket.name, Key=removed.file_path)
    if indexed:
        await catch_up(index, feed)
    for by, value in (("file_path", removed.file_path), ("submission_id", sent.id)):
        (found,) = (await lookup.lineage(by, value)).objects  # type: ignore[arg-type]
        assert (found.file_path, found.records, found.bytes) == (removed.file_path, 1, removal.bytes)
        assert found.removed == LineageRemoval(
            removal.reason, removal.note, by=removal.removed_by, at=removal.recorded_at
        )
        assert found.in_bucket is False
    (there,) = (await lookup.lineage("file_path", kept.file_path)).objects
    assert (there.removed, there.in_bucket) == (None, True)
    assert there.bytes


async def test_what_is_left_of_a_damaged_object_is_not_the_object(
    settings: Settings, data: Data, lookup: LineageLookup, index: CatalogIndex, feed: Feed, heard: Heard
) -> None:
    """Its removal record counts, as for the rebuild and the consumers: also if what is there is an object itself."""
    damaged, other = await data.store(submission_of("run")), await data.store(submission_of(*map(str, range(50))))
    await catch_up(index, feed)
    s3, name = data.bucket._s3, data.bucket.name
    size = (await asyncio.to_thread(s3.head_object, Bucket=name, Key=damaged.file_path))["ContentLength"]
    removal = factories.removal(damaged, bytes=size)
    await write_removal(data.bucket, data.prefix, removal)
    another = (await asyncio.to_thread(s3.get_object, Bucket=name, Key=other.file_path))["Body"].read()
    app = app_on(settings, [data.lane], data.queue, data.bucket, data.catalog, heard.telemetry, view=index)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as client:

        async def contents() -> int:
            return (await client.get(f"/v1/objects/{damaged.file_path}")).status_code

        (there,) = (await lookup.lineage("file_path", damaged.file_path)).objects
        assert (there.in_bucket, there.removed, there.bytes) == (True, None, size)
        assert await contents() == httpx.codes.OK
        for left in (b"damaged", another):
            await asyncio.to_thread(s3.put_object, Bucket=name, Key=damaged.file_path, Body=left)
            (found,) = (await lookup.lineage("file_path", damaged.file_path)).objects
            assert (found.in_bucket, found.bytes) == (False, size)
            assert found.removed == LineageRemoval.of(removal)
            assert await contents() == httpx.codes.GONE


async def test_an_object_that_is_missing_is_told_from_one_that_is_not_known(
    data: Data, lookup: LineageLookup, index: CatalogIndex, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a removal record, an object that is not in the bucket is missing; of a slow bucket nothing is known."""
    missing = await data.store(submission_of("run"))
    await catch_up(index, feed)
    await asyncio.to_thread(data.bucket._s3.delete_object, Bucket=data.bucket.name, Key=missing.file_path)
    (found,) = (await lookup.lineage("file_path", missing.file_path)).objects
    assert (found.in_bucket, found.removed, found.bytes) == (False, None, None)
    monkeypatch.setattr("bronze.lineage.lookup.SIZES_S_MAX", 0.0)
    (found,) = (await lookup.lineage("file_path", missing.file_path)).objects
    assert (found.in_bucket, found.removed, found.bytes) == (None, None, None)


async def test_an_expired_object_is_found_by_its_path_without_an_entry(data: Data, lookup: LineageLookup) -> None:
    """As `GET /v1/objects/{file_path}` says it; only to those who may read its source. Its ids are not known."""
    sent = submission_of("run")
    wrote = await data.store(sent)
    entry = anchor_of(entry_of(wrote))
    mark = ExpiryMark(entry=entry, note="old", expired_by="operator", recorded_at="2026-11-24T13:00:00+00:00")
    await write_mark(data.bucket, data.prefix, mark)
    await asyncio.to_thread(data.bucket._s3.delete_object, Bucket=data.bucket.name, Key=wrote.file_path)
    for asked in (lookup.lineage("file_path", wrote.file_path), lookup.guess(wrote.file_path)):
        with pytest.raises(Refused, match=r"was removed \(expired\): old") as refused:
            await asked
        assert refused.value.code is Refusal.REMOVED
    with pytest.raises(Refused, match="Nothing is known"):
        await lookup.lineage("file_path", wrote.file_path, sources=frozenset({"another"}))
    with pytest.raises(Refused, match="Nothing is known"):
        await lookup.lineage("submission_id", "unknown")


# --- over HTTP


async def test_the_status_of_a_submission_says_that_it_was_removed(
    settings: Settings, data: Data, index: CatalogIndex, heard: Heard
) -> None:
    """Not as long as its object is in the bucket: the record is created before the object is deleted."""
    sent = submission_of("run")
    wrote = await data.store(sent)
    removal = factories.removal(wrote, bytes=None)
    app = app_on(settings, [data.lane], data.queue, data.bucket, data.catalog, heard.telemetry, view=index)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as client:

        async def status() -> tuple[str, Any]:
            body = (await client.get(f"/v1/submissions/{sent.id}")).json()
            return body["status"], body["objects"][0]["removed"]

        await data.catalog.announce(removal)
        assert await status() == ("stored", None)
        await asyncio.to_thread(data.bucket._s3.delete_object, Bucket=data.bucket.name, Key=wrote.file_path)
        assert await status() == (
            "removed",
            {"reason": removal.reason, "note": removal.note, "by": removal.removed_by, "at": removal.recorded_at},
        )


async def test_a_request_has_exactly_one_id_and_refusals_are_problems(
    settings: Settings, data: Data, lookup: LineageLookup, index: CatalogIndex, feed: Feed, heard: Heard
) -> None:
    sent = submission_of("run")
    wrote = await data.store(sent)
    await catch_up(index, feed)
    app = app_on(settings, [data.lane], data.queue, data.bucket, data.catalog, heard.telemetry, view=index)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:

        async def ask(**query: str | int) -> httpx.Response:
            return await client.get("/v1/lineage", params=query)

        await write_removal(data.bucket, data.prefix, factories.removal(wrote))
        assert (await client.get(f"/v1/objects/{wrote.file_path}")).status_code == httpx.codes.OK
        await asyncio.to_thread(data.bucket._s3.delete_object, Bucket=data.bucket.name, Key=wrote.file_path)
        gone = await client.get(f"/v1/objects/{wrote.file_path}")
        assert (gone.status_code, gone.json()["type"]) == (410, "/problems/removed")
        assert gone.json()["detail"].endswith("was removed (acknowledged): deleted by a script.")
        assert gone.json()["removed"] == {
            "reason": "acknowledged",
            "note": "deleted by a script",
            "by": "operator",
            "at": "2026-11-24T13:00:00+00:00",
        }
        answered = (await ask(submission_id=sent.id)).json()
        expected = asdict(await lookup.lineage("submission_id", sent.id))
        assert {**answered, "lag_s": 0} == {**expected, "lag_s": 0}
        assert (await ask(id=sent.id)).json()["by"] == "submission_id"
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
