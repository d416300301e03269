"""`bronze objects missing | acknowledge`. It needs the queue and the bucket; not the API."""

import argparse
import getpass
import re
import sys

import msgspec

from bronze.admin.acknowledge import Acknowledged, Acknowledgement, LostMessages, Statement
from bronze.admin.command_error import CommandError
from bronze.admin.confirmation import Confirmation, add_yes
from bronze.admin.missing_objects import find_missing
from bronze.admin.progress import Progress
from bronze.admin.time_argument import since
from bronze.errors import Misconfigured
from bronze.plurals import counted
from bronze.protocol.lane import Lane
from bronze.servers.bucket import Bucket
from bronze.servers.catalog_feed import Feed

#: The longest reason, and the longest name.
TEXT_CHARS_MAX = 1_000

_MISSING = "if objects are missing or damaged"
_CODES = (
    "2 if an argument or a setting cannot work, 3 if the queue or the bucket does not answer, 130 if it was "
    "interrupted (Ctrl-C)."
)
_MESSAGES = re.compile(r"([a-z][a-z0-9_]*)\.([0-9]+)\.([0-9]{8}T[0-9]+):([0-9]+)-([0-9]+)")


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `bronze objects`."""
    parser.description = (
        "List the objects that are missing or damaged in the bucket, and acknowledge those that cannot be restored, so "
        "that they no longer count as missing."
    )
    parser.epilog = f"Exit codes: 0 if everything is done; of `missing`, 1 {_MISSING}; {_CODES}"
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    missing = actions.add_parser(
        "missing",
        help="list the objects that are in the catalog, but not in the bucket, or not with their size",
        description="List the objects that are in the catalog, but not in the bucket, or have another size there than "
        "the catalog says: those are damaged, or somebody replaced them. It changes nothing.",
        epilog=f"Exit codes: 0 if no object is missing, 1 {_MISSING}, {_CODES}",
    )
    missing.add_argument(
        "--since",
        type=since,
        metavar="TIME",
        help="list only objects that were stored since this time (2026-11-27T10:00Z; UTC if it names no time zone) or "
        "in this period (30s, 90m, 2h, 7d)",
    )
    missing.add_argument("--json", action="store_true", help="print one line of JSON per object")
    acknowledge = actions.add_parser(
        "acknowledge",
        help="write a removal record for objects that are missing or damaged, and cannot be restored",
        description="Write a removal record for objects that are missing or damaged, and cannot be restored. They then "
        "no longer count as missing, look-ups say that they were removed, and the catalog can be rebuilt without them. "
        "Nothing is deleted: what is left of a damaged object stays in the bucket. An object that has the size that "
        "the catalog says is never acknowledged. If the command is interrupted, run it again.",
        epilog=f"Exit codes: 0 if everything is acknowledged, 1 if an object cannot be acknowledged (standard error "
        f"says why), {_CODES}",
    )
    acknowledge.add_argument("file_paths", nargs="*", metavar="FILE_PATH", help="an object, as `missing` prints it")
    acknowledge.add_argument("--all-missing", action="store_true", help="all objects that `missing` prints")
    acknowledge.add_argument(
        "--messages",
        type=_messages,
        metavar="LANE:FIRST-LAST",
        help="messages of objects that neither the bucket nor the catalog names, as `bronze catalog rebuild` prints "
        "them",
    )
    acknowledge.add_argument("--reason", type=_text, required=True, metavar="TEXT", help="why they are missing")
    acknowledge.add_argument("--by", type=_text, metavar="NAME", help="who acknowledges it (default: the user's name)")
    acknowledge.add_argument("--dry-run", action="store_true", help="check and print everything; write nothing")
    add_yes(acknowledge)


def _messages(text: str) -> LostMessages:
    match = _MESSAGES.fullmatch(text)
    if match is None or not 0 < int(match[4]) <= int(match[5]):
        raise argparse.ArgumentTypeError(
            f"{text!r} names no messages of a lane. Use for example status.0.20261127T095959123:118-120"
        )
    return LostMessages(Lane(match[1], int(match[2]), match[3]), int(match[4]), int(match[5]))


def _text(text: str) -> str:
    text = text.strip()
    if not text or len(text) > TEXT_CHARS_MAX:
        raise argparse.ArgumentTypeError(f"a text of 1 to {TEXT_CHARS_MAX:,} characters is needed")
    return text


async def run(
    args: argparse.Namespace,
    feed: Feed,
    bucket: Bucket,
    prefix: str,
    acknowledgement: Acknowledgement,
    confirmation: Confirmation,
) -> int:
    """Run the command. The exit code is 1 if objects are missing, or if one cannot be acknowledged."""
    try:
        if args.action == "missing":
            return await _missing(args, feed, bucket, prefix)
        await _acknowledge(args, acknowledgement, confirmation)
    except CommandError as error:
        print(f"bronze objects: {error}", file=sys.stderr)
        return 1
    return 0


async def _missing(args: argparse.Namespace, feed: Feed, bucket: Bucket, prefix: str) -> int:
    with Progress("catalog entries read") as progress:
        found = await find_missing(feed, bucket, prefix, args.since, progress.step)
    missing = [each for each in found if not each.removed]
    for each in missing:
        print(msgspec.json.encode(each.as_dict()).decode() if args.json else each.as_text())
    if not args.json:
        removed = len(found) - len(missing)
        also = f" {counted(removed, 'object')} more with a removal record." if removed else ""
        print(f"{counted(len(missing), 'object')} missing.{also}")
    return 1 if missing else 0


async def _acknowledge(args: argparse.Namespace, acknowledgement: Acknowledgement, confirmation: Confirmation) -> None:
    if bool(args.file_paths) + args.all_missing + bool(args.messages) != 1:
        raise Misconfigured("objects acknowledge: give one or more objects, or --all-missing, or --messages")
    statement = Statement(args.reason, args.by or _user())
    with Progress("catalog entries read") as progress:
        if args.messages:
            found = await acknowledgement.of_messages(args.messages, statement)
        elif args.all_missing:
            found = await acknowledgement.of_all_missing(statement, progress.step)
        else:
            found = await acknowledgement.of_objects(args.file_paths, statement, progress.step)
    if found and not args.dry_run:
        await confirmation.ask(f"Write {counted(len(found), 'removal record')}? With --dry-run, they are listed.")
    else:
        confirmation.show_targets()
    for acknowledged in found:
        if not args.dry_run:
            await acknowledgement.write(acknowledged)
        print(_line(acknowledged, dry_run=args.dry_run))
    if not found:
        print("No object is missing.")
    elif args.dry_run:
        print("Nothing was written.")
    elif any(acknowledged.bytes_found is not None for acknowledged in found):
        print(
            "What is left of a damaged object is still in the bucket, where readers may fail at it: copy it elsewhere "
            "if you need it, then delete it."
        )
    elif args.messages:
        print("Run `bronze catalog rebuild` again.")


def _line(acknowledged: Acknowledged, *, dry_run: bool) -> str:
    removal = acknowledged.removal
    name = removal.file_path or f"messages {removal.first} to {removal.last} of {removal.of_lane.stream}"
    if acknowledged.bytes_found is not None:
        name += f" (damaged: {counted(acknowledged.bytes_found, 'byte')} in the bucket)"
    if acknowledged.existed:
        return f"{name}: acknowledged before, by {removal.removed_by}: {removal.note}"
    records = "records unknown" if removal.records is None else counted(removal.records, "record")
    return f"{name}: {records}, {'would be acknowledged' if dry_run else 'acknowledged'}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:  # a container's user often has no name
        raise CommandError("the user has no name here: say with --by who acknowledges this") from error
