"""`GET /v1/lineage`: the submissions and objects around an id or a path."""

from typing import Annotated

from fastapi import FastAPI, Query, Request

from bronze.api import problems
from bronze.api.authentication import caller
from bronze.api.openapi_security import reading
from bronze.errors import Refusal, Refused
from bronze.lineage.lookup import LIMIT, LIMIT_MAX, By, Lineage, LineageLookup


def add(app: FastAPI, lookups: LineageLookup) -> None:
    """Add the route that answers look-ups."""

    @app.get(
        "/v1/lineage",
        summary="The lineage of an id or a path: all submissions and objects that belong to it",
        responses=problems.responses(400, 401, 404, 410, 422, 429, 503),
        openapi_extra=reading("read:{source}"),
    )
    async def lineage(
        request: Request,
        id: Annotated[str | None, Query(description="An id of any of the four kinds.")] = None,  # noqa: A002 - its name
        classification_id: Annotated[str | None, Query(description="The id of a classification.")] = None,
        file_path: Annotated[str | None, Query(description="The key of an object.")] = None,
        submission_id: Annotated[str | None, Query(description="The id of a submission, from its 202.")] = None,
        trace_id: Annotated[str | None, Query(description="The trace of a request or of an upload.")] = None,
        limit: Annotated[
            int, Query(ge=1, le=LIMIT_MAX, description="Maximum number of submissions, and of objects.")
        ] = LIMIT,
    ) -> Lineage:
        by: dict[By, str | None] = {
            "classification_id": classification_id,
            "file_path": file_path,
            "submission_id": submission_id,
            "trace_id": trace_id,
        }
        given = [(kind, value) for kind, value in by.items() if value]
        if len(given) + bool(id) != 1:
            raise Refused(
                Refusal.INVALID_QUERY, f"Give exactly one of {', '.join(by)}; or id, which may be any of these."
            )
        sources = caller(request).readable
        return await (lookups.guess(id, limit, sources) if id else lookups.lineage(*given[0], limit, sources))
