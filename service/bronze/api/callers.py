"""Finds who sends a request: by an API key, by a token of the issuer that the settings name, or by a session."""

import asyncio
from typing import TYPE_CHECKING

from starlette.types import Scope

from bronze.api.key_ring import KeyRing, unauthenticated
from bronze.api.sessions import Sessions
from bronze.protocol.principals import KEY_PREFIX, Caller

if TYPE_CHECKING:
    from bronze.api.tokens import TokenVerifier

_BEARER = b"bearer "


class Callers:
    """Who may send requests. Without `tokens`, only API keys are accepted."""

    def __init__(self, keys: KeyRing, tokens: "TokenVerifier | None", sessions: Sessions) -> None:
        self.keys = keys
        self.sessions = sessions
        self._tokens = tokens

    async def read(self) -> None:
        """Read the API keys, and the issuer's. Raises `Unavailable` and `Misconfigured`."""
        await self.keys.read()
        if self._tokens:
            await self._tokens.read()

    async def follow(self) -> None:
        """Read them again and again, until it is cancelled."""
        await asyncio.gather(self.keys.follow(), *([self._tokens.follow()] if self._tokens else []))

    def find(self, scope: Scope) -> Caller:
        """The caller of a request. Raises `Refused` (401)."""
        credential = _bearer(scope)
        if not credential:
            if found := self.sessions.find(scope):
                return found
            raise unauthenticated("Send an API key: in the header Authorization, as Bearer token.")
        if self._tokens and not credential.startswith(KEY_PREFIX):
            return self._tokens.find(credential)
        return self.keys.find(credential)


def _bearer(scope: Scope) -> str:
    """The bearer token in the header `Authorization`; empty if there is no such header. Raises `Refused`."""
    values: list[bytes] = [value for name, value in scope["headers"] if name == b"authorization"]
    if not values:
        return ""
    if len(values) == 1 and values[0][:7].lower() == _BEARER:
        try:
            if credential := values[0][7:].strip().decode("ascii"):
                return credential
        except UnicodeDecodeError:
            pass
    raise unauthenticated("The header Authorization is not valid: send it once, with an API key as Bearer token.")
