"""The declaration of a source, read from the API that the records are sent to."""

import logging
import random
import threading
import urllib.parse
from collections.abc import Callable
from itertools import count

import httpx
import msgspec

from bronze.client import failure, unreachable
from bronze.client.calls import back_off_s
from bronze.errors import Misconfigured, Unavailable
from bronze.records import sources
from bronze.records.sources import Source

_log = logging.getLogger(__name__)


class _Answer(msgspec.Struct):
    """The part of the API's answer that is the declaration of the source."""

    description: str
    version: int
    fields: list[dict[str, object]]
    strict: bool = False


class RemoteSource:
    """The source as the API declares it. The API is asked on the first call; later calls return the same declaration.

    `wait` waits for a number of seconds and returns whether to stop. With `retry_for_s` 0, there are no retries.
    """

    def __init__(
        self,
        http: httpx.Client,
        source: str,
        *,
        retry_for_s: float = 0,
        wait: Callable[[float], bool] = lambda _delay_s: True,
    ) -> None:
        self._http = http
        self._source = source
        self._retry_for_s = retry_for_s
        self._wait = wait
        self._lock = threading.Lock()
        self._declaration: Source | None = None

    def __call__(self) -> Source:
        """Raises `Refused` if the API has no such source, `Unavailable` if it does not answer, and `Misconfigured` if
        the answer is not that of the ingestion API.
        """
        with self._lock:
            if self._declaration is None:
                self._declaration = self._request_with_retries()
            return self._declaration

    def _request_with_retries(self) -> Source:
        waited_s, jitter = 0.0, random.Random()  # noqa: S311  only spreads retries; not for cryptography
        for attempt in count(1):
            try:
                return self._request()
            except Unavailable as error:
                delay_s = max(back_off_s(attempt, jitter), error.retry_after_s)
                waited_s += delay_s
                if waited_s > self._retry_for_s:
                    raise
                _log.warning("%s; trying again in %.1f s", error.detail, delay_s)
                if self._wait(delay_s):
                    raise
        raise AssertionError  # count() has no end

    def _request(self) -> Source:
        url = self._http.base_url.join(f"v1/sources/{urllib.parse.quote(self._source, safe='')}/schema")
        try:
            response = self._http.get(url)
        except httpx.RequestError as error:
            raise unreachable(error, url) from error
        if response.is_error:
            raise failure(response, lambda _record: f"source {self._source}")
        try:
            table = msgspec.json.decode(response.content, type=_Answer)
            return sources.source_from_table(self._source, msgspec.to_builtins(table), str(url))
        except (msgspec.DecodeError, Misconfigured) as error:
            raise Misconfigured(
                f"{url} does not answer as the ingestion API does: {error}. Check BRONZE_API_URL"
            ) from error
