"""The submissions that make a new system write every kind of data, always in the same order.

Consumers run only after a whole group is queued, so that each object has the same messages each time.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from signal import SIGKILL
from typing import Any
from urllib.parse import quote

import httpx
import pyarrow as pa
import pyarrow.parquet as pq

from tests.compat import state
from tests.compat.site import Api, Site, until
from tests.compat.telemetry import Heard

HERE = Path(__file__).parent
BUCKET = "bronze-compat"
#: The roles' settings in addition to their addresses; a consumer of a later version gets the same.
SETTINGS = {
    "BRONZE_SOURCES": str(HERE / "sources-2.toml"),
    "BRONZE_FLUSH_AGE_S": "0.1",
    "BRONZE_LOCK_EXPIRY_S": "1",
    "BRONZE_PURGE_GRACE_S": "600",  # so that all queued messages can be recorded
}
NDJSON, JSON, ARROW, PARQUET = (
    "application/x-ndjson",
    "application/json",
    "application/vnd.apache.arrow.stream",
    "application/vnd.apache.parquet",
)


@dataclass(frozen=True)
class Sending:
    """A submission as its client sends it, and its expected rows: `payloads` for JSON records, else `rows`."""

    source: str
    body: bytes
    media: str = NDJSON
    headers: Mapping[str, str] = field(default_factory=dict)
    quarantine: bool = False
    payloads: tuple[str, ...] = ()
    rows: int = 0

    @property
    def key(self) -> str | None:
        return self.headers.get("Idempotency-Key")

    def send(self, api: Api) -> httpx.Response:
        asked = f"/v1/ingest/{self.source}" + ("?on_invalid=quarantine" if self.quarantine else "")
        return api.post(asked, self.body, {"Content-Type": self.media, **self.headers})


def reading(name: str, **more: object) -> str:
    """A record of `readings`, with blanks, so that a changed payload is noticed."""
    return json.dumps({"sensor_id": name, "measured_at": "2013-01-01T05:15:00Z", **more}, ensure_ascii=False)


FULL: Mapping[str, object] = {
    "value": "12.500",
    "valid": True,
    "count": 7,
    "ratio": 0.25,
    "calibrated_on": "2013-01-01",
    "undeclared": {"nested": [1, 2.50, None, "ü"]},
}


def lines(*records: str, source: str = "readings", bad: Sequence[str] = (), **headers: str) -> Sending:
    """An NDJSON body; rejected records are after the first record and go to quarantine."""
    named = {name.replace("_", "-"): quote(value, safe=" ") for name, value in headers.items()}
    body = "".join(f"{record}\n" for record in (*records[:1], *bad, *records[1:]))
    payloads = tuple(record.strip() for record in records)
    return Sending(source, body.encode(), headers=named, quarantine=bool(bad), payloads=payloads)


def document(*records: str, **headers: str) -> Sending:
    """A JSON array with several lines, whose records contain line breaks."""
    broken = tuple(record.replace(", ", ",\n  ") for record in records)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Sending("readings", f"[{','.join(broken)}]".encode(), JSON, named, payloads=broken)


def table(name: str, rows: int, *, unit: bool = False) -> pa.Table:
    """Rows with a column of each declared type, and an undeclared column."""
    columns: dict[str, pa.Array] = {
        "sensor_id": pa.array([f"{name}-{row}" for row in range(rows)]),
        "measured_at": pa.array([datetime(2013, 1, 1, 5, 15, tzinfo=UTC)] * rows, pa.timestamp("us", "UTC")),
        "value": pa.array([Decimal("1.250")] * rows, pa.decimal128(12, 3)),
        "valid": pa.array([True] * rows),
        "count": pa.array(range(rows), pa.int32()),
        "ratio": pa.array([0.5] * rows, pa.float32()),
        "calibrated_on": pa.array([date(2013, 1, 1)] * rows),
        "classification_id": pa.array(["columns" if row % 2 else None for row in range(rows)]),
        "undeclared": pa.array([row / 2 for row in range(rows)]),
    }
    return pa.table(columns | ({"unit": pa.array(["K"] * rows)} if unit else {}))


def arrow(rows: pa.Table, **headers: str) -> Sending:
    sink = BytesIO()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Sending("readings", sink.getvalue(), ARROW, named, rows=rows.num_rows)


def parquet(rows: pa.Table, **headers: str) -> Sending:
    sink = BytesIO()
    pq.write_table(rows, sink, compression="none")
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Sending("readings", sink.getvalue(), PARQUET, named, rows=rows.num_rows)


def many(name: str, count: int, size: int = 0) -> list[str]:
    """So many records of about so many characters: more than 4 KiB are compressed, more than 1 MiB sent in parts."""
    return [reading(f"{name}-{row}", filling="x" * size) for row in range(count)]


FIRST = lines(
    reading("first-0", **FULL),
    reading("first-1"),
    '  {"sensor_id" : "first-2",   "measured_at":"2013-01-01T05:15:00.123456+01:00", "value": 1.250, "extra": null} ',
    Idempotency_Key="first",
    Bronze_Classification_Id="run of ü",
    Bronze_File_Name="folder/datei ü.ndjson",
)
BAD = ('{"sensor_id": 1, "measured_at": "2013-01-01T05:15:00Z"}', '{"sensor_id": "bad-1"}')
MIXED = lines(reading("mixed-0"), reading("mixed-1"), bad=BAD, Idempotency_Key="mixed", Bronze_File_Name="mixed.ndjson")
#: The corrections of the rejected records of `MIXED`; the second record is given up.
MENDED = reading("mended-0") + "\n\n"

STORED: Sequence[Sequence[Sending]] = (
    (
        FIRST,
        lines(*many("keyless", 60)),
        document(
            reading("document-0", classification_id="one"),
            reading("document-1", classification_id="two"),
            reading("document-2"),
            Idempotency_Key="document",
        ),
    ),
    (
        MIXED,
        document(*many("long document", 60), Idempotency_Key="long document"),
        arrow(table("arrow", 3), Idempotency_Key="arrow", Bronze_Classification_Id="default"),
        parquet(table("parquet", 200), Bronze_File_Name="a.parquet"),
        lines(reading("only bad"), bad=[f'{{"n": {n}}}' for n in range(40)], Idempotency_Key="many bad"),
    ),
    (
        lines(*many("parts", 9, 250_000), Idempotency_Key="parts"),
        lines(reading("second version", unit="K"), Idempotency_Key="second version"),
        Sending("events", b'{"name": "an object"}', JSON, payloads=('{"name": "an object"}',)),
    ),
)
#: A submission of three parts, of which only two are stored.
HALF = lines(*many("half", 9, 250_000), Idempotency_Key="half")
WAITING: Sequence[Sending] = (
    lines(reading("waiting-0", unit="K", **FULL), Idempotency_Key="waiting", Bronze_File_Name="waiting.ndjson"),
    lines(*many("waiting keyless", 60)),
    lines(*many("waiting parts", 9, 250_000), Idempotency_Key="waiting parts"),
    document(reading("waiting document", classification_id="one"), Idempotency_Key="waiting document"),
    document(*many("waiting long document", 60), Idempotency_Key="waiting long document"),
    lines(reading("waiting mixed-0"), reading("waiting mixed-1"), bad=BAD, Idempotency_Key="waiting mixed"),
    arrow(table("waiting arrow", 3, unit=True), Idempotency_Key="waiting arrow"),
    parquet(table("waiting parquet", 200), Idempotency_Key="waiting parquet"),
    Sending("events", b'{"name": "waiting"}', JSON, payloads=('{"name": "waiting"}',)),
)
#: A message in the first version of the format, without the headers of later versions.
LEGACY_ID = "1a3a3a62-5e0f-5c5e-8f6e-3f1c5a0f6d10"
LEGACY = tuple(reading(f"legacy-{number}") for number in range(2))
LEGACY_HEADERS = {
    "Bronze-Format": "1",
    "Bronze-Part": "1/1",
    "Bronze-First-Record": "0",
    "Bronze-Records": "2",
    "Bronze-Submission": json.dumps(
        {
            "submission_id": LEGACY_ID,
            "source": "readings",
            "digest": hashlib.sha256("".join(LEGACY).encode()).hexdigest(),
            "records": 2,
            "classification_id": "legacy",
            "classification_default": "legacy",
            "classification_count": 1,
            "received_at": "2013-01-01T05:15:00.000000+00:00",
            "trace_id": "0af7651916cd43dd8448eb211c80319c",
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        }
    ),
}


#: A publisher's standard input, and the name of the publish run: its keys are a function of both.
PUBLISHED = b'{"name": "published-0"}\n{"name": "published-1"}\n'
PUBLISH = ("publish", "events", "-", "--run", "nightly", "--json")
#: A file in a watched directory, and its modification time.
WATCHED = ("watched.ndjson", '{"name": "watched"}\n', 1_357_017_300)


@dataclass
class Played:
    """The answers that clients got: each submission's 202, and the output of commands."""

    stored: list[tuple[Sending, dict[str, Any]]] = field(default_factory=list)
    waiting: list[tuple[Sending, dict[str, Any]]] = field(default_factory=list)
    said: dict[str, str] = field(default_factory=dict)


def accepted(sending: Sending, api: Api) -> tuple[Sending, dict[str, Any]]:
    answer = sending.send(api)
    assert answer.status_code == httpx.codes.ACCEPTED, answer.text
    body: dict[str, Any] = answer.json()
    return sending, body


class Player:
    """Sends all submissions to a running queue and bucket, and lets consumers store a part of them."""

    def __init__(self, site: Site, heard: Heard) -> None:
        self._site = site
        self._heard = heard
        self.played = Played()

    def play(self, look: Callable[[Played, Api], None]) -> None:
        """`look` is called at the end, while the API still runs."""
        first = {"BRONZE_SOURCES": str(HERE / "sources-1.toml")}
        with self._api(**first) as api:
            self._stored(STORED[0], api)
            self._raw("events", "01a00000-0000-7000-8000-000000000001", b"no message of ours", {})
            self._consume(**first)
            first_id = self.played.stored[0][1]["submission_id"]
            self._again(first_id)
            self._again(first_id, digest="0" * 64)
            self._stored(STORED[1], api)
            self._consume(**first)
        with self._api(BRONZE_VIEW_DIR=str(self._site.root / "view")) as api:
            self._stored(STORED[2], api)
            self.played.said["published"] = self._run(*PUBLISH, api=api, given=PUBLISHED)
            self._watch(api)
            self._consume(BRONZE_OBJECT_MESSAGES_MAX="2")
            self._replay(api)
            self._stored([HALF], api)
            self._store_half()
            self._wait(api)
            look(self.played, api)
            self._heard.scrape("api", api.port)

    # --- the roles

    @contextmanager
    def _api(self, **env: str) -> Iterator[Api]:
        with self._site.started(self._site.role("api", "serve", **self._heard.env, **env)) as process:
            yield Api.of(process)

    def _consume(self, **env: str) -> None:
        """Run a consumer until everything in the queue is stored."""
        consumer = self._site.started(self._site.role("consumer", "consume", **self._heard.env, **env))
        with consumer:
            until("all is stored", lambda: state.drained(self._site.nats_port))
            self._heard.scrape("consumer", consumer.program.ports["http"])
        assert consumer.wait(0) == 0, consumer.log.read_text()

    def _store_half(self) -> None:
        """Run a consumer up to the second part of `HALF`, and kill it, so that it still has the lane's lock."""
        port = self._site.nats_port

        def readings() -> tuple[int, int, int]:
            return next(found for name, found in state.lanes(port).items() if name.startswith("BRONZE_READINGS"))

        _, last, _ = readings()
        with denied(self._site, f"bronze/source=readings/*-{last:012}.parquet"):
            # without telemetry: it is unknown how much of it is exported before the kill
            consumer = self._site.started(self._site.role("consumer", "consume", BRONZE_OBJECT_MESSAGES_MAX="3"))
            until("two parts are stored", lambda: readings()[2] == last - 1)
            consumer.signal(SIGKILL)

    # --- the submissions

    def _stored(self, sendings: Sequence[Sending], api: Api) -> None:
        self.played.stored += [accepted(one, api) for one in sendings]

    def _wait(self, api: Api) -> None:
        """Send submissions that no consumer has read yet."""
        self.played.waiting += [accepted(one, api) for one in WAITING]
        self._again(self.played.stored[2][1]["submission_id"])
        self._raw("readings", LEGACY_ID, f"[{','.join(LEGACY)}]".encode(), LEGACY_HEADERS)
        cut_off = {"submission_id": "01a00000-0000-7000-8000-000000000002"}
        said = json.dumps(json.loads(LEGACY_HEADERS["Bronze-Submission"]) | cut_off)
        headers = {**LEGACY_HEADERS, "Bronze-Submission": said}
        self._raw("readings", cut_off["submission_id"], b'[{"sensor_id": "cut off', headers)
        self._raw("events", "01a00000-0000-7000-8000-000000000003", b"no message of ours", {})

    def _replay(self, api: Api) -> None:
        mended = self._site.root / "mended.ndjson"
        mended.write_text(MENDED)
        mixed = next(answer for sending, answer in self.played.stored if sending is MIXED)
        replay = ("quarantine", "replay", "--submission", mixed["submission_id"], "--yes", "--file", str(mended))
        self.played.said["replayed"] = self._run(*replay, api=api)

    def _watch(self, api: Api) -> None:
        """Run a publisher that watches a directory until it has sent the file."""
        name, content, written_s = WATCHED
        directory, report = self._site.root / "watched", self._site.root / "report.ndjson"
        directory.mkdir()
        (directory / name).write_text(content)
        os.utime(directory / name, (written_s, written_s))
        words = ("publish", "events", "--watch", str(directory), "--settle", "0", "--report", str(report))
        with self._site.started(self._site.publisher(*words, BRONZE_API_URL=api.url, **self._heard.env)) as publisher:
            told = json.loads(until("the file is sent", lambda: report.read_text() if report.exists() else None))
            self.played.said["watched"] = json.dumps({**told, "file": name})
            self._heard.scrape("publisher", publisher.program.ports["http"])

    def _run(self, *words: str, api: Api, given: bytes = b"") -> str:
        return self._site.run(*words, given=given, BRONZE_API_URL=api.url, **self._heard.env)

    # --- messages that no current API would send

    def _raw(self, source: str, submission_id: str, payload: bytes, headers: Mapping[str, str]) -> None:
        state.publish(self._site.nats_port, f"bronze.{source}.0.{submission_id}", payload, headers)

    def _again(self, submission_id: str, *, digest: str | None = None) -> None:
        """Publish a submission's first message again, as a late copy that arrives after the purge, optionally with
        another body.
        """
        messages = [one for stream in state.read_queue(self._site.nats_port) for one in stream["messages"]]
        first = next(one for one in messages if one["subject"] == f"bronze.readings.0.{submission_id}")
        headers = {name: value for name, value in first["headers"] if name.startswith("Bronze-")}
        if digest:
            said = json.loads(headers["Bronze-Submission"]) | {"digest": digest}
            headers["Bronze-Submission"] = json.dumps(said, separators=(",", ":"))
        self._raw("readings", submission_id, state.as_bytes(first["payload"]), headers)


@contextmanager
def denied(site: Site, pattern: str) -> Iterator[None]:
    """In the context, the bucket's policy denies every PUT of such keys."""
    statement = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": ["s3:PutObject"],
        "Resource": [f"arn:aws:s3:::{site.account.bucket}/{pattern}"],
    }
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    site.s3.put_bucket_policy(Bucket=site.account.bucket, Policy=json.dumps(policy))
    try:
        yield
    finally:
        site.s3.delete_bucket_policy(Bucket=site.account.bucket)
