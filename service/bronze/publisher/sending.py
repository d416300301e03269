"""Sending: one submission, until it has an answer."""

import logging
import math
import random
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from itertools import count
from pathlib import Path
from string import printable, whitespace

import httpx
import msgspec
from opentelemetry.context import Context
from opentelemetry.trace import Span, StatusCode

from bronze.errors import BronzeError, ErrorCode, Fault, Misconfigured, Outage, Refused, Unavailable, error_code
from bronze.publisher.batches import Batch
from bronze.publisher.formats import STDIN
from bronze.settings import Settings
from bronze.telemetry import Telemetry
from bronze.telemetry.context import inject, trace_id_hex
from bronze.telemetry.signals import Outcome, attribute, error_type, events, spans

#: Longer than the API's own deadline, so that the API is the one that says how a submission ended.
TIMEOUT = httpx.Timeout(45, connect=5)
BACK_OFF_S_FIRST = 0.5
BACK_OFF_S_MAX = 30.0

_PLAIN = "".join(c for c in printable if c not in whitespace and c != "%") + " "

_log = logging.getLogger(__name__)


class Receipt(msgspec.Struct, frozen=True):
    """What of a 202 matters here. `rejected` records were set aside on request; `again` means that the submission was
    accepted before, by another sending of the same file.
    """

    submission_id: str
    records: int
    trace_id: str
    rejected: int = 0
    again: bool = False


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
        classification_id: str | None = None,
        on_invalid: str | None = None,
    ) -> None:
        self._http = http
        self._tracer = telemetry.tracer
        self._submissions = telemetry.instruments.publisher_submissions
        self._retry_for_s = retry_for_s
        self._wait = wait
        self._clock = clock
        self._retrying = retrying
        self._jitter = random.Random()  # noqa: S311  it spreads publishers, it hides nothing
        self._headers = {"Content-Type": "application/x-ndjson"}
        if classification_id is not None:
            self._headers["Bronze-Classification-Id"] = urllib.parse.quote(classification_id, safe=_PLAIN)
        self._query = {"on_invalid": on_invalid} if on_invalid else {}
        self._counting = threading.Lock()
        self.retries = 0

    def send(self, source: str, key: str, batch: Batch) -> Receipt:
        """One submission; returns once it is accepted.

        Raises, with the place of the records in the file: `Refused`; `Unavailable` where the time for retries is over
        or it is time to stop, the outcome is unknown then; `Misconfigured` if what answers is no ingestion API.
        """
        url = self._http.base_url.join(f"v1/ingest/{urllib.parse.quote(source, safe='')}")
        url = url.copy_merge_params(self._query) if self._query else url
        headers = self._headers | {"Idempotency-Key": key}
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
                raise Unavailable(Outage.TIMEOUT, f"stopped before there was an answer; {unknown}") from None
            except Unavailable as error:
                failed = error
            delay_s = max(back_off_s(attempt, self._jitter), failed.retry_after_s)
            spent_s = self._clock() - begun_s
            if spent_s + delay_s > self._retry_for_s:
                raise Unavailable(
                    failed.code,
                    f"{failed.detail}; gave up after {attempt} attempts in {spent_s:.0f} s, the next was due in "
                    f"{delay_s:.0f} s; {unknown}",
                )
            event: dict[str, str | int] = {attribute.error_type: failed.code}
            if isinstance(status := failed.members.get("status"), int):
                event[attribute.http_response_status_code] = status
            span.add_event(events.retry, event)
            _log.warning("%s; again in %.1f s", failed.detail, delay_s)
            self._retrying(delay_s)
            if self._wait(delay_s):
                raise Unavailable(failed.code, f"{failed.detail}; stopped before it was tried again; {unknown}")
            with self._counting:
                self.retries += 1
            span.set_attribute(attribute.http_request_resend_count, attempt)
        raise AssertionError  # count() has no end

    def _attempt(self, span: Span, url: httpx.URL, headers: Mapping[str, str], batch: Batch) -> Receipt:
        """One request. Raises `Unavailable` for what may go well later."""
        try:
            response = self._http.post(url, content=batch.body, headers=headers)
        except httpx.RequestError as error:
            raise away(error, url) from error
        status = response.status_code
        span.set_attribute(attribute.http_response_status_code, status)
        if status == httpx.codes.ACCEPTED:
            return _receipt(response, batch, trace_id_hex(span) if span.get_span_context().is_valid else None)
        if not response.is_error:
            raise Misconfigured(f"{url} answers {status}, as no ingestion API does: look at BRONZE_API_URL")
        raise failure(response, batch.place)


def back_off_s(attempt: int, jitter: random.Random) -> float:
    """How long to wait after so many attempts."""
    highest_s = min(BACK_OFF_S_MAX, BACK_OFF_S_FIRST * 2 ** min(attempt - 1, 16))
    return jitter.uniform(highest_s / 2, highest_s)


def file_name(file: str) -> str:
    """A file's own name as a header: UTF-8, percent-encoded where it is not plain ASCII (RFC 3986)."""
    return urllib.parse.quote(Path(file).name, safe=_PLAIN, errors="replace")


def _receipt(response: httpx.Response, batch: Batch, trace_id: str | None) -> Receipt:
    """What a 202 says. A repeated one is told by its trace, which is that of the sending that was accepted."""
    try:
        receipt = msgspec.json.decode(response.content, type=Receipt)
    except msgspec.DecodeError as error:
        raise Misconfigured(f"{response.url} answers 202 and not as the ingestion API does: {error}") from error
    if receipt.records + receipt.rejected != batch.records:
        raise Misconfigured(f"{response.url} accepted {receipt.records} records of {batch.records}")
    return msgspec.structs.replace(receipt, again=trace_id not in {None, receipt.trace_id})


def failure(response: httpx.Response, place: Callable[[int | None], str]) -> Refused | Unavailable:
    """What an answer that is an error means: `Unavailable` for what may go well later. `place` says where a record,
    by its index in the body, or all of it comes from.
    """
    status = response.status_code
    problem = _problem(response)
    code = _code(status, problem)
    said = f"{status} {problem.detail or problem.title or response.reason_phrase}"
    if status == httpx.codes.TOO_MANY_REQUESTS or response.is_server_error:
        answers = f"{response.url.host} answers {said}"
        return Unavailable(code, answers, retry_after_s=_retry_after_s(response), status=status)
    return Refused(code, f"{place(problem.record)}: {said}", status=status, record=problem.record)


def away(error: httpx.RequestError, url: httpx.URL) -> Unavailable:
    """What it means that there is no answer."""
    if isinstance(error, httpx.TimeoutException):
        what = f"{url.host} does not answer: {type(error).__name__}"
        return Unavailable(Outage.TIMEOUT, what, retry_after_s=0)
    address = f"{url.scheme}://{url.netloc.decode()}"  # without a password
    what = f"no API is reached at {address}, where BRONZE_API_URL has it: {error}"
    return Unavailable(Outage.UNAVAILABLE, what, retry_after_s=0)


def _problem(response: httpx.Response) -> _Problem:
    try:
        return msgspec.json.decode(response.content, type=_Problem)
    except msgspec.DecodeError:  # a proxy's page
        return _Problem()


def _code(status: int, problem: _Problem) -> ErrorCode:
    """The code that the problem's type ends in, else one that the status stands for."""
    word = problem.type.rpartition("/")[2]
    if code := error_code(word):
        return code
    match status:
        case 401 | 403:
            return Outage.DENIED
        case 429:
            return Outage.THROTTLED
        case 502 | 503 | 504:
            return Outage.UNAVAILABLE
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


def client(settings: Settings) -> httpx.Client:
    """A client of the API. Raises `Misconfigured` for an address that cannot be one."""
    try:
        url = httpx.URL(settings.api_url)
    except httpx.InvalidURL as error:
        raise Misconfigured(f"BRONZE_API_URL: {settings.api_url!r}: {error}") from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise Misconfigured(f"BRONZE_API_URL: {settings.api_url!r} is no http address")
    return httpx.Client(base_url=url, timeout=TIMEOUT)
