"""Requests that do not share a context, and so no trace."""

import asyncio
from contextvars import Context

from starlette.types import ASGIApp, Receive, Scope, Send


class OwnContext:
    """Runs each request in a context of its own.

    On asyncio's own loop, uvicorn reads on from within the task of a request with a large body; the next request of
    that connection would begin in the context, and so in the trace, of the one before.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.get_running_loop().create_task(self._run(scope, receive, send), context=Context())

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
