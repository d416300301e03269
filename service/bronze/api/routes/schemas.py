"""`/schemas/{version}/{name}`: the schemas of what Bronze sends to others, which its events name by their address."""

import importlib.resources

from fastapi import FastAPI, Response

from bronze.errors import Refusal, Refused

MEDIA_TYPE = "application/schema+json"
_FILES = {f"1-0-0/{name}": name for name in ("BronzeWriteRunFacet.json", "BronzeCommitRunFacet.json")}


def add(app: FastAPI) -> None:
    """Add the route of the schemas."""

    @app.get("/schemas/{version}/{name}", include_in_schema=False)
    async def show(version: str, name: str) -> Response:
        file = _FILES.get(f"{version}/{name}")
        if file is None:
            raise Refused(Refusal.NOT_FOUND, f"There is no schema {name!r} of version {version!r}.")
        text = (importlib.resources.files("bronze.api") / "schemas" / file).read_text(encoding="utf-8")
        return Response(text, media_type=MEDIA_TYPE)
