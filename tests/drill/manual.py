"""The runbook as the API serves it: its entries, and the commands and queries in them."""

import asyncio
import html
import re
from dataclasses import dataclass
from functools import cached_property

from bronze.api.manual import RUNBOOK, Manual

_BLOCK = re.compile(r'(?s)<pre[^>]*><code class="language-(\w+)">(.*?)</code></pre>')


@dataclass(frozen=True)
class Entry:
    """The section below one heading, as HTML."""

    content: str

    @classmethod
    def of(cls, page: str, anchor: str) -> "Entry | None":
        found = re.search(rf'(?s)<h(\d) id="{re.escape(anchor)}">.*?</h\1>(.*?)(?=<h[123] |</main>|\Z)', page)
        return cls(found[2]) if found else None

    @cached_property
    def text(self) -> str:
        """What a reader sees, without the blocks."""
        return html.unescape(re.sub(r"<[^>]+>", "", _BLOCK.sub("", self.content)))

    def blocks(self, language: str) -> list[str]:
        """The contents of the fenced blocks: `sh` are commands, `promql` are queries."""
        return [html.unescape(text).strip() for kind, text in _BLOCK.findall(self.content) if kind == language]

    def says(self, phrase: str) -> bool:
        """Whether a reader finds the phrase; line breaks do not matter."""
        return " ".join(phrase.split()).lower() in " ".join(self.text.split()).lower()


def rendered() -> str:
    """The runbook without an API: from the package, as an API would serve it."""
    return asyncio.run(Manual(None).show(RUNBOOK)).html
