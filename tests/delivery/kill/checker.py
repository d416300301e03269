"""Checks the delivery promise: reads bucket, catalog and queue, and compares them with the accepted records."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from itertools import pairwise
from typing import TYPE_CHECKING

import boto3
import msgspec
import pyarrow.parquet as pq

from bronze.objects.footer import FOOTER_KEY
from bronze.protocol import message, rejected_records
from bronze.protocol.documents import CatalogEntry, Contents, Identity, StoredObject, Totals, entry_of
from bronze.protocol.lane import Lane
from bronze.protocol.message import PLACEHOLDER, MessageKind
from bronze.servers.catalog import KEYED_TTL, UNKEYED_TTL
from bronze.servers.jetstream import TTL, JetStream
from local.servers import S3Account

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass
class Sent:
    """The records that clients sent, by their answers. A record is its JSON text; all records differ.

    `unknown` got no answer, or an answer with an unknown outcome; `refused` got an answer that nothing was stored.
    `foreign` arrived late under the subject of another body: no client got an answer for them.
    """

    accepted: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    foreign: set[str] = field(default_factory=set)
    #: ids of accepted submissions, and whether they have a key
    submissions: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """The contents of the servers after everything is drained."""

    #: each object's own footer and its rows' `_payload`, by key
    objects: Mapping[str, tuple[Contents, list[str]]]
    #: the records of each quarantined message, by key
    quarantine: Mapping[str, list[str]]
    #: the size of each object in bytes, by key
    sizes: Mapping[str, int]
    #: in the catalog's order
    entries: list[CatalogEntry]
    #: the last identity of each submission, with its time to live, by submission_id
    identities: Mapping[str, tuple[Identity, str]]
    #: first and last sequence of each lane's stream, by the stream's name
    lanes: Mapping[str, tuple[int, int]]


@dataclass
class Verdict:
    """The violations by kind; all lists are empty if there are none."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    #: records that are stored but were not accepted
    strange: list[str] = field(default_factory=list)
    #: gaps and overlaps of a lane's objects
    ranges: list[str] = field(default_factory=list)
    #: differences between catalog and bucket
    catalog: list[str] = field(default_factory=list)
    #: accepted submissions whose identity is missing, names other objects, or expires too early
    identities: list[str] = field(default_factory=list)
    #: a difference between the ledger and the clients' own counts
    ledger: list[str] = field(default_factory=list)
    #: messages that are still in the queue below the anchor
    unpurged: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return not any(vars(self).values())

    def __str__(self) -> str:
        parts = (
            f"{len(wrong)} {name}: {[one[:160] for one in wrong[:5]]}" for name, wrong in vars(self).items() if wrong
        )
        return "; ".join(parts) or "nothing wrong"


def check(sent: Sent, found: Found) -> Verdict:
    """Checks that each accepted record is stored once, the catalog equals the bucket, and chains are complete."""
    verdict = Verdict()
    in_objects = Counter(record for _, records in found.objects.values() for record in records)
    set_aside = Counter(record for records in found.quarantine.values() for record in records)
    held = in_objects + set_aside
    verdict.lost = sorted((sent.accepted - held.keys()) | (sent.foreign - set_aside.keys()))
    verdict.doubled = sorted(record for record, times in held.items() if times > 1)
    verdict.strange = sorted(
        (held.keys() - sent.accepted - sent.unknown - sent.foreign) | (in_objects.keys() & sent.foreign)
    )
    _check_ranges(verdict, found)
    _check_catalog(verdict, found)
    _check_identities(verdict, sent, found)
    _check_ledger(verdict, sent, found)
    return verdict


def _check_ranges(verdict: Verdict, found: Found) -> None:
    chains: dict[str, list[Contents]] = defaultdict(list)
    for contents, _ in found.objects.values():
        chains[Lane(contents.source, contents.lane, contents.epoch).stream].append(contents)
    for stream, (first, last) in found.lanes.items():
        objects = sorted(chains.pop(stream, []), key=lambda one: one.first)
        # the positions before and after the chain, so that gaps at its ends are found, too
        ends = [0, *(one.last for one in objects)]
        begins = [*(one.first for one in objects), last + 1]
        verdict.ranges += [
            f"{stream}: {begin} follows {end}" for end, begin in zip(ends, begins, strict=True) if begin != end + 1
        ]
        if first < ends[-1]:
            verdict.unpurged.append(f"{stream}: {first} to {ends[-1] - 1}")
    verdict.ranges += [f"{stream} is no lane, and has {len(objects)} objects" for stream, objects in chains.items()]


def _check_catalog(verdict: Verdict, found: Found) -> None:
    wrong = verdict.catalog
    entries = Counter(entry.file_path for entry in found.entries)
    wrong += [f"{key} has {times} entries" for key, times in entries.items() if times > 1]
    wrong += [f"{key} is not in the bucket" for key in sorted(entries.keys() - found.objects.keys())]
    wrong += [f"{key} is not in the catalog" for key in sorted(found.objects.keys() - entries.keys())]
    totals: dict[Lane, Totals] = defaultdict(Totals)
    for entry in found.entries:
        contents, records = found.objects.get(entry.file_path, (None, []))
        lane = Lane(entry.source, entry.lane, entry.epoch)
        if contents is None:
            totals[lane] = entry.totals or totals[lane]
            continue
        before = totals[lane]
        totals[lane] += StoredObject(size=found.sizes[entry.file_path], contents=contents).totals
        expected = entry_of(contents, totals[lane])
        if entry.schema_versions is None:  # as older versions write it
            expected = msgspec.structs.replace(expected, schema_versions=None)
        if expected != entry or contents.records != len(records):
            wrong.append(f"{entry.file_path} holds something else than its entry says")
        if contents.totals_before != before:
            wrong.append(f"{entry.file_path} has totals that do not follow those before it")
    listed = {aside.key for contents, _ in found.objects.values() for aside in contents.quarantined}
    wrong += [f"{key} is listed or in quarantine, not both" for key in sorted(listed ^ found.quarantine.keys())]
    for of_lane in _by_lane(found.entries).values():
        wrong += [
            f"{two.file_path} is before its predecessor" for one, two in pairwise(of_lane) if two.first <= one.last
        ]


def _check_ledger(verdict: Verdict, sent: Sent, found: Found) -> None:
    """At rest, the ledger counts as many accepted records as the clients, but for copies and unknown outcomes."""
    last = [entries[-1].totals for entries in _by_lane(found.entries).values()]
    totals = sum((of_lane for of_lane in last if of_lane), Totals())
    accepted = totals.all_records - totals.duplicates
    least = len(sent.accepted | sent.foreign)
    if not least <= accepted <= len(sent.accepted | sent.foreign | sent.unknown):
        verdict.ledger.append(
            f"{accepted} records are accepted, but clients count {least} and {len(sent.unknown)} unknown"
        )


def _by_lane(entries: Iterable[CatalogEntry]) -> Mapping[tuple[str, int, str], list[CatalogEntry]]:
    lanes: dict[tuple[str, int, str], list[CatalogEntry]] = defaultdict(list)
    for entry in entries:
        lanes[entry.source, entry.lane, entry.epoch].append(entry)
    return lanes


def _check_identities(verdict: Verdict, sent: Sent, found: Found) -> None:
    for submission_id, keyed in sent.submissions.items():
        identity, ttl = found.identities.get(submission_id, (None, ""))
        if identity is None:
            verdict.identities.append(f"{submission_id} has none")
        elif identity.parts_done != identity.parts or set(identity.objects) - found.objects.keys():
            verdict.identities.append(f"{submission_id} is not done: {identity}")
        elif ttl != (KEYED_TTL if keyed else UNKEYED_TTL):
            verdict.identities.append(f"{submission_id} lives for {ttl!r}")


# --- reading


def records_of(content: bytes, *, apart: bool) -> list[str]:
    """A message's records, each exactly as sent; `apart` is for messages with rejected records."""
    if apart:
        return [raw.decode() for _, raw in rejected_records.unpack(content)[1]]
    raws = message.split_records(MessageKind.RECORDS if content.startswith(b"[") else MessageKind.LINES, content)
    return [raw.decode() for raw in raws if raw != PLACEHOLDER]


def read_bucket(
    account: S3Account,
) -> tuple[dict[str, tuple[Contents, list[str]]], dict[str, list[str]], dict[str, int]]:
    """Every object with its rows' payloads, the records in quarantine, and the objects' sizes."""
    s3: S3Client = boto3.client(
        "s3",
        endpoint_url=account.env["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=account.access_key,
        aws_secret_access_key=account.secret_key,
        region_name=account.env["AWS_DEFAULT_REGION"],
    )
    objects: dict[str, tuple[Contents, list[str]]] = {}
    quarantine: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    try:

        def under(prefix: str) -> Iterator[tuple[str, bytes]]:
            """What else is in the bucket comes and goes: a consumer's probe keys at its start."""
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=account.bucket, Prefix=prefix):
                for item in page.get("Contents", []):
                    yield item["Key"], s3.get_object(Bucket=account.bucket, Key=item["Key"])["Body"].read()

        for key, body in under("bronze/source="):
            sizes[key] = len(body)
            file = pq.ParquetFile(BytesIO(body))
            contents = msgspec.json.decode(file.metadata.metadata[FOOTER_KEY], type=Contents)
            objects[key] = contents, file.read(["_payload"]).column(0).to_pylist()
        for key, body in under("quarantine/"):
            quarantine[key] = records_of(body, apart=key.endswith(".rejected"))
    finally:
        s3.close()
    return objects, quarantine, sizes


async def streams(jetstream: JetStream, subject: str) -> list[str]:
    """The names of the streams with a subject."""
    names: list[str] = (await jetstream.api("STREAM.NAMES", {"subject": subject}))["streams"]
    return names


async def read_catalog(jetstream: JetStream) -> tuple[list[CatalogEntry], dict[str, tuple[Identity, str]]]:
    """Every catalog entry, in order, and the last identity of each submission with its time to live."""
    (stream,) = await streams(jetstream, "catalog.>")
    state = await jetstream.state(stream)
    entries: list[CatalogEntry] = []
    identities: dict[str, tuple[Identity, str]] = {}
    first = state.first
    while first <= state.last:
        messages = await jetstream.read(stream, first, messages_max=1000, bytes_max=2**24)
        if not messages:
            break  # a new stream: its first and last sequence are 0
        for one in messages:
            if one.subject.startswith("catalog."):
                entries.append(msgspec.json.decode(one.payload, type=CatalogEntry))
            elif one.subject.startswith("identity."):
                identities[one.submission_id] = msgspec.json.decode(one.payload, type=Identity), one.headers[TTL]
        first = messages[-1].sequence + 1
    return entries, identities
