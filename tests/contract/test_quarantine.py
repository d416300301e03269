"""Quarantine on request, from the API through queue and consumer to the bucket, and out again."""

import asyncio
import json
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio

from bronze.admin.quarantine import CommandError, find, load
from bronze.admin.quarantine_command import run
from bronze.admin.quarantine_replay import match_lines, replay
from bronze.consumer.lane_writer import LaneWriter
from bronze.protocol.lane import Lane, lane_subject
from bronze.records.media import NDJSON
from bronze.servers.catalog import NatsCatalog
from bronze.servers.jetstream import JetStream, Outgoing
from bronze.servers.key_value import KeyValueStore
from bronze.servers.lane_lock import NatsLock
from bronze.servers.queue import NatsQueue
from bronze.servers.s3 import S3Bucket
from bronze.settings import Settings
from bronze.telemetry.signals import Role
from bronze.wiring import limits
from tests.contract.making import SOURCES, Heard, app_on, until

INGEST = "/v1/ingest/vehicles?on_invalid=quarantine"
GOOD = b'{"vehicle_id":"good"}'
WRONG = b'{"vehicle_id": 7,  "seats":1}'
BROKEN = b'{"vehicle_id":"a"'
NO_TEXT = b'{"vehicle_id":"\xff\xfe"}'


@dataclass
class Served:
    """API and consumer in process, on a queue and keys of their own."""

    client: httpx.AsyncClient
    settings: Settings
    lane: Lane
    queue: NatsQueue
    bucket: S3Bucket
    catalog: NatsCatalog
    key_values: KeyValueStore
    api: Heard
    consumer: Heard

    async def post(self, body: bytes, path: str = INGEST, media: str = NDJSON, **headers: str) -> httpx.Response:
        sent = {"Content-Type": media} | {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(path, content=body, headers=sent)

    @asynccontextmanager
    async def consuming(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        writer = LaneWriter(
            self.lane,
            SOURCES["vehicles"],
            self.queue,
            self.bucket,
            self.catalog,
            NatsLock(self.key_values, self.lane, "test", self.settings.lock_expiry_s),
            self.consumer.telemetry,
            prefix=self.settings.prefix,
            limits=limits(self.settings),
            purge_grace_s=self.settings.purge_grace_s,
        )
        task = asyncio.create_task(writer.run(stop))
        try:
            yield
        finally:
            stop.set()
            await asyncio.wait_for(task, 10)

    async def done(self, accepted: httpx.Response) -> dict[str, Any]:
        """A submission's status, once all of it is where it stays."""
        assert accepted.status_code == 202, accepted.text
        status: dict[str, Any] = {}

        async def claim() -> bool:
            nonlocal status
            status = (await self.client.get(accepted.json()["status_url"])).json()
            return bool(status["status"] != "accepted")

        await until(claim)
        return status

    async def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        async for key in self.bucket.keys(f"{self.settings.prefix}/"):
            head = await self.bucket.head(key)
            assert head is not None
            found += pq.read_table(pa.BufferReader(await self.bucket.read(key, 0, head.size))).to_pylist()
        return found


@pytest_asyncio.fixture
async def served(
    settings: Settings,
    queue: NatsQueue,
    bucket: S3Bucket,
    catalog: NatsCatalog,
    key_values: KeyValueStore,
    heard: Heard,
) -> AsyncIterator[Served]:
    lanes = await queue.open(SOURCES)
    api = Heard(Role.API)
    app = app_on(settings, lanes, queue, bucket, catalog, api.telemetry)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
        yield Served(client, settings, lanes[0], queue, bucket, catalog, key_values, api, heard)
    api.telemetry.shutdown()


async def test_good_records_are_stored_and_bad_ones_kept(served: Served) -> None:
    """Each is where it belongs, byte for byte, under its index; and accepted is stored and quarantined."""
    body = b"\n".join([GOOD, WRONG, GOOD, BROKEN, NO_TEXT, GOOD])
    accepted = await served.post(body, Bronze_Classification_Id="run", Bronze_File_Name="a.ndjson")
    said = accepted.json()
    assert (said["records"], said["rejected"], said["classification_id"]) == (3, 3, "run")
    async with served.consuming():
        status = await served.done(accepted)
    assert (status["status"], status["records"], status["rejected"]) == ("quarantined", 3, 3)
    assert [(row["_record_index"], row["_payload"].encode()) for row in await served.rows()] == [
        (index, GOOD) for index in (0, 2, 5)
    ]
    (key,) = status["quarantine"]
    aside = await load(served.bucket, key)
    assert [(one.index, one.kind, one.field, one.raw) for one in aside.records] == [
        (1, "schema-violation", "vehicle_id", WRONG),
        (3, "malformed-json", None, BROKEN),
        (4, "invalid-utf8", None, NO_TEXT),
    ]
    assert aside.accepted is not None
    assert (aside.submission_id, aside.accepted.origin, aside.accepted.classification_default) == (
        said["submission_id"],
        "a.ndjson",
        "run",
    )
    contents = (await served.client.get(status["objects"][0]["url"])).json()
    assert [(one["key"], one["kind"], one["records"]) for one in contents["quarantined"]] == [(key, "rejected", 3)]
    assert served.api.count("bronze.records", bronze_outcome="accepted") == 6
    assert served.api.count("bronze.records.invalid") == 3
    assert served.api.count("bronze.records.invalid", error_type="malformed-json") == 1
    assert served.consumer.count("bronze.records", bronze_outcome="stored") == 3
    assert served.consumer.count("bronze.records", bronze_outcome="quarantined") == 3
    assert served.consumer.count("bronze.consumer.errors") == 0


async def test_a_body_of_nothing_but_bad_records_is_kept_whole(served: Served) -> None:
    """Nothing of it is stored, and its run is the one that its sender named."""
    accepted = await served.post(
        b'[{"vehicle_id":7}, \n{"vehicle_id":\n 8}]', media="application/json", Bronze_Classification_Id="run"
    )
    assert (accepted.json()["records"], accepted.json()["rejected"]) == (0, 2)
    assert accepted.json()["classification_id"] == "run"
    async with served.consuming():
        status = await served.done(accepted)
    assert status["status"] == "quarantined"
    assert await served.rows() == []
    aside = await load(served.bucket, status["quarantine"][0])
    assert [one.raw for one in aside.records] == [b'{"vehicle_id":7}', b'{"vehicle_id":\n 8}']


async def test_a_retry_is_the_same_submission(served: Served) -> None:
    """Before and after it is stored. In the other mode, the body is refused as it would be without a key."""
    body = b"\n".join([GOOD, WRONG])
    first = await served.post(body, Idempotency_Key="k")
    assert (await served.post(body, Idempotency_Key="k")).json() == first.json()
    async with served.consuming():
        await served.done(first)
    assert (await served.post(body, Idempotency_Key="k")).json() == first.json()
    refused = await served.post(body, "/v1/ingest/vehicles?on_invalid=refuse", Idempotency_Key="k")
    assert (refused.status_code, refused.json()["record"]) == (422, 1)
    assert len(await served.rows()) == 1


@pytest.mark.parametrize(
    ("path", "body", "media", "status", "kind"),
    [
        ("/v1/ingest/vehicles", WRONG, NDJSON, 422, "schema-violation"),
        ("/v1/ingest/vehicles?on_invalid=keep", GOOD, NDJSON, 400, "invalid-header"),
        (INGEST, b" \n", NDJSON, 400, "empty-body"),
        (INGEST, b"[{", "application/json", 400, "malformed-json"),
        (INGEST, b"PAR1", "application/vnd.apache.parquet", 400, "invalid-header"),
        (INGEST, b'{"vehicle_id":"%s"}' % (b"a" * 2**20), NDJSON, 413, "record-too-large"),
    ],
)
async def test_what_is_refused_all_the_same(
    path: str, body: bytes, media: str, status: int, kind: str, served: Served
) -> None:
    """Without being asked; and what no quarantine can help."""
    answer = await served.post(body, path, media)
    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{kind}")
    assert (await served.queue.state(served.lane)).messages == 0


async def test_mended_records_are_replayed_once(served: Served) -> None:
    """Under the run and the file that they came with; other records in their place are refused, mark or not."""
    body = b"\n".join([GOOD, WRONG, BROKEN])
    accepted = await served.post(body, Bronze_Classification_Id="run", Bronze_File_Name="a.ndjson")
    async with served.consuming():
        (key,) = (await served.done(accepted))["quarantine"]
        aside = await load(served.bucket, key)
        (still_bad,) = match_lines([aside], [b'{"vehicle_id":"b"}', BROKEN])
        with pytest.raises(CommandError, match=r"record 2 of its submission"):
            await replay(served.bucket, served.client, still_bad)
        (again,) = match_lines([aside], [b'{"vehicle_id":"b"}', b'{"vehicle_id":"c"}'])
        mark = await replay(served.bucket, served.client, again)
        (other,) = match_lines([aside], [b'{"vehicle_id":"b"}', b""])
        with pytest.raises(CommandError, match=mark.submission_id):  # as after a crash before the mark
            await replay(served.bucket, served.client, other)
        marked = await load(served.bucket, key)
        assert marked.replayed == mark
        (again,) = match_lines([marked], [b'{"vehicle_id":"b"}', b'{"vehicle_id":"c"}'])
        assert await replay(served.bucket, served.client, again) == mark
        await served.done(await served.post(GOOD, "/v1/ingest/vehicles"))  # a lane is in order
    rows = [row for row in await served.rows() if row["_submission_id"] == mark.submission_id]
    assert [(row["vehicle_id"], row["classification_id"], row["_origin"]) for row in rows] == [
        ("b", "run", "a.ndjson"),
        ("c", "run", "a.ndjson"),
    ]


async def test_poison_is_listed_and_replayed_by_its_headers(
    served: Served, jetstream: JetStream, capsys: pytest.CaptureFixture[str]
) -> None:
    """The object that lists a message has kept them; a message without any is listed as it is."""
    async with served.consuming():
        await served.done(await served.post(GOOD, "/v1/ingest/vehicles", Bronze_Classification_Id="run"))
    there = await served.queue.get(served.lane, 1)
    assert there is not None
    bad = there.payload.replace(b'"good"', b"1")
    other = "0" * 8 + there.submission_id[8:]
    headers = {name: text.replace(there.submission_id, other) for name, text in there.headers.items()}
    subject = lane_subject("vehicles", 0, other)
    plain = {name: text for name, text in headers.items() if name.startswith("Bronze-")}
    await jetstream.publish(Outgoing(subject, bad, plain))
    await jetstream.publish(Outgoing(lane_subject("vehicles", 0, "x"), b"\x00", {}))
    async with served.consuming():
        await served.done(await served.post(GOOD, "/v1/ingest/vehicles"))
        found = [one async for one in find(served.bucket, source="vehicles", submission_id=other)]
        (poison,) = [one for one in found if served.lane.epoch in one.key]
        assert [(one.index, one.raw) for one in poison.records] == [(0, b'{"vehicle_id":1}')]
        (again,) = match_lines([poison], [GOOD])
        mark = await replay(served.bucket, served.client, again)
        assert (await served.client.get(f"/v1/submissions/{mark.submission_id}")).json()["classification_id"] == "run"
    args = Namespace(action="list", source="vehicles", since="", json=True)
    assert await run(args, served.settings, served.bucket) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ours = {one["submission_id"]: one for one in listed if served.lane.epoch in one["key"]}
    assert ours[other]["replayed_as"] == mark.submission_id
    assert ours["x"]["records"] == [{"index": None, "kind": None, "field": None, "reason": None}]
    with pytest.raises(CommandError, match="cannot be separated"):
        match_lines([await load(served.bucket, ours["x"]["key"])], [b"{}"])


async def test_a_replay_asks_until_the_api_answers(served: Served) -> None:
    """What stands before it may fail or answer for it: a 503 is waited out, and a page of somebody else's is told."""
    async with served.consuming():
        (key,) = (await served.done(await served.post(WRONG)))["quarantine"]
    (again,) = match_lines([await load(served.bucket, key)], [GOOD])
    before = [httpx.Response(503, text="away"), httpx.Response(404, text="<html>")]

    async def answer(request: httpx.Request) -> httpx.Response:
        if before:
            return before.pop(0)
        return await served.post(request.content, request.url.path, Idempotency_Key=request.headers["idempotency-key"])

    async with httpx.AsyncClient(base_url="http://front", transport=httpx.MockTransport(answer)) as front:
        with pytest.raises(CommandError, match="http://front/v1/ingest/vehicles answers 404"):
            await replay(served.bucket, front, again)
        assert before == []
        assert (await replay(served.bucket, front, again)).records == 1
