"""Texts use the words of docs/glossary.md, not those that it replaces."""

import re
from pathlib import Path

import pytest

from local.builds import REPOSITORY

#: Words that the glossary replaces, as far as they have no other sense.
REPLACED = {
    "anew": r"\banew\b",
    "mend": r"\bmend(s|ed|ing)?\b",
    "aside": r"\baside\b",
    "told": r"\btold\b",
    "stands": r"\bstands? (in|under|at|there|on)\b",
    "a for per": r"\b(lanes|records|requests|submissions|objects|rows|bytes|us|messages|files|spans) an? "
    r"(source|second|minute|hour|day|lane|submission|object|message|record|request|stream)\b",
}
FOLDERS = ("service", "local", "grafana", "prometheus", "otel-collector", "benchmarks", "docs", "tempo", "alertmanager")
FILES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "compose.yaml", ".env.example", "pyproject.toml")
KINDS = {".py", ".md", ".yaml", ".html", ".toml"}


def texts() -> list[Path]:
    inside = [file for folder in FOLDERS for file in (REPOSITORY / folder).rglob("*") if file.suffix in KINDS]
    return [*inside, *(REPOSITORY / file for file in FILES)]


def test_the_glossary_itself_names_the_words() -> None:
    """The patterns find what they are for, and the files are there."""
    glossary = (REPOSITORY / "docs" / "glossary.md").read_text(encoding="utf-8")
    assert [word for word in ("anew", "mend", "a for per") if not re.search(REPLACED[word], glossary)] == []
    assert len(texts()) > 100


@pytest.mark.parametrize("word", REPLACED)
def test_no_text_has_a_word_that_was_replaced(word: str) -> None:
    pattern = re.compile(REPLACED[word], re.IGNORECASE)
    found = [
        f"{file.relative_to(REPOSITORY)}:{number}: {line.strip()[:100]}"
        for file in texts()
        if file.name != "glossary.md"
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert found == []
