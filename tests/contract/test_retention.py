"""`bronze retain` on real servers: the oldest objects are deleted from the beginning of each chain."""

import argparse
import datetime as dt
from collections import Counter

import pytest

from bronze.__main__ import parser
from bronze.admin import retain_command
from bronze.admin.confirmation import Confirmation
from bronze.admin.retention import Deleted, HeldBy, HeldObjects, Retention, Statement
from bronze.errors import Halted, Misconfigured
from bronze.lineage.catalog_index import CatalogIndex
from bronze.objects.expiry import expired_up_to, read_mark
from bronze.objects.removals import read_removal
from bronze.protocol.documents import CatalogEntry
from bronze.protocol.expiry import marks_of_lane
from bronze.protocol.feed_cursor import FeedCursor
from bronze.protocol.feed_event import ObjectEvent, RemovalEvent
from bronze.protocol.lane import Lane
from bronze.protocol.removal import RemovalReason
from bronze.servers.catalog_feed import Feed
from bronze.servers.jetstream import Outgoing
from bronze.telemetry.signals import VerifyCheck
from bronze.verify.results import Period
from bronze.verify.verification import Verification
from tests.contract.test_lanes import Parts, parts
from tests.contract.test_objects_command import acknowledge, delete
from tests.contract.test_objects_command import run as run_objects
from tests.contract.test_rebuild import catalog_contents, read_bucket, rebuild, reopened, store

__all__ = ["parts"]

#: Long enough for every identity to be over, by the test's own doing.
DAYS = 40
LATER = dt.timedelta(days=DAYS + 1)


def parse(*words: str) -> argparse.Namespace:
    return parser().parse_args(["retain", "--by", "operator", *words])


async def retention(parts: Parts) -> Retention:
    living = await parts.jetstream.stream_names("bronze.>")
    return Retention(parts.catalog, parts.bucket, parts.settings.prefix, living)


async def retain(parts: Parts, *words: str, days: int = DAYS, later: dt.timedelta = LATER) -> int:
    """The exit code of the command, so much later."""
    now = dt.datetime.now(dt.UTC) + later
    return await retain_command.run(
        parse("--days", str(days), *words),
        await retention(parts),
        now,
        {"vehicles": None},
        Confirmation([], yes=True),
    )


async def forget(parts: Parts, ids: list[str]) -> None:
    """End the identities of submissions, as the queue does when their time is over."""
    for submission_id in ids:
        message = await parts.jetstream.get_last(parts.catalog.stream, f"identity.{submission_id}")
        assert message
        await parts.jetstream.delete_message(parts.catalog.stream, message.sequence)


async def stored(parts: Parts, number: int) -> tuple[list[Lane], list[str], list[str]]:
    """The lane, the paths of its objects and the ids of their submissions, one each, with a quarantined message."""
    lanes = await parts.open(1)
    ids: list[str] = []
    async with parts.consuming(lanes):
        for one in range(number):
            ids += await store(parts, lanes, [2 * one + 1])
    return lanes, [entry.file_path for entry in (await catalog_contents(parts, []))[0]], ids


async def keys(parts: Parts) -> list[str]:
    return [key async for key in parts.bucket.keys(f"{parts.settings.prefix}/source=")]


async def test_the_oldest_objects_are_deleted_and_the_chain_goes_on(
    parts: Parts, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last one stays, and so does one of which an identity is kept, with all after it. A rebuilt catalog goes on
    with the same totals.
    """
    lanes, paths, ids = await stored(parts, 5)
    await forget(parts, [ids[0], ids[1], ids[3], ids[4]])
    before, _ = await catalog_contents(parts, [])
    assert await retain(parts, "--dry-run") == 0
    assert "Nothing was deleted" in capsys.readouterr().out
    assert await keys(parts) == paths
    assert await retain(parts) == 0
    assert "2 objects deleted." in capsys.readouterr().out
    assert await keys(parts) == paths[2:]
    assert await retain(parts) == 0
    assert "0 objects deleted." in capsys.readouterr().out
    await forget(parts, [ids[2]])
    assert await retain(parts) == 0
    assert await keys(parts) == paths[4:]
    assert (await expired_up_to(parts.bucket, parts.settings.prefix)) == {lanes[0]: before[3].last}
    mark = await read_mark(parts.bucket, parts.settings.prefix, lanes[0])
    assert mark
    assert (mark.entry.totals, mark.entry.submissions) == (before[3].totals, [])
    assert await run_objects(parts, "missing") == 0
    assert (await catalog_contents(parts, []))[0] == before
    found = await rebuild(parts, lanes)
    assert (found.objects, found.warnings) == (1, [])
    parts = await reopened(parts)
    assert (await catalog_contents(parts, []))[0] == [mark.entry, before[4]]
    async with parts.consuming(lanes):
        await store(parts, lanes, [99])
    last = (await catalog_contents(parts, []))[0][-1]
    assert last.totals
    assert (last.first, last.totals.objects) == (before[4].last + 1, 6)


async def test_a_lane_that_was_replaced_is_deleted_completely(parts: Parts) -> None:
    """Its position and its totals stay, also after a rebuild."""
    lanes, _, ids = await stored(parts, 3)
    async with parts.consuming(lanes):
        await parts.change(2).run()
    await forget(parts, ids)
    before, _ = await catalog_contents(parts, [])
    assert await retain(parts) == 0
    assert await keys(parts) == []
    await rebuild(parts, await parts.open(2))
    (entry,), _ = await catalog_contents(parts, [])
    assert (entry.last, entry.last_time, entry.totals) == (before[2].last, before[2].last_time, before[2].totals)
    assert await retain(await reopened(parts)) == 0
    assert (await read_bucket(parts)).warnings == []


async def test_old_entries_are_folded_and_readers_are_told(parts: Parts) -> None:
    """A follower hears of all that has expired, once, whatever its cursor; one that begins gets no expired object."""
    _, paths, ids = await stored(parts, 4)
    index = await CatalogIndex().open()
    late = await CatalogIndex().open()
    try:
        feed = Feed(parts.jetstream)
        while not await index.catch_up(feed):
            pass
        old = (await index.events(FeedCursor(), None, 2, lambda page: page)).cursor
        await forget(parts, ids)
        assert await acknowledge_first(parts, paths) == 0
        before, _ = await catalog_contents(parts, [])
        assert await retain(parts, "--entries-days", str(DAYS)) == 0
        assert (await catalog_contents(parts, []))[0] == before[2:]
        assert await read_removal(parts.bucket, parts.settings.prefix, paths[0])
        for reader in (late, index):
            reader._removals_read_s = -1e9
            while not await reader.catch_up(feed):
                pass
            for cursor in (FeedCursor(), old):
                page = await reader.events(cursor, None, 10, lambda page: page)
                *objects, removal = page.events
                assert isinstance(removal, RemovalEvent)
                assert [event.file_path for event in objects if isinstance(event, ObjectEvent)] == paths[3:]
                assert (removal.reason, removal.first, removal.last) == (RemovalReason.EXPIRED, 1, before[2].last)
                assert not (await reader.events(page.cursor, None, 10, lambda page: page)).events
            assert await reader.by_path(paths[1], lambda item: item.sequence) == []
            for table in ("entries", "documents"):
                kept = await reader._run(reader._sequences, f"SELECT sequence FROM {table}")
                assert len(kept) == 2, table
            assert [event.removed for event in await reader.newest(None, 10)] == [False, True]
    finally:
        await index.close()
        await late.close()


async def acknowledge_first(parts: Parts, paths: list[str]) -> int:
    """An object was lost before: its removal record is deleted with the others."""
    await delete(parts, paths[0])
    return await acknowledge(parts, paths[0])


async def test_without_an_age_nothing_is_deleted(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --days each source has an age of its own; if none has one, the command refuses."""
    _, paths, ids = await stored(parts, 2)
    await forget(parts, ids)
    now, confirmation = dt.datetime.now(dt.UTC) + LATER, Confirmation([], yes=True)
    with pytest.raises(Misconfigured, match="BRONZE_RETENTION_DAYS"):
        await retain_command.run(parse(), await retention(parts), now, {"vehicles": None}, confirmation)
    for other in ({"vehicles": None, "status": DAYS}, {"vehicles": 3 * DAYS, "status": DAYS}):
        assert await retain_command.run(parse(), await retention(parts), now, other, confirmation) == 0
        assert await keys(parts) == paths
    assert "vehicles: no age, nothing is deleted\n" in capsys.readouterr().out
    words = parse("--entries-days", str(DAYS))
    with pytest.raises(Misconfigured, match="--entries-days is less than the age"):
        await retain_command.run(words, await retention(parts), now, other, confirmation)
    ages = {"vehicles": DAYS, "status": 3 * DAYS, "canary": None}
    assert await retain_command.run(parse(), await retention(parts), now, ages, confirmation) == 0
    assert await keys(parts) == paths[1:]
    shown = capsys.readouterr().out
    assert f"1 object of vehicles accepted before {retain_command.first_kept_day(now, DAYS):%Y-%m-%d} (UTC)." in shown
    assert "0 objects of status accepted before" in shown


async def test_what_is_deleted_is_counted(parts: Parts) -> None:
    """By source, also the entries and what is deleted of the tables."""
    _, _, ids = await stored(parts, 4)
    await forget(parts, ids)
    counts: Counter[tuple[Deleted, str]] = Counter()

    async def delete_rows(source: str, _: dt.datetime) -> int:
        assert source == "vehicles"
        return 7

    code = await retain_command.run(
        parse("--entries-days", str(DAYS), "--days", str(DAYS)),
        await retention(parts),
        dt.datetime.now(dt.UTC) + LATER,
        {"vehicles": None},
        Confirmation([], yes=True),
        delete_rows,
        lambda what, source, number: counts.update({(what, source): number}),
    )
    assert code == 0
    assert counts == {
        (Deleted.OBJECTS, "vehicles"): 3,
        (Deleted.ENTRIES, "vehicles"): 2,
        (Deleted.ROWS, "vehicles"): 7,
    }


async def test_a_table_that_must_not_be_changed_does_not_hold_back_others(
    parts: Parts, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command says which ones, when the rows of the others are deleted, and all objects."""
    asked: list[str] = []

    async def delete_rows(source: str, _: dt.datetime) -> int:
        asked.append(source)
        if source == "status":
            return 7
        raise Halted(f"the table {source} has lost a column")

    with pytest.raises(Halted, match="the table results has lost a column"):
        await retain_command.run(
            parse("--days", str(DAYS)),
            await retention(parts),
            dt.datetime.now(dt.UTC) + LATER,
            dict.fromkeys(("results", "status", "vehicles")),
            Confirmation([], yes=True),
            delete_rows,
        )
    shown = capsys.readouterr()
    assert asked == ["results", "status", "vehicles"]
    assert "0 objects deleted. 7 rows of tables deleted." in shown.out
    assert "the table vehicles has lost a column" in shown.err


@pytest.mark.parametrize("unreadable", ["mark", "entry"])
async def test_a_source_that_cannot_be_read_does_not_hold_back_others(
    unreadable: str, parts: Parts, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command names it when the objects and rows of the others are deleted."""
    _, paths, ids = await stored(parts, 3)
    await forget(parts, ids)
    lane = Lane("status", 0, "20260101T000000000")
    if unreadable == "mark":
        key = f"{marks_of_lane(parts.settings.prefix, lane)}{7:012}.json"
        await parts.bucket.create(key, b"{", {}, "application/json")
    else:
        await parts.jetstream.publish(Outgoing(lane.entry_subject, b"{", {}))
    rows_of: list[str] = []

    async def delete_rows(source: str, _: dt.datetime) -> int:
        rows_of.append(source)
        return 1

    for words in (["--dry-run"], []):
        with pytest.raises(Halted, match=r"status: .* cannot be read"):
            await retain_command.run(
                parse("--days", str(DAYS), *words),
                await retention(parts),
                dt.datetime.now(dt.UTC) + LATER,
                dict.fromkeys(("status", "vehicles")),
                Confirmation([], yes=True),
                delete_rows,
            )
    assert "2 objects deleted. 2 rows of tables deleted." in capsys.readouterr().out
    assert await keys(parts) == paths[2:]
    assert rows_of == ["status", "vehicles"]


async def test_what_is_held_back_is_said(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    """How many objects, from which on, and why; and which entries would be removed."""
    _, paths, ids = await stored(parts, 4)
    await forget(parts, [ids[0], *ids[2:]])
    assert await retain(parts, "--dry-run", "--entries-days", str(DAYS)) == 0
    shown = capsys.readouterr().out
    assert f"vehicles: 3 objects as old, which stay, from {paths[1]} on: a submission of it could be sent" in shown
    assert "of such objects to remove from the catalog" not in shown
    await forget(parts, [ids[1]])
    assert await retain(parts, "--dry-run", "--entries-days", str(DAYS)) == 0
    shown = capsys.readouterr().out
    assert f"vehicles: 1 object as old, which stays, from {paths[3]} on: the last object of a lane stays" in shown
    assert "2 old entries of such objects to remove from the catalog." in shown

    async def in_table(entry: CatalogEntry) -> bool:
        return entry.file_path != paths[1]

    before = dt.datetime.now(dt.UTC) + LATER
    held: list[HeldObjects] = []
    living = await parts.jetstream.stream_names("bronze.>")
    (expired,) = await Retention(parts.catalog, parts.bucket, parts.settings.prefix, living, in_table).find(
        None, before, on_held=held.append
    )
    assert expired.objects == 1
    assert held == [HeldObjects("vehicles", 3, paths[1], HeldBy.TABLE)]


async def test_an_earlier_run_that_was_killed_is_named(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    """It has expired the objects, and deleted none."""
    _, paths, ids = await stored(parts, 3)
    await forget(parts, ids)
    killed = await retention(parts)
    for expired in await killed.find(None, dt.datetime.now(dt.UTC) + LATER):
        await killed.expire(expired, Statement("", "operator"))
    for words in (["--dry-run"], []):
        assert await retain(parts, *words) == 0
        shown = capsys.readouterr().out
        assert "0 objects accepted before" in shown
        assert "2 more objects to delete: an earlier run expired them, and did not finish." in shown
    assert "2 objects deleted." in shown
    assert await keys(parts) == paths[2:]
    assert await retain(parts) == 0
    assert "an earlier run" not in capsys.readouterr().out


async def test_what_comes_back_behind_the_mark_is_deleted_again(parts: Parts) -> None:
    """`bronze verify` finds it once its entry is folded, and says how to delete it."""
    _, paths, ids = await stored(parts, 3)
    await forget(parts, ids)
    assert await retain(parts, "--entries-days", str(DAYS)) == 0
    await parts.bucket.create(paths[0], b"again", {}, "text/plain")
    assert (await read_bucket(parts)).objects == 1
    verification = Verification(parts.bucket, Feed(parts.jetstream), None, None, parts.settings.prefix)
    now = dt.datetime.now(dt.UTC)
    *_, of_objects = await verification.run(Period(now - dt.timedelta(hours=1), now), ["vehicles"], deep=False)
    assert (of_objects.check, of_objects.checked) == (VerifyCheck.OBJECT, 2)
    (fault,) = of_objects.faults
    assert (fault.file_path, fault.problem) == (paths[0], "it has expired, and is in the bucket")
    assert "bronze retain --source vehicles" in fault.advice
    assert await retain(parts) == 0
    assert await keys(parts) == paths[2:]
