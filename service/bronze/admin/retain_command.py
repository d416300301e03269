"""`bronze retain`. It needs the queue and the bucket, and the tables if there are any; not the API."""

import argparse
import asyncio
import datetime as dt
import getpass
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from bronze.admin.command_error import CommandError
from bronze.admin.confirmation import Confirmation, add_yes, unfinished_if_interrupted
from bronze.admin.progress import Progress
from bronze.admin.retention import Deleted, ExpiredObjects, HeldObjects, OnDeleted, Retention, Statement
from bronze.admin.time_argument import period, whole
from bronze.errors import Gone, Halted, Misconfigured, NotPermitted, Unavailable
from bronze.plurals import counted
from bronze.records.sources import RETENTION_DAYS_MAX
from bronze.servers.catalog import UNKEYED_S

#: How much longer the catalog keeps the entries of objects than the bucket keeps the objects.
ENTRIES_DAYS_MORE = 30
#: What an identity keeps anyway.
DAYS_MIN = UNKEYED_S // 86_400
DAYS_MAX = RETENTION_DAYS_MAX + ENTRIES_DAYS_MORE
#: The time after which a run that failed is repeated, if the next one is not due before.
RETRY = dt.timedelta(minutes=5)

_CODES = (
    "0 if everything is done, 1 if it was not confirmed, 2 if an argument or a setting cannot work, 3 if the queue, "
    "the bucket or the tables do not answer, 130 if it was interrupted (Ctrl-C)."
)

#: Deletes the rows of the table of a source that were received before a day; returns how many.
DeleteRows = Callable[[str, dt.datetime], Awaitable[int]]


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `bronze retain`."""
    parser.description = (
        "Delete the objects all of whose records were accepted before a day, N days ago, from the beginning of each "
        "chain. Never deleted are the last object of a lane that exists, an object of which an identity is kept still "
        "(24 hours; 30 days for submissions with an Idempotency-Key), and, if there are tables, an object that its "
        "table does not hold yet. There are tables if BRONZE_TABLE_CATALOG is set, or pyiceberg has settings of the "
        "catalog bronze (PYICEBERG_CATALOG__BRONZE__URI). With the objects, their messages in quarantine are deleted, "
        "and the rows of the tables that were received before that day. If the command is interrupted, run it again."
    )
    parser.epilog = f"Exit codes: {_CODES}"
    parser.add_argument(
        "--days",
        type=partial(whole, minimum=DAYS_MIN, maximum=DAYS_MAX),
        metavar="N",
        help="the age in days, at least 1 (default: retention_days of each source, else BRONZE_RETENTION_DAYS)",
    )
    parser.add_argument(
        "--source", action="append", metavar="SOURCE", help="only this source; can be given several times"
    )
    parser.add_argument(
        "--entries-days",
        type=partial(whole, minimum=DAYS_MIN, maximum=DAYS_MAX),
        metavar="N",
        help="the age in days up to which the catalog keeps the entries of deleted objects, so that look-ups say that "
        f"they have expired (default: {ENTRIES_DAYS_MORE} more than the objects)",
    )
    parser.add_argument(
        "--keep-rows", action="store_true", help="leave the rows of the tables as they are; else those go, too"
    )
    parser.add_argument("--by", metavar="NAME", help="who deletes them, for look-ups (default: the user's name)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be deleted; change nothing")
    parser.add_argument(
        "--every",
        type=period,
        metavar="PERIOD",
        help="do it again and again, with this time between two runs (12h, 1d), until a stop signal; needs --yes. A "
        "run that fails says so on standard error, and is repeated after five minutes. It reports metrics",
    )
    add_yes(parser)


async def run_every(
    every: dt.timedelta,
    run_once: Callable[[], Awaitable[int]],
    stop: asyncio.Event,
    on_end: Callable[[BaseException | None], None] = lambda _: None,
) -> int:
    """Run the command now, and again after each period, until `stop` is set. A run that is under way then is cancelled,
    which the next start of the command makes good. `on_end` is called after each other run, with its error. Returns
    the exit code.

    Raises `Misconfigured` and `NotPermitted`: a server that does not answer may do so the next time.
    """
    stopped = asyncio.ensure_future(stop.wait())
    try:
        while not stop.is_set():
            running = asyncio.ensure_future(run_once())
            await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                running.cancel()
                break
            error = running.exception()
            on_end(error)
            sys.stdout.flush()  # what it has printed, else for another day in a buffer
            wait = min(every, RETRY) if error else every
            if error:
                if isinstance(error, NotPermitted) or not isinstance(error, (Unavailable, Halted, CommandError)):
                    raise error
                print(f"bronze retain: the next run is in {wait}: {error}", file=sys.stderr, flush=True)
            await asyncio.wait({stopped}, timeout=wait.total_seconds())
    finally:
        stopped.cancel()
    return 0


def first_kept_day(now: dt.datetime, days: int) -> dt.datetime:
    """The beginning of the day, in UTC, of `days` ago: what was accepted before it is old enough."""
    day = (now.astimezone(dt.UTC) - dt.timedelta(days=days)).date()
    return dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC)


async def run(
    args: argparse.Namespace,
    retention: Retention,
    now: dt.datetime,
    ages: Mapping[str, int | None],
    confirmation: Confirmation,
    delete_rows: DeleteRows | None = None,
    on_deleted: OnDeleted = lambda *_: None,
    *,
    notes: Sequence[str] = (),
) -> int:
    """Run the command; `now` is the time by the queue's clock. `ages` has the known sources, each with the age in days
    that holds without --days, or None. `delete_rows`: if there are tables. `on_deleted` is called for
    all that is deleted. `notes` are printed first.

    Raises `Halted` and `Unavailable`; of a table, or of a mark or an entry that cannot be read, when everything else is
    done.
    """
    for note in notes:
        print(note)
    chosen = _chosen(args, ages)
    failures: list[Halted | Unavailable] = []
    expired: dict[str, list[ExpiredObjects]] = {}  # by source; without those that cannot be read
    held: list[HeldObjects] = []
    unfinished = entries = 0
    with Progress("catalog entries read") as progress:
        for source, days in chosen.items():
            before = first_kept_day(now, days)
            held_of_source: list[HeldObjects] = []
            with _collected(failures, source):
                found = await retention.find([source], before, progress.step, held_of_source.append)
                unfinished_of_source = await retention.unfinished([source])
                entries += await retention.removable_entries([source], found, _entries_before(args, now, days))
                unfinished += unfinished_of_source
                held += held_of_source
                expired[source] = found
    for line in [*_lines([each for found in expired.values() for each in found]), *_held_lines(held)]:
        print(line)
    by_age = {days: [source for source in chosen if chosen[source] == days] for days in chosen.values()}
    for days, sources in by_age.items():
        objects = sum(each.objects for source in sources for each in expired.get(source, ()))
        of_sources = "" if len(by_age) == 1 else f" of {', '.join(sources)}"
        print(f"{counted(objects, 'object')}{of_sources} accepted before {first_kept_day(now, days):%Y-%m-%d} (UTC).")
    if unfinished:
        print(f"{counted(unfinished, 'more object')} to delete: an earlier run expired them, and did not finish.")
    if entries:
        print(f"{counted(entries, 'old entry', 'old entries')} of such objects to remove from the catalog.")
    if args.dry_run:
        confirmation.show_targets()
        print("Nothing was deleted.")
        return _end(failures)
    if any(expired.values()) or unfinished or entries or delete_rows:
        also = ", and the rows of the tables that are as old" if delete_rows else ""
        await confirmation.ask(
            f"Delete these objects, and what they list in quarantine{also}? They cannot be restored."
        )
    else:
        confirmation.show_targets()
    expired_by = args.by or _user()
    deleted = rows = 0
    with unfinished_if_interrupted("retain"), Progress("objects deleted") as progress:

        def count(what: Deleted, source: str, number: int) -> None:
            if what is Deleted.OBJECTS:
                progress.step()
            on_deleted(what, source, number)

        for source, found in expired.items():
            before = first_kept_day(now, chosen[source])
            with _collected(failures, source):
                for each in found:
                    await retention.expire(each, Statement(f"accepted before {before:%Y-%m-%d}", expired_by))
                deleted += await retention.delete([source], _entries_before(args, now, chosen[source]), count)
        if delete_rows:
            for source, days in chosen.items():
                try:
                    of_source = await delete_rows(source, first_kept_day(now, days))
                except NotPermitted:
                    raise
                except (Halted, Unavailable) as error:  # the tables of others are not held back
                    failures.append(error)
                    continue
                count(Deleted.ROWS, source, of_source)
                rows += of_source
    of_tables = f" {counted(rows, 'row')} of tables deleted." if delete_rows else ""
    print(f"{counted(deleted, 'object')} deleted.{of_tables}")
    return _end(failures)


@contextmanager
def _collected(failures: list[Halted | Unavailable], source: str) -> Iterator[None]:
    """Keeps what cannot be read of a source for the end, so that it does not hold back the other sources."""
    try:
        yield
    except Gone:
        raise
    except Halted as error:
        failures.append(Halted(f"{source}: {error}"))


def _end(failures: Sequence[Halted | Unavailable]) -> int:
    """The exit code. Raises the first failure, and prints the others."""
    for failure in failures[1:]:
        print(f"bronze retain: {failure}", file=sys.stderr)
    if failures:
        raise failures[0]
    return 0


def _chosen(args: argparse.Namespace, ages: Mapping[str, int | None]) -> Mapping[str, int]:
    """The sources that the command acts on, each with the age in days. Raises `Misconfigured`."""
    if unknown := sorted(set(args.source or ()) - set(ages)):
        raise Misconfigured(f"--source {unknown[0]}: the catalog has no objects of this source")
    chosen: dict[str, int] = {}
    ageless = []
    for source in sorted(set(args.source or ages)):
        days = args.days or ages[source]
        if days:
            chosen[source] = days
        else:
            ageless.append(source)
    if ageless and not chosen:
        raise Misconfigured(
            "no age: give --days, or set BRONZE_RETENTION_DAYS or the retention_days of a source. Nothing was deleted"
        )
    if ageless:
        print(f"{', '.join(ageless)}: no age, nothing is deleted")
    oldest = max(chosen.values(), default=0)
    if args.entries_days and args.entries_days < oldest:
        raise Misconfigured(
            f"--entries-days is less than the age of the objects ({oldest} days): entries are kept at least as long as "
            "their objects"
        )
    return chosen


def _entries_before(args: argparse.Namespace, now: dt.datetime, days: int) -> dt.datetime:
    """The day before which the entries of deleted objects are removed from the catalog."""
    return first_kept_day(now, args.entries_days or days + ENTRIES_DAYS_MORE)


def _held_lines(held: Sequence[HeldObjects]) -> list[str]:
    """What is old enough and stays, one line per source and reason."""
    lines = []
    for source, reason in sorted({(each.source, each.reason) for each in held}):
        alike = [each for each in held if (each.source, each.reason) == (source, reason)]
        number = sum(each.objects for each in alike)
        stay = f"{counted(number, 'object')} as old, which {'stays' if number == 1 else 'stay'}"
        lines.append(f"{source}: {stay}, from {alike[0].file_path} on: {reason}")
    return lines


def _lines(expired: Sequence[ExpiredObjects]) -> list[str]:
    """What is deleted, one line per source."""
    lines = []
    for source in sorted({each.lane.source for each in expired}):
        of_source = [each for each in expired if each.lane.source == source]
        sizes = [each.bytes for each in of_source]
        known = [size for size in sizes if size is not None]
        size = f"{sum(known):,} bytes" if len(known) == len(sizes) else "bytes unknown"
        lines.append(
            f"{source}: {counted(sum(each.objects for each in of_source), 'object')}, {size}, "
            f"{counted(sum(each.records for each in of_source), 'record')}, accepted "
            f"{min(each.oldest for each in of_source)[:19]}Z to {max(each.newest for each in of_source)[:19]}Z"
        )
    return lines


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:  # a container's user often has no name
        raise CommandError("the user has no name here: say with --by who deletes them") from error
