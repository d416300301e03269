"""`POST /v1/ingest/{source}`: one submission, accepted or refused as a whole."""

import datetime as dt
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute

from bronze.api import problems
from bronze.api.authentication import require_ingest
from bronze.api.body import BodyReader
from bronze.api.ingest import Ingest, SubmissionHead
from bronze.api.models import SubmissionAccepted, status_url
from bronze.api.openapi_security import writing
from bronze.api.routes.sources import declared
from bronze.api.submit_telemetry import SubmissionTelemetry
from bronze.api.undeclared_counts import UndeclaredCounts
from bronze.errors import Refusal, Refused
from bronze.protocol import request_headers
from bronze.protocol.message import FILE_NAME_CHARS_MAX
from bronze.protocol.principals import Caller
from bronze.records.media import JSON, NDJSON, ColumnarType
from bronze.records.sources import CANARY, CLASSIFICATION_ID_CHARS_MAX, Source, without_canary
from bronze.telemetry.context import traceparent
from bronze.telemetry.sdk import Telemetry

PATH = "/v1/ingest/{source}"
#: A route of its own, so that the server's metrics, which have no source, tell the canary from the senders of data.
CANARY_PATH = PATH.format(source=CANARY)
KEY_CHARS_MAX = 255
#: The values of `?on_invalid=`.
REFUSE = "refuse"
QUARANTINE = "quarantine"


def _header(name: str, description: str) -> Mapping[str, Any]:
    return {"name": name, "in": "header", "description": description, "schema": {"type": "string", "minLength": 1}}


def _openapi(sources: Mapping[str, Source]) -> dict[str, Any]:
    """The parameters and the body of a submission.

    As parameters of the handler, FastAPI would parse them, which costs a tenth of a request's time.
    """
    return {
        "parameters": [
            {
                "name": "source",
                "in": "path",
                "required": True,
                "schema": {"type": "string", "enum": [*without_canary(sources)]},
            },
            _header(
                request_headers.IDEMPOTENCY_KEY,
                "A retry with the same key and body gets the same 202; nothing is stored twice.",
            ),
            _header(
                request_headers.CLASSIFICATION_ID,
                "The `classification_id` of records that do not contain one; percent-encoded UTF-8.",
            ),
            _header(
                request_headers.FILE_NAME,
                "The name of the client's own file, stored as `_origin`; percent-encoded UTF-8.",
            ),
            {
                "name": "on_invalid",
                "in": "query",
                "description": "How to handle a JSON record that does not fit the source: `refuse` refuses the "
                "submission; `quarantine` keeps the record byte for byte in quarantine and accepts the others.",
                "schema": {"type": "string", "enum": [REFUSE, QUARANTINE], "default": REFUSE},
            },
        ],
        "requestBody": {
            "required": True,
            "content": {
                NDJSON: {
                    "schema": {"type": "string"},
                    "example": '{"vehicle_id": "N14228", "manufacturer": "BOEING", "seats": 149}\n'
                    '{"vehicle_id": "N24211", "manufacturer": "BOEING", "seats": 149}\n',
                },
                JSON: {
                    "schema": {"oneOf": [{"type": "object"}, {"type": "array", "items": {"type": "object"}}]},
                    "example": [{"vehicle_id": "N14228", "manufacturer": "BOEING", "seats": 149}],
                },
                **{
                    str(media_type): {"schema": {"type": "string", "contentMediaType": str(media_type)}}
                    for media_type in ColumnarType
                },
            },
        },
    }


def add(
    app: FastAPI,
    sources: Mapping[str, Source],
    bodies: BodyReader,
    ingest: Ingest,
    undeclared: UndeclaredCounts,
    telemetry: Telemetry,
) -> None:
    """Add the route that accepts submissions for these sources."""

    async def submit(request: Request) -> Response:
        name = request.path_params.get("source", CANARY)
        submission = SubmissionTelemetry(telemetry, name if name in sources else None)
        with submission.refusals_counted():
            source = declared(sources, name)
            head = _head(request, require_ingest(request, name))
            checked = await bodies.read(
                source,
                request.headers.get("content-type", "").partition(";")[0].strip().lower(),
                _content_encoding(request),
                request.receive,
                submission,
                keep_invalid=_keep_invalid(request),
            )
            try:
                accepted = await ingest.submit(source, head, checked, submission)
                undeclared.add(name, checked.undeclared)
            finally:
                checked.close()
        return Response(
            SubmissionAccepted.of(accepted).model_dump_json(),
            status_code=202,
            media_type=JSON,
            headers={"Location": status_url(accepted.submission_id), "traceresponse": traceparent()},
        )

    add_route = partial(
        app.router.add_api_route, endpoint=submit, methods=["POST"], status_code=202, route_class_override=_Route
    )
    add_route(
        PATH,
        summary="Send one submission",
        responses={
            202: {"model": SubmissionAccepted},
            **problems.responses(400, 401, 403, 404, 409, 413, 415, 422, 429, 503),
        },
        openapi_extra={**_openapi(sources), **writing("ingest:{source}")},
    )
    add_route(CANARY_PATH, include_in_schema=False)


class _Route(APIRoute):
    """A route whose handler takes the request and returns the response. FastAPI has nothing to parse for it, and only
    describes it.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler


def _head(request: Request, caller: Caller) -> SubmissionHead:
    """The headers and query parameters of a submission. Raises `Refused`."""
    return SubmissionHead(
        caller=caller,
        received_at=dt.datetime.now(dt.UTC),
        key=_key(request),
        classification_id=_text(request, request_headers.CLASSIFICATION_ID, CLASSIFICATION_ID_CHARS_MAX),
        file_name=_text(request, request_headers.FILE_NAME, FILE_NAME_CHARS_MAX),
    )


def _content_encoding(request: Request) -> str:
    given = ", ".join(request.headers.getlist("content-encoding")).strip().lower()
    return {"": "identity", "x-gzip": "gzip"}.get(given, given)  # RFC 9110, 8.4.1.3


def _key(request: Request) -> str | None:
    key = _single(request_headers.IDEMPOTENCY_KEY, request.headers.getlist(request_headers.IDEMPOTENCY_KEY))
    if key is not None and (not key.strip() or len(key) > KEY_CHARS_MAX):
        raise Refused(
            Refusal.INVALID_HEADER,
            f"Idempotency-Key must have 1 to {KEY_CHARS_MAX} characters. Use a new UUID for each submission.",
            header=request_headers.IDEMPOTENCY_KEY,
        )
    return key


def _text(request: Request, header: str, chars_max: int) -> str | None:
    """The value of a `Bronze-` header (percent-encoded UTF-8), or else of its query parameter."""
    query = header.removeprefix("Bronze-").replace("-", "_").lower()
    raw = _single(header, request.headers.getlist(header))
    try:
        value = request_headers.decode(raw) if raw is not None else _single(header, _query_values(request, query))
    except UnicodeError as error:
        raise Refused(
            Refusal.INVALID_HEADER, f"{header} (or ?{query}=) must be percent-encoded UTF-8: {error}.", header=header
        ) from error
    if value is not None and not 1 <= len(value) <= chars_max:
        raise Refused(
            Refusal.INVALID_HEADER, f"{header} (or ?{query}=) must have 1 to {chars_max} characters.", header=header
        )
    return value


def _single(header: str, values: Sequence[str]) -> str | None:
    """The value that was given. Raises `Refused` if there are several: a proxy may have added its own."""
    if len({*values}) > 1:
        raise Refused(Refusal.INVALID_HEADER, f"{header} has several values. Send one.", header=header)
    return values[0] if values else None


def _query_values(request: Request, name: str) -> list[str]:
    """As `request.query_params`, which replaces what is not UTF-8."""
    if not request.scope["query_string"]:
        return []
    pairs = (part.partition("=") for part in request.url.query.replace("+", " ").split("&"))
    return [request_headers.decode(value) for key, _, value in pairs if request_headers.decode(key) == name]


def _keep_invalid(request: Request) -> bool:
    """Whether records that do not fit the source go to quarantine instead of refusing the submission."""
    value = request.query_params.get("on_invalid", REFUSE)
    if value not in {REFUSE, QUARANTINE}:
        raise Refused(
            Refusal.INVALID_HEADER,
            f"?on_invalid={value} is not valid. Use {REFUSE} (the default) or {QUARANTINE}.",
            header="on_invalid",
        )
    return value == QUARANTINE
