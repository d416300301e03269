"""`GET /v1/feed`: new objects, and removals, for programs that follow them."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request, Response
from pydantic import AwareDatetime, BeforeValidator

from bronze.api import problems
from bronze.api.authentication import caller_now, forbidden
from bronze.api.feed import HEADERS, LATEST, LIMIT, LIMIT_MAX, WAIT_S_MAX, FeedAnswer, Followers
from bronze.api.openapi_security import reading
from bronze.api.routes.sources import declared
from bronze.lineage.catalog_index import CatalogIndex, Sources
from bronze.protocol.principals import Caller
from bronze.records.sources import Source

EVENT_STREAM = "text/event-stream"
SOURCES_MAX = 64
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d(:\d\d(\.\d+)?)?([Zz]|[+-]\d\d:\d\d)")
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"model": FeedAnswer, "content": {EVENT_STREAM: {"schema": {"type": "string"}}}}
}


def _check_time(value: object) -> object:
    """Refuse what is no time with its zone, but a number of seconds, say, which pydantic takes for one."""
    if isinstance(value, str) and not _TIME.fullmatch(value):
        raise ValueError("it is not a time with its zone, such as 2026-11-29T10:00:00Z")
    return value


def add(app: FastAPI, known: Mapping[str, Source], index: CatalogIndex, followers: Followers) -> None:
    """Add the route of the feed."""

    @app.get(
        "/v1/feed",
        summary="New objects and removals after a cursor",
        description=f"With `Accept: {EVENT_STREAM}`, the events are a stream: each has its cursor as `id`.",
        responses=_STREAM | problems.responses(400, 401, 403, 404, 422, 429, 503),
        response_class=Response,
        openapi_extra=reading("read:{source}"),
    )
    async def feed(
        request: Request,
        after: Annotated[
            str, Query(description=f"The cursor of the last answer; `{LATEST}`; without it, from the beginning.")
        ] = "",
        source: Annotated[
            list[str], Query(max_length=SOURCES_MAX, description="Only the events of these sources.")
        ] = [],  # noqa: B006  FastAPI copies it
        limit: Annotated[int, Query(ge=1, le=LIMIT_MAX, description="Maximum number of events of an answer.")] = LIMIT,
        wait: Annotated[
            float, Query(ge=0, le=WAIT_S_MAX, description="How long to wait for the first event, in seconds.")
        ] = 0,
        since: Annotated[
            Annotated[AwareDatetime, BeforeValidator(_check_time)] | None,
            Query(description="Without objects whose submissions were all received before. Not for streams."),
        ] = None,
        accept: Annotated[str, Header(include_in_schema=False)] = "",
        last_event_id: Annotated[str, Header(description="The `id` of the last event, instead of `after`.")] = "",
    ) -> Response:
        wanted = frozenset(source)

        def access() -> Sources:
            return _readable(caller_now(request), wanted)

        access()
        for name in sorted(wanted):
            if not await index.has_source(name):
                declared(known, name)
        begin = last_event_id or after
        if EVENT_STREAM in accept:
            return await followers.stream(begin, access)
        body = await followers.poll(begin, access, limit, wait, since)
        return Response(body, media_type="application/json", headers=HEADERS)


def _readable(found: Caller, wanted: frozenset[str]) -> Sources:
    """The sources that a follower gets: those that it asks for, else all that it may read. Raises `Refused` (403)."""
    for name in sorted(wanted):
        if not found.may_read(name):
            raise forbidden(found, f"read:{name}")
    if not wanted and found.readable == frozenset():
        raise forbidden(found, "read:*")
    return wanted or found.readable
