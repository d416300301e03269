"""The context in which the API runs each request."""

from contextvars import ContextVar
from typing import Any

from starlette.types import Receive, Scope, Send

from bronze.api.request_context import OwnContext

TRACE: ContextVar[str] = ContextVar("trace", default="none")


async def test_a_request_leaves_nothing_of_its_context_to_the_next() -> None:
    """Not even where both run in one task, as on a connection that uvicorn reads on from a request's own task."""
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
