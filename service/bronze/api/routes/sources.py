"""`GET /v1/sources`: the declared sources, and the schema of each. Lists leave out the canary's source."""

from collections.abc import Mapping

from fastapi import FastAPI

from bronze.api import problems, source_schema
from bronze.api.openapi_security import reading
from bronze.api.source_schema import DeclaredSources, SourceSchema
from bronze.errors import Refusal, Refused
from bronze.records.sources import Source, without_canary


def declared(sources: Mapping[str, Source], name: str) -> Source:
    """The source of that name. Raises `Refused` (404), with a list of the declared sources."""
    source = sources.get(name)
    if source is None:
        known = without_canary(sources)
        raise Refused(
            Refusal.UNKNOWN_SOURCE,
            f"There is no source {name!r}. The sources are: {', '.join(known)}.",
            sources=[*known],
        )
    return source


def add(app: FastAPI, sources: Mapping[str, Source]) -> None:
    """Add the routes that describe the declared sources."""

    @app.get(
        "/v1/sources", summary="The declared sources", responses=problems.responses(401, 429), openapi_extra=reading()
    )
    async def all_sources() -> DeclaredSources:
        return source_schema.listed(without_canary(sources).values())

    @app.get(
        "/v1/sources/{source}/schema",
        summary="The schema of a source",
        responses=problems.responses(401, 404, 429),
        response_model_exclude_none=True,  # an older `bronze publish` refuses properties that it does not know
        openapi_extra=reading(),
    )
    async def schema(source: str) -> SourceSchema:
        return source_schema.described(declared(sources, source))
