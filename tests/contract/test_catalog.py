"""The catalog on a real server: one entry per object, without gaps, and the identities of its submissions."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest

from bronze.errors import Halted, Misconfigured, Unavailable
from bronze.protocol.chain import Position
from bronze.protocol.documents import Contents, Identity, StoredSubmission, entry_of, identities_of
from bronze.protocol.lane import Lane
from bronze.protocol.message import AcceptedSubmission, Message
from bronze.protocol.removal import Removal
from bronze.servers import stream_metadata
from bronze.servers.catalog import KEYED_TTL, SUBJECTS, UNKEYED_TTL, NatsCatalog, Overtaken, stream_config
from bronze.servers.catalog_feed import Feed, FeedPosition
from bronze.servers.jetstream import JetStream, Outgoing
from bronze.servers.key_value import KeyValueStore
from bronze.settings import Settings
from tests import factories
from tests.contract.making import submission, vehicle
from tests.contract.twins import on_both

LANE = Lane("vehicles", 0, "20261124T120000000")
BEGINNING = Position(None, 0)


def an_object(first: int, last: int, submissions: Sequence[AcceptedSubmission] = ()) -> Contents:
    """The contents of an object of these messages."""
    return factories.contents(
        first,
        last,
        records=len(submissions),
        submissions=[
            StoredSubmission(
                accepted=accepted,
                first_sequence=first + number,
                parts=1,
                parts_done=1,
                parts_quarantined=0,
                records=1,
                objects=["object"],
            )
            for number, accepted in enumerate(submissions)
        ],
    )


def accepted(name: str, *, keyed: bool = False) -> AcceptedSubmission:
    return submission(vehicle(name), key=name if keyed else None).accepted


async def entries(jetstream: JetStream, catalog: NatsCatalog) -> list[tuple[int, int]]:
    """The first and last message of each catalog entry, in order."""
    messages = await jetstream.read(catalog.stream, 1, messages_max=1_000, bytes_max=2**24)
    decoded = [msgspec.json.decode(message.payload) for message in messages if message.subject == LANE.entry_subject]
    return [(entry["first"], entry["last"]) for entry in decoded]


@on_both
async def test_an_empty_chain_has_no_position(catalog: NatsCatalog) -> None:
    assert await catalog.position(LANE) == (BEGINNING, "")
    assert await catalog.identity("nobody") is None
    assert await catalog.identities(LANE, BEGINNING, ["nobody"]) == {}


@on_both
async def test_an_append_moves_the_position_and_writes_the_identities(
    catalog: NatsCatalog, jetstream: JetStream
) -> None:
    """Both are read back as they are in the object; the position of another lane does not move."""
    submissions = [accepted("a"), accepted("b", keyed=True)]
    contents = an_object(1, 2, submissions)
    position = await catalog.append(LANE, BEGINNING, factories.stored(contents))
    assert position.entry == entry_of(contents, factories.stored(contents).totals)
    assert (await catalog.position(LANE))[0] == position
    for identity in identities_of(contents):
        assert await catalog.identity(identity.accepted.submission_id) == identity
    position = await catalog.append(LANE, position, factories.stored(an_object(3, 3)))
    assert await entries(jetstream, catalog) == [(1, 2), (3, 3)]
    assert (await catalog.position(Lane("vehicles", 1, LANE.epoch)))[0] == BEGINNING


@on_both
async def test_of_writers_at_one_position_one_appends_and_the_others_are_overtaken(
    catalog: NatsCatalog, jetstream: JetStream
) -> None:
    """Its identities are written, and none of the others."""
    position = await catalog.append(LANE, BEGINNING, factories.stored(an_object(1, 1)))
    writers = [accepted(str(number)) for number in range(6)]
    answers = await asyncio.gather(
        *(
            catalog.append(LANE, position, factories.stored(an_object(2, 2 + number, [writer])))
            for number, writer in enumerate(writers)
        ),
        return_exceptions=True,
    )
    (winner,) = [number for number, answer in enumerate(answers) if isinstance(answer, Position)]
    assert all(isinstance(answer, Overtaken) for number, answer in enumerate(answers) if number != winner)
    assert await entries(jetstream, catalog) == [(1, 1), (2, 2 + winner)]
    identities = await catalog.identities(LANE, position, [writer.submission_id for writer in writers])
    assert list(identities) == [writers[winner].submission_id]


@on_both
async def test_a_repeated_append_is_overtaken(catalog: NatsCatalog, jetstream: JetStream) -> None:
    """It is repeated after a lost answer; the position shows that the first one succeeded."""
    contents = an_object(1, 1, [accepted("a")])
    position = await catalog.append(LANE, BEGINNING, factories.stored(contents))
    with pytest.raises(Overtaken):
        await catalog.append(LANE, BEGINNING, factories.stored(contents))
    assert (await catalog.position(LANE))[0] == position
    assert await entries(jetstream, catalog) == [(1, 1)]


@on_both
async def test_999_submissions_and_their_entry_are_appended_at_once(catalog: NatsCatalog) -> None:
    submissions = [accepted(str(number)) for number in range(999)]
    position = await catalog.append(LANE, BEGINNING, factories.stored(an_object(1, 999, submissions)))
    ids = [submission.submission_id for submission in submissions]
    assert sorted(await catalog.identities(LANE, position, ids)) == sorted(ids)


@on_both
async def test_identities_of_keyed_submissions_are_kept_longer(catalog: NatsCatalog, jetstream: JetStream) -> None:
    keyed, unkeyed = accepted("a", keyed=True), accepted("b")
    await catalog.append(LANE, BEGINNING, factories.stored(an_object(1, 2, [keyed, unkeyed])))
    for identified, ttl in ((keyed, KEYED_TTL), (unkeyed, UNKEYED_TTL)):
        message = await jetstream.get_last(catalog.stream, f"identity.{identified.submission_id}")
        assert message is not None
        assert message.headers["Nats-TTL"] == ttl
    entry = await jetstream.get_last(catalog.stream, LANE.entry_subject)
    assert entry is not None
    assert "Nats-TTL" not in entry.headers


class LaggingReplica(JetStream):
    """A replica without the last entry, for a number of reads."""

    stale_reads = 0

    async def last_messages(self, stream: str, subjects: Sequence[str]) -> list[Message]:
        if self.stale_reads > 0:
            self.stale_reads -= 1
            return []
        return await super().last_messages(stream, subjects)


@pytest.mark.parametrize("reads", [1, 2, 1_000])
async def test_identities_are_never_older_than_the_position(
    catalog: NatsCatalog, settings: Settings, reads: int
) -> None:
    """The answer of a lagging replica is not used: it is asked again, then the leader is asked."""
    submitted = accepted("a")
    position = await catalog.append(LANE, BEGINNING, factories.stored(an_object(1, 1, [submitted])))
    lagging = await LaggingReplica.connect(settings.queue_servers)
    lagging.stale_reads = reads
    try:
        stored = await NatsCatalog(lagging, catalog.stream).identities(LANE, position, [submitted.submission_id])
    finally:
        await lagging.close()
    assert list(stored) == [submitted.submission_id]


@on_both
async def test_the_catalog_of_another_bucket_is_refused(
    catalog: NatsCatalog, jetstream: JetStream, settings: Settings
) -> None:
    with pytest.raises(Misconfigured, match=f"{settings.prefix}.*another"):
        await NatsCatalog.open(
            jetstream, KeyValueStore(jetstream, 1), settings.model_copy(update={"prefix": "another"})
        )


async def test_openers_that_race_open_one_catalog(settings: Settings) -> None:
    connections = [await JetStream.connect(settings.queue_servers) for _ in range(4)]
    try:
        opened = await asyncio.gather(
            *(NatsCatalog.open(connection, KeyValueStore(connection, 1), settings) for connection in connections)
        )
    finally:
        for connection in connections:
            await connection.close()
    assert len({catalog.stream for catalog in opened}) == 1


async def test_a_replaced_catalog_halts(catalog: NatsCatalog, jetstream: JetStream) -> None:
    """An append to the new stream would begin the chain in the middle."""
    config: Mapping[str, Any] = {
        "name": "ANOTHER",
        "subjects": ["catalog.>", "identity.*"],
        "allow_atomic": True,
        "allow_msg_ttl": True,
    }
    await jetstream.api(f"STREAM.DELETE.{catalog.stream}")
    await jetstream.create_stream(config)
    with pytest.raises(Halted, match="restart this process"):
        await catalog.append(LANE, BEGINNING, factories.stored(an_object(1, 1)))


@on_both
async def test_an_entry_that_cannot_be_read_halts(catalog: NatsCatalog, jetstream: JetStream) -> None:
    await jetstream.publish(Outgoing(LANE.entry_subject, b'{"first": "one"}', {}))
    with pytest.raises(Halted, match="cannot be read"):
        await catalog.position(LANE)


async def test_a_catalog_without_a_connection_is_unavailable(catalog: NatsCatalog, jetstream: JetStream) -> None:
    await jetstream.close()
    with pytest.raises(Unavailable):
        await catalog.append(LANE, BEGINNING, factories.stored(an_object(1, 1)))
    with pytest.raises(Unavailable):
        await catalog.position(LANE)


@on_both
async def test_the_size_counts_the_entries_that_were_not_folded(catalog: NatsCatalog, jetstream: JetStream) -> None:
    """Of all lanes, without identities and removals, which are in the bytes only."""
    assert (await catalog.size()).entries == 0
    position = await catalog.append(LANE, BEGINNING, factories.stored(an_object(1, 2, [accepted("a"), accepted("b")])))
    await catalog.append(LANE, position, factories.stored(an_object(3, 3, [accepted("c")])))
    before = await catalog.size()
    await catalog.announce(a_removal(1))
    full = await catalog.size()
    assert (before.entries, full.entries) == (2, 2)
    assert full.bytes > before.bytes > 0
    await jetstream.delete_message(catalog.stream, position.entry_sequence)
    folded = await catalog.size()
    assert folded.entries == 1
    assert folded.bytes < full.bytes


def test_an_identity_survives_its_encoding() -> None:
    for identity in identities_of(an_object(1, 1, [accepted("a", keyed=True)])):
        assert msgspec.json.decode(msgspec.json.encode(identity), type=Identity) == identity


def a_removal(first: int) -> Removal:
    return factories.removal(an_object(first, first, [accepted(str(first))]))


@on_both
async def test_a_removal_record_is_announced_once(catalog: NatsCatalog, jetstream: JetStream) -> None:
    """On a subject of its own: followers of new objects do not see it. Identities are only in the bucket."""
    position = await catalog.append(LANE, BEGINNING, factories.stored(an_object(1, 1)))
    removals = [a_removal(1), a_removal(2)]
    for removal in [*removals, *removals]:
        await catalog.announce(removal)
    messages, remaining = await jetstream.read_subject(catalog.stream, "removed.>", 1, messages_max=10, bytes_max=2**20)
    assert remaining == 0
    assert [msgspec.json.decode(message.payload, type=Removal) for message in messages] == [
        removal.announcement() for removal in removals
    ]
    assert await catalog.announced() == {removal.subject for removal in removals}
    assert (await catalog.position(LANE))[0] == position
    assert [found.entry.first for found in (await Feed(jetstream).read(FeedPosition())).entries] == [1]


async def test_more_removal_records_than_one_page_are_found(
    catalog: NatsCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bronze.servers.catalog.PAGE_ENTRIES", 2)
    removals = [a_removal(first) for first in range(1, 6)]
    for removal in removals:
        await catalog.announce(removal)
    assert await catalog.announced() == {removal.subject for removal in removals}


@on_both
async def test_a_catalog_of_an_older_version_gets_the_subject_of_removals(
    jetstream: JetStream, settings: Settings
) -> None:
    """Its entries stay, and a process of the older version, which opened it before, still appends to it."""
    key_values = KeyValueStore(jetstream, 1)
    config = {**stream_config(settings, stream_metadata.of_catalog(settings)), "subjects": SUBJECTS[:2]}
    await jetstream.create_stream({**config, "name": "BRONZE_CATALOG_OLD"})
    older = NatsCatalog(jetstream, "BRONZE_CATALOG_OLD")
    position = await older.append(LANE, BEGINNING, factories.stored(an_object(1, 1)))
    newer = await NatsCatalog.open(jetstream, key_values, settings)
    await newer.announce(a_removal(1))
    assert await newer.announced() == {a_removal(1).subject}
    assert (await newer.position(LANE))[0] == position
    position = await older.append(LANE, position, factories.stored(an_object(2, 2)))
    assert (await newer.position(LANE))[0] == position


@on_both
async def test_a_catalog_that_an_older_version_rebuilds_is_not_changed(
    jetstream: JetStream, settings: Settings
) -> None:
    """The end of the rebuild changes the stream: another change at the same time could undo it."""
    metadata = {**stream_metadata.of_catalog(settings), stream_metadata.REBUILDING: "yes"}
    config = {**stream_config(settings, metadata), "name": "BRONZE_CATALOG_OLD", "subjects": SUBJECTS[:2]}
    await jetstream.create_stream(config)
    with pytest.raises(Unavailable, match="being rebuilt"):
        await NatsCatalog.open(jetstream, KeyValueStore(jetstream, 1), settings)
    assert (await jetstream.state("BRONZE_CATALOG_OLD")).subjects == SUBJECTS[:2]
    await jetstream.update_stream("BRONZE_CATALOG_OLD", metadata=stream_metadata.of_catalog(settings))
    await NatsCatalog.open(jetstream, KeyValueStore(jetstream, 1), settings)
    assert (await jetstream.state("BRONZE_CATALOG_OLD")).subjects == SUBJECTS


async def test_a_removal_record_for_a_replaced_catalog_is_refused(catalog: NatsCatalog, jetstream: JetStream) -> None:
    """The rebuild has not seen it: it is announced when the command is run again."""
    await jetstream.delete_stream(catalog.stream)
    await jetstream.create_stream({"name": "ANOTHER", "subjects": SUBJECTS})
    with pytest.raises(Halted, match="restart this process"):
        await catalog.announce(a_removal(1))


async def test_the_positions_of_more_lanes_than_the_server_answers_at_once(
    jetstream: JetStream, catalog: NatsCatalog
) -> None:
    """Each change of the lanes adds some; above 1,024, the server refuses to answer for all of them."""
    lanes = [Lane("vehicles", number, LANE.epoch) for number in range(1_100)]
    for some in (lanes[:550], lanes[550:]):
        written = [entry_of(factories.contents(1, 1, lane=lane.number)) for lane in some]
        messages = [
            Outgoing(lane.entry_subject, msgspec.json.encode(entry), {})
            for lane, entry in zip(some, written, strict=True)
        ]
        await jetstream.publish_batch(messages, len(messages))
    with pytest.raises(Unavailable, match="413"):
        await jetstream.last_messages(catalog.stream, ["catalog.>"])
    assert (await catalog.positions()).keys() == set(lanes)
