"""The manual: the pages of `docs/` as HTML, so that the links of alerts work without any other server.

`manual/` has a symbolic link to each page, so a source checkout reads `docs/` itself, and a wheel contains the text.
The runbook has the path `/runbook`, any other page `/manual/{name}`. Each heading has the anchor that repository hosts
generate for it, so the links of the pages are the same in both places.
"""

import asyncio
import hashlib
import importlib.resources
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

from markupsafe import Markup

from bronze.api.layout import RUNBOOK_PATH, load_templates, security_headers
from bronze.errors import Refusal, Refused

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

RUNBOOK = "runbook"
MANUAL_PATH = "/manual"


@cache
def _markdown() -> "MarkdownIt":
    from markdown_it import MarkdownIt  # slow to import: a start does not wait for it

    return MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading below the title; `level` is 2 for `##`."""

    level: int
    anchor: str
    text: str


@dataclass(frozen=True, slots=True)
class ManualPage:
    """A rendered page with its entity tag."""

    html: str
    etag: str


class Manual:
    """Renders each page when it is first asked for, since they change only with the program."""

    def __init__(self, runbook_url: str | None) -> None:
        templates = load_templates(runbook_url)
        self._template = templates.get_template("manual.html")
        # a browser asks each time whether its copy is current, so that a new version is shown at once
        self.headers: Mapping[str, str] = {**security_headers(templates), "Cache-Control": "no-cache"}
        self._render = cache(self._rendered)

    async def show(self, name: str) -> ManualPage:
        """The page with this name, such as `runbook`. Raises `Refused` if there is none."""
        if name not in _texts():
            raise Refused(Refusal.NOT_FOUND, f"The manual has no page {name!r}.")
        return await asyncio.to_thread(self._render, name)

    def _rendered(self, name: str) -> ManualPage:
        markdown = _markdown()
        tokens = markdown.parse(_texts()[name])
        headings = list(_add_anchors(tokens))
        for inline in tokens:
            inline.children = list(_with_links(inline.children or []))
        content = markdown.renderer.render(tokens, markdown.options, {})
        html = self._template.render(
            name=name,
            title=titles()[name],
            headings=headings,
            content=Markup(_scrollable(content)),  # noqa: S704  from files of this package
            pages={path(other): title for other, title in titles().items()},
        )
        return ManualPage(html, f'"{hashlib.sha256(html.encode()).hexdigest()[:32]}"')


def path(name: str) -> str:
    """The path at which the API serves a page."""
    return RUNBOOK_PATH if name == RUNBOOK else f"{MANUAL_PATH}/{name}"


@cache
def titles() -> Mapping[str, str]:
    """The titles of all pages by their names, the runbook first."""
    found = {name: text.partition("# ")[2].partition("\n")[0] for name, text in _texts().items()}
    return dict(sorted(found.items(), key=lambda page: (page[0] != RUNBOOK, page[1].lower())))


@cache
def _texts() -> Mapping[str, str]:
    """The Markdown of all pages by their names."""
    folder = importlib.resources.files("bronze.api") / "manual"
    return {
        file.name.removesuffix(".md"): file.read_text(encoding="utf-8")
        for file in folder.iterdir()
        if file.name.endswith(".md")
    }


def _add_anchors(tokens: Sequence["Token"]) -> Iterator[Heading]:
    """Give each heading its anchor, and yield those below the title."""
    seen: dict[str, int] = {}
    for opening, inline in pairwise(tokens):
        if opening.type != "heading_open":
            continue
        text = "".join(child.content for child in inline.children or [])
        anchor = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        seen[anchor] = seen.get(anchor, -1) + 1
        anchor += f"-{seen[anchor]}" if seen[anchor] else ""
        opening.attrSet("id", anchor)
        if (level := int(opening.tag[1:])) > 1:
            yield Heading(level, anchor, text)


def _with_links(children: Sequence["Token"]) -> Iterator["Token"]:
    """The tokens of a text. Links to other pages lead to their paths; those to files that the API lacks are removed,
    and their texts stay, as do the texts of pictures.
    """
    linked = True
    for child in children:
        if child.type == "image":
            child.type = "text"
        if child.type == "link_open":
            target = _target(str(child.attrGet("href")))
            linked = target is not None
            child.attrSet("href", target or "")
        if linked or child.type not in {"link_open", "link_close"}:
            yield child


def _target(href: str) -> str | None:
    """Where a link of a page leads in the manual, or None if only the repository has its target."""
    if re.match(r"https?://|#", href):
        return href
    file, _, anchor = href.partition("#")
    name = file.removesuffix(".md")
    if name not in _texts():
        return None
    return f"{path(name)}#{anchor}" if anchor else path(name)


def _scrollable(html: str) -> str:
    """Let wide blocks scroll on their own, also by keyboard, so that the page itself stays within the screen."""
    html = html.replace("<pre>", '<pre tabindex="0">')
    html = html.replace("<table>", '<div class="scroll" role="region" aria-label="Table" tabindex="0"><table>')
    return html.replace("</table>", "</table></div>")
