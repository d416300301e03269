"""The consumer of a lane, in this process, on a real queue and a real bucket: each record is stored exactly once."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
import zstandard
from aiorwlock import RWLock
from opentelemetry.trace import SpanKind

from bronze.consumer.lane_writer import LaneWriter
from bronze.consumer.ledger import Comparison
from bronze.consumer.monitors import Monitors
from bronze.errors import Outage, Unavailable
from bronze.ledger.report import LedgerReport
from bronze.objects.reader import read_contents, read_object
from bronze.objects.removals import write_removal
from bronze.protocol.attempts import Attempt
from bronze.protocol.chain import Position
from bronze.protocol.documents import CatalogEntry, Contents, StoredObject, Totals, entry_of, identities_of
from bronze.protocol.lane import Lane, lane_subject
from bronze.protocol.limits import Limits
from bronze.protocol.message import FORMAT, HEADER_ENCODING, HEADER_FORMAT, ZSTD
from bronze.servers.bucket import Bucket
from bronze.servers.catalog import Catalog, NatsCatalog
from bronze.servers.catalog_feed import Feed
from bronze.servers.jetstream import Header, JetStream, Outgoing, StreamState
from bronze.servers.key_value import KeyValueStore
from bronze.servers.lane_lock import Lock, NatsLock
from bronze.servers.queue import NatsQueue, boot_time_s
from bronze.servers.s3 import S3Bucket
from bronze.settings import Settings
from bronze.wiring.consumer import limits
from local.machine import limit_s
from local.programs import Process
from tests import factories
from tests.contract.making import SOURCES, Heard, Submission, cancelled, submission, until, vehicle, wide

LIMITS_WITH_HIGH_AGE = Limits(bytes_max=2**26, messages_max=4_096, submissions_max=999, age_s_max=3_600)


@dataclass(frozen=True)
class Parts:
    """The servers of a consumer, and helpers that check its work."""

    settings: Settings
    lane: Lane
    queue: NatsQueue
    bucket: Bucket
    catalog: Catalog
    lock: Callable[[], Lock]
    heard: Heard
    limits: Limits
    purge_grace_s: float = 60
    monitors: Monitors | None = None

    def writer(self) -> LaneWriter:
        return LaneWriter(
            self.lane,
            SOURCES[self.lane.source],
            self.queue,
            self.bucket,
            self.catalog,
            self.lock(),
            self.heard.telemetry,
            RWLock(),
            prefix=self.settings.prefix,
            limits=self.limits,
            purge_grace_s=self.purge_grace_s,
            monitors=self.monitors,
        )

    @asynccontextmanager
    async def running(self, writers: int = 1) -> AsyncIterator[list[asyncio.Task[None]]]:
        """Consumers while the block runs; after it, they are stopped as by SIGTERM."""
        stop = asyncio.Event()
        tasks = [asyncio.create_task(self.writer().run(stop)) for _ in range(writers)]
        try:
            yield tasks
        finally:
            stop.set()
            async with asyncio.timeout(limit_s(10)):
                await asyncio.gather(*tasks)

    async def submit(self, *records: bytes, key: str | None = None) -> Submission:
        submitted = submission(*records, key=key)
        deadline_s = boot_time_s() + 10
        assert await self.queue.submit(self.lane, submitted.accepted, submitted.checked, deadline_s) is None
        return submitted

    async def position(self) -> int:
        return (await self.catalog.position(self.lane))[0].last

    def at(self, sequence: int) -> Callable[[], Awaitable[bool]]:
        """A condition: the position of the lane is a sequence."""

        async def condition() -> bool:
            return await self.position() == sequence

        return condition

    async def objects(self) -> list[Contents]:
        """The contents of each object of the lane, in order, checked to form a chain."""
        objects: list[Contents] = []
        async for key in self.bucket.keys(f"{self.settings.prefix}/"):
            contents = await read_contents(self.bucket, key)
            assert contents is not None
            assert contents.file_path == key
            objects.append(contents)
        expected = [1, *(contents.last + 1 for contents in objects)]
        assert [contents.first for contents in objects] == expected[: len(objects)]
        return objects

    async def payloads(self) -> list[bytes]:
        """The `_payload` of every row; checks that each record of a submission occurs once."""
        rows: list[tuple[str, int, bytes]] = []
        for contents in await self.objects():
            head = await self.bucket.head(contents.file_path)
            assert head is not None
            table = pq.read_table(pa.BufferReader(await self.bucket.read(contents.file_path, 0, head.size)))
            assert table.num_rows == contents.records
            rows += [
                (row["_submission_id"], row["_record_index"], row["_payload"].encode()) for row in table.to_pylist()
            ]
        assert len({row[:2] for row in rows}) == len(rows)
        return [payload for _, _, payload in rows]


@pytest_asyncio.fixture
async def parts(
    settings: Settings,
    lane: Lane,
    queue: NatsQueue,
    bucket: S3Bucket,
    catalog: NatsCatalog,
    key_values: KeyValueStore,
    heard: Heard,
) -> Parts:
    return Parts(
        settings,
        lane,
        queue,
        bucket,
        catalog,
        lambda: NatsLock(key_values, lane, object().__repr__(), settings.lock_expiry_s),
        heard,
        limits(settings),
    )


# --- from the queue to the bucket


async def test_a_submission_becomes_an_object_when_it_is_old_enough(parts: Parts) -> None:
    """Rows, footer, catalog and identity agree; upload, delivery and records are counted once."""
    async with parts.running():
        submitted = await parts.submit(vehicle("a"), vehicle("b"))
        await until(parts.at(1))
    assert await parts.payloads() == [vehicle("a"), vehicle("b")]
    (contents,) = await parts.objects()
    position, _ = await parts.catalog.position(parts.lane)
    assert position.entry == entry_of(contents, position.totals)
    assert await parts.catalog.identity(submitted.id) == identities_of(contents)[0]
    count = parts.heard.count
    assert count("bronze.uploads", bronze_outcome="success", bronze_source="vehicles") == 1
    assert count("bronze.uploads", bronze_outcome="failure") == 0
    assert count("bronze.records", bronze_outcome="stored") == 2
    assert count("bronze.delivery.duration") == count("bronze.upload.duration") == 1
    assert count("messaging.client.consumed.messages") == count("messaging.process.duration") == 1
    assert count("bronze.consumer.errors") == 0


async def test_the_trace_of_each_submission_ends_at_its_object(parts: Parts) -> None:
    """Each has a process span, and the upload is a child of the oldest; all have the file path of the object."""
    first = submission(vehicle("a"), trace_id="1" * 32)
    second = submission(vehicle("b"), trace_id="2" * 32)
    for submitted in (first, second):
        await parts.queue.submit(parts.lane, submitted.accepted, submitted.checked, boot_time_s() + 10)
    async with parts.running():
        await until(parts.at(2))
    (contents,) = await parts.objects()
    process = parts.heard.spans("process bronze.vehicles")
    (upload,) = parts.heard.spans("upload vehicles")
    assert [span.kind for span in process] == [SpanKind.CONSUMER] * 2
    assert {f"{span.context.trace_id:032x}" for span in process if span.context} == {"1" * 32, "2" * 32}
    for span in [*process, upload]:
        assert span.attributes is not None
        assert span.attributes["bronze.file_path"] == contents.file_path
        assert span.status.is_ok or span.status.is_unset
    assert upload.context is not None
    assert contents.traceparent.split("-")[1:3] == [f"{upload.context.trace_id:032x}", f"{upload.context.span_id:016x}"]
    for name in ("encode parquet", "S3 PutObject"):
        (child,) = parts.heard.spans(name)
        assert child.parent is not None
        assert child.parent.span_id == upload.context.span_id
    (delivery,) = {point.attributes["bronze.source"] for point in parts.heard.points("bronze.delivery.duration")}
    assert delivery == "vehicles"


async def test_the_trace_of_an_upload_without_sampled_submissions_ends_at_its_object(parts: Parts) -> None:
    """It is a trace of its own with its children, and names the submissions, with the zeros of their ids."""
    traces = [f"{number:032x}" for number in (1, 2)]
    for trace_id in traces:
        submitted = submission(vehicle("a"), trace_id=trace_id, traceparent=f"00-{trace_id}-00000000000000aa-00")
        await parts.queue.submit(parts.lane, submitted.accepted, submitted.checked, boot_time_s() + 10)
    async with parts.running():
        await until(parts.at(2))
    (contents,) = await parts.objects()
    exemplars = [
        (f"{exemplar.trace_id:032x}", f"{exemplar.span_id:016x}")
        for name in ("bronze.upload.duration", "bronze.stage.duration")
        for point in parts.heard.points(name)
        for exemplar in point.exemplars
    ]
    assert not parts.heard.spans("process bronze.vehicles")
    (upload,) = parts.heard.spans("upload vehicles")
    assert upload.context is not None
    assert upload.attributes is not None
    assert upload.parent is None
    of_upload = (f"{upload.context.trace_id:032x}", f"{upload.context.span_id:016x}")
    assert tuple(contents.traceparent.split("-")[1:3]) == of_upload
    assert set(exemplars) == {of_upload}
    assert upload.attributes["bronze.submission_trace_id"] == tuple(traces)
    assert [f"{link.context.trace_id:032x}" for link in upload.links] == traces
    assert [stored.accepted.trace_id for stored in contents.submissions] == traces
    for name in ("encode parquet", "S3 PutObject"):
        (child,) = parts.heard.spans(name)
        assert child.parent == upload.context


async def test_messages_become_an_object_when_there_are_enough(parts: Parts) -> None:
    """Their number decides, not their age; the others wait."""
    for number in range(5):
        await parts.submit(vehicle(str(number)))
    async with replace(parts, limits=replace(LIMITS_WITH_HIGH_AGE, messages_max=2)).running():
        await until(parts.at(4))
    assert [(contents.first, contents.last) for contents in await parts.objects()] == [(1, 2), (3, 4)]


async def test_a_submission_larger_than_an_object_is_stored_in_several(parts: Parts) -> None:
    """Its identity lists all of them, and its delivery is recorded once, with its last part."""
    submitted = await parts.submit(*wide("a", 3))
    async with replace(parts, limits=replace(parts.limits, messages_max=1)).running():
        await until(parts.at(3))
    objects = await parts.objects()
    assert len(objects) == 3
    identity = await parts.catalog.identity(submitted.id)
    assert identity is not None
    assert (identity.parts_done, identity.parts) == (3, 3)
    assert identity.objects == [contents.file_path for contents in objects]
    assert sorted(await parts.payloads()) == wide("a", 3)
    assert parts.heard.count("bronze.delivery.duration") == 1


async def test_stored_messages_are_purged_except_for_the_anchor(parts: Parts) -> None:
    """When the catalog entry is older than the purge grace."""
    for number in range(3):
        await parts.submit(vehicle(str(number)))
    parts = replace(parts, purge_grace_s=0.5)
    async with parts.running():
        await until(parts.at(3))
    maintain = asyncio.create_task(parts.writer().maintain())

    async def purged() -> bool:
        return (await parts.queue.state(parts.lane)).first == 3

    try:
        await until(purged)
    finally:
        await cancelled(maintain)
    assert (await parts.queue.state(parts.lane)).messages == 1
    async with parts.running():
        await parts.submit(vehicle("3"))
        await until(parts.at(4))
    assert len(await parts.payloads()) == 4


async def test_a_consumer_that_wrote_nothing_reports_the_last_upload_of_its_lane(parts: Parts) -> None:
    """And how new its data is. From the catalog: at its start, and while another consumer writes. Before the first
    object there is no value.
    """

    def times() -> tuple[list[float], list[float]]:
        names = ("bronze.upload.last_success.time", "data.staleness.last_update.timestamp")
        uploaded, newest = ([point.value for point in parts.heard.points(name)] for name in names)
        return uploaded, newest

    maintain = asyncio.create_task(parts.writer().maintain())
    try:
        await until(lambda: bool(parts.heard.points("bronze.lane.position")))
        assert times() == ([], [])
        before_s = time.time()
        await parts.submit(vehicle("a"))
        async with parts.running():
            await until(parts.at(1))
        await until(lambda: all(times()))
        (uploaded,), (newest,) = times()
        assert before_s < newest < uploaded < time.time()
    finally:
        await cancelled(maintain)


async def test_the_values_of_each_object_are_counted_once_by_the_consumer_that_appended_it(parts: Parts) -> None:
    """Two consumers work on the lane, and one may append what the other wrote."""
    monitors = Monitors(SOURCES, parts.heard.telemetry.instruments)
    async with replace(parts, monitors=monitors).running(writers=2):
        for number in range(3):
            await parts.submit(vehicle(str(number)))
            await until(parts.at(number + 1))
    monitors.report()  # a writer counts an object after its entry can be read
    assert len(await parts.payloads()) == 3
    of_field = {"bronze_source": "vehicles", "bronze_field": "vehicle_id"}
    assert parts.heard.count("bronze.field.values", bronze_value="present", **of_field) == 3
    assert parts.heard.count("bronze.field.values", bronze_value="null", **of_field) == 0


# --- crashes and lost replies


class LosesReplies(S3Bucket):
    """A bucket that loses the answer to each successful write."""

    async def create(self, key: str, body: bytes, metadata: Mapping[str, str], content_type: str) -> bool:
        created = await super().create(key, body, metadata, content_type)
        if created:
            raise Unavailable(Outage.TIMEOUT, "the answer was lost")
        return created


async def test_a_reply_lost_after_the_write_stores_each_record_once(parts: Parts, heard: Heard) -> None:
    """The second attempt finds the key in use and continues from the object; a failure and a success are counted."""
    lossy = LosesReplies(parts.settings)
    try:
        async with replace(parts, bucket=lossy).running():
            await parts.submit(vehicle("a"))
            await until(parts.at(1))
            await parts.submit(vehicle("b"))
            await until(parts.at(2))
    finally:
        lossy.close()
    assert await parts.payloads() == [vehicle("a"), vehicle("b")]
    assert heard.count("bronze.uploads", bronze_outcome="success") == 2
    assert heard.count("bronze.uploads", bronze_outcome="failure", error_type="timeout") == 2
    assert heard.count("bronze.records", bronze_outcome="stored") == 2


class Refusing(S3Bucket):
    """A bucket that refuses a number of writes."""

    refusals = 2

    async def create(self, key: str, body: bytes, metadata: Mapping[str, str], content_type: str) -> bool:
        if self.refusals:
            self.refusals -= 1
            raise Unavailable(Outage.DENIED, "denied")
        return await super().create(key, body, metadata, content_type)


async def test_a_refused_write_is_retried_and_each_failure_is_counted(parts: Parts, heard: Heard) -> None:
    refusing = Refusing(parts.settings)
    try:
        async with replace(parts, bucket=refusing).running():
            await parts.submit(vehicle("a"))
            await until(parts.at(1))
    finally:
        refusing.close()
    assert await parts.payloads() == [vehicle("a")]
    assert heard.count("bronze.uploads", bronze_outcome="failure", error_type="denied") == 2
    assert heard.count("bronze.consumer.errors", bronze_step="put", error_type="denied") == 2
    assert heard.count("bronze.uploads", bronze_outcome="success") == 1


class Crash(BaseException):
    """The process was killed."""


@dataclass
class CrashesBeforeTheEntry:
    """A catalog whose caller is killed before it can append."""

    real: Catalog

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)

    async def append(self, lane: Lane, position: Position, contents: Contents) -> Position:
        raise Crash


async def test_the_consumer_after_a_crash_continues_from_the_existing_object(parts: Parts) -> None:
    """It would have cut later: the `last` of the object decides, and the other messages go into the next object."""
    await parts.submit(vehicle("a"))
    crashing = replace(parts, catalog=CrashesBeforeTheEntry(parts.catalog))  # type: ignore[arg-type]
    with pytest.raises(Crash):
        await crashing.writer()._write(asyncio.Event())
    assert await parts.position() == 0
    await parts.submit(vehicle("b"))
    async with parts.running():
        await until(parts.at(2))
    assert [(contents.first, contents.last) for contents in await parts.objects()] == [(1, 1), (2, 2)]
    assert await parts.payloads() == [vehicle("a"), vehicle("b")]


def without_totals(position: Position, stored: StoredObject) -> CatalogEntry:
    """The entry that an older consumer appends."""
    return entry_of(stored.contents)


async def test_totals_are_counted_where_an_older_consumer_appended_the_entries(
    parts: Parts, jetstream: JetStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if an older one runs again in between, as in a rolling upgrade that is undone."""
    await jetstream.publish(Outgoing(lane_subject("vehicles", 0, "x"), b"no headers", {}))
    for number in range(6):
        with monkeypatch.context() as older:
            if number in {0, 2, 4}:
                older.setattr(Position, "entry_after", without_totals)
            async with parts.running():
                await parts.submit(vehicle(f"{number}"))
                await until(parts.at(number + 2))
    position, _ = await parts.catalog.position(parts.lane)
    stored = [await read_object(parts.bucket, contents.file_path) for contents in await parts.objects()]
    assert position.totals == sum((one.totals for one in stored if one), Totals())
    assert position.totals is not None
    assert (position.totals.objects, position.totals.records) == (len(stored), 6)


async def test_an_object_that_was_deleted_counts_with_the_records_of_its_entry(
    parts: Parts, bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as older:
        older.setattr(Position, "entry_after", without_totals)
        async with parts.running():
            await parts.submit(vehicle("a"))
            await until(parts.at(1))
    (contents,) = await parts.objects()
    await asyncio.to_thread(bucket._s3.delete_object, Bucket=bucket.name, Key=contents.file_path)
    async with parts.running():
        await parts.submit(vehicle("b"))
        await until(parts.at(2))
    position, _ = await parts.catalog.position(parts.lane)
    assert position.totals is not None
    assert (position.totals.objects, position.totals.records) == (2, 2)
    assert f"{contents.file_path} is in the catalog, but not in the bucket" in caplog.text


async def test_a_restarted_consumer_continues_at_the_position(parts: Parts) -> None:
    for number in range(3):
        async with parts.running():
            await parts.submit(vehicle(str(number)))
            await until(parts.at(number + 1))
    assert await parts.payloads() == [vehicle(str(number)) for number in range(3)]


class NoLock:
    """A lock that every consumer gets."""

    attempt = Attempt()

    async def acquire(self) -> None: ...
    async def begin_decoding(self, attempt: Attempt) -> None: ...
    async def end_decoding(self) -> None: ...
    async def release(self) -> None: ...
    async def keep_alive(self) -> None:
        await asyncio.Event().wait()


async def test_two_writers_without_a_lock_cost_time_and_never_data(parts: Parts) -> None:
    """The lock only saves work: because of create-only and compare-and-set, each record is stored once."""
    sent = [vehicle(f"{number:02}") for number in range(30)]
    async with replace(parts, lock=NoLock, limits=replace(parts.limits, messages_max=3)).running(writers=3):
        for record in sent:
            await parts.submit(record)
        await until(parts.at(30))
    assert await parts.payloads() == sent


# --- duplicates and quarantine


async def test_a_duplicate_is_listed_and_not_stored_again(parts: Parts, heard: Heard) -> None:
    """Its subject was purged, so the queue accepted it again; its identity shows that it is stored."""
    async with parts.running():
        await parts.submit(vehicle("a"), key="k")
        await parts.submit(vehicle("b"))
        await until(parts.at(2))
        await parts.queue.purge_below(parts.lane, 2)
        late = await parts.submit(vehicle("a"), key="k")
        await until(parts.at(3))
    assert await parts.payloads() == [vehicle("a"), vehicle("b")]
    assert [duplicate.submission_id for duplicate in (await parts.objects())[-1].duplicates] == [late.id]
    identity = await parts.catalog.identity(late.id)
    assert identity is not None
    assert identity.first_sequence == 1
    assert heard.count("bronze.records", bronze_outcome="duplicate") == 1


async def test_another_body_under_the_key_of_a_stored_submission_is_quarantined(parts: Parts, heard: Heard) -> None:
    async with parts.running():
        await parts.submit(vehicle("a"), key="k")
        await parts.submit(vehicle("b"))
        await until(parts.at(2))
        await parts.queue.purge_below(parts.lane, 2)
        await parts.submit(vehicle("other"), key="k")
        await until(parts.at(3))
    assert await parts.payloads() == [vehicle("a"), vehicle("b")]
    (quarantined,) = (await parts.objects())[-1].quarantined
    assert await parts.bucket.read(quarantined.key, 0, 1_000) == vehicle("other")
    assert heard.count("bronze.records", bronze_outcome="quarantined") == 1


async def test_a_dead_letter_is_quarantined_byte_for_byte_and_delays_nothing(
    parts: Parts, jetstream: JetStream, heard: Heard
) -> None:
    poison = b"\x00\xff no JSON, no headers"
    await parts.submit(vehicle("a"))
    await jetstream.publish(Outgoing(lane_subject("vehicles", 0, "x"), poison, {"Custom": "kept"}))
    await parts.submit(vehicle("b"))
    async with parts.running():
        await until(parts.at(3))
    assert await parts.payloads() == [vehicle("a"), vehicle("b")]
    (quarantined,) = [message for contents in await parts.objects() for message in contents.quarantined]
    assert (quarantined.sequence, quarantined.headers) == (2, {"Custom": "kept"})
    assert await parts.bucket.read(quarantined.key, 0, 1_000) == poison
    head = await parts.bucket.head(quarantined.key)
    assert head is not None
    assert head.metadata["bronze-sequence"] == "2"
    assert heard.count("bronze.consumer.errors", bronze_step="encode", error_type="poison") == 1


class ClaimsExistence(S3Bucket):
    """A bucket that once says of a key under `quarantine/` that it exists, and has not written it."""

    claimed = False

    async def create(self, key: str, body: bytes, metadata: Mapping[str, str], content_type: str) -> bool:
        if key.startswith("quarantine/") and not self.claimed:
            self.claimed = True
            return False
        return await super().create(key, body, metadata, content_type)


async def test_a_dead_letter_is_written_although_the_bucket_says_that_it_exists(
    parts: Parts, jetstream: JetStream
) -> None:
    """The entry is not appended before its quarantined bytes are in the bucket."""
    claiming = ClaimsExistence(parts.settings)
    await jetstream.publish(Outgoing(lane_subject("vehicles", 0, "x"), b"no JSON", {}))
    try:
        async with replace(parts, bucket=claiming).running():
            await until(parts.at(1))
    finally:
        claiming.close()
    assert claiming.claimed
    (quarantined,) = [message for contents in await parts.objects() for message in contents.quarantined]
    assert await parts.bucket.read(quarantined.key, 0, 1_000) == b"no JSON"


@pytest.mark.parametrize("whole", [True, False], ids=["no records", "truncated"])
async def test_a_compressed_dead_letter_is_quarantined_decompressed_if_possible(
    parts: Parts, jetstream: JetStream, *, whole: bool
) -> None:
    """So its records can be read in quarantine; a payload that is not a zstd frame is stored unchanged."""
    inside = b"no JSON " * 1_000
    frame = zstandard.compress(inside)
    payload, stored = (frame, inside) if whole else (frame[:-1], frame[:-1])
    await jetstream.publish(Outgoing(lane_subject("vehicles", 0, "x"), payload, {HEADER_ENCODING: ZSTD}))
    async with parts.running():
        await until(parts.at(1))
    (quarantined,) = [message for contents in await parts.objects() for message in contents.quarantined]
    assert await parts.bucket.read(quarantined.key, 0, 10_000) == stored


async def test_the_size_of_an_object_is_limited_before_compression(parts: Parts) -> None:
    """Because decoding needs memory for the decompressed messages."""
    record = b'{"vehicle_id":"' + b"a" * 10_000 + b'"}'
    for _ in range(4):
        await parts.submit(record)
    waiting = await parts.queue.read(parts.lane, None)
    assert sum(len(message.payload) for message in waiting) < 1_000
    bounded = replace(parts, limits=replace(parts.limits, bytes_max=20_100))
    async with bounded.running():
        await until(parts.at(4))
    assert [contents.messages for contents in await parts.objects()] == [2, 2]


async def test_a_message_of_a_newer_format_waits_for_a_newer_consumer(
    parts: Parts, jetstream: JetStream, heard: Heard
) -> None:
    """The messages before it are stored; it and all later messages stay in the queue, and an error is counted."""
    await parts.submit(vehicle("a"))
    newer = {HEADER_FORMAT: str(FORMAT + 1)}
    await jetstream.publish(Outgoing(lane_subject("vehicles", 0, "x"), b"[]", newer))
    await parts.submit(vehicle("b"))
    async with parts.running():
        await until(lambda: heard.count("bronze.consumer.errors", error_type="unknown-format") > 0)
    assert await parts.position() == 1
    assert await parts.payloads() == [vehicle("a")]
    assert (await parts.queue.state(parts.lane)).messages == 3


# --- the ledger


def report_of(parts: Parts) -> LedgerReport:
    instruments = parts.heard.telemetry.instruments
    return LedgerReport(parts.catalog, parts.bucket, parts.queue, instruments, [parts.lane], ["vehicles", "status"])


class LacksHeaders:
    """A queue whose replica lacks all messages for a while."""

    lacks = True

    def __init__(self, queue: NatsQueue) -> None:
        self._queue = queue

    async def headers(self, lane: Lane, first: int) -> list[Header]:
        return [] if self.lacks else await self._queue.headers(lane, first)

    async def state(self, lane: Lane) -> StreamState:
        return await self._queue.state(lane)


def comparison_of(parts: Parts, jetstream: JetStream, **options: Any) -> Comparison:
    instruments = parts.heard.telemetry.instruments
    return Comparison(
        parts.catalog,
        parts.bucket,
        Feed(jetstream),
        instruments,
        ["vehicles", "status"],
        parts.settings.prefix,
        **options,
    )


def reported(heard: Heard, *outcomes: str) -> Mapping[str, float]:
    """The records of vehicles in the ledger, by outcome."""
    outcomes = outcomes or ("accepted", "stored", "duplicate", "quarantined", "rejected")
    return {
        outcome: heard.count("bronze.ledger.records", bronze_source="vehicles", bronze_outcome=outcome)
        for outcome in outcomes
    }


async def test_the_ledger_states_each_record_once_whatever_processes_remember(
    parts: Parts, jetstream: JetStream, heard: Heard
) -> None:
    """Records, a late duplicate, a dead letter, two consumers, one of which was killed."""
    await report_of(parts).report()
    assert heard.count("bronze.ledger.records", bronze_source="vehicles") == 0
    async with parts.running():
        await parts.submit(vehicle("a"), vehicle("b"), key="k")
        stored = await parts.submit(vehicle("c"))
        await until(parts.at(2))
        await parts.queue.purge_below(parts.lane, 2)
    crashing = replace(parts, lock=NoLock, catalog=CrashesBeforeTheEntry(parts.catalog))  # type: ignore[arg-type]
    await parts.submit(vehicle("a"), vehicle("b"), key="k")
    with pytest.raises(Crash):
        await crashing.writer()._write(asyncio.Event())
    message = await parts.queue.get(parts.lane, 2)
    assert message is not None
    headers = {name: value.replace(stored.id, submission(vehicle("d")).id) for name, value in message.headers.items()}
    await jetstream.publish(Outgoing(lane_subject("vehicles", 0, "x"), b"no JSON", headers))
    async with parts.running(writers=2):
        await until(parts.at(4))
    for _ in range(2):
        await report_of(parts).report()
    assert reported(heard) == {"accepted": 6, "stored": 3, "duplicate": 2, "quarantined": 1, "rejected": 0}
    objects = await parts.objects()
    assert heard.count("bronze.ledger.objects", bronze_source="vehicles") == len(objects)
    sizes = [head.size for one in objects if (head := await parts.bucket.head(one.file_path))]
    assert heard.count("bronze.ledger.bytes", bronze_source="vehicles") == sum(sizes)
    assert heard.count("bronze.ledger.objects", bronze_source="status") == 0


async def test_what_waits_is_accepted_and_a_new_process_knows_it(
    parts: Parts, jetstream: JetStream, heard: Heard
) -> None:
    """Submissions of one and of several messages, waiting, then stored, then purged; counted by a process that saw
    all of them, and by one that has just started.
    """
    seen = report_of(parts)
    await parts.submit(vehicle("a"), vehicle("b"), key="k")
    await parts.submit(*wide("c", 3))
    for report in (seen, report_of(parts)):
        await report.report()
        assert reported(heard, "accepted", "stored") == {"accepted": 5, "stored": 0}
    async with parts.running():
        await until(parts.at(4))
    await parts.queue.purge_below(parts.lane, 4)
    await parts.submit(vehicle("a"), vehicle("b"), key="k")
    await parts.submit(vehicle("d"))
    for report in (seen, report_of(parts)):
        await report.report()
        assert reported(heard, "accepted", "stored") == {"accepted": 8, "stored": 5}
    async with parts.running():
        await until(parts.at(6))
    for report in (seen, report_of(parts)):
        await report.report()
        assert reported(heard) == {"accepted": 8, "stored": 6, "duplicate": 2, "quarantined": 0, "rejected": 0}
    assert (await jetstream.api(f"STREAM.INFO.{parts.lane.stream}"))["state"]["consumer_count"] == 0


async def test_accepted_records_of_an_earlier_lane_stay_counted(
    parts: Parts, jetstream: JetStream, heard: Heard
) -> None:
    """After a change of the lanes, or the loss of the queue and a rebuild, a source has lanes without a stream."""
    async with parts.running():
        await parts.submit(vehicle("a"), vehicle("b"))
        await until(parts.at(1))
    await jetstream.delete_stream(parts.lane.stream)
    (new,) = await parts.queue.open(["vehicles"])
    assert new != parts.lane
    await replace(parts, lane=new).submit(vehicle("c"))
    await report_of(replace(parts, lane=new)).report()
    assert reported(heard, "accepted", "stored") == {"accepted": 3, "stored": 2}


async def test_nothing_is_reported_of_a_source_while_a_lane_cannot_be_read(
    parts: Parts, jetstream: JetStream, heard: Heard
) -> None:
    """Its first report is complete; after that, the lane counts as it was. A replica that lags changes nothing."""
    await parts.submit(vehicle("a"))
    lagging = replace(parts, queue=LacksHeaders(parts.queue))  # type: ignore[arg-type]
    report = report_of(lagging)
    await report.report()
    assert not [
        point for point in heard.points("bronze.ledger.records") if point.attributes["bronze.source"] == "vehicles"
    ]
    lagging.queue.lacks = False  # type: ignore[attr-defined]
    await report.report()
    assert reported(heard, "accepted") == {"accepted": 1}
    lagging.queue.lacks = True  # type: ignore[attr-defined]
    await parts.submit(vehicle("b"))
    await report.report()
    assert reported(heard, "accepted") == {"accepted": 1}
    lagging.queue.lacks = False  # type: ignore[attr-defined]
    await report.report()
    assert reported(heard, "accepted") == {"accepted": 2}


async def test_a_message_that_was_lost_does_not_end_the_count(parts: Parts, jetstream: JetStream, heard: Heard) -> None:
    for number in range(3):
        await parts.submit(vehicle(str(number)))
    for lost in (2, 3):
        await jetstream.api(f"STREAM.MSG.DELETE.{parts.lane.stream}", {"seq": lost})
    await parts.submit(vehicle("d"))
    await report_of(parts).report()
    assert reported(heard, "accepted") == {"accepted": 2}


async def test_an_object_that_is_deleted_is_missing_and_named(
    parts: Parts, bucket: S3Bucket, jetstream: JetStream, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    """And one that is older than two hours is not looked for."""
    for number in range(3):
        async with parts.running():
            await parts.submit(vehicle(str(number)))
            await until(parts.at(number + 1))
    later = timedelta(0)
    comparison = comparison_of(parts, jetstream, now=lambda: datetime.now(UTC) + later)
    await comparison.compare()
    assert heard.count("bronze.missing.objects") == 0
    key = (await parts.objects())[0].file_path
    await asyncio.to_thread(bucket._s3.delete_object, Bucket=bucket.name, Key=key)
    for _ in range(2):
        await comparison.compare()
    assert heard.count("bronze.missing.objects", bronze_source="vehicles") == 1
    assert caplog.text.count(f"{key} is in the catalog, but not in the bucket") == 1
    later = timedelta(hours=3)
    await comparison.compare()
    assert heard.count("bronze.missing.objects") == 0


async def test_an_old_or_truncated_object_is_found_by_the_comparison_of_all(
    parts: Parts, bucket: S3Bucket, jetstream: JetStream, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    """However old it is; it is no longer missing once it is back, or has a removal record."""
    for number in range(4):
        async with parts.running():
            await parts.submit(vehicle(str(number)))
            await until(parts.at(number + 1))
    comparison = comparison_of(parts, jetstream, now=lambda: datetime.now(UTC) + timedelta(days=1))
    await comparison.compare_all()
    await comparison.compare()
    assert heard.count("bronze.missing.objects") == 0
    assert heard.count("bronze.missing.compared.time") > time.time()
    lost, cut, _, removed = [contents.file_path for contents in await parts.objects()]
    head = await bucket.head(cut)
    assert head is not None
    whole = await bucket.read(cut, 0, head.size)
    s3 = bucket._s3
    for key in (lost, removed):
        await asyncio.to_thread(s3.delete_object, Bucket=bucket.name, Key=key)
    await asyncio.to_thread(s3.put_object, Bucket=bucket.name, Key=cut, Body=whole[:-1])
    for _ in range(2):
        await comparison.compare_all()
        await comparison.compare()
    assert heard.count("bronze.missing.objects", bronze_source="vehicles") == 3
    assert caplog.text.count(f"{lost} is in the catalog, but not in the bucket") == 1
    assert caplog.text.count(f"{cut} has {head.size - 1} bytes in the bucket, but {head.size} in the catalog") == 1
    new = comparison_of(parts, jetstream)
    await new.compare()
    assert heard.count("bronze.missing.objects", bronze_source="vehicles") == 3
    await asyncio.to_thread(s3.put_object, Bucket=bucket.name, Key=cut, Body=whole)
    await comparison.compare()
    assert heard.count("bronze.missing.objects", bronze_source="vehicles") == 2


async def test_an_object_with_a_removal_record_is_not_missing(
    parts: Parts, bucket: S3Bucket, jetstream: JetStream, heard: Heard
) -> None:
    """From the first comparison after the record on; another object without a record still is."""
    for number in range(3):
        async with parts.running():
            await parts.submit(vehicle(str(number)))
            await until(parts.at(number + 1))
    removed, kept, lost = await parts.objects()
    for contents in (removed, lost):
        await asyncio.to_thread(bucket._s3.delete_object, Bucket=bucket.name, Key=contents.file_path)
    comparison = comparison_of(parts, jetstream)
    await comparison.compare()
    assert heard.count("bronze.missing.objects", bronze_source="vehicles") == 2
    for contents in (removed, kept):  # the record is created before the object is deleted
        await write_removal(bucket, parts.settings.prefix, factories.removal(contents))
    await comparison.compare()
    assert heard.count("bronze.missing.objects", bronze_source="vehicles") == 1


async def test_a_message_that_is_missing_in_the_queue_is_counted(
    parts: Parts, jetstream: JetStream, heard: Heard
) -> None:
    for number in range(3):
        await parts.submit(vehicle(str(number)))
    await jetstream.api(f"STREAM.MSG.DELETE.{parts.lane.stream}", {"seq": 2})
    maintain = asyncio.create_task(parts.writer().maintain())
    await until(lambda: heard.count("bronze.missing.messages", bronze_source="vehicles", bronze_lane="0") == 1)
    await cancelled(maintain)


# --- a queue that was rolled back


async def assert_halted(task: asyncio.Task[None], heard: Heard) -> None:
    """Check that the lane halted, and that this was counted."""
    await until(task.done)
    assert task.exception() is None
    assert heard.count("bronze.consumer.errors", error_type="halted") == 1


async def test_a_lane_whose_queue_lost_the_anchor_halts_while_it_runs(
    parts: Parts, jetstream: JetStream, heard: Heard
) -> None:
    """Also if no new message arrives that would show it."""
    async with parts.running() as (task,):
        await parts.submit(vehicle("a"))
        await until(parts.at(1))
        await jetstream.api(f"STREAM.PURGE.{parts.lane.stream}")
        await assert_halted(task, heard)
    assert await parts.payloads() == [vehicle("a")]


async def test_a_lane_halts_at_its_start_if_the_bucket_has_later_objects(
    parts: Parts, nats: Process, jetstream: JetStream, heard: Heard, tmp_path: Path
) -> None:
    """Queue and catalog were restored from the same backup: only the bucket has the objects that were written later.

    To continue would give the sequences of stored messages to other messages, which would then be lost.
    """
    async with parts.running():
        await parts.submit(vehicle("a"))
        await until(parts.at(1))
    state, backup = tmp_path / "nats", tmp_path / "backup"
    await asyncio.to_thread(nats.stop)
    shutil.copytree(state, backup)
    await asyncio.to_thread(nats.restart)
    await until(lambda: jetstream.connected)
    async with parts.running():
        await parts.submit(vehicle("b"))
        await until(parts.at(2))
    await asyncio.to_thread(nats.stop)
    shutil.rmtree(state)
    shutil.copytree(backup, state)
    await asyncio.to_thread(nats.restart)
    await until(lambda: jetstream.connected)
    assert await parts.position() == 1
    async with parts.running() as (task,):
        await assert_halted(task, heard)
    assert await parts.payloads() == [vehicle("a"), vehicle("b")]
    assert (await parts.queue.state(parts.lane)).messages == 1
