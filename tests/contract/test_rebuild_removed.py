"""The catalog is rebuilt although objects are gone, if removal records cover them; on real servers."""

from dataclasses import replace

import msgspec
import pytest

from bronze.consumer.ledger import Comparison
from bronze.errors import Halted, Unavailable
from bronze.objects.reader import read_object
from bronze.objects.removals import write_removal
from bronze.protocol.documents import CatalogEntry
from bronze.servers.catalog import NatsCatalog
from bronze.servers.catalog_feed import Feed
from tests import factories
from tests.contract.making import Heard
from tests.contract.test_lanes import Parts, parts
from tests.contract.test_objects_command import acknowledge, damage, delete, stored
from tests.contract.test_rebuild import (
    Killed,
    KilledAfter,
    all_stored,
    catalog_contents,
    read_bucket,
    rebuild,
    reopened,
    store,
)

__all__ = ["parts"]


async def announced(parts: Parts) -> set[str]:
    """The subjects of the removal records on the feed of the catalog that roles open now."""
    return await (await reopened(parts)).catalog.announced()


@pytest.mark.parametrize("removed", [[0], [1, 2], [3], [0, 3], [0, 1, 2, 3]], ids=str)
async def test_a_rebuilt_catalog_equals_the_one_before_the_objects_were_removed(
    parts: Parts, removed: list[int]
) -> None:
    """Entries, totals and identities, whether the objects are at the beginning, in the middle or at the end.

    The consumers continue after the last object, also if it is gone and the queue still has its messages: nothing is
    stored twice.
    """
    lanes, keys, ids = await stored(parts, 4)
    before = await catalog_contents(parts, ids)
    assert all(before[1].values())
    gone = [keys[number] for number in removed]
    await delete(parts, *gone)
    assert await acknowledge(parts, *gone) == 0
    records = await announced(parts)
    found = await rebuild(parts, lanes)
    assert await catalog_contents(parts, ids) == before
    assert (found.objects, found.removed, found.warnings) == (4 - len(gone), len(gone), [])
    assert await announced(parts) == records
    parts = await reopened(parts)
    async with parts.consuming(lanes):
        later = await store(parts, lanes, [9])
    assert await parts.stored() == sorted([*(ids[n] for n in range(4) if n not in removed), *later])
    entries, _ = await catalog_contents(parts, [])
    last = entries[-1]
    assert last.first == before[0][-1].last + 1
    there = await read_object(parts.bucket, last.file_path)
    assert there is not None
    assert before[0][-1].totals is not None
    assert last.totals == before[0][-1].totals + there.totals


async def test_without_a_removal_record_the_rebuild_refuses_and_says_what_to_do(parts: Parts) -> None:
    """Also if records cover only a part of the gap."""
    lanes, keys, _ = await stored(parts, 5)
    before = await catalog_contents(parts, [])
    await delete(parts, keys[1], keys[2], keys[3])
    lane = f"vehicles.0.{lanes[0].epoch}"
    with pytest.raises(Halted, match=rf"are in no object.*acknowledge --messages {lane}:2-4 --reason"):
        await rebuild(parts, lanes)
    assert await acknowledge(parts, keys[1]) == 0
    with pytest.raises(Halted, match=rf"{keys[4]} begins at message 5.*acknowledge --messages {lane}:3-4 --reason"):
        await rebuild(parts, lanes)
    assert await acknowledge(parts, keys[3]) == 0
    with pytest.raises(Halted, match=rf"acknowledge --messages {lane}:3-4 --reason"):
        await rebuild(parts, lanes)
    assert await catalog_contents(parts, []) == before
    assert await acknowledge(parts, keys[2]) == 0
    await rebuild(parts, lanes)
    assert await catalog_contents(parts, []) == before


async def test_a_gap_before_a_removed_object_at_the_end_is_found(parts: Parts) -> None:
    lanes, keys, _ = await stored(parts, 4)
    await delete(parts, keys[2], keys[3])
    assert await acknowledge(parts, keys[3]) == 0
    with pytest.raises(Halted, match=rf"{keys[3]} begins at message 4 .*messages 3 to 3 are in no object"):
        await rebuild(parts, lanes)


@pytest.mark.parametrize("removed", [1, 2, 3])
async def test_a_rebuild_that_was_killed_at_any_step_is_finished_by_the_next(parts: Parts, removed: int) -> None:
    """With the entries, the identities and the feed of the removed objects."""
    lanes, keys, ids = await stored(parts, 4)
    before = await catalog_contents(parts, ids)
    await delete(parts, keys[removed])
    assert await acknowledge(parts, keys[removed]) == 0
    records = await announced(parts)
    assert len(records) == 1
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
        assert await announced(parts) == records
    assert refused >= 4


async def test_acknowledged_messages_of_unknown_objects_bridge_a_gap(parts: Parts) -> None:
    """After the catalog was lost: their entry is not restored, and the totals are those of the footers."""
    lanes, keys, ids = await stored(parts, 4)
    before, identities = await catalog_contents(parts, ids)
    await delete(parts, keys[1], keys[2])
    await parts.jetstream.delete_stream(parts.catalog.stream)
    assert await acknowledge(parts, "--messages", f"vehicles.0.{lanes[0].epoch}:2-3") == 0
    found = await rebuild(parts, lanes)
    assert (found.objects, found.removed, found.warnings) == (2, 0, [])
    rebuilt = await catalog_contents(parts, ids)
    assert rebuilt == ([before[0], before[3]], {**identities, ids[1]: None, ids[2]: None})
    assert len(await announced(parts)) == 1
    parts = await reopened(parts)
    async with parts.consuming(lanes):
        await store(parts, lanes, [9])
    assert (await read_bucket(parts)).objects == 3


async def test_a_part_of_acknowledged_messages_that_is_restored_counts(parts: Parts) -> None:
    lanes, keys, _ = await stored(parts, 5)
    before, _ = await catalog_contents(parts, [])
    body = await parts.bucket.read(keys[2], 0, 2**20)
    await delete(parts, *keys[1:4])
    await parts.jetstream.delete_stream(parts.catalog.stream)
    assert await acknowledge(parts, "--messages", f"vehicles.0.{lanes[0].epoch}:2-4") == 0
    await parts.bucket.create(keys[2], body, {}, "application/octet-stream")
    await rebuild(parts, lanes)
    entries, _ = await catalog_contents(parts, [])
    assert entries == [before[0], before[2], before[4]]


async def test_an_object_that_is_there_counts_in_spite_of_its_record(parts: Parts) -> None:
    """The record is created before the object is deleted: a command may have been killed in between."""
    lanes, keys, ids = await stored(parts, 3)
    before = await catalog_contents(parts, ids)
    for number in (1, 2):
        there = await read_object(parts.bucket, keys[number])
        assert there is not None
        await write_removal(parts.bucket, parts.settings.prefix, factories.removal(there.contents, note="announced"))
    found = await rebuild(parts, lanes)
    assert (found.objects, found.removed, found.warnings) == (3, 0, [])
    assert await catalog_contents(parts, ids) == before
    assert len(await announced(parts)) == 2


@pytest.mark.parametrize("number", [1, 2], ids=["within the chain", "at its end"])
async def test_the_record_of_a_damaged_object_counts(parts: Parts, number: int) -> None:
    """What is left of it is still there. Without a record, the rebuild stops and says where to read on."""
    lanes, keys, ids = await stored(parts, 3)
    before = await catalog_contents(parts, ids)
    await damage(parts, keys[number])
    with pytest.raises(Halted, match=f"{keys[number]} was not written by Bronze, or is damaged.*BronzeRecordsMissing"):
        await read_bucket(parts)
    assert await acknowledge(parts, keys[number]) == 0
    found = await rebuild(parts, lanes)
    assert (found.objects, found.removed, found.warnings) == (2, 1, [])
    assert await catalog_contents(parts, ids) == before


async def test_objects_that_are_gone_without_a_record_at_the_beginning_are_a_warning(parts: Parts) -> None:
    """As without removal records; what follows them without a gap is in the catalog."""
    lanes, keys, _ = await stored(parts, 5)
    before, _ = await catalog_contents(parts, [])
    await delete(parts, *keys[:4])
    assert await acknowledge(parts, keys[1], keys[3]) == 0
    found = await rebuild(parts, lanes)
    assert [warning.partition(":")[0] for warning in found.warnings] == [f"{lanes[0].stream} begins at message 4"]
    assert (await catalog_contents(parts, []))[0] == before[3:]


async def test_totals_of_older_versions_are_not_made_up(parts: Parts, heard: Heard) -> None:
    """No object before the first footer with totals has any: the size of an object is the difference of two entries,
    and an object that has its size must not be missing.
    """
    lanes, keys, _ = await stored(parts, 4)
    before, _ = await catalog_contents(parts, [])
    there = await read_object(parts.bucket, keys[0])
    assert there is not None
    old: CatalogEntry = msgspec.structs.replace(before[0], totals=None)
    await write_removal(parts.bucket, parts.settings.prefix, factories.removal(there.contents, entry=old))
    await delete(parts, keys[0])
    await rebuild(parts, lanes)
    assert (await catalog_contents(parts, []))[0] == [old, *before[1:]]
    parts = await reopened(parts)
    feed, instruments = Feed(parts.jetstream), heard.telemetry.instruments
    comparison = Comparison(parts.catalog, parts.bucket, feed, instruments, ["vehicles"], parts.settings.prefix)
    await comparison.compare_all()
    await comparison.compare()
    assert heard.count("bronze.missing.objects") == 0


async def test_a_retry_of_a_removed_submission_finds_its_identity(parts: Parts) -> None:
    """Also in a rebuilt catalog; it is not stored again by accident."""
    lanes, keys, ids = await stored(parts, 2)
    await delete(parts, keys[1])
    assert await acknowledge(parts, keys[1]) == 0
    await rebuild(parts, lanes)
    assert await all_stored(await reopened(parts), ids)
    catalog = await NatsCatalog.find(parts.jetstream, parts.settings)
    assert catalog is not None
    identity = await catalog.identity(ids[1])
    assert identity is not None
    assert identity.objects == [keys[1]]
