"""`/livez`, `/readyz` and `/metrics`: for supervisors, load balancers and scrapes."""

import asyncio

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from bronze.api import problems
from bronze.api.authentication import require_read_every
from bronze.api.openapi_security import reading
from bronze.api.readiness import Readiness
from bronze.telemetry.sdk import Telemetry


def add(app: FastAPI, readiness: Readiness, telemetry: Telemetry, *, has_metrics: bool) -> None:
    """Add the routes that report the state of this process."""

    @app.get("/livez", summary="Whether the process runs")
    async def livez() -> dict[str, str]:
        return telemetry.alive()

    @app.get("/readyz", summary="Whether the API can accept submissions", responses={503: {"description": "It cannot"}})
    async def readyz() -> JSONResponse:
        ready, body = await readiness.check()
        return JSONResponse(body, status_code=200 if ready else 503)

    if not has_metrics:
        return

    @app.get(
        "/metrics",
        summary="This process's metrics, in Prometheus' text format",
        response_class=PlainTextResponse,
        responses=problems.responses(401, 403, 429),
        openapi_extra=reading("read:*"),
    )
    async def metrics(request: Request) -> Response:
        require_read_every(request)
        body, content_type = await asyncio.to_thread(telemetry.metrics)
        return Response(body, media_type=content_type)
