"""The publisher: sends NDJSON files to the ingestion API, or plays a slow fleet.

Records go as submissions of bounded size. Each has an Idempotency-Key of its own, made from the run and the number of
the submission, and is sent under it until there is an answer: a repeated request never makes a second copy. The same
holds for a whole run: sent again with `--run`, it adds only what was not accepted before.
"""

import argparse
import json
import logging
import math
import os
import random
import re
import signal
import stat
import sys
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from itertools import count
from pathlib import Path
from string import printable, whitespace
from types import FrameType
from typing import BinaryIO, Self, TextIO

import httpx
import msgspec
from opentelemetry.context import Context
from opentelemetry.trace import Span, StatusCode
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from bronze import sources
from bronze.errors import BronzeError, Misconfigured, Refused, Unavailable
from bronze.fleet import fleet
from bronze.settings import Settings
from bronze.submission import MESSAGE_BYTES_MAX
from bronze.telemetry import Telemetry
from bronze.telemetry.context import inject
from bronze.telemetry.schema import registry
from bronze.telemetry.signals import Fault, Outcome, Role, attribute, error_type, events, spans

STDIN = "-"

#: Of a submission: the body then fits one message of the queue, its cheapest way.
BATCH_RECORDS = 1_000
BATCH_BYTES = 900_000
RETRY_FOR_S = 300.0
INTERVAL_S = 5.0

#: Longer than the API's own deadline, so that the API is the one that says how a submission ended.
TIMEOUT = httpx.Timeout(45, connect=5)
BACK_OFF_S_FIRST = 0.5
BACK_OFF_S_MAX = 30.0
#: What SIGTERM leaves to the request in flight: less than what a supervisor leaves to us, less what flushing takes.
GRACE_S = 5.0

_PLAIN = "".join(c for c in printable if c not in whitespace and c != "%") + " "

_log = logging.getLogger(__name__)


# --- stopping


class Stop:
    """A wish to stop, by SIGINT or SIGTERM, that lets the request in flight come to its end.

    A second signal does not wait for it, nor does SIGTERM after `GRACE_S`: they raise `KeyboardInterrupt`.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._wanted = threading.Event()
        self._interruptible = False

    @property
    def wanted(self) -> bool:
        return self._wanted.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Whether to stop, asked after this time at the latest."""
        return self._wanted.wait(timeout_s)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """What waits for input and not for an answer: `KeyboardInterrupt` ends it at once."""
        self._interruptible = True
        try:
            if self.wanted:
                raise KeyboardInterrupt
            yield
        finally:
            self._interruptible = False

    @contextmanager
    def by_signals(self) -> Iterator[None]:
        """Listens to the signals; for the main thread."""
        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
        before = [signal.signal(number, self._hear) for number in handled]
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in zip(handled, before, strict=True):
                signal.signal(number, handler)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        again = self.wanted
        if number != signal.SIGALRM:
            self.signal = self.signal or number
        self._wanted.set()
        if again or self._interruptible:
            raise KeyboardInterrupt
        if number == signal.SIGTERM:
            signal.setitimer(signal.ITIMER_REAL, GRACE_S)


# --- reading


@dataclass(frozen=True, slots=True)
class Batch:
    """What becomes one submission: records of one file, as they stand there, a line each.

    `lines` are their line numbers, from 1; `bytes_read` is what of the file was read for it, blank lines too.
    """

    file: str
    body: bytes
    lines: Sequence[int]
    bytes_read: int

    @property
    def records(self) -> int:
        return len(self.lines)

    def place(self, record: int | None = None) -> str:
        """Where one of the batch's records stands, or all of them."""
        if record is not None and 0 <= record < len(self.lines):
            return f"{_called(self.file)}, line {self.lines[record]}"
        return f"{_called(self.file)}, lines {self.lines[0]} to {self.lines[-1]}"


def _called(file: str) -> str:
    return "standard input" if file == STDIN else file


def batches(file: str, stream: BinaryIO, *, records_max: int, bytes_max: int) -> Iterator[Batch]:
    """The records of an NDJSON stream, in order; holds one batch in memory.

    A larger record than `bytes_max` makes a batch of its own. Raises `Refused` for a line that no message can take,
    once what stands before it was given out.
    """
    body: list[bytes] = []
    lines: list[int] = []
    size = read = 0

    def cut() -> Batch:
        nonlocal size, read
        batch = Batch(file, b"".join(body), tuple(lines), read)
        body.clear()
        lines.clear()
        size = read = 0
        return batch

    for number in count(1):
        line = stream.readline(MESSAGE_BYTES_MAX + 1)
        too_long = len(line) > MESSAGE_BYTES_MAX
        if body and (not line or too_long or size + len(line) > bytes_max):
            yield cut()
        if not line:
            return
        if too_long:
            raise Refused(
                413,
                "record-too-large",
                f"{_called(file)}, line {number} is longer than {MESSAGE_BYTES_MAX} bytes. "
                "Split it, or refer to what it carries.",
            )
        read += len(line)
        if not line.strip(b" \t\r\n"):
            continue
        body.append(line)
        lines.append(number)
        size += len(line)
        if len(body) == records_max:
            yield cut()


# --- sending


class Receipt(msgspec.Struct, frozen=True):
    """What of a 202 matters here."""

    submission_id: str
    records: int
    trace_id: str


class _Problem(msgspec.Struct, frozen=True):
    """What of a problem document (RFC 9457) matters here."""

    type: str = "about:blank"
    title: str = ""
    detail: str = ""
    record: int | None = None


class Sender:
    """Sends submissions, each until it has an answer: its span and its count are made here.

    `wait` waits so many seconds and says whether to stop; `retrying` is told how many seconds a retry is away.
    """

    def __init__(
        self,
        http: httpx.Client,
        telemetry: Telemetry,
        *,
        retry_for_s: float,
        wait: Callable[[float], bool],
        clock: Callable[[], float] = time.monotonic,
        retrying: Callable[[float], None] = lambda _delay_s: None,
    ) -> None:
        self._http = http
        self._tracer = telemetry.tracer
        self._submissions = telemetry.instruments.publisher_submissions
        self._retry_for_s = retry_for_s
        self._wait = wait
        self._clock = clock
        self._retrying = retrying
        self._jitter = random.Random()  # noqa: S311  it spreads publishers, it hides nothing
        self.retries = 0

    def send(self, source: str, key: str, batch: Batch) -> Receipt:
        """One submission; returns once it is accepted.

        Raises, with the place of the records in the file: `Refused`; `Unavailable` where the time for retries is over
        or it is time to stop, the outcome is unknown then; `Misconfigured` if what answers is no ingestion API.
        """
        url = self._http.base_url.join(f"v1/ingest/{urllib.parse.quote(source, safe='')}")
        headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": key}
        if batch.file != STDIN:
            headers["Bronze-File-Name"] = file_name(batch.file)
        with self._tracer.start_as_current_span(
            spans.publish.name(source),
            context=Context(),  # each submission is a trace of its own
            kind=spans.publish.kind,
            attributes={
                attribute.http_request_method: "POST",
                attribute.url_full: str(url.copy_with(username=None, password=None)),
                attribute.server_address: url.host,
                attribute.server_port: url.port or (443 if url.scheme == "https" else 80),
                attribute.bronze_source: source,
                attribute.bronze_records: batch.records,
                attribute.bronze_bytes: len(batch.body),
            },
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            outcome = Outcome.UNKNOWN
            try:
                receipt = self._until_answered(span, url, headers | inject(), batch)
                outcome = Outcome.ACCEPTED
                span.set_attribute(attribute.bronze_submission_id, receipt.submission_id)
            except BronzeError as error:
                outcome = Outcome.REJECTED if isinstance(error, Refused) else Outcome.UNKNOWN
                span.set_attribute(attribute.error_type, error_type(error))
                span.set_status(StatusCode.ERROR, str(error))
                raise
            finally:
                span.set_attribute(attribute.bronze_outcome, outcome)
                self._submissions.add(1, {attribute.bronze_source: source, attribute.bronze_outcome: outcome})
            return receipt

    def _until_answered(self, span: Span, url: httpx.URL, headers: Mapping[str, str], batch: Batch) -> Receipt:
        begun_s = self._clock()
        unknown = f"whether {batch.place()} were accepted is unknown"
        for attempt in count(1):
            try:
                return self._attempt(span, url, headers, batch)
            except KeyboardInterrupt:
                raise Unavailable(Fault.TIMEOUT, f"stopped before there was an answer; {unknown}") from None
            except Unavailable as error:
                failed = error
            delay_s = max(self._back_off_s(attempt), failed.retry_after_s)
            spent_s = self._clock() - begun_s
            if spent_s + delay_s > self._retry_for_s:
                raise Unavailable(
                    failed.kind,
                    f"{failed.detail}; gave up after {attempt} attempts in {spent_s:.0f} s, the next was due in "
                    f"{delay_s:.0f} s; {unknown}",
                )
            event: dict[str, str | int] = {attribute.error_type: failed.kind}
            if isinstance(status := failed.members.get("status"), int):
                event[attribute.http_response_status_code] = status
            span.add_event(events.retry, event)
            _log.warning("%s; again in %.1f s", failed.detail, delay_s)
            self._retrying(delay_s)
            if self._wait(delay_s):
                raise Unavailable(failed.kind, f"{failed.detail}; stopped before it was tried again; {unknown}")
            self.retries += 1
            span.set_attribute(attribute.http_request_resend_count, attempt)
        raise AssertionError  # count() has no end

    def _attempt(self, span: Span, url: httpx.URL, headers: Mapping[str, str], batch: Batch) -> Receipt:
        """One request. Raises `Unavailable` for what may go well later."""
        try:
            response = self._http.post(url, content=batch.body, headers=headers)
        except httpx.TimeoutException as error:
            what = f"{url.host} does not answer: {type(error).__name__}"
            raise Unavailable(Fault.TIMEOUT, what, retry_after_s=0) from error
        except httpx.RequestError as error:
            raise Unavailable(Fault.UNAVAILABLE, f"{url.host}: {error}", retry_after_s=0) from error
        status = response.status_code
        span.set_attribute(attribute.http_response_status_code, status)
        if status == httpx.codes.ACCEPTED:
            return _receipt(response, batch)
        if not response.is_error:
            raise Misconfigured(f"{url} answers {status}, as no ingestion API does: look at BRONZE_API_URL")
        problem = _problem(response)
        kind = _kind(status, problem)
        said = f"{status} {problem.detail or problem.title or response.reason_phrase}"
        if status == httpx.codes.TOO_MANY_REQUESTS or response.is_server_error:
            raise Unavailable(
                kind,
                f"{url.host} answers {said}",
                retry_after_s=_retry_after_s(response),
                status=status,
            )
        raise Refused(status, kind, f"{batch.place(problem.record)}: {said}", record=problem.record)

    def _back_off_s(self, attempt: int) -> float:
        highest_s = min(BACK_OFF_S_MAX, BACK_OFF_S_FIRST * 2 ** min(attempt - 1, 16))
        return self._jitter.uniform(highest_s / 2, highest_s)


def file_name(file: str) -> str:
    """A file's own name as a header: UTF-8, percent-encoded where it is not plain ASCII (RFC 3986)."""
    return urllib.parse.quote(Path(file).name, safe=_PLAIN, errors="replace")


def _receipt(response: httpx.Response, batch: Batch) -> Receipt:
    try:
        receipt = msgspec.json.decode(response.content, type=Receipt)
    except msgspec.DecodeError as error:
        raise Misconfigured(f"{response.url} answers 202 and not as the ingestion API does: {error}") from error
    if receipt.records != batch.records:
        raise Misconfigured(f"{response.url} accepted {receipt.records} records of {batch.records}")
    return receipt


def _problem(response: httpx.Response) -> _Problem:
    try:
        return msgspec.json.decode(response.content, type=_Problem)
    except msgspec.DecodeError:  # a proxy's page
        return _Problem()


def _kind(status: int, problem: _Problem) -> str:
    """The word of the closed list that the problem's type ends in, else one that the status stands for."""
    kind = problem.type.rpartition("/")[2]
    if kind in registry().of_errors():
        return kind
    match status:
        case 401 | 403:
            return Fault.DENIED
        case 429:
            return Fault.THROTTLED
        case 502 | 503 | 504:
            return Fault.UNAVAILABLE
        case _:
            return Fault.INTERNAL


def _retry_after_s(response: httpx.Response) -> int:
    """The header's wish, seconds or a date (RFC 9110); 0 if there is none."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return int(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return 0
    return max(0, math.ceil(at.timestamp() - time.time()))


def _client(settings: Settings) -> httpx.Client:
    """A client of the API. Raises `Misconfigured` for an address that cannot be one."""
    try:
        url = httpx.URL(settings.api_url)
    except httpx.InvalidURL as error:
        raise Misconfigured(f"BRONZE_API_URL: {settings.api_url!r}: {error}") from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise Misconfigured(f"BRONZE_API_URL: {settings.api_url!r} is no http address")
    return httpx.Client(base_url=url, timeout=TIMEOUT)


@contextmanager
def _scraped(telemetry: Telemetry) -> Iterator[None]:
    """`/metrics`, on another port if ours is taken: several publishers may run at once."""
    try:
        server = telemetry.serve_metrics()
    except Misconfigured as error:
        server = telemetry.serve_metrics(port=0)
        _log.warning("%s; /metrics is on port %d now", error, server.port)
    try:
        yield
    finally:
        server.close()


# --- publish


@dataclass
class Summary:
    """What a run came to: what was accepted, and `error` where it ended early."""

    source: str
    run: str
    submissions: int = 0
    records: int = 0
    bytes: int = 0
    seconds: float = 0.0
    retries: int = 0
    submission_id_first: str | None = None
    submission_id_last: str | None = None
    error: str | None = None

    @property
    def records_per_s(self) -> float:
        return self.records / self.seconds if self.seconds else 0.0

    def add(self, batch: Batch, receipt: Receipt) -> None:
        self.submissions += 1
        self.records += receipt.records
        self.bytes += len(batch.body)
        self.submission_id_first = self.submission_id_first or receipt.submission_id
        self.submission_id_last = receipt.submission_id

    def text(self) -> str:
        return (
            f"{self.source}: {self.records:,} records accepted in {self.submissions:,} submissions, "
            f"{self.bytes:,} bytes in {self.seconds:.1f} s ({self.records_per_s:,.0f} records/s, "
            f"{self.retries:,} retries), run {self.run}"
        )

    def json(self) -> str:
        rounded = {"seconds": round(self.seconds, 3), "records_per_s": round(self.records_per_s, 1)}
        return json.dumps(asdict(self) | rounded)


class _Bar:
    """The progress of a run on standard error: share and time left where the size of all files is known."""

    def __init__(self, source: str, files: Sequence[str], *, shown: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[records]:,} records"),
            TextColumn("{task.fields[rate]:,.0f}/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=not shown,
            transient=True,
        )
        self._task = self._progress.add_task(source, total=_size(files), records=0, rate=0.0, note="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def accepted(self, batch: Batch, summary: Summary) -> None:
        self._progress.update(
            self._task,
            advance=batch.bytes_read,
            records=summary.records,
            rate=summary.records_per_s,
            note="",
        )

    def retrying(self, delay_s: float) -> None:
        self._progress.update(self._task, note=f"again in {delay_s:.0f} s")


def _size(files: Sequence[str]) -> int | None:
    """The size of all files in bytes, if each has one."""
    if STDIN in files:
        return None
    told = [Path(file).stat() for file in files]
    return sum(s.st_size for s in told) if all(stat.S_ISREG(s.st_mode) for s in told) else None


def publish(
    settings: Settings,
    telemetry: Telemetry,
    source: str,
    files: Sequence[str],
    *,
    stop: Stop,
    run: str | None = None,
    records_max: int = BATCH_RECORDS,
    bytes_max: int = BATCH_BYTES,
    retry_for_s: float = RETRY_FOR_S,
    report: TextIO | None = None,
    progress: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Summary:
    """Sends the records of NDJSON files (`-` is standard input) in order; each submission is of one file.

    Ends at the first submission that is not accepted, or when it is to stop; the summary's `error` says where and why.
    `report` gets a JSON line for each submission that was accepted. Whoever calls shuts the telemetry down, which sends
    the last counts. Raises `Misconfigured`.
    """
    summary = Summary(source, run or uuid.uuid4().hex)
    telemetry.instruments.zero(Role.PUBLISHER, [source])
    with ExitStack() as stack:
        http = stack.enter_context(_client(settings))
        stack.enter_context(_scraped(telemetry))
        telemetry.flush()  # the zeros first: without them, the first counts are no increase
        bar = stack.enter_context(_Bar(source, files, shown=progress))
        sender = Sender(http, telemetry, retry_for_s=retry_for_s, wait=stop.wait, clock=clock, retrying=bar.retrying)
        read = _read(files, records_max, bytes_max)
        begun_s = clock()
        try:
            for number in count():
                with stop.interruptible():
                    batch = next(read, None)
                if batch is None:
                    break
                receipt = sender.send(source, f"{summary.run}-{number}", batch)
                summary.add(batch, receipt)
                summary.seconds = clock() - begun_s
                bar.accepted(batch, summary)
                if report:
                    print(_reported(source, batch, receipt), file=report, flush=True)
        except (BronzeError, OSError) as error:
            summary.error = str(error)
        except KeyboardInterrupt:
            summary.error = "stopped"
        summary.seconds = clock() - begun_s
        summary.retries = sender.retries
    return summary


def _read(files: Sequence[str], records_max: int, bytes_max: int) -> Iterator[Batch]:
    for file in files:
        if file == STDIN:
            yield from batches(file, sys.stdin.buffer, records_max=records_max, bytes_max=bytes_max)
        else:
            with Path(file).open("rb") as stream:
                yield from batches(file, stream, records_max=records_max, bytes_max=bytes_max)


def _reported(source: str, batch: Batch, receipt: Receipt) -> str:
    return json.dumps(
        {
            "submission_id": receipt.submission_id,
            "trace_id": receipt.trace_id,
            "source": source,
            "records": receipt.records,
            "file": batch.file,
            "line_first": batch.lines[0],
            "line_last": batch.lines[-1],
        }
    )


# --- simulate


def simulate(
    settings: Settings,
    telemetry: Telemetry,
    *,
    stop: Stop,
    interval_s: float = INTERVAL_S,
    dice: random.Random | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Drives a slow fleet until it is to stop: one submission in each interval, whatever becomes of the last one.

    Whoever calls shuts the telemetry down. Raises `Misconfigured`.
    """
    run = uuid.uuid4().hex
    telemetry.instruments.zero(Role.PUBLISHER, sources.load(settings.sources))
    with _client(settings) as http, _scraped(telemetry):
        telemetry.flush()
        sender = Sender(http, telemetry, retry_for_s=RETRY_FOR_S, wait=stop.wait, clock=clock)
        for number, (source, records) in enumerate(fleet(dice or random.Random())):  # noqa: S311  a game
            body = b"".join(msgspec.json.encode(record) + b"\n" for record in records)
            batch = Batch(f"{source}.ndjson", body, range(1, len(records) + 1), len(body))
            try:
                sender.send(source, f"{run}-{number}", batch)
            except BronzeError as error:
                if not stop.wanted:
                    _log.error("a simulated submission was not accepted: %s", error)
            if stop.wait(interval_s):
                return


# --- the command's part


def publish_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bronze publish`."""
    parser.add_argument("source", metavar="SOURCE", help="what the records are: vehicles, status, ...")
    parser.add_argument(
        "files", metavar="FILE", nargs="+", type=_file, help="NDJSON, one JSON object a line; - is standard input"
    )
    parser.add_argument(
        "--records", type=_positive, default=BATCH_RECORDS, help="most records of a submission (%(default)s)"
    )
    parser.add_argument("--bytes", type=_positive, default=BATCH_BYTES, help="most bytes of a submission (%(default)s)")
    parser.add_argument(
        "--retry-for",
        metavar="SECONDS",
        type=_seconds,
        default=RETRY_FOR_S,
        help="how long a submission is tried again while the API is away or busy (%(default)g)",
    )
    parser.add_argument(
        "--run",
        metavar="ID",
        type=_run,
        help="send an earlier run again, with the same files and bounds: what was accepted isn't accepted twice",
    )
    parser.add_argument("--json", action="store_true", help="the summary as one line of JSON")
    parser.add_argument(
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
    """`bronze publish`: 0 if all was accepted, 1 if not, 2 if the report cannot be written, 130 after Ctrl-C."""
    stop = Stop()
    with ExitStack() as stack:
        try:
            report = stack.enter_context(args.report.open("w", encoding="utf-8")) if args.report else None
        except OSError as error:
            print(f"bronze publish: --report: {error}", file=sys.stderr)
            return 2
        stack.enter_context(stop.by_signals())
        summary = publish(
            settings,
            telemetry,
            args.source,
            args.files,
            stop=stop,
            run=args.run,
            records_max=args.records,
            bytes_max=args.bytes,
            retry_for_s=args.retry_for,
            report=report,
            progress=sys.stderr.isatty(),
        )
    if summary.error:
        print(
            f"bronze publish: {summary.error}\n"
            f"{summary.records:,} records were accepted before. To go on, send the same files again with "
            f"--run {summary.run}: what was accepted is not accepted twice.",
            file=sys.stderr,
        )
    print(summary.json() if args.json else summary.text())
    if stop.signal is not None:
        return 128 + stop.signal
    return 1 if summary.error else 0


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
