"""Sending: one submission, with retries until it is accepted or refused."""

import logging
import random
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

import httpx
import msgspec
from opentelemetry.context import Context
from opentelemetry.trace import Span, StatusCode

from bronze import client
from bronze.client.calls import back_off_s
from bronze.errors import BronzeError, Misconfigured, Outage, Refused, Unavailable
from bronze.protocol import request_headers
from bronze.publisher.batches import Batch
from bronze.publisher.formats import STDIN, display_name
from bronze.telemetry import Telemetry
from bronze.telemetry.context import inject, trace_id_hex
from bronze.telemetry.signals import Outcome, attribute, error_type, events, spans

_log = logging.getLogger(__name__)


class Receipt(msgspec.Struct, frozen=True):
    """The fields of a 202 that the publisher uses. `rejected` records went to quarantine, as requested. `again` is set
    if the submission had already been accepted by an earlier publish run.
    """

    submission_id: str
    records: int
    trace_id: str
    rejected: int = 0
    again: bool = False


class Sender:
    """Sends submissions with retries, and makes the span and the count of each.

    `wait` waits for a number of seconds and returns whether to stop. `on_retry` is called before each retry with the
    number of seconds until then. `context` makes the context of each submission's trace, which has no parent.
    """

    def __init__(
        self,
        http: httpx.Client,
        telemetry: Telemetry,
        *,
        retry_for_s: float,
        wait: Callable[[float], bool],
        clock: Callable[[], float] = time.monotonic,
        on_retry: Callable[[float], None] = lambda _delay_s: None,
        classification_id: str | None = None,
        on_invalid: str | None = None,
        context: Callable[[], Context] = Context,
    ) -> None:
        self._context = context
        self._http = http
        self._tracer = telemetry.tracer
        self._submissions = telemetry.instruments.publisher_submissions
        self._retry_for_s = retry_for_s
        self._wait = wait
        self._clock = clock
        self._on_retry = on_retry
        self._jitter = random.Random()  # noqa: S311  only spreads retries; not for cryptography
        self._headers: dict[str, str] = {}
        if classification_id is not None:
            self._headers[request_headers.CLASSIFICATION_ID] = request_headers.encode(classification_id)
        self._query = {"on_invalid": on_invalid} if on_invalid else {}
        self._lock = threading.Lock()
        self.retries = 0

    def send(self, source: str, key: str, batch: Batch) -> Receipt:
        """Sends one submission; returns when it is accepted.

        Raises, with the position of the records in the file: `Refused`; `Unavailable` if the time for retries is over
        or a stop was requested (the outcome is then unknown); `Misconfigured` if the answer is not that of the
        ingestion API.
        """
        url = self._http.base_url.join(f"v1/ingest/{urllib.parse.quote(source, safe='')}")
        url = url.copy_merge_params(self._query) if self._query else url
        headers = self._headers | {request_headers.IDEMPOTENCY_KEY: key, "Content-Type": batch.media_type}
        if batch.file != STDIN:
            headers[request_headers.FILE_NAME] = file_name(batch.file)
        with self._tracer.start_as_current_span(
            spans.publish.name(source),
            context=self._context(),  # without a parent: each submission is a trace of its own
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
                receipt = self._send_with_retries(span, url, headers | inject(), batch)
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

    def _send_with_retries(self, span: Span, url: httpx.URL, headers: Mapping[str, str], batch: Batch) -> Receipt:
        started_s = self._clock()
        unknown = f"it is unknown whether {batch.place()} were accepted"
        for attempt in count(1):
            try:
                return self._attempt(span, url, headers, batch)
            except KeyboardInterrupt:
                raise Unavailable(Outage.TIMEOUT, f"stopped before the API answered; {unknown}") from None
            except Unavailable as error:
                failure = error
            delay_s = max(back_off_s(attempt, self._jitter), failure.retry_after_s)
            spent_s = self._clock() - started_s
            if spent_s + delay_s > self._retry_for_s:
                raise Unavailable(
                    failure.code,
                    f"{failure.detail}; gave up after {attempt} attempts in {spent_s:.0f} s (the next attempt would "
                    f"have been in {delay_s:.0f} s); {unknown}",
                )
            event: dict[str, str | int] = {attribute.error_type: failure.code}
            if isinstance(status := failure.members.get("status"), int):
                event[attribute.http_response_status_code] = status
            span.add_event(events.retry, event)
            _log.warning("%s; trying again in %.1f s", failure.detail, delay_s)
            self._on_retry(delay_s)
            if self._wait(delay_s):
                raise Unavailable(failure.code, f"{failure.detail}; stopped before the next attempt; {unknown}")
            with self._lock:
                self.retries += 1
            span.set_attribute(attribute.http_request_resend_count, attempt)
        raise AssertionError  # count() has no end

    def _attempt(self, span: Span, url: httpx.URL, headers: Mapping[str, str], batch: Batch) -> Receipt:
        """Sends one request. Raises `Unavailable` for failures that a retry can overcome."""
        try:
            response = self._http.post(url, content=batch.body, headers=headers)
        except httpx.RequestError as error:
            raise client.unreachable(error, url) from error
        status = response.status_code
        span.set_attribute(attribute.http_response_status_code, status)
        if status == httpx.codes.ACCEPTED:
            return _receipt(response, batch, trace_id_hex(span) if span.get_span_context().is_valid else None)
        if not response.is_error:
            raise Misconfigured(f"{url} answers {status}, which the ingestion API never does: check BRONZE_API_URL")
        raise client.failure(response, batch.place)


def file_name(file: str) -> str:
    """The name of a file, without its directory, encoded for a header."""
    return request_headers.encode(display_name(Path(file).name))


def _receipt(response: httpx.Response, batch: Batch, trace_id: str | None) -> Receipt:
    """Reads a 202. A repeated one is recognized by its trace id, which is that of the request accepted first."""
    try:
        receipt = msgspec.json.decode(response.content, type=Receipt)
    except msgspec.DecodeError as error:
        raise Misconfigured(
            f"{response.url} answers 202, but the content is not an answer of the ingestion API: {error}. "
            "Check BRONZE_API_URL"
        ) from error
    if receipt.records + receipt.rejected != batch.records:
        raise Misconfigured(
            f"{response.url} reports {receipt.records} accepted and {receipt.rejected} rejected records of the "
            f"{batch.records} that were sent: check BRONZE_API_URL"
        )
    return msgspec.structs.replace(receipt, again=trace_id not in {None, receipt.trace_id})
