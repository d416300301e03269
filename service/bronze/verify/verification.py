"""The checks of `bronze verify`. They only read.

What was written a moment ago is not complete yet: the trace, the entry and the metric of an upload follow its object.
So a fault of something young is looked at again until it is `SETTLE_S` old.
"""

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import TypeVar

from bronze.errors import Unavailable
from bronze.objects.expiry import expired_up_to
from bronze.objects.footer import NotABronzeObject
from bronze.objects.removals import read_removal
from bronze.objects.removed_ranges import RemovedRanges, read_removed_ranges
from bronze.plurals import counted
from bronze.protocol.keys import hour_prefix, lane_of_key
from bronze.protocol.lane import Lane
from bronze.servers.bucket import Bucket, NoSuchKey
from bronze.servers.catalog_feed import Feed
from bronze.servers.prometheus import Exemplar, Prometheus
from bronze.servers.trace_store import Span, TraceStore
from bronze.telemetry.promql import histogram_series
from bronze.telemetry.signals import VerifyCheck, attribute
from bronze.verify.catalog_entries import CatalogEntries, Entry
from bronze.verify.object_facts import ObjectFacts, damage, read_facts
from bronze.verify.results import CheckResult, Fault, Period

#: The exemplars that are followed: those of successful uploads.
EXEMPLARS = histogram_series(
    'bronze_upload_duration_seconds{job="bronze/consumer", bronze_outcome="success"}', "bucket"
)
#: The age from which on an upload's telemetry and its entry have to be there, in seconds.
SETTLE_S = 60.0
RETRY_S = 1.0
#: Traces that the trace store may fail to return before the verification gives up.
UNANSWERED_MAX = 10
#: How much is looked at concurrently: by small requests, and whole objects.
READS = 16
OBJECTS_READ = 2

READ_RUNBOOK = "see BronzeVerificationFaulty in the runbook"
NOT_IN_BUCKET = "it is not in the bucket"
RESTORE = "restore the object from a backup or an earlier version"
ACKNOWLEDGE = f"{RESTORE}, or acknowledge its loss: bronze objects acknowledge"
REBUILD = "if it stays so while consumers run: bronze catalog rebuild"
RETAIN = "it came back, or its deletion was interrupted: bronze retain --source {} deletes it"

EXPIRED = "it has expired, and is in the bucket"
UNNAMED = "no entry in the catalog names it"

T = TypeVar("T")
Outcome = TypeVar("Outcome")


class Correct(Enum):
    """Why an item has no fault: its object is stored, or is gone and has a removal record."""

    STORED = "stored"
    REMOVED = "removed"


class Verification:
    """The checks, on these servers. An object that is gone and has a removal record is correct.

    Each method raises `Unavailable`. `on_checked` is called after each item.
    """

    def __init__(
        self,
        bucket: Bucket,
        feed: Feed,
        prometheus: Prometheus | None,
        trace_store: TraceStore | None,
        prefix: str,
        on_checked: Callable[[], None] = lambda: None,
        *,
        settle_s: float = SETTLE_S,
        retry_s: float = RETRY_S,
    ) -> None:
        self._bucket = bucket
        self._feed = feed
        self._prometheus = prometheus
        self._trace_store = trace_store
        self._prefix = prefix
        self._on_checked = on_checked
        self._settle_s = settle_s
        self._retry_s = retry_s

    async def run(self, period: Period, sources: Iterable[str], *, deep: bool) -> Sequence[CheckResult]:
        """All checks, in the order of `VerifyCheck`. `sources` are those that may have objects."""
        hour = period.since.replace(minute=0, second=0, microsecond=0)
        entries = CatalogEntries(self._feed, hour)  # objects are found by the hour of their keys
        await entries.read()
        checked = [
            await self._exemplars(period, entries),
            await self._entries(period, entries, deep=deep),
            await self._chain(period, entries),
        ]
        known = {*sources, *(entry.lane.source for entry in entries.entries)}
        return [*checked, await self._objects(Period(hour, period.until), known, entries)]

    async def exemplars(self, period: Period) -> CheckResult:
        """Only the exemplars: each leads to a trace, an object and an entry with the same number of rows."""
        entries = CatalogEntries(self._feed, period.since - dt.timedelta(seconds=self._settle_s))
        await entries.read()
        return await self._exemplars(period, entries)

    # --- from an exemplar to its object

    async def _exemplars(self, period: Period, entries: CatalogEntries) -> CheckResult:
        result = CheckResult(VerifyCheck.EXEMPLAR)
        if self._prometheus is None:
            result.notes.append("not checked: set BRONZE_PROMETHEUS_URL to the address of Prometheus")
            return result
        if self._trace_store is None:
            result.notes.append("not checked: set BRONZE_TEMPO_URL or BRONZE_ZIPKIN_URL to the address of the traces")
            return result
        since_s, until_s = period.since.timestamp(), period.until.timestamp()
        found = await self._prometheus.exemplars(EXEMPLARS, since_s, until_s)
        exemplars = {
            (exemplar.trace_id, exemplar.span_id): exemplar for exemplar in found if since_s <= exemplar.at_s <= until_s
        }
        store = self._trace_store
        unanswered: list[Unavailable] = []

        async def check(exemplar: Exemplar) -> None:
            def age_s() -> float:
                return time.time() - exemplar.at_s

            async def attempt() -> Fault | Correct | Unavailable:
                return await self._follow(exemplar, store, entries)

            outcome = await self._until_settled(attempt, age_s, entries)
            if isinstance(outcome, Unavailable):
                unanswered.append(outcome)
                if len(unanswered) > UNANSWERED_MAX:
                    raise outcome
            else:
                self._add(result, outcome)

        await _for_each(exemplars.values(), check, READS)
        if unanswered:
            if not result.checked:
                raise unanswered[-1]
            result.not_looked_up = len(unanswered)
            noun = counted(len(unanswered), "exemplar")
            result.notes.append(f"{noun} not looked up, since the trace store failed: {unanswered[-1]}")
        return result

    async def _follow(
        self, exemplar: Exemplar, store: TraceStore, entries: CatalogEntries
    ) -> Fault | Correct | Unavailable:
        """What is wrong; or the error of the trace store, if it returned one."""
        trace_id = exemplar.trace_id
        try:
            spans = await store.trace(trace_id)
        except Unavailable as error:
            return error
        if spans is None:
            return Fault(f"trace not found in {store.name}", READ_RUNBOOK, trace_id=trace_id)
        span = _upload_of(exemplar, spans)
        if span is None:
            problem = f"the trace has {counted(len(spans), 'span')}, but not that of the upload, with bronze.file_path"
            return Fault(problem, READ_RUNBOOK, trace_id=trace_id)
        key, records = span.attributes[attribute.bronze_file_path], span.attributes.get(attribute.bronze_records)
        facts = await self._facts(key, trace_id)
        if not isinstance(facts, ObjectFacts):
            return facts
        if records is not None and str(facts.records) != records:
            return Fault(f"it has {counted(facts.records, 'row')}, its span says {records}", RESTORE, key, trace_id)
        entry = entries.get(key)
        if entry is None:
            return Fault(UNNAMED, REBUILD, key, trace_id)
        if entry.records != facts.records:
            problem = f"it has {counted(facts.records, 'row')}, its entry says {entry.records}"
            return Fault(problem, RESTORE, key, trace_id)
        return Correct.STORED

    # --- from an entry to its object

    async def _entries(self, period: Period, entries: CatalogEntries, *, deep: bool) -> CheckResult:
        result = CheckResult(VerifyCheck.ENTRY)
        unproven = 0

        async def check(entry: Entry) -> None:
            nonlocal unproven
            facts = await self._facts(entry.file_path)
            if not isinstance(facts, ObjectFacts):
                self._add(result, facts)
                return
            problem, advice = _difference(entry, facts), RESTORE
            size: int | None = facts.stored_size
            if problem is None and deep:
                unproven += facts.sha256 is None
                try:
                    problem = await damage(self._bucket, entry.file_path, facts)
                except NoSuchKey:
                    problem, advice, size = NOT_IN_BUCKET, ACKNOWLEDGE, None
            outcome: Fault | Correct = Correct.STORED
            if problem:
                outcome = await self._unless_removed(Fault(problem, advice, entry.file_path), entry.file_path, size)
            self._add(result, outcome)

        stored = [entry for entry in entries.entries if period.contains(entry.stored_at)]
        await _for_each(stored, check, OBJECTS_READ if deep else READS)
        if unproven:
            noun = counted(unproven, "object")
            result.notes.append(f"{noun} without a recorded SHA-256: pages were decoded instead")
        return result

    async def _facts(self, key: str, trace_id: str | None = None) -> ObjectFacts | Fault | Correct:
        """The facts of an object; or that it has a removal record; or the fault."""
        try:
            facts = await read_facts(self._bucket, key)
        except NotABronzeObject as error:
            problem, advice = f"it is damaged, or Bronze did not write it: {error}", RESTORE
        else:
            if facts is not None:
                return facts
            problem, advice = NOT_IN_BUCKET, ACKNOWLEDGE
        return await self._unless_removed(Fault(problem, advice, key, trace_id), key)

    async def _unless_removed(self, fault: Fault, key: str, size: int | None = None) -> Fault | Correct:
        """The fault of an object, unless its loss is acknowledged. `size` is its stored size, if it can be read."""
        removal = await read_removal(self._bucket, self._prefix, key)
        return Correct.REMOVED if removal and (size is None or removal.bytes not in {None, size}) else fault

    # --- from an entry to the one before it

    async def _chain(self, period: Period, entries: CatalogEntries) -> CheckResult:
        result = CheckResult(VerifyCheck.CHAIN)
        removed: Mapping[Lane, RemovedRanges] | None = None
        for entry, before in entries.predecessors():
            if before is None or not period.contains(entry.stored_at):
                continue
            between = f"the entry before it ends with message {before.last}, it begins with {entry.first}"
            outcome: Fault | Correct = Correct.STORED
            if entry.first <= before.last:
                outcome = Fault(f"entries overlap: {between}", READ_RUNBOOK, entry.file_path)
            elif entry.first > before.last + 1:
                if removed is None:
                    removed = await read_removed_ranges(self._bucket, self._prefix)
                if removed.get(entry.lane, RemovedRanges()).beginning(entry.first) <= before.last + 1:
                    outcome = Correct.REMOVED
                else:
                    outcome = Fault(f"an entry is missing: {between}", "bronze catalog rebuild", entry.file_path)
            self._add(result, outcome)
        return result

    # --- from an object to its entry

    async def _objects(self, hours: Period, sources: Iterable[str], entries: CatalogEntries) -> CheckResult:
        result = CheckResult(VerifyCheck.OBJECT)
        keys = [key for source in sorted(sources) async for key in self._keys(source, hours)]
        await entries.read()

        async def check(key: str) -> None:
            written_s: float | None = None

            def age_s() -> float:
                return self._settle_s + 1 if written_s is None else time.time() - written_s

            async def attempt() -> Fault | Correct:
                nonlocal written_s
                if entries.get(key):
                    return Correct.STORED
                if expired := await self._expired(key):
                    return expired
                facts = await self._facts(key)
                if not isinstance(facts, ObjectFacts):
                    return facts
                written_at = facts.contents.written_at
                written_s = dt.datetime.fromisoformat(written_at).timestamp() if written_at else None
                return Fault(UNNAMED, REBUILD, key)

            self._add(result, await self._until_settled(attempt, age_s, entries))

        await _for_each(keys, check, READS)
        return result

    async def _expired(self, key: str) -> Fault | None:
        """The fault of an object behind the expiry mark of its lane, which a rebuilt catalog would leave out, too."""
        lane, first = lane_of_key(key) or (None, 0)
        if lane is None or first > (await expired_up_to(self._bucket, self._prefix, lane.source)).get(lane, 0):
            return None
        return Fault(EXPIRED, RETAIN.format(lane.source), key)

    async def _keys(self, source: str, hours: Period) -> AsyncIterator[str]:
        """The keys of a source's objects of these hours, in order."""
        begin, end = (hour_prefix(self._prefix, source, time.isoformat()) for time in (hours.since, hours.until))
        async for key in self._bucket.keys(f"{self._prefix}/source={source}/", begin):
            if key > end and not key.startswith(end):
                return
            if lane_of_key(key):
                yield key

    # ---

    async def _until_settled(
        self, attempt: Callable[[], Awaitable[Outcome]], age_s: Callable[[], float], entries: CatalogEntries
    ) -> Outcome:
        """The result of the last attempt: of the first one that is correct, or of the first one at that age."""
        while not isinstance(outcome := await attempt(), Correct) and age_s() < self._settle_s:
            await asyncio.sleep(self._retry_s)
            await entries.read()
        return outcome

    def _add(self, result: CheckResult, outcome: Fault | Correct) -> None:
        """Count an item."""
        result.checked += 1
        if isinstance(outcome, Fault):
            result.faults.append(outcome)
        elif outcome is Correct.REMOVED:
            result.removed += 1
        self._on_checked()


def _upload_of(exemplar: Exemplar, spans: Sequence[Span]) -> Span | None:
    """The span of the upload that the exemplar measures, if it says which object it wrote."""
    return next(
        (span for span in spans if span.span_id == exemplar.span_id and attribute.bronze_file_path in span.attributes),
        None,
    )


def _difference(entry: Entry, facts: ObjectFacts) -> str | None:
    """In what an object differs from its entry; None if it does not."""
    contents = facts.contents
    in_footer = {name: getattr(contents, name) for name in ("file_path", "first", "last", "last_time", "messages")}
    for name, value in in_footer.items():
        if getattr(entry, name) != value:
            return f"its footer says {name} {value}, its entry {getattr(entry, name)}"
    if contents.records != entry.records:
        return f"its footer says {counted(contents.records, 'row')}, its entry {entry.records}"
    if facts.records != entry.records:
        return f"it has {counted(facts.records, 'row')}, its entry says {entry.records}"
    if entry.size not in {None, facts.stored_size}:
        return f"it has {facts.stored_size} bytes, by the totals of its entry {entry.size}"
    return None


async def _for_each(items: Iterable[T], act: Callable[[T], Awaitable[None]], concurrency: int) -> None:
    """Call `act` with each item, with a bound on the calls at the same time."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await act(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
