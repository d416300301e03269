"""Commands that change something ask on a terminal, and refuse where nobody can answer."""

import argparse
import asyncio
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from bronze.__main__ import parser
from bronze.admin.confirmation import Confirmation, address, check_answerable
from local.machine import limit_s

CHANGES = [
    ["init"],
    ["lanes", "2"],
    ["queue", "copy", "--to", "nats://127.0.0.1:1"],
    ["catalog", "rebuild"],
    ["quarantine", "replay", "--submission", "s"],
    ["objects", "acknowledge", "--all-missing", "--reason", "lost"],
    ["retain", "--days", "30"],
    ["erase", "--classification-id", "x"],
    ["table", "compact"],
    ["table", "expire"],
    ["table", "reprocess", "--day", "2026-11-28"],
    ["keys", "create", "fleet", "--scope", "admin"],
    ["keys", "rotate", "fleet"],
    ["keys", "limit", "fleet", "--requests-per-s", "1"],
    ["keys", "revoke", "0123456789ab"],
]
QUESTION = "Change it?"
#: A command that asks, on the terminal that is its standard input and error.
ASKS = f"""
import asyncio
from bronze import __main__ as command
from bronze.admin.confirmation import Confirmation
command.run = lambda args, settings: asyncio.run(Confirmation(["queue at x"], False).ask({QUESTION!r})) or 0
import sys
sys.argv = ["bronze", "keys", "list"]
command.main()
"""


@contextmanager
def asked(program: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A program that has asked its question on a terminal, and the terminal's other end."""
    ours, its = pty.openpty()
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=its, stderr=its, stdout=subprocess.PIPE, text=True) as process:
        os.close(its)
        try:
            shown = b""
            while QUESTION.encode() not in shown:
                shown += os.read(ours, 1024)
            assert b"Acts on the queue at x" in shown
            yield ours, process
        finally:
            process.kill()
            os.close(ours)


@pytest.mark.parametrize(
    ("answer", "code"), [(b"y\n", 0), (b"Yes\n", 0), (b"\n", 1), (b"no\n", 1), (b"yesterday\n", 1), (b"\x04", 1)]
)
def test_only_yes_changes_something(answer: bytes, code: int) -> None:
    """Standard output stays free for the command's result, such as a key."""
    with asked(ASKS) as (terminal, process):
        os.write(terminal, answer)
        out, _ = process.communicate(timeout=limit_s(30))
    assert (process.returncode, out) == (code, "")


def test_ctrl_c_ends_the_question() -> None:
    with asked(ASKS) as (_, process):
        process.send_signal(signal.SIGINT)
        assert process.wait(limit_s(30)) == 130


@pytest.mark.parametrize("command", CHANGES, ids=lambda command: " ".join(command[:2]))
def test_without_a_terminal_a_change_is_refused(command: Sequence[str]) -> None:
    """Before it reaches any server: there is none at the address."""
    nowhere = {"BRONZE_NATS_URL": "nats://127.0.0.1:1", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "-m", "bronze", *command],
        env=os.environ | nowhere,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit_s(60),
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"bronze {command[0]}: not confirmed: ")
    assert "--yes" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        *([*command, "--yes"] for command in CHANGES),
        *(
            [*command, "--dry-run"]
            for command in CHANGES
            if {"rebuild", "acknowledge", "retain", "erase", "compact", "reprocess"} & {*command}
        ),
        ["keys", "list"],
        ["objects", "missing"],
        ["quarantine", "list"],
        ["erase", "verify", "proof.json", "--classification-id", "x"],
        ["publish", "vehicles", __file__, "--dry-run"],
    ],
    ids=" ".join,
)
def test_what_changes_nothing_or_has_yes_needs_no_terminal(
    command: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        check_answerable(parser().parse_args(command))


def test_every_action_with_yes_is_tested() -> None:
    """A new command that changes something gets into the list above."""
    assert {" ".join(path) for path in _with_yes(parser())} == {
        " ".join(command[:1] if command[0] in {"lanes", "retain", "erase"} else command[:2]) for command in CHANGES
    }


def _with_yes(command: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, subcommand in action.choices.items():
                yield from _with_yes(subcommand, (*path, name))
        elif "--yes" in action.option_strings:
            yield path


def test_yes_does_not_ask_and_shows_what_it_acts_on(capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(Confirmation(["queue at a", "bucket b"], yes=True).ask(QUESTION))
    assert capsys.readouterr() == ("", "Acts on the queue at a\nActs on the bucket b\n")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
        ("nats://user:pass@word@host:4222", "nats://host:4222"),
        ("https://s3.example/a@b", "https://s3.example/a@b"),
        ("http://a\x1b[2J", "http://a\\x1b[2J"),
    ],
)
def test_an_address_is_shown_without_a_password(url: str, shown: str) -> None:
    assert address(url) == shown
