"""What a source's fields are, as the API that takes its records declares them."""

import threading

import httpx

from bronze import sources
from bronze.sources import Source


class Declared:
    """Asked when it is needed first, and then known. None for a source that nobody declares here."""

    def __init__(self, http: httpx.Client, source: str) -> None:
        self._http = http
        self._source = source
        self._asking = threading.Lock()

    def __call__(self) -> Source | None:
        return sources.built_in().get(self._source)
