"""Publishing: the records of files, batch after batch, to the API."""

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
from bronze.publisher import files as filing
from bronze.publisher.batches import Batch, batches_of
from bronze.publisher.declared import RemoteSource
from bronze.publisher.files import OpenFile, open_file
from bronze.publisher.formats import STDIN
from bronze.publisher.plan import Plan
from bronze.publisher.progress import Bar, Report, Summary
from bronze.publisher.sending import Sender
from bronze.publisher.stopping import Stop
from bronze.settings import Settings
from bronze.telemetry import Telemetry
from bronze.telemetry.signals import Role

_log = logging.getLogger(__name__)


class RateLimit:
    """So many records a second and no more, over all files; without a rate, as fast as it goes."""

    def __init__(self, rate: float | None, wait: Callable[[float], bool], clock: Callable[[], float]) -> None:
        self._rate = rate
        self._wait = wait
        self._clock = clock
        self._next_s = clock()
        self._taking = threading.Lock()

    def take(self, count: int) -> None:
        """Returns when it is time for these records. Raises `KeyboardInterrupt` if it is time to stop instead."""
        if self._rate is None:
            return
        with self._taking:
            now_s = self._clock()
            due_s = max(self._next_s, now_s)
            self._next_s = due_s + count / self._rate
        if due_s > now_s and self._wait(due_s - now_s):
            raise KeyboardInterrupt


class PublishRun:
    """Sends file after file by one plan, and counts what became of it; several threads may."""

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
        self._begun_s = clock()
        self._pace = RateLimit(plan.rate, stop.wait, clock)
        self._counting = threading.Lock()

    def send(
        self, path: str, *, known: Callable[[OpenFile], bool] = lambda _file: False
    ) -> tuple[int | None, OpenFile]:
        """All records of a file, each accepted; how many, None where the content is known, and the file as it was.

        Raises what `Sender.send` does; `Refused` for a file that cannot be read as what it is, `Unavailable` for one
        that changes meanwhile, `OSError`, and `KeyboardInterrupt` if it is time to stop.
        """
        with ExitStack() as stack:
            with self._stop.interruptible():
                file = stack.enter_context(open_file(path))
            if known(file):
                return None, file
            read = batches_of(file, self.plan, self._declared)
            key = filing.key(file, self._named(file), self.plan.classification_id)
            total = 0
            for number in range(2**63):
                with self._stop.interruptible():
                    batch = next(read, None)
                if batch is None:
                    break
                self._pace.take(batch.records)
                file.check()
                total += batch.records
                self._send(f"{key}-{number}", batch)
        with self._counting:
            self.summary.files += 1
        return total, file

    def end(self, error: str | None = None) -> Summary:
        summary = self.summary
        summary.error = error
        summary.seconds = self._clock() - self._begun_s
        summary.retries = self._sender.retries
        return summary

    def _named(self, file: OpenFile) -> str:
        """The run that sets this sending apart; a stream is no one's content, so each sending of it is a run."""
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
                f"{error.detail} The file was sent before with other options (--format, --records, --bytes, "
                "--classification-column). Give the same ones again, or --again to send all of it once more.",
            ) from error
        with self._counting:
            self.summary.add(batch, receipt)
            self.summary.seconds = self._clock() - self._begun_s
            self._bar.accepted(batch, self.summary)
        if self._report:
            self._report.accepted(self.plan.source, batch, receipt)


@contextmanager
def running(
    settings: Settings,
    telemetry: Telemetry,
    plan: Plan,
    *,
    stop: Stop,
    size: int | None = None,
    report: TextIO | None = None,
    progress: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[PublishRun]:
    """A run with all that it needs, for as long as it is open. Raises `Misconfigured`."""
    telemetry.instruments.zero(Role.PUBLISHER, [plan.source])
    with ExitStack() as stack:
        http = stack.enter_context(connect(settings))
        stack.enter_context(scraped(telemetry))
        telemetry.flush()  # the zeros first: without them, the first counts are no increase
        bar = stack.enter_context(Bar(plan.source, size, shown=progress))
        sender = Sender(
            http,
            telemetry,
            retry_for_s=plan.retry_for_s,
            wait=stop.wait,
            clock=clock,
            retrying=bar.retrying,
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
def scraped(telemetry: Telemetry) -> Iterator[None]:
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
    """Sends the records of files (`-` is standard input), in order unless several files go at once; each submission is
    of one file.

    Ends at the first submission that is not accepted, or when it is to stop; the summary's `error` says where and why.
    `report` gets a JSON line for each submission that was accepted. Whoever calls shuts the telemetry down, which sends
    the last counts. Raises `Misconfigured` for an address that cannot be one.
    """
    size = filing.size(files)
    with running(settings, telemetry, plan, stop=stop, size=size, report=report, progress=progress, clock=clock) as run:
        try:
            each(files, run.send, parallel=1 if STDIN in files else plan.parallel, stop=stop)
        except (BronzeError, OSError) as error:
            return run.end(str(error))
        except KeyboardInterrupt:
            return run.end("stopped")
        return run.end()


def each(files: Sequence[str], work: Callable[[str], object], *, parallel: int, stop: Stop) -> None:
    """Has the work done for each file, in order, several at once. What it raises first is raised here: what is under
    way then comes to its end, and nothing else begins.

    The threads are no one's to wait for: whoever stops us twice leaves them behind.
    """
    if parallel == 1 or len(files) == 1:
        for file in files:
            work(file)
        return
    waiting = deque(files)
    failures: list[BaseException] = []

    def go_on() -> None:
        while waiting and not failures and not stop.wanted:
            try:
                work(waiting.popleft())
            except IndexError:  # another thread was faster
                return
            except BaseException as error:  # noqa: BLE001  raised by whoever waits
                failures.append(error)

    threads = [threading.Thread(target=go_on, daemon=True) for _ in range(min(parallel, len(files)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    if waiting:
        raise KeyboardInterrupt
