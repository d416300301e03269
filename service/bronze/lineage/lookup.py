"""Look-ups: the lineage of any id or path, which is all submissions and objects that belong to it.

The catalog index answers. The rest is read from the identity, the queue and the bucket.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, BinaryIO, Literal, Self
from uuid import UUID

from bronze.errors import Halted, Outage, Refusal, Refused, Unavailable
from bronze.lineage.catalog_index import CatalogIndex, IdKind, Sources
from bronze.lineage.table_snapshots import TableSnapshots
from bronze.objects.footer import NotABronzeObject
from bronze.objects.reader import read_contents, read_in_thread
from bronze.objects.removals import read_effective_removal, read_removal
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
from bronze.protocol.keys import lane_of_key, may_be_object
from bronze.protocol.message import AcceptedSubmission
from bronze.protocol.removal import Removal
from bronze.protocol.snapshot_summary import FirstSnapshot
from bronze.servers.bucket import Bucket
from bronze.servers.catalog_feed import FeedEntry

By = Literal["classification_id", "file_path", "submission_id", "trace_id"]

LIMIT = 100
LIMIT_MAX = 1000
#: At most so many objects have their column searched for a classification, newest first; at once; and in total time.
SEARCHED_MAX = 64
SEARCHED_AT_ONCE = 2
SEARCH_S_MAX = 5.0
#: The time limit for reading the objects' sizes from the bucket.
SIZES_S_MAX = 2.0
#: If the catalog index is further behind the catalog, it cannot decide that an id does not exist.
LAG_S_MAX = 5.0

_TRACE_ID = re.compile(r"[0-9a-f]{1,32}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class ObjectShare:
    """The part of a submission that is in one object."""

    file_path: str
    records: int


@dataclass(frozen=True, slots=True)
class LineageSubmission:
    """A submission of a lineage. Times are RFC 3339 in UTC, None if not known (yet).

    `received_at`: the API received its request; `queued_at`: the queue stored its first message; `stored_at`: the write
    of the last of its objects so far began; `ended_at`: that write had ended. `trace_id` is that of its request,
    and `principal` who sent it. `objects` are all that contain a part of it.
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
    ended_at: str | None = None
    principal: str | None = None


@dataclass(frozen=True, slots=True)
class LineageRemoval:
    """Why an object is no longer in the bucket: the code of the reason and a note, by whom, and when."""

    reason: str
    note: str
    by: str
    at: str

    @classmethod
    def of(cls, removal: Removal) -> Self:
        return cls(removal.reason, removal.note, removal.removed_by, removal.recorded_at)


@dataclass(frozen=True, slots=True)
class LineageObject:
    """An object of a lineage: messages `first` to `last` of its lane.

    `trace_id` is that of its upload, the Bronze write. `in_bucket` says whether it is in the bucket; None if the bucket
    did not answer in time. An object of another size than its removal record says is damaged, so it is not. `removed`
    is its removal record, if it is not in the bucket and has one. `bytes` is its size in the bucket, or the one that it
    had by that record; else None.

    The write, which is encoding and upload, began at `stored_at`, and had ended at `ended_at`, when the catalog had the
    object; None if that is not known.

    `in_table` says whether its rows were committed to the table of its source, and `snapshot` is the first that had
    them. None: its source has no table, or the API has no access to the catalog of the tables or no answer in time.
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
    removed: LineageRemoval | None = None
    in_bucket: bool | None = None
    ended_at: str | None = None
    in_table: bool | None = None
    snapshot: FirstSnapshot | None = None


@dataclass(frozen=True, slots=True)
class Lineage:
    """The submissions and objects of an id or a path, in the order in which they were stored.

    `truncated`: there are more than the limit. `complete`: False if more objects may contain the classification than
    could be searched. `lag_s`: the catalog index is at most so many seconds behind the catalog.
    """

    by: By
    value: str
    submissions: list[LineageSubmission]
    objects: list[LineageObject]
    truncated: bool
    complete: bool
    lag_s: float


class LineageLookup:
    """Finds lineages. Raises `Refused` (404) if nothing is found, and `Unavailable` if that cannot be decided yet."""

    def __init__(
        self,
        index: CatalogIndex,
        bucket: Bucket,
        find_submission: Callable[[str], Awaitable[tuple[AcceptedSubmission, Identity | None]]],
        prefix: str,
        *,
        snapshots: TableSnapshots | None = None,
        searched_max: int = SEARCHED_MAX,
        lag_s_max: float = LAG_S_MAX,
    ) -> None:
        """`find_submission` finds a submission by its identity or in the queue; it raises `Refused`. `snapshots`: if
        the catalog of the tables can be asked.
        """
        self._index = index
        self._bucket = bucket
        self._find_submission = find_submission
        self._prefix = prefix
        self._snapshots = snapshots
        self._searched_max = searched_max
        self._lag_s_max = lag_s_max
        self._searches = asyncio.Semaphore(SEARCHED_AT_ONCE)

    async def lineage(self, by: By, value: str, limit: int = LIMIT, sources: Sources = None) -> Lineage:
        """The lineage of an id or a path, with at most `limit` submissions and `limit` objects, of these sources."""
        complete, waiting = True, None
        match by:
            case "file_path":
                found = await self._by_path(value, sources)
            case "submission_id":
                of_submission = partial(_of_submission, value)
                found = await self._index.by_id(IdKind.SUBMISSION, value, limit + 1, of_submission, sources)
                if not found:
                    found, waiting = await self._not_indexed(value, sources)
            case "trace_id":
                trace_id = full_trace_id(value)
                found = await self._index.by_id(
                    IdKind.TRACE, trace_id, limit + 1, partial(_of_trace, trace_id), sources
                )
            case "classification_id":
                found, complete = await self._by_classification(value, limit, sources)
        if not found and not waiting:
            raise self._not_found(by, value, complete=complete)
        # in the order of the objects' own times: a rebuilt catalog may have the lanes' entries in another order
        matches = sorted(found[:limit], key=lambda match: (match.object.stored_at, match.object.file_path))
        parts: dict[str, list[_Part]] = {}
        for match in matches:
            for part in match.parts:
                parts.setdefault(part.submission_id, []).append((match.object, part))
        truncated = len(found) > limit or len(parts) > limit
        submissions = [await self._submission(in_objects, limit) for in_objects in list(parts.values())[:limit]]
        return Lineage(
            by=by,
            value=value,
            submissions=submissions or ([waiting] if waiting else []),
            objects=await self._as_they_are([match.object for match in matches]),
            truncated=truncated,
            complete=complete,
            lag_s=round(self._index.lag_s, 3),
        )

    async def guess(self, text: str, limit: int = LIMIT, sources: Sources = None) -> Lineage:
        """The lineage of an id of any kind, a path, an `s3://` address or a `traceparent`."""
        for by, value in guesses(text):
            try:
                return await self.lineage(by, value, limit, sources)
            except Refused as error:
                if error.code is Refusal.REMOVED:
                    raise
        kinds = " or ".join(by for by, _ in guesses(text))
        raise Refused(Refusal.NOT_FOUND, f"Nothing is known of {text!r}: no {kinds} has this value.")

    def _not_found(self, by: By, value: str, *, complete: bool) -> Refused | Unavailable:
        lag_s = self._index.lag_s
        if lag_s > self._lag_s_max:
            return Unavailable(
                Outage.UNDECIDED,
                f"Nothing is known of {by} {value!r} yet: the catalog index is {lag_s:.0f} s behind the catalog.",
            )
        if not complete:
            return Unavailable(
                Outage.UNDECIDED,
                f"No object with {by} {value!r} was found, but not all objects that may contain it could be searched "
                "in time. Look for another id, or query the bucket.",
            )
        return Refused(
            Refusal.NOT_FOUND,
            f"Nothing is known of {by} {value!r}. A submission that is not stored yet is found by its submission_id "
            "only.",
        )

    # --- catalog entries, each with the submissions that match

    async def _by_path(self, file_path: str, sources: Sources) -> list["_Match"]:
        found = await self._index.by_path(file_path, _Match.of, sources)
        if not found:
            entry = await self._read_entry(file_path, sources)
            if entry is None:
                await self._check_expired(file_path, sources)
            return [_Match.of(FeedEntry(0, "", entry))] if entry else []
        return found

    async def _check_expired(self, file_path: str, sources: Sources) -> None:
        """Raises `Refused` for an object that has expired and of which the catalog has no entry any more."""
        lane, _ = lane_of_key(file_path) or (None, 0)
        if lane is None or not may_be_object(self._prefix, file_path):
            return
        if sources is None or lane.source in sources:
            with suppress(Halted):
                if removal := await read_removal(self._bucket, self._prefix, file_path):
                    raise removed_error(file_path, removal)

    async def _not_indexed(
        self, submission_id: str, sources: Sources
    ) -> tuple[list["_Match"], LineageSubmission | None]:
        """A new submission: in objects that are not in the index yet, or waiting in the queue."""
        with suppress(Refused):
            accepted, identity = await self._find_submission(submission_id)
            if sources is not None and accepted.source not in sources:
                return [], None
            entries = [await self._read_entry(key, sources) for key in (identity.objects if identity else [])]
            found = [_of_submission(submission_id, FeedEntry(0, "", entry)) for entry in entries if entry]
            return found, None if found else _waiting(accepted)
        return [], None

    async def _by_classification(
        self, classification_id: str, limit: int, sources: Sources
    ) -> tuple[list["_Match"], bool]:
        """The matches in the index and in the columns of other objects; False: not all of these were searched."""
        found = await self._index.by_id(
            IdKind.CLASSIFICATION, classification_id, limit + 1, partial(_of_classification, classification_id), sources
        )
        candidates = await self._index.candidates(classification_id, self._searched_max + 1, sources)
        searched: dict[str, Mapping[str, int]] = {}

        async def search(file_path: str) -> None:
            async with self._searches:
                searched[file_path] = (
                    await read_in_thread(self._bucket, file_path, partial(_search_column, classification_id)) or {}
                )

        searches = [asyncio.ensure_future(search(file_path)) for file_path in candidates[: self._searched_max]]
        await finish_in_time(searches, SEARCH_S_MAX)
        for file_path, rows in searched.items():
            if rows:
                found = [match for match in found if match.object.file_path != file_path]
                found += await self._index.by_path(file_path, partial(_of_ids, rows))
        return sorted(found, key=lambda match: match.sequence), len(searched) == len(candidates)

    async def _read_entry(self, file_path: str, sources: Sources) -> CatalogEntry | None:
        """The catalog entry by the object's own footer, or by its removal record; None if Bronze did not write it, or
        if it is of another source.
        """
        if not may_be_object(self._prefix, file_path):
            return None
        try:
            contents = await read_contents(self._bucket, file_path)
            removal = None if contents else await read_removal(self._bucket, self._prefix, file_path)
        except Halted:
            return None
        entry = entry_of(contents) if contents else removal.entry if removal else None
        return entry if entry and (sources is None or entry.source in sources) else None

    # --- the answer's submissions and objects

    async def _submission(self, parts: Sequence["_Part"], limit: int) -> LineageSubmission:
        """A submission by its parts in the objects found; if these are not all its parts, by all of them."""
        if any(part.records_accepted is not None for _, part in parts):
            submission_id = parts[0][1].submission_id
            found = await self._index.by_id(
                IdKind.SUBMISSION, submission_id, limit, partial(_of_submission, submission_id)
            )
            parts = [(match.object, part) for match in found for part in match.parts] or parts
        parts = sorted(parts, key=lambda part: part[0].first)
        (first_object, first), (last_object, last) = parts[0], parts[-1]
        return LineageSubmission(
            submission_id=first.submission_id,
            source=first_object.source,
            status=state_of(last),
            records=first.records if first.records_accepted is None else first.records_accepted,
            classification_id=first.classification_id,
            classification_count=first.classification_count,
            trace_id=first.trace_id,
            origin=first.origin,
            principal=first.principal or None,
            received_at=first.received_at or None,
            queued_at=first.queued_at or None,
            stored_at=last_object.stored_at,
            ended_at=last_object.ended_at,
            objects=[ObjectShare(written.file_path, part.records) for written, part in parts],
        )

    async def _as_they_are(self, objects: Sequence[LineageObject]) -> list[LineageObject]:
        """The objects with what bucket and tables say of them."""
        sized = asyncio.ensure_future(self._with_sizes(objects))
        try:
            snapshots = await self._snapshots.of(objects) if self._snapshots else {}
            return [
                replace(written, in_table=(snapshot := snapshots[written.file_path]) is not None, snapshot=snapshot)
                if written.file_path in snapshots
                else written
                for written in await sized
            ]
        finally:
            sized.cancel()

    async def _with_sizes(self, objects: Sequence[LineageObject]) -> list[LineageObject]:
        """The objects with the sizes that the bucket reports in time, or with why they are not there any more."""
        sizes: dict[str, int] = {}
        removed: dict[str, Removal | None] = {}

        async def read_size(file_path: str) -> None:
            head = await self._bucket.head(file_path)
            stored_size = head.stored_size if head else None
            removal = await read_effective_removal(self._bucket, self._prefix, file_path, stored_size)
            if head is None or removal:
                removed[file_path] = removal
            else:
                sizes[file_path] = head.size

        reads = [asyncio.ensure_future(read_size(written.file_path)) for written in objects]
        await finish_in_time(reads, SIZES_S_MAX)
        return [
            replace(
                written,
                bytes=removal.bytes
                if (removal := removed.get(file_path := written.file_path))
                else sizes.get(file_path),
                removed=LineageRemoval.of(removal) if removal else None,
                in_bucket=True if file_path in sizes else False if file_path in removed else None,
            )
            for written in objects
        ]


@dataclass(frozen=True, slots=True)
class _Match:
    """The part of a catalog entry that an answer needs, so that a thousand entries fit in memory."""

    sequence: int
    object: LineageObject
    parts: list[EntrySubmission]

    @classmethod
    def of(cls, item: FeedEntry, wanted: Callable[[EntrySubmission], bool] = lambda _: True) -> "_Match":
        parts = [part for part in item.entry.submissions if wanted(part)]
        return cls(item.sequence, _object(item.entry, item.stored_at, item.ended_at), parts)


#: A submission in one of its objects.
_Part = tuple[LineageObject, EntrySubmission]


def removed_error(file_path: str, removal: Removal) -> Refused:
    """The error of a request for an object that was removed."""
    return Refused(
        Refusal.REMOVED,
        f"The object {file_path!r} was removed ({removal.reason}): {removal.note}.",
        removed=asdict(LineageRemoval.of(removal)),
    )


async def finish_in_time(reads: Sequence[asyncio.Future[Any]], seconds: float) -> None:
    """Waits for reads, and cancels those that take longer; all of them if it is cancelled itself.

    A read that fails has no result, which is not reported: the bucket may be unavailable.
    """
    try:
        if reads:
            await asyncio.wait(reads, timeout=seconds)
    finally:
        for read in reads:
            read.cancel()
        await asyncio.gather(*reads, return_exceptions=True)


def guesses(text: str) -> list[tuple[By, str]]:
    """The kinds of id that a text may be, the likeliest first, each with its normalized value."""
    text = text.strip()
    lower = text.lower()
    if address := re.fullmatch(r"s3a?://[^/]+/(.+)", text):
        return [("file_path", address[1])]
    if traceparent := _TRACEPARENT.fullmatch(lower):
        return [("trace_id", traceparent[1])]
    classification: tuple[By, str] = ("classification_id", text)
    if "/" in text:
        return [("file_path", text), classification]
    if _TRACE_ID.fullmatch(lower):
        trace: tuple[By, str] = ("trace_id", full_trace_id(lower))
        # Zipkin and Tempo show ids without leading zeros; a short number is more likely a classification
        return [trace, classification] if len(lower) >= 16 else [classification, trace]
    with suppress(ValueError):
        UUID(text)
        return [("submission_id", lower), classification]
    return [classification]


def full_trace_id(text: str) -> str:
    """A trace id with all its 32 digits, from one that was shown without its leading zeros."""
    return text.lower().zfill(32) if _TRACE_ID.fullmatch(text.lower()) else text


def _of_submission(submission_id: str, item: FeedEntry) -> _Match:
    return _of_ids({submission_id}, item)


def _of_ids(submission_ids: Container[str], item: FeedEntry) -> _Match:
    return _Match.of(item, lambda part: part.submission_id in submission_ids)


def _of_trace(trace_id: str, item: FeedEntry) -> _Match:
    """The submissions of the trace; all submissions of the object if the trace is that of its upload alone."""
    match = _Match.of(item, lambda part: part.trace_id == trace_id)
    return match if match.parts else _Match.of(item)


def _of_classification(classification_id: str, item: FeedEntry) -> _Match:
    return _Match.of(item, lambda part: part.classification_id == classification_id)


def _search_column(classification_id: str, file: BinaryIO) -> Mapping[str, int]:
    try:
        return submissions_with(file, classification_id)
    except NotABronzeObject:
        return {}


def _object(entry: CatalogEntry, stored_at: str, ended_at: str | None = None) -> LineageObject:
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
        ended_at=ended_at,
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
        principal=accepted.principal or None,
        received_at=accepted.received_at,
        queued_at=None,
        stored_at=None,
    )
