"""What the API checks of each request before any route, and what its pages that FastAPI makes allow a browser."""

import base64
import hashlib
import ipaddress
import re
from collections.abc import Callable

from fastapi import Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bronze.api.problems import outside_of_app
from bronze.errors import ErrorCode, Refusal
from bronze.settings import Settings

#: Any name.
ANY = "*"
#: FastAPI's pages, which load scripts and styles from the API itself, and have one script of their own.
DOCS = {"/docs", "/docs/oauth2-redirect", "/redoc"}
_SCRIPT = re.compile(rb"<script[^>]*>(.+?)</script>", re.DOTALL)


class Guard:
    """Refuses requests under a name that is not the API's, and adds a policy to FastAPI's pages.

    A page of another site can send requests to an API on the same machine: its name then resolves to the loopback
    address (DNS rebinding), and the browser takes the API for a part of that site. The `Host` still has its name.
    """

    def __init__(self, app: ASGIApp, settings: Settings, on_refused: Callable[[ErrorCode], None]) -> None:
        self._app = app
        self._on_refused = on_refused
        names = {name.strip().lower() for name in settings.hosts.split(",") if name.strip()}
        if not names and not _is_loopback(settings.api_host):
            names = {ANY}
        self._any = ANY in names
        self._names = names | {"localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host")
            if not self._any and host is not None and not self._is_known(host):
                self._on_refused(Refusal.UNKNOWN_HOST)
                await _refuse(host)(scope, receive, send)
                return
            if scope["method"] == "HEAD":
                scope = {**scope, "method": "GET"}  # the server leaves the content out (RFC 9110, 9.3.2)
            if scope["path"] in DOCS:
                await self._app(scope, receive, _WithPolicy(send))
                return
        await self._app(scope, receive, send)

    def _is_known(self, host: str) -> bool:
        name = re.sub(r":\d*$", "", host).lower()
        return name in self._names or _is_address(name)


class _WithPolicy:
    """Sends a page with a policy that allows its own script, by its hash."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        if self._start is not None:
            start, self._start = self._start, None
            MutableHeaders(scope=start)["Content-Security-Policy"] = _policy(message.get("body", b""))
            await self._send(start)
        await self._send(message)


def _policy(html: bytes) -> str:
    hashes = (base64.b64encode(hashlib.sha256(script).digest()).decode() for script in _SCRIPT.findall(html))
    scripts = " ".join(["'self'", *(f"'sha256-{digest}'" for digest in hashes)])
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "font-src 'self' data:; connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def _refuse(host: str) -> Response:
    detail = (
        f"The API is not called {host[:100]!r}. Use its address, or add the name to the API's setting BRONZE_HOSTS."
    )
    return outside_of_app(Refusal.UNKNOWN_HOST, detail, setting="BRONZE_HOSTS")


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host.strip("[]")).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
