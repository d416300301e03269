"""Creates, rotates and revokes API keys, and limits principals.

Each function returns the principals as they are afterwards. Pure.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from bronze.admin.command_error import CommandError
from bronze.protocol.principals import ALIVE_MAX, ApiKey, Principal, Principals, Rates, new_key, new_session_key

#: The largest document that is stored, in bytes: the API reads it every second. It has space for 1,500 principals.
DOCUMENT_BYTES_MAX = 512 * 2**10
#: Keys per principal that are no longer alive and still listed, the newest.
ENDED_KEYS_MAX = 8


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was created: its text, which is shown once, what is stored, and the principals with it."""

    text: str
    key: ApiKey
    principal: Principal
    principals: Principals


def create(
    principals: Principals,
    name: str,
    scopes: Sequence[str],
    *,
    expires_at: dt.datetime | None,
    inherit_open: bool,
    now: dt.datetime,
) -> NewKey:
    """A key of a principal, which is created if there is none of this name. Raises `CommandError`."""
    principal = principals.find(name)
    if principal is None:
        principal = Principal(name=name, namespace="" if inherit_open else name)
        if inherit_open and (other := next((one for one in principals.principals if not one.namespace), None)):
            raise CommandError(f"{other.name} has the submissions of the time without keys: only one principal can")
    elif inherit_open and principal.namespace:
        raise CommandError(
            f"{name} exists, with submissions of its own: --inherit-open is possible only when a principal is created"
        )
    return _with_new_key(principals, principal, scopes, expires_at, now)


def rotate(
    principals: Principals, name: str, *, overlap: dt.timedelta, expires_at: dt.datetime | None, now: dt.datetime
) -> tuple[NewKey, ApiKey]:
    """A second key of a principal with the same scopes, and the first one, which expires after the overlap.

    Raises `CommandError`.
    """
    principal = _find(principals, name)
    alive = principal.alive(now)
    if len(alive) != 1:
        raise CommandError(
            f"{name} has {'two keys' if alive else 'no key'} that can be used: "
            + ("revoke the one that is no longer needed" if alive else "create one")
        )
    old = alive[0]
    end = now + overlap
    if old.expires_at is None or dt.datetime.fromisoformat(old.expires_at) > end:
        old = msgspec.structs.replace(old, expires_at=_text(end))
        principal = _replaced(principal, old)
    return _with_new_key(principals, principal, old.scopes, expires_at, now), old


def revoke(
    principals: Principals, *, key_id: str | None, name: str | None, now: dt.datetime
) -> tuple[list[tuple[Principal, ApiKey]], Principals]:
    """The keys that are revoked: the one with this id, or all of a principal. Raises `CommandError`."""
    if name is not None:
        principal = _find(principals, name)
        keys = principal.alive(now)
    else:
        found = [(one, key) for one in principals.principals for key in one.keys if key.id == key_id]
        if not found:
            raise CommandError(f"there is no key with the id {key_id!r}: `bronze keys list` shows them")
        principal, key = found[0]
        keys = [key] if key.alive(now) else []
    revoked = []
    for key in keys:
        ended = msgspec.structs.replace(key, revoked_at=_text(now))
        principal = _replaced(principal, ended)
        revoked.append((principal, ended))
    return revoked, principals.with_(principal)


def limit(principals: Principals, name: str, rates: Rates) -> tuple[Principal, Principals]:
    """A principal with these rates. Raises `CommandError`."""
    principal = msgspec.structs.replace(_find(principals, name), rates=rates)
    return principal, principals.with_(principal)


def _find(principals: Principals, name: str) -> Principal:
    principal = principals.find(name)
    if principal is None:
        raise CommandError(f"there is no principal {name!r}: `bronze keys list` shows them")
    return principal


def _with_new_key(
    principals: Principals,
    principal: Principal,
    scopes: Sequence[str],
    expires_at: dt.datetime | None,
    now: dt.datetime,
) -> NewKey:
    alive = principal.alive(now)
    if len(alive) >= ALIVE_MAX:
        raise CommandError(
            f"{principal.name} has {ALIVE_MAX} keys that can be used ({', '.join(key.id for key in alive)}), and more "
            "are not possible: revoke one"
        )
    text, key = new_key(scopes, _text(now), None if expires_at is None else _text(expires_at))
    ended = [one for one in principal.keys if not one.alive(now)][-ENDED_KEYS_MAX:]
    kept = [one for one in principal.keys if one.alive(now) or one in ended]
    principal = msgspec.structs.replace(principal, keys=[*kept, key])
    changed = principals.with_(principal)
    if not changed.session_key:
        changed = msgspec.structs.replace(changed, session_key=new_session_key())
    if len(changed.encode()) > DOCUMENT_BYTES_MAX:
        raise CommandError(
            f"there is no space for another key: the keys of all principals need {DOCUMENT_BYTES_MAX} bytes"
        )
    return NewKey(text, key, principal, changed)


def _replaced(principal: Principal, key: ApiKey) -> Principal:
    keys = [key if one.id == key.id else one for one in principal.keys]
    return msgspec.structs.replace(principal, keys=keys)


def _text(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).isoformat(timespec="seconds")
