"""The lock on a real server: one owner at a time, and a record of what its owners died of."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import pytest

from bronze.protocol.attempts import Attempt
from bronze.protocol.lane import Lane
from bronze.servers.jetstream import JetStream
from bronze.servers.key_value import KeyValueStore
from bronze.servers.lane_lock import LockLost, LockState, NatsLock
from local.machine import limit_s
from tests.contract.making import cancelled, until
from tests.contract.twins import on_both

LANE = Lane("vehicles", 0, "20261124T120000000")
EXPIRY_S = 0.5
ATTEMPT = Attempt(first=7, size=4, until=10)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


Make = Callable[..., NatsLock]


@pytest.fixture
def make(key_values: KeyValueStore) -> Make:
    def make(owner: str, now_s: Callable[[], float] | None = None, lane: Lane = LANE) -> NatsLock:
        return NatsLock(key_values, lane, owner, EXPIRY_S, now_s or Clock())

    return make


@asynccontextmanager
async def in_background(work: Coroutine[None, None, None]) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        await cancelled(task)


async def acquire(lock: NatsLock) -> None:
    async with asyncio.timeout(limit_s(10)):
        await lock.acquire()


class CountingLock(NatsLock):
    """Counts how often it loads the key."""

    loads = 0

    async def _load(self) -> tuple[LockState, int]:
        self.loads += 1
        return await super()._load()


@on_both
async def test_one_consumer_has_the_lock_and_the_other_waits(make: Make, key_values: KeyValueStore) -> None:
    """For any number of expiries, with a running clock."""
    first = make("first")
    second = CountingLock(key_values, LANE, "second", EXPIRY_S)
    await acquire(first)
    async with in_background(first.keep_alive()) as heartbeat, in_background(second.acquire()) as waiting:
        await until(lambda: second.loads > 15)  # five per expiry
        assert not waiting.done()
        assert not heartbeat.done()


@on_both
async def test_a_lock_without_heartbeats_is_taken_over_at_the_expiry(make: Make, key_values: KeyValueStore) -> None:
    """And not before, by the clock of the waiting consumer, from when it saw the last heartbeat."""
    clock = Clock()
    first, second = make("first"), CountingLock(key_values, LANE, "second", EXPIRY_S, clock)
    await acquire(first)
    async with in_background(second.acquire()) as waiting:
        await until(lambda: second.loads > 2)
        clock.s = EXPIRY_S - 0.01
        loads = second.loads
        await until(lambda: second.loads > loads + 2)
        assert not waiting.done()
        clock.s = EXPIRY_S
        await until(waiting.done)
        await waiting
    with pytest.raises(LockLost):
        await first.end_decoding()
    async with asyncio.timeout(limit_s(10)):
        with pytest.raises(LockLost):
            await first.keep_alive()


async def test_of_racers_for_an_expired_lock_one_gets_it(make: Make) -> None:
    """The others see a new heartbeat, and wait for its expiry."""
    await acquire(make("dead"))
    clocks = [Clock() for _ in range(4)]
    racers = [make(f"racer{number}", clock) for number, clock in enumerate(clocks)]
    tasks = [asyncio.create_task(racer.acquire()) for racer in racers]
    try:

        def one_has_acquired() -> bool:
            for clock in clocks:
                clock.s += EXPIRY_S / 4
            return any(task.done() for task in tasks)

        await until(one_has_acquired)
        (owner,) = [racer for racer, task in zip(racers, tasks, strict=True) if task.done()]
        await owner.end_decoding()
    finally:
        await cancelled(*tasks)


async def test_a_released_lock_is_acquired_at_once(make: Make) -> None:
    """Without waiting for the expiry: the clock does not move."""
    first, second = make("first"), make("second")
    await acquire(first)
    await first.release()
    await acquire(second)
    with pytest.raises(LockLost):
        await first.release()


async def test_each_lane_has_its_own_lock(make: Make) -> None:
    await acquire(make("first"))
    await acquire(make("second", lane=Lane("vehicles", 1, LANE.epoch)))
    await acquire(make("third", lane=Lane("vehicles", 0, "20261124T120000001")))


async def test_a_death_while_decoding_is_counted_for_the_next_owner(make: Make) -> None:
    """With the attempt, over any number of owners."""
    attempt = ATTEMPT
    for deaths in range(1, 4):
        lock = await after_expiry(make, f"owner{deaths}")
        assert lock.attempt.deaths == deaths - 1
        await lock.begin_decoding(attempt := Attempt(first=7, size=4, until=10, deaths=lock.attempt.deaths))
    last = await after_expiry(make, "last")
    assert last.attempt == attempt.after_death()
    assert (last.attempt.deaths, last.attempt.limit) == (3, 2)


@pytest.mark.parametrize("released", [True, False], ids=["stopped", "died later"])
async def test_only_a_death_while_decoding_is_counted(make: Make, *, released: bool) -> None:
    """SIGTERM releases the lock, also during decoding; a death after decoding is not the fault of a message."""
    first = make("first")
    await acquire(first)
    await first.begin_decoding(ATTEMPT)
    if released:
        await first.release()
    else:
        await first.end_decoding()
    assert (await after_expiry(make, "second")).attempt == ATTEMPT


async def after_expiry(make: Make, owner: str) -> NatsLock:
    clock = Clock()
    lock = make(owner, clock)
    async with in_background(lock.acquire()) as waiting:

        def has_acquired() -> bool:
            clock.s += EXPIRY_S / 4
            return waiting.done()

        await until(has_acquired)
        await waiting
    return lock


@on_both
async def test_concurrent_heartbeats_and_phases_do_not_lose_the_lock(make: Make, jetstream: JetStream) -> None:
    """Two tasks write them, one after the other."""
    lock = make("first")
    await acquire(lock)
    async with in_background(lock.keep_alive()) as heartbeat:
        for _ in range(20):
            await asyncio.gather(lock._write(), lock.begin_decoding(ATTEMPT), lock._write(), lock.end_decoding())
        assert not heartbeat.done()
