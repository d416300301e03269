"""The catalog is rebuilt from the bucket, on real servers: it is the same as before, also if consumers write."""

import asyncio
import tempfile
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from typing import Any

import msgspec
import pytest

from bronze.admin.rebuild_catalog import BucketContents, Rebuild
from bronze.errors import Gone, Halted, Misconfigured, Unavailable
from bronze.protocol.documents import CatalogEntry, Identity
from bronze.protocol.lane import Lane
from bronze.servers.catalog import KEYED_S, UNKEYED_S, NatsCatalog
from bronze.servers.catalog_rebuild import CatalogReplacement
from bronze.servers.jetstream import JetStream, Outgoing
from bronze.servers.key_value import KeyValueStore
from local.machine import limit_s
from tests.contract.making import submission, until, vehicle, wide
from tests.contract.test_lanes import Parts, parts

__all__ = ["parts"]


def no_progress() -> None: ...


async def rebuild(parts: Parts, lanes: Sequence[Lane], now_s: float | None = None) -> BucketContents:
    """Rebuild the catalog as the command does."""
    found = BucketContents()
    command = Rebuild(parts.bucket, parts.settings.prefix, no_progress)
    with tempfile.TemporaryFile() as spool:
        await command.read_bucket(spool, found)
        await command.run(
            CatalogReplacement(parts.jetstream, KeyValueStore(parts.jetstream, 1), parts.settings),
            spool,
            found,
            now_s or time.time(),
        )
        await command.compare(parts.queue(len(lanes)), lanes, found)
    return found


async def reopened(parts: Parts) -> Parts:
    """The parts of a role that was restarted: with the new catalog."""
    return replace(
        parts, catalog=await NatsCatalog.open(parts.jetstream, KeyValueStore(parts.jetstream, 1), parts.settings)
    )


async def read_bucket(parts: Parts) -> BucketContents:
    found = BucketContents()
    await Rebuild(parts.bucket, parts.settings.prefix, no_progress).read_bucket(BytesIO(), found)
    return found


async def catalog_contents(parts: Parts, ids: Sequence[str]) -> tuple[list[CatalogEntry], dict[str, Identity | None]]:
    """The entries of the catalog that roles open now, in the order of each lane, and the identities of submissions."""
    catalog = await NatsCatalog.open(parts.jetstream, KeyValueStore(parts.jetstream, 1), parts.settings)
    entries, following = [], 1
    while read := await parts.jetstream.read(catalog.stream, following, messages_max=4_000, bytes_max=2**26):
        entries += [
            msgspec.json.decode(message.payload, type=CatalogEntry)
            for message in read
            if message.subject.startswith("catalog.")
        ]
        following = read[-1].sequence + 1
    entries.sort(key=lambda entry: (entry.epoch, entry.lane))  # stable: the entries of a lane stay in order
    return entries, {submission_id: await catalog.identity(submission_id) for submission_id in ids}


async def store(parts: Parts, lanes: Sequence[Lane], numbers: Sequence[int]) -> list[str]:
    """Submit one or several messages each, some with a key; returns the ids when all are in the bucket."""
    ids = []
    for number in numbers:
        records = wide(f"wide {number}", 3) if number % 4 == 0 else [vehicle(str(number))]
        submitted = submission(*records, key=f"key {number}" if number % 2 else None)
        await parts.submit(lanes, submitted)
        ids.append(submitted.id)

    await until(lambda: all_stored(parts, ids))
    return ids


async def all_stored(parts: Parts, ids: Sequence[str]) -> bool:
    identities = [await parts.catalog.identity(submission_id) for submission_id in ids]
    return all(identity is not None and identity.parts_done == identity.parts for identity in identities)


async def test_a_rebuilt_catalog_equals_the_old_one(parts: Parts) -> None:
    """It has the entries and identities of every epoch, in the order of each lane; consumers continue without a gap."""
    two_lanes = await parts.open(2)
    async with parts.consuming(two_lanes):
        ids = await store(parts, two_lanes, range(12))
        await parts.change(1).run()
    one_lane = await parts.open(1)
    async with parts.consuming(one_lane):
        ids += await store(parts, one_lane, range(12, 16))
    before = await catalog_contents(parts, ids)
    found = await rebuild(parts, one_lane)
    assert await catalog_contents(parts, ids) == before
    assert (found.objects, found.submissions, found.warnings) == (len(before[0]), len(ids), [])
    assert found.identities >= len(ids)
    parts = await reopened(parts)
    async with parts.consuming(one_lane):
        ids += await store(parts, one_lane, range(16, 20))
    assert set(await parts.stored()) == set(ids)
    assert (await read_bucket(parts)).submissions == len(ids)


async def test_running_consumers_end_and_their_objects_are_in_the_catalog(parts: Parts) -> None:
    """They write between the first read of the bucket and the replacement; nothing is lost or stored twice."""
    lanes = await parts.open(2)
    ids: list[str] = []
    stop = asyncio.Event()

    async def send() -> None:
        while not stop.is_set():
            submitted = submission(vehicle(str(len(ids))))
            ids.append(submitted.id)
            await parts.submit(lanes, submitted)

    sending = asyncio.create_task(send())
    async with parts.consuming(lanes) as consumer:
        await until(lambda: at_least(parts, 5))
        found = BucketContents()
        command = Rebuild(parts.bucket, parts.settings.prefix, no_progress)
        with tempfile.TemporaryFile() as spool:
            await command.read_bucket(spool, found)
            seen = found.objects
            await until(lambda: at_least(parts, seen + 5))
            await command.run(
                CatalogReplacement(parts.jetstream, KeyValueStore(parts.jetstream, 1), parts.settings),
                spool,
                found,
                time.time(),
            )
        async with asyncio.timeout(limit_s(10)):
            with pytest.raises(Gone, match="restart this process"):
                await consumer
    stop.set()
    await sending
    assert found.objects >= seen + 5
    parts = await reopened(parts)
    async with parts.consuming(lanes):
        await until(lambda: all_stored(parts, ids))
    assert await parts.stored() == sorted(ids)
    entries, _ = await catalog_contents(parts, [])
    assert len(entries) == (await read_bucket(parts)).objects


async def at_least(parts: Parts, objects: int) -> bool:
    return len([key async for key in parts.bucket.keys(f"{parts.settings.prefix}/")]) >= objects


class Killed(Exception):
    """The command was killed."""


class KilledAfter(JetStream):
    """A connection whose command is killed after a number of writes."""

    left = 100

    async def _act(self) -> None:
        if not self.left:
            raise Killed
        self.left -= 1

    async def publish(self, message: Outgoing) -> int:
        await self._act()
        return await super().publish(message)

    async def publish_batch(self, messages: Iterable[Outgoing], count: int, **options: Any) -> int:
        await self._act()
        return await super().publish_batch(messages, count, **options)

    async def delete_stream(self, stream: str) -> None:
        await self._act()
        await super().delete_stream(stream)

    async def create_stream(self, config: Mapping[str, Any]) -> None:
        await self._act()
        await super().create_stream(config)

    async def update_stream(self, stream: str, **changes: object) -> bool:
        await self._act()
        return await super().update_stream(stream, **changes)


async def test_a_rebuild_that_was_killed_at_any_step_is_finished_by_the_next(parts: Parts) -> None:
    """No role uses an incomplete catalog or creates an empty one; it waits, and its error says why."""
    lanes = await parts.open(1)
    async with parts.consuming(lanes):
        ids = await store(parts, lanes, range(4))
    before = await catalog_contents(parts, ids)
    refused = 0
    for acts in range(100):
        killed = await KilledAfter.connect(parts.settings.queue_servers)
        killed.left = acts
        try:
            await rebuild(replace(parts, jetstream=killed), lanes)
        except Killed:
            try:
                assert await catalog_contents(parts, ids) == before
            except Unavailable as error:
                assert "run it again" in str(error)  # noqa: PT017 - both outcomes are correct
                refused += 1
        else:
            break
        finally:
            await killed.close()
        await rebuild(parts, lanes)
        assert await catalog_contents(parts, ids) == before
    assert refused >= 3


class ReplacedInABatch(JetStream):
    """A connection of a command beside another one, which replaces the catalog between two messages of its batch."""

    replacing: Coroutine[Any, Any, None] | None = None

    async def publish_batch(self, messages: Iterable[Outgoing], count: int, **options: Any) -> int:
        return await super().publish_batch(self._interrupted(messages), count, **options)

    def _interrupted(self, messages: Iterable[Outgoing]) -> Iterator[Outgoing]:
        for number, message in enumerate(messages):
            if number == 1 and self.replacing:
                with ThreadPoolExecutor() as other_loop:
                    other_loop.submit(asyncio.run, self.replacing).result()
            yield message


async def test_a_rebuild_that_another_one_overtakes_says_so(parts: Parts) -> None:
    """Also if its batch was open at that moment: the server says only that the batch is incomplete."""
    lanes = await parts.open(1)
    async with parts.consuming(lanes):
        await store(parts, lanes, range(2))

    async def replace_catalog() -> None:
        other = await JetStream.connect(parts.settings.queue_servers)
        await CatalogReplacement(other, KeyValueStore(other, 1), parts.settings).start()
        await other.close()

    overtaken = await ReplacedInABatch.connect(parts.settings.queue_servers)
    overtaken.replacing = replace_catalog()
    with pytest.raises(Gone, match="was replaced"):
        await rebuild(replace(parts, jetstream=overtaken), lanes)
    await overtaken.close()


@pytest.mark.parametrize("missing", ["first", "middle"])
async def test_a_chain_with_a_gap_stops_the_rebuild(parts: Parts, missing: str) -> None:
    """The records of a deleted object are lost, and that is reported; at the beginning of a chain, it is a warning."""
    lanes = await parts.open(1)
    async with parts.consuming(lanes):
        for number in range(3):
            await store(parts, lanes, [2 * number + 1])
    before = await catalog_contents(parts, [])
    keys = [entry.file_path for entry in before[0]]
    deleted = keys[0 if missing == "first" else 1]
    await asyncio.to_thread(parts.bucket._s3.delete_object, Bucket=parts.bucket.name, Key=deleted)
    if missing == "first":
        found = await rebuild(parts, lanes)
        assert "begins at message 2" in found.warnings[0]
        assert [entry.file_path for entry in (await catalog_contents(parts, []))[0]] == keys[1:]
    else:
        with pytest.raises(Halted, match=r"messages 2 to 2 are in no object\..*Put back what was deleted"):
            await rebuild(parts, lanes)
        assert await catalog_contents(parts, []) == before


async def test_a_copied_object_is_reported(parts: Parts) -> None:
    lanes = await parts.open(1)
    async with parts.consuming(lanes):
        await store(parts, lanes, [1])
    ((entry,), _) = await catalog_contents(parts, [])
    copy = entry.file_path.replace(f"{1:012}", f"{2:012}")
    source = f"{parts.bucket.name}/{entry.file_path}"
    await asyncio.to_thread(parts.bucket._s3.copy_object, Bucket=parts.bucket.name, Key=copy, CopySource=source)
    with pytest.raises(Halted, match="moved, or copied"):
        await read_bucket(parts)


async def test_expired_identities_are_not_rebuilt(parts: Parts) -> None:
    lanes = await parts.open(1)
    async with parts.consuming(lanes):
        unkeyed, keyed = await store(parts, lanes, [2, 3])
    await rebuild(parts, lanes, time.time() + UNKEYED_S + 60)
    _, identities = await catalog_contents(parts, [unkeyed, keyed])
    assert [identities[submission_id] is not None for submission_id in (unkeyed, keyed)] == [False, True]
    await rebuild(parts, lanes, time.time() + KEYED_S + 60)
    assert (await catalog_contents(parts, [keyed]))[1] == {keyed: None}


async def test_a_lane_that_will_halt_is_reported(parts: Parts) -> None:
    """The bucket lacks the end of its chain, and the queue has purged it."""
    lanes = await parts.open(1)
    async with parts.consuming(lanes):
        await store(parts, lanes, [1])
        await store(parts, lanes, [3])
    await parts.queue(1).purge_below(lanes[0], 2)
    last = (await catalog_contents(parts, []))[0][-1].file_path
    await asyncio.to_thread(parts.bucket._s3.delete_object, Bucket=parts.bucket.name, Key=last)
    found = await rebuild(parts, lanes)
    (warning,) = found.warnings
    assert f"{lanes[0].stream} will halt" in warning


async def test_the_catalog_of_another_bucket_is_not_changed(parts: Parts) -> None:
    other = parts.settings.model_copy(update={"bucket": "another"})
    with pytest.raises(Misconfigured, match=r"BRONZE_BUCKET is 'bronze.*' for .*'another'"):
        await CatalogReplacement(parts.jetstream, KeyValueStore(parts.jetstream, 1), other).start()
    with pytest.raises(Misconfigured, match=r"BRONZE_BUCKET is 'bronze.*' for .*'another'.*BRONZE_BUCKET"):
        await NatsCatalog.open(parts.jetstream, KeyValueStore(parts.jetstream, 1), other)
