"""Who sends a request, what that allows, and whether it comes too fast.

Each request except the probes needs an API key or a token (if `BRONZE_AUTH` is `keys`), also one of a route that
checks nothing else; the routes check the scopes.
"""

from collections.abc import Callable
from functools import partial

from fastapi import Request
from opentelemetry.propagate import get_global_textmap
from opentelemetry.trace import get_current_span
from starlette.types import ASGIApp, Receive, Scope, Send

from bronze.api import problems
from bronze.api.audit import CALLER, AuditLog
from bronze.api.callers import Callers
from bronze.api.login_page import LOGIN_PATH, LOGOUT_PATH, LoginPage
from bronze.api.rates import RateLimiter
from bronze.errors import ErrorCode, Refusal, Refused, Unavailable
from bronze.protocol.principals import OPEN, Caller
from bronze.telemetry.context import extract, span_context
from bronze.telemetry.signals import attribute

#: Supervisors and load balancers have no keys.
PROBES = frozenset({"/livez", "/readyz"})
#: What needs no key; a browser without a session begins one.
OPEN_PATHS = PROBES | {LOGIN_PATH, LOGOUT_PATH}
#: The `traceparent` that is hidden from the instrumentation, in the ASGI scope.
FOREIGN_TRACE = "bronze.foreign_trace"
#: What requests are checked against, in the ASGI scope.
CALLERS = "bronze.callers"
_NOBODY = Caller(principal="", namespace="", key_id="")


class ForeignTraces:
    """Hides the trace context of clients whose traces the API does not continue; their trace becomes a link.

    It surrounds the instrumentation, which begins the span of a request. Else a client could decide that its requests
    are not traced, or that they belong to the trace of somebody else.
    """

    def __init__(self, app: ASGIApp, callers: Callers | None) -> None:
        self._app = app
        self._callers = callers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._callers is not None:
            fields = {field.lower().encode("latin-1") for field in get_global_textmap().fields}
            sent = [(name, value) for name, value in scope["headers"] if name in fields]
            if sent and not await self._may_trace(scope):
                scope["headers"] = [header for header in scope["headers"] if header[0] not in fields]
                scope[FOREIGN_TRACE] = dict(sent).get(b"traceparent", b"").decode("latin-1")
        await self._app(scope, receive, send)

    async def _may_trace(self, scope: Scope) -> bool:
        try:
            return (await _caller(self._callers, scope)).may_trace
        except Refused:
            return False


class Authentication:
    """Finds the caller of each request, or answers with 401; and with 429, if the caller sends too fast.

    Without `callers`, everybody may do everything, and all are one caller. `on_refused` is called for each such answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        callers: Callers | None,
        audit: AuditLog,
        rates: RateLimiter,
        login: LoginPage,
        on_refused: Callable[[ErrorCode], None],
    ) -> None:
        self._app = app
        self._callers = callers
        self._audit = audit
        self._rates = rates
        self._login = login
        self._on_refused = on_refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            _link(scope)
            scope[CALLERS] = self._callers
            try:
                scope[CALLER] = found = await _caller(self._callers, scope)
            except Refused as error:
                self._audit.refused(scope, error)
                self._on_refused(error.code)
                await problems.denial(scope, error, self._login)(scope, receive, send)
                return
            if found.principal:
                get_current_span().set_attribute(attribute.enduser_id, found.principal)
            if scope["path"] not in OPEN_PATHS and (rates := self._rates.of(found)):
                send = rates.reporting(send)
                try:
                    receive = rates.admit(receive)
                except Unavailable as error:
                    self._on_refused(error.code)
                    await problems.too_fast(error)(scope, receive, send)
                    return
        await self._app(scope, receive, send)


async def _caller(callers: Callers | None, scope: Scope) -> Caller:
    """The caller of a request, also with a key that was just created. Raises `Refused` (401)."""
    if callers is None:
        return OPEN
    if scope["path"] in OPEN_PATHS:
        return _NOBODY
    return await callers.keys.find_new(partial(callers.find, scope))


def _link(scope: Scope) -> None:
    """Link the request's span to the trace that the client named, if the API does not continue it."""
    if FOREIGN_TRACE in scope:
        foreign = span_context(extract({"traceparent": scope[FOREIGN_TRACE]}))
        if foreign.is_valid:
            get_current_span().add_link(foreign)


def caller(request: Request) -> Caller:
    """The caller of a request."""
    found: Caller = request.scope[CALLER]
    return found


def caller_now(request: Request) -> Caller:
    """The caller of a request that takes long, as the keys are now. Raises `Refused` (401)."""
    callers: Callers | None = request.scope[CALLERS]
    return callers.find(request.scope) if callers else OPEN


def require_ingest(request: Request, source: str) -> Caller:
    """The caller, who may send records of a source. Raises `Refused` (403)."""
    found = caller(request)
    if not found.may_ingest(source):
        raise forbidden(found, f"ingest:{source}")
    return found


def require_read(request: Request, source: str) -> Caller:
    """The caller, who may read the data of a source. Raises `Refused` (403)."""
    found = caller(request)
    if not found.may_read(source):
        raise forbidden(found, f"read:{source}")
    return found


def require_read_every(request: Request) -> Caller:
    """The caller, who may read the data of every source. Raises `Refused` (403)."""
    found = caller(request)
    if not found.may_read_every:
        raise forbidden(found, "read:*")
    return found


def forbidden(found: Caller, scope: str) -> Refused:
    credential = f"API key {found.key_id}" if found.key_id else "token"
    return Refused(
        Refusal.FORBIDDEN,
        f"The {credential} of {found.principal} does not allow this: it needs the scope {scope}.",
        scope=scope,
    )
