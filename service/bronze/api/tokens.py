"""Tokens (JWT, RFC 7519) of an issuer that the settings name, as an alternative to API keys.

The issuer's keys are read every minute, and soon after a token names a key that is not known. While they cannot be
read, the keys that were read last hold. A process that has never read them does not start.
"""

import asyncio
import base64
import binascii
import hashlib
import logging
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from joserfc import jwt
from joserfc.errors import ClaimError, ExpiredTokenError, JoseError, SecurityWarning
from joserfc.jwk import ECKey, GuestProtocol, Key, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from bronze.api.key_ring import unauthenticated
from bronze.errors import Misconfigured, Refused, Unavailable
from bronze.protocol.principals import Caller, is_scope, token_principal
from bronze.servers.issuer_keys import IssuerKeys

log = logging.getLogger(__name__)

READ_EVERY_S = 60.0
#: After a token that names an unknown key.
READ_AGAIN_S = 5.0
#: The longest token, in bytes.
TOKEN_BYTES_MAX = 16 * 2**10
#: Keys of the issuer.
KEYS_MAX = 100
#: Tokens whose signature need not be checked again.
VERIFIED_MAX = 4096
#: The public members of each kind of key. All others, such as those of private keys, are not read.
_MEMBERS: Mapping[str, tuple[type[RSAKey | ECKey | OKPKey], Sequence[str]]] = {
    "RSA": (RSAKey, ("n", "e")),
    "EC": (ECKey, ("crv", "x", "y")),
    "OKP": (OKPKey, ("crv", "x")),
}
_RSA_BITS_MIN, _RSA_BITS_MAX = 2048, 8192
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
#: The types of a token for an API (RFC 9068), in lower case; or none.
_TYPES = frozenset({"", "jwt", "at+jwt", "application/at+jwt"})


@dataclass(frozen=True, slots=True)
class Trust:
    """Which tokens are accepted: by `iss`, `aud`, algorithm of the signature, and difference of the clocks."""

    issuer: str
    audience: str
    algorithms: Sequence[str]
    leeway_s: int


class _UnknownKey(Exception):
    """The token names a key that is not one of the issuer's."""


class TokenVerifier:
    """Verifies tokens."""

    def __init__(self, source: IssuerKeys, trust: Trust, now_s: Callable[[], float] = time.time) -> None:
        self._source = source
        self._trust = trust
        self._now_s = now_s
        # a header that this version does not know is ignored, unless it is critical
        self._registry = JWSRegistry(algorithms=trust.algorithms, strict_check_header=False)
        self._claims = jwt.JWTClaimsRegistry(
            now=lambda: int(now_s()),
            leeway=trust.leeway_s,
            iss={"essential": True, "value": trust.issuer},
            aud={"essential": True, "value": trust.audience},
            sub={"essential": True},
            exp={"essential": True},
        )
        self._document: bytes | None = None
        self._keys: Mapping[str, Key] = {}
        #: By the hash of the token: its caller, and when it expires.
        self._verified: dict[bytes, tuple[Caller, float]] = {}
        self._wanted = asyncio.Event()

    async def read(self) -> None:
        """Read the issuer's keys. Raises `Unavailable`, and `Misconfigured` if there are none that can be used."""
        document = await self._source.read()
        if document != self._document:
            keys = await asyncio.to_thread(usable_keys, document)
            if not keys:
                raise Misconfigured(
                    f"BRONZE_JWT_KEYS: {self._source.place} is not a JWK Set with keys that can be used: each needs a "
                    f"kid, and RSA keys at least {_RSA_BITS_MIN} bits"
                )
            self._keys, self._document = keys, document
            self._verified.clear()
            log.info("the issuer has the keys %s", ", ".join(map(repr, keys)))

    async def follow(self) -> None:
        """Read the keys again and again, until it is cancelled."""
        failing = False
        while True:
            await asyncio.sleep(READ_AGAIN_S)
            try:
                async with asyncio.timeout(READ_EVERY_S - READ_AGAIN_S):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
            try:
                await self.read()
            except (Unavailable, Misconfigured) as error:
                if not failing:
                    log.warning("those keys of the issuer that were read last hold: %s", error)
                failing = True
            else:
                if failing:
                    log.info("the keys of the issuer can be read again")
                failing = False

    def find(self, text: str) -> Caller:
        """Who has this token. Raises `Refused` (401)."""
        if len(text) > TOKEN_BYTES_MAX or not _TOKEN.fullmatch(text):
            raise unauthenticated("The credential has neither the form of an API key nor that of a token.")
        digest = hashlib.sha256(text.encode()).digest()
        verified = self._verified.get(digest)
        if verified is None:
            verified = self._verify(text)
            if len(self._verified) >= VERIFIED_MAX:
                del self._verified[next(iter(self._verified))]
            self._verified[digest] = verified
        found, expires_at_s = verified
        if self._now_s() >= expires_at_s + self._trust.leeway_s:
            raise unauthenticated("The token has expired.")
        return found

    def _verify(self, text: str) -> tuple[Caller, float]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SecurityWarning)  # EdDSA is the old name of what may be Ed25519
                token = jwt.decode(text, self._key_of, registry=self._registry)
            self._claims.validate(token.claims)
            return _caller(token.claims), float(token.claims["exp"])
        except Refused:
            raise
        except _UnknownKey:
            self._wanted.set()
            reason = "the key that it names is not one of the issuer's"
        except ExpiredTokenError:
            reason = "it has expired"
        except ClaimError as error:
            reason = f"its claim {error.claim} is missing or not the expected one"
        except Exception:  # noqa: BLE001  what a token contains is up to its sender, and so is what fails at it
            reason = "it is not signed by the issuer, with an algorithm that is allowed"
        raise unauthenticated(f"The token is not valid: {reason}.")

    def _key_of(self, signature: GuestProtocol) -> Key:
        """The key that a token names. Raises `JoseError` and `_UnknownKey`."""
        header = signature.headers()
        if "crit" in header or str(header.get("typ", "")).lower() not in _TYPES:
            raise JoseError
        key = self._keys.get(str(header.get("kid")))
        if key is None:
            raise _UnknownKey
        key.check_alg(header["alg"])
        return key


def usable_keys(document: bytes) -> Mapping[str, Key]:
    """The public keys of a JWK Set that sign and have an id, at most 100; of two with the same id the first one."""
    try:
        entries = msgspec.json.decode(document, type=dict[str, Any]).get("keys")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    found: dict[str, Key] = {}
    for entry in entries if isinstance(entries, list) else []:
        kid = entry.get("kid") if isinstance(entry, dict) else None
        if len(found) < KEYS_MAX and isinstance(kid, str) and kid not in found and (key := _usable(entry)):
            found[kid] = key
    return found


def _usable(entry: Mapping[str, Any]) -> Key | None:
    kind = _MEMBERS.get(str(entry.get("kty")))
    if kind is None or entry.get("use", "sig") != "sig" or "verify" not in entry.get("key_ops", ("verify",)):
        return None
    key_class, members = kind
    public = {name: entry[name] for name in ("kty", *members, "alg") if name in entry}
    if not all(isinstance(value, str) for value in public.values()):
        return None
    try:
        if key_class is RSAKey and not _RSA_BITS_MIN <= 8 * len(_decoded(public.get("n", ""))) <= _RSA_BITS_MAX:
            return None
        return key_class.import_key(public)
    except (JoseError, ValueError, TypeError, KeyError):
        return None


def _decoded(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        return b""


def _caller(claims: Mapping[str, Any]) -> Caller:
    name = token_principal(claims["iss"], claims["sub"])
    scopes = frozenset(word for word in (*_words(claims.get("scope")), *_words(claims.get("scp"))) if is_scope(word))
    return Caller(name, name, "", scopes)


def _words(claim: object) -> Sequence[str]:
    """The words of a claim: separated by spaces (RFC 8693), or a list."""
    match claim:
        case str():
            return claim.split()
        case list():
            return [word for word in claim if isinstance(word, str)]
        case _:
            return ()
