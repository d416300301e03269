"""`/`: the page for people without Grafana."""

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse

from bronze.api.authentication import require_read_every
from bronze.api.page import Page
from bronze.api.sessions import cookie_of


def add(app: FastAPI, page: Page) -> None:
    """Add the route of the page."""

    @app.get("/", include_in_schema=False)
    async def show(request: Request, q: str = "", source: str = "") -> HTMLResponse:
        found = require_read_every(request)
        rendered = await page.show(q, found.principal if cookie_of(request.scope) else "", source)
        return HTMLResponse(rendered.html, rendered.status, page.headers)
