"""`bronze quarantine list | export | replay`. It needs the bucket, and to replay the API; not the queue."""

import argparse
import datetime as dt
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bronze import client
from bronze.admin.quarantine import CommandError, QuarantinedObject, find, load
from bronze.admin.quarantine_replay import match_lines, replay
from bronze.servers.bucket import Bucket
from bronze.settings import Settings


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `bronze quarantine`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("list", help="what is in quarantine, record by record, and why")
    show.add_argument("--source", help="of one source only")
    show.add_argument("--since", type=_time, help="set aside from this time on (ISO 8601, UTC if unsaid)")
    show.add_argument("--json", action="store_true", help="one JSON object a line")
    export = actions.add_parser("export", help="the records as they came, one a line, to be mended")
    _which(export)
    export.add_argument("-o", "--output", type=Path, help="a file instead of standard output")
    again = actions.add_parser("replay", help="sends records again, once, under the run and file that they came with")
    _which(again)
    again.add_argument(
        "-f", "--file", type=Path, help="the mended export; an empty line gives a record up (default: as they are)"
    )


def _which(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("keys", nargs="*", metavar="KEY", help="an object under quarantine/, as `list` names it")
    parser.add_argument("--submission", metavar="ID", help="all that is in quarantine of one submission")


def _time(text: str) -> str:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: say 2026-11-27 or 2026-11-27T10:00") from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")


async def run(args: argparse.Namespace, settings: Settings, bucket: Bucket) -> int:
    """Do what the command line says; the exit code is 1 where it cannot be done."""
    try:
        match args.action:
            case "list":
                await _list(args, bucket)
            case "export":
                _export(args.output, await _chosen(args, bucket))
            case _:
                await _replay(args.file, await _chosen(args, bucket), settings, bucket)
    except (CommandError, OSError) as error:
        print(f"bronze quarantine: {error}", file=sys.stderr)
        return 1
    return 0


async def _chosen(args: argparse.Namespace, bucket: Bucket) -> list[QuarantinedObject]:
    """What the command line names."""
    if bool(args.keys) == bool(args.submission):
        raise CommandError("name keys, or a submission with --submission")
    if args.keys:
        return [await load(bucket, key) for key in dict.fromkeys(args.keys)]
    found = [aside async for aside in find(bucket, submission_id=args.submission)]
    if not found:
        raise CommandError(f"nothing of submission {args.submission} is in quarantine")
    return found


async def _list(args: argparse.Namespace, bucket: Bucket) -> None:
    async for aside in find(bucket, source=args.source, since=args.since or ""):
        if args.json:
            print(msgspec.json.encode(aside.listed()).decode())
        else:
            print(*aside.text(), sep="\n")


def _export(output: Path | None, asides: Sequence[QuarantinedObject]) -> None:
    content = b"".join(line + b"\n" for aside in asides for line in aside.lines())
    if output:
        output.write_bytes(content)
    else:
        sys.stdout.buffer.write(content)


async def _replay(file: Path | None, objects: Sequence[QuarantinedObject], settings: Settings, bucket: Bucket) -> None:
    lines = _lines(file) if file else [line for quarantined in objects for line in quarantined.lines()]
    async with client.connect_async(settings) as http:
        for corrected in match_lines(objects, lines):
            if not corrected.lines:
                print(f"{corrected.quarantined.key}: dropped, every line is empty")
                continue
            mark = await replay(bucket, http, corrected)
            done = "replayed before" if corrected.quarantined.replayed else "replayed"
            print(f"{corrected.quarantined.key}: {mark.records} records {done}, as submission {mark.submission_id}")


def _lines(file: Path) -> list[bytes]:
    return file.read_bytes().removesuffix(b"\n").split(b"\n")
