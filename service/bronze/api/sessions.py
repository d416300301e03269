"""Sessions of people who look at pages: a cookie that stands for an API key, for reading only.

The cookie has the key itself, encrypted with a secret that all APIs read together with the keys. So a session needs no
memory, it ends when its key is revoked or expires, and nobody can make one from what the queue stores.
"""

from collections.abc import Mapping
from functools import partial
from urllib.parse import urlsplit

from cryptography.fernet import Fernet, InvalidToken
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import Scope

from bronze.api.key_ring import KeyRing, unauthenticated
from bronze.protocol.principals import Caller

#: The name has a prefix behind TLS: a browser then accepts the cookie only from this host.
COOKIE = "bronze-session"
SECURE_COOKIE = f"__Host-{COOKIE}"
#: A cookie of ours has less.
COOKIE_CHARS_MAX = 512
#: Methods that change nothing.
READS = frozenset({"GET", "HEAD"})


class Sessions:
    """Begins sessions, and finds their callers. A session ends after `s_max`."""

    def __init__(self, keys: KeyRing, s_max: int) -> None:
        self._keys = keys
        self._s_max = s_max

    async def begin(self, scope: Scope, key: str) -> tuple[Caller, Mapping[str, str]]:
        """The caller with an API key, and the header that sets the cookie. Raises `Refused`."""
        found = await self._keys.find_new(partial(self._keys.find, key))
        value = Fernet(self._keys.session_key).encrypt(key.encode()).decode()
        return found, _set_cookie(scope, value, self._s_max)

    def end(self, scope: Scope) -> Mapping[str, str]:
        """The header that removes the cookie."""
        return _set_cookie(scope, "", 0)

    def find(self, scope: Scope) -> Caller | None:
        """The caller of a request that reads and has a cookie; else None. Raises `Refused`."""
        if scope["method"] not in READS or not (value := cookie_of(scope)):
            return None
        try:
            if len(value) > COOKIE_CHARS_MAX or not value.isascii():
                raise InvalidToken
            key = Fernet(self._keys.session_key).decrypt(value, ttl=self._s_max)
        except InvalidToken as error:
            raise unauthenticated("The session has ended: log in again.") from error
        return self._keys.find(key.decode())


def cookie_of(scope: Scope) -> str:
    """The session's cookie; empty if there is none."""
    return cookie_parser(Headers(scope=scope).get("cookie", "")).get(_name(scope), "")


def is_from_here(scope: Scope) -> bool:
    """Whether a form was sent from a page of the API, as the browser says, and not from one of another site."""
    headers = Headers(scope=scope)
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site in {"same-origin", "none"}
    return origin is None or urlsplit(origin).netloc == headers.get("host")


def _name(scope: Scope) -> str:
    return SECURE_COOKIE if _is_secure(scope) else COOKIE


def _set_cookie(scope: Scope, value: str, s_max: int) -> Mapping[str, str]:
    secure = "; Secure" if _is_secure(scope) else ""
    return {"Set-Cookie": f"{_name(scope)}={value}; Path=/; Max-Age={s_max}; HttpOnly; SameSite=Strict{secure}"}


def _is_secure(scope: Scope) -> bool:
    return scope.get("scheme") == "https"
