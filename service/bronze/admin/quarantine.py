"""Reads the quarantine from the bucket.

An object under `quarantine/` is the payload of a message, byte for byte: rejected records with the reasons
(`.rejected`), or a message that could not become rows (`.message`). The headers of such a message are in the object
that lists it. Nothing is removed: a replay adds a mark next to the quarantine object.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from bronze.admin.command_error import CommandError
from bronze.errors import DeadLetter, Halted
from bronze.printable import printable
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
from bronze.servers.bucket import Bucket, Head, NoSuchKey


class ReplayMark(msgspec.Struct, frozen=True, kw_only=True):
    """The mark of a replay: its submission, the number of its records, and their digest (SHA-256)."""

    submission_id: str
    records: int
    digest: str


@dataclass(frozen=True, slots=True)
class Record:
    """A record in quarantine; if known, with its index in the body of its submission and with the error."""

    raw: bytes
    index: int | None = None
    kind: str | None = None
    field: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class QuarantinedObject:
    """An object of the quarantine. `accepted` is None if its submission is not known any more."""

    key: str
    source: str
    submission_id: str
    stored_at: str
    reason: str
    accepted: AcceptedSubmission | None
    records: Sequence[Record]
    #: False: the records cannot be separated, and `records` has the whole message as a single record
    separable: bool
    replayed: ReplayMark | None

    def as_dict(self) -> dict[str, object]:
        """Everything except the records' bytes."""
        return {
            "key": self.key,
            "source": self.source,
            "submission_id": self.submission_id,
            "stored_at": self.stored_at,
            "reason": self.reason,
            "replayed_as": self.replayed.submission_id if self.replayed else None,
            "records": [
                {"index": record.index, "kind": record.kind, "field": record.field, "reason": record.reason}
                for record in self.records
            ],
        }

    def as_text(self) -> Iterator[str]:
        """The same for people, in lines."""
        replay = f", replayed as {self.replayed.submission_id}" if self.replayed else ""
        yield printable(self.key)
        yield f"  submission {printable(self.submission_id)}, {self.stored_at}{replay}"
        yield f"  {printable(self.reason)}"
        for record in self.records:
            if record.reason:
                place = f"record {record.index}" + (f", field {record.field}" if record.field else "")
                yield printable(f"  {place}: {record.reason} ({record.kind})")

    def lines(self) -> list[bytes]:
        """Each record as one line: a line break is white space to JSON outside of strings, and an error inside."""
        if not self.separable:
            return [self.records[0].raw]
        return [b" ".join(record.raw.splitlines()) for record in self.records]


async def find(
    bucket: Bucket, *, source: str | None = None, since: str = "", submission_id: str | None = None
) -> AsyncIterator[QuarantinedObject]:
    """The objects in quarantine, by source and in the order of its lanes.

    `since` is a time of the queue's server (RFC 3339, UTC), or a prefix of one.
    """
    keys = [key async for key in bucket.keys(source_folder(source) if source else FOLDER)]
    marks = {key for key in keys if key.endswith(REPLAYED)}
    for key in keys:
        head = await bucket.head(key) if is_quarantined(key) else None
        if head is None:
            continue
        metadata = QuarantineMetadata.parse(head.metadata)
        if metadata.time >= since and submission_id in {None, metadata.submission_id}:
            try:
                found = await _load(bucket, key, head, replayed=key + REPLAYED in marks)
            except NoSuchKey:
                continue
            yield found


async def load(bucket: Bucket, key: str) -> QuarantinedObject:
    """The quarantine object under a key. Raises `CommandError`."""
    head = await bucket.head(key) if is_quarantined(key) else None
    if head is None:
        raise CommandError(f"{key} is not in quarantine. `bronze quarantine list` shows the keys")
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
    """The submission, if it is known, and its records, if they can be separated."""
    if key.endswith(REJECTED):
        try:
            first_line, rejected = rejected_records.unpack(payload)
            submission = msgspec.json.decode(first_line, type=AcceptedSubmission)
        except (DeadLetter, msgspec.DecodeError):
            return None, []
        return submission, [Record(raw, note.index, note.kind, note.field, note.reason) for note, raw in rejected]
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
    """The message's place in its submission, by its headers, which are in the object that lists it."""
    # imported late: the command line of publishers imports this module too, and does not need PyArrow
    from bronze.objects.reader import read_contents

    try:
        contents = await read_contents(bucket, file_path) if file_path else None
        headers = (
            next((message.headers for message in contents.quarantined if message.key == key), None)
            if contents
            else None
        )
        return Part.parse(headers) if headers else None
    except (Halted, DeadLetter):
        return None


async def _mark(bucket: Bucket, key: str) -> ReplayMark | None:
    head = await bucket.head(key + REPLAYED)
    return msgspec.json.decode(await bucket.read(key + REPLAYED, 0, head.size), type=ReplayMark) if head else None
