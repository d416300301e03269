"""Who sends a request, and what that allows.

Each request except the probes needs an API key (if `BRONZE_AUTH` is `keys`), also one of a route that checks nothing
else; the routes check the scopes.
"""

import base64
import binascii

from fastapi import Request
from opentelemetry.trace import get_current_span
from starlette.types import ASGIApp, Receive, Scope, Send

from bronze.api import problems
from bronze.api.audit import CALLER, AuditLog
from bronze.api.key_ring import KeyRing, unauthenticated
from bronze.errors import Refusal, Refused
from bronze.protocol.principals import OPEN, Caller
from bronze.telemetry.signals import attribute

#: Supervisors and load balancers have no keys.
PROBES = frozenset({"/livez", "/readyz"})
_NOBODY = Caller(principal="", namespace="", key_id="")
_BEARER = b"bearer "
_BASIC = b"basic "


class Authentication:
    """Finds the caller of each request, or answers with 401. Without `keys`, everybody may do everything."""

    def __init__(self, app: ASGIApp, keys: KeyRing | None, audit: AuditLog) -> None:
        self._app = app
        self._keys = keys
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                scope[CALLER] = self._caller(scope)
            except Refused as error:
                self._audit.refused(scope, error)
                await problems.refusal(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _caller(self, scope: Scope) -> Caller:
        if self._keys is None:
            return OPEN
        if scope["path"] in PROBES:
            return _NOBODY
        caller = self._keys.find(_key(scope))
        get_current_span().set_attribute(attribute.enduser_id, caller.principal)
        return caller


def _key(scope: Scope) -> str:
    """The key in the header `Authorization`: as bearer token, or as the password that a browser asks for.

    Browsers send such a password with requests that other sites cause: it is for reading only. Raises `Refused`.
    """
    values: list[bytes] = [value for name, value in scope["headers"] if name == b"authorization"]
    if not values:
        raise unauthenticated("Send an API key: in the header Authorization, as Bearer token.")
    scheme = values[0][:7].lower()
    try:
        if len(values) == 1 and scheme == _BEARER:
            return values[0][7:].strip().decode("ascii")
        if len(values) == 1 and scheme.startswith(_BASIC) and scope["method"] in {"GET", "HEAD"}:
            _, _, password = base64.b64decode(values[0][6:].strip(), validate=True).partition(b":")
            return password.decode("ascii")
    except (UnicodeDecodeError, binascii.Error):
        pass
    raise unauthenticated("The header Authorization is not valid: send it once, with an API key as Bearer token.")


def caller(request: Request) -> Caller:
    """The caller of a request."""
    found: Caller = request.scope[CALLER]
    return found


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
    return Refused(
        Refusal.FORBIDDEN,
        f"The API key {found.key_id} of {found.principal} does not allow this: it needs the scope {scope}.",
        scope=scope,
    )
