"""The lock of a lane: it avoids double work, and data never depends on it.

A key holds the owner and a heartbeat count. A process that waits for the lock uses its own monotonic clock: if the key
has not changed for the expiry, it takes the lock over, by compare-and-set on the revision that it has seen. The key
also records which messages are being decoded, so that a message that kills its decoder is found (rule 7).
"""

import asyncio
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

import msgspec

from bronze.errors import Halted, Unavailable
from bronze.protocol.attempts import Attempt
from bronze.protocol.lane import Lane
from bronze.servers.key_value import KeyChanged, KeyValueStore

BEATS_PER_EXPIRY = 5


class LockPhase(StrEnum):
    """What the owner is doing. Only a death in the phase `decoding` may be the fault of a message."""

    FREE = "free"
    HELD = "held"
    DECODING = "decoding"


class LockState(msgspec.Struct, frozen=True, kw_only=True):
    """The value of the key. An empty owner means that the lock was released."""

    owner: str = ""
    beat: int = 0
    phase: LockPhase = LockPhase.FREE
    attempt: Attempt = Attempt()


class LockLost(Exception):
    """Another process has the lock now."""


class Lock(Protocol):
    """Keeps other consumers from working on the same lane."""

    @property
    def attempt(self) -> Attempt: ...
    async def acquire(self) -> None: ...
    async def begin_decoding(self, attempt: Attempt) -> None: ...
    async def end_decoding(self) -> None: ...
    async def keep_alive(self) -> None: ...
    async def release(self) -> None: ...


class NatsLock:
    """A lane's lock on JetStream."""

    def __init__(
        self,
        key_values: KeyValueStore,
        lane: Lane,
        owner: str,
        expiry_s: float,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._key_values = key_values
        self._key = f"lock.{lane.source}.{lane.number}.{lane.epoch}"
        self._owner = owner
        self._expiry_s = expiry_s
        self._now_s = now_s
        self._state = LockState()
        self._revision = 0
        self._writing = asyncio.Lock()

    @property
    def attempt(self) -> Attempt:
        """The last attempt to decode messages of this lane, by any owner."""
        return self._state.attempt

    async def acquire(self) -> None:
        """Wait for the lock and take it."""
        seen, seen_s = -1, self._now_s()
        while True:
            state, revision = await self._load()
            if revision != seen:
                seen, seen_s = revision, self._now_s()
            owned_before = state.owner == self._owner
            if owned_before or not state.owner or self._now_s() - seen_s >= self._expiry_s:
                owner_died = state.phase is LockPhase.DECODING and not owned_before
                attempt = state.attempt.after_death() if owner_died else state.attempt
                self._revision = revision
                try:
                    await self._write(owner=self._owner, phase=LockPhase.HELD, attempt=attempt)
                except LockLost:
                    continue
                else:
                    return
            await asyncio.sleep(self._expiry_s / BEATS_PER_EXPIRY)

    async def begin_decoding(self, attempt: Attempt) -> None:
        """Record what is about to be decoded: if this process dies of it, the next owner knows. Raises `LockLost`."""
        await self._write(phase=LockPhase.DECODING, attempt=attempt)

    async def end_decoding(self) -> None:
        """Record that this process has survived decoding. Raises `LockLost`."""
        await self._write(phase=LockPhase.HELD)

    async def keep_alive(self) -> None:
        """Write heartbeats until another process has the lock; then raises `LockLost`."""
        while True:
            await asyncio.sleep(self._expiry_s / BEATS_PER_EXPIRY)
            try:
                await self._write()
            except Unavailable:
                continue  # while the queue does not answer, no other process can take the lock either

    async def release(self) -> None:
        """Release the lock, so that the next owner does not have to wait for its expiry."""
        await self._write(owner="", phase=LockPhase.FREE)

    async def _load(self) -> tuple[LockState, int]:
        value, revision = await self._key_values.get(self._key)
        try:
            return (msgspec.json.decode(value, type=LockState) if value else LockState()), revision
        except msgspec.DecodeError as error:
            raise Halted(f"the lock {self._key} cannot be read: {error}") from error

    async def _write(self, **changes: object) -> None:
        async with self._writing:  # heartbeats and phases are written by two tasks
            state = msgspec.structs.replace(self._state, beat=self._state.beat + 1, **changes)
            try:
                self._revision = await self._key_values.put(self._key, msgspec.json.encode(state), self._revision)
            except KeyChanged as error:
                raise LockLost from error
            self._state = state
