"""`bronze sources check | diff | export | import`: what a declaration would change, and data contracts.

None of them changes anything.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from bronze.admin.data_contract import contract_text
from bronze.admin.data_contract_import import declarations
from bronze.admin.source_changes import SourceChange, Verdict, changes
from bronze.errors import Misconfigured
from bronze.plurals import counted
from bronze.printable import printable
from bronze.records import sources
from bronze.records.sources import RegisteredSchema, Source

_CODES = "1 if a change is refused, 2 if a file cannot work"


def arguments(parser: argparse.ArgumentParser) -> "argparse._SubParsersAction[argparse.ArgumentParser]":
    """The command line of `bronze sources`. Returns its actions, to which others can be added."""
    parser.description = (
        "Check declarations of sources, make one from sample files, or convert from and to data contracts. It changes "
        "nothing."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser(
        "check",
        help="say what a file would change, and whether it may",
        description="Compare the sources that a file declares with those that are registered in the queue: what would "
        "change, and whether it may. It registers nothing.",
        epilog=f"Exit codes: 0 if the file may be used, {_CODES}, 3 if the queue does not answer.",
    )
    check.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help="the declaration (default: that of BRONZE_SOURCES)"
    )
    diff = actions.add_parser(
        "diff",
        help="compare two files",
        description="Compare the sources that two files declare. It needs no server.",
        epilog=f"Exit codes: 0 if the second file may take the place of the first one, {_CODES}.",
    )
    diff.add_argument("old", type=Path, metavar="OLD", help="a declaration")
    diff.add_argument("new", type=Path, metavar="NEW", help="the one that would take its place")
    for action in (check, diff):
        action.add_argument("--json", action="store_true", help="print one line of JSON per source")
    export = actions.add_parser(
        "export",
        help="write a source as a data contract",
        description="Print a declared source as a data contract in YAML. `bronze sources import` makes the same "
        "declaration of it. It needs no server.",
        epilog="Exit codes: 0 if a contract was printed, 2 if an argument cannot work.",
    )
    export.add_argument("source", metavar="SOURCE", help="the name of the source")
    export.add_argument(
        "--odcs",
        action="store_true",
        required=True,
        help="in the Open Data Contract Standard, which is the only format",
    )
    export.add_argument(
        "--file",
        type=Path,
        metavar="FILE",
        help="the declaration (default: that of BRONZE_SOURCES, or the built-in one)",
    )
    take = actions.add_parser(
        "import",
        help="make a declaration of a data contract",
        description="Print the declaration of the sources that a data contract describes (Open Data Contract Standard, "
        "v3). What it says and a declaration cannot is named in comments. It needs no server.",
        epilog="Exit codes: 0 if a declaration was printed, 1 if the file cannot be read, 2 if it is no contract of "
        "sources.",
    )
    take.add_argument("file", type=Path, metavar="FILE", help="the contract, in YAML")
    return actions


def export_contract(args: argparse.Namespace, default: Path | None) -> int:
    """Run `bronze sources export`. Returns the exit code."""
    declared = sources.without_canary(load(args.file, default))
    if args.source not in declared:
        raise Misconfigured(f"there is no source {printable(args.source)}; the sources are {', '.join(declared)}")
    print(contract_text(declared[args.source]), end="")
    return 0


def import_contract(args: argparse.Namespace) -> int:
    """Run `bronze sources import`. Returns the exit code."""
    try:
        text = args.file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        print(f"bronze sources: {args.file}: {error}", file=sys.stderr)
        return 1
    print(declarations(text, str(args.file)), end="")
    return 0


def diff(args: argparse.Namespace) -> int:
    """Run `bronze sources diff`. Returns the exit code."""
    return report(args, schemas(load(args.old)), load(args.new))


def load(file: Path | None, default: Path | None = None) -> Mapping[str, Source]:
    """The sources of a file that is an argument, else of that of the setting. Raises `Misconfigured`."""
    return sources.load(file, setting=None) if file else sources.load(default)


def schemas(declared: Mapping[str, Source]) -> Mapping[str, RegisteredSchema]:
    """The sources for data, as they would be registered."""
    return {name: source.schema for name, source in sources.without_canary(declared).items()}


def report(args: argparse.Namespace, old: Mapping[str, RegisteredSchema], new: Mapping[str, Source]) -> int:
    """Print the changes. Returns the exit code."""
    known = {name: schema for name, schema in old.items() if name != sources.CANARY}
    found = changes(known, schemas(new))
    refused = [change for change in found if change.verdict is Verdict.REFUSED]
    if args.json:
        sys.stdout.buffer.write(b"".join(msgspec.json.encode(change) + b"\n" for change in found))
    else:
        print("\n".join([*_lines(found), _summary(found, len(refused))]))
    return 1 if refused else 0


def _lines(found: Sequence[SourceChange]) -> Sequence[str]:
    width = max((len(change.source) for change in found), default=0)
    lines = []
    for change in found:
        detail = "; ".join(change.changes)
        lines.append(f"{change.source:{width}}  {change.verdict}{f': {detail}' if detail else ''}")
        if change.reason:
            lines.append(f"{'':{width}}  {change.reason}")
    return [printable(line) for line in lines]


def _summary(found: Sequence[SourceChange], refused: int) -> str:
    if refused:
        return f"{counted(refused, 'source')} of {len(found)} refused: roles would not start with this file"
    same = all(change.verdict is Verdict.SAME for change in found)
    return "The file changes nothing" if same else "The file may be used"
