"""Clients of the servers that are asked over HTTP: Prometheus, the trace store and the issuer of tokens."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from bronze.errors import Misconfigured
from bronze.servers.issuer_keys import IssuerKeys
from bronze.servers.prometheus import Prometheus
from bronze.servers.trace_store import Tempo, TraceStore, Zipkin
from bronze.settings import Settings

#: Time limit of each request to Prometheus and the trace store, in seconds.
TELEMETRY_S_MAX = 30.0


@asynccontextmanager
async def open_prometheus(settings: Settings, timeout_s: float) -> AsyncIterator[Prometheus | None]:
    """A client of the Prometheus in the settings, if there is one. Raises `Misconfigured` for an invalid address."""
    if settings.prometheus_url is None:
        yield None
        return
    async with open_prometheus_at(settings.prometheus_url, timeout_s) as prometheus:
        yield prometheus


@asynccontextmanager
async def open_prometheus_at(url: str, timeout_s: float) -> AsyncIterator[Prometheus]:
    """The same at a given address."""
    async with _client("BRONZE_PROMETHEUS_URL", url, timeout_s) as client:
        yield Prometheus(client)


@asynccontextmanager
async def open_trace_store(settings: Settings, timeout_s: float) -> AsyncIterator[TraceStore | None]:
    """A client of the trace store in the settings, if there is one. Raises `Misconfigured` for an invalid address."""
    if settings.tempo_url:
        async with _client("BRONZE_TEMPO_URL", settings.tempo_url, timeout_s) as client:
            yield Tempo(client)
    elif settings.zipkin_url:
        async with _client("BRONZE_ZIPKIN_URL", settings.zipkin_url, timeout_s) as client:
            yield Zipkin(client)
    else:
        yield None


@asynccontextmanager
async def open_issuer_keys(place: str) -> AsyncIterator[IssuerKeys]:
    """The keys of an issuer, at a URL or in a file."""
    async with httpx.AsyncClient() as client:
        yield IssuerKeys(client, place)


def _client(variable: str, url: str, timeout_s: float) -> httpx.AsyncClient:
    try:
        return httpx.AsyncClient(base_url=url, timeout=timeout_s)
    except httpx.InvalidURL as error:
        raise Misconfigured(f"{variable}: {url!r}: {error}") from error
