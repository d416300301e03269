"""The context in which the API runs each request."""

from contextvars import ContextVar
from typing import Any

from starlette.types import Receive, Scope, Send

from bronze.api.request_context import OwnContext

TRACE: ContextVar[str] = ContextVar("trace", default="none")


async def test_a_request_does_not_inherit_the_context_of_another() -> None:
    """Not even if both run in one task: uvicorn may read the next request from within a request's task."""
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(TRACE.get())
        TRACE.set("the request before")

    async def nothing(*_: Any) -> Any:
        return None

    own = OwnContext(app)
    await own({"type": "http"}, nothing, nothing)
    await own({"type": "http"}, nothing, nothing)
    assert seen == ["none", "none"]
