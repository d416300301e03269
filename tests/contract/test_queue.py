"""The queue on a real server: each submission is stored once, complete and contiguous; reads skip no message."""

import asyncio
import signal
from collections.abc import Sequence
from itertools import chain, pairwise, repeat

import pytest

from bronze.errors import Halted, Misconfigured, Unavailable
from bronze.protocol.chain import Gap, Tail
from bronze.protocol.lane import Lane
from bronze.protocol.message import (
    FILE_NAME_CHARS_MAX,
    HEADER_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    AcceptedSubmission,
    Message,
    Part,
)
from bronze.protocol.principals import NAME_BYTES_MAX
from bronze.queue_servers import QueueServers
from bronze.records.sources import CLASSIFICATION_ID_CHARS_MAX
from bronze.servers.jetstream import JetStream, Outgoing
from bronze.servers.key_value import KeyValueStore
from bronze.servers.queue import NatsQueue, Superseded, boot_time_s
from bronze.settings import Settings
from local.machine import limit_s
from local.programs import LOOPBACK, Process, free_ports
from tests.contract.making import Submission, submission, until, vehicle, wide
from tests.contract.twins import on_both

ONE = [vehicle("a")]
MANY = wide("a", 3)


async def submit(
    queue: NatsQueue, lane: Lane, submitted: Submission, within_s: float = 10
) -> AcceptedSubmission | None:
    return await queue.submit(lane, submitted.accepted, submitted.checked, boot_time_s() + within_s)


async def read_all(queue: NatsQueue, lane: Lane) -> list[Message]:
    """All messages of a lane, read as a consumer reads them."""
    messages: list[Message] = []
    while True:
        tail = Tail(messages[-1].sequence, messages[-1].time) if messages else None
        read = await queue.read(lane, tail)
        if not read:
            return messages
        messages += read


def payloads(messages: Sequence[Message]) -> list[bytes]:
    return [message.content() for message in messages]


# --- opening


async def test_racing_processes_open_the_same_lanes(settings: Settings) -> None:
    """The server accepts one stream per subject, so all get the same epoch."""
    several = settings.model_copy(update={"lanes": 2})
    connections = [await JetStream.connect(settings.queue_servers) for _ in range(4)]
    try:
        opened = await asyncio.gather(
            *(
                NatsQueue(connection, KeyValueStore(connection, 1), several).open(["vehicles", "status"])
                for connection in connections
            )
        )
    finally:
        for connection in connections:
            await connection.close()
    assert all(lanes == opened[0] for lanes in opened)
    assert [(lane.source, lane.number) for lane in opened[0]] == [
        ("vehicles", 0),
        ("vehicles", 1),
        ("status", 0),
        ("status", 1),
    ]


@on_both
@pytest.mark.parametrize(("name", "value"), [("bucket", "another"), ("prefix", "another"), ("lanes", 7)])
async def test_settings_that_differ_from_those_of_the_lanes_are_refused(
    jetstream: JetStream, lane: Lane, settings: Settings, name: str, value: object
) -> None:
    """The error has both values: that of the stream and that of the settings."""
    with pytest.raises(Misconfigured) as refused:
        await NatsQueue(jetstream, KeyValueStore(jetstream, 1), settings.model_copy(update={name: value})).open(
            ["vehicles"]
        )
    assert f"'{getattr(settings, name)}'" in str(refused.value)
    assert f"'{value}'" in str(refused.value)


async def test_another_server_on_the_port_is_refused(settings: Settings) -> None:
    with pytest.raises(Misconfigured, match="BRONZE_NATS_SERVER_NAME"):
        await JetStream.connect(settings.queue_servers, server_name="ours")


async def test_no_server_on_the_port_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        await JetStream.connect(QueueServers((f"nats://{LOOPBACK}:{free_ports()}",)))


# --- submitting


@on_both
@pytest.mark.parametrize("records", [ONE, MANY], ids=["one message", "several"])
async def test_a_submission_is_read_completely_and_in_order(queue: NatsQueue, lane: Lane, records: list[bytes]) -> None:
    submitted = submission(*records)
    assert await submit(queue, lane, submitted) is None
    messages = await read_all(queue, lane)
    assert payloads(messages) == records
    assert [Part.parse(message.headers) for message in messages] == [
        part for part, _ in submitted.checked.parts(submitted.accepted)
    ]
    assert {message.submission_id for message in messages} == {submitted.id}
    assert await queue.find_submission(lane, submitted.id) == submitted.accepted
    assert await queue.find_submission(lane, "another") is None
    state = await queue.state(lane)
    assert (state.first, state.last, state.messages) == (1, len(records), len(records))


@on_both
async def test_the_messages_of_a_submission_are_contiguous(queue: NatsQueue, lane: Lane) -> None:
    several = [submission(*wide(name, 3)) for name in "abcde"] + [submission(vehicle(f"s{n}")) for n in range(20)]
    assert await asyncio.gather(*(submit(queue, lane, submitted) for submitted in several)) == [None] * len(several)
    ids = [message.submission_id for message in await read_all(queue, lane)]
    assert len(ids) == 5 * 3 + 20
    assert sum(earlier != later for earlier, later in pairwise(ids)) == len(several) - 1


@on_both
@pytest.mark.parametrize("records", [ONE, MANY], ids=["one message", "several"])
async def test_a_repeat_stores_nothing_and_returns_the_accepted_submission(
    queue: NatsQueue, lane: Lane, records: list[bytes]
) -> None:
    """With the values of the first 202, whatever the values of the repeat are."""
    first, repeated = (submission(*records, key="k", trace_id=digit * 32) for digit in "12")
    assert await submit(queue, lane, first) is None
    assert await submit(queue, lane, repeated) == first.accepted
    assert len(await read_all(queue, lane)) == len(records)


@on_both
@pytest.mark.parametrize("other", [[vehicle("b")], wide("b", 2)], ids=["one message", "several"])
async def test_another_body_under_the_same_key_is_detected(queue: NatsQueue, lane: Lane, other: list[bytes]) -> None:
    first = submission(*ONE, key="k")
    await submit(queue, lane, first)
    earlier = await submit(queue, lane, submission(*other, key="k"))
    assert earlier is not None
    assert earlier.digest == first.checked.digest
    assert len(await read_all(queue, lane)) == 1


@on_both
@pytest.mark.parametrize("records", [ONE, MANY], ids=["one message", "several"])
async def test_of_racing_repeats_one_is_stored(queue: NatsQueue, lane: Lane, records: list[bytes]) -> None:
    repeats = [submission(*records, key="k", trace_id=f"{number:032}") for number in range(8)]
    answers = await asyncio.gather(*(submit(queue, lane, repeat) for repeat in repeats))
    assert answers.count(None) == 1
    (stored,) = {answer.trace_id for answer in answers if answer}
    assert stored == f"{answers.index(None):032}"
    assert len(await read_all(queue, lane)) == len(records)


class PurgedBeforeGet(JetStream):
    """A consumer stores and purges the subject after the refusal and before the subject is read."""

    async def get_last(self, stream: str, subject: str) -> Message | None:
        await self.purge_below(stream, (await self.state(stream)).last + 1)
        return await super().get_last(stream, subject)


async def test_a_subject_that_was_purged_after_the_refusal_is_superseded(
    queue: NatsQueue, lane: Lane, settings: Settings
) -> None:
    await submit(queue, lane, submission(*ONE, key="k"))
    connection = await PurgedBeforeGet.connect(settings.queue_servers)
    try:
        with pytest.raises(Superseded):
            await submit(
                NatsQueue(connection, KeyValueStore(connection, 1), settings),
                lane,
                submission(*ONE, key="k", trace_id="1" * 32),
            )
    finally:
        await connection.close()


@on_both
@pytest.mark.parametrize("records", [[vehicle("a", MESSAGE_BYTES_MAX - HEADER_BYTES_MAX - 2)], wide("a", 2)])
async def test_the_largest_message_with_the_longest_headers_fits(
    queue: NatsQueue, lane: Lane, records: list[bytes]
) -> None:
    """The server's limit includes the headers: names of the greatest length, in characters with the longest escapes."""
    longest = "\N{PILE OF POO}" * CLASSIFICATION_ID_CHARS_MAX
    submitted = submission(
        *records,
        classification_id=longest,
        classification_default=longest,
        origin="\N{PILE OF POO}" * FILE_NAME_CHARS_MAX,
        principal="p" * NAME_BYTES_MAX,
    )
    assert await submit(queue, lane, submitted) is None
    assert await queue.find_submission(lane, submitted.id) == submitted.accepted


# --- refusals and outages


@on_both
@pytest.mark.parametrize("records", [ONE, MANY], ids=["one message", "several"])
async def test_a_full_queue_refuses_and_stores_nothing(
    jetstream: JetStream, settings: Settings, records: list[bytes]
) -> None:
    queue = NatsQueue(jetstream, KeyValueStore(jetstream, 1), settings.model_copy(update={"queue_bytes_max": 10_000}))
    (lane,) = await queue.open(["vehicles"])
    for _ in range(2):
        await submit(queue, lane, submission(vehicle("filler", 3_900)))
    with pytest.raises(Unavailable) as full:
        await submit(queue, lane, submission(*records, vehicle("b", 2_000)))
    assert (full.value.code, full.value.retry_after_s) == ("queue-full", 10)
    assert len(await read_all(queue, lane)) == 2


@on_both
@pytest.mark.parametrize("records", [ONE, MANY], ids=["one message", "several"])
async def test_nothing_is_published_after_the_deadline(queue: NatsQueue, lane: Lane, records: list[bytes]) -> None:
    """A message that is published after the purge grace could be stored twice."""
    with pytest.raises(Unavailable):
        await submit(queue, lane, submission(*records), within_s=-0.001)
    assert await read_all(queue, lane) == []


@on_both
@pytest.mark.parametrize("reads", [2, 3], ids=["while it waits for a batch", "before the commit"])
async def test_a_batch_whose_deadline_passes_is_not_stored_and_not_accepted(
    jetstream: JetStream, lane: Lane, settings: Settings, reads: int
) -> None:
    """The clock jumps past the deadline after some reads, as if the process was paused."""
    clock = chain(repeat(0.0, reads), repeat(100.0))
    queue = NatsQueue(jetstream, KeyValueStore(jetstream, 1), settings, now_s=lambda: next(clock))
    submitted = submission(*MANY)
    with pytest.raises(Unavailable):
        await queue.submit(lane, submitted.accepted, submitted.checked, 50.0)
    assert await read_all(queue, lane) == []


@pytest.mark.parametrize("records", [ONE, MANY], ids=["one message", "several"])
async def test_nothing_is_sent_later_to_a_server_that_was_killed(
    queue: NatsQueue, lane: Lane, nats: Process, jetstream: JetStream, records: list[bytes]
) -> None:
    """A submission during the outage is refused and never appears; the next one after it is stored once."""
    nats.signal(signal.SIGKILL)
    await until(lambda: not jetstream.connected)
    with pytest.raises(Unavailable) as refused:
        await submit(queue, lane, submission(*records))
    assert refused.value.code == "queue-away"
    await asyncio.to_thread(nats.restart)
    after = submission(*records)
    assert await submit_until_available(queue, lane, after) is None
    assert {message.submission_id for message in await read_all(queue, lane)} == {after.id}


async def submit_until_available(queue: NatsQueue, lane: Lane, submitted: Submission) -> AcceptedSubmission | None:
    """Submit as a client does: retry under the same id while the queue is unavailable."""
    async with asyncio.timeout(limit_s(20)):
        while True:
            try:
                return await submit(queue, lane, submitted)
            except Unavailable:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("records", [ONE, MANY], ids=["one message", "several"])
async def test_publishing_again_settles_a_late_answer(
    queue: NatsQueue, lane: Lane, nats: Process, records: list[bytes]
) -> None:
    """The server pauses for longer than a request waits, and then applies it: it is stored once, and accepted."""
    nats.signal(signal.SIGSTOP)
    try:
        submitting = asyncio.create_task(submit(queue, lane, submission(*records), within_s=20))
        done, _ = await asyncio.wait({submitting}, timeout=2.5)
        assert not done
    finally:
        nats.signal(signal.SIGCONT)
    assert await submitting is None
    assert len(await read_all(queue, lane)) == len(records)


async def test_an_unknown_outcome_names_the_submission_and_a_retry_settles_it(
    queue: NatsQueue, lane: Lane, nats: Process
) -> None:
    """The late request is applied after its caller gave up; the retry finds it."""
    first, repeated = (submission(*ONE, key="k", trace_id=digit * 32) for digit in "12")
    nats.signal(signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable) as unknown:
            await submit(queue, lane, first, within_s=limit_s(0.5))
    finally:
        nats.signal(signal.SIGCONT)
    assert unknown.value.code == "outcome-unknown"
    assert unknown.value.members == {"submission_id": first.id}
    assert await submit(queue, lane, repeated) == first.accepted
    assert len(await read_all(queue, lane)) == 1


async def test_a_submission_waits_for_a_free_batch_until_the_deadline(
    queue: NatsQueue, lane: Lane, jetstream: JetStream
) -> None:
    """50 other batches are open, and the server accepts no more. The answer says that nothing was stored."""
    open_batch = {"Nats-Batch-Sequence": "1"}
    for number in range(50):
        message = Outgoing(f"bronze.vehicles.0.x{number}", b"", {**open_batch, "Nats-Batch-Id": f"b{number}"})
        await jetstream._request(message.subject, message.payload, message.headers)
    with pytest.raises(Unavailable) as busy:
        await submit(queue, lane, submission(*MANY), within_s=1)
    assert busy.value.code == "queue-away"
    assert await submit(queue, lane, submission(*ONE)) is None
    assert len(await read_all(queue, lane)) == 1


@on_both
async def test_batches_above_the_limit_of_the_process_wait(
    jetstream: JetStream, lane: Lane, settings: Settings
) -> None:
    queue = NatsQueue(jetstream, KeyValueStore(jetstream, 1), settings.model_copy(update={"open_batches_max": 1}))
    several = [submission(*wide(name, 2)) for name in "abcd"]
    assert await asyncio.gather(*(submit(queue, lane, submitted) for submitted in several)) == [None] * 4


async def test_a_replaced_stream_halts(queue: NatsQueue, lane: Lane, jetstream: JetStream) -> None:
    """An operator deleted the stream, and it was created again: its messages are lost, so nothing may be published."""
    await jetstream.api(f"STREAM.DELETE.{lane.stream}")
    (other,) = await queue.open(["vehicles"])
    assert other.epoch != lane.epoch
    for records in (ONE, MANY):
        with pytest.raises(Halted, match="restart this process"):
            await submit(queue, lane, submission(*records))
    assert await read_all(queue, other) == []


# --- reading


async def fill(queue: NatsQueue, lane: Lane, messages: int) -> list[Message]:
    for number in range(messages):
        await submit(queue, lane, submission(vehicle(str(number))))
    return await read_all(queue, lane)


@on_both
async def test_a_read_continues_after_the_tail_and_a_purge_keeps_the_tail(queue: NatsQueue, lane: Lane) -> None:
    messages = await fill(queue, lane, 5)
    anchor = Tail(messages[2].sequence, messages[2].time)
    assert await queue.read(lane, anchor) == messages[3:]
    await queue.purge_below(lane, anchor.sequence)
    assert await queue.read(lane, anchor) == messages[3:]
    assert (await queue.state(lane)).first == anchor.sequence
    assert await queue.get(lane, 2) is None
    assert await queue.get(lane, 3) == messages[2]


@on_both
async def test_the_queue_reports_whether_messages_wait(queue: NatsQueue, lane: Lane) -> None:
    await fill(queue, lane, 2)
    assert [await queue.has_after(lane, after) for after in (0, 1, 2)] == [True, True, False]


@on_both
async def test_times_and_headers_are_the_same_from_a_replica_and_from_the_leader(queue: NatsQueue, lane: Lane) -> None:
    """They are exactly equal, since the service compares them."""
    submitted = submission(*ONE, origin="\N{SNOWMAN} : \\ ")
    await submit(queue, lane, submitted)
    (read,) = await queue.read(lane, None)
    assert await queue.get(lane, 1) == read


async def test_a_missing_message_is_a_gap_and_the_leader_decides(
    queue: NatsQueue, lane: Lane, jetstream: JetStream
) -> None:
    """Messages before the gap are read; at the gap the lane halts only if the leader lacks the message too."""
    messages = await fill(queue, lane, 5)
    await jetstream.api(f"STREAM.MSG.DELETE.{lane.stream}", {"seq": 4})
    assert await queue.read(lane, None) == messages[:3]
    with pytest.raises(Gap) as gap:
        await queue.read(lane, Tail(3, messages[2].time))
    assert gap.value.sequence == 4
    with pytest.raises(Halted, match="rolled back"):
        await queue.halt_if_lost(lane, gap.value)
    await queue.halt_if_lost(lane, Gap(3))


@on_both
async def test_an_empty_chain_on_a_purged_stream_halts(queue: NatsQueue, lane: Lane) -> None:
    """The catalog was lost."""
    await fill(queue, lane, 3)
    await queue.purge_below(lane, 2)
    with pytest.raises(Gap) as gap:
        await queue.read(lane, None)
    with pytest.raises(Halted):
        await queue.halt_if_lost(lane, gap.value)


@on_both
async def test_an_anchor_with_another_time_halts(queue: NatsQueue, lane: Lane) -> None:
    """The queue was rolled back, and got as many messages as before."""
    messages = await fill(queue, lane, 3)
    with pytest.raises(Halted, match="rolled back"):
        await queue.read(lane, Tail(2, messages[0].time))


@on_both
async def test_an_anchor_beyond_the_end_is_a_gap(queue: NatsQueue, lane: Lane) -> None:
    """The queue was rolled back, and got fewer messages than before."""
    messages = await fill(queue, lane, 2)
    with pytest.raises(Gap):
        await queue.read(lane, Tail(7, messages[1].time))
