"""The API keys that an API process knows: it reads them every second, so that a change holds everywhere in seconds.

It reads them for a request with an unknown key, too, so that a new key can be used at once. While the queue does not
answer, the keys that were read last hold, and expire as they should. A process that has never read them does not start.
"""

import asyncio
import datetime as dt
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from bronze.api.audit import AuditLog
from bronze.errors import Refusal, Refused, Unavailable
from bronze.protocol.principals import ApiKey, Caller, Principals, callers, parse_key
from bronze.servers.principal_store import PrincipalStore

log = logging.getLogger(__name__)

#: A read takes at most the time limit of a request to the queue, 2 s, in addition.
POLL_S = 1.0
#: Between two reads for requests with unknown keys, which anybody can send.
REREAD_S = 0.2
#: Compared with the secret of an unknown key, so that its answer takes the same time.
_NO_KEY = ApiKey(id="", sha256="0" * 64, scopes=[], created_at="")


class UnknownKey(Refused):
    """The key is not among those that were read last."""


class KeyRing:
    """The keys of all principals, as the queue had them at the last read."""

    def __init__(self, store: PrincipalStore, audit: AuditLog) -> None:
        self._store = store
        self._audit = audit
        self._revision = -1
        self._principals = Principals()
        self._callers: Mapping[str, tuple[ApiKey, Caller]] = {}
        #: When each key expires, in seconds since 1970: it is compared with each request.
        self._expiry_s: Mapping[str, float] = {}
        self._read_at_s = -math.inf
        self._reread = asyncio.Lock()

    async def read(self) -> None:
        """Read the keys. Raises `Unavailable`."""
        self._read_at_s = time.monotonic()
        principals, revision = await self._store.read()
        if revision != self._revision:
            self._audit.keys_changed(self._principals, principals)
            self._principals, self._revision = principals, revision
            self._callers = callers(principals.principals)
            self._expiry_s = {
                key_id: dt.datetime.fromisoformat(key.expires_at).timestamp()
                for key_id, (key, _) in self._callers.items()
                if key.expires_at is not None
            }

    async def find_new(self, find: Callable[[], Caller]) -> Caller:
        """What `find` returns, also for a key that was just created: with an unknown key, it is called again after the
        keys were read. Raises as it does.
        """
        try:
            return find()
        except UnknownKey:
            await self._read_since_now()
            return find()

    async def _read_since_now(self) -> None:
        """Read the keys; requests that wait share a read. If the queue does not answer, the keys stay as they are."""
        asked_s = time.monotonic()
        async with self._reread:
            if self._read_at_s < asked_s:
                await asyncio.sleep(self._read_at_s + REREAD_S - time.monotonic())
                with suppress(Unavailable):
                    await self.read()

    async def follow(self) -> None:
        """Read the keys every second, until it is cancelled."""
        failing = False
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self.read()
            except Unavailable as error:
                if not failing:
                    log.warning("the API keys cannot be read now, and those that were read last hold: %s", error)
                failing = True
            else:
                if failing:
                    log.info("the API keys can be read again")
                failing = False

    @property
    def session_key(self) -> str:
        """The secret with which sessions are encrypted. Raises `Refused` if there is none yet."""
        if not self._principals.session_key:
            raise unauthenticated("Sessions are possible after `bronze keys create`.")
        return self._principals.session_key

    def find(self, text: str) -> Caller:
        """Who has this key. Raises `UnknownKey` and `Refused` (401).

        The reason is given only to those who have its secret.
        """
        parsed = parse_key(text)
        if parsed is None:
            raise unauthenticated("The API key does not have the form of a key.")
        key_id, secret = parsed
        known = self._callers.get(key_id)
        key = known[0] if known else _NO_KEY
        if not key.matches(secret) or known is None:
            raise UnknownKey(Refusal.UNAUTHENTICATED, "The API key is not known.")
        if key.revoked_at is not None:
            raise unauthenticated(f"The API key {key_id} was revoked at {key.revoked_at}.")
        if key_id in self._expiry_s and self._expiry_s[key_id] <= time.time():
            raise unauthenticated(f"The API key {key_id} expired at {key.expires_at}.")
        return known[1]


def unauthenticated(detail: str) -> Refused:
    return Refused(Refusal.UNAUTHENTICATED, detail)
