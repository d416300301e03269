"""Sends CloudEvents to a webhook, each as one signed request."""

import time
from collections.abc import Callable, Sequence

import httpx

from bronze.errors import Outage, Unavailable
from bronze.notify.delivery import refusal
from bronze.notify.event import CONTENT_TYPE, Event, cloud_event, event_id
from bronze.notify.signature import signed_headers
from bronze.telemetry.context import inject

TIMEOUT = httpx.Timeout(20, connect=5)
#: The longest answer that is read, to use the connection again. Nothing in an answer is used.
ANSWER_BYTES_MAX = 64 * 2**10


class Webhook:
    """A receiver. `secrets` sign each request, the newest first."""

    name = "webhook"

    def __init__(
        self,
        http: httpx.AsyncClient,
        url: str,
        secrets: Sequence[bytes],
        bucket: str,
        prefix: str,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._http = http
        self._url = httpx.URL(url)
        self._secrets = secrets
        self._bucket = bucket
        self._prefix = prefix
        self._now_s = now_s

    async def send(self, event: Event) -> None:
        """Send an event once. Raises `Unavailable` if it has to be sent again, and `Halted` if nothing may be sent."""
        body = cloud_event(event, self._bucket, self._prefix)
        signed = signed_headers(str(event_id(event, self._bucket)), int(self._now_s()), body, self._secrets)
        request = self._http.build_request(
            "POST",
            self._url,
            content=body,
            headers={"Content-Type": CONTENT_TYPE, **signed, **inject()},
            timeout=TIMEOUT,
        )
        try:
            response = await self._http.send(request, stream=True)
            try:
                if int(response.headers.get("Content-Length", ANSWER_BYTES_MAX + 1)) <= ANSWER_BYTES_MAX:
                    await response.aread()
            finally:
                await response.aclose()
        except httpx.TimeoutException as error:
            detail = f"{self._place} does not answer: {type(error).__name__}"
            raise Unavailable(Outage.TIMEOUT, detail, retry_after_s=0) from error
        except (httpx.RequestError, ValueError) as error:
            detail = f"cannot send to {self._place}: {error!r}"
            raise Unavailable(Outage.UNAVAILABLE, detail, retry_after_s=0) from error
        if not response.is_success:
            raise refusal(self._place, response.status_code, response.reason_phrase, response.headers)

    @property
    def _place(self) -> str:
        """The address without what may be secret: user, path and query."""
        return f"{self._url.scheme}://{self._url.netloc.decode()}"
