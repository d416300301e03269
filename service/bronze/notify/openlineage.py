"""Sends OpenLineage events, by the transport that OpenLineage's own variables choose."""

import asyncio
import os

import httpx
import msgspec
import requests
from openlineage.client import OpenLineageClient
from openlineage.client.event_v2 import RunEvent
from openlineage.client.transport.http import HttpTransport

from bronze.client import failure, unreachable
from bronze.errors import Halted, Misconfigured, Outage, Refused, Unavailable
from bronze.notify.delivery import refusal
from bronze.notify.event import Event, SnapshotEvent
from bronze.notify.lineage_event import SUBMISSIONS_MAX, Site, WriteLineage, commit_events, run_events
from bronze.protocol.feed_event import ObjectEvent, RemovalEvent

#: Transports that raise an error if the event was not delivered. Others report only later, or never, that it was lost.
TRANSPORTS = ("http", "file", "console")


def open_client() -> OpenLineageClient:
    """The client, as its variables say. Raises `Misconfigured`."""
    try:
        client = OpenLineageClient()
    except Exception as error:  # whatever its transports raise
        if (kind := os.environ.get("OPENLINEAGE__TRANSPORT__TYPE", TRANSPORTS[0])) not in TRANSPORTS:
            raise _not_supported(kind) from error
        raise Misconfigured(f"the OPENLINEAGE_ variables cannot work: {error}") from error
    transport = client.transport
    if transport.kind not in TRANSPORTS:
        raise _not_supported(str(transport.kind))
    if isinstance(transport, HttpTransport):
        transport.config.retry = {"total": 0}  # the follower tries again, for as long as it takes
    return client


def _not_supported(kind: str) -> Misconfigured:
    return Misconfigured(
        f"the OpenLineage transport {kind} does not say whether an event was delivered: "
        f"use {', '.join(TRANSPORTS)} (docs/events.md)"
    )


class OpenLineage:
    """A receiver: two events per object or snapshot, the begin and the end of the run that wrote it. `api` looks the
    submissions of an object up. A removal is no run, so nothing is sent of it.
    """

    name = "openlineage"

    def __init__(self, client: OpenLineageClient, api: httpx.AsyncClient, site: Site) -> None:
        self._client = client
        self._api = api
        self._site = site

    async def send(self, event: Event) -> None:
        """Send the events of an object or a snapshot. Raises `Unavailable` or `Halted`, as a webhook does."""
        match event:
            case ObjectEvent():
                events = run_events(event, await self._lineage(event.file_path), self._site)
            case SnapshotEvent():
                events = commit_events(event, self._site)
            case RemovalEvent():
                return
        for run_event in events:
            await asyncio.to_thread(self._emit, run_event)

    async def _lineage(self, file_path: str) -> WriteLineage:
        url = self._api.base_url.join("v1/lineage")
        try:
            response = await self._api.get(url, params={"file_path": file_path, "limit": SUBMISSIONS_MAX})
        except httpx.RequestError as error:
            raise unreachable(error, url) from error
        if response.is_success:
            try:
                return msgspec.json.decode(response.content, type=WriteLineage)
            except msgspec.DecodeError as error:
                detail = f"{url} does not answer as the API does: {error}"
                raise Unavailable(Outage.UNAVAILABLE, detail, retry_after_s=0) from error
        error_of_api = failure(response, lambda _: str(url))
        if isinstance(error_of_api, Refused):
            detail = f"the API refuses the lineage of {file_path}: {error_of_api}"
            raise Unavailable(Outage.DENIED, detail, retry_after_s=0)
        raise error_of_api

    def _emit(self, run_event: RunEvent) -> None:
        try:
            self._client.emit(run_event)
        except requests.Timeout as error:
            detail = f"the OpenLineage server does not answer: {type(error).__name__}"
            raise Unavailable(Outage.TIMEOUT, detail, retry_after_s=0) from error
        except requests.HTTPError as error:
            raise _refusal(error) from error
        except requests.RequestException as error:  # its text has the address, which may have a secret
            detail = f"cannot send to the OpenLineage server: {type(error).__name__}"
            raise Unavailable(Outage.UNAVAILABLE, detail, retry_after_s=0) from error
        except Exception as error:
            raise Unavailable(Outage.UNAVAILABLE, f"OpenLineage: {error}", retry_after_s=0) from error


def _refusal(error: requests.HTTPError) -> Halted | Unavailable:
    response = error.response
    if response is None:
        return Unavailable(Outage.UNAVAILABLE, "the OpenLineage server does not answer", retry_after_s=0)
    return refusal("the OpenLineage server", response.status_code, response.reason, response.headers)
