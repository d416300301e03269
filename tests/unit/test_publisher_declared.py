"""The declaration of a source that the publisher reads from the API."""

import threading
from collections.abc import Callable

import httpx
import pytest

from bronze.api import source_schema
from bronze.errors import Misconfigured, Refused, Unavailable
from bronze.publisher.declared import RemoteSource
from bronze.records import sources

OWN = sources.parse(
    """
[readings]
description = "What a sensor measured."
version = 2
fields = [
    { name = "sensor_id", type = "string", required = true, description = "Which sensor." },
    { name = "value", type = "decimal128(12, 3)", description = "What it measured." },
    { name = "unit", type = "string", since = 2, description = "In what." },
]
""",
    "own.toml",
)
DECLARATION = httpx.Response(200, text=source_schema.described(OWN["readings"]).model_dump_json())


def remote_source(
    *answers: httpx.Response | Exception, waits: list[float] | None = None
) -> tuple[RemoteSource, list[str]]:
    """A remote source whose API gives these answers, and the paths of the requests to it."""
    script, paths = list(answers), list[str]()

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        step = script.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    def wait(delay_s: float) -> bool:
        (waits if waits is not None else []).append(delay_s)
        return False

    http = httpx.Client(base_url="http://api/bronze", transport=httpx.MockTransport(answer))
    return RemoteSource(http, "readings", retry_for_s=60, wait=wait), paths


def test_the_source_is_as_the_api_declares_it() -> None:
    """The declaration is complete, including decimals, and several threads request it once."""
    source, paths = remote_source(DECLARATION)
    threads = [threading.Thread(target=source) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert source() == OWN["readings"]
    assert paths == ["/bronze/v1/sources/readings/schema"]


def test_an_unavailable_api_is_waited_for() -> None:
    """As for a submission: for the time of retries, and as `Retry-After` says."""
    waits: list[float] = []
    unavailable: list[httpx.Response | Exception] = [
        httpx.ConnectError("no"),
        httpx.Response(503, headers={"Retry-After": "7"}),
    ]
    source, _ = remote_source(*unavailable, DECLARATION, waits=waits)
    assert source() == OWN["readings"]
    assert waits[1] == 7
    source, _ = remote_source(*[httpx.Response(503, headers={"Retry-After": "25"})] * 9)
    with pytest.raises(Unavailable, match="503"):
        source()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (
            lambda: httpx.Response(404, json={"type": "/problems/unknown-source", "detail": "There is no source."}),
            Refused,
        ),
        (lambda: httpx.Response(200, text="<html>"), Misconfigured),
        (lambda: httpx.Response(200, json={"description": "", "version": 1}), Misconfigured),
        (lambda: httpx.Response(200, json={"description": "", "version": 1, "fields": [{"name": "a"}]}), Misconfigured),
    ],
)
def test_answers_without_a_declaration(answer: Callable[[], httpx.Response], error: type[Exception]) -> None:
    """The API refuses an unknown source; any other answer is not that of an ingestion API."""
    source, _ = remote_source(answer())
    with pytest.raises(error):
        source()
