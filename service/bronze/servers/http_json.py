"""GET requests with JSON answers, to the servers of telemetry."""

from collections.abc import Mapping
from typing import Any

import httpx

from bronze.errors import Outage, Unavailable


async def get_json(client: httpx.AsyncClient, server: str, path: str, parameters: Mapping[str, str | float]) -> Any:
    """The answer; None for a 404. `server` is the server's name in errors. Raises `Unavailable`."""
    try:
        answer = await client.get(path, params=dict(parameters))
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        return answer.raise_for_status().json()
    except httpx.TimeoutException as error:
        raise Unavailable(Outage.TIMEOUT, f"{server} does not answer in time ({client.base_url})") from error
    except httpx.HTTPStatusError as error:
        detail = f"{server} answers {error.response.status_code}: {error.response.text[:200]}"
        raise Unavailable(Outage.UNAVAILABLE, detail) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        detail = f"{server} does not answer: {str(error) or type(error).__name__} ({client.base_url})"
        raise Unavailable(Outage.UNAVAILABLE, detail) from error
    except ValueError as error:
        raise other_server(client, server) from error


def other_server(client: httpx.AsyncClient, server: str) -> Unavailable:
    """The error for an answer that `server` would not give."""
    return Unavailable(Outage.UNAVAILABLE, f"the server that answers at {client.base_url} is not {server}")
