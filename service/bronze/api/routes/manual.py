"""`/runbook`, to which alerts link, and `/manual/{name}`: the pages of `docs/`."""

from typing import Annotated

from fastapi import FastAPI, Header, Response
from fastapi.responses import HTMLResponse

from bronze.api.layout import RUNBOOK_PATH
from bronze.api.manual import MANUAL_PATH, RUNBOOK, Manual


def add(app: FastAPI, manual: Manual) -> None:
    """Add the routes of the manual."""

    @app.get(MANUAL_PATH + "/{name}", include_in_schema=False)
    async def show(name: str, if_none_match: Annotated[str, Header()] = "") -> Response:
        page = await manual.show(name)
        headers = {**manual.headers, "ETag": page.etag}
        # a proxy that compresses the page makes the tag weak
        if page.etag in (tag.strip().removeprefix("W/") for tag in if_none_match.split(",")):
            return Response(status_code=304, headers=headers)
        return HTMLResponse(page.html, headers=headers)

    @app.get(RUNBOOK_PATH, include_in_schema=False)
    async def show_runbook(if_none_match: Annotated[str, Header()] = "") -> Response:
        return await show(RUNBOOK, if_none_match)
