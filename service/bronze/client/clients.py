"""The clients for programs. They need the API, and to read rows the bucket; never the queue."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import httpx

from bronze import settings
from bronze.client import calls
from bronze.client.calls import Call, Policy, Records, Time
from bronze.client.checkpoint import Checkpoint
from bronze.client.connection import connect, connect_async
from bronze.client.results import FeedPage, Status, Submission
from bronze.protocol.feed_event import ObjectEvent
from bronze.records.sources import Source

if TYPE_CHECKING:
    import pyarrow as pa

    from bronze.client.objects import Bucket, EventRange, Where

T = TypeVar("T")

#: The longest wait of one request of the feed.
WAIT_S_MAX = 30.0
FEED_LIMIT = 100
#: Objects that one request of `objects` asks for.
OBJECTS_LIMIT = 500
RETRY_FOR_S = 60.0
STORED_S = 120.0


class Client:
    """A client of the API. Use it in one thread at a time, in a `with` block or with `close`.

    Address and API key are those of `BRONZE_API_URL` and `BRONZE_API_KEY`, unless they are given. While the API does
    not answer, or answers that it is overloaded (429, 5xx), a call is repeated for `retry_for_s` seconds; then it
    raises `Unavailable`. What the caller has to correct raises `Refused`. Both are a `BronzeError`.
    """

    def __init__(self, url: str | None = None, *, api_key: str | None = None, retry_for_s: float = RETRY_FOR_S) -> None:
        self._http = connect(settings.load(), url)
        if api_key is not None:
            self._http.headers["Authorization"] = f"Bearer {api_key}"
        self._policy = Policy(retry_for_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(
        self,
        source: str,
        records: Records,
        *,
        key: str | None = None,
        classification_id: str | None = None,
        file_name: str | None = None,
        on_invalid: str | None = None,
        media_type: str | None = None,
        traceparent: str | None = None,
    ) -> Submission:
        """Send records as one submission; returns when it is accepted: when the records are durable.

        `records` are objects, a table (of PyArrow, Polars or whatever has the Arrow PyCapsule interface), or a body as
        bytes (NDJSON, or of the `media_type`). With the same `key` (`Idempotency-Key`) the same records are stored
        once, however often they are sent; without one, the call has a key of its own, for its retries.
        `on_invalid="quarantine"` accepts what fits, and quarantines the rest. The request continues the trace
        `traceparent`, else the current one of OpenTelemetry.
        """
        return self._run(
            calls.submit(
                self._http,
                self._policy,
                source,
                records,
                key=key,
                classification_id=classification_id,
                file_name=file_name,
                on_invalid=on_invalid,
                media_type=media_type,
                traceparent=traceparent,
            )
        )

    def status(self, submission_id: str) -> Status:
        """Where a submission is."""
        return self._run(calls.status(self._http, self._policy, submission_id))

    def wait_until_stored(self, submission_id: str, timeout_s: float = STORED_S) -> Status:
        """Wait until a submission is no longer only accepted. Raises `Unavailable` if that takes too long."""
        return self._run(calls.wait_until_stored(self._http, self._policy, submission_id, timeout_s))

    def event_time(self, source: str) -> str | None:
        """The field that a source declares as its event time."""
        return self._run(calls.declared(self._http, self._policy, source)).event_time

    def columns(self, source: str) -> "pa.Schema":
        """The columns of a source's objects, as it is declared now. Older objects may have fewer."""
        return _columns(self._run(calls.declared(self._http, self._policy, source)))

    def feed(
        self,
        after: str = "",
        *,
        sources: Sequence[str] = (),
        since: str | None = None,
        limit: int = FEED_LIMIT,
        wait_s: float = 0,
    ) -> FeedPage:
        """One page of the feed after a cursor; waits up to 30 s for the first event."""
        return self._run(
            calls.feed(self._http, self._policy, after, sources=sources, since=since, limit=limit, wait_s=wait_s)
        )

    def follow(
        self,
        after: str = "",
        *,
        sources: Sequence[str] = (),
        checkpoint: Checkpoint | None = None,
        wait_s: float = WAIT_S_MAX,
    ) -> Iterator[FeedPage]:
        """The pages of the feed after a cursor, without end; with `wait_s=0` up to the last event that exists now.

        With a `checkpoint`, it begins after the stored cursor, and stores the cursor of a page when the next page is
        asked for: after a crash, the last page comes again. To get each event exactly once, store `page.cursor` in the
        same transaction as what you made of the page, and begin `after` it.
        """
        cursor = (checkpoint.load() if checkpoint else "") or after
        while True:
            page = self.feed(cursor, sources=sources, wait_s=wait_s)
            cursor = page.cursor
            if page.events:
                yield page
                if checkpoint:
                    checkpoint.save(cursor)
            if not wait_s and not page.more:
                return

    def objects(self, source: str, *, since: Time | None = None, until: Time | None = None) -> Iterator[ObjectEvent]:
        """The objects of a source that are in the bucket, by the catalog.

        Those with records that were received at `since` or later and before `until`: their other rows may be outside. A
        time is RFC 3339 or an object with its zone, or a date, which is its beginning in UTC.
        """
        calls.check_range(since, until)
        begin = None if since is None else calls.moment(since).isoformat()
        cursor, more = "", True
        while more:
            page = self.feed(cursor, sources=[source], since=begin, limit=OBJECTS_LIMIT)
            cursor, more = page.cursor, page.more
            yield from (event for event in page.objects if _wanted(event, until))

    def read(
        self,
        source: str,
        *,
        since: Time | None = None,
        until: Time | None = None,
        event_since: Time | None = None,
        event_until: Time | None = None,
        columns: Sequence[str] | None = None,
        where: "Where | None" = None,
        bucket: "Bucket | None" = None,
    ) -> "pa.Table":
        """The rows of a source that were received in a time, as an Arrow table.

        A time is RFC 3339 or an object with its zone, or a date, which is its beginning in UTC. `event_since` and
        `event_until` are those of what the records are about, by the event time of the source. `where` is an Arrow
        expression or, as text, the condition of an SQL WHERE clause.

        Columns that only some objects have are null in the others. Without any object, the columns are those that the
        source declares. The bucket is that of `BRONZE_BUCKET` and `AWS_*`.
        """
        calls.check_range(event_since, event_until, "event_since", "event_until")
        by_event_time = event_since is not None or event_until is not None
        events = _event_range(source, self.event_time(source), event_since, event_until) if by_event_time else None
        paths = [
            event.file_path for event in self.objects(source, since=since, until=until) if _has_rows(event, events)
        ]
        empty = None if paths else self.columns(source)
        return _reader(bucket).table(paths, columns, where, since=since, until=until, events=events, empty=empty)

    def read_objects(
        self,
        objects: Iterable[ObjectEvent | str],
        columns: Sequence[str] | None = None,
        where: "Where | None" = None,
        bucket: "Bucket | None" = None,
    ) -> "pa.Table":
        """The rows of these objects as an Arrow table. Raises `Unavailable` if one of them is not in the bucket."""
        return _reader(bucket).table(_paths(objects), columns, where)

    def _run(self, call: Call[T]) -> T:
        reply: httpx.Response | httpx.RequestError | None = None
        while True:
            try:
                step = call.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result
            reply = None
            if not isinstance(step, httpx.Request):
                time.sleep(step)
                continue
            try:
                reply = self._http.send(step)
            except httpx.RequestError as error:
                reply = error


class AsyncClient:
    """The same for programs with an event loop: `async with AsyncClient() as bronze`. Its methods are coroutines."""

    def __init__(self, url: str | None = None, *, api_key: str | None = None, retry_for_s: float = RETRY_FOR_S) -> None:
        self._http = connect_async(settings.load(), url=url)
        if api_key is not None:
            self._http.headers["Authorization"] = f"Bearer {api_key}"
        self._policy = Policy(retry_for_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def submit(
        self,
        source: str,
        records: Records,
        *,
        key: str | None = None,
        classification_id: str | None = None,
        file_name: str | None = None,
        on_invalid: str | None = None,
        media_type: str | None = None,
        traceparent: str | None = None,
    ) -> Submission:
        """As `Client.submit`."""
        return await self._run(
            calls.submit(
                self._http,
                self._policy,
                source,
                records,
                key=key,
                classification_id=classification_id,
                file_name=file_name,
                on_invalid=on_invalid,
                media_type=media_type,
                traceparent=traceparent,
            )
        )

    async def status(self, submission_id: str) -> Status:
        """As `Client.status`."""
        return await self._run(calls.status(self._http, self._policy, submission_id))

    async def wait_until_stored(self, submission_id: str, timeout_s: float = STORED_S) -> Status:
        """As `Client.wait_until_stored`."""
        return await self._run(calls.wait_until_stored(self._http, self._policy, submission_id, timeout_s))

    async def event_time(self, source: str) -> str | None:
        """As `Client.event_time`."""
        return (await self._run(calls.declared(self._http, self._policy, source))).event_time

    async def columns(self, source: str) -> "pa.Schema":
        """As `Client.columns`."""
        return _columns(await self._run(calls.declared(self._http, self._policy, source)))

    async def feed(
        self,
        after: str = "",
        *,
        sources: Sequence[str] = (),
        since: str | None = None,
        limit: int = FEED_LIMIT,
        wait_s: float = 0,
    ) -> FeedPage:
        """As `Client.feed`."""
        return await self._run(
            calls.feed(self._http, self._policy, after, sources=sources, since=since, limit=limit, wait_s=wait_s)
        )

    async def follow(
        self,
        after: str = "",
        *,
        sources: Sequence[str] = (),
        checkpoint: Checkpoint | None = None,
        wait_s: float = WAIT_S_MAX,
    ) -> AsyncIterator[FeedPage]:
        """As `Client.follow`."""
        cursor = (checkpoint.load() if checkpoint else "") or after
        while True:
            page = await self.feed(cursor, sources=sources, wait_s=wait_s)
            cursor = page.cursor
            if page.events:
                yield page
                if checkpoint:
                    checkpoint.save(cursor)
            if not wait_s and not page.more:
                return

    async def objects(
        self, source: str, *, since: Time | None = None, until: Time | None = None
    ) -> AsyncIterator[ObjectEvent]:
        """As `Client.objects`."""
        calls.check_range(since, until)
        begin = None if since is None else calls.moment(since).isoformat()
        cursor, more = "", True
        while more:
            page = await self.feed(cursor, sources=[source], since=begin, limit=OBJECTS_LIMIT)
            cursor, more = page.cursor, page.more
            for event in page.objects:
                if _wanted(event, until):
                    yield event

    async def read(
        self,
        source: str,
        *,
        since: Time | None = None,
        until: Time | None = None,
        event_since: Time | None = None,
        event_until: Time | None = None,
        columns: Sequence[str] | None = None,
        where: "Where | None" = None,
        bucket: "Bucket | None" = None,
    ) -> "pa.Table":
        """As `Client.read`."""
        calls.check_range(event_since, event_until, "event_since", "event_until")
        by_event_time = event_since is not None or event_until is not None
        events = (
            _event_range(source, await self.event_time(source), event_since, event_until) if by_event_time else None
        )
        found = self.objects(source, since=since, until=until)
        paths = [event.file_path async for event in found if _has_rows(event, events)]
        empty = None if paths else await self.columns(source)
        reader = _reader(bucket)
        return await asyncio.to_thread(
            reader.table, paths, columns, where, since=since, until=until, events=events, empty=empty
        )

    async def read_objects(
        self,
        objects: Iterable[ObjectEvent | str],
        columns: Sequence[str] | None = None,
        where: "Where | None" = None,
        bucket: "Bucket | None" = None,
    ) -> "pa.Table":
        """As `Client.read_objects`."""
        reader = _reader(bucket)
        return await asyncio.to_thread(reader.table, _paths(objects), columns, where)

    async def _run(self, call: Call[T]) -> T:
        reply: httpx.Response | httpx.RequestError | None = None
        while True:
            try:
                step = call.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result
            reply = None
            if not isinstance(step, httpx.Request):
                await asyncio.sleep(step)
                continue
            try:
                reply = await self._http.send(step)
            except httpx.RequestError as error:
                reply = error


def _reader(bucket: "Bucket | None") -> "Bucket":
    """The bucket to read from. Arrow is imported only by programs that read."""
    from bronze.client.objects import Bucket

    return bucket or Bucket.of_settings()


def _columns(source: Source) -> "pa.Schema":
    from bronze.records.columns import object_schema

    return object_schema(source)


def _event_range(source: str, column: str | None, since: Time | None, until: Time | None) -> "EventRange":
    from bronze.client.objects import EventRange

    return EventRange.of(source, column, since, until)


def _has_rows(event: ObjectEvent, events: "EventRange | None") -> bool:
    return events is None or events.may_be_in(event)


def _paths(objects: Iterable[ObjectEvent | str]) -> list[str]:
    return [item if isinstance(item, str) else item.file_path for item in objects]


def _wanted(event: ObjectEvent, until: Time | None) -> bool:
    """Whether an object is in the bucket, and may have rows from before a time."""
    if event.removed or not event.records:
        return False
    if until is None or event.first_received_at is None:
        return True
    return calls.moment(event.first_received_at) < calls.moment(until)
