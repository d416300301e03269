"""Retention: deletes the oldest objects of each lane, from the beginning of its chain (`docs/delivery.md`, rule 12).

The expiry mark of a lane is created first. What is deleted follows from the marks and from a listing of the bucket, so
that a command that was killed at any point is finished by the next one.
"""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from bronze.objects.expiry import expired_up_to, outdated_marks, read_mark, write_mark
from bronze.protocol.chain import Position
from bronze.protocol.documents import CatalogEntry
from bronze.protocol.entry_sizes import EntrySizes
from bronze.protocol.expiry import ExpiryMark, anchor_of
from bronze.protocol.keys import hour_prefix, lane_of_key
from bronze.protocol.lane import Lane
from bronze.protocol.message import unix_time_s
from bronze.protocol.quarantine import keys_of_lane, sequence_of
from bronze.protocol.removal import removals_of, removed_path
from bronze.servers.bucket import ErasableBucket
from bronze.servers.catalog import UNKEYED_S, NatsCatalog

#: Keys that are deleted concurrently.
DELETED_AT_ONCE = 8
#: The clocks of a queue's servers may differ, so the hours of a lane's keys may be out of order by this and an hour.
CLOCKS_DIFFER = dt.timedelta(hours=1)

#: Whether the table of its source has the rows of an object.
InTable = Callable[[CatalogEntry], Awaitable[bool]]


class Deleted(StrEnum):
    """What is deleted."""

    OBJECTS = "objects"
    ENTRIES = "entries"
    ROWS = "rows"


#: Called with what was deleted, of which source, and how many.
OnDeleted = Callable[[Deleted, str, int], None]


@dataclass(frozen=True, slots=True)
class ExpiredObjects:
    """The objects of a lane that a run deletes, oldest first; the last of them is that of `entry`.

    `bytes` is None if older versions wrote entries of them. Their records were accepted from `oldest` to `newest`
    (RFC 3339 in UTC).
    """

    entry: CatalogEntry
    objects: int
    records: int
    bytes: int | None
    oldest: str
    newest: str

    @property
    def lane(self) -> Lane:
        return Lane(self.entry.source, self.entry.lane, self.entry.epoch)


class HeldBy(StrEnum):
    """Why an object that is old enough is not deleted; so are all later ones of its lane."""

    LANE = "the last object of a lane stays"
    IDENTITY = "a submission of it could be sent again"
    TABLE = "its table does not hold it yet"


@dataclass(frozen=True, slots=True)
class HeldObjects:
    """The objects of a lane that are old enough and stay, from that of `file_path` on."""

    source: str
    objects: int
    file_path: str
    reason: HeldBy


@dataclass(frozen=True, slots=True)
class Statement:
    """Who deletes, and why, in their own words."""

    note: str
    expired_by: str


class Retention:
    """Deletes the objects of some sources, all of whose records the queue had stored before a time.

    `living` are the names of the streams of lanes that exist. `in_table` says whether an object need not be kept for
    the table of its source.
    """

    def __init__(
        self,
        catalog: NatsCatalog,
        bucket: ErasableBucket,
        prefix: str,
        living: Collection[str],
        in_table: InTable | None = None,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._catalog = catalog
        self._bucket = bucket
        self._prefix = prefix
        self._living = living
        self._in_table = in_table
        self._now = now

    async def find(
        self,
        sources: Collection[str] | None,
        before: dt.datetime,
        on_entry: Callable[[], None] = lambda: None,
        on_held: Callable[[HeldObjects], None] = lambda _: None,
    ) -> list[ExpiredObjects]:
        """The objects that expire, of all sources or of these; `on_entry` is called for each entry that is read, and
        `on_held` for each lane with objects that are as old and stay.
        """
        found = []
        for lane in sorted(await self._catalog.lanes(), key=lambda lane: lane.stream):
            if sources is None or lane.source in sources:
                position, _ = await self._catalog.position(lane)
                expired = await self._find(lane, position, before.timestamp(), on_entry, on_held)
                found += [expired] if expired else []
        return found

    async def _find(
        self,
        lane: Lane,
        position: Position,
        before_s: float,
        on_entry: Callable[[], None],
        on_held: Callable[[HeldObjects], None],
    ) -> ExpiredObjects | None:
        marked = (await expired_up_to(self._bucket, self._prefix, lane.source)).get(lane, 0)
        kept_from = position.last if lane.stream in self._living else position.last + 1
        found: ExpiredObjects | None = None
        held: HeldObjects | None = None
        objects = records = size = 0
        size_known, oldest = True, ""
        async for sequence, entry, entry_size in self._entries(lane):
            on_entry()
            if entry.last <= marked:
                continue
            if unix_time_s(entry.last_time) >= before_s:
                break
            if held is None:
                reason = HeldBy.LANE if entry.last >= kept_from else await self._held_by(lane, sequence, entry)
                held = HeldObjects(lane.source, 0, entry.file_path, reason) if reason else None
            if held is not None:
                held = replace(held, objects=held.objects + 1)
                continue
            objects, records, size = objects + 1, records + entry.records, size + (entry_size or 0)
            size_known, oldest = size_known and entry_size is not None, oldest or entry.last_time
            if entry.totals:  # those of an older version lack them: an entry that has them has to follow
                found = ExpiredObjects(entry, objects, records, size if size_known else None, oldest, entry.last_time)
        if held is not None:
            on_held(held)
        return found

    async def _entries(self, lane: Lane) -> AsyncIterator[tuple[int, CatalogEntry, int | None]]:
        """The entries of a lane in order, each with its sequence and the size of its object."""
        sizes, since = EntrySizes(), 1
        while page := await self._catalog.entries(lane, since):
            for sequence, entry in page:
                yield sequence, entry, sizes.of(entry)
            since = page[-1][0] + 1

    async def _held_by(self, lane: Lane, sequence: int, entry: CatalogEntry) -> HeldBy | None:
        """Whether a living identity names an object, or the table of its source lacks its rows."""
        if not entry.submissions:  # no identity says how long it has been in the catalog
            stored_at = await self._catalog.stored_at(sequence)
            if not stored_at or unix_time_s(stored_at) >= self._now().timestamp() - UNKEYED_S:
                return HeldBy.IDENTITY
        identities = await self._catalog.identities(
            lane, Position(entry, sequence), [submission.submission_id for submission in entry.submissions]
        )
        if any(entry.file_path in identity.objects for identity in identities.values()):
            return HeldBy.IDENTITY
        return None if self._in_table is None or await self._in_table(entry) else HeldBy.TABLE

    async def unfinished(self, sources: Collection[str]) -> int:
        """The number of objects that an earlier run expired, and that the bucket has still."""
        marks = await self._marks(sources)
        return sum([1 for source in _sources(marks) async for _ in self._expired_keys(source, marks)])

    async def removable_entries(
        self, sources: Collection[str], expired: Sequence[ExpiredObjects], entries_before: dt.datetime
    ) -> int:
        """The number of entries that `delete` would remove from the catalog after these objects expire."""
        last = {mark.of_lane: mark.last for mark in await self._marks(sources)}
        last |= {each.lane: each.entry.last for each in expired if each.lane.source in sources}
        number = 0
        for lane, last_of_lane in last.items():
            async for _, entry, _ in self._entries(lane):
                if entry.last >= last_of_lane or unix_time_s(entry.last_time) >= entries_before.timestamp():
                    break
                number += 1
        return number

    async def expire(self, expired: ExpiredObjects, statement: Statement) -> None:
        """Create the expiry mark of a lane: its objects have expired, and the next `delete` deletes them."""
        mark = ExpiryMark(
            entry=anchor_of(expired.entry),
            note=statement.note,
            expired_by=statement.expired_by,
            recorded_at=self._now().isoformat(),
        )
        await write_mark(self._bucket, self._prefix, mark)

    async def delete(
        self,
        sources: Collection[str] | None,
        entries_before: dt.datetime,
        on_deleted: OnDeleted = lambda *_: None,
    ) -> int:
        """Delete all objects that have expired, of all sources or of these; returns how many. `on_deleted` is called
        for each object, and for the entries.

        First it is published that they have expired, so that followers of the feed no longer get them. Last, their
        entries are folded, if their records were accepted before a time.
        """
        marks = await self._marks(sources)
        for mark in marks:
            await self._catalog.announce(mark.removal())
        deleted = 0
        for source in _sources(marks):
            deleted += await self._delete_objects(source, marks, on_deleted)
            await self._delete_rest(source, [mark for mark in marks if mark.of_lane.source == source])
        for mark in marks:
            await self._delete_keys(await outdated_marks(self._bucket, self._prefix, mark.of_lane))
            entries = await self._catalog.fold(mark.removal(), entries_before.timestamp())
            on_deleted(Deleted.ENTRIES, mark.of_lane.source, entries)
        return deleted

    async def _marks(self, sources: Collection[str] | None) -> list[ExpiryMark]:
        lanes = await expired_up_to(self._bucket, self._prefix)
        chosen = [lane for lane in lanes if sources is None or lane.source in sources]
        found = [await read_mark(self._bucket, self._prefix, lane) for lane in chosen]
        return [mark for mark in found if mark]

    async def _expired_keys(self, source: str, marks: Sequence[ExpiryMark]) -> AsyncIterator[str]:
        """The keys of the objects of a source behind its marks, in order."""
        of_source = [mark for mark in marks if mark.of_lane.source == source]
        last = {mark.of_lane: mark.last for mark in of_source}
        times = [dt.datetime.fromisoformat(mark.entry.last_time) for mark in of_source]
        end = hour_prefix(self._prefix, source, (max(times) + 2 * CLOCKS_DIFFER).isoformat())
        async for key in self._bucket.keys(f"{self._prefix}/source={source}/"):
            if key > end:
                break
            lane, first = lane_of_key(key) or (None, 0)
            if lane is not None and first <= last.get(lane, 0):
                yield key

    async def _delete_objects(self, source: str, marks: Sequence[ExpiryMark], on_deleted: OnDeleted) -> int:
        """Delete the objects of a source behind its marks, in the order of their keys; returns how many."""
        keys: list[str] = []
        deleted = 0

        def on_object() -> None:
            on_deleted(Deleted.OBJECTS, source, 1)

        async for key in self._expired_keys(source, marks):
            keys.append(key)
            if len(keys) == DELETED_AT_ONCE:
                await self._delete_keys(keys, on_object)
                deleted, keys = deleted + len(keys), []
        await self._delete_keys(keys, on_object)
        return deleted + len(keys)

    async def _delete_rest(self, source: str, marks: Sequence[ExpiryMark]) -> None:
        """Delete the removal records of expired objects, and what these list in quarantine."""
        last = {mark.of_lane: mark.last for mark in marks}
        keys = []
        async for key in self._bucket.keys(removals_of(self._prefix, source)):
            lane, first = lane_of_key(removed_path(self._prefix, key)) or (None, 0)
            keys += [key] if lane is not None and first <= last.get(lane, 0) else []
        for lane, last_of_lane in last.items():
            async for key in self._bucket.keys(keys_of_lane(lane)):
                if sequence_of(lane, key) > last_of_lane:
                    break
                keys.append(key)
        for begin in range(0, len(keys), DELETED_AT_ONCE):
            await self._delete_keys(keys[begin : begin + DELETED_AT_ONCE])

    async def _delete_keys(self, keys: Sequence[str], on_deleted: Callable[[], None] = lambda: None) -> None:
        async def delete(key: str) -> None:
            await self._bucket.delete(key)
            on_deleted()

        await asyncio.gather(*map(delete, keys))


def _sources(marks: Sequence[ExpiryMark]) -> list[str]:
    return sorted({mark.of_lane.source for mark in marks})
