"""The rendered page: it reports every result and every outage, and contains nothing that runs."""

import asyncio
import datetime as dt
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser

import httpx
import pytest

from bronze.api import page
from bronze.api.glance import BronzeWrite, Glance, GlanceReader
from bronze.api.page import Page, Tile, TimelineStep
from bronze.errors import Outage, Refusal, Refused, Unavailable
from bronze.lineage.lookup import By, Lineage, LineageObject, LineageRemoval, LineageSubmission, ObjectShare
from bronze.protocol.documents import entry_of
from bronze.servers.bucket import Head
from bronze.servers.catalog_feed import FeedEntry
from bronze.servers.prometheus import Prometheus
from local.programs import LOOPBACK, free_ports
from tests import factories

PATH = "bronze/source=vehicles/date=2026-11-27/hour=22/e-0-000000000001.parquet"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
RECEIVED, QUEUED, STORED, ENDED = (f"2026-11-27T22:28:0{second}Z" for second in ("0.100", "0.104123456", "1.3", "6.08"))

SUBMISSION = LineageSubmission(
    submission_id="01939f4e-6b7c-7cc3-a4f5-0242ac120002",
    source="vehicles",
    status="stored",
    records=3,
    classification_id="a classification & more",
    classification_count=1,
    trace_id=TRACE_ID,
    origin="<script>alert(1)</script>.csv",
    received_at=RECEIVED,
    queued_at=QUEUED,
    stored_at=STORED,
    ended_at=ENDED,
    objects=[ObjectShare(PATH, 3)],
)
OBJECT = LineageObject(PATH, "vehicles", "e", 0, 1, 4, 4, 2, 5, 2048, TRACE_ID, STORED, ended_at=ENDED)
LINEAGE = Lineage(
    "submission_id", SUBMISSION.submission_id, [SUBMISSION], [OBJECT], truncated=False, complete=True, lag_s=0
)
GLANCE = Glance(
    uploads=12,
    failures=0,
    upload_p95_s=0.03,
    delivery_p95_s=3.5,
    delivery_objective_s=3,
    stored=90,
    quarantined=1,
    missing=None,
    queue_depth=7,
    queue_oldest_age_s=0.25,
    slowest=(),
)


@dataclass
class Answers:
    """Look-ups with given answers, and an empty bucket that answers as soon as `answers` is set."""

    found: Lineage | Exception = LINEAGE
    by_trace: Mapping[str, Lineage] = field(default_factory=dict)
    name: str = "bronze"
    answers: asyncio.Event = field(default_factory=asyncio.Event)

    async def guess(self, text: str, limit: int = 100) -> Lineage:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    async def lineage(self, by: By, value: str, limit: int = 100) -> Lineage:
        if value not in self.by_trace:
            raise Refused(Refusal.NOT_FOUND, "Nothing is known of it.")
        return self.by_trace[value]

    async def create(self, key: str, body: bytes, metadata: Mapping[str, str], content_type: str) -> bool:
        raise NotImplementedError

    async def head(self, key: str) -> Head | None:
        await self.answers.wait()
        return None

    async def read(self, key: str, start: int, end: int) -> bytes:
        raise NotImplementedError

    async def keys(self, prefix: str, start_after: str = "") -> AsyncIterator[str]:
        raise NotImplementedError
        yield

    async def sizes(self, prefix: str, start_after: str = "") -> AsyncIterator[tuple[str, int]]:
        raise NotImplementedError
        yield

    async def check(self) -> None:
        raise NotImplementedError


def new_page(answers: Answers | None = None, trace_url: str | None = None, glances: GlanceReader | None = None) -> Page:
    answers = answers or Answers()
    answers.answers.set()
    return Page(answers, answers, glances, trace_url)


class Outline(HTMLParser):
    """The elements of a page, its links, and the attributes that load something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{tag} {name}"
            if name == "href" and tag == "a":
                self.links.add(value or "")
            elif name in {"src", "href", "action", "srcset", "style"}:
                self.loaded.add(f"{name}={(value or '').partition(',')[0]}")


async def test_client_data_is_shown_as_text() -> None:
    """A file name, a classification_id or a search with markup in it is shown as text, and adds no element."""
    for html in [(await new_page().show(q)).html for q in ("x", "<img src=x onerror=alert(1)>")]:
        outline = Outline(html)
        assert not {"script", "img", "iframe"} & set(outline.tags)
        assert outline.loaded == {"action=/", "href=data:image/svg+xml"}
        assert "&lt;script&gt;alert(1)&lt;/script&gt;.csv" in html
        assert "/?q=a%20classification%20%26%20more" in outline.links


def test_the_policy_allows_no_script_and_only_the_pages_own_style() -> None:
    policy = new_page().headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "script-src" not in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    ("template", "link"),
    [(None, f"/?q={TRACE_ID}"), ("http://zipkin/traces/{trace_id}?x", f"http://zipkin/traces/{TRACE_ID}?x")],
)
async def test_a_trace_id_links_to_the_trace_store(template: str | None, link: str) -> None:
    """By the setting; without it, to the lineage of the trace."""
    assert link in Outline((await new_page(trace_url=template).show("x")).html).links


async def test_a_lineage_shows_submissions_and_objects_with_their_links() -> None:
    html = (await new_page().show("x")).html
    links = Outline(html).links
    quoted = PATH.replace("=", "%3D")
    assert {f"/v1/submissions/{SUBMISSION.submission_id}", f"/v1/objects/{quoted}", f"/?q={quoted}"} <= links
    assert f"/v1/lineage?submission_id={SUBMISSION.submission_id}" in links
    assert "The object is not in the bucket any more." in html
    assert "<title>x - Bronze</title>" in html


async def test_a_missing_object_leads_to_the_runbook() -> None:
    missing = replace(OBJECT, in_bucket=False)
    html = (await new_page(Answers(replace(LINEAGE, objects=[missing]))).show("x")).html
    assert 'missing: it is not in the bucket (<a href="/runbook#bronzerecordsmissing">what to do</a>)' in html


async def test_a_removed_object_says_when_and_why() -> None:
    """The note is an operator's text: no markup in it becomes an element."""
    removed = LineageRemoval("acknowledged", "<b>deleted</b> by a script", by="operator", at="2026-11-28T09:00:00Z")
    html = (await new_page(Answers(replace(LINEAGE, objects=[replace(OBJECT, removed=removed)]))).show("x")).html
    assert "The object was removed." in html
    text = re.sub(r"\s+", " ", html)
    assert "removed <time" in text
    assert "2026-11-28 09:00:00.000</time> by operator: &lt;b&gt;deleted&lt;/b&gt; by a script" in text


@pytest.mark.parametrize(
    ("answer", "status", "text"),
    [
        (Refused(Refusal.NOT_FOUND, "Nothing is known of it."), 200, "Nothing is known of it."),
        (Unavailable(Outage.QUEUE_AWAY, "The queue does not answer."), 503, "The queue does not answer. Try again."),
        (TimeoutError(), 503, "The search took too long. Try again."),
        (replace(LINEAGE, truncated=True), 200, "; there are more, only the first are shown"),
        (replace(LINEAGE, complete=False), 200, "; more objects may contain rows of this classification"),
        (replace(LINEAGE, objects=[]), 200, "None yet: the submission is accepted and waits in the queue."),
    ],
)
async def test_every_answer_has_its_text(answer: Lineage | Exception, status: int, text: str) -> None:
    rendered = await new_page(Answers(answer)).show(" x ")
    assert rendered.status == status
    assert text in re.sub(r"\s+", " ", rendered.html)


async def test_few_previews_are_read_at_once() -> None:
    """Previews wait in the threads that also check submissions: if the bucket hangs, two of them wait at most."""
    answers = Answers()
    new = Page(answers, answers, None, None, look_up_s_max=0.1)
    rendered = await asyncio.gather(*(new.show("x") for _ in range(page.PREVIEWS_MAX + 3)))
    assert sum("The bucket does not answer." in shown.html for shown in rendered) == page.PREVIEWS_MAX
    assert sum("Too many previews are being read. Try again later." in shown.html for shown in rendered) == 3
    previews = [*new._previews]
    answers.answers.set()
    await asyncio.gather(*previews)
    assert "The object is not in the bucket any more." in (await new.show("x")).html


async def test_a_text_that_is_too_long_is_not_looked_up() -> None:
    rendered = await new_page(Answers(AssertionError())).show("x" * (page.Q_CHARS_MAX + 1))
    assert (rendered.status, "Search text too long" in rendered.html) == (400, True)


async def test_without_prometheus_the_page_names_the_setting() -> None:
    assert "BRONZE_PROMETHEUS_URL" in (await new_page().show("  ")).html


async def test_without_an_answer_from_prometheus_only_the_figures_are_missing() -> None:
    port = free_ports()
    async with httpx.AsyncClient(base_url=f"http://{LOOPBACK}:{port}", trust_env=False) as client:
        new = new_page(glances=GlanceReader(Prometheus(client)))
        assert "Prometheus does not answer" in (await new.show("")).html
        assert "Found by submission_id" in (await new.show("x")).html


def test_the_timeline_of_a_submission() -> None:
    """Times count from when it was received. A future step is shown; a step of unknown time is not."""
    assert page.timeline(SUBMISSION, [OBJECT]) == [
        TimelineStep("Received", RECEIVED),
        TimelineStep("Durable in the queue", QUEUED, 0.004123),
        TimelineStep("Write to the bucket began", STORED, 1.2),
        TimelineStep("Written to the bucket", ENDED, 5.98),
    ]
    end_unknown = replace(OBJECT, ended_at=None)
    assert [step.name for step in page.timeline(SUBMISSION, [end_unknown])][-1] == "Write to the bucket began"
    assert page.timeline(SUBMISSION, [OBJECT, replace(OBJECT, file_path="another")]) == []
    waiting = replace(SUBMISSION, queued_at=None, stored_at=None, ended_at=None, objects=[])
    assert page.timeline(waiting, []) == [
        TimelineStep("Received", RECEIVED),
        TimelineStep("Written to the bucket", None),
    ]


async def test_the_page_of_an_object_says_how_long_the_whole_write_took() -> None:
    """Its begin alone says nothing of a write of 4.78 s."""
    html = re.sub(r"<[^>]+>|\s+", " ", (await new_page().show("x")).html)
    assert re.search(r"22:28:06\.080 +began +2026-11-27 22:28:01\.300 *, took +4\.78 s", html)
    assert re.search(r"after +5\.98 s", html)
    unknown = replace(LINEAGE, objects=[replace(OBJECT, ended_at=None)])
    html = re.sub(r"<[^>]+>|\s+", " ", (await new_page(Answers(unknown)).show("x")).html)
    assert "how long it took is not known" in html


@pytest.mark.parametrize(
    ("written_at", "ended"),
    [
        ("2026-11-27T10:00:02.100000+00:00", True),
        ("2026-11-27T09:49:59+00:00", False),  # a restart or a rebuild has appended the entry
        ("2026-11-27T10:00:07+00:00", False),  # the clocks differ
        ("", False),  # an entry of an older version
    ],
)
def test_a_write_ended_when_the_queue_had_its_entry(written_at: str, *, ended: bool) -> None:
    contents = factories.contents(1, 1, written_at=written_at)
    entry = FeedEntry(1, "2026-11-27T10:00:06.880123456Z", entry_of(contents))
    assert entry.ended_at == (entry.time if ended else None)


def test_a_figure_with_an_objective_has_a_rating_and_a_note() -> None:
    assert page.tiles(GLANCE) == [
        Tile("Successful uploads", "12", "objects written"),
        Tile("Failed uploads", "0", "attempts; each is retried", "good"),
        Tile("p95 upload", "30 ms", "within the objective of 2 s", "good"),
        Tile("p95 delivery", "3.50 s", "over the objective of 3 s", "bad"),
        Tile("Records stored", "90", "in all; and 1 in quarantine"),
        Tile("Objects and messages missing", "-", "not reported"),
        Tile("Messages in the queue", "7", "the oldest for 250 ms"),
    ]


async def test_the_slowest_writes_lead_to_their_objects() -> None:
    """A single object is linked, several objects of a trace are counted, and an unknown object is None."""
    other = replace(OBJECT, file_path=PATH.replace("01.p", "02.p"))
    of_another = replace(OBJECT, trace_id="f" * 32)
    known = {
        "1" * 32: replace(LINEAGE, objects=[replace(OBJECT, trace_id="1" * 32), of_another]),
        "2" * 32: replace(LINEAGE, objects=[replace(written, trace_id="2" * 32) for written in (OBJECT, other)]),
        "3" * 32: replace(LINEAGE, objects=[of_another]),
    }
    writes = [BronzeWrite(0.1, "vehicles", dt.datetime.now(dt.UTC), digit * 32) for digit in "1234"]
    found = await new_page(Answers(by_trace=known))._objects_of(writes)
    assert [objects and len(objects) for _, objects in found] == [1, 2, None, None]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0004, "0 ms"), (0.25, "250 ms"), (2.345, "2.35 s"), (75.2, "75 s"), (4000, "1:06:40")]
)
def test_a_duration_has_the_unit_and_precision_that_suit_its_size(seconds: float, text: str) -> None:
    assert page.format_duration(seconds) == text
