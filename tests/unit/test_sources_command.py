"""`bronze sources diff`: what one declaration would change of another, and whether it may."""

import json
from pathlib import Path

import pytest

from bronze.__main__ import parser
from bronze.admin import sources_command
from bronze.errors import Misconfigured

OLD = """
[things]
description = "Things."
fields = [
    { name = "a", type = "int32", required = true, description = "-" },
    { name = "b", type = "string", description = "-" },
]

[gone]
description = "No longer declared."
raw = true
"""
NEW = """
[things]
description = "Things, in other words."
version = 2
fields = [
    { name = "b", type = "string", description = "-" },
    { name = "a", type = "int64", widened_from = "int32", widened_since = 2, required = true, description = "-" },
    { name = "c", type = "list<string>", since = 2, description = "-" },
]

[more]
description = "More."
fields = [ { name = "x", type = "bool", description = "-" } ]
"""


def diff(folder: Path, old: str, new: str, *options: str) -> int:
    for name, text in (("old", old), ("new", new)):
        (folder / f"{name}.toml").write_text(text)
    files = [str(folder / f"{name}.toml") for name in ("old", "new")]
    return sources_command.diff(parser().parse_args(["sources", "diff", *files, *options]))


def test_a_file_that_cannot_be_read_is_named_as_it_was_given(tmp_path: Path) -> None:
    """A setting is named only if it names the file."""
    gone = tmp_path / "gone.toml"
    (tmp_path / "new.toml").write_text(NEW)
    words = ["sources", "diff", str(gone), str(tmp_path / "new.toml")]
    with pytest.raises(Misconfigured, match=f"^{gone} cannot be read: .*No such file"):
        sources_command.diff(parser().parse_args(words))
    words = ["sources", "export", "things", "--odcs"]
    with pytest.raises(Misconfigured, match=f"^{gone} cannot be read: "):
        sources_command.export_contract(parser().parse_args([*words, "--file", str(gone)]), None)
    with pytest.raises(Misconfigured, match=f"^BRONZE_SOURCES: {gone} cannot be read: "):
        sources_command.export_contract(parser().parse_args(words), gone)
    for file, default in ((gone, None), (gone, gone)):
        with pytest.raises(Misconfigured, match=f"^{gone} cannot be read: "):
            sources_command.load(file, default)


def test_each_source_is_told_with_its_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert diff(tmp_path, OLD, NEW) == 0
    changed = (
        "things  changed: version 1 becomes 2; a: int32, required, since version 1 becomes int64, required, since "
        "version 1, widened_from int32; adds c (list<string>, optional, since version 2)"
    )
    assert capsys.readouterr().out.splitlines() == [
        changed,
        "more    new: version 1, x (bool)",
        "gone    no longer declared: its objects stay; its messages wait for a consumer that has it",
        "The file may be used",
    ]


def test_a_source_may_become_strict_and_open_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strict = OLD.replace('description = "Things."', 'description = "Things."\nstrict = true')
    assert (diff(tmp_path, OLD, strict), diff(tmp_path, strict, OLD)) == (0, 0)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("things")]
    assert said == [f"things  changed: undeclared fields of new records are {word}" for word in ("refused", "accepted")]


def test_a_change_that_is_refused_has_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert diff(tmp_path, NEW, NEW.replace('"list<string>"', '"list<int64>"')) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("things  refused: c: list<string>, optional, since version 2 becomes list<int64>")
    assert lines[1].startswith("        field c: the registered version 2 has list<string>")
    assert lines[-1] == "1 source of 2 refused: roles would not start with this file"


def test_a_file_that_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The order of fields and their descriptions are no change."""
    assert diff(tmp_path, OLD, OLD.replace('"Things."', '"Others."')) == 0
    assert capsys.readouterr().out.splitlines() == [
        "things  no change",
        "gone    no change",
        "The file changes nothing",
    ]


def test_as_json_there_is_one_line_per_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert diff(tmp_path, OLD, NEW, "--json") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(change["source"], change["verdict"], change["reason"]) for change in found] == [
        ("things", "changed", None),
        ("more", "new", None),
        ("gone", "no longer declared", None),
    ]


def test_a_file_that_cannot_work_is_named(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"new\.toml: source things, field a: there is no type 'int'"):
        diff(tmp_path, OLD, OLD.replace("int32", "int"))
