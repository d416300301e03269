"""The API keys that an API process knows: it reads them every second, so that a change holds everywhere in seconds.

While the queue does not answer, the keys that were read last hold, and expire as they should. A process that has never
read them does not start.
"""

import asyncio
import datetime as dt
import logging
import time
from collections.abc import Mapping

from bronze.api.audit import AuditLog
from bronze.errors import Refusal, Refused, Unavailable
from bronze.protocol.principals import ApiKey, Caller, Principals, callers, parse_key
from bronze.servers.principal_store import PrincipalStore

log = logging.getLogger(__name__)

#: A read takes at most the time limit of a request to the queue, 2 s, in addition.
POLL_S = 1.0
#: Compared with the secret of an unknown key, so that its answer takes the same time.
_NO_KEY = ApiKey(id="", sha256="0" * 64, scopes=[], created_at="")


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

    async def read(self) -> None:
        """Read the keys. Raises `Unavailable`."""
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
        """Who has this key. Raises `Refused` (401); the reason is given only to those who have its secret."""
        parsed = parse_key(text)
        if parsed is None:
            raise unauthenticated("The API key does not have the form of a key.")
        key_id, secret = parsed
        known = self._callers.get(key_id)
        key = known[0] if known else _NO_KEY
        if not key.matches(secret) or known is None:
            raise unauthenticated("The API key is not known.")
        if key.revoked_at is not None:
            raise unauthenticated(f"The API key {key_id} was revoked at {key.revoked_at}.")
        if key_id in self._expiry_s and self._expiry_s[key_id] <= time.time():
            raise unauthenticated(f"The API key {key_id} expired at {key.expires_at}.")
        return known[1]


def unauthenticated(detail: str) -> Refused:
    return Refused(Refusal.UNAUTHENTICATED, detail)
