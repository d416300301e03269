"""`bronze verify`: its command line, and its results as a table and as JSON."""

import argparse
import datetime as dt
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bronze.admin import time_argument
from bronze.errors import Misconfigured
from bronze.plurals import counted
from bronze.verify.results import TITLES, CheckResult, Fault, Period

#: Standard output, instead of a file.
STDOUT = "-"
#: Faults that are printed per check; the JSON has all of them.
PRINTED_MAX = 20


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `bronze verify`."""
    parser.description = (
        "Check that telemetry, catalog and bucket agree. Each exemplar of the upload duration leads to a trace, the "
        "trace to an object, and the object to its catalog entry; each entry to an object with its size and rows; each "
        "object to an entry; and the entries of a lane follow one another without a gap. It changes nothing. Needs the "
        "queue and the bucket; and for exemplars BRONZE_PROMETHEUS_URL, and BRONZE_TEMPO_URL or BRONZE_ZIPKIN_URL."
    )
    parser.epilog = (
        "Exit codes: 0 if everything is correct, 1 if a share is below --min-share, 2 if an argument or a setting "
        "cannot work, 3 if a server does not answer (the trace store: about no exemplar, or not about more than 10 of "
        "them), 130 if it was interrupted (Ctrl-C). Objects, entries and traces that are younger than a minute get the "
        "rest of that minute to become complete."
    )
    parser.add_argument(
        "--since",
        type=time_argument.since,
        metavar="TIME",
        help="begin with this time (2026-11-27T10:00Z; UTC if it names no time zone) or this period up to now (30s, "
        "90m, 2h, 7d); default 1h",
    )
    parser.add_argument(
        "--until", type=time_argument.since, metavar="TIME", help="end with this time, as for --since; default now"
    )
    parser.add_argument(
        "--deep", action="store_true", help="also read each object completely, and compare its SHA-256 with its PUT's"
    )
    parser.add_argument(
        "--min-share",
        type=_share,
        default=1.0,
        metavar="SHARE",
        help="smallest share of each check that has to be correct, from 0 to 1 (default 1)",
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        help=f"also write the complete result as JSON to this file; {STDOUT}: to standard output, instead of the table",
    )


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share: use a number from 0 to 1, such as 0.999")
    return share


def period(args: argparse.Namespace) -> Period:
    """The time range of the command line. Raises `Misconfigured` if it ends before it begins."""
    now = dt.datetime.now(dt.UTC)
    since = dt.datetime.fromisoformat(args.since) if args.since else now - dt.timedelta(hours=1)
    until = dt.datetime.fromisoformat(args.until) if args.until else now
    if until < since:
        raise Misconfigured(f"--until ({until.isoformat()}) is before --since ({since.isoformat()})")
    return Period(since, until)


def report(args: argparse.Namespace, checked: Period, results: Sequence[CheckResult]) -> int:
    """Print the results. Returns the exit code. Raises `Misconfigured` if the file cannot be written."""
    passed = all(result.share is None or result.share >= args.min_share for result in results)
    if args.json:
        text = json.dumps(_document(args, checked, results, passed=passed), indent=2) + "\n"
        if args.json == STDOUT:
            sys.stdout.write(text)
        else:
            try:
                Path(args.json).write_text(text, encoding="utf-8")
            except OSError as error:
                raise Misconfigured(f"--json: {args.json} cannot be written: {error.strerror}") from error
    if args.json != STDOUT:
        _print(checked, results)
    return 0 if passed else 1


def _document(
    args: argparse.Namespace, checked: Period, results: Sequence[CheckResult], *, passed: bool
) -> dict[str, object]:
    return {
        "since": checked.since.isoformat(),
        "until": checked.until.isoformat(),
        "deep": args.deep,
        "min_share": args.min_share,
        "passed": passed,
        "checks": [
            {
                "check": result.check.value,
                "checked": result.checked,
                "correct": result.checked - len(result.faults),
                "removed": result.removed,
                "not_looked_up": result.not_looked_up,
                "faulty": len(result.faults),
                "share": result.share,
                "notes": result.notes,
                "faults": [
                    {
                        "file_path": fault.file_path,
                        "trace_id": fault.trace_id,
                        "problem": fault.problem,
                        "advice": fault.advice,
                    }
                    for fault in result.faults
                ],
            }
            for result in results
        ],
    }


def _print(checked: Period, results: Sequence[CheckResult]) -> None:
    console = Console(highlight=False)
    console.print(f"{checked.since:%Y-%m-%d %H:%M:%S} to {checked.until:%Y-%m-%d %H:%M:%S} UTC", soft_wrap=True)
    table = Table("check", box=None)
    for heading in ("checked", "correct", "faulty"):
        table.add_column(heading, justify="right")
    for result in results:
        faulty = len(result.faults)
        row = (TITLES[result.check], f"{result.checked:,}", f"{result.checked - faulty:,}", f"{faulty:,}")
        table.add_row(*row, style="red" if faulty else None)
    console.print(table)
    if not any(result.checked for result in results):
        console.print("Nothing was checked: nothing was uploaded in this range.")
    for result in results:
        name = result.check.value
        for note in result.notes:
            console.print(escape(f"{name}: {note}"), soft_wrap=True)
        if result.removed:
            removed = counted(result.removed, "object")
            console.print(escape(f"{name}: {removed} gone, with a removal record"), soft_wrap=True)
        for fault in result.faults[:PRINTED_MAX]:
            console.print(
                escape(f"{name}: {subject(fault)}: {fault.problem}. What to do: {fault.advice}"), soft_wrap=True
            )
        if (more := len(result.faults) - PRINTED_MAX) > 0:
            console.print(escape(f"{name}: and {more:,} more; --json lists all"), soft_wrap=True)


def subject(fault: Fault) -> str:
    """What a fault is about: a key, a trace id, or both."""
    if fault.trace_id is None:
        return fault.file_path or ""
    return f"{fault.file_path} (trace {fault.trace_id})" if fault.file_path else f"trace {fault.trace_id}"
