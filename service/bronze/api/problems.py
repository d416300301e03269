"""Problem documents (RFC 9457): the bodies of all error responses."""

import logging
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from opentelemetry.trace import Status, StatusCode, get_current_span
from starlette.exceptions import HTTPException
from starlette.types import Scope

from bronze.api.audit import AuditLog
from bronze.api.login_page import LoginPage, requested_path, wants_page
from bronze.api.models import Problem
from bronze.api.sessions import cookie_of
from bronze.errors import ErrorCode, Fault, Gone, Outage, Refusal, Refused, Unavailable
from bronze.telemetry.context import trace_id_hex, traceparent

log = logging.getLogger(__name__)

PROBLEM = "application/problem+json"


#: An address with its scheme, or a host with its port.
_ADDRESS = re.compile(r"""[a-z][a-z0-9+.-]*://[^\s"')]+|(?:\[[0-9a-f:]+\]|[a-z0-9_.-]+):\d{2,5}\b""", re.IGNORECASE)


def without_addresses(detail: str) -> str:
    """The text of an error for people who need not know where Bronze's servers are; the log has the addresses."""
    return _ADDRESS.sub("(address)", detail)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem responses of a route, for the OpenAPI document."""
    return {status: {"model": Problem, "content": {PROBLEM: {}}} for status in statuses}


def document(status: int, code: str, detail: str, members: Mapping[str, object]) -> dict[str, object]:
    """A problem document, without the id of a trace."""
    return {
        "type": f"/problems/{code}",
        "title": code.replace("-", " ").capitalize(),
        "status": status,
        "detail": detail,
        **members,
    }


def outside_of_app(code: ErrorCode, detail: str, **members: object) -> JSONResponse:
    """The answer to a request that the app does not answer, so that it has no trace. The connection is closed."""
    retry = {"Retry-After": "1"} if isinstance(code, Outage) else {}
    body = document(code.status, code, detail, members)
    return JSONResponse(body, code.status, media_type=PROBLEM, headers={"Connection": "close", **retry})


def refusal(error: Refused) -> Response:
    """The answer to a request that its sender has to correct."""
    return _problem(error.status, error.code, error.detail, error.members, _challenge(error))


def denial(scope: Scope, error: Refused, login: LoginPage) -> Response:
    """The answer to a request without an identity that allows it: a browser gets the page with which it logs in."""
    if not wants_page(scope):
        return refusal(error)
    page = login.show(error.status, requested_path(scope), error.detail if cookie_of(scope) else "")
    page.headers.update({**_challenge(error), "traceresponse": traceparent()})
    return page


def too_fast(error: Unavailable) -> Response:
    """The answer to a request of a principal that sends faster than it may."""
    return _problem(error.code.status, error.code, error.detail, error.members, _retry_after(error))


def _retry_after(error: Unavailable) -> Mapping[str, str]:
    return {"Retry-After": str(error.retry_after_s)}


def _challenge(error: Refused) -> Mapping[str, str]:
    """How to authenticate (RFC 6750)."""
    match error.code:
        case Refusal.UNAUTHENTICATED:
            return {"WWW-Authenticate": 'Bearer realm="bronze"'}
        case Refusal.FORBIDDEN:
            scope = error.members["scope"]
            return {"WWW-Authenticate": f'Bearer realm="bronze", error="insufficient_scope", scope="{scope}"'}
        case _:
            return {}


def add_handlers(app: FastAPI, audit: AuditLog, on_gone: Callable[[Gone], None], login: LoginPage) -> None:
    """Answer each error with its problem document. `on_gone` is called if the queue or the catalog was replaced."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        if error.code is Refusal.FORBIDDEN:
            audit.refused(request.scope, error)
            return denial(request.scope, error, login)
        return refusal(error)

    @app.exception_handler(Unavailable)
    async def unavailable(_: Request, error: Unavailable) -> Response:
        get_current_span().set_status(Status(StatusCode.ERROR, error.detail))
        log.warning("503 %s: %s", error.code, error.detail)
        detail = without_addresses(error.detail)
        return _problem(error.code.status, error.code, detail, error.members, _retry_after(error))

    @app.exception_handler(Gone)
    async def gone(request: Request, error: Gone) -> Response:
        on_gone(error)  # the API ends; after its restart it uses the new stream
        detail = (
            "The queue or the catalog was replaced, and the API is restarting. Nothing was stored. Try again later."
        )
        return await unavailable(request, Unavailable(Outage.QUEUE_AWAY, detail))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        code = {404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "http")
        detail = f"{request.method} {request.url.path}: {error.detail}."
        return _problem(error.status_code, code, detail, {}, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        parameter = ".".join(str(part) for part in first["loc"])
        return _problem(422, "invalid-request", f"{parameter}: {first['msg']}.", {})

    @app.exception_handler(Exception)
    async def internal(_: Request, __: Exception) -> Response:
        detail = "Internal error. Search the logs for this trace_id."
        return _problem(Fault.INTERNAL.status, Fault.INTERNAL, detail, {})


def _problem(
    status: int,
    code: str,
    detail: str,
    members: Mapping[str, object],
    headers: Mapping[str, str] | None = None,
) -> Response:
    body = document(status, code, detail, {"trace_id": trace_id_hex(), **members})
    # after a 408, the rest of the body would be taken for the next request
    close = {"Connection": "close"} if status == HTTPStatus.REQUEST_TIMEOUT else {}
    return JSONResponse(
        body, status, media_type=PROBLEM, headers={**(headers or {}), **close, "traceresponse": traceparent()}
    )
