"""The HTTP client of all commands that call the API, and the errors that its answers stand for."""

import math
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime

import httpx
import msgspec

from bronze.errors import ErrorCode, Fault, Misconfigured, Outage, Refused, Unavailable, error_code
from bronze.printable import printable
from bronze.protocol.principals import parse_key
from bronze.settings import Settings

#: Longer than the API's own deadline, so that the API reports how a submission ended.
TIMEOUT = httpx.Timeout(45, connect=5)


class Problem(msgspec.Struct, frozen=True):
    """The members of a problem document (RFC 9457) that commands use."""

    type: str = "about:blank"
    title: str = ""
    detail: str = ""
    record: int | None = None
    submission_id: str | None = None


def connect(settings: Settings, url: str | None = None, *, timeout_s: float | None = None) -> httpx.Client:
    """A client of the API at `url`, else at `BRONZE_API_URL`. Raises `Misconfigured` for an invalid address."""
    return httpx.Client(base_url=_address(settings, url), timeout=timeout_s or TIMEOUT, headers=_credentials(settings))


def connect_async(settings: Settings, timeout_s: float | None = None, *, url: str | None = None) -> httpx.AsyncClient:
    """The same, for a command that runs in an event loop."""
    return httpx.AsyncClient(
        base_url=_address(settings, url), timeout=timeout_s or TIMEOUT, headers=_credentials(settings)
    )


def _credentials(settings: Settings) -> dict[str, str]:
    key = settings.api_key.get_secret_value() if settings.api_key else None
    if file := settings.api_key_file:
        try:
            key = file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Misconfigured(f"BRONZE_API_KEY_FILE cannot be read: {error}") from error
        if parse_key(key) is None:
            raise Misconfigured(f"BRONZE_API_KEY_FILE: {file} has no key of the form that `bronze keys create` prints")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _address(settings: Settings, url: str | None = None) -> httpx.URL:
    name, address = ("--url", url) if url else ("BRONZE_API_URL", settings.api_url)
    try:
        base_url = httpx.URL(address)
    except httpx.InvalidURL as error:
        raise Misconfigured(f"{name}: {address!r}: {error}") from error
    if base_url.scheme not in {"http", "https"} or not base_url.host:
        raise Misconfigured(f"{name}: {address!r} is not an HTTP address")
    return base_url


def unreachable(error: httpx.RequestError, url: httpx.URL) -> Unavailable:
    """The error for a request without an answer."""
    if isinstance(error, httpx.TimeoutException):
        detail = f"{url.host} does not answer: {type(error).__name__}"
        return Unavailable(Outage.TIMEOUT, detail, retry_after_s=0)
    address = f"{url.scheme}://{url.netloc.decode()}"  # without a password
    detail = f"cannot reach the API at {address} (set BRONZE_API_URL to its address): {error}"
    return Unavailable(Outage.UNAVAILABLE, detail, retry_after_s=0)


def failure(response: httpx.Response, place: Callable[[int | None], str]) -> Refused | Unavailable:
    """The error for an answer with an error status: `Unavailable` if a retry may succeed later.

    `place` returns the place of a record in its file, by its index in the body, or that of all records for None.
    """
    status = response.status_code
    problem = problem_of(response)
    code = _code(status, problem)
    hint = " Commands send the key in BRONZE_API_KEY." if status == httpx.codes.UNAUTHORIZED else ""
    text = printable(f"{status} {problem.detail or problem.title or response.reason_phrase}{hint}")
    if status == httpx.codes.TOO_MANY_REQUESTS or response.is_server_error:
        detail = f"{response.url.host} answers {text}"
        return Unavailable(code, detail, retry_after_s=retry_after_s(response.headers), status=status)
    return Refused(code, f"{place(problem.record)}: {text}", status=status, record=problem.record)


def problem_of(response: httpx.Response) -> Problem:
    """The problem document of an answer; an empty one if the answer has none, such as that of a proxy."""
    try:
        return msgspec.json.decode(response.content, type=Problem)
    except msgspec.DecodeError:
        return Problem()


def _code(status: int, problem: Problem) -> ErrorCode:
    """The code at the end of the problem's type, else the one for the status."""
    type_end = problem.type.rpartition("/")[2]
    if code := error_code(type_end):
        return code
    match status:
        case 401 | 403:
            return Outage.DENIED
        case 429:
            return Outage.THROTTLED
        case 502 | 503 | 504:
            return Outage.UNAVAILABLE
        case _:
            return Fault.INTERNAL


def retry_after_s(headers: Mapping[str, str]) -> int:
    """The wait in the header, given as seconds or a date (RFC 9110); 0 if there is none."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return int(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return 0
    return max(0, math.ceil(at.timestamp() - time.time()))
