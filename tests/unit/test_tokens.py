"""The tokens of an issuer: which are accepted, for whom, and how its keys are read."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc import jws, jwt
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from bronze.api import tokens
from bronze.api.tokens import TOKEN_BYTES_MAX, TokenVerifier, Trust, usable_keys
from bronze.errors import Misconfigured, Refusal, Refused, Unavailable
from bronze.protocol.principals import NAME_BYTES_MAX, is_name, token_principal
from bronze.servers.issuer_keys import DOCUMENT_BYTES_MAX, IssuerKeys
from local.machine import limit_s
from tests.contract.making import until

ISSUER = "https://issuer.example/realms/a"
AUDIENCE = "bronze"
NOW_S = 1_800_000_000
LEEWAY_S = 30
TRUST = Trust(ISSUER, AUDIENCE, ["RS256", "ES256", "EdDSA"], LEEWAY_S)
CLAIMS: Mapping[str, Any] = {
    "iss": ISSUER,
    "sub": "client-7",
    "aud": AUDIENCE,
    "exp": NOW_S + 300,
    "iat": NOW_S,
    "scope": "openid ingest:vehicles read:*",
}


@cache
def rsa() -> RSAKey:
    return RSAKey.generate_key(2048, {"kid": "rsa"})


@cache
def ec() -> ECKey:
    return ECKey.generate_key("P-256", {"kid": "ec"})


@cache
def ed() -> OKPKey:
    return OKPKey.generate_key("Ed25519", {"kid": "ed"})


def jwks(*keys: Key, **members: Any) -> bytes:
    return json.dumps({"keys": [{**key.as_dict(private=False), **members} for key in keys]}).encode()


class Issuer(IssuerKeys):
    """An issuer whose document is in memory."""

    def __init__(self, document: bytes) -> None:
        super().__init__(httpx.AsyncClient(), "memory")
        self.document = document
        self.away = False
        self.reads = 0

    async def read(self) -> bytes:
        self.reads += 1
        if self.away:
            raise Unavailable(Refusal.NOT_FOUND, "away")
        return self.document


class Clock:
    now_s = float(NOW_S)

    def __call__(self) -> float:
        return self.now_s


async def verifier(document: bytes | None = None, trust: Trust = TRUST, clock: Clock | None = None) -> TokenVerifier:
    made = TokenVerifier(Issuer(jwks(rsa(), ec(), ed()) if document is None else document), trust, clock or Clock())
    await made.read()
    return made


def token(key: Key | None = None, alg: str = "RS256", header: Mapping[str, Any] | None = None, **claims: Any) -> str:
    """A token of the issuer; a claim that is None is left out."""
    key = key or rsa()
    given = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not None}
    return jwt.encode({"alg": alg, "kid": key.kid, **(header or {})}, given, key, algorithms=[alg])


def encoded(part: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


async def refused(text: str, made: TokenVerifier | None = None) -> str:
    """Why a token is refused."""
    with pytest.raises(Refused) as error:
        (made or await verifier()).find(text)
    assert error.value.code is Refusal.UNAUTHENTICATED
    assert text not in error.value.detail
    return error.value.detail


@pytest.mark.filterwarnings("ignore:EdDSA")
@pytest.mark.parametrize(("key", "alg"), [(rsa, "RS256"), (ec, "ES256"), (ed, "EdDSA")])
async def test_a_token_of_the_issuer_has_a_caller(key: Callable[[], Key], alg: str) -> None:
    """Its scopes are those that Bronze knows; its namespace is its own."""
    found = (await verifier()).find(token(key(), alg))
    assert found.principal == found.namespace == "@issuer.example/realms/a#client-7"
    assert found.scopes == {"ingest:vehicles", "read:*"}
    assert found.key_id == ""


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        ({"scope": None}, set()),
        ({"scope": None, "scp": ["trace", 1, "write"]}, {"trace"}),
        ({"scope": None, "scp": "trace admin"}, {"trace", "admin"}),
        ({"scope": {"admin": True}}, set()),
        ({"scope": "Admin ADMIN admin:* *"}, set()),
        ({"aud": ["other", AUDIENCE]}, {"ingest:vehicles", "read:*"}),
    ],
)
async def test_scopes_are_words_of_scope_and_scp(claims: Mapping[str, Any], scopes: set[str]) -> None:
    assert (await verifier()).find(token(None, **claims)).scopes == scopes


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"aud": "other"}, "claim aud"),
        ({"aud": []}, "claim aud"),
        ({"aud": None}, "claim aud"),
        ({"aud": {"bronze": 1}}, "claim aud"),
        ({"iss": "https://issuer.example/realms/b"}, "claim iss"),
        ({"iss": ISSUER + "/"}, "claim iss"),
        ({"iss": [ISSUER]}, "claim iss"),
        ({"iss": None}, "claim iss"),
        ({"exp": NOW_S - LEEWAY_S}, "has expired"),
        ({"exp": None}, "claim exp"),
        ({"exp": "never"}, "claim exp"),
        ({"exp": True}, "claim exp"),
        ({"exp": float("nan")}, "claim exp"),
        ({"exp": float("inf")}, "claim exp"),
        ({"exp": 10**400}, "not signed"),
        ({"nbf": NOW_S + LEEWAY_S + 1}, "claim nbf"),
        ({"iat": NOW_S + LEEWAY_S + 1}, "claim iat"),
        ({"iat": "now"}, "claim iat"),
        ({"sub": None}, "claim sub"),
        ({"sub": ""}, "claim sub"),
        ({"sub": 7}, "claim sub"),
    ],
)
async def test_a_claim_that_is_not_the_expected_one_is_refused(claims: Mapping[str, Any], reason: str) -> None:
    assert reason in await refused(token(None, **claims))


async def test_clocks_may_differ() -> None:
    made = await verifier()
    assert made.find(token(None, exp=NOW_S - LEEWAY_S + 2, nbf=NOW_S + LEEWAY_S, iat=NOW_S + LEEWAY_S))


async def test_a_token_expires_though_it_was_verified_before() -> None:
    clock = Clock()
    made = await verifier(clock=clock)
    text = token(exp=NOW_S + 10)
    assert made.find(text) is made.find(text)
    clock.now_s += 10 + LEEWAY_S
    assert "has expired" in await refused(text, made)


def forged(header: object, claims: object = CLAIMS, signature: str = "AA") -> str:
    return f"{encoded(header)}.{encoded(claims)}.{signature}"


def hmac_with_public_key() -> str:
    """HS256 with the text of the RSA key as secret: accepted by libraries that let the header choose the algorithm."""
    signed = f"{encoded({'alg': 'HS256', 'kid': 'rsa'})}.{encoded(CLAIMS)}"
    mac = hmac.new(rsa().as_pem(private=False), signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


FORGED: Mapping[str, Callable[[], str]] = {
    "none": lambda: forged({"alg": "none", "kid": "rsa"}),
    "None": lambda: forged({"alg": "None", "kid": "rsa"}),
    "no signature": lambda: forged({"alg": "none", "kid": "rsa"}, signature=""),
    "HS256 with the public key": hmac_with_public_key,
    "another algorithm that is not allowed": lambda: token(None, "PS256"),
    "the algorithm of another key": lambda: forged({"alg": "ES256", "kid": "rsa"}),
    "no algorithm": lambda: forged({"kid": "rsa"}),
    "algorithm is no text": lambda: forged({"alg": ["RS256"], "kid": "rsa"}),
    "key of somebody else": lambda: token(RSAKey.generate_key(2048, {"kid": "rsa"})),
    "key in the header": lambda: token(
        other := RSAKey.generate_key(2048, {"kid": "rsa"}), header={"jwk": other.as_dict(private=False)}
    ),
    "keys at a URL in the header": lambda: token(
        RSAKey.generate_key(2048, {"kid": "rsa"}), header={"jku": "https://evil.example/jwks"}
    ),
    "critical header": lambda: signed({"alg": "RS256", "kid": "rsa", "crit": ["x"], "x": 1}),
    "critical header that the library knows": lambda: signed(
        {"alg": "RS256", "kid": "rsa", "crit": ["b64"], "b64": True}
    ),
    "critical headers are none": lambda: signed({"alg": "RS256", "kid": "rsa", "crit": []}),
    "no key id": lambda: signed({"alg": "RS256"}),
    "the key id is a list": lambda: signed({"alg": "RS256", "kid": ["rsa"]}),
    "another type": lambda: token(None, header={"typ": "dpop+jwt"}),
    "signature of another token": lambda: ".".join(
        [*forged({"alg": "RS256", "kid": "rsa"}).split(".")[:2], token().split(".")[2]]
    ),
    "header is a list": lambda: forged(["RS256"]),
    "header is a number": lambda: forged(1),
    "header is deep": lambda: f"{base64.urlsafe_b64encode(b'[' * 9000).decode().rstrip('=')}.AA.AA",
    "claims are a list": lambda: jwt_of(b"[]"),
    "claims are no JSON": lambda: jwt_of(b"\xff"),
    "claims are deep": lambda: jwt_of(b'{"a":' * 2000),
    "encrypted": lambda: "e30.AA.AA.AA.AA",
    "two parts": lambda: "e30.AA",
    "spaces": lambda: token().replace(".", ". "),
    "too long": lambda: token(None, padding="x" * TOKEN_BYTES_MAX),
    "text": lambda: "hunter2",
}


def signed(header: Mapping[str, Any]) -> str:
    """A token with any header, and a valid signature."""
    text = f"{encoded(header)}.{encoded(CLAIMS)}"
    signature = JWSRegistry.algorithms["RS256"].sign(text.encode(), rsa())
    return f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def jwt_of(payload: bytes) -> str:
    return jws.serialize_compact({"alg": "RS256", "kid": "rsa"}, payload, rsa())


@pytest.mark.parametrize("kind", FORGED)
async def test_a_forged_token_is_refused(kind: str) -> None:
    await refused(FORGED[kind]())


async def test_an_unknown_key_makes_it_read_the_keys_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Soon, but not with each such token. Then the token is accepted; and one of a key that is gone is not."""
    monkeypatch.setattr(tokens, "READ_AGAIN_S", 0.01)
    made = await verifier(jwks(rsa()))
    issuer = made._source
    assert isinstance(issuer, Issuer)
    old, new = token(), token(ec(), "ES256")
    assert made.find(old)
    assert "not one of the issuer's" in await refused(new, made)
    issuer.document = jwks(ec())
    following = asyncio.create_task(made.follow())
    await until(lambda: made._keys.keys() == {"ec"})
    assert made.find(new)
    assert "not one of the issuer's" in await refused(old, made)
    following.cancel()


async def test_the_known_keys_hold_while_the_issuer_is_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Or answers with something else."""
    monkeypatch.setattr(tokens, "READ_AGAIN_S", 0.01)
    monkeypatch.setattr(tokens, "READ_EVERY_S", 0.02)
    made = await verifier()
    issuer = made._source
    assert isinstance(issuer, Issuer)
    following = asyncio.create_task(made.follow())
    issuer.away = True
    await until(lambda: "last hold" in caplog.text)
    issuer.away, issuer.document, seen = False, b"<html>", issuer.reads
    await until(lambda: issuer.reads >= seen + 3)
    assert made.find(token())
    assert caplog.text.count("last hold") == 1
    assert not following.done()
    following.cancel()


UNUSABLE: Mapping[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "a list": lambda: b"[]",
    "an object": lambda: b"{}",
    "keys are no list": lambda: b'{"keys": {}}',
    "keys are no keys": lambda: b'{"keys": [1, null, {}, {"kid": "a"}, {"kid": ["a"], "kty": "RSA"}]}',
    "deep": lambda: b"[" * 100_000,
    "symmetric": lambda: jwks(OctKey.generate_key(256, {"kid": "oct"})),
    "for encryption": lambda: jwks(rsa(), use="enc"),
    "not for verifying": lambda: jwks(rsa(), key_ops=["sign"]),
    "without an id": lambda: jwks(rsa(), kid=None),
    "short": lambda: jwks(rsa(), n="AQAB"),
    "long": lambda: jwks(rsa(), n="A" * 4000),
    "no number": lambda: jwks(rsa(), n=7),
    "unknown curve": lambda: jwks(ec(), crv="P-999"),
    "no point of the curve": lambda: jwks(ec(), x="AA"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
async def test_keys_that_cannot_be_used_are_left_out_and_without_any_it_does_not_start(kind: str) -> None:
    document = UNUSABLE[kind]()
    assert usable_keys(document) == {}
    with pytest.raises(Misconfigured, match="BRONZE_JWT_KEYS"):
        await verifier(document)


async def test_the_private_part_of_a_key_is_not_kept() -> None:
    document = json.dumps({"keys": [rsa().as_dict(private=True)]}).encode()
    (key,) = usable_keys(document).values()
    assert not key.is_private


def test_the_number_of_keys_is_bounded() -> None:
    entry = ec().as_dict(private=False)
    entries = [{**entry, "kid": str(number)} for number in range(1_000)]
    assert len(usable_keys(json.dumps({"keys": entries}).encode())) == tokens.KEYS_MAX


async def test_a_key_is_for_its_own_algorithm() -> None:
    made = await verifier(jwks(rsa(), alg="RS512"), Trust(ISSUER, AUDIENCE, ["RS256", "RS512"], 0))
    await refused(token(), made)
    assert made.find(token(None, "RS512"))


async def test_the_tokens_that_are_known_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "VERIFIED_MAX", 3)
    made = await verifier()
    for number in range(10):
        made.find(token(ec(), "ES256", jti=str(number)))
        assert len(made._verified) <= 3


# --- the document


async def test_the_keys_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    async with httpx.AsyncClient() as client:
        with pytest.raises(Misconfigured, match="BRONZE_JWT_KEYS"):
            await IssuerKeys(client, str(file)).read()
        file.write_bytes(jwks(rsa()))
        assert await IssuerKeys(client, str(file)).read() == jwks(rsa())
        file.write_bytes(b"x" * (DOCUMENT_BYTES_MAX + 1))
        with pytest.raises(Unavailable, match="more than"):
            await IssuerKeys(client, str(file)).read()


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, stream=httpx.ByteStream(b"x" * (DOCUMENT_BYTES_MAX + 1))),
        httpx.Response(302, headers={"Location": "https://elsewhere.example/"}),
        httpx.Response(500),
        httpx.ReadTimeout("late"),
    ],
)
async def test_a_url_that_answers_otherwise_is_unavailable(answer: httpx.Response | Exception) -> None:
    """The keys come from this URL alone: no redirection is followed."""

    def handle(request: httpx.Request) -> httpx.Response:
        assert request.url.host == "issuer.example"
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle)) as client:
        with pytest.raises(Unavailable):
            await IssuerKeys(client, "https://issuer.example/jwks").read()


# --- the principal


@pytest.mark.parametrize(
    ("pairs"),
    [
        [("https://a.example", "b"), ("https://a.example/b", ""), ("http://a.example", "b")],
        [("https://a", "é"), ("https://a", "e\u0301"), ("https://a", "\x1b[31m"), ("https://a", "x" * 200)],
        [("https://a", "b#c"), ("https://a", "b"), ("https://a/b", "c"), ("https://a", "c\n")],
    ],
)
def test_principals_of_tokens_are_distinct_and_those_of_no_key(pairs: Sequence[tuple[str, str]]) -> None:
    """Whatever the subject is: their names are plain, short, and begin with a mark, as those of API keys never do."""
    names = {token_principal(*pair) for pair in pairs}
    assert len(names) == len(pairs)
    for name in names:
        assert name.isascii()
        assert name.isprintable()
        assert len(name) <= NAME_BYTES_MAX
        assert not is_name(name)


async def test_a_wrong_signature_costs_little() -> None:
    """Nothing that a sender can repeat takes more than some milliseconds."""
    made = await verifier()
    slowest = 0.0
    for kind, make in FORGED.items():
        text = make()
        start_s = time.perf_counter()
        await refused(text, made)
        slowest = max(slowest, time.perf_counter() - start_s)
        assert slowest < limit_s(0.25), kind
