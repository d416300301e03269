"""The calls of JetStream that Bronze uses, on a real nats-server and on the queue of the delivery model.

The tests of `tests/delivery` rely on the model: where it behaves differently from the server, they prove nothing.
"""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence

import pytest

from bronze.errors import Gone, Unavailable
from bronze.protocol.message import Message
from bronze.servers import jetstream as js
from bronze.servers.jetstream import ApiError, JetStream, Missing, Outgoing
from bronze.servers.key_value import HELD, KeyChanged, KeyValueStore
from tests.contract.making import until
from tests.contract.twins import on_both
from tests.delivery.servers import BATCH_DISABLED, BATCH_INCOMPLETE, BATCH_TOO_LARGE, TTL_DISABLED, TTL_INVALID

pytestmark = on_both

NEW = {js.EXPECTED_LAST_SUBJECT_SEQUENCE: "0"}
READ_ALL = {"messages_max": 1_000, "bytes_max": 2**24}


async def create_stream(jetstream: JetStream, name: str = "A", **config: object) -> None:
    """Create a stream on `{name}.*`, in lower case, as the queue creates its streams."""
    await jetstream.create_stream(
        {
            "name": name,
            "subjects": [f"{name.lower()}.*"],
            "storage": "file",
            "retention": "limits",
            "discard": "new",
            "num_replicas": 1,
            "allow_atomic": True,
            "allow_direct": True,
            **config,
        }
    )


def message(subject: str, payload: bytes = b"", headers: Mapping[str, str] | None = None) -> Outgoing:
    return Outgoing(subject, payload, dict(headers or {}))


def expecting(subject: str, sequence: int, payload: bytes = b"") -> Outgoing:
    return Outgoing(subject, payload, {js.EXPECTED_LAST_SUBJECT_SEQUENCE: str(sequence)})


async def batch(jetstream: JetStream, *messages: Outgoing) -> int:
    return await jetstream.publish_batch(messages, len(messages))


async def fill(jetstream: JetStream, messages: int, subjects: int = 1, size: int = 0) -> None:
    for number in range(messages):
        await jetstream.publish(message(f"a.{number % subjects}", b"x" * size))


async def assert_refused(call: Awaitable[object], err_code: int) -> None:
    with pytest.raises(ApiError) as refused:
        await call
    assert refused.value.err_code == err_code


async def read_all(jetstream: JetStream, stream: str = "A") -> list[Message]:
    return await jetstream.read(stream, 1, **READ_ALL)


def sequences(messages: Sequence[Message]) -> list[int]:
    return [message.sequence for message in messages]


async def test_headers_are_read_without_payloads(jetstream: JetStream) -> None:
    """In order from a sequence on, and past messages that were purged; a later read does not depend on an earlier."""
    await create_stream(jetstream)
    for number in range(5):
        await jetstream.publish(message(f"a.{number}", b"x" * 1_000, {"Bronze-Records": str(number)}))
    await jetstream.purge_below("A", 2)
    read = await jetstream.read_headers("A", 1, messages_max=3)
    assert [(header.sequence, dict(header.headers)) for header in read] == [
        (number + 1, {"Bronze-Records": str(number)}) for number in (1, 2, 3)
    ]
    assert [header.sequence for header in await jetstream.read_headers("A", 5, messages_max=3)] == [5]
    assert await jetstream.read_headers("A", 6, messages_max=3) == []
    with pytest.raises(Missing):
        await jetstream.read_headers("B", 1, messages_max=3)


# --- publishing


async def test_a_message_is_stored_as_it_was_sent(jetstream: JetStream) -> None:
    """Leader and replica return exactly the same: the service compares times and headers."""
    await create_stream(jetstream)
    sent = Outgoing("a.x", b"payload", {**NEW, js.EXPECTED_STREAM: "A", "Bronze-Some": "value : \\ %E2%98%83"})
    assert await jetstream.publish(sent) == 1
    (read,) = await read_all(jetstream)
    assert (read.sequence, read.subject, read.payload, dict(read.headers)) == (1, "a.x", b"payload", sent.headers)
    assert await jetstream.get("A", 1) == read
    assert await jetstream.get_last("A", "a.x") == read


async def test_a_subject_in_use_is_refused(jetstream: JetStream) -> None:
    await create_stream(jetstream)
    await jetstream.publish(expecting("a.x", 0))
    await assert_refused(jetstream.publish(expecting("a.x", 0)), js.WRONG_LAST_SEQUENCE)
    await assert_refused(jetstream.publish(expecting("a.x", 2)), js.WRONG_LAST_SEQUENCE)
    await assert_refused(jetstream.publish(expecting("a.y", 1)), js.WRONG_LAST_SEQUENCE)
    assert await jetstream.publish(expecting("a.x", 1)) == 2
    assert sequences(await read_all(jetstream)) == [1, 2]


async def test_of_racing_publishers_to_a_subject_one_is_stored(jetstream: JetStream) -> None:
    await create_stream(jetstream)
    answers = await asyncio.gather(*(jetstream.publish(expecting("a.x", 0)) for _ in range(8)), return_exceptions=True)
    assert answers.count(1) == 1
    assert {answer.err_code for answer in answers if isinstance(answer, ApiError)} == {js.WRONG_LAST_SEQUENCE}
    assert sequences(await read_all(jetstream)) == [1]


async def test_a_message_that_expects_another_stream_is_refused(jetstream: JetStream) -> None:
    """Before the subject is checked, and in a batch at any place."""
    await create_stream(jetstream)
    other = {js.EXPECTED_STREAM: "B", js.EXPECTED_LAST_SUBJECT_SEQUENCE: "7"}
    await assert_refused(jetstream.publish(message("a.x", headers=other)), js.WRONG_STREAM)
    await assert_refused(batch(jetstream, message("a.x", headers=other), message("a.x")), js.WRONG_STREAM)
    await assert_refused(batch(jetstream, message("a.x"), message("a.y", headers=other)), js.WRONG_STREAM)
    assert await read_all(jetstream) == []


async def test_a_subject_of_no_stream_is_missing(jetstream: JetStream) -> None:
    await create_stream(jetstream)
    for call in (jetstream.publish(message("b.x")), batch(jetstream, message("b.x"), message("b.x"))):
        with pytest.raises(Missing):
            await call


# --- batches


async def test_a_batch_is_stored_whole_and_together(jetstream: JetStream) -> None:
    """Only the first message of a subject has an expectation, and all are stored as they were sent."""
    await create_stream(jetstream)
    first = Outgoing("a.x", b"0", {**NEW, js.EXPECTED_STREAM: "A"})
    sent = [first, *(Outgoing("a.x", b"%d" % number, {"Number": str(number)}) for number in range(1, 40))]
    racing = [asyncio.create_task(jetstream.publish(message(f"a.other{n}"))) for n in range(20)]
    last = await batch(jetstream, *sent)
    await asyncio.gather(*racing)
    stored = [message for message in await read_all(jetstream) if message.subject == "a.x"]
    assert sequences(stored) == list(range(last - 39, last + 1))
    assert [message.payload for message in stored] == [message.payload for message in sent]
    headers = [{name: value for name, value in message.headers.items() if "Batch" not in name} for message in stored]
    assert headers == [message.headers for message in sent]


async def test_a_batch_with_a_subject_in_use_stores_nothing(jetstream: JetStream) -> None:
    await create_stream(jetstream)
    await batch(jetstream, expecting("a.x", 0), message("a.x"))
    await assert_refused(batch(jetstream, expecting("a.x", 0), message("a.x")), js.WRONG_LAST_SEQUENCE)
    assert sequences(await read_all(jetstream)) == [1, 2]
    assert await batch(jetstream, expecting("a.y", 0), message("a.y")) == 4


async def test_each_message_of_a_batch_may_expect_that_its_subject_is_free(jetstream: JetStream) -> None:
    """As a group of submissions: if one subject is in use, at any place, nothing of the batch is stored."""
    await create_stream(jetstream)
    headers = {**NEW, js.EXPECTED_STREAM: "A"}
    assert await batch(jetstream, *(message(f"a.{number}", headers=headers) for number in range(40))) == 40
    for in_use in range(3):
        subjects = [f"a.{number}" if number == in_use else f"a.new{number}" for number in range(3)]
        await assert_refused(
            batch(jetstream, *(message(subject, headers=headers) for subject in subjects)), js.WRONG_LAST_SEQUENCE
        )
    assert sequences(await read_all(jetstream)) == list(range(1, 41))


async def test_a_batch_is_compared_and_set_on_its_last_message(jetstream: JetStream) -> None:
    """As the catalog appends: the other messages have no expectation."""
    await create_stream(jetstream)
    assert await batch(jetstream, message("a.id1"), expecting("a.entry", 0)) == 2
    assert await batch(jetstream, message("a.id1"), message("a.id2"), expecting("a.entry", 2)) == 5
    await assert_refused(batch(jetstream, message("a.id3"), expecting("a.entry", 2)), js.WRONG_LAST_SEQUENCE)
    assert await jetstream.get_last("A", "a.id3") is None
    assert sequences(await read_all(jetstream)) == [1, 2, 3, 4, 5]


async def test_of_racing_batches_at_a_position_one_is_stored(jetstream: JetStream) -> None:
    await create_stream(jetstream)
    answers = await asyncio.gather(
        *(batch(jetstream, message(f"a.id{n}"), expecting("a.entry", 0)) for n in range(6)), return_exceptions=True
    )
    assert answers.count(2) == 1
    refusals = {answer.err_code for answer in answers if isinstance(answer, ApiError)}
    assert refusals <= {js.WRONG_LAST_SEQUENCE, js.SUBJECT_WRITE_IN_FLIGHT}
    assert sequences(await read_all(jetstream)) == [1, 2]


async def test_a_subject_that_the_batch_itself_writes_is_in_flight(jetstream: JetStream) -> None:
    """Therefore only the first message of a submission expects that its subject is free."""
    await create_stream(jetstream)
    await assert_refused(batch(jetstream, expecting("a.x", 0), expecting("a.x", 0)), js.SUBJECT_WRITE_IN_FLIGHT)
    await assert_refused(batch(jetstream, message("a.x"), expecting("a.x", 0)), js.SUBJECT_WRITE_IN_FLIGHT)
    assert await read_all(jetstream) == []


async def test_a_batch_of_one_is_a_message(jetstream: JetStream) -> None:
    await create_stream(jetstream)
    assert await batch(jetstream, expecting("a.x", 0)) == 1
    await assert_refused(batch(jetstream, expecting("a.x", 0)), js.WRONG_LAST_SEQUENCE)


async def test_a_batch_has_at_most_1000_messages(jetstream: JetStream) -> None:
    await create_stream(jetstream)
    messages = [message(f"a.{number}") for number in range(1_001)]
    await assert_refused(batch(jetstream, *messages), BATCH_TOO_LARGE)
    assert await batch(jetstream, *messages[:1_000]) == 1_000


async def test_a_batch_belongs_to_one_stream(jetstream: JetStream) -> None:
    await create_stream(jetstream)
    await create_stream(jetstream, "B")
    await assert_refused(batch(jetstream, message("a.x"), message("b.x")), BATCH_INCOMPLETE)
    assert [await read_all(jetstream, name) for name in "AB"] == [[], []]


async def test_a_stream_accepts_batches_only_if_configured(jetstream: JetStream) -> None:
    await create_stream(jetstream, allow_atomic=False)
    await assert_refused(batch(jetstream, message("a.x"), message("a.x")), BATCH_DISABLED)


async def test_a_batch_after_its_deadline_is_not_stored(jetstream: JetStream) -> None:
    await create_stream(jetstream)
    with pytest.raises(Unavailable):
        await jetstream.publish_batch([message("a.x"), message("a.x")], 2, in_time=lambda: False)
    assert await read_all(jetstream) == []


# --- full and sealed streams, times to live


async def test_a_full_stream_refuses_and_keeps_what_it_has(jetstream: JetStream) -> None:
    """A batch as a whole. The subject is checked first, so that a repeated message is recognized."""
    await create_stream(jetstream, max_bytes=1_000)
    await fill(jetstream, 2, subjects=2, size=400)
    await assert_refused(jetstream.publish(message("a.x", b"x" * 400)), js.STREAM_FULL)
    await assert_refused(batch(jetstream, message("a.x", b"x" * 20), message("a.x", b"x" * 400)), js.STREAM_FULL)
    await assert_refused(jetstream.publish(expecting("a.0", 0, b"x" * 400)), js.WRONG_LAST_SEQUENCE)
    assert sequences(await read_all(jetstream)) == [1, 2]
    assert await jetstream.publish(message("a.x", b"x" * 20)) == 3
    await jetstream.purge_below("A", 2)
    assert await jetstream.publish(message("a.x", b"x" * 300)) == 4


async def test_a_sealed_stream_accepts_and_deletes_nothing_and_can_be_read(jetstream: JetStream) -> None:
    """It refuses a message as sealed whatever else is wrong with it, and it stays sealed."""
    await create_stream(jetstream)
    await fill(jetstream, 3)
    await jetstream.seal("A")
    assert (await jetstream.state("A")).sealed
    for outgoing in (message("a.x"), expecting("a.0", 0), message("a.x", headers={js.EXPECTED_STREAM: "B"})):
        await assert_refused(jetstream.publish(outgoing), js.SEALED)
    await assert_refused(batch(jetstream, expecting("a.x", 0), message("a.x")), js.SEALED)
    with pytest.raises(Unavailable):
        await jetstream.purge_below("A", 2)
    with pytest.raises(Unavailable):
        await jetstream.update_stream("A", sealed=False)
    assert sequences(await read_all(jetstream)) == [1, 2, 3]
    assert await jetstream.get("A", 2) is not None


async def test_a_message_expires_after_its_time_to_live(jetstream: JetStream) -> None:
    """Then its subject is free, and its sequence is not used again."""
    await create_stream(jetstream, allow_msg_ttl=True)
    await batch(jetstream, message("a.x", headers={js.TTL: "1s"}), expecting("a.entry", 0))
    for number, ttl in enumerate(("24h", "720h", "never", "2")):
        await jetstream.publish(message(f"a.{number}", headers={js.TTL: ttl}))
    assert (await jetstream.get_last("A", "a.x")) is not None

    async def expired() -> bool:
        return sequences(await read_all(jetstream)) == [2, 3, 4, 5]

    await until(expired)
    assert await jetstream.get("A", 1) is None
    assert await jetstream.last_messages("A", ["a.x"]) == []
    state = await jetstream.state("A")
    assert (state.first, state.last, state.messages) == (2, 6, 4)
    assert await jetstream.publish(expecting("a.x", 0)) == 7


@pytest.mark.parametrize("ttl", ["30d", "0", "100ms"])
async def test_an_invalid_time_to_live_is_refused(jetstream: JetStream, ttl: str) -> None:
    await create_stream(jetstream, allow_msg_ttl=True)
    expiring = message("a.x", headers={js.TTL: ttl})
    await assert_refused(jetstream.publish(expiring), TTL_INVALID)
    await assert_refused(batch(jetstream, expiring, message("a.y")), TTL_INVALID)
    assert await read_all(jetstream) == []


async def test_a_stream_accepts_times_to_live_only_if_configured(jetstream: JetStream) -> None:
    await create_stream(jetstream)
    expiring = message("a.x", headers={js.TTL: "24h"})
    await assert_refused(jetstream.publish(expiring), TTL_DISABLED)
    await assert_refused(batch(jetstream, expiring, message("a.y")), TTL_DISABLED)


# --- reading


async def test_a_read_gives_a_range_in_order_within_its_bounds(jetstream: JetStream) -> None:
    """The first message is always returned; the message that exceeds the bound of bytes is the last."""
    await create_stream(jetstream)
    await fill(jetstream, 20, subjects=3, size=100)

    async def read(first: int, messages_max: int, bytes_max: int) -> list[int]:
        return sequences(await jetstream.read("A", first, messages_max=messages_max, bytes_max=bytes_max))

    assert await read(1, 100, 2**20) == list(range(1, 21))
    assert await read(3, 4, 2**20) == [3, 4, 5, 6]
    assert await read(19, 4, 2**20) == [19, 20]
    assert [len(await read(5, 100, bytes_max)) for bytes_max in (1, 100, 150, 250, 1_000)] == [1, 1, 2, 3, 10]
    assert await read(21, 4, 2**20) == await read(99, 4, 2**20) == []


async def test_a_read_of_a_subject_returns_how_many_follow(jetstream: JetStream) -> None:
    """From a sequence or from a time on; wildcards are allowed."""
    await create_stream(jetstream)
    await fill(jetstream, 20, subjects=2)

    async def read(subject: str, begin: int | str, messages_max: int) -> tuple[list[int], int]:
        messages, remaining = await jetstream.read_subject(
            "A", subject, begin, messages_max=messages_max, bytes_max=2**20
        )
        return sequences(messages), remaining

    assert await read("a.1", 1, 3) == ([2, 4, 6], 7)
    assert await read("a.1", 18, 3) == ([18, 20], 0)
    assert await read("a.>", 4, 2) == ([4, 5], 15)
    assert await read("a.none", 1, 2) == await read("a.>", 21, 2) == ([], 0)
    fifth = await jetstream.get("A", 5)
    assert fifth is not None
    assert await read("a.*", fifth.time, 2) == ([5, 6], 14)
    assert await read("a.*", "2099-01-01T00:00:00Z", 2) == ([], 0)


async def test_the_last_message_of_each_subject_comes_in_the_streams_order(jetstream: JetStream) -> None:
    """In any order of the request; a subject that is requested twice is returned once."""
    await create_stream(jetstream)
    await fill(jetstream, 9, subjects=3)
    assert sequences(await jetstream.last_messages("A", ["a.2", "a.0", "a.none"])) == [7, 9]
    assert sequences(await jetstream.last_messages("A", ["a.1", "a.*"])) == [7, 8, 9]
    last = [await jetstream.get_last("A", subject) for subject in ("a.1", "a.*", "a.none")]
    assert [found and found.sequence for found in last] == [8, 9, None]


async def test_a_replica_reports_whether_it_has_a_message_from_a_sequence_on(jetstream: JetStream) -> None:
    await create_stream(jetstream)
    assert not await jetstream.has("A", 1)
    await fill(jetstream, 3)
    await jetstream.purge_below("A", 3)
    assert [await jetstream.has("A", sequence) for sequence in (1, 3, 4, 9)] == [True, True, False, False]


async def test_a_missing_message_is_none(jetstream: JetStream) -> None:
    await create_stream(jetstream)
    assert await jetstream.get("A", 1) is None
    assert await jetstream.get_last("A", "a.x") is None
    assert await jetstream.last_messages("A", ["a.x"]) == []
    assert await read_all(jetstream) == []


# --- purging


async def test_a_purge_keeps_its_sequence_and_what_follows(jetstream: JetStream) -> None:
    """And never restores messages that an earlier purge deleted."""
    await create_stream(jetstream)
    await fill(jetstream, 5)
    for below in (3, 2):
        await jetstream.purge_below("A", below)
        assert sequences(await read_all(jetstream)) == [3, 4, 5]
    assert await jetstream.get("A", 2) is None
    state = await jetstream.state("A")
    assert (state.first, state.last, state.messages) == (3, 5, 3)


async def test_a_purge_of_all_frees_the_subjects_and_no_sequence(jetstream: JetStream) -> None:
    await create_stream(jetstream)
    await fill(jetstream, 3)
    await jetstream.purge_below("A", 4)
    state = await jetstream.state("A")
    assert (state.first, state.last, state.messages) == (4, 3, 0)
    assert await jetstream.publish(expecting("a.0", 0)) == 4


async def test_a_purge_beyond_the_end_moves_the_end(jetstream: JetStream) -> None:
    """The next message gets the sequence of the purge."""
    await create_stream(jetstream)
    await fill(jetstream, 3)
    await jetstream.purge_below("A", 10)
    state = await jetstream.state("A")
    assert (state.first, state.last, state.messages) == (10, 9, 0)
    assert await jetstream.publish(message("a.x")) == 10
    assert sequences(await read_all(jetstream)) == [10]


async def test_a_purge_that_leaves_nothing_hides_no_later_message(jetstream: JetStream) -> None:
    """As on a replica that lacks the message which the purge should keep."""
    await create_stream(jetstream)
    await fill(jetstream, 4)
    await jetstream.delete_message("A", 4)
    await jetstream.purge_below("A", 4)
    await fill(jetstream, 5)
    await jetstream.purge_below("A", 7)
    state = await jetstream.state("A")
    assert (state.first, state.last, state.messages) == (7, 9, 3)
    await jetstream.purge_below("A", 9)
    assert sequences(await read_all(jetstream)) == [9]


# --- streams


async def test_a_stream_reports_its_state(jetstream: JetStream) -> None:
    """`now` is the clock of the messages' times; a stream that never had a message begins at 0."""
    await create_stream(jetstream, metadata={"bronze.some": "value"})
    empty = await jetstream.state("A")
    assert (empty.name, empty.first, empty.last, empty.messages, empty.sealed) == ("A", 0, 0, 0, False)
    assert empty.metadata["bronze.some"] == "value"
    await fill(jetstream, 1)
    (only,) = await read_all(jetstream)
    assert empty.now < only.time < (await jetstream.state("A")).now
    await jetstream.update_stream("A", metadata={"bronze.other": "value"})
    changed = (await jetstream.state("A")).metadata
    assert {name: value for name, value in changed.items() if name.startswith("bronze.")} == {"bronze.other": "value"}


async def test_a_stream_is_created_once(jetstream: JetStream) -> None:
    """Creating it again changes nothing; another one with its name or its subjects is refused."""
    await create_stream(jetstream)
    await create_stream(jetstream)
    await assert_refused(create_stream(jetstream, max_bytes=1_000), js.STREAM_NAME_IN_USE)
    await assert_refused(create_stream(jetstream, "B", subjects=["a.>"]), js.SUBJECTS_OVERLAP)
    assert await jetstream.stream_names(">") == ["A"]


@pytest.mark.parametrize(
    ("subject", "names"),
    [("a.x", ["A"]), ("a.*", ["A"]), ("a.>", ["A"]), ("*.x", ["A", "B"]), (">", ["A", "B"]), ("a", []), ("a.x.y", [])],
)
async def test_streams_are_found_by_subjects(jetstream: JetStream, subject: str, names: list[str]) -> None:
    await create_stream(jetstream)
    await create_stream(jetstream, "B")
    assert sorted(await jetstream.stream_names(subject)) == names


async def test_a_stream_that_does_not_exist_is_missing(jetstream: JetStream) -> None:
    """Also one that was deleted; to delete it again is no error."""
    await create_stream(jetstream)
    await jetstream.delete_stream("A")
    await jetstream.delete_stream("A")
    calls: Sequence[Awaitable[object]] = (
        jetstream.state("A"),
        jetstream.seal("A"),
        jetstream.purge_below("A", 1),
        jetstream.publish(message("a.x")),
        jetstream.get("A", 1),
        jetstream.get_last("A", "a.x"),
        jetstream.has("A", 1),
        jetstream.read("A", 1, **READ_ALL),
        jetstream.last_messages("A", ["a.x"]),
    )
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Missing] * len(calls)


async def test_a_replaced_stream_is_gone(jetstream: JetStream) -> None:
    """While no other stream has its subjects, it may come back."""
    await create_stream(jetstream)
    await jetstream.delete_stream("A")
    with pytest.raises(Missing):
        async with jetstream.gone_if_replaced("A", "a.*"):
            await jetstream.state("A")
    await create_stream(jetstream, "OTHER", subjects=["a.*"])
    with pytest.raises(Gone):
        async with jetstream.gone_if_replaced("A", "a.*"):
            await jetstream.state("A")


# --- keys with compare-and-set, as claims and locks use them


@pytest.fixture
def key_values(jetstream: JetStream) -> KeyValueStore:
    return KeyValueStore(jetstream, 1)


async def test_of_racing_writers_at_a_revision_one_wins(key_values: KeyValueStore) -> None:
    """A key has only its last value, independent of other keys."""
    await key_values.open()
    await key_values.open()
    assert await key_values.get("lock.a.0.x") == (b"", 0)
    revision = 0
    for number in range(3):
        race = (key_values.put("lock.a.0.x", b"%d by %d" % (number, racer), revision) for racer in range(4))
        answers = await asyncio.gather(*race, return_exceptions=True)
        (won,) = (answer for answer in answers if isinstance(answer, int))
        assert sum(isinstance(answer, KeyChanged) for answer in answers) == 3
        value, revision = await key_values.get("lock.a.0.x")
        assert (value, revision) == (b"%d by %d" % (number, answers.index(won)), won)
        await key_values.put("lock.other.0.x", b"", (await key_values.get("lock.other.0.x"))[1])
    assert await key_values.get("lock.other.0.y") == (b"", 0)


async def test_keys_are_listed_by_prefix(key_values: KeyValueStore) -> None:
    await key_values.open()
    for key in ("schema.vehicles", "schema.status", "stream.vehicles.0"):
        await key_values.put(key, b"value", 0)
    assert sorted(await key_values.names("schema.")) == ["status", "vehicles"]
    assert await key_values.names("lock.") == []


async def test_racing_processes_create_one_stream(jetstream: JetStream, key_values: KeyValueStore) -> None:
    """A command that holds the claim prevents the others from creating the stream until it releases the claim."""
    config = {"storage": "file", "num_replicas": 1, "allow_direct": True}
    names = await asyncio.gather(*(key_values.open_stream("stream.a", "A", ["a.*"], config) for _ in range(4)))
    assert await jetstream.stream_names("a.*") == sorted(set(names))
    assert len(set(names)) == 1
    await key_values.hold_claim("stream.b", "bronze lanes 2")
    assert (await key_values.get("stream.b"))[0] == HELD + b"bronze lanes 2"
    with pytest.raises(Unavailable, match="bronze lanes 2"):
        await key_values.open_stream("stream.b", "B", ["b.*"], config)
    await key_values.release_claim("stream.b")
    assert (await key_values.get("stream.b"))[0] == b""
