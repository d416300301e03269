"""Principals and their API keys: who may send and read what. The queue stores all of them as one document.

An API key is shown once, when it is created; the SHA-256 of its secret is stored. A hash that is slow on purpose
(such as Argon2) protects passwords, which can be guessed. A secret of 256 random bits cannot be guessed, and the API
computes its hash for each request.
"""

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self

import msgspec

#: The scope for everything: ingest and read of every source, the status of every submission, and traces.
ADMIN = "admin"
#: The scope of those whose traces the API continues. It trusts their decisions about sampling.
TRACE = "trace"
#: Stands for every source.
EVERY = "*"
#: A name has at most so many bytes, so that the names of 999 submissions fit into the catalog entry of an object.
NAME_BYTES_MAX = 96
#: Alive keys per principal: an old one, and the one that replaces it.
ALIVE_MAX = 2
SECRET_BYTES = 32

_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._:@/+=-]{{0,{NAME_BYTES_MAX - 1}}}")
_TOKEN_NAME = re.compile(rf"@[A-Za-z0-9._:@/+=#|-]{{1,{NAME_BYTES_MAX - 1}}}")
_ISSUER = re.compile(r"https?://[^\s/?#][^\s?#]*")
_SCOPE = re.compile(r"admin|trace|(?:ingest|read):(?:\*|[a-z][a-z0-9_]*)")
#: The beginning of each API key.
KEY_PREFIX = "bronze_"
_KEY = re.compile(rf"{KEY_PREFIX}([0-9a-f]{{12}})_([A-Za-z0-9_-]{{43}})")


def is_name(text: str) -> bool:
    """Whether a text may be a principal's name: plain ASCII, so that logs and terminals show it as it is."""
    return _NAME.fullmatch(text) is not None


def token_principal(issuer: str, subject: str) -> str:
    """The name of the principal of an issuer's tokens: `@` + issuer + `#` + subject, or `@` + their SHA-256 if that is
    too long or not plain.

    No principal of API keys begins with `@`, and an issuer has no `#`: two pairs never have the same name.
    """
    name = f"@{issuer.removeprefix('https://')}#{subject}"
    return name if _TOKEN_NAME.fullmatch(name) else f"@{_hash(name)}"


def is_issuer(text: str) -> bool:
    """Whether a text may be an issuer: a URL without query and fragment (OpenID Connect)."""
    return _ISSUER.fullmatch(text) is not None


def is_scope(text: str) -> bool:
    """Whether a text is a scope: `ingest:SOURCE`, `read:SOURCE`, with `*` for every source; `trace` or `admin`."""
    return _SCOPE.fullmatch(text) is not None


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A stored API key. `id` names it, is a part of it, and is no secret; `sha256` is that of its secret.

    Times are RFC 3339 in UTC; without `expires_at` it does not expire.
    """

    id: str
    sha256: str
    scopes: list[str]
    created_at: str
    expires_at: str | None = None
    revoked_at: str | None = None

    def alive(self, now: datetime) -> bool:
        return self.revoked_at is None and not self.expired(now)

    def expired(self, now: datetime) -> bool:
        return self.expires_at is not None and datetime.fromisoformat(self.expires_at) <= now

    def matches(self, secret: str) -> bool:
        """Whether this is the key's secret; takes the same time for every secret."""
        return hmac.compare_digest(self.sha256, _hash(secret))


class Rates(msgspec.Struct, frozen=True, omit_defaults=True):
    """How fast a principal may send, per API; None: as the API's settings say."""

    requests_per_s: float | None = None
    bytes_per_s: float | None = None

    def or_else(self, other: Self) -> Self:
        """With the rates of another for those that are None."""
        if self == _NO_RATES:
            return other
        return type(self)(self.requests_per_s or other.requests_per_s, self.bytes_per_s or other.bytes_per_s)


_NO_RATES = Rates()


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who sends or reads. `namespace` is its part of the `submission_id` of a keyed submission, and never changes.

    It is the name; or empty for the principal that takes over the submissions of the time without keys.
    """

    name: str
    namespace: str
    keys: list[ApiKey] = []
    rates: Rates = Rates()

    def alive(self, now: datetime) -> list[ApiKey]:
        return [key for key in self.keys if key.alive(now)]


class Principals(msgspec.Struct, frozen=True):
    """The document: all principals, in the order of their names, and the secret of the sessions."""

    principals: list[Principal] = []
    session_key: str = ""

    def find(self, name: str) -> Principal | None:
        return next((principal for principal in self.principals if principal.name == name), None)

    def with_(self, principal: Principal) -> Self:
        """With this principal instead of the one of its name."""
        others = [other for other in self.principals if other.name != principal.name]
        return msgspec.structs.replace(self, principals=sorted([*others, principal], key=lambda one: one.name))

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, document: bytes) -> Self:
        """Raises `msgspec.DecodeError`. An empty document has no principals."""
        return msgspec.json.decode(document, type=cls) if document else cls()


def new_key(scopes: Sequence[str], created_at: str, expires_at: str | None) -> tuple[str, ApiKey]:
    """A new API key: its text, which is not stored, and what is stored of it."""
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(SECRET_BYTES)
    stored = ApiKey(
        id=key_id, sha256=_hash(secret), scopes=sorted(set(scopes)), created_at=created_at, expires_at=expires_at
    )
    return f"{KEY_PREFIX}{key_id}_{secret}", stored


def new_session_key() -> str:
    """A new secret of the sessions, in the form of Fernet."""
    return base64.urlsafe_b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def parse_key(text: str) -> tuple[str, str] | None:
    """The id and the secret of an API key; None if the text cannot be one."""
    match = _KEY.fullmatch(text)
    return (match[1], match[2]) if match else None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request: the principal, its namespace, what the key or token allows, and how fast it may send.

    `key_id` is empty for a token.
    """

    principal: str
    namespace: str
    key_id: str
    scopes: frozenset[str] = field(default_factory=frozenset)
    rates: Rates = _NO_RATES

    @property
    def admin(self) -> bool:
        return ADMIN in self.scopes

    @property
    def may_trace(self) -> bool:
        return not self.scopes.isdisjoint((ADMIN, TRACE))

    def may_ingest(self, source: str) -> bool:
        return self._may("ingest", source)

    def may_read(self, source: str) -> bool:
        return self._may("read", source)

    @property
    def may_read_every(self) -> bool:
        return self._may("read", EVERY)

    @property
    def readable(self) -> frozenset[str] | None:
        """The sources whose data it may read; None: every source."""
        if self.may_read_every:
            return None
        return frozenset(scope.removeprefix("read:") for scope in self.scopes if scope.startswith("read:"))

    def _may(self, action: str, source: str) -> bool:
        return not self.scopes.isdisjoint((ADMIN, f"{action}:{EVERY}", f"{action}:{source}"))


#: The caller of an API without keys.
OPEN = Caller(principal="", namespace="", key_id="", scopes=frozenset({ADMIN}))


def callers(principals: Iterable[Principal]) -> dict[str, tuple[ApiKey, Caller]]:
    """All keys by their ids, each with its caller."""
    return {
        key.id: (key, Caller(principal.name, principal.namespace, key.id, frozenset(key.scopes), principal.rates))
        for principal in principals
        for key in principal.keys
    }
