"""The page at `/`, for people without Grafana: the lineage of any id or path, the state, and the newest data.

The API renders the complete page: it needs no script and loads nothing, so that it works in any browser and behind any
proxy. Each look-up and query has a time limit. If a server does not answer, only its part of the page is missing.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from bronze.api.expected import expectation_rows
from bronze.api.formats import (
    format_bytes,
    format_duration,
    format_number,
    format_timestamp,
    seconds_between,
    wrappable,
)
from bronze.api.glance import BronzeWrite, Glance, GlanceReader
from bronze.api.layout import load_templates, security_headers
from bronze.api.problems import without_addresses
from bronze.api.tiles import Tile, tiles, verdict_tile, verdict_tiles
from bronze.errors import Halted, Refused, Unavailable
from bronze.lineage.catalog_index import Sources, SourceTotals
from bronze.lineage.lookup import By, Lineage, LineageObject, LineageSubmission, finish_in_time
from bronze.lineage.rejections import Rejection, read_rejection
from bronze.objectives import DURATION_S_MAX
from bronze.objects.preview import NoPreview, Preview, RowFilter, first_rows
from bronze.objects.reader import read_contents, read_in_thread
from bronze.protocol.feed_event import ObjectEvent
from bronze.records.sources import Source, without_canary
from bronze.servers.bucket import Bucket
from bronze.settings import TRACE_ID

Q_CHARS_MAX = 2048
LISTED_MAX = 100
#: Time limits: for a lineage, and for the objects of the slowest writes together.
LOOK_UP_S_MAX = 10.0
OBJECTS_S_MAX = 2.0
_WRITTEN = "Written to the bucket"
#: Objects whose rows are read at the same time.
PREVIEWS_MAX = 2
#: What is listed to begin with: objects of all sources, objects of one source, and messages in quarantine.
NEWEST_MAX, NEWEST_OF_SOURCE_MAX, REJECTIONS_MAX = 10, 20, 5
#: Messages in quarantine that are read at the same time; each has up to 1 MiB.
REJECTIONS_AT_ONCE = 2
#: Characters of a source's name that are repeated.
NAME_CHARS_MAX = 63
#: How people call the kinds of id.
KINDS: Mapping[By, str] = {
    "classification_id": "classification",
    "file_path": "object",
    "submission_id": "submission",
    "trace_id": "trace",
}


class LineageSource(Protocol):
    """The look-ups that the page needs; `lineage.lookup` documents their errors."""

    async def lineage(self, by: By, value: str, limit: int = ...) -> Lineage: ...
    async def guess(self, text: str, limit: int = ...) -> Lineage: ...


class NewestSource(Protocol):
    """The newest data, which the page lists; `CatalogIndex` documents the methods."""

    async def newest(self, sources: Sources, limit: int) -> list[ObjectEvent]: ...
    async def newest_quarantined(self, sources: Sources, limit: int) -> list[str]: ...
    async def totals(self, sources: Sources) -> dict[str, SourceTotals]: ...


@dataclass(frozen=True, slots=True)
class RenderedPage:
    """A page with its HTTP status."""

    html: str
    status: int = 200


@dataclass(frozen=True, slots=True)
class PageProblem:
    title: str
    detail: str


@dataclass(frozen=True, slots=True)
class TimelineStep:
    """A step of a submission, `after_s` after it was received. Without `at`, the step has not happened yet."""

    name: str
    at: str | None
    after_s: float | None = None


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A source in the list. `declared` is None if it only has data of the past, and `totals` if it has none."""

    name: str
    declared: Source | None
    totals: SourceTotals | None
    verdict: Tile | None


@dataclass(frozen=True, slots=True)
class Rejections:
    """Messages in quarantine, and whether all that were looked for could be read."""

    messages: Sequence[Rejection] = ()
    complete: bool = True


class Page:
    """Renders the page. `trace_url` is a link to a trace, with the placeholder `{trace_id}`; `runbook_url` leads to the
    runbook, if that is not the API's own.

    It shows data of every source: only who may read every source may see it.
    """

    def __init__(
        self,
        lookups: LineageSource,
        newest: NewestSource,
        bucket: Bucket,
        sources: Mapping[str, Source],
        glances: GlanceReader | None,
        trace_url: str | None,
        runbook_url: str | None = None,
        *,
        look_up_s_max: float = LOOK_UP_S_MAX,
    ) -> None:
        self._look_up_s_max = look_up_s_max
        self._lookups = lookups
        self._newest = newest
        self._bucket = bucket
        self._sources = sources
        self._glances = glances
        self._reads = asyncio.Semaphore(REJECTIONS_AT_ONCE)
        self._previews: set[asyncio.Task[Preview | None]] = set()
        templates = load_templates(runbook_url)
        templates.filters |= {
            "bytes": format_bytes,
            "duration": format_duration,
            "number": format_number,
            "timestamp": format_timestamp,
            "wrappable": wrappable,
        }
        templates.globals |= {
            "seconds_between": seconds_between,
            "kinds": KINDS,
            "objective_s": DURATION_S_MAX,
            "q_chars_max": Q_CHARS_MAX,
            "trace_url": trace_url and (lambda trace_id: trace_url.replace(TRACE_ID, trace_id)),
        }
        self._template = templates.get_template("page.html")
        self.headers: Mapping[str, str] = {**security_headers(templates), "Cache-Control": "no-store"}

    async def show(self, text: str, logged_in: str = "", source: str = "") -> RenderedPage:
        """The lineage of an id or a path; without one, the newest data of a source; without either, the overview.

        `logged_in` is who has a session.
        """
        q = text.strip()
        if not q:
            return await (self._source(source, logged_in) if source else self._overview(logged_in))
        if len(q) > Q_CHARS_MAX:
            problem = PageProblem("Search text too long", f"An id or a path has at most {Q_CHARS_MAX:,} characters.")
            return await self._render(logged_in, 400, q=q[:Q_CHARS_MAX], problem=problem)
        try:
            async with asyncio.timeout(self._look_up_s_max):
                lineage = await self._lookups.guess(q, LISTED_MAX)
        except Refused as error:
            # not a 404: to a browser, that would mean that the page itself does not exist
            return await self._render(logged_in, 200, q=q, problem=PageProblem("Nothing found", error.detail))
        except (Unavailable, TimeoutError) as error:
            reason = without_addresses(str(error)).rstrip(".") or "The search took too long"
            detail = f"{reason}. Try again."
            return await self._render(logged_in, 503, q=q, problem=PageProblem("Temporarily unavailable", detail))
        only = wanted_rows(lineage)
        (preview, no_preview), rejections = await asyncio.gather(
            self._rows(lineage, only), self._rejections_of(lineage)
        )
        submission = lineage.submissions[0] if len(lineage.submissions) == 1 else None
        return await self._render(
            logged_in,
            q=q,
            lineage=lineage,
            steps=timeline(submission, lineage.objects) if submission else (),
            records_in={share.file_path: share.records for share in submission.objects} if submission else {},
            preview=preview,
            no_preview=no_preview,
            only=only,
            rejections=rejections,
        )

    # --- what belongs to an id

    async def _rows(self, lineage: Lineage, only: RowFilter | None) -> tuple[Preview | None, str | None]:
        """The first rows if there is exactly one object, or the reason why they cannot be shown.

        A preview occupies a thread of the pool that checks submissions until the bucket answers, so few run at once.
        """
        if len(lineage.objects) != 1:
            return None, None
        if len(self._previews) >= PREVIEWS_MAX:
            return None, "Too many previews are being read. Try again later."
        if lineage.objects[0].removed:
            return None, "The object was removed."
        read = partial(first_rows, only=only)
        reading = asyncio.create_task(read_in_thread(self._bucket, lineage.objects[0].file_path, read))
        self._previews.add(reading)
        reading.add_done_callback(self._forget)
        await asyncio.wait({reading}, timeout=self._look_up_s_max)
        if not reading.done():
            return None, "The bucket does not answer."
        match reading.exception():
            case None:
                preview = reading.result()
                return preview, None if preview else "The object is not in the bucket any more."
            case NoPreview() as error:
                return None, str(error)
            case Unavailable():
                return None, "The bucket does not answer."
            case unexpected:
                raise unexpected

    def _forget(self, reading: "asyncio.Task[Preview | None]") -> None:
        self._previews.discard(reading)
        if not reading.cancelled():
            reading.exception()  # mark it as retrieved: after a time-out, nobody awaits the task

    async def _rejections_of(self, lineage: Lineage) -> Rejections:
        """What is in quarantine of a single submission, or of a single object."""
        submission = lineage.submissions[0] if len(lineage.submissions) == 1 else None
        # the last object of a submission lists all of it
        paths = [share.file_path for share in submission.objects] if submission else [
            written.file_path for written in lineage.objects
        ]  # fmt: skip
        if not paths or (not submission and len(paths) != 1):
            return Rejections()
        try:
            async with asyncio.timeout(OBJECTS_S_MAX):
                contents = await read_contents(self._bucket, paths[-1])
        except (Halted, Unavailable, TimeoutError):
            return Rejections(complete=False)
        if contents is None:
            return Rejections()
        if submission is None:
            return await self._read_rejections([message.key for message in contents.quarantined])
        stored = (one for one in contents.submissions if one.accepted.submission_id == submission.submission_id)
        return await self._read_rejections([key for one in stored for key in one.quarantined])

    async def _read_rejections(self, keys: Sequence[str]) -> Rejections:
        """The first of these messages in quarantine, in the time limit."""
        found: dict[str, Rejection | None] = {}

        async def read(key: str) -> None:
            async with self._reads:
                with suppress(Unavailable):
                    found[key] = await read_rejection(self._bucket, key)

        reads = [asyncio.ensure_future(read(key)) for key in keys[:REJECTIONS_MAX]]
        await finish_in_time(reads, OBJECTS_S_MAX)
        for unexpected in [of_one.exception() for of_one in reads if not of_one.cancelled()]:
            if unexpected:
                raise unexpected
        in_order = [found[key] for key in keys if key in found]
        return Rejections([rejection for rejection in in_order if rejection], complete=len(found) == len(keys))

    # --- without an id

    async def _overview(self, logged_in: str) -> RenderedPage:
        glance, outage = await self._glance()
        totals, newest, keys = await asyncio.gather(
            self._newest.totals(None),
            self._newest.newest(None, NEWEST_MAX),
            self._newest.newest_quarantined(None, REJECTIONS_MAX),
        )
        rejections, writes = await asyncio.gather(
            self._read_rejections(keys), self._objects_of(glance.slowest if glance else ())
        )
        verdicts = glance.source_verdicts if glance else {}
        declared = without_canary(self._sources)
        return await self._render(
            logged_in,
            glance=glance,
            outage=outage,
            verdicts=verdict_tiles(glance) if glance else (),
            tiles=tiles(glance) if glance else (),
            writes=writes,
            sources=[
                SourceRow(
                    name,
                    declared.get(name),
                    totals.get(name),
                    verdict_tile(name, verdicts[name]) if name in verdicts else None,
                )
                for name in [*declared, *sorted(totals.keys() - declared.keys())]
            ],
            newest=newest,
            rejections=rejections,
        )

    async def _glance(self) -> tuple[Glance | None, str | None]:
        """The figures, or why there are none."""
        if self._glances:
            try:
                return await self._glances.read(), None
            except Unavailable as error:
                return None, without_addresses(error.detail)
        return None, None

    async def _source(self, name: str, logged_in: str) -> RenderedPage:
        only = frozenset({name})
        newest, keys = await asyncio.gather(
            self._newest.newest(only, NEWEST_OF_SOURCE_MAX), self._newest.newest_quarantined(only, REJECTIONS_MAX)
        )
        declared = self._sources.get(name)
        if declared is None and not newest:
            problem = PageProblem("Nothing found", f"There is no source {name[:NAME_CHARS_MAX]!r}.")
            return await self._render(logged_in, problem=problem)
        rejections, (glance, outage) = await asyncio.gather(self._read_rejections(keys), self._glance())
        return await self._render(
            logged_in,
            source=SourceRow(name, declared, None, None),
            newest=newest,
            rejections=rejections,
            expected=expectation_rows(declared, glance) if declared else (),
            undeclared=glance.undeclared.get(name) if glance else None,
            outage=outage,
        )

    async def _objects_of(
        self, writes: Sequence[BronzeWrite]
    ) -> list[tuple[BronzeWrite, Sequence[LineageObject] | None]]:
        """Each write with the objects that were written in its trace; None if they are not known (yet)."""

        async def objects(write: BronzeWrite) -> Sequence[LineageObject] | None:
            try:
                lineage = await self._lookups.lineage("trace_id", write.trace_id, LISTED_MAX)
            except (Refused, Unavailable):
                return None
            return [written for written in lineage.objects if written.trace_id == write.trace_id] or None

        tasks = [asyncio.create_task(objects(write)) for write in writes]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=OBJECTS_S_MAX)
            for task in late:
                task.cancel()
        return [
            (write, task.result() if task.done() and not task.cancelled() else None)
            for write, task in zip(writes, tasks, strict=True)
        ]

    async def _render(self, logged_in: str, status: int = 200, **values: object) -> RenderedPage:
        unset = dict.fromkeys(("problem", "lineage", "source", "glance", "outage", "preview", "no_preview"), None)
        html = await asyncio.to_thread(self._template.render, unset | {"q": "", "logged_in": logged_in} | values)
        return RenderedPage(html, status)


# --- contents


def wanted_rows(lineage: Lineage) -> RowFilter | None:
    """Which rows of its single object belong to a lineage; None: all of them."""
    if len(lineage.objects) != 1 or lineage.by == "file_path":
        return None
    if lineage.by == "classification_id":
        return RowFilter("classification_id", {lineage.value})
    found = {submission.submission_id for submission in lineage.submissions}
    return RowFilter("_submission_id", found) if len(found) < lineage.objects[0].submissions else None


def timeline(submission: LineageSubmission, objects: Sequence[LineageObject]) -> list[TimelineStep]:
    """A submission's steps in order, up to each of its objects; empty if not all of its objects are given."""
    if {written.file_path for written in objects} != {share.file_path for share in submission.objects}:
        return []
    received_at = submission.received_at

    def step(name: str, at: str | None) -> TimelineStep:
        return TimelineStep(name, at or None, seconds_between(received_at, at) if received_at and at else None)

    steps = [TimelineStep("Received", received_at), step("Durable in the queue", submission.queued_at)]
    known = [step for step in steps if step.at]
    if not objects:
        return [*known, step(_WRITTEN, submission.ended_at)]
    for written in objects:
        known.append(step("Write to the bucket began", written.stored_at))
        if written.ended_at:
            known.append(step(_WRITTEN, written.ended_at))
        if written.snapshot:
            known.append(step("In the table", written.snapshot.committed_at))
    return known
