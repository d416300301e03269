"""The public keys of the issuer of tokens: a JWK Set (RFC 7517), in a file or at a URL."""

import asyncio
from pathlib import Path

import httpx

from bronze.errors import Misconfigured, Outage, Unavailable

#: The largest document that is read, in bytes.
DOCUMENT_BYTES_MAX = 256 * 2**10
READ_S_MAX = 10.0


class IssuerKeys:
    """The document of the keys. `place` is a URL or the path of a file."""

    def __init__(self, client: httpx.AsyncClient, place: str) -> None:
        self._client = client
        self.place = place

    async def read(self) -> bytes:
        """The document. Raises `Unavailable`, and `Misconfigured` if the file cannot be read."""
        if self.place.startswith(("https://", "http://")):
            return await self._request()
        try:
            with await asyncio.to_thread(Path(self.place).open, "rb") as file:
                return self._bounded(await asyncio.to_thread(file.read, DOCUMENT_BYTES_MAX + 1))
        except OSError as error:
            raise Misconfigured(f"BRONZE_JWT_KEYS: cannot read {self.place}: {error.strerror}") from error

    async def _request(self) -> bytes:
        document = b""
        try:
            async with (
                asyncio.timeout(READ_S_MAX),
                self._client.stream("GET", self.place, headers={"Accept-Encoding": "identity"}) as answer,
            ):
                answer.raise_for_status()
                async for chunk in answer.aiter_raw():
                    document = self._bounded(document + chunk)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            detail = f"the keys of the issuer cannot be read from {self.place}: {str(error) or type(error).__name__}"
            raise Unavailable(Outage.UNAVAILABLE, detail) from error
        return document

    def _bounded(self, document: bytes) -> bytes:
        if len(document) > DOCUMENT_BYTES_MAX:
            raise Unavailable(
                Outage.UNAVAILABLE, f"the keys of the issuer at {self.place} have more than {DOCUMENT_BYTES_MAX} bytes"
            )
        return document
