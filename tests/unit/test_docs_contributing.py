"""The files and folders that CONTRIBUTING.md names exist."""

import re
from pathlib import PurePath

import pytest

from local.builds import REPOSITORY

TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
#: Names without a folder continue an earlier path: `plan.py` after `service/bronze/publisher/command.py`.
NAMED = sorted(set(re.findall(r"`([\w.{}-]+/[\w./{}-]*|\w[\w.]*\.(?:md|py|toml|yaml))`", TEXT)))
OTHERS = {".git", ".local", ".venv"}
FILES = [
    PurePath(file.relative_to(REPOSITORY))
    for top in REPOSITORY.iterdir()
    if top.name not in OTHERS
    for file in (top, *top.rglob("*"))
]


def test_most_are_found() -> None:
    assert len(NAMED) > 60


@pytest.mark.parametrize("name", [name for name in NAMED if not name.startswith(".local/")])
def test_it_exists(name: str) -> None:
    """`{signal}` stands for any name. What is below `.local/` is written by commands."""
    pattern = re.sub(r"\{\w+\}", "*", name).removesuffix("/")
    assert any(file.match(pattern) for file in FILES)
