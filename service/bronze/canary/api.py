"""The calls of the API: submissions by the publisher's sender, and look-ups."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar

import httpx
import msgspec

from bronze import client
from bronze.canary.checks import Accepted
from bronze.errors import Outage, Unavailable

By = Literal["submission_id", "trace_id", "classification_id", "file_path"]

_T = TypeVar("_T")


class ObjectLink(msgspec.Struct, frozen=True):
    file_path: str


class SubmissionStatus(msgspec.Struct, frozen=True):
    status: str
    objects: list[ObjectLink]


class LineageSubmission(msgspec.Struct, frozen=True):
    submission_id: str


class Lineage(msgspec.Struct, frozen=True):
    submissions: list[LineageSubmission]
    objects: list[ObjectLink]


class Api:
    """The API. `send` sends lines under a key, with retries, and blocks until the answer. Calls raise `Refused` or
    `Unavailable`.
    """

    def __init__(self, http: httpx.AsyncClient, send: Callable[[str, Sequence[bytes]], Accepted]) -> None:
        self._http = http
        self._send = send

    async def send(self, key: str, lines: Sequence[bytes]) -> Accepted:
        return await asyncio.to_thread(self._send, key, lines)

    async def status(self, submission_id: str) -> SubmissionStatus:
        return await self._get(f"v1/submissions/{submission_id}", {}, SubmissionStatus)

    async def lineage(self, by: By, value: str) -> Lineage:
        return await self._get("v1/lineage", {by: value}, Lineage)

    async def _get(self, path: str, query: Mapping[str, str], answer: type[_T]) -> _T:
        url = self._http.base_url.join(path)
        try:
            response = await self._http.get(url, params=dict(query))
        except httpx.RequestError as error:
            raise client.unreachable(error, url) from error
        if not response.is_success:
            raise client.failure(response, lambda _: str(url))
        try:
            return msgspec.json.decode(response.content, type=answer)
        except msgspec.DecodeError as error:
            raise Unavailable(Outage.UNAVAILABLE, f"{url} does not answer as the API does: {error}") from error
