"""The names under which the API is called, the policy of FastAPI's pages, and what errors tell about servers."""

import base64
import hashlib
import re
from typing import Any

import httpx
import pytest
from fastapi_offline import FastAPIOffline
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bronze.api.guard import DOCS, Guard
from bronze.api.problems import without_addresses
from bronze.settings import Settings


async def get(path: str, host: str, **settings: Any) -> httpx.Response:
    """The answer; a refusal is counted."""
    refused: list[str] = []
    app = FastAPIOffline()

    @app.get("/")
    async def root() -> str:
        return "ok"

    transport = httpx.ASGITransport(Guard(app, Settings(**settings), refused.append))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        answer = await client.get(path, headers={"Host": host})
    assert refused == ([] if answer.is_success else ["unknown-host"])
    return answer


async def test_head_is_answered_like_get() -> None:
    """Load balancers ask so. The HTTP server leaves the content out."""
    methods = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        methods.append(scope["method"])
        await Response("ok")(scope, receive, send)

    refused: list[str] = []
    transport = httpx.ASGITransport(Guard(app, Settings(), refused.append))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        assert (await client.head("/")).status_code == 200
    assert methods == ["GET"]


@pytest.mark.parametrize(
    ("host", "settings", "known"),
    [
        ("127.0.0.1:8000", {}, True),
        ("localhost", {}, True),
        ("LocalHost:8000", {}, True),
        ("[::1]:8000", {}, True),
        ("192.0.2.1", {}, True),
        ("rebound.example", {}, False),
        ("rebound.example:8000", {}, False),
        ("localhost.rebound.example", {}, False),
        ("", {}, False),
        ("rebound.example", {"api_host": "0.0.0.0"}, True),
        ("rebound.example", {"api_host": "0.0.0.0", "hosts": "bronze.example"}, False),
        ("Bronze.Example:443", {"hosts": "other.example, bronze.example"}, True),
        ("rebound.example", {"hosts": "*"}, True),
        ("rebound.example", {"api_host": "::1"}, False),
    ],
)
async def test_the_api_answers_under_its_own_names_only(host: str, settings: dict[str, str], *, known: bool) -> None:
    """On a loopback address, a name that is not in the settings is another site's, which rebinds it."""
    answer = await get("/", host, **settings)
    if known:
        assert answer.status_code == 200
    else:
        problem = answer.json()
        assert (answer.status_code, problem["type"]) == (421, "/problems/unknown-host")
        assert problem["setting"] == "BRONZE_HOSTS"


@pytest.mark.parametrize("path", sorted(DOCS))
async def test_fastapis_pages_run_their_own_script_only(path: str) -> None:
    answer = await get(path, "localhost")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    allowed = re.search("script-src ([^;]*)", policy)
    assert allowed
    assert "unsafe-inline" not in allowed[1]
    for script in re.findall("<script[^>]*>(.+?)</script>", answer.text, re.DOTALL):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in allowed[1]
    for source in re.findall(r"""(?:src|href)=["']([^"']+)""", answer.text):
        assert source.startswith(("/", "data:")), source


@pytest.mark.parametrize(
    ("detail", "public"),
    [
        (
            'Could not connect to the endpoint URL: "http://10.0.0.7:8333/bronze?list-type=2". Try again.',
            'Could not connect to the endpoint URL: "(address)". Try again.',
        ),
        ("Prometheus does not answer (https://prometheus.internal/)", "Prometheus does not answer ((address))"),
        ("cannot connect to nats.internal:4222 or [fd00::1]:4222", "cannot connect to (address) or (address)"),
        ("Record 3: Expected `int`. Nothing was stored.", "Record 3: Expected `int`. Nothing was stored."),
    ],
)
def test_errors_do_not_tell_addresses(detail: str, public: str) -> None:
    assert without_addresses(detail) == public
