"""The catalog made anew from the bucket alone, on real servers: the same as before, whoever writes meanwhile."""

import asyncio
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
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


def nothing() -> None: ...


async def rebuild(parts: Parts, lanes: Sequence[Lane], now_s: float | None = None) -> BucketContents:
    """As the command does it."""
    found = BucketContents()
    again = Rebuild(parts.bucket, parts.settings.prefix, nothing)
    with tempfile.TemporaryFile() as spool:
        await again.look(spool, found)
        await again.run(
            CatalogReplacement(parts.jetstream, KeyValueStore(parts.jetstream, 1), parts.settings),
            spool,
            found,
            now_s or time.time(),
        )
        await again.compare(parts.queue(len(lanes)), lanes, found)
    return found


async def opened_anew(parts: Parts) -> Parts:
    """As a role that was started anew has them."""
    return replace(
        parts, catalog=await NatsCatalog.open(parts.jetstream, KeyValueStore(parts.jetstream, 1), parts.settings)
    )


async def look(parts: Parts) -> BucketContents:
    found = BucketContents()
    await Rebuild(parts.bucket, parts.settings.prefix, nothing).look(BytesIO(), found)
    return found


async def held(parts: Parts, ids: Sequence[str]) -> tuple[list[CatalogEntry], dict[str, Identity | None]]:
    """What the catalog that roles open now says: every entry, by lane in order, and these submissions' identities."""
    catalog = await NatsCatalog.open(parts.jetstream, KeyValueStore(parts.jetstream, 1), parts.settings)
    entries, following = [], 1
    while read := await parts.jetstream.read(catalog._stream, following, messages_max=4_000, bytes_max=2**26):
        entries += [
            msgspec.json.decode(one.payload, type=CatalogEntry) for one in read if one.subject.startswith("catalog.")
        ]
        following = read[-1].sequence + 1
    entries.sort(key=lambda entry: (entry.epoch, entry.lane))  # stable: a lane's stay in order
    return entries, {one: await catalog.identity(one) for one in ids}


async def store(parts: Parts, lanes: Sequence[Lane], numbers: Sequence[int]) -> list[str]:
    """Submissions of one and of several messages, some with a key; returns their ids once they are in the bucket."""
    ids = []
    for number in numbers:
        records = wide(f"wide {number}", 3) if number % 4 == 0 else [vehicle(str(number))]
        one = submission(*records, key=f"key {number}" if number % 2 else None)
        await parts.submit(lanes, one)
        ids.append(one.id)

    await until(lambda: all_stored(parts, ids))
    return ids


async def all_stored(parts: Parts, ids: Sequence[str]) -> bool:
    found = [await parts.catalog.identity(one) for one in ids]
    return all(one is not None and one.parts_done == one.parts for one in found)


async def test_a_rebuilt_catalog_says_what_the_old_one_said(parts: Parts) -> None:
    """Entries and identities of every epoch, in each lane's order; consumers go on from it, without a gap."""
    two = await parts.open(2)
    async with parts.consuming(two):
        ids = await store(parts, two, range(12))
        await parts.change(1).run()
    one = await parts.open(1)
    async with parts.consuming(one):
        ids += await store(parts, one, range(12, 16))
    before = await held(parts, ids)
    found = await rebuild(parts, one)
    assert await held(parts, ids) == before
    assert (found.objects, found.submissions, found.warnings) == (len(before[0]), len(ids), [])
    assert found.identities >= len(ids)
    parts = await opened_anew(parts)
    async with parts.consuming(one):
        ids += await store(parts, one, range(16, 20))
    assert set(await parts.stored()) == set(ids)
    assert (await look(parts)).submissions == len(ids)


async def test_consumers_that_run_meanwhile_end_and_what_they_wrote_is_in_the_catalog(parts: Parts) -> None:
    """They write on between the first look at the bucket and the replacement, and none of it is lost or doubled."""
    lanes = await parts.open(2)
    ids: list[str] = []
    stop = asyncio.Event()

    async def send() -> None:
        while not stop.is_set():
            one = submission(vehicle(str(len(ids))))
            ids.append(one.id)
            await parts.submit(lanes, one)

    sending = asyncio.create_task(send())
    async with parts.consuming(lanes) as consumer:
        await until(lambda: at_least(parts, 5))
        found = BucketContents()
        again = Rebuild(parts.bucket, parts.settings.prefix, nothing)
        with tempfile.TemporaryFile() as spool:
            await again.look(spool, found)
            seen = found.objects
            await until(lambda: at_least(parts, seen + 5))
            await again.run(
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
    parts = await opened_anew(parts)
    async with parts.consuming(lanes):
        await until(lambda: all_stored(parts, ids))
    assert await parts.stored() == sorted(ids)
    entries, _ = await held(parts, [])
    assert len(entries) == (await look(parts)).objects


async def at_least(parts: Parts, objects: int) -> bool:
    return len([key async for key in parts.bucket.keys(f"{parts.settings.prefix}/")]) >= objects


class Cut(Exception):
    """The command was killed here."""


class CutShort(JetStream):
    """A connection of a command that is killed before its so-manieth act."""

    left = 100

    async def _act(self) -> None:
        if not self.left:
            raise Cut
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

    async def update_stream(self, stream: str, **changes: object) -> None:
        await self._act()
        await super().update_stream(stream, **changes)


async def test_a_rebuild_that_was_cut_short_anywhere_is_finished_by_the_next(parts: Parts) -> None:
    """No role takes half a catalog, or makes an empty one; it waits, and says for what."""
    lanes = await parts.open(1)
    async with parts.consuming(lanes):
        ids = await store(parts, lanes, range(4))
    before = await held(parts, ids)
    refused = 0
    for acts in range(100):
        short = await CutShort.connect(parts.settings.nats_url)
        short.left = acts
        try:
            await rebuild(replace(parts, jetstream=short), lanes)
        except Cut:
            try:
                assert await held(parts, ids) == before
            except Unavailable as error:
                assert "run it again" in str(error)  # noqa: PT017 - either is right
                refused += 1
        else:
            break
        finally:
            await short.close()
        await rebuild(parts, lanes)
        assert await held(parts, ids) == before
    assert refused >= 3


@pytest.mark.parametrize("missing", ["first", "middle"])
async def test_a_chain_with_a_gap_is_not_made_a_catalog_of(parts: Parts, missing: str) -> None:
    """What an object that is gone held is lost, and that is said; only at a chain's beginning may retention do it."""
    lanes = await parts.open(1)
    async with parts.consuming(lanes):
        for number in range(3):
            await store(parts, lanes, [2 * number + 1])
    before = await held(parts, [])
    keys = [entry.file_path for entry in before[0]]
    gone = keys[0 if missing == "first" else 1]
    await asyncio.to_thread(parts.bucket._s3.delete_object, Bucket=parts.bucket.name, Key=gone)
    if missing == "first":
        found = await rebuild(parts, lanes)
        assert "begins at message 2" in found.warnings[0]
        assert [entry.file_path for entry in (await held(parts, []))[0]] == keys[1:]
    else:
        with pytest.raises(Halted, match="messages 2 to 2 are in no object"):
            await rebuild(parts, lanes)
        assert await held(parts, []) == before


async def test_an_object_that_was_copied_is_told(parts: Parts) -> None:
    lanes = await parts.open(1)
    async with parts.consuming(lanes):
        await store(parts, lanes, [1])
    ((entry,), _) = await held(parts, [])
    copy = entry.file_path.replace(f"{1:012}", f"{2:012}")
    source = f"{parts.bucket.name}/{entry.file_path}"
    await asyncio.to_thread(parts.bucket._s3.copy_object, Bucket=parts.bucket.name, Key=copy, CopySource=source)
    with pytest.raises(Halted, match="moved, or copied"):
        await look(parts)


async def test_identities_whose_time_is_over_are_not_there_again(parts: Parts) -> None:
    lanes = await parts.open(1)
    async with parts.consuming(lanes):
        unkeyed, keyed = await store(parts, lanes, [2, 3])
    await rebuild(parts, lanes, time.time() + UNKEYED_S + 60)
    _, identities = await held(parts, [unkeyed, keyed])
    assert [identities[one] is not None for one in (unkeyed, keyed)] == [False, True]
    await rebuild(parts, lanes, time.time() + KEYED_S + 60)
    assert (await held(parts, [keyed]))[1] == {keyed: None}


async def test_a_lane_that_will_stop_is_named(parts: Parts) -> None:
    """The bucket lacks the end of its chain, which the queue holds no more."""
    lanes = await parts.open(1)
    async with parts.consuming(lanes):
        await store(parts, lanes, [1])
        await store(parts, lanes, [3])
    await parts.queue(1).purge_below(lanes[0], 2)
    last = (await held(parts, []))[0][-1].file_path
    await asyncio.to_thread(parts.bucket._s3.delete_object, Bucket=parts.bucket.name, Key=last)
    found = await rebuild(parts, lanes)
    (warning,) = found.warnings
    assert f"{lanes[0].stream} will stop" in warning


async def test_the_catalog_of_another_bucket_is_left_alone(parts: Parts) -> None:
    other = parts.settings.model_copy(update={"bucket": "another"})
    with pytest.raises(Misconfigured, match=r"'bronze.bucket': 'bronze.*'another'"):
        await CatalogReplacement(parts.jetstream, KeyValueStore(parts.jetstream, 1), other).start()
    with pytest.raises(Misconfigured, match=r"'bronze.bucket': 'bronze.*'another'.*BRONZE_BUCKET"):
        await NatsCatalog.open(parts.jetstream, KeyValueStore(parts.jetstream, 1), other)
