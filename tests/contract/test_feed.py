"""The HTTP feed on real servers: each follower gets each object and each removal once, whatever happens meanwhile."""

import asyncio
import contextlib
import datetime as dt
import json
import random
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import msgspec
import pytest
import uvicorn

from bronze.api import feed as api_feed
from bronze.api.connection import create_server
from bronze.api.feed import Followers
from bronze.lineage.catalog_index import POLL_REMOVALS_S, CatalogIndex
from bronze.objects.reader import read_object
from bronze.protocol.documents import Totals, entry_of
from bronze.protocol.feed_cursor import FeedCursor, system_of
from bronze.protocol.lane import Lane
from bronze.servers.catalog_feed import Feed
from bronze.servers.jetstream import Outgoing
from local.machine import limit_s
from local.programs import LOOPBACK, Process
from tests import factories
from tests.contract.making import RECEIVED_AT, app_on, until
from tests.contract.test_authentication import Site, consumer, site
from tests.contract.test_lanes import Parts, parts
from tests.contract.test_objects_command import acknowledge, delete
from tests.contract.test_rebuild import rebuild, reopened, store

__all__ = ["consumer", "parts", "site"]

EVENT_STREAM = {"Accept": "text/event-stream"}
EPOCH = "20261124T120000000"


async def updated(index: CatalogIndex, feed: Feed) -> None:
    """Update an index completely, also with what comes rarely."""
    index._removals_read_s = -POLL_REMOVALS_S
    while not await index.catch_up(feed):
        pass


@dataclass
class Follower:
    """A client that stores its cursor with what it got."""

    limit: int = 3
    cursor: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)

    async def catch_up(self, api: httpx.AsyncClient, **query: Any) -> None:
        more = True
        while more:
            answer = await api.get("/v1/feed", params={"after": self.cursor, "limit": self.limit, **query})
            assert answer.status_code == httpx.codes.OK, answer.text
            page = answer.json()
            assert len(page["events"]) <= self.limit
            self.events += page["events"]
            self.cursor, more = page["cursor"], page["more"]

    def paths(self, kind: str = "object") -> list[str]:
        return [event["file_path"] for event in self.events if event["kind"] == kind]


@dataclass
class Api:
    client: httpx.AsyncClient
    index: CatalogIndex
    feed: Feed

    async def update(self) -> None:
        await updated(self.index, self.feed)


@asynccontextmanager
async def api_of(parts: Parts, lanes: Sequence[Lane]) -> AsyncIterator[Api]:
    """An API with an index of its own, which the test updates."""
    index = await CatalogIndex().open()
    app = app_on(parts.settings, lanes, parts.queue(1), parts.bucket, parts.catalog, parts.heard.telemetry, view=index)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as client:
        yield Api(client, index, Feed(parts.jetstream))
    await index.close()


async def keys_of(parts: Parts) -> list[str]:
    return [key async for key in parts.bucket.keys(f"{parts.settings.prefix}/source=")]


async def append(parts: Parts, lane: Lane, number: int, **facts: Any) -> str:
    """An entry of an object of any lane, without the object."""
    key = f"{lane.source}/{lane.epoch}-{lane.number}-{number}"
    contents = factories.contents(
        number, number, file_path=key, source=lane.source, epoch=lane.epoch, lane=lane.number, **facts
    )
    entry = entry_of(contents, Totals(bytes=number * 100))
    await parts.jetstream.publish(Outgoing(lane.entry_subject, msgspec.json.encode(entry), {}))
    return key


async def test_an_event_says_what_the_object_holds(parts: Parts) -> None:
    """As its own footer and the bucket do, so that a reader needs no other source."""
    lanes = await parts.open(1)
    async with parts.consuming(lanes):
        await store(parts, lanes, [1, 2, 4])
    async with api_of(parts, lanes) as api:
        await api.update()
        follower = Follower()
        await follower.catch_up(api.client)
    assert follower.paths() == sorted(await keys_of(parts))
    for event in follower.events:
        stored = await read_object(parts.bucket, event["file_path"])
        assert stored is not None
        contents = stored.contents
        facts = ("source", "epoch", "lane", "first", "last", "records", "first_received_at", "last_received_at")
        assert {name: event[name] for name in facts} == {name: getattr(contents, name) for name in facts}
        assert (event["bytes"], event["schema_versions"], event["removed"]) == (stored.size, [1], False)
        assert event["trace_id"] == contents.traceparent.split("-")[1]
        bounds = ("classification_count", "classification_least", "classification_greatest", "written_at")
        assert {name: event[name] for name in bounds} == {name: getattr(contents, name) for name in bounds}


@pytest.mark.parametrize("seed", range(3))
async def test_nothing_is_missed_or_sent_twice(parts: Parts, seed: int) -> None:
    """While objects are written and removed, the number of lanes changes, the catalog is rebuilt and APIs die.

    Followers have pages of one, three and a hundred events; each answer comes from an API with another index.
    """
    choices = random.Random(seed)
    lanes = await parts.open(2)
    followers = [Follower(limit) for limit in (1, 3, 100)]
    removed: list[str] = []
    number = 1

    async def follow() -> None:
        for follower in followers:
            if choices.random() < 0.7:
                async with api_of(parts, lanes) as api:
                    await api.update()
                    await follower.catch_up(api.client)

    for action in choices.sample(["write", "write", "remove", "rebuild", "lanes", "remove", "rebuild", "write"], 8):
        match action:
            case "write":
                async with parts.consuming(lanes):
                    for _ in range(3):
                        await store(parts, lanes, [number])
                        number += 1
            case "remove":
                there = [key for key in await keys_of(parts) if key not in removed]
                chosen = choices.sample(there, min(len(there), 2))
                if chosen:
                    await delete(parts, *chosen)
                    assert await acknowledge(parts, *chosen) == 0
                    removed += chosen
            case "lanes":
                async with parts.consuming(lanes):
                    await parts.change(len(lanes) % 3 + 1).run()
                lanes = await parts.open(len(lanes) % 3 + 1)
            case "rebuild":
                await rebuild(parts, lanes)
                parts = await reopened(parts)
        await follow()
    async with api_of(parts, lanes) as api:
        await api.update()
        for follower in followers:
            await follower.catch_up(api.client)
            assert sorted(follower.paths()) == sorted({*await keys_of(parts), *removed})
            assert sorted(follower.paths("removal")) == sorted(removed)
            kinds = [(event["file_path"], event["kind"]) for event in follower.events]
            assert all(kinds.index((path, "object")) < kinds.index((path, "removal")) for path in removed)


async def test_a_follower_gets_only_the_sources_that_it_names(parts: Parts) -> None:
    """The canary's only if it names it. With other sources, a cursor goes on: what it never got, it gets then."""
    lanes = [Lane(source, 0, EPOCH) for source in ("vehicles", "status", "canary")]
    vehicles, status, canary = [await append(parts, lane, 1) for lane in lanes]
    async with api_of(parts, lanes) as api:
        await api.update()
        follower, every, of_canary = Follower(), Follower(), Follower()
        await follower.catch_up(api.client, source="vehicles")
        assert follower.paths() == [vehicles]
        await every.catch_up(api.client)
        assert every.paths() == [vehicles, status]
        await of_canary.catch_up(api.client, source="canary")
        assert of_canary.paths() == [canary]
        await follower.catch_up(api.client, source=["vehicles", "status"])
        assert follower.paths() == [vehicles, status]
        unknown = await api.client.get("/v1/feed", params={"source": "nothing"})
        assert (unknown.status_code, unknown.json()["type"]) == (404, "/problems/unknown-source")


async def test_since_leaves_out_what_was_received_before(parts: Parts) -> None:
    """To the microsecond, and in any zone. Objects of which nobody knows when they were received are there."""
    lanes = await parts.open(1)
    async with parts.consuming(lanes):
        await store(parts, lanes, [1, 2])
    unknown = await append(parts, Lane("status", 0, EPOCH), 1)
    known = await keys_of(parts)
    at = dt.datetime.fromisoformat(RECEIVED_AT)
    async with api_of(parts, lanes) as api:
        await api.update()
        for since, paths in ((at, [*known, unknown]), (at + dt.timedelta(microseconds=1), [unknown])):
            for zone in (dt.UTC, dt.timezone(dt.timedelta(hours=5))):
                follower = Follower(limit=1)
                await follower.catch_up(api.client, since=since.astimezone(zone).isoformat())
                assert sorted(follower.paths()) == sorted(paths)
        local = await api.client.get("/v1/feed", params={"since": "2026-11-24T12:34:56"})
        assert local.status_code == 422


async def test_latest_begins_with_what_comes_from_now_on(parts: Parts) -> None:
    """Also of lanes that have no object yet; and not before the API has read the whole catalog."""
    one, two = Lane("vehicles", 0, EPOCH), Lane("vehicles", 1, EPOCH)
    await append(parts, one, 1)
    async with api_of(parts, [one]) as api:
        early = await api.client.get("/v1/feed", params={"after": "latest"})
        assert (early.status_code, early.json()["type"]) == (503, "/problems/undecided")
        await api.update()
        follower = Follower(cursor="latest")
        await follower.catch_up(api.client)
        assert follower.events == []
        later = [await append(parts, one, 2), await append(parts, two, 1)]
        await api.update()
        await follower.catch_up(api.client)
        assert follower.paths() == later


async def test_a_request_waits_for_the_first_event(parts: Parts) -> None:
    """At most for as long as it says. A change of the catalog that is not for it does not end it."""
    lane, other = Lane("vehicles", 0, EPOCH), Lane("status", 0, EPOCH)
    first = await append(parts, lane, 1)
    async with api_of(parts, [lane]) as api:
        await api.update()
        follower = Follower(cursor="latest")
        await follower.catch_up(api.client)

        async def wait(wait_s: float) -> dict[str, Any]:
            query: dict[str, str | float] = {"after": follower.cursor, "source": "vehicles", "wait": wait_s}
            answer: dict[str, Any] = (await api.client.get("/v1/feed", params=query)).json()
            return answer

        assert (await wait(0.1))["events"] == []
        waiting = asyncio.create_task(wait(30))
        await append(parts, other, 1)
        await api.update()
        await asyncio.sleep(0)
        assert not waiting.done()
        second = await append(parts, lane, 2)
        await api.update()
        async with asyncio.timeout(limit_s(5)):
            assert [event["file_path"] for event in (await waiting)["events"]] == [second]
    assert first != second


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({"after": "x"}, 400, "invalid-cursor"),
        ({"after": "1." + "A" * 30_000}, 400, "invalid-cursor"),
        ({"after": FeedCursor().encode(system_of("another", "bucket"))}, 400, "invalid-cursor"),
        ({"limit": 0}, 422, "invalid-request"),
        ({"limit": 501}, 422, "invalid-request"),
        ({"wait": 31}, 422, "invalid-request"),
        ({"wait": "nan"}, 422, "invalid-request"),
        ({"since": "0.5"}, 422, "invalid-request"),
        ({"since": "2026-11-29"}, 422, "invalid-request"),
        ({"since": "2026-11-29T10:00:00"}, 422, "invalid-request"),
        ({"since": "2026-13-29T10:00:00Z"}, 422, "invalid-request"),
        ({"wait": "inf"}, 422, "invalid-request"),
        ({"source": ["vehicles"] * 65}, 422, "invalid-request"),
    ],
)
async def test_what_is_not_valid_is_refused(parts: Parts, query: dict[str, Any], status: int, code: str) -> None:
    async with api_of(parts, []) as api:
        answer = await api.client.get("/v1/feed", params=query)
        assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{code}")
        stream = await api.client.get("/v1/feed", params=query, headers=EVENT_STREAM)
        assert (stream.status_code, stream.json()["type"]) == (status, f"/problems/{code}")


async def test_a_cursor_without_a_lane_of_this_system_is_refused(parts: Parts) -> None:
    """It is of a system with the same names, or its data was deleted. Before the catalog was read nobody knows."""
    lane = Lane("vehicles", 0, EPOCH)
    await append(parts, lane, 1)
    system = system_of(parts.settings.bucket, parts.settings.prefix)
    other = FeedCursor().after_object(replace(lane, epoch="20200101T000000000"), 5)
    async with api_of(parts, [lane]) as api:
        query = {"after": other.encode(system)}
        assert (await api.client.get("/v1/feed", params=query)).json()["events"] == []
        await api.update()
        refused = await api.client.get("/v1/feed", params=query)
        assert (refused.status_code, refused.json()["type"]) == (400, "/problems/invalid-cursor")
        known = {"after": other.after_object(lane, 1).encode(system)}
        assert (await api.client.get("/v1/feed", params=known)).json()["events"] == []
        ahead = {"after": other.after_object(lane, 99).encode(system)}  # of an API that has read more
        assert (await api.client.get("/v1/feed", params=ahead)).json()["events"] == []


async def test_a_read_that_failed_is_tried_again(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although followers share what is read until the catalog changes."""
    path = await append(parts, Lane("vehicles", 0, EPOCH), 1)
    async with api_of(parts, []) as api:
        await api.update()
        events, failures = api.index.events, [sqlite3.OperationalError("disk I/O error")]

        async def fail_once(*arguments: Any) -> Any:
            if failures:
                raise failures.pop()
            return await events(*arguments)

        monkeypatch.setattr(api.index, "events", fail_once)
        with pytest.raises(sqlite3.OperationalError):
            await api.client.get("/v1/feed")
        follower = Follower()
        await follower.catch_up(api.client)
        assert follower.paths() == [path]


# --- streams, of a real server


@dataclass
class Stream:
    """A client of server-sent events."""

    lines: AsyncIterator[str]

    async def next(self) -> dict[str, str]:
        """The fields of the next event, or of the next comment, whose field has no name."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(limit_s(10)):
            async for line in self.lines:
                if not line:
                    return fields
                name, _, value = line.partition(": ")
                fields[name] = value
        raise EOFError

    async def next_event(self) -> dict[str, str]:
        while "event" not in (fields := await self.next()):
            pass
        return fields


@asynccontextmanager
async def served(app: Any, parts_settings: Any) -> AsyncIterator[tuple[httpx.AsyncClient, uvicorn.Server]]:
    server = create_server(app, parts_settings.model_copy(update={"api_port": 0}), 5, lambda _code: None)
    server.config.port, server.config.host = 0, LOOPBACK
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://{LOOPBACK}:{port}", timeout=limit_s(20)) as client:
        yield client, server
    server.should_exit = True
    await serving


@asynccontextmanager
async def stream(client: httpx.AsyncClient, **headers: str) -> AsyncIterator[Stream]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with client.stream("GET", "/v1/feed", headers={**EVENT_STREAM, **named}) as answer:
        if answer.is_error:
            await answer.aread()
        answer.raise_for_status()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield Stream(answer.aiter_lines())


@asynccontextmanager
async def streaming(parts: Parts, **settings: Any) -> AsyncIterator[tuple[httpx.AsyncClient, uvicorn.Server, Api]]:
    """A real server whose index follows the catalog."""
    index = await CatalogIndex().open()
    changed = parts.settings.model_copy(update=settings)
    app = app_on(changed, [], parts.queue(1), parts.bucket, parts.catalog, parts.heard.telemetry, view=index)
    feed, stop = Feed(parts.jetstream), asyncio.Event()
    following = asyncio.create_task(index.follow(feed, stop, lambda _: None))
    async with served(app, changed) as (client, server):
        yield client, server, Api(client, index, feed)
    stop.set()
    await following
    await index.close()


async def test_a_stream_continues_after_its_last_event(parts: Parts) -> None:
    """By `Last-Event-ID`, which goes before `after`. The first id comes before any event."""
    lane = Lane("vehicles", 0, EPOCH)
    paths = [await append(parts, lane, number) for number in range(1, 4)]
    async with streaming(parts) as (client, _, _):
        async with stream(client) as events:
            begin = await events.next()
            assert (begin["id"], begin["retry"]) == ("", "2000")
            got = [await events.next_event() for _ in paths]
            assert [json.loads(event["data"])["file_path"] for event in got] == paths
            assert {event["event"] for event in got} == {"object"}
            paths.append(await append(parts, lane, 4))
            got.append(await events.next_event())
        for number, event in enumerate(got[:-1]):
            async with stream(client, Last_Event_ID=event["id"]) as events:
                assert json.loads((await events.next_event())["data"])["file_path"] == paths[number + 1]


async def test_a_stream_without_events_is_kept_alive(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_feed, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(api_feed, "CHECK_S", 0.1)
    async with streaming(parts) as (client, _, _), stream(client) as events:
        assert "id" in await events.next()
        assert await events.next() == {"": "ping"}


async def test_streams_end_when_the_server_stops(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, so that they do not use up the time of the requests in progress."""
    app_followers: list[Followers] = []
    made = Followers.__init__

    def note(followers: Followers, *arguments: Any, **named: Any) -> None:
        made(followers, *arguments, **named)
        app_followers.append(followers)

    monkeypatch.setattr(Followers, "__init__", note)
    async with streaming(parts) as (client, server, _):
        app_followers[0]._stopping = lambda: server.should_exit
        async with stream(client) as events:
            await events.next()
            server.should_exit = True
            async with asyncio.timeout(limit_s(api_feed.CHECK_S + 2)):
                with contextlib.suppress(EOFError):
                    while True:
                        await events.next()


async def test_too_many_followers_get_a_503(parts: Parts) -> None:
    """A follower that ends makes room. Requests that do not wait are always answered."""
    async with streaming(parts, followers_max=2) as (client, _, _):
        async with stream(client) as one, stream(client) as two:
            await one.next()
            await two.next()
            assert [point.value for point in parts.heard.points("bronze.feed.followers")] == [2]
            with pytest.raises(httpx.HTTPStatusError) as caught:
                async with stream(client):
                    pass
            problem = caught.value.response.json()
            assert (problem["type"], problem["setting"]) == ("/problems/overloaded", "BRONZE_FOLLOWERS_MAX")
            assert caught.value.response.headers["retry-after"]
            assert (await client.get("/v1/feed", params={"wait": 1})).status_code == 503
            assert (await client.get("/v1/feed")).status_code == 200

        async def has_room() -> bool:
            return (await client.get("/v1/feed", params={"wait": 0.01})).status_code == 200

        await until(has_room)


async def test_a_follower_survives_a_restart_of_the_queue(parts: Parts, nats: Process) -> None:
    """Its stream stays open, and nothing is sent twice."""
    lane = Lane("vehicles", 0, EPOCH)
    async with streaming(parts) as (client, _, _), stream(client) as events:
        got = []
        for number in range(1, 4):
            path = await append(parts, lane, number)
            got.append(json.loads((await events.next_event())["data"])["file_path"])
            assert got[-1] == path
            await asyncio.to_thread(nats.restart)
            await until(lambda: parts.jetstream.connected)
    assert len(set(got)) == 3


# --- identity


async def test_a_follower_gets_what_its_key_may_read(site: Site) -> None:
    """Also if it names nothing; a cursor of another key gives no access."""
    for source in ("vehicles", "status"):
        entry = entry_of(factories.contents(1, 1, file_path=source, source=source, epoch=EPOCH))
        await site.feed._js.publish(Outgoing(f"catalog.{source}.0.{EPOCH}", msgspec.json.encode(entry), {}))
    keys = {name: await site.keys.create(name, f"read:{name}") for name in ("vehicles", "status")}
    nothing = await site.keys.create("nothing", "ingest:*")
    admin = await site.keys.create("admin", "admin")
    async with site.api() as api:
        await updated(api.parts.index, site.feed)

        async def paths(key: str, **query: str) -> tuple[int, Any]:
            answer = await api.get("/v1/feed", key, **query)
            body = answer.json()
            return answer.status_code, [e["file_path"] for e in body["events"]] if answer.is_success else body["scope"]

        assert await paths(keys["vehicles"]) == (200, ["vehicles"])
        assert await paths(keys["status"]) == (200, ["status"])
        assert await paths(keys["status"], source="vehicles") == (403, "read:vehicles")
        assert await paths(nothing) == (403, "read:*")
        status, every = await paths(admin)
        assert (status, sorted(every)) == (200, ["status", "vehicles"])
        begin = (await api.get("/v1/feed", admin, limit="1")).json()
        assert await paths(keys["vehicles"], after=begin["cursor"]) in [(200, []), (200, ["vehicles"])]
        cursor = (await api.get("/v1/feed", keys["vehicles"])).json()["cursor"]
        assert set(FeedCursor.decode(cursor, api.parts.followers._system).positions) == {Lane("vehicles", 0, EPOCH)}


@pytest.mark.parametrize("ends", ["revoked", "expired"])
async def test_a_key_that_ends_ends_its_followers(site: Site, ends: str) -> None:
    """Within five seconds: a stream with an event that says why, a request that waits with a 401."""
    key = await site.keys.create("follower", "read:vehicles", expires_s=None if ends == "revoked" else 3)
    loop = asyncio.get_running_loop()
    async with site.api() as api, served(api.client._transport.app, site.settings) as (client, _):  # type: ignore[attr-defined]
        client.headers["Authorization"] = f"Bearer {key}"
        waiting = asyncio.create_task(client.get("/v1/feed", params={"wait": 30}))
        async with stream(client) as events:
            await events.next()
            if ends == "revoked":
                await site.keys.revoke(key)
            else:
                await asyncio.sleep(3)
            begin_s = loop.time()
            error = await events.next_event()
            assert (error["event"], json.loads(error["data"])["type"]) == ("error", "/problems/unauthenticated")
            with pytest.raises(EOFError):
                await events.next()
        assert (await waiting).status_code == 401
        assert loop.time() - begin_s < limit_s(5)
        assert (await client.get("/v1/feed")).status_code == 401
