"""Identity at the API, in process, on a real queue and a real bucket: who may do what, and what is recorded of it."""

import asyncio
import datetime as dt
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import httpx
import pytest
from cryptography.fernet import Fernet
from fastapi.routing import APIRoute

from bronze.admin import keys
from bronze.api import key_ring
from bronze.api.app import Parts, create_app
from bronze.api.audit import LINES_PER_MINUTE_MAX
from bronze.api.authentication import ForeignTraces
from bronze.api.tokens import TokenVerifier, Trust
from bronze.errors import Outage, Unavailable
from bronze.lineage.catalog_index import CatalogIndex
from bronze.objects.reader import read_contents
from bronze.protocol.principals import Principals, Rates, parse_key
from bronze.records.media import NDJSON
from bronze.servers.catalog import NatsCatalog
from bronze.servers.catalog_feed import Feed, FeedPosition
from bronze.servers.jetstream import JetStream
from bronze.servers.key_value import KeyValueStore
from bronze.servers.principal_store import PrincipalStore
from bronze.servers.queue import NatsQueue
from bronze.servers.s3 import S3Bucket
from bronze.settings import Auth, Settings
from bronze.telemetry.signals import Role
from bronze.wiring.api import api_parts
from bronze.wiring.servers import Servers
from tests.contract.making import SOURCES, Heard, until, vehicle
from tests.contract.test_quarantine import Served
from tests.unit.test_tokens import AUDIENCE, ISSUER, LEEWAY_S, Issuer, jwks, rsa, token

INGEST = "/v1/ingest/vehicles"
A = vehicle("a")
STATUS = b'{"operator":"UA","run_number":1,"origin":"EWR","destination":"IAH","scheduled_at":"2026-01-01T00:00:00Z"}'
#: A path of an object that does not exist.
OBJECT = "source=vehicles/date=2026-11-27/hour=22/20261127T220000000-0-000000000001.parquet"


@dataclass
class Keys:
    """The stored API keys of a test."""

    store: PrincipalStore

    async def create(self, name: str, *scopes: str, inherit_open: bool = False, expires_s: float | None = None) -> str:
        principals, revision = await self.store.read()
        now = dt.datetime.now(dt.UTC)
        expires_at = None if expires_s is None else now + dt.timedelta(seconds=expires_s)
        new = keys.create(principals, name, scopes, expires_at=expires_at, inherit_open=inherit_open, now=now)
        await self.store.write(new.principals, revision)
        return new.text

    async def revoke(self, text: str) -> None:
        principals, revision = await self.store.read()
        parsed = parse_key(text)
        assert parsed
        _, changed = keys.revoke(principals, key_id=parsed[0], name=None, now=dt.datetime.now(dt.UTC))
        await self.store.write(changed, revision)


class Unsteady(PrincipalStore):
    """The stored keys, of a queue that may be away."""

    away = False
    reads = 0

    async def read(self) -> tuple[Principals, int]:
        self.reads += 1
        if self.away:
            raise Unavailable(Outage.QUEUE_AWAY, "the queue does not answer")
        return await super().read()


@dataclass
class Site:
    """Everything of a system but the API itself."""

    settings: Settings
    queue: NatsQueue
    bucket: S3Bucket
    catalog: NatsCatalog
    key_values: KeyValueStore
    feed: Feed
    heard: Heard
    consumer: Heard
    store: Unsteady
    keys: Keys
    tokens: TokenVerifier | None = None

    async def parts(self, auth: Auth) -> Parts:
        lanes = await self.queue.open(SOURCES)
        unused = cast(Any, None)
        servers = Servers(lanes, self.queue, self.bucket, self.catalog, self.feed, unused, self.store, unused, unused)
        settings = self.settings.model_copy(update={"auth": auth})
        index = await CatalogIndex().open()
        return api_parts(
            settings, SOURCES, servers, index, None, self.heard.telemetry, lambda _: None, tokens=self.tokens
        )

    @asynccontextmanager
    async def api(self, auth: Auth = Auth.KEYS) -> AsyncIterator["Api"]:
        """An API that has read the keys and follows them."""
        parts = await self.parts(auth)
        following: list[asyncio.Task[None]] = []
        if parts.callers:
            await parts.callers.read()
            following.append(asyncio.create_task(parts.callers.follow()))
        app = ForeignTraces(create_app(parts), parts.callers)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            yield Api(client, parts)
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        await parts.lookups._index.close()

    def served(self, api: "Api") -> Served:
        lane = next(lane for (source, _), lane in api.parts.ingest._lanes.items() if source == "vehicles")
        return Served(
            api.client,
            self.settings,
            lane,
            self.queue,
            self.bucket,
            self.catalog,
            self.key_values,
            self.heard,
            self.consumer,
        )


@dataclass
class Api:
    client: httpx.AsyncClient
    parts: Parts

    async def get(self, path: str, key: str | None = None, **query: str) -> httpx.Response:
        return await self.client.get(path, headers=bearer(key), params=query or None)

    async def post(self, key: str | None = None, body: bytes = A, path: str = INGEST, **headers: str) -> httpx.Response:
        sent = {"Content-Type": NDJSON} | {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(path, content=body, headers=sent | bearer(key))


def bearer(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


@pytest.fixture
def consumer() -> Iterator[Heard]:
    heard = Heard(Role.CONSUMER)
    yield heard
    heard.telemetry.shutdown()


@pytest.fixture
def heard() -> Iterator[Heard]:
    heard = Heard(Role.API)
    yield heard
    heard.telemetry.shutdown()


@pytest.fixture
def site(
    settings: Settings,
    queue: NatsQueue,
    bucket: S3Bucket,
    catalog: NatsCatalog,
    key_values: KeyValueStore,
    jetstream: JetStream,
    heard: Heard,
    consumer: Heard,
) -> Site:
    store = Unsteady(key_values)
    return Site(settings, queue, bucket, catalog, key_values, Feed(jetstream), heard, consumer, store, Keys(store))


# --- who may do what

#: For each route: what it answers to nobody, to a key without a scope for it, and to one with it.
ROUTES: dict[str, tuple[int, int, int, Sequence[str]]] = {
    "GET /livez": (200, 200, 200, ["read:*"]),
    "GET /readyz": (200, 200, 200, ["read:*"]),
    "GET /metrics": (401, 403, 200, ["read:*"]),
    "GET /": (401, 403, 200, ["read:*"]),
    "GET /docs": (401, 200, 200, ["read:*"]),
    "GET /docs/oauth2-redirect": (401, 200, 200, ["read:*"]),
    "GET /redoc": (401, 200, 200, ["read:*"]),
    "GET /openapi.json": (401, 200, 200, ["read:*"]),
    "GET /runbook": (401, 200, 200, ["read:*"]),
    "GET /manual/api": (401, 200, 200, ["read:*"]),
    "GET /schemas/1-0-0/BronzeWriteRunFacet.json": (401, 200, 200, ["read:*"]),
    "GET /v1/sources": (401, 200, 200, ["read:*"]),
    "GET /v1/sources/vehicles/schema": (401, 200, 200, ["read:*"]),
    "GET /v1/lineage?trace_id=1": (401, 404, 404, ["read:vehicles"]),
    "GET /v1/feed": (401, 200, 200, ["read:vehicles"]),
    "GET /v1/feed?source=vehicles": (401, 403, 200, ["read:vehicles"]),
    f"GET /v1/objects/bronze/{OBJECT}": (401, 403, 404, ["read:vehicles"]),
    "GET /v1/objects/other": (401, 403, 404, ["read:*"]),
    "GET /v1/submissions/0": (401, 404, 404, ["read:vehicles"]),
    "POST /v1/ingest/vehicles": (401, 403, 202, ["ingest:vehicles"]),
    "POST /v1/ingest/canary": (401, 403, 422, ["ingest:canary"]),
    "GET /nothing": (401, 404, 404, ["admin"]),
    "GET /login": (200, 200, 200, ["read:*"]),
    "POST /login": (401, 401, 401, ["read:*"]),
    "POST /logout": (303, 303, 303, ["read:*"]),
}


@pytest.mark.parametrize("route", ROUTES)
async def test_each_route_answers_to_each_identity(site: Site, route: str) -> None:
    """Nobody, a key that nobody has, a key without the scope, with it, with every scope, and an open API."""
    method, path = route.split()
    path = path.replace("/bronze/", f"/{site.settings.prefix}/")
    to_nobody, to_others, to_it, scopes = ROUTES[route]
    without = await site.keys.create("without", "ingest:status", "read:status")
    it, admin = await site.keys.create("it", *scopes), await site.keys.create("admin", "admin")
    unknown = without[:-1] + ("A" if without[-1] != "A" else "B")

    async def status(api: Api, key: str | None) -> int:
        answer = await (api.get(path, key) if method == "GET" else api.post(key, path=path))
        if answer.status_code in {401, 403} and path != "/login":
            problem = answer.json()
            kind = {401: "unauthenticated", 403: "forbidden"}[answer.status_code]
            assert problem["type"] == f"/problems/{kind}"
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers["www-authenticate"].startswith('Bearer realm="bronze"')
            assert ("scope" in problem) == (answer.status_code == 403)
        return answer.status_code

    async with site.api() as api:
        statuses = [await status(api, key) for key in (None, unknown, without, it, admin)]
    assert statuses == [to_nobody, to_nobody, to_others, to_it, to_it]
    async with site.api(Auth.OPEN) as api:
        assert await status(api, None) == (404 if path in {"/login", "/logout"} else to_it)


async def test_the_table_has_every_route(site: Site) -> None:
    """A new route has to say who may use it."""
    app = create_app(await site.parts(Auth.KEYS))
    methods_and_paths = [
        (method, route.path_regex)
        for route in app.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    ]
    tried = [row.partition("?")[0].split() for row in ROUTES]
    untried = [
        regex.pattern
        for method, regex in methods_and_paths
        if not any(method == tried_method and regex.fullmatch(path) for tried_method, path in tried)
    ]
    assert untried == []


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic Og==", "Bearer é", "Digest x", "bearer " + "a" * 5_000],
)
async def test_other_headers_are_refused(site: Site, header: str) -> None:
    async with site.api() as api:
        answer = await api.client.get("/v1/sources", headers=[(b"authorization", header.encode("latin-1"))])
        assert answer.status_code == 401
    assert site.heard.count("bronze.requests.refused", error_type="unauthenticated") == 1


async def test_a_refused_submission_leaves_nothing(site: Site) -> None:
    """Neither in the queue nor in the counts of another source; the refusal is counted."""
    key = await site.keys.create("reader", "read:*", "ingest:status")
    async with site.api() as api:
        answer = await api.post(key)
        assert (answer.status_code, answer.json()["scope"]) == (403, "ingest:vehicles")
        assert 'error="insufficient_scope", scope="ingest:vehicles"' in answer.headers["www-authenticate"]
        lane = site.served(api).lane
    assert (await site.queue.state(lane)).messages == 0
    assert site.heard.count("bronze.records", bronze_outcome="rejected", error_type="forbidden") == 1


# --- changes


async def test_a_change_holds_in_every_api_within_5_s(site: Site) -> None:
    """A new key is accepted and a revoked one is refused, by all of them, and an expired one without any change."""
    async with site.api() as first, site.api() as second:
        key = await site.keys.create("fleet", "ingest:*")
        short = await site.keys.create("fleet", "ingest:*", expires_s=1.5)

        async def all_answer(key: str, status: int) -> bool:
            return [(await api.post(key)).status_code for api in (first, second)] == [status, status]

        assert await all_answer(key, 202)
        await until(lambda: all_answer(short, 401), within_s=5)
        assert "expired" in (await first.post(short)).json()["detail"]
        await site.keys.revoke(key)
        await until(lambda: all_answer(key, 401), within_s=5)
        assert "was revoked" in (await first.post(key)).json()["detail"]


async def test_a_new_key_holds_at_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first request with it reads the keys again, also one of a trace, and so does the form of a browser."""
    monkeypatch.setattr(key_ring, "POLL_S", 60.0)
    async with site.api() as api:
        assert (await api.post(await site.keys.create("fleet", "ingest:*"))).status_code == 202
        traced = await site.keys.create("traced", "ingest:*", "trace")
        answer = await api.post(traced, traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
        assert answer.json()["trace_id"] == "a" * 32
        key = await site.keys.create("reader", "read:*")
        assert (await api.client.post("/login", data={"key": key})).status_code == 303


async def test_unknown_keys_share_the_reads_that_they_cause(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_ring, "POLL_S", 60.0)
    unknown = await site.keys.create("gone", "ingest:*")
    unknown = unknown[:-1] + ("a" if unknown[-1] != "a" else "b")
    async with site.api() as api:
        before = site.store.reads
        answers = await asyncio.gather(*(api.post(unknown) for _ in range(30)))
        assert {answer.status_code for answer in answers} == {401}
        assert site.store.reads - before <= 2
        site.store.away = True
        assert (await api.post(unknown)).status_code == 401


async def test_rotation_refuses_nobody(site: Site) -> None:
    """While both keys hold, each request with either of them is accepted; afterwards the first one is refused."""
    first = await site.keys.create("fleet", "ingest:*")
    async with site.api() as api:
        principals, revision = await site.store.read()
        now = dt.datetime.now(dt.UTC)
        new, _ = keys.rotate(principals, "fleet", overlap=dt.timedelta(seconds=3), expires_at=None, now=now)
        await site.store.write(new.principals, revision)

        async def accepted(key: str) -> bool:
            return (await api.post(key)).status_code == 202

        assert await accepted(first)
        assert await accepted(new.text)

        async def refused() -> bool:
            return not await accepted(first)

        await until(refused, within_s=10)
        assert await accepted(new.text)


async def test_the_known_keys_hold_while_the_queue_is_away(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """They expire as they should. A change follows when the queue is back; a process that knows no keys has none."""
    key = await site.keys.create("reader", "read:*")
    short = await site.keys.create("short", "read:*", expires_s=2)
    async with site.api() as api:
        site.store.away = True

        async def sources(key: str, status: int) -> bool:
            return (await api.get("/v1/sources", key)).status_code == status

        await until(lambda: "cannot be read now" in caplog.text)
        assert await sources(key, 200)
        await until(lambda: sources(short, 401), within_s=10)
        await site.store.write(*(await revoked(site, key)))
        assert await sources(key, 200)
        site.store.away = False
        await until(lambda: sources(key, 401), within_s=5)
        site.store.away = True
        parts = await site.parts(Auth.KEYS)
        assert parts.callers
        with pytest.raises(Unavailable):
            await parts.callers.read()


async def revoked(site: Site, key: str) -> tuple[Principals, int]:
    """The stored keys with this one revoked, and the revision to replace."""
    principals, revision = await PrincipalStore.read(site.store)
    parsed = parse_key(key)
    assert parsed
    return keys.revoke(principals, key_id=parsed[0], name=None, now=dt.datetime.now(dt.UTC))[1], revision


async def test_keys_that_cannot_be_read_do_not_open_the_api(site: Site) -> None:
    key = await site.keys.create("reader", "read:*")
    async with site.api() as api:
        _, revision = await site.store.read()
        await site.key_values.put("principals", b"no JSON", revision)
        with pytest.raises(Unavailable, match="cannot be read"):
            await api.parts.callers.read()  # type: ignore[union-attr]
        assert (await api.get("/v1/sources", key)).status_code == 200
        assert (await api.get("/v1/sources")).status_code == 401


# --- sessions

PAGE = {"Accept": "text/html,application/xhtml+xml"}


async def log_in(api: Api, key: str, path: str = "/", **headers: str) -> httpx.Response:
    return await api.client.post("/login", data={"key": key, "path": path}, headers=headers)


async def test_a_browser_logs_in_reads_and_logs_out(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """With a cookie that no script can read and that no other site's request has; it does not contain the key."""
    caplog.set_level(logging.INFO)
    key = await site.keys.create("person", "admin")
    async with site.api() as api:
        asked = await api.client.get("/v1/sources?a=1", headers=PAGE)
        assert asked.status_code == 401
        assert asked.headers["content-type"].startswith("text/html")
        assert 'name="path" value="/v1/sources?a=1"' in asked.text
        assert "form-action 'self'" in asked.headers["content-security-policy"]
        assert asked.headers["cache-control"] == "no-store"
        assert "Not possible" not in asked.text
        begun = await log_in(api, f" {key}\n", "/v1/sources?a=1")
        assert (begun.status_code, begun.headers["location"]) == (303, "/v1/sources?a=1")
        name, *attributes = begun.headers["set-cookie"].split("; ")
        assert name.startswith("bronze-session=")
        assert attributes == ["Path=/", "Max-Age=43200", "HttpOnly", "SameSite=Strict"]
        parsed = parse_key(key)
        assert parsed
        assert parsed[1] not in begun.headers["set-cookie"]
        page = await api.client.get("/", headers=PAGE)
        assert page.status_code == 200
        assert '<span>person</span> <button type="submit">Log out</button>' in page.text
        assert "person logged in" in caplog.text
        assert key not in caplog.text
        ended = await api.client.post("/logout")
        assert (ended.status_code, ended.headers["location"]) == (303, "/login")
        assert "Max-Age=0" in ended.headers["set-cookie"]
        assert (await api.client.get("/", headers=PAGE)).status_code == 401


async def test_the_page_is_only_for_those_who_may_read_every_source(site: Site) -> None:
    """In each of its forms, also that of the source that a session may read: it lists data of all of them."""
    some, every = [await site.keys.create(name, name) for name in ("read:vehicles", "read:*")]
    async with site.api() as api:
        await log_in(api, some)
        for path in ("/", "/?source=vehicles", "/?source=status", "/?q=x"):
            answer = await api.get(path)
            assert (answer.status_code, answer.json()["scope"]) == (403, "read:*")
        await log_in(api, every)
        for path in ("/", "/?source=vehicles", "/?source=nothing"):
            assert (await api.get(path)).status_code == 200


async def test_a_session_is_for_reading_only(site: Site) -> None:
    """Also if its key may do everything."""
    key = await site.keys.create("person", "admin")
    async with site.api() as api:
        await log_in(api, key)
        assert (await api.get("/v1/sources")).status_code == 200
        assert (await api.post()).status_code == 401
        assert (await api.client.request("HEAD", "/v1/sources")).status_code == 405
        for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
            assert (await api.client.request(method, "/v1/sources")).status_code == 401


async def test_a_session_holds_in_every_api_and_ends_with_its_key(site: Site) -> None:
    """Within 5 s of the revocation, in all of them."""
    key = await site.keys.create("person", "read:*")
    async with site.api() as first, site.api() as second:
        await log_in(first, key)
        second.client.cookies = first.client.cookies

        async def both_answer(status: int) -> bool:
            return [(await api.get("/")).status_code for api in (first, second)] == [status, status]

        assert await both_answer(200)
        await site.keys.revoke(key)
        await until(lambda: both_answer(401), within_s=5)
        assert "was revoked" in (await first.client.get("/", headers=PAGE)).text


async def test_a_session_ends_after_its_time(site: Site) -> None:
    site.settings = site.settings.model_copy(update={"session_s_max": 1})
    key = await site.keys.create("person", "read:*")
    async with site.api() as api:
        await log_in(api, key)
        cookie = dict(api.client.cookies)
        assert (await api.get("/")).status_code == 200

        async def ended() -> bool:
            api.client.cookies.update(cookie)  # the browser would have removed it
            return (await api.get("/")).status_code == 401

        await until(ended, within_s=10)


async def test_only_a_valid_key_begins_a_session(site: Site) -> None:
    key = await site.keys.create("person", "read:*")
    async with site.api() as api:
        for wrong in ("", "hunter2", key[:-1] + ("A" if key[-1] != "A" else "B"), "x" * 10_000, "é\x00"):
            answer = await log_in(api, wrong)
            assert answer.status_code == 401
            assert "set-cookie" not in answer.headers
            assert not wrong or wrong not in answer.text
        garbage = await api.client.post("/login", content=b"\xff" * 100)
        assert garbage.status_code == 401


@pytest.mark.parametrize(
    "value", ["", "x", "gAAAAA", "é", "x" * 5_000, "gAAAAABm" + "A" * 200, "bronze_0123456789ab_" + "A" * 43]
)
async def test_a_forged_cookie_is_refused(site: Site, value: str) -> None:
    await site.keys.create("person", "read:*")
    async with site.api() as api:
        cookie = [(b"cookie", f"bronze-session={value}".encode())]
        assert (await api.client.get("/v1/sources", headers=cookie)).status_code == 401


async def test_what_the_queue_stores_does_not_make_a_session(site: Site) -> None:
    """Who reads the secret of the sessions there still needs a key."""
    key = await site.keys.create("person", "read:*")
    principals, _ = await site.store.read()
    stored = principals.principals[0].keys[0]
    for text in (stored.id, stored.sha256, f"bronze_{stored.id}_{stored.sha256[:43]}"):
        forged = Fernet(principals.session_key).encrypt(text.encode()).decode()
        async with site.api() as api:
            api.client.cookies.set("bronze-session", forged)
            assert (await api.get("/v1/sources")).status_code == 401
    assert key not in principals.encode().decode()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://other"}, 303),
        ({"Sec-Fetch-Site": "none"}, 303),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://api"}, 303),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://api.evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({}, 303),
    ],
)
async def test_another_site_can_neither_log_in_nor_out(site: Site, headers: dict[str, str], status: int) -> None:
    key = await site.keys.create("person", "read:*")
    async with site.api() as api:
        answer = await log_in(api, key, **headers)
        assert (answer.status_code, "set-cookie" in answer.headers) == (status, status == 303)
        answer = await api.client.post("/logout", headers=headers)
        assert (answer.status_code, "set-cookie" in answer.headers) == (status, status == 303)


@pytest.mark.parametrize(
    "path",
    [
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "\\evil",
        "evil",
        "",
        "/\tx",
        "/é",
        "/login",
        "/logout",
        "/" + "x" * 3000,
        "/a\r\nSet-Cookie: x=1",
    ],
)
async def test_a_login_leads_to_the_api_only(site: Site, path: str) -> None:
    key = await site.keys.create("person", "read:*")
    async with site.api() as api:
        assert (await log_in(api, key, path)).headers["location"] == "/"


async def test_behind_tls_the_cookie_is_for_tls_and_this_host_only(site: Site) -> None:
    key = await site.keys.create("person", "read:*")
    async with site.api() as api:
        api.client.base_url = httpx.URL("https://api")
        cookie = (await log_in(api, key)).headers["set-cookie"]
        assert cookie.startswith("__Host-bronze-session=")
        assert cookie.endswith("HttpOnly; SameSite=Strict; Secure")
        assert (await api.get("/")).status_code == 200
        value = api.client.cookies["__Host-bronze-session"]
        api.client.cookies.clear()
        api.client.cookies.set("bronze-session", value)
        assert (await api.get("/")).status_code == 401


async def test_a_session_without_the_scope_says_which_is_missing(site: Site) -> None:
    key = await site.keys.create("person", "read:status")
    async with site.api() as api:
        await log_in(api, key)
        page = await api.client.get("/", headers=PAGE)
        assert page.status_code == 403
        assert "it needs the scope read:*" in page.text


async def test_a_header_comes_before_a_cookie(site: Site) -> None:
    """A wrong key is refused though the cookie is valid: else a client would not notice that its key has expired."""
    key = await site.keys.create("person", "read:*")
    async with site.api() as api:
        await log_in(api, key)
        assert (await api.get("/v1/sources", "hunter2")).status_code == 401
        twice = [(b"authorization", f"Bearer {key}".encode())] * 2
        assert (await api.client.get("/v1/sources", headers=twice)).status_code == 401
        empty = [(b"authorization", b"Bearer ")]
        assert (await api.client.get("/v1/sources", headers=empty)).status_code == 401


# --- tokens of an issuer


async def test_a_token_may_send_what_its_scopes_say(site: Site) -> None:
    """Its principal is recorded, and it does not share submissions with a key's principal of the same subject."""
    trust = Trust(ISSUER, AUDIENCE, ["RS256"], LEEWAY_S)
    site.tokens = TokenVerifier(Issuer(jwks(rsa())), trust)
    now_s = int(time.time())
    text = token(None, scope="ingest:vehicles", sub="fleet", iat=now_s, exp=now_s + 60)
    key = await site.keys.create("fleet", "ingest:vehicles")
    async with site.api() as api:
        sent = await api.post(text, Idempotency_Key="k")
        assert sent.status_code == 202
        assert (await api.post(text, Idempotency_Key="k")).json() == sent.json()
        assert (await api.post(key, Idempotency_Key="k")).json()["submission_id"] != sent.json()["submission_id"]
        status = await api.get(sent.json()["status_url"], text)
        assert status.json()["principal"] == "@issuer.example/realms/a#fleet"
        assert (await api.get(sent.json()["status_url"], key)).status_code == 404
        refused = await api.get("/v1/lineage", text)
        assert refused.status_code == 400
        forbidden = await api.post(text, path="/v1/ingest/status")
        assert forbidden.status_code == 403
        assert "The token of @issuer.example" in forbidden.json()["detail"]
        assert (await api.post(token(None, iat=now_s, exp=now_s - 60))).status_code == 401
    async with site.api() as api:
        site.tokens = None
    async with site.api() as api:
        assert (await api.post(text)).status_code == 401


# --- the OpenAPI document


async def test_the_openapi_document_says_which_scope_each_operation_needs(site: Site) -> None:
    """In the form of OpenAPI 3.1; the probes need none. Without keys, nothing is said."""
    key = await site.keys.create("person", "read:*")
    async with site.api() as api:
        document = (await api.get("/openapi.json", key)).json()
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    needs = {
        f"{method} {path}": operation.get("security")
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert needs.pop("get /livez") is needs.pop("get /readyz") is None
    assert needs.pop("post /v1/ingest/{source}") == [{"bearer": ["ingest:{source}"]}]
    for operation, security in needs.items():
        assert [*map(list, security)] == [["bearer"], ["session"]], operation
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert ("401" in operation["responses"]) == ("security" in operation), path
    async with site.api(Auth.OPEN) as api:
        document = (await api.get("/openapi.json")).json()
    assert "securitySchemes" not in document["components"]
    assert not any("security" in operation for item in document["paths"].values() for operation in item.values())


# --- rates


async def test_a_principal_that_sends_too_fast_gets_a_429(site: Site) -> None:
    """With the fields of its rates, and when to come again; others and the probes are not limited by it."""
    site.settings = site.settings.model_copy(update={"requests_per_s_max": 0.3, "bytes_per_s_max": 1000.0})
    fast, other = await site.keys.create("fast", "ingest:*"), await site.keys.create("other", "ingest:*")
    async with site.api() as api:
        accepted = [await api.post(fast) for _ in range(3)]
        refused = await api.post(fast)
        assert [answer.status_code for answer in accepted] == [202] * 3
        assert accepted[0].headers["ratelimit-policy"] == (
            '"requests";q=3;w=10;qu="requests", "bytes";q=10000;w=10;qu="content-bytes"'
        )
        assert accepted[0].headers["ratelimit"].startswith('"requests";r=2;t=')
        problem = refused.json()
        assert (refused.status_code, problem["type"]) == (429, "/problems/quota-exceeded")
        assert refused.headers["content-type"] == "application/problem+json"
        assert problem["violated-policies"] == ["requests"]
        assert 1 <= int(refused.headers["retry-after"]) <= 4
        assert refused.headers["ratelimit"].startswith('"requests";r=0;t=')
        assert (await api.get("/v1/sources", fast)).status_code == 429
        assert (await api.post(other)).status_code == 202
        for _ in range(10):
            probe = await api.get("/livez", fast)
            assert (probe.status_code, "ratelimit" in probe.headers) == (200, False)
    assert site.heard.count("bronze.requests.refused", error_type="quota-exceeded") == 2
    assert site.heard.count("bronze.records", bronze_outcome="accepted") == 4


async def test_a_limit_of_a_principal_holds_in_every_api_within_5_s(site: Site) -> None:
    key = await site.keys.create("fleet", "ingest:*")
    async with site.api() as api:
        assert "ratelimit" not in (await api.get("/v1/sources", key)).headers
        principals, revision = await site.store.read()
        _, changed = keys.limit(principals, "fleet", Rates(requests_per_s=0.1))
        await site.store.write(changed, revision)

        async def limited() -> bool:
            return (await api.get("/v1/sources", key)).status_code == 429

        await until(limited, within_s=5)


async def test_without_keys_all_clients_share_the_rate(site: Site) -> None:
    site.settings = site.settings.model_copy(update={"requests_per_s_max": 0.1})
    async with site.api(Auth.OPEN) as api:
        assert [(await api.post()).status_code for _ in range(2)] == [202, 429]


# --- what is recorded


async def test_the_principal_is_recorded_everywhere(site: Site) -> None:
    """In the message, the footer, the catalog entry, the spans of API and consumer, the status and the lineage."""
    key = await site.keys.create("fleet", "ingest:vehicles", "read:vehicles")
    async with site.api() as api:
        served = site.served(api)
        api.client.headers.update(bearer(key))
        answer = await api.post()
        async with served.consuming():
            status = await served.done(answer)
        assert status["principal"] == "fleet"
        (file_path,) = (one["file_path"] for one in status["objects"])
        contents = await read_contents(site.bucket, file_path)
        assert contents
        assert [stored.accepted.principal for stored in contents.submissions] == ["fleet"]
        (described,) = (await api.get(f"/v1/objects/{file_path}")).json()["submissions"]
        assert described["principal"] == "fleet"
        page = await site.feed.read(FeedPosition())
        assert [one.principal for item in page.entries for one in item.entry.submissions] == ["fleet"]
        while not await api.parts.lookups._index.catch_up(site.feed):
            pass
        lineage = (await api.get("/v1/lineage", submission_id=answer.json()["submission_id"])).json()
        assert [one["principal"] for one in lineage["submissions"]] == ["fleet"]
    (request,) = (span for span in site.heard.spans() if span.name == "POST /v1/ingest/{source}")
    (process,) = site.consumer.spans("process bronze.vehicles")
    for span in (request, process):
        assert span.attributes
        assert span.attributes["enduser.id"] == "fleet"


async def test_an_open_api_records_no_principal(site: Site) -> None:
    """What is stored has the same form as before there were keys."""
    async with site.api(Auth.OPEN) as api:
        served = site.served(api)
        answer = await api.post()
        (message,) = await site.queue.read(served.lane, None)
        assert not any("principal" in value for value in message.headers.values())
        async with served.consuming():
            assert (await served.done(answer))["principal"] is None
    assert not any("enduser.id" in (span.attributes or {}) for span in [*site.heard.spans(), *site.consumer.spans()])


async def test_keys_are_in_no_log_span_or_answer(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the valid key nor what a client takes for one, whatever the answer is."""
    caplog.set_level(logging.DEBUG)
    key = await site.keys.create("fleet", "ingest:vehicles")
    parsed = parse_key(key)
    assert parsed
    wrong = f"bronze_{parsed[0]}_{'W' * 43}"
    secrets = [parsed[1], "W" * 43, "hunter2"]
    answers: list[httpx.Response] = []
    async with site.api() as api:
        for sent in (key, wrong, "hunter2"):
            answers += [await api.post(sent), await api.get("/metrics", sent), await api.get("/v1/lineage", sent)]
            answers.append(await api.post(sent, b"no JSON"))
        assert api.parts.callers
        assert secrets[0] not in repr(vars(api.parts.callers.keys))
    spans = " ".join(span.to_json() for span in site.heard.spans())
    for secret in secrets:
        assert secret not in spans
        assert secret not in caplog.text
        assert not any(secret in repr(vars(record)) for record in caplog.records)
        assert not any(secret in answer.text or secret in str(answer.headers) for answer in answers)


async def test_refusals_and_changes_are_in_the_audit_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """With who, what and from where; a client that is refused all the time cannot fill the log."""
    caplog.set_level(logging.INFO)
    key = await site.keys.create("fleet", "ingest:status")
    parsed = parse_key(key)
    assert parsed
    async with site.api() as api:
        assert (await api.post(key)).status_code == 403
        (refused,) = (record for record in caplog.records if "refused with 403" in record.getMessage())
        facts = vars(refused)
        assert (facts["principal"], facts["key_id"], facts["method"], facts["path"]) == (
            "fleet",
            parsed[0],
            "POST",
            "'/v1/ingest/vehicles'",
        )
        await site.keys.revoke(key)
        await until(lambda: f"key {parsed[0]} of fleet: revoked" in caplog.text)
        for _ in range(LINES_PER_MINUTE_MAX + 20):
            await api.get("/%1b[31m")
        lines = [record for record in caplog.records if "refused with" in record.getMessage()]
        assert len(lines) <= 2 * LINES_PER_MINUTE_MAX  # the minute may change meanwhile
        assert "\x1b" not in caplog.text


@pytest.mark.parametrize("flag", ["00", "01"])
async def test_a_trace_is_continued_only_for_those_who_may(site: Site, flag: str) -> None:
    """Else a client could switch tracing off, or put its requests into the trace of somebody else."""
    foreign, parent = "c" * 32, "d" * 16
    plain = await site.keys.create("plain", "ingest:*")
    trusted = await site.keys.create("trusted", "ingest:*", "trace")
    header = {"traceparent": f"00-{foreign}-{parent}-{flag}"}
    async with site.api() as api:
        own = await api.post(plain, A, INGEST, **header)
        refused = await api.post(None, A, INGEST, **header)
        continued = await api.post(trusted, A, INGEST, **header)
    assert continued.json()["trace_id"] == foreign
    assert foreign not in own.text + refused.text
    requests = [span for span in site.heard.spans() if span.name == "POST /v1/ingest/{source}"]
    begun = [span for span in requests if span.context and span.context.trace_id != int(foreign, 16)]
    assert len(requests) == (3 if flag == "01" else 2)
    assert len(begun) == 2
    for span in begun:
        assert [link.context.trace_id for link in span.links] == [int(foreign, 16)]
        assert span.parent is None


async def test_an_open_api_continues_each_trace(site: Site) -> None:
    async with site.api(Auth.OPEN) as api:
        answer = await api.post(None, A, INGEST, traceparent=f"00-{'c' * 32}-{'d' * 16}-01")
        assert answer.json()["trace_id"] == "c" * 32


# --- idempotency and status per principal


async def test_a_keyed_retry_across_the_switch_is_the_same_submission(site: Site) -> None:
    """Sent without keys, waiting or stored; then again with the key of the principal that inherits them."""
    async with site.api(Auth.OPEN) as api:
        served = site.served(api)
        stored = await api.post(Idempotency_Key="stored")
        async with served.consuming():
            await served.done(stored)
        waiting = await api.post(Idempotency_Key="waiting")
    inherits = await site.keys.create("fleet", "ingest:vehicles", inherit_open=True)
    other = await site.keys.create("other", "ingest:vehicles")
    async with site.api() as api:
        for name, first in (("stored", stored), ("waiting", waiting)):
            again = await api.post(inherits, Idempotency_Key=name)
            assert (again.status_code, again.json()) == (202, first.json())
            foreign = await api.post(other, Idempotency_Key=name)
            assert foreign.json()["submission_id"] != first.json()["submission_id"]
        # and back again, after keys were switched on: what was sent with a key is found without one
        new = await api.post(inherits, Idempotency_Key="new")
    async with site.api(Auth.OPEN) as api:
        assert (await api.post(Idempotency_Key="new")).json() == new.json()


async def test_principals_do_not_share_idempotency_keys(site: Site) -> None:
    """Somebody who guesses a key neither gets the 202 of its sender nor takes it away from that one."""
    one, other = await site.keys.create("one", "ingest:*"), await site.keys.create("other", "ingest:*")
    async with site.api() as api:
        guessed = await api.post(other, vehicle("forged"), Idempotency_Key="k")
        sent = await api.post(one, A, Idempotency_Key="k")
        retried = await api.post(one, A, Idempotency_Key="k")
        assert [guessed.status_code, sent.status_code] == [202, 202]
        assert guessed.json()["submission_id"] != sent.json()["submission_id"]
        assert retried.json() == sent.json()
        assert (await api.post(one, vehicle("b"), Idempotency_Key="k")).status_code == 409
        second = await site.keys.create("one", "ingest:*")
        await api.parts.callers.read()  # type: ignore[union-attr]
        assert (await api.post(second, A, Idempotency_Key="k")).json() == sent.json()


async def test_a_status_is_for_its_sender_and_for_readers_of_its_source(site: Site) -> None:
    """To all others it does not exist."""
    sender = await site.keys.create("sender", "ingest:*")
    allowed = [sender, await site.keys.create("r", "read:vehicles"), await site.keys.create("admin", "admin")]
    others = [await site.keys.create("o", "ingest:*", "read:status")]
    async with site.api() as api:
        url = (await api.post(sender)).json()["status_url"]
        assert [(await api.get(url, key)).status_code for key in allowed] == [200] * 3
        refused = await api.get(url, others[0])
        unknown = await api.get(f"/v1/submissions/{'0' * 8}-0000-7000-8000-{'0' * 12}", others[0])
        assert refused.status_code == unknown.status_code == 404
        assert refused.json()["title"] == unknown.json()["title"]


async def test_a_lineage_has_the_sources_that_the_caller_may_read(site: Site) -> None:
    """Of a trace with submissions of two sources, a reader of one sees that one, also before it is stored."""
    reader, every = await site.keys.create("reader", "read:vehicles"), await site.keys.create("every", "admin")
    none = await site.keys.create("none", "ingest:*")
    trace = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    async with site.api() as api:
        served = site.served(api)
        one = await api.post(every, A, INGEST, **trace)
        status = (
            b'{"operator":"UA","run_number":1,"origin":"EWR","destination":"IAH","scheduled_at":"2026-01-01T00:00:00Z"}'
        )
        other = await api.post(every, status, "/v1/ingest/status", **trace)
        assert [one.status_code, other.status_code] == [202, 202]

        async def sources(key: str, **query: str) -> list[str]:
            answer = await api.get("/v1/lineage", key, **query)
            return [found["source"] for found in answer.json().get("submissions", [])]

        for key, found in ((every, ["status"]), (reader, []), (none, [])):
            assert await sources(key, submission_id=other.json()["submission_id"]) == found
        api.client.headers.update(bearer(every))
        async with served.consuming():
            file_path = (await served.done(one))["objects"][0]["file_path"]
        del api.client.headers["Authorization"]
        for indexed in (False, True):
            for key, found in ((every, ["vehicles"]), (reader, ["vehicles"]), (none, [])):
                assert await sources(key, file_path=file_path) == found, indexed
            while not await api.parts.lookups._index.catch_up(site.feed):
                pass
        assert await sources(reader, trace_id="a" * 32) == ["vehicles"]
        assert await sources(none, trace_id="a" * 32) == []
        assert await sources(none, id=file_path) == []


def test_the_caller_of_an_open_api_has_no_name() -> None:
    """Else the ids of keyed submissions would change when keys are switched on."""
    from bronze.protocol.principals import OPEN
    from bronze.protocol.submission_id import keyed_id

    assert keyed_id("vehicles", "k", OPEN.namespace) == keyed_id("vehicles", "k")
    assert replace(OPEN, namespace="x") != OPEN
    assert key_ring.POLL_S <= 2
