"""Writes the removal records of objects that are missing or damaged: their loss is then known, and no longer an alert.

A record is created in the bucket first, and then published on the feed. If the command is killed in between, the next
one finds the record and publishes it.
"""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from bronze.admin.command_error import CommandError
from bronze.admin.missing_objects import find_missing, read_entries
from bronze.objects.removals import read_removal, removed_paths, write_removal
from bronze.protocol.chain import Position
from bronze.protocol.entry_sizes import EntrySizes
from bronze.protocol.keys import lane_of_key, may_be_object
from bronze.protocol.lane import Lane
from bronze.protocol.removal import Removal, RemovalReason, removal_subject
from bronze.servers.bucket import Bucket
from bronze.servers.catalog import NatsCatalog
from bronze.servers.catalog_feed import Feed, FeedEntry


@dataclass(frozen=True, slots=True)
class LostMessages:
    """Messages of a lane, of objects that neither the bucket nor the catalog names."""

    lane: Lane
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Statement:
    """Who acknowledges, and why, in their own words."""

    note: str
    removed_by: str


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A record; `existed` if it was in the bucket before. `bytes_found` is the size of what is left of a damaged object
    in the bucket; None if it is gone.
    """

    removal: Removal
    existed: bool
    bytes_found: int | None = None


class Acknowledgement:
    """Acknowledges missing objects. Nothing is written before everything has been checked."""

    def __init__(
        self,
        catalog: NatsCatalog | None,
        feed: Feed,
        bucket: Bucket,
        prefix: str,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._catalog = catalog
        self._feed = feed
        self._bucket = bucket
        self._prefix = prefix
        self._now = now

    async def of_objects(
        self, file_paths: Sequence[str], statement: Statement, on_entry: Callable[[], None]
    ) -> list[Acknowledged]:
        """The records of these objects; `on_entry` is called for each entry of the catalog that is read.

        Raises `CommandError` if one of them is in the bucket and not damaged, or not in the catalog.
        """
        records: dict[str, Removal] = {}
        found: dict[str, int] = {}
        for file_path in file_paths:
            if not may_be_object(self._prefix, file_path):
                raise CommandError(f"{file_path} is not the key of an object below the prefix {self._prefix!r}")
            head = await self._bucket.head(file_path)
            if head is not None:
                found[file_path] = head.stored_size
            record = await read_removal(self._bucket, self._prefix, file_path)
            if record is not None and record.reason == RemovalReason.EXPIRED:
                raise CommandError(f"{file_path} has expired: it does not count as missing. Nothing was written")
            if record is not None:
                records[file_path] = record
        made = await self._removals(set(file_paths) - records.keys(), statement, on_entry)
        acknowledged = [
            Acknowledged(records.get(file_path) or made[file_path], file_path in records, found.get(file_path))
            for file_path in dict.fromkeys(file_paths)
        ]
        for each in acknowledged:
            if each.bytes_found is not None and each.removal.bytes in {None, each.bytes_found}:
                raise CommandError(
                    f"{each.removal.file_path} is in the bucket: only an object that is missing, or that has another "
                    "size than the catalog says, can be acknowledged. Nothing was written"
                )
        return acknowledged

    async def of_all_missing(self, statement: Statement, on_entry: Callable[[], None]) -> list[Acknowledged]:
        """The records of all missing objects, and those that the feed lacks because an earlier command was killed."""
        found = await find_missing(self._feed, self._bucket, self._prefix, None, on_entry)
        announced = await self._catalog.announced() if self._catalog else set()
        missing = [each.file_path for each in found if not each.removed]
        unannounced = [
            each.file_path for each in found if each.removed and removal_subject(each.lane, each.first) not in announced
        ]
        return await self.of_objects([*unannounced, *missing], statement, on_entry)

    async def of_messages(self, lost: LostMessages, statement: Statement) -> list[Acknowledged]:
        """The record of messages of unknown objects. Raises `CommandError` if an object that has them is known."""
        await self._check_unknown(lost)
        return [Acknowledged(self._removal(lost, statement), existed=False)]

    async def write(self, acknowledged: Acknowledged) -> Removal:
        """Create the record in the bucket, then publish it on the feed; returns the record that counts."""
        removal = await write_removal(self._bucket, self._prefix, acknowledged.removal)
        if self._catalog is not None:
            await self._catalog.announce(removal)
        return removal

    async def _removals(
        self, file_paths: set[str], statement: Statement, on_entry: Callable[[], None]
    ) -> Mapping[str, Removal]:
        """The records of objects by what the catalog says of them."""
        if not file_paths:
            return {}
        catalog = self._catalog
        if catalog is None:
            raise CommandError("the queue has no catalog: run `bronze catalog rebuild` first")
        found: dict[str, tuple[FeedEntry, int | None]] = {}
        sizes = EntrySizes()
        async for item in read_entries(self._feed, None, on_entry):
            size = sizes.of(item.entry)
            if item.entry.file_path in file_paths:
                found[item.entry.file_path] = item, size
        unknown = sorted(file_paths - found.keys())
        if unknown:
            raise CommandError(
                f"{unknown[0]} is not in the catalog. If the catalog was lost, run `bronze catalog rebuild`: it names "
                "the messages that are in no object. Nothing was written"
            )
        return {path: await self._removal_of(catalog, item, size, statement) for path, (item, size) in found.items()}

    async def _removal_of(
        self, catalog: NatsCatalog, item: FeedEntry, size: int | None, statement: Statement
    ) -> Removal:
        entry = item.entry
        lane = Lane(entry.source, entry.lane, entry.epoch)
        identities = await catalog.identities(
            lane, Position(entry, item.sequence), [part.submission_id for part in entry.submissions]
        )
        return msgspec.structs.replace(
            self._removal(LostMessages(lane, entry.first, entry.last), statement),
            file_path=entry.file_path,
            records=entry.records,
            bytes=size,
            entry=entry,
            identities=[identity for identity in identities.values() if entry.file_path in identity.objects],
        )

    def _removal(self, lost: LostMessages, statement: Statement) -> Removal:
        return Removal(
            source=lost.lane.source,
            epoch=lost.lane.epoch,
            lane=lost.lane.number,
            first=lost.first,
            last=lost.last,
            reason=RemovalReason.ACKNOWLEDGED,
            note=statement.note,
            removed_by=statement.removed_by,
            recorded_at=self._now().isoformat(),
        )

    async def _check_unknown(self, lost: LostMessages) -> None:
        """Raises `CommandError` if the catalog or the bucket knows an object that contains one of these messages."""
        lane, since = lost.lane, 1
        while self._catalog and (page := await self._catalog.entries(lane, since)):
            for sequence, entry in page:
                since = sequence + 1
                if entry.first <= lost.last and entry.last >= lost.first:
                    raise CommandError(
                        f"messages {entry.first} to {entry.last} are in {entry.file_path}, which is in the catalog: "
                        "acknowledge it by its path if it is missing. Nothing was written"
                    )
        before, later = "", False
        async for key in self._bucket.keys(f"{self._prefix}/source={lane.source}/"):
            of_lane, first = lane_of_key(key) or (None, 0)
            if of_lane == lane and first < lost.first:
                before = key
            elif of_lane == lane and first <= lost.last:
                raise CommandError(f"message {first} is in {key}, which is in the bucket. Nothing was written")
            later |= of_lane == lane and first > lost.last
        # imported late: the command line of publishers imports this module too, and does not need PyArrow
        from bronze.objects.reader import read_contents

        contents = await read_contents(self._bucket, before) if before else None
        if contents and contents.last >= lost.first:
            raise CommandError(f"message {lost.first} is in {before}, which is in the bucket. Nothing was written")
        removed = await removed_paths(self._bucket, self._prefix, lane.source, f"{self._prefix}/source={lane.source}/")
        for file_path in removed:
            of_lane, first = lane_of_key(file_path) or (None, 0)
            if of_lane == lane and lost.first <= first <= lost.last:
                raise CommandError(
                    f"message {first} is in {file_path}, which has a removal record. Nothing was written"
                )
            later |= of_lane == lane and first > lost.last
        if not later:
            raise CommandError(
                f"no object of {lane.stream} after message {lost.last} is known, so its chain cannot continue there. "
                'See docs/delivery.md, "When a lane stops". Nothing was written'
            )
