"""Finds the objects that are in the catalog, but not in the bucket."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

from bronze.errors import Outage, Unavailable
from bronze.objects.removals import removed_paths
from bronze.plurals import counted
from bronze.protocol.lane import Lane
from bronze.servers.bucket import Bucket
from bronze.servers.catalog_feed import Feed, FeedEntry, FeedPosition


@dataclass(frozen=True, slots=True)
class AbsentObject:
    """An object that is in the catalog, but not in the bucket. It is missing unless it has a removal record."""

    file_path: str
    lane: Lane
    first: int
    last: int
    records: int
    submissions: int
    stored_at: str
    removed: bool = False

    @classmethod
    def of(cls, item: FeedEntry) -> "AbsentObject":
        entry = item.entry
        return cls(
            file_path=entry.file_path,
            lane=Lane(entry.source, entry.lane, entry.epoch),
            first=entry.first,
            last=entry.last,
            records=entry.records,
            submissions=len(entry.submissions),
            stored_at=item.stored_at,
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
        }

    def as_text(self) -> str:
        """The same for people, in two lines."""
        records, submissions = counted(self.records, "record"), counted(self.submissions, "submission")
        lane = f"{self.lane.epoch}-{self.lane.number}"
        return (
            f"{self.file_path}\n  {records} of {submissions}, stored {self.stored_at}, messages {self.first} to "
            f"{self.last} of lane {lane}"
        )


async def find_absent(
    feed: Feed, bucket: Bucket, prefix: str, since: str | None, on_entry: Callable[[], None]
) -> list[AbsentObject]:
    """The absent objects that were stored since a time (RFC 3339 in UTC), in the order of the catalog."""
    expected: dict[str, dict[str, AbsentObject]] = {}
    async for item in read_entries(feed, since, on_entry):  # before the listing: an object is older than its entry
        if since is None or item.stored_at >= since.removesuffix("Z"):
            expected.setdefault(item.entry.source, {})[item.entry.file_path] = AbsentObject.of(item)
    absent: list[AbsentObject] = []
    for source, objects in expected.items():
        least = min(objects)
        async for key in bucket.keys(f"{prefix}/source={source}/", least[:-1]):
            objects.pop(key, None)
        if objects:
            removed = await removed_paths(bucket, prefix, source, min(objects), max(objects))
            absent += [replace(each, removed=each.file_path in removed) for each in objects.values()]
    return absent


async def read_entries(feed: Feed, since: str | None, on_entry: Callable[[], None]) -> AsyncIterator[FeedEntry]:
    """The entries of the catalog up to now; `on_entry` is called for each. Raises `Unavailable` if it is replaced."""
    position = FeedPosition()
    while True:
        page = await feed.read(position, since=None if position.stream else since)
        if position.stream not in {"", page.position.stream}:
            raise Unavailable(Outage.CONFLICT, "the catalog was replaced while it was read. Run this command again")
        for item in page.entries:
            on_entry()
            yield item
        if not page.remaining:
            return
        position = page.position
