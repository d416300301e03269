"""The command line: `bronze publish` and `bronze simulate`."""

import argparse
import math
import os
import re
import sys
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TextIO

from bronze.client import connect
from bronze.errors import BronzeError, Misconfigured
from bronze.plurals import counted
from bronze.publisher import checking
from bronze.publisher.csv_options import csv_arguments, csv_options
from bronze.publisher.declared import RemoteSource
from bronze.publisher.formats import COLUMNAR_AS_A_WHOLE, EXTENSIONS, STDIN, FileFormat, required_format
from bronze.publisher.object_files import find_objects, is_folder, is_object
from bronze.publisher.plan import (
    BATCH_BYTES,
    BATCH_RECORDS,
    COLUMNAR_BATCH_BYTES,
    COLUMNAR_BATCH_RECORDS,
    RETRY_FOR_S,
    Plan,
)
from bronze.publisher.progress import Summary
from bronze.publisher.publishing import publish
from bronze.publisher.simulating import INTERVAL_S, simulate
from bronze.publisher.stopping import Stop
from bronze.publisher.watching import PATTERN, SETTLE_S, check_pattern, find_files, watch
from bronze.records.sources import CLASSIFICATION_ID_CHARS_MAX
from bronze.settings import Settings
from bronze.telemetry import Telemetry

#: The statuses of refusals after which the same file would be refused again.
_RECORD_REFUSED = frozenset({400, 413, 422})
_EXIT_CODES = """\
exit codes:
  0    everything was accepted (--dry-run: all records fit; --watch: stopped, and no file was refused)
  1    something was not accepted, or does not fit
  2    the command cannot run: wrong arguments or settings, or the directory already has a watcher
  130  stopped by Ctrl-C (143: by SIGTERM); run the same command again to continue
"""


def publish_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bronze publish`."""
    parser.description = (
        "Sends the records of files to the API. A file is identified by its path and content. If you send it again\n"
        "(after Ctrl-C, after a crash, or by mistake), nothing in it is accepted twice within 30 days."
    )
    parser.epilog = _EXIT_CODES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.parse_known_args = partial(_parse_anywhere, parser)  # type: ignore[assignment,method-assign]
    _file_arguments(parser)
    _record_arguments(parser)
    _sending_arguments(parser)
    _watch_arguments(parser)
    _output_arguments(parser)


def _parse_anywhere(
    parser: argparse.ArgumentParser, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
) -> tuple[argparse.Namespace, list[str]]:
    """Takes files also behind options: argparse alone takes `SOURCE --option` as without files."""
    known = argparse.ArgumentParser.parse_known_args
    found, rest = known(parser, args, namespace)
    files = [text for text in rest if not text.startswith("-") or text == STDIN]
    if files and len(files) == len(rest):
        again, rest = known(parser, [found.source, *files])
        found.files += again.files
    return found, rest


def _file_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="the source of the records: vehicles, status, ...")
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        type=_file,
        help="a file or a directory with files; s3://BUCKET/KEY is an object, and s3://BUCKET/FOLDER/ a directory of "
        f"objects. The extension of a name determines the format ({', '.join(EXTENSIONS)}; text may also have .gz or "
        ".zst after it); - is standard input, NDJSON by default",
    )
    parser.add_argument(
        "--format", choices=[*map(str, FileFormat)], help="the format of all files, whatever their names"
    )
    csv_arguments(parser)


def _record_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("records")
    group.add_argument(
        "--classification-id",
        metavar="ID",
        type=_classification,
        help="the classification of records that do not contain one",
    )
    group.add_argument(
        "--classification-column",
        metavar="NAME",
        help="the column (or field) that contains the classification of each record",
    )
    group.add_argument(
        "--on-invalid",
        choices=["refuse", "quarantine"],
        help="what happens to records that do not fit the source: the whole submission is refused (default), or these "
        "records go to quarantine and the others are accepted (of text files only)",
    )
    group.add_argument(
        "--max-rejected",
        metavar="N",
        type=_max_rejected,
        help="with --on-invalid quarantine: end with exit code 1 if more records than this, or than this percentage "
        "(1%%), went to quarantine",
    )


def _sending_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sending")
    group.add_argument(
        "--records",
        metavar="N",
        type=_positive,
        help=f"maximum number of records per submission ({BATCH_RECORDS}; of Parquet and Arrow files "
        f"{COLUMNAR_BATCH_RECORDS})",
    )
    group.add_argument(
        "--bytes",
        metavar="N",
        type=_positive,
        help=f"maximum size of a submission in bytes ({BATCH_BYTES}; of Parquet and Arrow files "
        f"{COLUMNAR_BATCH_BYTES})",
    )
    group.add_argument(
        "--rate", metavar="N", type=_rate, help="maximum number of records per second, for all files together"
    )
    group.add_argument(
        "--parallel",
        metavar="N",
        type=_positive,
        default=1,
        help="number of files that are sent in parallel (%(default)s)",
    )
    group.add_argument(
        "--retry-for",
        metavar="SECONDS",
        type=_seconds,
        default=RETRY_FOR_S,
        help="how long to retry a submission while the API does not answer or is busy (%(default)g)",
    )
    run = group.add_mutually_exclusive_group()
    run.add_argument(
        "--again", action="store_true", help="send the files again as new data, even if they were sent before"
    )
    run.add_argument(
        "--run",
        metavar="ID",
        type=_run,
        help="a name for this publish run. Under a new name, files are sent as new data, even if they were sent "
        "before. Under a name that was used before, files that were sent under this name are not sent as new data "
        "again. To continue a publish run that was started with --again or that reads standard input, give the ID that "
        "its summary printed",
    )
    group.add_argument("--dry-run", action="store_true", help="check every record as the API would, and send nothing")


def _watch_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("watching a directory")
    group.add_argument(
        "--watch",
        metavar="DIR",
        type=_directory,
        help="watch this directory and send each new file once; runs until it is stopped",
    )
    group.add_argument(
        "--pattern",
        metavar="GLOB",
        default=PATTERN,
        help="which files: '*.csv', or '**/*.csv' to include subdirectories (default %(default)s)",
    )
    group.add_argument(
        "--settle",
        metavar="SECONDS",
        type=_seconds,
        default=SETTLE_S,
        help="a file is complete when it has not changed for this number of seconds (%(default)g)",
    )
    group.add_argument(
        "--state",
        metavar="FILE",
        type=Path,
        help="the SQLite file that records which files were sent (default DIR/.bronze/SOURCE.sqlite)",
    )


def _output_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print the summary as one line of JSON")
    group.add_argument(
        "--report", metavar="FILE", type=Path, help="write one line of JSON for each accepted submission to this file"
    )


def simulate_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bronze simulate`."""
    parser.description = "Sends invented records of a vehicle fleet to the API, slowly, until it is stopped."
    parser.add_argument(
        "--interval-s",
        metavar="SECONDS",
        type=_seconds,
        default=INTERVAL_S,
        help="seconds between two submissions (%(default)g)",
    )


def run_publish(args: argparse.Namespace, settings: Settings, telemetry: Telemetry) -> int:
    """Runs `bronze publish`; returns one of `_EXIT_CODES`. Raises `Misconfigured`."""
    plan = Plan(
        source=args.source,
        run=uuid.uuid4().hex if args.again else args.run,
        format=FileFormat(args.format) if args.format else None,
        records_max=args.records,
        bytes_max=args.bytes,
        classification_id=args.classification_id,
        classification_column=args.classification_column,
        on_invalid=args.on_invalid,
        rate=args.rate,
        parallel=args.parallel,
        retry_for_s=args.retry_for,
        csv=csv_options(args),
    )
    try:
        args.files = [file for name in args.files for file in _files(name, args.pattern, plan)]
    except OSError as error:
        raise Misconfigured(str(error)) from error
    _check(args, plan)
    if args.dry_run:
        return _dry_run(args, settings, plan)
    stop = Stop()
    with ExitStack() as stack:
        report = _report(args, stack)
        stack.enter_context(stop.by_signals())
        summary = _send(args, settings, telemetry, plan, stop, report)
    if summary.error:
        print(
            f"bronze publish: {summary.error}\n"
            f"Accepted before that: {counted(summary.records, 'record')}. {_continuation(args, summary)}",
            file=sys.stderr,
        )
    print(summary.json() if args.json else summary.text())
    if stop.signal is not None and not args.watch:
        return 128 + stop.signal
    if _too_many_rejected(args.max_rejected, summary):
        print(f"bronze publish: more than {args.max_rejected} of the records were rejected", file=sys.stderr)
        return 1
    return 1 if summary.error or summary.refused else 0


def _continuation(args: argparse.Namespace, summary: Summary) -> str:
    """How to go on after an error, so that nothing is stored twice."""
    if summary.error_status in _RECORD_REFUSED and not args.watch:
        return (
            "A corrected file counts as a new file: send only the rest in it, else what was accepted is stored twice. "
            "To send the other records of a text file as it is, add --on-invalid quarantine; nothing is accepted twice."
        )
    run = f" with --run {summary.run}" if summary.run else ""
    continuation = "start the watcher again" if args.watch else f"send the same files again{run}"
    return f"To continue, {continuation}; nothing is accepted twice."


def _send(
    args: argparse.Namespace, settings: Settings, telemetry: Telemetry, plan: Plan, stop: Stop, report: TextIO | None
) -> Summary:
    progress = sys.stderr.isatty()
    if not args.watch:
        return publish(settings, telemetry, plan, args.files, stop=stop, report=report, progress=progress)
    return watch(
        settings,
        telemetry,
        plan,
        args.watch,
        stop=stop,
        pattern=args.pattern,
        settle_s=args.settle,
        state=args.state,
        report=report,
        progress=progress,
    )


def _dry_run(args: argparse.Namespace, settings: Settings, plan: Plan) -> int:
    try:
        with connect(settings) as http:
            declared = RemoteSource(http, plan.source)()
        findings = checking.check(plan, declared, args.files)
    except BronzeError as error:
        print(f"bronze publish: {error}", file=sys.stderr)
        return 1
    print(findings.json() if args.json else findings.text())
    return 0 if findings.all_valid else 1


def _check(args: argparse.Namespace, plan: Plan) -> None:
    """Raises `Misconfigured` for options that exclude each other."""
    if bool(args.files) == bool(args.watch):
        raise Misconfigured("give either files to send, or a directory with --watch, but not both")
    if args.watch and (args.dry_run or args.again):
        raise Misconfigured("--watch sends each file once: --dry-run and --again cannot be used with it")
    if args.max_rejected is not None and plan.on_invalid != "quarantine":
        raise Misconfigured("--max-rejected limits the records that go to quarantine: add --on-invalid quarantine")
    for file in args.files:
        if not required_format(file, plan.format).is_text and plan.on_invalid == "quarantine":
            raise Misconfigured(f"{file} {COLUMNAR_AS_A_WHOLE}")


def _report(args: argparse.Namespace, stack: ExitStack) -> TextIO | None:
    """The file of the report; a watcher appends to it, so that a restart keeps it."""
    file: Path | None = args.report
    try:
        return stack.enter_context(file.open("a" if args.watch else "w", encoding="utf-8")) if file else None
    except OSError as error:
        raise Misconfigured(f"--report: {error}") from error


def run_simulate(args: argparse.Namespace, settings: Settings, telemetry: Telemetry) -> int:
    """Runs `bronze simulate`; returns 0 when it was stopped."""
    stop = Stop()
    with stop.by_signals(), suppress(KeyboardInterrupt):
        simulate(settings, telemetry, stop=stop, interval_s=args.interval_s)
    return 0


def _file(text: str) -> str:
    if text != STDIN and not is_object(text) and not os.access(text, os.R_OK):
        raise argparse.ArgumentTypeError(f"{text}: not a readable file or directory")
    return text


def _files(name: str, pattern: str, plan: Plan) -> Sequence[str]:
    """A file, or the files of a directory, in the order of their names. Raises `Misconfigured` if it has none."""
    if name == STDIN or not (is_folder(name) or Path(name).is_dir()):
        return [name]
    check_pattern(pattern)
    if is_object(name):
        found = find_objects(name, pattern, plan.format)
    else:
        found = sorted(find_files(Path(name), pattern, plan.format))
    if not found:
        raise Misconfigured(f"{name}: has no file of a known format that matches {pattern!r} (--pattern, --format)")
    return found


def _max_rejected(text: str) -> str:
    if not re.fullmatch(r"[0-9]+|[0-9]+(\.[0-9]+)?%", text):
        raise argparse.ArgumentTypeError(f"{text}: not a number of records, or a percentage such as 1%")
    return text


def _too_many_rejected(limit: str | None, summary: Summary) -> bool:
    if limit is None:
        return False
    if limit.endswith("%"):
        return summary.records_rejected > float(limit[:-1]) / 100 * (summary.records + summary.records_rejected)
    return summary.records_rejected > int(limit)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text}: not a whole number above 0")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: not a number of seconds")
    return seconds


def _run(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text):
        raise argparse.ArgumentTypeError(f"{text}: not 1 to 64 letters, digits, dots, dashes or underscores")
    return text


def _rate(text: str) -> float:
    rate = _seconds(text)
    if not rate:
        raise argparse.ArgumentTypeError(f"{text}: not a number of records per second")
    return rate


def _classification(text: str) -> str:
    if not 1 <= len(text) <= CLASSIFICATION_ID_CHARS_MAX:
        raise argparse.ArgumentTypeError(f"not 1 to {CLASSIFICATION_ID_CHARS_MAX} characters")
    return text


def _directory(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text}: not a directory")
    return Path(text)
