"""Quarantine on request: from the API through queue and consumer to the bucket, and the replay from valid."""

import asyncio
import json
import os
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
from aiorwlock import RWLock

from bronze.__main__ import parser
from bronze.admin.command_error import CommandError
from bronze.admin.confirmation import Confirmation
from bronze.admin.quarantine import find, load
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
from bronze.wiring.commands import run_quarantine
from bronze.wiring.consumer import limits
from local.machine import limit_s
from local.servers import S3Account
from tests.contract.making import SOURCES, Heard, app_on, until
from tests.contract.test_what_commands_act_on import terminal

__all__ = ["terminal"]

INGEST = "/v1/ingest/vehicles?on_invalid=quarantine"
GOOD = b'{"vehicle_id":"good"}'
WRONG_TYPE = b'{"vehicle_id": 7,  "seats":1}'
NOT_JSON = b'{"vehicle_id":"a"'
NOT_UTF8 = b'{"vehicle_id":"\xff\xfe"}'


@dataclass
class Served:
    """API and consumer in process, on their own queue and keys."""

    client: httpx.AsyncClient
    settings: Settings
    lane: Lane
    queue: NatsQueue
    bucket: S3Bucket
    catalog: NatsCatalog
    key_values: KeyValueStore
    api: Heard
    consumer: Heard

    async def post(self, body: bytes, path: str = INGEST, media_type: str = NDJSON, **headers: str) -> httpx.Response:
        sent = {"Content-Type": media_type} | {name.replace("_", "-"): value for name, value in headers.items()}
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
            RWLock(),
            prefix=self.settings.prefix,
            limits=limits(self.settings),
            purge_grace_s=self.settings.purge_grace_s,
        )
        task = asyncio.create_task(writer.run(stop))
        try:
            yield
        finally:
            stop.set()
            await asyncio.wait_for(task, limit_s(10))

    async def done(self, accepted: httpx.Response) -> dict[str, Any]:
        """The final status of a submission, after all of it is stored or in quarantine."""
        assert accepted.status_code == 202, accepted.text
        status: dict[str, Any] = {}

        async def final() -> bool:
            nonlocal status
            status = (await self.client.get(accepted.json()["status_url"])).json()
            return bool(status["status"] != "accepted")

        await until(final)
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


async def test_valid_records_are_stored_and_rejected_records_quarantined(served: Served) -> None:
    """Byte for byte, with their indices; and the counts of accepted equal those of stored plus quarantined."""
    body = b"\n".join([GOOD, WRONG_TYPE, GOOD, NOT_JSON, NOT_UTF8, GOOD])
    accepted = await served.post(body, Bronze_Classification_Id="run", Bronze_File_Name="a.ndjson")
    answer = accepted.json()
    assert (answer["records"], answer["rejected"], answer["classification_id"]) == (3, 3, "run")
    async with served.consuming():
        status = await served.done(accepted)
    assert (status["status"], status["records"], status["rejected"]) == ("quarantined", 3, 3)
    assert [(row["_record_index"], row["_payload"].encode()) for row in await served.rows()] == [
        (index, GOOD) for index in (0, 2, 5)
    ]
    (key,) = status["quarantine"]
    quarantined = await load(served.bucket, key)
    assert [(record.index, record.kind, record.field, record.raw) for record in quarantined.records] == [
        (1, "schema-violation", "vehicle_id", WRONG_TYPE),
        (3, "malformed-json", None, NOT_JSON),
        (4, "invalid-utf8", None, NOT_UTF8),
    ]
    assert quarantined.accepted is not None
    assert (
        quarantined.submission_id,
        quarantined.accepted.origin,
        quarantined.accepted.classification_default,
    ) == (
        answer["submission_id"],
        "a.ndjson",
        "run",
    )
    contents = (await served.client.get(status["objects"][0]["url"])).json()
    assert [(link["key"], link["kind"], link["records"]) for link in contents["quarantined"]] == [(key, "rejected", 3)]
    assert served.api.count("bronze.records", bronze_outcome="accepted") == 6
    assert served.api.count("bronze.records.invalid") == 3
    assert served.api.count("bronze.records.invalid", error_type="malformed-json") == 1
    assert served.consumer.count("bronze.records", bronze_outcome="stored") == 3
    assert served.consumer.count("bronze.records", bronze_outcome="quarantined") == 3
    assert served.consumer.count("bronze.consumer.errors") == 0


async def test_a_submission_of_rejected_records_only_is_quarantined(served: Served) -> None:
    """Nothing of it is stored, and its classification_id is that of the header."""
    accepted = await served.post(
        b'[{"vehicle_id":7}, \n{"vehicle_id":\n 8}]', media_type="application/json", Bronze_Classification_Id="run"
    )
    assert (accepted.json()["records"], accepted.json()["rejected"]) == (0, 2)
    assert accepted.json()["classification_id"] == "run"
    async with served.consuming():
        status = await served.done(accepted)
    assert status["status"] == "quarantined"
    assert await served.rows() == []
    quarantined = await load(served.bucket, status["quarantine"][0])
    assert [record.raw for record in quarantined.records] == [b'{"vehicle_id":7}', b'{"vehicle_id":\n 8}']


async def test_a_retry_is_the_same_submission(served: Served) -> None:
    """Before and after it is stored. With `on_invalid=refuse`, the body is refused as it would be without a key."""
    body = b"\n".join([GOOD, WRONG_TYPE])
    first = await served.post(body, Idempotency_Key="k")
    assert (await served.post(body, Idempotency_Key="k")).json() == first.json()
    async with served.consuming():
        await served.done(first)
    assert (await served.post(body, Idempotency_Key="k")).json() == first.json()
    refused = await served.post(body, "/v1/ingest/vehicles?on_invalid=refuse", Idempotency_Key="k")
    assert (refused.status_code, refused.json()["record"]) == (422, 1)
    assert len(await served.rows()) == 1


@pytest.mark.parametrize(
    ("path", "body", "media_type", "status", "kind"),
    [
        ("/v1/ingest/vehicles", WRONG_TYPE, NDJSON, 422, "schema-violation"),
        ("/v1/ingest/vehicles?on_invalid=keep", GOOD, NDJSON, 400, "invalid-header"),
        (INGEST, b" \n", NDJSON, 400, "empty-body"),
        (INGEST, b"[{", "application/json", 400, "malformed-json"),
        (INGEST, b"PAR1", "application/vnd.apache.parquet", 400, "invalid-header"),
        (INGEST, b'{"vehicle_id":"%s"}' % (b"a" * 2**20), NDJSON, 413, "record-too-large"),
    ],
)
async def test_what_is_still_refused(
    path: str, body: bytes, media_type: str, status: int, kind: str, served: Served
) -> None:
    """Without `on_invalid=quarantine`; and errors that do not concern a single record."""
    answer = await served.post(body, path, media_type)
    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{kind}")
    assert (await served.queue.state(served.lane)).messages == 0


async def test_corrected_records_are_replayed_once(served: Served) -> None:
    """With their classification and file name. Other records in their place are refused, with or without a mark."""
    body = b"\n".join([GOOD, WRONG_TYPE, NOT_JSON])
    accepted = await served.post(body, Bronze_Classification_Id="run", Bronze_File_Name="a.ndjson")
    async with served.consuming():
        (key,) = (await served.done(accepted))["quarantine"]
        quarantined = await load(served.bucket, key)
        (still_wrong,) = match_lines([quarantined], [b'{"vehicle_id":"b"}', NOT_JSON])
        with pytest.raises(CommandError, match=r"record 2 of its submission"):
            await replay(served.bucket, served.client, still_wrong)
        (corrected,) = match_lines([quarantined], [b'{"vehicle_id":"b"}', b'{"vehicle_id":"c"}'])
        mark = await replay(served.bucket, served.client, corrected)
        (other,) = match_lines([quarantined], [b'{"vehicle_id":"b"}', b""])
        with pytest.raises(CommandError, match=mark.submission_id):  # as after a crash before the mark
            await replay(served.bucket, served.client, other)
        marked = await load(served.bucket, key)
        assert marked.replayed == mark
        (corrected,) = match_lines([marked], [b'{"vehicle_id":"b"}', b'{"vehicle_id":"c"}'])
        assert await replay(served.bucket, served.client, corrected) == mark
        await served.done(
            await served.post(GOOD, "/v1/ingest/vehicles")
        )  # stored after the replay, since a lane is in order
    rows = [row for row in await served.rows() if row["_submission_id"] == mark.submission_id]
    assert [(row["vehicle_id"], row["classification_id"], row["_origin"]) for row in rows] == [
        ("b", "run", "a.ndjson"),
        ("c", "run", "a.ndjson"),
    ]


async def test_a_dead_letter_is_listed_and_replayed_by_its_headers(
    served: Served, jetstream: JetStream, capsys: pytest.CaptureFixture[str]
) -> None:
    """The object that lists the message has its headers. A message without headers is listed too."""
    async with served.consuming():
        await served.done(await served.post(GOOD, "/v1/ingest/vehicles", Bronze_Classification_Id="run"))
    valid = await served.queue.get(served.lane, 1)
    assert valid is not None
    bad = valid.payload.replace(b'"good"', b"1")
    other = "0" * 8 + valid.submission_id[8:]
    headers = {name: text.replace(valid.submission_id, other) for name, text in valid.headers.items()}
    subject = lane_subject("vehicles", 0, other)
    plain = {name: text for name, text in headers.items() if name.startswith("Bronze-")}
    await jetstream.publish(Outgoing(subject, bad, plain))
    await jetstream.publish(Outgoing(lane_subject("vehicles", 0, "x"), b"\x00", {}))
    async with served.consuming():
        await served.done(await served.post(GOOD, "/v1/ingest/vehicles"))
        found = [quarantined async for quarantined in find(served.bucket, source="vehicles", submission_id=other)]
        (dead_letter,) = [quarantined for quarantined in found if served.lane.epoch in quarantined.key]
        assert [(record.index, record.raw) for record in dead_letter.records] == [(0, b'{"vehicle_id":1}')]
        (corrected,) = match_lines([dead_letter], [GOOD])
        mark = await replay(served.bucket, served.client, corrected)
        assert (await served.client.get(f"/v1/submissions/{mark.submission_id}")).json()["classification_id"] == "run"
    args = Namespace(action="list", source="vehicles", since="", json=True)
    assert await run(args, served.settings, served.bucket, Confirmation([], yes=True)) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ours = {item["submission_id"]: item for item in listed if served.lane.epoch in item["key"]}
    assert ours[other]["replayed_as"] == mark.submission_id
    assert ours["x"]["records"] == [{"index": None, "kind": None, "field": None, "reason": None}]
    with pytest.raises(CommandError, match="cannot be separated"):
        match_lines([await load(served.bucket, ours["x"]["key"])], [b"{}"])


async def test_a_replay_names_bucket_and_api_and_asks(
    served: Served, terminal: int, s3_account: S3Account, capsys: pytest.CaptureFixture[str]
) -> None:
    """Declined, it sends nothing: no API listens at the address. The address is shown without its password."""
    async with served.consuming():
        (key,) = (await served.done(await served.post(WRONG_TYPE)))["quarantine"]
    os.write(terminal, b"n\n")
    settings = served.settings.model_copy(
        update={"bucket": s3_account.bucket, "api_url": "http://user:word@127.0.0.1:1"}
    )
    args = parser().parse_args(["quarantine", "replay", key])
    assert await run_quarantine(args, settings) == 1
    endpoint = s3_account.env["AWS_ENDPOINT_URL_S3"]
    assert capsys.readouterr().err == (
        f"Acts on the bucket {s3_account.bucket} at {endpoint}, prefix quarantine/\n"
        "Acts on the API at http://127.0.0.1:1\n"
        "Send 1 record of 1 quarantine object to the API? Each quarantine object can be replayed once. [y/N] "
        "bronze quarantine: not confirmed: nothing was changed\n"
    )


async def test_a_replay_is_retried_until_the_api_answers(served: Served) -> None:
    """A proxy in front of the API may answer instead of it: a 503 is retried, and any other error is reported."""
    async with served.consuming():
        (key,) = (await served.done(await served.post(WRONG_TYPE)))["quarantine"]
    (corrected,) = match_lines([await load(served.bucket, key)], [GOOD])
    proxy_answers = [httpx.Response(503, text="unavailable"), httpx.Response(404, text="<html>")]

    async def answer(request: httpx.Request) -> httpx.Response:
        if proxy_answers:
            return proxy_answers.pop(0)
        return await served.post(request.content, request.url.path, Idempotency_Key=request.headers["idempotency-key"])

    async with httpx.AsyncClient(base_url="http://front", transport=httpx.MockTransport(answer)) as front:
        with pytest.raises(CommandError, match="http://front/v1/ingest/vehicles answers 404"):
            await replay(served.bucket, front, corrected)
        assert proxy_answers == []
        assert (await replay(served.bucket, front, corrected)).records == 1
