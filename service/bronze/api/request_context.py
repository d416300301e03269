"""A separate context per request, so that requests do not share a trace."""

import asyncio
from contextvars import Context

from starlette.types import ASGIApp, Receive, Scope, Send


class OwnContext:
    """Runs each request in its own context.

    On asyncio's own event loop, uvicorn reads the next request of a connection from within the task of a request with
    a large body. The next request would then begin in the context, and so in the trace, of the request before.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.get_running_loop().create_task(self._run(scope, receive, send), context=Context())

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
