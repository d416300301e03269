"""The feed of new objects, for followers: answers that wait for events, and streams of them.

Followers that have received the same share what is read and encoded for them, so that many of them cost little.
"""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.types import Receive, Scope, Send

from bronze.api.problems import document
from bronze.errors import Outage, Refused, Unavailable
from bronze.lineage.catalog_index import CatalogIndex, EventPage, Sources
from bronze.protocol.feed_cursor import FeedCursor
from bronze.protocol.feed_event import FeedEvent

#: The cursor of a follower who wants only what comes from now on.
LATEST = "latest"
LIMIT = 100
LIMIT_MAX = 500
WAIT_S_MAX = 30
#: Events that a stream reads at once.
STREAM_LIMIT = 20
#: How often a follower who waits is checked: whether its key still holds, and whether the API is stopping.
CHECK_S = 2.0
#: A stream without events sends a comment this often, so that both ends notice a connection that was lost.
HEARTBEAT_S = 15.0
#: How long a client waits before it connects again.
RETRY_MS = 2_000
#: Pages that are read at the same time: look-ups use the same thread.
READS_MAX = 2
#: Pages that are kept until the index changes.
RESULTS_MAX = 16

T = TypeVar("T")

#: The sources that the follower may read and wants to, as its key is now. Raises `Refused`.
Access = Callable[[], Sources]


@dataclass(frozen=True)
class FeedAnswer:
    """Events in order, and the cursor after them. `more`: others follow at once."""

    events: list[FeedEvent]
    cursor: str
    more: bool


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A page as it is sent, and the cursor after it with its text."""

    body: bytes
    events: int
    cursor: FeedCursor
    text: str
    more: bool


class Followers:
    """Answers the followers of the feed, of a bounded number at the same time."""

    def __init__(
        self,
        index: CatalogIndex,
        system: str,
        followers_max: int,
        report: Callable[[int], None] = lambda _: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """`report` is given the number of followers, whenever it changes."""
        self._index = index
        self._system = system
        self._followers_max = followers_max
        self._stopping = stopping
        self._report = report
        self._waiting = 0
        report(0)
        self._reads = asyncio.Semaphore(READS_MAX)
        self._turn = asyncio.Lock()
        self._results: dict[object, asyncio.Task[Any]] = {}
        self._results_of: asyncio.Event | None = None

    async def poll(
        self, after: str, access: Access, limit: int, wait_s: float, since: dt.datetime | None = None
    ) -> bytes:
        """The events after a cursor, as JSON; if there are none, the first ones within a time. Raises `Refused`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        with self._follower() if wait_s else nullcontext():
            cursor, text = await self._begin(after, access)
            while True:
                changed = self._index.changed
                page = await self._page(self._answer, cursor, text, access(), limit, since)
                left_s = deadline - loop.time()
                if page.events or left_s <= 0 or self._stopping():
                    return page.body
                cursor, text = page.cursor, page.text
                await _wait(changed, min(left_s, CHECK_S))

    async def stream(self, after: str, access: Access) -> "EventStream":
        """The events after a cursor, and all later ones, as server-sent events. Raises `Refused`."""
        cursor, text = await self._begin(after, access)
        return EventStream(self._frames(cursor, text, access), self._follower)

    async def _frames(self, cursor: FeedCursor, text: str, access: Access) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        # an id without data: a client that connects again before the first event begins where this stream did
        yield format_sse_event(id=text, retry=RETRY_MS)
        sent_s = loop.time()
        while not self._stopping():
            changed = self._index.changed
            try:
                page = await self._page(self._events, cursor, text, access(), STREAM_LIMIT)
            except Refused as error:
                problem = document(error.status, error.code, error.detail, error.members)
                yield format_sse_event(event="error", data_str=msgspec.json.encode(problem).decode())
                return
            cursor, text = page.cursor, page.text
            if page.events:
                yield page.body
                sent_s = loop.time()
            if page.more:
                continue
            await _wait(changed, CHECK_S)
            if loop.time() - sent_s >= HEARTBEAT_S:
                yield KEEPALIVE_COMMENT
                sent_s = loop.time()

    async def _begin(self, after: str, access: Access) -> tuple[FeedCursor, str]:
        """The cursor that a follower begins with, and its text."""
        if after == LATEST:
            sources = access()
            latest = await self._shared((LATEST, sources), lambda: self._index.latest(sources))
            if latest is None:
                raise Unavailable(
                    Outage.UNDECIDED,
                    "The API is still reading the catalog, and does not know its end.",
                    retry_after_s=2,
                )
            return latest, latest.encode(self._system)
        return (FeedCursor.decode(after, self._system) if after else FeedCursor()), after

    async def _page(
        self,
        encode: Callable[[EventPage], _Encoded],
        cursor: FeedCursor,
        text: str,
        sources: Sources,
        limit: int,
        since: dt.datetime | None = None,
    ) -> _Encoded:
        """The next page, which all followers with this cursor and these sources share."""
        key = (encode, text, sources, limit, since)
        page = await self._shared(key, lambda: self._read(encode, cursor, sources, limit, since))
        async with self._turn:  # hundreds of followers are not served at once, while a small request waits
            await asyncio.sleep(0)
        return page

    async def _shared(self, key: object, read: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What is read for a key, once until the index changes."""
        if self._results_of is not self._index.changed:
            self._results_of = self._index.changed
            self._results.clear()
        if key not in self._results:
            if len(self._results) == RESULTS_MAX:
                self._results.pop(next(iter(self._results)))
            self._results[key] = asyncio.create_task(read())
        reading: asyncio.Task[T] = self._results[key]
        try:
            return await asyncio.shield(reading)  # others may wait for it too
        except Exception:
            if self._results.get(key) is reading:
                del self._results[key]
            raise

    async def _read(
        self,
        encode: Callable[[EventPage], _Encoded],
        cursor: FeedCursor,
        sources: Sources,
        limit: int,
        since: dt.datetime | None,
    ) -> _Encoded:
        async with self._reads:
            return await self._index.events(cursor, sources, limit, encode, since)

    def _answer(self, page: EventPage) -> _Encoded:
        text = page.cursor.encode(self._system)
        body = msgspec.json.encode(FeedAnswer(list(page.events), text, page.more))
        return _Encoded(body, len(page.events), page.cursor, text, page.more)

    def _events(self, page: EventPage) -> _Encoded:
        texts = [cursor.encode(self._system) for cursor in page.cursors]
        body = b"".join(
            format_sse_event(event=event.kind, data_str=msgspec.json.encode(event).decode(), id=text)
            for event, text in zip(page.events, texts, strict=True)
        )
        return _Encoded(body, len(texts), page.cursor, page.cursor.encode(self._system), page.more)

    @contextmanager
    def _follower(self) -> Iterator[None]:
        """Count a follower who waits. Raises `Unavailable` if there are too many."""
        if self._waiting >= self._followers_max:
            raise Unavailable(
                Outage.OVERLOADED,
                f"{self._followers_max} requests wait for new objects already (BRONZE_FOLLOWERS_MAX). Try again later.",
                limit=self._followers_max,
                setting="BRONZE_FOLLOWERS_MAX",
            )
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, more: int) -> None:
        self._waiting += more
        self._report(self._waiting)


class EventStream(EventSourceResponse):
    """A stream of events, which counts as a follower while it is sent."""

    def __init__(self, frames: AsyncIterator[bytes], follower: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__(frames, headers=HEADERS)
        self._follower = follower

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._follower():
            await super().__call__(scope, receive, send)


#: No cache and no proxy keeps events.
HEADERS: Mapping[str, str] = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


async def _wait(changed: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(changed.wait(), seconds)
