"""`bronze quarantine list | export | replay`. It needs the bucket and, for `replay`, the API; not the queue."""

import argparse
import datetime as dt
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bronze import client
from bronze.admin.command_error import CommandError
from bronze.admin.confirmation import Confirmation, add_yes
from bronze.admin.quarantine import QuarantinedObject, find, load
from bronze.admin.quarantine_replay import match_lines, replay
from bronze.plurals import counted
from bronze.servers.bucket import Bucket
from bronze.settings import Settings


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `bronze quarantine`."""
    parser.description = (
        "List the records and messages in quarantine, export them so that you can correct them, and replay them: send "
        "them to the API as new submissions."
    )
    parser.epilog = codes = (
        "Exit codes: 0 if it is done, 1 if the command cannot be executed (standard error says why), 2 if an argument "
        "or a setting cannot work, 3 if the bucket or the API does not answer, 130 if it was interrupted (Ctrl-C)."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("list", help="list the records in quarantine, with the reason of each", epilog=codes)
    show.add_argument("--source", help="list this source only (default: all sources)")
    show.add_argument(
        "--since",
        type=_time,
        metavar="TIME",
        help="list only what was quarantined since this time (ISO 8601; UTC if it names no time zone)",
    )
    show.add_argument("--json", action="store_true", help="print one line of JSON per quarantine object")
    export = actions.add_parser(
        "export", help="write the records as received, one per line, so that you can correct them", epilog=codes
    )
    _add_selection(export)
    export.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="write to this file (default: standard output)"
    )
    resend = actions.add_parser(
        "replay",
        help="send the corrected records to the API, with their classification and file name; each quarantine object "
        "is replayed once",
        epilog=codes,
    )
    _add_selection(resend)
    resend.add_argument(
        "-f",
        "--file",
        type=Path,
        help="read the corrected export from this file; an empty line discards its record (default: send the records "
        "as received)",
    )
    add_yes(resend)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("keys", nargs="*", metavar="KEY", help="key of a quarantine object, as `list` prints it")
    parser.add_argument("--submission", metavar="ID", help="all quarantine objects of this submission")


def _time(text: str) -> str:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a valid time. Use for example 2026-11-27 or 2026-11-27T10:00"
        ) from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")


async def run(args: argparse.Namespace, settings: Settings, bucket: Bucket, confirmation: Confirmation) -> int:
    """Run the command. The exit code is 1 if it cannot be executed."""
    try:
        match args.action:
            case "list":
                await _list(args, bucket)
            case "export":
                _export(args.output, await _selected(args, bucket))
            case _:
                await _replay(args.file, await _selected(args, bucket), settings, bucket, confirmation)
    except BrokenPipeError:
        raise
    except (CommandError, OSError) as error:
        print(f"bronze quarantine: {error}", file=sys.stderr)
        return 1
    return 0


async def _selected(args: argparse.Namespace, bucket: Bucket) -> list[QuarantinedObject]:
    """The quarantine objects that the command line names."""
    if bool(args.keys) == bool(args.submission):
        raise CommandError("give one or more keys, or a submission with --submission")
    if args.keys:
        return [await load(bucket, key) for key in dict.fromkeys(args.keys)]
    found = [quarantined async for quarantined in find(bucket, submission_id=args.submission)]
    if not found:
        raise CommandError(
            f"submission {args.submission} has nothing in quarantine. `bronze quarantine list` shows the submissions"
        )
    return found


async def _list(args: argparse.Namespace, bucket: Bucket) -> None:
    async for quarantined in find(bucket, source=args.source, since=args.since or ""):
        if args.json:
            print(msgspec.json.encode(quarantined.as_dict()).decode())
        else:
            print(*quarantined.as_text(), sep="\n")


def _export(output: Path | None, objects: Sequence[QuarantinedObject]) -> None:
    content = b"".join(line + b"\n" for quarantined in objects for line in quarantined.lines())
    if output:
        output.write_bytes(content)
    else:
        sys.stdout.buffer.write(content)


async def _replay(
    file: Path | None,
    objects: Sequence[QuarantinedObject],
    settings: Settings,
    bucket: Bucket,
    confirmation: Confirmation,
) -> None:
    lines = _read_lines(file) if file else [line for quarantined in objects for line in quarantined.lines()]
    replays = match_lines(objects, lines)
    unsent = [corrected for corrected in replays if corrected.lines and not corrected.quarantined.replayed]
    async with client.connect_async(settings) as http:
        if unsent:
            total = sum(len(corrected.lines) for corrected in unsent)
            await confirmation.ask(
                f"Send {counted(total, 'record')} of {counted(len(unsent), 'quarantine object')} to the API? Each "
                "quarantine object can be replayed once."
            )
        else:
            confirmation.show_targets()
        for corrected in replays:
            if not corrected.lines:
                print(f"{corrected.quarantined.key}: discarded, because every line is empty")
                continue
            mark = await replay(bucket, http, corrected)
            verb = "replayed before" if corrected.quarantined.replayed else "replayed"
            records = counted(mark.records, "record")
            print(f"{corrected.quarantined.key}: {records} {verb}, as submission {mark.submission_id}")


def _read_lines(file: Path) -> list[bytes]:
    return file.read_bytes().removesuffix(b"\n").split(b"\n")
