"""The manual that the API serves: the pages of docs/, all of them, with every anchor and no dead link."""

import re
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from bronze.api import manual, problems
from bronze.api.audit import AuditLog
from bronze.api.login_page import LoginPage
from bronze.api.manual import Manual
from bronze.api.page import Page
from bronze.api.routes import manual as routes
from prometheus import rules
from prometheus.rules import Alert, Thresholds
from tests.unit.test_page_rendered import Answers

TOP = Path(__file__).parents[2]
DOCS = {file.stem: file for file in (TOP / "docs").glob("*.md")}
#: Code blocks may have lines that begin with `#`.
CODE = re.compile(r"(?ms)^ *```.*?^ *```$")
#: Served by the API, but not a page of the manual.
OTHERS = {"/", "/docs", "/metrics", "/readyz"}
ALERTS = [
    rule.name
    for of_file in rules.groups(Thresholds()).values()
    for group in of_file
    for rule in group.rules
    if isinstance(rule, Alert)
]

each_page = pytest.mark.parametrize("name", sorted(DOCS))


class Outline(HTMLParser):
    """The anchors, links and elements of a page, and what it would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.anchors: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{tag} {name}"
            if name == "id":
                self.anchors.append(value or "")
            elif name == "href" and tag == "a":
                self.links.append(value or "")
            elif name in {"src", "srcset", "href", "action"}:
                self.loaded.append(value or "")


@pytest.fixture
def api() -> httpx.AsyncClient:
    app = FastAPI()
    routes.add(app, Manual(None))
    problems.add_handlers(app, AuditLog(), lambda gone: None, LoginPage(None))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api")


OUTLINES: dict[str, Outline] = {}


async def outline(name: str) -> Outline:
    if name not in OUTLINES:
        OUTLINES[name] = Outline((await Manual(None).show(name)).html)
    return OUTLINES[name]


def test_the_package_has_every_page_of_the_docs() -> None:
    """As links to docs/, so that no text is there twice; a build of the package follows them."""
    linked = {file.stem: file.resolve() for file in (TOP / "service/bronze/api/manual").iterdir()}
    assert linked == DOCS
    dockerfile, ignored = (TOP / "service/Dockerfile").read_text(), (TOP / ".dockerignore").read_text()
    assert dockerfile.index("COPY docs/*.md docs/") < dockerfile.index("COPY service/bronze")
    assert "!docs/*.md\n" in ignored


async def test_every_alert_has_its_section() -> None:
    assert set(map(str.lower, ALERTS)) <= set((await outline("runbook")).anchors)


@each_page
async def test_every_heading_can_be_reached(name: str) -> None:
    """By an anchor of its own, and by a link at the top of the page down to the third level."""
    text = CODE.sub("", DOCS[name].read_text())
    levels = [len(marks) for marks in re.findall(r"(?m)^(#+) ", text)]
    page = await outline(name)
    headings = [tag for tag in page.tags if re.fullmatch(r"h\d", tag)]
    assert [int(tag[1]) for tag in headings] == levels
    assert len(set(page.anchors)) == len(page.anchors) == len(levels) + 1  # and that of the main part
    listed = {link.removeprefix("#") for link in page.links}
    sections = [anchor for anchor in page.anchors if anchor != "main"]
    assert {anchor for anchor, level in zip(sections, levels, strict=True) if 1 < level <= 3} <= listed


@each_page
async def test_every_link_has_a_target(name: str) -> None:
    """On another page of the manual, on this one, or elsewhere in the API; other servers are named in full."""
    outlines = {manual.path(other): await outline(other) for other in DOCS}
    for link in outlines[manual.path(name)].links:
        path, _, anchor = link.partition("#")
        if re.match("https?://", link) or path in OTHERS:
            continue
        target = outlines[path or manual.path(name)]
        assert not anchor or anchor in target.anchors, link


@each_page
async def test_a_page_loads_nothing_and_runs_nothing(name: str) -> None:
    page = await outline(name)
    assert not {"script", "img", "iframe"} & set(page.tags)
    assert all(loaded.startswith("data:") for loaded in page.loaded)


async def test_a_link_that_only_the_repository_has_keeps_its_text() -> None:
    html = (await Manual(None).show("runbook")).html
    assert "defined in <code>prometheus/rules.py</code>" in html


async def test_a_picture_is_replaced_by_its_text() -> None:
    assert "<p>Plots: memory and file handles" in (await Manual(None).show("soak")).html


async def test_a_page_is_served_with_the_headers_of_the_page(api: httpx.AsyncClient) -> None:
    answer = await api.get("/runbook")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    answers = Answers()
    for name, value in Page(answers, answers, answers, {}, None, None).headers.items():
        assert answer.headers[name] == ("no-cache" if name == "Cache-Control" else value)
    assert (await api.get("/manual/runbook")).text == answer.text
    assert (await api.get("/manual/delivery")).is_success


async def test_a_page_that_the_browser_has_is_not_sent_again(api: httpx.AsyncClient) -> None:
    tag = (await api.get("/runbook")).headers["etag"]
    for given in (tag, f"W/{tag}", f'"another", {tag}'):
        again = await api.get("/runbook", headers={"If-None-Match": given})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert (await api.get("/runbook", headers={"If-None-Match": '"another"'})).status_code == 200


@pytest.mark.parametrize("name", ["nothing", "..%2Frunbook", "%00", "runbook.md"])
async def test_an_unknown_page_is_not_found(api: httpx.AsyncClient, name: str) -> None:
    answer = await api.get(f"/manual/{name}")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


async def test_pages_lead_to_the_runbook_that_is_set() -> None:
    """The API's own, or the one of the setting."""
    answers, own = Answers(), "https://wiki.example/runbook"
    for url, link in ((None, "/runbook"), (own, own)):
        for html in (
            (await Page(answers, answers, answers, {}, None, None, url).show("")).html,
            (await Manual(url).show("runbook")).html,
        ):
            assert f'<a href="{link}">Runbook</a>' in html
