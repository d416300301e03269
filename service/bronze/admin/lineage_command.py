"""`bronze lineage`: print the lineage of an id or a path, or follow new objects.

A lineage comes from the API. New objects are read from the catalog's feed in the queue, without the API.
"""

import argparse
import asyncio
import datetime as dt
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import httpx
import msgspec
from rich.console import Console
from rich.markup import escape

from bronze import client
from bronze.admin.time_argument import since
from bronze.errors import Misconfigured, Outage, Unavailable
from bronze.plurals import counted
from bronze.printable import printable
from bronze.protocol.snapshot_summary import FirstSnapshot
from bronze.servers.catalog_feed import Feed, FeedEntry, FeedPosition
from bronze.settings import Settings

FOLLOW = "follow"
POLL_S = 0.2
RETRY_S = 0.5


class WrittenObject(msgspec.Struct, frozen=True):
    """An object of the API's answer, by its last message of its lane."""

    file_path: str
    source: str
    epoch: str
    lane: int
    last: int


#: The first snapshot with the rows of each object, in their order; None if its table does not have them.
FindSnapshots = Callable[[Sequence[WrittenObject]], Sequence[FirstSnapshot | None]]


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `bronze lineage`."""
    parser.epilog = (
        "Exit codes: 1 if nothing is known of the id, or only that the object was removed, 2 if the API refuses the "
        "request, 3 if the API does not answer, 130 if it was interrupted (Ctrl-C). "
        f"{FOLLOW} runs until Ctrl-C or SIGTERM, and then ends with 0; it waits for a queue that does not answer."
    )
    parser.description = (
        "Print the lineage of an id or a path: the submissions, traces and objects that belong to it. "
        "`bronze lineage follow` prints each new object when it is stored; it reads the queue and does not need the "
        "API."
    )
    ids = parser.add_mutually_exclusive_group(required=True)
    ids.add_argument("id", nargs="?", metavar="ID", help=f"an id of any kind, or a path; or the word {FOLLOW}")
    ids.add_argument("--classification-id", metavar="ID", help="the id of a classification")
    ids.add_argument("--file-path", metavar="PATH", help="the key of an object in the bucket")
    ids.add_argument("--submission-id", metavar="ID", help="the id of a submission")
    ids.add_argument("--trace-id", metavar="ID", help="the trace of a request or of an upload")
    parser.add_argument(
        "--limit",
        type=int,
        default=100,
        metavar="N",
        help="maximum number of submissions, and of objects (default 100, at most 1,000)",
    )
    parser.add_argument("--url", help="address of the API (default: BRONZE_API_URL)")
    parser.add_argument(
        "--json", action="store_true", help=f"print the API's answer as JSON; with {FOLLOW}, one catalog entry per line"
    )
    parser.add_argument(
        "--tables",
        action="store_true",
        help="ask the catalog of the tables itself since which snapshot each object is in the Iceberg table of its "
        "source; without it, the API says so if it has access to the catalog",
    )
    follow_options = parser.add_argument_group(f"options of {FOLLOW}")
    follow_options.add_argument("--source", help="print objects of this source only (default: all sources)")
    start = follow_options.add_mutually_exclusive_group()
    start.add_argument("--from-start", action="store_true", help="begin with all existing objects")
    start.add_argument(
        "--since",
        type=since,
        metavar="TIME",
        help="begin with the objects stored since this time (2026-11-27T10:00Z; UTC if it names no time zone) or in "
        "this period (30s, 90m, 2h, 7d)",
    )


def wants_follow(args: argparse.Namespace) -> bool:
    """Whether the command is `follow`. Raises `Misconfigured` if its options are used without it."""
    if args.id == FOLLOW:
        if args.tables:
            raise Misconfigured(f"--tables is no option of bronze lineage {FOLLOW}")
        return True
    if args.source or args.from_start or args.since:
        raise Misconfigured(f"--source, --from-start and --since are options of bronze lineage {FOLLOW} only")
    return False


# --- the lineage of an id


def run_lookup(args: argparse.Namespace, settings: Settings, find_snapshots: FindSnapshots | None = None) -> int:
    """Print the lineage. The exit code is 1 if nothing is known, and 2 if the API refuses the question.

    With `find_snapshots`, that says since which snapshot its table has each object, instead of the API. Raises
    `Unavailable`, and what `find_snapshots` raises.
    """
    by = ("id", "classification_id", "file_path", "submission_id", "trace_id")
    query = {name: getattr(args, name) for name in by if getattr(args, name)}
    with client.connect(settings, args.url) as http:
        url = http.base_url.join("v1/lineage")
        try:
            response = http.get(url, params={**query, "limit": args.limit})
        except httpx.RequestError as error:
            raise client.unreachable(error, url) from error
    failure = None if response.is_success else client.failure(response, lambda _: str(url))
    if isinstance(failure, Unavailable):
        raise failure
    try:
        answer = response.json()
    except ValueError as error:
        raise Unavailable(
            Outage.UNAVAILABLE,
            f"the answer of {url} is not JSON: {error}. Check that --url or BRONZE_API_URL is the address of the API",
        ) from error
    if failure:
        detail = printable(client.problem_of(response).detail or failure.detail)
        print(f"bronze lineage: {detail}", file=sys.stderr)
        return 1 if failure.status in {httpx.codes.NOT_FOUND, httpx.codes.GONE} else 2
    if find_snapshots is not None:
        objects = msgspec.convert(answer["objects"], list[WrittenObject])
        for written, snapshot in zip(answer["objects"], find_snapshots(objects), strict=True):
            written |= {"in_table": snapshot is not None, "snapshot": snapshot and asdict(snapshot)}
    if args.json:
        print(response.text if find_snapshots is None else msgspec.json.encode(answer).decode())
    else:
        _print(answer)
    return 0


def _print(lineage: Mapping[str, Any]) -> None:
    """Print a list: a table of complete ids and paths is too wide for a terminal."""
    console = Console(highlight=False)

    def line(text: str) -> None:
        console.print(printable(text), soft_wrap=True)

    line(f"{lineage['by']} {escape(lineage['value'])}")
    for submission in lineage["submissions"]:
        line("")
        line(f"[bold]submission {submission['submission_id']}[/] {submission['status']}")
        origin = f", from {escape(submission['origin'])}" if submission["origin"] else ""
        principal = submission.get("principal")  # older versions of the API lack it
        sender = f", sent by {escape(principal)}" if principal else ""
        line(f"  {counted(submission['records'], 'record')} of {submission['source']}{origin}{sender}")
        line(f"  classification_id {escape(_classification(submission))}")
        stored_at = submission.get("ended_at") or submission["stored_at"]  # older versions of the API lack the end
        queued, stored = (_after(submission["received_at"], at) for at in (submission["queued_at"], stored_at))
        line(f"  received {_moment(submission['received_at'])}, queued {queued}, stored {stored}")
        line(f"  trace {submission['trace_id']}")
        for share in submission["objects"]:
            line(f"  {counted(share['records'], 'record')} in {escape(share['file_path'])}")
    for written in lineage["objects"]:
        line("")
        line(f"[bold]object {escape(written['file_path'])}")
        removed = written.get("removed")  # older versions of the API lack it
        size = "size not known" if written["bytes"] is None else counted(written["bytes"], "byte")
        records, submissions = counted(written["records"], "record"), counted(written["submissions"], "submission")
        line(f"  {records}, {submissions}, {size}")
        line(f"  messages {written['first']} to {written['last']} of lane {written['epoch']}-{written['lane']}")
        ended_at = written.get("ended_at")  # older versions of the API lack it
        end = f", ended {_after(written['stored_at'], ended_at)}" if ended_at else ""
        line(f"  write began {_moment(written['stored_at'])}{end}")
        if removed:
            said = f"removed {_moment(removed['at'])} by {escape(removed['by'])}: {escape(removed['note'])}"
            line(f"  {said} (it had {records})")
        elif written.get("in_bucket") is False:
            line("  missing: it is not in the bucket, and has no removal record")
        line(f"  trace {written['trace_id']}, of its upload")
        if written.get("in_table") is not None:  # not known, or older versions of the API lack it
            line(f"  {_in_table(written['snapshot'], ended_at or written['stored_at'])}")
    line("")
    if lineage["truncated"]:
        line("There are more results: use --limit (up to 1,000) to show more.")
    if not lineage["complete"]:
        line("Not all objects that may contain the classification could be searched: there may be more results.")
    line(f"The catalog index was at most {lineage['lag_s']:.1f} s behind the catalog.")


def _in_table(snapshot: Mapping[str, Any] | None, ended_at: str) -> str:
    """Since when the table of an object has its rows."""
    if snapshot is None:
        return "not in its table"
    committed = _after(ended_at, snapshot["committed_at"])
    text = f"in its table since snapshot {snapshot['snapshot_id']}, committed {committed}"
    if not snapshot["is_exact"]:
        text += " or before: older snapshots have expired"
    return f"{text}, trace {snapshot['trace_id']}" if snapshot["trace_id"] else text


def _classification(submission: Mapping[str, Any]) -> str:
    classification_id, count = submission["classification_id"], submission["classification_count"]
    return classification_id or ("(in the object's column)" if count in {None, 1} else f"({count:,} of them)")


def _moment(time: str | None) -> str:
    return f"{dt.datetime.fromisoformat(time):%Y-%m-%d %H:%M:%S.%f}"[:-3] if time else "-"


def _after(start: str | None, time: str | None) -> str:
    """The time as seconds after `start`, if both are known and it is not before it."""
    if not start or not time:
        return _moment(time)
    seconds = (dt.datetime.fromisoformat(time) - dt.datetime.fromisoformat(start)).total_seconds()
    return _moment(time) if seconds < 0 else f"+{seconds:.3f} s"


# --- new objects


async def follow(args: argparse.Namespace, feed: Feed, stop: asyncio.Event) -> None:
    """Print each new object until `stop` is set, also those stored while the queue does not answer for a while."""
    print_entry: Callable[[FeedEntry], None] = _print_json if args.json else _print_line
    since: str | None = args.since
    position = FeedPosition() if args.from_start or since else None
    waiting = False
    while not stop.is_set():
        wait_s = RETRY_S
        try:
            position = position or await feed.end()
            page = await feed.read(position, since=since)
        except Unavailable as error:
            if not waiting:
                print(f"bronze lineage: waiting for the queue: {error}", file=sys.stderr)
            waiting = True
        else:
            waiting = False
            position = page.position
            since = None if position.sequence else since
            for item in page.entries:
                if args.source in {None, item.entry.source}:
                    print_entry(item)
            sys.stdout.flush()
            wait_s = 0 if page.remaining else POLL_S
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), wait_s)


def _print_line(item: FeedEntry) -> None:
    entry = item.entry
    number, unit = counted(entry.records, "record").split()
    print(f"{_moment(item.stored_at)}  {entry.source}  {number:>9} {unit:<7}  {entry.file_path}")


def _print_json(item: FeedEntry) -> None:
    entry = {"sequence": item.sequence, "time": item.time, **msgspec.to_builtins(item.entry)}
    print(msgspec.json.encode(entry).decode())
