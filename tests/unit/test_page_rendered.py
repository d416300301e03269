"""The rendered page: it reports every result and every outage, and contains nothing that runs."""

import asyncio
import datetime as dt
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import cast

import httpx
import msgspec
import pytest

from bronze.api import page
from bronze.api.expected import expectation_rows
from bronze.api.formats import format_duration
from bronze.api.glance import BronzeWrite, Glance, GlanceReader, UndeclaredFields
from bronze.api.page import Page, TimelineStep
from bronze.api.tiles import Tile, tiles, verdict_tile, verdict_tiles
from bronze.errors import Outage, Refusal, Refused, Unavailable
from bronze.lineage import rejections
from bronze.lineage.catalog_index import Sources, SourceTotals
from bronze.lineage.lookup import By, Lineage, LineageObject, LineageRemoval, LineageSubmission, ObjectShare
from bronze.objects.preview import RowFilter
from bronze.protocol.documents import Contents, StoredSubmission, entry_of
from bronze.protocol.feed_event import ObjectEvent
from bronze.protocol.quarantine import REPLAYED, QuarantineMetadata
from bronze.protocol.rejected_records import encode_note, pack
from bronze.protocol.snapshot_summary import FirstSnapshot
from bronze.records import sources
from bronze.servers.bucket import Head
from bronze.servers.catalog_feed import FeedEntry
from local.builds import REPOSITORY
from local.programs import LOOPBACK, free_ports
from prometheus import rules
from tests import factories
from tests.unit.test_glance import connected

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
    """Look-ups with given answers, and a bucket of `objects` that answers as soon as `answers` is set."""

    found: Lineage | Exception = LINEAGE
    events: Sequence[ObjectEvent] = ()
    objects: Mapping[str, tuple[Mapping[str, str], bytes]] = field(default_factory=dict)
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

    async def newest(self, of: Sources, limit: int) -> list[ObjectEvent]:
        return [event for event in self.events if of is None or event.source in of][:limit]

    async def newest_quarantined(self, of: Sources, limit: int) -> list[str]:
        return [*self.objects][:limit]

    async def totals(self, of: Sources) -> dict[str, SourceTotals]:
        return {event.source: SourceTotals(1_234_567, 2**21, event) for event in self.events}

    async def create(self, key: str, body: bytes, metadata: Mapping[str, str], content_type: str) -> bool:
        raise NotImplementedError

    async def head(self, key: str) -> Head | None:
        await self.answers.wait()
        metadata, body = self.objects.get(key, ({}, None))
        return None if body is None else Head(len(body), metadata)

    async def read(self, key: str, start: int, end: int) -> bytes:
        return self.objects[key][1][start:end]

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
    return Page(answers, answers, answers, sources.load(None), glances, trace_url)


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


@pytest.mark.parametrize(
    ("snapshot", "text"),
    [
        (None, 'In the table">not yet</td>'),
        (
            FirstSnapshot("71", "2026-11-24T12:35:09+00:00", is_exact=False, trace_id="c" * 32),
            f'or before: older snapshots have expired snapshot 71 commit\'s trace <a class="id" href="/?q={"c" * 32}">',
        ),
    ],
)
async def test_an_object_says_which_snapshot_has_it(snapshot: FirstSnapshot | None, text: str) -> None:
    """Where the API has access to the catalog of the tables; else nothing is said of tables."""
    known = replace(OBJECT, in_table=snapshot is not None, snapshot=snapshot)
    html = (await new_page(Answers(replace(LINEAGE, objects=[known]))).show("x")).html
    assert text in re.sub(r"\s+", " ", re.sub(r"</?span[^>]*>", "", html))
    assert ("<b>In the table</b>" in html) is (snapshot is not None)
    assert "In the table" not in (await new_page().show("x")).html


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
    assert (
        "2026-11-28 09:00:00.000</time> by operator: &lt;b&gt;deleted&lt;/b&gt; by a script (it had 5 records)" in text
    )


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
    new = Page(answers, answers, answers, {}, None, None, look_up_s_max=0.1)
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
        new = new_page(glances=GlanceReader(connected(client)))
        assert "Prometheus does not answer" in (await new.show("")).html
        assert "Found by submission" in (await new.show("x")).html


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
    assert tiles(GLANCE) == [
        Tile("Successful uploads", "12", "objects written"),
        Tile("Failed uploads", "0", "attempts; each is retried", "good", "BronzeUploadAttemptsFail"),
        Tile("p95 upload", "30 ms", "within the objective of 2 s", "good", "BronzeUploadsSlow"),
        Tile("p95 delivery", "3.50 s", "over the objective of 3 s", "bad", "BronzeDeliveriesLate"),
        Tile("Records stored", "90", "in all; and 1 in quarantine"),
        Tile("Objects and messages missing", "-", "not reported"),
        Tile("Messages in the queue", "7", "the oldest for 250 ms"),
    ]


RUNBOOK = (REPOSITORY / "docs" / "runbook.md").read_text(encoding="utf-8")
MEANINGS: Mapping[str, Mapping[str, str]] = json.loads(rules.VERDICTS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("number", MEANINGS)
def test_each_verdict_has_a_text_and_leads_to_an_entry_of_the_runbook(number: str) -> None:
    tile = verdict_tile("Queue", float(number))
    assert tile.rating == {"1": "fair", "2": "bad", "3": "unknown"}[number[0]]
    assert tile.value in {"warning", "failing", "slow", "late", "blind", "not known"}
    assert tile.note
    assert f"### {tile.alert}\n" in RUNBOOK


@pytest.mark.parametrize("tile", [tile for tile in tiles(GLANCE) if tile.rating], ids=lambda tile: tile.name)
def test_each_figure_with_a_limit_leads_to_an_entry_of_the_runbook(tile: Tile) -> None:
    assert f"### {tile.alert}\n" in RUNBOOK


def test_verdicts_are_shown_in_the_order_of_the_data() -> None:
    failing = next(number for number, meaning in MEANINGS.items() if meaning["text"] == "failing: a lane is halted")
    shown = verdict_tiles(replace(GLANCE, verdicts={"upload": 0, "ingest": 0, "queue": float(failing), "other": 1}))
    assert [(tile.name, tile.value, tile.rating) for tile in shown] == [
        ("Ingest", "OK", "good"),
        ("Queue", "failing", "bad"),
        ("Upload", "OK", "good"),
        ("Telemetry", "-", ""),
    ]
    assert verdict_tile("Queue", 199) == Tile("Queue", "-", "the rules are of another version")
    assert verdict_tiles(GLANCE) == []


@dataclass
class GivenGlance:
    glance: Glance | Unavailable

    async def read(self) -> Glance:
        if isinstance(self.glance, Unavailable):
            raise self.glance
        return self.glance


def overview(glance: Glance | Unavailable, answers: Answers | None = None) -> Page:
    return new_page(answers, glances=cast(GlanceReader, GivenGlance(glance)))


async def test_undeclared_fields_are_named_at_their_source_as_text() -> None:
    found = {"vehicles": UndeclaredFields(("colour", "<b>"), 3), "status": UndeclaredFields(("size",), 0)}
    html = (await overview(replace(GLANCE, undeclared=found)).show("")).html
    assert "not declared: colour, &lt;b&gt; (+3)</span>" in html
    assert "not declared: size</span>" in html
    assert "not declared:" not in (await overview(GLANCE).show("")).html


async def test_a_red_tile_leads_to_the_runbook_and_a_green_one_to_what_it_means() -> None:
    """So do the alerts that fire, and the state of a source."""
    failing = float(next(number for number, meaning in MEANINGS.items() if meaning["alert"] == "BronzeLaneHalted"))
    of_source = float([*MEANINGS][-2])
    glance = replace(
        GLANCE,
        verdicts={"ingest": 0, "queue": failing},
        source_verdicts={"vehicles": of_source},
        alerts=["BronzeRoleDown", "BronzeUploadsFail"],
    )
    html = (await overview(glance).show("")).html
    links = Outline(html).links
    assert {
        "/runbook#bronzelanehalted",
        "/manual/dashboards#is-all-well-now",
        "/runbook#bronzeroledown",
        "/runbook#bronzeuploadsfail",
        "/runbook#bronzedeliverieslate",
        f"/runbook#{MEANINGS[f'{of_source:.0f}']['alert'].lower()}",
    } <= links
    assert "## Bronze overview" in (REPOSITORY / "docs" / "dashboards.md").read_text(encoding="utf-8")
    assert "No alert fires." in (await overview(GLANCE).show("")).html


EVENT = ObjectEvent.of(entry_of(factories.contents(1, 4, file_path=PATH, written_at=STORED, records=1234)), 2048)


async def test_without_an_id_the_page_lists_sources_and_newest_objects() -> None:
    """Each leads on, also without Prometheus, and while it does not answer."""
    answers = Answers(events=[replace(EVENT, principals=["fleet", "lab", "a", "b"], principal_count=5)])
    outage = Unavailable(Outage.TIMEOUT, "Prometheus does not answer")
    for page_ in (new_page(answers), overview(GLANCE, answers), overview(outage, answers)):
        html = (await page_.show("")).html
        assert {"/?source=vehicles", "/?source=status", f"/?q={PATH.replace('=', '%3D')}"} <= Outline(html).links
        text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", html))
        assert "2026-11-27 22:28:01.300 vehicles 1,234 records 2.0 KiB fleet, lab, a and 2 more" in text
        assert "1,234,567" in text
        assert "nothing is stored yet" in text
        assert "canary" not in text


async def test_a_source_has_its_fields_and_its_newest_objects() -> None:
    answers = Answers(events=[EVENT, replace(EVENT, source="status", file_path="another")])
    html = (await new_page(answers).show("", source="vehicles")).html
    links = Outline(html).links
    assert {f"/?q={PATH.replace('=', '%3D')}", "/v1/sources/vehicles/schema", "/manual/sources"} <= links
    assert "/?q=another" not in links
    assert "<h1>Source vehicles</h1>" in html
    assert "<code>vehicle_id</code>" in html
    removed = replace(EVENT, source="past")
    assert "not declared any more" in (await new_page(Answers(events=[removed])).show("", source="past")).html
    assert "There is no source &#39;&lt;b&gt;&#39;." in (await new_page().show("", source="<b>")).html


SENSORS = """
[sensors]
description = "Values of sensors."
event_time = "measured_at"
expect = { every = "10m", records_per_hour_min = 1000 }
fields = [
    { name = "sensor_id", alias = "sensorId", type = "string", description = "Which", expect = { distinct_max = 500 } },
    { name = "unit", type = "string", description = "Of it.", expect = { values = ["C", "F"], null_share_max = 0.01 } },
    { name = "value", type = "float64", description = "It.", expect = { min = -90, max = 60 } },
    { name = "measured_at", type = "timestamp", description = "When.", expect = { min = 2020-01-01T00:00:00Z } },
]
"""


def cells(html: str) -> list[str]:
    """The rows of the tables of a page, as text."""
    rows = re.findall(r"<tr.*?</tr>", html, re.DOTALL)
    return [" ".join(re.sub(r"<[^>]+>", " ", row).split()) for row in rows]


async def test_a_source_has_its_columns_and_what_is_expected_and_was_found(tmp_path: Path) -> None:
    """Columns by their names in objects, with those in records; the event time; and whether expectations are met."""
    (tmp_path / "sources.toml").write_text(SENSORS)
    declared = sources.load(tmp_path / "sources.toml")
    glance = replace(
        GLANCE,
        verdicts={"ingest": 0},
        undeclared={"sensors": UndeclaredFields(("colour", "<b>"), 3)},
        found={
            ("sensors", "", "every"): 12,
            ("sensors", "", "records_per_hour_min"): 1234,
            ("sensors", "unit", "null_share_max"): 0.025,
            ("sensors", "sensor_id", "distinct_max"): 41,
            ("sensors", "value", "max"): 71.5,
            ("sensors", "measured_at", "min"): 1.6e9,
        },
        broken={("sensors", "value", "max"), ("sensors", "unit", "null_share_max")},
    )

    async def shown(glances: Glance | Unavailable) -> str:
        answers = Answers()
        reader = cast(GlanceReader, GivenGlance(glances))
        return (await Page(answers, answers, answers, declared, reader, None).show("", source="sensors")).html

    html = await shown(glance)
    assert cells(html)[1:] == [
        "the source every 10m found: the newest record is 12 s old met",
        "the source records_per_hour_min 1,000 found: 1,234 in the last hour met",
        "sensor_id distinct_max 500 found: 41 met",
        "unit null_share_max 0.01 found: 0.025 not met",
        "unit values C, F met",
        "value min -90 met",
        "value max 60 found: 71.5 not met",
        "measured_at min 2020-01-01 00:00:00.000 found: 2020-09-13 12:26:40.000 met",
        "Column Type Required Description",
        "sensor_id in records: sensorId string optional Which",
        "unit string optional Of it.",
        "value float64 optional It.",
        "measured_at event time timestamp optional When.",
    ]
    assert "<code>colour</code>, <code>&lt;b&gt;</code> (+3)." in html
    assert "/runbook#bronzeexpectationbroken" in Outline(html).links
    for nothing_known in (GLANCE, Unavailable(Outage.TIMEOUT, "Prometheus does not answer")):
        unknown = cells(await shown(nothing_known))
        assert "value max 60 not known" in unknown
        assert not [row for row in unknown if row.endswith(" met")]
    assert "Prometheus does not answer" in await shown(nothing_known)
    assert "/manual/sources#expect" in Outline((await new_page().show("", source="vehicles")).html).links


@pytest.mark.parametrize("value", [1e300, -1e300])
def test_a_number_that_nobody_can_have_measured_is_short(value: float, tmp_path: Path) -> None:
    (tmp_path / "sources.toml").write_text(SENSORS)
    declared = sources.load(tmp_path / "sources.toml")["sensors"]
    keys = {("sensors", row.field, str(row.expectation)): value for row in expectation_rows(declared, GLANCE)}
    assert all(len(row.found) < 50 for row in expectation_rows(declared, replace(GLANCE, found=keys)))


REASON = "Expected `str`, got `int`"


def quarantined(*records: bytes) -> tuple[Mapping[str, str], bytes]:
    """A message of rejected records in quarantine, as the consumer writes it."""
    notes = [
        encode_note(index, "schema-violation", REASON, "vehicle_id", record) for index, record in enumerate(records)
    ]
    metadata = QuarantineMetadata(
        f"{len(records)} records", f"bronze.vehicles.0.{SUBMISSION.submission_id}", "4", STORED, PATH
    )
    return metadata.encode(), b"{}\n" + pack(notes, records)


KEY = "quarantine/source=vehicles/e-0-000000000004.rejected"


async def test_rejected_records_are_shown_with_their_reasons() -> None:
    """As text, the first ones of each message, on the overview and on the page of a source."""
    records = [b'{"vehicle_id":7,"note":"<i>"}', *[b"x" * 300] * (rejections.RECORDS_MAX + 1)]
    answers = Answers(objects={KEY: quarantined(*records)})
    for html in [(await new_page(answers).show("", source=source)).html for source in ("", "vehicles")]:
        text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", html))
        assert (
            f"record 0, field vehicle_id {REASON} {{&#34;vehicle_id&#34;:7,&#34;note&#34;:&#34;&lt;i&gt;&#34;}}" in text
        )
        assert "x" * rejections.RECORD_CHARS_MAX + "…" in text
        assert "2 more bronze quarantine list --source vehicles" in text
        assert {"/manual/api#quarantine-on-request", f"/?q={SUBMISSION.submission_id}"} <= Outline(html).links
        assert "sent again" not in text
    again = Answers(objects={KEY: quarantined(*records), KEY + REPLAYED: ({}, b"{}")})
    assert "sent again" in (await new_page(again).show("")).html


async def test_a_message_that_could_not_be_decoded_has_its_reason() -> None:
    metadata, _ = quarantined(b"")
    dead = {**metadata, "bronze-reason": "its zstd frame is damaged"}
    answers = Answers(objects={KEY.replace(".rejected", ".message"): (dead, b"\0"), KEY: ({}, b"no notes")})
    html = (await new_page(answers).show("")).html
    assert "its zstd frame is damaged" in html


async def test_quarantine_that_cannot_be_read_in_time_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty list would say that nothing was rejected."""
    monkeypatch.setattr(page, "OBJECTS_S_MAX", 0.05)
    answers = Answers(objects={KEY: quarantined(b"7")})
    html = (await Page(answers, answers, answers, {}, None, None).show("")).html
    assert "More may be in quarantine" in html


async def test_the_page_of_a_submission_lists_what_was_rejected_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing of the other submissions of its object."""
    stored = StoredSubmission(
        accepted=factories.accepted(submission_id=SUBMISSION.submission_id),
        first_sequence=1, parts=2, parts_done=2, parts_quarantined=1, records=3, objects=[PATH], quarantined=[KEY],
    )  # fmt: skip
    other = msgspec.structs.replace(
        stored, accepted=factories.accepted(submission_id="other"), quarantined=["quarantine/other.rejected"]
    )

    async def contents(bucket: object, path: str) -> Contents:
        return factories.contents(1, 4, submissions=[other, stored])

    monkeypatch.setattr(page, "read_contents", contents)
    html = (await new_page(Answers(objects={KEY: quarantined(b"7")})).show("x")).html
    assert re.sub(r"<[^>]+>", "", html).count(REASON) == 1
    assert "More may be in quarantine" not in html


@pytest.mark.parametrize(
    ("lineage", "only"),
    [
        (LINEAGE, RowFilter("_submission_id", {SUBMISSION.submission_id})),
        (replace(LINEAGE, objects=[replace(OBJECT, submissions=1)]), None),
        (replace(LINEAGE, by="file_path", value=PATH), None),
        (replace(LINEAGE, by="classification_id", value="run"), RowFilter("classification_id", {"run"})),
        (replace(LINEAGE, objects=[OBJECT, OBJECT]), None),
    ],
)
def test_only_rows_that_belong_to_the_id_are_shown(lineage: Lineage, only: RowFilter | None) -> None:
    """An object has the rows of other submissions, too."""
    assert page.wanted_rows(lineage) == only


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
    assert format_duration(seconds) == text
