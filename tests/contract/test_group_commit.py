"""Group commit: submissions that wait at the same moment become durable together, and each gets its own answer."""

import asyncio
import signal
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, cast

import pytest

from bronze.errors import Gone, Outage, Unavailable
from bronze.protocol.lane import Lane
from bronze.protocol.message import AcceptedSubmission, Part
from bronze.servers import jetstream as js
from bronze.servers.group_commit import GroupLimits
from bronze.servers.jetstream import ApiError, JetStream, Missing, Outgoing
from bronze.servers.key_value import KeyValueStore
from bronze.servers.queue import NatsQueue, boot_time_s
from bronze.settings import Settings
from local.machine import limit_s
from local.programs import Process
from tests.contract.making import Submission, submission, until, vehicle, wide
from tests.contract.test_queue import read_all, submit
from tests.contract.twins import on_both

#: A group as soon as two wait, and they wait for one that is on its way.
SMALL = GroupLimits(alone_max=1, messages_min=2, pause_s=0.0)
COUNT = 20


class Connection:
    """A connection that notes the size of each batch, and does something else than to send it if a test says so."""

    def __init__(self, jetstream: JetStream) -> None:
        self._jetstream = jetstream
        self.batches: list[int] = []
        self.alone = 0
        #: instead of the batch of a group, before or after it
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None
        #: what is on its way does not arrive before this
        self.message_arrives, self.batch_arrives = asyncio.Event(), asyncio.Event()
        self.message_arrives.set()
        self.batch_arrives.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._jetstream, name)

    async def publish(self, message: Outgoing) -> int:
        self.alone += 1
        await self.message_arrives.wait()
        return await self._jetstream.publish(message)

    async def publish_batch(self, messages: Iterable[Outgoing], count: int, **options: Any) -> int:
        self.batches.append(count)
        await self.batch_arrives.wait()
        self.before()
        last = await self._jetstream.publish_batch(messages, count, **options)
        self.after()
        return last


@pytest.fixture
def connection(jetstream: JetStream) -> Connection:
    return Connection(jetstream)


def queue_on(
    connection: Connection,
    settings: Settings,
    limits: GroupLimits = SMALL,
    now_s: Callable[[], float] = boot_time_s,
    **changes: object,
) -> NatsQueue:
    jetstream = cast(JetStream, connection)
    return NatsQueue(jetstream, KeyValueStore(jetstream, 1), settings.model_copy(update=changes), now_s, limits)


@pytest.fixture
def grouping(connection: Connection, settings: Settings) -> NatsQueue:
    return queue_on(connection, settings)


def several(count: int = COUNT) -> list[Submission]:
    return [submission(vehicle(str(number)), key=f"k{number}", trace_id=f"{number:032}") for number in range(count)]


async def submit_all(
    queue: NatsQueue, lane: Lane, submissions: Sequence[Submission], within_s: float = 10
) -> list[AcceptedSubmission | BaseException | None]:
    return await asyncio.gather(
        *(submit(queue, lane, submitted, within_s) for submitted in submissions), return_exceptions=True
    )


async def assert_stored_once(queue: NatsQueue, lane: Lane, submissions: Sequence[Submission]) -> None:
    """Each submission is in the lane once, with its own subject, headers and content."""
    messages = {message.submission_id: message for message in await read_all(queue, lane)}
    assert len(messages) == (await queue.state(lane)).messages == len(submissions)
    for submitted in submissions:
        ((part, payload),) = submitted.checked.parts(submitted.accepted)
        assert Part.parse(messages[submitted.id].headers) == part
        assert messages[submitted.id].payload == payload


async def turns() -> None:
    """Let every task run until it waits for a server."""
    for _ in range(10):
        await asyncio.sleep(0)


def fails_with(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


# --- when messages are published as a group


@on_both
async def test_submissions_of_the_same_moment_are_one_batch(
    connection: Connection, lane: Lane, settings: Settings
) -> None:
    queue, submissions = queue_on(connection, settings, GroupLimits()), several()
    assert await submit_all(queue, lane, submissions) == [None] * COUNT
    assert (connection.batches, connection.alone) == ([COUNT], 0)
    await assert_stored_once(queue, lane, submissions)


@on_both
async def test_a_few_submissions_are_published_alone(connection: Connection, lane: Lane, settings: Settings) -> None:
    limits = GroupLimits()
    queue, submissions = queue_on(connection, settings, limits), several(limits.messages_min - 1)
    assert await submit_all(queue, lane, submissions) == [None] * len(submissions)
    assert (connection.batches, connection.alone) == ([], len(submissions))
    await assert_stored_once(queue, lane, submissions)


@on_both
async def test_submissions_wait_while_others_are_on_their_way(
    connection: Connection, grouping: NatsQueue, lane: Lane
) -> None:
    """First for one that is alone, then for the group that waited for it."""
    first, *others = several(7)
    connection.message_arrives.clear()
    connection.batch_arrives.clear()
    tasks = [asyncio.create_task(submit(grouping, lane, first))]
    await until(lambda: connection.alone == 1)
    tasks += [asyncio.create_task(submit(grouping, lane, other)) for other in others[:3]]
    await turns()
    assert connection.batches == []
    connection.message_arrives.set()
    await until(lambda: connection.batches == [3])
    tasks += [asyncio.create_task(submit(grouping, lane, other)) for other in others[3:]]
    await turns()
    assert connection.batches == [3]
    connection.batch_arrives.set()
    assert await asyncio.gather(*tasks) == [None] * 7
    assert (connection.batches, connection.alone) == ([3, 3], 1)
    await assert_stored_once(grouping, lane, [first, *others])


@on_both
async def test_large_messages_and_repetitions_join_no_group(
    connection: Connection, lane: Lane, settings: Settings
) -> None:
    queue = queue_on(connection, settings, GroupLimits(1, 2, messages_max=4, payload_bytes_max=1_000, pause_s=0.0))
    small, large = several(4), submission(vehicle("large", 1_001))
    repeated = submission(vehicle("0"), key="k0", trace_id="f" * 32)
    above_most = submission(vehicle("above"))
    first, *others, again = await submit_all(queue, lane, [*small, large, above_most, repeated])
    assert others == [None] * 5
    assert (first, again) in [(None, small[0].accepted), (repeated.accepted, None)]
    assert connection.batches == [4]
    assert (await queue.state(lane)).messages == 6


@on_both
async def test_a_group_does_not_wait_for_a_free_batch(connection: Connection, lane: Lane, settings: Settings) -> None:
    """The process has one batch, which a larger submission uses: the small ones are published alone."""
    queue, submissions = queue_on(connection, settings, open_batches_max=1), several()
    connection.batch_arrives.clear()
    wide_one = submission(*wide("wide", 2))
    sending = asyncio.create_task(submit(queue, lane, wide_one))
    await until(lambda: connection.batches == [2])
    assert await submit_all(queue, lane, submissions) == [None] * COUNT
    connection.batch_arrives.set()
    assert await sending is None
    assert (connection.batches, connection.alone) == ([2], COUNT)


# --- a refused group: each is settled alone


@on_both
@pytest.mark.parametrize("place", [0, 7, COUNT - 1], ids=["first", "middle", "last"])
async def test_one_subject_in_use_changes_no_other_answer(
    connection: Connection, grouping: NatsQueue, lane: Lane, place: int
) -> None:
    """The batch is refused (10071). The repetition gets the earlier 202, and the others are accepted."""
    submissions = several()
    earlier = submission(vehicle(str(place)), key=f"k{place}", trace_id="e" * 32)
    assert await submit(grouping, lane, earlier) is None
    answers = await submit_all(grouping, lane, submissions)
    assert answers == [earlier.accepted if number == place else None for number in range(COUNT)]
    assert (connection.batches, connection.alone) == ([COUNT], COUNT + 1)
    submissions[place] = earlier
    await assert_stored_once(grouping, lane, submissions)


@on_both
async def test_another_body_in_a_group_is_detected(connection: Connection, grouping: NatsQueue, lane: Lane) -> None:
    earlier = submission(vehicle("another"), key="k3")
    await submit(grouping, lane, earlier)
    answers = await submit_all(grouping, lane, several())
    assert answers.pop(3) == earlier.accepted
    assert answers == [None] * (COUNT - 1)


@on_both
@pytest.mark.parametrize(
    "error",
    [
        *(
            ApiError(err_code, 503 if err_code == js.STREAM_FULL else 400, "refused")
            for err_code in (
                js.WRONG_LAST_SEQUENCE,
                js.SUBJECT_WRITE_IN_FLIGHT,
                js.STREAM_FULL,
                js.SEALED,
                js.WRONG_STREAM,
                js.TOO_MANY_OPEN_BATCHES,
                10176,  # a part of the batch did not arrive
            )
        ),
        Missing("A"),
    ],
    ids=str,
)
async def test_whatever_refuses_a_group_each_submission_is_settled_alone(
    connection: Connection, grouping: NatsQueue, lane: Lane, error: Exception
) -> None:
    connection.before, submissions = fails_with(error), several()
    assert await submit_all(grouping, lane, submissions) == [None] * COUNT
    assert (connection.batches, connection.alone) == ([COUNT], COUNT)
    await assert_stored_once(grouping, lane, submissions)


@on_both
async def test_after_a_refused_group_submissions_are_published_alone_for_a_while(
    connection: Connection, lane: Lane, settings: Settings
) -> None:
    now_s = 0.0
    queue = queue_on(connection, settings, GroupLimits(1, 2, pause_s=1.0), lambda: now_s)
    connection.before = fails_with(ApiError(js.WRONG_LAST_SEQUENCE, 400, "refused"))
    submissions = several(3 * COUNT)
    await submit_all(queue, lane, submissions[:COUNT])
    connection.before = lambda: None
    await submit_all(queue, lane, submissions[COUNT : 2 * COUNT])
    assert connection.batches == [COUNT]
    now_s = 1.0
    await submit_all(queue, lane, submissions[2 * COUNT :])
    assert connection.batches == [COUNT, COUNT]
    await assert_stored_once(queue, lane, submissions)


@on_both
async def test_of_a_group_that_does_not_fit_in_the_queue_as_many_as_fit_are_accepted(
    connection: Connection, lane: Lane, settings: Settings
) -> None:
    queue = queue_on(connection, settings, queue_bytes_max=10_000, lanes=1)
    await connection.delete_stream(lane.stream)
    (lane,) = await queue.open(["vehicles"])
    submissions = several()
    answers = await submit_all(queue, lane, submissions)
    stored = [submitted for submitted, answer in zip(submissions, answers, strict=True) if answer is None]
    refused = [answer for answer in answers if answer is not None]
    assert 2 <= len(stored) < COUNT
    assert {answer.code for answer in refused if isinstance(answer, Unavailable)} == {Outage.QUEUE_FULL}
    await assert_stored_once(queue, lane, stored)


@on_both
async def test_a_sealed_lane_refuses_all_of_a_group(connection: Connection, grouping: NatsQueue, lane: Lane) -> None:
    await grouping.seal(lane)
    answers = await submit_all(grouping, lane, several())
    assert {answer.code for answer in answers if isinstance(answer, Unavailable)} == {Outage.QUEUE_AWAY}
    assert connection.batches == [COUNT]
    assert (await grouping.state(lane)).messages == 0


async def test_a_replaced_stream_halts_all_of_a_group(connection: Connection, grouping: NatsQueue, lane: Lane) -> None:
    await connection.delete_stream(lane.stream)
    (other,) = await grouping.open(["vehicles"])
    answers = await submit_all(grouping, lane, several())
    assert [type(answer) for answer in answers] == [Gone] * COUNT
    assert await read_all(grouping, other) == []


async def test_a_server_without_a_free_batch_accepts_all_of_a_group_alone(
    connection: Connection, grouping: NatsQueue, lane: Lane
) -> None:
    """50 other batches are open (10210)."""
    for number in range(50):
        headers = {"Nats-Batch-Sequence": "1", "Nats-Batch-Id": f"b{number}"}
        await connection._request(f"bronze.vehicles.0.x{number}", b"", headers)
    submissions = several()
    assert await submit_all(grouping, lane, submissions) == [None] * COUNT
    assert (connection.batches, connection.alone) == ([COUNT], COUNT)
    await assert_stored_once(grouping, lane, submissions)


# --- a group whose outcome is unknown


@on_both
@pytest.mark.parametrize("stored", [True, False])
async def test_a_lost_reply_is_settled_for_each_submission(
    connection: Connection, grouping: NatsQueue, lane: Lane, *, stored: bool
) -> None:
    lost, submissions = fails_with(Unavailable(Outage.QUEUE_AWAY, "the reply was lost")), several()
    if stored:
        connection.after = lost
    else:
        connection.before = lost
    assert await submit_all(grouping, lane, submissions) == [None] * COUNT
    assert (connection.batches, connection.alone) == ([COUNT], COUNT)
    await assert_stored_once(grouping, lane, submissions)


@on_both
async def test_after_a_lost_reply_a_refusal_is_not_believed(
    connection: Connection, grouping: NatsQueue, lane: Lane, jetstream: JetStream
) -> None:
    """The group may be applied later: an answer that says "not stored" is not the answer of any of its submissions."""
    connection.before = fails_with(Unavailable(Outage.QUEUE_AWAY, "the reply was lost"))
    await jetstream.seal(lane.stream)
    submissions = several()
    answers = await submit_all(grouping, lane, submissions, within_s=limit_s(0.5))
    assert [
        (answer.code, answer.members["submission_id"]) for answer in answers if isinstance(answer, Unavailable)
    ] == [(Outage.OUTCOME_UNKNOWN, submitted.id) for submitted in submissions]


async def test_a_group_that_is_applied_late_is_stored_once(
    connection: Connection, grouping: NatsQueue, lane: Lane, nats: Process
) -> None:
    """The server pauses before the commit, for longer than a request waits."""
    submissions = several()
    connection.before = lambda: nats.signal(signal.SIGSTOP)
    submitting = asyncio.create_task(submit_all(grouping, lane, submissions, within_s=20))
    try:
        done, _ = await asyncio.wait({submitting}, timeout=2.5)
        assert not done
    finally:
        nats.signal(signal.SIGCONT)
    assert await submitting == [None] * COUNT
    await assert_stored_once(grouping, lane, submissions)


async def test_a_killed_server_has_all_of_a_group_or_nothing(
    connection: Connection, grouping: NatsQueue, lane: Lane, nats: Process, jetstream: JetStream
) -> None:
    """It is killed with the group, and each submission is retried as a client does."""
    submissions = several()
    connection.before = lambda: nats.signal(signal.SIGKILL)
    answers = await submit_all(grouping, lane, submissions, within_s=3)
    assert {answer.code for answer in answers if isinstance(answer, Unavailable)} == {Outage.OUTCOME_UNKNOWN}
    await asyncio.to_thread(nats.restart)
    await until(lambda: jetstream.connected)
    connection.before = lambda: None
    async with asyncio.timeout(limit_s(20)):
        for submitted in submissions:
            while True:
                with suppress(Unavailable):
                    await submit(grouping, lane, submitted)
                    break
                await asyncio.sleep(0.05)
    await assert_stored_once(grouping, lane, submissions)


# --- deadlines and cancellation


@on_both
async def test_a_submission_that_waited_past_its_deadline_is_not_published(
    connection: Connection, lane: Lane, settings: Settings
) -> None:
    """Neither alone nor in a group, and its answer says that nothing was stored."""
    now_s = 0.0
    queue = queue_on(connection, settings, now_s=lambda: now_s)
    first, *others = several(4)
    connection.message_arrives.clear()
    sending = asyncio.create_task(queue.submit(lane, first.accepted, first.checked, 50.0))
    await until(lambda: connection.alone == 1)
    waiting = [asyncio.create_task(queue.submit(lane, other.accepted, other.checked, 5.0)) for other in others]
    await turns()
    now_s = 5.0
    connection.message_arrives.set()
    assert await sending is None
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [answer.code for answer in answers if isinstance(answer, Unavailable)] == [Outage.QUEUE_AWAY] * 3
    await assert_stored_once(queue, lane, [first])


@on_both
async def test_the_earliest_deadline_is_that_of_the_group(
    connection: Connection, lane: Lane, settings: Settings
) -> None:
    """The clock passes it before the commit: nothing of the group is stored, and the others are published alone."""
    now_s = 0.0
    queue = queue_on(connection, settings, now_s=lambda: now_s)
    submissions = several(3)

    def pass_first_deadline() -> None:
        nonlocal now_s
        now_s = 5.0

    connection.before = pass_first_deadline
    answers = await asyncio.gather(
        *(
            queue.submit(lane, submitted.accepted, submitted.checked, deadline_s)
            for submitted, deadline_s in zip(submissions, (50.0, 5.0, 50.0), strict=True)
        ),
        return_exceptions=True,
    )
    assert answers[::2] == [None, None]
    assert isinstance(answers[1], Unavailable)
    assert connection.batches == [3]
    await assert_stored_once(queue, lane, submissions[::2])


@on_both
@pytest.mark.parametrize("cancelled", [0, 2], ids=["the one that publishes", "another"])
@pytest.mark.parametrize("sent", [True, False], ids=["on its way", "waiting"])
async def test_a_cancelled_request_changes_no_other_answer(
    connection: Connection, grouping: NatsQueue, lane: Lane, cancelled: int, *, sent: bool
) -> None:
    before, *submissions = several(5)
    connection.message_arrives.clear()
    connection.batch_arrives.clear()
    tasks = [] if sent else [asyncio.create_task(submit(grouping, lane, before))]
    if not sent:
        await until(lambda: connection.alone == 1)
    tasks += [asyncio.create_task(submit(grouping, lane, submitted)) for submitted in submissions]
    await turns()
    assert connection.batches == ([4] if sent else [])
    tasks[cancelled if sent else cancelled + 1].cancel()
    await turns()
    connection.message_arrives.set()
    connection.batch_arrives.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers.pop(cancelled if sent else cancelled + 1), asyncio.CancelledError)
    assert answers == [None] * len(answers)
    ids = [message.submission_id for message in await read_all(grouping, lane)]
    others = {submitted.id for number, submitted in enumerate(submissions) if number != cancelled}
    assert others <= set(ids)
    assert len(ids) == len(set(ids))
