"""Follows the snapshots of the Iceberg tables for one receiver."""

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import msgspec

from bronze.client import Checkpoint
from bronze.errors import Halted, Unavailable
from bronze.notify.delivery import Delivery
from bronze.notify.event import SnapshotEvent
from bronze.notify.follower import LOST_POSITION

if TYPE_CHECKING:
    from bronze.servers.iceberg import TableHistory

log = logging.getLogger(__name__)

POLL_S = 5.0


class Histories(Protocol):
    """The tables of a namespace, and their snapshots. Both methods block, and raise `Unavailable`."""

    def names(self) -> list[str]: ...
    def history(self, name: str) -> "TableHistory": ...


class _Announced(msgspec.Struct, frozen=True):
    """The last snapshot of a table that was announced: its sequence number in the table of this UUID."""

    uuid: str
    sequence: int


class SnapshotFollower:
    """Delivers the snapshots of each table, in its order, each at least once.

    What was announced is saved after each table. `skip`: if nothing is saved, begin with what comes from now on.
    """

    def __init__(self, tables: Histories, delivery: Delivery, checkpoint: Checkpoint, *, skip: bool = False) -> None:
        self._tables = tables
        self._delivery = delivery
        self._checkpoint = checkpoint
        self._skip = skip
        self._announced: dict[str, _Announced] = {}

    async def run(self) -> None:
        """Run until cancelled; returns if the receiver wants no more events."""
        receiver = self._delivery.receiver.name
        try:
            self.restore()
        except Halted as error:
            log.error("%s: %s", receiver, error)
            return
        while True:
            try:
                await self.step()
            except Halted as error:
                log.error("%s: %s", receiver, error)
                return
            except Unavailable as error:
                log.warning("%s: the tables cannot be read, trying again: %s", receiver, error)
            await asyncio.sleep(POLL_S)

    def restore(self) -> None:
        """Read what was announced before. Raises `Halted` if it cannot be read."""
        try:
            text = self._checkpoint.load()
            self._announced = msgspec.json.decode(text, type=dict[str, _Announced]) if text else {}
        except msgspec.DecodeError as error:
            raise Halted(f"the position in {self._checkpoint} is damaged: {LOST_POSITION}") from error

    async def step(self) -> None:
        """Announce all snapshots that are new. Raises `Unavailable` and `Halted`."""
        if self._skip and not self._checkpoint.load():
            await self._save({name: _announced(await self._history(name)) for name in await self._names()})
        for name in await self._names():
            history = await self._history(name)
            before = self._announced.get(name)
            if before is None or before.uuid != history.uuid:  # or it was made again
                before = _Announced(history.uuid, 0)
            new = [event for event in history.events if event.sequence > before.sequence]
            if new and (gap := new[0].sequence - before.sequence - 1) and before.sequence:
                log.warning("table %s: %d snapshots had expired before they could be announced", name, gap)
            for event in new:
                await self._delivery.deliver(SnapshotEvent.of(name, history, event))
            if new or name not in self._announced:
                await self._save({**self._announced, name: _announced(history)})
        self._delivery.caught_up()

    async def _names(self) -> list[str]:
        return await asyncio.to_thread(self._tables.names)

    async def _history(self, name: str) -> "TableHistory":
        return await asyncio.to_thread(self._tables.history, name)

    async def _save(self, announced: Mapping[str, _Announced]) -> None:
        self._announced = dict(announced)
        await asyncio.to_thread(self._checkpoint.save, msgspec.json.encode(self._announced).decode())


def _announced(history: "TableHistory") -> _Announced:
    """All snapshots of a table."""
    return _Announced(history.uuid, history.events[-1].sequence if history.events else 0)
