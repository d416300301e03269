"""What the clients send, and how answers are read, with retries; the clients do the waiting and the sending.

A call is a generator. It yields a request, and gets its response or the error instead of one; or it yields a number of
seconds to wait.
"""

import datetime as dt
import logging
import math
import random
import time
import urllib.parse
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol, TypeVar, runtime_checkable
from uuid import uuid4

import httpx
import msgspec
from opentelemetry.propagate import inject

from bronze.client.connection import failure, unreachable
from bronze.client.results import FeedPage, Status, Submission
from bronze.errors import Misconfigured, Outage, Refusal, Refused, Unavailable
from bronze.protocol import request_headers
from bronze.protocol.feed_event import FeedEvent, ObjectEvent, RemovalEvent
from bronze.records.media import NDJSON, ColumnarType
from bronze.records.sources import Source, source_from_table

_log = logging.getLogger(__name__)

T = TypeVar("T")
Call = Generator[httpx.Request | float, httpx.Response | httpx.RequestError | None, T]


@runtime_checkable
class ArrowData(Protocol):
    """A table of any library that speaks Arrow's PyCapsule interface, such as a frame of Polars or pandas."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


#: Records of a submission: objects, a body as bytes, or a table.
Records = Iterable[Mapping[str, Any]] | bytes | bytearray | memoryview | ArrowData

#: A time with its zone: RFC 3339, or a date, which is its beginning in UTC; or the same as an object.
Time = str | dt.date

BACK_OFF_S_FIRST = 0.5
BACK_OFF_S_MAX = 30.0
#: Retries within this time are not worth a word.
SILENT_S = 1.0
#: Between two looks at the status of a submission, at first and at most.
STATUS_S_FIRST = 0.1
STATUS_S_MAX = 2.0
#: How much longer the answer of a request may take that waits for events.
ANSWER_S = 15.0


@dataclass(frozen=True)
class Policy:
    """How long a call is tried again while nothing answers or the answer is temporary (429, 5xx)."""

    retry_for_s: float = 60.0
    clock: Callable[[], float] = time.monotonic
    jitter: random.Random = field(default_factory=random.Random)


def back_off_s(attempt: int, jitter: random.Random) -> float:
    """How long to wait after this number of attempts."""
    highest_s = min(BACK_OFF_S_MAX, BACK_OFF_S_FIRST * 2 ** min(attempt - 1, 16))
    return jitter.uniform(highest_s / 2, highest_s)


def moment(time: Time) -> dt.datetime:
    """The time. Raises `Refused`."""
    found = time
    for read in (dt.date.fromisoformat, dt.datetime.fromisoformat):
        if isinstance(found, str):
            with suppress(ValueError):
                found = read(found)
    if isinstance(found, dt.date) and not isinstance(found, dt.datetime):
        return dt.datetime.combine(found, dt.time(), dt.UTC)
    if isinstance(found, dt.datetime) and found.tzinfo is not None:
        return found
    raise Refused(
        Refusal.INVALID_QUERY,
        f"{str(time)!r} is not a time with its zone, such as 2026-11-29T10:00:00Z, nor a date, such as 2026-11-29",
    )


def check_range(since: Time | None, until: Time | None, since_name: str = "since", until_name: str = "until") -> None:
    """Raises `Refused` if no time is at `since` or later and before `until`."""
    if since is not None and until is not None and moment(since) >= moment(until):
        raise Refused(Refusal.INVALID_QUERY, f"{since_name} ({since}) has to be before {until_name} ({until})")


def _answered(request: httpx.Request, policy: Policy, what: str) -> Call[httpx.Response]:
    """The response to a request that may be repeated. Raises `Refused`, `Unavailable` or `Misconfigured`."""
    started_s = policy.clock()
    for attempt in count(1):
        reply = yield request
        if isinstance(reply, httpx.RequestError):
            error: Refused | Unavailable = unreachable(reply, request.url)
        elif reply is None:
            raise TypeError("a request was not sent")
        elif reply.is_success:
            return reply
        elif not reply.is_error:
            raise Misconfigured(
                f"{request.url} answers {reply.status_code}, which the API never does: check BRONZE_API_URL"
            )
        else:
            error = failure(reply, lambda record: what if record is None else f"{what}, record {record}")
        if isinstance(error, Refused):
            raise error
        delay_s = max(back_off_s(attempt, policy.jitter), error.retry_after_s)
        spent_s = policy.clock() - started_s
        if spent_s + delay_s > policy.retry_for_s:
            raise Unavailable(error.code, f"{error.detail}; gave up after {attempt} attempts in {spent_s:.0f} s")
        if spent_s + delay_s >= SILENT_S:
            _log.warning("%s; trying again in %.1f s, for %.0f s in all", error.detail, delay_s, policy.retry_for_s)
        yield delay_s
    raise AssertionError  # count() has no end


def _decoded(response: httpx.Response, answer: type[T]) -> T:
    try:
        return msgspec.json.decode(response.content, type=answer)
    except msgspec.DecodeError as error:
        raise Misconfigured(f"{response.url} does not answer as the API does: {error}. Check BRONZE_API_URL") from error


def submit(
    http: httpx.Client | httpx.AsyncClient,
    policy: Policy,
    source: str,
    records: Records,
    *,
    key: str | None,
    classification_id: str | None,
    file_name: str | None,
    on_invalid: str | None,
    media_type: str | None,
    traceparent: str | None,
) -> Call[Submission]:
    body, its_type = encode(records)
    headers = {
        "Content-Type": media_type or its_type,
        # without a key of the caller's, one for this call: its retries store nothing twice
        request_headers.IDEMPOTENCY_KEY: key or str(uuid4()),
    }
    if classification_id is not None:
        headers[request_headers.CLASSIFICATION_ID] = request_headers.encode(classification_id)
    if file_name is not None:
        headers[request_headers.FILE_NAME] = request_headers.encode(file_name)
    inject(headers)
    if traceparent is not None:
        headers["traceparent"] = traceparent
    request = http.build_request(
        "POST",
        f"v1/ingest/{urllib.parse.quote(source, safe='')}",
        content=body,
        headers=headers,
        params={"on_invalid": on_invalid} if on_invalid else None,
    )
    return _decoded((yield from _answered(request, policy, f"the submission to {source}")), Submission)


def encode(records: Records) -> tuple[bytes, str]:
    """The body of records, and its media type. Raises `TypeError` for what is none of `Records`."""
    if isinstance(records, bytes | bytearray | memoryview):
        return bytes(records), NDJSON
    if isinstance(records, ArrowData):
        return _arrow_stream(records), ColumnarType.ARROW_STREAM
    # a frame of columns is iterable, too: its items are their names
    if isinstance(records, str | Mapping) or not isinstance(records, Iterable) or hasattr(records, "columns"):
        raise TypeError(f"{type(records).__name__} is not what can be sent: {_RECORDS}")
    records = list(records)
    body = msgspec.json.Encoder().encode_lines(records)
    if b"null" in body:  # which is also what a number that JSON does not have becomes
        for number, record in enumerate(records):
            _check_finite(record, number, "")
    return body, NDJSON


def _check_finite(value: object, record: int, field: str) -> None:
    """Raises `Refused` for a float that JSON does not have."""
    match value:
        case float() if not math.isfinite(value):
            raise Refused(
                Refusal.SCHEMA_VIOLATION,
                f"Record {record}, field {field}: {value} is no number of JSON. Nothing was sent. Send None, or "
                "an Arrow table, whose columns of floats may have it.",
                record=record,
                field=field,
            )
        case Mapping():
            for name, member in value.items():
                _check_finite(member, record, field or str(name))
        case list() | tuple():
            for member in value:
                _check_finite(member, record, field)
        case _:
            pass


_RECORDS = (
    "give a list of dicts, a body as bytes, or a table with the Arrow PyCapsule interface, such as that of PyArrow, "
    "Polars or pandas 2.2 (of others: to_arrow(), pyarrow.Table.from_pandas(...))"
)


def _arrow_stream(data: ArrowData) -> bytes:
    import pyarrow as pa

    try:
        table = pa.table(data)
    except pa.ArrowInvalid as error:  # it has no columns
        raise TypeError(f"{type(data).__name__} is not what can be sent: {_RECORDS}") from error
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)
    return bytes(sink.getvalue())


def status(http: httpx.Client | httpx.AsyncClient, policy: Policy, submission_id: str) -> Call[Status]:
    request = http.build_request("GET", f"v1/submissions/{urllib.parse.quote(submission_id, safe='')}")
    return _decoded((yield from _answered(request, policy, f"the submission {submission_id}")), Status)


class _Declaration(msgspec.Struct, frozen=True):
    """The part of the API's answer that columns depend on."""

    description: str
    version: int
    fields: list[dict[str, Any]]
    event_time: str | None = None


def declared(http: httpx.Client | httpx.AsyncClient, policy: Policy, source: str) -> Call[Source]:
    request = http.build_request("GET", f"v1/sources/{urllib.parse.quote(source, safe='')}/schema")
    response = yield from _answered(request, policy, f"the source {source}")
    table = msgspec.to_builtins(_decoded(response, _Declaration))
    return source_from_table(
        source, {name: value for name, value in table.items() if value is not None}, str(request.url)
    )


def wait_until_stored(
    http: httpx.Client | httpx.AsyncClient, policy: Policy, submission_id: str, timeout_s: float
) -> Call[Status]:
    deadline_s = policy.clock() + timeout_s
    for attempt in count():
        found = yield from status(http, policy, submission_id)
        if found.status != "accepted":
            return found
        delay_s = min(STATUS_S_MAX, STATUS_S_FIRST * 2 ** min(attempt, 16))
        if policy.clock() + delay_s > deadline_s:
            raise Unavailable(Outage.TIMEOUT, f"the submission {submission_id} is not stored after {timeout_s:g} s")
        yield delay_s
    raise AssertionError


class _Page(msgspec.Struct, frozen=True):
    events: list[msgspec.Raw]
    cursor: str
    more: bool


class _Kind(msgspec.Struct, frozen=True):
    kind: str


_EVENTS: Mapping[str, type[FeedEvent]] = {"object": ObjectEvent, "removal": RemovalEvent}


def feed(
    http: httpx.Client | httpx.AsyncClient,
    policy: Policy,
    after: str,
    *,
    sources: Sequence[str],
    since: str | None,
    limit: int,
    wait_s: float,
) -> Call[FeedPage]:
    request = http.build_request(
        "GET",
        "v1/feed",
        params={
            "after": after,
            "source": list(sources),
            "limit": limit,
            "wait": wait_s,
            **({"since": since} if since else {}),
        },
        timeout=httpx.Timeout(wait_s + ANSWER_S, connect=5),
    )
    page = _decoded((yield from _answered(request, policy, "the feed")), _Page)
    events: list[FeedEvent] = []
    for raw in page.events:
        kind = _EVENTS.get(msgspec.json.decode(raw, type=_Kind).kind)
        if kind is not None:  # a newer API may have others
            events.append(msgspec.json.decode(raw, type=kind))
    return FeedPage(events, page.cursor, page.more)
