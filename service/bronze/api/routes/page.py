"""`/`: the page for people without Grafana."""

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from bronze.api.page import Page


def add(app: FastAPI, page: Page) -> None:
    """Show the page."""

    @app.get("/", include_in_schema=False)
    async def show(q: str = "") -> HTMLResponse:
        shown = await page.show(q)
        return HTMLResponse(shown.html, shown.status, page.headers)
