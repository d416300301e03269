"""The page at `/`, for people without Grafana: the lineage of any id or path, and an overview of the last hour.

The API renders the complete page: it needs no script and loads nothing, so that it works in any browser and behind any
proxy. Each look-up and query has a time limit. If a server does not answer, only its part of the page is missing.
"""

import asyncio
import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from markupsafe import Markup, escape

from bronze.api.glance import BronzeWrite, Glance, GlanceReader
from bronze.api.layout import load_templates, security_headers
from bronze.api.problems import without_addresses
from bronze.errors import Refused, Unavailable
from bronze.lineage.lookup import By, Lineage, LineageObject, LineageSubmission
from bronze.objectives import DURATION_S_MAX
from bronze.objects.preview import NoPreview, Preview, first_rows
from bronze.objects.reader import read_in_thread
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


class LineageSource(Protocol):
    """The look-ups that the page needs; `lineage.lookup` documents their errors."""

    async def lineage(self, by: By, value: str, limit: int = ...) -> Lineage: ...
    async def guess(self, text: str, limit: int = ...) -> Lineage: ...


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
class Tile:
    """A figure with a note. `rating` is `good`, `bad`, or empty if there is no limit; it selects the colour."""

    name: str
    value: str
    note: str
    rating: str = ""


@dataclass(frozen=True, slots=True)
class TimelineStep:
    """A step of a submission, `after_s` after it was received. Without `at`, the step has not happened yet."""

    name: str
    at: str | None
    after_s: float | None = None


class Page:
    """Renders the page. `trace_url` is a link to a trace, with the placeholder `{trace_id}`; `runbook_url` leads to the
    runbook, if that is not the API's own.
    """

    def __init__(
        self,
        lookups: LineageSource,
        bucket: Bucket,
        glances: GlanceReader | None,
        trace_url: str | None,
        runbook_url: str | None = None,
        *,
        look_up_s_max: float = LOOK_UP_S_MAX,
    ) -> None:
        self._look_up_s_max = look_up_s_max
        self._lookups = lookups
        self._bucket = bucket
        self._glances = glances
        self._previews: set[asyncio.Task[Preview | None]] = set()
        templates = load_templates(runbook_url)
        templates.filters |= {
            "bytes": format_bytes,
            "duration": format_duration,
            "timestamp": format_timestamp,
            "wrappable": wrappable,
        }
        templates.globals |= {
            "seconds_between": seconds_between,
            "objective_s": DURATION_S_MAX,
            "q_chars_max": Q_CHARS_MAX,
            "trace_url": trace_url and (lambda trace_id: trace_url.replace(TRACE_ID, trace_id)),
        }
        self._template = templates.get_template("page.html")
        self.headers: Mapping[str, str] = {**security_headers(templates), "Cache-Control": "no-store"}

    async def show(self, text: str, logged_in: str = "") -> RenderedPage:
        """The lineage of an id or a path; if the text is empty, the overview. `logged_in` is who has a session."""
        q = text.strip()
        if not q:
            return await self._overview(logged_in)
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
        preview, no_preview = await self._rows(lineage)
        submission = lineage.submissions[0] if len(lineage.submissions) == 1 else None
        return await self._render(
            logged_in,
            q=q,
            lineage=lineage,
            steps=timeline(submission, lineage.objects) if submission else (),
            records_in={share.file_path: share.records for share in submission.objects} if submission else {},
            preview=preview,
            no_preview=no_preview,
        )

    async def _rows(self, lineage: Lineage) -> tuple[Preview | None, str | None]:
        """The first rows if there is exactly one object, or the reason why they cannot be shown.

        A preview occupies a thread of the pool that checks submissions until the bucket answers, so few run at once.
        """
        if len(lineage.objects) != 1:
            return None, None
        if len(self._previews) >= PREVIEWS_MAX:
            return None, "Too many previews are being read. Try again later."
        if lineage.objects[0].removed:
            return None, "The object was removed."
        reading = asyncio.create_task(read_in_thread(self._bucket, lineage.objects[0].file_path, first_rows))
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

    async def _overview(self, logged_in: str) -> RenderedPage:
        if self._glances is None:
            return await self._render(logged_in)
        try:
            glance = await self._glances.read()
        except Unavailable as error:
            return await self._render(logged_in, outage=without_addresses(error.detail))
        return await self._render(
            logged_in, glance=glance, tiles=tiles(glance), writes=await self._objects_of(glance.slowest)
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
        unset = dict.fromkeys(("problem", "lineage", "glance", "outage", "preview", "no_preview"), None)
        html = await asyncio.to_thread(self._template.render, unset | {"q": "", "logged_in": logged_in} | values)
        return RenderedPage(html, status)


# --- contents


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
    return known


def tiles(glance: Glance) -> list[Tile]:
    """The figures, in the order of the dashboards' first row."""
    oldest = glance.queue_oldest_age_s
    return [
        _count_tile("Successful uploads", glance.uploads, "objects written"),
        _zero_tile("Failed uploads", glance.failures, "attempts; each is retried"),
        _objective_tile("p95 upload", glance.upload_p95_s, DURATION_S_MAX),
        _objective_tile("p95 delivery", glance.delivery_p95_s, glance.delivery_objective_s),
        _count_tile("Records stored", glance.stored, f"in all; and {glance.quarantined or 0:,.0f} in quarantine"),
        _zero_tile("Objects and messages missing", glance.missing, "in the bucket; in the queue"),
        _count_tile(
            "Messages in the queue",
            glance.queue_depth,
            "not reported" if oldest is None else f"the oldest for {format_duration(oldest)}",
        ),
    ]


def _count_tile(name: str, value: float | None, note: str, rating: str = "") -> Tile:
    return Tile(name, "-", "not reported") if value is None else Tile(name, f"{value:,.0f}", note, rating)


def _zero_tile(name: str, value: float | None, note: str) -> Tile:
    """A count that should be 0."""
    return _count_tile(name, value, note, "bad" if value else "good")


def _objective_tile(name: str, value_s: float | None, objective_s: float | None) -> Tile:
    """A duration that should be within an objective."""
    if value_s is None:
        return Tile(name, "-", "no data in the last hour")
    if objective_s is None:
        return Tile(name, format_duration(value_s), "the objective is not reported")
    met = value_s <= objective_s
    return Tile(
        name,
        format_duration(value_s),
        f"{'within' if met else 'over'} the objective of {objective_s:g} s",
        "good" if met else "bad",
    )


# --- formats


def wrappable(path: str) -> Markup:
    """A path in which a line break is allowed after each `/`."""
    return Markup("/<wbr>").join(escape(part) for part in path.split("/"))


def format_timestamp(at: str) -> str:
    return _parse(at).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def seconds_between(start: str, end: str) -> float:
    return (_parse(end) - _parse(start)).total_seconds()


#: About 30 years: no duration of Bronze, but a number that somebody else reported.
LONG_S = 1e9


def format_duration(seconds: float) -> str:
    """A duration with the unit and precision that suit its size."""
    if abs(seconds) >= LONG_S:
        return f"{seconds:.3g} s"
    if abs(seconds) < 1:
        return f"{seconds * 1000:.0f} ms"
    if abs(seconds) < 120:
        return f"{seconds:.2f} s" if abs(seconds) < 10 else f"{seconds:.0f} s"
    return str(dt.timedelta(seconds=round(seconds)))


def format_bytes(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _parse(at: str) -> dt.datetime:
    return dt.datetime.fromisoformat(at).astimezone(dt.UTC)
