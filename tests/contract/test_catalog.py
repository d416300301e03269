"""The catalog on a real server: one entry for each object, gapless, with the identities of what it holds."""

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
from bronze.servers.catalog import KEYED_TTL, UNKEYED_TTL, NatsCatalog, Overtaken
from bronze.servers.jetstream import JetStream, Outgoing
from bronze.servers.key_value import KeyValueStore
from bronze.settings import Settings
from tests import factories
from tests.contract.making import submission, vehicle
from tests.contract.twins import on_both

LANE = Lane("vehicles", 0, "20261124T120000000")
BEGINNING = Position(None, 0)


def an_object(first: int, last: int, submissions: Sequence[AcceptedSubmission] = ()) -> Contents:
    """What an object of these messages says of itself."""
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
    """First and last of each entry of the feed, in order."""
    read = await jetstream.read(catalog._stream, 1, messages_max=1_000, bytes_max=2**24)
    found = [msgspec.json.decode(one.payload) for one in read if one.subject == LANE.entry_subject]
    return [(entry["first"], entry["last"]) for entry in found]


@on_both
async def test_an_empty_chain_has_no_position(catalog: NatsCatalog) -> None:
    assert await catalog.position(LANE) == (BEGINNING, "")
    assert await catalog.identity("nobody") is None
    assert await catalog.identities(LANE, BEGINNING, ["nobody"]) == {}


@on_both
async def test_an_entry_moves_the_position_and_brings_its_identities(
    catalog: NatsCatalog, jetstream: JetStream
) -> None:
    """Both are read back as the object told them; another lane's chain stays where it is."""
    ours = [accepted("a"), accepted("b", keyed=True)]
    wrote = an_object(1, 2, ours)
    position = await catalog.append(LANE, BEGINNING, wrote)
    assert position.entry == entry_of(wrote)
    assert (await catalog.position(LANE))[0] == position
    for identity in identities_of(wrote):
        assert await catalog.identity(identity.accepted.submission_id) == identity
    position = await catalog.append(LANE, position, an_object(3, 3))
    assert await entries(jetstream, catalog) == [(1, 2), (3, 3)]
    assert (await catalog.position(Lane("vehicles", 1, LANE.epoch)))[0] == BEGINNING


@on_both
async def test_of_writers_at_one_position_one_appends_and_the_others_are_overtaken(
    catalog: NatsCatalog, jetstream: JetStream
) -> None:
    """With all its identities, and none of the others'."""
    position = await catalog.append(LANE, BEGINNING, an_object(1, 1))
    writers = [accepted(str(number)) for number in range(6)]
    answers = await asyncio.gather(
        *(catalog.append(LANE, position, an_object(2, 2 + number, [one])) for number, one in enumerate(writers)),
        return_exceptions=True,
    )
    (winner,) = [number for number, answer in enumerate(answers) if isinstance(answer, Position)]
    assert all(isinstance(answer, Overtaken) for number, answer in enumerate(answers) if number != winner)
    assert await entries(jetstream, catalog) == [(1, 1), (2, 2 + winner)]
    kept = await catalog.identities(LANE, position, [one.submission_id for one in writers])
    assert list(kept) == [writers[winner].submission_id]


@on_both
async def test_a_lost_answer_is_seen_as_being_overtaken(catalog: NatsCatalog, jetstream: JetStream) -> None:
    """The same append again is refused: the position tells that it was made."""
    wrote = an_object(1, 1, [accepted("a")])
    position = await catalog.append(LANE, BEGINNING, wrote)
    with pytest.raises(Overtaken):
        await catalog.append(LANE, BEGINNING, wrote)
    assert (await catalog.position(LANE))[0] == position
    assert await entries(jetstream, catalog) == [(1, 1)]


@on_both
async def test_999_submissions_and_their_entry_are_one_append(catalog: NatsCatalog) -> None:
    many = [accepted(str(number)) for number in range(999)]
    position = await catalog.append(LANE, BEGINNING, an_object(1, 999, many))
    found = await catalog.identities(LANE, position, [one.submission_id for one in many])
    assert sorted(found) == sorted(one.submission_id for one in many)


@on_both
async def test_identities_of_keyed_submissions_are_kept_longer(catalog: NatsCatalog, jetstream: JetStream) -> None:
    keyed, unkeyed = accepted("a", keyed=True), accepted("b")
    await catalog.append(LANE, BEGINNING, an_object(1, 2, [keyed, unkeyed]))
    for one, kept in ((keyed, KEYED_TTL), (unkeyed, UNKEYED_TTL)):
        message = await jetstream.get_last(catalog._stream, f"identity.{one.submission_id}")
        assert message is not None
        assert message.headers["Nats-TTL"] == kept
    entry = await jetstream.get_last(catalog._stream, LANE.entry_subject)
    assert entry is not None
    assert "Nats-TTL" not in entry.headers


class Late(JetStream):
    """A replica that stood still before the last entry was written, for so many reads."""

    reads_late = 0

    async def last_messages(self, stream: str, subjects: Sequence[str]) -> list[Message]:
        if self.reads_late > 0:
            self.reads_late -= 1
            return []
        return await super().last_messages(stream, subjects)


@pytest.mark.parametrize("reads", [1, 2, 1_000])
async def test_identities_are_never_older_than_the_position(
    catalog: NatsCatalog, settings: Settings, reads: int
) -> None:
    """A late replica's answer is not taken: it is asked again, then the leader is."""
    one = accepted("a")
    position = await catalog.append(LANE, BEGINNING, an_object(1, 1, [one]))
    late = await Late.connect(settings.nats_url)
    late.reads_late = reads
    try:
        found = await NatsCatalog(late, catalog._stream).identities(LANE, position, [one.submission_id])
    finally:
        await late.close()
    assert list(found) == [one.submission_id]


@on_both
async def test_another_buckets_catalog_is_refused(
    catalog: NatsCatalog, jetstream: JetStream, settings: Settings
) -> None:
    with pytest.raises(Misconfigured, match=f"{settings.prefix}.*another"):
        await NatsCatalog.open(
            jetstream, KeyValueStore(jetstream, 1), settings.model_copy(update={"prefix": "another"})
        )


async def test_openers_that_race_open_one_catalog(settings: Settings) -> None:
    connections = [await JetStream.connect(settings.nats_url) for _ in range(4)]
    try:
        opened = await asyncio.gather(*(NatsCatalog.open(one, KeyValueStore(one, 1), settings) for one in connections))
    finally:
        for connection in connections:
            await connection.close()
    assert len({catalog._stream for catalog in opened}) == 1


async def test_a_catalog_that_was_made_anew_halts(catalog: NatsCatalog, jetstream: JetStream) -> None:
    """Its stream is another one: to append to it would begin the chain in the middle."""
    config: Mapping[str, Any] = {
        "name": "ANOTHER",
        "subjects": ["catalog.>", "identity.*"],
        "allow_atomic": True,
        "allow_msg_ttl": True,
    }
    await jetstream.api(f"STREAM.DELETE.{catalog._stream}")
    await jetstream.create_stream(config)
    with pytest.raises(Halted, match="restart this process"):
        await catalog.append(LANE, BEGINNING, an_object(1, 1))


@on_both
async def test_an_entry_that_cannot_be_read_halts(catalog: NatsCatalog, jetstream: JetStream) -> None:
    await jetstream.publish(Outgoing(LANE.entry_subject, b'{"first": "one"}', {}))
    with pytest.raises(Halted, match="cannot be read"):
        await catalog.position(LANE)


async def test_a_catalog_that_is_away_is_unavailable(catalog: NatsCatalog, jetstream: JetStream) -> None:
    await jetstream.close()
    with pytest.raises(Unavailable):
        await catalog.append(LANE, BEGINNING, an_object(1, 1))
    with pytest.raises(Unavailable):
        await catalog.position(LANE)


def test_an_identity_survives_its_encoding() -> None:
    for identity in identities_of(an_object(1, 1, [accepted("a", keyed=True)])):
        assert msgspec.json.decode(msgspec.json.encode(identity), type=Identity) == identity
