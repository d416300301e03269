"""The command's part: `bronze publish` and `bronze simulate`."""

import argparse
import math
import os
import re
import sys
import uuid
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TextIO

from bronze.client import connect
from bronze.errors import BronzeError, Misconfigured
from bronze.publisher import checking
from bronze.publisher.declared import RemoteSource
from bronze.publisher.formats import EXTENSIONS, STDIN, FileFormat, required_format
from bronze.publisher.plan import BATCH_BYTES, BATCH_RECORDS, RETRY_FOR_S, Plan
from bronze.publisher.progress import Summary
from bronze.publisher.publishing import publish
from bronze.publisher.simulating import INTERVAL_S, simulate
from bronze.publisher.stopping import Stop
from bronze.publisher.watching import PATTERN, SETTLE_S, watch
from bronze.records.sources import CLASSIFICATION_ID_CHARS_MAX
from bronze.settings import Settings
from bronze.telemetry import Telemetry

_EXIT_CODES = """\
exit codes:
  0    all was accepted (--dry-run: all fits; --watch: told to stop, no file was refused)
  1    something was not accepted, or does not fit
  2    what was asked for cannot work: arguments, settings, a directory that is watched already
  130  stopped by Ctrl-C, 143 by SIGTERM; the same command again goes on from there
"""


def publish_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bronze publish`."""
    parser.description = (
        "Sends the records of files to the API. A file is known by its path and content: sent again, after\n"
        "Ctrl-C, a crash or by mistake, nothing of it is accepted twice within 30 days."
    )
    parser.epilog = _EXIT_CODES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", metavar="SOURCE", help="what the records are: vehicles, status, ...")
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        type=_file,
        help=f"the file's name tells its format ({', '.join(EXTENSIONS)}; text may be .gz or .zst); - is standard "
        "input, NDJSON by default",
    )
    parser.add_argument(
        "--format", choices=[*map(str, FileFormat)], help="the format of all files, whatever their names"
    )

    of_what = parser.add_argument_group("what the records belong to")
    of_what.add_argument(
        "--classification-id", metavar="ID", type=_classification, help="the run of records that name none themselves"
    )
    of_what.add_argument(
        "--classification-column", metavar="NAME", help="the column, or field, that names each record's run"
    )
    of_what.add_argument(
        "--on-invalid",
        choices=["refuse", "quarantine"],
        help="what becomes of records that do not fit: their submission is refused (the default), or they are set "
        "aside in quarantine and the others accepted",
    )

    how = parser.add_argument_group("how they are sent")
    how.add_argument(
        "--records", type=_positive, default=BATCH_RECORDS, help="most records of a submission (%(default)s)"
    )
    how.add_argument("--bytes", type=_positive, default=BATCH_BYTES, help="most bytes of a submission (%(default)s)")
    how.add_argument("--rate", metavar="R", type=_rate, help="most records a second, over all files")
    how.add_argument("--parallel", metavar="N", type=_positive, default=1, help="how many files at once (%(default)s)")
    how.add_argument(
        "--retry-for",
        metavar="SECONDS",
        type=_seconds,
        default=RETRY_FOR_S,
        help="how long a submission is tried again while the API is away or busy (%(default)g)",
    )
    again = how.add_mutually_exclusive_group()
    again.add_argument("--again", action="store_true", help="send the files once more, though they were sent before")
    again.add_argument(
        "--run",
        metavar="ID",
        type=_run,
        help="a name for this sending: the same files under another name are sent once more, under the same name not; "
        "goes on with --again or standard input",
    )
    how.add_argument("--dry-run", action="store_true", help="check every record as the API would, and send nothing")

    arriving = parser.add_argument_group("files that arrive")
    arriving.add_argument(
        "--watch", metavar="DIR", type=_directory, help="send each file that arrives there, once, until it is stopped"
    )
    arriving.add_argument(
        "--pattern", default=PATTERN, help="which of them: '*.csv', or '**/*.csv' with those below (%(default)s)"
    )
    arriving.add_argument(
        "--settle",
        metavar="SECONDS",
        type=_seconds,
        default=SETTLE_S,
        help="a file is complete once it has not changed for so long (%(default)g)",
    )
    arriving.add_argument(
        "--state", metavar="FILE", type=Path, help="where to remember what was sent (DIR/.bronze/SOURCE.sqlite)"
    )

    said = parser.add_argument_group("what is said")
    said.add_argument("--json", action="store_true", help="the summary as one line of JSON")
    said.add_argument(
        "--report", metavar="FILE", type=Path, help="write a line of JSON there for each accepted submission"
    )


def simulate_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bronze simulate`."""
    parser.add_argument(
        "--interval-s",
        metavar="SECONDS",
        type=_seconds,
        default=INTERVAL_S,
        help="from one submission to the next (%(default)g)",
    )


def run_publish(args: argparse.Namespace, settings: Settings, telemetry: Telemetry) -> int:
    """`bronze publish`; `_EXIT_CODES` says what it returns. Raises `Misconfigured`."""
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
    )
    _check(args, plan)
    if args.dry_run:
        return _dry_run(args, settings, plan)
    stop = Stop()
    with ExitStack() as stack:
        report = _report(args, stack)
        stack.enter_context(stop.by_signals())
        summary = _sent(args, settings, telemetry, plan, stop, report)
    if summary.error:
        run = f" with --run {summary.run}" if summary.run else ""
        again = "start the watcher again" if args.watch else f"send the same files again{run}"
        print(
            f"bronze publish: {summary.error}\n"
            f"{summary.records:,} records were accepted before. To go on, {again}: what was accepted is not accepted "
            "twice.",
            file=sys.stderr,
        )
    print(summary.json() if args.json else summary.text())
    if stop.signal is not None and not args.watch:
        return 128 + stop.signal
    return 1 if summary.error or summary.refused else 0


def _sent(
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
    except (BronzeError, OSError) as error:
        print(f"bronze publish: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(findings.json() if args.json else findings.text())
    return 0 if findings.good else 1


def _check(args: argparse.Namespace, plan: Plan) -> None:
    """Raises `Misconfigured` for options that do not go together."""
    if bool(args.files) == bool(args.watch):
        raise Misconfigured("name files to send, or a directory with --watch, and not both")
    if args.watch and (args.dry_run or args.again):
        raise Misconfigured("--watch sends each file once: --dry-run and --again are for files")
    for file in args.files:
        required_format(file, plan.format)


def _report(args: argparse.Namespace, stack: ExitStack) -> TextIO | None:
    """Where accepted submissions are told; a watcher that is started again goes on with its own."""
    file: Path | None = args.report
    try:
        return stack.enter_context(file.open("a" if args.watch else "w", encoding="utf-8")) if file else None
    except OSError as error:
        raise Misconfigured(f"--report: {error}") from error


def run_simulate(args: argparse.Namespace, settings: Settings, telemetry: Telemetry) -> int:
    """`bronze simulate`: 0 once it was told to stop."""
    stop = Stop()
    with stop.by_signals(), suppress(KeyboardInterrupt):
        simulate(settings, telemetry, stop=stop, interval_s=args.interval_s)
    return 0


def _file(text: str) -> str:
    if text != STDIN and (Path(text).is_dir() or not os.access(text, os.R_OK)):
        raise argparse.ArgumentTypeError(f"{text}: no file that can be read")
    return text


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
        raise argparse.ArgumentTypeError(f"{text}: 1 to 64 letters, digits, dots, dashes or underscores")
    return text


def _rate(text: str) -> float:
    rate = _seconds(text)
    if not rate:
        raise argparse.ArgumentTypeError(f"{text}: not a number of records a second")
    return rate


def _classification(text: str) -> str:
    if not 1 <= len(text) <= CLASSIFICATION_ID_CHARS_MAX:
        raise argparse.ArgumentTypeError(f"1 to {CLASSIFICATION_ID_CHARS_MAX} characters")
    return text


def _directory(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no directory")
    return Path(text)
