"""The page at `/`, in a real browser: by keyboard, on a phone, with data from the real Prometheus and catalog."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias
from urllib.parse import parse_qs, quote, urlsplit
from uuid import uuid4

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from local.browser import chromium
from local.programs import LOOPBACK
from tests.system.blackbox import System, ndjson, until, vehicles

PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 800}
Scheme: TypeAlias = Literal["light", "dark"]
KINDS = {
    "submission_id": "submission",
    "classification_id": "classification",
    "trace_id": "trace",
    "file_path": "object",
}

#: Finds texts with less contrast to their background than WCAG AA requires for small text.
FAINT = """() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => channels(color).slice(0, 3)
    .map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const color = getComputedStyle(element).backgroundColor;
      if ((channels(color)[3] ?? 1) === 1) return color;
    }
    return 'rgb(255, 255, 255)';
  };
  return [...document.body.querySelectorAll('*')].filter((element) =>
    [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim()))
    .filter((element) => {
      const [a, b] = [light(getComputedStyle(element).color), light(behind(element))];
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
    }).map((element) => element.outerHTML);
}"""


@dataclass
class Looking:
    """A page in the browser, with the browser's errors and requests to other servers."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def opened(self, path: str = "/") -> Page:
        self.page.goto(f"{self.url}{path}")
        return self.page

    def find(self, text: str) -> Page:
        """Moves to the search field by keyboard, types the text and presses Enter."""
        self.opened()
        until("the search has the focus", self._tab, timeout_s=5)
        self.page.keyboard.type(text)
        self.page.keyboard.press("Enter")
        self.page.wait_for_url("**/?q=*")
        return self.page

    def _tab(self) -> bool:
        self.page.keyboard.press("Tab")
        return bool(self.page.evaluate("document.activeElement.id") == "q")

    def links(self) -> set[str]:
        found: list[str] = self.page.eval_on_selector_all("main a", "links => links.map(link => link.href)")
        return set(found)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium_program = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium_program.executable, env={**os.environ, **chromium_program.env}
        )
        yield browser
        browser.close()


@contextmanager
def looking(browser: Browser, system: System, size: Mapping[str, int], scheme: Scheme = "light") -> Iterator[Looking]:
    """Opens a browser page. Fails at the end if the browser reported errors or asked another server than the API."""
    viewport: Any = size
    context = browser.new_context(viewport=viewport, color_scheme=scheme)
    shown = Looking(context.new_page(), system.url)
    shown.page.on("console", lambda message: shown.complaints.append(message.text))
    shown.page.on("pageerror", lambda error: shown.complaints.append(error.message))
    shown.page.on(
        "request",
        lambda request: None if request.url.startswith(("data:", system.url)) else shown.elsewhere.append(request.url),
    )
    try:
        yield shown
        assert (shown.complaints, shown.elsewhere) == ([], [])
    finally:
        context.close()


@pytest.fixture(scope="module")
def ids(system: System) -> Mapping[str, str]:
    """The ids of a submission that is stored and in the catalog index."""
    run = f"run-{uuid4().hex[:12]}"
    accepted = system.post(
        "vehicles", ndjson(vehicles("<b>page", 3)), Bronze_Classification_Id=run, Bronze_File_Name="a%20file.ndjson"
    ).json()
    (stored,) = system.stored(accepted["submission_id"])["objects"]
    ids = {name: str(accepted[name]) for name in KINDS if name != "file_path"} | {"file_path": stored["file_path"]}
    for by, value in ids.items():
        until(f"the view knows {by}", lambda by=by, value=value: system.get(f"/v1/lineage?{by}={value}").is_success)  # type: ignore[misc]
    return ids


def test_every_id_is_found_on_a_phone_by_the_keyboard_alone(
    browser: Browser, system: System, ids: Mapping[str, str]
) -> None:
    """Each id finds the same submission, object and rows, without horizontal scrolling."""
    with looking(browser, system, PHONE) as phone:
        for by, value in ids.items():
            page = phone.find(value)
            assert page.get_by_role("heading", name=f"Found by {KINDS[by]}", exact=True).is_visible()
            for shown in ("submission_id", "file_path"):
                assert page.get_by_role("link", name=ids[shown], exact=True).first.is_visible()
            assert page.get_by_role("region", name="First rows").get_by_text("<b>page-2").first.is_visible()
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert phone.find("nothing-of-it").get_by_role("heading", name="Nothing found").is_visible()


@pytest.mark.parametrize(
    "odd",
    [
        "\0",
        "bronze/\0.parquet",
        "bronze/" + "x" * 1500 + ".parquet",
        "bronze/../..//.parquet",
        "%",
        "' OR 1=1 --",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "f" * 32,
        "s3://bucket/\N{SNOWMAN}.parquet",
    ],
    ids=ascii,
)
def test_no_input_causes_a_server_error(system: System, odd: str) -> None:
    typed = quote(odd, safe="")
    answer = system.get(f"/?q={typed}")
    assert (answer.status_code, "Nothing found" in answer.text) == (200, True)
    assert system.get(f"/v1/objects/{typed}").status_code == 404


def test_search_results_link_to_trace_and_objects(browser: Browser, system: System, ids: Mapping[str, str]) -> None:
    """Each link works, and the trace is in the trace store."""
    until("the trace has arrived", lambda: system.trace(ids["trace_id"]))
    with looking(browser, system, DESKTOP) as desk:
        desk.find(ids["submission_id"])
        links = desk.links()
    store = f"http://{LOOPBACK}:{system.stack.ports.zipkin}/zipkin/traces/"
    assert f"{store}{ids['trace_id']}" in links
    routes = {
        urlsplit(link).path.partition("/v1/")[2].partition("/")[0] for link in links if link.startswith(system.url)
    }
    assert routes == {"", "lineage", "objects", "submissions"}
    for link in links:
        if link.startswith(system.url):
            assert system.get(link.removeprefix(system.url)).status_code == 200, link
        else:
            assert system.trace(link.removeprefix(store)), link


def test_a_submission_shows_its_own_rows_and_its_rejected_records(system: System, mark: str) -> None:
    """Of an object that has rows of others, too. The overview and the page of the source show the reason as well."""
    rejected = b'{"vehicle_id": "%s-rejected", "seats": "many"}' % mark.encode()

    def together() -> str | None:
        """The id of a submission whose object has another one."""
        mine = system.post("vehicles?on_invalid=quarantine", ndjson([*vehicles(f"{mark}-mine", 2), rejected])).json()[
            "submission_id"
        ]
        other = system.post("vehicles", ndjson(vehicles(f"{mark}-other", 2))).json()["submission_id"]
        objects = [until("it is stored", lambda one=one: stored_in(system, one)) for one in (mine, other)]  # type: ignore[misc]
        return str(mine) if objects[0] == objects[1] else None

    mine = until("two submissions in one object", together)
    found = until("it is in the index", lambda: shown(system, f"/?q={mine}", f"{mark}-mine-1"))
    assert "Found by submission" in found
    assert f"{mark}-other" not in found
    assert "2 rows of the submission; the object has 4 in all" in re.sub(r"\s+", " ", found)
    for path in (f"/?q={mine}", "/", "/?source=vehicles"):
        page = until(f"{path} shows what was rejected", lambda path=path: shown(system, path, f"{mark}-rejected"))  # type: ignore[misc]
        assert "record 2, field <code>seats</code>" in page
        assert "Expected `int | null`, got `str`" in page


def stored_in(system: System, submission_id: str) -> str | None:
    """The first object of a submission, a part of which may be in quarantine."""
    status = system.get(f"/v1/submissions/{submission_id}").json()
    return None if status["status"] == "accepted" else str(status["objects"][0]["file_path"])


def shown(system: System, path: str, text: str) -> str | None:
    page = system.get(path).text
    return page if text in page else None


def test_the_page_leads_from_the_state_to_the_runbook_and_to_each_source(
    browser: Browser, system: System, ids: Mapping[str, str]
) -> None:
    """The verdicts of the real rules, without an id to begin with."""
    with looking(browser, system, DESKTOP) as desk:

        def verdicts() -> dict[str, str] | None:
            tiles = desk.opened().locator("section[aria-labelledby=state] dt a").all()
            return {str(tile.text_content()): str(tile.get_attribute("href")) for tile in tiles} or None

        links = until("the rules record verdicts", verdicts, timeout_s=60)
        assert [*links] == ["Ingest", "Queue", "Upload", "Telemetry"]
        for link in links.values():
            page, _, anchor = link.partition("#")
            assert f'id="{anchor}"' in system.get(page).text
        desk.page.locator("section[aria-labelledby=sources]").get_by_role("link", name="vehicles", exact=True).click()
        assert desk.page.get_by_role("heading", name="Source vehicles", exact=True).is_visible()
        desk.page.locator("section[aria-labelledby=newest] th a").first.click()
        assert desk.page.get_by_role("heading", name="Found by object", exact=True).is_visible()


def test_the_slowest_writes_of_the_hour_link_to_their_traces_and_objects(
    browser: Browser, system: System, ids: Mapping[str, str]
) -> None:
    """Prometheus' exemplars link to a trace in the trace store and an object in the bucket."""
    with looking(browser, system, DESKTOP) as desk:

        def rows() -> list[tuple[str, str]] | None:
            """The links of each write to its trace and object, as soon as all are known."""
            found = desk.opened().locator("section[aria-labelledby=slowest] tbody tr")
            links = [row.get_by_role("link").all() for row in found.all()]
            if not links or any(len(of) != 2 for of in links):
                return None
            return [(str(of[0].get_attribute("href")), str(of[1].get_attribute("href"))) for of in links]

        slowest = until("the slowest writes have traces and objects", rows, timeout_s=60)
        tiles = dict(
            zip(*(desk.page.locator(f".tiles {of}").all_text_contents() for of in ("dt", ".value")), strict=True)
        )
    assert int(tiles["Successful uploads"].replace(",", "")) > 0
    judged = ("p95 upload", "p95 delivery", "Records stored", "Objects and messages missing", "Messages in the queue")
    assert [tiles[name] for name in judged if tiles[name] == "-"] == []
    for trace, found in slowest:
        trace_id = trace.rpartition("/")[2]
        until(f"trace {trace_id}", lambda trace_id=trace_id: system.trace(trace_id))  # type: ignore[misc]
        (query,) = parse_qs(urlsplit(found).query)["q"]
        if query.endswith(".parquet"):
            assert system.get(f"/v1/objects/{query}").json()["trace_id"] == trace_id
        else:
            assert query == trace_id


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible(browser: Browser, system: System, ids: Mapping[str, str], scheme: Scheme) -> None:
    """Contrast AA in light and dark; landmarks, one h1, labels, captions, and table headers with a scope."""
    with looking(browser, system, PHONE, scheme) as phone:
        for path in ("/", "/?source=vehicles", f"/?q={ids['submission_id']}", "/?q=nothing-of-it"):
            page = phone.opened(path)
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
            assert page.evaluate(FAINT) == []
            for landmark in ("banner", "navigation", "main", "search", "contentinfo"):
                assert page.get_by_role(landmark).count() == 1, landmark
            assert page.get_by_role("heading", level=1).count() == 1
            assert page.get_by_label("Any id or path").count() == 1
            assert page.locator("table:not(:has(caption))").count() == 0
            assert page.locator("th:not([scope])").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_runbook_is_accessible(browser: Browser, system: System, scheme: Scheme) -> None:
    """On a phone: contrast AA in light and dark, one h1, landmarks, and no horizontal scrolling of the page."""
    with looking(browser, system, PHONE, scheme) as phone:
        for path in ("/runbook", "/manual/dashboards"):
            page = phone.opened(path)
            assert page.evaluate(FAINT) == []
            for landmark in ("banner", "main", "contentinfo"):
                assert page.get_by_role(landmark).count() == 1, landmark
            assert page.get_by_role("heading", level=1).count() == 1
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_a_link_of_an_alert_shows_its_section(browser: Browser, system: System) -> None:
    """The address in an alert's annotation scrolls to the heading of that alert; from the list, Enter does too."""
    heading = "BronzeLaneHalted"
    with looking(browser, system, DESKTOP) as desk:
        page = desk.opened(f"/runbook#{heading.lower()}")
        shown = page.get_by_role("heading", name=heading, exact=True)
        until("the section is in view", lambda: page.evaluate("window.scrollY") > 0 and _in_view(page, heading))
        page = desk.opened("/runbook")
        page.get_by_role("link", name=heading, exact=True).first.focus()
        page.keyboard.press("Enter")
        until("the section is in view", lambda: _in_view(page, heading))
        assert shown.count() == 1


def _in_view(page: Page, heading: str) -> bool:
    box = page.get_by_role("heading", name=heading, exact=True).bounding_box()
    size = page.viewport_size
    return box is not None and size is not None and 0 <= box["y"] < size["height"]
