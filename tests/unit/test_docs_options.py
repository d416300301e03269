"""Every option of a command is on the page that shows the command."""

import argparse
import re
from collections.abc import Iterator

import pytest

from bronze.__main__ import parser
from local.builds import REPOSITORY

PAGES = {
    "catalog": "delivery.md",
    "consume": "operations.md",
    "erase": "erasure.md",
    "init": "security.md",
    "keys": "security.md",
    "lanes": "delivery.md",
    "lineage": "lineage.md",
    "objects": "operations.md",
    "retain": "operations.md",
    "publish": "publishing.md",
    "quarantine": "api.md",
    "queue": "operations.md",
    "read": "reading.md",
    "serve": "operations.md",
    "simulate": "publishing.md",
    "sources": "sources.md",
    "table": "tables.md",
    "verify": "operations.md",
}


def options(command: argparse.ArgumentParser) -> Iterator[frozenset[str]]:
    """The options of a command and its subcommands, each with its short and its long name."""
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subcommand in action.choices.values():
                yield from options(subcommand)
        elif action.option_strings and action.help is not argparse.SUPPRESS:
            yield frozenset(action.option_strings)


def commands() -> dict[str, set[frozenset[str]]]:
    (subcommands,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return {
        name: set(options(command)) - {frozenset({"-h", "--help"})} for name, command in subcommands.choices.items()
    }


@pytest.mark.parametrize(("command", "page"), PAGES.items())
def test_options_are_documented(command: str, page: str) -> None:
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text))
    assert [sorted(names) for names in commands()[command] if not names & named] == []


def test_every_command_with_options_has_a_page() -> None:
    assert {name for name, known in commands().items() if known} == PAGES.keys()
