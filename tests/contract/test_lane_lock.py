"""The lock on a real server: one owner at a time, and a memory of what its owners died of."""

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
    """Stands still until it is moved."""

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
async def meanwhile(work: Coroutine[None, None, None]) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        await cancelled(task)


async def taken(lock: NatsLock) -> None:
    async with asyncio.timeout(limit_s(10)):
        await lock.acquire()


class Looks(NatsLock):
    """Counts how often it looked at the key."""

    looks = 0

    async def _load(self) -> tuple[LockState, int]:
        self.looks += 1
        return await super()._load()


@on_both
async def test_of_two_one_owns_and_the_other_waits_while_it_beats(make: Make, key_values: KeyValueStore) -> None:
    """For any number of expiries, by a clock that runs."""
    first = make("first")
    second = Looks(key_values, LANE, "second", EXPIRY_S)
    await taken(first)
    async with meanwhile(first.keep_alive()) as keep, meanwhile(second.acquire()) as wait:
        await until(lambda: second.looks > 15)  # five an expiry
        assert not wait.done()
        assert not keep.done()


@on_both
async def test_a_lock_without_a_beat_is_taken_over_after_the_expiry_and_not_before(
    make: Make, key_values: KeyValueStore
) -> None:
    """By the waiter's own clock, from when it saw the last beat."""
    clock = Clock()
    first, second = make("first"), Looks(key_values, LANE, "second", EXPIRY_S, clock)
    await taken(first)
    async with meanwhile(second.acquire()) as wait:
        await until(lambda: second.looks > 2)
        clock.s = EXPIRY_S - 0.01
        looks = second.looks
        await until(lambda: second.looks > looks + 2)
        assert not wait.done()
        clock.s = EXPIRY_S
        await until(wait.done)
        await wait
    with pytest.raises(LockLost):
        await first.end_decoding()
    async with asyncio.timeout(limit_s(10)):
        with pytest.raises(LockLost):
            await first.keep_alive()


async def test_of_racers_for_an_expired_lock_one_gets_it(make: Make) -> None:
    """The others see a new beat, and wait for its expiry."""
    await taken(make("dead"))
    clocks = [Clock() for _ in range(4)]
    racers = [make(f"racer{number}", clock) for number, clock in enumerate(clocks)]
    tasks = [asyncio.create_task(racer.acquire()) for racer in racers]
    try:

        def one_has_it() -> bool:
            for clock in clocks:
                clock.s += EXPIRY_S / 4
            return any(task.done() for task in tasks)

        await until(one_has_it)
        (owner,) = [racer for racer, task in zip(racers, tasks, strict=True) if task.done()]
        await owner.end_decoding()
    finally:
        await cancelled(*tasks)


async def test_a_lock_that_is_given_back_is_taken_at_once(make: Make) -> None:
    """Without waiting for any expiry: the clock stands still."""
    first, second = make("first"), make("second")
    await taken(first)
    await first.release()
    await taken(second)
    with pytest.raises(LockLost):
        await first.release()


async def test_each_lane_has_its_own_lock(make: Make) -> None:
    await taken(make("first"))
    await taken(make("second", lane=Lane("vehicles", 1, LANE.epoch)))
    await taken(make("third", lane=Lane("vehicles", 0, "20261124T120000001")))


async def test_a_death_while_decoding_is_counted_for_the_next_owner(make: Make) -> None:
    """With what was being decoded, over any number of owners."""
    attempt = ATTEMPT
    for deaths in range(1, 4):
        lock = await after_expiry(make, f"owner{deaths}")
        assert lock.attempt.deaths == deaths - 1
        await lock.begin_decoding(attempt := Attempt(first=7, size=4, until=10, deaths=lock.attempt.deaths))
    last = await after_expiry(make, "last")
    assert last.attempt == attempt.died()
    assert (last.attempt.deaths, last.attempt.limit) == (3, 2)


@pytest.mark.parametrize("released", [True, False], ids=["told to stop", "died later"])
async def test_no_other_end_is_a_death_of_decoding(make: Make, *, released: bool) -> None:
    """SIGTERM gives the lock back, also in the middle; a death after decoding says nothing of a message."""
    first = make("first")
    await taken(first)
    await first.begin_decoding(ATTEMPT)
    if released:
        await first.release()
    else:
        await first.end_decoding()
    assert (await after_expiry(make, "second")).attempt == ATTEMPT


async def after_expiry(make: Make, owner: str) -> NatsLock:
    clock = Clock()
    lock = make(owner, clock)
    async with meanwhile(lock.acquire()) as wait:

        def has_it() -> bool:
            clock.s += EXPIRY_S / 4
            return wait.done()

        await until(has_it)
        await wait
    return lock


@on_both
async def test_beats_and_phases_at_once_do_not_lose_the_lock(make: Make, jetstream: JetStream) -> None:
    """They are written by two tasks, one after the other."""
    lock = make("first")
    await taken(lock)
    async with meanwhile(lock.keep_alive()) as keep:
        for _ in range(20):
            await asyncio.gather(lock._write(), lock.begin_decoding(ATTEMPT), lock._write(), lock.end_decoding())
        assert not keep.done()
