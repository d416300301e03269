"""What a command acts on, the question before it changes something, and what it says if the change is interrupted."""

import argparse
import asyncio
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from bronze.admin.command_error import CommandError
from bronze.errors import Misconfigured
from bronze.printable import printable


def add_yes(parser: argparse.ArgumentParser) -> None:
    """The option of a command that changes something."""
    parser.add_argument(
        "--yes",
        action="store_true",
        help="do not ask. Else the command says what it acts on, and asks before it changes anything; if standard "
        "input or standard error is no terminal, it ends with exit code 2",
    )


def check_answerable(args: argparse.Namespace) -> None:
    """Raises `Misconfigured` if a command would have to ask and nobody can answer."""
    asks = getattr(args, "yes", None) is False and not getattr(args, "dry_run", False)
    if asks and not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Misconfigured(
            "not confirmed: standard input or standard error is no terminal, so that nobody can be asked. Nothing was "
            "changed. With --yes, the command does not ask"
        )


def address(url: str) -> str:
    """An address as commands show it: without user name and password."""
    return printable(re.sub(r"(?<=//)[^/]*@", "", url))


@dataclass(frozen=True, slots=True)
class Confirmation:
    """Shows on standard error what a command acts on, and asks there; `yes`: it does not ask."""

    targets: Sequence[str]
    yes: bool

    def show_targets(self) -> None:
        for target in self.targets:
            print(f"Acts on the {target}", file=sys.stderr)

    async def ask(self, question: str) -> None:
        """Show what the command acts on, and ask. Raises `CommandError` unless the answer is yes."""
        self.show_targets()
        if self.yes:
            return
        print(f"{question} [y/N] ", end="", flush=True, file=sys.stderr)
        if (await _read_line()).strip().lower() not in {"y", "yes"}:
            raise CommandError("not confirmed: nothing was changed")


@contextmanager
def unfinished_if_interrupted(command: str) -> Iterator[None]:
    """The part of a command that changes something step by step. If Ctrl-C ends it, standard error says so."""
    try:
        yield
    except asyncio.CancelledError:
        print(f"bronze {command}: interrupted. Run the command again to finish the work", file=sys.stderr)
        raise


async def _read_line() -> str:
    """A line from the terminal. Connections stay alive meanwhile, and Ctrl-C ends the wait."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sys.stdin, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sys.stdin)
    return sys.stdin.readline()
