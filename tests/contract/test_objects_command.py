"""`bronze objects` on real servers: it names what is missing, and records what cannot be restored."""

import argparse
import asyncio
import datetime as dt
import getpass
import json
from collections.abc import Mapping
from dataclasses import replace

import pytest

from bronze.__main__ import parser
from bronze.admin import objects_command
from bronze.admin.acknowledge import Acknowledged, Acknowledgement, Statement
from bronze.admin.command_error import CommandError
from bronze.admin.confirmation import Confirmation
from bronze.errors import Misconfigured, Unavailable
from bronze.objects.reader import read_object
from bronze.objects.removals import read_removal, read_removals
from bronze.protocol.lane import Lane
from bronze.protocol.removal import Removal, RemovalReason
from bronze.servers.catalog import SUBJECTS, NatsCatalog
from bronze.servers.catalog_feed import Feed
from bronze.servers.jetstream import JetStream
from bronze.servers.key_value import KeyValueStore
from bronze.servers.stream_metadata import REBUILDING, of_catalog
from bronze.settings import Settings
from bronze.wiring.commands import run_objects
from local.servers import S3Account
from tests.contract.test_lanes import Parts, parts
from tests.contract.test_rebuild import catalog_contents, store

__all__ = ["parts"]

NOW = dt.datetime(2026, 11, 27, 10, tzinfo=dt.UTC)
STATEMENT = Statement("the disk broke", "operator")


def no_progress() -> None: ...


async def acknowledgement(parts: Parts) -> Acknowledgement:
    catalog = await NatsCatalog.find(parts.jetstream, parts.settings)
    return Acknowledgement(catalog, Feed(parts.jetstream), parts.bucket, parts.settings.prefix, lambda: NOW)


def parse(*words: str) -> argparse.Namespace:
    return parser().parse_args(["objects", *words])


async def run(parts: Parts, *words: str) -> int:
    """The exit code of a command."""
    return await objects_command.run(
        parse(*words),
        Feed(parts.jetstream),
        parts.bucket,
        parts.settings.prefix,
        await acknowledgement(parts),
        Confirmation([], yes=True),
    )


async def acknowledge(parts: Parts, *what: str) -> int:
    return await run(parts, "acknowledge", *what, "--reason", STATEMENT.note, "--by", STATEMENT.removed_by)


async def stored(parts: Parts, number: int) -> tuple[list[Lane], list[str], list[str]]:
    """The lane, the paths of its objects and the ids of their submissions, one each."""
    lanes = await parts.open(1)
    ids: list[str] = []
    async with parts.consuming(lanes):
        for one in range(number):
            ids += await store(parts, lanes, [2 * one + 1])
    return lanes, [entry.file_path for entry in (await catalog_contents(parts, []))[0]], ids


async def delete(parts: Parts, *keys: str) -> None:
    for key in keys:
        await asyncio.to_thread(parts.bucket._s3.delete_object, Bucket=parts.bucket.name, Key=key)


async def damage(parts: Parts, key: str) -> None:
    """Replace an object by another one, of 7 bytes."""
    await asyncio.to_thread(parts.bucket._s3.put_object, Bucket=parts.bucket.name, Key=key, Body=b"damaged")


async def records(parts: Parts) -> list[Removal]:
    return [record async for record in read_removals(parts.bucket, parts.settings.prefix)]


async def test_what_is_missing_is_listed(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    """With exit code 1; and 0 if nothing is missing, or only what is older than `--since`, or has a removal record."""
    _, keys, _ = await stored(parts, 3)
    assert await run(parts, "missing") == 0
    assert capsys.readouterr().out == "0 objects missing.\n"
    await delete(parts, keys[0], keys[2])
    assert await run(parts, "missing") == 1
    assert [line for line in capsys.readouterr().out.splitlines() if line[0] != " "] == [
        keys[0],
        keys[2],
        "2 objects missing.",
    ]
    assert await run(parts, "missing", "--since", "1h", "--json") == 1
    first, _ = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["file_path"], first["source"], first["first"], first["last"], first["records"]) == (
        *(keys[0], "vehicles"),
        *(1, 1, 1),
    )
    assert await run(parts, "missing", "--since", "2999-01-01") == 0
    assert await acknowledge(parts, keys[0]) == 0
    capsys.readouterr()
    assert await run(parts, "missing") == 1
    assert capsys.readouterr().out.endswith("1 object missing. 1 object more with a removal record.\n")
    assert await acknowledge(parts, keys[2]) == 0
    assert await run(parts, "missing") == 0


async def test_a_damaged_object_is_listed_and_acknowledged(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    """It has another size than the catalog says. What is left of it stays in the bucket, and the record has the size
    that it had.
    """
    _, keys, _ = await stored(parts, 3)
    there = await read_object(parts.bucket, keys[1])
    assert there is not None
    await damage(parts, keys[1])
    assert await run(parts, "missing") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == keys[1]
    assert lines[2:] == [
        f"  damaged or replaced: 7 bytes in the bucket, but {there.size:,} in the catalog",
        "1 object missing.",
    ]
    assert await run(parts, "missing", "--json") == 1
    listed = json.loads(capsys.readouterr().out)
    assert (listed["bytes"], listed["bytes_found"]) == (there.size, 7)
    assert await acknowledge(parts, keys[1]) == 0
    out = capsys.readouterr().out
    assert f"{keys[1]} (damaged: 7 bytes in the bucket): 1 record, acknowledged" in out
    assert "What is left of a damaged object is still in the bucket" in out
    (record,) = await records(parts)
    assert (record.file_path, record.bytes) == (keys[1], there.size)
    assert await run(parts, "missing") == 0
    head = await parts.bucket.head(keys[1])
    assert head is not None
    assert head.size == 7
    assert await acknowledge(parts, keys[1]) == 0
    assert "acknowledged before" in capsys.readouterr().out


async def test_a_record_has_what_the_catalog_said(parts: Parts) -> None:
    """Everything that a rebuild needs; and the size, although the object is gone."""
    lanes, keys, ids = await stored(parts, 3)
    ((_, entry, _), identities) = await catalog_contents(parts, ids)
    there = await read_object(parts.bucket, keys[1])
    assert there is not None
    await delete(parts, keys[1])
    assert await acknowledge(parts, keys[1]) == 0
    (record,) = await records(parts)
    assert record == await read_removal(parts.bucket, parts.settings.prefix, keys[1])
    assert record == Removal(
        source="vehicles",
        epoch=lanes[0].epoch,
        lane=0,
        first=2,
        last=2,
        reason=RemovalReason.ACKNOWLEDGED,
        note=STATEMENT.note,
        removed_by=STATEMENT.removed_by,
        recorded_at=NOW.isoformat(),
        file_path=keys[1],
        records=1,
        bytes=there.size,
        entry=entry,
        identities=[identity for identity in [identities[ids[1]]] if identity],
    )
    assert len(record.identities) == 1
    assert await parts.catalog.announced() == {record.subject}


async def test_an_object_that_is_not_missing_is_refused(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    """One refusal, and nothing is written for the others either."""
    _, keys, _ = await stored(parts, 2)
    await delete(parts, keys[0])
    for wrong, message in (
        (keys[1], "is in the bucket: only an object that is missing, or that has another size"),
        (keys[1].replace("2.parquet", "9.parquet"), "is not in the catalog"),
        ("another/key.parquet", "is not the key of an object below the prefix"),
    ):
        assert await acknowledge(parts, keys[0], wrong) == 1
        assert message in capsys.readouterr().err
    for wrong_words in ([], [keys[0], "--all-missing"], ["--all-missing", "--messages", "vehicles.0.20261127T1:1-2"]):
        with pytest.raises(Misconfigured, match="or --all-missing, or --messages"):
            await acknowledge(parts, *wrong_words)
    assert await records(parts) == []
    assert await parts.catalog.announced() == set()


async def test_a_dry_run_writes_nothing(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    _, keys, _ = await stored(parts, 2)
    await delete(parts, *keys)
    assert await acknowledge(parts, "--all-missing", "--dry-run") == 0
    assert capsys.readouterr().out == (
        "".join(f"{key}: 1 record, would be acknowledged\n" for key in keys) + "Nothing was written.\n"
    )
    assert await records(parts) == []


class Killed(Exception):
    """The command was killed."""


class KilledBetween(Acknowledgement):
    """Killed after the record was created in the bucket, before it is published."""

    async def write(self, acknowledged: Acknowledged) -> Removal:
        catalog, self._catalog = self._catalog, None
        await super().write(acknowledged)
        self._catalog = catalog
        raise Killed


@pytest.mark.parametrize("again", ["--all-missing", "path"])
async def test_a_command_that_was_killed_is_finished_by_the_next(
    parts: Parts, again: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first record counts, and it is published once, however often the command runs."""
    _, keys, _ = await stored(parts, 3)
    await delete(parts, keys[0], keys[1])
    catalog = await NatsCatalog.find(parts.jetstream, parts.settings)
    killed = KilledBetween(catalog, Feed(parts.jetstream), parts.bucket, parts.settings.prefix, lambda: NOW)
    for found in await killed.of_objects([keys[0]], STATEMENT, no_progress):
        with pytest.raises(Killed):
            await killed.write(found)
    (first,) = await records(parts)
    assert await parts.catalog.announced() == set()
    for _ in range(2):
        what = [again] if again.startswith("--") else keys[:2]
        assert await run(parts, "acknowledge", *what, "--reason", "another", "--by", "somebody else") == 0
    assert f"{keys[0]}: acknowledged before, by operator: the disk broke" in capsys.readouterr().out
    after = await records(parts)
    assert after[0] == first
    assert [record.file_path for record in after] == keys[:2]
    assert await parts.catalog.announced() == {record.subject for record in after}
    messages, _ = await parts.jetstream.read_subject(
        parts.catalog.stream, "removed.>", 1, messages_max=10, bytes_max=2**20
    )
    assert len(messages) == 2


async def test_a_part_of_a_submission_keeps_the_identity_of_all(parts: Parts) -> None:
    """The record of one of its objects has the identity that names all of them."""
    lanes = await parts.open(1)
    small = parts.settings.model_copy(update={"object_messages_max": 1})
    async with replace(parts, settings=small).consuming(lanes):
        (submission_id,) = await store(parts, lanes, [4])
    entries, identities = await catalog_contents(parts, [submission_id])
    assert len(entries) == 3
    await delete(parts, entries[0].file_path)
    assert await acknowledge(parts, "--all-missing") == 0
    (record,) = await records(parts)
    assert record.identities == [identities[submission_id]]


async def test_messages_of_unknown_objects_are_acknowledged(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    """Only if neither the catalog nor the bucket knows an object of theirs, and the chain continues after them."""
    (lane,), keys, _ = await stored(parts, 4)

    async def of(first: int, last: int) -> tuple[int, str]:
        code = await acknowledge(parts, "--messages", f"vehicles.0.{lane.epoch}:{first}-{last}")
        return code, capsys.readouterr().err

    await delete(parts, keys[1], keys[3])
    code, error = await of(2, 2)
    assert code == 1
    assert f"messages 2 to 2 are in {keys[1]}, which is in the catalog: acknowledge it by its path" in error
    await parts.jetstream.delete_stream(parts.catalog.stream)
    code, error = await of(2, 3)
    assert code == 1
    assert f"message 3 is in {keys[2]}, which is in the bucket" in error
    code, error = await of(4, 4)
    assert code == 1
    assert "no object of" in error
    assert "after message 4 is known" in error
    assert await records(parts) == []
    for _ in range(2):
        assert await of(2, 2) == (0, "")
    (record,) = await records(parts)
    assert (record.first, record.last, record.file_path, record.records, record.entry) == (2, 2, None, None, None)
    with pytest.raises(Unavailable, match="no catalog"):
        await run(parts, "missing")
    assert await acknowledge(parts, keys[1]) == 1
    assert "the queue has no catalog: run `bronze catalog rebuild` first" in capsys.readouterr().err


async def test_messages_in_a_longer_object_are_not_lost(parts: Parts) -> None:
    """An object before the first of these messages contains them too."""
    lanes = await parts.open(1)
    async with parts.consuming(lanes):
        await store(parts, lanes, [4])
        await store(parts, lanes, [1])
    (first, _), _ = await catalog_contents(parts, [])
    assert first.last > first.first
    await parts.jetstream.delete_stream(parts.catalog.stream)
    args = parse("acknowledge", "--messages", f"vehicles.0.{lanes[0].epoch}:{first.last}-{first.last}", "--reason", "x")
    with pytest.raises(CommandError, match=f"message {first.last} is in {first.file_path}, which is in the bucket"):
        await (await acknowledgement(parts)).of_messages(args.messages, STATEMENT)


async def test_messages_with_a_removal_record_are_not_unknown(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    """The record of their object says more; and a removed object continues the chain as well as one that is there."""
    (lane,), keys, _ = await stored(parts, 4)
    await delete(parts, *keys[1:])
    assert await acknowledge(parts, keys[1], keys[3]) == 0
    await parts.jetstream.delete_stream(parts.catalog.stream)
    assert await acknowledge(parts, "--messages", f"vehicles.0.{lane.epoch}:2-3") == 1
    assert f"message 2 is in {keys[1]}, which has a removal record" in capsys.readouterr().err
    assert await acknowledge(parts, "--messages", f"vehicles.0.{lane.epoch}:3-3") == 0


async def test_messages_can_be_acknowledged_while_a_rebuild_is_not_finished(parts: Parts) -> None:
    """Otherwise a rebuild that finds a gap when it has begun could never be finished."""
    (lane,), keys, _ = await stored(parts, 3)
    await delete(parts, keys[1])
    await parts.jetstream.delete_stream(parts.catalog.stream)
    config = {"name": "BRONZE_CATALOG_NEW", "subjects": SUBJECTS, "allow_direct": True}
    metadata = {**of_catalog(parts.settings), REBUILDING: "yes"}
    await parts.jetstream.create_stream({**config, "metadata": metadata})
    assert await acknowledge(parts, "--messages", f"vehicles.0.{lane.epoch}:2-2") == 0
    assert len(await records(parts)) == 1


def test_arguments_that_cannot_work_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, message in (
        (["--messages", "vehicles:1-2", "--reason", "x"], "names no messages of a lane"),
        (["--messages", "vehicles.0.20261127T1:3-2", "--reason", "x"], "names no messages of a lane"),
        (["--messages", "vehicles.0.20261127T1:0-2", "--reason", "x"], "names no messages of a lane"),
        (["--all-missing", "--reason", " "], "a text of 1 to 1,000 characters"),
        (["--all-missing"], "--reason"),
    ):
        with pytest.raises(SystemExit):
            parse("acknowledge", *wrong)
        assert message in capsys.readouterr().err


def test_without_a_name_the_user_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container the user often has none: then the command says what to give."""
    monkeypatch.setenv("LOGNAME", "somebody")
    assert objects_command._user() == "somebody"

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 1000")

    monkeypatch.setattr(getpass, "getuser", nameless)
    with pytest.raises(CommandError, match="--by"):
        objects_command._user()


async def test_the_command_compares_only_the_bucket_of_the_catalog(
    settings: Settings,
    s3_account: S3Account,
    s3_env: Mapping[str, str],
    jetstream: JetStream,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In another bucket or below another prefix, every object would be missing. It creates no catalog."""
    settings = settings.model_copy(update={"bucket": s3_account.bucket})
    with pytest.raises(Unavailable, match="no catalog"):
        await run_objects(parse("missing"), settings)
    assert await jetstream.stream_names("catalog.>") == []
    await NatsCatalog.open(jetstream, KeyValueStore(jetstream, 1), settings)
    assert await run_objects(parse("missing"), settings) == 0
    assert capsys.readouterr().out == "0 objects missing.\n"
    with pytest.raises(Misconfigured, match="BRONZE_PREFIX is"):
        await run_objects(parse("missing"), settings.model_copy(update={"prefix": "another"}))
