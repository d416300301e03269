"""What the API declares is what files are read by."""

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
WHOLE = httpx.Response(200, text=source_schema.described(OWN["readings"]).model_dump_json())


def asking(*answers: httpx.Response | Exception, waits: list[float] | None = None) -> tuple[RemoteSource, list[str]]:
    """One that asks an API which answers so, and the paths that it was asked for."""
    script, asked = list(answers), list[str]()

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        step = script.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    def wait(delay_s: float) -> bool:
        (waits if waits is not None else []).append(delay_s)
        return False

    http = httpx.Client(base_url="http://api/bronze", transport=httpx.MockTransport(answer))
    return RemoteSource(http, "readings", retry_for_s=60, wait=wait), asked


def test_the_source_is_the_one_that_the_api_declares() -> None:
    """Whole, with its decimals; asked once, whoever asks."""
    ask, asked = asking(WHOLE)
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ask() == OWN["readings"]
    assert asked == ["/bronze/v1/sources/readings/schema"]


def test_an_api_that_is_away_is_waited_for() -> None:
    """As for a submission: within its patience, as it wishes."""
    waits: list[float] = []
    ask, _ = asking(httpx.ConnectError("no"), httpx.Response(503, headers={"Retry-After": "7"}), WHOLE, waits=waits)
    assert ask() == OWN["readings"]
    assert waits[1] == 7
    ask, _ = asking(*[httpx.Response(503, headers={"Retry-After": "25"})] * 9)
    with pytest.raises(Unavailable, match="503"):
        ask()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (
            lambda: httpx.Response(404, json={"type": "/problems/unknown-source", "detail": "There is no source."}),
            Refused,
        ),
        (lambda: httpx.Response(200, text="<html>"), Misconfigured),
        (lambda: httpx.Response(200, json={"description": "", "version": 1, "fields": []}), Misconfigured),
        (lambda: httpx.Response(200, json={"description": "", "version": 1, "fields": [{"name": "a"}]}), Misconfigured),
    ],
)
def test_what_declares_nothing(answer: Callable[[], httpx.Response], error: type[Exception]) -> None:
    """An unknown source is the API's to name; anything else is no ingestion API."""
    ask, _ = asking(answer())
    with pytest.raises(error):
        ask()
