"""Which snapshots made the rows of objects queryable, by the catalog of the tables: for look-ups, in limited time."""

import asyncio
import logging
import threading
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from bronze.errors import BronzeError
from bronze.protocol.snapshot_summary import FirstSnapshot

log = logging.getLogger(__name__)

#: The time limit for a look-up. The catalog may take longer; what it says then is for the next look-up.
READ_S_MAX = 2.0
#: Objects whose snapshot is kept: it does not change any more.
KEPT_MAX = 10_000


class InLane(Protocol):
    """An object, by its last message of its lane."""

    @property
    def file_path(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def epoch(self) -> str: ...
    @property
    def lane(self) -> int: ...
    @property
    def last(self) -> int: ...


#: The first snapshot with the rows of each object, in their order; None if its table does not have them yet. It blocks.
FindSnapshots = Callable[[Sequence[InLane]], Sequence[FirstSnapshot | None]]


class TableSnapshots:
    """The snapshots of the objects of the sources that have tables."""

    def __init__(self, find: FindSnapshots, sources: Container[str], read_s_max: float = READ_S_MAX) -> None:
        self._find = find
        self._sources = sources
        self._read_s_max = read_s_max
        self._kept: dict[str, FirstSnapshot] = {}
        self._reading: asyncio.Future[None] | None = None

    async def of(self, objects: Sequence[InLane]) -> Mapping[str, FirstSnapshot | None]:
        """The snapshot by the path of each object, or None if its table does not have it yet. An object is left out if
        its source has no table, or if the catalog did not say it in time.
        """
        of_tables = [each for each in objects if each.source in self._sources]
        found: dict[str, FirstSnapshot | None] = {}
        if missing := [each for each in of_tables if each.file_path not in self._kept]:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._read_s_max):
                    while self._reading is not None:  # one at a time, however many look-ups wait for a slow catalog
                        await asyncio.shield(self._reading)
                    self._reading = asyncio.get_running_loop().create_future()
                    self._begin(missing, found, self._reading)
                    await asyncio.shield(self._reading)
        kept = {each.file_path: self._kept[each.file_path] for each in of_tables if each.file_path in self._kept}
        return {**found, **kept}

    def _begin(
        self, objects: Sequence[InLane], found: dict[str, FirstSnapshot | None], reading: asyncio.Future[None]
    ) -> None:
        """Ask the catalog in a thread that the process does not wait for when it ends: pyiceberg has no time limit."""
        loop = asyncio.get_running_loop()

        def keep(snapshots: Sequence[FirstSnapshot | None]) -> None:
            self._reading = None
            reading.set_result(None)
            for each, snapshot in zip(objects, snapshots, strict=False):
                found[each.file_path] = snapshot
                if snapshot is not None:
                    self._kept[each.file_path] = snapshot
            while len(self._kept) > KEPT_MAX:
                del self._kept[next(iter(self._kept))]

        def read() -> None:
            snapshots: Sequence[FirstSnapshot | None] = ()
            try:
                snapshots = self._find(objects)
            except BronzeError as error:
                log.warning("look-ups do not say which snapshots have the objects: %s", error)
            except Exception:
                log.exception("look-ups do not say which snapshots have the objects: unexpected error")
            with suppress(RuntimeError):  # the process ends
                loop.call_soon_threadsafe(keep, snapshots)

        threading.Thread(target=read, name="table-snapshots", daemon=True).start()
