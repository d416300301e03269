"""Publishing: sends the records of files to the API, one batch after another."""

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TextIO

from bronze.client import connect
from bronze.errors import BronzeError, Misconfigured, Refused
from bronze.publisher.batches import Batch, batches_of
from bronze.publisher.declared import RemoteSource
from bronze.publisher.files import OpenFile, key_prefix, open_file, total_size
from bronze.publisher.formats import STDIN
from bronze.publisher.plan import Plan
from bronze.publisher.progress import Bar, Report, Summary
from bronze.publisher.sending import Sender
from bronze.publisher.stopping import Stop
from bronze.settings import Settings
from bronze.telemetry import Telemetry
from bronze.telemetry.scrape import CannotListen
from bronze.telemetry.signals import Role

_log = logging.getLogger(__name__)


class RateLimit:
    """Limits the records per second, for all files together. Without a rate, there is no limit."""

    def __init__(self, rate: float | None, wait: Callable[[float], bool], clock: Callable[[], float]) -> None:
        self._rate = rate
        self._wait = wait
        self._clock = clock
        self._next_s = clock()
        self._lock = threading.Lock()

    def acquire(self, count: int) -> None:
        """Waits until this number of records may be sent. Raises `KeyboardInterrupt` if a stop is requested."""
        if self._rate is None:
            return
        with self._lock:
            now_s = self._clock()
            due_s = max(self._next_s, now_s)
            self._next_s = due_s + count / self._rate
        if due_s > now_s and self._wait(due_s - now_s):
            raise KeyboardInterrupt


class PublishRun:
    """Sends files according to one plan, and counts the results. Several threads may use it."""

    def __init__(
        self,
        plan: Plan,
        sender: Sender,
        declared: RemoteSource,
        *,
        stop: Stop,
        bar: Bar,
        report: Report | None,
        clock: Callable[[], float],
    ) -> None:
        self.plan = plan
        self.summary = Summary(plan.source, plan.run)
        self._sender = sender
        self._declared = declared
        self._stop = stop
        self._bar = bar
        self._report = report
        self._clock = clock
        self._started_s = clock()
        self._rate_limit = RateLimit(plan.rate, stop.wait, clock)
        self._lock = threading.Lock()

    def send(
        self, path: str, *, is_known: Callable[[OpenFile], bool] = lambda _file: False
    ) -> tuple[int | None, OpenFile]:
        """Sends all records of a file. Returns their number, or None if `is_known` is true; and the file.

        Raises what `Sender.send` does; `Refused` if the file cannot be read in its format, `Unavailable` if it changes
        meanwhile, `OSError`, and `KeyboardInterrupt` if a stop is requested.
        """
        with ExitStack() as stack:
            with self._stop.interruptible():
                file = stack.enter_context(open_file(path))
            if is_known(file):
                return None, file
            batches = batches_of(file, self.plan, self._declared)
            key = key_prefix(file, self._run_of(file), self.plan.classification_id)
            total = 0
            for number in range(2**63):
                with self._stop.interruptible():
                    batch = next(batches, None)
                if batch is None:
                    break
                self._rate_limit.acquire(batch.records)
                file.check()
                total += batch.records
                self._send(f"{key}-{number}", batch)
        with self._lock:
            self.summary.files += 1
        return total, file

    def end(self, error: str | None = None) -> Summary:
        summary = self.summary
        summary.error = error
        summary.seconds = self._clock() - self._started_s
        summary.retries = self._sender.retries
        return summary

    def _run_of(self, file: OpenFile) -> str:
        """The name of the publish run that goes into a file's keys.

        The content of a stream is not known in advance, so a stream always needs such a name: it gets a new one unless
        `--run` gives it.
        """
        if file.digest is None and self.summary.run is None:
            self.summary.run = uuid.uuid4().hex
        return self.summary.run or "" if file.digest is None else self.plan.run or ""

    def _send(self, key: str, batch: Batch) -> None:
        try:
            receipt = self._sender.send(self.plan.source, key, batch)
        except Refused as error:
            if error.status != 409:
                raise
            raise Refused(
                error.code,
                f"{batch.place()}: refused, because this part of the file was sent before with other records. Probably "
                "the file was sent with other options (--format, --records, --bytes, --classification-column, "
                "--delimiter, --encoding, --decimal-comma) or by another version of bronze publish, or --run was used "
                "before for other standard input. To continue, "
                "use the same options, version and input as before. To send everything as new data, use --again, or "
                "another --run. The answer of the API: "
                f"{error.detail}",
                status=error.status,
            ) from error
        with self._lock:
            self.summary.add(batch, receipt)
            self.summary.seconds = self._clock() - self._started_s
            self._bar.accepted(batch, self.summary)
        if self._report:
            self._report.accepted(self.plan.source, batch, receipt)


@contextmanager
def open_run(
    settings: Settings,
    telemetry: Telemetry,
    plan: Plan,
    *,
    stop: Stop,
    size: int | None = None,
    report: TextIO | None = None,
    progress: bool = False,
    clock: Callable[[], float] = time.monotonic,
    long_lived: bool = True,
) -> Iterator[PublishRun]:
    """A publish run with its connection, progress bar and `/metrics`. Raises `Misconfigured`."""
    telemetry.instruments.zero(Role.PUBLISHER, [plan.source])
    with ExitStack() as stack:
        http = stack.enter_context(connect(settings))
        stack.enter_context(serve_metrics(telemetry, long_lived=long_lived))
        telemetry.flush()  # exports the zeros: without them, Prometheus sees no increase in the first counts
        bar = stack.enter_context(Bar(plan.source, size, shown=progress))
        sender = Sender(
            http,
            telemetry,
            retry_for_s=plan.retry_for_s,
            wait=stop.wait,
            clock=clock,
            on_retry=bar.retrying,
            classification_id=plan.classification_id,
            on_invalid=plan.on_invalid,
        )
        yield PublishRun(
            plan,
            sender,
            RemoteSource(http, plan.source, retry_for_s=plan.retry_for_s, wait=stop.wait),
            stop=stop,
            bar=bar,
            report=Report(report) if report else None,
            clock=clock,
        )


@contextmanager
def serve_metrics(telemetry: Telemetry, *, long_lived: bool = True) -> Iterator[None]:
    """Serves `/metrics`, on any free port if the configured port is in use: several publishers may run at once.

    Only a long-lived publisher warns of the other port: it is one that Prometheus is configured to scrape. The metrics
    of a command that ends by itself go by OTLP, as always, and need no scrape.
    """
    try:
        server = telemetry.serve_metrics()
    except CannotListen as error:
        server = telemetry.serve_metrics(port=0)
        level = logging.WARNING if long_lived else logging.DEBUG
        _log.log(level, "%s. Serving /metrics on port %d instead", error, server.port)
    try:
        yield
    finally:
        server.close()


def publish(
    settings: Settings,
    telemetry: Telemetry,
    plan: Plan,
    files: Sequence[str],
    *,
    stop: Stop,
    report: TextIO | None = None,
    progress: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Summary:
    """Sends the records of files (`-` is standard input). Files are sent in order, or several in parallel; each
    submission has records of one file.

    Ends at the first submission that is not accepted, or when a stop is requested; the summary's `error` has the reason
    and the position. `report` gets one line of JSON for each accepted submission. The caller shuts the telemetry down,
    which sends the last counts. Raises `Misconfigured` if the API's address is not valid, or if a file does not exist.
    """
    try:
        size = total_size(files)
    except OSError as error:
        raise Misconfigured(str(error)) from error
    with open_run(
        settings,
        telemetry,
        plan,
        stop=stop,
        size=size,
        report=report,
        progress=progress,
        clock=clock,
        long_lived=False,
    ) as run:
        try:
            for_each_file(files, run.send, parallel=1 if STDIN in files else plan.parallel, stop=stop)
        except (BronzeError, OSError) as error:
            run.summary.error_status = error.status if isinstance(error, Refused) else None
            return run.end(str(error))
        except KeyboardInterrupt:
            return run.end("stopped")
        return run.end()


def for_each_file(files: Sequence[str], process: Callable[[str], object], *, parallel: int, stop: Stop) -> None:
    """Calls `process` for each file, in order, for several files in parallel.

    The first error is raised here: files that are being processed are finished, and no other file is started. The
    threads are daemons, so that a second stop signal ends the process without waiting for them.
    """
    if parallel == 1 or len(files) == 1:
        for file in files:
            process(file)
        return
    waiting = deque(files)
    failures: list[BaseException] = []

    def process_waiting() -> None:
        while waiting and not failures and not stop.requested:
            try:
                process(waiting.popleft())
            except IndexError:  # another thread was faster
                return
            except BaseException as error:  # noqa: BLE001  raised by the thread that joins
                failures.append(error)

    threads = [threading.Thread(target=process_waiting, daemon=True) for _ in range(min(parallel, len(files)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    if waiting:
        raise KeyboardInterrupt
