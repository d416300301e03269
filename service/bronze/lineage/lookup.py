"""Look-ups: from any id or path to the whole chain, submissions and objects, in both directions.

The view answers; what it cannot know yet, or does not hold, is asked of the identity, the queue and the bucket.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import BinaryIO, Literal
from uuid import UUID

from bronze.errors import Halted, Outage, Refusal, Refused, Unavailable
from bronze.lineage.catalog_index import CatalogIndex, IdKind
from bronze.objects.footer import NotABronzeObject
from bronze.objects.reader import read_contents, read_in_thread
from bronze.objects.search import submissions_with
from bronze.protocol.documents import (
    CatalogEntry,
    EntrySubmission,
    Identity,
    SubmissionState,
    entry_of,
    state_of,
    trace_id_of,
)
from bronze.protocol.keys import may_be_object
from bronze.protocol.message import AcceptedSubmission
from bronze.servers.bucket import Bucket
from bronze.servers.catalog_feed import FeedEntry

By = Literal["classification_id", "file_path", "submission_id", "trace_id"]

LIMIT = 100
LIMIT_MAX = 1000
#: Objects whose column is searched for a run at most, newest first, how many at once and for how long in all.
SEARCHED_MAX = 64
SEARCHED_AT_ONCE = 2
SEARCH_S_MAX = 5.0
#: How long the bucket has to say how large the objects are.
SIZES_S_MAX = 2.0
#: A view that is further behind than this cannot say that something is not there.
LAG_S_MAX = 5.0

_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class ObjectShare:
    """What of a submission lies in one object."""

    file_path: str
    records: int


@dataclass(frozen=True, slots=True)
class LineageSubmission:
    """A submission of a chain. Times are RFC 3339 in UTC, each None where it is not known (yet).

    `received_at`: the API had its request; `queued_at`: the queue had stored its first message; `stored_at`: the last
    of its objects so far was written. `trace_id` is that of its request. `objects` are all that hold a part of it.
    """

    submission_id: str
    source: str
    status: SubmissionState
    records: int
    classification_id: str | None
    classification_count: int | None
    trace_id: str
    origin: str | None
    received_at: str | None
    queued_at: str | None
    stored_at: str | None
    objects: list[ObjectShare] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class LineageObject:
    """An object of a chain: messages `first` to `last` of its lane.

    `trace_id` is that of its upload, the Bronze write; `bytes` is None where the bucket did not say.
    """

    file_path: str
    source: str
    epoch: str
    lane: int
    first: int
    last: int
    messages: int
    submissions: int
    records: int
    bytes: int | None
    trace_id: str
    stored_at: str


@dataclass(frozen=True, slots=True)
class Lineage:
    """What is known by an id or a path, in the order in which it was stored.

    `truncated`: there is more than the limit let through. `complete`: False where more objects may hold the
    classification than could be searched. `lag_s`: how far the view may be behind the catalog.
    """

    by: By
    value: str
    submissions: list[LineageSubmission]
    objects: list[LineageObject]
    truncated: bool
    complete: bool
    lag_s: float


class LineageLookup:
    """Answers chains. Raises `Refused` (404) where nothing is found and `Unavailable` where nobody can tell."""

    def __init__(
        self,
        view: CatalogIndex,
        bucket: Bucket,
        whereabouts: Callable[[str], Awaitable[tuple[AcceptedSubmission, Identity | None]]],
        prefix: str,
        *,
        searched_max: int = SEARCHED_MAX,
        lag_s_max: float = LAG_S_MAX,
    ) -> None:
        """`whereabouts` is what identity and queue know of a submission; it raises `Refused`."""
        self._view = view
        self._bucket = bucket
        self._whereabouts = whereabouts
        self._prefix = prefix
        self._searched_max = searched_max
        self._lag_s_max = lag_s_max
        self._searching = asyncio.Semaphore(SEARCHED_AT_ONCE)

    async def lineage(self, by: By, value: str, limit: int = LIMIT) -> Lineage:
        """The chain of an id or a path; `limit` bounds its submissions and its objects."""
        complete, waiting = True, None
        match by:
            case "file_path":
                found = await self._of_object(value)
            case "submission_id":
                found = await self._view.by_id(IdKind.SUBMISSION, value, limit + 1, partial(_of_submission, value))
                if not found:
                    found, waiting = await self._not_in_view(value)
            case "trace_id":
                found = await self._view.by_id(IdKind.TRACE, value, limit + 1, partial(_of_trace, value))
            case "classification_id":
                found, complete = await self._of_a_run(value, limit)
        if not found and not waiting:
            raise self._unknown(by, value, complete=complete)
        # by what the objects say: a catalog that was rebuilt may have the lanes' entries in another order
        shown = sorted(found[:limit], key=lambda one: (one.object.stored_at, one.object.file_path))
        parts: dict[str, list[_Part]] = {}
        for one in shown:
            for part in one.parts:
                parts.setdefault(part.submission_id, []).append((one.object, part))
        truncated = len(found) > limit or len(parts) > limit
        lines = [await self._submission(of, limit) for of in list(parts.values())[:limit]]
        return Lineage(
            by=by,
            value=value,
            submissions=lines or ([waiting] if waiting else []),
            objects=await self._sized([one.object for one in shown]),
            truncated=truncated,
            complete=complete,
            lag_s=round(self._view.lag_s, 3),
        )

    async def guess(self, text: str, limit: int = LIMIT) -> Lineage:
        """The chain of whatever this is: an id of any kind, a path, an `s3://` address or a `traceparent`."""
        for by, value in guesses(text):
            with suppress(Refused):
                return await self.lineage(by, value, limit)
        tried = " nor as ".join(by for by, _ in guesses(text))
        raise Refused(Refusal.NOT_FOUND, f"Nothing is known of {text!r}, as {tried}.")

    def _unknown(self, by: By, value: str, *, complete: bool) -> Refused | Unavailable:
        lag_s = self._view.lag_s
        if lag_s > self._lag_s_max:
            return Unavailable(
                Outage.UNDECIDED,
                f"Nothing is known of {by} {value!r} yet: the view is {lag_s:.0f} s behind the catalog.",
            )
        if not complete:
            return Unavailable(
                Outage.UNDECIDED,
                f"No object is known to hold {by} {value!r}, and not each that may could be searched in time. "
                "Ask by another id, or query the bucket.",
            )
        return Refused(
            Refusal.NOT_FOUND,
            f"Nothing is known of {by} {value!r}. What is accepted and not stored yet is found by its submission_id.",
        )

    # --- entries, and of each the submissions that are asked for

    async def _of_object(self, file_path: str) -> list["_Found"]:
        found = await self._view.by_path(file_path, _Found.of)
        if not found:
            entry = await self._entry(file_path)
            return [_Found.of(FeedEntry(0, "", entry))] if entry else []
        return found

    async def _not_in_view(self, submission_id: str) -> tuple[list["_Found"], LineageSubmission | None]:
        """A submission that is new: in objects that the view has not seen, or waiting in the queue."""
        with suppress(Refused):
            accepted, identity = await self._whereabouts(submission_id)
            entries = [await self._entry(key) for key in (identity.objects if identity else [])]
            found = [_of_submission(submission_id, FeedEntry(0, "", entry)) for entry in entries if entry]
            return found, None if found else _waiting(accepted)
        return [], None

    async def _of_a_run(self, run: str, limit: int) -> tuple[list["_Found"], bool]:
        """What the view knows by itself, and what the columns of other objects say; False: not all were searched."""
        found = await self._view.by_id(IdKind.CLASSIFICATION, run, limit + 1, partial(_of_run, run))
        candidates = await self._view.to_search(run, self._searched_max + 1)
        held: dict[str, Mapping[str, int]] = {}

        async def search(file_path: str) -> None:
            async with self._searching:
                held[file_path] = await read_in_thread(self._bucket, file_path, partial(_holders, run)) or {}

        searches = [asyncio.ensure_future(search(one)) for one in candidates[: self._searched_max]]
        if searches:
            _, late = await asyncio.wait(searches, timeout=SEARCH_S_MAX)
            for one in late:
                one.cancel()
            await asyncio.gather(*searches, return_exceptions=True)
        for file_path, rows in held.items():
            if rows:
                found = [one for one in found if one.object.file_path != file_path]
                found += await self._view.by_path(file_path, partial(_of_ids, rows))
        return sorted(found, key=lambda one: one.sequence), len(held) == len(candidates)

    async def _entry(self, file_path: str) -> CatalogEntry | None:
        """What the object itself says; None where it is none of ours."""
        if not may_be_object(self._prefix, file_path):
            return None
        try:
            contents = await read_contents(self._bucket, file_path)
        except Halted:
            return None
        return entry_of(contents) if contents else None

    # --- lines

    async def _submission(self, parts: Sequence["_Part"], limit: int) -> LineageSubmission:
        """A submission by its parts in the objects found; where these are not all of it, by all."""
        if any(one.records_accepted is not None for _, one in parts):
            submission_id = parts[0][1].submission_id
            found = await self._view.by_id(
                IdKind.SUBMISSION, submission_id, limit, partial(_of_submission, submission_id)
            )
            parts = [(one.object, part) for one in found for part in one.parts] or parts
        parts = sorted(parts, key=lambda part: part[0].first)
        (first, one), (last, latest) = parts[0], parts[-1]
        return LineageSubmission(
            submission_id=one.submission_id,
            source=first.source,
            status=state_of(latest),
            records=one.records if one.records_accepted is None else one.records_accepted,
            classification_id=one.classification_id,
            classification_count=one.classification_count,
            trace_id=one.trace_id,
            origin=one.origin,
            received_at=one.received_at or None,
            queued_at=one.queued_at or None,
            stored_at=last.stored_at,
            objects=[ObjectShare(of.file_path, part.records) for of, part in parts],
        )

    async def _sized(self, lines: Sequence[LineageObject]) -> list[LineageObject]:
        """The objects with their sizes, as far as the bucket says them in time."""
        sizes: dict[str, int] = {}

        async def size(file_path: str) -> None:
            head = await self._bucket.head(file_path)
            if head:
                sizes[file_path] = head.size

        heads = [asyncio.ensure_future(size(line.file_path)) for line in lines]
        if heads:
            await asyncio.wait(heads, timeout=SIZES_S_MAX)
            for one in heads:
                one.cancel()
            await asyncio.gather(*heads, return_exceptions=True)
        return [replace(line, bytes=sizes.get(line.file_path)) for line in lines]


@dataclass(frozen=True, slots=True)
class _Found:
    """Of an entry only what an answer needs: a thousand of them are not held whole."""

    sequence: int
    object: LineageObject
    parts: list[EntrySubmission]

    @classmethod
    def of(cls, noted: FeedEntry, wanted: Callable[[EntrySubmission], bool] = lambda _: True) -> "_Found":
        parts = [one for one in noted.entry.submissions if wanted(one)]
        return cls(noted.sequence, _object(noted.entry, noted.stored_at), parts)


#: A submission in one of its objects.
_Part = tuple[LineageObject, EntrySubmission]


def guesses(text: str) -> list[tuple[By, str]]:
    """What a text may be, the likeliest first."""
    text = text.strip()
    lower = text.lower()
    if address := re.fullmatch(r"s3a?://[^/]+/(.+)", text):
        return [("file_path", address[1])]
    if traceparent := _TRACEPARENT.fullmatch(lower):
        return [("trace_id", traceparent[1])]
    run: tuple[By, str] = ("classification_id", text)
    if "/" in text:
        return [("file_path", text), run]
    if _TRACE_ID.fullmatch(lower):
        return [("trace_id", lower), run]
    with suppress(ValueError):
        UUID(text)
        return [("submission_id", lower), run]
    return [run]


def _of_submission(submission_id: str, noted: FeedEntry) -> _Found:
    return _of_ids({submission_id}, noted)


def _of_ids(submission_ids: Container[str], noted: FeedEntry) -> _Found:
    return _Found.of(noted, lambda one: one.submission_id in submission_ids)


def _of_trace(trace_id: str, noted: FeedEntry) -> _Found:
    return _Found.of(noted, lambda one: one.trace_id == trace_id)


def _of_run(run: str, noted: FeedEntry) -> _Found:
    return _Found.of(noted, lambda one: one.classification_id == run)


def _holders(run: str, file: BinaryIO) -> Mapping[str, int]:
    try:
        return submissions_with(file, run)
    except NotABronzeObject:
        return {}


def _object(entry: CatalogEntry, stored_at: str) -> LineageObject:
    return LineageObject(
        file_path=entry.file_path,
        source=entry.source,
        epoch=entry.epoch,
        lane=entry.lane,
        first=entry.first,
        last=entry.last,
        messages=entry.messages,
        submissions=len(entry.submissions),
        records=entry.records,
        bytes=None,
        trace_id=trace_id_of(entry.traceparent),
        stored_at=stored_at,
    )


def _waiting(accepted: AcceptedSubmission) -> LineageSubmission:
    """A submission that is in no object yet."""
    return LineageSubmission(
        submission_id=accepted.submission_id,
        source=accepted.source,
        status="accepted",
        records=accepted.records,
        classification_id=accepted.classification_id,
        classification_count=accepted.classification_count,
        trace_id=accepted.trace_id,
        origin=accepted.origin,
        received_at=accepted.received_at,
        queued_at=None,
        stored_at=None,
    )
