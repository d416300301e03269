"""`/login` and `/logout`: the session of a browser."""

import asyncio
from urllib.parse import parse_qs

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from bronze.api.audit import AuditLog
from bronze.api.login_page import LOGIN_PATH, LOGOUT_PATH, LoginPage, local_path
from bronze.api.sessions import Sessions, is_from_here
from bronze.errors import Refused

#: The size of the form, and the time within which it has to arrive.
FORM_BYTES_MAX = 8 * 2**10
FORM_S_MAX = 10.0
SEE_OTHER = 303


def add(app: FastAPI, sessions: Sessions, page: LoginPage, audit: AuditLog) -> None:
    """Add the routes of the session."""

    @app.get(LOGIN_PATH, include_in_schema=False)
    async def show() -> HTMLResponse:
        return page.show(200, "/")

    @app.post(LOGIN_PATH, include_in_schema=False)
    async def log_in(request: Request) -> Response:
        form = await _form(request)
        path = local_path(form.get("path", ""))
        if not is_from_here(request.scope):
            return page.show(403, path, "The form was sent by another site. Log in here.")
        try:
            found, headers = await sessions.begin(request.scope, form.get("key", "").strip())
        except Refused as error:
            audit.refused(request.scope, error)
            return page.show(error.status, path, error.detail)
        audit.logged_in(request.scope, found)
        return RedirectResponse(path, SEE_OTHER, {**headers, "Cache-Control": "no-store"})

    @app.post(LOGOUT_PATH, include_in_schema=False)
    async def log_out(request: Request) -> Response:
        if not is_from_here(request.scope):
            return page.show(403, "/", "The form was sent by another site.")
        return RedirectResponse(LOGIN_PATH, SEE_OTHER, {**sessions.end(request.scope), "Cache-Control": "no-store"})


async def _form(request: Request) -> dict[str, str]:
    """The fields of the form; none if it is not one, or is too large or too slow."""
    body = bytearray()
    try:
        async with asyncio.timeout(FORM_S_MAX):
            async for chunk in request.stream():
                body += chunk
                if len(body) > FORM_BYTES_MAX:
                    return {}
        fields = parse_qs(body.decode("ascii"), max_num_fields=8)
    except (TimeoutError, ValueError):
        return {}
    return {name: values[0] for name, values in fields.items()}
