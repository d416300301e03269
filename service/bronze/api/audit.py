"""The audit log: changes of API keys, and requests that were refused because of who sent them.

Who sent what was accepted is in the footer of its object and in the catalog entry, for as long as these exist.
"""

import logging
import time
from collections.abc import Callable

from starlette.types import Scope

from bronze.errors import Refused
from bronze.protocol.principals import ApiKey, Caller, Principals

log = logging.getLogger(__name__)

#: The caller of a request, in its ASGI scope.
CALLER = "bronze.caller"
#: Lines about refused requests per minute, so that a client that nobody knows cannot fill the log.
LINES_PER_MINUTE_MAX = 60


class AuditLog:
    """Writes the audit log of an API process."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._minute = -1
        self._lines = 0

    def refused(self, scope: Scope, error: Refused) -> None:
        """A request that has no identity, or whose identity does not allow it."""
        if not self._admits():
            return
        caller: Caller | None = scope.get(CALLER)
        client = scope.get("client")
        log.warning(
            "refused with %d: %s",
            error.status,
            error.detail,
            extra={
                "method": scope["method"],
                "path": repr(scope["path"]),
                "client": client[0] if client else "",
                "principal": caller.principal if caller else "",
                "key_id": caller.key_id if caller else "",
            },
        )

    def logged_in(self, scope: Scope, caller: Caller) -> None:
        """A session that began."""
        client = scope.get("client")
        log.info(
            "%s logged in",
            caller.principal,
            extra={"client": client[0] if client else "", "principal": caller.principal, "key_id": caller.key_id},
        )

    def _admits(self) -> bool:
        minute = int(self._now_s() // 60)
        if minute != self._minute:
            if self._lines > LINES_PER_MINUTE_MAX:
                log.warning("%d more refused requests were not logged", self._lines - LINES_PER_MINUTE_MAX)
            self._minute, self._lines = minute, 0
        self._lines += 1
        return self._lines <= LINES_PER_MINUTE_MAX

    def keys_changed(self, before: Principals, after: Principals) -> None:
        """The keys that were created, revoked or given another expiry between two reads."""
        earlier = {key.id: key for principal in before.principals for key in principal.keys}
        for principal in after.principals:
            for key in principal.keys:
                if key != earlier.pop(key.id, None):
                    log.info("key %s of %s: %s", key.id, principal.name, _state(key))
        for key_id in earlier:
            log.info("key %s was removed", key_id)


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked at {key.revoked_at}"
    expiry = f"until {key.expires_at}" if key.expires_at else "without an expiry"
    return f"allows {' '.join(key.scopes)} {expiry}"
