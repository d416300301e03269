"""What is in quarantine, read from the bucket.

An object under `quarantine/` is what a message holds, byte for byte: rejected records with the reasons (`.rejected`),
or one that could not become rows (`.message`), whose headers stand in the object that lists it. Nothing is removed:
what was replayed gets a mark beside it.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from bronze.errors import DeadLetter, Halted
from bronze.protocol import rejected_records
from bronze.protocol.message import PLACEHOLDER, AcceptedSubmission, MessageKind, Part, split_records
from bronze.protocol.quarantine import (
    FOLDER,
    REJECTED,
    REPLAYED,
    QuarantineMetadata,
    is_quarantined,
    source_folder,
    source_of,
)
from bronze.servers.bucket import Bucket, Head


class CommandError(Exception):
    """What was asked for cannot be done; the message says why, and what can."""


class ReplayMark(msgspec.Struct, frozen=True, kw_only=True):
    """The mark of what was replayed: as which submission, how many records, and their digest (SHA-256)."""

    submission_id: str
    records: int
    digest: str


@dataclass(frozen=True, slots=True)
class Record:
    """A record in quarantine; its index in the body that it came in, and what is wrong with it, where that is known."""

    raw: bytes
    index: int | None = None
    kind: str | None = None
    field: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class QuarantinedObject:
    """An object of the quarantine. `accepted` is None where nobody can tell any more what its submission was."""

    key: str
    source: str
    submission_id: str
    stored_at: str
    reason: str
    accepted: AcceptedSubmission | None
    records: Sequence[Record]
    #: whether the records could be separated: else the only one is the whole message
    separable: bool
    replayed: ReplayMark | None

    def listed(self) -> dict[str, object]:
        """All but the records' bytes."""
        return {
            "key": self.key,
            "source": self.source,
            "submission_id": self.submission_id,
            "stored_at": self.stored_at,
            "reason": self.reason,
            "replayed_as": self.replayed.submission_id if self.replayed else None,
            "records": [
                {"index": one.index, "kind": one.kind, "field": one.field, "reason": one.reason} for one in self.records
            ],
        }

    def text(self) -> Iterator[str]:
        """The same, to be read."""
        again = f", replayed as {self.replayed.submission_id}" if self.replayed else ""
        yield f"{self.key}\n  submission {self.submission_id}, {self.stored_at}{again}\n  {self.reason}"
        for one in self.records:
            if one.reason:
                place = f"record {one.index}" + (f", field {one.field}" if one.field else "")
                yield f"  {place}: {one.reason} ({one.kind})"

    def lines(self) -> list[bytes]:
        """Each record as one line: a line's end is a blank to JSON outside of strings, and an error inside."""
        if not self.separable:
            return [self.records[0].raw]
        return [b" ".join(one.raw.splitlines()) for one in self.records]


async def find(
    bucket: Bucket, *, source: str | None = None, since: str = "", submission_id: str | None = None
) -> AsyncIterator[QuarantinedObject]:
    """The objects in quarantine, by source and in the order of its lanes.

    `since` is a time of the queue's server (RFC 3339, UTC), or the beginning of one.
    """
    keys = [key async for key in bucket.keys(source_folder(source) if source else FOLDER)]
    marks = {key for key in keys if key.endswith(REPLAYED)}
    for key in keys:
        head = await bucket.head(key) if is_quarantined(key) else None
        if head is None:
            continue
        metadata = QuarantineMetadata.parse(head.metadata)
        if metadata.time >= since and submission_id in {None, metadata.submission_id}:
            yield await _load(bucket, key, head, replayed=key + REPLAYED in marks)


async def load(bucket: Bucket, key: str) -> QuarantinedObject:
    """The object under a key; raises `CommandError`."""
    head = await bucket.head(key) if is_quarantined(key) else None
    if head is None:
        raise CommandError(f"{key} is not in quarantine; `bronze quarantine list` shows what is")
    return await _load(bucket, key, head, replayed=await bucket.head(key + REPLAYED) is not None)


async def _load(bucket: Bucket, key: str, head: Head, *, replayed: bool) -> QuarantinedObject:
    metadata = QuarantineMetadata.parse(head.metadata)
    payload = await bucket.read(key, 0, head.size) if head.size else b""
    accepted, records = await _records(bucket, key, payload, metadata.file_path)
    return QuarantinedObject(
        key=key,
        source=source_of(key),
        submission_id=metadata.submission_id,
        stored_at=metadata.time,
        reason=metadata.reason,
        accepted=accepted,
        records=records or [Record(payload)],
        separable=bool(records),
        replayed=await _mark(bucket, key) if replayed else None,
    )


async def _records(
    bucket: Bucket, key: str, payload: bytes, file_path: str
) -> tuple[AcceptedSubmission | None, list[Record]]:
    """The submission, if it is known, and its records, if they can be told apart."""
    if key.endswith(REJECTED):
        try:
            first_line, noted = rejected_records.unpack(payload)
            said = msgspec.json.decode(first_line, type=AcceptedSubmission)
        except (DeadLetter, msgspec.DecodeError):
            return None, []
        return said, [Record(raw, note.index, note.kind, note.field, note.reason) for note, raw in noted]
    part = await _part(bucket, key, file_path)
    accepted = part.accepted if part else None
    try:
        raws = split_records(part.kind if part else MessageKind.RECORDS, payload)
    except (msgspec.DecodeError, RecursionError):
        return accepted, []
    first = part.first_record if part else None
    return accepted, [
        Record(raw, None if first is None else first + place) for place, raw in enumerate(raws) if raw != PLACEHOLDER
    ]


async def _part(bucket: Bucket, key: str, file_path: str) -> Part | None:
    """The part that a message was, by the headers that the object which lists it has kept."""
    # not at import: the command line of publishers, too, imports this module, and they do without PyArrow
    from bronze.objects.reader import read_contents

    try:
        contents = await read_contents(bucket, file_path) if file_path else None
        headers = next((one.headers for one in contents.quarantined if one.key == key), None) if contents else None
        return Part.parse(headers) if headers else None
    except (Halted, DeadLetter):
        return None


async def _mark(bucket: Bucket, key: str) -> ReplayMark | None:
    head = await bucket.head(key + REPLAYED)
    return msgspec.json.decode(await bucket.read(key + REPLAYED, 0, head.size), type=ReplayMark) if head else None
