"""What a source's fields are, as the API that takes its records declares them."""

import logging
import random
import threading
import urllib.parse
from collections.abc import Callable
from itertools import count

import httpx
import msgspec

from bronze.client import failure, unreachable
from bronze.errors import Misconfigured, Unavailable
from bronze.publisher.sending import back_off_s
from bronze.records import sources
from bronze.records.sources import Source

_log = logging.getLogger(__name__)


class _Answer(msgspec.Struct):
    """What of the answer declares a source; it is the declaration itself."""

    description: str
    version: int
    fields: list[dict[str, object]]


class RemoteSource:
    """The source as the API has it: asked when it is needed first, and then known.

    `wait` waits so many seconds and says whether to stop. Without patience, `retry_for_s`, it is asked once.
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
        self._asking = threading.Lock()
        self._known: Source | None = None

    def __call__(self) -> Source:
        """Raises `Refused` if the API knows no such source, `Unavailable`, and `Misconfigured` if what answers is no
        ingestion API.
        """
        with self._asking:
            if self._known is None:
                self._known = self._until_answered()
            return self._known

    def _until_answered(self) -> Source:
        spent_s, jitter = 0.0, random.Random()  # noqa: S311  it spreads publishers, it hides nothing
        for attempt in count(1):
            try:
                return self._ask()
            except Unavailable as error:
                delay_s = max(back_off_s(attempt, jitter), error.retry_after_s)
                spent_s += delay_s
                if spent_s > self._retry_for_s:
                    raise
                _log.warning("%s; asked again in %.1f s", error.detail, delay_s)
                if self._wait(delay_s):
                    raise
        raise AssertionError  # count() has no end

    def _ask(self) -> Source:
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
            raise Misconfigured(f"{url} does not answer as the ingestion API does: {error}") from error
