"""`bronze lineage`: asks the API for the chain of an id or a path, or prints new objects as they land.

What lands is read from the catalog's feed in the queue: whoever can read that needs no API.
"""

import argparse
import asyncio
import datetime as dt
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import httpx
import msgspec
from rich.console import Console
from rich.markup import escape

from bronze import client
from bronze.errors import Misconfigured, Outage, Unavailable
from bronze.servers.catalog_feed import Feed, FeedEntry, FeedPosition
from bronze.settings import Settings

FOLLOW = "follow"
POLL_S = 0.2
RETRY_S = 0.5

_DURATION = re.compile(r"(\d+)([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `bronze lineage`."""
    parser.description = (
        "The whole chain of an id or a path: submissions, traces, objects, in both directions. Or, as "
        "`bronze lineage follow`, each new object as it lands, straight from the queue."
    )
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("id", nargs="?", metavar="ID", help=f"an id of any kind, or a path; or the word {FOLLOW}")
    for name in ("classification-id", "file-path", "submission-id", "trace-id"):
        asked.add_argument(f"--{name}", metavar="ID" if name != "file-path" else "PATH")
    parser.add_argument("--limit", type=int, default=100, help="bound of submissions and of objects (100)")
    parser.add_argument("--url", help="where the API is (BRONZE_API_URL)")
    parser.add_argument("--json", action="store_true", help="the API's answer; of follow an entry a line")
    follow_ = parser.add_argument_group(FOLLOW)
    follow_.add_argument("--source", help="objects of this source alone")
    begin = follow_.add_mutually_exclusive_group()
    begin.add_argument("--from-start", action="store_true", help="first all objects that there are")
    begin.add_argument("--since", type=_since, metavar="TIME", help="first those since then: 90m, 2026-11-27T10:00Z")


def wants_follow(args: argparse.Namespace) -> bool:
    """Whether new objects are asked for. Raises `Misconfigured` where options are of the other command."""
    if args.id == FOLLOW:
        return True
    if args.source or args.from_start or args.since:
        raise Misconfigured(f"--source, --from-start and --since are of bronze lineage {FOLLOW}")
    return False


# --- the chain of an id


def run_ask(args: argparse.Namespace, settings: Settings) -> int:
    """Print the lineage. The exit code is 1 if nothing is known, and 2 if the API refuses the question.

    Raises `Unavailable`.
    """
    by = ("id", "classification_id", "file_path", "submission_id", "trace_id")
    asked = {name: getattr(args, name) for name in by if getattr(args, name)}
    with client.connect(settings, args.url) as http:
        url = http.base_url.join("v1/lineage")
        try:
            response = http.get(url, params={**asked, "limit": args.limit})
        except httpx.RequestError as error:
            raise client.unreachable(error, url) from error
    if response.is_error:
        failure = client.failure(response, lambda _: "bronze lineage")
        if isinstance(failure, Unavailable):
            raise failure
        print(f"bronze lineage: {client.problem_of(response).detail or failure.detail}", file=sys.stderr)
        return 1 if failure.status == httpx.codes.NOT_FOUND else 2
    try:
        lineage = response.json()
    except ValueError as error:
        raise Unavailable(Outage.UNAVAILABLE, f"{url} does not answer as the API does: {error}") from error
    if args.json:
        print(response.text)
    else:
        _print(lineage)
    return 0


def _print(chain: Mapping[str, Any]) -> None:
    """As a list, since no terminal is wide enough for a table of ids and paths that can be copied."""
    console = Console(highlight=False)

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    say(f"{chain['by']} {escape(chain['value'])}")
    for one in chain["submissions"]:
        say(f"\n[bold]submission {one['submission_id']}[/] {one['status']}")
        origin = f", from {escape(one['origin'])}" if one["origin"] else ""
        say(f"  {one['records']:,} records of {one['source']}{origin}")
        say(f"  classification_id {escape(_run(one))}")
        queued, stored = (_after(one["received_at"], one[f"{what}_at"]) for what in ("queued", "stored"))
        say(f"  received {_moment(one['received_at'])}, queued {queued}, stored {stored}")
        say(f"  trace {one['trace_id']}")
        for held in one["objects"]:
            say(f"  {held['records']:,} records in {escape(held['file_path'])}")
    for one in chain["objects"]:
        say(f"\n[bold]object {escape(one['file_path'])}")
        size = "size not known" if one["bytes"] is None else f"{one['bytes']:,} bytes"
        say(f"  {one['records']:,} records, {one['submissions']:,} submissions, {size}")
        say(f"  messages {one['first']} to {one['last']} of lane {one['epoch']}-{one['lane']}")
        say(f"  stored {_moment(one['stored_at'])}")
        say(f"  trace {one['trace_id']}, of its upload")
    say("")
    if chain["truncated"]:
        say("There is more: --limit shows up to 1,000.")
    if not chain["complete"]:
        say("Not each object that may hold it could be searched: there may be more.")
    say(f"The view was {chain['lag_s']:.1f} s behind the catalog.")


def _run(submission: Mapping[str, Any]) -> str:
    one, count = submission["classification_id"], submission["classification_count"]
    return one or ("(in the object's column)" if count in {None, 1} else f"({count:,} of them)")


def _moment(time: str | None) -> str:
    return f"{dt.datetime.fromisoformat(time):%Y-%m-%d %H:%M:%S.%f}"[:-3] if time else "-"


def _after(began: str | None, time: str | None) -> str:
    """How long after the beginning, where both are known."""
    if not began or not time:
        return _moment(time)
    return f"+{(dt.datetime.fromisoformat(time) - dt.datetime.fromisoformat(began)).total_seconds():.3f} s"


# --- new objects


async def follow(args: argparse.Namespace, feed: Feed, stop: asyncio.Event) -> None:
    """Print each new object until told to stop, also those that land while the queue is away for a while."""
    show: Callable[[FeedEntry], None] = _show_json if args.json else _show
    since: str | None = args.since
    position = FeedPosition() if args.from_start or since else None
    away = False
    while not stop.is_set():
        wait_s = RETRY_S
        try:
            position = position or await feed.end()
            page = await feed.read(position, since=since)
        except Unavailable as error:
            if not away:
                print(f"bronze lineage: waiting: {error}", file=sys.stderr)
            away = True
        else:
            away = False
            position = page.position
            since = None if position.sequence else since
            for noted in page.entries:
                if args.source in {None, noted.entry.source}:
                    show(noted)
            sys.stdout.flush()
            wait_s = 0 if page.remaining else POLL_S
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), wait_s)


def _show(noted: FeedEntry) -> None:
    entry = noted.entry
    print(f"{_moment(noted.stored_at)}  {entry.source}  {entry.records:>9,} records  {entry.file_path}")


def _show_json(noted: FeedEntry) -> None:
    entry = {"sequence": noted.sequence, "time": noted.time, **msgspec.to_builtins(noted.entry)}
    print(msgspec.json.encode(entry).decode())


def _since(text: str) -> str:
    """A time, or how long ago, as the queue takes it."""
    if ago := _DURATION.fullmatch(text):
        moment = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=int(ago[1]) * _UNIT_S[ago[2]])
    else:
        try:
            moment = dt.datetime.fromisoformat(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f"{text!r} is neither a time (2026-11-27T10:00Z) nor how long ago (30s, 90m, 2h, 7d)"
            ) from error
        moment = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    return moment.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
