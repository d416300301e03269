"""The page at `/`, for people without Grafana: from any id or path to its chain, and the state at a glance.

Rendered here, whole: it needs no script and loads nothing, so that it works on any phone, in any browser, behind any
proxy. What it asks is bounded in time, and what is away costs its part of the page only.
"""

import asyncio
import base64
import datetime as dt
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from bronze import __version__
from bronze.api.prometheus import UPLOAD_S_MAX, BronzeWrite, Glance, Prometheus, PrometheusUnavailable
from bronze.errors import Refused, Unavailable
from bronze.lineage.lookup import By, Lineage, LineageObject, LineageSubmission
from bronze.objects.preview import NoPreview, Preview, first_rows
from bronze.objects.reader import read_in_thread
from bronze.servers.bucket import Bucket
from bronze.settings import TRACE_ID

Q_CHARS_MAX = 2048
LISTED_MAX = 100
#: For a chain, and for the objects of the slowest writes together.
LOOK_UP_S_MAX = 10.0
OBJECTS_S_MAX = 2.0
#: Objects of which rows are read at once.
READING_MAX = 2


class LineageSource(Protocol):
    """What the page needs of look-ups; `lineage.lookup` says what they raise."""

    async def lineage(self, by: By, value: str, limit: int = ...) -> Lineage: ...
    async def guess(self, text: str, limit: int = ...) -> Lineage: ...


@dataclass(frozen=True, slots=True)
class RenderedPage:
    """A page, and the status that it is sent with."""

    html: str
    status: int = 200


@dataclass(frozen=True, slots=True)
class PageProblem:
    title: str
    detail: str


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure. `verdict` is `good`, `bad`, or empty where nothing is judged; the note says it in words too."""

    name: str
    value: str
    note: str
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class TimelineStep:
    """A step of a submission's way. `after_s` counts from when it was received; without `at` it is still to come."""

    what: str
    at: str | None
    after_s: float | None = None


class Page:
    """Asks, and renders what it is told. `trace_url` has `{trace_id}` where the id stands."""

    def __init__(
        self,
        lookups: LineageSource,
        bucket: Bucket,
        prometheus: Prometheus | None,
        trace_url: str | None,
        *,
        look_up_s_max: float = LOOK_UP_S_MAX,
    ) -> None:
        self._look_up_s_max = look_up_s_max
        self._lookups = lookups
        self._bucket = bucket
        self._prometheus = prometheus
        self._reading: set[asyncio.Task[Preview | None]] = set()
        environment = Environment(
            loader=PackageLoader("bronze.api"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {"breakable": breakable, "bytes": size, "duration": duration, "moment": moment}
        css = Markup(environment.get_template("page.css").render())  # noqa: S704  our own file
        environment.globals |= {
            "between": between,
            "css": css,
            "line_s": UPLOAD_S_MAX,
            "q_chars_max": Q_CHARS_MAX,
            "trace_url": trace_url and (lambda trace_id: trace_url.replace(TRACE_ID, trace_id)),
            "version": __version__,
        }
        self._template = environment.get_template("page.html")
        style = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
        self.headers: Mapping[str, str] = {
            "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{style}'; img-src data:; "
            "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }

    async def show(self, asked: str) -> RenderedPage:
        """What is known of an id or a path; without one, the state at a glance."""
        q = asked.strip()
        if not q:
            return await self._state()
        if len(q) > Q_CHARS_MAX:
            problem = PageProblem("That is no id", f"An id or a path has {Q_CHARS_MAX:,} characters at most.")
            return await self._render(400, q=q[:Q_CHARS_MAX], problem=problem)
        try:
            async with asyncio.timeout(self._look_up_s_max):
                chain = await self._lookups.guess(q, LISTED_MAX)
        except Refused as error:
            # the search worked, and this is its answer: for a browser a 404 would be an error of the page
            return await self._render(200, q=q, problem=PageProblem("Nothing found", error.detail))
        except (Unavailable, TimeoutError) as error:
            detail = f"{str(error) or 'It took too long'}. Try again."
            return await self._render(503, q=q, problem=PageProblem("Nobody can tell now", detail))
        preview, no_preview = await self._rows(chain)
        alone = chain.submissions[0] if len(chain.submissions) == 1 else None
        return await self._render(
            q=q,
            chain=chain,
            way=timeline(alone, chain.objects) if alone else (),
            held={one.file_path: one.records for one in alone.objects} if alone else {},
            preview=preview,
            no_preview=no_preview,
        )

    async def _rows(self, chain: Lineage) -> tuple[Preview | None, str | None]:
        """Of the one object, if there is one; or why not.

        It takes a thread of those that check submissions, for as long as the bucket takes to answer: few at once.
        """
        if len(chain.objects) != 1:
            return None, None
        if len(self._reading) >= READING_MAX:
            return None, "Others look at rows just now. Ask again."
        reading = asyncio.create_task(read_in_thread(self._bucket, chain.objects[0].file_path, first_rows))
        self._reading.add(reading)
        reading.add_done_callback(self._read)
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
            case unforeseen:
                raise unforeseen

    def _read(self, reading: "asyncio.Task[Preview | None]") -> None:
        self._reading.discard(reading)
        if not reading.cancelled():
            reading.exception()  # of one that nobody waits for any more

    async def _state(self) -> RenderedPage:
        if self._prometheus is None:
            return await self._render()
        try:
            glance = await self._prometheus.glance()
        except PrometheusUnavailable as error:
            return await self._render(away=str(error))
        return await self._render(glance=glance, tiles=tiles(glance), writes=await self._objects_of(glance.slowest))

    async def _objects_of(
        self, writes: Sequence[BronzeWrite]
    ) -> list[tuple[BronzeWrite, Sequence[LineageObject] | None]]:
        """Each write with the objects that were written in its trace; None where they are not known (yet)."""

        async def objects(write: BronzeWrite) -> Sequence[LineageObject] | None:
            try:
                chain = await self._lookups.lineage("trace_id", write.trace_id, LISTED_MAX)
            except (Refused, Unavailable):
                return None
            return [one for one in chain.objects if one.trace_id == write.trace_id] or None

        tasks = [asyncio.create_task(objects(write)) for write in writes]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=OBJECTS_S_MAX)
            for task in late:
                task.cancel()
        return [
            (write, task.result() if task.done() and not task.cancelled() else None)
            for write, task in zip(writes, tasks, strict=True)
        ]

    async def _render(self, status: int = 200, **values: object) -> RenderedPage:
        nothing = dict.fromkeys(("q", "problem", "chain", "glance", "away", "preview", "no_preview"), None)
        html = await asyncio.to_thread(self._template.render, nothing | {"q": ""} | values)
        return RenderedPage(html, status)


# --- what is shown


def timeline(submission: LineageSubmission, objects: Sequence[LineageObject]) -> list[TimelineStep]:
    """A submission's steps in time, to each of its objects; none where not all of these are there."""
    if {one.file_path for one in objects} != {held.file_path for held in submission.objects}:
        return []
    began = submission.received_at

    def reached(what: str, at: str | None) -> TimelineStep:
        return TimelineStep(what, at or None, between(began, at) if began and at else None)

    written: list[str | None] = [one.stored_at for one in objects] or [submission.stored_at]
    steps = [TimelineStep("Received", began), reached("Durable in the queue", submission.queued_at)]
    known = [step for step in steps if step.at]
    return known + [reached("Written to the bucket", at) for at in written]


def tiles(glance: Glance) -> list[Tile]:
    """The figures, in the order of the dashboards' first row."""
    ended = ", ".join(
        f"{name} {value or 0:,.0f}"
        for name, value in (
            ("accepted", glance.accepted),
            ("stored", glance.stored),
            ("quarantined", glance.quarantined),
        )
    )
    oldest = glance.queue_oldest_age_s
    return [
        _counted("Successful uploads", glance.uploads, "objects written"),
        _none_is_good("Failed uploads", glance.failures, "attempts; each is made again"),
        _held_to("p95 upload", glance.upload_p95_s, UPLOAD_S_MAX, "the line"),
        _held_to("p95 delivery", glance.delivery_p95_s, glance.delivery_objective_s, "the objective"),
        _counted("Records in flight", glance.in_flight, ended),
        _none_is_good("Records missing", glance.missing, "accepted, and nowhere 10 minutes later"),
        _counted(
            "Messages in the queue",
            glance.queue_depth,
            "nothing is reported" if oldest is None else f"the oldest for {duration(oldest)}",
        ),
    ]


def _counted(name: str, value: float | None, note: str, verdict: str = "") -> Tile:
    return Tile(name, "-", "nothing is reported") if value is None else Tile(name, f"{value:,.0f}", note, verdict)


def _none_is_good(name: str, value: float | None, note: str) -> Tile:
    return _counted(name, value, note, "bad" if value else "good")


def _held_to(name: str, value_s: float | None, limit_s: float | None, limit: str) -> Tile:
    if value_s is None:
        return Tile(name, "-", "nothing happened")
    if limit_s is None:
        return Tile(name, duration(value_s), f"{limit} is not reported")
    met = value_s <= limit_s
    return Tile(
        name,
        duration(value_s),
        f"{'within' if met else 'over'} {limit} of {limit_s:g} s",
        "good" if met else "bad",
    )


# --- how it is written


def breakable(path: str) -> Markup:
    """A path that may go on in the next line after each part."""
    return Markup("/<wbr>").join(escape(part) for part in path.split("/"))


def moment(at: str) -> str:
    return _parsed(at).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def between(began: str, ended: str) -> float:
    """In seconds."""
    return (_parsed(ended) - _parsed(began)).total_seconds()


def duration(seconds: float) -> str:
    """As exact as one reads it."""
    if abs(seconds) < 1:
        return f"{seconds * 1000:.0f} ms"
    if abs(seconds) < 120:
        return f"{seconds:.2f} s" if abs(seconds) < 10 else f"{seconds:.0f} s"
    return str(dt.timedelta(seconds=round(seconds)))


def size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _parsed(at: str) -> dt.datetime:
    return dt.datetime.fromisoformat(at).astimezone(dt.UTC)
