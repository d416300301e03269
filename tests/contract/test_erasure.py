"""`bronze erase` on real servers: a person's records are gone, all else stays, wherever the command is killed."""

import argparse
import datetime as dt
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
from aiorwlock import RWLock
from pyiceberg.catalog import load_catalog

from bronze.__main__ import parser
from bronze.admin import erase_command
from bronze.admin.command_error import CommandError
from bronze.admin.confirmation import Confirmation
from bronze.admin.erasure_run import Statement, Stores, erase
from bronze.client.condition import parse
from bronze.consumer.lane_writer import LaneWriter
from bronze.errors import Misconfigured, Refused, Unavailable
from bronze.lineage.catalog_index import CatalogIndex
from bronze.lineage.lookup import LineageLookup
from bronze.maintenance.erasure import TableErasure
from bronze.maintenance.task import Task
from bronze.objects.erasures import read_proof
from bronze.objects.preview import first_rows
from bronze.objects.reader import read_object
from bronze.objects.selection import Chosen
from bronze.protocol.chain import Position
from bronze.protocol.erasure import Proof, Selection
from bronze.protocol.lane import Lane
from bronze.protocol.submission_id import lane_of
from bronze.records.columns import object_schema
from bronze.records.sources import Source
from bronze.servers.catalog import NatsCatalog, Overtaken
from bronze.servers.catalog_feed import Feed
from bronze.servers.catalog_rebuild import CatalogReplacement
from bronze.servers.iceberg import Tables
from bronze.servers.key_value import KeyValueStore
from bronze.servers.lane_lock import NatsLock
from bronze.servers.s3 import S3Bucket
from bronze.table.committer import Committer
from bronze.verify.results import Period
from bronze.verify.verification import Verification
from bronze.wiring.consumer import limits
from tests.contract.making import SOURCES, Submission, submission, until, vehicle
from tests.contract.test_lanes import Parts, parts
from tests.contract.test_objects_command import acknowledge, damage, delete
from tests.contract.test_objects_command import run as run_objects
from tests.contract.test_rebuild import all_stored, catalog_contents, rebuild, reopened
from tests.contract.test_retention import forget, retain

__all__ = ["parts"]

PERSON = "person-7"
BY_CLASSIFICATION = Selection(classification_id=PERSON)
BEGAN_AT, LATER = "2026-11-25T00:00:00.000000+00:00", "2026-11-25T00:00:00.000001+00:00"
STATEMENT = Statement("", "operator", BEGAN_AT)


class Killed(Exception):
    """The command ends here, as if it were killed."""


class KilledBucket:
    """A bucket of a process that is killed before, or right after, it has made so many changes."""

    def __init__(self, bucket: S3Bucket, changes: int, *, after: bool) -> None:
        self._bucket = bucket
        self._left = changes
        self._after = after

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._bucket, name)
        if name not in {"create", "replace", "delete", "delete_version"}:
            return call

        async def change(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left < 0 and not self._after:
                raise Killed
            result = await call(*args, **kwargs)
            if self._left < 0:
                raise Killed
            return result

        return change


class OldVersions:
    """A bucket that has an old version of each of these keys."""

    def __init__(self, bucket: S3Bucket, keys: Sequence[str]) -> None:
        self._bucket = bucket
        self._keys = keys

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bucket, name)

    async def old_versions(self, key: str) -> Sequence[str]:
        return ["1"] if key in self._keys else []


class DeletedMeanwhile:
    """A bucket in which an object is deleted after so many reads of it, before the next one."""

    def __init__(self, bucket: S3Bucket, key: str, reads: int) -> None:
        self._bucket = bucket
        self._key = key
        self._left = reads

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bucket, name)

    @property
    def has_deleted(self) -> bool:
        return self._left < 0

    async def read(self, key: str, start: int, end: int) -> bytes:
        self._left -= key == self._key
        if key == self._key and self.has_deleted:
            await self._bucket.delete(key)
        return await self._bucket.read(key, start, end)


def stores(parts: Parts, lanes: Sequence[Lane], **replaced: Any) -> Stores:
    async def find() -> NatsCatalog | None:
        return await NatsCatalog.find(parts.jetstream, parts.settings)

    async def rebuild_catalog() -> None:
        await rebuild(parts, lanes)

    made = Stores(
        jetstream=parts.jetstream,
        feed=Feed(parts.jetstream),
        queue=parts.queue(len(lanes)),
        bucket=parts.bucket,
        prefix=parts.settings.prefix,
        sources=SOURCES,
        find_catalog=find,
        rebuild=rebuild_catalog,
    )
    return replace(made, **replaced)


def chosen(selection: Selection) -> Chosen:
    if selection.classification_id is not None:
        return Chosen.of_classification(selection.classification_id)
    source = SOURCES[str(selection.source)]
    return Chosen.of_source(source, parse(str(selection.where), object_schema(source)))


async def run(made: Stores, *words: str, selection: Selection = BY_CLASSIFICATION) -> int:
    """The exit code of the command."""
    of = (
        ["--classification-id", selection.classification_id]
        if selection.classification_id
        else ["--source", str(selection.source), "--where", str(selection.where)]
    )
    given = [*words, *of] if "verify" in words else [*words, "--by", "operator", *of]
    args: argparse.Namespace = parser().parse_args(["erase", *given])
    assert erase_command.selection(args) == selection
    return await erase_command.run(args, made, selection, chosen(selection), Confirmation([], yes=True))


async def submit(parts: Parts, lanes: Sequence[Lane], *submitted: Submission) -> None:
    for each in submitted:
        await parts.submit(lanes, each)
    await until(lambda: all_stored(parts, [each.id for each in submitted]))


def of(classification_id: str, *names: str, **facts: Any) -> Submission:
    """A submission of a classification."""
    facts = {"classification_id": classification_id, "classification_default": classification_id} | facts
    return submission(*map(vehicle, names), **facts)


def mixed(**facts: Any) -> Submission:
    """Records that do not fit, two of them of the person, beside one that does."""
    records = [
        b'{"vehicle_id":"mixed"}',
        b'{"vehicle_id": 7, "classification_id":"%s"}' % PERSON.encode(),
        b'{"vehicle_id": 8, "classification_id":"other"}',
        b'{"vehicle_id": 9 %s' % PERSON.encode(),
    ]
    facts = {"classification_id": "other", "classification_default": "other"} | facts
    return submission(*records, quarantine_rejected=True, **facts)


async def stored(parts: Parts, lanes: Sequence[Lane]) -> list[Submission]:
    """Objects: of the person and others; only of others; only of the person; and messages in quarantine."""
    sent = [of(PERSON, "p1", "p2", key="person"), of("other", "o1", "o2"), of("other", "o3"), of(PERSON, "p3"), mixed()]
    # without a default its record has no classification: it becomes a dead letter
    lost = of(PERSON, "p4", classification_default=None)
    async with parts.consuming(lanes):
        for first, *rest in (sent[:2], sent[2:3], sent[3:4], sent[4:], [lost]):
            for each in (first, *rest):
                await parts.submit(lanes, each)
            if first is not lost:
                await until(partial(all_stored, parts, [first.id]))
        await until(lambda: all_stored(parts, [each.id for each in (*sent, lost)]))
    return [*sent, lost]


async def read_all(parts: Parts) -> dict[str, bytes]:
    """All that the bucket has below the prefix and of these lanes in quarantine."""
    found = {}
    names = {entry.epoch for entry in (await catalog_contents(parts, []))[0]}
    async for key in parts.bucket.keys(""):
        if key.startswith(f"{parts.settings.prefix}/") or any(name in key for name in names):
            head = await parts.bucket.head(key)
            assert head
            found[key] = await parts.bucket.read(key, 0, head.size) if head.size else b""
            found[f"{key} metadata"] = json.dumps(dict(head.metadata)).encode()
    return found


def rows(objects: Mapping[str, bytes]) -> list[dict[str, Any]]:
    return [
        row
        for key, body in sorted(objects.items())
        if key.endswith(".parquet")
        for row in pq.read_table(BytesIO(body)).to_pylist()
    ]


async def names(parts: Parts) -> list[str]:
    return [row["vehicle_id"] for row in rows(await read_all(parts))]


async def faults(parts: Parts) -> list[str]:
    """What `bronze verify --deep` finds."""
    now = dt.datetime.now(dt.UTC)
    period = Period(now - dt.timedelta(hours=1), now + dt.timedelta(minutes=1))
    verification = Verification(parts.bucket, Feed(parts.jetstream), None, None, parts.settings.prefix, settle_s=0)
    results = await verification.run(period, ["vehicles"], deep=True)
    return [str(fault) for result in results for fault in result.faults]


async def messages_with(parts: Parts, text: str) -> list[str]:
    """The subjects of the catalog's messages that have a text."""
    catalog = await NatsCatalog.find(parts.jetstream, parts.settings)
    assert catalog
    found, following = [], 1
    while read := await parts.jetstream.read(catalog.stream, following, messages_max=4_000, bytes_max=2**26):
        found += [message.subject for message in read if text.encode() in message.payload]
        following = read[-1].sequence + 1
    return found


async def test_a_person_is_gone_and_everything_else_stays(
    parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In objects, quarantine and catalog. Totals, positions and identities stay, and all readers accept the objects."""
    lanes = await parts.open(1)
    sent = await stored(parts, lanes)
    ids = [each.id for each in sent]
    before, (entries, identities) = await read_all(parts), await catalog_contents(parts, ids)
    made = stores(parts, lanes)
    assert await run(made, "--dry-run", "--json") == 0
    preview = json.loads(capsys.readouterr().out)
    assert (preview["rows"], len(preview["objects"]), len(preview["quarantine"])) == (3, 3, 2)
    assert await read_all(parts) == before
    proof_file = tmp_path / "proof.json"
    assert await run(made, "--proof", str(proof_file), "--reason", "request 12") == 0
    parts = await reopened(parts)
    after = await read_all(parts)
    assert not [key for key, content in after.items() if PERSON.encode() in content]
    assert rows(after) == [row for row in rows(before) if row["classification_id"] != PERSON]
    assert after.keys() - before.keys() == {
        f"{parts.settings.prefix}/.erased/{name}{suffix}"
        for name in [msgspec.json.decode(proof_file.read_bytes(), type=Proof).erasure.erasure_id]
        for suffix in (".json", ".json metadata", ".proof.json", ".proof.json metadata")
    }
    assert await messages_with(parts, PERSON) == []
    new_entries, new_identities = await catalog_contents(parts, ids)
    for old, new in zip(entries, new_entries, strict=True):
        same = ("file_path", "first", "last", "last_time", "records", "messages", "totals", "duplicates")
        assert [getattr(old, name) for name in same] == [getattr(new, name) for name in same]
    assert sum(entry.erased or 0 for entry in new_entries) == 3
    for each in sent:
        old_identity, new_identity = identities[each.id], new_identities[each.id]
        assert old_identity
        assert new_identity
        assert new_identity.accepted.digest == each.accepted.digest
        assert new_identity.accepted.classification_id in {None, "other"}
    assert await faults(parts) == []
    assert await run_objects(parts, "missing") == 0
    assert await acknowledge(parts, new_entries[0].file_path) == 1  # it is neither gone nor damaged
    await rebuild(parts, lanes)
    parts = await reopened(parts)
    assert await catalog_contents(parts, ids) == (new_entries, new_identities)
    await check_lookups(parts, new_entries[0].file_path, sent)
    proof = msgspec.json.decode(proof_file.read_bytes(), type=Proof)
    assert proof == await read_proof(parts.bucket, parts.settings.prefix, proof.erasure.erasure_id)
    assert (proof.rows_erased, len(proof.quarantine), proof.not_searched) == (3, 2, [])
    assert PERSON.encode() not in proof_file.read_bytes()
    async with parts.consuming(lanes):
        await submit(parts, lanes, of("other", "later"))
    assert (await names(parts))[-1] == "later"
    assert await faults(parts) == []


async def check_lookups(parts: Parts, file_path: str, sent: Sequence[Submission]) -> None:
    """Lineage and preview of a rewritten object."""
    index = await CatalogIndex().open()
    try:
        while not await index.catch_up(Feed(parts.jetstream)):
            pass

        async def unknown(_: str) -> Any:
            raise AssertionError

        lookup = LineageLookup(index, parts.bucket, unknown, parts.settings.prefix)
        with pytest.raises(Refused):
            await lookup.lineage("classification_id", PERSON)
        (found,) = (await lookup.lineage("file_path", file_path)).objects
        assert found.in_bucket
        (of_person,) = (await lookup.lineage("submission_id", sent[0].id)).submissions
        assert (of_person.records, of_person.classification_id) == (2, None)
    finally:
        await index.close()
    head = await parts.bucket.head(file_path)
    assert head
    preview = first_rows(BytesIO(await parts.bucket.read(file_path, 0, head.size)))
    assert len(preview.rows) == 2


async def test_a_command_that_is_killed_at_any_change_is_finished_by_the_next(parts: Parts) -> None:
    """Runs are killed before and after each change in turn, while the catalog is rebuilt, and before the proof."""
    lanes = await parts.open(1)
    sent = await stored(parts, lanes)
    before = await read_all(parts)
    deaths = 0

    async def killed_rebuild() -> None:
        catalog = await NatsCatalog.find(parts.jetstream, parts.settings)
        assert catalog
        await parts.jetstream.delete_stream(catalog.stream)
        raise Killed

    async def attempt(made: Stores) -> Proof | None:
        nonlocal deaths
        try:
            return await erase(made, BY_CLASSIFICATION, chosen(BY_CLASSIFICATION), STATEMENT, 10)
        except Killed:
            deaths += 1
        return None

    for number in range(40):
        bucket: Any = KilledBucket(parts.bucket, 0, after=number % 2 == 1)
        proof = await attempt(stores(parts, lanes, bucket=bucket, rebuild=killed_rebuild))
        if await NatsCatalog.find(parts.jetstream, parts.settings) is None:
            break
        assert proof is None
    proof = await attempt(stores(parts, lanes, bucket=KilledBucket(parts.bucket, 0, after=False)))
    assert proof is None
    # the lane's anchor was the person's: what the command has submitted behind it is stored
    parts = await reopened(parts)
    async with parts.consuming(lanes):
        await until(partial(nothing_waits, parts, lanes[0]))
    proof = await attempt(stores(parts, lanes))
    assert proof is not None
    assert (proof.lanes[0].anchor, deaths >= 8) == (False, True)
    parts = await reopened(parts)
    after = await read_all(parts)
    assert not [key for key, content in after.items() if PERSON.encode() in content]
    assert rows(after) == [row for row in rows(before) if row["classification_id"] != PERSON]
    assert await messages_with(parts, PERSON) == []
    assert await faults(parts) == []
    assert len([key for key in after if "/.erased/" in key and not key.endswith("metadata")]) == 2
    assert (proof.rows_erased, len(proof.quarantine)) == (3, 2)
    for each in proof.objects:
        assert (each.sha256_before, each.rows_before - each.rows_erased) != (each.sha256_after, each.rows_before)
        assert each.bytes_before == len(before[each.file_path])
    assert {each.id for each in sent} < {*await parts.stored()}


async def test_a_command_that_asks_continues_an_interrupted_rebuild(
    parts: Parts, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no catalog that could be searched before the question."""
    lanes = await parts.open(1)
    async with parts.consuming(lanes):
        await submit(parts, lanes, of(PERSON, "p1"))

    async def killed_rebuild() -> None:
        await CatalogReplacement(parts.jetstream, KeyValueStore(parts.jetstream, 1), parts.settings).start()
        raise Killed

    with pytest.raises(Killed):
        await run(stores(parts, lanes, rebuild=killed_rebuild), "--yes")
    with pytest.raises(Unavailable, match="the catalog is not complete"):
        await run(stores(parts, lanes), "--dry-run")
    assert await run(stores(parts, lanes)) == 0
    assert "was interrupted while the catalog was rebuilt" in capsys.readouterr().err
    assert await names(await reopened(parts)) == []


async def test_retention_deletes_what_was_erased_and_an_erasure_passes_over_what_has_expired(
    parts: Parts, capsys: pytest.CaptureFixture[str]
) -> None:
    """Objects that have no row any more expire as others do. After both there is nothing to report."""
    lanes = await parts.open(1)
    async with parts.consuming(lanes):
        sent = [of(PERSON, "p1"), of("other", "o1"), of(PERSON, "p2"), of("other", "o2")]
        for each in sent:
            await submit(parts, lanes, each)
    ids = [each.id for each in sent]
    assert await run(stores(parts, lanes), "--json") == 0
    first = msgspec.json.decode(capsys.readouterr().out, type=Proof)
    assert first.rows_erased == 2
    parts = await reopened(parts)
    entries, _ = await catalog_contents(parts, [])
    await forget(parts, ids[:1])
    assert await retain(parts) == 0
    assert "1 object deleted." in capsys.readouterr().out
    assert await names(parts) == ["o1", "o2"]
    await forget(parts, ids[1:3])
    assert await retain(parts) == 0
    assert await names(parts) == ["o2"]
    assert (await catalog_contents(parts, []))[0] == entries
    assert await faults(parts) == []
    async with parts.consuming(lanes):
        await submit(parts, lanes, of(PERSON, "p3"))
    capsys.readouterr()
    other = Selection(source="vehicles", where=f"classification_id = '{PERSON}'")
    assert await run(stores(parts, lanes), "--json", selection=other) == 0
    second = msgspec.json.decode(capsys.readouterr().out, type=Proof)
    assert second.rows_erased == 1
    parts = await reopened(parts)
    assert await names(parts) == ["o2"]
    assert await faults(parts) == []
    for proof, selection in ((first, BY_CLASSIFICATION), (second, other)):
        await run(stores(parts, lanes), "verify", proof.erasure.erasure_id, "--json", selection=selection)
        left = json.loads(capsys.readouterr().out)["left"]
        assert not any(left[store] for store in left.keys() - {"lanes of the queue"}), left
    async with parts.consuming(lanes):
        await submit(parts, lanes, of("other", "o3"))
    assert await names(parts) == ["o2", "o3"]
    assert await faults(parts) == []


async def test_the_entries_of_expired_objects_lose_the_classification(
    parts: Parts, capsys: pytest.CaptureFixture[str]
) -> None:
    """Retention leaves them in the catalog for a time, also if nothing else of the person is left."""
    lanes = await parts.open(1)
    async with parts.consuming(lanes):
        person, other = of(PERSON, "p1"), of("other", "o1")
        await submit(parts, lanes, person)
        await submit(parts, lanes, other)
    await forget(parts, [person.id])
    assert await retain(parts) == 0
    assert await names(parts) == ["o1"]
    assert await messages_with(parts, PERSON) != []
    capsys.readouterr()
    assert await run(stores(parts, lanes), "--json") == 0
    proof = msgspec.json.decode(capsys.readouterr().out, type=Proof)
    assert proof.catalog_rebuilt
    parts = await reopened(parts)
    assert await messages_with(parts, PERSON) == []
    assert await faults(parts) == []
    await run(stores(parts, lanes), "verify", proof.erasure.erasure_id, "--json")
    assert json.loads(capsys.readouterr().out)["left"]["catalog"] == 0


async def nothing_waits(parts: Parts, lane: Lane) -> bool:
    return (await parts.jetstream.state(lane.stream)).last == (await parts.catalog.position(lane))[0].last


async def test_what_is_accepted_after_the_command_began_stays(
    parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In rows, footers, quarantine, identities, removal records, tables and queue, also beside what is erased."""
    lanes = await parts.open(1)
    async with parts.consuming(lanes):
        await submit(parts, lanes, of(PERSON, "lost", received_at=LATER))
    (lost,) = (await catalog_contents(parts, []))[0]
    earlier = [of(PERSON, "p1"), mixed()]
    later = [of(PERSON, "p2", key="again", received_at=BEGAN_AT), mixed(received_at=LATER)]
    dead = of(PERSON, "p3", classification_default=None, received_at=LATER)  # becomes a dead letter
    for each in (*earlier, *later, dead):
        await parts.submit(lanes, each)
    async with parts.consuming(lanes):
        await until(lambda: all_stored(parts, [each.id for each in (*earlier, *later, dead)]))
    tables = open_tables(tmp_path)
    await commit(parts, tables)
    await delete(parts, lost.file_path)
    assert await acknowledge(parts, lost.file_path) == 0
    capsys.readouterr()
    before = await read_all(parts)
    made = stores(parts, lanes, now=lambda: dt.datetime.fromisoformat(BEGAN_AT), tables=erasing(tables))
    assert await run(made, "--dry-run", "--json") == 0
    preview = json.loads(capsys.readouterr().out)
    assert (preview["rows"], len(preview["quarantine"]), preview["removal_records"]) == (1, 1, [])
    assert await run(made, "--json") == 0
    proof = msgspec.json.decode(capsys.readouterr().out, type=Proof)
    assert (proof.rows_erased, len(proof.quarantine), proof.erasure.began_at) == (1, 1, BEGAN_AT)
    parts = await reopened(parts)
    after = await read_all(parts)
    assert [row["vehicle_id"] for row in rows(after)] == ["mixed", "p2", "mixed"]
    changed = {key for key, content in before.items() if after[key] != content and not key.endswith(" metadata")}
    assert changed == {*(each.file_path for each in proof.objects), *(each.key for each in proof.quarantine)}
    assert sorted(tables.read("vehicles").table.scan().to_arrow()["vehicle_id"].to_pylist()) == [
        *("lost", "mixed", "mixed", "p2")
    ]
    identities = (await catalog_contents(parts, [each.id for each in (earlier[0], later[0])]))[1]
    assert [one and one.accepted.classification_id for one in identities.values()] == [None, PERSON]
    assert await run(made, "verify", proof.erasure.erasure_id, "--json") == 1
    found = json.loads(capsys.readouterr().out)["left"]
    assert {store for store, number in found.items() if number} == {"lanes of the queue"}


async def test_what_waits_is_stored_first(parts: Parts) -> None:
    """Without a consumer the command gives up, and has changed nothing; with one it erases what had waited."""
    lanes = await parts.open(1)
    await parts.submit(lanes, of(PERSON, "p1"))
    await parts.submit(lanes, of("other", "o1"))
    with pytest.raises(Unavailable, match=r"2 messages .* are not stored"):
        await run(stores(parts, lanes), "--wait", "0.1")
    async with parts.consuming(lanes):
        assert await run(stores(parts, lanes)) == 0
    assert await names(await reopened(parts)) == ["o1"]


async def test_rows_are_erased_by_a_condition(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    """Of one source. Verified later: what was accepted since is new, and what was restored is left."""
    lanes = await parts.open(1)
    selection = Selection(source="vehicles", where="vehicle_id = 'v7'")
    first, second = of("a", "v7", "v8"), of("b", "v7")
    async with parts.consuming(lanes):
        await submit(parts, lanes, first, second)
    before = await read_all(parts)
    made = stores(parts, lanes)
    assert await run(made, "--json", selection=selection) == 0
    out = capsys.readouterr().out
    proof = msgspec.json.decode(out, type=Proof)
    assert "v7" not in out
    assert proof.rows_erased == 2
    assert [(each.messages, each.anchor) for each in proof.lanes] == [(2, True)]
    parts = await reopened(parts)
    assert await names(parts) == ["v8"]
    identities = (await catalog_contents(parts, [first.id, second.id]))[1]
    assert [one and one.accepted.classification_id for one in identities.values()] == ["a", None]
    async with parts.consuming(lanes):
        later = of("c", "v7", received_at=dt.datetime.now(dt.UTC).isoformat(timespec="microseconds"))
        await submit(parts, lanes, later, of("c", "v9"))
    verify = ["verify", proof.erasure.erasure_id, "--json"]
    assert await run(made, *verify, selection=selection) == 1
    found = json.loads(capsys.readouterr().out)
    assert {store for store, number in found["left"].items() if number} == {"lanes of the queue"}
    async with parts.consuming(lanes, purge_grace_s=0):
        await until(lambda: purged(parts, lanes[0]))
    assert await run(made, *verify, selection=selection) == 0
    assert json.loads(capsys.readouterr().out)["gone"]
    with pytest.raises(CommandError, match="the hashes differ"):
        await run(made, *verify, selection=Selection(source="vehicles", where="vehicle_id = 'v8'"))
    (restored,) = (each.file_path for each in proof.objects[:1])
    await delete(parts, restored)
    await parts.bucket.create(restored, before[restored], {}, "application/vnd.apache.parquet")
    assert await run(made, *verify, selection=selection) == 1
    assert json.loads(capsys.readouterr().out)["left"]["objects"] == 1


async def test_a_submission_of_erased_rejected_records_loses_its_classification(parts: Parts) -> None:
    """As one whose rows were all erased. It stays if other records of it are left."""
    lanes = await parts.open(1)
    selection = Selection(source="vehicles", where="vehicle_id = 'v7'")
    mine, other = (b'{"vehicle_id":"%s","seats":"many"}' % name for name in (b"v7", b"v8"))
    facts: dict[str, Any] = {"quarantine_rejected": True, "classification_count": 1}
    facts |= {"classification_id": PERSON, "classification_default": PERSON}
    alone = submission(mine, mine, **facts)
    kept = submission(mine, other, **{**facts, "classification_id": "a", "classification_default": "a"})
    async with parts.consuming(lanes):
        for each in (alone, kept):
            await submit(parts, lanes, each)
    assert await run(stores(parts, lanes), selection=selection) == 0
    parts = await reopened(parts)
    assert not [key for key, content in (await read_all(parts)).items() if PERSON.encode() in content]
    identities = (await catalog_contents(parts, [alone.id, kept.id]))[1]
    assert [one and one.accepted.classification_id for one in identities.values()] == [None, "a"]
    assert await messages_with(parts, PERSON) == []


async def test_a_line_that_cannot_be_read_hides_no_record_in_quarantine(
    parts: Parts, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a condition: the readable records go, the message is named, and nothing is said to be gone without a doubt."""
    lanes = await parts.open(1)
    selection = Selection(source="vehicles", where="vehicle_id = 'v7'")
    raw = [b'{"vehicle_id":"v7","seats":"many"}', b"not json at all", b'{"vehicle_id":"v8","seats":"few"}']
    rejected = submission(*raw, b'{"vehicle_id":"v7" ', vehicle("v9"), quarantine_rejected=True)
    async with parts.consuming(lanes):
        await submit(parts, lanes, rejected)
    made = stores(parts, lanes)
    assert await run(made, "--json", selection=selection) == 0
    proof = msgspec.json.decode(capsys.readouterr().out, type=Proof)
    (message,) = proof.quarantine
    assert (message.records_erased, proof.not_searched) == (1, [message.key])
    left = (await read_all(parts))[message.key]
    assert raw[0] not in left
    assert all(line in left for line in raw[1:])
    parts = await reopened(parts)
    async with parts.consuming(lanes, purge_grace_s=0):
        await until(lambda: purged(parts, lanes[0]))
    verify = ["verify", proof.erasure.erasure_id]
    assert await run(made, *verify, "--json", selection=selection) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["gone"], any(found["left"].values()), found["not_searched"]) == (False, False, [message.key])
    assert await run(made, *verify, selection=selection) == 1
    text = capsys.readouterr().out
    assert "messages in quarantine: 1 key could not be searched\n" in text
    assert f"look at them by hand\n  {message.key}\n" in text


async def purged(parts: Parts, lane: Lane) -> bool:
    """Whether the lane has its anchor alone."""
    state = await parts.jetstream.state(lane.stream)
    return state.first == state.last == (await parts.catalog.position(lane))[0].last


async def test_an_empty_submission_takes_the_place_of_the_anchor(
    parts: Parts, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the person's message was the last one of its lane: nothing else has to arrive for it to be purged. Nothing is
    counted for it, and it is purged as other messages are.
    """
    lanes = await parts.open(2)
    async with parts.consuming(lanes):
        await submit(parts, lanes, *(of("other", f"o{number}") for number in range(8)))
        person = of(PERSON, "p1")
        await submit(parts, lanes, person)
    made = stores(parts, lanes)
    assert await run(made, "--json") == 0
    proof = msgspec.json.decode(capsys.readouterr().out, type=Proof)
    assert [(each.messages, each.anchor) for each in proof.lanes] == [(1, True)]
    parts = await reopened(parts)
    before = {lane: (await parts.catalog.position(lane))[0] for lane in lanes}
    of_person = lanes[lane_of(person.id, 2)]
    ends = [(await parts.jetstream.state(lane.stream)).last - before[lane].last for lane in lanes]
    assert ends == [int(lane == of_person) for lane in lanes]
    async with parts.consuming(lanes, purge_grace_s=0):
        await until(lambda: purged(parts, of_person))
    entry = (await parts.catalog.position(of_person))[0].entry
    assert entry
    assert entry.totals
    old = before[of_person].entry
    assert old
    assert old.totals
    assert entry.totals.all_records == old.totals.all_records
    assert (entry.records, entry.submissions[0].origin) == (0, "bronze erase")
    assert await run(made, "verify", proof.erasure.erasure_id, "--json") == 0
    assert json.loads(capsys.readouterr().out)["gone"]
    assert await faults(parts) == []
    rebuilt = await rebuild(parts, lanes)
    assert rebuilt.warnings == []


async def test_removal_records_lose_the_classification(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an object that is gone: its entry and its identities in a rebuilt catalog are those of the record. Without a
    record, it is named: it could not be searched.
    """
    lanes = await parts.open(1)
    person = of(PERSON, "p1")
    async with parts.consuming(lanes):
        await submit(parts, lanes, person)
        await submit(parts, lanes, of("other", "o1"))
    entries, _ = await catalog_contents(parts, [])
    await delete(parts, entries[0].file_path)
    assert await run(stores(parts, lanes), "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["not_searched"] == [entries[0].file_path]
    assert await acknowledge(parts, entries[0].file_path) == 0
    capsys.readouterr()
    assert await run(stores(parts, lanes), "--json") == 0
    proof = msgspec.json.decode(capsys.readouterr().out, type=Proof)
    assert len(proof.removal_records) == 1
    parts = await reopened(parts)
    with_versions: Any = OldVersions(parts.bucket, proof.removal_records)
    verify = ["verify", proof.erasure.erasure_id, "--json"]
    assert await run(stores(parts, lanes, bucket=with_versions), *verify) == 1
    assert json.loads(capsys.readouterr().out)["left"]["old versions"] == 1
    assert not [key for key, content in (await read_all(parts)).items() if PERSON.encode() in content]
    assert await messages_with(parts, PERSON) == []
    new_entries, identities = await catalog_contents(parts, [person.id])
    assert [entry.totals for entry in new_entries] == [entry.totals for entry in entries]
    identity = identities[person.id]
    assert identity
    assert (identity.accepted.digest, identity.accepted.classification_id) == (person.accepted.digest, None)


async def test_objects_that_are_lost_stop_the_command_until_it_is_acknowledged(
    parts: Parts, capsys: pytest.CaptureFixture[str]
) -> None:
    """One is deleted, one is damaged. Then both are named, and verify is content if nothing of them is left."""
    lanes = await parts.open(1)
    async with parts.consuming(lanes):
        for name in ("gone", "damaged", "p1"):
            await submit(parts, lanes, of(PERSON, name))
    gone, damaged, _ = [entry.file_path for entry in (await catalog_contents(parts, []))[0]]
    await delete(parts, gone)
    await damage(parts, damaged)
    made, before = stores(parts, lanes), await read_all(parts)
    with pytest.raises(CommandError, match=rf"2 objects .*{gone}, {damaged}\. Nothing was erased\..* acknowledge"):
        await run(made, "--yes")
    assert await read_all(parts) == before
    assert await run(made, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["not_searched"] == sorted((gone, damaged))
    assert await acknowledge(parts, gone, damaged) == 0
    capsys.readouterr()
    assert await run(made, "--json") == 0
    proof = msgspec.json.decode(capsys.readouterr().out, type=Proof)
    assert (proof.rows_erased, proof.not_searched) == (1, sorted((gone, damaged)))
    parts = await reopened(parts)
    async with parts.consuming(lanes, purge_grace_s=0):
        await until(lambda: purged(parts, lanes[0]))
    verify = ["verify", proof.erasure.erasure_id, "--json"]
    assert await run(made, *verify) == 1
    found = json.loads(capsys.readouterr().out)
    assert (any(found["left"].values()), found["gone"], found["not_searched"]) == (False, False, proof.not_searched)
    await delete(parts, damaged)
    assert await run(made, *verify) == 0
    assert json.loads(capsys.readouterr().out)["not_searched"] == proof.not_searched


async def test_what_is_deleted_during_the_search_is_missing(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    """As by retention. At whichever read it was, the search goes on."""
    lanes = await parts.open(1)
    async with parts.consuming(lanes):
        rejected = b'{"vehicle_id":"p1","seats":"many"}'
        await submit(parts, lanes, of(PERSON, "p2"))
        await submit(
            parts, lanes, submission(rejected, vehicle("p1"), quarantine_rejected=True, classification_id=PERSON)
        )
    entry = (await catalog_contents(parts, []))[0][-1]
    (message,) = entry.quarantined
    for key, not_searched in ((entry.file_path, [entry.file_path]), (message, [])):
        head = await parts.bucket.head(key)
        assert head
        body = await parts.bucket.read(key, 0, head.size)
        for reads in itertools.count():
            bucket = DeletedMeanwhile(parts.bucket, key, reads)
            assert await run(stores(parts, lanes, bucket=bucket), "--dry-run", "--json") == 0
            found = json.loads(capsys.readouterr().out)
            if not bucket.has_deleted:
                break
            assert found["not_searched"] == not_searched
            await parts.bucket.create(key, body, head.metadata, "application/octet-stream")
        assert reads
        assert not found["not_searched"]


async def test_rows_of_the_tables_go_too(parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From all of them; and `bronze table` goes on with the next objects."""
    lanes = await parts.open(1)
    tables = open_tables(tmp_path)
    made = stores(parts, lanes, tables=erasing(tables))
    async with parts.consuming(lanes):
        await submit(parts, lanes, of(PERSON, "p1"), of("other", "o1"))
    await commit(parts, tables)
    assert await run(made, "--dry-run", "--json") == 0
    planned = {table["source"]: table["rows"] for table in json.loads(capsys.readouterr().out)["tables"]}
    assert planned["vehicles"] == 1
    assert await run(made, "--json") == 0
    proof = msgspec.json.decode(capsys.readouterr().out, type=Proof)
    assert proof.tables
    assert [table["rows"] for table in proof.tables if table["source"] == "vehicles"] == [1]
    parts = await reopened(parts)
    async with parts.consuming(lanes):
        await submit(parts, lanes, of("other", "o2"))
    await commit(parts, tables)
    table = tables.read("vehicles").table
    assert sorted(table.scan().to_arrow()["vehicle_id"].to_pylist()) == ["o1", "o2"]
    await run(made, "verify", proof.erasure.erasure_id, "--json")
    assert json.loads(capsys.readouterr().out)["left"]["tables"] == 0


async def test_the_table_of_a_source_that_is_no_longer_declared_is_searched(
    parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its lanes, objects and table stay."""
    lanes = await parts.open(1)
    tables = open_tables(tmp_path)
    without = {name: source for name, source in SOURCES.items() if name != "vehicles"}
    made = stores(parts, lanes, tables=erasing(tables, without), sources=without)
    async with parts.consuming(lanes):
        await submit(parts, lanes, of(PERSON, "p1"), of("other", "o1"))
    await commit(parts, tables)
    assert await run(made, "--json") == 0
    proof = msgspec.json.decode(capsys.readouterr().out, type=Proof)
    assert [table["rows"] for table in proof.tables or [] if table["source"] == "vehicles"] == [1]
    assert tables.read("vehicles").table.scan().to_arrow()["vehicle_id"].to_pylist() == ["o1"]


def open_tables(folder: Path) -> Tables:
    catalog = load_catalog("test", type="sql", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}")
    return Tables(catalog, "bronze")


def erasing(tables: Tables, declared: Mapping[str, Source] = SOURCES) -> Callable[[Chosen, str], Task]:
    return lambda of, name: TableErasure(tables, declared, of.in_table, name, "bucket/bronze")


async def commit(parts: Parts, tables: Tables) -> None:
    """As `bronze table` does, which begins again."""
    committer = Committer(
        SOURCES["vehicles"], tables, Feed(parts.jetstream), parts.bucket, parts.settings.prefix, 2**20
    )
    position = await committer.open()
    while True:
        page = await Feed(parts.jetstream).read(position)
        committer.begin(page.position.stream)
        for entry in page.entries:
            committer.add(entry)
        position = page.position
        if not page.remaining:
            break
    while await committer.commit("") is not None:
        pass


async def test_a_consumer_that_was_paused_does_not_bring_back_what_was_erased(parts: Parts) -> None:
    """It has the messages in hand, and the position of before. The object that is there decides."""
    lanes = await parts.open(1)
    async with parts.consuming(lanes):
        await submit(parts, lanes, of(PERSON, "p1"), of("other", "o1"))
    messages = await parts.queue(1).read(lanes[0], None)
    assert await run(stores(parts, lanes)) == 0
    parts = await reopened(parts)
    before = await read_all(parts)
    lock = NatsLock(parts.key_values, lanes[0], "paused", parts.settings.lock_expiry_s)
    await lock.acquire()
    paused = LaneWriter(
        lanes[0],
        SOURCES["vehicles"],
        parts.queue(1),
        parts.bucket,
        parts.catalog,
        lock,
        parts.heard.telemetry,
        RWLock(),
        prefix=parts.settings.prefix,
        limits=limits(parts.settings),
        purge_grace_s=60,
    )
    paused._position_s = paused._clock_s()
    with pytest.raises(Overtaken):
        await paused._store(Position(None, 0), messages, messages)
    assert await read_all(parts) == before
    assert await names(parts) == ["o1"]


async def test_a_command_beside_a_rebuild_says_that_it_has_to_be_run_again(parts: Parts) -> None:
    """The other one has replaced the catalog while this one did so, or since it has found it."""
    lanes = await parts.open(1)
    async with parts.consuming(lanes):
        await submit(parts, lanes, of(PERSON, "p1"))

    async def find() -> NatsCatalog | None:
        found = await NatsCatalog.find(parts.jetstream, parts.settings)
        await rebuild(parts, lanes)
        return found

    async def overtaken() -> None:
        lost = CatalogReplacement(parts.jetstream, KeyValueStore(parts.jetstream, 1), parts.settings)
        await lost.start()
        await rebuild(parts, lanes)
        stored = await read_object(parts.bucket, (await catalog_contents(parts, []))[0][0].file_path)
        assert stored
        await lost.append([stored], dt.datetime.now(dt.UTC).timestamp())

    with pytest.raises(Unavailable, match=r"replaced meanwhile.* run this command again"):
        await run(stores(parts, lanes, rebuild=overtaken), "--yes")
    for words in ([], ["--dry-run"]):
        with pytest.raises(Unavailable, match=r"replaced meanwhile.* run this command again"):
            await run(stores(parts, lanes, find_catalog=find), *words)
    assert await run(stores(parts, lanes), "--dry-run") == 0


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--source", "vehicles"],
        ["--where", "seats = 1"],
        ["--classification-id", ""],
        ["--classification-id", "x", "--source", "vehicles", "--where", "seats = 1"],
    ],
)
def test_a_selection_that_is_not_clear_is_refused(words: list[str]) -> None:
    with pytest.raises(Misconfigured):
        erase_command.selection(parser().parse_args(["erase", *words]))


async def test_the_id_is_not_written_to_the_proof_by_hand(parts: Parts) -> None:
    lanes = await parts.open(1)
    with pytest.raises(Misconfigured, match="must not have the id"):
        await run(stores(parts, lanes), "--reason", f"{PERSON} asked")
    selection = Selection(source="vehicles", where="vehicle_id = 'Karl''s car' AND seats < 12")
    for reason in ("for Karl's car", "the one with 12 seats"):
        with pytest.raises(Misconfigured, match="must not have the id, or a value of the condition"):
            await run(stores(parts, lanes), "--reason", reason, selection=selection)
    assert await run(stores(parts, lanes), "--reason", "request 4712", selection=selection) == 0
