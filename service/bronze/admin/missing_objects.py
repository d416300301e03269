"""Finds the objects that are in the catalog, but not in the bucket, or not as the catalog says."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from bronze.errors import Outage, Unavailable
from bronze.objects.differences import Difference, find_differences
from bronze.plurals import counted
from bronze.protocol.entry_sizes import EntrySizes
from bronze.protocol.lane import Lane
from bronze.servers.bucket import Bucket
from bronze.servers.catalog_feed import Feed, FeedEntry, FeedPage, FeedPosition


@dataclass(frozen=True, slots=True)
class MissingObject:
    """An object that is in the catalog, but not in the bucket; or it has another size there, so it is damaged.

    With a removal record (`removed`) it does not count as missing. `bytes` is its size by the catalog, None if unknown;
    `bytes_found` that in the bucket, None if it is gone.
    """

    file_path: str
    lane: Lane
    first: int
    last: int
    records: int
    submissions: int
    stored_at: str
    bytes: int | None
    bytes_found: int | None
    removed: bool

    @classmethod
    def of(cls, item: FeedEntry, difference: Difference) -> "MissingObject":
        entry = item.entry
        return cls(
            file_path=entry.file_path,
            lane=Lane(entry.source, entry.lane, entry.epoch),
            first=entry.first,
            last=entry.last,
            records=entry.records,
            submissions=len(entry.submissions),
            stored_at=item.stored_at,
            bytes=difference.size,
            bytes_found=difference.found,
            removed=difference.removed,
        )

    def as_dict(self) -> dict[str, object]:
        return {
            "file_path": self.file_path,
            "source": self.lane.source,
            "epoch": self.lane.epoch,
            "lane": self.lane.number,
            "first": self.first,
            "last": self.last,
            "records": self.records,
            "submissions": self.submissions,
            "stored_at": self.stored_at,
            "bytes": self.bytes,
            "bytes_found": self.bytes_found,
        }

    def as_text(self) -> str:
        """The same for people, in two or three lines."""
        records, submissions = counted(self.records, "record"), counted(self.submissions, "submission")
        lane = f"{self.lane.epoch}-{self.lane.number}"
        text = (
            f"{self.file_path}\n  {records} of {submissions}, stored {self.stored_at}, messages {self.first} to "
            f"{self.last} of lane {lane}"
        )
        if self.bytes_found is not None:
            found = counted(self.bytes_found, "byte")
            text += f"\n  damaged or replaced: {found} in the bucket, but {self.bytes:,} in the catalog"
        return text


async def find_missing(
    feed: Feed, bucket: Bucket, prefix: str, since: str | None, on_entry: Callable[[], None]
) -> list[MissingObject]:
    """The missing objects that were stored since a time (RFC 3339 in UTC), in the order of the catalog.

    Only one page of entries is in memory, and what is missing.
    """
    missing: list[MissingObject] = []
    sizes = EntrySizes()
    async for page in read_pages(feed, since):
        # the entries were read before the listing, and an object is older than its entry
        expected: dict[str, dict[str, int | None]] = {}
        for item in page.entries:
            on_entry()
            size = sizes.of(item.entry)
            if since is None or item.stored_at >= since.removesuffix("Z"):
                expected.setdefault(item.entry.source, {})[item.entry.file_path] = size
        found = {
            difference.key: difference
            for source, objects in expected.items()
            for difference in await find_differences(bucket, prefix, source, objects)
        }
        missing += [
            MissingObject.of(item, found[item.entry.file_path])
            for item in page.entries
            if item.entry.file_path in found
        ]
    return missing


async def read_entries(feed: Feed, since: str | None, on_entry: Callable[[], None]) -> AsyncIterator[FeedEntry]:
    """The entries of the catalog up to now; `on_entry` is called for each. Raises `Unavailable` if it is replaced."""
    async for page in read_pages(feed, since):
        for item in page.entries:
            on_entry()
            yield item


async def read_pages(feed: Feed, since: str | None) -> AsyncIterator[FeedPage]:
    """The pages of the catalog's feed up to now. Raises `Unavailable` if the catalog is replaced meanwhile."""
    position = FeedPosition()
    while True:
        page = await feed.read(position, since=None if position.stream else since)
        if position.stream not in {"", page.position.stream}:
            raise Unavailable(Outage.CONFLICT, "the catalog was replaced while it was read. Run this command again")
        yield page
        if not page.remaining:
            return
        position = page.position
