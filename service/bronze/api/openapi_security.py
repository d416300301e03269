"""What the OpenAPI document says about who may send a request. The routes say which scope they need."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from bronze.api.sessions import SECURE_COOKIE

_BEARER, _SESSION = "bearer", "session"
_SECURITY = "security"
_SCHEMES: Mapping[str, Any] = {
    _BEARER: {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, or a token of the issuer. The scopes of an operation are those that it needs.",
    },
    _SESSION: {
        "type": "apiKey",
        "in": "cookie",
        "name": SECURE_COOKIE,
        "description": "The session of a browser, for reading only.",
    },
}


def reading(*scopes: str) -> dict[str, Any]:
    """Of a route that reads: what it needs, as `openapi_extra`."""
    return {_SECURITY: [{_BEARER: [*scopes]}, {_SESSION: [*scopes]}]}


def writing(*scopes: str) -> dict[str, Any]:
    """Of a route that writes: it cannot be used with a session."""
    return {_SECURITY: [{_BEARER: [*scopes]}]}


def describe_security(app: FastAPI, *, needs_keys: bool) -> None:
    """Add the schemes to the OpenAPI document; without keys, remove what the routes need."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = make()
            if needs_keys:
                document.setdefault("components", {})["securitySchemes"] = dict(_SCHEMES)
            else:
                for operations in document["paths"].values():
                    for operation in operations.values():
                        operation.pop(_SECURITY, None)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's way to change the document
